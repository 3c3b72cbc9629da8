//! What CAST means, value by value.
//!
//! Owns the table of allowed casts ([`is_allowed`], [`is_lossless`]) and the conversion of one value
//! ([`cast`]). Folding calls it for constants; the engine calls it for rare casts, and tests its fast
//! paths against it.
//!
//! Invariants
//! - NULL casts to NULL. A value that does not fit the target is an error, never a wrapped or cut value;
//!   the one exception is float64 to float32, which rounds to the nearest float32 (perhaps infinity).
//! - Numbers that lose digits round half away from zero.
//! - The result is in the lane of the target type.
//!
//! Called by `plan::build`, `plan::fold`, the engine.

use crate::calendar;
use crate::decimal;
use crate::error::{Error, ErrorCode, Result};
use crate::types::{DataType, Lane, Scalar};

/// Whether `CAST(from AS to)` exists (docs/semantics.md has the table).
pub fn is_allowed(from: &DataType, to: &DataType) -> bool {
    use DataType::{Boolean, Bytea, Date, Timestamp, Vector};
    match (from, to) {
        (a, b) if a == b => true,
        (Vector { .. }, _) | (_, Vector { .. }) => false,
        (a, b) if a.is_text() => *b != Bytea || a.is_text(),
        (Bytea, b) => b.is_text(),
        (_, Bytea) => false,
        (_, b) if b.is_text() => true,
        (Boolean, b) => b.is_integer(),
        (a, Boolean) => a.is_integer(),
        (a, b) if a.is_numeric() => b.is_numeric(),
        (Date | Timestamp { .. }, Date | Timestamp { .. }) => true,
        _ => false,
    }
}

/// Whether every value survives the cast unchanged and in the same order, without an error: then
/// `CAST(x) < constant` may be answered by comparing `x`.
pub fn is_lossless(from: &DataType, to: &DataType) -> bool {
    match (from, to) {
        (a, b) if a == b => true,
        (a, b) if a.is_integer() && b.is_integer() => integer_digits(a) <= integer_digits(b),
        (a, DataType::Decimal { precision, scale }) if a.is_integer() => integer_digits(a) + scale <= *precision,
        (DataType::Decimal { precision: p1, scale: s1 }, DataType::Decimal { precision: p2, scale: s2 }) => {
            s2 >= s1 && p2 - s2 >= p1 - s1
        }
        (DataType::Float32, DataType::Float64) => true,
        (DataType::Timestamp { .. }, DataType::Timestamp { .. }) => true,
        (a, DataType::Text) => a.is_text(),
        (DataType::Varchar(a), DataType::Varchar(b)) => a <= b,
        _ => false,
    }
}

/// Decimal digits that hold every value of an integer type.
pub fn integer_digits(data_type: &DataType) -> u8 {
    match data_type {
        DataType::Int16 => 5,
        DataType::Int32 => 10,
        _ => 19,
    }
}

/// Casts one value. The value must be in the lane of `from`.
pub fn cast(value: &Scalar, from: &DataType, to: &DataType) -> Result<Scalar> {
    if value.is_null() {
        return Ok(Scalar::Null);
    }
    if !is_allowed(from, to) {
        return Err(Error::new(ErrorCode::TypeMismatch, format!("there is no cast from {from} to {to}")));
    }
    if from == to {
        return Ok(value.clone());
    }
    let refused = || refuse(value, from, to);
    match value {
        Scalar::Null => Ok(Scalar::Null),
        Scalar::Bool(v) if to.is_text() => text_result(if *v { "true" } else { "false" }.into(), from, to),
        Scalar::Bool(v) => Ok(Scalar::I64(i64::from(*v))),
        Scalar::F64(v) => cast_f64(*v, from, to).ok_or_else(refused)?,
        Scalar::Bytes(bytes) => cast_bytes(bytes, from, to).ok_or_else(refused)?,
        Scalar::I64(_) | Scalar::I128(_) => {
            let unscaled = value.as_i128().ok_or_else(refused)?;
            cast_integer(unscaled, from, to).ok_or_else(refused)?
        }
    }
}

