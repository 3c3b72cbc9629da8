//! The rows that may be in an answer.
//!
//! Owns [`Passing`] (rows for which a filter is true), [`AllowedRows`] (the rows that an index may answer with: those that
//! pass, or those that were not deleted), and the filters that a core remembers. Called by the planner, on the session's home
//! core.
//!
//! The same filter is asked for again and again, with another vector: a core keeps the bitmaps of its last few filters.
//!
//! Invariants
//! - What is kept belongs to one snapshot of the table: a load, a delete or a merge makes another. It keeps no segment alive.
//! - What is kept has at most [`KEPT_BYTES_MAX`] a core; what belongs to a snapshot that is gone is dropped at the next
//!   filtered search on the core.
//!
//! Cost: a bit a row of row groups in which any row passes; as much again, of all row ids from the least to the greatest, for
//! an index.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock, Weak};

use heliostat_segment::all_rows;
use hidb::{Error, ErrorCode, Result};

use super::exact::Part;
use super::index::LoadedGraph;
use super::index::graph::GraphFilter;
use super::rowids::{GroupIds, RowSet};
use super::{Filter, Question};
use crate::cache::BlockCache;
use crate::cores::{Cores, Turn, positions::find, work::GroupWork};
use crate::device::uring::UringDevice;
use crate::store::{BuiltIndex, SegmentHandle, TableSnapshot};

/// Bytes of bitmaps that a core keeps, and how many filters.
const KEPT_BYTES_MAX: usize = 32 << 20;
const KEPT_MAX: usize = 16;
/// A condition that took more bytes is not kept: they are compared at each search.
const PLAN_BYTES_MAX: usize = 64 << 10;

/// Rows of a row group; at least one.
#[derive(Debug)]
struct Group {
    /// The segment's place in the snapshot.
    segment: u32,
    row_group: u32,
    rows: Arc<[u64]>,
    /// How many.
    count: u64,
}

/// The rows of a snapshot for which a filter is true.
#[derive(Debug)]
pub struct Passing {
    groups: Vec<Group>,
    /// How many.
    pub rows: u64,
    /// Those that an index has, by the index object's id: made when one is asked.
    of_index: OnceLock<(u64, Arc<AllowedRows>)>,
}

/// The rows that an index may answer with.
#[derive(Debug)]
pub struct AllowedRows {
    /// By row id.
    pub set: RowSet,
    /// As the graph of an index object numbers them, with its id: made when one is asked.
    in_graph: OnceLock<(u64, Arc<GraphFilter>)>,
}

struct Kept {
    snapshot: Weak<TableSnapshot>,
    /// The condition, as it was sent.
    plan: Box<[u8]>,
    passing: Arc<Passing>,
    bytes: usize,
}

thread_local! {
    /// The last filters, the one used last first.
    static KEPT: RefCell<VecDeque<Kept>> = RefCell::default();
}

impl Passing {
    /// The rows for which `filter` is true; remembered from an earlier question, or found by a scan on all cores. Also
    /// returns how many bytes the device read for it.
    ///
    /// # Errors
    /// As [`find`].
    pub async fn of(cores: &Cores, question: &Question, filter: &Filter) -> Result<(Arc<Passing>, u64)> {
        let table = &question.table;
        if let Some(passing) = kept(table, filter).filter(|_| !question.bypass_cache) {
            return Ok((passing, 0));
        }
        let (options, bypass) = (question.options.clone(), question.bypass_cache);
        let (found, scanned) = find(cores, table, Some(&filter.condition), options, None, bypass).await?;
        let places: HashMap<u64, u32> = table.segments.iter().map(|segment| segment.id).zip(0..).collect();
        let mut groups = Vec::with_capacity(found.len());
        let mut turn = Turn::default();
        for found in found {
            let place = places.get(&found.segment.id).copied();
            groups.push(Group {
                segment: place
                    .ok_or_else(|| Error::new(ErrorCode::Internal, "rows of a segment of another snapshot"))?,
                row_group: found.row_group as u32,
                count: found.rows.iter().map(|word| u64::from(word.count_ones())).sum(),
                rows: found.rows.into(),
            });
            turn.yield_if_due().await;
        }
        let rows = groups.iter().map(|group| group.count).sum();
        let passing = Arc::new(Passing { groups, rows, of_index: OnceLock::new() });
        keep(table, filter, &passing);
        Ok((passing, scanned.bytes_read_device))
    }

    /// How many of the rows an index covers.
    pub fn covered_rows(&self, table: &TableSnapshot, built: &BuiltIndex) -> u64 {
        let covers = |group: &&Group| table.segments.get(group.segment as usize).is_some_and(|s| built.covers(s.id));
        self.groups.iter().filter(covers).map(|group| group.count).sum()
    }

    /// The row groups to compare, with the rows that pass.
    pub fn parts(&self, table: &TableSnapshot) -> Vec<Part> {
        let groups = self.groups.iter().filter_map(|group| Some((table.segments.get(group.segment as usize)?, group)));
        let part = |(segment, group): (&Arc<SegmentHandle>, &Group)| Part {
            group: GroupWork::of(segment, group.row_group as usize),
            among: Some(group.rows.clone()),
        };
        groups.map(part).collect()
    }

    /// With the two sets that it may get.
    fn memory_bytes(&self, table: &TableSnapshot) -> usize {
        let groups: usize = self.groups.iter().map(|group| size_of_val(&*group.rows) + size_of::<Group>()).sum();
        groups + 2 * RowSet::memory_bytes(table.rowids())
    }
}

