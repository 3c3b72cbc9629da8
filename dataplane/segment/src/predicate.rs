//! Predicates on one column, in the form that chunks can evaluate without decoding.
//!
//! Owns [`ChunkPredicate`] (what the engine asks) and [`CompiledPredicate`] (the same, translated
//! into one chunk's encoded domain). Called by the engine; evaluated by `encoding`.
//!
//! Invariants
//! - NULL matches only [`ChunkPredicate::IsNull`]; `negated` turns matches around among non-NULL values.

use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

/// A test of one value in the bytes lane.
pub type BytesTest = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// A condition on one column.
#[derive(Clone)]
pub enum ChunkPredicate {
    /// The value is NULL.
    IsNull,
    /// The value is not NULL.
    IsNotNull,
    /// No row matches.
    Never,
    /// 64-bit lane: `lo <= v <= hi` (nothing when `lo > hi`).
    I64Range {
        /// Least matching value.
        lo: i64,
        /// Greatest matching value.
        hi: i64,
        /// Match what is outside instead.
        negated: bool,
    },
    /// 64-bit lane: one of these.
    I64Set {
        /// In any order.
        values: Arc<[i64]>,
        /// Match the others instead.
        negated: bool,
    },
    /// 128-bit lane: `lo <= v <= hi`.
    I128Range {
        /// Least matching value.
        lo: i128,
        /// Greatest matching value.
        hi: i128,
        /// Match what is outside instead.
        negated: bool,
    },
    /// 128-bit lane: one of these.
    I128Set {
        /// In any order.
        values: Arc<[i128]>,
        /// Match the others instead.
        negated: bool,
    },
    /// Float lane, in the order of [`hidb::types::compare_f64`] (NaN greatest, zeros equal).
    F64Range {
        /// Lower bound.
        lo: Bound<f64>,
        /// Upper bound.
        hi: Bound<f64>,
        /// Match what is outside instead.
        negated: bool,
    },
    /// Boolean lane: equals this.
    Bool(bool),
    /// Bytes lane, lexicographic.
    BytesRange {
        /// Lower bound.
        lo: Bound<Vec<u8>>,
        /// Upper bound.
        hi: Bound<Vec<u8>>,
        /// Match what is outside instead.
        negated: bool,
    },
    /// Bytes lane: one of these (equality is a set of one).
    BytesSet {
        /// In any order.
        values: Arc<[Vec<u8>]>,
        /// Match the others instead.
        negated: bool,
    },
    /// Bytes lane: starts with `prefix` if that is not empty, then contains the needles in order,
    /// without overlap (`LIKE 'prefix%a%b%'`).
    BytesContains {
        /// What the value must start with; may be empty.
        prefix: Vec<u8>,
        /// The pieces between the `%`, in order; none may be empty.
        needles: Arc<[Vec<u8>]>,
        /// Match the others instead.
        negated: bool,
    },
    /// Bytes lane: whatever this says.
    Bytes(BytesTest),
}

impl fmt::Debug for ChunkPredicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChunkPredicate::IsNull => f.write_str("IsNull"),
            ChunkPredicate::IsNotNull => f.write_str("IsNotNull"),
            ChunkPredicate::Never => f.write_str("Never"),
            ChunkPredicate::I64Range { lo, hi, negated } => write!(f, "I64Range({lo}..={hi}, negated {negated})"),
            ChunkPredicate::I64Set { values, negated } => write!(f, "I64Set({values:?}, negated {negated})"),
            ChunkPredicate::I128Range { lo, hi, negated } => write!(f, "I128Range({lo}..={hi}, negated {negated})"),
            ChunkPredicate::I128Set { values, negated } => write!(f, "I128Set({values:?}, negated {negated})"),
            ChunkPredicate::F64Range { lo, hi, negated } => write!(f, "F64Range({lo:?}, {hi:?}, negated {negated})"),
            ChunkPredicate::Bool(value) => write!(f, "Bool({value})"),
            ChunkPredicate::BytesRange { lo, hi, negated } => {
                write!(f, "BytesRange({lo:?}, {hi:?}, negated {negated})")
            }
            ChunkPredicate::BytesSet { values, negated } => write!(f, "BytesSet({values:?}, negated {negated})"),
            ChunkPredicate::BytesContains { prefix, needles, negated } => {
                write!(f, "BytesContains({prefix:?}, {needles:?}, negated {negated})")
            }
            ChunkPredicate::Bytes(_) => f.write_str("Bytes(..)"),
        }
    }
}

/// What a block's zone map says about a predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockMatch {
    /// No row can match.
    None,
    /// Every row matches.
    All,
    /// Values must be looked at.
    Some,
}

/// A [`ChunkPredicate`] translated into the encoded domain of one chunk by
/// [`crate::Chunk::compile`]. Only to be used with that chunk.
#[derive(Debug)]
pub struct CompiledPredicate {}
