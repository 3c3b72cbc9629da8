//! Nearest neighbours: from a checked question to row ids and distances, and from those to rows.
//!
//! Owns [`Question`] and [`search`], the planner. Called by `server::searches`, on the session's home core.
//!
//! - `exact` compares every row in full precision, on all cores: what no index covers, what few rows pass a filter, and
//!   what is asked for exactly;
//! - `index` has what is built ahead, and its searches; `plan` chooses;
//! - `passing` has the rows for which a filter is true;
//! - `rowids` finds rows by their ids, and is what filters and deletions look like to an index;
//! - `answer` reads the rows that were found and lays them out.
//!
//! Invariants
//! - A neighbour is named by its row id, whatever found it; at equal distance the lesser row id comes first. An answer
//!   depends on the snapshot and the question, not on how many cores there are or which of them worked.
//! - Every distance in an answer was computed from the full vector.
//! - Work between two awaits stays around 100 us; a question whose future is dropped stops within that, on all cores.

pub mod answer;
pub mod exact;
pub mod index;
pub mod passing;
pub mod plan;
pub mod rowids;

use std::sync::Arc;

use heliostat_engine::EngineOptions;
use heliostat_vector::{COMPONENT_MAX, ElementType, K_MAX, Metric, Neighbor, QueryBatch, Rows, VectorError};
use hidb::aligned::AlignedBytes;
use hidb::plan::Expr;
use hidb::{DataType, Error, ErrorCode, Result, Schema, VectorElement, proto};

use crate::store::TableSnapshot;

/// The most query vectors of a request.
pub const QUERIES_MAX: usize = 1024;
/// The most neighbours that a request may ask for, over all its queries: they are sorted and looked up in memory.
pub const NEIGHBORS_MAX: usize = 1 << 20;

/// Queries that a block of rows is compared with while it is in the cache.
pub const QUERY_TILE: usize = 8;

/// How near the answer must be to the exact one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Accuracy {
    /// The exact answer.
    Exact,
    /// This part of the exact answer, on average; an index turns it into its own parameter.
    Recall(f32),
    /// So many lists of an IVF index.
    Probes(usize),
    /// So many candidates of a graph.
    Ef(usize),
}

/// A column of vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorColumn {
    /// Its place in the schema.
    pub index: usize,
    /// Type of the components.
    pub element: ElementType,
    /// Components.
    pub dimension: usize,
}

impl VectorColumn {
    /// Finds the column by its name.
    ///
    /// # Errors
    /// `UnknownColumn`; `TypeMismatch` when it holds no vectors.
    pub fn find(schema: &Schema, name: &str) -> Result<VectorColumn> {
        let Some((index, field)) = schema.find(name) else {
            let vectors = schema.fields().iter().filter(|field| matches!(field.data_type, DataType::Vector { .. }));
            let names: Vec<&str> = vectors.map(|field| field.name.as_str()).collect();
            let text = format!("no column {name:?}: the table's vector columns are [{}]", names.join(", "));
            return Err(Error::new(ErrorCode::UnknownColumn, text));
        };
        let DataType::Vector { dimension, element } = field.data_type else {
            let text =
                format!("column {:?} is {}, not a vector: nearest neighbours need one", field.name, field.data_type);
            return Err(Error::new(ErrorCode::TypeMismatch, text));
        };
        Ok(VectorColumn { index, element: element_type(element), dimension: dimension as usize })
    }

    /// Bytes of one vector.
    pub fn row_bytes(&self) -> usize {
        self.element.row_bytes(self.dimension)
    }

    /// Vectors in bytes that begin on a boundary of their elements.
    ///
    /// # Errors
    /// `Internal` when they don't, or are not whole vectors.
    pub fn rows<'a>(&self, bytes: &'a [u8]) -> Result<Rows<'a>> {
        Rows::from_bytes(self.element, self.dimension, bytes).map_err(internal)
    }

    /// Queries against the column in batches of [`QUERY_TILE`]; the last has what is left.
    ///
    /// # Errors
    /// As [`QueryBatch::new`].
    pub fn tiles(&self, metric: Metric, queries: &Rows<'_>) -> Result<Vec<QueryBatch>, VectorError> {
        let tile = |first: usize| {
            let some = queries.slice(first, QUERY_TILE.min(queries.count() - first));
            QueryBatch::new(self.element, metric, &some)
        };
        (0..queries.count()).step_by(QUERY_TILE).map(tile).collect()
    }
}

