//! JSON: an array of numbers, or of arrays of numbers that are all as long.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};

/// What was read.
pub(super) struct Array {
    /// Little-endian f32.
    pub elements: Vec<u8>,
    pub rows: u64,
    pub dimension: usize,
    /// Whether it is one array of numbers.
    pub is_single: bool,
}

/// Reads an array; what is wrong with it otherwise.
pub(super) fn read_array(text: &[u8]) -> Result<Array, String> {
    let mut reading = Reading::default();
    let mut decoder = serde_json::Deserializer::from_slice(text);
    let outcome = Level { reading: &mut reading, is_outer: true }.deserialize(&mut decoder).and_then(|_| decoder.end());
    outcome.map_err(|error| format!("not a JSON array of numbers, or of arrays of numbers: {error}"))?;
    let Reading { elements, rows, numbers, dimension } = reading;
    let is_single = rows == 0;
    let dimension = if is_single { numbers } else { dimension };
    Ok(Array { elements, rows: rows.max(1), dimension, is_single })
}

#[derive(Default)]
struct Reading {
    elements: Vec<u8>,
    /// Arrays within the outer one, and what each has.
    rows: u64,
    dimension: usize,
    /// Numbers in the outer one.
    numbers: usize,
}

/// An array, or what is in the outer one.
struct Level<'a> {
    reading: &'a mut Reading,
    is_outer: bool,
}

/// An item of an array.
struct Item<'a> {
    reading: &'a mut Reading,
    is_outer: bool,
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    /// How many items there are.
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, decoder: D) -> Result<usize, D::Error> {
        decoder.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<usize, A::Error> {
        let mut count = 0;
        while items.next_element_seed(Item { reading: self.reading, is_outer: self.is_outer })?.is_some() {
            count += 1;
        }
        Ok(count)
    }
}

impl<'de> DeserializeSeed<'de> for Item<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, decoder: D) -> Result<(), D::Error> {
        decoder.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Item<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_outer { "a number or an array of numbers" } else { "a number" })
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<(), E> {
        let narrow = number as f32;
        if !narrow.is_finite() {
            return Err(E::custom(format!("{number} is out of the range of f32")));
        }
        if self.is_outer && self.reading.rows > 0 {
            return Err(E::custom("a number among arrays"));
        }
        self.reading.numbers += usize::from(self.is_outer);
        self.reading.elements.extend_from_slice(&narrow.to_le_bytes());
        Ok(())
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<(), E> {
        self.visit_f64(number as f64)
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<(), E> {
        self.visit_f64(number as f64)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<(), A::Error> {
        if !self.is_outer {
            return Err(A::Error::custom("an array within the vectors: they hold numbers"));
        }
        if self.reading.numbers > 0 {
            return Err(A::Error::custom("an array among numbers"));
        }
        let row = self.reading.rows;
        let length = Level { reading: self.reading, is_outer: false }.visit_seq(items)?;
        let dimension = if row == 0 { length } else { self.reading.dimension };
        if length != dimension {
            return Err(A::Error::custom(format!(
                "vector {row} has {length} elements where the first has {dimension}"
            )));
        }
        self.reading.dimension = dimension;
        self.reading.rows += 1;
        Ok(())
    }
}
