//! RaBitQ codes: a few bits a dimension, with an estimate of the distance and a bound on its error.
//!
//! Owns the rotation, the quantiser, the packed forms of codes (`fast_scan` for one bit, `planes` for more) and the
//! estimator. Called by the indexes.
//!
//! A vector's residual `r` (rotated) becomes codes `u` of `B` bits a component; with `v = u - (2^B - 1) / 2` and
//! `f = |r|^2 / <v, r>`, the inner product of `r` with any `q` is estimated by `f <v, q>`. Over the choice of the rotation
//! that is unbiased, and off by at most
//! `e |r| |q| tan(v, r) / sqrt(D - 1)` with a probability that depends on `e` alone: 94% at `e = 1.9`, 98.7% at 2.5.
//! Gao and Long, "RaBitQ: Quantizing High-Dimensional Vectors with a Theoretical Error Bound for Approximate Nearest
//! Neighbor Search", SIGMOD 2024; Gao et al., "Practical and Asymptotically Optimal Quantization of High-Dimensional
//! Vectors in Euclidean Space for Approximate Nearest Neighbor Search", SIGMOD 2025.
//!
//! Invariants
//! - Same bits at every SIMD level: codes are compared as integers, and float sums have sixteen fixed lanes.
//! - An estimate's bound covers the rounding of the query as well as that of the codes.

mod encode;
mod estimate;
mod fast_scan;
mod planes;
mod rotation;

pub use encode::{Quantised, quantise};
pub use estimate::{BlockFactors, CodeQuery, Factors, FactorsMany};
pub use fast_scan::{BLOCK_ROWS, block_bytes, pack_block};
pub use planes::{pack_planes, planes_bytes};
pub use rotation::{Rotation, padded_dimension};

/// Most bits of a code's component.
pub const BITS_MAX: u8 = 8;

/// The error bound in units of the standard deviation: the paper's choice, exceeded by about 6 of 100 vectors, 3 of
/// them to the side that matters.
pub const EPSILON: f32 = 1.9;

#[cfg(test)]
mod tests;
