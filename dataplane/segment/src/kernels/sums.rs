//! Sums of a block's words, and prefix sums of its differences: all of them, or only where rows are wanted.
//!
//! Owns [`sum`], called by the packed encoding, and [`RunningSums`], called by the delta encoding.
//!
//! Invariant: sums wrap like `u64`; those of 8 and 16-bit words are held in 32 bits, which they can't leave (1,024 * 65,535).
//!
//! Cost sketch, AVX2, narrow words: eight values are widened, added to themselves three times shifted, and to the sum
//! before them, which is known 4 cycles after the one before that: 0.5 cycles a value. One by one it is a cycle.

use super::{Native, Word, dispatch};
use crate::simd::SimdLevel;

#[inline(always)]
fn sum_body<W: Word>(words: &[W; 1024]) -> u64 {
    words.iter().fold(0, |sum: u64, word| sum.wrapping_add((*word).into()))
}

dispatch! {
    /// The sum of a block's words (wrapping).
    pub(crate) fn sum<W: Word>(words: &[W; 1024]) -> u64 = sum_body;
}

/// Values that are summed before those that are wanted are picked.
const PART: usize = 128;

/// Up to as many rows of a block are summed up to each by itself.
const SPARSE: usize = 32;

/// A word whose blocks can be summed up.
pub(crate) trait RunningSums: Sized {
    /// Holds the sum of a block.
    type Sum: Copy + Default + Into<u64>;
    /// `sums[k] = words[0] + ... + words[indices[k]]` for at most [`SPARSE`] ascending indices, sooner than by running sums;
    /// false where there is no such way.
    fn few_sums(words: &[Self; 1024], indices: &[u16], sums: &mut [u32; SPARSE]) -> bool;
    /// `out[i] = before + words[0] + ... + words[i]`; returns the last.
    fn running_sums(words: &[Self; PART], before: Self::Sum, out: &mut [Self::Sum; PART]) -> Self::Sum;
}

macro_rules! running_sums {
    ($word:ty, $sum:ty $(, $avx2:ident $(, $few:ident)?)?) => {
        impl RunningSums for $word {
            type Sum = $sum;
            #[inline(always)]
            fn few_sums(words: &[Self; 1024], indices: &[u16], sums: &mut [u32; SPARSE]) -> bool {
                $($(
                    #[cfg(target_arch = "x86_64")]
                    if SimdLevel::current() >= SimdLevel::Avx2 {
                        // SAFETY: the level in effect is never above what the CPU supports.
                        unsafe { x86::$few(words, indices, sums) };
                        return true;
                    }
                )?)?
                let _ = (words, indices, sums);
                false
            }
            #[inline(always)]
            fn running_sums(words: &[Self; PART], before: $sum, out: &mut [$sum; PART]) -> $sum {
                $(
                    #[cfg(target_arch = "x86_64")]
                    if SimdLevel::current() >= SimdLevel::Avx2 {
                        // SAFETY: the level in effect is never above what the CPU supports.
                        return unsafe { x86::$avx2(words, before, out) };
                    }
                )?
                let mut sum = before;
                for (out, word) in out.iter_mut().zip(words) {
                    sum = sum.wrapping_add((*word).into());
                    *out = sum;
                }
                sum
            }
        }
    };
}

