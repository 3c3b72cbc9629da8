//! Evaluation of expressions on one row, and constant folding with it.
//!
//! Owns the scalar meaning of every [`ExprKind`] (docs/semantics.md): [`evaluate`] is the definition that
//! the engine's vectorised kernels are tested against, and [`fold`] applies it to constants.
//!
//! Invariants
//! - Folding never makes an error: an expression whose evaluation fails stays as it is, and fails when
//!   (and only if) it is run.
//! - Evaluation checks lanes: an ill-formed tree is [`ErrorCode::Internal`], not a panic.
//!
//! Called by `plan::build`, `plan::substrait` (after binding parameters), and tests of the engine.

use super::expr::{ArithmeticOp, DateField, Expr, ExprKind};
use crate::calendar::{self, Interval};
use crate::cast;
use crate::error::{Error, ErrorCode, Result};
use crate::like::LikeMatcher;
use crate::types::{DataType, Lane, Scalar};

/// The value of an expression when its columns have the values that `row` gives.
pub fn evaluate(expr: &Expr, row: &dyn Fn(usize) -> Scalar) -> Result<Scalar> {
    match &expr.kind {
        ExprKind::Column(index) => Ok(row(*index)),
        ExprKind::Literal(value) => Ok(value.clone()),
        ExprKind::Parameter(index) => {
            Err(Error::new(ErrorCode::InvalidParameter, format!("parameter ${} has no value", index + 1)))
        }
        ExprKind::Compare { op, left, right } => {
            let (left, right) = (evaluate(left, row)?, evaluate(right, row)?);
            if left.is_null() || right.is_null() {
                return Ok(Scalar::Null);
            }
            let ordering = left.compare(&right).ok_or_else(|| ill_formed("comparison"))?;
            Ok(Scalar::Bool(op.matches(ordering)))
        }
        ExprKind::And(list) => connective(list, row, false),
        ExprKind::Or(list) => connective(list, row, true),
        ExprKind::Not(value) => match evaluate(value, row)? {
            Scalar::Null => Ok(Scalar::Null),
            Scalar::Bool(value) => Ok(Scalar::Bool(!value)),
            _ => Err(ill_formed("NOT")),
        },
        ExprKind::IsNull(value) => Ok(Scalar::Bool(evaluate(value, row)?.is_null())),
        ExprKind::Arithmetic { op, left, right } => {
            arithmetic(*op, &evaluate(left, row)?, &evaluate(right, row)?, &expr.data_type)
        }
        ExprKind::Negate(value) => negate(&evaluate(value, row)?, &expr.data_type),
        ExprKind::In { value, list, list_has_null } => {
            let value = evaluate(value, row)?;
            if value.is_null() {
                return Ok(Scalar::Null);
            }
            if list.iter().any(|item| item.compare(&value).is_some_and(|ordering| ordering.is_eq())) {
                Ok(Scalar::Bool(true))
            } else if *list_has_null {
                Ok(Scalar::Null)
            } else {
                Ok(Scalar::Bool(false))
            }
        }
        ExprKind::Like { value, pattern, escape, case_insensitive } => match evaluate(value, row)? {
            Scalar::Null => Ok(Scalar::Null),
            Scalar::Bytes(bytes) => {
                Ok(Scalar::Bool(LikeMatcher::new(pattern, *escape, *case_insensitive)?.matches(&bytes)))
            }
            _ => Err(ill_formed("LIKE")),
        },
        ExprKind::Case { branches, otherwise } => {
            for (when, then) in branches {
                if evaluate(when, row)? == Scalar::Bool(true) {
                    return evaluate(then, row);
                }
            }
            otherwise.as_ref().map_or(Ok(Scalar::Null), |otherwise| evaluate(otherwise, row))
        }
        ExprKind::Coalesce(list) => {
            for item in list {
                let value = evaluate(item, row)?;
                if !value.is_null() {
                    return Ok(value);
                }
            }
            Ok(Scalar::Null)
        }
        ExprKind::Cast(value) => cast::cast(&evaluate(value, row)?, &value.data_type, &expr.data_type),
        ExprKind::Extract { field, value } => extract(*field, &evaluate(value, row)?, &value.data_type),
        ExprKind::AddInterval { value, months, days, microseconds } => {
            let interval = Interval { months: *months, days: *days, microseconds: *microseconds };
            add_interval(&evaluate(value, row)?, interval, &expr.data_type)
        }
        ExprKind::Substring { value, start, length } => {
            let value = evaluate(value, row)?;
            let start = evaluate(start, row)?;
            let length = length.as_ref().map(|length| evaluate(length, row)).transpose()?;
            substring(&value, &start, length.as_ref())
        }
        ExprKind::Length(value) => match evaluate(value, row)? {
            Scalar::Null => Ok(Scalar::Null),
            Scalar::Bytes(bytes) if value.data_type.is_text() => Ok(Scalar::I64(characters(&bytes) as i64)),
            Scalar::Bytes(bytes) => Ok(Scalar::I64(bytes.len() as i64)),
            _ => Err(ill_formed("LENGTH")),
        },
        ExprKind::Lower(value) => map_text(&evaluate(value, row)?, str::to_lowercase),
        ExprKind::Upper(value) => map_text(&evaluate(value, row)?, str::to_uppercase),
    }
}

