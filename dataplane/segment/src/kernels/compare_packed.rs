//! Range comparison of a block of packed values while they are unpacked: nothing is stored in between.
//!
//! Owns the kernels behind `RangeMask::packed_range_mask`, one per word and SIMD level. Called by `compare`, which
//! checks lengths and widths. Layout and names of rows and lanes are those of [`super`].
//!
//! Invariant: bit `i` of a mask says whether value `i`, less `low` (wrapping), is at most `span`.
//!
//! Cost sketch: a row of words is 128 bytes, so two registers at AVX-512 and four at AVX2, each a load, a shift (two
//! and an OR where the value goes on in the next word), AND, subtract and compare.

/// One register's worth at a time: the compare gives a mask register.
pub(super) mod avx512 {
    use std::arch::x86_64::*;

    /// Unpacks row by row in registers and compares: nothing is stored in between. `$right` and `$left` shift all lanes by
    /// a run-time count.
    macro_rules! packed_mask {
        ($name:ident, $word:ty, $signed:ty, $set:ident, $right:ident, $left:ident, $sub:ident, $compare:ident) => {
            /// `packed` is `128 * width` bytes, and `width` from 1 to the word's bits.
            #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
            pub(in super::super) unsafe fn $name(width: usize, packed: &[u8], low: $word, span: $word) -> [u64; 16] {
                const BITS: usize = <$word>::BITS as usize;
                /// Values of one register.
                const VALUES: usize = 512 / BITS;
                let keep = $set((<$word>::MAX >> (BITS - width)) as $signed);
                let (low, span) = ($set(low as $signed), $set(span as $signed));
                let mut mask = [0u64; 16];
                for row in 0..BITS {
                    let (word, shift) = (row * width / BITS, row * width % BITS);
                    let right = _mm_cvtsi32_si128(shift as i32);
                    let left = _mm_cvtsi32_si128((BITS - shift) as i32);
                    for half in 0..2 {
                        let at = word * 128 + half * 64;
                        debug_assert!(at + 64 <= packed.len());
                        // SAFETY: the last row's last bit lies in word `width - 1`, which ends at `128 * width`.
                        let v = unsafe { _mm512_loadu_si512(packed.as_ptr().add(at).cast()) };
                        let mut v = $right(v, right);
                        if shift + width > BITS {
                            debug_assert!(at + 192 <= packed.len());
                            // SAFETY: a value that goes on in the next word has one, within `width` words.
                            let next = unsafe { _mm512_loadu_si512(packed.as_ptr().add(at + 128).cast()) };
                            v = _mm512_or_si512(v, $left(next, left));
                        }
                        let hit = $compare($sub(_mm512_and_si512(v, keep), low), span);
                        let first = row * 2 * VALUES + half * VALUES;
                        mask[first / 64] |= u64::from(hit) << (first % 64);
                    }
                }
                mask
            }
        };
    }

    /// There are no shifts of 8-bit lanes: 16-bit ones, less the bits that come from the neighbour.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn right_epi8(v: __m512i, count: __m128i) -> __m512i {
        let own = 0xffu32 >> (_mm_cvtsi128_si32(count) as u32 & 31);
        _mm512_and_si512(_mm512_srl_epi16(v, count), _mm512_set1_epi8(own as i8))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn left_epi8(v: __m512i, count: __m128i) -> __m512i {
        let own = 0xffu32 << (_mm_cvtsi128_si32(count) as u32 & 31);
        _mm512_and_si512(_mm512_sll_epi16(v, count), _mm512_set1_epi8(own as i8))
    }

    packed_mask!(u8_mask, u8, i8, _mm512_set1_epi8, right_epi8, left_epi8, _mm512_sub_epi8, _mm512_cmple_epu8_mask);
    packed_mask!(
        u16_mask,
        u16,
        i16,
        _mm512_set1_epi16,
        _mm512_srl_epi16,
        _mm512_sll_epi16,
        _mm512_sub_epi16,
        _mm512_cmple_epu16_mask
    );
    packed_mask!(
        u32_mask,
        u32,
        i32,
        _mm512_set1_epi32,
        _mm512_srl_epi32,
        _mm512_sll_epi32,
        _mm512_sub_epi32,
        _mm512_cmple_epu32_mask
    );
    packed_mask!(
        u64_mask,
        u64,
        i64,
        _mm512_set1_epi64,
        _mm512_srl_epi64,
        _mm512_sll_epi64,
        _mm512_sub_epi64,
        _mm512_cmple_epu64_mask
    );
}

/// Four registers at a time, whose compares are narrowed to a bit per value by saturating packs and movemask.
pub(super) mod avx2 {
    use std::arch::x86_64::*;

