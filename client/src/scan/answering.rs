//! One answer as it comes in: frames of several links put in order, credits given back, batches read.
//!
//! Owns [`Answering`]. Called by [`super::stream`], which asks anew when one fails before it gave anything.
//!
//! Invariants
//! - A batch borrows the memory its frame was read into; nothing is copied on the way, unless it is to be kept.
//! - Credits are given back when the consumer takes a batch, a quarter of the window at a time, so a
//!   consumer that stops taking stops the cell after `result_frames_ahead` frames.
//! - An answer that is dropped before its end is cancelled on the cell.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use bytes::Bytes;
use hidb::aligned::AlignedBytes;
use hidb::frame::{Frame, FrameKind};
use hidb::proto::{ScanStatistics, SearchStatistics};
use hidb::{Error, ErrorCode, Result, image, proto};
use tokio::time::Sleep;

use crate::cache::{AnswerKey, Cache, Keeper, Keeping};
use crate::client::deadline_passed;
use crate::connection::{Connection, Request, decode, unexpected};

/// How much longer than the cell's deadline the client waits, so that the cell's own error arrives.
pub(super) const DEADLINE_GRACE: Duration = Duration::from_millis(250);

/// The longest single row taken: several values of the longest kind.
const LONG_MESSAGE_BYTES_MAX: usize = 512 << 20;

/// The length that an Arrow IPC message says it has; `None` when that can't be told from its first bytes.
fn message_bytes(start: &[u8]) -> Option<usize> {
    let metadata_bytes = u32::from_le_bytes(start.get(4..8)?.try_into().ok()?) as usize;
    let metadata = start.get(8..)?.get(..metadata_bytes)?;
    let body_bytes = usize::try_from(arrow_ipc::root_as_message(metadata).ok()?.bodyLength()).ok()?;
    (8 + metadata_bytes).checked_add(body_bytes)
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

/// On what terms a question is put.
pub(super) struct Terms {
    pub table: String,
    /// Result frames that the cell may be ahead, by each way.
    pub credits: u32,
    pub deadline: Option<Instant>,
    pub cache: Arc<Cache>,
    /// Under what the answer may be kept.
    pub key: Option<Arc<AnswerKey>>,
}

/// What the cell says of an answer with its last part.
#[derive(Default)]
pub(super) struct Ending {
    pub statistics: ScanStatistics,
    /// Of a search.
    pub search: Option<SearchStatistics>,
    pub explain: String,
}

/// See the module.
pub(super) struct Answering {
    request: Request,
    terms: Terms,
    schema: SchemaRef,
    /// What came by TCP or by the link to the home core.
    home: Taken,
    elsewhere: Vec<Elsewhere>,
    has_schema: bool,
    /// What came by other links before the schema did.
    early: VecDeque<(Frame, u32)>,
    credits: Arc<AtomicI64>,
    credit_step: u32,
    started: Instant,
    deadline: Option<Pin<Box<Sleep>>>,
    /// Whole, or failed.
    is_over: bool,
    keeper: Option<Keeper>,
    ending: Option<Ending>,
}

impl Answering {
    /// Sends the request and waits for the schema, so that what is wrong with the question is said here.
    pub(super) async fn open(
        connection: Arc<Connection>,
        kind: FrameKind,
        body: &impl prost::Message,
        terms: Terms,
    ) -> Result<Answering> {
        let granted = Arc::new(AtomicI64::new(i64::from(terms.credits)));
        let started = Instant::now();
        connection.ensure_links().await?;
        // Before the question leaves: what changes from now on may not be in the answer.
        let stamp = terms.cache.stamp(connection.epoch());
        let keeper = terms.key.clone().zip(stamp).map(|(key, stamp)| {
            let cache = terms.cache.clone();
            Keeper::new(Keeping { cache, key, stamp })
        });
        let request = connection.ask(kind, body, granted.clone())?;
        let patience = terms.deadline.map(|deadline| deadline + DEADLINE_GRACE);
        let mut answering = Answering {
            request,
            schema: Arc::new(arrow_schema::Schema::empty()),
            home: Taken::default(),
            elsewhere: Vec::new(),
            has_schema: false,
            early: VecDeque::new(),
            credits: granted,
            credit_step: (terms.credits / 4).max(1),
            started,
            deadline: patience.map(|patience| Box::pin(tokio::time::sleep_until(patience.into()))),
            is_over: false,
            keeper,
            ending: None,
            terms,
        };
        while !answering.has_schema && !answering.is_over {
            let frame = answering.request.next().await?;
            // What brings no schema is put aside: no batch can come of it.
            answering.accept(frame, answering.request.elsewhere())?;
        }
        Ok(answering)
    }

    /// The columns of every batch.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// When the last frame was in memory.
    pub(super) fn arrived(&self) -> Instant {
        self.request.arrived()
    }

    /// What the cell said of its work, and what it explained; once the answer is whole.
    pub(super) fn take_end(&mut self) -> Ending {
        self.ending.take().unwrap_or_default()
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
                self.terms.cache.answered(&self.terms.table, part.table_generation);
            } else if let Some(message) = taken.complete(frame.payload)? {
                batch = Some(self.read(message)?).filter(|batch| batch.num_rows() > 0);
            }
        }
        if part.last {
            for expected in &part.elsewhere {
                self.from(expected.link).frames = Some(expected.frames);
            }
            let statistics = part.statistics.unwrap_or_default();
            self.ending = Some(Ending { statistics, search: part.search, explain: part.explain });
        } else {
            self.give_credit(elsewhere)?;
        }
        let is_complete = |from: &Elsewhere| from.frames == Some(from.taken.next_sequence);
        if self.ending.is_some() && self.early.is_empty() && self.elsewhere.iter().all(is_complete) {
            if !self.home.partial.is_empty() || self.elsewhere.iter().any(|from| !from.taken.partial.is_empty()) {
                return Err(Error::new(ErrorCode::Protocol, "the answer ended within a row that takes several frames"));
            }
            self.is_over = true;
            if let Some(keeper) = self.keeper.take() {
                keeper.finish(self.schema.clone());
            }
        }
        Ok(batch)
    }

    /// The batch of a message: in the memory that it came in, or in that of the cache when the answer may be kept.
    fn read(&mut self, message: Bytes) -> Result<RecordBatch> {
        if let Some(keeper) = &mut self.keeper {
            match keeper.put_aside(&message, &self.schema)? {
                Some(batch) => return Ok(batch),
                None => self.keeper = None,
            }
        }
        image::read_image(message, &self.schema)
    }

    /// The next batch; `None` when the answer is whole.
    pub(super) fn poll_batch(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<RecordBatch>>> {
        while !self.is_over {
            let early = if self.has_schema { self.early.pop_front() } else { None };
            let outcome = match early {
                Some((frame, link)) => self.accept(frame, Some(link)),
                None => match self.request.poll_next(context) {
                    Poll::Ready(received) => received.and_then(|frame| self.accept(frame, self.request.elsewhere())),
                    Poll::Pending => {
                        if self.deadline.as_mut().is_none_or(|deadline| deadline.as_mut().poll(context).is_pending()) {
                            return Poll::Pending;
                        }
                        self.request.cancel();
                        Err(deadline_passed(self.started))
                    }
                },
            };
            self.is_over |= outcome.is_err();
            if let Some(given) = outcome.transpose() {
                return Poll::Ready(Some(given));
            }
        }
        Poll::Ready(None)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if !self.is_over {
            self.request.cancel();
        }
    }
}
