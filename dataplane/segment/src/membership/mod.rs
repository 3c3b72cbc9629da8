//! Membership filters: which row groups can hold a value at all, when zone maps can't tell.
//!
//! Owns the format of a filter ([`MembershipFilter`], [`MembershipMeta`]), the hashes of values, and
//! ([`choose`]) the decision which columns of a row group get one. Built by `encode`, laid out by `segment`, asked by
//! the engine for equality and short IN lists before the column's chunk is read.
//!
//! A filter is a Bloom filter blocked by cache lines (Putze, Sanders, Singler: "Cache-, Hash- and Space-Efficient
//! Bloom Filters", 2007): the hash of a value names one line of 512 bits and 3 to 7 bits of it. Format, little-endian:
//! `HSMF`, version 1 (u8), bits set per value (u8), 0 (u16), lines (u32), values (u32), zeroes up to 64 bytes; then the
//! lines, 64 bytes each, as eight u64.
//!
//! Invariants
//! - What was put in is found: a filter never rules out a value that it holds.
//! - [`MembershipFilter::open`] checks everything that a lookup relies on: no bytes make one panic or read outside.
//! - Hashes never change: they are part of the format. NULL has none.
//!
//! Why not a binary fuse filter, 25% smaller for the same error: it is built from distinct values in three passes and
//! takes 40 to 60 ns a row where this takes 8, and a load may not become 5% slower for it.
//!
//! Cost: a lookup is one multiplication and one cache line. Building hashes each value (2 ns, text 4 to 8 ns) and sets
//! its bits (2 ns; the lines of a row group fit into L2).

pub(crate) mod choose;

use bytes::Bytes;

use crate::error::{Result, SegmentError};
use crate::predicate::ChunkPredicate;

const MAGIC: [u8; 4] = *b"HSMF";
const VERSION: u8 = 1;
/// Bytes before the first line.
pub(crate) const HEADER_BYTES: usize = 64;
/// Bytes of a line.
pub(crate) const LINE_BYTES: usize = 64;
const LINE_BITS: u32 = 512;
/// Bits of a hash that name one bit of a line, and how many such fields there are.
const FIELD_BITS: u32 = LINE_BITS.trailing_zeros();
const PROBES_MAX: u8 = (u64::BITS / FIELD_BITS) as u8;
/// The longest filter: far more than [`choose`] makes for a row group.
pub(crate) const FILTER_BYTES_MAX: u32 = 8 << 20;
/// Members of a set that are looked up one by one; longer IN lists read the column.
const MEMBERS_MAX: usize = 64;
/// A filter that lets more than this share of the row groups pass is not worth reading.
const PASS_SHARE_MAX: f64 = 0.5;

/// Where a filter is and how good it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MembershipMeta {
    /// Bytes from the start of the segment; a multiple of 4,096.
    pub offset: u64,
    /// Bytes, without the padding after it.
    pub length: u32,
    /// CRC32C of these bytes.
    pub crc32c: u32,
    /// Distinct values in it, estimated.
    pub values: u32,
}

/// The number under which the membership filter of a column is asked for and cached, in a table of `columns` columns:
/// `0..columns` are the chunks of the columns, `columns` that of `_rowid`, then the filters follow.
pub const fn membership_number(columns: usize, column: usize) -> usize {
    columns + 1 + column
}

impl MembershipMeta {
    /// Bytes on the volume: `length` rounded up to whole pages.
    pub fn padded_length(&self) -> usize {
        (self.length as usize).next_multiple_of(crate::PAGE_BYTES)
    }

    /// The share of values that it does not hold and does not rule out either, estimated.
    pub fn false_positive_rate(&self) -> f64 {
        let bits = (self.length as usize).saturating_sub(HEADER_BYTES) as f64 * 8.0;
        let per_value = bits / f64::from(self.values.max(1));
        let probes = f64::from(probes_for(per_value));
        // Lines are filled unevenly, which costs a little over the plain formula.
        ((1.0 - (-probes / per_value.max(0.1)).exp()).powf(probes) * 1.1).min(1.0)
    }

    /// The share of row groups without any of `members` values that pass all the same, estimated.
    pub fn pass_share(&self, members: usize) -> f64 {
        1.0 - (1.0 - self.false_positive_rate()).powf(members as f64)
    }

    /// Whether looking up this many values is expected to save more than it costs.
    pub fn pays_for(&self, members: usize) -> bool {
        self.pass_share(members) <= PASS_SHARE_MAX
    }
}

/// How many bits a value sets when there are this many bits per value.
fn probes_for(bits_per_value: f64) -> u8 {
    ((bits_per_value * std::f64::consts::LN_2).round() as u8).clamp(3, PROBES_MAX)
}

/// Both halves of the product, folded: every bit of the result depends on every bit of both factors.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

const K0: u64 = 0x9e37_79b9_7f4a_7c15;
const K1: u64 = 0xa076_1d64_78bd_642f;
const K2: u64 = 0xe703_7ed1_a0b4_28db;
const K3: u64 = 0x8ebc_6af0_9c88_c6e3;

/// The hash of a value of the 64-bit lane.
#[inline]
pub fn hash_i64(value: i64) -> u64 {
    fold(fold(value as u64 ^ K0, K1) ^ K2, K3)
}

/// The hash of a value of the 128-bit lane.
#[inline]
pub fn hash_i128(value: i128) -> u64 {
    let bits = value as u128;
    fold(fold(bits as u64 ^ K0, (bits >> 64) as u64 ^ K1) ^ K2, K3 ^ bits as u64)
}

