//! RDMA verbs: one safe API over two providers, so that the same program runs on a ConnectX card, on the kernel's
//! soft-RoCE, and on any machine with a network interface.
//!
//! - `ibv`: libibverbs, loaded at run time: hardware, rxe, siw.
//! - [`soft`]: RoCEv2 reliable connections in user space over UDP.
//!
//! [`Context::open`] picks one by the device's name; from there on the code is the same. A buffer given to a work request
//! belongs to it, and comes back with its [`Completion`]. Everything is polled; nothing blocks but what says so.
//!
//! ```
//! use std::time::Duration;
//! use verbs_shim::{ConnectOptions, Context, OpenOptions, QueuePairOptions, SendRequest, verbs::Access};
//!
//! let context = Context::open("soft:127.0.0.1", &OpenOptions::default())?;
//! let domain = context.create_domain()?;
//! let completions = context.create_completion_queue(512)?;
//! let here = domain.create_queue_pair(&completions, &completions, &QueuePairOptions::default())?;
//! let there = domain.create_queue_pair(&completions, &completions, &QueuePairOptions::default())?;
//! here.connect(&there.endpoint(), &ConnectOptions::default())?;
//! there.connect(&here.endpoint(), &ConnectOptions::default())?;
//!
//! let target = domain.expose(4096, Access::LOCAL_WRITE | Access::REMOTE_WRITE)?;
//! let mut buffer = domain.allocate(4096)?;
//! buffer.fill(7);
//! here.post_send(SendRequest::write(buffer, target.remote()))?;
//! let mut done = Vec::new();
//! completions.wait(&mut done, Duration::from_secs(5))?;
//! assert_eq!(done[0].status, verbs_shim::verbs::WcStatus::Success);
//! assert_eq!(target.load(8), 0x0707_0707_0707_0707);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod completion;
pub mod connect;
mod context;
mod device;
mod error;
#[cfg(feature = "glommio")]
pub mod glommio;
mod ibv;
mod lock;
mod memory;
mod provider;
mod queue_pair;
mod random;
pub mod rdma_cm;
mod request;
mod shared_receive_queue;
pub mod soft;
#[cfg(feature = "tokio")]
pub mod tokio;
pub mod verbs;

pub use completion::{Completion, CompletionQueue};
pub use connect::{ConnectOptions, Endpoint, QueuePairOptions, RemoteMemory};
pub use context::{Context, ProtectionDomain, devices, devices_and_failure};
pub use device::{Capabilities, DeviceAttributes, GidChoice, OpenOptions, Progress, Provider, Transport};
pub use error::Error;
pub use memory::{Buffer, Registered, Registration, RemoteBuffer, StableMemory};
pub use queue_pair::QueuePair;
pub use request::{Receive, Refused, SendRequest};
pub use shared_receive_queue::SharedReceiveQueue;
pub use verbs::Mtu;
