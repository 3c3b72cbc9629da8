//! The footer of a segment: what it holds, where, and between which bounds.
//!
//! Owns [`SegmentFooter`], its protobuf form, and the trailer in the last page that finds it. Written
//! by [`crate::SegmentBuilder`]; read by the store at open and by `rebuild`.
//!
//! Invariants
//! - A footer that [`read_footer`] returns is consistent: the ranges of chunks and of membership filters lie between
//!   the header page and the footer and are page-aligned; there is one chunk per column and row group plus `_rowid`.
//! - The trailer is the last [`TRAILER_BYTES`] bytes of the segment's last page.

use hidb::schema::{Field, Schema};
use hidb::types::Scalar;
use prost::Message;

use crate::error::{Result, SegmentError};
use crate::membership::{FILTER_BYTES_MAX, MembershipMeta};
use crate::segment::FORMAT_VERSION;
use crate::zone::ZoneMap;
use crate::{PAGE_BYTES, ROW_GROUP_ROWS_MAX};

/// Bytes at the end of a segment that [`read_trailer`] wants to see.
pub const TRAILER_BLOCK_BYTES: usize = PAGE_BYTES;
/// Bytes of the trailer itself.
const TRAILER_BYTES: usize = 48;
const TRAILER_MAGIC: [u8; 4] = *b"HSGT";
/// A footer larger than this is refused.
const FOOTER_BYTES_MAX: u32 = 64 << 20;
/// The most row groups of a segment.
const ROW_GROUPS_MAX: usize = 1 << 16;

/// How the values of a chunk are encoded (the blocks of an integer chunk may differ among themselves;
/// this is what most of them are).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Encoding {
    /// One value for all rows.
    Constant = 1,
    /// Run length.
    RunLength = 2,
    /// Frame of reference and bit packing.
    Packed = 3,
    /// Differences, bit packed.
    Delta = 4,
    /// Sorted dictionary and bit-packed codes.
    Dictionary = 5,
    /// Values as they are.
    Plain = 6,
    /// Text compressed with a symbol table (FSST).
    Fsst = 7,
    /// One bit per row.
    Bitmap = 8,
    /// Floats as decimal integers, bit packed (ALP).
    Alp = 9,
    /// Floats cut into a dictionary of heads and bit-packed tails (ALP-RD).
    AlpSplit = 10,
}

impl Encoding {
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Encoding::Constant,
            2 => Encoding::RunLength,
            3 => Encoding::Packed,
            4 => Encoding::Delta,
            5 => Encoding::Dictionary,
            6 => Encoding::Plain,
            7 => Encoding::Fsst,
            8 => Encoding::Bitmap,
            9 => Encoding::Alp,
            10 => Encoding::AlpSplit,
            _ => return None,
        })
    }

    /// The name, as `explain` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Encoding::Constant => "constant",
            Encoding::RunLength => "runlength",
            Encoding::Packed => "packed",
            Encoding::Delta => "delta",
            Encoding::Dictionary => "dictionary",
            Encoding::Plain => "plain",
            Encoding::Fsst => "fsst",
            Encoding::Bitmap => "bitmap",
            Encoding::Alp => "alp",
            Encoding::AlpSplit => "alpsplit",
        }
    }
}

/// Where a chunk is and what is in it.
#[derive(Clone, Debug, PartialEq)]
pub struct ChunkMeta {
    /// Bytes from the start of the segment; a multiple of 4,096.
    pub offset: u64,
    /// Bytes, without the padding after it.
    pub length: u32,
    /// CRC32C of these bytes.
    pub crc32c: u32,
    /// How it is encoded.
    pub encoding: Encoding,
    /// Bounds and counts.
    pub zone: ZoneMap,
    /// The filter that says which values are not in it, if it has one.
    pub membership: Option<MembershipMeta>,
}

impl ChunkMeta {
    /// Bytes on the volume: `length` rounded up to whole pages.
    pub fn padded_length(&self) -> usize {
        (self.length as usize).next_multiple_of(PAGE_BYTES)
    }

