//! A link with integrity, and a peer over a real queue pair (the user-space soft-RoCE) that can do everything to it: first
//! what a cell does, then what somebody does who knows all but the keys.

use std::sync::Arc;
use std::time::Duration;

use hidb::frame::{Frame, FrameKind, encode_frame};
use hidb::session::frames::{Checksum, immediate, read_send, slot_head};
use hidb::session::seal::{LinkSecret, Opener, Sealer, Way};
use hidb::{ErrorCode, proto};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use verbs_shim::verbs::{MemoryKey, WcOpcode};
use verbs_shim::{
    Buffer, Completion, CompletionQueue, Context, Endpoint, ProtectionDomain, QueuePair, Receive, RemoteMemory,
    SendRequest,
};

use super::device::{Event, FabricDevice};
use super::link::{Link, Shape};
use super::protection::Protection;

const DEVICE: &str = "soft:127.0.0.1";
const LINK: u32 = 3;
const GENERATION: u32 = 2;
const SLOTS: u32 = 4;
const SLOT_BYTES: u32 = 64 << 10;
const REQUEST: u64 = 7;
/// Marks the request that writes over a slot.
const OVERWRITE: u64 = 1;
const PATIENCE: Duration = Duration::from_secs(10);

fn secret() -> LinkSecret {
    LinkSecret::new([5; 32])
}

/// A client's link, and the other end of it.
struct Peer {
    pair: QueuePair<Buffer>,
    queue: CompletionQueue<Buffer>,
    domain: ProtectionDomain,
    ring: RemoteMemory,
    sealer: Sealer,
    opener: Opener,
    link: Arc<Link>,
    device: FabricDevice,
    events: UnboundedReceiver<Event>,
}

impl Peer {
    fn connect() -> Self {
        let (sender, events) = unbounded_channel();
        let sink = move |_: &Arc<Link>, event: Event| {
            let _ = sender.send(event);
            Ok(())
        };
        let shape = Shape { slots: SLOTS, slot_bytes: SLOT_BYTES };
        let protection = Protection::new(Checksum::Full, Some(secret()));
        let device = FabricDevice::open(DEVICE, 1, shape, protection, Box::new(sink)).unwrap();
        let link = device.link(1, GENERATION).unwrap();
        let request = link.open_request(0).unwrap();
        assert_eq!((request.integrity, request.checksum), (1, 2));
        let context = Context::open(DEVICE, &Default::default()).unwrap();
        let domain = context.create_domain().unwrap();
        let queue = context.create_completion_queue(256).unwrap();
        let pair: QueuePair<Buffer> = domain.create_queue_pair(&queue, &queue, &Default::default()).unwrap();
        for _ in 0..16 {
            pair.post_receive(Receive::new(domain.allocate(8 << 10).unwrap())).unwrap();
        }
        pair.connect(&Endpoint::from_bytes(request.endpoint[..].try_into().unwrap()).unwrap(), &Default::default())
            .unwrap();
        link.set_number(LINK);
        let endpoint = pair.endpoint().to_bytes().to_vec().into();
        link.opened(&proto::LinkOpened { link: LINK, core: 1, endpoint, integrity: 1 }).unwrap();
        let ring = request.ring.unwrap();
        let length = u64::from(SLOTS * SLOT_BYTES);
        let ring = RemoteMemory { address: ring.address, length, key: MemoryKey(ring.key) };
        let (sealer, opener) = secret().cell_ends(LINK, GENERATION);
        let mut peer = Peer { pair, queue, domain, ring, sealer, opener, link, device, events };
        assert_eq!(peer.slots_given(), [0, 1, 2, 3]);
        peer
    }

    /// Waits for a completion of this side. Unsignalled requests come with a later one, and do not matter.
    fn completion(&self, is_wanted: impl Fn(&Completion<Buffer>) -> bool) -> Completion<Buffer> {
        loop {
            let mut done = Vec::new();
            assert!(self.queue.wait(&mut done, PATIENCE).unwrap() > 0, "nothing completes");
            if let Some(wanted) = done.into_iter().find(&is_wanted) {
                return wanted;
            }
        }
    }

