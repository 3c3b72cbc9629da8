//! A table `t` of the numbers from 0 on, in one column: of an answer it is known which rows must be in it, each once.
//!
//! Called by the tests of faults.

use std::sync::Arc;

use anyhow::{Result, ensure};
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use futures::TryStreamExt;
use heliostat_client::{Client, LoadMode, ScanRequest};
use hidb::arrow_mapping::from_arrow_schema;

/// Rows of a batch of the load.
const BATCH_ROWS: i64 = 100_000;

/// Loads it; `rows` are a multiple of 100,000.
///
/// # Errors
/// The client's.
pub async fn load(client: &Client, rows: i64) -> Result<()> {
    let batch = |number: i64| {
        let values: ArrayRef = Arc::new(Int64Array::from_iter_values(number * BATCH_ROWS..(number + 1) * BATCH_ROWS));
        RecordBatch::try_from_iter([("n", values)]).expect("one column")
    };
    let mut load = client.load("t", &from_arrow_schema(&batch(0).schema())?, LoadMode::Create).await?;
    for number in 0..rows / BATCH_ROWS {
        load.write(&batch(number)).await?;
    }
    load.commit().await?;
    Ok(())
}

/// Whether these are all rows of the table.
///
/// # Panics
/// When a row came twice.
pub fn is_whole(batches: &[RecordBatch], rows: i64) -> bool {
    let mut seen = vec![false; rows as usize];
    for batch in batches {
        for value in batch.column(0).as_primitive::<Int64Type>().values() {
            let first = !std::mem::replace(&mut seen[*value as usize], true);
            assert!(first, "row {value} came twice");
        }
    }
    seen.into_iter().all(|seen| seen)
}

/// Asks for all rows, and looks whether they are there.
///
/// # Errors
/// The client's, as [`hidb::Error`]; another when rows are missing.
pub async fn whole_answer(client: &Client, rows: i64) -> Result<()> {
    let batches: Vec<RecordBatch> = client.scan(ScanRequest::table("t")).await?.try_collect().await?;
    ensure!(is_whole(&batches, rows), "rows are missing");
    Ok(())
}
