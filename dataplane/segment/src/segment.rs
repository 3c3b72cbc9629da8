//! The file format of a segment: a header page, per row group its page-aligned chunks and their membership filters,
//! a footer, a trailer.
//!
//! Owns [`SegmentHeader`] and [`SegmentBuilder`]. Called by the store when it writes, and by `rebuild`
//! when it looks for segments.
//!
//! Invariants
//! - Everything a builder hands out is a multiple of 4,096 bytes long, in the order of the file.
//! - The header page is complete only when the segment is: a writer writes it last, so that a page with
//!   a right checksum means a whole segment.

use crate::encode::EncodedRowGroup;
use crate::error::{Result, SegmentError};
use crate::footer::{ChunkMeta, RowGroupMeta, SegmentFooter, Trailer, encode_footer, merge_zones};
use crate::membership::MembershipMeta;
use crate::{PAGE_BYTES, TRAILER_BLOCK_BYTES};
use hidb::schema::Schema;

/// The format this build writes and reads.
pub const FORMAT_VERSION: u32 = 1;
const HEADER_MAGIC: [u8; 4] = *b"HSEG";
/// Bytes of the header page that are used; the last four are its checksum.
const HEADER_BYTES: usize = 64;

/// What a segment is, apart from its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentIdentity {
    /// The volume it is written to.
    pub volume_uuid: [u8; 16],
    /// The table it belongs to.
    pub table_id: u64,
    /// Its own id.
    pub segment_id: u64,
    /// The shard of the table.
    pub shard: u32,
    /// The load that writes it (empty for merges).
    pub load_id: Vec<u8>,
}

/// The content of the first page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The volume it was written to.
    pub volume_uuid: [u8; 16],
    /// The table it belongs to.
    pub table_id: u64,
    /// Its own id.
    pub segment_id: u64,
    /// The shard of the table.
    pub shard: u32,
    /// Bytes of the whole segment.
    pub length: u64,
}

