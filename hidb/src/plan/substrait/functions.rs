//! The functions a plan may call: their names, and what they become.
//!
//! Names are compared without the signature suffix (`equal:any_any` is `equal`) and without regard to the
//! extension they are declared in, because producers differ in both.

use crate::calendar::Interval;
use crate::error::{Error, ErrorCode, Result};
use crate::plan::build;
use crate::plan::expr::{ArithmeticOp, CompareOp, DateField, Expr, ExprKind};
use crate::types::{DataType, Scalar};

use super::check::check;
use super::unsupported;

/// Every scalar function name that is accepted.
pub const SCALAR_FUNCTIONS: &[&str] = &[
    "add",
    "and",
    "between",
    "char_length",
    "character_length",
    "coalesce",
    "contains",
    "date_part",
    "divide",
    "ends_with",
    "equal",
    "extract",
    "gt",
    "gte",
    "ilike",
    "is_distinct_from",
    "is_false",
    "is_not_distinct_from",
    "is_not_null",
    "is_null",
    "is_true",
    "length",
    "like",
    "lower",
    "lt",
    "lte",
    "modulus",
    "multiply",
    "negate",
    "not",
    "not_equal",
    "nullif",
    "octet_length",
    "or",
    "starts_with",
    "substr",
    "substring",
    "subtract",
    "upper",
];
/// Every aggregate function name that is accepted; `count` also with DISTINCT, and without arguments.
pub const AGGREGATE_FUNCTIONS: &[&str] = &["avg", "count", "max", "min", "sum"];

/// An argument of a function call.
pub(super) enum Argument {
    Value(Expr),
    Interval(Interval),
    Enum(String),
}

/// A call with its arguments read.
pub(super) struct Call<'a> {
    pub name: &'a str,
    pub arguments: Vec<Argument>,
    /// `case_sensitivity` asked for case-insensitive matching.
    pub case_insensitive: bool,
    /// The declared result, only in plans that are typed already.
    pub typed: Option<(DataType, bool)>,
}

/// The error for a function that is not known.
pub(super) fn unknown(name: &str) -> Error {
    Error::new(
        ErrorCode::UnknownFunction,
        format!("function {name:?} can't be pushed down; supported: {}", SCALAR_FUNCTIONS.join(", ")),
    )
}

fn wrong_arguments(name: &str) -> Error {
    Error::new(ErrorCode::UnknownFunction, format!("function {name:?} does not take these arguments"))
}

fn compare_op(name: &str) -> Option<CompareOp> {
    Some(match name {
        "equal" => CompareOp::Equal,
        "not_equal" => CompareOp::NotEqual,
        "lt" => CompareOp::Less,
        "lte" => CompareOp::LessOrEqual,
        "gt" => CompareOp::Greater,
        "gte" => CompareOp::GreaterOrEqual,
        _ => return None,
    })
}

fn arithmetic_op(name: &str) -> Option<ArithmeticOp> {
    Some(match name {
        "add" => ArithmeticOp::Add,
        "subtract" => ArithmeticOp::Subtract,
        "multiply" => ArithmeticOp::Multiply,
        "divide" => ArithmeticOp::Divide,
        "modulus" => ArithmeticOp::Remainder,
        _ => return None,
    })
}

/// The standard name of a comparison.
pub(super) fn compare_name(op: CompareOp) -> &'static str {
    match op {
        CompareOp::Equal => "equal",
        CompareOp::NotEqual => "not_equal",
        CompareOp::Less => "lt",
        CompareOp::LessOrEqual => "lte",
        CompareOp::Greater => "gt",
        CompareOp::GreaterOrEqual => "gte",
    }
}

/// The standard name of an arithmetic operation.
pub(super) fn arithmetic_name(op: ArithmeticOp) -> &'static str {
    match op {
        ArithmeticOp::Add => "add",
        ArithmeticOp::Subtract => "subtract",
        ArithmeticOp::Multiply => "multiply",
        ArithmeticOp::Divide => "divide",
        ArithmeticOp::Remainder => "modulus",
    }
}

