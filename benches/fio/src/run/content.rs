//! What is written when nothing is verified: random bytes, slightly changed for each write, or zeros.

use crate::job::JobOptions;
use crate::pattern::Rng;

pub(crate) struct Content {
    rng: Rng,
    seed: u64,
    zeros: bool,
    refill: bool,
    scramble: bool,
}

const SECTOR_BYTES: usize = 512;

impl Content {
    pub(crate) fn new(options: &JobOptions, seed: u64) -> Content {
        Content {
            rng: Rng::new(seed.rotate_left(17)),
            seed,
            zeros: options.zero_buffers,
            refill: options.refill_buffers,
            scramble: options.scramble_buffers,
        }
    }

    /// Before the first write.
    pub(crate) fn prepare(&self, slot: u32, buffer: &mut [u8]) {
        if !self.zeros {
            Rng::new(self.seed ^ u64::from(slot)).fill(buffer);
        }
    }

    /// Before each write.
    #[inline]
    pub(crate) fn renew(&mut self, buffer: &mut [u8]) {
        if self.zeros {
            return;
        }
        if self.refill {
            return self.rng.fill(buffer);
        }
        if self.scramble {
            let stamp = self.rng.next().to_le_bytes();
            for sector in buffer.chunks_mut(SECTOR_BYTES) {
                let length = sector.len().min(8);
                sector[..length].copy_from_slice(&stamp[..length]);
            }
        }
    }
}
