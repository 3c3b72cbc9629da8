//! `heliostat-bench` against a real cell: what it counts is what came, wrong answers are noticed, and a cell that dies is
//! errors in the report.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use heliostat_client::input::{Input, InputOptions, TpchTable};
use heliostat_client::{Client, ConnectOptions, LoadMode, ScanRequest};
use heliostat_reference::{Cell, command_of_this_build};
use serde_json::Value;

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(command_of_this_build("heliostat-bench"));
    command.args(words).env_remove("HELIOSTAT_CONNECT").stdin(Stdio::null());
    command
}

/// Exit code, standard output and standard error.
fn run(words: &[&str]) -> (i32, String, String) {
    let done = command(words).output().expect("heliostat-bench runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (done.status.code().unwrap_or(-1), text(done.stdout), text(done.stderr))
}

fn report(words: &[&str]) -> Value {
    let all: Vec<&str> = words.iter().copied().chain(["--output-format=json", "--eta=never"]).collect();
    let (code, output, errors) = run(&all);
    assert_eq!(code, 0, "{output}{errors}");
    serde_json::from_str(&output).expect("a report in JSON")
}

async fn loaded(cell: &Cell) -> Client {
    let client = Client::connect(&cell.url, ConnectOptions::default()).await.expect("the cell answers");
    let input = Input::tpch(TpchTable::LineItem, 0.01, InputOptions::default()).expect("a generator");
    let mut load = client.load("lineitem", &input.schema().clone(), LoadMode::Create).await.expect("a load begins");
    for batch in input.batches().expect("batches") {
        load.write(&batch.expect("a batch").rows).await.expect("it is taken");
    }
    load.commit().await.expect("it commits");
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_are_counted_and_their_answers_compared() {
    let cell = Cell::start(2);
    let client = loaded(&cell).await;
    let connect = format!("--connect={}", cell.url);
    let scan = ["--name=s", "--ioengine=hidb-scan", &connect, "--table=lineitem", "--where=l_quantity <= 25"];
    let scan: Vec<&str> = scan.into_iter().chain(["--columns=l_orderkey,l_comment", "--rw=read", "--bs=4k"]).collect();
    let with = |more: &[&'static str]| -> Vec<&str> { scan.iter().copied().chain(more.iter().copied()).collect() };

    let found = report(&with(&["--size=1g", "--number_ios=5"]));
    let mut stream = client
        .scan(ScanRequest::table("lineitem").select(["l_orderkey", "l_comment"]).filter("l_quantity <= 25"))
        .await
        .expect("the cell answers");
    while let Some(batch) = futures::TryStreamExt::try_next(&mut stream).await.expect("a batch") {
        assert!(batch.num_rows() > 0);
    }
    let bytes = stream.statistics().expect("statistics").bytes_returned;
    assert_eq!(found["jobs"][0]["read"]["total_ios"], 5);
    assert_eq!(found["jobs"][0]["read"]["io_bytes"], 5 * bytes);

    // The digest of the first answer is that of all, whatever order their rows come in.
    let (code, output, errors) = run(&with(&["--size=1g", "--number_ios=4", "--answer_digest=first"]));
    assert_eq!(code, 0, "{output}{errors}");
    let digest =
        errors.lines().find_map(|line| line.strip_prefix("the first answer has the digest ")).expect("a digest");
    let expected = format!("--answer_digest={digest}");
    let right: Vec<&str> = with(&["--size=1g", "--number_ios=2"]).into_iter().chain([expected.as_str()]).collect();
    assert_eq!(run(&right).0, 0);
    let wrong =
        right.iter().map(|word| if *word == "--where=l_quantity <= 25" { "--where=l_quantity <= 24" } else { word });
    let (code, output, errors) = run(&wrong.collect::<Vec<_>>());
    assert_ne!(code, 0, "wrong answers were taken for right ones");
    assert!(format!("{output}{errors}").contains("wrong answer"), "{output}{errors}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn point_reads_follow_the_jobs_distribution_and_loads_can_be_given_up() {
    let cell = Cell::start(2);
    let client = loaded(&cell).await;
    let connect = format!("--connect={}", cell.url);
    let point = ["--name=p", "--ioengine=hidb-point", &connect, "--table=lineitem", "--where=l_orderkey = $key(1,1)"];
    let more = ["--rw=randread", "--bs=4k", "--size=1g", "--number_ios=50", "--iodepth=4", "--answer_digest=first"];
    // One key: one answer.
    let words: Vec<&str> = point.into_iter().chain(more).collect();
    let found = report(&words);
    assert_eq!(found["jobs"][0]["read"]["total_ios"], 50);
    // Many keys: not one answer.
    let words: Vec<&str> = words
        .iter()
        .map(|word| if word.starts_with("--where") { "--where=l_orderkey = $rand(1,9)" } else { word })
        .collect();
    assert_ne!(run(&words).0, 0);

    let load =
        ["--name=l", "--ioengine=hidb-load", &connect, "--table=loaded", "--tpch=region", "--rw=write", "--size=1g"];
    for (commit, rows) in [("--commit=0", None), ("--commit=1", Some(15))] {
        let words: Vec<&str> = load.into_iter().chain(["--bs=4k", "--number_ios=3", commit]).collect();
        report(&words);
        let tables = client.tables().await.expect("tables");
        let found = tables.iter().find(|table| table.name == "loaded").map(|table| table.rows);
        assert_eq!(found, rows, "{commit}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn searches_are_counted_and_their_recall_is_measured_and_drawn() {
    let cell = Cell::start(2);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let connect = ["--connect", &cell.url];
    let (queries, picture, kept) = (path("q.npy"), path("x.svg"), path("x.json"));
    let made = ["generate", "vectors", "--rows", "5k", "--dimension", "16", "--table", "points", "--queries", &queries];
    let made: Vec<&str> = made.into_iter().chain(["--query-count", "50", "--clusters", "20"]).chain(connect).collect();
    let (code, output, errors) = run(&made);
    assert_eq!(code, 0, "{output}{errors}");
    let client = Client::connect(&cell.url, ConnectOptions::default()).await.expect("the cell answers");
    let tables = client.tables().await.expect("tables");
    assert_eq!(tables.iter().find(|table| table.name == "points").map(|table| table.rows), Some(5000));

    let url = format!("--connect={}", cell.url);
    let file = format!("--queries={queries}");
    let job = ["--name=s", "--ioengine=hidb-search", &url, "--table=points", "--rw=randread", "--bs=4k", "--size=1g"];
    let job: Vec<&str> = job.into_iter().chain(["--number_ios=40", "--iodepth=4", "--recall_sample=20"]).collect();
    let with = |more: &[&'static str]| -> Vec<&str> { job.iter().copied().chain(more.iter().copied()).collect() };
    let words: Vec<&str> = with(&["--queries_per_request=3"]).into_iter().chain([file.as_str()]).collect();
    let found = report(&words);
    let (read, ours) = (&found["jobs"][0]["read"], &found["jobs"][0]["heliostat"]);
    assert_eq!((&read["total_ios"], &ours["figures"]["queries"]["total"]), (&40.into(), &120.0.into()));
    // Without an index every search is exact, and reads every row.
    assert_eq!(ours["figures"]["recall_at_10"]["mean"], 1.0);
    assert_eq!(ours["figures"]["recall_at_10"]["count"], 20);
    assert!(ours["figures"]["rows_compared"]["mean"].as_f64() > Some(0.0), "{ours}");
    assert!(ours["notes"][0].as_str().expect("a note").starts_with("plan: exact"), "{ours}");
    // Rows of the table, with a filter that is another one for each op.
    let found = report(&with(&["--where=percent = $rand(0,99)", "--query_rows=30", "--k=3"]));
    let figures = &found["jobs"][0]["heliostat"]["figures"];
    assert_eq!((&figures["recall_at_3"]["mean"], &figures["queries"]["total"]), (&1.0.into(), &40.0.into()));

    let words =
        ["recall", "--table", "points", "--queries", &queries, "--seconds", "0.2", "--parameters", "exact,recall=0.9"];
    let words: Vec<&str> = words.into_iter().chain(["--plot", &picture, "--json", &kept]).chain(connect).collect();
    let (code, output, errors) = run(&words);
    assert_eq!(code, 0, "{output}{errors}");
    assert!(output.contains("| exact         |      1.0000 |"), "{output}");
    assert!(std::fs::read_to_string(&picture).expect("a picture").contains("over recall"));
    // What was kept is drawn without a cell.
    let (code, output, errors) = run(&["recall", "--beside", &kept, "--plot", &picture]);
    assert_eq!(code, 0, "{output}{errors}");
    let (code, _, errors) = run(&["recall", "--beside", &queries]);
    assert!(code != 0 && errors.contains("q.npy"), "{errors}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_that_dies_is_errors_in_the_report() {
    let cell = Cell::start(2);
    loaded(&cell).await;
    let connect = format!("--connect={}", cell.url);
    let words =
        ["--name=p", "--ioengine=hidb-point", &connect, "--table=lineitem", "--where=l_orderkey = $rand(1,60000)"];
    let more =
        ["--rw=randread", "--bs=4k", "--size=1g", "--iodepth=2", "--time_based", "--runtime=4", "--output-format=json"];
    let words: Vec<&str> = words.into_iter().chain(more).chain(["--eta=never"]).collect();
    let started = Instant::now();
    let mut bench =
        command(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("heliostat-bench runs");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    cell.signal("KILL");
    let mut text = String::new();
    bench.stdout.take().expect("a pipe").read_to_string(&mut text).expect("text");
    bench.wait().expect("it ends");
    assert!(started.elapsed() < Duration::from_secs(30), "it went on for {:?}", started.elapsed());
    let found: Value = serde_json::from_str(&text).expect("a report in JSON");
    let job = &found["jobs"][0];
    assert!(job["read"]["total_ios"].as_u64().expect("a number") > 10, "{job}");
    let errors = job["heliostat"]["errors"].as_u64().expect("a number");
    assert!((10..10_000).contains(&errors), "{errors} errors in two and a half seconds");
}

#[test]
fn what_can_not_be_measured_is_said_in_one_line() {
    for (words, part) in [
        (vec!["--ioengine=hidb-scan", "--rw=read", "--size=1m", "--connect=hidb+plain://127.0.0.1:1"], "table="),
        (
            vec!["--ioengine=hidb-point", "--rw=read", "--size=1m", "--table=t", "--connect=hidb+plain://127.0.0.1:1"],
            "where=",
        ),
        (vec!["--ioengine=hidb-load", "--rw=read", "--size=1m", "--table=t", "--tpch=region"], "writes"),
        (vec!["--ioengine=hidb-load", "--rw=write", "--size=1m", "--table=t"], "source="),
        (vec!["--ioengine=hidb-scan", "--rw=write", "--size=1m", "--table=t"], "hidb-scan"),
        (vec!["--ioengine=hidb-scan", "--rw=read", "--size=1m", "--table=t", "--where=a = $rand(2,1)"], "is empty"),
        (vec!["--ioengine=hidb-search", "--rw=read", "--size=1m"], "table="),
        (vec!["--ioengine=hidb-search", "--rw=read", "--size=1m", "--table=t", "--probes=2", "--exact=1"], "probes=2"),
        (
            vec!["--ioengine=hidb-search", "--rw=read", "--size=1m", "--table=t", "--queries=/nowhere/q.npy"],
            "/nowhere/q.npy",
        ),
    ] {
        let all: Vec<&str> = ["--name=x", "--bs=4k"].into_iter().chain(words.iter().copied()).collect();
        let (code, output, errors) = run(&all);
        assert_ne!(code, 0, "{words:?}");
        assert!(format!("{output}{errors}").contains(part), "{words:?}: {output}{errors}");
    }
}
