//! The responses to a queue pair's own requests. (IBA 9.7.5.1, 9.9.2; the kernel's `rxe_comp.c`.)
//!
//! Invariants
//! - `unacked` moves over SENDs and WRITEs by any later acknowledgement, over READs and atomics only by their
//!   own response, in order. A response beyond a missing one is an implied NAK.
//! - One way back per NAK or gap: until something is acknowledged or the timer runs out, further NAKs and gaps
//!   are ignored, so that duplicated responses cannot multiply the traffic or use up the retries.

use super::attributes::rnr_timer_ns;
use super::memory::RegionMemory;
use super::psn::nearest;
use super::requester::{Kind, Requester};
use super::shared::{Event, Link, NEVER, Shared};
use crate::soft::packet::{Extension, NakCode, Packet, Syndrome};
use crate::verbs::WcStatus;

impl Requester {
    /// Takes a response.
    ///
    /// # Errors
    /// The status with which the head request fails, and the queue pair with it.
    pub(crate) fn handle_response<M: RegionMemory>(
        &mut self,
        cx: &mut Shared<M>,
        link: &Link,
        now_ns: u64,
        packet: &Packet<'_>,
    ) -> Result<(), WcStatus> {
        let psn = nearest(self.unacked, packet.bth.psn);
        if psn < self.unacked {
            cx.counters.duplicate_responses += 1;
            return Ok(());
        }
        if psn >= self.sent_end {
            cx.counters.ghost_responses += 1;
            return Ok(());
        }
        match packet.extension {
            Extension::AtomicAck(aeth, original) => match aeth.syndrome {
                Syndrome::Ack { .. } => self.take_atomic(cx, link, now_ns, psn, original),
                _ => Err(WcStatus::BadRespErr),
            },
            Extension::Ack(aeth) if packet.bth.opcode.is_read_response() => match aeth.syndrome {
                Syndrome::Ack { .. } => self.take_read(cx, link, now_ns, psn, packet.payload),
                _ => Err(WcStatus::BadRespErr),
            },
            Extension::None => self.take_read(cx, link, now_ns, psn, packet.payload),
            Extension::Ack(aeth) => self.take_acknowledge(cx, link, now_ns, psn, aeth.syndrome),
            _ => Err(WcStatus::BadRespErr),
        }
    }

    fn take_acknowledge<M: RegionMemory>(
        &mut self,
        cx: &mut Shared<M>,
        link: &Link,
        now_ns: u64,
        psn: u64,
        syndrome: Syndrome,
    ) -> Result<(), WcStatus> {
        match syndrome {
            Syndrome::Ack { .. } => {
                self.acknowledge_before(cx, link, now_ns, psn + 1);
                if self.unacked <= psn { self.missing_response(cx) } else { Ok(()) }
            }
            Syndrome::RnrNak { timer } => {
                cx.counters.rnr_naks_received += 1;
                self.acknowledge_before(cx, link, now_ns, psn);
                if self.unacked < psn {
                    return self.missing_response(cx);
                }
                if self.rnr_deadline != NEVER {
                    return Ok(());
                }
                if self.rnr_retries_left == 0 {
                    return Err(WcStatus::RnrRetryExcErr);
                }
                self.rnr_retries_left -= (self.rnr_retries_left != 7) as u8;
                self.go_back();
                self.rnr_deadline = now_ns.saturating_add(rnr_timer_ns(timer));
                cx.note_deadline(self.rnr_deadline);
                Ok(())
            }
            Syndrome::Nak(NakCode::SequenceError) => {
                cx.counters.naks_received += 1;
                self.acknowledge_before(cx, link, now_ns, psn);
                self.retry_once()
            }
            Syndrome::Nak(code) => {
                cx.counters.naks_received += 1;
                self.acknowledge_before(cx, link, now_ns, psn);
                if self.unacked < psn {
                    return self.missing_response(cx);
                }
                Err(match code {
                    NakCode::RemoteAccessError => WcStatus::RemAccessErr,
                    NakCode::InvalidRequest | NakCode::InvalidRdRequest => WcStatus::RemInvReqErr,
                    _ => WcStatus::RemOpErr,
                })
            }
            Syndrome::Reserved(_) => Err(WcStatus::BadRespErr),
        }
    }

    fn take_read<M: RegionMemory>(
        &mut self,
        cx: &mut Shared<M>,
        link: &Link,
        now_ns: u64,
        psn: u64,
        payload: &[u8],
    ) -> Result<(), WcStatus> {
        self.acknowledge_before(cx, link, now_ns, psn);
        if self.unacked < psn {
            return self.missing_response(cx);
        }
        let entry = *self.entry(self.head);
        let offset = (psn - entry.first_psn) * link.mtu;
        if entry.kind != Kind::Read || payload.len() as u64 != (entry.length - offset).min(link.mtu) {
            return Err(WcStatus::BadRespErr);
        }
        entry.pieces.scatter(&mut cx.regions, link.domain, offset, payload).map_err(|_| WcStatus::LocProtErr)?;
        let next = psn + 1;
        let ends_request = next == entry.end_psn() || (next - entry.first_psn).is_multiple_of(self.chunk);
        self.take_result(cx, link, now_ns, ends_request);
        Ok(())
    }

