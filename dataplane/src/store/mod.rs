//! The store: tables on a volume, and every change of them.
//!
//! Owns the [`Store`]: catalog, space, loads, deletions, drops, merges, reclaiming, `check` and `rebuild`. It is `Send + Sync`
//! and shared by all cores; methods that touch the volume take the caller's own [`Device`].
//!
//! Invariants
//! - The order of every change is: write the objects, flush the device, write the manifest synchronously, then
//!   publish. A commit object or tombstone is entered as *pending* before it is written, so that a crash in
//!   between takes it back.
//! - The state in memory is what the manifest says plus what was handed out (ids, row ids, extents being written).
//! - An extent becomes free only after the header of its object was erased and the device flushed.
//! - Changes are serialised by one asynchronous lock; data is written outside it.
//!
//! Futures of the store must be driven to completion: a dropped one may leave its extent in use until the next open.
//! Called by the server, the command line and the crash simulation.

pub mod check;
mod commit;
pub mod decode;
mod deletions;
pub mod error;
mod finite;
pub mod index;
mod load;
mod merge;
mod objects;
mod open;
mod ordering;
pub mod rebuild;
mod reclaim;
mod table;
pub mod users;

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use hidb::Schema;
use hidb::order::TableOrder;

pub use crate::manifest::records::LoadMode;
pub use crate::manifest::{LoadState, Observer};
pub use check::{CheckReport, check};
pub use deletions::{Deleted, Deletion, RowsToDelete};
pub use error::{Result, StoreError};
pub use index::{BuiltIndex, IndexHandle, IndexWriter, TableIndex};
pub use load::{LoadRequest, LoadStatus, LoadWriter};
pub use merge::{MergeJob, Merged};
pub use open::format;
pub use rebuild::{RebuildReport, rebuild};
pub use table::{Catalog, SegmentHandle, TableSnapshot};

use self::users::Users;
use crate::device::Device;
use crate::manifest::records::CounterRecord;
use crate::manifest::{Batch, Manifest, ManifestState, ObjectRecord, TableRecord};
use crate::volume::object::CommitRecord;
use crate::volume::{Extent, ExtentAllocator, FolderLock, ObjectKind, Superblock, VolumeLock};
use crate::workers::{Inline, Workers};

/// Row groups of a segment that comes from a load.
pub const SEGMENT_ROW_GROUPS_MAX: usize = 4;
/// Units kept for commit objects and tombstones, so that a full volume can still drop.
const METADATA_RESERVE_UNITS: u64 = 32;
/// Ids are reserved in the manifest this many at a time.
const IDS_RESERVED_AT_ONCE: u64 = 1024;
/// The most ids one change takes.
const IDS_PER_CHANGE_MAX: u64 = 64;
/// The most shards of a table.
pub const SHARDS_MAX: u32 = 4096;

/// How to open a store.
#[derive(Clone)]
pub struct StoreOptions {
    /// The cell's metadata folder.
    pub metadata_folder: PathBuf,
    /// Shards of a table that does not say how many.
    pub shards_default: u32,
    /// Row groups of one load that may be in encoding at a time.
    pub row_groups_in_flight_max: usize,
    /// Raw bytes of the rows that are ordered together, in tables that have an order.
    pub sort_run_bytes_max: usize,
    /// Bytes of deleted rows' bitmaps that one commit object holds; a deletion of more takes several.
    pub commit_bytes_max: usize,
    /// Memory that the runs of all loads and merges may take together, but for 16 MiB each.
    pub sort_memory_bytes_max: usize,
    /// A load without traffic for this long is aborted by the sweep, and a finished one forgotten, in seconds.
    pub load_idle_s_max: u64,
    /// Who encodes row groups.
    pub workers: Arc<dyn Workers>,
    /// Called on the manifest's thread after each durable batch (crash simulation, metrics).
    pub observer: Option<Observer>,
}

impl StoreOptions {
    /// The defaults, with this metadata folder; encoding happens where it is asked for.
    pub fn new(metadata_folder: impl Into<PathBuf>) -> Self {
        StoreOptions {
            metadata_folder: metadata_folder.into(),
            shards_default: 16,
            row_groups_in_flight_max: 4,
            sort_run_bytes_max: 192 << 20,
            commit_bytes_max: 16 << 20,
            sort_memory_bytes_max: 1 << 30,
            load_idle_s_max: 24 * 3600,
            workers: Arc::new(Inline),
            observer: None,
        }
    }
}

