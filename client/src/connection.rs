//! One connection to a cell: TLS, handshake, the reader task that hands frames to requests, the outbox, RDMA links.
//!
//! Owns [`Connection`] and [`Request`]. Called by the client, scans and loads.
//!
//! Invariants
//! - A frame is queued whole or not at all, under one lock: dropping a caller's future never cuts a frame.
//! - A connection fails once; from then on every request on it has that error, and the client makes
//!   a new one.
//! - A route lives exactly as long as its [`Request`]; frames for requests that are gone are dropped.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use hidb::frame::{Frame, FrameKind, encode_frame, encode_head, payload_crc};
use hidb::session::{Ended, SLOT_BYTES_MAX};
use hidb::{Error, ErrorCode, Result, proto};
use prost::Message;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, broadcast, mpsc};
use tokio::task::JoinHandle;

use crate::address::Address;
use crate::authenticate::authenticate;
use crate::credentials::{Credentials, no_authority};
use crate::fabric::device::{Event, FabricDevice};
use crate::fabric::link::{Link, Shape};
use crate::fabric::protection::Protection;
use crate::fabric::{self, Choice};
use crate::options::ConnectOptions;
use crate::receive::FrameReceiver;
use crate::transport::Transport;

/// The protocol version this client speaks.
pub(crate) const PROTOCOL_VERSION: u32 = 1;

/// The feature name of Arrow `Decimal64`.
pub(crate) const FEATURE_DECIMAL64: &str = "decimal64";

/// Receive buffer asked of the kernel when it allows that much: four result frames.
const SOCKET_BUFFER_BYTES: u32 = 4 << 20;

/// Load frames wait while more than this is queued for the socket.
const OUTBOX_BYTES_MAX: usize = 4 << 20;

/// Frames the cell may be ahead of its credits before that is an error (the schema and the last frame may
/// or may not be counted).
const CREDIT_SLACK: i64 = 4;

/// What came over RDMA on the links that are open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RdmaStatistics {
    /// Links.
    pub links: usize,
    /// Result frames in slots that were handed on in place.
    pub in_place: u64,
    /// Result frames that were copied out of their slots, because slots ran short, or for integrity.
    pub copied_out: u64,
    /// Links that ended because the checksum or MAC of what came was wrong; nothing of that was handed on.
    pub corrupted: u64,
}

/// Stands for the session's home core in `OpenLink`.
const HOME: u32 = 0;

/// Unasked messages of the cell, as [`crate::Client::notices`] delivers them.
pub type Notice = proto::CacheInvalidationNotice;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A frame, and how it came.
pub(crate) struct Arrived {
    pub frame: Frame,
    /// When the whole of it was in memory.
    pub at: Instant,
    /// The link that it came on; `None` for TCP and for the link to the home core, which share one order.
    pub elsewhere: Option<u32>,
}

struct Route {
    sender: mpsc::UnboundedSender<Result<Arrived>>,
    credits: Option<Arc<AtomicI64>>,
    load_id: Option<[u8; 16]>,
}

