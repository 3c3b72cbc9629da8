//! The state machine of reliable-connected queue pairs: datagrams and time in; datagrams, completions and the
//! next deadline out. (IBA specification volume 1, chapters 9 and 10; interoperates with the kernel's rxe.)
//!
//! Owns: queue pairs, completion queues, receive queues, the table of registered memory. Owned and driven by one
//! thread; it has no socket, clock, thread or lock. A turn of its owner is:
//!
//! ```text
//! for each datagram received:  engine.receive(now, &header, payload)
//! if now >= deadline:          engine.handle_deadlines(now)
//! while let Some(packet) =     engine.poll_transmit(now, &mut buffer)   // send it
//! engine.poll_completions(queue, &mut completions)
//! sleep until the socket is readable or engine.next_deadline()
//! ```
//!
//! Invariants
//! - Nothing is allocated after queues are created and regions registered.
//! - Payload is copied once on each side: from registered memory into the datagram, from the datagram into
//!   registered memory.
//! - No datagram panics, and none changes anything before its ICRC, address and queue pair are found right.
//!
//! Cost: a lookup by index and a few comparisons per packet beside its CRC and its copy. `examples/engine_speed.rs`
//! measures it: see there for figures.
//!
//! Left out of the specification: unreliable and datagram services, path migration, memory windows, SEND with
//! invalidate (refused as an invalid request), end-to-end credits (31, "not counted", is sent; received counts
//! are ignored, RNR NAKs do the work), congestion notifications (dropped and counted).

mod assembly;
mod attributes;
mod completer;
mod connection;
mod memory;
mod pieces;
mod psn;
mod queue_pair;
mod queues;
mod random;
mod replies;
mod requester;
mod responder;
mod shared;

use std::net::SocketAddr;

pub use attributes::{
    ControlError, EngineConfig, HEADER_CHARGE_BYTES, QueuePairConfig, ReceiveAttributes, SendAttributes,
    ack_timeout_ns, rnr_timer_ns,
};
pub use memory::{AccessError, ProtectionDomain, RegionMemory, RegisterError};
pub use shared::{Counters, Event};

use self::memory::Regions;
use self::pieces::SgeList;
use self::queue_pair::QueuePair;
use self::queues::ReceiveEntry;
use self::random::Random;
use self::shared::{NEVER, Shared};
use crate::soft::icrc::{self, NetworkHeader, PathCrc};
use crate::soft::packet::{BTH_BYTES, ICRC_BYTES, MASK_24, PACKET_BYTES_MAX, Packet, ParseError};
use crate::verbs::{
    Access, MemoryKey, PostError, QueuePairNumber, QueuePairState, ReceiveRequest, WcStatus, WorkCompletion,
    WorkRequest,
};

/// Packets that one queue pair sends before the next gets its turn; also about what one segmentation offload
/// takes.
const TURN_PACKETS: u32 = 32;

/// Queue pairs that [`Engine::owes_only_acknowledgements`] looks at.
const LOOKED_AT_MAX: usize = 4;

/// Names a completion queue of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CompletionQueueId(pub(crate) u32);

/// Names a shared receive queue of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SharedReceiveQueueId(pub(crate) u32);

/// A packet that [`Engine::poll_transmit`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// Bytes at the start of the buffer: a whole UDP payload.
    pub bytes: usize,
    /// Where to send it.
    pub destination: SocketAddr,
    /// Which queue pair it belongs to.
    pub queue_pair: QueuePairNumber,
}

/// A RoCEv2 transport for reliable connections. See the [module](self).
#[derive(Debug)]
pub struct Engine<M> {
    config: EngineConfig,
    queue_pairs: Box<[Option<Box<QueuePair>>]>,
    slot_mask: u32,
    random: Random,
    domains: u32,
    shared: Shared<M>,
    turn: u32,
}

