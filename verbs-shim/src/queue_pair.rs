//! Queue pairs and shared receive queues: posting work requests that own their memory.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use thiserror::Error as ThisError;

use crate::Error;
use crate::completion::{CompletionQueue, Entry, RingId, Shared, SharedTable};
use crate::connect::{ConnectOptions, Endpoint, QueuePairOptions, RemoteMemory};
use crate::memory::{Buffer, Registered};
use crate::provider::{RawDomain, RawQueuePair, RawSharedReceiveQueue};
use crate::verbs::{
    Data, MESSAGE_BYTES_MAX, MemoryKey, Operation, PostError, QueuePairNumber, QueuePairState, ReceiveRequest, SGE_MAX,
    Sge, WcOpcode, WorkRequest,
};

/// Looks at a completion queue for flushed receive requests, a tenth of a millisecond apart.
const FLUSH_TRIES: usize = 10;
/// Requests given to the provider at a time.
const CHUNK: usize = 16;

/// Where a request of the send queue finds its bytes, or puts them.
#[derive(Debug)]
enum Payload<'a, B> {
    Owned(B),
    Inline(&'a [u8]),
}

/// A request of the send queue. Signalled unless told otherwise.
#[derive(Debug)]
pub struct SendRequest<'a, B = Buffer> {
    token: u64,
    operation: Operation,
    payload: Payload<'a, B>,
    signalled: bool,
    fence: bool,
    solicited: bool,
}

impl<'a, B: Registered> SendRequest<'a, B> {
    fn new(operation: Operation, payload: Payload<'a, B>) -> Self {
        SendRequest { token: 0, operation, payload, signalled: true, fence: false, solicited: false }
    }

    /// Sends the buffer into the peer's next receive request.
    pub fn send(buffer: B) -> Self {
        Self::new(Operation::Send { immediate: None }, Payload::Owned(buffer))
    }

    /// Sends bytes that are copied when posted.
    pub fn send_inline(bytes: &'a [u8]) -> Self {
        Self::new(Operation::Send { immediate: None }, Payload::Inline(bytes))
    }

    /// Writes the buffer into the peer's memory, at its start (see [`RemoteMemory::part`]).
    pub fn write(buffer: B, to: RemoteMemory) -> Self {
        Self::new(Self::write_operation(to), Payload::Owned(buffer))
    }

    /// Writes bytes that are copied when posted.
    pub fn write_inline(bytes: &'a [u8], to: RemoteMemory) -> Self {
        Self::new(Self::write_operation(to), Payload::Inline(bytes))
    }

    fn write_operation(to: RemoteMemory) -> Operation {
        Operation::Write { remote_address: to.address, remote_key: to.key, immediate: None }
    }

    /// Reads the peer's memory, from its start, until the buffer is full.
    pub fn read(buffer: B, from: RemoteMemory) -> Self {
        Self::new(Operation::Read { remote_address: from.address, remote_key: from.key }, Payload::Owned(buffer))
    }

    /// Writes `swap` into the peer's first eight bytes if they equal `compare`; the buffer, of eight bytes, gets what was
    /// there.
    pub fn compare_swap(buffer: B, at: RemoteMemory, compare: u64, swap: u64) -> Self {
        let operation = Operation::CompareSwap { remote_address: at.address, remote_key: at.key, compare, swap };
        Self::new(operation, Payload::Owned(buffer))
    }

    /// Adds to the peer's first eight bytes; the buffer, of eight bytes, gets what was there.
    pub fn fetch_add(buffer: B, at: RemoteMemory, add: u64) -> Self {
        let operation = Operation::FetchAdd { remote_address: at.address, remote_key: at.key, add };
        Self::new(operation, Payload::Owned(buffer))
    }

    /// Comes back in the completion.
    pub fn token(mut self, token: u64) -> Self {
        self.token = token;
        self
    }

    /// Immediate data: completes a receive request of the peer's, and is delivered with it. For SEND and WRITE.
    pub fn immediate(mut self, data: u32) -> Self {
        if let Operation::Send { immediate } | Operation::Write { immediate, .. } = &mut self.operation {
            *immediate = Some(data);
        }
        self
    }

    /// Without a completion of its own: it is handed out with the next signalled one. (Half a queue of such requests is
    /// the most; then one is signalled all the same.)
    pub fn unsignalled(mut self) -> Self {
        self.signalled = false;
        self
    }

    /// Waits for earlier READs and atomics.
    pub fn fence(mut self) -> Self {
        self.fence = true;
        self
    }

    /// Sets the solicited-event bit.
    pub fn solicited(mut self) -> Self {
        self.solicited = true;
        self
    }

    /// What it would own; nothing for inline data. For a request that was refused.
    pub fn into_buffer(self) -> Option<B> {
        match self.payload {
            Payload::Owned(buffer) => Some(buffer),
            Payload::Inline(_) => None,
        }
    }

