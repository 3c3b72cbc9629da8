//! The bytes behind a soft memory region: application memory that stays where it is until it is deregistered.
//!
//! Invariants
//! - Whoever makes a [`RawMemory`] promises that the bytes stay mapped until the engine gives it back.
//! - No reference to the bytes is ever made here: they may be read, or written by atomics, from other threads
//!   meanwhile, as with a network card. Copies go through raw pointers.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::soft::crc_copy;
use crate::soft::engine::RegionMemory;

/// A range of registered memory.
#[derive(Debug)]
pub(crate) struct RawMemory {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the pointer is only followed under the lock of the engine that holds it; the memory it names is promised to
// outlive it, whichever thread that is.
unsafe impl Send for RawMemory {}

impl RawMemory {
    /// # Safety
    /// The range must stay mapped and writable (readable only, if never registered for writing) until the engine
    /// gives the region back.
    pub(crate) unsafe fn new(start: NonNull<u8>, bytes: usize) -> Self {
        RawMemory { start, bytes }
    }

    /// The word at `offset`, if its address is aligned.
    fn word(&self, offset: usize) -> Option<&AtomicU64> {
        debug_assert!(offset + 8 <= self.bytes);
        // SAFETY: the engine checks ranges before it calls (see `RegionMemory`).
        let address = unsafe { self.start.as_ptr().add(offset) };
        // SAFETY: mapped, aligned, and atomic access from several threads is what an atomic allows.
        address.cast::<u64>().is_aligned().then(|| unsafe { AtomicU64::from_ptr(address.cast()) })
    }
}

impl RegionMemory for RawMemory {
    fn length_bytes(&self) -> usize {
        self.bytes
    }

    #[inline]
    fn read(&self, offset: usize, into: &mut [u8]) {
        debug_assert!(offset + into.len() <= self.bytes);
        // SAFETY: the range is inside (the engine checked), mapped, and `into` is not registered memory.
        unsafe { std::ptr::copy_nonoverlapping(self.start.as_ptr().add(offset), into.as_mut_ptr(), into.len()) }
    }

    #[inline]
    fn read_with_crc(&self, offset: usize, into: &mut [u8], crc: u32) -> u32 {
        debug_assert!(offset + into.len() <= self.bytes);
        // SAFETY: as in `read`.
        unsafe { crc_copy::copy_and_extend(crc, self.start.as_ptr().add(offset), into) }
    }

    #[inline]
    fn write(&mut self, offset: usize, from: &[u8]) {
        debug_assert!(offset + from.len() <= self.bytes);
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.start.as_ptr().add(offset), from.len()) }
    }

    fn compare_swap(&mut self, offset: usize, compare: u64, swap: u64) -> u64 {
        match self.word(offset) {
            Some(word) => {
                word.compare_exchange(compare, swap, Ordering::AcqRel, Ordering::Acquire).unwrap_or_else(|seen| seen)
            }
            None => 0,
        }
    }

    fn fetch_add(&mut self, offset: usize, add: u64) -> u64 {
        self.word(offset).map_or(0, |word| word.fetch_add(add, Ordering::AcqRel))
    }
}
