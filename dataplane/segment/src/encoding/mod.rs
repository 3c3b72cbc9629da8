//! Encodings: one module each, with the same four parts: encode, decode, compare, take.
//!
//! `integers` holds a directory of blocks, each encoded by `packed` (frame of reference), `delta` or
//! `runs`; dictionary codes and scaled values are integers too. `text` is plain or FSST; `alp` is
//! floats; `plain` is everything of fixed width that is not packed; booleans are `bitmap`.
//!
//! Invariants
//! - A block's compare writes a mask for 1,024 rows; rows past the end and NULL rows get arbitrary bits,
//!   which the chunk masks out.

pub(crate) mod alp;
pub(crate) mod bitmap;
pub(crate) mod byte_set;
pub(crate) mod delta;
pub(crate) mod dictionary;
pub(crate) mod fsst;
pub(crate) mod int_test;
pub(crate) mod integers;
pub(crate) mod packed;
pub(crate) mod plain;
pub(crate) mod runs;
pub(crate) mod text;

/// Bits needed for `span`.
#[inline]
pub(crate) fn bit_width(span: u64) -> usize {
    (64 - span.leading_zeros()) as usize
}

/// Reads a little-endian `u32`; the caller has checked the bounds.
#[inline]
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0u8; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

/// Reads a little-endian `u16`; the caller has checked the bounds.
#[inline]
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Reads a little-endian `u64`; the caller has checked the bounds.
#[inline]
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0u8; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}
