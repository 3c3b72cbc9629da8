//! Types and literals, between Substrait's and ours.
#![allow(deprecated)] // the deprecated timestamp kinds are what older producers send

use prost::Message as _;
use std::collections::HashMap;

use substrait::proto::Type;
use substrait::proto::expression::Literal;
use substrait::proto::expression::literal::{self, LiteralType};
use substrait::proto::r#type::{self as st, Kind, Nullability, parameter};

use super::unsupported;
use crate::calendar::Interval;
use crate::error::Result;
use crate::plan::expr::Expr;
use crate::types::{DataType, Scalar, VectorElement};

/// The name of the vector type among a plan's extension types.
pub(super) const VECTOR_TYPE: &str = "vector";
/// Where the vector type is defined.
pub(super) const VECTOR_URN: &str = "extension:io.heliostat:vector";
/// Its anchor in plans we write.
pub(super) const VECTOR_ANCHOR: u32 = 1;
const VECTOR_URL: &str = "type.googleapis.com/heliostat.Vector";

const SUPPORTED_TYPES: &str = "boolean, i8, i16, i32, i64, fp32, fp64, decimal, string, varchar, fixedchar, binary, \
                               fixedbinary, date, timestamp, timestamp_tz, precision_timestamp(_tz), heliostat's vector";

/// A type, and whether it may be NULL, as Substrait.
pub(super) fn write_type(data_type: &DataType, nullable: bool) -> Type {
    let nullability = (if nullable { Nullability::Nullable } else { Nullability::Required }).into();
    let type_variation_reference = 0;
    let kind = match *data_type {
        DataType::Boolean => Kind::Bool(st::Boolean { type_variation_reference, nullability }),
        DataType::Int16 => Kind::I16(st::I16 { type_variation_reference, nullability }),
        DataType::Int32 => Kind::I32(st::I32 { type_variation_reference, nullability }),
        DataType::Int64 => Kind::I64(st::I64 { type_variation_reference, nullability }),
        DataType::Float32 => Kind::Fp32(st::Fp32 { type_variation_reference, nullability }),
        DataType::Float64 => Kind::Fp64(st::Fp64 { type_variation_reference, nullability }),
        DataType::Decimal { precision, scale } => Kind::Decimal(st::Decimal {
            precision: precision.into(),
            scale: scale.into(),
            type_variation_reference,
            nullability,
        }),
        DataType::Varchar(length) => {
            Kind::Varchar(st::VarChar { length: length as i32, type_variation_reference, nullability })
        }
        DataType::Text => Kind::String(st::String { type_variation_reference, nullability }),
        DataType::Bytea => Kind::Binary(st::Binary { type_variation_reference, nullability }),
        DataType::Timestamp { utc: false } => {
            Kind::PrecisionTimestamp(st::PrecisionTimestamp { precision: 6, type_variation_reference, nullability })
        }
        DataType::Timestamp { utc: true } => {
            Kind::PrecisionTimestampTz(st::PrecisionTimestampTz { precision: 6, type_variation_reference, nullability })
        }
        DataType::Date => Kind::Date(st::Date { type_variation_reference, nullability }),
        DataType::Vector { dimension, element } => Kind::UserDefined(st::UserDefined {
            type_reference: VECTOR_ANCHOR,
            type_variation_reference,
            nullability,
            type_parameters: vector_parameters(dimension, element),
        }),
    };
    Type { kind: Some(kind) }
}

fn vector_parameters(dimension: u32, element: VectorElement) -> Vec<st::Parameter> {
    let element = parameter::Parameter::Enum(element.to_string());
    let parameters = [parameter::Parameter::Integer(dimension.into()), element];
    parameters.into_iter().map(|parameter| st::Parameter { parameter: Some(parameter) }).collect()
}

fn read_vector(reference: u32, parameters: &[st::Parameter], anchors: &HashMap<u32, String>) -> Result<DataType> {
    let name = anchors.get(&reference).map_or("?", String::as_str);
    let parts: Vec<_> = parameters.iter().filter_map(|parameter| parameter.parameter.as_ref()).collect();
    match (name, parts.as_slice()) {
        (VECTOR_TYPE, [parameter::Parameter::Integer(dimension), parameter::Parameter::Enum(element)]) => {
            format!("vector({dimension},{element})").parse().map_err(|_| unsupported("a vector type out of its limits"))
        }
        _ => Err(unsupported(format!("the extension type {name:?} is not known; supported types: {SUPPORTED_TYPES}"))),
    }
}

