//! [`UringDevice`]: a file or block device on one core's [`Ring`], with O_DIRECT, or an NVMe namespace with passthrough.
//!
//! Owns the descriptor and its slot in the ring's file table. Keeps the invariants of [`super::Device`]. A core opens
//! its own; a volume has one per core, all of the same file.
//!
//! Reads and writes longer than the device's largest request (`max_sectors_kb`, at most 1 MiB) are split and complete
//! as one: some kernels hang on longer ones, and all of them split anyway. For passthrough nobody else would
//! ([`Namespace::transfer_bytes_max`]).

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
    nvme::Namespace,
    requests::{Buffer, Failure, Operation, Target},
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
    target: Target,
    file: File,
    size_bytes: u64,
}

impl UringDevice {
    /// Opens an existing file, block device or NVMe namespace for reading and writing; the first two with O_DIRECT. A file
    /// system without O_DIRECT (some tmpfs, for tests) gets buffered I/O and a warning.
    ///
    /// # Errors
    /// [`DeviceError::Io`] with operation `open`, [`DeviceError::Ring`], those of [`Namespace::open`].
    pub fn open(path: &Path, ring: &Ring) -> Result<Self> {
        let fail = |error: std::io::Error| DeviceError::of(path, "open", 0, 0, &error);
        let medium = Medium::of(path).map_err(fail)?;
        let (file, size_bytes, namespace, piece_bytes_max) = match medium {
            Medium::NvmeNamespace => {
                let opened = Namespace::open(path)?;
                let (size_bytes, piece_bytes_max) = (opened.size_bytes(), opened.transfer_bytes_max());
                (opened.device, size_bytes, Some(opened.addressing), piece_bytes_max)
            }
            Medium::File | Medium::BlockDevice => {
                let mut file = open_direct(path).map_err(fail)?;
                let size_bytes = file.seek(SeekFrom::End(0)).map_err(fail)?;
                let metadata = file.metadata().map_err(fail)?;
                let device = if medium == Medium::File { metadata.dev() } else { metadata.rdev() };
                (file, size_bytes, None, piece_bytes_max(device))
            }
        };
        let slot = ring
            .register_file(file.as_fd())
            .map_err(|error| DeviceError::Ring { path: path.to_owned(), reason: error.to_string() })?;
        Ok(UringDevice(Rc::new(Opened {
            path: path.to_owned(),
            ring: ring.clone(),
            target: Target { slot, namespace, piece_bytes_max },
            file,
            size_bytes: size_bytes / BLOCK_BYTES as u64 * BLOCK_BYTES as u64,
        })))
    }

    /// The ring that it is on.
    pub fn ring(&self) -> &Ring {
        &self.0.ring
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
        match opened.ring.start(Operation::Read, opened.target, offset, Buffer::Arena(buffer)).await {
            Ok(Buffer::Arena(buffer)) => Ok(buffer),
            Ok(_) => Err(DeviceError::Ring {
                path: opened.path.clone(),
                reason: "a read came back without its buffer".to_owned(),
            }),
            Err(failure) => Err(self.error("read", offset, length, failure)),
        }
    }

    #[cfg(test)]
    pub(super) fn target(&self) -> Target {
        self.0.target
    }

    pub(super) fn error(&self, operation: &'static str, offset: u64, length: usize, failure: Failure) -> DeviceError {
        let path = self.0.path.clone();
        match failure {
            // A namespace of several paths says EINVAL when there is none left, others EIO until their queue is gone.
            Failure::Errno { .. } if self.0.target.namespace.is_some() && !path.exists() => {
                DeviceError::Gone { path, operation }
            }
            Failure::Errno { errno, offset, length } => DeviceError::of_errno(&path, operation, offset, length, errno),
            Failure::Status { status, offset, length } => {
                DeviceError::command(&path, operation, offset, length, status)
            }
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
            .start(Operation::Write, opened.target, offset, Buffer::Heap(data))
            .await
            .map(drop)
            .map_err(|failure| self.error("write", offset, length, failure))
    }

    async fn flush(&self) -> Result<()> {
        let opened = &*self.0;
        opened
            .ring
            .start(Operation::Flush, opened.target, 0, Buffer::None)
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
        self.ring.unregister_file(self.target.slot);
    }
}

impl std::fmt::Debug for UringDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UringDevice({}, {} bytes, fd {:?})", self.0.path.display(), self.0.size_bytes, self.0.file.as_fd())
    }
}

fn open_direct(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    match options.clone().custom_flags(libc::O_DIRECT).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            tracing::warn!(path = %path.display(), "the file system has no O_DIRECT: I/O is buffered, for tests only");
            options.open(path)
        }
        opened => opened,
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
