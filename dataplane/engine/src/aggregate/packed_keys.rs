//! Distinct keys of fixed width, packed into words.
//!
//! Owns [`PackedKeys`]: integers, dates, decimals, floats and booleans, alone or together. Word 0 begins with a bit
//! per key that says NULL, followed by what is narrower than 64 bits; wider keys have words of their own. A single
//! 64-bit key is its own word, and NULL has a number beside the table.
//!
//! Invariants
//! - Equal keys have equal words: floats are made canonical, the value bits of NULL are 0.
//! - A key of one word is hashed by a bijection, so that equal hashes are equal keys; more words are compared.
//!
//! Cost: 8 bytes a word and key besides the slots; lookups see [`Slots`].

use heliostat_segment::dispatch;
use hidb::{BLOCK_ROWS, DataType, Lane};

use super::near::NearKeys;
use super::paged::Paged;
use super::slots::{NOT_FOUND, Slots, hash_seed, mix};
use crate::rows::canonical;
use crate::vector::{Bits, Vector, bit, set_bit};

/// The most keys whose NULL bits leave room in word 0.
const KEYS_MAX: usize = 32;

/// Where a key lies in the words.
#[derive(Clone, Copy, Debug)]
struct Field {
    lane: Lane,
    word: usize,
    shift: u32,
    /// 1 to 64, or 128 for two words.
    bits: u32,
}

/// Bits of a value of this type.
fn bits_of(data_type: &DataType) -> Option<u32> {
    Some(match (data_type.lane(), data_type) {
        (Lane::Bytes, _) => return None,
        (Lane::Bool, _) => 1,
        (Lane::I64, DataType::Int16) => 16,
        (Lane::I64, DataType::Int32 | DataType::Date) => 32,
        (Lane::I64 | Lane::F64, _) => 64,
        (Lane::I128, _) => 128,
    })
}

type Words = Box<[u64; BLOCK_ROWS]>;

/// Distinct keys of fixed width, numbered from 0.
#[derive(Debug)]
pub(super) struct PackedKeys {
    fields: Vec<Field>,
    /// A single 64-bit key: word 0 is its value and has no NULL bit.
    lone: bool,
    /// The number of NULL, for a lone key.
    null: Option<u32>,
    /// The words of every key.
    words: Vec<Paged<u64>>,
    slots: Slots,
    near: NearKeys,
    /// Words and hashes of the block at hand.
    block: Vec<Words>,
    hashes: Words,
    /// Rows not found in `near`, and their numbers.
    missing: Box<[u16; BLOCK_ROWS]>,
    numbers: Box<[u32; BLOCK_ROWS]>,
}

#[inline(always)]
fn hash_one_body(words: &[u64], seed: u64, hashes: &mut [u64]) {
    for (hash, word) in hashes.iter_mut().zip(words) {
        *hash = mix(*word ^ seed);
    }
}

#[inline(always)]
fn hash_more_body(words: &[u64], hashes: &mut [u64]) {
    for (hash, word) in hashes.iter_mut().zip(words) {
        *hash = mix(hash.rotate_left(23) ^ *word);
    }
}

dispatch! {
    /// Hashes the only word, or the first one, of each key.
    fn hash_one(words: &[u64], seed: u64, hashes: &mut [u64]) = hash_one_body;
}
dispatch! {
    /// Adds another word of each key to its hash.
    fn hash_more(words: &[u64], hashes: &mut [u64]) = hash_more_body;
}

impl PackedKeys {
    /// `None` if a key's width is not fixed.
    pub fn new(types: &[DataType]) -> Option<Self> {
        if types.is_empty() || types.len() > KEYS_MAX {
            return None;
        }
        let widths = types.iter().map(bits_of).collect::<Option<Vec<u32>>>()?;
        let lone = widths == [64];
        let mut fields: Vec<Field> = Vec::with_capacity(types.len());
        let (mut word, mut used, mut words) = (0, if lone { 0 } else { types.len() as u32 }, 1);
        for (data_type, bits) in types.iter().zip(&widths) {
            let lane = data_type.lane();
            if lone {
                fields.push(Field { lane, word: 0, shift: 0, bits: 64 });
            } else if *bits >= 64 {
                fields.push(Field { lane, word: words, shift: 0, bits: *bits });
                words += *bits as usize / 64;
            } else {
                if used + bits > 64 {
                    (word, used) = (words, 0);
                    words += 1;
                }
                fields.push(Field { lane, word, shift: used, bits: *bits });
                used += bits;
            }
        }
        Some(PackedKeys {
            fields,
            lone,
            null: None,
            words: vec![Paged::default(); words],
            slots: Slots::default(),
            near: NearKeys::default(),
            missing: Box::new([0; BLOCK_ROWS]),
            numbers: Box::new([0; BLOCK_ROWS]),
            block: (0..words).map(|_| Box::new([0; BLOCK_ROWS])).collect(),
            hashes: Box::new([0; BLOCK_ROWS]),
        })
    }

