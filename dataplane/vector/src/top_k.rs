//! The nearest so far.
//!
//! Owns [`Neighbor`] and [`TopK`]: a bounded running top k, and with a first bound a range search. Called by every search.
//!
//! Invariants
//! - The answer is that of sorting everything pushed by (distance, row id): it depends neither on the order of pushes nor
//!   on how the work was divided. Rows are pushed once.
//! - At most `2k + 32` neighbours are held.
//!
//! Neighbours below the bound are appended to a buffer; when it is full the k nearest are selected
//! (`select_nth_unstable`) and the greatest of them becomes the bound. A push costs a comparison, and O(1) amortised when
//! it is below the bound, for any k; a binary heap costs log k with a cache miss at each level once k is large. Of n rows
//! in random order about `k ln(n / k)` get below the bound: 1,200 of 10^6 for k = 100.

use std::cmp::Ordering;

/// A row and how far it is.
#[derive(Clone, Copy, Debug)]
pub struct Neighbor {
    /// Distance in the metric of the search; smaller is nearer. Never NaN.
    pub distance: f32,
    /// The row.
    pub row: u64,
}

impl Neighbor {
    /// By distance, then by row.
    #[inline]
    pub fn order(&self, other: &Self) -> Ordering {
        self.distance.total_cmp(&other.distance).then(self.row.cmp(&other.row))
    }
}

impl PartialEq for Neighbor {
    fn eq(&self, other: &Self) -> bool {
        self.order(other) == Ordering::Equal
    }
}

/// The k nearest of what was pushed.
#[derive(Clone, Debug)]
pub struct TopK {
    k: usize,
    /// Whether the bound came from the buffer, so that it has a row to compare with at equal distances.
    full: bool,
    bound: Neighbor,
    buffer: Vec<Neighbor>,
}

impl TopK {
    /// The `k` nearest.
    pub fn new(k: usize) -> Self {
        Self::within(k, f32::INFINITY)
    }

    /// The `k` nearest whose distance is at most `distance`: with a large `k` a range search.
    pub fn within(k: usize, distance: f32) -> Self {
        let bound = Neighbor { distance: if distance.is_nan() { f32::INFINITY } else { distance }, row: u64::MAX };
        TopK { k, full: false, bound, buffer: Vec::with_capacity((k + 32).min(4096)) }
    }

    /// How many are asked for.
    pub fn k(&self) -> usize {
        self.k
    }

    /// No neighbour farther than this can get in; one just as far can, by its row id. Loose: the exact bound is at most
    /// [`TopK::bound`]; see [`TopK::tighten`].
    #[inline]
    pub fn bound(&self) -> f32 {
        if self.k == 0 { f32::NEG_INFINITY } else { self.bound.distance }
    }

    /// Makes [`TopK::bound`] the distance of the kth nearest so far, at the cost of a selection.
    pub fn tighten(&mut self) -> f32 {
        if self.buffer.len() >= self.k {
            self.select();
        }
        self.bound()
    }

    /// Takes a neighbour, if it is near enough.
    #[inline]
    pub fn push(&mut self, distance: f32, row: u64) {
        let neighbor = Neighbor { distance, row };
        if neighbor.order(&self.bound) != Ordering::Greater {
            self.keep(neighbor);
        }
    }

    fn keep(&mut self, neighbor: Neighbor) {
        if self.k == 0 {
            return;
        }
        self.buffer.push(neighbor);
        if self.buffer.len() >= 2 * self.k + 32 {
            self.select();
        }
    }

    /// Takes the rows `first_row..`, whose distances these are.
    pub fn push_rows(&mut self, distances: &[f32], first_row: u64) {
        const BLOCK: usize = 64;
        for (block, chunk) in distances.chunks(BLOCK).enumerate() {
            let bound = self.bound();
            // Without a branch, so that it vectorises: most blocks have none.
            let any = chunk.iter().fold(false, |any, d| any | (*d <= bound));
            if any {
                let first = first_row + (block * BLOCK) as u64;
                chunk.iter().zip(first..).for_each(|(d, row)| self.push(*d, row));
            }
        }
    }

    /// Takes everything that `other` holds.
    pub fn merge(&mut self, other: &TopK) {
        other.buffer.iter().for_each(|n| self.push(n.distance, n.row));
    }

    /// Keeps the k nearest and makes the last of them the bound.
    fn select(&mut self) {
        if self.k == 0 || self.buffer.len() < self.k {
            return;
        }
        if self.buffer.len() > self.k {
            self.buffer.select_nth_unstable_by(self.k - 1, Neighbor::order);
            self.buffer.truncate(self.k);
        } else if self.full {
            return;
        }
        // After a selection the kth is the last; with exactly k it may be anywhere.
        if let Some(last) = self.buffer.iter().max_by(|a, b| a.order(b)) {
            (self.bound, self.full) = (*last, true);
        }
    }

    /// The nearest, nearest first.
    pub fn into_sorted(mut self) -> Vec<Neighbor> {
        self.select();
        self.buffer.sort_unstable_by(Neighbor::order);
        self.buffer
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn equals_sorting_everything(
            distances in proptest::collection::vec(prop_oneof![(0u8..12).prop_map(f32::from), any::<f32>()], 0..900),
            k in prop_oneof![0usize..4, 1usize..1200],
            bound in prop_oneof![Just(f32::INFINITY), (0u8..12).prop_map(f32::from)],
            parts in 1usize..5,
        ) {
            let distances: Vec<f32> =
                distances.iter().map(|d| if d.is_nan() { f32::INFINITY } else { d + 0.0 }).collect();
            let mut expected: Vec<Neighbor> = distances.iter().zip(0..)
                .map(|(distance, row)| Neighbor { distance: *distance, row })
                .filter(|n| n.distance <= bound).collect();
            expected.sort_by(Neighbor::order);
            expected.truncate(k);
            let mut all = TopK::within(k, bound);
            all.push_rows(&distances, 0);
            let exact = all.clone().tighten();
            if k > 0 && expected.len() == k {
                prop_assert_eq!(exact, expected[k - 1].distance);
            }
            prop_assert_eq!(&all.into_sorted(), &expected);
            // Divided among several, pushed backwards, then merged.
            let mut merged = TopK::within(k, bound);
            for part in 0..parts {
                let mut some = TopK::within(k, bound);
                for (row, distance) in distances.iter().enumerate().rev().filter(|(row, _)| row % parts == part) {
                    some.push(*distance, row as u64);
                }
                merged.merge(&some);
            }
            prop_assert_eq!(&merged.into_sorted(), &expected);
        }
    }
}
