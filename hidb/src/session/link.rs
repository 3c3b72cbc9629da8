//! The life of a link, on both sides.
//!
//! ```text
//! Opening --first SlotsFree--> Open --end--> Flushing --last completion--> Closed
//! ```
//!
//! A link ends by a reset (an operator's, or a side's that wants a new ring), by an error of its queue pair, by a lie of
//! the peer, or with its session. However it ends, its owner moves the queue pair to error ([`Action::MoveToError`]),
//! waits until everything posted has completed or was flushed, and only then destroys the queue pair and deregisters the
//! ring ([`Action::Release`]). A new link gets a new ring with a new key and the next generation.
//!
//! Invariants
//! - No slot is written without a credit, and no credit is used unless the link is open.
//! - At most `depth` work requests are outstanding.
//! - Each action is asked for once; `Release` is the last, and comes with nothing outstanding.

use std::collections::VecDeque;

use super::slots::{CellSlots, ClientSlots};
use crate::error::{Error, ErrorCode, Result};

/// Where a link stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Connected, and the client's first credits are awaited.
    Opening,
    /// Frames travel.
    Open,
    /// It has ended; what was posted is awaited.
    Flushing,
    /// Nothing is left of it.
    Closed,
}

/// Why a link ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was reset: the client opens another.
    Reset,
    /// A work request failed: with this status of the device.
    QueuePair(String),
    /// The peer broke the protocol.
    Protocol(String),
    /// What arrived is not what the peer sent: a checksum or a MAC was wrong.
    Corruption(String),
    /// The session is over.
    Session,
}

impl Ended {
    /// What requests that were under way get.
    pub fn error(&self) -> Error {
        match self {
            Ended::Reset => Error::new(ErrorCode::Unavailable, "the RDMA link was reset: ask again"),
            Ended::QueuePair(status) => Error::new(
                ErrorCode::Unavailable,
                format!("the RDMA link failed ({status}): ask again, or connect with --transport tcp"),
            ),
            Ended::Protocol(what) => Error::new(ErrorCode::Protocol, what.clone()),
            Ended::Corruption(what) => Error::new(ErrorCode::Corruption, what.clone()),
            Ended::Session => Error::new(ErrorCode::Unavailable, "the session has ended"),
        }
    }
}

/// What is wrong with something that arrived ends the link that it came on.
impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        match error.code {
            ErrorCode::Corruption => Ended::Corruption(error.message),
            _ => Ended::Protocol(error.message),
        }
    }
}

/// What the owner of a link must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Move the queue pair to the error state: everything posted completes as flushed.
    MoveToError,
    /// Destroy the queue pair and give up its memory.
    Release,
}

/// What both sides' links have in common.
#[derive(Clone, Debug)]
struct Life {
    state: State,
    ended: Option<Ended>,
    outstanding: u32,
    depth: u32,
    actions: VecDeque<Action>,
}

impl Life {
    fn new(depth: u32) -> Self {
        Life { state: State::Opening, ended: None, outstanding: 0, depth, actions: VecDeque::with_capacity(2) }
    }

    fn post(&mut self) -> bool {
        let may = matches!(self.state, State::Opening | State::Open) && self.outstanding < self.depth;
        self.outstanding += u32::from(may);
        may
    }

    fn completed(&mut self, failure: Option<&str>) {
        debug_assert!(self.outstanding > 0, "a completion of nothing");
        self.outstanding = self.outstanding.saturating_sub(1);
        if let Some(status) = failure {
            self.end(Ended::QueuePair(status.into()));
        }
        self.settle();
    }

    fn end(&mut self, why: Ended) {
        if matches!(self.state, State::Opening | State::Open) {
            self.state = State::Flushing;
            self.ended = Some(why);
            self.actions.push_back(Action::MoveToError);
            self.settle();
        }
    }

    fn settle(&mut self) {
        if self.state == State::Flushing && self.outstanding == 0 {
            self.state = State::Closed;
            self.actions.push_back(Action::Release);
        }
    }
}

macro_rules! life {
    ($link:ident) => {
        impl $link {
            /// Where it stands.
            pub fn state(&self) -> State {
                self.life.state
            }

            /// Why it ended, once it has.
            pub fn ended(&self) -> Option<&Ended> {
                self.life.ended.as_ref()
            }

            /// Work requests posted and not completed.
            pub fn outstanding(&self) -> u32 {
                self.life.outstanding
            }

            /// Whether a work request could be posted now.
            pub fn has_room(&self) -> bool {
                matches!(self.life.state, State::Opening | State::Open) && self.life.outstanding < self.life.depth
            }

            /// Counts a SEND in; false when it must not be posted now (ended, or the send queue is full).
            pub fn begin_send(&mut self) -> bool {
                self.life.post()
            }

            /// A SEND has completed, or was not accepted; with the status if it failed.
            pub fn send_completed(&mut self, failure: Option<&str>) {
                self.life.completed(failure);
            }

            /// Ends the link. Later reasons change nothing.
            pub fn end(&mut self, why: Ended) {
                self.life.end(why);
            }

            /// What the owner must do next.
            pub fn next_action(&mut self) -> Option<Action> {
                self.life.actions.pop_front()
            }
        }
    };
}