#[derive(Default)]
struct Outbox {
    queue: VecDeque<Bytes>,
    bytes: usize,
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
    notices: broadcast::Sender<Notice>,
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
    /// Connects, over TLS unless the address is plain, and shakes hands.
    pub(crate) async fn open(
        address: &Address,
        options: &ConnectOptions,
        notices: broadcast::Sender<Notice>,
    ) -> Result<Arc<Connection>> {
        let attempt = Self::open_unbounded(address, options, notices);
        tokio::time::timeout(options.connect_timeout, attempt).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorCode::Unavailable,
                format!(
                    "{address} did not answer the handshake within {:?}: is it a Heliostat cell?",
                    options.connect_timeout
                ),
            ))
        })
    }

    async fn open_unbounded(
        address: &Address,
        options: &ConnectOptions,
        notices: broadcast::Sender<Notice>,
    ) -> Result<Arc<Connection>> {
        let mut refused = None;
        let mut connected = None;
        for socket_address in address.resolve().await? {
            match connect_socket(socket_address).await {
                Ok(stream) => {
                    connected = Some(stream);
                    break;
                }
                Err(error) => refused = Some(error),
            }
        }
        let stream = match (connected, refused) {
            (Some(stream), _) => stream,
            (None, refused) => {
                let why = refused.map_or_else(|| "no address".to_string(), |error| error.to_string());
                return Err(Error::new(
                    ErrorCode::Unavailable,
                    format!(
                        "no cell answers at {address} ({why}): start one with `heliostat dev`, or give its address with --connect"
                    ),
                ));
            }
        };

        let credentials = options.credentials.as_ref();
        let transport = match address.is_plain() {
            true => Transport::plain(stream),
            false => {
                let config = credentials.map_or_else(|| Err(no_authority()), Credentials::tls)?;
                Transport::with_tls(stream, heliostat_tls::Channel::connect(config, address.host())?).await?
            }
        };
        let transport = Arc::new(transport);
        let mut receiver = FrameReceiver::new(transport.clone());
        let hello = proto::Hello {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            client_name: options.name.clone(),
            features: if options.decimal64 { vec![FEATURE_DECIMAL64.to_string()] } else { Vec::new() },
            result_image_bytes_max: options.result_image_bytes_max,
        };
        transport.write_all(&encode_frame(FrameKind::Hello, 0, &hello, &[])?).await?;
        let frame = receiver.next().await?;
        let hello: proto::HelloAck = match frame.kind {
            FrameKind::HelloAck => decode(&frame)?,
            FrameKind::AuthenticationRequired => {
                authenticate(address, credentials, &frame, &transport, &mut receiver).await?
            }
            FrameKind::Error => return Err(error_of(&frame)),
            other => return Err(unexpected(other, "HelloAck")),
        };
        if hello.version != PROTOCOL_VERSION {
            return Err(Error::new(
                ErrorCode::UnsupportedVersion,
                format!(
                    "cell {} speaks protocol {}, this client {PROTOCOL_VERSION}: use versions that match",
                    hello.cell_name, hello.version
                ),
            ));
        }

        let shared = Arc::new(Shared {
            transport,
            outbox: Mutex::default(),
            outbox_filled: Notify::new(),
            outbox_drained: Notify::new(),
            routes: Mutex::default(),
            next_request: AtomicU64::new(1),
            failure: Mutex::default(),
            draining: AtomicBool::new(false),
            started: Instant::now(),
            last_received_ms: AtomicU64::new(0),
            notices,
            links: Links::default(),
        });
        let limits = hello.limits.unwrap_or_default();
        let tasks = vec![
            tokio::spawn(read_frames(shared.clone(), receiver)),
            tokio::spawn(write_frames(shared.clone())),
            tokio::spawn(beat(shared.clone(), limits.heartbeat_interval_ms, limits.dead_peer_timeout_ms)),
        ];
        let connection = Arc::new(Connection { shared, hello, tasks });
        let protection = Protection::of(options, &connection.shared.transport)?;
        let (choice, why) = fabric::choose(&options.transport, &connection.hello.fabric)?;
        tracing::info!("transport {why}");
        if let Some(choice) = choice {
            connection.shared.links.is_optional.store(options.transport == fabric::Transport::Auto, Ordering::Relaxed);
            let opened = match connection.open_fabric(&choice, options, protection) {
                Ok(()) => connection.open_link(HOME).await,
                Err(error) => Err(error),
            };
            connection.shared.links.or_tcp(opened)?;
        }
        Ok(connection)
    }

    /// What the cell said of itself.
    pub(crate) fn hello(&self) -> &proto::HelloAck {
        &self.hello
    }

    /// Whether both sides agreed on a feature.
    pub(crate) fn has_feature(&self, name: &str) -> bool {
        self.hello.features.iter().any(|feature| feature == name)
    }

    /// Whether new requests should go over a new connection.
    pub(crate) fn is_spent(&self) -> bool {
        lock(&self.shared.failure).is_some() || self.shared.draining.load(Ordering::Relaxed)
    }

    /// Opens the RDMA device that links will go over.
    fn open_fabric(&self, choice: &Choice, options: &ConnectOptions, protection: Protection) -> Result<()> {
        let shape = Shape { slots: options.ring_slots.max(1), slot_bytes: SLOT_BYTES_MAX };
        let shared = Arc::downgrade(&self.shared);
        let sink = move |link: &Arc<Link>, event: Event| {
            let Some(shared) = shared.upgrade() else { return Ok(()) };
            match event {
                Event::Frame(frame) => {
                    shared.dispatch(frame, (link.number() != shared.links.home()).then(|| link.number()))
                }
                Event::Ended(error) => {
                    shared.link_ended(link, error);
                    Ok(())
                }
            }
        };
        let (checksum, integrity) = (protection.checksum(), protection.integrity());
        let device = FabricDevice::open(&choice.device, self.hello.cores.max(1), shape, protection, Box::new(sink))?;
        tracing::debug!(device = device.name(), port = choice.port, %checksum, %integrity, "RDMA device open");
        *lock(&self.shared.links.device) = Some((device, choice.port));
        Ok(())
    }

    /// Opens a link to a core, counted from 1; [`HOME`] is the session's home core.
    async fn open_link(self: &Arc<Self>, core: u32) -> Result<()> {
        let links = &self.shared.links;
        let (link, body) = {
            let device = lock(&links.device);
            let Some((device, port)) = device.as_ref() else { return Ok(()) };
            let link = device.link(core, links.generation.fetch_add(1, Ordering::Relaxed) + 1)?;
            let body = link.open_request(*port)?;
            (link, body)
        };
        let answer = async {
            let request = self.request(FrameKind::OpenLink, &body, None, None)?;
            let opened: proto::LinkOpened = request.answer(FrameKind::LinkOpened).await?;
            if core == HOME {
                links.home.store(opened.link, Ordering::Relaxed);
                links.home_core.store(opened.core, Ordering::Relaxed);
            }
            // Known before anything can come on it, and before a LinkReset can.
            link.set_number(opened.link);
            lock(&links.open).push(link.clone());
            link.opened(&opened)
        };
        // Whoever stops waiting leaves no link behind that is only half made.
        let mut guard = HalfMade { links, link: Some(&link) };
        answer.await?;
        guard.link = None;
        Ok(())
    }

    /// Sees to it that there is a link to each core: to the home core at once, to the others in the background, the
    /// first time that a question is asked.
    pub(crate) async fn ensure_links(self: &Arc<Self>) -> Result<()> {
        let links = &self.shared.links;
        if lock(&links.device).is_none() {
            return Ok(());
        }
        let opening = links.opening.lock().await;
        if links.home_link().is_none() {
            links.or_tcp(self.open_link(HOME).await)?;
        }
        drop(opening);
        if !links.asked.swap(true, Ordering::Relaxed) {
            let weak = Arc::downgrade(self);
            let (home, cores) = (links.home_core.load(Ordering::Relaxed), self.hello.cores);
            tokio::spawn(async move {
                for core in (1..=cores).filter(|core| *core != home) {
                    let Some(connection) = weak.upgrade() else { return };
                    let links = &connection.shared.links;
                    let _opening = links.opening.lock().await;
                    if lock(&links.open).iter().any(|link| link.core() == core && link.is_open()) {
                        continue;
                    }
                    if let Err(error) = connection.open_link(core).await {
                        // Its batches go by the home core then.
                        tracing::debug!(%error, core, "no RDMA link to a core");
                    }
                }
            });
        }
        Ok(())
    }

    /// What came over RDMA.
    pub(crate) fn rdma_statistics(&self) -> RdmaStatistics {
        let open = lock(&self.shared.links.open);
        let mut sum = RdmaStatistics { links: open.len(), ..RdmaStatistics::default() };
        for (in_place, copied_out) in open.iter().map(|link| link.delivered()) {
            sum.in_place += in_place;
            sum.copied_out += copied_out;
        }
        sum.corrupted = lock(&self.shared.links.device).as_ref().map_or(0, |(device, _)| device.corrupted());
        sum
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
        let (sender, receiver) = mpsc::unbounded_channel();
        lock(&self.shared.routes).insert(id, Route { sender, credits, load_id });
        let frame = encode_frame(kind, id, body, &[])?;
        let link = link.filter(|link| frame.len() <= link.frame_bytes_max());
        let (connection, arrived) = (self.clone(), Instant::now());
        let request = Request { connection, id, receiver, arrived, elsewhere: None, link: link.clone() };
        match link {
            Some(link) => link.send(frame)?,
            None => self.shared.send(frame.into())?,
        }
        Ok(request)
    }

    /// Queues a frame that gets no answer.
    pub(crate) fn post(&self, kind: FrameKind, request_id: u64, body: &impl Message) -> Result<()> {
        self.shared.send(encode_frame(kind, request_id, body, &[])?.into())
    }

    /// Queues a frame with a payload that is not copied; waits while the socket is behind.
    pub(crate) async fn send_payload(
        &self,
        kind: FrameKind,
        request_id: u64,
        body: &impl Message,
        payload: Bytes,
    ) -> Result<()> {
        loop {
            let drained = self.shared.outbox_drained.notified();
            if let Some(error) = lock(&self.shared.failure).clone() {
                return Err(error);
            }
            if lock(&self.shared.outbox).bytes < OUTBOX_BYTES_MAX {
                break;
            }
            drained.await;
        }
        let head = encode_head(kind, request_id, body, payload.len(), payload_crc(&payload))?;
        self.shared.send_parts(head.into(), payload)
    }
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
    fn send(&self, frame: Bytes) -> Result<()> {
        self.send_parts(frame, Bytes::new())
    }

    /// Queues the parts of one frame; writes at once what the socket takes, so that a short request
    /// costs no switch of task.
    fn send_parts(&self, head: Bytes, payload: Bytes) -> Result<()> {
        if let Some(error) = lock(&self.failure).clone() {
            return Err(error);
        }
        let mut outbox = lock(&self.outbox);
        let idle = outbox.queue.is_empty();
        for part in [head, payload] {
            if !part.is_empty() {
                outbox.bytes += part.len();
                outbox.queue.push_back(part);
            }
        }
        let mut rest = !idle;
        if idle {
            match outbox.write_some(&self.transport) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => rest = true,
                // The reader task meets the same failure and reports it to everyone.
                Err(_) => {}
            }
        }
        drop(outbox);
        if rest {
            self.outbox_filled.notify_one();
        }
        Ok(())
    }

    fn fail(&self, error: Error) {
        lock(&self.failure).get_or_insert(error.clone());
        let routes = std::mem::take(&mut *lock(&self.routes));
        for route in routes.into_values() {
            let _ = route.sender.send(Err(error.clone()));
        }
        self.outbox_drained.notify_waiters();
    }

    /// A link has ended, on either side: questions under way may wait for what was to come on it, and are failed. They
    /// can be asked again, on another link.
    fn link_ended(&self, link: &Arc<Link>, error: Error) {
        if !self.links.drop_link(link) {
            return;
        }
        tracing::info!(link = link.number(), core = link.core(), generation = link.generation(), %error, "an RDMA link has ended");
        // Damage is said as such, and not asked again of itself.
        let code = if error.code == ErrorCode::Corruption { error.code } else { ErrorCode::Unavailable };
        let error = Error::new(code, error.message);
        lock(&self.routes).retain(|_, route| {
            if route.credits.is_some() {
                let _ = route.sender.send(Err(error.clone()));
            }
            route.credits.is_none()
        });
    }

    fn dispatch(&self, frame: Frame, elsewhere: Option<u32>) -> Result<()> {
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
                let notice: Notice = decode(&frame)?;
                if notice.reason() == proto::cache_invalidation_notice::Reason::CellDraining {
                    self.draining.store(true, Ordering::Relaxed);
                }
                let _ = self.notices.send(notice);
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

/// A connection's RDMA links.
#[derive(Default)]
struct Links {
    /// The device, and which of the cell's ports it talks to.
    device: Mutex<Option<(FabricDevice, u32)>>,
    open: Mutex<Vec<Arc<Link>>>,
    /// Number of the link to the home core, and the home core.
    home: AtomicU32,
    home_core: AtomicU32,
    generation: AtomicU32,
    /// Whether a question was asked, so that links to the other cores are there or on their way.
    asked: AtomicBool,
    opening: tokio::sync::Mutex<()>,
    /// Whether TCP will do where there is no link.
    is_optional: AtomicBool,
}

/// A link that is being opened; dropped unless that succeeds.
struct HalfMade<'a> {
    links: &'a Links,
    link: Option<&'a Arc<Link>>,
}

