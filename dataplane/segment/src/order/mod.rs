//! The order of rows: a run of rows sorted, or laid along a space-filling curve, before it is encoded.
//!
//! Owns [`RowOrder`] (what a run is ordered by) and [`OrderedRun`] (the run, its permutation and where it is cut into
//! row groups). [`ranks`] turns columns into numbers, [`hilbert`] several of them into one. Called by loads and merges
//! of tables that have an order, on worker threads.
//!
//! Invariants
//! - A run's permutation holds every row once.
//! - Sorted: rows follow each other as [`hidb::types::Scalar::compare`] has it, column by column, NULLs last; rows that
//!   are equal keep the order they came in.
//! - Clustered: the same for the position on a Hilbert curve through the columns' ranks; NULL ranks last.
//! - Rows are cut into row groups of at most [`ROW_GROUP_ROWS_MAX`] rows and, but for one row, at most
//!   [`ROW_GROUP_BYTES_TARGET`] bytes.
//!
//! Cost: ranking a column 0.1 us a row (one sort of a million 24-byte pairs takes 80 ms; text 0.3 us), a curve 0.1 us,
//! gathering what encoding reads 5 ns a value. Memory: a second copy of the run, and while it is ordered up to 48 bytes
//! a row when it is sorted; clustered, 20 (36 with text or wide decimals) and 4 more for each column.

mod hilbert;
mod ranks;

use std::ops::Range;

use arrow_array::{Array, RecordBatch, UInt32Array};
use arrow_select::concat::concat_batches;
use arrow_select::take::take_record_batch;
use hidb::order::OrderKind;
use hidb::schema::Schema;
use hidb::types::DataType;

use crate::error::{Result, SegmentError};
use crate::{ROW_GROUP_BYTES_TARGET, ROW_GROUP_ROWS_MAX};
use ranks::{Ranks, combine, rank};

/// What a run is ordered by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowOrder {
    /// How.
    pub kind: OrderKind,
    /// Positions of the columns in the schema, at least one, each once.
    pub columns: Vec<usize>,
}

/// Rows in memory and the order they are to be encoded in.
#[derive(Debug)]
pub struct OrderedRun {
    rows: RecordBatch,
    /// The `k`-th row of the run is row `permutation[k]` of `rows`.
    permutation: Vec<u32>,
    row_groups: Vec<Range<usize>>,
}

impl OrderedRun {
    /// Orders the rows of `batches` (canonical arrays of `schema`, at least one row).
    ///
    /// # Errors
    /// [`SegmentError::InvalidInput`] for arrays that are not of the schema, or more than 2^32 rows.
    pub fn new(schema: &Schema, order: &RowOrder, batches: &[RecordBatch]) -> Result<Self> {
        let invalid = |detail: String| SegmentError::InvalidInput { column: "run".into(), detail };
        let Some(first) = batches.first() else { return Err(invalid("no rows".into())) };
        if first.num_columns() != schema.len() {
            return Err(invalid(format!("a batch of {} columns for {}", first.num_columns(), schema.len())));
        }
        let rows = concat_batches(&first.schema(), batches).map_err(|error| invalid(error.to_string()))?;
        if u32::try_from(rows.num_rows()).is_err() {
            return Err(invalid(format!("{} rows", rows.num_rows())));
        }
        // One at a time: ranks take more memory than what is kept of them.
        let columns = order.columns.iter().map(|index| {
            let field = schema.fields().get(*index).ok_or_else(|| invalid(format!("no column {index}")))?;
            rank(&field.name, &field.data_type, rows.column(*index))
        });
        let permutation = match order.kind {
            OrderKind::Sorted => sorted(columns, rows.num_rows())?,
            OrderKind::Clustered => clustered(columns, rows.num_rows())?,
        };
        let row_groups = cut(schema, &rows, &permutation);
        Ok(OrderedRun { rows, permutation, row_groups })
    }

    /// Where each row group begins and ends, as positions in the ordered run.
    pub fn row_groups(&self) -> &[Range<usize>] {
        &self.row_groups
    }

