//! Float columns: every bit comes back, and chunks of before ALP are read as they were.

mod columns;

use std::ops::Bound;
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, Float32Array, Float64Array};
use columns::{SHAPES, array, chunk, plain_float_chunk, selection};
use heliostat_segment::{Chunk, ChunkPredicate, Selection};
use hidb::types::DataType;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The bytes of the values, as Arrow has them.
fn raw(array: &ArrayRef, width: usize) -> Vec<u8> {
    let data = array.to_data();
    data.buffers()[0].as_slice()[data.offset() * width..][..array.len() * width].to_vec()
}

fn bytes_of(chunk: &Chunk, b: usize, selection: &Selection, width: usize) -> Vec<u8> {
    let mut out = vec![0u8; 1024 * width + 1];
    // Not aligned.
    let mut positions = [0u16; 1024];
    let wanted = selection.rows(chunk.block_rows(b), &mut positions);
    let count = chunk.gather_fixed(b, wanted, &mut out[1..]).unwrap();
    out[1..1 + count * width].to_vec()
}

fn check(array: &ArrayRef, data_type: &DataType, seed: u64) {
    let width = data_type.fixed_width().unwrap();
    let (new, old) = (chunk(array, data_type), plain_float_chunk(array, data_type));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values = raw(array, width);
    for b in 0..new.blocks() {
        let block = &values[b * 1024 * width..][..new.block_rows(b) * width];
        let row = || Selection::all(1024);
        assert_eq!(bytes_of(&new, b, &row(), width), block);
        for percent in [50, 1] {
            let selection = selection(percent, &mut rng);
            let mut expected: Vec<u8> = Vec::new();
            selection.for_each(|row| expected.extend(block.get(row * width..(row + 1) * width).unwrap_or(&[])));
            assert_eq!(bytes_of(&new, b, &selection, width), expected);
            assert_eq!(bytes_of(&old, b, &selection, width), expected);
            let mut decoded = [0f64; 1024];
            old.decode_f64(b, &mut decoded).unwrap();
            let pick = |rng: &mut ChaCha8Rng| decoded[rng.random_range(0..new.block_rows(b))];
            let (lo, hi) = (Bound::Included(pick(&mut rng)), Bound::Excluded(pick(&mut rng)));
            for negated in [false, true] {
                let predicate = ChunkPredicate::F64Range { lo, hi, negated };
                let (mut of_new, mut of_old) = (selection, selection);
                new.filter(b, &new.compile(&predicate).unwrap(), &mut of_new).unwrap();
                old.filter(b, &old.compile(&predicate).unwrap(), &mut of_old).unwrap();
                assert_eq!(of_new, of_old, "{predicate:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn every_bit_of_a_float_comes_back(
        single in any::<bool>(), shape in 0..SHAPES, rows in 1..3000usize, seed in any::<u64>(),
    ) {
        let data_type = if single { DataType::Float32 } else { DataType::Float64 };
        check(&array(&data_type, shape, rows, 0, seed), &data_type, seed);
    }

    #[test]
    fn every_bit_of_a_decimal_of_any_size_comes_back(
        scale in 0..18i32, digits in 1..17u32, rows in 1..2000usize, seed in any::<u64>(),
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let limit = 10i64.pow(digits);
        let values: Vec<f64> = (0..rows)
            .map(|_| format!("{}e{}", rng.random_range(-limit..limit), -scale).parse().unwrap())
            .collect();
        let singles: Vec<f32> = values.iter().map(|value| *value as f32).collect();
        check(&(Arc::new(Float64Array::from(values)) as ArrayRef), &DataType::Float64, seed);
        check(&(Arc::new(Float32Array::from(singles)) as ArrayRef), &DataType::Float32, seed);
    }
}

#[test]
fn decimal_floats_take_less_than_half_and_random_ones_a_tenth_less() {
    let bytes = |shape| {
        let array = array(&DataType::Float64, shape, 50_000, 0, 1);
        (
            chunk(&array, &DataType::Float64).encoded_bytes(),
            plain_float_chunk(&array, &DataType::Float64).encoded_bytes(),
        )
    };
    let (prices, plain) = bytes(6);
    assert!(prices * 2 < plain, "{prices} of {plain}");
    let (random, plain) = bytes(7);
    assert!(random * 10 <= plain * 9, "{random} of {plain}");
}
