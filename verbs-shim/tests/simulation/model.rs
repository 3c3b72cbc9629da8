//! A random workload over one connection and direction, and the model that knows what must come of it.

use std::collections::VecDeque;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use verbs_shim::soft::engine::*;
use verbs_shim::verbs::*;

use crate::network::Network;

pub const DEPTH: usize = 24;
const RECEIVE_DEPTH: usize = 12;
const TARGET_BYTES: usize = 1 << 16;
pub const TARGET_START: u64 = 0x7f00_0000_0000;

struct Pending {
    id: u64,
    signalled: bool,
    opcode: WcOpcode,
    length: usize,
    /// What the memory of its slot must hold on completion (READ, atomics).
    result: Option<Vec<u8>>,
    reads_mutable: bool,
}

struct ExpectedReceive {
    opcode: WcOpcode,
    immediate: Option<u32>,
    length: usize,
    data: Option<Vec<u8>>,
}

/// One direction: `from` posts, the other side is written, read and sent to.
pub struct Flow {
    pub from: usize,
    pub number: QueuePairNumber,
    pub peer_number: QueuePairNumber,
    pub send_queue: CompletionQueueId,
    pub peer_receive_queue: CompletionQueueId,
    pub shared_receives: Option<SharedReceiveQueueId>,
    pub slot_bytes: usize,
    pub scratch: MemoryKey,
    pub target: MemoryKey,
    pub receive_memory: MemoryKey,
    pub window: (u64, u64),
    model: Vec<u8>,
    pending: VecDeque<Pending>,
    expected: VecDeque<ExpectedReceive>,
    receives_posted: u64,
    receives_done: u64,
    next_id: u64,
    pub signal_every: u64,
}

impl Flow {
    #[expect(clippy::too_many_arguments, reason = "a test's plumbing")]
    pub fn new(
        network: &mut Network,
        from: usize,
        domains: [ProtectionDomain; 2],
        numbers: [QueuePairNumber; 2],
        queues: [CompletionQueueId; 2],
        shared_receives: Option<SharedReceiveQueueId>,
        slot_bytes: usize,
        window: (u64, u64),
    ) -> Self {
        let mut model = vec![0u8; TARGET_BYTES];
        network.random.fill(&mut model[..]);
        let to = 1 - from;
        let scratch = vec![0; DEPTH * slot_bytes];
        let scratch = network.engines[from].register(domains[from], scratch, 0, Access::LOCAL_WRITE).unwrap();
        let all = Access::ALL;
        let target = network.engines[to].register(domains[to], model.clone(), TARGET_START, all).unwrap();
        let receive = vec![0; RECEIVE_DEPTH * slot_bytes];
        let receive_memory = network.engines[to].register(domains[to], receive, 0, Access::LOCAL_WRITE).unwrap();
        Flow {
            from,
            number: numbers[0],
            peer_number: numbers[1],
            send_queue: queues[0],
            peer_receive_queue: queues[1],
            shared_receives,
            slot_bytes,
            scratch,
            target,
            receive_memory,
            window,
            model,
            pending: VecDeque::new(),
            expected: VecDeque::new(),
            receives_posted: 0,
            receives_done: 0,
            next_id: 0,
            signal_every: 1,
        }
    }

    pub fn is_idle(&self) -> bool {
        self.pending.iter().all(|pending| !pending.signalled) && self.expected.is_empty()
    }

    pub fn post_receives(&mut self, network: &mut Network, at_most: u64) {
        let to = 1 - self.from;
        for _ in 0..at_most {
            if self.receives_posted - self.receives_done >= RECEIVE_DEPTH as u64 {
                return;
            }
            let slot = self.receives_posted % RECEIVE_DEPTH as u64 * self.slot_bytes as u64;
            let half = self.slot_bytes as u32 / 3;
            let pieces = [
                Sge { address: slot, length: half, key: self.receive_memory },
                Sge { address: slot + half as u64, length: self.slot_bytes as u32 - half, key: self.receive_memory },
            ];
            let request = ReceiveRequest { id: self.receives_posted, pieces: &pieces };
            match self.shared_receives {
                None => network.engines[to].post_receive(self.peer_number, &request).unwrap(),
                Some(queue) => network.engines[to].post_shared_receive(queue, &request).unwrap(),
            }
            self.receives_posted += 1;
        }
    }

    fn random_length(&self, random: &mut ChaCha8Rng) -> usize {
        match random.random_range(0..20) {
            0 => 0,
            1..=13 => random.random_range(1..=64),
            14..=17 => random.random_range(1..=self.slot_bytes.min(1500)),
            _ => random.random_range(1..=self.slot_bytes),
        }
    }

    /// Posts one random request, if there is room; whether it was.
    pub fn post(&mut self, network: &mut Network, last: bool) -> bool {
        let mut random = network.random.clone();
        let done = self.post_with(network, &mut random, last);
        network.random = random;
        done
    }