impl SegmentHeader {
    /// The header page.
    pub fn to_page(&self) -> Vec<u8> {
        let mut page = vec![0u8; PAGE_BYTES];
        page[0..4].copy_from_slice(&HEADER_MAGIC);
        page[4..8].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        page[8..24].copy_from_slice(&self.volume_uuid);
        page[24..32].copy_from_slice(&self.table_id.to_le_bytes());
        page[32..40].copy_from_slice(&self.segment_id.to_le_bytes());
        page[40..44].copy_from_slice(&self.shard.to_le_bytes());
        page[44..52].copy_from_slice(&self.length.to_le_bytes());
        let crc = crc32c::crc32c(&page[..HEADER_BYTES - 4]);
        page[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// Parses a segment's first page (or at least its first 64 bytes).
    pub fn parse(page: &[u8]) -> Result<Self> {
        let corrupt = |detail: String| SegmentError::corrupt("segment header", detail);
        let Some(bytes) = page.first_chunk::<HEADER_BYTES>() else {
            return Err(corrupt(format!("{} bytes", page.len())));
        };
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if bytes[0..4] != HEADER_MAGIC {
            return Err(corrupt(format!("magic is {:02x?}", &bytes[0..4])));
        }
        let stored = u32_at(HEADER_BYTES - 4);
        let computed = crc32c::crc32c(&bytes[..HEADER_BYTES - 4]);
        if stored != computed {
            return Err(SegmentError::Checksum { what: "segment header", stored, computed });
        }
        if u32_at(4) != FORMAT_VERSION {
            return Err(SegmentError::UnsupportedVersion(u32_at(4)));
        }
        let mut volume_uuid = [0u8; 16];
        volume_uuid.copy_from_slice(&bytes[8..24]);
        let length = u64_at(44);
        if length < 2 * PAGE_BYTES as u64 || !length.is_multiple_of(PAGE_BYTES as u64) {
            return Err(corrupt(format!("length {length}")));
        }
        Ok(SegmentHeader { volume_uuid, table_id: u64_at(24), segment_id: u64_at(32), shard: u32_at(40), length })
    }
}

/// The end of a segment, and its first page.
#[derive(Clone, Debug)]
pub struct FinishedSegment {
    /// The header page, for offset 0; to be written last.
    pub header: Vec<u8>,
    /// Footer, padding and trailer, to be appended.
    pub tail: Vec<u8>,
    /// Bytes of the whole segment.
    pub length: u64,
    /// The footer, as [`crate::read_footer`] would read it back.
    pub footer: SegmentFooter,
}

/// Lays out a segment, row group by row group, without holding the chunks.
#[derive(Debug)]
pub struct SegmentBuilder {
    identity: SegmentIdentity,
    schema: Schema,
    row_groups: Vec<RowGroupMeta>,
    /// Bytes laid out so far, the header page included.
    position: u64,
}

impl SegmentBuilder {
    /// An empty segment. The first byte to append goes to offset 4,096, after the header page.
    pub fn new(identity: SegmentIdentity, schema: Schema) -> Self {
        SegmentBuilder { identity, schema, row_groups: Vec::new(), position: PAGE_BYTES as u64 }
    }

    /// Where the next bytes go: bytes from the start of the segment.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Row groups pushed so far.
    pub fn row_groups(&self) -> usize {
        self.row_groups.len()
    }

    /// Rows pushed so far.
    pub fn rows(&self) -> u64 {
        self.row_groups.iter().map(|group| u64::from(group.rows)).sum()
    }

    /// Gives each chunk its place and returns the bytes to write at [`SegmentBuilder::position`] (as it
    /// was before the call): the chunks in order, then their membership filters, each padded to whole pages.
    pub fn push(&mut self, group: EncodedRowGroup) -> Result<Vec<u8>> {
        if group.chunks.len() != self.schema.len() + 1 {
            return Err(SegmentError::InvalidInput {
                column: "row group".into(),
                detail: format!("{} chunks for {} columns and _rowid", group.chunks.len(), self.schema.len()),
            });
        }
        let filters = group.chunks.iter().map(|chunk| chunk.membership.as_ref().map_or(0, Vec::len));
        let lengths = group.chunks.iter().map(|chunk| chunk.bytes.len()).chain(filters);
        let mut bytes = Vec::with_capacity(lengths.map(|length| length.next_multiple_of(PAGE_BYTES)).sum());
        let mut columns = Vec::with_capacity(group.chunks.len());
        let mut append = |part: &[u8]| {
            let offset = self.position + bytes.len() as u64;
            bytes.extend_from_slice(part);
            bytes.resize(bytes.len().next_multiple_of(PAGE_BYTES), 0);
            offset
        };
        for chunk in &group.chunks {
            columns.push(ChunkMeta { offset: append(&chunk.bytes), ..chunk.meta.clone() });
        }
        for (chunk, column) in group.chunks.iter().zip(&mut columns) {
            if let (Some(bytes), Some(meta)) = (&chunk.membership, &mut column.membership) {
                meta.offset = append(bytes);
            }
        }
        self.position += bytes.len() as u64;
        self.row_groups.push(RowGroupMeta { rows: group.rows, first_rowid: group.first_rowid, columns });
        Ok(bytes)
    }

    /// The rest of the segment.
    pub fn finish(self) -> FinishedSegment {
        let zones = merge_zones(self.schema.len() + 1, &self.row_groups);
        let mut footer = SegmentFooter {
            volume_uuid: self.identity.volume_uuid,
            table_id: self.identity.table_id,
            segment_id: self.identity.segment_id,
            shard: self.identity.shard,
            load_id: self.identity.load_id,
            length: 0,
            schema: self.schema,
            row_groups: self.row_groups,
            zones,
        };
        let mut tail = encode_footer(&footer);
        let footer_length = tail.len() as u32;
        let footer_crc32c = crc32c::crc32c(&tail);
        let trailer = Trailer { segment_length: 0, footer_offset: self.position, footer_length, footer_crc32c };
        let trailer_bytes = trailer.to_bytes().len();
        tail.resize((tail.len() + trailer_bytes).next_multiple_of(TRAILER_BLOCK_BYTES), 0);
        let length = self.position + tail.len() as u64;
        footer.length = length;
        let start = tail.len() - trailer_bytes;
        tail[start..].copy_from_slice(&Trailer { segment_length: length, ..trailer }.to_bytes());
        let header = SegmentHeader {
            volume_uuid: footer.volume_uuid,
            table_id: footer.table_id,
            segment_id: footer.segment_id,
            shard: footer.shard,
            length,
        };
        FinishedSegment { header: header.to_page(), tail, length, footer }
    }
}

/// Checks a membership filter's bytes, as read from the volume (without the padding), against its checksum.
pub fn verify_membership(meta: &MembershipMeta, bytes: &[u8]) -> Result<()> {
    let computed = crc32c::crc32c(bytes);
    if bytes.len() != meta.length as usize || computed != meta.crc32c {
        return Err(SegmentError::Checksum { what: "membership filter", stored: meta.crc32c, computed });
    }
    Ok(())
}

/// Checks a chunk's bytes, as read from the volume (without the padding), against its checksum.
pub fn verify_chunk(meta: &ChunkMeta, bytes: &[u8]) -> Result<()> {
    if bytes.len() != meta.length as usize {
        return Err(SegmentError::corrupt("chunk", format!("{} bytes instead of {}", bytes.len(), meta.length)));
    }
    let computed = crc32c::crc32c(bytes);
    if computed != meta.crc32c {
        return Err(SegmentError::Checksum { what: "chunk", stored: meta.crc32c, computed });
    }
    Ok(())
}