/// The component of `extract`, and whether it counts from one (None: it has no indexing argument).
pub(super) fn extract_component(field: DateField) -> (&'static str, Option<&'static str>) {
    match field {
        DateField::Year => ("YEAR", None),
        DateField::Quarter => ("QUARTER", Some("ONE")),
        DateField::Month => ("MONTH", Some("ONE")),
        DateField::Week => ("ISO_WEEK", Some("ONE")),
        DateField::Day => ("DAY", Some("ONE")),
        DateField::DayOfWeek => ("SUNDAY_DAY_OF_WEEK", Some("ZERO")),
        DateField::DayOfYear => ("DAY_OF_YEAR", Some("ONE")),
        DateField::Hour => ("HOUR", None),
        DateField::Minute => ("MINUTE", None),
        DateField::Second => ("SECOND", None),
        DateField::Epoch => ("UNIX_TIME", None),
    }
}

fn date_field(component: &str, indexing: Option<&str>) -> Result<DateField> {
    let field = match component.to_ascii_uppercase().as_str() {
        "YEAR" => DateField::Year,
        "QUARTER" => DateField::Quarter,
        "MONTH" => DateField::Month,
        "WEEK" | "ISO_WEEK" => DateField::Week,
        "DAY" => DateField::Day,
        "DOW" | "DAYOFWEEK" | "SUNDAY_DAY_OF_WEEK" => DateField::DayOfWeek,
        "DOY" | "DAYOFYEAR" | "DAY_OF_YEAR" => DateField::DayOfYear,
        "HOUR" => DateField::Hour,
        "MINUTE" => DateField::Minute,
        "SECOND" => DateField::Second,
        "EPOCH" | "UNIX_TIME" => DateField::Epoch,
        _ => {
            return Err(unsupported(format!(
                "extract of {component:?} is not supported; supported: YEAR, QUARTER, MONTH, ISO_WEEK, DAY, \
                 SUNDAY_DAY_OF_WEEK, DAY_OF_YEAR, HOUR, MINUTE, SECOND, UNIX_TIME"
            )));
        }
    };
    match (extract_component(field).1, indexing) {
        (_, None) => Ok(field),
        (Some(ours), Some(theirs)) if theirs.eq_ignore_ascii_case(ours) => Ok(field),
        _ => Err(unsupported(format!("extract of {component:?} with indexing {indexing:?} is not supported"))),
    }
}

/// A text constant.
fn constant_text(expr: &Expr) -> Option<&str> {
    match &expr.kind {
        ExprKind::Literal(Scalar::Bytes(bytes)) if expr.data_type.is_text() => std::str::from_utf8(bytes).ok(),
        _ => None,
    }
}

/// The call as an expression.
pub(super) fn call(call: Call<'_>) -> Result<Expr> {
    let Call { name, arguments, case_insensitive, typed } = call;
    if let [first, .., last] = arguments.as_slice()
        && matches!(name, "add" | "subtract")
        && (matches!(first, Argument::Interval(_)) || matches!(last, Argument::Interval(_)))
    {
        return moved_by_interval(name, arguments, typed);
    }
    if matches!(name, "extract" | "date_part") {
        return extract(name, arguments, typed);
    }
    let mut values = Vec::with_capacity(arguments.len());
    for argument in arguments {
        match argument {
            Argument::Value(expr) => values.push(expr),
            Argument::Interval(_) => {
                return Err(unsupported(format!(
                    "an interval as argument of {name:?}: only dates plus or minus intervals"
                )));
            }
            Argument::Enum(_) => return Err(wrong_arguments(name)),
        }
    }
    if matches!(name, "like" | "ilike") {
        return like(name, values, case_insensitive || name == "ilike", typed);
    }
    match typed {
        Some((data_type, nullable)) => typed_call(name, values, data_type, nullable),
        None => coerced_call(name, values, case_insensitive),
    }
}

fn boxed<const N: usize>(name: &str, values: Vec<Expr>) -> Result<[Box<Expr>; N]> {
    let values: [Expr; N] = values.try_into().map_err(|_| wrong_arguments(name))?;
    Ok(values.map(Box::new))
}

