//! Random columns of every type and shape that the encodings distinguish, and their plain reading.

// Compiled into several tests, each of which uses a part.
#![allow(dead_code)]

use std::sync::Arc;

use arrow_array::builder::*;
use arrow_array::types::*;
use arrow_array::*;
use arrow_buffer::NullBuffer;
use heliostat_segment::{Chunk, Selection, encode_chunk};
use hidb::types::{DataType, Lane, Scalar, VectorElement};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Every logical type.
pub fn types() -> Vec<DataType> {
    vec![
        DataType::Boolean,
        DataType::Int16,
        DataType::Int32,
        DataType::Int64,
        DataType::Float32,
        DataType::Float64,
        DataType::Decimal { precision: 15, scale: 2 },
        DataType::Decimal { precision: 38, scale: 4 },
        DataType::Varchar(40),
        DataType::Text,
        DataType::Bytea,
        DataType::Timestamp { utc: true },
        DataType::Date,
        DataType::Vector { dimension: 3, element: VectorElement::F32 },
        DataType::Vector { dimension: 5, element: VectorElement::I8 },
        DataType::Vector { dimension: 19, element: VectorElement::Bit },
    ]
}

/// Ways in which values may be distributed.
pub const SHAPES: usize = 10;

fn integer(shape: usize, row: usize, state: &mut i64, rng: &mut ChaCha8Rng) -> i64 {
    match shape {
        0 => 7,
        1 => rng.random_range(0..50) * 100,
        2 => {
            *state += rng.random_range(0..4);
            *state
        }
        3 => rng.random(),
        4 => *[i64::MIN, i64::MAX, 0, -1].choose(rng).unwrap(),
        5 => row as i64 * 1000 + 17,
        6 => (row / 400) as i64 * 1_000_003,
        7 => rng.random_range(-9000..9000),
        8 => (rng.random_range(0..30i64)).wrapping_mul(0x1234_5678_9abc_def1),
        _ => {
            *state = state.wrapping_sub(rng.random_range(0..1i64 << 40));
            *state
        }
    }
}

fn float(shape: usize, row: usize, rng: &mut ChaCha8Rng) -> f64 {
    match shape {
        0 => 1.5,
        1 => rng.random_range(-100..100) as f64 / 4.0,
        2 => *[f64::NAN, 0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY, 5e-324, -1.0].choose(rng).unwrap(),
        3 => f64::from_bits(rng.random()),
        4 => f64::NAN,
        5 => row as f64,
        6 => rng.random_range(0..10_000_000) as f64 / 100.0,
        7 => rng.random(),
        // Sensor readings with gaps.
        8 if rng.random_range(0..20) == 0 => *[f64::NAN, -0.0, f64::INFINITY].choose(rng).unwrap(),
        8 => ((20.0 + (row as f64 / 100.0).sin() * 5.0) * 1000.0).round() / 1000.0,
        _ => rng.random_range(-1e9..1e9),
    }
}

fn text(shape: usize, row: usize, rng: &mut ChaCha8Rng) -> String {
    const WORDS: [&str; 12] = [
        "special",
        "requests",
        "carefully",
        "",
        "ironic",
        "deposits",
        "żółw",
        "é",
        "blithely",
        "Ω",
        "final",
        "pending",
    ];
    match shape {
        0 => "constant".into(),
        1 => WORDS.choose(rng).unwrap().to_string(),
        2 => String::new(),
        3 => (0..rng.random_range(0..12)).map(|_| rng.random_range('a'..='e')).collect(),
        4 => (0..rng.random_range(0..30)).map(|_| rng.random::<char>()).collect(),
        5 => format!("customer#{row:09}"),
        6 => "x".repeat(rng.random_range(0..300)),
        _ => (0..rng.random_range(0..9)).map(|_| *WORDS.choose(rng).unwrap()).collect::<Vec<_>>().join(" "),
    }
}

