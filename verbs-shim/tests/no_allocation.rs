//! In steady state the engine allocates nothing: counted by the allocator.

#![allow(unsafe_code)]

mod engine_pair;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use engine_pair::{End, Setup};
use verbs_shim::soft::engine::*;
use verbs_shim::soft::packet::PACKET_BYTES_MAX;
use verbs_shim::verbs::*;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn every_operation_runs_without_allocation() {
    let addresses = engine_pair::addresses();
    let mut engines: [Engine<Vec<u8>>; 2] = [0, 1].map(|_| Engine::new(EngineConfig::default()));
    let ends = engine_pair::pair(&mut engines, addresses, 1 << 20, &Setup::default(), |_, _| {});
    let headers = engine_pair::headers(addresses);
    let mut buffer = vec![0u8; PACKET_BYTES_MAX];
    let End { number, key, queue, .. } = ends[0];
    let End { number: peer, key: remote_key, queue: peer_queue, .. } = ends[1];
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let mut completions = 0;
    let mut now_ns = 0;
    for round in 0..2_000u64 {
        let length = (round * 37 % 9_000) as u32;
        let piece = |length| [Sge { address: 0, length, key }];
        let receive = [Sge { address: 0, length: 10_000, key: remote_key }];
        engines[1].post_receive(peer, &ReceiveRequest { id: round, pieces: &receive }).unwrap();
        let operations = [
            (Operation::Send { immediate: Some(7) }, length),
            (Operation::Write { remote_address: 8, remote_key, immediate: None }, length),
            (Operation::Read { remote_address: 16, remote_key }, length),
            (Operation::FetchAdd { remote_address: 24, remote_key, add: 1 }, 8),
        ];
        for (operation, length) in operations {
            let pieces = piece(length);
            let data = Data::Pieces(&pieces);
            let request = WorkRequest { id: round, operation, data, signalled: true, fence: false, solicited: false };
            engines[0].post_send(number, &request).unwrap();
        }
        let mut packets = 0;
        loop {
            let mut moved = false;
            for side in 0..2 {
                while let Some(packet) = engines[side].poll_transmit(now_ns, &mut buffer) {
                    moved = true;
                    packets += 1;
                    if (round + packets) % 41 != 0 {
                        engines[1 - side].receive(now_ns, &headers[1 - side], &buffer[..packet.bytes]);
                    }
                }
            }
            while let Some(completion) = engines[0].poll_completion(queue) {
                assert_eq!(completion.status, WcStatus::Success);
                completions += 1;
            }
            if !moved && completions == 4 * (round + 1) {
                break;
            }
            if !moved {
                now_ns = engines[0].next_deadline().unwrap();
                engines[0].handle_deadlines(now_ns);
            }
        }
        while engines[1].poll_completion(peer_queue).is_some() {}
    }
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
    assert!(engines[0].counters().retransmitted > 0);
}
