//! Floats: order keys, decimal integers to floats and back, joining split bits.
//!
//! Owns [`Float`] and the arithmetic of ALP ([`Decimal`]). Plain loops; the compiler vectorises them under
//! each level's target features. Called by `encoding::alp`, `encoding::plain` and the chunk's filter.
//!
//! Invariants
//! - [`Decimal::value`] never decreases from one integer to the next within [`INTEGER_MAX`]: it multiplies by
//!   positive numbers and rounding keeps order. A block of the greatest width reaches beyond, to 3 * 2^51, where the bits
//!   that [`MAGIC`] is added to still make floats that ascend. Comparing in the integer domain rests on this.
//! - Integers become floats by adding to the bits of [`MAGIC`], not by a conversion instruction: AVX2 has none
//!   for 64 bits, and any integer whatever gives the same bits at every level.
//!
//! Cost sketch: a widening, an integer addition, a subtraction, two products, a store: about 6 instructions per
//! 8 values at AVX-512.

use super::{Word, dispatch};

/// 2^52 + 2^51: a float near it has its integer part in its low bits.
const MAGIC: f64 = 6_755_399_441_055_744.0;
/// The greatest magnitude of an integer that stands for a float (2^51: where [`MAGIC`] still rounds to integers).
pub(crate) const INTEGER_MAX: i64 = 1 << 51;
/// The greatest power of ten that [`Decimal`] multiplies by.
pub(crate) const EXPONENT_MAX: u8 = 18;

static TENS: [f64; EXPONENT_MAX as usize + 1] =
    [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18];
static TENTHS: [f64; EXPONENT_MAX as usize + 1] = [
    1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11, 1e-12, 1e-13, 1e-14, 1e-15, 1e-16, 1e-17,
    1e-18,
];

/// A float as Arrow stores it. Arithmetic is done in 64 bits, where an integer and one power of ten nearly always
/// give back a 32-bit float.
pub(crate) trait Float: Copy + Default + 'static {
    /// Bytes of a value.
    const BYTES: usize;
    /// The nearest.
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
    /// The low bits of `bits`, as they are.
    fn from_bits(bits: u64) -> Self;
    fn bits(self) -> u64;
}

impl Float for f64 {
    const BYTES: usize = 8;
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        f64::from_bits(bits)
    }
    #[inline(always)]
    fn bits(self) -> u64 {
        self.to_bits()
    }
}

impl Float for f32 {
    const BYTES: usize = 4;
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        f32::from_bits(bits as u32)
    }
    #[inline(always)]
    fn bits(self) -> u64 {
        self.to_bits().into()
    }
}

/// Floats as integers: `value = integer * 10^factor * 10^-exponent`, each product rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decimal {
    exponent: u8,
    factor: u8,
}

/// The four constants of a [`Decimal`].
#[derive(Clone, Copy)]
struct Powers {
    encode: [f64; 2],
    decode: [f64; 2],
}

impl Powers {
    #[inline(always)]
    fn value<F: Float>(self, integer: i64) -> F {
        let integer = f64::from_bits(MAGIC.to_bits().wrapping_add(integer as u64)) - MAGIC;
        F::from_f64(integer * self.decode[0] * self.decode[1])
    }

    #[inline(always)]
    fn nearest(self, value: f64) -> i64 {
        (value * self.encode[0] * self.encode[1] + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i64
    }
}

impl Decimal {
    /// `None` unless `factor <= exponent <= EXPONENT_MAX`.
    pub(crate) fn new(exponent: u8, factor: u8) -> Option<Self> {
        (factor <= exponent && exponent <= EXPONENT_MAX).then_some(Decimal { exponent, factor })
    }

    pub(crate) fn exponent(self) -> u8 {
        self.exponent
    }

    pub(crate) fn factor(self) -> u8 {
        self.factor
    }

    #[inline(always)]
    fn powers(self) -> Powers {
        let (exponent, factor) = (usize::from(self.exponent), usize::from(self.factor));
        Powers { encode: [TENS[exponent], TENTHS[factor]], decode: [TENS[factor], TENTHS[exponent]] }
    }

    /// The float that `integer` stands for.
    #[inline]
    pub(crate) fn value<F: Float>(self, integer: i64) -> F {
        self.powers().value(integer)
    }

