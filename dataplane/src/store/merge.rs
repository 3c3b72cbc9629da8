//! Background merge: many small segments become few large ones; row ids stay.
//!
//! Invariants
//! - Readers of the old segments are not disturbed: those live until the last of them ends.
//! - The merged segments count from the manifest batch on that ends the old ones, never both, never neither.
//! - A table that was dropped or replaced meanwhile wins: the merge is taken back. So does a deletion from one of its
//!   inputs, of which the merge knows nothing.
//! - Deleted rows are left out; a segment with many of them is merged for that alone.
//! - In a table that has an order, the rows of all inputs (of as many as a run may hold) are put in order together.
//!
//! Cost: a merge takes the smallest segments first and makes at least [`MERGE_INPUTS_MIN`] into one, so that a row is
//! rewritten about log4(524,288 / rows of its load) times.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::RecordBatch;
use heliostat_segment::{EncodedRowGroup, RowIds, RowOrder, SegmentIdentity, encode_row_group};
use hidb::{ROW_GROUP_RAW_BYTES_MAX, ROW_GROUP_ROWS, Schema};

use super::error::{Result, StoreError};
use super::ordering::{RunRowIds, bytes_of, encode_run, row_order};
use super::{Deleted, SEGMENT_ROW_GROUPS_MAX, SegmentHandle, Store};
use crate::device::Device;
use crate::manifest::{Batch, ObjectRecord, ObjectState, TableRecord};
use crate::store::decode::{DecodedRowGroup, decode_row_group, read_chunks};
use crate::volume::ObjectKind;
use crate::volume::object::CommitRecord;
use crate::workers::{Workers, offload};

/// Rows of a merged segment at most.
const MERGED_ROWS_MAX: u64 = (SEGMENT_ROW_GROUPS_MAX * ROW_GROUP_ROWS) as u64;
/// A segment with more rows is large enough.
const SMALL_ROWS_MAX: u64 = MERGED_ROWS_MAX / 2;
/// Fewer small segments than this are left alone.
pub const MERGE_INPUTS_MIN: usize = 4;
/// Small segments of one table, spread over shards, from which on a merge crosses shards.
const MERGE_ACROSS_SHARDS_MIN: usize = 16;
/// The most segments merged at once.
const MERGE_INPUTS_MAX: usize = 64;
/// Bytes on the volume read by one merge at most.
const MERGE_BYTES_MAX: u64 = 256 << 20;

/// A segment of which more than one row in this many is deleted is worth rewriting.
const WORN_DIVISOR: u64 = 3;

/// A segment that is merged, and what is deleted of it.
#[derive(Clone, Debug)]
pub struct MergeInput {
    /// The segment.
    pub segment: Arc<SegmentHandle>,
    /// Its rows that are left out.
    pub deleted: Option<Arc<Deleted>>,
}

impl MergeInput {
    fn live_rows(&self) -> u64 {
        self.segment.footer.rows() - self.deleted.as_ref().map_or(0, |deleted| deleted.rows)
    }

    /// Whether so much of it is deleted that it is rewritten for that alone.
    fn is_worn(&self) -> bool {
        self.deleted.as_ref().is_some_and(|deleted| deleted.rows * WORN_DIVISOR > self.segment.footer.rows())
    }

    /// Whether it can become part of something larger. A segment with as many row groups as there may be does not get
    /// longer, however few its rows are.
    fn is_small(&self) -> bool {
        self.live_rows() <= SMALL_ROWS_MAX && self.segment.footer.row_groups.len() < SEGMENT_ROW_GROUPS_MAX
    }
}

fn any_worn(inputs: &[MergeInput]) -> bool {
    inputs.iter().any(MergeInput::is_worn)
}

/// Segments that are worth merging.
#[derive(Clone, Debug)]
pub struct MergeJob {
    /// The table's id.
    pub table_id: u64,
    /// The shard of the merged segment.
    pub shard: u32,
    /// The segments, by id.
    pub inputs: Vec<MergeInput>,
    schema: Arc<Schema>,
    order: Option<RowOrder>,
}

/// What a merge did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Segments that it replaced.
    pub inputs: usize,
    /// Rows of the segments that it made.
    pub rows: u64,
    /// Bytes written.
    pub bytes_written: u64,
}

