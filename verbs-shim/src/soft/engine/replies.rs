//! What a responder still has to answer, and the answers. (IBA 9.7.5.1; the kernel's `rxe_resp.c`.)
//!
//! Invariants
//! - Replies leave in the order of their PSNs, each READ or atomic reply before any acknowledgement or NAK of
//!   later requests. Acknowledgements are merged: one for everything up to the last SEND or WRITE executed.
//! - No acknowledgement has the PSN of a READ or atomic, which only its own reply may answer: rxe as a requester
//!   takes an ACK with the PSN of an outstanding READ for the end of it, and completes it without the data.
//! - A repeated SEND or WRITE is acknowledged with its own PSN, and only if it asks: the requester has just sent it.
//!   An ACK ahead of what rxe has sent again so far may complete the request that it is in the middle of sending.
//! - `queue` is sorted, its ranges do not overlap, and it has at most `2 * depth` entries, of which at most
//!   `depth` are no repetitions.
//! - READ replies read memory when they are built, checked anew, as the specification allows (9.7.4.4).

use std::collections::VecDeque;

use super::assembly::{Head, Payload};
use super::memory::{Range, RegionMemory};
use super::pieces::Places;
use super::shared::{Link, Shared};
use crate::soft::packet::{Aeth, Extension, MASK_24, NakCode, Opcode, Reth, Syndrome};
use crate::verbs::{Access, MemoryKey};

#[derive(Debug, Clone, Copy)]
pub(crate) enum Reply {
    /// Packets `next_psn..end_psn` of a READ are to be sent; `request` begins at `first_psn`.
    Read {
        request: Reth,
        first_psn: u64,
        next_psn: u64,
        end_psn: u64,
        repeat: bool,
    },
    Atomic {
        psn: u64,
        original: u64,
        repeat: bool,
    },
}

impl Reply {
    fn next_psn(&self) -> u64 {
        match *self {
            Reply::Read { next_psn, .. } => next_psn,
            Reply::Atomic { psn, .. } => psn,
        }
    }

    pub(crate) fn end_psn(&self) -> u64 {
        match *self {
            Reply::Read { end_psn, .. } => end_psn,
            Reply::Atomic { psn, .. } => psn + 1,
        }
    }

    fn first_psn(&self) -> u64 {
        match *self {
            Reply::Read { first_psn, .. } => first_psn,
            Reply::Atomic { psn, .. } => psn,
        }
    }

