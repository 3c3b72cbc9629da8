//! Packet by packet against one engine, as the kernel's rxe sends and expects them (`rxe_req.c`, `rxe_comp.c`,
//! `rxe_resp.c`). rxe takes some things that the specification leaves open in its own way: these must fit.

use verbs_shim::soft::engine::*;
use verbs_shim::soft::icrc::{NetworkHeader, PathCrc};
use verbs_shim::soft::packet::*;
use verbs_shim::verbs::*;

use crate::engine_pair::{Attributes, End, Setup};

const START: u64 = 0x4000;
const MTU: u32 = 256;

/// Opcode, PSN, extension, payload, acknowledgement asked for.
type Sent = (Opcode, u32, Extension, Vec<u8>, bool);

/// An engine with one queue pair, and the hand that plays its peer.
struct Bench {
    engine: Engine<Vec<u8>>,
    number: QueuePairNumber,
    queue: CompletionQueueId,
    key: MemoryKey,
    incoming: PathCrc,
    outgoing: PathCrc,
}

impl Bench {
    fn new(local: &str, peer: &str, source_port: u16) -> Self {
        let (local, peer) = (local.parse().unwrap(), peer.parse().unwrap());
        let mut engine = Engine::new(EngineConfig::default());
        let memory = (0..1 << 16).map(|at| (at * 7 / 5) as u8).collect();
        let setup = Setup {
            start: START,
            completions: 64,
            send_depth: 16,
            receive_depth: 16,
            inline_bytes_max: 0,
            signal_all: true,
        };
        let end = End::new(&mut engine, memory, &setup);
        let mut how = Attributes::new(local, peer, QueuePairNumber(17));
        (how.receive.mtu, how.receive.responder_depth, how.receive.rnr_timer) = (Mtu::Bytes256, 4, 12);
        how.send.initiator_depth = 4;
        end.connect(&mut engine, &how);
        let End { number, queue, key, .. } = end;
        let mut source = peer;
        source.set_port(source_port);
        let incoming = PathCrc::new(NetworkHeader::new(source, local));
        Bench { engine, number, queue, key, incoming, outgoing: PathCrc::new(NetworkHeader::new(local, peer)) }
    }

    /// rxe listens on 4791 and sends from a port that it makes of its queue pair's number.
    fn with_rxe() -> Self {
        Bench::new("[fd00::1]:4791", "[fd00::2]:4791", 0xc123)
    }

    /// Plays a packet of the peer.
    fn play(&mut self, opcode: Opcode, psn: u32, extension: Extension, payload: &[u8]) {
        let bth = Bth {
            opcode,
            solicited: false,
            migration: false,
            pad: 0,
            partition_key: DEFAULT_PARTITION_KEY,
            destination: self.number.0,
            // rxe asks with every last packet of a message.
            ack_request: !matches!(opcode, Opcode::WriteFirst | Opcode::WriteMiddle) && opcode.is_request(),
            psn,
        };
        let packet = Packet { bth, extension, payload };
        let mut bytes = vec![0; packet.wire_bytes()];
        packet.write(&mut bytes);
        self.incoming.seal(&mut bytes);
        let header = *self.incoming.header();
        self.engine.receive(0, &header, &bytes);
    }

    /// Everything that the engine sends now.
    fn sent(&mut self) -> Vec<Sent> {
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        let mut all = Vec::new();
        while let Some(transmit) = self.engine.poll_transmit(0, &mut buffer) {
            let bytes = &buffer[..transmit.bytes];
            assert!(self.outgoing.verify(bytes));
            let packet = Packet::parse(bytes).unwrap();
            assert_eq!((packet.bth.destination, packet.bth.partition_key), (17, 0xffff));
            assert!(packet.bth.opcode.is_request() || !packet.bth.ack_request);
            let bth = packet.bth;
            all.push((bth.opcode, bth.psn, packet.extension, packet.payload.to_vec(), bth.ack_request));
        }
        all
    }

    fn reth(&self, offset: u64, length: u32) -> Extension {
        Extension::Rdma(Reth { address: START + offset, remote_key: self.key.0, length })
    }

    fn write(&mut self, psn: u32) {
        let extension = self.reth(0x8000, 8);
        self.play(Opcode::WriteOnly, psn, extension, &[psn as u8; 8]);
    }

    fn memory(&self, offset: usize, length: usize) -> Vec<u8> {
        self.engine.region(self.key).unwrap()[offset..offset + length].to_vec()
    }

    fn post_read(&mut self, length: u32) {
        let pieces = [Sge { address: START + 0x1000, length, key: self.key }];
        let operation = Operation::Read { remote_address: 0x77_0000, remote_key: MemoryKey(5) };
        let data = Data::Pieces(&pieces);
        let request = WorkRequest { id: 1, operation, data, signalled: true, fence: false, solicited: true };
        self.engine.post_send(self.number, &request).unwrap();
    }
}

