//! What goes wrong, and what is said then.

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use verbs_shim::verbs::{Access, Mtu, PostError, QueuePairState, WcOpcode, WcStatus};
use verbs_shim::{
    Buffer, Completion, CompletionQueue, ConnectOptions, Context, Error, GidChoice, OpenOptions, Progress,
    ProtectionDomain, QueuePair, QueuePairOptions, Receive, SendRequest,
};

const PATIENCE: Duration = Duration::from_secs(20);

struct Side {
    context: Context,
    domain: ProtectionDomain,
    completions: CompletionQueue,
    done: Vec<Completion>,
}

impl Side {
    fn new(progress: Progress) -> Self {
        let options = OpenOptions { progress, ..OpenOptions::default() };
        let context = Context::open("soft:127.0.0.1", &options).unwrap();
        let domain = context.create_domain().unwrap();
        let completions = context.create_completion_queue(1024).unwrap();
        Side { context, domain, completions, done: Vec::new() }
    }

    fn queue_pair(&self) -> QueuePair {
        self.domain.create_queue_pair(&self.completions, &self.completions, &QueuePairOptions::default()).unwrap()
    }

    fn buffer(&self, fill: u8, bytes: usize) -> Buffer {
        let mut buffer = self.domain.allocate(bytes).unwrap();
        buffer.fill(fill);
        buffer
    }

    fn next(&mut self) -> Completion {
        if self.done.is_empty() {
            self.completions.wait(&mut self.done, PATIENCE).unwrap();
        }
        assert!(!self.done.is_empty(), "no completion in time");
        self.done.remove(0)
    }
}

/// Gives up after a few milliseconds.
fn hasty() -> ConnectOptions {
    ConnectOptions { timeout: 8, retry_count: 3, rnr_retry_count: 1, rnr_timer: 1, ..ConnectOptions::default() }
}

fn connected(a: &Side, b: &Side, options: &ConnectOptions) -> (QueuePair, QueuePair) {
    let (here, there) = (a.queue_pair(), b.queue_pair());
    here.connect(&there.endpoint(), options).unwrap();
    there.connect(&here.endpoint(), options).unwrap();
    (here, there)
}

/// Half a minute without a call: many times what a peer without an answer waits before it gives up.
#[test]
fn a_peer_that_computes_for_long_keeps_its_connections() {
    const COMPUTES: Duration = Duration::from_secs(30);
    let (mut active, mut computing) = (Side::new(Progress::Polled), Side::new(Progress::Thread));
    // Without anybody answering, this gives up after 4 * 134 ms.
    let (here, there) = connected(&active, &computing, &ConnectOptions { timeout: 15, ..hasty() });
    let memory = computing.domain.expose(4096, Access::ALL).unwrap();
    let remote = memory.remote();
    there.post_receive(Receive::new(computing.buffer(0, 8))).unwrap();
    assert_eq!(computing.completions.poll(&mut computing.done).unwrap(), 0);
    let computer = std::thread::spawn(move || {
        let (end, mut sum) = (Instant::now() + COMPUTES, 1u64);
        while Instant::now() < end {
            (0..100_000).for_each(|step| sum = std::hint::black_box(sum.wrapping_mul(step | 1)));
        }
        (computing.completions.poll(&mut computing.done).unwrap(), computing, there)
    });
    let (start, mut writes) = (Instant::now(), 0u64);
    // The last one leaves while the peer still computes.
    while start.elapsed() < COMPUTES - Duration::from_secs(1) {
        let mut buffer = active.buffer(0, 8);
        buffer.copy_from_slice(&writes.to_ne_bytes());
        here.post_send(SendRequest::write(buffer, remote)).unwrap();
        assert_eq!(active.next().status, WcStatus::Success, "after {writes} writes");
        writes += 1;
        // Pauses of all lengths between requests.
        std::thread::sleep(Duration::from_micros(writes % 50 * 100));
    }
    here.post_send(SendRequest::send(active.buffer(7, 8))).unwrap();
    assert_eq!(active.next().status, WcStatus::Success);
    assert!(!computer.is_finished());
    let (found, computing, _there) = computer.join().unwrap();
    assert_eq!((found, computing.done[0].opcode), (1, WcOpcode::Recv), "found by the first poll after half a minute");
    assert_eq!(memory.load(0), writes - 1);
}