/// A Substrait type as ours, and whether it may be NULL. `anchors` names the plan's extension types.
pub(super) fn read_type(message: &Type, anchors: &HashMap<u32, String>) -> Result<(DataType, bool)> {
    let kind = message.kind.as_ref().ok_or_else(|| unsupported("a type without a kind"))?;
    let precision = |precision: i32| {
        if (0..=9).contains(&precision) {
            Ok(())
        } else {
            Err(unsupported(format!("a timestamp of precision {precision}")))
        }
    };
    let (data_type, nullability) = match kind {
        Kind::Bool(t) => (DataType::Boolean, t.nullability),
        Kind::I8(t) => (DataType::Int16, t.nullability),
        Kind::I16(t) => (DataType::Int16, t.nullability),
        Kind::I32(t) => (DataType::Int32, t.nullability),
        Kind::I64(t) => (DataType::Int64, t.nullability),
        Kind::Fp32(t) => (DataType::Float32, t.nullability),
        Kind::Fp64(t) => (DataType::Float64, t.nullability),
        Kind::String(t) => (DataType::Text, t.nullability),
        Kind::FixedChar(t) => (DataType::Text, t.nullability),
        Kind::Varchar(t) => (DataType::Varchar(t.length as u32), t.nullability),
        Kind::Binary(t) => (DataType::Bytea, t.nullability),
        Kind::FixedBinary(t) => (DataType::Bytea, t.nullability),
        Kind::Date(t) => (DataType::Date, t.nullability),
        Kind::Timestamp(t) => (DataType::Timestamp { utc: false }, t.nullability),
        Kind::TimestampTz(t) => (DataType::Timestamp { utc: true }, t.nullability),
        Kind::PrecisionTimestamp(t) => {
            precision(t.precision)?;
            (DataType::Timestamp { utc: false }, t.nullability)
        }
        Kind::PrecisionTimestampTz(t) => {
            precision(t.precision)?;
            (DataType::Timestamp { utc: true }, t.nullability)
        }
        Kind::Decimal(t) => {
            let digits = |value: i32| u8::try_from(value).unwrap_or(u8::MAX);
            (DataType::Decimal { precision: digits(t.precision), scale: digits(t.scale) }, t.nullability)
        }
        Kind::UserDefined(t) => (read_vector(t.type_reference, &t.type_parameters, anchors)?, t.nullability),
        other => {
            let text = format!("{other:?}");
            let name = text.split(['(', ' ']).next().unwrap_or_default();
            return Err(unsupported(format!("type {name} is not supported; supported types: {SUPPORTED_TYPES}")));
        }
    };
    if !data_type.is_valid() {
        return Err(unsupported(format!("the type {data_type} is out of its limits")));
    }
    Ok((data_type, nullability != Nullability::Required as i32))
}

/// A constant of this type as Substrait.
pub(super) fn write_literal(value: &Scalar, data_type: &DataType) -> Literal {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let decimal = |value: i128, precision: u8, scale: u8| {
        LiteralType::Decimal(literal::Decimal {
            value: value.to_le_bytes().to_vec(),
            precision: precision.into(),
            scale: scale.into(),
        })
    };
    let micros = |value: i64| literal::PrecisionTimestamp { precision: 6, value };
    let literal_type = match (value, data_type) {
        (Scalar::Bool(v), _) => LiteralType::Boolean(*v),
        (Scalar::I64(v), DataType::Int16) => LiteralType::I16(*v as i32),
        (Scalar::I64(v), DataType::Int32) => LiteralType::I32(*v as i32),
        (Scalar::I64(v), DataType::Date) => LiteralType::Date(*v as i32),
        (Scalar::I64(v), DataType::Timestamp { utc: false }) => LiteralType::PrecisionTimestamp(micros(*v)),
        (Scalar::I64(v), DataType::Timestamp { utc: true }) => LiteralType::PrecisionTimestampTz(micros(*v)),
        (Scalar::I64(v), DataType::Decimal { precision, scale }) => decimal((*v).into(), *precision, *scale),
        (Scalar::I128(v), DataType::Decimal { precision, scale }) => decimal(*v, *precision, *scale),
        (Scalar::I64(v), _) => LiteralType::I64(*v),
        (Scalar::F64(v), DataType::Float32) => LiteralType::Fp32(*v as f32),
        (Scalar::F64(v), _) => LiteralType::Fp64(*v),
        (Scalar::Bytes(v), DataType::Varchar(length)) => {
            LiteralType::VarChar(literal::VarChar { value: text(v), length: *length })
        }
        (Scalar::Bytes(v), DataType::Text) => LiteralType::String(text(v)),
        (Scalar::Bytes(v), DataType::Vector { dimension, element }) => {
            // Which `Any` it is depends on substrait's features (prost's or pbjson's): both decode the same bytes.
            let any = prost_types::Any { type_url: VECTOR_URL.into(), value: v.clone() };
            let value = prost::Message::decode(any.encode_to_vec().as_slice()).unwrap_or_default();
            LiteralType::UserDefined(literal::UserDefined {
                type_parameters: vector_parameters(*dimension, *element),
                type_anchor_type: Some(literal::user_defined::TypeAnchorType::TypeReference(VECTOR_ANCHOR)),
                val: Some(literal::user_defined::Val::Value(value)),
            })
        }
        (Scalar::Bytes(v), _) => LiteralType::Binary(v.clone()),
        // A wide decimal outside the decimal types does not exist; NULL keeps the type.
        (Scalar::Null | Scalar::I128(_), _) => LiteralType::Null(write_type(data_type, true)),
    };
    Literal { nullable: value.is_null(), type_variation_reference: 0, literal_type: Some(literal_type) }
}

