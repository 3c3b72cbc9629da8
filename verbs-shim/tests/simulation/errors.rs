//! Each error that a peer, a program or the network can cause, and the status it must end with.

use verbs_shim::soft::engine::*;
use verbs_shim::soft::icrc::{NetworkHeader, PathCrc};
use verbs_shim::verbs::*;

use crate::engine_pair::{self, Attributes, Setup};
use crate::network::{Faults, Network};

const START: u64 = 0x10_0000;

/// One connection; side 0 asks, side 1 answers.
struct Pair {
    network: Network,
    numbers: [QueuePairNumber; 2],
    queues: [CompletionQueueId; 2],
    keys: [MemoryKey; 2],
    domains: [ProtectionDomain; 2],
}

impl Pair {
    fn new(change: impl Fn(usize, &mut Attributes)) -> Self {
        let faults = Faults { delay_ns: 5_000, ..Faults::default() };
        let mut network = Network::new(1, faults, false);
        let setup = Setup {
            start: START,
            completions: 64,
            send_depth: 32,
            receive_depth: 32,
            inline_bytes_max: 32,
            ..Setup::default()
        };
        let ends = engine_pair::pair(&mut network.engines, network.addresses, 1 << 20, &setup, |side, how| {
            how.send.timeout = 8;
            change(side, how);
        });
        Pair {
            network,
            numbers: ends.map(|end| end.number),
            queues: ends.map(|end| end.queue),
            keys: ends.map(|end| end.key),
            domains: ends.map(|end| end.domain),
        }
    }

    fn plain() -> Self {
        Pair::new(|_, _| {})
    }

    fn post(&mut self, id: u64, operation: Operation, length: u32) -> Result<(), PostError> {
        let pieces = [Sge { address: START, length, key: self.keys[0] }];
        self.post_pieces(id, operation, &pieces)
    }

    fn post_pieces(&mut self, id: u64, operation: Operation, pieces: &[Sge]) -> Result<(), PostError> {
        let data = Data::Pieces(pieces);
        let request = WorkRequest { id, operation, data, signalled: true, fence: false, solicited: false };
        self.network.engines[0].post_send(self.numbers[0], &request)
    }

    fn receive(&mut self, id: u64, length: u32) {
        let pieces = [Sge { address: START, length, key: self.keys[1] }];
        self.network.engines[1].post_receive(self.numbers[1], &ReceiveRequest { id, pieces: &pieces }).unwrap();
    }

    fn write(&self, remote_address: u64) -> Operation {
        Operation::Write { remote_address, remote_key: self.keys[1], immediate: None }
    }

    fn read(&self, remote_address: u64) -> Operation {
        Operation::Read { remote_address, remote_key: self.keys[1] }
    }

    fn finish(&mut self, side: usize) -> Vec<(u64, WcStatus)> {
        self.network.run();
        let mut all = Vec::new();
        while let Some(completion) = self.network.engines[side].poll_completion(self.queues[side]) {
            all.push((completion.id, completion.status));
        }
        all
    }

    fn states(&self) -> [QueuePairState; 2] {
        [0, 1].map(|side| self.network.engines[side].state(self.numbers[side]).unwrap())
    }
}

use QueuePairState::{Error, ReadyToSend, SendQueueDrain};
use WcStatus::*;

