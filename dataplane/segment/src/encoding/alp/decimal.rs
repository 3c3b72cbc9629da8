//! Decimal blocks: floats that are integers times a power of ten, packed as integers.
//!
//! Owns the search for exponent and factor (sampled, first over the row group, then per block), and the comparison
//! in the integer domain. Payload: base `i64`, exponent `u8`, factor `u8`, 6 unused, `128 * width` bytes of
//! distances from the base, then the exceptions with their raw bits. Called by `alp`.
//!
//! Invariants
//! - Integers are within [`INTEGER_MAX`], where their floats keep their order, and `width` is at most [`WIDTH_MAX`].
//!
//! Cost sketch: prices of 20 bits read 2.6 kB a block; compare is unpacking and a range mask (the floats of two
//! or three integers per bound are computed to translate it); decode adds 6 instructions per register.

use std::mem::MaybeUninit;

use super::{EncodedBlock, Exceptions, FEW, KIND_DECIMAL, pays};
use crate::encoding::{bit_width, packed, u64_at};
use crate::kernels::floats::{self, Decimal, EXPONENT_MAX, Fit, INTEGER_MAX, NOT_EXACT};
use crate::kernels::{Float, Word, order_key, value_of_key, with_word};
use crate::{BLOCK_ROWS, Selection};

/// Bytes before the packed distances.
const PREFIX_BYTES: usize = 16;
/// Bits of a distance between two integers.
const WIDTH_MAX: usize = 53;
/// Values looked at in a block.
const SAMPLE_VALUES: usize = 32;
/// Blocks looked at in a row group.
const SAMPLE_BLOCKS: usize = 8;
/// The most exponent and factor pairs that a block chooses from.
const CANDIDATES_MAX: usize = 5;
/// Exponents, those first whose inverse is closest to a float: of equal ones on a sample they fail least often
/// on the rest.
const EXPONENTS: [u8; EXPONENT_MAX as usize + 1] = [0, 14, 12, 2, 3, 16, 8, 13, 10, 6, 7, 4, 1, 11, 9, 17, 18, 15, 5];

/// About [`SAMPLE_VALUES`] values, evenly spaced.
fn sample<F: Float>(block: &[F]) -> Vec<F> {
    block.iter().step_by((block.len() / SAMPLE_VALUES).max(1)).take(SAMPLE_VALUES).copied().collect()
}

/// Bits that `count` values take, all in all.
fn cost<F: Float>(fit: &Fit, count: usize) -> usize {
    if fit.exact == 0 {
        return usize::MAX;
    }
    bit_width(fit.max.wrapping_sub(fit.min) as u64) * count + (count - fit.exact) * (F::BYTES + 2) * 8
}

/// The cheapest of `pairs` on `sample`; `None` when plain values are cheaper.
fn cheapest<F: Float>(sample: &[F], pairs: impl Iterator<Item = Decimal>) -> Option<Decimal> {
    let mut integers = [0i64; SAMPLE_VALUES];
    let mut best = (size_of_val(sample) * 8, None);
    for pair in pairs {
        let cost = cost::<F>(&floats::fit(sample, pair, &mut integers[..sample.len()]), sample.len());
        if cost < best.0 {
            best = (cost, Some(pair));
        }
    }
    best.1
}

/// The pairs that are best for some blocks of a row group, most frequent first.
pub(super) fn candidates<F: Float>(values: &[F]) -> Vec<Decimal> {
    let mut votes: Vec<(usize, Decimal)> = Vec::new();
    let blocks = values.len().div_ceil(BLOCK_ROWS);
    for block in values.chunks(BLOCK_ROWS).step_by((blocks / SAMPLE_BLOCKS).max(1)) {
        let pairs = EXPONENTS
            .iter()
            .flat_map(|exponent| (0..=*exponent).rev().filter_map(move |factor| Decimal::new(*exponent, factor)));
        let Some(best) = cheapest(&sample(block), pairs) else { continue };
        match votes.iter_mut().find(|(_, pair)| *pair == best) {
            Some((count, _)) => *count += 1,
            None => votes.push((1, best)),
        }
    }
    votes.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    votes.truncate(CANDIDATES_MAX);
    votes.into_iter().map(|(_, pair)| pair).collect()
}

