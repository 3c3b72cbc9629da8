//! Which row groups of other cores a core is asked for again and again.
//!
//! Owns [`HotGroups`], one per core; a pure structure. Called by [`super::work`]: a short question about a row group that
//! is hot here is answered here, from this core's own cache, and not by the core that has its shard. That saves two
//! wake-ups, and a row group that everybody asks for is no longer one core's work.
//!
//! Invariants:
//! - What is hot has been asked for here at least twice.
//! - Row groups that are hot have at most `bytes_max` bytes together, by the largest question of each: the rest of the cache
//!   is for the core's own shards.
//! - Memory is [`SLOTS`] entries.
//!
//! A slot is kept by a majority vote (Boyer and Moore, 1981): whoever is asked for wins a point, others that fall on the slot take
//! one away, and at none the slot changes hands.
//!
//! Cost: one multiplication and one slot of 40 bytes per question; two wake-ups are 150 to 300 us of latency on two busy
//! processors, and some 80 us of their time.

/// Row groups that are watched.
const SLOTS: usize = 256;
/// Points from which on a row group is hot, and the most it can have.
const HOT: u8 = 2;
const POINTS_MAX: u8 = 16;

/// A row group: its segment's id and its place there.
pub type GroupKey = (u64, usize);

#[derive(Clone, Copy, Default)]
struct Slot {
    key: GroupKey,
    points: u8,
    /// Bytes counted for it while it is hot.
    bytes: u64,
}

/// What a core remembers of the questions about other cores' row groups.
pub struct HotGroups {
    slots: Box<[Slot]>,
    bytes: u64,
    bytes_max: u64,
}

impl HotGroups {
    /// Nothing is hot yet; what becomes hot has at most `bytes_max` bytes.
    pub fn new(bytes_max: u64) -> Self {
        HotGroups { slots: vec![Slot::default(); SLOTS].into(), bytes: 0, bytes_max }
    }

    /// Counts a question that reads `bytes` of a row group, and says whether this core should answer it.
    pub fn ask(&mut self, key: GroupKey, bytes: u64) -> bool {
        let hash = (key.0 ^ (key.1 as u64).rotate_left(48)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let slot = &mut self.slots[(hash >> 32) as usize % SLOTS];
        if slot.points > 0 && slot.key != key {
            slot.points -= 1;
            if slot.points > 0 {
                return false;
            }
        }
        if slot.points == 0 {
            self.bytes -= slot.bytes;
            *slot = Slot { key, points: 0, bytes: 0 };
        }
        slot.points = (slot.points + 1).min(POINTS_MAX);
        if slot.points < HOT {
            return false;
        }
        let more = bytes.saturating_sub(slot.bytes);
        if self.bytes + more > self.bytes_max {
            return false;
        }
        slot.bytes += more;
        self.bytes += more;
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_is_asked_for_again_is_hot() {
        let mut hot = HotGroups::new(8 * MIB);
        assert!(!hot.ask((1, 0), MIB));
        assert!(hot.ask((1, 0), MIB));
        assert!(!hot.ask((1, 1), MIB), "another row group of the segment");
        assert!(hot.ask((1, 0), 2 * MIB), "another question about the same row group");
    }

    #[test]
    fn what_does_not_fit_is_not_hot_until_something_else_has_gone() {
        let mut hot = HotGroups::new(3 * MIB);
        for _ in 0..4 {
            hot.ask((1, 0), 2 * MIB);
        }
        for _ in 0..4 {
            assert!(!hot.ask((2, 0), 2 * MIB));
        }
        assert!(hot.ask((2, 0), MIB), "a question that reads less fits");
        // Whatever falls on the slot of the first wears it down.
        for segment in 3..100_000 {
            hot.ask((segment, 0), MIB);
        }
        assert!((0..20).map(|_| hot.ask((2, 0), 2 * MIB)).last().unwrap());
    }

    #[test]
    fn a_scan_over_many_row_groups_takes_nothing_from_the_hot_one_for_long() {
        let mut hot = HotGroups::new(64 * MIB);
        let mut here = 0;
        for round in 0..20_000u64 {
            hot.ask((round + 10, 0), MIB);
            here += u32::from(hot.ask((1, 0), MIB));
        }
        assert!(here > 19_900, "{here}");
    }

    proptest! {
        #[test]
        fn the_hot_never_exceed_their_bytes(
            asked in proptest::collection::vec((0u64..600, 0usize..3, 0u64..5 * MIB), 0..2000),
            bytes_max in 0..20 * MIB,
        ) {
            let mut hot = HotGroups::new(bytes_max);
            let mut before = std::collections::HashMap::<GroupKey, u32>::new();
            for (segment, row_group, bytes) in asked {
                let times = before.entry((segment, row_group)).or_default();
                let is_hot = hot.ask((segment, row_group), bytes);
                prop_assert!(!is_hot || *times > 0, "hot at its first question");
                *times += 1;
                prop_assert!(hot.bytes <= bytes_max);
                prop_assert_eq!(hot.bytes, hot.slots.iter().map(|slot| slot.bytes).sum::<u64>());
            }
        }
    }
}
