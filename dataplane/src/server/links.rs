//! RDMA links of sessions: opening, closing, and what a request sends on them.
//!
//! Owns [`Links`] (what a session knows of its links, on its home core), [`ResultLink`] and [`DirectLinks`] (the ways of
//! result frames). Called by `session`, `requests` and `questions`; the links themselves are `crate::fabric::link`, each
//! on its core, where [`CoreServer::links`] has at most one per session.
//!
//! Invariants
//! - A link belongs to one session, opened over its authenticated connection, and ends with it.
//! - Frames that a client sends on a link are taken in order, by its session; on links of other cores than the home core
//!   only credits are.
//! - However a link ends, the client is told over TCP once nothing is under way into its ring any more.

use std::cell::{Cell as StdCell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use hidb::frame::{FrameKind, PAYLOAD_BYTES_MAX};
use hidb::image::ResultImage;
use hidb::session::Ended;
use hidb::session::seal::{Integrity, LinkSecret};
use hidb::{Error, ErrorCode, Result, proto};

use super::core::CoreServer;
use super::session::{Agreed, Request, Session, take_frame};
use super::{Cell, Failure};
use crate::cores::Core;
use crate::cores::scan::{Direct, ImageSink, Sent};
use crate::fabric::link::{Link, RequestCredits};

/// Room for the head of a frame in a slot.
const HEAD_ROOM_BYTES: usize = 4096;

/// A session's links, as its home core knows them: number and core.
#[derive(Default)]
pub struct Links {
    open: RefCell<Vec<(u32, usize)>>,
    last: StdCell<u32>,
    /// The session is over: no more are opened.
    is_closed: StdCell<bool>,
}

impl Links {
    fn forget(&self, number: u32) {
        self.open.borrow_mut().retain(|(open, _)| *open != number);
    }

    fn core_of(&self, number: u32) -> Option<usize> {
        self.open.borrow().iter().find(|(open, _)| *open == number).map(|(_, core)| *core)
    }

    /// Number and core of each.
    pub fn open(&self) -> Vec<(u32, usize)> {
        self.open.borrow().clone()
    }
}

/// What opening a link gives: the cell's endpoint record, encoded.
type Opened = Result<Vec<u8>>;

/// Answers `OpenLink`.
pub async fn open(session: &Rc<Session>, request: &Request, message: proto::OpenLink) -> Result<(), Failure> {
    let cell = &session.core.cell;
    let home = session.core.index;
    let core = match message.core as usize {
        0 => home,
        number => number - 1,
    };
    let wrong = |text: String| Failure::from(Error::new(ErrorCode::Protocol, text));
    if core >= cell.cores.count() {
        return Err(wrong(format!("core {} of {}: cores are counted from 1", message.core, cell.cores.count())));
    }
    let integrity = Integrity::from_number(message.integrity)?;
    let secret = secret_for(integrity, cell.config.rdma_integrity.0, &session.agreed)?;
    // A client that has lost its end of a link opens another: it takes the place of the one that is there.
    let replaced = session.links.open.borrow().iter().find(|(_, open)| *open == core).map(|(number, _)| *number);
    if let Some(number) = replaced {
        end(cell, core, session.agreed.session_id, number, Ended::Reset).await?;
        session.links.forget(number);
    }
    if session.links.is_closed.get() {
        return Err(Error::new(ErrorCode::Cancelled, "the connection ended").into());
    }
    let number = session.links.last.get() + 1;
    session.links.last.set(number);
    // Noted before it is made, so that a session that ends meanwhile ends it, too.
    session.links.open.borrow_mut().push((number, core));
    let id = session.agreed.session_id;
    let on_core = cell.clone();
    let opened = match core == home {
        true => connect(cell, core, id, number, &message, secret),
        false => {
            let make = move || async move { connect(&on_core, core, id, number, &message, secret) };
            cell.cores.run_on(core, make).await.and_then(|opened| opened)
        }
    };
    let endpoint = match opened {
        Ok(endpoint) => endpoint,
        Err(error) => {
            session.links.forget(number);
            return Err(error.into());
        }
    };
    glommio::spawn_local(see_its_end(Rc::downgrade(session), cell.clone(), core, id, number, core == home)).detach();
    if core == home {
        glommio::spawn_local(take_frames(session.clone(), number)).detach();
    }
    let opened = proto::LinkOpened {
        link: number,
        core: core as u32 + 1,
        endpoint: endpoint.into(),
        integrity: integrity.number(),
    };
    Ok(session.outbox.send(FrameKind::LinkOpened, request.id, &opened).await?)
}

/// What a link's keys come from; `None` for a link without integrity.
///
/// # Errors
/// `Unauthenticated` when the cell demands more than was asked for, or there is no TLS for keys to come from.
fn secret_for(asked: Integrity, required: Integrity, agreed: &Agreed) -> Result<Option<LinkSecret>> {
    let refused = |text: &str| Err(Error::new(ErrorCode::Unauthenticated, text));
    match (asked, required, &agreed.link_secret) {
        (Integrity::None, Integrity::None, _) => Ok(None),
        (Integrity::None, Integrity::Hmac, _) => refused(
            "this cell takes RDMA links with integrity only: connect with hidb:// and --rdma-integrity hmac, or with --transport tcp",
        ),
        (Integrity::Hmac, _, None) => {
            refused("--rdma-integrity hmac takes its keys from TLS, and this connection has none: connect with hidb://")
        }
        (Integrity::Hmac, _, Some(secret)) => Ok(Some(secret.clone())),
    }
}

/// Makes a link, on its core.
fn connect(
    cell: &Arc<Cell>,
    index: usize,
    session_id: u64,
    number: u32,
    message: &proto::OpenLink,
    secret: Option<LinkSecret>,
) -> Opened {
    let internal = || Error::new(ErrorCode::Internal, "a link is made on a core");
    let core = Core::current().ok_or_else(internal)?;
    let port = message.port as usize;
    let device = cell.devices.all().get(port).ok_or_else(|| {
        let text = format!("fabric port {port}: the cell serves links on {} devices", cell.devices.all().len());
        Error::new(ErrorCode::Protocol, text)
    })?;
    let port = core.fabric.get(&device.name).ok_or_else(internal)?;
    let (link, endpoint) = Link::connect(&port, &core.arena, number, message, secret.as_ref())?;
    let server = CoreServer::of(cell, index);
    if let Some(old) = server.links.borrow_mut().insert(session_id, link.clone()) {
        old.end(Ended::Session);
    }
    let weak = Rc::downgrade(&server);
    glommio::spawn_local(async move {
        link.closed().await;
        if let Some(server) = weak.upgrade() {
            let mut links = server.links.borrow_mut();
            if links.get(&session_id).is_some_and(|current| Rc::ptr_eq(current, &link)) {
                links.remove(&session_id);
            }
        }
    })
    .detach();
    Ok(endpoint.to_bytes().to_vec())
}

/// A session's link on this core.
fn on_this_core(cell: &Arc<Cell>, core: usize, session_id: u64, number: u32) -> Option<Rc<Link>> {
    let link = CoreServer::of(cell, core).links.borrow().get(&session_id).cloned();
    link.filter(|link| link.number() == number)
}

/// Tells the client when a link has ended, and ends the session when the client broke the protocol on it.
async fn see_its_end(
    session: Weak<Session>,
    cell: Arc<Cell>,
    core: usize,
    session_id: u64,
    number: u32,
    is_home: bool,
) {
    let on_core = cell.clone();
    let watch = move || async move {
        let link = on_this_core(&on_core, core, session_id, number)?;
        // Frames on links of other cores: credits of requests that have ended are dropped, the rest is a fault.
        if !is_home {
            while let Ok(frame) = link.next_frame().await {
                if frame.kind != FrameKind::Credit {
                    link.end(Ended::Protocol(format!(
                        "a {} on a link that is not to the home core",
                        frame.kind.name()
                    )));
                }
            }
        }
        Some((link.closed().await, link.generation()))
    };
    let seen = cell.cores.live_on(core, watch).await;
    let Some(session) = session.upgrade() else { return };
    session.links.forget(number);
    // It had ended before it was looked at: a reset.
    let Ok(seen) = seen else { return };
    let (ended, generation) = seen.unwrap_or((Ended::Reset, 0));
    let reason = ended.error();
    match ended {
        Ended::Protocol(_) => return session.fail(reason),
        Ended::Corruption(_) => {
            cell.metrics.links_corrupted.fetch_add(1, Relaxed);
            tracing::warn!(session = session_id, link = number, %reason, "a link has ended");
        }
        _ => tracing::info!(session = session_id, link = number, %reason, "a link has ended"),
    }
    let reset = proto::LinkReset { link: number, generation, reason: reason.message, code: reason.code as u32 };
    let _ = session.outbox.send(FrameKind::LinkReset, 0, &reset).await;
}

/// Takes the frames that come on the link to the home core.
async fn take_frames(session: Rc<Session>, number: u32) {
    let (cell, core) = (session.core.cell.clone(), session.core.index);
    let Some(link) = on_this_core(&cell, core, session.agreed.session_id, number) else { return };
    let session = {
        let weak = Rc::downgrade(&session);
        drop(session);
        weak
    };
    while let Ok(frame) = link.next_frame().await {
        let Some(session) = session.upgrade() else { return };
        session.heard();
        use FrameKind::{Cancel, Credit, Execute, PredicatePushdownRequest, VectorSearchRequest};
        if !matches!(frame.kind, PredicatePushdownRequest | Execute | VectorSearchRequest | Credit | Cancel) {
            let text = format!("{} does not travel on links: send it over TCP", frame.kind.name());
            return session.fail(Error::new(ErrorCode::Protocol, text));
        }
        if session.links.is_closed.get() {
            return;
        }
        if let Err(error) = take_frame(&session, frame).await {
            session.fail(error);
        }
    }
}

/// Credits that came over TCP.
pub async fn slots_free(session: &Rc<Session>, message: proto::SlotsFree) -> Result<()> {
    let Some(core) = session.links.core_of(message.link) else {
        // Of a link that has just ended.
        return Ok(());
    };
    let (cell, id) = (session.core.cell.clone(), session.agreed.session_id);
    let give = move || async move {
        match on_this_core(&cell, core, id, message.link) {
            Some(link) => link.slots_free(&message),
            None => Ok(()),
        }
    };
    session.core.cell.cores.run_on(core, give).await?
}

/// Answers `CloseLink`: Done once nothing is under way into the ring any more.
pub async fn close(session: &Rc<Session>, request: &Request, message: &proto::CloseLink) -> Result<(), Failure> {
    if let Some(core) = session.links.core_of(message.link) {
        end(&session.core.cell, core, session.agreed.session_id, message.link, Ended::Reset).await?;
        session.links.forget(message.link);
    }
    Ok(session.outbox.send(FrameKind::Done, request.id, &proto::Done {}).await?)
}

/// Ends a link on its core and waits until it is closed.
async fn end(cell: &Arc<Cell>, core: usize, session_id: u64, number: u32, why: Ended) -> Result<()> {
    let on_core = cell.clone();
    let end = move || async move {
        if let Some(link) = on_this_core(&on_core, core, session_id, number) {
            link.end(why);
            link.closed().await;
        }
    };
    cell.cores.run_on(core, end).await
}

/// Ends all links of a session, without waiting.
pub fn session_ended(session: &Session) {
    session.links.is_closed.set(true);
    let (cell, id) = (session.core.cell.clone(), session.agreed.session_id);
    for (number, core) in session.links.open.take() {
        let cell = cell.clone();
        glommio::spawn_local(async move {
            let _ = end(&cell, core, id, number, Ended::Session).await;
        })
        .detach();
    }
}

/// Resets all links of a session: the client opens others. How many there were.
pub async fn reset(session: &Rc<Session>) -> usize {
    let links = session.links.open();
    for (number, core) in &links {
        let _ = end(&session.core.cell, *core, session.agreed.session_id, *number, Ended::Reset).await;
    }
    links.len()
}

/// The way of an answer's frames from the home core.
#[derive(Clone)]
pub enum ResultLink {
    /// Over the session's TCP connection.
    Tcp,
    /// On the link to the home core.
    Link(Rc<Link>),
}

impl ResultLink {
    /// The link to the home core when it is open, else TCP.
    pub fn of(session: &Session) -> Self {
        let link = session.core.links.borrow().get(&session.agreed.session_id).cloned();
        link.filter(|link| link.is_open()).map_or(ResultLink::Tcp, ResultLink::Link)
    }

    /// Whether it is a link.
    pub fn is_link(&self) -> bool {
        matches!(self, ResultLink::Link(_))
    }

    /// The longest payload of one frame.
    pub fn payload_bytes_max(&self) -> usize {
        match self {
            ResultLink::Tcp => PAYLOAD_BYTES_MAX,
            ResultLink::Link(link) => (link.slot_bytes() - HEAD_ROOM_BYTES).min(PAYLOAD_BYTES_MAX),
        }
    }

    /// Sends a frame.
    pub async fn send(
        &self,
        session: &Session,
        kind: FrameKind,
        request_id: u64,
        body: &impl prost::Message,
        payload: Bytes,
    ) -> Result<()> {
        match self {
            ResultLink::Tcp => session.outbox.send_with_payload(kind, request_id, body, payload).await,
            ResultLink::Link(link) => link.send(kind, request_id, body, payload).await,
        }
    }
}

/// Images of a request cut into frames, numbered from 0.
pub struct Cut {
    rest: Bytes,
    rows: u64,
    payload_bytes_max: usize,
}

impl Cut {
    /// Of one image.
    pub fn new(image: ResultImage, payload_bytes_max: usize) -> Self {
        Cut { rows: u64::from(image.rows), rest: image.bytes.into_bytes(), payload_bytes_max }
    }
}

/// Only a single row that is longer than a frame takes several.
impl Iterator for Cut {
    type Item = (proto::FilteredResultSet, Bytes);

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let more = self.rest.len() > self.payload_bytes_max;
        let part = self.rest.split_to(self.rest.len().min(self.payload_bytes_max));
        let rows = if more { 0 } else { self.rows };
        Some((proto::FilteredResultSet { more, rows, ..Default::default() }, part))
    }
}

