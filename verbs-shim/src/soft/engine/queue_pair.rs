//! One reliable-connected queue pair: its state, its two halves, and what error does to both.
//! (IBA 10.3.1, 9.9; the kernel's `rxe_qp.c`.)
//!
//! Invariants
//! - In the error state every request that was outstanding has its completion, and new ones get theirs at
//!   once. What the responder has to say (earlier replies, the NAK itself) still leaves.
//! - A queue pair is in the engine's ready list at most once (`queued`).

use super::attributes::QueuePairConfig;
use super::memory::RegionMemory;
use super::requester::Requester;
use super::responder::{Refusal, Responder};
use super::shared::{Event, Link, NEVER, Shared};
use crate::soft::packet::{NakCode, Packet};
use crate::verbs::{QueuePairState, WcStatus};

/// Packets that one direction of a queue pair sends before the other gets its turn.
const BURST_PACKETS: u32 = 16;

#[derive(Debug)]
pub(crate) struct QueuePair {
    pub(crate) config: QueuePairConfig,
    pub(crate) state: QueuePairState,
    pub(crate) link: Link,
    pub(crate) requester: Requester,
    pub(crate) responder: Responder,
    pub(crate) queued: bool,
    slot: u32,
    burst: u32,
    requests_first: bool,
    pub(crate) established: bool,
}

impl QueuePair {
    pub(crate) fn new(config: QueuePairConfig, link: Link, slot: u32) -> Self {
        QueuePair {
            requester: Requester::new(config.send_depth.max(1), config.inline_bytes_max, config.signal_all),
            responder: Responder::new(config.receive_depth),
            config,
            state: QueuePairState::Reset,
            link,
            queued: false,
            slot,
            burst: 0,
            requests_first: false,
            established: false,
        }
    }

    pub(crate) fn receives_packets(&self) -> bool {
        use QueuePairState::*;
        matches!(self.state, ReadyToReceive | ReadyToSend | SendQueueDrain)
    }

    fn sends_requests(&self) -> bool {
        matches!(self.state, QueuePairState::ReadyToSend | QueuePairState::SendQueueDrain)
    }

    pub(crate) fn mark_ready<M: RegionMemory>(&mut self, cx: &mut Shared<M>) {
        if !self.queued {
            self.queued = true;
            cx.ready.push_back(self.slot);
        }
    }

    pub(crate) fn handle_packet<M: RegionMemory>(&mut self, cx: &mut Shared<M>, now_ns: u64, packet: &Packet<'_>) {
        if !self.established && self.state == QueuePairState::ReadyToReceive {
            cx.raise(Event::CommunicationEstablished(self.link.number));
        }
        self.established = true;
        if packet.bth.opcode.is_request() {
            if let Err(refusal) = self.responder.handle_request(cx, &self.link, packet) {
                self.refuse(cx, refusal);
            }
        } else if !self.sends_requests() {
            cx.counters.wrong_state += 1;
        } else if let Err(status) = self.requester.handle_response(cx, &self.link, now_ns, packet) {
            self.fail(cx, status);
        }
        self.mark_ready(cx);
    }

    pub(crate) fn handle_unsupported<M: RegionMemory>(&mut self, cx: &mut Shared<M>, psn: u32) {
        if let Err(refusal) = self.responder.handle_unsupported(psn) {
            self.refuse(cx, refusal);
            self.mark_ready(cx);
        }
    }

    pub(crate) fn handle_deadlines<M: RegionMemory>(&mut self, cx: &mut Shared<M>, now_ns: u64) {
        match self.requester.handle_deadlines(cx, now_ns) {
            Ok(true) => self.mark_ready(cx),
            Ok(false) => {}
            Err(status) => {
                self.fail(cx, status);
                self.mark_ready(cx);
            }
        }
    }

    /// Whether it has nothing to send but an acknowledgement, if that.
    pub(crate) fn owes_only_acknowledgement(&self) -> bool {
        self.responder.replies.is_only_acknowledgement() && !(self.sends_requests() && self.requester.can_send())
    }

