//! A random permutation of 0..n that needs no memory: a balanced Feistel network with four rounds over the next even
//! number of bits, walked along its cycle until it falls below n (Black and Rogaway, "Ciphers with arbitrary finite
//! domains", 2002). At most four steps on average, each about 4 ns.
//!
//! Invariant: `at` is a bijection of 0..n for every key.

use super::rng::mix;

#[derive(Clone, Debug)]
pub(crate) struct Permutation {
    n: u64,
    half_bits: u32,
    mask: u64,
    keys: [u64; 4],
}

impl Permutation {
    pub(crate) fn new(n: u64, key: u64) -> Permutation {
        let bits = (64 - n.saturating_sub(1).leading_zeros()).max(2);
        let half_bits = bits.div_ceil(2);
        let keys = [1u64, 2, 3, 4].map(|round| mix(key ^ mix(round)) | 1);
        Permutation { n, half_bits, mask: (1 << half_bits) - 1, keys }
    }

    /// Where `index` goes; `index` is below n.
    #[inline]
    pub(crate) fn at(&self, index: u64) -> u64 {
        debug_assert!(index < self.n);
        let mut value = index;
        loop {
            value = self.round_trip(value);
            if value < self.n {
                return value;
            }
        }
    }

    #[inline]
    fn round_trip(&self, value: u64) -> u64 {
        let (mut left, mut right) = (value >> self.half_bits, value & self.mask);
        for key in self.keys {
            let hash = (right.wrapping_add(key)).wrapping_mul(key) ^ (right << 7);
            let hash = (hash ^ (hash >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (left, right) = (right, left ^ ((hash >> 32) & self.mask));
        }
        (left << self.half_bits) | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn every_index_is_hit_once(n in 1u64..5000, key: u64) {
            let permutation = Permutation::new(n, key);
            let mut hit = vec![false; n as usize];
            for index in 0..n {
                let at = permutation.at(index) as usize;
                proptest::prop_assert!(!hit[at]);
                hit[at] = true;
            }
        }
    }

    #[test]
    fn neighbours_do_not_stay_neighbours() {
        let n = 100_000;
        let permutation = Permutation::new(n, 7);
        let near = (1..n).filter(|i| permutation.at(*i).abs_diff(permutation.at(i - 1)) < n / 100).count();
        // Two uniform points are nearer than 1% of the range with probability 2%.
        assert!((1500..2500).contains(&near), "{near}");
        // Each tenth of the order visits each tenth of the range equally: chi-square with 81 degrees of freedom, whose
        // 99.99th percentile is 134.
        let mut counts = [[0.0f64; 10]; 10];
        for index in 0..n {
            counts[(index * 10 / n) as usize][(permutation.at(index) * 10 / n) as usize] += 1.0;
        }
        let chi: f64 = counts.iter().flatten().map(|count| (count - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi < 134.0, "{chi}");
    }
}
