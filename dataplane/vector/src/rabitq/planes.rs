//! Codes of several bits as bit planes, row by row, and their inner product with a query of bytes.
//!
//! Owns the packed form and its kernel. Called by the estimator.
//!
//! Layout: for each 64 components `bits` words of 64 bits, the least significant plane first; bit `i` of a word is
//! component `i`. Any number of bits costs exactly that many, and a register of query bytes is masked by a plane without
//! unpacking (a mask register on AVX-512, a broadcast and compare on AVX2).
//!
//! Invariants
//! - Sums are exact: codes of up to 8 bits times bytes, over at most 65,536 components, fit 32 bits.

use crate::simd::{Level, level};

/// Bytes of one row of `padded` components (a multiple of 64).
pub const fn planes_bytes(padded: usize, bits: u8) -> usize {
    padded / 8 * bits as usize
}

/// Packs the codes of one row.
pub fn pack_planes(codes: &[u8], bits: u8, out: &mut [u8]) {
    assert!(codes.len().is_multiple_of(64) && out.len() == planes_bytes(codes.len(), bits));
    for (codes, words) in codes.chunks_exact(64).zip(out.chunks_exact_mut(8 * bits as usize)) {
        for (plane, word) in words.chunks_exact_mut(8).enumerate() {
            let bits = codes.iter().rev().fold(0u64, |word, code| word << 1 | u64::from(code >> plane & 1));
            word.copy_from_slice(&bits.to_le_bytes());
        }
    }
}

/// The inner product of a packed row with `query`, one byte a component.
pub(super) fn planes_product(planes: &[u8], bits: u8, query: &[i8]) -> i32 {
    assert!(query.len().is_multiple_of(64) && planes.len() == planes_bytes(query.len(), bits));
    match level() {
        // SAFETY: the level in effect is never above what the CPU supports.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni => unsafe { x86::vnni(planes, bits, query) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx2 => unsafe { x86::avx2(planes, bits, query) },
        Level::Portable => portable(planes, bits, query),
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

fn portable(planes: &[u8], bits: u8, query: &[i8]) -> i32 {
    let mut sum = 0;
    for (query, words) in query.chunks_exact(64).zip(planes.chunks_exact(8 * bits as usize)) {
        for (plane, bytes) in words.chunks_exact(8).enumerate() {
            let mut set = word(bytes);
            let mut part = 0i32;
            while set != 0 {
                part += i32::from(query[set.trailing_zeros() as usize]);
                set &= set - 1;
            }
            sum += part << plane;
        }
    }
    sum
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::*;

    /// Thirty-two bits as bytes of all ones or all zeros.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn spread(bits: u32) -> __m256i {
        let bytes = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
        let each = _mm256_set1_epi64x(0x8040_2010_0804_0201u64 as i64);
        let spread = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), bytes);
        _mm256_cmpeq_epi8(_mm256_and_si256(spread, each), each)
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn avx2(planes: &[u8], bits: u8, query: &[i8]) -> i32 {
        let ones = _mm256_set1_epi16(1);
        let mut low = _mm256_setzero_si256();
        let mut top = _mm256_setzero_si256();
        for (query, words) in query.chunks_exact(64).zip(planes.chunks_exact(8 * bits as usize)) {
            for (half, query) in query.chunks_exact(32).enumerate() {
                // SAFETY: thirty-two bytes.
                let query = unsafe { _mm256_loadu_si256(query.as_ptr().cast()) };
                let mut codes = _mm256_setzero_si256();
                for (plane, word) in words.chunks_exact(8).enumerate() {
                    let four = &word[half * 4..][..4];
                    let mask = spread(u32::from_le_bytes([four[0], four[1], four[2], four[3]]));
                    if plane < 7 {
                        codes = _mm256_or_si256(codes, _mm256_and_si256(mask, _mm256_set1_epi8(1 << plane)));
                    } else {
                        // The eighth plane apart: codes above 127 would saturate the pairs of VPMADDUBSW.
                        let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), _mm256_and_si256(mask, query));
                        top = _mm256_add_epi32(top, _mm256_madd_epi16(pairs, ones));
                    }
                }
                let pairs = _mm256_maddubs_epi16(codes, query);
                low = _mm256_add_epi32(low, _mm256_madd_epi16(pairs, ones));
            }
        }
        let sums = _mm256_add_epi32(low, _mm256_slli_epi32::<7>(top));
        let four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
        let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
        _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)))
    }

    #[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2")]
    pub(super) fn vnni(planes: &[u8], bits: u8, query: &[i8]) -> i32 {
        let mut sums = _mm512_setzero_si512();
        for (query, words) in query.chunks_exact(64).zip(planes.chunks_exact(8 * bits as usize)) {
            // SAFETY: sixty-four bytes.
            let query = unsafe { _mm512_loadu_si512(query.as_ptr().cast()) };
            let mut codes = _mm512_setzero_si512();
            for (plane, bytes) in words.chunks_exact(8).enumerate() {
                codes = _mm512_or_si512(codes, _mm512_maskz_set1_epi8(word(bytes), (1u8 << plane) as i8));
            }
            sums = _mm512_dpbusd_epi32(sums, codes, query);
        }
        _mm512_reduce_add_epi32(sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::at_every_level;

    #[test]
    fn products_are_exact_at_every_level() {
        let mut state = 3u64;
        let mut byte = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        for padded in [64usize, 128, 384, 1024] {
            for bits in 1..=8u8 {
                for extreme in [false, true] {
                    let mask = (1u16 << bits) as u8;
                    let mask = mask.wrapping_sub(1);
                    let codes: Vec<u8> = (0..padded).map(|_| if extreme { mask } else { byte() & mask }).collect();
                    let query: Vec<i8> =
                        (0..padded).map(|_| if extreme { 127 } else { (byte() as i8).max(-127) }).collect();
                    let expected: i32 = codes.iter().zip(&query).map(|(c, q)| i32::from(*c) * i32::from(*q)).sum();
                    let mut planes = vec![0; planes_bytes(padded, bits)];
                    pack_planes(&codes, bits, &mut planes);
                    at_every_level(|level| {
                        assert_eq!(planes_product(&planes, bits, &query), expected, "{level:?} {padded} {bits}");
                    });
                }
            }
        }
    }
}