/// The element type of a column as the vector crate names it.
pub fn element_type(element: VectorElement) -> ElementType {
    match element {
        VectorElement::F32 => ElementType::F32,
        VectorElement::F16 => ElementType::F16,
        VectorElement::I8 => ElementType::I8,
        VectorElement::Bit => ElementType::Bit,
    }
}

/// The metric that a request means; without one that of the index, or the one that suits the type.
///
/// # Errors
/// `InvalidParameter` for a metric that the type does not have.
pub fn metric_of(
    wanted: proto::vector_search_request::Metric,
    default: Option<Metric>,
    element: ElementType,
) -> Result<Metric> {
    use proto::vector_search_request::Metric as Wire;
    let metric = match wanted {
        Wire::Unspecified => default.unwrap_or(match element {
            ElementType::Bit => Metric::Hamming,
            _ => Metric::L2,
        }),
        Wire::L2 => Metric::L2,
        Wire::InnerProduct => Metric::InnerProduct,
        Wire::Cosine => Metric::Cosine,
        Wire::Hamming => Metric::Hamming,
    };
    metric.check(element).map_err(invalid)?;
    Ok(metric)
}

/// An error of the vector crate about what a client asked.
pub fn invalid(error: VectorError) -> Error {
    Error::new(ErrorCode::InvalidParameter, error.to_string())
}

/// An error of the vector crate that only a defect of ours explains.
pub fn internal(error: VectorError) -> Error {
    Error::new(ErrorCode::Internal, error.to_string())
}

/// Query vectors, aligned for their elements.
#[derive(Debug)]
pub struct Queries {
    bytes: AlignedBytes,
    column: VectorColumn,
    count: usize,
}

impl Queries {
    /// Copies `count` vectors of the column's type.
    ///
    /// # Errors
    /// `InvalidParameter` when there are none, too many, or not as many bytes as they take, and for a component that is
    /// not a finite number, or too large.
    pub fn new(column: VectorColumn, bytes: &[u8], count: usize) -> Result<Queries> {
        let refuse = |text: String| Err(Error::new(ErrorCode::InvalidParameter, text));
        if !(1..=QUERIES_MAX).contains(&count) {
            return refuse(format!("{count} query vectors: a request has 1 to {QUERIES_MAX}"));
        }
        let expected = count * column.row_bytes();
        if bytes.len() != expected {
            let (given, d) = (bytes.len(), column.dimension);
            return refuse(format!(
                "the query vectors have {given} bytes where {count} of {d} components of type {:?} take {expected}",
                column.element
            ));
        }
        let queries = Queries { bytes: AlignedBytes::copy_of(bytes), column, count };
        queries.rows()?.check_finite().map_err(|error| match error {
            VectorError::NotFinite { row, component } => Error::new(
                ErrorCode::InvalidParameter,
                format!("component {component} of query vector {row} is NaN, infinite or beyond {COMPONENT_MAX:e}"),
            ),
            other => invalid(other),
        })?;
        Ok(queries)
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.count
    }

    /// All of them.
    ///
    /// # Errors
    /// None but defects.
    pub fn rows(&self) -> Result<Rows<'_>> {
        self.column.rows(&self.bytes)
    }
}

/// A checked question.
pub struct Question {
    /// The table as the request sees it.
    pub table: Arc<TableSnapshot>,
    /// Which column is compared.
    pub column: VectorColumn,
    /// With what.
    pub queries: Arc<Queries>,
    /// How.
    pub metric: Metric,
    /// Neighbours of each query, 1 to [`K_MAX`].
    pub k: usize,
    /// Only neighbours at most this far.
    pub distance_max: f32,
    /// How near the answer must be to the exact one.
    pub accuracy: Accuracy,
    /// Only rows for which this is true.
    pub filter: Option<Filter>,
    /// What evaluating it may use.
    pub options: EngineOptions,
    /// Reads everything from the device.
    pub bypass_cache: bool,
}

