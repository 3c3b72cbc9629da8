//! A device that does not let go of something: what it may still use stays, all else goes.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::abi::{ibv_wc, value};
use super::super::stub::{Kind, Live, Stub};
use crate::connect::{ConnectOptions, QueuePairOptions, RemoteMemory};
use crate::device::OpenOptions;
use crate::provider::RawContext;
use crate::verbs::{Access, MemoryKey};
use crate::{Buffer, CompletionQueue, Context, ProtectionDomain, QueuePair, Receive, SendRequest, StableMemory};

const REMOTE: RemoteMemory = RemoteMemory { address: 0x1000, length: 8, key: MemoryKey(0x77) };

/// Memory that says when it goes.
struct Counted {
    bytes: NonNull<u8>,
    gone: Arc<AtomicUsize>,
}

// SAFETY: the only owner of its bytes.
unsafe impl Send for Counted {}
// SAFETY: as above.
unsafe impl Sync for Counted {}

// SAFETY: a boxed array of its own, freed when dropped.
unsafe impl StableMemory for Counted {
    fn range(&self) -> (NonNull<u8>, usize) {
        (self.bytes, 8)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.gone.fetch_add(1, Ordering::Relaxed);
        // SAFETY: from `Box::leak` in `Device::memory`.
        drop(unsafe { Box::from_raw(self.bytes.cast::<[u8; 8]>().as_ptr()) });
    }
}

struct Device {
    domain: ProtectionDomain,
    completions: CompletionQueue,
    gone: Arc<AtomicUsize>,
}

impl Device {
    fn open(stub: &Stub) -> Device {
        let context = Context { raw: RawContext::Ibv(stub.open(&OpenOptions::default()).unwrap()) };
        let (domain, completions) = (context.create_domain().unwrap(), context.create_completion_queue(512).unwrap());
        Device { domain, completions, gone: Arc::default() }
    }

    fn memory(&self) -> Counted {
        Counted { bytes: NonNull::from(Box::leak(Box::new([0u8; 8]))).cast(), gone: self.gone.clone() }
    }

    fn buffer(&self) -> Buffer {
        self.domain.register(self.memory()).unwrap()
    }

    fn connected(&self, pair: QueuePair) -> QueuePair {
        pair.connect(&pair.endpoint(), &ConnectOptions::default()).unwrap();
        pair
    }

    fn queue_pair(&self) -> QueuePair {
        let queue = &self.completions;
        self.connected(self.domain.create_queue_pair(queue, queue, &QueuePairOptions::default()).unwrap())
    }

    fn gone(&self) -> usize {
        self.gone.load(Ordering::Relaxed)
    }
}

const BASE: Live = Live {
    contexts: 1,
    domains: 1,
    regions: 0,
    channels: 0,
    completion_queues: 0,
    shared_receive_queues: 0,
    queue_pairs: 0,
};

#[test]
fn requests_of_a_queue_pair_that_cannot_be_destroyed_keep_their_memory() {
    let stub = Stub::new();
    let device = Device::open(&stub);
    let pair = device.queue_pair();
    for token in 0..3 {
        pair.post_send(SendRequest::write(device.buffer(), REMOTE).token(token)).unwrap();
        pair.post_receive(Receive::new(device.buffer()).token(10 + token)).unwrap();
    }
    stub.record().refuse_destroy = Some((Kind::QueuePair, libc::EBUSY));
    drop(pair);
    assert_eq!(device.gone(), 0);
    // What completes all the same is handed out, and only that.
    // SAFETY: integers, for which zero is a value.
    let mut wc: ibv_wc = unsafe { std::mem::zeroed() };
    wc.wr_id = stub.record().sent[1].id;
    wc.opcode = value::WC_RDMA_WRITE;
    stub.record().completions.push_back(wc);
    let mut done = Vec::new();
    assert_eq!(device.completions.poll(&mut done).unwrap(), 2);
    assert_eq!(done.iter().map(|done| done.token).collect::<Vec<_>>(), [0, 1]);
    done.clear();
    assert_eq!(device.gone(), 2);
    let gone = device.gone.clone();
    drop(device);
    assert_eq!(gone.load(Ordering::Relaxed), 2);
    let leaked = Live { regions: 4, channels: 1, completion_queues: 1, queue_pairs: 1, ..BASE };
    stub.record().leaked = leaked;
}