impl Store {
    /// The most worthwhile merge there is now.
    pub fn pick_merge(&self) -> Option<MergeJob> {
        let catalog = self.catalog();
        let mut best: Option<MergeJob> = None;
        for table in catalog.tables.values() {
            // What an index has and what it has not is not merged: the result would be neither.
            let coverage = |segment: u64| -> Vec<bool> {
                let built = table.indexes.iter().filter_map(|index| index.built.as_ref());
                built.map(|built| built.covers(segment)).collect()
            };
            let mut by_shard: BTreeMap<(u32, Vec<bool>), Vec<MergeInput>> = BTreeMap::new();
            let mut small: BTreeMap<Vec<bool>, Vec<MergeInput>> = BTreeMap::new();
            for (segment, deleted) in table.segments.iter().zip(&table.deleted) {
                let input = MergeInput { segment: Arc::clone(segment), deleted: deleted.clone() };
                if input.is_small() {
                    small.entry(coverage(segment.id)).or_default().push(input.clone());
                }
                if input.is_small() || input.is_worn() {
                    by_shard.entry((segment.shard, coverage(segment.id))).or_default().push(input);
                }
            }
            let is_candidate = |inputs: &[MergeInput]| inputs.len() >= MERGE_INPUTS_MIN || any_worn(inputs);
            let enough = by_shard.into_iter().filter(|(_, inputs)| is_candidate(inputs));
            let mut candidates: Vec<(u32, Vec<MergeInput>)> =
                enough.map(|((shard, _), inputs)| (shard, inputs)).collect();
            let small = small.into_values().filter(|inputs| inputs.len() >= MERGE_ACROSS_SHARDS_MIN);
            if let (true, Some(small)) = (candidates.is_empty(), small.max_by_key(Vec::len)) {
                let rows_of = |shard: u32| -> u64 {
                    table.segments.iter().filter(|s| s.shard == shard).map(|s| s.footer.rows()).sum()
                };
                let emptiest = (0..table.shards).min_by_key(|shard| rows_of(*shard)).unwrap_or(0);
                candidates.push((emptiest, small));
            }
            for (shard, mut inputs) in candidates {
                // Worn segments first: they alone are reason enough.
                inputs.sort_by_key(|input| (!input.is_worn(), input.live_rows()));
                let (mut rows, mut bytes) = (0, 0);
                inputs.truncate(MERGE_INPUTS_MAX);
                inputs.retain(|input| {
                    let is_first = bytes == 0;
                    rows += input.live_rows();
                    bytes += input.segment.length;
                    is_first || rows <= MERGED_ROWS_MAX && bytes <= MERGE_BYTES_MAX
                });
                let more = best.as_ref().is_none_or(|job| job.inputs.len() < inputs.len());
                if is_candidate(&inputs) && more {
                    inputs.sort_by_key(|input| input.segment.id);
                    let schema = Arc::clone(&table.schema);
                    let order = table.order.as_ref().map(|order| row_order(order, &schema));
                    best = Some(MergeJob { table_id: table.id, shard, inputs, schema, order });
                }
            }
        }
        best
    }

