//! Distinct keys of any width, in row encoding.
//!
//! Owns [`ByteKeys`]: keys with texts among them. Bytes lie back to back in pages that never move.
//! Invariant: a hash that is found is verified against the bytes.
//!
//! Cost: 12 bytes a key besides its bytes and slots; a lookup touches the slot, the place and the bytes.

use hidb::{BLOCK_ROWS, Lane};

use super::paged::Paged;
use super::slots::{NOT_FOUND, Slots, hash_bytes};
use crate::rows::write_value;
use crate::vector::Vector;

/// Bytes of a page; a longer key has a page of its own.
const PAGE_BYTES: usize = 1 << 16;
const PAGE_BYTES_FIRST: usize = 1 << 8;

/// Where the bytes of a key lie.
#[derive(Clone, Copy, Debug)]
struct Place {
    page: u32,
    start: u32,
    length: u32,
}

/// Distinct byte strings, numbered from 0.
#[derive(Debug, Default)]
pub(super) struct ByteKeys {
    pages: Vec<Vec<u8>>,
    page_bytes: usize,
    places: Paged<Place>,
    slots: Slots,
    /// The keys of the block at hand, where each ends, and their hashes.
    block: Vec<u8>,
    ends: Vec<usize>,
    hashes: Option<Box<[u64; BLOCK_ROWS]>>,
}

fn bytes_at(pages: &[Vec<u8>], place: Place) -> &[u8] {
    &pages[place.page as usize][place.start as usize..][..place.length as usize]
}

impl ByteKeys {
    pub fn len(&self) -> usize {
        self.places.len()
    }

    pub fn memory_bytes(&self) -> usize {
        self.slots.memory_bytes() + self.places.memory_bytes() + self.page_bytes + self.pages.capacity() * 24
    }

    /// The key with this number.
    pub fn key(&self, number: usize) -> &[u8] {
        bytes_at(&self.pages, self.places[number])
    }

    /// The number of this key; a new one is added.
    fn find_hashed(&mut self, hash: u64, key: &[u8]) -> u32 {
        let is_meant = |number: u32| bytes_at(&self.pages, self.places[number as usize]) == key;
        if let Some(number) = self.slots.find(hash, is_meant) {
            return number;
        }
        let number = self.places.len() as u32;
        let fits = self.pages.last().is_some_and(|page| page.capacity() - page.len() >= key.len());
        if !fits {
            let least = if self.page_bytes < PAGE_BYTES { PAGE_BYTES_FIRST.max(self.page_bytes) } else { PAGE_BYTES };
            let page = Vec::with_capacity(key.len().max(least));
            self.page_bytes += page.capacity();
            self.pages.push(page);
        }
        let page = self.pages.len() - 1;
        let start = self.pages[page].len() as u32;
        self.pages[page].extend_from_slice(key);
        self.places.push(Place { page: page as u32, start, length: key.len() as u32 });
        self.slots.insert(hash, number);
        number
    }

    /// The numbers of a block's keys; new ones are added.
    pub fn find_block(&mut self, vectors: &[(&Vector, Lane)], rows: usize, out: &mut [u32; BLOCK_ROWS]) {
        let (mut block, mut ends) = (std::mem::take(&mut self.block), std::mem::take(&mut self.ends));
        block.clear();
        ends.clear();
        for row in 0..rows {
            vectors.iter().for_each(|(vector, lane)| write_value(vector, *lane, row, &mut block));
            ends.push(block.len());
        }
        self.find_encoded(&block, &ends, out);
        (self.block, self.ends) = (block, ends);
    }

    fn find_encoded(&mut self, block: &[u8], ends: &[usize], out: &mut [u32; BLOCK_ROWS]) {
        let starts = || std::iter::once(0).chain(ends.iter().copied());
        let mut hashes = self.hashes.take().unwrap_or_else(|| Box::new([0; BLOCK_ROWS]));
        for (hash, (start, end)) in hashes.iter_mut().zip(starts().zip(ends)) {
            *hash = hash_bytes(&block[start..*end]);
        }
        self.slots.first_probe(&hashes, ends.len(), out);
        for ((number, hash), (start, end)) in out.iter_mut().zip(hashes.iter()).zip(starts().zip(ends)) {
            let key = &block[start..*end];
            if *number == NOT_FOUND || self.key(*number as usize) != key {
                *number = self.find_hashed(*hash, key);
            }
        }
        self.hashes = Some(hashes);
    }

    /// The numbers here of the keys `first..first + count` of another table, at most a block.
    pub fn find_all_of(&mut self, other: &ByteKeys, first: usize, count: usize, out: &mut [u32; BLOCK_ROWS]) {
        let (mut block, mut ends) = (std::mem::take(&mut self.block), std::mem::take(&mut self.ends));
        block.clear();
        ends.clear();
        for number in first..first + count {
            block.extend_from_slice(other.key(number));
            ends.push(block.len());
        }
        self.find_encoded(&block, &ends, out);
        (self.block, self.ends) = (block, ends);
    }
}
