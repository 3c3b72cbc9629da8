//! Two engines, a virtual clock and a faulty network between them. One seed decides everything.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use verbs_shim::soft::engine::*;
use verbs_shim::soft::icrc::{Ipv4Fields, NetworkHeader};
use verbs_shim::soft::packet::PACKET_BYTES_MAX;
use verbs_shim::verbs::*;

pub type Memory = Vec<u8>;
/// (Arrival, order, to which side, bytes)
type Datagram = (u64, u64, usize, Vec<u8>);

/// Probabilities and times of what goes wrong.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    pub loss: f64,
    pub duplicate: f64,
    pub reorder: f64,
    pub corrupt: f64,
    pub delay_ns: u64,
    pub jitter_ns: u64,
    /// Nothing passes between these two times.
    pub partitions: Vec<(u64, u64)>,
}

pub struct Network {
    pub now_ns: u64,
    pub engines: [Engine<Memory>; 2],
    pub addresses: [SocketAddr; 2],
    pub faults: Faults,
    pub random: ChaCha8Rng,
    in_flight: BinaryHeap<Reverse<Datagram>>,
    spare: Vec<Vec<u8>>,
    sent: u64,
    /// The earliest time at which the next in-order packet may arrive, so that only `reorder` reorders.
    last_arrival: [u64; 2],
    buffer: Vec<u8>,
}

impl Network {
    pub fn new(seed: u64, faults: Faults, ipv6: bool) -> Self {
        let engine = |seed| {
            let config = EngineConfig { queue_pairs_max: 16, regions_max: 64, seed, ..EngineConfig::default() };
            Engine::new(config)
        };
        let addresses = if ipv6 { ["[fd00::1]:4791", "[fd00::2]:4791"] } else { ["10.0.0.1:5001", "10.0.0.2:5002"] };
        Network {
            now_ns: 1_000_000,
            engines: [engine(seed), engine(!seed)],
            addresses: addresses.map(|address| address.parse().unwrap()),
            faults,
            random: ChaCha8Rng::seed_from_u64(seed),
            in_flight: BinaryHeap::new(),
            spare: Vec::new(),
            sent: 0,
            last_arrival: [0; 2],
            buffer: vec![0; PACKET_BYTES_MAX],
        }
    }

    pub fn receive_attributes(&self, side: usize, destination: QueuePairNumber) -> ReceiveAttributes {
        ReceiveAttributes {
            local: self.addresses[side],
            peer: self.addresses[1 - side],
            ipv4: Ipv4Fields::PLAIN_SOCKET,
            destination,
            mtu: Mtu::Bytes1024,
            receive_psn: 0,
            responder_depth: 16,
            rnr_timer: 1,
        }
    }

    pub fn transmit(&mut self, from: usize) {
        while let Some(packet) = self.engines[from].poll_transmit(self.now_ns, &mut self.buffer) {
            assert_eq!(packet.destination, self.addresses[1 - from]);
            self.sent += 1;
            let now = self.now_ns;
            if self.faults.partitions.iter().any(|&(start, end)| (start..end).contains(&now)) {
                continue;
            }
            if self.random.random_bool(self.faults.loss) {
                continue;
            }
            let copies = 1 + self.random.random_bool(self.faults.duplicate) as usize;
            for copy in 0..copies {
                let mut bytes = self.spare.pop().unwrap_or_default();
                bytes.clear();
                bytes.extend_from_slice(&self.buffer[..packet.bytes]);
                if self.random.random_bool(self.faults.corrupt) {
                    let bit = self.random.random_range(0..bytes.len() * 8);
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
                let jitter = self.random.random_range(0..=self.faults.jitter_ns);
                let mut arrival = (now + self.faults.delay_ns + jitter).max(self.last_arrival[1 - from] + 1);
                if copy > 0 || self.random.random_bool(self.faults.reorder) {
                    arrival += self.random.random_range(0..50_000);
                } else {
                    self.last_arrival[1 - from] = arrival;
                }
                let order = self.sent * 2 + copy as u64;
                self.in_flight.push(Reverse((arrival, order, 1 - from, bytes)));
            }
        }
    }

    /// Lets both engines send, then goes on to the next arrival or deadline. False if there is none.
    pub fn step(&mut self) -> bool {
        self.transmit(0);
        self.transmit(1);
        let arrival = self.in_flight.peek().map(|Reverse(packet)| packet.0);
        let deadlines = self.engines.iter().filter_map(Engine::next_deadline);
        let Some(next) = deadlines.chain(arrival).min() else { return false };
        self.now_ns = self.now_ns.max(next);
        for _ in 0..32 {
            if self.in_flight.peek().is_none_or(|Reverse(packet)| packet.0 > self.now_ns) {
                break;
            }
            let Some(Reverse((_, _, to, bytes))) = self.in_flight.pop() else { break };
            let header = NetworkHeader::new(self.addresses[1 - to], self.addresses[to]);
            self.engines[to].receive(self.now_ns, &header, &bytes);
            self.spare.push(bytes);
        }
        for engine in &mut self.engines {
            engine.handle_deadlines(self.now_ns);
        }
        true
    }

    pub fn run(&mut self) {
        let mut steps = 0;
        while self.step() {
            steps += 1;
            assert!(steps < 10_000_000, "the network never comes to rest");
        }
    }
}