    fn opcode(&self) -> WcOpcode {
        match self.operation {
            Operation::Send { .. } => WcOpcode::Send,
            Operation::Write { .. } => WcOpcode::RdmaWrite,
            Operation::Read { .. } => WcOpcode::RdmaRead,
            Operation::CompareSwap { .. } => WcOpcode::CompSwap,
            Operation::FetchAdd { .. } => WcOpcode::FetchAdd,
        }
    }
}

/// A receive request.
#[derive(Debug)]
pub struct Receive<B = Buffer> {
    token: u64,
    buffer: B,
}

impl<B: Registered> Receive<B> {
    /// Takes the next message into the buffer.
    pub fn new(buffer: B) -> Self {
        Receive { token: 0, buffer }
    }

    /// Comes back in the completion.
    pub fn token(mut self, token: u64) -> Self {
        self.token = token;
        self
    }
}

/// A request that was not posted, and why.
#[derive(Debug, ThisError)]
#[error("{error}")]
pub struct Refused<R> {
    /// Why.
    pub error: PostError,
    /// The request, with its buffer.
    pub request: R,
}

impl<R> From<Refused<R>> for Error {
    fn from(refused: Refused<R>) -> Self {
        refused.error.into()
    }
}

/// Fills the places of a chunk that are not used.
const NOTHING: WorkRequest<'static> = WorkRequest {
    id: 0,
    operation: Operation::Send { immediate: None },
    data: Data::Pieces(&[]),
    signalled: true,
    fence: false,
    solicited: false,
};

/// The pieces of one request.
#[derive(Clone, Copy)]
struct Pieces {
    entries: [Sge; SGE_MAX],
    count: usize,
}

impl Pieces {
    const NONE: Pieces = Pieces { entries: [Sge { address: 0, length: 0, key: MemoryKey(0) }; SGE_MAX], count: 0 };

    fn of(buffer: &impl Registered) -> Result<Self, PostError> {
        let mut pieces = Pieces::NONE;
        let mut bytes = 0u64;
        buffer.pieces(&mut |piece| {
            // Some devices take a length of 0 for 2^31.
            if piece.length == 0 {
                return;
            }
            if let Some(place) = pieces.entries.get_mut(pieces.count) {
                *place = piece;
            }
            pieces.count += 1;
            bytes += piece.length as u64;
        });
        if pieces.count > SGE_MAX {
            return Err(PostError::TooManyPieces(pieces.count));
        }
        if bytes > MESSAGE_BYTES_MAX {
            return Err(PostError::MessageTooLong(bytes));
        }
        Ok(pieces)
    }

    fn as_slice(&self) -> &[Sge] {
        &self.entries[..self.count]
    }
}

/// A reliable connection's end. `B` is what its work requests own. Dropping it destroys it and frees what outstanding
/// requests own; to get that back, go [to error](Self::to_error) and poll first.
pub struct QueuePair<B: Registered = Buffer> {
    // First: the device forgets the queue pair before the memory of its requests goes.
    raw: RawQueuePair,
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
}

impl<B> Ring<B> {
    fn new(completions: &Arc<Shared<B>>, depth: u32) -> Result<Self, Error> {
        Ok(Ring { id: completions.tables().add_ring(depth)?, completions: completions.clone() })
    }
}

