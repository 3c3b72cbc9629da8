//! Answers as callers see them, wherever they come from: the cell, the client's cache, or the cell asked once more.
//!
//! Owns [`ScanStream`] and [`Asked`], a question that can be put again. Called by engines, by [`crate::search`] and by
//! `heliostat scan`.
//!
//! Invariants
//! - An answer that is lost on its way, because the connection or a link went, is asked for again as long as the caller
//!   was given no batch of it: once, and within its deadline. Afterwards the loss is an error: half an answer never
//!   passes for a whole one, and no row comes twice.
//! - An answer comes from the cache only while there is a live connection.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use futures::Stream;
use futures::future::BoxFuture;
use hidb::frame::FrameKind;
use hidb::proto::{ScanStatistics, SearchStatistics};
use hidb::{Error, ErrorCode, Result, Scalar, convert, proto};
use prost::Message;

use super::answering::{Answering, DEADLINE_GRACE, Ending, Terms};
use super::request::{ScanRequest, milliseconds_until};
use super::statement::Statement;
use crate::cache::{Answer, AnswerKey};
use crate::client::{Client, within};
use crate::connection::Connection;
use crate::search::Asking;

/// Where the batches of an answer come from.
enum Source {
    /// The cache; so many have been given.
    Kept(Arc<Answer>, usize),
    /// The cell.
    Coming(Box<Answering>),
    /// The cell, once it has been asked again.
    Again(BoxFuture<'static, Result<Source>>),
    Over,
}

/// What is asked.
enum How {
    Scan { request: ScanRequest, explain: bool },
    Statement { statement: Statement, parameters: Vec<Scalar> },
    Search(Asking),
}

impl How {
    fn table(&self) -> &str {
        match self {
            How::Scan { request, .. } => request.table_name(),
            How::Statement { statement, .. } => statement.source().table_name(),
            How::Search(asking) => asking.request.table_name(),
        }
    }
}

/// A question that can be put again: nothing changes by it.
pub(crate) struct Asked {
    client: Client,
    deadline: Option<Instant>,
    how: How,
}

impl Asked {
    pub(super) fn scan(client: &Client, request: ScanRequest, explain: bool) -> Self {
        let deadline = client.deadline(request.timeout);
        Asked { client: client.clone(), deadline, how: How::Scan { request, explain } }
    }

    pub(super) fn statement(statement: &Statement, parameters: &[Scalar]) -> Self {
        let client = statement.client().clone();
        let deadline = client.deadline(statement.source().timeout);
        let how = How::Statement { statement: statement.clone(), parameters: parameters.to_vec() };
        Asked { client, deadline, how }
    }

    /// Part of a search, to be answered by `deadline`.
    pub(crate) fn search(client: &Client, asking: Asking, deadline: Option<Instant>) -> Self {
        Asked { client: client.clone(), deadline, how: How::Search(asking) }
    }

