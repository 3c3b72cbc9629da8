//! Integers: a directory of blocks, each packed, delta or run-length encoded.
//!
//! Owns the block directory and the choice of a block's encoding. Used for the 64-bit lane, scaled values, narrow 128-bit
//! decimals and dictionary codes.
//!
//! Directory record, 24 bytes: minimum `i64`, span `u64` (maximum - minimum), payload offset `u32`, width
//! `u8`, kind `u8`, runs `u16`.
//!
//! Cost sketch: pruning a block reads one record (24 bytes per 1,024 rows); a packed block of `w` bits
//! reads `128 * w` bytes and takes 100 to 200 cycles.

use super::int_test::{IntTest, RANGES_MAX};
use super::{bit_width, delta, packed, runs, u16_at, u32_at, u64_at};
use crate::error::{Result, SegmentError};
use crate::footer::Encoding;
use crate::kernels::{Native, RangeMask, dispatch};
use crate::predicate::BlockMatch;
use crate::simd::prefetch;
use crate::{BLOCK_ROWS, Rows, Selection};

/// Bytes of a directory record.
pub(crate) const RECORD_BYTES: usize = 24;

/// Values of up to 8 bits are compared with so many ranges one by one, and with more of them at once.
const BYTE_RANGES_MAX: usize = 2;

const KIND_PACKED: u8 = 0;
const KIND_DELTA: u8 = 1;
const KIND_RUNS: u8 = 2;

/// Encoded integers.
#[derive(Debug, Default)]
pub(crate) struct EncodedIntegers {
    pub(crate) directory: Vec<u8>,
    pub(crate) payload: Vec<u8>,
    kinds: [usize; 3],
    constant: bool,
}