    /// Bytes on the volume, with those of its membership filter.
    pub fn stored_bytes(&self) -> u64 {
        (self.padded_length() + self.membership.map_or(0, |filter| filter.padded_length())) as u64
    }
}

/// One row group.
#[derive(Clone, Debug, PartialEq)]
pub struct RowGroupMeta {
    /// Rows, at most 131,072.
    pub rows: u32,
    /// The first row's `_rowid` (the others are in the `_rowid` chunk).
    pub first_rowid: i64,
    /// The table's columns in order, then `_rowid`.
    pub columns: Vec<ChunkMeta>,
}

/// Where a chunk or a membership filter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartMeta {
    /// Bytes from the start of the segment; a multiple of 4,096.
    pub offset: u64,
    /// Bytes, without the padding after it.
    pub length: u32,
    /// CRC32C of these bytes.
    pub crc32c: u32,
}

impl PartMeta {
    /// Bytes on the volume: `length` rounded up to whole pages.
    pub fn padded_length(&self) -> usize {
        (self.length as usize).next_multiple_of(PAGE_BYTES)
    }
}

impl RowGroupMeta {
    /// The part of this number: the chunks of the columns, that of `_rowid`, then the membership filters of the
    /// columns ([`crate::membership_number`]).
    pub fn part(&self, number: usize) -> Option<PartMeta> {
        match number.checked_sub(self.columns.len()) {
            None => {
                let chunk = &self.columns[number];
                Some(PartMeta { offset: chunk.offset, length: chunk.length, crc32c: chunk.crc32c })
            }
            Some(column) => {
                let filter = self.columns.get(column)?.membership?;
                Some(PartMeta { offset: filter.offset, length: filter.length, crc32c: filter.crc32c })
            }
        }
    }

    /// 1,024-row blocks.
    pub fn blocks(&self) -> usize {
        (self.rows as usize).div_ceil(crate::BLOCK_ROWS)
    }
}

/// Everything that is known about a segment without reading its chunks.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentFooter {
    /// The volume it was written to.
    pub volume_uuid: [u8; 16],
    /// The table it belongs to.
    pub table_id: u64,
    /// Its own id.
    pub segment_id: u64,
    /// The shard of the table.
    pub shard: u32,
    /// The load that wrote it (empty for merges).
    pub load_id: Vec<u8>,
    /// Bytes of the whole segment, a multiple of 4,096.
    pub length: u64,
    /// The table's columns.
    pub schema: Schema,
    /// The row groups in order.
    pub row_groups: Vec<RowGroupMeta>,
    /// Per column (and `_rowid` last), over the whole segment.
    pub zones: Vec<ZoneMap>,
}

impl SegmentFooter {
    /// Rows of all row groups.
    pub fn rows(&self) -> u64 {
        self.row_groups.iter().map(|group| u64::from(group.rows)).sum()
    }
}

/// Where the footer is: the content of a segment's last bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Bytes of the whole segment.
    pub segment_length: u64,
    /// Bytes from the start of the segment to the footer.
    pub footer_offset: u64,
    /// Bytes of the footer.
    pub footer_length: u32,
    /// CRC32C of the footer.
    pub footer_crc32c: u32,
}

impl Trailer {
    /// Bytes from the start of the footer to the end of the segment.
    pub fn tail_length(&self) -> u64 {
        self.segment_length - self.footer_offset
    }