/// Space on the volume, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Size of the volume.
    pub volume_bytes: u64,
    /// Free bytes.
    pub free_bytes: u64,
    /// Bytes of dropped objects that wait for their readers or for [`Store::reclaim`].
    pub pending_bytes: u64,
}

/// Tables on one volume. See the module.
pub struct Store {
    superblock: Superblock,
    volume: Arc<str>,
    options: StoreOptions,
    manifest: Manifest,
    state: Mutex<State>,
    catalog: Mutex<Arc<Catalog>>,
    users: Mutex<Arc<Users>>,
    changes: futures::lock::Mutex<()>,
    runs: ordering::Runs,
    _folder_lock: FolderLock,
    _volume_lock: Option<VolumeLock>,
}

struct State {
    /// What is durable.
    manifest: ManifestState,
    /// The next id to hand out; below `manifest.next_id`, which is reserved.
    next_id: u64,
    allocator: ExtentAllocator,
    /// Row ids and ordinals as handed out, which may be ahead of the manifest.
    counters: BTreeMap<u64, CounterRecord>,
    /// Segments that count, those of open loads included.
    handles: BTreeMap<u64, Arc<SegmentHandle>>,
    /// What is deleted of those that count.
    deleted: BTreeMap<u64, Arc<Deleted>>,
    /// For each segment that a merge made since the store was opened: the segments whose rows it may have.
    merged: BTreeMap<u64, Vec<u64>>,
    /// Indexes that count.
    indexes: BTreeMap<u64, Arc<IndexHandle>>,
    /// Segments and indexes that no longer count but may still be read.
    retired: HashMap<u64, Weak<dyn Any + Send + Sync>>,
    /// Which connection writes a load: the last to begin it.
    load_epochs: HashMap<[u8; 16], u64>,
    /// Commit objects may have become erasable since the last look.
    commits_changed: bool,
    /// Set once a write to the manifest failed: whether it happened shows only at the next start, and until then
    /// nothing may be changed that contradicts either.
    undecided: Option<StoreError>,
}

/// The right to change the store; ids can be taken while it is held.
struct Changes<'a> {
    store: &'a Store,
    _guard: futures::lock::MutexGuard<'a, ()>,
}

impl Changes<'_> {
    fn take_id(&self) -> u64 {
        let mut state = self.store.state();
        let id = state.next_id;
        state.next_id += 1;
        id
    }

    /// Writes a batch durably, then applies it to the state in memory.
    async fn write(&self, batch: Batch) -> Result<()> {
        match self.store.manifest.write(batch.clone()).await {
            Ok(()) => {
                self.store.state().manifest.apply(&batch);
                Ok(())
            }
            Err(error) => {
                let undecided = StoreError::Undecided { reason: error.to_string() };
                self.store.state().undecided = Some(undecided.clone());
                Err(undecided)
            }
        }
    }
}

fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

