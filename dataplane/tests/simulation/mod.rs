//! A simulated device, and tables of rows that know what they should be.
//!
//! [`SimDevice`] keeps what was written in memory and records every write and flush, so that any crash can be
//! replayed: [`Replay`] builds the image that a power loss would leave.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, Int64Array, RecordBatch, StringArray};
use bytes::Bytes;
use heliostat_dataplane::device::{AlignedBuf, BLOCK_BYTES, Device, DeviceError};
use heliostat_dataplane::manifest::{Batch, Manifest};
use heliostat_dataplane::store::decode::read_row_group;
use heliostat_dataplane::store::{Deletion, LoadMode, LoadRequest, RowsToDelete, Store, TableSnapshot};
use heliostat_dataplane::volume::Superblock;
use hidb::arrow_mapping::to_arrow_schema;
use hidb::order::{OrderKind, TableOrder};
use hidb::{DataType, Field, Schema};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// What happened, in order.
#[derive(Clone, Debug)]
pub enum Event {
    /// Bytes were handed to the device.
    Write(u64, Arc<[u8]>),
    /// All earlier writes are durable.
    Flush,
    /// The manifest's batch of this number is durable.
    Manifest(usize),
}

/// The events of a run, shared with the manifest's thread.
pub type Log = Arc<Mutex<Vec<Event>>>;

/// A device in memory.
#[derive(Clone)]
pub struct SimDevice {
    bytes: Rc<RefCell<Vec<u8>>>,
    log: Log,
    path: PathBuf,
    /// Writes fail after this many more.
    fail_after: Rc<RefCell<Option<usize>>>,
}

impl SimDevice {
    /// A device that holds these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        SimDevice {
            bytes: Rc::new(RefCell::new(bytes)),
            log: Log::default(),
            path: PathBuf::from("simulated device"),
            fail_after: Rc::default(),
        }
    }

    /// A formatted device whose manifest is in this folder.
    pub fn formatted(size_bytes: u64, metadata_folder: &Path) -> Self {
        let superblock = Superblock::new(size_bytes);
        let mut bytes = vec![0; size_bytes as usize];
        for at in superblock.offsets() {
            bytes[at as usize..at as usize + BLOCK_BYTES].copy_from_slice(&superblock.encode());
        }
        let mut identity = Batch::new();
        identity.put_identity(superblock.volume_uuid).put_next_id(1);
        Manifest::create(metadata_folder, identity).unwrap();
        SimDevice::new(bytes)
    }

    pub fn log(&self) -> Log {
        Arc::clone(&self.log)
    }

    pub fn image(&self) -> Vec<u8> {
        self.bytes.borrow().clone()
    }

    pub fn fail_writes_after(&self, writes: Option<usize>) {
        *self.fail_after.borrow_mut() = writes;
    }

    pub fn flip_bit(&self, offset: u64, bit: u8) {
        self.bytes.borrow_mut()[offset as usize] ^= 1 << bit;
    }

    fn range(
        &self,
        operation: &'static str,
        offset: u64,
        length: usize,
    ) -> Result<std::ops::Range<usize>, DeviceError> {
        let aligned = offset.is_multiple_of(BLOCK_BYTES as u64) && length.is_multiple_of(BLOCK_BYTES);
        if !aligned {
            return Err(DeviceError::Unaligned { path: self.path.clone(), operation, offset, length: length as u64 });
        }
        let end = offset as usize + length;
        let got = (self.bytes.borrow().len() as u64).saturating_sub(offset);
        if end > self.bytes.borrow().len() {
            return Err(DeviceError::Short { path: self.path.clone(), offset, length: length as u64, got });
        }
        Ok(offset as usize..end)
    }
}

impl Device for SimDevice {
    async fn read(&self, offset: u64, length: usize) -> Result<Bytes, DeviceError> {
        let range = self.range("read", offset, length)?;
        Ok(Bytes::copy_from_slice(&self.bytes.borrow()[range]))
    }