/// A node that `plan::build` made elsewhere: taken as it is, and checked.
fn typed_call(name: &str, values: Vec<Expr>, data_type: DataType, nullable: bool) -> Result<Expr> {
    let kind = if let Some(op) = compare_op(name) {
        let [left, right] = boxed(name, values)?;
        ExprKind::Compare { op, left, right }
    } else if let Some(op) = arithmetic_op(name) {
        let [left, right] = boxed(name, values)?;
        ExprKind::Arithmetic { op, left, right }
    } else {
        match name {
            "and" => ExprKind::And(values),
            "or" => ExprKind::Or(values),
            "coalesce" => ExprKind::Coalesce(values),
            "not" => {
                let [value] = boxed(name, values)?;
                ExprKind::Not(value)
            }
            "is_null" => {
                let [value] = boxed(name, values)?;
                ExprKind::IsNull(value)
            }
            "negate" => {
                let [value] = boxed(name, values)?;
                ExprKind::Negate(value)
            }
            "substring" if values.len() == 2 => {
                let [value, start] = boxed(name, values)?;
                ExprKind::Substring { value, start, length: None }
            }
            "substring" => {
                let [value, start, length] = boxed(name, values)?;
                ExprKind::Substring { value, start, length: Some(length) }
            }
            "char_length" | "octet_length" => {
                let [value] = boxed(name, values)?;
                ExprKind::Length(value)
            }
            "lower" => {
                let [value] = boxed(name, values)?;
                ExprKind::Lower(value)
            }
            "upper" => {
                let [value] = boxed(name, values)?;
                ExprKind::Upper(value)
            }
            _ => return Err(unknown(name)),
        }
    };
    check(Expr { kind, data_type, nullable })
}

/// A node of any producer: typed and coerced by the rules that text follows.
fn coerced_call(name: &str, values: Vec<Expr>, case_insensitive: bool) -> Result<Expr> {
    if let Some(op) = compare_op(name) {
        let [left, right] = boxed(name, values)?;
        return build::compare(op, *left, *right);
    }
    if let Some(op) = arithmetic_op(name) {
        let [left, right] = boxed(name, values)?;
        return build::arithmetic(op, *left, *right);
    }
    let one = |values: Vec<Expr>| boxed::<1>(name, values).map(|[value]| *value);
    let two = |values: Vec<Expr>| boxed::<2>(name, values).map(|[left, right]| (*left, *right));
    match name {
        "and" => build::and(values),
        "or" => build::or(values),
        "coalesce" => build::coalesce(values),
        "not" => build::not(one(values)?),
        "is_null" => Ok(build::is_null(one(values)?)),
        "is_not_null" => build::not(build::is_null(one(values)?)),
        "is_true" => build::is_truth(one(values)?, true),
        "is_false" => build::is_truth(one(values)?, false),
        "negate" => build::negate(one(values)?),
        "between" => {
            let [value, low, high] = boxed(name, values)?;
            build::between(*value, *low, *high)
        }
        "is_distinct_from" => two(values).and_then(|(left, right)| build::is_distinct(left, right)),
        "is_not_distinct_from" => two(values).and_then(|(left, right)| build::not(build::is_distinct(left, right)?)),
        "nullif" => two(values).and_then(|(value, other)| build::nullif(value, other)),
        "substring" | "substr" if values.len() == 2 => {
            two(values).and_then(|(value, start)| build::substring(value, start, None))
        }
        "substring" | "substr" => {
            let [value, start, length] = boxed(name, values)?;
            build::substring(*value, *start, Some(*length))
        }
        "length" | "char_length" | "character_length" => build::length(one(values)?),
        "octet_length" => {
            let value = one(values)?;
            match value.data_type {
                DataType::Bytea => build::length(value),
                other => Err(unsupported(format!("octet_length({other}) is not supported: only of bytea"))),
            }
        }
        "lower" => build::lower(one(values)?),
        "upper" => build::upper(one(values)?),
        "starts_with" | "ends_with" | "contains" => {
            let (value, part) = two(values)?;
            let part =
                constant_text(&part).ok_or_else(|| unsupported(format!("{name} needs a constant to look for")))?;
            let part = escaped(part);
            let pattern = match name {
                "starts_with" => format!("{part}%"),
                "ends_with" => format!("%{part}"),
                _ => format!("%{part}%"),
            };
            build::like(value, &pattern, Some('\\'), case_insensitive)
        }
        _ => Err(unknown(name)),
    }
}

