//! What vectors are made of, and rows of them in one buffer.
//!
//! Owns [`ElementType`], [`Elements`] (one slice of any type) and [`Rows`] (a checked matrix over a caller's buffer, in
//! place). Called by everything that takes vectors.
//!
//! Invariants
//! - [`Rows`] holds exactly `count * row length` elements, and its dimension is between 1 and [`DIMENSION_MAX`].
//! - Bits are packed eight a byte, least significant first; a row of `d` bits takes `ceil(d / 8)` bytes, and the spare
//!   bits of its last byte are ignored by every kernel.

use half::f16;

use crate::{COMPONENT_MAX, DIMENSION_MAX, Result, VectorError};

/// The type of a vector's components.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ElementType {
    /// 32-bit floats.
    F32 = 1,
    /// 16-bit floats (IEEE 754 binary16).
    F16 = 2,
    /// Signed bytes.
    I8 = 3,
    /// Single bits.
    Bit = 4,
}

impl ElementType {
    /// Bytes of one row of `dimension` components.
    pub fn row_bytes(self, dimension: usize) -> usize {
        match self {
            ElementType::F32 => dimension * 4,
            ElementType::F16 => dimension * 2,
            ElementType::I8 => dimension,
            ElementType::Bit => dimension.div_ceil(8),
        }
    }

    /// The type with this number in index objects.
    pub fn from_number(number: u8) -> Option<Self> {
        [ElementType::F32, ElementType::F16, ElementType::I8, ElementType::Bit]
            .into_iter()
            .find(|element| *element as u8 == number)
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for i8 {}
    impl Sealed for u8 {}
}

/// A type that rows are stored as: `f32`, [`f16`], `i8`, or `u8` for packed bits.
pub trait Element: sealed::Sealed + Copy + 'static {
    /// Its number.
    const TYPE: ElementType;
    /// Wraps a slice.
    fn wrap(elements: &[Self]) -> Elements<'_>;
}

macro_rules! element {
    ($type:ty, $variant:ident) => {
        impl Element for $type {
            const TYPE: ElementType = ElementType::$variant;
            fn wrap(elements: &[Self]) -> Elements<'_> {
                Elements::$variant(elements)
            }
        }
    };
}
element!(f32, F32);
element!(f16, F16);
element!(i8, I8);
element!(u8, Bit);

