//! Checking a volume against its manifest: every extent accounted for once, every object what it should be.
//!
//! Reads only. [`check`] opens the manifest itself (the cell must be stopped), [`Store::check`] checks a store that is
//! in use.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use futures::StreamExt;
use heliostat_segment::{MembershipFilter, membership_number};
use prost::Message;

use super::decode::read_chunk;
use super::error::{Result, StoreError};
use super::objects::read_segment_footer;
use super::rebuild::scan_objects;
use super::{LoadState, METADATA_RESERVE_UNITS, SegmentHandle, Store};
use crate::device::Device;
use crate::manifest::records::load_text;
use crate::manifest::{DeletionRecord, Manifest, ManifestState, ObjectRecord};
use crate::volume::object::CommitRecord;
use crate::volume::{
    EXTENT_UNIT_BYTES, ExtentAllocator, FolderLock, ObjectHeader, ObjectKind, Superblock, VolumeLock, superblock,
};

/// Segments checked at a time.
const SEGMENTS_IN_FLIGHT: usize = 4;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// The volume's UUID.
    pub volume: String,
    /// Tables.
    pub tables: usize,
    /// Open loads.
    pub open_loads: usize,
    /// Segments that count.
    pub segments: usize,
    /// Commit objects and tombstones that count.
    pub commits: usize,
    /// Objects whose space is not returned yet.
    pub pending: usize,
    /// Bytes of all objects.
    pub used_bytes: u64,
    /// Free bytes.
    pub free_bytes: u64,
    /// Chunks whose bytes were read and compared with their checksum (deep checks).
    pub chunks_verified: u64,
    /// What is wrong, one line each.
    pub problems: Vec<String>,
}

impl CheckReport {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "volume {}", self.volume)?;
        writeln!(
            f,
            "  {} tables, {} segments, {} commit objects, {} open loads",
            self.tables, self.segments, self.commits, self.open_loads
        )?;
        writeln!(f, "  {} bytes used, {} free, {} objects to reclaim", self.used_bytes, self.free_bytes, self.pending)?;
        if self.chunks_verified > 0 {
            writeln!(f, "  {} chunks verified", self.chunks_verified)?;
        }
        for problem in &self.problems {
            writeln!(f, "  PROBLEM: {problem}")?;
        }
        match self.problems.len() {
            0 => write!(f, "clean"),
            n => write!(f, "{n} problems"),
        }
    }
}

/// Checks the volume of a cell that is not running. `deep` reads every chunk and every header on the volume.
///
/// # Errors
/// What keeps a volume from being opened at all; everything else is in the report.
pub async fn check<D: Device>(device: &D, metadata_folder: &Path, deep: bool) -> Result<CheckReport> {
    let superblock = superblock::open(device).await?;
    let _volume_lock = device.path().exists().then(|| VolumeLock::acquire(device.path())).transpose()?;
    if !metadata_folder.is_dir() {
        // Locking would make the folder.
        return Err(StoreError::ManifestLost {
            folder: metadata_folder.to_path_buf(),
            volume: superblock.uuid_text(),
            reason: "there is no such folder".into(),
        });
    }
    let _folder_lock = FolderLock::acquire(metadata_folder)?;
    let (_manifest, state) = Manifest::open(metadata_folder, superblock.volume_uuid, None)?;
    check_state(device, &superblock, &state, deep).await
}

impl Store {
    /// Checks the store as it is; changes wait meanwhile.
    ///
    /// # Errors
    /// The device's, when not even the superblocks can be read.
    pub async fn check<D: Device>(&self, device: &D, deep: bool) -> Result<CheckReport> {
        let _changes = self.change().await?;
        let state = self.manifest_state();
        check_state(device, &self.superblock, &state, deep).await
    }
}

async fn check_state<D: Device>(
    device: &D,
    superblock: &Superblock,
    state: &ManifestState,
    deep: bool,
) -> Result<CheckReport> {
    let mut report = CheckReport {
        volume: superblock.uuid_text(),
        tables: state.tables.len(),
        open_loads: state.loads.values().filter(|load| load.state() == LoadState::Open).count(),
        ..Default::default()
    };
    for (which, copy) in ["first", "second"].iter().zip(superblock::read_copies(device).await?) {
        if copy != Some(*superblock) {
            report.problems.push(format!("the {which} superblock is missing or differs from the other"));
        }
    }
    check_space(superblock, state, &mut report);
    check_owners(state, &mut report);
    check_deletions(state, &mut report);
    check_commits(device, superblock, state, &mut report).await;
    let segments = state.objects.iter().filter(|(_, object)| object.is(ObjectKind::Segment) && object.is_live());
    let checks = segments.map(|(id, object)| check_segment(device, superblock, state, *id, object, deep));
    let mut checks = futures::stream::iter(checks).buffer_unordered(SEGMENTS_IN_FLIGHT);
    while let Some((chunks, problems)) = checks.next().await {
        report.segments += 1;
        report.chunks_verified += chunks;
        report.problems.extend(problems);
    }
    if deep {
        for found in scan_objects(device, superblock).await? {
            let known = state.objects.get(&found.header.id).is_some_and(|object| object.extent() == found.extent);
            if !known && found.record.is_some() {
                report.problems.push(format!(
                    "a commit object {} at offset {} is not in the manifest: a rebuild would follow it",
                    found.header.id,
                    found.extent.offset()
                ));
            }
        }
    }
    report.problems.sort();
    Ok(report)
}

