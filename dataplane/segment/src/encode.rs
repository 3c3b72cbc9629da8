//! Encoding of row groups: canonical Arrow arrays in, chunks out.
//!
//! Owns the choice of encodings (by sampling), NULL filling, zone maps; `membership` chooses the filters. Called by
//! loads and merges.
//!
//! Invariants
//! - NULL slots take the value before them, so that they widen nothing; NULL text is empty.
//! - Zone maps are computed from the values that are encoded.
//!
//! Cost sketch: per value one copy out of Arrow, one pass for bounds and differences, one pack: 3 to 5 ns;
//! dictionary text 15 ns; FSST text 4 to 5 ns a byte. A lineitem row (17 columns): under 1 us.

use arrow_array::cast::AsArray;
use arrow_array::types::*;
use arrow_array::{Array, ArrayRef, RecordBatch};
use hidb::ROWID_COLUMN;
use hidb::arrow_mapping::vector_bytes;
use hidb::schema::Schema;
use hidb::types::{DataType, Lane, Scalar};

use crate::chunk::header::{Header, Layout};
use crate::encoding::fsst::decode::TABLE_BYTES;
use crate::encoding::integers::{self, EncodedIntegers, Mapping};
use crate::encoding::{alp, bitmap, dictionary, plain, text};
use crate::error::{Result, SegmentError};
use crate::footer::{ChunkMeta, Encoding};
use crate::kernels::Float;
use crate::membership::{self, MembershipMeta};
use crate::zone::{ZONE_BYTES_MAX, ZoneMap};
use crate::{BLOCK_ROWS, ROW_GROUP_ROWS_MAX};

/// Values (up to twice as many) looked at before a dictionary is tried.
const SAMPLE_VALUES: usize = 1024;
/// The most entries of a dictionary.
const DICTIONARY_ENTRIES_MAX: usize = 16_384;

/// One encoded column of a row group.
#[derive(Clone, Debug)]
pub struct EncodedChunk {
    /// The chunk.
    pub bytes: Vec<u8>,
    /// What is in it; its offset (and that of its filter) is 0 until a segment gives it a place.
    pub meta: ChunkMeta,
    /// Its membership filter, where one pays.
    pub membership: Option<Vec<u8>>,
}

/// One encoded row group.
#[derive(Clone, Debug)]
pub struct EncodedRowGroup {
    /// Rows.
    pub rows: u32,
    /// The first row's `_rowid`.
    pub first_rowid: i64,
    /// The table's columns in order, then `_rowid`.
    pub chunks: Vec<EncodedChunk>,
}

/// The row ids of a row group.
#[derive(Clone, Copy, Debug)]
pub enum RowIds<'a> {
    /// Consecutive, from this one.
    From(i64),
    /// One per row.
    Explicit(&'a [i64]),
}

