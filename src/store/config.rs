//! What the worker reads now and then: connections, streams, positions; and what it keeps in order.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use pgrx::prelude::*;
use pgrx::spi::{SpiHeapTupleData, SpiResult};

use crate::message::{Auth, ConnectionSpec, Origin, StreamSpec, StreamSynced, Tls};
use crate::micros;
use crate::order::Key;
use crate::relay::{Plan, Position};

/// Whether `pause()` is in force.
pub fn paused() -> SpiResult<bool> {
    Ok(Spi::get_one("select exists (select from jetstream.control)")?.unwrap_or(false))
}

fn text(row: &SpiHeapTupleData<'_>, name: &str) -> SpiResult<Option<String>> {
    row.get_by_name::<String, _>(name)
}

fn number(row: &SpiHeapTupleData<'_>, name: &str) -> SpiResult<i64> {
    Ok(row.get_by_name::<i64, _>(name)?.unwrap_or(0))
}

fn flag(row: &SpiHeapTupleData<'_>, name: &str) -> SpiResult<bool> {
    Ok(row.get_by_name::<bool, _>(name)?.unwrap_or(false))
}

fn millis(row: &SpiHeapTupleData<'_>, name: &str) -> SpiResult<Duration> {
    Ok(Duration::from_millis(number(row, name)?.max(0) as u64))
}

/// All connections, each with whether it is enabled.
pub fn connections() -> SpiResult<Vec<(ConnectionSpec, bool)>> {
    const SQL: &str = "select name, url, cluster_urls, auth_type, token, username, password, credentials_file, \
        nkey_seed, tls_required, tls_ca_file, tls_cert_file, tls_key_file, connection_timeout_ms::bigint, \
        reconnect_delay_ms::bigint, max_reconnect_attempts::bigint, default_stream, subject_prefix, domain, api_prefix, tls_handshake_first, enabled \
        from jetstream.connections order by name";
    Spi::connect(|client| client.select(SQL, None, &[])?.map(|row| connection(&row)).collect())
}

fn connection(row: &SpiHeapTupleData<'_>) -> SpiResult<(ConnectionSpec, bool)> {
    let secret = |name| Ok::<_, pgrx::spi::SpiError>(text(row, name)?.unwrap_or_default());
    let auth = match text(row, "auth_type")?.as_deref() {
        Some("token") => Auth::Token(secret("token")?),
        Some("password") => Auth::Password {
            user: secret("username")?,
            password: secret("password")?,
        },
        Some("credentials") => Auth::CredentialsFile(secret("credentials_file")?),
        Some("nkey") => Auth::Nkey(secret("nkey_seed")?),
        _ => Auth::None,
    };
    let more: Vec<Option<String>> = row.get_by_name("cluster_urls")?.unwrap_or_default();
    let servers = std::iter::once(text(row, "url")?)
        .chain(more)
        .flatten()
        .flat_map(|urls| urls.split(',').map(|url| url.trim().to_string()).collect::<Vec<_>>())
        .filter(|url| !url.is_empty())
        .collect();
    let spec = ConnectionSpec {
        name: Arc::from(secret("name")?),
        servers,
        auth,
        tls: Tls {
            required: flag(row, "tls_required")?,
            ca_file: text(row, "tls_ca_file")?,
            cert_file: text(row, "tls_cert_file")?,
            key_file: text(row, "tls_key_file")?,
        },
        connect_timeout: millis(row, "connection_timeout_ms")?,
        reconnect_delay: millis(row, "reconnect_delay_ms")?,
        max_reconnects: u32::try_from(number(row, "max_reconnect_attempts")?).ok(),
        subject_prefix: text(row, "subject_prefix")?,
        default_stream: text(row, "default_stream")?,
        domain: text(row, "domain")?,
        api_prefix: text(row, "api_prefix")?,
        handshake_first: flag(row, "tls_handshake_first")?,
    };
    Ok((spec, flag(row, "enabled")?))
}

/// All streams that should exist on enabled connections.
pub fn streams() -> SpiResult<Vec<StreamSpec>> {
    const SQL: &str = "select s.id::bigint, s.name, s.connection, s.subjects, s.storage, s.retention, s.discard, \
        s.max_messages, s.max_messages_per_subject, s.max_bytes, \
        (extract(epoch from least(s.max_age, interval '290 years')) * 1000)::bigint as max_age, s.max_message_size::bigint, s.replicas::bigint, \
        (extract(epoch from least(s.duplicate_window, interval '290 years')) * 1000)::bigint as duplicate_window, s.allow_message_ttl, \
        s.allow_atomic, s.description, s.accept_other, s.origin, s.applied, \
        s.id || '.' || extract(epoch from s.created_at) as mark \
        from jetstream.streams s join jetstream.connections c on c.name = s.connection and c.enabled order by s.id";
    Spi::connect(|client| client.select(SQL, None, &[])?.map(|row| stream(&row)).collect())
}

