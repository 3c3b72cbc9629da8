//! How fast the engine is without a network: two engines hand each other packets through memory, on one thread.
//! Run it with `cargo run --release --example engine_speed`.
//!
//! The sender builds packets as for one call with segmentation offload, then a copy into a buffer of 64 KiB stands for
//! the kernel's; the receiver takes them out of that buffer. The two are timed apart: a socket path has them on two
//! cores, and pays the system calls on top.

#[path = "../tests/engine_pair/mod.rs"]
mod engine_pair;

use std::time::{Duration, Instant};

use engine_pair::{End, Setup};
use verbs_shim::soft::engine::*;
use verbs_shim::soft::icrc::NetworkHeader;
use verbs_shim::soft::packet::PACKET_BYTES_MAX;
use verbs_shim::verbs::*;

const REGION_BYTES: usize = 8 << 20;
const KERNEL_BYTES: usize = 64 << 10;
const ROUNDS: usize = 7;

fn main() {
    println!("{:14} {:>8} {:>8} {:>10} {:>10}", "", "M op/s", "GB/s", "send ns", "receive ns");
    for (name, bytes, total) in
        [("8 B WRITE", 8u32, 200_000u64), ("64 KiB WRITE", 65_536, 6_000), ("64 KiB READ", 65_536, 6_000)]
    {
        let mut rounds: Vec<Measured> = (0..ROUNDS).map(|_| measure(name.ends_with("READ"), bytes, total)).collect();
        let mut median = |of: fn(&Measured) -> f64| {
            rounds.sort_by(|a, b| of(a).total_cmp(&of(b)));
            of(&rounds[ROUNDS / 2])
        };
        let (sending, receiving) = (median(|m| m.send_ns_per_packet), median(|m| m.receive_ns_per_packet));
        let seconds = median(|m| m.seconds);
        println!(
            "{name:14} {:8.2} {:8.2} {sending:10.0} {receiving:10.0}",
            total as f64 / seconds / 1e6,
            total as f64 * bytes as f64 / seconds / 1e9,
        );
    }
}

/// Of the direction that carries the data; `seconds` is everything, both sides.
struct Measured {
    seconds: f64,
    send_ns_per_packet: f64,
    receive_ns_per_packet: f64,
}

/// Packets of one call into the kernel, and what the kernel has of them.
struct Batch {
    staging: Vec<u8>,
    kernel: Vec<u8>,
    lengths: Vec<usize>,
}

impl Batch {
    fn new() -> Self {
        Batch { staging: vec![0; KERNEL_BYTES], kernel: vec![0; KERNEL_BYTES], lengths: Vec::new() }
    }

    /// Builds packets until the engine is dry or the call is full, and lets "the kernel" copy them.
    fn fill(&mut self, engine: &mut Engine<Vec<u8>>) {
        self.lengths.clear();
        let mut used = 0;
        while used + PACKET_BYTES_MAX <= KERNEL_BYTES {
            let Some(packet) = engine.poll_transmit(0, &mut self.staging[used..]) else { break };
            used += packet.bytes;
            self.lengths.push(packet.bytes);
        }
        self.kernel[..used].copy_from_slice(&self.staging[..used]);
    }

    fn empty(&self, engine: &mut Engine<Vec<u8>>, header: &NetworkHeader) {
        let mut at = 0;
        for &length in &self.lengths {
            engine.receive(0, header, &self.kernel[at..at + length]);
            at += length;
        }
    }
}

fn measure(read: bool, bytes: u32, total: u64) -> Measured {
    let addresses = engine_pair::addresses();
    let mut engines: [Engine<Vec<u8>>; 2] = [0, 1].map(|_| Engine::new(EngineConfig::default()));
    let setup = Setup { completions: 512, send_depth: 128, receive_depth: 1, ..Setup::default() };
    let ends = engine_pair::pair(&mut engines, addresses, REGION_BYTES, &setup, |_, how| {
        how.receive.mtu = Mtu::Bytes4096;
    });
    let headers = engine_pair::headers(addresses);
    let mut batch = Batch::new();
    let (mut posted, mut done) = (0u64, 0u64);
    let End { number, key, queue, .. } = ends[0];
    let remote_key = ends[1].key;
    let (mut sending, mut receiving) = (Duration::ZERO, Duration::ZERO);
    let data_from = read as usize;
    let start = Instant::now();
    while done < total {
        while posted < total && posted - done < 128 {
            let remote_address = posted * bytes as u64 % (REGION_BYTES as u64 / 2);
            let operation = match read {
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
            for _ in 0..8 {
                let begin = Instant::now();
                batch.fill(&mut engines[side]);
                let between = Instant::now();
                batch.empty(&mut engines[1 - side], &headers[1 - side]);
                if side == data_from {
                    sending += between - begin;
                    receiving += between.elapsed();
                }
                if batch.lengths.is_empty() {
                    break;
                }
            }
        }
        while let Some(completion) = engines[0].poll_completion(queue) {
            assert_eq!(completion.status, WcStatus::Success);
            done += 1;
        }
    }
    let packets = engines[data_from].counters().transmitted as f64;
    Measured {
        seconds: start.elapsed().as_secs_f64(),
        send_ns_per_packet: sending.as_nanos() as f64 / packets,
        receive_ns_per_packet: receiving.as_nanos() as f64 / packets,
    }
}
