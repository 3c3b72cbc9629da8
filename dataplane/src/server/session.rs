//! One client's connection on its core: reading frames, starting requests, heartbeats, the end.
//!
//! Owns [`Session`] and [`Request`]. Called by the control thread's accept (which moves the descriptor here) and by
//! the requests; calls `requests::start` for everything that is not session housekeeping.
//!
//! Invariants
//! - Bytes that are not HIDB end the connection, after an `Error` frame that says why.
//! - At most `requests_in_flight_max` requests run; a request is in `requests` from its frame to its answer.
//! - When the connection ends, for whatever reason, every request is stopped; none outlives it.
//! - A peer that neither reads nor sends for `dead_peer_timeout` is disconnected.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use futures_lite::future::or;
use futures_lite::{AsyncRead, AsyncWrite};
use glommio::sync::{Semaphore, StaticPermit};
use glommio::timer::sleep;
use hidb::auth::Permission;
use hidb::frame::{Frame, FrameDecoder, FrameKind};
use hidb::session::seal::LinkSecret;
use hidb::{Error, ErrorCode, Result, convert, proto};

use super::Failure;
use super::access::Access;
use super::authenticate::Identity;
use super::channel::Channel;
use super::control::SessionReport;
use super::core::CoreServer;
use super::links::{self, Links};
use super::loads::Loads;
use super::outbox::{Outbox, write_frames};
use super::requests;
use super::setup_channel::Moving;
use super::statements::Statements;
use crate::cores::catch_panics;
use crate::waiters::Waiters;

/// The connection, shared by the reading and the writing task of one core.
pub type SharedStream = Rc<RefCell<Channel>>;

/// Bytes read at a time when no payload is under way.
const READ_BYTES: usize = 8 << 10;
/// Notices that may wait for a client that does not read.
const NOTICES_WAITING_MAX: usize = 256;
/// Answers to cancels and refusals that may wait for a client that does not read.
const HOUSEKEEPING_MAX: u64 = 64;
/// The most credits one request can hold.
pub const CREDITS_MAX: u64 = 1 << 20;

/// What the handshake settled.
#[derive(Clone, Debug)]
pub struct Agreed {
    /// The session's number.
    pub session_id: u64,
    /// Who the user is; `None` on a cell that does not ask.
    pub identity: Option<Identity>,
    /// What the client calls itself.
    pub client_name: String,
    /// Whether decimals of up to 18 digits travel as Decimal64.
    pub decimal64: bool,
    /// The largest result image.
    pub image_bytes_max: usize,
    /// What the keys of its links come from; `None` without TLS.
    pub link_secret: Option<LinkSecret>,
}

/// One client's connection.
pub struct Session {
    /// The core it lives on.
    pub core: Rc<CoreServer>,
    /// What the handshake settled.
    pub agreed: Agreed,
    /// Where answers go.
    pub outbox: Outbox,
    /// Prepared statements.
    pub statements: RefCell<Statements>,
    /// Loads that this connection feeds.
    pub loads: Loads,
    /// RDMA links.
    pub links: Links,
    failed: RefCell<Option<Error>>,
    has_failed: Waiters,
    requests: RefCell<HashMap<u64, Rc<Request>>>,
    last_heard: Cell<Instant>,
    reader_waits: Cell<bool>,
    notices: Cell<u64>,
    /// Notices that wait for room in the outbox.
    notices_waiting: RefCell<VecDeque<proto::CacheInvalidationNotice>>,
    /// Whether a task sends them.
    is_notifying: Cell<bool>,
    /// Whether some found no room, and the client has not been told.
    notices_dropped: Cell<bool>,
    /// Answers that wait for room in the outbox without being those of a request: the reader waits for them.
    housekeeping: Rc<Semaphore>,
}

/// A request under way.
pub struct Request {
    /// Its id, chosen by the client.
    pub id: u64,
    /// The right to send result frames.
    pub credits: Semaphore,
    began: Instant,
    stop: RefCell<Option<Error>>,
    ended: Cell<bool>,
    changed: Waiters,
}

impl Request {
    fn new(id: u64) -> Rc<Self> {
        Rc::new(Request {
            id,
            credits: Semaphore::new(0),
            began: Instant::now(),
            stop: RefCell::new(None),
            ended: Cell::new(false),
            changed: Waiters::default(),
        })
    }

    /// Asks the request to stop, for this reason.
    pub fn stop(&self, reason: Error) {
        self.stop.borrow_mut().get_or_insert(reason);
        self.changed.wake();
    }

