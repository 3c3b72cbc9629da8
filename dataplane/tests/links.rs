//! Sessions over RDMA, by the user-space soft-RoCE on loopback: answers, slots, credits, resets, clients that lie.

mod cell;

use std::time::Duration;

use arrow_array::RecordBatch;
use cell::{TestCell, Wire, assert_first_rows, everything};
use futures::StreamExt;
use heliostat_client::{Checksum, Client, ConnectOptions, ScanRequest, Transport};
use hidb::frame::FrameKind;
use hidb::plan::sql::ScanText;
use hidb::{ErrorCode, proto};
use tokio::runtime::Runtime;

const FABRIC: [&str; 2] = ["--fabric", "soft:127.0.0.1"];

fn soft() -> ConnectOptions {
    ConnectOptions { transport: Transport::Device("soft".into()), ..ConnectOptions::default() }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

async fn connect(cell: &TestCell, options: ConnectOptions) -> Client {
    Client::connect(&format!("hidb+plain://{}", cell.address), options).await.unwrap()
}

async fn collect(client: &Client, request: ScanRequest) -> hidb::Result<Vec<RecordBatch>> {
    let mut stream = client.scan(request).await?;
    let mut batches = Vec::new();
    while let Some(batch) = stream.next().await {
        batches.push(batch?);
    }
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    assert_eq!(stream.statistics().unwrap().rows, rows as u64);
    Ok(batches)
}

fn rows(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::num_rows).sum()
}

#[test]
fn answers_over_a_link_are_those_over_tcp() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &FABRIC);
    Wire::connect(cell.address).load("t", 20, 20_000);
    runtime().block_on(async {
        for checksum in [Checksum::Full, Checksum::Header, Checksum::None] {
            let client = connect(&cell, ConnectOptions { checksum, ..soft() }).await;
            // The first answer comes by the home core's link alone, later ones by those of both cores.
            for round in 0..3 {
                assert_first_rows(&collect(&client, ScanRequest::table("t")).await.unwrap(), 400_000);
                let one = ScanRequest::table("t").filter("id = 123456");
                assert_eq!(rows(&collect(&client, one).await.unwrap()), 1, "round {round}");
                let sum = ScanRequest::table("t").aggregates(["sum(id) as s", "count(*) as n"]).filter("id < 1000");
                assert_eq!(rows(&collect(&client, sum).await.unwrap()), 1);
                let top = ScanRequest::table("t").order_by(["id desc"]).limit(70_000);
                assert_eq!(rows(&collect(&client, top).await.unwrap()), 70_000);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let statistics = client.rdma_statistics().await.unwrap();
            assert_eq!(statistics.links, 2, "one link per core");
            assert!(statistics.in_place + statistics.copied_out > 10, "{statistics:?}");
        }
    });
    assert!(cell.stop().success());
}

#[test]
fn a_client_that_keeps_every_batch_does_not_stall() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &FABRIC);
    Wire::connect(cell.address).load("t", 40, 40_000);
    runtime().block_on(async {
        let options = ConnectOptions { ring_slots: 4, result_frames_ahead: 64, ..soft() };
        let client = connect(&cell, options).await;
        for _ in 0..2 {
            let batches = collect(&client, ScanRequest::table("t")).await.unwrap();
            assert!(batches.len() > 12, "{} batches do not fill two rings", batches.len());
            assert_first_rows(&batches, 1_600_000);
        }
        let statistics = client.rdma_statistics().await.unwrap();
        assert!(statistics.copied_out > 0 && statistics.in_place > 0, "{statistics:?}");
    });
}

#[test]
fn a_stream_that_is_not_read_stops_nobody_else_and_can_be_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &FABRIC);
    Wire::connect(cell.address).load("t", 40, 40_000);
    runtime().block_on(async {
        let options = ConnectOptions { ring_slots: 4, result_frames_ahead: 8, ..soft() };
        let client = connect(&cell, options).await;
        collect(&client, ScanRequest::table("t").limit(1)).await.unwrap();
        let mut stalled = Vec::new();
        for _ in 0..3 {
            let mut stream = client.scan(ScanRequest::table("t")).await.unwrap();
            stream.next().await.unwrap().unwrap();
            stalled.push(stream);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        for _ in 0..20 {
            let one = ScanRequest::table("t").filter("id = 7").timeout(Duration::from_secs(10));
            assert_eq!(rows(&collect(&client, one).await.unwrap()), 1);
        }
        drop(stalled);
        assert_first_rows(&collect(&client, ScanRequest::table("t")).await.unwrap(), 1_600_000);
    });
    assert!(cell.stop().success());
}

