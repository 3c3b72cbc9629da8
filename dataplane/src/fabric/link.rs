//! One link: a client's queue pair on a core, and the client's result ring.
//!
//! Owns [`Link`], which ties `hidb::session::CellLink` (the state machine: slots, credits, flushing) to a queue pair.
//! Called by `server::links` and by requests, on the link's core; completions come from [`super::port`].
//!
//! Invariants
//! - Those of the state machine: no slot is written without a credit; the queue pair is destroyed only after everything
//!   posted has completed or was flushed.
//! - The cell writes inside the ring that was declared, and reads nothing of the client's.
//! - With integrity, what is posted is sealed in the order in which it is posted, and nothing of the client's is looked
//!   at before it was opened.
//! - Frames that the client sent and nobody took are bounded ([`FRAMES_WAITING_MAX`]): beyond that the link ends.
//!
//! Cost per result batch: one WRITE with immediate of two pieces; no byte of the payload is copied when it lies in the
//! core's arena (counted in `link_copied_bytes_total` when it does not), and it is read once for its checksum or its MAC.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use glommio::sync::Semaphore;
use hidb::frame::{Frame, FrameKind, HEADER_BYTES, encode_head};
use hidb::session::frames::{Checksum, immediate, read_send, slot_head};
use hidb::session::seal::{Content, Integrity, LinkSecret, Opener, Sealer, TAG_BYTES, Tag, Way};
use hidb::session::{
    ACK_TIMEOUT, Action, CellLink, Ended, SEND_BYTES_MAX, SLOT_BYTES_MAX, SLOT_BYTES_MIN, SLOTS_MAX, State,
};
use hidb::{Error, ErrorCode, Result, proto};
use prost::Message;
use verbs_shim::connect::ENDPOINT_BYTES;
use verbs_shim::verbs::{Access, MemoryKey, QueuePairNumber};
use verbs_shim::{ConnectOptions, Endpoint, QueuePair, QueuePairOptions, RemoteMemory, SendRequest};

use super::failed;
use super::memory::LinkBuffer;
use super::port::{HEAD_BYTES_MAX, LINK_DEPTH, Port};
use crate::arena::{Arena, ArenaBuf};
use crate::waiters::Waiters;

/// Frames of the client's that may wait to be taken.
const FRAMES_WAITING_MAX: usize = 1024;
/// How long to wait for memory of the arena before looking again.
const ARENA_PAUSE: Duration = Duration::from_millis(1);

/// What a link has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Frames in SENDs.
    pub sends: u64,
    /// Frames in slots.
    pub writes: u64,
    /// Bytes of payloads.
    pub payload_bytes: u64,
    /// Bytes of payloads that had to be copied into registered memory first.
    pub copied_bytes: u64,
}

/// A client's ring, as it declared it.
#[derive(Clone, Copy, Debug)]
struct Ring {
    memory: RemoteMemory,
    slots: u32,
    slot_bytes: u32,
    generation: u32,
}

/// One link.
pub struct Link {
    number: u32,
    port: Rc<Port>,
    arena: Arena,
    queue_pair: RefCell<Option<QueuePair<LinkBuffer>>>,
    queue_pair_number: QueuePairNumber,
    machine: RefCell<CellLink>,
    /// Slots, the send queue, the state, or frames that wait have changed.
    changed: Waiters,
    frames: RefCell<VecDeque<Frame>>,
    /// Credits of the requests whose batches this core sends itself.
    requests: RefCell<HashMap<u64, Rc<Semaphore>>>,
    ring: Ring,
    checksum: Checksum,
    seals: Option<Seals>,
    counters: Cell<LinkCounters>,
}

/// The cell's ends of a link with integrity.
struct Seals {
    sealer: RefCell<Sealer>,
    opener: RefCell<Opener>,
}

/// Writes a message where it leaves from: its tag, if it has one, and its parts. Its bytes.
fn lay_out(target: &mut [u8], tag: Option<Tag>, parts: &[&[u8]]) -> usize {
    let mut length = 0;
    for part in tag.iter().map(|tag| &tag[..]).chain(parts.iter().copied()) {
        target[length..length + part.len()].copy_from_slice(part);
        length += part.len();
    }
    length
}

