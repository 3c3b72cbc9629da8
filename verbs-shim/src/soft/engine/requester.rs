//! The sending half of a queue pair: work requests to packets. (IBA 9.7.3, 9.7.5.1; the kernel's `rxe_req.c`.)
//!
//! Owns: the send queue, the send cursor, the windows and the two timers. `completer.rs` is its other room: it
//! takes the responses.
//!
//! Invariants
//! - `first PSN of head <= unacked <= send_psn <= sent_end <= post_psn`; head is the request that holds
//!   `unacked`, cursor the one that holds `send_psn` (both may be the end of the queue).
//! - The PSN of every packet of every request is fixed when it is posted, so that going back is only moving
//!   `send_psn` to `unacked`: packets are built anew from the same memory.
//! - Bytes of `[unacked, send_psn)` are at most `window`, READ response bytes at most `read_window`, READ
//!   requests and atomics at most `initiator_depth`. A long READ is cut into requests of `chunk` packets at
//!   fixed places, so that a retry never spans two of them.
//! - A request asks for an acknowledgement whenever nothing may follow it at once.

use super::assembly::{Head, Payload};
use super::attributes::{HEADER_CHARGE_BYTES, SendAttributes, ack_timeout_ns};
use super::memory::RegionMemory;
use super::pieces::{Places, SgeList};
use super::psn::{OUTSTANDING_PACKETS_MAX, first};
use super::shared::{Link, NEVER, Shared};
use crate::soft::packet::{AtomicEth, Extension, Opcode, Reth};
use crate::verbs::{
    Access, Data, MESSAGE_BYTES_MAX, Operation, PostError, WcOpcode, WcStatus, WorkCompletion, WorkRequest,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Send,
    Write,
    Read,
    CompareSwap,
    FetchAdd,
}

impl Kind {
    pub(crate) fn is_atomic(self) -> bool {
        matches!(self, Kind::CompareSwap | Kind::FetchAdd)
    }

    /// Whether its acknowledgement carries data.
    pub(crate) fn has_result(self) -> bool {
        !matches!(self, Kind::Send | Kind::Write)
    }
}

/// A posted work request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SendEntry {
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    pub(crate) first_psn: u64,
    pub(crate) packets: u64,
    pub(crate) length: u64,
    pub(crate) pieces: SgeList,
    inline: bool,
    remote_address: u64,
    remote_key: u32,
    immediate: Option<u32>,
    swap_or_add: u64,
    compare: u64,
    signalled: bool,
    fence: bool,
    solicited: bool,
    /// A local error found when it was posted; it fails when everything before it is done.
    poison: Option<WcStatus>,
    /// Window bytes of all requests posted before it.
    charge: u64,
    read_charge: u64,
}

impl SendEntry {
    const EMPTY: SendEntry = SendEntry {
        id: 0,
        kind: Kind::Send,
        first_psn: 0,
        packets: 0,
        length: 0,
        pieces: SgeList::EMPTY,
        inline: false,
        remote_address: 0,
        remote_key: 0,
        immediate: None,
        swap_or_add: 0,
        compare: 0,
        signalled: false,
        fence: false,
        solicited: false,
        poison: None,
        charge: 0,
        read_charge: 0,
    };

    pub(crate) fn end_psn(&self) -> u64 {
        self.first_psn + self.packets
    }

