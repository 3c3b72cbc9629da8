//! Any run ordered: every row once, in the order that was asked for, in row groups that are not too large.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int64Type};
use arrow_array::{
    ArrayRef, BooleanArray, Date32Array, Decimal128Array, FixedSizeListArray, Float32Array, Float64Array, Int64Array,
    RecordBatch, StringArray,
};
use arrow_schema::DataType as ArrowType;
use hidb::arrow_mapping::to_arrow_type;
use hidb::schema::{Field, Schema};
use hidb::types::Scalar;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use heliostat_segment::*;
use hidb::order::OrderKind;
use hidb::types::{DataType, VectorElement};

/// Columns of every kind of key, with few and with many values, and a number per row to know it by.
fn run(seed: u64, rows: usize, parts: usize) -> (Schema, Vec<RecordBatch>, Vec<Vec<Scalar>>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let kinds = [
        ("i", DataType::Int64),
        ("f", DataType::Float64),
        ("t", DataType::Text),
        ("d", DataType::Date),
        ("w", DataType::Decimal { precision: 38, scale: 2 }),
        ("b", DataType::Boolean),
    ];
    let fields = kinds.iter().map(|(name, kind)| Field::new(*name, *kind, true));
    let fields: Vec<Field> = fields.chain([Field::new("row", DataType::Int64, false)]).collect();
    let schema = Schema::new(fields).unwrap();
    let spread = [2, 50, 1_000_000][rng.random_range(0..3)];
    let mut values: Vec<Vec<Scalar>> = Vec::new();
    for row in 0..rows {
        let mut of_row: Vec<Scalar> = kinds
            .iter()
            .map(|(_, kind)| {
                let n: i64 = rng.random_range(-spread..spread);
                if rng.random_bool(0.05) {
                    return Scalar::Null;
                }
                match kind {
                    DataType::Float64 => Scalar::F64(match n.rem_euclid(20) {
                        0 => f64::NAN,
                        1 => -f64::NAN,
                        2 => -0.0,
                        3 => 0.0,
                        4 => f64::NEG_INFINITY,
                        _ => n as f64 / 7.0,
                    }),
                    DataType::Text => Scalar::Bytes(format!("common prefix {n}").into_bytes()),
                    DataType::Decimal { .. } => Scalar::I128(i128::from(n) << 70),
                    DataType::Boolean => Scalar::Bool(n > 0),
                    _ => Scalar::I64(n),
                }
            })
            .collect();
        of_row.push(Scalar::I64(row as i64));
        values.push(of_row);
    }
    let column = |c: usize, rows: &[Vec<Scalar>]| -> ArrayRef {
        let i64s = rows.iter().map(|row| if let Scalar::I64(v) = row[c] { Some(v) } else { None });
        match schema.fields()[c].data_type {
            DataType::Float64 => {
                let values = rows.iter().map(|row| if let Scalar::F64(v) = row[c] { Some(v) } else { None });
                Arc::new(values.collect::<Float64Array>())
            }
            DataType::Text => Arc::new(StringArray::from_iter(rows.iter().map(|row| match &row[c] {
                Scalar::Bytes(v) => Some(String::from_utf8(v.clone()).unwrap()),
                _ => None,
            }))),
            DataType::Date => Arc::new(i64s.map(|v| v.map(|v| v as i32)).collect::<Date32Array>()),
            DataType::Decimal { .. } => {
                let values = rows.iter().map(|row| if let Scalar::I128(v) = row[c] { Some(v) } else { None });
                Arc::new(values.collect::<Decimal128Array>().with_precision_and_scale(38, 2).unwrap())
            }
            DataType::Boolean => {
                let values = rows.iter().map(|row| if let Scalar::Bool(v) = row[c] { Some(v) } else { None });
                Arc::new(values.collect::<BooleanArray>())
            }
            _ => Arc::new(i64s.collect::<Int64Array>()),
        }
    };
    let batches = values.chunks(rows.div_ceil(parts)).map(|part| {
        let columns = schema.fields().iter().enumerate().map(|(c, f)| (f.name.clone(), column(c, part), f.nullable));
        RecordBatch::try_from_iter_with_nullable(columns).unwrap()
    });
    let batches = batches.collect();
    (schema, batches, values)
}