/// The cell's end of a link.
#[derive(Clone, Debug)]
pub struct CellLink {
    life: Life,
    slots: CellSlots,
}

life!(CellLink);

impl CellLink {
    /// A link over a ring of `slots` slots of this generation, with at most `depth` work requests outstanding.
    pub fn new(generation: u32, slots: u32, depth: u32) -> Self {
        CellLink { life: Life::new(depth), slots: CellSlots::new(generation, slots) }
    }

    /// The ring.
    pub fn slots(&self) -> &CellSlots {
        &self.slots
    }

    /// Credits from the client; the first ones open the link.
    ///
    /// # Errors
    /// `Protocol` when the client gives what it does not have: the link has ended then.
    pub fn slots_free(&mut self, generation: u32, slots: &[u32]) -> Result<()> {
        for slot in slots {
            if let Err(error) = self.slots.returned(generation, *slot) {
                self.end(Ended::Protocol(error.message.clone()));
                return Err(error);
            }
        }
        if self.life.state == State::Opening && generation == self.slots.generation() {
            self.life.state = State::Open;
        }
        Ok(())
    }

    /// Whether a frame could be written into a slot now.
    pub fn can_write(&self) -> bool {
        self.life.state == State::Open && self.slots.has_free() && self.has_room()
    }

    /// A slot for a frame of this request, and a place in the send queue; `None` when either is missing.
    pub fn begin_write(&mut self, request_id: u64) -> Option<u32> {
        if !self.can_write() || !self.life.post() {
            return None;
        }
        self.slots.take(request_id)
    }

    /// A WRITE that was begun was not accepted by the device: its slot is free again.
    pub fn write_refused(&mut self, slot: u32, status: &str) {
        self.slots.untake(slot);
        self.life.completed(Some(status));
    }

    /// A WRITE has completed; with the status if it failed.
    pub fn write_completed(&mut self, slot: u32, failure: Option<&str>) {
        self.slots.written(slot);
        self.life.completed(failure);
    }
}

/// The client's end of a link.
#[derive(Clone, Debug)]
pub struct ClientLink {
    life: Life,
    slots: ClientSlots,
}

life!(ClientLink);

impl ClientLink {
    /// A link over a ring of `slots` slots of this generation, with at most `depth` SENDs outstanding.
    pub fn new(generation: u32, slots: u32, depth: u32) -> Self {
        ClientLink { life: Life::new(depth), slots: ClientSlots::new(generation, slots) }
    }

    /// The ring.
    pub fn slots(&self) -> &ClientSlots {
        &self.slots
    }

    /// The first credits, all slots: sending them opens the link. `None` when it has ended already.
    pub fn open(&mut self) -> Option<Vec<u32>> {
        if self.life.state != State::Opening {
            return None;
        }
        self.life.state = State::Open;
        Some(self.slots.take_returns())
    }

    /// A WRITE has arrived in a slot. True when the frame should be copied out, and the slot released, at once, because
    /// the cell has few left.
    ///
    /// # Errors
    /// `Protocol` when the cell had no credit for it: the link has ended then.
    pub fn arrived(&mut self, slot: u32) -> Result<bool> {
        match self.slots.arrived(slot) {
            Ok(()) => Ok(self.slots.is_short()),
            Err(error) => {
                self.end(Ended::Protocol(error.message.clone()));
                Err(error)
            }
        }
    }

    /// Nobody refers to what came in a slot any more.
    pub fn released(&mut self, slot: u32) {
        self.slots.released(slot);
    }

    /// The credits that should be given now, if the link is open and they are due.
    pub fn due_returns(&mut self) -> Option<Vec<u32>> {
        (self.life.state == State::Open && self.slots.returns_are_due()).then(|| self.slots.take_returns())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_opens_with_the_first_credits_and_is_released_when_all_is_flushed() {
        let mut cell = CellLink::new(1, 4, 8);
        let mut client = ClientLink::new(1, 4, 8);
        assert_eq!(cell.begin_write(5), None);
        cell.slots_free(1, &client.open().unwrap()).unwrap();
        let slot = cell.begin_write(5).unwrap();
        assert!(cell.begin_send());
        cell.end(Ended::Reset);
        assert_eq!(cell.next_action(), Some(Action::MoveToError));
        assert_eq!((cell.next_action(), cell.begin_write(6), cell.begin_send()), (None, None, false));
        cell.write_completed(slot, Some("flushed"));
        assert_eq!(cell.next_action(), None);
        cell.send_completed(Some("flushed"));
        assert_eq!((cell.next_action(), cell.state()), (Some(Action::Release), State::Closed));
        assert_eq!(cell.ended(), Some(&Ended::Reset));
        assert!(cell.next_action().is_none());
        drop(client);
    }

    #[test]
    fn a_lie_ends_the_link() {
        let mut cell = CellLink::new(1, 2, 8);
        cell.slots_free(1, &[0, 1]).unwrap();
        assert!(cell.slots_free(1, &[1]).is_err());
        assert!(matches!(cell.ended(), Some(Ended::Protocol(_))));
        let mut client = ClientLink::new(1, 2, 8);
        client.open().unwrap();
        client.arrived(0).unwrap();
        assert!(client.arrived(0).is_err());
        assert_eq!(client.next_action(), Some(Action::MoveToError));
    }
}
