//! Plain: values of fixed width as they are in Arrow: floats, wide decimals, vectors. Also one value for all.
//!
//! Floats have a directory of 24-byte records (least and greatest order key; the last 8 bytes are ALP's, and unused by
//! plain chunks); the others have none.

use crate::kernels::{self, Float, RangeMask, order_key};
use crate::{BLOCK_ROWS, Rows, Selection};

use super::integers::RECORD_BYTES;
use super::u64_at;

/// Encode a directory of order keys.
pub(crate) fn float_directory<F: Float>(values: &[F]) -> Vec<u8> {
    let mut directory = Vec::with_capacity(values.len().div_ceil(BLOCK_ROWS) * RECORD_BYTES);
    for block in values.chunks(BLOCK_ROWS) {
        let (mut min, mut max) = (i64::MAX, i64::MIN);
        for value in block {
            let key = order_key(value.to_f64());
            min = min.min(key);
            max = max.max(key);
        }
        directory.extend_from_slice(&min.to_le_bytes());
        directory.extend_from_slice(&max.to_le_bytes());
        directory.extend_from_slice(&[0; 8]);
    }
    directory
}

/// Encode floats, bit by bit.
pub(crate) fn float_bytes<F: Float>(values: &[F]) -> Vec<u8> {
    let mut out = vec![0u8; size_of_val(values)];
    for (out, value) in out.chunks_exact_mut(F::BYTES).zip(values) {
        out.copy_from_slice(&value.bits().to_le_bytes()[..F::BYTES]);
    }
    out
}

#[inline(always)]
fn float_of<F: Float>(bytes: &[u8]) -> F {
    let mut word = [0u8; 8];
    word[..F::BYTES].copy_from_slice(bytes);
    F::from_bits(u64::from_le_bytes(word))
}

/// Decode floats: as many as `block` holds.
pub(crate) fn decode_floats<F: Float>(block: &[u8], out: &mut [F; 1024]) {
    for (out, bytes) in out.iter_mut().zip(block.chunks_exact(F::BYTES)) {
        *out = float_of(bytes);
    }
}

/// Compare floats: which have order keys in `lo..=hi`.
pub(crate) fn compare_floats<F: Float>(values: &[F; 1024], lo: i64, hi: i64) -> [u64; 16] {
    if lo > hi {
        return [0; 16];
    }
    let mut keys = [0u64; 1024];
    kernels::float_keys(values, &mut keys);
    u64::range_mask(&keys, lo as u64, hi.wrapping_sub(lo) as u64)
}

/// Take floats. `block` holds the block's rows; `out` is as long as `rows`.
pub(crate) fn take_floats<F: Float>(block: &[u8], rows: Rows<'_>, out: &mut [F]) {
    match rows {
        Rows::All(_) => {
            for (out, bytes) in out.iter_mut().zip(block.chunks_exact(F::BYTES)) {
                *out = float_of(bytes);
            }
        }
        Rows::At(indices) => {
            for (out, index) in out.iter_mut().zip(indices) {
                *out = float_of(&block[usize::from(*index) * F::BYTES..][..F::BYTES]);
            }
        }
    }
}

/// The order keys of block `b`, or everything if there is no record.
pub(crate) fn float_keys(directory: &[u8], b: usize) -> (i64, i64) {
    match directory.get(b * RECORD_BYTES..(b + 1) * RECORD_BYTES) {
        Some(record) => (u64_at(record, 0) as i64, u64_at(record, 8) as i64),
        None => (i64::MIN, i64::MAX),
    }
}

/// Take: copies the rows' values of `width` bytes each. `block` holds the block's rows, `out` the taken ones.
pub(crate) fn take(block: &[u8], width: usize, rows: Rows<'_>, out: &mut [u8]) {
    match rows {
        Rows::All(_) => out.copy_from_slice(&block[..out.len()]),
        Rows::At(indices) => match width {
            4 => take_fixed::<4>(block, indices, out),
            8 => take_fixed::<8>(block, indices, out),
            16 => take_fixed::<16>(block, indices, out),
            _ => {
                for (out, index) in out.chunks_exact_mut(width).zip(indices) {
                    let at = usize::from(*index) * width;
                    out.copy_from_slice(&block[at..at + width]);
                }
            }
        },
    }
}

fn take_fixed<const WIDTH: usize>(block: &[u8], indices: &[u16], out: &mut [u8]) {
    for (out, index) in out.chunks_exact_mut(WIDTH).zip(indices) {
        let at = usize::from(*index) * WIDTH;
        out.copy_from_slice(&block[at..at + WIDTH]);
    }
}

/// Compare: keeps the selected rows whose value of `WIDTH` bytes passes `test`.
pub(crate) fn filter<const WIDTH: usize>(block: &[u8], selection: &mut Selection, test: impl Fn(&[u8; WIDTH]) -> bool) {
    let rows = *selection;
    rows.for_each(|row| {
        let keep = block.get(row * WIDTH..).and_then(|rest| rest.first_chunk::<WIDTH>()).is_some_and(&test);
        if !keep {
            selection.remove(row);
        }
    });
}
