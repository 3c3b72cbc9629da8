//! The client library against a cell that goes away: loads resume, scans reconnect, deadlines hold.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use futures::TryStreamExt;
use heliostat_client::{Client, ConnectOptions, LoadMode, ScanRequest};
use heliostat_reference::Cell;
use hidb::ErrorCode;
use hidb::arrow_mapping::from_arrow_schema;

const ROWS: i64 = 20_000;

fn batch(number: i64) -> RecordBatch {
    let values: ArrayRef = Arc::new(Int64Array::from_iter_values(number * ROWS..(number + 1) * ROWS));
    RecordBatch::try_from_iter([("n", values)]).expect("one column")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_and_a_client_survive_crashes_of_the_cell() -> Result<()> {
    let mut cell = Cell::start(2);
    let client = Client::connect(&cell.url, ConnectOptions::default()).await?;
    let mut load = client.load("t", &from_arrow_schema(&batch(0).schema())?, LoadMode::Create).await?;
    for number in 0..40 {
        if [11, 12, 30].contains(&number) {
            cell.crash(2);
        }
        load.write(&batch(number)).await?;
    }
    cell.crash(1);
    assert!(load.commit().await?.committed);
    // Committing again answers the same; so does the id after another crash.
    assert!(load.commit().await?.committed);
    let id = load.id();
    cell.crash(2);
    let again = client.load_with_id(id, "t", load.schema(), LoadMode::Create).await?;
    assert!(again.progress().committed);
    let answer: Vec<RecordBatch> = client
        .scan_sql("select count(*) as n, count(distinct n) as d, max(n) as m from t")
        .await?
        .try_collect()
        .await?;
    let value = |column: usize| answer[0].column(column).as_primitive::<Int64Type>().value(0);
    assert_eq!((value(0), value(1), value(2)), (40 * ROWS, 40 * ROWS, 40 * ROWS - 1));
    Ok(())
}

/// A cell that was started anew numbers sessions and statements from the beginning.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_is_never_taken_for_another_one_after_a_crash() -> Result<()> {
    let mut cell = Cell::start(1);
    let client = Client::connect(&cell.url, ConnectOptions::default()).await?;
    let mut load = client.load("t", &from_arrow_schema(&batch(0).schema())?, LoadMode::Create).await?;
    load.write(&batch(0)).await?;
    load.commit().await?;
    let least = client.prepare(ScanRequest::table("t").aggregates(["min(n) as n"])).await?;
    let most = client.prepare(ScanRequest::table("t").aggregates(["max(n) as n"])).await?;
    for _ in 0..3 {
        for (statement, expected) in [(&most, ROWS - 1), (&least, 0)] {
            let answer: Vec<RecordBatch> = statement.execute(&[]).await?.try_collect().await?;
            assert_eq!(answer[0].column(0).as_primitive::<Int64Type>().value(0), expected);
        }
        cell.crash(1);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_ends_a_scan_that_nobody_takes() -> Result<()> {
    let cell = Cell::start(2);
    let client = Client::connect(&cell.url, ConnectOptions::default()).await?;
    let mut load = client.load("t", &from_arrow_schema(&batch(0).schema())?, LoadMode::Create).await?;
    for number in 0..40 {
        load.write(&batch(number)).await?;
    }
    load.commit().await?;
    let request = ScanRequest::table("t").frames_ahead(1).timeout(Duration::from_millis(300));
    let outcome = async {
        let stream = client.scan(request).await?;
        // One frame of several waits here; the cell has no credit for the next one.
        tokio::time::sleep(Duration::from_millis(900)).await;
        stream.try_collect::<Vec<RecordBatch>>().await
    };
    let error = outcome.await.expect_err("the scan ended although nobody took it");
    assert_eq!(error.code, ErrorCode::DeadlineExceeded, "{error}");
    // The connection is as good as before.
    assert_eq!(client.tables().await?.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_that_is_gone_or_was_never_there_is_unavailable_after_the_time_to_retry() -> Result<()> {
    let patience = Duration::from_millis(500);
    let options = ConnectOptions { retry_for: patience, wait_for_cell: patience, ..ConnectOptions::default() };
    let cell = Cell::start(1);
    let client = Client::connect(&cell.url, options.clone()).await?;
    assert!(client.tables().await?.is_empty());
    let url = cell.url.clone();
    drop(cell);
    let error = client.tables().await.expect_err("the cell is gone");
    assert_eq!(error.code, ErrorCode::Unavailable, "{error}");
    let error = Client::connect(&url, options).await.expect_err("there is no cell");
    assert_eq!(error.code, ErrorCode::Unavailable, "{error}");
    assert!(error.message.contains("heliostat dev"), "{error}");
    Ok(())
}