#[test]
fn wrong_keys_ranges_and_rights_are_remote_access_errors_and_flush_the_rest() {
    let other = |pair: &mut Pair, access| {
        let domain = pair.domains[1];
        pair.network.engines[1].register(domain, vec![0; 64], START, access).unwrap()
    };
    type Wrong = fn(&mut Pair, fn(&mut Pair, Access) -> MemoryKey) -> Operation;
    let cases: [Wrong; 5] = [
        |pair, _| Operation::Write {
            remote_address: START,
            remote_key: MemoryKey(pair.keys[1].0 ^ 0x8000_0000),
            immediate: None,
        },
        |pair, _| pair.write(START + (1 << 20) - 7),
        |pair, _| pair.read(START - 1),
        |pair, other| Operation::Read { remote_address: START, remote_key: other(pair, Access::NONE) },
        |pair, other| Operation::FetchAdd {
            remote_address: START,
            remote_key: other(pair, Access::REMOTE_READ),
            add: 1,
        },
    ];
    for (case, wrong) in cases.into_iter().enumerate() {
        let mut pair = Pair::plain();
        pair.post(1, pair.write(START), 8).unwrap();
        let operation = wrong(&mut pair, other);
        pair.post(2, operation, 8).unwrap();
        pair.post(3, pair.write(START), 8).unwrap();
        pair.receive(9, 8);
        assert_eq!(pair.finish(0), [(1, Success), (2, RemAccessErr), (3, WrFlushErr)], "case {case}");
        assert_eq!(pair.finish(1), [(9, WrFlushErr)]);
        assert_eq!(pair.states(), [Error, Error]);
        assert_eq!(pair.network.engines[1].poll_event(), Some(Event::AccessError(pair.numbers[1])));
        pair.post(4, pair.write(START), 8).unwrap();
        assert_eq!(pair.finish(0), [(4, WrFlushErr)]);
    }
}

#[test]
fn operations_that_the_queue_pair_does_not_allow_are_invalid_requests() {
    for (missing, kind) in [(Access::REMOTE_WRITE, 0), (Access::REMOTE_READ, 1), (Access::REMOTE_ATOMIC, 2)] {
        let mut pair = Pair::new(|_, how| how.access.0 &= !missing.0);
        let operation = match kind {
            0 => pair.write(START),
            1 => pair.read(START),
            _ => Operation::FetchAdd { remote_address: START, remote_key: pair.keys[1], add: 1 },
        };
        pair.post(1, operation, 8).unwrap();
        assert_eq!(pair.finish(0), [(1, RemInvReqErr)]);
    }
    let mut pair = Pair::plain();
    pair.post(1, Operation::FetchAdd { remote_address: START + 4, remote_key: pair.keys[1], add: 1 }, 8).unwrap();
    assert_eq!(pair.finish(0), [(1, RemInvReqErr)], "an atomic that is not aligned");
}

#[test]
fn a_peer_with_too_many_reads_outstanding_is_refused() {
    let mut pair = Pair::new(|side, how| how.receive.responder_depth = if side == 1 { 0 } else { 16 });
    pair.post(1, pair.read(START), 8).unwrap();
    assert_eq!(pair.finish(0), [(1, RemInvReqErr)]);
}

#[test]
fn a_message_longer_than_the_receive_request_fails_on_both_sides() {
    let mut pair = Pair::plain();
    pair.receive(5, 3000);
    pair.post(1, Operation::Send { immediate: None }, 3001).unwrap();
    assert_eq!(pair.finish(0), [(1, RemInvReqErr)]);
    assert_eq!(pair.finish(1), [(5, LocLenErr)]);
}

#[test]
fn a_receive_request_with_a_wrong_key_is_a_remote_operational_error() {
    let mut pair = Pair::plain();
    pair.keys[1].0 ^= 1 << 31;
    pair.receive(5, 3000);
    pair.post(1, Operation::Send { immediate: None }, 300).unwrap();
    assert_eq!(pair.finish(0), [(1, RemOpErr)]);
    assert_eq!(pair.finish(1), [(5, LocProtErr)]);
}

#[test]
fn a_local_piece_with_a_wrong_key_fails_after_what_was_posted_before_it() {
    let mut pair = Pair::plain();
    pair.post(1, pair.write(START), 5000).unwrap();
    let wrong = [Sge { address: START + (1 << 20), length: 1, key: pair.keys[0] }];
    pair.post_pieces(2, pair.write(START), &wrong).unwrap();
    pair.post(3, pair.write(START), 8).unwrap();
    assert_eq!(pair.finish(0), [(1, Success), (2, LocProtErr), (3, WrFlushErr)]);
}

#[test]
fn memory_deregistered_under_a_request_fails_it() {
    let mut pair = Pair::plain();
    pair.post(1, pair.write(START), 5000).unwrap();
    pair.post(2, pair.write(START), 5000).unwrap();
    pair.network.engines[0].deregister(pair.keys[0]).unwrap();
    assert_eq!(pair.finish(0), [(1, LocProtErr), (2, WrFlushErr)]);
}

