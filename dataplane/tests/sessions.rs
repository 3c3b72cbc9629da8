//! Sessions against a real cell: idle and silent clients, back-pressure, cancel, deadlines, draining, errors that name what is there, and the command line.

mod cell;

use std::io::Write;
use std::time::{Duration, Instant};

use cell::{PATIENCE, TestCell, Wire, assert_clean, assert_first_rows, batch, everything, schema, tool};
use hidb::frame::{FrameKind, encode_frame};
use hidb::order::{OrderKind, TableOrder};
use hidb::plan::sql::ScanText;
use hidb::{DataType, ErrorCode, Field, Schema, convert, proto};

fn code(error: &proto::Error) -> ErrorCode {
    ErrorCode::from_number(error.code)
}

#[test]
fn rows_come_back_as_they_were_loaded_also_after_a_restart_with_other_cores() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &[]);
    let mut wire = Wire::connect(cell.address);
    wire.load("t", 20, 3_000);
    assert_first_rows(&wire.scan(&everything("t")).unwrap(), 60_000);
    drop(wire);
    assert!(cell.stop().success());
    let cell = TestCell::start(folder.path(), &["--cores", "1"]);
    let mut wire = Wire::connect(cell.address);
    assert_first_rows(&wire.scan(&everything("t")).unwrap(), 60_000);
    let text = ScanText { filter: Some("id < 10 and note is not null".into()), ..everything("t") };
    let rows: usize = wire.scan(&text).unwrap().iter().map(|batch| batch.num_rows()).sum();
    assert_eq!(rows, 9);
    let description: proto::TableDescription =
        wire.ask(FrameKind::DescribeTable, &proto::DescribeTable { name: "t".into() }).unwrap();
    assert_eq!(description.summary.unwrap().rows, 60_000);
    assert_eq!(description.columns[0].min, "0");
    assert_eq!(description.columns[0].max, "59999");
}

#[test]
fn a_thousand_idle_connections_do_not_keep_a_scan_from_working() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &[]);
    let mut wire = Wire::connect(cell.address);
    wire.load("t", 4, 1_000);
    // The descriptor limit of this process may be lower than two thousand; a thousand and some fit everywhere.
    let idle: Vec<Wire> = (0..1_000).map(|_| Wire::connect(cell.address)).collect();
    assert_first_rows(&wire.scan(&everything("t")).unwrap(), 4_000);
    let status: proto::CellStatus = wire.ask(FrameKind::DescribeCell, &proto::DescribeCell {}).unwrap();
    assert!(status.sessions >= 1_001, "{} sessions", status.sessions);
    drop(idle);
    assert_first_rows(&wire.scan(&everything("t")).unwrap(), 4_000);
}

#[test]
fn sessions_over_the_limit_are_refused_with_overloaded() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &["--sessions-max", "2"]);
    let (_one, _two) = (Wire::connect(cell.address), Wire::connect(cell.address));
    let error: proto::Error = Wire::open(cell.address).receive().unwrap().message().unwrap();
    assert_eq!(code(&error), ErrorCode::Overloaded);
    assert!(error.message.contains("sessions_max"), "{}", error.message);
}

