//! Distances from one query, or a batch of them, to rows.
//!
//! Owns [`Metric`], [`Query`] and [`QueryBatch`]. Called by exact search, by k-means, by the builders and for re-ranking.
//!
//! Invariants
//! - The same bits at every SIMD level, for a row alone, in a block, gathered or in a tile. A sum over floats is defined
//!   as sixteen running sums of fused multiply-adds, component `i` in sum `i % 16`, added as a tree (`lanes`). Sums over
//!   bytes and bits are exact integers, rounded once to `f32`.
//! - A distance is never NaN and never -0.0: what overflows is infinitely far.
//!
//! Cost sketch: a row of 384 floats is 24 steps of sixteen; four rows at a time keep eight multiply-adds in flight on
//! AVX2, about 30 ns a row from cache; from memory the floor is its bytes (1,536 at 10 to 20 GB/s, 75 to 150 ns). A tile
//! of queries reads rows from the L2 cache and is bound by multiply-adds. Measured on a busy Zen 3: 8.1 GB/s for one query
//! at a time, 10 to 14 G multiply-adds a second for a batch of 995.

mod bits;
mod floats;
mod integers;
mod lanes;

use half::f16;

use crate::{ElementType, Elements, Result, Rows, VectorError};

/// What "near" means. Smaller is nearer for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Metric {
    /// Squared Euclidean distance, `sum((q - x)^2)`: the order of the Euclidean distance without the root.
    L2 = 1,
    /// The inner product, negated: `-sum(q * x)`.
    InnerProduct = 2,
    /// `1 - q.x / (|q| |x|)`, between 0 and 2; a zero vector is at distance 1 from everything.
    Cosine = 3,
    /// How many bits differ; the only metric of bits (where [`Metric::L2`] means the same).
    Hamming = 4,
}

impl Metric {
    /// The metric with this number in index objects.
    pub fn from_number(number: u8) -> Option<Self> {
        [Metric::L2, Metric::InnerProduct, Metric::Cosine, Metric::Hamming].into_iter().find(|m| *m as u8 == number)
    }

    /// Refuses a metric that `element` does not have.
    ///
    /// # Errors
    /// [`VectorError::Metric`].
    pub fn check(self, element: ElementType) -> Result<()> {
        let known = match element {
            ElementType::Bit => matches!(self, Metric::L2 | Metric::Hamming),
            _ => self != Metric::Hamming,
        };
        if known { Ok(()) } else { Err(VectorError::Metric { metric: self, element }) }
    }
}

/// Which rows, in which order.
#[derive(Clone, Copy)]
pub(crate) enum Pick<'a> {
    /// All of them.
    All,
    /// Those with these numbers.
    Ids(&'a [u32]),
}

impl Pick<'_> {
    #[inline(always)]
    fn at(self, index: usize) -> usize {
        match self {
            Pick::All => index,
            Pick::Ids(ids) => ids[index] as usize,
        }
    }
}

/// The sums that a metric is made of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sum {
    SquaredDifference,
    Product,
    /// Of the row with itself.
    Square,
}

#[derive(Clone, Debug)]
enum Components {
    /// Padded with zeros to a multiple of sixteen.
    Float(Vec<f32>),
    Int(Vec<i8>),
    Bit(Vec<u8>),
}

/// A query, ready to be compared with rows of one type and dimension.
#[derive(Clone, Debug)]
pub struct Query {
    metric: Metric,
    element: ElementType,
    dimension: usize,
    components: Components,
    /// Euclidean norm; only the cosine needs it.
    norm: f32,
}

