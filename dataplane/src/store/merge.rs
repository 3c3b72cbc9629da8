//! Background merge: many small segments become few large ones; row ids stay.
//!
//! Invariants
//! - Readers of the old segments are not disturbed: those live until the last of them ends.
//! - The merged segments count from the manifest batch on that ends the old ones, never both, never neither.
//! - A table that was dropped or replaced meanwhile wins: the merge is taken back.
//!
//! Cost: a merge takes the smallest segments first and makes at least [`MERGE_INPUTS_MIN`] into one, so that a row is
//! rewritten about log4(524,288 / rows of its load) times.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::RecordBatch;
use heliostat_segment::{EncodedRowGroup, RowIds, SegmentIdentity, encode_row_group};
use hidb::{ROW_GROUP_RAW_BYTES_MAX, ROW_GROUP_ROWS, Schema};

use super::error::{Result, StoreError};
use super::{SEGMENT_ROW_GROUPS_MAX, SegmentHandle, Store};
use crate::device::Device;
use crate::manifest::{Batch, ObjectRecord, ObjectState, TableRecord};
use crate::store::decode::{DecodedRowGroup, read_row_group};
use crate::volume::ObjectKind;
use crate::volume::object::CommitRecord;

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

/// Segments that are worth merging.
#[derive(Clone, Debug)]
pub struct MergeJob {
    /// The table's id.
    pub table_id: u64,
    /// The shard of the merged segment.
    pub shard: u32,
    /// The segments, by id.
    pub inputs: Vec<Arc<SegmentHandle>>,
    schema: Arc<Schema>,
}

/// What a merge did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Segments that it replaced.
    pub inputs: usize,
    /// Rows in them.
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
            let small: Vec<_> = table.segments.iter().filter(|s| s.footer.rows() <= SMALL_ROWS_MAX).cloned().collect();
            let mut by_shard: BTreeMap<u32, Vec<Arc<SegmentHandle>>> = BTreeMap::new();
            for segment in &small {
                by_shard.entry(segment.shard).or_default().push(Arc::clone(segment));
            }
            let mut candidates: Vec<(u32, Vec<Arc<SegmentHandle>>)> =
                by_shard.into_iter().filter(|(_, segments)| segments.len() >= MERGE_INPUTS_MIN).collect();
            if candidates.is_empty() && small.len() >= MERGE_ACROSS_SHARDS_MIN {
                let rows_of = |shard: u32| -> u64 {
                    table.segments.iter().filter(|s| s.shard == shard).map(|s| s.footer.rows()).sum()
                };
                let emptiest = (0..table.shards).min_by_key(|shard| rows_of(*shard)).unwrap_or(0);
                candidates.push((emptiest, small));
            }
            for (shard, mut segments) in candidates {
                segments.sort_by_key(|segment| segment.footer.rows());
                let (mut rows, mut bytes) = (0, 0);
                segments.truncate(MERGE_INPUTS_MAX);
                segments.retain(|segment| {
                    rows += segment.footer.rows();
                    bytes += segment.length;
                    rows <= MERGED_ROWS_MAX && bytes <= MERGE_BYTES_MAX
                });
                let more = best.as_ref().is_none_or(|job| job.inputs.len() < segments.len());
                if segments.len() >= MERGE_INPUTS_MIN && more {
                    segments.sort_by_key(|segment| segment.id);
                    let schema = Arc::clone(&table.schema);
                    best = Some(MergeJob { table_id: table.id, shard, inputs: segments, schema });
                }
            }
        }
        best
    }

    /// Merges; the caller's core encodes. `None` when an input stopped being part of its table meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Corruption`] of an input, [`StoreError::VolumeFull`], the device's or the manifest's.
    pub async fn merge<D: Device>(&self, device: &D, job: MergeJob) -> Result<Option<Merged>> {
        let mut row_groups = Vec::new();
        let mut gathered = Gathered::new(&job.schema);
        for segment in &job.inputs {
            for row_group in 0..segment.footer.row_groups.len() {
                let group = read_row_group(device, segment, row_group).await?;
                if group.rows.num_rows() > 0 {
                    gathered.push(group, &mut row_groups)?;
                }
                // Encoding took a while: let others on this core have their turn.
                futures_lite::future::yield_now().await;
            }
        }
        gathered.cut(&mut row_groups)?;
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
            let replaces: Vec<u64> = job.inputs.iter().map(|segment| segment.id).collect();
            let table = state.manifest.tables.get(&job.table_id).cloned();
            let all_live = replaces.iter().all(|id| state.segments_of(job.table_id).any(|(live, _)| live == *id));
            (table.filter(|_| all_live), state.counter(job.table_id).next_rowid)
        };
        let Some(table) = table else {
            self.give_back(&written)?;
            return Ok(None);
        };
        let record = CommitRecord {
            table_id: table.id,
            table_name: table.name.clone(),
            schema: table.schema.clone(),
            shards: table.shards,
            segments: written.iter().map(|segment| segment.id).collect(),
            replaces: job.inputs.iter().map(|segment| segment.id).collect(),
            next_rowid,
            ..Default::default()
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
        {
            let state = self.state();
            for id in &record.replaces {
                if let Some(object) = state.manifest.objects.get(id) {
                    batch.put_object(*id, &ObjectRecord { state: ObjectState::Pending as i32, ..object.clone() });
                }
            }
        }
        batch.put_table(&TableRecord { generation: table.generation + 1, definition_object: commit.id, ..table });
        changes.write(batch).await?;
        let merged = Merged {
            inputs: job.inputs.len(),
            rows: written.iter().map(|segment| segment.handle.footer.rows()).sum(),
            bytes_written: written.iter().map(|segment| segment.extent.length()).sum(),
        };
        {
            let mut state = self.state();
            state.retire(&record.replaces);
            for segment in written {
                state.handles.insert(segment.id, segment.handle);
            }
        }
        self.publish()?;
        drop((changes, job));
        self.reclaim(device).await?;
        Ok(Some(merged))
    }

    fn give_back(&self, written: &[super::objects::WrittenSegment]) -> Result<()> {
        let mut state = self.state();
        written.iter().try_for_each(|segment| state.free(segment.extent))
    }
}

