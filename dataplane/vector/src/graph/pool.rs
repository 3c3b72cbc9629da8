//! The candidates of a walk, and the nodes it has seen.
//!
//! Owns [`Pool`] (the `ef` nearest so far, in order, each expanded or not) and [`Visited`]. Called by the graph's search.
//!
//! Invariants
//! - A pool never holds more than its capacity, and is always sorted.
//!
//! A candidate is one integer, distance above node: comparing and moving them is cheap. Insertion moves what lies behind;
//! for up to a few hundred candidates that is a few cache lines, and for ten thousand 40 KB, about 2 us an insertion: a k in the
//! thousands is the business of an exact or a list-wise search.

/// Bit of a candidate that says it was expanded.
const EXPANDED: u64 = 1;

/// A float's bits in an order that integers have.
#[inline(always)]
fn ordered(distance: f32) -> u32 {
    let bits = distance.to_bits();
    bits ^ (((bits as i32 >> 31) as u32) | 0x8000_0000)
}

fn unordered(bits: u32) -> f32 {
    f32::from_bits(if bits >> 31 == 1 { bits ^ 0x8000_0000 } else { !bits })
}

/// The nearest nodes so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool {
    /// Distance in the upper half, node in bits 1 to 31, [`EXPANDED`].
    candidates: Vec<u64>,
    capacity: usize,
    /// No candidate before this one is unexpanded.
    next: usize,
}

impl Pool {
    /// Empty, for `capacity` candidates.
    pub(super) fn reset(&mut self, capacity: usize) {
        self.candidates.clear();
        self.capacity = capacity;
        self.next = 0;
    }

    /// Whether a node this far away would get in.
    #[inline(always)]
    pub(super) fn admits(&self, distance: f32) -> bool {
        self.candidates.len() < self.capacity
            || self.candidates.last().is_some_and(|last| u64::from(ordered(distance)) < last >> 32)
    }

    /// Inserts a node that is not in the pool.
    #[inline(always)]
    pub(super) fn insert(&mut self, distance: f32, node: u32) {
        let candidate = u64::from(ordered(distance)) << 32 | u64::from(node) << 1;
        let len = self.candidates.len();
        if len == self.capacity {
            match self.candidates.last() {
                Some(last) if candidate < *last => self.candidates.pop(),
                _ => return,
            };
        }
        let at = self.candidates.partition_point(|c| *c < candidate);
        self.candidates.insert(at, candidate);
        self.next = self.next.min(at);
    }

    /// The nearest node that was not expanded; it is now.
    #[inline(always)]
    pub(super) fn expand_next(&mut self) -> Option<u32> {
        while let Some(candidate) = self.candidates.get_mut(self.next) {
            self.next += 1;
            if *candidate & EXPANDED == 0 {
                *candidate |= EXPANDED;
                return Some((*candidate as u32) >> 1);
            }
        }
        None
    }

    /// The node that [`Pool::expand_next`] would return now, as far as a glance tells.
    #[inline(always)]
    pub(super) fn peek(&self) -> Option<u32> {
        let some = self.candidates.get(self.next..)?;
        some.iter().take(4).find(|c| **c & EXPANDED == 0).map(|c| (*c as u32) >> 1)
    }

    /// Distances and nodes, nearest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (f32, u32)> {
        self.candidates.iter().map(|c| (unordered((c >> 32) as u32), (*c as u32) >> 1))
    }
}

/// A set of nodes that empties in the time it took to fill.
#[derive(Clone, Debug, Default)]
pub(super) struct Visited {
    words: Vec<u64>,
    touched: Vec<u32>,
}

impl Visited {
    /// Empty, for nodes below `count`.
    pub(super) fn reset(&mut self, count: usize) {
        if self.touched.len() * 8 > self.words.len() {
            self.words.fill(0);
        } else {
            self.touched.iter().for_each(|word| self.words[*word as usize] = 0);
        }
        self.touched.clear();
        self.words.resize(count.div_ceil(64), 0);
    }

    /// Adds a node; whether it is new.
    #[inline(always)]
    pub(super) fn insert(&mut self, node: u32) -> bool {
        let (word, bit) = (node >> 6, 1u64 << (node & 63));
        let slot = &mut self.words[word as usize];
        let new = *slot & bit == 0;
        if new {
            *slot |= bit;
            self.touched.push(word);
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_pool_is_the_sorted_prefix(distances in proptest::collection::vec(-3.0f32..9.0, 0..200), capacity in 1usize..40) {
            let mut pool = Pool::default();
            pool.reset(capacity);
            let mut expanded = 0;
            for (node, distance) in distances.iter().enumerate() {
                if pool.admits(*distance) {
                    pool.insert(*distance, node as u32);
                }
                if node % 3 == 0 {
                    expanded += usize::from(pool.expand_next().is_some());
                }
            }
            let mut expected: Vec<(f32, u32)> = distances.iter().copied().zip(0..).collect();
            expected.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            expected.truncate(capacity);
            prop_assert_eq!(pool.iter().collect::<Vec<_>>(), expected);
            prop_assert!(expanded <= distances.len());
            let mut nodes = Vec::new();
            while let Some(node) = pool.expand_next() {
                nodes.push(node);
            }
            nodes.dedup();
            prop_assert!(nodes.len() <= capacity);
        }
    }

    #[test]
    fn visited_forgets() {
        let mut visited = Visited::default();
        for round in 0..3 {
            visited.reset(1000);
            for node in 0..if round == 1 { 1000 } else { 5 } {
                assert!(visited.insert(node));
                assert!(!visited.insert(node));
            }
        }
    }
}
