//! Registered memory: which keys exist, what they allow, and the one place where payload is copied.
//!
//! Owns: the table of regions. The bytes belong to whoever implements [`RegionMemory`]; for tests that is a
//! `Vec<u8>`, for the provider a wrapper of registered application memory, the only part that needs `unsafe`.
//!
//! Invariants
//! - Every access names key, protection domain, address, length and right, and all five are checked before a
//!   byte moves. (IBA 10.6.3, 9.7.4.1.5)
//! - [`RegionMemory`] is never called out of its bounds.
//! - A key carries random bits beside its slot, so that a stale key of a reused slot does not match.

use thiserror::Error;

use super::random::Random;
use crate::soft::icrc;
use crate::verbs::{Access, MemoryKey};

/// Groups memory regions and queue pairs that may work together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProtectionDomain(pub(crate) u32);

/// The bytes of a region. The engine checks every range before it calls, so that implementations may index.
pub trait RegionMemory {
    /// Bytes of the region; must not change while it is registered.
    fn length_bytes(&self) -> usize;
    /// Copies `into.len()` bytes from `offset`.
    fn read(&self, offset: usize, into: &mut [u8]);
    /// The same, and the CRC-32 of the bytes copied, continued from `crc`. Override it where one pass can do both.
    fn read_with_crc(&self, offset: usize, into: &mut [u8], crc: u32) -> u32 {
        self.read(offset, into);
        icrc::extend(crc, into)
    }
    /// Copies `from` to `offset`.
    fn write(&mut self, offset: usize, from: &[u8]);

    /// Swaps `swap` in if the native-endian word at `offset` (a multiple of eight from an aligned address)
    /// equals `compare`; returns what was there. Override it where others touch the memory meanwhile.
    fn compare_swap(&mut self, offset: usize, compare: u64, swap: u64) -> u64 {
        let original = load(self, offset);
        if original == compare {
            self.write(offset, &swap.to_ne_bytes());
        }
        original
    }

    /// Adds to the native-endian word at `offset`, wrapping; returns what was there.
    fn fetch_add(&mut self, offset: usize, add: u64) -> u64 {
        let original = load(self, offset);
        self.write(offset, &original.wrapping_add(add).to_ne_bytes());
        original
    }
}

fn load<M: RegionMemory + ?Sized>(memory: &M, offset: usize) -> u64 {
    let mut word = [0; 8];
    memory.read(offset, &mut word);
    u64::from_ne_bytes(word)
}

impl RegionMemory for Vec<u8> {
    fn length_bytes(&self) -> usize {
        self.len()
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self[offset..offset + into.len()]);
    }

    fn write(&mut self, offset: usize, from: &[u8]) {
        self[offset..offset + from.len()].copy_from_slice(from);
    }
}

/// Why an access to registered memory is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AccessError {
    /// No region has this key (never had, or no longer).
    #[error("no memory region has this key: it was never registered here, or is deregistered")]
    UnknownKey,
    /// The region belongs to another protection domain than the queue pair.
    #[error("the memory region belongs to another protection domain than the queue pair")]
    WrongDomain,
    /// The range is not inside the region.
    #[error("the range is not inside the memory region")]
    OutOfRange,
    /// The region was registered without the right.
    #[error("the memory region was registered without this right")]
    Forbidden,
}

/// Why a region cannot be registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RegisterError {
    /// All slots are taken.
    #[error("all {0} memory regions of the engine are in use: deregister some, or configure more")]
    TooMany(usize),
    /// Remote writes and atomics need the right to write locally (as in `ibv_reg_mr`).
    #[error("remote write and remote atomic need local write as well")]
    NeedsLocalWrite,
    /// Start plus length exceeds the 64-bit address space.
    #[error("the region does not fit below the end of the 64-bit address space")]
    Address,
}

#[derive(Debug)]
struct Region<M> {
    key: u32,
    domain: ProtectionDomain,
    start: u64,
    length: u64,
    access: Access,
    memory: M,
}

/// The table of registered regions.
#[derive(Debug)]
pub(crate) struct Regions<M> {
    slots: Box<[Option<Region<M>>]>,
    free: Vec<u32>,
    mask: u32,
    random: Random,
}

impl<M: RegionMemory> Regions<M> {
    pub(crate) fn new(regions_max: usize, random: Random) -> Self {
        let slots = regions_max.clamp(1, 1 << 20);
        Regions {
            slots: (0..slots).map(|_| None).collect(),
            free: (0..slots as u32).rev().collect(),
            mask: slots.next_power_of_two() as u32 - 1,
            random,
        }
    }

    pub(crate) fn register(
        &mut self,
        domain: ProtectionDomain,
        memory: M,
        start: u64,
        access: Access,
    ) -> Result<MemoryKey, (RegisterError, M)> {
        let length = memory.length_bytes() as u64;
        if access.0 & (Access::REMOTE_WRITE.0 | Access::REMOTE_ATOMIC.0) != 0 && !access.allows(Access::LOCAL_WRITE) {
            return Err((RegisterError::NeedsLocalWrite, memory));
        }
        if start.checked_add(length).is_none() {
            return Err((RegisterError::Address, memory));
        }
        let Some(slot) = self.free.pop() else {
            return Err((RegisterError::TooMany(self.slots.len()), memory));
        };
        let key = (self.random.next() as u32 & !self.mask) | slot;
        self.slots[slot as usize] = Some(Region { key, domain, start, length, access, memory });
        Ok(MemoryKey(key))
    }

