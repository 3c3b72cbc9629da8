//! rxe as it asks: its send queue, its retries, and what it takes for an answer.

use std::collections::VecDeque;

use verbs_shim::soft::packet::*;

use super::{DEPTH, Kind, MTU, Owned, begins, distance, ends, plus};

/// rxe sends no further ahead of what is acknowledged (`RXE_MAX_UNACKED_PSNS`).
const AHEAD_MAX: i64 = 128;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Progress {
    Posted,
    Processing,
    Pending,
}

#[derive(Debug)]
pub struct Request {
    pub kind: Kind,
    pub offset: usize,
    pub length: usize,
    /// WRITE: bytes still to be sent. READ: bytes still to be received.
    left: usize,
    at: usize,
    first: u32,
    last: u32,
    progress: Progress,
    counts_as_read: bool,
    pub received: Vec<u8>,
}

/// rxe as it asks.
pub struct Requester {
    pub queue: VecDeque<Request>,
    next: usize,
    psn: u32,
    opcode: Option<Opcode>,
    acknowledged: u32,
    response: Option<Opcode>,
    reads_left: usize,
    need_retry: bool,
    started_retry: bool,
    unasked: usize,
    pub done: Vec<Request>,
}

impl Requester {
    pub fn new(psn: u32) -> Self {
        Requester {
            queue: VecDeque::new(),
            next: 0,
            psn,
            opcode: None,
            acknowledged: psn,
            response: None,
            reads_left: DEPTH,
            need_retry: false,
            started_retry: false,
            unasked: 0,
            done: Vec::new(),
        }
    }

    pub fn post(&mut self, kind: Kind, offset: usize, length: usize) {
        let received = vec![0; if kind == Kind::Write { 0 } else { length }];
        let request = Request {
            kind,
            offset,
            length,
            left: length,
            at: offset,
            first: 0,
            last: 0,
            progress: Progress::Posted,
            counts_as_read: false,
            received,
        };
        self.queue.push_back(request);
    }

    fn go_back(&mut self) {
        self.next = 0;
        self.psn = self.acknowledged;
        self.opcode = None;
        for (index, request) in self.queue.iter_mut().enumerate() {
            if request.progress == Progress::Posted {
                break;
            }
            request.at = request.offset;
            if index > 0 || request.kind != Kind::Read {
                request.left = request.length;
            }
            if index == 0 && request.kind == Kind::Write {
                for _ in 0..distance(request.first, self.acknowledged) {
                    self.opcode = Some(write_opcode(self.opcode, request.left));
                    request.left -= request.left.min(MTU);
                }
            }
            if index == 0 && request.kind == Kind::Read {
                request.at += (request.length - request.left) / MTU * MTU;
            }
            request.progress = Progress::Posted;
        }
    }

    /// The next packet: opcode, PSN, whether it asks for an acknowledgement, offset and length of its RETH, payload
    /// as offset and length.
    #[expect(clippy::type_complexity, reason = "used once")]
    pub fn send(&mut self) -> Option<(Opcode, u32, bool, usize, usize, (usize, usize))> {
        if std::mem::take(&mut self.need_retry) {
            self.go_back();
        }
        if distance(self.acknowledged, self.psn) > AHEAD_MAX {
            return None;
        }
        let request = self.queue.get_mut(self.next)?;
        let opcode = match request.kind {
            Kind::Write => write_opcode(self.opcode, request.left),
            Kind::Read => Opcode::ReadRequest,
            Kind::Add => Opcode::FetchAdd,
        };
        if request.kind != Kind::Write && !request.counts_as_read {
            self.reads_left = self.reads_left.checked_sub(1)?;
            request.counts_as_read = true;
        }
        let payload = if request.kind == Kind::Write { request.left.min(MTU) } else { 0 };
        let sent = (request.offset + request.length - request.left, payload);
        let reth = request.left;
        let ask = ends(opcode) || self.unasked > 64;
        self.unasked = if ask { 0 } else { self.unasked + 1 };
        let packets = request.left.div_ceil(MTU).max(1);
        request.left -= payload;
        request.progress = if ends(opcode) { Progress::Pending } else { Progress::Processing };
        let psn = self.psn;
        if begins(opcode) {
            (request.first, request.last) = (psn, plus(psn, packets - 1));
        }
        self.psn = plus(psn, if request.kind == Kind::Read { packets } else { 1 });
        self.opcode = Some(opcode);
        self.next += ends(opcode) as usize;
        Some((opcode, psn, ask, request.at, reth, sent))
    }

