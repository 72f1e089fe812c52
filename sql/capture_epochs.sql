-- Epochs: positions in the write-ahead log grow within one cluster only.

create table jetstream.capture_epochs (
    epoch bigint not null,
    system_identifier bigint not null,
    timeline integer not null,
    since timestamptz not null default clock_timestamp(),
    here boolean not null default true
);
-- A dump may bring any rows next to those that are there.
alter table jetstream.capture_epochs replica identity full;
comment on table jetstream.capture_epochs is
    'Clusters that have captured changes of this database, by the epoch in their messages: a later one has a greater epoch';
comment on column jetstream.capture_epochs.epoch is 'Seconds since 1970 when it captured its first change, or more: greater than every epoch before it';
comment on column jetstream.capture_epochs.system_identifier is 'Its system identifier, as pg_control_system() shows it';
comment on column jetstream.capture_epochs.timeline is 'Its timeline: a promoted standby has another than its primary';
comment on column jetstream.capture_epochs.since is 'When it captured its first change';

comment on column jetstream.capture_epochs.here is 'Whether this database recorded it; false in a row that a dump brings, as a copied cluster has the identifier of the other';

create function jetstream.capture_epochs_before_insert() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    new.here := not jetstream.is_restored(new.since);
    return new;
end
$$;
comment on function jetstream.capture_epochs_before_insert() is 'Notes whether a dump brings the row';
create trigger capture_epochs_before_insert before insert on jetstream.capture_epochs
    for each row execute function jetstream.capture_epochs_before_insert();

select pg_catalog.pg_extension_config_dump('jetstream.capture_epochs', '');

create function jetstream.capture_epoch(system_identifier bigint, timeline integer, current_system bigint, current_timeline integer)
returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    latest jetstream.capture_epochs;
begin
    select e.* into latest from jetstream.capture_epochs e order by e.epoch desc limit 1;
    if latest.epoch is null or not latest.here or (latest.system_identifier, latest.timeline) <> (current_system, current_timeline) then
        insert into jetstream.capture_epochs (epoch, system_identifier, timeline)
        values (greatest(latest.epoch + 1, extract(epoch from clock_timestamp())::bigint), current_system, current_timeline)
        returning * into latest;
    end if;
    if (capture_epoch.system_identifier, capture_epoch.timeline) = (current_system, current_timeline) then
        return latest.epoch;
    end if;
    -- Captured elsewhere, and restored here before it was a message. One that is not known comes before all others.
    return coalesce(
        (select max(e.epoch) from jetstream.capture_epochs e
         where e.system_identifier = capture_epoch.system_identifier and e.timeline = capture_epoch.timeline),
        (select min(e.epoch) - 1 from jetstream.capture_epochs e));
end
$$;
comment on function jetstream.capture_epoch(bigint, integer, bigint, integer) is
    'The epoch of changes that a cluster captured. The worker calls it, which also records the worker''s own cluster
system_identifier: System identifier of the cluster that captured the changes
timeline: Timeline of that cluster
current_system: System identifier of this cluster
current_timeline: Timeline of this cluster';