/// Encode: with the cheapest of `candidates`; `None` when that does not pay.
pub(super) fn encode<F: Float>(block: &[F], candidates: &[Decimal]) -> Option<EncodedBlock> {
    let decimal = match candidates {
        [] => return None,
        [only] => *only,
        several => cheapest(&sample(block), several.iter().copied())?,
    };
    let mut buffer = [0i64; BLOCK_ROWS];
    let integers = &mut buffer[..block.len()];
    let fit = floats::fit(block, decimal, integers);
    if fit.exact == 0 {
        return None;
    }
    let width = bit_width(fit.max.wrapping_sub(fit.min) as u64);
    let bytes = PREFIX_BYTES + width * 128 + (block.len() - fit.exact) * (F::BYTES + 2);
    if !pays(bytes, size_of_val(block)) {
        return None;
    }
    let mut found: Vec<(u16, u64)> = Vec::new();
    if fit.exact < block.len() {
        for (position, (integer, value)) in integers.iter_mut().zip(block).enumerate() {
            if *integer == NOT_EXACT {
                *integer = fit.min;
                found.push((position as u16, value.bits()));
            }
        }
    }
    let mut payload = Vec::with_capacity(bytes);
    payload.extend_from_slice(&fit.min.to_le_bytes());
    payload.extend_from_slice(&[decimal.exponent(), decimal.factor(), 0, 0, 0, 0, 0, 0]);
    packed::encode(integers, fit.min, width, &mut payload);
    Exceptions::encode(&found, F::BYTES, &mut payload);
    Some(EncodedBlock { kind: KIND_DECIMAL, width, exceptions: found.len(), payload })
}

/// A decimal block, read in place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DecimalBlock<'a> {
    decimal: Decimal,
    base: i64,
    width: usize,
    packed: &'a [u8],
    exceptions: Exceptions<'a>,
}

impl<'a> DecimalBlock<'a> {
    /// The front of `bytes`; `None` when they are too short or say what can't be.
    pub(super) fn open<F: Float>(bytes: &'a [u8], width: usize, exceptions: usize) -> Option<Self> {
        let (prefix, rest) = bytes.split_at_checked(PREFIX_BYTES)?;
        let (base, decimal) = (u64_at(prefix, 0) as i64, Decimal::new(prefix[8], prefix[9])?);
        if width > WIDTH_MAX || base.unsigned_abs() > INTEGER_MAX as u64 {
            return None;
        }
        let (packed, rest) = rest.split_at_checked(width * 128)?;
        Some(DecimalBlock { decimal, base, width, packed, exceptions: Exceptions::open(rest, exceptions, F::BYTES)? })
    }

    /// Decode.
    pub(super) fn decode<F: Float>(&self, out: &mut [F; 1024]) {
        with_word!(self.width, W => {
            let mut words = MaybeUninit::uninit();
            floats::decimals::<W, F>(<W as Word>::unpack(self.width, self.packed, &mut words), self.base, self.decimal, out);
        });
        for (position, bits) in self.exceptions.iter() {
            out[position] = F::from_bits(bits);
        }
    }

    /// Compare: in the integer domain; exceptions one by one.
    pub(super) fn compare<F: Float>(&self, lo: i64, hi: i64, selection: &Selection, mask: &mut [u64; 16]) {
        *mask = [0; 16];
        if let Some((low, high)) = self.distances::<F>(lo, hi) {
            if selection.count() < FEW {
                selection.for_each(|row| {
                    let distance = packed::get(self.packed, self.width, row);
                    mask[row / 64] |= u64::from(low <= distance && distance <= high) << (row % 64);
                });
            } else {
                packed::compare(self.packed, self.width, &[(low, high)], mask);
            }
        }
        for (position, bits) in self.exceptions.iter() {
            let key = order_key(F::from_bits(bits).to_f64());
            let (word, bit) = (&mut mask[position / 64], position % 64);
            *word = *word & !(1 << bit) | u64::from(lo <= key && key <= hi) << bit;
        }
    }

    /// The distances from the base whose floats have keys in `lo..=hi`, inclusive; `None` when there are none.
    fn distances<F: Float>(&self, lo: i64, hi: i64) -> Option<(u64, u64)> {
        let low = self.first_reaching::<F>(lo);
        let end = hi.checked_add(1).map_or(self.end(), |above| self.first_reaching::<F>(above));
        (low < end).then(|| (low.wrapping_sub(self.base) as u64, (end - 1).wrapping_sub(self.base) as u64))
    }

    /// One more than the greatest integer that `width` bits can say.
    fn end(&self) -> i64 {
        self.base + (1i64 << self.width)
    }

    /// The least integer in `base..end` whose float has at least this key, or `end`.
    fn first_reaching<F: Float>(&self, key: i64) -> i64 {
        let (mut low, mut high) = (self.base, self.end());
        // The integer nearest to the bound is off by one at most, unless several integers share a float.
        let guess = self.decimal.nearest(value_of_key(key)).clamp(low, high - 1);
        let mut probes = [guess, guess - 1, guess + 1].into_iter();
        while low < high {
            let near = probes.find(|probe| (low..high).contains(probe));
            let probe = near.unwrap_or(low + (high - low) / 2);
            if order_key(self.decimal.value::<F>(probe).to_f64()) >= key {
                high = probe;
            } else {
                low = probe + 1;
            }
        }
        low
    }

    /// Take: few rows, each by itself.
    pub(super) fn take<F: Float>(&self, indices: &[u16], out: &mut [F]) {
        for (out, index) in out.iter_mut().zip(indices) {
            let distance = packed::get(self.packed, self.width, usize::from(*index));
            *out = self.decimal.value(self.base.wrapping_add(distance as i64));
        }
        self.exceptions.among(indices, |k, bits| out[k] = F::from_bits(bits));
    }
}