/// Rows on their way into merged row groups.
struct Gathered<'a> {
    schema: &'a Schema,
    batches: Vec<RecordBatch>,
    rowids: Vec<i64>,
    bytes: usize,
}

impl<'a> Gathered<'a> {
    fn new(schema: &'a Schema) -> Self {
        Gathered { schema, batches: Vec::new(), rowids: Vec::new(), bytes: 0 }
    }

    fn push(&mut self, group: DecodedRowGroup, out: &mut Vec<EncodedRowGroup>) -> Result<()> {
        let bytes = group.rows.get_array_memory_size();
        if self.bytes + bytes > ROW_GROUP_RAW_BYTES_MAX {
            self.cut(out)?;
        }
        let mut from = 0;
        while from < group.rows.num_rows() {
            let rows = (ROW_GROUP_ROWS - self.rowids.len()).min(group.rows.num_rows() - from);
            self.batches.push(group.rows.slice(from, rows));
            self.rowids.extend_from_slice(&group.rowids[from..from + rows]);
            from += rows;
            if self.rowids.len() == ROW_GROUP_ROWS {
                self.cut(out)?;
            }
        }
        if !self.batches.is_empty() {
            self.bytes += bytes;
        }
        Ok(())
    }

    fn cut(&mut self, out: &mut Vec<EncodedRowGroup>) -> Result<()> {
        if !self.batches.is_empty() {
            let encoded = encode_row_group(self.schema, &self.batches, RowIds::Explicit(&self.rowids));
            out.push(encoded.map_err(|error| StoreError::Data(error.into()))?);
        }
        self.batches.clear();
        self.rowids.clear();
        self.bytes = 0;
        Ok(())
    }
}
