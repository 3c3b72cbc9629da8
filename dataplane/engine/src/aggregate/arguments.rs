//! A block of arguments as 64-bit integers, for states that are such integers.
//!
//! Owns [`integers`] and [`blank`]. Called by [`super::state`] (minima and maxima of integers, booleans, as 0 and 1, and
//! floats, as order keys, and sums of integers all run the same loops over plain slices, in which NULL is a value that
//! changes nothing), by [`super::float_sum`] and for the keys of the directly indexed table of groups (in which NULL is
//! the value behind the greatest).
//!
//! Cost: nothing for integers without NULLs, else a pass over the block, vectorised, where going from one valid row to
//! the next waits for every bit.

use heliostat_segment::{dispatch, order_key};
use hidb::{BLOCK_ROWS, Lane};

use crate::vector::{Bits, Vector, bit};

/// The first `rows` values of a vector as integers, with `neutral` wherever a row is not in `valid` (`None`: all are).
/// `lane` is that of the argument's type: 64-bit integers, booleans or floats.
pub(super) fn integers<'a>(
    argument: &'a Vector,
    lane: Lane,
    rows: usize,
    valid: Option<&Bits>,
    neutral: i64,
    scratch: &'a mut [i64; BLOCK_ROWS],
) -> &'a [i64] {
    match lane {
        Lane::F64 => order_keys(&argument.f64s[..rows], scratch),
        Lane::Bool => (0..rows).for_each(|row| scratch[row] = i64::from(bit(&argument.bits, row))),
        _ if valid.is_none() => return &argument.i64s[..rows],
        _ => scratch[..rows].copy_from_slice(&argument.i64s[..rows]),
    }
    if let Some(valid) = valid {
        blank(&mut scratch[..rows], valid, neutral);
    }
    &scratch[..rows]
}

#[inline(always)]
fn order_keys_body(values: &[f64], keys: &mut [i64; BLOCK_ROWS]) {
    for (key, value) in keys.iter_mut().zip(values) {
        *key = order_key(*value);
    }
}

#[inline(always)]
fn blank_body<T: Copy>(values: &mut [T], valid: &Bits, neutral: T) {
    for (word, values) in valid.iter().zip(values.chunks_mut(64)) {
        for (bit, value) in values.iter_mut().enumerate() {
            *value = if word >> bit & 1 == 1 { *value } else { neutral };
        }
    }
}

dispatch! {
    /// Integers in the order of the floats.
    fn order_keys(values: &[f64], keys: &mut [i64; BLOCK_ROWS]) = order_keys_body;
}

dispatch! {
    /// Writes `neutral` wherever a bit is not set.
    pub(super) fn blank<T: Copy>(values: &mut [T], valid: &Bits, neutral: T) = blank_body;
}
