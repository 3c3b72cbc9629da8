//! Sets of bytes, and which bytes of a string are in one.
//!
//! Owns [`ByteSet`]. Called by `fsst::search` (codes that a match must hold) and by `packed` (values of up to 8 bits that are in a
//! set, which `int_test` makes).
//!
//! Cost: two table look-ups by shuffle for 32 or 64 bytes at a time.

use crate::simd::SimdLevel;

/// A set of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ByteSet([u64; 4]);

impl ByteSet {
    /// Byte `b` is in when bit `b % 64` of word `b / 64` is set.
    pub(crate) fn from_words(words: [u64; 4]) -> Self {
        ByteSet(words)
    }

    pub(crate) fn insert(&mut self, byte: u8) {
        self.0[usize::from(byte / 64)] |= 1 << (byte % 64);
    }

    #[inline]
    pub(crate) fn contains(&self, byte: u8) -> bool {
        self.0[usize::from(byte / 64)] >> (byte % 64) & 1 == 1
    }

    pub(crate) fn union(&mut self, other: &ByteSet) {
        self.0.iter_mut().zip(other.0).for_each(|(word, other)| *word |= other);
    }

    /// How often its bytes occur in a sample.
    pub(crate) fn weight(&self, histogram: &[u32; 256]) -> u32 {
        (0..=255u8).filter(|byte| self.contains(*byte)).map(|byte| histogram[usize::from(byte)]).sum()
    }

    /// For each byte of `data` a bit that says whether it is in the set, in words of 64, of which `out` has enough; words
    /// behind the last byte's stay as they are.
    #[inline]
    pub(crate) fn hits(&self, data: &[u8], out: &mut [u64]) {
        debug_assert!(out.len() >= data.len().div_ceil(64));
        #[cfg(target_arch = "x86_64")]
        match SimdLevel::current() {
            // SAFETY: the level in effect is never above what the CPU supports.
            SimdLevel::Avx512 => return unsafe { x86::hits_avx512(&self.nibbles(), data, out) },
            // SAFETY: as above.
            SimdLevel::Avx2 => return unsafe { x86::hits_avx2(&self.nibbles(), data, out) },
            SimdLevel::Portable => {}
        }
        self.hits_portable(data, out);
    }

    fn hits_portable(&self, data: &[u8], out: &mut [u64]) {
        for (word, data) in out.iter_mut().zip(data.chunks(64)) {
            *word = data.iter().rev().fold(0, |word, byte| word << 1 | u64::from(self.contains(*byte)));
        }
    }

    /// For shuffles: in entry `l` of the first table, bit `h` says whether the byte `h << 4 | l` is in; in the second
    /// whether `(h + 8) << 4 | l` is.
    #[cfg(target_arch = "x86_64")]
    fn nibbles(&self) -> [[u8; 16]; 2] {
        std::array::from_fn(|half| {
            std::array::from_fn(|low| {
                (0..8)
                    .fold(0, |bits, high| bits | u8::from(self.contains(((half * 8 + high) << 4 | low) as u8)) << high)
            })
        })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// Entry `l`: the bit that stands for the high nibble `l` (or `l - 8`).
    const BITS: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(table: &[u8; 16]) -> __m128i {
        // SAFETY: 16 bytes are there; the load is unaligned.
        unsafe { _mm_loadu_si128(table.as_ptr().cast()) }
    }

    /// `out` has a word for every 64 bytes of `data`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    pub(super) fn hits_avx512(tables: &[[u8; 16]; 2], data: &[u8], out: &mut [u64]) {
        let table = |table| _mm512_broadcast_i32x4(load(table));
        let (below, above, bits) = (table(&tables[0]), table(&tables[1]), table(&BITS));
        let (low, top) = (_mm512_set1_epi8(0x8f_u8 as i8), _mm512_set1_epi8(0x80_u8 as i8));
        for (word, data) in out.iter_mut().zip(data.chunks(64)) {
            let there = u64::MAX >> (64 - data.len());
            // SAFETY: bytes that are not there are masked out, and not read.
            let v = unsafe { _mm512_maskz_loadu_epi8(there, data.as_ptr().cast()) };
            // A shuffle gives 0 where the index has its top bit set: each table answers for its half.
            let index = _mm512_and_si512(v, low);
            let members = _mm512_or_si512(
                _mm512_shuffle_epi8(below, index),
                _mm512_shuffle_epi8(above, _mm512_xor_si512(index, top)),
            );
            let high = _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(0x0f));
            *word = _mm512_test_epi8_mask(members, _mm512_shuffle_epi8(bits, high)) & there;
        }
    }

    /// `out` has a word for every 64 bytes of `data`.
    #[target_feature(enable = "avx2")]
    pub(super) fn hits_avx2(tables: &[[u8; 16]; 2], data: &[u8], out: &mut [u64]) {
        let table = |table| _mm256_broadcastsi128_si256(load(table));
        let (below, above, bits) = (table(&tables[0]), table(&tables[1]), table(&BITS));
        let (low, top) = (_mm256_set1_epi8(0x8f_u8 as i8), _mm256_set1_epi8(0x80_u8 as i8));
        let members = |bytes: &[u8; 64]| {
            let mut word = 0;
            for half in 0..2 {
                // SAFETY: 64 bytes are there; the load is unaligned.
                let v = unsafe { _mm256_loadu_si256(bytes.as_ptr().add(half * 32).cast()) };
                let index = _mm256_and_si256(v, low);
                let members = _mm256_or_si256(
                    _mm256_shuffle_epi8(below, index),
                    _mm256_shuffle_epi8(above, _mm256_xor_si256(index, top)),
                );
                let high = _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(0x0f));
                let miss = _mm256_cmpeq_epi8(
                    _mm256_and_si256(members, _mm256_shuffle_epi8(bits, high)),
                    _mm256_setzero_si256(),
                );
                word |= u64::from(!_mm256_movemask_epi8(miss) as u32) << (half * 32);
            }
            word
        };
        let (whole, rest) = data.as_chunks::<64>();
        for (word, bytes) in out.iter_mut().zip(whole) {
            *word = members(bytes);
        }
        if let (Some(word), 1..) = (out.get_mut(whole.len()), rest.len()) {
            let mut padded = [0u8; 64];
            padded[..rest.len()].copy_from_slice(rest);
            *word = members(&padded) & u64::MAX >> (64 - rest.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::simd::at_every_level;

    proptest! {
        #[test]
        fn hits_are_the_bytes_of_the_set_at_every_level(
            data in prop::collection::vec(any::<u8>(), 0..300),
            set in prop::array::uniform4(any::<u64>()),
        ) {
            let set = ByteSet(set);
            let mut expected = vec![0; data.len().div_ceil(64)];
            set.hits_portable(&data, &mut expected);
            at_every_level(|level| {
                let mut hits = vec![u64::MAX; expected.len()];
                set.hits(&data, &mut hits);
                assert_eq!(hits, expected, "{level:?}");
            });
        }
    }
}
