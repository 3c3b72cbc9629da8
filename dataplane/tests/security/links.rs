//! RDMA links with integrity on a real cell: who gets one, who is refused, and what a forged message costs. What a client
//! does with forged ones is in the client (`fabric/attacks.rs`).

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use arrow_array::RecordBatch;
use futures::TryStreamExt;
use heliostat_client::{Client, ConnectOptions, Credentials, Integrity, LoadMode, ScanRequest, Transport};
use hidb::frame::{Frame, FrameKind, encode_frame};
use hidb::session::seal::{Sealer, Way};
use hidb::{ErrorCode, proto};
use verbs_shim::verbs::Access;
use verbs_shim::{Context, Endpoint, QueuePair, Receive, RemoteBuffer, SendRequest};

use crate::cell::{TestCell, assert_first_rows, batch, schema};
use crate::fixture::*;

const DEVICE: &str = "soft:127.0.0.1";
const FABRIC: [&str; 2] = ["--fabric", DEVICE];
const REQUIRED: [&str; 4] = ["--fabric", DEVICE, "--rdma-integrity", "hmac"];

fn over_soft(credentials: Credentials, integrity: Integrity) -> ConnectOptions {
    ConnectOptions { transport: Transport::Device("soft".into()), integrity, ..options(credentials) }
}

async fn connect_by(cell: &TestCell, scheme: &str, options: ConnectOptions) -> hidb::Result<Client> {
    Client::connect(&format!("{scheme}://{}", cell.address), options).await
}

async fn scan(client: &Client, request: ScanRequest) -> Vec<RecordBatch> {
    client.scan(request).await.unwrap().try_collect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_over_links_with_integrity_are_those_over_tls() {
    let site = Site::new(&[]);
    let cell = site.start(&REQUIRED);
    let loading = site.client(&cell, "root").await;
    let mut load = loading.load("t", &schema(), LoadMode::Create).await.unwrap();
    for number in 0..20 {
        load.write(&batch(number, 20_000)).await.unwrap();
    }
    load.commit().await.unwrap();
    let options = over_soft(site.credentials("root", PASSWORD), Integrity::Hmac);
    // A ring that answers go around many times, with a caller who keeps everything.
    let client = connect_by(&cell, "hidb", ConnectOptions { ring_slots: 2, ..options }).await.unwrap();
    for _ in 0..3 {
        assert_first_rows(&scan(&client, ScanRequest::table("t")).await, 400_000);
        let one = scan(&client, ScanRequest::table("t").filter("id = 123456")).await;
        assert_eq!(one.iter().map(RecordBatch::num_rows).sum::<usize>(), 1);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let statistics = client.rdma_statistics().await.unwrap();
    assert_eq!((statistics.links, statistics.in_place, statistics.corrupted), (2, 0, 0));
    assert!(statistics.copied_out > 20, "{statistics:?}");
    let place = crate::cell::volume_of(site.path());
    let (_, sessions, _) = crate::cell::tool(&["sessions", "--volume", place.to_str().unwrap()]);
    assert!(sessions.contains("integrity hmac"), "{sessions}");
    assert!(cell.stop().success());
}

#[tokio::test]
async fn a_cell_that_demands_integrity_takes_no_link_without() {
    let site = Site::new(&[]);
    let cell = site.start(&REQUIRED);
    let without = over_soft(site.credentials("root", PASSWORD), Integrity::None);
    for scheme in ["hidb", "hidb+plain"] {
        let error = connect_by(&cell, scheme, without.clone()).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Unauthenticated);
        let says = ["--rdma-integrity hmac", "hidb://", "--transport tcp"];
        assert!(says.iter().all(|what| error.message.contains(what)), "{error}");
        let tcp = ConnectOptions { transport: Transport::Tcp, ..without.clone() };
        assert!(connect_by(&cell, scheme, tcp).await.is_ok());
    }
}

#[tokio::test]
async fn integrity_needs_tls_and_both_sides_say_so() {
    let site = Site::new(&[]);
    let cell = site.start(&FABRIC);
    for transport in [Transport::Auto, Transport::Rdma, Transport::Device("soft".into())] {
        let options = ConnectOptions { transport, ..over_soft(site.credentials("root", PASSWORD), Integrity::Hmac) };
        let error = connect_by(&cell, "hidb+plain", options).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Unauthenticated);
        assert!(error.message.contains("hidb://"), "{error}");
    }
    let mut raw = Raw::plain(cell.address);
    raw.log_in("root", PASSWORD).unwrap();
    let ask = |raw: &mut Raw, integrity| {
        raw.ask(FrameKind::OpenLink, &proto::OpenLink { integrity, ..Default::default() }).unwrap_err()
    };
    let error = ask(&mut raw, 1);
    assert_eq!(error.code, ErrorCode::Unauthenticated as u32);
    assert!(error.message.contains("hidb://"), "{}", error.message);
    // A kind of integrity that is still to come is not taken for none.
    assert_eq!(ask(&mut raw, 2).code, ErrorCode::Protocol as u32);
}

