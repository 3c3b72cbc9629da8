//! Values, rows and tables as large as they may be, through the client library and a real cell.

use std::sync::Arc;

use anyhow::Result;
use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type};
use arrow_array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray};
use futures::TryStreamExt;
use heliostat_client::{Client, ConnectOptions, LoadMode, ScanRequest};
use heliostat_reference::Cell;
use hidb::arrow_mapping::from_arrow_schema;
use hidb::{ErrorCode, VALUE_BYTES_MAX};

/// A text that no encoding makes small.
fn long(seed: u64, bytes: usize) -> String {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            char::from(b'!' + (state % 90) as u8)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_values_and_rows_wider_than_a_batch_come_back_and_longer_ones_are_refused() -> Result<()> {
    let cell = Cell::start(2);
    let client = Client::connect(&cell.url, ConnectOptions::default()).await?;
    let rows = |texts: [Vec<String>; 3]| {
        let count = texts[0].len() as i64;
        let mut columns: Vec<(&str, ArrayRef)> = vec![("n", Arc::new(Int64Array::from_iter_values(0..count)))];
        for (name, column) in ["a", "b", "c"].into_iter().zip(texts) {
            columns.push((name, Arc::new(StringArray::from(column))));
        }
        RecordBatch::try_from_iter(columns).expect("columns of one length")
    };
    // The first row takes 48 MiB: more than a batch, a frame and a slot.
    let texts = |seed: u64| vec![long(seed, VALUE_BYTES_MAX), format!("short {seed}"), long(seed + 10, 2 << 20)];
    let batch = rows([texts(0), texts(1), texts(2)]);
    let schema = from_arrow_schema(&batch.schema())?;
    let mut load = client.load("wide", &schema, LoadMode::Create).await?;
    load.write(&batch).await?;
    load.commit().await?;
    let answer: Vec<RecordBatch> = client.scan(ScanRequest::table("wide")).await?.try_collect().await?;
    let mut seen = 0;
    for part in &answer {
        for row in 0..part.num_rows() {
            let n = part.column(0).as_primitive::<Int64Type>().value(row) as usize;
            for column in 1..4 {
                let (got, wanted) = (part.column(column).as_string::<i32>(), batch.column(column).as_string::<i32>());
                assert!(got.value(row) == wanted.value(n), "row {n}, column {column} came back different");
            }
            seen += 1;
        }
    }
    assert_eq!(seen, 3);
    let lengths = ScanRequest::table("wide").filter("length(b) > 16000000").select(["n"]);
    let found: Vec<RecordBatch> = client.scan(lengths).await?.try_collect().await?;
    assert_eq!(found.iter().map(RecordBatch::num_rows).sum::<usize>(), 1);

    let over = rows([vec![String::new()], vec![long(7, VALUE_BYTES_MAX + 1)], vec![String::new()]]);
    let mut load = client.load("over", &schema, LoadMode::Create).await?;
    let error = load.write(&over).await.expect_err("a value over 16 MiB");
    assert_eq!(error.code, ErrorCode::InvalidValue);
    assert!(error.message.contains("\"b\"") && error.message.contains("row 0"), "{error}");
    load.abort().await?;
    assert!(client.tables().await?.iter().all(|table| table.name != "over"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_two_thousand_columns_is_loaded_and_scanned() -> Result<()> {
    let cell = Cell::start(2);
    let client = Client::connect(&cell.url, ConnectOptions::default()).await?;
    let column = |index: i32| -> ArrayRef {
        match index % 2 {
            0 => Arc::new(Int32Array::from_iter_values((0..300).map(|row| row * 2_000 + index))),
            _ => Arc::new(StringArray::from_iter_values((0..300).map(|row| format!("{row}/{index}")))),
        }
    };
    let batch = RecordBatch::try_from_iter((0..2_000).map(|index| (format!("c{index}"), column(index))))?;
    let mut load = client.load("wide", &from_arrow_schema(&batch.schema())?, LoadMode::Create).await?;
    load.write(&batch).await?;
    load.commit().await?;
    let answer: Vec<RecordBatch> = client.scan(ScanRequest::table("wide")).await?.try_collect().await?;
    assert_eq!(answer.iter().map(RecordBatch::num_rows).sum::<usize>(), 300);
    for part in &answer {
        assert_eq!(part.num_columns(), 2_000);
        for row in 0..part.num_rows() {
            let n = part.column(0).as_primitive::<Int32Type>().value(row) / 2_000;
            assert_eq!(part.column(1_998).as_primitive::<Int32Type>().value(row), n * 2_000 + 1_998);
            assert_eq!(part.column(1_999).as_string::<i32>().value(row), format!("{n}/1999"));
        }
    }
    let one = ScanRequest::table("wide").filter("c1999 = '77/1999' and c1000 > 0").select(["c0"]);
    let one: Vec<RecordBatch> = client.scan(one).await?.try_collect().await?;
    let values: Vec<i32> = one.iter().flat_map(|b| b.column(0).as_primitive::<Int32Type>().values().to_vec()).collect();
    assert_eq!(values, [77 * 2_000]);
    Ok(())
}
