//! From conjuncts to predicates on encoded data.
//!
//! Owns the translation of `column op constant` into [`ChunkPredicate`]. Called by the filter's compilation.
//! Invariant: a predicate selects exactly the rows for which the conjunct is true (NULL is not true).

use std::ops::Bound;
use std::sync::Arc;

use heliostat_segment::ChunkPredicate;
use hidb::like::{LikeMatcher, LikeShape};
use hidb::plan::{CompareOp, Expr, ExprKind};
use hidb::{Lane, Scalar};

/// The conjuncts of a filter, nested ANDs opened.
pub(crate) fn split_conjuncts(expr: &Expr, out: &mut Vec<Expr>) {
    match &expr.kind {
        ExprKind::And(list) => list.iter().for_each(|part| split_conjuncts(part, out)),
        _ => out.push(expr.clone()),
    }
}

/// The column and predicate that a conjunct amounts to, if it is that simple.
pub(crate) fn encoded_predicate(expr: &Expr) -> Option<(usize, ChunkPredicate)> {
    simple(expr, false)
}

fn column_of(expr: &Expr) -> Option<usize> {
    match expr.kind {
        ExprKind::Column(column) => Some(column),
        _ => None,
    }
}

/// `negate`: the predicate for which NOT `expr` is true.
pub(crate) fn simple(expr: &Expr, negate: bool) -> Option<(usize, ChunkPredicate)> {
    match &expr.kind {
        ExprKind::Not(inner) => simple(inner, !negate),
        ExprKind::Column(column) => Some((*column, ChunkPredicate::Bool(!negate))),
        ExprKind::IsNull(value) => {
            let predicate = if negate { ChunkPredicate::IsNotNull } else { ChunkPredicate::IsNull };
            Some((column_of(value)?, predicate))
        }
        ExprKind::Compare { op, left, right } => {
            let (column, op, value) = match (&left.kind, &right.kind) {
                (ExprKind::Column(column), ExprKind::Literal(value)) => (*column, *op, value),
                (ExprKind::Literal(value), ExprKind::Column(column)) => (*column, op.swapped(), value),
                _ => return None,
            };
            let ordered = left.data_type.is_ordered();
            Some((column, comparison(op, value, left.data_type.lane(), ordered, negate)?))
        }
        ExprKind::In { value, list, list_has_null } => {
            let column = column_of(value)?;
            if *list_has_null && negate {
                return Some((column, ChunkPredicate::Never));
            }
            Some((column, set(list, value.data_type.lane(), negate)?))
        }
        ExprKind::Like { value, pattern, escape, case_insensitive } => {
            Some((column_of(value)?, like(pattern, *escape, *case_insensitive, negate)?))
        }
        _ => None,
    }
}

fn comparison(op: CompareOp, value: &Scalar, lane: Lane, ordered: bool, negate: bool) -> Option<ChunkPredicate> {
    let negated = negate != (op == CompareOp::NotEqual);
    macro_rules! integer_range {
        ($kind:ident, $type:ty, $v:expr) => {{
            let v = $v;
            let (lo, hi) = match op {
                CompareOp::Equal | CompareOp::NotEqual => (v, v),
                CompareOp::LessOrEqual => (<$type>::MIN, v),
                CompareOp::GreaterOrEqual => (v, <$type>::MAX),
                CompareOp::Less => match v.checked_sub(1) {
                    Some(hi) => (<$type>::MIN, hi),
                    None => (0, -1),
                },
                CompareOp::Greater => match v.checked_add(1) {
                    Some(lo) => (lo, <$type>::MAX),
                    None => (0, -1),
                },
            };
            ChunkPredicate::$kind { lo, hi, negated }
        }};
    }
    fn bounds<T>(op: CompareOp, v: T) -> (Bound<T>, Bound<T>)
    where
        T: Clone,
    {
        match op {
            CompareOp::Equal | CompareOp::NotEqual => (Bound::Included(v.clone()), Bound::Included(v)),
            CompareOp::Less => (Bound::Unbounded, Bound::Excluded(v)),
            CompareOp::LessOrEqual => (Bound::Unbounded, Bound::Included(v)),
            CompareOp::Greater => (Bound::Excluded(v), Bound::Unbounded),
            CompareOp::GreaterOrEqual => (Bound::Included(v), Bound::Unbounded),
        }
    }
    Some(match (lane, value) {
        (_, Scalar::Null) => ChunkPredicate::Never,
        (Lane::I64, Scalar::I64(v)) => integer_range!(I64Range, i64, *v),
        (Lane::I128, Scalar::I128(v)) => integer_range!(I128Range, i128, *v),
        (Lane::F64, Scalar::F64(v)) => {
            let (lo, hi) = bounds(op, *v);
            ChunkPredicate::F64Range { lo, hi, negated }
        }
        (Lane::Bytes, Scalar::Bytes(v)) if ordered => match op {
            CompareOp::Equal | CompareOp::NotEqual => {
                ChunkPredicate::BytesSet { values: Arc::from([v.clone()]), negated }
            }
            _ => {
                let (lo, hi) = bounds(op, v.clone());
                ChunkPredicate::BytesRange { lo, hi, negated }
            }
        },
        (Lane::Bool, Scalar::Bool(v)) => {
            // Which of false and true satisfy it.
            let holds = |x: bool| op.matches(x.cmp(v)) != negate;
            match (holds(false), holds(true)) {
                (true, true) => ChunkPredicate::IsNotNull,
                (false, false) => ChunkPredicate::Never,
                (_, wanted) => ChunkPredicate::Bool(wanted),
            }
        }
        _ => return None,
    })
}