/// Who takes a message and then computes leaves its acknowledgement to the progress thread, which may have gone to sleep
/// when nothing was going on.
#[test]
fn a_message_that_was_taken_is_acknowledged_without_another_call() {
    let (mut active, mut computing) = (Side::new(Progress::Polled), Side::new(Progress::Thread));
    // Nothing is sent twice: only the acknowledgement ends the wait.
    let (here, there) = connected(&active, &computing, &ConnectOptions { timeout: 0, ..hasty() });
    for round in 0..20 {
        there.post_receive(Receive::new(computing.buffer(0, 8))).unwrap();
        std::thread::sleep(Duration::from_millis(25));
        here.post_send(SendRequest::send(active.buffer(7, 8))).unwrap();
        while computing.completions.poll(&mut computing.done).unwrap() == 0 {}
        let start = Instant::now();
        assert_eq!(active.next().status, WcStatus::Success);
        assert!(start.elapsed() < Duration::from_secs(1), "round {round}: {:?}", start.elapsed());
    }
}

#[test]
fn a_peer_that_is_gone_ends_everything_outstanding() {
    let (mut here, there) = (Side::new(Progress::Thread), Side::new(Progress::Polled));
    let (pair, gone) = connected(&here, &there, &hasty());
    let memory = there.domain.expose(64, Access::ALL).unwrap().remote();
    drop((gone, there));
    pair.post_receive(Receive::new(here.buffer(0, 64)).token(9)).unwrap();
    for token in 0..3 {
        pair.post_send(SendRequest::write(here.buffer(1, 64), memory).token(token)).unwrap();
    }
    let ended: Vec<_> =
        (0..4).map(|_| here.next()).map(|done| (done.token, done.status, done.buffer.is_some())).collect();
    assert_eq!(ended[0], (0, WcStatus::RetryExcErr, true));
    for token in [1, 2, 9] {
        assert!(ended.contains(&(token, WcStatus::WrFlushErr, true)), "{ended:?}");
    }
    assert_eq!(pair.state().unwrap(), QueuePairState::Error);
}

#[test]
fn a_restarted_peer_with_another_psn_is_not_taken_for_the_old_one() {
    let (mut here, mut there) = (Side::new(Progress::Thread), Side::new(Progress::Thread));
    let (pair, _other) = connected(&here, &there, &hasty());
    // The peer starts anew and expects another first PSN; ours is connected to the old number.
    let mut stale = pair.endpoint();
    stale.psn = (stale.psn + 1000) & 0xff_ffff;
    let (restarted, mine) = (there.queue_pair(), here.queue_pair());
    restarted.connect(&stale, &hasty()).unwrap();
    restarted.post_receive(Receive::new(there.buffer(0, 64))).unwrap();
    mine.connect(&restarted.endpoint(), &hasty()).unwrap();
    mine.post_send(SendRequest::send(here.buffer(1, 8))).unwrap();
    assert_eq!(here.next().status, WcStatus::RetryExcErr);
    assert_eq!(there.completions.poll(&mut there.done).unwrap(), 0, "nothing may be delivered");
}

