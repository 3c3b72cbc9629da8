//! Predicates over stored integers: is a value in one of some ranges.
//!
//! Owns [`IntTest`], a range or a set translated into the stored domain of one chunk, and how it is asked of a block's
//! values. Called by `integers` (and, through it, for dictionary codes).
//!
//! Cost: a range is compared while unpacking (`kernels`). Members of a set that are no ranges: values of up to 8 bits by two
//! shuffles for 32 or 64 of them; in a bitmap of up to 2^20 values one load a row, without a branch; behind a sieve one load,
//! and a binary search for what it lets through.

use super::byte_set::ByteSet;
use crate::kernels::dispatch;
use crate::predicate::BlockMatch;

/// A set of more ranges than this is looked up instead of compared range by range.
pub(super) const RANGES_MAX: usize = 8;
/// The widest span for which a set is kept as a bitmap.
const BITMAP_SPAN_MAX: u64 = 1 << 20;
/// The most members of a sieve: one value in eight that is none passes it.
const SIEVE_MEMBERS_MAX: usize = 8192;
const SIEVE_BITS: u32 = 16;

/// How to ask for members of many ranges.
#[derive(Debug)]
enum Lookup {
    /// Bit `v - low`, up to `span`; the bit behind it is zero.
    Bitmap { low: i64, span: u64, bits: Vec<u64> },
    /// The bits of all members' hashes: a value whose bit is not set is none.
    Sieve(Box<[u64; 1 << (SIEVE_BITS - 6)]>),
}

/// A predicate over stored integers: in one of the ranges (or not).
#[derive(Debug)]
pub(crate) struct IntTest {
    /// Disjoint, ascending, inclusive.
    ranges: Vec<(i64, i64)>,
    lookup: Option<Lookup>,
    negated: bool,
}

/// The bit of a sieve for a value: the high bits of a multiplication by 2^64 over the golden ratio.
#[inline(always)]
fn sieve_bit(value: i64) -> u64 {
    (value as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SIEVE_BITS)
}

impl IntTest {
    /// From at most one range.
    pub(crate) fn range(range: Option<(i64, i64)>, negated: bool) -> Self {
        IntTest { ranges: range.into_iter().collect(), lookup: None, negated }
    }

    /// From members in any order; neighbours become ranges.
    pub(crate) fn set(mut values: Vec<i64>, negated: bool) -> Self {
        values.sort_unstable();
        values.dedup();
        let mut ranges: Vec<(i64, i64)> = Vec::new();
        for value in &values {
            match ranges.last_mut() {
                Some((_, high)) if high.checked_add(1) == Some(*value) => *high = *value,
                _ => ranges.push((*value, *value)),
            }
        }
        let mut lookup = None;
        if ranges.len() > RANGES_MAX
            && let (Some(low), Some(high)) = (values.first(), values.last())
        {
            let span = high.wrapping_sub(*low) as u64;
            if span <= BITMAP_SPAN_MAX {
                let mut bits = vec![0u64; ((span + 1) / 64 + 1) as usize];
                for value in &values {
                    let position = value.wrapping_sub(*low) as usize;
                    bits[position / 64] |= 1 << (position % 64);
                }
                lookup = Some(Lookup::Bitmap { low: *low, span, bits });
            } else if values.len() <= SIEVE_MEMBERS_MAX {
                let mut bits = Box::new([0; 1 << (SIEVE_BITS - 6)]);
                for bit in values.iter().map(|value| sieve_bit(*value)) {
                    bits[(bit / 64) as usize] |= 1 << (bit % 64);
                }
                lookup = Some(Lookup::Sieve(bits));
            }
        }
        IntTest { ranges, lookup, negated }
    }

    /// Whether matches are turned around.
    pub(super) fn is_negated(&self) -> bool {
        self.negated
    }

    /// Whether a stored value matches, before negation.
    #[inline]
    pub(super) fn contains(&self, value: i64) -> bool {
        if let Some(Lookup::Bitmap { low, span, bits }) = &self.lookup {
            let position = (value.wrapping_sub(*low) as u64).min(span + 1);
            return bits[(position / 64) as usize] >> (position % 64) & 1 == 1;
        }
        let after = self.ranges.partition_point(|(low, _)| *low <= value);
        after > 0 && value <= self.ranges[after - 1].1
    }

    /// Which values match, before negation.
    pub(super) fn members(&self, values: &[i64; 1024]) -> [u64; 16] {
        let mut mask = [0; 16];
        match &self.lookup {
            Some(Lookup::Bitmap { low, span, bits }) => look_up(values, *low, *span, bits, &mut mask),
            lookup => {
                mask = [u64::MAX; 16];
                if let Some(Lookup::Sieve(bits)) = lookup {
                    sieve(values, bits, &mut mask);
                }
                for (mask, values) in mask.iter_mut().zip(values.chunks_exact(64)) {
                    let mut candidates = *mask;
                    while candidates != 0 {
                        let bit = candidates.trailing_zeros();
                        candidates &= candidates - 1;
                        *mask &= !(u64::from(!self.contains(values[bit as usize])) << bit);
                    }
                }
            }
        }
        mask
    }

