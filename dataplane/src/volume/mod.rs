//! What lies on a volume below the tables: superblocks, extents, object headers, and who may use it.
//!
//! Owns the layout of a volume in 4 KiB units: block 0 and the last block hold the two superblocks; all between
//! is extents, each holding one object (segment, commit object, tombstone) that begins with a checksummed header.
//!
//! Invariants
//! - Formatting never touches a formatted volume unless forced.
//! - An object header belongs to a volume only if it carries the volume's UUID *and* its secret, so that no bytes
//!   a client stores can pass for a header.
//! - Which extents are in use is the manifest's knowledge, not the volume's: see [`crate::manifest`].
//!
//! Called by the store and the command line.

pub mod allocator;
pub mod deletion;
pub mod lock;
pub mod object;
pub mod superblock;

pub use allocator::{Extent, ExtentAllocator};
pub use lock::{FolderLock, VolumeLock};
pub use object::{ObjectHeader, ObjectKind};
pub use superblock::{Superblock, format_file, open};

/// The unit of allocation, in bytes.
pub const EXTENT_UNIT_BYTES: u64 = 4096;

/// The format version this build writes, and the newest it reads.
pub const FORMAT_VERSION: u32 = 1;

/// The smallest volume that can be formatted, in bytes.
pub const VOLUME_BYTES_MIN: u64 = 1 << 20;
/// Bytes at either end that must be zero for a file or device to be formatted without `--force`.
pub(crate) const BLANK_BYTES: u64 = 1 << 20;
