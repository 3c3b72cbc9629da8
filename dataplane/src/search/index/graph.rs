//! Searching a graph: on the core that asks, without a read.
//!
//! Owns [`search`], [`search_rows`] and [`GraphFilter`]. Called by the planner and by the builder, which measures recall.
//!
//! Invariant: between two queries the core lets others run; a single query takes 50 to 500 us, for as long as which a core
//! may be held up.

use std::cell::RefCell;

use heliostat_vector::graph::{GraphSearch, GraphStatistics, RowsSearch, Scratch};
use heliostat_vector::{Elements, Neighbor};
use hidb::Result;

use super::LoadedGraph;
use crate::cores::Turn;
use crate::search::{invalid, rowids::RowSet};

/// Rows passed over between two looks at the clock: 50 us where their codes come from memory.
const ROWS_PER_STEP: usize = 1024;
/// Comparisons of a row with a query in that time: 50 us.
const COMPARISONS_PER_STEP: usize = 4096;
/// Queries that share the way of codes from memory, and what they may hold together.
const QUERIES_AT_ONCE: usize = 64;
const QUERY_BYTES_MAX: usize = 4 << 20;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The rows of a graph that may be in an answer, by number.
#[derive(Debug)]
pub struct GraphFilter {
    words: Vec<u64>,
    /// How many.
    count: usize,
}

impl GraphFilter {
    /// Those whose ids are in a set. 64 rows at a time where the graph's row ids follow each other; else 2 ns a row.
    pub async fn of(loaded: &LoadedGraph, rows: &RowSet) -> GraphFilter {
        let mut words = vec![0u64; loaded.rowids.len().div_ceil(64)];
        let mut turn = Turn::default();
        if loaded.runs.is_empty() {
            for (index, ids) in loaded.rowids.chunks(64).enumerate() {
                let bits = ids.iter().enumerate().map(|(bit, id)| u64::from(rows.contains(*id)) << bit);
                words[index] = bits.fold(0, |word, bit| word | bit);
                if index % 256 == 255 {
                    turn.yield_if_due().await;
                }
            }
            return GraphFilter::from_words(words);
        }
        let ends = loaded.runs.iter().skip(1).map(|start| *start as usize).chain([loaded.rowids.len()]);
        for (start, end) in loaded.runs.iter().map(|start| *start as usize).zip(ends) {
            for first in (start..end).step_by(64) {
                let (bits, rest) = (rows.word_from(loaded.rowids[first]), end - first);
                let bits = if rest < 64 { bits & ((1 << rest) - 1) } else { bits };
                words[first / 64] |= bits << (first % 64);
                if first % 64 > 0
                    && let Some(next) = words.get_mut(first / 64 + 1)
                {
                    *next |= bits >> (64 - first % 64);
                }
                if (first - start) % (1 << 16) == 0 {
                    turn.yield_if_due().await;
                }
            }
        }
        GraphFilter::from_words(words)
    }

    fn from_words(words: Vec<u64>) -> GraphFilter {
        let count = words.iter().map(|word| word.count_ones() as usize).sum();
        GraphFilter { words, count }
    }
}

/// Where runs of row ids that follow each other begin; empty when they are so short that row by row is as well.
pub fn runs(rowids: &[i64]) -> Vec<u32> {
    let begins = |row: &usize| *row == 0 || rowids[row - 1].checked_add(1) != Some(rowids[*row]);
    let starts = (0..rowids.len()).filter(begins).map(|row| row as u32);
    let most = rowids.len() / 16 + 1;
    let mut runs: Vec<u32> = starts.take(most + 1).collect();
    if runs.len() > most {
        runs.clear();
    }
    runs.shrink_to_fit();
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

/// As [`search`] for each of some queries, by comparing the codes of all rows that pass, some at a time.
///
/// # Errors
/// As [`search`].
pub async fn search_rows(
    loaded: &LoadedGraph,
    queries: &[Elements<'_>],
    k: usize,
    filter: &GraphFilter,
    turn: &mut Turn,
) -> Result<Vec<(Vec<Neighbor>, GraphStatistics)>> {
    let mut answers = Vec::with_capacity(queries.len());
    while answers.len() < queries.len() {
        let mut search = RowsSearch::new(&loaded.graph, GraphSearch::new(k, k), filter.count).map_err(invalid)?;
        let at_once = (QUERY_BYTES_MAX / search.query_bytes().max(1)).clamp(1, QUERIES_AT_ONCE);
        let queries = &queries[answers.len()..];
        let queries = &queries[..at_once.min(queries.len())];
        for query in queries {
            let push = |scratch: &mut Scratch| search.push(&loaded.graph, *query, scratch);
            SCRATCH.with_borrow_mut(push).map_err(invalid)?;
            turn.yield_if_due().await;
        }
        let rows_per_step = ROWS_PER_STEP.min(COMPARISONS_PER_STEP / queries.len());
        let mut at = 0;
        while at < filter.words.len() {
            at = search.step(&loaded.graph, &filter.words, at, rows_per_step);
            turn.yield_if_due().await;
        }
        while let Some(found) = SCRATCH.with_borrow_mut(|scratch| search.finish_next(&loaded.graph, scratch)) {
            answers.push(by_id(loaded, found)?);
            turn.yield_if_due().await;
        }
    }
    Ok(answers)
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
        fn runs_begin_where_an_id_does_not_follow(
            steps in prop::collection::vec(prop_oneof![60 => Just(1i64), 1 => -50i64..50], 0..600),
        ) {
            let ids: Vec<i64> = steps.iter().scan(0i64, |id, step| { *id += step; Some(*id) }).collect();
            let begins = |row: &u32| *row == 0 || ids[*row as usize] != ids[*row as usize - 1] + 1;
            let expected: Vec<u32> = (0..ids.len() as u32).filter(begins).collect();
            let is_short = expected.len() > ids.len() / 16 + 1;
            prop_assert_eq!(runs(&ids), if is_short { Vec::new() } else { expected });
        }
    }
}
