//! Exact sums of floats: the same bits whatever the order of the additions (ADR 6).
//!
//! Owns [`FloatSums`], one exact sum per group. A sum is a *window*, an `i128` in fixed point whose lowest exponent is the
//! same for all groups of a page, and, for what does not fit it, a [`Superaccumulator`]. NaN and infinities are flags. Rounding
//! happens once, when the sum is read: to nearest, ties to even.
//!
//! Invariants
//! - The value of a sum, window and superaccumulator together, is exact until it is read.
//! - A value whose exponent the window covers is finite and normal.
//!
//! A block of values for few groups is added as integers at one common exponent first, without branches; only
//! what lies more than 31 binary orders of magnitude below the block's greatest value goes one by one.
//!
//! Cost: about 1 ns a value for one group; for many groups some 20 instructions and the window's cache line, which counts for
//! more.

use heliostat_segment::dispatch;
use hidb::BLOCK_ROWS;

use super::arguments::blank;
use super::paged::{PAGE_ITEMS, Paged};
use super::state::LOCAL_GROUPS_MAX;
use super::superaccumulator::{BIAS, Superaccumulator};
use crate::vector::{Bits, count_bits};

/// Exponents below that of a page's first value that its windows cover: 9 more than [`SPLIT_EXPONENTS`] needs.
const WINDOW_BELOW: i32 = 40;
/// Exponents above the window's base that it covers: values of 53 + 62 bits of 127, so that 2^12 of the greatest fit it
/// before they move to the rest.
const WINDOW_SHIFT_MAX: i32 = 62;
/// Bases are multiples of this, so that those of two cores are often one.
const BASE_STEP: i32 = 4;
/// The greatest base: what the window covers ends before infinity.
const BASE_MAX: i32 = (0x7fe - WINDOW_SHIFT_MAX) / BASE_STEP * BASE_STEP;

/// Exponents that a block's common integers cover: 1,024 mantissas of 53 bits, 32 bits apart, fit two `i64`.
const SPLIT_EXPONENTS: i32 = 32;

const FLAG_NAN: u8 = 1;
const FLAG_PLUS: u8 = 2;
const FLAG_MINUS: u8 = 4;

/// What a window does not hold.
#[derive(Clone, Debug)]
struct Rest {
    sum: Superaccumulator,
    flags: u8,
}

/// The base of windows whose first value has this exponent.
fn base_for(exponent: i32) -> i32 {
    ((exponent - WINDOW_BELOW).max(0) / BASE_STEP * BASE_STEP).clamp(1, BASE_MAX)
}

/// Whether a window's value and its unit are normal doubles, far from either end of their range.
fn is_normal(value: i128, base: i32) -> bool {
    let unit = base - BIAS;
    unit > -1000 && unit + 128 - (value.unsigned_abs().leading_zeros() as i32) < 1000
}