impl<M: RegionMemory> Engine<M> {
    /// An engine without queue pairs.
    pub fn new(config: EngineConfig) -> Self {
        let mut random = Random::new(config.seed);
        let queue_pairs = config.queue_pairs_max.clamp(1, 1 << 16);
        let regions = Regions::new(config.regions_max, Random::new(random.next()));
        Engine {
            queue_pairs: (0..queue_pairs).map(|_| None).collect(),
            slot_mask: queue_pairs.next_power_of_two() as u32 - 1,
            random,
            domains: 0,
            shared: Shared::new(regions, queue_pairs),
            turn: 0,
            config,
        }
    }

    /// A new protection domain.
    pub fn create_domain(&mut self) -> ProtectionDomain {
        self.domains += 1;
        ProtectionDomain(self.domains)
    }

    /// Registers memory whose first byte has the address `start`, for local requests and for the peer alike.
    ///
    /// # Errors
    /// [`RegisterError`], and the memory back.
    pub fn register(
        &mut self,
        domain: ProtectionDomain,
        memory: M,
        start: u64,
        access: Access,
    ) -> Result<MemoryKey, (RegisterError, M)> {
        self.shared.regions.register(domain, memory, start, access)
    }

    /// Takes a region out of the table and gives its memory back; `None` if there is no such key. Requests
    /// that name it fail from now on; whoever promises that none are outstanding checks that above the engine.
    pub fn deregister(&mut self, key: MemoryKey) -> Option<M> {
        self.shared.regions.deregister(key)
    }

    /// The memory of a region.
    pub fn region(&self, key: MemoryKey) -> Option<&M> {
        self.shared.regions.get(key)
    }

    /// The memory of a region, to change. Do not change its length.
    pub fn region_mut(&mut self, key: MemoryKey) -> Option<&mut M> {
        self.shared.regions.get_mut(key)
    }

    fn queue_pair(&self, number: QueuePairNumber) -> Option<&QueuePair> {
        let pair = self.queue_pairs.get((number.0 & self.slot_mask) as usize)?.as_deref()?;
        (pair.link.number == number).then_some(pair)
    }

    fn both(&mut self, number: QueuePairNumber) -> Option<(&mut QueuePair, &mut Shared<M>)> {
        let pair = self.queue_pairs.get_mut((number.0 & self.slot_mask) as usize)?.as_deref_mut()?;
        (pair.link.number == number).then_some((pair, &mut self.shared))
    }

    /// Posts a work request to the send queue. In the error state it is accepted and flushed at once.
    ///
    /// # Errors
    /// [`PostError`]; nothing is posted then. Errors that only show when the request is executed (wrong local
    /// keys among them) come with its completion.
    pub fn post_send(&mut self, number: QueuePairNumber, request: &WorkRequest<'_>) -> Result<(), PostError> {
        let (pair, cx) = self.both(number).ok_or(PostError::Unknown)?;
        use QueuePairState::*;
        if !matches!(pair.state, ReadyToSend | SendQueueDrain | Error) {
            return Err(PostError::State);
        }
        pair.requester.post(cx, &pair.link, request)?;
        if pair.state == Error {
            pair.requester.fail(cx, &pair.link, WcStatus::WrFlushErr);
        } else {
            pair.mark_ready(cx);
        }
        Ok(())
    }

    /// Posts a receive request to a queue pair's own receive queue. In the error state it is flushed at once.
    ///
    /// # Errors
    /// [`PostError`]; nothing is posted then.
    pub fn post_receive(&mut self, number: QueuePairNumber, request: &ReceiveRequest<'_>) -> Result<(), PostError> {
        let (pair, cx) = self.both(number).ok_or(PostError::Unknown)?;
        if pair.link.shared_receives.is_some() {
            return Err(PostError::UsesSharedReceiveQueue);
        }
        if pair.state == QueuePairState::Reset {
            return Err(PostError::State);
        }
        let pieces = SgeList::new(request.pieces)?;
        if pair.responder.queue.is_full() {
            return Err(PostError::QueueFull);
        }
        if !cx.reserve(pair.link.receive_completions) {
            return Err(PostError::CompletionQueueFull);
        }
        pair.responder.queue.push(ReceiveEntry { id: request.id, pieces });
        if pair.state == QueuePairState::Error {
            pair.responder.fail(cx, &pair.link, WcStatus::WrFlushErr);
        }
        Ok(())
    }

