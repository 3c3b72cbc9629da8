//! What the worst row that is still wanted says of rows that come later.
//!
//! Owns [`SortBound`], made from the threshold of [`SortedRows`](crate::sort::SortedRows). Called by the core scan, which
//! passes over row groups and blocks, and by `output`, which passes over rows.
//!
//! Invariants
//! - Only the leading key is looked at, and only what is strictly worse is excluded: of equal ones the other keys and
//!   the tie-break decide.
//! - Bounds of zone maps may be wider than the values; what they exclude has no value that could be wanted.
//!
//! Cost: a block's zone map 40 ns. The hundredth of 60 million rows is better than all rows of most blocks, so that
//! ORDER BY with a small LIMIT hardly decodes anything once the first row groups are through.

use heliostat_segment::{Chunk, ZoneMap, order_key, prefix, value_of_key};
use hidb::plan::SortKey;
use hidb::types::Scalar;
use hidb::{BLOCK_ROWS, Lane, Result};

use crate::compile::OutputPlan;
use crate::sort::SortPlan;
use crate::source::chunk_of;
use crate::vector::{Bits, NO_BITS, Vector, first_bits};

/// The leading key of the threshold.
#[derive(Debug)]
enum Leading {
    Integer(i128),
    /// An order key.
    Float(i64),
    Text {
        /// The first 8 bytes.
        prefix: u64,
        /// The first [`TEXT_BYTES`].
        value: Vec<u8>,
    },
}

/// Of text only so much is compared: a threshold is taken apart for every block, and may be megabytes long.
const TEXT_BYTES: usize = 64;

/// A bound on the leading key.
#[derive(Debug)]
pub(crate) struct SortBound {
    /// The key's node.
    pub node: usize,
    /// The table column that the key is, if it is one.
    pub column: Option<usize>,
    key: SortKey,
    lane: Lane,
    leading: Leading,
}

impl SortBound {
    /// `None` when the threshold's leading key is NULL or of a kind that zone maps say nothing of.
    pub fn of(outputs: &OutputPlan, sort: &SortPlan, threshold: &[u8]) -> Option<SortBound> {
        let key = *sort.keys.first()?;
        let node = outputs.roots[key.output];
        let column = outputs.program.plain_column(node);
        Self::new(node, column, key, outputs.types[key.output].lane(), threshold)
    }

    /// `threshold` is a key of [`crate::rows::write_sort_key`].
    fn new(node: usize, column: Option<usize>, key: SortKey, lane: Lane, threshold: &[u8]) -> Option<SortBound> {
        let flip = if key.descending { 0xff } else { 0 };
        let mut encoded = threshold.strip_prefix(&[1])?.iter().map(|byte| byte ^ flip);
        let mut bytes = [0; 16];
        let leading = match lane {
            Lane::I64 | Lane::I128 | Lane::F64 => {
                let width = if lane == Lane::I128 { 16 } else { 8 };
                for byte in &mut bytes[..width] {
                    *byte = encoded.next()?;
                }
                let [high, ..] = bytes.as_chunks::<8>().0 else { return None };
                let high = (u64::from_be_bytes(*high) ^ 1 << 63) as i64;
                match lane {
                    Lane::I128 => Leading::Integer((u128::from_be_bytes(bytes) ^ 1 << 127) as i128),
                    // Of a NaN, too, the order key.
                    Lane::F64 => Leading::Float(order_key(value_of_key(high))),
                    _ => Leading::Integer(high.into()),
                }
            }
            Lane::Bytes => {
                let mut value = Vec::with_capacity(TEXT_BYTES);
                while value.len() < TEXT_BYTES {
                    // A zero is followed by 0xff inside the value and by another zero at its end.
                    match encoded.next()? {
                        0 if encoded.next()? == 0 => break,
                        byte => value.push(byte),
                    }
                }
                Leading::Text { prefix: prefix(&value), value }
            }
            Lane::Bool => return None,
        };
        Some(SortBound { node, column, key, lane, leading })
    }

    /// Whether `value` is strictly worse than `threshold`.
    fn loses<T: Ord + ?Sized>(&self, value: &T, threshold: &T) -> bool {
        if self.key.descending { value < threshold } else { value > threshold }
    }

