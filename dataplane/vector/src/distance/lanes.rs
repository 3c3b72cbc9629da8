//! Sixteen floats side by side: the unit that float sums are defined in.
//!
//! Owns [`Lanes`] and its forms: two AVX2 registers, one AVX-512 register, an array. Called by `floats`.
//!
//! Invariants
//! - Every form computes the same bits: multiply-adds are fused, and [`Lanes::sum`] adds lane `i` to lane `i + 8`, then
//!   `i + 4`, then `i + 2`, then the last two.

use half::f16;

/// Floats that are added side by side.
pub(super) const LANES: usize = 16;

/// Sixteen floats.
///
/// # Safety
/// Functions of a form may run only where its instructions exist, and must be inlined into a function that has them
/// enabled; loads read sixteen elements at the pointer.
pub(super) trait Lanes: Copy {
    unsafe fn zero() -> Self;
    unsafe fn load_f32(at: *const f32) -> Self;
    unsafe fn load_f16(at: *const f16) -> Self;
    /// `self + a * b`, rounded once.
    unsafe fn multiply_add(self, a: Self, b: Self) -> Self;
    /// `self - b`.
    unsafe fn subtract(self, b: Self) -> Self;
    unsafe fn sum(self) -> f32;
}

/// Any CPU. Without a fused multiply-add in the baseline each one is a call: right, and slow.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; LANES]);

impl Lanes for Portable {
    #[inline(always)]
    unsafe fn zero() -> Self {
        Portable([0.0; LANES])
    }
    #[inline(always)]
    unsafe fn load_f32(at: *const f32) -> Self {
        // SAFETY: the caller's sixteen elements.
        Portable(unsafe { at.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_f16(at: *const f16) -> Self {
        // SAFETY: the caller's sixteen elements.
        Portable(unsafe { at.cast::<[f16; LANES]>().read_unaligned() }.map(f16::to_f32))
    }
    #[inline(always)]
    unsafe fn multiply_add(self, a: Self, b: Self) -> Self {
        Portable(std::array::from_fn(|i| a.0[i].mul_add(b.0[i], self.0[i])))
    }
    #[inline(always)]
    unsafe fn subtract(self, b: Self) -> Self {
        Portable(std::array::from_fn(|i| self.0[i] - b.0[i]))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let eight: [f32; 8] = std::array::from_fn(|i| self.0[i] + self.0[i + 8]);
        let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::*;

    /// AVX2 with FMA and F16C.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(__m256, __m256);

    impl Lanes for Avx2 {
        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: the caller has AVX2 with FMA and F16C; so have all callers below.
            unsafe { Avx2(_mm256_setzero_ps(), _mm256_setzero_ps()) }
        }
        #[inline(always)]
        unsafe fn load_f32(at: *const f32) -> Self {
            // SAFETY: the caller's sixteen elements.
            unsafe { Avx2(_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))) }
        }
        #[inline(always)]
        unsafe fn load_f16(at: *const f16) -> Self {
            // SAFETY: the caller's sixteen elements.
            unsafe {
                let low = _mm_loadu_si128(at.cast());
                let high = _mm_loadu_si128(at.add(8).cast());
                Avx2(_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
            }
        }
        #[inline(always)]
        unsafe fn multiply_add(self, a: Self, b: Self) -> Self {
            // SAFETY: as `zero`.
            unsafe { Avx2(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)) }
        }
        #[inline(always)]
        unsafe fn subtract(self, b: Self) -> Self {
            // SAFETY: as `zero`.
            unsafe { Avx2(_mm256_sub_ps(self.0, b.0), _mm256_sub_ps(self.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            // SAFETY: as `zero`.
            unsafe { sum_of_eight(_mm256_add_ps(self.0, self.1)) }
        }
    }

    /// Adds lane `i` to lane `i + 4`, then `i + 2`, then the last two.
    ///
    /// # Safety
    /// As [`Lanes`], for AVX2.
    #[inline(always)]
    unsafe fn sum_of_eight(eight: __m256) -> f32 {
        // SAFETY: the caller has AVX2.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    /// AVX-512 F and DQ.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512(__m512);

    impl Lanes for Avx512 {
        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: the caller has AVX-512 F and DQ; so have all callers below.
            unsafe { Avx512(_mm512_setzero_ps()) }
        }
        #[inline(always)]
        unsafe fn load_f32(at: *const f32) -> Self {
            // SAFETY: the caller's sixteen elements.
            unsafe { Avx512(_mm512_loadu_ps(at)) }
        }
        #[inline(always)]
        unsafe fn load_f16(at: *const f16) -> Self {
            // SAFETY: the caller's sixteen elements.
            unsafe { Avx512(_mm512_cvtph_ps(_mm256_loadu_si256(at.cast()))) }
        }
        #[inline(always)]
        unsafe fn multiply_add(self, a: Self, b: Self) -> Self {
            // SAFETY: as `zero`.
            unsafe { Avx512(_mm512_fmadd_ps(a.0, b.0, self.0)) }
        }
        #[inline(always)]
        unsafe fn subtract(self, b: Self) -> Self {
            // SAFETY: as `zero`.
            unsafe { Avx512(_mm512_sub_ps(self.0, b.0)) }
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            // SAFETY: as `zero`; every CPU with AVX-512 has AVX2.
            unsafe {
                let high = _mm512_extractf32x8_ps::<1>(self.0);
                sum_of_eight(_mm256_add_ps(_mm512_castps512_ps256(self.0), high))
            }
        }
    }
}
