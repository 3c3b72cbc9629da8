//! The walk from node to node, and the search around it.
//!
//! Owns [`GraphSearch`] (its parameters), [`Scratch`] and [`GraphStatistics`]. Called by the cell, and by the builder,
//! which walks to find a node's neighbours.
//!
//! Invariants
//! - A walk expands a node once and compares a node once.
//! - With a filter it crosses all nodes and collects those that pass, from everything it compared.

use super::{
    Graph, NONE, codes,
    codes::Codes,
    normalised,
    pool::{Pool, Visited},
};
use crate::{Elements, Neighbor, Query, Result, TopK, VectorError};

/// How to search.
#[derive(Clone, Copy, Debug)]
pub struct GraphSearch {
    /// Neighbours wanted.
    pub k: usize,
    /// Candidates that are kept on the walk: more find more. At least `k` is used.
    pub ef: usize,
    /// How many of the best candidates are compared in full precision; 0 leaves it to the graph. At least `k` is used.
    pub rerank: usize,
    /// A node that the walk keeps away from, as if the graph did not have it ([`Graph::node_of`]). What a row of the graph
    /// would find if it were not in it: recall is measured so.
    pub avoid: Option<u32>,
}

impl GraphSearch {
    /// For `k` neighbours with `ef` candidates, and all else left to the graph.
    pub fn new(k: usize, ef: usize) -> Self {
        GraphSearch { k, ef, rerank: 0, avoid: None }
    }
}

/// What a search did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GraphStatistics {
    /// Nodes whose neighbours were looked at.
    pub expanded: usize,
    /// Nodes whose codes were compared.
    pub compared: usize,
    /// Rows compared in full precision.
    pub reranked: usize,
}

/// Memory that searches reuse: one for each core.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    walk: Walk,
    pub(super) query: codes::CodeQuery,
    floats: Vec<f32>,
    rotated: Vec<f32>,
    nodes: Vec<u32>,
    distances: Vec<f32>,
}

/// The state of a walk.
#[derive(Clone, Debug, Default)]
pub(super) struct Walk {
    pub(super) pool: Pool,
    visited: Visited,
    fresh: Vec<u32>,
    products: Vec<i32>,
    pub(super) expanded: Vec<u32>,
    compared: usize,
}

/// Links of all nodes: those of node `i` at `links[i * stride..][..stride]`, ended early by [`NONE`].
#[derive(Clone, Copy)]
pub(super) struct Links<'a> {
    pub(super) links: &'a [u32],
    pub(super) stride: usize,
}

impl Walk {
    /// Walks from `entries` towards the query whose bytes are `query`, keeping `ef` candidates. `distance` turns a node and
    /// its product into a distance; `seen` is told of every comparison. It keeps away from `avoid`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "two callers; what they pass has nothing in common but this walk")]
    pub(super) fn run(
        &mut self,
        codes: &Codes,
        links: Links<'_>,
        entries: &[u32],
        query: &[i8],
        ef: usize,
        avoid: Option<u32>,
        distance: impl Fn(u32, i32) -> f32,
        mut seen: impl FnMut(f32, u32),
    ) {
        self.pool.reset(ef);
        self.visited.reset(codes.count());
        if let Some(node) = avoid {
            self.visited.insert(node);
        }
        self.expanded.clear();
        self.compared = 0;
        self.fresh.clear();
        for entry in entries {
            if self.visited.insert(*entry) {
                self.fresh.push(*entry);
            }
        }
        self.compare(codes, query, &distance, &mut seen);
        while let Some(node) = self.pool.expand_next() {
            self.expanded.push(node);
            self.fresh.clear();
            for neighbor in &links.links[node as usize * links.stride..][..links.stride] {
                if *neighbor == NONE {
                    break;
                }
                if self.visited.insert(*neighbor) {
                    codes.prefetch(*neighbor as usize);
                    self.fresh.push(*neighbor);
                }
            }
            if let Some(next) = self.pool.peek() {
                crate::simd::prefetch(links.links, next as usize * links.stride, links.stride);
            }
            self.compare(codes, query, &distance, &mut seen);
        }
    }

    #[inline(always)]
    fn compare(
        &mut self,
        codes: &Codes,
        query: &[i8],
        distance: &impl Fn(u32, i32) -> f32,
        seen: &mut impl FnMut(f32, u32),
    ) {
        self.compared += self.fresh.len();
        self.products.resize(self.fresh.len(), 0);
        codes.products(query, &self.fresh, &mut self.products);
        for (node, product) in self.fresh.iter().zip(&self.products) {
            let distance = distance(*node, *product);
            seen(distance, *node);
            if self.pool.admits(distance) {
                self.pool.insert(distance, *node);
            }
        }
    }
}

