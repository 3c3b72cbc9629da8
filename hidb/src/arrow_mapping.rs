//! Between Heliostat's types and Arrow's.
//!
//! Owns both directions of the mapping (`docs/types.md` is its table for people) and [`adapt_batch`],
//! which turns whatever Arrow batch a reader or a client brings into the canonical arrays that segments
//! and the engine work with. What is special about vectors is in [`vectors`].
//!
//! Invariants
//! - The *canonical* Arrow type of a column is `to_arrow_type(type, true)`; [`adapt_batch`] returns nothing
//!   else, and what it returns keeps the schema's promises: no NULL in a NOT NULL column, texts no
//!   longer than their varchar, decimals within their digits, no spare bits set in vectors of bits, no value
//!   over [`VALUE_BYTES_MAX`].
//! - A value is never changed silently: what can't be represented exactly is an error with column and row.
//!
//! Called by loads on both sides, by clients, and by the engine for result schemas.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Date64Type, Decimal64Type, Decimal128Type, DecimalType, Int64Type, TimestampNanosecondType};
use arrow_array::{Array, ArrayRef, Date32Array, PrimitiveArray, RecordBatch, RecordBatchOptions};
use arrow_cast::{CastOptions, cast_with_options};
use arrow_schema::{DataType as ArrowType, Field as ArrowField, FieldRef, Schema as ArrowSchema, SchemaRef, TimeUnit};

use crate::VALUE_BYTES_MAX;
use crate::error::{Error, ErrorCode, Result};
use crate::schema::{Field, Schema};
use crate::types::{DataType, Lane};

pub(crate) mod vectors;

pub use vectors::{vector_array, vector_bytes};

const DAY_MS: i64 = 86_400_000;

/// The Arrow type of a column. With `decimal64`, decimals of up to 18 digits are Decimal64, else Decimal128.
pub fn to_arrow_type(data_type: &DataType, decimal64: bool) -> ArrowType {
    match *data_type {
        DataType::Boolean => ArrowType::Boolean,
        DataType::Int16 => ArrowType::Int16,
        DataType::Int32 => ArrowType::Int32,
        DataType::Int64 => ArrowType::Int64,
        DataType::Float32 => ArrowType::Float32,
        DataType::Float64 => ArrowType::Float64,
        DataType::Decimal { precision, scale } if decimal64 && data_type.lane() == Lane::I64 => {
            ArrowType::Decimal64(precision, scale as i8)
        }
        DataType::Decimal { precision, scale } => ArrowType::Decimal128(precision, scale as i8),
        DataType::Varchar(_) | DataType::Text => ArrowType::Utf8,
        DataType::Bytea => ArrowType::Binary,
        DataType::Timestamp { utc: false } => ArrowType::Timestamp(TimeUnit::Microsecond, None),
        DataType::Timestamp { utc: true } => ArrowType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        DataType::Date => ArrowType::Date32,
        DataType::Vector { dimension, element } => vectors::arrow_type(dimension, element),
    }
}

/// The Arrow schema of a table or result. Vectors of bits are marked by the metadata of their fields.
pub fn to_arrow_schema(schema: &Schema, decimal64: bool) -> SchemaRef {
    let field = |field: &Field| {
        let arrow = ArrowField::new(field.name.clone(), to_arrow_type(&field.data_type, decimal64), field.nullable);
        Arc::new(vectors::bits_field(arrow, &field.data_type))
    };
    Arc::new(ArrowSchema::new(schema.fields().iter().map(field).collect::<Vec<FieldRef>>()))
}

