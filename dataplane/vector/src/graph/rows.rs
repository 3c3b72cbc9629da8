//! The nearest of chosen rows to some queries, by comparing the codes of each.
//!
//! Owns [`RowsSearch`]. Called by the cell when few rows pass a filter: less work than a walk among all, and its recall does
//! not depend on what the filter has to do with the vectors.
//!
//! Invariants
//! - Every row of the filter that the graph has is compared once with every query.
//! - A step compares about as many rows as it was asked to: the caller lets others run between two.
//!
//! Cost: the lines of a row's code and one of its terms, prefetched, which nearly all come from memory when the graph is
//! large; all queries share them. Measured through the cell on Zen 3, 128 dimensions, 10,000 rows of a million: 45 ns a row
//! for one query, 10 ns a row and query for 64.

use std::collections::VecDeque;

use super::{
    Graph,
    codes::CodeQuery,
    search::{GraphSearch, GraphStatistics, Scratch},
};
use crate::{Elements, Neighbor, Query, Result, TopK};

/// Codes that are on their way while as many are compared.
const AHEAD: usize = 64;

/// A query and the nearest to it so far.
#[derive(Clone, Debug)]
struct Asked {
    exact: Query,
    query: CodeQuery,
    top: TopK,
}

/// A search among chosen rows that is under way.
#[derive(Clone, Debug)]
pub struct RowsSearch {
    asked: VecDeque<Asked>,
    k: usize,
    /// How many are compared in full.
    rerank: usize,
    compared: usize,
    fresh: Vec<u32>,
    products: Vec<i32>,
}

impl RowsSearch {
    /// Of no query yet. `search` has what they have in common, of which `ef` and `avoid` mean nothing here; `rows` is how many
    /// pass, as far as is known.
    ///
    /// # Errors
    /// As [`Graph::search`].
    pub fn new(graph: &Graph, search: GraphSearch, rows: usize) -> Result<Self> {
        graph.check(search, None)?;
        // No walk has sorted the nearest out: more of them are looked at again, the more the more there are.
        let least = search.k + (3 * search.k).min(300) + 40;
        let rerank = if search.rerank == 0 { least.max(rows / 64).min(search.k + 4096) } else { search.rerank };
        Ok(RowsSearch {
            asked: VecDeque::new(),
            k: search.k,
            rerank: rerank.max(search.k),
            compared: 0,
            fresh: Vec::with_capacity(2 * AHEAD),
            products: Vec::with_capacity(2 * AHEAD),
        })
    }

    /// Adds a query, before the first step.
    ///
    /// # Errors
    /// As [`Graph::search`].
    pub fn push(&mut self, graph: &Graph, query: Elements<'_>, scratch: &mut Scratch) -> Result<()> {
        let exact = Query::new(graph.element, graph.dimension, graph.metric, query)?;
        graph.prepare(&exact, scratch);
        self.asked.push_back(Asked { exact, query: scratch.query.clone(), top: TopK::new(self.rerank) });
        Ok(())
    }

    /// Bytes that a query may take.
    pub fn query_bytes(&self) -> usize {
        // The nearest are sorted out whenever twice as many have come together.
        2 * self.rerank * size_of::<Neighbor>()
    }

    /// Compares rows of `filter`, a bitmap by row, from word `from` on: `rows` of them and those that are left of a word,
    /// with every query.
    /// Returns the word to go on with, `filter.len()` at the end.
    pub fn step(&mut self, graph: &Graph, filter: &[u64], from: usize, rows: usize) -> usize {
        let end = self.compared + rows;
        let mut at = from;
        while at < filter.len() && self.compared + self.fresh.len() < end {
            let mut word = filter[at];
            while word != 0 {
                let row = at as u32 * 64 + word.trailing_zeros();
                word &= word - 1;
                let Some(node) = graph.node_of(row) else { continue };
                graph.codes.prefetch(node as usize);
                self.fresh.push(node);
            }
            at += 1;
            // The first were asked for while the others were put together.
            while self.fresh.len() >= 2 * AHEAD {
                self.compare(graph, AHEAD);
            }
        }
        self.compare(graph, self.fresh.len());
        at
    }

    fn compare(&mut self, graph: &Graph, count: usize) {
        let nodes = &self.fresh[..count];
        self.products.resize(count, 0);
        for Asked { query, top, .. } in &mut self.asked {
            graph.codes.products(&query.bytes, nodes, &mut self.products);
            for (node, product) in nodes.iter().zip(&self.products) {
                let distance = query.distance(*product, graph.codes.terms[*node as usize]);
                if distance <= top.bound() {
                    top.push(distance, u64::from(*node));
                }
            }
        }
        self.compared += count;
        self.fresh.drain(..count);
    }

    /// The nearest to the next query, nearest first, compared in full precision as [`Graph::search`] does; `None` after the
    /// last.
    ///
    /// # Errors
    /// As [`Graph::search`].
    pub fn finish_next(
        &mut self,
        graph: &Graph,
        scratch: &mut Scratch,
    ) -> Option<Result<(Vec<Neighbor>, GraphStatistics)>> {
        let Asked { exact, top, .. } = self.asked.pop_front()?;
        let nearest = top.into_sorted().into_iter().map(|n| (n.distance, n.row as u32)).collect();
        let statistics = GraphStatistics { expanded: 0, compared: self.compared, reranked: 0 };
        Some(graph.in_full(&exact, self.k, nearest, statistics, scratch))
    }
}
