//! [`UringDevice`]: a file or block device on one core's [`Ring`], with O_DIRECT.
//!
//! Owns the descriptor and its slot in the ring's file table. Keeps the invariants of [`super::Device`]. A core opens
//! its own; a volume has one per core, all of the same file.
//!
//! Reads and writes longer than the device's largest request (`max_sectors_kb`, at most 1 MiB) are split and complete
//! as one: some kernels hang on longer ones, and all of them split anyway.

use std::{
    fs::{File, OpenOptions},
    io::{Seek, SeekFrom},
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    rc::Rc,
};

use bytes::Bytes;

use super::{
    AlignedBuf, BLOCK_BYTES, Device, DeviceError, Medium, PIECE_BYTES_MAX, Result,
    file::{check_aligned, check_inside},
    requests::{Buffer, Failure, Operation},
    ring::Ring,
};
use crate::arena::ArenaBuf;

/// Pieces when the device does not say.
const PIECE_BYTES_DEFAULT: usize = 512 << 10;

/// A device on this core's ring. Cloning shares it.
#[derive(Clone)]
pub struct UringDevice(Rc<Opened>);

struct Opened {
    path: PathBuf,
    ring: Ring,
    slot: u32,
    file: File,
    size_bytes: u64,
    piece_bytes_max: usize,
}

impl UringDevice {
    /// Opens an existing file or block device for reading and writing, with O_DIRECT. A file system without O_DIRECT
    /// (some tmpfs, for tests) gets buffered I/O and a warning.
    ///
    /// # Errors
    /// [`DeviceError::Io`] with operation `open`, [`DeviceError::Ring`].
    pub fn open(path: &Path, ring: &Ring) -> Result<Self> {
        let fail = |error: std::io::Error| DeviceError::of(path, "open", 0, 0, &error);
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let mut file = match options.clone().custom_flags(libc::O_DIRECT).open(path) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                tracing::warn!(path = %path.display(), "the file system has no O_DIRECT: I/O is buffered, for tests only");
                options.open(path)
            }
            opened => opened,
        }
        .map_err(fail)?;
        let size_bytes = file.seek(SeekFrom::End(0)).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        let device = match Medium::from(&metadata) {
            Medium::File => metadata.dev(),
            Medium::BlockDevice | Medium::NvmeNamespace => metadata.rdev(),
        };
        let slot = ring
            .register_file(file.as_fd())
            .map_err(|error| DeviceError::Ring { path: path.to_owned(), reason: error.to_string() })?;
        Ok(UringDevice(Rc::new(Opened {
            path: path.to_owned(),
            ring: ring.clone(),
            slot,
            file,
            size_bytes: size_bytes / BLOCK_BYTES as u64 * BLOCK_BYTES as u64,
            piece_bytes_max: piece_bytes_max(device),
        })))
    }

    /// Reads `length` bytes from `offset` into a run of the core's arena.
    ///
    /// # Errors
    /// Those of [`Device::read`].
    pub async fn read_into_arena(&self, offset: u64, length: usize) -> Result<ArenaBuf> {
        let opened = &*self.0;
        check_aligned(&opened.path, "read", offset, length)?;
        check_inside(&opened.path, offset, length, opened.size_bytes)?;
        let arena = opened.ring.arena();
        let Some(buffer) = arena.allocate(length) else {
            return Err(DeviceError::ArenaFull {
                length: length as u64,
                in_use: arena.bytes_in_use() as u64,
                limit: arena.bytes() as u64,
            });
        };
        if length == 0 {
            return Ok(buffer);
        }
        let started =
            opened.ring.start(Operation::Read, opened.slot, offset, Buffer::Arena(buffer), opened.piece_bytes_max);
        match started.await {
            Ok(Buffer::Arena(buffer)) => Ok(buffer),
            Ok(_) => Err(DeviceError::Ring {
                path: opened.path.clone(),
                reason: "a read came back without its buffer".to_owned(),
            }),
            Err(failure) => Err(self.error("read", offset, length, failure)),
        }
    }

    fn error(&self, operation: &'static str, offset: u64, length: usize, failure: Failure) -> DeviceError {
        let path = self.0.path.clone();
        match failure {
            Failure::Errno { errno, offset, length } => DeviceError::Io { path, operation, offset, length, errno },
            Failure::Short { got } => DeviceError::Short { path, offset, length: length as u64, got },
        }
    }
}

impl Device for UringDevice {
    async fn read(&self, offset: u64, length: usize) -> Result<Bytes> {
        let buffer = self.read_into_arena(offset, length).await?;
        Ok(buffer.into_bytes().slice(..length))
    }

    async fn read_parts(&self, offset: u64, lengths: &[usize]) -> Result<Vec<Bytes>> {
        let mut buffer = self.read_into_arena(offset, lengths.iter().sum()).await?;
        let mut parts = Vec::with_capacity(lengths.len());
        for (index, length) in lengths.iter().enumerate() {
            if *length == 0 || !length.is_multiple_of(BLOCK_BYTES) {
                return check_aligned(&self.0.path, "read", offset, length | 1).map(|()| parts);
            }
            if index + 1 == lengths.len() {
                parts.push(buffer.into_bytes());
                break;
            }
            let rest = buffer.split_off(*length);
            parts.push(std::mem::replace(&mut buffer, rest).into_bytes());
        }
        Ok(parts)
    }

    async fn write(&self, offset: u64, data: AlignedBuf) -> Result<()> {
        let opened = &*self.0;
        let length = data.len();
        check_aligned(&opened.path, "write", offset, length)?;
        check_inside(&opened.path, offset, length, opened.size_bytes)?;
        opened
            .ring
            .start(Operation::Write, opened.slot, offset, Buffer::Heap(data), opened.piece_bytes_max)
            .await
            .map(drop)
            .map_err(|failure| self.error("write", offset, length, failure))
    }

    async fn flush(&self) -> Result<()> {
        let opened = &*self.0;
        opened
            .ring
            .start(Operation::Flush, opened.slot, 0, Buffer::None, opened.piece_bytes_max)
            .await
            .map(drop)
            .map_err(|failure| self.error("flush", 0, 0, failure))
    }

    fn size_bytes(&self) -> u64 {
        self.0.size_bytes
    }

    fn path(&self) -> &Path {
        &self.0.path
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.ring.unregister_file(self.slot);
    }
}

impl std::fmt::Debug for UringDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UringDevice({}, {} bytes, fd {:?})", self.0.path.display(), self.0.size_bytes, self.0.file.as_fd())
    }
}

/// The largest request of the block device under a file, from sysfs; a partition's is its disk's.
fn piece_bytes_max(device: u64) -> usize {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let queue = |parent: &str| format!("/sys/dev/block/{major}:{minor}/{parent}queue/max_sectors_kb");
    let read = std::fs::read_to_string(queue("")).or_else(|_| std::fs::read_to_string(queue("../")));
    read.ok()
        .and_then(|text| text.trim().parse::<usize>().ok())
        .map_or(PIECE_BYTES_DEFAULT, |kibibytes| kibibytes.saturating_mul(1024).clamp(64 << 10, PIECE_BYTES_MAX))
}
