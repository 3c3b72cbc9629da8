//! Both ends of a link under simulation: a reliable connection with delays and losses of the whole connection, resets,
//! loss of the session, and clients that lie about their credits. On half of the seeds messages are sealed, and on some
//! of these somebody on the network changes, cuts, replays, reorders, redirects and swallows them, and writes over slots.
//!
//! Checked at every step, for each seed: no slot is written without a credit; what a client holds does not change under
//! it; frames of a link arrive once, in order, and whole, whatever an attacker does; each end asks for its release once,
//! with nothing outstanding; when everything has ended nothing is left. `LINKS_SEED=n` replays one seed.

use std::collections::VecDeque;

use hidb::session::frames::{immediate, slot_of};
use hidb::session::seal::{LinkSecret, Opener, Sealer, Way};
use hidb::session::{Action, CellLink, CellSlot, ClientLink, Ended, State};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const SEEDS: u64 = 50;
const STEPS: u64 = 24_000;

/// Messages of the past that an attacker keeps.
const OVERHEARD_MAX: usize = 64;

/// The number of a frame.
type Frame = u64;

/// On the wire from the cell: the WRITE of a frame into a slot.
#[derive(Clone, Debug)]
struct Write {
    /// The slot that the cell took for it; none for one that an attacker made.
    taken: Option<u32>,
    /// Where it is written.
    slot: u32,
    immediate: u32,
    bytes: Vec<u8>,
}

/// What an end sends: sealed when the link has integrity.
fn message(sealer: &mut Option<Sealer>, way: Way, content: &[u8]) -> Vec<u8> {
    let tag = sealer.as_mut().map(|sealer| sealer.seal(sealer.content(&[content]), way));
    [tag.as_ref().map_or(&[][..], |tag| tag), content].concat()
}

/// Changes one byte.
fn flip(random: &mut StdRng, bytes: &mut [u8]) {
    if !bytes.is_empty() {
        bytes[random.random_range(0..bytes.len())] ^= random.random_range(1..=255);
    }
}

