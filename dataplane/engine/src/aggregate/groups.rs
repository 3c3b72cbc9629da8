//! The table of group keys: keys to dense numbers in order of first sight.
//!
//! Owns [`GroupTable`], which keeps keys packed into words where all have a fixed width, else in row encoding
//! (`rows`). Also used as the set behind count(distinct).
//!
//! Invariant: whatever way a key comes (a block of vectors, another table), it has one number.

use hidb::{BLOCK_ROWS, DataType, Lane, Result};

use super::byte_keys::ByteKeys;
use super::packed_keys::PackedKeys;
use crate::rows::{read_value, write_value};
use crate::vector::Vector;

#[derive(Debug)]
enum Keys {
    Packed(Box<PackedKeys>),
    Bytes(Box<ByteKeys>),
}

/// Distinct keys, numbered from 0.
#[derive(Debug)]
pub(crate) struct GroupTable {
    lanes: Vec<Lane>,
    keys: Keys,
}

impl GroupTable {
    /// A table for keys of these types.
    pub fn new(types: &[DataType]) -> Self {
        let keys =
            PackedKeys::new(types).map_or_else(|| Keys::Bytes(Box::default()), |keys| Keys::Packed(Box::new(keys)));
        GroupTable { lanes: types.iter().map(DataType::lane).collect(), keys }
    }

    pub fn len(&self) -> usize {
        match &self.keys {
            Keys::Packed(keys) => keys.len(),
            Keys::Bytes(keys) => keys.len(),
        }
    }

    pub fn memory_bytes(&self) -> usize {
        match &self.keys {
            Keys::Packed(keys) => keys.memory_bytes(),
            Keys::Bytes(keys) => keys.memory_bytes(),
        }
    }

    fn reset_vectors(&self, rows: usize) -> Vec<Vector> {
        let mut vectors = vec![Vector::default(); self.lanes.len()];
        vectors.iter_mut().zip(&self.lanes).for_each(|(vector, lane)| vector.reset(*lane, rows));
        vectors
    }

    /// The numbers of a block's keys, a vector per key; new ones are added.
    pub fn find_block(&mut self, vectors: &[&Vector], rows: usize, out: &mut [u32; BLOCK_ROWS]) {
        match &mut self.keys {
            Keys::Packed(keys) => keys.find_block(vectors, rows, out),
            Keys::Bytes(keys) => {
                let vectors: Vec<(&Vector, Lane)> = vectors.iter().copied().zip(self.lanes.iter().copied()).collect();
                keys.find_block(&vectors, rows, out);
            }
        }
    }

    /// The numbers here of the keys `first..first + count` of another table for the same types, at most a block.
    pub fn find_all_of(&mut self, other: &GroupTable, first: usize, count: usize, out: &mut [u32; BLOCK_ROWS]) {
        match (&mut self.keys, &other.keys) {
            (Keys::Packed(keys), Keys::Packed(other)) => keys.find_all_of(other, first, count, out),
            (Keys::Bytes(keys), Keys::Bytes(other)) => keys.find_all_of(other, first, count, out),
            _ => debug_assert!(false, "tables for the same types keep their keys alike"),
        }
    }