    fn take_atomic<M: RegionMemory>(
        &mut self,
        cx: &mut Shared<M>,
        link: &Link,
        now_ns: u64,
        psn: u64,
        original: u64,
    ) -> Result<(), WcStatus> {
        self.acknowledge_before(cx, link, now_ns, psn);
        if self.unacked < psn {
            return self.missing_response(cx);
        }
        let entry = *self.entry(self.head);
        if !entry.kind.is_atomic() {
            return Err(WcStatus::BadRespErr);
        }
        entry
            .pieces
            .scatter(&mut cx.regions, link.domain, 0, &original.to_ne_bytes())
            .map_err(|_| WcStatus::LocProtErr)?;
        self.take_result(cx, link, now_ns, true);
        Ok(())
    }

    /// The response at `unacked` is in memory.
    fn take_result<M: RegionMemory>(&mut self, cx: &mut Shared<M>, link: &Link, now_ns: u64, ends_request: bool) {
        self.unacked += 1;
        // Only a request sent since the last way back counts as outstanding.
        if ends_request && self.send_psn >= self.unacked {
            self.outstanding_results = self.outstanding_results.saturating_sub(1);
        }
        if self.unacked == self.entry(self.head).end_psn() {
            self.retire(cx, link, WcStatus::Success);
        }
        self.progressed(cx, link, now_ns);
    }

    /// Acknowledges SENDs and WRITEs below `limit`, up to the first READ or atomic without response.
    fn acknowledge_before<M: RegionMemory>(&mut self, cx: &mut Shared<M>, link: &Link, now_ns: u64, limit: u64) {
        let before = self.unacked;
        while self.unacked < limit && !self.is_empty() {
            let entry = self.entry(self.head);
            if entry.kind.has_result() {
                break;
            }
            let end = entry.end_psn();
            self.unacked = limit.min(end);
            if self.unacked == end {
                self.retire(cx, link, WcStatus::Success);
            }
        }
        if self.unacked != before {
            self.progressed(cx, link, now_ns);
        }
    }

    fn progressed<M: RegionMemory>(&mut self, cx: &mut Shared<M>, link: &Link, now_ns: u64) {
        self.catch_up();
        self.reload_retries();
        self.rnr_deadline = NEVER;
        self.ack_deadline = NEVER;
        if self.unacked < self.send_psn {
            self.start_ack_timer(cx, now_ns);
        }
        if self.draining {
            self.report_drained(cx, link);
        }
    }

    /// Reports the end of draining once.
    pub(crate) fn report_drained<M: RegionMemory>(&mut self, cx: &mut Shared<M>, link: &Link) {
        let between_requests = self.is_empty() || self.entry(self.head).first_psn == self.unacked;
        if between_requests && self.unacked == self.sent_end {
            cx.raise(Event::SendQueueDrained(link.number));
        }
    }

    /// A response that must have come before this one did not: go back to it (IBA 9.7.5.1.2, implied NAK).
    fn missing_response<M: RegionMemory>(&mut self, cx: &mut Shared<M>) -> Result<(), WcStatus> {
        cx.counters.out_of_order_responses += 1;
        self.retry_once()
    }

    fn retry_once(&mut self) -> Result<(), WcStatus> {
        if self.went_back || self.rnr_deadline != NEVER {
            return Ok(());
        }
        self.spend_retry()?;
        self.went_back = true;
        self.go_back();
        Ok(())
    }

    fn spend_retry(&mut self) -> Result<(), WcStatus> {
        self.retries_left = self.retries_left.checked_sub(1).ok_or(WcStatus::RetryExcErr)?;
        Ok(())
    }

    /// The deadlines that have come.
    ///
    /// # Errors
    /// The status with which the head request fails, and the queue pair with it.
    pub(crate) fn handle_deadlines<M: RegionMemory>(
        &mut self,
        cx: &mut Shared<M>,
        now_ns: u64,
    ) -> Result<bool, WcStatus> {
        let mut due = false;
        if self.rnr_deadline <= now_ns {
            self.rnr_deadline = NEVER;
            due = true;
        }
        if self.ack_deadline <= now_ns {
            cx.counters.timeouts += 1;
            self.spend_retry()?;
            self.went_back = false;
            self.go_back();
            due = true;
        }
        Ok(due)
    }

    pub(crate) fn deadline(&self) -> u64 {
        self.ack_deadline.min(self.rnr_deadline)
    }
}
