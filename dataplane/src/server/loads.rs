//! Loads as a session sees them: batches from the socket to the store's load writer.
//!
//! Owns [`Loads`] (the loads that one connection feeds) and the task that feeds each. Called by `session` (batches)
//! and `requests` (begin, commit, abort, query).
//!
//! Invariants
//! - At most `load_window` payload bytes of one load wait here, where a batch counts as [`BATCH_BYTES_MIN`] at least;
//!   past that the connection is not read, so that a client which ignores its window is slowed by TCP and not by our
//!   memory. Nothing else bounds what waits: a client that keeps to its window is read however long a push takes.
//! - Bytes count as received once they leave the window, so that a client which is told so finds room for as many more.
//! - While the store is busy with a load (ordering a run takes seconds) the client hears of it every [`NEWS`].
//! - A feed runs in a task of its own that is never dropped in the middle of a change of the store; it ends when its
//!   connection has.
//! - Answers to batches (`LoadState`, or one `Error`, after which batches are dropped unread) carry the request id of
//!   the batch frames.

use std::cell::{Cell as StdCell, RefCell};
use std::collections::HashMap;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use arrow_schema::SchemaRef;
use bytes::Bytes;
use futures::FutureExt;
use futures::channel::oneshot;
use futures_lite::future::or;
use glommio::channels::local_channel::{self, LocalReceiver, LocalSender};
use glommio::sync::Semaphore;
use hidb::aligned::AlignedBytes;
use hidb::frame::{Frame, FrameKind};
use hidb::{Error, ErrorCode, Result, arrow_mapping, convert, image, proto};

use super::access::Access;
use super::session::{Request, Session};
use super::{Cell, Failure, catalog, to_the_end};
use crate::cores::{self, Core};
use crate::store::{Catalog, LoadMode, LoadRequest, LoadState, LoadStatus, LoadWriter, StoreError};

/// Bytes of the window that the shortest batch takes: what it costs here beside its payload.
const BATCH_BYTES_MIN: u64 = 1 << 10;
/// How often a client is told that its load goes on; shorter than any timeout of one that waits for it.
const NEWS: Duration = Duration::from_millis(250);
/// The longest batch in bytes: a row group of the largest size and one value more.
const BATCH_BYTES_MAX: usize = hidb::ROW_GROUP_RAW_BYTES_MAX + 2 * hidb::VALUE_BYTES_MAX;

/// Loads that one session feeds at a time: each may hold its window, and a row group and those in encoding or its part
/// of `sort_memory`.
const LOADS_MAX: usize = 16;

/// Memory that a column of a buffered batch takes beside its values, estimated.
const COLUMN_BYTES_RETAINED: usize = 256;

type LoadId = [u8; 16];

enum Command {
    Batch { request_id: u64, number: u64, payload: Bytes, held_bytes: u64 },
    Commit { batches: u64, answer: oneshot::Sender<Result<LoadStatus>> },
    Abort { answer: oneshot::Sender<Result<LoadStatus>> },
}

/// One load that this connection feeds.
struct Feed {
    commands: LocalSender<Command>,
    /// Bytes that may still wait.
    window: Semaphore,
    window_bytes: u64,
    /// Frames of a batch whose last frame has not come.
    parts: RefCell<Vec<Bytes>>,
    /// Payload bytes that have left the window.
    received_bytes: StdCell<u64>,
}

impl Feed {
    /// Makes room in the window for what a batch held of it.
    fn release(&self, length: u64, held_bytes: u64) {
        self.received_bytes.set(self.received_bytes.get() + length);
        self.window.signal(held_bytes);
    }
}

/// The loads that one connection feeds.
#[derive(Default)]
pub struct Loads {
    feeds: RefCell<HashMap<LoadId, Rc<Feed>>>,
    connection_has_ended: StdCell<bool>,
}

