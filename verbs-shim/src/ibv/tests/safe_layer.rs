//! What the safe layer costs above bare libibverbs, on the device in memory.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::Instant;

use super::super::abi::{ibv_sge, value};
use super::super::stub::{self, Stub};
use crate::connect::{ConnectOptions, QueuePairOptions, RemoteMemory};
use crate::device::OpenOptions;
use crate::provider::{RawCompletionQueue, RawContext, RawQueuePair};
use crate::verbs::{MemoryKey, PostError, WcStatus};
use crate::{Buffer, Completion, CompletionQueue, Context, ProtectionDomain, QueuePair, Receive, SendRequest};

const BATCH: usize = 16;

struct Safe {
    domain: ProtectionDomain,
    completions: CompletionQueue,
    queue_pair: QueuePair,
    /// Last: it checks that everything is gone.
    stub: Stub,
}

fn safe() -> Safe {
    let safe = safe_recording();
    safe.stub.quick();
    safe
}

fn safe_recording() -> Safe {
    let stub = Stub::new();
    let context = Context { raw: RawContext::Ibv(stub.open(&OpenOptions::default()).unwrap()) };
    let domain = context.create_domain().unwrap();
    let completions = context.create_completion_queue(512).unwrap();
    let queue_pair = domain.create_queue_pair(&completions, &completions, &QueuePairOptions::default()).unwrap();
    queue_pair.connect(&queue_pair.endpoint(), &ConnectOptions::default()).unwrap();
    Safe { domain, completions, queue_pair, stub }
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

fn tagged(safe: &Safe, count: u8) -> Vec<Buffer> {
    let buffer = |tag| {
        let mut buffer = safe.domain.allocate(8).unwrap();
        buffer.fill(tag);
        buffer
    };
    (0..count).map(buffer).collect()
}

/// What the device refuses stays at the front, in order, each request with its buffer.
#[test]
fn a_batch_that_the_device_stops_at_any_place_is_taken_up_there() {
    for accepted in [0, 1, 5, 15, 16, 17, 31, 39, 40] {
        let safe = safe_recording();
        let shared = safe.domain.create_shared_receive_queue(64).unwrap();
        let refuse = || safe.stub.record().refuse_after = Some((accepted, libc::EIO));
        let expected = if accepted == 0 { Err(PostError::Os(libc::EIO)) } else { Ok(accepted) };
        let left: Vec<u8> = (accepted as u8..40).collect();

        let mut sends: VecDeque<_> = tagged(&safe, 40).into_iter().map(|b| SendRequest::write(b, REMOTE)).collect();
        refuse();
        assert_eq!(safe.queue_pair.post_sends(&mut sends), expected);
        assert_eq!(sends.iter().map(|request| request.buffer.as_ref().unwrap()[0]).collect::<Vec<_>>(), left);
        safe.stub.record().refuse_after = None;
        assert_eq!(safe.queue_pair.post_sends(&mut sends), Ok(40 - accepted));
        assert_eq!(safe.stub.record().sent.len(), 40);

        let receives = || tagged(&safe, 40).into_iter().map(Receive::new).collect::<VecDeque<_>>();
        type Post<'a> = &'a dyn Fn(&mut VecDeque<Receive>) -> Result<usize, PostError>;
        let both: [Post<'_>; 2] =
            [&|requests| safe.queue_pair.post_receives(requests), &|requests| shared.post_receives(requests)];
        for post in both {
            let mut receives = receives();
            safe.stub.record().received.clear();
            refuse();
            assert_eq!(post(&mut receives), expected);
            assert_eq!(receives.iter().map(|request| request.buffer[0]).collect::<Vec<_>>(), left);
            safe.stub.record().refuse_after = None;
            assert_eq!(post(&mut receives), Ok(40 - accepted));
            let record = safe.stub.record();
            let mut ids: Vec<u64> = record.received.iter().map(|posted| posted.id).collect();
            assert_eq!(ids.len(), 40);
            ids.sort_unstable();
            ids.dedup();
            assert_eq!(ids.len(), 40, "each has an identifier of its own");
            assert!(record.chains > 0);
        }
    }
}

#[test]
fn a_full_queue_takes_what_fits_of_a_batch() {
    let safe = safe_recording();
    let shared = safe.domain.create_shared_receive_queue(20).unwrap();
    let receives = |count| tagged(&safe, count).into_iter().map(Receive::new).collect::<VecDeque<_>>();
    let mut requests = receives(25);
    assert_eq!(shared.post_receives(&mut requests), Ok(20));
    assert_eq!(requests.iter().map(|request| request.buffer[0]).collect::<Vec<_>>(), [20, 21, 22, 23, 24]);
    assert_eq!(shared.post_receives(&mut requests), Err(PostError::QueueFull));
    assert_eq!(requests.len(), 5);

    let mut requests = receives(130);
    assert_eq!(safe.queue_pair.post_receives(&mut requests), Ok(128));
    assert_eq!(safe.queue_pair.post_receives(&mut requests), Err(PostError::QueueFull));
    assert_eq!(requests.iter().map(|request| request.buffer[0]).collect::<Vec<_>>(), [128, 129]);
    let mut requests: VecDeque<_> =
        tagged(&safe, 130).into_iter().map(|buffer| SendRequest::write(buffer, REMOTE).unsignalled()).collect();
    assert_eq!(safe.queue_pair.post_sends(&mut requests), Ok(128));
    assert_eq!(safe.queue_pair.post_sends(&mut requests), Err(PostError::QueueFull));
    assert_eq!(requests.iter().map(|request| request.buffer.as_ref().unwrap()[0]).collect::<Vec<_>>(), [128, 129]);
    // Half a queue of unsignalled requests is the most.
    let signalled = |posted: &stub::Posted| posted.flags & value::SEND_SIGNALED != 0;
    let sent = safe.stub.record().sent.iter().map(signalled).collect::<Vec<_>>();
    assert_eq!(sent.iter().filter(|signalled| **signalled).count(), 2);
    assert!(sent[63] && sent[127]);
    let mut wrong = VecDeque::from([Receive::new(safe.domain.allocate(1).unwrap())]);
    let sharing = safe
        .domain
        .create_queue_pair_sharing(&safe.completions, &safe.completions, &shared, &QueuePairOptions::default())
        .unwrap();
    assert_eq!(sharing.post_receives(&mut wrong), Err(PostError::UsesSharedReceiveQueue));
    assert_eq!(wrong.len(), 1);
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
