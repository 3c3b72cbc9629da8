//! Queue pairs: posting work requests that own their memory.

use std::collections::VecDeque;
use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use crate::Error;
use crate::completion::{CompletionQueue, Entry, RingId, Shared};
use crate::connect::{ConnectOptions, Endpoint, QueuePairOptions};
use crate::memory::{Buffer, Registered};
use crate::provider::{RawDomain, RawQueuePair};
use crate::request::{CHUNK, Pieces, Receive, Refused, SendRequest, in_chunks, pieces_of};
use crate::shared_receive_queue::SharedReceiveQueue;
use crate::verbs::{Data, Operation, PostError, QueuePairNumber, QueuePairState, ReceiveRequest, WorkRequest};

/// Looks at a completion queue for flushed receive requests, a tenth of a millisecond apart.
const FLUSH_TRIES: usize = 10;

/// Fills the places of a chunk that are not used.
const NOTHING: WorkRequest<'static> = WorkRequest {
    id: 0,
    operation: Operation::Send { immediate: None },
    data: Data::Pieces(&[]),
    signalled: true,
    fence: false,
    solicited: false,
};

/// Where a request's bytes are. An inline request of no bytes is one of no pieces.
#[inline]
fn data<'a>(owned: bool, pieces: &'a Pieces, inline: &'a [u8]) -> Data<'a> {
    if owned || inline.is_empty() { Data::Pieces(pieces.as_slice()) } else { Data::Inline(inline) }
}

/// A reliable connection's end. `B` is what its work requests own. Dropping it destroys it and frees what outstanding
/// requests own; to get that back, go [to error](Self::to_error) and poll first. If the device does not let go of it, that
/// is leaked.
pub struct QueuePair<B: Registered = Buffer> {
    raw: ManuallyDrop<RawQueuePair>,
    send: Ring<B>,
    receive: Option<Ring<B>>,
    shared: Option<SharedReceiveQueue<B>>,
    receive_completions: CompletionQueue<B>,
    inline_bytes_max: usize,
}

/// A queue's table in its completion queue; removed when dropped.
struct Ring<B> {
    completions: Arc<Shared<B>>,
    id: RingId,
    /// The table stays for ever, and with it what its requests own, for as long as they do not complete.
    leaked: bool,
}

impl<B> Ring<B> {
    fn new(completions: &Arc<Shared<B>>, depth: u32) -> Result<Self, Error> {
        Ok(Ring { id: completions.tables().add_ring(depth)?, completions: completions.clone(), leaked: false })
    }
}

impl<B> Drop for Ring<B> {
    fn drop(&mut self) {
        if self.leaked {
            return std::mem::forget(self.completions.clone());
        }
        let ring = self.completions.tables().remove_ring(self.id);
        // Buffers may free regions, and run code of the program's: not under the lock.
        drop(ring);
    }
}

impl<B: Registered> QueuePair<B> {
    pub(crate) fn new(
        domain: &RawDomain,
        send: &CompletionQueue<B>,
        receive: &CompletionQueue<B>,
        shared: Option<&SharedReceiveQueue<B>>,
        options: &QueuePairOptions,
    ) -> Result<Self, Error> {
        let raw_shared = shared.map(|queue| &*queue.hold.raw);
        let raw = domain.create_queue_pair(&send.shared.raw, &receive.shared.raw, raw_shared, options)?;
        raw.to_init(options.access)?;
        let inline_bytes_max = raw.inline_bytes_max(options) as usize;
        if let Some(shared) = shared {
            receive.shared.tables().add_shared(&shared.hold.table);
        }
        Ok(QueuePair {
            send: Ring::new(&send.shared, options.send_depth)?,
            receive: shared.is_none().then(|| Ring::new(&receive.shared, options.receive_depth)).transpose()?,
            raw: ManuallyDrop::new(raw),
            shared: shared.cloned(),
            receive_completions: receive.clone(),
            inline_bytes_max,
        })
    }

    pub(crate) fn raw(&self) -> &RawQueuePair {
        &self.raw
    }

    /// Its number.
    pub fn number(&self) -> QueuePairNumber {
        self.raw.number()
    }

    /// What the peer must know to connect. Add memory of one's own to tell of it at once.
    pub fn endpoint(&self) -> Endpoint {
        self.raw.endpoint()
    }

    /// Connects to the peer's queue pair: INIT to RTR to RTS. The peer must do the same before it answers.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for transports that cannot talk to each other, [`Error::Control`] or [`Error::Os`] for
    /// attributes that cannot be.
    pub fn connect(&self, peer: &Endpoint, options: &ConnectOptions) -> Result<(), Error> {
        self.raw.connect(peer, options)
    }

