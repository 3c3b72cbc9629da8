//! Dictionaries: distinct values, sorted, so that a range of values is a range of codes.
//!
//! Owns the search for distinct values and the dictionary's layout: for integers `len * 8` bytes; for text
//! `len + 1` offsets (4 bytes each) into the bytes that follow. Codes are [`super::integers`].

use super::{u32_at, u64_at};
use crate::error::{Result, SegmentError};

/// Finds distinct values as they come; open addressing, linear probing.
struct Distinct {
    /// Entry number + 1; 0 is free.
    slots: Vec<u32>,
    mask: usize,
}

impl Distinct {
    fn new(limit: usize) -> Self {
        let size = (limit * 2).next_power_of_two().max(64);
        Distinct { slots: vec![0; size], mask: size - 1 }
    }

    /// The slot of a value with this hash for which `is` says yes, or the free slot where it belongs.
    #[inline]
    fn slot(&mut self, hash: u64, is: impl Fn(u32) -> bool) -> &mut u32 {
        let mut at = (hash >> 32) as usize & self.mask;
        while self.slots[at] != 0 && !is(self.slots[at] - 1) {
            at = (at + 1) & self.mask;
        }
        &mut self.slots[at]
    }
}

#[inline]
fn mix(hash: u64, word: u64) -> u64 {
    let product = u128::from(hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    (product as u64) ^ (product >> 64) as u64
}

#[inline]
fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut hash = bytes.len() as u64 ^ 0x243f_6a88_85a3_08d3;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        hash = mix(hash, u64_at(chunk, 0));
    }
    let mut last = [0u8; 8];
    last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    mix(hash, u64::from_le_bytes(last))
}

macro_rules! build {
    ($(#[$doc:meta])* $name:ident $(<$lifetime:lifetime>)?, $value:ty, $hash:expr) => {
        $(#[$doc])*
        pub(crate) fn $name$(<$lifetime>)?(values: &[$value], limit: usize) -> Option<(Vec<$value>, Vec<i64>)> {
            let mut distinct = Distinct::new(limit + 1);
            let mut entries: Vec<$value> = Vec::new();
            let mut codes: Vec<i64> = Vec::with_capacity(values.len());
            for value in values {
                let slot = distinct.slot($hash(*value), |entry| entries[entry as usize] == *value);
                if *slot == 0 {
                    if entries.len() == limit {
                        return None;
                    }
                    entries.push(*value);
                    *slot = entries.len() as u32;
                }
                codes.push(i64::from(*slot) - 1);
            }
            let mut order: Vec<u32> = (0..entries.len() as u32).collect();
            order.sort_unstable_by_key(|entry| entries[*entry as usize]);
            let mut rank = vec![0i64; entries.len()];
            for (position, entry) in order.iter().enumerate() {
                rank[*entry as usize] = position as i64;
            }
            for code in &mut codes {
                *code = rank[*code as usize];
            }
            Some((order.iter().map(|entry| entries[*entry as usize]).collect(), codes))
        }
    };
}

build! {
    /// Sorted distinct values and the code of each row; `None` when there are more than `limit`.
    build_bytes<'a>, &'a [u8], hash_bytes
}
build! {
    /// Sorted distinct values and the code of each row; `None` when there are more than `limit`.
    build_i64, i64, |value| mix(0x1319_8a2e_0370_7344, value as u64)
}

/// Encode the entries of a text dictionary.
pub(crate) fn encode_bytes(entries: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.len() * 16);
    let mut end = 0u32;
    out.extend_from_slice(&end.to_le_bytes());
    for entry in entries {
        end += entry.len() as u32;
        out.extend_from_slice(&end.to_le_bytes());
    }
    for entry in entries {
        out.extend_from_slice(entry);
    }
    out
}

/// Entry `code` of a text dictionary of `len` entries.
#[inline]
pub(crate) fn bytes_entry(section: &[u8], len: usize, code: usize) -> Result<&[u8]> {
    let corrupt = || SegmentError::corrupt("dictionary", format!("no entry {code} of {len}"));
    let table = (len + 1) * 4;
    if code >= len || section.len() < table {
        return Err(corrupt());
    }
    let from = u32_at(section, code * 4) as usize;
    let to = u32_at(section, code * 4 + 4) as usize;
    section[table..].get(from..to).ok_or_else(corrupt)
}

/// Entry `code` of an integer dictionary.
#[inline]
pub(crate) fn i64_entry(section: &[u8], len: usize, code: usize) -> Result<i64> {
    if code >= len || section.len() < len * 8 {
        return Err(SegmentError::corrupt("dictionary", format!("no entry {code} of {len}")));
    }
    Ok(u64_at(section, code * 8) as i64)
}
