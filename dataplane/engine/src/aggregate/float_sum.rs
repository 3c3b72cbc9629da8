//! Exact sums of floats: the same bits whatever the order of the additions (ADR 6).
//!
//! Owns [`FloatSums`], one exact sum per group. A sum begins as a *window*: an `i128` in fixed point around
//! the first value's exponent, 32 bytes a group. A value outside the window, or a carry out of it, promotes the
//! sum to the *small superaccumulator* of R. M. Neal, "Fast exact summation using small and large
//! superaccumulators" (2015): 68 chunks of 64 bits, 32 bits apart, which hold every finite double.
//! NaN and infinities are flags. Rounding happens once, when the sum is read: to nearest, ties to even.
//!
//! Invariants
//! - The value of a sum is exact until it is read.
//! - Between carry propagations at most [`ADDS_MAX`] values of at most 53 bits went into a chunk, so no
//!   chunk overflows.
//!
//! A block of values for few groups is added as integers at one common exponent first, without branches; only
//! what lies more than 31 binary orders of magnitude below the block's greatest value goes one by one.
//!
//! Cost: about 1 ns a value for one group; for many groups 3 to 5 ns in the window, 6 ns in the superaccumulator.

use heliostat_segment::dispatch;
use hidb::BLOCK_ROWS;

use super::paged::Paged;
use super::state::LOCAL_GROUPS_MAX;
use crate::vector::{Bits, count_bits, for_each_bit};

const CHUNKS: usize = 68;
const ADDS_MAX: u32 = 1 << 9;
/// Bit `i` of the superaccumulator weighs `2^(i - BIAS)`.
const BIAS: i32 = 1075;
/// Exponents below the first value's that the window covers.
const WINDOW_BELOW: i32 = 30;
/// Exponents above the window's base that still fit: 53 + 60 bits of 127.
const WINDOW_SHIFT_MAX: i32 = 60;

/// Exponents that a block's common integers cover: 1,024 mantissas of 53 bits, 32 bits apart, fit two `i64`.
const SPLIT_EXPONENTS: i32 = 32;

const FLAG_NAN: u8 = 1;
const FLAG_PLUS: u8 = 2;
const FLAG_MINUS: u8 = 4;

#[derive(Clone, Debug)]
struct Superaccumulator {
    chunks: [i64; CHUNKS],
    adds_left: u32,
}

impl Superaccumulator {
    fn new() -> Self {
        Superaccumulator { chunks: [0; CHUNKS], adds_left: ADDS_MAX }
    }