#[test]
fn shared_receive_queues_serve_several_queue_pairs() {
    let (mut here, mut there) = (Side::new(Progress::Thread), Side::new(Progress::Thread));
    let shared = there.domain.create_shared_receive_queue(16).unwrap();
    let options = QueuePairOptions::default();
    let pairs: Vec<_> = (0..4)
        .map(|_| {
            let (queue, domain) = (&there.completions, &there.domain);
            let theirs = domain.create_queue_pair_sharing(queue, queue, &shared, &options).unwrap();
            let ours = here.queue_pair();
            ours.connect(&theirs.endpoint(), &ConnectOptions::default()).unwrap();
            theirs.connect(&ours.endpoint(), &ConnectOptions::default()).unwrap();
            (ours, theirs)
        })
        .collect();
    let mut batch = (0..12).map(|token| Receive::new(there.buffer(0, 8)).token(token)).collect();
    assert_eq!(shared.post_receives(&mut batch), Ok(12));
    for token in 12..16 {
        shared.post_receive(Receive::new(there.buffer(0, 8)).token(token)).unwrap();
    }
    let refused = shared.post_receive(Receive::new(there.buffer(0, 8))).unwrap_err();
    assert_eq!(refused.error, PostError::QueueFull);
    for round in 0..4u8 {
        for (index, (ours, _)) in pairs.iter().enumerate() {
            ours.post_send(SendRequest::send(here.buffer(round * 4 + index as u8, 8))).unwrap();
        }
    }
    let mut seen = Vec::new();
    for _ in 0..16 {
        assert_eq!(here.next().status, WcStatus::Success);
        let done = there.next();
        assert_eq!((done.status, done.opcode), (WcStatus::Success, WcOpcode::Recv));
        seen.push(done.buffer.unwrap()[0]);
    }
    seen.sort();
    assert_eq!(seen, (0..16).collect::<Vec<_>>());
    let direct = pairs[0].1.post_receive(Receive::new(there.buffer(0, 8))).unwrap_err();
    assert_eq!(direct.error, PostError::UsesSharedReceiveQueue);
}

#[test]
fn receive_requests_go_in_batches() {
    let (mut here, mut there) = (Side::new(Progress::Thread), Side::new(Progress::Thread));
    let (pair, other) = connected(&here, &there, &ConnectOptions::default());
    let mut batch = (0..40).map(|token| Receive::new(there.buffer(0, 8)).token(token)).collect();
    assert_eq!(other.post_receives(&mut batch), Ok(40));
    assert!(batch.is_empty());
    let mut sends = (0..40).map(|token| SendRequest::send(here.buffer(token, 8)).token(token as u64)).collect();
    assert_eq!(pair.post_sends(&mut sends), Ok(40));
    for token in 0..40 {
        let (sent, received) = (here.next(), there.next());
        assert_eq!((sent.token, sent.status), (token, WcStatus::Success));
        assert_eq!((received.token, received.status), (token, WcStatus::Success));
        assert_eq!(received.buffer.unwrap()[..], [token as u8; 8]);
    }
}

#[test]
fn what_an_unposted_request_owned_comes_back() {
    let (here, there) = (Side::new(Progress::Thread), Side::new(Progress::Thread));
    let unconnected = here.queue_pair();
    let refused = unconnected.post_send(SendRequest::send(here.buffer(3, 8)).token(5)).unwrap_err();
    assert_eq!(refused.error, PostError::State);
    let (pair, _other) = connected(&here, &there, &hasty());
    pair.post_send(SendRequest::write_inline(&[1; 8], there.domain.expose(8, Access::ALL).unwrap().remote())).unwrap();
    let long = pair.post_send(SendRequest::send_inline(&[0; 4096])).unwrap_err();
    assert_eq!(long.error, PostError::InlineTooLong { bytes: 4096, limit: 128 });
    let memory = there.domain.expose(64, Access::ALL).unwrap();
    let atomic = pair.post_send(SendRequest::fetch_add(here.buffer(0, 16), memory.remote(), 1)).unwrap_err();
    assert_eq!(atomic.error, PostError::AtomicLength(16));
}

#[test]
fn descriptors_wake_whoever_sleeps() {
    for progress in [Progress::Thread, Progress::Polled] {
        let (mut sleeping, active) = (Side::new(progress), Side::new(Progress::Thread));
        let (here, there) = connected(&sleeping, &active, &ConnectOptions::default());
        here.post_receive(Receive::new(sleeping.buffer(0, 8))).unwrap();
        let sender = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            there.post_send(SendRequest::send(active.buffer(7, 8))).unwrap();
            // Stays until the acknowledgement is in.
            let mut active = active;
            assert_eq!(active.next().status, WcStatus::Success);
            drop(there);
        });
        let start = Instant::now();
        let done = sleeping.next();
        assert_eq!(done.buffer.unwrap()[0], 7);
        assert!(start.elapsed() >= Duration::from_millis(250));
        // Acknowledgements leave with the next call.
        while !sender.is_finished() {
            sleeping.completions.poll(&mut sleeping.done).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
        sender.join().unwrap();
    }
}

