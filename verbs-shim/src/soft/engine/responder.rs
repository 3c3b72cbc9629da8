//! The peer's requests: checked, executed once, in order. (IBA 9.7.4, 9.9.3; the kernel's `rxe_resp.c`.)
//!
//! Owns: the expected PSN, the message being received, the receive queue. `replies.rs` is its other room: it
//! keeps what is to be answered and builds the answers.
//!
//! Invariants
//! - A request changes memory only at the expected PSN, and only after all checks of its packet passed; a
//!   refused packet moves nothing but the queue pair's state.
//! - A gap is answered by one NAK, until the expected packet comes. An RNR NAK counts as one.
//! - At most `2 * depth` replies and `depth` results of atomics are kept.

use super::SharedReceiveQueueId;
use super::attributes::ReceiveAttributes;
use super::memory::{Range, RegionMemory};
use super::psn::{distance, first};
use super::queues::{ReceiveEntry, ReceiveQueue};
use super::replies::{Replies, Reply};
use super::shared::{Event, Link, Shared};
use crate::soft::packet::{AtomicEth, Extension, NakCode, Opcode, Packet, Reth, Syndrome};
use crate::verbs::{Access, MESSAGE_BYTES_MAX, MemoryKey, WcOpcode, WcStatus, WorkCompletion};

/// Why the peer's request ends the connection (IBA 9.9.3, classes A and C).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) nak: NakCode,
    /// What the receive request in use completes with.
    pub(crate) local: WcStatus,
}

const INVALID: Refusal = Refusal { nak: NakCode::InvalidRequest, local: WcStatus::RemInvReqErr };
const TOO_LONG: Refusal = Refusal { nak: NakCode::InvalidRequest, local: WcStatus::LocLenErr };
const NO_ACCESS: Refusal = Refusal { nak: NakCode::RemoteAccessError, local: WcStatus::LocAccessErr };
const LOCAL_FAULT: Refusal = Refusal { nak: NakCode::RemoteOperationalError, local: WcStatus::LocProtErr };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    None,
    Send,
    Write,
}

#[derive(Debug)]
pub(crate) struct Responder {
    pub(crate) expected: u64,
    pub(crate) access: Access,
    message: Message,
    /// The receive request that the SEND in progress fills, and how much of it is filled.
    current: Option<ReceiveEntry>,
    filled: u64,
    /// The WRITE in progress.
    write: Reth,
    written: u64,
    /// The gap before `expected` was reported.
    gap_reported: bool,
    rnr_timer: u8,
    pub(crate) queue: ReceiveQueue,
    pub(crate) replies: Replies,
}

impl Responder {
    pub(crate) fn new(receive_depth: usize) -> Self {
        Responder {
            expected: first(0),
            access: Access::NONE,
            message: Message::None,
            current: None,
            filled: 0,
            write: Reth { address: 0, remote_key: 0, length: 0 },
            written: 0,
            gap_reported: false,
            rnr_timer: 0,
            queue: ReceiveQueue::new(receive_depth),
            replies: Replies::new(),
        }
    }

    pub(crate) fn connect(&mut self, attributes: &ReceiveAttributes) {
        self.expected = first(attributes.receive_psn);
        self.message = Message::None;
        self.gap_reported = false;
        self.rnr_timer = attributes.rnr_timer;
        self.replies.connect(attributes.responder_depth);
    }

    /// Receive requests that will still complete.
    pub(crate) fn outstanding(&self) -> usize {
        self.queue.len() + self.current.is_some() as usize
    }

    /// Forgets everything but the memory; the caller releases the places in the completion queue.
    pub(crate) fn reset(&mut self) {
        while self.queue.pop().is_some() {}
        self.current = None;
        self.message = Message::None;
        self.replies.clear();
    }

