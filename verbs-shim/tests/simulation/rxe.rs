//! The kernel's rxe as a model, against the engine, over a network that loses packets.
//!
//! What the model knows is what rxe does and the specification does not say, read out of `rxe_req.c`, `rxe_comp.c`
//! and `rxe_resp.c` of Linux 6.1 to 6.4: how it retries a READ in part, what it takes for the end of a request, which
//! repeated requests it answers and which it drops, and what it breaks the connection for.

use std::collections::VecDeque;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use verbs_shim::soft::engine::*;
use verbs_shim::soft::icrc::{Ipv4Fields, NetworkHeader, PathCrc};
use verbs_shim::soft::packet::*;
use verbs_shim::verbs::*;

const START: u64 = 0x10_0000;
const MTU: usize = 256;
const DEPTH: usize = 3;
const REGION_BYTES: usize = 1 << 15;
/// rxe sends no further ahead of what is acknowledged (`RXE_MAX_UNACKED_PSNS`).
const AHEAD_MAX: i64 = 128;

fn distance(from: u32, to: u32) -> i64 {
    ((to.wrapping_sub(from) << 8) as i32 >> 8) as i64
}

fn plus(psn: u32, packets: usize) -> u32 {
    (psn + packets as u32) & MASK_24
}

/// A packet to be sent: opcode, PSN, extension, payload.
type Answer = (Opcode, u32, Extension, Vec<u8>);

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

#[derive(Debug, Clone, Copy, PartialEq)]
enum Progress {
    Posted,
    Processing,
    Pending,
}

#[derive(Debug)]
struct Request {
    kind: Kind,
    offset: usize,
    length: usize,
    /// WRITE: bytes still to be sent. READ: bytes still to be received.
    left: usize,
    at: usize,
    first: u32,
    last: u32,
    progress: Progress,
    counts_as_read: bool,
    received: Vec<u8>,
}

/// rxe as it asks.
struct Requester {
    queue: VecDeque<Request>,
    next: usize,
    psn: u32,
    opcode: Option<Opcode>,
    acknowledged: u32,
    response: Option<Opcode>,
    reads_left: usize,
    need_retry: bool,
    started_retry: bool,
    unasked: usize,
    done: Vec<Request>,
}

impl Requester {
    fn new(psn: u32) -> Self {
        Requester {
            queue: VecDeque::new(),
            next: 0,
            psn,
            opcode: None,
            acknowledged: psn,
            response: None,
            reads_left: DEPTH,
            need_retry: false,
            started_retry: false,
            unasked: 0,
            done: Vec::new(),
        }
    }

    fn post(&mut self, kind: Kind, offset: usize, length: usize) {
        let received = vec![0; if kind == Kind::Write { 0 } else { length }];
        let request = Request {
            kind,
            offset,
            length,
            left: length,
            at: offset,
            first: 0,
            last: 0,
            progress: Progress::Posted,
            counts_as_read: false,
            received,
        };
        self.queue.push_back(request);
    }

    fn go_back(&mut self) {
        self.next = 0;
        self.psn = self.acknowledged;
        self.opcode = None;
        for (index, request) in self.queue.iter_mut().enumerate() {
            if request.progress == Progress::Posted {
                break;
            }
            request.at = request.offset;
            if index > 0 || request.kind != Kind::Read {
                request.left = request.length;
            }
            if index == 0 && request.kind == Kind::Write {
                for _ in 0..distance(request.first, self.acknowledged) {
                    self.opcode = Some(write_opcode(self.opcode, request.left));
                    request.left -= request.left.min(MTU);
                }
            }
            if index == 0 && request.kind == Kind::Read {
                request.at += (request.length - request.left) / MTU * MTU;
            }
            request.progress = Progress::Posted;
        }
    }