/// Casts an integer-lane value: integers, decimals, dates, timestamps.
fn cast_integer(value: i128, from: &DataType, to: &DataType) -> Option<Result<Scalar>> {
    if to.is_text() {
        return Some(text_result(render_integer(value, from)?, from, to));
    }
    let scalar = match (from, to) {
        (DataType::Date, DataType::Timestamp { .. }) => {
            Scalar::I64(calendar::timestamp_from_date(i64::try_from(value).ok()?)?)
        }
        (DataType::Timestamp { .. }, DataType::Date) => {
            let days = calendar::date_from_timestamp(i64::try_from(value).ok()?);
            Scalar::I64(i64::from(i32::try_from(days).ok()?))
        }
        (DataType::Timestamp { .. }, DataType::Timestamp { .. }) => Scalar::I64(i64::try_from(value).ok()?),
        (_, DataType::Boolean) => Scalar::Bool(value != 0),
        (_, DataType::Float64) => Scalar::F64(decimal::to_f64(value, scale_of(from))),
        (_, DataType::Float32) => Scalar::F64(nearest_f32(value, scale_of(from))),
        _ => return exact_number(value, scale_of(from), to).map(Ok),
    };
    Some(Ok(scalar))
}

/// An exact number in an exact numeric type, rounded half away from zero; `None` when it does not fit.
pub fn exact_number(unscaled: i128, scale: u8, to: &DataType) -> Option<Scalar> {
    let rescaled = decimal::rescale(unscaled, scale, scale_of(to))?;
    match to {
        DataType::Decimal { precision, .. } if !decimal::fits(rescaled, *precision) => None,
        _ => in_lane(rescaled, to),
    }
}

/// The value in the integer lane of the type, if it is in the type's range.
pub fn in_lane(value: i128, data_type: &DataType) -> Option<Scalar> {
    match data_type.lane() {
        Lane::I64 => {
            let (min, max) = data_type.i64_range()?;
            let value = i64::try_from(value).ok()?;
            (min..=max).contains(&value).then_some(Scalar::I64(value))
        }
        Lane::I128 => decimal::fits(value, crate::types::DECIMAL_PRECISION_MAX).then_some(Scalar::I128(value)),
        _ => None,
    }
}

/// A decimal's scale; 0 for every other type.
pub fn scale_of(data_type: &DataType) -> u8 {
    match data_type {
        DataType::Decimal { scale, .. } => *scale,
        _ => 0,
    }
}

fn nearest_f32(unscaled: i128, scale: u8) -> f64 {
    if scale == 0 {
        return f64::from(unscaled as f32);
    }
    f64::from(decimal::format(unscaled, scale).parse::<f32>().unwrap_or(f32::NAN))
}

fn cast_f64(value: f64, from: &DataType, to: &DataType) -> Option<Result<Scalar>> {
    if to.is_text() {
        return Some(text_result(render_float(value, *from == DataType::Float32), from, to));
    }
    match to {
        DataType::Float64 => Some(Ok(Scalar::F64(value))),
        DataType::Float32 => Some(Ok(Scalar::F64(f64::from(value as f32)))),
        _ => exact_number(decimal::from_f64(value, scale_of(to))?, scale_of(to), to).map(Ok),
    }
}

fn cast_bytes(bytes: &[u8], from: &DataType, to: &DataType) -> Option<Result<Scalar>> {
    if *to == DataType::Bytea {
        return Some(Ok(Scalar::Bytes(bytes.to_vec())));
    }
    let text = std::str::from_utf8(bytes).ok()?;
    if to.is_text() {
        return Some(text_result(text.to_string(), from, to));
    }
    Some(Ok(parse_text(text, to)?))
}

/// Reads a value of a type from its text form; spaces around it are ignored. `None` when it is not one.
pub fn parse_text(text: &str, to: &DataType) -> Option<Scalar> {
    let trimmed = text.trim();
    match to {
        DataType::Boolean => match trimmed.to_ascii_lowercase().as_str() {
            "true" | "t" | "yes" | "y" | "on" | "1" => Some(Scalar::Bool(true)),
            "false" | "f" | "no" | "n" | "off" | "0" => Some(Scalar::Bool(false)),
            _ => None,
        },
        DataType::Int16 | DataType::Int32 | DataType::Int64 => in_lane(trimmed.parse::<i64>().ok()?.into(), to),
        DataType::Decimal { scale, .. } => exact_number(decimal::parse_at_scale(trimmed, *scale)?, *scale, to),
        DataType::Float64 => Some(Scalar::F64(trimmed.parse().ok()?)),
        DataType::Float32 => Some(Scalar::F64(f64::from(trimmed.parse::<f32>().ok()?))),
        DataType::Date => Some(Scalar::I64(calendar::parse_date(trimmed)?)),
        DataType::Timestamp { .. } => Some(Scalar::I64(calendar::parse_timestamp(trimmed)?)),
        DataType::Varchar(n) => (text.chars().count() <= *n as usize).then(|| Scalar::Bytes(text.as_bytes().to_vec())),
        DataType::Text | DataType::Bytea => Some(Scalar::Bytes(text.as_bytes().to_vec())),
        DataType::Vector { .. } => None,
    }
}