impl EncodedIntegers {
    /// What most blocks are.
    pub(crate) fn encoding(&self) -> Encoding {
        if self.constant {
            return Encoding::Constant;
        }
        let [packed, delta, runs] = self.kinds;
        if delta > packed && delta >= runs {
            Encoding::Delta
        } else if runs > packed {
            Encoding::RunLength
        } else {
            Encoding::Packed
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct BlockStatistics {
    min: i64,
    max: i64,
    least_delta: i64,
    greatest_delta: i64,
    runs: usize,
}

#[inline(always)]
fn statistics_body(values: &[i64]) -> BlockStatistics {
    let (mut min, mut max) = (i64::MAX, i64::MIN);
    for value in values {
        min = min.min(*value);
        max = max.max(*value);
    }
    let (mut least_delta, mut greatest_delta, mut runs) = (i64::MAX, i64::MIN, 1usize);
    for (left, right) in values.iter().zip(&values[1..]) {
        let delta = right.wrapping_sub(*left);
        least_delta = least_delta.min(delta);
        greatest_delta = greatest_delta.max(delta);
        runs += usize::from(delta != 0);
    }
    if values.len() == 1 {
        (least_delta, greatest_delta) = (0, 0);
    }
    BlockStatistics { min, max, least_delta, greatest_delta, runs }
}

dispatch! {
    fn statistics(values: &[i64]) -> BlockStatistics = statistics_body;
}

#[inline(always)]
fn bounds_body(values: &[i64]) -> (i64, i64) {
    values.iter().fold((i64::MAX, i64::MIN), |(min, max), value| (min.min(*value), max.max(*value)))
}

dispatch! {
    /// Minimum and maximum.
    pub(crate) fn bounds(values: &[i64]) -> (i64, i64) = bounds_body;
}

/// Encode: every block by itself, in the encoding that is clearly smallest.
pub(crate) fn encode(values: &[i64]) -> EncodedIntegers {
    let mut out = EncodedIntegers::default();
    let mut constant = true;
    for block in values.chunks(BLOCK_ROWS) {
        let s = statistics(block);
        constant &= s.min == s.max && s.min == values[0];
        let offset = out.payload.len() as u32;
        let span = s.max.wrapping_sub(s.min) as u64;
        let mut width = bit_width(span);
        let delta_width = bit_width(s.greatest_delta.wrapping_sub(s.least_delta) as u64);
        let packed_bytes = width * 128;
        let delta_bytes = delta::PREFIX_BYTES + delta_width * 128;
        let runs_bytes = s.runs * runs::RUN_BYTES;
        let mut run_count = 0;
        // Packed blocks are the quickest to compare and to take from: the others must pay for that.
        let kind = if runs_bytes * 2 <= packed_bytes.min(delta_bytes) {
            run_count = runs::encode(block, &mut out.payload);
            KIND_RUNS
        } else if delta_bytes * 4 <= packed_bytes * 3 {
            width = delta_width;
            delta::encode(block, s.least_delta, delta_width, &mut out.payload);
            KIND_DELTA
        } else {
            if block.len() == BLOCK_ROWS {
                packed::encode(block, s.min, width, &mut out.payload);
            } else {
                let mut full = [s.min; BLOCK_ROWS];
                full[..block.len()].copy_from_slice(block);
                packed::encode(&full, s.min, width, &mut out.payload);
            }
            KIND_PACKED
        };
        out.kinds[usize::from(kind)] += 1;
        out.directory.extend_from_slice(&s.min.to_le_bytes());
        out.directory.extend_from_slice(&span.to_le_bytes());
        out.directory.extend_from_slice(&offset.to_le_bytes());
        out.directory.extend_from_slice(&[width as u8, kind]);
        out.directory.extend_from_slice(&run_count.to_le_bytes());
    }
    out.constant = constant;
    out
}

/// How stored integers map to values: `value = origin + stored * scale` (wrapping).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) origin: i128,
    pub(crate) scale: u64,
}

impl Mapping {
    pub(crate) const IDENTITY: Mapping = Mapping { origin: 0, scale: 1 };

    /// The inclusive range of stored integers whose values lie in `lo..=hi`; `None` when empty.
    pub(crate) fn range_to_stored(&self, lo: i128, hi: i128) -> Option<(i64, i64)> {
        if lo > hi {
            return None;
        }
        let scale = i128::from(self.scale);
        // Differences saturate: a bound that far out excludes or includes everything anyway.
        let low = lo.saturating_sub(self.origin);
        let low = low.div_euclid(scale) + i128::from(low.rem_euclid(scale) != 0);
        let high = hi.saturating_sub(self.origin).div_euclid(scale);
        if low > high || low > i128::from(i64::MAX) || high < i128::from(i64::MIN) {
            return None;
        }
        let clamp = |v: i128| v.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64;
        Some((clamp(low), clamp(high)))
    }

    /// The stored integer of `value`, if it has one.
    pub(crate) fn value_to_stored(&self, value: i128) -> Option<i64> {
        let distance = value.checked_sub(self.origin)?;
        let scale = i128::from(self.scale);
        if distance.rem_euclid(scale) != 0 {
            return None;
        }
        i64::try_from(distance.div_euclid(scale)).ok()
    }

    /// The value of a stored integer.
    pub(crate) fn value(&self, stored: i64) -> i128 {
        self.origin.wrapping_add(i128::from(stored).wrapping_mul(i128::from(self.scale)))
    }
}

/// One directory record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockRecord {
    pub(crate) min: i64,
    pub(crate) span: u64,
    offset: usize,
    width: usize,
    kind: u8,
    runs: usize,
}

impl BlockRecord {
    pub(crate) fn max(&self) -> i64 {
        self.min.wrapping_add(self.span as i64)
    }
}

/// Encoded integers, read in place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Integers<'a> {
    pub(crate) directory: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl<'a> Integers<'a> {
    /// The record of block `b`. Inlined, so that its fields stay in registers: what is written in parts and read back as a
    /// whole waits for the writes.
    #[inline(always)]
    pub(crate) fn record(&self, b: usize) -> Result<BlockRecord> {
        let Some(bytes) = self.directory.get(b * RECORD_BYTES..(b + 1) * RECORD_BYTES) else {
            return Err(no_block(b));
        };
        let record = BlockRecord {
            min: u64_at(bytes, 0) as i64,
            span: u64_at(bytes, 8),
            offset: u32_at(bytes, 16) as usize,
            width: usize::from(bytes[20]),
            kind: bytes[21],
            runs: usize::from(u16_at(bytes, 22)),
        };
        // `max() < min` when the span leaves the range of i64: the maximum would have wrapped.
        if record.width > 64 || (record.span > 0 && record.max() <= record.min) {
            return Err(impossible(b, &record));
        }
        Ok(record)
    }

    #[inline(always)]
    fn payload(&self, record: &BlockRecord) -> Result<&'a [u8]> {
        let length = match record.kind {
            KIND_PACKED => record.width * 128,
            KIND_DELTA => delta::PREFIX_BYTES + record.width * 128,
            KIND_RUNS => record.runs * runs::RUN_BYTES,
            kind => return Err(unknown_kind(kind)),
        };
        match self.payload.get(record.offset..record.offset + length) {
            Some(payload) => Ok(payload),
            None => Err(self.beyond_the_payload(record.offset, length)),
        }
    }

