//! What order and membership filters cost and save, in memory: `cargo run --release --example order`.
//!
//! Prints ns of CPU time (other processes don't count) a row of ordering and of encoding with and without filters, ns of ruling out the blocks of a sorted chunk,
//! ns of a lookup, and which part of a run's blocks a box of keys touches on a Hilbert curve, a Z-curve and sorted.

use std::hint::black_box;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use heliostat_segment::*;
use hidb::order::OrderKind;
use hidb::schema::{Field, Schema};
use hidb::types::DataType;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const ROWS: usize = 1 << 20;

/// The best of some runs, in ns per `unit`.
fn best(units: usize, runs: usize, mut work: impl FnMut()) -> f64 {
    let once = |work: &mut dyn FnMut()| {
        let started = on_cpu_ns();
        work();
        (on_cpu_ns() - started) / units as f64
    };
    (0..runs).map(|_| once(&mut work)).fold(f64::INFINITY, f64::min)
}

/// How long this thread has run on a CPU.
fn on_cpu_ns() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

fn schema(fields: &[(&str, DataType)]) -> Schema {
    Schema::new(fields.iter().map(|(name, data_type)| Field::new(*name, *data_type, false)).collect()).unwrap()
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter(columns).unwrap()
}

fn main() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut numbers = |range: i64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values((0..ROWS).map(|_| rng.random_range(0..range))))
    };
    let (x, y, z) = (numbers(1 << 40), numbers(5000), numbers(1 << 20));
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let uuids: Vec<String> = (0..ROWS)
        .map(|_| {
            let (a, b): (u64, u64) = (rng.random(), rng.random());
            format!(
                "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
                a >> 32,
                a >> 16 & 0xffff,
                a & 0xffff,
                b >> 48,
                b & 0xffff_ffff_ffff
            )
        })
        .collect();
    let uuid: ArrayRef = Arc::new(StringArray::from(uuids.clone()));
    let fields = [("x", DataType::Int64), ("y", DataType::Int64), ("z", DataType::Int64), ("uuid", DataType::Text)];
    let table = schema(&fields);
    let rows = batch(vec![("x", x), ("y", y), ("z", z), ("uuid", uuid.clone())]);

    println!("ordering {ROWS} rows, ns a row");
    let run = |kind, columns: &[usize]| {
        let order = RowOrder { kind, columns: columns.to_vec() };
        OrderedRun::new(&table, &order, std::slice::from_ref(&rows)).unwrap()
    };
    for (name, kind, columns) in [
        ("sorted by an integer", OrderKind::Sorted, &[0usize][..]),
        ("sorted by two integers", OrderKind::Sorted, &[1, 0]),
        ("sorted by text", OrderKind::Sorted, &[3]),
        ("clustered by two integers", OrderKind::Clustered, &[0, 1]),
        ("clustered by three integers", OrderKind::Clustered, &[0, 1, 2]),
    ] {
        println!("  {name}: {:.0}", best(ROWS, 3, || drop(black_box(run(kind, columns)))));
    }
    let ordered = run(OrderKind::Sorted, &[0]);
    println!("  gathered: {:.0}", best(ROW_GROUP_ROWS_MAX, 3, || drop(black_box(ordered.rows(3)))));

    println!("blocks of a run that `column between` 1% of its values touches, of 1,024");
    let z_curve = z_curve(&rows, &[0, 1, 2]);
    let hilbert = run(OrderKind::Clustered, &[0, 1, 2]);
    let hilbert: Vec<RecordBatch> = (0..hilbert.row_groups().len()).map(|g| hilbert.rows(g).unwrap()).collect();
    let sorted: Vec<RecordBatch> = (0..ordered.row_groups().len()).map(|g| ordered.rows(g).unwrap()).collect();
    for (column, low, high) in [(0, 1 << 38, (1 << 38) + (1 << 40) / 100), (1, 1200, 1249), (2, 300_000, 310_485)] {
        let touched = |rows: &[RecordBatch]| {
            let blocks =
                rows.iter().flat_map(|rows| rows.column(column).as_primitive::<Int64Type>().values().chunks(1024));
            blocks.filter(|b| b.iter().min() <= Some(&high) && b.iter().max() >= Some(&low)).count()
        };
        println!(
            "  {}: hilbert {}, z-curve {}, sorted by x {}, as they came {}",
            fields[column].0,
            touched(&hilbert),
            touched(&z_curve),
            touched(&sorted),
            touched(std::slice::from_ref(&rows))
        );
    }

    println!("encoding a row group, ns a row");
    for (name, columns) in [("x and uuid", vec![0usize, 3]), ("x", vec![0]), ("uuid", vec![3])] {
        let part = rows.project(&columns).unwrap().slice(0, ROW_GROUP_ROWS_MAX);
        let table = schema(&columns.iter().map(|column| fields[*column]).collect::<Vec<_>>());
        let group = encode_row_group(&table, std::slice::from_ref(&part), RowIds::From(0)).unwrap();
        let whole = best(ROW_GROUP_ROWS_MAX, 9, || {
            drop(black_box(encode_row_group(&table, std::slice::from_ref(&part), RowIds::From(0))));
        });
        let chunks = best(ROW_GROUP_ROWS_MAX, 9, || {
            for (field, column) in table.fields().iter().zip(part.columns()) {
                drop(black_box(encode_chunk(&field.name, &field.data_type, std::slice::from_ref(column))));
            }
        });
        let bytes: usize = group.chunks.iter().map(|chunk| chunk.bytes.len()).sum();
        let filters: Vec<String> = group
            .chunks
            .iter()
            .filter_map(|chunk| chunk.meta.membership)
            .map(|filter| format!("{} ({:.1}% pass)", filter.length, 100.0 * filter.false_positive_rate()))
            .collect();
        println!(
            "  {name}: chunks alone {chunks:.1}, with filters {whole:.1}; {bytes} bytes, filters {}",
            filters.join(", ")
        );
    }

    let table = schema(&[("x", DataType::Int64)]);
    let group = encode_row_group(&table, &[rows.project(&[0]).unwrap().slice(0, ROW_GROUP_ROWS_MAX)], RowIds::From(0));
    if let Some(bytes) = group.unwrap().chunks[0].membership.take() {
        let bytes = bytes::Bytes::from(bytes);
        let hashes: Vec<u64> = (0..1000).map(hash_i64).collect();
        let lookup = best(1000, 20, || {
            for hash in &hashes {
                black_box(MembershipFilter::open(bytes.clone()).unwrap().may_hold(*hash));
            }
        });
        println!("opening a filter in the CPU's cache and looking one value up: {lookup:.0} ns");
    }

    let sorted = sorted[3].column(0).clone();
    let chunk = encode_chunk("x", &DataType::Int64, std::slice::from_ref(&sorted)).unwrap();
    let chunk = Chunk::open(chunk.bytes.into(), &DataType::Int64, sorted.len() as u32).unwrap();
    let middle = sorted.as_primitive::<Int64Type>().value(70_000);
    let equal = ChunkPredicate::I64Range { lo: middle, hi: middle, negated: false };
    let all = best(1, 50, || {
        let compiled = chunk.compile(&equal).unwrap();
        for block in 0..chunk.blocks() {
            black_box(chunk.prune(block, &compiled).unwrap());
        }
    });
    println!(
        "translating an equality and ruling out the {} blocks of a sorted chunk one by one: {all:.0} ns",
        chunk.blocks()
    );
}

/// The rows along a Z-curve through the ranks of these columns, 20 bits each.
fn z_curve(rows: &RecordBatch, columns: &[usize]) -> Vec<RecordBatch> {
    let rows_count = rows.num_rows();
    let mut keys = vec![0u128; rows_count];
    for column in columns {
        let values = rows.column(*column).as_primitive::<Int64Type>().values();
        let mut by_value: Vec<u32> = (0..rows_count as u32).collect();
        by_value.sort_unstable_by_key(|row| (values[*row as usize], *row));
        let mut rank = 0;
        for (place, row) in by_value.iter().enumerate() {
            if place > 0 && values[*row as usize] != values[by_value[place - 1] as usize] {
                rank = place;
            }
            for bit in 0..20 {
                keys[*row as usize] |= ((rank >> bit & 1) as u128) << (bit * columns.len() + column);
            }
        }
    }
    let mut order: Vec<u32> = (0..rows_count as u32).collect();
    order.sort_unstable_by_key(|row| keys[*row as usize]);
    let order = arrow_array::UInt32Array::from(order);
    let sorted = arrow_select::take::take_record_batch(rows, &order).unwrap();
    vec![sorted]
}
