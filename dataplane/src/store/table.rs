//! What readers see of tables: immutable snapshots of their segments.
//!
//! Invariants
//! - A [`TableSnapshot`] never changes; a scan that holds one reads the table as it was.
//! - The extent of a segment is not reused while any [`SegmentHandle`] of it is alive.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use heliostat_segment::{ChunkMeta, PartMeta, SegmentFooter, membership_number, verify_chunk};
use hidb::Schema;
use hidb::order::TableOrder;

use super::deletions::Deleted;
use super::error::{Result, StoreError};
use super::index::TableIndex;
use crate::search::rowids::{Place, RowIdRuns, RowIds};

/// A segment on the volume and its footer.
#[derive(Debug)]
pub struct SegmentHandle {
    /// Which segment.
    pub id: u64,
    /// The table it belongs to.
    pub table_id: u64,
    /// The shard it belongs to.
    pub shard: u32,
    /// Byte offset on the volume.
    pub offset: u64,
    /// Bytes on the volume.
    pub length: u64,
    /// What it holds.
    pub footer: Arc<SegmentFooter>,
    /// The volume's UUID, for errors.
    pub volume: Arc<str>,
    /// What was learnt of the order of its row ids.
    pub rowid_runs: RowIdRuns,
}

impl SegmentHandle {
    /// The description of a chunk; `column` counts the table's columns, then `_rowid`.
    ///
    /// # Errors
    /// [`StoreError::Internal`] when there is no such row group or column.
    pub fn chunk(&self, row_group: usize, column: usize) -> Result<&ChunkMeta> {
        let group = self.footer.row_groups.get(row_group);
        group.and_then(|group| group.columns.get(column)).ok_or_else(|| {
            StoreError::Internal(format!("segment {} has no row group {row_group} with column {column}", self.id))
        })
    }

    /// Where a chunk or membership filter is within the segment, by its number
    /// ([`heliostat_segment::RowGroupMeta::part`]).
    ///
    /// # Errors
    /// [`StoreError::Internal`] when there is none.
    pub fn part(&self, row_group: usize, number: usize) -> Result<PartMeta> {
        let group = self.footer.row_groups.get(row_group);
        group.and_then(|group| group.part(number)).ok_or_else(|| {
            StoreError::Internal(format!("segment {} has no row group {row_group} with part {number}", self.id))
        })
    }

    /// Where a chunk is: byte offset on the volume (4 KiB aligned) and length in bytes (without padding).
    ///
    /// # Errors
    /// As [`SegmentHandle::chunk`].
    pub fn chunk_extent(&self, row_group: usize, column: usize) -> Result<(u64, usize)> {
        let chunk = self.chunk(row_group, column)?;
        Ok((self.offset + chunk.offset, chunk.length as usize))
    }

    /// Checks a chunk's bytes, as read from the device.
    ///
    /// # Errors
    /// [`StoreError::Corruption`], naming volume, segment, column and offset.
    pub fn verify_chunk(&self, row_group: usize, column: usize, bytes: &[u8]) -> Result<()> {
        let chunk = self.chunk(row_group, column)?;
        verify_chunk(chunk, bytes).map_err(|error| self.corruption(row_group, column, &error.to_string()))
    }

    /// The error for a chunk or membership filter, by its number, that can't be what was written.
    pub fn corruption(&self, row_group: usize, number: usize, reason: &str) -> StoreError {
        let offset = self.part(row_group, number).map_or(self.offset, |part| self.offset + part.offset);
        let columns = self.footer.schema.len();
        let part = match number.checked_sub(membership_number(columns, 0)) {
            Some(column) => format!("membership filter of column {:?}", self.column_name(column)),
            None => format!("column {:?}", self.column_name(number)),
        };
        StoreError::Corruption {
            volume: self.volume.to_string(),
            what: format!("segment {}, row group {row_group}, {part}", self.id),
            offset,
            reason: reason.to_string(),
        }
    }

    fn column_name(&self, column: usize) -> &str {
        self.footer.schema.fields().get(column).map_or(hidb::ROWID_COLUMN, |field| field.name.as_str())
    }
}

/// A table at one instant.
#[derive(Debug)]
pub struct TableSnapshot {
    /// The table's id, never used again.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Its columns.
    pub schema: Arc<Schema>,
    /// [`Schema::hash`] of them.
    pub schema_hash: u64,
    /// The order its rows are kept in, if in one.
    pub order: Option<TableOrder>,
    /// Counts changes of its data.
    pub generation: u64,
    /// How many shards it has.
    pub shards: u32,
    /// Its segments, by id.
    pub segments: Vec<Arc<SegmentHandle>>,
    /// What is deleted of each of them, in the same order.
    pub deleted: Vec<Option<Arc<Deleted>>>,
    /// Rows of all segments that are not deleted.
    pub rows: u64,
    /// Rows that are deleted and still take space, until a merge leaves them out.
    pub deleted_rows: u64,
    /// Bytes of all segments on the volume.
    pub stored_bytes: u64,
    /// Bytes of each column's chunks and membership filters, summed up when somebody asks.
    pub(super) column_bytes: OnceLock<Vec<u64>>,
    /// The indexes that it is to have, with what was built of them.
    pub indexes: Vec<TableIndex>,
    /// Which row groups may hold a row id, made when somebody asks.
    pub(super) rowids: OnceLock<RowIds>,
}

impl TableSnapshot {
    /// The rows of a row group that were not deleted, as a bitmap; `None`: all.
    pub fn live_rows(&self, segment: u64, row_group: usize) -> Option<Arc<[u64]>> {
        self.deleted_of(segment)?.among(row_group)
    }

    /// Whether the row at a place was not deleted.
    pub fn is_live(&self, place: Place) -> bool {
        let segment = self.segments.get(place.segment as usize);
        let live = segment.and_then(|segment| self.live_rows(segment.id, place.row_group as usize));
        live.is_none_or(|words| words.get(place.row as usize / 64).is_some_and(|w| w >> (place.row % 64) & 1 == 1))
    }

    /// Which row groups may hold a row id.
    pub fn rowids(&self) -> &RowIds {
        self.rowids.get_or_init(|| RowIds::of(self))
    }

    /// What is deleted of a segment, by its id.
    pub fn deleted_of(&self, segment: u64) -> Option<&Arc<Deleted>> {
        let index = self.segments.binary_search_by_key(&segment, |segment| segment.id).ok()?;
        self.deleted.get(index)?.as_ref()
    }

    /// Bytes that these columns take on the volume (`schema.len()` stands for `_rowid`).
    pub fn column_bytes(&self, columns: &[usize]) -> u64 {
        let sums = self.column_bytes.get_or_init(|| {
            let mut sums = vec![0; self.schema.len() + 1];
            for group in self.segments.iter().flat_map(|segment| &segment.footer.row_groups) {
                for (sum, chunk) in sums.iter_mut().zip(&group.columns) {
                    *sum += chunk.stored_bytes();
                }
            }
            sums
        });
        columns.iter().filter_map(|column| sums.get(*column)).sum()
    }
}

/// All tables at one instant.
#[derive(Debug, Default)]
pub struct Catalog {
    /// Tables by name.
    pub tables: BTreeMap<String, Arc<TableSnapshot>>,
    /// Counts changes of the catalog since the store was opened.
    pub generation: u64,
}

impl Catalog {
    /// The table of this name.
    ///
    /// # Errors
    /// [`StoreError::UnknownTable`].
    pub fn table(&self, name: &str) -> Result<&Arc<TableSnapshot>> {
        self.tables.get(name).ok_or_else(|| StoreError::UnknownTable { name: name.to_string() })
    }
}
