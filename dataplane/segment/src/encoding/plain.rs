//! Plain: values of fixed width as they are in Arrow: floats, wide decimals, vectors. Also one value for all.
//!
//! Floats have a directory of 24-byte records (least and greatest order key, 8 bytes unused); the others have none.

use crate::kernels::order_key;
use crate::{BLOCK_ROWS, Rows, Selection};

use super::integers::RECORD_BYTES;
use super::u64_at;

/// Encode a directory of order keys.
pub(crate) fn float_directory(values: &[f64]) -> Vec<u8> {
    let mut directory = Vec::with_capacity(values.len().div_ceil(BLOCK_ROWS) * RECORD_BYTES);
    for block in values.chunks(BLOCK_ROWS) {
        let (mut min, mut max) = (i64::MAX, i64::MIN);
        for value in block {
            let key = order_key(*value);
            min = min.min(key);
            max = max.max(key);
        }
        directory.extend_from_slice(&min.to_le_bytes());
        directory.extend_from_slice(&max.to_le_bytes());
        directory.extend_from_slice(&[0; 8]);
    }
    directory
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
