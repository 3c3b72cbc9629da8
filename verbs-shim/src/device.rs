//! What devices there are and what they can do.

use crate::verbs::Mtu;

/// Which code drives a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Provider {
    /// libibverbs: hardware, rxe, siw.
    Ibv,
    /// The user-space RoCEv2 of this crate.
    Soft,
}

/// What carries the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// InfiniBand proper.
    InfiniBand,
    /// RoCEv2: InfiniBand's transport over UDP.
    RoceV2,
    /// iWARP: no immediate data with WRITE, no atomics; connected by rdma_cm only.
    Iwarp,
}

/// What a device can do. Nothing in this crate, and nothing above it, assumes an operation that is not listed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Immediate data with SEND and WRITE.
    pub immediate: bool,
    /// Compare-and-swap and fetch-and-add.
    pub atomics: bool,
    /// Shared receive queues.
    pub shared_receive_queues: bool,
    /// Connecting by exchange of [`Endpoint`](crate::Endpoint)s.
    pub endpoints: bool,
    /// Connecting by rdma_cm.
    pub rdma_cm: bool,
}

/// A device that can be opened, and its limits.
#[derive(Debug, Clone)]
pub struct DeviceAttributes {
    /// What to open it by: `mlx5_0`, `rxe0`, `soft:eth0`.
    pub name: String,
    /// Who drives it.
    pub provider: Provider,
    /// What carries its packets.
    pub transport: Transport,
    /// What it can do.
    pub capabilities: Capabilities,
    /// The network interface below it, if known.
    pub interface: Option<String>,
    /// Its RoCEv2 addresses, as GIDs (IPv4 mapped into IPv6).
    pub gids: Vec<std::net::Ipv6Addr>,
    /// Whether its port is up.
    pub active: bool,
    /// The largest path MTU.
    pub mtu: Mtu,
    /// Queue pairs at most.
    pub queue_pairs_max: u32,
    /// Work requests in one queue at most.
    pub queue_depth_max: u32,
    /// Completion queue places at most.
    pub completions_max: u32,
    /// Memory regions at most.
    pub regions_max: u32,
    /// Pieces of one work request at most.
    pub pieces_max: u32,
    /// READs and atomics outstanding per queue pair at most.
    pub read_atomic_depth_max: u8,
}

impl DeviceAttributes {
    /// Whether a network card does the work; false for the kernel's software devices (rxe, siw) and for soft ones.
    pub fn is_hardware(&self) -> bool {
        let place = std::path::Path::new("/sys/class/infiniband").join(&self.name);
        // Software devices have no parent: they are below /sys/devices/virtual.
        let is_real = |place: std::path::PathBuf| !place.starts_with("/sys/devices/virtual");
        self.provider == Provider::Ibv && std::fs::canonicalize(place).is_ok_and(is_real)
    }
}

/// How a device is opened.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Which of the device's addresses to use: by index, by address, or the first RoCEv2 one.
    pub gid: GidChoice,
    /// Physical port, from 1; 0 is the first.
    pub port: u8,
    /// UDP port of a soft device: 0 takes any, which is enough among soft peers; 4791 talks to hardware and rxe as well,
    /// over IPv4 with a raw socket.
    pub udp_port: u16,
    /// A plain socket even where port 4791 over IPv4 would mean a raw one: for soft peers only.
    pub plain_socket: bool,
    /// Who makes progress on a soft device; without meaning for `ibv`, whose device or kernel does.
    pub progress: Progress,
}

/// Which of a device's GIDs a context uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GidChoice {
    /// The first RoCEv2 GID that is not link-local; else the first RoCEv2 one; on InfiniBand GID 0.
    #[default]
    First,
    /// By index into the device's table.
    Index(u32),
    /// The RoCEv2 GID of this address.
    Address(std::net::IpAddr),
}

/// Who drives the state machine of a soft device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Progress {
    /// A thread of its own beside whoever polls, so that a program that computes for half a minute keeps its
    /// connections.
    #[default]
    Thread,
    /// Only calls to poll and to arm; posting only sends. For programs that poll at least every few milliseconds, such as a
    /// cell.
    Polled,
}
