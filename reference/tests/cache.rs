//! The client's cache of answers against real cells: what is given again, and everything that must keep it from being
//! given.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use futures::TryStreamExt;
use heliostat_client::{Client, ConnectOptions, LoadMode, Notice, NoticeGap, ScanRequest, Transport};
use heliostat_reference::Cell;
use heliostat_reference::proxy::{Fate, Proxy};
use heliostat_reference::surroundings::transports;
use hidb::frame::FrameKind;
use hidb::{ErrorCode, Scalar, arrow_mapping::from_arrow_schema};
use tokio::sync::broadcast::Receiver;

const CACHE_BYTES: usize = 1 << 20;

fn cached() -> ConnectOptions {
    ConnectOptions { result_cache_bytes: CACHE_BYTES, transport: Transport::Tcp, ..ConnectOptions::default() }
}

/// Loads the rows `n = 0..rows`, all with `v = value`.
async fn load(client: &Client, mode: LoadMode, rows: i64, value: i64) -> Result<()> {
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
    let values: ArrayRef = Arc::new(Int64Array::from_iter_values((0..rows).map(|_| value)));
    let batch = RecordBatch::try_from_iter([("n", numbers), ("v", values)])?;
    let mut load = client.load("t", &from_arrow_schema(&batch.schema())?, mode).await?;
    load.write(&batch).await?;
    load.commit().await?;
    Ok(())
}

/// The same into a new table, and waits until every session has heard of it.
async fn load_first(cell: &Cell, rows: i64, value: i64) -> Result<()> {
    let client = cell.connect("tcp").await?;
    let mut notices = client.notices();
    load(&client, LoadMode::Create, rows, value).await?;
    heard(&mut notices, changed).await;
    Ok(())
}

fn point(number: i64) -> ScanRequest {
    ScanRequest::table("t").filter(format!("n = {number}")).select(["v"])
}

/// The values of column 0, and whether they came from the cache.
async fn ask(client: &Client, request: ScanRequest) -> hidb::Result<(Vec<i64>, bool)> {
    let mut stream = client.scan(request).await?;
    let batches: Vec<RecordBatch> = (&mut stream).try_collect().await?;
    assert_eq!(stream.statistics().expect("it has ended").rows, stream.rows());
    Ok((values(&batches), stream.is_from_cache()))
}

fn values(batches: &[RecordBatch]) -> Vec<i64> {
    batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
}

