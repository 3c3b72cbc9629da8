//! Opened devices and protection domains: where everything else is made.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::completion::CompletionQueue;
use crate::connect::QueuePairOptions;
use crate::device::{DeviceAttributes, OpenOptions};
use crate::memory::{Buffer, Pages, Region, Registered, Registration, RemoteBuffer, StableMemory};
use crate::provider::{RawContext, RawDomain};
use crate::queue_pair::QueuePair;
use crate::shared_receive_queue::SharedReceiveQueue;
use crate::soft::engine::{Counters, RegisterError};
use crate::verbs::Access;
use crate::{Error, ibv, soft};

/// The devices of both providers that this process can open: hardware and kernel devices first. None of `ibv` where
/// libibverbs is missing, or fails; why it fails, [`devices_and_failure`] tells.
///
/// # Errors
/// None so far.
pub fn devices() -> Result<Vec<DeviceAttributes>, Error> {
    Ok(devices_and_failure().0)
}

/// The same, and what went wrong first in libibverbs if it is there: no list, or a device that cannot be opened, for want
/// of a right to `/dev/infiniband` say, while others can.
pub fn devices_and_failure() -> (Vec<DeviceAttributes>, Option<Error>) {
    both(ibv::list())
}

fn both((mut devices, failure): (Vec<DeviceAttributes>, Option<Error>)) -> (Vec<DeviceAttributes>, Option<Error>) {
    devices.extend(soft::provider::list());
    (devices, failure)
}

/// An opened device. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    pub(crate) raw: RawContext,
}

impl Context {
    /// Opens a device by name: `mlx5_0`, `rxe0`; `soft`, `soft:eth0`, `soft:10.0.0.7`, `soft:::1`. A name can go on with
    /// what the options would say: `rxe0@fd00::7` with the GID to use, `soft:10.0.0.7:4791` and `soft:[fd00::7]:4791` with
    /// the UDP port.
    ///
    /// # Errors
    /// [`Error`], each with what to do.
    pub fn open(name: &str, options: &OpenOptions) -> Result<Self, Error> {
        RawContext::open(name, options).map(|raw| Context { raw })
    }

    /// Name, provider, limits.
    pub fn attributes(&self) -> &DeviceAttributes {
        self.raw.attributes()
    }

    /// Where its packets arrive: the address of its GID, and the UDP port of RoCEv2, or of a soft device its own.
    pub fn socket_address(&self) -> SocketAddr {
        self.raw.socket_address()
    }

    /// A protection domain: memory regions and queue pairs of one domain work together.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub fn create_domain(&self) -> Result<ProtectionDomain, Error> {
        Ok(ProtectionDomain { raw: self.raw.create_domain()?, device: self.attributes().name.as_str().into() })
    }

    /// A completion queue with `capacity` places. Every posted request takes one until its completion is polled: give it
    /// the sum of the depths of the queues that complete there.
    ///
    /// # Errors
    /// [`Error`].
    pub fn create_completion_queue<B: Registered>(&self, capacity: u32) -> Result<CompletionQueue<B>, Error> {
        Ok(CompletionQueue::new(self.raw.create_completion_queue(capacity)?, capacity))
    }

    /// What a soft device has counted since it was opened; `None` for the others.
    pub fn soft_counters(&self) -> Option<Counters> {
        match &self.raw {
            RawContext::Soft(context) => Some(context.counters()),
            RawContext::Ibv(_) => None,
        }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Context({})", self.attributes().name)
    }
}

/// A protection domain. Cheap to clone.
#[derive(Clone)]
pub struct ProtectionDomain {
    raw: RawDomain,
    device: Arc<str>,
}

impl ProtectionDomain {
    /// New memory, zeroed, for work requests of one's own: sources, receive buffers, results.
    ///
    /// # Errors
    /// [`Error::Os`] when memory, or the allowance for locked memory, is short.
    pub fn allocate(&self, bytes: usize) -> Result<Buffer, Error> {
        self.register(self.pages(bytes)?)
    }

