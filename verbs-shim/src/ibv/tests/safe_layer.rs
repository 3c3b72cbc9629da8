//! What the safe layer costs above bare libibverbs, on the device in memory.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::Instant;

use super::super::abi::ibv_sge;
use super::super::stub::{self, Stub};
use crate::connect::{ConnectOptions, QueuePairOptions, RemoteMemory};
use crate::device::OpenOptions;
use crate::provider::{RawCompletionQueue, RawContext, RawQueuePair};
use crate::verbs::{MemoryKey, WcStatus};
use crate::{Buffer, Completion, CompletionQueue, Context, ProtectionDomain, QueuePair, SendRequest};

const BATCH: usize = 16;

struct Safe {
    domain: ProtectionDomain,
    completions: CompletionQueue,
    queue_pair: QueuePair,
    /// Last: it checks that everything is gone.
    _stub: Stub,
}

fn safe() -> Safe {
    let stub = Stub::new();
    let context = Context { raw: RawContext::Ibv(stub.open(&OpenOptions::default()).unwrap()) };
    let domain = context.create_domain().unwrap();
    let completions = context.create_completion_queue(256).unwrap();
    let queue_pair = domain.create_queue_pair(&completions, &completions, &QueuePairOptions::default()).unwrap();
    queue_pair.connect(&queue_pair.endpoint(), &ConnectOptions::default()).unwrap();
    stub.quick();
    Safe { domain, completions, queue_pair, _stub: stub }
}

const REMOTE: RemoteMemory = RemoteMemory { address: 0x1000, length: 8, key: MemoryKey(0x77) };

#[inline(never)]
fn one(safe: &Safe, buffer: Buffer, done: &mut Vec<Completion>) -> Buffer {
    safe.queue_pair.post_send(SendRequest::write(black_box(buffer), REMOTE)).unwrap();
    assert_eq!(safe.completions.poll(done).unwrap(), 1);
    let done = done.pop().unwrap();
    assert_eq!(done.status, WcStatus::Success);
    done.buffer.unwrap()
}

/// Sixteen requests in one call, of which the last is signalled.
#[inline(never)]
fn batch(safe: &Safe, buffers: &mut Vec<Buffer>, requests: &mut VecDeque<SendRequest<'_>>, done: &mut Vec<Completion>) {
    for (index, buffer) in buffers.drain(..).enumerate() {
        let request = SendRequest::write(black_box(buffer), REMOTE);
        requests.push_back(if index + 1 == BATCH { request } else { request.unsignalled() });
    }
    safe.queue_pair.post_sends(requests).unwrap();
    while buffers.len() < BATCH {
        safe.completions.poll(done).unwrap();
        buffers.extend(done.drain(..).filter_map(|done| done.buffer));
    }
}

#[test]
fn buffers_go_round_through_a_device_of_this_provider() {
    let safe = safe();
    let mut buffer = safe.domain.allocate(8).unwrap();
    buffer.fill(3);
    let (start, mut done) = (buffer.as_ptr(), Vec::new());
    for _ in 0..1000 {
        buffer = one(&safe, buffer, &mut done);
    }
    assert_eq!((buffer.as_ptr(), &buffer[..]), (start, &[3; 8][..]));
}

/// Prints nanoseconds per 8-byte WRITE, posted and polled: bare; through the safe layer one by one; in batches of 16
/// with one completion. Run it with `cargo test --release -- --ignored --nocapture what_the_shim_adds`.
#[test]
#[ignore = "a measurement"]
fn what_the_shim_adds() {
    const ROUNDS: u64 = 160_000;
    let safe = safe();
    let (RawQueuePair::Ibv(raw_pair), RawCompletionQueue::Ibv(raw_queue)) =
        (safe.queue_pair.raw(), &safe.completions.shared.raw)
    else {
        unreachable!("opened above")
    };
    let mut buffer = safe.domain.allocate(8).unwrap();
    let mut spare: Vec<Buffer> = (0..BATCH).map(|_| safe.domain.allocate(8).unwrap()).collect();
    let mut requests = VecDeque::with_capacity(BATCH);
    let mut done = Vec::with_capacity(BATCH);
    let mut least = [f64::INFINITY; 3];
    for _ in 0..20 {
        let mut timed = [0.0; 3];
        let start = Instant::now();
        for id in 0..ROUNDS {
            let piece = ibv_sge { addr: 0x1000, length: 8, lkey: 0x77 };
            assert_eq!(stub::raw_round(raw_pair, raw_queue, black_box(id), piece), id);
        }
        timed[0] = start.elapsed().as_nanos() as f64;
        let start = Instant::now();
        for _ in 0..ROUNDS {
            buffer = one(&safe, buffer, &mut done);
        }
        timed[1] = start.elapsed().as_nanos() as f64;
        let start = Instant::now();
        for _ in 0..ROUNDS / BATCH as u64 {
            batch(&safe, &mut spare, &mut requests, &mut done);
        }
        timed[2] = start.elapsed().as_nanos() as f64;
        for (least, timed) in least.iter_mut().zip(timed) {
            *least = least.min(timed / ROUNDS as f64);
        }
    }
    println!(
        "bare {:.1} ns; safe layer {:.1} ns, adds {:.1} ns; in batches {:.1} ns",
        least[0],
        least[1],
        least[1] - least[0],
        least[2]
    );
}
