//! Sums over signed bytes, exact.
//!
//! Owns the kernels for `i8` rows. Called by [`super::Query`].
//!
//! Invariants
//! - No sum overflows: a component adds at most `255^2 = 65,025`; one 32-bit lane of a kernel takes at most an eighth of
//!   65,535 components, and lanes are added as 64-bit integers.
//!
//! Cost sketch: sixteen components a step on AVX2 (two widening loads, one subtract, one `vpmaddwd`, one add), thirty-two
//! on AVX-512, sixty-four for products with VNNI: 384 bytes take 24, 12 and 6 steps, 5 to 12 ns.

use super::{Pick, Sum};
use crate::simd::{Level, level, prefetch};

const DIFFERENCE: u8 = 0;
const PRODUCT: u8 = 1;
const SQUARE: u8 = 2;

#[inline(always)]
fn term<const SUM: u8>(q: i8, x: i8) -> i32 {
    let (q, x) = (i32::from(q), i32::from(x));
    match SUM {
        DIFFERENCE => (q - x) * (q - x),
        PRODUCT => q * x,
        _ => x * x,
    }
}

#[inline(always)]
fn portable<const SUM: u8>(query: &[i8], row: &[i8]) -> i64 {
    let each = |(q, x): (&[i8], &[i8])| {
        i64::from(q.iter().zip(x).fold(0i32, |sum, (q, x)| sum.wrapping_add(term::<SUM>(*q, *x))))
    };
    query.chunks(4096).zip(row.chunks(4096)).map(each).sum()
}

/// Writes the sum of the query with each picked row, by the kernel `one`.
#[inline(always)]
fn rows_body(
    query: &[i8],
    rows: &[i8],
    dimension: usize,
    pick: Pick<'_>,
    out: &mut [i64],
    one: impl Fn(&[i8], &[i8]) -> i64,
) {
    assert_eq!(query.len(), dimension);
    if let Pick::Ids(ids) = pick {
        ids.iter().take(4).for_each(|id| prefetch(rows, *id as usize * dimension, dimension));
    }
    for (index, out) in out.iter_mut().enumerate() {
        if let Pick::Ids(ids) = pick
            && let Some(ahead) = ids.get(index + 4)
        {
            prefetch(rows, *ahead as usize * dimension, dimension);
        }
        *out = one(query, &rows[pick.at(index) * dimension..][..dimension]);
    }
}

fn at_level<const SUM: u8>(query: &[i8], rows: &[i8], dimension: usize, pick: Pick<'_>, out: &mut [i64]) {
    match level() {
        // SAFETY: the level in effect is never above what the CPU supports.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni => unsafe { x86::vnni::<SUM>(query, rows, dimension, pick, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { x86::avx512::<SUM>(query, rows, dimension, pick, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { x86::avx2::<SUM>(query, rows, dimension, pick, out) },
        Level::Portable => rows_body(query, rows, dimension, pick, out, portable::<SUM>),
    }
}