#[test]
fn a_client_that_reads_nothing_is_disconnected_and_the_others_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let options = ["--dead-peer-timeout", "700ms", "--heartbeat-interval", "200ms"];
    let cell = TestCell::start(folder.path(), &options);
    let mut wire = Wire::connect(cell.address);
    wire.load("t", 40, 20_000);
    let mut deaf = Wire::connect(cell.address);
    deaf.start_scan(&everything("t"), 100_000, 0);
    let until = Instant::now() + PATIENCE;
    loop {
        // Anything this client sends keeps it alive; only its not reading can end it.
        let heartbeat =
            encode_frame(FrameKind::Heartbeat, 0, &proto::Heartbeat { nonce: 1, reply: true }, &[]).unwrap();
        if deaf.stream.write_all(&heartbeat).is_err() {
            break;
        }
        assert!(Instant::now() < until, "the client that does not read is still connected");
        let rows: usize =
            wire.scan(&ScanText { limit: Some(10), ..everything("t") }).unwrap().iter().map(|b| b.num_rows()).sum();
        assert_eq!(rows, 10);
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_silent_session_gets_heartbeats_and_is_closed_when_it_does_not_answer() {
    let folder = tempfile::tempdir().unwrap();
    let options = ["--dead-peer-timeout", "600ms", "--heartbeat-interval", "150ms"];
    let cell = TestCell::start(folder.path(), &options);
    let mut silent = Wire::connect(cell.address);
    let mut heartbeats = 0;
    while let Some(frame) = silent.receive_raw() {
        assert_eq!(frame.kind, FrameKind::Heartbeat);
        heartbeats += 1;
    }
    assert!(heartbeats >= 2, "{heartbeats} heartbeats");
    // One that answers stays.
    let mut alive = Wire::connect(cell.address);
    let until = Instant::now() + Duration::from_millis(1_500);
    while Instant::now() < until {
        let frame = alive.receive_raw().expect("a session that answers stays open");
        let heartbeat: proto::Heartbeat = frame.message().unwrap();
        alive.send(FrameKind::Heartbeat, 0, &proto::Heartbeat { reply: true, ..heartbeat }, &[]);
    }
}

#[test]
fn no_more_frames_come_than_there_are_credits() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &[]);
    let mut wire = Wire::connect(cell.address);
    wire.load("t", 40, 10_000);
    let id = wire.start_scan(&everything("t"), 2, 0);
    for _ in 0..2 {
        assert_eq!(wire.receive().unwrap().kind, FrameKind::FilteredResultSet);
    }
    // Without credit nothing more comes, and another request is answered meanwhile.
    wire.stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wire.receive())).is_err());
    wire.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(wire.tables().len(), 1);
    // Cancelled: an error for the request, Done for the cancel.
    let cancel = wire.id();
    wire.send(FrameKind::Cancel, cancel, &proto::Cancel { request_id: id }, &[]);
    let frame = wire.receive().unwrap();
    assert_eq!((frame.kind, frame.request_id), (FrameKind::Error, id));
    assert_eq!(code(&frame.message().unwrap()), ErrorCode::Cancelled);
    let frame = wire.receive().unwrap();
    assert_eq!((frame.kind, frame.request_id), (FrameKind::Done, cancel));
    // A cancel of what is not there is done, too.
    wire.ask::<proto::Done>(FrameKind::Cancel, &proto::Cancel { request_id: 4711 }).unwrap();
}

#[test]
fn a_request_ends_at_its_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &[]);
    let mut wire = Wire::connect(cell.address);
    wire.load("t", 40, 10_000);
    let began = Instant::now();
    // One credit: the request cannot end by itself.
    let id = wire.start_scan(&everything("t"), 1, 200);
    assert_eq!(wire.receive().unwrap().kind, FrameKind::FilteredResultSet);
    let frame = wire.receive().unwrap();
    assert_eq!((frame.kind, frame.request_id), (FrameKind::Error, id));
    assert_eq!(code(&frame.message().unwrap()), ErrorCode::DeadlineExceeded);
    assert!(began.elapsed() >= Duration::from_millis(190));
    assert_eq!(wire.tables().len(), 1);
}

#[test]
fn requests_over_the_limit_are_refused_and_ids_in_use_end_the_connection() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &["--requests-in-flight-max", "2"]);
    let mut wire = Wire::connect(cell.address);
    wire.load("t", 20, 10_000);
    let first = wire.start_scan(&everything("t"), 1, 0);
    wire.start_scan(&everything("t"), 1, 0);
    for _ in 0..2 {
        assert_eq!(wire.receive().unwrap().kind, FrameKind::FilteredResultSet);
    }
    let error = wire.ask::<proto::TableList>(FrameKind::ListTables, &proto::ListTables {}).unwrap_err();
    assert_eq!(code(&error), ErrorCode::Overloaded);
    wire.ask::<proto::Done>(FrameKind::Cancel, &proto::Cancel { request_id: first }).unwrap_err();
    let mut other = Wire::connect(cell.address);
    let id = other.start_scan(&everything("t"), 1, 0);
    assert_eq!(other.receive().unwrap().kind, FrameKind::FilteredResultSet);
    other.send(FrameKind::ListTables, id, &proto::ListTables {}, &[]);
    let frames: Vec<_> = std::iter::from_fn(|| other.receive()).collect();
    let error: proto::Error = frames.last().unwrap().message().unwrap();
    assert_eq!(code(&error), ErrorCode::Protocol);
}