fn refused(what: String) -> Error {
    Error::new(ErrorCode::Protocol, what)
}

fn ring_of(request: &proto::OpenLink) -> Result<Ring> {
    let ring = request.ring.ok_or_else(|| refused("OpenLink declares no result ring".into()))?;
    let bytes = u64::from(ring.slots) * u64::from(ring.slot_bytes);
    if !(1..=SLOTS_MAX).contains(&ring.slots)
        || !(SLOT_BYTES_MIN..=SLOT_BYTES_MAX).contains(&ring.slot_bytes)
        || !ring.slot_bytes.is_multiple_of(4096)
        || ring.address.checked_add(bytes).is_none()
    {
        return Err(refused(format!(
            "a result ring of {} slots of {} bytes at {:#x}: it has 1 to {SLOTS_MAX} slots of {SLOT_BYTES_MIN} to {SLOT_BYTES_MAX} bytes, a multiple of 4096",
            ring.slots, ring.slot_bytes, ring.address
        )));
    }
    let memory = RemoteMemory { address: ring.address, length: bytes, key: MemoryKey(ring.key) };
    Ok(Ring { memory, slots: ring.slots, slot_bytes: ring.slot_bytes, generation: ring.generation })
}

impl Link {
    /// Makes a queue pair and connects it to the client's. The link opens with the client's first credits. With a secret
    /// it has integrity.
    ///
    /// # Errors
    /// `Protocol` for a request that makes no sense, `Overloaded` when the core has as many links as may be, `Io` with
    /// what verbs-shim says.
    pub fn connect(
        port: &Rc<Port>,
        arena: &Arena,
        number: u32,
        request: &proto::OpenLink,
        secret: Option<&LinkSecret>,
    ) -> Result<(Rc<Link>, Endpoint)> {
        port.check_room()?;
        let ring = ring_of(request)?;
        let checksum = Checksum::from_number(request.checksum)?;
        let endpoint: &[u8; ENDPOINT_BYTES] = request.endpoint[..].try_into().map_err(|_| {
            refused(format!("an endpoint record of {} bytes, not {ENDPOINT_BYTES}", request.endpoint.len()))
        })?;
        let peer = Endpoint::from_bytes(endpoint).map_err(|error| refused(error.to_string()))?;
        let options = QueuePairOptions {
            send_depth: LINK_DEPTH,
            receive_depth: 0,
            inline_bytes_max: 0,
            access: Access::LOCAL_WRITE,
        };
        let device = |error: verbs_shim::Error| failed(port.name(), &error);
        let (domain, queue) = (&port.domain, &port.completions);
        let pair = domain.create_queue_pair_sharing(queue, queue, &port.receives, &options).map_err(device)?;
        pair.connect(&peer, &ConnectOptions { timeout: ACK_TIMEOUT, ..ConnectOptions::default() }).map_err(device)?;
        let (own, queue_pair_number) = (pair.endpoint(), pair.number());
        let link = Rc::new(Link {
            number,
            port: port.clone(),
            arena: arena.clone(),
            queue_pair: RefCell::new(Some(pair)),
            queue_pair_number,
            machine: RefCell::new(CellLink::new(ring.generation, ring.slots, LINK_DEPTH)),
            changed: Waiters::default(),
            frames: RefCell::default(),
            requests: RefCell::default(),
            ring,
            checksum,
            seals: secret.map(|secret| {
                let (sealer, opener) = secret.cell_ends(number, ring.generation);
                Seals { sealer: sealer.into(), opener: opener.into() }
            }),
            counters: Cell::default(),
        });
        port.add(queue_pair_number, link.clone());
        Ok((link, own))
    }

    /// Its number within the session.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The device that it is on.
    pub fn device(&self) -> &str {
        self.port.name()
    }

    /// The checksum policy.
    pub fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// What protects it from others on the network.
    pub fn integrity(&self) -> Integrity {
        if self.seals.is_some() { Integrity::Hmac } else { Integrity::None }
    }

    /// Bytes before each message.
    fn tag_bytes(&self) -> usize {
        if self.seals.is_some() { TAG_BYTES } else { 0 }
    }

