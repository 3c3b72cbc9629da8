//! A search as a state machine: which lists to read, then which rows to compare in full precision.
//!
//! Owns [`IvfSearch`], [`IvfSearchOptions`] and [`IvfStatistics`]. Called by the cell:
//!
//! 1. [`IvfSearch::new`], then read all of [`IvfSearch::reads`] (first round).
//! 2. [`IvfSearch::scan`] for each list, in any order, with a bitmap of the rows of the list that may be returned.
//! 3. Read the vectors of [`IvfSearch::candidates`] (second round), give them to [`IvfSearch::compare`].
//! 4. [`IvfSearch::finish`].
//!
//! Invariants
//! - The answer does not depend on the order of lists: the bound only ever leaves out rows that a full scan of the same
//!   lists would have left out as well, unless more than `rerank_max` candidates are left.
//! - At most `rerank_max` rows are compared in full precision, 4 k unless said otherwise.

use super::{IvfIndex, ListEntry, ListView};
use crate::{
    Elements, Metric, Neighbor, Query, QueryBatch, Result, Rows, TopK, VectorError,
    graph::normalised,
    rabitq::{BLOCK_ROWS, CodeQuery},
};

/// How to search.
#[derive(Clone, Copy, Debug)]
pub struct IvfSearchOptions {
    /// Neighbours wanted.
    pub k: usize,
    /// Lists to read.
    pub probes: usize,
    /// Error bound in standard deviations; see [`crate::rabitq::EPSILON`].
    pub epsilon: f32,
    /// Most rows to compare in full precision; 0 for `4 k`.
    pub rerank_max: usize,
    /// Only neighbours at most this far, in the metric of the index.
    pub distance_max: f32,
}

impl IvfSearchOptions {
    /// The `k` nearest of `probes` lists.
    pub fn new(k: usize, probes: usize) -> Self {
        let epsilon = crate::rabitq::EPSILON;
        IvfSearchOptions { k, probes, epsilon, rerank_max: 0, distance_max: f32::INFINITY }
    }
}

/// What a search did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IvfStatistics {
    /// Lists read.
    pub lists_probed: usize,
    /// Rows whose one-bit codes were scanned.
    pub codes_scanned: usize,
    /// Rows whose codes of more bits were looked at.
    pub codes_refined: usize,
    /// Rows compared in full precision.
    pub reranked: usize,
    /// Bytes of lists read.
    pub list_bytes: u64,
}

/// A row whose vector decides.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Its id.
    pub row: u64,
    /// CRC32C of its vector.
    pub crc32c: u32,
    /// Least distance that the bound allows.
    lower: f32,
    estimate: f32,
}

/// A search of one query.
#[derive(Clone, Debug)]
pub struct IvfSearch<'i> {
    index: &'i IvfIndex,
    options: IvfSearchOptions,
    exact: Query,
    codes: CodeQuery,
    /// Probed lists with the base of their distances and the length of the query's residual.
    probes: Vec<(u32, f32, f32)>,
    /// Greatest distances that the bound allows: the kth bounds what can be an answer.
    upper: TopK,
    /// No farther row is asked for, in terms of estimates.
    reach: f32,
    candidates: Vec<Candidate>,
    top: TopK,
    statistics: IvfStatistics,
}

impl<'i> IvfSearch<'i> {
    /// Prepares the query and chooses the lists. Costs `lists * dimension` multiply-adds.
    ///
    /// # Errors
    /// As [`Query::new`], and [`VectorError::Parameter`] for `k` out of range.
    pub fn new(index: &'i IvfIndex, query: Elements<'_>, options: IvfSearchOptions) -> Result<Self> {
        if !(1..=crate::K_MAX).contains(&options.k) {
            return Err(VectorError::parameter("k", options.k, format!("1 to {}", crate::K_MAX)));
        }
        let exact = Query::new(index.element, index.dimension, index.metric, query)?;
        let mut floats = vec![0.0; index.dimension];
        exact.to_f32(&mut floats);
        normalised(index.metric, &mut floats);
        let codes = CodeQuery::new(&index.rotation, &floats, &index.origin);
        let metric = if index.metric == Metric::InnerProduct { Metric::InnerProduct } else { Metric::L2 };
        let lists = index.centroids.count();
        let mut bases = vec![0.0; lists];
        let centroids = Rows::of(index.centroids.values(), index.dimension)?;
        let one = Rows::of(&floats, index.dimension)?;
        QueryBatch::new(crate::ElementType::F32, metric, &one)?.distances(&centroids, &mut bases)?;
        let length: f32 = floats.iter().map(|x| x * x).sum::<f32>().sqrt();
        let mut order = TopK::new(options.probes.clamp(1, lists));
        for (list, base) in bases.iter().enumerate().filter(|(list, _)| index.lists[*list].rows > 0) {
            order.push(*base, list as u64);
        }
        let probe = |n: Neighbor| {
            let length = if metric == Metric::InnerProduct { length } else { n.distance.max(0.0).sqrt() };
            (n.row as u32, n.distance, length)
        };
        let probes: Vec<_> = order.into_sorted().into_iter().map(probe).collect();
        // Estimates are squared distances of unit vectors for the cosine, and of signs for bits.
        let reach = match index.metric {
            Metric::Cosine => 2.0 * options.distance_max,
            _ if index.element == crate::ElementType::Bit => 4.0 * options.distance_max,
            _ => options.distance_max,
        };
        let statistics = IvfStatistics::default();
        Ok(IvfSearch {
            index,
            options,
            exact,
            codes,
            probes,
            upper: TopK::new(options.k),
            reach,
            candidates: Vec::new(),
            top: TopK::within(options.k, options.distance_max),
            statistics,
        })
    }