/// The type an Arrow type is loaded as; `UnsupportedType` by name when Heliostat refuses it.
pub fn from_arrow_type(arrow: &ArrowType) -> Result<DataType> {
    let refuse = |why: &str| Err(Error::new(ErrorCode::UnsupportedType, format!("Arrow type {arrow} {why}")));
    let decimal = |precision: u8, scale: i8| match u8::try_from(scale) {
        Ok(scale) if (DataType::Decimal { precision, scale }).is_valid() => Ok(DataType::Decimal { precision, scale }),
        Ok(_) => refuse("has more than 38 digits, or more after the point than in all"),
        Err(_) => refuse("has a negative scale: cast it to a decimal of scale 0"),
    };
    Ok(match arrow {
        ArrowType::Boolean => DataType::Boolean,
        ArrowType::Int8 | ArrowType::UInt8 | ArrowType::Int16 => DataType::Int16,
        ArrowType::UInt16 | ArrowType::Int32 => DataType::Int32,
        ArrowType::UInt32 | ArrowType::Int64 => DataType::Int64,
        ArrowType::UInt64 => DataType::Decimal { precision: 20, scale: 0 },
        ArrowType::Float16 | ArrowType::Float32 => DataType::Float32,
        ArrowType::Float64 => DataType::Float64,
        ArrowType::Decimal32(precision, scale)
        | ArrowType::Decimal64(precision, scale)
        | ArrowType::Decimal128(precision, scale)
        | ArrowType::Decimal256(precision, scale) => decimal(*precision, *scale)?,
        ArrowType::Utf8 | ArrowType::LargeUtf8 | ArrowType::Utf8View => DataType::Text,
        ArrowType::Binary | ArrowType::LargeBinary | ArrowType::BinaryView | ArrowType::FixedSizeBinary(_) => {
            DataType::Bytea
        }
        ArrowType::Timestamp(_, zone) => DataType::Timestamp { utc: zone.is_some() },
        ArrowType::Date32 | ArrowType::Date64 => DataType::Date,
        ArrowType::Dictionary(_, value) => match value.as_ref() {
            ArrowType::Dictionary(..) => return refuse("is a dictionary of dictionaries"),
            value => from_arrow_type(value)?,
        },
        ArrowType::FixedSizeList(element, dimension) => match vectors::type_of_list(element.data_type(), *dimension) {
            Some(vector) if vector.is_valid() => vector,
            Some(_) => return refuse("is not a vector: its dimension must be 1 to 65535"),
            None => {
                return refuse(
                    "is not a vector: its elements must be Float32, Float16, Int8 or Boolean; with a schema that says \
                     so also Float64, or UInt8 for packed bits",
                );
            }
        },
        ArrowType::Null => return refuse("has no values to take a type from: cast the column, or leave it out"),
        ArrowType::Time32(_) | ArrowType::Time64(_) => {
            return refuse("(time of day) is not supported: cast it to an integer or to text");
        }
        ArrowType::Duration(_) | ArrowType::Interval(_) => {
            return refuse("is not supported: cast it to an integer or to text");
        }
        ArrowType::List(element) | ArrowType::LargeList(element) if element.data_type().is_numeric() => {
            return refuse(
                "is nested: where all of its lists have d elements, give a schema in which the column is vector(d); \
                 else flatten it into columns, or cast it to text",
            );
        }
        ArrowType::List(_)
        | ArrowType::LargeList(_)
        | ArrowType::ListView(_)
        | ArrowType::LargeListView(_)
        | ArrowType::Struct(_)
        | ArrowType::Map(..)
        | ArrowType::Union(..) => return refuse("is nested: flatten it into columns, or cast it to text"),
        ArrowType::RunEndEncoded(..) => return refuse("is not supported: cast it to its value type"),
    })
}

/// The type an Arrow field is loaded as: that of its Arrow type, unless it is marked as bits. `UnsupportedType` names the
/// column and the type.
pub fn from_arrow_field(field: &ArrowField) -> Result<DataType> {
    let name = |error: Error| Error::new(error.code, format!("column {:?}: {}", field.name(), error.message));
    match vectors::bits_type(field)? {
        Some(bits) => Ok(bits),
        None => from_arrow_type(field.data_type()).map_err(name),
    }
}

/// The schema an Arrow schema is loaded as. `UnsupportedType` names the column and the type.
pub fn from_arrow_schema(arrow: &ArrowSchema) -> Result<Schema> {
    let field = |field: &FieldRef| Ok(Field::new(field.name().clone(), from_arrow_field(field)?, field.is_nullable()));
    Schema::new(arrow.fields().iter().map(field).collect::<Result<_>>()?)
}

