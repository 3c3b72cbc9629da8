//! Work requests, and why one is refused.

use thiserror::Error;

use super::MemoryKey;

/// The most entries of a gather or scatter list.
pub const SGE_MAX: usize = 4;
/// The largest message, in bytes (IBA 9.7.6: 2^31).
pub const MESSAGE_BYTES_MAX: u64 = 1 << 31;

/// A piece of registered memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Sge {
    /// Address, counted from the start that the region was registered with.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// Key of the region.
    pub key: MemoryKey,
}

/// What a work request of the send queue does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Sends the data into the peer's next receive request.
    Send {
        /// Delivered with the peer's completion (host order here, big endian on the wire).
        immediate: Option<u32>,
    },
    /// Writes the data into the peer's memory.
    Write {
        /// Address in the peer's region.
        remote_address: u64,
        /// The peer's key.
        remote_key: MemoryKey,
        /// If given, completes one of the peer's receive requests and is delivered with it.
        immediate: Option<u32>,
    },
    /// Reads the peer's memory into the data's pieces.
    Read {
        /// Address in the peer's region.
        remote_address: u64,
        /// The peer's key.
        remote_key: MemoryKey,
    },
    /// Writes `swap` if the peer's eight bytes equal `compare`; the data (eight bytes) gets what was there.
    CompareSwap {
        /// Address in the peer's region, a multiple of eight.
        remote_address: u64,
        /// The peer's key.
        remote_key: MemoryKey,
        /// The value to compare with.
        compare: u64,
        /// The value to write.
        swap: u64,
    },
    /// Adds to the peer's eight bytes; the data (eight bytes) gets what was there.
    FetchAdd {
        /// Address in the peer's region, a multiple of eight.
        remote_address: u64,
        /// The peer's key.
        remote_key: MemoryKey,
        /// The value to add, wrapping.
        add: u64,
    },
}

/// Where a work request finds its bytes, or puts them.
#[derive(Debug, Clone, Copy)]
pub enum Data<'a> {
    /// Registered memory, at most [`SGE_MAX`] pieces; not to be touched until the completion.
    Pieces(&'a [Sge]),
    /// Copied when posted (`IBV_SEND_INLINE`); SEND and WRITE only.
    Inline(&'a [u8]),
}

/// A work request of the send queue.
#[derive(Debug, Clone, Copy)]
pub struct WorkRequest<'a> {
    /// Comes back in the completion.
    pub id: u64,
    /// What to do.
    pub operation: Operation,
    /// With which bytes.
    pub data: Data<'a>,
    /// Whether success makes a completion. Failure always does. (IBA 10.7.3.1)
    pub signalled: bool,
    /// Whether to wait for all earlier READs and atomics of the queue pair (`IBV_SEND_FENCE`).
    pub fence: bool,
    /// Sets the solicited-event bit of the last packet.
    pub solicited: bool,
}

/// A receive request.
#[derive(Debug, Clone, Copy)]
pub struct ReceiveRequest<'a> {
    /// Comes back in the completion.
    pub id: u64,
    /// Where to put the message, in order; at most [`SGE_MAX`].
    pub pieces: &'a [Sge],
}

/// Why a request is not accepted. Nothing has changed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PostError {
    /// No such queue pair or shared receive queue.
    #[error("no such queue pair or shared receive queue")]
    Unknown,
    /// The state does not allow posting.
    #[error("the queue pair is not in a state that accepts this request (send: RTS, receive: INIT or later)")]
    State,
    /// All slots are taken by requests that are not done.
    #[error("the queue is full: wait for completions")]
    QueueFull,
    /// Every posted request holds room for its completion, and there is none left.
    #[error("the completion queue has no room left for this request: poll it, or make it larger")]
    CompletionQueueFull,
    /// More pieces than the list holds.
    #[error("{0} pieces; {SGE_MAX} is the limit")]
    TooManyPieces(usize),
    /// More inline bytes than the queue pair was created with.
    #[error("{bytes} inline bytes; the queue pair was created for {limit}")]
    InlineTooLong {
        /// Bytes asked for.
        bytes: usize,
        /// What the queue pair was created for.
        limit: usize,
    },
    /// Inline data with an operation that receives.
    #[error("READ and atomics put data into memory: inline data cannot be")]
    InlineResult,
    /// Longer than a message may be.
    #[error("{0} bytes; a message has at most 2^31")]
    MessageTooLong(u64),
    /// An atomic whose data is not eight bytes.
    #[error("{0} bytes for the result of an atomic, which has 8")]
    AtomicLength(u64),
    /// READ or atomic on a queue pair with `max_rd_atomic` 0.
    #[error("READ and atomics are not enabled: max_rd_atomic is 0")]
    ReadAtomicDisabled,
    /// The queue pair takes its receive requests from a shared receive queue.
    #[error("the queue pair uses a shared receive queue: post there")]
    UsesSharedReceiveQueue,
    /// The device refused it.
    #[error("the device refused the request: {}", std::io::Error::from_raw_os_error(*.0))]
    Os(i32),
}
