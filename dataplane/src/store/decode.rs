//! From stored row groups back to Arrow: what merging and tests need. Scans do not come here.

use std::sync::Arc;

use arrow_array::types::{
    ArrowPrimitiveType, Date32Type, Decimal64Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type,
    Int64Type, TimestampMicrosecondType,
};
use arrow_array::{ArrayRef, BinaryArray, BooleanArray, PrimitiveArray, RecordBatch, RecordBatchOptions, StringArray};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::DataType as ArrowType;
use bytes::Bytes;
use heliostat_segment::{BLOCK_ROWS, Chunk, Rows};
use hidb::DataType;
use hidb::arrow_mapping::{to_arrow_schema, to_arrow_type, vector_array};

use super::error::Result;
use super::table::SegmentHandle;
use crate::device::Device;
use crate::volume::EXTENT_UNIT_BYTES;

/// The rows of a row group, in canonical arrays, and their row ids.
#[derive(Clone, Debug)]
pub struct DecodedRowGroup {
    /// The table's columns.
    pub rows: RecordBatch,
    /// One row id per row.
    pub rowids: Vec<i64>,
}

impl DecodedRowGroup {
    /// Only the rows whose bit is set in a bitmap over the row group; without one, all.
    ///
    /// # Errors
    /// [`StoreError::Internal`](super::StoreError::Internal) when the bitmap is shorter than the row group.
    pub fn among(self, bitmap: Option<&[u64]>) -> Result<Self> {
        let Some(words) = bitmap else { return Ok(self) };
        let short = |error: String| super::StoreError::Internal(format!("the bitmap of a row group's rows: {error}"));
        let rows = self.rowids.len();
        if words.len() * 64 < rows {
            return Err(short(format!("{} words for {rows} rows", words.len())));
        }
        let bits = BooleanBuffer::new(Buffer::from_vec(words.to_vec()), 0, rows);
        let rowids = bits.set_indices().map(|row| self.rowids[row]).collect();
        let keep = BooleanArray::new(bits, None);
        let rows = arrow_select::filter::filter_record_batch(&self.rows, &keep);
        Ok(DecodedRowGroup { rows: rows.map_err(|error| short(error.to_string()))?, rowids })
    }
}

/// Reads, checks and decodes one row group, all of it here: for tools and tests.
///
/// # Errors
/// [`StoreError::Corruption`], or the device's.
pub async fn read_row_group<D: Device>(
    device: &D,
    segment: &SegmentHandle,
    row_group: usize,
) -> Result<DecodedRowGroup> {
    decode_row_group(segment, row_group, &read_chunks(device, segment, row_group).await?)
}

/// Reads and checks all chunks of a row group, the row ids last.
///
/// # Errors
/// [`StoreError::Corruption`], or the device's.
pub async fn read_chunks<D: Device>(device: &D, segment: &SegmentHandle, row_group: usize) -> Result<Vec<Chunk>> {
    let types = segment.footer.schema.fields().iter().map(|field| field.data_type).chain([DataType::Int64]);
    let mut chunks = Vec::with_capacity(types.size_hint().0);
    for (column, data_type) in types.enumerate() {
        chunks.push(read_chunk(device, segment, row_group, column, &data_type).await?);
    }
    Ok(chunks)
}