#[test]
fn every_row_group_is_scanned_or_counted_as_pruned() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &["--cores", "2"]);
    let mut wire = Wire::connect(cell.address);
    wire.load("t", 8, 100_000);
    let mut ask = |filter: Option<&str>| {
        let text = ScanText { filter: filter.map(Into::into), select: vec!["id".into()], ..everything("t") };
        let (rows, statistics) = wire.scan_with_statistics(&text).unwrap();
        (rows.iter().map(|batch| batch.num_rows()).sum::<usize>(), statistics)
    };
    let (rows, all) = ask(None);
    assert_eq!((rows, all.row_groups_pruned), (800_000, 0));
    assert!(all.row_groups_total >= 7, "{all:?}");
    // One row group may have it, on one core or the other; none may have the last.
    for (filter, wanted, groups) in [("id = 3", 1, 1), ("id = 799999", 1, 1), ("id = 400000", 1, 1), ("id < 0", 0, 0)] {
        let (rows, one) = ask(Some(filter));
        assert_eq!(rows, wanted, "{filter}");
        assert_eq!((one.row_groups_total, one.blocks_total), (all.row_groups_total, all.blocks_total), "{filter}");
        assert_eq!(one.row_groups_total - one.row_groups_pruned, groups, "{filter}");
    }
}

#[test]
fn errors_name_what_is_there_and_bring_the_current_schema() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &[]);
    let mut wire = Wire::connect(cell.address);
    let unknown = wire.scan(&everything("nope")).unwrap_err();
    assert_eq!(code(&unknown), ErrorCode::UnknownTable);
    assert!(unknown.message.contains("there are no tables"), "{}", unknown.message);
    wire.load("orders", 1, 100);
    let unknown = wire.scan(&everything("nope")).unwrap_err();
    assert!(unknown.message.contains("orders"), "{}", unknown.message);
    let stale = proto::PredicatePushdownRequest { table: "orders".into(), schema_hash: 12345, ..Default::default() };
    let stale = wire.ask::<proto::FilteredResultSet>(FrameKind::PredicatePushdownRequest, &stale).unwrap_err();
    assert_eq!(code(&stale), ErrorCode::StaleSchema);
    assert_eq!(convert::schema_from_proto(&stale.current_schema.unwrap()).unwrap(), schema());
    assert_eq!(stale.current_schema_hash, schema().hash());
    let search = proto::VectorSearchRequest { table: "orders".into(), ..Default::default() };
    let search = wire.ask::<proto::Done>(FrameKind::VectorSearchRequest, &search).unwrap_err();
    assert_eq!(code(&search), ErrorCode::UnknownColumn);
    assert!(search.message.contains("vector columns are []"), "{}", search.message);
    let kv = wire.ask::<proto::Done>(FrameKind::KeyValueRequest, &proto::KeyValueRequest::default()).unwrap_err();
    assert_eq!(code(&kv), ErrorCode::UnsupportedPlan);
    assert!(kv.message.contains("KeyValueRequest"));
    let exists = wire.load_begin([9; 16], "orders").unwrap_err();
    assert_eq!(code(&exists), ErrorCode::TableExists);
}

#[test]
fn tables_of_two_thousand_columns_are_made_described_and_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &[]);
    let mut wire = Wire::connect(cell.address);
    let fields = (0..2_000).map(|index| Field::new(format!("column_{index}"), DataType::Int32, true)).collect();
    let wide = Schema::new(fields).unwrap();
    let create = proto::CreateTable { name: "wide".into(), schema: Some(convert::schema_to_proto(&wide)), shards: 0 };
    wire.ask::<proto::Done>(FrameKind::CreateTable, &create).unwrap();
    assert_eq!(code(&wire.ask::<proto::Done>(FrameKind::CreateTable, &create).unwrap_err()), ErrorCode::TableExists);
    let description: proto::TableDescription =
        wire.ask(FrameKind::DescribeTable, &proto::DescribeTable { name: "wide".into() }).unwrap();
    assert_eq!(description.schema.unwrap().columns.len(), 2_000);
    let drop = |if_exists| proto::DropTable { name: "wide".into(), if_exists };
    wire.ask::<proto::Done>(FrameKind::DropTable, &drop(false)).unwrap();
    wire.ask::<proto::Done>(FrameKind::DropTable, &drop(true)).unwrap();
    assert_eq!(
        code(&wire.ask::<proto::Done>(FrameKind::DropTable, &drop(false)).unwrap_err()),
        ErrorCode::UnknownTable
    );
}

