//! The slots of a result ring, as the cell sees them and as the client does.
//!
//! ```text
//! cell:    Unarmed --returned--> Free --take--> Writing --written--> Filled --returned--> Free
//!                                                  \--returned--> Early --written--> Free
//! client:  Held --take_returns--> AtCell --arrived--> Held
//! ```
//!
//! Invariants
//! - A slot is written only after the client gave the credit for it, and not again before the WRITE has completed *and*
//!   the client has given it again.
//! - A credit given twice, for a slot that does not exist, or by a client for what it does not hold, is a protocol error
//!   and changes nothing. Credits of an earlier generation are dropped.
//! - `take` gives slots in the order in which they became free.

use std::collections::VecDeque;

use crate::error::{Error, ErrorCode, Result};

/// A slot in the cell's view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CellSlot {
    /// The client has not given it yet.
    Unarmed,
    /// May be filled.
    Free,
    /// A WRITE into it is under way, for this request.
    Writing(u64),
    /// The client gave it back before the cell saw its WRITE complete.
    Early(u64),
    /// Written; the client has it.
    Filled(u64),
}

/// How many slots are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotCounts {
    /// Not given by the client yet.
    pub unarmed: u32,
    /// May be filled.
    pub free: u32,
    /// Being written.
    pub writing: u32,
    /// The client has them.
    pub filled: u32,
}

/// The cell's view of a ring of one generation.
#[derive(Clone, Debug)]
pub struct CellSlots {
    generation: u32,
    slots: Vec<CellSlot>,
    free: VecDeque<u32>,
    stale_returns: u64,
}

impl CellSlots {
    /// A ring whose slots the client has not given yet.
    pub fn new(generation: u32, count: u32) -> Self {
        let slots = vec![CellSlot::Unarmed; count as usize];
        CellSlots { generation, slots, free: VecDeque::with_capacity(count as usize), stale_returns: 0 }
    }

    /// The generation of the ring.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Every slot, by number.
    pub fn slots(&self) -> &[CellSlot] {
        &self.slots
    }

    /// Credits of earlier generations that were dropped.
    pub fn stale_returns(&self) -> u64 {
        self.stale_returns
    }

    /// How many slots are in which state.
    pub fn counts(&self) -> SlotCounts {
        let mut counts = SlotCounts::default();
        for slot in &self.slots {
            match slot {
                CellSlot::Unarmed => counts.unarmed += 1,
                CellSlot::Free => counts.free += 1,
                CellSlot::Writing(_) | CellSlot::Early(_) => counts.writing += 1,
                CellSlot::Filled(_) => counts.filled += 1,
            }
        }
        counts
    }

    /// Whether a slot may be filled now.
    pub fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// Takes the credit for a slot, to write a frame of this request into it.
    pub fn take(&mut self, request_id: u64) -> Option<u32> {
        let slot = self.free.pop_front()?;
        debug_assert_eq!(self.slots[slot as usize], CellSlot::Free);
        self.slots[slot as usize] = CellSlot::Writing(request_id);
        Some(slot)
    }

    /// Gives a credit back that was taken and not used: nothing was posted.
    pub fn untake(&mut self, slot: u32) {
        if let Some(state @ CellSlot::Writing(_)) = self.slots.get_mut(slot as usize) {
            *state = CellSlot::Free;
            self.free.push_front(slot);
        } else {
            debug_assert!(false, "slot {slot} was not taken");
        }
    }

    /// The WRITE into a slot has completed.
    pub fn written(&mut self, slot: u32) {
        match self.slots.get_mut(slot as usize) {
            Some(state @ CellSlot::Writing(_)) => {
                let CellSlot::Writing(request) = *state else { return };
                *state = CellSlot::Filled(request);
            }
            Some(state @ CellSlot::Early(_)) => {
                *state = CellSlot::Free;
                self.free.push_back(slot);
            }
            state => debug_assert!(false, "a WRITE into slot {slot} completed, which is {state:?}"),
        }
    }

    /// The client gives a credit.
    ///
    /// # Errors
    /// `Protocol` when the client does not have this slot.
    pub fn returned(&mut self, generation: u32, slot: u32) -> Result<()> {
        if generation < self.generation {
            self.stale_returns += 1;
            return Ok(());
        }
        let count = self.slots.len();
        let lie = |what: String| Err(Error::new(ErrorCode::Protocol, what));
        if generation > self.generation {
            return lie(format!("a slot of generation {generation} was given; the ring's is {}", self.generation));
        }
        let Some(state) = self.slots.get_mut(slot as usize) else {
            return lie(format!("slot {slot} was given; the ring has {count}"));
        };
        match *state {
            CellSlot::Unarmed | CellSlot::Filled(_) => {
                *state = CellSlot::Free;
                self.free.push_back(slot);
            }
            // The client can have seen the WRITE before its acknowledgement was seen here.
            CellSlot::Writing(request) => *state = CellSlot::Early(request),
            CellSlot::Free | CellSlot::Early(_) => {
                return lie(format!("slot {slot} was given twice"));
            }
        }
        Ok(())
    }
}

