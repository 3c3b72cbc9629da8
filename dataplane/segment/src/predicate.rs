//! Predicates on one column, in the form that chunks can evaluate without decoding.
//!
//! Owns [`ChunkPredicate`] (what the engine asks) and [`CompiledPredicate`] (the same, translated
//! into one chunk's encoded domain). Called by the engine; evaluated by `encoding`.
//!
//! Invariants
//! - NULL matches only [`ChunkPredicate::IsNull`]; `negated` turns matches around among non-NULL values.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use foldhash::fast::RandomState;
use memchr::memmem::Finder;

use crate::encoding::fsst::search::CodeTest;
use crate::encoding::int_test::IntTest;

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
    /// Bytes lane: starts with `prefix`, then contains the needles in order, then ends with `suffix`, all without
    /// overlap (`LIKE 'prefix%a%b%suffix'`).
    BytesContains {
        /// What the value must start with; may be empty.
        prefix: Vec<u8>,
        /// The pieces between the `%`, in order; none may be empty.
        needles: Arc<[Vec<u8>]>,
        /// What the value must end with; may be empty.
        suffix: Vec<u8>,
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
            ChunkPredicate::BytesContains { prefix, needles, suffix, negated } => {
                write!(f, "BytesContains({prefix:?}, {needles:?}, {suffix:?}, negated {negated})")
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
pub struct CompiledPredicate {
    pub(crate) kind: Compiled,
}

/// What is left to do per block.
pub(crate) enum Compiled {
    /// Nothing matches.
    Never,
    /// NULLs match.
    IsNull,
    /// Everything but NULLs matches.
    NotNull,
    /// Stored integers or dictionary codes.
    Integers(IntTest),
    /// Order keys, inclusive; nothing when `lo > hi`.
    Floats { lo: i64, hi: i64, negated: bool },
    /// Plain 128-bit values: sorted disjoint ranges.
    Wide { ranges: Vec<(i128, i128)>, negated: bool },
    /// Bitmap equals this.
    Bool(bool),
    /// Text blocks (boxed: it carries buffers).
    Text(Box<TextTest>),
    /// Fixed-width bytes (vectors).
    FixedBytes(BytesMatcher),
}

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compiled::Never => "Never",
            Compiled::IsNull => "IsNull",
            Compiled::NotNull => "NotNull",
            Compiled::Integers(_) => "Integers",
            Compiled::Floats { .. } => "Floats",
            Compiled::Wide { .. } => "Wide",
            Compiled::Bool(_) => "Bool",
            Compiled::Text(_) => "Text",
            Compiled::FixedBytes(_) => "FixedBytes",
        })
    }
}

/// A test of raw bytes, made once per chunk.
pub(crate) enum BytesMatcher {
    Range { lo: Bound<Vec<u8>>, hi: Bound<Vec<u8>>, negated: bool },
    Set { values: ByteStrings, negated: bool },
    Contains { prefix: Vec<u8>, needles: Vec<Finder<'static>>, suffix: Vec<u8>, negated: bool },
    Test(BytesTest),
}

impl BytesMatcher {
    /// `None` when the predicate is not about bytes.
    pub(crate) fn new(predicate: &ChunkPredicate) -> Option<Self> {
        Some(match predicate {
            ChunkPredicate::BytesRange { lo, hi, negated } => {
                BytesMatcher::Range { lo: lo.clone(), hi: hi.clone(), negated: *negated }
            }
            ChunkPredicate::BytesSet { values, negated } => {
                BytesMatcher::Set { values: ByteStrings::new(values), negated: *negated }
            }
            ChunkPredicate::BytesContains { prefix, needles, suffix, negated } => BytesMatcher::Contains {
                prefix: prefix.clone(),
                suffix: suffix.clone(),
                needles: needles.iter().map(|needle| Finder::new(needle).into_owned()).collect(),
                negated: *negated,
            },
            ChunkPredicate::Bytes(test) => BytesMatcher::Test(test.clone()),
            _ => return None,
        })
    }

    /// Whether matches are turned around.
    pub(crate) fn is_negated(&self) -> bool {
        match self {
            BytesMatcher::Range { negated, .. }
            | BytesMatcher::Set { negated, .. }
            | BytesMatcher::Contains { negated, .. } => *negated,
            BytesMatcher::Test(_) => false,
        }
    }

    /// Whether a value matches.
    #[inline]
    pub(crate) fn matches(&self, value: &[u8]) -> bool {
        match self {
            BytesMatcher::Range { lo, hi, negated } => in_bounds(value, lo, hi) != *negated,
            BytesMatcher::Set { values, negated } => values.contains(value) != *negated,
            BytesMatcher::Contains { prefix, needles, suffix, negated } => {
                contains_in_order(value, prefix, needles, suffix) != *negated
            }
            BytesMatcher::Test(test) => test(value),
        }
    }
}

/// The most members that are compared one after another; hashing a value takes as long as some comparisons.
const COMPARED_MAX: usize = 8;

/// A set of byte strings.
pub(crate) struct ByteStrings {
    /// Ascending.
    pub(crate) members: Vec<Vec<u8>>,
    /// The same, when they are many.
    hashed: Option<HashSet<Vec<u8>, RandomState>>,
}

impl ByteStrings {
    /// From members in any order.
    fn new(members: &[Vec<u8>]) -> Self {
        let mut members = members.to_vec();
        members.sort_unstable();
        members.dedup();
        let hashed = (members.len() > COMPARED_MAX).then(|| members.iter().cloned().collect());
        ByteStrings { members, hashed }
    }

    #[inline]
    fn contains(&self, value: &[u8]) -> bool {
        match &self.hashed {
            Some(hashed) => hashed.contains(value),
            None => self.members.iter().any(|member| member == value),
        }
    }
}

fn in_bounds(value: &[u8], lo: &Bound<Vec<u8>>, hi: &Bound<Vec<u8>>) -> bool {
    let above = match lo {
        Bound::Unbounded => true,
        Bound::Included(lo) => value >= lo.as_slice(),
        Bound::Excluded(lo) => value > lo.as_slice(),
    };
    above
        && match hi {
            Bound::Unbounded => true,
            Bound::Included(hi) => value <= hi.as_slice(),
            Bound::Excluded(hi) => value < hi.as_slice(),
        }
}

/// Whether `value` starts with `prefix`, then has the needles in order, then ends with `suffix`, without overlap. Taking
/// the first occurrence of each is enough: a later one leaves less room for the rest.
pub(crate) fn contains_in_order(value: &[u8], prefix: &[u8], needles: &[Finder<'static>], suffix: &[u8]) -> bool {
    let Some(mut rest) = value.strip_prefix(prefix) else { return false };
    for needle in needles {
        match needle.find(rest) {
            Some(at) => rest = &rest[at + needle.needle().len()..],
            None => return false,
        }
    }
    rest.ends_with(suffix)
}

/// A test of text blocks with the buffers it decompresses into.
pub(crate) struct TextTest {
    pub(crate) matcher: BytesMatcher,
    /// Sets: the members' lengths, distinct.
    pub(crate) lengths: Vec<usize>,
    /// What the codes of matching rows hold, where text is compressed.
    pub(crate) codes: RefCell<Option<CodeTest>>,
    /// Reused from block to block.
    pub(crate) scratch: RefCell<Vec<u8>>,
}
