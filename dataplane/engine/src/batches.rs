//! Between vectors and Arrow arrays, for what is not on the hot path: merging intermediate results.
//!
//! Owns [`vector_of_array`] and [`array_of_vectors`]. Invariant: arrays of a wrong type are errors.

use std::sync::Arc;

use arrow_array::builder::{BinaryBuilder, BooleanBuilder, StringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal64Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    TimestampMicrosecondType,
};
use arrow_array::{Array, ArrayRef, ArrowPrimitiveType, PrimitiveArray};
use arrow_schema::DataType as ArrowType;
use hidb::arrow_mapping::{vector_array, vector_bytes};
use hidb::{BLOCK_ROWS, DataType, Error, ErrorCode, Lane, Result};

use crate::vector::{NO_BITS, Vector, bit, set_bit};

fn wrong(array: &dyn Array, data_type: &DataType) -> Error {
    Error::new(
        ErrorCode::TypeMismatch,
        format!("an Arrow array of {} where {data_type} was expected", array.data_type()),
    )
}

fn copy_i64<T: ArrowPrimitiveType>(array: &dyn Array, out: &mut Vector) -> Option<()>
where
    T::Native: Into<i64>,
{
    let values = array.as_primitive_opt::<T>()?.values();
    out.i64s.iter_mut().zip(values.iter()).for_each(|(out, value)| *out = (*value).into());
    Some(())
}

/// Copies an array of at most 1,024 values into a vector.
pub(crate) fn vector_of_array(array: &dyn Array, data_type: &DataType, out: &mut Vector) -> Result<()> {
    let rows = array.len().min(BLOCK_ROWS);
    out.reset(data_type.lane(), BLOCK_ROWS);
    let copied = match (data_type, array.data_type()) {
        (_, ArrowType::Boolean) if out.lane == Lane::Bool => array.as_boolean_opt().map(|values| {
            (0..rows).filter(|row| values.value(*row)).for_each(|row| set_bit(&mut out.bits, row));
        }),
        (DataType::Int16, _) => copy_i64::<Int16Type>(array, out),
        (DataType::Int32, _) => copy_i64::<Int32Type>(array, out),
        (DataType::Int64, _) => copy_i64::<Int64Type>(array, out),
        (DataType::Date, _) => copy_i64::<Date32Type>(array, out),
        (DataType::Timestamp { .. }, _) => copy_i64::<TimestampMicrosecondType>(array, out),
        (DataType::Decimal { .. }, ArrowType::Decimal64(..)) if out.lane == Lane::I64 => {
            copy_i64::<Decimal64Type>(array, out)
        }
        (DataType::Decimal { .. }, _) => array.as_primitive_opt::<Decimal128Type>().map(|values| {
            for (row, value) in values.values().iter().enumerate().take(rows) {
                match out.lane {
                    Lane::I64 => out.i64s[row] = *value as i64,
                    _ => out.i128s[row] = *value,
                }
            }
        }),
        (DataType::Float32, _) => array.as_primitive_opt::<Float32Type>().map(|values| {
            out.f64s.iter_mut().zip(values.values().iter()).for_each(|(out, value)| *out = f64::from(*value));
        }),
        (DataType::Float64, _) => array.as_primitive_opt::<Float64Type>().map(|values| {
            out.f64s.iter_mut().zip(values.values().iter()).for_each(|(out, value)| *out = *value);
        }),
        (DataType::Varchar(_) | DataType::Text, _) => array.as_string_opt::<i32>().map(|values| {
            (0..rows)
                .for_each(|row| out.bytes.push(if values.is_null(row) { b"" } else { values.value(row).as_bytes() }));
        }),
        (DataType::Bytea, _) => array.as_binary_opt::<i32>().map(|values| {
            (0..rows).for_each(|row| out.bytes.push(if values.is_null(row) { b"" } else { values.value(row) }));
        }),
        (DataType::Vector { .. }, _) => vector_bytes(array, data_type).map(|values| {
            let width = data_type.fixed_width().unwrap_or(0).max(1);
            for (row, value) in values.chunks_exact(width).enumerate().take(rows) {
                out.bytes.push(if array.is_null(row) { b"" } else { value });
            }
        }),
        _ => None,
    };
    copied.ok_or_else(|| wrong(array, data_type))?;
    if array.null_count() > 0 {
        out.has_nulls = true;
        out.valid = NO_BITS;
        (0..rows).filter(|row| array.is_valid(*row)).for_each(|row| set_bit(&mut out.valid, row));
    }
    Ok(())
}

