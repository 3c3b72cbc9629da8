//! Clients and cells that die, stop and come back in the middle of answers, over TCP and over links: errors with a code,
//! or the right rows, and nothing left behind.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use futures::{StreamExt, TryStreamExt};
use heliostat_client::{Client, LoadMode, ScanRequest};
use heliostat_reference::{Cell, command_of_this_build};
use hidb::ErrorCode;
use hidb::arrow_mapping::from_arrow_schema;

const ROWS: i64 = 2_000_000;
/// Ten times what a ring holds, so that a client that does not read stands in the middle of its answer.
const MANY_ROWS: i64 = 20_000_000;
const QUICK: [&str; 4] = ["--heartbeat-interval", "200ms", "--dead-peer-timeout", "1s"];

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

/// Whether these are all rows of the table, each once.
fn is_whole(batches: &[RecordBatch], rows: i64) -> bool {
    let mut seen = vec![false; rows as usize];
    for batch in batches {
        for value in batch.column(0).as_primitive::<Int64Type>().values() {
            let first = !std::mem::replace(&mut seen[*value as usize], true);
            assert!(first, "row {value} came twice");
        }
    }
    seen.into_iter().all(|seen| seen)
}

async fn whole_answer(client: &Client, rows: i64) -> Result<()> {
    let batches: Vec<RecordBatch> = client.scan(ScanRequest::table("t")).await?.try_collect().await?;
    assert!(is_whole(&batches, rows), "rows are missing");
    Ok(())
}

fn signal(name: &str, process: u32) {
    let status = Command::new("kill").args([name, &process.to_string()]).status().expect("kill runs");
    assert!(status.success());
}

/// Sessions that the cell knows.
fn sessions(cell: &Cell) -> Vec<serde_json::Value> {
    let output = Command::new(command_of_this_build("heliostat-cell"))
        .args(["sessions", "--json"])
        .args(cell.place())
        .output()
        .expect("heliostat-cell runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).expect("text");
    lines.lines().map(|line| serde_json::from_str(line).expect("one object per line")).collect()
}

fn resident_bytes(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the cell runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its size");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_clients_that_are_killed_leave_nothing() -> Result<()> {
    let cell = Cell::start_with(2, &QUICK);
    load(&cell.connect("tcp").await?, ROWS).await?;
    let mut after_first = 0;
    for round in 0..5 {
        let mut clients: Vec<_> = (0..20)
            .map(|number| {
                let transport = if number % 4 == 0 { "tcp" } else { "soft" };
                Command::new(command_of_this_build("heliostat"))
                    .args(["--connect", &cell.url, "--transport", transport, "scan", "t", "--format", "csv"])
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("heliostat runs")
            })
            .collect();
        // Their output is not read: they stand in the middle of their answers.
        let until = Instant::now() + Duration::from_secs(20);
        while sessions(&cell).len() < 20 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for client in &mut clients {
            client.kill()?;
            client.wait()?;
        }
        let until = Instant::now() + Duration::from_secs(20);
        while !sessions(&cell).is_empty() {
            assert!(Instant::now() < until, "sessions are left: {:?}", sessions(&cell));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        whole_answer(&cell.connect("soft").await?, ROWS).await?;
        let resident = resident_bytes(cell.process_id());
        if round == 0 {
            after_first = resident;
        }
        assert!(resident < after_first + (96 << 20), "round {round}: from {after_first} to {resident} bytes");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_that_is_killed_is_an_error_and_then_answers_again() -> Result<()> {
    let mut cell = Cell::start(2);
    let client = cell.connect("soft").await?;
    load(&client, ROWS).await?;
    for _ in 0..3 {
        let mut stream = client.scan(ScanRequest::table("t").frames_ahead(2)).await?;
        stream.next().await.expect("a batch")?;
        cell.crash(2);
        let rest: Result<Vec<RecordBatch>, _> = stream.try_collect().await;
        let error = rest.expect_err("rows of a cell that is gone");
        assert_eq!(error.code, ErrorCode::Unavailable, "{error}");
        whole_answer(&client, ROWS).await?;
        assert!(client.rdma_statistics().await?.links > 0, "it came back without RDMA");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_holds_nobody_up() -> Result<()> {
    let cell = Cell::start_with(2, &QUICK);
    let client = cell.connect("soft").await?;
    load(&client, MANY_ROWS).await?;
    let mut stopped = Command::new(command_of_this_build("heliostat"))
        .args(["--connect", &cell.url, "--transport", "soft", "scan", "t", "--format", "csv"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // Once its first rows are there, it stands in the middle of its answer: nobody reads the rest. Stopped any earlier, it
    // would ask again after the loss of its session, as it should, and give the whole answer.
    let mut output = stopped.stdout.take().expect("piped");
    output.read_exact(&mut [0; 64])?;
    signal("-STOP", stopped.id());
    let until = Instant::now() + Duration::from_secs(30);
    while sessions(&cell).len() > 1 {
        assert!(Instant::now() < until, "the cell keeps a dead client: {:?}", sessions(&cell));
        whole_answer(&client, MANY_ROWS).await?;
    }
    signal("-CONT", stopped.id());
    // It has to say something, and not to give half an answer for a whole one.
    let reading = std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
    let status = stopped.wait()?;
    reading.join().expect("it reads")?;
    assert!(!status.success(), "half an answer passed for a whole one");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_frees_the_slots_of_a_session() -> Result<()> {
    let cell = Cell::start(2);
    let client = cell.connect("soft").await?;
    load(&client, ROWS).await?;
    whole_answer(&client, ROWS).await?;
    let mut stalled = client.scan(ScanRequest::table("t").frames_ahead(8)).await?;
    stalled.next().await.expect("a batch")?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let session = sessions(&cell)[0]["session"].as_u64().expect("a number");
    let reset = Command::new(command_of_this_build("heliostat-cell"))
        .args(["session", "reset", &session.to_string()])
        .args(cell.place())
        .output()?;
    assert!(reset.status.success(), "{}", String::from_utf8_lossy(&reset.stderr));
    let rest: Result<Vec<RecordBatch>, _> = stalled.try_collect().await;
    assert_eq!(rest.expect_err("its link is gone").code, ErrorCode::Unavailable);
    // The session goes on, with new links of the next generation.
    whole_answer(&client, ROWS).await?;
    let report = sessions(&cell).remove(0);
    assert_eq!(report["session"].as_u64(), Some(session));
    let home = &report["links"][0];
    assert!(home["generation"].as_u64() > Some(1) && home["state"] == "open", "{report}");
    let unknown = Command::new(command_of_this_build("heliostat-cell"))
        .args(["session", "reset", "424242"])
        .args(cell.place())
        .output()?;
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("there is no session 424242"));
    Ok(())
}
