//! Rows by their ids.
//!
//! Owns [`RowIds`] (which row groups may hold a row id, of one snapshot), [`RowIdRuns`] (what was learnt of a segment's
//! row ids) and [`RowSet`] (a set of row ids as a bitmap). Called by the searches, which name rows by id, and by `answer`,
//! which reads them.
//!
//! Nearly always the rows of a row group have ids without gaps, in order: they were loaded so, and merges keep rows of
//! one load together. Such a row group is a *run*, and finding a row in it is a subtraction. That it is one is seen in its
//! `_rowid` chunk, once per segment. Other row groups (merged in the order of a column) are decoded when a row of theirs
//! is asked for.
//!
//! Invariants
//! - A row id is in at most one row group of a snapshot, at one place.
//! - Memory: 24 bytes a row group; a [`RowSet`] one bit for each id between its least and greatest.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use heliostat_segment::{BLOCK_ROWS, Chunk};
use hidb::{DataType, Error, ErrorCode, Result, Scalar};

use crate::cache::BlockCache;
use crate::cores::{Turn, work::GroupWork};
use crate::device::Device;
use crate::store::{SegmentHandle, TableSnapshot};

/// Where a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Index of its segment in the snapshot.
    pub segment: u32,
    /// Row group of the segment.
    pub row_group: u32,
    /// Row of the row group.
    pub row: u32,
}

/// Which row groups of a segment are runs, as far as it is known. Lives as long as the segment's handle.
#[derive(Debug, Default)]
pub struct RowIdRuns(OnceLock<Box<[OnceLock<Option<i64>>]>>);

impl RowIdRuns {
    fn of(&self, row_groups: usize, row_group: usize) -> Option<&OnceLock<Option<i64>>> {
        self.0.get_or_init(|| (0..row_groups).map(|_| OnceLock::new()).collect()).get(row_group)
    }
}

#[derive(Clone, Copy, Debug)]
struct Interval {
    least: i64,
    greatest: i64,
    /// The greatest id of this interval and those before it.
    greatest_so_far: i64,
    segment: u32,
    row_group: u32,
}

/// Which row groups may hold a row id, of one snapshot.
#[derive(Debug)]
pub struct RowIds {
    /// By least id.
    intervals: Vec<Interval>,
}

impl RowIds {
    /// From the zone maps of a snapshot's row ids.
    pub fn of(table: &TableSnapshot) -> RowIds {
        let column = table.schema.len();
        let mut intervals = Vec::new();
        for (segment, handle) in table.segments.iter().enumerate() {
            for (row_group, meta) in handle.footer.row_groups.iter().enumerate() {
                let zone = meta.columns.get(column).map(|chunk| &chunk.zone);
                let (least, greatest) = match zone.map(|zone| (&zone.min, &zone.max)) {
                    Some((Scalar::I64(least), Scalar::I64(greatest))) => (*least, *greatest),
                    _ => (i64::MIN, i64::MAX),
                };
                let (segment, row_group) = (segment as u32, row_group as u32);
                intervals.push(Interval { least, greatest, greatest_so_far: greatest, segment, row_group });
            }
        }
        intervals.sort_unstable_by_key(|interval| (interval.least, interval.segment, interval.row_group));
        let mut greatest = i64::MIN;
        for interval in &mut intervals {
            greatest = greatest.max(interval.greatest);
            interval.greatest_so_far = greatest;
        }
        RowIds { intervals }
    }

    /// Row groups whose bounds hold `rowid`.
    fn candidates(&self, rowid: i64) -> impl Iterator<Item = (u32, u32)> {
        let end = self.intervals.partition_point(|interval| interval.least <= rowid);
        let before = self.intervals[..end].iter().rev().take_while(move |i| i.greatest_so_far >= rowid);
        before.filter(move |i| i.greatest >= rowid).map(|i| (i.segment, i.row_group))
    }