fn set(list: &[Scalar], lane: Lane, negated: bool) -> Option<ChunkPredicate> {
    Some(match lane {
        Lane::I64 => {
            let values = list.iter().map(|v| if let Scalar::I64(v) = v { Some(*v) } else { None });
            ChunkPredicate::I64Set { values: values.collect::<Option<Vec<_>>>()?.into(), negated }
        }
        Lane::I128 => {
            let values = list.iter().map(|v| if let Scalar::I128(v) = v { Some(*v) } else { None });
            ChunkPredicate::I128Set { values: values.collect::<Option<Vec<_>>>()?.into(), negated }
        }
        Lane::Bytes => {
            let values = list.iter().map(|v| if let Scalar::Bytes(v) = v { Some(v.clone()) } else { None });
            ChunkPredicate::BytesSet { values: values.collect::<Option<Vec<_>>>()?.into(), negated }
        }
        Lane::F64 | Lane::Bool => return None,
    })
}

/// Shapes that the chunk's own text search answers; anything else as a test per value (per dictionary entry
/// where there is a dictionary).
fn like(pattern: &str, escape: Option<char>, case_insensitive: bool, negated: bool) -> Option<ChunkPredicate> {
    let matcher = LikeMatcher::new(pattern, escape, case_insensitive).ok()?;
    if !case_insensitive {
        if let LikeShape::Exact(value) = matcher.shape() {
            return Some(ChunkPredicate::BytesSet { values: Arc::from([value.clone()]), negated });
        }
        if let Some(Pieces { prefix, needles, suffix }) = pieces(pattern, escape) {
            return Some(ChunkPredicate::BytesContains { prefix, needles: needles.into(), suffix, negated });
        }
    }
    Some(ChunkPredicate::Bytes(Arc::new(move |value| matcher.matches(value) != negated)))
}

/// `prefix%a%b%suffix` taken apart.
struct Pieces {
    prefix: Vec<u8>,
    needles: Vec<Vec<u8>>,
    suffix: Vec<u8>,
}

/// `None` for patterns with `_` or without a `%`.
fn pieces(pattern: &str, escape: Option<char>) -> Option<Pieces> {
    let mut parts = vec![String::new()];
    let mut characters = pattern.chars();
    while let Some(character) = characters.next() {
        match character {
            c if Some(c) == escape => parts.last_mut()?.push(characters.next()?),
            '%' => parts.push(String::new()),
            '_' => return None,
            c => parts.last_mut()?.push(c),
        }
    }
    if parts.len() < 2 {
        return None;
    }
    let suffix = parts.pop()?.into_bytes();
    let mut parts = parts.into_iter().map(String::into_bytes);
    let prefix = parts.next()?;
    Some(Pieces { prefix, needles: parts.filter(|part| !part.is_empty()).collect(), suffix })
}

/// Both predicates as one, where that is one range.
pub(crate) fn intersect(a: &ChunkPredicate, b: &ChunkPredicate) -> Option<ChunkPredicate> {
    match (a, b) {
        (
            ChunkPredicate::I64Range { lo: a, hi: b, negated: false },
            ChunkPredicate::I64Range { lo: c, hi: d, negated: false },
        ) => Some(ChunkPredicate::I64Range { lo: *a.max(c), hi: *b.min(d), negated: false }),
        (
            ChunkPredicate::I128Range { lo: a, hi: b, negated: false },
            ChunkPredicate::I128Range { lo: c, hi: d, negated: false },
        ) => Some(ChunkPredicate::I128Range { lo: *a.max(c), hi: *b.min(d), negated: false }),
        _ => None,
    }
}
