//! One connection to a cell, from its handshake to its failure.
//!
//! Owns [`Connection`] and what its tasks share. The rooms: [`open`] connects and shakes hands, [`liveness`] reads frames
//! and watches the cell, [`outbox`] sends, [`routes`] hands answers to their requests, [`links`] is RDMA. Called by the
//! client, scans and loads.
//!
//! Invariants
//! - A frame is queued whole or not at all, under one lock: dropping a caller's future never cuts a frame.
//! - A connection fails once; from then on every request on it has that error, and the client makes
//!   a new one.
//! - A route lives exactly as long as its [`Request`]; frames for requests that are gone are dropped.

mod links;
mod liveness;
mod open;
mod outbox;
mod routes;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hidb::frame::{Frame, FrameKind, encode_frame};
use hidb::{Error, ErrorCode, Result, proto};
use prost::Message;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::cache::SessionEpoch;
use crate::fabric::link::Link;
use crate::notice::SessionNotices;
use crate::transport::Transport;
use links::Links;
use outbox::Outbox;
use routes::Route;

pub use links::RdmaStatistics;
pub(crate) use open::{FEATURE_DECIMAL64, FEATURE_ORDER};
pub(crate) use routes::Request;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Shared {
    transport: Arc<Transport>,
    outbox: Mutex<Outbox>,
    outbox_filled: Notify,
    outbox_drained: Notify,
    routes: Mutex<HashMap<u64, Route>>,
    next_request: AtomicU64,
    failure: Mutex<Option<Error>>,
    draining: AtomicBool,
    started: Instant,
    last_received_ms: AtomicU64,
    notices: SessionNotices,
    links: Links,
}

/// A live (or failed) connection. Dropping the last handle closes it.
pub(crate) struct Connection {
    shared: Arc<Shared>,
    hello: proto::HelloAck,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Connection {
    /// What the cell said of itself.
    pub(crate) fn hello(&self) -> &proto::HelloAck {
        &self.hello
    }

    /// Which of the client's sessions it is.
    pub(crate) fn epoch(&self) -> SessionEpoch {
        self.shared.notices.epoch()
    }

    /// Whether both sides agreed on a feature.
    pub(crate) fn has_feature(&self, name: &str) -> bool {
        self.hello.features.iter().any(|feature| feature == name)
    }

    /// Whether new requests should go over a new connection.
    pub(crate) fn is_spent(&self) -> bool {
        lock(&self.shared.failure).is_some() || self.shared.draining.load(Ordering::Relaxed)
    }

    /// Queues a question's frame; on the link to the home core if there is one and it fits.
    pub(crate) fn ask(
        self: &Arc<Self>,
        kind: FrameKind,
        body: &impl Message,
        credits: Arc<AtomicI64>,
    ) -> Result<Request> {
        let link = self.shared.links.home_link();
        self.request_by(kind, body, Some(credits), None, link)
    }

    /// Queues a request's first frame; its answers come to the returned [`Request`].
    pub(crate) fn request(
        self: &Arc<Self>,
        kind: FrameKind,
        body: &impl Message,
        credits: Option<Arc<AtomicI64>>,
        load_id: Option<[u8; 16]>,
    ) -> Result<Request> {
        self.request_by(kind, body, credits, load_id, None)
    }

    fn request_by(
        self: &Arc<Self>,
        kind: FrameKind,
        body: &impl Message,
        credits: Option<Arc<AtomicI64>>,
        load_id: Option<[u8; 16]>,
        link: Option<Arc<Link>>,
    ) -> Result<Request> {
        let id = self.shared.next_request.fetch_add(1, Ordering::Relaxed);
        let frame = encode_frame(kind, id, body, &[])?;
        let link = link.filter(|link| frame.len() <= link.frame_bytes_max());
        let (sender, receiver) = mpsc::unbounded_channel();
        lock(&self.shared.routes).insert(id, Route { sender, credits, load_id });
        let request = Request::new(self.clone(), id, receiver, link.clone());
        match link {
            Some(link) => link.send(frame)?,
            None => self.shared.send(frame.into())?,
        }
        Ok(request)
    }

    /// Queues a request whose answer nobody waits for. Its id is its own: that of a request that was answered a moment ago
    /// may still be in use at the cell.
    pub(crate) fn post_request(&self, kind: FrameKind, body: &impl Message) -> Result<()> {
        self.post(kind, self.shared.next_request.fetch_add(1, Ordering::Relaxed), body)
    }

    /// Queues a frame that gets no answer.
    pub(crate) fn post(&self, kind: FrameKind, request_id: u64, body: &impl Message) -> Result<()> {
        self.shared.send(encode_frame(kind, request_id, body, &[])?.into())
    }
}

impl Shared {
    fn fail(&self, error: Error) {
        let is_first = {
            let mut failure = lock(&self.failure);
            let is_first = failure.is_none();
            failure.get_or_insert(error.clone());
            is_first
        };
        // Before anybody hears of it: nothing that is cached is given out any more.
        if is_first {
            self.notices.lost();
        }
        let routes = std::mem::take(&mut *lock(&self.routes));
        for route in routes.into_values() {
            let _ = route.sender.send(Err(error.clone()));
        }
        self.outbox_drained.notify_waiters();
    }
}

/// The message of a frame's body.
pub(crate) fn decode<M: Message + Default>(frame: &Frame) -> Result<M> {
    M::decode(frame.body.clone()).map_err(|error| {
        Error::new(ErrorCode::Protocol, format!("the cell sent a {:?} that does not decode: {error}", frame.kind))
    })
}

pub(crate) fn unexpected(kind: FrameKind, wanted: &str) -> Error {
    Error::new(ErrorCode::Protocol, format!("the cell answered with {kind:?} where {wanted} was expected"))
}

pub(crate) fn error_of(frame: &Frame) -> Error {
    match decode::<proto::Error>(frame) {
        Ok(error) => Error::new(ErrorCode::from_number(error.code), error.message),
        Err(error) => error,
    }
}
