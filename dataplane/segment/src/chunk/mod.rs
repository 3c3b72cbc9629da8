//! Chunks: one column of one row group, read in place.

use bytes::Bytes;
use hidb::types::DataType;

use crate::error::Result;
use crate::footer::Encoding;
use crate::predicate::{BlockMatch, ChunkPredicate, CompiledPredicate};
use crate::selection::Selection;
use crate::zone::ZoneMap;

/// One column of one row group. Cheap to open (nothing is decoded) and to clone.
#[derive(Clone, Debug)]
pub struct Chunk {
    bytes: Bytes,
    data_type: DataType,
    rows: u32,
}

/// The entries of a dictionary chunk, ascending.
#[derive(Clone, Copy, Debug)]
pub struct DictionaryView<'a> {
    chunk: &'a Chunk,
}

impl<'a> DictionaryView<'a> {
    /// How many entries there are; codes are below this.
    pub fn len(&self) -> usize {
        unimplemented!()
    }
    /// Whether there is none (a chunk of NULLs).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Entry `code` of a bytes-lane chunk.
    pub fn bytes(&self, _code: u32) -> Result<&'a [u8]> {
        unimplemented!()
    }
    /// Entry `code` of a 64-bit-lane chunk.
    pub fn i64(&self, _code: u32) -> Result<i64> {
        unimplemented!()
    }
}

#[allow(unused_variables, missing_docs)]
impl Chunk {
    /// Checks the header and the extents of the parts; decodes nothing, allocates nothing.
    pub fn open(bytes: Bytes, data_type: &DataType, rows: u32) -> Result<Chunk> {
        unimplemented!()
    }
    /// The column's type.
    pub fn data_type(&self) -> &DataType {
        &self.data_type
    }
    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.rows as usize
    }
    /// 1,024-row blocks.
    pub fn blocks(&self) -> usize {
        self.rows().div_ceil(1024)
    }
    /// Rows of block `b` (1,024 but for the last).
    pub fn block_rows(&self, b: usize) -> usize {
        self.rows().saturating_sub(b * 1024).min(1024)
    }
    /// How it is encoded.
    pub fn encoding(&self) -> Encoding {
        unimplemented!()
    }
    /// NULLs in the whole chunk.
    pub fn null_count(&self) -> usize {
        unimplemented!()
    }
    /// Bytes of the encoded chunk.
    pub fn encoded_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// NULLs in block `b`.
    pub fn block_null_count(&self, b: usize) -> Result<usize> {
        unimplemented!()
    }
    /// Bounds of block `b` (unknown for text that is not in a dictionary, and for vectors).
    pub fn zone(&self, b: usize) -> Result<ZoneMap> {
        unimplemented!()
    }
    /// Writes which rows of block `b` are not NULL (bits past its rows are 0). Returns whether all are.
    pub fn validity(&self, b: usize, out: &mut [u64; 16]) -> Result<bool> {
        unimplemented!()
    }

    /// 64-bit lane: all values of block `b`; NULL rows hold arbitrary values. `out` past the block's rows is arbitrary.
    pub fn decode_i64(&self, b: usize, out: &mut [i64; 1024]) -> Result<()> {
        unimplemented!()
    }
    /// 128-bit lane (64-bit lanes are widened).
    pub fn decode_i128(&self, b: usize, out: &mut [i128; 1024]) -> Result<()> {
        unimplemented!()
    }
    /// Float lane.
    pub fn decode_f64(&self, b: usize, out: &mut [f64; 1024]) -> Result<()> {
        unimplemented!()
    }
    /// Boolean lane, as a bitmap.
    pub fn decode_bool(&self, b: usize, out: &mut [u64; 16]) -> Result<()> {
        unimplemented!()
    }
    /// 64-bit lane: the selected values, compacted into the front of `out`. Returns how many.
    pub fn gather_i64(&self, b: usize, selection: &Selection, out: &mut [i64; 1024]) -> Result<usize> {
        unimplemented!()
    }
    /// Selected values, compacted, in the Arrow native width (`DataType::fixed_width`), little-endian, into the front
    /// of `out`. NULL rows hold arbitrary values. Returns how many rows were written.
    pub fn gather_fixed(&self, b: usize, selection: &Selection, out: &mut [u8]) -> Result<usize> {
        unimplemented!()
    }
    /// Bytes lane: appends the selected values to `data`, and for each the length of `data` after it to `ends`
    /// (NULL rows have length 0). Returns how many rows.
    pub fn gather_bytes(
        &self,
        b: usize,
        selection: &Selection,
        ends: &mut Vec<u32>,
        data: &mut Vec<u8>,
    ) -> Result<usize> {
        unimplemented!()
    }
    /// Bytes lane: lengths in bytes of all values of block `b` without decompressing (NULL rows: 0).
    pub fn lengths(&self, b: usize, out: &mut [u32; 1024]) -> Result<()> {
        unimplemented!()
    }
    /// Bytes lane: the selected values one after another into the front of `data`, and for each its end (bytes from
    /// the start of `data`) into `ends`. Returns (rows, bytes); `BufferTooSmall` when they don't fit (data is then arbitrary).
    pub fn gather_bytes_into(
        &self,
        b: usize,
        selection: &Selection,
        ends: &mut [u32; 1024],
        data: &mut [u8],
    ) -> Result<(usize, usize)> {
        unimplemented!()
    }
    /// The entries, if this chunk is dictionary-encoded.
    pub fn dictionary(&self) -> Option<DictionaryView<'_>> {
        unimplemented!()
    }
    /// Dictionary chunks: the codes of block `b`; NULL rows hold arbitrary codes.
    pub fn codes(&self, b: usize, out: &mut [u32; 1024]) -> Result<()> {
        unimplemented!()
    }

    /// Translates a predicate into this chunk's encoded domain; evaluates it once per dictionary entry.
    pub fn compile(&self, predicate: &ChunkPredicate) -> Result<CompiledPredicate> {
        unimplemented!()
    }
    /// What block `b`'s zone map alone says about a compiled predicate (reads no payload).
    pub fn prune(&self, b: usize, predicate: &CompiledPredicate) -> Result<BlockMatch> {
        unimplemented!()
    }
    /// Keeps the rows of `selection` that match. Returns what the zone map said (None or All: no payload was touched).
    pub fn filter(&self, b: usize, predicate: &CompiledPredicate, selection: &mut Selection) -> Result<BlockMatch> {
        unimplemented!()
    }
}
