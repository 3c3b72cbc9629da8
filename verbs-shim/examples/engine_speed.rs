//! How fast the engine is without a network: two engines hand each other packets in memory, on one thread.
//! Run it with `cargo run --release --example engine_speed`.
//!
//! The figures are for both sides together: a socket path on two cores gets at most about twice as much.

use std::time::Instant;

use verbs_shim::soft::engine::*;
use verbs_shim::soft::icrc::{Ipv4Fields, NetworkHeader};
use verbs_shim::soft::packet::PACKET_BYTES_MAX;
use verbs_shim::verbs::*;

const REGION_BYTES: usize = 8 << 20;

fn main() {
    for (name, bytes, total) in
        [("8 B WRITE", 8u32, 2_000_000u64), ("64 KiB WRITE", 65_536, 60_000), ("64 KiB READ", 65_536, 60_000)]
    {
        measure(name, bytes, total);
    }
}

fn measure(name: &str, bytes: u32, total: u64) {
    let addresses = ["[fd00::1]:4791".parse().unwrap(), "[fd00::2]:4791".parse().unwrap()];
    let mut engines: [Engine<Vec<u8>>; 2] = [0, 1].map(|_| Engine::new(EngineConfig::default()));
    let mut ends = Vec::new();
    for engine in &mut engines {
        let domain = engine.create_domain();
        let key = engine.register(domain, vec![1; REGION_BYTES], 0, Access::ALL).unwrap();
        let queue = engine.create_completion_queue(512).unwrap();
        let config = QueuePairConfig {
            domain,
            send_completions: queue,
            receive_completions: queue,
            shared_receives: None,
            send_depth: 128,
            receive_depth: 1,
            inline_bytes_max: 64,
            signal_all: false,
        };
        ends.push((engine.create_queue_pair(config).unwrap(), key, queue));
    }
    for side in 0..2 {
        let receive = ReceiveAttributes {
            local: addresses[side],
            peer: addresses[1 - side],
            ipv4: Ipv4Fields::PLAIN_SOCKET,
            destination: ends[1 - side].0,
            mtu: Mtu::Bytes4096,
            receive_psn: 0,
            responder_depth: 16,
            rnr_timer: 1,
        };
        engines[side].to_init(ends[side].0, Access::ALL).unwrap();
        engines[side].to_ready_to_receive(ends[side].0, &receive).unwrap();
        engines[side].to_ready_to_send(ends[side].0, &SendAttributes::default()).unwrap();
    }
    let headers = [NetworkHeader::new(addresses[1], addresses[0]), NetworkHeader::new(addresses[0], addresses[1])];
    let mut buffer = vec![0u8; PACKET_BYTES_MAX];
    let (mut posted, mut done) = (0u64, 0u64);
    let (number, key, queue) = ends[0];
    let remote_key = ends[1].1;
    let start = Instant::now();
    while done < total {
        while posted < total && posted - done < 128 {
            let remote_address = posted * bytes as u64 % (REGION_BYTES as u64 / 2);
            let operation = match name.ends_with("READ") {
                true => Operation::Read { remote_address, remote_key },
                false => Operation::Write { remote_address, remote_key, immediate: None },
            };
            let pieces = [Sge { address: remote_address, length: bytes, key }];
            let data = Data::Pieces(&pieces);
            let request = WorkRequest { id: posted, operation, data, signalled: true, fence: false, solicited: false };
            if engines[0].post_send(number, &request).is_err() {
                break;
            }
            posted += 1;
        }
        for side in 0..2 {
            for _ in 0..64 {
                let Some(packet) = engines[side].poll_transmit(0, &mut buffer) else { break };
                engines[1 - side].receive(0, &headers[1 - side], &buffer[..packet.bytes]);
            }
        }
        while let Some(completion) = engines[0].poll_completion(queue) {
            assert_eq!(completion.status, WcStatus::Success);
            done += 1;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let packets = engines[0].counters().transmitted + engines[1].counters().transmitted;
    println!(
        "{name}: {:.2} M/s, {:.2} GB/s, {:.0} ns a packet (build and take)",
        total as f64 / seconds / 1e6,
        total as f64 * bytes as f64 / seconds / 1e9,
        seconds * 1e9 / packets as f64
    );
}