#[test]
fn transports_that_are_not_there_are_said() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &["--fabric", "none"]);
    runtime().block_on(async {
        let url = format!("hidb+plain://{}", cell.address);
        for transport in [Transport::Rdma, Transport::Device("soft".into())] {
            let options = ConnectOptions { transport, ..ConnectOptions::default() };
            let error = Client::connect(&url, options).await.unwrap_err();
            assert_eq!(error.code, ErrorCode::Unavailable);
            assert!(error.message.contains("--fabric") && error.message.contains("--transport tcp"), "{error}");
        }
        assert_eq!(connect(&cell, ConnectOptions::default()).await.rdma_statistics().await.unwrap().links, 0);
    });
}

/// A client of plain frames with a queue pair of its own, which can say anything.
struct Liar {
    wire: Wire,
    link: u32,
    ring: verbs_shim::RemoteBuffer,
    queue: verbs_shim::CompletionQueue,
    _pair: verbs_shim::QueuePair,
}

const SLOTS: u32 = 4;

fn open_request(pair: &verbs_shim::QueuePair, ring: &verbs_shim::RemoteBuffer) -> proto::OpenLink {
    let memory = ring.remote();
    proto::OpenLink {
        port: 0,
        core: 0,
        endpoint: pair.endpoint().to_bytes().to_vec().into(),
        ring: Some(proto::ResultRing {
            address: memory.address,
            key: memory.key.0,
            slots: SLOTS,
            slot_bytes: 64 << 10,
            generation: 1,
        }),
        checksum: 0,
        receives: 64,
        integrity: 0,
    }
}

impl Liar {
    fn connect(cell: &TestCell) -> Self {
        use verbs_shim::verbs::Access;
        let context = verbs_shim::Context::open("soft:127.0.0.1", &Default::default()).unwrap();
        let domain = context.create_domain().unwrap();
        let queue = context.create_completion_queue(512).unwrap();
        let pair: verbs_shim::QueuePair = domain.create_queue_pair(&queue, &queue, &Default::default()).unwrap();
        let mut buffer = domain.allocate(64 * 8192).unwrap();
        for _ in 0..63 {
            let rest = buffer.split_off(8192);
            pair.post_receive(verbs_shim::Receive::new(buffer)).unwrap();
            buffer = rest;
        }
        let ring = domain.expose(SLOTS as usize * (64 << 10), Access::LOCAL_WRITE | Access::REMOTE_WRITE).unwrap();
        let mut wire = Wire::connect(cell.address);
        let opened: proto::LinkOpened = wire.ask(FrameKind::OpenLink, &open_request(&pair, &ring)).unwrap();
        let endpoint = opened.endpoint[..].try_into().unwrap();
        pair.connect(&verbs_shim::Endpoint::from_bytes(endpoint).unwrap(), &Default::default()).unwrap();
        Liar { wire, link: opened.link, ring, queue, _pair: pair }
    }

    fn give(&mut self, generation: u32, slots: &[u32]) {
        let free = proto::SlotsFree { link: self.link, generation, slots: slots.to_vec() };
        self.wire.send(FrameKind::SlotsFree, 0, &free, &[]);
    }

    /// Completions until nothing has come for a while.
    fn drain(&self) -> Vec<verbs_shim::Completion> {
        let mut done = Vec::new();
        while self.queue.wait(&mut done, Duration::from_millis(300)).unwrap() > 0 {}
        done
    }
}

#[test]
fn a_cell_writes_no_slot_without_a_credit() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &FABRIC);
    Wire::connect(cell.address).load("t", 10, 20_000);
    let mut liar = Liar::connect(&cell);
    // Two of four: the others stay as they are, whatever is asked for.
    liar.give(1, &[1, 3]);
    std::thread::sleep(Duration::from_millis(100));
    liar.wire.start_scan(&everything("t"), 1000, 0);
    let done = liar.drain();
    let mut slots: Vec<u32> = done.iter().filter_map(|done| done.immediate).map(|data| data & 4095).collect();
    slots.sort();
    assert_eq!(slots, [1, 3]);
    for (slot, written) in [(0, false), (1, true), (2, false), (3, true)] {
        let mut start = [0; 8];
        liar.ring.read(slot * (64 << 10), &mut start);
        assert_eq!(start.starts_with(b"HIDB"), written, "slot {slot}");
    }
    // A credit makes it go on; one of another generation does not.
    liar.give(0, &[1]);
    assert!(liar.drain().is_empty());
    liar.give(1, &[3]);
    let done = liar.drain();
    assert_eq!(done.iter().filter_map(|done| done.immediate).map(|data| data & 4095).collect::<Vec<_>>(), [3]);
}