    /// Takes a request.
    ///
    /// # Errors
    /// What to answer before the queue pair goes to the error state.
    pub(crate) fn handle_request<M: RegionMemory>(
        &mut self,
        cx: &mut Shared<M>,
        link: &Link,
        packet: &Packet<'_>,
    ) -> Result<(), Refusal> {
        let distance = distance(self.expected, packet.bth.psn);
        if distance > 0 {
            cx.counters.out_of_order_requests += 1;
            if !self.gap_reported {
                self.gap_reported = true;
                self.replies.nak = Some((self.expected, Syndrome::Nak(NakCode::SequenceError)));
            }
            return Ok(());
        }
        if distance < 0 {
            cx.counters.duplicate_requests += 1;
            self.repeat(cx, link, packet, self.expected.wrapping_add_signed(distance));
            return Ok(());
        }
        let opcode = packet.bth.opcode;
        let in_sequence = match self.message {
            Message::None => opcode.starts_message() || !(opcode.is_send() || opcode.is_write()),
            Message::Send => opcode.is_send() && !opcode.starts_message(),
            Message::Write => opcode.is_write() && !opcode.starts_message(),
        };
        if !in_sequence {
            return Err(INVALID);
        }
        match packet.extension {
            Extension::Atomic(atomic) => self.execute_atomic(cx, link, opcode, &atomic)?,
            Extension::Rdma(reth) if opcode == Opcode::ReadRequest => self.begin_read(cx, link, &reth, packet)?,
            _ if opcode.is_send() => self.receive_send(cx, link, packet)?,
            _ => self.receive_write(cx, link, packet)?,
        }
        Ok(())
    }

    /// The same for a reserved opcode or one not supported here: an invalid request if it is the next packet.
    pub(crate) fn handle_unsupported(&mut self, psn: u32) -> Result<(), Refusal> {
        if distance(self.expected, psn) == 0 { Err(INVALID) } else { Ok(()) }
    }

    /// Moves on by `packets`, `ends` if a message is complete.
    fn accept(&mut self, packets: u64, ends: bool) {
        self.expected += packets;
        self.gap_reported = false;
        self.replies.nak = None;
        if ends {
            self.message = Message::None;
            self.replies.msn = self.replies.msn.wrapping_add(1);
        }
    }

    /// The same for a packet of a SEND or WRITE.
    fn accept_data(&mut self, packet: &Packet<'_>, ends: bool) {
        self.replies.executed(self.expected, packet.bth.ack_request);
        self.accept(1, ends);
    }

    /// The same for a READ or atomic; its reply acknowledges it and everything before it.
    fn accept_answered(&mut self, packets: u64) {
        self.accept(packets, true);
        self.replies.answered();
    }

    /// A receive request, with room for its completion; none makes the peer wait.
    fn take_receive<M: RegionMemory>(&mut self, cx: &mut Shared<M>, link: &Link) -> Option<ReceiveEntry> {
        let entry = match link.shared_receives {
            None => self.queue.pop(),
            Some(index) => {
                if cx.receive_queue(index).is_none_or(|queue| queue.is_empty()) || !cx.reserve(link.receive_completions)
                {
                    None
                } else {
                    let entry = cx.receive_queue(index).and_then(ReceiveQueue::pop);
                    if cx.receive_queue(index).is_some_and(ReceiveQueue::take_limit_event) {
                        cx.raise(Event::SharedReceiveLimit(SharedReceiveQueueId(index)));
                    }
                    entry
                }
            }
        };
        if entry.is_none() {
            // The peer comes back with this very packet; what it sent behind it is no news.
            self.gap_reported = true;
            self.replies.nak = Some((self.expected, Syndrome::RnrNak { timer: self.rnr_timer }));
        }
        entry
    }