/// The rows of what [`read_chunks`] read.
///
/// # Errors
/// [`StoreError::Corruption`].
pub fn decode_row_group(segment: &SegmentHandle, row_group: usize, chunks: &[Chunk]) -> Result<DecodedRowGroup> {
    let schema = &segment.footer.schema;
    let rowid_column = schema.len();
    let damaged = |reason: String| segment.corruption(row_group, rowid_column, &reason);
    let Some((rowid_chunk, chunks)) = chunks.split_last() else { return Err(damaged("it was not read".into())) };
    let mut columns = Vec::with_capacity(chunks.len());
    for (column, chunk) in chunks.iter().enumerate() {
        columns.push(decode_chunk(chunk).map_err(|error| segment.corruption(row_group, column, &error.to_string()))?);
    }
    let rows = rowid_chunk.rows();
    let mut rowids = Vec::with_capacity(rows);
    let mut block = [0i64; BLOCK_ROWS];
    for b in 0..rowid_chunk.blocks() {
        rowid_chunk.decode_i64(b, &mut block).map_err(|error| damaged(error.to_string()))?;
        rowids.extend_from_slice(&block[..rowid_chunk.block_rows(b)]);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    let rows = RecordBatch::try_new_with_options(to_arrow_schema(schema, true), columns, &options);
    Ok(DecodedRowGroup { rows: rows.map_err(|error| damaged(error.to_string()))?, rowids })
}

/// Reads and checks one chunk.
///
/// # Errors
/// [`StoreError::Corruption`], or the device's.
pub async fn read_chunk<D: Device>(
    device: &D,
    segment: &SegmentHandle,
    row_group: usize,
    column: usize,
    data_type: &DataType,
) -> Result<Chunk> {
    let (offset, length) = segment.chunk_extent(row_group, column)?;
    let bytes = device.read(offset, length.next_multiple_of(EXTENT_UNIT_BYTES as usize)).await?.slice(..length);
    segment.verify_chunk(row_group, column, &bytes)?;
    let rows = segment.footer.row_groups.get(row_group).map_or(0, |group| group.rows);
    Chunk::open(Bytes::clone(&bytes), data_type, rows)
        .map_err(|error| segment.corruption(row_group, column, &error.to_string()))
}

/// All values of a chunk as a canonical Arrow array.
///
/// # Errors
/// Bytes that are not what their encoding says.
pub fn decode_chunk(chunk: &Chunk) -> Result<ArrayRef, hidb::Error> {
    let rows = chunk.rows();
    let nulls = validity(chunk)?;
    let data_type = *chunk.data_type();
    let fixed = || -> Result<Buffer, hidb::Error> {
        let width = data_type.fixed_width().unwrap_or(0);
        let mut values = vec![0u8; rows * width];
        for b in 0..chunk.blocks() {
            let n = chunk.block_rows(b);
            let from = b * BLOCK_ROWS * width;
            chunk.gather_fixed(b, Rows::All(n), &mut values[from..from + n * width])?;
        }
        Ok(Buffer::from_vec(values))
    };
    Ok(match data_type {
        DataType::Boolean => Arc::new(BooleanArray::new(booleans(chunk)?, nulls)),
        DataType::Int16 => primitive::<Int16Type>(fixed()?, rows, nulls),
        DataType::Int32 => primitive::<Int32Type>(fixed()?, rows, nulls),
        DataType::Int64 => primitive::<Int64Type>(fixed()?, rows, nulls),
        DataType::Float32 => primitive::<Float32Type>(fixed()?, rows, nulls),
        DataType::Float64 => primitive::<Float64Type>(fixed()?, rows, nulls),
        DataType::Date => primitive::<Date32Type>(fixed()?, rows, nulls),
        DataType::Timestamp { .. } => {
            retyped::<TimestampMicrosecondType>(fixed()?, rows, nulls, to_arrow_type(&data_type, true))
        }
        DataType::Decimal { .. } => {
            let arrow = to_arrow_type(&data_type, true);
            match arrow {
                ArrowType::Decimal64(..) => retyped::<Decimal64Type>(fixed()?, rows, nulls, arrow),
                _ => retyped::<Decimal128Type>(fixed()?, rows, nulls, arrow),
            }
        }
        DataType::Varchar(_) | DataType::Text => {
            let (offsets, data) = variable(chunk)?;
            Arc::new(StringArray::try_new(offsets, data, nulls).map_err(malformed)?)
        }
        DataType::Bytea => {
            let (offsets, data) = variable(chunk)?;
            Arc::new(BinaryArray::try_new(offsets, data, nulls).map_err(malformed)?)
        }
        DataType::Vector { .. } => vector_array(&data_type, rows, fixed()?, nulls).map_err(malformed)?,
    })
}

fn malformed(error: impl std::fmt::Display) -> hidb::Error {
    hidb::Error::new(hidb::ErrorCode::Corruption, error.to_string())
}

fn primitive<T: ArrowPrimitiveType>(values: Buffer, rows: usize, nulls: Option<NullBuffer>) -> ArrayRef {
    Arc::new(PrimitiveArray::<T>::new(ScalarBuffer::new(aligned(values), 0, rows), nulls))
}

fn retyped<T: ArrowPrimitiveType>(
    values: Buffer,
    rows: usize,
    nulls: Option<NullBuffer>,
    arrow: ArrowType,
) -> ArrayRef {
    let array = PrimitiveArray::<T>::new(ScalarBuffer::new(aligned(values), 0, rows), nulls);
    Arc::new(array.with_data_type(arrow))
}

/// A byte vector may be aligned to one byte only; Arrow's own buffers are aligned to 64.
fn aligned(buffer: Buffer) -> Buffer {
    if buffer.as_ptr().align_offset(16) == 0 { buffer } else { Buffer::from_slice_ref(buffer.as_slice()) }
}

fn pack(words: &[u64; 16], rows: usize, bits: &mut Vec<bool>) {
    bits.extend((0..rows).map(|row| words[row / 64] >> (row % 64) & 1 == 1));
}

fn validity(chunk: &Chunk) -> Result<Option<NullBuffer>, hidb::Error> {
    if chunk.null_count() == 0 {
        return Ok(None);
    }
    let mut bits = Vec::with_capacity(chunk.rows());
    let mut words = [0u64; 16];
    for b in 0..chunk.blocks() {
        chunk.validity(b, &mut words)?;
        pack(&words, chunk.block_rows(b), &mut bits);
    }
    Ok(Some(NullBuffer::from(bits)))
}

fn booleans(chunk: &Chunk) -> Result<BooleanBuffer, hidb::Error> {
    let mut bits = Vec::with_capacity(chunk.rows());
    let mut words = [0u64; 16];
    for b in 0..chunk.blocks() {
        chunk.decode_bool(b, &mut words)?;
        pack(&words, chunk.block_rows(b), &mut bits);
    }
    Ok(BooleanBuffer::from(bits))
}

fn variable(chunk: &Chunk) -> Result<(OffsetBuffer<i32>, Buffer), hidb::Error> {
    let mut ends = Vec::with_capacity(chunk.rows());
    let mut data = Vec::new();
    for b in 0..chunk.blocks() {
        chunk.gather_bytes(b, Rows::All(chunk.block_rows(b)), &mut ends, &mut data)?;
    }
    let mut offsets = Vec::with_capacity(ends.len() + 1);
    offsets.push(0i32);
    for end in ends {
        offsets.push(i32::try_from(end).map_err(|_| malformed("text of a row group of more than 2 GiB"))?);
    }
    if offsets.is_sorted() {
        Ok((OffsetBuffer::new(offsets.into()), Buffer::from_vec(data)))
    } else {
        Err(malformed("text offsets go back"))
    }
}
