//! A random rotation that costs `d log d`.
//!
//! Owns [`Rotation`]. Called by the codes of both indexes: rotated, every vector's components look alike, which is what
//! the error bound of RaBitQ rests on.
//!
//! Invariants
//! - It is orthogonal up to rounding: lengths and inner products stay.
//! - Dimensions are padded with zeros to a multiple of 64 first. The same seed and dimension give the same bits anywhere.
//!
//! Four rounds of random signs, a fast Hadamard transform over the first (in odd rounds the last) power of two of the
//! components, and, when that is not all of them, one step of Kac's walk that mixes the halves (as the RaBitQ library
//! does; Ailon and Chazelle, SIAM J. Comput. 2009, for the transform). 384 dimensions take about 1 us against 50 us for
//! a dense matrix.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::simd::dispatch;

const ROUNDS: usize = 4;

/// A rotation of vectors of one dimension.
#[derive(Clone, Debug)]
pub struct Rotation {
    dimension: usize,
    padded: usize,
    /// One and minus one, for each round and component.
    signs: Vec<f32>,
}

/// The dimension that a vector of `dimension` components is padded to.
pub fn padded_dimension(dimension: usize) -> usize {
    dimension.next_multiple_of(64)
}

impl Rotation {
    /// The rotation of this dimension and seed.
    pub fn new(dimension: usize, seed: u64) -> Self {
        let padded = padded_dimension(dimension);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let signs = (0..ROUNDS * padded).map(|_| if rng.random::<bool>() { 1.0 } else { -1.0 }).collect();
        Rotation { dimension, padded, signs }
    }

    /// Components before.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Components after.
    pub fn padded(&self) -> usize {
        self.padded
    }

    /// Writes the rotated vector. `vector` has [`Rotation::dimension`] components, `out` has [`Rotation::padded`].
    pub fn rotate(&self, vector: &[f32], out: &mut [f32]) {
        assert!(vector.len() == self.dimension && out.len() == self.padded);
        out[..self.dimension].copy_from_slice(vector);
        out[self.dimension..].fill(0.0);
        rotate(&self.signs, out);
    }
}

#[inline(always)]
fn rotate_body(signs: &[f32], x: &mut [f32]) {
    let padded = x.len();
    let power = 1 << padded.ilog2();
    let scale = (power as f32).sqrt().recip();
    for (round, signs) in signs.chunks_exact(padded).enumerate() {
        x.iter_mut().zip(signs).for_each(|(x, sign)| *x *= sign);
        let start = if round % 2 == 0 { 0 } else { padded - power };
        let part = &mut x[start..start + power];
        hadamard(part);
        part.iter_mut().for_each(|x| *x *= scale);
        if power < padded {
            let (low, high) = x.split_at_mut(padded / 2);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = ((*a + *b) * std::f32::consts::FRAC_1_SQRT_2, (*a - *b) * std::f32::consts::FRAC_1_SQRT_2);
            }
        }
    }
}

/// The unnormalised transform of a power of two, at least eight.
#[inline(always)]
fn hadamard(x: &mut [f32]) {
    for eight in x.chunks_exact_mut(8) {
        let a: [f32; 8] = std::array::from_fn(|i| eight[i]);
        let b: [f32; 8] = std::array::from_fn(|i| if i & 1 == 0 { a[i] + a[i ^ 1] } else { a[i ^ 1] - a[i] });
        let c: [f32; 8] = std::array::from_fn(|i| if i & 2 == 0 { b[i] + b[i ^ 2] } else { b[i ^ 2] - b[i] });
        let d: [f32; 8] = std::array::from_fn(|i| if i & 4 == 0 { c[i] + c[i ^ 4] } else { c[i ^ 4] - c[i] });
        eight.copy_from_slice(&d);
    }
    let mut half = 8;
    while half < x.len() {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

dispatch! {
    fn rotate(signs: &[f32], x: &mut [f32]) = rotate_body;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{generate::Clustered, simd::at_every_level};

    #[test]
    fn lengths_and_products_stay_and_bits_repeat() {
        for d in [1, 3, 64, 100, 128, 384, 1000] {
            let rows = Clustered { dimension: d, intrinsic: 4, clusters: 2, spread: 1.0, seed: 9 }.rows(0, 2);
            let rotation = Rotation::new(d, 42);
            let mut first: Option<Vec<f32>> = None;
            at_every_level(|_| {
                let mut out = vec![0.0; 2 * rotation.padded()];
                let (a, b) = out.split_at_mut(rotation.padded());
                rotation.rotate(&rows[..d], a);
                rotation.rotate(&rows[d..], b);
                let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
                let scale = (dot(a, a) * dot(b, b)).sqrt();
                assert!((dot(a, b) - dot(&rows[..d], &rows[d..])).abs() < 1e-5 * scale);
                assert!((dot(a, a) - dot(&rows[..d], &rows[..d])).abs() < 1e-5 * dot(a, a));
                assert_eq!(first.get_or_insert_with(|| out.clone()), &out);
            });
        }
    }

    #[test]
    fn one_component_spreads_over_all() {
        for d in [128, 384, 960] {
            let mut vector = vec![0.0; d];
            vector[d / 3] = 1.0;
            let rotation = Rotation::new(d, 7);
            let mut out = vec![0.0; rotation.padded()];
            rotation.rotate(&vector, &mut out);
            let greatest = out.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            assert!(greatest < 6.0 / (d as f32).sqrt(), "{d} {greatest}");
        }
    }
}
