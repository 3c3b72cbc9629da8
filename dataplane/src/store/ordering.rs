//! Tables that keep their rows in an order: which order a load has, and runs of rows that are ordered together.
//!
//! Owns [`encode_run`] and the limits of a run ([`Runs`]). Called by loads and merges. What order means, and how it is
//! made, is in [`heliostat_segment::OrderedRun`]; why it reaches as far as a run and no further, in ADR 14.
//!
//! Invariants
//! - A table's order is part of its definition: it changes only when the table is replaced.
//! - A run is in memory as it came, then in one piece as well, then in one piece while it is encoded. A load may have
//!   one in encoding and one that is full and being ordered, a merge one: with what batches keep alive beside their rows
//!   [`RUN_COPIES`] times the bytes of a run at most.
//! - The runs of a cell take [`super::StoreOptions::sort_memory_bytes_max`] together, but for [`RUN_BYTES_MIN`] each:
//!   the more ordered loads and merges there are, the shorter their runs.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use arrow_array::{Array, RecordBatch};
use futures::future::try_join_all;
use heliostat_segment::{EncodedRowGroup, OrderedRun, RowIds, RowOrder, SegmentError, encode_row_group};
use hidb::order::TableOrder;
use hidb::{Error, ErrorCode, ROW_GROUP_ROWS, Result, Schema};

use super::error::StoreError;
use super::{LoadMode, LoadRequest, Store, StoreOptions};
use crate::workers::{Workers, offload};

/// Rows of a run at most, and less where the run is shorter by its bytes: ordering takes up to 70 bytes a row beside
/// the rows themselves.
const RUN_ROWS_MAX: usize = 32 * ROW_GROUP_ROWS;
/// The shortest that runs get for want of memory.
const RUN_BYTES_MIN: usize = 16 << 20;
/// How many times the bytes of a run a load may hold.
const RUN_COPIES: usize = 4;

/// How many loads and merges there are that put rows in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Runs(Arc<AtomicUsize>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct RunShare(Runs);

impl Runs {
    /// One more.
    pub fn share(&self) -> RunShare {
        self.0.fetch_add(1, Relaxed);
        RunShare(self.clone())
    }
}

impl Drop for RunShare {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

impl RunShare {
    /// Rows and bytes that a run may have now.
    pub fn limits(&self, options: &StoreOptions) -> (usize, usize) {
        let whole = options.sort_run_bytes_max.max(1);
        let part = options.sort_memory_bytes_max / (RUN_COPIES * self.0.0.load(Relaxed).max(1));
        let bytes = part.max(RUN_BYTES_MIN).min(whole);
        let rows = RUN_ROWS_MAX as u128 * bytes as u128 / whole as u128;
        ((rows as usize).max(ROW_GROUP_ROWS), bytes)
    }
}

/// Raw bytes of rows, without what their arrays keep alive beside them.
pub(super) fn bytes_of(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(|array| array.to_data().get_slice_memory_size().unwrap_or(0)).sum()
}

/// The row ids of a run.
pub(super) enum RunRowIds {
    /// Consecutive from this one, in the order that the rows are given.
    From(i64),
    /// One per row as it came; it goes with its row.
    Explicit(Vec<i64>),
}

/// What the rows of this schema are ordered by.
pub(super) fn row_order(order: &TableOrder, schema: &Schema) -> RowOrder {
    RowOrder { kind: order.kind(), columns: order.positions(schema) }
}

/// Orders the rows of a run and encodes them as row groups, all on the workers.
pub(super) fn encode_run(
    workers: &Arc<dyn Workers>,
    schema: Arc<Schema>,
    order: RowOrder,
    batches: Vec<RecordBatch>,
    rowids: RunRowIds,
) -> impl Future<Output = Result<Vec<EncodedRowGroup>>> + Send + use<> {
    let pool = Arc::clone(workers);
    let ordering = offload(&**workers, move || {
        let run = OrderedRun::new(&schema, &order, &batches)?;
        drop(batches);
        let (run, rowids) = (Arc::new(run), Arc::new(rowids));
        let encode = |row_group: usize| {
            let (run, rowids, schema) = (Arc::clone(&run), Arc::clone(&rowids), Arc::clone(&schema));
            offload(&*pool, move || encode_part(&run, row_group, &rowids, &schema))
        };
        Ok::<_, SegmentError>((0..run.row_groups().len()).map(encode).collect::<Vec<_>>())
    });
    async move {
        let parts = ordering.await??;
        try_join_all(parts.into_iter().map(|part| async move { Ok(part.await??) })).await
    }
}

fn encode_part(
    run: &OrderedRun,
    row_group: usize,
    rowids: &RunRowIds,
    schema: &Schema,
) -> Result<EncodedRowGroup, SegmentError> {
    let rows = run.rows(row_group)?;
    match rowids {
        RunRowIds::From(first) => {
            let before = run.row_groups().get(row_group).map_or(0, |range| range.start);
            encode_row_group(schema, &[rows], RowIds::From(first.saturating_add(before as i64)))
        }
        RunRowIds::Explicit(rowids) => {
            encode_row_group(schema, &[rows], RowIds::Explicit(&run.permuted(row_group, rowids)))
        }
    }
}

impl Store {
    /// The order of a new load's rows: that of the table they are added to, else the one that was asked for, else that
    /// of the table they replace.
    pub(super) fn order_of_load(&self, request: &LoadRequest) -> Result<Option<TableOrder>, StoreError> {
        let wanted = request.order.clone();
        let table = self.state().table_named(&request.table).cloned();
        let Some(table) = table.filter(|_| request.mode != LoadMode::Create) else { return Ok(wanted) };
        let schema = self.read_schema(table.schema.as_ref(), &table.name)?;
        let existing = self.read_order(table.schema.as_ref(), &schema, &table.name)?;
        match (request.mode, existing, wanted) {
            (LoadMode::Append, existing, None) => Ok(existing),
            (LoadMode::Append, existing, wanted) if existing == wanted => Ok(existing),
            (LoadMode::Append, existing, Some(wanted)) => {
                let is = existing.map_or("in no order".to_string(), |existing| existing.to_string());
                let text = format!(
                    "the rows of table {:?} are {is}, not {wanted}: leave the order out, or replace the table",
                    table.name
                );
                Err(Error::new(ErrorCode::InvalidSchema, text).into())
            }
            (_, Some(existing), None) => {
                let order = TableOrder::new(existing.kind(), existing.columns(), &request.schema);
                let explained = order.map_err(|error| {
                    let text = format!(
                        "{}; the table {:?} that is replaced is {existing}: name another order, or drop the table first",
                        error.message, table.name
                    );
                    Error::new(error.code, text)
                });
                Ok(Some(explained?))
            }
            (_, _, wanted) => Ok(wanted),
        }
    }
}
