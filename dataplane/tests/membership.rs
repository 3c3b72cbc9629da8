//! Equality on columns of random values: membership filters change what is read, never the answer.

mod cell;

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{
    ArrayRef, BinaryArray, Date32Array, Decimal64Array, Decimal128Array, Int32Array, Int64Array, RecordBatch,
    StringArray, TimestampMicrosecondArray,
};
use cell::TestCell;
use futures::StreamExt;
use heliostat_client::{Client, ConnectOptions, LoadMode, ScanRequest, ScanStream};
use hidb::order::{OrderKind, TableOrder};
use hidb::proto::ScanStatistics;
use hidb::{DataType, Field, Scalar, Schema};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::runtime::Runtime;

const ROWS: usize = 700_000;
const ROW_GROUPS: u64 = 6;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn schema() -> Schema {
    let fields = [("row", DataType::Int64, false), ("id", DataType::Int64, true), ("name", DataType::Text, true)];
    Schema::new(fields.map(|(name, data_type, nullable)| Field::new(name, data_type, nullable)).to_vec()).unwrap()
}

/// A row's number, random id (often NULL) and random name.
type Row = (i64, Option<i64>, Option<String>);

fn rows(seed: u64) -> Vec<Row> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..ROWS as i64)
        .map(|row| {
            let name = format!("{:016x}-{:016x}", rng.random::<u64>(), rng.random::<u64>());
            (row, rng.random_bool(0.9).then(|| rng.random()), (row % 11 != 5).then_some(name))
        })
        .collect()
}

async fn load(client: &Client, table: &str, rows: &[Row], order: Option<&TableOrder>) {
    let mut writer = client.load_in_order(table, &schema(), LoadMode::Create, order).await.unwrap();
    for rows in rows.chunks(50_000) {
        let columns: Vec<(&str, ArrayRef, bool)> = vec![
            ("row", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.0))), false),
            ("id", Arc::new(Int64Array::from_iter(rows.iter().map(|row| row.1))), true),
            ("name", Arc::new(StringArray::from_iter(rows.iter().map(|row| row.2.as_deref()))), true),
        ];
        writer.write(&RecordBatch::try_from_iter_with_nullable(columns).unwrap()).await.unwrap();
    }
    writer.commit().await.unwrap();
}

/// The numbers of the rows of an answer, ascending, and what the cell counted.
async fn numbers(mut stream: ScanStream) -> (Vec<i64>, ScanStatistics) {
    let mut numbers = Vec::new();
    while let Some(batch) = stream.next().await {
        numbers.extend_from_slice(batch.unwrap().column(0).as_primitive::<Int64Type>().values());
    }
    numbers.sort_unstable();
    (numbers, *stream.statistics().unwrap())
}

async fn ask(client: &Client, table: &str, filter: &str) -> (Vec<i64>, ScanStatistics) {
    numbers(client.scan(ScanRequest::table(table).select(["row"]).filter(filter)).await.unwrap()).await
}

