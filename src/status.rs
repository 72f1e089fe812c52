//! Shared memory: what the workers report, and where commits find the latch to set.
//!
//! One slot for each database of `pg_jetstream.databases`; the launcher hands them out. The wake table consists of
//! atomics alone, so that a commit takes no lock.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgAtomic, pg_shmem_init};

use crate::latency::Histogram;
use crate::message::LinkState;
use crate::notes::Ring;
use crate::pg;
use crate::pg::area::{Area, Atomic, Shared};
use crate::pg::dsm::{self, Shown};

/// A string of at most `N` bytes in shared memory; longer ones are cut at a character.
#[derive(Clone, Copy)]
pub struct Text<const N: usize> {
    len: u16,
    bytes: [u8; N],
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Text { len: 0, bytes: [0; N] }
    }
}

impl<const N: usize> From<&str> for Text<N> {
    fn from(text: &str) -> Self {
        let mut end = text.len().min(N);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut bytes = [0; N];
        bytes[..end].copy_from_slice(&text.as_bytes()[..end]);
        Text { len: end as u16, bytes }
    }
}

impl<const N: usize> Text<N> {
    /// The string.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len as usize]).unwrap_or("")
    }
}

/// One connection of a worker.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Link {
    /// `connections.name`.
    pub name: String,
    /// [`LinkState`] as a number.
    pub state: u8,
    /// Server, or reason.
    pub detail: String,
}

/// What one worker reports. Counters start at zero with the worker.
#[derive(Clone, Copy, Default)]
pub struct Report {
    /// What it is doing, in a word or two.
    pub state: Text<160>,
    /// Claimed and not settled.
    pub in_flight: u32,
    /// Their bytes.
    pub in_flight_bytes: u64,
    /// Keys held back by a failing or a crowding message.
    pub held_keys: u32,
    /// Messages claimed.
    pub claimed: u64,
    /// Messages acknowledged, duplicates included.
    pub stored: u64,
    /// Of these, those the stream had already.
    pub duplicates: u64,
    /// Of these, those whose id another message of the outbox has used.
    pub reused_ids: u64,
    /// Failed attempts that will be followed by another.
    pub retried: u64,
    /// Messages that became dead letters.
    pub dead: u64,
    /// How long the stored ones took.
    pub latency: Histogram,
    /// Transactions made.
    pub cycles: u64,
    /// Last failure of any kind.
    pub last_error: Text<400>,
    /// When it happened, microseconds since 2000-01-01 UTC; 0 for never.
    pub last_error_at: i64,
    /// When the worker started.
    pub started_at: i64,
    /// When the last transaction was made.
    pub last_cycle_at: i64,
    /// Number of the last request to connect anew that [`links`] takes into account.
    pub reconnects_taken: u32,
}

/// One slot: the launcher writes the first fields, the worker the rest.
#[derive(Clone, Copy, Default)]
pub struct Slot {
    /// Database name as listed; empty for a free slot.
    pub name: Text<63>,
    /// Its object id; 0 if it does not exist.
    pub database: u32,
    /// Process id of the worker; 0 if none runs.
    pub pid: i32,
    /// Why none runs.
    pub stopped: Text<500>,
    /// What ended the last one; empty if it ended as it was asked to.
    pub failure: Text<400>,
    /// When that was, microseconds since 2000-01-01 UTC.
    pub failed_at: i64,
    /// Role whose rights it has; empty while it has not begun.
    pub role: Text<63>,
    /// What it reports.
    pub report: Report,
    /// Where its connections are shown; 0 for nowhere.
    pub links: u32,
    /// Connection to connect anew; empty for all. Read when the reconnect counter moved.
    pub reconnect: Text<63>,
}

// SAFETY: plain data without pointers; numbers and empty texts are zero.
unsafe impl Shared for Slot {}

/// Where to find a database's worker. All zero: no worker.
#[derive(Default)]
pub struct Wake {
    database: AtomicU32,
    latch: AtomicUsize,
    reloads: AtomicU32,
    reconnects: AtomicU32,
    /// Messages with a `deliver_at` have been inserted since it last asked.
    delayed: AtomicBool,
    /// It would not look at the outbox if it were woken for that.
    resting: AtomicBool,
}