    /// Posts a receive request to a shared receive queue.
    ///
    /// # Errors
    /// [`PostError`]; nothing is posted then.
    pub fn post_shared_receive(
        &mut self,
        queue: SharedReceiveQueueId,
        request: &ReceiveRequest<'_>,
    ) -> Result<(), PostError> {
        let pieces = SgeList::new(request.pieces)?;
        let queue = self.shared.receive_queue(queue.0).ok_or(PostError::Unknown)?;
        if queue.is_full() {
            return Err(PostError::QueueFull);
        }
        queue.push(ReceiveEntry { id: request.id, pieces });
        Ok(())
    }

    /// Takes a datagram: `header` as far as the ICRC covers it, `payload` the UDP payload. Whatever is wrong
    /// with it is counted, and it is dropped.
    pub fn receive(&mut self, now_ns: u64, header: &NetworkHeader, payload: &[u8]) {
        let partition_key = self.config.partition_key;
        self.shared.counters.received += 1;
        if payload.len() < BTH_BYTES + ICRC_BYTES {
            self.shared.counters.malformed += 1;
            return;
        }
        let word = |at: usize| u32::from_be_bytes([0, payload[at + 1], payload[at + 2], payload[at + 3]]);
        let Some((pair, cx)) = self.both(QueuePairNumber(word(4))) else {
            self.shared.counters.unknown_queue_pair += 1;
            return;
        };
        if !pair.receives_packets() {
            cx.counters.wrong_state += 1;
            return;
        }
        if pair.link.peer.ip() != header.source.ip() {
            cx.counters.wrong_address += 1;
            return;
        }
        let known = pair.link.incoming.header() == header;
        let intact = if known { pair.link.incoming.verify(payload) } else { icrc::verify(header, payload) };
        if !intact {
            cx.counters.wrong_icrc += 1;
            return;
        }
        if !known && pair.link.incoming.header().ipv4 == header.ipv4 {
            // rxe and hardware send from a port of their own choice: 4791 is only where they listen.
            pair.link.incoming = PathCrc::new(*header);
        }
        let theirs = u16::from_be_bytes([payload[2], payload[3]]);
        if (theirs ^ partition_key) & 0x7fff != 0 || (theirs | partition_key) & 0x8000 == 0 {
            cx.counters.wrong_partition_key += 1;
            return;
        }
        match Packet::parse(payload) {
            Ok(packet) => pair.handle_packet(cx, now_ns, &packet),
            Err(ParseError::UnsupportedOpcode(opcode)) => {
                cx.counters.unsupported_opcode += 1;
                // The top three bits name the transport service; 0 is the reliable connection.
                if opcode >> 5 == 0 {
                    pair.handle_unsupported(cx, word(8));
                }
            }
            Err(_) => cx.counters.malformed += 1,
        }
    }

    /// Writes the next packet to send to the start of `out`, if there is one. `out` must have
    /// [`PACKET_BYTES_MAX`] bytes; a shorter one gets nothing. Packets to one destination come in runs, so
    /// that segmentation offload has something to work with.
    pub fn poll_transmit(&mut self, now_ns: u64, out: &mut [u8]) -> Option<Transmit> {
        if out.len() < PACKET_BYTES_MAX {
            return None;
        }
        while let Some(&slot) = self.shared.ready.front() {
            let pair = self.queue_pairs.get_mut(slot as usize).and_then(Option::as_deref_mut);
            let Some(pair) = pair else {
                self.shared.ready.pop_front();
                continue;
            };
            if self.turn >= TURN_PACKETS {
                self.turn = 0;
                self.shared.ready.rotate_left(1);
                continue;
            }
            match pair.next_packet(&mut self.shared, now_ns, out) {
                Some(bytes) => {
                    self.turn += 1;
                    self.shared.counters.transmitted += 1;
                    return Some(Transmit { bytes, destination: pair.link.peer, queue_pair: pair.link.number });
                }
                None => {
                    pair.queued = false;
                    self.shared.ready.pop_front();
                    self.turn = 0;
                }
            }
        }
        None
    }

