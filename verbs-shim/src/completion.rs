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
use std::sync::{Arc, Weak};

use crate::Error;
use crate::lock::{Guard, Lock};
use crate::memory::{Buffer, Registered};
use crate::provider::RawCompletionQueue;
use crate::request::Receive;
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
#[repr(C)]
pub struct Completion<B = Buffer> {
    /// What the request owned; nothing for inline data.
    pub buffer: Option<B>,
    /// The token that it was posted with.
    pub token: u64,
    /// Bytes received; for WRITE with immediate, bytes written by the peer; for requests of one's own, their length if
    /// signalled and the device tells.
    pub length_bytes: u32,
    /// The queue pair.
    pub queue_pair: QueuePairNumber,
    /// The peer's immediate data.
    pub immediate: Option<u32>,
    /// How it ended. Contents of a buffer are defined after success only.
    pub status: WcStatus,
    /// What it was.
    pub opcode: WcOpcode,
}

/// A posted request.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Entry<B> {
    // First, here and in `Completion`: it is written and read in pieces of the same size and place. A load that covers
    // two stores waits until both are in the cache.
    pub(crate) buffer: Option<B>,
    pub(crate) token: u64,
    pub(crate) opcode: WcOpcode,
}

impl<B> Entry<B> {
    #[inline]
    pub(crate) fn receive(request: Receive<B>) -> Self {
        Entry { token: request.token, opcode: WcOpcode::Recv, buffer: Some(request.buffer) }
    }

    /// Undoes [`Self::receive`].
    pub(crate) fn into_receive(self) -> Receive<B> {
        Receive { token: self.token, buffer: self.buffer.expect("a receive request owns a buffer") }
    }
}

/// Places of one queue at most, so that 16 bits of a sequence number tell its requests apart.
const DEPTH_MAX: u32 = 32_768;

/// The outstanding requests of one queue, oldest first.
#[derive(Debug)]
pub(crate) struct Ring<B> {
    id: RingId,
    depth: u16,
    /// Sequence numbers of the oldest request and of the next one. The request of a number is at its low bits.
    first: u16,
    next: u16,
    /// Requests since the last signalled one.
    pub(crate) unsignalled: u16,
    /// As many as the next power of two from `depth`.
    slots: Box<[Option<Entry<B>>]>,
}

impl<B> Ring<B> {
    fn new(id: RingId, depth: u32) -> Self {
        let slots = (0..depth.next_power_of_two()).map(|_| None).collect();
        Ring { id, depth: depth as u16, first: 0, next: 0, unsignalled: 0, slots }
    }

    #[inline]
    fn outstanding(&self) -> u16 {
        self.next.wrapping_sub(self.first)
    }

    #[inline]
    pub(crate) fn free(&self) -> usize {
        (self.depth - self.outstanding()) as usize
    }

    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.outstanding() >= self.depth
    }

    /// Whether the next request must be signalled, so that completions keep coming.
    #[inline]
    pub(crate) fn must_signal(&self) -> bool {
        self.unsignalled + 1 >= self.depth.div_ceil(2)
    }

    #[inline]
    fn slot(&mut self, sequence: u16) -> &mut Option<Entry<B>> {
        let mask = self.slots.len() - 1;
        &mut self.slots[sequence as usize & mask]
    }

    /// Puts a request in, of a ring that is not full; its identifier.
    #[inline]
    pub(crate) fn push(&mut self, entry: Entry<B>) -> u64 {
        let identifier = self.id.identifier(self.next);
        let slot = self.slot(self.next);
        // Also spares the code that would drop what was there.
        assert!(slot.is_none(), "pushed to a full ring");
        *slot = Some(entry);
        self.next = self.next.wrapping_add(1);
        identifier
    }

    /// Takes the newest back: the provider refused it.
    #[cold]
    pub(crate) fn take_back(&mut self) -> Option<Entry<B>> {
        let newest = self.next.wrapping_sub(1);
        let entry = self.slot(newest).take()?;
        self.next = newest;
        Some(entry)
    }

    #[cold]
    pub(crate) fn take_back_receive(&mut self) -> Receive<B> {
        self.take_back().expect("pushed under the same lock").into_receive()
    }

    /// How many entries there are before the one of this sequence number; `None` if it is not outstanding.
    #[inline]
    fn before(&self, sequence: u16) -> Option<u16> {
        let count = sequence.wrapping_sub(self.first);
        (count < self.outstanding()).then_some(count)
    }

    /// Takes the oldest, of a ring that is not empty.
    #[inline]
    fn pop(&mut self) -> Entry<B> {
        let oldest = self.first;
        self.first = oldest.wrapping_add(1);
        self.slot(oldest).take().expect("a slot from `first` to `next` is taken")
    }
}

