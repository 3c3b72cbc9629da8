//! Sessions over RDMA, by the user-space soft-RoCE on loopback: answers, slots, credits, resets, clients that lie.

mod cell;

use std::time::Duration;

use arrow_array::{Decimal64Array, Int64Array, RecordBatch};
use cell::{TestCell, Wire, assert_first_rows, everything};
use futures::StreamExt;
use heliostat_client::{Checksum, Client, ConnectOptions, ScanRequest, Transport};
use hidb::frame::{FrameKind, encode_frame};
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
fn thirty_million_rows_are_kept_through_sixteen_slots() {
    const ROWS: usize = 30_000_000;
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &FABRIC);
    Wire::connect(cell.address).load("t", 300, ROWS / 300);
    runtime().block_on(async {
        let client = connect(&cell, ConnectOptions { ring_slots: 16, ..soft() }).await;
        let batches = collect(&client, ScanRequest::table("t").select(["id", "price"])).await.unwrap();
        let mut seen = vec![false; ROWS];
        for batch in &batches {
            let ids = batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap();
            let prices = batch.column(1).as_any().downcast_ref::<Decimal64Array>().unwrap();
            for (id, price) in ids.values().iter().zip(prices.values()) {
                assert!(!std::mem::replace(&mut seen[*id as usize], true), "row {id} came twice");
                assert_eq!(*price, id * 31 % 100_000, "price of row {id}");
            }
        }
        assert!(seen.iter().all(|seen| *seen), "of {ROWS} rows some are missing");
        let statistics = client.rdma_statistics().await.unwrap();
        assert!(statistics.copied_out > 100, "{statistics:?}");
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
    /// Outlives what was made of it.
    context: verbs_shim::Context,
    domain: verbs_shim::ProtectionDomain,
    pair: verbs_shim::QueuePair,
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
        Self::connect_to(cell, true)
    }

    /// With a link to the home core, or to the other one.
    fn connect_to(cell: &TestCell, is_home: bool) -> Self {
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
        let request = open_request(&pair, &ring);
        let mut opened: proto::LinkOpened = wire.ask(FrameKind::OpenLink, &request).unwrap();
        if !is_home {
            wire.ask::<proto::Done>(FrameKind::CloseLink, &proto::CloseLink { link: opened.link }).unwrap();
            let other = proto::OpenLink { core: 3 - opened.core, ..request };
            opened = wire.ask(FrameKind::OpenLink, &other).unwrap();
        }
        let endpoint = opened.endpoint[..].try_into().unwrap();
        pair.connect(&verbs_shim::Endpoint::from_bytes(endpoint).unwrap(), &Default::default()).unwrap();
        Liar { wire, link: opened.link, ring, queue, context, domain, pair }
    }

    fn give(&mut self, generation: u32, slots: &[u32]) {
        let free = proto::SlotsFree { link: self.link, generation, slots: slots.to_vec() };
        self.wire.send(FrameKind::SlotsFree, 0, &free, &[]);
    }

    /// Sends a frame on the link.
    fn send(&self, kind: FrameKind, body: &impl prost::Message) {
        let frame = encode_frame(kind, 1, body, &[]).unwrap();
        let mut buffer = self.domain.allocate(frame.len()).unwrap();
        buffer.copy_from_slice(&frame);
        self.pair.post_send(verbs_shim::SendRequest::send(buffer)).unwrap();
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
    let good = open_request(&liar.pair, &liar.ring);
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

/// What each core has open, as an operator sees it.
fn sessions(folder: &std::path::Path) -> Vec<String> {
    let volume = cell::volume_of(folder);
    let (code, out, err) = cell::tool(&["sessions", "--json", "--volume", volume.to_str().unwrap()]);
    assert_eq!(code, 0, "{err}");
    out.lines().map(String::from).collect()
}

#[test]
fn frames_that_do_not_travel_on_links_end_the_session() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &FABRIC);
    type Sends = fn(&Liar);
    let frames: [(FrameKind, Sends); 6] = [
        (FrameKind::Hello, |liar| liar.send(FrameKind::Hello, &proto::Hello::default())),
        (FrameKind::Authenticate, |liar| liar.send(FrameKind::Authenticate, &proto::Authenticate::default())),
        (FrameKind::LoadBegin, |liar| liar.send(FrameKind::LoadBegin, &proto::LoadBegin::default())),
        (FrameKind::DropTable, |liar| liar.send(FrameKind::DropTable, &proto::DropTable::default())),
        (FrameKind::OpenLink, |liar| liar.send(FrameKind::OpenLink, &proto::OpenLink::default())),
        (FrameKind::AddUser, |liar| liar.send(FrameKind::AddUser, &proto::AddUser::default())),
    ];
    let refused = |mut liar: Liar, what: &str| {
        let frame = liar.wire.receive().expect("an error frame");
        let error: proto::Error = frame.message().unwrap();
        assert_eq!((frame.kind, frame.request_id), (FrameKind::Error, 0), "{what}");
        assert_eq!(error.code, ErrorCode::Protocol as u32, "{what}: {}", error.message);
        assert!(error.message.contains(what), "{what}: {}", error.message);
        assert!(liar.wire.receive().is_none(), "{what}: the connection goes on");
    };
    for is_home in [true, false] {
        for (kind, send) in frames {
            let mut liar = Liar::connect_to(&cell, is_home);
            liar.give(1, &[0, 1, 2, 3]);
            send(&liar);
            refused(liar, kind.name());
        }
    }
    // Questions go on the link to the home core only.
    let ask = |is_home| {
        let mut liar = Liar::connect_to(&cell, is_home);
        liar.give(1, &[0, 1, 2, 3]);
        liar.send(FrameKind::Execute, &proto::Execute::default());
        liar
    };
    refused(ask(false), FrameKind::Execute.name());
    let frame = ask(true).wire.receive().expect("an error frame");
    let error: proto::Error = frame.message().unwrap();
    assert_eq!((frame.request_id, error.code), (1, ErrorCode::UnknownStatement as u32));
    assert!(Wire::connect(cell.address).tables().is_empty());
    assert!(cell.stop().success());
}

