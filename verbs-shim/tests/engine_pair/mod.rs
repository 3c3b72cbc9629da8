//! An end of a connection on an engine, and two of them connected. For tests and examples, which include this file.

#![allow(dead_code, reason = "nobody who includes it uses all of it")]

use std::net::SocketAddr;

use verbs_shim::soft::engine::*;
use verbs_shim::soft::icrc::{Ipv4Fields, NetworkHeader};
use verbs_shim::verbs::*;

/// What an end is made with: one region with all rights, one completion queue, one queue pair.
pub struct Setup {
    /// Virtual address of the region.
    pub start: u64,
    pub completions: usize,
    pub send_depth: usize,
    pub receive_depth: usize,
    pub inline_bytes_max: usize,
    pub signal_all: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Setup { start: 0, completions: 256, send_depth: 64, receive_depth: 64, inline_bytes_max: 64, signal_all: false }
    }
}

#[derive(Clone, Copy)]
pub struct End {
    pub domain: ProtectionDomain,
    pub key: MemoryKey,
    pub queue: CompletionQueueId,
    pub number: QueuePairNumber,
}

impl End {
    /// With a queue pair in the state RESET.
    pub fn new(engine: &mut Engine<Vec<u8>>, memory: Vec<u8>, setup: &Setup) -> Self {
        let domain = engine.create_domain();
        let key = engine.register(domain, memory, setup.start, Access::ALL).unwrap();
        let queue = engine.create_completion_queue(setup.completions).unwrap();
        let config = QueuePairConfig {
            domain,
            send_completions: queue,
            receive_completions: queue,
            shared_receives: None,
            send_depth: setup.send_depth,
            receive_depth: setup.receive_depth,
            inline_bytes_max: setup.inline_bytes_max,
            signal_all: setup.signal_all,
        };
        End { domain, key, queue, number: engine.create_queue_pair(config).unwrap() }
    }

    /// From RESET to ready-to-send.
    pub fn connect(&self, engine: &mut Engine<Vec<u8>>, how: &Attributes) {
        engine.to_init(self.number, how.access).unwrap();
        engine.to_ready_to_receive(self.number, &how.receive).unwrap();
        engine.to_ready_to_send(self.number, &how.send).unwrap();
    }
}

/// How an end is connected.
pub struct Attributes {
    pub access: Access,
    pub receive: ReceiveAttributes,
    pub send: SendAttributes,
}

impl Attributes {
    /// To a queue pair over plain sockets, first PSN 0 both ways.
    pub fn new(local: SocketAddr, peer: SocketAddr, destination: QueuePairNumber) -> Self {
        let receive = ReceiveAttributes {
            local,
            peer,
            ipv4: Ipv4Fields::PLAIN_SOCKET,
            destination,
            mtu: Mtu::Bytes1024,
            receive_psn: 0,
            responder_depth: 16,
            rnr_timer: 1,
        };
        Attributes { access: Access::ALL, receive, send: SendAttributes::default() }
    }
}

/// Two IPv6 addresses.
pub fn addresses() -> [SocketAddr; 2] {
    ["[fd00::1]:4791", "[fd00::2]:4791"].map(|address| address.parse().unwrap())
}

/// What each of two engines receives its packets with.
pub fn headers(addresses: [SocketAddr; 2]) -> [NetworkHeader; 2] {
    [NetworkHeader::new(addresses[1], addresses[0]), NetworkHeader::new(addresses[0], addresses[1])]
}

/// Connects an end of each engine to one of the other; `change` gets the side. The memory of side 0 is all 1, that of
/// side 1 all 2.
pub fn pair(
    engines: &mut [Engine<Vec<u8>>; 2],
    addresses: [SocketAddr; 2],
    region_bytes: usize,
    setup: &Setup,
    change: impl Fn(usize, &mut Attributes),
) -> [End; 2] {
    let ends = [0, 1].map(|side| End::new(&mut engines[side], vec![side as u8 + 1; region_bytes], setup));
    for side in 0..2 {
        let mut how = Attributes::new(addresses[side], addresses[1 - side], ends[1 - side].number);
        change(side, &mut how);
        ends[side].connect(&mut engines[side], &how);
    }
    ends
}
