//! Sums over floats: of one query with many rows, and of many queries with many rows.
//!
//! Owns the kernels for `f32` and `f16` rows. Called by [`super::Query`] and [`super::QueryBatch`].
//!
//! Invariants
//! - Queries are `f32`, padded with zeros to a multiple of [`LANES`]; the last, partial step of a row is copied into a
//!   zeroed block first, so that it is the same step as every other.
//! - Which rows go together changes no bit: every pair of query and row has sums of its own.

use half::f16;

#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512};
use super::lanes::{LANES, Lanes, Portable};
use super::{Pick, Sum};
use crate::simd::{Level, level, prefetch};

/// A float type of rows.
pub(super) trait FloatElement: Copy {
    const ZERO: Self;
    /// # Safety
    /// As [`Lanes`]: sixteen elements at the pointer.
    unsafe fn load<L: Lanes>(at: *const Self) -> L;
}

impl FloatElement for f32 {
    const ZERO: Self = 0.0;
    #[inline(always)]
    unsafe fn load<L: Lanes>(at: *const Self) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_f32(at) }
    }
}

impl FloatElement for f16 {
    const ZERO: Self = f16::ZERO;
    #[inline(always)]
    unsafe fn load<L: Lanes>(at: *const Self) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_f16(at) }
    }
}

const DIFFERENCE: u8 = 0;
const PRODUCT: u8 = 1;
const SQUARE: u8 = 2;

/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn step<L: Lanes, const SUM: u8>(sum: L, query: L, row: L) -> L {
    // SAFETY: the caller's promise.
    unsafe {
        match SUM {
            DIFFERENCE => {
                let difference = query.subtract(row);
                sum.multiply_add(difference, difference)
            }
            PRODUCT => sum.multiply_add(query, row),
            _ => sum.multiply_add(row, row),
        }
    }
}

/// The sums of `Q` queries with `R` rows.
///
/// # Safety
/// As [`Lanes`]; queries have `dimension` elements rounded up to [`LANES`], rows have `dimension`.
#[inline(always)]
unsafe fn block<L: Lanes, E: FloatElement, const SUM: u8, const Q: usize, const R: usize>(
    queries: [*const f32; Q],
    rows: [*const E; R],
    dimension: usize,
) -> [[f32; R]; Q] {
    // SAFETY: reads stay below `dimension`, rounded up for queries; the caller has the instructions.
    unsafe {
        let mut sums = [[L::zero(); R]; Q];
        let whole = dimension - dimension % LANES;
        let mut at = 0;
        while at < whole {
            let mut x = [L::zero(); R];
            for r in 0..R {
                x[r] = E::load::<L>(rows[r].add(at));
            }
            for q in 0..Q {
                let y = L::load_f32(queries[q].add(at));
                for r in 0..R {
                    sums[q][r] = step::<L, SUM>(sums[q][r], y, x[r]);
                }
            }
            at += LANES;
        }
        if whole < dimension {
            for r in 0..R {
                let mut tail = [E::ZERO; LANES];
                std::ptr::copy_nonoverlapping(rows[r].add(whole), tail.as_mut_ptr(), dimension - whole);
                let x = E::load::<L>(tail.as_ptr());
                for q in 0..Q {
                    sums[q][r] = step::<L, SUM>(sums[q][r], L::load_f32(queries[q].add(whole)), x);
                }
            }
        }
        let mut out = [[0.0; R]; Q];
        for q in 0..Q {
            for r in 0..R {
                out[q][r] = sums[q][r].sum();
            }
        }
        out
    }
}

/// # Safety
/// The CPU has the instructions of `L`, and this is inlined into a function that has them enabled.
#[inline(always)]
unsafe fn sums_body<L: Lanes, E: FloatElement, const SUM: u8, const R: usize>(
    query: &[f32],
    rows: &[E],
    dimension: usize,
    pick: Pick<'_>,
    out: &mut [f32],
) {
    assert!(query.len() >= dimension.next_multiple_of(LANES));
    let row = |index: usize| rows[pick.at(index) * dimension..][..dimension].as_ptr();
    if let Pick::Ids(_) = pick {
        for index in 0..out.len().min(2 * R) {
            prefetch(rows, pick.at(index) * dimension, dimension);
        }
    }
    let groups = out.len() / R;
    for group in 0..groups {
        if let Pick::Ids(_) = pick {
            for index in (group + 2) * R..((group + 3) * R).min(out.len()) {
                prefetch(rows, pick.at(index) * dimension, dimension);
            }
        }
        let pointers: [*const E; R] = std::array::from_fn(|r| row(group * R + r));
        // SAFETY: the query's length was asserted, each row is a slice of `dimension` elements.
        let [sums] = unsafe { block::<L, E, SUM, 1, R>([query.as_ptr()], pointers, dimension) };
        out[group * R..][..R].copy_from_slice(&sums);
    }
    for (index, out) in out.iter_mut().enumerate().skip(groups * R) {
        // SAFETY: as above.
        let [[sum]] = unsafe { block::<L, E, SUM, 1, 1>([query.as_ptr()], [row(index)], dimension) };
        *out = sum;
    }
}