/// The links of a session on other cores than its home core, for one request.
pub struct DirectLinks {
    /// The cell.
    pub cell: Arc<Cell>,
    /// The session.
    pub session_id: u64,
    /// Its home core, which has its own way.
    pub home: usize,
    /// The request.
    pub request_id: u64,
    /// Frames that each core may have sent and the client not taken.
    pub credits: u32,
}

impl Direct for DirectLinks {
    fn sink(&self, core: usize) -> Option<Box<dyn ImageSink>> {
        if core == self.home {
            return None;
        }
        let server = CoreServer::of(&self.cell, core);
        let link = server.links.borrow().get(&self.session_id).cloned().filter(|link| link.is_open())?;
        let sent = StdCell::new(Sent { link: link.number(), ..Sent::default() });
        let credits = link.begin_request(self.request_id, self.credits);
        Some(Box::new(DirectLink { server, credits, request_id: self.request_id, sent }))
    }
}

/// One request's way over the link of this core.
struct DirectLink {
    server: Rc<CoreServer>,
    credits: RequestCredits,
    request_id: u64,
    sent: StdCell<Sent>,
}

impl DirectLink {
    async fn send_image(&self, image: ResultImage) -> Result<()> {
        let link = self.credits.link();
        let way = ResultLink::Link(link.clone());
        for (mut message, payload) in Cut::new(image, way.payload_bytes_max()) {
            self.credits.take().await?;
            let mut sent = self.sent.get();
            message.sequence = sent.frames;
            sent.frames += 1;
            sent.rows += message.rows;
            sent.bytes += payload.len() as u64;
            self.sent.set(sent);
            self.server.count_returned(message.rows, payload.len() as u64);
            link.send(FrameKind::FilteredResultSet, self.request_id, &message, payload).await?;
        }
        Ok(())
    }
}

impl ImageSink for DirectLink {
    fn send(&self, image: ResultImage) -> LocalBoxFuture<'_, Result<()>> {
        self.send_image(image).boxed_local()
    }

    fn sent(&self) -> Sent {
        self.sent.get()
    }
}