    /// Whether no row of the zone can be wanted.
    pub fn excludes(&self, zone: &ZoneMap) -> bool {
        if zone.null_count > 0 && self.key.nulls_first {
            return false;
        }
        if zone.all_null() {
            return true;
        }
        // NaN, which the bounds leave out, is above all numbers.
        let is_open = zone.has_nan && self.key.descending;
        match (&self.leading, if self.key.descending { &zone.max } else { &zone.min }) {
            (Leading::Float(threshold), Scalar::F64(best)) if !is_open => self.loses(&order_key(*best), threshold),
            // Bounds of text may be cut off or rounded up behind their first 8 bytes.
            (Leading::Text { prefix: threshold, .. }, Scalar::Bytes(best)) => self.loses(&prefix(best), threshold),
            (Leading::Integer(threshold), best) => best.as_i128().is_some_and(|best| self.loses(&best, threshold)),
            _ => false,
        }
    }

    /// Whether no row of a block can be wanted; the chunk of the key's column was supplied.
    pub fn excludes_block(&self, chunks: &[Option<Chunk>], block: usize) -> Result<bool> {
        let Some(column) = self.column else { return Ok(false) };
        let chunk = chunk_of(chunks, column)?;
        let Leading::Text { prefix: threshold, .. } = &self.leading else {
            return Ok(self.excludes(&chunk.zone(block)?));
        };
        if chunk.null_count() > 0 && self.key.nulls_first {
            return Ok(false);
        }
        Ok(chunk.prefixes(block)?.is_some_and(|(least, greatest)| {
            self.loses(if self.key.descending { &greatest } else { &least }, threshold)
        }))
    }

    /// The rows of the key's vector that don't lose.
    pub fn candidates(&self, vector: &Vector, rows: usize) -> Bits {
        let mut out = match (&self.leading, self.lane) {
            (Leading::Text { value: threshold, .. }, _) => {
                let mut out = NO_BITS;
                for row in 0..rows {
                    let value = vector.bytes.get(row);
                    let loses = self.loses(&value[..value.len().min(TEXT_BYTES)], threshold);
                    out[row >> 6] |= u64::from(!loses) << (row & 63);
                }
                out
            }
            (Leading::Integer(threshold), Lane::I64) => self.candidates_i64(*threshold as i64, &vector.i64s[..rows]),
            (Leading::Float(threshold), _) => {
                let mut keys = [0; BLOCK_ROWS];
                keys.iter_mut().zip(&vector.f64s[..rows]).for_each(|(key, value)| *key = order_key(*value));
                self.candidates_i64(*threshold, &keys[..rows])
            }
            _ => return first_bits(rows),
        };
        if vector.has_nulls {
            for ((out, valid), row) in out.iter_mut().zip(&vector.valid).zip(&first_bits(rows)) {
                *out = if self.key.nulls_first { (*out | !valid) & row } else { *out & valid };
            }
        }
        out
    }

