//! Errors of volumes, manifest and store: what happened, to what, what to do next.

use std::path::PathBuf;

use hidb::ErrorCode;

use crate::device::DeviceError;

/// `std::result::Result` with [`StoreError`].
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// What a store could not do.
#[derive(Clone, Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each field is")]
pub enum StoreError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("can't {operation} {}: {reason}", path.display())]
    File { path: PathBuf, operation: &'static str, reason: String },
    #[error("the manifest in {} failed: {reason}", folder.display())]
    Manifest { folder: PathBuf, reason: String },
    #[error(
        "a change to the manifest failed and may or may not have happened: {reason}; restart the cell, which finds out"
    )]
    Undecided { reason: String },
    #[error("the manifest in {} is whole and belongs to this volume: rebuild is not needed; --force makes it again all the same", folder.display())]
    ManifestWhole { folder: PathBuf },
    #[error("{} is not a Heliostat volume: run `heliostat-cell format` first", path.display())]
    NotFormatted { path: PathBuf },
    #[error("{} is a Heliostat volume already: --force formats it again and loses what it holds", path.display())]
    AlreadyFormatted { path: PathBuf },
    #[error("{} holds something that is not a Heliostat volume: --force formats it and loses what it holds", path.display())]
    NotEmpty { path: PathBuf },
    #[error("{} has {bytes} bytes: a volume needs at least {min}", path.display())]
    VolumeTooSmall { path: PathBuf, bytes: u64, min: u64 },
    #[error("{what} has format version {found}, this build reads up to {supported}: use a newer heliostat-cell")]
    UnsupportedVersion { what: String, found: u32, supported: u32 },
    #[error("{} is truncated: the volume has {expected_bytes} bytes, the device {found_bytes}", path.display())]
    Truncated { path: PathBuf, expected_bytes: u64, found_bytes: u64 },
    #[error("{} is in use, by another process or a mount: stop the other heliostat-cell or unmount it first", path.display())]
    InUse { path: PathBuf },
    #[error("{} holds no manifest for volume {volume}: {reason}; if it is elsewhere, say so with --metadata; if it is lost, `heliostat-cell rebuild` makes it again from the volume, but not its users, which have to be added again", folder.display())]
    ManifestLost { folder: PathBuf, volume: String, reason: String },
    #[error(
        "volume {volume} is full: {wanted_bytes} bytes wanted, {free_bytes} free; drop tables or use a larger volume"
    )]
    VolumeFull { volume: String, wanted_bytes: u64, free_bytes: u64 },
    #[error("volume {volume}: {what} at offset {offset} is damaged: {reason}")]
    Corruption { volume: String, what: String, offset: u64, reason: String },
    #[error("there is no table {name:?}")]
    UnknownTable { name: String },
    #[error("there is a table {name:?} already: append to it, replace it, or drop it first")]
    TableExists { name: String },
    #[error(
        "the load's schema is not that of table {name:?} (hash {found:#018x}, the table's is {expected:#018x}): read the table's schema again"
    )]
    StaleSchema { name: String, expected: u64, found: u64 },
    #[error("there is no load {load}: it was never begun, or was swept after a long time without traffic")]
    UnknownLoad { load: String },
    #[error("load {load}: {reason}")]
    LoadConflict { load: String, reason: String },
    #[error(transparent)]
    Data(#[from] hidb::Error),
    #[error("internal: {0}")]
    Internal(String),
}

impl StoreError {
    /// The stable code of the error on the wire.
    pub fn code(&self) -> ErrorCode {
        match self {
            StoreError::Device(error) => hidb::Error::from(error.clone()).code,
            StoreError::File { .. }
            | StoreError::Manifest { .. }
            | StoreError::Undecided { .. }
            | StoreError::Truncated { .. } => ErrorCode::Io,
            StoreError::NotFormatted { .. } => ErrorCode::NotFormatted,
            StoreError::AlreadyFormatted { .. }
            | StoreError::NotEmpty { .. }
            | StoreError::ManifestWhole { .. }
            | StoreError::InUse { .. } => ErrorCode::VolumeInUse,
            StoreError::VolumeTooSmall { .. } => ErrorCode::VolumeFull,
            StoreError::UnsupportedVersion { .. } => ErrorCode::UnsupportedVersion,
            StoreError::ManifestLost { .. } => ErrorCode::ManifestLost,
            StoreError::VolumeFull { .. } => ErrorCode::VolumeFull,
            StoreError::Corruption { .. } => ErrorCode::Corruption,
            StoreError::UnknownTable { .. } => ErrorCode::UnknownTable,
            StoreError::TableExists { .. } => ErrorCode::TableExists,
            StoreError::StaleSchema { .. } => ErrorCode::StaleSchema,
            StoreError::UnknownLoad { .. } => ErrorCode::UnknownLoad,
            StoreError::LoadConflict { .. } => ErrorCode::LoadConflict,
            StoreError::Data(error) => error.code,
            StoreError::Internal(_) => ErrorCode::Internal,
        }
    }
}

impl From<StoreError> for hidb::Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Data(error) => error,
            other => hidb::Error::new(other.code(), other.to_string()),
        }
    }
}
