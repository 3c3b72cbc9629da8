//! Making a lost manifest again from what lies on the volume.
//!
//! Every 4 KiB block that is not a hole is looked at for an object header. A table lives when a commit object of it
//! exists and nothing ends it; a segment counts when a commit object of a living table names it and none replaces
//! it; of its rows those are deleted that the newest commit object with deletions of it names. Commit objects of a change
//! that needed several count only when all of them are there. Everything else on the volume is dead and its header is erased, in an order in which a crash leaves a volume
//! that rebuilds to the same tables: segments and plain commit objects first, then what ends tables, oldest first.
//!
//! Lost are open loads (nothing of them was ever visible); of committed ones the last state is known again for as
//! long as their commit object exists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use prost::Message;

use super::error::{Result, StoreError};
use super::objects::read_segment_footer;
use super::{Deleted, LoadState, unix_seconds};
use crate::device::{AlignedBuf, Device, Medium};
use crate::manifest::records::CounterRecord;
use crate::manifest::{Batch, DeletionRecord, LoadRecord, Manifest, ObjectRecord, ObjectState, TableRecord};
use crate::volume::object::{CommitRecord, FoundObject};
use crate::volume::{
    EXTENT_UNIT_BYTES, Extent, FolderLock, ObjectHeader, ObjectKind, Superblock, VolumeLock, superblock,
};

/// One sequential read of the scan.
const SCAN_BYTES: u64 = 1 << 20;

/// What a rebuild found and made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RebuildReport {
    /// The volume's UUID.
    pub volume: String,
    /// Tables, by name.
    pub tables: Vec<String>,
    /// Segments that count again.
    pub segments: usize,
    /// Rows in them.
    pub rows: u64,
    /// Headers of dead objects that were erased.
    pub erased: usize,
    /// Segments that should be there and are not, or are damaged (only when those may be left out).
    pub lost: Vec<String>,
}

impl std::fmt::Display for RebuildReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "volume {}: {} tables, {} segments, {} rows",
            self.volume,
            self.tables.len(),
            self.segments,
            self.rows
        )?;
        for lost in &self.lost {
            writeln!(f, "  LOST: {lost}")?;
        }
        write!(
            f,
            "{} dead objects erased; open loads must be loaded again, and users added again (heliostat-cell user add)",
            self.erased
        )
    }
}

