//! Answers that are lost on their way: asked for again as long as the caller was given nothing, an error afterwards.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use futures::{StreamExt, TryStreamExt};
use heliostat_client::{Client, ConnectOptions, LoadMode, ScanRequest, ScanStream, Transport};
use heliostat_reference::proxy::{Fate, Proxy};
use heliostat_reference::{Cell, command_of_this_build};
use hidb::arrow_mapping::from_arrow_schema;
use hidb::frame::FrameKind;
use hidb::{ErrorCode, proto};

const ROWS: i64 = 500_000;
/// Enough that the cell is still at work on an aggregate over them when something happens to it.
const MANY_ROWS: i64 = 20_000_000;

async fn load(client: &Client, rows: i64) -> Result<()> {
    let batch = |number: i64| {
        let values: ArrayRef = Arc::new(Int64Array::from_iter_values(number * 100_000..(number + 1) * 100_000));
        RecordBatch::try_from_iter([("n", values)]).expect("one column")
    };
    let mut load = client.load("t", &from_arrow_schema(&batch(0).schema())?, LoadMode::Create).await?;
    for number in 0..rows / 100_000 {
        load.write(&batch(number)).await?;
    }
    load.commit().await?;
    Ok(())
}

/// A network that cuts connections in place of result frame `sequence` of an answer, `cuts` times; and how many answers
/// have begun.
async fn cutting(cell: &Cell, sequence: u64, cuts: u32) -> (Proxy, Arc<AtomicU32>) {
    let begun = Arc::new(AtomicU32::new(0));
    let (count, left) = (begun.clone(), Mutex::new(cuts));
    let proxy = Proxy::start(&cell.url, move |frame| {
        if frame.kind != FrameKind::FilteredResultSet {
            return Fate::Arrives;
        }
        let part: proto::FilteredResultSet = frame.message().expect("the cell's messages decode");
        count.fetch_add(u32::from(part.sequence == 0), Ordering::Relaxed);
        let mut left = left.lock().expect("no panic");
        if part.sequence == sequence && *left > 0 {
            *left -= 1;
            return Fate::Cut;
        }
        Fate::Arrives
    })
    .await;
    (proxy, begun)
}

fn numbers(batches: &[RecordBatch]) -> Vec<i64> {
    batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
}

fn tcp() -> ConnectOptions {
    ConnectOptions { transport: Transport::Tcp, ..ConnectOptions::default() }
}