impl Graph {
    /// The nearest rows, nearest first.
    ///
    /// `filter` is a bitmap of rows that may be returned, bit `r % 64` of word `r / 64`; with it `ef` should be larger by
    /// about one over its selectivity, and below a few percent an exact search of the rows that pass is the better plan.
    ///
    /// Without vectors ([`Graph::has_vectors`]) there are as many neighbours as `rerank` says, for the caller to compare
    /// in full precision; their distances are estimates that only order them.
    ///
    /// # Errors
    /// As [`Query::new`], and [`VectorError::Parameter`] for `k` or a bitmap out of range.
    pub fn search(
        &self,
        query: Elements<'_>,
        search: GraphSearch,
        filter: Option<&[u64]>,
        scratch: &mut Scratch,
    ) -> Result<(Vec<Neighbor>, GraphStatistics)> {
        self.check(search, filter)?;
        let exact = Query::new(self.element, self.dimension, self.metric, query)?;
        if self.count() == 0 {
            return Ok((Vec::new(), GraphStatistics::default()));
        }
        self.prepare(&exact, scratch);
        let Scratch { walk, query, nodes, .. } = scratch;
        let ef = search.ef.max(search.k).min(self.count());
        let rerank = if search.rerank == 0 { self.default_rerank(ef) } else { search.rerank }.max(search.k);
        // The best that pass, when not all do.
        let mut passing = TopK::new(rerank);
        let links = Links { links: &self.links, stride: self.degree };
        // The first nodes are the entries.
        nodes.clear();
        nodes.extend(0..self.entries as u32);
        let terms = &self.codes.terms;
        let distance = |node: u32, product| query.distance(product, terms[node as usize]);
        match filter {
            None => walk.run(&self.codes, links, nodes, &query.bytes, ef, search.avoid, distance, |_, _| {}),
            Some(filter) => {
                let rows = &self.rows;
                walk.run(&self.codes, links, nodes, &query.bytes, ef, search.avoid, distance, |distance, node| {
                    let row = rows[node as usize];
                    if distance <= passing.bound() && filter[row as usize / 64] >> (row % 64) & 1 == 1 {
                        passing.push(distance, u64::from(node));
                    }
                });
            }
        }
        let estimated: Vec<(f32, u32)> = match filter {
            None => walk.pool.iter().take(rerank).collect(),
            Some(_) => passing.into_sorted().into_iter().map(|n| (n.distance, n.row as u32)).collect(),
        };
        let statistics = GraphStatistics { expanded: walk.expanded.len(), compared: walk.compared, reranked: 0 };
        self.in_full(&exact, search.k, estimated, statistics, scratch)
    }

    pub(super) fn check(&self, search: GraphSearch, filter: Option<&[u64]>) -> Result<()> {
        if !(1..=crate::K_MAX).contains(&search.k) {
            return Err(VectorError::parameter("k", search.k, format!("1 to {}", crate::K_MAX)));
        }
        if let Some(node) = search.avoid.filter(|node| *node as usize >= self.count()) {
            return Err(VectorError::parameter("avoid", node, format!("a node below {}", self.count())));
        }
        if let Some(filter) = filter
            && filter.len() < self.count().div_ceil(64)
        {
            return Err(VectorError::Layout {
                what: "filter bitmap",
                detail: format!("{} words for {} rows", filter.len(), self.count()),
            });
        }
        Ok(())
    }

    /// The `k` nearest of candidates by their full vectors; all of them as they are when there are none.
    pub(super) fn in_full(
        &self,
        exact: &Query,
        k: usize,
        estimated: Vec<(f32, u32)>,
        mut statistics: GraphStatistics,
        scratch: &mut Scratch,
    ) -> Result<(Vec<Neighbor>, GraphStatistics)> {
        let row = |node: u32| u64::from(self.rows[node as usize]);
        let Some(vectors) = &self.vectors else {
            let neighbor = |(distance, node)| Neighbor { distance, row: row(node) };
            return Ok((estimated.into_iter().map(neighbor).collect(), statistics));
        };
        let Scratch { nodes, distances, .. } = scratch;
        nodes.clear();
        nodes.extend(estimated.iter().map(|(_, node)| *node));
        distances.resize(nodes.len(), 0.0);
        exact.distances_to(&vectors.rows(self.dimension)?, nodes, distances)?;
        statistics.reranked = nodes.len();
        let mut top = TopK::new(k);
        nodes.iter().zip(distances.iter()).for_each(|(node, distance)| top.push(*distance, row(*node)));
        Ok((top.into_sorted(), statistics))
    }

    /// All candidates of a walk on 4 bits: in tight clusters the codes' order means little. A vector of halves is as many cache
    /// lines as the codes of four nodes, and the walk compared 12 to 24 nodes for each candidate.
    fn default_rerank(&self, ef: usize) -> usize {
        if self.codes.bits == 4 { ef } else { ef.div_ceil(2) }
    }

    /// Rotates and rounds the query.
    pub(super) fn prepare(&self, exact: &Query, scratch: &mut Scratch) {
        let Scratch { query, floats, rotated, .. } = scratch;
        floats.resize(self.dimension, 0.0);
        exact.to_f32(floats);
        normalised(self.metric, floats);
        floats.iter_mut().zip(&self.origin).for_each(|(q, o)| *q -= o);
        rotated.resize(self.rotation.padded(), 0.0);
        self.rotation.rotate(floats, rotated);
        query.set(&self.codes, rotated);
    }
}