impl Query {
    /// A query against rows of `element` type and `dimension`. A query against floats may be of either float type.
    ///
    /// # Errors
    /// [`VectorError::Dimension`], [`VectorError::Type`], [`VectorError::Metric`], [`VectorError::NotFinite`].
    pub fn new(element: ElementType, dimension: usize, metric: Metric, query: Elements<'_>) -> Result<Self> {
        metric.check(element)?;
        let given = query.element_type();
        let float = |e| matches!(e, ElementType::F32 | ElementType::F16);
        if given != element && !(float(given) && float(element)) {
            return Err(VectorError::Type { expected: element, given });
        }
        let components = match query {
            Elements::Bit(_) => dimension.div_ceil(8),
            _ => dimension,
        };
        if query.len() != components {
            return Err(VectorError::Dimension { expected: dimension, given: query.len() });
        }
        let row = Rows::new(query, dimension)?;
        row.check_finite()?;
        let (components, norm) = match query {
            Elements::F32(_) | Elements::F16(_) => {
                let mut padded = vec![0.0; dimension.next_multiple_of(lanes::LANES)];
                row.to_f32(0, &mut padded[..dimension]);
                let norm = floats::dot(&padded, &padded).sqrt();
                (Components::Float(padded), norm)
            }
            Elements::I8(q) => {
                let mut square = [0i64];
                integers::sums(Sum::Square, q, q, dimension, Pick::All, &mut square);
                (Components::Int(q.to_vec()), (square[0] as f32).sqrt())
            }
            Elements::Bit(q) => (Components::Bit(q.to_vec()), 0.0),
        };
        Ok(Query { metric, element, dimension, components, norm })
    }

    /// The metric.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// Components of the query.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Type of the rows that it is compared with.
    pub fn element_type(&self) -> ElementType {
        self.element
    }