    pub fn len(&self) -> usize {
        self.words[0].len()
    }

    pub fn memory_bytes(&self) -> usize {
        self.slots.memory_bytes() + self.near.memory_bytes() + self.words.iter().map(Paged::memory_bytes).sum::<usize>()
    }

    fn pack(&mut self, vectors: &[&Vector], rows: usize) {
        if !self.lone {
            self.block.iter_mut().for_each(|words| words[..rows].fill(0));
        }
        for (index, (field, vector)) in self.fields.iter().zip(vectors).enumerate() {
            let words = &mut self.block[field.word][..rows];
            let mask = if field.bits >= 64 { u64::MAX } else { (1 << field.bits) - 1 };
            match field.lane {
                _ if self.lone && field.lane == Lane::I64 => {
                    words.iter_mut().zip(&vector.i64s).for_each(|(word, value)| *word = *value as u64);
                }
                Lane::I64 => {
                    for (word, value) in words.iter_mut().zip(&vector.i64s) {
                        *word |= (*value as u64 & mask) << field.shift;
                    }
                }
                Lane::Bool => {
                    for (row, word) in words.iter_mut().enumerate() {
                        *word |= u64::from(bit(&vector.bits, row)) << field.shift;
                    }
                }
                Lane::F64 => {
                    for (word, value) in words.iter_mut().zip(&vector.f64s) {
                        *word = canonical(*value).to_bits();
                    }
                }
                Lane::I128 => {
                    for row in 0..rows {
                        let value = vector.integer(row);
                        self.block[field.word][row] = value as u64;
                        self.block[field.word + 1][row] = (value >> 64) as u64;
                    }
                }
                Lane::Bytes => {}
            }
            if vector.has_nulls && !self.lone {
                for row in (0..rows).filter(|row| !vector.is_valid(*row)) {
                    self.block[field.word][row] &= !(mask << field.shift);
                    if field.bits == 128 {
                        self.block[field.word + 1][row] = 0;
                    }
                    self.block[0][row] |= 1 << index;
                }
            }
        }
    }

    fn hash(&mut self, rows: usize) {
        hash_one(&self.block[0][..rows], hash_seed(), &mut self.hashes[..rows]);
        for words in &self.block[1..] {
            hash_more(&words[..rows], &mut self.hashes[..rows]);
        }
    }

    /// The numbers of a block's keys; new ones are added.
    pub fn find_block(&mut self, vectors: &[&Vector], rows: usize, out: &mut [u32; BLOCK_ROWS]) {
        self.pack(vectors, rows);
        self.find_packed(rows, out, vectors.first().filter(|vector| self.lone && vector.has_nulls).map(|v| &v.valid));
    }

    /// Finds the packed keys; those of a lone key that are not `valid` are NULL.
    fn find_packed(&mut self, rows: usize, out: &mut [u32; BLOCK_ROWS], valid: Option<&Bits>) {
        let near = if self.words.len() == 1 {
            self.near.probe(&self.block[0][..rows], self.words[0].len(), out)
        } else {
            None
        };
        if near == Some(0) && valid.is_none() {
            self.walk();
            self.near.judge(0);
            return;
        }
        if let Some(valid) = valid {
            // NULL rows have arbitrary values: any number keeps them from being looked up.
            (0..rows).filter(|row| !bit(valid, *row)).for_each(|row| out[row] = 0);
        }
        if near.is_some() {
            self.find_missing(rows, out);
        } else {
            self.hash(rows);
            self.slots.first_probe(&self.hashes, rows, out);
            if self.words.len() > 1 {
                self.verify(rows, out);
            }
            if let Some(valid) = valid {
                (0..rows).filter(|row| !bit(valid, *row)).for_each(|row| out[row] = 0);
            }
            for (row, number) in out[..rows].iter_mut().enumerate() {
                if *number == NOT_FOUND {
                    *number = self.find_or_insert(row, row);
                }
            }
        }
        if let Some(valid) = valid {
            for row in (0..rows).filter(|row| !bit(valid, *row)) {
                out[row] = self.null_number();
            }
        }
    }

    /// Looks up the rows that have no number yet, for keys of one word.
    fn find_missing(&mut self, rows: usize, out: &mut [u32; BLOCK_ROWS]) {
        self.walk();
        let seed = hash_seed();
        let mut missing = 0;
        for (row, (number, word)) in out[..rows].iter_mut().zip(self.block[0].iter()).enumerate() {
            if *number != NOT_FOUND {
                continue;
            }
            match self.near.whole_place(*word) {
                Some(place) => {
                    if *place == 0 {
                        self.words[0].push(*word);
                        *place = self.words[0].len() as u32;
                    }
                    *number = *place - 1;
                }
                None => {
                    self.hashes[missing] = mix(*word ^ seed);
                    self.missing[missing] = row as u16;
                    missing += 1;
                }
            }
        }
        // Brings the slots of new keys into the cache, too.
        self.slots.first_probe(&self.hashes, missing, &mut self.numbers);
        let before = self.words[0].len();
        for k in 0..missing {
            let row = usize::from(self.missing[k]) & (BLOCK_ROWS - 1);
            out[row] = match self.numbers[k] {
                NOT_FOUND => self.find_or_insert(row, k),
                number => number,
            };
            self.near.learn(self.block[0][row], out[row]);
        }
        self.near.judge(missing - (self.words[0].len() - before).min(missing));
    }

