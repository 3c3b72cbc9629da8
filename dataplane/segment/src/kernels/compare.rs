//! Range comparison of 1,024 unsigned words to a bitmap, unpacked or while they are packed.
//!
//! Owns [`RangeMask`]. The compiler does not turn comparison loops into mask registers or movemask by
//! itself, hence intrinsics; those that compare while unpacking are in `compare_packed`.

use std::mem::MaybeUninit;

use super::Word;
#[cfg(target_arch = "x86_64")]
use super::compare_packed;
use crate::simd::SimdLevel;

/// A word type whose blocks can be compared with a range.
pub(crate) trait RangeMask: Sized {
    /// Bit `i` of the result says whether `values[i] - low` (wrapping) is at most `span`.
    fn range_mask(values: &[Self; 1024], low: Self, span: Self) -> [u64; 16];
    /// The same of a packed block of `128 * width` bytes (0 < `width` <= the word's bits); `low` and `span` fit the width.
    fn packed_range_mask(width: usize, packed: &[u8], low: Self, span: Self) -> [u64; 16];
}

/// Bit `i` says whether `values[i]` is `value`.
pub fn equal_mask(values: &[u8; 1024], value: u8) -> [u64; 16] {
    u8::range_mask(values, value, 0)
}

macro_rules! range_mask {
    ($word:ty, $avx512:ident, $avx2:ident, $packed:ident) => {
        impl RangeMask for $word {
            #[inline]
            fn range_mask(values: &[Self; 1024], low: Self, span: Self) -> [u64; 16] {
                match SimdLevel::current() {
                    // SAFETY: the level in effect is never above what the CPU supports.
                    #[cfg(target_arch = "x86_64")]
                    SimdLevel::Avx512 => unsafe { x86::$avx512(values, low, span) },
                    // SAFETY: as above.
                    #[cfg(target_arch = "x86_64")]
                    SimdLevel::Avx2 => unsafe { x86::$avx2(values, low, span) },
                    _ => {
                        let mut mask = [0u64; 16];
                        for (mask, values) in mask.iter_mut().zip(values.chunks_exact(64)) {
                            let mut bytes = [0u8; 8];
                            for (byte, values) in bytes.iter_mut().zip(values.chunks_exact(8)) {
                                for (bit, value) in values.iter().enumerate() {
                                    *byte |= u8::from(value.wrapping_sub(low) <= span) << bit;
                                }
                            }
                            *mask = u64::from_le_bytes(bytes);
                        }
                        mask
                    }
                }
            }

            #[inline]
            fn packed_range_mask(width: usize, packed: &[u8], low: Self, span: Self) -> [u64; 16] {
                assert!(width > 0 && width <= Self::BITS as usize && packed.len() == width * 128);
                match SimdLevel::current() {
                    // SAFETY: the level in effect is never above what the CPU supports; the length is checked above.
                    #[cfg(target_arch = "x86_64")]
                    SimdLevel::Avx512 => return unsafe { compare_packed::avx512::$packed(width, packed, low, span) },
                    // SAFETY: as above.
                    #[cfg(target_arch = "x86_64")]
                    SimdLevel::Avx2 => return unsafe { compare_packed::avx2::$packed(width, packed, low, span) },
                    _ => {}
                }
                let mut words = MaybeUninit::uninit();
                Self::range_mask(<Self as Word>::unpack(width, packed, &mut words), low, span)
            }
        }
    };
}

