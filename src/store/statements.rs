//! The text of the statements of a cycle.

use pgrx::pg_sys::PgBuiltInOids as Oids;
use pgrx::prelude::*;
use pgrx::spi::{OwnedPreparedStatement, SpiClient, SpiError};

use super::Result;

/// Number of columns of every claim.
pub(super) const WIDTH: usize = 18;

/// Columns of every claim but the last three, in the order [`super::claim`] expects.
///
/// `xmax` is not zero if somebody has locked, changed or deleted the row, or has tried to.
const COLUMNS: &str = "o.xmax, o.id, o.txid, o.subject, coalesce(o.raw, convert_to(o.payload::text, 'UTF8')), \
    convert_to(o.headers::text, 'UTF8'), o.message_id, o.key, \
    case when o.ttl is not null then ceil(extract(epoch from o.ttl))::integer end, o.attempts, \
    coalesce(o.due_at, greatest(o.created_at, o.deliver_at)), o.webhook, o.unsure_since, \
    o.traceparent, o.deliver_at";

/// Stands for a failing message among what is ahead of a row; see [`AHEAD`].
pub(super) const FAILING: i64 = i64::MIN;

/// What stands ahead of a row in its key: a failing message, or the first of those that wait; null if nothing does.
const AHEAD: &str = "case when o.key is null then null \
    when exists (select from jetstream.outbox f where f.connection = o.connection and f.key = o.key \
        and f.attempts > 0 and f.deliver_at is not null and f.id <> o.id) then '-9223372036854775808'::bigint \
    else (select p.id from jetstream.outbox p where p.connection = o.connection and p.key = o.key \
        and p.attempts = 0 and p.deliver_at is null and p.id < o.id \
        order by p.connection, p.key, p.attempts, p.id limit 1) end";

/// The ways to claim.
pub(super) struct Claims {
    pub(super) insert_order: OwnedPreparedStatement,
    pub(super) late: OwnedPreparedStatement,
    pub(super) by_id: OwnedPreparedStatement,
    pub(super) due: OwnedPreparedStatement,
    pub(super) by_key: OwnedPreparedStatement,
    pub(super) sweep: OwnedPreparedStatement,
}

/// The statements of a cycle, by what they do.
pub(super) struct Statements {
    pub(super) plain: Claims,
    /// The same with [`AHEAD`], which costs two looks into an index for each keyed row.
    pub(super) asking: Claims,
    pub(super) lockable: OwnedPreparedStatement,
    pub(super) delete: OwnedPreparedStatement,
    pub(super) record: OwnedPreparedStatement,
    pub(super) record_payload: OwnedPreparedStatement,
    pub(super) retry: OwnedPreparedStatement,
    pub(super) bury: OwnedPreparedStatement,
    pub(super) next_due: OwnedPreparedStatement,
}

impl Statements {
    /// Prepares all of them; they stay valid as long as the extension is not changed.
    pub(super) fn prepare(client: &SpiClient<'_>) -> Result<Statements> {
        let text = Oids::TEXTOID;
        let make = |sql: String, args: &[Oids]| {
            let args: Vec<PgOid> = args.iter().map(|oid| PgOid::BuiltIn(*oid)).collect();
            Ok::<_, SpiError>(client.prepare_mut(sql.as_str(), &args)?.keep())
        };
        let unnest = "unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) \
        as u (id, acked_at, sequence, attempts, latency_ms, duplicate, connection, subject, message_id, stream, key, \
            webhook, txid, error)";
        let record_args = [
            Oids::INT8ARRAYOID,
            Oids::INT8ARRAYOID,
            Oids::INT8ARRAYOID,
            Oids::INT4ARRAYOID,
            Oids::FLOAT4ARRAYOID,
            Oids::BOOLARRAYOID,
            Oids::TEXTARRAYOID,
            Oids::TEXTARRAYOID,
            Oids::TEXTARRAYOID,
            Oids::TEXTARRAYOID,
            Oids::TEXTARRAYOID,
            Oids::INT4ARRAYOID,
            Oids::INT8ARRAYOID,
            Oids::TEXTARRAYOID,
        ];
        let columns = "published_at, outbox_id, sequence, attempts, latency_ms, success, duplicate, connection, \
        subject, message_id, stream, key, webhook, error";
        let values = "timestamptz '2000-01-01 00:00+00' + u.acked_at * interval '1 microsecond', u.id, u.sequence, \
        u.attempts, u.latency_ms, true, u.duplicate, u.connection, u.subject, u.message_id, u.stream, u.key, u.webhook, u.error";
        let failure_args = [
            Oids::INT8ARRAYOID,
            Oids::INT4ARRAYOID,
            Oids::TEXTARRAYOID,
            Oids::INT8ARRAYOID,
            Oids::INT8ARRAYOID,
            Oids::INT8ARRAYOID,
        ];
        Ok(Statements {
            plain: claims(client, "null::bigint")?,
            asking: claims(client, AHEAD)?,
            lockable: make(
                "select id from jetstream.outbox where id = any ($1) for update skip locked".into(),
                &[Oids::INT8ARRAYOID],
            )?,
            delete: make(
                format!("delete from jetstream.outbox o using unnest($1, $2) as u (id, txid) where {SAME}"),
                &[Oids::INT8ARRAYOID, Oids::INT8ARRAYOID],
            )?,
            record: make(
                format!("insert into jetstream.history ({columns}) select {values} from {unnest}"),
                &record_args,
            )?,
            record_payload: make(
                format!(
                    "with gone as (delete from jetstream.outbox o using unnest($1, $13) as u (id, txid) where {SAME} \
                         returning o.id, o.payload, o.raw, o.headers) \
                     insert into jetstream.history ({columns}, payload, raw, headers) \
                     select {values}, g.payload, g.raw, g.headers from {unnest} left join gone g on g.id = u.id"
                ),
                &record_args,
            )?,
            retry: make(format!("{RETRY} where {SAME}"), &failure_args)?,
            bury: make(bury(), &[&failure_args[..], &[Oids::BOOLOID]].concat())?,
            next_due: make(
                format!(
                    "select extract(epoch from min(o.deliver_at) - clock_timestamp())::double precision * 1000 \
                     from jetstream.outbox o where o.connection = $1 and {BEHIND} and o.id <> all ($2)"
                ),
                &[text, Oids::INT8ARRAYOID, Oids::INT8OID, Oids::INT8OID],
            )?,
        })
    }
}

