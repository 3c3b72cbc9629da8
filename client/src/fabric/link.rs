//! One link to a core: a queue pair, the result ring that the core writes into, and what is to be sent.
//!
//! Owns [`Link`], which ties `hidb::session::ClientLink` (the state machine) to a queue pair, and the guards of slots.
//! Called by the connection; completions come from [`super::device`].
//!
//! Invariants
//! - A slot is given back once, when the last reference to the batch in it is dropped, or at once when it was copied out.
//! - What cannot be posted now waits in order, and is posted when something has completed.
//! - The queue pair is destroyed before the ring may be deregistered.
//! - With integrity, frames are sealed in the order in which they are posted, and what comes is opened before anything
//!   of it is looked at; a batch is opened out of a copy, and its slot given back at once: nobody sees memory that
//!   others on the network could still write into.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use hidb::aligned::AlignedBytes;
use hidb::frame::{Frame, FrameKind, encode_frame};
use hidb::session::frames::{is_of_request, read_send, read_slot, slot_of};
use hidb::session::seal::{Integrity, Opener, Sealer, TAG_BYTES, Way};
use hidb::session::{ACK_TIMEOUT, Action, ClientLink, Ended, SEND_BYTES_MAX, State};
use hidb::{Error, ErrorCode, Result, proto};
use verbs_shim::verbs::{Access, QueuePairNumber};
use verbs_shim::{
    Buffer, CompletionQueue, ConnectOptions, Endpoint, ProtectionDomain, QueuePair, QueuePairOptions, Receive,
    Registered, RemoteBuffer, SendRequest, verbs::Sge,
};

use super::protection::Protection;
use crate::connection::lock;

/// SENDs that a link may have outstanding.
pub(crate) const SENDS: u32 = 64;
/// Receive requests beyond one for each slot: for short frames.
const SHORT_RECEIVES: u32 = 64;
/// Frames that may wait for room in the send queue.
const WAITING_MAX: usize = 65_536;

/// How a ring is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub slots: u32,
    pub slot_bytes: u32,
}

impl Shape {
    /// Receive requests of a link with such a ring.
    pub(crate) fn receives(self) -> u32 {
        self.slots + SHORT_RECEIVES
    }

    /// Places of a completion queue that a link with such a ring takes.
    pub(crate) fn completions(self) -> u32 {
        self.receives() + SENDS
    }
}

/// What a work request of the client owns: the first `length` bytes of a buffer.
pub(crate) struct LinkBuffer {
    pub buffer: Buffer,
    pub length: usize,
}

// SAFETY: the pieces are those of a `Buffer` that is owned, cut shorter.
unsafe impl Registered for LinkBuffer {
    fn pieces(&self, each: &mut impl FnMut(Sge)) {
        self.buffer.pieces(&mut |piece| each(Sge { length: (self.length as u32).min(piece.length), ..piece }));
    }
}

/// One link.
pub(crate) struct Link {
    // First: nothing is written any more when the ring goes.
    queue_pair: Mutex<Option<QueuePair<LinkBuffer>>>,
    machine: Mutex<ClientLink>,
    sending: Mutex<Sending>,
    opener: Mutex<Option<Opener>>,
    ring: Arc<RemoteBuffer>,
    shape: Shape,
    protection: Protection,
    /// The link's number, the cell's to give; and the core's.
    number: OnceLock<u32>,
    core: u32,
    queue_pair_number: QueuePairNumber,
    generation: u32,
    copied_out: AtomicU64,
    in_place: AtomicU64,
}

/// Frames to be sent, and buffers for them.
struct Sending {
    buffers: Vec<Buffer>,
    waiting: VecDeque<Vec<u8>>,
    sealer: Option<Sealer>,
}

/// Slots that came in and are referred to; gives the slot back when dropped.
struct SlotGuard {
    link: Arc<Link>,
    slot: u32,
}

impl AsRef<[u8]> for SlotGuard {
    fn as_ref(&self) -> &[u8] {
        let bytes = self.link.shape.slot_bytes as usize;
        // SAFETY: the cell may write into a slot only between `SlotsFree` and its WRITE with immediate, and this guard
        // exists only after the latter and before the next of the former (`ClientSlots`, state Held). A cell that breaks
        // this contract has the right to do so by the RDMA protection model (docs/security.md, "RDMA"): who does not
        // trust the cell with its memory uses TCP.
        unsafe { self.link.ring.slice(self.slot as usize * bytes, bytes) }
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        lock(&self.link.machine).released(self.slot);
        self.link.give_slots();
    }
}

