//! Deleted rows: what is known of them in memory, and the change that deletes more.
//!
//! Owns [`Deleted`] (a segment's deleted rows, immutable, part of table snapshots) and [`Store::delete_rows`]. Which rows a
//! condition means is found by a scan before, outside the lock of changes; merges leave the rows out (`merge`), `rebuild`
//! reads the bitmaps back from commit objects. Called by the server, `publish`, merges and tests. See ADR 15.
//!
//! Invariants
//! - A change writes, for each segment that it touches, the whole bitmap: what was deleted before and what is new. A
//!   deleted row never comes back.
//! - A segment with a record has rows left: one of which every row is deleted is dropped by the change itself, as a merge
//!   drops its inputs.
//! - Rows are deleted by their place in a segment that counts. When one has gone meanwhile, nothing is deleted: the caller
//!   finds the rows again, in the table as it is then.
//! - All of a change counts or nothing of it, also when its bitmaps need several commit objects: `rebuild` counts them only
//!   when all are there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use heliostat_segment::{SegmentFooter, all_rows};
use hidb::{Error, ErrorCode};
use roaring::RoaringBitmap;

use super::error::{Result, StoreError};
use super::{IDS_PER_CHANGE_MAX, SegmentHandle, State, Store};
use crate::device::Device;
use crate::manifest::{Batch, ObjectRecord, ObjectState, TableRecord};
use crate::volume::ObjectKind;
use crate::volume::deletion::DeletionRecord;
use crate::volume::object::CommitRecord;
use crate::workers::offload;

/// Commit objects of one change at most.
const PARTS_MAX: usize = (IDS_PER_CHANGE_MAX - 2) as usize;

/// The deleted rows of one segment.
#[derive(Debug)]
pub struct Deleted {
    /// How many; less than the segment has.
    pub rows: u64,
    /// The commit object that holds them.
    commit: u64,
    positions: RoaringBitmap,
    row_groups: Box<[LiveRows]>,
}

#[derive(Debug)]
struct LiveRows {
    rows: u32,
    among: Option<Arc<[u64]>>,
}

impl Deleted {
    /// `None` when the record can't be of this segment.
    pub(super) fn of(record: &DeletionRecord, footer: &SegmentFooter) -> Option<Self> {
        let positions = record.positions()?;
        if positions.max().is_none_or(|last| u64::from(last) >= footer.rows()) || record.rows >= footer.rows() {
            return None;
        }
        Some(Self::new(positions, record.commit, footer))
    }

    fn new(positions: RoaringBitmap, commit: u64, footer: &SegmentFooter) -> Self {
        let mut start = 0u32;
        let row_groups = footer.row_groups.iter().map(|group| {
            let mut among: Option<Vec<u64>> = None;
            let mut rows = group.rows;
            for position in positions.range(start..start + group.rows) {
                let words = among.get_or_insert_with(|| all_rows(group.rows as usize));
                let row = position - start;
                words[row as usize / 64] &= !(1 << (row % 64));
                rows -= 1;
            }
            start += group.rows;
            LiveRows { rows, among: among.map(Arc::from) }
        });
        let row_groups = row_groups.collect();
        Deleted { rows: positions.len(), commit, positions, row_groups }
    }

    /// The rows of a row group that are left, as a bitmap (row `r` is bit `r % 64` of word `r / 64`); `None`: all.
    pub fn among(&self, row_group: usize) -> Option<Arc<[u64]>> {
        self.row_groups.get(row_group)?.among.clone()
    }

    /// How many rows of a row group are left, if it has deleted ones.
    pub fn live_rows(&self, row_group: usize) -> Option<u32> {
        self.row_groups.get(row_group).filter(|group| group.among.is_some()).map(|group| group.rows)
    }

    /// Whether a row group has no rows left.
    pub fn is_all_of(&self, row_group: usize) -> bool {
        self.live_rows(row_group) == Some(0)
    }
}

/// Rows of a row group that are to be deleted.
#[derive(Clone, Debug)]
pub struct RowsToDelete {
    /// The segment.
    pub segment: u64,
    /// Its row group.
    pub row_group: usize,
    /// The rows, as a bitmap (row `r` is bit `r % 64` of word `r / 64`); `None`: all.
    pub rows: Option<Box<[u64]>>,
}

