//! Comparisons and IN: where constants adapt to columns.
//!
//! A constant beside an exact column (integer, decimal, date) is located among the column's values: it
//! *is* one of them, lies in the gap above one, or is beyond the range of the type. Each case has an
//! equivalent comparison on the column as it is stored.

use super::arithmetic::{decimal_shape, to_decimal};
use super::coerce::{read_text_literal, takes_text};
use super::{and, boolean, cast, coalesce, is_literal, is_null, is_null_literal, mismatch, node, not, null, or};
use crate::calendar::DAY_MICROSECONDS;
use crate::cast as casting;
use crate::decimal;
use crate::error::{Error, ErrorCode, Result};
use crate::plan::expr::{CompareOp, Expr, ExprKind};
use crate::types::{DECIMAL64_PRECISION_MAX, DataType, Lane, Scalar};

fn symbol(op: CompareOp) -> &'static str {
    match op {
        CompareOp::Equal => "=",
        CompareOp::NotEqual => "<>",
        CompareOp::Less => "<",
        CompareOp::LessOrEqual => "<=",
        CompareOp::Greater => ">",
        CompareOp::GreaterOrEqual => ">=",
    }
}

/// Where a constant lies among the values of a type.
#[derive(Debug, PartialEq)]
enum Position {
    /// It is this value.
    At(Scalar),
    /// It lies between this value and the next greater one.
    Above(i128),
    /// Greater than every value.
    BeyondMax,
    /// Less than every value.
    BelowMin,
    /// Not a question of exact values: compare as Float64.
    AsFloat,
}

/// `left op right`.
pub fn compare(op: CompareOp, left: Expr, right: Expr) -> Result<Expr> {
    let text_left = is_literal(&left) && left.data_type.is_text() && takes_text(&right.data_type);
    if is_literal(&left) && !is_literal(&right) || text_left && is_literal(&right) {
        return compare_ordered(op.swapped(), right, left);
    }
    compare_ordered(op, left, right)
}

/// Any constant is on the right (unless both are).
fn compare_ordered(op: CompareOp, left: Expr, right: Expr) -> Result<Expr> {
    if is_null_literal(&left) || is_null_literal(&right) {
        return Ok(null(DataType::Boolean));
    }
    if let ExprKind::Literal(value) = &right.kind {
        let left = strip_lossless_casts(left);
        return compare_with_constant(op, left, value, &right.data_type);
    }
    compare_expressions(op, left, right)
}

/// `CAST(x)` that keeps every value and their order compares as `x` does.
fn strip_lossless_casts(expr: Expr) -> Expr {
    let mut expr = expr;
    loop {
        match expr.kind {
            ExprKind::Cast(inner) if casting::is_lossless(&inner.data_type, &expr.data_type) => expr = *inner,
            kind => return Expr { kind, ..expr },
        }
    }
}

fn comparison(op: CompareOp, left: Expr, right: Expr) -> Expr {
    let nullable = left.nullable || right.nullable;
    node(ExprKind::Compare { op, left: Box::new(left), right: Box::new(right) }, DataType::Boolean, nullable)
}

fn refuse(op: CompareOp, left: &DataType, right: &DataType) -> Error {
    mismatch(format!("there is no {left} {} {right}: cast one side", symbol(op)))
}

