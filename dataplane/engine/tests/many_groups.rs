//! Grouping by more keys than fit any cache: growth, sparse and colliding keys, NULLs, texts, several cores, budgets,
//! and sums of floats in any order.

mod reference;

use heliostat_engine::{EngineOptions, merge_intermediate};
use hidb::plan::sql::{ScanText, parse_scan};
use hidb::plan::{Phase, ScanPlan};
use hidb::{DataType, ErrorCode, Scalar, Schema};
use reference::{Row, Table, field, reference, rows_of, sorted_text};

const ROWS: i64 = 130_000;

/// Two row groups; `n` counts up over both, the other columns are functions of it.
fn table() -> Table {
    let schema = Schema::new(vec![
        field("n", DataType::Int64),
        field("sparse", DataType::Int64),
        field("high", DataType::Int64),
        field("id", DataType::Int32),
        field("dec", DataType::Decimal { precision: 30, scale: 2 }),
        field("f", DataType::Float64),
        field("t", DataType::Text),
    ])
    .unwrap();
    let row = |n: i64| -> Row {
        // Every key comes about 1.3 times, in an order that jumps.
        let key = n * 7919 % 100_003;
        let or_null = |value: Scalar| if key % 997 == 0 { Scalar::Null } else { value };
        vec![
            Scalar::I64(n),
            or_null(Scalar::I64(key.wrapping_mul(0x9e37_79b9_7f4a_7c15u64 as i64))),
            Scalar::I64(key << 44),
            or_null(Scalar::I64(key * 3 - 150_000)),
            or_null(Scalar::I128(i128::from(key) << 61)),
            Scalar::F64(match n % 7 {
                0 => key as f64 * 1e300,
                1 => key as f64 * 1e-310,
                2 => -(key as f64) * 1e300,
                3 if n % 11 == 0 => f64::INFINITY,
                _ => key as f64 / 3.0,
            }),
            or_null(Scalar::Bytes(format!("key {}", key / 2).into_bytes())),
        ]
    };
    Table::new(schema, (0..2).map(|group| (0..ROWS / 2).map(|at| row(group * ROWS / 2 + at)).collect()).collect())
}

fn plan(table: &Table, select: &str, group_by: &str) -> ScanPlan {
    let list = |text: &str| if text.is_empty() { Vec::new() } else { vec![text.to_string()] };
    let scan = ScanText { table: "t".into(), select: list(select), group_by: list(group_by), ..ScanText::default() };
    parse_scan(&scan, &table.schema).unwrap()
}

/// The same plan, giving out intermediate states.
fn in_part(single: &ScanPlan) -> ScanPlan {
    let mut partial = single.clone();
    let aggregation = partial.aggregation.as_mut().unwrap();
    aggregation.phase = Phase::Intermediate;
    let fields = aggregation.output_fields();
    let output = |(index, (data_type, nullable)): (usize, &(DataType, bool))| hidb::plan::Output {
        name: format!("c{index}"),
        expr: hidb::plan::Expr::column(index, *data_type, *nullable),
    };
    partial.outputs = fields.iter().enumerate().map(output).collect();
    partial.visible = partial.outputs.len();
    partial
}

#[test]
fn a_hundred_thousand_groups_are_those_of_a_naive_evaluation() {
    let table = table();
    for (keys, aggregates) in [
        ("n", "count(*), sum(n)"),
        ("sparse", "count(*), avg(n), min(f), sum(f)"),
        ("high", "sum(n), max(t), avg(dec)"),
        ("id", "count(dec), sum(dec), count(distinct sparse % 3)"),
        ("id, t", "sum(n), avg(f)"),
        ("t, id % 10", "count(distinct n), max(dec)"),
        ("dec, sparse, id, f", "count(*)"),
        ("", "count(distinct id), count(distinct high), count(distinct sparse), count(distinct t), count(distinct f)"),
    ] {
        let select = if keys.is_empty() { aggregates.to_string() } else { format!("{keys}, {aggregates}") };
        let plan = plan(&table, &select, keys);
        let expected = sorted_text(&reference(&plan, &table).unwrap());
        for cores in [1, 2] {
            let (batches, _) = table.run(&plan, cores, &EngineOptions::default()).unwrap();
            assert!(sorted_text(&rows_of(&batches)) == expected, "{select}, {cores} cores");
        }
    }
}