running_sums!(u8, u32, running_u8, few_u8);
running_sums!(u16, u32, running_u16);
running_sums!(u32, u64);
running_sums!(u64, u64);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{PART, SPARSE};

    macro_rules! running {
        ($name:ident, $word:ty, $widen:ident) => {
            #[inline]
            #[target_feature(enable = "avx2")]
            pub(super) fn $name(words: &[$word; PART], before: u32, out: &mut [u32; PART]) -> u32 {
                let mut before = _mm256_set1_epi32(before as i32);
                let last = _mm256_set1_epi32(7);
                for (out, words) in out.as_chunks_mut::<8>().0.iter_mut().zip(words.as_chunks::<8>().0) {
                    let mut bytes = [0u8; 16];
                    for (bytes, word) in bytes.chunks_exact_mut(size_of::<$word>()).zip(words) {
                        bytes.copy_from_slice(&word.to_le_bytes());
                    }
                    // SAFETY: the array is 16 bytes; the load is unaligned.
                    let mut v = $widen(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) });
                    // Within each half, then the lower half's sum (and zeros, which nothing waits for) to the upper.
                    v = _mm256_add_epi32(v, _mm256_slli_si256::<4>(v));
                    v = _mm256_add_epi32(v, _mm256_slli_si256::<8>(v));
                    let lower = _mm256_permute2x128_si256::<0x08>(v, v);
                    v = _mm256_add_epi32(v, _mm256_shuffle_epi32::<0xff>(lower));
                    let sums = _mm256_add_epi32(v, before);
                    before = _mm256_add_epi32(before, _mm256_permutevar8x32_epi32(v, last));
                    // SAFETY: the array is 32 bytes; the store is unaligned.
                    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), sums) };
                }
                _mm256_extract_epi32::<0>(before) as u32
            }
        };
    }

    /// Sums of 32 bytes stay in four lanes until a row is wanted. Indices ascend and lie in the block.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn few_u8(words: &[u8; 1024], indices: &[u16], sums: &mut [u32; SPARSE]) {
        const POSITIONS: [i8; 32] = {
            let mut positions = [0; 32];
            let mut position = 0;
            while position < 32 {
                positions[position] = position as i8;
                position += 1;
            }
            positions
        };
        // SAFETY: the array is 32 bytes; the load is unaligned.
        let positions = unsafe { _mm256_loadu_si256(POSITIONS.as_ptr().cast()) };
        let zero = _mm256_setzero_si256();
        let mut before = zero;
        let mut wanted = sums.iter_mut().zip(indices).peekable();
        for (group, words) in words.as_chunks::<32>().0.iter().enumerate() {
            // SAFETY: the chunk is 32 bytes; the load is unaligned.
            let v = unsafe { _mm256_loadu_si256(words.as_ptr().cast()) };
            while let Some((sum, index)) = wanted.next_if(|(_, index)| usize::from(**index) / 32 == group) {
                let beyond = _mm256_cmpgt_epi8(positions, _mm256_set1_epi8((index % 32) as i8));
                let lanes = _mm256_add_epi64(before, _mm256_sad_epu8(_mm256_andnot_si256(beyond, v), zero));
                let two = _mm_add_epi64(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256::<1>(lanes));
                *sum = (_mm_cvtsi128_si32(two) as u32).wrapping_add(_mm_extract_epi32::<2>(two) as u32);
            }
            if wanted.peek().is_none() {
                return;
            }
            before = _mm256_add_epi64(before, _mm256_sad_epu8(v, zero));
        }
    }

    running!(running_u8, u8, _mm256_cvtepu8_epi32);
    running!(running_u16, u16, _mm256_cvtepu16_epi32);
}

#[inline(always)]
fn prefix_sum_body<W: Word>(words: &[W; 1024], first: u64, step: u64, out: &mut [i64; 1024]) {
    let (mut sums, mut before) = ([W::Sum::default(); PART], W::Sum::default());
    let parts = words.as_chunks::<PART>().0.iter().zip(out.as_chunks_mut::<PART>().0).enumerate();
    for (part, (words, out)) in parts {
        before = W::running_sums(words, before, &mut sums);
        let first = first.wrapping_add(step.wrapping_mul((part * PART) as u64));
        for (position, (out, sum)) in out.iter_mut().zip(&sums).enumerate() {
            let sum: u64 = (*sum).into();
            *out = first.wrapping_add(step.wrapping_mul(position as u64)).wrapping_add(sum) as i64;
        }
    }
}

#[inline(always)]
fn take_prefix_sums_body<W: Word, N: Native>(
    words: &[W; 1024],
    (first, step): (u64, u64),
    indices: &[u16],
    (base, scale): (u64, u64),
    out: &mut [N],
) {
    let value = |index: u16, sum: u64| first.wrapping_add(step.wrapping_mul(u64::from(index))).wrapping_add(sum);
    let mut few = [0; SPARSE];
    if indices.len() <= SPARSE && W::few_sums(words, indices, &mut few) {
        for ((out, index), sum) in out.iter_mut().zip(indices).zip(few) {
            *out = N::from_u64(base.wrapping_add(value(*index, sum.into()).wrapping_mul(scale)));
        }
        return;
    }
    let (mut sums, mut before) = ([W::Sum::default(); PART], W::Sum::default());
    let mut next = 0;
    for (part, words) in words.as_chunks::<PART>().0.iter().enumerate() {
        if next == indices.len() {
            return;
        }
        before = W::running_sums(words, before, &mut sums);
        let count = indices[next..].partition_point(|index| usize::from(*index) < (part + 1) * PART);
        let wanted = out[next..].iter_mut().zip(&indices[next..next + count]);
        let value = |index: u16| value(index, sums[usize::from(index) % PART].into());
        if scale == 1 {
            wanted.for_each(|(out, index)| *out = N::from_u64(base.wrapping_add(value(*index))));
        } else {
            wanted.for_each(|(out, index)| *out = N::from_u64(base.wrapping_add(value(*index).wrapping_mul(scale))));
        }
        next += count;
    }
}

dispatch! {
    /// `out[i] = first + sum of (words[j] + step) for 1 <= j <= i`; `words[0]` is 0.
    pub(crate) fn prefix_sum<W: Word>(words: &[W; 1024], first: u64, step: u64, out: &mut [i64; 1024]) = prefix_sum_body;
}
dispatch! {
    /// `out[k] = base + scale * p`, where `p` is the [`prefix_sum`] (of `first_step`) at `indices[k]`; the indices
    /// ascend.
    pub(crate) fn take_prefix_sums<W: Word, N: Native>(
        words: &[W; 1024], first_step: (u64, u64), indices: &[u16], base_scale: (u64, u64), out: &mut [N]
    ) = take_prefix_sums_body;
}