    /// Hashes a message for its seal; before its turn has come, so that nothing waits for that.
    fn hash(&self, parts: &[&[u8]]) -> Option<Content> {
        self.seals.as_ref().map(|seals| seals.sealer.borrow().content(parts))
    }

    /// The tag of the message that is posted next.
    fn seal(&self, content: Option<Content>, way: Way) -> Option<Tag> {
        let (seals, content) = self.seals.as_ref().zip(content)?;
        Some(seals.sealer.borrow_mut().seal(content, way))
    }

    /// What it carried.
    pub fn counters(&self) -> LinkCounters {
        self.counters.get()
    }

    fn count(&self, add: impl FnOnce(&mut LinkCounters)) {
        let mut counters = self.counters.get();
        add(&mut counters);
        self.counters.set(counters);
    }

    /// The generation of its ring.
    pub fn generation(&self) -> u32 {
        self.ring.generation
    }

    /// Bytes of a slot.
    pub fn slot_bytes(&self) -> usize {
        self.ring.slot_bytes as usize
    }

    /// Its state machine, to look at.
    pub fn with_machine<T>(&self, look: impl FnOnce(&CellLink) -> T) -> T {
        look(&self.machine.borrow())
    }

    /// Whether frames can be sent on it.
    pub fn is_open(&self) -> bool {
        self.machine.borrow().state() == State::Open
    }

    fn ended(&self) -> Option<Error> {
        self.machine.borrow().ended().map(Ended::error)
    }

    /// Sends a frame: in a SEND if it is short, else in a slot. Waits for a slot, for room in the send queue, for
    /// buffers.
    ///
    /// # Errors
    /// `LimitExceeded` for a frame that fits no slot; why the link ended, once it has.
    pub async fn send(&self, kind: FrameKind, request_id: u64, body: &impl Message, payload: Bytes) -> Result<()> {
        let head_bytes = HEADER_BYTES + body.encoded_len();
        let payload_bytes = payload.len() as u64;
        if self.tag_bytes() + head_bytes + payload.len() <= SEND_BYTES_MAX {
            self.count(|counters| {
                counters.sends += 1;
                counters.payload_bytes += payload_bytes;
            });
            return self.send_short(kind, request_id, body, payload).await;
        }
        let crc = self.checksum.of_payload(&payload);
        let slot_bytes = self.ring.slot_bytes as usize;
        let head = slot_head(kind, request_id, body, payload.len(), crc, slot_bytes - self.tag_bytes())?;
        let content = self.hash(&[&head, &payload]);
        let head_bytes = self.tag_bytes() + head.len();
        let lent = if head_bytes <= HEAD_BYTES_MAX { self.port.arena.lend(payload.clone()) } else { None };
        let way = |slot| Way::Write { immediate: immediate(slot, request_id) };
        let (slot, buffer) = match lent {
            Some(payload) => loop {
                // Heads are shared by all links of the core: one is taken only when it can be posted at once.
                self.wait_open(|machine| machine.can_write().then_some(())).await?;
                let Some(mut buffer) = self.port.head_buffer() else {
                    self.port.buffers().await;
                    continue;
                };
                let slot = self.machine.borrow_mut().begin_write(request_id);
                let slot = slot.expect("it can, as was just seen");
                let head_length = lay_out(&mut buffer, self.seal(content, way(slot)), &[&head]);
                break (slot, LinkBuffer::Gathered { head: buffer, head_length, payload });
            },
            None => {
                self.count(|counters| counters.copied_bytes += payload_bytes);
                let mut whole = self.allocate(head_bytes + payload.len()).await?;
                let slot = self.wait_open(|machine| machine.begin_write(request_id)).await?;
                lay_out(&mut whole, self.seal(content, way(slot)), &[&head, &payload]);
                let whole = self.port.arena.lend(whole.into_bytes()).expect("memory of the arena lies in the arena");
                (slot, LinkBuffer::Whole(whole))
            }
        };
        self.count(|counters| {
            counters.writes += 1;
            counters.payload_bytes += payload_bytes;
        });
        let target = self.ring.memory.part(u64::from(slot) * u64::from(self.ring.slot_bytes), slot_bytes as u64);
        let target = target.expect("slots lie in the ring: its length is their sum");
        let request = SendRequest::write(buffer, target).immediate(immediate(slot, request_id)).token(u64::from(slot));
        if let Err(status) = self.post(request) {
            self.machine.borrow_mut().write_refused(slot, &status);
            self.act();
            return self.failure();
        }
        Ok(())
    }