/// Components of any type, in the caller's buffer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Elements<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// 16-bit floats.
    F16(&'a [f16]),
    /// Signed bytes.
    I8(&'a [i8]),
    /// Bits, eight a byte.
    Bit(&'a [u8]),
}

impl<'a> Elements<'a> {
    /// Their type.
    pub fn element_type(&self) -> ElementType {
        match self {
            Elements::F32(_) => ElementType::F32,
            Elements::F16(_) => ElementType::F16,
            Elements::I8(_) => ElementType::I8,
            Elements::Bit(_) => ElementType::Bit,
        }
    }

    /// Length of the slice: components, or bytes of packed bits.
    pub fn len(&self) -> usize {
        match self {
            Elements::F32(e) => e.len(),
            Elements::F16(e) => e.len(),
            Elements::I8(e) => e.len(),
            Elements::Bit(e) => e.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn range(self, start: usize, len: usize) -> Elements<'a> {
        match self {
            Elements::F32(e) => Elements::F32(&e[start..start + len]),
            Elements::F16(e) => Elements::F16(&e[start..start + len]),
            Elements::I8(e) => Elements::I8(&e[start..start + len]),
            Elements::Bit(e) => Elements::Bit(&e[start..start + len]),
        }
    }
}

/// Rows of equal dimension, one after the other in one buffer.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    elements: Elements<'a>,
    dimension: usize,
    stride: usize,
    count: usize,
}

impl<'a> Rows<'a> {
    /// Rows of `dimension` components in `elements`.
    ///
    /// # Errors
    /// [`VectorError::Parameter`] for a dimension outside `1..=DIMENSION_MAX`, [`VectorError::Layout`] when the slice is
    /// not a whole number of rows.
    pub fn new(elements: Elements<'a>, dimension: usize) -> Result<Self> {
        if !(1..=DIMENSION_MAX).contains(&dimension) {
            return Err(VectorError::parameter("dimension", dimension, format!("1 to {DIMENSION_MAX}")));
        }
        let stride = match elements {
            Elements::Bit(_) => dimension.div_ceil(8),
            _ => dimension,
        };
        if !elements.len().is_multiple_of(stride) {
            return Err(VectorError::Layout {
                what: "vector rows",
                detail: format!("{} elements are not a whole number of rows of {stride}", elements.len()),
            });
        }
        Ok(Rows { elements, dimension, stride, count: elements.len() / stride })
    }

    /// Rows of a typed slice; see [`Rows::new`].
    pub fn of<E: Element>(elements: &'a [E], dimension: usize) -> Result<Self> {
        Self::new(E::wrap(elements), dimension)
    }

    /// Rows in bytes as they come from a drive or a frame, in place.
    ///
    /// # Errors
    /// As [`Rows::new`], and [`VectorError::Layout`] when the bytes are not aligned for the elements.
    pub fn from_bytes(element: ElementType, dimension: usize, bytes: &'a [u8]) -> Result<Self> {
        let elements = match element {
            ElementType::F32 => Elements::F32(aligned(bytes)?),
            ElementType::F16 => Elements::F16(aligned(bytes)?),
            ElementType::I8 => Elements::I8(aligned(bytes)?),
            ElementType::Bit => Elements::Bit(bytes),
        };
        Self::new(elements, dimension)
    }

    /// Number of rows.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Components of a row.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Type of the components.
    pub fn element_type(&self) -> ElementType {
        self.elements.element_type()
    }

    /// All elements.
    pub fn elements(&self) -> Elements<'a> {
        self.elements
    }

    /// Row `index`. Panics when there is none.
    pub fn row(&self, index: usize) -> Elements<'a> {
        self.elements.range(index * self.stride, self.stride)
    }

    /// Row `index` as bytes in memory order. Panics when there is none.
    pub fn row_bytes(&self, index: usize) -> &'a [u8] {
        fn bytes<E: Element>(elements: &[E]) -> &[u8] {
            // SAFETY: `Element` is sealed; none of its types has padding, and bytes need no alignment.
            unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(elements)) }
        }
        match self.row(index) {
            Elements::F32(row) => bytes(row),
            Elements::F16(row) => bytes(row),
            Elements::I8(row) => bytes(row),
            Elements::Bit(row) => row,
        }
    }

    /// Rows `start..start + count`. Panics when there are fewer.
    pub fn slice(&self, start: usize, count: usize) -> Rows<'a> {
        let elements = self.elements.range(start * self.stride, count * self.stride);
        Rows { elements, count, ..*self }
    }

    /// Row `index` as 32-bit floats (bits become -1 and 1, whose squared L2 distance is four times the Hamming
    /// distance). `out` is as long as a row has components.
    pub fn to_f32(&self, index: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.dimension);
        match self.row(index) {
            Elements::F32(row) => out.copy_from_slice(row),
            Elements::F16(row) => widen(row, out),
            Elements::I8(row) => out.iter_mut().zip(row).for_each(|(out, e)| *out = f32::from(*e)),
            Elements::Bit(row) => {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = if row[i / 8] >> (i % 8) & 1 == 1 { 1.0 } else { -1.0 };
                }
            }
        }
    }

    /// Checks that every component is a finite number, and at most [`COMPONENT_MAX`]. One pass over the bytes, at the speed of memory.
    ///
    /// # Errors
    /// [`VectorError::NotFinite`] with the first row and component that is not.
    pub fn check_finite(&self) -> Result<()> {
        let bad = match self.elements {
            Elements::F32(e) => first_bad_f32(e),
            Elements::F16(e) => first_bad_f16(e),
            Elements::I8(_) | Elements::Bit(_) => None,
        };
        match bad {
            Some(at) => Err(VectorError::NotFinite { row: at / self.dimension, component: at % self.dimension }),
            None => Ok(()),
        }
    }
}

/// `bytes` as elements of a type for which every bit pattern is a value.
fn aligned<E: Element>(bytes: &[u8]) -> Result<&[E]> {
    // SAFETY: `Element` is sealed, and all bits are valid for each of its types.
    let (before, elements, after) = unsafe { bytes.align_to::<E>() };
    if before.is_empty() && after.is_empty() {
        Ok(elements)
    } else {
        Err(VectorError::Layout {
            what: "vector bytes",
            detail: format!("{} bytes are not aligned, whole elements of {} bytes", bytes.len(), size_of::<E>()),
        })
    }
}

#[inline(always)]
fn widen_body(row: &[f16], out: &mut [f32]) {
    for (out, e) in out.iter_mut().zip(row) {
        *out = f16_to_f32(e.to_bits());
    }
}

