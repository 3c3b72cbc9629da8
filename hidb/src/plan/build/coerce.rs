//! Common types, implicit coercion and CAST.

use super::{is_null_literal, mismatch, node, null};
use crate::cast as casting;
use crate::error::{Error, ErrorCode, Result};
use crate::plan::expr::{Expr, ExprKind};
use crate::types::{DECIMAL_PRECISION_MAX, DataType, Scalar};

/// The type that values of both types convert to without being asked, if there is one: the wider
/// integer, the decimal that holds both, Float64 with any float (Float32 only among Float32), Text among
/// texts, the timestamp among date and timestamp.
pub fn common_type(a: &DataType, b: &DataType) -> Option<DataType> {
    use DataType::{Date, Decimal, Float32, Float64, Int16, Int32, Int64, Text, Timestamp};
    if a == b {
        return Some(*a);
    }
    let decimal_of = |data_type: &DataType| match data_type {
        Decimal { precision, scale } => (*precision, *scale),
        integer => (casting::integer_digits(integer), 0),
    };
    Some(match (a, b) {
        (Float32, Float32) => Float32,
        (a, b) if a.is_numeric() && b.is_numeric() && (a.is_float() || b.is_float()) => Float64,
        (a, b) if a.is_integer() && b.is_integer() => match (a, b) {
            (Int64, _) | (_, Int64) => Int64,
            (Int32, _) | (_, Int32) => Int32,
            _ => Int16,
        },
        (a, b) if a.is_numeric() && b.is_numeric() => {
            let ((p1, s1), (p2, s2)) = (decimal_of(a), decimal_of(b));
            let scale = s1.max(s2);
            Decimal { precision: ((p1 - s1).max(p2 - s2) + scale).min(DECIMAL_PRECISION_MAX), scale }
        }
        (a, b) if a.is_text() && b.is_text() => Text,
        (Timestamp { utc: x }, Timestamp { utc: y }) => Timestamp { utc: *x || *y },
        (Timestamp { utc }, Date) | (Date, Timestamp { utc }) => Timestamp { utc: *utc },
        _ => return None,
    })
}

/// The common type of several expressions: NULL literals fit any, text literals fit dates, timestamps
/// and bytea.
pub(super) fn common_type_of<'a>(operator: &str, list: impl Iterator<Item = &'a Expr>) -> Result<DataType> {
    let mut found: Option<DataType> = None;
    let mut adaptable_text = false;
    for expr in list.filter(|expr| !is_null_literal(expr)) {
        let literal = matches!(expr.kind, ExprKind::Literal(_)) && expr.data_type.is_text();
        found = Some(match found {
            None => {
                adaptable_text = literal;
                expr.data_type
            }
            Some(so_far) => match common_type(&so_far, &expr.data_type) {
                Some(common) => {
                    adaptable_text &= literal;
                    common
                }
                None if literal && takes_text(&so_far) => so_far,
                None if adaptable_text && takes_text(&expr.data_type) => {
                    adaptable_text = false;
                    expr.data_type
                }
                None => {
                    return Err(mismatch(format!(
                        "{operator} needs values of one type, not {so_far} and {}: cast one of them",
                        expr.data_type
                    )));
                }
            },
        });
    }
    Ok(found.unwrap_or(DataType::Text))
}

/// Whether a text literal beside this type is read as this type.
pub(super) fn takes_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Date | DataType::Timestamp { .. } | DataType::Bytea)
}

/// The constant of a text literal as a value of the type it stands beside.
pub(super) fn read_text_literal(bytes: &[u8], data_type: &DataType) -> Result<Scalar> {
    let text = std::str::from_utf8(bytes).unwrap_or("");
    casting::parse_text(text, data_type).ok_or_else(|| {
        let form = match data_type {
            DataType::Date => ": write 'YYYY-MM-DD'",
            DataType::Timestamp { .. } => ": write 'YYYY-MM-DD HH:MM:SS'",
            _ => "",
        };
        Error::new(ErrorCode::InvalidCast, format!("text {text:?} is not a {data_type}{form}"))
    })
}

/// Implicit conversion to exactly this type.
pub fn coerce(expr: Expr, to: DataType) -> Result<Expr> {
    if expr.data_type == to {
        return Ok(expr);
    }
    if is_null_literal(&expr) {
        return Ok(null(to));
    }
    if let ExprKind::Literal(Scalar::Bytes(bytes)) = &expr.kind
        && expr.data_type.is_text()
        && takes_text(&to)
    {
        return Ok(Expr::literal(read_text_literal(bytes, &to)?, to));
    }
    // A constant of another type converts only if it keeps its value (an integer in a decimal's place).
    let allowed = common_type(&expr.data_type, &to) == Some(to)
        || expr.data_type.is_numeric() && to.is_numeric()
        || expr.data_type.is_text() && to.is_text();
    if !allowed {
        return Err(mismatch(format!("{} where {to} is needed: cast it", expr.data_type)));
    }
    cast(expr, to)
}

/// `CAST(value AS to)`.
pub fn cast(value: Expr, to: DataType) -> Result<Expr> {
    if !to.is_valid() {
        return Err(mismatch(format!("{to} is not a valid type")));
    }
    if is_null_literal(&value) {
        return Ok(null(to));
    }
    if !casting::is_allowed(&value.data_type, &to) {
        return Err(mismatch(format!("there is no cast from {} to {to}", value.data_type)));
    }
    let nullable = value.nullable;
    Ok(node(ExprKind::Cast(Box::new(value)), to, nullable))
}
