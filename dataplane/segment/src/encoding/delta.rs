//! Differences of one block: first value, least difference, and bit-packed distances from that.
//!
//! Subtracting the least difference keeps ascending keys as narrow as a zigzag code would and needs no
//! sign; evenly spaced values (`_rowid`) take no bits at all. Arithmetic wraps, so every `i64` sequence has
//! an encoding. Called by `integers`.
//!
//! Payload: first value (8 bytes), least difference (8 bytes), `128 * width` bytes.

use std::mem::MaybeUninit;

use super::u64_at;
use crate::kernels::{self, Native, Word, with_word};

/// Bytes before the packed differences.
pub(crate) const PREFIX_BYTES: usize = 16;

/// Encode: `least` and `width` are of the differences between neighbours.
pub(crate) fn encode(values: &[i64], least: i64, width: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&values.first().copied().unwrap_or(0).to_le_bytes());
    out.extend_from_slice(&least.to_le_bytes());
    let start = out.len();
    out.resize(start + width * 128, 0);
    with_word!(width, W => {
        let mut words = [W::default(); 1024];
        for (word, pair) in words[1..].iter_mut().zip(values.windows(2)) {
            *word = <W as Word>::truncate(pair[1].wrapping_sub(pair[0]).wrapping_sub(least) as u64);
        }
        W::pack(width, &words, &mut out[start..]);
    });
}

/// Decode: all 1,024 values; those past the block's rows are arbitrary. `payload` is
/// [`PREFIX_BYTES`]` + 128 * width` long. Compare decodes first: neighbours depend on each other.
pub(crate) fn decode(payload: &[u8], width: usize, out: &mut [i64; 1024]) {
    let (first, step) = (u64_at(payload, 0), u64_at(payload, 8));
    with_word!(width, W => {
        let mut words = MaybeUninit::uninit();
        let words: &mut [W; 1024] = W::unpack(width, &payload[PREFIX_BYTES..], &mut words);
        words[0] = W::default();
        kernels::prefix_sum(words, first, step, out);
    });
}

/// Take: `out[k] = base + value[indices[k]] * scale`; the indices ascend.
pub(crate) fn take<N: Native>(payload: &[u8], width: usize, indices: &[u16], base: u64, scale: u64, out: &mut [N]) {
    let (first, step) = (u64_at(payload, 0), u64_at(payload, 8));
    with_word!(width, W => {
        let mut words = MaybeUninit::uninit();
        let words: &mut [W; 1024] = W::unpack(width, &payload[PREFIX_BYTES..], &mut words);
        words[0] = W::default();
        kernels::take_prefix_sums(words, (first, step), indices, (base, scale), out);
    });
}