/// The rows of a run in their order, by number.
fn numbers(run: &OrderedRun) -> Vec<usize> {
    let rows = (0..run.row_groups().len()).map(|group| run.rows(group).unwrap());
    let column = |rows: &RecordBatch| rows.column(rows.num_columns() - 1).as_primitive::<Int64Type>().values().to_vec();
    rows.flat_map(|rows| column(&rows)).map(|number| number as usize).collect()
}

fn compare(a: &Scalar, b: &Scalar) -> Ordering {
    match (a.is_null(), b.is_null()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        _ => a.compare(b).unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn sorted_runs_are_what_a_stable_sort_makes(
        seed: u64,
        rows in 1usize..3000,
        parts in 1usize..5,
        columns in proptest::sample::subsequence((0..6usize).collect::<Vec<_>>(), 1..=4).prop_shuffle(),
    ) {
        let (schema, batches, values) = run(seed, rows, parts);
        let order = RowOrder { kind: OrderKind::Sorted, columns: columns.clone() };
        let ordered = OrderedRun::new(&schema, &order, &batches).unwrap();
        let mut expected: Vec<usize> = (0..rows).collect();
        expected.sort_by(|a, b| {
            let by = |c: &usize| compare(&values[*a][*c], &values[*b][*c]);
            columns.iter().map(by).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
        });
        prop_assert_eq!(numbers(&ordered), expected);
    }

    #[test]
    fn clustered_runs_hold_every_row_once_and_row_ids_go_with_their_rows(
        seed: u64,
        rows in 1usize..3000,
        parts in 1usize..5,
        columns in proptest::sample::subsequence((0..6usize).collect::<Vec<_>>(), 1..=6),
    ) {
        let (schema, batches, _) = run(seed, rows, parts);
        let order = RowOrder { kind: OrderKind::Clustered, columns };
        let ordered = OrderedRun::new(&schema, &order, &batches).unwrap();
        let found = numbers(&ordered);
        let mut all = found.clone();
        all.sort_unstable();
        prop_assert_eq!(all, (0..rows).collect::<Vec<_>>());
        let rowids: Vec<i64> = (0..rows as i64).map(|row| row * 3 + 7).collect();
        let permuted: Vec<i64> =
            (0..ordered.row_groups().len()).flat_map(|group| ordered.permuted(group, &rowids)).collect();
        prop_assert_eq!(permuted, found.iter().map(|row| *row as i64 * 3 + 7).collect::<Vec<_>>());
    }
}

#[test]
fn a_box_of_a_clustered_run_lies_in_few_stretches() {
    // 64 x 64 x 16 points: a plane of any axis should touch a part of the run, not all of it.
    let rows = 1 << 16;
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut cells: Vec<i64> = (0..rows).collect();
    cells.sort_by_cached_key(|_| rng.random::<u64>());
    let axis = |shift: u32, bits: u32| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(cells.iter().map(|cell| cell >> shift & ((1 << bits) - 1))))
    };
    let columns = [("x", axis(0, 6)), ("y", axis(6, 6)), ("z", axis(12, 4))];
    let schema =
        Schema::new(columns.iter().map(|(name, _)| Field::new(*name, DataType::Int64, false)).collect()).unwrap();
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let order = RowOrder { kind: OrderKind::Clustered, columns: vec![0, 1, 2] };
    let ordered = OrderedRun::new(&schema, &order, &[batch]).unwrap().rows(0).unwrap();
    for column in ordered.columns() {
        let values = column.as_primitive::<Int64Type>().values();
        let blocks = values.chunks(1024);
        let touched = blocks.clone().filter(|block| block.iter().min() <= Some(&3) && block.iter().max() >= Some(&3));
        let (touched, all) = (touched.count(), blocks.count());
        assert!(touched * 2 <= all, "{touched} of {all} blocks");
    }
}

