//! The provider over libibverbs and librdmacm: hardware, kernel soft-RoCE (rxe) and soft-iWARP (siw).
//!
//! Owns: the raw layer, without buffers: who calls it (the safe layer of this crate) keeps memory alive and
//! unshared until the completion, which is what the `unsafe` methods ask for.
//!
//! - `abi`, `cm::abi`: structures and numbers of the C headers, their layout asserted.
//! - `library`: both libraries, loaded at run time; a machine without them lists no devices.
//! - `device`, `sysfs`: which devices there are, what they can do, and their GIDs.
//! - `memory`, `completion_queue`, `queue_pair`, `post`: the objects and the fast path.
//! - `cm`: connecting by rdma_cm.
//! - `stub`: a device in memory, for tests and for counting what the layers above cost.
//!
//! Invariants
//! - Each object holds its parents, so that libibverbs sees them destroyed in the order that it asks for: queue
//!   pair, shared receive queue, completion queue, region, domain, context.
//! - What could not be destroyed is leaked with all that it uses, never freed: `destroy` says whether the device has
//!   let go. A device that has not may go on using its memory.
//! - Posting and polling allocate nothing and call the device's functions as libibverbs' own inline functions do.
//! - All objects are `Send` and `Sync`: libibverbs locks within each object.

pub(crate) mod abi;
pub(crate) mod cm;
mod completion_queue;
mod device;
mod library;
mod memory;
mod post;
mod queue_pair;
#[cfg(test)]
pub(crate) mod stub;
mod sysfs;
#[cfg(test)]
mod tests;

pub(crate) use completion_queue::CompletionQueue;
pub(crate) use device::{Context, list};
pub(crate) use memory::{Domain, Region};
pub(crate) use queue_pair::{QueuePair, SharedReceiveQueue};

/// Says on standard error that the device did not let go of something, which is leaked. There is nobody to answer to:
/// it happens when things are dropped.
#[cold]
fn leaked(device: &str, call: &str, answer: std::ffi::c_int) {
    if let Err(error) = checked(answer) {
        eprintln!("verbs-shim: {device}: {call} failed: {error}; it is leaked, with the memory that it may use");
    }
}

/// What a function returned that answers 0, or an error number, or -1 and sets `errno`.
fn checked(answer: std::ffi::c_int) -> Result<(), std::io::Error> {
    match answer {
        0 => Ok(()),
        -1 => Err(std::io::Error::last_os_error()),
        number => Err(std::io::Error::from_raw_os_error(number.abs())),
    }
}
