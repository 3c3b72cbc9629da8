//! Indexes over columns of vectors: their definitions, and the objects that were built.
//!
//! Owns [`IndexHandle`], [`TableIndex`], [`BuiltIndex`] and the changes of them. Called by the server (create, drop) and
//! by the job that builds them (`search::index`), which makes the bytes and knows what they mean.
//!
//! A definition belongs to its table: it is in the table's record and in every commit object of the table, so that
//! `rebuild` finds it. What was built is an immutable object of its own over a named set of segments; it is in the
//! manifest only, for it can be built again.
//!
//! Invariants
//! - A column has one definition at most, and one object that counts; a new object takes the place of the old one in one
//!   batch. Until then, and after a crash, it is the old one.
//! - The segments that an index covers are segments of its table. A merge of covered segments is covered: row ids stay,
//!   and they are how an index names rows. A merge of covered and other segments is not.
//! - The extent of an index is not reused while any [`IndexHandle`] of it is alive.

use std::sync::{Arc, OnceLock};

use hidb::proto::IndexDefinition;

use super::error::{Result, StoreError};
use super::objects::{WrittenCommit, write_pieces};
use super::{Changes, State, Store};
use crate::device::{AlignedBuf, Device};
use crate::manifest::records::IndexRecord;
use crate::manifest::{Batch, LoadRecord, ObjectRecord, ObjectState, TableRecord};
use crate::search::index::Loaded;
use crate::search::passing::AllowedRows;
use crate::volume::{EXTENT_UNIT_BYTES, Extent, ObjectHeader, ObjectKind};

/// An index object on the volume.
#[derive(Debug)]
pub struct IndexHandle {
    /// Which one.
    pub id: u64,
    /// The table it belongs to.
    pub table_id: u64,
    /// Byte offset of its first payload byte on the volume, behind the header block.
    pub payload_offset: u64,
    /// Bytes on the volume, the header block included.
    pub length: u64,
    /// What it is.
    pub record: IndexRecord,
    /// The volume's UUID, for errors.
    pub volume: Arc<str>,
    /// What of it stays in memory, once it was read.
    pub loaded: OnceLock<Arc<Loaded>>,
}

impl IndexHandle {
    /// The error for bytes that can't be what was written.
    pub fn corruption(&self, at: u64, reason: &str) -> StoreError {
        StoreError::Corruption {
            volume: self.volume.to_string(),
            what: format!("index {} on column {:?}", self.id, self.record.column),
            offset: self.payload_offset + at,
            reason: format!("{reason}: drop the index and create it again"),
        }
    }
}

/// An index that a table is to have.
#[derive(Debug)]
pub struct TableIndex {
    /// What it is to be.
    pub definition: IndexDefinition,
    /// What was built, if anything was.
    pub built: Option<BuiltIndex>,
}

/// An index object and what it covers of a snapshot.
#[derive(Debug)]
pub struct BuiltIndex {
    /// The object.
    pub handle: Arc<IndexHandle>,
    /// Ids of the segments whose rows it has, ascending.
    pub covered: Vec<u64>,
    /// The rows that it may answer with, when these are not all that it has; made when somebody asks.
    pub rows: OnceLock<Option<Arc<AllowedRows>>>,
}

impl BuiltIndex {
    /// Whether it has the rows of this segment.
    pub fn covers(&self, segment: u64) -> bool {
        self.covered.binary_search(&segment).is_ok()
    }
}

/// An index object that is being written.
pub struct IndexWriter {
    id: u64,
    table_id: u64,
    extent: Extent,
    /// Bytes of the payload written so far, a multiple of 4 KiB but for the last piece.
    written: u64,
}

impl IndexWriter {
    /// Its id, for the cache.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Byte offset of its first payload byte on the volume.
    pub fn payload_offset(&self) -> u64 {
        self.extent.offset() + EXTENT_UNIT_BYTES
    }

