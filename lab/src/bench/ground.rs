//! What every measurement stands on: servers as in production, messages that are owed, a look at how far the worker is.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use postgres::{Client, Statement};

use super::{Size, disk};
use crate::lab::{DATABASE, Lab};
use crate::paths::Paths;
use crate::progress::Steps;

/// Longest time without a single further message before a measurement is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Files of 16 MB that writers of single rows fill in a measurement.
const WAL_FILES: usize = 60;

/// How often the disk is looked at until it is calm.
const LOOKS: usize = 10;

/// Where messages are owed.
pub const OUTBOX: &str = "jetstream.outbox";

/// How a run of the bench was asked for.
#[derive(Debug)]
pub struct Bench {
    /// How long its measurements are.
    pub size: Size,
    /// Runs of which the median counts, if told.
    pub told_runs: Option<usize>,
    /// Lines of postgresql.conf for every server.
    pub settings: Vec<(String, String)>,
    /// Shows how far it is.
    pub steps: Steps,
}

/// All, each with its place, for the run of this number: every second run goes backwards, so that what comes after what
/// does not always weigh on the same one.
pub fn back_and_forth<T>(all: &[T], run: usize) -> Vec<(usize, &T)> {
    let mut order: Vec<_> = all.iter().enumerate().collect();
    if run.is_multiple_of(2) {
        order.reverse();
    }
    order
}

impl Bench {
    /// Runs of which the median counts: as told, else by size.
    pub fn runs(&self, full: usize, quick: usize, tiny: usize) -> usize {
        self.told_runs.unwrap_or(self.size.pick(full, quick, tiny)).max(1)
    }

    /// Servers as in production, with a stream `BENCH` for the subjects below `bench.`, on a disk that is calm by then.
    ///
    /// Errors: a server does not start.
    pub fn lab(&self, settings: &[(&str, &str)]) -> Result<Lab> {
        self.lab_and_disk(settings).map(|(lab, _)| lab)
    }

    /// The same, and what the last look at the disk found.
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

/// Makes a server as one is that has run for a while.
///
/// Errors: the server refuses.
pub fn season(lab: &Lab, size: Size) -> Result<()> {
    if size == Size::Tiny {
        return Ok(());
    }
    touch_buffers(lab)?;
    recycle_wal(lab, WAL_FILES)
}

/// Uses every page of `shared_buffers` once, as a server has that has run for a while: a page of memory that nobody has
/// used yet costs whoever extends a table as much as several rows.
///
/// Errors: the server refuses.
fn touch_buffers(lab: &Lab) -> Result<()> {
    // A row of 7,000 bytes fills a page.
    lab.sql(
        "create unlogged table public.touched (filler text);
        alter table public.touched alter column filler set storage plain;
        insert into public.touched select repeat('x', 7000) from generate_series(
            1, (select setting::bigint from pg_settings where name = 'shared_buffers'));
        drop table public.touched",
    )
    .map(|_| ())
}

/// Makes WAL files as a server has them that has run for a while: recycled, so that no writer waits for a new one to be
/// filled with zeros (about 30 ms for each 16 MB).
///
/// Errors: the server refuses.
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

/// Inserts `count` messages of `size` bytes over 128 subjects, in one transaction; with `others` (`", name = value"`
/// of further columns) they may be such as are not due or go elsewhere.
pub fn owe(lab: &Lab, count: usize, size: usize, columns: &str, values: &str) -> Result<()> {
    owe_in(lab, OUTBOX, count, size, columns, values)
}

/// The same, into a table like the outbox.
pub fn owe_in(lab: &Lab, table: &str, count: usize, size: usize, columns: &str, values: &str) -> Result<()> {
    // Of digests, so that TOAST finds nothing to compress.
    let body =
        format!("select substr(string_agg(sha256(int4send(n)), ''), 1, {size}) from generate_series(0, {size} / 32) n");
    lab.sql(&format!(
        "insert into {table} (subject, raw{columns}) \
         select 'bench.s' || i % 128, b.body{values} \
         from generate_series(1, {count}) i cross join ({body}) b (body)"
    ))?;
    Ok(())
}

/// Looks at the worker's counters on a connection of its own, which stays open.
pub struct Watch {
    client: Client,
    stored: Statement,
}

impl Watch {
    /// Opens the connection.
    pub fn open(lab: &Lab) -> Result<Self> {
        let mut client = lab.postgres.client(DATABASE)?;
        // Not status(), which looks at the outbox for the lag and would take part in what is measured.
        let stored = client.prepare("select stored from jetstream.worker_status()")?;
        Ok(Self { client, stored })
    }

    /// Messages stored since the worker started.
    pub fn stored(&mut self) -> Result<usize> {
        let row = self.client.query_one(&self.stored, &[])?;
        Ok(usize::try_from(row.get::<_, i64>(0))?)
    }

    /// Waits until the worker has stored `count` since it started; calls `each` at every look.
    ///
    /// Errors: a minute without any progress.
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
                bail!("stands still at {stored} of {count}\n{}", lab.logs());
            }
            each()?;
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// That the stream holds exactly so many messages.
pub fn check_stream(lab: &Lab, count: usize) -> Result<()> {
    let stored = lab.message_count("BENCH").context("cannot count the messages stored")?;
    ensure!(stored == count as u64, "{stored} messages in the stream, not {count}");
    Ok(())
}