/// Writes the sum of `query` with each picked row, as many as `out` is long.
pub(super) fn sums(sum: Sum, query: &[i8], rows: &[i8], dimension: usize, pick: Pick<'_>, out: &mut [i64]) {
    match sum {
        Sum::SquaredDifference => at_level::<DIFFERENCE>(query, rows, dimension, pick, out),
        Sum::Product => at_level::<PRODUCT>(query, rows, dimension, pick, out),
        Sum::Square => at_level::<SQUARE>(query, rows, dimension, pick, out),
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::*;

    /// Adds the eight lanes as 64-bit integers.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn sum_of_eight(lanes: __m256i) -> i64 {
        let low = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(lanes));
        let high = _mm256_cvtepi32_epi64(_mm256_extracti128_si256::<1>(lanes));
        let four = _mm256_add_epi64(low, high);
        let two = _mm_add_epi64(_mm256_castsi256_si128(four), _mm256_extracti128_si256::<1>(four));
        _mm_cvtsi128_si64(two) + _mm_extract_epi64::<1>(two)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn one_avx2<const SUM: u8>(query: &[i8], row: &[i8]) -> i64 {
        let mut lanes = _mm256_setzero_si256();
        let (queries, rows) = (query.chunks_exact(16), row.chunks_exact(16));
        let rest = (queries.remainder(), rows.remainder());
        for (q, x) in queries.zip(rows) {
            // SAFETY: chunks of sixteen bytes.
            let (q, x) = unsafe { (_mm_loadu_si128(q.as_ptr().cast()), _mm_loadu_si128(x.as_ptr().cast())) };
            let (q, x) = (_mm256_cvtepi8_epi16(q), _mm256_cvtepi8_epi16(x));
            let (a, b) = match SUM {
                DIFFERENCE => (_mm256_sub_epi16(q, x), _mm256_sub_epi16(q, x)),
                PRODUCT => (q, x),
                _ => (x, x),
            };
            lanes = _mm256_add_epi32(lanes, _mm256_madd_epi16(a, b));
        }
        sum_of_eight(lanes) + portable::<SUM>(rest.0, rest.1)
    }

    #[target_feature(enable = "avx2,bmi1,bmi2")]
    pub(super) fn avx2<const SUM: u8>(q: &[i8], rows: &[i8], dimension: usize, pick: Pick<'_>, out: &mut [i64]) {
        rows_body(q, rows, dimension, pick, out, |q, x| one_avx2::<SUM>(q, x));
    }

    /// Adds the sixteen lanes as 64-bit integers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
    fn sum_of_sixteen(lanes: __m512i) -> i64 {
        let low = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(lanes));
        let high = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64::<1>(lanes));
        _mm512_reduce_add_epi64(_mm512_add_epi64(low, high))
    }

    /// The operands whose products are added.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
    fn operands<const SUM: u8>(q: &[i8], x: &[i8]) -> (__m512i, __m512i) {
        assert!(q.len() == 32 && x.len() == 32);
        // SAFETY: slices of thirty-two bytes.
        let (q, x) = unsafe { (_mm256_loadu_si256(q.as_ptr().cast()), _mm256_loadu_si256(x.as_ptr().cast())) };
        let (q, x) = (_mm512_cvtepi8_epi16(q), _mm512_cvtepi8_epi16(x));
        match SUM {
            DIFFERENCE => (_mm512_sub_epi16(q, x), _mm512_sub_epi16(q, x)),
            PRODUCT => (q, x),
            _ => (x, x),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
    fn one_avx512<const SUM: u8>(query: &[i8], row: &[i8]) -> i64 {
        let mut lanes = _mm512_setzero_si512();
        let (queries, rows) = (query.chunks_exact(32), row.chunks_exact(32));
        let rest = (queries.remainder(), rows.remainder());
        for (q, x) in queries.zip(rows) {
            let (a, b) = operands::<SUM>(q, x);
            lanes = _mm512_add_epi32(lanes, _mm512_madd_epi16(a, b));
        }
        sum_of_sixteen(lanes) + portable::<SUM>(rest.0, rest.1)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi1,bmi2")]
    pub(super) fn avx512<const SUM: u8>(q: &[i8], rows: &[i8], dimension: usize, pick: Pick<'_>, out: &mut [i64]) {
        rows_body(q, rows, dimension, pick, out, |q, x| one_avx512::<SUM>(q, x));
    }

    #[inline]
    #[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2")]
    fn one_vnni<const SUM: u8>(query: &[i8], row: &[i8]) -> i64 {
        let mut lanes = _mm512_setzero_si512();
        if SUM == PRODUCT {
            // The instruction multiplies unsigned by signed: the row is moved up by 128, and what that adds, 128 times
            // the query's sum, is added up beside it and taken off again.
            let mut offset = _mm512_setzero_si512();
            let up = _mm512_set1_epi8(-128);
            let (queries, rows) = (query.chunks_exact(64), row.chunks_exact(64));
            let rest = (queries.remainder(), rows.remainder());
            for (q, x) in queries.zip(rows) {
                // SAFETY: chunks of sixty-four bytes.
                let (q, x) = unsafe { (_mm512_loadu_si512(q.as_ptr().cast()), _mm512_loadu_si512(x.as_ptr().cast())) };
                lanes = _mm512_dpbusd_epi32(lanes, _mm512_xor_si512(x, up), q);
                offset = _mm512_dpbusd_epi32(offset, up, q);
            }
            return sum_of_sixteen(lanes) - sum_of_sixteen(offset) + portable::<SUM>(rest.0, rest.1);
        }
        let (queries, rows) = (query.chunks_exact(32), row.chunks_exact(32));
        let rest = (queries.remainder(), rows.remainder());
        for (q, x) in queries.zip(rows) {
            let (a, b) = operands::<SUM>(q, x);
            lanes = _mm512_dpwssd_epi32(lanes, a, b);
        }
        sum_of_sixteen(lanes) + portable::<SUM>(rest.0, rest.1)
    }

    #[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi1,bmi2")]
    pub(super) fn vnni<const SUM: u8>(q: &[i8], rows: &[i8], dimension: usize, pick: Pick<'_>, out: &mut [i64]) {
        rows_body(q, rows, dimension, pick, out, |q, x| one_vnni::<SUM>(q, x));
    }
}
