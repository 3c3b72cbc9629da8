//! Segments: how a table's rows are kept on the volume.
//!
//! Owns the chunk encodings, the SIMD kernels that decode and compare encoded blocks, zone maps, membership filters, the ordering of
//! rows before they are encoded, checksums and the segment file format. Called by the engine (chunks, predicates, selections) and
//! by the cell's store (row group encoding, segment building, footers).
//!
//! Invariants
//! - Pure: bytes in, bytes out. No I/O, no clock, no threads.
//! - Nothing here panics or allocates without bound on bytes from a drive, whatever they hold; the
//!   worst that corrupt bytes with a right checksum can do is a [`SegmentError`] or wrong values.
//! - Every SIMD level gives the same bits.
//!
//! Cost sketch: 60 M values of 12 bits are 90 MB; unpack and compare at 0.1 ns a row takes 6 ms.

#[cfg(target_endian = "big")]
compile_error!("segments are read in place and are little-endian");

mod chunk;
mod encode;
mod encoding;
mod error;
mod footer;
mod kernels;
mod membership;
mod order;
mod predicate;
mod segment;
mod selection;
mod simd;
mod zone;

pub use chunk::{Chunk, DictionaryView};
pub use encode::{EncodedChunk, EncodedRowGroup, RowIds, encode_chunk, encode_row_group};
pub use encoding::text::prefix;
pub use error::{Result, SegmentError};
pub use footer::{
    ChunkMeta, Encoding, PartMeta, RowGroupMeta, SegmentFooter, TRAILER_BLOCK_BYTES, Trailer, read_footer, read_trailer,
};
pub use kernels::{equal_mask, order_key, value_of_key};
pub use membership::{MembershipFilter, MembershipMeta, hash_bytes, hash_i64, hash_i128, membership_number};
pub use order::{OrderedRun, RowOrder};
pub use predicate::{BlockMatch, BytesTest, ChunkPredicate, CompiledPredicate};
pub use segment::{FinishedSegment, SegmentBuilder, SegmentHeader, SegmentIdentity, verify_chunk, verify_membership};
pub use selection::{Rows, Selection, all_rows};
pub use simd::SimdLevel;
pub use zone::{ZONE_BYTES_MAX, ZoneMap};

/// Rows of a block: the unit of decoding, of selections and of fine zone maps.
pub const BLOCK_ROWS: usize = 1024;
/// Most rows of a row group.
pub const ROW_GROUP_ROWS_MAX: usize = 131_072;
/// A row group is closed once its raw data reaches this many bytes.
pub const ROW_GROUP_BYTES_TARGET: usize = 64 << 20;
/// Alignment of everything on a volume, in bytes.
pub const PAGE_BYTES: usize = 4096;
