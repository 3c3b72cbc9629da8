//! What filters keep and gathers give, against arrow-rs: `cmp`, `filter` and `take` on the same arrays.

mod columns;

use std::ops::Bound;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::*;
use arrow_array::*;
use columns::{SHAPES, array, chunk, selection, types};
use heliostat_segment::{Chunk, ChunkPredicate, Selection, SimdLevel};
use hidb::types::{DataType, Lane};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn words(mask: &BooleanArray) -> Selection {
    let mut out = Selection::none();
    (0..mask.len()).filter(|row| mask.is_valid(*row) && mask.value(*row)).for_each(|row| out.insert(row));
    out
}

/// arrow-rs orders floats by their bits: one zero and one NaN make that our order.
fn canonical(array: &ArrayRef) -> ArrayRef {
    match array.as_primitive_opt::<Float64Type>() {
        Some(array) => Arc::new(array.unary::<_, Float64Type>(|v| if v.is_nan() { f64::NAN.abs() } else { v + 0.0 })),
        None => array.clone(),
    }
}

/// `lo <= v <= hi` as arrow-rs computes it; the bounds are rows of `array`.
fn between(array: &ArrayRef, lo: usize, hi: usize) -> Selection {
    let (array, bound) = (canonical(array), |row| Scalar::new(canonical(array).slice(row, 1)));
    let above = arrow_ord::cmp::gt_eq(&array, &bound(lo)).unwrap();
    let below = arrow_ord::cmp::lt_eq(&array, &bound(hi)).unwrap();
    let mut both = words(&above);
    both.and(words(&below).words());
    both
}

fn predicate(array: &ArrayRef, lane: Lane, lo: usize, hi: usize) -> Option<ChunkPredicate> {
    let negated = false;
    Some(match lane {
        Lane::I64 => {
            let array = arrow_cast::cast(&strip(array), &arrow_schema::DataType::Int64).unwrap();
            let array = array.as_primitive::<Int64Type>();
            ChunkPredicate::I64Range { lo: array.value(lo), hi: array.value(hi), negated }
        }
        Lane::I128 => {
            let array = array.as_primitive::<Decimal128Type>();
            ChunkPredicate::I128Range { lo: array.value(lo), hi: array.value(hi), negated }
        }
        Lane::F64 => {
            let array = array.as_primitive::<Float64Type>();
            let bound = |row| Bound::Included(array.value(row));
            ChunkPredicate::F64Range { lo: bound(lo), hi: bound(hi), negated }
        }
        Lane::Bytes => {
            let bound = |row| match array.as_string_opt::<i32>() {
                Some(array) => Bound::Included(array.value(row).as_bytes().to_vec()),
                None => Bound::Included(array.as_binary::<i32>().value(row).to_vec()),
            };
            ChunkPredicate::BytesRange { lo: bound(lo), hi: bound(hi), negated }
        }
        Lane::Bool => return None,
    })
}

/// Decimals as the integers that they are.
fn strip(array: &ArrayRef) -> ArrayRef {
    match array.as_primitive_opt::<Decimal64Type>() {
        Some(array) => Arc::new(array.reinterpret_cast::<Int64Type>()),
        None => array.clone(),
    }
}

/// The selected rows of block `b` as an array, to compare with what arrow-rs takes.
fn gathered(chunk: &Chunk, b: usize, selection: &Selection, of: &ArrayRef) -> ArrayRef {
    let nulls = of.nulls().cloned();
    if chunk.data_type().lane() == Lane::Bytes && chunk.data_type().fixed_width().is_none() {
        let (mut ends, mut data) = (vec![0u32], Vec::new());
        let mut positions = [0u16; 1024];
        let wanted = selection.rows(chunk.block_rows(b), &mut positions);
        let rows = chunk.gather_bytes(b, wanted, &mut ends, &mut data).unwrap();
        let values = (0..rows).map(|row| &data[ends[row] as usize..ends[row + 1] as usize]);
        let binary = BinaryArray::from_iter_values(values);
        let (offsets, values, _) = binary.into_parts();
        let binary: ArrayRef = Arc::new(BinaryArray::new(offsets, values, nulls));
        return arrow_cast::cast(&binary, of.data_type()).unwrap();
    }
    let width = chunk.data_type().fixed_width().unwrap();
    let mut bytes = vec![0u8; 1024 * width];
    let mut positions = [0u16; 1024];
    let wanted = selection.rows(chunk.block_rows(b), &mut positions);
    let rows = chunk.gather_fixed(b, wanted, &mut bytes).unwrap();
    assert_eq!(rows, of.len());
    bytes.truncate(rows * width);
    let data = of.to_data().into_builder().offset(0).nulls(nulls).buffers(vec![bytes.into()]);
    make_array(data.build().unwrap())
}

fn check(array: &ArrayRef, data_type: &DataType, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let chunk = chunk(array, data_type);
    for b in 0..chunk.blocks() {
        let block = array.slice(b * 1024, chunk.block_rows(b));
        for percent in [100, 40, 1] {
            let mut selection = selection(percent, &mut rng);
            selection.and(Selection::all(block.len()).words());
            let mask: BooleanArray = (0..block.len()).map(|row| Some(selection.contains(row))).collect();
            if chunk.data_type().lane() != Lane::Bool && !matches!(data_type, DataType::Vector { .. }) {
                let expected = arrow_select::filter::filter(&block, &mask).unwrap();
                assert_eq!(&gathered(&chunk, b, &selection, &expected), &expected);
            }
            let (lo, hi) = (rng.random_range(0..block.len()), rng.random_range(0..block.len()));
            if block.is_null(lo) || block.is_null(hi) || matches!(data_type, DataType::Vector { .. }) {
                continue;
            }
            // 32-bit floats are compared as 64-bit ones.
            let wide = match data_type {
                DataType::Float32 => arrow_cast::cast(&block, &arrow_schema::DataType::Float64).unwrap(),
                _ => block.clone(),
            };
            let Some(predicate) = predicate(&wide, data_type.lane(), lo, hi) else { continue };
            let compiled = chunk.compile(&predicate).unwrap();
            let mut kept = selection;
            chunk.filter(b, &compiled, &mut kept).unwrap();
            let mut expected = between(&wide, lo, hi);
            expected.and(selection.words());
            assert_eq!(kept, expected, "{predicate:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn selections_of_blocks_are_what_arrow_filters_and_compares(
        kind in 0..15usize, shape in 0..SHAPES, rows in 1..2500usize,
        null_percent in prop_oneof![Just(0u32), Just(25)], seed in any::<u64>(),
    ) {
        let data_type = types()[kind];
        check(&array(&data_type, shape, rows, null_percent, seed), &data_type, seed);
    }
}

#[test]
fn every_type_and_shape_agrees_with_arrow_at_every_level() {
    for level in [SimdLevel::Portable, SimdLevel::Avx2, SimdLevel::Avx512] {
        SimdLevel::force(level);
        for data_type in types() {
            for shape in 0..SHAPES {
                check(&array(&data_type, shape, 1300, 15, 21), &data_type, 22);
            }
        }
    }
}
