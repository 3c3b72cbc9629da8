//! Whatever is encoded is read back: whole blocks and selections, every type, every distribution.

mod columns;

use arrow_array::{Array, ArrayRef};
use columns::{SHAPES, array, chunk, same, scalar, selection, types};
use heliostat_segment::{Chunk, Encoding, Rows, Selection, encode_chunk};
use hidb::types::{DataType, Lane, Scalar};
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Reads the selected rows of a block by every access that the lane has; all must agree.
fn read(chunk: &Chunk, b: usize, selection: &Selection) -> Vec<Scalar> {
    let mut all = Selection::all(chunk.block_rows(b));
    all.and(selection.words());
    let mut rows = [0u16; 1024];
    let count = all.indices(&mut rows);
    let mut valid = [0u64; 16];
    chunk.validity(b, &mut valid).unwrap();
    let is_valid = |row: u16| valid[row as usize / 64] >> (row % 64) & 1 == 1;
    let rows = &rows[..count];
    let wanted = if count == chunk.block_rows(b) { Rows::All(count) } else { Rows::At(rows) };
    let mut out = Vec::new();
    match chunk.data_type().lane() {
        Lane::Bool => {
            let mut bits = [0u64; 16];
            chunk.decode_bool(b, &mut bits).unwrap();
            out.extend(rows.iter().map(|row| Scalar::Bool(bits[*row as usize / 64] >> (row % 64) & 1 == 1)));
        }
        Lane::I64 => {
            let (mut values, mut gathered) = ([0i64; 1024], [0i64; 1024]);
            chunk.decode_i64(b, &mut values).unwrap();
            assert_eq!(chunk.gather_i64(b, wanted, &mut gathered).unwrap(), count);
            let width = chunk.data_type().fixed_width().unwrap();
            let mut fixed = vec![0u8; width * 1024 + 1];
            // Once aligned, once not.
            for shift in [0, 1] {
                assert_eq!(chunk.gather_fixed(b, wanted, &mut fixed[shift..]).unwrap(), count);
                for (k, row) in rows.iter().enumerate() {
                    assert_eq!(gathered[k], values[*row as usize]);
                    assert_eq!(fixed[shift + k * width..][..width], values[*row as usize].to_le_bytes()[..width]);
                }
            }
            if let Some(sum) = chunk.sum(b).unwrap() {
                assert_eq!(sum, values.iter().map(|value| i128::from(*value)).sum());
            }
            out.extend(gathered[..count].iter().map(|value| Scalar::I64(*value)));
        }
        Lane::I128 => {
            let mut values = [0i128; 1024];
            chunk.decode_i128(b, &mut values).unwrap();
            let mut fixed = vec![0u8; 16 * 1024];
            assert_eq!(chunk.gather_fixed(b, wanted, &mut fixed).unwrap(), count);
            let mut gathered = [0i128; 1024];
            assert_eq!(chunk.gather_i128(b, wanted, &mut gathered).unwrap(), count);
            if let Some(sum) = chunk.sum(b).unwrap() {
                assert_eq!(sum, values.iter().sum());
            }
            for (k, row) in rows.iter().enumerate() {
                assert_eq!(gathered[k], values[*row as usize]);
                assert_eq!(fixed[k * 16..][..16], values[*row as usize].to_le_bytes());
            }
            out.extend(rows.iter().map(|row| Scalar::I128(values[*row as usize])));
        }
        Lane::F64 => {
            let mut values = [0f64; 1024];
            chunk.decode_f64(b, &mut values).unwrap();
            let mut gathered = [0f64; 1024];
            assert_eq!(chunk.gather_f64(b, wanted, &mut gathered).unwrap(), count);
            let width = chunk.data_type().fixed_width().unwrap();
            let mut fixed = vec![0u8; width * 1024];
            assert_eq!(chunk.gather_fixed(b, wanted, &mut fixed).unwrap(), count);
            for (k, row) in rows.iter().enumerate() {
                let value = values[*row as usize];
                assert_eq!(gathered[k].to_bits(), value.to_bits());
                let bytes = &fixed[k * width..][..width];
                if !value.is_nan() {
                    match width {
                        4 => assert_eq!(bytes, (value as f32).to_le_bytes()),
                        _ => assert_eq!(bytes, value.to_le_bytes()),
                    }
                }
            }
            out.extend(rows.iter().map(|row| Scalar::F64(values[*row as usize])));
        }
        Lane::Bytes => {
            let (mut ends, mut data) = (vec![3u32], b"abc".to_vec());
            assert_eq!(chunk.gather_bytes(b, wanted, &mut ends, &mut data).unwrap(), count);
            let mut lengths = [0u32; 1024];
            chunk.lengths(b, &mut lengths).unwrap();
            for (k, row) in rows.iter().enumerate() {
                let value = &data[ends[k] as usize..ends[k + 1] as usize];
                if is_valid(*row) {
                    assert_eq!(lengths[*row as usize] as usize, value.len());
                }
                out.push(Scalar::Bytes(value.to_vec()));
            }
        }
    }
    for (value, row) in out.iter_mut().zip(rows) {
        if !is_valid(*row) {
            *value = Scalar::Null;
        }
    }
    out
}