    /// An integer whose float is near `value`; arbitrary when there is none within [`INTEGER_MAX`].
    #[inline]
    pub(crate) fn nearest(self, value: f64) -> i64 {
        self.powers().nearest(value)
    }
}

/// How well a [`Decimal`] fits some floats.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fit {
    /// Values that come back bit by bit.
    pub(crate) exact: usize,
    /// Least integer among those; [`i64::MAX`] when there are none.
    pub(crate) min: i64,
    /// Greatest integer among those; [`i64::MIN`] when there are none.
    pub(crate) max: i64,
}

#[inline(always)]
fn fit_body<F: Float>(values: &[F], decimal: Decimal, integers: &mut [i64]) -> Fit {
    let powers = decimal.powers();
    let (mut exact, mut min, mut max) = (0u64, i64::MAX, i64::MIN);
    for (slot, value) in integers.iter_mut().zip(values) {
        let integer = powers.nearest(value.to_f64());
        let within = integer.wrapping_add(INTEGER_MAX) as u64 <= 2 * INTEGER_MAX as u64;
        let same = powers.value::<F>(integer).bits() == value.bits();
        let hit = within & same;
        exact += u64::from(hit);
        min = min.min(if hit { integer } else { i64::MAX });
        max = max.max(if hit { integer } else { i64::MIN });
        *slot = if hit { integer } else { NOT_EXACT };
    }
    Fit { exact: exact as usize, min, max }
}

/// What [`fit`] writes for a value that does not come back.
pub(crate) const NOT_EXACT: i64 = i64::MIN;

#[inline(always)]
fn decimals_body<W: Word, F: Float>(words: &[W; 1024], base: i64, decimal: Decimal, out: &mut [F; 1024]) {
    let powers = decimal.powers();
    for (out, word) in out.iter_mut().zip(words) {
        let distance: u64 = (*word).into();
        *out = powers.value(base.wrapping_add(distance as i64));
    }
}

#[inline(always)]
fn join_body<W: Word, F: Float>(codes: &[u8; 1024], heads: &[u64; 8], tails: &[W; 1024], out: &mut [F; 1024]) {
    for ((out, code), tail) in out.iter_mut().zip(codes).zip(tails) {
        let tail: u64 = (*tail).into();
        *out = F::from_bits(heads[usize::from(*code & 7)] | tail);
    }
}

#[inline(always)]
fn float_keys_body<F: Float>(values: &[F; 1024], out: &mut [u64; 1024]) {
    for (out, value) in out.iter_mut().zip(values) {
        *out = order_key(value.to_f64()) as u64;
    }
}

/// A key whose signed order is [`hidb::types::compare_f64`]: equal values (and all NaNs) have equal
/// keys, NaN has the greatest.
#[inline(always)]
pub fn order_key(value: f64) -> i64 {
    // Adding +0.0 turns -0.0 into +0.0 and changes no other number.
    let bits = (value + 0.0).to_bits() as i64;
    let key = bits ^ ((bits >> 63) as u64 >> 1) as i64;
    if value.is_nan() { i64::MAX } else { key }
}

/// The value whose [`order_key`] is `key`; of NaNs, [`f64::NAN`].
pub fn value_of_key(key: i64) -> f64 {
    if key == i64::MAX {
        return f64::NAN;
    }
    f64::from_bits((key ^ ((key >> 63) as u64 >> 1) as i64) as u64)
}

dispatch! {
    /// Writes the integer of each value, or [`NOT_EXACT`]. `integers` is as long as `values`.
    pub(crate) fn fit<F: Float>(values: &[F], decimal: Decimal, integers: &mut [i64]) -> Fit = fit_body;
}
dispatch! {
    /// `out[i]` is the float of `base + words[i]`.
    pub(crate) fn decimals<W: Word, F: Float>(
        words: &[W; 1024], base: i64, decimal: Decimal, out: &mut [F; 1024]
    ) = decimals_body;
}
dispatch! {
    /// `out[i]` has the bits `heads[codes[i] % 8] | tails[i]`.
    pub(crate) fn join<W: Word, F: Float>(
        codes: &[u8; 1024], heads: &[u64; 8], tails: &[W; 1024], out: &mut [F; 1024]
    ) = join_body;
}
dispatch! {
    /// [`order_key`] of each value (32-bit floats widened).
    pub(crate) fn float_keys<F: Float>(values: &[F; 1024], out: &mut [u64; 1024]) = float_keys_body;
}