fn load_id(bytes: &[u8]) -> Result<LoadId> {
    bytes
        .try_into()
        .map_err(|_| Error::new(ErrorCode::Protocol, format!("a load id has 16 bytes, not {}", bytes.len())))
}

fn state_message(load_id: &LoadId, status: &LoadStatus, received_bytes: u64) -> proto::LoadState {
    use proto::load_state::State;
    let state = match status.state {
        LoadState::Open => State::Open,
        LoadState::Committed => State::Committed,
        LoadState::Aborted => State::Aborted,
    };
    proto::LoadState {
        load_id: load_id.to_vec().into(),
        state: state as i32,
        durable_batches: status.durable_batches,
        durable_rows: status.durable_rows,
        received_bytes,
        stored_bytes: status.stored_bytes,
    }
}

impl Loads {
    /// Takes a frame of a batch. Waits while the load's window is full. Errors end the connection.
    pub async fn take_batch(&self, session: &Rc<Session>, frame: Frame) -> Result<()> {
        let message: proto::LoadBatch = frame.message()?;
        let id = load_id(&message.load_id)?;
        let Some(feed) = self.feeds.borrow().get(&id).cloned() else {
            let text = "this connection has not begun the load of the batch: send LoadBegin first";
            let error = Error::new(ErrorCode::UnknownLoad, text);
            session.outbox.send(FrameKind::Error, frame.request_id, &convert::error_to_proto(&error)).await?;
            return Ok(());
        };
        let length = feed.parts.borrow().iter().map(Bytes::len).sum::<usize>() + frame.payload.len();
        if length > BATCH_BYTES_MAX {
            let text = format!("batch {} has {length} bytes and more: at most {BATCH_BYTES_MAX}", message.batch);
            return Err(Error::new(ErrorCode::LimitExceeded, text));
        }
        // Only whole batches hold a part of the window, which must not wait for the rest of one that is longer; what is
        // there of that stays bounded by BATCH_BYTES_MAX.
        let waiting = if message.more { frame.payload.len() } else { length };
        let held_bytes = (waiting as u64).max(BATCH_BYTES_MIN).min(feed.window_bytes);
        feed.window
            .acquire(held_bytes)
            .await
            .map_err(|_| Error::new(ErrorCode::Unavailable, "the load's window was closed"))?;
        if message.more {
            feed.parts.borrow_mut().push(frame.payload);
            feed.window.signal(held_bytes);
            return Ok(());
        }
        let mut parts = feed.parts.take();
        let payload = if parts.is_empty() {
            frame.payload
        } else {
            parts.push(frame.payload);
            concatenate(&parts)
        };
        let command = Command::Batch { request_id: frame.request_id, number: message.batch, payload, held_bytes };
        // A feed that ended has said why.
        let _ = feed.commands.try_send(command);
        Ok(())
    }

    /// The connection is gone: feeds end after what they are doing.
    pub fn connection_ended(&self) {
        self.connection_has_ended.set(true);
        self.feeds.borrow_mut().clear();
    }

    fn has_room_for(&self, id: &LoadId) -> bool {
        let feeds = self.feeds.borrow();
        feeds.len() < LOADS_MAX || feeds.contains_key(id)
    }
}