#[test]
fn an_empty_receive_queue_costs_rnr_retries_and_then_the_connection() {
    let mut pair = Pair::new(|_, how| {
        how.receive.rnr_timer = 10; // 0.32 ms
        how.send.rnr_retry_count = 3;
    });
    let start = pair.network.now_ns;
    pair.post(1, Operation::Send { immediate: Some(1) }, 10).unwrap();
    while pair.network.engines[0].completions_waiting(pair.queues[0]) == 0 {
        assert!(pair.network.step());
    }
    let waited = pair.network.now_ns - start;
    assert_eq!(pair.finish(0), [(1, RnrRetryExcErr)]);
    assert!((960_000..1_200_000).contains(&waited), "{waited} ns for three times 320 us");
    assert_eq!(pair.network.engines[1].counters().rnr_naks_sent, 4);
}

#[test]
fn seven_rnr_retries_are_for_ever_and_end_with_the_receive_request() {
    let mut pair = Pair::plain();
    pair.post(1, Operation::Send { immediate: Some(1) }, 5000).unwrap();
    for _ in 0..1000 {
        pair.network.step();
    }
    assert!(pair.network.engines[1].counters().rnr_naks_sent > 20);
    pair.receive(7, 5000);
    assert_eq!(pair.finish(0), [(1, Success)]);
    assert_eq!(pair.finish(1), [(7, Success)]);
}

#[test]
fn a_peer_that_is_gone_costs_all_retries_and_then_the_connection() {
    let mut pair = Pair::new(|_, how| how.send.retry_count = 3);
    pair.network.faults.partitions.push((0, u64::MAX));
    let start = pair.network.now_ns;
    for id in 1..4 {
        pair.post(id, pair.write(START), 100).unwrap();
    }
    assert_eq!(pair.finish(0), [(1, RetryExcErr), (2, WrFlushErr), (3, WrFlushErr)]);
    let waited = pair.network.now_ns - start;
    assert_eq!(waited, 4 * (4096 << 8), "the first try and three retries");
    assert_eq!(pair.network.engines[0].counters().timeouts, 4);
}

#[test]
fn different_mtus_are_found_out() {
    let mut pair = Pair::new(|side, how| how.receive.mtu = [Mtu::Bytes1024, Mtu::Bytes2048][side]);
    pair.post(1, pair.write(START), 5000).unwrap();
    assert_eq!(pair.finish(0), [(1, RemInvReqErr)]);
}

#[test]
fn a_peer_that_restarted_with_another_psn_costs_the_connection_and_touches_nothing() {
    let mut pair = Pair::new(|side, how| how.receive.receive_psn = [0, 5000][side]);
    pair.post(1, pair.write(START), 100).unwrap();
    assert_eq!(pair.finish(0)[0].0, 1);
    assert_eq!(pair.network.engines[1].region(pair.keys[1]).unwrap()[0], 2);
}

#[test]
fn strangers_and_garbage_are_counted_and_dropped() {
    let mut pair = Pair::plain();
    let [a, b] = pair.network.addresses;
    let good = NetworkHeader::new(a, b);
    let mut bytes = vec![0u8; 16];
    bytes[0] = 4;
    bytes[2..4].fill(0xff);
    bytes[5..8].copy_from_slice(&pair.numbers[1].0.to_be_bytes()[1..]);
    let engine = &mut pair.network.engines[1];
    let send = |engine: &mut Engine<Vec<u8>>, header: &NetworkHeader, bytes: &[u8], seal: bool| {
        let mut bytes = bytes.to_vec();
        if seal {
            PathCrc::new(*header).seal(&mut bytes);
        }
        engine.receive(0, header, &bytes);
    };
    send(engine, &good, &bytes[..15], false);
    send(engine, &good, &bytes, false);
    let stranger = NetworkHeader::new("10.9.9.9:1".parse().unwrap(), b);
    send(engine, &stranger, &bytes, true);
    let mut other = bytes.clone();
    other[2] = 0x7f;
    other[3] = 0;
    send(engine, &good, &other, true);
    other = bytes.clone();
    other[5] ^= 0x80;
    send(engine, &good, &other, true);
    other = bytes.clone();
    other[0] = 0x81;
    send(engine, &good, &other, true);
    other = bytes.clone();
    other[1] = 3;
    send(engine, &good, &other, true);
    let counters = *engine.counters();
    let expected = Counters {
        received: 7,
        malformed: 2,
        wrong_icrc: 1,
        wrong_address: 1,
        wrong_partition_key: 1,
        unknown_queue_pair: 1,
        unsupported_opcode: 1,
        ..Counters::default()
    };
    assert_eq!(counters, expected);
    other = bytes.clone();
    other[0] = 0x17; // SEND ONLY with invalidate, the next PSN
    send(engine, &good, &other, true);
    assert_eq!(pair.states()[1], Error);
}

