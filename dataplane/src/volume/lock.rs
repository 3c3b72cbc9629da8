//! Who may use a volume and a metadata folder: one cell at a time.
//!
//! A block device is opened with `O_EXCL` (which the kernel refuses while another such open or a mount exists), a
//! file and a folder are locked with `flock`. The lock lasts as long as the value.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::device::Medium;
use crate::store::error::{Result, StoreError};

/// The exclusive use of a volume.
#[derive(Debug)]
pub struct VolumeLock {
    _file: File,
}

impl VolumeLock {
    /// Locks an existing file or block device.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another process has it, [`StoreError::File`] when it can't be opened.
    pub fn acquire(path: &Path) -> Result<Self> {
        Self::lock(path, false)
    }

    /// Locks a file or block device, making an empty file when there is none.
    ///
    /// # Errors
    /// As [`VolumeLock::acquire`].
    pub fn acquire_or_create(path: &Path) -> Result<Self> {
        Self::lock(path, true)
    }

    fn lock(path: &Path, create: bool) -> Result<Self> {
        let is_block_device = Medium::of(path).is_ok_and(|medium| medium == Medium::BlockDevice);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create && !is_block_device);
        if is_block_device {
            options.custom_flags(libc::O_EXCL);
        }
        let file = options.open(path).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => StoreError::InUse { path: path.to_path_buf() },
            _ => StoreError::File { path: path.to_path_buf(), operation: "open", reason: error.to_string() },
        })?;
        if !is_block_device {
            flock(&file, path)?;
        }
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