    /// The slots of the next SlotsFree, which is sealed.
    fn slots_given(&mut self) -> Vec<u32> {
        let done = self.completion(|done| done.opcode == WcOpcode::Recv);
        let bytes = &done.buffer.as_ref().expect("a receive buffer")[..done.length_bytes as usize];
        let frame = read_send(self.opener.open_send(bytes).unwrap(), Checksum::None).unwrap();
        assert_eq!(frame.kind, FrameKind::SlotsFree);
        frame.message::<proto::SlotsFree>().unwrap().slots
    }

    fn buffer(&self, bytes: &[u8]) -> Buffer {
        let mut buffer = self.domain.allocate(bytes.len()).unwrap();
        buffer.copy_from_slice(bytes);
        buffer
    }

    fn send(&self, bytes: &[u8]) {
        self.pair.post_send(SendRequest::send(self.buffer(bytes)).unsignalled()).unwrap();
    }

    /// Writes into a slot, and says so.
    fn write(&self, slot: u32, immediate: u32, bytes: &[u8]) {
        let to = self.ring.part(u64::from(slot * SLOT_BYTES), SLOT_BYTES.into()).unwrap();
        let request = SendRequest::write(self.buffer(bytes), to).immediate(immediate).unsignalled();
        self.pair.post_send(request).unwrap();
    }

    /// Writes over a slot, and says nothing; waits until it is done.
    fn overwrite(&self, slot: u32, bytes: &[u8]) {
        let to = self.ring.part(u64::from(slot * SLOT_BYTES), SLOT_BYTES.into()).unwrap();
        self.pair.post_send(SendRequest::write(self.buffer(bytes), to).token(OVERWRITE)).unwrap();
        self.completion(|done| done.token == OVERWRITE);
    }

    fn seal(&mut self, way: Way, content: &[u8]) -> Vec<u8> {
        let content_hashed = self.sealer.content(&[content]);
        [&self.sealer.seal(content_hashed, way)[..], content].concat()
    }

    /// As a cell does it.
    fn write_sealed(&mut self, slot: u32, payload: &[u8]) {
        let immediate = immediate(slot, REQUEST);
        let bytes = self.seal(Way::Write { immediate }, &in_slot(payload));
        self.write(slot, immediate, &bytes);
    }

    async fn event(&mut self) -> Event {
        tokio::time::timeout(PATIENCE, self.events.recv()).await.expect("nothing happens").expect("the device is open")
    }

    async fn frame(&mut self) -> Frame {
        match self.event().await {
            Event::Frame(frame) => frame,
            Event::Ended(error) => panic!("the link ended: {error}"),
        }
    }
}

/// A frame as it lies in a slot.
fn in_slot(payload: &[u8]) -> Vec<u8> {
    let body = proto::FilteredResultSet { sequence: 1, rows: 2, ..Default::default() };
    let head = slot_head(FrameKind::FilteredResultSet, REQUEST, &body, payload.len(), 0, SLOT_BYTES as usize).unwrap();
    [&head, payload].concat()
}