/// An interval as a Substrait literal.
pub(super) fn write_interval(interval: Interval) -> Literal {
    let literal_type = LiteralType::IntervalCompound(literal::IntervalCompound {
        interval_year_to_month: Some(literal::IntervalYearToMonth { years: 0, months: interval.months }),
        interval_day_to_second: Some(literal::IntervalDayToSecond {
            days: interval.days,
            seconds: 0,
            subseconds: interval.microseconds,
            precision_mode: Some(literal::interval_day_to_second::PrecisionMode::Precision(6)),
        }),
    });
    Literal { nullable: false, type_variation_reference: 0, literal_type: Some(literal_type) }
}

/// What a literal can be.
pub(super) enum Constant {
    Value(Expr),
    Interval(Interval),
}

/// A Substrait literal as ours.
pub(super) fn read_literal(message: &Literal, anchors: &HashMap<u32, String>) -> Result<Constant> {
    let literal_type = message.literal_type.as_ref().ok_or_else(|| unsupported("a literal without a value"))?;
    let (value, data_type) = match literal_type {
        LiteralType::Boolean(v) => (Scalar::Bool(*v), DataType::Boolean),
        LiteralType::I8(v) => (Scalar::I64(i64::from(*v as i8)), DataType::Int16),
        LiteralType::I16(v) => (Scalar::I64(i64::from(*v as i16)), DataType::Int16),
        LiteralType::I32(v) => (Scalar::I64((*v).into()), DataType::Int32),
        LiteralType::I64(v) => (Scalar::I64(*v), DataType::Int64),
        LiteralType::Fp32(v) => (Scalar::F64((*v).into()), DataType::Float32),
        LiteralType::Fp64(v) => (Scalar::F64(*v), DataType::Float64),
        LiteralType::String(v) | LiteralType::FixedChar(v) => (Scalar::Bytes(v.clone().into_bytes()), DataType::Text),
        LiteralType::VarChar(v) => {
            let data_type = DataType::Varchar(v.length);
            let value = Scalar::Bytes(v.value.clone().into_bytes());
            // A producer's length is not worth a refusal: what counts is the text.
            if crate::convert::scalar_belongs_to(&value, &data_type) && data_type.is_valid() {
                (value, data_type)
            } else {
                (value, DataType::Text)
            }
        }
        LiteralType::Binary(v) | LiteralType::FixedBinary(v) => (Scalar::Bytes(v.clone()), DataType::Bytea),
        LiteralType::Date(v) => (Scalar::I64((*v).into()), DataType::Date),
        LiteralType::Timestamp(v) => (Scalar::I64(*v), DataType::Timestamp { utc: false }),
        LiteralType::TimestampTz(v) => (Scalar::I64(*v), DataType::Timestamp { utc: true }),
        LiteralType::PrecisionTimestamp(v) => {
            (Scalar::I64(to_micros(v.value, v.precision)?), DataType::Timestamp { utc: false })
        }
        LiteralType::PrecisionTimestampTz(v) => {
            (Scalar::I64(to_micros(v.value, v.precision)?), DataType::Timestamp { utc: true })
        }
        LiteralType::Decimal(v) => read_decimal(v)?,
        LiteralType::Null(data_type) => (Scalar::Null, read_type(data_type, anchors)?.0),
        LiteralType::IntervalYearToMonth(v) => return Ok(Constant::Interval(months_of(v)?)),
        LiteralType::IntervalDayToSecond(v) => return Ok(Constant::Interval(days_of(v)?)),
        LiteralType::IntervalCompound(v) => {
            let mut interval = v.interval_day_to_second.as_ref().map_or(Ok(Interval::default()), days_of)?;
            if let Some(years) = &v.interval_year_to_month {
                interval.months = months_of(years)?.months;
            }
            return Ok(Constant::Interval(interval));
        }
        LiteralType::UserDefined(v) => {
            let Some(literal::user_defined::TypeAnchorType::TypeReference(reference)) = v.type_anchor_type else {
                return Err(unsupported("a user-defined literal without a type"));
            };
            let data_type = read_vector(reference, &v.type_parameters, anchors)?;
            match &v.val {
                Some(literal::user_defined::Val::Value(any)) if data_type.is_vector_value(&any.value) => {
                    (Scalar::Bytes(any.value.to_vec()), data_type)
                }
                _ => {
                    return Err(unsupported(
                        "a vector literal that is not as long as its type says, or has spare bits set",
                    ));
                }
            }
        }
        other => {
            let text = format!("{other:?}");
            let name = text.split(['(', ' ']).next().unwrap_or_default();
            return Err(unsupported(format!(
                "a literal of type {name}; supported types: {SUPPORTED_TYPES}, intervals"
            )));
        }
    };
    Ok(Constant::Value(Expr::literal(value, data_type)))
}

