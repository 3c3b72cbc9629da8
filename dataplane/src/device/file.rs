//! A device with blocking calls: for tools that run before there are cores (`format`, `rebuild`) and for tests.
//! Owns the descriptor; keeps the invariants of [`super::Device`]. Never used on a core: it blocks.

use std::{
    fs::File,
    io::{Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{AlignedBuf, BLOCK_BYTES, Device, DeviceError, Medium, Result, nvme::Namespace};

/// A file or block device read and written with blocking, buffered calls, or an NVMe namespace with blocking commands.
#[derive(Debug)]
pub struct FileDevice {
    path: PathBuf,
    medium: Medium,
    opened: Opened,
    /// Bytes that it has; may end inside a block.
    end: u64,
}

#[derive(Debug)]
enum Opened {
    File(File),
    Namespace(Namespace),
}

impl FileDevice {
    /// Opens an existing file, block device or NVMe namespace for reading and writing.
    ///
    /// # Errors
    /// [`DeviceError::Io`] with operation `open`, those of [`Namespace::open`].
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |error: std::io::Error| DeviceError::of(path, "open", 0, 0, &error);
        let medium = Medium::of(path).map_err(fail)?;
        let (opened, end) = match medium {
            Medium::NvmeNamespace => {
                let namespace = Namespace::open(path)?;
                let end = namespace.size_bytes();
                (Opened::Namespace(namespace), end)
            }
            Medium::File | Medium::BlockDevice => {
                let mut file = File::options().read(true).write(true).open(path).map_err(fail)?;
                let end = file.seek(SeekFrom::End(0)).map_err(fail)?;
                (Opened::File(file), end)
            }
        };
        Ok(FileDevice { path: path.to_owned(), medium, opened, end })
    }

    /// What it is.
    pub fn medium(&self) -> Medium {
        self.medium
    }

    /// Its size in bytes, which may end inside a block.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Makes a file one hole of `bytes`; whatever it held is lost. For [`Medium::File`] only.
    ///
    /// # Errors
    /// [`DeviceError::Io`].
    pub fn make_hole(&mut self, bytes: u64) -> Result<()> {
        let resized = match &self.opened {
            // Cutting the file to nothing first drops the extents of whatever it held before.
            Opened::File(file) => file.set_len(0).and_then(|()| file.set_len(bytes)),
            Opened::Namespace(_) => Err(std::io::Error::from_raw_os_error(libc::EINVAL)),
        };
        resized.map_err(|error| DeviceError::of(&self.path, "resize", 0, bytes, &error))?;
        self.end = bytes;
        Ok(())
    }

    /// Reads bytes from any offset.
    ///
    /// # Errors
    /// [`DeviceError::Io`], [`DeviceError::Command`], [`DeviceError::Gone`].
    pub fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let length = bytes.len() as u64;
        match &self.opened {
            Opened::File(file) => file
                .read_exact_at(bytes, offset)
                .map_err(|error| DeviceError::of(&self.path, "read", offset, length, &error)),
            Opened::Namespace(namespace) => namespace.read_exact_at(bytes, offset),
        }
    }

    /// Writes whole blocks.
    ///
    /// # Errors
    /// Those of [`FileDevice::read_exact_at`], [`DeviceError::Unaligned`].
    pub fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        check_aligned(&self.path, "write", offset, bytes.len())?;
        match &self.opened {
            Opened::File(file) => file
                .write_all_at(bytes, offset)
                .map_err(|error| DeviceError::of(&self.path, "write", offset, bytes.len() as u64, &error)),
            Opened::Namespace(namespace) => namespace.write_all_at(bytes, offset),
        }
    }

    /// Makes what was written durable, and the size of a file.
    ///
    /// # Errors
    /// Those of [`FileDevice::read_exact_at`].
    pub fn sync(&self) -> Result<()> {
        match &self.opened {
            Opened::File(file) => file.sync_all().map_err(|error| DeviceError::of(&self.path, "flush", 0, 0, &error)),
            Opened::Namespace(namespace) => namespace.flush(),
        }
    }
}

impl Device for FileDevice {
    async fn read(&self, offset: u64, length: usize) -> Result<Bytes> {
        check_aligned(&self.path, "read", offset, length)?;
        check_inside(&self.path, offset, length, self.size_bytes())?;
        let mut buffer = AlignedBuf::zeroed(length);
        self.read_exact_at(&mut buffer[..length], offset)?;
        Ok(Bytes::from_owner(buffer).slice(..length))
    }

    async fn write(&self, offset: u64, data: AlignedBuf) -> Result<()> {
        self.write_all_at(&data, offset)
    }

    async fn flush(&self) -> Result<()> {
        self.sync()
    }

    fn size_bytes(&self) -> u64 {
        self.end / BLOCK_BYTES as u64 * BLOCK_BYTES as u64
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// Refuses ranges that are not whole blocks.
pub(super) fn check_aligned(path: &Path, operation: &'static str, offset: u64, length: usize) -> Result<()> {
    if offset.is_multiple_of(BLOCK_BYTES as u64) && length.is_multiple_of(BLOCK_BYTES) {
        return Ok(());
    }
    Err(DeviceError::Unaligned { path: path.to_owned(), operation, offset, length: length as u64 })
}

/// Refuses ranges that a device of `size_bytes` does not have.
pub(super) fn check_inside(path: &Path, offset: u64, length: usize, size_bytes: u64) -> Result<()> {
    if offset.checked_add(length as u64).is_some_and(|end| end <= size_bytes) {
        return Ok(());
    }
    let got = size_bytes.saturating_sub(offset).min(length as u64);
    Err(DeviceError::Short { path: path.to_owned(), offset, length: length as u64, got })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_was_written_and_names_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("volume");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let device = FileDevice::open(&path).unwrap();
        futures_lite::future::block_on(async {
            device.write(8192, AlignedBuf::from_slice(&[9; 100])).await.unwrap();
            device.flush().await.unwrap();
            let back = device.read(8192, 4096).await.unwrap();
            assert!(back[..100].iter().all(|b| *b == 9) && back[100..].iter().all(|b| *b == 0));
            assert!(matches!(device.read((1 << 20) - 4096, 8192).await, Err(DeviceError::Short { got: 4096, .. })));
            assert!(matches!(device.read(17, 4096).await, Err(DeviceError::Unaligned { .. })));
        });
        let missing = FileDevice::open(&folder.path().join("missing")).unwrap_err();
        assert!(matches!(missing, DeviceError::Io { operation: "open", errno: libc::ENOENT, .. }));
    }
}