    async fn send_short(&self, kind: FrameKind, request_id: u64, body: &impl Message, payload: Bytes) -> Result<()> {
        let crc = self.checksum.of_payload(&payload);
        let head = encode_head(kind, request_id, body, payload.len(), crc)?;
        let content = self.hash(&[&head, &payload]);
        let mut buffer = loop {
            self.wait_open(|machine| machine.has_room().then_some(())).await?;
            match self.port.send_buffer() {
                Some(buffer) => break buffer,
                None => self.port.buffers().await,
            }
        };
        let begun = self.machine.borrow_mut().begin_send();
        debug_assert!(begun, "there was room");
        let length = lay_out(&mut buffer, self.seal(content, Way::Send), &[&head, &payload]);
        let buffer = LinkBuffer::Staged { buffer, length };
        if let Err(status) = self.post(SendRequest::send(buffer)) {
            self.machine.borrow_mut().send_completed(Some(&status));
            self.act();
            return self.failure();
        }
        Ok(())
    }

    fn failure(&self) -> Result<()> {
        Err(self.ended().unwrap_or_else(|| Error::new(ErrorCode::Unavailable, "the RDMA link failed")))
    }

    /// Posts a request; with why not if the device refuses it.
    fn post(&self, request: SendRequest<'_, LinkBuffer>) -> Result<(), String> {
        let pair = self.queue_pair.borrow();
        let Some(pair) = pair.as_ref() else { return Err("the queue pair is gone".into()) };
        pair.post_send(request).map_err(|refused| {
            if let Some(buffer) = refused.request.into_buffer() {
                self.port.give_back(buffer);
            }
            refused.error.to_string()
        })
    }

    /// Registered memory, for what was not written there. Waits for it.
    async fn allocate(&self, bytes: usize) -> Result<ArenaBuf> {
        loop {
            if let Some(memory) = self.arena.allocate(bytes) {
                return Ok(memory);
            }
            if let Some(error) = self.ended() {
                return Err(error);
            }
            glommio::timer::sleep(ARENA_PAUSE).await;
        }
    }

    /// Waits for what `begin` gives, as long as the link is open.
    async fn wait_open<T>(&self, mut begin: impl FnMut(&mut CellLink) -> Option<T>) -> Result<T> {
        self.changed
            .wait_for(|| {
                let mut machine = self.machine.borrow_mut();
                match machine.ended() {
                    Some(ended) => Some(Err(ended.error())),
                    None => begin(&mut machine).map(Ok),
                }
            })
            .await
    }

    /// A SEND of the client's has arrived.
    pub(super) fn received(&self, bytes: &[u8]) {
        let opened = match &self.seals {
            Some(seals) => seals.opener.borrow_mut().open_send(bytes),
            None => Ok(bytes),
        };
        let frame = opened.and_then(|frame| read_send(frame, self.checksum));
        if let Err(error) = frame.and_then(|frame| self.take(frame)) {
            self.end(error.into());
        }
    }

    fn take(&self, frame: Frame) -> Result<()> {
        match frame.kind {
            FrameKind::SlotsFree => self.slots_free(&frame.message()?),
            FrameKind::Credit => {
                let credit: proto::Credit = frame.message()?;
                let credits = self.requests.borrow().get(&credit.request_id).cloned();
                match credits {
                    Some(credits) => {
                        grant(&credits, credit.count);
                        Ok(())
                    }
                    None => self.queue(frame),
                }
            }
            _ => self.queue(frame),
        }
    }

    fn queue(&self, frame: Frame) -> Result<()> {
        let mut frames = self.frames.borrow_mut();
        if frames.len() >= FRAMES_WAITING_MAX {
            let text =
                format!("{FRAMES_WAITING_MAX} frames wait on a link: the client sends without waiting for answers");
            return Err(Error::new(ErrorCode::LimitExceeded, text));
        }
        frames.push_back(frame);
        drop(frames);
        self.changed.wake();
        Ok(())
    }

