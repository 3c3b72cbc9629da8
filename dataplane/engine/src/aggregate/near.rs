//! Numbers of the keys that lie near each other, by the key itself.
//!
//! Owns [`NearKeys`], which stands before [`super::slots::Slots`] for keys of one word: identifiers and dates are often
//! dense, and an array indexed by them takes a tenth of the memory of a hash table and no comparison. It covers
//! a window of [`WINDOW`] words around the first keys, in pages that are allocated when a key falls into them.
//!
//! Keys come faster than pages may be allocated, so a page may begin as a cache of what is in the slots. The
//! table's keys are then walked, some with every block, until the page knows all of its keys; from there on it is
//! the only place of its new ones.
//!
//! Invariants
//! - What it knows is true. What a page in [`PageState::Whole`] does not know is not in the table.
//! - At most [`PAGES_PER_BLOCK`] pages are allocated for a block of rows, so that no step stalls, and no more than
//!   are worth it: 16 places per key of the table.
//! - It closes for good when fewer than a quarter of the keys met again are found in it, unless a page is whole.
//!
//! Cost: 2 ns a row while the pages in use fit the second-level cache; 4 bytes a place.

use hidb::BLOCK_ROWS;

use super::slots::NOT_FOUND;

const PAGE_BITS: u32 = 12;
const PAGE_WORDS: usize = 1 << PAGE_BITS;
/// Words covered.
const WINDOW: u64 = 1 << 22;
const PAGES: usize = WINDOW as usize / PAGE_WORDS;
/// Pages of 16 KiB, each zeroed and faulted in: 30 us.
const PAGES_PER_BLOCK: usize = 8;
const PLACES_PER_KEY: usize = 16;
/// Pages that need no keys to be worth it.
const PAGES_FREE: usize = 4;
/// Blocks after which the rate of hits decides.
const TRIAL_BLOCKS: u32 = 256;

/// Keys of the table walked per block while pages are filled.
const WALK_KEYS: usize = 2048;

/// Pages that are worth a walk of their own while more of them come.
const WALK_PAGES: usize = 128;

/// What a page knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum PageState {
    /// There is no key of it in the table.
    #[default]
    Empty,
    /// There is no page; its keys are in the slots.
    Absent,
    /// All its keys are in the slots, some of them here.
    Cache,
    /// As `Cache`, and the walk that is under way will make it whole.
    Filling,
    /// All its keys are here.
    Whole,
}

/// Key words to numbers, for words in a window.
#[derive(Debug, Default)]
pub(super) struct NearKeys {
    base: u64,
    /// A number plus one per word; empty until the first key of the page, and the last one always.
    pages: Vec<Box<[u32]>>,
    states: Vec<PageState>,
    allocated: usize,
    /// Pages in [`PageState::Cache`], and whether any is whole.
    caches: usize,
    any_whole: bool,
    /// `allocated` at the end of the last block: pages are waited for, so that one walk fills many.
    settled: usize,
    /// The next key of the walk, if one is under way.
    walk: Option<usize>,
    /// Pages that may still be allocated for this block.
    allowed: usize,
    blocks: u32,
    /// Rows found here, and rows whose keys were known to the table but not here.
    found: u64,
    strangers: u64,
    closed: bool,
}

impl NearKeys {
    pub fn memory_bytes(&self) -> usize {
        self.allocated * PAGE_WORDS * 4 + self.pages.capacity() * 16 + self.states.capacity()
    }

    /// Looks a block up; returns the number of rows that were not found. `None`: the window is closed.
    /// The table has `keys` keys.
    pub fn probe(&mut self, words: &[u64], keys: usize, out: &mut [u32; BLOCK_ROWS]) -> Option<usize> {
        if self.closed {
            return None;
        }
        if self.pages.is_empty() {
            // A few keys do not deserve the directory.
            if words.len() < BLOCK_ROWS / 2 {
                return None;
            }
            let least = words.iter().min().copied().unwrap_or(0);
            self.base = least.wrapping_sub(WINDOW / 4) & !(PAGE_WORDS as u64 - 1);
            self.pages.resize_with(PAGES + 1, Box::default);
            // What came before is in the slots.
            self.states.resize(PAGES, if keys == 0 { PageState::Empty } else { PageState::Absent });
        }
        let worth = PAGES_FREE + keys * PLACES_PER_KEY / PAGE_WORDS;
        self.allowed = worth.saturating_sub(self.allocated).min(PAGES_PER_BLOCK);
        let mut missing = 0;
        for (word, out) in words.iter().zip(out) {
            let offset = word.wrapping_sub(self.base);
            let page = (offset >> PAGE_BITS).min(PAGES as u64) as usize;
            let number = self.pages[page].get(offset as usize & (PAGE_WORDS - 1)).copied().unwrap_or(0);
            missing += usize::from(number == 0);
            *out = number.wrapping_sub(1);
        }
        self.found += (words.len() - missing) as u64;
        debug_assert_eq!(NOT_FOUND, 0u32.wrapping_sub(1));
        Some(missing)
    }

    /// Ends a block, of whose rows so many had keys that the table knew and this did not.
    pub fn judge(&mut self, strangers: usize) {
        self.blocks += 1;
        self.strangers += strangers as u64;
        if self.blocks == TRIAL_BLOCKS {
            if self.found < (self.found + self.strangers) / 4 && !self.any_whole {
                *self = NearKeys { closed: true, ..NearKeys::default() };
            }
            (self.blocks, self.found, self.strangers) = (0, 0, 0);
        }
    }

