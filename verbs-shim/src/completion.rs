//! Completion queues, and the table of what work requests own until they complete.
//!
//! Invariants
//! - Every posted request has an entry from before the provider sees it until its completion is handed out, or its queue
//!   pair is gone: its memory lives at least as long as the device may touch it.
//! - Send queues complete in order, so that one signalled completion ends all requests before it as well; they are
//!   handed out with it, each with its buffer.
//! - A completion whose queue pair is gone matches no entry (generation) and is dropped.
//!
//! Lock order: this table, then the provider's own lock.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use crate::Error;
use crate::memory::{Buffer, Registered};
use crate::provider::RawCompletionQueue;
use crate::soft::engine::ControlError;
use crate::verbs::{QueuePairNumber, WcOpcode, WcStatus, WorkCompletion};

/// Completions taken from the provider at a time.
const BATCH: usize = 16;
/// Queues that complete on one completion queue at most.
const RINGS_MAX: usize = 32_767;
/// Marks the identifiers of shared receive queues.
const SHARED: u64 = 1 << 63;

/// How a work request ended, and what it owned.
#[derive(Debug)]
pub struct Completion<B = Buffer> {
    /// The token that it was posted with.
    pub token: u64,
    /// How it ended. Contents of a buffer are defined after success only.
    pub status: WcStatus,
    /// What it was.
    pub opcode: WcOpcode,
    /// Bytes received; for WRITE with immediate, bytes written by the peer; for requests of one's own, their length if
    /// signalled and the device tells.
    pub length_bytes: u32,
    /// The peer's immediate data.
    pub immediate: Option<u32>,
    /// The queue pair.
    pub queue_pair: QueuePairNumber,
    /// What the request owned; nothing for inline data.
    pub buffer: Option<B>,
}

/// A posted request.
#[derive(Debug)]
pub(crate) struct Entry<B> {
    pub(crate) token: u64,
    pub(crate) opcode: WcOpcode,
    pub(crate) buffer: Option<B>,
}

/// The outstanding requests of one queue, oldest first.
#[derive(Debug)]
pub(crate) struct Ring<B> {
    generation: u32,
    entries: VecDeque<Entry<B>>,
    depth: usize,
    /// Sequence number of the next request. A queue has at most 32,768 places, so that 16 bits tell them apart.
    next: u16,
    /// Requests since the last signalled one.
    pub(crate) unsignalled: u32,
}

impl<B> Ring<B> {
    pub(crate) fn is_full(&self) -> bool {
        self.entries.len() >= self.depth
    }

    /// Whether the next request must be signalled, so that completions keep coming.
    pub(crate) fn must_signal(&self) -> bool {
        self.unsignalled as usize + 1 >= self.depth.div_ceil(2)
    }

    pub(crate) fn push(&mut self, entry: Entry<B>) {
        self.entries.push_back(entry);
        self.next = self.next.wrapping_add(1);
    }

    /// Takes the newest back: the provider refused it.
    pub(crate) fn take_back(&mut self) -> Option<Entry<B>> {
        let entry = self.entries.pop_back()?;
        self.next = self.next.wrapping_sub(1);
        Some(entry)
    }

    /// How many entries there are up to the one of this sequence number; `None` if it is not outstanding.
    fn up_to(&self, sequence: u16) -> Option<usize> {
        let first = self.next.wrapping_sub(self.entries.len() as u16);
        let index = sequence.wrapping_sub(first) as usize;
        (index < self.entries.len()).then_some(index + 1)
    }
}

/// Names a ring of a completion queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RingId {
    slot: u16,
    generation: u32,
}

impl RingId {
    /// From the identifier of a request: 15 bits of slot, 32 of generation, 16 of sequence number.
    fn of(identifier: u64) -> Self {
        RingId { slot: (identifier >> 48) as u16 & 0x7fff, generation: (identifier >> 16) as u32 }
    }
}

pub(crate) struct Tables<B> {
    rings: Vec<Option<Ring<B>>>,
    generation: u32,
    /// Places promised to the queues that complete here.
    promised: usize,
    capacity: usize,
    shared: Vec<(u32, Weak<SharedTable<B>>)>,
    /// Taken from the provider, not handed out yet.
    pending: VecDeque<WorkCompletion>,
    batch: Box<[WorkCompletion; BATCH]>,
}