/// A client of frames with a link, which can seal, and need not.
struct Forger {
    raw: Raw,
    link: u32,
    sealer: Sealer,
    pair: QueuePair,
    domain: verbs_shim::ProtectionDomain,
    _ring: RemoteBuffer,
}

impl Forger {
    fn connect(site: &Site, cell: &TestCell) -> Self {
        let mut raw = site.session(cell, "root");
        let context = Context::open(DEVICE, &Default::default()).unwrap();
        let domain = context.create_domain().unwrap();
        let queue = context.create_completion_queue(512).unwrap();
        let pair: QueuePair = domain.create_queue_pair(&queue, &queue, &Default::default()).unwrap();
        for _ in 0..32 {
            pair.post_receive(Receive::new(domain.allocate(8192).unwrap())).unwrap();
        }
        let ring = domain.expose(4 * (64 << 10), Access::LOCAL_WRITE | Access::REMOTE_WRITE).unwrap();
        let memory = ring.remote();
        let (slots, slot_bytes, generation) = (4, 64 << 10, 1);
        let request = proto::OpenLink {
            endpoint: pair.endpoint().to_bytes().to_vec().into(),
            ring: Some(proto::ResultRing { address: memory.address, key: memory.key.0, slots, slot_bytes, generation }),
            receives: 32,
            integrity: 1,
            ..Default::default()
        };
        let opened = raw.ask(FrameKind::OpenLink, &request).unwrap_or_else(|error| panic!("{}", error.message));
        let opened: proto::LinkOpened = opened.message().unwrap();
        assert_eq!(opened.integrity, 1);
        let peer = Endpoint::from_bytes(opened.endpoint[..].try_into().unwrap()).unwrap();
        pair.connect(&peer, &Default::default()).unwrap();
        let secret = raw.channel.as_ref().unwrap().link_secret().unwrap();
        let sealer = secret.client_ends(opened.link, generation).0;
        let mut forger = Forger { raw, link: opened.link, sealer, pair, domain, _ring: ring };
        let open = forger.sealed_credits(&[0, 1, 2, 3]);
        forger.send(&open);
        forger
    }

    fn credits(&self, slots: &[u32]) -> Vec<u8> {
        let free = proto::SlotsFree { link: self.link, generation: 1, slots: slots.to_vec() };
        encode_frame(FrameKind::SlotsFree, 0, &free, &[]).unwrap()
    }

    fn sealed_credits(&mut self, slots: &[u32]) -> Vec<u8> {
        let frame = self.credits(slots);
        let content = self.sealer.content(&[&frame]);
        [&self.sealer.seal(content, Way::Send)[..], &frame].concat()
    }

    fn send(&self, bytes: &[u8]) {
        let mut buffer = self.domain.allocate(bytes.len()).unwrap();
        buffer.copy_from_slice(bytes);
        self.pair.post_send(SendRequest::send(buffer)).unwrap();
    }
}

/// The next frame that is no heartbeat.
fn answer(raw: &mut Raw) -> Frame {
    loop {
        let frame = raw.receive().expect("the session goes on");
        if frame.kind != FrameKind::Heartbeat {
            return frame;
        }
    }
}

#[test]
fn a_forged_message_ends_the_link_and_not_the_session() {
    let site = Site::new(&[]);
    let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let cell = site.start(&[&FABRIC[..], &["--metrics", "true", "--metrics-listen", &metrics]].concat());
    let forgeries: [fn(&mut Forger) -> Vec<u8>; 4] = [
        |forger| forger.credits(&[]),
        |forger| {
            let mut bytes = forger.sealed_credits(&[]);
            bytes[40] ^= 1;
            bytes
        },
        // Not the next one.
        |forger| {
            forger.sealed_credits(&[]);
            forger.sealed_credits(&[])
        },
        |forger| forger.sealed_credits(&[])[..16].to_vec(),
    ];
    for forge in forgeries {
        let mut forger = Forger::connect(&site, &cell);
        let good = forger.sealed_credits(&[]);
        forger.send(&good);
        let bytes = forge(&mut forger);
        forger.send(&bytes);
        let frame = answer(&mut forger.raw);
        assert_eq!(frame.kind, FrameKind::LinkReset);
        let reset: proto::LinkReset = frame.message().unwrap();
        assert_eq!((reset.link, reset.code), (forger.link, ErrorCode::Corruption as u32));
        assert!(reset.reason.contains("MAC") && reset.reason.contains("--transport tcp"), "{}", reset.reason);
        assert_eq!(forger.raw.ask(FrameKind::ListTables, &proto::ListTables {}).unwrap().kind, FrameKind::TableList);
    }
    let mut http = TcpStream::connect(&metrics).unwrap();
    http.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    http.read_to_string(&mut text).unwrap();
    assert!(text.contains("\nheliostat_links_corrupted_total 4\n"), "{text}");
    assert!(cell.stop().success());
}