fn stream(row: &SpiHeapTupleData<'_>) -> SpiResult<StreamSpec> {
    let word = |name| Ok::<_, pgrx::spi::SpiError>(text(row, name)?.unwrap_or_default());
    let subjects: Vec<Option<String>> = row.get_by_name("subjects")?.unwrap_or_default();
    Ok(StreamSpec {
        id: number(row, "id")?,
        connection: Arc::from(word("connection")?),
        name: word("name")?,
        subjects: subjects.into_iter().flatten().collect(),
        storage: word("storage")?,
        retention: word("retention")?,
        discard: word("discard")?,
        max_messages: number(row, "max_messages")?,
        max_messages_per_subject: number(row, "max_messages_per_subject")?,
        max_bytes: number(row, "max_bytes")?,
        max_age: millis(row, "max_age")?,
        max_message_size: number(row, "max_message_size")? as i32,
        replicas: number(row, "replicas")?.max(1) as usize,
        duplicate_window: millis(row, "duplicate_window")?,
        allow_message_ttl: flag(row, "allow_message_ttl")?,
        allow_atomic: flag(row, "allow_atomic")?,
        description: text(row, "description")?,
        accept_other: flag(row, "accept_other")?,
        origin: match text(row, "origin")?.as_deref() {
            Some("created") => Some(Origin::Created),
            Some("found") => Some(Origin::Found),
            _ => None,
        },
        applied: row.get_by_name::<pgrx::JsonB, _>("applied")?.map(|json| json.0),
        mark: word("mark")?,
    })
}

/// Writes whether a stream is as asked; false if another session has locked the row, so that it has to be written later.
pub fn stream_synced(synced: &StreamSynced) -> SpiResult<bool> {
    let origin = synced.origin.map(|origin| match origin {
        Origin::Created => "created",
        Origin::Found => "found",
    });
    let locked: Option<bool> = Spi::get_one_with_args(
        "with free as (select s.id from jetstream.streams s where s.id = $1 for update skip locked), \
         written as (update jetstream.streams s set sync_error = $2, \
             synced_at = case when $2 is null then clock_timestamp() else s.synced_at end, \
             origin = coalesce($3, s.origin), applied = coalesce($4, s.applied) \
             from free where s.id = free.id) \
         select exists (select from jetstream.streams s where s.id = $1) and not exists (select from free)",
        &[
            synced.id.into(),
            synced.error.as_deref().into(),
            origin.into(),
            synced.applied.clone().map(pgrx::JsonB).into(),
        ],
    )?;
    Ok(locked != Some(true))
}

/// Keyed messages that have failed and will be tried again: their keys are held.
pub fn failing_keys(most: i64) -> SpiResult<Vec<(Key, i64)>> {
    const SQL: &str = "select o.connection::text, o.key::text, o.id from jetstream.outbox o \
        where o.deliver_at is not null and o.attempts > 0 and o.key is not null limit $1";
    Spi::connect_mut(|client| {
        let mut keys = Vec::new();
        for row in client.update(SQL, None, &[most.into()])? {
            if let (Some(connection), Some(key), Some(id)) = (row.get::<String>(1)?, row.get(2)?, row.get(3)?) {
                keys.push((
                    Key {
                        connection: connection.into(),
                        key,
                    },
                    id,
                ));
            }
        }
        Ok(keys)
    })
}

/// Of these messages, those that are still owed.
pub fn existing(ids: Vec<i64>) -> SpiResult<HashSet<i64>> {
    Spi::connect_mut(|client| {
        let mut found = HashSet::new();
        for row in client.update(
            "select o.id from jetstream.outbox o where o.id = any ($1)",
            None,
            &[ids.into()],
        )? {
            found.extend(row.get::<i64>(1)?);
        }
        Ok(found)
    })
}

/// Lets these messages be claimed in insert order again: they stand in line behind others of their key.
pub fn rejoin(ids: Vec<i64>) -> SpiResult<()> {
    Spi::run_with_args(
        "update jetstream.outbox set deliver_at = null, due_at = coalesce(due_at, greatest(created_at, deliver_at)) \
         where id = any ($1)",
        &[ids.into()],
    )
}

