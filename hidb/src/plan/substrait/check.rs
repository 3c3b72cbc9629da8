//! The invariants of `plan::expr`, checked node by node.
//!
//! A plan that says it was typed by `plan::build` may still come from anyone: the engine must be able to
//! rely on every node.

use crate::cast;
use crate::error::{Error, ErrorCode, Result};
use crate::plan::expr::{ArithmeticOp, CompareOp, Expr, ExprKind};
use crate::types::DataType;

/// Checks one node whose children are checked already.
pub(super) fn check(expr: Expr) -> Result<Expr> {
    if holds(&expr) {
        return Ok(expr);
    }
    let types: Vec<String> = expr.children().iter().map(|child| child.data_type.to_string()).collect();
    Err(Error::new(
        ErrorCode::TypeMismatch,
        format!("a typed plan has a node of type {} over ({}) that breaks its rules", expr.data_type, types.join(", ")),
    ))
}

fn scale(data_type: &DataType) -> i32 {
    match data_type {
        DataType::Decimal { scale, .. } => i32::from(*scale),
        _ => 0,
    }
}

fn holds(expr: &Expr) -> bool {
    let result = &expr.data_type;
    let boolean = *result == DataType::Boolean;
    let all_boolean = |list: &[Expr]| list.len() > 1 && list.iter().all(|item| item.data_type == DataType::Boolean);
    match &expr.kind {
        ExprKind::Column(_) | ExprKind::Literal(_) | ExprKind::Parameter(_) => true,
        ExprKind::Compare { op, left, right } => {
            let (left, right) = (&left.data_type, &right.data_type);
            let comparable = left.lane() == right.lane()
                && scale(left) == scale(right)
                && left.is_text() == right.is_text()
                && left.is_numeric() == right.is_numeric();
            let ordered = left.is_ordered() && right.is_ordered();
            let equality = matches!(op, CompareOp::Equal | CompareOp::NotEqual) && left == right;
            boolean && comparable && (ordered || equality)
        }
        ExprKind::And(list) | ExprKind::Or(list) => boolean && all_boolean(list),
        ExprKind::Not(value) => boolean && value.data_type == DataType::Boolean,
        ExprKind::IsNull(_) => boolean,
        ExprKind::Arithmetic { op, left, right } => {
            let (left, right) = (&left.data_type, &right.data_type);
            let dates = *op == ArithmeticOp::Subtract
                && *result == DataType::Int64
                && matches!(
                    (left, right),
                    (DataType::Date, DataType::Date) | (DataType::Timestamp { .. }, DataType::Timestamp { .. })
                );
            let lanes = left.lane() == result.lane() && right.lane() == result.lane();
            let numbers = left.is_numeric() && right.is_numeric() && result.is_numeric();
            let scales = match op {
                ArithmeticOp::Add | ArithmeticOp::Subtract | ArithmeticOp::Remainder => {
                    scale(left) == scale(result) && scale(right) == scale(result)
                }
                ArithmeticOp::Multiply => scale(left) + scale(right) == scale(result),
                ArithmeticOp::Divide => scale(left) - scale(right) == scale(result),
            };
            dates || numbers && lanes && scales
        }
        ExprKind::Negate(value) => value.data_type == *result && result.is_numeric(),
        ExprKind::In { value, list, .. } => {
            let lane =
                |item| !crate::types::Scalar::is_null(item) && crate::plan::fold::has_lane(item, &value.data_type);
            boolean && value.data_type.is_ordered() && list.iter().all(lane)
        }
        ExprKind::Like { value, .. } => boolean && value.data_type.is_text(),
        ExprKind::Case { branches, otherwise } => {
            let branch = |(when, then): &(Expr, Expr)| when.data_type == DataType::Boolean && then.data_type == *result;
            !branches.is_empty()
                && branches.iter().all(branch)
                && otherwise.iter().all(|otherwise| otherwise.data_type == *result)
        }
        ExprKind::Coalesce(list) => !list.is_empty() && list.iter().all(|item| item.data_type == *result),
        ExprKind::Cast(value) => cast::is_allowed(&value.data_type, result),
        ExprKind::Extract { value, .. } => *result == DataType::Int64 && is_moment(&value.data_type),
        ExprKind::AddInterval { value, microseconds, .. } => {
            value.data_type == *result && is_moment(result) && (*result != DataType::Date || *microseconds == 0)
        }
        ExprKind::Substring { value, start, length } => {
            let position = |expr: &Expr| expr.data_type == DataType::Int64;
            *result == DataType::Text
                && value.data_type.is_text()
                && position(start)
                && length.as_ref().is_none_or(|length| position(length))
        }
        ExprKind::Length(value) => {
            *result == DataType::Int64 && (value.data_type.is_text() || value.data_type == DataType::Bytea)
        }
        ExprKind::Lower(value) | ExprKind::Upper(value) => *result == DataType::Text && value.data_type.is_text(),
    }
}

fn is_moment(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Date | DataType::Timestamp { .. })
}
