//! Questions and their answers: requests, prepared statements, streams of record batches.
//!
//! Owns [`ScanRequest`], [`ScanStream`], [`Statement`]. Called by engines and by `heliostat scan`.
//!
//! Invariants
//! - A batch borrows the memory its frame was read into; nothing is copied on the way.
//! - Credits are given back when the consumer takes a batch, a quarter of the window at a time, so a
//!   consumer that stops taking stops the cell after `result_frames_ahead` frames.
//! - Dropping a stream before its end cancels the request on the cell.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use bytes::Bytes;
use futures::Stream;
use hidb::aligned::AlignedBytes;
use hidb::frame::{Frame, FrameKind};
use hidb::plan::ScanPlan;
use hidb::plan::sql::ScanText;
use hidb::proto::ScanStatistics;
use hidb::{DataType, Error, ErrorCode, Result, Scalar, convert, image, plan, proto};
use tokio::time::Sleep;

use crate::client::{Client, deadline_passed, within};
use crate::connection::{Connection, Request, decode, unexpected};

/// How much longer than the cell's deadline the client waits, so that the cell's own error arrives.
const DEADLINE_GRACE: Duration = Duration::from_millis(250);

/// The longest single row taken: several values of the longest kind.
const LONG_MESSAGE_BYTES_MAX: usize = 512 << 20;

/// The length that an Arrow IPC message says it has; `None` when that can't be told from its first bytes.
fn message_bytes(start: &[u8]) -> Option<usize> {
    let metadata_bytes = u32::from_le_bytes(start.get(4..8)?.try_into().ok()?) as usize;
    let metadata = start.get(8..)?.get(..metadata_bytes)?;
    let body_bytes = usize::try_from(arrow_ipc::root_as_message(metadata).ok()?.bodyLength()).ok()?;
    (8 + metadata_bytes).checked_add(body_bytes)
}

#[derive(Clone, Debug)]
enum Question {
    Text(ScanText),
    Plan(Box<ScanPlan>),
    Substrait { table: String, bytes: Vec<u8> },
}

/// What is asked of one table, and how.
#[derive(Clone, Debug)]
pub struct ScanRequest {
    question: Question,
    timeout: Option<Duration>,
    frames_ahead: Option<u32>,
    memory_bytes_max: u64,
    bypass_cache: bool,
}

impl ScanRequest {
    fn of(question: Question) -> Self {
        ScanRequest { question, timeout: None, frames_ahead: None, memory_bytes_max: 0, bypass_cache: false }
    }

    /// All rows and columns of a table, to be narrowed down.
    pub fn table(name: impl Into<String>) -> Self {
        Self::text(ScanText { table: name.into(), ..ScanText::default() })
    }

    /// A question in pieces of text; typed against the table's schema by the client.
    pub fn text(text: ScanText) -> Self {
        Self::of(Question::Text(text))
    }

    /// A typed plan.
    pub fn plan(plan: ScanPlan) -> Self {
        Self::of(Question::Plan(Box::new(plan)))
    }

    /// A serialized `substrait.Plan` over one table.
    pub fn substrait(bytes: Vec<u8>) -> Result<Self> {
        let table = plan::substrait::table_name(&bytes)?;
        Ok(Self::of(Question::Substrait { table, bytes }))
    }

    fn map_text(mut self, change: impl FnOnce(&mut ScanText)) -> Self {
        if let Question::Text(text) = &mut self.question {
            change(text);
        }
        self
    }

    /// Keeps rows for which this SQL predicate is true. For questions in text.
    pub fn filter(self, predicate: impl Into<String>) -> Self {
        self.map_text(|text| text.filter = Some(predicate.into()))
    }

    /// Returns these columns or expressions (`a`, `a * b as c`). For questions in text.
    pub fn select<S: Into<String>>(self, items: impl IntoIterator<Item = S>) -> Self {
        self.map_text(|text| text.select = items.into_iter().map(Into::into).collect())
    }

    /// Aggregates, such as `sum(a * b) as revenue`. For questions in text.
    pub fn aggregates<S: Into<String>>(self, items: impl IntoIterator<Item = S>) -> Self {
        self.map_text(|text| text.aggregates = items.into_iter().map(Into::into).collect())
    }

    /// Groups by these. For questions in text.
    pub fn group_by<S: Into<String>>(self, items: impl IntoIterator<Item = S>) -> Self {
        self.map_text(|text| text.group_by = items.into_iter().map(Into::into).collect())
    }