    pub(crate) fn deregister(&mut self, key: MemoryKey) -> Option<M> {
        let slot = (key.0 & self.mask) as usize;
        let entry = self.slots.get_mut(slot)?;
        if entry.as_ref()?.key != key.0 {
            return None;
        }
        self.free.push(slot as u32);
        entry.take().map(|region| region.memory)
    }

    pub(crate) fn get(&self, key: MemoryKey) -> Option<&M> {
        self.slots.get((key.0 & self.mask) as usize)?.as_ref().filter(|r| r.key == key.0).map(|r| &r.memory)
    }

    pub(crate) fn get_mut(&mut self, key: MemoryKey) -> Option<&mut M> {
        self.slots.get_mut((key.0 & self.mask) as usize)?.as_mut().filter(|r| r.key == key.0).map(|r| &mut r.memory)
    }

    /// Where the range is, once everything is checked.
    #[inline]
    pub(crate) fn locate(&self, at: Range, needed: Access) -> Result<Place, AccessError> {
        let slot = (at.key.0 & self.mask) as usize;
        let region = match self.slots.get(slot) {
            Some(Some(region)) if region.key == at.key.0 => region,
            _ => return Err(AccessError::UnknownKey),
        };
        if region.domain != at.domain {
            return Err(AccessError::WrongDomain);
        }
        if !region.access.allows(needed) {
            return Err(AccessError::Forbidden);
        }
        let offset = at.address.checked_sub(region.start).ok_or(AccessError::OutOfRange)?;
        if offset > region.length || at.length > region.length - offset {
            return Err(AccessError::OutOfRange);
        }
        Ok(Place { slot, offset: offset as usize, length: at.length as usize })
    }

    pub(crate) fn check(&self, at: Range, needed: Access) -> Result<(), AccessError> {
        self.locate(at, needed).map(|_| ())
    }

    /// Copies what is at a place just located; the CRC after it, continued from `crc`.
    #[inline]
    pub(crate) fn read(&self, place: Place, into: &mut [u8], crc: u32) -> u32 {
        self.slots[place.slot].as_ref().map_or(crc, |region| region.memory.read_with_crc(place.offset, into, crc))
    }

    pub(crate) fn write(&mut self, at: Range, needed: Access, from: &[u8]) -> Result<(), AccessError> {
        let place = self.locate(Range { length: from.len() as u64, ..at }, needed)?;
        if let Some(region) = &mut self.slots[place.slot] {
            region.memory.write(place.offset, from);
        }
        Ok(())
    }

    /// The region that an atomic operation works on, and the offset of its eight bytes.
    pub(crate) fn atomic(&mut self, at: Range) -> Result<(&mut M, usize), AccessError> {
        let place = self.locate(Range { length: 8, ..at }, Access::REMOTE_ATOMIC)?;
        match &mut self.slots[place.slot] {
            Some(region) => Ok((&mut region.memory, place.offset)),
            None => Err(AccessError::UnknownKey),
        }
    }
}

/// What an access asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    pub(crate) domain: ProtectionDomain,
    pub(crate) key: MemoryKey,
    pub(crate) address: u64,
    pub(crate) length: u64,
}

/// A range that was found right: inside the region of `slot`. Good until a region is registered or deregistered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) slot: usize,
    pub(crate) offset: usize,
    pub(crate) length: usize,
}

impl Place {
    pub(crate) const NOWHERE: Place = Place { slot: 0, offset: 0, length: 0 };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_access_is_checked_for_key_domain_range_and_right() {
        let mut regions = Regions::new(4, Random::new(7));
        let (mine, other) = (ProtectionDomain(1), ProtectionDomain(2));
        let key = regions.register(mine, vec![0u8; 64], 1000, Access::REMOTE_READ).unwrap();
        let at = |domain, key, address, length| Range { domain, key, address, length };
        assert_eq!(regions.check(at(mine, key, 1000, 64), Access::REMOTE_READ), Ok(()));
        assert_eq!(regions.check(at(mine, key, 1064, 0), Access::NONE), Ok(()));
        for (address, length) in [(999, 1), (1000, 65), (1064, 1), (u64::MAX, 2), (1032, u64::MAX)] {
            assert_eq!(regions.check(at(mine, key, address, length), Access::NONE), Err(AccessError::OutOfRange));
        }
        assert_eq!(regions.check(at(other, key, 1000, 1), Access::NONE), Err(AccessError::WrongDomain));
        assert_eq!(regions.check(at(mine, key, 1000, 1), Access::REMOTE_WRITE), Err(AccessError::Forbidden));
        let wrong = MemoryKey(key.0 ^ 0x8000_0000);
        assert_eq!(regions.check(at(mine, wrong, 1000, 1), Access::NONE), Err(AccessError::UnknownKey));
        assert_eq!(regions.deregister(wrong), None);
        assert_eq!(regions.deregister(key).map(|m| m.len()), Some(64));
        assert_eq!(regions.check(at(mine, key, 1000, 1), Access::NONE), Err(AccessError::UnknownKey));
        for _ in 0..4 {
            regions.register(mine, vec![], 0, Access::NONE).unwrap();
        }
        assert_eq!(regions.register(mine, vec![], 0, Access::NONE).unwrap_err().0, RegisterError::TooMany(4));
        let refused = regions.register(mine, vec![], 0, Access::REMOTE_ATOMIC).unwrap_err().0;
        assert_eq!(refused, RegisterError::NeedsLocalWrite);
        assert_eq!(regions.register(mine, vec![1, 2], u64::MAX, Access::NONE).unwrap_err().0, RegisterError::Address);
    }
}
