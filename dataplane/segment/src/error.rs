//! What can be wrong with bytes that claim to be a segment, or with rows that should become one.
//!
//! Owns [`SegmentError`] and its translation into the protocol's errors. Called by everything here.

use hidb::error::{Error, ErrorCode};

/// `std::result::Result` with [`SegmentError`].
pub type Result<T, E = SegmentError> = std::result::Result<T, E>;

/// A failure to encode, open or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// The bytes break the format's rules.
    #[error("corrupt {what}: {detail}")]
    Corrupt {
        /// The part: `chunk header`, `footer`, `block 7`...
        what: &'static str,
        /// What was found against what was expected.
        detail: String,
    },
    /// The bytes are not what was written.
    #[error("checksum mismatch in {what}: stored {stored:#010x}, computed {computed:#010x}")]
    Checksum {
        /// The part.
        what: &'static str,
        /// The checksum that was recorded.
        stored: u32,
        /// The checksum of the bytes read.
        computed: u32,
    },
    /// A format version this build does not read.
    #[error("segment format version {0}: this build reads version {supported}", supported = crate::segment::FORMAT_VERSION)]
    UnsupportedVersion(u32),
    /// The tail that was passed does not reach back to the start of the footer.
    #[error("the footer starts {needed} bytes before the end of the segment but only {given} bytes were given")]
    TailTooShort {
        /// Bytes from the start of the footer to the end of the segment.
        needed: u64,
        /// Bytes that were given.
        given: u64,
    },
    /// Arrays that do not fit the schema.
    #[error("can't encode column {column:?}: {detail}")]
    InvalidInput {
        /// The column's name, or a description of what was passed.
        column: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A method of another lane was called, or a predicate of another lane applied.
    #[error("{operation} does not apply to a chunk of type {data_type}")]
    WrongLane {
        /// What was asked.
        operation: &'static str,
        /// The chunk's type.
        data_type: String,
    },
    /// The caller's buffer is too small.
    #[error("output buffer too small: {needed} bytes needed, {given} given")]
    BufferTooSmall {
        /// Bytes (or elements) needed.
        needed: usize,
        /// Bytes (or elements) given.
        given: usize,
    },
}

impl SegmentError {
    pub(crate) fn corrupt(what: &'static str, detail: impl Into<String>) -> Self {
        SegmentError::Corrupt { what, detail: detail.into() }
    }
}

impl From<SegmentError> for Error {
    fn from(error: SegmentError) -> Self {
        let code = match &error {
            SegmentError::Corrupt { .. } | SegmentError::Checksum { .. } => ErrorCode::Corruption,
            SegmentError::UnsupportedVersion(_) => ErrorCode::UnsupportedVersion,
            SegmentError::InvalidInput { .. } => ErrorCode::InvalidValue,
            SegmentError::TailTooShort { .. }
            | SegmentError::WrongLane { .. }
            | SegmentError::BufferTooSmall { .. } => ErrorCode::Internal,
        };
        Error::new(code, error.to_string())
    }
}
