//! The open chunks of a row group, read up to 1,024 surviving rows at a time.
//!
//! Owns [`Survivors`] (what the filter left of a block), [`RowSource`], the evaluator's window on encoded columns, and
//! [`Scratch`], its buffers. Called by the filter, the aggregation and the emitter.
//!
//! Invariants
//! - What is loaded is compacted: value `k` belongs to the `k`-th surviving row, whatever block that is in.
//! - A window spans several blocks only when their survivors are at most 1,024 together: a block that keeps many
//!   rows has one of its own.
//!
//! Why several blocks: with twenty survivors a block, what is done once per window (evaluating, finding groups,
//! laying out an image) costs more than the rows do.

use heliostat_segment::{Chunk, Rows, Selection};
use hidb::{BLOCK_ROWS, Error, ErrorCode, Lane, Result};

use crate::eval::machine::ColumnSource;
use crate::vector::{Bits, NO_BITS, Vector, append_bits, first_bits};

/// Buffers for decoding, one set per core and request.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// Positions in their blocks of a window's rows; the second half is room for what is written past the last.
    positions: Box<[u16; 2 * BLOCK_ROWS]>,
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch { positions: Box::new([0; 2 * BLOCK_ROWS]) }
    }
}

/// What the filter left of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Survivors {
    pub block: usize,
    /// Rows of the block.
    pub block_rows: usize,
    pub selection: Selection,
    /// Rows selected.
    pub rows: usize,
}

impl Survivors {
    pub fn new(block: usize, block_rows: usize, selection: Selection) -> Self {
        Survivors { block, block_rows, selection, rows: selection.count() }
    }

    /// Every row of the block.
    pub fn all(block: usize, block_rows: usize) -> Self {
        Survivors { block, block_rows, selection: Selection::all(block_rows), rows: block_rows }
    }

    fn is_whole(&self) -> bool {
        self.rows == self.block_rows
    }

    /// Keeps `take` rows after the first `skip`.
    pub fn limit(&mut self, skip: usize, take: usize) {
        let mut skipped = self.selection;
        skipped.truncate(skip);
        self.selection.and_not(skipped.words());
        self.selection.truncate(take);
        self.rows = self.selection.count();
    }
}

/// How many of these, from the first, make a window: one at least, and none after the first that is not `wanted`.
pub(crate) fn window(survivors: &[Survivors], mut wanted: impl FnMut(&Survivors) -> Result<bool>) -> Result<usize> {
    let mut rows = 0;
    for (count, part) in survivors.iter().enumerate() {
        rows += part.rows;
        if count > 0 && (rows > BLOCK_ROWS || !wanted(part)?) {
            return Ok(count);
        }
    }
    Ok(survivors.len())
}

/// Up to 1,024 rows of the row group at hand.
pub(crate) struct RowSource<'a> {
    /// By table column; `None`: not supplied.
    pub chunks: &'a [Option<Chunk>],
    parts: &'a [Survivors],
    /// Rows in all.
    pub rows: usize,
    scratch: &'a mut Scratch,
    /// Whether the scratch holds the rows' positions.
    indexed: bool,
}

pub(crate) fn chunk_of(chunks: &[Option<Chunk>], column: usize) -> Result<&Chunk> {
    chunks.get(column).and_then(Option::as_ref).ok_or_else(|| {
        Error::new(ErrorCode::Internal, format!("the chunk of column {column} was not supplied before it was needed"))
    })
}

impl<'a> RowSource<'a> {
    /// `parts` is a [`window`] of survivors.
    pub fn new(chunks: &'a [Option<Chunk>], parts: &'a [Survivors], scratch: &'a mut Scratch) -> Self {
        let rows = parts.iter().map(|part| part.rows).sum();
        debug_assert!(rows <= BLOCK_ROWS);
        RowSource { chunks, parts, rows, scratch, indexed: false }
    }

