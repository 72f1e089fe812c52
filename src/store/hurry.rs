//! Failing messages that are tried before their time, because something may have ended the cause.

use std::collections::HashSet;
use std::time::Duration;

use pgrx::Spi;
use pgrx::spi::SpiResult;

/// Most rows of one step.
const STEP: i64 = 10_000;

/// What a step of [`all_due`] did.
pub struct Step {
    /// Messages that are due now.
    pub due: i64,
    /// Where the next step goes on: `due_at`, microseconds since 2000-01-01 UTC; none after the last.
    pub next: Option<i64>,
}

/// Makes failing messages of a connection due, the oldest first, a step at a time.
pub fn all_due(connection: &str, after: Option<i64>) -> SpiResult<Step> {
    const SQL: &str = "with f as ( \
            select o.id, o.due_at from jetstream.outbox o where o.connection = $1 and o.attempts > 0 \
                and o.due_at > coalesce(timestamptz '2000-01-01 00:00+00' + $2 * interval '1 microsecond', '-infinity') \
            order by o.connection, o.due_at limit $3), \
        free as (select l.id from jetstream.outbox l where l.id in (select f.id from f) \
            and l.deliver_at > clock_timestamp() for update skip locked), \
        due as (update jetstream.outbox u set deliver_at = clock_timestamp() from free where u.id = free.id returning 1) \
        select (select count(*) from due), (select case when count(*) = $3 \
            then (extract(epoch from max(f.due_at) - timestamptz '2000-01-01 00:00+00') * 1000000)::bigint end from f)";
    step(SQL, &[connection.into(), after.into(), STEP.into()])
}

/// Makes some failing messages of a subject due; how many. Scans the oldest failing ones of the connection only.
pub fn some_due(connection: &str, subject: &str, most: i64) -> SpiResult<i64> {
    const SQL: &str = "with f as ( \
            select o.id, o.subject, o.deliver_at from jetstream.outbox o where o.connection = $1 and o.attempts > 0 \
            order by o.connection, o.due_at limit $4), \
        few as (select f.id from f where f.subject = $2 and f.deliver_at > clock_timestamp() limit $3), \
        free as (select l.id from jetstream.outbox l where l.id in (select few.id from few) for update skip locked), \
        due as (update jetstream.outbox u set deliver_at = clock_timestamp() from free where u.id = free.id returning 1) \
        select (select count(*) from due), null::bigint";
    Ok(step(SQL, &[connection.into(), subject.into(), most.into(), STEP.into()])?.due)
}

/// What [`early`] did.
#[derive(Default)]
pub struct Early {
    /// Messages that are due now, and how long before their time.
    pub due: Vec<(i64, Duration)>,
    /// Those that are still failing, due now or not.
    pub existing: HashSet<i64>,
}

/// Makes these failing messages due, except those that will be in two seconds, or that another session has locked.
pub fn early(ids: &[i64]) -> SpiResult<Early> {
    const SQL: &str = "with free as (select l.id, l.deliver_at from jetstream.outbox l where l.id = any ($1) \
            and l.attempts > 0 and l.deliver_at > clock_timestamp() + interval '2 seconds' and isfinite(l.deliver_at) \
            for update skip locked), \
        due as (update jetstream.outbox u set deliver_at = clock_timestamp() from free where u.id = free.id \
            returning u.id, (extract(epoch from free.deliver_at - clock_timestamp()) * 1000)::bigint as left_ms) \
        select o.id, (select due.left_ms from due where due.id = o.id) \
        from jetstream.outbox o where o.id = any ($1) and o.attempts > 0";
    Spi::connect_mut(|client| {
        let mut early = Early::default();
        for row in client.update(SQL, None, &[ids.to_vec().into()])? {
            let Some(id) = row.get::<i64>(1)? else { continue };
            early.existing.insert(id);
            if let Some(left) = row.get::<i64>(2)? {
                early.due.push((id, Duration::from_millis(left.max(0) as u64)));
            }
        }
        Ok(early)
    })
}

/// Failing messages that no stream takes or that are denied, by their last error: id, connection and subject, one of each
/// subject. Scans some failing ones only.
pub fn subjects() -> SpiResult<Vec<(i64, String, String)>> {
    const SQL: &str = "with f as (select o.id, o.connection, o.subject, o.last_error from jetstream.outbox o \
            where o.attempts > 0 order by o.connection, o.due_at limit $1) \
        select min(f.id), f.connection::text, f.subject::text from f \
        where f.last_error like 'no stream takes subject %' or f.last_error like 'publishing to subject %' \
        group by f.connection, f.subject";
    Spi::connect_mut(|client| {
        let mut subjects = Vec::new();
        for row in client.update(SQL, None, &[STEP.into()])? {
            if let (Some(id), Some(connection), Some(subject)) = (row.get(1)?, row.get(2)?, row.get(3)?) {
                subjects.push((id, connection, subject));
            }
        }
        Ok(subjects)
    })
}

fn step(sql: &str, args: &[pgrx::datum::DatumWithOid<'_>]) -> SpiResult<Step> {
    Spi::connect_mut(|client| {
        let (due, next) = client.update(sql, None, args)?.first().get_two::<i64, i64>()?;
        Ok(Step {
            due: due.unwrap_or(0),
            next,
        })
    })
}
