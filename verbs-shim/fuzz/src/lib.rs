//! What the fuzz targets call: plain functions over bytes that must not panic. `tests/fuzz_smoke.rs` of the
//! crate runs the same ones with random bytes.

use verbs_shim::soft::engine::*;
use verbs_shim::soft::icrc::{self, Ipv4Fields, NetworkHeader, PathCrc};
use verbs_shim::soft::packet::{PACKET_BYTES_MAX, Packet};
use verbs_shim::verbs::*;

/// Any bytes parse or fail; what parses is written back and parses to the same.
pub fn packet(data: &[u8]) {
    let header = NetworkHeader::new("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
    let _ = icrc::verify(&header, data);
    if let Ok(packet) = Packet::parse(data) {
        let mut out = vec![0; packet.wire_bytes()];
        assert_eq!(packet.write(&mut out), out.len());
        let again = Packet::parse(&out).unwrap();
        assert_eq!((again.extension, again.payload), (packet.extension, packet.payload));
        PathCrc::new(header).seal(&mut out);
        assert!(icrc::verify(&header, &out));
    }
}

const START: u64 = 0x1000;
const REGION_BYTES: usize = 1 << 14;

/// An engine with three established queue pairs and work in flight takes the datagrams, posts and times that
/// `data` spells. Each step is one byte of command, one of length, and the bytes.
///
/// Commands mostly repair what random bytes never hit: the ICRC, the queue pair number, the PSN, the keys.
pub fn engine(data: &[u8]) {
    let addresses = ["10.0.0.1:4791", "10.0.0.2:4791"].map(|address| address.parse().unwrap());
    let [local, peer] = addresses;
    let config = EngineConfig { queue_pairs_max: 4, regions_max: 4, ..EngineConfig::default() };
    let mut engine: Engine<Vec<u8>> = Engine::new(config);
    let domain = engine.create_domain();
    let key = engine.register(domain, vec![7; REGION_BYTES], START, Access::ALL).unwrap();
    let queue = engine.create_completion_queue(256).unwrap();
    let shared = engine.create_shared_receive_queue(8).unwrap();
    let numbers: Vec<QueuePairNumber> = (0..3)
        .map(|pair| {
            let config = QueuePairConfig {
                domain,
                send_completions: queue,
                receive_completions: queue,
                shared_receives: (pair == 2).then_some(shared),
                send_depth: 16,
                receive_depth: 16,
                inline_bytes_max: 16,
                signal_all: pair == 1,
            };
            let number = engine.create_queue_pair(config).unwrap();
            engine.to_init(number, Access::ALL).unwrap();
            let receive = ReceiveAttributes {
                local,
                peer,
                ipv4: Ipv4Fields::PLAIN_SOCKET,
                destination: QueuePairNumber(99),
                mtu: if pair == 1 { Mtu::Bytes1024 } else { Mtu::Bytes256 },
                receive_psn: 0xff_fffe,
                responder_depth: 4,
                rnr_timer: 1,
            };
            engine.to_ready_to_receive(number, &receive).unwrap();
            let send = SendAttributes { send_psn: 0xff_fffe, initiator_depth: 4, ..SendAttributes::default() };
            engine.to_ready_to_send(number, &send).unwrap();
            number
        })
        .collect();
    let header = NetworkHeader::new(peer, local);
    let mut incoming = PathCrc::new(header);
    let mut buffer = vec![0u8; PACKET_BYTES_MAX];
    let mut expected = [0xff_fffeu32; 3];
    let mut now_ns = 0u64;
    let mut rest = data;
    let mut id = 0;
    while let [command, length, after @ ..] = rest {
        let (bytes, after) = after.split_at((*length as usize * 2).min(after.len()));
        rest = after;
        let pair = (*command & 3) as usize % 3;
        let number = numbers[pair];
        let word = |at: usize| bytes.get(at).copied().unwrap_or(0);
        id += 1;
        match command >> 5 {
            0 => engine.receive(now_ns, &header, bytes),
            1..=3 if bytes.len() >= 12 => {
                let mut datagram = bytes.to_vec();
                datagram[2..4].fill(0xff);
                datagram[5..8].copy_from_slice(&number.0.to_be_bytes()[1..]);
                if command & 4 != 0 {
                    // A PSN close to the expected one.
                    let near = expected[pair].wrapping_add_signed((datagram[11] & 7) as i32 - 2);
                    datagram[9..12].copy_from_slice(&near.to_be_bytes()[1..]);
                    expected[pair] += (near & 0xff_ffff == expected[pair] & 0xff_ffff) as u32;
                }
                if command & 8 != 0 && datagram.len() >= 28 {
                    datagram[1] &= 0xf0;
                    datagram[12..18].fill(0);
                    datagram[18] &= 0x3f;
                    datagram[20..24].copy_from_slice(&key.0.to_be_bytes());
                    datagram[24..26].fill(0);
                }
                if command & 16 != 0 {
                    datagram.resize(datagram.len().next_multiple_of(4), 0);
                    datagram[1] &= 0xc0;
                }
                datagram.extend([0; 4]);
                incoming.seal(&mut datagram);
                engine.receive(now_ns, &header, &datagram);
            }
            4 => {
                let pieces = [Sge { address: START, length: word(0) as u32 * 8, key }];
                let request = ReceiveRequest { id, pieces: &pieces };
                let _ = engine.post_receive(number, &request);
                let _ = engine.post_shared_receive(shared, &request);
            }
            5 => {
                let remote_address = START + word(0) as u64;
                let length = if word(1) & 7 > 2 { 8 } else { word(2) as u32 * 9 };
                let pieces = [Sge { address: START + word(4) as u64, length, key }];
                let operation = match word(1) & 7 {
                    0 => Operation::Send { immediate: Some(1) },
                    1 => Operation::Write { remote_address, remote_key: key, immediate: None },
                    2 => Operation::Read { remote_address, remote_key: key },
                    3 => Operation::CompareSwap { remote_address, remote_key: key, compare: 1, swap: 2 },
                    _ => Operation::FetchAdd { remote_address, remote_key: key, add: 3 },
                };
                let request = WorkRequest {
                    id,
                    operation,
                    data: Data::Pieces(&pieces),
                    signalled: word(3) & 1 == 0,
                    fence: word(3) & 2 == 0,
                    solicited: true,
                };
                let _ = engine.post_send(number, &request);
            }
            6 => {
                now_ns += (word(0) as u64) << (word(1) & 31);
                engine.handle_deadlines(now_ns);
            }
            _ => {}
        }
        for _ in 0..64 {
            let Some(packet) = engine.poll_transmit(now_ns, &mut buffer) else { break };
            assert!(icrc::verify(&NetworkHeader::new(local, peer), &buffer[..packet.bytes]));
            assert!(Packet::parse(&buffer[..packet.bytes]).is_ok());
        }
        while engine.poll_completion(queue).is_some() {}
        while engine.poll_event().is_some() {}
    }
    for number in numbers {
        engine.destroy_queue_pair(number).unwrap();
    }
    engine.destroy_completion_queue(queue).unwrap();
}
