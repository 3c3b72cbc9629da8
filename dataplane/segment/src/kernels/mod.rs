//! Kernels: tight loops over plain slices, one instance per SIMD level.
//!
//! Owns bit packing (the interleaved layout of FastLanes, Afroozeh and Boncz, VLDB 2023), range
//! comparison to bitmaps, widening, gathering, float arithmetic and selection indices. Called by `encoding`.
//!
//! Layout of a packed block of width `w`: the smallest word of 8, 16, 32 or 64 bits that holds `w` bits;
//! `LANES = 1024 / word bits`; value `i` lies in lane `i % LANES` at bit `(i / LANES) * w` of the lane's
//! stream; word `k` of lane `l` is word `k * LANES + l` of the block. A block takes `128 * w` bytes whatever
//! the word, each row of words is 128 bytes (two AVX-512 registers), and unpacking row by row gives the
//! values in order. The width is a run-time value: it only changes the shifts, which are uniform per row.
//!
//! Invariants
//! - Every function computes the same bits at every [`SimdLevel`].
//!
//! Cost sketch: one row of words is a load, shift, (shift, or,) and, store per register: 16 rows x 2
//! registers for 16-bit words, about 100 cycles or 0.04 ns a value at AVX-512.

mod compare;
#[cfg(target_arch = "x86_64")]
mod compare_packed;
pub(crate) mod floats;
mod sums;
mod widen;

pub(crate) use compare::RangeMask;
pub use compare::equal_mask;
pub(crate) use floats::{Float, float_keys};
pub use floats::{order_key, value_of_key};
pub(crate) use sums::{RunningSums, prefix_sum, sum, take_prefix_sums};
pub(crate) use widen::{Native, gather, greatest, take_each, widen};

use std::mem::MaybeUninit;

#[cfg(target_arch = "x86_64")]
use crate::SimdLevel;

/// Defines `$name`, which runs the `#[inline(always)]` function `$body` compiled for the level in effect. The engine's
/// loops use it as well.
#[macro_export]
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$($generic:ident : $bound:path),+>)? ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:expr;) => {
        $(#[$meta])*
        $vis fn $name $(<$($generic: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
                fn avx2 $(<$($generic: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? { $body($($arg),*) }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi1,bmi2,lzcnt,popcnt")]
                fn avx512 $(<$($generic: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? { $body($($arg),*) }
                match $crate::SimdLevel::current() {
                    // SAFETY: the level in effect is never above what the CPU supports.
                    $crate::SimdLevel::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::SimdLevel::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::SimdLevel::Portable => {}
                }
            }
            $body($($arg),*)
        }
    };
}
pub(crate) use dispatch;

/// An unsigned word that values are packed into.
pub(crate) trait Word: Copy + Default + PartialEq + Into<u64> + RangeMask + RunningSums + 'static {
    /// Bits of a word.
    #[cfg(test)]
    const BITS: usize;
    /// `v` truncated.
    fn truncate(v: u64) -> Self;
    /// All values, written over whatever `out` held: a buffer that is written whole need not be zeroed first.
    fn unpack<'o>(width: usize, packed: &[u8], out: &'o mut MaybeUninit<[Self; 1024]>) -> &'o mut [Self; 1024];
    fn pack(width: usize, values: &[Self; 1024], out: &mut [u8]);
    /// Value `index` of a packed block.
    fn get(width: usize, packed: &[u8], index: usize) -> u64;
}

macro_rules! word {
    ($word:ty, $module:ident) => {
        mod $module {
            use std::mem::MaybeUninit;

            type W = $word;
            const BITS: usize = <$word>::BITS as usize;
            const BYTES: usize = BITS / 8;
            const LANES: usize = 1024 / BITS;
            const ROW: usize = LANES * BYTES;

            #[inline(always)]
            fn load(bytes: &[u8]) -> W {
                let mut word = [0u8; BYTES];
                word.copy_from_slice(bytes);
                W::from_le_bytes(word)
            }

            #[inline(always)]
            fn unpack_body(width: usize, packed: &[u8], out: &mut [MaybeUninit<W>; 1024]) {
                assert!(width <= BITS && packed.len() == width * 128);
                if width == 0 {
                    out.fill(MaybeUninit::new(0));
                    return;
                }
                let mask = W::MAX >> (BITS - width);
                for (row, out) in out.chunks_exact_mut(LANES).enumerate() {
                    let bit = row * width;
                    let (word, shift) = (bit / BITS, bit % BITS);
                    let low = &packed[word * ROW..][..ROW];
                    if shift + width <= BITS {
                        for (out, low) in out.iter_mut().zip(low.chunks_exact(BYTES)) {
                            out.write((load(low) >> shift) & mask);
                        }
                    } else {
                        let high = &packed[(word + 1) * ROW..][..ROW];
                        let up = BITS - shift;
                        let both = low.chunks_exact(BYTES).zip(high.chunks_exact(BYTES));
                        for (out, (low, high)) in out.iter_mut().zip(both) {
                            out.write(((load(low) >> shift) | (load(high) << up)) & mask);
                        }
                    }
                }
            }

            #[inline(always)]
            fn pack_body(width: usize, values: &[W; 1024], out: &mut [u8]) {
                assert!(width <= BITS && out.len() == width * 128);
                out.fill(0);
                if width == 0 {
                    return;
                }
                let mask = W::MAX >> (BITS - width);
                for (row, values) in values.chunks_exact(LANES).enumerate() {
                    let bit = row * width;
                    let (word, shift) = (bit / BITS, bit % BITS);
                    let low = &mut out[word * ROW..][..ROW];
                    for (low, value) in low.chunks_exact_mut(BYTES).zip(values) {
                        let merged = load(low) | ((*value & mask) << shift);
                        low.copy_from_slice(&merged.to_le_bytes());
                    }
                    if shift + width > BITS {
                        let high = &mut out[(word + 1) * ROW..][..ROW];
                        for (high, value) in high.chunks_exact_mut(BYTES).zip(values) {
                            high.copy_from_slice(&((*value & mask) >> (BITS - shift)).to_le_bytes());
                        }
                    }
                }
            }

            crate::kernels::dispatch! {
                fn unpack(width: usize, packed: &[u8], out: &mut [MaybeUninit<W>; 1024]) = unpack_body;
            }
            crate::kernels::dispatch! {
                fn pack(width: usize, values: &[W; 1024], out: &mut [u8]) = pack_body;
            }

            impl super::Word for $word {
                #[cfg(test)]
                const BITS: usize = BITS;
                #[inline(always)]
                fn truncate(v: u64) -> Self {
                    v as Self
                }
                fn unpack<'o>(
                    width: usize,
                    packed: &[u8],
                    out: &'o mut MaybeUninit<[Self; 1024]>,
                ) -> &'o mut [Self; 1024] {
                    // SAFETY: both types are 1,024 words side by side that may be uninitialised.
                    unpack(width, packed, unsafe { &mut *out.as_mut_ptr().cast() });
                    // SAFETY: `unpack` has written every word, or panicked.
                    unsafe { out.assume_init_mut() }
                }
                fn pack(width: usize, values: &[Self; 1024], out: &mut [u8]) {
                    pack(width, values, out);
                }
                #[inline]
                fn get(width: usize, packed: &[u8], index: usize) -> u64 {
                    if width == 0 {
                        return 0;
                    }
                    let (lane, bit) = (index % LANES, (index / LANES) * width);
                    let (word, shift) = (bit / BITS, bit % BITS);
                    let mask = W::MAX >> (BITS - width);
                    let at = word * ROW + lane * BYTES;
                    let mut value = load(&packed[at..at + BYTES]) >> shift;
                    if shift + width > BITS {
                        value |= load(&packed[at + ROW..at + ROW + BYTES]) << (BITS - shift);
                    }
                    u64::from(value & mask)
                }
            }
        }
    };
}

