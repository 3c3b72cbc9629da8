//! The answer to a search, which several requests may make.
//!
//! Owns [`SearchStream`]. Called by engines and by `heliostat search`.
//!
//! Invariants
//! - Batches come in the order of the query vectors, whichever request they were in; `query` counts through all of them.
//! - At most [`REQUESTS_AHEAD`] requests are under way, the first of which is the one being taken.
//! - Each request is asked again as a scan is: once, and only while no batch of *it* was given.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, Int32Array, RecordBatch};
use arrow_schema::{DataType as ArrowType, Field as ArrowField, Schema as ArrowSchema, SchemaRef};
use futures::Stream;
use futures::future::BoxFuture;
use hidb::proto::{ScanStatistics, SearchStatistics};
use hidb::{Error, ErrorCode, Result};

use super::request::{Asking, SearchRequest};
use crate::client::Client;
use crate::scan::{Asked, ScanStream};

/// Requests of one search that are under way at a time.
const REQUESTS_AHEAD: usize = 4;

/// The column that says which query vector a neighbour is of.
const QUERY_COLUMN: &str = "query";

/// What became of a request.
enum Answer {
    Asking(BoxFuture<'static, Result<ScanStream>>),
    Coming(Box<ScanStream>),
    Failed(Error),
}

/// One request of a search.
struct Part {
    queries: Range<usize>,
    answer: Answer,
}

impl Part {
    /// Goes on with asking; ready once that is over.
    fn poll_asked(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Answer::Asking(asking) = &mut self.answer {
            self.answer = match ready!(asking.as_mut().poll(context)) {
                Ok(stream) => Answer::Coming(Box::new(stream)),
                Err(error) => Answer::Failed(error),
            };
        }
        Poll::Ready(())
    }
}

/// Which request has which vectors: as few as may be, all about as long.
fn split(queries: usize, per_request: usize) -> VecDeque<Range<usize>> {
    let requests = queries.div_ceil(per_request.max(1)).max(1);
    (0..requests).map(|n| queries * n / requests..queries * (n + 1) / requests).collect()
}

/// The neighbours as they arrive. A [`Stream`] of record batches that borrow the memory they were received in.
///
/// A connection or link that is lost before the first batch of a request was given costs time only: the request is put
/// again. Afterwards it is an error, `Unavailable`.
pub struct SearchStream {
    client: Client,
    request: Arc<SearchRequest>,
    deadline: Option<Instant>,
    /// Not asked yet.
    waiting: VecDeque<Range<usize>>,
    parts: VecDeque<Part>,
    schema: SchemaRef,
    started: Instant,
    ended: Option<Duration>,
    rows: u64,
    is_over: bool,
    statistics: ScanStatistics,
    search: SearchStatistics,
}

impl fmt::Debug for SearchStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SearchStream").field("schema", &self.schema).field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl SearchStream {
    /// Asks, and waits for the schema of the first answer.
    pub(super) async fn open(client: &Client, request: SearchRequest) -> Result<SearchStream> {
        request.check()?;
        let started = Instant::now();
        let deadline = client.deadline(request.own_timeout());
        let schema = crate::client::within(deadline, client.schema(request.table_name())).await?;
        request.check_vectors(&schema)?;
        let waiting = split(request.queries(), request.queries_per_request(&schema)?);
        let mut stream = SearchStream {
            client: client.clone(),
            request: Arc::new(request),
            deadline,
            waiting,
            parts: VecDeque::new(),
            schema: Arc::new(ArrowSchema::empty()),
            started,
            ended: None,
            rows: 0,
            is_over: false,
            statistics: ScanStatistics::default(),
            search: SearchStatistics::default(),
        };
        std::future::poll_fn(|context| stream.poll_ahead(context)).await;
        stream.schema = match stream.parts.front() {
            Some(Part { queries, answer: Answer::Coming(answer) }) => {
                numbered_schema(&answer.schema(), queries.len(), stream.request.queries())
            }
            Some(Part { answer: Answer::Failed(error), .. }) => return Err(error.clone()),
            _ => return Err(Error::new(ErrorCode::Internal, "a search was not asked")),
        };
        Ok(stream)
    }

    /// Keeps requests under way; ready once the first of them has been asked.
    fn poll_ahead(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while self.parts.len() < REQUESTS_AHEAD
            && let Some(queries) = self.waiting.pop_front()
        {
            let asking = Asking { request: self.request.clone(), queries: queries.clone() };
            let asked = Asked::search(&self.client, asking, self.deadline);
            self.parts.push_back(Part { queries, answer: Answer::Asking(Box::pin(ScanStream::open(asked))) });
        }
        // In order, so that they are put in order.
        let mut asked = self.parts.iter_mut().map(|part| part.poll_asked(context));
        let first = asked.next().unwrap_or(Poll::Ready(()));
        asked.for_each(drop);
        first
    }

