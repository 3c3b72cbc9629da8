//! What engines and queue pairs are created and connected with, and the specification's timer tables.

use std::net::SocketAddr;

use thiserror::Error;

use super::memory::ProtectionDomain;
use super::{CompletionQueueId, SharedReceiveQueueId};
use crate::soft::icrc::Ipv4Fields;
use crate::soft::packet::DEFAULT_PARTITION_KEY;
use crate::verbs::{Mtu, QueuePairNumber, QueuePairState};

/// Bytes that a packet's headers and ICRC are counted with against a window (the largest is 44, an atomic).
pub const HEADER_CHARGE_BYTES: u64 = 48;

/// Limits of an engine. Everything is allocated within them; nothing grows per operation.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Queue pairs, at most 65,536.
    pub queue_pairs_max: usize,
    /// Memory regions, at most 1,048,576.
    pub regions_max: usize,
    /// Completion queues.
    pub completion_queues_max: usize,
    /// Shared receive queues.
    pub shared_receive_queues_max: usize,
    /// Partition key of all queue pairs.
    pub partition_key: u16,
    /// Where keys and queue pair numbers are drawn from. Take it from the operating system's random source.
    pub seed: u64,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            queue_pairs_max: 1024,
            regions_max: 4096,
            completion_queues_max: 256,
            shared_receive_queues_max: 64,
            partition_key: DEFAULT_PARTITION_KEY,
            seed: 0,
        }
    }
}

/// What a queue pair is created with.
#[derive(Debug, Clone)]
pub struct QueuePairConfig {
    /// Which regions it may use.
    pub domain: ProtectionDomain,
    /// Where its send queue completes.
    pub send_completions: CompletionQueueId,
    /// Where its receive requests complete.
    pub receive_completions: CompletionQueueId,
    /// Where it takes receive requests from, instead of a queue of its own.
    pub shared_receives: Option<SharedReceiveQueueId>,
    /// Work requests in its send queue, at most 32,768.
    pub send_depth: usize,
    /// Receive requests in its own receive queue, at most 32,768.
    pub receive_depth: usize,
    /// Bytes of one inline request, at most 4,096. The memory for `send_depth` of them is allocated.
    pub inline_bytes_max: usize,
    /// Signal every work request, whatever it says (`sq_sig_all`).
    pub signal_all: bool,
}

/// Attributes of the step to ready-to-receive (`ibv_modify_qp` to `IBV_QPS_RTR`).
#[derive(Debug, Clone)]
pub struct ReceiveAttributes {
    /// Address and port that this side's packets leave from.
    pub local: SocketAddr,
    /// Address and port of the peer. Packets from other addresses are dropped; the source port may differ.
    pub peer: SocketAddr,
    /// What this side's IPv4 headers carry in the fields that the ICRC covers.
    pub ipv4: Ipv4Fields,
    /// The peer's queue pair.
    pub destination: QueuePairNumber,
    /// Path MTU; must be the same on both sides.
    pub mtu: Mtu,
    /// The first PSN that the peer sends, 24 bits.
    pub receive_psn: u32,
    /// READs and atomics that the peer may have outstanding here, 0 to 128.
    pub responder_depth: u8,
    /// Delay that an RNR NAK asks the peer for, as the 5-bit code of [`rnr_timer_ns`].
    pub rnr_timer: u8,
}

/// Attributes of the step to ready-to-send (`ibv_modify_qp` to `IBV_QPS_RTS`).
#[derive(Debug, Clone)]
pub struct SendAttributes {
    /// The first PSN that this side sends, 24 bits.
    pub send_psn: u32,
    /// Local ACK timeout: 4.096 us * 2^n, n of 1 to 31; 0 waits for ever.
    pub timeout: u8,
    /// Retries after timeouts, missing packets and missing responses, 0 to 7.
    pub retry_count: u8,
    /// Retries after RNR NAKs, 0 to 6; 7 retries for ever.
    pub rnr_retry_count: u8,
    /// READs and atomics outstanding at the peer, at most its `responder_depth`. A READ longer than
    /// `read_window_bytes` goes as several requests.
    pub initiator_depth: u8,
    /// Bytes of requests in flight that the peer granted: what its socket buffer holds. Each packet counts its
    /// payload, [`HEADER_CHARGE_BYTES`] and `packet_overhead_bytes`.
    pub window_bytes: u64,
    /// Bytes of READ responses in flight that this side's socket buffer holds, counted likewise.
    pub read_window_bytes: u64,
    /// What a packet costs in a socket buffer beyond its bytes (Linux: about 800 for a small one).
    pub packet_overhead_bytes: u32,
    /// Packets after which an acknowledgement is asked for at the latest, in a long message too.
    pub ack_every_packets: u32,
}

impl Default for SendAttributes {
    fn default() -> Self {
        SendAttributes {
            send_psn: 0,
            timeout: 14,
            retry_count: 7,
            rnr_retry_count: 7,
            initiator_depth: 16,
            window_bytes: 1 << 20,
            read_window_bytes: 1 << 20,
            packet_overhead_bytes: 0,
            ack_every_packets: 32,
        }
    }
}

/// Why a queue pair or queue cannot be made, changed or destroyed. Nothing has changed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ControlError {
    /// No such queue pair, completion queue or shared receive queue.
    #[error("no such queue pair, completion queue or shared receive queue")]
    Unknown,
    /// The step is not allowed from this state.
    #[error("a queue pair in state {0:?} cannot take this step")]
    State(QueuePairState),
    /// All slots are taken.
    #[error("the engine's limit of {0} is reached: destroy some, or configure more")]
    TooMany(usize),
    /// A queue pair still uses it.
    #[error("still in use by {0} queue pairs")]
    InUse(usize),
    /// An attribute out of its range.
    #[error("attribute {name} is {value}: {rule}")]
    Attribute {
        /// Which.
        name: &'static str,
        /// What it was.
        value: u64,
        /// What it may be.
        rule: &'static str,
    },
}

/// Nanoseconds of an RNR NAK's 5-bit timer code (IBA 9.7.5.2.8, table 45).
pub const fn rnr_timer_ns(code: u8) -> u64 {
    const HUNDREDTHS_OF_MS: [u64; 32] = [
        65536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072,
        4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152,
    ];
    HUNDREDTHS_OF_MS[(code & 31) as usize] * 10_000
}

/// Nanoseconds of the 5-bit local ACK timeout (IBA 9.7.6.1.3): 4.096 us * 2^n; 0 means none.
pub const fn ack_timeout_ns(code: u8) -> Option<u64> {
    match code & 31 {
        0 => None,
        n => Some(4096 << n),
    }
}

pub(crate) fn in_range(name: &'static str, value: u64, max: u64, rule: &'static str) -> Result<(), ControlError> {
    if value <= max { Ok(()) } else { Err(ControlError::Attribute { name, value, rule }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_follow_the_tables() {
        assert_eq!(rnr_timer_ns(0), 655_360_000);
        assert_eq!(rnr_timer_ns(1), 10_000);
        assert_eq!(rnr_timer_ns(14), 1_280_000);
        assert_eq!(rnr_timer_ns(31), 491_520_000);
        assert_eq!(ack_timeout_ns(0), None);
        assert_eq!(ack_timeout_ns(14), Some(67_108_864));
        assert_eq!(ack_timeout_ns(31), Some(4096 << 31));
        assert_eq!(Mtu::Bytes4096.bytes(), 4096);
        assert_eq!(Mtu::fitting(1452), Some(Mtu::Bytes1024));
        assert_eq!(Mtu::fitting(100), None);
    }
}