    /// The state.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub fn state(&self) -> Result<QueuePairState, Error> {
        self.raw.state()
    }

    /// Goes to the error state: everything outstanding completes as flushed.
    ///
    /// # Errors
    /// [`Error`].
    pub fn to_error(&self) -> Result<(), Error> {
        self.raw.to_error()
    }

    /// Posts a request to the send queue.
    ///
    /// # Errors
    /// [`Refused`], with the request.
    #[inline]
    pub fn post_send<'a>(&self, request: SendRequest<'a, B>) -> Result<(), Refused<SendRequest<'a, B>>> {
        // Apart from the start, and together again only where it is refused: the compiler then keeps it in registers.
        let opcode = request.opcode();
        let SendRequest { token, operation, buffer, inline, signalled: asked, fence, solicited } = request;
        let refuse = |error, buffer| {
            let request = SendRequest { token, operation, buffer, inline, signalled: asked, fence, solicited };
            Err(Refused { error, request })
        };
        // Before the lock: it calls the program's own `Registered::pieces`.
        let mut pieces = Pieces::NONE;
        if let Err(error) = self.check(&operation, &buffer, inline, &mut pieces) {
            return refuse(error, buffer);
        }
        let mut tables = self.send.completions.tables();
        let ring = match tables.ring(self.send.id) {
            Some(ring) if !ring.is_full() => ring,
            Some(_) => return refuse(PostError::QueueFull, buffer),
            None => return refuse(PostError::Unknown, buffer),
        };
        let unsignalled = ring.unsignalled;
        let signalled = asked || ring.must_signal();
        ring.unsignalled = if signalled { 0 } else { unsignalled + 1 };
        let data = data(buffer.is_some(), &pieces, inline);
        let id = ring.push(Entry { token, opcode, buffer });
        // SAFETY: the ring owns the buffer until its completion, or until it is dropped, which is after the queue pair was
        // destroyed (`drop`).
        let result =
            unsafe { self.raw.post_send_one(WorkRequest { id, operation, data, signalled, fence, solicited }) };
        let Err((0, error)) = result else { return Ok(()) };
        ring.unsignalled = unsignalled;
        let buffer = ring.take_back().and_then(|entry| entry.buffer);
        refuse(error, buffer)
    }

    /// Posts requests from the front, in few calls of the device, until one is refused; those that were posted are taken
    /// out. How many.
    ///
    /// # Errors
    /// Why the request that is now first was refused, if none before it was posted.
    pub fn post_sends(&self, requests: &mut VecDeque<SendRequest<'_, B>>) -> Result<usize, PostError> {
        in_chunks(requests, |requests| self.post_chunk(requests))
    }

    /// Posts up to a chunk of requests from the front, and takes those out; how many, and why not the next.
    fn post_chunk(&self, requests: &mut VecDeque<SendRequest<'_, B>>) -> (usize, Option<PostError>) {
        let mut pieces = [Pieces::NONE; CHUNK];
        let (mut error, mut count) = (None, 0);
        // Before the lock, as above.
        for (request, pieces) in requests.iter().zip(&mut pieces) {
            if let Err(refused) = self.check(&request.operation, &request.buffer, request.inline, pieces) {
                error = Some(refused);
                break;
            }
            count += 1;
        }
        let mut tables = self.send.completions.tables();
        let Some(ring) = tables.ring(self.send.id) else { return (0, Some(PostError::Unknown)) };
        let free = ring.free();
        if count > free {
            (error, count) = (Some(PostError::QueueFull), free);
        }
        let unsignalled = ring.unsignalled;
        let mut raw = [NOTHING; CHUNK];
        for ((request, pieces), raw) in requests.iter_mut().zip(&pieces).zip(&mut raw[..count]) {
            raw.operation = request.operation;
            (raw.fence, raw.solicited) = (request.fence, request.solicited);
            raw.signalled = request.signalled || ring.must_signal();
            ring.unsignalled = if raw.signalled { 0 } else { ring.unsignalled + 1 };
            raw.data = data(request.buffer.is_some(), pieces, request.inline);
            let (opcode, buffer) = (request.opcode(), request.buffer.take());
            raw.id = ring.push(Entry { token: request.token, opcode, buffer });
        }
        if count == 0 {
            return (0, error);
        }
        // SAFETY: as in `post_send`.
        let Err((accepted, refused)) = (unsafe { self.raw.post_send(&raw[..count]) }) else {
            requests.drain(..count);
            return (count, error);
        };
        for request in requests.range_mut(accepted..count).rev() {
            request.buffer = ring.take_back().and_then(|entry| entry.buffer);
        }
        ring.unsignalled = raw[..accepted].iter().fold(unsignalled, |so_far, request| match request.signalled {
            true => 0,
            false => so_far + 1,
        });
        requests.drain(..accepted);
        (accepted, Some(refused))
    }

    #[inline]
    fn check(
        &self,
        operation: &Operation,
        buffer: &Option<B>,
        inline: &[u8],
        pieces: &mut Pieces,
    ) -> Result<(), PostError> {
        if let Some(buffer) = buffer {
            let bytes = pieces.fill(buffer)?;
            return match operation {
                Operation::CompareSwap { .. } | Operation::FetchAdd { .. } if bytes != 8 => {
                    Err(PostError::AtomicLength(bytes))
                }
                _ => Ok(()),
            };
        }
        match operation {
            Operation::Send { .. } | Operation::Write { .. } if inline.len() <= self.inline_bytes_max => Ok(()),
            Operation::Send { .. } | Operation::Write { .. } => {
                Err(PostError::InlineTooLong { bytes: inline.len(), limit: self.inline_bytes_max })
            }
            _ => Err(PostError::InlineResult),
        }
    }

    /// Posts a receive request.
    ///
    /// # Errors
    /// [`Refused`], with the request.
    #[inline]
    pub fn post_receive(&self, request: Receive<B>) -> Result<(), Refused<Receive<B>>> {
        let Some(receive) = &self.receive else {
            return Err(Refused { error: PostError::UsesSharedReceiveQueue, request });
        };
        let mut pieces = Pieces::NONE;
        if let Err(error) = pieces.fill(&request.buffer) {
            return Err(Refused { error, request });
        }
        let mut tables = receive.completions.tables();
        let ring = match tables.ring(receive.id) {
            None => return Err(Refused { error: PostError::Unknown, request }),
            Some(ring) if ring.is_full() => return Err(Refused { error: PostError::QueueFull, request }),
            Some(ring) => ring,
        };
        let id = ring.push(Entry::receive(request));
        // SAFETY: as in `post_send`.
        let result = unsafe { self.raw.post_receive(&[ReceiveRequest { id, pieces: pieces.as_slice() }]) };
        let Err((0, error)) = result else { return Ok(()) };
        Err(Refused { error, request: ring.take_back_receive() })
    }

    /// Posts receive requests from the front, in few calls of the device, until one is refused; those that were posted are
    /// taken out. How many.
    ///
    /// # Errors
    /// Why the request that is now first was refused, if none before it was posted.
    pub fn post_receives(&self, requests: &mut VecDeque<Receive<B>>) -> Result<usize, PostError> {
        let Some(receive) = &self.receive else {
            return if requests.is_empty() { Ok(0) } else { Err(PostError::UsesSharedReceiveQueue) };
        };
        in_chunks(requests, |requests| {
            let mut pieces = [Pieces::NONE; CHUNK];
            let (mut count, mut error) = pieces_of(requests, &mut pieces);
            let mut tables = receive.completions.tables();
            let Some(ring) = tables.ring(receive.id) else { return (0, Some(PostError::Unknown)) };
            let free = ring.free();
            if count > free {
                (error, count) = (Some(PostError::QueueFull), free);
            }
            let mut raw = [ReceiveRequest { id: 0, pieces: &[] }; CHUNK];
            for ((request, pieces), raw) in requests.drain(..count).zip(&pieces).zip(&mut raw) {
                *raw = ReceiveRequest { id: ring.push(Entry::receive(request)), pieces: pieces.as_slice() };
            }
            if count == 0 {
                return (0, error);
            }
            // SAFETY: as in `post_send`.
            let Err((accepted, refused)) = (unsafe { self.raw.post_receive(&raw[..count]) }) else {
                return (count, error);
            };
            (accepted..count).for_each(|_| requests.push_front(ring.take_back_receive()));
            (accepted, Some(refused))
        })
    }

    /// The completion queue of its receive requests.
    pub fn receive_completions(&self) -> &CompletionQueue<B> {
        &self.receive_completions
    }
}

