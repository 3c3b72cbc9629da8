//! ORDER BY: the rows kept by each core, and their merge.
//!
//! Owns [`SortPlan`], [`SortedRows`] (sorted runs of encoded rows) and [`RunMerge`]. Called by the core scan and
//! the merge.
//!
//! Every block of rows becomes a sorted run; runs are merged when they are read, so no call sorts more than
//! 1,024 rows. With a LIMIT only the best rows are kept: once twice as many as needed have come together, the
//! rest is dropped, and the worst one kept becomes a threshold that new rows must beat.
//!
//! Invariants
//! - Sort keys compare with `memcmp` and end in a tie-break that is unique in the request (row group and row,
//!   or the group key), so the answer does not depend on the number of cores.
//! - Bytes held are accounted by the caller from [`SortedRows::memory_bytes`].

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use heliostat_segment::prefix;
use hidb::plan::{ScanPlan, SortKey};

/// Keeping more rows than this for a LIMIT is like keeping all: the answer is merged from runs.
const TOP_ROWS_MAX: u64 = 65_536;

/// The rest is dropped once at least this many rows more than wanted have come together: small, because every time
/// the threshold gets sharper, and whole blocks need not be decoded any more.
const RUN_MIN: usize = 128;

/// What to sort by and how much of it is wanted.
#[derive(Clone, Debug)]
pub(crate) struct SortPlan {
    pub keys: Vec<SortKey>,
    pub offset: u64,
    pub limit: Option<u64>,
}

impl SortPlan {
    pub fn of(plan: &ScanPlan) -> Option<SortPlan> {
        (!plan.sort.is_empty()).then(|| SortPlan { keys: plan.sort.clone(), offset: plan.offset, limit: plan.limit })
    }

    /// Rows that need to be kept, if not all.
    fn top(&self) -> Option<usize> {
        let top = self.limit?.checked_add(self.offset)?;
        (top <= TOP_ROWS_MAX).then_some(top as usize)
    }
}

/// One kept row: key and payload, back to back in the arena.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The key's first 8 bytes, so that most comparisons need not look further.
    prefix: u64,
    start: u64,
    key_bytes: u32,
    bytes: u32,
}

/// Rows in sorted runs.
#[derive(Debug, Default)]
pub(crate) struct SortedRows {
    arena: Vec<u8>,
    entries: Vec<Entry>,
    /// Where each run ends in `entries`.
    runs: Vec<usize>,
    /// Keys that are not below this are not wanted.
    threshold: Option<Vec<u8>>,
    building: usize,
}

