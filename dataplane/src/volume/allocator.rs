//! Which extents of a volume are free: first fit with coalescing, in 4 KiB units. Pure.
//!
//! Invariants
//! - Free runs are disjoint, sorted and never adjacent (they are coalesced).
//! - Every unit is either free or in use; marking a used unit used, or freeing a free one, is an error and
//!   changes nothing.
//! - The last `reserve` units are only for small metadata objects (commit objects, tombstones), so that a full
//!   volume can still commit and drop.
//!
//! Derived from the manifest when a store opens; never stored. Called by the store.

use std::collections::BTreeMap;

/// A run of 4 KiB units of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Extent {
    /// First unit.
    pub start: u64,
    /// How many units; never 0.
    pub units: u64,
}

impl Extent {
    /// The extent that holds `length` bytes from byte `offset`, which must be aligned to a unit.
    pub fn from_bytes(offset: u64, length: u64) -> Self {
        Extent { start: offset / super::EXTENT_UNIT_BYTES, units: length.div_ceil(super::EXTENT_UNIT_BYTES).max(1) }
    }

    /// Byte offset on the volume.
    pub fn offset(&self) -> u64 {
        self.start * super::EXTENT_UNIT_BYTES
    }

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        self.units * super::EXTENT_UNIT_BYTES
    }

    /// One past the last unit.
    pub fn end(&self) -> u64 {
        self.start + self.units
    }

    /// Keeps what `length` bytes take (a unit at least) and gives what is left, if anything is.
    pub fn split_off(&mut self, length: u64) -> Option<Extent> {
        let kept = length.div_ceil(super::EXTENT_UNIT_BYTES).clamp(1, self.units);
        let rest = Extent { start: self.start + kept, units: self.units - kept };
        self.units = kept;
        (rest.units > 0).then_some(rest)
    }
}

/// What was wrong with a request to the allocator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocatorError {
    /// No free run is long enough.
    #[error("no run of {units} free units: {free} units are free, the longest run has {longest}")]
    Full {
        /// Units asked for.
        units: u64,
        /// Free units in all.
        free: u64,
        /// Units of the longest free run.
        longest: u64,
    },
    /// An extent was marked used, but part of it is in use already or outside the volume.
    #[error("extent {start}+{units} is used twice or outside the volume", start = .0.start, units = .0.units)]
    DoubleUse(Extent),
    /// An extent was freed, but part of it is free already or outside the volume.
    #[error("extent {start}+{units} is freed twice or outside the volume", start = .0.start, units = .0.units)]
    DoubleFree(Extent),
}

/// Free runs of a volume.
#[derive(Clone, Debug)]
pub struct ExtentAllocator {
    /// First unit that may be handed out.
    first: u64,
    /// One past the last.
    end: u64,
    /// Units kept for metadata.
    reserve: u64,
    /// Free runs: start to length.
    free: BTreeMap<u64, u64>,
    free_units: u64,
}

impl ExtentAllocator {
    /// An allocator of units `first..end`, all free.
    pub fn new(first: u64, end: u64, reserve: u64) -> Self {
        let mut free = BTreeMap::new();
        if end > first {
            free.insert(first, end - first);
        }
        ExtentAllocator { first, end, reserve, free, free_units: end.saturating_sub(first) }
    }

    /// Free units, those of the reserve included.
    pub fn free_units(&self) -> u64 {
        self.free_units
    }

    /// All units that can be handed out when the volume is empty.
    pub fn total_units(&self) -> u64 {
        self.end.saturating_sub(self.first)
    }

    /// Units of the longest free run.
    pub fn longest_free_run(&self) -> u64 {
        self.free.values().copied().max().unwrap_or(0)
    }