#[test]
fn strangers_packets_are_counted_and_change_nothing() {
    let (mut here, there) = (Side::new(Progress::Thread), Side::new(Progress::Thread));
    let (pair, _other) = connected(&here, &there, &ConnectOptions::default());
    let port = pair.endpoint().soft.unwrap().port;
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut packet = vec![0u8; 64];
    packet[4..8].copy_from_slice(&pair.number().0.to_be_bytes());
    for length in [0, 1, 11, 15, 16, 20, 64] {
        stranger.send_to(&packet[..length], ("127.0.0.1", port)).unwrap();
    }
    packet[5..8].copy_from_slice(&(!pair.number().0).to_be_bytes()[1..]);
    stranger.send_to(&packet, ("127.0.0.1", port)).unwrap();
    let memory = there.domain.expose(8, Access::ALL).unwrap();
    pair.post_send(SendRequest::write(here.buffer(5, 8), memory.remote())).unwrap();
    assert_eq!(here.next().status, WcStatus::Success);
    let counters = here.context.soft_counters().unwrap();
    assert!(counters.malformed + counters.wrong_icrc >= 6, "{counters:?}");
    assert_eq!(counters.unknown_queue_pair, 1, "{counters:?}");
    assert_eq!(memory.load(0), 0x0505_0505_0505_0505);
}

#[test]
fn devices_that_cannot_be_opened_say_what_to_do() {
    let open = |name: &str, options: &OpenOptions| Context::open(name, options).unwrap_err().to_string();
    let none = open("nonsense0", &OpenOptions::default());
    assert!(none.contains("nonsense0"), "{none}");
    let none = open("soft:nonsense0", &OpenOptions::default());
    assert!(none.contains("soft:lo"), "{none}");
    let index = open("soft:lo", &OpenOptions { gid: GidChoice::Index(99), ..OpenOptions::default() });
    assert!(index.contains("none of index 99"), "{index}");
    let stranger = GidChoice::Address(IpAddr::from([192, 0, 2, 77]));
    let address = open("soft:lo", &OpenOptions { gid: stranger, ..OpenOptions::default() });
    assert!(address.contains("has not the address 192.0.2.77"), "{address}");
    let holder = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp_port = holder.local_addr().unwrap().port();
    let taken = open("soft:127.0.0.1", &OpenOptions { udp_port, ..OpenOptions::default() });
    assert!(taken.contains("the port is taken"), "{taken}");
    let taken = open(&format!("soft:127.0.0.1:{udp_port}"), &OpenOptions::default());
    assert!(taken.contains("the port is taken"), "{taken}");
    let no_address = open("rxe0@nonsense", &OpenOptions::default());
    assert!(no_address.contains("is no IP address"), "{no_address}");
}

#[test]
fn a_name_can_say_the_port() {
    let free = UdpSocket::bind("[::1]:0").unwrap().local_addr().unwrap();
    for name in [format!("soft:[::1]:{}", free.port()), "soft:::1".into()] {
        let context = Context::open(&name, &OpenOptions::default()).unwrap();
        let socket = context.socket_address();
        assert_eq!(socket.ip(), free.ip());
        assert_eq!(socket == free, name.contains('['), "{name}: {socket}");
    }
}

#[test]
fn endpoints_that_cannot_talk_are_refused_with_the_reason() {
    let side = Side::new(Progress::Thread);
    let pair = side.queue_pair();
    let mine = pair.endpoint();
    let connect = |change: fn(&mut verbs_shim::Endpoint)| {
        let mut peer = mine;
        change(&mut peer);
        let error = side.queue_pair().connect(&peer, &ConnectOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }), "{error}");
        error.to_string()
    };
    assert!(connect(|peer| peer.gid = "fd00::1".parse().unwrap()).contains("one family"));
    assert!(connect(|peer| peer.soft = None).contains("4791"));
    let raw = connect(|peer| {
        if let Some(soft) = &mut peer.soft {
            soft.plain_socket = false;
        }
    });
    assert!(raw.contains("same kind of socket"), "{raw}");
}

