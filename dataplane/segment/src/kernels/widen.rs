//! From packed words to values: widening and gathering.
//!
//! Plain loops; the compiler vectorises them under each level's target features.

use std::marker::PhantomData;

use super::{Word, dispatch};

/// A value as Arrow stores it.
pub(crate) trait Native: Copy + 'static {
    /// The low bits of `v`.
    fn from_u64(v: u64) -> Self;
}

impl Native for i16 {
    #[inline(always)]
    fn from_u64(v: u64) -> Self {
        v as i16
    }
}

impl Native for i32 {
    #[inline(always)]
    fn from_u64(v: u64) -> Self {
        v as i32
    }
}

impl Native for i64 {
    #[inline(always)]
    fn from_u64(v: u64) -> Self {
        v as i64
    }
}

impl Native for u32 {
    #[inline(always)]
    fn from_u64(v: u64) -> Self {
        v as u32
    }
}

#[inline(always)]
fn widen_body<W: Word, N: Native>(words: &[W; 1024], base: u64, scale: u64, out: &mut [N]) {
    let out = &mut out[..];
    if scale == 1 {
        for (out, word) in out.iter_mut().zip(words) {
            *out = N::from_u64(base.wrapping_add((*word).into()));
        }
    } else {
        for (out, word) in out.iter_mut().zip(words) {
            let word: u64 = (*word).into();
            *out = N::from_u64(base.wrapping_add(word.wrapping_mul(scale)));
        }
    }
}

#[inline(always)]
fn gather_body<W: Word, N: Native>(words: &[W; 1024], indices: &[u16], base: u64, scale: u64, out: &mut [N]) {
    if scale == 1 {
        for (out, index) in out.iter_mut().zip(indices) {
            *out = N::from_u64(base.wrapping_add(words[usize::from(*index) & 1023].into()));
        }
    } else {
        for (out, index) in out.iter_mut().zip(indices) {
            let word: u64 = words[usize::from(*index) & 1023].into();
            *out = N::from_u64(base.wrapping_add(word.wrapping_mul(scale)));
        }
    }
}

#[inline(always)]
fn take_each_body<W: Word, N: Native>(
    _: PhantomData<W>,
    width: usize,
    packed: &[u8],
    indices: &[u16],
    base: u64,
    scale: u64,
    out: &mut [N],
) {
    for (out, index) in out.iter_mut().zip(indices) {
        let value = W::get(width, packed, usize::from(*index) & 1023);
        *out = N::from_u64(base.wrapping_add(value.wrapping_mul(scale)));
    }
}

dispatch! {
    /// `out[i] = base + words[i] * scale`, for as many values as `out` has (at most 1,024).
    pub(crate) fn widen<W: Word, N: Native>(words: &[W; 1024], base: u64, scale: u64, out: &mut [N]) = widen_body;
}
dispatch! {
    /// `out[k] = base + words[indices[k]] * scale`.
    pub(crate) fn gather<W: Word, N: Native>(
        words: &[W; 1024], indices: &[u16], base: u64, scale: u64, out: &mut [N]
    ) = gather_body;
}
dispatch! {
    /// `out[k] = base + value[indices[k]] * scale`, each unpacked by itself.
    pub(crate) fn take_each<W: Word, N: Native>(
        word: PhantomData<W>, width: usize, packed: &[u8], indices: &[u16], base: u64, scale: u64, out: &mut [N]
    ) = take_each_body;
}
#[inline(always)]
fn greatest_body(codes: &[u32]) -> u32 {
    codes.iter().fold(0, |greatest, code| greatest.max(*code))
}
dispatch! {
    /// The greatest code; 0 of none.
    pub(crate) fn greatest(codes: &[u32]) -> u32 = greatest_body;
}