fn check(array: &ArrayRef, data_type: &DataType, seed: u64) {
    let chunk = chunk(array, data_type);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    assert_eq!(chunk.null_count(), array.null_count());
    for b in 0..chunk.blocks() {
        let zone = chunk.zone(b).unwrap();
        for percent in [100, 50, 2, 0] {
            let selection = selection(percent, &mut rng);
            let values = read(&chunk, b, &selection);
            let mut k = 0;
            selection.for_each(|row| {
                if row < chunk.block_rows(b) {
                    let expected = scalar(array, data_type, b * 1024 + row);
                    assert!(same(&values[k], &expected), "row {row}: {:?} instead of {expected:?}", values[k]);
                    if !expected.is_null() && !zone.min.is_null() {
                        assert!(zone.min.compare(&expected).is_none_or(|order| order.is_le()), "{zone:?} {expected:?}");
                        let nan = matches!(expected, Scalar::F64(v) if v.is_nan());
                        assert!(
                            (nan && zone.has_nan) || zone.max.compare(&expected).is_none_or(|order| order.is_ge()),
                            "{zone:?} {expected:?}"
                        );
                    }
                    k += 1;
                }
            });
            assert_eq!(k, values.len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn every_column_reads_back_as_arrow_reads_it(
        kind in 0..15usize, shape in 0..SHAPES, rows in 1..5000usize,
        null_percent in prop_oneof![Just(0u32), Just(10), Just(100)], seed in any::<u64>(),
    ) {
        let data_type = types()[kind];
        check(&array(&data_type, shape, rows, null_percent, seed), &data_type, seed);
    }
}

#[test]
fn every_type_and_shape_reads_back() {
    for data_type in types() {
        for shape in 0..SHAPES {
            for null_percent in [0, 30] {
                check(&array(&data_type, shape, 2500, null_percent, 99), &data_type, 5);
            }
        }
    }
}

#[test]
fn each_distribution_gets_the_encoding_made_for_it() {
    let encoding = |data_type: DataType, shape| chunk(&array(&data_type, shape, 20_000, 0, 1), &data_type).encoding();
    assert_eq!(encoding(DataType::Int64, 0), Encoding::Constant);
    assert_eq!(encoding(DataType::Int64, 1), Encoding::Packed);
    assert_eq!(encoding(DataType::Int64, 2), Encoding::Delta);
    assert_eq!(encoding(DataType::Int64, 6), Encoding::RunLength);
    assert_eq!(encoding(DataType::Int64, 8), Encoding::Dictionary);
    assert_eq!(encoding(DataType::Text, 0), Encoding::Constant);
    assert_eq!(encoding(DataType::Text, 1), Encoding::Dictionary);
    assert_eq!(encoding(DataType::Text, 4), Encoding::Plain);
    assert_eq!(encoding(DataType::Text, 7), Encoding::Fsst);
    assert_eq!(encoding(DataType::Float64, 0), Encoding::Constant);
    assert_eq!(encoding(DataType::Float64, 3), Encoding::Plain);
    for data_type in [DataType::Float32, DataType::Float64] {
        assert_eq!(encoding(data_type, 5), Encoding::Alp);
        assert_eq!(encoding(data_type, 6), Encoding::Alp);
        assert_eq!(encoding(data_type, 7), Encoding::AlpSplit);
    }
    assert_eq!(encoding(DataType::Boolean, 5), Encoding::Bitmap);
}

#[test]
fn sums_of_whole_blocks_come_from_constants_packed_values_and_runs() {
    let sum = |shape, null_percent, b| {
        chunk(&array(&DataType::Int64, shape, 2500, null_percent, 1), &DataType::Int64).sum(b).unwrap()
    };
    for shape in [0, 1, 6] {
        assert!(sum(shape, 0, 0).is_some(), "shape {shape}");
        assert_eq!(sum(shape, 0, 2), None, "shape {shape}: 452 rows");
    }
    assert_eq!(sum(1, 30, 0), None);
    assert_eq!(sum(2, 0, 0), None, "deltas say nothing of their sum");
}

#[test]
fn columns_of_the_wrong_array_type_are_refused_by_name() {
    let text = array(&DataType::Text, 1, 10, 0, 1);
    let error = encode_chunk("price", &DataType::Int64, &[text]).unwrap_err().to_string();
    assert!(error.contains("price") && error.contains("int64"), "{error}");
}

#[test]
fn sliced_arrays_are_encoded_from_their_offset() {
    for data_type in types() {
        let whole = array(&data_type, 7, 3000, 20, 4);
        check(&whole.slice(1111, 1500), &data_type, 6);
    }
}