    fn candidates_i64(&self, threshold: i64, values: &[i64]) -> Bits {
        let mut out = NO_BITS;
        for (out, values) in out.iter_mut().zip(values.chunks(64)) {
            for (offset, value) in values.iter().enumerate() {
                let wins = if self.key.descending { *value >= threshold } else { *value <= threshold };
                *out |= u64::from(wins) << offset;
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use heliostat_segment::{RowIds, encode_row_group};
    use proptest::prelude::*;

    use super::*;
    use crate::rows::write_sort_key;

    fn vector(lane: Lane, values: &[Scalar]) -> Vector {
        let mut vector = Vector::default();
        vector.reset(lane, values.len());
        values.iter().enumerate().for_each(|(row, value)| vector.store(row, value));
        vector
    }

    fn zone_of(values: &[Scalar]) -> ZoneMap {
        let mut zone = ZoneMap::unknown(values.len() as u32, 0);
        for value in values {
            zone.null_count += u32::from(value.is_null());
            zone.has_nan |= matches!(value, Scalar::F64(v) if v.is_nan());
            let is_number = !value.is_null() && !matches!(value, Scalar::F64(v) if v.is_nan());
            if is_number && (zone.min.is_null() || value.compare(&zone.min).unwrap().is_lt()) {
                zone.min = value.clone();
            }
            if is_number && (zone.max.is_null() || value.compare(&zone.max).unwrap().is_gt()) {
                zone.max = value.clone();
            }
        }
        if zone.has_nan && zone.min.is_null() {
            (zone.min, zone.max) = (Scalar::F64(f64::NAN), Scalar::F64(f64::NAN));
        }
        zone
    }

    fn values() -> impl Strategy<Value = (Lane, Vec<Scalar>)> {
        let or_null = |value: BoxedStrategy<Scalar>| {
            proptest::collection::vec(prop_oneof![6 => value, 1 => Just(Scalar::Null)], 2..40)
        };
        let bytes = proptest::collection::vec(prop_oneof![Just(0u8), Just(0xff), Just(b'a')], 0..11);
        let floats = prop_oneof![
            any::<f64>(),
            prop::sample::select(vec![0.0, -0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1.5])
        ];
        prop_oneof![
            or_null((-3..3i64).prop_map(Scalar::I64).boxed()).prop_map(|values| (Lane::I64, values)),
            or_null(any::<i64>().prop_map(Scalar::I64).boxed()).prop_map(|values| (Lane::I64, values)),
            or_null(any::<i128>().prop_map(Scalar::I128).boxed()).prop_map(|values| (Lane::I128, values)),
            or_null(floats.prop_map(Scalar::F64).boxed()).prop_map(|values| (Lane::F64, values)),
            or_null(bytes.prop_map(Scalar::Bytes).boxed()).prop_map(|values| (Lane::Bytes, values)),
        ]
    }

    proptest! {
        /// Against the keys themselves: whatever is excluded sorts behind the threshold.
        #[test]
        fn only_what_sorts_behind_the_threshold_is_excluded(
            (lane, values) in values(),
            threshold in 0..1000usize,
            split in 0..1000usize,
            descending: bool,
            nulls_first: bool,
        ) {
            let key = SortKey { output: 0, descending, nulls_first };
            let all = vector(lane, &values);
            let keys: Vec<Vec<u8>> = (0..values.len())
                .map(|row| {
                    let mut out = Vec::new();
                    write_sort_key(&all, lane, &key, row, &mut out);
                    out
                })
                .collect();
            let threshold = &keys[threshold % values.len()];
            let Some(bound) = SortBound::new(0, None, key, lane, threshold) else {
                prop_assert_eq!(threshold[0] == 1, false);
                return Ok(());
            };
            let candidates = bound.candidates(&all, values.len());
            for (row, key) in keys.iter().enumerate() {
                let wins = candidates[row / 64] >> (row % 64) & 1 == 1;
                prop_assert!(wins || key > threshold, "{row}");
            }
            let (from, to) = (split % values.len(), values.len());
            if bound.excludes(&zone_of(&values[from..to])) {
                prop_assert!(keys[from..to].iter().all(|key| key > threshold));
            }
        }
    }

    #[test]
    fn blocks_are_excluded_by_their_zone_maps() {
        use std::sync::Arc;

        let schema = hidb::Schema::new(vec![
            hidb::Field { name: "n".into(), data_type: hidb::DataType::Int64, nullable: false },
            hidb::Field { name: "t".into(), data_type: hidb::DataType::Text, nullable: false },
        ])
        .unwrap();
        let numbers: Vec<i64> = (0..4096).collect();
        let texts: Vec<String> = numbers.iter().map(|n| format!("{n:08} and more")).collect();
        let batch = arrow_array::RecordBatch::try_from_iter([
            ("n", Arc::new(arrow_array::Int64Array::from(numbers)) as arrow_array::ArrayRef),
            ("t", Arc::new(arrow_array::StringArray::from(texts)) as arrow_array::ArrayRef),
        ])
        .unwrap();
        let encoded = encode_row_group(&schema, &[batch], RowIds::From(0)).unwrap();
        for (column, lane) in [(0, Lane::I64), (1, Lane::Bytes)] {
            let bytes = bytes::Bytes::from(encoded.chunks[column].bytes.clone());
            let chunks = [0, 1].map(|other| {
                (other == column).then(|| Chunk::open(bytes.clone(), &schema.fields()[column].data_type, 4096).unwrap())
            });
            for (descending, excluded) in [(false, [false, false, true, true]), (true, [true, false, false, false])] {
                let key = SortKey { output: 0, descending, nulls_first: false };
                let value = if column == 0 { Scalar::I64(1500) } else { Scalar::Bytes(b"00001500 and".to_vec()) };
                let mut threshold = Vec::new();
                write_sort_key(&vector(lane, &[value]), lane, &key, 0, &mut threshold);
                let bound = SortBound::new(0, Some(column), key, lane, &threshold).unwrap();
                let found: Vec<bool> = (0..4).map(|block| bound.excludes_block(&chunks, block).unwrap()).collect();
                assert_eq!(found, excluded, "column {column}, descending {descending}");
            }
        }
    }
}