/// A canonical array of `rows` rows.
pub fn array(data_type: &DataType, shape: usize, rows: usize, null_percent: u32, seed: u64) -> ArrayRef {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let valid: Vec<bool> = (0..rows).map(|_| rng.random_range(0..100) >= null_percent).collect();
    let nulls = (null_percent > 0).then(|| NullBuffer::from(valid.clone()));
    let mut state = 0i64;
    let rng = &mut rng;
    macro_rules! integers {
        ($arrow:ty, $native:ty, $map:expr) => {{
            let values: Vec<$native> = (0..rows).map(|row| $map(integer(shape, row, &mut state, rng))).collect();
            PrimitiveArray::<$arrow>::new(values.into(), nulls)
        }};
    }
    match data_type {
        DataType::Boolean => {
            let values: Vec<bool> = (0..rows)
                .map(|_| match shape {
                    0 => true,
                    1 => false,
                    _ => rng.random(),
                })
                .collect();
            Arc::new(BooleanArray::new(values.into(), nulls))
        }
        DataType::Int16 => Arc::new(integers!(Int16Type, i16, |v| v as i16)),
        DataType::Int32 => Arc::new(integers!(Int32Type, i32, |v| v as i32)),
        DataType::Date => Arc::new(integers!(Date32Type, i32, |v| v as i32)),
        DataType::Int64 => Arc::new(integers!(Int64Type, i64, |v| v)),
        DataType::Timestamp { .. } => {
            Arc::new(integers!(TimestampMicrosecondType, i64, |v| v).with_timezone_opt(Some("UTC")))
        }
        DataType::Decimal { precision, scale } if data_type.lane() == Lane::I64 => {
            let limit = 10i64.pow(u32::from(*precision));
            let array = integers!(Decimal64Type, i64, |v: i64| v % limit);
            Arc::new(array.with_precision_and_scale(*precision, *scale as i8).unwrap())
        }
        DataType::Decimal { precision, scale } => {
            let wide =
                |v: i64| if shape == 3 || shape == 4 { i128::from(v) * 1_000_000_007_000 } else { i128::from(v) };
            let array = integers!(Decimal128Type, i128, wide);
            Arc::new(array.with_precision_and_scale(*precision, *scale as i8).unwrap())
        }
        DataType::Float32 => {
            let values: Vec<f32> = (0..rows).map(|row| float(shape, row, rng) as f32).collect();
            Arc::new(Float32Array::new(values.into(), nulls))
        }
        DataType::Float64 => {
            let values: Vec<f64> = (0..rows).map(|row| float(shape, row, rng)).collect();
            Arc::new(Float64Array::new(values.into(), nulls))
        }
        DataType::Varchar(_) | DataType::Text => {
            let values = (0..rows).map(|row| valid[row].then(|| text(shape, row, rng)));
            Arc::new(StringArray::from_iter(values.collect::<Vec<_>>()))
        }
        DataType::Bytea => {
            let values = (0..rows).map(|row| {
                let mut bytes = text(shape, row, rng).into_bytes();
                bytes.extend((0..shape % 3).map(|_| rng.random::<u8>()));
                valid[row].then_some(bytes)
            });
            Arc::new(BinaryArray::from_iter(values.collect::<Vec<_>>()))
        }
        DataType::Vector { dimension, element: VectorElement::I8 } => {
            let mut builder = FixedSizeListBuilder::new(Int8Builder::new(), *dimension as i32);
            for valid in valid {
                (0..*dimension).for_each(|_| builder.values().append_value(rng.random()));
                builder.append(valid);
            }
            Arc::new(builder.finish())
        }
        DataType::Vector { dimension, element: VectorElement::Bit } => {
            let mut builder = FixedSizeBinaryBuilder::new(VectorElement::Bit.row_bytes(*dimension) as i32);
            for valid in valid {
                let mut bytes: Vec<u8> = (0..VectorElement::Bit.row_bytes(*dimension)).map(|_| rng.random()).collect();
                *bytes.last_mut().unwrap() &= !VectorElement::Bit.spare_bits(*dimension);
                match valid {
                    true => builder.append_value(bytes).unwrap(),
                    false => builder.append_null(),
                }
            }
            Arc::new(builder.finish())
        }
        DataType::Vector { dimension, .. } => {
            let mut builder = FixedSizeListBuilder::new(Float32Builder::new(), *dimension as i32);
            for valid in valid {
                (0..*dimension).for_each(|_| builder.values().append_value(rng.random_range(0..3) as f32));
                builder.append(valid);
            }
            Arc::new(builder.finish())
        }
    }
}