async fn heard(notices: &mut Receiver<Notice>, wanted: impl Fn(&Notice) -> bool) -> Notice {
    let hears = async {
        loop {
            let notice = notices.recv().await.expect("the client lives, and is not behind");
            if wanted(&notice) {
                return notice;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), hears).await.expect("the notice comes")
}

fn changed(notice: &Notice) -> bool {
    matches!(notice, Notice::DataChanged { table, .. } | Notice::SchemaChanged { table, .. } if table == "t")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_question_is_answered_from_the_cache_over_every_transport() -> Result<()> {
    let cell = Cell::start(2);
    load_first(&cell, 200_000, 7).await?;
    for transport in transports() {
        let client = cell.connect_with(&transport, cached()).await?;
        let plain = cell.connect(&transport).await?;
        let statement = client.prepare(ScanRequest::table("t").filter("n = $1").select(["v", "n"])).await?;
        for round in 0..3 {
            assert_eq!(ask(&client, point(3)).await?, (vec![7], round > 0), "{transport}");
            assert_eq!(ask(&plain, point(3)).await?, (vec![7], false), "{transport}");
            // The parameters are part of the question, and so are the columns.
            for number in [5, 6] {
                let mut stream = statement.execute(&[Scalar::I64(number)]).await?;
                let batches: Vec<RecordBatch> = (&mut stream).try_collect().await?;
                assert_eq!(stream.is_from_cache(), round > 0, "{transport}");
                assert_eq!(batches[0].column(1).as_primitive::<Int64Type>().values()[..], [number]);
                assert_eq!(batches[0].schema(), stream.schema());
                if round > 0 {
                    assert_eq!(stream.statistics().map(|statistics| statistics.cell_us), Some(0));
                }
            }
            // Small scans of several batches, too; long ones are not kept.
            let small = ScanRequest::table("t").filter("n < 5000").order_by(["n"]).select(["n"]);
            let (numbers, from_cache) = ask(&client, small).await?;
            assert!(numbers.iter().copied().eq(0..5000) && from_cache == (round > 0), "{transport}");
            assert!(!ask(&client, ScanRequest::table("t")).await?.1);
            // Who asks for the device gets it.
            assert!(!ask(&client, point(3).bypass_cache(true)).await?.1);
            assert!(!client.explain(point(3)).await?.is_empty());
        }
        let counts = client.cache_statistics();
        assert_eq!((counts.hits, counts.misses, counts.kept, counts.answers), (8, 7, 4, 4), "{counts:?}");
        assert!((40_000..CACHE_BYTES / 8).contains(&counts.bytes), "{counts:?}");
        assert_eq!(plain.cache_statistics().answers, 0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_change_is_dropped_when_their_notice_comes_and_own_changes_at_once() -> Result<()> {
    let cell = Cell::start(2);
    let (client, other) = (cell.connect_with("soft", cached()).await?, cell.connect("tcp").await?);
    let mut notices = client.notices();
    load(&other, LoadMode::Create, 100, 1).await?;
    heard(&mut notices, changed).await;
    let keep = async |expected: &[i64]| {
        // The first answer may overtake a notice, and is not kept then.
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let (values, from_cache) = ask(&client, point(3)).await?;
            assert_eq!(values, expected);
            if from_cache {
                return anyhow::Ok(());
            }
            assert!(Instant::now() < until, "it is never kept: {:?}", client.cache_statistics());
        }
    };
    keep(&[1]).await?;
    load(&other, LoadMode::Append, 100, 2).await?;
    heard(&mut notices, changed).await;
    let (mut both, from_cache) = ask(&client, point(3)).await?;
    both.sort();
    assert_eq!((both, from_cache), (vec![1, 2], false));
    load(&other, LoadMode::Replace, 100, 3).await?;
    heard(&mut notices, changed).await;
    keep(&[3]).await?;
    other.drop_table("t", false).await?;
    heard(&mut notices, |notice| *notice == Notice::TableDropped { table: "t".into() }).await;
    assert_eq!(ask(&client, point(3)).await.expect_err("it is gone").code, ErrorCode::UnknownTable);
    // Own changes: before the notice.
    for value in 10..40 {
        load(&client, LoadMode::Replace, 100, value).await?;
        assert_eq!(ask(&client, point(3)).await?, (vec![value], false));
        ask(&client, point(3)).await?;
    }
    client.drop_table("t", false).await?;
    assert_eq!(ask(&client, point(3)).await.expect_err("it is gone").code, ErrorCode::UnknownTable);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_notice_drops_everything_and_a_repeated_one_is_heard_once() -> Result<()> {
    let cell = Cell::start(1);
    let fate = Arc::new(Mutex::new(Fate::Arrives));
    let decided = fate.clone();
    let proxy = Proxy::start(&cell.url, move |frame| match frame.kind {
        FrameKind::CacheInvalidationNotice => *decided.lock().expect("no panic"),
        _ => Fate::Arrives,
    })
    .await;
    let set = |wanted: Fate| *fate.lock().expect("no panic") = wanted;
    let other = cell.connect("tcp").await?;
    load_first(&cell, 100, 1).await?;
    let make = |name: &'static str| {
        let other = &other;
        async move {
            let column = hidb::Field::new("n", hidb::DataType::Int64, false);
            other.create_table(name, &hidb::Schema::new(vec![column])?, 1).await?;
            other.drop_table(name, false).await
        }
    };
    let client = Client::connect(&proxy.url, cached()).await?;
    let mut notices = client.notices();
    // Twice: heard once.
    set(Fate::Repeated);
    make("a").await?;
    set(Fate::Arrives);
    make("b").await?;
    let dropped = |name: &str| Notice::TableDropped { table: name.into() };
    assert_eq!((notices.recv().await?, notices.recv().await?), (dropped("a"), dropped("b")));
    ask(&client, point(3)).await?;
    assert_eq!(ask(&client, point(3)).await?, (vec![1], true));
    // Its own notice is lost: the answer is stale now, and stays so until something is heard again.
    set(Fate::Lost);
    load(&other, LoadMode::Replace, 100, 2).await?;
    // The notice leaves after the answer to the commit.
    tokio::time::sleep(Duration::from_millis(300)).await;
    set(Fate::Arrives);
    make("c").await?;
    assert_eq!(notices.recv().await?, Notice::EverythingChanged(NoticeGap::Missed(1)));
    assert_eq!(notices.recv().await?, dropped("c"));
    assert_eq!(client.cache_statistics().answers, 0);
    assert_eq!(ask(&client, point(3)).await?, (vec![2], false));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_outlives_its_connection() -> Result<()> {
    let mut cell = Cell::start(1);
    let client = Client::connect(&cell.url, cached()).await?;
    load(&client, LoadMode::Create, 100, 1).await?;
    let mut notices = client.notices();
    for _ in 0..3 {
        let until = Instant::now() + Duration::from_secs(20);
        while !ask(&client, point(3)).await?.1 {
            assert!(Instant::now() < until, "it is never kept: {:?}", client.cache_statistics());
        }
        cell.crash(1);
        heard(&mut notices, |notice| *notice == Notice::EverythingChanged(NoticeGap::ConnectionLost)).await;
        let counts = client.cache_statistics();
        assert_eq!((counts.answers, counts.bytes, counts.schemas), (0, 0, 0));
        assert_eq!(ask(&client, point(3)).await?, (vec![1], false));
        heard(&mut notices, |notice| *notice == Notice::EverythingChanged(NoticeGap::Reconnected)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_partition_cached_answers_last_no_longer_than_the_dead_peer_timeout() -> Result<()> {
    let cell = Cell::start_with(1, &["--heartbeat-interval", "200ms", "--dead-peer-timeout", "1s"]);
    let partitioned = Arc::new(AtomicBool::new(false));
    let is_partitioned = partitioned.clone();
    let proxy = Proxy::start(&cell.url, move |_| match is_partitioned.load(Ordering::Relaxed) {
        true => Fate::Held,
        false => Fate::Arrives,
    })
    .await;
    load_first(&cell, 100, 1).await?;
    let options = ConnectOptions { timeout: Some(Duration::from_secs(1)), ..cached() };
    let client = Client::connect(&proxy.url, options).await?;
    let mut notices = client.notices();
    ask(&client, point(3)).await?;
    assert!(ask(&client, point(3)).await?.1);
    partitioned.store(true, Ordering::Relaxed);
    load(&cell.connect("tcp").await?, LoadMode::Replace, 100, 2).await?;
    let since = Instant::now();
    heard(&mut notices, |notice| *notice == Notice::EverythingChanged(NoticeGap::ConnectionLost)).await;
    assert!(since.elapsed() < Duration::from_secs(3), "the client took {:?} to notice", since.elapsed());
    let error = ask(&client, point(3)).await.expect_err("the old answer was given from behind a partition");
    assert!(matches!(error.code, ErrorCode::DeadlineExceeded | ErrorCode::Unavailable), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cache_is_bounded_and_holds_no_slot_of_a_ring() -> Result<()> {
    let cell = Cell::start(2);
    load_first(&cell, 200_000, 7).await?;
    let options = ConnectOptions { result_cache_bytes: 512 << 10, ring_slots: 4, ..cached() };
    let client = cell.connect_with("soft", options).await?;
    // Each answer is longer than a SEND, so that it comes in a slot; hundreds of them are kept one after another.
    for round in 0..300i64 {
        let (from, to) = (round * 500, round * 500 + 2000);
        let request = ScanRequest::table("t").filter(format!("n >= {from} and n < {to}")).select(["n"]);
        let (numbers, _) = ask(&client, request.timeout(Duration::from_secs(20))).await?;
        assert_eq!(numbers.len(), 2000);
        let counts = client.cache_statistics();
        assert!(counts.bytes <= 512 << 10, "{counts:?}");
    }
    let counts = client.cache_statistics();
    assert!(counts.evicted > 200 && counts.answers > 10 && counts.bytes > 400 << 10, "{counts:?}");
    let rdma = client.rdma_statistics().await?;
    assert!(rdma.in_place + rdma.copied_out >= 300, "{rdma:?}");
    // What is in the cache is still right, and all slots are the cell's again: a long answer needs them.
    let request = ScanRequest::table("t").filter(format!("n >= {} and n < {}", 299 * 500, 299 * 500 + 2000));
    let (mut numbers, from_cache) = ask(&client, request.select(["n"]).timeout(Duration::from_secs(20))).await?;
    numbers.sort();
    assert!(from_cache && numbers.into_iter().eq(299 * 500..299 * 500 + 2000));
    assert_eq!(ask(&client, ScanRequest::table("t").select(["n"])).await?.0.len(), 200_000);
    Ok(())
}

/// One writer, and readers by several tasks over each transport, all with caches.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_reader_goes_back_in_time_while_a_writer_commits() -> Result<()> {
    const COMMITS: i64 = 60;
    let cell = Cell::start(2);
    let writer = cell.connect_with("tcp", cached()).await?;
    load(&writer, LoadMode::Create, 50, 0).await?;
    let committed = Arc::new(AtomicI64::new(0));
    let (hits, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut readers = Vec::new();
    for transport in ["tcp", "soft"] {
        let client = cell.connect_with(transport, cached()).await?;
        let newest = Arc::new(AtomicI64::new(0));
        for task in 0..3i64 {
            let (client, newest, committed) = (client.clone(), newest.clone(), committed.clone());
            let (hits, is_over) = (hits.clone(), is_over.clone());
            readers.push(tokio::spawn(async move {
                let statement = client.prepare(ScanRequest::table("t").filter("n = $1").select(["v"])).await?;
                let mut turn = task;
                while !is_over.load(Ordering::Relaxed) {
                    turn += 1;
                    // Whatever any task of this client has seen before the question is put bounds what may come.
                    let floor = newest.load(Ordering::SeqCst);
                    let mut stream = statement.execute(&[Scalar::I64(turn % 4)]).await?;
                    let batches: Vec<RecordBatch> = (&mut stream).try_collect().await?;
                    let found = values(&batches);
                    let from_cache = stream.is_from_cache();
                    assert_eq!(found.len(), 1, "{transport}");
                    assert!(found[0] >= floor, "{transport}: {} after {floor}, cache {from_cache}", found[0]);
                    assert!(found[0] <= committed.load(Ordering::SeqCst) + 1);
                    newest.fetch_max(found[0], Ordering::SeqCst);
                    hits.fetch_add(u64::from(from_cache), Ordering::Relaxed);
                    if from_cache {
                        tokio::time::sleep(Duration::from_micros(200)).await;
                    }
                }
                // The last notice is on its way at most: then the last row is seen.
                let until = Instant::now() + Duration::from_secs(20);
                while ask(&client, point(1)).await?.0 != [COMMITS] {
                    assert!(Instant::now() < until, "{transport}: stale for good");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                anyhow::Ok(())
            }));
        }
    }
    for value in 1..=COMMITS {
        load(&writer, LoadMode::Replace, 50, value).await?;
        committed.store(value, Ordering::SeqCst);
        for _ in 0..2 {
            assert_eq!(ask(&writer, point(2)).await?.0, [value], "the writer does not see its own commit");
        }
    }
    is_over.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await??;
    }
    assert!(hits.load(Ordering::Relaxed) > 100, "the caches did nothing: {hits:?} hits");
    Ok(())
}