/// A condition on rows.
#[derive(Debug)]
pub struct Filter {
    /// The condition.
    pub condition: Expr,
    /// The plan that it came as: the same condition on the same table is the same bytes.
    pub plan: Box<[u8]>,
}

impl Question {
    /// Checks the numbers of a request.
    ///
    /// # Errors
    /// `InvalidParameter`, `LimitExceeded`.
    pub fn check(k: usize, queries: usize, distance_max: f32, accuracy: Accuracy) -> Result<()> {
        let refuse = |text: String| Err(Error::new(ErrorCode::InvalidParameter, text));
        if !(1..=K_MAX).contains(&k) {
            return refuse(format!("k is {k}: ask for 1 to {K_MAX} neighbours"));
        }
        if distance_max.is_nan() {
            return refuse("the greatest distance is not a number".into());
        }
        match accuracy {
            Accuracy::Recall(recall) if !(recall > 0.0 && recall <= 1.0) => {
                return refuse(format!("a recall of {recall}: ask for more than 0 and at most 1"));
            }
            Accuracy::Probes(0) => return refuse("probes is 0: look at one list at least".into()),
            Accuracy::Ef(0) => return refuse("ef is 0: keep one candidate at least".into()),
            _ => {}
        }
        if k * queries > NEIGHBORS_MAX {
            let text = format!(
                "{queries} queries for {k} neighbours each are {} rows, more than {NEIGHBORS_MAX}: send fewer queries at once",
                k * queries
            );
            return Err(Error::new(ErrorCode::LimitExceeded, text));
        }
        Ok(())
    }
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// Neighbours of each query by row id, nearest first.
    pub neighbors: Vec<Vec<Neighbor>>,
    /// What it took.
    pub statistics: proto::SearchStatistics,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accuracy() -> impl Strategy<Value = Accuracy> {
        prop_oneof![
            Just(Accuracy::Exact),
            any::<f32>().prop_map(Accuracy::Recall),
            (0usize..3).prop_map(Accuracy::Probes),
            any::<usize>().prop_map(Accuracy::Ef),
        ]
    }

    proptest! {
        #[test]
        fn bytes_of_queries_are_finite_vectors_or_refused(
            element in prop_oneof![
                Just(ElementType::F32),
                Just(ElementType::F16),
                Just(ElementType::I8),
                Just(ElementType::Bit),
            ],
            dimension in 1usize..20,
            count in prop_oneof![0usize..4, Just(QUERIES_MAX + 1), any::<usize>()],
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            fits in any::<bool>(),
        ) {
            let column = VectorColumn { index: 0, element, dimension };
            if fits {
                bytes.resize(count.min(9) * column.row_bytes(), 0x3c);
            }
            match Queries::new(column, &bytes, count) {
                Ok(queries) => {
                    let rows = queries.rows().unwrap();
                    prop_assert_eq!((rows.count(), queries.count()), (count, count));
                    prop_assert!(rows.check_finite().is_ok());
                }
                Err(error) => prop_assert_eq!(error.code, ErrorCode::InvalidParameter),
            }
        }

        #[test]
        fn numbers_of_a_question_are_in_their_ranges_or_refused(
            k in prop_oneof![0usize..3, K_MAX - 1..K_MAX + 2, any::<usize>()],
            queries in 1usize..=QUERIES_MAX,
            distance_max in any::<f32>(),
            accuracy in accuracy(),
        ) {
            if Question::check(k, queries, distance_max, accuracy).is_ok() {
                prop_assert!((1..=K_MAX).contains(&k) && k * queries <= NEIGHBORS_MAX && !distance_max.is_nan());
                prop_assert!(!matches!(accuracy, Accuracy::Recall(recall) if recall.is_nan() || recall <= 0.0));
            }
        }
    }
}
