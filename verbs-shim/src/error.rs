//! What can go wrong outside of work requests: opening devices, making and connecting things.

use std::io;

use thiserror::Error;

use crate::soft::engine::{ControlError, RegisterError};
use crate::verbs::PostError;

/// Why a device cannot be opened, or something cannot be made, connected or polled. Each says what to do.
#[derive(Debug, Error)]
pub enum Error {
    /// No device of this name.
    #[error("no RDMA device {name:?}; there are: {}", list(.available))]
    NoDevice {
        /// The name asked for.
        name: String,
        /// What could be opened instead.
        available: Vec<String>,
    },
    /// The library that the provider `ibv` loads at run time is not there.
    #[error("{library} cannot be loaded ({reason}): install it (Debian: {package}), or use a soft device")]
    NoLibrary {
        /// Such as `libibverbs.so.1`.
        library: &'static str,
        /// What the loader said.
        reason: String,
        /// Which package has it.
        package: &'static str,
    },
    /// A device without a GID that fits, or an interface without an address.
    #[error("{device}: {reason}")]
    NoAddress {
        /// The device.
        device: String,
        /// What is missing, and what to do.
        reason: String,
    },
    /// A call of the operating system or of a library failed.
    #[error("{device}: {call} failed: {source}{}", advice(.call, .source))]
    Os {
        /// The device, or what was worked on.
        device: String,
        /// Which call.
        call: &'static str,
        /// What it answered.
        source: io::Error,
    },
    /// A step that the state or an attribute does not allow.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Memory that cannot be registered.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// A request that is not accepted.
    #[error(transparent)]
    Post(#[from] PostError),
    /// An endpoint record that is not one, or of a version that this side does not know.
    #[error("the peer's endpoint record is not valid: {0}")]
    Endpoint(&'static str),
    /// The endpoints belong to transports that cannot talk to each other.
    #[error("cannot connect {local} to {remote}: {reason}")]
    Mismatch {
        /// This side.
        local: String,
        /// The peer.
        remote: String,
        /// Why, and what to do.
        reason: &'static str,
    },
    /// The device cannot do this.
    #[error("{device} cannot do {operation}: {reason}")]
    Unsupported {
        /// The device.
        device: String,
        /// What was asked for.
        operation: &'static str,
        /// Why not.
        reason: &'static str,
    },
}

impl Error {
    pub(crate) fn os(device: impl Into<String>, call: &'static str, source: io::Error) -> Self {
        Error::Os { device: device.into(), call, source }
    }

    /// From `errno`, after a call that sets it.
    pub(crate) fn last(device: impl Into<String>, call: &'static str) -> Self {
        Error::os(device, call, io::Error::last_os_error())
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

fn advice(call: &str, error: &io::Error) -> &'static str {
    match (call, error.kind()) {
        ("ibv_reg_mr" | "mlock", io::ErrorKind::OutOfMemory) => {
            ": raise the limit of locked memory (ulimit -l, LimitMEMLOCK= of the service)"
        }
        ("bind", io::ErrorKind::AddrInUse) => {
            ": the port is taken, 4791 by kernel RoCE (rdma link) or another process on this address; choose another \
             port for soft peers, or another address or network namespace"
        }
        ("socket(raw)", io::ErrorKind::PermissionDenied) => {
            ": a raw socket needs CAP_NET_RAW (setcap cap_net_raw+ep PROGRAM); over IPv6 none is needed"
        }
        ("bind", io::ErrorKind::AddrNotAvailable) => ": no interface has this address (ip address)",
        ("ibv_open_device", io::ErrorKind::PermissionDenied) => ": this user may not use /dev/infiniband/uverbs*",
        ("rdma_create_event_channel", _) => ": is the module rdma_ucm loaded? (modprobe rdma_ucm)",
        ("rdma_resolve_addr", _) if error.raw_os_error() == Some(libc::ENODEV) => {
            ": the route to this address leads over no RDMA device"
        }
        _ => "",
    }
}
