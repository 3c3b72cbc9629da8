//! Zone maps: what lets a scan skip a segment, a row group or a block.
//!
//! Owns [`ZoneMap`] and its merging. Built by `encode`, kept in the footer, read by the engine.
//!
//! Invariants
//! - Every non-NULL value `v` of the zone satisfies `min <= v <= max` in the order of
//!   [`hidb::types::Scalar::compare`]; a `Null` bound says nothing.
//! - Floats: `min` and `max` are over the values that are not NaN (`-0.0` is stored as `0.0`); when
//!   `has_nan` is set the true maximum is NaN. With only NaN values both bounds are NaN.

use std::cmp::Ordering;

use hidb::types::Scalar;

/// Bytes kept of a text bound.
pub const ZONE_BYTES_MAX: usize = 64;

/// Bounds and counts of one column over a range of rows.
#[derive(Clone, Debug, PartialEq)]
pub struct ZoneMap {
    /// Lower bound; `Null` when there is no value or the type is not ordered.
    pub min: Scalar,
    /// Upper bound; `Null` when there is no value, no bound, or the type is not ordered.
    pub max: Scalar,
    /// How many of the rows are NULL.
    pub null_count: u32,
    /// Rows covered.
    pub rows: u32,
    /// Whether a float zone holds a NaN.
    pub has_nan: bool,
    /// Whether `min` and `max` occur as values (false: truncated text bounds, or no bound).
    pub exact: bool,
}

impl ZoneMap {
    /// A zone of which nothing is known but its counts.
    pub fn unknown(rows: u32, null_count: u32) -> Self {
        ZoneMap { min: Scalar::Null, max: Scalar::Null, null_count, rows, has_nan: false, exact: false }
    }

    /// Whether every row is NULL.
    pub fn all_null(&self) -> bool {
        self.null_count >= self.rows
    }

    /// Extends this zone by another one of the same column.
    pub fn merge(&mut self, other: &ZoneMap) {
        if other.rows == 0 {
            return;
        }
        if self.rows == 0 {
            *self = other.clone();
            return;
        }
        let self_empty = self.all_null();
        let other_empty = other.all_null();
        if self_empty && !other_empty {
            self.min = other.min.clone();
            self.max = other.max.clone();
            self.exact = other.exact;
        } else if !self_empty && !other_empty {
            self.exact &= other.exact;
            self.min = merge_bound(&self.min, &other.min, Ordering::Less);
            self.max = merge_bound(&self.max, &other.max, Ordering::Greater);
        }
        self.null_count = self.null_count.saturating_add(other.null_count);
        self.rows = self.rows.saturating_add(other.rows);
        self.has_nan |= other.has_nan;
    }
}

fn merge_bound(a: &Scalar, b: &Scalar, wanted: Ordering) -> Scalar {
    // A bound that is NaN stands for a zone of NaN only: the other zone's numbers are the bound.
    match (a, b) {
        (Scalar::F64(x), _) if x.is_nan() => return b.clone(),
        (_, Scalar::F64(y)) if y.is_nan() => return a.clone(),
        _ => {}
    }
    match b.compare(a) {
        Some(order) if order == wanted => b.clone(),
        Some(_) => a.clone(),
        None => Scalar::Null,
    }
}