    /// When [`Self::handle_deadlines`] has to be called at the latest. It may turn out that nothing was due.
    pub fn next_deadline(&self) -> Option<u64> {
        (self.shared.earliest_deadline != NEVER).then_some(self.shared.earliest_deadline)
    }

    /// Handles the timers that have run out; then poll for packets and completions.
    ///
    /// Deadlines mostly move away (each acknowledgement starts its timer anew), so that only a lower bound is
    /// kept and all queue pairs are looked at when it is reached: about once per local ACK timeout.
    pub fn handle_deadlines(&mut self, now_ns: u64) {
        if now_ns < self.shared.earliest_deadline {
            return;
        }
        let mut earliest = NEVER;
        for pair in self.queue_pairs.iter_mut().flatten() {
            if pair.deadline() <= now_ns {
                pair.handle_deadlines(&mut self.shared, now_ns);
            }
            earliest = earliest.min(pair.deadline());
        }
        self.shared.earliest_deadline = earliest;
    }

    /// Moves completions to `out`; how many. Unknown queues have none.
    pub fn poll_completions(&mut self, queue: CompletionQueueId, out: &mut [WorkCompletion]) -> usize {
        self.shared.completion_queue(queue.0).map_or(0, |queue| queue.poll(out))
    }

    /// The next completion.
    pub fn poll_completion(&mut self, queue: CompletionQueueId) -> Option<WorkCompletion> {
        self.shared.completion_queue(queue.0)?.pop()
    }

    /// Completions that wait.
    pub fn completions_waiting(&self, queue: CompletionQueueId) -> usize {
        self.shared.completion_queues.get(queue.0 as usize).and_then(Option::as_ref).map_or(0, |queue| queue.len())
    }

    /// Asks for a notification with the next completion (`ibv_req_notify_cq`); see [`Self::take_notification`].
    pub fn arm(&mut self, queue: CompletionQueueId) {
        if let Some(queue) = self.shared.completion_queue(queue.0) {
            queue.arm();
        }
    }

    /// Takes [`Self::arm`] back.
    pub fn disarm(&mut self, queue: CompletionQueueId) {
        if let Some(queue) = self.shared.completion_queue(queue.0) {
            queue.disarm();
        }
    }

    /// Whether an armed queue got a completion since; asking clears it.
    pub fn take_notification(&mut self, queue: CompletionQueueId) -> bool {
        self.shared.completion_queue(queue.0).is_some_and(|queue| queue.take_fired())
    }

    /// The oldest event that nobody took.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.shared.take_event()
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// State of a queue pair.
    pub fn state(&self, number: QueuePairNumber) -> Option<QueuePairState> {
        self.queue_pair(number).map(|pair| pair.state)
    }

    /// Bytes of requests in flight, and of READ responses asked for, as counted against the two windows.
    pub fn in_flight_bytes(&self, number: QueuePairNumber) -> Option<(u64, u64)> {
        self.queue_pair(number).map(|pair| pair.requester.in_flight())
    }

    /// Whether the engine has packets to send, as far as it knows before building them.
    pub fn wants_transmit(&self) -> bool {
        !self.shared.ready.is_empty()
    }

    /// Whether what it has to send are positive acknowledgements, if anything, as far as it knows without looking at
    /// more than a few queue pairs. Those may wait a moment for the answer that leaves with them.
    pub fn owes_only_acknowledgements(&self) -> bool {
        let pair = |slot: &u32| self.queue_pairs.get(*slot as usize).and_then(Option::as_deref);
        self.shared.ready.len() <= LOOKED_AT_MAX
            && self.shared.ready.iter().filter_map(pair).all(QueuePair::owes_only_acknowledgement)
    }

    fn draw_number(&mut self, slot: u32) -> QueuePairNumber {
        loop {
            let number = (self.random.next() as u32 & MASK_24 & !self.slot_mask) | slot;
            // 0 and 1 are the management queue pairs, 0xffffff means multicast.
            if number > 1 && number != MASK_24 {
                return QueuePairNumber(number);
            }
        }
    }
}