/// Encodes the rows of `batches` (canonical arrays of `schema`, 1 to 131,072 rows in all) as one row group.
pub fn encode_row_group(schema: &Schema, batches: &[RecordBatch], rowids: RowIds<'_>) -> Result<EncodedRowGroup> {
    let invalid = |detail: String| SegmentError::InvalidInput { column: "row group".into(), detail };
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    if rows == 0 || rows > ROW_GROUP_ROWS_MAX {
        return Err(invalid(format!("{rows} rows: a row group has 1 to {ROW_GROUP_ROWS_MAX}")));
    }
    if let Some(batch) = batches.iter().find(|batch| batch.num_columns() != schema.len()) {
        return Err(invalid(format!("a batch of {} columns for {}", batch.num_columns(), schema.len())));
    }
    let mut chunks = Vec::with_capacity(schema.len() + 1);
    let mut columns = Vec::with_capacity(schema.len());
    for (index, field) in schema.fields().iter().enumerate() {
        let parts: Vec<ArrayRef> = batches.iter().map(|batch| batch.column(index).clone()).collect();
        let chunk = encode_chunk(&field.name, &field.data_type, &parts)?;
        if !field.nullable && chunk.meta.zone.null_count > 0 {
            let column = field.name.clone();
            return Err(SegmentError::InvalidInput { column, detail: "NULL in a column that is not nullable".into() });
        }
        chunks.push(chunk);
        columns.push(parts);
    }
    let types: Vec<DataType> = schema.fields().iter().map(|field| field.data_type).collect();
    let metas: Vec<&ChunkMeta> = chunks.iter().map(|chunk: &EncodedChunk| &chunk.meta).collect();
    for (column, filter, values) in membership::choose::filters(&types, &columns, &metas) {
        chunks[column].meta.membership =
            Some(MembershipMeta { offset: 0, length: filter.len() as u32, crc32c: crc32c::crc32c(&filter), values });
        chunks[column].membership = Some(filter);
    }
    let rowids: Vec<i64> = match rowids {
        RowIds::From(first) => {
            if first.checked_add(rows as i64).is_none() {
                return Err(invalid(format!("row ids from {first} leave the range of int64")));
            }
            (first..first + rows as i64).collect()
        }
        RowIds::Explicit(rowids) if rowids.len() == rows => rowids.to_vec(),
        RowIds::Explicit(rowids) => return Err(invalid(format!("{} row ids for {rows} rows", rowids.len()))),
    };
    let first_rowid = rowids[0];
    let column = Column { name: ROWID_COLUMN, data_type: DataType::Int64, rows, valid: None, null_count: 0 };
    chunks.push(column.encode_i64(&rowids)?);
    Ok(EncodedRowGroup { rows: rows as u32, first_rowid, chunks })
}

/// Encodes one column. `parts` are canonical arrays of `data_type`, one after another, at most 131,072
/// rows in all.
pub fn encode_chunk(name: &str, data_type: &DataType, parts: &[ArrayRef]) -> Result<EncodedChunk> {
    let rows = parts.iter().map(|part| part.len()).sum();
    let null_count: usize = parts.iter().map(|part| part.null_count()).sum();
    if rows > ROW_GROUP_ROWS_MAX {
        return Err(SegmentError::InvalidInput { column: name.into(), detail: format!("{rows} rows in a row group") });
    }
    let valid = (null_count > 0).then(|| validity_words(parts, rows));
    let column = Column { name, data_type: *data_type, rows, valid, null_count };
    macro_rules! numbers {
        ($arrow:ty, $value:ty) => {{
            let mut values: Vec<$value> = Vec::with_capacity(rows);
            for part in parts {
                let part = part.as_primitive_opt::<$arrow>().ok_or_else(|| column.wrong_array(part))?;
                values.extend(part.values().iter().map(|value| <$value>::from(*value)));
            }
            column.fill_nulls(&mut values);
            values
        }};
    }
    match data_type {
        DataType::Boolean => column.encode_bool(parts),
        DataType::Int16 => column.encode_i64(&numbers!(Int16Type, i64)),
        DataType::Int32 => column.encode_i64(&numbers!(Int32Type, i64)),
        DataType::Int64 => column.encode_i64(&numbers!(Int64Type, i64)),
        DataType::Date => column.encode_i64(&numbers!(Date32Type, i64)),
        DataType::Timestamp { .. } => column.encode_i64(&numbers!(TimestampMicrosecondType, i64)),
        DataType::Decimal { .. } if data_type.lane() == Lane::I64 => column.encode_i64(&numbers!(Decimal64Type, i64)),
        DataType::Decimal { .. } => column.encode_i128(&numbers!(Decimal128Type, i128)),
        DataType::Float32 => column.encode_float(&numbers!(Float32Type, f32)),
        DataType::Float64 => column.encode_float(&numbers!(Float64Type, f64)),
        DataType::Varchar(_) | DataType::Text => {
            let mut values: Vec<&[u8]> = Vec::with_capacity(rows);
            for part in parts {
                let part = part.as_string_opt::<i32>().ok_or_else(|| column.wrong_array(part))?;
                values.extend(part.iter().map(|value| value.map_or(&b""[..], str::as_bytes)));
            }
            column.encode_bytes(&values)
        }
        DataType::Bytea => {
            let mut values: Vec<&[u8]> = Vec::with_capacity(rows);
            for part in parts {
                let part = part.as_binary_opt::<i32>().ok_or_else(|| column.wrong_array(part))?;
                values.extend(part.iter().map(|value| value.unwrap_or(b"")));
            }
            column.encode_bytes(&values)
        }
        DataType::Vector { .. } => column.encode_vector(parts),
    }
}