fn ill_formed(what: &str) -> Error {
    Error::new(ErrorCode::Internal, format!("{what} over operands of the wrong lane"))
}

/// AND when `decisive` is false, OR when it is true. Stops at the first decisive operand.
fn connective(list: &[Expr], row: &dyn Fn(usize) -> Scalar, decisive: bool) -> Result<Scalar> {
    let mut unknown = false;
    for item in list {
        match evaluate(item, row)? {
            Scalar::Null => unknown = true,
            Scalar::Bool(value) if value == decisive => return Ok(Scalar::Bool(decisive)),
            Scalar::Bool(_) => {}
            _ => return Err(ill_formed(if decisive { "OR" } else { "AND" })),
        }
    }
    Ok(if unknown { Scalar::Null } else { Scalar::Bool(!decisive) })
}

/// The error of arithmetic that left the range of its type.
pub fn overflow(op: &str, data_type: &DataType) -> Error {
    Error::new(ErrorCode::NumericOverflow, format!("the result of {op} is out of the range of {data_type}"))
}

/// The error of `/` and `%` by zero.
pub fn division_by_zero() -> Error {
    Error::new(ErrorCode::DivisionByZero, "division by zero")
}

/// `left op right` for operands that already have the lane and scale that `Arithmetic` demands; the
/// result has type `data_type`.
pub fn arithmetic(op: ArithmeticOp, left: &Scalar, right: &Scalar, data_type: &DataType) -> Result<Scalar> {
    match (left, right) {
        (Scalar::Null, _) | (_, Scalar::Null) => Ok(Scalar::Null),
        (Scalar::F64(left), Scalar::F64(right)) => {
            let value = match op {
                ArithmeticOp::Add => left + right,
                ArithmeticOp::Subtract => left - right,
                ArithmeticOp::Multiply => left * right,
                ArithmeticOp::Divide => left / right,
                ArithmeticOp::Remainder => left % right,
            };
            Ok(Scalar::F64(if *data_type == DataType::Float32 { f64::from(value as f32) } else { value }))
        }
        _ => {
            let (Some(left), Some(right)) = (left.as_i128(), right.as_i128()) else {
                return Err(ill_formed("arithmetic"));
            };
            if right == 0 && matches!(op, ArithmeticOp::Divide | ArithmeticOp::Remainder) {
                return Err(division_by_zero());
            }
            let value = match op {
                ArithmeticOp::Add => left.checked_add(right),
                ArithmeticOp::Subtract => left.checked_sub(right),
                ArithmeticOp::Multiply => left.checked_mul(right),
                ArithmeticOp::Divide => left.checked_div(right),
                ArithmeticOp::Remainder => left.checked_rem(right),
            };
            value.and_then(|value| cast::in_lane(value, data_type)).ok_or_else(|| overflow(symbol(op), data_type))
        }
    }
}

/// The operator as written.
pub fn symbol(op: ArithmeticOp) -> &'static str {
    match op {
        ArithmeticOp::Add => "+",
        ArithmeticOp::Subtract => "-",
        ArithmeticOp::Multiply => "*",
        ArithmeticOp::Divide => "/",
        ArithmeticOp::Remainder => "%",
    }
}

fn negate(value: &Scalar, data_type: &DataType) -> Result<Scalar> {
    match value {
        Scalar::Null => Ok(Scalar::Null),
        Scalar::F64(value) => Ok(Scalar::F64(-value)),
        _ => value
            .as_i128()
            .ok_or_else(|| ill_formed("unary minus"))?
            .checked_neg()
            .and_then(|value| cast::in_lane(value, data_type))
            .ok_or_else(|| overflow("unary -", data_type)),
    }
}

