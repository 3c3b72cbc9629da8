//! The sets behind count(distinct).
//!
//! Owns [`DistinctSets`]: one table of (group, value), or of values alone when there is one group.
//! Invariants: NULL is in no set; `counts[g]` is the number of entries of group `g`.

use hidb::{BLOCK_ROWS, DataType, Lane, Result};

use super::groups::GroupTable;
use super::paged::Paged;
use crate::rows::read_value;
use crate::vector::{Bits, NO_BITS, Vector, bit, for_each_bit, set_bit};

/// Bytes of a group number in a key's row encoding.
const GROUP_BYTES: usize = 9;

/// One set per group.
#[derive(Debug)]
pub(super) struct DistinctSets {
    table: GroupTable,
    /// Whether keys begin with the number of a group.
    grouped: bool,
    lane: Lane,
    counts: Paged<i64>,
    /// Group numbers and values of the block at hand.
    groups: Vector,
    values: Vector,
    numbers: Box<[u32; BLOCK_ROWS]>,
}

impl DistinctSets {
    /// Sets of values in `lane`; `grouped` if there may be more than one.
    pub fn new(lane: Lane, grouped: bool) -> Self {
        let value = match lane {
            Lane::Bool => DataType::Boolean,
            Lane::I64 => DataType::Int64,
            Lane::I128 => DataType::Decimal { precision: 38, scale: 0 },
            Lane::F64 => DataType::Float64,
            Lane::Bytes => DataType::Bytea,
        };
        DistinctSets {
            table: if grouped { GroupTable::new(&[DataType::Int32, value]) } else { GroupTable::new(&[value]) },
            grouped,
            lane,
            counts: Paged::default(),
            groups: Vector::default(),
            values: Vector::default(),
            numbers: Box::new([0; BLOCK_ROWS]),
        }
    }

    pub fn resize(&mut self, groups: usize) {
        self.counts.resize(groups, 0);
    }

    pub fn memory_bytes(&self) -> usize {
        self.table.memory_bytes() + self.counts.memory_bytes()
    }

    /// Entries of all sets.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Entries of a group's set.
    pub fn count(&self, group: usize) -> i64 {
        self.counts[group]
    }

    /// Adds the `valid` values of one block.
    pub fn update(&mut self, groups: &[u32], values: &Vector, valid: &Bits, all: bool) {
        let mut compacted = std::mem::take(&mut self.values);
        self.groups.reset(Lane::I64, BLOCK_ROWS);
        let mut rows = 0;
        if all {
            self.groups.i64s.iter_mut().zip(groups).for_each(|(to, group)| *to = i64::from(*group));
            rows = groups.len();
        } else {
            values.compact(valid, &mut compacted);
            compacted.has_nulls = false;
            for_each_bit(valid, |row| {
                self.groups.i64s[rows] = i64::from(groups[row]);
                rows += 1;
            });
        }
        self.add(rows, if all { values } else { &compacted });
        self.values = compacted;
    }

    /// Adds values to the sets of the groups in `self.groups`.
    fn add(&mut self, rows: usize, values: &Vector) {
        let before = self.table.len();
        let (both, one) = ([&self.groups, values], [values]);
        self.table.find_block(if self.grouped { &both } else { &one }, rows, &mut self.numbers);
        // Every new entry has a number from `before`, and counts once.
        let mut seen = NO_BITS;
        for (number, group) in self.numbers[..rows].iter().zip(&self.groups.i64s) {
            let fresh = (*number as usize).wrapping_sub(before);
            if fresh < BLOCK_ROWS && !bit(&seen, fresh) {
                set_bit(&mut seen, fresh);
                self.counts[*group as usize] += 1;
            }
        }
    }

    /// Adds the entries `first..end` of other sets; `map[g]` is the group here of group `g` there.
    pub fn absorb(&mut self, map: &[u32], other: &DistinctSets, first: usize, end: usize) -> Result<()> {
        let count = end - first;
        let mut vectors = vec![Vector::default(); 1 + usize::from(self.grouped)];
        other.table.read(first, count, &mut vectors)?;
        self.groups.reset(Lane::I64, BLOCK_ROWS);
        self.groups.i64s[..count].fill(i64::from(map[0]));
        if self.grouped {
            for (to, from) in self.groups.i64s[..count].iter_mut().zip(&vectors[0].i64s) {
                *to = i64::from(map[*from as usize]);
            }
        }
        self.add(count, &vectors[vectors.len() - 1]);
        Ok(())
    }

    /// Adds `count` values in row encoding, taken off the front of `bytes`, to a group's set.
    pub fn absorb_encoded(&mut self, group: usize, mut count: usize, bytes: &mut &[u8]) -> Result<()> {
        while count > 0 {
            let rows = count.min(BLOCK_ROWS);
            let mut values = std::mem::take(&mut self.values);
            values.reset(self.lane, BLOCK_ROWS);
            for row in 0..rows {
                read_value(bytes, self.lane, row, &mut values)?;
            }
            let valid = crate::vector::and_bits(&crate::vector::first_bits(rows), &values.valid_bits());
            let all = crate::vector::count_bits(&valid) == rows;
            self.update(&[group as u32; BLOCK_ROWS][..rows], &values, &valid, all);
            self.values = values;
            count -= rows;
        }
        Ok(())
    }

    /// For every group its entries, as [`DistinctSets::write`] wants them.
    pub fn by_group(&self) -> Result<Vec<Vec<u32>>> {
        let mut lists: Vec<Vec<u32>> = self.counts.iter().map(|count| Vec::with_capacity(*count as usize)).collect();
        let mut vectors = vec![Vector::default(); 1 + usize::from(self.grouped)];
        for first in (0..self.len()).step_by(BLOCK_ROWS) {
            let count = (self.len() - first).min(BLOCK_ROWS);
            if self.grouped {
                self.table.read(first, count, &mut vectors)?;
            }
            for row in 0..count {
                let group = if self.grouped { vectors[0].i64s[row] as usize } else { 0 };
                lists[group].push((first + row) as u32);
            }
        }
        Ok(lists)
    }

    /// Appends the row encoding of an entry's value.
    pub fn write(&self, entry: u32, out: &mut Vec<u8>) {
        let start = out.len();
        self.table.write_key(entry as usize, out);
        if self.grouped {
            out.drain(start..start + GROUP_BYTES);
        }
    }
}