/// # Safety
/// As [`sums_body`].
#[inline(always)]
unsafe fn tile_body<L: Lanes, E: FloatElement, const SUM: u8, const Q: usize, const R: usize>(
    queries: &[f32],
    rows: &[E],
    dimension: usize,
    count: usize,
    out: &mut [f32],
) {
    let padded = dimension.next_multiple_of(LANES);
    let asked = queries.len() / padded;
    assert!(rows.len() == count * dimension && out.len() == asked * count);
    // Rows of a block stay in the L2 cache while all queries pass over them; a group of queries stays in L1.
    let block_rows = (131_072 / (dimension * size_of::<E>())).max(R).next_multiple_of(R);
    let query = |q: usize| queries[q * padded..][..padded].as_ptr();
    let row = |r: usize| rows[r * dimension..][..dimension].as_ptr();
    let mut start = 0;
    while start < count {
        let end = (start + block_rows).min(count);
        let mut q = 0;
        while q < asked {
            let many = q + Q <= asked;
            let mut r = start;
            while r < end {
                if many && r + R <= end {
                    let y: [*const f32; Q] = std::array::from_fn(|i| query(q + i));
                    let x: [*const E; R] = std::array::from_fn(|i| row(r + i));
                    // SAFETY: slices of the right lengths, as the closures check.
                    let sums = unsafe { block::<L, E, SUM, Q, R>(y, x, dimension) };
                    for (i, sums) in sums.iter().enumerate() {
                        out[(q + i) * count + r..][..R].copy_from_slice(sums);
                    }
                    r += R;
                } else {
                    for i in q..if many { q + Q } else { q + 1 } {
                        // SAFETY: as above.
                        let [[sum]] = unsafe { block::<L, E, SUM, 1, 1>([query(i)], [row(r)], dimension) };
                        out[i * count + r] = sum;
                    }
                    r += 1;
                }
            }
            q += if many { Q } else { 1 };
        }
        start = end;
    }
}

/// Defines a function that runs a body with the lanes of the level in effect; `$avx2`, `$avx512` and `$portable` are its
/// block sizes (sums must fit the registers: sixteen of AVX2, of which a pair is one [`Lanes`], and thirty-two of AVX-512).
macro_rules! by_level {
    ($name:ident, $body:ident, ($($arg:ident : $ty:ty),*), [$($avx2:literal),*], [$($avx512:literal),*], [$($portable:literal),*]) => {
        fn $name<E: FloatElement, const SUM: u8>($($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2<E: FloatElement, const SUM: u8>($($arg: $ty),*) {
                    // SAFETY: the features are enabled here.
                    unsafe { $body::<Avx2, E, SUM, $($avx2),*>($($arg),*) }
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                fn avx512<E: FloatElement, const SUM: u8>($($arg: $ty),*) {
                    // SAFETY: the features are enabled here.
                    unsafe { $body::<Avx512, E, SUM, $($avx512),*>($($arg),*) }
                }
                match level() {
                    // SAFETY: the level in effect is never above what the CPU supports.
                    Level::Avx512 | Level::Avx512Vnni => return unsafe { avx512::<E, SUM>($($arg),*) },
                    // SAFETY: as above.
                    Level::Avx2 => return unsafe { avx2::<E, SUM>($($arg),*) },
                    Level::Portable => {}
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            let Level::Portable = level();
            // SAFETY: any CPU.
            unsafe { $body::<Portable, E, SUM, $($portable),*>($($arg),*) }
        }
    };
}

by_level!(
    sums_at_level,
    sums_body,
    (query: &[f32], rows: &[E], dimension: usize, pick: Pick<'_>, out: &mut [f32]),
    [4],
    [8],
    [1]
);
by_level!(
    tile_at_level,
    tile_body,
    (queries: &[f32], rows: &[E], dimension: usize, count: usize, out: &mut [f32]),
    [2, 2],
    [4, 4],
    [1, 1]
);

/// Writes the sum of `query` (padded) with each picked row, as many as `out` is long.
pub(super) fn sums<E: FloatElement>(
    sum: Sum,
    query: &[f32],
    rows: &[E],
    dimension: usize,
    pick: Pick<'_>,
    out: &mut [f32],
) {
    match sum {
        Sum::SquaredDifference => sums_at_level::<E, DIFFERENCE>(query, rows, dimension, pick, out),
        Sum::Product => sums_at_level::<E, PRODUCT>(query, rows, dimension, pick, out),
        Sum::Square => sums_at_level::<E, SQUARE>(query, rows, dimension, pick, out),
    }
}

/// Writes the sum of every query with each of `count` rows to `out[query * count + row]`.
pub(super) fn tile<E: FloatElement>(
    sum: Sum,
    queries: &[f32],
    rows: &[E],
    dimension: usize,
    count: usize,
    out: &mut [f32],
) {
    match sum {
        Sum::SquaredDifference => tile_at_level::<E, DIFFERENCE>(queries, rows, dimension, count, out),
        Sum::Product => tile_at_level::<E, PRODUCT>(queries, rows, dimension, count, out),
        Sum::Square => tile_at_level::<E, SQUARE>(queries, rows, dimension, count, out),
    }
}

/// The inner product of two slices of equal length, a multiple of [`LANES`].
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert!(a.len() == b.len() && a.len().is_multiple_of(LANES));
    let mut out = [0.0];
    sums(Sum::Product, a, b, a.len(), Pick::All, &mut out);
    out[0]
}