    /// Writes the components as floats, bits as -1 and 1. `out` is as long as the dimension.
    pub fn to_f32(&self, out: &mut [f32]) {
        match &self.components {
            Components::Float(q) => out.copy_from_slice(&q[..self.dimension]),
            Components::Int(q) => out.iter_mut().zip(q).for_each(|(out, e)| *out = f32::from(*e)),
            Components::Bit(q) => {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = if q[i / 8] >> (i % 8) & 1 == 1 { 1.0 } else { -1.0 };
                }
            }
        }
    }

    /// Writes the distance to each row. `out` is as long as there are rows.
    ///
    /// # Errors
    /// [`VectorError::Dimension`] or [`VectorError::Type`] when the rows are of another shape than the query.
    pub fn distances(&self, rows: &Rows<'_>, out: &mut [f32]) -> Result<()> {
        self.check(rows)?;
        assert_eq!(out.len(), rows.count(), "one distance a row");
        // Few enough rows that a second pass over them (the norms of the cosine) finds them in the L1 cache.
        let step = (16384 / rows.element_type().row_bytes(self.dimension)).max(4) & !3;
        for (start, out) in (0..rows.count()).step_by(step).zip(out.chunks_mut(step)) {
            self.picked(&rows.slice(start, out.len()), Pick::All, out);
        }
        Ok(())
    }

    /// Writes the distance to each of the rows `ids`, which may lie anywhere: the next ones are fetched while one is
    /// compared. `out` is as long as `ids`. Panics when a row does not exist.
    ///
    /// # Errors
    /// As [`Query::distances`].
    pub fn distances_to(&self, rows: &Rows<'_>, ids: &[u32], out: &mut [f32]) -> Result<()> {
        self.check(rows)?;
        assert_eq!(out.len(), ids.len(), "one distance an id");
        for (ids, out) in ids.chunks(16).zip(out.chunks_mut(16)) {
            self.picked(rows, Pick::Ids(ids), out);
        }
        Ok(())
    }

    fn check(&self, rows: &Rows<'_>) -> Result<()> {
        if rows.dimension() != self.dimension {
            return Err(VectorError::Dimension { expected: self.dimension, given: rows.dimension() });
        }
        if rows.element_type() != self.element {
            return Err(VectorError::Type { expected: self.element, given: rows.element_type() });
        }
        Ok(())
    }

    fn picked(&self, rows: &Rows<'_>, pick: Pick<'_>, out: &mut [f32]) {
        let d = self.dimension;
        match (&self.components, rows.elements()) {
            (Components::Float(q), Elements::F32(x)) => self.floats(q, x, pick, out),
            (Components::Float(q), Elements::F16(x)) => self.floats(q, x, pick, out),
            (Components::Int(q), Elements::I8(x)) => self.integers(q, x, pick, out),
            (Components::Bit(q), Elements::Bit(x)) => bits::hamming(q, x, d, pick, out),
            _ => unreachable!("the types were compared"),
        }
    }

    fn floats<E: floats::FloatElement>(&self, q: &[f32], x: &[E], pick: Pick<'_>, out: &mut [f32]) {
        let d = self.dimension;
        match self.metric {
            Metric::L2 | Metric::Hamming => floats::sums(Sum::SquaredDifference, q, x, d, pick, out),
            Metric::InnerProduct | Metric::Cosine => floats::sums(Sum::Product, q, x, d, pick, out),
        }
        let mut squares = [0.0; 64];
        for (index, out) in out.chunks_mut(64).enumerate() {
            let squares = &mut squares[..out.len()];
            if self.metric == Metric::Cosine {
                match pick {
                    Pick::All => {
                        let x = &x[index * 64 * d..][..out.len() * d];
                        floats::sums(Sum::Square, q, x, d, pick, squares);
                    }
                    Pick::Ids(ids) => {
                        let ids = &ids[index * 64..][..out.len()];
                        floats::sums(Sum::Square, q, x, d, Pick::Ids(ids), squares);
                    }
                }
            }
            finish(self.metric, self.norm, out, squares);
        }
    }

    fn integers(&self, q: &[i8], x: &[i8], pick: Pick<'_>, out: &mut [f32]) {
        let d = self.dimension;
        let sum = match self.metric {
            Metric::L2 | Metric::Hamming => Sum::SquaredDifference,
            Metric::InnerProduct | Metric::Cosine => Sum::Product,
        };
        let (mut sums, mut squares) = ([0i64; 64], [0i64; 64]);
        for (index, out) in out.chunks_mut(64).enumerate() {
            let (sums, squares) = (&mut sums[..out.len()], &mut squares[..out.len()]);
            let (x, pick) = match pick {
                Pick::All => (&x[index * 64 * d..][..out.len() * d], pick),
                Pick::Ids(ids) => (x, Pick::Ids(&ids[index * 64..][..out.len()])),
            };
            integers::sums(sum, q, x, d, pick, sums);
            if self.metric == Metric::Cosine {
                integers::sums(Sum::Square, q, x, d, pick, squares);
            }
            let mut floats = [0.0; 64];
            for ((out, float), (sum, square)) in out.iter_mut().zip(&mut floats).zip(sums.iter().zip(squares.iter())) {
                (*out, *float) = (*sum as f32, *square as f32);
            }
            finish(self.metric, self.norm, out, &floats[..out.len()]);
        }
    }
}

/// Writes the squared norm of each row.
pub(crate) fn squares(rows: &[f32], dimension: usize, out: &mut [f32]) {
    // The query takes no part in the sum of squares; it only has to be long enough.
    floats::sums(Sum::Square, &vec![0.0; dimension.next_multiple_of(lanes::LANES)], rows, dimension, Pick::All, out);
}

/// Copies rows one after the other, each padded with zeros, as [`product_tile`] takes its queries.
pub(crate) fn pad(rows: &[f32], dimension: usize, out: &mut Vec<f32>) {
    out.clear();
    for row in rows.chunks_exact(dimension) {
        out.extend_from_slice(row);
        out.resize(out.len().next_multiple_of(lanes::LANES), 0.0);
    }
}

/// Writes the inner product of each padded query with each of `count` rows to `out[query * count + row]`.
pub(crate) fn product_tile(queries: &[f32], rows: &[f32], dimension: usize, count: usize, out: &mut [f32]) {
    floats::tile(Sum::Product, queries, rows, dimension, count, out);
}

