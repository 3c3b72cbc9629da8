//! What the manifest says: keys, versioned values, and the whole of it in memory.
//!
//! Keys are one byte of kind and a big-endian id, so that they sort. Values are protobuf, so that later versions
//! can add fields; [`MANIFEST_VERSION`] changes when an old build must not read them.

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message;

use super::users::UserRecord;
use crate::store::error::{Result, StoreError};
use crate::volume::deletion::DeletionRecord;
use crate::volume::object::CommitRecord;
use crate::volume::{EXTENT_UNIT_BYTES, Extent, ObjectKind};

/// The version of the records this build writes, and the newest it reads. Version 2 brought users: a build that does
/// not know them must not open the manifest, for it would let everybody in. Version 3 brought deleted rows, which older
/// builds would show. A manifest becomes of this version with its first change that needs it.
pub const MANIFEST_VERSION: u32 = 3;
/// The oldest version this build reads.
const MANIFEST_VERSION_MIN: u32 = 1;

const KEY_IDENTITY: u8 = b'i';
const KEY_NEXT_ID: u8 = b'n';
const KEY_TABLE: u8 = b't';
const KEY_COUNTER: u8 = b'c';
const KEY_OBJECT: u8 = b'o';
const KEY_LOAD: u8 = b'l';
const KEY_DELETION: u8 = b'd';
const KEY_USER: u8 = b'u';
const KEY_USERS_SECRET: u8 = b's';

/// Which volume the manifest belongs to.
#[derive(Clone, PartialEq, Message)]
pub struct IdentityRecord {
    /// See [`MANIFEST_VERSION`].
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The volume's UUID.
    #[prost(bytes = "vec", tag = "2")]
    pub volume_uuid: Vec<u8>,
}

/// A table.
#[derive(Clone, PartialEq, Message)]
pub struct TableRecord {
    /// Its id, never used again.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Its schema.
    #[prost(message, optional, tag = "3")]
    pub schema: Option<hidb::proto::TableSchema>,
    /// How many shards it has.
    #[prost(uint32, tag = "4")]
    pub shards: u32,
    /// Counts changes of its data.
    #[prost(uint64, tag = "5")]
    pub generation: u64,
    /// The commit object that made it: kept for as long as the table lives.
    #[prost(uint64, tag = "6")]
    pub definition_object: u64,
    /// The indexes that it is to have.
    #[prost(message, repeated, tag = "30")]
    pub indexes: Vec<hidb::proto::IndexDefinition>,
}

impl TableRecord {
    /// What every commit object of the table says, whatever it changes: `rebuild` takes the definition from the last one, so
    /// that what is left out there is lost with the manifest.
    pub fn commit_record(&self, next_rowid: i64) -> CommitRecord {
        CommitRecord {
            table_id: self.id,
            table_name: self.name.clone(),
            schema: self.schema.clone(),
            shards: self.shards,
            next_rowid,
            indexes: self.indexes.clone(),
            ..Default::default()
        }
    }
}

/// What a table hands out; beside the table, because a load that makes a table has it before the table exists.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct CounterRecord {
    /// The next row id.
    #[prost(int64, tag = "1")]
    pub next_rowid: i64,
    /// Segments made so far, for spreading them over shards.
    #[prost(uint64, tag = "2")]
    pub next_ordinal: u64,
}

/// What an index object is.
#[derive(Clone, PartialEq, Message)]
pub struct IndexRecord {
    /// The column that it is over.
    #[prost(string, tag = "1")]
    pub column: String,
    /// [`hidb::proto::IndexKind`] of what was built.
    #[prost(enumeration = "hidb::proto::IndexKind", tag = "2")]
    pub kind: i32,
    /// Bytes behind the header block.
    #[prost(uint64, tag = "3")]
    pub payload_bytes: u64,
    /// Vectors in it.
    #[prost(uint64, tag = "4")]
    pub vectors: u64,
    /// Rows of the segments that it covers, when it was built: NULL vectors and rows that were deleted later included.
    #[prost(uint64, tag = "5")]
    pub rows: u64,
    /// The most memory that building it took, in bytes.
    #[prost(uint64, tag = "6")]
    pub build_memory_bytes: u64,
    /// How long building it took, in ms.
    #[prost(uint64, tag = "7")]
    pub build_ms: u64,
    /// The definition that it was built for.
    #[prost(message, optional, tag = "8")]
    pub definition: Option<hidb::proto::IndexDefinition>,
}

/// Whether an object counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum ObjectState {
    /// Being returned: its header is erased, then its extent is free.
    Pending = 0,
    /// It counts.
    Live = 1,
}