fn ack(psn: u32, msn: u32) -> Sent {
    (Opcode::Acknowledge, psn, Extension::Ack(Aeth { syndrome: Syndrome::ACK, msn }), vec![], false)
}

fn aeth(msn: u32) -> Extension {
    Extension::Ack(Aeth { syndrome: Syndrome::ACK, msn })
}

/// rxe takes an ACK with the last PSN of an outstanding READ or atomic for its end, and completes it without data
/// (`COMPST_WRITE_SEND`). So a WRITE that is repeated because the answers were lost must not be answered by one.
#[test]
fn an_acknowledgement_never_has_the_psn_of_a_read_or_atomic() {
    let mut bench = Bench::with_rxe();
    bench.write(0);
    assert_eq!(bench.sent(), [ack(0, 1)]);
    let read = bench.reth(0, 300);
    bench.play(Opcode::ReadRequest, 1, read, &[]);
    assert_eq!(bench.sent().len(), 2);
    bench.write(0);
    assert_eq!(bench.sent(), [ack(0, 2)], "after a READ of PSN 1 and 2");
    let atomic = AtomicEth { address: START, remote_key: bench.key.0, swap_or_add: 1, compare: 0 };
    bench.play(Opcode::FetchAdd, 3, Extension::Atomic(atomic), &[]);
    assert_eq!(bench.sent().len(), 1);
    bench.write(0);
    assert_eq!(bench.sent(), [ack(0, 3)], "after an atomic of PSN 3");
    bench.write(4);
    bench.write(0);
    assert_eq!(bench.sent(), [ack(4, 4)]);
}

/// A retry of rxe asks for the rest of a READ at the first PSN that it misses, and takes FIRST or ONLY there.
#[test]
fn the_rest_of_a_read_asked_for_again_begins_like_a_read() {
    let mut bench = Bench::with_rxe();
    let read = bench.reth(0, 3 * MTU + 44);
    bench.play(Opcode::ReadRequest, 0, read, &[]);
    let all = bench.sent();
    let opcodes: Vec<_> = all.iter().map(|packet| (packet.0, packet.1)).collect();
    let [first, middle, last] = [Opcode::ReadResponseFirst, Opcode::ReadResponseMiddle, Opcode::ReadResponseLast];
    assert_eq!(opcodes, [(first, 0), (middle, 1), (middle, 2), (last, 3)]);
    assert_eq!([all[0].2, all[1].2, all[3].2], [aeth(1), Extension::None, aeth(1)]);
    let rest = bench.reth(2 * MTU as u64, MTU + 44);
    bench.play(Opcode::ReadRequest, 2, rest, &[]);
    let again = bench.sent();
    assert_eq!(again[0], (first, 2, aeth(1), bench.memory(512, 256), false));
    assert_eq!(again[1], (last, 3, aeth(1), bench.memory(768, 44), false));
    let rest = bench.reth(3 * MTU as u64, 44);
    bench.play(Opcode::ReadRequest, 3, rest, &[]);
    assert_eq!(bench.sent(), [(Opcode::ReadResponseOnly, 3, aeth(1), bench.memory(768, 44), false)]);
    // A request that is new comes next, at the PSN after the READ's last.
    bench.write(4);
    assert_eq!(bench.sent(), [ack(4, 2)]);
}

/// rxe goes on in the middle of its READ when it is asked again: MIDDLE or LAST at the PSN of the request.
#[test]
fn a_read_is_continued_by_middle_and_last() {
    let mut bench = Bench::with_rxe();
    bench.post_read(2 * MTU + 10);
    let sent = bench.sent();
    assert_eq!((sent.len(), sent[0].0, sent[0].1, sent[0].4), (1, Opcode::ReadRequest, 0, true));
    bench.play(Opcode::ReadResponseFirst, 0, aeth(1), &[1; 256]);
    bench.play(Opcode::ReadResponseLast, 2, aeth(1), &[3; 10]);
    let sent = bench.sent();
    let rest = Reth { address: 0x77_0000 + 256, remote_key: 5, length: 266 };
    assert_eq!(sent, [(Opcode::ReadRequest, 1, Extension::Rdma(rest), vec![], true)]);
    bench.play(Opcode::ReadResponseMiddle, 1, Extension::None, &[2; 256]);
    bench.play(Opcode::ReadResponseLast, 2, aeth(1), &[3; 10]);
    let completion = bench.engine.poll_completion(bench.queue).unwrap();
    assert_eq!((completion.status, completion.length_bytes), (WcStatus::Success, 522));
    assert_eq!(bench.memory(0x1000, 522), [&[1; 256][..], &[2; 256], &[3; 10]].concat());
}

