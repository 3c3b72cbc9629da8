//! What is searched for, and how.
//!
//! Owns [`SearchRequest`] and [`Asking`], a part of one as it is put to the cell. Called by engines and by
//! [`super::stream`].

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hidb::frame::FRAME_BYTES_MAX;
use hidb::plan::build::unknown_column;
use hidb::proto::vector_search_request as wire;
use hidb::{DataType, Error, ErrorCode, Field, ROWID_COLUMN, Result, Schema, proto};
use prost::Message;

use super::vectors::QueryVector;
use crate::client::Client;
use crate::condition::Condition;
use crate::scan::milliseconds_until;

/// The most neighbours of one vector.
pub const NEIGHBOURS_MAX: u32 = 10_000;

/// The most query vectors of one request.
const QUERIES_MAX: usize = 1024;

/// What is left of a frame for the fields of fixed width and the framing of the others.
const REQUEST_OVERHEAD_BYTES: usize = 1024;

/// How far two vectors are from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Euclidean.
    L2,
    /// Inner product: the greater, the nearer.
    InnerProduct,
    /// Of directions.
    Cosine,
    /// Bits that differ.
    Hamming,
}

impl Metric {
    /// Every metric.
    pub const ALL: [Metric; 4] = [Metric::L2, Metric::InnerProduct, Metric::Cosine, Metric::Hamming];

    /// As it travels.
    pub fn to_proto(self) -> wire::Metric {
        match self {
            Metric::L2 => wire::Metric::L2,
            Metric::InnerProduct => wire::Metric::InnerProduct,
            Metric::Cosine => wire::Metric::Cosine,
            Metric::Hamming => wire::Metric::Hamming,
        }
    }

    /// The metric of this number of a message; `None` when it names none that is known.
    pub fn of_proto(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|metric| metric.to_proto() as i32 == number)
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Metric::L2 => "l2",
            Metric::InnerProduct => "ip",
            Metric::Cosine => "cosine",
            Metric::Hamming => "hamming",
        })
    }
}

impl FromStr for Metric {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let known = Self::ALL.into_iter().find(|metric| metric.to_string() == text);
        known.ok_or_else(|| "a metric is l2, ip (inner product), cosine or hamming".into())
    }
}

/// How near to the exact answer an approximate one has to be.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Accuracy {
    /// The cell's choice: a recall of 0.95.
    #[default]
    Usual,
    /// Every vector is compared.
    Exact,
    /// This part of the true neighbours, above 0 and at most 1, as the index was calibrated.
    Recall(f32),
    /// So many lists of an IVF index.
    Probes(u32),
    /// So many candidates of a graph.
    Ef(u32),
}

/// What neighbours are looked for of.
#[derive(Clone, Debug)]
enum Queries {
    Vectors(Vec<QueryVector>),
    /// The vectors of the rows with these `_rowid`s.
    Rows(Vec<i64>),
}

impl Queries {
    fn len(&self) -> usize {
        match self {
            Queries::Vectors(vectors) => vectors.len(),
            Queries::Rows(rows) => rows.len(),
        }
    }
}

/// Whose neighbours are looked for, and how.
///
/// ```no_run
/// # async fn example(client: heliostat_client::Client) -> hidb::Result<()> {
/// use futures::StreamExt;
/// use heliostat_client::{Accuracy, SearchRequest};
///
/// let request = SearchRequest::table("packages")
///     .vector([0.25f32; 384])
///     .k(10)
///     .accuracy(Accuracy::Recall(0.99))
///     .filter("section = 'web'")
///     .select(["name", "summary"]);
/// let mut neighbours = client.search(request).await?;
/// while let Some(batch) = neighbours.next().await {
///     println!("{} rows", batch?.num_rows());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct SearchRequest {
    table: String,
    column: Option<String>,
    queries: Queries,
    k: u32,
    metric: Option<Metric>,
    accuracy: Accuracy,
    filter: Option<Condition>,
    projection: Vec<String>,
    distance_max: Option<f32>,
    timeout: Option<Duration>,
    frames_ahead: Option<u32>,
    bypass_cache: bool,
}