impl Drop for HalfMade<'_> {
    fn drop(&mut self) {
        if let Some(link) = self.link {
            self.links.drop_link(link);
        }
    }
}

impl Links {
    fn home(&self) -> u32 {
        self.home.load(Ordering::Relaxed)
    }

    fn numbered(&self, number: u32) -> Option<Arc<Link>> {
        lock(&self.open).iter().find(|link| link.number() == number).cloned()
    }

    fn home_link(&self) -> Option<Arc<Link>> {
        self.numbered(self.home()).filter(|link| link.is_open())
    }

    /// Forgets a link; false when it was forgotten already.
    fn drop_link(&self, link: &Arc<Link>) -> bool {
        link.end(Ended::Reset);
        lock(&self.open).retain(|open| !Arc::ptr_eq(open, link));
        self.asked.store(false, Ordering::Relaxed);
        lock(&self.device).as_ref().is_some_and(|(device, _)| device.forget(link))
    }

    /// Goes on over TCP where that will do.
    fn or_tcp(&self, opened: Result<()>) -> Result<()> {
        match opened {
            Err(error) if self.is_optional.load(Ordering::Relaxed) => {
                tracing::warn!(%error, "no RDMA link: going on over TCP");
                // The device is dropped outside of the lock: its links end with it.
                let device = lock(&self.device).take();
                drop(device);
                Ok(())
            }
            opened => opened,
        }
    }
}

