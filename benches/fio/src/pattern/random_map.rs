//! Each block once when block sizes vary: a bit per smallest block, visited in the order of a permutation.
//!
//! Invariant: within one round no unit is given out twice, and a round ends only when every unit was given out.

use super::permutation::Permutation;

#[derive(Clone, Debug)]
pub(crate) struct RandomMap {
    order: Permutation,
    units: u64,
    next: u64,
    hit: Vec<u64>,
}

impl RandomMap {
    pub(crate) fn new(units: u64, key: u64) -> RandomMap {
        RandomMap { order: Permutation::new(units, key), units, next: 0, hit: vec![0; units.div_ceil(64) as usize] }
    }

    /// First unit and number of units, at most `wanted`, of an extent that was not given out yet; nothing when the round
    /// is over.
    pub(crate) fn take(&mut self, wanted: u64) -> Option<(u64, u64)> {
        let first = loop {
            if self.next == self.units {
                return None;
            }
            let unit = self.order.at(self.next);
            self.next += 1;
            if !self.is_hit(unit) {
                break unit;
            }
        };
        let mut count = 0;
        while count < wanted && first + count < self.units && !self.is_hit(first + count) {
            let unit = first + count;
            self.hit[(unit / 64) as usize] |= 1 << (unit % 64);
            count += 1;
        }
        Some((first, count))
    }

    fn is_hit(&self, unit: u64) -> bool {
        self.hit[(unit / 64) as usize] >> (unit % 64) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn a_round_covers_every_unit_exactly_once(units in 1u64..2000, key: u64, wanted in 1u64..9) {
            let mut map = RandomMap::new(units, key);
            let mut hits = vec![0; units as usize];
            while let Some((first, count)) = map.take(wanted) {
                proptest::prop_assert!((1..=wanted).contains(&count));
                for unit in first..first + count {
                    hits[unit as usize] += 1;
                }
            }
            proptest::prop_assert!(hits.iter().all(|hit| *hit == 1));
        }
    }
}
