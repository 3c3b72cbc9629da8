//! `+ - * / %`, unary minus and interval arithmetic.

use super::coerce::{read_text_literal, takes_text};
use super::{cast, is_null_literal, mismatch, node, null};
use crate::calendar::Interval;
use crate::cast as casting;
use crate::decimal;
use crate::error::{Error, ErrorCode, Result};
use crate::plan::expr::{ArithmeticOp, Expr, ExprKind};
use crate::plan::fold::symbol;
use crate::types::{DECIMAL_PRECISION_MAX, DECIMAL64_PRECISION_MAX, DataType, Lane, Scalar};

/// Digits and scale of an exact number. A constant integer counts the digits it has, so that
/// `1 - l_discount` is no wider than it must be.
pub(super) fn decimal_shape(expr: &Expr) -> Option<(u8, u8)> {
    match (&expr.data_type, &expr.kind) {
        (DataType::Decimal { precision, scale }, _) => Some((*precision, *scale)),
        (data_type, ExprKind::Literal(Scalar::I64(value))) if data_type.is_integer() => {
            Some((decimal::digits(i128::from(*value)), 0))
        }
        (data_type, _) if data_type.is_integer() => Some((casting::integer_digits(data_type), 0)),
        _ => None,
    }
}

/// An exact number at this scale (not below its own) in this lane.
pub(super) fn to_decimal(expr: Expr, scale: u8, lane: Lane) -> Result<Expr> {
    let Some((digits, own_scale)) = decimal_shape(&expr) else {
        return Err(mismatch(format!("{} where a decimal is needed", expr.data_type)));
    };
    if expr.data_type.is_decimal() && own_scale == scale && expr.data_type.lane() == lane {
        return Ok(expr);
    }
    let needed = (digits + scale.saturating_sub(own_scale)).max(scale).min(DECIMAL_PRECISION_MAX);
    let precision = if lane == Lane::I128 { needed.max(DECIMAL64_PRECISION_MAX + 1) } else { needed };
    cast(expr, DataType::Decimal { precision, scale })
}

/// `left op right` with SQL's result type.
pub fn arithmetic(op: ArithmeticOp, left: Expr, right: Expr) -> Result<Expr> {
    let refuse = |left: &Expr, right: &Expr| {
        mismatch(format!("there is no {} {} {}", left.data_type, symbol(op), right.data_type))
    };
    if is_null_literal(&left) || is_null_literal(&right) {
        // NULL takes the other's type; the result is NULL, of the type it would have had.
        let known = if is_null_literal(&left) { right } else { left };
        let stand_in = Expr::column(0, known.data_type, true);
        let typed = arithmetic(op, stand_in.clone(), stand_in)?;
        return Ok(null(typed.data_type));
    }
    let (left, right) = adapt_text(left, right)?;
    if let Some(expr) = date_arithmetic(op, &left, &right)? {
        return Ok(expr);
    }
    if !left.data_type.is_numeric() || !right.data_type.is_numeric() {
        return Err(refuse(&left, &right));
    }
    let nullable = left.nullable || right.nullable;
    if left.data_type.is_float() || right.data_type.is_float() {
        let single = left.data_type == DataType::Float32 && right.data_type == DataType::Float32;
        let data_type = if single { DataType::Float32 } else { DataType::Float64 };
        let as_float = |expr: Expr| if expr.data_type.is_float() { Ok(expr) } else { cast(expr, DataType::Float64) };
        let (left, right) = (Box::new(as_float(left)?), Box::new(as_float(right)?));
        return Ok(node(ExprKind::Arithmetic { op, left, right }, data_type, nullable));
    }
    let data_type = match super::common_type(&left.data_type, &right.data_type) {
        Some(common) if common.is_integer() => common,
        _ => return decimal_arithmetic(op, left, right),
    };
    let (left, right) = (Box::new(left), Box::new(right));
    Ok(node(ExprKind::Arithmetic { op, left, right }, data_type, nullable))
}

/// A text literal beside a date or timestamp is one.
fn adapt_text(left: Expr, right: Expr) -> Result<(Expr, Expr)> {
    let adapt = |literal: Expr, beside: DataType| match &literal.kind {
        ExprKind::Literal(Scalar::Bytes(bytes))
            if literal.data_type.is_text() && takes_text(&beside) && beside != DataType::Bytea =>
        {
            Ok(Expr::literal(read_text_literal(bytes, &beside)?, beside))
        }
        _ => Ok(literal),
    };
    let (left_type, right_type) = (left.data_type, right.data_type);
    Ok((adapt(left, right_type)?, adapt(right, left_type)?))
}