    /// Appends bytes: a multiple of 4 KiB, but for the last.
    ///
    /// # Errors
    /// The device's; [`StoreError::Internal`] for more bytes than there is room for.
    pub async fn append<D: Device>(&mut self, device: &D, mut bytes: Vec<u8>) -> Result<()> {
        let used = bytes.len() as u64;
        bytes.resize(bytes.len().next_multiple_of(EXTENT_UNIT_BYTES as usize), 0);
        let end = EXTENT_UNIT_BYTES + self.written + bytes.len() as u64;
        if end > self.extent.length() || !self.written.is_multiple_of(EXTENT_UNIT_BYTES) {
            let text = format!("{used} bytes behind {} of an index do not fit its extent", self.written);
            return Err(StoreError::Internal(text));
        }
        write_pieces(device, self.payload_offset() + self.written, vec![bytes]).await?;
        self.written += used;
        Ok(())
    }
}

impl Store {
    /// Adds an index to a table's definition; it is built afterwards.
    ///
    /// # Errors
    /// [`StoreError::UnknownTable`]; `IndexExists`; the device's or the manifest's.
    pub async fn create_index<D: Device>(
        &self,
        device: &D,
        table: &str,
        definition: IndexDefinition,
        if_not_exists: bool,
    ) -> Result<()> {
        let changes = self.change().await?;
        let mut record = self.table_record(table)?;
        if record.indexes.iter().any(|index| index.column == definition.column) {
            if if_not_exists {
                return Ok(());
            }
            return Err(StoreError::Data(hidb::Error::new(
                hidb::ErrorCode::IndexExists,
                format!("column {:?} of table {table:?} has an index already: drop it first", definition.column),
            )));
        }
        record.indexes.push(definition);
        self.redefine(device, &changes, record, Batch::new()).await
    }

    /// Takes an index out of a table's definition, and its object away. Searches that have begun go on with it.
    ///
    /// # Errors
    /// [`StoreError::UnknownTable`]; `UnknownIndex`; the device's or the manifest's.
    pub async fn drop_index<D: Device>(&self, device: &D, table: &str, column: &str, if_exists: bool) -> Result<()> {
        let changes = self.change().await?;
        let mut record = self.table_record(table)?;
        let before = record.indexes.len();
        record.indexes.retain(|index| !index.column.eq_ignore_ascii_case(column));
        if record.indexes.len() == before {
            if if_exists {
                return Ok(());
            }
            return Err(StoreError::Data(hidb::Error::new(
                hidb::ErrorCode::UnknownIndex,
                format!("column {column:?} of table {table:?} has no index"),
            )));
        }
        let mut batch = Batch::new();
        let dropped =
            self.state().end_indexes(&mut batch, record.id, |index| index.column.eq_ignore_ascii_case(column));
        self.redefine(device, &changes, record, batch).await?;
        self.state().retire(&dropped);
        drop(changes);
        self.reclaim_soon(device).await;
        Ok(())
    }

    fn table_record(&self, table: &str) -> Result<TableRecord> {
        let record = self.state().table_named(table).cloned();
        record.ok_or_else(|| StoreError::UnknownTable { name: table.to_string() })
    }

    /// Makes a changed definition of a table durable, with what else is in `batch`.
    async fn redefine<D: Device>(
        &self,
        device: &D,
        changes: &Changes<'_>,
        table: TableRecord,
        mut batch: Batch,
    ) -> Result<()> {
        let next_rowid = self.state().counter(table.id).next_rowid;
        let record = table.commit_record(next_rowid);
        let commit: WrittenCommit = self.write_commit(device, changes, ObjectKind::Commit, &record, &[]).await?;
        batch.put_object(commit.id, &commit.live(&record));
        batch.put_table(&TableRecord { generation: table.generation + 1, definition_object: commit.id, ..table });
        changes.write(batch).await?;
        self.state().commits_changed = true;
        self.publish()
    }

    /// Space for an index object of at most so many payload bytes.
    ///
    /// # Errors
    /// [`StoreError::VolumeFull`], the manifest's.
    pub async fn begin_index<D: Device>(
        &self,
        device: &D,
        table_id: u64,
        payload_bytes_max: u64,
    ) -> Result<IndexWriter> {
        let id = self.change().await?.take_id();
        let bytes = payload_bytes_max.next_multiple_of(EXTENT_UNIT_BYTES) + EXTENT_UNIT_BYTES;
        let extent = self.allocate(device, bytes).await?;
        Ok(IndexWriter { id, table_id, extent, written: 0 })
    }

