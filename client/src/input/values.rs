//! Parses CSV fields into canonical Arrow arrays.
//!
//! Invariant: a field that does not fit its type exactly is an error that says where; nothing is rounded,
//! cut or wrapped.

use std::sync::Arc;

use arrow_array::builder::{BinaryBuilder, BooleanBuilder, PrimitiveBuilder, StringBuilder};
use arrow_array::timezone::Tz;
use arrow_array::types::{
    ArrowPrimitiveType, Date32Type, Decimal64Type, Decimal128Type, Float16Type, Float32Type, Float64Type, Int8Type,
    Int16Type, Int32Type, Int64Type, TimestampMicrosecondType,
};
use arrow_array::{Array, ArrayRef, FixedSizeListArray};
use arrow_cast::parse::{Parser, string_to_datetime};
use arrow_schema::Field as ArrowField;
use hidb::{DataType, Field, Lane, VALUE_BYTES_MAX, VectorElement, arrow_mapping};

use super::csv::Chunk;

/// A field that can't be taken.
#[derive(Debug)]
pub(super) struct BadField {
    pub(super) row: usize,
    null: bool,
}

impl BadField {
    pub(super) fn describe(&self, chunk: &Chunk, column: usize, field: &Field) -> String {
        if self.null {
            return format!("NULL in a column of type {} not null", field.data_type);
        }
        let bytes = chunk.field(self.row, column);
        if bytes.len() > VALUE_BYTES_MAX && matches!(field.data_type, DataType::Text | DataType::Varchar(_)) {
            return format!("a text of {} bytes: at most {VALUE_BYTES_MAX} (16 MiB) are stored", bytes.len());
        }
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]);
        let more = if bytes.len() > 60 { "..." } else { "" };
        format!("{text:?}{more} is not a valid {}", field.data_type)
    }
}

/// Days since 1970 of an ISO date.
pub(super) fn parse_date(text: &str) -> Option<i32> {
    // The parser behind also takes times: a date has exactly two dashes and no colon.
    let plain = text.len() >= 8 && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    if plain { Date32Type::parse(text) } else { None }
}

/// Microseconds since 1970 of an ISO timestamp, and whether it named its offset from UTC.
pub(super) fn parse_timestamp(text: &str) -> Option<(i64, bool)> {
    if let Some(days) = parse_date(text) {
        return Some((i64::from(days) * 86_400_000_000, false));
    }
    if text.len() < 16 || !text.is_ascii() {
        return None;
    }
    let zoned = text.ends_with(['Z', 'z']) || text[10..].contains(['+', '-']);
    let digits_after_point =
        text.split_once('.').map_or(0, |(_, rest)| rest.bytes().take_while(u8::is_ascii_digit).count());
    if digits_after_point > 6 {
        return None;
    }
    let utc: Tz = "+00:00".parse().ok()?;
    string_to_datetime(&utc, text).ok().map(|time| (time.timestamp_micros(), zoned))
}

/// An exact decimal, unscaled.
fn parse_decimal(text: &str, precision: u8, scale: u8) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    // Zeros beyond the scale change nothing; anything else would be rounded.
    let kept = fraction.len().min(usize::from(scale));
    if fraction.as_bytes()[kept..].iter().any(|byte| *byte != b'0') {
        return None;
    }
    let mut value: i128 = 0;
    let padding = std::iter::repeat_n(b'0', usize::from(scale) - kept);
    for byte in whole.bytes().chain(fraction.bytes().take(kept)).chain(padding) {
        if !byte.is_ascii_digit() {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(i128::from(byte - b'0'))?;
    }
    let limit = 10i128.pow(u32::from(precision));
    (value < limit).then_some(if negative { -value } else { value })
}