/// Names a ring of a completion queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RingId {
    slot: u16,
    generation: u32,
}

impl RingId {
    #[inline]
    fn identifier(self, sequence: u16) -> u64 {
        (self.slot as u64) << 48 | (self.generation as u64) << 16 | sequence as u64
    }

    /// Of the identifier of a request: 15 bits of slot, 32 of generation, 16 of sequence number.
    #[inline]
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
        if depth > DEPTH_MAX {
            let rule = "a queue has at most 32,768 places";
            return Err(ControlError::Attribute { name: "depth", value: depth as u64, rule });
        }
        if self.rings.len() > RINGS_MAX && self.rings.iter().all(Option::is_some) {
            return Err(ControlError::TooMany(RINGS_MAX));
        }
        self.promised += depth as usize;
        self.generation = self.generation.wrapping_add(1);
        let slot = self.rings.iter().position(Option::is_none).unwrap_or(self.rings.len());
        let id = RingId { slot: slot as u16, generation: self.generation };
        let ring = Some(Ring::new(id, depth));
        match self.rings.get_mut(slot) {
            Some(place) => *place = ring,
            None => self.rings.push(ring),
        }
        Ok(id)
    }

    #[must_use]
    pub(crate) fn remove_ring(&mut self, id: RingId) -> Option<Ring<B>> {
        let place = self.rings.get_mut(id.slot as usize)?;
        let ring = place.take_if(|ring| ring.id == id)?;
        self.promised -= ring.depth as usize;
        self.pending.retain(|done| done.id & SHARED != 0 || RingId::of(done.id) != id);
        Some(ring)
    }

    #[inline]
    pub(crate) fn ring(&mut self, id: RingId) -> Option<&mut Ring<B>> {
        ring_of(&mut self.rings, id)
    }

    pub(crate) fn add_shared(&mut self, table: &Arc<SharedTable<B>>) {
        self.shared.retain(|(_, table)| table.strong_count() > 0);
        if !self.shared.iter().any(|(id, _)| *id == table.id) {
            self.shared.push((table.id, Arc::downgrade(table)));
        }
    }
}

#[inline]
fn ring_of<B>(rings: &mut [Option<Ring<B>>], id: RingId) -> Option<&mut Ring<B>> {
    rings.get_mut(id.slot as usize)?.as_mut().filter(|ring| ring.id == id)
}

/// As [`complete`], out of line.
#[cold]
#[inline(never)]
fn complete_kept<B>(
    rings: &mut [Option<Ring<B>>],
    shared: &[(u32, Weak<SharedTable<B>>)],
    done: &WorkCompletion,
    out: &mut Vec<Completion<B>>,
) {
    complete(rings, shared, done, out);
}

