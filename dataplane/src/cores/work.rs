//! Which core scans which row groups of a request.
//!
//! Owns [`Work`] and [`GroupWork`]. Called by the session that asks ([`Work::plan`], on its home core) and by
//! [`super::scan`].
//!
//! Invariants:
//! - A core works on the shards `s` with `s % cores == core`, except that a short question about row groups that are
//!   hot on its home core ([`super::hot_groups`]) stays there; the ordinals of row groups do not depend on that.
//! - Every row group of the snapshot is in one share, or counted as pruned.
//! - What is deleted of the snapshot goes with each row group: no scan sees those rows.
//!
//! Cost: the home core looks at the zone maps of up to [`PRUNED_AT_HOME_MAX`] row groups, 0.1 to 0.2 us each for a
//! comparison (more for long IN lists), so that a point read asks only the core that has its row group: asking another one
//! costs two wake-ups. Of a larger table each core looks at its own part.

use std::sync::Arc;

use heliostat_engine::{CompiledScan, ScanStats};
use heliostat_segment::PartMeta;
use hidb::Result;

use super::{Core, Turn, positions::FoundRows};
use crate::store::{SegmentHandle, TableSnapshot};

/// The most row groups whose zone maps the home core looks at for all.
const PRUNED_AT_HOME_MAX: usize = 1024;
/// Row groups of a question that is answered at once, and bytes of their chunks.
const SHORT_ROW_GROUPS_MAX: usize = 2;
const SHORT_BYTES_MAX: u64 = 8 << 20;

/// A row group that a core works on.
#[derive(Clone)]
pub struct GroupWork {
    /// Its place in the order of all row groups of the snapshot.
    pub ordinal: u64,
    /// Its segment.
    pub segment: Arc<SegmentHandle>,
    /// Its place there.
    pub row_group: usize,
    /// The rows that are not deleted, as a bitmap; `None`: all.
    pub among: Option<Arc<[u64]>>,
    /// False when zone maps say that no row can match, or all are deleted: nothing of it is read.
    pub may_match: bool,
}

impl GroupWork {
    /// A row group that is read for its own sake, not as part of a scan.
    pub fn of(segment: &Arc<SegmentHandle>, row_group: usize) -> GroupWork {
        GroupWork { ordinal: 0, segment: segment.clone(), row_group, among: None, may_match: true }
    }

    /// Rows of it that a scan found.
    pub fn found(&self, rows: Box<[u64]>) -> FoundRows {
        let GroupWork { ordinal, ref segment, row_group, .. } = *self;
        FoundRows { ordinal, segment: segment.clone(), row_group, rows }
    }

    /// Where a chunk or membership filter is, by its number ([`heliostat_segment::RowGroupMeta::part`]).
    pub fn part(&self, number: usize) -> Result<PartMeta> {
        Ok(self.segment.part(self.row_group, number)?)
    }

    /// Whether there is such a part: not every row group has the membership filters that others have.
    pub fn has(&self, number: usize) -> bool {
        self.segment.part(self.row_group, number).is_ok()
    }

    /// Bytes of these parts on the volume.
    pub fn padded_bytes(&self, numbers: &[usize]) -> Result<u64> {
        numbers.iter().map(|number| Ok(self.part(*number)?.padded_length() as u64)).sum()
    }
}

/// A core and its row groups; `None`: it finds them itself.
pub(super) type Share = (usize, Option<Vec<GroupWork>>);

/// What there is to do for a request.
pub struct Work(Plan);

enum Plan {
    /// Row groups that may match, by core.
    Listed { shares: Vec<Vec<GroupWork>>, pruned: ScanStats, is_short: bool },
    /// Each core finds its row groups itself.
    OnEach { cores: usize },
}

impl Work {
    /// Shares a table's row groups out.
    ///
    /// # Errors
    /// Those of a segment without a column that the plan reads.
    pub async fn plan(table: &TableSnapshot, compiled: &CompiledScan, cores: usize) -> Result<Work> {
        let row_groups: usize = table.segments.iter().map(|segment| segment.footer.row_groups.len()).sum();
        if row_groups > PRUNED_AT_HOME_MAX {
            return Ok(Work(Plan::OnEach { cores }));
        }
        let mut shares = vec![Vec::new(); cores];
        let mut pruned = ScanStats::default();
        let mut turn = Turn::default();
        walk(
            table,
            compiled,
            &mut turn,
            |_| true,
            |shard, group| match group.may_match {
                true => shares[shard % cores].push(group),
                false => pruned.count_pruned(&group.segment.footer.row_groups[group.row_group]),
            },
        )
        .await;
        let mut is_short = shares.iter().map(Vec::len).sum::<usize>() <= SHORT_ROW_GROUPS_MAX;
        if is_short {
            let bytes = shares.iter().flatten().map(|group| group.padded_bytes(compiled.columns()));
            is_short = bytes.sum::<Result<u64>>()? <= SHORT_BYTES_MAX;
        }
        Ok(Work(Plan::Listed { shares, pruned, is_short }))
    }

