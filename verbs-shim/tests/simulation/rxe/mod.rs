//! The kernel's rxe as a model, against the engine, over a network that loses packets.
//!
//! What the model knows is what rxe does and the specification does not say, read out of `rxe_req.c`, `rxe_comp.c`
//! and `rxe_resp.c` of Linux 6.1 to about 6.5: how it retries a READ in part, what it takes for the end of a request, which
//! repeated requests it answers and which it drops, and what it breaks the connection for.

mod requester;
mod responder;

use std::collections::VecDeque;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use requester::Requester;
use responder::Responder;
use verbs_shim::soft::engine::*;
use verbs_shim::soft::icrc::{NetworkHeader, PathCrc};
use verbs_shim::soft::packet::*;
use verbs_shim::verbs::*;

use crate::engine_pair::{self, Attributes, Setup};

const START: u64 = 0x10_0000;
const MTU: usize = 256;
const DEPTH: usize = 3;
const REGION_BYTES: usize = 1 << 15;

fn distance(from: u32, to: u32) -> i64 {
    ((to.wrapping_sub(from) << 8) as i32 >> 8) as i64
}

fn plus(psn: u32, packets: usize) -> u32 {
    (psn + packets as u32) & MASK_24
}

/// A packet that owns its payload.
#[derive(Debug, Clone)]
struct Owned {
    bth: Bth,
    extension: Extension,
    payload: Vec<u8>,
}

fn begins(opcode: Opcode) -> bool {
    use Opcode::*;
    opcode.starts_message()
        || matches!(
            opcode,
            ReadRequest
                | CompareSwap
                | FetchAdd
                | ReadResponseFirst
                | ReadResponseOnly
                | Acknowledge
                | AtomicAcknowledge
        )
}

fn ends(opcode: Opcode) -> bool {
    !matches!(
        opcode,
        Opcode::SendFirst
            | Opcode::SendMiddle
            | Opcode::WriteFirst
            | Opcode::WriteMiddle
            | Opcode::ReadResponseFirst
            | Opcode::ReadResponseMiddle
    )
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Write,
    Read,
    Add,
}

/// The engine's end of the connection.
struct End {
    engine: Engine<Vec<u8>>,
    number: QueuePairNumber,
    queue: CompletionQueueId,
    key: MemoryKey,
    incoming: PathCrc,
    now_ns: u64,
}

impl End {
    fn new(random: &mut ChaCha8Rng, psn: u32) -> Self {
        let (local, peer) = ("[fd00::1]:4791".parse().unwrap(), "[fd00::2]:4791".parse().unwrap());
        let mut engine = Engine::new(EngineConfig { seed: random.random(), ..EngineConfig::default() });
        let memory = (0..REGION_BYTES).map(|at| (at * 7 / 5) as u8).collect();
        let setup = Setup {
            start: START,
            completions: 64,
            send_depth: 16,
            receive_depth: 0,
            inline_bytes_max: 0,
            signal_all: true,
        };
        let end = engine_pair::End::new(&mut engine, memory, &setup);
        let mut how = Attributes::new(local, peer, QueuePairNumber(17));
        let receive = ReceiveAttributes {
            mtu: Mtu::Bytes256,
            receive_psn: psn,
            responder_depth: DEPTH as u8,
            rnr_timer: 12,
            ..how.receive
        };
        let packet = MTU as u64 + HEADER_CHARGE_BYTES;
        how.send = SendAttributes {
            send_psn: psn,
            timeout: 8,
            initiator_depth: DEPTH as u8,
            window_bytes: packet * random.random_range(2..40),
            read_window_bytes: packet * random.random_range(2..40),
            ..SendAttributes::default()
        };
        end.connect(&mut engine, &Attributes { receive, ..how });
        let engine_pair::End { number, queue, key, .. } = end;
        let incoming = PathCrc::new(NetworkHeader::new("[fd00::2]:50001".parse().unwrap(), local));
        End { engine, number, queue, key, incoming, now_ns: 0 }
    }

