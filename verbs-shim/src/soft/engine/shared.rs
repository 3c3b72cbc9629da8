//! What all queue pairs of an engine share, and what a queue pair needs to build a packet.

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::SharedReceiveQueueId;
use super::memory::{ProtectionDomain, RegionMemory, Regions};
use super::queues::{CompletionQueue, ReceiveQueue};
use crate::soft::icrc::PathCrc;
use crate::verbs::{QueuePairNumber, WorkCompletion};

/// A deadline that never comes.
pub(crate) const NEVER: u64 = u64::MAX;

/// What happened since the engine was made. All count up; datagrams unless said otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Handed to `receive`.
    pub received: u64,
    /// Given out by `poll_transmit`.
    pub transmitted: u64,
    /// Dropped: shorter than its headers, wrong version or padding.
    pub malformed: u64,
    /// Dropped: an opcode of another transport service (congestion notifications among them), or reserved.
    pub unsupported_opcode: u64,
    /// Dropped: no such queue pair.
    pub unknown_queue_pair: u64,
    /// Dropped: from another address than the queue pair's peer.
    pub wrong_address: u64,
    /// Dropped: the queue pair is not in a state that takes it.
    pub wrong_state: u64,
    /// Dropped: the invariant CRC does not match.
    pub wrong_icrc: u64,
    /// Dropped: another partition.
    pub wrong_partition_key: u64,
    /// Requests seen before, answered again.
    pub duplicate_requests: u64,
    /// Requests beyond the next expected, dropped.
    pub out_of_order_requests: u64,
    /// Responses to what is already acknowledged, dropped.
    pub duplicate_responses: u64,
    /// Responses to what was never sent, dropped.
    pub ghost_responses: u64,
    /// Responses beyond one that is missing.
    pub out_of_order_responses: u64,
    /// NAKs sent, RNR aside.
    pub naks_sent: u64,
    /// NAKs received, RNR aside.
    pub naks_received: u64,
    /// RNR NAKs sent.
    pub rnr_naks_sent: u64,
    /// RNR NAKs received.
    pub rnr_naks_received: u64,
    /// Request packets sent again.
    pub retransmitted: u64,
    /// Local ACK timeouts (not datagrams).
    pub timeouts: u64,
    /// Queue pairs that went to the error state by themselves.
    pub queue_pair_errors: u64,
    /// Events dropped because nobody took them.
    pub events_lost: u64,
    /// Packets that the kernel would not send, and failed attempts to receive: the engine has no socket, whoever drives
    /// it counts them.
    pub socket_errors: u64,
}

/// Something that is no completion (`enum ibv_event_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The first packet came in before ready-to-send (`IBV_EVENT_COMM_EST`).
    CommunicationEstablished(QueuePairNumber),
    /// The send queue is drained (`IBV_EVENT_SQ_DRAINED`).
    SendQueueDrained(QueuePairNumber),
    /// The peer broke the rules; the queue pair is in the error state (`IBV_EVENT_QP_REQ_ERR`).
    RequestError(QueuePairNumber),
    /// A shared receive queue holds fewer requests than its limit; the limit is disarmed
    /// (`IBV_EVENT_SRQ_LIMIT_REACHED`).
    SharedReceiveLimit(SharedReceiveQueueId),
    /// The peer violated access rights; the queue pair is in the error state (`IBV_EVENT_QP_ACCESS_ERR`).
    AccessError(QueuePairNumber),
}

#[derive(Debug)]
pub(crate) struct Shared<M> {
    pub(crate) regions: Regions<M>,
    pub(crate) completion_queues: Vec<Option<CompletionQueue>>,
    pub(crate) receive_queues: Vec<Option<ReceiveQueue>>,
    pub(crate) counters: Counters,
    events: VecDeque<Event>,
    events_max: usize,
    /// Slots of queue pairs that may have a packet to send, each at most once.
    pub(crate) ready: VecDeque<u32>,
    /// No queue pair has a deadline before this.
    pub(crate) earliest_deadline: u64,
}

impl<M: RegionMemory> Shared<M> {
    pub(crate) fn new(regions: Regions<M>, queue_pairs_max: usize) -> Self {
        let events_max = 2 * queue_pairs_max;
        Shared {
            regions,
            completion_queues: Vec::new(),
            receive_queues: Vec::new(),
            counters: Counters::default(),
            events: VecDeque::with_capacity(events_max),
            events_max,
            ready: VecDeque::with_capacity(queue_pairs_max),
            earliest_deadline: NEVER,
        }
    }

    pub(crate) fn completion_queue(&mut self, index: u32) -> Option<&mut CompletionQueue> {
        self.completion_queues.get_mut(index as usize)?.as_mut()
    }

    pub(crate) fn receive_queue(&mut self, index: u32) -> Option<&mut ReceiveQueue> {
        self.receive_queues.get_mut(index as usize)?.as_mut()
    }

    #[must_use]
    pub(crate) fn reserve(&mut self, queue: u32) -> bool {
        self.completion_queue(queue).is_some_and(CompletionQueue::reserve)
    }

    pub(crate) fn release(&mut self, queue: u32) {
        if let Some(queue) = self.completion_queue(queue) {
            queue.release();
        }
    }

    pub(crate) fn complete(&mut self, queue: u32, completion: WorkCompletion) {
        if let Some(queue) = self.completion_queue(queue) {
            queue.push(completion);
        }
    }

    pub(crate) fn raise(&mut self, event: Event) {
        if self.events.len() < self.events_max {
            self.events.push_back(event);
        } else {
            self.counters.events_lost += 1;
        }
    }

    pub(crate) fn take_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub(crate) fn note_deadline(&mut self, deadline_ns: u64) {
        self.earliest_deadline = self.earliest_deadline.min(deadline_ns);
    }
}

/// Identity and path of one queue pair. `assembly.rs` builds its packets.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) number: QueuePairNumber,
    pub(crate) domain: ProtectionDomain,
    pub(crate) send_completions: u32,
    pub(crate) receive_completions: u32,
    pub(crate) shared_receives: Option<u32>,
    pub(crate) partition_key: u16,
    pub(crate) destination: u32,
    pub(crate) mtu: u64,
    pub(crate) peer: SocketAddr,
    pub(crate) outgoing: PathCrc,
    pub(crate) incoming: PathCrc,
}
