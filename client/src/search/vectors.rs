//! Query vectors, and how they become elements of a column.
//!
//! Owns [`QueryVector`]. Called by [`super::request`].
//!
//! Invariants
//! - What goes to the cell has the column's element type and dimension, and is finite.
//! - A component that the column's type can't hold is an error that names the vector; others are rounded to the nearest
//!   that it can. Bits are 0 or 1 and nothing between.
//! - Unsigned bytes are numbers, but for a column of bits whose packed vectors have as many: then they are these.

use std::io::Read;

use arrow_array::types::{ArrowPrimitiveType, Float16Type};
use hidb::{DataType, Error, ErrorCode, Result, VectorElement};

use crate::input::arrays::{ArrayElement, ArrayReader};

/// Rows of an array that are read at a time.
const ROWS_AT_A_TIME: usize = 1024;

/// IEEE 754 binary16, as Arrow has it.
type F16 = <Float16Type as ArrowPrimitiveType>::Native;

/// A vector whose neighbours are looked for. Its components are converted to the element type of the column.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryVector {
    element: ArrayElement,
    elements: Vec<u8>,
}

impl QueryVector {
    /// Little-endian elements of this type.
    pub fn of_elements(element: ArrayElement, elements: impl Into<Vec<u8>>) -> Self {
        QueryVector { element, elements: elements.into() }
    }

    /// The vectors of an array, from where its reader stands: at most `vectors_max` of them.
    ///
    /// # Errors
    /// The reader's; `LimitExceeded` when they take more than `bytes_max`.
    pub fn read<R: Read>(reader: &mut ArrayReader<R>, vectors_max: usize, bytes_max: usize) -> Result<Vec<Self>> {
        let (mut vectors, mut elements) = (Vec::new(), Vec::new());
        let (row_bytes, element) = (reader.row_bytes(), reader.element());
        loop {
            elements.clear();
            let wanted = ROWS_AT_A_TIME.min(vectors_max - vectors.len());
            if wanted == 0 || reader.read_rows(wanted, &mut elements)? == 0 {
                return Ok(vectors);
            }
            vectors.extend(elements.chunks_exact(row_bytes).map(|row| QueryVector::of_elements(element, row)));
            if vectors.len().saturating_mul(row_bytes) > bytes_max {
                let text = format!("more than {} MiB of vectors: search in parts", bytes_max >> 20);
                return Err(Error::new(ErrorCode::LimitExceeded, text));
            }
        }
    }

    /// Appends its elements as those of a column of this type, little-endian. `query` is its number, for errors.
    pub(super) fn encode(&self, query: usize, to: &DataType, into: &mut Vec<u8>) -> Result<()> {
        let DataType::Vector { dimension, element } = *to else {
            let text = format!("a column of type {to} has no neighbours: name one of vectors");
            return Err(Error::new(ErrorCode::TypeMismatch, text));
        };
        if element == VectorElement::Bit && self.element == ArrayElement::U8 {
            let spare = element.spare_bits(dimension);
            if self.elements.len() == element.row_bytes(dimension) {
                if self.elements.last().is_some_and(|last| last & spare != 0) {
                    let text =
                        format!("the last byte of query {query} has bits beyond the {dimension} of {to}: clear them");
                    return Err(Error::new(ErrorCode::InvalidValue, text));
                }
                into.extend_from_slice(&self.elements);
                return Ok(());
            }
        }
        let numbers = self.element.numbers(&self.elements);
        let has_rest = !self.elements.len().is_multiple_of(self.element.byte_width());
        if numbers.len() != dimension as usize || has_rest {
            let text = format!(
                "query {query} has {} components where the column is {to}: give vectors of {dimension}",
                numbers.len()
            );
            return Err(Error::new(ErrorCode::TypeMismatch, text));
        }
        let first_byte = into.len();
        for (index, number) in numbers.into_iter().enumerate() {
            let fits = match element {
                VectorElement::F32 => append(number.is_finite(), number.to_le_bytes(), into),
                VectorElement::F16 => {
                    let half = F16::from_f32(number);
                    append(half.is_finite(), half.to_le_bytes(), into)
                }
                VectorElement::I8 => {
                    let whole = number.round_ties_even();
                    append((-128.0..=127.0).contains(&whole), (whole as i8).to_le_bytes(), into)
                }
                VectorElement::Bit => {
                    if index % 8 == 0 {
                        into.push(0);
                    }
                    into[first_byte + index / 8] |= u8::from(number == 1.0) << (index % 8);
                    number == 0.0 || number == 1.0
                }
            };
            if !fits {
                let text = format!("component {index} of query {query} is {number}: a {to} has no such value");
                return Err(Error::new(ErrorCode::InvalidValue, text));
            }
        }
        Ok(())
    }
}

