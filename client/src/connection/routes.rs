//! How frames find the request that they answer.
//!
//! Owns [`Request`] (what a caller holds) and [`Route`] (what the reader tasks know of it). Frames come from
//! [`super::liveness`] over TCP and from the links over RDMA.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use hidb::frame::{Frame, FrameKind, encode_frame};
use hidb::{Error, ErrorCode, Result, proto};
use prost::Message;
use tokio::sync::mpsc;

use super::{Connection, Shared, decode, error_of, lock, unexpected};
use crate::fabric::link::Link;
use crate::notice::Notice;

/// Frames the cell may be ahead of its credits before that is an error (the schema and the last frame may
/// or may not be counted).
const CREDIT_SLACK: i64 = 4;

/// A frame, and how it came.
pub(crate) struct Arrived {
    pub frame: Frame,
    /// When the whole of it was in memory.
    pub at: Instant,
    /// The link that it came on; `None` for TCP and for the link to the home core, which share one order.
    pub elsewhere: Option<u32>,
}

pub(super) struct Route {
    pub(super) sender: mpsc::UnboundedSender<Result<Arrived>>,
    pub(super) credits: Option<Arc<AtomicI64>>,
    pub(super) load_id: Option<[u8; 16]>,
}

/// One request in flight. Dropping it forgets its answers.
pub(crate) struct Request {
    connection: Arc<Connection>,
    id: u64,
    receiver: mpsc::UnboundedReceiver<Result<Arrived>>,
    arrived: Instant,
    elsewhere: Option<u32>,
    /// The link that it was sent on: what belongs to it goes the same way, so that it does not overtake it.
    link: Option<Arc<Link>>,
}

impl Drop for Request {
    fn drop(&mut self) {
        lock(&self.connection.shared.routes).remove(&self.id);
    }
}

impl Request {
    /// A request whose route is there already.
    pub(super) fn new(
        connection: Arc<Connection>,
        id: u64,
        receiver: mpsc::UnboundedReceiver<Result<Arrived>>,
        link: Option<Arc<Link>>,
    ) -> Self {
        Request { connection, id, receiver, arrived: Instant::now(), elsewhere: None, link }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Gives back the right to send `count` more result frames: to the core whose link they came on.
    pub(crate) fn give_credit(&self, elsewhere: Option<u32>, count: u32) -> Result<()> {
        let credit = proto::Credit { request_id: self.id, count };
        match elsewhere {
            Some(number) => match self.connection.shared.links.numbered(number) {
                Some(link) => link.send(encode_frame(FrameKind::Credit, 0, &credit, &[])?),
                // It has ended: so has the answer.
                None => Ok(()),
            },
            None => self.post(FrameKind::Credit, self.id, &credit),
        }
    }

    /// Asks the cell to stop. Its acknowledgement is not waited for.
    pub(crate) fn cancel(&self) {
        let id = self.connection.shared.next_request.fetch_add(1, Ordering::Relaxed);
        // A connection that failed has stopped the request already.
        let _ = self.post(FrameKind::Cancel, id, &proto::Cancel { request_id: self.id });
    }

    fn post(&self, kind: FrameKind, id: u64, body: &impl Message) -> Result<()> {
        match &self.link {
            Some(link) => link.send(encode_frame(kind, id, body, &[])?),
            None => self.connection.post(kind, id, body),
        }
    }

    /// The next answer frame; Error frames become errors.
    pub(crate) async fn next(&mut self) -> Result<Frame> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Frame>> {
        let received = std::task::ready!(self.receiver.poll_recv(context));
        Poll::Ready(self.settle(received))
    }

    /// An answer frame that is already there.
    pub(crate) fn try_next(&mut self) -> Option<Result<Frame>> {
        match self.receiver.try_recv() {
            Ok(received) => Some(self.settle(Some(received))),
            Err(mpsc::error::TryRecvError::Empty) => None,
            Err(mpsc::error::TryRecvError::Disconnected) => Some(self.settle(None)),
        }
    }

    /// When the frame that was given out last had arrived.
    pub(crate) fn arrived(&self) -> Instant {
        self.arrived
    }

    /// The link of another core that the frame given out last came on.
    pub(crate) fn elsewhere(&self) -> Option<u32> {
        self.elsewhere
    }

    fn settle(&mut self, received: Option<Result<Arrived>>) -> Result<Frame> {
        match received {
            Some(Ok(Arrived { frame, at, elsewhere })) => {
                (self.arrived, self.elsewhere) = (at, elsewhere);
                if frame.kind == FrameKind::Error { Err(error_of(&frame)) } else { Ok(frame) }
            }
            Some(Err(error)) => Err(error),
            None => Err(lock(&self.connection.shared.failure).clone().unwrap_or_else(connection_gone)),
        }
    }

    /// Waits for the one answer of this kind.
    pub(crate) async fn answer<M: Message + Default>(mut self, kind: FrameKind) -> Result<M> {
        let frame = self.next().await?;
        if frame.kind == kind { decode(&frame) } else { Err(unexpected(frame.kind, &format!("{kind:?}"))) }
    }
}

impl Shared {
    pub(super) fn dispatch(&self, frame: Frame, elsewhere: Option<u32>) -> Result<()> {
        match frame.kind {
            FrameKind::Heartbeat => {
                let beat: proto::Heartbeat = decode(&frame)?;
                if !beat.reply {
                    let answer = proto::Heartbeat { nonce: beat.nonce, reply: true };
                    self.send(encode_frame(FrameKind::Heartbeat, frame.request_id, &answer, &[])?.into())?;
                }
                return Ok(());
            }
            FrameKind::CacheInvalidationNotice => {
                if self.notices.arrived(decode(&frame)?) == Some(Notice::CellDraining) {
                    self.draining.store(true, Ordering::Relaxed);
                }
                return Ok(());
            }
            FrameKind::LinkReset => {
                let reset: proto::LinkReset = decode(&frame)?;
                if let Some(link) = self.links.numbered(reset.link) {
                    self.link_ended(&link, Error::new(ErrorCode::from_number(reset.code), reset.reason));
                }
                return Ok(());
            }
            // An error of the session itself, not of a request: nothing after it can be trusted.
            FrameKind::Error if frame.request_id == 0 => return Err(error_of(&frame)),
            _ => {}
        }
        let routes = lock(&self.routes);
        let route = match routes.get(&frame.request_id) {
            Some(route) => Some(route),
            None if frame.kind == FrameKind::LoadState => {
                let state: proto::LoadState = decode(&frame)?;
                routes.values().find(|route| route.load_id.is_some_and(|id| id[..] == state.load_id[..]))
            }
            None => None,
        };
        if let Some(route) = route {
            if let (Some(credits), FrameKind::FilteredResultSet, None) = (&route.credits, frame.kind, elsewhere)
                && credits.fetch_sub(1, Ordering::Relaxed) <= -CREDIT_SLACK
            {
                return Err(Error::new(
                    ErrorCode::Protocol,
                    format!("the cell sent more result frames of request {} than it had credits for", frame.request_id),
                ));
            }
            let _ = route.sender.send(Ok(Arrived { frame, at: Instant::now(), elsewhere }));
        }
        Ok(())
    }
}

fn connection_gone() -> Error {
    Error::new(ErrorCode::Unavailable, "the connection to the cell was closed: try again")
}