/// Makes the manifest of a volume again. `force` replaces one that opens; `leave_out_damaged` makes one without the
/// segments that are missing or damaged instead of failing.
///
/// # Errors
/// [`StoreError::AlreadyFormatted`] when there is a manifest that opens, [`StoreError::Corruption`] when segments are
/// missing or damaged, [`StoreError::InUse`], or I/O.
pub async fn rebuild<D: Device>(
    device: &D,
    metadata_folder: &Path,
    force: bool,
    leave_out_damaged: bool,
) -> Result<RebuildReport> {
    let superblock = superblock::open(device).await?;
    let _volume_lock = device.path().exists().then(|| VolumeLock::acquire(device.path())).transpose()?;
    let _folder_lock = FolderLock::acquire(metadata_folder)?;
    if !force && Manifest::open(metadata_folder, superblock.volume_uuid, None).is_ok() {
        return Err(StoreError::ManifestWhole { folder: Manifest::folder_of(metadata_folder) });
    }
    let found = scan_objects(device, &superblock).await?;
    let plan = Plan::make(&superblock, &found)?;
    let mut report = RebuildReport { volume: superblock.uuid_text(), ..Default::default() };
    for object in &plan.damaged {
        let error = StoreError::Corruption {
            volume: superblock.uuid_text(),
            what: format!("commit object {}", object.header.id),
            offset: object.extent.offset(),
            reason: "its checksum is wrong or it was cut off: the tables and rows that it alone names are lost".into(),
        };
        if !leave_out_damaged {
            return Err(error);
        }
        report.lost.push(error.to_string());
    }
    let mut batch = Batch::new();
    batch.put_identity(superblock.volume_uuid);
    batch.put_next_id(found.iter().map(|object| object.header.id + 1).max().unwrap_or(1));

    let mut counters: BTreeMap<u64, CounterRecord> = BTreeMap::new();
    let mut used: Vec<Extent> = Vec::new();
    for (id, table_id) in &plan.segments {
        let footer = match plan.headers.get(id) {
            Some(extent) => {
                read_segment_footer(device, &superblock, *id, *table_id, *extent).await.map(|f| (f, *extent))
            }
            None => Err(StoreError::Corruption {
                volume: superblock.uuid_text(),
                what: format!("segment {id} of table {:?}", plan.name_of(*table_id)),
                offset: 0,
                reason: "a commit object names it, but it is not on the volume".into(),
            }),
        };
        let (footer, extent) = match footer {
            Ok(found) => found,
            Err(error @ StoreError::Corruption { .. }) if leave_out_damaged => {
                report.lost.push(error.to_string());
                continue;
            }
            Err(error) => return Err(error),
        };
        let counter = counters.entry(*table_id).or_default();
        counter.next_ordinal += 1;
        let last_rowid = footer.row_groups.iter().filter_map(|group| match group.columns.last()?.zone.max {
            hidb::Scalar::I64(max) => Some(max),
            _ => None,
        });
        counter.next_rowid = counter.next_rowid.max(last_rowid.max().map_or(0, |id| id.saturating_add(1)));
        batch.put_object(
            *id,
            &ObjectRecord {
                kind: ObjectKind::Segment as u32,
                state: ObjectState::Live as i32,
                offset: extent.offset(),
                length: extent.length(),
                table_id: *table_id,
                shard: footer.shard,
                rows: footer.rows(),
                ..Default::default()
            },
        );
        used.push(extent);
        report.segments += 1;
        report.rows += footer.rows();
        if let Some((commit, deletion)) = plan.deletions.get(id) {
            let record = DeletionRecord { commit: *commit, ..(*deletion).clone() };
            if Deleted::of(&record, &footer).is_none() {
                return Err(StoreError::Corruption {
                    volume: superblock.uuid_text(),
                    what: format!("commit object {commit}"),
                    offset: 0,
                    reason: format!("the rows that it deletes of segment {id} are not rows of it"),
                });
            }
            report.rows -= record.rows;
            batch.put_deletion(&record);
        }
    }
    for object in &plan.kept {
        batch.put_object(object.header.id, &commit_object(object));
        used.push(object.extent);
        if let Some(record) = object.record.as_ref().filter(|record| record.load_id.len() == 16) {
            put_load(&mut batch, record);
        }
    }
    for (table_id, (definition, record)) in &plan.tables {
        let counter = counters.entry(*table_id).or_default();
        counter.next_rowid = counter.next_rowid.max(plan.next_rowid.get(table_id).copied().unwrap_or(0));
        batch.put_counter(*table_id, counter);
        batch.put_table(&TableRecord {
            id: *table_id,
            name: record.table_name.clone(),
            schema: record.schema.clone(),
            shards: record.shards,
            generation: *definition,
            definition_object: *definition,
            indexes: record.indexes.clone(),
        });
        report.tables.push(record.table_name.clone());
    }
    report.erased = plan.erase(device, &used).await?;
    Manifest::create(metadata_folder, batch)?;
    report.tables.sort();
    Ok(report)
}

fn commit_object(object: &FoundObject) -> ObjectRecord {
    let record = object.record.clone().unwrap_or_default();
    ObjectRecord {
        kind: object.header.kind as u32,
        state: ObjectState::Live as i32,
        offset: object.extent.offset(),
        length: object.extent.length(),
        table_id: object.header.table_id,
        segments: record.segments,
        replaces: record.replaces,
        drops_tables: record.drops_tables,
        deletes_from: record.deletions.iter().map(|deletion| deletion.segment).collect(),
        parts: record.parts,
        ..Default::default()
    }
}