#[test]
fn batches_that_break_the_schema_fail_the_load_with_the_number_of_the_batch() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &[]);
    let mut wire = Wire::connect(cell.address);
    wire.load_begin([3; 16], "t").unwrap();
    wire.load_batch([3; 16], 0, &batch(0, 10)).unwrap();
    let body = proto::LoadBatch { load_id: vec![3; 16].into(), batch: 1, more: false, rows: 10 };
    wire.send(FrameKind::LoadBatch, 1, &body, b"this is no Arrow message");
    let error = loop {
        let frame = wire.receive().unwrap();
        if frame.kind == FrameKind::Error {
            break frame.message::<proto::Error>().unwrap();
        }
    };
    assert!(error.message.starts_with("batch 1, rows from 10 of the load: "), "{}", error.message);
    // The load can be taken up again from what is durable.
    let mut again = Wire::connect(cell.address);
    let state = again.load_begin([3; 16], "t").unwrap();
    assert!(state.durable_batches <= 1);
}

#[test]
fn draining_lets_running_requests_end_and_refuses_new_ones() {
    let folder = tempfile::tempdir().unwrap();
    let mut cell = TestCell::start(folder.path(), &[]);
    let mut wire = Wire::connect(cell.address);
    wire.load("t", 40, 10_000);
    let id = wire.start_scan(&everything("t"), 1, 0);
    let first = wire.receive().unwrap();
    assert_eq!(first.kind, FrameKind::FilteredResultSet);
    cell.ask_to_stop();
    // The notice comes while the request is under way; the load before it gave one, too.
    let draining = |notice: &proto::CacheInvalidationNotice| {
        notice.reason() == proto::cache_invalidation_notice::Reason::CellDraining
    };
    while !wire.notices.iter().any(draining) {
        let frame = wire.receive_raw().unwrap();
        if frame.kind == FrameKind::CacheInvalidationNotice {
            wire.notices.push(frame.message().unwrap());
        }
    }
    let sequences: Vec<u64> = wire.notices.iter().map(|notice| notice.sequence).collect();
    assert_eq!(sequences, [1, 2]);
    assert_eq!(wire.notices[0].reason(), proto::cache_invalidation_notice::Reason::DataChanged);
    assert_eq!(wire.notices[0].table, "t");
    let refused = wire.ask::<proto::TableList>(FrameKind::ListTables, &proto::ListTables {}).unwrap_err();
    assert_eq!(code(&refused), ErrorCode::Draining);
    let mut rows = 0;
    wire.send(FrameKind::Credit, id, &proto::Credit { request_id: id, count: 10_000 }, &[]);
    loop {
        let frame = wire.receive().expect("the running request ends before the cell does");
        let message: proto::FilteredResultSet = frame.message().unwrap();
        rows += message.rows;
        if message.last {
            break;
        }
    }
    assert_eq!(rows, 400_000);
    assert!(cell.wait().success());
}