/// The hash of a value of the bytes lane.
#[inline]
pub fn hash_bytes(value: &[u8]) -> u64 {
    let word = |bytes: &[u8]| -> u64 {
        let mut word = [0u8; 8];
        let length = bytes.len().min(8);
        word[..length].copy_from_slice(&bytes[..length]);
        u64::from_le_bytes(word)
    };
    let mut state = K0 ^ value.len() as u64;
    let mut pairs = value.chunks_exact(16);
    for pair in &mut pairs {
        let (low, high) = pair.split_at(8);
        state = fold(word(low) ^ K1, word(high) ^ state);
    }
    let rest = pairs.remainder();
    let (low, high) = rest.split_at(rest.len().min(8));
    fold(fold(word(low) ^ K1, word(high) ^ state) ^ K2, K3 ^ value.len() as u64)
}

impl ChunkPredicate {
    /// The hashes of the values one of which a row must have for this to be true; `None` when it asks something else,
    /// or for more values than are worth looking up.
    pub fn member_hashes(&self) -> Option<Vec<u64>> {
        match self {
            ChunkPredicate::I64Range { lo, hi, negated: false } if lo == hi => Some(vec![hash_i64(*lo)]),
            ChunkPredicate::I128Range { lo, hi, negated: false } if lo == hi => Some(vec![hash_i128(*lo)]),
            ChunkPredicate::I64Set { values, negated: false } if values.len() <= MEMBERS_MAX => {
                Some(values.iter().map(|value| hash_i64(*value)).collect())
            }
            ChunkPredicate::I128Set { values, negated: false } if values.len() <= MEMBERS_MAX => {
                Some(values.iter().map(|value| hash_i128(*value)).collect())
            }
            ChunkPredicate::BytesSet { values, negated: false } if values.len() <= MEMBERS_MAX => {
                Some(values.iter().map(|value| hash_bytes(value)).collect())
            }
            _ => None,
        }
    }
}

/// The line of a hash.
#[inline(always)]
fn line_of(hash: u64, lines: u32) -> usize {
    (((hash >> 32) * u64::from(lines)) >> 32) as usize
}

/// The bits of a hash in its line.
#[inline(always)]
fn bits_of(hash: u64, probes: u8) -> impl Iterator<Item = usize> {
    let fields = fold(hash ^ K2, K1);
    (0..u32::from(probes)).map(move |probe| (fields >> (probe * FIELD_BITS)) as usize & (LINE_BITS as usize - 1))
}

/// Makes a filter of `length` bytes (header included) that holds `hashes`, of which about `values` are distinct.
pub(crate) fn build(hashes: &[u64], values: u32, length: usize) -> Vec<u8> {
    let lines = (length.min(FILTER_BYTES_MAX as usize).saturating_sub(HEADER_BYTES) / LINE_BYTES).max(1) as u32;
    let probes = probes_for(f64::from(lines) * f64::from(LINE_BITS) / f64::from(values.max(1)));
    let mut words = vec![0u64; lines as usize * 8];
    for hash in hashes {
        let from = line_of(*hash, lines) * 8;
        if let Some(line) = words[from..].first_chunk_mut::<8>() {
            for bit in bits_of(*hash, probes) {
                line[bit / 64] |= 1 << (bit % 64);
            }
        }
    }
    let mut bytes = Vec::with_capacity(HEADER_BYTES + words.len() * 8);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[VERSION, probes, 0, 0]);
    bytes.extend_from_slice(&lines.to_le_bytes());
    bytes.extend_from_slice(&values.to_le_bytes());
    bytes.resize(HEADER_BYTES, 0);
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    bytes
}

/// A filter as it lies on the volume, read in place.
#[derive(Clone, Debug)]
pub struct MembershipFilter {
    bytes: Bytes,
    lines: u32,
    probes: u8,
}

impl MembershipFilter {
    /// Opens a filter. `bytes` may be longer than it (padding).
    ///
    /// # Errors
    /// [`SegmentError::Corrupt`] when this is no filter, [`SegmentError::UnsupportedVersion`].
    pub fn open(bytes: Bytes) -> Result<MembershipFilter> {
        let corrupt = |detail: String| SegmentError::corrupt("membership filter", detail);
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(corrupt(format!("{} bytes", bytes.len())));
        };
        if header[0..4] != MAGIC {
            return Err(corrupt(format!("magic is {:02x?}", &header[0..4])));
        }
        if header[4] != VERSION {
            return Err(SegmentError::UnsupportedVersion(u32::from(header[4])));
        }
        let (probes, lines) = (header[5], u32::from_le_bytes([header[8], header[9], header[10], header[11]]));
        let fits = (bytes.len() - HEADER_BYTES) / LINE_BYTES >= lines as usize;
        if probes == 0 || probes > PROBES_MAX || lines == 0 || !fits {
            return Err(corrupt(format!("{lines} lines and {probes} bits a value in {} bytes", bytes.len())));
        }
        Ok(MembershipFilter { bytes, lines, probes })
    }

    /// Whether a value of this hash may be in it; `false` is certain.
    #[inline]
    pub fn may_hold(&self, hash: u64) -> bool {
        let from = HEADER_BYTES + line_of(hash, self.lines) * LINE_BYTES;
        // Opening has checked that every line lies inside.
        let Some(line) = self.bytes.get(from..from + LINE_BYTES) else { return true };
        bits_of(hash, self.probes).all(|bit| line[bit / 8] >> (bit % 8) & 1 == 1)
    }

    /// Whether any of these may be.
    pub fn may_hold_any(&self, hashes: &[u64]) -> bool {
        hashes.iter().any(|hash| self.may_hold(*hash))
    }
}