impl<B> Tables<B> {
    /// # Errors
    /// When the completion queue has no place for so many more requests: a device's queue would overrun.
    pub(crate) fn add_ring(&mut self, depth: u32) -> Result<RingId, ControlError> {
        if self.promised + depth as usize > self.capacity {
            return Err(ControlError::Attribute {
                name: "depth",
                value: (self.promised + depth as usize) as u64,
                rule: "the queues that complete on one completion queue have together at most its capacity",
            });
        }
        if self.rings.len() > RINGS_MAX && self.rings.iter().all(Option::is_some) {
            return Err(ControlError::TooMany(RINGS_MAX));
        }
        self.promised += depth as usize;
        self.generation = self.generation.wrapping_add(1);
        let (generation, depth) = (self.generation, depth as usize);
        let entries = VecDeque::with_capacity(depth);
        let ring = Ring { generation, entries, depth, next: 0, unsignalled: 0 };
        let slot = match self.rings.iter().position(Option::is_none) {
            Some(slot) => {
                self.rings[slot] = Some(ring);
                slot
            }
            None => {
                self.rings.push(Some(ring));
                self.rings.len() - 1
            }
        };
        Ok(RingId { slot: slot as u16, generation })
    }

    #[must_use]
    pub(crate) fn remove_ring(&mut self, id: RingId) -> Option<Ring<B>> {
        let place = self.rings.get_mut(id.slot as usize)?;
        if place.as_ref()?.generation != id.generation {
            return None;
        }
        let ring = place.take()?;
        self.promised -= ring.depth;
        self.pending.retain(|done| done.id & SHARED != 0 || RingId::of(done.id) != id);
        Some(ring)
    }

    /// The ring, and the identifier that its next request gets.
    #[inline]
    pub(crate) fn ring(&mut self, id: RingId) -> Option<(&mut Ring<B>, u64)> {
        let ring = self.rings.get_mut(id.slot as usize)?.as_mut().filter(|ring| ring.generation == id.generation)?;
        let identifier = (id.slot as u64) << 48 | (id.generation as u64) << 16 | ring.next as u64;
        Some((ring, identifier))
    }

    pub(crate) fn add_shared(&mut self, table: &Arc<SharedTable<B>>) {
        self.shared.retain(|(_, table)| table.strong_count() > 0);
        if !self.shared.iter().any(|(id, _)| *id == table.id) {
            self.shared.push((table.id, Arc::downgrade(table)));
        }
    }

    #[inline]
    fn complete(&mut self, done: &WorkCompletion, out: &mut Vec<Completion<B>>) {
        let (buffer_of, token, opcode);
        if done.id & SHARED != 0 {
            let id = (done.id >> 32) as u32 & 0x7fff_ffff;
            let found = self.shared.iter().find(|(known, _)| *known == id);
            let Some(table) = found.and_then(|(_, table)| table.upgrade()) else { return };
            let Some(entry) = table.take(done.id as u32) else { return };
            (buffer_of, token) = (entry.buffer, entry.token);
            opcode = if done.status == WcStatus::Success { done.opcode } else { WcOpcode::Recv };
        } else {
            let Some((ring, _)) = self.ring(RingId::of(done.id)) else { return };
            let Some(count) = ring.up_to(done.id as u16) else { return };
            for _ in 1..count {
                let Some(entry) = ring.entries.pop_front() else { return };
                out.push(Completion {
                    token: entry.token,
                    status: WcStatus::Success,
                    opcode: entry.opcode,
                    length_bytes: 0,
                    immediate: None,
                    queue_pair: done.queue_pair,
                    buffer: entry.buffer,
                });
            }
            let Some(entry) = ring.entries.pop_front() else { return };
            // Receives are told apart by what came in; of failed requests only the table knows what they were.
            let told = done.status == WcStatus::Success && matches!(entry.opcode, WcOpcode::Recv);
            opcode = if told { done.opcode } else { entry.opcode };
            (buffer_of, token) = (entry.buffer, entry.token);
        }
        out.push(Completion {
            token,
            status: done.status,
            opcode,
            length_bytes: done.length_bytes,
            immediate: done.immediate,
            queue_pair: done.queue_pair,
            buffer: buffer_of,
        });
    }
}

/// The outstanding requests of a shared receive queue: they complete in any order.
pub(crate) struct SharedTable<B> {
    id: u32,
    slots: Mutex<Slots<B>>,
}

struct Slots<B> {
    entries: Vec<Option<Entry<B>>>,
    free: Vec<u32>,
}