/// The text form of a value, as CAST to text gives it; `None` for NULL, vectors, bytea that is not UTF-8 and lane mismatches.
pub fn render(value: &Scalar, data_type: &DataType) -> Option<String> {
    match value {
        Scalar::Null => None,
        Scalar::Bool(v) => Some(if *v { "true" } else { "false" }.to_string()),
        Scalar::F64(v) => Some(render_float(*v, *data_type == DataType::Float32)),
        Scalar::Bytes(bytes) if matches!(data_type, DataType::Vector { .. }) => {
            let _ = bytes;
            None
        }
        Scalar::Bytes(bytes) => String::from_utf8(bytes.clone()).ok(),
        Scalar::I64(_) | Scalar::I128(_) => render_integer(value.as_i128()?, data_type),
    }
}

fn render_integer(value: i128, data_type: &DataType) -> Option<String> {
    Some(match data_type {
        DataType::Date => calendar::format_date(i64::try_from(value).ok()?),
        DataType::Timestamp { utc } => calendar::format_timestamp(i64::try_from(value).ok()?, *utc),
        _ => decimal::format(value, scale_of(data_type)),
    })
}

/// The shortest text that reads back as the same float: `1.0`, `0.1`, `1e300`, `NaN`, `Infinity`.
pub fn render_float(value: f64, single: bool) -> String {
    if value.is_nan() {
        "NaN".into()
    } else if value.is_infinite() {
        if value > 0.0 { "Infinity" } else { "-Infinity" }.into()
    } else if single {
        format!("{:?}", value as f32)
    } else {
        format!("{value:?}")
    }
}

fn text_result(text: String, from: &DataType, to: &DataType) -> Result<Scalar> {
    match to {
        DataType::Varchar(n) if text.chars().count() > *n as usize => {
            Err(refuse(&Scalar::Bytes(text.into_bytes()), from, to))
        }
        _ => Ok(Scalar::Bytes(text.into_bytes())),
    }
}