    /// The columns of every batch.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// Rows received so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// What the cell read and sent, once the stream has ended: of all requests together.
    pub fn statistics(&self) -> Option<&ScanStatistics> {
        self.ended.map(|_| &self.statistics)
    }

    /// What the search did, once the stream has ended: of all requests together.
    pub fn search_statistics(&self) -> Option<&SearchStatistics> {
        self.ended.map(|_| &self.search)
    }

    /// From request sent to last batch in client memory, once the stream has ended.
    pub fn elapsed(&self) -> Option<Duration> {
        self.ended
    }

    /// The first request is answered.
    fn finish_part(&mut self) {
        if let Some(Part { answer: Answer::Coming(answer), .. }) = self.parts.pop_front() {
            add_statistics(&mut self.statistics, answer.statistics().copied().unwrap_or_default());
            add_search_statistics(&mut self.search, answer.search_statistics().cloned().unwrap_or_default());
            if self.parts.is_empty() && self.waiting.is_empty() {
                self.ended = Some(answer.ended_at().saturating_duration_since(self.started));
                self.is_over = true;
            }
        }
    }

    fn poll_batch(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<RecordBatch>>> {
        while !self.is_over {
            ready!(self.poll_ahead(context));
            let Some(first) = self.parts.front_mut() else { break };
            match &mut first.answer {
                Answer::Coming(answer) => match ready!(Pin::new(&mut **answer).poll_next(context)) {
                    Some(Ok(batch)) => {
                        let batch = numbered(batch, &first.queries, self.request.queries(), &self.schema)?;
                        self.rows += batch.num_rows() as u64;
                        return Poll::Ready(Some(Ok(batch)));
                    }
                    Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                    None => self.finish_part(),
                },
                Answer::Failed(error) => return Poll::Ready(Some(Err(error.clone()))),
                Answer::Asking(_) => return Poll::Pending,
            }
        }
        Poll::Ready(None)
    }
}

impl Stream for SearchStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.poll_batch(context));
        if matches!(next, Some(Err(_))) {
            // What is under way is cancelled.
            self.is_over = true;
            self.waiting.clear();
            self.parts.clear();
        }
        Poll::Ready(next)
    }
}

/// The columns of a search for `all` vectors, from those of a request that has `here` of them.
fn numbered_schema(schema: &SchemaRef, here: usize, all: usize) -> SchemaRef {
    if here > 1 || all == 1 {
        return schema.clone();
    }
    let query = Arc::new(ArrowField::new(QUERY_COLUMN, ArrowType::Int32, false));
    let fields: Vec<_> = std::iter::once(query).chain(schema.fields().iter().cloned()).collect();
    Arc::new(ArrowSchema::new_with_metadata(fields, schema.metadata().clone()))
}

/// A batch of a request for some of the vectors, as one of a search for all of them.
fn numbered(batch: RecordBatch, queries: &Range<usize>, all: usize, schema: &SchemaRef) -> Result<RecordBatch> {
    let wrong = |what: &str| Error::new(ErrorCode::Protocol, format!("the cell answered a search {what}"));
    let first = i32::try_from(queries.start).map_err(|_| wrong("for too many vectors"))?;
    let mut columns = batch.columns().to_vec();
    if all > 1 && queries.len() == 1 {
        columns.insert(0, Arc::new(Int32Array::from_value(first, batch.num_rows())) as ArrayRef);
    } else if first > 0 {
        let own = columns.first().and_then(|column| column.as_primitive_opt::<Int32Type>());
        let own = own.ok_or_else(|| wrong("for several vectors without saying which is which"))?;
        columns[0] = Arc::new(own.unary::<_, Int32Type>(|query| query.wrapping_add(first)));
    } else if batch.schema_ref() == schema {
        return Ok(batch);
    }
    RecordBatch::try_new(schema.clone(), columns).map_err(|error| {
        let text =
            format!("the columns of the answer changed from one request of the search to the next: {error}: ask anew");
        Error::new(ErrorCode::StaleSchema, text)
    })
}

fn add_statistics(sum: &mut ScanStatistics, more: ScanStatistics) {
    // Every field by name, so that a new one is not forgotten.
    let ScanStatistics {
        rows,
        bytes_returned,
        bytes_read_device,
        bytes_decoded,
        row_groups_total,
        row_groups_pruned,
        blocks_total,
        blocks_pruned,
        cell_us,
        stored_bytes,
    } = more;
    sum.rows += rows;
    sum.bytes_returned += bytes_returned;
    sum.bytes_read_device += bytes_read_device;
    sum.bytes_decoded += bytes_decoded;
    sum.row_groups_total += row_groups_total;
    sum.row_groups_pruned += row_groups_pruned;
    sum.blocks_total += blocks_total;
    sum.blocks_pruned += blocks_pruned;
    sum.cell_us += cell_us;
    sum.stored_bytes = sum.stored_bytes.max(stored_bytes);
}