#[test]
fn posting_reports_what_does_not_fit() {
    let mut pair = Pair::plain();
    let write = pair.write(START);
    let many = [Sge { address: START, length: 1, key: pair.keys[0] }; 5];
    assert_eq!(pair.post_pieces(1, write, &many), Err(PostError::TooManyPieces(5)));
    let long = [Sge { address: START, length: u32::MAX, key: pair.keys[0] }];
    assert_eq!(pair.post_pieces(1, write, &long), Err(PostError::MessageTooLong(u32::MAX as u64)));
    let atomic = Operation::FetchAdd { remote_address: START, remote_key: pair.keys[1], add: 1 };
    assert_eq!(pair.post(1, atomic, 4), Err(PostError::AtomicLength(4)));
    let inline = |operation, bytes| WorkRequest {
        id: 1,
        operation,
        data: Data::Inline(bytes),
        signalled: true,
        fence: false,
        solicited: false,
    };
    let engine = &mut pair.network.engines[0];
    let too_long = engine.post_send(pair.numbers[0], &inline(write, &[0; 33]));
    assert_eq!(too_long, Err(PostError::InlineTooLong { bytes: 33, limit: 32 }));
    assert_eq!(engine.post_send(pair.numbers[0], &inline(atomic, &[0; 8])), Err(PostError::InlineResult));
    assert_eq!(engine.post_send(QueuePairNumber(0), &inline(write, &[])), Err(PostError::Unknown));
    for id in 0..32 {
        pair.post(id, write, 1).unwrap();
    }
    assert_eq!(pair.post(1, write, 1), Err(PostError::QueueFull));
    pair.network.run();
    for id in 32..64 {
        pair.post(id, write, 1).unwrap();
    }
    pair.network.run();
    assert_eq!(pair.post(1, write, 1), Err(PostError::CompletionQueueFull));
    let ids: Vec<u64> = pair.finish(0).into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, (0..64).collect::<Vec<_>>());
}

#[test]
fn long_reads_stay_in_the_window_and_restart_where_a_packet_is_missing() {
    for loss in [0.0, 0.02] {
        let mut pair = Pair::new(|_, how| (how.send.read_window_bytes, how.send.initiator_depth) = (20_000, 2));
        pair.network.faults.loss = loss;
        pair.network.engines[1].region_mut(pair.keys[1]).unwrap().iter_mut().enumerate().for_each(|(at, byte)| {
            *byte = (at * 7 / 3) as u8;
        });
        pair.post(1, pair.read(START), 1 << 20).unwrap();
        while pair.network.step() {
            let (_, read) = pair.network.engines[0].in_flight_bytes(pair.numbers[0]).unwrap();
            assert!(read <= 20_000, "{read} bytes asked for");
        }
        assert_eq!(pair.finish(0), [(1, Success)]);
        let [mine, theirs] = [0, 1].map(|side| pair.network.engines[side].region(pair.keys[side]).unwrap());
        assert!(mine == theirs);
    }
}

#[test]
fn draining_finishes_what_is_begun_and_nothing_else() {
    let mut pair = Pair::plain();
    pair.post(1, pair.write(START), 50_000).unwrap();
    pair.network.transmit(0);
    let engine = &mut pair.network.engines[0];
    engine.to_drain(pair.numbers[0]).unwrap();
    pair.post(2, pair.write(START), 8).unwrap();
    assert_eq!(pair.finish(0), [(1, Success)]);
    assert_eq!(pair.states()[0], SendQueueDrain);
    let engine = &mut pair.network.engines[0];
    assert_eq!(engine.poll_event(), Some(Event::SendQueueDrained(pair.numbers[0])));
    engine.resume(pair.numbers[0]).unwrap();
    assert_eq!(pair.finish(0), [(2, Success)]);
    assert_eq!(pair.states(), [ReadyToSend; 2]);
}