    async fn write(&self, offset: u64, data: AlignedBuf) -> Result<(), DeviceError> {
        let range = self.range("write", offset, data.len())?;
        assert!(data.len() <= 1 << 20, "a write of {} bytes", data.len());
        if let Some(left) = self.fail_after.borrow_mut().as_mut() {
            if *left == 0 {
                let (path, length) = (self.path.clone(), data.len() as u64);
                return Err(DeviceError::Io { path, operation: "write", offset, length, errno: 5 });
            }
            *left -= 1;
        }
        self.bytes.borrow_mut()[range].copy_from_slice(&data);
        self.log.lock().unwrap().push(Event::Write(offset, data[..].into()));
        // Writes in flight at the same time may end in any order; let others begin.
        futures_lite::future::yield_now().await;
        Ok(())
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.log.lock().unwrap().push(Event::Flush);
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.bytes.borrow().len() as u64
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// What is on the device after some events: durable bytes, and writes that a power loss may lose.
#[derive(Clone)]
pub struct Replay {
    durable: Vec<u8>,
    unflushed: Vec<(u64, Arc<[u8]>)>,
    /// Manifest batches that are durable.
    pub manifest: usize,
}

impl Replay {
    pub fn new(image: Vec<u8>, manifest: usize) -> Self {
        Replay { durable: image, unflushed: Vec::new(), manifest }
    }

    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Write(offset, data) => self.unflushed.push((*offset, Arc::clone(data))),
            Event::Flush => {
                for (offset, data) in self.unflushed.drain(..) {
                    self.durable[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
                }
            }
            Event::Manifest(number) => self.manifest = *number,
        }
    }

    /// The device after a power loss now: unflushed writes are dropped, reordered, torn, or made, by chance.
    pub fn crash(&self, random: &mut ChaCha8Rng) -> Vec<u8> {
        let mut image = self.durable.clone();
        let mut writes: Vec<_> = self.unflushed.iter().collect();
        writes.shuffle(random);
        let mood = random.random_range(0..4);
        for (offset, data) in writes {
            let at = *offset as usize;
            match if mood == 3 { random.random_range(0..4) } else { mood } {
                0 => {}
                1 => image[at..at + data.len()].copy_from_slice(data),
                2 => {
                    let torn = random.random_range(0..=data.len() / 512) * 512;
                    image[at..at + torn].copy_from_slice(&data[..torn]);
                }
                _ => {
                    for block in (0..data.len()).step_by(BLOCK_BYTES).filter(|_| random.random_bool(0.5)) {
                        image[at + block..at + block + BLOCK_BYTES].copy_from_slice(&data[block..block + BLOCK_BYTES]);
                    }
                }
            }
        }
        image
    }
}

/// Copies a manifest's files, so that a store can be opened as it was then.
pub fn copy_manifest(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if name != "LOCK" && !name.to_string_lossy().starts_with("LOG") {
            std::fs::copy(entry.path(), to.join(name)).unwrap();
        }
    }
}

/// The schema of all tables here: a unique key, and a text that follows from it.
pub fn schema() -> Schema {
    Schema::new(vec![Field::new("key", DataType::Int64, false), Field::new("text", DataType::Text, true)]).unwrap()
}

fn text_of(key: i64) -> Option<String> {
    (key % 7 != 0).then(|| format!("value of {}", key.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as i64)))
}

pub fn batch(keys: &[i64]) -> RecordBatch {
    let texts: StringArray = keys.iter().map(|key| text_of(*key)).collect();
    let keys = Int64Array::from(keys.to_vec());
    RecordBatch::try_new(to_arrow_schema(&schema(), true), vec![Arc::new(keys), Arc::new(texts)]).unwrap()
}