/// Hands out what a completion ends.
#[inline(always)]
fn complete<B>(
    rings: &mut [Option<Ring<B>>],
    shared: &[(u32, Weak<SharedTable<B>>)],
    done: &WorkCompletion,
    out: &mut Vec<Completion<B>>,
) {
    if done.id & SHARED != 0 {
        return complete_shared(shared, done, out);
    }
    let Some(ring) = ring_of(rings, RingId::of(done.id)) else { return };
    let Some(before) = ring.before(done.id as u16) else { return };
    let WorkCompletion { status, length_bytes, immediate, queue_pair, .. } = *done;
    // Not `push`: it would put them together on the stack first, and copy.
    let (before, length) = (before as usize, out.len());
    out.reserve(before + 1);
    let places = &mut out.spare_capacity_mut()[..before + 1];
    for place in &mut places[..before] {
        let Entry { token, opcode, buffer } = ring.pop();
        let (status, length_bytes, immediate) = (WcStatus::Success, 0, None);
        place.write(Completion { token, status, opcode, length_bytes, immediate, queue_pair, buffer });
    }
    let Entry { token, opcode, buffer } = ring.pop();
    // Receives are told apart by what came in; of failed requests only the table knows what they were.
    let told = status == WcStatus::Success && opcode == WcOpcode::Recv;
    let opcode = if told { done.opcode } else { opcode };
    places[before].write(Completion { token, status, opcode, length_bytes, immediate, queue_pair, buffer });
    // SAFETY: `before + 1` places behind the last one were written.
    unsafe { out.set_len(length + before + 1) };
}

fn complete_shared<B>(shared: &[(u32, Weak<SharedTable<B>>)], done: &WorkCompletion, out: &mut Vec<Completion<B>>) {
    let id = (done.id >> 32) as u32 & 0x7fff_ffff;
    let found = shared.iter().find(|(known, _)| *known == id);
    let Some(table) = found.and_then(|(_, table)| table.upgrade()) else { return };
    let Some(Entry { token, buffer, .. }) = table.take(done.id as u32) else { return };
    let opcode = if done.status == WcStatus::Success { done.opcode } else { WcOpcode::Recv };
    let WorkCompletion { status, length_bytes, immediate, queue_pair, .. } = *done;
    out.push(Completion { token, status, opcode, length_bytes, immediate, queue_pair, buffer });
}

/// The outstanding requests of a shared receive queue: they complete in any order.
pub(crate) struct SharedTable<B> {
    id: u32,
    slots: Lock<Slots<B>>,
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
        Arc::new(SharedTable { id, slots: Lock::new(slots) })
    }

    /// Puts requests in while there are places and requests; `with` gets the identifier of each.
    #[inline]
    pub(crate) fn put(&self, mut requests: impl FnMut() -> Option<Receive<B>>, mut with: impl FnMut(u64)) {
        let mut slots = self.slots.lock();
        while let Some(index) = slots.free.last().copied()
            && let Some(request) = requests()
        {
            slots.free.pop();
            slots.entries[index as usize] = Some(Entry::receive(request));
            with(SHARED | (self.id as u64) << 32 | index as u64);
        }
    }

    pub(crate) fn take(&self, index: u32) -> Option<Entry<B>> {
        let mut slots = self.slots.lock();
        let entry = slots.entries.get_mut(index as usize)?.take()?;
        slots.free.push(index);
        Some(entry)
    }
}

pub(crate) struct Shared<B> {
    pub(crate) raw: RawCompletionQueue,
    tables: Lock<Tables<B>>,
}

impl<B> Shared<B> {
    #[inline]
    pub(crate) fn tables(&self) -> Guard<'_, Tables<B>> {
        self.tables.lock()
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
        CompletionQueue { shared: Arc::new(Shared { raw, tables: Lock::new(tables) }) }
    }

    /// Appends what has completed to `out`; how many. Never blocks. On a soft device this is also what makes progress, so
    /// poll even when nothing is expected, or open it with a progress thread.
    ///
    /// # Errors
    /// [`Error::Os`] when the device fails.
    #[inline]
    pub fn poll(&self, out: &mut Vec<Completion<B>>) -> Result<usize, Error> {
        let before = out.len();
        let mut tables = self.shared.tables();
        let tables = &mut *tables;
        let Tables { rings, shared, batch, pending, .. } = tables;
        if !pending.is_empty() {
            pending.drain(..).for_each(|done| complete_kept(rings, shared, &done, out));
        }
        self.shared.raw.poll_each(&mut batch[..], |done| complete(rings, shared, &done, out))?;
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

    /// After the descriptor was readable: makes it unreadable until the queue is armed again and something completes.
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