/// What it took out of a shared queue comes back as flushed; nobody else would know it any more.
fn flush_shared<B: Registered>(pair: &RawQueuePair, shared: bool, receive_completions: &CompletionQueue<B>) {
    if !shared || pair.to_error().is_err() {
        return;
    }
    // A device flushes in its own time: a few microseconds. One that does not is not waited for.
    for _ in 0..FLUSH_TRIES {
        let collected = receive_completions.shared.collect();
        if collected > 0 || matches!(pair, RawQueuePair::Soft(_)) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
}

impl<B: Registered> Drop for QueuePair<B> {
    fn drop(&mut self) {
        // Until it is known to have let go, also should something panic, the device may use what the requests own.
        let shared = ManuallyDrop::new(self.shared.clone());
        let mut rings = [Some(&mut self.send.leaked), self.receive.as_mut().map(|ring| &mut ring.leaked)];
        rings.iter_mut().flatten().for_each(|leaked| **leaked = true);
        flush_shared(&self.raw, self.shared.is_some(), &self.receive_completions);
        // SAFETY: taken once, here.
        if unsafe { ManuallyDrop::take(&mut self.raw) }.destroy() {
            rings.into_iter().flatten().for_each(|leaked| *leaked = false);
            drop(ManuallyDrop::into_inner(shared));
        }
    }
}

impl<B: Registered> fmt::Debug for QueuePair<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QueuePair({:#08x})", self.number().0)
    }
}