#[test]
fn metrics_and_the_ready_file_are_served() {
    use std::io::Read;
    let folder = tempfile::tempdir().unwrap();
    let ready = folder.path().join("ready");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let listen = format!("127.0.0.1:{port}");
    let mut command = std::process::Command::new(cell::CELL);
    command.arg("run").arg("--volume").arg(cell::volume_of(folder.path()));
    command.args([
        "--insecure",
        "--port",
        "0",
        "--cache",
        "16MiB",
        "--auto-format",
        "true",
        "--auto-format-size",
        "256MiB",
    ]);
    command.args(["--metrics-listen", &listen, "--log-format", "json", "--ready-file", ready.to_str().unwrap()]);
    let mut child = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let until = Instant::now() + PATIENCE;
    let line = loop {
        assert!(Instant::now() < until);
        match std::fs::read_to_string(&ready) {
            Ok(line) if line.ends_with('\n') => break line,
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let address = line.trim().strip_prefix("ready hidb+plain://").unwrap().parse().unwrap();
    let mut wire = Wire::connect(address);
    wire.load("t", 2, 1_000);
    // Once from the device, once from the cache.
    wire.scan(&everything("t")).unwrap();
    wire.scan(&everything("t")).unwrap();
    let mut http = std::net::TcpStream::connect(&listen).unwrap();
    http.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    http.read_to_string(&mut text).unwrap();
    let sum = |name: &str| -> f64 {
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    };
    assert_eq!(sum("heliostat_rows_returned_total{"), 4_000.0, "{text}");
    assert_eq!(sum("heliostat_rows_loaded_total{"), 2_000.0);
    assert!(sum("heliostat_request_seconds_count{") >= 3.0);
    assert!(sum("heliostat_device_read_bytes_total{") > 0.0);
    assert!(sum("heliostat_cache_misses_total{") > 0.0, "{text}");
    assert!(sum("heliostat_cache_hits_total{") > 0.0, "{text}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_command_line_says_what_is_wrong_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let volume = folder.path().join("v");
    let volume = volume.to_str().unwrap();
    let (code, out, _) = tool(&["--print-config"]);
    assert_eq!(code, 0);
    assert!(out.contains("# Memory of the block cache") && out.contains("cache = \"25%\""), "{out}");
    let (code, out, _) = tool(&["--version"]);
    assert_eq!((code, out.trim()), (0, concat!("heliostat-cell ", env!("CARGO_PKG_VERSION"))));
    let (code, _, err) = tool(&["run", "--listen", "0.0.0.0:7400", "--volume", volume]);
    assert_eq!(code, 2);
    assert!(err.contains("loopback") && err.contains("TLS") && err.trim().lines().count() == 1, "{err}");
    let file = folder.path().join("cell.toml");
    std::fs::write(&file, "cahce = \"1GiB\"\n").unwrap();
    let (code, _, err) = tool(&["--config", file.to_str().unwrap()]);
    assert_eq!(code, 2);
    assert!(err.contains("cahce"), "{err}");
    assert_eq!(tool(&["--no-such-flag"]).0, 2);
    let (code, _, err) = tool(&["run", "--volume", volume]);
    assert_eq!(code, 1);
    assert!(err.contains("heliostat-cell format"), "{err}");
    let (code, out, err) = tool(&["format", "--volume", volume, "--size", "64MiB"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("formatted"));
    let (code, _, err) = tool(&["format", "--volume", volume]);
    assert_eq!(code, 1);
    assert!(err.contains("--force"), "{err}");
    assert_eq!(tool(&["format", "--volume", volume, "--size", "64MiB", "--force"]).0, 0);
    let (code, out, _) = tool(&["check", "--deep", "--json", "--volume", volume]);
    assert_eq!(code, 0);
    assert!(out.contains("\"clean\":true"), "{out}");
}

#[test]
fn a_load_that_does_not_fit_fails_with_volume_full_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let options = ["--auto-format-size", "2MiB", "--load-idle-flush", "1ms", "--merge-interval", "0ms"];
    let cell = TestCell::start(folder.path(), &options);
    let mut wire = Wire::connect(cell.address);
    wire.load("small", 1, 100);
    let free = |wire: &mut Wire| -> u64 {
        wire.ask::<proto::CellStatus>(FrameKind::DescribeCell, &proto::DescribeCell {}).unwrap().free_bytes
    };
    let before = free(&mut wire);
    let mut loader = Wire::connect(cell.address);
    loader.load_begin([8; 16], "large").unwrap();
    // Less than the load's window, several times the volume; what comes after the error is dropped.
    for number in 0..30 {
        loader.load_batch([8; 16], number, &batch(number, 20_000)).unwrap();
    }
    let error = loop {
        let frame = loader.receive().expect("an Error before the end");
        if frame.kind == FrameKind::Error {
            break frame.message::<proto::Error>().unwrap();
        }
    };
    assert_eq!(code(&error), ErrorCode::VolumeFull, "{}", error.message);
    let names: Vec<String> = wire.tables().into_iter().map(|table| table.name).collect();
    assert_eq!(names, ["small"]);
    assert_eq!(free(&mut wire), before);
    assert_first_rows(&wire.scan(&everything("small")).unwrap(), 100);
    drop((wire, loader));
    assert!(cell.stop().success());
    assert_clean(folder.path());
}

#[test]
fn grouping_beyond_the_memory_of_a_request_is_a_typed_error_and_the_cell_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &["--request-memory", "1MiB"]);
    let mut wire = Wire::connect(cell.address);
    wire.load("t", 20, 10_000);
    let groups = |by: &str| ScanText {
        select: vec![by.into()],
        aggregates: vec!["count(*)".into()],
        group_by: vec![by.into()],
        ..everything("t")
    };
    let error = wire.scan(&groups("id")).unwrap_err();
    assert_eq!(code(&error), ErrorCode::MemoryExceeded);
    assert!(error.message.contains("grouping") && error.message.contains("request_memory"), "{}", error.message);
    let few: usize = wire.scan(&groups("id % 10")).unwrap().iter().map(|batch| batch.num_rows()).sum();
    assert_eq!(few, 10);
}

#[test]
fn small_segments_are_merged_in_the_background_and_the_rows_stay() {
    const LOADS: u64 = 20;
    let folder = tempfile::tempdir().unwrap();
    let segments = |wire: &mut Wire| {
        let describe = proto::DescribeTable { name: "t".into() };
        wire.ask::<proto::TableDescription>(FrameKind::DescribeTable, &describe).unwrap().segments
    };
    let cell = TestCell::start(folder.path(), &["--merge-interval", "0ms"]);
    let mut wire = Wire::connect(cell.address);
    let columns = convert::schema_to_proto(&schema());
    let create = proto::CreateTable { name: "t".into(), schema: Some(columns.clone()), shards: 2 };
    wire.ask::<proto::Done>(FrameKind::CreateTable, &create).unwrap();
    for number in 0..LOADS {
        let load_id = [number as u8 + 1; 16];
        let begin = proto::LoadBegin {
            load_id: load_id.to_vec().into(),
            table: "t".into(),
            schema: Some(columns.clone()),
            mode: proto::load_begin::Mode::Append as i32,
            shards: 2,
        };
        wire.ask::<proto::LoadState>(FrameKind::LoadBegin, &begin).unwrap();
        // Batches are numbered from 0 within a load; the rows are those of batch `number`.
        wire.load_batch(load_id, 0, &batch(number, 100)).unwrap();
        wire.load_commit(load_id, 1).unwrap();
    }
    assert_eq!(segments(&mut wire), LOADS, "without merges every load has a segment");
    drop(wire);
    assert!(cell.stop().success());

    let cell = TestCell::start(folder.path(), &["--merge-interval", "20ms"]);
    let mut wire = Wire::connect(cell.address);
    let until = Instant::now() + PATIENCE;
    // Four of a shard are merged, three are left alone.
    while segments(&mut wire) > 2 * 3 {
        assert!(Instant::now() < until, "{} segments are still there", segments(&mut wire));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_first_rows(&wire.scan(&everything("t")).unwrap(), 100 * LOADS as usize);
    drop(wire);
    assert!(cell.stop().success());
    assert_clean(folder.path());
    let cell = TestCell::start(folder.path(), &["--merge-interval", "0ms"]);
    let mut wire = Wire::connect(cell.address);
    assert!(segments(&mut wire) <= 2 * 3);
    assert_first_rows(&wire.scan(&everything("t")).unwrap(), 100 * LOADS as usize);
}

#[test]
fn a_configuration_file_starts_a_cell_and_flags_override_it() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let folder = tempfile::tempdir().unwrap();
    let (config, volume) = (folder.path().join("cell.toml"), cell::volume_of(folder.path()));
    // The printed configuration is a good file, too: what is asked for goes in place of its lines.
    let (code, printed, _) = tool(&["--print-config", "--volume", volume.to_str().unwrap()]);
    assert_eq!(code, 0);
    let wanted = [
        ("listen", "\"127.0.0.1:0\""),
        ("auto_format", "true"),
        ("auto_format_size", "\"256MiB\""),
        ("name", "\"from the file\""),
        ("cores", "2"),
        ("cache", "\"16MiB\""),
        ("metrics", "false"),
    ];
    let text: Vec<String> = printed
        .lines()
        .map(|line| match wanted.iter().find(|(key, _)| line.starts_with(&format!("{key} = "))) {
            Some((key, value)) => format!("{key} = {value}"),
            None => line.to_string(),
        })
        .collect();
    std::fs::write(&config, text.join("\n")).unwrap();
    let mut child = Command::new(cell::CELL)
        .args(["--config", config.to_str().unwrap(), "--cores", "1", "--insecure"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("ready hidb+plain://").expect("the cell starts").parse().unwrap();
    let mut wire = Wire::connect(address);
    wire.load("t", 2, 1_000);
    let status: proto::CellStatus = wire.ask(FrameKind::DescribeCell, &proto::DescribeCell {}).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((status.name.as_str(), status.cores, status.tables), ("from the file", 1, 1));
    assert_eq!((status.volume_bytes, status.cache_bytes_max), (256 << 20, 16 << 20));
    assert_eq!(status.volume_path, volume.to_str().unwrap());
}

/// The last change before a quiet time must not be the one that a client never hears of.
#[test]
fn a_client_that_did_not_read_is_told_that_notices_were_dropped() {
    use proto::cache_invalidation_notice::Reason;
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &["--dead-peer-timeout", "60s"]);
    let mut busy = Wire::connect(cell.address);
    busy.load("t", 60, 20_000);
    let mut behind = Wire::connect(cell.address);
    // Its socket is full: nothing else gets through.
    let id = behind.start_scan(&everything("t"), 100_000, 0);
    std::thread::sleep(Duration::from_millis(300));
    const CHANGES: u64 = 400;
    for number in 0..CHANGES {
        let name = format!("t{number}");
        let schema = Some(hidb::convert::schema_to_proto(&cell::schema()));
        let create = proto::CreateTable { name: name.clone(), schema, shards: 1 };
        busy.ask::<proto::Done>(FrameKind::CreateTable, &create).unwrap();
        busy.ask::<proto::Done>(FrameKind::DropTable, &proto::DropTable { name, if_exists: false }).unwrap();
    }
    behind.rows(id).unwrap();
    let told = |wire: &Wire| wire.notices.last().is_some_and(|notice| notice.reason() == Reason::ForgetAll);
    while !told(&behind) {
        let frame = behind.receive_raw().expect("the session goes on");
        if frame.kind == FrameKind::CacheInvalidationNotice {
            behind.notices.push(frame.message().unwrap());
        }
    }
    let notices = &behind.notices;
    assert!(notices.len() < CHANGES as usize, "nothing was dropped: the socket took {} notices", notices.len());
    assert!(notices.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
    let last = notices.last().unwrap();
    assert!(last.sequence > CHANGES && last.table.is_empty(), "{last:?} of {}", notices.len());
}

#[test]
fn a_load_that_is_busy_with_ordering_holds_up_nothing_else_on_its_connection_and_says_that_it_goes_on() {
    const LARGE: u64 = 30;
    const SMALL: u64 = 200;
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &["--sort-run", "256MiB"]);
    let mut wire = Wire::connect(cell.address);
    let load_id = [3; 16];
    let order = TableOrder::new(OrderKind::Clustered, &["note", "price", "id"], &schema()).unwrap();
    let begin = proto::LoadBegin {
        load_id: load_id.to_vec().into(),
        table: "t".into(),
        schema: Some(convert::definition_to_proto(&schema(), Some(&order))),
        mode: proto::load_begin::Mode::Create as i32,
        shards: 1,
    };
    wire.ask::<proto::LoadState>(FrameKind::LoadBegin, &begin).unwrap();
    let (large, small) = (batch(0, 50_000), batch(1, 3));
    for number in 0..LARGE {
        wire.load_batch(load_id, number, &large).unwrap();
    }
    // The pause closes the run, whose ordering takes a second and more.
    std::thread::sleep(Duration::from_millis(400));
    for number in LARGE..LARGE + SMALL {
        wire.load_batch(load_id, number, &small).unwrap();
    }
    let id = wire.id();
    wire.send(FrameKind::DescribeCell, id, &proto::DescribeCell {}, &[]);
    let (mut has_answer, mut news) = (false, 0);
    loop {
        let frame = wire.receive().expect("the cell closed the connection");
        match frame.kind {
            FrameKind::LoadState => {
                let state: proto::LoadState = frame.message().unwrap();
                if state.durable_batches >= LARGE {
                    break;
                }
                news += u32::from(has_answer);
            }
            _ => has_answer |= frame.request_id == id,
        }
    }
    assert!(has_answer, "the question waited for the run");
    assert!(news > 0, "no sign of life while the run was ordered");
    let state = wire.load_commit(load_id, LARGE + SMALL).unwrap();
    assert_eq!(state.durable_rows, LARGE * 50_000 + SMALL * 3);
    let counted = state.received_bytes;
    let sent = |batch| hidb::image::image_of_batch(batch).unwrap().bytes.len() as u64;
    assert_eq!(counted, LARGE * sent(&large) + SMALL * sent(&small));
}
