//! Where random offsets fall when they are not uniform: block indices below n by zipf, pareto, normal and zones.
//!
//! Zipf is drawn in constant time as in Gray et al., "Quickly generating billion-record synthetic databases" (SIGMOD
//! 1994): exact for the two hottest ranks, close for the others. Ranks are scattered over the range by a permutation,
//! unless a centre is given. Pareto and normal follow fio's definitions of their parameters.

use super::permutation::Permutation;
use super::rng::Rng;
use crate::job::Distribution;

/// Terms of zeta that are added one by one; the rest is an integral.
const ZETA_TERMS: u64 = 1 << 20;

#[derive(Clone, Debug)]
pub(crate) enum Drawn {
    Uniform(u64),
    Zipf { zipf: Zipf, place: Placement },
    Pareto { n: u64, power: f64, place: Placement },
    Normal { n: u64, mean: f64, deviation: f64 },
    Zones(Vec<Zone>),
}

#[derive(Clone, Debug)]
pub(crate) struct Zone {
    /// Accesses up to and including this zone, of 100.
    until: u64,
    start: u64,
    blocks: u64,
}

/// From a rank (0 is the hottest) to a block.
#[derive(Clone, Debug)]
pub(crate) enum Placement {
    Scattered(Permutation),
    From { n: u64, first: u64 },
}

impl Placement {
    fn new(n: u64, centre: Option<f64>, key: u64) -> Placement {
        match centre {
            None => Placement::Scattered(Permutation::new(n, key)),
            Some(centre) => Placement::From { n, first: (centre * (n - 1) as f64) as u64 },
        }
    }

    #[inline]
    fn of(&self, rank: u64) -> u64 {
        match self {
            Placement::Scattered(permutation) => permutation.at(rank),
            Placement::From { n, first } => (rank + first) % n,
        }
    }
}

impl Drawn {
    /// Over `n` blocks of `block_bytes`; `n` is at least 1.
    pub(crate) fn new(distribution: &Distribution, n: u64, block_bytes: u64, key: u64) -> Drawn {
        match distribution {
            Distribution::Random => Drawn::Uniform(n),
            Distribution::Zipf(theta, centre) => {
                Drawn::Zipf { zipf: Zipf::new(n, *theta), place: Placement::new(n, *centre, key) }
            }
            Distribution::Pareto(h, centre) => {
                Drawn::Pareto { n, power: h.ln() / (1.0 - h).ln(), place: Placement::new(n, *centre, key) }
            }
            Distribution::Normal(percent, centre) => {
                let deviation = (n as f64 * percent / 100.0).min(n as f64 / 2.0).max(1.0);
                Drawn::Normal { n, mean: n as f64 * centre, deviation }
            }
            Distribution::Zoned(zones) => Drawn::Zones(lay_zones(
                n,
                zones.iter().map(|(share, range)| (*share, n as f64 * f64::from(*range) / 100.0)),
            )),
            Distribution::ZonedAbsolute(zones) => Drawn::Zones(lay_zones(
                n,
                zones.iter().map(|(share, bytes)| (*share, *bytes as f64 / block_bytes as f64)),
            )),
        }
    }

    /// The next block, below n.
    #[inline]
    pub(crate) fn next(&self, rng: &mut Rng) -> u64 {
        match self {
            Drawn::Uniform(n) => rng.below(*n),
            Drawn::Zipf { zipf, place } => place.of(zipf.rank(rng)),
            Drawn::Pareto { n, power, place } => {
                let rank = (*n as f64 * rng.unit().powf(*power)) as u64;
                place.of(rank.min(n - 1))
            }
            Drawn::Normal { n, mean, deviation } => {
                for _ in 0..64 {
                    // Box and Muller.
                    let radius = (-2.0 * (1.0 - rng.unit()).ln()).sqrt();
                    let value = mean + deviation * radius * (std::f64::consts::TAU * rng.unit()).cos();
                    if value >= 0.0 && value < *n as f64 {
                        return value as u64;
                    }
                }
                (*mean as u64).min(n - 1)
            }
            Drawn::Zones(zones) => {
                let share = rng.below(100);
                let zone = zones.iter().find(|zone| share < zone.until).unwrap_or(&zones[zones.len() - 1]);
                zone.start + rng.below(zone.blocks)
            }
        }
    }
}