fn check_space(superblock: &Superblock, state: &ManifestState, report: &mut CheckReport) {
    let mut allocator = ExtentAllocator::new(1, superblock.units() - 1, METADATA_RESERVE_UNITS);
    for (id, object) in &state.objects {
        if let Err(error) = allocator.mark_used(object.extent()) {
            report.problems.push(format!("object {id}: {error}"));
        }
        report.used_bytes += object.length;
        report.pending += usize::from(!object.is_live());
    }
    report.free_bytes = allocator.free_units() * EXTENT_UNIT_BYTES;
    if report.used_bytes + report.free_bytes != allocator.total_units() * EXTENT_UNIT_BYTES {
        report.problems.push("used and free space do not add up to the volume".into());
    }
    if state.objects.keys().next_back().is_some_and(|id| *id >= state.next_id) {
        report.problems.push("an object has an id that was never reserved".into());
    }
}

/// Every object that counts belongs to a table, an open load, or a table's end that is still needed.
fn check_owners(state: &ManifestState, report: &mut CheckReport) {
    let mut named: BTreeMap<u64, usize> = BTreeMap::new();
    let mut replaced: BTreeSet<u64> = BTreeSet::new();
    for object in state.objects.values().filter(|object| object.is(ObjectKind::Commit) && object.is_live()) {
        object.segments.iter().for_each(|id| *named.entry(*id).or_default() += 1);
        replaced.extend(&object.replaces);
    }
    for (id, object) in state.objects.iter().filter(|(_, object)| object.is_live()) {
        let problem = if object.is(ObjectKind::Segment) && !object.load_id.is_empty() {
            let load = <[u8; 16]>::try_from(object.load_id.as_slice()).ok().and_then(|id| state.loads.get(&id));
            let owned = load.is_some_and(|l| l.state() == LoadState::Open && l.segments.contains(id));
            (!owned).then(|| format!("segment {id} is leaked: no open load {} has it", load_text(&object.load_id)))
        } else if object.is(ObjectKind::Segment) {
            let owned = state.tables.contains_key(&object.table_id);
            let named = named.get(id).copied().unwrap_or(0);
            if !owned {
                Some(format!("segment {id} is leaked: there is no table {}", object.table_id))
            } else if named != 1 || replaced.contains(id) {
                Some(format!("segment {id} is named by {named} commit objects, or replaced"))
            } else {
                None
            }
        } else if object.is(ObjectKind::Index) {
            let table = state.tables.get(&object.table_id);
            let column = object.index.as_ref().map(|index| index.column.as_str());
            let owned = table.is_some_and(|t| t.indexes.iter().any(|index| Some(index.column.as_str()) == column));
            let is_there = |id: &u64| {
                let segment = state.objects.get(id);
                segment.is_some_and(|s| s.is(ObjectKind::Segment) && s.is_live() && s.table_id == object.table_id)
            };
            if !owned {
                Some(format!("index {id} is leaked: table {} has none on column {column:?}", object.table_id))
            } else if !object.segments.iter().all(is_there) {
                Some(format!("index {id} covers segments that table {} does not have", object.table_id))
            } else {
                None
            }
        } else if object.is(ObjectKind::Commit) {
            let owned = state.tables.contains_key(&object.table_id);
            (!owned).then(|| format!("commit object {id} is leaked: there is no table {}", object.table_id))
        } else {
            let ended = object.drops_tables.iter().all(|table| !state.tables.contains_key(table));
            (!ended).then(|| format!("tombstone {id} ends a table that is there"))
        };
        report.problems.extend(problem);
    }
    for (id, load) in state.loads.iter().filter(|(_, load)| load.state() == LoadState::Open) {
        for segment in &load.segments {
            let owned = state.objects.get(segment).is_some_and(|o| o.is_live() && o.load_id == id);
            if !owned {
                report.problems.push(format!("load {} lacks its segment {segment}", load_text(id)));
            }
        }
    }
    for (id, table) in &state.tables {
        if !state.objects.get(&table.definition_object).is_some_and(ObjectRecord::is_live) {
            report.problems.push(format!("table {id} ({}) lacks its commit object", table.name));
        }
    }
}

/// Deleted rows are rows of a segment that counts, and their commit object is there.
fn check_deletions(state: &ManifestState, report: &mut CheckReport) {
    for (id, deletion) in &state.deletions {
        let segment = state.objects.get(id).filter(|object| object.is(ObjectKind::Segment) && object.is_live());
        let Some(segment) = segment.filter(|object| object.load_id.is_empty()) else {
            report.problems.push(format!("rows are deleted of segment {id}, which is part of no table"));
            continue;
        };
        let last = deletion.positions().and_then(|positions| positions.max());
        if last.is_none_or(|last| u64::from(last) >= segment.rows) || deletion.rows >= segment.rows {
            let (deleted, rows) = (deletion.rows, segment.rows);
            report.problems.push(format!("the {deleted} deleted rows of segment {id} are not rows of its {rows}"));
        }
        let commit = state.objects.get(&deletion.commit).filter(|object| object.is_live());
        if !commit.is_some_and(|commit| commit.deletes_from.contains(id)) {
            let commit = deletion.commit;
            report
                .problems
                .push(format!("commit object {commit}, which holds the deleted rows of segment {id}, is not there"));
        }
    }
}

