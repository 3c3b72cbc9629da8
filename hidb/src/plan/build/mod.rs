//! Smart constructors of typed expressions.
//!
//! Owns typing, coercion and rewriting: everything that turns "this operator over these operands" into an
//! [`Expr`] that keeps the invariants of `plan::expr`. The rules for people are in `docs/semantics.md`.
//!
//! Invariants
//! - Constants adapt to columns, never the other way round, wherever the answer stays the same: a scan can
//!   then compare encoded values. The rewritten expression equals the naive one on every row, NULL included.
//! - Every constructor folds its constants (`plan::fold`).
//! - Errors name the operator and the types.
//!
//! Called by `plan::sql` and `plan::substrait`.

mod arithmetic;
mod coerce;
mod compare;

pub use arithmetic::{add_interval, arithmetic, negate};
pub use coerce::{cast, coerce, common_type};
pub use compare::{between, compare, in_list, is_distinct};

use super::expr::{CompareOp, DateField, Expr, ExprKind};
use super::fold::fold_node;
use super::scan::{Aggregate, AggregateFunction, ScanPlan};
use super::{EXPRESSION_DEPTH_MAX, EXPRESSION_NODES_MAX};
use crate::error::{Error, ErrorCode, Result};
use crate::like::{LikeMatcher, LikeShape};
use crate::schema::Schema;
use crate::types::{DECIMAL_PRECISION_MAX, DataType, Scalar};
use crate::{ROWID_COLUMN, decimal};

pub(super) fn mismatch(message: String) -> Error {
    Error::new(ErrorCode::TypeMismatch, message)
}

/// A node over operands that are typed and coerced already, folded.
fn node(kind: ExprKind, data_type: DataType, nullable: bool) -> Expr {
    fold_node(Expr { kind, data_type, nullable })
}

fn is_literal(expr: &Expr) -> bool {
    matches!(expr.kind, ExprKind::Literal(_))
}

fn is_null_literal(expr: &Expr) -> bool {
    matches!(expr.kind, ExprKind::Literal(Scalar::Null))
}

/// The NULL literal of a type.
pub fn null(data_type: DataType) -> Expr {
    Expr::literal(Scalar::Null, data_type)
}

/// The text literal of this value.
pub fn text(value: impl Into<String>) -> Expr {
    Expr::literal(Scalar::Bytes(value.into().into_bytes()), DataType::Text)
}

/// The Int64 literal of this value.
pub fn integer(value: i64) -> Expr {
    Expr::literal(Scalar::I64(value), DataType::Int64)
}

/// The Boolean literal of this value.
pub fn boolean(value: bool) -> Expr {
    Expr::literal(Scalar::Bool(value), DataType::Boolean)
}

/// The decimal literal `unscaled / 10^scale`, with as few digits as hold it.
pub fn decimal_literal(unscaled: i128, scale: u8) -> Result<Expr> {
    let precision = decimal::digits(unscaled).max(scale);
    let data_type = DataType::Decimal { precision, scale };
    if precision > DECIMAL_PRECISION_MAX {
        return Err(Error::new(ErrorCode::NumericOverflow, "a decimal literal has more than 38 digits"));
    }
    let value = crate::cast::in_lane(unscaled, &data_type)
        .ok_or_else(|| Error::new(ErrorCode::NumericOverflow, "a decimal literal has more than 38 digits"))?;
    Ok(Expr::literal(value, data_type))
}

/// The table's column of this name, `_rowid` included (index `schema.len()`).
pub fn column(schema: &Schema, name: &str) -> Result<Expr> {
    if let Some((index, field)) = schema.find(name) {
        return Ok(Expr::column(index, field.data_type, field.nullable));
    }
    if name.eq_ignore_ascii_case(ROWID_COLUMN) {
        return Ok(Expr::column(schema.len(), DataType::Int64, false));
    }
    Err(unknown_column(name, schema.fields().iter().map(|field| field.name.as_str())))
}