    /// Gives back the space of an index that will not be.
    ///
    /// # Errors
    /// [`StoreError::Internal`].
    pub fn abandon_index(&self, writer: IndexWriter) -> Result<()> {
        self.state().free(writer.extent)
    }

    /// Makes a written index the one of its column, in place of the one before. `covered` are the segments whose rows it
    /// has (merges of them meanwhile are covered as well), `loaded` what of it stays in memory. False, and the space is
    /// given back, when the table or the definition is gone.
    ///
    /// # Errors
    /// The device's or the manifest's.
    pub async fn commit_index<D: Device>(
        &self,
        device: &D,
        mut writer: IndexWriter,
        mut record: IndexRecord,
        mut covered: Vec<u64>,
        loaded: Arc<Loaded>,
    ) -> Result<bool> {
        record.payload_bytes = writer.written;
        let used = EXTENT_UNIT_BYTES + writer.written.next_multiple_of(EXTENT_UNIT_BYTES);
        if let Some(rest) = writer.extent.split_off(used) {
            self.state().free(rest)?;
        }
        let written = async {
            let mut header = AlignedBuf::zeroed(EXTENT_UNIT_BYTES as usize);
            let object = ObjectHeader::of_index(writer.id, writer.table_id, writer.extent.length());
            object.encode_into(&self.superblock, &mut header);
            device.write(writer.extent.offset(), header).await?;
            device.flush().await
        };
        if let Err(error) = written.await {
            self.abandon_index(writer)?;
            return Err(error.into());
        }
        let changes = self.change().await?;
        let mut batch = Batch::new();
        let wanted = {
            let state = self.state();
            let table = state.manifest.tables.get(&writer.table_id).cloned();
            covered = state.still_covered(writer.table_id, covered);
            let defined =
                |table: &TableRecord| table.indexes.iter().any(|index| record.definition.as_ref() == Some(index));
            table.filter(defined)
        };
        let Some(table) = wanted else {
            self.erase_written(device, writer).await?;
            return Ok(false);
        };
        let replaced = self.state().end_indexes(&mut batch, table.id, |index| index.column == record.column);
        let object = ObjectRecord {
            kind: ObjectKind::Index as u32,
            state: ObjectState::Live as i32,
            offset: writer.extent.offset(),
            length: writer.extent.length(),
            table_id: table.id,
            segments: covered,
            index: Some(record),
            ..Default::default()
        };
        batch.put_object(writer.id, &object);
        batch.put_table(&TableRecord { generation: table.generation + 1, ..table });
        changes.write(batch).await?;
        {
            let mut state = self.state();
            state.retire(&replaced);
            let handle = self.index_handle(writer.id, &object);
            handle.loaded.get_or_init(|| loaded);
            state.indexes.insert(writer.id, Arc::new(handle));
        }
        self.publish()?;
        drop(changes);
        self.reclaim_soon(device).await;
        Ok(true)
    }

    /// Takes back an object that never was in the manifest: its header must not be found by `rebuild` in what comes to
    /// lie there.
    async fn erase_written<D: Device>(&self, device: &D, writer: IndexWriter) -> Result<()> {
        device.write(writer.extent.offset(), AlignedBuf::zeroed(EXTENT_UNIT_BYTES as usize)).await?;
        device.flush().await?;
        self.abandon_index(writer)
    }

    fn index_handle(&self, id: u64, object: &ObjectRecord) -> IndexHandle {
        IndexHandle {
            id,
            table_id: object.table_id,
            payload_offset: object.offset + EXTENT_UNIT_BYTES,
            length: object.length,
            record: object.index.clone().unwrap_or_default(),
            volume: Arc::clone(&self.volume),
            loaded: OnceLock::new(),
        }
    }

    /// Makes the handles of all indexes, when the store is opened.
    pub(super) fn read_indexes(&self) {
        let mut state = self.state();
        let live = state.manifest.objects.iter().filter(|(_, object)| object.is(ObjectKind::Index) && object.is_live());
        let handles = live.map(|(id, object)| (*id, Arc::new(self.index_handle(*id, object)))).collect();
        state.indexes = handles;
    }
}