/// `value << shift`, if no bit is lost.
fn shifted(value: i128, shift: i32) -> Option<i128> {
    let room = value.unsigned_abs().leading_zeros() as i32 - 1;
    (0..room).contains(&shift).then(|| value << shift)
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

/// One exact sum per group.
#[derive(Clone, Debug, Default)]
pub(crate) struct FloatSums {
    /// `value * 2^(base - BIAS)`.
    windows: Paged<i128>,
    /// Of each page of windows; [`NO_BASE`] before its first value.
    bases: Vec<i32>,
    /// Where a group's rest is in `rest`, plus one; 0 without one. Empty while no group has one.
    places: Paged<u32>,
    rest: Paged<Rest>,
}

/// So far above every exponent that no value is in the window.
const NO_BASE: i32 = i32::MAX;

impl FloatSums {
    pub fn resize(&mut self, groups: usize) {
        self.windows.resize(groups, 0);
        self.bases.resize(groups.div_ceil(PAGE_ITEMS), NO_BASE);
        if !self.places.is_empty() {
            self.places.resize(groups, 0);
        }
    }

    pub fn memory_bytes(&self) -> usize {
        self.windows.memory_bytes() + self.places.memory_bytes() + self.rest.memory_bytes() + self.bases.capacity() * 4
    }

    #[inline]
    pub fn add(&mut self, group: usize, value: f64) {
        let bits = value.to_bits();
        let shift = (bits >> 52 & 0x7ff) as i32 - self.bases[group / PAGE_ITEMS];
        if (0..=WINDOW_SHIFT_MAX).contains(&shift) {
            let term = i128::from(bits & ((1 << 52) - 1) | 1 << 52) << shift;
            self.add_term(group, if bits >> 63 == 1 { -term } else { term });
        } else {
            self.add_outside(group, value);
        }
    }

    /// Adds a value that the window does not cover, or that is the page's first.
    #[cold]
    fn add_outside(&mut self, group: usize, value: f64) {
        if self.begin(group / PAGE_ITEMS, (value.to_bits() >> 52 & 0x7ff) as i32) {
            self.add(group, value);
        } else {
            self.add_to_rest(group, value);
        }
    }

    /// Gives a page that has none the base for a value of this exponent; false if it had one, or the value is not normal.
    fn begin(&mut self, page: usize, exponent: i32) -> bool {
        let begins = self.bases[page] == NO_BASE && (1..0x7ff).contains(&exponent);
        if begins {
            self.bases[page] = base_for(exponent);
        }
        begins
    }

    /// Adds what is at the scale of the group's window.
    #[inline]
    fn add_term(&mut self, group: usize, term: i128) {
        let window = &mut self.windows[group];
        match window.checked_add(term) {
            Some(sum) => *window = sum,
            None => {
                self.spill(group);
                self.windows[group] = term;
            }
        }
    }

    /// Adds a value that the window does not cover.
    fn add_to_rest(&mut self, group: usize, value: f64) {
        let bits = value.to_bits();
        let (negative, exponent) = (bits >> 63 == 1, (bits >> 52 & 0x7ff) as i32);
        let fraction = bits & ((1 << 52) - 1);
        if exponent == 0x7ff {
            self.rest_of(group).flags |= match (fraction != 0, negative) {
                (true, _) => FLAG_NAN,
                (false, false) => FLAG_PLUS,
                (false, true) => FLAG_MINUS,
            };
            return;
        }
        let (magnitude, exponent) = if exponent == 0 { (fraction, 1) } else { (fraction | 1 << 52, exponent) };
        if magnitude != 0 {
            self.rest_of(group).sum.add(negative, magnitude, exponent);
        }
    }

    fn rest_of(&mut self, group: usize) -> &mut Rest {
        if self.places.is_empty() {
            self.places.resize(self.windows.len(), 0);
        }
        let place = &mut self.places[group];
        if *place == 0 {
            self.rest.push(Rest { sum: Superaccumulator::new(), flags: 0 });
            *place = self.rest.len() as u32;
        }
        &mut self.rest[*place as usize - 1]
    }

    fn known_rest(&self, group: usize) -> Option<&Rest> {
        let place = if self.places.is_empty() { 0 } else { self.places[group] };
        place.checked_sub(1).map(|place| &self.rest[place as usize])
    }

    /// Moves what a window holds to the group's rest, so that there is room in it.
    #[cold]
    fn spill(&mut self, group: usize) {
        let (window, base) = (std::mem::take(&mut self.windows[group]), self.bases[group / PAGE_ITEMS]);
        if window != 0 {
            self.rest_of(group).sum.add_wide(window, base);
        }
    }

    /// Adds the `valid` values of one block to the sums of `groups`.
    pub fn add_block(&mut self, groups: &[u32], values: &[f64], valid: &Bits) {
        let (count, rows) = (self.windows.len(), groups.len());
        let mut copy;
        let block = match values.first_chunk::<BLOCK_ROWS>() {
            Some(values) if count_bits(valid) == BLOCK_ROWS => values,
            _ => {
                copy = [0.0; BLOCK_ROWS];
                copy[..rows].copy_from_slice(&values[..rows]);
                blank(&mut copy, valid, 0.0);
                &copy
            }
        };
        if count > LOCAL_GROUPS_MAX {
            // What is not valid adds zero.
            groups.iter().zip(block).for_each(|(group, value)| self.add_unless_zero(*group as usize, *value));
            return;
        }
        // All but the smallest values of a block are sums of integers at one exponent.
        let greatest = greatest_exponent(block);
        self.begin(0, greatest);
        let base = (greatest - (SPLIT_EXPONENTS - 1)).max(1);
        let mut sums = [(0i64, 0i64); LOCAL_GROUPS_MAX];
        let outside = if count == 1 {
            let (low, high, outside) = sum_split(block, base);
            sums[0] = (low, high);
            outside
        } else {
            let (mut low, mut high) = ([0; BLOCK_ROWS], [0; BLOCK_ROWS]);
            let outside = split(block, base, &mut low, &mut high);
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
                    self.add_unless_zero(*group as usize, *value);
                }
            }
        }
    }

    /// [`FloatSums::add`] of what is not zero: a zero would be looked at twice.
    #[inline]
    fn add_unless_zero(&mut self, group: usize, value: f64) {
        if value != 0.0 {
            self.add(group, value);
        }
    }

    /// Adds `value * 2^(exponent - BIAS)`; `value` below 2^96, or the window of another.
    fn add_scaled(&mut self, group: usize, value: i128, exponent: i32) {
        if value == 0 {
            return;
        }
        match shifted(value, exponent - self.bases[group / PAGE_ITEMS]) {
            Some(term) => self.add_term(group, term),
            None => self.rest_of(group).sum.add_wide(value, exponent),
        }
    }

    /// Moves the windows of a page down to `base`.
    fn lower_base(&mut self, page: usize, base: i32) {
        let from = std::mem::replace(&mut self.bases[page], base);
        if from == NO_BASE {
            return;
        }
        for group in page * PAGE_ITEMS..self.windows.len().min((page + 1) * PAGE_ITEMS) {
            let window = self.windows[group];
            self.windows[group] = shifted(window, from - base).unwrap_or_else(|| {
                self.rest_of(group).sum.add_wide(window, from);
                0
            });
        }
    }

    /// Adds another's sum of `from` to this one's of `group`.
    pub fn absorb(&mut self, group: usize, other: &FloatSums, from: usize) {
        if let Some(theirs) = other.known_rest(from) {
            let ours = self.rest_of(group);
            ours.flags |= theirs.flags;
            ours.sum.absorb(&theirs.sum);
        }
        let (window, base) = (other.windows[from], other.bases[from / PAGE_ITEMS]);
        if window != 0 {
            if base < self.bases[group / PAGE_ITEMS] {
                self.lower_base(group / PAGE_ITEMS, base);
            }
            self.add_scaled(group, window, base);
        }
    }

    /// The correctly rounded sum; NaN if a NaN or infinities of both signs went in.
    pub fn value(&self, group: usize) -> f64 {
        let (window, base) = (self.windows[group], self.bases[group / PAGE_ITEMS]);
        let rest = self.known_rest(group);
        match rest.map_or(0, |rest| rest.flags) {
            FLAG_PLUS => f64::INFINITY,
            FLAG_MINUS => f64::NEG_INFINITY,
            0 if rest.is_none() && window == 0 => 0.0,
            0 if rest.is_none() && is_normal(window, base) => {
                // Converting rounds to nearest, ties to even; scaling a normal number to a normal one is exact.
                window as f64 * f64::from_bits(((base - BIAS + 1023) as u64) << 52)
            }
            0 => self.exact(group).round(),
            _ => f64::NAN,
        }
    }

    /// A group's whole sum.
    fn exact(&self, group: usize) -> Superaccumulator {
        let mut exact = self.known_rest(group).map_or_else(Superaccumulator::new, |rest| rest.sum.clone());
        if self.windows[group] != 0 {
            exact.add_wide(self.windows[group], self.bases[group / PAGE_ITEMS]);
        }
        exact
    }

    /// The state as bytes: flags, the number of chunks that are not zero, and each with its index.
    pub fn write_state(&self, group: usize, out: &mut Vec<u8>) {
        let mut exact = self.exact(group);
        exact.propagate();
        out.push(self.known_rest(group).map_or(0, |rest| rest.flags));
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
        if flags != 0 || count > 0 {
            let rest = self.rest_of(group);
            rest.flags |= flags;
            rest.sum.absorb(&exact);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::for_each_bit;
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

    /// Groups of several pages, in parts whose first values are of very different sizes, so that pages have different
    /// bases, are lowered, and windows don't survive that.
    #[test]
    fn groups_of_different_sizes_are_absorbed_exactly() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(10);
        const GROUPS: usize = 2 * PAGE_ITEMS + 100;
        for round in 0..20 {
            let mut whole = FloatSums::default();
            let mut parts: Vec<FloatSums> = vec![FloatSums::default(); 3];
            whole.resize(GROUPS);
            for (number, part) in parts.iter_mut().enumerate() {
                part.resize(GROUPS);
                let size = [0, 30, -30, 90, -500, 900][(round + number * 2) % 6];
                for _ in 0..12_000 {
                    let group = random.random_range(0..GROUPS);
                    let value = match random.random_range(0..5000) {
                        0 => f64::NAN,
                        1 => f64::INFINITY,
                        2 => f64::from_bits(random.random_range(0..1 << 52)),
                        _ => (random.random::<f64>() - 0.5) * 2f64.powi(size + random.random_range(-20..20)),
                    };
                    part.add(group, value);
                    whole.add(group, value);
                }
            }
            let mut merged = parts.remove(0);
            for part in &parts {
                (0..GROUPS).for_each(|group| merged.absorb(group, part, group));
            }
            for group in 0..GROUPS {
                let (ours, theirs) = (merged.value(group), whole.value(group));
                assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{ours} {theirs}");
                let (mut ours, mut theirs) = (Vec::new(), Vec::new());
                merged.write_state(group, &mut ours);
                whole.write_state(group, &mut theirs);
                assert_eq!(ours, theirs, "round {round}, group {group}");
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
