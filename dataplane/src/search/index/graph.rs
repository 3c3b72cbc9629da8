//! Searching a graph: on the core that asks, without a read.
//!
//! Owns [`search`]. Called by the planner and by the builder, which measures recall.
//!
//! Invariant: between two queries the core lets others run; a single query takes 50 to 500 us, for as long as which a core
//! may be held up.

use std::cell::RefCell;

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
    /// Rows whose bit is set.
    pub count: usize,
}

impl GraphFilter {
    /// Those whose ids are in a set. About 2 ns a row.
    pub fn of(loaded: &LoadedGraph, rows: &RowSet) -> GraphFilter {
        let word = |ids: &[i64]| {
            ids.iter().enumerate().fold(0u64, |word, (bit, id)| word | u64::from(rows.contains(*id)) << bit)
        };
        let words: Vec<u64> = loaded.rowids.chunks(64).map(word).collect();
        let count = words.iter().map(|word| word.count_ones() as usize).sum();
        GraphFilter { words, count }
    }
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
    SCRATCH.with_borrow_mut(|scratch| {
        let (mut found, statistics) = loaded.graph.search(query, options, words, scratch).map_err(invalid)?;
        for neighbor in &mut found {
            neighbor.row = loaded.rowids[neighbor.row as usize] as u64;
        }
        found.sort_unstable_by(Neighbor::order);
        Ok((found, statistics))
    })
}