    /// Registers memory that exists, for work requests of one's own. It is dropped with the last buffer of it, or at once
    /// when it cannot be registered.
    ///
    /// # Errors
    /// [`Error`].
    pub fn register(&self, memory: impl StableMemory) -> Result<Buffer, Error> {
        let (start, bytes) = memory.range();
        let region = self.region(Box::new(memory), Access::LOCAL_WRITE)?;
        Ok(Buffer::new(region, start, bytes))
    }

    /// Registers an arena whose blocks the program hands out itself: they become work requests by an implementation of
    /// [`Registered`] of its own, with the key of the registration, which the work requests must hold. The peer has no
    /// rights on it.
    ///
    /// # Errors
    /// [`Error`].
    pub fn register_arena(&self, memory: impl StableMemory) -> Result<Registration, Error> {
        Ok(Registration::new(self.region(Box::new(memory), Access::LOCAL_WRITE)?))
    }

    /// New memory, zeroed, that the peer may use as `access` says.
    ///
    /// # Errors
    /// [`Error`].
    pub fn expose(&self, bytes: usize, access: Access) -> Result<RemoteBuffer, Error> {
        self.expose_memory(self.pages(bytes)?, access)
    }

    /// Registers memory that exists, for the peer's use.
    ///
    /// # Errors
    /// [`Error`].
    pub fn expose_memory(&self, memory: impl StableMemory, access: Access) -> Result<RemoteBuffer, Error> {
        let (start, bytes) = memory.range();
        // A message has at most 2^31 bytes, a region may have more.
        let region = self.region(Box::new(memory), access)?;
        Ok(RemoteBuffer::new(region, start, bytes))
    }

    fn pages(&self, bytes: usize) -> Result<Pages, Error> {
        Pages::new(bytes).map_err(|error| Error::os(&*self.device, "mmap", error))
    }

    fn region(&self, memory: Box<dyn StableMemory>, access: Access) -> Result<Arc<Region>, Error> {
        let (start, bytes) = memory.range();
        if (start.as_ptr() as usize).checked_add(bytes).is_none() {
            return Err(RegisterError::Address.into());
        }
        // SAFETY: `StableMemory` promises it for as long as the owner lives, which the region keeps.
        let raw = unsafe { self.raw.register(start.as_ptr(), bytes, access) }?;
        Ok(Region::new(raw, memory))
    }

    /// A queue pair in the state INIT: receive requests can be posted, then it is connected.
    ///
    /// # Errors
    /// [`Error`].
    pub fn create_queue_pair<B: Registered>(
        &self,
        send: &CompletionQueue<B>,
        receive: &CompletionQueue<B>,
        options: &QueuePairOptions,
    ) -> Result<QueuePair<B>, Error> {
        QueuePair::new(&self.raw, send, receive, None, options)
    }

    /// A queue pair that takes its receive requests from a shared queue.
    ///
    /// # Errors
    /// [`Error`].
    pub fn create_queue_pair_sharing<B: Registered>(
        &self,
        send: &CompletionQueue<B>,
        receive: &CompletionQueue<B>,
        shared: &SharedReceiveQueue<B>,
        options: &QueuePairOptions,
    ) -> Result<QueuePair<B>, Error> {
        QueuePair::new(&self.raw, send, receive, Some(shared), options)
    }

    /// A receive queue that several queue pairs take from.
    ///
    /// # Errors
    /// [`Error`].
    pub fn create_shared_receive_queue<B: Registered>(&self, depth: u32) -> Result<SharedReceiveQueue<B>, Error> {
        Ok(SharedReceiveQueue::new(self.raw.create_shared_receive_queue(depth)?, depth))
    }
}

impl fmt::Debug for ProtectionDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProtectionDomain({})", self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_devices_are_listed_where_libibverbs_fails() {
        let source = std::io::Error::from_raw_os_error(libc::EACCES);
        let (devices, failure) = both((Vec::new(), Some(Error::os("libibverbs", "ibv_get_device_list", source))));
        assert!(devices.iter().any(|device| device.name == "soft:lo"), "{devices:?}");
        assert!(failure.unwrap().to_string().contains("ibv_get_device_list"));
    }
}