fn parse_boolean(text: &str) -> Option<bool> {
    match text {
        "t" | "T" | "1" => Some(true),
        "f" | "F" | "0" => Some(false),
        _ if text.eq_ignore_ascii_case("true") => Some(true),
        _ if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// `\x` and hexadecimal digits, or text taken as its bytes.
fn parse_bytes(field: &[u8]) -> Option<Vec<u8>> {
    let Some(hex) = field.strip_prefix(b"\\x") else { return Some(field.to_vec()) };
    if hex.len() % 2 != 0 {
        return None;
    }
    hex.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// The fields of one column of a chunk as a canonical array of the column's type.
pub(super) fn parse_column(
    chunk: &Chunk,
    column: usize,
    field: &Field,
    null: Option<&str>,
) -> Result<ArrayRef, BadField> {
    let source = Source { chunk, column, field, null };
    match field.data_type {
        DataType::Boolean => {
            let mut builder = BooleanBuilder::with_capacity(chunk.rows());
            source.each(|value| {
                builder.append_option(match value {
                    Some(bytes) => Some(parse_boolean(trimmed(bytes)?)?),
                    None => None,
                });
                Some(())
            })?;
            Ok(Arc::new(builder.finish()))
        }
        DataType::Int16 => source.primitive::<Int16Type>(|text| text.parse().ok()),
        DataType::Int32 => source.primitive::<Int32Type>(|text| text.parse().ok()),
        DataType::Int64 => source.primitive::<Int64Type>(|text| text.parse().ok()),
        DataType::Float32 => source.primitive::<Float32Type>(|text| text.parse().ok()),
        DataType::Float64 => source.primitive::<Float64Type>(|text| text.parse().ok()),
        DataType::Date => source.primitive::<Date32Type>(parse_date),
        DataType::Timestamp { utc } => source.primitive::<TimestampMicrosecondType>(|text| {
            // A wall-clock time has no offset to drop; a time in UTC without one is taken as UTC.
            parse_timestamp(text).filter(|(_, zoned)| utc || !zoned).map(|(value, _)| value)
        }),
        DataType::Decimal { precision, scale } if field.data_type.lane() == Lane::I64 => source
            .primitive::<Decimal64Type>(|text| {
                parse_decimal(text, precision, scale).and_then(|value| i64::try_from(value).ok())
            }),
        DataType::Decimal { precision, scale } => {
            source.primitive::<Decimal128Type>(|text| parse_decimal(text, precision, scale))
        }
        DataType::Text | DataType::Varchar(_) => {
            let limit = match field.data_type {
                DataType::Varchar(limit) => Some(limit as usize),
                _ => None,
            };
            let mut builder = StringBuilder::with_capacity(chunk.rows(), chunk.rows() * 16);
            source.each(|value| {
                let text = match value {
                    Some(bytes) => Some(std::str::from_utf8(bytes).ok()?),
                    None => None,
                };
                if let Some(text) = text
                    && (text.len() > VALUE_BYTES_MAX
                        || limit.is_some_and(|limit| text.len() > limit && text.chars().count() > limit))
                {
                    return None;
                }
                builder.append_option(text);
                Some(())
            })?;
            Ok(Arc::new(builder.finish()))
        }
        DataType::Bytea => {
            let mut builder = BinaryBuilder::new();
            source.each(|value| {
                builder.append_option(match value {
                    Some(bytes) => Some(parse_bytes(bytes)?),
                    None => None,
                });
                Some(())
            })?;
            Ok(Arc::new(builder.finish()))
        }
        DataType::Vector { dimension, element } => match element {
            VectorElement::F32 => source.vectors::<Float32Type>(dimension, |text| text.parse().ok()),
            VectorElement::F16 => source.vectors::<Float16Type>(dimension, |text| Float32Type::parse(text).map(to_f16)),
            VectorElement::I8 => source.vectors::<Int8Type>(dimension, |text| text.parse().ok()),
            VectorElement::Bit => source.bits(dimension),
        },
    }
}

fn to_f16(value: f32) -> <Float16Type as ArrowPrimitiveType>::Native {
    <Float16Type as ArrowPrimitiveType>::Native::from_f32(value)
}

fn trimmed(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().map(str::trim)
}

struct Source<'a> {
    chunk: &'a Chunk,
    column: usize,
    field: &'a Field,
    null: Option<&'a str>,
}

impl Source<'_> {
    /// Calls `take` for every field, NULL as `None`; `None` from `take` is a bad field.
    fn each(&self, mut take: impl FnMut(Option<&[u8]>) -> Option<()>) -> Result<(), BadField> {
        let keeps_empty = !self.field.nullable && matches!(self.field.data_type, DataType::Text | DataType::Varchar(_));
        for row in 0..self.chunk.rows() {
            let bytes = self.chunk.field(row, self.column);
            let named_null = self.null.is_some_and(|null| !null.is_empty() && null.as_bytes() == bytes);
            let value = if named_null || (bytes.is_empty() && !keeps_empty) { None } else { Some(bytes) };
            if value.is_none() && !self.field.nullable {
                return Err(BadField { row, null: true });
            }
            take(value).ok_or(BadField { row, null: false })?;
        }
        Ok(())
    }

    fn primitive<T: ArrowPrimitiveType>(
        &self,
        parse: impl Fn(&str) -> Option<T::Native>,
    ) -> Result<ArrayRef, BadField> {
        let arrow_type = arrow_mapping::to_arrow_type(&self.field.data_type, true);
        let mut builder = PrimitiveBuilder::<T>::with_capacity(self.chunk.rows()).with_data_type(arrow_type);
        self.each(|value| {
            match value {
                Some(bytes) => builder.append_value(parse(trimmed(bytes)?)?),
                None => builder.append_null(),
            }
            Some(())
        })?;
        Ok(Arc::new(builder.finish()))
    }

    /// `1011`, or `[1, 0, 1, 1]`: component 0 first.
    fn bits(&self, dimension: u32) -> Result<ArrayRef, BadField> {
        let width = VectorElement::Bit.row_bytes(dimension);
        let mut bytes: Vec<u8> = Vec::with_capacity(self.chunk.rows() * width);
        let mut present = arrow_buffer::NullBufferBuilder::new(self.chunk.rows());
        self.each(|value| {
            let from = bytes.len();
            bytes.resize(from + width, 0);
            let Some(field) = value else {
                present.append_null();
                return Some(());
            };
            let text = trimmed(field)?;
            let inner = text.strip_prefix('[').map_or(Some(text), |rest| rest.strip_suffix(']'))?;
            let mut count = 0;
            for digit in inner.bytes().filter(|byte| !matches!(byte, b',' | b' ')) {
                let bit = match digit {
                    b'0' => 0,
                    b'1' => 1,
                    _ => return None,
                };
                *bytes.get_mut(from + count / 8)? |= bit << (count % 8);
                count += 1;
            }
            present.append_non_null();
            (count == dimension as usize).then_some(())
        })?;
        arrow_mapping::vector_array(&self.field.data_type, self.chunk.rows(), bytes.into(), present.finish())
            .map_err(|_| BadField { row: 0, null: false })
    }

    /// `[1.5, 2, 3]`: brackets optional.
    fn vectors<T: ArrowPrimitiveType>(
        &self,
        dimension: u32,
        parse: impl Fn(&str) -> Option<T::Native>,
    ) -> Result<ArrayRef, BadField> {
        let dimension = dimension as usize;
        let mut elements = PrimitiveBuilder::<T>::with_capacity(self.chunk.rows() * dimension);
        let mut present = arrow_buffer::NullBufferBuilder::new(self.chunk.rows());
        self.each(|value| {
            let Some(bytes) = value else {
                elements.append_value_n(T::Native::default(), dimension);
                present.append_null();
                return Some(());
            };
            let text = trimmed(bytes)?;
            let inner = text.strip_prefix('[').map_or(Some(text), |rest| rest.strip_suffix(']'))?;
            let mut count = 0;
            for item in inner.split(',') {
                elements.append_value(parse(item.trim())?);
                count += 1;
            }
            present.append_non_null();
            (count == dimension).then_some(())
        })?;
        let item = match arrow_mapping::to_arrow_type(&self.field.data_type, true) {
            arrow_schema::DataType::FixedSizeList(item, _) => item,
            _ => Arc::new(ArrowField::new_list_field(T::DATA_TYPE, false)),
        };
        let values: ArrayRef = Arc::new(elements.finish());
        debug_assert_eq!(values.data_type(), item.data_type());
        FixedSizeListArray::try_new(item, dimension as i32, values, present.finish())
            .map(|list| Arc::new(list) as ArrayRef)
            .map_err(|_| BadField { row: 0, null: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_parse_exactly_or_not_at_all() {
        assert_eq!(parse_decimal("-12.30", 5, 2), Some(-1230));
        assert_eq!(parse_decimal("12.3", 5, 2), Some(1230));
        assert_eq!(parse_decimal("12.3000", 5, 2), Some(1230));
        assert_eq!(parse_decimal(".5", 5, 2), Some(50));
        assert_eq!(parse_decimal("999.99", 5, 2), Some(99999));
        for text in ["1000", "12.345", "", "-", ".", "1e3", "1.2.3", "12 3", "--1"] {
            assert_eq!(parse_decimal(text, 5, 2), None, "{text:?}");
        }
        assert_eq!(parse_decimal(&"9".repeat(38), 38, 0), Some(10i128.pow(38) - 1));
        assert_eq!(parse_decimal(&"9".repeat(60), 38, 0), None);
    }

    #[test]
    fn timestamps_keep_microseconds_and_refuse_what_would_be_cut() {
        assert_eq!(parse_timestamp("1970-01-01 00:00:01.000001"), Some((1_000_001, false)));
        assert_eq!(parse_timestamp("1970-01-01T00:00:00+01:00"), Some((-3_600_000_000, true)));
        assert_eq!(parse_timestamp("9999-12-31 23:59:59"), Some((253_402_300_799_000_000, false)));
        assert_eq!(parse_timestamp("1970-01-02"), Some((86_400_000_000, false)));
        assert_eq!(parse_timestamp("1970-01-01 00:00:01.0000001"), None);
        assert_eq!(parse_timestamp("yesterday at noon"), None);
    }

    #[test]
    fn bytea_takes_hexadecimal_after_a_backslash_x() {
        assert_eq!(parse_bytes(b"\\xDEad"), Some(vec![0xde, 0xad]));
        assert_eq!(parse_bytes(b"\\xD"), None);
        assert_eq!(parse_bytes(b"plain"), Some(b"plain".to_vec()));
    }
}