/// A field of a date or timestamp value of this type.
pub fn extract(field: DateField, value: &Scalar, data_type: &DataType) -> Result<Scalar> {
    match (value, data_type) {
        (Scalar::Null, _) => Ok(Scalar::Null),
        (Scalar::I64(days), DataType::Date) => Ok(Scalar::I64(calendar::extract_from_date(field, *days))),
        (Scalar::I64(us), DataType::Timestamp { .. }) => Ok(Scalar::I64(calendar::extract_from_timestamp(field, *us))),
        _ => Err(ill_formed("EXTRACT")),
    }
}

/// A date or timestamp value of this type, moved.
pub fn add_interval(value: &Scalar, interval: Interval, data_type: &DataType) -> Result<Scalar> {
    let moved = match (value, data_type) {
        (Scalar::Null, _) => return Ok(Scalar::Null),
        (Scalar::I64(days), DataType::Date) => calendar::add_to_date(*days, interval),
        (Scalar::I64(us), DataType::Timestamp { .. }) => calendar::add_to_timestamp(*us, interval),
        _ => return Err(ill_formed("interval arithmetic")),
    };
    moved.map(Scalar::I64).ok_or_else(|| overflow("interval arithmetic", data_type))
}

/// Characters of UTF-8 bytes (bytes that begin a character).
#[inline]
pub fn characters(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count()
}

/// The byte range of `SUBSTRING(text FROM start FOR length)`: positions count characters from 1, and
/// positions below 1 count toward the length. A negative length is an error.
pub fn substring_range(text: &[u8], start: i64, length: Option<i64>) -> Result<std::ops::Range<usize>> {
    if let Some(length) = length
        && length < 0
    {
        return Err(Error::new(ErrorCode::InvalidValue, format!("SUBSTRING with the negative length {length}")));
    }
    let first = start.max(1) as u64 - 1;
    let end = length.map(|length| start.saturating_add(length).max(1) as u64 - 1);
    let mut starts = text.iter().enumerate().filter(|(_, byte)| **byte & 0xc0 != 0x80).map(|(at, _)| at);
    let offset_of = |starts: &mut dyn Iterator<Item = usize>, skip: u64| {
        usize::try_from(skip).ok().and_then(|skip| starts.nth(skip)).unwrap_or(text.len())
    };
    let from = offset_of(&mut starts, first);
    let to = match end {
        None => text.len(),
        Some(end) if end <= first => from,
        Some(end) => offset_of(&mut starts, end - first - 1),
    };
    Ok(from..to)
}

fn substring(value: &Scalar, start: &Scalar, length: Option<&Scalar>) -> Result<Scalar> {
    match (value, start, length) {
        (Scalar::Null, _, _) | (_, Scalar::Null, _) | (_, _, Some(Scalar::Null)) => Ok(Scalar::Null),
        (Scalar::Bytes(text), Scalar::I64(start), None) => {
            Ok(Scalar::Bytes(text[substring_range(text, *start, None)?].to_vec()))
        }
        (Scalar::Bytes(text), Scalar::I64(start), Some(Scalar::I64(length))) => {
            Ok(Scalar::Bytes(text[substring_range(text, *start, Some(*length))?].to_vec()))
        }
        _ => Err(ill_formed("SUBSTRING")),
    }
}

fn map_text(value: &Scalar, map: impl Fn(&str) -> String) -> Result<Scalar> {
    match value {
        Scalar::Null => Ok(Scalar::Null),
        Scalar::Bytes(bytes) => {
            let text = std::str::from_utf8(bytes).map_err(|_| ill_formed("LOWER or UPPER"))?;
            Ok(Scalar::Bytes(map(text).into_bytes()))
        }
        _ => Err(ill_formed("LOWER or UPPER")),
    }
}

/// Folds one node whose children are folded already.
pub(super) fn fold_node(expr: Expr) -> Expr {
    let data_type = expr.data_type;
    match expr.kind {
        ExprKind::Column(_) | ExprKind::Literal(_) | ExprKind::Parameter(_) => expr,
        ExprKind::And(list) => fold_connective(list, false),
        ExprKind::Or(list) => fold_connective(list, true),
        ExprKind::Case { branches, otherwise } => fold_case(branches, otherwise, data_type, expr.nullable),
        ExprKind::Coalesce(list) => fold_coalesce(list, data_type),
        ExprKind::IsNull(ref value) if !value.nullable => Expr::literal(Scalar::Bool(false), DataType::Boolean),
        ExprKind::Cast(ref value) if value.data_type == data_type => match expr.kind {
            ExprKind::Cast(value) => *value,
            _ => expr,
        },
        _ => {
            let constant = expr.children().iter().all(|child| matches!(child.kind, ExprKind::Literal(_)));
            if constant && let Ok(value) = evaluate(&expr, &|_| Scalar::Null) {
                return Expr::literal(value, data_type);
            }
            expr
        }
    }
}

