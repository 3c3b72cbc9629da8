//! The open chunks of a row group, read a block at a time, only where rows survive.
//!
//! Owns [`BlockSource`], the evaluator's window on encoded columns, and [`Scratch`], its buffers.
//! Invariant: what it loads is compacted: value `k` belongs to the `k`-th selected row of the block.

use heliostat_segment::{Chunk, Rows, Selection, dispatch};
use hidb::{BLOCK_ROWS, Error, ErrorCode, Lane, Result};

use crate::eval::machine::ColumnSource;
use crate::vector::{Bits, NO_BITS, Vector};

/// Buffers for decoding, one set per core and request.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub indices: Box<[u16; BLOCK_ROWS]>,
    pub codes: Box<[u32; BLOCK_ROWS]>,
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch { indices: Box::new([0; BLOCK_ROWS]), codes: Box::new([0; BLOCK_ROWS]) }
    }
}

/// One block of the row group at hand, and which of its rows are wanted.
pub(crate) struct BlockSource<'a> {
    /// By table column; `None`: not supplied.
    pub chunks: &'a [Option<Chunk>],
    pub block: usize,
    pub selection: &'a Selection,
    /// Rows of the block.
    pub block_rows: usize,
    /// Rows wanted.
    pub rows: usize,
    /// Whether these are all the block's rows.
    pub all: bool,
    pub scratch: &'a mut Scratch,
    /// Whether `scratch.indices` holds the selected positions.
    indexed: bool,
}

pub(crate) fn chunk_of(chunks: &[Option<Chunk>], column: usize) -> Result<&Chunk> {
    chunks.get(column).and_then(Option::as_ref).ok_or_else(|| {
        Error::new(ErrorCode::Internal, format!("the chunk of column {column} was not supplied before it was needed"))
    })
}

impl<'a> BlockSource<'a> {
    pub fn new(
        chunks: &'a [Option<Chunk>],
        block: usize,
        block_rows: usize,
        selection: &'a Selection,
        scratch: &'a mut Scratch,
    ) -> Self {
        let rows = selection.count();
        BlockSource { chunks, block, selection, block_rows, rows, all: rows == block_rows, scratch, indexed: false }
    }

    /// The same block with other rows wanted.
    pub fn of<'b>(&'b mut self, selection: &'b Selection) -> BlockSource<'b> {
        BlockSource::new(self.chunks, self.block, self.block_rows, selection, self.scratch)
    }

    fn index(&mut self) {
        if !self.indexed && !self.all {
            self.selection.indices(&mut self.scratch.indices);
            self.indexed = true;
        }
    }

    /// The rows that are wanted, in the form that chunks take.
    pub fn wanted(&mut self) -> Rows<'_> {
        self.index();
        match self.all {
            true => Rows::All(self.rows),
            false => Rows::At(&self.scratch.indices[..self.rows]),
        }
    }

    /// The selected rows that are not NULL, compacted; `None` when none is NULL.
    pub fn validity(&self, column: usize) -> Result<Option<Bits>> {
        let chunk = chunk_of(self.chunks, column)?;
        if chunk.null_count() == 0 {
            return Ok(None);
        }
        let mut valid = NO_BITS;
        if chunk.validity(self.block, &mut valid)? {
            return Ok(None);
        }
        Ok(Some(if self.all { valid } else { self.selection.compress(&valid).0 }))
    }

    /// The dictionary codes of the selected rows, compacted into the front of `out`.
    pub fn codes(&mut self, column: usize, out: &mut [u32; BLOCK_ROWS]) -> Result<()> {
        let chunk = chunk_of(self.chunks, column)?;
        if self.all {
            chunk.codes(self.block, out)?;
            return Ok(());
        }
        chunk.codes(self.block, &mut self.scratch.codes)?;
        self.index();
        compact(&self.scratch.codes, &self.scratch.indices[..self.rows], out);
        Ok(())
    }
}

#[inline(always)]
fn compact_body(codes: &[u32; BLOCK_ROWS], indices: &[u16], out: &mut [u32; BLOCK_ROWS]) {
    for (out, index) in out.iter_mut().zip(indices) {
        *out = codes[usize::from(*index) & (BLOCK_ROWS - 1)];
    }
}

dispatch! {
    /// `out[k] = codes[indices[k]]`.
    fn compact(codes: &[u32; BLOCK_ROWS], indices: &[u16], out: &mut [u32; BLOCK_ROWS]) = compact_body;
}

impl ColumnSource for BlockSource<'_> {
    fn load(&mut self, column: usize, out: &mut Vector) -> Result<()> {
        let chunk = chunk_of(self.chunks, column)?;
        let lane = chunk.data_type().lane();
        out.reset(lane, BLOCK_ROWS);
        match lane {
            Lane::I64 => {
                if let Some(values) = out.i64s.first_chunk_mut::<BLOCK_ROWS>() {
                    if self.all {
                        chunk.decode_i64(self.block, values)?;
                    } else {
                        chunk.gather_i64(self.block, self.wanted(), values)?;
                    }
                }
            }
            Lane::Bool => {
                let mut bits = NO_BITS;
                chunk.decode_bool(self.block, &mut bits)?;
                out.bits = if self.all { bits } else { self.selection.compress(&bits).0 };
            }
            Lane::Bytes => {
                let bytes = &mut out.bytes;
                chunk.gather_bytes(self.block, self.wanted(), &mut bytes.offsets, &mut bytes.data)?;
            }
            Lane::F64 => {
                if let Some(values) = out.f64s.first_chunk_mut::<BLOCK_ROWS>() {
                    if self.all {
                        chunk.decode_f64(self.block, values)?;
                    } else {
                        chunk.gather_f64(self.block, self.wanted(), values)?;
                    }
                }
            }
            Lane::I128 => {
                if let Some(values) = out.i128s.first_chunk_mut::<BLOCK_ROWS>() {
                    if self.all {
                        chunk.decode_i128(self.block, values)?;
                    } else {
                        chunk.gather_i128(self.block, self.wanted(), values)?;
                    }
                }
            }
        }
        if let Some(valid) = self.validity(column)? {
            out.has_nulls = true;
            out.valid = valid;
        }
        Ok(())
    }

    fn prefixes(&mut self, column: usize) -> Result<Option<(u64, u64)>> {
        let chunk = chunk_of(self.chunks, column)?;
        if chunk.null_count() > 0 { Ok(None) } else { Ok(chunk.prefixes(self.block)?) }
    }

    fn codes(&mut self, column: usize, out: &mut [u32; BLOCK_ROWS]) -> Result<Option<Bits>> {
        BlockSource::codes(self, column, out)?;
        self.validity(column)
    }
}