    /// Sorts by these (`a desc nulls last`). For questions in text.
    pub fn order_by<S: Into<String>>(self, items: impl IntoIterator<Item = S>) -> Self {
        self.map_text(|text| text.order_by = items.into_iter().map(Into::into).collect())
    }

    /// Keeps this many rows. For questions in text.
    pub fn limit(self, rows: u64) -> Self {
        self.map_text(|text| text.limit = Some(rows))
    }

    /// A deadline from now until the last batch was taken, in place of the client's.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Result frames the cell may send ahead of the consumer, in place of the client's.
    pub fn frames_ahead(mut self, frames: u32) -> Self {
        self.frames_ahead = Some(frames.max(1));
        self
    }

    /// A memory budget on the cell lower than its own limit.
    pub fn memory_bytes_max(mut self, bytes: u64) -> Self {
        self.memory_bytes_max = bytes;
        self
    }

    /// Reads every chunk from the device, for benchmarks.
    pub fn bypass_cache(mut self, bypass: bool) -> Self {
        self.bypass_cache = bypass;
        self
    }

    fn table_name(&self) -> &str {
        match &self.question {
            Question::Text(text) => &text.table,
            Question::Plan(plan) => &plan.table,
            Question::Substrait { table, .. } => table,
        }
    }

    async fn message(&self, client: &Client, explain: bool) -> Result<proto::PredicatePushdownRequest> {
        let table = self.table_name().to_string();
        let (substrait_plan, schema_hash) = match &self.question {
            Question::Text(text) => {
                let schema = client.schema(&table).await?;
                let plan = plan::sql::parse_scan(text, &schema)?;
                (plan::substrait::to_substrait(&plan, &schema), schema.hash())
            }
            Question::Plan(plan) => {
                let schema = client.schema(&table).await?;
                (plan::substrait::to_substrait(plan, &schema), schema.hash())
            }
            Question::Substrait { bytes, .. } => (bytes.clone(), 0),
        };
        Ok(proto::PredicatePushdownRequest {
            table,
            schema_hash,
            substrait_plan: substrait_plan.into(),
            timeout_ms: milliseconds(self.timeout.or(client.options().timeout)),
            initial_credits: self.frames_ahead.unwrap_or(client.options().result_frames_ahead),
            explain,
            memory_bytes_max: self.memory_bytes_max,
            bypass_cache: self.bypass_cache,
        })
    }
}

fn milliseconds(timeout: Option<Duration>) -> u64 {
    timeout.map_or(0, |timeout| (timeout.as_millis() as u64).max(1))
}

/// Frames of an answer that came by one way.
#[derive(Debug, Default)]
struct Taken {
    /// The number that the next one must have.
    next_sequence: u64,
    /// Those whose credit was not yet given back.
    owed: u32,
    /// Payloads of a message longer than a frame, so far.
    partial: Vec<Bytes>,
    partial_bytes: usize,
}

impl Taken {
    /// A whole message: as it came, or, when one row takes several frames, once the last has come.
    fn complete(&mut self, payload: Bytes) -> Result<Option<Bytes>> {
        if self.partial.is_empty() && message_bytes(&payload).is_none_or(|length| length <= payload.len()) {
            return Ok(Some(payload));
        }
        if self.partial_bytes + payload.len() > LONG_MESSAGE_BYTES_MAX {
            return Err(Error::new(
                ErrorCode::LimitExceeded,
                format!("one row of the answer is longer than {LONG_MESSAGE_BYTES_MAX} bytes: select fewer columns"),
            ));
        }
        self.partial_bytes += payload.len();
        self.partial.push(payload);
        if message_bytes(&self.partial[0]).is_some_and(|length| self.partial_bytes < length) {
            return Ok(None);
        }
        let mut whole = AlignedBytes::zeroed(self.partial_bytes);
        let mut at = 0;
        for part in self.partial.drain(..) {
            whole[at..at + part.len()].copy_from_slice(&part);
            at += part.len();
        }
        self.partial_bytes = 0;
        Ok(Some(whole.into_bytes()))
    }
}

/// Frames of an answer that come by the link to another core than the home core.
#[derive(Debug)]
struct Elsewhere {
    link: u32,
    taken: Taken,
    /// How many there are in all, once that is known.
    frames: Option<u64>,
}

