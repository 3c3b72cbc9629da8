//! What can be wrong with vectors, with a question about them, and with bytes that claim to be an index.
//!
//! Owns [`VectorError`]. Called by everything here; the cell translates it into the protocol's errors.

use crate::{ElementType, Metric};

/// `std::result::Result` with [`VectorError`].
pub type Result<T, E = VectorError> = std::result::Result<T, E>;

/// A failure to take vectors, to build or open an index, or to search.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum VectorError {
    /// A query or a row has another number of components than the column.
    #[error("vector has {given} dimensions, {expected} expected")]
    Dimension {
        /// Dimensions of the column or index.
        expected: usize,
        /// Dimensions given.
        given: usize,
    },
    /// A query's elements are of another type than the column's.
    #[error("vector of {given:?} elements where {expected:?} is expected")]
    Type {
        /// The column's type.
        expected: ElementType,
        /// The type given.
        given: ElementType,
    },
    /// A metric that these elements do not have.
    #[error("metric {metric:?} is not defined for {element:?} elements")]
    Metric {
        /// The metric asked for.
        metric: Metric,
        /// The column's elements.
        element: ElementType,
    },
    /// A NaN, an infinity, or a component above [`crate::COMPONENT_MAX`].
    #[error("row {row}: component {component} is NaN, infinite or beyond {:e}", crate::COMPONENT_MAX)]
    NotFinite {
        /// First such row of the batch.
        row: usize,
        /// First such component of that row.
        component: usize,
    },
    /// A buffer that is not a whole number of rows, or not aligned for its elements.
    #[error("{what}: {detail}")]
    Layout {
        /// The buffer.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// A parameter outside its range.
    #[error("{what} is {given}: {allowed}")]
    Parameter {
        /// The parameter.
        what: &'static str,
        /// Its value.
        given: String,
        /// What would be accepted.
        allowed: String,
    },
    /// A call that the state machine does not expect now.
    #[error("{call} was called while {state}")]
    State {
        /// The call.
        call: &'static str,
        /// What it is doing instead.
        state: &'static str,
    },
    /// The bytes break the format's rules.
    #[error("corrupt {what}: {detail}")]
    Corrupt {
        /// The part: `trailer`, `directory`, `list`...
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
    /// A format version that this build does not read.
    #[error("{what} format version {version}: this build reads version {supported}")]
    Version {
        /// The kind of index.
        what: &'static str,
        /// The version found.
        version: u32,
        /// The version this build reads.
        supported: u32,
    },
}

impl VectorError {
    pub(crate) fn corrupt(what: &'static str, detail: impl Into<String>) -> Self {
        VectorError::Corrupt { what, detail: detail.into() }
    }

    pub(crate) fn parameter(what: &'static str, given: impl std::fmt::Display, allowed: impl Into<String>) -> Self {
        VectorError::Parameter { what, given: given.to_string(), allowed: allowed.into() }
    }
}
