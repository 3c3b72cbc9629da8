//! A pass over the vectors of a table, row group by row group.
//!
//! Owns [`pass`] and [`Group`], what it hands to its work. Called by the builder of each kind of index.
//!
//! Invariants
//! - Rows come in the order of the snapshot, the same in every pass: those whose vector is not NULL and that were not
//!   deleted then.
//! - Reads go through the core's device; one row group is in memory at a time, and a worker thread has it.

use std::sync::Arc;

use heliostat_segment::{BLOCK_ROWS, Chunk, SegmentError, Selection};
use heliostat_vector::Rows;
use hidb::DataType;
use hidb::aligned::AlignedBytes;

use super::{Job, Tools};
use crate::device::Device;
use crate::search::VectorColumn;
use crate::store::decode::read_chunk;
use crate::store::{Result, Store, StoreError};
use crate::workers::offload;

/// Rows of a row group that an index is to have, as they are on the volume.
pub(super) struct Group {
    vectors: Chunk,
    rowids: Chunk,
    live: Option<Arc<[u64]>>,
    column: VectorColumn,
    /// The columns that go beside the codes, when the pass asks for them.
    pub(super) includes: Vec<Chunk>,
}

impl Group {
    /// Calls `visit` with vectors and their row ids, up to 1,024 at a time.
    pub(super) fn for_each(&self, mut visit: impl FnMut(&Rows<'_>, &[u64]) -> Result<()>) -> Result<()> {
        self.for_each_with(|rows, ids, _| visit(rows, ids))
    }

    /// Calls `visit` with vectors, their row ids and their rows in the row group, up to 1,024 at a time.
    pub(super) fn for_each_with(&self, mut visit: impl FnMut(&Rows<'_>, &[u64], &[u32]) -> Result<()>) -> Result<()> {
        let width = self.column.row_bytes();
        let damaged = |error: SegmentError| StoreError::Data(error.into());
        let mut ids = [0i64; BLOCK_ROWS];
        let mut kept = AlignedBytes::zeroed(BLOCK_ROWS * width);
        let mut row_ids = Vec::with_capacity(BLOCK_ROWS);
        let mut places = Vec::with_capacity(BLOCK_ROWS);
        for block in 0..self.vectors.blocks() {
            self.rowids.decode_i64(block, &mut ids).map_err(damaged)?;
            let mut selected = Selection::none();
            self.vectors.validity(block, selected.words_mut()).map_err(damaged)?;
            if let Some(live) = &self.live {
                selected.and(Selection::of_block(live, block).words());
            }
            let bytes = self.vectors.plain_block(block).map_err(damaged)?;
            row_ids.clear();
            places.clear();
            selected.for_each(|row| {
                kept[row_ids.len() * width..][..width].copy_from_slice(&bytes[row * width..][..width]);
                row_ids.push(ids[row] as u64);
                places.push((block * BLOCK_ROWS + row) as u32);
            });
            if !row_ids.is_empty() {
                let some = self.column.rows(&kept[..row_ids.len() * width]).map_err(StoreError::Data)?;
                visit(&some, &row_ids, &places)?;
            }
        }
        Ok(())
    }
}

/// Reads all row groups in order; `work` has each on a worker thread, with the state that it hands on. `None` when the
/// index stopped being wanted.
pub(super) async fn pass<D: Device, S: Send + 'static>(
    tools: &Tools<'_, D>,
    job: &Job,
    with_includes: bool,
    mut state: S,
    work: impl Fn(&mut S, &Group) -> Result<()> + Clone + Send + 'static,
) -> Result<Option<S>> {
    let table = &job.table;
    let rowid_column = table.schema.len();
    let data_type = table.schema.fields()[job.column.index].data_type;
    let total: u64 = table.segments.iter().map(|segment| segment.footer.rows()).sum();
    let mut done = 0;
    for segment in &table.segments {
        for (row_group, meta) in segment.footer.row_groups.iter().enumerate() {
            if !is_wanted(tools.store, job) {
                return Ok(None);
            }
            let mut includes = Vec::new();
            let wanted = job.includes.columns().iter().zip(job.includes.types()).filter(|_| with_includes);
            for (include, data_type) in wanted {
                includes.push(read_chunk(tools.device, segment, row_group, *include, &data_type).await?);
            }
            let group = Group {
                includes,
                vectors: read_chunk(tools.device, segment, row_group, job.column.index, &data_type).await?,
                rowids: read_chunk(tools.device, segment, row_group, rowid_column, &DataType::Int64).await?,
                live: table.live_rows(segment.id, row_group),
                column: job.column,
            };
            let work = work.clone();
            state = offload(&**tools.store.workers(), move || {
                let outcome = work(&mut state, &group);
                outcome.map(|()| state)
            })
            .await??;
            done += u64::from(meta.rows);
            tools.progress.advance(done, total);
        }
    }
    Ok(Some(state))
}

/// Whether the table still is to have the index.
pub(super) fn is_wanted(store: &Store, job: &Job) -> bool {
    let catalog = store.catalog();
    let table = catalog.tables.get(&job.table.name).filter(|table| table.id == job.table.id);
    table.is_some_and(|table| table.indexes.iter().any(|index| index.definition == job.definition))
}