impl<B> Drop for Ring<B> {
    fn drop(&mut self) {
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
        let raw_shared = shared.map(|queue| &queue.hold.raw);
        let raw = domain.create_queue_pair(&send.shared.raw, &receive.shared.raw, raw_shared, options)?;
        raw.to_init(options.access)?;
        let inline_bytes_max = raw.inline_bytes_max(options) as usize;
        if let Some(shared) = shared {
            receive.shared.tables().add_shared(&shared.hold.table);
        }
        Ok(QueuePair {
            raw,
            send: Ring::new(&send.shared, options.send_depth)?,
            receive: shared.is_none().then(|| Ring::new(&receive.shared, options.receive_depth)).transpose()?,
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
        let mut one = [Some(request)];
        match self.post_chunk(&mut one) {
            (1.., _) | (_, None) => Ok(()),
            (0, Some(error)) => {
                let [request] = one;
                match request {
                    Some(request) => Err(Refused { error, request }),
                    None => unreachable!("a refused request stays"),
                }
            }
        }
    }

    /// Posts requests from the front, in few calls of the device, until one is refused; those that were posted are taken
    /// out. How many.
    ///
    /// # Errors
    /// Why the request that is now first was refused, if none before it was posted.
    pub fn post_sends(&self, requests: &mut VecDeque<SendRequest<'_, B>>) -> Result<usize, PostError> {
        let mut posted = 0;
        loop {
            let mut chunk: [Option<SendRequest<'_, B>>; CHUNK] = [const { None }; CHUNK];
            let mut filled = 0;
            while filled < CHUNK
                && let Some(request) = requests.pop_front()
            {
                chunk[filled] = Some(request);
                filled += 1;
            }
            if filled == 0 {
                return Ok(posted);
            }
            let (count, error) = self.post_chunk(&mut chunk);
            posted += count;
            chunk[..filled].iter_mut().rev().filter_map(Option::take).for_each(|request| requests.push_front(request));
            match error {
                None => {}
                Some(error) if posted == 0 => return Err(error),
                Some(_) => return Ok(posted),
            }
        }
    }

    /// Posts a chunk, which ends with the first `None`; how many of it, and why not the next. What is posted is taken
    /// out, the others stay.
    #[inline]
    fn post_chunk<const N: usize>(&self, chunk: &mut [Option<SendRequest<'_, B>>; N]) -> (usize, Option<PostError>) {
        let mut pieces = [Pieces::NONE; N];
        // Identifier, whether it is signalled, and how many before it were not.
        let mut identifiers = [(0u64, false, 0u32); N];
        let mut error = None;
        let mut checked = 0;
        // Before the lock: it calls the program's own `Registered::pieces`.
        for request in chunk.iter().map_while(Option::as_ref) {
            match self.check(request) {
                Ok(found) => pieces[checked] = found,
                Err(refused) => {
                    error = Some(refused);
                    break;
                }
            }
            checked += 1;
        }
        let mut count = 0;
        let mut tables = self.send.completions.tables();
        for request in chunk[..checked].iter_mut().flatten() {
            let Some((ring, identifier)) = tables.ring(self.send.id) else {
                error = Some(PostError::Unknown);
                break;
            };
            if ring.is_full() {
                error = Some(PostError::QueueFull);
                break;
            }
            let signalled = request.signalled || ring.must_signal();
            identifiers[count] = (identifier, signalled, ring.unsignalled);
            ring.unsignalled = if signalled { 0 } else { ring.unsignalled + 1 };
            let (token, opcode) = (request.token, request.opcode());
            let buffer = match std::mem::replace(&mut request.payload, Payload::Inline(&[])) {
                Payload::Owned(buffer) => Some(buffer),
                Payload::Inline(bytes) => {
                    request.payload = Payload::Inline(bytes);
                    None
                }
            };
            ring.push(Entry { token, opcode, buffer });
            count += 1;
        }
        if count == 0 {
            return (0, error);
        }
        let raw: [WorkRequest<'_>; N] = std::array::from_fn(|index| match &chunk[index] {
            Some(request) if index < count => {
                let (id, signalled, _) = identifiers[index];
                let (operation, fence, solicited) = (request.operation, request.fence, request.solicited);
                let data = match request.payload {
                    Payload::Inline(bytes) if pieces[index].count == 0 && !bytes.is_empty() => Data::Inline(bytes),
                    _ => Data::Pieces(pieces[index].as_slice()),
                };
                WorkRequest { id, operation, data, signalled, fence, solicited }
            }
            _ => NOTHING,
        });
        // SAFETY: the ring owns the buffers until their completions, or until it is dropped, which is after the queue
        // pair is (field order).
        let result = unsafe { self.raw.post_send(&raw[..count]) };
        let accepted = match result {
            Ok(()) => count,
            Err((accepted, refused)) => {
                error = Some(refused);
                accepted
            }
        };
        for index in (accepted..count).rev() {
            let Some((ring, _)) = tables.ring(self.send.id) else { break };
            let Some(entry) = ring.take_back() else { break };
            ring.unsignalled = identifiers[index].2;
            if let (Some(buffer), Some(request)) = (entry.buffer, &mut chunk[index]) {
                request.payload = Payload::Owned(buffer);
            }
        }
        drop(tables);
        chunk[..accepted].iter_mut().for_each(|request| *request = None);
        (accepted, error)
    }

    #[inline]
    fn check(&self, request: &SendRequest<'_, B>) -> Result<Pieces, PostError> {
        let receives = !matches!(request.operation, Operation::Send { .. } | Operation::Write { .. });
        match &request.payload {
            Payload::Inline(_) if receives => Err(PostError::InlineResult),
            Payload::Inline(bytes) if bytes.len() > self.inline_bytes_max => {
                Err(PostError::InlineTooLong { bytes: bytes.len(), limit: self.inline_bytes_max })
            }
            Payload::Inline(_) => Ok(Pieces::NONE),
            Payload::Owned(buffer) => {
                let pieces = Pieces::of(buffer)?;
                if matches!(request.operation, Operation::CompareSwap { .. } | Operation::FetchAdd { .. }) {
                    let bytes: u64 = pieces.as_slice().iter().map(|piece| piece.length as u64).sum();
                    if bytes != 8 {
                        return Err(PostError::AtomicLength(bytes));
                    }
                }
                Ok(pieces)
            }
        }
    }

    /// Posts a receive request.
    ///
    /// # Errors
    /// [`Refused`], with the request.
    pub fn post_receive(&self, request: Receive<B>) -> Result<(), Refused<Receive<B>>> {
        let refuse = |error, request| Err(Refused { error, request });
        let Some(receive) = &self.receive else { return refuse(PostError::UsesSharedReceiveQueue, request) };
        let pieces = match Pieces::of(&request.buffer) {
            Ok(pieces) => pieces,
            Err(error) => return refuse(error, request),
        };
        let mut tables = receive.completions.tables();
        let Some((ring, id)) = tables.ring(receive.id) else { return refuse(PostError::Unknown, request) };
        if ring.is_full() {
            return refuse(PostError::QueueFull, request);
        }
        ring.push(Entry { token: request.token, opcode: WcOpcode::Recv, buffer: Some(request.buffer) });
        // SAFETY: as in `post_chunk`.
        let result = unsafe { self.raw.post_receive(&[ReceiveRequest { id, pieces: pieces.as_slice() }]) };
        let Err((_, error)) = result else { return Ok(()) };
        let entry = tables.ring(receive.id).and_then(|(ring, _)| ring.take_back());
        match entry {
            Some(Entry { token, buffer: Some(buffer), .. }) => refuse(error, Receive { token, buffer }),
            _ => unreachable!("pushed above, under the same lock"),
        }
    }

    /// The completion queue of its receive requests.
    pub fn receive_completions(&self) -> &CompletionQueue<B> {
        &self.receive_completions
    }
}

impl<B: Registered> Drop for QueuePair<B> {
    fn drop(&mut self) {
        // What it took out of a shared queue comes back as flushed; nobody else would know it any more.
        if self.shared.is_none() || self.raw.to_error().is_err() {
            return;
        }
        // A device flushes in its own time: a few microseconds. One that does not is not waited for.
        for _ in 0..FLUSH_TRIES {
            let collected = self.receive_completions.shared.collect();
            if collected > 0 || matches!(self.raw, RawQueuePair::Soft(_)) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
    }
}

impl<B: Registered> fmt::Debug for QueuePair<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QueuePair({:#08x})", self.number().0)
    }
}

struct SharedHold<B> {
    // First, as in `QueuePair`.
    raw: RawSharedReceiveQueue,
    table: Arc<SharedTable<B>>,
}

/// A receive queue that several queue pairs take from. Cheap to clone.
pub struct SharedReceiveQueue<B = Buffer> {
    hold: Arc<SharedHold<B>>,
}

impl<B: Registered> SharedReceiveQueue<B> {
    pub(crate) fn new(raw: RawSharedReceiveQueue, depth: u32) -> Self {
        SharedReceiveQueue { hold: Arc::new(SharedHold { raw, table: SharedTable::new(depth) }) }
    }

    /// Posts a receive request; it completes on the completion queue of whichever queue pair takes it.
    ///
    /// # Errors
    /// [`Refused`], with the request.
    pub fn post_receive(&self, request: Receive<B>) -> Result<(), Refused<Receive<B>>> {
        let pieces = match Pieces::of(&request.buffer) {
            Ok(pieces) => pieces,
            Err(error) => return Err(Refused { error, request }),
        };
        let entry = Entry { token: request.token, opcode: WcOpcode::Recv, buffer: Some(request.buffer) };
        let back = |error, entry: Entry<B>| match entry.buffer {
            Some(buffer) => Err(Refused { error, request: Receive { token: entry.token, buffer } }),
            None => unreachable!("receive requests own a buffer"),
        };
        let id = match self.hold.table.put(entry) {
            Ok(id) => id,
            Err(entry) => return back(PostError::QueueFull, entry),
        };
        // SAFETY: the table owns the buffer until its completion, or until it is dropped, after the queue.
        let result = unsafe { self.hold.raw.post_receive(&[ReceiveRequest { id, pieces: pieces.as_slice() }]) };
        match (result, id as u32) {
            (Ok(()), _) => Ok(()),
            (Err((_, error)), index) => match self.hold.table.take(index) {
                Some(entry) => back(error, entry),
                None => unreachable!("put in above; it was never posted"),
            },
        }
    }
}

impl<B> Clone for SharedReceiveQueue<B> {
    fn clone(&self) -> Self {
        SharedReceiveQueue { hold: self.hold.clone() }
    }
}

impl<B> fmt::Debug for SharedReceiveQueue<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedReceiveQueue").finish_non_exhaustive()
    }
}