    #[cold]
    fn beyond_the_payload(&self, offset: usize, length: usize) -> SegmentError {
        let detail = format!("block of {length} bytes at {offset} leaves a payload of {}", self.payload.len());
        SegmentError::corrupt("chunk", detail)
    }

    /// Decode: stored integers of block `b`.
    pub(crate) fn decode(&self, b: usize, out: &mut [i64; 1024]) -> Result<()> {
        self.decode_mapped(b, &Mapping::IDENTITY, out)
    }

    /// Decode: values (their low 64 bits) of block `b`.
    pub(crate) fn decode_mapped(&self, b: usize, mapping: &Mapping, out: &mut [i64; 1024]) -> Result<()> {
        let record = self.record(b)?;
        let payload = self.payload(&record)?;
        match record.kind {
            KIND_PACKED => {
                packed::decode(payload, record.width, base(&record, mapping), mapping.scale, &mut out[..]);
            }
            kind => {
                if kind == KIND_DELTA {
                    delta::decode(payload, record.width, out);
                } else {
                    runs::decode(payload, record.runs, out);
                }
                apply(mapping, out);
            }
        }
        Ok(())
    }

    /// Take: the values at `rows`, compacted, in their native width.
    pub(crate) fn take<N: Native>(&self, b: usize, mapping: &Mapping, rows: Rows<'_>, out: &mut [N]) -> Result<()> {
        let record = self.record(b)?;
        let payload = self.payload(&record)?;
        if record.kind == KIND_PACKED {
            let base = base(&record, mapping);
            match rows {
                Rows::All(_) => packed::decode(payload, record.width, base, mapping.scale, out),
                Rows::At(indices) => {
                    if packed::wants_next_block(record.width, indices.len()) {
                        let rest = self.payload.get(record.offset + payload.len()..).unwrap_or_default();
                        prefetch(&rest[..rest.len().min(payload.len())]);
                    }
                    packed::take(payload, record.width, indices, base, mapping.scale, out);
                }
            }
            return Ok(());
        }
        if let (KIND_DELTA, Rows::At(indices)) = (record.kind, rows) {
            delta::take(payload, record.width, indices, mapping.origin as u64, mapping.scale, out);
            return Ok(());
        }
        let mut values = [0i64; 1024];
        self.decode_mapped(b, mapping, &mut values)?;
        match rows {
            Rows::All(_) => {
                for (out, value) in out.iter_mut().zip(&values) {
                    *out = N::from_u64(*value as u64);
                }
            }
            Rows::At(indices) => {
                for (out, index) in out.iter_mut().zip(indices) {
                    *out = N::from_u64(values[usize::from(*index) & 1023] as u64);
                }
            }
        }
        Ok(())
    }

    /// The sum of the 1,024 stored integers of block `b`; `None` of deltas, and of values wider than sums of 64 bits hold.
    pub(crate) fn sum(&self, b: usize) -> Result<Option<i128>> {
        let record = self.record(b)?;
        let payload = self.payload(&record)?;
        Ok(match record.kind {
            KIND_PACKED if record.width <= packed::SUM_WIDTH_MAX => {
                let distances = i128::from(packed::sum(payload, record.width));
                Some(i128::from(record.min) * BLOCK_ROWS as i128 + distances)
            }
            KIND_RUNS => Some(runs::sum(payload, record.runs)),
            _ => None,
        })
    }