/// An answer as it arrives. A [`Stream`] of record batches that borrow the memory they were received in.
pub struct ScanStream {
    request: Request,
    schema: SchemaRef,
    first: Option<RecordBatch>,
    /// What came by TCP or by the link to the home core.
    home: Taken,
    elsewhere: Vec<Elsewhere>,
    has_schema: bool,
    /// What came by other links before the schema did.
    early: VecDeque<(Frame, u32)>,
    credits: Arc<AtomicI64>,
    credit_step: u32,
    started: Instant,
    ended: Option<Duration>,
    statistics: Option<ScanStatistics>,
    explain: String,
    deadline: Option<Pin<Box<Sleep>>>,
    rows: u64,
}

impl std::fmt::Debug for ScanStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScanStream").field("schema", &self.schema).field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl ScanStream {
    /// Sends the request and waits for the schema, so that what is wrong with the question is said here.
    async fn open(
        connection: Arc<Connection>,
        kind: FrameKind,
        body: &impl prost::Message,
        credits: u32,
        deadline: Option<Instant>,
    ) -> Result<ScanStream> {
        let granted = Arc::new(AtomicI64::new(i64::from(credits)));
        let started = Instant::now();
        connection.ensure_links().await?;
        let request = connection.ask(kind, body, granted.clone())?;
        let mut stream = ScanStream {
            request,
            schema: Arc::new(arrow_schema::Schema::empty()),
            first: None,
            home: Taken::default(),
            elsewhere: Vec::new(),
            has_schema: false,
            early: VecDeque::new(),
            credits: granted,
            credit_step: (credits / 4).max(1),
            started,
            ended: None,
            statistics: None,
            explain: String::new(),
            deadline: deadline.map(|deadline| Box::pin(tokio::time::sleep_until((deadline + DEADLINE_GRACE).into()))),
            rows: 0,
        };
        while !stream.has_schema && stream.ended.is_none() {
            let frame = stream.request.next().await?;
            stream.first = stream.accept(frame, stream.request.elsewhere())?;
        }
        Ok(stream)
    }

    /// The columns of every batch.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// The cell's statistics, once the stream has ended.
    pub fn statistics(&self) -> Option<&ScanStatistics> {
        self.statistics.as_ref()
    }

    /// From request sent to last batch in client memory, once the stream has ended.
    pub fn elapsed(&self) -> Option<Duration> {
        self.ended
    }

    /// Rows received so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// What came by the link to another core.
    fn from(&mut self, link: u32) -> &mut Elsewhere {
        let found = self.elsewhere.iter().position(|from| from.link == link);
        let index = found.unwrap_or_else(|| {
            self.elsewhere.push(Elsewhere { link, taken: Taken::default(), frames: None });
            self.elsewhere.len() - 1
        });
        &mut self.elsewhere[index]
    }

    fn taken(&mut self, elsewhere: Option<u32>) -> &mut Taken {
        match elsewhere {
            None => &mut self.home,
            Some(link) => &mut self.from(link).taken,
        }
    }

    /// Gives credits back, a quarter of the window at a time.
    fn give_credit(&mut self, elsewhere: Option<u32>) -> Result<()> {
        let step = self.credit_step;
        let taken = self.taken(elsewhere);
        if taken.owed < step {
            return Ok(());
        }
        let count = std::mem::take(&mut taken.owed);
        if elsewhere.is_none() {
            self.credits.fetch_add(i64::from(count), Ordering::Relaxed);
        }
        self.request.give_credit(elsewhere, count)
    }

    fn accept(&mut self, frame: Frame, elsewhere: Option<u32>) -> Result<Option<RecordBatch>> {
        if let (Some(link), false) = (elsewhere, self.has_schema) {
            // Links have no order among each other. The cell is bounded by its credits, and so is this.
            self.early.push_back((frame, link));
            return Ok(None);
        }
        if frame.kind != FrameKind::FilteredResultSet {
            return Err(unexpected(frame.kind, "FilteredResultSet"));
        }
        let part: proto::FilteredResultSet = decode(&frame)?;
        let taken = self.taken(elsewhere);
        if part.sequence != taken.next_sequence {
            return Err(Error::new(
                ErrorCode::Protocol,
                format!("result part {} came where {} was expected", part.sequence, taken.next_sequence),
            ));
        }
        taken.next_sequence += 1;
        taken.owed += 1;
        let mut batch = None;
        if !frame.payload.is_empty() {
            if part.sequence == 0 && elsewhere.is_none() {
                self.schema = image::read_schema(&frame.payload)?;
                self.has_schema = true;
            } else if let Some(message) = taken.complete(frame.payload)? {
                let received = image::read_image(message, &self.schema)?;
                self.rows += received.num_rows() as u64;
                batch = Some(received).filter(|batch| batch.num_rows() > 0);
            }
        }
        if part.last {
            for expected in &part.elsewhere {
                self.from(expected.link).frames = Some(expected.frames);
            }
            self.statistics = Some(part.statistics.unwrap_or_default());
            self.explain = part.explain;
        } else {
            self.give_credit(elsewhere)?;
        }
        let is_complete = |from: &Elsewhere| from.frames == Some(from.taken.next_sequence);
        if self.statistics.is_some() && self.early.is_empty() && self.elsewhere.iter().all(is_complete) {
            if !self.home.partial.is_empty() || self.elsewhere.iter().any(|from| !from.taken.partial.is_empty()) {
                return Err(Error::new(ErrorCode::Protocol, "the answer ended within a row that takes several frames"));
            }
            self.ended = Some(self.request.arrived().saturating_duration_since(self.started));
        }
        Ok(batch)
    }
}

