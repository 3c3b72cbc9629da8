//! Frame of reference and bit packing of one block: values as distances from the block's minimum.
//!
//! Called by `integers` and, for lengths, by `text`.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::byte_set::ByteSet;
use crate::kernels::{self, Native, RangeMask, Word, with_word};

/// Encode: appends `128 * width` bytes.
pub(crate) fn encode(values: &[i64], base: i64, width: usize, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + width * 128, 0);
    with_word!(width, W => {
        let mut words = [W::default(); 1024];
        for (word, value) in words.iter_mut().zip(values) {
            *word = <W as Word>::truncate(value.wrapping_sub(base) as u64);
        }
        W::pack(width, &words, &mut out[start..]);
    });
}

/// Decode: `out[i] = base + value * scale`, for as many values as `out` has (at most 1,024).
#[inline]
pub(crate) fn decode<N: Native>(packed: &[u8], width: usize, base: u64, scale: u64, out: &mut [N]) {
    with_word!(width, W => {
        let mut words = MaybeUninit::uninit();
        kernels::widen::<W, N>(W::unpack(width, packed, &mut words), base, scale, out);
    });
}

/// Compare: which distances lie in one of `ranges` (inclusive). Distances fit `width` bits.
#[inline]
pub(crate) fn compare(packed: &[u8], width: usize, ranges: &[(u64, u64)], mask: &mut [u64; 16]) {
    with_word!(width, W => {
        let bounds = |(low, high): (u64, u64)| (<W as Word>::truncate(low), <W as Word>::truncate(high - low));
        if let ([range], 1..) = (ranges, width) {
            let (low, span) = bounds(*range);
            *mask = W::packed_range_mask(width, packed, low, span);
            return;
        }
        let mut words = MaybeUninit::uninit();
        let words: &[W; 1024] = W::unpack(width, packed, &mut words);
        *mask = [0; 16];
        for range in ranges {
            let (low, span) = bounds(*range);
            for (mask, hits) in mask.iter_mut().zip(W::range_mask(words, low, span)) {
                *mask |= hits;
            }
        }
    });
}

/// Compare: which distances, of at most 8 bits, are in `set`.
pub(crate) fn members(packed: &[u8], width: usize, set: &ByteSet, mask: &mut [u64; 16]) {
    let mut words = MaybeUninit::uninit();
    set.hits(<u8 as Word>::unpack(width, packed, &mut words), mask);
}

/// The widest values of which 64 bits hold the sum of a block.
pub(crate) const SUM_WIDTH_MAX: usize = 54;

/// The sum of all distances, of at most [`SUM_WIDTH_MAX`] bits.
pub(crate) fn sum(packed: &[u8], width: usize) -> u64 {
    with_word!(width, W => {
        let mut words = MaybeUninit::uninit();
        kernels::sum(<W as Word>::unpack(width, packed, &mut words))
    })
}

/// So many rows are quicker fetched one by one than by unpacking the block.
const FETCHED_SINGLY_MAX: usize = 47;

/// Whether the next block's lines should be asked for: when `rows` of a block are fetched one by one and touch a good part of
/// its lines (a quarter at least of `2 * width`), those of the next are there when it is its turn, if it keeps as
/// many. No hardware prefetcher sees a pattern in such rows. Measured at 24 bits: 16 rows of a block 15% faster, 8 and 33 as
/// before; q6, whose rows are 19, 10%. Of words of 64 bits, several columns' lines would crowd the first cache.
#[inline]
pub(crate) fn wants_next_block(width: usize, rows: usize) -> bool {
    width <= 32 && (width / 2..=FETCHED_SINGLY_MAX).contains(&rows)
}

/// Take: `out[k] = base + value[indices[k]] * scale`.
#[inline]
pub(crate) fn take<N: Native>(packed: &[u8], width: usize, indices: &[u16], base: u64, scale: u64, out: &mut [N]) {
    with_word!(width, W => {
        if indices.len() <= FETCHED_SINGLY_MAX {
            kernels::take_each(PhantomData::<W>, width, packed, indices, base, scale, out);
        } else {
            let mut words = MaybeUninit::uninit();
            kernels::gather::<W, N>(W::unpack(width, packed, &mut words), indices, base, scale, out);
        }
    });
}

/// One value's distance.
#[inline]
pub(crate) fn get(packed: &[u8], width: usize, index: usize) -> u64 {
    with_word!(width, W => W::get(width, packed, index))
}
