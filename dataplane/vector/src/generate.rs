//! Data for tests and benchmarks: clusters of a chosen intrinsic dimension.
//!
//! Owns [`Clustered`]. Called by tests, examples and benchmarks.
//!
//! Invariants
//! - Row `i` of a seed is the same on every machine: only additions and multiplications, no transcendental functions.
//!
//! Uniform random vectors tell nothing about an index: in high dimension all of them are equally far from each other.
//! Embeddings lie in clusters, and within one near a surface of few dimensions; that is what is generated here.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A recipe for rows.
#[derive(Clone, Copy, Debug)]
pub struct Clustered {
    /// Components of a row.
    pub dimension: usize,
    /// Directions in which a cluster extends; the rest is noise a tenth as strong.
    pub intrinsic: usize,
    /// Number of clusters. Their sizes differ: cluster `i` gets a share that falls with `1 / (i + 8)`.
    pub clusters: usize,
    /// How far a cluster extends, in units of the distance between clusters.
    pub spread: f32,
    /// Of everything random.
    pub seed: u64,
}

/// Nearly normal: the sum of four uniform numbers, scaled to variance 1.
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let sum: f32 = (0..4).map(|_| rng.random::<f32>() - 0.5).sum();
    sum * 1.732_050_8
}

impl Clustered {
    /// Rows `start..start + count`, one after the other. Costs `intrinsic * dimension` multiply-adds a row.
    pub fn rows(&self, start: u64, count: usize) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let scale = (self.intrinsic.max(1) as f32).sqrt().recip();
        let centres: Vec<f32> = (0..self.clusters * self.dimension).map(|_| normal(&mut rng)).collect();
        // Clusters share a few bases, so that memory does not grow with their number.
        let bases: Vec<f32> = (0..16 * self.intrinsic * self.dimension).map(|_| normal(&mut rng) * scale).collect();
        let weights: Vec<f32> = (0..self.clusters)
            .scan(0.0, |sum, i| {
                *sum += 1.0 / (i as f32 + 8.0);
                Some(*sum)
            })
            .collect();
        let total = weights.last().copied().unwrap_or(1.0);
        let mut rows = Vec::with_capacity(count * self.dimension);
        for index in start..start + count as u64 {
            let mut rng =
                ChaCha8Rng::seed_from_u64(self.seed ^ index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let drawn = rng.random::<f32>() * total;
            let cluster = weights.partition_point(|w| *w < drawn).min(self.clusters.saturating_sub(1));
            let at = rows.len();
            rows.extend_from_slice(&centres[cluster * self.dimension..][..self.dimension]);
            let row = &mut rows[at..];
            let basis = &bases[cluster % 16 * self.intrinsic * self.dimension..][..self.intrinsic * self.dimension];
            for direction in basis.chunks_exact(self.dimension) {
                let weight = normal(&mut rng) * self.spread;
                row.iter_mut().zip(direction).for_each(|(x, b)| *x += weight * b);
            }
            row.iter_mut().for_each(|x| *x += normal(&mut rng) * self.spread * 0.1);
        }
        rows
    }
}