    /// Why the request was asked to stop, if it was.
    pub fn stop_reason(&self) -> Option<Error> {
        self.stop.borrow().clone()
    }

    /// Ready with the reason once the request is asked to stop.
    pub async fn stopped(&self) -> Error {
        self.changed.wait_for(|| self.stop_reason()).await
    }

    /// Ready once its work has stopped.
    async fn ended(&self) {
        self.changed.wait_for(|| self.ended.get().then_some(())).await
    }

    /// Sets the credits the request begins with.
    pub fn grant(&self, count: u32) {
        let room = CREDITS_MAX.saturating_sub(self.credits.available());
        self.credits.signal(u64::from(count).min(room));
    }
}

/// Runs a session until it ends. `moving` is past its handshake.
pub async fn run(core: Rc<CoreServer>, moving: Moving, agreed: Agreed) {
    core.recorder.counters.sessions.fetch_add(1, Relaxed);
    let stream: SharedStream = Rc::new(RefCell::new(Channel::adopt(moving)));
    let (outbox, outgoings) = Outbox::new();
    let progress = outbox.progress().clone();
    let config = &core.cell.config;
    let session = Rc::new(Session {
        statements: RefCell::new(Statements::new(config.statements_max)),
        loads: Loads::default(),
        links: Links::default(),
        failed: RefCell::default(),
        has_failed: Waiters::default(),
        outbox,
        agreed,
        requests: RefCell::default(),
        last_heard: Cell::new(Instant::now()),
        reader_waits: Cell::new(false),
        notices: Cell::new(0),
        notices_waiting: RefCell::default(),
        is_notifying: Cell::new(false),
        notices_dropped: Cell::new(false),
        housekeeping: Rc::new(Semaphore::new(HOUSEKEEPING_MAX)),
        core: core.clone(),
    });
    core.sessions.borrow_mut().insert(session.agreed.session_id, Rc::downgrade(&session));

    let reading = async {
        let failed = session.has_failed.wait_for(|| session.failed.borrow().clone().map(Err));
        if let Err(error) = or(read_frames(&session, &stream), failed).await {
            session.core.cell.metrics.protocol_errors.fetch_add(1, Relaxed);
            tracing::info!(session = session.agreed.session_id, %error, "session closed: protocol error");
            let body = convert::error_to_proto(&error);
            let _ = session.outbox.send(FrameKind::Error, 0, &body).await;
            session.outbox.close().await;
            // The writer ends the session once the error is out.
            std::future::pending::<()>().await;
        }
    };
    let writing = async {
        match write_frames(stream.clone(), outgoings, progress).await {
            // An error frame went out last: half-close, and let the peer read it before the reset that
            // closing with unread input would cause.
            Ok(()) => {
                let _ = poll_fn(|context| Pin::new(&mut *stream.borrow_mut()).poll_close(context)).await;
                or(discard(&stream), sleep(Duration::from_secs(1))).await;
            }
            Err(error) => tracing::debug!(session = session.agreed.session_id, %error, "session closed: write failed"),
        }
    };
    or(or(reading, writing), watch_peer(&session)).await;

    let requests: Vec<_> = session.requests.borrow().values().cloned().collect();
    for request in requests {
        request.stop(Error::new(ErrorCode::Cancelled, "the connection ended"));
    }
    session.loads.connection_ended();
    links::session_ended(&session);
    core.sessions.borrow_mut().remove(&session.agreed.session_id);
    core.recorder.counters.sessions.fetch_sub(1, Relaxed);
}

async fn read(stream: &SharedStream, buffer: &mut [u8]) -> io::Result<usize> {
    poll_fn(|context| Pin::new(&mut *stream.borrow_mut()).poll_read(context, buffer)).await
}

async fn discard(stream: &SharedStream) {
    let mut buffer = vec![0; READ_BYTES];
    while matches!(read(stream, &mut buffer).await, Ok(1..)) {}
}

/// Reads frames until the peer closes (Ok), or breaks the protocol (Err).
async fn read_frames(session: &Rc<Session>, stream: &SharedStream) -> Result<()> {
    let mut decoder = FrameDecoder::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        // A payload under way goes straight into its frame; everything else through the small buffer, so that a
        // small frame costs one system call.
        if decoder.payload_missing() >= READ_BYTES {
            let count = match read(stream, decoder.space()).await {
                Ok(count) => count,
                Err(_) => return Ok(()),
            };
            if count == 0 {
                return Ok(());
            }
            session.last_heard.set(Instant::now());
            if let Some(frame) = decoder.advance(count)? {
                take_frame(session, frame).await?;
            }
            continue;
        }
        let count = match read(stream, &mut buffer).await {
            Ok(0) | Err(_) => return Ok(()),
            Ok(count) => count,
        };
        session.last_heard.set(Instant::now());
        let mut input = &buffer[..count];
        while let Some(frame) = decoder.push(&mut input)? {
            take_frame(session, frame).await?;
        }
    }
}