    fn is_repeat(&self) -> bool {
        match *self {
            Reply::Read { repeat, .. } | Reply::Atomic { repeat, .. } => repeat,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Replies {
    queue: VecDeque<Reply>,
    /// (PSN, value before) of the last `depth` atomics.
    results: VecDeque<(u64, u64)>,
    depth: usize,
    /// The PSN to acknowledge.
    acknowledge: Option<u64>,
    pub(crate) nak: Option<(u64, Syndrome)>,
    pub(crate) msn: u32,
}

impl Replies {
    pub(crate) fn new() -> Self {
        Replies { queue: VecDeque::new(), results: VecDeque::new(), depth: 0, acknowledge: None, nak: None, msn: 0 }
    }

    pub(crate) fn connect(&mut self, depth: u8) {
        self.clear();
        self.depth = depth as usize;
        self.queue.reserve(2 * self.depth);
        self.results.reserve(self.depth);
        self.msn = 0;
    }

    pub(crate) fn clear(&mut self) {
        self.queue.clear();
        self.results.clear();
        self.acknowledge = None;
        self.nak = None;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.acknowledge.is_none() && self.nak.is_none()
    }

    /// Whether nothing but a positive acknowledgement is to be sent, if that.
    pub(crate) fn is_only_acknowledgement(&self) -> bool {
        self.queue.is_empty() && self.nak.is_none()
    }

    /// A packet of a SEND or WRITE was executed.
    pub(crate) fn executed(&mut self, psn: u64, ack_request: bool) {
        if ack_request || self.acknowledge.is_some() {
            self.acknowledge = Some(psn);
        }
    }

    /// A packet of a SEND or WRITE came again.
    pub(crate) fn executed_before(&mut self, psn: u64, ack_request: bool) {
        if ack_request {
            self.acknowledge = self.acknowledge.max(Some(psn));
        }
    }

    /// A READ or atomic was executed, whose reply acknowledges everything before it.
    pub(crate) fn answered(&mut self) {
        self.acknowledge = None;
    }

    /// Whether the peer may have one more READ or atomic outstanding.
    pub(crate) fn has_room(&self) -> bool {
        self.queue.iter().filter(|reply| !reply.is_repeat()).count() < self.depth
    }

    /// Queues the reply to a new request; false if the peer has too many outstanding.
    pub(crate) fn push(&mut self, reply: Reply) -> bool {
        if !self.has_room() {
            return false;
        }
        if self.queue.len() >= 2 * self.depth
            && let Some(oldest) = self.queue.iter().position(Reply::is_repeat)
        {
            self.queue.remove(oldest);
        }
        self.queue.push_back(reply);
        true
    }

    /// Queues the reply to a request seen before. What is still to be sent anyway is not queued again; what
    /// was sent in part is sent again from there; without room the peer must ask once more.
    pub(crate) fn repeat(&mut self, reply: Reply) {
        let psn = reply.first_psn();
        let at = self.queue.partition_point(|queued| queued.end_psn() <= psn);
        if let Some(queued) = self.queue.get_mut(at)
            && queued.first_psn() < reply.end_psn()
        {
            if queued.next_psn() > psn && queued.end_psn() == reply.end_psn() {
                *queued = match (reply, queued.is_repeat()) {
                    (Reply::Read { request, first_psn, next_psn, end_psn, .. }, repeat) => {
                        Reply::Read { request, first_psn, next_psn, end_psn, repeat }
                    }
                    (atomic, _) => atomic,
                };
            }
            return;
        }
        if self.queue.len() < 2 * self.depth {
            self.queue.insert(at, reply);
        }
    }

    /// Keeps the result of an atomic for repetitions.
    pub(crate) fn remember(&mut self, psn: u64, original: u64) {
        if self.results.len() >= self.depth {
            self.results.pop_front();
        }
        self.results.push_back((psn, original));
    }

    pub(crate) fn recall(&self, psn: u64) -> Option<u64> {
        self.results.iter().rev().find(|result| result.0 == psn).map(|result| result.1)
    }

    /// Builds the next answer, if there is one; its length in bytes.
    ///
    /// # Errors
    /// The PSN at which a READ lost its right (its region was deregistered after the request was accepted).
    pub(crate) fn next_packet<M: RegionMemory>(
        &mut self,
        cx: &mut Shared<M>,
        link: &mut Link,
        out: &mut [u8],
    ) -> Result<Option<usize>, u64> {
        while let Some(reply) = self.queue.front_mut() {
            let aeth = Aeth { syndrome: Syndrome::ACK, msn: self.msn & MASK_24 };
            match reply {
                Reply::Atomic { psn, original, .. } => {
                    let head = answer(Opcode::AtomicAcknowledge, *psn, Extension::AtomicAck(aeth, *original));
                    self.queue.pop_front();
                    return Ok(Some(link.assemble(&cx.regions, &head, &Payload::NONE, out)));
                }
                Reply::Read { request, first_psn, next_psn, end_psn, repeat } => {
                    let psn = *next_psn;
                    let offset = (psn - *first_psn) * link.mtu;
                    let payload_bytes = (request.length as u64 - offset).min(link.mtu) as usize;
                    let last = psn + 1 == *end_psn;
                    let (opcode, extension) = match (offset == 0, last) {
                        (true, true) => (Opcode::ReadResponseOnly, Extension::Ack(aeth)),
                        (true, false) => (Opcode::ReadResponseFirst, Extension::Ack(aeth)),
                        (false, false) => (Opcode::ReadResponseMiddle, Extension::None),
                        (false, true) => (Opcode::ReadResponseLast, Extension::Ack(aeth)),
                    };
                    let at = Range {
                        domain: link.domain,
                        key: MemoryKey(request.remote_key),
                        address: request.address.wrapping_add(offset),
                        length: payload_bytes as u64,
                    };
                    let payload = match payload_bytes {
                        0 => Payload::NONE,
                        _ => match cx.regions.locate(at, Access::REMOTE_READ) {
                            Ok(place) => Payload::Memory(Places::one(place)),
                            Err(_) => {
                                let repeat = *repeat;
                                self.queue.pop_front();
                                if repeat {
                                    continue;
                                }
                                return Err(psn);
                            }
                        },
                    };
                    *next_psn += 1;
                    if last {
                        self.queue.pop_front();
                    }
                    return Ok(Some(link.assemble(&cx.regions, &answer(opcode, psn, extension), &payload, out)));
                }
            }
        }
        let acknowledge = self.acknowledge.take().map(|psn| (psn, Syndrome::ACK));
        let Some((psn, syndrome)) = self.nak.take().or(acknowledge) else { return Ok(None) };
        match syndrome {
            Syndrome::RnrNak { .. } => cx.counters.rnr_naks_sent += 1,
            Syndrome::Nak(_) => cx.counters.naks_sent += 1,
            _ => {}
        }
        let extension = Extension::Ack(Aeth { syndrome, msn: self.msn & MASK_24 });
        let head = answer(Opcode::Acknowledge, psn, extension);
        Ok(Some(link.assemble(&cx.regions, &head, &Payload::NONE, out)))
    }

    /// Drops everything and answers `nak` at `psn` as the last thing.
    pub(crate) fn refuse_at(&mut self, psn: u64, nak: NakCode) {
        self.queue.clear();
        self.nak = Some((psn, Syndrome::Nak(nak)));
    }
}

fn answer(opcode: Opcode, psn: u64, extension: Extension) -> Head {
    Head { opcode, psn, solicited: false, ack_request: false, extension }
}