impl SearchRequest {
    /// The ten nearest of a table, by its only column of vectors; of which vectors has to be said.
    pub fn table(name: impl Into<String>) -> Self {
        SearchRequest {
            table: name.into(),
            column: None,
            queries: Queries::Vectors(Vec::new()),
            k: 10,
            metric: None,
            accuracy: Accuracy::Usual,
            filter: None,
            projection: Vec::new(),
            distance_max: None,
            timeout: None,
            frames_ahead: None,
            bypass_cache: false,
        }
    }

    /// Compares this column; it may be left out when the table has one column of vectors.
    pub fn column(mut self, name: impl Into<String>) -> Self {
        self.column = Some(name.into());
        self
    }

    /// Looks for neighbours of this vector, too.
    pub fn vector(self, vector: impl Into<QueryVector>) -> Self {
        self.vectors([vector])
    }

    /// Looks for neighbours of these vectors, too. Rows of [`SearchRequest::like_rows`] are forgotten.
    pub fn vectors<V: Into<QueryVector>>(mut self, vectors: impl IntoIterator<Item = V>) -> Self {
        let vectors = vectors.into_iter().map(Into::into);
        match &mut self.queries {
            Queries::Vectors(known) => known.extend(vectors),
            Queries::Rows(_) => self.queries = Queries::Vectors(vectors.collect()),
        }
        self
    }

    /// Looks for neighbours of the vectors of the rows with these `_rowid`s, in place of other vectors. The rows themselves
    /// are among the answer.
    pub fn like_rows(mut self, rowids: impl IntoIterator<Item = i64>) -> Self {
        self.queries = Queries::Rows(rowids.into_iter().collect());
        self
    }

    /// So many neighbours of each vector, 1 to [`NEIGHBOURS_MAX`]; ten unless said.
    pub fn k(mut self, neighbours: u32) -> Self {
        self.k = neighbours;
        self
    }

    /// Compares by this metric; without it by that of the column's index, else by Hamming's for bits and L2 for others.
    pub fn metric(mut self, metric: Metric) -> Self {
        self.metric = Some(metric);
        self
    }

    /// How near to the exact answer it has to be.
    pub fn accuracy(mut self, accuracy: Accuracy) -> Self {
        self.accuracy = accuracy;
        self
    }

    /// Only rows for which this is true: SQL text, or a typed expression.
    pub fn filter(mut self, condition: impl Into<Condition>) -> Self {
        self.filter = Some(condition.into());
        self
    }

    /// Returns these columns, `_rowid` among them or not; without any, `_rowid`.
    pub fn select<S: Into<String>>(mut self, columns: impl IntoIterator<Item = S>) -> Self {
        self.projection = columns.into_iter().map(Into::into).collect();
        self
    }

    /// Only neighbours at most this far, in the metric.
    pub fn distance_max(mut self, distance: f32) -> Self {
        self.distance_max = Some(distance);
        self
    }

    /// A deadline from now until the last batch was taken, in place of the client's.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Result frames that the cell may send ahead of the consumer, per request, in place of the client's.
    pub fn frames_ahead(mut self, frames: u32) -> Self {
        self.frames_ahead = Some(frames.max(1));
        self
    }

    /// Has the cell read everything from the device, for benchmarks.
    pub fn bypass_cache(mut self, bypass: bool) -> Self {
        self.bypass_cache = bypass;
        self
    }

    /// How many vectors it has.
    pub(super) fn queries(&self) -> usize {
        self.queries.len()
    }

    pub(super) fn own_timeout(&self) -> Option<Duration> {
        self.timeout
    }

    pub(crate) fn table_name(&self) -> &str {
        &self.table
    }

