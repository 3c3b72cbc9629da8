//! How many bits differ.
//!
//! Owns the kernel for packed bits. Called by [`super::Query`].
//!
//! Cost sketch: POPCNT takes 64 bits an instruction, three or four a cycle on recent cores; VPOPCNTDQ 512 bits. The loop
//! is plain: the compiler picks the instruction by the level. 384 bits are six words, 3 ns.

use super::Pick;
use crate::simd::{dispatch, prefetch};

#[inline(always)]
fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

#[inline(always)]
fn hamming_body(query: &[u8], rows: &[u8], dimension: usize, pick: Pick<'_>, out: &mut [f32]) {
    let stride = dimension.div_ceil(8);
    assert_eq!(query.len(), stride);
    // All bytes but the last, whose spare bits do not count, in words.
    let whole = (stride - 1) / 8 * 8;
    let spare = stride * 8 - dimension;
    let mask = u64::MAX >> (64 - (stride - whole) * 8 + spare);
    for (index, out) in out.iter_mut().enumerate() {
        if let Pick::Ids(ids) = pick
            && let Some(ahead) = ids.get(index + 4)
        {
            prefetch(rows, *ahead as usize * stride, stride);
        }
        let row = &rows[pick.at(index) * stride..][..stride];
        let words = query[..whole].chunks_exact(8).zip(row[..whole].chunks_exact(8));
        let count: u32 = words.map(|(q, x)| (word(q) ^ word(x)).count_ones()).sum();
        let rest = (word(&query[whole..]) ^ word(&row[whole..])) & mask;
        *out = (count + rest.count_ones()) as f32;
    }
}

dispatch! {
    /// Writes the number of bits in which each picked row differs from `query`.
    pub(super) fn hamming(query: &[u8], rows: &[u8], dimension: usize, pick: Pick<'_>, out: &mut [f32]) = hamming_body;
}