/// Appends an element, if there is one.
fn append<const BYTES: usize>(exists: bool, element: [u8; BYTES], into: &mut Vec<u8>) -> bool {
    if exists {
        into.extend_from_slice(&element);
    }
    exists
}

impl From<&[f32]> for QueryVector {
    fn from(components: &[f32]) -> Self {
        let elements = components.iter().flat_map(|component| component.to_le_bytes());
        Self::of_elements(ArrayElement::F32, elements.collect::<Vec<u8>>())
    }
}

impl From<Vec<f32>> for QueryVector {
    fn from(components: Vec<f32>) -> Self {
        components.as_slice().into()
    }
}

impl<const DIMENSION: usize> From<[f32; DIMENSION]> for QueryVector {
    fn from(components: [f32; DIMENSION]) -> Self {
        components.as_slice().into()
    }
}

impl From<&[i8]> for QueryVector {
    fn from(components: &[i8]) -> Self {
        let elements = components.iter().map(|component| *component as u8);
        Self::of_elements(ArrayElement::I8, elements.collect::<Vec<u8>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(vector: &QueryVector, to: &str) -> Result<Vec<u8>> {
        let mut elements = Vec::new();
        vector.encode(7, &to.parse().unwrap(), &mut elements).map(|()| elements)
    }

    #[test]
    fn components_become_elements_of_the_column() {
        let vector = QueryVector::from([1.0, -2.5, 127.4]);
        let numbers = |element: ArrayElement, to: &str| element.numbers(&encoded(&vector, to).unwrap());
        assert_eq!(numbers(ArrayElement::F32, "vector(3,f32)"), [1.0, -2.5, 127.4]);
        assert_eq!(numbers(ArrayElement::F16, "vector(3,f16)"), [1.0, -2.5, 127.375]);
        assert_eq!(numbers(ArrayElement::I8, "vector(3,i8)"), [1.0, -2.0, 127.0]);
        let bytes = QueryVector::of_elements(ArrayElement::U8, [1, 2, 127]);
        assert_eq!(encoded(&bytes, "vector(3,i8)").unwrap(), [1, 2, 127]);
        assert_eq!(encoded(&QueryVector::from(&[-1i8, 5][..]), "vector(2,i8)").unwrap(), [255, 5]);
    }

    #[test]
    fn arrays_are_read_up_to_their_limits() {
        let text = "[[1, 2], [3, 4], [5, 6]]";
        let reader = || ArrayReader::new("x", text.as_bytes(), None).unwrap();
        let all = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]].map(QueryVector::from);
        assert_eq!(QueryVector::read(&mut reader(), usize::MAX, 24).unwrap(), all);
        let mut one = reader();
        assert_eq!(QueryVector::read(&mut one, 2, 24).unwrap(), all[..2]);
        assert_eq!(QueryVector::read(&mut one, 2, 24).unwrap(), all[2..]);
        assert_eq!(QueryVector::read(&mut reader(), 3, 23).unwrap_err().code, ErrorCode::LimitExceeded);
    }