    /// Where these rows are, in the same order; `None` for ids that the snapshot does not have. Reads the `_rowid` chunks
    /// of row groups of which it is not known that they are runs.
    ///
    /// # Errors
    /// The device's, and `Corruption`.
    pub async fn locate<D: Device>(
        &self,
        table: &TableSnapshot,
        cache: &BlockCache<D>,
        rowids: &[i64],
    ) -> Result<Vec<Option<Place>>> {
        let mut places = vec![None; rowids.len()];
        let mut turn = Turn::default();
        // What has to be looked for in a chunk: by row group, indices into `rowids`.
        let mut unknown: BTreeMap<(u32, u32), Vec<usize>> = BTreeMap::new();
        for (index, rowid) in rowids.iter().enumerate() {
            for (segment, row_group) in self.candidates(*rowid) {
                let known =
                    table.segments.get(segment as usize).and_then(|handle| known_run(handle, row_group as usize));
                match known {
                    Some(Some(first)) => {
                        // A run has all ids between its bounds.
                        places[index] = Some(Place { segment, row_group, row: (rowid - first) as u32 });
                        break;
                    }
                    _ => unknown.entry((segment, row_group)).or_default().push(index),
                }
            }
        }
        for ((segment, row_group), indices) in unknown {
            let ids = read(&table.segments[segment as usize], row_group as usize, cache).await?;
            let mut wanted: Vec<(i64, usize)> = indices.into_iter().map(|index| (rowids[index], index)).collect();
            wanted.sort_unstable();
            for (row, id) in ids.iter().enumerate() {
                let first = wanted.partition_point(|(wanted, _)| wanted < id);
                for (_, index) in wanted[first..].iter().take_while(|(wanted, _)| wanted == id) {
                    places[*index] = Some(Place { segment, row_group, row: row as u32 });
                }
                if row % (8 * BLOCK_ROWS) == 0 {
                    turn.yield_if_due().await;
                }
            }
            turn.yield_if_due().await;
        }
        Ok(places)
    }
}

/// The first id of a row group that is a run; `Some(None)`: it is none; `None`: not known yet.
fn known_run(segment: &SegmentHandle, row_group: usize) -> Option<Option<i64>> {
    segment.rowid_runs.of(segment.footer.row_groups.len(), row_group)?.get().copied()
}

/// The row ids of a row group, in its order; remembers whether it is a run.
///
/// # Errors
/// The device's, and `Corruption`.
pub async fn read<D: Device>(
    segment: &Arc<SegmentHandle>,
    row_group: usize,
    cache: &BlockCache<D>,
) -> Result<Vec<i64>> {
    let missing = || Error::new(ErrorCode::Internal, format!("no row group {row_group} in segment {}", segment.id));
    let column = segment.footer.schema.len();
    let address = GroupWork::of(segment, row_group).addresses(&[column])?;
    let bytes = cache.fetch(&address, false).await?.chunks.pop().ok_or_else(missing)?;
    let rows = segment.footer.row_groups.get(row_group).ok_or_else(missing)?.rows;
    let chunk = Chunk::open(bytes, &DataType::Int64, rows)?;
    let mut ids = Vec::with_capacity(chunk.rows());
    let mut block = Box::new([0i64; BLOCK_ROWS]);
    let mut turn = Turn::default();
    for b in 0..chunk.blocks() {
        chunk.decode_i64(b, &mut block)?;
        ids.extend_from_slice(&block[..chunk.block_rows(b)]);
        turn.yield_if_due().await;
    }
    if let Some(known) = segment.rowid_runs.of(segment.footer.row_groups.len(), row_group) {
        let is_run = ids.windows(2).all(|pair| pair[0].checked_add(1) == Some(pair[1]));
        known.get_or_init(|| is_run.then(|| ids.first().copied()).flatten());
    }
    Ok(ids)
}

/// A set of row ids.
#[derive(Clone, Debug, Default)]
pub struct RowSet {
    /// The id of the first bit, a multiple of 64.
    base: i64,
    words: Vec<u64>,
    count: u64,
}

impl RowSet {
    /// Bytes of a set for a snapshot: a bit for each id from the least to the greatest.
    pub fn memory_bytes(rowids: &RowIds) -> usize {
        8 * Self::bounds(rowids).1
    }

    /// An empty set with room for the ids of a snapshot.
    pub fn for_table(rowids: &RowIds) -> RowSet {
        let (base, words) = Self::bounds(rowids);
        RowSet { base, words: vec![0; words], count: 0 }
    }

    /// The first id, and how many words.
    fn bounds(rowids: &RowIds) -> (i64, usize) {
        let least = rowids.intervals.first().map_or(0, |interval| interval.least);
        let greatest = rowids.intervals.last().map_or(-1, |interval| interval.greatest_so_far);
        let base = least.div_euclid(64) * 64;
        // Wide enough for row groups of which no bounds are known.
        let span = i128::from(greatest) - i128::from(base);
        (base, usize::try_from(span.div_euclid(64) + 1).unwrap_or(0))
    }