#[test]
fn the_smaller_path_mtu_is_used_by_both() {
    let (mut here, there) = (Side::new(Progress::Thread), Side::new(Progress::Thread));
    let (a, b) = (here.queue_pair(), there.queue_pair());
    let mut smaller = b.endpoint();
    smaller.mtu = Mtu::Bytes512;
    a.connect(&smaller, &ConnectOptions::default()).unwrap();
    b.connect(&a.endpoint(), &ConnectOptions { mtu: Mtu::Bytes512, ..ConnectOptions::default() }).unwrap();
    let memory = there.domain.expose(100_000, Access::ALL).unwrap();
    a.post_send(SendRequest::write(here.buffer(9, 100_000), memory.remote())).unwrap();
    assert_eq!(here.next().status, WcStatus::Success);
    let mut copy = vec![0; 100_000];
    memory.read(0, &mut copy);
    assert!(copy.iter().all(|&byte| byte == 9));
    // 512 bytes a packet, and no packet longer than that went out.
    assert!(here.context.soft_counters().unwrap().transmitted >= 100_000 / 512);
}

#[test]
fn different_path_mtus_end_with_an_error_not_with_wrong_data() {
    let (mut here, there) = (Side::new(Progress::Thread), Side::new(Progress::Thread));
    let (a, b) = (here.queue_pair(), there.queue_pair());
    a.connect(&b.endpoint(), &ConnectOptions { mtu: Mtu::Bytes4096, ..hasty() }).unwrap();
    b.connect(&a.endpoint(), &ConnectOptions { mtu: Mtu::Bytes1024, ..hasty() }).unwrap();
    let memory = there.domain.expose(100_000, Access::ALL).unwrap();
    a.post_send(SendRequest::write(here.buffer(9, 100_000), memory.remote())).unwrap();
    assert_eq!(here.next().status, WcStatus::RemInvReqErr);
}

/// Buffers of one region come from many threads and go back in any order; the region goes with the last of them.
#[test]
fn buffers_outlive_what_they_were_made_from() {
    let side = Side::new(Progress::Thread);
    let mut first = side.buffer(1, 4096);
    let mut second = first.split_off(1024);
    let third = second.split_off(2048);
    drop(side);
    second.fill(2);
    let join = std::thread::spawn(move || third.iter().all(|&byte| byte == 1));
    assert!(join.join().unwrap());
    first.join(second).unwrap();
    assert_eq!((first.len(), first[1023], first[1024]), (3072, 1, 2));
}

#[test]
fn a_window_is_never_exceeded_however_long_nobody_reads() {
    // Polled and never polled: everything stays in the socket's buffer, and none of it may be lost.
    let (active, asleep) = (Side::new(Progress::Polled), Side::new(Progress::Polled));
    let patient = ConnectOptions { timeout: 20, ..ConnectOptions::default() };
    let (here, _there) = connected(&active, &asleep, &patient);
    let memory = asleep.domain.expose(1 << 20, Access::ALL).unwrap();
    for _ in 0..64 {
        here.post_send(SendRequest::write(active.buffer(1, 1 << 20), memory.remote())).unwrap();
    }
    let (mut done, mut other) = (Vec::new(), Vec::new());
    let quiet = Instant::now() + Duration::from_millis(300);
    while Instant::now() < quiet {
        active.completions.poll(&mut done).unwrap();
    }
    assert!(done.is_empty(), "nobody acknowledged");
    let end = Instant::now() + PATIENCE;
    while done.len() < 64 && Instant::now() < end {
        asleep.completions.poll(&mut other).unwrap();
        active.completions.poll(&mut done).unwrap();
    }
    assert!(done.len() == 64 && done.iter().all(|done| done.status == WcStatus::Success));
    let counters = active.context.soft_counters().unwrap();
    assert_eq!((counters.retransmitted, counters.timeouts), (0, 0), "{counters:?}");
}

