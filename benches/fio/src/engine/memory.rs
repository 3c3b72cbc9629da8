//! Buffers of ops: one anonymous mapping per engine, page aligned, cut into slots.
//!
//! Pages are of 4 KiB, as fio's are, or huge. A drive takes a request in so many pieces (`max_segments`, 254 on virtio), and
//! which 4 KiB pages happen to be neighbours is luck: a read of 1 MiB may be cut in two. In huge pages it is one piece.
//!
//! Invariants
//! - The mapping lives as long as the value, at one address; slots do not overlap.
//! - A slot that is marked in flight is lent to the kernel: [`Buffers::slot`] refuses it.

use std::io;
use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

const PAGE_BYTES: usize = 4096;

const HUGE_PAGE_BYTES: usize = 2 << 20;

pub(crate) struct Buffers {
    /// The first slot, inside the mapping.
    base: NonNull<u8>,
    slot_bytes: usize,
    in_flight: Vec<bool>,
    mapping: NonNull<u8>,
    mapping_bytes: usize,
}

/// Of what pages buffers are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pages {
    #[default]
    Small,
    /// Transparent huge pages: nothing has to be reserved.
    Huge,
}

impl Buffers {
    pub(crate) fn new(slots: u32, bytes: usize, pages: Pages) -> io::Result<Buffers> {
        let slot_bytes = bytes.max(1).next_multiple_of(PAGE_BYTES);
        let total = slot_bytes.checked_mul(slots as usize).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping_bytes = match pages {
            Pages::Small => total,
            // Room to begin at a huge page and to end with one.
            Pages::Huge => total.checked_add(2 * HUGE_PAGE_BYTES).ok_or(io::ErrorKind::OutOfMemory)?,
        };
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new private anonymous mapping at an address of the kernel's choice aliases nothing.
        let mapping = unsafe { mmap_anonymous(ptr::null_mut(), mapping_bytes, protection, MapFlags::PRIVATE)? };
        let mapping = NonNull::new(mapping.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let skipped = if pages == Pages::Huge { mapping.as_ptr().align_offset(HUGE_PAGE_BYTES) } else { 0 };
        // SAFETY: less than a huge page, of which the mapping has two to spare.
        let base = unsafe { mapping.add(skipped) };
        let buffers = Buffers { base, slot_bytes, in_flight: vec![false; slots as usize], mapping, mapping_bytes };
        if pages == Pages::Huge {
            // SAFETY: inside the mapping, as above; advice changes no content.
            unsafe { madvise(base.as_ptr().cast(), total.next_multiple_of(HUGE_PAGE_BYTES), Advice::LinuxHugepage)? };
        }
        Ok(buffers)
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
        let _ = unsafe { munmap(self.mapping.as_ptr().cast(), self.mapping_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_page_aligned_and_apart() {
        for (pages, alignment) in [(Pages::Small, PAGE_BYTES), (Pages::Huge, HUGE_PAGE_BYTES)] {
            let mut buffers = Buffers::new(3, 5000, pages).unwrap();
            buffers.slot(0).fill(1);
            buffers.slot(1).fill(2);
            buffers.slot(2).fill(3);
            assert!(buffers.slot(0).iter().all(|byte| *byte == 1));
            assert_eq!((buffers.slot(2).len(), buffers.lend(2) as usize % PAGE_BYTES), (8192, 0));
            assert_eq!(buffers.lend(0) as usize % alignment, 0);
        }
    }

    #[test]
    #[should_panic(expected = "slot 1 is in flight")]
    fn a_slot_in_flight_cannot_be_touched() {
        let mut buffers = Buffers::new(2, 10, Pages::Small).unwrap();
        buffers.lend(1);
        buffers.slot(1);
    }
}