#[test]
fn answers_are_the_same_with_and_without_and_fewer_row_groups_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &["--cores", "2"]);
    let rows = rows(1);
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    runtime().block_on(async {
        let client =
            Client::connect(&format!("hidb+plain://{}", cell.address), ConnectOptions::default()).await.unwrap();
        load(&client, "t", &rows, None).await;
        let by_id: HashMap<i64, i64> = rows.iter().filter_map(|row| Some((row.1?, row.0))).collect();
        let by_name: HashMap<&str, i64> = rows.iter().filter_map(|row| Some((row.2.as_deref()?, row.0))).collect();

        let (mut pruned, mut asked) = (0, 0);
        let mut count = |statistics: &ScanStatistics| {
            assert_eq!(statistics.row_groups_total, ROW_GROUPS);
            pruned += statistics.row_groups_pruned;
            asked += 1;
        };
        for _ in 0..12 {
            let (present, absent) = (*by_id.keys().collect::<Vec<_>>().choose(&mut rng).unwrap(), rng.random::<i64>());
            for id in [*present, absent] {
                let expected: Vec<i64> = by_id.get(&id).copied().into_iter().collect();
                let (found, statistics) = ask(&client, "t", &format!("id = {id}")).await;
                assert_eq!(found, expected);
                count(&statistics);
            }
            let name = by_name.keys().copied().collect::<Vec<_>>().choose(&mut rng).unwrap().to_string();
            for name in [name.clone(), name.replace('-', "+")] {
                let expected: Vec<i64> = by_name.get(name.as_str()).copied().into_iter().collect();
                let (found, statistics) = ask(&client, "t", &format!("name = '{name}'")).await;
                assert_eq!(found, expected);
                count(&statistics);
                // The same in a way that filters know nothing of.
                let (found, statistics) = ask(&client, "t", &format!("name like '{}_%'", &name[..20])).await;
                assert_eq!((found, statistics.row_groups_pruned), (expected, 0));
            }
        }
        // At most one of six holds the value, and about one in ten of the others passes.
        assert!(pruned > asked * 4, "{pruned} row groups pruned in {asked} questions");

        let few: Vec<i64> = by_id.keys().copied().take(2).collect();
        let in_few = format!("id in ({}, {}, 17) and row >= 0", few[0], few[1]);
        let mut expected: Vec<i64> = few.iter().map(|id| by_id[id]).collect();
        expected.sort_unstable();
        assert_eq!(ask(&client, "t", &in_few).await.0, expected);
        let many: Vec<i64> = by_id.keys().copied().take(1000).collect();
        let list: Vec<String> = many.iter().map(i64::to_string).collect();
        let (found, statistics) = ask(&client, "t", &format!("id in ({})", list.join(", "))).await;
        assert_eq!((found.len(), statistics.row_groups_pruned), (1000, 0));
        // Neither NULL nor "not equal" is looked up.
        let nulls = rows.iter().filter(|row| row.1.is_none()).count();
        assert_eq!(ask(&client, "t", "id is null").await.0.len(), nulls);
        assert_eq!(ask(&client, "t", &format!("id <> {}", few[0])).await.0.len(), ROWS - nulls - 1);
        let either = format!("id = {} or name = '{}'", few[0], rows[7].2.as_deref().unwrap());
        let mut expected = vec![by_id[&few[0]], 7];
        expected.sort_unstable();
        expected.dedup();
        assert_eq!(ask(&client, "t", &either).await.0, expected);

        let prepared = client.prepare(ScanRequest::table("t").select(["row"]).filter("id = ?")).await.unwrap();
        let mut pruned = 0;
        for id in many.iter().take(20) {
            let (found, statistics) = numbers(prepared.execute(&[Scalar::I64(*id)]).await.unwrap()).await;
            assert_eq!(found, [by_id[id]]);
            pruned += statistics.row_groups_pruned;
        }
        assert!(pruned > 60, "{pruned} row groups pruned by 20 executions");

        let explained =
            client.explain(ScanRequest::table("t").select(["row"]).filter(format!("id = {}", few[0]))).await.unwrap();
        assert!(explained.contains("membership filters of id: asked in 6 row groups"), "{explained}");
    });
    assert!(cell.stop().success());
    cell::assert_clean(folder.path());
}

#[test]
fn a_filter_that_is_damaged_on_the_drive_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &[]);
    let rows = rows(3);
    let address = |cell: &TestCell| format!("hidb+plain://{}", cell.address);
    runtime().block_on(async {
        let client = Client::connect(&address(&cell), ConnectOptions::default()).await.unwrap();
        load(&client, "t", &rows, None).await;
    });
    assert!(cell.stop().success());
    // Filters are found by their magic; every one is hit.
    let volume = cell::volume_of(folder.path());
    let mut bytes = std::fs::read(&volume).unwrap();
    let mut damaged = 0;
    for page in bytes.chunks_mut(4096).filter(|page| page.starts_with(b"HSMF")) {
        page[777] ^= 0x10;
        damaged += 1;
    }
    assert_eq!(damaged, 2 * ROW_GROUPS);
    std::fs::write(&volume, bytes).unwrap();
    let cell = TestCell::start(folder.path(), &[]);
    runtime().block_on(async {
        let client = Client::connect(&address(&cell), ConnectOptions::default()).await.unwrap();
        let request = ScanRequest::table("t").filter("id = 5");
        let mut stream = client.scan(request).await.unwrap();
        let error = stream.next().await.unwrap().unwrap_err();
        assert_eq!(error.code, hidb::ErrorCode::Corruption);
        assert!(error.message.contains("membership filter of column \"id\""), "{error}");
        // What does not need it is answered.
        assert_eq!(ask(&client, "t", "row < 10").await.0.len(), 10);
    });
    assert!(cell.stop().success());
    let (code, out, _) = cell::tool(&["check", "--deep", "--volume", volume.to_str().unwrap()]);
    assert!(code != 0 && out.contains("membership filter"), "{out}");
}