/// What became of a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// It is durable; so many rows were there and are deleted now.
    Done {
        /// How many.
        rows: u64,
    },
    /// The rows are elsewhere by now, because segments were merged or the table was replaced: nothing was deleted. Find
    /// them again, in a new snapshot.
    Again,
}

/// What a deletion comes to, worked out beside the core.
struct Prepared {
    /// Newly deleted.
    rows: u64,
    /// Segments that keep rows.
    records: Vec<(DeletionRecord, Deleted)>,
    /// Segments that don't.
    dropped: Vec<u64>,
}

type Inputs = BTreeMap<u64, (Arc<SegmentHandle>, Option<Arc<Deleted>>)>;

fn prepare(inputs: &Inputs, found: &[RowsToDelete]) -> Result<Prepared> {
    let mut positions: BTreeMap<u64, RoaringBitmap> = BTreeMap::new();
    for part in found {
        let groups = inputs.get(&part.segment).map_or(&[][..], |(segment, _)| &segment.footer.row_groups);
        let Some(group) = groups.get(part.row_group) else {
            return Err(StoreError::Internal(format!("segment {} has no row group {}", part.segment, part.row_group)));
        };
        let start: u32 = groups[..part.row_group].iter().map(|group| group.rows).sum();
        let of_segment = positions.entry(part.segment).or_default();
        match &part.rows {
            None => drop(of_segment.insert_range(start..start + group.rows)),
            Some(words) => of_segment.extend(set_bits(words, group.rows).map(|row| start + row)),
        }
    }
    let mut prepared = Prepared { rows: 0, records: Vec::new(), dropped: Vec::new() };
    for (id, (segment, before)) in inputs {
        let Some(mut positions) = positions.remove(id) else { continue };
        if let Some(before) = before {
            positions |= &before.positions;
        }
        let newly = positions.len() - before.as_ref().map_or(0, |before| before.rows);
        if newly == 0 {
            continue;
        }
        prepared.rows += newly;
        if positions.len() == segment.footer.rows() {
            prepared.dropped.push(*id);
            continue;
        }
        positions.optimize();
        let record = DeletionRecord::new(*id, &positions);
        prepared.records.push((record, Deleted::new(positions, 0, &segment.footer)));
    }
    Ok(prepared)
}

/// The numbers of the bits that are set, below `rows`.
fn set_bits(words: &[u64], rows: u32) -> impl Iterator<Item = u32> + '_ {
    let of_word = |(number, word): (usize, &u64)| {
        let mut left = *word;
        std::iter::from_fn(move || {
            let bit = (left != 0).then(|| left.trailing_zeros())?;
            left &= left - 1;
            Some(number as u32 * 64 + bit)
        })
    };
    words.iter().enumerate().flat_map(of_word).take_while(move |row| *row < rows)
}

impl Store {
    /// Deletes rows of a table, by the places at which a scan of one of its snapshots found them. Snapshots that were taken
    /// before keep them.
    ///
    /// # Errors
    /// [`StoreError::VolumeFull`], the device's or the manifest's; [`ErrorCode::LimitExceeded`] when the bitmaps are more
    /// than one change can take. Nothing was deleted then.
    pub async fn delete_rows<D: Device>(
        &self,
        device: &D,
        table_id: u64,
        found: Vec<RowsToDelete>,
    ) -> Result<Deletion> {
        if found.is_empty() {
            return Ok(Deletion::Done { rows: 0 });
        }
        let changes = self.change().await?;
        let Some((table, inputs, next_rowid)) = self.state().deletion_inputs(table_id, &found) else {
            return Ok(Deletion::Again);
        };
        let prepare = move || prepare(&inputs, &found);
        let prepared = offload(&*self.options.workers, prepare).await??;
        if prepared.rows == 0 {
            // Others have deleted the same rows meanwhile.
            return Ok(Deletion::Done { rows: 0 });
        }
        let base = CommitRecord { replaces: prepared.dropped.clone(), ..table.commit_record(next_rowid) };
        let (records, mut deleted): (Vec<_>, Vec<_>) = prepared.records.into_iter().unzip();
        let mut parts = split(base, records, self.options.commit_bytes_max)?;
        let ids: Vec<u64> = parts.iter().map(|_| changes.take_id()).collect();
        if let [_, _, ..] = parts.as_slice() {
            parts.iter_mut().for_each(|part| part.parts.clone_from(&ids));
        }
        let written: Vec<_> = ids.iter().copied().zip(&parts).collect();
        let commits = self.write_commits(device, &changes, ObjectKind::Commit, &written, &[]).await?;

        let mut batch = Batch::new();
        let mut left = deleted.iter_mut();
        for (commit, record) in commits.iter().zip(&parts) {
            batch.put_object(commit.id, &commit.live(record));
            for (deletion, deleted) in record.deletions.iter().zip(&mut left) {
                batch.put_deletion(&DeletionRecord { commit: commit.id, ..deletion.clone() });
                deleted.commit = commit.id;
            }
        }
        self.state().end_objects(&mut batch, &prepared.dropped);
        self.state().merge_in_indexes(&mut batch, table_id, &prepared.dropped, &[]);
        let definition_object = ids.last().copied().unwrap_or(table.definition_object);
        batch.put_table(&TableRecord { generation: table.generation + 1, definition_object, ..table });
        // Older builds, which would show the rows, must not open it from now on.
        batch.put_identity(self.superblock.volume_uuid);
        changes.write(batch).await?;
        {
            let mut state = self.state();
            let segments = parts.iter().flat_map(|part| &part.deletions).map(|deletion| deletion.segment);
            state.deleted.extend(segments.zip(deleted.into_iter().map(Arc::new)));
            state.retire(&prepared.dropped);
        }
        self.publish()?;
        drop(changes);
        self.reclaim_soon(device).await;
        Ok(Deletion::Done { rows: prepared.rows })
    }
}