    /// `$right` and `$left` shift all lanes by a run-time count, `$within` compares, `$bits` turns a row's four compares
    /// into `1024 / bits` bits.
    macro_rules! packed_mask {
        ($name:ident, $word:ty, $signed:ty, $set:ident, $right:ident, $left:ident, $within:ident, $bits:ident) => {
            /// `packed` is `128 * width` bytes, and `width` from 1 to the word's bits.
            #[target_feature(enable = "avx2")]
            pub(in super::super) unsafe fn $name(width: usize, packed: &[u8], low: $word, span: $word) -> [u64; 16] {
                const BITS: usize = <$word>::BITS as usize;
                /// Values of a row.
                const LANES: usize = 1024 / BITS;
                let keep = $set((<$word>::MAX >> (BITS - width)) as $signed);
                let (low, span) = ($set(low as $signed), $set(span as $signed));
                let mut mask = [0u64; 16];
                for row in 0..BITS {
                    let (word, shift) = (row * width / BITS, row * width % BITS);
                    let right = _mm_cvtsi32_si128(shift as i32);
                    let left = _mm_cvtsi32_si128((BITS - shift) as i32);
                    let mut hits = [_mm256_setzero_si256(); 4];
                    for (part, hit) in hits.iter_mut().enumerate() {
                        let at = word * 128 + part * 32;
                        debug_assert!(at + 32 <= packed.len());
                        // SAFETY: the last row's last bit lies in word `width - 1`, which ends at `128 * width`.
                        let v = unsafe { _mm256_loadu_si256(packed.as_ptr().add(at).cast()) };
                        let mut v = $right(v, right);
                        if shift + width > BITS {
                            debug_assert!(at + 160 <= packed.len());
                            // SAFETY: a value that goes on in the next word has one, within `width` words.
                            let next = unsafe { _mm256_loadu_si256(packed.as_ptr().add(at + 128).cast()) };
                            v = _mm256_or_si256(v, $left(next, left));
                        }
                        *hit = $within(_mm256_and_si256(v, keep), low, span);
                    }
                    let bits = $bits(hits);
                    let first = row * LANES;
                    for (part, bits) in bits.into_iter().enumerate() {
                        mask[first / 64 + part] |= bits << (first % 64);
                    }
                }
                mask
            }
        };
    }

    packed_mask!(u8_mask, u8, i8, _mm256_set1_epi8, right_epi8, left_epi8, within_epi8, bits_epi8);
    packed_mask!(u16_mask, u16, i16, _mm256_set1_epi16, _mm256_srl_epi16, _mm256_sll_epi16, within_epi16, bits_epi16);
    packed_mask!(u32_mask, u32, i32, _mm256_set1_epi32, _mm256_srl_epi32, _mm256_sll_epi32, within_epi32, bits_epi32);
    packed_mask!(u64_mask, u64, i64, _mm256_set1_epi64x, _mm256_srl_epi64, _mm256_sll_epi64, within_epi64, bits_epi64);

    /// There are no shifts of 8-bit lanes: 16-bit ones, less the bits that come from the neighbour.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn right_epi8(v: __m256i, count: __m128i) -> __m256i {
        let own = 0xffu32 >> (_mm_cvtsi128_si32(count) as u32 & 31);
        _mm256_and_si256(_mm256_srl_epi16(v, count), _mm256_set1_epi8(own as i8))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn left_epi8(v: __m256i, count: __m128i) -> __m256i {
        let own = 0xffu32 << (_mm_cvtsi128_si32(count) as u32 & 31);
        _mm256_and_si256(_mm256_sll_epi16(v, count), _mm256_set1_epi8(own as i8))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn within_epi8(v: __m256i, low: __m256i, span: __m256i) -> __m256i {
        let distance = _mm256_sub_epi8(v, low);
        _mm256_cmpeq_epi8(_mm256_min_epu8(distance, span), distance)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn within_epi16(v: __m256i, low: __m256i, span: __m256i) -> __m256i {
        let distance = _mm256_sub_epi16(v, low);
        _mm256_cmpeq_epi16(_mm256_min_epu16(distance, span), distance)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn within_epi32(v: __m256i, low: __m256i, span: __m256i) -> __m256i {
        let distance = _mm256_sub_epi32(v, low);
        _mm256_cmpeq_epi32(_mm256_min_epu32(distance, span), distance)
    }

    /// AVX2 compares 64 bits as signed numbers only: both sides are moved by half the range.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn within_epi64(v: __m256i, low: __m256i, span: __m256i) -> __m256i {
        let half = _mm256_set1_epi64x(i64::MIN);
        let distance = _mm256_xor_si256(_mm256_sub_epi64(v, low), half);
        let beyond = _mm256_cmpgt_epi64(distance, _mm256_xor_si256(span, half));
        _mm256_xor_si256(beyond, _mm256_set1_epi64x(-1))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn bits_epi8(hits: [__m256i; 4]) -> [u64; 2] {
        let bits = hits.map(|hit| u64::from(_mm256_movemask_epi8(hit) as u32));
        [bits[0] | bits[1] << 32, bits[2] | bits[3] << 32]
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn bits_epi16([a, b, c, d]: [__m256i; 4]) -> [u64; 1] {
        // A pack works on each half of the registers: the quarters come out as 0, 2, 1, 3.
        let narrow = |x, y| _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi16(x, y));
        let bits = [narrow(a, b), narrow(c, d)].map(|hit| u64::from(_mm256_movemask_epi8(hit) as u32));
        [bits[0] | bits[1] << 32]
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn bits_epi32([a, b, c, d]: [__m256i; 4]) -> [u64; 1] {
        // Two packs on halves: groups of four values come out as 0, 2, 4, 6, 1, 3, 5, 7.
        let narrow = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        [u64::from(_mm256_movemask_epi8(_mm256_permutevar8x32_epi32(narrow, order)) as u32)]
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn bits_epi64(hits: [__m256i; 4]) -> [u64; 1] {
        let bits = hits.map(|hit| u64::from(_mm256_movemask_pd(_mm256_castsi256_pd(hit)) as u32));
        [bits[0] | bits[1] << 4 | bits[2] << 8 | bits[3] << 12]
    }
}