impl Outbox {
    /// Writes until the queue is empty, and what was taken from it is in the socket, or the socket is full.
    fn write_some(&mut self, transport: &Transport) -> io::Result<()> {
        while !self.queue.is_empty() {
            let slices: Vec<IoSlice<'_>> = self.queue.iter().take(16).map(|part| IoSlice::new(part)).collect();
            let mut written = transport.try_write_vectored(&slices)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.bytes -= written;
            while written > 0 {
                let Some(first) = self.queue.front_mut() else { break };
                let step = written.min(first.len());
                first.advance(step);
                written -= step;
                if first.is_empty() {
                    self.queue.pop_front();
                }
            }
        }
        transport.flush()
    }
}

async fn connect_socket(address: std::net::SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A fixed buffer turns the kernel's own tuning off, and is cut to net.core.rmem_max: only worth it
    // where that limit was raised.
    let allowed = std::fs::read_to_string("/proc/sys/net/core/rmem_max").ok().and_then(|text| text.trim().parse().ok());
    if allowed.is_some_and(|allowed: u32| allowed >= SOCKET_BUFFER_BYTES) {
        socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn connection_gone() -> Error {
    Error::new(ErrorCode::Unavailable, "the connection to the cell was closed: try again")
}

async fn read_frames(shared: Arc<Shared>, mut receiver: FrameReceiver) {
    loop {
        let outcome = match receiver.next().await {
            Ok(frame) => {
                let now = shared.started.elapsed().as_millis() as u64;
                shared.last_received_ms.store(now, Ordering::Relaxed);
                shared.dispatch(frame, None)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            tracing::debug!(%error, "connection ends");
            shared.fail(error);
            return;
        }
    }
}

async fn write_frames(shared: Arc<Shared>) {
    loop {
        shared.outbox_filled.notified().await;
        loop {
            let outcome = {
                let mut outbox = lock(&shared.outbox);
                let outcome = outbox.write_some(&shared.transport);
                if outbox.bytes < OUTBOX_BYTES_MAX {
                    shared.outbox_drained.notify_waiters();
                }
                outcome
            };
            match outcome {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if shared.transport.writable().await.is_err() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The reader may still find the cell's own last word (an Error frame) in the socket; it
                // ends the connection when it meets the failure itself.
                Err(_) => return,
            }
        }
    }
}

/// Sends a heartbeat when the cell has been silent for an interval; gives the connection up when it stays
/// silent.
async fn beat(shared: Arc<Shared>, interval_ms: u64, dead_ms: u64) {
    let interval_ms = if interval_ms == 0 { 5_000 } else { interval_ms.clamp(50, 60_000) };
    let dead_ms = if dead_ms == 0 { 4 * interval_ms } else { dead_ms.max(2 * interval_ms) };
    let mut nonce = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(interval_ms)).await;
        let now = shared.started.elapsed().as_millis() as u64;
        let silent_ms = now.saturating_sub(shared.last_received_ms.load(Ordering::Relaxed));
        if silent_ms > dead_ms {
            shared.fail(Error::new(
                ErrorCode::Unavailable,
                format!("the cell has been silent for {silent_ms} ms: the connection is given up"),
            ));
            return;
        }
        if silent_ms >= interval_ms {
            nonce += 1;
            let body = proto::Heartbeat { nonce, reply: false };
            let Ok(frame) = encode_frame(FrameKind::Heartbeat, 0, &body, &[]) else { return };
            if shared.send(frame.into()).is_err() {
                return;
            }
        }
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