/// Housekeeping at once; everything else becomes a request. Errors end the connection.
pub(super) async fn take_frame(session: &Rc<Session>, frame: Frame) -> Result<()> {
    match frame.kind {
        FrameKind::Heartbeat => {
            let heartbeat: proto::Heartbeat = frame.message()?;
            if !heartbeat.reply {
                let reply = proto::Heartbeat { nonce: heartbeat.nonce, reply: true };
                session.outbox.try_send(FrameKind::Heartbeat, frame.request_id, &reply);
            }
        }
        FrameKind::Credit => {
            let credit: proto::Credit = frame.message()?;
            if let Some(request) = session.requests.borrow().get(&credit.request_id) {
                request.grant(credit.count);
            }
        }
        FrameKind::SlotsFree => links::slots_free(session, frame.message()?).await?,
        FrameKind::Cancel => {
            let cancel: proto::Cancel = frame.message()?;
            let request = session.requests.borrow().get(&cancel.request_id).cloned();
            let permit = housekeeping_permit(session).await?;
            let session = session.clone();
            glommio::spawn_local(async move {
                let _permit = permit;
                if let Some(request) = request {
                    request.stop(Error::new(ErrorCode::Cancelled, "the client cancelled the request"));
                    request.ended().await;
                }
                let _ = session.outbox.send(FrameKind::Done, frame.request_id, &proto::Done {}).await;
            })
            .detach();
        }
        FrameKind::LoadBatch => {
            session.reader_waits.set(true);
            let result = session.loads.take_batch(session, frame).await;
            session.reader_waits.set(false);
            session.last_heard.set(Instant::now());
            result?;
        }
        FrameKind::Hello => {
            return Err(Error::new(ErrorCode::Protocol, "a second Hello: the handshake is over"));
        }
        FrameKind::Authenticate | FrameKind::AuthenticateContinue => {
            let message = format!("{}: the handshake is over", frame.kind.name());
            return Err(Error::new(ErrorCode::Protocol, message));
        }
        _ => return start_request(session, frame).await,
    }
    Ok(())
}

/// The right to have one more answer wait for room. A client that sends and does not read waits here itself.
async fn housekeeping_permit(session: &Rc<Session>) -> Result<StaticPermit> {
    session.reader_waits.set(true);
    let permit = session.housekeeping.acquire_static_permit(1).await;
    session.reader_waits.set(false);
    session.last_heard.set(Instant::now());
    permit.map_err(|_| Error::new(ErrorCode::Unavailable, "the session was closed"))
}

async fn start_request(session: &Rc<Session>, frame: Frame) -> Result<()> {
    let id = frame.request_id;
    let in_flight = session.requests.borrow().len();
    let limit = session.core.cell.config.requests_in_flight_max as usize;
    let refusal = if session.core.cell.is_draining() {
        Some(Error::new(ErrorCode::Draining, "the cell is draining: connect to it again later, or to another cell"))
    } else if in_flight >= limit {
        let message = format!("{in_flight} requests in flight on this session: requests_in_flight_max is {limit}");
        Some(Error::new(ErrorCode::Overloaded, message))
    } else {
        None
    };
    if let Some(error) = refusal {
        // Behind a full queue the reader would wait at once; a task waits instead.
        let permit = housekeeping_permit(session).await?;
        let session = session.clone();
        glommio::spawn_local(async move {
            let _permit = permit;
            let _ = session.outbox.send(FrameKind::Error, id, &convert::error_to_proto(&error)).await;
        })
        .detach();
        return Ok(());
    }
    if session.requests.borrow().contains_key(&id) {
        return Err(Error::new(ErrorCode::Protocol, format!("request id {id} is in use by a request under way")));
    }
    let request = Request::new(id);
    session.requests.borrow_mut().insert(id, request.clone());
    let session = session.clone();
    let counters = session.core.recorder.counters.clone();
    counters.requests_in_flight.fetch_add(1, Relaxed);
    let busy = session.core.cell.cores.busy();
    glommio::spawn_local(async move {
        let _busy = busy;
        let answered = catch_panics(requests::answer(&session, &request, frame)).await;
        let result = answered.map_err(Failure::from).and_then(|result| result);
        let failed = result.is_err();
        if let Err(failure) = result {
            let _ = session.outbox.send(FrameKind::Error, id, &failure.to_proto()).await;
        }
        session.requests.borrow_mut().remove(&id);
        request.ended.set(true);
        request.changed.wake();
        counters.requests_in_flight.fetch_sub(1, Relaxed);
        session.core.recorder.request_ended(request.began.elapsed(), failed);
    })
    .detach();
    Ok(())
}