fn boolean(value: &Expr) -> Option<bool> {
    match value.kind {
        ExprKind::Literal(Scalar::Bool(value)) => Some(value),
        _ => None,
    }
}

fn is_null_literal(value: &Expr) -> bool {
    matches!(value.kind, ExprKind::Literal(Scalar::Null))
}

/// Flattens nested lists, drops neutral constants, stops at a decisive one, keeps at most one NULL.
fn fold_connective(list: Vec<Expr>, decisive: bool) -> Expr {
    let mut flat: Vec<Expr> = Vec::with_capacity(list.len());
    let mut has_null = false;
    for item in list {
        let items = match item.kind {
            ExprKind::And(inner) if !decisive => inner,
            ExprKind::Or(inner) if decisive => inner,
            _ => vec![item],
        };
        for item in items {
            if boolean(&item) == Some(decisive) {
                return item;
            }
            if boolean(&item).is_some() || (is_null_literal(&item) && std::mem::replace(&mut has_null, true)) {
                continue;
            }
            flat.push(item);
        }
    }
    let nullable = flat.iter().any(|item| item.nullable);
    if flat.len() > 1 {
        let kind = if decisive { ExprKind::Or(flat) } else { ExprKind::And(flat) };
        return Expr { kind, data_type: DataType::Boolean, nullable };
    }
    flat.pop().unwrap_or_else(|| Expr::literal(Scalar::Bool(!decisive), DataType::Boolean))
}

fn fold_case(branches: Vec<(Expr, Expr)>, otherwise: Option<Box<Expr>>, data_type: DataType, nullable: bool) -> Expr {
    let mut kept = Vec::with_capacity(branches.len());
    let mut otherwise = otherwise;
    for (when, then) in branches {
        if boolean(&when) == Some(true) {
            otherwise = Some(Box::new(then));
            break;
        }
        if boolean(&when).is_some() || is_null_literal(&when) {
            continue;
        }
        kept.push((when, then));
    }
    if kept.is_empty() {
        return otherwise.map_or_else(|| Expr::literal(Scalar::Null, data_type), |otherwise| *otherwise);
    }
    Expr { kind: ExprKind::Case { branches: kept, otherwise }, data_type, nullable }
}

fn fold_coalesce(list: Vec<Expr>, data_type: DataType) -> Expr {
    let mut kept = Vec::with_capacity(list.len());
    for item in list {
        if is_null_literal(&item) {
            continue;
        }
        let last = !item.nullable;
        kept.push(item);
        if last {
            break;
        }
    }
    if kept.len() > 1 {
        let nullable = kept.iter().all(|item| item.nullable);
        return Expr { kind: ExprKind::Coalesce(kept), data_type, nullable };
    }
    kept.pop().unwrap_or_else(|| Expr::literal(Scalar::Null, data_type))
}