/// The error for a value that does not fit: [`ErrorCode::NumericOverflow`] from number to number,
/// [`ErrorCode::InvalidCast`] otherwise.
pub fn refuse(value: &Scalar, from: &DataType, to: &DataType) -> Error {
    let shown = match (value, render(value, if from.is_text() { &DataType::Text } else { from })) {
        (_, Some(text)) if text.len() > 80 => format!("{:?}...", text.chars().take(60).collect::<String>()),
        (Scalar::Bytes(_), Some(text)) => format!("{text:?}"),
        (_, Some(text)) => text,
        (_, None) => "value".to_string(),
    };
    let code = if from.is_numeric() && to.is_numeric() { ErrorCode::NumericOverflow } else { ErrorCode::InvalidCast };
    Error::new(code, format!("{from} {shown} can't be cast to {to}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const D: fn(u8, u8) -> DataType = |precision, scale| DataType::Decimal { precision, scale };

    fn text(value: &str) -> Scalar {
        Scalar::Bytes(value.as_bytes().to_vec())
    }

    #[test]
    fn numbers_round_half_away_from_zero_or_fail() {
        let f = DataType::Float64;
        for (value, from, to, expected) in [
            (Scalar::F64(2.5), f, DataType::Int64, Scalar::I64(3)),
            (Scalar::F64(-2.5), f, DataType::Int16, Scalar::I64(-3)),
            (Scalar::I64(250), D(5, 2), DataType::Int32, Scalar::I64(3)),
            (Scalar::I64(-249), D(5, 2), DataType::Int32, Scalar::I64(-2)),
            (Scalar::I64(12345), D(9, 3), D(9, 2), Scalar::I64(1235)),
            (Scalar::I64(7), DataType::Int64, D(38, 10), Scalar::I128(70_000_000_000)),
            (Scalar::I128(5), D(38, 2), DataType::Float64, Scalar::F64(0.05)),
            (Scalar::F64(0.1), f, DataType::Float32, Scalar::F64(f64::from(0.1f32))),
            (Scalar::F64(1e300), f, DataType::Float32, Scalar::F64(f64::INFINITY)),
            (Scalar::Bool(true), DataType::Boolean, DataType::Int16, Scalar::I64(1)),
            (Scalar::I64(2), DataType::Int16, DataType::Boolean, Scalar::Bool(true)),
        ] {
            assert_eq!(cast(&value, &from, &to), Ok(expected), "{value:?} {from} {to}");
        }
        for (value, from, to) in [
            (Scalar::F64(f64::NAN), f, DataType::Int64),
            (Scalar::F64(9.3e18), f, DataType::Int64),
            (Scalar::I64(40_000), DataType::Int64, DataType::Int16),
            (Scalar::I64(99_995), D(5, 2), D(4, 1)),
            (Scalar::I64(1000), DataType::Int64, D(5, 2)),
        ] {
            assert_eq!(cast(&value, &from, &to).unwrap_err().code, ErrorCode::NumericOverflow, "{value:?} {from} {to}");
        }
    }

    #[test]
    fn text_casts_both_ways() {
        for (value, data_type, form) in [
            (Scalar::I64(5), D(15, 2), "0.05"),
            (Scalar::I64(-7), DataType::Int32, "-7"),
            (Scalar::F64(1.0), DataType::Float64, "1.0"),
            (Scalar::F64(f64::from(0.1f32)), DataType::Float32, "0.1"),
            (Scalar::F64(f64::INFINITY), DataType::Float64, "Infinity"),
            (Scalar::Bool(true), DataType::Boolean, "true"),
            (Scalar::I64(9190), DataType::Date, "1995-03-01"),
            (Scalar::I64(1_500_000), DataType::Timestamp { utc: false }, "1970-01-01 00:00:01.5"),
        ] {
            assert_eq!(cast(&value, &data_type, &DataType::Text), Ok(text(form)));
            assert_eq!(cast(&text(form), &DataType::Text, &data_type), Ok(value));
        }
        assert_eq!(cast(&text("NaN"), &DataType::Text, &DataType::Float64).unwrap().as_i128(), None);
        assert_eq!(
            cast(&text("abc"), &DataType::Text, &DataType::Int64).unwrap_err().to_string(),
            "text \"abc\" can't be cast to int64 (InvalidCast)"
        );
        assert_eq!(
            cast(&text("abc"), &DataType::Text, &DataType::Varchar(2)).unwrap_err().code,
            ErrorCode::InvalidCast
        );
        assert_eq!(
            cast(&Scalar::Bytes(vec![0xff]), &DataType::Bytea, &DataType::Text).unwrap_err().code,
            ErrorCode::InvalidCast
        );
    }

    #[test]
    fn dates_and_timestamps() {
        let timestamp = DataType::Timestamp { utc: true };
        assert_eq!(cast(&Scalar::I64(-1), &timestamp, &DataType::Date), Ok(Scalar::I64(-1)));
        assert_eq!(cast(&Scalar::I64(1), &DataType::Date, &timestamp), Ok(Scalar::I64(86_400_000_000)));
        assert_eq!(
            cast(&Scalar::I64(i64::from(i32::MAX)), &DataType::Date, &timestamp).unwrap_err().code,
            ErrorCode::InvalidCast
        );
        assert!(!is_allowed(&DataType::Date, &DataType::Int64));
        assert!(cast(&Scalar::I64(1), &DataType::Date, &DataType::Int64).is_err());
    }

    proptest! {
        #[test]
        fn lossless_casts_never_fail_and_keep_the_order(a in any::<i64>(), b in any::<i64>(), p1 in 1u8..=18, s1 in 0u8..=18, whole in 0u8..=20, more in 0u8..=18) {
            let s1 = s1.min(p1);
            let (from, to) = (D(p1, s1), D((p1 + whole + more).min(38), s1 + more));
            if !is_lossless(&from, &to) {
                return Ok(());
            }
            let modulus = 10i64.pow(u32::from(p1));
            let (a, b) = (Scalar::I64(a % modulus), Scalar::I64(b % modulus));
            let (x, y) = (cast(&a, &from, &to).unwrap(), cast(&b, &from, &to).unwrap());
            prop_assert_eq!(a.compare(&b), x.compare(&y));
        }

        #[test]
        fn casting_any_text_never_panics(value in any::<String>(), to in 0usize..9) {
            let to = [DataType::Boolean, DataType::Int16, DataType::Int64, DataType::Float32, DataType::Float64, D(38, 10),
                DataType::Date, DataType::Timestamp { utc: false }, DataType::Varchar(3)][to];
            let _ = cast(&text(&value), &DataType::Text, &to);
        }
    }
}