/// Whether [`adapt_batch`] takes such an Arrow column for `field`, by their types: what can be said before there are
/// values. `TypeMismatch` or `UnsupportedType`, with the column.
pub fn check_column(incoming: &ArrowField, field: &Field) -> Result<()> {
    let arrow = incoming.data_type();
    if arrow == &ArrowType::Null {
        return Ok(());
    }
    let is_marked = vectors::bits_type(incoming)?.is_some();
    if !is_marked && vectors::takes(&field.data_type, arrow) {
        return Ok(());
    }
    // Into a vector nothing else goes: why the type makes no column of its own is not what is wrong then.
    let is_vector = matches!(field.data_type, DataType::Vector { .. });
    if (is_marked || !is_vector) && widens(&from_arrow_field(incoming)?, &field.data_type) {
        return Ok(());
    }
    let text = format!("column {:?} is {}: Arrow type {arrow} does not go into it", field.name, field.data_type);
    Err(Error::new(ErrorCode::TypeMismatch, text))
}

/// Casts a batch to the canonical arrays of `schema`, by column name (exactly, else by ASCII case fold),
/// and checks every promise of the schema.
///
/// Besides the mapping of [`from_arrow_schema`], lossless widenings are taken: shorter integers into
/// longer ones, integers and decimals into decimals that hold them, Float32 into Float64, text into
/// varchar, lists of the right length into vectors, and a Null column into any nullable one. Errors: `TypeMismatch`,
/// `UnsupportedType`, `UnknownColumn`, `InvalidValue`, each with the column, `InvalidValue` also with the row.
pub fn adapt_batch(batch: &RecordBatch, schema: &Schema) -> Result<RecordBatch> {
    adapt_rows(batch, schema, 0)
}

/// Like [`adapt_batch`], of a batch whose first row has the number `first_row` where errors name rows.
pub fn adapt_rows(batch: &RecordBatch, schema: &Schema, first_row: u64) -> Result<RecordBatch> {
    let arrow = to_arrow_schema(schema, true);
    let incoming = batch.schema_ref();
    if batch.num_columns() != schema.len() {
        let names = |missing: &mut dyn Iterator<Item = &str>| {
            missing.take(5).map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
        };
        let extra =
            names(&mut incoming.fields().iter().map(|f| f.name().as_str()).filter(|n| schema.find(n).is_none()));
        let missing =
            names(&mut schema.fields().iter().map(|f| f.name.as_str()).filter(|n| position(incoming, n).is_none()));
        return Err(Error::new(
            ErrorCode::UnknownColumn,
            format!(
                "the batch has {} columns, the table {}; not in the table: [{extra}]; not in the batch: [{missing}]",
                batch.num_columns(),
                schema.len()
            ),
        ));
    }
    let mut columns = Vec::with_capacity(schema.len());
    for (index, field) in schema.fields().iter().enumerate() {
        let same_place = incoming.field(index).name() == &field.name;
        let source = if same_place { Some(index) } else { position(incoming, &field.name) };
        let source = source
            .ok_or_else(|| Error::new(ErrorCode::UnknownColumn, format!("the batch has no column {:?}", field.name)))?;
        check_column(incoming.field(source), field)?;
        let place = Place { field, first_row };
        columns.push(adapt_column(batch.column(source), &place, arrow.field(index).data_type())?);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(arrow, columns, &options)
        .map_err(|error| Error::new(ErrorCode::InvalidValue, error.to_string()))
}

fn position(schema: &ArrowSchema, name: &str) -> Option<usize> {
    let exact = schema.fields().iter().position(|f| f.name() == name);
    exact.or_else(|| schema.fields().iter().position(|f| f.name().eq_ignore_ascii_case(name)))
}

/// Where a value is, for errors.
struct Place<'a> {
    field: &'a Field,
    /// The number of the batch's first row.
    first_row: u64,
}