/// The exact value of a half, written so that it vectorises: shift the fields into place and scale by 2^112 for the
/// difference of the biases. Infinity and NaN become large finite values, which [`Rows::check_finite`] has ruled out.
#[inline(always)]
fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    f32::from_bits(magnitude.to_bits() | u32::from(bits & 0x8000) << 16)
}

crate::simd::dispatch! {
    /// Writes the value of each half; both are equally long.
    fn widen(row: &[f16], out: &mut [f32]) = widen_body;
}

const BLOCK: usize = 4096;

fn first_bad_f32(elements: &[f32]) -> Option<usize> {
    // Magnitudes order like their bits, and infinity and NaN come last.
    let bad = |e: &f32| e.to_bits() & 0x7fff_ffff > COMPONENT_MAX.to_bits();
    elements.chunks(BLOCK).enumerate().find_map(|(block, chunk)| {
        // Counted without a branch, so that the loop vectorises; looked for only where there is one.
        let any = chunk.iter().fold(0u32, |n, e| n + u32::from(bad(e)));
        if any == 0 { None } else { chunk.iter().position(bad).map(|at| block * BLOCK + at) }
    })
}

fn first_bad_f16(elements: &[f16]) -> Option<usize> {
    let bad = |e: &f16| e.to_bits() & 0x7c00 == 0x7c00;
    elements.chunks(BLOCK).enumerate().find_map(|(block, chunk)| {
        let any = chunk.iter().fold(0u16, |n, e| n | u16::from(bad(e)));
        if any == 0 { None } else { chunk.iter().position(bad).map(|at| block * BLOCK + at) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_half_widens_exactly() {
        for bits in 0..=u16::MAX {
            let half = f16::from_bits(bits);
            if half.is_finite() {
                assert_eq!(f16_to_f32(bits).to_bits(), half.to_f32().to_bits(), "{bits:#x}");
            }
        }
    }

    #[test]
    fn the_first_bad_row_is_named() {
        let mut values = vec![1.0f32; 3 * 5000];
        assert_eq!(Rows::of(&values, 3).unwrap().check_finite(), Ok(()));
        values[3 * 4000 + 2] = f32::NEG_INFINITY;
        values[3 * 4500] = f32::NAN;
        let found = Rows::of(&values, 3).unwrap().check_finite();
        assert_eq!(found, Err(VectorError::NotFinite { row: 4000, component: 2 }));
        let long = Rows::of(&[1e16f32, -1e16, 1.0, 1.1e16], 2).unwrap().check_finite();
        assert_eq!(long, Err(VectorError::NotFinite { row: 1, component: 1 }));
        let halves: Vec<f16> = [1.0, 2.0, f32::NAN, 65504.0].map(f16::from_f32).to_vec();
        let found = Rows::of(&halves, 2).unwrap().check_finite();
        assert_eq!(found, Err(VectorError::NotFinite { row: 1, component: 0 }));
    }

    #[test]
    fn buffers_that_are_not_rows_are_refused() {
        assert!(matches!(Rows::of(&[0f32; 7], 3), Err(VectorError::Layout { .. })));
        assert!(matches!(Rows::of(&[0f32; 7], 0), Err(VectorError::Parameter { .. })));
        assert!(matches!(Rows::of(&[0i8; 7], DIMENSION_MAX + 1), Err(VectorError::Parameter { .. })));
        let words = [0u32; 4];
        // SAFETY: four words are sixteen bytes.
        let bytes = unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<u8>(), 16) };
        assert_eq!(Rows::from_bytes(ElementType::F32, 2, bytes).unwrap().count(), 2);
        assert!(matches!(Rows::from_bytes(ElementType::F32, 1, &bytes[1..13]), Err(VectorError::Layout { .. })));
        assert!(matches!(Rows::from_bytes(ElementType::F32, 1, &bytes[..13]), Err(VectorError::Layout { .. })));
        assert_eq!(Rows::from_bytes(ElementType::Bit, 12, &bytes[..6]).unwrap().count(), 3);
        assert_eq!(Rows::of(&[0f32; 0], 3).unwrap().count(), 0);
    }

    #[test]
    fn bits_become_signs() {
        let rows = Rows::of(&[0b101u8, 0b010], 3).unwrap();
        let mut out = [0.0; 3];
        rows.to_f32(0, &mut out);
        assert_eq!(out, [1.0, -1.0, 1.0]);
        rows.to_f32(1, &mut out);
        assert_eq!(out, [-1.0, 1.0, -1.0]);
    }
}
