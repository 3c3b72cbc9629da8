//! Writing objects: segments in large aligned pieces, commit objects and tombstones with their intent.

use std::sync::Arc;

use futures::StreamExt;
use heliostat_segment::{EncodedRowGroup, SegmentBuilder, SegmentFooter, SegmentIdentity, read_footer, read_trailer};
use hidb::Schema;

use super::error::{Result, StoreError};
use super::{Changes, SegmentHandle, Store};
use crate::device::{AlignedBuf, Device};
use crate::manifest::{Batch, ObjectRecord, ObjectState};
use crate::volume::object::{CommitRecord, encode_record};
use crate::volume::{EXTENT_UNIT_BYTES, Extent, ObjectHeader, ObjectKind, Superblock};

/// The longest single write.
const WRITE_BYTES_MAX: usize = 1 << 20;
/// What a drive writes whole or not at all, at least.
const SECTOR_BYTES: usize = 512;
/// Writes of one object in flight.
const WRITES_IN_FLIGHT: usize = 8;

/// A commit object or tombstone that is on the volume, but pending in the manifest.
pub(super) struct WrittenCommit {
    pub id: u64,
    pending: ObjectRecord,
}

impl WrittenCommit {
    /// Its record once it counts.
    pub fn live(&self, record: &CommitRecord) -> ObjectRecord {
        ObjectRecord {
            state: ObjectState::Live as i32,
            load_id: Vec::new(),
            segments: record.segments.clone(),
            replaces: record.replaces.clone(),
            drops_tables: record.drops_tables.clone(),
            deletes_from: record.deletions.iter().map(|deletion| deletion.segment).collect(),
            parts: record.parts.clone(),
            ..self.pending.clone()
        }
    }
}

/// A segment that is written and flushed, but not in the manifest.
pub(super) struct WrittenSegment {
    pub id: u64,
    pub extent: Extent,
    pub handle: Arc<SegmentHandle>,
}

impl WrittenSegment {
    /// Its record, part of a load or (with an empty load id) of the table.
    pub fn record(&self, state: ObjectState, load_id: &[u8]) -> ObjectRecord {
        ObjectRecord {
            kind: ObjectKind::Segment as u32,
            state: state as i32,
            offset: self.extent.offset(),
            length: self.extent.length(),
            table_id: self.handle.table_id,
            shard: self.handle.shard,
            rows: self.handle.footer.rows(),
            load_id: load_id.to_vec(),
            ..Default::default()
        }
    }
}

impl Store {
    /// Writes a commit object or tombstone and flushes it. In the manifest it is pending until the caller makes it
    /// live in the batch of the change, and so are `with` (segments that count with it only).
    pub(super) async fn write_commit<D: Device>(
        &self,
        device: &D,
        changes: &Changes<'_>,
        kind: ObjectKind,
        record: &CommitRecord,
        with: &[(u64, ObjectRecord)],
    ) -> Result<WrittenCommit> {
        let id = changes.take_id();
        let mut written = self.write_commits(device, changes, kind, &[(id, record)], with).await?;
        written.pop().ok_or_else(|| StoreError::Internal("a commit object was written and is not there".into()))
    }