    fn opcode(&self) -> WcOpcode {
        match self.kind {
            Kind::Send => WcOpcode::Send,
            Kind::Write => WcOpcode::RdmaWrite,
            Kind::Read => WcOpcode::RdmaRead,
            Kind::CompareSwap => WcOpcode::CompSwap,
            Kind::FetchAdd => WcOpcode::FetchAdd,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Requester {
    entries: Box<[SendEntry]>,
    depth: u64,
    inline: Box<[u8]>,
    inline_max: usize,
    signal_all: bool,
    pub(crate) head: u64,
    cursor: u64,
    tail: u64,
    pub(crate) unacked: u64,
    pub(crate) send_psn: u64,
    pub(crate) sent_end: u64,
    post_psn: u64,
    charge_posted: u64,
    read_charge_posted: u64,
    pub(crate) outstanding_results: u32,
    unasked_packets: u32,
    unasked_bytes: u64,
    pub(crate) attributes: SendAttributes,
    mtu: u64,
    header_charge: u64,
    pub(crate) chunk: u64,
    pub(crate) timeout_ns: Option<u64>,
    pub(crate) retries_left: u8,
    pub(crate) rnr_retries_left: u8,
    /// Went back for a NAK or a missing response, and nothing was acknowledged since.
    pub(crate) went_back: bool,
    pub(crate) ack_deadline: u64,
    pub(crate) rnr_deadline: u64,
    pub(crate) draining: bool,
}

impl Requester {
    pub(crate) fn new(depth: usize, inline_max: usize, signal_all: bool) -> Self {
        Requester {
            entries: vec![SendEntry::EMPTY; depth.next_power_of_two()].into(),
            depth: depth as u64,
            inline: vec![0; depth.next_power_of_two() * inline_max].into(),
            inline_max,
            signal_all,
            head: 0,
            cursor: 0,
            tail: 0,
            unacked: first(0),
            send_psn: first(0),
            sent_end: first(0),
            post_psn: first(0),
            charge_posted: 0,
            read_charge_posted: 0,
            outstanding_results: 0,
            unasked_packets: 0,
            unasked_bytes: 0,
            attributes: SendAttributes::default(),
            mtu: 1024,
            header_charge: 0,
            chunk: 1,
            timeout_ns: None,
            retries_left: 0,
            rnr_retries_left: 0,
            went_back: false,
            ack_deadline: NEVER,
            rnr_deadline: NEVER,
            draining: false,
        }
    }

    /// Readies an empty queue for a new connection.
    pub(crate) fn connect(&mut self, attributes: &SendAttributes, mtu: u64) {
        let psn = first(attributes.send_psn);
        (self.unacked, self.send_psn, self.sent_end, self.post_psn) = (psn, psn, psn, psn);
        self.mtu = mtu;
        self.header_charge = HEADER_CHARGE_BYTES + attributes.packet_overhead_bytes as u64;
        let parallel = (attributes.initiator_depth as u64).clamp(1, 4);
        let per_packet = mtu + self.header_charge;
        self.chunk = (attributes.read_window_bytes / parallel / per_packet).clamp(1, OUTSTANDING_PACKETS_MAX / 8);
        self.timeout_ns = ack_timeout_ns(attributes.timeout);
        self.attributes = attributes.clone();
        self.reload_retries();
    }

    /// Forgets everything but the memory; the caller releases the places in the completion queue.
    pub(crate) fn reset(&mut self) {
        (self.head, self.cursor) = (self.tail, self.tail);
        self.outstanding_results = 0;
        (self.unasked_packets, self.unasked_bytes) = (0, 0);
        self.went_back = false;
        self.draining = false;
        (self.ack_deadline, self.rnr_deadline) = (NEVER, NEVER);
        (self.charge_posted, self.read_charge_posted) = (0, 0);
    }

    pub(crate) fn reload_retries(&mut self) {
        self.retries_left = self.attributes.retry_count;
        self.rnr_retries_left = self.attributes.rnr_retry_count;
        self.went_back = false;
    }

    pub(crate) fn outstanding(&self) -> usize {
        (self.tail - self.head) as usize
    }

    pub(crate) fn entry(&self, index: u64) -> &SendEntry {
        &self.entries[index as usize & (self.entries.len() - 1)]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    pub(crate) fn post<M: RegionMemory>(
        &mut self,
        cx: &mut Shared<M>,
        link: &Link,
        request: &WorkRequest<'_>,
    ) -> Result<(), PostError> {
        if self.tail - self.head >= self.depth {
            return Err(PostError::QueueFull);
        }
        let mut entry = SendEntry { id: request.id, ..SendEntry::EMPTY };
        entry.signalled = request.signalled || self.signal_all;
        entry.fence = request.fence;
        match request.operation {
            Operation::Send { immediate } => (entry.kind, entry.immediate) = (Kind::Send, immediate),
            Operation::Write { remote_address, remote_key, immediate } => {
                entry.kind = Kind::Write;
                entry.immediate = immediate;
                (entry.remote_address, entry.remote_key) = (remote_address, remote_key.0);
            }
            Operation::Read { remote_address, remote_key } => {
                entry.kind = Kind::Read;
                (entry.remote_address, entry.remote_key) = (remote_address, remote_key.0);
            }
            Operation::CompareSwap { remote_address, remote_key, compare, swap } => {
                entry.kind = Kind::CompareSwap;
                (entry.remote_address, entry.remote_key) = (remote_address, remote_key.0);
                (entry.compare, entry.swap_or_add) = (compare, swap);
            }
            Operation::FetchAdd { remote_address, remote_key, add } => {
                entry.kind = Kind::FetchAdd;
                (entry.remote_address, entry.remote_key) = (remote_address, remote_key.0);
                entry.swap_or_add = add;
            }
        }
        // Only what completes a receive request can ask for an event there (IBA 9.2.3).
        let completes_receive = entry.kind == Kind::Send || (entry.kind == Kind::Write && entry.immediate.is_some());
        entry.solicited = request.solicited && completes_receive;
        if entry.kind.has_result() && self.attributes.initiator_depth == 0 {
            return Err(PostError::ReadAtomicDisabled);
        }
        let slot = self.tail as usize & (self.entries.len() - 1);
        match request.data {
            Data::Inline(_) if entry.kind.has_result() => return Err(PostError::InlineResult),
            Data::Inline(bytes) if bytes.len() > self.inline_max => {
                return Err(PostError::InlineTooLong { bytes: bytes.len(), limit: self.inline_max });
            }
            Data::Inline(bytes) => {
                let start = slot * self.inline_max;
                self.inline[start..start + bytes.len()].copy_from_slice(bytes);
                entry.inline = true;
                entry.length = bytes.len() as u64;
            }
            Data::Pieces(pieces) => {
                entry.pieces = SgeList::new(pieces)?;
                entry.length = entry.pieces.length;
                let needed = if entry.kind.has_result() { Access::LOCAL_WRITE } else { Access::NONE };
                if entry.pieces.check(&cx.regions, link.domain, needed).is_err() {
                    entry.poison = Some(WcStatus::LocProtErr);
                }
            }
        }
        if entry.length > MESSAGE_BYTES_MAX {
            return Err(PostError::MessageTooLong(entry.length));
        }
        if entry.kind.is_atomic() && entry.length != 8 {
            return Err(PostError::AtomicLength(entry.length));
        }
        if !cx.reserve(link.send_completions) {
            return Err(PostError::CompletionQueueFull);
        }
        entry.packets = if entry.kind.is_atomic() { 1 } else { entry.length.div_ceil(self.mtu).max(1) };
        entry.first_psn = self.post_psn;
        entry.charge = self.charge_posted;
        entry.read_charge = self.read_charge_posted;
        self.post_psn += entry.packets;
        self.charge_posted = self.charge_at(&entry, entry.end_psn());
        self.read_charge_posted = self.read_charge_at(&entry, entry.end_psn());
        self.entries[slot] = entry;
        self.tail += 1;
        Ok(())
    }

    /// Window bytes of everything posted before packet `psn` of `entry`.
    fn charge_at(&self, entry: &SendEntry, psn: u64) -> u64 {
        let packets = psn - entry.first_psn;
        entry.charge
            + match entry.kind {
                Kind::Read => packets.div_ceil(self.chunk) * self.header_charge,
                Kind::CompareSwap | Kind::FetchAdd => packets * self.header_charge,
                Kind::Send | Kind::Write => packets * self.header_charge + (packets * self.mtu).min(entry.length),
            }
    }

    /// READ response bytes of everything posted before packet `psn` of `entry`.
    fn read_charge_at(&self, entry: &SendEntry, psn: u64) -> u64 {
        let packets = psn - entry.first_psn;
        entry.read_charge
            + match entry.kind {
                Kind::Read => packets * self.header_charge + (packets * self.mtu).min(entry.length),
                _ => 0,
            }
    }

    /// Bytes of requests, and of READ responses, between `unacked` and `send_psn`.
    pub(crate) fn in_flight(&self) -> (u64, u64) {
        if self.unacked == self.send_psn {
            return (0, 0);
        }
        let (sent, read) = if self.cursor == self.tail {
            (self.charge_posted, self.read_charge_posted)
        } else {
            let entry = self.entry(self.cursor);
            (self.charge_at(entry, self.send_psn), self.read_charge_at(entry, self.send_psn))
        };
        let head = self.entry(self.head);
        // The request of a READ counts until the last of its responses.
        let unacked = match head.kind {
            Kind::Read => head.charge + (self.unacked - head.first_psn) / self.chunk * self.header_charge,
            _ => self.charge_at(head, self.unacked),
        };
        (sent - unacked, read - self.read_charge_at(head, self.unacked))
    }

    /// The PSN after the packet, or after all packets of the READ request, that starts at `send_psn`.
    fn next_end(&self, entry: &SendEntry) -> u64 {
        match entry.kind {
            Kind::Read => {
                let chunks = (self.send_psn - entry.first_psn) / self.chunk + 1;
                entry.first_psn + (chunks * self.chunk).min(entry.packets)
            }
            _ => self.send_psn + 1,
        }
    }

    /// Whether a packet may leave now.
    pub(crate) fn can_send(&self) -> bool {
        if self.cursor == self.tail || self.rnr_deadline != NEVER {
            return false;
        }
        let entry = self.entry(self.cursor);
        let begins = self.send_psn == entry.first_psn;
        if entry.poison.is_some() || (self.draining && begins && self.send_psn == self.sent_end) {
            return false;
        }
        if begins && entry.fence && self.outstanding_results > 0 {
            return false;
        }
        let end = self.next_end(entry);
        if end - self.unacked > OUTSTANDING_PACKETS_MAX {
            return false;
        }
        if entry.kind.has_result() && self.outstanding_results >= self.attributes.initiator_depth as u32 {
            return false;
        }
        let (sent, read) = self.in_flight();
        let charge = self.charge_at(entry, end) - self.charge_at(entry, self.send_psn);
        let read_charge = self.read_charge_at(entry, end) - self.read_charge_at(entry, self.send_psn);
        // A READ that resumes in the middle of a chunk was charged with the chunk's first packet.
        let charge = if entry.kind == Kind::Read { self.header_charge } else { charge };
        sent + charge <= self.attributes.window_bytes && read + read_charge <= self.attributes.read_window_bytes
    }

    /// Builds the next packet, if one may leave; its length in bytes.
    ///
    /// # Errors
    /// The status with which the head request fails, and the queue pair with it.
    pub(crate) fn next_packet<M: RegionMemory>(
        &mut self,
        cx: &mut Shared<M>,
        link: &mut Link,
        now_ns: u64,
        out: &mut [u8],
    ) -> Result<Option<usize>, WcStatus> {
        if !self.can_send() {
            let poison = if self.cursor < self.tail { self.entry(self.cursor).poison } else { None };
            return match poison {
                Some(status) if self.unacked == self.send_psn => Err(status),
                _ => Ok(None),
            };
        }
        let entry = self.entry(self.cursor);
        let psn = self.send_psn;
        let end_psn = self.next_end(entry);
        let offset = (psn - entry.first_psn) * self.mtu;
        let payload_bytes = match entry.kind {
            Kind::Send | Kind::Write => (entry.length - offset).min(self.mtu) as usize,
            _ => 0,
        };
        let last = end_psn == entry.end_psn();
        let (inline, has_result, solicited) = (entry.inline, entry.kind.has_result(), entry.solicited && last);
        let inline_start = (self.cursor as usize & (self.entries.len() - 1)) * self.inline_max + offset as usize;
        let places = match inline || payload_bytes == 0 {
            true => Places::NONE,
            false => match entry.pieces.locate(&cx.regions, link.domain, offset, payload_bytes) {
                Ok(places) => places,
                // Deregistered since it was posted. What is in flight before it still gets its answer.
                Err(_) if self.unacked == psn => return Err(WcStatus::LocProtErr),
                Err(_) => return Ok(None),
            },
        };
        let (opcode, extension) = self.headers(entry, offset, end_psn);

        cx.counters.retransmitted += (psn < self.sent_end) as u64;
        self.send_psn = end_psn;
        self.sent_end = self.sent_end.max(end_psn);
        self.cursor += last as u64;
        self.outstanding_results += has_result as u32;
        self.unasked_packets += 1;
        self.unasked_bytes += payload_bytes as u64 + self.header_charge;
        let ask = has_result
            || self.unasked_packets >= self.attributes.ack_every_packets
            || self.unasked_bytes >= self.attributes.window_bytes / 4
            || !self.can_send();
        if ask {
            (self.unasked_packets, self.unasked_bytes) = (0, 0);
        }
        if self.ack_deadline == NEVER {
            self.start_ack_timer(cx, now_ns);
        }
        let head = Head { opcode, psn, solicited, ack_request: ask, extension };
        let payload = match inline {
            true => Payload::Inline(&self.inline[inline_start..inline_start + payload_bytes]),
            false => Payload::Memory(places),
        };
        Ok(Some(link.assemble(&cx.regions, &head, &payload, out)))
    }

    fn headers(&self, entry: &SendEntry, offset: u64, end_psn: u64) -> (Opcode, Extension) {
        let reth = |address, length: u64| Reth { address, remote_key: entry.remote_key, length: length as u32 };
        let first = offset == 0;
        let last = end_psn == entry.end_psn();
        match entry.kind {
            Kind::Send => match (first, last, entry.immediate) {
                (true, true, None) => (Opcode::SendOnly, Extension::None),
                (true, true, Some(immediate)) => (Opcode::SendOnlyImmediate, Extension::Immediate(immediate)),
                (true, false, _) => (Opcode::SendFirst, Extension::None),
                (false, false, _) => (Opcode::SendMiddle, Extension::None),
                (false, true, None) => (Opcode::SendLast, Extension::None),
                (false, true, Some(immediate)) => (Opcode::SendLastImmediate, Extension::Immediate(immediate)),
            },
            Kind::Write => {
                let reth = reth(entry.remote_address, entry.length);
                match (first, last, entry.immediate) {
                    (true, true, None) => (Opcode::WriteOnly, Extension::Rdma(reth)),
                    (true, true, Some(immediate)) => {
                        (Opcode::WriteOnlyImmediate, Extension::RdmaImmediate(reth, immediate))
                    }
                    (true, false, _) => (Opcode::WriteFirst, Extension::Rdma(reth)),
                    (false, false, _) => (Opcode::WriteMiddle, Extension::None),
                    (false, true, None) => (Opcode::WriteLast, Extension::None),
                    (false, true, Some(immediate)) => (Opcode::WriteLastImmediate, Extension::Immediate(immediate)),
                }
            }
            Kind::Read => {
                let end = ((end_psn - entry.first_psn) * self.mtu).min(entry.length);
                let reth = reth(entry.remote_address.wrapping_add(offset), end - offset);
                (Opcode::ReadRequest, Extension::Rdma(reth))
            }
            Kind::CompareSwap | Kind::FetchAdd => {
                let opcode = if entry.kind == Kind::FetchAdd { Opcode::FetchAdd } else { Opcode::CompareSwap };
                let atomic = AtomicEth {
                    address: entry.remote_address,
                    remote_key: entry.remote_key,
                    swap_or_add: entry.swap_or_add,
                    compare: entry.compare,
                };
                (opcode, Extension::Atomic(atomic))
            }
        }
    }

    pub(crate) fn start_ack_timer<M: RegionMemory>(&mut self, cx: &mut Shared<M>, now_ns: u64) {
        if let Some(timeout_ns) = self.timeout_ns {
            self.ack_deadline = now_ns.saturating_add(timeout_ns);
            cx.note_deadline(self.ack_deadline);
        }
    }

    /// Goes back to the oldest packet without acknowledgement (IBA 9.7.5.1.1).
    pub(crate) fn go_back(&mut self) {
        self.send_psn = self.unacked;
        self.cursor = self.head;
        self.outstanding_results = 0;
        (self.unasked_packets, self.unasked_bytes) = (0, 0);
        self.ack_deadline = NEVER;
    }

    /// After `unacked` moved: the cursor never stays behind it.
    pub(crate) fn catch_up(&mut self) {
        self.send_psn = self.send_psn.max(self.unacked);
        self.cursor = self.cursor.max(self.head);
    }

    /// Takes the head out of the queue.
    pub(crate) fn retire<M: RegionMemory>(&mut self, cx: &mut Shared<M>, link: &Link, status: WcStatus) {
        let entry = self.entry(self.head);
        let (id, opcode, length, signalled) = (entry.id, entry.opcode(), entry.length, entry.signalled);
        self.head += 1;
        if status == WcStatus::Success && !signalled {
            cx.release(link.send_completions);
            return;
        }
        let length_bytes = if status == WcStatus::Success { length as u32 } else { 0 };
        let queue_pair = link.number;
        let completion = WorkCompletion { id, status, opcode, length_bytes, immediate: None, queue_pair };
        cx.complete(link.send_completions, completion);
    }

    /// Ends every request: the head with `status`, the others flushed.
    pub(crate) fn fail<M: RegionMemory>(&mut self, cx: &mut Shared<M>, link: &Link, status: WcStatus) {
        let mut status = status;
        while !self.is_empty() {
            self.retire(cx, link, status);
            status = WcStatus::WrFlushErr;
        }
        self.cursor = self.head;
        (self.unacked, self.send_psn, self.sent_end) = (self.post_psn, self.post_psn, self.post_psn);
        self.outstanding_results = 0;
        (self.ack_deadline, self.rnr_deadline) = (NEVER, NEVER);
    }
}