/// date - date, timestamp - timestamp, date + days (a constant).
fn date_arithmetic(op: ArithmeticOp, left: &Expr, right: &Expr) -> Result<Option<Expr>> {
    use DataType::{Date, Timestamp};
    let nullable = left.nullable || right.nullable;
    let subtract = |left: Expr, right: Expr| {
        let kind = ExprKind::Arithmetic { op: ArithmeticOp::Subtract, left: Box::new(left), right: Box::new(right) };
        node(kind, DataType::Int64, nullable)
    };
    let days = |expr: &Expr| match expr.kind {
        ExprKind::Literal(Scalar::I64(days)) if expr.data_type.is_integer() => i32::try_from(days).ok(),
        _ => None,
    };
    match (op, left.data_type, right.data_type) {
        (ArithmeticOp::Subtract, Date, Date) | (ArithmeticOp::Subtract, Timestamp { .. }, Timestamp { .. }) => {
            Ok(Some(subtract(left.clone(), right.clone())))
        }
        (ArithmeticOp::Subtract, Date, to @ Timestamp { .. }) => {
            Ok(Some(subtract(cast(left.clone(), to)?, right.clone())))
        }
        (ArithmeticOp::Subtract, to @ Timestamp { .. }, Date) => {
            Ok(Some(subtract(left.clone(), cast(right.clone(), to)?)))
        }
        (ArithmeticOp::Add | ArithmeticOp::Subtract, Date, _) if days(right).is_some() => {
            let days = days(right).unwrap_or_default();
            let days = if op == ArithmeticOp::Add { Some(days) } else { days.checked_neg() };
            let days = days.ok_or_else(|| mismatch("too many days".into()))?;
            add_interval(left.clone(), Interval { days, ..Interval::default() }).map(Some)
        }
        (ArithmeticOp::Add, _, Date) if days(left).is_some() => {
            let days = days(left).unwrap_or_default();
            add_interval(right.clone(), Interval { days, ..Interval::default() }).map(Some)
        }
        _ => Ok(None),
    }
}

/// Decimal (or decimal and integer) arithmetic: Hive's rules as arrow-rs and DataFusion have them.
fn decimal_arithmetic(op: ArithmeticOp, left: Expr, right: Expr) -> Result<Expr> {
    let (Some((p1, s1)), Some((p2, s2))) = (decimal_shape(&left), decimal_shape(&right)) else {
        return Err(mismatch(format!("there is no {} {} {}", left.data_type, symbol(op), right.data_type)));
    };
    let nullable = left.nullable || right.nullable;
    let too_fine = || {
        mismatch(format!(
            "{} {} {} would have more than 38 decimal places: cast an operand to a smaller scale",
            left.data_type,
            symbol(op),
            right.data_type
        ))
    };
    let scale = s1.max(s2);
    // Result precision and scale, then the scale each operand is brought to.
    let (precision, result_scale, left_scale, right_scale) = match op {
        ArithmeticOp::Add | ArithmeticOp::Subtract => ((p1 - s1).max(p2 - s2) + scale + 1, scale, scale, scale),
        ArithmeticOp::Remainder => ((p1 - s1).min(p2 - s2) + scale, scale, scale, scale),
        ArithmeticOp::Multiply => {
            if s1 + s2 > DECIMAL_PRECISION_MAX {
                return Err(too_fine());
            }
            (p1 + p2 + 1, s1 + s2, s1, s2)
        }
        ArithmeticOp::Divide => {
            let result_scale = (s1 + 4).min(DECIMAL_PRECISION_MAX - s2);
            if result_scale < s1 {
                return Err(too_fine());
            }
            (p1 + (result_scale - s1) + s2, result_scale, result_scale + s2, s2)
        }
    };
    let mut precision = precision.min(DECIMAL_PRECISION_MAX).max(result_scale);
    let brought = |p: u8, s: u8, to: u8| p + to.saturating_sub(s);
    if brought(p1, s1, left_scale).max(brought(p2, s2, right_scale)) > DECIMAL64_PRECISION_MAX {
        // An operand needs the 128-bit lane, and the result has the lane of its operands.
        precision = precision.max(DECIMAL64_PRECISION_MAX + 1);
    }
    let data_type = DataType::Decimal { precision, scale: result_scale };
    let lane = data_type.lane();
    let left = Box::new(to_decimal(left, left_scale, lane)?);
    let right = Box::new(to_decimal(right, right_scale, lane)?);
    Ok(node(ExprKind::Arithmetic { op, left, right }, data_type, nullable))
}

/// Unary minus; keeps the type.
pub fn negate(value: Expr) -> Result<Expr> {
    if !value.data_type.is_numeric() && !is_null_literal(&value) {
        return Err(mismatch(format!("there is no - {}", value.data_type)));
    }
    if is_null_literal(&value) {
        return Ok(value);
    }
    let (data_type, nullable) = (value.data_type, value.nullable);
    Ok(node(ExprKind::Negate(Box::new(value)), data_type, nullable))
}

/// A date or timestamp moved by a constant interval. A date stays a date unless the interval has a time
/// of day.
pub fn add_interval(value: Expr, interval: Interval) -> Result<Expr> {
    let Interval { months, days, microseconds } = interval;
    if is_null_literal(&value) {
        return Ok(value);
    }
    let value = match value.data_type {
        DataType::Date if microseconds == 0 => value,
        DataType::Date => cast(value, DataType::Timestamp { utc: false })?,
        DataType::Timestamp { .. } => value,
        other => return Err(mismatch(format!("an interval can't be added to {other}, only to a date or timestamp"))),
    };
    let (data_type, nullable) = (value.data_type, value.nullable);
    let constant = matches!(value.kind, ExprKind::Literal(_));
    let kind = ExprKind::AddInterval { value: Box::new(value), months, days, microseconds };
    let moved = node(kind, data_type, nullable);
    if constant && !matches!(moved.kind, ExprKind::Literal(_)) {
        return Err(Error::new(ErrorCode::NumericOverflow, format!("a constant {data_type} moved out of its range")));
    }
    Ok(moved)
}