#[test]
fn a_table_that_is_sorted_by_the_column_reads_less_and_answers_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &["--cores", "2"]);
    let rows = rows(4);
    runtime().block_on(async {
        let client =
            Client::connect(&format!("hidb+plain://{}", cell.address), ConnectOptions::default()).await.unwrap();
        let sorted = TableOrder::new(OrderKind::Sorted, &["id"], &schema()).unwrap();
        let clustered = TableOrder::new(OrderKind::Clustered, &["id", "name"], &schema()).unwrap();
        load(&client, "plain", &rows, None).await;
        load(&client, "sorted", &rows, Some(&sorted)).await;
        load(&client, "clustered", &rows, Some(&clustered)).await;
        assert_eq!(client.describe("sorted").await.unwrap().order, Some(sorted));
        let low = i64::MIN / 10 * 9;
        let mut read = HashMap::new();
        for table in ["plain", "sorted", "clustered"] {
            let (found, statistics) = ask(&client, table, &format!("id < {low}")).await;
            let expected = rows.iter().filter(|row| row.1.is_some_and(|id| id < low));
            assert_eq!(found, expected.map(|row| row.0).collect::<Vec<_>>(), "{table}");
            read.insert(table, statistics.blocks_total - statistics.blocks_pruned);
            let (found, _) = ask(&client, table, "name < '1' and id is not null").await;
            let named = |row: &&Row| row.1.is_some() && row.2.as_deref().is_some_and(|name| name < "1");
            assert_eq!(found, rows.iter().filter(named).map(|row| row.0).collect::<Vec<_>>(), "{table}");
        }
        assert!(read["sorted"] * 8 < read["plain"] && read["clustered"] * 3 < read["plain"], "{read:?}");
    });
    assert!(cell.stop().success());
    cell::assert_clean(folder.path());
}

#[test]
fn a_list_that_pays_in_some_row_groups_only_is_answered_over_many_of_them() {
    const GROUPS: usize = 90;
    const GROUP_ROWS: usize = 12_000;
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &["--cores", "1", "--merge-interval", "0ms"]);
    let fields = [("id", DataType::Int64), ("pad", DataType::Bytea)];
    let schema = Schema::new(fields.map(|(name, kind)| Field::new(name, kind, false)).to_vec()).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    runtime().block_on(async {
        let client =
            Client::connect(&format!("hidb+plain://{}", cell.address), ConnectOptions::default()).await.unwrap();
        let mut present = Vec::new();
        for group in 0..GROUPS {
            // Filters take a part of their row group: 8 bits a value in every other one, 5 in those between.
            let pad = if group % 2 == 0 { 100 } else { 35 };
            let ids: Vec<i64> = (0..GROUP_ROWS).map(|_| rng.random()).collect();
            let pads: Vec<Vec<u8>> = (0..GROUP_ROWS).map(|_| (0..pad).map(|_| rng.random()).collect()).collect();
            present.push(ids[100]);
            let columns: Vec<(&str, ArrayRef, bool)> = vec![
                ("id", Arc::new(Int64Array::from(ids)), false),
                ("pad", Arc::new(BinaryArray::from_iter_values(&pads)), false),
            ];
            let mode = if group == 0 { LoadMode::Create } else { LoadMode::Append };
            let mut writer = client.load("t", &schema, mode).await.unwrap();
            writer.write(&RecordBatch::try_from_iter_with_nullable(columns).unwrap()).await.unwrap();
            writer.commit().await.unwrap();
        }
        let mut list: Vec<i64> = (0..12).map(|_| rng.random()).collect();
        let mut expected = vec![present[0], present[41], present[GROUPS - 1]];
        list.extend(&expected);
        let list: Vec<String> = list.iter().map(i64::to_string).collect();
        let request = || ScanRequest::table("t").select(["id"]).filter(format!("id in ({})", list.join(", ")));
        let explained = client.explain(request()).await.unwrap();
        let asked = format!("membership filters of id: asked in {} row groups", GROUPS / 2);
        assert!(explained.contains(&asked), "{explained}");
        let (found, statistics) = numbers(client.scan(request()).await.unwrap()).await;
        expected.sort_unstable();
        assert_eq!(found, expected);
        assert!(statistics.row_groups_pruned > 0, "{statistics:?}");
    });
    assert!(cell.stop().success());
}

