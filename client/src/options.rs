//! What a caller may choose about a connection.

use std::time::Duration;

use hidb::session::frames::Checksum;
use hidb::session::seal::Integrity;

use crate::credentials::Credentials;
use crate::fabric::Transport;

/// Choices of a [`crate::Client`]; `Default` suits an engine beside the cell.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Who asks, and which cell to trust; a cell that is not `insecure` wants to know, and TLS needs it.
    pub credentials: Option<Credentials>,
    /// Deadline of every call that sets none of its own; `None`: no deadline.
    pub timeout: Option<Duration>,
    /// How long one attempt to connect and shake hands may take.
    pub connect_timeout: Duration,
    /// How long an idempotent call keeps retrying (with backoff) while the cell can't be reached or is
    /// overloaded, once it had been reached before.
    pub retry_for: Duration,
    /// How long the very first connection keeps retrying; zero: one attempt.
    pub wait_for_cell: Duration,
    /// The client's name in the cell's logs.
    pub name: String,
    /// Whether decimals of up to 18 digits may come as Arrow `Decimal64`; otherwise all are `Decimal128`.
    pub decimal64: bool,
    /// Result frames (of at most 1 MiB) the cell may send ahead of the consumer, per request.
    pub result_frames_ahead: u32,
    /// The largest result image taken; 0: the cell's choice.
    pub result_image_bytes_max: u32,
    /// How answers travel.
    pub transport: Transport,
    /// Slots of 1 MiB in each result ring, one per core, over RDMA.
    pub ring_slots: u32,
    /// What is covered by checksums over RDMA. With `integrity` nothing, whatever stands here: a MAC finds what a checksum
    /// does.
    pub checksum: Checksum,
    /// The most memory, in bytes, for answers that the client keeps and gives again to the same question; 0: none are
    /// kept. For point reads and small scans that are repeated: an answer of more than an eighth of this is not kept.
    /// An answer that is given again is no older than the last notice that arrived, and than anything this client has
    /// read or written itself (`docs/hidb.md`, "What a client may remember"); who must see what others committed a
    /// moment ago leaves this at 0 or asks with [`crate::ScanRequest::bypass_cache`].
    pub result_cache_bytes: usize,
    /// What keeps others on the network from changing what travels over RDMA. A MAC needs TLS, and each batch is copied
    /// out of its slot.
    pub integrity: Integrity,
    /// The most load bytes kept for sending again because the cell has not yet said they are durable.
    pub load_unacknowledged_bytes_max: usize,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        ConnectOptions {
            credentials: None,
            timeout: None,
            connect_timeout: Duration::from_secs(5),
            retry_for: Duration::from_secs(30),
            wait_for_cell: Duration::ZERO,
            name: concat!("heliostat-client ", env!("CARGO_PKG_VERSION")).to_string(),
            decimal64: true,
            result_frames_ahead: 32,
            result_image_bytes_max: 0,
            transport: Transport::Auto,
            ring_slots: 16,
            checksum: Checksum::Full,
            result_cache_bytes: 0,
            integrity: Integrity::None,
            load_unacknowledged_bytes_max: 512 << 20,
        }
    }
}