impl Link {
    /// A queue pair with its receive requests posted, and its ring registered; not connected yet.
    pub(crate) fn new(
        domain: &ProtectionDomain,
        queue: &CompletionQueue<LinkBuffer>,
        core: u32,
        generation: u32,
        shape: Shape,
        protection: Protection,
    ) -> Result<Arc<Link>, verbs_shim::Error> {
        let options = QueuePairOptions {
            send_depth: SENDS,
            receive_depth: shape.receives(),
            inline_bytes_max: 0,
            access: Access::LOCAL_WRITE | Access::REMOTE_WRITE,
        };
        let pair = domain.create_queue_pair(queue, queue, &options)?;
        let receives = shape.receives() as usize;
        let mut buffers = pieces(domain.allocate((receives + SENDS as usize) * SEND_BYTES_MAX)?, SEND_BYTES_MAX);
        for buffer in buffers.drain(..receives) {
            pair.post_receive(Receive::new(LinkBuffer { length: buffer.len(), buffer }))?;
        }
        let bytes = shape.slots as usize * shape.slot_bytes as usize;
        let ring = domain.expose(bytes, Access::LOCAL_WRITE | Access::REMOTE_WRITE)?;
        Ok(Arc::new(Link {
            queue_pair_number: pair.number(),
            queue_pair: Mutex::new(Some(pair)),
            machine: Mutex::new(ClientLink::new(generation, shape.slots, SENDS)),
            sending: Mutex::new(Sending { buffers, waiting: VecDeque::new(), sealer: None }),
            opener: Mutex::default(),
            ring: Arc::new(ring),
            shape,
            protection,
            number: OnceLock::new(),
            core,
            generation,
            copied_out: AtomicU64::new(0),
            in_place: AtomicU64::new(0),
        }))
    }

    /// The request that opens it.
    pub(crate) fn open_request(&self, port: u32) -> Result<proto::OpenLink> {
        let pair = lock(&self.queue_pair);
        let endpoint = pair.as_ref().map(QueuePair::endpoint).ok_or_else(gone)?;
        let memory = self.ring.remote();
        Ok(proto::OpenLink {
            port,
            core: self.core,
            endpoint: endpoint.to_bytes().to_vec().into(),
            ring: Some(proto::ResultRing {
                address: memory.address,
                key: memory.key.0,
                slots: self.shape.slots,
                slot_bytes: self.shape.slot_bytes,
                generation: self.generation,
            }),
            checksum: self.protection.checksum().number(),
            receives: self.shape.receives(),
            integrity: self.protection.integrity().number(),
        })
    }

    /// Connects to what the cell answered, and gives it all slots.
    ///
    /// # Errors
    /// `UnsupportedVersion` when integrity was asked for and the cell does not know of it.
    pub(crate) fn opened(self: &Arc<Self>, answer: &proto::LinkOpened) -> Result<()> {
        debug_assert_eq!(self.number(), answer.link, "it is known by its number already");
        let wrong = |what: String| Error::new(ErrorCode::Protocol, format!("the cell's answer to OpenLink: {what}"));
        let bytes =
            answer.endpoint[..].try_into().map_err(|_| wrong("its endpoint record has another length".into()))?;
        let peer = Endpoint::from_bytes(bytes).map_err(|error| wrong(error.to_string()))?;
        if let Some(secret) = self.protection.agreed(answer)? {
            let (sealer, opener) = secret.client_ends(answer.link, self.generation);
            lock(&self.sending).sealer = Some(sealer);
            *lock(&self.opener) = Some(opener);
        }
        {
            let pair = lock(&self.queue_pair);
            let pair = pair.as_ref().ok_or_else(gone)?;
            pair.connect(&peer, &ConnectOptions { timeout: ACK_TIMEOUT, ..ConnectOptions::default() })
                .map_err(|error| Error::new(ErrorCode::Unavailable, format!("RDMA to the cell: {error}")))?;
        }
        let slots = lock(&self.machine).open();
        if let Some(slots) = slots {
            self.post_slots(slots);
        }
        Ok(())
    }

    /// The number that the cell gave it.
    pub(crate) fn set_number(&self, number: u32) {
        let _ = self.number.set(number);
    }

    pub(crate) fn number(&self) -> u32 {
        self.number.get().copied().unwrap_or(0)
    }