/// Finds a remembered filter, and drops those whose snapshot is gone.
fn kept(table: &Arc<TableSnapshot>, filter: &Filter) -> Option<Arc<Passing>> {
    KEPT.with_borrow_mut(|kept| {
        kept.retain(|kept| kept.snapshot.strong_count() > 0);
        let at = kept.iter().position(|kept| kept.is_of(table, filter))?;
        let found = kept.remove(at)?;
        let passing = found.passing.clone();
        kept.push_front(found);
        Some(passing)
    })
}

fn keep(table: &Arc<TableSnapshot>, filter: &Filter, passing: &Arc<Passing>) {
    let bytes = filter.plan.len() + passing.memory_bytes(table);
    if filter.plan.len() > PLAN_BYTES_MAX || bytes > KEPT_BYTES_MAX {
        return;
    }
    KEPT.with_borrow_mut(|kept| {
        kept.retain(|kept| !kept.is_of(table, filter));
        let snapshot = Arc::downgrade(table);
        kept.push_front(Kept { snapshot, plan: filter.plan.clone(), passing: passing.clone(), bytes });
        let mut sum = 0;
        let fits = kept.iter().take(KEPT_MAX).take_while(|kept| {
            sum += kept.bytes;
            sum <= KEPT_BYTES_MAX
        });
        let fits = fits.count();
        kept.truncate(fits);
    });
}

impl Kept {
    fn is_of(&self, table: &Arc<TableSnapshot>, filter: &Filter) -> bool {
        std::ptr::eq(self.snapshot.as_ptr(), Arc::as_ptr(table)) && self.plan == filter.plan
    }
}

impl AllowedRows {
    fn new(set: RowSet) -> Arc<Self> {
        Arc::new(AllowedRows { set, in_graph: OnceLock::new() })
    }

    /// The rows that an index may answer with, of those that pass or of all; `None`: all that it has.
    ///
    /// # Errors
    /// The device's, and `Corruption`.
    pub async fn of(
        table: &TableSnapshot,
        built: &BuiltIndex,
        cache: &BlockCache<UringDevice>,
        passing: Option<&Passing>,
    ) -> Result<Option<Arc<AllowedRows>>> {
        match passing {
            Some(passing) => passing_of_index(table, built, cache, passing).await.map(Some),
            None => live_of_index(table, built, cache).await,
        }
    }

    /// The rows as the graph of index object `object` numbers them.
    pub async fn in_graph(&self, object: u64, graph: &LoadedGraph) -> Arc<GraphFilter> {
        if let Some((_, filter)) = self.in_graph.get().filter(|(of, _)| *of == object) {
            return filter.clone();
        }
        let filter = Arc::new(GraphFilter::of(graph, &self.set).await);
        // Somebody else may have been here meanwhile: one is as good as the other.
        let _ = self.in_graph.set((object, filter.clone()));
        filter
    }
}

async fn passing_of_index(
    table: &TableSnapshot,
    built: &BuiltIndex,
    cache: &BlockCache<UringDevice>,
    passing: &Passing,
) -> Result<Arc<AllowedRows>> {
    let object = built.handle.id;
    if let Some((_, rows)) = passing.of_index.get().filter(|(of, _)| *of == object) {
        return Ok(rows.clone());
    }
    let groups = passing.groups.iter().filter_map(|group| {
        let segment = table.segments.get(group.segment as usize).filter(|segment| built.covers(segment.id))?;
        Some((segment, group.row_group as usize, &*group.rows))
    });
    let rows = AllowedRows::new(row_set(table, cache, groups).await?);
    let (of, first) = passing.of_index.get_or_init(|| (object, rows.clone()));
    Ok(if *of == object { first.clone() } else { rows })
}

async fn live_of_index(
    table: &TableSnapshot,
    built: &BuiltIndex,
    cache: &BlockCache<UringDevice>,
) -> Result<Option<Arc<AllowedRows>>> {
    if let Some(rows) = built.rows.get() {
        return Ok(rows.clone());
    }
    let covered = || table.segments.iter().filter(|segment| built.covers(segment.id));
    let rows_now: u64 = covered().map(|segment| segment.footer.rows()).sum();
    let any_deleted = covered().any(|segment| table.deleted_of(segment.id).is_some());
    if !any_deleted && rows_now == built.handle.record.rows {
        return Ok(built.rows.get_or_init(|| None).clone());
    }
    let live = covered().flat_map(|segment| {
        let metas = segment.footer.row_groups.iter().enumerate();
        metas.map(move |(row_group, meta)| {
            let rows = table.live_rows(segment.id, row_group);
            (segment, row_group, rows.unwrap_or_else(|| all_rows(meta.rows as usize).into()))
        })
    });
    let rows = AllowedRows::new(row_set(table, cache, live).await?);
    Ok(built.rows.get_or_init(|| Some(rows)).clone())
}

/// The ids of rows of row groups, whose bits are set.
async fn row_set<'t, R: AsRef<[u64]>>(
    table: &TableSnapshot,
    cache: &BlockCache<UringDevice>,
    groups: impl Iterator<Item = (&'t Arc<SegmentHandle>, usize, R)>,
) -> Result<RowSet> {
    let mut set = RowSet::for_table(table.rowids());
    let mut turn = Turn::default();
    for (segment, row_group, rows) in groups {
        set.add(rows.as_ref(), &GroupIds::of(segment, row_group, cache).await?);
        turn.yield_if_due().await;
    }
    Ok(set)
}