impl Store {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere while the lock was held is no reason for every later request to fail.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn change(&self) -> Result<Changes<'_>> {
        let changes = Changes { store: self, _guard: self.changes.lock().await };
        if let Some(error) = self.state().undecided.clone() {
            return Err(error);
        }
        let wanted = {
            let state = self.state();
            (state.next_id + IDS_PER_CHANGE_MAX > state.manifest.next_id).then(|| state.next_id + IDS_RESERVED_AT_ONCE)
        };
        if let Some(next_id) = wanted {
            let mut batch = Batch::new();
            batch.put_next_id(next_id);
            changes.write(batch).await?;
        }
        Ok(changes)
    }

    /// All tables as they are now: a short lock and a reference count.
    pub fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The table of this name as it is now.
    ///
    /// # Errors
    /// [`StoreError::UnknownTable`].
    pub fn table(&self, name: &str) -> Result<Arc<TableSnapshot>> {
        self.catalog().table(name).cloned()
    }

    /// The volume's superblock.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Who does what takes long.
    pub fn workers(&self) -> &Arc<dyn Workers> {
        &self.options.workers
    }

    /// The volume's UUID as text.
    pub fn volume(&self) -> &str {
        &self.volume
    }

    /// How full the volume is.
    pub fn space(&self) -> Space {
        let state = self.state();
        let pending = state.manifest.objects.values().filter(|object| !object.is_live());
        Space {
            volume_bytes: self.superblock.size_bytes,
            free_bytes: state.allocator.free_units() * crate::volume::EXTENT_UNIT_BYTES,
            pending_bytes: pending.map(|object| object.length).sum(),
        }
    }

    /// What the manifest says, for `check` and tests.
    pub fn manifest_state(&self) -> ManifestState {
        self.state().manifest.clone()
    }

    fn shards(&self, wanted: u32) -> Result<u32> {
        match wanted {
            0 => Ok(self.options.shards_default.clamp(1, SHARDS_MAX)),
            1..=SHARDS_MAX => Ok(wanted),
            _ => Err(StoreError::Data(hidb::Error::new(
                hidb::ErrorCode::LimitExceeded,
                format!("{wanted} shards: a table may have at most {SHARDS_MAX}"),
            ))),
        }
    }

    /// Makes an empty table, whose rows are kept in this order, if in one. `shards` 0 takes the default.
    ///
    /// # Errors
    /// [`StoreError::TableExists`], [`StoreError::VolumeFull`], the device's or the manifest's.
    pub async fn create_table<D: Device>(
        &self,
        device: &D,
        name: &str,
        schema: &Schema,
        order: Option<&TableOrder>,
        shards: u32,
    ) -> Result<()> {
        let shards = self.shards(shards)?;
        let changes = self.change().await?;
        if self.state().table_named(name).is_some() {
            return Err(StoreError::TableExists { name: name.to_string() });
        }
        let table_id = changes.take_id();
        let schema = hidb::convert::definition_to_proto(schema, order);
        let record = CommitRecord {
            table_id,
            table_name: name.to_string(),
            schema: Some(schema.clone()),
            shards,
            ..Default::default()
        };
        let commit = self.write_commit(device, &changes, ObjectKind::Commit, &record, &[]).await?;
        let mut batch = Batch::new();
        batch.put_object(commit.id, &commit.live(&record));
        batch.put_table(&TableRecord {
            id: table_id,
            name: name.to_string(),
            schema: Some(schema),
            shards,
            generation: 1,
            definition_object: commit.id,
            indexes: Vec::new(),
        });
        batch.put_counter(table_id, &CounterRecord::default());
        changes.write(batch).await?;
        self.publish()
    }

    /// Drops a table. Scans that have begun go on; its space returns after the last of them.
    ///
    /// # Errors
    /// [`StoreError::UnknownTable`], the device's or the manifest's.
    pub async fn drop_table<D: Device>(&self, device: &D, name: &str) -> Result<()> {
        let changes = self.change().await?;
        let table_id = self.state().table_named(name).map(|table| table.id);
        let Some(table_id) = table_id else { return Err(StoreError::UnknownTable { name: name.to_string() }) };
        let record =
            CommitRecord { table_id, table_name: name.to_string(), drops_tables: vec![table_id], ..Default::default() };
        let tombstone = self.write_commit(device, &changes, ObjectKind::Tombstone, &record, &[]).await?;
        let mut batch = Batch::new();
        batch.put_object(tombstone.id, &tombstone.live(&record));
        let dropped = self.state().end_table(&mut batch, table_id);
        changes.write(batch).await?;
        self.state().retire(&dropped);
        self.publish()?;
        drop(changes);
        self.reclaim_soon(device).await;
        Ok(())
    }

    /// Makes the catalog again from the state.
    fn publish(&self) -> Result<()> {
        let state = self.state();
        let mut segments: HashMap<u64, Vec<Arc<SegmentHandle>>> = HashMap::new();
        for (id, handle) in &state.handles {
            let in_table = |object: &ObjectRecord| object.is_live() && object.load_id.is_empty();
            if state.manifest.objects.get(id).is_some_and(in_table) {
                segments.entry(handle.table_id).or_default().push(Arc::clone(handle));
            }
        }
        let mut catalog = self.catalog.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tables = BTreeMap::new();
        for (id, record) in &state.manifest.tables {
            let previous = catalog.tables.get(&record.name);
            if let Some(same) = previous.filter(|table| table.id == *id && table.generation == record.generation) {
                tables.insert(record.name.clone(), Arc::clone(same));
                continue;
            }
            let schema = self.read_schema(record.schema.as_ref(), &record.name)?;
            let order = self.read_order(record.schema.as_ref(), &schema, &record.name)?;
            let segments = segments.remove(id).unwrap_or_default();
            let deleted: Vec<_> = segments.iter().map(|segment| state.deleted.get(&segment.id).cloned()).collect();
            let deleted_rows = deleted.iter().flatten().map(|deleted| deleted.rows).sum();
            let table = TableSnapshot {
                id: *id,
                name: record.name.clone(),
                schema_hash: schema.hash(),
                schema: Arc::new(schema),
                order,
                generation: record.generation,
                shards: record.shards,
                rows: segments.iter().map(|segment| segment.footer.rows()).sum::<u64>() - deleted_rows,
                deleted_rows,
                stored_bytes: segments.iter().map(|segment| segment.length).sum(),
                column_bytes: OnceLock::new(),
                indexes: state.snapshot_indexes(*id, &record.indexes),
                rowids: OnceLock::new(),
                segments,
                deleted,
            };
            tables.insert(record.name.clone(), Arc::new(table));
        }
        *catalog = Arc::new(Catalog { tables, generation: catalog.generation + 1 });
        Ok(())
    }

    fn unreadable(&self, table: &str, reason: impl std::fmt::Display) -> StoreError {
        StoreError::Manifest {
            folder: self.manifest.folder().to_path_buf(),
            reason: format!("the schema of table {table:?} can't be read: {reason}"),
        }
    }

    fn read_schema(&self, schema: Option<&hidb::proto::TableSchema>, table: &str) -> Result<Schema> {
        let schema = schema.ok_or_else(|| self.unreadable(table, "it is missing"))?;
        hidb::convert::schema_from_proto(schema).map_err(|error| self.unreadable(table, error))
    }

    fn read_order(
        &self,
        message: Option<&hidb::proto::TableSchema>,
        schema: &Schema,
        table: &str,
    ) -> Result<Option<TableOrder>> {
        let Some(message) = message else { return Ok(None) };
        hidb::convert::order_from_proto(message, schema).map_err(|error| self.unreadable(table, error))
    }

    fn volume_full(&self, wanted_bytes: u64) -> StoreError {
        StoreError::VolumeFull { volume: self.volume.to_string(), wanted_bytes, free_bytes: self.space().free_bytes }
    }
}