#[test]
fn many_partial_groups_within_any_budget_merge_to_the_answer() {
    let table = table();
    let single = plan(&table, "id, count(*), sum(dec), sum(f), count(distinct t)", "id");
    let expected = sorted_text(&reference(&single, &table).unwrap());
    let partial = in_part(&single);
    for memory_bytes_max in [256 << 20, 4 << 20, 1 << 20] {
        let options = EngineOptions { memory_bytes_max, ..EngineOptions::default() };
        let (batches, _) = table.run(&partial, 2, &options).unwrap();
        let merged = merge_intermediate(single.aggregation.as_ref().unwrap(), &batches).unwrap();
        assert!(sorted_text(&rows_of(&[merged])) == expected, "{memory_bytes_max}");
    }
    for (select, keys) in [("sparse, count(*)", "sparse"), ("t, count(*)", "t"), ("count(distinct high)", "")] {
        let options = EngineOptions { memory_bytes_max: 1 << 20, ..EngineOptions::default() };
        let error = table.run(&plan(&table, select, keys), 1, &options).unwrap_err();
        assert_eq!(error.code, ErrorCode::MemoryExceeded, "{select}");
    }
}

/// Each row group has a few groups of its own, beside row groups with a hundred, so that groups are found by bitmaps and by
/// the other ways in turn.
fn clustered(groups_of: &[i64]) -> Table {
    let schema = Schema::new(vec![field("day", DataType::Date), field("q", DataType::Int64)]).unwrap();
    let mut first = 0;
    let row_group = |count: i64| -> Vec<Row> {
        let from = first;
        first += count;
        // Many groups already in the first block, few ones one after another.
        let group = |n: i64| if count > 8 { n % count } else { n / 700 % count };
        (0..5_000).map(|n| vec![Scalar::I64(from + group(n)), Scalar::I64(n * 31 % 1_000 - 300)]).collect()
    };
    Table::new(schema, groups_of.iter().copied().map(row_group).collect())
}

#[test]
fn few_groups_of_a_row_group_join_many_of_the_others() {
    for counts in [&[100, 3, 1, 5][..], &[100, 100, 2], &[4, 100, 4], &[2, 3, 4]] {
        let table = clustered(counts);
        let single = plan(&table, "day, count(*), sum(q), avg(q), min(q), max(q)", "day");
        let expected = sorted_text(&reference(&single, &table).unwrap());
        for cores in [1, 2] {
            let (batches, _) = table.run(&single, cores, &EngineOptions::default()).unwrap();
            assert!(sorted_text(&rows_of(&batches)) == expected, "{counts:?}, {cores} cores");
        }
        // With next to no memory, partial groups are sent on in the middle of a row group.
        let partial = in_part(&single);
        for memory_bytes_max in (300..3_000).step_by(60) {
            let options = EngineOptions { memory_bytes_max, ..EngineOptions::default() };
            let batches = match table.run(&partial, 1, &options) {
                Ok((batches, _)) => batches,
                Err(error) => {
                    assert_eq!(error.code, ErrorCode::MemoryExceeded, "{counts:?}, {memory_bytes_max} bytes");
                    continue;
                }
            };
            let merged = merge_intermediate(single.aggregation.as_ref().unwrap(), &batches).unwrap();
            assert!(sorted_text(&rows_of(&[merged])) == expected, "{counts:?}, {memory_bytes_max} bytes");
        }
    }
}