/// Bit `i`: row `i` is not NULL.
fn validity_words(parts: &[ArrayRef], rows: usize) -> Vec<u64> {
    let mut words = vec![0u64; rows.div_ceil(64)];
    let mut row = 0;
    for part in parts {
        match part.nulls() {
            Some(nulls) => {
                for valid in nulls.iter() {
                    words[row / 64] |= u64::from(valid) << (row % 64);
                    row += 1;
                }
            }
            None => {
                for _ in 0..part.len() {
                    words[row / 64] |= 1 << (row % 64);
                    row += 1;
                }
            }
        }
    }
    words
}

/// A column that is being encoded.
struct Column<'a> {
    name: &'a str,
    data_type: DataType,
    rows: usize,
    /// `None`: no NULLs.
    valid: Option<Vec<u64>>,
    null_count: usize,
}

/// The parts of a chunk that encodings produce.
struct Parts {
    encoding: Encoding,
    layout: Layout,
    directory: Vec<u8>,
    auxiliary: Vec<u8>,
    payload: Vec<u8>,
    dictionary_len: usize,
    mapping: Mapping,
    value_width: usize,
}

impl Parts {
    fn new(encoding: Encoding, layout: Layout) -> Self {
        Parts {
            encoding,
            layout,
            directory: Vec::new(),
            auxiliary: Vec::new(),
            payload: Vec::new(),
            dictionary_len: 0,
            mapping: Mapping::IDENTITY,
            value_width: 0,
        }
    }

    fn integers(layout: Layout, encoding: Encoding, integers: EncodedIntegers) -> Self {
        Parts { directory: integers.directory, payload: integers.payload, ..Parts::new(encoding, layout) }
    }
}