range_mask!(u8, u8_avx512, u8_avx2, u8_mask);
range_mask!(u16, u16_avx512, u16_avx2, u16_mask);
range_mask!(u32, u32_avx512, u32_avx2, u32_mask);
range_mask!(u64, u64_avx512, u64_avx2, u64_mask);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) fn u8_avx512(values: &[u8; 1024], low: u8, span: u8) -> [u64; 16] {
        let (low, span) = (_mm512_set1_epi8(low as i8), _mm512_set1_epi8(span as i8));
        let mut mask = [0u64; 16];
        for (mask, values) in mask.iter_mut().zip(values.chunks_exact(64)) {
            // SAFETY: the chunk is 64 bytes; the load is unaligned.
            let v = unsafe { _mm512_loadu_si512(values.as_ptr().cast()) };
            *mask = _mm512_cmple_epu8_mask(_mm512_sub_epi8(v, low), span);
        }
        mask
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) fn u16_avx512(values: &[u16; 1024], low: u16, span: u16) -> [u64; 16] {
        let (low, span) = (_mm512_set1_epi16(low as i16), _mm512_set1_epi16(span as i16));
        let mut mask = [0u64; 16];
        for (mask, values) in mask.iter_mut().zip(values.chunks_exact(64)) {
            for (part, values) in values.chunks_exact(32).enumerate() {
                // SAFETY: the chunk is 64 bytes; the load is unaligned.
                let v = unsafe { _mm512_loadu_si512(values.as_ptr().cast()) };
                let hit = _mm512_cmple_epu16_mask(_mm512_sub_epi16(v, low), span);
                *mask |= u64::from(hit) << (part * 32);
            }
        }
        mask
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) fn u32_avx512(values: &[u32; 1024], low: u32, span: u32) -> [u64; 16] {
        let (low, span) = (_mm512_set1_epi32(low as i32), _mm512_set1_epi32(span as i32));
        let mut mask = [0u64; 16];
        for (mask, values) in mask.iter_mut().zip(values.chunks_exact(64)) {
            for (part, values) in values.chunks_exact(16).enumerate() {
                // SAFETY: the chunk is 64 bytes; the load is unaligned.
                let v = unsafe { _mm512_loadu_si512(values.as_ptr().cast()) };
                let hit = _mm512_cmple_epu32_mask(_mm512_sub_epi32(v, low), span);
                *mask |= u64::from(hit) << (part * 16);
            }
        }
        mask
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) fn u64_avx512(values: &[u64; 1024], low: u64, span: u64) -> [u64; 16] {
        let (low, span) = (_mm512_set1_epi64(low as i64), _mm512_set1_epi64(span as i64));
        let mut mask = [0u64; 16];
        for (mask, values) in mask.iter_mut().zip(values.chunks_exact(64)) {
            for (part, values) in values.chunks_exact(8).enumerate() {
                // SAFETY: the chunk is 64 bytes; the load is unaligned.
                let v = unsafe { _mm512_loadu_si512(values.as_ptr().cast()) };
                let hit = _mm512_cmple_epu64_mask(_mm512_sub_epi64(v, low), span);
                *mask |= u64::from(hit) << (part * 8);
            }
        }
        mask
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn u8_avx2(values: &[u8; 1024], low: u8, span: u8) -> [u64; 16] {
        let (low, span) = (_mm256_set1_epi8(low as i8), _mm256_set1_epi8(span as i8));
        let mut mask = [0u64; 16];
        for (mask, values) in mask.iter_mut().zip(values.chunks_exact(64)) {
            for (part, values) in values.chunks_exact(32).enumerate() {
                // SAFETY: the chunk is 32 bytes; the load is unaligned.
                let v = unsafe { _mm256_loadu_si256(values.as_ptr().cast()) };
                let d = _mm256_sub_epi8(v, low);
                let hit = _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_min_epu8(d, span), d));
                *mask |= u64::from(hit as u32) << (part * 32);
            }
        }
        mask
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn u16_avx2(values: &[u16; 1024], low: u16, span: u16) -> [u64; 16] {
        let (low, span) = (_mm256_set1_epi16(low as i16), _mm256_set1_epi16(span as i16));
        let compare = |values: &[u16]| {
            debug_assert_eq!(values.len(), 16);
            // SAFETY: the slice is 32 bytes; the load is unaligned.
            let v = unsafe { _mm256_loadu_si256(values.as_ptr().cast()) };
            let d = _mm256_sub_epi16(v, low);
            _mm256_cmpeq_epi16(_mm256_min_epu16(d, span), d)
        };
        let mut mask = [0u64; 16];
        for (mask, values) in mask.iter_mut().zip(values.chunks_exact(64)) {
            for (part, values) in values.chunks_exact(32).enumerate() {
                let packed = _mm256_packs_epi16(compare(&values[..16]), compare(&values[16..]));
                let hit = _mm256_movemask_epi8(_mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
                *mask |= u64::from(hit as u32) << (part * 32);
            }
        }
        mask
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn u32_avx2(values: &[u32; 1024], low: u32, span: u32) -> [u64; 16] {
        let (low, span) = (_mm256_set1_epi32(low as i32), _mm256_set1_epi32(span as i32));
        let mut mask = [0u64; 16];
        for (mask, values) in mask.iter_mut().zip(values.chunks_exact(64)) {
            for (part, values) in values.chunks_exact(8).enumerate() {
                // SAFETY: the chunk is 32 bytes; the load is unaligned.
                let v = unsafe { _mm256_loadu_si256(values.as_ptr().cast()) };
                let d = _mm256_sub_epi32(v, low);
                let hit = _mm256_cmpeq_epi32(_mm256_min_epu32(d, span), d);
                *mask |= u64::from(_mm256_movemask_ps(_mm256_castsi256_ps(hit)) as u32) << (part * 8);
            }
        }
        mask
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn u64_avx2(values: &[u64; 1024], low: u64, span: u64) -> [u64; 16] {
        // AVX2 compares signed only: both sides are moved by half the range.
        let sign = _mm256_set1_epi64x(i64::MIN);
        let low = _mm256_set1_epi64x(low as i64);
        let span = _mm256_xor_si256(_mm256_set1_epi64x(span as i64), sign);
        let mut mask = [0u64; 16];
        for (mask, values) in mask.iter_mut().zip(values.chunks_exact(64)) {
            for (part, values) in values.chunks_exact(4).enumerate() {
                // SAFETY: the chunk is 32 bytes; the load is unaligned.
                let v = unsafe { _mm256_loadu_si256(values.as_ptr().cast()) };
                let d = _mm256_xor_si256(_mm256_sub_epi64(v, low), sign);
                let miss = _mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpgt_epi64(d, span)));
                *mask |= u64::from(!miss as u32 & 0xf) << (part * 4);
            }
        }
        mask
    }
}