    fn receive_send<M: RegionMemory>(
        &mut self,
        cx: &mut Shared<M>,
        link: &Link,
        packet: &Packet<'_>,
    ) -> Result<(), Refusal> {
        let opcode = packet.bth.opcode;
        let bytes = packet.payload.len() as u64;
        let ends = opcode.ends_message();
        let fits = match (opcode.starts_message(), ends) {
            (_, false) => bytes == link.mtu,
            (true, true) => bytes <= link.mtu,
            (false, true) => bytes > 0 && bytes <= link.mtu,
        };
        if !fits {
            return Err(INVALID);
        }
        if opcode.starts_message() {
            let Some(entry) = self.take_receive(cx, link) else { return Ok(()) };
            self.current = Some(entry);
            self.filled = 0;
        }
        let Some(entry) = self.current else { return Err(INVALID) };
        if self.filled + bytes > entry.pieces.length {
            return Err(TOO_LONG);
        }
        if bytes > 0 {
            entry.pieces.scatter(&mut cx.regions, link.domain, self.filled, packet.payload).map_err(|_| LOCAL_FAULT)?;
        }
        self.filled += bytes;
        self.message = Message::Send;
        self.accept_data(packet, ends);
        if ends {
            self.current = None;
            let immediate = match packet.extension {
                Extension::Immediate(immediate) => Some(immediate),
                _ => None,
            };
            self.complete(cx, link, entry.id, WcOpcode::Recv, self.filled, immediate);
        }
        Ok(())
    }

    fn receive_write<M: RegionMemory>(
        &mut self,
        cx: &mut Shared<M>,
        link: &Link,
        packet: &Packet<'_>,
    ) -> Result<(), Refusal> {
        if !self.access.allows(Access::REMOTE_WRITE) {
            return Err(INVALID);
        }
        let opcode = packet.bth.opcode;
        let bytes = packet.payload.len() as u64;
        let ends = opcode.ends_message();
        let (write, written, immediate) = match packet.extension {
            Extension::Rdma(reth) => (reth, 0, None),
            Extension::RdmaImmediate(reth, immediate) => (reth, 0, Some(immediate)),
            Extension::Immediate(immediate) => (self.write, self.written, Some(immediate)),
            _ => (self.write, self.written, None),
        };
        let left = write.length as u64 - written;
        let fits = if ends { bytes == left && bytes <= link.mtu } else { bytes == link.mtu && bytes < left };
        if !fits || write.length as u64 > MESSAGE_BYTES_MAX {
            return Err(INVALID);
        }
        let at = Range {
            domain: link.domain,
            key: MemoryKey(write.remote_key),
            address: write.address.wrapping_add(written),
            length: left,
        };
        if left > 0 {
            cx.regions.check(at, Access::REMOTE_WRITE).map_err(|_| NO_ACCESS)?;
        }
        let entry = match immediate {
            None => None,
            Some(_) => match self.take_receive(cx, link) {
                None => return Ok(()),
                entry => entry,
            },
        };
        if bytes > 0 {
            cx.regions.write(at, Access::REMOTE_WRITE, packet.payload).map_err(|_| NO_ACCESS)?;
        }
        self.write = write;
        self.written = written + bytes;
        self.message = Message::Write;
        self.accept_data(packet, ends);
        if let Some(entry) = entry {
            self.complete(cx, link, entry.id, WcOpcode::RecvRdmaWithImm, write.length as u64, immediate);
        }
        Ok(())
    }

    fn begin_read<M: RegionMemory>(
        &mut self,
        cx: &mut Shared<M>,
        link: &Link,
        reth: &Reth,
        packet: &Packet<'_>,
    ) -> Result<(), Refusal> {
        if !self.access.allows(Access::REMOTE_READ) || reth.length as u64 > MESSAGE_BYTES_MAX {
            return Err(INVALID);
        }
        if !packet.payload.is_empty() {
            return Err(INVALID);
        }
        let reply = read_reply(reth, self.expected, link.mtu, false);
        check_read(cx, link, reth).map_err(|()| NO_ACCESS)?;
        if !self.replies.push(reply) {
            return Err(INVALID);
        }
        self.accept_answered(reply.end_psn() - self.expected);
        Ok(())
    }