impl<B> SharedTable<B> {
    pub(crate) fn new(depth: u32) -> Arc<Self> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed) & 0x7fff_ffff;
        let slots = Slots { entries: (0..depth).map(|_| None).collect(), free: (0..depth).rev().collect() };
        Arc::new(SharedTable { id, slots: Mutex::new(slots) })
    }

    /// Puts an entry in; its identifier, or the entry back when the queue is full.
    pub(crate) fn put(&self, entry: Entry<B>) -> Result<u64, Entry<B>> {
        let mut slots = lock(&self.slots);
        let Some(index) = slots.free.pop() else { return Err(entry) };
        slots.entries[index as usize] = Some(entry);
        Ok(SHARED | (self.id as u64) << 32 | index as u64)
    }

    pub(crate) fn take(&self, index: u32) -> Option<Entry<B>> {
        let mut slots = lock(&self.slots);
        let entry = slots.entries.get_mut(index as usize)?.take()?;
        slots.free.push(index);
        Some(entry)
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

pub(crate) struct Shared<B> {
    pub(crate) raw: RawCompletionQueue,
    tables: Mutex<Tables<B>>,
}

impl<B> Shared<B> {
    pub(crate) fn tables(&self) -> MutexGuard<'_, Tables<B>> {
        lock(&self.tables)
    }

    /// Takes what the provider has, to be handed out by the next poll.
    pub(crate) fn collect(&self) -> usize {
        let mut tables = self.tables();
        let tables = &mut *tables;
        let before = tables.pending.len();
        while tables.pending.len() < tables.capacity
            && let Ok(taken @ 1..) = self.raw.poll(&mut tables.batch[..])
        {
            tables.pending.extend(&tables.batch[..taken]);
        }
        tables.pending.len() - before
    }
}

/// A completion queue. Cheap to clone; `B` is what work requests own.
pub struct CompletionQueue<B = Buffer> {
    pub(crate) shared: Arc<Shared<B>>,
}

impl<B: Registered> CompletionQueue<B> {
    pub(crate) fn new(raw: RawCompletionQueue, capacity: u32) -> Self {
        let nothing = WorkCompletion {
            id: u64::MAX,
            status: WcStatus::Success,
            opcode: WcOpcode::Send,
            length_bytes: 0,
            immediate: None,
            queue_pair: QueuePairNumber(0),
        };
        let (rings, shared, pending) = (Vec::new(), Vec::new(), VecDeque::new());
        let (generation, promised, capacity) = (0, 0, capacity as usize);
        let batch = Box::new([nothing; BATCH]);
        let tables = Tables { rings, generation, promised, capacity, shared, pending, batch };
        CompletionQueue { shared: Arc::new(Shared { raw, tables: Mutex::new(tables) }) }
    }

    /// Appends what has completed to `out`; how many. Never blocks. On a soft device this is also what makes progress, so
    /// poll even when nothing is expected, or open it with a progress thread.
    ///
    /// # Errors
    /// [`Error::Os`] when the device fails.
    pub fn poll(&self, out: &mut Vec<Completion<B>>) -> Result<usize, Error> {
        let before = out.len();
        let mut tables = self.shared.tables();
        let tables = &mut *tables;
        while let Some(done) = tables.pending.pop_front() {
            tables.complete(&done, out);
        }
        let taken = self.shared.raw.poll(&mut tables.batch[..])?;
        for index in 0..taken {
            let done = tables.batch[index];
            tables.complete(&done, out);
        }
        Ok(out.len() - before)
    }

    /// Asks for the [descriptor](AsFd) to become readable with the next completion. Poll once more after it, and only then
    /// sleep: what completed before is not announced. False when something waits already.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub fn arm(&self) -> Result<bool, Error> {
        self.shared.raw.arm()
    }

    /// After the descriptor was readable: makes it unreadable until the next event.
    pub fn clear_events(&self) {
        self.shared.raw.clear_events();
    }

    /// Polls until something completes, and sleeps in between; for programs without a runtime. 0 when `patience` is over.
    ///
    /// # Errors
    /// As [`Self::poll`].
    pub fn wait(&self, out: &mut Vec<Completion<B>>, patience: std::time::Duration) -> Result<usize, Error> {
        let start = std::time::Instant::now();
        loop {
            // What completed before the queue was armed is not announced: look once more.
            let mut count = self.poll(out)?;
            if count == 0 && self.arm()? {
                count = self.poll(out)?;
            } else if count == 0 {
                continue;
            }
            if count > 0 {
                return Ok(count);
            }
            let rest = patience.saturating_sub(start.elapsed()).min(std::time::Duration::from_secs(3600));
            if rest.is_zero() {
                return Ok(0);
            }
            use rustix::event::{PollFd, PollFlags, Timespec, poll};
            let rest = Timespec { tv_sec: rest.as_secs() as i64, tv_nsec: rest.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.as_fd(), PollFlags::IN)], Some(&rest)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => self.clear_events(),
                Err(error) => return Err(Error::os("completion queue", "poll", error.into())),
            }
        }
    }
}

impl<B> Clone for CompletionQueue<B> {
    fn clone(&self) -> Self {
        CompletionQueue { shared: self.shared.clone() }
    }
}

impl<B> AsFd for CompletionQueue<B> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.raw.descriptor()
    }
}

impl<B> fmt::Debug for CompletionQueue<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CompletionQueue({} queues)", self.shared.tables().rings.iter().flatten().count())
    }
}
