//! After a verified job has written: every block is read again, as fast as the engine allows, and not measured.

use super::worker::{WAIT, Worker};
use crate::engine::{Completion, Op, OpKind};

impl Worker<'_> {
    /// Reads every block that was written, and checks that it is the last that was written there.
    pub(super) fn read_back(&mut self) {
        let Some(mut verifier) = self.verifier.take() else { return };
        self.free = (0..self.slots.len() as u32).rev().collect();
        let written = verifier.written(self.job.blocks[1].max() as u32);
        let mut next = written.iter();
        let mut broken = None;
        while !self.control.was_interrupted() {
            while let Some(slot) = self.free.pop() {
                let Some(planned) = next.next() else {
                    self.free.push(slot);
                    break;
                };
                let op =
                    Op { kind: OpKind::Read, slot, file: planned.file, length: planned.length, offset: planned.offset };
                self.slots[slot as usize].op = op;
                self.batch.push(op);
            }
            if self.batch.is_empty() && self.in_flight == 0 {
                break;
            }
            self.completions.clear();
            let stepped = self.engine.submit(&self.batch).and_then(|taken| {
                self.in_flight += taken;
                self.batch.drain(..taken);
                self.engine.complete(self.in_flight.min(1), self.slots.len(), WAIT, &mut self.completions)
            });
            if let Err(error) = stepped {
                broken = Some(error);
                break;
            }
            for Completion { slot, outcome } in self.completions.drain(..) {
                self.in_flight -= 1;
                self.free.push(slot);
                let op = self.slots[slot as usize].op;
                let whole = if outcome < 0 {
                    let reason = self.engine.error_text(outcome);
                    verifier.found.count(Some(format!("block at offset {}: cannot be read back: {reason}", op.offset)));
                    false
                } else {
                    let bytes = (outcome as usize).min(op.length as usize);
                    verifier.check(&self.engine.buffer(slot)[..bytes], op.file, op.offset, op.length)
                };
                if !whole && self.job.options.verify_fatal {
                    next = [].iter();
                }
            }
        }
        self.verifier = Some(verifier);
        if let Some(error) = broken {
            self.fail(error);
        }
    }
}
