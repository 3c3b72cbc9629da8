//! Types, numbers, strings and intervals as SQL writes them.

use super::fragment;
use crate::calendar::{Interval, SECOND_MICROSECONDS};
use crate::cast;
use crate::decimal;
use crate::error::{Error, ErrorCode, Result};
use crate::plan::build;
use crate::plan::expr::{DateField, Expr};
use crate::types::{DataType, Scalar};
use sqlparser::ast;

/// A number: an integer is Int64 (decimal beyond its range), with a point decimal, with an exponent Float64.
pub(super) fn number(text: &str) -> Result<Expr> {
    if let Ok(integer) = text.parse::<i64>() {
        return Ok(build::integer(integer));
    }
    let bad = || Error::new(ErrorCode::Syntax, format!("{:?} is not a number of at most 38 digits", fragment(text)));
    if text.contains(['e', 'E']) {
        let value: f64 = text.parse().map_err(|_| bad())?;
        return Ok(Expr::literal(Scalar::F64(value), DataType::Float64));
    }
    let (unscaled, scale) = decimal::parse(text).ok_or_else(bad)?;
    build::decimal_literal(unscaled, scale)
}

/// The bytes of `X'0aff'`.
pub(super) fn hex(text: &str) -> Result<Expr> {
    let digits = text.as_bytes();
    let nibble = |byte: u8| char::from(byte).to_digit(16).map(|value| value as u8);
    let bytes: Option<Vec<u8>> = digits
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(nibble(*high)? << 4 | nibble(*low)?),
            _ => None,
        })
        .collect();
    let bytes = bytes.ok_or_else(|| {
        Error::new(ErrorCode::Syntax, format!("X'{}' is not pairs of hexadecimal digits", fragment(text)))
    })?;
    Ok(Expr::literal(Scalar::Bytes(bytes), DataType::Bytea))
}

/// `DATE '1995-03-01'` and the like.
pub(super) fn typed_string(text: &str, data_type: DataType) -> Result<Expr> {
    let value = cast::parse_text(text, &data_type)
        .ok_or_else(|| Error::new(ErrorCode::InvalidCast, format!("{:?} is not a {data_type}", fragment(text))))?;
    Ok(Expr::literal(value, data_type))
}

/// Our type of an SQL type name.
pub(super) fn data_type(sql: &ast::DataType) -> Result<DataType> {
    let text = sql.to_string().to_ascii_lowercase();
    let (name, arguments) = match text.split_once('(') {
        Some((name, rest)) => (name.trim(), Some(rest.trim_end_matches(')'))),
        None => (text.trim(), None),
    };
    let ours = match (name, arguments) {
        ("int2", None) => "smallint".into(),
        ("int4", None) => "int".into(),
        ("int8", None) => "bigint".into(),
        ("float4", None) => "real".into(),
        ("float8" | "float", None) => "float64".into(),
        ("string", None) => "text".into(),
        ("datetime" | "timestamp without time zone", None) => "timestamp".into(),
        ("timestamp with time zone", None) => "timestamptz".into(),
        ("numeric" | "decimal" | "dec", None) => "decimal(38,10)".into(),
        ("numeric" | "decimal" | "dec", Some(arguments)) if arguments.contains(',') => format!("decimal({arguments})"),
        ("numeric" | "decimal" | "dec", Some(arguments)) => format!("decimal({arguments},0)"),
        ("character varying" | "char varying" | "char" | "character", Some(n)) => format!("varchar({n})"),
        _ => text.clone(),
    };
    ours.parse().map_err(|error: crate::types::UnknownType| Error::new(ErrorCode::TypeMismatch, error.to_string()))
}