/// A text as a LIKE pattern that matches only it.
fn escaped(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern
}

/// `like(value, pattern[, escape])`: an empty escape is none, a NULL or missing one is `\`.
fn like(name: &str, mut values: Vec<Expr>, case_insensitive: bool, typed: Option<(DataType, bool)>) -> Result<Expr> {
    let escape = match values.get(2) {
        None => Some('\\'),
        Some(expr) if matches!(expr.kind, ExprKind::Literal(Scalar::Null)) => Some('\\'),
        Some(expr) => {
            let text =
                constant_text(expr).ok_or_else(|| unsupported(format!("the escape of {name} must be a constant")))?;
            let mut characters = text.chars();
            match (characters.next(), characters.next()) {
                (escape, None) => escape,
                _ => return Err(unsupported(format!("the escape of {name} must be one character, not {text:?}"))),
            }
        }
    };
    values.truncate(2);
    let [value, pattern] = boxed(name, values)?;
    if matches!(pattern.kind, ExprKind::Literal(Scalar::Null)) {
        return Ok(build::null(DataType::Boolean));
    }
    let pattern =
        constant_text(&pattern).ok_or_else(|| unsupported(format!("the pattern of {name} must be a constant")))?;
    match typed {
        None => build::like(*value, pattern, escape, case_insensitive),
        Some((data_type, nullable)) => {
            crate::like::LikeMatcher::new(pattern, escape, case_insensitive)?;
            let kind = ExprKind::Like { value, pattern: pattern.to_string(), escape, case_insensitive };
            check(Expr { kind, data_type, nullable })
        }
    }
}

fn extract(name: &str, arguments: Vec<Argument>, typed: Option<(DataType, bool)>) -> Result<Expr> {
    let mut words: Vec<String> = Vec::new();
    let mut value = None;
    let last = arguments.len().saturating_sub(1);
    for (position, argument) in arguments.into_iter().enumerate() {
        match argument {
            Argument::Enum(word) => words.push(word),
            Argument::Value(expr) if position == last => value = Some(expr),
            Argument::Value(expr) => words.push(constant_text(&expr).ok_or_else(|| wrong_arguments(name))?.to_string()),
            Argument::Interval(_) => return Err(wrong_arguments(name)),
        }
    }
    let value = value.ok_or_else(|| wrong_arguments(name))?;
    let field = match words.as_slice() {
        [component] => date_field(component, None)?,
        [component, indexing] => date_field(component, Some(indexing))?,
        _ => return Err(wrong_arguments(name)),
    };
    match typed {
        None => build::extract(field, value),
        Some((data_type, nullable)) => {
            check(Expr { kind: ExprKind::Extract { field, value: Box::new(value) }, data_type, nullable })
        }
    }
}

/// `add(value, interval)`, `add(interval, value)`, `subtract(value, interval)`.
fn moved_by_interval(name: &str, arguments: Vec<Argument>, typed: Option<(DataType, bool)>) -> Result<Expr> {
    let [first, second] = <[Argument; 2]>::try_from(arguments).map_err(|_| wrong_arguments(name))?;
    let (value, interval) = match (first, second) {
        (Argument::Value(value), Argument::Interval(interval)) => (value, interval),
        (Argument::Interval(interval), Argument::Value(value)) if name == "add" => (value, interval),
        _ => return Err(wrong_arguments(name)),
    };
    let interval = if name == "add" { Some(interval) } else { interval.checked_neg() };
    let interval = interval.ok_or_else(|| unsupported("an interval literal out of range"))?;
    match typed {
        None => build::add_interval(value, interval),
        Some((data_type, nullable)) => {
            let Interval { months, days, microseconds } = interval;
            let kind = ExprKind::AddInterval { value: Box::new(value), months, days, microseconds };
            check(Expr { kind, data_type, nullable })
        }
    }
}