/// One NAK for a gap (`sent_psn_nak`), whatever comes behind it; the next gap gets its own.
#[test]
fn a_gap_is_reported_once() {
    let mut bench = Bench::with_rxe();
    let nak = |psn, msn| {
        let extension = Extension::Ack(Aeth { syndrome: Syndrome::Nak(NakCode::SequenceError), msn });
        (Opcode::Acknowledge, psn, extension, vec![], false)
    };
    bench.write(1);
    bench.write(2);
    assert_eq!(bench.sent(), [nak(0, 0)]);
    bench.write(3);
    assert_eq!(bench.sent(), []);
    bench.write(0);
    bench.write(2);
    assert_eq!(bench.sent(), [nak(1, 1)], "it acknowledges PSN 0");
}

/// An RNR NAK has the PSN of the request that found no receive request, and comes again with each try.
#[test]
fn an_rnr_nak_has_the_psn_of_its_request() {
    let mut bench = Bench::with_rxe();
    bench.write(0);
    bench.play(Opcode::SendOnly, 1, Extension::None, &[1; 8]);
    let extension = Extension::Ack(Aeth { syndrome: Syndrome::RnrNak { timer: 12 }, msn: 1 });
    let nak = (Opcode::Acknowledge, 1, extension, vec![], false);
    assert_eq!(bench.sent(), std::slice::from_ref(&nak));
    bench.play(Opcode::WriteOnly, 2, Extension::Rdma(Reth { address: START, remote_key: 0, length: 0 }), &[]);
    assert_eq!(bench.sent(), []);
    bench.play(Opcode::SendOnly, 1, Extension::None, &[1; 8]);
    assert_eq!(bench.sent(), [nak]);
    let pieces = [Sge { address: START, length: 8, key: bench.key }];
    bench.engine.post_receive(bench.number, &ReceiveRequest { id: 3, pieces: &pieces }).unwrap();
    bench.play(Opcode::SendOnly, 1, Extension::None, &[1; 8]);
    assert_eq!(bench.sent(), [ack(1, 2)]);
}

/// An atomic that comes again is answered from memory, with the value of the first time.
#[test]
fn an_atomic_asked_for_again_is_not_executed_again() {
    let mut bench = Bench::with_rxe();
    let add = AtomicEth { address: START, remote_key: bench.key.0, swap_or_add: 5, compare: 0 };
    let before = u64::from_ne_bytes(bench.memory(0, 8).try_into().unwrap());
    for _ in 0..3 {
        bench.play(Opcode::FetchAdd, 0, Extension::Atomic(add), &[]);
        let extension = Extension::AtomicAck(Aeth { syndrome: Syndrome::ACK, msn: 1 }, before);
        assert_eq!(bench.sent(), [(Opcode::AtomicAcknowledge, 0, extension, vec![], false)]);
    }
    assert_eq!(bench.memory(0, 8), (before + 5).to_ne_bytes());
}

/// rxe acknowledges a repeated WRITE with the PSN after which nothing but READs came; an ACK that lies behind an
/// unanswered READ says that its answer is lost.
#[test]
fn an_acknowledgement_behind_an_unanswered_read_asks_for_it_again() {
    let mut bench = Bench::with_rxe();
    bench.post_read(8);
    let pieces = [Sge { address: START, length: 8, key: bench.key }];
    let operation = Operation::Write { remote_address: 0, remote_key: MemoryKey(5), immediate: None };
    let data = Data::Pieces(&pieces);
    let request = WorkRequest { id: 2, operation, data, signalled: true, fence: false, solicited: true };
    bench.engine.post_send(bench.number, &request).unwrap();
    let opcodes =
        |sent: Vec<Sent>| -> Vec<_> { sent.into_iter().map(|packet| (packet.0, packet.1, packet.4)).collect() };
    let both = [(Opcode::ReadRequest, 0, true), (Opcode::WriteOnly, 1, true)];
    assert_eq!(opcodes(bench.sent()), both);
    bench.play(Opcode::Acknowledge, 1, aeth(2), &[]);
    assert_eq!(bench.engine.completions_waiting(bench.queue), 0);
    assert_eq!(opcodes(bench.sent()), both);
    bench.play(Opcode::ReadResponseOnly, 0, aeth(1), &[9; 8]);
    bench.play(Opcode::Acknowledge, 1, aeth(2), &[]);
    assert_eq!(bench.engine.completions_waiting(bench.queue), 2);
    assert_eq!(bench.memory(0x1000, 8), [9; 8]);
}

/// Over IPv4 with a raw socket each packet of the peer has an identification of its own.
#[test]
fn ipv4_identifications_and_source_ports_of_the_peer_may_differ_by_packet() {
    let mut bench = Bench::new("10.0.0.1:4791", "10.0.0.2:4791", 0xc001);
    for (psn, identification) in [0, 1, 1, 0x1234, 0xffff, 0].into_iter().enumerate() {
        let mut header = *bench.incoming.header();
        header.ipv4.identification = identification;
        header.source.set_port(0xc000 + psn as u16 / 2);
        bench.incoming = PathCrc::new(header);
        bench.write(psn as u32);
        assert_eq!(bench.sent(), [ack(psn as u32, psn as u32 + 1)]);
    }
    assert_eq!(bench.engine.counters().wrong_icrc, 0);
}