fn put_load(batch: &mut Batch, record: &CommitRecord) {
    let Ok(load_id) = <[u8; 16]>::try_from(record.load_id.as_slice()) else { return };
    batch.put_load(
        &load_id,
        &LoadRecord {
            state: LoadState::Committed as i32,
            mode: record.load_mode,
            table_name: record.table_name.clone(),
            table_id: record.table_id,
            schema: record.schema.clone(),
            shards: record.shards,
            durable_batches: record.load_batches,
            durable_rows: record.load_rows,
            changed_unix_s: unix_seconds(),
            ..Default::default()
        },
    );
}

/// What lives and what is dead.
struct Plan<'a> {
    /// Living tables: their last commit object.
    tables: BTreeMap<u64, (u64, &'a CommitRecord)>,
    next_rowid: BTreeMap<u64, i64>,
    /// Segments that count, with their table.
    segments: BTreeMap<u64, u64>,
    /// Deleted rows by segment, with the commit object that says so.
    deletions: BTreeMap<u64, (u64, &'a DeletionRecord)>,
    /// Segment headers on the volume.
    headers: BTreeMap<u64, Extent>,
    /// Commit objects and tombstones that stay.
    kept: Vec<&'a FoundObject>,
    /// Dead objects that can be erased in any order.
    dead: Vec<&'a FoundObject>,
    /// Dead objects that end tables, oldest first.
    dead_ends: Vec<&'a FoundObject>,
    /// Commit objects and tombstones that can't be read.
    damaged: Vec<&'a FoundObject>,
}

impl<'a> Plan<'a> {
    fn make(superblock: &Superblock, found: &'a [FoundObject]) -> Result<Self> {
        // A commit object that is there but damaged is no sign that the change was cut off.
        let commits: BTreeSet<u64> = (found.iter().filter(|object| object.header.kind == ObjectKind::Commit))
            .map(|object| object.header.id)
            .collect();
        let is_whole = |record: &CommitRecord| record.parts.iter().all(|part| commits.contains(part));
        let readable = || found.iter().filter_map(|object| Some((object, object.record.as_ref()?)));
        let records = || readable().filter(|(_, record)| is_whole(record));
        let ended: BTreeSet<u64> = records().flat_map(|(_, record)| record.drops_tables.iter().copied()).collect();
        let mut plan = Plan {
            tables: BTreeMap::new(),
            next_rowid: BTreeMap::new(),
            segments: BTreeMap::new(),
            deletions: BTreeMap::new(),
            headers: BTreeMap::new(),
            kept: Vec::new(),
            dead: Vec::new(),
            dead_ends: Vec::new(),
            damaged: Vec::new(),
        };
        let mut replaced: BTreeSet<u64> = BTreeSet::new();
        for (object, record) in records() {
            let id = object.header.id;
            let lives = object.header.kind == ObjectKind::Commit && !ended.contains(&record.table_id);
            if !lives {
                plan.dead_ends.push(object);
                continue;
            }
            plan.kept.push(object);
            for deletion in &record.deletions {
                let newest = plan.deletions.entry(deletion.segment).or_insert((id, deletion));
                if newest.0 < id {
                    *newest = (id, deletion);
                }
            }
            plan.segments.extend(record.segments.iter().map(|segment| (*segment, record.table_id)));
            replaced.extend(&record.replaces);
            let next = plan.next_rowid.entry(record.table_id).or_insert(0);
            *next = record.next_rowid.max(*next);
            let last = plan.tables.entry(record.table_id).or_insert((id, record));
            if last.0 < id {
                *last = (id, record);
            }
        }
        plan.segments.retain(|segment, _| !replaced.contains(segment));
        for object in found.iter().filter(|object| object.record.is_none()) {
            let id = object.header.id;
            if object.header.kind == ObjectKind::Segment && plan.segments.contains_key(&id) {
                plan.headers.insert(id, object.extent);
            } else {
                // Indexes are built again, from the definitions that come with their tables.
                if matches!(object.header.kind, ObjectKind::Commit | ObjectKind::Tombstone) {
                    plan.damaged.push(object);
                }
                plan.dead.push(object);
            }
        }
        plan.dead.extend(readable().filter(|(_, record)| !is_whole(record)).map(|(object, _)| object));
        plan.dead_ends.sort_by_key(|object| object.header.id);
        let (ends, plain): (Vec<_>, Vec<_>) = plan
            .dead_ends
            .into_iter()
            .partition(|object| object.record.as_ref().is_some_and(|record| !record.drops_tables.is_empty()));
        plan.dead.extend(plain);
        plan.dead_ends = ends;

        let mut names = BTreeSet::new();
        for (definition, record) in plan.tables.values() {
            if !names.insert(record.table_name.as_str()) {
                return Err(StoreError::Corruption {
                    volume: superblock.uuid_text(),
                    what: format!("commit object {definition}"),
                    offset: 0,
                    reason: format!("two tables are called {:?}", record.table_name),
                });
            }
        }
        Ok(plan)
    }

    fn name_of(&self, table_id: u64) -> &str {
        self.tables.get(&table_id).map_or("", |(_, record)| record.table_name.as_str())
    }

    async fn erase<D: Device>(&self, device: &D, used: &[Extent]) -> Result<usize> {
        // A header inside an object that counts is that object's data, whatever it looks like.
        let free = |object: &&&FoundObject| {
            let at = object.extent.start;
            !used.iter().any(|extent| extent.start <= at && at < extent.end())
        };
        let mut erased = 0;
        for object in self.dead.iter().filter(free) {
            device.write(object.extent.offset(), AlignedBuf::zeroed(EXTENT_UNIT_BYTES as usize)).await?;
            erased += 1;
        }
        device.flush().await?;
        for object in self.dead_ends.iter().filter(free) {
            device.write(object.extent.offset(), AlignedBuf::zeroed(EXTENT_UNIT_BYTES as usize)).await?;
            device.flush().await?;
            erased += 1;
        }
        Ok(erased)
    }
}

/// Every object header on the volume, with the records of whole commit objects and tombstones.
///
/// # Errors
/// The device's.
pub(super) async fn scan_objects<D: Device>(device: &D, superblock: &Superblock) -> Result<Vec<FoundObject>> {
    let mut found = Vec::new();
    let unit = EXTENT_UNIT_BYTES;
    let end = superblock.size_bytes - unit;
    for (data_start, data_end) in data_ranges(device.path(), unit, end) {
        let mut at = data_start;
        while at < data_end {
            let length = SCAN_BYTES.min(data_end - at);
            let bytes = device.read(at, length as usize).await?;
            for (index, block) in bytes.chunks(unit as usize).enumerate() {
                let Some(header) = ObjectHeader::decode(superblock, block) else { continue };
                let offset = at + index as u64 * unit;
                if offset + header.length > end {
                    continue;
                }
                let record = match header.kind {
                    ObjectKind::Segment | ObjectKind::Index => None,
                    ObjectKind::Commit | ObjectKind::Tombstone => {
                        let object = device.read(offset, header.length as usize).await?;
                        header.payload(&object).and_then(|payload| CommitRecord::decode(payload).ok())
                    }
                };
                found.push(FoundObject { extent: Extent::from_bytes(offset, header.length), header, record });
            }
            at += length;
        }
    }
    Ok(found)
}

/// The parts of `start..end` that are not holes; all of it for devices and simulated ones.
fn data_ranges(path: &Path, start: u64, end: u64) -> Vec<(u64, u64)> {
    let whole = vec![(start, end)];
    let is_file = Medium::of(path).is_ok_and(|medium| medium == Medium::File);
    let Some(file) = is_file.then(|| std::fs::File::open(path).ok()).flatten() else { return whole };
    let mut ranges = Vec::new();
    let mut at = start;
    while at < end {
        let data = match rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            Err(_) => return whole,
        };
        let Ok(hole) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(data)) else { return whole };
        let from = data / EXTENT_UNIT_BYTES * EXTENT_UNIT_BYTES;
        let to = hole.next_multiple_of(EXTENT_UNIT_BYTES).min(end);
        if from >= end || to <= from {
            break;
        }
        ranges.push((from.max(start), to));
        at = to;
    }
    ranges
}