impl Stream for ScanStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if let Some(batch) = this.first.take() {
            return Poll::Ready(Some(Ok(batch)));
        }
        loop {
            if this.ended.is_some() {
                return Poll::Ready(None);
            }
            if this.has_schema
                && let Some((frame, link)) = this.early.pop_front()
            {
                match this.accept(frame, Some(link)) {
                    Ok(None) => continue,
                    Ok(Some(batch)) => return Poll::Ready(Some(Ok(batch))),
                    Err(error) => {
                        this.ended = Some(this.started.elapsed());
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            }
            let outcome = match this.request.poll_next(context) {
                Poll::Ready(received) => received.and_then(|frame| this.accept(frame, this.request.elsewhere())),
                Poll::Pending => {
                    if this.deadline.as_mut().is_none_or(|deadline| deadline.as_mut().poll(context).is_pending()) {
                        return Poll::Pending;
                    }
                    this.request.cancel();
                    Err(deadline_passed(this.started))
                }
            };
            match outcome {
                Ok(Some(batch)) => return Poll::Ready(Some(Ok(batch))),
                Ok(None) => {}
                Err(error) => {
                    this.ended = Some(this.started.elapsed());
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}

impl Drop for ScanStream {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.request.cancel();
        }
    }
}

/// A prepared statement: planned once by the cell, executed with parameters.
#[derive(Clone, Debug)]
pub struct Statement {
    client: Client,
    source: Arc<ScanRequest>,
    state: Arc<tokio::sync::Mutex<Option<PreparedOn>>>,
    parameters: Arc<Vec<DataType>>,
}

/// On which connection a statement is known under which id.
#[derive(Debug)]
struct PreparedOn {
    session: u64,
    id: u64,
}

impl Statement {
    /// The types of the parameters, in order.
    pub fn parameters(&self) -> &[DataType] {
        &self.parameters
    }

    /// Runs the statement; prepares it again when the connection or the cell's plan cache changed.
    pub async fn execute(&self, parameters: &[Scalar]) -> Result<ScanStream> {
        let options = self.client.options();
        let timeout = self.source.timeout.or(options.timeout);
        let deadline = self.client.deadline(self.source.timeout);
        let mut again = true;
        loop {
            let connection = self.client.retrying(deadline, |connection| async { Ok(connection) }).await?;
            let statement_id = {
                let mut state = self.state.lock().await;
                let session = connection.hello().session_id;
                match state.as_ref() {
                    Some(prepared) if prepared.session == session => prepared.id,
                    _ => {
                        let prepared = prepare_on(&self.client, connection.clone(), &self.source).await?;
                        let id = prepared.statement_id;
                        *state = Some(PreparedOn { session, id });
                        id
                    }
                }
            };
            let body = proto::Execute {
                statement_id,
                parameters: parameters.iter().map(convert::scalar_to_proto).collect(),
                timeout_ms: milliseconds(timeout),
                initial_credits: self.source.frames_ahead.unwrap_or(options.result_frames_ahead),
            };
            let credits = body.initial_credits;
            let opened = ScanStream::open(connection, FrameKind::Execute, &body, credits, deadline);
            match within(deadline.map(|deadline| deadline + DEADLINE_GRACE), opened).await {
                Err(error) if again && matches!(error.code, ErrorCode::UnknownStatement | ErrorCode::StaleSchema) => {
                    again = false;
                    self.client.forget_schema(self.source.table_name());
                    *self.state.lock().await = None;
                }
                outcome => return outcome,
            }
        }
    }

    /// Tells the cell that the statement is not needed any more.
    pub async fn close(self) -> Result<()> {
        if let Some(prepared) = self.state.lock().await.take() {
            let connection = self.client.connection().await?;
            if connection.hello().session_id == prepared.session {
                let body = proto::CloseStatement { statement_id: prepared.id };
                let done = connection.request(FrameKind::CloseStatement, &body, None, None)?;
                done.answer::<proto::Done>(FrameKind::Done).await?;
            }
        }
        Ok(())
    }
}

async fn prepare_on(client: &Client, connection: Arc<Connection>, source: &ScanRequest) -> Result<proto::Prepared> {
    let message = source.message(client, false).await?;
    let body = proto::Prepare {
        table: message.table,
        schema_hash: message.schema_hash,
        substrait_plan: message.substrait_plan,
    };
    connection.request(FrameKind::Prepare, &body, None, None)?.answer(FrameKind::Prepared).await
}

impl Client {
    /// Asks a question; the answer streams in. What is wrong with the question is said here already.
    pub async fn scan(&self, request: ScanRequest) -> Result<ScanStream> {
        self.ask(&request, false).await
    }

    /// Asks a question in SQL over one table: `select a, sum(b) from t where c < 5 group by a`.
    pub async fn scan_sql(&self, sql: &str) -> Result<ScanStream> {
        // The text names the table; only then can its schema be fetched and the text be typed.
        let named = std::cell::RefCell::new(None);
        let unresolved = plan::sql::parse_query(sql, &|name| {
            *named.borrow_mut() = Some(name.to_string());
            Err(Error::new(ErrorCode::UnknownTable, "not resolved yet"))
        });
        let table = match (named.into_inner(), unresolved) {
            (Some(table), _) => table,
            (None, Err(error)) => return Err(error),
            (None, Ok(plan)) => return self.scan(ScanRequest::plan(plan)).await,
        };
        let schema = self.schema(&table).await?;
        let plan = plan::sql::parse_query(sql, &|_| Ok(schema.as_ref().clone()))?;
        self.scan(ScanRequest::plan(plan)).await
    }

    /// What the cell would prune, read, decode and return, as text for a person.
    pub async fn explain(&self, request: ScanRequest) -> Result<String> {
        use futures::StreamExt;
        let mut stream = self.ask(&request, true).await?;
        while let Some(batch) = stream.next().await {
            batch?;
        }
        Ok(std::mem::take(&mut stream.explain))
    }

    async fn ask(&self, request: &ScanRequest, explain: bool) -> Result<ScanStream> {
        let deadline = self.deadline(request.timeout);
        let mut again = true;
        loop {
            let body = within(deadline, request.message(self, explain)).await?;
            let credits = body.initial_credits;
            // The cell's own deadline error says more than ours: let it come first.
            let patience = deadline.map(|deadline| deadline + DEADLINE_GRACE);
            let opened = self
                .retrying(patience, |connection| {
                    let body = body.clone();
                    async move {
                        ScanStream::open(connection, FrameKind::PredicatePushdownRequest, &body, credits, deadline)
                            .await
                    }
                })
                .await;
            match opened {
                Err(error) if again && error.code == ErrorCode::StaleSchema => {
                    again = false;
                    self.forget_schema(request.table_name());
                }
                outcome => return outcome,
            }
        }
    }

    /// Has the cell plan a question once. Its parameters are those of the plan (`ExprKind::Parameter`,
    /// Substrait dynamic parameters).
    pub async fn prepare(&self, request: ScanRequest) -> Result<Statement> {
        let deadline = self.deadline(request.timeout);
        let prepared = |connection: Arc<Connection>| {
            let request = &request;
            async move {
                let session = connection.hello().session_id;
                Ok((session, prepare_on(self, connection, request).await?))
            }
        };
        let (session, answer) = match self.retrying(deadline, prepared).await {
            Err(error) if error.code == ErrorCode::StaleSchema => {
                self.forget_schema(request.table_name());
                self.retrying(deadline, prepared).await?
            }
            outcome => outcome?,
        };
        let parameters = answer.parameters.iter().map(convert::type_from_proto).collect::<Result<Vec<_>>>()?;
        Ok(Statement {
            client: self.clone(),
            source: Arc::new(request),
            state: Arc::new(tokio::sync::Mutex::new(Some(PreparedOn { session, id: answer.statement_id }))),
            parameters: Arc::new(parameters),
        })
    }
}