/// What EXTRACT and date_part take.
pub(super) fn date_field(name: &str) -> Result<DateField> {
    Ok(match name.to_ascii_lowercase().as_str() {
        "year" | "years" => DateField::Year,
        "quarter" => DateField::Quarter,
        "month" | "months" => DateField::Month,
        "week" | "isoweek" => DateField::Week,
        "day" | "days" => DateField::Day,
        "dow" | "dayofweek" => DateField::DayOfWeek,
        "doy" | "dayofyear" => DateField::DayOfYear,
        "hour" | "hours" => DateField::Hour,
        "minute" | "minutes" => DateField::Minute,
        "second" | "seconds" => DateField::Second,
        "epoch" => DateField::Epoch,
        _ => {
            return Err(Error::new(
                ErrorCode::UnknownFunction,
                format!(
                    "there is no date field {:?}; there are year, quarter, month, week, day, dow, doy, hour, minute, second, epoch",
                    fragment(name)
                ),
            ));
        }
    })
}

/// `INTERVAL '90' DAY`, `INTERVAL '1 year 2 months'`, `INTERVAL 3 HOUR`.
pub(super) fn interval(sql: &ast::Interval) -> Result<Interval> {
    let bad = |what: String| {
        Error::new(ErrorCode::Syntax, format!("{what}: write INTERVAL '3' DAY or INTERVAL '1 year 2 months'"))
    };
    if sql.last_field.is_some() {
        return Err(bad("an interval with TO is not supported".into()));
    }
    let text = match sql.value.as_ref() {
        ast::Expr::Value(ast::ValueWithSpan { value: ast::Value::SingleQuotedString(text), .. }) => text.clone(),
        ast::Expr::Value(ast::ValueWithSpan { value: ast::Value::Number(text, _), .. }) => text.clone(),
        _ => return Err(bad("an interval must be constant".into())),
    };
    let mut words: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        // "3days" is 3 and days.
        let digits = word.find(|c: char| c.is_alphabetic()).unwrap_or(word.len());
        let (count, unit) = word.split_at(digits);
        words.extend([count, unit].into_iter().filter(|part| !part.is_empty()).map(str::to_string));
    }
    if let Some(field) = &sql.leading_field {
        if words.len() != 1 {
            return Err(bad(format!("{:?} is not one number", fragment(&text))));
        }
        words.push(field.to_string());
    }
    if words.is_empty() || words.len() % 2 == 1 {
        return Err(bad(format!("{:?} is not an interval", fragment(&text))));
    }
    let mut total = Interval::default();
    for pair in words.chunks_exact(2) {
        add_part(&mut total, &pair[0], &pair[1]).ok_or_else(|| {
            bad(format!("{:?} is not an interval in range", fragment(&format!("{} {}", pair[0], pair[1]))))
        })?;
    }
    Ok(total)
}

fn add_part(total: &mut Interval, count: &str, unit: &str) -> Option<()> {
    let unit = unit.to_ascii_lowercase();
    let unit = unit.strip_suffix('s').unwrap_or(&unit);
    let microseconds_each = match unit {
        "hour" => 3_600 * SECOND_MICROSECONDS,
        "minute" => 60 * SECOND_MICROSECONDS,
        "second" => SECOND_MICROSECONDS,
        "millisecond" => 1_000,
        "microsecond" => 1,
        _ => {
            let count: i32 = count.parse().ok()?;
            match unit {
                "year" => total.months = total.months.checked_add(count.checked_mul(12)?)?,
                "quarter" => total.months = total.months.checked_add(count.checked_mul(3)?)?,
                "month" => total.months = total.months.checked_add(count)?,
                "week" => total.days = total.days.checked_add(count.checked_mul(7)?)?,
                "day" => total.days = total.days.checked_add(count)?,
                _ => return None,
            }
            return Some(());
        }
    };
    let (unscaled, scale) = decimal::parse(count)?;
    let exact = decimal::rescale(unscaled.checked_mul(i128::from(microseconds_each))?, scale, 0)?;
    total.microseconds = total.microseconds.checked_add(i64::try_from(exact).ok()?)?;
    Some(())
}