    /// The next packet: opcode, PSN, whether it asks for an acknowledgement, offset and length of its RETH, payload
    /// as offset and length.
    #[expect(clippy::type_complexity, reason = "used once")]
    fn send(&mut self) -> Option<(Opcode, u32, bool, usize, usize, (usize, usize))> {
        if std::mem::take(&mut self.need_retry) {
            self.go_back();
        }
        if distance(self.acknowledged, self.psn) > AHEAD_MAX {
            return None;
        }
        let request = self.queue.get_mut(self.next)?;
        let opcode = match request.kind {
            Kind::Write => write_opcode(self.opcode, request.left),
            Kind::Read => Opcode::ReadRequest,
            Kind::Add => Opcode::FetchAdd,
        };
        if request.kind != Kind::Write && !request.counts_as_read {
            self.reads_left = self.reads_left.checked_sub(1)?;
            request.counts_as_read = true;
        }
        let payload = if request.kind == Kind::Write { request.left.min(MTU) } else { 0 };
        let sent = (request.offset + request.length - request.left, payload);
        let reth = request.left;
        let ask = ends(opcode) || self.unasked > 64;
        self.unasked = if ask { 0 } else { self.unasked + 1 };
        let packets = request.left.div_ceil(MTU).max(1);
        request.left -= payload;
        request.progress = if ends(opcode) { Progress::Pending } else { Progress::Processing };
        let psn = self.psn;
        if begins(opcode) {
            (request.first, request.last) = (psn, plus(psn, packets - 1));
        }
        self.psn = plus(psn, if request.kind == Kind::Read { packets } else { 1 });
        self.opcode = Some(opcode);
        self.next += ends(opcode) as usize;
        Some((opcode, psn, ask, request.at, reth, sent))
    }

    fn state(&self) -> (usize, u32, u32, Option<Opcode>, usize, bool, bool) {
        (self.next, self.psn, self.acknowledged, self.response, self.reads_left, self.need_retry, self.started_retry)
    }

    fn finish(&mut self) {
        let request = self.queue.pop_front().unwrap();
        self.reads_left += request.counts_as_read as usize;
        self.next = self.next.checked_sub(1).expect("rxe completes a request that it is in the middle of sending");
        self.done.push(request);
    }

    fn retry(&mut self, timeout: bool) {
        let begun = self.queue.front().is_some_and(|request| request.progress != Progress::Posted);
        if begun && (timeout || !self.started_retry) && distance(self.acknowledged, self.psn) > 0 {
            (self.need_retry, self.started_retry) = (true, true);
        }
    }

    fn receive(&mut self, packet: &Owned) {
        let (psn, opcode) = (packet.bth.psn, packet.bth.opcode);
        loop {
            let Some(head) = self.queue.front_mut() else { return };
            let reads = head.kind != Kind::Write;
            if head.progress == Progress::Posted {
                return;
            }
            if distance(head.last, psn) > 0 {
                if head.progress != Progress::Pending {
                    return;
                }
                if reads {
                    return self.retry(false);
                }
                self.started_retry = false;
                if distance(self.acknowledged, head.last) >= 0 {
                    self.acknowledged = plus(head.last, 1);
                    self.response = None;
                }
                self.finish();
                continue;
            }
            let ahead = distance(self.acknowledged, psn);
            if ahead < 0 {
                if psn == head.last {
                    self.finish();
                }
                return;
            }
            if ahead > 0 && reads {
                return;
            }
            break;
        }
        let head = self.queue.front_mut().unwrap();
        match self.response {
            None => assert!(begins(opcode), "rxe breaks the connection: {packet:?} begins nothing"),
            Some(_) => {
                let goes_on = matches!(opcode, Opcode::ReadResponseMiddle | Opcode::ReadResponseLast);
                let restarts = (psn == head.first && opcode == Opcode::ReadResponseFirst)
                    || (head.first == head.last && opcode == Opcode::ReadResponseOnly);
                assert!(goes_on || restarts, "rxe breaks the connection: {packet:?} in a READ of {}", head.first);
            }
        }
        let completes = match (opcode, packet.extension) {
            (Opcode::AtomicAcknowledge, Extension::AtomicAck(_, original)) => {
                assert_eq!(head.kind, Kind::Add);
                head.received.copy_from_slice(&original.to_ne_bytes());
                head.left = 0;
                true
            }
            (Opcode::Acknowledge, Extension::Ack(aeth)) => match aeth.syndrome {
                Syndrome::Ack { .. } => head.progress == Progress::Pending && head.last == psn,
                Syndrome::Nak(NakCode::SequenceError) => {
                    if distance(self.acknowledged, psn) > 0 {
                        self.acknowledged = psn;
                    }
                    return self.retry(false);
                }
                other => panic!("the engine answers {other:?}"),
            },
            _ => {
                assert_eq!(head.kind, Kind::Read, "rxe breaks the connection: {packet:?}");
                let at = head.length - head.left;
                head.received[at..at + packet.payload.len()].copy_from_slice(&packet.payload);
                head.left -= packet.payload.len();
                head.left == 0 && ends(opcode)
            }
        };
        self.started_retry = false;
        if completes {
            self.finish();
        }
        self.response = (!ends(opcode)).then_some(opcode);
        self.acknowledged = plus(psn, 1);
    }
}