#[test]
fn queues_of_another_context_are_refused() {
    let (here, there) = (Side::new(Progress::Thread), Side::new(Progress::Thread));
    let options = QueuePairOptions::default();
    let mixed = here.domain.create_queue_pair(&there.completions, &here.completions, &options).unwrap_err();
    assert!(matches!(mixed, Error::Mismatch { .. }), "{mixed}");
    let shared = there.domain.create_shared_receive_queue(4).unwrap();
    let (queue, domain) = (&here.completions, &here.domain);
    let mixed = domain.create_queue_pair_sharing(queue, queue, &shared, &options).unwrap_err();
    assert!(matches!(mixed, Error::Mismatch { .. }), "{mixed}");
}

#[test]
fn a_completion_queue_does_not_promise_more_than_it_holds() {
    let side = Side::new(Progress::Thread);
    let small = side.context.create_completion_queue::<Buffer>(300).unwrap();
    let make = || side.domain.create_queue_pair(&small, &small, &QueuePairOptions::default());
    let first = make().unwrap();
    assert!(make().unwrap_err().to_string().contains("together at most its capacity"));
    drop(first);
    make().unwrap();
}

#[test]
fn a_stale_completion_never_hands_out_a_strangers_buffer() {
    let (here, there) = (Side::new(Progress::Polled), Side::new(Progress::Thread));
    let shared = here.domain.create_shared_receive_queue(4).unwrap();
    let memory = there.domain.expose(64, Access::ALL).unwrap();
    let options = QueuePairOptions::default();
    let mut done = Vec::new();
    for round in 0..70_000u32 {
        let (queue, domain) = (&here.completions, &here.domain);
        let pair = domain.create_queue_pair_sharing(queue, queue, &shared, &options).unwrap();
        if round % 1000 == 0 {
            let peer = there.queue_pair();
            pair.connect(&peer.endpoint(), &hasty()).unwrap();
            pair.post_send(SendRequest::read(here.buffer(0, 64), memory.remote()).token(round as u64)).unwrap();
        }
    }
    here.completions.poll(&mut done).unwrap();
    assert!(done.is_empty(), "their queue pairs are gone, and so are they: {done:?}");
}

#[test]
fn a_peer_without_a_way_to_it_stops_nobody_else() {
    let (mut here, there) = (Side::new(Progress::Thread), Side::new(Progress::Thread));
    let (good, _other) = connected(&here, &there, &ConnectOptions::default());
    let lost = here.queue_pair();
    let mut nowhere = there.queue_pair().endpoint();
    nowhere.gid = std::net::Ipv4Addr::new(8, 8, 8, 8).to_ipv6_mapped();
    lost.connect(&nowhere, &hasty()).unwrap();
    let memory = there.domain.expose(64, Access::ALL).unwrap();
    lost.post_send(SendRequest::write(here.buffer(1, 8), memory.remote()).token(1)).unwrap();
    good.post_send(SendRequest::write(here.buffer(2, 8), memory.remote()).token(2)).unwrap();
    let mut ended = [here.next(), here.next()].map(|done| (done.token, done.status));
    ended.sort_by_key(|ended| ended.0);
    assert_eq!(ended, [(1, WcStatus::RetryExcErr), (2, WcStatus::Success)]);
}

#[test]
fn whoever_sleeps_is_woken_whoever_takes_the_datagram() {
    // Two queues of one polled device: the second's poll takes in what completes on the first.
    let (here, mut there) = (Side::new(Progress::Polled), Side::new(Progress::Thread));
    let other = here.context.create_completion_queue::<Buffer>(16).unwrap();
    let (pair, peer) = connected(&here, &there, &ConnectOptions::default());
    pair.post_receive(Receive::new(here.buffer(0, 8))).unwrap();
    let queue = here.completions.clone();
    let sleeper = std::thread::spawn(move || {
        let mut done = Vec::new();
        let start = Instant::now();
        queue.wait(&mut done, Duration::from_secs(10)).unwrap();
        (done.len(), start.elapsed())
    });
    std::thread::sleep(Duration::from_millis(100));
    peer.post_send(SendRequest::send(there.buffer(7, 8))).unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    let mut none = Vec::new();
    while !sleeper.is_finished() && Instant::now() < end {
        other.poll(&mut none).unwrap();
    }
    let (count, took) = sleeper.join().unwrap();
    assert_eq!((count, took < Duration::from_secs(5)), (1, true), "{took:?}");
    // The acknowledgement leaves with the next call.
    while there.completions.poll(&mut there.done).unwrap() == 0 && Instant::now() < end {
        other.poll(&mut none).unwrap();
    }
    assert_eq!(there.done[0].status, WcStatus::Success);
}

