//! Block devices as the cell sees them: 4 KiB-aligned reads and writes and a flush, without a runtime.
//!
//! Owns the [`Device`] trait, its typed errors and [`AlignedBuf`]. Implementations: [`uring::UringDevice`] (one
//! io_uring per core, reads into the core's arena; O_DIRECT on files and block devices, [`nvme`] passthrough on NVMe
//! namespaces), [`file::FileDevice`] (blocking, for tools that run before there are cores), and the simulated device of
//! the crash tests. Called by the volume, the store and the block cache.
//!
//! Invariants:
//! - Offsets and lengths are multiples of [`BLOCK_BYTES`]; anything else is [`DeviceError::Unaligned`], not I/O.
//! - A read returns exactly the bytes asked for, or an error: never fewer.
//! - A write that returned is on the device only after a later [`Device::flush`] returned.
//! - Dropping a future in flight is safe: memory under I/O belongs to the device until the kernel is done.

pub mod file;
mod medium;
pub mod nvme;
mod requests;
pub mod ring;
#[cfg(test)]
#[path = "tests.rs"]
mod ring_tests;
mod slots;
pub mod uring;

use std::{
    future::Future,
    path::{Path, PathBuf},
    ptr::NonNull,
};

use bytes::Bytes;

pub use self::medium::Medium;

/// Alignment of every offset, length and buffer of a device.
pub const BLOCK_BYTES: usize = 4096;
/// The largest piece of a read or write, whatever the device says.
const PIECE_BYTES_MAX: usize = 1 << 20;

/// `std::result::Result` with [`DeviceError`].
pub type Result<T, E = DeviceError> = std::result::Result<T, E>;

/// What a device could not do, with the facts an operator needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The kernel answered an error.
    #[error("{operation} of {length} bytes at offset {offset} of {} failed: {}", path.display(), std::io::Error::from_raw_os_error(*errno))]
    Io {
        /// The device or file.
        path: PathBuf,
        /// `read`, `write`, `flush` or `open`.
        operation: &'static str,
        /// Byte offset on the device.
        offset: u64,
        /// Bytes asked for.
        length: u64,
        /// The errno.
        errno: i32,
    },
    /// The drive refused or failed a command of NVMe passthrough.
    #[error("{operation} of {length} bytes at offset {offset} of {} failed: {status}", path.display())]
    Command {
        /// The character device of the namespace.
        path: PathBuf,
        /// `read`, `write`, `flush` or `identify`.
        operation: &'static str,
        /// Byte offset on the device.
        offset: u64,
        /// Bytes asked for.
        length: u64,
        /// What the drive answered.
        status: nvme::Status,
    },
    /// There is no drive behind the open device any more.
    #[error("{operation} of {}: the drive is gone (removed, or given up by the kernel, whose log says why); once it is back, start the cell again", path.display())]
    Gone {
        /// The device.
        path: PathBuf,
        /// `read`, `write` or `flush`.
        operation: &'static str,
    },
    /// The path names something that can't hold a volume.
    #[error("{} can't be used as a volume: {reason}", path.display())]
    Unusable {
        /// The path.
        path: PathBuf,
        /// What it is.
        reason: String,
    },
    /// The device ended before the range did.
    #[error("{} ends at {got} of {length} bytes at offset {offset}: the volume was truncated", path.display())]
    Short {
        /// The device or file.
        path: PathBuf,
        /// Byte offset on the device.
        offset: u64,
        /// Bytes asked for.
        length: u64,
        /// Bytes that were there.
        got: u64,
    },
    /// Bytes read do not match their checksum.
    #[error("{what} at offset {offset}, {length} bytes, of {} is damaged: checksum {found:#010x}, expected {expected:#010x}", path.display())]
    Corruption {
        /// The device or file.
        path: PathBuf,
        /// What was read, for example `segment 7, row group 2, column 3 (l_shipdate)`.
        what: String,
        /// Byte offset on the device.
        offset: u64,
        /// Bytes read.
        length: u64,
        /// CRC32C that was recorded.
        expected: u32,
        /// CRC32C of the bytes read.
        found: u32,
    },
    /// A range that is not 4 KiB aligned: a defect of the caller.
    #[error("{operation} of {length} bytes at offset {offset} of {} is not 4 KiB aligned", path.display())]
    Unaligned {
        /// The device or file.
        path: PathBuf,
        /// `read` or `write`.
        operation: &'static str,
        /// Byte offset on the device.
        offset: u64,
        /// Bytes asked for.
        length: u64,
    },
    /// No memory for the buffer of a read.
    #[error(
        "no arena memory for a read of {length} bytes: {in_use} of {limit} bytes are in use; raise memory_bytes or lower cache_bytes"
    )]
    ArenaFull {
        /// Bytes asked for.
        length: u64,
        /// Bytes lent out.
        in_use: u64,
        /// The arena's size.
        limit: u64,
    },
    /// The ring could not be set up, or was shut down.
    #[error("the I/O ring of {} is not usable: {reason}", path.display())]
    Ring {
        /// The device or file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl DeviceError {
    /// An I/O error of the standard library as ours.
    pub(crate) fn of(path: &Path, operation: &'static str, offset: u64, length: u64, error: &std::io::Error) -> Self {
        Self::of_errno(path, operation, offset, length, error.raw_os_error().unwrap_or(libc::EIO))
    }

    /// The kernel's error number as ours.
    pub(crate) fn of_errno(path: &Path, operation: &'static str, offset: u64, length: u64, errno: i32) -> Self {
        match errno {
            libc::ENODEV | libc::ENXIO if operation != "open" => DeviceError::Gone { path: path.to_owned(), operation },
            _ => DeviceError::Io { path: path.to_owned(), operation, offset, length, errno },
        }
    }

    /// A drive's answer as ours.
    fn command(path: &Path, operation: &'static str, offset: u64, length: u64, status: nvme::Status) -> Self {
        DeviceError::Command { path: path.to_owned(), operation, offset, length, status }
    }
}

