//! Booleans: 128 bytes of bits per block.

use super::u64_at;

/// Bytes of a block.
pub(crate) const BLOCK_BYTES: usize = 128;

/// Encode: bit `i` of `words` is row `i`. Whole blocks.
pub(crate) fn encode(words: &[u64], rows: usize) -> Vec<u8> {
    let mut out: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    out.resize(rows.div_ceil(crate::BLOCK_ROWS) * BLOCK_BYTES, 0);
    out
}

/// Decode: the bits of a block of [`BLOCK_BYTES`].
pub(crate) fn decode(block: &[u8], out: &mut [u64; 16]) {
    for (index, word) in out.iter_mut().enumerate() {
        *word = u64_at(block, index * 8);
    }
}
