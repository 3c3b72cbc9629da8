//! Run length of one block: the end of each run and its value.
//!
//! Payload: `runs` ends (2 bytes each, exclusive, ascending, the last one 1,024), then `runs` values
//! (8 bytes each). Called by `integers`.

use super::{u16_at, u64_at};
use crate::BLOCK_ROWS;

/// Bytes of a run.
pub(crate) const RUN_BYTES: usize = 10;

/// Encode; returns how many runs.
pub(crate) fn encode(values: &[i64], out: &mut Vec<u8>) -> u16 {
    let mut ends: Vec<u16> = Vec::new();
    let mut heads: Vec<i64> = Vec::new();
    for (index, value) in values.iter().enumerate() {
        if heads.last() != Some(value) {
            if index > 0 {
                ends.push(index as u16);
            }
            heads.push(*value);
        }
    }
    ends.push(BLOCK_ROWS as u16);
    for end in &ends {
        out.extend_from_slice(&end.to_le_bytes());
    }
    for head in &heads {
        out.extend_from_slice(&head.to_le_bytes());
    }
    heads.len() as u16
}

/// Calls `run(start, end, value)` for each run, ascending and inside the block whatever the bytes say.
#[inline]
fn for_each(payload: &[u8], runs: usize, mut run: impl FnMut(usize, usize, i64)) {
    let mut start = 0;
    for index in 0..runs {
        let end = usize::from(u16_at(payload, index * 2)).clamp(start, BLOCK_ROWS);
        run(start, end, u64_at(payload, runs * 2 + index * 8) as i64);
        start = end;
    }
}

/// Decode. `payload` is `runs * RUN_BYTES` long.
pub(crate) fn decode(payload: &[u8], runs: usize, out: &mut [i64; 1024]) {
    for_each(payload, runs, |start, end, value| out[start..end].fill(value));
}

/// The sum of all values.
pub(crate) fn sum(payload: &[u8], runs: usize) -> i128 {
    let mut sum = 0;
    for_each(payload, runs, |start, end, value| sum += i128::from(value) * (end - start) as i128);
    sum
}

/// Compare: evaluates `test` once per run.
pub(crate) fn compare(payload: &[u8], runs: usize, test: impl Fn(i64) -> bool, mask: &mut [u64; 16]) {
    *mask = [0; 16];
    for_each(payload, runs, |start, end, value| {
        if test(value) {
            set_range(mask, start, end);
        }
    });
}

/// Sets the bits `start..end`.
pub(crate) fn set_range(mask: &mut [u64; 16], start: usize, end: usize) {
    let mut position = start;
    while position < end {
        let bit = position % 64;
        let count = (64 - bit).min(end - position);
        let ones = if count == 64 { u64::MAX } else { (1 << count) - 1 };
        mask[position / 64] |= ones << bit;
        position += count;
    }
}