/// Last id given out by the outbox; below the cursor it means that somebody set the sequence back.
pub fn last_outbox_id() -> SpiResult<i64> {
    Ok(Spi::get_one("select last_value from jetstream.outbox_id_seq")?.unwrap_or(0))
}

/// Most messages owed of which recovery is told the ids; of more it keeps every id it finds.
const MOST_NAMED: usize = 100_000;

/// What an earlier worker, or an earlier connection of this one, may have sent to a connection without our knowing what
/// became of it; `None` if nothing that is due is owed.
pub fn recovery_plan(connection: &str) -> SpiResult<Option<Plan>> {
    // Of what could have been sent: a message that is not due was not, or says itself since when it may be stored.
    const OLDEST: &str = "select min(s.created_at), array_agg(distinct s.subject) from ( \
        (select o.created_at, o.subject from jetstream.outbox o where o.connection = $1 and o.deliver_at is null \
            order by o.connection, o.deliver_at, o.id limit 100000) \
        union all \
        (select o.created_at, o.subject from jetstream.outbox o where o.connection = $1 \
            and o.deliver_at <= (select clock_timestamp()) order by o.connection, o.deliver_at, o.id limit 100000)) s";
    const POSITIONS: &str = "select p.stream, p.last_sequence, p.updated_at from jetstream.positions p \
        where p.connection = $1";
    // Of all that is owed, also what does not look as if it had been sent.
    const MESSAGE_IDS: &str = "select array_agg(s.message_id) from (select o.message_id from jetstream.outbox o \
        where o.connection = $1 order by o.connection, o.deliver_at, o.id limit $2) s";
    let up_to = last_outbox_id()?;
    Spi::connect_mut(|client| {
        let oldest = client.update(OLDEST, None, &[connection.into()])?.first();
        let (since, subjects) = oldest.get_two::<TimestampWithTimeZone, Vec<String>>()?;
        let Some(subjects) = subjects else { return Ok(None) };
        let mut positions = std::collections::HashMap::new();
        for row in client.update(POSITIONS, None, &[connection.into()])? {
            if let (Some(stream), Some(sequence), Some(at)) = (
                row.get::<String>(1)?,
                row.get::<i64>(2)?,
                row.get::<TimestampWithTimeZone>(3)?,
            ) {
                let (sequence, at) = (sequence.max(0) as u64, micros::to_time(at.into()));
                positions.insert(Arc::from(stream), Position { sequence, at });
            }
        }
        let ids = client
            .update(MESSAGE_IDS, None, &[connection.into(), (MOST_NAMED as i64 + 1).into()])?
            .first();
        let ids = ids.get_one::<Vec<String>>()?.unwrap_or_default();
        Ok(Some(Plan {
            message_ids: (ids.len() <= MOST_NAMED)
                .then(|| Arc::new(ids.iter().map(|id| id.trim().to_owned()).collect())),
            positions,
            subjects,
            since: since.map(|at| micros::to_time(at.into())),
            filtered: false,
            up_to,
        }))
    })
}

/// Whether a message up to this id that was due by then is still owed. One behind a failing one of its key counts too: it
/// may have been sent before the failing one could be seen.
pub fn is_owed(connection: &str, up_to: i64, due_by: i64) -> SpiResult<bool> {
    let owed: Option<bool> = Spi::get_one_with_args(
        "select exists (select from jetstream.outbox o where o.connection = $1 and o.id <= $2 and o.deliver_at is null) \
             or exists (select from jetstream.outbox o where o.connection = $1 and o.id <= $2 \
                 and o.deliver_at <= timestamptz '2000-01-01 00:00+00' + $3 * interval '1 microsecond')",
        &[connection.into(), up_to.into(), due_by.into()],
    )?;
    Ok(owed == Some(true))
}

/// Advances the position of a stream.
pub fn advance(connection: &str, stream: &str, sequence: i64) -> SpiResult<()> {
    Spi::run_with_args(
        "insert into jetstream.positions as p (connection, stream, last_sequence) values ($1, $2, $3) \
         on conflict on constraint positions_pkey do update \
         set last_sequence = excluded.last_sequence, updated_at = clock_timestamp()",
        &[connection.into(), stream.into(), sequence.into()],
    )
}

/// Makes and drops history partitions.
pub fn maintain_history(retention: Duration) -> SpiResult<()> {
    Spi::run_with_args(
        "select jetstream.history_maintain($1 * interval '1 second')",
        &[(retention.as_secs() as f64).into()],
    )
}