fn write_opcode(before: Option<Opcode>, left: usize) -> Opcode {
    let inside = matches!(before, Some(Opcode::WriteFirst | Opcode::WriteMiddle));
    match (inside, left <= MTU) {
        (true, true) => Opcode::WriteLast,
        (true, false) => Opcode::WriteMiddle,
        (false, true) => Opcode::WriteOnly,
        (false, false) => Opcode::WriteFirst,
    }
}

/// What rxe keeps of a READ or atomic that it answered.
#[derive(Debug, Clone, Copy)]
struct Answered {
    first: u32,
    last: u32,
    start: u64,
    length: u64,
    original: u64,
}

/// rxe as it answers.
struct Responder {
    memory: Vec<u8>,
    psn: u32,
    msn: u32,
    acknowledge_before: u32,
    nak_sent: bool,
    write: u64,
    answered: VecDeque<Answered>,
}

impl Responder {
    fn receive(&mut self, packet: &Owned, out: &mut Vec<Answer>) {
        let (psn, opcode) = (packet.bth.psn, packet.bth.opcode);
        let ahead = distance(self.psn, psn);
        if ahead > 0 {
            if !std::mem::replace(&mut self.nak_sent, true) {
                out.push(self.acknowledge(self.psn, Syndrome::Nak(NakCode::SequenceError)));
            }
            return;
        }
        if ahead < 0 {
            return self.repeat(packet, out);
        }
        self.nak_sent = false;
        match packet.extension {
            Extension::Rdma(reth) if opcode == Opcode::ReadRequest => {
                self.msn += 1;
                let packets = (reth.length as usize).div_ceil(MTU).max(1);
                self.keep(psn, plus(psn, packets - 1), reth.address, reth.length as u64, 0);
                self.read(psn, &reth, false, out);
                self.psn = plus(psn, packets);
                return;
            }
            Extension::Atomic(atomic) => {
                self.msn += 1;
                let place = &mut self.memory[(atomic.address - START) as usize..][..8];
                let original = u64::from_ne_bytes((&*place).try_into().unwrap());
                place.copy_from_slice(&original.wrapping_add(atomic.swap_or_add).to_ne_bytes());
                self.keep(psn, psn, 0, 0, original);
                out.push(self.atomic(psn, original));
            }
            extension => {
                if let Extension::Rdma(reth) = extension {
                    self.write = reth.address - START;
                }
                self.memory[self.write as usize..][..packet.payload.len()].copy_from_slice(&packet.payload);
                self.write += packet.payload.len() as u64;
                self.msn += ends(opcode) as u32;
                if packet.bth.ack_request {
                    out.push(self.acknowledge(psn, Syndrome::ACK));
                }
            }
        }
        self.psn = plus(psn, 1);
        self.acknowledge_before = self.psn;
    }