    fn deliver(&mut self, opcode: Opcode, psn: u32, ask: bool, extension: Extension, payload: &[u8]) {
        let bth = Bth {
            opcode,
            solicited: false,
            migration: false,
            pad: 0,
            partition_key: DEFAULT_PARTITION_KEY,
            destination: self.number.0,
            ack_request: ask,
            psn,
        };
        let packet = Packet { bth, extension, payload };
        let mut bytes = vec![0; packet.wire_bytes()];
        packet.write(&mut bytes);
        self.incoming.seal(&mut bytes);
        let header = *self.incoming.header();
        self.engine.receive(self.now_ns, &header, &bytes);
    }

    fn take(&mut self) -> Option<Owned> {
        let mut buffer = [0; PACKET_BYTES_MAX];
        let transmit = self.engine.poll_transmit(self.now_ns, &mut buffer)?;
        let packet = Packet::parse(&buffer[..transmit.bytes]).unwrap();
        Some(Owned { bth: packet.bth, extension: packet.extension, payload: packet.payload.to_vec() })
    }
}

/// Offsets: WRITEs go to the second half, READs read the first, atomics add to its first word.
fn any_request(random: &mut ChaCha8Rng) -> (Kind, usize, usize) {
    let half = REGION_BYTES / 2;
    let length = [1, 8, 256, 257, 700, 5000][random.random_range(0..6)];
    match random.random_range(0..5) {
        0 | 1 => (Kind::Write, half + random.random_range(0..half - length), length),
        2 | 3 => (Kind::Read, 8 + random.random_range(0..half - 8 - length), length),
        _ => (Kind::Add, 0, 8),
    }
}

fn rxe_asks(seed: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let psn = [0, MASK_24 - 50][random.random_range(0..2)];
    let mut end = End::new(&mut random, psn);
    let loss = [0.0, 0.02, 0.2][seed as usize % 3];
    let mut rxe = Requester::new(psn);
    let mut back: VecDeque<Owned> = VecDeque::new();
    let first = u64::from_ne_bytes(end.engine.region(end.key).unwrap()[..8].try_into().unwrap());
    let initial = end.engine.region(end.key).unwrap().clone();
    let source: Vec<u8> = (0..REGION_BYTES).map(|at| (at * 11 / 3) as u8).collect();
    let mut expected = initial.clone();
    let mut posted = 0;
    let mut rounds = 0;
    while rxe.done.len() < 60 {
        rounds += 1;
        assert!(rounds < 100_000, "stuck after {} requests: {:?}, {:?}", rxe.done.len(), rxe.queue, rxe.state());
        if posted < 60 && random.random_bool(0.3) {
            let (kind, offset, length) = any_request(&mut random);
            rxe.post(kind, offset, length);
            if kind == Kind::Write {
                expected[offset..offset + length].copy_from_slice(&source[offset..offset + length]);
            }
            posted += 1;
        }
        let mut moved = posted < 60;
        for _ in 0..random.random_range(1..12) {
            let Some((opcode, psn, ask, at, length, (from, bytes))) = rxe.send() else { break };
            moved = true;
            let remote_key = end.key.0;
            let reth = Reth { address: START + at as u64, remote_key, length: length as u32 };
            let extension = match opcode {
                Opcode::FetchAdd => {
                    Extension::Atomic(AtomicEth { address: START, remote_key, swap_or_add: 3, compare: 0 })
                }
                Opcode::WriteFirst | Opcode::WriteOnly | Opcode::ReadRequest => Extension::Rdma(reth),
                _ => Extension::None,
            };
            if !random.random_bool(loss) {
                end.deliver(opcode, psn, ask, extension, &source[from..from + bytes]);
            }
        }
        for _ in 0..random.random_range(0..12) {
            let Some(packet) = end.take() else { break };
            moved = true;
            if !random.random_bool(loss) {
                back.push_back(packet);
            }
        }
        for _ in 0..random.random_range(0..12) {
            let Some(packet) = back.pop_front() else { break };
            moved = true;
            rxe.receive(&packet);
        }
        if !moved || random.random_bool(0.005) {
            rxe.retry(true);
        }
        assert_eq!(end.engine.state(end.number), Some(QueuePairState::ReadyToSend));
    }
    let mut adds = 0;
    for request in &rxe.done {
        match request.kind {
            Kind::Write => {}
            Kind::Read => {
                let original = &initial[request.offset..request.offset + request.length];
                assert!(request.received == original, "a READ that completed has its data");
            }
            Kind::Add => {
                assert_eq!(request.received, first.wrapping_add(3 * adds).to_ne_bytes());
                adds += 1;
            }
        }
    }
    expected[..8].copy_from_slice(&first.wrapping_add(3 * adds).to_ne_bytes());
    assert!(*end.engine.region(end.key).unwrap() == expected);
}

