//! Names, rights and states.

/// Names a queue pair: its number, 24 bits, as the peer writes it into packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueuePairNumber(pub u32);

/// Names a memory region, for local use (lkey) and for the peer (rkey): one number serves both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct MemoryKey(pub u32);

/// Rights on a memory region, or on a queue pair for its peer. The bits are those of `IBV_ACCESS_*`. Local
/// reads are always allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Access(pub u32);

impl Access {
    /// Local reads only.
    pub const NONE: Access = Access(0);
    /// Received data, READ results and atomic results may be written here.
    pub const LOCAL_WRITE: Access = Access(1);
    /// The peer may WRITE.
    pub const REMOTE_WRITE: Access = Access(2);
    /// The peer may READ.
    pub const REMOTE_READ: Access = Access(4);
    /// The peer may do atomic operations.
    pub const REMOTE_ATOMIC: Access = Access(8);
    /// Everything above.
    pub const ALL: Access = Access(15);

    /// Whether all of `needed` is included.
    pub const fn allows(self, needed: Access) -> bool {
        self.0 & needed.0 == needed.0
    }
}

impl std::ops::BitOr for Access {
    type Output = Access;
    fn bitor(self, other: Access) -> Access {
        Access(self.0 | other.0)
    }
}

/// Path MTU: the payload of all but the last packet of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mtu {
    /// 256 bytes.
    Bytes256,
    /// 512 bytes.
    Bytes512,
    /// 1,024 bytes.
    Bytes1024,
    /// 2,048 bytes.
    Bytes2048,
    /// 4,096 bytes.
    Bytes4096,
}

impl Mtu {
    /// All of them, ascending.
    pub const ALL: [Mtu; 5] = [Mtu::Bytes256, Mtu::Bytes512, Mtu::Bytes1024, Mtu::Bytes2048, Mtu::Bytes4096];

    /// In bytes.
    pub const fn bytes(self) -> u32 {
        256 << self as u32
    }

    /// The largest whose packets (headers included, IP and UDP not) fit into `datagram_bytes`.
    pub fn fitting(datagram_bytes: usize) -> Option<Mtu> {
        Mtu::ALL.into_iter().rev().find(|mtu| mtu.bytes() as usize + 36 <= datagram_bytes)
    }
}

/// States of a queue pair (IBA 10.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QueuePairState {
    /// Created; nothing works.
    Reset,
    /// Receive requests can be posted.
    Init,
    /// Ready to receive: the peer's requests are answered.
    ReadyToReceive,
    /// Ready to send.
    ReadyToSend,
    /// Draining the send queue: what is begun is finished, nothing new begins.
    SendQueueDrain,
    /// An error: everything outstanding is flushed.
    Error,
}