impl From<DeviceError> for hidb::Error {
    fn from(error: DeviceError) -> Self {
        let code = match &error {
            DeviceError::Io { .. }
            | DeviceError::Command { .. }
            | DeviceError::Gone { .. }
            | DeviceError::Unusable { .. }
            | DeviceError::Short { .. }
            | DeviceError::Ring { .. } => hidb::ErrorCode::Io,
            DeviceError::Corruption { .. } => hidb::ErrorCode::Corruption,
            DeviceError::Unaligned { .. } => hidb::ErrorCode::Internal,
            DeviceError::ArenaFull { .. } => hidb::ErrorCode::MemoryExceeded,
        };
        hidb::Error::new(code, error.to_string())
    }
}

/// A block device. Futures are not `Send`: a device belongs to the core that opened it.
pub trait Device: 'static {
    /// Exactly `length` bytes from `offset`. The bytes may be arena memory and may be dropped on any thread.
    ///
    /// # Errors
    /// [`DeviceError::Io`], [`DeviceError::Short`], [`DeviceError::Unaligned`], [`DeviceError::ArenaFull`].
    fn read(&self, offset: u64, length: usize) -> impl Future<Output = Result<Bytes>>;

    /// Adjacent ranges of these lengths from `offset` on, read as one, each kept alive by itself where the device
    /// can (by default they share one buffer).
    ///
    /// # Errors
    /// Those of [`Device::read`].
    fn read_parts(&self, offset: u64, lengths: &[usize]) -> impl Future<Output = Result<Vec<Bytes>>> {
        async move {
            let mut whole = self.read(offset, lengths.iter().sum()).await?;
            Ok(lengths.iter().map(|length| whole.split_to(*length)).collect())
        }
    }

    /// Writes all of `data` at `offset`. Durable only after [`Device::flush`].
    ///
    /// # Errors
    /// [`DeviceError::Io`], [`DeviceError::Unaligned`].
    fn write(&self, offset: u64, data: AlignedBuf) -> impl Future<Output = Result<()>>;

    /// Makes every write that returned before this call durable.
    ///
    /// # Errors
    /// [`DeviceError::Io`]. After a failed flush nothing is known about earlier writes: do not retry, rewrite.
    fn flush(&self) -> impl Future<Output = Result<()>>;

    /// Size of the device in bytes.
    fn size_bytes(&self) -> u64;

    /// Name of the device in errors.
    fn path(&self) -> &Path;
}

/// A zeroed heap buffer of a multiple of 4 KiB, 4 KiB aligned, so that it can go to a device as it is.
pub struct AlignedBuf {
    pointer: NonNull<u8>,
    length: usize,
}

// SAFETY: the buffer is plain bytes that this value alone owns.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access only reads.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// A zeroed buffer of at least `length` bytes, rounded up to 4 KiB (and at least one block).
    pub fn zeroed(length: usize) -> Self {
        let length = length.max(1).next_multiple_of(BLOCK_BYTES);
        let layout = Self::layout(length);
        // SAFETY: the layout has a nonzero size.
        let pointer = unsafe { std::alloc::alloc_zeroed(layout) };
        let Some(pointer) = NonNull::new(pointer) else { std::alloc::handle_alloc_error(layout) };
        AlignedBuf { pointer, length }
    }

    /// A copy of `bytes`, zero-padded to a multiple of 4 KiB.
    pub fn from_slice(bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(bytes.len());
        buffer[..bytes.len()].copy_from_slice(bytes);
        buffer
    }

    fn layout(length: usize) -> std::alloc::Layout {
        std::alloc::Layout::from_size_align(length, BLOCK_BYTES).expect("lengths of live buffers fit in isize")
    }
}

impl std::ops::Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: pointer and length are of one live, initialised allocation.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.length) }
    }
}

impl std::ops::DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.length) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `zeroed`, freed once.
        unsafe { std::alloc::dealloc(self.pointer.as_ptr(), Self::layout(self.length)) }
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_buffers_are_aligned_and_padded_with_zeroes() {
        let buffer = AlignedBuf::from_slice(&[7; 5000]);
        assert_eq!(buffer.len(), 8192);
        assert_eq!(buffer.as_ptr() as usize % BLOCK_BYTES, 0);
        assert!(buffer[..5000].iter().all(|b| *b == 7) && buffer[5000..].iter().all(|b| *b == 0));
    }
}
