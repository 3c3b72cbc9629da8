//! Completion queues and receive queues: fixed rings.
//!
//! Invariants
//! - A completion queue never overflows: every request holds a place from when it is posted (or, out of a shared
//!   receive queue, taken) until its completion is polled or turns out not to be needed.
//! - `reserved + ready <= capacity`.

use std::collections::VecDeque;

use super::pieces::SgeList;
use crate::verbs::WorkCompletion;

#[derive(Debug)]
pub(crate) struct CompletionQueue {
    ready: VecDeque<WorkCompletion>,
    capacity: usize,
    reserved: usize,
    armed: bool,
    fired: bool,
    /// Queue pairs that complete here; it cannot be destroyed before them.
    pub(crate) users: usize,
}

impl CompletionQueue {
    pub(crate) fn new(capacity: usize) -> Self {
        let ready = VecDeque::with_capacity(capacity);
        CompletionQueue { ready, capacity, reserved: 0, armed: false, fired: false, users: 0 }
    }

    #[must_use]
    pub(crate) fn reserve(&mut self) -> bool {
        let fits = self.reserved + self.ready.len() < self.capacity;
        self.reserved += fits as usize;
        fits
    }

    /// Gives a place back that no completion will use.
    pub(crate) fn release(&mut self) {
        debug_assert!(self.reserved > 0);
        self.reserved = self.reserved.saturating_sub(1);
    }

    /// Fills a reserved place.
    pub(crate) fn push(&mut self, completion: WorkCompletion) {
        self.release();
        debug_assert!(self.ready.len() < self.capacity);
        self.ready.push_back(completion);
        if self.armed {
            self.armed = false;
            self.fired = true;
        }
    }

    pub(crate) fn poll(&mut self, out: &mut [WorkCompletion]) -> usize {
        let count = out.len().min(self.ready.len());
        for (place, completion) in out.iter_mut().zip(self.ready.drain(..count)) {
            *place = completion;
        }
        count
    }

    pub(crate) fn pop(&mut self) -> Option<WorkCompletion> {
        self.ready.pop_front()
    }

    pub(crate) fn len(&self) -> usize {
        self.ready.len()
    }

    pub(crate) fn arm(&mut self) {
        self.armed = true;
    }

    pub(crate) fn disarm(&mut self) {
        (self.armed, self.fired) = (false, false);
    }

    pub(crate) fn take_fired(&mut self) -> bool {
        std::mem::take(&mut self.fired)
    }

    /// Drops the completions of a queue pair that is destroyed or reset.
    pub(crate) fn purge(&mut self, number: crate::verbs::QueuePairNumber) {
        self.ready.retain(|completion| completion.queue_pair != number);
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct ReceiveEntry {
    pub(crate) id: u64,
    pub(crate) pieces: SgeList,
}

/// The receive queue of one queue pair, or a shared one.
#[derive(Debug)]
pub(crate) struct ReceiveQueue {
    entries: VecDeque<ReceiveEntry>,
    capacity: usize,
    /// For a shared one: queue pairs that use it.
    pub(crate) users: usize,
    /// For a shared one: below this many requests an event is due, once; 0 for none.
    pub(crate) limit: usize,
}

impl ReceiveQueue {
    pub(crate) fn new(capacity: usize) -> Self {
        ReceiveQueue { entries: VecDeque::with_capacity(capacity), capacity, users: 0, limit: 0 }
    }

    /// Whether it has just fallen below its limit, which is disarmed then (IBA 10.2.9.1).
    pub(crate) fn take_limit_event(&mut self) -> bool {
        let below = self.entries.len() < self.limit;
        if below {
            self.limit = 0;
        }
        below
    }

    pub(crate) fn is_full(&self) -> bool {
        self.entries.len() >= self.capacity
    }

    pub(crate) fn push(&mut self, entry: ReceiveEntry) {
        debug_assert!(!self.is_full());
        self.entries.push_back(entry);
    }

    pub(crate) fn pop(&mut self) -> Option<ReceiveEntry> {
        self.entries.pop_front()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}
