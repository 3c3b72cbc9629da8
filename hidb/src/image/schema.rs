//! The Arrow IPC schema message that precedes the images of an answer.
//!
//! Owns writing it (by arrow-ipc) and reading it. Reading is our own, because arrow-ipc's conversion
//! panics on types it does not know, and takes only the types Heliostat sends.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteOptions, write_message};
use arrow_ipc::{DateUnit, MessageHeader, Precision, TimeUnit as IpcTimeUnit, Type};
use arrow_schema::{DataType as ArrowType, Field as ArrowField, Schema as ArrowSchema, SchemaRef, TimeUnit};

use super::{CONTINUATION, PREFIX_BYTES, Shape};
use crate::arrow_mapping::to_arrow_schema;
use crate::arrow_mapping::vectors::{BITS_EXTENSION, BITS_METADATA_KEYS, bits_type};
use crate::error::{Error, ErrorCode, Result};
use crate::schema::Schema;

/// The encapsulated Arrow IPC schema message of an answer.
pub fn schema_message(schema: &Schema, decimal64: bool) -> Vec<u8> {
    let options = IpcWriteOptions::default();
    let mut tracker = DictionaryTracker::new(false);
    let arrow = to_arrow_schema(schema, decimal64);
    let encoded = IpcDataGenerator::default().schema_to_bytes_with_dictionary_tracker(&arrow, &mut tracker, &options);
    let mut message = Vec::new();
    // Writing a schema to memory has no way to fail; were there one, the reader would refuse the bytes.
    let _ = write_message(&mut message, encoded, &options);
    message
}

pub(super) fn malformed(what: impl Into<String>) -> Error {
    Error::new(ErrorCode::Protocol, format!("malformed Arrow IPC message: {}", what.into()))
}

/// The flatbuffer of an encapsulated message, and where its body begins.
pub(super) fn metadata(bytes: &[u8]) -> Result<(&[u8], usize)> {
    if bytes.len() < PREFIX_BYTES || bytes[..4] != CONTINUATION {
        return Err(malformed("it does not begin with a continuation marker"));
    }
    let length = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
    match bytes.get(PREFIX_BYTES..PREFIX_BYTES + length) {
        Some(metadata) if length > 0 => Ok((metadata, PREFIX_BYTES + length)),
        _ => Err(malformed(format!("metadata of {length} bytes in a message of {} bytes", bytes.len()))),
    }
}

/// Reads a schema message. `Protocol` when it is malformed, `UnsupportedType` when it holds a type that
/// Heliostat does not send.
pub fn read_schema(bytes: &[u8]) -> Result<SchemaRef> {
    let (metadata, _) = metadata(bytes)?;
    let message = arrow_ipc::root_as_message(metadata).map_err(|error| malformed(error.to_string()))?;
    if message.header_type() != MessageHeader::Schema {
        return Err(malformed("a schema message was expected"));
    }
    let schema = message.header_as_schema().ok_or_else(|| malformed("the schema is missing"))?;
    let fields = schema.fields().ok_or_else(|| malformed("the schema has no fields"))?;
    let mut arrow = Vec::with_capacity(fields.len());
    for field in fields {
        let name = field.name().unwrap_or_default();
        let data_type = read_type(&field).ok_or_else(|| {
            Error::new(
                ErrorCode::UnsupportedType,
                format!("column {name:?} has an Arrow type that HIDB does not carry ({:?})", field.type_type()),
            )
        })?;
        let is_bits = matches!(data_type, ArrowType::FixedSizeBinary(_));
        let field = ArrowField::new(name, data_type, field.nullable()).with_metadata(bits_metadata(&field));
        if is_bits && bits_type(&field)?.is_none() {
            let text = format!(
                "column {name:?} is fixed-size binary without being {BITS_EXTENSION}, which HIDB does not carry"
            );
            return Err(Error::new(ErrorCode::UnsupportedType, text));
        }
        arrow.push(field);
    }
    Ok(Arc::new(ArrowSchema::new(arrow)))
}

/// Of the field's metadata what says that it holds vectors of bits; nothing else is carried.
fn bits_metadata(field: &arrow_ipc::Field<'_>) -> HashMap<String, String> {
    let entries = field.custom_metadata().into_iter().flatten();
    let entries = entries.filter_map(|entry| Some((entry.key()?.to_string(), entry.value()?.to_string())));
    match field.type_type() {
        Type::FixedSizeBinary => entries.filter(|(key, _)| BITS_METADATA_KEYS.contains(&key.as_str())).collect(),
        _ => HashMap::new(),
    }
}

/// The type of a field, `None` unless it is one that [`crate::arrow_mapping::to_arrow_type`] gives.
fn read_type(field: &arrow_ipc::Field<'_>) -> Option<ArrowType> {
    if field.dictionary().is_some() {
        return None;
    }
    let data_type = match field.type_type() {
        Type::Bool => ArrowType::Boolean,
        Type::Int => {
            let int = field.type_as_int()?;
            match (int.bitWidth(), int.is_signed()) {
                (8, true) => ArrowType::Int8,
                (16, true) => ArrowType::Int16,
                (32, true) => ArrowType::Int32,
                (64, true) => ArrowType::Int64,
                _ => return None,
            }
        }
        Type::FloatingPoint => match field.type_as_floating_point()?.precision() {
            Precision::HALF => ArrowType::Float16,
            Precision::SINGLE => ArrowType::Float32,
            Precision::DOUBLE => ArrowType::Float64,
            _ => return None,
        },
        Type::Decimal => {
            let decimal = field.type_as_decimal()?;
            let precision = u8::try_from(decimal.precision()).ok()?;
            let scale = i8::try_from(decimal.scale()).ok().filter(|scale| *scale >= 0)?;
            let digits = if decimal.bitWidth() == 64 { 18 } else { 38 };
            if precision == 0 || precision > digits || scale as u8 > precision {
                return None;
            }
            match decimal.bitWidth() {
                64 => ArrowType::Decimal64(precision, scale),
                128 => ArrowType::Decimal128(precision, scale),
                _ => return None,
            }
        }
        Type::Utf8 => ArrowType::Utf8,
        Type::Binary => ArrowType::Binary,
        Type::Timestamp => {
            let timestamp = field.type_as_timestamp()?;
            if timestamp.unit() != IpcTimeUnit::MICROSECOND {
                return None;
            }
            match timestamp.timezone() {
                None => ArrowType::Timestamp(TimeUnit::Microsecond, None),
                Some("UTC") => ArrowType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
                Some(_) => return None,
            }
        }
        Type::Date => match field.type_as_date()?.unit() {
            DateUnit::DAY => ArrowType::Date32,
            _ => return None,
        },
        Type::FixedSizeBinary => {
            let binary = ArrowType::FixedSizeBinary(field.type_as_fixed_size_binary()?.byteWidth());
            return Shape::of(&binary).map(|_| binary);
        }
        Type::FixedSizeList => {
            let children = field.children().filter(|children| children.len() == 1)?;
            let child = children.get(0);
            // Elements are scalars: no recursion, whatever the message nests.
            if matches!(child.type_type(), Type::FixedSizeList) {
                return None;
            }
            let element = read_type(&child)?;
            let element = ArrowField::new(child.name().unwrap_or_default(), element, child.nullable());
            let list = ArrowType::FixedSizeList(Arc::new(element), field.type_as_fixed_size_list()?.listSize());
            return Shape::of(&list).map(|_| list);
        }
        _ => return None,
    };
    Some(data_type)
}
