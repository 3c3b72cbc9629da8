//! Work requests that own their memory, as a program makes them.

use std::collections::VecDeque;

use thiserror::Error as ThisError;

use crate::Error;
use crate::connect::RemoteMemory;
use crate::memory::{Buffer, Registered};
use crate::verbs::{MESSAGE_BYTES_MAX, MemoryKey, Operation, PostError, SGE_MAX, Sge, WcOpcode};

/// Requests given to the provider at a time.
pub(crate) const CHUNK: usize = 16;

/// A request of the send queue. Signalled unless told otherwise.
#[derive(Debug)]
pub struct SendRequest<'a, B = Buffer> {
    pub(crate) token: u64,
    pub(crate) operation: Operation,
    /// Where it finds its bytes, or puts them; without one they are in `inline`. Two fields and not an enum: then a buffer
    /// is moved as one piece from here to the completion.
    pub(crate) buffer: Option<B>,
    pub(crate) inline: &'a [u8],
    pub(crate) signalled: bool,
    pub(crate) fence: bool,
    pub(crate) solicited: bool,
}

impl<'a, B: Registered> SendRequest<'a, B> {
    #[inline]
    fn new(operation: Operation, buffer: Option<B>, inline: &'a [u8]) -> Self {
        SendRequest { token: 0, operation, buffer, inline, signalled: true, fence: false, solicited: false }
    }

    /// Sends the buffer into the peer's next receive request.
    #[inline]
    pub fn send(buffer: B) -> Self {
        Self::new(Operation::Send { immediate: None }, Some(buffer), &[])
    }

    /// Sends bytes that are copied when posted.
    #[inline]
    pub fn send_inline(bytes: &'a [u8]) -> Self {
        Self::new(Operation::Send { immediate: None }, None, bytes)
    }

    /// Writes the buffer into the peer's memory, at its start (see [`RemoteMemory::part`]).
    #[inline]
    pub fn write(buffer: B, to: RemoteMemory) -> Self {
        Self::new(Self::write_operation(to), Some(buffer), &[])
    }

    /// Writes bytes that are copied when posted.
    #[inline]
    pub fn write_inline(bytes: &'a [u8], to: RemoteMemory) -> Self {
        Self::new(Self::write_operation(to), None, bytes)
    }

    #[inline]
    fn write_operation(to: RemoteMemory) -> Operation {
        Operation::Write { remote_address: to.address, remote_key: to.key, immediate: None }
    }

    /// Reads the peer's memory, from its start, until the buffer is full.
    #[inline]
    pub fn read(buffer: B, from: RemoteMemory) -> Self {
        Self::new(Operation::Read { remote_address: from.address, remote_key: from.key }, Some(buffer), &[])
    }

    /// Writes `swap` into the peer's first eight bytes if they equal `compare`; the buffer, of eight bytes, gets what was
    /// there.
    #[inline]
    pub fn compare_swap(buffer: B, at: RemoteMemory, compare: u64, swap: u64) -> Self {
        let operation = Operation::CompareSwap { remote_address: at.address, remote_key: at.key, compare, swap };
        Self::new(operation, Some(buffer), &[])
    }

    /// Adds to the peer's first eight bytes; the buffer, of eight bytes, gets what was there.
    #[inline]
    pub fn fetch_add(buffer: B, at: RemoteMemory, add: u64) -> Self {
        let operation = Operation::FetchAdd { remote_address: at.address, remote_key: at.key, add };
        Self::new(operation, Some(buffer), &[])
    }

    /// Comes back in the completion.
    #[inline]
    pub fn token(mut self, token: u64) -> Self {
        self.token = token;
        self
    }

    /// Immediate data: completes a receive request of the peer's, and is delivered with it. For SEND and WRITE.
    #[inline]
    pub fn immediate(mut self, data: u32) -> Self {
        if let Operation::Send { immediate } | Operation::Write { immediate, .. } = &mut self.operation {
            *immediate = Some(data);
        }
        self
    }

    /// Without a completion of its own: it is handed out with the next signalled one. (Half a queue of such requests is
    /// the most; then one is signalled all the same.)
    #[inline]
    pub fn unsignalled(mut self) -> Self {
        self.signalled = false;
        self
    }

    /// Waits for earlier READs and atomics.
    #[inline]
    pub fn fence(mut self) -> Self {
        self.fence = true;
        self
    }

    /// Sets the solicited-event bit.
    #[inline]
    pub fn solicited(mut self) -> Self {
        self.solicited = true;
        self
    }

    /// What it would own; nothing for inline data. For a request that was refused.
    pub fn into_buffer(self) -> Option<B> {
        self.buffer
    }

    #[inline]
    pub(crate) fn opcode(&self) -> WcOpcode {
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
    pub(crate) token: u64,
    pub(crate) buffer: B,
}

impl<B: Registered> Receive<B> {
    /// Takes the next message into the buffer.
    #[inline]
    pub fn new(buffer: B) -> Self {
        Receive { token: 0, buffer }
    }

    /// Comes back in the completion.
    #[inline]
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

/// The pieces of one request.
#[derive(Clone, Copy)]
pub(crate) struct Pieces {
    entries: [Sge; SGE_MAX],
    count: usize,
}

impl Pieces {
    pub(crate) const NONE: Pieces =
        Pieces { entries: [Sge { address: 0, length: 0, key: MemoryKey(0) }; SGE_MAX], count: 0 };

    /// Puts a buffer's pieces in; how many bytes they have.
    #[inline]
    pub(crate) fn fill(&mut self, buffer: &impl Registered) -> Result<u64, PostError> {
        let (mut count, mut bytes) = (0, 0u64);
        buffer.pieces(&mut |piece| {
            // Some devices take a length of 0 for 2^31.
            if piece.length == 0 {
                return;
            }
            if let Some(place) = self.entries.get_mut(count) {
                *place = piece;
            }
            count += 1;
            bytes += piece.length as u64;
        });
        if count > SGE_MAX {
            return Err(PostError::TooManyPieces(count));
        }
        if bytes > MESSAGE_BYTES_MAX {
            return Err(PostError::MessageTooLong(bytes));
        }
        self.count = count;
        Ok(bytes)
    }

    #[inline]
    pub(crate) fn as_slice(&self) -> &[Sge] {
        &self.entries[..self.count]
    }
}

/// The pieces of the first requests, up to one whose pieces cannot be: how many, and what is wrong with that one.
pub(crate) fn pieces_of<B: Registered>(
    requests: &VecDeque<Receive<B>>,
    pieces: &mut [Pieces; CHUNK],
) -> (usize, Option<PostError>) {
    let mut count = 0;
    for (request, pieces) in requests.iter().zip(pieces) {
        if let Err(error) = pieces.fill(&request.buffer) {
            return (count, Some(error));
        }
        count += 1;
    }
    (count, None)
}

/// Posts requests chunk by chunk until one is refused. `post` takes those that it posted out of the front; it tells how
/// many, and why not the next.
#[inline]
pub(crate) fn in_chunks<R>(
    requests: &mut VecDeque<R>,
    mut post: impl FnMut(&mut VecDeque<R>) -> (usize, Option<PostError>),
) -> Result<usize, PostError> {
    let mut posted = 0;
    while !requests.is_empty() {
        let (count, error) = post(requests);
        posted += count;
        match error {
            None => {}
            Some(error) if posted == 0 => return Err(error),
            Some(_) => break,
        }
    }
    Ok(posted)
}
