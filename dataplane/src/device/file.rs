//! A device on a plain file with blocking calls: for tools that run before there are cores (`format`, `rebuild`)
//! and for tests. Owns the descriptor; keeps the invariants of [`super::Device`]. Never used on a core: it blocks.

use std::{
    fs::{File, OpenOptions},
    io::{Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{AlignedBuf, BLOCK_BYTES, Device, DeviceError, Result};

/// A file or block device read and written with blocking, buffered calls.
#[derive(Debug)]
pub struct FileDevice {
    path: PathBuf,
    file: File,
    size_bytes: u64,
}

impl FileDevice {
    /// Opens an existing file or block device for reading and writing.
    ///
    /// # Errors
    /// [`DeviceError::Io`] with operation `open`.
    pub fn open(path: &Path) -> Result<Self> {
        let open = || -> std::io::Result<(File, u64)> {
            let mut file = OpenOptions::new().read(true).write(true).open(path)?;
            let size_bytes = file.seek(SeekFrom::End(0))?;
            Ok((file, size_bytes))
        };
        let (file, size_bytes) = open().map_err(|error| io_error(path, "open", 0, 0, &error))?;
        Ok(FileDevice { path: path.to_owned(), file, size_bytes: size_bytes / BLOCK_BYTES as u64 * BLOCK_BYTES as u64 })
    }
}

impl Device for FileDevice {
    async fn read(&self, offset: u64, length: usize) -> Result<Bytes> {
        check_aligned(&self.path, "read", offset, length)?;
        if offset.checked_add(length as u64).is_none_or(|end| end > self.size_bytes) {
            let got = self.size_bytes.saturating_sub(offset).min(length as u64);
            return Err(DeviceError::Short { path: self.path.clone(), offset, length: length as u64, got });
        }
        let mut buffer = AlignedBuf::zeroed(length);
        self.file
            .read_exact_at(&mut buffer[..length], offset)
            .map_err(|error| io_error(&self.path, "read", offset, length as u64, &error))?;
        Ok(Bytes::from_owner(buffer).slice(..length))
    }

    async fn write(&self, offset: u64, data: AlignedBuf) -> Result<()> {
        check_aligned(&self.path, "write", offset, data.len())?;
        self.file
            .write_all_at(&data, offset)
            .map_err(|error| io_error(&self.path, "write", offset, data.len() as u64, &error))
    }

    async fn flush(&self) -> Result<()> {
        self.file.sync_data().map_err(|error| io_error(&self.path, "flush", 0, 0, &error))
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// An I/O error of the standard library as ours.
pub(super) fn io_error(
    path: &Path,
    operation: &'static str,
    offset: u64,
    length: u64,
    error: &std::io::Error,
) -> DeviceError {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    DeviceError::Io { path: path.to_owned(), operation, offset, length, errno }
}

/// Refuses ranges that are not whole blocks.
pub(super) fn check_aligned(path: &Path, operation: &'static str, offset: u64, length: usize) -> Result<()> {
    if offset.is_multiple_of(BLOCK_BYTES as u64) && length.is_multiple_of(BLOCK_BYTES) {
        return Ok(());
    }
    Err(DeviceError::Unaligned { path: path.to_owned(), operation, offset, length: length as u64 })
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
