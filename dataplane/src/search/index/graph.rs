//! Searching a graph: on the core that asks, without a read.
//!
//! Owns [`search`], [`search_rows`] and [`GraphFilter`]. Called by the planner and by the builder, which measures recall.
//!
//! Invariant: between two queries the core lets others run; a single query takes 50 to 500 us, for as long as which a core
//! may be held up.

use std::cell::RefCell;
use std::ops::Range;

use heliostat_vector::graph::{GraphSearch, GraphStatistics, Scratch};
use heliostat_vector::{Elements, Neighbor};
use hidb::Result;

use super::LoadedGraph;
use crate::search::{invalid, rowids::RowSet};

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The rows of a graph that may be in an answer, by number.
#[derive(Debug)]
pub struct GraphFilter {
    words: Vec<u64>,
}

impl GraphFilter {
    /// Those whose ids are in a set. 64 rows at a time where the graph's row ids are without gaps; else about 2 ns a row.
    pub fn of(loaded: &LoadedGraph, rows: &RowSet) -> GraphFilter {
        let mut words = vec![0u64; loaded.rowids.len().div_ceil(64)];
        for run in &loaded.runs {
            for first in run.clone().step_by(64) {
                let bits = rows.word_from(loaded.rowids[first]);
                let rest = run.end - first;
                let bits = if rest < 64 { bits & ((1 << rest) - 1) } else { bits };
                words[first / 64] |= bits << (first % 64);
                if first % 64 > 0
                    && let Some(next) = words.get_mut(first / 64 + 1)
                {
                    *next |= bits >> (64 - first % 64);
                }
            }
        }
        GraphFilter { words }
    }
}

/// The rows whose ids follow each other, as ranges that cover all.
pub fn runs(rowids: &[i64]) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let mut first = 0;
    for next in 1..=rowids.len() {
        if rowids.get(next).is_none_or(|id| rowids[next - 1].checked_add(1) != Some(*id)) {
            runs.push(first..next);
            first = next;
        }
    }
    runs
}

/// The nearest rows by row id, nearest first; at equal distance the lesser id first.
///
/// # Errors
/// `InvalidParameter` for what does not fit the index.
pub fn search(
    loaded: &LoadedGraph,
    query: Elements<'_>,
    options: GraphSearch,
    filter: Option<&GraphFilter>,
) -> Result<(Vec<Neighbor>, GraphStatistics)> {
    let words = filter.map(|filter| &filter.words[..]);
    let found = SCRATCH.with_borrow_mut(|scratch| loaded.graph.search(query, options, words, scratch));
    by_id(loaded, found)
}

/// As [`search`], by comparing the codes of all rows that pass.
///
/// # Errors
/// As [`search`].
pub fn search_rows(
    loaded: &LoadedGraph,
    query: Elements<'_>,
    k: usize,
    filter: &GraphFilter,
) -> Result<(Vec<Neighbor>, GraphStatistics)> {
    let options = GraphSearch::new(k, k);
    let found = SCRATCH.with_borrow_mut(|scratch| loaded.graph.search_rows(query, options, &filter.words, scratch));
    by_id(loaded, found)
}

fn by_id(
    loaded: &LoadedGraph,
    found: heliostat_vector::Result<(Vec<Neighbor>, GraphStatistics)>,
) -> Result<(Vec<Neighbor>, GraphStatistics)> {
    let (mut found, statistics) = found.map_err(invalid)?;
    for neighbor in &mut found {
        neighbor.row = loaded.rowids[neighbor.row as usize] as u64;
    }
    found.sort_unstable_by(Neighbor::order);
    Ok((found, statistics))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_cover_all_rows_and_have_no_gaps(steps in prop::collection::vec(prop_oneof![8 => Just(1i64), 1 => -50i64..50], 0..300)) {
            let ids: Vec<i64> = steps.iter().scan(0i64, |id, step| { *id += step; Some(*id) }).collect();
            let runs = runs(&ids);
            let covered: Vec<usize> = runs.iter().cloned().flatten().collect();
            prop_assert_eq!(covered, (0..ids.len()).collect::<Vec<_>>());
            for run in &runs {
                prop_assert!(run.clone().all(|row| ids[row] == ids[run.start] + (row - run.start) as i64));
            }
        }
    }
}
