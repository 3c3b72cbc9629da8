//! Which instruction set the kernels use: decided once per process, overridable for tests.
//!
//! Owns [`SimdLevel`] and [`prefetch`]. Called by `kernels`, which keeps one implementation per level, and by `encoding`.
//!
//! Invariants
//! - A level above what the CPU has is never in effect.

use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum SimdLevel {
    /// Whatever the build's baseline is (SSE2 on x86-64).
    Portable = 1,
    /// AVX2 (and so SSE 4.1) with BMI1, BMI2, LZCNT and POPCNT.
    Avx2 = 2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512 = 3,
}

/// 0: not decided yet.
static CURRENT: AtomicU8 = AtomicU8::new(0);

impl SimdLevel {
    /// The best level this CPU has.
    pub fn supported() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            // All that code of the level is compiled for: a hypervisor may hide one without the other.
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2")
                && is_x86_feature_detected!("lzcnt")
                && is_x86_feature_detected!("popcnt");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx512 {
                return SimdLevel::Avx512;
            }
            if avx2 {
                return SimdLevel::Avx2;
            }
        }
        SimdLevel::Portable
    }

    /// The best level, lowered by the environment variable `HELIOSTAT_SIMD` (`portable`, `avx2`, `avx512`).
    pub fn detect() -> Self {
        let wanted = match std::env::var("HELIOSTAT_SIMD").as_deref() {
            Ok("portable") => SimdLevel::Portable,
            Ok("avx2") => SimdLevel::Avx2,
            _ => SimdLevel::Avx512,
        };
        wanted.min(Self::supported())
    }

    /// The level in effect.
    #[inline]
    pub fn current() -> Self {
        match CURRENT.load(Ordering::Relaxed) {
            1 => SimdLevel::Portable,
            2 => SimdLevel::Avx2,
            3 => SimdLevel::Avx512,
            _ => {
                let level = Self::detect();
                CURRENT.store(level as u8, Ordering::Relaxed);
                level
            }
        }
    }

    /// Puts `level` (or the best the CPU has, if lower) in effect for the whole process. Safe at any
    /// time because every level computes the same bits.
    pub fn force(level: SimdLevel) {
        CURRENT.store(level.min(Self::supported()) as u8, Ordering::Relaxed);
    }
}

/// Asks for the cache lines of `bytes`, one after another. Measured on Zen 3 with 48 lines: as it is, this loop brought 10% of q6;
/// unrolled, eight lines in as many cycles, nothing (it seems that a core drops what it has no buffer for).
#[inline(always)]
pub(crate) fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        // SAFETY: a prefetch of any address is allowed and reads nothing; SSE is in the baseline.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// Runs `check` at every level that the CPU has. Tests that force a level take turns.
#[cfg(test)]
pub(crate) fn at_every_level(mut check: impl FnMut(SimdLevel)) {
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for level in [SimdLevel::Portable, SimdLevel::Avx2, SimdLevel::Avx512] {
        if level <= SimdLevel::supported() {
            SimdLevel::force(level);
            check(level);
        }
    }
    SimdLevel::force(SimdLevel::supported());
}