/// Turns sums into distances. `squares` are the rows' squared norms, for the cosine.
fn finish(metric: Metric, norm: f32, sums: &mut [f32], squares: &[f32]) {
    for (sum, square) in sums.iter_mut().zip(squares) {
        let distance = match metric {
            Metric::L2 | Metric::Hamming => *sum,
            Metric::InnerProduct => -*sum,
            Metric::Cosine => {
                let norms = norm * square.sqrt();
                if norms == 0.0 { 1.0 } else { 1.0 - *sum / norms }
            }
        };
        // Adding 0.0 turns -0.0 into 0.0 and changes no other number.
        *sum = if distance.is_nan() { f32::INFINITY } else { distance + 0.0 };
    }
}

/// Queries of one shape, compared with rows tile by tile.
#[derive(Clone, Debug)]
pub struct QueryBatch {
    queries: Vec<Query>,
    /// All queries' floats, each padded, one after the other; empty for other types.
    floats: Vec<f32>,
}

impl QueryBatch {
    /// One query a row of `queries`, for rows of `element` type; see [`Query::new`].
    ///
    /// # Errors
    /// As [`Query::new`]; [`VectorError::NotFinite`] names the query.
    pub fn new(element: ElementType, metric: Metric, queries: &Rows<'_>) -> Result<Self> {
        queries.check_finite()?;
        let queries = (0..queries.count())
            .map(|i| Query::new(element, queries.dimension(), metric, queries.row(i)))
            .collect::<Result<Vec<_>>>()?;
        let mut floats = Vec::new();
        for query in &queries {
            if let Components::Float(q) = &query.components {
                floats.extend_from_slice(q);
            }
        }
        Ok(QueryBatch { queries, floats })
    }

    /// The queries.
    pub fn queries(&self) -> &[Query] {
        &self.queries
    }

    /// Writes the distance of every query to every row: that of query `q` to row `r` to `out[q * rows + r]`. The bits are
    /// those of [`Query::distances`]. Give at most a few thousand rows at a time: the work of one call is
    /// `queries * rows * dimension` multiply-adds.
    ///
    /// # Errors
    /// As [`Query::distances`].
    pub fn distances(&self, rows: &Rows<'_>, out: &mut [f32]) -> Result<()> {
        let Some(first) = self.queries.first() else { return Ok(()) };
        first.check(rows)?;
        let count = rows.count();
        assert_eq!(out.len(), self.queries.len() * count, "one distance a query and row");
        match rows.elements() {
            Elements::F32(x) => self.tiles::<f32>(first, x, count, out),
            Elements::F16(x) => self.tiles::<f16>(first, x, count, out),
            Elements::I8(_) | Elements::Bit(_) => {
                // As many rows as stay in the L1 cache while the queries pass over them.
                let step = (16384 / rows.element_type().row_bytes(rows.dimension())).max(8);
                for start in (0..count).step_by(step) {
                    let some = rows.slice(start, step.min(count - start));
                    for (query, out) in self.queries.iter().zip(out.chunks_mut(count)) {
                        query.picked(&some, Pick::All, &mut out[start..start + some.count()]);
                    }
                }
            }
        }
        Ok(())
    }

    fn tiles<E: floats::FloatElement>(&self, first: &Query, x: &[E], count: usize, out: &mut [f32]) {
        let d = first.dimension;
        let sum = match first.metric {
            Metric::L2 | Metric::Hamming => Sum::SquaredDifference,
            Metric::InnerProduct | Metric::Cosine => Sum::Product,
        };
        floats::tile(sum, &self.floats, x, d, count, out);
        let mut squares = vec![0.0; if first.metric == Metric::Cosine { count } else { 0 }];
        if first.metric == Metric::Cosine {
            floats::sums(Sum::Square, &self.floats[..d.next_multiple_of(lanes::LANES)], x, d, Pick::All, &mut squares);
        } else {
            squares.resize(count, 0.0);
        }
        for (query, out) in self.queries.iter().zip(out.chunks_mut(count.max(1))) {
            finish(query.metric, query.norm, out, &squares);
        }
    }
}

#[cfg(test)]
mod tests;