// SAFETY: atomics, of which zero is a value.
unsafe impl Shared for Wake {}

// SAFETY: atomics only.
unsafe impl Atomic for Wake {}

/// Transactions remembered by [`note_synchronous`].
const REMEMBERED: usize = 16 * 1024;

/// Full ids of transactions whose commit is on disk before anybody sees it, each at its remainder.
pub struct Synchronous([AtomicU64; REMEMBERED]);

impl Default for Synchronous {
    fn default() -> Self {
        Synchronous(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

// SAFETY: atomics only.
unsafe impl PGRXSharedMemory for Synchronous {}

// SAFETY: atomics only.
unsafe impl PGRXSharedMemory for Ring {}

// SAFETY: the names are this extension's own.
static SYNCHRONOUS: PgAtomic<Synchronous> = unsafe { PgAtomic::new(c"pg_jetstream synchronous commits") };
// SAFETY: as above.
static NOTES: PgAtomic<Ring> = unsafe { PgAtomic::new(c"pg_jetstream notes") };
/// One for each database that may be listed.
static SLOTS: Area<Slot> = Area::new(c"pg_jetstream slots");
/// Wake entries, by slot number.
static WAKES: Area<Wake> = Area::new(c"pg_jetstream wakes");
static PRELOADED: AtomicBool = AtomicBool::new(false);

/// Asks for shared memory for so many databases; only while `shared_preload_libraries` is processed.
pub fn init(databases: usize) {
    SLOTS.size(databases);
    WAKES.size(databases);
    pg_shmem_init!(SLOTS);
    pg_shmem_init!(WAKES);
    pg_shmem_init!(SYNCHRONOUS);
    pg_shmem_init!(NOTES);
    PRELOADED.store(true, Ordering::Relaxed);
}

/// Whether the library was preloaded, so that shared memory and workers exist.
pub fn preloaded() -> bool {
    PRELOADED.load(Ordering::Relaxed)
}

/// Runs `change` on a slot.
pub fn update(slot: usize, change: impl FnOnce(&mut Slot)) {
    SLOTS.write(|slots| change(&mut slots[slot]));
}

/// A copy of one slot.
pub fn slot(slot: usize) -> Slot {
    SLOTS.read(|slots| slots[slot])
}

thread_local! {
    /// Where this process, a worker, shows its connections.
    static SHOWN: RefCell<Option<Shown>> = const { RefCell::new(None) };
}

/// Shows the connections of the calling worker, as many as there are. To be called outside a transaction.
pub fn show_links(slot: usize, links: &[Link]) -> Result<(), pg::SqlError> {
    let text = serde_json::to_vec(links).unwrap_or_default();
    let write = |shown: &mut Shown| SLOTS.write(|_| shown.write(&text));
    if SHOWN.with_borrow_mut(|shown| shown.as_mut().is_some_and(write)) {
        return Ok(());
    }
    let new = pg::transaction(|| Shown::with_room(text.len()))?;
    let old = SHOWN.replace(new);
    SHOWN.with_borrow_mut(|shown| {
        update(slot, |slot| {
            slot.links = shown.as_mut().map_or(0, |shown| {
                shown.write(&text);
                shown.handle()
            });
        });
    });
    // Nobody finds it any more.
    if let Some(old) = old {
        old.end();
    }
    Ok(())
}

/// The connections of a slot's worker.
pub fn links(slot: usize) -> Vec<Link> {
    let text = SLOTS.read(|slots| {
        let handle = slots[slot].links;
        (handle != 0).then(|| dsm::read(handle)).flatten()
    });
    text.and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default()
}

/// Number of the slot whose name passes `test`.
pub fn find(test: impl Fn(&Slot) -> bool) -> Option<usize> {
    SLOTS.read(|slots| slots.iter().position(test))
}

/// Makes the calling worker the one that commits in `database` wake.
pub fn listen(slot: usize, database: u32) {
    let wake = &WAKES.unlocked()[slot];
    wake.latch.store(pg::my_latch(), Ordering::Relaxed);
    wake.resting.store(false, Ordering::Relaxed);
    wake.database.store(database, Ordering::Release);
}

/// Ends [`listen`] for a slot whose worker is gone.
pub fn deafen(slot: usize) {
    let wake = &WAKES.unlocked()[slot];
    wake.database.store(0, Ordering::Relaxed);
    wake.latch.store(0, Ordering::Relaxed);
}

/// Whether a slot's worker need not be woken to look at the outbox. After an end of its rest the worker sees every commit
/// that woke nobody, provided it takes its next snapshot later.
pub fn rest(slot: usize, resting: bool) {
    WAKES.unlocked()[slot].resting.store(resting, Ordering::SeqCst);
}

/// Counters of reload and reconnect requests for a slot.
pub fn requests(slot: usize) -> (u32, u32) {
    let wake = &WAKES.unlocked()[slot];
    (
        wake.reloads.load(Ordering::Acquire),
        wake.reconnects.load(Ordering::Acquire),
    )
}

/// Whether messages with a `deliver_at` have been inserted since the last call, as far as their commits woke the worker.
pub fn take_delayed(slot: usize) -> bool {
    WAKES.unlocked()[slot].delayed.swap(false, Ordering::SeqCst)
}

/// What to ask of a worker besides waking it; each asks for what stands before it, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Request {
    /// Look at the outbox.
    Look,
    /// Look for what is due: a message with a `deliver_at` has been inserted.
    LookForDue,
    /// Read connections and streams again.
    Reload,
}

/// Number of the wake entry of a database.
fn wake_of(database: u32) -> Option<usize> {
    WAKES
        .unlocked()
        .iter()
        .position(|wake| wake.database.load(Ordering::Acquire) == database)
}

/// Wakes the worker of a database; false if none listens.
pub fn wake(database: u32, request: Request) -> bool {
    if !preloaded() {
        return false;
    }
    let Some(number) = wake_of(database) else {
        return false;
    };
    let wake = &WAKES.unlocked()[number];
    match request {
        Request::Reload => {
            wake.reloads.fetch_add(1, Ordering::Release);
        }
        Request::LookForDue => wake.delayed.store(true, Ordering::SeqCst),
        Request::Look => {}
    }
    if request != Request::Reload && wake.resting.load(Ordering::SeqCst) {
        return true;
    }
    pg::set_latch(wake.latch.load(Ordering::Relaxed));
    true
}

/// Says that a transaction's commit will be on disk before anybody sees it. To be called before it commits.
pub fn note_synchronous(xid: u64) {
    SYNCHRONOUS.get().0[xid as usize % REMEMBERED].store(xid, Ordering::Release);
}

/// What transactions have inserted; only where the library was [`preloaded`].
pub fn notes() -> &'static Ring {
    NOTES.get()
}

/// Whether that was said of a transaction, and is remembered.
pub fn is_synchronous(xid: u64) -> bool {
    SYNCHRONOUS.get().0[xid as usize % REMEMBERED].load(Ordering::Acquire) == xid
}

/// Asks the worker of a database to connect anew, to one connection or (empty) to all; the number of the request, which
/// the worker reports when it has taken it, or none if no worker listens.
pub fn reconnect(database: u32, connection: &str) -> Option<u32> {
    if !preloaded() {
        return None;
    }
    let wakes = &WAKES.unlocked();
    let number = wake_of(database)?;
    let mut request = 0;
    update(number, |slot| {
        let before = wakes[number].reconnects.fetch_add(1, Ordering::Release);
        // The place holds one name: if another request waits there, both are served by all.
        let waits = before != slot.report.reconnects_taken && slot.reconnect.as_str() != connection;
        slot.reconnect = if waits { "".into() } else { connection.into() };
        request = before.wrapping_add(1);
    });
    wake(database, Request::Reload).then_some(request)
}

/// Name of a connection state as users see it.
pub fn link_state_name(state: u8) -> &'static str {
    const NAMES: [(LinkState, &str); 5] = [
        (LinkState::Connecting, "connecting"),
        (LinkState::Connected, "connected"),
        (LinkState::Disconnected, "disconnected"),
        (LinkState::Failed, "failed"),
        (LinkState::Disabled, "disabled"),
    ];
    NAMES
        .iter()
        .find(|(known, _)| *known as u8 == state)
        .map_or("unknown", |(_, name)| name)
}
