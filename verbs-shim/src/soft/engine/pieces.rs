//! Scatter and gather lists as the queues hold them.

use super::memory::{AccessError, Place, ProtectionDomain, Range, RegionMemory, Regions};
use crate::verbs::{Access, MemoryKey, PostError, SGE_MAX, Sge};

/// A gather or scatter list as the queues hold it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SgeList {
    entries: [Sge; SGE_MAX],
    count: u8,
    pub(crate) length: u64,
}

impl SgeList {
    pub(crate) const EMPTY: SgeList =
        SgeList { entries: [Sge { address: 0, length: 0, key: MemoryKey(0) }; SGE_MAX], count: 0, length: 0 };

    pub(crate) fn new(pieces: &[Sge]) -> Result<Self, PostError> {
        if pieces.len() > SGE_MAX {
            return Err(PostError::TooManyPieces(pieces.len()));
        }
        let mut list = SgeList::EMPTY;
        list.entries[..pieces.len()].copy_from_slice(pieces);
        list.count = pieces.len() as u8;
        list.length = pieces.iter().map(|piece| piece.length as u64).sum();
        Ok(list)
    }

    pub(crate) fn check<M: RegionMemory>(
        &self,
        regions: &Regions<M>,
        domain: ProtectionDomain,
        needed: Access,
    ) -> Result<(), AccessError> {
        for piece in &self.entries[..self.count as usize] {
            if piece.length > 0 {
                let length = piece.length as u64;
                regions.check(Range { domain, key: piece.key, address: piece.address, length }, needed)?;
            }
        }
        Ok(())
    }

    /// Calls `each` with the piece of memory and the part of the buffer, for `bytes` from `offset` on.
    fn walk(
        &self,
        domain: ProtectionDomain,
        mut offset: u64,
        bytes: usize,
        mut each: impl FnMut(Range, std::ops::Range<usize>) -> Result<(), AccessError>,
    ) -> Result<(), AccessError> {
        let mut done = 0;
        for piece in &self.entries[..self.count as usize] {
            if done == bytes {
                break;
            }
            let length = piece.length as u64;
            if offset >= length {
                offset -= length;
                continue;
            }
            let take = ((length - offset) as usize).min(bytes - done);
            let address = piece.address.checked_add(offset).ok_or(AccessError::OutOfRange)?;
            each(Range { domain, key: piece.key, address, length: take as u64 }, done..done + take)?;
            done += take;
            offset = 0;
        }
        if done == bytes { Ok(()) } else { Err(AccessError::OutOfRange) }
    }

    /// Where `bytes` from `offset` on are.
    pub(crate) fn locate<M: RegionMemory>(
        &self,
        regions: &Regions<M>,
        domain: ProtectionDomain,
        offset: u64,
        bytes: usize,
    ) -> Result<Places, AccessError> {
        let mut places = Places::NONE;
        self.walk(domain, offset, bytes, |at, _| {
            places.push(regions.locate(at, Access::NONE)?);
            Ok(())
        })?;
        Ok(places)
    }

    pub(crate) fn scatter<M: RegionMemory>(
        &self,
        regions: &mut Regions<M>,
        domain: ProtectionDomain,
        offset: u64,
        from: &[u8],
    ) -> Result<(), AccessError> {
        self.walk(domain, offset, from.len(), |at, part| regions.write(at, Access::LOCAL_WRITE, &from[part]))
    }
}

/// The places of one packet's payload, in order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    entries: [Place; SGE_MAX],
    count: u8,
}

impl Places {
    pub(crate) const NONE: Places = Places { entries: [Place::NOWHERE; SGE_MAX], count: 0 };

    pub(crate) fn one(place: Place) -> Self {
        let mut places = Places::NONE;
        places.push(place);
        places
    }

    fn push(&mut self, place: Place) {
        self.entries[self.count as usize] = place;
        self.count += 1;
    }

    pub(crate) fn as_slice(&self) -> &[Place] {
        &self.entries[..self.count as usize]
    }

    pub(crate) fn length_bytes(&self) -> usize {
        self.as_slice().iter().map(|place| place.length).sum()
    }
}