impl State {
    fn table_named(&self, name: &str) -> Option<&TableRecord> {
        self.manifest.tables.values().find(|table| table.name == name)
    }

    /// Segments that are part of a table now.
    fn segments_of(&self, table_id: u64) -> impl Iterator<Item = (u64, &ObjectRecord)> {
        let objects = self.manifest.objects.iter().map(|(id, object)| (*id, object));
        objects.filter(move |(_, object)| {
            object.table_id == table_id
                && object.is(ObjectKind::Segment)
                && object.is_live()
                && object.load_id.is_empty()
        })
    }

    /// Adds the end of a table to a batch: its segments, indexes and commit objects become pending. Returns the segments
    /// and indexes.
    fn end_table(&self, batch: &mut Batch, table_id: u64) -> Vec<u64> {
        batch.delete_table(table_id);
        let mut segments = Vec::new();
        let mut commits = Vec::new();
        for (id, object) in &self.manifest.objects {
            let of_table = object.table_id == table_id && object.is_live() && object.load_id.is_empty();
            if !of_table || object.is(ObjectKind::Tombstone) {
                continue;
            }
            if object.is_data() { &mut segments } else { &mut commits }.push(*id);
        }
        self.end_objects(batch, &segments);
        self.end_objects(batch, &commits);
        segments
    }

    /// Segments and indexes stop counting: they live on for their readers only.
    fn retire(&mut self, ids: &[u64]) {
        for id in ids {
            self.merged.remove(id);
            self.deleted.remove(id);
            if let Some(handle) = self.handles.remove(id) {
                let handle: Weak<dyn Any + Send + Sync> = Arc::<SegmentHandle>::downgrade(&handle);
                self.retired.insert(*id, handle);
            }
            if let Some(handle) = self.indexes.remove(id) {
                let handle: Weak<dyn Any + Send + Sync> = Arc::<IndexHandle>::downgrade(&handle);
                self.retired.insert(*id, handle);
            }
        }
        self.commits_changed = true;
    }

    fn counter(&mut self, table_id: u64) -> &mut CounterRecord {
        let durable = self.manifest.counters.get(&table_id).copied().unwrap_or_default();
        self.counters.entry(table_id).or_insert(durable)
    }

    /// Space for metadata objects of so many units, or none at all.
    fn allocate_metadata(&mut self, units: &[u64]) -> Result<Option<Vec<Extent>>> {
        let mut extents = Vec::with_capacity(units.len());
        for units in units {
            match self.allocator.allocate_metadata(*units) {
                Ok(extent) => extents.push(extent),
                Err(_) => {
                    extents.into_iter().try_for_each(|extent| self.free(extent))?;
                    return Ok(None);
                }
            }
        }
        Ok(Some(extents))
    }

    fn free(&mut self, extent: Extent) -> Result<()> {
        self.allocator.free(extent).map_err(|error| StoreError::Internal(error.to_string()))
    }
}