    /// Whether an id is in.
    #[inline]
    pub fn contains(&self, rowid: i64) -> bool {
        let bit = rowid.wrapping_sub(self.base) as u64;
        self.words.get((bit / 64) as usize).is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    /// The 64 ids from `first` on, the first in the lowest bit.
    pub fn word_from(&self, first: i64) -> u64 {
        let bit = first.wrapping_sub(self.base) as u64;
        let word = |at: u64| self.words.get(at as usize).copied().unwrap_or(0);
        // Ids before the set's first have the last of 2^58 words, behind which the first follows.
        match bit % 64 {
            0 => word(bit / 64),
            by => word(bit / 64) >> by | word((bit / 64 + 1) % (1 << 58)) << (64 - by),
        }
    }

    /// How many ids are in.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Adds the rows of a row group whose bits are set. `ids` are its row ids, or the first of a run.
    pub fn add(&mut self, rows: &[u64], ids: &GroupIds) {
        match ids {
            GroupIds::Run(first) => {
                let shift = first.wrapping_sub(self.base) as u64;
                let (at, by) = ((shift / 64) as usize, shift % 64);
                for (index, word) in rows.iter().enumerate().filter(|(_, word)| **word != 0) {
                    self.put(at + index, word << by);
                    if by > 0 {
                        self.put(at + index + 1, word >> (64 - by));
                    }
                }
            }
            GroupIds::Listed(ids) => {
                for (index, mut word) in rows.iter().copied().enumerate() {
                    while word != 0 {
                        let row = index * 64 + word.trailing_zeros() as usize;
                        word &= word - 1;
                        if let Some(id) = ids.get(row) {
                            let bit = id.wrapping_sub(self.base) as u64;
                            self.put((bit / 64) as usize, 1 << (bit % 64));
                        }
                    }
                }
            }
        }
    }

    fn put(&mut self, at: usize, bits: u64) {
        if let Some(word) = self.words.get_mut(at) {
            self.count += u64::from((bits & !*word).count_ones());
            *word |= bits;
        }
    }
}

/// The row ids of a row group.
#[derive(Clone, Debug)]
pub enum GroupIds {
    /// Without gaps from this one on.
    Run(i64),
    /// One by one.
    Listed(Vec<i64>),
}

impl GroupIds {
    /// Those of a row group; reads them unless it is known to be a run.
    ///
    /// # Errors
    /// As [`read`].
    pub async fn of<D: Device>(
        segment: &Arc<SegmentHandle>,
        row_group: usize,
        cache: &BlockCache<D>,
    ) -> Result<GroupIds> {
        if let Some(Some(first)) = known_run(segment, row_group) {
            return Ok(GroupIds::Run(first));
        }
        let ids = read(segment, row_group, cache).await?;
        Ok(match known_run(segment, row_group) {
            Some(Some(first)) => GroupIds::Run(first),
            _ => GroupIds::Listed(ids),
        })
    }

    /// The id of a row.
    pub fn id(&self, row: usize) -> Option<i64> {
        match self {
            GroupIds::Run(first) => Some(first + row as i64),
            GroupIds::Listed(ids) => ids.get(row).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(base: i64, words: usize) -> RowSet {
        RowSet { base, words: vec![0; words], count: 0 }
    }

    proptest! {
        #[test]
        fn a_set_holds_what_was_added_however_it_came(
            first in 0i64..500,
            rows in proptest::collection::vec(any::<u64>(), 0..4),
        ) {
            let listed: Vec<i64> = (first..first + 64 * rows.len() as i64).collect();
            let (mut run, mut each) = (set(0, 16), set(0, 16));
            run.add(&rows, &GroupIds::Run(first));
            each.add(&rows, &GroupIds::Listed(listed));
            prop_assert_eq!(&run.words, &each.words);
            prop_assert_eq!(run.count(), rows.iter().map(|word| u64::from(word.count_ones())).sum::<u64>());
            for row in 0..64 * rows.len() {
                let is_in = rows[row / 64] >> (row % 64) & 1 == 1;
                prop_assert_eq!(run.contains(first + row as i64), is_in);
            }
            prop_assert!(!run.contains(first - 1));
            prop_assert!(!run.contains(i64::MIN));
            for start in -130..1100i64 {
                let word = run.word_from(start);
                prop_assert!((0..64).all(|bit| word >> bit & 1 == u64::from(run.contains(start + bit))), "from {start}");
            }
        }
    }

    #[test]
    fn overlapping_row_groups_are_all_candidates() {
        let interval =
            |least, greatest, segment| Interval { least, greatest, greatest_so_far: 0, segment, row_group: 0 };
        let mut intervals = vec![interval(0, 100, 0), interval(10, 20, 1), interval(30, 40, 2), interval(200, 300, 3)];
        let mut greatest = i64::MIN;
        for interval in &mut intervals {
            greatest = greatest.max(interval.greatest);
            interval.greatest_so_far = greatest;
        }
        let rowids = RowIds { intervals };
        let found = |rowid| rowids.candidates(rowid).map(|(segment, _)| segment).collect::<Vec<_>>();
        assert_eq!(found(15), [1, 0]);
        assert_eq!(found(35), [2, 0]);
        assert_eq!(found(50), [0]);
        assert_eq!(found(150), [0u32; 0]);
        assert_eq!(found(250), [3]);
        assert_eq!(found(-1), [0u32; 0]);
    }
}