    pub(crate) fn core(&self) -> u32 {
        self.core
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    pub(crate) fn queue_pair_number(&self) -> QueuePairNumber {
        self.queue_pair_number
    }

    /// Whether frames can be sent on it.
    pub(crate) fn is_open(&self) -> bool {
        lock(&self.machine).state() == State::Open
    }

    /// Result frames that were handed on in place, and those that were copied out because slots ran short.
    pub(crate) fn delivered(&self) -> (u64, u64) {
        (self.in_place.load(Ordering::Relaxed), self.copied_out.load(Ordering::Relaxed))
    }

    /// Why it ended, if it has.
    pub(crate) fn ended(&self) -> Option<Error> {
        lock(&self.machine).ended().map(Ended::error)
    }

    /// The longest frame that [`Self::send`] takes.
    pub(crate) fn frame_bytes_max(&self) -> usize {
        match self.protection.integrity() {
            Integrity::None => SEND_BYTES_MAX,
            Integrity::Hmac => SEND_BYTES_MAX - TAG_BYTES,
        }
    }

    /// Sends a frame of at most [`Self::frame_bytes_max`] bytes, now or as soon as there is room.
    pub(crate) fn send(&self, frame: Vec<u8>) -> Result<()> {
        debug_assert!(frame.len() <= self.frame_bytes_max());
        if let Some(error) = self.ended() {
            return Err(error);
        }
        {
            let mut sending = lock(&self.sending);
            if sending.waiting.len() >= WAITING_MAX {
                let text = "too many frames wait to be sent on an RDMA link: wait for answers first";
                return Err(Error::new(ErrorCode::Overloaded, text));
            }
            sending.waiting.push_back(frame);
        }
        self.post_waiting();
        Ok(())
    }

    /// Posts what waits, as far as there is room.
    fn post_waiting(&self) {
        let mut sending = lock(&self.sending);
        while !sending.waiting.is_empty() && !sending.buffers.is_empty() && lock(&self.machine).begin_send() {
            let (Some(frame), Some(mut buffer)) = (sending.waiting.pop_front(), sending.buffers.pop()) else { break };
            let tag = sending.sealer.as_mut().map(|sealer| sealer.seal(sealer.content(&[&frame]), Way::Send));
            let tag = tag.as_ref().map_or(&[][..], |tag| tag);
            let length = tag.len() + frame.len();
            buffer[..tag.len()].copy_from_slice(tag);
            buffer[tag.len()..length].copy_from_slice(&frame);
            let request = SendRequest::send(LinkBuffer { buffer, length });
            let refused = match &*lock(&self.queue_pair) {
                Some(pair) => pair.post_send(request).err(),
                None => return lock(&self.machine).send_completed(Some("the queue pair is gone")),
            };
            if let Some(refused) = refused {
                let status = refused.error.to_string();
                sending.buffers.extend(refused.request.into_buffer().map(|owned| owned.buffer));
                lock(&self.machine).send_completed(Some(&status));
            }
        }
        drop(sending);
        self.act();
    }

    /// Gives slots back when that is due.
    fn give_slots(&self) {
        let due = lock(&self.machine).due_returns();
        if let Some(slots) = due {
            self.post_slots(slots);
        }
    }

    fn post_slots(&self, slots: Vec<u32>) {
        // A ring of 4,096 slots makes messages that are longer than a SEND.
        for part in slots.chunks(1024) {
            let message = proto::SlotsFree { link: self.number(), generation: self.generation, slots: part.to_vec() };
            // It fails when the link has ended: then there is nobody to give to.
            if let Ok(frame) = encode_frame(FrameKind::SlotsFree, 0, &message, &[]) {
                let _ = self.send(frame);
            }
        }
    }

    pub(crate) fn send_completed(&self, owned: Option<LinkBuffer>, failure: Option<&str>) {
        lock(&self.sending).buffers.extend(owned.map(|owned| owned.buffer));
        lock(&self.machine).send_completed(failure);
        self.post_waiting();
    }

    /// A receive request has completed: the frame that came, and the buffer is posted again.
    pub(crate) fn received(
        self: &Arc<Self>,
        owned: Option<LinkBuffer>,
        length: u32,
        immediate: Option<u32>,
        failure: Option<&str>,
    ) -> Result<Option<Frame>> {
        if let Some(status) = failure {
            lock(&self.machine).end(Ended::QueuePair(status.into()));
            self.act();
            return Ok(None);
        }
        let frame = match (immediate, &owned) {
            (Some(data), _) => self.take_slot(data, length as usize),
            (None, Some(owned)) => self.take_send(owned.buffer.get(..length as usize).unwrap_or_default()),
            (None, None) => Err(Error::new(ErrorCode::Internal, "a receive request without a buffer")),
        };
        if let (Some(owned), Some(pair)) = (owned, &*lock(&self.queue_pair)) {
            // Refused when the link has just ended.
            let _ = pair.post_receive(Receive::new(owned));
        }
        match frame {
            Ok(frame) => Ok(Some(frame)),
            Err(error) => {
                let mut machine = lock(&self.machine);
                if error.code == ErrorCode::Corruption && machine.ended().is_none() {
                    self.protection.count_corrupted();
                }
                machine.end(error.clone().into());
                drop(machine);
                self.act();
                Err(error)
            }
        }
    }

    fn take_send(&self, bytes: &[u8]) -> Result<Frame> {
        let frame = match &mut *lock(&self.opener) {
            Some(opener) => opener.open_send(bytes)?,
            None => bytes,
        };
        read_send(frame, self.protection.checksum())
    }

    fn take_slot(self: &Arc<Self>, immediate: u32, length: usize) -> Result<Frame> {
        let slot = slot_of(immediate);
        let mut opener = lock(&self.opener);
        let frame = match &mut *opener {
            Some(opener) => {
                let copy = self.open_slot(opener, immediate, length)?;
                let checked = read_slot(&copy, copy.len(), self.protection.checksum())?;
                // Dropped at once: the slot goes back.
                lock(&self.machine).arrived(slot)?;
                drop(SlotGuard { link: self.clone(), slot });
                self.copied_out.fetch_add(1, Ordering::Relaxed);
                checked
            }
            None => {
                drop(opener);
                self.lend_slot(slot, length)?
            }
        };
        if !is_of_request(immediate, frame.request_id) {
            let text =
                format!("slot {slot} holds a frame of request {}, its notification names another", frame.request_id);
            return Err(Error::new(ErrorCode::Protocol, text));
        }
        Ok(frame)
    }

    /// A copy of what a slot holds, without its tag.
    fn open_slot(&self, opener: &mut Opener, immediate: u32, length: usize) -> Result<Bytes> {
        let (slot, bytes) = (slot_of(immediate), self.shape.slot_bytes as usize);
        if slot >= self.shape.slots || length > bytes {
            let text = format!("{length} bytes in slot {slot}: the ring has {} of {bytes} bytes", self.shape.slots);
            return Err(Error::new(ErrorCode::Protocol, text));
        }
        opener.open_slot(immediate, length, |offset, target| self.ring.read(slot as usize * bytes + offset, target))
    }

    /// The frame in a slot, in place unless slots run short.
    fn lend_slot(self: &Arc<Self>, slot: u32, length: usize) -> Result<Frame> {
        let is_short = lock(&self.machine).arrived(slot)?;
        let guard = Bytes::from_owner(SlotGuard { link: self.clone(), slot });
        let mut frame = read_slot(&guard, length, self.protection.checksum())?;
        if is_short {
            frame.payload = AlignedBytes::copy_of(&frame.payload).into_bytes();
            self.copied_out.fetch_add(1, Ordering::Relaxed);
        } else {
            self.in_place.fetch_add(1, Ordering::Relaxed);
        }
        Ok(frame)
    }

    /// Ends the link.
    pub(crate) fn end(&self, why: Ended) {
        lock(&self.machine).end(why);
        self.act();
    }

    /// Does what the state machine asks for.
    fn act(&self) {
        loop {
            let action = lock(&self.machine).next_action();
            match action {
                None => return,
                Some(Action::MoveToError) => {
                    if let Some(pair) = &*lock(&self.queue_pair)
                        && let Err(error) = pair.to_error()
                    {
                        tracing::debug!(%error, "a queue pair does not go to the error state");
                    }
                }
                Some(Action::Release) => {
                    let pair = lock(&self.queue_pair).take();
                    drop(pair);
                }
            }
        }
    }
}

/// Cuts a buffer into pieces of `bytes` each.
fn pieces(mut whole: Buffer, bytes: usize) -> Vec<Buffer> {
    let mut pieces = Vec::with_capacity(whole.len() / bytes);
    while whole.len() > bytes {
        let rest = whole.split_off(bytes);
        pieces.push(std::mem::replace(&mut whole, rest));
    }
    pieces.push(whole);
    pieces
}

fn gone() -> Error {
    Error::new(ErrorCode::Unavailable, "the RDMA link has ended: ask again")
}