    pub fn state(&self) -> (usize, u32, u32, Option<Opcode>, usize, bool, bool) {
        (self.next, self.psn, self.acknowledged, self.response, self.reads_left, self.need_retry, self.started_retry)
    }

    fn finish(&mut self) {
        let request = self.queue.pop_front().unwrap();
        self.reads_left += request.counts_as_read as usize;
        self.next = self.next.checked_sub(1).expect("rxe completes a request that it is in the middle of sending");
        self.done.push(request);
    }

    pub fn retry(&mut self, timeout: bool) {
        let begun = self.queue.front().is_some_and(|request| request.progress != Progress::Posted);
        if begun && (timeout || !self.started_retry) && distance(self.acknowledged, self.psn) > 0 {
            (self.need_retry, self.started_retry) = (true, true);
        }
    }

    pub fn receive(&mut self, packet: &Owned) {
        let (psn, opcode) = (packet.bth.psn, packet.bth.opcode);
        loop {
            let Some(head) = self.queue.front_mut() else { return };
            let reads = head.kind != Kind::Write;
            if head.progress == Progress::Posted {
                return;
            }
            if distance(head.last, psn) > 0 {
                if head.progress != Progress::Pending {
                    return;
                }
                if reads {
                    return self.retry(false);
                }
                self.started_retry = false;
                if distance(self.acknowledged, head.last) >= 0 {
                    self.acknowledged = plus(head.last, 1);
                    self.response = None;
                }
                self.finish();
                continue;
            }
            let ahead = distance(self.acknowledged, psn);
            if ahead < 0 {
                if psn == head.last {
                    self.finish();
                }
                return;
            }
            if ahead > 0 && reads {
                return;
            }
            break;
        }
        let head = self.queue.front_mut().unwrap();
        match self.response {
            None => assert!(begins(opcode), "rxe breaks the connection: {packet:?} begins nothing"),
            Some(_) => {
                let goes_on = matches!(opcode, Opcode::ReadResponseMiddle | Opcode::ReadResponseLast);
                let restarts = (psn == head.first && opcode == Opcode::ReadResponseFirst)
                    || (head.first == head.last && opcode == Opcode::ReadResponseOnly);
                assert!(goes_on || restarts, "rxe breaks the connection: {packet:?} in a READ of {}", head.first);
            }
        }
        let completes = match (opcode, packet.extension) {
            (Opcode::AtomicAcknowledge, Extension::AtomicAck(_, original)) => {
                assert_eq!(head.kind, Kind::Add);
                head.received.copy_from_slice(&original.to_ne_bytes());
                head.left = 0;
                true
            }
            (Opcode::Acknowledge, Extension::Ack(aeth)) => match aeth.syndrome {
                Syndrome::Ack { .. } => head.progress == Progress::Pending && head.last == psn,
                Syndrome::Nak(NakCode::SequenceError) => {
                    if distance(self.acknowledged, psn) > 0 {
                        self.acknowledged = psn;
                    }
                    return self.retry(false);
                }
                other => panic!("the engine answers {other:?}"),
            },
            _ => {
                assert_eq!(head.kind, Kind::Read, "rxe breaks the connection: {packet:?}");
                let at = head.length - head.left;
                head.received[at..at + packet.payload.len()].copy_from_slice(&packet.payload);
                head.left -= packet.payload.len();
                head.left == 0 && ends(opcode)
            }
        };
        self.started_retry = false;
        if completes {
            self.finish();
        }
        self.response = (!ends(opcode)).then_some(opcode);
        self.acknowledged = plus(psn, 1);
    }
}

fn write_opcode(before: Option<Opcode>, left: usize) -> Opcode {
    let inside = matches!(before, Some(Opcode::WriteFirst | Opcode::WriteMiddle));
    match (inside, left <= MTU) {
        (true, true) => Opcode::WriteLast,
        (true, false) => Opcode::WriteMiddle,
        (false, true) => Opcode::WriteOnly,
        (false, false) => Opcode::WriteFirst,
    }
}