/// One link: both ends, the wire between them, and the ring.
struct Simulation {
    random: StdRng,
    slots: u32,
    generation: u32,
    cell: CellLink,
    client: ClientLink,
    ring: Vec<Vec<u8>>,
    to_client: VecDeque<Write>,
    /// Slots written whose completion the cell has not seen.
    acknowledged: VecDeque<u32>,
    to_cell: VecDeque<Vec<u8>>,
    /// What keys come from, when messages are sealed.
    secret: Option<LinkSecret>,
    cell_seals: (Option<Sealer>, Option<Opener>),
    client_seals: (Option<Sealer>, Option<Opener>),
    is_attacker: bool,
    /// An attacker has touched the link that there is now.
    attacked: bool,
    overheard: Vec<Write>,
    overheard_credits: Vec<Vec<u8>>,
    /// Links that ended because a message did not open.
    detected: u64,
    /// SENDs of the client that are posted.
    client_sends: u32,
    connected: bool,
    cell_flushing: bool,
    client_flushing: bool,
    cell_released: bool,
    client_released: bool,
    next_frame: Frame,
    expected_frame: Frame,
    held: Vec<(u32, Vec<u8>)>,
    liar: bool,
    lied: bool,
    delivered: u64,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let slots = random.random_range(1..=16);
        let liar = random.random_ratio(1, 4);
        let secret = random.random::<bool>().then(|| LinkSecret::new(random.random()));
        let is_attacker = secret.is_some() && !liar && random.random_ratio(2, 3);
        let mut simulation = Simulation {
            slots,
            generation: 0,
            cell: CellLink::new(0, 1, 1),
            client: ClientLink::new(0, 1, 1),
            ring: Vec::new(),
            to_client: VecDeque::new(),
            acknowledged: VecDeque::new(),
            to_cell: VecDeque::new(),
            secret,
            cell_seals: (None, None),
            client_seals: (None, None),
            is_attacker,
            attacked: false,
            overheard: Vec::new(),
            overheard_credits: Vec::new(),
            detected: 0,
            client_sends: 0,
            connected: false,
            cell_flushing: false,
            client_flushing: false,
            cell_released: true,
            client_released: true,
            next_frame: 1,
            expected_frame: 1,
            held: Vec::new(),
            liar,
            lied: false,
            delivered: 0,
            random,
        };
        simulation.reopen();
        simulation
    }

    /// A new link with the next generation, as a client opens one after a reset. It has a ring of its own.
    fn reopen(&mut self) {
        assert!(self.cell_released && self.client_released);
        self.generation += 1;
        let depth = self.random.random_range(1..=8);
        self.cell = CellLink::new(self.generation, self.slots, depth);
        self.client = ClientLink::new(self.generation, self.slots, 8);
        self.ring = vec![Vec::new(); self.slots as usize];
        if let Some(secret) = &self.secret {
            let ((cell_seals, cell_opens), (client_seals, client_opens)) =
                (secret.cell_ends(1, self.generation), secret.client_ends(1, self.generation));
            self.cell_seals = (Some(cell_seals), Some(cell_opens));
            self.client_seals = (Some(client_seals), Some(client_opens));
        }
        self.attacked = false;
        // Batches of the old ring are still held: the old ring lives on for them.
        self.held.clear();
        (self.to_client, self.to_cell, self.acknowledged) = Default::default();
        self.client_sends = 0;
        (self.cell_released, self.client_released) = (false, false);
        (self.cell_flushing, self.client_flushing) = (false, false);
        self.connected = true;
        self.expected_frame = self.next_frame;
        let slots = self.client.open().expect("it is new");
        assert_eq!(slots.len(), self.slots as usize);
        self.send_credits(slots);
    }

    fn send_credits(&mut self, slots: Vec<u32>) {
        if self.client.begin_send() {
            self.client_sends += 1;
        } else {
            // They wait in the client's queue of frames, which the wire stands for here.
            assert!(self.client.state() != State::Open || self.client.outstanding() > 0);
        }
        if self.connected {
            self.give(self.generation, slots);
        }
    }

    /// A message of credits to the cell.
    fn give(&mut self, generation: u32, slots: Vec<u32>) {
        let content: Vec<u8> = [vec![generation], slots].concat().into_iter().flat_map(u32::to_le_bytes).collect();
        let bytes = message(&mut self.client_seals.0, Way::Send, &content);
        if self.is_attacker {
            self.overheard_credits.truncate(OVERHEARD_MAX);
            self.overheard_credits.insert(0, bytes.clone());
        }
        self.to_cell.push_back(bytes);
    }

    /// Credits arrive at the cell.
    fn take_credits(&mut self, bytes: &[u8]) {
        let content = match &mut self.cell_seals.1 {
            Some(opener) => match opener.open_send(bytes) {
                Ok(content) => content,
                Err(error) => {
                    assert!(self.attacked, "a message of the client's does not open: {error}");
                    self.detected += 1;
                    return self.cell.end(error.into());
                }
            },
            None => bytes,
        };
        let mut numbers = content.chunks_exact(4).map(|number| u32::from_le_bytes(number.try_into().unwrap()));
        let generation = numbers.next().expect("a generation");
        let result = self.cell.slots_free(generation, &numbers.collect::<Vec<_>>());
        assert!(result.is_ok() || self.lied, "{result:?}");
        if result.is_err() {
            assert!(matches!(self.cell.ended(), Some(Ended::Protocol(_))) || self.cell.state() != State::Open);
        }
    }

    /// The cell writes a frame into a slot.
    fn write(&mut self, slot: u32) {
        let immediate = immediate(slot, 1);
        // Frames differ in length.
        let filler = vec![slot as u8; self.next_frame as usize % 200];
        let content = [&self.next_frame.to_le_bytes()[..], &filler].concat();
        let bytes = message(&mut self.cell_seals.0, Way::Write { immediate }, &content);
        let write = Write { taken: Some(slot), slot, immediate, bytes };
        if self.is_attacker {
            self.overheard.truncate(OVERHEARD_MAX);
            self.overheard.insert(0, write.clone());
        }
        self.to_client.push_back(write);
        self.next_frame += 1;
    }

    /// Somebody on the network, who knows everything but the keys.
    fn attack(&mut self) {
        self.attacked = true;
        let slot = self.random.random_range(0..self.slots);
        let any = |random: &mut StdRng, length: usize| (length > 0).then(|| random.random_range(0..length));
        let (at, other) = (any(&mut self.random, self.to_client.len()), any(&mut self.random, self.to_client.len()));
        match (self.random.random_range(0..10), at, other) {
            (0, Some(at), _) => {
                flip(&mut self.random, &mut self.to_client[at].bytes);
            }
            (1, Some(at), _) => {
                let bytes = &mut self.to_client[at].bytes;
                bytes.truncate(self.random.random_range(0..=bytes.len()));
            }
            (2, Some(at), _) => self.to_client[at].immediate ^= 1 << self.random.random_range(0..32),
            (3, Some(at), _) => {
                let write = &mut self.to_client[at];
                (write.slot, write.immediate) = (slot, immediate(slot, 1));
            }
            (4, Some(at), Some(other)) => self.to_client.swap(at, other),
            // Swallowed: the cell gets an acknowledgement that the client never sent.
            (5, Some(at), _) => {
                let swallowed = self.to_client.remove(at);
                self.acknowledged.extend(swallowed.and_then(|write| write.taken));
            }
            (6, ..) => {
                if let Some(at) = any(&mut self.random, self.overheard.len()) {
                    let again = Write { taken: None, ..self.overheard[at].clone() };
                    let turn = self.random.random_range(0..=self.to_client.len());
                    self.to_client.insert(turn, again);
                }
            }
            (7, ..) => {
                if let Some(at) = any(&mut self.random, self.overheard_credits.len()) {
                    self.to_cell.push_front(self.overheard_credits[at].clone());
                }
            }
            (8, ..) => {
                if let Some(bytes) = self.to_cell.front_mut() {
                    flip(&mut self.random, bytes);
                }
            }
            // What lies in a slot now has been handed out, or has not been announced.
            _ => flip(&mut self.random, &mut self.ring[slot as usize]),
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.cell.next_action() {
            match action {
                Action::MoveToError => {
                    assert!(!self.cell_flushing, "asked twice");
                    self.cell_flushing = true;
                    self.connected = false;
                }
                Action::Release => {
                    assert!(!self.cell_released, "released twice");
                    assert_eq!((self.cell.outstanding(), self.cell.state()), (0, State::Closed));
                    self.cell_released = true;
                }
            }
        }
        while let Some(action) = self.client.next_action() {
            match action {
                Action::MoveToError => {
                    assert!(!self.client_flushing, "asked twice");
                    self.client_flushing = true;
                    self.connected = false;
                }
                Action::Release => {
                    assert!(!self.client_released, "released twice");
                    assert_eq!((self.client.outstanding(), self.client.state()), (0, State::Closed));
                    self.client_released = true;
                }
            }
        }
    }

    fn step(&mut self) {
        match self.random.random_range(0..100) {
            // The cell sends a frame.
            0..30 => {
                if let Some(slot) = self.cell.begin_write(1) {
                    assert_eq!(self.cell.state(), State::Open);
                    self.write(slot);
                }
            }
            // The wire delivers a WRITE: into memory, and as a notification.
            30..55 => {
                if self.connected
                    && let Some(write) = self.to_client.pop_front()
                {
                    self.acknowledged.extend(write.taken);
                    self.deliver(write);
                }
            }
            // The cell sees one complete.
            55..70 => {
                if let Some(slot) = self.acknowledged.pop_front() {
                    self.cell.write_completed(slot, None);
                } else if self.cell_flushing || !self.connected {
                    // What was not acknowledged is flushed; it may have been written all the same.
                    if let Some(slot) = self.to_client.pop_front().and_then(|write| write.taken) {
                        self.cell.write_completed(slot, Some("flushed"));
                    }
                }
            }
            // The client's SEND completes, and its credits arrive.
            70..80 => {
                if self.client_sends > 0 {
                    self.client_sends -= 1;
                    let failure = (!self.connected).then_some("flushed");
                    self.client.send_completed(failure);
                }
                if self.connected
                    && let Some(bytes) = self.to_cell.pop_front()
                {
                    self.take_credits(&bytes);
                }
            }
            // A batch is dropped.
            80..95 => {
                if !self.held.is_empty() {
                    let index = self.random.random_range(0..self.held.len());
                    let (slot, frame) = self.held.swap_remove(index);
                    let is_same = self.ring[slot as usize] == frame;
                    assert!(self.lied || is_same, "slot {slot} changed while it was held");
                    self.client.released(slot);
                }
                if let Some(slots) = self.client.due_returns() {
                    self.send_credits(slots);
                }
            }
            95 => {
                if self.liar && self.connected && self.random.random_ratio(1, 20) {
                    self.lied = true;
                    let slot = self.random.random_range(0..self.slots + 2);
                    let generation = self.generation + self.random.random_range(0..2);
                    self.give(generation, vec![slot]);
                }
            }
            98 => {
                if self.is_attacker && self.connected {
                    self.attack();
                }
            }
            // The connection fails: each side learns by its own requests, or is told.
            96 => {
                if self.random.random_ratio(1, 50) {
                    self.connected = false;
                    self.cell.end(Ended::QueuePair("lost".into()));
                    if self.random.random() {
                        self.client.end(Ended::QueuePair("lost".into()));
                    }
                }
            }
            // An operator's reset.
            97 => {
                if self.random.random_ratio(1, 50) {
                    self.cell.end(Ended::Reset);
                }
            }
            // The cell's word over TCP that a link has ended.
            _ => {
                if self.cell_released && !self.client_flushing {
                    self.client.end(Ended::Reset);
                }
            }
        }
        self.act();
        self.check();
        if self.cell_released && self.client_released {
            self.lied = false;
            self.reopen();
        }
    }

    fn deliver(&mut self, write: Write) {
        let is_held = self.held.iter().any(|(held, _)| *held == write.slot);
        assert!(self.lied || !is_held, "slot {} was written while the client held it", write.slot);
        self.ring[write.slot as usize] = write.bytes.clone();
        if self.secret.is_some() {
            return self.open(&write);
        }
        // A client that lied has given what it did not have: it hurts itself.
        let arrived = self.client.arrived(write.slot);
        if self.client.state() != State::Open || self.lied {
            return;
        }
        let is_short = arrived.expect("a write with a credit");
        self.take_frame(&write.bytes);
        if is_short {
            self.client.released(write.slot);
        } else {
            self.held.push((write.slot, write.bytes));
        }
    }

    /// A client with integrity opens what came out of a copy, and gives the slot back at once.
    fn open(&mut self, write: &Write) {
        let (slot, written) = (slot_of(write.immediate), write.bytes.len());
        let (ring, is_attacker) = (&mut self.ring, self.is_attacker);
        let opener = self.client_seals.1.as_mut().expect("the link has integrity");
        let opened = match ring.get_mut(slot as usize) {
            Some(bytes) => {
                // Longer than what lies there, if somebody redirected it: there is always memory.
                bytes.resize(bytes.len().max(written), 0);
                opener.open_slot(write.immediate, written, |offset, target| {
                    let read = &mut bytes[offset..offset + target.len()];
                    target.copy_from_slice(read);
                    // An attacker changes what has just been read: it was read once.
                    if is_attacker {
                        read.fill(0xaa);
                    }
                })
            }
            None => opener.open_slot(write.immediate, 0, |_, _| unreachable!("there is no such slot")),
        };
        match opened {
            Ok(content) => {
                let arrived = self.client.arrived(slot);
                if self.client.state() != State::Open || self.lied {
                    return;
                }
                arrived.expect("a write with a credit");
                self.client.released(slot);
                self.take_frame(&content);
            }
            Err(error) => {
                assert!(self.attacked, "a message of the cell's does not open: {error}");
                self.detected += u64::from(self.client.state() == State::Open);
                self.client.end(error.into());
                // The client opens another link over TCP, which takes the place of this one.
                self.cell.end(Ended::Reset);
            }
        }
    }

    /// A frame is handed on.
    fn take_frame(&mut self, content: &[u8]) {
        let (number, filler) = content.split_first_chunk().expect("a frame");
        assert_eq!(Frame::from_le_bytes(*number), self.expected_frame, "a frame was lost, repeated, or out of order");
        assert_eq!(filler.len(), self.expected_frame as usize % 200, "a frame is not whole");
        assert!(filler.iter().all(|byte| *byte == filler[0]), "a frame was changed");
        self.expected_frame += 1;
        self.delivered += 1;
    }

    fn check(&self) {
        let counts = self.cell.slots().counts();
        assert_eq!(counts.unarmed + counts.free + counts.writing + counts.filled, self.slots);
        if self.lied {
            return;
        }
        // A slot that the cell may write is one that the client does not hold.
        for (slot, _) in &self.held {
            let state = self.cell.slots().slots()[*slot as usize];
            assert!(matches!(state, CellSlot::Filled(_) | CellSlot::Writing(_)), "slot {slot} is held, and {state:?}");
        }
    }

    /// The session ends: both sides give up, and everything is flushed.
    fn finish(&mut self) {
        self.connected = false;
        self.cell.end(Ended::Session);
        self.client.end(Ended::Session);
        for slot in std::mem::take(&mut self.acknowledged) {
            self.cell.write_completed(slot, None);
        }
        for slot in std::mem::take(&mut self.to_client).into_iter().filter_map(|write| write.taken) {
            self.cell.write_completed(slot, Some("flushed"));
        }
        for _ in 0..std::mem::take(&mut self.client_sends) {
            self.client.send_completed(Some("flushed"));
        }
        self.act();
        assert!(self.cell_released && self.client_released, "something is left of a link");
        assert_eq!((self.cell.begin_write(1), self.cell.begin_send(), self.client.begin_send()), (None, false, false));
    }
}

/// Frames delivered, and links that ended because something did not open.
fn run(seed: u64) -> (u64, u64) {
    let mut simulation = Simulation::new(seed);
    for _ in 0..STEPS {
        simulation.step();
    }
    simulation.finish();
    (simulation.delivered, simulation.detected)
}

#[test]
fn a_million_steps_keep_every_invariant() {
    let only = std::env::var("LINKS_SEED").ok().map(|seed| seed.parse().expect("LINKS_SEED is a number"));
    let (mut delivered, mut detected) = (0, 0);
    for seed in only.map_or(0..SEEDS, |seed| seed..seed + 1) {
        let outcome = std::panic::catch_unwind(|| run(seed));
        let (frames, links) = outcome.unwrap_or_else(|panic| {
            eprintln!("replay with LINKS_SEED={seed}");
            std::panic::resume_unwind(panic)
        });
        (delivered, detected) = (delivered + frames, detected + links);
    }
    assert!(only.is_some() || delivered > SEEDS * STEPS / 20, "only {delivered} frames were delivered");
    assert!(only.is_some() || detected > SEEDS * 4, "only {detected} attacks were noticed");
}