    /// Merges; the store's workers decode and encode. `None` when an input stopped being part of its table meanwhile, or
    /// rows of it were deleted.
    ///
    /// # Errors
    /// [`StoreError::Corruption`] of an input, [`StoreError::VolumeFull`], the device's or the manifest's.
    pub async fn merge<D: Device>(&self, device: &D, job: MergeJob) -> Result<Option<Merged>> {
        let workers = &self.options.workers;
        let mut row_groups = Vec::new();
        let share = job.order.as_ref().map(|_| self.runs.share());
        let mut gathered = Gathered::new(match &share {
            None => (ROW_GROUP_ROWS, ROW_GROUP_RAW_BYTES_MAX),
            Some(share) => share.limits(&self.options),
        });
        for MergeInput { segment, deleted } in &job.inputs {
            for row_group in 0..segment.footer.row_groups.len() {
                if deleted.as_ref().is_some_and(|deleted| deleted.is_all_of(row_group)) {
                    continue;
                }
                let chunks = read_chunks(device, segment, row_group).await?;
                let owner = Arc::clone(segment);
                let among = deleted.as_ref().and_then(|deleted| deleted.among(row_group));
                let decode = move || decode_row_group(&owner, row_group, &chunks)?.among(among.as_deref());
                let group = offload(&**workers, decode).await??;
                for part in gathered.push(group) {
                    row_groups.extend(part.encode(workers, &job).await?);
                }
            }
        }
        if let Some(part) = gathered.cut() {
            row_groups.extend(part.encode(workers, &job).await?);
        }
        if row_groups.is_empty() {
            return Ok(None);
        }
        let mut written = Vec::new();
        while !row_groups.is_empty() {
            let rest = row_groups.split_off(row_groups.len().min(SEGMENT_ROW_GROUPS_MAX));
            let groups = std::mem::replace(&mut row_groups, rest);
            let segment_id = self.change().await?.take_id();
            let identity = SegmentIdentity {
                volume_uuid: self.superblock.volume_uuid,
                table_id: job.table_id,
                segment_id,
                shard: job.shard,
                load_id: Vec::new(),
            };
            match self.write_segment(device, identity, &job.schema, groups).await {
                Ok(segment) => written.push(segment),
                Err(error) => {
                    self.give_back(&written)?;
                    return Err(error);
                }
            }
        }

        let changes = self.change().await?;
        let (table, next_rowid) = {
            let mut state = self.state();
            let table = state.manifest.tables.get(&job.table_id).cloned();
            let is_unchanged = |MergeInput { segment, deleted }: &MergeInput| {
                let is_live = state.segments_of(job.table_id).any(|(live, _)| live == segment.id);
                is_live && state.has_deleted(segment.id, deleted.as_ref())
            };
            let are_unchanged = job.inputs.iter().all(is_unchanged);
            (table.filter(|_| are_unchanged), state.counter(job.table_id).next_rowid)
        };
        let Some(table) = table else {
            self.give_back(&written)?;
            return Ok(None);
        };
        let record = CommitRecord {
            segments: written.iter().map(|segment| segment.id).collect(),
            replaces: job.inputs.iter().map(|input| input.segment.id).collect(),
            ..table.commit_record(next_rowid)
        };
        let pending: Vec<(u64, ObjectRecord)> =
            written.iter().map(|segment| (segment.id, segment.record(ObjectState::Pending, &[]))).collect();
        // From here on the merged segments are the manifest's: if the commit object fails they go with it.
        let commit = self.write_commit(device, &changes, ObjectKind::Commit, &record, &pending).await?;
        let mut batch = Batch::new();
        batch.put_object(commit.id, &commit.live(&record));
        for segment in &written {
            batch.put_object(segment.id, &segment.record(ObjectState::Live, &[]));
        }
        self.state().end_objects(&mut batch, &record.replaces);
        self.state().merge_in_indexes(&mut batch, table.id, &record.replaces, &record.segments);
        batch.put_table(&TableRecord { generation: table.generation + 1, definition_object: commit.id, ..table });
        changes.write(batch).await?;
        let merged = Merged {
            inputs: job.inputs.len(),
            rows: written.iter().map(|segment| segment.handle.footer.rows()).sum(),
            bytes_written: written.iter().map(|segment| segment.extent.length()).sum(),
        };
        {
            let mut state = self.state();
            let from = state.merged_from(&record.replaces);
            state.merged.extend(record.segments.iter().map(|output| (*output, from.clone())));
            state.retire(&record.replaces);
            for segment in written {
                state.handles.insert(segment.id, segment.handle);
            }
        }
        self.publish()?;
        drop((changes, job));
        self.reclaim_soon(device).await;
        Ok(Some(merged))
    }

    /// Frees the extents of segments that are not in the manifest.
    pub(super) fn give_back(&self, written: &[super::objects::WrittenSegment]) -> Result<()> {
        let mut state = self.state();
        written.iter().try_for_each(|segment| state.free(segment.extent))
    }
}

/// Rows on their way into merged row groups, or runs of them.
struct Gathered {
    batches: Vec<RecordBatch>,
    rowids: Vec<i64>,
    bytes: usize,
    rows_max: usize,
    bytes_max: usize,
}

impl Gathered {
    fn new((rows_max, bytes_max): (usize, usize)) -> Self {
        Gathered { batches: Vec::new(), rowids: Vec::new(), bytes: 0, rows_max, bytes_max }
    }

    /// Takes a row group; gives back what is full.
    fn push(&mut self, group: DecodedRowGroup) -> Vec<Gathered> {
        let mut full = Vec::new();
        if self.bytes + bytes_of(&group.rows) > self.bytes_max {
            full.extend(self.cut());
        }
        let mut from = 0;
        while from < group.rows.num_rows() {
            let rows = (self.rows_max - self.rowids.len()).min(group.rows.num_rows() - from);
            let part = group.rows.slice(from, rows);
            self.bytes += bytes_of(&part);
            self.batches.push(part);
            self.rowids.extend_from_slice(&group.rowids[from..from + rows]);
            from += rows;
            if self.rowids.len() == self.rows_max {
                full.extend(self.cut());
            }
        }
        full
    }

    /// What was gathered so far, if anything was.
    fn cut(&mut self) -> Option<Gathered> {
        let part = std::mem::replace(self, Gathered::new((self.rows_max, self.bytes_max)));
        (!part.batches.is_empty()).then_some(part)
    }

    async fn encode(self, workers: &Arc<dyn Workers>, job: &MergeJob) -> Result<Vec<EncodedRowGroup>> {
        let schema = Arc::clone(&job.schema);
        if let Some(order) = job.order.clone() {
            return Ok(encode_run(workers, schema, order, self.batches, RunRowIds::Explicit(self.rowids)).await?);
        }
        let encode = move || encode_row_group(&schema, &self.batches, RowIds::Explicit(&self.rowids));
        let encoded = offload(&**workers, encode).await?.map_err(|error| StoreError::Data(error.into()))?;
        Ok(vec![encoded])
    }
}