/// A slot in the client's view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientSlot {
    /// The cell may fill it.
    AtCell,
    /// Here: not given yet, or what came in it is still referred to.
    Held,
    /// Here, and nobody refers to it: to be given with the next message.
    Returning,
}

/// The client's view of a ring of one generation.
#[derive(Clone, Debug)]
pub struct ClientSlots {
    generation: u32,
    slots: Vec<ClientSlot>,
    returning: VecDeque<u32>,
    at_cell: u32,
}

impl ClientSlots {
    /// A new ring: all slots wait to be given.
    pub fn new(generation: u32, count: u32) -> Self {
        ClientSlots {
            generation,
            slots: vec![ClientSlot::Returning; count as usize],
            returning: (0..count).collect(),
            at_cell: 0,
        }
    }

    /// The generation of the ring.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Every slot, by number.
    pub fn slots(&self) -> &[ClientSlot] {
        &self.slots
    }

    /// A WRITE into a slot has arrived.
    ///
    /// # Errors
    /// `Protocol` when the cell had no credit for it.
    pub fn arrived(&mut self, slot: u32) -> Result<()> {
        match self.slots.get_mut(slot as usize) {
            Some(state @ ClientSlot::AtCell) => {
                *state = ClientSlot::Held;
                self.at_cell -= 1;
                Ok(())
            }
            state => Err(Error::new(
                ErrorCode::Protocol,
                format!("the cell wrote into slot {slot} without a credit for it (it is {state:?})"),
            )),
        }
    }

    /// Nobody refers to what came in a slot any more.
    pub fn released(&mut self, slot: u32) {
        if let Some(state @ ClientSlot::Held) = self.slots.get_mut(slot as usize) {
            *state = ClientSlot::Returning;
            self.returning.push_back(slot);
        } else {
            debug_assert!(false, "slot {slot} is released, and was not held");
        }
    }

    /// Whether so few slots are left to the cell (fewer than a quarter) that what arrives should be copied out at once.
    pub fn is_short(&self) -> bool {
        (self.at_cell as usize + self.returning.len()) * 4 < self.slots.len()
    }

    /// Slots that wait to be given.
    pub fn waiting_returns(&self) -> usize {
        self.returning.len()
    }

    /// Whether credits should be given now: a quarter of the ring waits, or the cell has nothing left.
    pub fn returns_are_due(&self) -> bool {
        let waiting = self.returning.len();
        waiting > 0 && (waiting * 4 >= self.slots.len() || self.at_cell == 0)
    }

    /// The slots to give, which are the cell's from now on.
    pub fn take_returns(&mut self) -> Vec<u32> {
        let slots: Vec<u32> = self.returning.drain(..).collect();
        for slot in &slots {
            self.slots[*slot as usize] = ClientSlot::AtCell;
        }
        self.at_cell += slots.len() as u32;
        slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_goes_around() {
        let mut cell = CellSlots::new(1, 2);
        assert_eq!(cell.take(9), None);
        cell.returned(1, 1).unwrap();
        assert_eq!(cell.take(9), Some(1));
        assert_eq!(cell.counts(), SlotCounts { unarmed: 1, free: 0, writing: 1, filled: 0 });
        cell.written(1);
        assert_eq!(cell.slots()[1], CellSlot::Filled(9));
        cell.returned(1, 1).unwrap();
        assert_eq!(cell.take(10), Some(1));
        // The client was quicker than the acknowledgement.
        cell.returned(1, 1).unwrap();
        assert_eq!(cell.take(11), None);
        cell.written(1);
        assert_eq!(cell.take(11), Some(1));
    }

    #[test]
    fn lies_about_credits_change_nothing() {
        let mut cell = CellSlots::new(2, 2);
        cell.returned(2, 0).unwrap();
        for (generation, slot) in [(2, 0), (2, 2), (3, 1), (2, u32::MAX)] {
            assert_eq!(cell.returned(generation, slot).unwrap_err().code, ErrorCode::Protocol);
        }
        cell.returned(1, 0).unwrap();
        assert_eq!((cell.stale_returns(), cell.counts().free), (1, 1));
        cell.take(1);
        cell.returned(2, 0).unwrap();
        assert!(cell.returned(2, 0).is_err());
    }

    #[test]
    fn the_client_copies_when_slots_run_short_and_sees_writes_without_credit() {
        let mut client = ClientSlots::new(1, 8);
        assert_eq!(client.take_returns().len(), 8);
        for slot in 0..6 {
            client.arrived(slot).unwrap();
            assert!(!client.is_short(), "{slot}");
        }
        client.arrived(6).unwrap();
        assert!(client.is_short() && !client.returns_are_due());
        assert_eq!(client.arrived(6).unwrap_err().code, ErrorCode::Protocol);
        assert_eq!(client.arrived(8).unwrap_err().code, ErrorCode::Protocol);
        client.released(3);
        assert!(!client.is_short());
        assert_eq!(client.take_returns(), [3]);
    }
}
