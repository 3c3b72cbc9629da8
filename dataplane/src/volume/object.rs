//! Objects on a volume: the header block that each begins with, commit objects and tombstones.
//!
//! An object is one extent. Its first 4 KiB hold the header (128 bytes, little-endian: magic 8, volume UUID 16,
//! secret 16, kind 4, CRC32C of the payload 4, id 8, table id 8, object length 8, payload length 8, zeroes, CRC32C
//! of the 124 bytes before it). The payload of a commit object or tombstone follows the header directly; a
//! segment's file begins at the next block.
//!
//! Invariants
//! - Ids are never used twice on one volume, whatever the kind.
//! - A commit object counts only when its payload's checksum holds.

use prost::Message;

use super::deletion::DeletionRecord;
use super::{EXTENT_UNIT_BYTES, Extent, Superblock};
use crate::device::AlignedBuf;

/// Bytes of the header proper.
pub const HEADER_BYTES: usize = 128;
const CRC_AT: usize = HEADER_BYTES - 4;
const MAGIC: [u8; 8] = *b"HELIOOBJ";
/// The longest payload of a commit object or tombstone.
pub const PAYLOAD_BYTES_MAX: u64 = 64 << 20;

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ObjectKind {
    /// Rows of one shard.
    Segment = 1,
    /// Makes segments part of a table, and takes others out.
    Commit = 2,
    /// Ends a table.
    Tombstone = 3,
    /// An index over a column of vectors.
    Index = 4,
}

impl ObjectKind {
    /// The kind of this number.
    pub fn from_number(number: u32) -> Option<Self> {
        let kinds = [ObjectKind::Segment, ObjectKind::Commit, ObjectKind::Tombstone, ObjectKind::Index];
        kinds.into_iter().find(|kind| *kind as u32 == number)
    }
}

/// The header of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectHeader {
    /// What it is.
    pub kind: ObjectKind,
    /// Which one.
    pub id: u64,
    /// The table it belongs to.
    pub table_id: u64,
    /// Bytes of the whole object, a multiple of 4 KiB.
    pub length: u64,
    /// Bytes of the payload behind the header; 0 for segments and indexes, which begin at the next block.
    pub payload_bytes: u64,
    /// CRC32C of the payload.
    pub payload_crc: u32,
}

impl ObjectHeader {
    /// The header of an index object of `length` bytes.
    pub fn of_index(id: u64, table_id: u64, length: u64) -> Self {
        ObjectHeader { kind: ObjectKind::Index, ..Self::of_segment(id, table_id, length) }
    }

    /// The header of a segment object of `length` bytes.
    pub fn of_segment(id: u64, table_id: u64, length: u64) -> Self {
        ObjectHeader { kind: ObjectKind::Segment, id, table_id, length, payload_bytes: 0, payload_crc: 0 }
    }

    /// Writes the header into the first bytes of `block`, which must be at least 4 KiB.
    pub fn encode_into(&self, superblock: &Superblock, block: &mut [u8]) {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&superblock.volume_uuid);
        bytes.extend_from_slice(&superblock.secret);
        bytes.extend_from_slice(&(self.kind as u32).to_le_bytes());
        bytes.extend_from_slice(&self.payload_crc.to_le_bytes());
        for number in [self.id, self.table_id, self.length, self.payload_bytes] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.resize(CRC_AT, 0);
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        block[..HEADER_BYTES].copy_from_slice(&bytes);
    }

    /// Reads the header of a block of this volume; `None` when the block does not begin an object.
    pub fn decode(superblock: &Superblock, block: &[u8]) -> Option<Self> {
        let bytes = block.get(..HEADER_BYTES)?;
        if bytes[..8] != MAGIC || bytes[8..24] != superblock.volume_uuid || bytes[24..40] != superblock.secret {
            return None;
        }
        if bytes[CRC_AT..] != crc32c::crc32c(&bytes[..CRC_AT]).to_le_bytes() {
            return None;
        }
        let number = |from: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[from + i]));
        let short = |from: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[from + i]));
        let header = ObjectHeader {
            kind: ObjectKind::from_number(short(40))?,
            payload_crc: short(44),
            id: number(48),
            table_id: number(56),
            length: number(64),
            payload_bytes: number(72),
        };
        let sane = header.length >= EXTENT_UNIT_BYTES
            && header.length.is_multiple_of(EXTENT_UNIT_BYTES)
            && header.length <= superblock.size_bytes
            && header.payload_bytes <= PAYLOAD_BYTES_MAX
            && header.payload_bytes + HEADER_BYTES as u64 <= header.length;
        sane.then_some(header)
    }

    /// Whether these bytes, from the header on, hold the payload that the header speaks of.
    pub fn payload<'a>(&self, object: &'a [u8]) -> Option<&'a [u8]> {
        let payload = object.get(HEADER_BYTES..HEADER_BYTES + usize::try_from(self.payload_bytes).ok()?)?;
        (crc32c::crc32c(payload) == self.payload_crc).then_some(payload)
    }
}