    /// The same for a change that needs several, under ids that were taken for them: all are written, or none.
    pub(super) async fn write_commits<D: Device>(
        &self,
        device: &D,
        changes: &Changes<'_>,
        kind: ObjectKind,
        records: &[(u64, &CommitRecord)],
        with: &[(u64, ObjectRecord)],
    ) -> Result<Vec<WrittenCommit>> {
        let encode = |(id, record): &(u64, &CommitRecord)| encode_record(&self.superblock, kind, *id, record);
        let objects: Vec<AlignedBuf> = records.iter().map(encode).collect();
        let units: Vec<u64> = objects.iter().map(|object| object.len() as u64 / EXTENT_UNIT_BYTES).collect();
        let mut extents = self.state().allocate_metadata(&units)?;
        if extents.is_none() {
            // Commit objects that nothing needs any more may hold the space that is kept for their kind.
            self.state().commits_changed = true;
            self.erase_pending(device, changes).await?;
            extents = self.state().allocate_metadata(&units)?;
        }
        let Some(extents) = extents else {
            let mut state = self.state();
            with.iter().try_for_each(|(_, segment)| state.free(segment.extent()))?;
            drop(state);
            return Err(self.volume_full(units.iter().sum::<u64>() * EXTENT_UNIT_BYTES));
        };
        let pending = |((id, record), extent): (&(u64, &CommitRecord), &Extent)| WrittenCommit {
            id: *id,
            pending: ObjectRecord {
                kind: kind as u32,
                state: ObjectState::Pending as i32,
                offset: extent.offset(),
                length: extent.length(),
                table_id: record.table_id,
                load_id: record.load_id.clone(),
                ..Default::default()
            },
        };
        let commits: Vec<WrittenCommit> = records.iter().zip(&extents).map(pending).collect();
        let mut batch = Batch::new();
        for commit in &commits {
            batch.put_object(commit.id, &commit.pending);
        }
        for (segment, record) in with {
            batch.put_object(*segment, record);
        }
        // After a failure the extents stay in use: the records may be there at the next start.
        changes.write(batch).await?;
        if let Err(error) = write_whole(device, &extents, objects).await {
            // An object may be on the volume all the same: take it back before anything contradicts it. If that
            // fails too it stays pending, and the next open erases it.
            if let Err(second) = self.erase_pending(device, changes).await {
                tracing::warn!(%second, "a commit object that failed could not be erased yet");
            }
            return Err(error.into());
        }
        Ok(commits)
    }

    /// Writes a segment of these row groups into an extent of its own and flushes it.
    pub(super) async fn write_segment<D: Device>(
        &self,
        device: &D,
        identity: SegmentIdentity,
        schema: &Schema,
        row_groups: Vec<EncodedRowGroup>,
    ) -> Result<WrittenSegment> {
        let (id, table_id, shard) = (identity.segment_id, identity.table_id, identity.shard);
        let mut builder = SegmentBuilder::new(identity, schema.clone());
        let mut parts = Vec::with_capacity(row_groups.len() + 1);
        for group in row_groups {
            parts.push(builder.push(group).map_err(hidb::Error::from)?);
        }
        let finished = builder.finish();
        parts.push(finished.tail);
        let extent = self.allocate(device, finished.length).await?;
        let mut header = AlignedBuf::zeroed(EXTENT_UNIT_BYTES as usize);
        ObjectHeader::of_segment(id, table_id, extent.length()).encode_into(&self.superblock, &mut header);
        let written = async {
            write_pieces(device, extent.offset() + EXTENT_UNIT_BYTES, parts).await?;
            // The header goes last, so that most segments cut off by a crash have none.
            device.write(extent.offset(), header).await?;
            device.flush().await
        };
        if let Err(error) = written.await {
            self.state().free(extent)?;
            return Err(error.into());
        }
        let handle = Arc::new(SegmentHandle {
            id,
            table_id,
            shard,
            offset: extent.offset(),
            length: extent.length(),
            footer: Arc::new(finished.footer),
            volume: Arc::clone(&self.volume),
            rowid_runs: Default::default(),
        });
        Ok(WrittenSegment { id, extent, handle })
    }

    /// Space for data; when there is none, what waits to be reclaimed is reclaimed first.
    pub(super) async fn allocate<D: Device>(&self, device: &D, bytes: u64) -> Result<Extent> {
        let units = bytes.div_ceil(EXTENT_UNIT_BYTES);
        let first = self.state().allocator.allocate(units);
        if let Ok(extent) = first {
            return Ok(extent);
        }
        self.reclaim(device).await?;
        let second = self.state().allocator.allocate(units);
        second.map_err(|_| self.volume_full(bytes))
    }
}