    /// Builds the next packet, if there is one to send; its length in bytes.
    pub(crate) fn next_packet<M: RegionMemory>(
        &mut self,
        cx: &mut Shared<M>,
        now_ns: u64,
        out: &mut [u8],
    ) -> Option<usize> {
        if self.burst >= BURST_PACKETS {
            self.burst = 0;
            self.requests_first = !self.requests_first;
        }
        self.burst += 1;
        let packet = if self.requests_first {
            self.next_request(cx, now_ns, out).or_else(|| self.next_reply(cx, out))
        } else {
            self.next_reply(cx, out).or_else(|| self.next_request(cx, now_ns, out))
        };
        if packet.is_none() {
            // The next turn begins with requests: an answer leaves before the acknowledgement of what it answers, for
            // which nobody waits so eagerly.
            (self.burst, self.requests_first) = (0, true);
        }
        packet
    }

    fn next_reply<M: RegionMemory>(&mut self, cx: &mut Shared<M>, out: &mut [u8]) -> Option<usize> {
        if self.responder.replies.is_empty() {
            return None;
        }
        match self.responder.replies.next_packet(cx, &mut self.link, out) {
            Ok(length) => length,
            Err(psn) => {
                self.responder.replies.refuse_at(psn, NakCode::RemoteAccessError);
                self.enter_error(cx, WcStatus::WrFlushErr, WcStatus::LocAccessErr);
                cx.raise(Event::AccessError(self.link.number));
                self.responder.replies.next_packet(cx, &mut self.link, out).unwrap_or(None)
            }
        }
    }

    fn next_request<M: RegionMemory>(&mut self, cx: &mut Shared<M>, now_ns: u64, out: &mut [u8]) -> Option<usize> {
        if !self.sends_requests() {
            return None;
        }
        match self.requester.next_packet(cx, &mut self.link, now_ns, out) {
            Ok(length) => length,
            Err(status) => {
                self.fail(cx, status);
                None
            }
        }
    }

    /// The requester's head request fails. The peer will notice by its own retries.
    fn fail<M: RegionMemory>(&mut self, cx: &mut Shared<M>, status: WcStatus) {
        self.enter_error(cx, status, WcStatus::WrFlushErr);
        self.responder.replies.clear();
    }

    /// The peer's request is refused.
    fn refuse<M: RegionMemory>(&mut self, cx: &mut Shared<M>, refusal: Refusal) {
        self.enter_error(cx, WcStatus::WrFlushErr, refusal.local);
        let psn = self.responder.expected;
        self.responder.replies.nak = Some((psn, crate::soft::packet::Syndrome::Nak(refusal.nak)));
        cx.raise(match refusal.nak {
            NakCode::RemoteAccessError => Event::AccessError(self.link.number),
            _ => Event::RequestError(self.link.number),
        });
    }

    fn enter_error<M: RegionMemory>(&mut self, cx: &mut Shared<M>, send: WcStatus, receive: WcStatus) {
        if self.state == QueuePairState::Error {
            return;
        }
        cx.counters.queue_pair_errors += 1;
        self.flush(cx, send, receive);
    }

    /// Goes to the error state: completes everything outstanding.
    pub(crate) fn flush<M: RegionMemory>(&mut self, cx: &mut Shared<M>, send: WcStatus, receive: WcStatus) {
        self.state = QueuePairState::Error;
        self.requester.fail(cx, &self.link, send);
        self.responder.fail(cx, &self.link, receive);
    }

    /// Forgets everything outstanding without completions, and those that wait to be polled.
    pub(crate) fn reset<M: RegionMemory>(&mut self, cx: &mut Shared<M>) {
        for _ in 0..self.requester.outstanding() {
            cx.release(self.link.send_completions);
        }
        for _ in 0..self.responder.outstanding() {
            cx.release(self.link.receive_completions);
        }
        self.requester.reset();
        self.responder.reset();
        for queue in [self.link.send_completions, self.link.receive_completions] {
            if let Some(queue) = cx.completion_queue(queue) {
                queue.purge(self.link.number);
            }
        }
        self.state = QueuePairState::Reset;
        self.established = false;
    }

    pub(crate) fn deadline(&self) -> u64 {
        if self.sends_requests() { self.requester.deadline() } else { NEVER }
    }
}
