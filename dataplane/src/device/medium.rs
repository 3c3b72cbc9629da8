//! What a path of a volume names. Decided here once; called by whoever opens, locks, formats or scans one.

use std::{fs::Metadata, io, os::unix::fs::FileTypeExt, path::Path};

/// What lies under a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// A file in a file system: has the size that it is given, and may have holes.
    File,
    /// A block device.
    BlockDevice,
    /// A character device, which can only be that of an NVMe namespace: see [`super::nvme`].
    NvmeNamespace,
}

impl Medium {
    /// What `path` names, symbolic links followed.
    ///
    /// # Errors
    /// Those of stat(2).
    pub fn of(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|metadata| Self::from(&metadata))
    }
}

impl From<&Metadata> for Medium {
    fn from(metadata: &Metadata) -> Self {
        match metadata.file_type() {
            kind if kind.is_block_device() => Medium::BlockDevice,
            kind if kind.is_char_device() => Medium::NvmeNamespace,
            _ => Medium::File,
        }
    }
}