    /// Puts the question, on a live connection; again when what the client knew of table or statement is out of date.
    async fn put(&self) -> Result<Source> {
        // The cell's own deadline error says more than ours: let it come first.
        let patience = self.deadline.map(|deadline| deadline + DEADLINE_GRACE);
        let mut is_second = false;
        loop {
            let outcome = match &self.how {
                How::Scan { request, explain } => {
                    let body = within(self.deadline, request.message(&self.client, self.deadline, *explain)).await?;
                    let key = AnswerKey {
                        table: body.table.clone(),
                        schema_hash: body.schema_hash,
                        plan: body.substrait_plan.clone(),
                        parameters: Vec::new(),
                        memory_bytes_max: body.memory_bytes_max,
                    };
                    let key = self.may_keep(*explain || request.bypass_cache).then(|| Arc::new(key));
                    let (body, key) = (&body, &key);
                    let put = |connection| async move {
                        let kind = FrameKind::PredicatePushdownRequest;
                        let terms = self.terms(&body.table, body.initial_credits, key.clone());
                        self.put_on(connection, kind, body, terms).await
                    };
                    self.client.retrying(patience, put).await
                }
                How::Statement { statement, parameters } => {
                    let put = |connection| self.execute_on(connection, statement, parameters);
                    self.client.retrying(patience, put).await
                }
                How::Search(asking) => {
                    let body = &within(self.deadline, asking.message(&self.client, self.deadline)).await?;
                    let put = |connection| async move {
                        let terms = self.terms(&body.table, body.initial_credits, None);
                        self.put_on(connection, FrameKind::VectorSearchRequest, body, terms).await
                    };
                    self.client.retrying(patience, put).await
                }
            };
            match outcome {
                Err(error)
                    if !is_second && matches!(error.code, ErrorCode::StaleSchema | ErrorCode::UnknownStatement) =>
                {
                    is_second = true;
                    self.forget().await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn execute_on(
        &self,
        connection: Arc<Connection>,
        statement: &Statement,
        parameters: &[Scalar],
    ) -> Result<Source> {
        let (statement_id, prepared) = statement.prepared_on(&connection).await?;
        let source = statement.source();
        let body = proto::Execute {
            statement_id,
            parameters: parameters.iter().map(convert::scalar_to_proto).collect(),
            timeout_ms: milliseconds_until(self.deadline),
            initial_credits: source.frames_ahead.unwrap_or(self.client.options().result_frames_ahead),
        };
        let key = self.may_keep(source.bypass_cache).then(|| {
            // The values alone: neither the statement's number nor the time that is left.
            let values = proto::Execute { parameters: body.parameters.clone(), ..Default::default() };
            Arc::new(AnswerKey { parameters: values.encode_to_vec(), ..AnswerKey::clone(&prepared) })
        });
        let terms = self.terms(&prepared.table, body.initial_credits, key);
        self.put_on(connection, FrameKind::Execute, &body, terms).await
    }

    /// Puts it on this connection, unless the answer is known.
    async fn put_on(
        &self,
        connection: Arc<Connection>,
        kind: FrameKind,
        body: &impl Message,
        terms: Terms,
    ) -> Result<Source> {
        match terms.key.as_ref().and_then(|key| terms.cache.answer(key)) {
            Some(answer) => Ok(Source::Kept(answer, 0)),
            None => Ok(Source::Coming(Box::new(Answering::open(connection, kind, body, terms).await?))),
        }
    }

    fn may_keep(&self, is_for_the_cell: bool) -> bool {
        !is_for_the_cell && self.client.cache().keeps_answers()
    }

    fn terms(&self, table: &str, credits: u32, key: Option<Arc<AnswerKey>>) -> Terms {
        Terms { table: table.into(), credits, deadline: self.deadline, cache: self.client.cache().clone(), key }
    }

    /// Drops what the cell said is out of date.
    async fn forget(&self) {
        self.client.cache().forget_schema(self.how.table());
        if let How::Statement { statement, .. } = &self.how {
            statement.forget().await;
        }
    }
}

/// An answer as it arrives. A [`Stream`] of record batches that borrow the memory they were received in.
///
/// A connection or link that is lost before the first batch was given costs time only: the question is asked again.
/// Afterwards it is an error, `Unavailable`.
pub struct ScanStream {
    asked: Arc<Asked>,
    source: Source,
    schema: SchemaRef,
    is_kept: bool,
    /// Whether it may be asked for again.
    may_ask_again: bool,
    started: Instant,
    ended: Option<Duration>,
    ending: Option<Ending>,
    rows: u64,
}

impl fmt::Debug for ScanStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScanStream").field("schema", &self.schema).field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl ScanStream {
    /// Asks, and waits for the schema.
    pub(crate) async fn open(asked: Asked) -> Result<ScanStream> {
        let started = Instant::now();
        let source = asked.put().await?;
        let may_ask_again = !asked.client.options().retry_for.is_zero();
        Ok(ScanStream {
            asked: Arc::new(asked),
            schema: source.schema(),
            is_kept: matches!(source, Source::Kept(..)),
            source,
            may_ask_again,
            started,
            ended: None,
            ending: None,
            rows: 0,
        })
    }

    /// The columns of every batch.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// The cell's statistics, once the stream has ended. For an answer from the cache only `rows` is not 0: the cell did
    /// nothing for it.
    pub fn statistics(&self) -> Option<&ScanStatistics> {
        self.ending.as_ref().map(|ending| &ending.statistics)
    }

    /// What a search did, once the stream has ended.
    pub(crate) fn search_statistics(&self) -> Option<&SearchStatistics> {
        self.ending.as_ref().and_then(|ending| ending.search.as_ref())
    }

    /// What the cell explained, once the stream has ended.
    pub(super) fn take_explain(&mut self) -> String {
        self.ending.as_mut().map(|ending| std::mem::take(&mut ending.explain)).unwrap_or_default()
    }

    /// From request sent to last batch in client memory, once the stream has ended.
    pub fn elapsed(&self) -> Option<Duration> {
        self.ended
    }

    /// Rows received so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Whether the answer comes from the client's cache ([`crate::ConnectOptions::result_cache_bytes`]).
    pub fn is_from_cache(&self) -> bool {
        self.is_kept
    }

    /// When the last batch was in memory; now, when it is not yet.
    pub(crate) fn ended_at(&self) -> Instant {
        self.ended.map_or_else(Instant::now, |after| self.started + after)
    }

    fn end(&mut self, at: Instant, ending: Option<Ending>) {
        self.source = Source::Over;
        self.ended = Some(at.saturating_duration_since(self.started));
        self.ending = ending;
    }

    /// The answer was lost on its way: has it asked for again if that may be.
    fn ask_again(&mut self, error: &Error) -> bool {
        let is_lost = error.code == ErrorCode::Unavailable;
        if !is_lost || !self.may_ask_again || self.rows > 0 {
            return false;
        }
        self.may_ask_again = false;
        tracing::debug!(%error, "an answer was lost before its first batch: asking again");
        let asked = self.asked.clone();
        self.source = Source::Again(Box::pin(async move { asked.put().await }));
        true
    }

    /// The question was put again.
    fn came_again(&mut self, source: Source) -> Result<()> {
        if source.schema() != self.schema {
            let table = self.asked.how.table();
            let text = format!(
                "the columns of the answer changed while it was asked for again, because those of table {table:?} did: ask anew"
            );
            return Err(Error::new(ErrorCode::StaleSchema, text));
        }
        self.is_kept = matches!(source, Source::Kept(..));
        self.source = source;
        Ok(())
    }
}

impl Source {
    fn schema(&self) -> SchemaRef {
        match self {
            Source::Kept(answer, _) => answer.schema.clone(),
            Source::Coming(answering) => answering.schema().clone(),
            Source::Again(_) | Source::Over => Arc::new(arrow_schema::Schema::empty()),
        }
    }
}

impl Stream for ScanStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            let failed = match &mut this.source {
                Source::Over => return Poll::Ready(None),
                Source::Kept(answer, given) => {
                    let Some(batch) = answer.batches.get(*given).cloned() else {
                        let statistics = ScanStatistics { rows: this.rows, ..Default::default() };
                        this.end(Instant::now(), Some(Ending { statistics, ..Default::default() }));
                        return Poll::Ready(None);
                    };
                    *given += 1;
                    this.rows += batch.num_rows() as u64;
                    return Poll::Ready(Some(Ok(batch)));
                }
                Source::Coming(answering) => match ready!(answering.poll_batch(context)) {
                    Some(Ok(batch)) => {
                        this.rows += batch.num_rows() as u64;
                        return Poll::Ready(Some(Ok(batch)));
                    }
                    Some(Err(error)) => error,
                    None => {
                        let (ending, at) = (answering.take_end(), answering.arrived());
                        this.end(at, Some(ending));
                        return Poll::Ready(None);
                    }
                },
                Source::Again(asking) => match ready!(asking.as_mut().poll(context)) {
                    Ok(source) => match this.came_again(source) {
                        Ok(()) => continue,
                        Err(error) => error,
                    },
                    Err(error) => error,
                },
            };
            if !this.ask_again(&failed) {
                this.end(Instant::now(), None);
                return Poll::Ready(Some(Err(failed)));
            }
        }
    }
}