/// Zones one behind the other, each at least one block, none beyond the end.
fn lay_zones(n: u64, zones: impl Iterator<Item = (u32, f64)>) -> Vec<Zone> {
    let (mut start, mut share) = (0.0, 0);
    let mut laid = Vec::new();
    for (accesses, blocks) in zones {
        share += u64::from(accesses);
        let first = (start as u64).min(n - 1);
        start += blocks;
        laid.push(Zone {
            until: share,
            start: first,
            blocks: ((start.round() as u64).min(n)).saturating_sub(first).max(1),
        });
    }
    laid
}

/// Gray et al.'s constants for n items.
#[derive(Clone, Debug)]
pub(crate) struct Zipf {
    n: u64,
    alpha: f64,
    zeta_n: f64,
    eta: f64,
    second: f64,
}

impl Zipf {
    fn new(n: u64, theta: f64) -> Zipf {
        let (zeta_n, zeta_2) = (zeta(n, theta), zeta(2.min(n), theta));
        let eta = (1.0 - (2.0 / n as f64).powf(1.0 - theta)) / (1.0 - zeta_2 / zeta_n);
        Zipf { n, alpha: 1.0 / (1.0 - theta), zeta_n, eta, second: 1.0 + 0.5f64.powf(theta) }
    }

    #[inline]
    fn rank(&self, rng: &mut Rng) -> u64 {
        let unit = rng.unit();
        let mass = unit * self.zeta_n;
        if mass < 1.0 || self.n == 1 {
            return 0;
        }
        if mass < self.second || self.n == 2 {
            return 1;
        }
        let rank = self.n as f64 * (self.eta * unit - self.eta + 1.0).powf(self.alpha);
        (rank as u64).min(self.n - 1)
    }
}