/// An object on the volume and its extent.
#[derive(Clone, PartialEq, Message)]
pub struct ObjectRecord {
    /// [`ObjectKind`] as a number.
    #[prost(uint32, tag = "1")]
    pub kind: u32,
    /// Whether it counts.
    #[prost(enumeration = "ObjectState", tag = "2")]
    pub state: i32,
    /// Byte offset on the volume.
    #[prost(uint64, tag = "3")]
    pub offset: u64,
    /// Bytes of the object.
    #[prost(uint64, tag = "4")]
    pub length: u64,
    /// The table it belongs to.
    #[prost(uint64, tag = "5")]
    pub table_id: u64,
    /// The shard of a segment.
    #[prost(uint32, tag = "6")]
    pub shard: u32,
    /// Rows of a segment.
    #[prost(uint64, tag = "7")]
    pub rows: u64,
    /// The load a segment waits in until that commits; empty otherwise.
    #[prost(bytes = "vec", tag = "8")]
    pub load_id: Vec<u8>,
    /// Segments a commit object names, or an index covers.
    #[prost(uint64, repeated, tag = "9")]
    pub segments: Vec<u64>,
    /// Segments a commit object replaces.
    #[prost(uint64, repeated, tag = "10")]
    pub replaces: Vec<u64>,
    /// Tables a commit object or tombstone ends.
    #[prost(uint64, repeated, tag = "11")]
    pub drops_tables: Vec<u64>,
    /// Segments whose deleted rows a commit object holds.
    #[prost(uint64, repeated, tag = "20")]
    pub deletes_from: Vec<u64>,
    /// All commit objects of a change that needs several.
    #[prost(uint64, repeated, tag = "21")]
    pub parts: Vec<u64>,
    /// What an index object is.
    #[prost(message, optional, tag = "30")]
    pub index: Option<IndexRecord>,
}

impl ObjectRecord {
    /// Its extent.
    pub fn extent(&self) -> Extent {
        Extent::from_bytes(self.offset, self.length)
    }

    /// Whether it is of this kind.
    pub fn is(&self, kind: ObjectKind) -> bool {
        self.kind == kind as u32
    }

    /// Whether it is data, of which readers hold a handle, and nothing that makes the manifest again.
    pub fn is_data(&self) -> bool {
        self.is(ObjectKind::Segment) || self.is(ObjectKind::Index)
    }

    /// Whether it counts.
    pub fn is_live(&self) -> bool {
        self.state == ObjectState::Live as i32
    }
}

/// Where a load stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum LoadState {
    /// Takes batches.
    Open = 0,
    /// Its rows are in the table.
    Committed = 1,
    /// Its rows are gone.
    Aborted = 2,
}

/// How a load treats its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum LoadMode {
    /// The table must not exist; it appears at commit.
    Create = 0,
    /// The table must exist.
    Append = 1,
    /// The table's rows (and schema) are exchanged for the load's at commit.
    Replace = 2,
}

/// A load.
#[derive(Clone, PartialEq, Message)]
pub struct LoadRecord {
    /// Where it stands.
    #[prost(enumeration = "LoadState", tag = "1")]
    pub state: i32,
    /// How it treats the table.
    #[prost(enumeration = "LoadMode", tag = "2")]
    pub mode: i32,
    /// The table's name.
    #[prost(string, tag = "3")]
    pub table_name: String,
    /// The id of the table it fills: the existing one's (append) or that of the table to be.
    #[prost(uint64, tag = "4")]
    pub table_id: u64,
    /// The schema of its batches.
    #[prost(message, optional, tag = "5")]
    pub schema: Option<hidb::proto::TableSchema>,
    /// Shards of the table.
    #[prost(uint32, tag = "6")]
    pub shards: u32,
    /// Batches `0..n` are durable.
    #[prost(uint64, tag = "7")]
    pub durable_batches: u64,
    /// Rows in them.
    #[prost(uint64, tag = "8")]
    pub durable_rows: u64,
    /// Bytes they take on the volume.
    #[prost(uint64, tag = "9")]
    pub stored_bytes: u64,
    /// Segments that wait for the commit.
    #[prost(uint64, repeated, tag = "10")]
    pub segments: Vec<u64>,
    /// When it last changed, in seconds since 1970.
    #[prost(uint64, tag = "11")]
    pub changed_unix_s: u64,
}

/// A load's id as text.
pub fn load_text(load_id: &[u8]) -> String {
    uuid::Uuid::from_slice(load_id).map_or_else(|_| format!("{load_id:02x?}"), |id| id.to_string())
}

/// Changes that are applied together or not at all.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Keys with their new values; `None` deletes.
    pub(super) writes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