    /// The lists to read, nearest first: their numbers and where they lie.
    pub fn reads(&self) -> impl Iterator<Item = (u32, ListEntry)> {
        self.probes.iter().map(|(list, ..)| (*list, self.index.lists[*list as usize]))
    }

    /// Estimates the rows of a list that was asked for. `filter` has bit `p % 64` of word `p / 64` set for each place `p`
    /// of the list whose row may be returned.
    ///
    /// # Errors
    /// [`VectorError::Parameter`] for a list that was not asked for, [`VectorError::Layout`] for a bitmap too short.
    pub fn scan(&mut self, list: u32, view: &ListView<'_>, filter: Option<&[u64]>) -> Result<()> {
        let Some((_, base, length)) = self.probes.iter().find(|(probe, ..)| *probe == list).copied() else {
            return Err(VectorError::parameter("list", list, "one of those asked for"));
        };
        if let Some(filter) = filter
            && filter.len() < view.rows().div_ceil(64)
        {
            return Err(VectorError::Layout {
                what: "filter bitmap",
                detail: format!("{} words for {} rows", filter.len(), view.rows()),
            });
        }
        let epsilon = self.options.epsilon;
        self.statistics.lists_probed += 1;
        self.statistics.codes_scanned += view.rows();
        self.statistics.list_bytes += self.index.lists[list as usize].bytes;
        let (mut estimates, mut errors) = ([0.0; BLOCK_ROWS], [0.0; BLOCK_ROWS]);
        let mut bound = self.bound();
        for block in 0..view.blocks() {
            let first = block * BLOCK_ROWS;
            let pass = filter.map_or(u32::MAX, |words| (words[first / 64] >> (first % 64)) as u32);
            let rows = (view.rows() - first).min(BLOCK_ROWS);
            let mut pass = pass & (u32::MAX >> (BLOCK_ROWS - rows));
            if pass == 0 {
                continue;
            }
            let (codes, factors) = view.block(block);
            self.codes.estimate_block(codes, &factors, base, length, epsilon, &mut estimates, &mut errors);
            // Without a branch: nearly all rows of a far list are beyond the bound.
            let mut near = 0u32;
            for i in 0..BLOCK_ROWS {
                near |= u32::from(estimates[i] - errors[i] <= bound) << i;
            }
            pass &= near;
            while pass != 0 {
                let i = pass.trailing_zeros() as usize;
                pass &= pass - 1;
                let (mut estimate, mut error) = (estimates[i], errors[i]);
                if self.index.bits > 1 {
                    let (planes, factors) = view.many(first + i);
                    (estimate, error) = self.codes.estimate(planes, self.index.bits, &factors, base, length, epsilon);
                    self.statistics.codes_refined += 1;
                }
                let lower = estimate - error;
                // Also taken when damaged factors made it not a number; the full comparison decides.
                if lower <= bound || lower.is_nan() {
                    let row = view.id(first + i);
                    let upper = estimate + error;
                    self.upper.push(if upper.is_nan() { f32::INFINITY } else { upper }, row);
                    self.candidates.push(Candidate { row, crc32c: view.checksum(first + i), lower, estimate });
                    bound = self.bound();
                }
            }
            if self.candidates.len() > 4 * self.rerank_max() + 1024 {
                self.thin();
                bound = self.bound();
            }
        }
        self.upper.tighten();
        Ok(())
    }

    fn bound(&self) -> f32 {
        self.upper.bound().min(self.reach)
    }

    fn rerank_max(&self) -> usize {
        if self.options.rerank_max == 0 { 4 * self.options.k } else { self.options.rerank_max.max(self.options.k) }
    }

    /// Drops the candidates that the bound excludes by now, and the least likely of too many.
    fn thin(&mut self) {
        let bound = self.upper.tighten().min(self.reach);
        self.candidates.retain(|c| c.lower <= bound || c.lower.is_nan());
        let most = self.rerank_max();
        if self.candidates.len() > most {
            let order = |a: &Candidate, b: &Candidate| a.estimate.total_cmp(&b.estimate).then(a.row.cmp(&b.row));
            self.candidates.select_nth_unstable_by(most, order);
            self.candidates.truncate(most);
        }
    }

    /// The rows whose vectors decide, by id (the order of the drive). After it no list may be scanned.
    pub fn candidates(&mut self) -> Vec<Candidate> {
        self.thin();
        let mut candidates = self.candidates.clone();
        candidates.sort_unstable_by_key(|candidate| candidate.row);
        candidates.dedup_by_key(|candidate| candidate.row);
        candidates
    }

    /// Compares some of the candidates in full precision: row `i` of `vectors` is that of `ids[i]`.
    ///
    /// # Errors
    /// As [`Query::distances`].
    pub fn compare(&mut self, ids: &[u64], vectors: &Rows<'_>) -> Result<()> {
        assert_eq!(ids.len(), vectors.count(), "one vector an id");
        let mut distances = vec![0.0; ids.len()];
        self.exact.distances(vectors, &mut distances)?;
        self.statistics.reranked += ids.len();
        ids.iter().zip(distances).for_each(|(id, distance)| self.top.push(distance, *id));
        Ok(())
    }

    /// The nearest rows, nearest first.
    pub fn finish(self) -> (Vec<Neighbor>, IvfStatistics) {
        (self.top.into_sorted(), self.statistics)
    }
}