fn compare_with_constant(op: CompareOp, left: Expr, value: &Scalar, value_type: &DataType) -> Result<Expr> {
    let data_type = left.data_type;
    if matches!(data_type, DataType::Vector { .. }) {
        check_vectors(op, &data_type, value_type)?;
        return Ok(comparison(op, left, Expr::literal(value.clone(), data_type)));
    }
    let position = locate(value, value_type, &data_type)?.ok_or_else(|| refuse(op, &data_type, value_type))?;
    match position {
        Position::At(constant) => {
            let constant_type =
                if data_type.lane() == Lane::F64 { *value_type_of_float(&data_type, value_type) } else { data_type };
            Ok(comparison(op, left, Expr::literal(constant, constant_type)))
        }
        Position::Above(floor) => match op {
            CompareOp::Equal => Ok(constant_unless_null(left, false)),
            CompareOp::NotEqual => Ok(constant_unless_null(left, true)),
            CompareOp::Less | CompareOp::LessOrEqual => at_floor(CompareOp::LessOrEqual, left, floor),
            CompareOp::Greater | CompareOp::GreaterOrEqual => at_floor(CompareOp::Greater, left, floor),
        },
        Position::BeyondMax => {
            let outcome = matches!(op, CompareOp::Less | CompareOp::LessOrEqual | CompareOp::NotEqual);
            Ok(constant_unless_null(left, outcome))
        }
        Position::BelowMin => {
            let outcome = matches!(op, CompareOp::Greater | CompareOp::GreaterOrEqual | CompareOp::NotEqual);
            Ok(constant_unless_null(left, outcome))
        }
        Position::AsFloat => {
            let constant = casting::cast(value, value_type, &DataType::Float64)?;
            let left = cast(left, DataType::Float64)?;
            Ok(comparison(op, left, Expr::literal(constant, DataType::Float64)))
        }
    }
}

/// A float constant beside a float32 column stays a float64: 0.1 is not the float32 nearest to it.
fn value_type_of_float<'a>(data_type: &'a DataType, value_type: &'a DataType) -> &'a DataType {
    if data_type == value_type { data_type } else { &DataType::Float64 }
}

fn at_floor(op: CompareOp, left: Expr, floor: i128) -> Result<Expr> {
    let data_type = left.data_type;
    match casting::in_lane(floor, &data_type) {
        Some(constant) => Ok(comparison(op, left, Expr::literal(constant, data_type))),
        // The gap is below the least value or above the greatest.
        None => Ok(constant_unless_null(left, (floor < 0) == (op == CompareOp::Greater))),
    }
}

/// The given truth value, or NULL where `value` is NULL: a comparison that the type's order decides.
pub(super) fn constant_unless_null(value: Expr, outcome: bool) -> Expr {
    if !value.nullable {
        return boolean(outcome);
    }
    let data_type = value.data_type;
    let least = match data_type.lane() {
        Lane::Bool => Scalar::Bool(false),
        Lane::I64 => Scalar::I64(data_type.i64_range().map_or(i64::MIN, |range| range.0)),
        Lane::I128 => Scalar::I128(-decimal::unscaled_max(crate::types::DECIMAL_PRECISION_MAX)),
        Lane::Bytes => Scalar::Bytes(Vec::new()),
        Lane::F64 => Scalar::F64(f64::NEG_INFINITY),
    };
    let op = if outcome { CompareOp::GreaterOrEqual } else { CompareOp::Less };
    comparison(op, value, Expr::literal(least, data_type))
}