/// The types that have filters (Int64 and Text are above), and some ballast, without which filters would be too large a
/// part of the row group.
fn kinds() -> Vec<(&'static str, DataType)> {
    vec![
        ("i", DataType::Int32),
        ("day", DataType::Date),
        ("at", DataType::Timestamp { utc: false }),
        ("n", DataType::Decimal { precision: 18, scale: 0 }),
        ("w", DataType::Decimal { precision: 38, scale: 0 }),
        ("b", DataType::Bytea),
        ("v", DataType::Varchar(40)),
    ]
}

fn random_value(kind: &DataType, rng: &mut ChaCha8Rng) -> Scalar {
    match kind {
        DataType::Int32 => Scalar::I64(rng.random::<i32>().into()),
        DataType::Date => Scalar::I64(rng.random_range(0..2_900_000)),
        DataType::Timestamp { .. } => Scalar::I64(rng.random_range(0..1 << 51)),
        DataType::Decimal { precision: 18, .. } => Scalar::I64(rng.random_range(0..10i64.pow(18))),
        DataType::Decimal { .. } => Scalar::I128(rng.random_range(0..10i128.pow(37))),
        DataType::Bytea => Scalar::Bytes(rng.random::<[u8; 16]>().to_vec()),
        _ => Scalar::Bytes(format!("{:020x}", rng.random::<u64>()).into_bytes()),
    }
}

fn array(kind: &DataType, values: &[Scalar]) -> ArrayRef {
    let i64s = || values.iter().map(|value| if let Scalar::I64(value) = value { Some(*value) } else { None });
    let bytes = || values.iter().map(|value| if let Scalar::Bytes(value) = value { Some(value) } else { None });
    match kind {
        DataType::Int32 => Arc::new(i64s().map(|value| value.map(|value| value as i32)).collect::<Int32Array>()),
        DataType::Date => Arc::new(i64s().map(|value| value.map(|value| value as i32)).collect::<Date32Array>()),
        DataType::Timestamp { .. } => Arc::new(i64s().collect::<TimestampMicrosecondArray>()),
        DataType::Decimal { precision: 18, .. } => {
            Arc::new(i64s().collect::<Decimal64Array>().with_precision_and_scale(18, 0).unwrap())
        }
        DataType::Decimal { .. } => {
            let wide = values.iter().map(|value| if let Scalar::I128(value) = value { Some(*value) } else { None });
            Arc::new(wide.collect::<Decimal128Array>().with_precision_and_scale(38, 0).unwrap())
        }
        DataType::Bytea => Arc::new(bytes().collect::<BinaryArray>()),
        _ => Arc::new(bytes().map(|value| value.map(|text| str::from_utf8(text).unwrap())).collect::<StringArray>()),
    }
}