fn in_order() -> ScanRequest {
    ScanRequest::table("t").order_by(["n"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_lost_before_its_first_batch_is_asked_for_again() -> Result<()> {
    let cell = Cell::start(2);
    load(&cell.connect("tcp").await?, ROWS).await?;
    // In place of the schema, and in place of the first batch.
    for sequence in [0, 1] {
        let (proxy, begun) = cutting(&cell, sequence, 1).await;
        let client = Client::connect(&proxy.url, tcp()).await?;
        let batches: Vec<RecordBatch> = client.scan(in_order()).await?.try_collect().await?;
        assert!(numbers(&batches).into_iter().eq(0..ROWS), "frame {sequence}");
        assert_eq!(begun.load(Ordering::Relaxed), 2, "frame {sequence}");

        let (proxy, begun) = cutting(&cell, sequence, 1).await;
        let client = Client::connect(&proxy.url, tcp()).await?;
        let statement = client.prepare(in_order()).await?;
        let batches: Vec<RecordBatch> = statement.execute(&[]).await?.try_collect().await?;
        assert!(numbers(&batches).into_iter().eq(0..ROWS), "frame {sequence}");
        assert_eq!(begun.load(Ordering::Relaxed), 2, "frame {sequence}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_its_first_batch_and_after_the_second_time_a_lost_answer_is_an_error() -> Result<()> {
    let cell = Cell::start(2);
    load(&cell.connect("tcp").await?, ROWS).await?;
    // After three batches.
    let (proxy, begun) = cutting(&cell, 4, 1).await;
    let client = Client::connect(&proxy.url, tcp()).await?;
    let mut stream = client.scan(in_order()).await?;
    let mut given = Vec::new();
    let error = loop {
        match stream.next().await.expect("it does not end as if it were whole") {
            Ok(batch) => given.push(batch),
            Err(error) => break error,
        }
    };
    assert_eq!((error.code, given.len()), (ErrorCode::Unavailable, 3), "{error}");
    let given = numbers(&given);
    assert!(given.iter().copied().eq(0..given.len() as i64));
    assert!(stream.next().await.is_none() && stream.statistics().is_none());
    assert_eq!(begun.load(Ordering::Relaxed), 1);
    // Every time: twice is enough.
    let (proxy, begun) = cutting(&cell, 1, u32::MAX).await;
    let client = Client::connect(&proxy.url, tcp()).await?;
    let outcome: Result<Vec<RecordBatch>, _> = client.scan(in_order()).await?.try_collect().await;
    assert_eq!(outcome.expect_err("no batch ever came").code, ErrorCode::Unavailable);
    assert_eq!(begun.load(Ordering::Relaxed), 2);
    // Who does not want retries gets none.
    let (proxy, begun) = cutting(&cell, 1, 1).await;
    let client = Client::connect(&proxy.url, ConnectOptions { retry_for: Duration::ZERO, ..tcp() }).await?;
    let outcome: Result<Vec<RecordBatch>, _> = client.scan(in_order()).await?.try_collect().await;
    assert_eq!(outcome.expect_err("no batch came").code, ErrorCode::Unavailable);
    assert_eq!(begun.load(Ordering::Relaxed), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_that_changed_before_it_was_asked_again_are_an_error_and_not_other_columns() -> Result<()> {
    let cell = Cell::start(1);
    let other = cell.connect("tcp").await?;
    load(&other, ROWS).await?;
    let (proxy, _) = cutting(&cell, 1, 1).await;
    let client = Client::connect(&proxy.url, tcp()).await?;
    let stream = client.scan(ScanRequest::table("t").frames_ahead(1)).await?;
    let values: ArrayRef = Arc::new(Int64Array::from_iter_values(0..10));
    let batch = RecordBatch::try_from_iter([("m", values)])?;
    let mut replace = other.load("t", &from_arrow_schema(&batch.schema())?, LoadMode::Replace).await?;
    replace.write(&batch).await?;
    replace.commit().await?;
    let outcome: Result<Vec<RecordBatch>, _> = stream.try_collect().await;
    assert_eq!(outcome.expect_err("the stream promised a column n").code, ErrorCode::StaleSchema);
    Ok(())
}

/// Asks for an aggregate, which has a schema at once and rows only at the end: longer than it takes to start a process. (Rows
/// that were given out and whose end is lost can't be asked for again.)
async fn long_question(client: &Client) -> hidb::Result<ScanStream> {
    let sums = [7, 11, 13, 17, 19].map(|divisor| format!("sum(n * n % {divisor}) as u{divisor}"));
    let sums = ["sum(n) as s".to_string()].into_iter().chain(sums);
    client.scan(ScanRequest::table("t").aggregates(sums).bypass_cache(true)).await
}

fn check_sum(batches: &[RecordBatch]) {
    let sum = batches[0].column(0).as_primitive::<Int64Type>().value(0);
    assert_eq!(sum, MANY_ROWS * (MANY_ROWS - 1) / 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_that_is_killed_at_work_on_an_answer_gives_it_once_it_is_back() -> Result<()> {
    let mut cell = Cell::start(2);
    let client = cell.connect("soft").await?;
    load(&client, MANY_ROWS).await?;
    for _ in 0..2 {
        let asked = Instant::now();
        let mut stream = long_question(&client).await?;
        cell.crash(2);
        let crashed_after = asked.elapsed();
        let batches: Vec<RecordBatch> = (&mut stream).try_collect().await?;
        check_sum(&batches);
        let elapsed = stream.elapsed().expect("it has ended");
        assert!(elapsed >= crashed_after, "the answer was there after {elapsed:?}, before the crash: it shows nothing");
    }
    Ok(())
}

/// The rest of an answer; it may fail, but not hang.
async fn whole(stream: &mut ScanStream) -> hidb::Result<Vec<RecordBatch>> {
    let patience = Duration::from_secs(60);
    tokio::time::timeout(patience, stream.try_collect()).await.expect("neither an answer nor an error")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_whose_link_is_reset_are_asked_again_on_another_or_fail_at_once() -> Result<()> {
    let cell = Cell::start(2);
    let client = cell.connect_with("soft", ConnectOptions::default()).await?;
    let once = cell.connect_with("soft", ConnectOptions { retry_for: Duration::ZERO, ..tcp() }).await?;
    load(&client, MANY_ROWS).await?;
    let reset = async |client: &Client| -> Result<()> {
        let session = client.hello().await?.session_id.to_string();
        let mut command = Command::new(command_of_this_build("heliostat-cell"));
        command.args(["session", "reset", &session]).args(cell.place());
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    // The reset is a process of its own: it may come when the answer is there already. Most do not.
    let (mut again, mut failed) = (0, 0);
    for _ in 0..10 {
        let asked = Instant::now();
        let mut stream = long_question(&client).await?;
        reset(&client).await?;
        let reset_after = asked.elapsed();
        let batches: Vec<RecordBatch> = whole(&mut stream).await?;
        check_sum(&batches);
        if stream.elapsed().is_some_and(|elapsed| elapsed > reset_after) {
            again += 1;
            assert!(client.rdma_statistics().await?.links > 0, "it went on without RDMA");
        }

        let outcome = async {
            // The end of the link that was reset last may be heard of just now.
            let mut stream = long_question(&once).await?;
            reset(&once).await.expect("a session can be reset");
            whole(&mut stream).await
        };
        match outcome.await {
            Ok(batches) => check_sum(&batches),
            Err(error) => {
                assert_eq!(error.code, ErrorCode::Unavailable, "{error}");
                failed += 1;
            }
        }
    }
    assert!(again > 0 && failed > 0, "asked again {again} times, failed {failed} times: no reset came in time");
    Ok(())
}