/// Finds a constant among the values of `data_type`; `None` when the two types don't compare.
fn locate(value: &Scalar, value_type: &DataType, data_type: &DataType) -> Result<Option<Position>> {
    use DataType::{Boolean, Bytea, Date, Timestamp};
    let at = |scalar: Scalar| Ok(Some(Position::At(scalar)));
    match (data_type, value_type) {
        (Boolean, Boolean) | (Bytea, Bytea) | (Date, Date) => at(value.clone()),
        (Timestamp { .. }, Timestamp { .. }) => at(value.clone()),
        (a, b) if a.is_text() && b.is_text() => at(value.clone()),
        (Timestamp { .. }, Date) => {
            let Scalar::I64(days) = value else { return Ok(None) };
            Ok(Some(match days.checked_mul(DAY_MICROSECONDS) {
                Some(midnight) => Position::At(Scalar::I64(midnight)),
                None if *days > 0 => Position::BeyondMax,
                None => Position::BelowMin,
            }))
        }
        (Date, Timestamp { .. }) => {
            let Scalar::I64(microseconds) = value else { return Ok(None) };
            let days = i128::from(microseconds.div_euclid(DAY_MICROSECONDS));
            Ok(Some(among(days, microseconds.rem_euclid(DAY_MICROSECONDS) == 0, data_type)))
        }
        (Date, b) if b.is_text() => {
            let Scalar::Bytes(bytes) = value else { return Ok(None) };
            match read_text_literal(bytes, &Date) {
                Ok(date) => at(date),
                // '1995-03-01 12:00:00' beside a date column is a timestamp.
                Err(error) => match read_text_literal(bytes, &Timestamp { utc: false }) {
                    Ok(timestamp) => locate(&timestamp, &Timestamp { utc: false }, data_type),
                    Err(_) => Err(error),
                },
            }
        }
        (a, b) if takes_text(a) && b.is_text() => {
            let Scalar::Bytes(bytes) = value else { return Ok(None) };
            at(read_text_literal(bytes, a)?)
        }
        (a, b) if !a.is_numeric() || !b.is_numeric() => Ok(None),
        (a, _) if a.is_float() => at(casting::cast(value, value_type, &DataType::Float64)?),
        (a, b) if b.is_float() => {
            let Scalar::F64(float) = value else { return Ok(None) };
            Ok(Some(locate_float(*float, a)))
        }
        (a, b) => {
            let Some(unscaled) = value.as_i128() else { return Ok(None) };
            let (from, to) = (casting::scale_of(b), casting::scale_of(a));
            Ok(Some(match decimal::rescale_floor(unscaled, from, to) {
                Some((floor, exact)) => among(floor, exact, a),
                None if unscaled > 0 => Position::BeyondMax,
                None => Position::BelowMin,
            }))
        }
    }
}

/// The position of a constant whose floor at the type's scale is `floor`.
fn among(floor: i128, exact: bool, data_type: &DataType) -> Position {
    match casting::in_lane(floor, data_type).filter(|_| within_precision(floor, data_type)) {
        Some(scalar) if exact => Position::At(scalar),
        Some(_) => Position::Above(floor),
        None if floor < 0 => Position::BelowMin,
        None => Position::BeyondMax,
    }
}

fn within_precision(unscaled: i128, data_type: &DataType) -> bool {
    match data_type {
        DataType::Decimal { precision, .. } => decimal::fits(unscaled, *precision),
        _ => true,
    }
}

/// A float among exact values. Exact values and floats compare as Float64; while the float has at most
/// 15 digits at the type's scale, distinct values near it have distinct floats, so it can be located.
fn locate_float(float: f64, data_type: &DataType) -> Position {
    const DISTINCT: i128 = 1_000_000_000_000_000;
    let scale = casting::scale_of(data_type);
    let Some(nearest) =
        decimal::from_f64(float, scale).filter(|nearest| (-DISTINCT + 2..DISTINCT - 1).contains(nearest))
    else {
        return Position::AsFloat;
    };
    let ordering = crate::types::compare_f64(decimal::to_f64(nearest, scale), float);
    match ordering {
        std::cmp::Ordering::Equal => among(nearest, true, data_type),
        std::cmp::Ordering::Less => among(nearest, false, data_type),
        std::cmp::Ordering::Greater => among(nearest - 1, false, data_type),
    }
}

fn check_vectors(op: CompareOp, left: &DataType, right: &DataType) -> Result<()> {
    if left != right || !matches!(op, CompareOp::Equal | CompareOp::NotEqual) {
        return Err(mismatch(format!("there is no {left} {} {right}: vectors compare for equality only", symbol(op))));
    }
    Ok(())
}