#[test]
fn filters_of_every_type_rule_out_what_is_absent_and_nothing_else_also_after_a_merge() {
    const TYPED_ROWS: usize = 120_000;
    const LOADS: usize = 4;
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &["--merge-interval", "0ms"]);
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let fields = kinds().into_iter().map(|(name, kind)| Field::new(name, kind, true));
    let ballast = [Field::new("row", DataType::Int64, false), Field::new("wide", DataType::Text, false)];
    let schema = Schema::new(ballast.into_iter().chain(fields).collect()).unwrap();
    // Many NULLs: of what has few bytes a value only then enough is left for a filter.
    let values: Vec<Vec<Scalar>> = kinds()
        .iter()
        .map(|(_, kind)| {
            let value = |rng: &mut ChaCha8Rng| match rng.random_bool(0.4) {
                true => Scalar::Null,
                false => random_value(kind, rng),
            };
            (0..TYPED_ROWS).map(|_| value(&mut rng)).collect()
        })
        .collect();
    let wide: Vec<String> =
        (0..TYPED_ROWS).map(|_| (0..12).map(|_| format!("{:016x} ", rng.random::<u64>())).collect()).collect();
    let part = |rows: std::ops::Range<usize>| {
        let mut columns: Vec<(&str, ArrayRef, bool)> = vec![
            ("row", Arc::new(Int64Array::from_iter_values(rows.clone().map(|row| row as i64))), false),
            ("wide", Arc::new(StringArray::from_iter_values(&wide[rows.clone()])), false),
        ];
        columns.extend(
            kinds().iter().zip(&values).map(|((name, kind), values)| (*name, array(kind, &values[rows.clone()]), true)),
        );
        RecordBatch::try_from_iter_with_nullable(columns).unwrap()
    };
    runtime().block_on(async {
        let client =
            Client::connect(&format!("hidb+plain://{}", cell.address), ConnectOptions::default()).await.unwrap();
        let mut writer = client.load("whole", &schema, LoadMode::Create).await.unwrap();
        writer.write(&part(0..TYPED_ROWS)).await.unwrap();
        writer.commit().await.unwrap();
        client.create_table("merged", &schema, 1).await.unwrap();
        for load in 0..LOADS {
            let rows = TYPED_ROWS / LOADS;
            let mut writer = client.load("merged", &schema, LoadMode::Append).await.unwrap();
            writer.write(&part(load * rows..(load + 1) * rows)).await.unwrap();
            writer.commit().await.unwrap();
        }
    });
    assert!(cell.stop().success());
    let cell = TestCell::start(folder.path(), &["--merge-interval", "20ms"]);
    runtime().block_on(async {
        let client =
            Client::connect(&format!("hidb+plain://{}", cell.address), ConnectOptions::default()).await.unwrap();
        let until = std::time::Instant::now() + cell::PATIENCE;
        while ask(&client, "merged", "row < 0").await.1.row_groups_total > 1 {
            assert!(std::time::Instant::now() < until, "nothing was merged");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        for table in ["whole", "merged"] {
            for ((name, kind), values) in kinds().iter().zip(&values) {
                let request = || ScanRequest::table(table).select(["row"]).filter(format!("{name} = ?"));
                let prepared = client.prepare(request()).await.unwrap();
                let mut pruned = 0;
                for number in 0..12 {
                    let row = number * TYPED_ROWS / 12
                        + values[number * TYPED_ROWS / 12..].iter().position(|value| !value.is_null()).unwrap();
                    for value in [values[row].clone(), random_value(kind, &mut rng)] {
                        let equal = values.iter().enumerate().filter(|(_, other)| **other == value);
                        let expected: Vec<i64> = equal.map(|(row, _)| row as i64).collect();
                        let (found, statistics) =
                            numbers(prepared.execute(std::slice::from_ref(&value)).await.unwrap()).await;
                        assert_eq!(found, expected, "{name} = {value:?} in {table}");
                        pruned += statistics.row_groups_pruned;
                    }
                }
                // Half of the questions are for what is (but for some days) not there.
                assert!(
                    (6..=12).contains(&pruned),
                    "{name} of {table}: {pruned} of 24 questions were answered by the filter"
                );
            }
        }
    });
    assert!(cell.stop().success());
    cell::assert_clean(folder.path());
}