#[test]
fn error_reset_and_destroy_give_everything_back() {
    let mut pair = Pair::plain();
    pair.receive(1, 10);
    pair.post(2, pair.write(START), 100).unwrap();
    let number = pair.numbers[0];
    pair.network.engines[0].to_error(number).unwrap();
    pair.network.engines[1].to_error(pair.numbers[1]).unwrap();
    assert_eq!(pair.finish(0), [(2, WrFlushErr)]);
    assert_eq!(pair.finish(1), [(1, WrFlushErr)]);
    let queue = pair.queues[0];
    let engine = &mut pair.network.engines[0];
    assert_eq!(engine.destroy_completion_queue(queue), Err(ControlError::InUse(2)));
    engine.to_reset(number).unwrap();
    engine.destroy_queue_pair(number).unwrap();
    assert_eq!(engine.destroy_queue_pair(number), Err(ControlError::Unknown));
    engine.destroy_completion_queue(queue).unwrap();
    assert_eq!(engine.destroy_completion_queue(queue), Err(ControlError::Unknown));
}

#[test]
fn duplicated_atomics_and_late_duplicates_change_nothing() {
    let mut pair = Pair::plain();
    pair.network.engines[1].region_mut(pair.keys[1]).unwrap()[..8].fill(0);
    pair.network.faults.duplicate = 0.5;
    pair.network.faults.reorder = 0.3;
    pair.network.faults.loss = 0.1;
    for round in 0..50 {
        for id in 0..20 {
            let add = Operation::FetchAdd { remote_address: START, remote_key: pair.keys[1], add: 1 };
            pair.post(round * 20 + id, add, 8).unwrap();
        }
        assert!(pair.finish(0).iter().all(|completion| completion.1 == Success));
    }
    let memory = pair.network.engines[1].region(pair.keys[1]).unwrap();
    assert_eq!(memory[..8], 1000u64.to_ne_bytes());
}

#[test]
fn a_shared_receive_queue_reports_its_limit_once() {
    let mut network = Network::new(3, Faults::default(), true);
    let engine = &mut network.engines[1];
    let queue = engine.create_shared_receive_queue(8).unwrap();
    let completions = engine.create_completion_queue(16).unwrap();
    let domain = engine.create_domain();
    let key = engine.register(domain, vec![0; 64], START, Access::ALL).unwrap();
    let config = |domain, completions, shared_receives| QueuePairConfig {
        domain,
        send_completions: completions,
        receive_completions: completions,
        shared_receives,
        send_depth: 8,
        receive_depth: 8,
        inline_bytes_max: 8,
        signal_all: true,
    };
    let theirs = engine.create_queue_pair(config(domain, completions, Some(queue))).unwrap();
    for id in 0..4 {
        let pieces = [Sge { address: START, length: 8, key }];
        engine.post_shared_receive(queue, &ReceiveRequest { id, pieces: &pieces }).unwrap();
    }
    engine.set_shared_receive_limit(queue, 3).unwrap();
    let engine = &mut network.engines[0];
    let domain = engine.create_domain();
    let completions = engine.create_completion_queue(16).unwrap();
    let mine = engine.create_queue_pair(config(domain, completions, None)).unwrap();
    let numbers = [mine, theirs];
    for side in 0..2 {
        let receive = network.receive_attributes(side, numbers[1 - side]);
        let engine = &mut network.engines[side];
        engine.to_init(numbers[side], Access::ALL).unwrap();
        engine.to_ready_to_receive(numbers[side], &receive).unwrap();
        engine.to_ready_to_send(numbers[side], &SendAttributes::default()).unwrap();
    }
    for expected in [None, Some(Event::SharedReceiveLimit(queue)), None] {
        let operation = Operation::Send { immediate: None };
        let data = Data::Inline(&[1; 8]);
        let request = WorkRequest { id: 0, operation, data, signalled: true, fence: false, solicited: false };
        network.engines[0].post_send(mine, &request).unwrap();
        network.run();
        assert_eq!(network.engines[1].poll_event(), expected);
    }
}
