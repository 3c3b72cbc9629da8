//! Exact sums of doubles of any size.
//!
//! Owns [`Superaccumulator`], the *small superaccumulator* of R. M. Neal, "Fast exact summation using small and large
//! superaccumulators" (2015): chunks of 64 bits, 32 bits apart. Called by [`super::float_sum`].
//!
//! Invariant: between carry propagations at most [`ADDS_MAX`] values of at most 53 bits went into a chunk, so no chunk
//! overflows.

const CHUNKS: usize = 68;
const ADDS_MAX: u32 = 1 << 9;
/// Bit `i` of the superaccumulator weighs `2^(i - BIAS)`.
pub(super) const BIAS: i32 = 1075;

/// An exact sum of any finite doubles.
#[derive(Clone, Debug)]
pub(super) struct Superaccumulator {
    pub chunks: [i64; CHUNKS],
    adds_left: u32,
}

impl Superaccumulator {
    pub fn new() -> Self {
        Superaccumulator { chunks: [0; CHUNKS], adds_left: ADDS_MAX }
    }

    /// Adds `magnitude * 2^(exponent - BIAS)`, negated if so; `magnitude` below 2^53, `exponent` in 0..=2100.
    #[inline]
    pub fn add(&mut self, negative: bool, magnitude: u64, exponent: i32) {
        if self.adds_left == 0 {
            self.propagate();
        }
        self.adds_left -= 1;
        let (index, shift) = ((exponent >> 5) as usize, exponent & 31);
        let low = ((magnitude << shift) & 0xffff_ffff) as i64;
        let high = (magnitude >> (32 - shift)) as i64;
        let (low, high) = if negative { (-low, -high) } else { (low, high) };
        self.chunks[index] += low;
        self.chunks[index + 1] += high;
    }

    /// Adds `value * 2^(exponent - BIAS)`.
    pub fn add_wide(&mut self, value: i128, exponent: i32) {
        let magnitude = value.unsigned_abs();
        for piece in 0..4 {
            let part = (magnitude >> (piece * 32)) as u64 & 0xffff_ffff;
            if part != 0 {
                self.add(value < 0, part, exponent + piece * 32);
            }
        }
    }

    /// Brings every chunk but the last back to 0..2^32.
    pub fn propagate(&mut self) {
        for index in 0..CHUNKS - 1 {
            let carry = self.chunks[index] >> 32;
            self.chunks[index] -= carry << 32;
            self.chunks[index + 1] += carry;
        }
        self.adds_left = ADDS_MAX;
    }

    pub fn absorb(&mut self, other: &Superaccumulator) {
        let mut other = other.clone();
        other.propagate();
        self.propagate();
        for (chunk, other) in self.chunks.iter_mut().zip(other.chunks) {
            *chunk += other;
        }
        self.propagate();
    }

    pub fn round(&self) -> f64 {
        let mut exact = self.clone();
        exact.propagate();
        let negative = exact.chunks[CHUNKS - 1] < 0;
        if negative {
            exact.chunks.iter_mut().for_each(|chunk| *chunk = -*chunk);
            exact.propagate();
        }
        let chunks = &exact.chunks;
        let Some(top) = chunks.iter().rposition(|chunk| *chunk != 0) else { return 0.0 };
        let top_bit = top as i32 * 32 + 63 - chunks[top].leading_zeros() as i32;
        let bit = |position: i32| {
            position >= 0 && {
                let chunk = chunks.get((position >> 5) as usize).copied().unwrap_or(0);
                // Only the last chunk holds more than 32 bits, and nothing lies above it.
                chunk >> (position & 31) & 1 == 1
            }
        };
        // The lowest bit of a subnormal weighs 2^-1074, which is bit 1.
        let lowest = (top_bit - 52).max(1);
        let mut mantissa = (lowest..=top_bit).rev().fold(0u64, |acc, position| acc << 1 | u64::from(bit(position)));
        let below = lowest - 1;
        if bit(below) {
            let sticky = (0..below).any(bit);
            if sticky || mantissa & 1 == 1 {
                mantissa += 1;
            }
        }
        let exponent = lowest - BIAS;
        let unit = if exponent >= -1022 {
            if exponent > 1023 { f64::INFINITY } else { f64::from_bits(((exponent + 1023) as u64) << 52) }
        } else {
            f64::from_bits(1u64 << (exponent + 1074))
        };
        let magnitude = mantissa as f64 * unit;
        if negative { -magnitude } else { magnitude }
    }
}