    /// Adds `magnitude * 2^(exponent - BIAS)`, negated if so; `magnitude` below 2^53, `exponent` in 0..=2100.
    #[inline]
    fn add(&mut self, negative: bool, magnitude: u64, exponent: i32) {
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
    fn add_wide(&mut self, value: i128, exponent: i32) {
        let magnitude = value.unsigned_abs();
        for piece in 0..4 {
            let part = (magnitude >> (piece * 32)) as u64 & 0xffff_ffff;
            if part != 0 {
                self.add(value < 0, part, exponent + piece * 32);
            }
        }
    }

    /// Brings every chunk but the last back to 0..2^32.
    fn propagate(&mut self) {
        for index in 0..CHUNKS - 1 {
            let carry = self.chunks[index] >> 32;
            self.chunks[index] -= carry << 32;
            self.chunks[index + 1] += carry;
        }
        self.adds_left = ADDS_MAX;
    }

    fn absorb(&mut self, other: &Superaccumulator) {
        let mut other = other.clone();
        other.propagate();
        self.propagate();
        for (chunk, other) in self.chunks.iter_mut().zip(other.chunks) {
            *chunk += other;
        }
        self.propagate();
    }

    fn round(&self) -> f64 {
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

/// A sum that is still a window: `value * 2^(base - BIAS)`.
#[derive(Clone, Copy, Debug)]
struct Window {
    /// The fixed-point value, or the index of the superaccumulator once promoted.
    value: i128,
    base: i16,
    flags: u8,
    promoted: bool,
}

/// Whether the window's value and its unit are normal doubles, far from either end of their range.
fn is_normal(window: Window) -> bool {
    let unit = i32::from(window.base) - BIAS;
    unit > -1000 && unit + 128 - (window.value.unsigned_abs().leading_zeros() as i32) < 1000
}

#[inline(always)]
fn greatest_exponent_body(values: &[f64; BLOCK_ROWS]) -> i32 {
    let mut greatest = 0;
    for value in values {
        let exponent = value.to_bits() >> 52 & 0x7ff;
        greatest = greatest.max(if exponent == 0x7ff { 0 } else { exponent });
    }
    greatest as i32
}

/// A value as an integer at `base`, in two parts: `low + high * 2^32`; and whether it lies outside of the exponents
/// from `base`, in which case the parts are 0.
#[inline(always)]
fn parts(value: f64, base: u64) -> (i64, i64, u64) {
    let bits = value.to_bits();
    let shift = (bits >> 52 & 0x7ff).wrapping_sub(base);
    let inside = shift < SPLIT_EXPONENTS as u64;
    let magnitude = if inside { bits & ((1 << 52) - 1) | 1 << 52 } else { 0 };
    let shift = shift & 31;
    let low = ((magnitude << shift) & 0xffff_ffff) as i64;
    let high = (magnitude >> (32 - shift)) as i64;
    let sign = bits as i64 >> 63;
    ((low ^ sign) - sign, (high ^ sign) - sign, u64::from(!inside && bits << 1 != 0))
}

#[inline(always)]
fn split_body(values: &[f64; BLOCK_ROWS], base: i32, low: &mut [i64; BLOCK_ROWS], high: &mut [i64; BLOCK_ROWS]) -> u64 {
    let mut count = 0;
    for ((value, low), high) in values.iter().zip(low).zip(high) {
        let outside;
        (*low, *high, outside) = parts(*value, base as u64);
        count += outside;
    }
    count
}

#[inline(always)]
fn sum_split_body(values: &[f64; BLOCK_ROWS], base: i32) -> (i64, i64, u64) {
    let mut sums = (0, 0, 0);
    for value in values {
        let (low, high, outside) = parts(*value, base as u64);
        sums = (sums.0 + low, sums.1 + high, sums.2 + outside);
    }
    sums
}

dispatch! {
    /// The greatest exponent field of a finite value.
    fn greatest_exponent(values: &[f64; BLOCK_ROWS]) -> i32 = greatest_exponent_body;
}
dispatch! {
    /// The parts of every value; returns how many (that are not zero) are outside.
    fn split(values: &[f64; BLOCK_ROWS], base: i32, low: &mut [i64; BLOCK_ROWS], high: &mut [i64; BLOCK_ROWS]) -> u64 = split_body;
}
dispatch! {
    /// The sums of the parts, and how many values (that are not zero) are outside.
    fn sum_split(values: &[f64; BLOCK_ROWS], base: i32) -> (i64, i64, u64) = sum_split_body;
}

/// As [`for_each_bit`] for the first `rows`, but a plain loop if all their bits are set.
#[inline]
fn for_each_bit_or_all(bits: &Bits, rows: usize, mut visit: impl FnMut(usize)) {
    if count_bits(bits) == rows {
        (0..rows).for_each(visit);
    } else {
        for_each_bit(bits, &mut visit);
    }
}

/// One exact sum per group.
#[derive(Clone, Debug, Default)]
pub(crate) struct FloatSums {
    windows: Paged<Window>,
    wide: Vec<Superaccumulator>,
}

impl FloatSums {
    pub fn resize(&mut self, groups: usize) {
        self.windows.resize(groups, Window { value: 0, base: i16::MIN, flags: 0, promoted: false });
    }

    pub fn memory_bytes(&self) -> usize {
        self.windows.memory_bytes() + self.wide.capacity() * size_of::<Superaccumulator>()
    }

    #[inline]
    pub fn add(&mut self, group: usize, value: f64) {
        let window = &mut self.windows[group];
        let bits = value.to_bits();
        let (negative, exponent) = (bits >> 63 == 1, (bits >> 52 & 0x7ff) as i32);
        let fraction = bits & ((1 << 52) - 1);
        if exponent == 0x7ff {
            window.flags |= match (fraction != 0, negative) {
                (true, _) => FLAG_NAN,
                (false, false) => FLAG_PLUS,
                (false, true) => FLAG_MINUS,
            };
            return;
        }
        let (magnitude, exponent) = if exponent == 0 { (fraction, 1) } else { (fraction | 1 << 52, exponent) };
        if magnitude == 0 {
            return;
        }
        if window.promoted {
            self.wide[window.value as usize].add(negative, magnitude, exponent);
            return;
        }
        if window.base == i16::MIN {
            window.base = (exponent - WINDOW_BELOW).max(1) as i16;
        }
        let shift = exponent - i32::from(window.base);
        if (0..=WINDOW_SHIFT_MAX).contains(&shift) {
            let term = i128::from(magnitude) << shift;
            if let Some(sum) = window.value.checked_add(if negative { -term } else { term }) {
                window.value = sum;
                return;
            }
        }
        self.promote(group).add(negative, magnitude, exponent);
    }

    /// Adds the `valid` values of one block to the sums of `groups`.
    pub fn add_block(&mut self, groups: &[u32], values: &[f64], valid: &Bits) {
        let count = self.windows.len();
        if count > LOCAL_GROUPS_MAX {
            for_each_bit(valid, |row| self.add(groups[row] as usize, values[row]));
            return;
        }
        let mut block = [0.0; BLOCK_ROWS];
        for_each_bit_or_all(valid, groups.len(), |row| block[row] = values[row]);
        // All but the smallest values of a block are sums of integers at one exponent.
        let base = (greatest_exponent(&block) - (SPLIT_EXPONENTS - 1)).max(1);
        let mut sums = [(0i64, 0i64); LOCAL_GROUPS_MAX];
        let outside = if count == 1 {
            let (low, high, outside) = sum_split(&block, base);
            sums[0] = (low, high);
            outside
        } else {
            let (mut low, mut high) = ([0; BLOCK_ROWS], [0; BLOCK_ROWS]);
            let outside = split(&block, base, &mut low, &mut high);
            for (group, (low, high)) in groups.iter().zip(low.iter().zip(&high)) {
                let sum = &mut sums[*group as usize & (LOCAL_GROUPS_MAX - 1)];
                *sum = (sum.0 + low, sum.1 + high);
            }
            outside
        };
        for (group, (low, high)) in sums.iter().enumerate().take(count) {
            self.add_scaled(group, (i128::from(*high) << 32) + i128::from(*low), base);
        }
        if outside > 0 {
            for (value, group) in block.iter().zip(groups) {
                let exponent = (value.to_bits() >> 52 & 0x7ff) as i32;
                if !(base..base + SPLIT_EXPONENTS).contains(&exponent) {
                    self.add(*group as usize, *value);
                }
            }
        }
    }

    /// Adds `value * 2^(exponent - BIAS)`; `value` below 2^96.
    fn add_scaled(&mut self, group: usize, value: i128, exponent: i32) {
        if value == 0 {
            return;
        }
        let window = &mut self.windows[group];
        if !window.promoted {
            if window.base == i16::MIN {
                window.base = (exponent - WINDOW_BELOW / 2).max(1) as i16;
            }
            let shift = exponent - i32::from(window.base);
            let room = value.unsigned_abs().leading_zeros() as i32 - 1;
            if (0..room).contains(&shift)
                && let Some(sum) = window.value.checked_add(value << shift)
            {
                window.value = sum;
                return;
            }
        }
        self.promote(group).add_wide(value, exponent);
    }

    fn promote(&mut self, group: usize) -> &mut Superaccumulator {
        let window = &mut self.windows[group];
        if !window.promoted {
            let mut wide = Superaccumulator::new();
            if window.base != i16::MIN {
                wide.add_wide(window.value, i32::from(window.base));
            }
            window.value = self.wide.len() as i128;
            window.promoted = true;
            self.wide.push(wide);
        }
        let index = self.windows[group].value as usize;
        &mut self.wide[index]
    }

    /// Adds another's sum of `from` to this one's of `group`.
    pub fn absorb(&mut self, group: usize, other: &FloatSums, from: usize) {
        let theirs = other.windows[from];
        self.windows[group].flags |= theirs.flags;
        if theirs.promoted {
            let wide = other.wide[theirs.value as usize].clone();
            self.promote(group).absorb(&wide);
        } else if theirs.base != i16::MIN {
            let ours = &mut self.windows[group];
            if ours.base == i16::MIN && !ours.promoted {
                (ours.base, ours.value) = (theirs.base, theirs.value);
            } else if let Some(sum) =
                (!ours.promoted && ours.base == theirs.base).then(|| ours.value.checked_add(theirs.value)).flatten()
            {
                ours.value = sum;
            } else {
                self.promote(group).add_wide(theirs.value, i32::from(theirs.base));
            }
        }
    }

    /// The correctly rounded sum; NaN if a NaN or infinities of both signs went in.
    pub fn value(&self, group: usize) -> f64 {
        let window = self.windows[group];
        match window.flags {
            FLAG_PLUS => f64::INFINITY,
            FLAG_MINUS => f64::NEG_INFINITY,
            0 if window.promoted => self.wide[window.value as usize].round(),
            0 if window.base == i16::MIN => 0.0,
            0 if window.value == 0 => 0.0,
            0 if is_normal(window) => {
                // Converting rounds to nearest, ties to even; scaling a normal number to a normal one is exact.
                window.value as f64 * f64::from_bits(((i32::from(window.base) - BIAS + 1023) as u64) << 52)
            }
            0 => {
                let mut wide = Superaccumulator::new();
                wide.add_wide(window.value, i32::from(window.base));
                wide.round()
            }
            _ => f64::NAN,
        }
    }

    /// The state as bytes: flags, the number of chunks that are not zero, and each with its index.
    pub fn write_state(&self, group: usize, out: &mut Vec<u8>) {
        let window = self.windows[group];
        let mut exact = Superaccumulator::new();
        if window.promoted {
            exact.clone_from(&self.wide[window.value as usize]);
        } else if window.base != i16::MIN {
            exact.add_wide(window.value, i32::from(window.base));
        }
        exact.propagate();
        out.push(window.flags);
        out.push(exact.chunks.iter().filter(|chunk| **chunk != 0).count() as u8);
        for (index, chunk) in exact.chunks.iter().enumerate().filter(|(_, chunk)| **chunk != 0) {
            out.push(index as u8);
            out.extend_from_slice(&chunk.to_le_bytes());
        }
    }

    /// Adds a state that `write_state` made to the sum of `group`; `None` if the bytes are not such a state.
    pub fn absorb_state(&mut self, group: usize, bytes: &[u8]) -> Option<()> {
        let (&[flags, count], mut rest) = bytes.split_first_chunk::<2>()?;
        if flags > 7 || rest.len() != usize::from(count) * 9 {
            return None;
        }
        let mut exact = Superaccumulator::new();
        while let Some((&[index], tail)) = rest.split_first_chunk::<1>() {
            let (chunk, tail) = tail.split_first_chunk::<8>()?;
            let chunk = i64::from_le_bytes(*chunk);
            if chunk.unsigned_abs() >> 40 != 0 {
                return None;
            }
            *exact.chunks.get_mut(usize::from(index))? = chunk;
            rest = tail;
        }
        self.windows[group].flags |= flags;
        if count > 0 {
            self.promote(group).absorb(&exact);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    fn sum(values: &[f64]) -> f64 {
        let mut sums = FloatSums::default();
        sums.resize(1);
        values.iter().for_each(|value| sums.add(0, *value));
        sums.value(0)
    }

    #[test]
    fn sums_are_correctly_rounded() {
        assert_eq!(sum(&[1e308, 1e308, -1e308, -1e308]), 0.0);
        assert_eq!(sum(&[1.0, 1e100, 1.0, -1e100]), 2.0);
        assert_eq!(sum(&[0.1; 10]), 1.0, "the exact sum of ten doubles nearest 0.1 rounds to 1");
        // 1 + 2^-53 is a tie (to even: 1); one more bit anywhere below decides.
        assert_eq!(sum(&[1.0, 2f64.powi(-53)]), 1.0);
        assert_eq!(sum(&[1.0, 2f64.powi(-53), f64::from_bits(1)]), 1.0 + 2f64.powi(-52));
        assert_eq!(sum(&[5e-324, 5e-324]), 1e-323);
        assert_eq!(sum(&[f64::MIN_POSITIVE, -5e-324]), f64::MIN_POSITIVE - 5e-324);
        assert_eq!(sum(&[f64::MAX, f64::MAX]), f64::INFINITY);
        assert_eq!(sum(&[f64::MAX, f64::MAX, -f64::MAX]), f64::MAX);
        assert!(sum(&[f64::INFINITY, f64::NEG_INFINITY]).is_nan());
        assert!(sum(&[1.0, f64::NAN]).is_nan());
        assert_eq!(sum(&[1.0, f64::NEG_INFINITY]), f64::NEG_INFINITY);
        assert_eq!(sum(&[-0.0]).to_bits(), 0);
        assert_eq!(sum(&[-1.5, -2.25]), -3.75);
    }

    #[test]
    fn order_partition_and_serialisation_do_not_change_a_bit() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        for round in 0..200 {
            let spread = [3, 40, 600][round % 3];
            let values: Vec<f64> = (0..random.random_range(1..3000))
                .map(|_| (random.random::<f64>() - 0.5) * 2f64.powi(random.random_range(-spread..=spread)))
                .collect();
            let forward = sum(&values);
            let backward: Vec<f64> = values.iter().rev().copied().collect();
            assert_eq!(forward.to_bits(), sum(&backward).to_bits());
            let (left, right) = values.split_at(values.len() / 3);
            let mut one = FloatSums::default();
            one.resize(1);
            left.iter().for_each(|v| one.add(0, *v));
            let mut two = FloatSums::default();
            two.resize(1);
            right.iter().for_each(|v| two.add(0, *v));
            let mut state = Vec::new();
            two.write_state(0, &mut state);
            let mut three = one.clone();
            one.absorb(0, &two, 0);
            three.absorb_state(0, &state).unwrap();
            assert_eq!(forward.to_bits(), one.value(0).to_bits());
            assert_eq!(forward.to_bits(), three.value(0).to_bits());
        }
    }

    #[test]
    fn integers_in_floats_sum_as_integers_do() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(8);
        for _ in 0..100 {
            let integers: Vec<i64> = (0..1000).map(|_| random.random_range(-(1 << 40)..1 << 40)).collect();
            let floats: Vec<f64> = integers.iter().map(|v| *v as f64).collect();
            assert_eq!(sum(&floats), integers.iter().sum::<i64>() as f64);
        }
    }

    #[test]
    fn blocks_sum_as_their_values_do() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(9);
        for round in 0..400 {
            let spread = [0, 3, 20, 40, 600][round % 5];
            let groups = [1, 2, 64, 65, 3000][round / 5 % 5];
            let special = round % 3 == 0;
            let mut by_block = FloatSums::default();
            let mut by_value = FloatSums::default();
            by_block.resize(groups);
            by_value.resize(groups);
            for _ in 0..random.random_range(1..6) {
                let rows = random.random_range(1..=BLOCK_ROWS);
                let offset = random.random_range(-400..400);
                let values: Vec<f64> = (0..rows)
                    .map(|_| match random.random_range(0..60) {
                        0 => 0.0,
                        1 => -0.0,
                        2 => f64::from_bits(random.random_range(0..1 << 53)),
                        3 if special => f64::MAX * if random.random() { 1.0 } else { -1.0 },
                        4 if special && random.random_bool(0.02) => f64::INFINITY,
                        5 if special && random.random_bool(0.02) => f64::NAN,
                        _ => (random.random::<f64>() - 0.5) * 2f64.powi(offset + random.random_range(-spread..=spread)),
                    })
                    .collect();
                let numbers: Vec<u32> = (0..rows).map(|_| random.random_range(0..groups as u32)).collect();
                let mut valid = crate::vector::first_bits(rows);
                if random.random() {
                    valid.iter_mut().for_each(|word| *word &= random.random::<u64>());
                }
                by_block.add_block(&numbers, &values, &valid);
                for_each_bit(&valid, |row| by_value.add(numbers[row] as usize, values[row]));
            }
            for group in 0..groups {
                let (ours, theirs) = (by_block.value(group), by_value.value(group));
                assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{ours} {theirs}");
                let (mut ours, mut theirs) = (Vec::new(), Vec::new());
                by_block.write_state(group, &mut ours);
                by_value.write_state(group, &mut theirs);
                assert_eq!(ours, theirs);
            }
        }
    }

    #[test]
    fn garbage_states_are_refused() {
        let mut sums = FloatSums::default();
        sums.resize(1);
        for bytes in [
            &[][..],
            &[0],
            &[0, 1],
            &[8, 0],
            &[0, 1, 200, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0, 1, 2, 255, 255, 255, 255, 255, 255, 255, 127],
        ] {
            assert_eq!(sums.absorb_state(0, bytes), None);
        }
    }
}