impl Place<'_> {
    fn invalid(&self, message: impl std::fmt::Display) -> Error {
        let text = format!("column {:?} ({}): {message}", self.field.name, self.field.data_type);
        Error::new(ErrorCode::InvalidValue, text)
    }

    /// `row` counts from the batch's first.
    fn invalid_row(&self, row: usize, message: impl std::fmt::Display) -> Error {
        self.invalid(format!("row {}: {message}", self.first_row + row as u64))
    }
}

/// One column as the canonical array of its field, whose Arrow type is `canonical`.
fn adapt_column(array: &ArrayRef, place: &Place<'_>, canonical: &ArrowType) -> Result<ArrayRef> {
    let array = if array.data_type() == canonical { array.clone() } else { convert(array, place, canonical)? };
    if !place.field.nullable && array.null_count() > 0 {
        let row = (0..array.len()).find(|row| array.is_null(*row)).unwrap_or(0);
        return Err(place.invalid_row(row, "the value is NULL, but the column is NOT NULL"));
    }
    check_values(&array, place)?;
    Ok(array)
}

/// A cast in which what can't be cast is an error.
fn strict_cast(array: &ArrayRef, target: &ArrowType, place: &Place<'_>) -> Result<ArrayRef> {
    cast_with_options(array, target, &CastOptions { safe: false, ..Default::default() })
        .map_err(|error| place.invalid(error))
}

/// Casts values of a type that [`check_column`] takes; exact or an error.
fn convert(array: &ArrayRef, place: &Place<'_>, canonical: &ArrowType) -> Result<ArrayRef> {
    if let DataType::Vector { dimension, element } = place.field.data_type
        && vectors::takes(&place.field.data_type, array.data_type())
    {
        return vectors::convert(array, place, dimension, element);
    }
    match array.data_type() {
        ArrowType::Null => Ok(arrow_array::new_null_array(canonical, array.len())),
        ArrowType::Dictionary(_, value) => {
            let plain = strict_cast(array, value, place)?;
            if plain.data_type() == canonical { Ok(plain) } else { convert(&plain, place, canonical) }
        }
        ArrowType::Date64 => {
            let days = exact_quotients::<Date64Type>(array, DAY_MS)
                .map_err(|(row, ms)| place.invalid_row(row, format!("{ms} ms since 1970 is not a whole day")))?;
            let mut narrow = Vec::with_capacity(days.len());
            for (row, day) in days.values().iter().enumerate() {
                let in_range = i32::try_from(*day);
                narrow.push(in_range.map_err(|_| place.invalid_row(row, format!("day {day} is out of range")))?);
            }
            Ok(Arc::new(Date32Array::new(narrow.into(), days.nulls().cloned())))
        }
        ArrowType::Timestamp(TimeUnit::Nanosecond, _) => {
            let micros = exact_quotients::<TimestampNanosecondType>(array, 1000).map_err(|(row, ns)| {
                place.invalid_row(row, format!("{ns} ns since 1970 is not a whole microsecond"))
            })?;
            let micros = micros.reinterpret_cast::<arrow_array::types::TimestampMicrosecondType>();
            Ok(Arc::new(micros.with_data_type(canonical.clone())))
        }
        // The zone only says how to print an instant: no value changes.
        ArrowType::Timestamp(TimeUnit::Microsecond, Some(_)) => {
            let micros = array.as_primitive::<arrow_array::types::TimestampMicrosecondType>();
            Ok(Arc::new(micros.clone().with_data_type(canonical.clone())))
        }
        ArrowType::Timestamp(_, Some(_)) => {
            strict_cast(array, &ArrowType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), place)
        }
        _ => strict_cast(array, canonical, place),
    }
}

/// Every valid value divided by `divisor`; the first row and value that has a remainder otherwise.
fn exact_quotients<T>(array: &ArrayRef, divisor: i64) -> Result<PrimitiveArray<Int64Type>, (usize, i64)>
where
    T: arrow_array::ArrowPrimitiveType<Native = i64>,
{
    let array = array.as_primitive::<T>();
    let mut quotients = Vec::with_capacity(array.len());
    for (row, value) in array.values().iter().enumerate() {
        if value % divisor != 0 && array.is_valid(row) {
            return Err((row, *value));
        }
        quotients.push(value / divisor);
    }
    Ok(PrimitiveArray::new(quotients.into(), array.nulls().cloned()))
}