    pub(crate) fn to_bytes(self) -> [u8; TRAILER_BYTES] {
        let mut bytes = [0u8; TRAILER_BYTES];
        bytes[0..4].copy_from_slice(&TRAILER_MAGIC);
        bytes[4..8].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.segment_length.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.footer_offset.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.footer_length.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.footer_crc32c.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..TRAILER_BYTES - 4]);
        bytes[TRAILER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0u8; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0u8; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// Parses the trailer at the very end of `tail` (the last bytes of a segment, any number of them).
pub fn read_trailer(tail: &[u8]) -> Result<Trailer> {
    let Some(start) = tail.len().checked_sub(TRAILER_BYTES) else {
        return Err(SegmentError::TailTooShort { needed: TRAILER_BLOCK_BYTES as u64, given: tail.len() as u64 });
    };
    let bytes = &tail[start..];
    if bytes[0..4] != TRAILER_MAGIC {
        return Err(SegmentError::corrupt("segment trailer", format!("magic is {:02x?}", &bytes[0..4])));
    }
    let stored = u32_at(bytes, TRAILER_BYTES - 4);
    let computed = crc32c::crc32c(&bytes[..TRAILER_BYTES - 4]);
    if stored != computed {
        return Err(SegmentError::Checksum { what: "segment trailer", stored, computed });
    }
    let version = u32_at(bytes, 4);
    if version != FORMAT_VERSION {
        return Err(SegmentError::UnsupportedVersion(version));
    }
    let trailer = Trailer {
        segment_length: u64_at(bytes, 8),
        footer_offset: u64_at(bytes, 16),
        footer_length: u32_at(bytes, 24),
        footer_crc32c: u32_at(bytes, 28),
    };
    let fits = trailer.segment_length.is_multiple_of(PAGE_BYTES as u64)
        && trailer.footer_length <= FOOTER_BYTES_MAX
        && trailer.footer_offset >= PAGE_BYTES as u64
        && trailer
            .footer_offset
            .checked_add(u64::from(trailer.footer_length) + TRAILER_BYTES as u64)
            .is_some_and(|end| end <= trailer.segment_length);
    if !fits {
        return Err(SegmentError::corrupt("segment trailer", format!("impossible ranges {trailer:?}")));
    }
    Ok(trailer)
}

/// Reads the footer from the last bytes of a segment. `tail` must end where the segment ends; when it
/// does not reach back to the footer the error is [`SegmentError::TailTooShort`] and says how many bytes do.
pub fn read_footer(tail: &[u8]) -> Result<SegmentFooter> {
    let trailer = read_trailer(tail)?;
    let needed = trailer.tail_length();
    if needed > tail.len() as u64 {
        return Err(SegmentError::TailTooShort { needed, given: tail.len() as u64 });
    }
    let start = tail.len() - needed as usize;
    let bytes = &tail[start..start + trailer.footer_length as usize];
    let computed = crc32c::crc32c(bytes);
    if computed != trailer.footer_crc32c {
        return Err(SegmentError::Checksum { what: "segment footer", stored: trailer.footer_crc32c, computed });
    }
    decode_footer(bytes, &trailer)
}

#[derive(Clone, PartialEq, Message)]
struct FooterMessage {
    #[prost(bytes = "vec", tag = "1")]
    volume_uuid: Vec<u8>,
    #[prost(uint64, tag = "2")]
    table_id: u64,
    #[prost(uint64, tag = "3")]
    segment_id: u64,
    #[prost(uint32, tag = "4")]
    shard: u32,
    #[prost(bytes = "vec", tag = "5")]
    load_id: Vec<u8>,
    #[prost(message, repeated, tag = "6")]
    fields: Vec<FieldMessage>,
    #[prost(message, repeated, tag = "7")]
    row_groups: Vec<RowGroupMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct FieldMessage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    data_type: String,
    #[prost(bool, tag = "3")]
    nullable: bool,
}

#[derive(Clone, PartialEq, Message)]
struct RowGroupMessage {
    #[prost(uint32, tag = "1")]
    rows: u32,
    #[prost(sint64, tag = "2")]
    first_rowid: i64,
    #[prost(message, repeated, tag = "3")]
    columns: Vec<ChunkMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct ChunkMessage {
    #[prost(uint64, tag = "1")]
    offset: u64,
    #[prost(uint32, tag = "2")]
    length: u32,
    #[prost(fixed32, tag = "3")]
    crc32c: u32,
    #[prost(uint32, tag = "4")]
    encoding: u32,
    #[prost(uint32, tag = "5")]
    null_count: u32,
    #[prost(bool, tag = "6")]
    has_nan: bool,
    #[prost(bool, tag = "7")]
    exact: bool,
    #[prost(message, optional, tag = "8")]
    min: Option<ScalarMessage>,
    #[prost(message, optional, tag = "9")]
    max: Option<ScalarMessage>,
    /// Builds that don't know it scan without.
    #[prost(message, optional, tag = "10")]
    membership: Option<MembershipMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct MembershipMessage {
    #[prost(uint64, tag = "1")]
    offset: u64,
    #[prost(uint32, tag = "2")]
    length: u32,
    #[prost(fixed32, tag = "3")]
    crc32c: u32,
    #[prost(uint32, tag = "4")]
    values: u32,
}

#[derive(Clone, PartialEq, Message)]
struct ScalarMessage {
    #[prost(oneof = "ScalarKind", tags = "1, 2, 3, 4, 5")]
    kind: Option<ScalarKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum ScalarKind {
    #[prost(bool, tag = "1")]
    Bool(bool),
    #[prost(sint64, tag = "2")]
    I64(i64),
    /// Little-endian, 16 bytes.
    #[prost(bytes, tag = "3")]
    I128(Vec<u8>),
    #[prost(double, tag = "4")]
    F64(f64),
    #[prost(bytes, tag = "5")]
    Bytes(Vec<u8>),
}

fn scalar_to_message(scalar: &Scalar) -> Option<ScalarMessage> {
    let kind = match scalar {
        Scalar::Null => return None,
        Scalar::Bool(v) => ScalarKind::Bool(*v),
        Scalar::I64(v) => ScalarKind::I64(*v),
        Scalar::I128(v) => ScalarKind::I128(v.to_le_bytes().to_vec()),
        Scalar::F64(v) => ScalarKind::F64(*v),
        Scalar::Bytes(v) => ScalarKind::Bytes(v.clone()),
    };
    Some(ScalarMessage { kind: Some(kind) })
}

fn scalar_from_message(message: Option<ScalarMessage>) -> Result<Scalar> {
    Ok(match message.and_then(|message| message.kind) {
        None => Scalar::Null,
        Some(ScalarKind::Bool(v)) => Scalar::Bool(v),
        Some(ScalarKind::I64(v)) => Scalar::I64(v),
        Some(ScalarKind::I128(v)) => {
            let bytes: [u8; 16] = v
                .try_into()
                .map_err(|v: Vec<u8>| SegmentError::corrupt("segment footer", format!("i128 of {} bytes", v.len())))?;
            Scalar::I128(i128::from_le_bytes(bytes))
        }
        Some(ScalarKind::F64(v)) => Scalar::F64(v),
        Some(ScalarKind::Bytes(v)) => Scalar::Bytes(v),
    })
}

/// The protobuf bytes of a footer.
pub(crate) fn encode_footer(footer: &SegmentFooter) -> Vec<u8> {
    let fields = footer.schema.fields().iter().map(|field| FieldMessage {
        name: field.name.clone(),
        data_type: field.data_type.to_string(),
        nullable: field.nullable,
    });
    let chunk = |chunk: &ChunkMeta| ChunkMessage {
        offset: chunk.offset,
        length: chunk.length,
        crc32c: chunk.crc32c,
        encoding: chunk.encoding as u32,
        null_count: chunk.zone.null_count,
        has_nan: chunk.zone.has_nan,
        exact: chunk.zone.exact,
        min: scalar_to_message(&chunk.zone.min),
        max: scalar_to_message(&chunk.zone.max),
        membership: chunk.membership.map(|filter| MembershipMessage {
            offset: filter.offset,
            length: filter.length,
            crc32c: filter.crc32c,
            values: filter.values,
        }),
    };
    let row_groups = footer.row_groups.iter().map(|group| RowGroupMessage {
        rows: group.rows,
        first_rowid: group.first_rowid,
        columns: group.columns.iter().map(chunk).collect(),
    });
    FooterMessage {
        volume_uuid: footer.volume_uuid.to_vec(),
        table_id: footer.table_id,
        segment_id: footer.segment_id,
        shard: footer.shard,
        load_id: footer.load_id.clone(),
        fields: fields.collect(),
        row_groups: row_groups.collect(),
    }
    .encode_to_vec()
}

fn decode_footer(bytes: &[u8], trailer: &Trailer) -> Result<SegmentFooter> {
    let corrupt = |detail: String| SegmentError::corrupt("segment footer", detail);
    let message = FooterMessage::decode(bytes).map_err(|error| corrupt(error.to_string()))?;
    let volume_uuid: [u8; 16] =
        message.volume_uuid.try_into().map_err(|v: Vec<u8>| corrupt(format!("volume uuid of {} bytes", v.len())))?;
    let fields = message.fields.into_iter().map(|field| {
        let data_type = field.data_type.parse().map_err(|error| corrupt(format!("{error}")))?;
        Ok(Field::new(field.name, data_type, field.nullable))
    });
    let schema = Schema::new(fields.collect::<Result<Vec<_>>>()?).map_err(|error| corrupt(error.to_string()))?;
    if message.row_groups.len() > ROW_GROUPS_MAX {
        return Err(corrupt(format!("{} row groups", message.row_groups.len())));
    }
    let mut row_groups = Vec::with_capacity(message.row_groups.len());
    for group in message.row_groups {
        if group.rows == 0 || group.rows as usize > ROW_GROUP_ROWS_MAX {
            return Err(corrupt(format!("a row group of {} rows", group.rows)));
        }
        if group.columns.len() != schema.len() + 1 {
            return Err(corrupt(format!("{} chunks for {} columns", group.columns.len(), schema.len())));
        }
        let rows = group.rows;
        let columns = group.columns.into_iter().map(|chunk| decode_chunk_meta(chunk, rows, trailer));
        row_groups.push(RowGroupMeta {
            rows,
            first_rowid: group.first_rowid,
            columns: columns.collect::<Result<Vec<_>>>()?,
        });
    }
    let zones = merge_zones(schema.len() + 1, &row_groups);
    Ok(SegmentFooter {
        volume_uuid,
        table_id: message.table_id,
        segment_id: message.segment_id,
        shard: message.shard,
        load_id: message.load_id,
        length: trailer.segment_length,
        schema,
        row_groups,
        zones,
    })
}

fn decode_chunk_meta(chunk: ChunkMessage, rows: u32, trailer: &Trailer) -> Result<ChunkMeta> {
    let corrupt = |detail: String| SegmentError::corrupt("segment footer", detail);
    let encoding =
        Encoding::from_number(chunk.encoding).ok_or_else(|| corrupt(format!("encoding {}", chunk.encoding)))?;
    let inside = |offset: u64, length: u32| {
        offset >= PAGE_BYTES as u64
            && offset.is_multiple_of(PAGE_BYTES as u64)
            && offset
                .checked_add(u64::from(length).next_multiple_of(PAGE_BYTES as u64))
                .is_some_and(|end| end <= trailer.footer_offset)
    };
    if !inside(chunk.offset, chunk.length) || chunk.null_count > rows {
        return Err(corrupt(format!(
            "a chunk at {} of {} bytes with {} nulls",
            chunk.offset, chunk.length, chunk.null_count
        )));
    }
    if let Some(filter) = &chunk.membership
        && (!inside(filter.offset, filter.length) || filter.length > FILTER_BYTES_MAX)
    {
        return Err(corrupt(format!("a membership filter at {} of {} bytes", filter.offset, filter.length)));
    }
    Ok(ChunkMeta {
        offset: chunk.offset,
        length: chunk.length,
        crc32c: chunk.crc32c,
        encoding,
        zone: ZoneMap {
            min: scalar_from_message(chunk.min)?,
            max: scalar_from_message(chunk.max)?,
            null_count: chunk.null_count,
            rows,
            has_nan: chunk.has_nan,
            exact: chunk.exact,
        },
        membership: chunk.membership.map(|filter| MembershipMeta {
            offset: filter.offset,
            length: filter.length,
            crc32c: filter.crc32c,
            values: filter.values,
        }),
    })
}

/// The zones of a whole segment.
pub(crate) fn merge_zones(columns: usize, row_groups: &[RowGroupMeta]) -> Vec<ZoneMap> {
    let mut zones = vec![ZoneMap::unknown(0, 0); columns];
    for group in row_groups {
        for (zone, chunk) in zones.iter_mut().zip(&group.columns) {
            zone.merge(&chunk.zone);
        }
    }
    zones
}
