//! Which kernels run: the process's [`SimdLevel`], refined by the extensions that vectors profit from.
//!
//! Owns [`Level`] and `dispatch!`. Called by every module with a kernel.
//!
//! Invariants
//! - A level whose instructions the CPU lacks is never returned.
//! - AVX2 here means AVX2 with FMA and F16C: every CPU with the first has had the others, and one that has not runs the
//!   portable kernels.

use heliostat_segment::SimdLevel;

/// An instruction set that the kernels here are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// The build's baseline.
    Portable,
    /// AVX2, FMA, F16C, POPCNT.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 with VNNI and VPOPCNTDQ.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
}

/// The level in effect.
#[inline]
pub(crate) fn level() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        let current = SimdLevel::current();
        if current == SimdLevel::Portable
            || !(is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
                && is_x86_feature_detected!("popcnt"))
        {
            return Level::Portable;
        }
        if current == SimdLevel::Avx2 {
            return Level::Avx2;
        }
        if is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vpopcntdq") {
            return Level::Avx512Vnni;
        }
        Level::Avx512
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = SimdLevel::current();
        Level::Portable
    }
}

/// Defines `$name`, which runs the `#[inline(always)]` function `$body` compiled for the level in effect. Like
/// `heliostat_segment::dispatch!`, with the extensions that vectors use.
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:expr;) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { $body($($arg),*) }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { $body($($arg),*) }
                #[target_feature(
                    enable = "avx512vnni,avx512vpopcntdq,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt"
                )]
                fn vnni($($arg: $ty),*) $(-> $ret)? { $body($($arg),*) }
                match $crate::simd::level() {
                    // SAFETY: the level in effect is never above what the CPU supports.
                    $crate::simd::Level::Avx512Vnni => return unsafe { vnni($($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::simd::Level::Portable => {}
                }
            }
            $body($($arg),*)
        }
    };
}
pub(crate) use dispatch;

/// Asks for the first `bytes` of what `address` points at, up to eight cache lines; the rest follows by itself.
#[inline(always)]
pub(crate) fn prefetch<T>(items: &[T], index: usize, count: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(item) = items.get(index) {
        let start = std::ptr::from_ref(item).cast::<i8>();
        let bytes = (count * size_of::<T>()).min(512);
        let mut at = 0;
        while at < bytes {
            // SAFETY: a prefetch of any address is allowed and reads nothing; SSE is in the baseline.
            unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(start.wrapping_add(at)) };
            at += 64;
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (items, index, count);
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