fn rxe_answers(seed: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let psn = [0, MASK_24 - 50][random.random_range(0..2)];
    let mut end = End::new(&mut random, psn);
    let loss = [0.0, 0.02, 0.1][seed as usize % 3];
    let mut rxe = Responder::new((0..REGION_BYTES).map(|at| (at * 11 / 3) as u8).collect(), psn);
    let mut expected = rxe.memory.clone();
    let half = REGION_BYTES / 2;
    let mut there: VecDeque<Owned> = VecDeque::new();
    let mut posted: VecDeque<(u64, Kind, usize, usize, Vec<u8>)> = VecDeque::new();
    let (mut next, mut done) = (0, 0);
    while done < 60 {
        // One request for each part of the local memory at a time.
        if next < 60 && posted.len() < 3 && random.random_bool(0.5) {
            let (kind, offset, length) = any_request(&mut random);
            let remote_address = START + offset as u64;
            let remote_key = MemoryKey(77);
            let mine = next as usize % 3 * 5120;
            let bytes = end.engine.region(end.key).unwrap()[mine..mine + length].to_vec();
            let (operation, result) = match kind {
                Kind::Write => {
                    expected[offset..offset + length].copy_from_slice(&bytes);
                    (Operation::Write { remote_address, remote_key, immediate: None }, bytes)
                }
                Kind::Read => {
                    (Operation::Read { remote_address, remote_key }, expected[offset..offset + length].to_vec())
                }
                Kind::Add => {
                    let before: [u8; 8] = expected[..8].try_into().unwrap();
                    let after = u64::from_ne_bytes(before).wrapping_add(3);
                    expected[..8].copy_from_slice(&after.to_ne_bytes());
                    (Operation::FetchAdd { remote_address, remote_key, add: 3 }, before.to_vec())
                }
            };
            let pieces = [Sge { address: START + mine as u64, length: length as u32, key: end.key }];
            let data = Data::Pieces(&pieces);
            let request = WorkRequest { id: next, operation, data, signalled: true, fence: false, solicited: false };
            end.engine.post_send(end.number, &request).unwrap();
            posted.push_back((next, kind, mine, length, result));
            next += 1;
        }
        let mut moved = next < 60 && posted.len() < 3;
        for _ in 0..random.random_range(0..12) {
            let Some(packet) = end.take() else { break };
            moved = true;
            if !random.random_bool(loss) {
                there.push_back(packet);
            }
        }
        for _ in 0..random.random_range(0..6) {
            let Some(packet) = there.pop_front() else { break };
            moved = true;
            let mut answers = Vec::new();
            rxe.receive(&packet, &mut answers);
            for (opcode, psn, extension, payload) in answers {
                if !random.random_bool(loss) {
                    end.deliver(opcode, psn, false, extension, &payload);
                }
            }
        }
        end.now_ns += 10_000;
        if !moved && there.is_empty() {
            end.now_ns = end.now_ns.max(end.engine.next_deadline().unwrap_or(0));
        }
        end.engine.handle_deadlines(end.now_ns);
        while let Some(completion) = end.engine.poll_completion(end.queue) {
            assert_eq!(completion.status, WcStatus::Success);
            let (id, _, mine, length, result) = posted.pop_front().unwrap();
            assert_eq!(completion.id, id);
            let memory = end.engine.region(end.key).unwrap();
            assert!(memory[mine..mine + length] == result, "result of request {id}");
            done += 1;
        }
    }
    assert!(rxe.memory[half..] == expected[half..] && rxe.memory[..8] == expected[..8]);
}

fn each_seed(run: fn(u64)) {
    for seed in 0..if cfg!(debug_assertions) { 60 } else { 1500 } {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!("failed with seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn rxe_as_the_requester_gets_everything_right_over_a_lossy_network() {
    each_seed(rxe_asks);
}

#[test]
fn rxe_as_the_responder_is_asked_right_over_a_lossy_network() {
    each_seed(rxe_answers);
}
