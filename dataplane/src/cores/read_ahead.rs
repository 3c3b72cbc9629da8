//! Read-ahead of one scan on one core: keeps the device busy while the engine computes.
//!
//! Owns the fetches of the row groups that come next. Called by [`super::scan`] and by exact vector search.
//!
//! Columns are numbers of parts here: membership filters are fetched as chunks are, where a row group has them.
//!
//! What a row group will need is learnt from those before: the columns that the engine asked for first (those of the
//! filter) are fetched ahead from the second row group on; columns that it asks for only where rows survive are
//! fetched ahead once two row groups in a row needed them, so that a selective scan does not read them in vain.
//!
//! Invariants:
//! - Bytes fetched ahead stay under the scan's share of [`READ_AHEAD_BYTES_MAX`] and of a quarter of the arena, but
//!   for one row group.
//! - A failed fetch ahead is no error: the row group's own fetch tries again and reports.

use std::{cell::Cell, collections::VecDeque, future::Future, pin::Pin};

use futures_lite::future::poll_once;
use hidb::Result;

use super::work::GroupWork;
use crate::{
    cache::{BlockCache, ChunkAddress, ChunkKey, Fetched},
    device::{self, Device},
};

/// Bytes that all scans of a core read ahead together.
pub(super) const READ_AHEAD_BYTES_MAX: u64 = 32 << 20;
/// Row groups read ahead at most.
const ROW_GROUPS_AHEAD_MAX: usize = 32;

thread_local! {
    static ACTIVE_SCANS: Cell<u64> = const { Cell::new(0) };
}

impl GroupWork {
    /// Where these parts are, for the cache.
    ///
    /// # Errors
    /// Those of a part that is not there.
    pub fn addresses(&self, columns: &[usize]) -> Result<Vec<ChunkAddress>> {
        let address = |column: &usize| {
            let part = self.part(*column)?;
            Ok(ChunkAddress {
                key: ChunkKey { segment_id: self.segment.id, row_group: self.row_group as u32, column: *column as u32 },
                offset: self.segment.offset + part.offset,
                length: u64::from(part.length),
                crc32c: part.crc32c,
            })
        };
        columns.iter().map(address).collect()
    }
}

type Fetching = Pin<Box<dyn Future<Output = device::Result<Fetched>>>>;

enum Fetch {
    Running(Fetching),
    Done(device::Result<Fetched>),
}

/// The fetches ahead of one row group.
struct Ahead {
    /// Index into the scan's work.
    index: usize,
    fetches: Vec<(Vec<usize>, Fetch)>,
    bytes: u64,
}

impl Ahead {
    fn has(&self, column: usize) -> bool {
        self.fetches.iter().any(|(columns, _)| columns.contains(&column))
    }
}

/// How a column was used by the row groups so far.
#[derive(Clone, Copy, Default)]
struct Habit {
    is_asked_first: bool,
    row_groups_in_a_row: u8,
    is_needed_now: bool,
}

/// The read-ahead of one scan on one core.
pub(crate) struct ReadAhead<D> {
    cache: BlockCache<D>,
    bypass_cache: bool,
    arena_bytes: u64,
    habits: Vec<Habit>,
    ahead: VecDeque<Ahead>,
    bytes_ahead: u64,
    next: usize,
    is_first_need: bool,
    /// Bytes that the device read for this scan, here and ahead.
    pub bytes_read_device: u64,
}

impl<D: Device> ReadAhead<D> {
    pub fn new(cache: BlockCache<D>, bypass_cache: bool, arena_bytes: usize, columns: usize) -> Self {
        ACTIVE_SCANS.set(ACTIVE_SCANS.get() + 1);
        ReadAhead {
            cache,
            bypass_cache,
            arena_bytes: arena_bytes as u64,
            habits: vec![Habit::default(); columns],
            ahead: VecDeque::new(),
            bytes_ahead: 0,
            next: 0,
            is_first_need: true,
            bytes_read_device: 0,
        }
    }

    /// A row group begins: habits are updated with what the one before needed.
    pub fn begin(&mut self, index: usize) {
        if !self.is_first_need {
            for habit in &mut self.habits {
                let was_needed = std::mem::take(&mut habit.is_needed_now);
                habit.row_groups_in_a_row = if was_needed { (habit.row_groups_in_a_row + 1).min(2) } else { 0 };
            }
        }
        self.is_first_need = true;
        self.next = self.next.max(index + 1);
        while self.ahead.front().is_some_and(|ahead| ahead.index < index) {
            self.forget_front();
        }
    }

    /// Lets go of everything that is ahead of row group `current`; it is fetched again when its turn comes.
    pub fn release(&mut self, current: usize) {
        while !self.ahead.is_empty() {
            self.forget_front();
        }
        self.next = current + 1;
    }

