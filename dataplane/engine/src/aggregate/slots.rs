//! The open-addressing table behind groups and distinct sets: 64-bit hashes to numbers.
//!
//! Owns [`Slots`] and the hash functions. Knows no keys: a slot holds a hash and a number, and the caller
//! verifies that the numbered key is the one meant (or hashes with [`mix`], which is a bijection, so that equal
//! hashes are equal keys).
//!
//! Growth is linear hashing (W. Litwin, "Linear hashing: a new tool for file and table addressing", 1980): the
//! slots lie in pages of [`PAGE_SLOTS`], the hash's low bits choose the page, higher bits the slot in it, and every
//! [`SPLIT_EVERY`] insertions one page, in turn, is split in two. So no insertion moves more than one page,
//! and memory grows by pages instead of by doubling.
//!
//! Invariants
//! - Probing is linear within a page, and a page always has an empty slot: one that fills up in spite of the
//!   splits doubles by itself. Keys can't be made to collide: hashes are seeded per process ([`hash_seed`]).
//! - A slot's second word is its number plus one; 0 is an empty slot.
//!
//! Cost: a block of hashes is looked up without a branch that depends on data, so that misses of the cache
//! overlap: 3 ns a row while the slots fit the second-level cache, 10 ns in memory. 43 bytes a key.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::LazyLock;

use hidb::BLOCK_ROWS;

/// Slots of a page: 32 KiB, which a split rewrites in about 5 us.
const PAGE_SLOTS: usize = 2048;
/// Insertions per split: pages not yet split in this round are at most 3/4 full, split ones 3/8.
const SPLIT_EVERY: usize = PAGE_SLOTS * 3 / 8;
const SLOTS_FIRST: usize = 16;
/// No number was found.
pub(crate) const NOT_FOUND: u32 = u32::MAX;

/// Hash, and number plus one.
type Slot = [u64; 2];

/// A number of this process alone: whoever makes keys does not know which of them meet in a page.
pub(crate) fn hash_seed() -> u64 {
    static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0));
    *SEED
}

/// A bijective 64-bit mixer: every bit of the input moves every bit of the output.
#[inline(always)]
pub(crate) fn mix(word: u64) -> u64 {
    let word = (word ^ word >> 32).wrapping_mul(0x9fb2_1c65_1e98_df25);
    let word = (word ^ word >> 29).wrapping_mul(0xd6e8_feb8_6659_fd93);
    word ^ word >> 32
}

/// A 64-bit hash of a short key: folded multiplications over 8-byte words, as wyhash does.
#[inline]
pub(crate) fn hash_bytes(bytes: &[u8]) -> u64 {
    #[inline]
    fn fold(a: u64, b: u64) -> u64 {
        let product = u128::from(a) * u128::from(b);
        product as u64 ^ (product >> 64) as u64
    }
    const SEEDS: [u64; 3] = [0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db, 0x8ebc_6af0_9c88_c6e3];
    let mut hash = hash_seed() ^ SEEDS[0] ^ bytes.len() as u64;
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        hash = fold(hash ^ u64::from_le_bytes(*word), SEEDS[1]);
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    fold(hash ^ u64::from_le_bytes(last), SEEDS[2])
}

/// Hashes to numbers.
#[derive(Debug)]
pub(crate) struct Slots {
    pages: Vec<Box<[Slot]>>,
    /// Slots in use, per page.
    used: Vec<u32>,
    /// The least `2^n - 1` that is at least the number of pages.
    mask: u64,
    len: usize,
    slots: usize,
}

impl Default for Slots {
    fn default() -> Self {
        Slots { pages: vec![empty_page(SLOTS_FIRST)], used: vec![0], mask: 1, len: 0, slots: SLOTS_FIRST }
    }
}

fn empty_page(slots: usize) -> Box<[Slot]> {
    vec![[0; 2]; slots].into_boxed_slice()
}

/// Where in a page of so many slots a hash belongs.
#[inline(always)]
fn home(hash: u64, slots: usize) -> usize {
    (hash >> 32) as usize & (slots - 1)
}

/// Puts a slot that is not in the page into its first free place.
#[inline]
fn place(page: &mut [Slot], slot: Slot) {
    let mut index = home(slot[0], page.len());
    while page[index][1] != 0 {
        index = (index + 1) & (page.len() - 1);
    }
    page[index] = slot;
}

impl Slots {
    pub fn memory_bytes(&self) -> usize {
        self.slots * size_of::<Slot>() + self.pages.capacity() * 16 + self.used.capacity() * 4
    }

    #[inline(always)]
    fn page_of(&self, hash: u64) -> usize {
        let page = (hash & self.mask) as usize;
        if page < self.pages.len() { page } else { page & (self.mask >> 1) as usize }
    }

    /// For every hash the number in its first slot, or [`NOT_FOUND`]: whoever was displaced by others, or is
    /// not in the table, needs [`Slots::find`].
    pub fn first_probe(&self, hashes: &[u64; BLOCK_ROWS], rows: usize, out: &mut [u32; BLOCK_ROWS]) {
        for (hash, out) in hashes[..rows].iter().zip(out) {
            let page = &self.pages[self.page_of(*hash)];
            let [found, number] = page[home(*hash, page.len())];
            *out = if found == *hash { (number as u32).wrapping_sub(1) } else { NOT_FOUND };
        }
    }

    /// The number of this hash for which `is_meant`.
    #[inline]
    pub fn find(&self, hash: u64, is_meant: impl Fn(u32) -> bool) -> Option<u32> {
        let page = &self.pages[self.page_of(hash)];
        let mut index = home(hash, page.len());
        loop {
            let [found, number] = page[index];
            if number == 0 {
                return None;
            }
            if found == hash && is_meant(number as u32 - 1) {
                return Some(number as u32 - 1);
            }
            index = (index + 1) & (page.len() - 1);
        }
    }