    /// Stores the keys `first..first + count`, at most a block, in one vector per key.
    pub fn read(&self, first: usize, count: usize, out: &mut [Vector]) -> Result<()> {
        out.iter_mut().zip(&self.lanes).for_each(|(vector, lane)| vector.reset(*lane, BLOCK_ROWS));
        match &self.keys {
            Keys::Packed(keys) => keys.read(first, count, out),
            Keys::Bytes(keys) => {
                for row in 0..count {
                    let mut key = keys.key(first + row);
                    for (vector, lane) in out.iter_mut().zip(&self.lanes) {
                        read_value(&mut key, *lane, row, vector)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Appends the row encoding of a key.
    pub fn write_key(&self, number: usize, out: &mut Vec<u8>) {
        match &self.keys {
            Keys::Bytes(keys) => out.extend_from_slice(keys.key(number)),
            Keys::Packed(keys) => {
                let mut vectors = self.reset_vectors(1);
                keys.read(number, 1, &mut vectors);
                vectors.iter().zip(&self.lanes).for_each(|(vector, lane)| write_value(vector, *lane, 0, out));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hidb::Scalar;
    use rand::seq::IndexedRandom;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use std::collections::HashMap;

    const TYPES: &[DataType] = &[
        DataType::Boolean,
        DataType::Int16,
        DataType::Int32,
        DataType::Date,
        DataType::Int64,
        DataType::Float64,
        DataType::Decimal { precision: 30, scale: 2 },
        DataType::Text,
    ];

    /// The number of the key with this row encoding; a new one is added.
    fn find_or_insert(table: &mut GroupTable, mut key: &[u8]) -> u32 {
        let mut vectors = table.reset_vectors(1);
        for (vector, lane) in vectors.iter_mut().zip(&table.lanes) {
            read_value(&mut key, *lane, 0, vector).unwrap();
        }
        let mut numbers = [0; BLOCK_ROWS];
        table.find_block(&vectors.iter().collect::<Vec<_>>(), 1, &mut numbers);
        numbers[0]
    }

    fn value(random: &mut ChaCha8Rng, data_type: &DataType, spread: i64) -> Scalar {
        if random.random_bool(0.05) {
            return Scalar::Null;
        }
        let number = random.random_range(-spread..=spread);
        match data_type {
            DataType::Boolean => Scalar::Bool(number > 0),
            DataType::Int16 => Scalar::I64(i64::from(number as i16)),
            DataType::Int32 | DataType::Date => Scalar::I64(i64::from(number as i32)),
            DataType::Int64 => Scalar::I64(number.wrapping_mul(0x1_0000_0000_0001)),
            DataType::Float64 => Scalar::F64(
                *[f64::NAN, 0.0, -0.0, f64::INFINITY, number as f64, number as f64 / 3.0].choose(random).unwrap(),
            ),
            DataType::Text => Scalar::Bytes(format!("text {number}").into_bytes()),
            _ => Scalar::I128(i128::from(number) << 60),
        }
    }

    #[test]
    fn keys_of_any_types_are_numbered_as_a_map_numbers_their_encodings() {
        for seed in 0..60 {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let types: Vec<DataType> =
                (0..random.random_range(1..=5)).map(|_| *TYPES.choose(&mut random).unwrap()).collect();
            let spread = *[0, 3, 50_000, i64::MAX / 2].choose(&mut random).unwrap();
            let mut table = GroupTable::new(&types);
            let mut expected: HashMap<Vec<u8>, u32> = HashMap::new();
            let mut encodings: Vec<Vec<u8>> = Vec::new();
            for _ in 0..random.random_range(1..20) {
                let rows = *[1, 100, BLOCK_ROWS].choose(&mut random).unwrap();
                let mut vectors = table.reset_vectors(BLOCK_ROWS);
                for (vector, data_type) in vectors.iter_mut().zip(&types) {
                    (0..rows).for_each(|row| vector.store(row, &value(&mut random, data_type, spread)));
                }
                let mut numbers = [0; BLOCK_ROWS];
                table.find_block(&vectors.iter().collect::<Vec<_>>(), rows, &mut numbers);
                for (row, number) in numbers[..rows].iter().enumerate() {
                    let mut key = Vec::new();
                    vectors.iter().zip(&types).for_each(|(v, t)| write_value(v, t.lane(), row, &mut key));
                    assert_eq!(*expected.entry(key.clone()).or_insert(*number), *number, "seed {seed}, {types:?}");
                }
                assert_eq!(table.len(), expected.len(), "seed {seed}, {types:?}");
            }
            encodings.resize(expected.len(), Vec::new());
            expected.iter().for_each(|(key, number)| encodings[*number as usize].clone_from(key));
            let mut other = GroupTable::new(&types);
            for (number, encoding) in encodings.iter().enumerate().rev() {
                let mut key = Vec::new();
                table.write_key(number, &mut key);
                assert_eq!(key, *encoding, "seed {seed}, {types:?}");
                assert_eq!(find_or_insert(&mut table, &key) as usize, number);
                if number % 3 == 0 {
                    find_or_insert(&mut other, &key);
                }
            }
            for first in (0..table.len()).step_by(700) {
                let count = (table.len() - first).min(700);
                let mut numbers = [0; BLOCK_ROWS];
                other.find_all_of(&table, first, count, &mut numbers);
                for (row, number) in numbers[..count].iter().enumerate() {
                    let mut key = Vec::new();
                    other.write_key(*number as usize, &mut key);
                    assert_eq!(key, encodings[first + row], "seed {seed}, {types:?}");
                }
            }
            assert_eq!(other.len(), table.len());
        }
    }

    #[test]
    fn dense_keys_have_one_number_while_pages_are_allocated_filled_and_made_whole() {
        for seed in 0..40 {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let data_type = *[DataType::Int64, DataType::Int32, DataType::Date].choose(&mut random).unwrap();
            let range = *[1000i64, 50_000, 600_000, 10_000_000].choose(&mut random).unwrap();
            let start = *[0, -range / 2, 1_000_000_000].choose(&mut random).unwrap();
            let ascending = random.random_bool(0.3);
            let mut table = GroupTable::new(&[data_type]);
            let mut expected: HashMap<Option<i64>, u32> = HashMap::new();
            for block in 0..300 {
                let rows = if random.random_bool(0.8) { BLOCK_ROWS } else { random.random_range(1..=BLOCK_ROWS) };
                let mut vector = Vector::default();
                vector.reset(Lane::I64, BLOCK_ROWS);
                let nulls = random.random_bool(0.2);
                let keys: Vec<Option<i64>> = (0..rows as i64)
                    .map(|row| match ascending {
                        _ if nulls && row % 50 == 3 => None,
                        true => Some(start + (block * 700 + row) % range),
                        false => Some(start + random.random_range(0..range)),
                    })
                    .collect();
                for (row, key) in keys.iter().enumerate() {
                    vector.store(row, &key.map_or(Scalar::Null, Scalar::I64));
                }
                let mut numbers = [0; BLOCK_ROWS];
                table.find_block(&[&vector], rows, &mut numbers);
                for (key, number) in keys.iter().zip(numbers) {
                    assert_eq!(*expected.entry(*key).or_insert(number), number, "seed {seed}, block {block}, {key:?}");
                }
                assert_eq!(table.len(), expected.len(), "seed {seed}, block {block}");
            }
            let mut vectors = [Vector::default()];
            for first in (0..table.len()).step_by(BLOCK_ROWS) {
                let count = (table.len() - first).min(BLOCK_ROWS);
                table.read(first, count, &mut vectors).unwrap();
                for row in 0..count {
                    let key = vectors[0].is_valid(row).then(|| vectors[0].i64s[row]);
                    assert_eq!(expected[&key] as usize, first + row, "seed {seed}");
                }
            }
        }
    }
}