fn primitive<T: ArrowPrimitiveType>(
    vectors: &[Vector],
    rows: usize,
    value: impl Fn(&Vector, usize) -> T::Native,
) -> PrimitiveArray<T> {
    PrimitiveArray::from_iter((0..rows).map(|row| {
        let vector = &vectors[row / BLOCK_ROWS];
        vector.is_valid(row % BLOCK_ROWS).then(|| value(vector, row % BLOCK_ROWS))
    }))
}

/// Makes one canonical array of full vectors (1,024 rows each but for the last).
pub(crate) fn array_of_vectors(vectors: &[Vector], rows: usize, data_type: &DataType) -> Result<ArrayRef> {
    let values = || {
        (0..rows).map(|row| {
            let vector = &vectors[row / BLOCK_ROWS];
            vector.is_valid(row % BLOCK_ROWS).then_some((vector, row % BLOCK_ROWS))
        })
    };
    let decimal_error =
        |error: arrow_schema::ArrowError| Error::new(ErrorCode::Internal, format!("{data_type}: {error}"));
    Ok(match data_type {
        DataType::Boolean => {
            let mut builder = BooleanBuilder::with_capacity(rows);
            values().for_each(|value| builder.append_option(value.map(|(vector, row)| bit(&vector.bits, row))));
            Arc::new(builder.finish())
        }
        DataType::Int16 => Arc::new(primitive::<Int16Type>(vectors, rows, |v, row| v.i64s[row] as i16)),
        DataType::Int32 => Arc::new(primitive::<Int32Type>(vectors, rows, |v, row| v.i64s[row] as i32)),
        DataType::Int64 => Arc::new(primitive::<Int64Type>(vectors, rows, |v, row| v.i64s[row])),
        DataType::Date => Arc::new(primitive::<Date32Type>(vectors, rows, |v, row| v.i64s[row] as i32)),
        DataType::Timestamp { utc } => Arc::new(
            primitive::<TimestampMicrosecondType>(vectors, rows, |v, row| v.i64s[row])
                .with_timezone_opt(utc.then(|| Arc::<str>::from("UTC"))),
        ),
        DataType::Float32 => Arc::new(primitive::<Float32Type>(vectors, rows, |v, row| v.f64s[row] as f32)),
        DataType::Float64 => Arc::new(primitive::<Float64Type>(vectors, rows, |v, row| v.f64s[row])),
        DataType::Decimal { precision, scale } if data_type.lane() == Lane::I64 => Arc::new(
            primitive::<Decimal64Type>(vectors, rows, |v, row| v.i64s[row])
                .with_precision_and_scale(*precision, *scale as i8)
                .map_err(decimal_error)?,
        ),
        DataType::Decimal { precision, scale } => Arc::new(
            primitive::<Decimal128Type>(vectors, rows, |v, row| v.integer(row))
                .with_precision_and_scale(*precision, *scale as i8)
                .map_err(decimal_error)?,
        ),
        DataType::Varchar(_) | DataType::Text => {
            let mut builder = StringBuilder::new();
            for value in values() {
                let text = value.map(|(vector, row)| String::from_utf8_lossy(vector.bytes.get(row)));
                builder.append_option(text);
            }
            Arc::new(builder.finish())
        }
        DataType::Bytea => {
            let mut builder = BinaryBuilder::new();
            values().for_each(|value| builder.append_option(value.map(|(vector, row)| vector.bytes.get(row))));
            Arc::new(builder.finish())
        }
        DataType::Vector { .. } => {
            let width = data_type.fixed_width().unwrap_or(0);
            let mut bytes = vec![0; rows * width];
            for (out, value) in bytes.chunks_exact_mut(width.max(1)).zip(values()) {
                if let Some((vector, row)) = value {
                    out.copy_from_slice(vector.bytes.get(row));
                }
            }
            let nulls = values().any(|value| value.is_none()).then(|| values().map(|value| value.is_some()).collect());
            vector_array(data_type, rows, bytes.into(), nulls)?
        }
    })
}