    #[test]
    fn bits_come_packed_or_as_zeros_and_ones() {
        let packed = QueryVector::of_elements(ArrayElement::U8, [0b1000_0101, 0b10]);
        assert_eq!(encoded(&packed, "vector(10,bit)").unwrap(), [0b1000_0101, 0b10]);
        let numbers = QueryVector::from([1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0]);
        assert_eq!(encoded(&numbers, "vector(10,bit)").unwrap(), [0b1000_0101, 0b10]);
        let bytes = QueryVector::of_elements(ArrayElement::U8, [1, 0, 1, 0, 0, 0, 0, 1, 0, 1]);
        assert_eq!(encoded(&bytes, "vector(10,bit)").unwrap(), [0b1000_0101, 0b10]);
        // A vector after another begins with a byte of its own.
        let mut both = vec![7];
        numbers.encode(0, &"vector(10,bit)".parse().unwrap(), &mut both).unwrap();
        assert_eq!(both, [7, 0b1000_0101, 0b10]);
        let code = |vector: &QueryVector, to: &str| encoded(vector, to).unwrap_err().code;
        assert_eq!(code(&packed, "vector(9,bit)"), ErrorCode::InvalidValue);
        assert_eq!(code(&packed, "vector(17,bit)"), ErrorCode::TypeMismatch);
        assert_eq!(code(&QueryVector::from([0.5]), "vector(1,bit)"), ErrorCode::InvalidValue);
        assert_eq!(
            code(&QueryVector::of_elements(ArrayElement::U8, [2, 0, 0]), "vector(3,bit)"),
            ErrorCode::InvalidValue
        );
    }

    #[test]
    fn what_the_column_cannot_hold_is_refused_with_the_query_it_is_in() {
        for (vector, to, code, says) in [
            (QueryVector::from([1.0, 2.0]), "vector(3,f32)", ErrorCode::TypeMismatch, "query 7 has 2 components"),
            (QueryVector::from(vec![]), "vector(3,f32)", ErrorCode::TypeMismatch, "query 7 has 0 components"),
            (
                QueryVector::of_elements(ArrayElement::F16, [0; 7]),
                "vector(3,f32)",
                ErrorCode::TypeMismatch,
                "query 7 has 3 components",
            ),
            (QueryVector::from([1.0]), "text", ErrorCode::TypeMismatch, "name one of vectors"),
            (
                QueryVector::from([0.0, f32::NAN]),
                "vector(2,f32)",
                ErrorCode::InvalidValue,
                "component 1 of query 7 is NaN",
            ),
            (QueryVector::from([f32::INFINITY]), "vector(1,f32)", ErrorCode::InvalidValue, "query 7 is inf"),
            (QueryVector::from([f32::NAN]), "vector(1,i8)", ErrorCode::InvalidValue, "query 7 is NaN"),
            (QueryVector::from([65_520.0]), "vector(1,f16)", ErrorCode::InvalidValue, "query 7 is 65520"),
            (QueryVector::from([127.6]), "vector(1,i8)", ErrorCode::InvalidValue, "query 7 is 127.6"),
            (QueryVector::from([-129.0]), "vector(1,i8)", ErrorCode::InvalidValue, "query 7 is -129"),
        ] {
            let error = encoded(&vector, to).unwrap_err();
            assert!(error.code == code && error.message.contains(says), "{to}: {error}");
        }
    }

    proptest! {
        #[test]
        fn elements_of_the_columns_own_type_stay_as_they_are(bytes in proptest::collection::vec(any::<u8>(), 8..9)) {
            for (element, to) in [
                (ArrayElement::F32, "vector(2,f32)"),
                (ArrayElement::F16, "vector(4,f16)"),
                (ArrayElement::I8, "vector(8,i8)"),
            ] {
                let is_finite = element.numbers(&bytes).iter().all(|number| number.is_finite());
                let outcome = encoded(&QueryVector::of_elements(element, bytes.clone()), to);
                prop_assert_eq!(outcome.ok(), is_finite.then(|| bytes.clone()));
            }
        }
    }
}