/// Folds every constant part of an expression, bottom up.
pub fn fold(expr: Expr) -> Expr {
    let Expr { kind, data_type, nullable } = expr;
    let each = |list: Vec<Expr>| list.into_iter().map(fold).collect::<Vec<_>>();
    let one = |value: Box<Expr>| Box::new(fold(*value));
    let kind = match kind {
        ExprKind::Column(_) | ExprKind::Literal(_) | ExprKind::Parameter(_) => kind,
        ExprKind::Compare { op, left, right } => ExprKind::Compare { op, left: one(left), right: one(right) },
        ExprKind::Arithmetic { op, left, right } => ExprKind::Arithmetic { op, left: one(left), right: one(right) },
        ExprKind::And(list) => ExprKind::And(each(list)),
        ExprKind::Or(list) => ExprKind::Or(each(list)),
        ExprKind::Coalesce(list) => ExprKind::Coalesce(each(list)),
        ExprKind::Not(value) => ExprKind::Not(one(value)),
        ExprKind::IsNull(value) => ExprKind::IsNull(one(value)),
        ExprKind::Negate(value) => ExprKind::Negate(one(value)),
        ExprKind::In { value, list, list_has_null } => ExprKind::In { value: one(value), list, list_has_null },
        ExprKind::Like { value, pattern, escape, case_insensitive } => {
            ExprKind::Like { value: one(value), pattern, escape, case_insensitive }
        }
        ExprKind::Case { branches, otherwise } => ExprKind::Case {
            branches: branches.into_iter().map(|(when, then)| (fold(when), fold(then))).collect(),
            otherwise: otherwise.map(one),
        },
        ExprKind::Cast(value) => ExprKind::Cast(one(value)),
        ExprKind::Extract { field, value } => ExprKind::Extract { field, value: one(value) },
        ExprKind::AddInterval { value, months, days, microseconds } => {
            ExprKind::AddInterval { value: one(value), months, days, microseconds }
        }
        ExprKind::Substring { value, start, length } => {
            ExprKind::Substring { value: one(value), start: one(start), length: length.map(one) }
        }
        ExprKind::Length(value) => ExprKind::Length(one(value)),
        ExprKind::Lower(value) => ExprKind::Lower(one(value)),
        ExprKind::Upper(value) => ExprKind::Upper(one(value)),
    };
    fold_node(Expr { kind, data_type, nullable })
}

/// Whether a value is in the lane of a type (or NULL).
pub fn has_lane(value: &Scalar, data_type: &DataType) -> bool {
    match value {
        Scalar::Null => true,
        Scalar::Bool(_) => data_type.lane() == Lane::Bool,
        Scalar::I64(_) => data_type.lane() == Lane::I64,
        Scalar::I128(_) => data_type.lane() == Lane::I128,
        Scalar::F64(_) => data_type.lane() == Lane::F64,
        Scalar::Bytes(_) => data_type.lane() == Lane::Bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn substring_follows_sql_for_starts_below_one() {
        let cut = |start, length| {
            let range = substring_range("häuser".as_bytes(), start, length).unwrap();
            std::str::from_utf8(&"häuser".as_bytes()[range]).unwrap().to_string()
        };
        assert_eq!(cut(2, Some(2)), "äu");
        assert_eq!(cut(1, None), "häuser");
        assert_eq!(cut(0, Some(2)), "h");
        assert_eq!(cut(-5, Some(3)), "");
        assert_eq!(cut(5, Some(i64::MAX)), "er");
        assert_eq!(cut(i64::MIN, Some(i64::MAX)), "");
        assert_eq!(cut(i64::MAX, None), "");
        assert_eq!(cut(3, Some(0)), "");
        assert!(substring_range(b"abc", 1, Some(-1)).is_err());
    }

    #[test]
    fn float32_arithmetic_gives_the_bits_of_f32() {
        let (a, b) = (0.1f32, 0.7f32);
        for (op, expected) in [
            (ArithmeticOp::Add, a + b),
            (ArithmeticOp::Subtract, a - b),
            (ArithmeticOp::Multiply, a * b),
            (ArithmeticOp::Divide, a / b),
            (ArithmeticOp::Remainder, b % a),
        ] {
            let (l, r) = if op == ArithmeticOp::Remainder { (b, a) } else { (a, b) };
            let value = arithmetic(op, &Scalar::F64(l.into()), &Scalar::F64(r.into()), &DataType::Float32).unwrap();
            assert_eq!(value, Scalar::F64(f64::from(expected)), "{op:?}");
        }
    }

    #[test]
    fn integer_overflow_and_division_by_zero_are_errors() {
        let run = |op, l, r, t: DataType| arithmetic(op, &Scalar::I64(l), &Scalar::I64(r), &t).map_err(|e| e.code);
        assert_eq!(run(ArithmeticOp::Add, 32_767, 1, DataType::Int16), Err(ErrorCode::NumericOverflow));
        assert_eq!(run(ArithmeticOp::Divide, i64::MIN, -1, DataType::Int64), Err(ErrorCode::NumericOverflow));
        assert_eq!(run(ArithmeticOp::Remainder, i64::MIN, -1, DataType::Int64), Ok(Scalar::I64(0)));
        assert_eq!(run(ArithmeticOp::Divide, 1, 0, DataType::Int64), Err(ErrorCode::DivisionByZero));
        assert_eq!(run(ArithmeticOp::Divide, -7, 2, DataType::Int64), Ok(Scalar::I64(-3)));
        assert_eq!(run(ArithmeticOp::Remainder, -7, 2, DataType::Int64), Ok(Scalar::I64(-1)));
    }
}