    /// The block, if all rows are of one.
    pub fn single(&self) -> Option<&'a Survivors> {
        match self.parts {
            [part] => Some(part),
            _ => None,
        }
    }

    /// Another window through the same chunks.
    pub fn over<'b>(&'b mut self, parts: &'b [Survivors]) -> RowSource<'b> {
        RowSource::new(self.chunks, parts, self.scratch)
    }

    fn index(&mut self) {
        if !self.indexed {
            let mut start = 0;
            for part in self.parts {
                if let Some(positions) = self.scratch.positions[start..].first_chunk_mut() {
                    part.selection.indices(positions);
                }
                start += part.rows;
            }
            self.indexed = true;
        }
    }

    /// Calls `visit(block, rows, start)` for each part of `take` rows from row `from` on; `start` counts from `from`.
    pub fn for_each_part(
        &mut self,
        from: usize,
        take: usize,
        mut visit: impl FnMut(usize, Rows<'_>, usize) -> Result<()>,
    ) -> Result<()> {
        if let ([part], 0) = (self.parts, from)
            && part.is_whole()
            && take == part.rows
        {
            return visit(part.block, Rows::All(take), 0);
        }
        self.index();
        let mut start = 0;
        for part in self.parts {
            let (low, high) = (start.max(from), (start + part.rows).min(from + take));
            if low < high {
                visit(part.block, Rows::At(&self.scratch.positions[low..high]), low - from)?;
            }
            start += part.rows;
        }
        Ok(())
    }

    /// The rows that are not NULL; `None` when none is NULL.
    pub fn validity(&self, column: usize) -> Result<Option<Bits>> {
        let chunk = chunk_of(self.chunks, column)?;
        if chunk.null_count() == 0 {
            return Ok(None);
        }
        let (mut valid, mut start, mut any_null) = (NO_BITS, 0, false);
        for part in self.parts {
            let mut of_block = NO_BITS;
            if chunk.validity(part.block, &mut of_block)? {
                append_bits(&mut valid, start, &first_bits(part.rows));
            } else {
                append_bits(&mut valid, start, &part.selection.compress(&of_block).0);
                any_null = true;
            }
            start += part.rows;
        }
        Ok(any_null.then_some(valid))
    }

    /// The dictionary codes of the rows.
    pub fn codes(&mut self, column: usize, out: &mut [u32; BLOCK_ROWS]) -> Result<()> {
        let chunk = chunk_of(self.chunks, column)?;
        self.for_each_part(0, self.rows, |block, rows, start| {
            chunk.gather_codes(block, rows, &mut out[start..])?;
            Ok(())
        })
    }
}

impl ColumnSource for RowSource<'_> {
    fn load(&mut self, column: usize, out: &mut Vector) -> Result<()> {
        let chunk = chunk_of(self.chunks, column)?;
        let lane = chunk.data_type().lane();
        out.reset(lane, BLOCK_ROWS);
        if lane == Lane::Bool {
            let mut start = 0;
            for part in self.parts {
                let mut bits = NO_BITS;
                chunk.decode_bool(part.block, &mut bits)?;
                append_bits(&mut out.bits, start, &part.selection.compress(&bits).0);
                start += part.rows;
            }
        } else {
            self.for_each_part(0, self.rows, |block, rows, start| {
                match lane {
                    Lane::I64 => chunk.gather_i64(block, rows, &mut out.i64s[start..])?,
                    Lane::F64 => chunk.gather_f64(block, rows, &mut out.f64s[start..])?,
                    Lane::I128 => chunk.gather_i128(block, rows, &mut out.i128s[start..])?,
                    Lane::Bytes => chunk.gather_bytes(block, rows, &mut out.bytes.offsets, &mut out.bytes.data)?,
                    Lane::Bool => 0,
                };
                Ok(())
            })?;
        }
        if let Some(valid) = self.validity(column)? {
            out.has_nulls = true;
            out.valid = valid;
        }
        Ok(())
    }

    fn prefixes(&mut self, column: usize) -> Result<Option<(u64, u64)>> {
        let chunk = chunk_of(self.chunks, column)?;
        if chunk.null_count() > 0 {
            return Ok(None);
        }
        let mut bounds = (u64::MAX, u64::MIN);
        for part in self.parts {
            let Some((least, greatest)) = chunk.prefixes(part.block)? else { return Ok(None) };
            bounds = (bounds.0.min(least), bounds.1.max(greatest));
        }
        Ok(Some(bounds))
    }

    fn codes(&mut self, column: usize, out: &mut [u32; BLOCK_ROWS]) -> Result<Option<Bits>> {
        RowSource::codes(self, column, out)?;
        self.validity(column)
    }
}