impl SortedRows {
    fn key<'a>(arena: &'a [u8], entry: &Entry) -> &'a [u8] {
        let start = entry.start as usize;
        &arena[start..start + entry.key_bytes as usize]
    }

    fn compare(arena: &[u8], a: &Entry, b: &Entry) -> Ordering {
        a.prefix.cmp(&b.prefix).then_with(|| Self::key(arena, a).cmp(Self::key(arena, b)))
    }

    /// Whether a row with this key can still be wanted.
    pub fn wants(&self, key: &[u8]) -> bool {
        self.threshold.as_deref().is_none_or(|threshold| key < threshold)
    }

    /// The key that new rows must beat.
    pub fn threshold(&self) -> Option<&[u8]> {
        self.threshold.as_deref()
    }

    /// Keeps a row; `payload` appends its values.
    pub fn push(&mut self, key: &[u8], payload: impl FnOnce(&mut Vec<u8>)) {
        let start = self.arena.len();
        self.arena.extend_from_slice(key);
        payload(&mut self.arena);
        self.entries.push(Entry {
            prefix: prefix(key),
            start: start as u64,
            key_bytes: key.len() as u32,
            bytes: (self.arena.len() - start) as u32,
        });
    }

    /// Ends a run (at most a block of rows), and drops what can't be among the best rows any more.
    pub fn end_run(&mut self, plan: &SortPlan) {
        let Self { arena, entries, .. } = self;
        entries[self.building..].sort_unstable_by(|a, b| Self::compare(arena, a, b));
        self.building = self.entries.len();
        if self.runs.last().copied().unwrap_or(0) < self.entries.len() {
            self.runs.push(self.entries.len());
        }
        if let Some(top) = plan.top()
            && self.entries.len() >= (2 * top).max(top + RUN_MIN)
        {
            self.keep_best(top);
        }
    }

    fn keep_best(&mut self, top: usize) {
        let Self { arena, entries, .. } = self;
        if top == 0 {
            entries.clear();
            self.threshold = Some(Vec::new());
        } else {
            entries.select_nth_unstable_by(top - 1, |a, b| Self::compare(arena, a, b));
            entries.truncate(top);
            entries.sort_unstable_by(|a, b| Self::compare(arena, a, b));
            self.threshold = entries.last().map(|entry| Self::key(arena, entry).to_vec());
        }
        let mut kept = Vec::with_capacity(entries.iter().map(|entry| entry.bytes as usize).sum());
        for entry in entries.iter_mut() {
            let start = kept.len() as u64;
            kept.extend_from_slice(&arena[entry.start as usize..entry.start as usize + entry.bytes as usize]);
            entry.start = start;
        }
        self.arena = kept;
        self.runs = vec![self.entries.len()];
        self.building = self.entries.len();
    }

    pub fn memory_bytes(&self) -> usize {
        self.arena.capacity() + self.entries.capacity() * size_of::<Entry>() + self.runs.capacity() * 8
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// A run's head in the merge.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    prefix: u64,
    key: Vec<u8>,
    part: usize,
    next: usize,
    end: usize,
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> Ordering {
        self.prefix.cmp(&other.prefix).then_with(|| self.key.cmp(&other.key))
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Reads the rows of several cores in order.
#[derive(Debug, Default)]
pub(crate) struct RunMerge {
    parts: Vec<SortedRows>,
    heap: BinaryHeap<Reverse<Head>>,
    skip: u64,
    left: u64,
}

impl RunMerge {
    pub fn new(parts: Vec<SortedRows>, plan: &SortPlan) -> Self {
        let mut merge =
            RunMerge { parts, heap: BinaryHeap::new(), skip: plan.offset, left: plan.limit.unwrap_or(u64::MAX) };
        for part in 0..merge.parts.len() {
            let mut start = 0;
            for run in 0..merge.parts[part].runs.len() {
                let end = merge.parts[part].runs[run];
                merge.advance(part, start, end, Vec::new());
                start = end;
            }
        }
        merge
    }

    fn advance(&mut self, part: usize, next: usize, end: usize, mut key: Vec<u8>) {
        if next < end {
            let rows = &self.parts[part];
            let entry = &rows.entries[next];
            key.clear();
            key.extend_from_slice(SortedRows::key(&rows.arena, entry));
            self.heap.push(Reverse(Head { prefix: entry.prefix, key, part, next, end }));
        }
    }

    /// Whether no row is left to visit.
    pub fn is_done(&self) -> bool {
        self.left == 0 || self.heap.is_empty()
    }

    /// Moves by at most `count` rows and visits the payloads of those that are wanted; returns how many.
    pub fn next(&mut self, count: usize, mut visit: impl FnMut(&[u8]) -> hidb::Result<()>) -> hidb::Result<usize> {
        let mut visited = 0;
        for _ in 0..count {
            if self.left == 0 {
                break;
            }
            let Some(Reverse(head)) = self.heap.pop() else { break };
            if self.skip > 0 {
                self.skip -= 1;
            } else {
                let rows = &self.parts[head.part];
                let entry = &rows.entries[head.next];
                let start = entry.start as usize;
                visit(&rows.arena[start + entry.key_bytes as usize..start + entry.bytes as usize])?;
                visited += 1;
                self.left -= 1;
            }
            self.advance(head.part, head.next + 1, head.end, head.key);
        }
        Ok(visited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn merged_runs_give_what_a_full_sort_gives() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        for (offset, limit) in
            [(0, None), (0, Some(10)), (7, Some(100)), (5, Some(0)), (0, Some(3000)), (9999, Some(5))]
        {
            let plan = SortPlan { keys: Vec::new(), offset, limit };
            let mut all: Vec<Vec<u8>> = Vec::new();
            let parts = (0..3u32).map(|part| {
                let mut rows = SortedRows::default();
                for run in 0..10u32 {
                    for row in 0..random.random_range(0..800u32) {
                        let mut key = random.random_range(0..50u32).to_be_bytes().to_vec();
                        key.extend([part, run, row].iter().flat_map(|v| v.to_be_bytes()));
                        all.push(key.clone());
                        if rows.wants(&key) {
                            rows.push(&key, |out| out.extend_from_slice(&key));
                        }
                    }
                    rows.end_run(&plan);
                }
                rows
            });
            let parts = parts.collect();
            all.sort();
            let expected: Vec<_> =
                all.into_iter().skip(offset as usize).take(limit.map_or(usize::MAX, |l| l as usize)).collect();
            let mut merge = RunMerge::new(parts, &plan);
            let mut got = Vec::new();
            while !merge.is_done() {
                let keep = |payload: &[u8]| {
                    got.push(payload.to_vec());
                    Ok(())
                };
                merge.next(100, keep).unwrap();
            }
            assert!(got == expected, "offset {offset} limit {limit:?}");
        }
    }
}
