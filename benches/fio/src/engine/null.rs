//! `ioengine=null`: ops complete at once and nothing is transferred. Measures the cost of measuring.
//!
//! Cost: a copy of the batch's slots; with the job's loop 5 million ops a second and core are wanted.

use std::time::Duration;

use super::memory::{Buffers, Pages};
use super::{Completion, Engine, EngineContext, EngineError, EngineFacts, EngineKind, Op};

/// The null engine.
pub struct Null;

impl EngineKind for Null {
    fn name(&self) -> &'static str {
        "null"
    }

    fn help(&self) -> &'static str {
        "Ops complete at once: the cost of measuring"
    }

    fn facts(&self) -> EngineFacts {
        EngineFacts { uses_files: false, stores: false, writes: true, one_at_a_time: false, survives_errors: false }
    }

    fn open(&self, context: &EngineContext) -> Result<Box<dyn Engine>, EngineError> {
        let buffers = Buffers::new(context.depth, context.buffer_bytes, Pages::Small)
            .map_err(EngineError::system("allocating buffers"))?;
        Ok(Box::new(NullEngine { buffers, done: Vec::with_capacity(context.depth as usize) }))
    }
}

struct NullEngine {
    buffers: Buffers,
    done: Vec<Completion>,
}

impl Engine for NullEngine {
    fn submit(&mut self, ops: &[Op]) -> Result<usize, EngineError> {
        self.done.extend(ops.iter().map(|op| Completion { slot: op.slot, outcome: i64::from(op.length) }));
        Ok(ops.len())
    }

    fn complete(
        &mut self,
        _min: usize,
        max: usize,
        _timeout: Duration,
        completions: &mut Vec<Completion>,
    ) -> Result<(), EngineError> {
        let left = self.done.len().saturating_sub(max);
        completions.extend(self.done.drain(left..));
        Ok(())
    }

    fn buffer(&mut self, slot: u32) -> &mut [u8] {
        self.buffers.slot(slot)
    }
}