/// Sum of i^-theta for i from 1 to n; beyond a million terms by Euler and Maclaurin.
fn zeta(n: u64, theta: f64) -> f64 {
    let head = n.min(ZETA_TERMS);
    let sum: f64 = (1..=head).map(|i| (i as f64).powf(-theta)).sum();
    if head == n {
        return sum;
    }
    let (a, b) = (head as f64, n as f64);
    let integral = (b.powf(1.0 - theta) - a.powf(1.0 - theta)) / (1.0 - theta);
    sum + integral + (b.powf(-theta) - a.powf(-theta)) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: u64 = 200_000;

    fn counts(distribution: Distribution, n: u64) -> Vec<f64> {
        let drawn = Drawn::new(&distribution, n, 4096, 3);
        let mut rng = Rng::new(11);
        let mut counts = vec![0.0; n as usize];
        for _ in 0..DRAWS {
            counts[drawn.next(&mut rng) as usize] += 1.0;
        }
        counts
    }

    #[test]
    fn uniform_draws_pass_chi_square() {
        let counts = counts(Distribution::Random, 100);
        let expected = DRAWS as f64 / 100.0;
        let chi: f64 = counts.iter().map(|count| (count - expected).powi(2) / expected).sum();
        // 99 degrees of freedom: the 99.99th percentile is 158.
        assert!(chi < 158.0, "{chi}");
    }

    #[test]
    fn zipf_has_the_mass_of_the_harmonic_numbers() {
        for theta in [0.8, 1.2] {
            let n = 1000;
            let mut counts = counts(Distribution::Zipf(theta, None), n);
            counts.sort_by(|a, b| b.total_cmp(a));
            let whole: f64 = (1..=n).map(|i| (i as f64).powf(-theta)).sum();
            let mass =
                |ranks: std::ops::RangeInclusive<u64>| ranks.map(|i| (i as f64).powf(-theta)).sum::<f64>() / whole;
            for (ranks, tolerance) in [(1..=1, 0.03), (1..=2, 0.03), (1..=10, 0.12), (1..=100, 0.08)] {
                let got = counts[..*ranks.end() as usize].iter().sum::<f64>() / DRAWS as f64;
                let expected = mass(ranks.clone());
                assert!((got / expected - 1.0).abs() < tolerance, "theta {theta}, {ranks:?}: {got} for {expected}");
            }
        }
    }

    #[test]
    fn zipf_ranks_are_scattered_unless_a_centre_is_given() {
        let scattered = counts(Distribution::Zipf(1.2, None), 1000);
        let hot = |counts: &[f64]| (0..1000).max_by(|a, b| counts[*a].total_cmp(&counts[*b])).unwrap();
        assert!(hot(&scattered) > 10);
        assert_eq!(hot(&counts(Distribution::Zipf(1.2, Some(0.5)), 1000)), 499);
    }

    #[test]
    fn the_zeta_of_many_items_is_that_of_the_sum() {
        let n = ZETA_TERMS * 4;
        for theta in [0.5, 0.99, 1.2] {
            let sum: f64 = (1..=n).map(|i| (i as f64).powf(-theta)).sum();
            assert!((zeta(n, theta) / sum - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn pareto_gives_h_of_the_range_the_rest_of_the_accesses() {
        // With power h, a share 1-h of accesses falls on a share h of the blocks.
        let counts = counts(Distribution::Pareto(0.2, Some(0.0)), 1000);
        let hot: f64 = counts[..200].iter().sum::<f64>() / DRAWS as f64;
        assert!((hot - 0.8).abs() < 0.01, "{hot}");
    }

    #[test]
    fn normal_has_two_thirds_within_one_deviation() {
        let counts = counts(Distribution::Normal(10.0, 0.5), 1000);
        let near: f64 = counts[400..600].iter().sum::<f64>() / DRAWS as f64;
        assert!((near - 0.6827).abs() < 0.01, "{near}");
    }

    #[test]
    fn zones_get_their_accesses() {
        let zones = Distribution::Zoned(vec![(60, 10), (30, 20), (8, 30), (2, 40)]);
        let counts_ = counts(zones, 1000);
        for (range, share) in [(0..100, 0.6), (100..300, 0.3), (300..600, 0.08), (600..1000, 0.02)] {
            let got = counts_[range].iter().sum::<f64>() / DRAWS as f64;
            assert!((got - share).abs() < 0.01, "{got} for {share}");
        }
        let absolute = counts(Distribution::ZonedAbsolute(vec![(50, 4096 * 10), (50, 4096 * 20)]), 1000);
        assert_eq!(absolute[30..].iter().sum::<f64>(), 0.0);
        assert!((absolute[..10].iter().sum::<f64>() / DRAWS as f64 - 0.5).abs() < 0.01);
    }

    proptest::proptest! {
        #[test]
        fn every_draw_is_in_range(n in 1u64..10_000, seed: u64, theta in 0.05f64..3.0, h in 0.01f64..0.99) {
            proptest::prop_assume!((theta - 1.0).abs() > 1e-6);
            let all = [
                Distribution::Zipf(theta, None), Distribution::Zipf(theta, Some(1.0)), Distribution::Pareto(h, None),
                Distribution::Normal(h * 100.0, h), Distribution::Zoned(vec![(50, 1), (50, 99)]),
                Distribution::ZonedAbsolute(vec![(1, 1), (99, u64::MAX)]),
            ];
            let mut rng = Rng::new(seed);
            for distribution in all {
                let drawn = Drawn::new(&distribution, n, 4096, seed);
                for _ in 0..20 {
                    proptest::prop_assert!(drawn.next(&mut rng) < n);
                }
            }
        }
    }
}