#[test]
fn credits_that_were_not_there_to_give_end_the_session() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &FABRIC);
    for (generation, slots) in [(1, vec![0, 0]), (1, vec![SLOTS]), (2, vec![0]), (1, vec![u32::MAX])] {
        let mut liar = Liar::connect(&cell);
        liar.give(generation, &slots);
        let frame = liar.wire.receive().expect("an error frame");
        let error: proto::Error = frame.message().unwrap();
        assert_eq!((frame.kind, frame.request_id, error.code), (FrameKind::Error, 0, ErrorCode::Protocol as u32));
        assert!(liar.wire.receive().is_none(), "the connection goes on");
    }
    // Nobody else is harmed.
    assert!(Wire::connect(cell.address).tables().is_empty());
    assert!(cell.stop().success());
}

#[test]
fn links_that_make_no_sense_are_refused_and_the_session_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &FABRIC);
    let mut liar = Liar::connect(&cell);
    let good = open_request(&liar._pair, &liar.ring);
    let ring = good.ring.unwrap();
    let with = |ring: proto::ResultRing| proto::OpenLink { ring: Some(ring), core: 2, ..good.clone() };
    let bad = [
        proto::OpenLink { core: 3, ..good.clone() },
        proto::OpenLink { port: 1, core: 2, ..good.clone() },
        proto::OpenLink { endpoint: vec![0; 72].into(), core: 2, ..good.clone() },
        proto::OpenLink { endpoint: vec![1].into(), core: 2, ..good.clone() },
        proto::OpenLink { ring: None, core: 2, ..good.clone() },
        proto::OpenLink { checksum: 9, core: 2, ..good.clone() },
        with(proto::ResultRing { slots: 0, ..ring }),
        with(proto::ResultRing { slots: 5000, ..ring }),
        with(proto::ResultRing { slot_bytes: 1000, ..ring }),
        with(proto::ResultRing { slot_bytes: 2 << 20, ..ring }),
        with(proto::ResultRing { address: u64::MAX - 10, ..ring }),
    ];
    for request in bad {
        let error = liar.wire.ask::<proto::LinkOpened>(FrameKind::OpenLink, &request).unwrap_err();
        assert_eq!(error.code, ErrorCode::Protocol as u32, "{}", error.message);
    }
    liar.wire.ask::<proto::Done>(FrameKind::CloseLink, &proto::CloseLink { link: liar.link }).unwrap();
    liar.wire.ask::<proto::Done>(FrameKind::CloseLink, &proto::CloseLink { link: 77 }).unwrap();
    assert!(liar.wire.tables().is_empty());
}

/// A key that the client did not register: the write fails, the request with it, and the session goes on.
#[test]
fn a_ring_with_a_wrong_key_costs_the_link_only() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &FABRIC);
    Wire::connect(cell.address).load("t", 2, 20_000);
    let mut liar = Liar::connect(&cell);
    liar.wire.ask::<proto::Done>(FrameKind::CloseLink, &proto::CloseLink { link: liar.link }).unwrap();
    let context = verbs_shim::Context::open("soft:127.0.0.1", &Default::default()).unwrap();
    let domain = context.create_domain().unwrap();
    let queue = context.create_completion_queue(512).unwrap();
    let pair: verbs_shim::QueuePair = domain.create_queue_pair(&queue, &queue, &Default::default()).unwrap();
    for _ in 0..32 {
        pair.post_receive(verbs_shim::Receive::new(domain.allocate(8192).unwrap())).unwrap();
    }
    let mut request = open_request(&pair, &liar.ring);
    request.ring.as_mut().unwrap().key ^= 0x55;
    let opened: proto::LinkOpened = liar.wire.ask(FrameKind::OpenLink, &request).unwrap();
    pair.connect(
        &verbs_shim::Endpoint::from_bytes(opened.endpoint[..].try_into().unwrap()).unwrap(),
        &Default::default(),
    )
    .unwrap();
    liar.link = opened.link;
    liar.give(1, &[0, 1, 2, 3]);
    std::thread::sleep(Duration::from_millis(100));
    let id = liar.wire.start_scan(&ScanText { table: "t".into(), ..ScanText::default() }, 1000, 0);
    let mut kinds = Vec::new();
    while !kinds.contains(&FrameKind::Error) || !kinds.contains(&FrameKind::LinkReset) {
        let frame = liar.wire.receive().expect("the session goes on");
        if frame.kind == FrameKind::Error {
            assert_eq!(frame.request_id, id);
            assert_eq!(frame.message::<proto::Error>().unwrap().code, ErrorCode::Unavailable as u32);
        }
        kinds.push(frame.kind);
    }
    assert_eq!(liar.wire.tables().len(), 1);
}