/// What a commit object or tombstone says, in full: enough to make the manifest again.
#[derive(Clone, PartialEq, Message)]
pub struct CommitRecord {
    /// The table it changes.
    #[prost(uint64, tag = "1")]
    pub table_id: u64,
    /// Its name.
    #[prost(string, tag = "2")]
    pub table_name: String,
    /// Its schema; absent in a tombstone.
    #[prost(message, optional, tag = "3")]
    pub schema: Option<hidb::proto::TableSchema>,
    /// How many shards it has.
    #[prost(uint32, tag = "4")]
    pub shards: u32,
    /// Segments that become part of the table.
    #[prost(uint64, repeated, tag = "5")]
    pub segments: Vec<u64>,
    /// Segments that stop being part of it (a merge).
    #[prost(uint64, repeated, tag = "6")]
    pub replaces: Vec<u64>,
    /// Tables that this change ends (a load that replaces a table, or a drop).
    #[prost(uint64, repeated, tag = "7")]
    pub drops_tables: Vec<u64>,
    /// The load that it commits; empty for others.
    #[prost(bytes = "vec", tag = "8")]
    pub load_id: Vec<u8>,
    /// The table's next row id afterwards.
    #[prost(int64, tag = "9")]
    pub next_rowid: i64,
    /// Batches of the load.
    #[prost(uint64, tag = "10")]
    pub load_batches: u64,
    /// How the load treated its table, as the manifest numbers it.
    #[prost(int32, tag = "11")]
    pub load_mode: i32,
    /// Rows of the load.
    #[prost(uint64, tag = "12")]
    pub load_rows: u64,
    /// Segments of which rows are deleted, each with all its deleted rows.
    #[prost(message, repeated, tag = "20")]
    pub deletions: Vec<DeletionRecord>,
    /// All commit objects of a change that needs several, by id: it counts only when all are there. Empty for others.
    #[prost(uint64, repeated, tag = "21")]
    pub parts: Vec<u64>,
    /// The indexes that the table is to have.
    #[prost(message, repeated, tag = "30")]
    pub indexes: Vec<hidb::proto::IndexDefinition>,
}

/// The object (header and payload) as it goes onto the volume.
pub fn encode_record(superblock: &Superblock, kind: ObjectKind, id: u64, record: &CommitRecord) -> AlignedBuf {
    let payload = record.encode_to_vec();
    let mut buffer = AlignedBuf::zeroed(HEADER_BYTES + payload.len());
    buffer[HEADER_BYTES..HEADER_BYTES + payload.len()].copy_from_slice(&payload);
    let header = ObjectHeader {
        kind,
        id,
        table_id: record.table_id,
        length: buffer.len() as u64,
        payload_bytes: payload.len() as u64,
        payload_crc: crc32c::crc32c(&payload),
    };
    header.encode_into(superblock, &mut buffer);
    buffer
}

/// An object found on a volume.
#[derive(Clone, Debug, PartialEq)]
pub struct FoundObject {
    /// Where it is.
    pub extent: Extent,
    /// Its header.
    pub header: ObjectHeader,
    /// What it says, if it is a whole commit object or tombstone.
    pub record: Option<CommitRecord>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_encoding_and_flipped_bits_are_found() {
        let superblock = Superblock::new(1 << 30);
        let record =
            CommitRecord { table_id: 7, table_name: "t".into(), segments: (0..2000).collect(), ..Default::default() };
        let object = encode_record(&superblock, ObjectKind::Commit, 9, &record);
        let header = ObjectHeader::decode(&superblock, &object).unwrap();
        assert_eq!((header.kind, header.id, header.table_id), (ObjectKind::Commit, 9, 7));
        assert_eq!(CommitRecord::decode(header.payload(&object).unwrap()).unwrap(), record);
        for bit in (0..HEADER_BYTES * 8).step_by(3) {
            let mut flipped = object.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(ObjectHeader::decode(&superblock, &flipped), None, "bit {bit}");
        }
        let mut flipped = object.to_vec();
        flipped[HEADER_BYTES + 100] ^= 4;
        assert!(header.payload(&flipped).is_none());
    }

    #[test]
    fn headers_of_another_volume_do_not_count() {
        let (one, other) = (Superblock::new(1 << 30), Superblock::new(1 << 30));
        let object = encode_record(&one, ObjectKind::Commit, 9, &CommitRecord::default());
        assert!(ObjectHeader::decode(&other, &object).is_none());
    }
}