fn read_decimal(message: &literal::Decimal) -> Result<(Scalar, DataType)> {
    let invalid = || {
        unsupported(format!(
            "a decimal literal of {} digits, scale {}, {} bytes",
            message.precision,
            message.scale,
            message.value.len()
        ))
    };
    let bytes: [u8; 16] = message.value.as_slice().try_into().map_err(|_| invalid())?;
    let value = i128::from_le_bytes(bytes);
    let precision = u8::try_from(message.precision).map_err(|_| invalid())?;
    let scale = u8::try_from(message.scale).map_err(|_| invalid())?;
    let data_type = DataType::Decimal { precision, scale };
    if !data_type.is_valid() || !crate::decimal::fits(value, precision) {
        return Err(invalid());
    }
    Ok((crate::cast::in_lane(value, &data_type).ok_or_else(invalid)?, data_type))
}

/// A count of 10^-precision seconds as microseconds; an error unless exact.
fn to_micros(value: i64, precision: i32) -> Result<i64> {
    let inexact = || {
        unsupported(format!(
            "the instant {value} of precision {precision} is not a whole number of microseconds in range"
        ))
    };
    match precision {
        0..=6 => value.checked_mul(10i64.pow(6 - precision as u32)).ok_or_else(inexact),
        7..=9 => {
            let divisor = 10i64.pow(precision as u32 - 6);
            if value % divisor == 0 { Ok(value / divisor) } else { Err(inexact()) }
        }
        _ => Err(inexact()),
    }
}

fn out_of_range() -> crate::error::Error {
    unsupported("an interval literal out of range")
}

fn months_of(v: &literal::IntervalYearToMonth) -> Result<Interval> {
    let months = v.years.checked_mul(12).and_then(|months| months.checked_add(v.months)).ok_or_else(out_of_range)?;
    Ok(Interval { months, ..Interval::default() })
}

fn days_of(v: &literal::IntervalDayToSecond) -> Result<Interval> {
    use literal::interval_day_to_second::PrecisionMode;
    let (subseconds, precision) = match v.precision_mode {
        Some(PrecisionMode::Microseconds(micros)) => (i64::from(micros), 6),
        Some(PrecisionMode::Precision(precision)) => (v.subseconds, precision),
        None => (v.subseconds, 6),
    };
    let micros = i64::from(v.seconds).checked_mul(1_000_000);
    let microseconds =
        micros.and_then(|m| m.checked_add(to_micros(subseconds, precision).ok()?)).ok_or_else(out_of_range)?;
    Ok(Interval { days: v.days, microseconds, ..Interval::default() })
}
