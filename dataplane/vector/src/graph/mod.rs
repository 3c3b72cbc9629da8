//! A graph over vectors in memory: the fastest way to the nearest of them.
//!
//! Owns [`GraphBuilder`] (links vectors, step by step), [`Graph`] (what is searched), its byte layout, that of the index
//! object around it, and [`Scratch`] (what a search reuses). Called by the cell for tables whose index fits in memory.
//!
//! The graph is Vamana's (Subramanya et al., "DiskANN", NeurIPS 2019): each node has up to `degree` neighbours, chosen so
//! that none is much nearer to another neighbour than to the node. Insertion is incremental, in random order. Layers, as
//! HNSW has, are replaced by a few hundred nodes, far from each other, that every search compares first.
//!
//! What a search reads decides its speed, so it walks on quantised codes and never touches a full vector until the end:
//! - codes of 4 or 7 bits after a random rotation (`rabitq`): a neighbour of 384 dimensions is three cache lines instead
//!   of twenty-four, and aligned; its comparison 15 instructions a line;
//! - codes of all unvisited neighbours are prefetched before the first is compared, and the next node's list while they
//!   are compared;
//! - nodes are numbered in breadth-first order, entry nodes first: neighbours share pages;
//! - the best candidates are compared again in full precision.
//!
//! Measured on 62,671 embeddings of 384 dimensions, recall at 10, one thread of a busy Zen 3 (time that the thread ran):
//! 0.953 at 74 us, 0.970 at 93 us, 0.991 at 235 us; hnswlib (M 16, ef_construction 200) in the same hour 0.960 at 225 us and
//! 0.992 at 718 us. Built in 12.3 s against its 56 s. A third of a build's samples are at the first prefetch of a
//! neighbour, which waits for the TLB: see [`Graph::regions`] about huge pages.
//!
//! Invariants
//! - A graph is what its rows, options and seed say, on any machine: codes and comparisons are exact integers, and the
//!   few floats have a fixed order.
//! - The distances of an answer are those of [`crate::Query`] when the graph holds vectors.
//! - Every neighbour is a node: the decoder checks it, so the search need not.
//! - All metrics are L2 inside: cosine on unit vectors, the inner product on vectors with one more component
//!   (`sqrt(max |x|^2 - |x|^2)`, zero for queries), kept beside the code.

mod build;
mod bytes;
mod codes;
mod object;
mod pool;
mod rows;
mod search;

pub use build::{GraphBuilder, GraphOptions};
pub use rows::RowsSearch;
pub use search::{GraphSearch, GraphStatistics, Scratch};

use half::f16;

use crate::{ElementType, Metric, Result, Rows, rabitq::Rotation};
use codes::Codes;

/// Nodes that a search may start from, at most.
pub const ENTRIES_MAX: usize = 512;

/// Full vectors in the order of nodes.
#[derive(Clone, Debug)]
pub(crate) enum Vectors {
    F32(Vec<f32>),
    F16(Vec<f16>),
    I8(Vec<i8>),
    Bit(Vec<u8>),
}

impl Vectors {
    fn new(element: ElementType) -> Self {
        match element {
            ElementType::F32 => Vectors::F32(Vec::new()),
            ElementType::F16 => Vectors::F16(Vec::new()),
            ElementType::I8 => Vectors::I8(Vec::new()),
            ElementType::Bit => Vectors::Bit(Vec::new()),
        }
    }

    fn rows(&self, dimension: usize) -> Result<Rows<'_>> {
        match self {
            Vectors::F32(v) => Rows::of(v, dimension),
            Vectors::F16(v) => Rows::of(v, dimension),
            Vectors::I8(v) => Rows::of(v, dimension),
            Vectors::Bit(v) => Rows::of(v, dimension),
        }
    }

    /// Appends rows of the same type.
    fn extend(&mut self, rows: &Rows<'_>) {
        match (self, rows.elements()) {
            (Vectors::F32(v), crate::Elements::F32(x)) => v.extend_from_slice(x),
            (Vectors::F16(v), crate::Elements::F16(x)) => v.extend_from_slice(x),
            (Vectors::I8(v), crate::Elements::I8(x)) => v.extend_from_slice(x),
            (Vectors::Bit(v), crate::Elements::Bit(x)) => v.extend_from_slice(x),
            _ => unreachable!("the type was compared"),
        }
    }
}