/// Spreads bitmaps over as few commit objects as have at most so many bytes of them each (one at least).
fn split(base: CommitRecord, deletions: Vec<DeletionRecord>, bytes_max: usize) -> Result<Vec<CommitRecord>> {
    let next = CommitRecord { replaces: Vec::new(), ..base.clone() };
    let mut parts = vec![base];
    let mut bytes = 0;
    for deletion in deletions {
        bytes += deletion.bitmap.len();
        if bytes > bytes_max && parts.last().is_some_and(|part| !part.deletions.is_empty()) {
            parts.push(next.clone());
            bytes = deletion.bitmap.len();
        }
        if let Some(part) = parts.last_mut() {
            part.deletions.push(deletion);
        }
    }
    if parts.len() > PARTS_MAX {
        let text = format!(
            "the bitmaps of the deleted rows need {} objects of {bytes_max} bytes, more than the {PARTS_MAX} of one change: \
             delete in several steps, each with a narrower condition",
            parts.len()
        );
        return Err(Error::new(ErrorCode::LimitExceeded, text).into());
    }
    Ok(parts)
}

impl State {
    /// The table, its segments that rows are deleted from with what is deleted already, and its next row id; `None` when
    /// the table or one of the segments has gone.
    fn deletion_inputs(&mut self, table_id: u64, found: &[RowsToDelete]) -> Option<(TableRecord, Inputs, i64)> {
        let table = self.manifest.tables.get(&table_id)?.clone();
        let named: BTreeSet<u64> = found.iter().map(|part| part.segment).collect();
        let mut inputs = Inputs::new();
        for id in named {
            let is_in_table =
                |object: &&ObjectRecord| object.table_id == table_id && object.is_live() && object.load_id.is_empty();
            self.manifest.objects.get(&id).filter(is_in_table)?;
            inputs.insert(id, (self.handles.get(&id)?.clone(), self.deleted.get(&id).cloned()));
        }
        let next_rowid = self.counter(table_id).next_rowid;
        Some((table, inputs, next_rowid))
    }

    /// Adds the end of objects to a batch: they become pending, and what was deleted of segments is forgotten.
    pub(super) fn end_objects(&self, batch: &mut Batch, ids: &[u64]) {
        for id in ids {
            if let Some(object) = self.manifest.objects.get(id) {
                batch.put_object(*id, &ObjectRecord { state: ObjectState::Pending as i32, ..object.clone() });
            }
            if self.manifest.deletions.contains_key(id) {
                batch.delete_deletion(*id);
            }
        }
    }

    /// Whether the deleted rows of a segment are still those.
    pub(super) fn has_deleted(&self, segment: u64, known: Option<&Arc<Deleted>>) -> bool {
        match (self.deleted.get(&segment), known) {
            (None, None) => true,
            (Some(now), Some(known)) => now.commit == known.commit,
            _ => false,
        }
    }
}