    /// The free runs, in order.
    pub fn free_runs(&self) -> impl Iterator<Item = Extent> + '_ {
        self.free.iter().map(|(start, units)| Extent { start: *start, units: *units })
    }

    /// Takes `units` for data: the first run that holds them and leaves the reserve.
    ///
    /// # Errors
    /// [`AllocatorError::Full`].
    pub fn allocate(&mut self, units: u64) -> Result<Extent, AllocatorError> {
        if self.free_units < units.saturating_add(self.reserve) {
            return Err(self.full(units));
        }
        self.take(units)
    }

    /// Takes `units` for a metadata object, from the reserve if need be.
    ///
    /// # Errors
    /// [`AllocatorError::Full`].
    pub fn allocate_metadata(&mut self, units: u64) -> Result<Extent, AllocatorError> {
        self.take(units)
    }

    fn full(&self, units: u64) -> AllocatorError {
        AllocatorError::Full { units, free: self.free_units, longest: self.longest_free_run() }
    }

    fn take(&mut self, units: u64) -> Result<Extent, AllocatorError> {
        let units = units.max(1);
        let Some((start, length)) = self.free.iter().find(|(_, length)| **length >= units).map(|(s, l)| (*s, *l))
        else {
            return Err(self.full(units));
        };
        self.free.remove(&start);
        if length > units {
            self.free.insert(start + units, length - units);
        }
        self.free_units -= units;
        Ok(Extent { start, units })
    }

    /// Marks an extent as used (when the manifest is read).
    ///
    /// # Errors
    /// [`AllocatorError::DoubleUse`].
    pub fn mark_used(&mut self, extent: Extent) -> Result<(), AllocatorError> {
        let end = extent.start.checked_add(extent.units).ok_or(AllocatorError::DoubleUse(extent))?;
        let run = self.free.range(..=extent.start).next_back().map(|(s, l)| (*s, *l));
        let Some((start, length)) = run.filter(|(s, l)| s + l >= end && extent.units > 0) else {
            return Err(AllocatorError::DoubleUse(extent));
        };
        self.free.remove(&start);
        if start < extent.start {
            self.free.insert(start, extent.start - start);
        }
        if end < start + length {
            self.free.insert(end, start + length - end);
        }
        self.free_units -= extent.units;
        Ok(())
    }

    /// Gives an extent back.
    ///
    /// # Errors
    /// [`AllocatorError::DoubleFree`].
    pub fn free(&mut self, extent: Extent) -> Result<(), AllocatorError> {
        let refused = AllocatorError::DoubleFree(extent);
        let Some(end) = extent.start.checked_add(extent.units) else { return Err(refused) };
        if extent.units == 0 || extent.start < self.first || end > self.end {
            return Err(refused);
        }
        let before = self.free.range(..extent.start).next_back().map(|(s, l)| (*s, *l));
        let after = self.free.range(extent.start..).next().map(|(s, l)| (*s, *l));
        if before.is_some_and(|(s, l)| s + l > extent.start) || after.is_some_and(|(s, _)| s < end) {
            return Err(refused);
        }
        let (mut start, mut units) = (extent.start, extent.units);
        if let Some((s, l)) = before.filter(|(s, l)| s + l == start) {
            self.free.remove(&s);
            start = s;
            units += l;
        }
        if let Some((s, l)) = after.filter(|(s, _)| *s == end) {
            self.free.remove(&s);
            units += l;
        }
        self.free.insert(start, units);
        self.free_units += extent.units;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A bitmap with one bool per unit: the naive reference.
    struct Bitmap(Vec<bool>);

    impl Bitmap {
        fn all(&self, extent: Extent, used: bool) -> bool {
            let end = extent.end() as usize;
            end <= self.0.len() && self.0[extent.start as usize..end].iter().all(|unit| *unit == used)
        }
        fn set(&mut self, extent: Extent, used: bool) {
            self.0[extent.start as usize..extent.end() as usize].fill(used);
        }
        fn runs(&self) -> Vec<Extent> {
            let mut runs: Vec<Extent> = Vec::new();
            for (unit, used) in self.0.iter().enumerate() {
                match runs.last_mut() {
                    _ if *used => {}
                    Some(run) if run.end() == unit as u64 => run.units += 1,
                    _ => runs.push(Extent { start: unit as u64, units: 1 }),
                }
            }
            runs
        }
    }

    proptest! {
        #[test]
        fn allocator_agrees_with_a_bitmap(operations in proptest::collection::vec((0u8..4, 0u64..70, 1u64..20), 1..200)) {
            let (first, end, reserve) = (1, 64, 4);
            let mut allocator = ExtentAllocator::new(first, end, reserve);
            let mut bitmap = Bitmap(vec![false; end as usize]);
            bitmap.0[0] = true;
            let mut held: Vec<Extent> = Vec::new();
            for (kind, start, units) in operations {
                match kind {
                    0 | 1 => {
                        let free = bitmap.0.iter().filter(|used| !**used).count() as u64;
                        let fits = bitmap.runs().iter().any(|run| run.units >= units)
                            && (kind == 1 || free >= units + reserve);
                        let taken = if kind == 0 { allocator.allocate(units) } else { allocator.allocate_metadata(units) };
                        prop_assert_eq!(taken.is_ok(), fits);
                        if let Ok(extent) = taken {
                            prop_assert!(extent.units == units && bitmap.all(extent, false));
                            bitmap.set(extent, true);
                            held.push(extent);
                        }
                    }
                    2 => {
                        let extent = if start % 2 == 0 && !held.is_empty() {
                            held.swap_remove(start as usize % held.len())
                        } else {
                            Extent { start, units }
                        };
                        let valid = extent.start >= first && bitmap.all(extent, true);
                        prop_assert_eq!(allocator.free(extent).is_ok(), valid);
                        if valid {
                            bitmap.set(extent, false);
                            held.retain(|other| other.end() <= extent.start || extent.end() <= other.start);
                        }
                    }
                    _ => {
                        let extent = Extent { start, units };
                        let valid = bitmap.all(extent, false);
                        prop_assert_eq!(allocator.mark_used(extent).is_ok(), valid);
                        if valid {
                            bitmap.set(extent, true);
                            held.push(extent);
                        }
                    }
                }
                prop_assert_eq!(allocator.free_runs().collect::<Vec<_>>(), bitmap.runs());
                prop_assert_eq!(allocator.free_units(), bitmap.runs().iter().map(|run| run.units).sum::<u64>());
            }
        }
    }

    #[test]
    fn a_freed_extent_is_not_freed_again() {
        let mut allocator = ExtentAllocator::new(1, 100, 0);
        let extent = allocator.allocate(10).unwrap();
        allocator.free(extent).unwrap();
        assert_eq!(allocator.free(extent), Err(AllocatorError::DoubleFree(extent)));
        assert_eq!(allocator.free_runs().count(), 1);
    }

    #[test]
    fn the_reserve_serves_metadata_only() {
        let mut allocator = ExtentAllocator::new(1, 11, 4);
        assert!(allocator.allocate(7).is_err());
        allocator.allocate(6).unwrap();
        assert!(matches!(allocator.allocate(1), Err(AllocatorError::Full { free: 4, .. })));
        allocator.allocate_metadata(4).unwrap();
    }
}