    /// The chunks of `columns` of row group `index`, fetched ahead or now, while the next ones are started.
    pub async fn need(
        &mut self,
        work: &[GroupWork],
        index: usize,
        columns: &[usize],
    ) -> Result<Vec<(usize, bytes::Bytes)>> {
        for column in columns {
            if let Some(habit) = self.habits.get_mut(*column) {
                habit.is_needed_now = true;
                habit.is_asked_first |= self.is_first_need;
            }
        }
        self.is_first_need = false;

        let mut fetches = Vec::new();
        if let Some(ahead) = self.ahead.iter_mut().find(|ahead| ahead.index == index) {
            let (wanted, kept) = std::mem::take(&mut ahead.fetches)
                .into_iter()
                .partition(|(fetched, _)| fetched.iter().any(|column| columns.contains(column)));
            (fetches, ahead.fetches) = (wanted, kept);
        }
        let missing: Vec<usize> = columns
            .iter()
            .copied()
            .filter(|column| !fetches.iter().any(|(fetched, _)| fetched.contains(column)))
            .collect();
        if !missing.is_empty() {
            fetches.push((missing.clone(), self.start(&work[index], &missing).await?));
        }
        self.top_up(work, index).await?;

        let mut chunks = Vec::with_capacity(columns.len());
        for (fetched_columns, fetch) in fetches {
            let fetched = match fetch {
                Fetch::Done(done) => done,
                Fetch::Running(running) => running.await,
            };
            let fetched = match fetched {
                Ok(fetched) => fetched,
                Err(_) => self.fetch_again(&work[index], &fetched_columns).await?,
            };
            self.bytes_read_device += fetched.bytes_read_device;
            chunks.extend(fetched_columns.into_iter().zip(fetched.chunks));
        }
        Ok(chunks)
    }

    /// After a failure: once more, with all memory of this scan's read-ahead given back, waiting a while for others to
    /// give back theirs.
    async fn fetch_again(&mut self, group: &GroupWork, columns: &[usize]) -> Result<Fetched> {
        while !self.ahead.is_empty() {
            self.forget_front();
        }
        let addresses = group.addresses(columns)?;
        let mut wait_us = 100;
        loop {
            match self.cache.fetch(&addresses, self.bypass_cache).await {
                Err(device::DeviceError::ArenaFull { .. }) if wait_us < 1_000_000 => {
                    glommio::timer::sleep(std::time::Duration::from_micros(wait_us)).await;
                    wait_us *= 2;
                }
                Err(device::DeviceError::Corruption { path, found, expected, offset, .. }) => {
                    let column = addresses
                        .iter()
                        .find(|address| address.offset == offset)
                        .map_or(0, |address| address.key.column as usize);
                    let reason = format!("on {} its checksum is {found:#010x}, not {expected:#010x}", path.display());
                    return Err(group.segment.corruption(group.row_group, column, &reason).into());
                }
                result => return Ok(result?),
            }
        }
    }

    /// Starts a fetch; its reads are with the ring when this returns.
    async fn start(&self, group: &GroupWork, columns: &[usize]) -> Result<Fetch> {
        let addresses = group.addresses(columns)?;
        let (cache, bypass) = (self.cache.clone(), self.bypass_cache);
        let mut running: Fetching = Box::pin(async move { cache.fetch(&addresses, bypass).await });
        Ok(match poll_once(&mut running).await {
            Some(done) => Fetch::Done(done),
            None => Fetch::Running(running),
        })
    }

    fn is_expected(habit: &Habit) -> bool {
        let in_a_row = habit.row_groups_in_a_row + u8::from(habit.is_needed_now);
        in_a_row >= if habit.is_asked_first { 1 } else { 2 }
    }

    /// Starts fetches for the row groups after `current` until the budget is used.
    async fn top_up(&mut self, work: &[GroupWork], current: usize) -> Result<()> {
        let expected: Vec<usize> =
            self.habits.iter().enumerate().filter(|(_, habit)| Self::is_expected(habit)).map(|(at, _)| at).collect();
        let budget = READ_AHEAD_BYTES_MAX.min(self.arena_bytes / 4) / ACTIVE_SCANS.get().max(1);
        // Columns that became expected after the fetch of a row group began.
        for at in 0..self.ahead.len() {
            let ahead = &self.ahead[at];
            let group = &work[ahead.index];
            let late = expected.iter().copied().filter(|column| !ahead.has(*column) && group.has(*column));
            let late: Vec<usize> = late.collect();
            if ahead.index > current && !late.is_empty() && self.bytes_ahead <= budget {
                self.add(work, at, late).await?;
            }
        }
        while self.ahead.len() < ROW_GROUPS_AHEAD_MAX && self.bytes_ahead <= budget {
            let Some(group) = work.get(self.next) else { break };
            let expected: Vec<usize> = expected.iter().copied().filter(|column| group.has(*column)).collect();
            if group.may_match && !expected.is_empty() {
                if !self.ahead.is_empty() && self.bytes_ahead + group.padded_bytes(&expected)? > budget {
                    break;
                }
                self.ahead.push_back(Ahead { index: self.next, fetches: Vec::new(), bytes: 0 });
                self.add(work, self.ahead.len() - 1, expected).await?;
            }
            self.next += 1;
        }
        Ok(())
    }

    /// Starts one more fetch of a row group that is ahead.
    async fn add(&mut self, work: &[GroupWork], at: usize, columns: Vec<usize>) -> Result<()> {
        let group = &work[self.ahead[at].index];
        let bytes = group.padded_bytes(&columns)?;
        let fetch = self.start(group, &columns).await?;
        self.bytes_ahead += bytes;
        self.ahead[at].bytes += bytes;
        self.ahead[at].fetches.push((columns, fetch));
        Ok(())
    }

    /// Drops the fetches of the first row group that is ahead. What the device read for them in vain still counts.
    fn forget_front(&mut self) {
        let Some(ahead) = self.ahead.pop_front() else { return };
        self.bytes_ahead -= ahead.bytes;
        for (_, fetch) in ahead.fetches {
            match fetch {
                Fetch::Done(Ok(fetched)) => self.bytes_read_device += fetched.bytes_read_device,
                // Where it stands is not known to us; the ring reads what it has begun.
                Fetch::Done(Err(_)) | Fetch::Running(_) => {}
            }
        }
    }
}

impl<D> Drop for ReadAhead<D> {
    fn drop(&mut self) {
        ACTIVE_SCANS.set(ACTIVE_SCANS.get() - 1);
    }
}
