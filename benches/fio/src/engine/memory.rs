//! Buffers of ops: one anonymous mapping per engine, page aligned, cut into slots.
//!
//! Invariants
//! - The mapping lives as long as the value, at one address; slots do not overlap.
//! - A slot that is marked in flight is lent to the kernel: [`Buffers::slot`] refuses it.

use std::io;
use std::ptr::{self, NonNull};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

const PAGE_BYTES: usize = 4096;

pub(crate) struct Buffers {
    base: NonNull<u8>,
    slot_bytes: usize,
    in_flight: Vec<bool>,
}

impl Buffers {
    pub(crate) fn new(slots: u32, bytes: usize) -> io::Result<Buffers> {
        let slot_bytes = bytes.max(1).next_multiple_of(PAGE_BYTES);
        let total = slot_bytes.checked_mul(slots as usize).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new private anonymous mapping at an address of the kernel's choice aliases nothing.
        let base =
            unsafe { mmap_anonymous(ptr::null_mut(), total, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)? };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Buffers { base, slot_bytes, in_flight: vec![false; slots as usize] })
    }

    /// Marks a slot as lent to the kernel and says where it is.
    ///
    /// Panics when it is in flight already: two ops must not share memory.
    pub(crate) fn lend(&mut self, slot: u32) -> *mut u8 {
        let lent = &mut self.in_flight[slot as usize];
        assert!(!*lent, "slot {slot} is in flight");
        *lent = true;
        // SAFETY: the slot exists (indexed above), so the offset is inside the mapping.
        unsafe { self.base.as_ptr().add(slot as usize * self.slot_bytes) }
    }

    /// The kernel gave the slot back.
    pub(crate) fn give_back(&mut self, slot: u32) {
        self.in_flight[slot as usize] = false;
    }

    pub(crate) fn slot(&mut self, slot: u32) -> &mut [u8] {
        assert!(!self.in_flight[slot as usize], "slot {slot} is in flight");
        // SAFETY: inside the mapping, initialised by the kernel with zeros, not lent, and `&mut self` excludes others.
        unsafe {
            std::slice::from_raw_parts_mut(self.base.as_ptr().add(slot as usize * self.slot_bytes), self.slot_bytes)
        }
    }

    /// Address and length of each slot, for registration.
    pub(crate) fn io_vectors(&self) -> Vec<libc::iovec> {
        let vector = |slot| libc::iovec {
            // SAFETY: inside the mapping, as `slot` counts to the number of slots.
            iov_base: unsafe { self.base.as_ptr().add(slot * self.slot_bytes) }.cast(),
            iov_len: self.slot_bytes,
        };
        (0..self.in_flight.len()).map(vector).collect()
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, whole; engines drop their ring, and with it what is in flight, first.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.slot_bytes * self.in_flight.len()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_page_aligned_and_apart() {
        let mut buffers = Buffers::new(3, 5000).unwrap();
        buffers.slot(0).fill(1);
        buffers.slot(1).fill(2);
        assert!(buffers.slot(0).iter().all(|byte| *byte == 1));
        assert_eq!((buffers.slot(2).len(), buffers.lend(2) as usize % PAGE_BYTES), (8192, 0));
    }

    #[test]
    #[should_panic(expected = "slot 1 is in flight")]
    fn a_slot_in_flight_cannot_be_touched() {
        let mut buffers = Buffers::new(2, 10).unwrap();
        buffers.lend(1);
        buffers.slot(1);
    }
}
