//! Encoding of row groups: canonical Arrow arrays in, chunks out.

use arrow_array::{ArrayRef, RecordBatch};
use hidb::schema::Schema;
use hidb::types::DataType;

use crate::error::Result;
use crate::footer::ChunkMeta;

/// One encoded column of a row group.
#[derive(Clone, Debug)]
pub struct EncodedChunk {
    /// The chunk.
    pub bytes: Vec<u8>,
    /// What is in it; its offset is 0 until a segment gives it a place.
    pub meta: ChunkMeta,
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

/// Encodes the rows of `batches` (canonical arrays of `schema`, at most 131,072 rows in all) as one row group.
pub fn encode_row_group(_schema: &Schema, _batches: &[RecordBatch], _rowids: RowIds<'_>) -> Result<EncodedRowGroup> {
    unimplemented!()
}

/// Encodes one column. `parts` are canonical arrays of `data_type`, one after another.
pub fn encode_chunk(_name: &str, _data_type: &DataType, _parts: &[ArrayRef]) -> Result<EncodedChunk> {
    unimplemented!()
}