#[test]
fn float_sums_have_the_same_bits_in_any_order_of_rows_and_any_number_of_groups() {
    let mut table = table();
    for keys in ["", "n % 3", "n % 100", "n % 70000"] {
        let select = if keys.is_empty() { "sum(f), avg(f)".to_string() } else { format!("{keys}, sum(f), avg(f)") };
        let plan = plan(&table, &select, keys);
        let bits = |table: &Table, cores| -> Vec<String> {
            let (batches, _) = table.run(&plan, cores, &EngineOptions::default()).unwrap();
            let bits = |value: &Scalar| match value {
                Scalar::F64(value) if value.is_nan() => "NaN".to_string(),
                Scalar::F64(value) => value.to_bits().to_string(),
                other => format!("{other:?}"),
            };
            let mut rows: Vec<String> =
                rows_of(&batches).iter().map(|row| row.iter().map(bits).collect::<Vec<_>>().join(" ")).collect();
            rows.sort();
            rows
        };
        let expected = bits(&table, 1);
        assert_eq!(bits(&table, 2), expected, "{select}");
        table.segments.reverse();
        assert_eq!(bits(&table, 1), expected, "{select}");
        let mut rows = std::mem::take(&mut table.rows);
        rows.reverse();
        let reversed = Table::new(table.schema.clone(), rows.chunks(50_000).map(<[Row]>::to_vec).collect());
        table.rows = rows;
        assert_eq!(bits(&reversed, 1), expected, "{select}");
    }
}

/// Keys that an array is indexed by: of the same range in some row groups and of another in others, up to the ends of `i64`,
/// with NULLs, a boolean and a text beside them; and in parts, which forget their groups in between.
#[test]
fn keys_of_a_narrow_range_keep_their_groups_from_row_group_to_row_group() {
    let schema = Schema::new(vec![
        field("k", DataType::Int64),
        field("b", DataType::Boolean),
        field("t", DataType::Text),
        field("n", DataType::Int64),
        field("f", DataType::Float64),
    ])
    .unwrap();
    let row = |least: i64, at: i64| -> Row {
        let or_null = |value: Scalar, every: i64| if at % every == 5 { Scalar::Null } else { value };
        vec![
            or_null(Scalar::I64(least + at * 31 % 700), 101),
            or_null(Scalar::Bool(at % 3 == 0), 53),
            or_null(Scalar::Bytes(format!("text {}", (at + least % 5) % 9).into_bytes()), 47),
            or_null(Scalar::I64(at - 2500), 11),
            or_null(Scalar::F64((at - 2500) as f64 / 7.0), 13),
        ]
    };
    let leasts = [0, 0, -350, 0, i64::MAX - 699, i64::MAX - 699, i64::MIN, 0];
    let groups = leasts.iter().map(|least| (0..5000).map(|at| row(*least, at)).collect()).collect();
    let table = Table::new(schema, groups);
    for (keys, aggregates) in [
        ("k", "count(*), sum(n), min(f), max(f), avg(f)"),
        ("k, b", "count(n), min(n), max(n), min(t)"),
        ("b, k", "sum(f), max(b)"),
        ("b", "min(f), max(f), sum(n), min(b)"),
        ("t, b", "count(*), min(n), max(f)"),
        ("k, t", "sum(n), max(f)"),
    ] {
        let single = plan(&table, &format!("{keys}, {aggregates}"), keys);
        let expected = sorted_text(&reference(&single, &table).unwrap());
        for cores in [1, 2] {
            let (batches, _) = table.run(&single, cores, &EngineOptions::default()).unwrap();
            assert!(sorted_text(&rows_of(&batches)) == expected, "{keys}, {cores} cores");
        }
        let options = EngineOptions { memory_bytes_max: 300 << 10, ..EngineOptions::default() };
        let (batches, _) = table.run(&in_part(&single), 1, &options).unwrap();
        let merged = merge_intermediate(single.aggregation.as_ref().unwrap(), &batches).unwrap();
        assert!(sorted_text(&rows_of(&[merged])) == expected, "{keys}, in parts");
    }
}