/// The error for a column that is not there: lists those with a similar name, else the first few.
pub fn unknown_column<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Error {
    let known: Vec<&str> = known.collect();
    let wanted = name.to_lowercase();
    let mut close: Vec<(usize, &str)> = known
        .iter()
        .filter(|candidate| candidate.len() <= 128 && wanted.len() <= 128)
        .map(|candidate| {
            let lower = candidate.to_lowercase();
            let contained = !wanted.is_empty() && (lower.contains(&wanted) || wanted.contains(&lower));
            (if contained { 1 } else { edit_distance(&wanted, &lower) }, *candidate)
        })
        .filter(|(distance, candidate)| *distance <= 1 + candidate.chars().count().min(wanted.chars().count()) / 4)
        .collect();
    close.sort();
    let message = if close.is_empty() {
        let shown: Vec<&str> = known.iter().take(20).copied().collect();
        let more =
            if known.len() > shown.len() { format!(" and {} more", known.len() - shown.len()) } else { String::new() };
        format!("there is no column {name:?}; the columns are {}{more}", shown.join(", "))
    } else {
        let shown: Vec<&str> = close.iter().take(3).map(|(_, candidate)| *candidate).collect();
        format!("there is no column {name:?}: did you mean {}?", shown.join(" or "))
    };
    Error::new(ErrorCode::UnknownColumn, message)
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn want_boolean(operator: &str, value: Expr) -> Result<Expr> {
    if is_null_literal(&value) {
        return Ok(null(DataType::Boolean));
    }
    if value.data_type != DataType::Boolean {
        return Err(mismatch(format!("{operator} needs a boolean, not {}", value.data_type)));
    }
    Ok(value)
}

/// Conjunction of any number (none: true).
pub fn and(list: Vec<Expr>) -> Result<Expr> {
    let list = list.into_iter().map(|item| want_boolean("AND", item)).collect::<Result<Vec<_>>>()?;
    let nullable = list.iter().any(|item| item.nullable);
    Ok(node(ExprKind::And(list), DataType::Boolean, nullable))
}

/// Disjunction of any number (none: false).
pub fn or(list: Vec<Expr>) -> Result<Expr> {
    let list = list.into_iter().map(|item| want_boolean("OR", item)).collect::<Result<Vec<_>>>()?;
    let nullable = list.iter().any(|item| item.nullable);
    Ok(node(ExprKind::Or(list), DataType::Boolean, nullable))
}

/// Negation, pushed into comparisons, AND and OR (all of which is the same in three-valued logic).
pub fn not(value: Expr) -> Result<Expr> {
    let value = want_boolean("NOT", value)?;
    let Expr { kind, data_type, nullable } = value;
    match kind {
        ExprKind::Not(inner) => Ok(*inner),
        ExprKind::Compare { op, left, right } => {
            let op = match op {
                CompareOp::Equal => CompareOp::NotEqual,
                CompareOp::NotEqual => CompareOp::Equal,
                CompareOp::Less => CompareOp::GreaterOrEqual,
                CompareOp::LessOrEqual => CompareOp::Greater,
                CompareOp::Greater => CompareOp::LessOrEqual,
                CompareOp::GreaterOrEqual => CompareOp::Less,
            };
            Ok(node(ExprKind::Compare { op, left, right }, data_type, nullable))
        }
        ExprKind::And(list) => or(list.into_iter().map(not).collect::<Result<_>>()?),
        ExprKind::Or(list) => and(list.into_iter().map(not).collect::<Result<_>>()?),
        kind => {
            let value = Box::new(Expr { kind, data_type, nullable });
            Ok(node(ExprKind::Not(value), data_type, nullable))
        }
    }
}

/// `value IS NULL`, of any type.
pub fn is_null(value: Expr) -> Expr {
    node(ExprKind::IsNull(Box::new(value)), DataType::Boolean, false)
}

/// `value IS TRUE` or `value IS FALSE`; never NULL.
pub fn is_truth(value: Expr, truth: bool) -> Result<Expr> {
    let value = want_boolean(if truth { "IS TRUE" } else { "IS FALSE" }, value)?;
    let value = if truth { value } else { not(value)? };
    coalesce(vec![value, boolean(false)])
}

/// `value [I]LIKE pattern`.
pub fn like(value: Expr, pattern: &str, escape: Option<char>, case_insensitive: bool) -> Result<Expr> {
    let name = if case_insensitive { "ILIKE" } else { "LIKE" };
    let matcher = LikeMatcher::new(pattern, escape, case_insensitive)?;
    if is_null_literal(&value) {
        return Ok(null(DataType::Boolean));
    }
    if !value.data_type.is_text() {
        return Err(mismatch(format!("{name} needs text on its left, not {}", value.data_type)));
    }
    match matcher.shape() {
        LikeShape::All => return Ok(compare::constant_unless_null(value, true)),
        LikeShape::Exact(literal) if !case_insensitive => {
            let literal = Expr::literal(Scalar::Bytes(literal.clone()), DataType::Text);
            return compare(CompareOp::Equal, value, literal);
        }
        _ => {}
    }
    let nullable = value.nullable;
    let kind = ExprKind::Like { value: Box::new(value), pattern: pattern.to_string(), escape, case_insensitive };
    Ok(node(kind, DataType::Boolean, nullable))
}

/// Searched CASE.
pub fn case(branches: Vec<(Expr, Expr)>, otherwise: Option<Expr>) -> Result<Expr> {
    let types = branches.iter().map(|(_, then)| then).chain(otherwise.as_ref());
    let data_type = coerce::common_type_of("CASE", types)?;
    let mut nullable = otherwise.as_ref().is_none_or(|otherwise| otherwise.nullable);
    let mut typed = Vec::with_capacity(branches.len());
    for (when, then) in branches {
        nullable |= then.nullable;
        typed.push((want_boolean("WHEN", when)?, coerce(then, data_type)?));
    }
    let otherwise = otherwise.map(|otherwise| coerce(otherwise, data_type).map(Box::new)).transpose()?;
    Ok(node(ExprKind::Case { branches: typed, otherwise }, data_type, nullable))
}

/// `CASE operand WHEN value THEN ... END`.
pub fn simple_case(operand: &Expr, branches: Vec<(Expr, Expr)>, otherwise: Option<Expr>) -> Result<Expr> {
    let searched = branches
        .into_iter()
        .map(|(value, then)| Ok((compare(CompareOp::Equal, operand.clone(), value)?, then)))
        .collect::<Result<Vec<_>>>()?;
    case(searched, otherwise)
}

/// The first that is not NULL.
pub fn coalesce(list: Vec<Expr>) -> Result<Expr> {
    let data_type = coerce::common_type_of("COALESCE", list.iter())?;
    let nullable = list.iter().all(|item| item.nullable);
    let list = list.into_iter().map(|item| coerce(item, data_type)).collect::<Result<Vec<_>>>()?;
    Ok(node(ExprKind::Coalesce(list), data_type, nullable))
}

/// NULL when the two are equal, else the first.
pub fn nullif(value: Expr, other: Expr) -> Result<Expr> {
    let data_type = value.data_type;
    let equal = compare(CompareOp::Equal, value.clone(), other)?;
    case(vec![(equal, null(data_type))], Some(value))
}

/// `EXTRACT(field FROM value)`, an Int64.
pub fn extract(field: DateField, value: Expr) -> Result<Expr> {
    if !matches!(value.data_type, DataType::Date | DataType::Timestamp { .. }) && !is_null_literal(&value) {
        return Err(mismatch(format!("EXTRACT needs a date or timestamp, not {}", value.data_type)));
    }
    if is_null_literal(&value) {
        return Ok(null(DataType::Int64));
    }
    let nullable = value.nullable;
    Ok(node(ExprKind::Extract { field, value: Box::new(value) }, DataType::Int64, nullable))
}

/// `SUBSTRING(value FROM start [FOR length])`.
pub fn substring(value: Expr, start: Expr, length: Option<Expr>) -> Result<Expr> {
    let value = want_text("SUBSTRING", value)?;
    let position = |expr: Expr| {
        if !expr.data_type.is_integer() && !is_null_literal(&expr) {
            return Err(mismatch(format!("SUBSTRING needs integer positions, not {}", expr.data_type)));
        }
        coerce(expr, DataType::Int64)
    };
    let start = position(start)?;
    let length = length.map(position).transpose()?;
    let nullable = value.nullable || start.nullable || length.as_ref().is_some_and(|length| length.nullable);
    let data_type = DataType::Text;
    let kind = ExprKind::Substring { value: Box::new(value), start: Box::new(start), length: length.map(Box::new) };
    Ok(node(kind, data_type, nullable))
}

fn want_text(function: &str, value: Expr) -> Result<Expr> {
    if is_null_literal(&value) {
        return Ok(null(DataType::Text));
    }
    if !value.data_type.is_text() {
        return Err(mismatch(format!("{function} needs text, not {}", value.data_type)));
    }
    Ok(value)
}

/// Characters of text, bytes of bytea.
pub fn length(value: Expr) -> Result<Expr> {
    if !value.data_type.is_text() && value.data_type != DataType::Bytea && !is_null_literal(&value) {
        return Err(mismatch(format!("LENGTH needs text or bytea, not {}", value.data_type)));
    }
    let nullable = value.nullable;
    Ok(node(ExprKind::Length(Box::new(value)), DataType::Int64, nullable))
}

/// Unicode lower case.
pub fn lower(value: Expr) -> Result<Expr> {
    let value = want_text("LOWER", value)?;
    let nullable = value.nullable;
    Ok(node(ExprKind::Lower(Box::new(value)), DataType::Text, nullable))
}

/// Unicode upper case.
pub fn upper(value: Expr) -> Result<Expr> {
    let value = want_text("UPPER", value)?;
    let nullable = value.nullable;
    Ok(node(ExprKind::Upper(Box::new(value)), DataType::Text, nullable))
}

/// An aggregate with its result type. `argument` is `None` only for `count(*)`.
pub fn aggregate(function: AggregateFunction, argument: Option<Expr>) -> Result<Aggregate> {
    let data_type = match (function, argument.as_ref().map(|argument| argument.data_type)) {
        (AggregateFunction::Count, _) => DataType::Int64,
        (_, None) => {
            return Err(Error::new(
                ErrorCode::UnknownFunction,
                "only count takes *: every other aggregate needs an argument",
            ));
        }
        (AggregateFunction::CountDistinct, Some(_)) => DataType::Int64,
        (AggregateFunction::Sum, Some(DataType::Decimal { precision, scale })) => {
            DataType::Decimal { precision: (precision + 10).min(DECIMAL_PRECISION_MAX), scale }
        }
        (AggregateFunction::Sum, Some(argument)) if argument.is_integer() => DataType::Int64,
        (AggregateFunction::Avg, Some(DataType::Decimal { precision, scale })) => DataType::Decimal {
            precision: (precision + 4).min(DECIMAL_PRECISION_MAX),
            scale: (scale + 4).min(DECIMAL_PRECISION_MAX),
        },
        (AggregateFunction::Sum | AggregateFunction::Avg, Some(argument)) if argument.is_numeric() => DataType::Float64,
        (AggregateFunction::Min | AggregateFunction::Max, Some(argument)) if argument.is_ordered() => argument,
        (function, Some(argument)) => {
            let name = match function {
                AggregateFunction::Sum => "sum",
                AggregateFunction::Avg => "avg",
                AggregateFunction::Min => "min",
                AggregateFunction::Max => "max",
                AggregateFunction::Count | AggregateFunction::CountDistinct => "count",
            };
            return Err(mismatch(format!("there is no {name}({argument})")));
        }
    };
    Ok(Aggregate { function, argument, data_type })
}

/// Checks the number of nodes and the depth of the expressions of one plan.
pub fn check_limits<'a>(expressions: impl IntoIterator<Item = &'a Expr>) -> Result<()> {
    let mut nodes = 0usize;
    // An explicit stack: the check must survive what it is there to refuse.
    let mut pending: Vec<(&Expr, usize)> = expressions.into_iter().map(|expr| (expr, 1)).collect();
    while let Some((expr, depth)) = pending.pop() {
        nodes += 1;
        if nodes > EXPRESSION_NODES_MAX {
            return Err(Error::new(
                ErrorCode::LimitExceeded,
                format!("the expressions have more than {EXPRESSION_NODES_MAX} nodes"),
            ));
        }
        if depth > EXPRESSION_DEPTH_MAX {
            return Err(too_deep());
        }
        pending.extend(expr.children().into_iter().map(|child| (child, depth + 1)));
    }
    Ok(())
}

/// The error of an expression that nests too deeply.
pub(super) fn too_deep() -> Error {
    Error::new(
        ErrorCode::LimitExceeded,
        format!("an expression nests more than {EXPRESSION_DEPTH_MAX} levels deep: simplify it"),
    )
}

/// [`check_limits`] over every expression of a plan.
pub fn check_plan_limits(plan: &ScanPlan) -> Result<()> {
    let aggregation = plan.aggregation.iter().flat_map(|aggregation| {
        aggregation.keys.iter().chain(aggregation.aggregates.iter().filter_map(|aggregate| aggregate.argument.as_ref()))
    });
    let outputs = plan.outputs.iter().map(|output| &output.expr);
    check_limits(plan.filter.iter().chain(aggregation).chain(plan.having.iter()).chain(outputs))
}

#[cfg(test)]
mod tests;