/// The value of a row as arrow-rs reads it.
pub fn scalar(array: &dyn Array, data_type: &DataType, row: usize) -> Scalar {
    use arrow_array::cast::AsArray;
    if array.is_null(row) {
        return Scalar::Null;
    }
    match data_type {
        DataType::Boolean => Scalar::Bool(array.as_boolean().value(row)),
        DataType::Int16 => Scalar::I64(array.as_primitive::<Int16Type>().value(row).into()),
        DataType::Int32 => Scalar::I64(array.as_primitive::<Int32Type>().value(row).into()),
        DataType::Date => Scalar::I64(array.as_primitive::<Date32Type>().value(row).into()),
        DataType::Int64 => Scalar::I64(array.as_primitive::<Int64Type>().value(row)),
        DataType::Timestamp { .. } => Scalar::I64(array.as_primitive::<TimestampMicrosecondType>().value(row)),
        DataType::Decimal { .. } if data_type.lane() == Lane::I64 => {
            Scalar::I64(array.as_primitive::<Decimal64Type>().value(row))
        }
        DataType::Decimal { .. } => Scalar::I128(array.as_primitive::<Decimal128Type>().value(row)),
        DataType::Float32 => Scalar::F64(array.as_primitive::<Float32Type>().value(row).into()),
        DataType::Float64 => Scalar::F64(array.as_primitive::<Float64Type>().value(row)),
        DataType::Varchar(_) | DataType::Text => Scalar::Bytes(array.as_string::<i32>().value(row).into()),
        DataType::Bytea => Scalar::Bytes(array.as_binary::<i32>().value(row).into()),
        DataType::Vector { element: VectorElement::Bit, .. } => {
            Scalar::Bytes(array.as_fixed_size_binary().value(row).to_vec())
        }
        DataType::Vector { element, .. } => {
            let value = array.as_fixed_size_list().value(row);
            Scalar::Bytes(match element {
                VectorElement::I8 => value.as_primitive::<Int8Type>().values().iter().map(|v| *v as u8).collect(),
                _ => value.as_primitive::<Float32Type>().values().iter().flat_map(|v| v.to_le_bytes()).collect(),
            })
        }
    }
}

/// Encodes `array` and opens the chunk.
pub fn chunk(array: &ArrayRef, data_type: &DataType) -> Chunk {
    let encoded = encode_chunk("c", data_type, std::slice::from_ref(array)).unwrap();
    Chunk::open(encoded.bytes.into(), data_type, array.len() as u32).unwrap()
}

/// A plain float chunk of these values, as it was written before floats had an encoding of their own. No NULLs.
pub fn plain_float_chunk(array: &ArrayRef, data_type: &DataType) -> Chunk {
    let data = array.to_data();
    let width = data_type.fixed_width().unwrap();
    let values = &data.buffers()[0].as_slice()[data.offset() * width..][..array.len() * width];
    let blocks = array.len().div_ceil(1024);
    let mut bytes = vec![6u8, 6, 0, 0];
    // Rows, NULLs, dictionary entries; lengths of directory, validity, auxiliary, payload.
    for word in [array.len(), 0, 0, blocks * 24, 0, 0, values.len()] {
        bytes.extend((word as u32).to_le_bytes());
    }
    bytes.extend(0i128.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.extend((width as u32).to_le_bytes());
    bytes.extend([0; 4]);
    for _ in 0..blocks {
        bytes.extend(i64::MIN.to_le_bytes());
        bytes.extend(i64::MAX.to_le_bytes());
        bytes.extend([0; 8]);
    }
    bytes.extend(values);
    Chunk::open(bytes.into(), data_type, array.len() as u32).unwrap()
}

/// A random selection of about `percent` of 1,024 rows.
pub fn selection(percent: u32, rng: &mut ChaCha8Rng) -> Selection {
    let mut selection = Selection::none();
    for row in 0..1024 {
        if rng.random_range(0..100) < percent {
            selection.insert(row);
        }
    }
    selection
}

/// Bitwise equality, so that NaNs and zeros are told apart.
pub fn same(a: &Scalar, b: &Scalar) -> bool {
    match (a, b) {
        (Scalar::F64(a), Scalar::F64(b)) => a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()),
        _ => a == b,
    }
}