/// Whether every value of `from` is a value of `to`.
fn widens(from: &DataType, to: &DataType) -> bool {
    let digits = |t: &DataType| match t {
        DataType::Int16 => Some((5, 0)),
        DataType::Int32 => Some((10, 0)),
        DataType::Int64 => Some((19, 0)),
        DataType::Decimal { precision, scale } => Some((*precision, *scale)),
        _ => None,
    };
    match (from, to) {
        _ if from == to => true,
        (DataType::Int16, DataType::Int32 | DataType::Int64) | (DataType::Int32, DataType::Int64) => true,
        (DataType::Float32, DataType::Float64) | (DataType::Text, DataType::Varchar(_)) => true,
        (_, DataType::Decimal { precision, scale }) => {
            digits(from).is_some_and(|(digits, after)| after <= *scale && digits - after <= precision - scale)
        }
        _ => false,
    }
}

/// Checks the values of a canonical array that Arrow's own type does not constrain enough.
fn check_values(array: &ArrayRef, place: &Place<'_>) -> Result<()> {
    let too_long = |row: usize, bytes: usize| {
        place.invalid_row(row, format!("a value of {bytes} bytes, at most {VALUE_BYTES_MAX}"))
    };
    match place.field.data_type {
        DataType::Text | DataType::Varchar(_) => {
            let array = array.as_string::<i32>();
            let limit = match place.field.data_type {
                DataType::Varchar(n) => n as usize,
                _ => usize::MAX,
            };
            let longest = limit.min(VALUE_BYTES_MAX);
            for (row, ends) in array.value_offsets().windows(2).enumerate() {
                let bytes = (ends[1] - ends[0]) as usize;
                // A text has no more characters than bytes: most rows end here.
                if bytes <= longest || array.is_null(row) {
                    continue;
                }
                if bytes > VALUE_BYTES_MAX {
                    return Err(too_long(row, bytes));
                }
                let characters = array.value(row).chars().count();
                if characters > limit {
                    return Err(place.invalid_row(row, format!("{characters} characters, at most {limit}")));
                }
            }
            Ok(())
        }
        DataType::Bytea => {
            let offsets = array.as_binary::<i32>().value_offsets();
            let sizes = offsets.windows(2).map(|ends| (ends[1] - ends[0]) as usize);
            match sizes.enumerate().find(|(row, bytes)| *bytes > VALUE_BYTES_MAX && array.is_valid(*row)) {
                Some((row, bytes)) => Err(too_long(row, bytes)),
                None => Ok(()),
            }
        }
        DataType::Decimal { precision, scale } => {
            let limit = 10i128.pow(u32::from(precision));
            match array.data_type() {
                ArrowType::Decimal64(..) => check_digits::<Decimal64Type>(array, limit, scale),
                _ => check_digits::<Decimal128Type>(array, limit, scale),
            }
            .map_err(|(row, value)| place.invalid_row(row, format!("{value} has more than {precision} digits")))
        }
        DataType::Vector { dimension, element } => vectors::check(array, place, dimension, element),
        _ => Ok(()),
    }
}

/// The first row and value (as text) that is not below `limit`.
fn check_digits<T>(array: &ArrayRef, limit: i128, scale: u8) -> Result<(), (usize, String)>
where
    T: DecimalType,
    T::Native: Into<i128>,
{
    let array = array.as_primitive::<T>();
    // One branch-free pass decides for nearly every array; the row is looked for only when it fails.
    let outside = |value: T::Native| {
        let value: i128 = value.into();
        value >= limit || value <= -limit
    };
    let any = array.values().iter().fold(false, |any, value| any | outside(*value));
    if !any {
        return Ok(());
    }
    match array.iter().enumerate().find_map(|(row, value)| value.filter(|v| outside(*v)).map(|v| (row, v))) {
        Some((row, value)) => Err((row, T::format_decimal(value, T::MAX_PRECISION, scale as i8))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