    /// What the zone map of block `b` says about `test`.
    pub(crate) fn prune(&self, b: usize, test: &IntTest) -> Result<BlockMatch> {
        let record = self.record(b)?;
        Ok(test.prune(record.min, record.max()))
    }

    /// Compare: keeps the rows of `selection` that match.
    pub(crate) fn filter(&self, b: usize, test: &IntTest, selection: &mut Selection) -> Result<()> {
        let record = self.record(b)?;
        let payload = self.payload(&record)?;
        // A row by itself is a cache miss that nothing foresees (100 ns), a block of six bits is twelve lines in a row.
        if record.kind == KIND_PACKED && !selection.has_several() {
            let rows = *selection;
            rows.for_each(|row| {
                let distance = packed::get(payload, record.width, row);
                if test.contains(record.min.wrapping_add(distance as i64)) == test.is_negated() {
                    selection.remove(row);
                }
            });
        } else {
            let mut mask = [0u64; 16];
            compare(&record, payload, test, &mut mask);
            if test.is_negated() {
                selection.and_not(&mask);
            } else {
                selection.and(&mask);
            }
        }
        Ok(())
    }
}

#[cold]
fn no_block(b: usize) -> SegmentError {
    SegmentError::corrupt("chunk", format!("no block {b}"))
}

#[cold]
fn impossible(b: usize, record: &BlockRecord) -> SegmentError {
    SegmentError::corrupt("chunk", format!("impossible directory record of block {b}: {record:?}"))
}

#[cold]
fn unknown_kind(kind: u8) -> SegmentError {
    SegmentError::corrupt("chunk", format!("unknown block kind {kind}"))
}

#[inline]
fn base(record: &BlockRecord, mapping: &Mapping) -> u64 {
    (mapping.origin as u64).wrapping_add((record.min as u64).wrapping_mul(mapping.scale))
}

fn apply(mapping: &Mapping, values: &mut [i64; 1024]) {
    if *mapping != Mapping::IDENTITY {
        for value in values {
            *value = (mapping.origin as i64).wrapping_add(value.wrapping_mul(mapping.scale as i64));
        }
    }
}

/// The mask of `test` before negation.
fn compare(record: &BlockRecord, payload: &[u8], test: &IntTest, mask: &mut [u64; 16]) {
    if record.kind == KIND_RUNS {
        return runs::compare(payload, record.runs, |value| test.contains(value), mask);
    }
    let touching = test.touching(record.min, record.max());
    if record.kind == KIND_PACKED && touching.len() > BYTE_RANGES_MAX && record.width <= 8 {
        return packed::members(payload, record.width, &IntTest::bytes_from(record.min, touching), mask);
    }
    if record.kind == KIND_PACKED && touching.len() <= RANGES_MAX {
        let mut ranges = [(0u64, 0u64); RANGES_MAX];
        for (range, (low, high)) in ranges.iter_mut().zip(touching) {
            let distance = |value: i64| value.wrapping_sub(record.min) as u64;
            *range = (distance((*low).max(record.min)), distance((*high).min(record.max())));
        }
        return packed::compare(payload, record.width, &ranges[..touching.len()], mask);
    }
    let mut values = [0i64; 1024];
    if record.kind == KIND_PACKED {
        packed::decode(payload, record.width, record.min as u64, 1, &mut values[..]);
    } else {
        delta::decode(payload, record.width, &mut values);
    }
    if touching.len() > RANGES_MAX {
        *mask = test.members(&values);
        return;
    }
    *mask = [0; 16];
    let mut words = [0u64; 1024];
    for (word, value) in words.iter_mut().zip(&values) {
        *word = *value as u64;
    }
    for (low, high) in touching {
        let hits = u64::range_mask(&words, *low as u64, high.wrapping_sub(*low) as u64);
        for (mask, hits) in mask.iter_mut().zip(hits) {
            *mask |= hits;
        }
    }
}