fn key(kind: u8, id: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + id.len());
    key.push(kind);
    key.extend_from_slice(id);
    key
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Adds what another batch would write after this one.
    pub fn append(&mut self, mut other: Batch) {
        self.writes.append(&mut other.writes);
    }

    fn put(&mut self, kind: u8, id: &[u8], value: Vec<u8>) -> &mut Self {
        self.writes.push((key(kind, id), Some(value)));
        self
    }

    fn delete(&mut self, kind: u8, id: &[u8]) -> &mut Self {
        self.writes.push((key(kind, id), None));
        self
    }

    /// Says which volume the manifest belongs to.
    pub fn put_identity(&mut self, volume_uuid: [u8; 16]) -> &mut Self {
        let record = IdentityRecord { version: MANIFEST_VERSION, volume_uuid: volume_uuid.to_vec() };
        self.put(KEY_IDENTITY, &[], record.encode_to_vec())
    }

    /// Reserves all ids below `next_id`.
    pub fn put_next_id(&mut self, next_id: u64) -> &mut Self {
        self.put(KEY_NEXT_ID, &[], next_id.to_le_bytes().to_vec())
    }

    /// Writes a table.
    pub fn put_table(&mut self, record: &TableRecord) -> &mut Self {
        self.put(KEY_TABLE, &record.id.to_be_bytes(), record.encode_to_vec())
    }

    /// Removes a table and its counters.
    pub fn delete_table(&mut self, id: u64) -> &mut Self {
        self.delete(KEY_TABLE, &id.to_be_bytes()).delete(KEY_COUNTER, &id.to_be_bytes())
    }

    /// Writes a table's counters.
    pub fn put_counter(&mut self, table_id: u64, record: &CounterRecord) -> &mut Self {
        self.put(KEY_COUNTER, &table_id.to_be_bytes(), record.encode_to_vec())
    }

    /// Removes the counters of a table that never came to be.
    pub fn delete_counter(&mut self, table_id: u64) -> &mut Self {
        self.delete(KEY_COUNTER, &table_id.to_be_bytes())
    }

    /// Writes an object.
    pub fn put_object(&mut self, id: u64, record: &ObjectRecord) -> &mut Self {
        self.put(KEY_OBJECT, &id.to_be_bytes(), record.encode_to_vec())
    }

    /// Removes an object: its extent is free.
    pub fn delete_object(&mut self, id: u64) -> &mut Self {
        self.delete(KEY_OBJECT, &id.to_be_bytes())
    }

    /// Writes a load.
    pub fn put_load(&mut self, id: &[u8; 16], record: &LoadRecord) -> &mut Self {
        self.put(KEY_LOAD, id, record.encode_to_vec())
    }

    /// Forgets a load.
    pub fn delete_load(&mut self, id: &[u8; 16]) -> &mut Self {
        self.delete(KEY_LOAD, id)
    }

    /// Writes the deleted rows of a segment.
    pub fn put_deletion(&mut self, record: &DeletionRecord) -> &mut Self {
        self.put(KEY_DELETION, &record.segment.to_be_bytes(), record.encode_to_vec())
    }

    /// Forgets the deleted rows of a segment, which ends.
    pub fn delete_deletion(&mut self, segment: u64) -> &mut Self {
        self.delete(KEY_DELETION, &segment.to_be_bytes())
    }

    /// Writes a user.
    pub fn put_user(&mut self, record: &UserRecord) -> &mut Self {
        self.put(KEY_USER, record.name.as_bytes(), record.encode_to_vec())
    }

    /// Removes a user.
    pub fn delete_user(&mut self, name: &str) -> &mut Self {
        self.delete(KEY_USER, name.as_bytes())
    }

    /// Keeps the secret from which the salts of users that do not exist are made.
    pub fn put_users_secret(&mut self, secret: &[u8; 32]) -> &mut Self {
        self.put(KEY_USERS_SECRET, &[], secret.to_vec())
    }
}

/// The whole manifest in memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ManifestState {
    /// Which volume it belongs to.
    pub volume_uuid: Option<[u8; 16]>,
    /// Ids from here on were never used.
    pub next_id: u64,
    /// Tables by id.
    pub tables: BTreeMap<u64, TableRecord>,
    /// Counters by table id.
    pub counters: BTreeMap<u64, CounterRecord>,
    /// Objects by id.
    pub objects: BTreeMap<u64, ObjectRecord>,
    /// Loads by id.
    pub loads: BTreeMap<[u8; 16], LoadRecord>,
    /// Deleted rows by segment.
    pub deletions: BTreeMap<u64, DeletionRecord>,
    /// Users by name.
    pub users: BTreeMap<String, UserRecord>,
    /// See [`Batch::put_users_secret`].
    pub users_secret: Option<[u8; 32]>,
}