    fn repeat(&mut self, packet: &Owned, out: &mut Vec<Answer>) {
        let psn = packet.bth.psn;
        let found = self.answered.iter_mut().find(|one| distance(one.first, psn) >= 0 && distance(psn, one.last) >= 0);
        match packet.extension {
            Extension::Rdma(reth) if packet.bth.opcode == Opcode::ReadRequest => {
                let Some(found) = found else { return };
                let (start, length) = (reth.address, reth.length as u64);
                if start < found.start || length > found.length || start + length > found.start + found.length {
                    return;
                }
                // It narrows the start and keeps the length.
                found.start = start;
                let goes_on = psn != found.first;
                self.read(psn, &reth, goes_on, out);
            }
            Extension::Atomic(_) => {
                if let Some(&mut Answered { original, .. }) = found {
                    out.push(self.atomic(psn, original));
                }
            }
            _ => out.push(self.acknowledge((self.acknowledge_before.wrapping_sub(1)) & MASK_24, Syndrome::ACK)),
        }
    }

    fn keep(&mut self, first: u32, last: u32, start: u64, length: u64, original: u64) {
        if self.answered.len() == DEPTH {
            self.answered.pop_front();
        }
        self.answered.push_back(Answered { first, last, start, length, original });
    }

    fn read(&self, psn: u32, reth: &Reth, goes_on: bool, out: &mut Vec<Answer>) {
        let bytes = &self.memory[(reth.address - START) as usize..][..reth.length as usize];
        let packets = bytes.len().div_ceil(MTU).max(1);
        for index in 0..packets {
            let opcode = match (index == 0 && !goes_on, index + 1 == packets) {
                (true, true) => Opcode::ReadResponseOnly,
                (true, false) => Opcode::ReadResponseFirst,
                (false, true) => Opcode::ReadResponseLast,
                (false, false) => Opcode::ReadResponseMiddle,
            };
            let extension = match opcode {
                Opcode::ReadResponseMiddle => Extension::None,
                _ => Extension::Ack(Aeth { syndrome: Syndrome::ACK, msn: self.msn }),
            };
            let end = bytes.len().min((index + 1) * MTU);
            out.push((opcode, plus(psn, index), extension, bytes[index * MTU..end].to_vec()));
        }
    }

    fn acknowledge(&self, psn: u32, syndrome: Syndrome) -> Answer {
        (Opcode::Acknowledge, psn, Extension::Ack(Aeth { syndrome, msn: self.msn }), vec![])
    }

    fn atomic(&self, psn: u32, original: u64) -> Answer {
        let extension = Extension::AtomicAck(Aeth { syndrome: Syndrome::ACK, msn: self.msn }, original);
        (Opcode::AtomicAcknowledge, psn, extension, vec![])
    }
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
        let domain = engine.create_domain();
        let memory = (0..REGION_BYTES).map(|at| (at * 7 / 5) as u8).collect();
        let key = engine.register(domain, memory, START, Access::ALL).unwrap();
        let queue = engine.create_completion_queue(64).unwrap();
        let config = QueuePairConfig {
            domain,
            send_completions: queue,
            receive_completions: queue,
            shared_receives: None,
            send_depth: 16,
            receive_depth: 0,
            inline_bytes_max: 0,
            signal_all: true,
        };
        let number = engine.create_queue_pair(config).unwrap();
        engine.to_init(number, Access::ALL).unwrap();
        let receive = ReceiveAttributes {
            local,
            peer,
            ipv4: Ipv4Fields::PLAIN_SOCKET,
            destination: QueuePairNumber(17),
            mtu: Mtu::Bytes256,
            receive_psn: psn,
            responder_depth: DEPTH as u8,
            rnr_timer: 12,
        };
        engine.to_ready_to_receive(number, &receive).unwrap();
        let packet = MTU as u64 + HEADER_CHARGE_BYTES;
        let send = SendAttributes {
            send_psn: psn,
            timeout: 8,
            initiator_depth: DEPTH as u8,
            window_bytes: packet * random.random_range(2..40),
            read_window_bytes: packet * random.random_range(2..40),
            ..SendAttributes::default()
        };
        engine.to_ready_to_send(number, &send).unwrap();
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
    let mut rxe = Responder {
        memory: (0..REGION_BYTES).map(|at| (at * 11 / 3) as u8).collect(),
        psn,
        msn: 0,
        acknowledge_before: psn,
        nak_sent: false,
        write: 0,
        answered: VecDeque::new(),
    };
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