#[test]
fn a_link_to_a_core_takes_the_place_of_the_one_that_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &[&FABRIC[..], &["--links-max", "1"]].concat());
    Wire::connect(cell.address).load("t", 2, 20_000);
    let mut first = Liar::connect(&cell);
    first.give(1, &[0, 1, 2, 3]);
    std::thread::sleep(Duration::from_millis(100));
    // A question waits for slots on the link that is about to go.
    let id = first.wire.start_scan(&everything("t"), 1000, 0);
    assert!(!first.drain().is_empty());
    let Liar { mut wire, link, ring, queue: _queue, context, domain, pair } = first;
    let queue = context.create_completion_queue(512).unwrap();
    let second: verbs_shim::QueuePair = domain.create_queue_pair(&queue, &queue, &Default::default()).unwrap();
    for _ in 0..32 {
        second.post_receive(verbs_shim::Receive::new(domain.allocate(8192).unwrap())).unwrap();
    }
    let mut request = open_request(&second, &ring);
    request.ring.as_mut().unwrap().generation = 2;
    let open = wire.id();
    wire.send(FrameKind::OpenLink, open, &request, &[]);
    let (mut opened, mut has_failed, mut has_reset) = (None, false, false);
    while opened.is_none() || !has_failed || !has_reset {
        let frame = wire.receive().expect("the session goes on");
        match frame.kind {
            FrameKind::LinkOpened => opened = Some(frame.message::<proto::LinkOpened>().unwrap()),
            FrameKind::LinkReset => {
                assert_eq!(frame.message::<proto::LinkReset>().unwrap().link, link);
                has_reset = true;
            }
            FrameKind::Error => {
                assert_eq!(
                    (frame.request_id, frame.message::<proto::Error>().unwrap().code),
                    (id, ErrorCode::Unavailable as u32)
                );
                has_failed = true;
            }
            other => panic!("{other:?}"),
        }
    }
    let opened = opened.unwrap();
    assert_ne!(opened.link, link);
    let endpoint = verbs_shim::Endpoint::from_bytes(opened.endpoint[..].try_into().unwrap()).unwrap();
    second.connect(&endpoint, &Default::default()).unwrap();
    drop(pair);
    // Credits of the old one are nobody's; those of the new one count.
    let mut again = Liar { wire, link, ring, queue, context, domain, pair: second };
    again.give(1, &[0]);
    again.link = opened.link;
    again.give(2, &[2]);
    std::thread::sleep(Duration::from_millis(100));
    again.wire.start_scan(&everything("t"), 1000, 0);
    let slots: Vec<u32> = again.drain().iter().filter_map(|done| done.immediate).map(|data| data & 4095).collect();
    assert_eq!(slots, [2]);
    let report = sessions(folder.path());
    assert_eq!(report.len(), 1);
    assert_eq!(report[0].matches("\"generation\"").count(), 1, "{}", report[0]);
}

/// One link per core is all there is: one that is left behind by a session would be missed.
#[test]
fn a_link_that_is_opened_as_its_session_ends_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &[&FABRIC[..], &["--links-max", "1"]].concat());
    Wire::connect(cell.address).load("t", 2, 20_000);
    let context = verbs_shim::Context::open("soft:127.0.0.1", &Default::default()).unwrap();
    let domain = context.create_domain().unwrap();
    let queue = context.create_completion_queue(512).unwrap();
    let pair: verbs_shim::QueuePair = domain.create_queue_pair(&queue, &queue, &Default::default()).unwrap();
    let access = verbs_shim::verbs::Access::LOCAL_WRITE | verbs_shim::verbs::Access::REMOTE_WRITE;
    let ring = domain.expose(SLOTS as usize * (64 << 10), access).unwrap();
    for round in 0..60u64 {
        let mut wire = Wire::connect(cell.address);
        for core in [1, 2] {
            let id = wire.id();
            wire.send(FrameKind::OpenLink, id, &proto::OpenLink { core, ..open_request(&pair, &ring) }, &[]);
        }
        // At once, and somewhat later: in the middle of it now and then.
        std::thread::sleep(Duration::from_micros(round % 20 * 50));
        drop(wire);
    }
    let until = std::time::Instant::now() + cell::PATIENCE;
    while !sessions(folder.path()).is_empty() {
        assert!(std::time::Instant::now() < until, "{:?}", sessions(folder.path()));
        std::thread::sleep(Duration::from_millis(20));
    }
    runtime().block_on(async {
        let client = connect(&cell, soft()).await;
        for _ in 0..2 {
            assert_first_rows(&collect(&client, ScanRequest::table("t")).await.unwrap(), 40_000);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert_eq!(
            client.rdma_statistics().await.unwrap().links,
            2,
            "a link of a session that is gone takes the place"
        );
    });
    assert!(cell.stop().success());
}