/// One buffer, aligned as batches are read in place.
fn concatenate(parts: &[Bytes]) -> Bytes {
    let mut whole = AlignedBytes::zeroed(parts.iter().map(Bytes::len).sum());
    let mut at = 0;
    for part in parts {
        whole[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    whole.into_bytes()
}

/// Begins or resumes a load and starts its feed.
pub async fn begin(
    session: &Rc<Session>,
    request: &Rc<Request>,
    access: &Access,
    message: proto::LoadBegin,
) -> Result<(), Failure> {
    use proto::load_begin::Mode;
    let cell = session.core.cell.clone();
    let id = load_id(&message.load_id)?;
    catalog::check_table_name(&message.table)?;
    let (schema, order) = catalog::definition_of(message.schema.as_ref())?;
    let mode = match message.mode() {
        Mode::Create => LoadMode::Create,
        Mode::Append => LoadMode::Append,
        Mode::Replace => LoadMode::Replace,
        Mode::Unspecified => {
            return Err(Error::new(ErrorCode::Protocol, "LoadBegin: mode must be CREATE, APPEND or REPLACE").into());
        }
    };
    if !session.loads.has_room_for(&id) {
        let text = format!("this session feeds {LOADS_MAX} loads: commit or abort some, or open another connection");
        return Err(Error::new(ErrorCode::Overloaded, text).into());
    }
    let arrow_schema = arrow_mapping::to_arrow_schema(&schema, session.agreed.decimal64);
    let load = LoadRequest { load_id: id, table: message.table.clone(), schema, order, mode, shards: message.shards };
    let store = cell.store.clone();
    let begun = to_the_end(async move { Ok(store.load_begin(load).await) });
    let (status, writer) = match session.until_stopped(request, begun).await? {
        Ok(begun) => begun,
        Err(StoreError::StaleSchema { found, .. }) => {
            let table = catalog::table(&cell, access, &message.table)?;
            return Err(Failure::stale(&table.name, &table.schema, found));
        }
        Err(StoreError::UnknownTable { name }) => {
            catalog::table(&cell, access, &name)?;
            return Err(StoreError::UnknownTable { name }.into());
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(writer) = writer {
        start_feed(session, id, writer, arrow_schema);
    }
    session.outbox.send(FrameKind::LoadState, request.id, &state_message(&id, &status, 0)).await?;
    Ok(())
}

fn start_feed(session: &Rc<Session>, id: LoadId, writer: LoadWriter, arrow_schema: SchemaRef) {
    if session.loads.connection_has_ended.get() {
        return;
    }
    let (commands, receiver) = local_channel::new_unbounded();
    let window_bytes = session.core.cell.config.load_window.bytes().max(1);
    let feed = Rc::new(Feed {
        commands,
        window: Semaphore::new(window_bytes),
        window_bytes,
        parts: RefCell::default(),
        received_bytes: StdCell::new(0),
    });
    // The task holds the feed weakly: it ends when the connection has let go of it.
    let held = Rc::downgrade(&feed);
    session.loads.feeds.borrow_mut().insert(id, feed);
    let session = session.clone();
    session.core.cell.metrics.loads_open.fetch_add(1, Relaxed);
    glommio::spawn_local(async move {
        let task = FeedTask { id, session: session.clone(), held, arrow_schema };
        if let Err(error) = cores::catch_panics(task.run(writer, &receiver)).await {
            tracing::error!(%error, "a load's feed failed");
        }
        // Nobody may go on waiting for this feed: not at its window, not for an answer to a command.
        if let Some(feed) = task.held.upgrade() {
            session.loads.feeds.borrow_mut().retain(|_, other| !Rc::ptr_eq(other, &feed));
            feed.window.close();
        }
        while let Some(Some(_)) = receiver.recv().now_or_never() {}
        session.core.cell.metrics.loads_open.fetch_sub(1, Relaxed);
    })
    .detach();
}

struct FeedTask {
    id: LoadId,
    session: Rc<Session>,
    held: std::rc::Weak<Feed>,
    arrow_schema: SchemaRef,
}

impl FeedTask {
    async fn run(&self, mut writer: LoadWriter, commands: &LocalReceiver<Command>) {
        let Ok(device) = Core::device() else { return };
        let idle = self.session.core.cell.config.load_idle_flush.0;
        // What the client was last told, and where to tell it.
        let (mut told_batches, mut told_bytes, mut request_id) = (writer.next_batch(), 0, 0);
        let mut failed = false;
        loop {
            let command = if !failed && writer.has_unflushed() {
                let quiet = async {
                    glommio::timer::sleep(idle).await;
                    None
                };
                match or(async { Some(commands.recv().await) }, quiet).await {
                    Some(command) => command,
                    None => {
                        let flushed = self.with_news(request_id, writer.flush_idle(&device)).await;
                        failed |= self.tell(flushed, request_id, &mut told_batches, &mut told_bytes, true).await;
                        continue;
                    }
                }
            } else {
                commands.recv().await
            };
            match command {
                None => return,
                Some(Command::Batch { request_id: id, number, payload, held_bytes }) => {
                    request_id = id;
                    let length = payload.len() as u64;
                    let mut outcome = None;
                    if !failed {
                        let pushed = match self.read(&writer, payload) {
                            Ok(batch) => {
                                let (rows, columns) = (batch.num_rows() as u64, batch.num_columns());
                                let retained = length as usize + columns * COLUMN_BYTES_RETAINED;
                                let push = writer.push_retaining(&device, number, batch, retained);
                                let pushed = self.with_news(request_id, push).await;
                                let counters = &self.session.core.recorder.counters;
                                counters.rows_loaded_total.fetch_add(rows, Relaxed);
                                counters.loaded_bytes_total.fetch_add(length, Relaxed);
                                pushed
                            }
                            Err(error) => Err(writer.in_batch(number, error).into()),
                        };
                        outcome = Some(pushed);
                    }
                    if let Some(feed) = self.held.upgrade() {
                        feed.release(length, held_bytes);
                    }
                    if let Some(pushed) = outcome {
                        failed = self.tell(pushed, request_id, &mut told_batches, &mut told_bytes, false).await;
                    }
                }
                Some(Command::Commit { batches, answer }) => {
                    let cell = self.session.core.cell.clone();
                    let before = cell.store.catalog();
                    let result = self.with_news(request_id, writer.commit(&device, batches)).await;
                    announce_if_done(&cell, before, &result);
                    let _ = answer.send(result.map_err(Error::from));
                }
                Some(Command::Abort { answer }) => {
                    let result = writer.abort(&device).await;
                    let _ = answer.send(result.map_err(Error::from));
                }
            }
        }
    }

    /// Waits for the store; tells the client meanwhile where the load stands, on the request id of its batches.
    async fn with_news<T>(&self, request_id: u64, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            let pause = async {
                glommio::timer::sleep(NEWS).await;
                None
            };
            if let Some(done) = or(async { Some(work.as_mut().await) }, pause).await {
                return done;
            }
            let (Some(feed), Ok(status)) = (self.held.upgrade(), self.session.core.cell.store.load_status(&self.id))
            else {
                continue;
            };
            // Before the first batch there is no request to tell it to; nor is there any need once the load has ended.
            if request_id > 0 && status.state == LoadState::Open {
                let state = state_message(&self.id, &status, feed.received_bytes.get());
                self.session.outbox.try_send(FrameKind::LoadState, request_id, &state);
            }
        }
    }

    fn read(&self, writer: &LoadWriter, payload: Bytes) -> Result<arrow_array::RecordBatch> {
        let batch = image::read_image(payload, &self.arrow_schema)?;
        arrow_mapping::adapt_rows(&batch, writer.schema(), writer.next_row())
    }

    /// Tells the client how far the load is, when that is news. True when the load has failed.
    async fn tell(
        &self,
        result: crate::store::Result<LoadStatus>,
        request_id: u64,
        told_batches: &mut u64,
        told_bytes: &mut u64,
        always: bool,
    ) -> bool {
        let outbox = &self.session.outbox;
        match result {
            Ok(status) => {
                let Some((received, window)) =
                    self.held.upgrade().map(|feed| (feed.received_bytes.get(), feed.window_bytes))
                else {
                    return false;
                };
                let moved = received - *told_bytes >= window / 8;
                if always || moved || status.durable_batches > *told_batches {
                    (*told_batches, *told_bytes) = (status.durable_batches, received);
                    let _ = outbox
                        .send(FrameKind::LoadState, request_id, &state_message(&self.id, &status, received))
                        .await;
                }
                false
            }
            Err(error) => {
                let error = convert::error_to_proto(&error.into());
                let _ = outbox.send(FrameKind::Error, request_id, &error).await;
                true
            }
        }
    }
}

/// Commits a load, fed here or not.
pub async fn commit(session: &Rc<Session>, request: &Rc<Request>, message: proto::LoadCommit) -> Result<(), Failure> {
    let id = load_id(&message.load_id)?;
    let batches = message.batches;
    let cell = session.core.cell.clone();
    let feed = session.loads.feeds.borrow().get(&id).cloned();
    let status = match feed {
        Some(feed) => {
            let (answer, result) = oneshot::channel();
            ask(&feed, Command::Commit { batches, answer }).await?;
            session.until_stopped(request, flatten(result)).await?
        }
        None => {
            let cell = cell.clone();
            let work = async move {
                let device = Core::device()?;
                let before = cell.store.catalog();
                let result = cell.store.load_commit(&device, &id, batches).await;
                announce_if_done(&cell, before, &result);
                Ok(result?)
            };
            session.until_stopped(request, to_the_end(work)).await?
        }
    };
    finish(session, request, &id, &status).await
}

/// Tells the sessions what a commit changed.
fn announce_if_done(cell: &Arc<Cell>, before: Arc<Catalog>, result: &crate::store::Result<LoadStatus>) {
    if result.is_ok() {
        catalog::announce_changes_soon(cell, before);
    }
}

/// Aborts a load, fed here or not.
pub async fn abort(session: &Rc<Session>, request: &Rc<Request>, message: proto::LoadAbort) -> Result<(), Failure> {
    let id = load_id(&message.load_id)?;
    let cell = session.core.cell.clone();
    let feed = session.loads.feeds.borrow().get(&id).cloned();
    let status = match feed {
        Some(feed) => {
            let (answer, result) = oneshot::channel();
            ask(&feed, Command::Abort { answer }).await?;
            session.until_stopped(request, flatten(result)).await?
        }
        None => {
            let work = async move {
                let device = Core::device()?;
                Ok(cell.store.load_abort(&device, &id).await?)
            };
            session.until_stopped(request, to_the_end(work)).await?
        }
    };
    finish(session, request, &id, &status).await
}

async fn ask(feed: &Feed, command: Command) -> Result<()> {
    feed.commands
        .send(command)
        .await
        .map_err(|_| Error::new(ErrorCode::Unavailable, "the load's feed has ended: begin the load again to resume it"))
}

async fn flatten(result: oneshot::Receiver<Result<LoadStatus>>) -> Result<LoadStatus> {
    result.await.map_err(|_| Error::new(ErrorCode::Internal, "the load's feed ended without an answer"))?
}

async fn finish(session: &Rc<Session>, request: &Rc<Request>, id: &LoadId, status: &LoadStatus) -> Result<(), Failure> {
    let feed = session.loads.feeds.borrow_mut().remove(id);
    let received = feed.map_or(0, |feed| feed.received_bytes.get());
    session.outbox.send(FrameKind::LoadState, request.id, &state_message(id, status, received)).await?;
    Ok(())
}

/// Where a load stands.
pub async fn query(session: &Rc<Session>, request: &Rc<Request>, message: &proto::LoadQuery) -> Result<(), Failure> {
    let id = load_id(&message.load_id)?;
    let status = session.core.cell.store.load_status(&id)?;
    let received = session.loads.feeds.borrow().get(&id).map_or(0, |feed| feed.received_bytes.get());
    session.outbox.send(FrameKind::LoadState, request.id, &state_message(&id, &status, received)).await?;
    Ok(())
}

/// Aborts open loads that nobody has fed for long, and forgets finished ones.
pub async fn sweep(cell: &Arc<Cell>) -> Result<usize> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let store = cell.store.clone();
    cell.cores.run_on(0, move || async move { Ok::<_, Error>(store.sweep_loads(&Core::device()?, now).await?) }).await?
}
