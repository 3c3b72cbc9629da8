//! The words that both providers share: work requests, completions, keys, rights, states. Plain data.
//!
//! Names and numbers are those of the InfiniBand specification (volume 1) and of `<infiniband/verbs.h>`.

mod attributes;
mod completion;
mod request;

pub use attributes::{Access, MemoryKey, Mtu, QueuePairNumber, QueuePairState};
pub use completion::{WcOpcode, WcStatus, WorkCompletion};
pub use request::{Data, MESSAGE_BYTES_MAX, Operation, PostError, ReceiveRequest, SGE_MAX, Sge, WorkRequest};
