//! A map whose entries have costs and whose sum of costs has a bound. What was not used for longest goes first.
//!
//! Invariants
//! - The costs of all entries together never exceed the bound.
//! - Each entry stands in `by_use` exactly once, under the time of its last use.
//!
//! Cost: a use is a look-up by hash, and a removal and an insertion in a tree of 8-byte keys.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

#[derive(Debug)]
struct Entry<V> {
    value: V,
    cost: usize,
    used: u64,
}

/// See the module. Keys are cloned once per entry: they should be cheap to clone.
#[derive(Debug)]
pub(super) struct Lru<K, V> {
    entries: HashMap<K, Entry<V>>,
    by_use: BTreeMap<u64, K>,
    uses: u64,
    cost: usize,
    cost_max: usize,
}

impl<K: Clone + Eq + Hash, V> Lru<K, V> {
    /// An empty map that holds entries of at most `cost_max` together.
    pub(super) fn new(cost_max: usize) -> Self {
        Lru { entries: HashMap::new(), by_use: BTreeMap::new(), uses: 0, cost: 0, cost_max }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The costs of all entries together.
    pub(super) fn cost(&self) -> usize {
        self.cost
    }

    /// Looks an entry up, which is a use.
    pub(super) fn get<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let entry = self.entries.get_mut(key)?;
        self.uses += 1;
        if let Some(key) = self.by_use.remove(&entry.used) {
            self.by_use.insert(self.uses, key);
        }
        entry.used = self.uses;
        Some(&entry.value)
    }

    /// Puts an entry in, in place of one with the same key; gives the keys that had to go for it. An entry that costs
    /// more than the bound is not kept: then its own key is the only one that goes.
    pub(super) fn insert(&mut self, key: K, value: V, cost: usize) -> Vec<K> {
        self.remove(&key);
        if cost > self.cost_max {
            return vec![key];
        }
        let mut gone = Vec::new();
        while self.cost > self.cost_max - cost {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            if let Some(entry) = self.entries.remove(&oldest) {
                self.cost -= entry.cost;
            }
            gone.push(oldest);
        }
        self.uses += 1;
        self.cost += cost;
        self.by_use.insert(self.uses, key.clone());
        self.entries.insert(key, Entry { value, cost, used: self.uses });
        gone
    }

    pub(super) fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let entry = self.entries.remove(key)?;
        self.by_use.remove(&entry.used);
        self.cost -= entry.cost;
        Some(entry.value)
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.by_use.clear();
        self.cost = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Get(u8),
        Insert(u8, usize),
        Remove(u8),
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0..12u8).prop_map(Step::Get),
            8 => (0..12u8, 0..40usize).prop_map(|(key, cost)| Step::Insert(key, cost)),
            2 => (0..12u8).prop_map(Step::Remove),
            1 => Just(Step::Clear),
        ]
    }

    proptest! {
        /// Against a list in order of use.
        #[test]
        fn it_is_a_list_in_order_of_use_cut_at_its_bound(steps in proptest::collection::vec(step(), 1..200)) {
            const MAX: usize = 100;
            let mut lru = Lru::new(MAX);
            let mut list: Vec<(u8, usize, usize)> = Vec::new();
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Get(key) => {
                        let found = list.iter().position(|(known, ..)| *known == key).map(|at| list.remove(at));
                        list.extend(found);
                        prop_assert_eq!(lru.get(&key).copied(), found.map(|(_, _, value)| value));
                    }
                    Step::Insert(key, cost) => {
                        list.retain(|(known, ..)| *known != key);
                        list.push((key, cost, number));
                        let mut gone = Vec::new();
                        while list.iter().map(|(_, cost, _)| cost).sum::<usize>() > MAX {
                            gone.push(list.remove(0).0);
                        }
                        prop_assert_eq!(lru.insert(key, number, cost), gone);
                    }
                    Step::Remove(key) => {
                        let found = list.iter().position(|(known, ..)| *known == key).map(|at| list.remove(at));
                        prop_assert_eq!(lru.remove(&key), found.map(|(_, _, value)| value));
                    }
                    Step::Clear => {
                        list.clear();
                        lru.clear();
                    }
                }
                prop_assert_eq!(lru.len(), list.len());
                prop_assert_eq!(lru.cost(), list.iter().map(|(_, cost, _)| cost).sum::<usize>());
                prop_assert_eq!(lru.by_use.values().copied().collect::<Vec<_>>(), list.iter().map(|(key, ..)| *key).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn what_is_larger_than_the_bound_is_not_kept_and_costs_nobody_else() {
        let mut lru = Lru::new(10);
        lru.insert("a", 1, 10);
        assert_eq!(lru.insert("b", 2, 11), ["b"]);
        assert_eq!((lru.get("a").copied(), lru.get("b").copied()), (Some(1), None));
        assert_eq!(lru.insert("a", 3, 11), ["a"]);
        assert_eq!((lru.len(), lru.cost()), (0, 0));
    }
}