/// The ways to claim, each with what stands ahead of a row as this expression says it.
fn claims(client: &SpiClient<'_>, ahead: &str) -> Result<Claims> {
    let text = Oids::TEXTOID;
    let int8 = Oids::INT8OID;
    let make = |sql: String, args: &[Oids]| {
        let args: Vec<PgOid> = args.iter().map(|oid| PgOid::BuiltIn(*oid)).collect();
        Ok::<_, SpiError>(client.prepare_mut(sql.as_str(), &args)?.keep())
    };
    let claim = |snapshot: &str, condition: &str| {
        format!("select {COLUMNS}, {snapshot}, o.ctid, {ahead} from jetstream.outbox o where {condition}")
    };
    let in_lane = |condition: &str| claim("null::text", &format!("o.connection = $1 and {condition}"));
    Ok(Claims {
        insert_order: make(
            claim(
                "(select pg_current_snapshot()::text)",
                "o.connection = $1 and o.id > $2 and o.deliver_at is null order by o.connection, o.deliver_at, o.id",
            ),
            &[text, int8],
        )?,
        late: make(
            in_lane(
                "o.id between $2 and $3 and o.txid = any ($4::xid8[]) and o.deliver_at is null \
                     order by o.connection, o.deliver_at, o.id",
            ),
            &[text, int8, int8, text],
        )?,
        due: make(
            in_lane(
                // The subquery is made once, so that the index ends the walk there.
                &format!(
                    "o.deliver_at <= (select clock_timestamp()) and {BEHIND} and o.id <> all ($2) \
                         order by o.connection, o.deliver_at, o.id"
                ),
            ),
            &[text, Oids::INT8ARRAYOID, int8, int8],
        )?,
        by_key: make(
            in_lane(
                "o.key = $2 and o.attempts = 0 and o.id >= $3 and o.deliver_at is null \
                     order by o.connection, o.key, o.attempts, o.id",
            ),
            &[text, text, int8],
        )?,
        sweep: make(
            in_lane("o.id between $2 and $3 and o.deliver_at is null order by o.connection, o.deliver_at, o.id"),
            &[text, int8, int8],
        )?,
        by_id: make(
            in_lane("o.id = $2 and (o.deliver_at is null or o.deliver_at <= clock_timestamp())"),
            &[text, int8],
        )?,
    })
}

/// The row stands behind a [`super::Turn`], or that is null.
const BEHIND: &str = "(o.deliver_at, o.id) > (coalesce( \
    timestamptz '2000-01-01 00:00+00' + $3 * interval '1 microsecond', '-infinity'), coalesce($4, 0))";

/// Notes a failed attempt of each of these messages and when the next is due.
const RETRY: &str = "
update jetstream.outbox o
set attempts = u.attempts, last_error = u.reason, failed_at = clock_timestamp(),
    deliver_at = clock_timestamp() + u.delay * interval '1 millisecond',
    due_at = coalesce(o.due_at, greatest(o.created_at, o.deliver_at)),
    unsure_since = coalesce(o.unsure_since,
                            timestamptz '2000-01-01 00:00+00' + u.since * interval '1 microsecond')
from unnest($1, $2, $3, $4, $5, $6) as u (id, attempts, reason, delay, since, txid)";

/// The row `o` is still that of the message `u`: ids may have begun anew.
const SAME: &str = "o.id = u.id and o.txid = u.txid::text::xid8";

fn bury() -> String {
    format!(
        "with u as (select * from unnest($1, $2, $3, $4, $5, $6) as u (id, attempts, reason, delay, since, txid)), \
         gone as (delete from jetstream.outbox o using u where {SAME} \
             returning o.id, o.connection, o.subject, o.payload, o.raw, o.headers, o.message_id, o.key, o.ttl, o.webhook, \
                       o.traceparent, u.attempts, u.reason, o.created_at, coalesce(o.unsure_since, \
                           timestamptz '2000-01-01 00:00+00' + u.since * interval '1 microsecond')), \
         letters as (insert into jetstream.dead_letters (outbox_id, connection, subject, payload, raw, headers, \
                 message_id, key, ttl, webhook, traceparent, attempts, reason, created_at, unsure_since) \
             select * from gone) \
         insert into jetstream.history (published_at, outbox_id, attempts, success, connection, subject, message_id, key, \
                 webhook, error) \
             select clock_timestamp(), id, attempts, false, connection, subject, message_id, key, webhook, reason \
             from gone where $7"
    )
}
