//! Who may use a volume and a metadata folder: one cell at a time.
//!
//! A block device is opened with `O_EXCL` (which the kernel refuses while another such open or a mount exists), and so is
//! the one of an NVMe namespace that is used through its character device: it is the same drive. A file and a folder are
//! locked with `flock`. The lock lasts as long as the value.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::device::{Medium, nvme};
use crate::store::error::{Result, StoreError};

/// The exclusive use of a volume.
#[derive(Debug)]
pub struct VolumeLock {
    _file: File,
}

impl VolumeLock {
    /// Locks an existing file, block device or NVMe namespace.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another process has it, [`StoreError::File`] when it can't be opened.
    pub fn acquire(path: &Path) -> Result<Self> {
        Self::lock(path, false)
    }

    /// Locks as [`VolumeLock::acquire`] does, making an empty file when there is nothing.
    ///
    /// # Errors
    /// As [`VolumeLock::acquire`].
    pub fn acquire_or_create(path: &Path) -> Result<Self> {
        Self::lock(path, true)
    }

    fn lock(path: &Path, create: bool) -> Result<Self> {
        let failed = |error: std::io::Error| match error.raw_os_error() {
            Some(libc::EBUSY) => StoreError::InUse { path: path.to_path_buf() },
            _ => StoreError::File { path: path.to_path_buf(), operation: "open", reason: error.to_string() },
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let exclusive = match Medium::of(path) {
            Ok(Medium::BlockDevice) => Some(path.to_path_buf()),
            Ok(Medium::NvmeNamespace) => nvme::block_device_of(path).map_err(failed)?,
            Ok(Medium::File) | Err(_) => None,
        };
        let file = match exclusive {
            Some(device) => options.custom_flags(libc::O_EXCL).open(device).map_err(failed)?,
            None => {
                let file = options.create(create).truncate(false).open(path).map_err(failed)?;
                flock(&file, path)?;
                file
            }
        };
        Ok(VolumeLock { _file: file })
    }
}

/// The exclusive use of a metadata folder.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Locks a folder, making it when there is none.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another process has it, [`StoreError::File`] when it can't be opened.
    pub fn acquire(folder: &Path) -> Result<Self> {
        let failed = |operation: &'static str| {
            move |error: std::io::Error| StoreError::File {
                path: folder.to_path_buf(),
                operation,
                reason: error.to_string(),
            }
        };
        std::fs::create_dir_all(folder).map_err(failed("create"))?;
        let path = folder.join("cell.lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(failed("open"))?;
        flock(&file, folder)?;
        Ok(FolderLock { _file: file })
    }
}

fn flock(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(std::fs::TryLockError::WouldBlock) => Err(StoreError::InUse { path: path.to_path_buf() }),
        Err(std::fs::TryLockError::Error(error)) => {
            Err(StoreError::File { path: path.to_path_buf(), operation: "lock", reason: error.to_string() })
        }
    }
}
