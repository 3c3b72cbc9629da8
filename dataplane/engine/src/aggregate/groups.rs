//! The hash table of group keys: key bytes to dense group numbers.
//!
//! Owns [`GroupTable`]. Keys are in row encoding (`rows`), kept back to back in one arena; groups are numbered
//! in order of first sight. Also used as the set behind count(distinct).
//!
//! Cost: about 30 ns to look a key up once the table outgrows the cache, 10 ns before.

use hashbrown::HashTable;

/// Distinct keys, numbered from 0.
#[derive(Debug, Default)]
pub(crate) struct GroupTable {
    arena: Vec<u8>,
    /// Where each key ends in the arena.
    ends: Vec<u64>,
    hashes: Vec<u64>,
    table: HashTable<u32>,
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
    let mut hash = SEEDS[0] ^ bytes.len() as u64;
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        hash = fold(hash ^ u64::from_le_bytes(*word), SEEDS[1]);
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    fold(hash ^ u64::from_le_bytes(last), SEEDS[2])
}

impl GroupTable {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The key of a group.
    pub fn key(&self, group: usize) -> &[u8] {
        key_in(&self.arena, &self.ends, group)
    }

    /// The number of the group with this key, and whether it is new.
    #[inline]
    pub fn find_or_insert(&mut self, key: &[u8]) -> (u32, bool) {
        let hash = hash_bytes(key);
        let Self { arena, ends, hashes, table } = self;
        let found =
            table.find(hash, |group| hashes[*group as usize] == hash && key_in(arena, ends, *group as usize) == key);
        if let Some(group) = found {
            return (*group, false);
        }
        let group = ends.len() as u32;
        arena.extend_from_slice(key);
        ends.push(arena.len() as u64);
        hashes.push(hash);
        table.insert_unique(hash, group, |group| hashes[*group as usize]);
        (group, true)
    }

    pub fn memory_bytes(&self) -> usize {
        self.arena.capacity() + (self.ends.capacity() + self.hashes.capacity()) * 8 + self.table.capacity() * 5
    }
}

#[inline]
fn key_in<'a>(arena: &'a [u8], ends: &[u64], group: usize) -> &'a [u8] {
    let start = if group == 0 { 0 } else { ends[group - 1] as usize };
    &arena[start..ends[group] as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_numbered_once_in_order_of_first_sight() {
        let mut table = GroupTable::default();
        for round in 0..2 {
            for number in 0..5000u32 {
                let key = format!("key {}", number * 7);
                assert_eq!(table.find_or_insert(key.as_bytes()), (number, round == 0));
            }
        }
        assert_eq!(table.len(), 5000);
        assert_eq!(table.key(3), b"key 21");
        assert_eq!(table.find_or_insert(b""), (5000, true));
        assert_eq!(table.key(5000), b"");
    }
}