/// Neither side is a constant (or both are of types that need a cast).
fn compare_expressions(op: CompareOp, left: Expr, right: Expr) -> Result<Expr> {
    use DataType::{Boolean, Bytea, Date, Timestamp, Vector};
    let (a, b) = (left.data_type, right.data_type);
    match (a, b) {
        (Vector { .. }, _) | (_, Vector { .. }) => check_vectors(op, &a, &b)?,
        (Boolean, Boolean) | (Bytea, Bytea) | (Date, Date) | (Timestamp { .. }, Timestamp { .. }) => {}
        (Date, Timestamp { .. }) => return Ok(comparison(op, cast(left, b)?, right)),
        (Timestamp { .. }, Date) => return Ok(comparison(op, left, cast(right, a)?)),
        _ if a.is_text() && b.is_text() || a.is_integer() && b.is_integer() || a.is_float() && b.is_float() => {}
        _ if !a.is_numeric() || !b.is_numeric() => return Err(refuse(op, &a, &b)),
        _ if a.is_float() => return Ok(comparison(op, left, cast(right, DataType::Float64)?)),
        _ if b.is_float() => return Ok(comparison(op, cast(left, DataType::Float64)?, right)),
        _ => {
            let (Some((p1, s1)), Some((p2, s2))) = (decimal_shape(&left), decimal_shape(&right)) else {
                return Err(refuse(op, &a, &b));
            };
            let scale = s1.max(s2);
            let digits = (p1 + scale - s1).max(p2 + scale - s2);
            let lane = if digits > DECIMAL64_PRECISION_MAX { Lane::I128 } else { Lane::I64 };
            return Ok(comparison(op, to_decimal(left, scale, lane)?, to_decimal(right, scale, lane)?));
        }
    }
    Ok(comparison(op, left, right))
}

/// `value BETWEEN low AND high`.
pub fn between(value: Expr, low: Expr, high: Expr) -> Result<Expr> {
    let above = compare(CompareOp::GreaterOrEqual, value.clone(), low)?;
    and(vec![above, compare(CompareOp::LessOrEqual, value, high)?])
}

/// `left IS DISTINCT FROM right`; never NULL.
pub fn is_distinct(left: Expr, right: Expr) -> Result<Expr> {
    let both_null = and(vec![is_null(left.clone()), is_null(right.clone())])?;
    not(coalesce(vec![compare(CompareOp::Equal, left, right)?, both_null])?)
}

/// `value IN (items)`. Constants that no value of the type can equal are dropped; items that are not
/// constant become comparisons.
pub fn in_list(value: Expr, items: Vec<Expr>) -> Result<Expr> {
    if items.is_empty() {
        return Ok(boolean(false));
    }
    if is_null_literal(&value) {
        return Ok(null(DataType::Boolean));
    }
    if matches!(value.data_type, DataType::Vector { .. }) {
        return Err(mismatch(format!("there is no {} IN (...)", value.data_type)));
    }
    let value = strip_lossless_casts(value);
    let mut list: Vec<Scalar> = Vec::with_capacity(items.len());
    let mut list_has_null = false;
    let mut others = Vec::new();
    for item in items {
        let ExprKind::Literal(constant) = &item.kind else {
            others.push(compare(CompareOp::Equal, value.clone(), item)?);
            continue;
        };
        if constant.is_null() {
            list_has_null = true;
            continue;
        }
        let position = locate(constant, &item.data_type, &value.data_type)?
            .ok_or_else(|| refuse(CompareOp::Equal, &value.data_type, &item.data_type))?;
        match position {
            Position::At(scalar) => list.push(scalar),
            Position::AsFloat => others.push(compare(CompareOp::Equal, value.clone(), item)?),
            Position::Above(_) | Position::BeyondMax | Position::BelowMin => {}
        }
    }
    list.sort_by(|a, b| a.compare(b).unwrap_or(std::cmp::Ordering::Equal));
    list.dedup_by(|a, b| a.compare(b) == Some(std::cmp::Ordering::Equal));
    let nullable = value.nullable || list_has_null;
    let data_type = value.data_type;
    let found = match (list.len(), list_has_null) {
        (0, true) => null(DataType::Boolean),
        (0, false) => constant_unless_null(value, false),
        (1, false) => {
            let constant = list.pop().ok_or_else(|| Error::new(ErrorCode::Internal, "an IN list lost its item"))?;
            let constant_type = if data_type.is_float() { DataType::Float64 } else { data_type };
            comparison(CompareOp::Equal, value, Expr::literal(constant, constant_type))
        }
        _ => node(ExprKind::In { value: Box::new(value), list, list_has_null }, DataType::Boolean, nullable),
    };
    others.insert(0, found);
    or(others)
}