word!(u8, word8);
word!(u16, word16);
word!(u32, word32);
word!(u64, word64);

/// Runs `$body` with `$word` standing for the word type of `$width`.
macro_rules! with_word {
    ($width:expr, $word:ident => $body:expr) => {
        match $width {
            0..=8 => {
                type $word = u8;
                $body
            }
            9..=16 => {
                type $word = u16;
                $body
            }
            17..=32 => {
                type $word = u32;
                $body
            }
            _ => {
                type $word = u64;
                $body
            }
        }
    };
}
pub(crate) use with_word;

/// Positions of the one bits, ascending, at the front of `out`. Returns how many.
pub(crate) fn indices(words: &[u64; 16], out: &mut [u16; 1024]) -> usize {
    /// Up to so many bits are quicker found one by one.
    const FEW: usize = 64;
    if count(words) <= FEW {
        return indices_one_by_one(words, out);
    }
    match SimdLevel::current() {
        // SAFETY: the level in effect is never above what the CPU supports.
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx512 => unsafe { indices_avx512(words, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx2 => unsafe { indices_avx2(words, out) },
        _ => indices_by_bytes(words, out),
    }
}

/// How many bits are one. Word by word: words just written by 16 bytes would keep a load of 32 waiting, which is what
/// AVX2 makes of this (measured: 6% of q6's samples; 1 to 3% faster without).
pub fn count(words: &[u64; 16]) -> usize {
    #[inline(always)]
    fn body(words: &[u64; 16]) -> usize {
        words.iter().map(|word| word.count_ones() as usize).sum()
    }
    #[cfg(target_arch = "x86_64")]
    {
        // Without POPCNT, which the build's baseline lacks, it takes ten times as long.
        #[target_feature(enable = "popcnt")]
        fn popcnt(words: &[u64; 16]) -> usize {
            body(words)
        }
        if SimdLevel::current() >= SimdLevel::Avx2 {
            // SAFETY: the level in effect is never above what the CPU supports, POPCNT included.
            return unsafe { popcnt(words) };
        }
    }
    body(words)
}

/// Positions written for every word, however many it has: where the next word's go depends on the count, not on a branch.
const POSITIONS_AT_ONCE: usize = 4;

#[inline(always)]
fn indices_one_by_one_body(words: &[u64; 16], out: &mut [u16; 1024]) -> usize {
    let mut count = 0;
    for (index, word) in words.iter().enumerate() {
        let (mut word, ones) = (*word, word.count_ones() as usize);
        let base = (index * 64) as u16;
        let mut written = 0;
        if let Some(out) = out[count..].first_chunk_mut::<POSITIONS_AT_ONCE>() {
            for out in out {
                *out = base + word.trailing_zeros() as u16;
                word &= word.wrapping_sub(1);
            }
            written = POSITIONS_AT_ONCE;
        }
        for out in &mut out[count..count + ones][written.min(ones)..] {
            *out = base + word.trailing_zeros() as u16;
            word &= word.wrapping_sub(1);
        }
        count += ones;
    }
    count
}

dispatch! {
    fn indices_one_by_one(words: &[u64; 16], out: &mut [u16; 1024]) -> usize = indices_one_by_one_body;
}

/// For each byte the positions of its one bits, then zeros.
static BYTE_POSITIONS: [[u8; 8]; 256] = {
    let mut table = [[0u8; 8]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut bit, mut count) = (0, 0);
        while bit < 8 {
            if byte >> bit & 1 == 1 {
                table[byte][count] = bit as u8;
                count += 1;
            }
            bit += 1;
        }
        byte += 1;
    }
    table
};

fn indices_by_bytes(words: &[u64; 16], out: &mut [u16; 1024]) -> usize {
    let mut count = 0;
    for (index, word) in words.iter().enumerate() {
        if *word == 0 {
            continue;
        }
        for (byte_index, byte) in word.to_le_bytes().into_iter().enumerate() {
            let base = (index * 64 + byte_index * 8) as u16;
            // `count <= base <= 1016`: eight slots are always there.
            let slots = &mut out[count..count + 8];
            for (slot, position) in slots.iter_mut().zip(BYTE_POSITIONS[byte as usize]) {
                *slot = base + u16::from(position);
            }
            count += byte.count_ones() as usize;
        }
    }
    count
}

/// [`indices_by_bytes`], eight positions with one addition and one store.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,popcnt")]
fn indices_avx2(words: &[u64; 16], out: &mut [u16; 1024]) -> usize {
    use std::arch::x86_64::*;
    let mut count = 0;
    for (index, word) in words.iter().enumerate() {
        if *word == 0 {
            continue;
        }
        for byte_index in 0..8 {
            let byte = (*word >> (byte_index * 8)) as u8;
            let base = index * 64 + byte_index * 8;
            let positions = _mm_cvtsi64_si128(i64::from_le_bytes(BYTE_POSITIONS[usize::from(byte)]));
            let positions = _mm_add_epi16(_mm_cvtepu8_epi16(positions), _mm_set1_epi16(base as i16));
            debug_assert!(count <= base);
            // SAFETY: `count` is at most the number of bits before `base`, so `count + 8 <= base + 8 <= 1024`.
            unsafe { _mm_storeu_si128(out.as_mut_ptr().add(count).cast(), positions) };
            count += byte.count_ones() as usize;
        }
    }
    count
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,popcnt")]
fn indices_avx512(words: &[u64; 16], out: &mut [u16; 1024]) -> usize {
    use std::arch::x86_64::*;
    let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let mut count = 0usize;
    for (index, word) in words.iter().enumerate() {
        if *word == 0 {
            continue;
        }
        for quarter in 0..4 {
            let mask = (*word >> (quarter * 16)) as u16;
            let base = (index * 64 + quarter * 16) as i32;
            let positions = _mm512_add_epi32(lanes, _mm512_set1_epi32(base));
            let packed = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(mask, positions));
            debug_assert!(count <= base as usize);
            // SAFETY: `count` is at most the number of bits before `base`, so `count + 16 <= base + 16 <= 1024`.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(count).cast(), packed) };
            count += mask.count_ones() as usize;
        }
    }
    count
}

/// The bits of `bits` where `mask` is one, moved together at the low end (PEXT).
pub(crate) fn extract_bits(bits: u64, mask: u64) -> u64 {
    if mask == u64::MAX {
        return bits;
    }
    #[cfg(target_arch = "x86_64")]
    if SimdLevel::current() >= SimdLevel::Avx2 {
        #[target_feature(enable = "bmi2")]
        fn pext(bits: u64, mask: u64) -> u64 {
            std::arch::x86_64::_pext_u64(bits, mask)
        }
        // SAFETY: the levels from AVX2 on imply BMI2.
        return unsafe { pext(bits, mask) };
    }
    let (mut mask, mut out, mut position) = (mask, 0u64, 0);
    while mask != 0 {
        let bit = mask.trailing_zeros();
        out |= (bits >> bit & 1) << position;
        position += 1;
        mask &= mask - 1;
    }
    out
}

#[cfg(test)]
mod tests;