    /// Credits of the client's.
    ///
    /// # Errors
    /// `Protocol` when it gives what it does not have: the link has ended then.
    pub fn slots_free(&self, message: &proto::SlotsFree) -> Result<()> {
        let result = self.machine.borrow_mut().slots_free(message.generation, &message.slots);
        self.act();
        self.changed.wake();
        result
    }

    /// The next frame of the client's for the session; why the link ended, once it has.
    ///
    /// # Errors
    /// Why the link ended.
    pub async fn next_frame(&self) -> Result<Frame> {
        self.changed
            .wait_for(|| match self.frames.borrow_mut().pop_front() {
                Some(frame) => Some(Ok(frame)),
                None => self.ended().map(Err),
            })
            .await
    }

    /// Counts the credits of a request whose batches this core sends itself, until the answer is dropped.
    pub fn begin_request(self: &Rc<Self>, request_id: u64, credits: u32) -> RequestCredits {
        let semaphore = Rc::new(Semaphore::new(0));
        grant(&semaphore, credits);
        self.requests.borrow_mut().insert(request_id, semaphore.clone());
        RequestCredits { link: self.clone(), request_id, credits: semaphore }
    }

    pub(super) fn send_completed(&self, failure: Option<&str>) {
        self.machine.borrow_mut().send_completed(failure);
        self.act();
        self.changed.wake();
    }

    pub(super) fn write_completed(&self, slot: u32, failure: Option<&str>) {
        self.machine.borrow_mut().write_completed(slot, failure);
        self.act();
        self.changed.wake();
    }

    /// Ends the link; what waits on it fails with this reason.
    pub fn end(&self, why: Ended) {
        self.machine.borrow_mut().end(why);
        self.act();
        self.changed.wake();
    }

    /// Why it ended: ready once nothing is under way into the ring any more.
    pub async fn closed(&self) -> Ended {
        let closed = |machine: &CellLink| match machine.state() {
            State::Closed => machine.ended().cloned(),
            _ => None,
        };
        self.changed.wait_for(|| closed(&self.machine.borrow())).await
    }

    /// Does what the state machine asks for.
    fn act(&self) {
        loop {
            let action = self.machine.borrow_mut().next_action();
            match action {
                None => return,
                Some(Action::MoveToError) => {
                    if let Some(pair) = &*self.queue_pair.borrow()
                        && let Err(error) = pair.to_error()
                    {
                        // It is destroyed below at the latest, which flushes as well.
                        tracing::warn!(%error, link = self.number, "a queue pair does not go to the error state");
                    }
                }
                Some(Action::Release) => {
                    let pair = self.queue_pair.borrow_mut().take();
                    drop(pair);
                    self.port.remove(self.queue_pair_number);
                    for credits in self.requests.borrow().values() {
                        credits.close();
                    }
                }
            }
        }
    }
}

/// Adds credits, as many as a request may hold.
fn grant(credits: &Semaphore, count: u32) {
    let room = crate::server::session::CREDITS_MAX.saturating_sub(credits.available());
    credits.signal(u64::from(count).min(room));
}

/// The credits of a request on a link.
pub struct RequestCredits {
    link: Rc<Link>,
    request_id: u64,
    credits: Rc<Semaphore>,
}

impl RequestCredits {
    /// The link.
    pub fn link(&self) -> &Rc<Link> {
        &self.link
    }

    /// Takes one; waits for it.
    ///
    /// # Errors
    /// Why the link ended.
    pub async fn take(&self) -> Result<()> {
        match self.credits.acquire(1).await {
            Ok(()) => Ok(()),
            Err(_) => self.link.failure(),
        }
    }
}

impl Drop for RequestCredits {
    fn drop(&mut self) {
        // An id may have been used again since.
        let mut requests = self.link.requests.borrow_mut();
        if requests.get(&self.request_id).is_some_and(|current| Rc::ptr_eq(current, &self.credits)) {
            requests.remove(&self.request_id);
        }
    }
}