    fn execute_atomic<M: RegionMemory>(
        &mut self,
        cx: &mut Shared<M>,
        link: &Link,
        opcode: Opcode,
        atomic: &AtomicEth,
    ) -> Result<(), Refusal> {
        if !self.access.allows(Access::REMOTE_ATOMIC) || !self.replies.has_room() {
            return Err(INVALID);
        }
        let at = Range { domain: link.domain, key: MemoryKey(atomic.remote_key), address: atomic.address, length: 8 };
        let (memory, offset) = cx.regions.atomic(at).map_err(|_| NO_ACCESS)?;
        if !atomic.address.is_multiple_of(8) {
            return Err(INVALID);
        }
        let original = match opcode {
            Opcode::FetchAdd => memory.fetch_add(offset, atomic.swap_or_add),
            _ => memory.compare_swap(offset, atomic.compare, atomic.swap_or_add),
        };
        self.replies.remember(self.expected, original);
        self.replies.push(Reply::Atomic { psn: self.expected, original, repeat: false });
        self.accept_answered(1);
        Ok(())
    }

    /// A request below the expected PSN (IBA 9.7.4.4): SENDs and WRITEs that ask are acknowledged again, READs
    /// read again if they still may, atomics answered from memory; anything else is dropped.
    fn repeat<M: RegionMemory>(&mut self, cx: &mut Shared<M>, link: &Link, packet: &Packet<'_>, psn: u64) {
        match packet.extension {
            Extension::Rdma(reth) if packet.bth.opcode == Opcode::ReadRequest => {
                let reply = read_reply(&reth, psn, link.mtu, true);
                let allowed = self.access.allows(Access::REMOTE_READ)
                    && reth.length as u64 <= MESSAGE_BYTES_MAX
                    && reply.end_psn() <= self.expected
                    && check_read(cx, link, &reth).is_ok();
                if allowed {
                    self.replies.repeat(reply);
                }
            }
            Extension::Atomic(_) => {
                if let Some(original) = self.replies.recall(psn) {
                    self.replies.repeat(Reply::Atomic { psn, original, repeat: true });
                }
            }
            _ => self.replies.executed_before(psn, packet.bth.ack_request),
        }
    }

    fn complete<M: RegionMemory>(
        &self,
        cx: &mut Shared<M>,
        link: &Link,
        id: u64,
        opcode: WcOpcode,
        length: u64,
        immediate: Option<u32>,
    ) {
        let completion = WorkCompletion {
            id,
            status: WcStatus::Success,
            opcode,
            length_bytes: length as u32,
            immediate,
            queue_pair: link.number,
        };
        cx.complete(link.receive_completions, completion);
    }

    /// Ends every receive request: the one in use with `status`, the others flushed. Those of a shared receive
    /// queue stay there.
    pub(crate) fn fail<M: RegionMemory>(&mut self, cx: &mut Shared<M>, link: &Link, status: WcStatus) {
        self.message = Message::None;
        let mut flush = |id, status| {
            let opcode = WcOpcode::Recv;
            let queue_pair = link.number;
            let completion = WorkCompletion { id, status, opcode, length_bytes: 0, immediate: None, queue_pair };
            cx.complete(link.receive_completions, completion);
        };
        if let Some(entry) = self.current.take() {
            flush(entry.id, status);
        }
        while let Some(entry) = self.queue.pop() {
            flush(entry.id, WcStatus::WrFlushErr);
        }
    }
}

fn read_reply(reth: &Reth, psn: u64, mtu: u64, repeat: bool) -> Reply {
    let packets = (reth.length as u64).div_ceil(mtu).max(1);
    Reply::Read { request: *reth, first_psn: psn, next_psn: psn, end_psn: psn + packets, repeat }
}

fn check_read<M: RegionMemory>(cx: &Shared<M>, link: &Link, reth: &Reth) -> Result<(), ()> {
    if reth.length == 0 {
        return Ok(());
    }
    let at = Range {
        domain: link.domain,
        key: MemoryKey(reth.remote_key),
        address: reth.address,
        length: reth.length as u64,
    };
    cx.regions.check(at, Access::REMOTE_READ).map_err(|_| ())
}