    /// Lets `near` see some of the table's keys.
    fn walk(&mut self) {
        let keys = self.words[0].len();
        let walk = self.near.walk(keys);
        let null = self.null.map(|null| null as usize);
        for (number, word) in walk.clone().zip(self.words[0].range(walk.start, walk.len())) {
            // NULL's word is not its key.
            if Some(number) != null {
                self.near.fill(*word, number as u32);
            }
        }
        if !walk.is_empty() {
            self.near.end_walk(keys);
        }
    }

    /// Forgets numbers whose words are not those of the row.
    fn verify(&self, rows: usize, out: &mut [u32; BLOCK_ROWS]) {
        for (words, block) in self.words.iter().zip(&self.block) {
            for (number, word) in out[..rows].iter_mut().zip(block.iter()) {
                if *number != NOT_FOUND && words[*number as usize] != *word {
                    *number = NOT_FOUND;
                }
            }
        }
    }

    fn null_number(&mut self) -> u32 {
        if let Some(number) = self.null {
            return number;
        }
        let number = self.len() as u32;
        self.words[0].push(0);
        self.null = Some(number);
        number
    }

    /// The number of a row's key, whose hash is the one at `hash`.
    #[inline]
    fn find_or_insert(&mut self, row: usize, hash: usize) -> u32 {
        let Self { words, slots, block, hashes, .. } = self;
        let is_meant = |number: u32| {
            words.len() == 1
                || words.iter().zip(block.iter()).all(|(words, block)| words[number as usize] == block[row])
        };
        if let Some(number) = slots.find(hashes[hash], is_meant) {
            return number;
        }
        let number = words[0].len() as u32;
        slots.insert(hashes[hash], number);
        words.iter_mut().zip(block).for_each(|(words, block)| words.push(block[row]));
        number
    }

    /// The numbers here of the keys `first..first + count` of another table of the same types, at most a block.
    pub fn find_all_of(&mut self, other: &PackedKeys, first: usize, count: usize, out: &mut [u32; BLOCK_ROWS]) {
        for (block, words) in self.block.iter_mut().zip(&other.words) {
            block.iter_mut().zip(words.range(first, count)).for_each(|(to, from)| *to = *from);
        }
        let theirs = other.null.map(|null| (null as usize).wrapping_sub(first)).filter(|row| *row < count);
        let valid = theirs.map(|row| {
            let mut valid: Bits = [u64::MAX; BLOCK_ROWS / 64];
            valid[row >> 6] &= !(1 << (row & 63));
            valid
        });
        self.find_packed(count, out, valid.as_ref());
    }

    /// Stores the keys `first..first + count` as rows 0 and on of vectors that were reset.
    pub fn read(&self, first: usize, count: usize, out: &mut [Vector]) {
        for (index, (field, vector)) in self.fields.iter().zip(out).enumerate() {
            let words = self.words[field.word].range(first, count);
            let unused = 64u32.saturating_sub(field.bits);
            match field.lane {
                Lane::I64 => {
                    for (value, word) in vector.i64s.iter_mut().zip(words) {
                        *value = ((*word >> field.shift) << unused) as i64 >> unused;
                    }
                }
                Lane::F64 => {
                    vector.f64s.iter_mut().zip(words).for_each(|(value, word)| *value = f64::from_bits(*word));
                }
                Lane::Bool => {
                    words.enumerate().filter(|(_, word)| **word >> field.shift & 1 == 1).for_each(|(row, _)| {
                        set_bit(&mut vector.bits, row);
                    })
                }
                Lane::I128 => {
                    let high = self.words[field.word + 1].range(first, count);
                    for (value, (low, high)) in vector.i128s.iter_mut().zip(words.zip(high)) {
                        *value = i128::from(*high as i64) << 64 | i128::from(*low);
                    }
                }
                Lane::Bytes => {}
            }
            let mut set_null = |row: usize| {
                if !vector.has_nulls {
                    vector.has_nulls = true;
                    vector.valid = [u64::MAX; BLOCK_ROWS / 64];
                }
                vector.valid[row >> 6] &= !(1 << (row & 63));
            };
            if self.lone {
                let null = self.null.map(|null| (null as usize).wrapping_sub(first)).filter(|row| *row < count);
                null.into_iter().for_each(&mut set_null);
            } else {
                let nulls = self.words[0].range(first, count).enumerate().filter(|(_, word)| **word >> index & 1 == 1);
                nulls.for_each(|(row, _)| set_null(row));
            }
        }
    }
}
