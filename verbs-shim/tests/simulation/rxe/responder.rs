//! rxe as it answers: once for each new request, from what it kept for a repeated one.

use std::collections::VecDeque;

use verbs_shim::soft::packet::*;

use super::{DEPTH, MTU, Owned, START, distance, ends, plus};

/// A packet to be sent: opcode, PSN, extension, payload.
type Answer = (Opcode, u32, Extension, Vec<u8>);

/// What rxe keeps of a READ or atomic that it answered.
#[derive(Debug, Clone, Copy)]
struct Answered {
    first: u32,
    last: u32,
    start: u64,
    length: u64,
    original: u64,
}

/// rxe as it answers.
pub struct Responder {
    pub memory: Vec<u8>,
    psn: u32,
    msn: u32,
    acknowledge_before: u32,
    nak_sent: bool,
    write: u64,
    answered: VecDeque<Answered>,
}

impl Responder {
    pub fn new(memory: Vec<u8>, psn: u32) -> Self {
        Responder { memory, psn, msn: 0, acknowledge_before: psn, nak_sent: false, write: 0, answered: VecDeque::new() }
    }

    pub fn receive(&mut self, packet: &Owned, out: &mut Vec<Answer>) {
        let (psn, opcode) = (packet.bth.psn, packet.bth.opcode);
        let ahead = distance(self.psn, psn);
        if ahead > 0 {
            if !std::mem::replace(&mut self.nak_sent, true) {
                out.push(self.acknowledge(self.psn, Syndrome::Nak(NakCode::SequenceError)));
            }
            return;
        }
        if ahead < 0 {
            return self.repeat(packet, out);
        }
        self.nak_sent = false;
        match packet.extension {
            Extension::Rdma(reth) if opcode == Opcode::ReadRequest => {
                self.msn += 1;
                let packets = (reth.length as usize).div_ceil(MTU).max(1);
                self.keep(psn, plus(psn, packets - 1), reth.address, reth.length as u64, 0);
                self.read(psn, &reth, false, out);
                self.psn = plus(psn, packets);
                return;
            }
            Extension::Atomic(atomic) => {
                self.msn += 1;
                let place = &mut self.memory[(atomic.address - START) as usize..][..8];
                let original = u64::from_ne_bytes((&*place).try_into().unwrap());
                place.copy_from_slice(&original.wrapping_add(atomic.swap_or_add).to_ne_bytes());
                self.keep(psn, psn, 0, 0, original);
                out.push(self.atomic(psn, original));
            }
            extension => {
                if let Extension::Rdma(reth) = extension {
                    self.write = reth.address - START;
                }
                self.memory[self.write as usize..][..packet.payload.len()].copy_from_slice(&packet.payload);
                self.write += packet.payload.len() as u64;
                self.msn += ends(opcode) as u32;
                if packet.bth.ack_request {
                    out.push(self.acknowledge(psn, Syndrome::ACK));
                }
            }
        }
        self.psn = plus(psn, 1);
        self.acknowledge_before = self.psn;
    }

    fn repeat(&mut self, packet: &Owned, out: &mut Vec<Answer>) {
        let psn = packet.bth.psn;
        let found = self.answered.iter_mut().find(|one| distance(one.first, psn) >= 0 && distance(psn, one.last) >= 0);
        match packet.extension {
            Extension::Rdma(reth) if packet.bth.opcode == Opcode::ReadRequest => {
                let Some(found) = found else { return };
                let (start, length) = (reth.address, reth.length as u64);
                if start < found.start || length > found.length || start + length > found.start + found.length {
                    return;
                }
                // It narrows the start and keeps the length.
                found.start = start;
                let goes_on = psn != found.first;
                self.read(psn, &reth, goes_on, out);
            }
            Extension::Atomic(_) => {
                if let Some(&mut Answered { original, .. }) = found {
                    out.push(self.atomic(psn, original));
                }
            }
            _ => out.push(self.acknowledge((self.acknowledge_before.wrapping_sub(1)) & MASK_24, Syndrome::ACK)),
        }
    }

    fn keep(&mut self, first: u32, last: u32, start: u64, length: u64, original: u64) {
        if self.answered.len() == DEPTH {
            self.answered.pop_front();
        }
        self.answered.push_back(Answered { first, last, start, length, original });
    }

    fn read(&self, psn: u32, reth: &Reth, goes_on: bool, out: &mut Vec<Answer>) {
        let bytes = &self.memory[(reth.address - START) as usize..][..reth.length as usize];
        let packets = bytes.len().div_ceil(MTU).max(1);
        for index in 0..packets {
            let opcode = match (index == 0 && !goes_on, index + 1 == packets) {
                (true, true) => Opcode::ReadResponseOnly,
                (true, false) => Opcode::ReadResponseFirst,
                (false, true) => Opcode::ReadResponseLast,
                (false, false) => Opcode::ReadResponseMiddle,
            };
            let extension = match opcode {
                Opcode::ReadResponseMiddle => Extension::None,
                _ => Extension::Ack(Aeth { syndrome: Syndrome::ACK, msn: self.msn }),
            };
            let end = bytes.len().min((index + 1) * MTU);
            out.push((opcode, plus(psn, index), extension, bytes[index * MTU..end].to_vec()));
        }
    }

    fn acknowledge(&self, psn: u32, syndrome: Syndrome) -> Answer {
        (Opcode::Acknowledge, psn, Extension::Ack(Aeth { syndrome, msn: self.msn }), vec![])
    }

    fn atomic(&self, psn: u32, original: u64) -> Answer {
        let extension = Extension::AtomicAck(Aeth { syndrome: Syndrome::ACK, msn: self.msn }, original);
        (Opcode::AtomicAcknowledge, psn, extension, vec![])
    }
}