    /// The distances from `min`, of those up to 255, that lie in `ranges`.
    pub(super) fn bytes_from(min: i64, ranges: &[(i64, i64)]) -> ByteSet {
        let mut set = ByteSet::default();
        for (low, high) in ranges {
            let (low, high) = (low.saturating_sub(min).max(0), high.saturating_sub(min).min(255));
            (low..=high).for_each(|byte| set.insert(byte as u8));
        }
        set
    }

    /// The ranges that touch `min..=max`.
    pub(super) fn touching(&self, min: i64, max: i64) -> &[(i64, i64)] {
        let from = self.ranges.partition_point(|(_, high)| *high < min);
        let to = self.ranges.partition_point(|(low, _)| *low <= max);
        &self.ranges[from..to.max(from)]
    }

    /// What bounds alone say.
    pub(super) fn prune(&self, min: i64, max: i64) -> BlockMatch {
        let matched = match self.touching(min, max) {
            [] => BlockMatch::None,
            [(low, high)] if *low <= min && max <= *high => BlockMatch::All,
            _ => BlockMatch::Some,
        };
        match (matched, self.negated) {
            (BlockMatch::None, true) => BlockMatch::All,
            (BlockMatch::All, true) => BlockMatch::None,
            (matched, _) => matched,
        }
    }
}

#[inline(always)]
fn look_up_body(values: &[i64; 1024], low: i64, span: u64, bits: &[u64], mask: &mut [u64; 16]) {
    for (mask, values) in mask.iter_mut().zip(values.chunks_exact(64)) {
        let mut word = 0;
        for (bit, value) in values.iter().enumerate() {
            let position = (value.wrapping_sub(low) as u64).min(span + 1);
            word |= (bits[(position / 64) as usize] >> (position % 64) & 1) << bit;
        }
        *mask = word;
    }
}

#[inline(always)]
fn sieve_body(values: &[i64; 1024], bits: &[u64; 1 << (SIEVE_BITS - 6)], mask: &mut [u64; 16]) {
    for (mask, values) in mask.iter_mut().zip(values.chunks_exact(64)) {
        let mut word = 0;
        for (bit, value) in values.iter().enumerate() {
            let position = sieve_bit(*value);
            word |= (bits[(position / 64) as usize] >> (position % 64) & 1) << bit;
        }
        *mask = word;
    }
}

dispatch! {
    /// Which values have their bit set in a bitmap of `low..=low + span`.
    fn look_up(values: &[i64; 1024], low: i64, span: u64, bits: &[u64], mask: &mut [u64; 16]) = look_up_body;
}

dispatch! {
    /// Which values a sieve lets through.
    fn sieve(values: &[i64; 1024], bits: &[u64; 1 << (SIEVE_BITS - 6)], mask: &mut [u64; 16]) = sieve_body;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::simd::at_every_level;

    proptest! {
        /// Against looking at every range, whatever the members' number and spread.
        #[test]
        fn members_are_those_of_the_ranges(
            members in prop::collection::vec(any::<i64>(), 0..300),
            spread in prop::sample::select(vec![40i64, 5_000, 1 << 19, 1 << 21, i64::MAX]),
            origin in prop::sample::select(vec![0, -17, i64::MIN / 2, i64::MAX / 3]),
            values in prop::collection::vec(any::<i64>(), 1024),
            picks in prop::collection::vec(any::<prop::sample::Index>(), 200),
        ) {
            let near = |value: i64| origin.wrapping_add(value % spread);
            let members: Vec<i64> = members.into_iter().map(near).collect();
            let mut values: Vec<i64> = values.into_iter().map(near).collect();
            if !members.is_empty() {
                picks.iter().enumerate().for_each(|(k, pick)| values[k * 5] = members[pick.index(members.len())]);
            }
            let test = IntTest::set(members.clone(), false);
            let block: &[i64; 1024] = values.as_slice().try_into().unwrap();
            at_every_level(|level| {
                let mask = test.members(block);
                for (row, value) in values.iter().enumerate() {
                    let expected = members.contains(value);
                    assert_eq!(test.contains(*value), expected, "{value}");
                    assert_eq!(mask[row / 64] >> (row % 64) & 1 == 1, expected, "{level:?}, {value}");
                }
            });
            let min = values[0];
            let max = min.saturating_add(255);
            let bytes = IntTest::bytes_from(min, test.touching(min, max));
            for distance in 0..=(max - min) as u8 {
                prop_assert_eq!(bytes.contains(distance), members.contains(&(min + i64::from(distance))));
            }
        }
    }
}