    /// The place of a key whose page is whole: its number plus one, or 0 for a new key, which then belongs here alone.
    #[inline]
    pub fn whole_place(&mut self, word: u64) -> Option<&mut u32> {
        let offset = word.wrapping_sub(self.base);
        let page = (offset >> PAGE_BITS).min(PAGES as u64) as usize;
        match self.states.get_mut(page)? {
            PageState::Whole => {}
            state @ PageState::Empty => {
                if self.allowed == 0 {
                    *state = PageState::Absent;
                    return None;
                }
                *state = PageState::Whole;
                self.any_whole = true;
                self.allocate(page);
            }
            _ => return None,
        }
        self.pages[page].get_mut(offset as usize & (PAGE_WORDS - 1))
    }

    fn allocate(&mut self, page: usize) {
        self.allowed -= 1;
        self.allocated += 1;
        self.pages[page] = vec![0; PAGE_WORDS].into_boxed_slice();
    }

    /// Learns the number of a key that is in the slots, if it lies in the window and its page is worth having.
    #[inline]
    pub fn learn(&mut self, word: u64, number: u32) {
        let offset = word.wrapping_sub(self.base);
        let page = (offset >> PAGE_BITS).min(PAGES as u64) as usize;
        let Some(state) = self.states.get_mut(page) else { return };
        if matches!(state, PageState::Empty | PageState::Absent) {
            *state = PageState::Absent;
            if self.allowed == 0 {
                return;
            }
            *state = PageState::Cache;
            self.caches += 1;
            self.allocate(page);
        }
        self.pages[page][offset as usize & (PAGE_WORDS - 1)] = number + 1;
    }

    /// The keys, of `keys`, to be given to [`NearKeys::fill`] with this block.
    pub fn walk(&mut self, keys: usize) -> std::ops::Range<usize> {
        let wait = self.allocated != self.settled && self.caches < WALK_PAGES;
        self.settled = self.allocated;
        if self.walk.is_none() && self.caches > 0 && !wait {
            self.caches = 0;
            self.states.iter_mut().filter(|state| **state == PageState::Cache).for_each(|s| *s = PageState::Filling);
            self.walk = Some(0);
        }
        let Some(first) = self.walk else { return 0..0 };
        let end = (first + WALK_KEYS).min(keys);
        self.walk = Some(end);
        first..end
    }

    /// Takes in a key of the walk.
    #[inline]
    pub fn fill(&mut self, word: u64, number: u32) {
        let offset = word.wrapping_sub(self.base);
        let page = (offset >> PAGE_BITS).min(PAGES as u64) as usize;
        if self.states.get(page) == Some(&PageState::Filling) {
            self.pages[page][offset as usize & (PAGE_WORDS - 1)] = number + 1;
        }
    }

    /// Ends the walk if it has seen all `keys`.
    pub fn end_walk(&mut self, keys: usize) {
        if self.walk == Some(keys) {
            let filling = self.states.iter_mut().filter(|state| **state == PageState::Filling);
            filling.for_each(|state| *state = PageState::Whole);
            (self.walk, self.any_whole) = (None, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn learn_all(near: &mut NearKeys, blocks: &[Vec<u64>]) -> usize {
        let mut numbers: HashMap<u64, u32> = HashMap::new();
        let mut found = 0;
        for words in blocks {
            let mut out = [0; BLOCK_ROWS];
            let before = numbers.len();
            if near.probe(words, before, &mut out).is_none() {
                continue;
            }
            for (word, got) in words.iter().zip(out) {
                let next = numbers.len() as u32;
                let number = *numbers.entry(*word).or_insert(next);
                assert!(got == NOT_FOUND || got == number);
                found += usize::from(got != NOT_FOUND);
                near.learn(*word, number);
            }
            let strangers = out[..words.len()].iter().filter(|got| **got == NOT_FOUND).count();
            near.judge(strangers.saturating_sub(numbers.len() - before));
        }
        assert!(near.memory_bytes() <= 20_000 + (PAGES_FREE + 1) * PAGE_WORDS * 4 + numbers.len() * PLACES_PER_KEY * 4);
        found
    }

    #[test]
    fn dense_keys_are_found_wherever_they_begin() {
        for start in [0, 1_000_000_007, u64::MAX - 5000, 1 << 63] {
            let block = |at: u64| (0..1024).map(|i| start.wrapping_add((at * 1024 + i) % 10_000)).collect();
            let found = learn_all(&mut NearKeys::default(), &(0..40).map(block).collect::<Vec<_>>());
            assert!(found > 20_000, "{found}");
        }
    }

    #[test]
    fn sparse_keys_close_the_window() {
        let mut near = NearKeys::default();
        let block = |at: u64| (0..1024).map(|i| (at % 10 * 1024 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        learn_all(&mut near, &(0..300).map(block).collect::<Vec<_>>());
        assert!(near.closed && near.memory_bytes() == 0);
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_was_learnt(seeds in prop::collection::vec((any::<u64>(), 1u64..10_000_000), 1..8)) {
            let block = |(seed, spread): &(u64, u64)| (0..1024u64).map(|i| seed ^ (i * i % spread)).collect();
            let blocks: Vec<Vec<u64>> = seeds.iter().chain(&seeds).map(block).collect();
            learn_all(&mut NearKeys::default(), &blocks);
        }
    }
}