impl State {
    /// Adds the end of some of a table's indexes to a batch. Returns them.
    pub(super) fn end_indexes(
        &self,
        batch: &mut Batch,
        table_id: u64,
        ends: impl Fn(&IndexRecord) -> bool,
    ) -> Vec<u64> {
        let mut ended = Vec::new();
        for (id, object) in self.indexes_of(table_id) {
            if object.index.as_ref().is_some_and(&ends) {
                batch.put_object(id, &ObjectRecord { state: ObjectState::Pending as i32, ..object.clone() });
                ended.push(id);
            }
        }
        ended
    }

    fn indexes_of(&self, table_id: u64) -> impl Iterator<Item = (u64, &ObjectRecord)> {
        let objects = self.manifest.objects.iter().map(|(id, object)| (*id, object));
        let is_index = |object: &ObjectRecord| object.is(ObjectKind::Index) && object.is_live();
        objects.filter(move |(_, object)| object.table_id == table_id && is_index(object))
    }

    /// The segments whose rows a merge of these may have.
    pub(super) fn merged_from(&self, inputs: &[u64]) -> Vec<u64> {
        let from = |input: &u64| self.merged.get(input).cloned().unwrap_or_else(|| vec![*input]);
        inputs.iter().flat_map(from).collect()
    }

    /// Of a table's segments now, those that hold nothing but rows of these, ascending.
    fn still_covered(&self, table_id: u64, mut covered: Vec<u64>) -> Vec<u64> {
        covered.sort_unstable();
        let is_covered = |id: &u64| covered.binary_search(id).is_ok();
        let of_table = self.segments_of(table_id).map(|(id, _)| id);
        of_table
            .filter(|id| is_covered(id) || self.merged.get(id).is_some_and(|from| from.iter().all(is_covered)))
            .collect()
    }

    /// Adds to a batch what the merge of `inputs` into `outputs` means for a table's indexes.
    pub(super) fn merge_in_indexes(&self, batch: &mut Batch, table_id: u64, inputs: &[u64], outputs: &[u64]) {
        for (id, object) in self.indexes_of(table_id) {
            let covered = inputs.iter().filter(|input| object.segments.binary_search(input).is_ok()).count();
            if covered == 0 {
                continue;
            }
            let mut segments: Vec<u64> = object.segments.clone();
            segments.retain(|segment| !inputs.contains(segment));
            if covered == inputs.len() {
                segments.extend_from_slice(outputs);
                segments.sort_unstable();
            }
            batch.put_object(id, &ObjectRecord { segments, ..object.clone() });
        }
    }

    /// The indexes of a table, for its snapshot.
    pub(super) fn snapshot_indexes(&self, table: u64, definitions: &[IndexDefinition]) -> Vec<TableIndex> {
        let built = |definition: &IndexDefinition| {
            let (id, object) = self
                .indexes_of(table)
                .find(|(_, object)| object.index.as_ref().is_some_and(|index| index.column == definition.column))?;
            let handle = Arc::clone(self.indexes.get(&id)?);
            Some(BuiltIndex { handle, covered: object.segments.clone(), rows: OnceLock::new() })
        };
        let index =
            |definition: &IndexDefinition| TableIndex { definition: definition.clone(), built: built(definition) };
        definitions.iter().map(index).collect()
    }
}

impl State {
    /// The definitions that a table keeps when a load is committed: all of them, or when the load replaces the table, those
    /// of columns that are still there with their type.
    pub(super) fn kept_indexes(&self, load: &LoadRecord) -> Vec<IndexDefinition> {
        let Some(table) = self.table_named(&load.table_name) else { return Vec::new() };
        let columns = |schema: &Option<hidb::proto::TableSchema>, name: &str| {
            let columns = schema.iter().flat_map(|schema| &schema.columns);
            columns.into_iter().find(|column| column.name == name).and_then(|column| column.r#type)
        };
        let stays =
            |name: &String| columns(&load.schema, name).is_some_and(|t| columns(&table.schema, name) == Some(t));
        let kept = table.indexes.iter().filter(|index| stays(&index.column) && index.include.iter().all(stays));
        kept.cloned().collect()
    }
}