impl ManifestState {
    /// Reads it from keys and values.
    pub(super) fn read(folder: &Path, pairs: Vec<(Vec<u8>, Vec<u8>)>) -> Result<Self> {
        let mut state = ManifestState { next_id: 1, ..Default::default() };
        for (key, value) in pairs {
            state.read_pair(&key, &value).map_err(|error| match error {
                Unread::Version(found) => StoreError::UnsupportedVersion {
                    what: format!("the manifest in {}", folder.display()),
                    found,
                    supported: MANIFEST_VERSION,
                },
                Unread::Malformed => StoreError::Manifest {
                    folder: folder.to_path_buf(),
                    reason: format!("the record with key {key:02x?} can't be read: run `heliostat-cell rebuild`"),
                },
            })?;
        }
        Ok(state)
    }

    /// Applies a batch that has become durable.
    pub fn apply(&mut self, batch: &Batch) {
        for (key, value) in &batch.writes {
            match value {
                // What this process encoded decodes again; a record that did not would be found at the next open.
                Some(value) => drop(self.read_pair(key, value)),
                None => self.remove(key),
            }
        }
    }

    fn remove(&mut self, key: &[u8]) {
        let Some((kind, id)) = key.split_first() else { return };
        let number = id.try_into().map_or(0, u64::from_be_bytes);
        match *kind {
            KEY_TABLE => drop(self.tables.remove(&number)),
            KEY_COUNTER => drop(self.counters.remove(&number)),
            KEY_OBJECT => drop(self.objects.remove(&number)),
            KEY_LOAD => drop(<[u8; 16]>::try_from(id).ok().and_then(|id| self.loads.remove(&id))),
            KEY_DELETION => drop(self.deletions.remove(&number)),
            KEY_USER => drop(std::str::from_utf8(id).ok().and_then(|name| self.users.remove(name))),
            _ => {}
        }
    }

    fn read_pair(&mut self, key: &[u8], value: &[u8]) -> Result<(), Unread> {
        let (kind, id) = key.split_first().ok_or(Unread::Malformed)?;
        let number = || id.try_into().map(u64::from_be_bytes).map_err(|_| Unread::Malformed);
        match *kind {
            KEY_IDENTITY => {
                let record = IdentityRecord::decode(value)?;
                if !(MANIFEST_VERSION_MIN..=MANIFEST_VERSION).contains(&record.version) {
                    return Err(Unread::Version(record.version));
                }
                self.volume_uuid = Some(record.volume_uuid.try_into().map_err(|_| Unread::Malformed)?);
            }
            KEY_NEXT_ID => {
                self.next_id = u64::from_le_bytes(value.try_into().map_err(|_| Unread::Malformed)?);
            }
            KEY_TABLE => {
                self.tables.insert(number()?, TableRecord::decode(value)?);
            }
            KEY_COUNTER => {
                self.counters.insert(number()?, CounterRecord::decode(value)?);
            }
            KEY_OBJECT => {
                let record = ObjectRecord::decode(value)?;
                let aligned = record.offset.is_multiple_of(EXTENT_UNIT_BYTES)
                    && record.length.is_multiple_of(EXTENT_UNIT_BYTES)
                    && record.length > 0;
                if !aligned || ObjectKind::from_number(record.kind).is_none() {
                    return Err(Unread::Malformed);
                }
                self.objects.insert(number()?, record);
            }
            KEY_LOAD => {
                let id = id.try_into().map_err(|_| Unread::Malformed)?;
                self.loads.insert(id, LoadRecord::decode(value)?);
            }
            KEY_DELETION => {
                let record = DeletionRecord::decode(value)?;
                if number()? != record.segment || record.positions().is_none() {
                    return Err(Unread::Malformed);
                }
                self.deletions.insert(record.segment, record);
            }
            KEY_USER => {
                let record = UserRecord::decode(value)?;
                if record.name.as_bytes() != id || !record.is_valid() {
                    return Err(Unread::Malformed);
                }
                self.users.insert(record.name.clone(), record);
            }
            KEY_USERS_SECRET => self.users_secret = Some(value.try_into().map_err(|_| Unread::Malformed)?),
            _ => return Err(Unread::Malformed),
        }
        Ok(())
    }
}

enum Unread {
    Version(u32),
    Malformed,
}

impl From<prost::DecodeError> for Unread {
    fn from(_: prost::DecodeError) -> Self {
        Unread::Malformed
    }
}