/// Writes objects so that none is there in part only, whatever a crash leaves of the last writes: what goes beyond the
/// sector of its header is durable before that.
async fn write_whole<D: Device>(
    device: &D,
    extents: &[Extent],
    mut objects: Vec<AlignedBuf>,
) -> Result<(), crate::device::DeviceError> {
    let mut heads = Vec::with_capacity(objects.len());
    let mut is_long = false;
    for (extent, object) in extents.iter().zip(&mut objects) {
        let head = AlignedBuf::from_slice(&object[..EXTENT_UNIT_BYTES as usize]);
        if object[SECTOR_BYTES..].iter().any(|byte| *byte != 0) {
            is_long = true;
            object[..SECTOR_BYTES].fill(0);
            write_pieces(device, extent.offset(), vec![object.to_vec()]).await?;
        }
        heads.push((extent.offset(), head));
    }
    if is_long {
        device.flush().await?;
    }
    for (offset, head) in heads {
        device.write(offset, head).await?;
    }
    device.flush().await
}

/// Writes parts, each a multiple of 4 KiB, one after another from `offset` on.
pub(super) async fn write_pieces<D: Device>(
    device: &D,
    offset: u64,
    parts: Vec<Vec<u8>>,
) -> Result<(), crate::device::DeviceError> {
    let mut pieces = Vec::new();
    let mut at = offset;
    for part in &parts {
        for piece in part.chunks(WRITE_BYTES_MAX) {
            pieces.push((at, piece));
            at += piece.len() as u64;
        }
    }
    let writes =
        pieces.into_iter().map(|(at, piece)| async move { device.write(at, AlignedBuf::from_slice(piece)).await });
    let mut writes = futures::stream::iter(writes).buffer_unordered(WRITES_IN_FLIGHT);
    let mut outcome = Ok(());
    while let Some(written) = writes.next().await {
        // All writes are waited for even after one failed: the extent must be quiet before it is given back.
        outcome = outcome.and(written);
    }
    outcome
}

/// Reads and checks a segment's header and footer.
///
/// # Errors
/// [`StoreError::Corruption`], or the device's.
pub(super) async fn read_segment_footer<D: Device>(
    device: &D,
    superblock: &Superblock,
    id: u64,
    table_id: u64,
    extent: Extent,
) -> Result<SegmentFooter> {
    let damaged = |offset: u64, reason: String| StoreError::Corruption {
        volume: superblock.uuid_text(),
        what: format!("segment {id}"),
        offset,
        reason,
    };
    let block = device.read(extent.offset(), EXTENT_UNIT_BYTES as usize).await?;
    let header = ObjectHeader::decode(superblock, &block);
    if header != Some(ObjectHeader::of_segment(id, table_id, extent.length())) {
        return Err(damaged(extent.offset(), "its header is not that of this segment".into()));
    }
    let end = extent.offset() + extent.length();
    // Most footers fit into this; a longer one costs a second read.
    let mut tail_bytes = extent.length().min(64 << 10);
    let mut tail = device.read(end - tail_bytes, tail_bytes as usize).await?;
    let trailer = read_trailer(&tail).map_err(|error| damaged(end - EXTENT_UNIT_BYTES, error.to_string()))?;
    if trailer.segment_length != extent.length() || trailer.tail_length() > extent.length() {
        return Err(damaged(end - EXTENT_UNIT_BYTES, format!("its trailer says {} bytes", trailer.segment_length)));
    }
    if trailer.tail_length() > tail_bytes {
        tail_bytes = trailer.tail_length().next_multiple_of(EXTENT_UNIT_BYTES).min(extent.length());
        tail = device.read(end - tail_bytes, tail_bytes as usize).await?;
    }
    let footer = read_footer(&tail).map_err(|error| damaged(end - tail_bytes, error.to_string()))?;
    let same = footer.segment_id == id && footer.table_id == table_id && footer.volume_uuid == superblock.volume_uuid;
    if !same {
        return Err(damaged(end - tail_bytes, format!("its footer is that of segment {}", footer.segment_id)));
    }
    Ok(footer)
}