/// Ready once the peer is dead. Sends heartbeats while it is quiet.
async fn watch_peer(session: &Rc<Session>) {
    let config = &session.core.cell.config;
    let (interval, dead_after) = (config.heartbeat_interval.0, config.dead_peer_timeout.0);
    let mut nonce = 0;
    loop {
        sleep(interval.min(dead_after / 2).max(Duration::from_millis(10))).await;
        let progress = session.outbox.progress();
        if progress.waiting.get() && progress.last.get().elapsed() > dead_after {
            tracing::info!(session = session.agreed.session_id, "session closed: the client does not read");
            return;
        }
        if session.reader_waits.get() {
            continue;
        }
        let quiet = session.last_heard.get().elapsed();
        if quiet > dead_after {
            tracing::info!(session = session.agreed.session_id, "session closed: the client is silent");
            return;
        }
        if quiet >= interval {
            nonce += 1;
            session.outbox.try_send(FrameKind::Heartbeat, 0, &proto::Heartbeat { nonce, reply: false });
        }
    }
}

/// Tells a client that changes may have gone unheard.
pub fn forget_all() -> proto::CacheInvalidationNotice {
    let reason = proto::cache_invalidation_notice::Reason::ForgetAll as i32;
    proto::CacheInvalidationNotice { reason, ..Default::default() }
}

impl Session {
    /// Whether the session's user may know of a table.
    pub fn may_read(&self, table: &str) -> bool {
        Access::of(&self.core.cell, self.agreed.identity.as_ref())
            .is_ok_and(|access| access.may(Permission::Read, table))
    }

    /// Ends the connection, after an `Error` frame that says why.
    pub fn fail(&self, error: Error) {
        self.failed.borrow_mut().get_or_insert(error);
        self.has_failed.wake();
    }

    /// What an operator sees of it, but for its links.
    pub fn report(&self) -> SessionReport {
        let requests = self.requests.borrow();
        SessionReport {
            session: self.agreed.session_id,
            client: self.agreed.client_name.clone(),
            core: self.core.index,
            requests: requests.len(),
            credits: requests.values().map(|request| request.credits.available()).sum(),
            notices: self.notices.get(),
            silent_ms: self.last_heard.get().elapsed().as_millis() as u64,
            links: Vec::new(),
        }
    }

    /// The client was heard of.
    pub fn heard(&self) {
        self.last_heard.set(Instant::now());
    }

    /// Sends a notice, after those before it; they are numbered from 1. A client that does not read misses some, and is
    /// told so as soon as it reads again: the last change before a quiet time must not be the one that it never hears of.
    pub fn notify(self: &Rc<Self>, notice: proto::CacheInvalidationNotice) {
        self.queue_notice(notice);
        if !self.is_notifying.replace(true) {
            // One task for all: senders to the outbox overtake each other when it is full.
            let session = self.clone();
            glommio::spawn_local(async move { session.send_notices().await }).detach();
        }
    }

    /// Numbers it; it is dropped where too many wait, and the client sees the gap.
    fn queue_notice(&self, mut notice: proto::CacheInvalidationNotice) {
        self.notices.set(self.notices.get() + 1);
        notice.sequence = self.notices.get();
        let mut waiting = self.notices_waiting.borrow_mut();
        match waiting.len() < NOTICES_WAITING_MAX {
            true => waiting.push_back(notice),
            false => self.notices_dropped.set(true),
        }
    }

    async fn send_notices(&self) {
        loop {
            let next = self.notices_waiting.borrow_mut().pop_front();
            let Some(notice) = next else { break };
            if self.outbox.send(FrameKind::CacheInvalidationNotice, 0, &notice).await.is_err() {
                // The connection is gone.
                self.notices_waiting.take();
                break;
            }
            if self.notices_dropped.take() {
                self.queue_notice(forget_all());
            }
        }
        self.is_notifying.set(false);
    }

    /// Runs work until it is done or the request is asked to stop (cancelled, deadline, end of the connection).
    pub async fn until_stopped<T>(&self, request: &Request, work: impl Future<Output = Result<T>>) -> Result<T> {
        or(work, async { Err(request.stopped().await) }).await
    }
}