/// A graph that is searched.
#[derive(Clone, Debug)]
pub struct Graph {
    metric: Metric,
    element: ElementType,
    dimension: usize,
    seed: u64,
    rotation: Rotation,
    /// Subtracted from every vector before it is rotated.
    origin: Vec<f32>,
    codes: Codes,
    /// Neighbours of node `i`: `links[i * degree..][..degree]`, ended early by [`NONE`].
    links: Vec<u32>,
    degree: usize,
    /// The first nodes are entries.
    entries: usize,
    /// The row of each node.
    rows: Vec<u32>,
    /// The node of each row; [`NONE`] for a row that there is not.
    nodes: Vec<u32>,
    vectors: Option<Vectors>,
    calibration: crate::calibrate::Calibration,
}

/// No neighbour, no node.
const NONE: u32 = u32::MAX;

/// The node of each row, from the row of each node: rows below the number of nodes.
fn nodes_of_rows(rows: &[u32]) -> Vec<u32> {
    let mut nodes = vec![NONE; rows.len()];
    rows.iter().zip(0..).for_each(|(row, node)| nodes[*row as usize] = node);
    nodes
}

impl Graph {
    /// Nodes.
    pub fn count(&self) -> usize {
        self.rows.len()
    }

    /// Components of a vector.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// The metric it was built for.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// Type of the vectors.
    pub fn element_type(&self) -> ElementType {
        self.element
    }

    /// Whether it holds the vectors, so that answers come in full precision.
    pub fn has_vectors(&self) -> bool {
        self.vectors.is_some()
    }

    /// Bytes that it keeps in memory.
    pub fn memory_bytes(&self) -> usize {
        let vectors = if self.has_vectors() { self.count() * self.element.row_bytes(self.dimension) } else { 0 };
        self.codes.memory_bytes() + 4 * (self.links.len() + self.rows.len() + self.nodes.len()) + vectors
    }

    /// The memory that a walk reads at random: codes, their terms, links, rows and vectors. In pages of 4 KiB nearly every
    /// neighbour is a miss of the TLB; a caller that may advise the kernel asks for huge pages here.
    pub fn regions(&self) -> [(*const u8, usize); 5] {
        let vectors = match &self.vectors {
            None => (std::ptr::null(), 0),
            Some(Vectors::F32(v)) => (v.as_ptr().cast(), size_of_val(&v[..])),
            Some(Vectors::F16(v)) => (v.as_ptr().cast(), size_of_val(&v[..])),
            Some(Vectors::I8(v)) => (v.as_ptr().cast(), size_of_val(&v[..])),
            Some(Vectors::Bit(v)) => (v.as_ptr(), v.len()),
        };
        [
            (self.codes.lines.as_ptr().cast(), size_of_val(&self.codes.lines[..])),
            (self.codes.terms.as_ptr().cast(), size_of_val(&self.codes.terms[..])),
            (self.links.as_ptr().cast(), size_of_val(&self.links[..])),
            (self.rows.as_ptr().cast(), size_of_val(&self.rows[..])),
            vectors,
        ]
    }

    /// The node that a row became; `None` for a row that the graph does not have.
    pub fn node_of(&self, row: u32) -> Option<u32> {
        self.nodes.get(row as usize).copied().filter(|node| *node != NONE)
    }

    /// Mean number of neighbours.
    pub fn mean_degree(&self) -> f64 {
        self.links.iter().filter(|link| **link != NONE).count() as f64 / self.count().max(1) as f64
    }

    /// What recall each `ef` reaches.
    pub fn calibration(&self) -> &crate::calibrate::Calibration {
        &self.calibration
    }

    /// Keeps a calibration with the graph.
    pub fn set_calibration(&mut self, calibration: crate::calibrate::Calibration) {
        self.calibration = calibration;
    }
}

/// The float form of a row or query as the codes see it: of length 1 for the cosine. What lists are trained on is to be of
/// this form, too.
pub fn normalised(metric: Metric, vector: &mut [f32]) {
    if metric == Metric::Cosine {
        let square: f32 = vector.iter().map(|x| x * x).sum();
        if square > 0.0 && square.is_finite() {
            let inverse = square.sqrt().recip();
            vector.iter_mut().for_each(|x| *x *= inverse);
        }
    }
}

#[cfg(test)]
mod tests;