    fn post_with(&mut self, network: &mut Network, random: &mut ChaCha8Rng, last: bool) -> bool {
        if self.pending.len() >= DEPTH {
            return false;
        }
        let id = self.next_id;
        let slot = id % DEPTH as u64 * self.slot_bytes as u64;
        let mut length = self.random_length(random);
        let half = TARGET_BYTES / 2;
        let offset = random.random_range(0..=half - length.min(half));
        length = length.min(half - offset);
        let mut data = vec![0u8; length];
        random.fill(&mut data[..]);
        let immediate = random.random_bool(0.5).then(|| random.random());
        let remote_key = self.target;
        let at = |offset: usize| TARGET_START + offset as u64;
        let remote_address = at(offset);
        let mut result = None;
        let mut reads_mutable = false;
        let kind = random.random_range(0..10);
        let (operation, opcode) = match kind {
            0..=2 => (Operation::Send { immediate }, WcOpcode::Send),
            3..=6 => {
                let immediate = immediate.filter(|_| kind == 3);
                (Operation::Write { remote_address, remote_key, immediate }, WcOpcode::RdmaWrite)
            }
            7 => {
                // Either where nothing is written, or where later WRITEs wait for it.
                reads_mutable = random.random_bool(0.5);
                let from = if reads_mutable { offset } else { half + offset };
                result = Some(self.model[from..from + length].to_vec());
                (Operation::Read { remote_address: at(from), remote_key }, WcOpcode::RdmaRead)
            }
            _ => {
                length = 8;
                let offset = random.random_range(0..half / 8) * 8;
                let place = &mut self.model[offset..offset + 8];
                let original = u64::from_ne_bytes((&*place).try_into().unwrap());
                result = Some(place.to_vec());
                let remote_address = at(offset);
                if kind == 8 {
                    let compare = if random.random_bool(0.7) { original } else { random.random() };
                    let swap = random.random();
                    if compare == original {
                        place.copy_from_slice(&u64::to_ne_bytes(swap));
                    }
                    (Operation::CompareSwap { remote_address, remote_key, compare, swap }, WcOpcode::CompSwap)
                } else {
                    let add: u64 = random.random();
                    place.copy_from_slice(&original.wrapping_add(add).to_ne_bytes());
                    (Operation::FetchAdd { remote_address, remote_key, add }, WcOpcode::FetchAdd)
                }
            }
        };
        let writes = matches!(opcode, WcOpcode::RdmaWrite | WcOpcode::CompSwap | WcOpcode::FetchAdd);
        let fence = writes && self.pending.iter().any(|pending| pending.reads_mutable);
        let signalled = last || result.is_some() || id.is_multiple_of(self.signal_every);
        let first = random.random_range(0..=length) as u32;
        let pieces = [
            Sge { address: slot, length: first, key: self.scratch },
            Sge { address: slot + first as u64, length: length as u32 - first, key: self.scratch },
        ];
        let engine = &mut network.engines[self.from];
        let inline = result.is_none() && length <= 64 && random.random_bool(0.5);
        if result.is_none() && !inline {
            engine.region_mut(self.scratch).unwrap()[slot as usize..][..length].copy_from_slice(&data);
        }
        let data_source = if inline { Data::Inline(&data) } else { Data::Pieces(&pieces) };
        let request = WorkRequest { id, operation, data: data_source, signalled, fence, solicited: false };
        match engine.post_send(self.number, &request) {
            Ok(()) => {}
            Err(error) => panic!("post of {request:?}: {error}"),
        }
        match operation {
            Operation::Send { immediate } => {
                let data = Some(data);
                self.expected.push_back(ExpectedReceive { opcode: WcOpcode::Recv, immediate, length, data });
            }
            Operation::Write { immediate, .. } => {
                self.model[offset..offset + length].copy_from_slice(&data);
                if immediate.is_some() {
                    let opcode = WcOpcode::RecvRdmaWithImm;
                    self.expected.push_back(ExpectedReceive { opcode, immediate, length, data: None });
                }
            }
            _ => {}
        }
        self.pending.push_back(Pending { id, signalled, opcode, length, result, reads_mutable });
        self.next_id += 1;
        true
    }

    /// Polls both sides and compares with what must come.
    pub fn check(&mut self, network: &mut Network) {
        let (sent, read) = network.engines[self.from].in_flight_bytes(self.number).unwrap();
        assert!(sent <= self.window.0 && read <= self.window.1, "in flight: {sent}, {read} of {:?}", self.window);
        while let Some(completion) = network.engines[self.from].poll_completion(self.send_queue) {
            assert_eq!(completion.status, WcStatus::Success, "{completion:?}");
            let pending = loop {
                let pending = self.pending.pop_front().expect("a completion of something posted");
                if pending.signalled {
                    break pending;
                }
            };
            assert_eq!((completion.id, completion.opcode), (pending.id, pending.opcode));
            assert_eq!(completion.length_bytes as usize, pending.length);
            if let Some(expected) = pending.result {
                let slot = (pending.id % DEPTH as u64) as usize * self.slot_bytes;
                let memory = network.engines[self.from].region(self.scratch).unwrap();
                assert!(memory[slot..slot + expected.len()] == expected, "result of {completion:?}");
            }
        }
        let to = 1 - self.from;
        while let Some(completion) = network.engines[to].poll_completion(self.peer_receive_queue) {
            assert_eq!(completion.status, WcStatus::Success, "{completion:?}");
            let expected = self.expected.pop_front().expect("a receive completion of something sent");
            assert_eq!(completion.id, self.receives_done);
            assert_eq!((completion.opcode, completion.immediate), (expected.opcode, expected.immediate));
            assert_eq!(completion.length_bytes as usize, expected.length);
            if let Some(data) = expected.data {
                let slot = (completion.id % RECEIVE_DEPTH as u64) as usize * self.slot_bytes;
                let memory = network.engines[to].region(self.receive_memory).unwrap();
                assert!(memory[slot..slot + data.len()] == data, "data of {completion:?}");
            }
            self.receives_done += 1;
        }
    }

    pub fn check_end(&self, network: &Network) {
        let target = network.engines[1 - self.from].region(self.target).unwrap();
        assert!(*target == self.model, "memory of the peer differs from the model");
    }
}