    /// Whether so little is to be read that the answer comes at once.
    pub fn is_short(&self) -> bool {
        match &self.0 {
            Plan::Listed { is_short, .. } => *is_short,
            Plan::OnEach { .. } => false,
        }
    }

    /// Keeps a short question on `home`, the core that asks, when all row groups of other cores that it reads are hot there.
    ///
    /// # Errors
    /// As [`Work::plan`].
    pub(super) fn keep_if_hot(&mut self, home: &Core, compiled: &CompiledScan) -> Result<()> {
        let Plan::Listed { shares, is_short: true, .. } = &mut self.0 else { return Ok(()) };
        let mut hot_groups = home.hot_groups.borrow_mut();
        let mut all_are_hot = true;
        for group in elsewhere(shares, home.id).flat_map(|share| share.iter()) {
            let bytes = group.padded_bytes(compiled.columns())?;
            all_are_hot &= hot_groups.ask((group.segment.id, group.row_group), bytes);
        }
        if all_are_hot {
            let kept: Vec<_> = elsewhere(shares, home.id).flat_map(std::mem::take).collect();
            shares[home.id].extend(kept);
            shares[home.id].sort_unstable_by_key(|group| group.ordinal);
        }
        Ok(())
    }

    /// The cores that have something to do, with their row groups if these are known; at least `home`.
    pub(super) fn into_shares(self, home: usize) -> (Vec<Share>, ScanStats) {
        match self.0 {
            Plan::OnEach { cores } => ((0..cores).map(|core| (core, None)).collect(), ScanStats::default()),
            Plan::Listed { shares, pruned, .. } => {
                let shares = shares.into_iter().enumerate().filter(|(_, share)| !share.is_empty());
                let mut shares: Vec<_> = shares.map(|(core, share)| (core, Some(share))).collect();
                if shares.is_empty() {
                    shares.push((home, Some(Vec::new())));
                }
                (shares, pruned)
            }
        }
    }
}

/// The shares of the other cores.
fn elsewhere(shares: &mut [Vec<GroupWork>], home: usize) -> impl Iterator<Item = &mut Vec<GroupWork>> {
    shares.iter_mut().enumerate().filter(move |(core, _)| *core != home).map(|(_, share)| share)
}

/// The row groups of one core's shards, in the order of the snapshot.
pub(super) async fn of_core(
    table: &TableSnapshot,
    compiled: &CompiledScan,
    (core, cores): (usize, usize),
    turn: &mut Turn,
) -> Vec<GroupWork> {
    let mut work = Vec::new();
    walk(table, compiled, turn, |shard| shard % cores == core, |_, group| work.push(group)).await;
    work
}

/// Visits the row groups of some shards, with their shard.
async fn walk(
    table: &TableSnapshot,
    compiled: &CompiledScan,
    turn: &mut Turn,
    is_wanted: impl Fn(usize) -> bool,
    mut visit: impl FnMut(usize, GroupWork),
) {
    let mut ordinal = 0;
    for (segment, deleted) in table.segments.iter().zip(&table.deleted) {
        let groups = &segment.footer.row_groups;
        let shard = segment.shard as usize;
        if is_wanted(shard) {
            let segment_may_match = compiled.may_match(&segment.footer.zones);
            for (row_group, meta) in groups.iter().enumerate() {
                let is_deleted = deleted.as_ref().is_some_and(|deleted| deleted.is_all_of(row_group));
                let may_match = segment_may_match && !is_deleted && compiled.row_group_may_match(meta);
                let among = deleted.as_ref().and_then(|deleted| deleted.among(row_group));
                let ordinal = ordinal + row_group as u64;
                visit(shard, GroupWork { ordinal, segment: segment.clone(), row_group, among, may_match });
                turn.yield_if_due().await;
            }
        }
        ordinal += groups.len() as u64;
    }
}