/// Its requests may be taken by the queue pair that is left: so the shared queue stays as well.
#[test]
fn a_shared_queue_stays_with_the_queue_pair_that_cannot_be_destroyed() {
    let stub = Stub::new();
    let device = Device::open(&stub);
    let shared = device.domain.create_shared_receive_queue(4).unwrap();
    let (queue, options) = (&device.completions, QueuePairOptions::default());
    let pair = device.domain.create_queue_pair_sharing(queue, queue, &shared, &options).unwrap();
    let pair = device.connected(pair);
    shared.post_receive(Receive::new(device.buffer())).unwrap();
    stub.record().refuse_destroy = Some((Kind::QueuePair, libc::EBUSY));
    drop(pair);
    drop(shared);
    let gone = device.gone.clone();
    drop(device);
    assert_eq!(gone.load(Ordering::Relaxed), 0);
    let leaked =
        Live { regions: 1, channels: 1, completion_queues: 1, shared_receive_queues: 1, queue_pairs: 1, ..BASE };
    stub.record().leaked = leaked;
}

#[test]
fn requests_of_a_shared_queue_that_cannot_be_destroyed_keep_their_memory() {
    let stub = Stub::new();
    let device = Device::open(&stub);
    let shared = device.domain.create_shared_receive_queue(4).unwrap();
    shared.post_receive(Receive::new(device.buffer())).unwrap();
    shared.post_receive(Receive::new(device.buffer())).unwrap();
    stub.record().refuse_destroy = Some((Kind::SharedReceiveQueue, libc::EBUSY));
    drop(shared);
    let gone = device.gone.clone();
    drop(device);
    assert_eq!(gone.load(Ordering::Relaxed), 0);
    stub.record().leaked = Live { regions: 2, shared_receive_queues: 1, ..BASE };
}

#[test]
fn memory_of_a_region_that_cannot_be_deregistered_stays() {
    let stub = Stub::new();
    let device = Device::open(&stub);
    let exposed = device.domain.expose_memory(device.memory(), Access::LOCAL_WRITE | Access::REMOTE_WRITE).unwrap();
    let (buffer, arena) = (device.buffer(), device.domain.register_arena(device.memory()).unwrap());
    for kept in [Box::new(exposed) as Box<dyn std::any::Any>, Box::new(buffer), Box::new(arena)] {
        stub.record().refuse_destroy = Some((Kind::Region, libc::EBUSY));
        drop(kept);
        assert_eq!(stub.record().refuse_destroy, None);
    }
    drop(device.buffer());
    assert_eq!(device.gone(), 1, "what can be deregistered goes");
    drop(device);
    stub.record().leaked = Live { regions: 3, ..BASE };
}

#[test]
fn a_completion_queue_that_cannot_be_destroyed_keeps_its_channel() {
    let stub = Stub::new();
    let device = Device::open(&stub);
    stub.record().refuse_destroy = Some((Kind::CompletionQueue, libc::EBUSY));
    drop(device);
    stub.record().leaked = Live { domains: 0, channels: 1, completion_queues: 1, ..BASE };
}

/// Nothing is leaked where everything goes as it should.
#[test]
fn outstanding_requests_go_with_their_queue_pair() {
    let stub = Stub::new();
    let device = Device::open(&stub);
    let pair = device.queue_pair();
    pair.post_receive(Receive::new(device.buffer())).unwrap();
    pair.post_send(SendRequest::write(device.buffer(), REMOTE)).unwrap();
    drop(pair);
    assert_eq!(device.gone(), 2);
}