    /// The rows of one row group, in order.
    ///
    /// # Errors
    /// [`SegmentError::InvalidInput`] when there is no such row group.
    pub fn rows(&self, row_group: usize) -> Result<RecordBatch> {
        let invalid = |detail: String| SegmentError::InvalidInput { column: "run".into(), detail };
        let range = self.row_groups.get(row_group).ok_or_else(|| invalid(format!("no row group {row_group}")))?;
        let indices = UInt32Array::from_iter_values(self.permutation[range.clone()].iter().copied());
        take_record_batch(&self.rows, &indices).map_err(|error| invalid(error.to_string()))
    }

    /// What of `values`, one per row as they came, belongs to one row group, in its order.
    pub fn permuted(&self, row_group: usize, values: &[i64]) -> Vec<i64> {
        let range = self.row_groups.get(row_group).cloned().unwrap_or(0..0);
        self.permutation[range].iter().filter_map(|row| values.get(*row as usize).copied()).collect()
    }
}

/// Rows by the ranks of the first column, then the second and so on.
fn sorted(mut columns: impl Iterator<Item = Result<Ranks>>, rows: usize) -> Result<Vec<u32>> {
    let Some(first) = columns.next() else { return Ok((0..rows as u32).collect()) };
    let mut all = first?;
    // Once all rows differ, nothing that follows changes their order.
    while all.distinct() < rows
        && let Some(next) = columns.next()
    {
        all = combine(&all, &next?);
    }
    Ok(all.into_permutation())
}

/// Rows by their position on a Hilbert curve through the columns' ranks.
fn clustered(columns: impl ExactSizeIterator<Item = Result<Ranks>>, rows: usize) -> Result<Vec<u32>> {
    // One bit more than tells all rows apart changes nothing; the position and the row fit into 128 bits.
    let needed = usize::BITS - rows.saturating_sub(1).leading_zeros();
    let bits = needed.clamp(1, 32).min(96 / columns.len().max(1) as u32);
    let axes = columns.map(|column| Ok(column?.coordinates(bits))).collect::<Result<Vec<Vec<u32>>>>()?;
    let mut point = vec![0u32; axes.len()];
    let mut keys: Vec<u128> = (0..rows)
        .map(|row| {
            for (coordinate, axis) in point.iter_mut().zip(&axes) {
                *coordinate = axis[row];
            }
            hilbert::position(&mut point, bits) << 32 | row as u128
        })
        .collect();
    keys.sort_unstable();
    Ok(keys.into_iter().map(|key| key as u32).collect())
}

/// Cuts ordered rows into row groups: full ones, as those of a table without an order, and the last with what is left;
/// shorter where the bytes of a range are many.
fn cut(schema: &Schema, rows: &RecordBatch, permutation: &[u32]) -> Vec<Range<usize>> {
    let fixed: usize = schema.fields().iter().map(|field| field.data_type.fixed_width().unwrap_or(1)).sum();
    let offsets: Vec<&[i32]> = schema
        .fields()
        .iter()
        .zip(rows.columns())
        .filter_map(|(field, array)| offsets(&field.data_type, array))
        .collect();
    let bytes_of = |row: u32| {
        let row = row as usize;
        fixed + offsets.iter().map(|offsets| 4 + (offsets[row + 1] - offsets[row]) as usize).sum::<usize>()
    };
    let mut ranges = Vec::with_capacity(permutation.len().div_ceil(ROW_GROUP_ROWS_MAX));
    let (mut start, mut bytes) = (0, 0);
    for (at, row) in permutation.iter().enumerate() {
        let more = bytes_of(*row);
        if at > start && (at - start == ROW_GROUP_ROWS_MAX || bytes + more > ROW_GROUP_BYTES_TARGET) {
            ranges.push(start..at);
            (start, bytes) = (at, 0);
        }
        bytes += more;
    }
    if start < permutation.len() {
        ranges.push(start..permutation.len());
    }
    ranges
}

/// Where the values of a column of variable width begin.
fn offsets<'a>(data_type: &DataType, array: &'a dyn Array) -> Option<&'a [i32]> {
    use arrow_array::cast::AsArray;
    match data_type {
        DataType::Varchar(_) | DataType::Text => Some(array.as_string_opt::<i32>()?.value_offsets()),
        DataType::Bytea => Some(array.as_binary_opt::<i32>()?.value_offsets()),
        _ => None,
    }
}