impl Column<'_> {
    fn wrong_array(&self, array: &ArrayRef) -> SegmentError {
        SegmentError::InvalidInput {
            column: self.name.into(),
            detail: format!("an array of {:?} for type {}", array.data_type(), self.data_type),
        }
    }

    fn is_valid(&self, row: usize) -> bool {
        self.valid.as_ref().is_none_or(|words| words[row / 64] >> (row % 64) & 1 == 1)
    }

    /// Gives NULL slots the value before them (the first ones: the first value there is).
    fn fill_nulls<T: Copy + Default>(&self, values: &mut [T]) {
        if self.valid.is_none() {
            return;
        }
        let first = (0..self.rows).find(|row| self.is_valid(*row));
        let mut last = first.map_or(T::default(), |row| values[row]);
        for (row, value) in values.iter_mut().enumerate() {
            if self.is_valid(row) { last = *value } else { *value = last }
        }
    }

    fn zone(&self, min: Scalar, max: Scalar) -> ZoneMap {
        let mut zone = ZoneMap::unknown(self.rows as u32, self.null_count as u32);
        if self.null_count < self.rows {
            (zone.min, zone.max, zone.exact) = (min, max, true);
        }
        zone
    }

    fn encode_i64(&self, values: &[i64]) -> Result<EncodedChunk> {
        let (min, max) = if values.is_empty() { (0, 0) } else { integers::bounds(values) };
        let zone = self.zone(Scalar::I64(min), Scalar::I64(max));
        if let Some(scale) = common_step(values, min) {
            let stored: Vec<i64> = values.iter().map(|value| (value.wrapping_sub(min) as u64 / scale) as i64).collect();
            let encoded = integers::encode(&stored);
            let mut parts = Parts::integers(Layout::Integers, encoded.encoding(), encoded);
            parts.mapping = Mapping { origin: i128::from(min), scale };
            return self.finish(parts, zone);
        }
        let encoded = integers::encode(values);
        if let Some(parts) = dictionary_i64(values, &encoded) {
            return self.finish(parts, zone);
        }
        self.finish(Parts::integers(Layout::Integers, encoded.encoding(), encoded), zone)
    }

    fn encode_i128(&self, values: &[i128]) -> Result<EncodedChunk> {
        let min = values.iter().copied().min().unwrap_or(0);
        let max = values.iter().copied().max().unwrap_or(0);
        let zone = self.zone(Scalar::I128(min), Scalar::I128(max));
        if max.checked_sub(min).is_some_and(|span| span <= i128::from(i64::MAX)) {
            let stored: Vec<i64> = values.iter().map(|value| (value - min) as i64).collect();
            let encoded = integers::encode(&stored);
            let mut parts = Parts::integers(Layout::Integers, encoded.encoding(), encoded);
            parts.mapping = Mapping { origin: min, scale: 1 };
            return self.finish(parts, zone);
        }
        let mut parts = Parts::new(Encoding::Plain, Layout::Plain);
        parts.value_width = 16;
        parts.payload = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.finish(parts, zone)
    }

    fn encode_float<F: Float>(&self, values: &[F]) -> Result<EncodedChunk> {
        let (mut min, mut max, mut has_nan) = (f64::INFINITY, f64::NEG_INFINITY, false);
        for value in values {
            let value = value.to_f64();
            has_nan |= value.is_nan();
            min = min.min(value);
            max = max.max(value);
        }
        if min > max {
            (min, max) = (f64::NAN, f64::NAN);
        }
        let mut zone = self.zone(Scalar::F64(min + 0.0), Scalar::F64(max + 0.0));
        zone.has_nan = has_nan && self.null_count < self.rows;
        if let Some(first) = values.first()
            && values.iter().all(|value| value.bits() == first.bits())
        {
            let mut parts = Parts::new(Encoding::Constant, Layout::Constant);
            parts.mapping.origin = i128::from(first.bits());
            return self.finish(parts, zone);
        }
        if let Some(encoded) = alp::encode(values) {
            let mut parts = Parts::new(encoded.encoding(), Layout::Alp);
            (parts.directory, parts.payload) = (encoded.directory, encoded.payload);
            return self.finish(parts, zone);
        }
        let mut parts = Parts::new(Encoding::Plain, Layout::Plain);
        parts.directory = plain::float_directory(values);
        parts.value_width = F::BYTES;
        parts.payload = plain::float_bytes(values);
        self.finish(parts, zone)
    }

    fn encode_bool(&self, arrays: &[ArrayRef]) -> Result<EncodedChunk> {
        let mut words = vec![0u64; self.rows.div_ceil(64)];
        let (mut row, mut trues) = (0, 0);
        for array in arrays {
            let array = array.as_boolean_opt().ok_or_else(|| self.wrong_array(array))?;
            for value in array.values().iter() {
                let value = value && self.is_valid(row);
                words[row / 64] |= u64::from(value) << (row % 64);
                trues += usize::from(value);
                row += 1;
            }
        }
        let falses = self.rows - self.null_count - trues;
        let zone = self.zone(Scalar::Bool(falses == 0), Scalar::Bool(trues > 0));
        if trues == 0 || falses == 0 {
            let mut parts = Parts::new(Encoding::Constant, Layout::Constant);
            parts.mapping.origin = i128::from(trues > 0);
            return self.finish(parts, zone);
        }
        let mut parts = Parts::new(Encoding::Bitmap, Layout::Bitmap);
        parts.payload = bitmap::encode(&words, self.rows);
        self.finish(parts, zone)
    }

    fn encode_vector(&self, arrays: &[ArrayRef]) -> Result<EncodedChunk> {
        let width = self.data_type.fixed_width().unwrap_or(0);
        let mut payload = Vec::with_capacity(self.rows * width);
        for array in arrays {
            let values = vector_bytes(array, &self.data_type).ok_or_else(|| self.wrong_array(array))?;
            payload.extend_from_slice(&values);
        }
        let mut parts = Parts::new(Encoding::Plain, Layout::Plain);
        parts.value_width = width;
        parts.payload = payload;
        self.finish(parts, ZoneMap::unknown(self.rows as u32, self.null_count as u32))
    }

    fn encode_bytes(&self, values: &[&[u8]]) -> Result<EncodedChunk> {
        let total: usize = values.iter().map(|value| value.len()).sum();
        if total > u32::MAX as usize / 4 {
            return Err(SegmentError::InvalidInput {
                column: self.name.into(),
                detail: format!("{total} bytes in one row group"),
            });
        }
        if let Some((entries, codes)) = self.distinct(values) {
            let present = entries.iter().filter(|entry| self.null_count == 0 || !entry.is_empty());
            // Among NULLs an empty entry may stand for NULL only: bounds then start at the empty value, which is
            // a bound but perhaps not a value.
            let mut zone = match (entries.first(), entries.last()) {
                (Some(first), Some(last)) => self.bytes_zone(first, last),
                _ => ZoneMap::unknown(self.rows as u32, self.null_count as u32),
            };
            zone.exact &= self.null_count == 0 || present.count() == entries.len();
            let encoded = integers::encode(&codes);
            let encoding = match encoded.encoding() {
                Encoding::Constant => Encoding::Constant,
                _ => Encoding::Dictionary,
            };
            let mut parts = Parts::integers(Layout::DictionaryBytes, encoding, encoded);
            parts.auxiliary = dictionary::encode_bytes(&entries);
            parts.dictionary_len = entries.len();
            return self.finish(parts, zone);
        }
        let present = || values.iter().enumerate().filter(|(row, _)| self.is_valid(*row)).map(|(_, value)| *value);
        let zone = match (present().min(), present().max()) {
            (Some(min), Some(max)) => self.bytes_zone(min, max),
            _ => ZoneMap::unknown(self.rows as u32, self.null_count as u32),
        };
        let encoded = text::encode(values);
        let mut parts = match encoded.table {
            Some(table) => {
                debug_assert_eq!(table.len(), TABLE_BYTES);
                Parts { auxiliary: table, ..Parts::new(Encoding::Fsst, Layout::TextFsst) }
            }
            None => Parts::new(Encoding::Plain, Layout::Text),
        };
        parts.directory = encoded.directory;
        parts.payload = encoded.payload;
        self.finish(parts, zone)
    }

    /// Distinct values and codes, when a dictionary pays.
    fn distinct<'v>(&self, values: &[&'v [u8]]) -> Option<(Vec<&'v [u8]>, Vec<i64>)> {
        if values.is_empty() {
            return None;
        }
        let stride = (values.len() / SAMPLE_VALUES).max(1);
        let sampled = (0..values.len()).step_by(stride).filter(|row| self.is_valid(*row));
        let sample: Vec<&[u8]> = sampled.map(|row| values[row]).collect();
        // Of n values drawn from D distinct ones about n^2 / 2D repeat another (the birthday problem).
        let (entries, _) = dictionary::build_bytes(&sample, sample.len())?;
        let repeated = sample.len() - entries.len();
        if sample.len() > 1 && repeated * 3 * DICTIONARY_ENTRIES_MAX < sample.len() * sample.len() {
            return None;
        }
        dictionary::build_bytes(values, DICTIONARY_ENTRIES_MAX.min(values.len() / 4 + 1))
    }

    fn bytes_zone(&self, min: &[u8], max: &[u8]) -> ZoneMap {
        let (low, high) = (lower_bound(min), upper_bound(max));
        let exact = min.len() <= ZONE_BYTES_MAX && max.len() <= ZONE_BYTES_MAX;
        let mut zone = self.zone(Scalar::Bytes(low), high.map_or(Scalar::Null, Scalar::Bytes));
        zone.exact &= exact;
        zone
    }

    fn finish(&self, parts: Parts, zone: ZoneMap) -> Result<EncodedChunk> {
        let validity = self.validity_section();
        let sections = [&parts.directory, &validity, &parts.auxiliary, &parts.payload];
        let total = sections.iter().map(|section| section.len()).sum::<usize>();
        if total > u32::MAX as usize / 2 {
            return Err(SegmentError::InvalidInput {
                column: self.name.into(),
                detail: format!("{total} bytes in one row group"),
            });
        }
        let header = Header {
            encoding: parts.encoding,
            layout: parts.layout,
            rows: self.rows as u32,
            null_count: self.null_count as u32,
            dictionary_len: parts.dictionary_len as u32,
            lengths: sections.map(|section| section.len() as u32),
            origin: parts.mapping.origin,
            scale: parts.mapping.scale,
            value_width: parts.value_width as u32,
        };
        let header = header.to_bytes();
        let mut bytes = Vec::with_capacity(header.len() + total);
        bytes.extend_from_slice(&header);
        for section in sections {
            bytes.extend_from_slice(section);
        }
        let meta = ChunkMeta {
            offset: 0,
            length: bytes.len() as u32,
            crc32c: crc32c::crc32c(&bytes),
            encoding: parts.encoding,
            zone,
            membership: None,
        };
        Ok(EncodedChunk { bytes, meta, membership: None })
    }

    fn validity_section(&self) -> Vec<u8> {
        let Some(words) = &self.valid else { return Vec::new() };
        let (mut records, mut bitmaps) = (Vec::new(), Vec::new());
        for (b, block) in words.chunks(BLOCK_ROWS / 64).enumerate() {
            let rows = (self.rows - b * BLOCK_ROWS).min(BLOCK_ROWS);
            let nulls = rows - block.iter().map(|word| word.count_ones() as usize).sum::<usize>();
            records.extend_from_slice(&(nulls as u32).to_le_bytes());
            records.extend_from_slice(&(bitmaps.len() as u32).to_le_bytes());
            if nulls > 0 && nulls < rows {
                bitmaps.extend_from_slice(&bitmap::encode(block, rows));
            }
        }
        records.extend_from_slice(&bitmaps);
        records
    }
}