/// A load; table `a` has one shard, so that its segments merge early, and `b` and `c` are kept in an order.
pub fn request(id: u8, table: &str, mode: LoadMode) -> LoadRequest {
    let shards = if table == "a" { 1 } else { 3 };
    let (schema, order) = (schema(), order_of(table));
    LoadRequest { load_id: [id; 16], table: table.into(), schema, order, mode, shards }
}

/// The order that the rows of a table are kept in.
pub fn order_of(table: &str) -> Option<TableOrder> {
    match table {
        "b" => Some(TableOrder::new(OrderKind::Clustered, &["text", "key"], &schema()).unwrap()),
        "c" => Some(TableOrder::new(OrderKind::Sorted, &["text"], &schema()).unwrap()),
        _ => None,
    }
}

/// Keys and row ids of a table, in the order of keys; asserts that the texts are right and nothing comes twice.
pub async fn contents<D: Device>(device: &D, table: &TableSnapshot) -> Vec<(i64, i64)> {
    let mut rows = Vec::new();
    for segment in &table.segments {
        for row_group in 0..segment.footer.row_groups.len() {
            let among = table.deleted_of(segment.id).and_then(|deleted| deleted.among(row_group));
            let is_live = |row: usize| among.as_ref().is_none_or(|words| words[row / 64] >> (row % 64) & 1 == 1);
            let group = read_row_group(device, segment, row_group).await.unwrap();
            let keys = group.rows.column(0).as_primitive::<Int64Type>();
            let texts = group.rows.column(1).as_string::<i32>();
            for (row, rowid) in group.rowids.iter().enumerate().filter(|(row, _)| is_live(*row)) {
                let text = texts.is_valid(row).then(|| texts.value(row).to_string());
                assert_eq!(text, text_of(keys.value(row)), "key {}", keys.value(row));
                rows.push((keys.value(row), *rowid));
            }
        }
    }
    rows.sort_unstable();
    let mut rowids: Vec<i64> = rows.iter().map(|row| row.1).collect();
    rowids.sort_unstable();
    assert!(rowids.windows(2).all(|pair| pair[0] < pair[1]), "a row id comes twice in {}", table.name);
    assert!(rows.windows(2).all(|pair| pair[0].0 < pair[1].0), "a key comes twice in {}", table.name);
    assert_eq!(table.rows, rows.len() as u64);
    rows
}

/// Where the rows with some keys are, deleted ones among them: what a scan finds for a deletion.
pub async fn find<D: Device>(device: &D, table: &TableSnapshot, is_wanted: impl Fn(i64) -> bool) -> Vec<RowsToDelete> {
    let mut found = Vec::new();
    for segment in &table.segments {
        for row_group in 0..segment.footer.row_groups.len() {
            let group = read_row_group(device, segment, row_group).await.unwrap();
            let keys = group.rows.column(0).as_primitive::<Int64Type>().values();
            let mut rows = vec![0u64; keys.len().div_ceil(64)];
            for (row, _) in keys.iter().enumerate().filter(|(_, key)| is_wanted(**key)) {
                rows[row / 64] |= 1 << (row % 64);
            }
            if rows.iter().any(|word| *word != 0) {
                found.push(RowsToDelete { segment: segment.id, row_group, rows: Some(rows.into()) });
            }
        }
    }
    found
}

/// Deletes the rows with some keys; gives how many there were.
pub async fn delete<D: Device>(device: &D, store: &Store, table: &str, is_wanted: impl Fn(i64) -> bool) -> u64 {
    let table = store.table(table).unwrap();
    let found = find(device, &table, is_wanted).await;
    match store.delete_rows(device, table.id, found).await.unwrap() {
        Deletion::Done { rows } => rows,
        Deletion::Again => panic!("nothing else changes the table"),
    }
}

/// Keys of a table by name; empty when there is none.
pub async fn keys<D: Device>(device: &D, store: &Store, table: &str) -> Vec<i64> {
    let Ok(table) = store.table(table) else { return Vec::new() };
    contents(device, &table).await.into_iter().map(|row| row.0).collect()
}