    /// What is wrong with it whatever the table.
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |text: String| Err(Error::new(ErrorCode::InvalidParameter, text));
        if self.queries() == 0 {
            return refuse("no vector to find neighbours of: give at least one".into());
        }
        if i32::try_from(self.queries()).is_err() {
            return refuse(format!("{} vectors at once: ask for fewer", self.queries()));
        }
        if !(1..=NEIGHBOURS_MAX).contains(&self.k) {
            return refuse(format!("{} neighbours of each vector: ask for 1 to {NEIGHBOURS_MAX}", self.k));
        }
        match self.accuracy {
            Accuracy::Recall(recall) if !(recall > 0.0 && recall <= 1.0) => {
                refuse(format!("a recall of {recall}: it is above 0 and at most 1"))
            }
            Accuracy::Probes(0) => refuse("no list to look into: ask for at least one probe".into()),
            Accuracy::Ef(0) => refuse("no candidates: ask for an ef of at least 1".into()),
            _ if self.distance_max.is_some_and(f32::is_nan) => refuse("a greatest distance that is no number".into()),
            _ => Ok(()),
        }
    }

    /// The column of vectors that is meant.
    fn vectors_of<'a>(&self, schema: &'a Schema) -> Result<&'a Field> {
        let is_vector = |field: &&Field| matches!(field.data_type, DataType::Vector { .. });
        let names = |fields: &[&Field]| fields.iter().map(|field| field.name.as_str()).collect::<Vec<_>>().join(", ");
        let vectors: Vec<&Field> = schema.fields().iter().filter(is_vector).collect();
        match &self.column {
            Some(name) => {
                let (_, field) = schema.find(name).ok_or_else(|| unknown(name, schema))?;
                if !is_vector(&field) {
                    let text = format!(
                        "column {name:?} is {}, not a vector: {}",
                        field.data_type,
                        match vectors.len() {
                            0 => "the table has none".to_string(),
                            _ => format!("vectors are {}", names(&vectors)),
                        }
                    );
                    return Err(Error::new(ErrorCode::TypeMismatch, text));
                }
                Ok(field)
            }
            None => match vectors.as_slice() {
                [field] => Ok(field),
                [] => {
                    let text = format!("the table {:?} has no column of vectors to search by", self.table);
                    Err(Error::new(ErrorCode::TypeMismatch, text))
                }
                several => {
                    let text = format!("which column of {:?}? Name one of {}", self.table, names(several));
                    Err(Error::new(ErrorCode::InvalidParameter, text))
                }
            },
        }
    }

    /// What is wrong with its vectors for a table of this schema: all of them, before the first is sent.
    pub(super) fn check_vectors(&self, schema: &Schema) -> Result<()> {
        let column = self.vectors_of(schema)?;
        let Queries::Vectors(vectors) = &self.queries else { return Ok(()) };
        let mut elements = Vec::new();
        vectors.iter().enumerate().try_for_each(|(query, vector)| {
            elements.clear();
            vector.encode(query, &column.data_type, &mut elements)
        })
    }

    /// How many vectors a request can carry in one frame.
    pub(super) fn queries_per_request(&self, schema: &Schema) -> Result<usize> {
        let bytes = match &self.queries {
            Queries::Vectors(_) => self.vectors_of(schema)?.data_type.fixed_width().unwrap_or(1),
            // The longest varint.
            Queries::Rows(_) => 10,
        };
        let rest = self.message(schema, 0..0)?.encoded_len() + REQUEST_OVERHEAD_BYTES;
        Ok((FRAME_BYTES_MAX.saturating_sub(rest) / bytes).clamp(1, QUERIES_MAX))
    }

    /// The question about some of its vectors, typed against a table of this schema; without limits of time.
    fn message(&self, schema: &Schema, queries: Range<usize>) -> Result<proto::VectorSearchRequest> {
        let column = self.vectors_of(schema)?;
        let (mut query_vectors, mut query_rowids) = (Vec::new(), Vec::new());
        match &self.queries {
            Queries::Vectors(vectors) => {
                for (query, vector) in vectors.iter().enumerate().take(queries.end).skip(queries.start) {
                    vector.encode(query, &column.data_type, &mut query_vectors)?;
                }
            }
            Queries::Rows(rows) => query_rowids.extend_from_slice(rows.get(queries.clone()).unwrap_or_default()),
        }
        let known = |name: &String| match schema.find(name) {
            _ if name == ROWID_COLUMN => Ok(name.clone()),
            Some((_, field)) => Ok(field.name.clone()),
            None => Err(unknown(name, schema)),
        };
        Ok(proto::VectorSearchRequest {
            table: self.table.clone(),
            schema_hash: schema.hash(),
            column: column.name.clone(),
            query_vectors: query_vectors.into(),
            query_count: queries.len() as u32,
            k: self.k,
            metric: self.metric.map_or(wire::Metric::Unspecified, Metric::to_proto) as i32,
            accuracy: match self.accuracy {
                Accuracy::Usual => None,
                Accuracy::Exact => Some(wire::Accuracy::Exact(true)),
                Accuracy::Recall(recall) => Some(wire::Accuracy::Recall(recall)),
                Accuracy::Probes(probes) => Some(wire::Accuracy::Probes(probes)),
                Accuracy::Ef(ef) => Some(wire::Accuracy::Ef(ef)),
            },
            substrait_filter: self
                .filter
                .as_ref()
                .map(|filter| filter.message(schema))
                .transpose()?
                .unwrap_or_default(),
            projection: self.projection.iter().map(known).collect::<Result<_>>()?,
            distance_max: self.distance_max,
            timeout_ms: 0,
            initial_credits: 0,
            query_rowids,
            bypass_cache: self.bypass_cache,
        })
    }
}