#[test]
fn a_flushed_request_wakes_whoever_sleeps() {
    for progress in [Progress::Thread, Progress::Polled] {
        let side = Side::new(progress);
        let pair = side.queue_pair();
        pair.to_error().unwrap();
        assert!(side.completions.arm().unwrap());
        pair.post_receive(Receive::new(side.buffer(0, 8))).unwrap();
        use std::os::fd::AsFd;
        let descriptor = side.completions.as_fd();
        let mut polled = [rustix::event::PollFd::new(&descriptor, rustix::event::PollFlags::IN)];
        let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut polled, Some(&second)).unwrap(), 1);
    }
}

#[test]
fn refused_requests_do_not_count_as_unsignalled_ones() {
    let side = Side::new(Progress::Thread);
    let pair = side.queue_pair();
    // Not connected: every one is refused by the device.
    for _ in 0..1000 {
        assert!(pair.post_send(SendRequest::send(side.buffer(0, 8)).unsignalled()).is_err());
    }
    let (mut here, there) = (side, Side::new(Progress::Thread));
    let peer = there.queue_pair();
    pair.connect(&peer.endpoint(), &ConnectOptions::default()).unwrap();
    peer.connect(&pair.endpoint(), &ConnectOptions::default()).unwrap();
    let memory = there.domain.expose(8, Access::ALL).unwrap();
    for _ in 0..64 {
        pair.post_send(SendRequest::write(here.buffer(1, 8), memory.remote()).unsignalled()).unwrap();
    }
    assert_eq!(here.next().status, WcStatus::Success, "half a queue of unsignalled requests has a signalled one");
}

#[test]
fn a_failed_connect_changes_nothing() {
    let (mut here, there) = (Side::new(Progress::Thread), Side::new(Progress::Thread));
    let (a, b) = (here.queue_pair(), there.queue_pair());
    let wrong = ConnectOptions { retry_count: 8, ..ConnectOptions::default() };
    assert!(a.connect(&b.endpoint(), &wrong).unwrap_err().to_string().contains("retry_count"));
    assert_eq!(a.state().unwrap(), QueuePairState::Init);
    let mut tight = b.endpoint();
    tight.soft.as_mut().unwrap().window_bytes = 100;
    assert!(a.connect(&tight, &ConnectOptions::default()).unwrap_err().to_string().contains("window"));
    assert_eq!(a.state().unwrap(), QueuePairState::Init);
    a.connect(&b.endpoint(), &ConnectOptions::default()).unwrap();
    b.connect(&a.endpoint(), &ConnectOptions::default()).unwrap();
    let memory = there.domain.expose(8, Access::ALL).unwrap();
    a.post_send(SendRequest::write(here.buffer(1, 8), memory.remote())).unwrap();
    assert_eq!(here.next().status, WcStatus::Success);
}

#[test]
fn shared_receive_queues_that_are_gone_give_their_buffers_back() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    struct Counted(Box<[u8; 8]>, Arc<AtomicUsize>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }
    // SAFETY: the box stays where it is, and nobody else has it.
    unsafe impl verbs_shim::StableMemory for Counted {
        fn range(&self) -> (std::ptr::NonNull<u8>, usize) {
            (std::ptr::NonNull::from(&*self.0).cast(), 8)
        }
    }
    let side = Side::new(Progress::Thread);
    let freed = Arc::new(AtomicUsize::new(0));
    for _ in 0..10 {
        let shared = side.domain.create_shared_receive_queue(4).unwrap();
        let (queue, domain) = (&side.completions, &side.domain);
        domain.create_queue_pair_sharing(queue, queue, &shared, &QueuePairOptions::default()).unwrap();
        let buffer = side.domain.register(Counted(Box::new([0; 8]), freed.clone())).unwrap();
        shared.post_receive(Receive::new(buffer)).unwrap();
    }
    assert_eq!(freed.load(Ordering::Relaxed), 10);
}
