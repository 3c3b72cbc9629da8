//! Clients and cells that die, stop and come back in the middle of answers, over TCP and over links: errors with a code,
//! or the right rows, and nothing left behind.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use arrow_array::RecordBatch;
use futures::{StreamExt, TryStreamExt};
use heliostat_client::{ConnectOptions, ScanRequest};
use heliostat_reference::numbers::{load, whole_answer};
use heliostat_reference::surroundings::{is_rdma, rdma_transport};
use heliostat_reference::{Cell, command_of_this_build, signal};
use hidb::ErrorCode;

const ROWS: i64 = 2_000_000;
/// Ten times what a ring holds, so that a client that does not read stands in the middle of its answer.
const MANY_ROWS: i64 = 20_000_000;
const QUICK: [&str; 4] = ["--heartbeat-interval", "200ms", "--dead-peer-timeout", "1s"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_clients_that_are_killed_leave_nothing() -> Result<()> {
    let cell = Cell::start_with(2, &QUICK);
    load(&cell.connect("tcp").await?, ROWS).await?;
    let mut after_first = 0;
    for round in 0..5 {
        let mut clients: Vec<_> = (0..20)
            .map(|number| {
                let transport = if number % 4 == 0 { "tcp".into() } else { rdma_transport() };
                Command::new(command_of_this_build("heliostat"))
                    .args(["--connect", &cell.url, "--transport", &transport, "scan", "t", "--format", "csv"])
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("heliostat runs")
            })
            .collect();
        // Their output is not read: they stand in the middle of their answers.
        let until = Instant::now() + Duration::from_secs(20);
        while cell.sessions().len() < 20 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for client in &mut clients {
            client.kill()?;
            client.wait()?;
        }
        cell.wait_for_no_sessions(Duration::from_secs(20));
        whole_answer(&cell.connect(&rdma_transport()).await?, ROWS).await?;
        let resident = cell.resident_bytes();
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
    let client = cell.connect(&rdma_transport()).await?;
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

/// A client that stops in the middle of its answer, for this long at least, and goes on later.
async fn stop_a_client(options: &[&str], stop: Duration) -> Result<()> {
    let cell = Cell::start_with(2, options);
    let client = cell.connect(&rdma_transport()).await?;
    load(&client, MANY_ROWS).await?;
    let mut stopped = Command::new(command_of_this_build("heliostat"))
        .args(["--connect", &cell.url, "--transport", &rdma_transport(), "scan", "t", "--format", "csv"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // Once its first rows are there, it stands in the middle of its answer: nobody reads the rest. Stopped any earlier, it
    // would ask again after the loss of its session, as it should, and give the whole answer.
    let mut output = stopped.stdout.take().expect("piped");
    output.read_exact(&mut [0; 64])?;
    signal(stopped.id(), "STOP");
    let began = Instant::now();
    while cell.sessions().len() > 1 || began.elapsed() < stop {
        assert!(
            began.elapsed() < stop + Duration::from_secs(30),
            "the cell keeps a dead client: {:?}",
            cell.sessions()
        );
        whole_answer(&client, MANY_ROWS).await?;
    }
    signal(stopped.id(), "CONT");
    // It has to say something, and not to give half an answer for a whole one.
    let reading = std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
    let ended = stopped.wait_with_output()?;
    reading.join().expect("it reads")?;
    assert!(!ended.status.success(), "half an answer passed for a whole one");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(said.contains("(Unavailable)"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_holds_nobody_up() -> Result<()> {
    stop_a_client(&QUICK, Duration::from_secs(5)).await
}

#[ignore = "half a minute; the same with shorter timeouts runs always"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_for_half_a_minute_holds_nobody_up() -> Result<()> {
    stop_a_client(&[], Duration::from_secs(30)).await
}

/// A cell that stops in the middle of an answer for this long, which is longer than `dead` and than clients try: they get
/// errors until it goes on, each in bounded time, and answers then.
async fn stop_a_cell(way: &str, options: &[&str], dead: Duration, stop: Duration) -> Result<()> {
    let cell = Cell::start_with(2, options);
    let patience = ConnectOptions { connect_timeout: dead, retry_for: dead, ..ConnectOptions::default() };
    let client = cell.connect_with(way, patience).await?;
    load(&client, ROWS).await?;
    whole_answer(&client, ROWS).await?;
    let mut stream = client.scan(ScanRequest::table("t").frames_ahead(2)).await?;
    stream.next().await.expect("a batch")?;
    cell.signal("STOP");
    let began = Instant::now();
    // The heartbeat after the one that is due finds it out.
    let bound = dead * 3 + Duration::from_secs(3);
    let rest: Result<Vec<RecordBatch>, _> = stream.try_collect().await;
    let error = rest.expect_err("rows of a cell that stands still");
    assert_eq!(error.code, ErrorCode::Unavailable, "{error}");
    assert!(began.elapsed() < bound, "{way}: known after {:?}", began.elapsed());
    while began.elapsed() < stop {
        let asked = Instant::now();
        let error = whole_answer(&client, ROWS).await.expect_err("an answer of a cell that stands still");
        let error: hidb::Error = error.downcast()?;
        assert_eq!(error.code, ErrorCode::Unavailable, "{error}");
        assert!(asked.elapsed() < bound, "{way}: refused after {:?}", asked.elapsed());
    }
    cell.signal("CONT");
    whole_answer(&client, ROWS).await?;
    assert_eq!(client.rdma_statistics().await?.links > 0, is_rdma(way), "{way}");
    // Of the sessions that nobody waits for any more none is left.
    drop(client);
    cell.wait_for_no_sessions(bound);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_that_stops_is_an_error_in_bounded_time_and_then_answers_again() -> Result<()> {
    for way in ["tcp", "tls", &rdma_transport()] {
        stop_a_cell(way, &QUICK, Duration::from_secs(1), Duration::from_secs(6)).await?;
    }
    Ok(())
}

#[ignore = "a minute; the same with shorter timeouts runs always"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_that_stops_for_half_a_minute_is_an_error_and_then_answers_again() -> Result<()> {
    for way in ["tcp", &rdma_transport()] {
        stop_a_cell(way, &["--dead-peer-timeout", "10s"], Duration::from_secs(10), Duration::from_secs(30)).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_frees_the_slots_of_a_session() -> Result<()> {
    let cell = Cell::start(2);
    let client = cell.connect(&rdma_transport()).await?;
    load(&client, ROWS).await?;
    whole_answer(&client, ROWS).await?;
    let mut stalled = client.scan(ScanRequest::table("t").frames_ahead(8)).await?;
    stalled.next().await.expect("a batch")?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let session = cell.sessions()[0]["session"].as_u64().expect("a number");
    let reset = Command::new(command_of_this_build("heliostat-cell"))
        .args(["session", "reset", &session.to_string()])
        .args(cell.place())
        .output()?;
    assert!(reset.status.success(), "{}", String::from_utf8_lossy(&reset.stderr));
    let rest: Result<Vec<RecordBatch>, _> = stalled.try_collect().await;
    assert_eq!(rest.expect_err("its link is gone").code, ErrorCode::Unavailable);
    // The session goes on, with new links of the next generation.
    whole_answer(&client, ROWS).await?;
    let report = cell.sessions().remove(0);
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