#[test]
fn long_values_make_short_row_groups() {
    let text = "x".repeat(1 << 20);
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values((0..100).map(|_| text.as_str())));
    let keys: ArrayRef = Arc::new(Int64Array::from_iter_values((0..100).rev()));
    let batch = RecordBatch::try_from_iter([("t", texts), ("k", keys)]).unwrap();
    let fields = vec![Field::new("t", DataType::Text, false), Field::new("k", DataType::Int64, false)];
    let schema = Schema::new(fields).unwrap();
    let order = RowOrder { kind: OrderKind::Sorted, columns: vec![1] };
    let ordered = OrderedRun::new(&schema, &order, &[batch]).unwrap();
    let rows: Vec<usize> = ordered.row_groups().iter().map(|range| range.len()).collect();
    assert_eq!(rows, [63, 37]);
    assert_eq!(ordered.rows(0).unwrap().column(1).as_primitive::<Int64Type>().value(0), 0);
}

#[test]
fn vectors_and_wrong_arrays_have_no_order() {
    let (schema, batches, _) = run(1, 10, 1);
    let refused = |schema: &Schema, columns: Vec<usize>, batches: &[RecordBatch]| {
        for kind in [OrderKind::Sorted, OrderKind::Clustered] {
            let outcome = OrderedRun::new(schema, &RowOrder { kind, columns: columns.clone() }, batches);
            assert!(matches!(outcome, Err(SegmentError::InvalidInput { .. })), "{columns:?}: {outcome:?}");
        }
    };
    refused(&schema, vec![9], &batches);
    refused(&schema, vec![0], &[]);
    // Fewer columns than the schema has, and one of another type.
    refused(&schema, vec![0], &[batches[0].project(&[0, 1, 2]).unwrap()]);
    let mut columns = batches[0].columns().to_vec();
    columns.swap(0, 2);
    let names = ["i", "f", "t", "d", "w", "b", "row"];
    let swapped = RecordBatch::try_from_iter(names.into_iter().zip(columns)).unwrap();
    for column in [0, 2] {
        refused(&schema, vec![column], std::slice::from_ref(&swapped));
    }
    // Two batches that don't go together.
    refused(&schema, vec![0], &[batches[0].clone(), swapped]);
    // Vectors.
    let vector = DataType::Vector { dimension: 2, element: VectorElement::F32 };
    let fields = vec![Field::new("v", vector, false), Field::new("k", DataType::Int64, false)];
    let schema = Schema::new(fields).unwrap();
    let ArrowType::FixedSizeList(element, 2) = to_arrow_type(&vector, true) else { panic!("vectors are lists") };
    let values: ArrayRef = Arc::new(Float32Array::from_iter_values((0..6).map(|n| n as f32)));
    let vectors: ArrayRef = Arc::new(FixedSizeListArray::new(element, 2, values, None));
    let keys: ArrayRef = Arc::new(Int64Array::from(vec![3, 1, 2]));
    let batch = RecordBatch::try_from_iter([("v", vectors), ("k", keys)]).unwrap();
    refused(&schema, vec![0], std::slice::from_ref(&batch));
    // They go along with the order of another column.
    let order = RowOrder { kind: OrderKind::Sorted, columns: vec![1] };
    let ordered = OrderedRun::new(&schema, &order, &[batch]).unwrap().rows(0).unwrap();
    assert_eq!(ordered.column(1).as_primitive::<Int64Type>().values(), &[1, 2, 3]);
    let first = ordered.column(0).as_fixed_size_list().value(0);
    assert_eq!(first.as_primitive::<Float32Type>().values(), &[2.0, 3.0]);
}