fn unknown(name: &str, schema: &Schema) -> Error {
    unknown_column(name, schema.fields().iter().map(|field| field.name.as_str()))
}

/// Some of the vectors of a search: what one request asks.
#[derive(Clone, Debug)]
pub(crate) struct Asking {
    pub request: Arc<SearchRequest>,
    pub queries: Range<usize>,
}

impl Asking {
    /// The question as it is put to the cell, typed against the table's schema as the client knows it.
    pub(crate) async fn message(
        &self,
        client: &Client,
        deadline: Option<Instant>,
    ) -> Result<proto::VectorSearchRequest> {
        let schema = client.schema(&self.request.table).await?;
        Ok(proto::VectorSearchRequest {
            timeout_ms: milliseconds_until(deadline),
            initial_credits: self.request.frames_ahead.unwrap_or(client.options().result_frames_ahead),
            ..self.request.message(&schema, self.queries.clone())?
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(columns: &[(&str, &str)]) -> Schema {
        let field = |(name, data_type): &(&str, &str)| Field::new(*name, data_type.parse().unwrap(), true);
        Schema::new(columns.iter().map(field).collect()).unwrap()
    }

    fn two() -> Schema {
        schema(&[("id", "int64"), ("Name", "text"), ("v", "vector(2,f32)"), ("w", "vector(3,i8)")])
    }

    #[test]
    fn a_request_says_what_was_asked_in_the_columns_own_terms() {
        let request = SearchRequest::table("t")
            .column("W")
            .vectors([[1.0, 2.0, 3.0], [4.0, 5.0, -6.0]])
            .k(7)
            .metric(Metric::Cosine)
            .accuracy(Accuracy::Recall(0.9))
            .filter("id > 3")
            .select(["name", "_rowid"])
            .distance_max(0.5);
        assert_eq!(request.check(), Ok(()));
        let message = request.message(&two(), 0..2).unwrap();
        assert_eq!((message.column.as_str(), message.k, message.query_count), ("w", 7, 2));
        assert_eq!(message.query_vectors.as_ref(), [1, 2, 3, 4, 5, 250]);
        assert_eq!(message.projection, ["Name", "_rowid"]);
        assert_eq!(message.metric, wire::Metric::Cosine as i32);
        assert_eq!(message.accuracy, Some(wire::Accuracy::Recall(0.9)));
        assert_eq!((message.distance_max, message.schema_hash), (Some(0.5), two().hash()));
        let filter = hidb::plan::substrait::filter_from_substrait(&message.substrait_filter, &two()).unwrap();
        assert_eq!(filter, hidb::plan::sql::parse_predicate("id > 3", &two()).unwrap());
        // A part of it.
        let second = request.message(&two(), 1..2).unwrap();
        assert_eq!((second.query_vectors.as_ref(), second.query_count), (&[4, 5, 250][..], 1));
        let rows = request.like_rows([5, -1]).message(&two(), 1..2).unwrap();
        assert_eq!((rows.query_rowids, rows.query_vectors.len(), rows.query_count), (vec![-1], 0, 1));
    }

    #[test]
    fn what_is_wrong_with_a_request_is_said_before_it_is_sent() {
        let request = || SearchRequest::table("t").vector([1.0, 2.0]);
        for (request, says) in [
            (SearchRequest::table("t"), "no vector"),
            (SearchRequest::table("t").like_rows([]), "no vector"),
            (request().k(0), "0 neighbours"),
            (request().k(10_001), "1 to 10000"),
            (request().accuracy(Accuracy::Recall(0.0)), "a recall of 0"),
            (request().accuracy(Accuracy::Recall(1.5)), "a recall of 1.5"),
            (request().accuracy(Accuracy::Recall(f32::NAN)), "a recall of NaN"),
            (request().accuracy(Accuracy::Probes(0)), "no list"),
            (request().accuracy(Accuracy::Ef(0)), "ef of at least 1"),
            (request().distance_max(f32::NAN), "no number"),
        ] {
            let error = request.check().unwrap_err();
            assert!(error.code == ErrorCode::InvalidParameter && error.message.contains(says), "{says}: {error}");
        }
        let none = schema(&[("id", "int64")]);
        for (request, schema, code, says) in [
            (request(), two(), ErrorCode::InvalidParameter, "Name one of v, w"),
            (request(), none.clone(), ErrorCode::TypeMismatch, "no column of vectors"),
            (request().column("id"), none, ErrorCode::TypeMismatch, "the table has none"),
            (request().column("id"), two(), ErrorCode::TypeMismatch, "vectors are v, w"),
            (request().column("u"), two(), ErrorCode::UnknownColumn, "\"u\""),
            (request().column("w"), two(), ErrorCode::TypeMismatch, "query 0 has 2 components"),
            (request().column("v").select(["x"]), two(), ErrorCode::UnknownColumn, "\"x\""),
            (request().column("v").filter("id +"), two(), ErrorCode::Syntax, ""),
            (request().column("v").filter("id"), two(), ErrorCode::TypeMismatch, "boolean"),
        ] {
            let error = request.message(&schema, 0..1).unwrap_err();
            assert!(error.code == code && error.message.contains(says), "{says}: {error}");
        }
    }

    #[test]
    fn requests_carry_as_many_vectors_as_a_frame_has_room_for() {
        let per_request = |data_type: &str, request: SearchRequest| {
            let schema = schema(&[("id", "int64"), ("v", data_type)]);
            let per_request = request.queries_per_request(&schema).unwrap();
            // As many as that do fit.
            let message = request.message(&schema, 0..per_request.min(request.queries())).unwrap();
            assert!(hidb::frame::encode_frame(hidb::frame::FrameKind::VectorSearchRequest, 1, &message, &[]).is_ok());
            per_request
        };
        let of = |dimension: usize, count: usize| {
            SearchRequest::table("t").vectors((0..count).map(|_| vec![1.0f32; dimension]))
        };
        assert_eq!(per_request("vector(2,f32)", of(2, 1100)), 1024);
        assert_eq!(per_request("vector(384,f16)", of(384, 1100)), 1024);
        assert_eq!(per_request("vector(384,f32)", of(384, 1100)), 681);
        assert_eq!(per_request("vector(65535,f32)", of(65_535, 4)), 3);
        assert_eq!(per_request("vector(65535,f32)", SearchRequest::table("t").like_rows(0..2000)), 1024);
    }

    #[test]
    fn metrics_survive_their_text_and_their_number() {
        for metric in Metric::ALL {
            assert_eq!(metric.to_string().parse(), Ok(metric));
            assert_eq!(Metric::of_proto(metric.to_proto() as i32), Some(metric));
        }
        assert!("euclid".parse::<Metric>().is_err());
        assert_eq!(Metric::of_proto(0), None);
    }
}
