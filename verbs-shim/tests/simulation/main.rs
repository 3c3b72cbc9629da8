//! Two engines over a faulty network, against a model of memory and completion order.
//!
//! `SIM_SEED=n cargo test --release --test simulation one_seed -- --nocapture` replays a seed.

#[path = "../engine_pair/mod.rs"]
mod engine_pair;
mod errors;
mod interop;
mod model;
mod network;
mod rxe;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use model::{DEPTH, Flow};
use network::{Faults, Network};
use rand::Rng;
use verbs_shim::soft::engine::*;
use verbs_shim::verbs::*;

fn faults(seed: u64, random: &mut impl Rng) -> Faults {
    let mut faults = Faults { delay_ns: 5_000, jitter_ns: 500, ..Faults::default() };
    match seed % 8 {
        0 => {}
        1 => faults.loss = 0.01,
        2 => faults.loss = 0.05,
        3 => faults.duplicate = 0.1,
        4 => faults.reorder = 0.05,
        5 => faults.corrupt = 0.03,
        6 => (faults.delay_ns, faults.jitter_ns) = (400_000, 400_000),
        _ => {
            (faults.loss, faults.duplicate, faults.reorder, faults.corrupt) = (0.02, 0.05, 0.02, 0.01);
            for _ in 0..3 {
                let start = random.random_range(1_000_000..40_000_000);
                faults.partitions.push((start, start + random.random_range(100_000..4_000_000)));
            }
        }
    }
    faults
}

/// Runs about `operations` on three connections in both directions; returns packets handed over.
fn run(seed: u64, operations: u64) -> u64 {
    let mut network = Network::new(seed, Faults::default(), seed.is_multiple_of(3));
    let mut random = network.random.clone();
    network.faults = faults(seed, &mut random);
    let domains = [network.engines[0].create_domain(), network.engines[1].create_domain()];
    let slot_bytes = [300, 4000, 20_000][random.random_range(0..3)];
    let mut flows = Vec::new();
    for connection in 0..3 {
        let mtu = Mtu::ALL[random.random_range(0..5)];
        let with_shared = connection == 2;
        let mut queues = Vec::new();
        let mut numbers = Vec::new();
        let mut shared = Vec::new();
        for (engine, &domain) in network.engines.iter_mut().zip(&domains) {
            let send = engine.create_completion_queue(DEPTH).unwrap();
            let receive = engine.create_completion_queue(16).unwrap();
            let srq = with_shared.then(|| engine.create_shared_receive_queue(16).unwrap());
            let config = QueuePairConfig {
                domain,
                send_completions: send,
                receive_completions: receive,
                shared_receives: srq,
                send_depth: DEPTH,
                receive_depth: 16,
                inline_bytes_max: 64,
                signal_all: false,
            };
            numbers.push(engine.create_queue_pair(config).unwrap());
            queues.push([send, receive]);
            shared.push(srq);
        }
        let psn = [random.random_range(0..1 << 24), (1 << 24) - random.random_range(1..2000)];
        let depths: [u8; 2] = [random.random_range(1..=16), random.random_range(1..=4)];
        let packet = mtu.bytes() as u64 + HEADER_CHARGE_BYTES;
        let window = (packet * random.random_range(1..64), packet * random.random_range(1..64));
        for side in 0..2 {
            let receive = ReceiveAttributes {
                mtu,
                receive_psn: psn[1 - side],
                responder_depth: depths[1 - side],
                ..network.receive_attributes(side, numbers[1 - side])
            };
            let engine = &mut network.engines[side];
            engine.to_init(numbers[side], Access::ALL).unwrap();
            engine.to_ready_to_receive(numbers[side], &receive).unwrap();
            let send = SendAttributes {
                send_psn: psn[side],
                timeout: 9,
                initiator_depth: depths[side],
                window_bytes: window.0,
                read_window_bytes: window.1,
                ack_every_packets: random.random_range(1..32),
                ..SendAttributes::default()
            };
            engine.to_ready_to_send(numbers[side], &send).unwrap();
        }
        for side in 0..2 {
            let pair = [numbers[side], numbers[1 - side]];
            let completions = [queues[side][0], queues[1 - side][1]];
            let srq = shared[1 - side];
            let mut flow = Flow::new(&mut network, side, domains, pair, completions, srq, slot_bytes, window);
            flow.signal_every = random.random_range(1..8);
            flows.push(flow);
        }
    }
    network.random = random;
    let mut left: Vec<u64> = flows.iter().map(|_| operations / 6).collect();
    loop {
        for (flow, left) in flows.iter_mut().zip(&mut left) {
            let receives = network.random.random_range(0..4);
            flow.post_receives(&mut network, receives);
            let burst = network.random.random_range(0..8);
            for _ in 0..burst.min(*left) {
                if !flow.post(&mut network, *left == 1) {
                    break;
                }
                *left -= 1;
            }
        }
        let moved = network.step();
        for flow in &mut flows {
            flow.check(&mut network);
        }
        if left.iter().all(|&left| left == 0) && flows.iter().all(Flow::is_idle) {
            break;
        }
        assert!(moved || left.iter().any(|&left| left > 0), "stuck at {} ns", network.now_ns);
    }
    network.run();
    for flow in &flows {
        flow.check_end(&network);
    }
    for engine in &network.engines {
        let counters = engine.counters();
        assert_eq!((counters.queue_pair_errors, counters.malformed), (0, 0), "{counters:?}");
        if seed % 8 == 5 && operations > 1000 {
            assert!(counters.wrong_icrc > 0);
        }
        // Without faults nothing is lost; what comes behind an RNR NAK counts as out of order.
        if seed.is_multiple_of(8) {
            assert_eq!((counters.timeouts, counters.naks_sent, counters.wrong_icrc), (0, 0, 0), "{counters:?}");
        }
    }
    network.engines.iter().map(|engine| engine.counters().received).sum()
}

fn run_printing_seed(seed: u64, operations: u64) -> u64 {
    catch_unwind(AssertUnwindSafe(|| run(seed, operations))).unwrap_or_else(|panic| {
        eprintln!("failed; replay with SIM_SEED={seed} SIM_OPERATIONS={operations}, test one_seed");
        resume_unwind(panic)
    })
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[test]
fn a_million_operations_over_faulty_networks_match_the_model() {
    let operations = from_environment("SIM_OPERATIONS", if cfg!(debug_assertions) { 600 } else { 2_604 });
    let seeds = from_environment("SIM_SEEDS", if cfg!(debug_assertions) { 16 } else { 384 });
    let start = from_environment("SIM_FIRST_SEED", 0);
    let packets: u64 = (start..start + seeds).map(|seed| run_printing_seed(seed, operations)).sum();
    println!("{} operations, {packets} packets received", seeds * (operations / 6) * 6);
}

#[test]
fn one_seed() {
    run_printing_seed(from_environment("SIM_SEED", 7), from_environment("SIM_OPERATIONS", 600));
}