async fn check_commits<D: Device>(
    device: &D,
    superblock: &Superblock,
    state: &ManifestState,
    report: &mut CheckReport,
) {
    for (id, object) in state.objects.iter().filter(|(_, o)| o.is_live() && !o.is_data()) {
        report.commits += 1;
        let bytes = match device.read(object.offset, object.length as usize).await {
            Ok(bytes) => bytes,
            Err(error) => {
                report.problems.push(format!("commit object {id}: {error}"));
                continue;
            }
        };
        let header = ObjectHeader::decode(superblock, &bytes);
        let header = header.filter(|header| header.id == *id && header.kind as u32 == object.kind);
        let record = header.and_then(|header| CommitRecord::decode(header.payload(&bytes)?).ok());
        let same = record.is_some_and(|record| {
            record.segments == object.segments
                && record.replaces == object.replaces
                && record.drops_tables == object.drops_tables
                && record.parts == object.parts
                && record.table_id == object.table_id
                && record.deletions.iter().map(|deletion| deletion.segment).eq(object.deletes_from.iter().copied())
                && record.deletions.into_iter().all(|deletion| is_newest_or_older(state, *id, deletion))
        });
        if !same {
            report.problems.push(format!("commit object {id} at offset {} is damaged", object.offset));
        }
    }
}

/// Whether the manifest says the same of a segment's deleted rows, unless a later commit object says more.
fn is_newest_or_older(state: &ManifestState, commit: u64, deletion: DeletionRecord) -> bool {
    let known = state.deletions.get(&deletion.segment).filter(|known| known.commit == commit);
    known.is_none_or(|known| *known == DeletionRecord { commit, ..deletion })
}

async fn check_segment<D: Device>(
    device: &D,
    superblock: &Superblock,
    state: &ManifestState,
    id: u64,
    object: &ObjectRecord,
    deep: bool,
) -> (u64, Vec<String>) {
    let footer = match read_segment_footer(device, superblock, id, object.table_id, object.extent()).await {
        Ok(footer) => footer,
        Err(error) => return (0, vec![error.to_string()]),
    };
    let mut problems = Vec::new();
    if footer.rows() != object.rows || footer.shard != object.shard && footer.load_id.is_empty() {
        problems.push(format!("segment {id} has {} rows, the manifest says {}", footer.rows(), object.rows));
    }
    let table = state.tables.get(&object.table_id).filter(|_| object.load_id.is_empty());
    let columns = hidb::convert::schema_to_proto(&footer.schema).columns;
    if table.is_some_and(|table| table.schema.as_ref().is_none_or(|schema| schema.columns != columns)) {
        problems.push(format!("segment {id} has another schema than its table"));
    }
    let segment = SegmentHandle {
        id,
        table_id: object.table_id,
        shard: object.shard,
        offset: object.offset,
        length: object.length,
        footer: footer.into(),
        volume: superblock.uuid_text().into(),
        rowid_runs: Default::default(),
    };
    let mut verified = 0;
    if deep {
        for row_group in 0..segment.footer.row_groups.len() {
            for column in 0..=segment.footer.schema.len() {
                match verify(device, &segment, row_group, column).await {
                    Ok(()) => verified += 1,
                    Err(error) => problems.push(error.to_string()),
                }
            }
            for column in 0..segment.footer.schema.len() {
                match verify_membership(device, &segment, row_group, column).await {
                    Ok(found) => verified += u64::from(found),
                    Err(error) => problems.push(error.to_string()),
                }
            }
        }
    }
    (verified, problems)
}

async fn verify<D: Device>(device: &D, segment: &SegmentHandle, row_group: usize, column: usize) -> Result<()> {
    let data_type = segment.footer.schema.fields().get(column).map_or(hidb::DataType::Int64, |field| field.data_type);
    read_chunk(device, segment, row_group, column, &data_type).await.map(|_| ())
}

/// Whether there is a membership filter, which is then what was written.
async fn verify_membership<D: Device>(
    device: &D,
    segment: &SegmentHandle,
    row_group: usize,
    column: usize,
) -> Result<bool> {
    let Some(filter) = segment.chunk(row_group, column)?.membership else { return Ok(false) };
    let bytes = device.read(segment.offset + filter.offset, filter.padded_length()).await?;
    let bytes = bytes.slice(..filter.length as usize);
    heliostat_segment::verify_membership(&filter, &bytes)
        .and_then(|()| MembershipFilter::open(bytes))
        .map(|_| true)
        .map_err(|error| {
            let number = membership_number(segment.footer.schema.len(), column);
            segment.corruption(row_group, number, &error.to_string())
        })
}
