//! Both ends of a link under simulation: a reliable connection with delays and losses of the whole connection, resets,
//! loss of the session, and clients that lie about their credits.
//!
//! Checked at every step, for each seed: no slot is written without a credit; what a client holds does not change under
//! it; frames of a link arrive once, in order, and whole; each end asks for its release once, with nothing outstanding;
//! when everything has ended nothing is left. `LINKS_SEED=n` replays one seed.

use std::collections::VecDeque;

use hidb::session::{Action, CellLink, CellSlot, ClientLink, Ended, State};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const SEEDS: u64 = 50;
const STEPS: u64 = 24_000;

/// What a slot holds: the number of the frame, 0 for nothing yet.
type Content = u64;

/// On the wire from the cell: the WRITE of a frame into a slot.
#[derive(Clone, Copy, Debug)]
struct Write {
    slot: u32,
    frame: Content,
}

/// One link: both ends, the wire between them, and the ring.
struct Simulation {
    random: StdRng,
    slots: u32,
    generation: u32,
    cell: CellLink,
    client: ClientLink,
    ring: Vec<Content>,
    to_client: VecDeque<Write>,
    /// Slots written whose completion the cell has not seen.
    acknowledged: VecDeque<u32>,
    to_cell: VecDeque<(u32, Vec<u32>)>,
    /// SENDs of the client that are posted.
    client_sends: u32,
    connected: bool,
    cell_flushing: bool,
    client_flushing: bool,
    cell_released: bool,
    client_released: bool,
    next_frame: Content,
    expected_frame: Content,
    held: Vec<(u32, Content)>,
    liar: bool,
    lied: bool,
    delivered: u64,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let slots = random.random_range(1..=16);
        let liar = random.random_ratio(1, 4);
        let mut simulation = Simulation {
            slots,
            generation: 0,
            cell: CellLink::new(0, 1, 1),
            client: ClientLink::new(0, 1, 1),
            ring: Vec::new(),
            to_client: VecDeque::new(),
            acknowledged: VecDeque::new(),
            to_cell: VecDeque::new(),
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
        self.ring = vec![0; self.slots as usize];
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
            self.to_cell.push_back((self.generation, slots));
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
                    self.to_client.push_back(Write { slot, frame: self.next_frame });
                    self.next_frame += 1;
                }
            }
            // The wire delivers a WRITE: into memory, and as a notification.
            30..55 => {
                if self.connected
                    && let Some(write) = self.to_client.pop_front()
                {
                    self.deliver(write);
                    self.acknowledged.push_back(write.slot);
                }
            }
            // The cell sees one complete.
            55..70 => {
                if let Some(slot) = self.acknowledged.pop_front() {
                    self.cell.write_completed(slot, None);
                } else if self.cell_flushing || !self.connected {
                    // What was not acknowledged is flushed; it may have been written all the same.
                    if let Some(write) = self.to_client.pop_front() {
                        self.cell.write_completed(write.slot, Some("flushed"));
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
                    && let Some((generation, slots)) = self.to_cell.pop_front()
                {
                    let result = self.cell.slots_free(generation, &slots);
                    assert!(result.is_ok() || self.lied, "{result:?}");
                    if result.is_err() {
                        assert!(
                            matches!(self.cell.ended(), Some(Ended::Protocol(_))) || self.cell.state() != State::Open
                        );
                    }
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
                    self.to_cell.push_back((generation, vec![slot]));
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
        let slot = write.slot as usize;
        let is_held = self.held.iter().any(|(held, _)| *held == write.slot);
        assert!(self.lied || !is_held, "slot {slot} was written while the client held it");
        self.ring[slot] = write.frame;
        // A client that lied has given what it did not have: it hurts itself.
        let arrived = self.client.arrived(write.slot);
        if self.client.state() != State::Open || self.lied {
            return;
        }
        let is_short = arrived.expect("a write with a credit");
        assert_eq!(write.frame, self.expected_frame, "a frame was lost, repeated, or out of order");
        self.expected_frame += 1;
        self.delivered += 1;
        if is_short {
            self.client.released(write.slot);
        } else {
            self.held.push((write.slot, write.frame));
        }
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
        for write in std::mem::take(&mut self.to_client) {
            self.cell.write_completed(write.slot, Some("flushed"));
        }
        for _ in 0..std::mem::take(&mut self.client_sends) {
            self.client.send_completed(Some("flushed"));
        }
        self.act();
        assert!(self.cell_released && self.client_released, "something is left of a link");
        assert_eq!((self.cell.begin_write(1), self.cell.begin_send(), self.client.begin_send()), (None, false, false));
    }
}

fn run(seed: u64) -> u64 {
    let mut simulation = Simulation::new(seed);
    for _ in 0..STEPS {
        simulation.step();
    }
    simulation.finish();
    simulation.delivered
}

#[test]
fn a_million_steps_keep_every_invariant() {
    let only = std::env::var("LINKS_SEED").ok().map(|seed| seed.parse().expect("LINKS_SEED is a number"));
    let mut delivered = 0;
    for seed in only.map_or(0..SEEDS, |seed| seed..seed + 1) {
        let outcome = std::panic::catch_unwind(|| run(seed));
        delivered += outcome.unwrap_or_else(|panic| {
            eprintln!("replay with LINKS_SEED={seed}");
            std::panic::resume_unwind(panic)
        });
    }
    assert!(only.is_some() || delivered > SEEDS * STEPS / 20, "only {delivered} frames were delivered");
}