fn add_search_statistics(sum: &mut SearchStatistics, more: SearchStatistics) {
    let SearchStatistics {
        plan,
        rows_compared,
        lists_probed,
        codes_scanned,
        codes_refined,
        candidates_reranked,
        nodes_visited,
        unindexed_rows,
        device_reads,
        device_bytes,
        rows_filtered,
    } = more;
    if sum.plan.is_empty() {
        sum.plan = plan;
    } else if !sum.plan.split("; ").any(|known| known == plan) {
        sum.plan = format!("{}; {plan}", sum.plan);
    }
    sum.rows_compared += rows_compared;
    sum.lists_probed += lists_probed;
    sum.codes_scanned += codes_scanned;
    sum.codes_refined += codes_refined;
    sum.candidates_reranked += candidates_reranked;
    sum.nodes_visited += nodes_visited;
    sum.unindexed_rows += unindexed_rows;
    sum.device_reads += device_reads;
    sum.device_bytes += device_bytes;
    sum.rows_filtered += rows_filtered;
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{Float32Array, Int64Array};
    use proptest::prelude::*;

    fn answer(queries: Option<Vec<i32>>, rows: usize) -> RecordBatch {
        let column = |name: &str, array: ArrayRef| (name.to_string(), array, false);
        let query = queries.map(|queries| column("query", Arc::new(Int32Array::from(queries))));
        let rowids = column("_rowid", Arc::new(Int64Array::from_iter_values(0..rows as i64)));
        let distances = column("distance", Arc::new(Float32Array::from(vec![0.5; rows])));
        RecordBatch::try_from_iter_with_nullable(query.into_iter().chain([rowids, distances])).unwrap()
    }

    fn numbers(batch: &RecordBatch) -> Vec<i32> {
        batch.column(0).as_primitive::<Int32Type>().values().to_vec()
    }

    #[test]
    fn queries_are_numbered_through_all_requests() {
        let several = answer(Some(vec![0, 0, 1]), 3);
        let schema = numbered_schema(&several.schema(), 2, 5);
        assert_eq!(schema, several.schema());
        assert_eq!(numbered(several.clone(), &(0..2), 5, &schema).unwrap(), several);
        assert_eq!(numbers(&numbered(several, &(2..4), 5, &schema).unwrap()), [2, 2, 3]);
        // A request for one vector does not say which: it is the only one.
        let last = answer(None, 2);
        assert_eq!(numbered_schema(&last.schema(), 1, 5), schema);
        assert_eq!(numbers(&numbered(last.clone(), &(4..5), 5, &schema).unwrap()), [4, 4]);
        let alone = numbered_schema(&last.schema(), 1, 1);
        assert_eq!(numbered(last.clone(), &(0..1), 1, &alone).unwrap(), last);
    }

    #[test]
    fn an_answer_that_lacks_its_numbers_or_changed_its_columns_is_an_error() {
        let schema = answer(Some(vec![0]), 1).schema();
        assert_eq!(numbered(answer(None, 2), &(2..4), 5, &schema).unwrap_err().code, ErrorCode::Protocol);
        assert_eq!(numbered(answer(None, 2), &(0..2), 5, &schema).unwrap_err().code, ErrorCode::StaleSchema);
    }

    #[test]
    fn statistics_of_the_requests_are_added_up_and_their_plans_named_once() {
        let one = |plan: &str| SearchStatistics { plan: plan.into(), device_reads: 3, ..Default::default() };
        let mut sum = SearchStatistics::default();
        for plan in ["ivf", "ivf", "exact", "ivf"] {
            add_search_statistics(&mut sum, one(plan));
        }
        assert_eq!((sum.plan.as_str(), sum.device_reads), ("ivf; exact", 12));
        let mut scans = ScanStatistics::default();
        for cell_us in [4, 5] {
            add_statistics(&mut scans, ScanStatistics { cell_us, stored_bytes: 10, ..Default::default() });
        }
        assert_eq!((scans.cell_us, scans.stored_bytes), (9, 10));
    }

    proptest! {
        #[test]
        fn requests_have_every_vector_once_in_order_and_no_more_than_they_can_carry(
            queries in 1usize..5000,
            per_request in 1usize..1025,
        ) {
            let parts = split(queries, per_request);
            prop_assert!(parts.iter().all(|part| (1..=per_request).contains(&part.len())));
            let all: Vec<usize> = parts.iter().cloned().flatten().collect();
            prop_assert!(all.into_iter().eq(0..queries));
            prop_assert_eq!(parts.len(), queries.div_ceil(per_request));
        }
    }
}