/// The greatest common divisor of all distances from `min`, if it is more than 1 (whole numbers in a
/// decimal column, whole seconds in a timestamp).
fn common_step(values: &[i64], min: i64) -> Option<u64> {
    let mut step = 0u64;
    for value in values {
        let (mut a, mut b) = (value.wrapping_sub(min) as u64, step);
        if b != 0 && a.is_multiple_of(b) {
            continue;
        }
        while b != 0 {
            (a, b) = (b, a % b);
        }
        step = a;
        if step == 1 {
            return None;
        }
    }
    (step > 1).then_some(step)
}

/// A dictionary for integers that are wide but few, if it is clearly smaller than `encoded`.
fn dictionary_i64(values: &[i64], encoded: &EncodedIntegers) -> Option<Parts> {
    /// Packed values narrower than this are left alone.
    const WIDTH_MIN: usize = 12;
    if values.is_empty() || encoded.payload.len() * 8 < values.len() * WIDTH_MIN {
        return None;
    }
    let stride = (values.len() / SAMPLE_VALUES).max(1);
    let sample: Vec<i64> = values.iter().step_by(stride).copied().collect();
    dictionary::build_i64(&sample, sample.len() / 4)?;
    let (entries, codes) = dictionary::build_i64(values, DICTIONARY_ENTRIES_MAX.min(values.len() / 8))?;
    let packed = integers::encode(&codes);
    let auxiliary: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    if (packed.payload.len() + auxiliary.len()) * 10 > encoded.payload.len() * 7 {
        return None;
    }
    let mut parts = Parts::integers(Layout::DictionaryI64, Encoding::Dictionary, packed);
    parts.dictionary_len = entries.len();
    parts.auxiliary = auxiliary;
    Some(parts)
}

fn lower_bound(value: &[u8]) -> Vec<u8> {
    value[..value.len().min(ZONE_BYTES_MAX)].to_vec()
}

/// A short value that is not less than `value`; `None` when there is none.
fn upper_bound(value: &[u8]) -> Option<Vec<u8>> {
    if value.len() <= ZONE_BYTES_MAX {
        return Some(value.to_vec());
    }
    let mut bound = value[..ZONE_BYTES_MAX].to_vec();
    while let Some(last) = bound.pop() {
        if last < u8::MAX {
            bound.push(last + 1);
            return Some(bound);
        }
    }
    None
}