/// A frame as it is sent.
fn in_send(payload: &[u8]) -> Vec<u8> {
    encode_frame(FrameKind::FilteredResultSet, REQUEST, &proto::FilteredResultSet::default(), payload).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_handed_out_stays_when_the_slot_is_written_over() {
    let mut peer = Peer::connect();
    peer.write_sealed(2, &[1; 20_000]);
    let frame = peer.frame().await;
    // The slot is the peer's again at once: the batch is a copy.
    assert_eq!(peer.slots_given(), [2]);
    peer.overwrite(2, &[9; 30_000]);
    assert_eq!((frame.request_id, &frame.payload[..]), (REQUEST, &[1; 20_000][..]));
    assert_eq!(frame.payload.as_ptr() as usize % 64, 0);
    let bytes = peer.seal(Way::Send, &in_send(b"short"));
    peer.send(&bytes);
    assert_eq!(&peer.frame().await.payload[..], b"short");
    assert_eq!((peer.link.delivered(), peer.device.corrupted()), ((0, 1), 0));
}

type Attack = fn(&mut Peer, first: &[u8]);

/// What may be done with a message, after one of the cell's (`first`, into slot 0) has arrived.
const ATTACKS: &[(&str, Attack)] = &[
    ("replayed", |peer, first| peer.write(0, immediate(0, REQUEST), first)),
    ("replayed into another slot", |peer, first| peer.write(1, immediate(1, REQUEST), first)),
    ("announced without being written", |peer, _| peer.write(1, immediate(0, REQUEST), &[9; 100])),
    ("left out", |peer, _| {
        peer.seal(Way::Send, b"never sent");
        peer.write_sealed(1, &[2; 9000]);
    }),
    ("changed in one bit of its payload", |peer, _| changed(peer, |bytes| bytes[5000] ^= 1)),
    ("changed in one bit of its head", |peer, _| changed(peer, |bytes| bytes[45] ^= 0x80)),
    ("changed in one bit of its tag", |peer, _| changed(peer, |bytes| bytes[31] ^= 1)),
    ("cut", |peer, _| changed(peer, |bytes| bytes.truncate(4000))),
    ("cut to nothing", |peer, _| changed(peer, |bytes| bytes.truncate(7))),
    ("announced for another request", |peer, _| {
        let bytes = peer.seal(Way::Write { immediate: immediate(1, REQUEST) }, &in_slot(&[2; 9000]));
        peer.write(1, immediate(1, REQUEST + 1), &bytes);
    }),
    ("announced in another slot", |peer, _| {
        let bytes = peer.seal(Way::Write { immediate: immediate(1, REQUEST) }, &in_slot(&[2; 9000]));
        peer.write(2, immediate(2, REQUEST), &bytes);
    }),
    ("sent where it should be written", |peer, _| {
        let bytes = peer.seal(Way::Write { immediate: immediate(1, REQUEST) }, &in_send(&[2; 100]));
        peer.send(&bytes);
    }),
    ("not sealed", |peer, _| peer.send(&in_send(&[2; 100]))),
    ("not sealed, in a slot", |peer, _| peer.write(1, immediate(1, REQUEST), &in_slot(&[2; 9000]))),
    ("of an earlier generation", |peer, _| {
        peer.sealer = secret().cell_ends(LINK, GENERATION - 1).0;
        peer.seal(Way::Send, b"the first one");
        peer.write_sealed(1, &[2; 9000]);
    }),
    ("of another link", |peer, _| {
        peer.sealer = secret().cell_ends(LINK + 1, GENERATION).0;
        peer.seal(Way::Send, b"the first one");
        peer.write_sealed(1, &[2; 9000]);
    }),
    ("of the client's own", |peer, _| {
        peer.sealer = secret().client_ends(LINK, GENERATION).0;
        peer.seal(Way::Send, b"the first one");
        peer.write_sealed(1, &[2; 9000]);
    }),
];

fn changed(peer: &mut Peer, change: impl Fn(&mut Vec<u8>)) {
    let immediate = immediate(1, REQUEST);
    let mut bytes = peer.seal(Way::Write { immediate }, &in_slot(&[2; 9000]));
    change(&mut bytes);
    peer.write(1, immediate, &bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_tampered_with_is_handed_out() {
    for (what, attack) in ATTACKS {
        let mut peer = Peer::connect();
        let data = immediate(0, REQUEST);
        let first = peer.seal(Way::Write { immediate: data }, &in_slot(&[1; 9000]));
        peer.write(0, data, &first);
        assert_eq!(peer.frame().await.payload.len(), 9000);
        assert_eq!(peer.slots_given(), [0]);
        attack(&mut peer, &first);
        // A good one behind it comes too late.
        peer.write_sealed(3, &[3; 9000]);
        match peer.event().await {
            Event::Frame(frame) => panic!("{what}: {} bytes were handed out", frame.payload.len()),
            Event::Ended(error) => {
                assert_eq!(error.code, ErrorCode::Corruption, "{what}: {error}");
                assert!(error.message.contains("RDMA link 3"), "{what}: {error}");
            }
        }
        assert_eq!(peer.device.corrupted(), 1, "{what}");
        assert_eq!(peer.link.delivered(), (0, 1), "{what}");
        assert!(!peer.link.is_open(), "{what}");
    }
}