    /// Adds a number whose key is not in the table.
    pub fn insert(&mut self, hash: u64, number: u32) {
        let page = self.page_of(hash);
        let slots = self.pages[page].len();
        // The only page grows at one half; pages of a larger table stay below 3/4 but for collisions.
        let full = if self.pages.len() == 1 { slots / 2 } else { slots * 7 / 8 };
        if self.used[page] as usize >= full {
            self.double(page);
        }
        place(&mut self.pages[page], [hash, u64::from(number) + 1]);
        self.used[page] += 1;
        self.len += 1;
        if self.len > self.pages.len() * SPLIT_EVERY {
            self.split();
        }
    }

    fn double(&mut self, page: usize) {
        let slots = self.pages[page].len() * 2;
        let old = std::mem::replace(&mut self.pages[page], empty_page(slots));
        old.iter().filter(|slot| slot[1] != 0).for_each(|slot| place(&mut self.pages[page], *slot));
        self.slots += slots / 2;
    }

    /// Splits the next page of this round.
    fn split(&mut self) {
        let (low, high) = (self.pages.len() - (self.mask as usize).div_ceil(2), self.pages.len());
        let old = std::mem::take(&mut self.pages[low]);
        let bit = self.mask.div_ceil(2);
        let moved = old.iter().filter(|slot| slot[1] != 0 && slot[0] & bit != 0).count();
        let stayed = self.used[low] as usize - moved;
        let room = |used: usize| PAGE_SLOTS.max((used * 2).next_power_of_two());
        self.pages[low] = empty_page(room(stayed));
        self.pages.push(empty_page(room(moved)));
        self.used[low] = stayed as u32;
        self.used.push(moved as u32);
        self.slots = self.slots + self.pages[low].len() + self.pages[high].len() - old.len();
        if high == self.mask as usize {
            self.mask = self.mask * 2 + 1;
        }
        for slot in old.iter().filter(|slot| slot[1] != 0) {
            place(&mut self.pages[if slot[0] & bit != 0 { high } else { low }], *slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn mixing_is_a_bijection() {
        let inverse = |factor: u64| (0..6).fold(1u64, |x, _| x.wrapping_mul(2u64.wrapping_sub(factor.wrapping_mul(x))));
        let unshift = |word: u64, by: u32| word ^ word >> by ^ word.checked_shr(by * 2).unwrap_or(0);
        for word in (0..2000u64).map(|i| i.wrapping_mul(0x1234_5678_9abc_def1)).chain([0, 1, u64::MAX, 1 << 63]) {
            let mixed = mix(word);
            let back = unshift(mixed, 32).wrapping_mul(inverse(0xd6e8_feb8_6659_fd93));
            let back = unshift(back, 29).wrapping_mul(inverse(0x9fb2_1c65_1e98_df25));
            assert_eq!(unshift(back, 32), word);
        }
    }

    fn number_all(keys: impl Iterator<Item = u64>) -> Slots {
        let mut slots = Slots::default();
        let mut expected: HashMap<u64, u32> = HashMap::new();
        for key in keys {
            assert_eq!(slots.find(key, |_| true), expected.get(&key).copied());
            let next = expected.len() as u32;
            expected.entry(key).or_insert_with(|| {
                slots.insert(key, next);
                next
            });
        }
        for (key, number) in &expected {
            assert_eq!(slots.find(*key, |_| true), Some(*number));
            let mut out = [0; BLOCK_ROWS];
            slots.first_probe(&[*key; BLOCK_ROWS], 1, &mut out);
            assert!(out[0] == *number || out[0] == NOT_FOUND);
        }
        let slot_count: usize = slots.pages.iter().map(|page| page.len()).sum();
        let used: usize = slots.pages.iter().flatten().filter(|slot| slot[1] != 0).count();
        assert_eq!((slots.slots, used), (slot_count, expected.len()));
        slots
    }

    #[test]
    fn memory_grows_with_the_keys_and_most_are_found_in_their_first_slot() {
        for count in [10u64, 700, 5000, 300_000] {
            let slots = number_all((0..count).map(mix));
            assert!(slots.memory_bytes() as u64 <= 512 + count * 72, "{} for {count}", slots.memory_bytes());
            let hashes: [u64; BLOCK_ROWS] = std::array::from_fn(|i| mix(i as u64 % count));
            let mut out = [0; BLOCK_ROWS];
            slots.first_probe(&hashes, BLOCK_ROWS, &mut out);
            let found = out.iter().filter(|number| **number != NOT_FOUND).count();
            assert!(found > BLOCK_ROWS / 2, "{found} of {count}");
        }
    }

    #[test]
    fn keys_made_to_collide_are_kept_apart() {
        // One page and one slot for all; then one page for all.
        number_all((0..3000).map(|i| i << 50));
        number_all((0..20_000).map(|i| i << 32));
        number_all((0..20_000).map(|i| i << 20));
        // The very same hash.
        let mut slots = Slots::default();
        (0..2000).for_each(|number| slots.insert(7, number));
        (0..2000).for_each(|number| assert_eq!(slots.find(7, |n| n == number), Some(number)));
        assert_eq!(slots.find(7, |_| false), None);
    }

    proptest! {
        #[test]
        fn slots_number_as_a_map_does(keys in prop::collection::vec(any::<u64>(), 0..3000), narrow in 1u64..5000, shift in 0u32..48) {
            number_all(keys.iter().copied());
            number_all(keys.iter().map(|key| mix(key % narrow)));
            number_all(keys.iter().map(|key| (key % narrow) << shift));
        }
    }
}
