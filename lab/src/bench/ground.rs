//! What every measurement is based on: servers configured as in production, pending messages, and a view of the
//! worker's progress.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use postgres::{Client, Statement};

use super::{Size, disk};
use crate::lab::{DATABASE, Lab};
use crate::paths::Paths;
use crate::progress::Steps;

/// A measurement fails if the worker makes no progress for this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// WAL files of 16 MB that single-row producers fill during one measurement.
const WAL_FILES: usize = 60;

/// Measurements of the disk before giving up on a calm one.
const LOOKS: usize = 10;

pub const OUTBOX: &str = "jetstream.outbox";

/// The options of a bench run.
#[derive(Debug)]
pub struct Bench {
    /// Determines how long measurements take.
    pub size: Size,
    /// Number of runs from which the median is taken, if the user chose one.
    pub told_runs: Option<usize>,
    /// Lines added to postgresql.conf on every server.
    pub settings: Vec<(String, String)>,
    pub steps: Steps,
}

/// All items with their indexes, in the order for run number `run`. Every second run goes backwards, so that an item is
/// not always affected by the same predecessor.
pub fn back_and_forth<T>(all: &[T], run: usize) -> Vec<(usize, &T)> {
    let mut order: Vec<_> = all.iter().enumerate().collect();
    if run.is_multiple_of(2) {
        order.reverse();
    }
    order
}

impl Bench {
    /// Number of runs from which the median is taken: the user's choice, otherwise by size.
    pub fn runs(&self, full: usize, quick: usize, tiny: usize) -> usize {
        self.told_runs.unwrap_or(self.size.pick(full, quick, tiny)).max(1)
    }

    /// Starts servers configured as in production, with a stream `BENCH` for the subjects `bench.>`, and waits for a
    /// calm disk.
    ///
    /// Errors: a server does not start.
    pub fn lab(&self, settings: &[(&str, &str)]) -> Result<Lab> {
        self.lab_and_disk(settings).map(|(lab, _)| lab)
    }

    /// Does the same, and also returns the last measurement of the disk.
    pub fn lab_and_disk(&self, settings: &[(&str, &str)]) -> Result<(Lab, Vec<(&'static str, f64)>)> {
        let mut builder = Lab::builder()
            .durable()
            .set("shared_buffers", "512MB")
            .set("max_wal_size", "8GB")
            .set("min_wal_size", "2GB")
            .set("max_connections", "150");
        let own = self
            .settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in settings.iter().copied().chain(own) {
            builder = builder.set(name, value);
        }
        let lab = builder.start()?;
        let time = Duration::from_millis(self.size.pick(10_000, 3_000, 100));
        let disk = disk::calm(&Paths::find()?.bench(), time, self.size.pick(LOOKS, LOOKS, 1))?;
        lab.sql("select jetstream.create_stream('BENCH', array['bench.>'])")?;
        lab.wait_for_streams()?;
        Ok((lab, disk))
    }
}

/// Brings a new server into the state of one that has been running for a while.
///
/// Errors: a statement fails.
pub fn season(lab: &Lab, size: Size) -> Result<()> {
    if size == Size::Tiny {
        return Ok(());
    }
    touch_buffers(lab)?;
    recycle_wal(lab, WAL_FILES)
}

/// Uses every page of `shared_buffers` once. The first use of a page of memory costs the session that extends a table
/// as much as several rows.
///
/// Errors: a statement fails.
fn touch_buffers(lab: &Lab) -> Result<()> {
    // One row of 7,000 bytes fills a page.
    lab.sql(
        "create unlogged table public.touched (filler text);
        alter table public.touched alter column filler set storage plain;
        insert into public.touched select repeat('x', 7000) from generate_series(
            1, (select setting::bigint from pg_settings where name = 'shared_buffers'));
        drop table public.touched",
    )
    .map(|_| ())
}

/// Creates WAL files that can be recycled, so that no producer waits while a new file is filled with zeros (about 30 ms
/// for each 16 MB).
///
/// Errors: a statement fails.
pub fn recycle_wal(lab: &Lab, files: usize) -> Result<()> {
    lab.sql("create table public.wal (n integer)")?;
    for _ in 0..files {
        lab.sql("insert into public.wal values (1)")?;
        lab.sql("select pg_switch_wal()")?;
    }
    lab.sql("drop table public.wal")?;
    lab.sql("checkpoint")?;
    Ok(())
}

/// Inserts `count` messages of `size` bytes over 128 subjects in one transaction. `columns` and `values` set further
/// columns, for example to schedule the messages or to choose a connection; both begin with a comma.
pub fn owe(lab: &Lab, count: usize, size: usize, columns: &str, values: &str) -> Result<()> {
    owe_in(lab, OUTBOX, count, size, columns, values)
}

/// Does the same in a table with the columns of the outbox.
pub fn owe_in(lab: &Lab, table: &str, count: usize, size: usize, columns: &str, values: &str) -> Result<()> {
    // The body consists of digests, which TOAST cannot compress.
    let body =
        format!("select substr(string_agg(sha256(int4send(n)), ''), 1, {size}) from generate_series(0, {size} / 32) n");
    lab.sql(&format!(
        "insert into {table} (subject, raw{columns}) \
         select 'bench.s' || i % 128, b.body{values} \
         from generate_series(1, {count}) i cross join ({body}) b (body)"
    ))?;
    Ok(())
}

/// Reads the worker's counters over a connection of its own.
pub struct Watch {
    client: Client,
    stored: Statement,
}

impl Watch {
    pub fn open(lab: &Lab) -> Result<Self> {
        let mut client = lab.postgres.client(DATABASE)?;
        // `status()` would read the outbox to determine the lag, and so take part in what is measured.
        let stored = client.prepare("select stored from jetstream.worker_status()")?;
        Ok(Self { client, stored })
    }

    /// Messages delivered since the worker started.
    pub fn stored(&mut self) -> Result<usize> {
        let row = self.client.query_one(&self.stored, &[])?;
        Ok(usize::try_from(row.get::<_, i64>(0))?)
    }

    /// Waits until the worker has delivered `count` messages since it started. Calls `each` at every poll.
    ///
    /// Errors: no progress for [`PATIENCE`].
    pub fn until(&mut self, lab: &Lab, count: usize, mut each: impl FnMut() -> Result<()>) -> Result<()> {
        let (mut last, mut moved) = (0, Instant::now());
        loop {
            let stored = self.stored()?;
            if stored >= count {
                return Ok(());
            }
            if stored != last {
                (last, moved) = (stored, Instant::now());
            }
            if moved.elapsed() > PATIENCE {
                bail!("no progress after {stored} of {count} messages\n{}", lab.logs());
            }
            each()?;
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Checks that the stream holds exactly `count` messages.
pub fn check_stream(lab: &Lab, count: usize) -> Result<()> {
    let stored = lab
        .message_count("BENCH")
        .context("cannot count the messages in the stream")?;
    ensure!(stored == count as u64, "{stored} messages in the stream, not {count}");
    Ok(())
}
