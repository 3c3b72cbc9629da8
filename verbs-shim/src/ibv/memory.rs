//! Protection domains and memory regions.
//!
//! Owns: `ibv_pd` and `ibv_mr`. The memory below a region belongs to who registered it, and must outlive the region: for
//! ever, if [`Region::destroy`] answers false.

use std::ptr::NonNull;
use std::sync::Arc;

use super::abi::{ibv_mr, ibv_pd};
use super::completion_queue::CompletionQueue;
use super::device::Context;
use super::queue_pair::{QueuePair, SharedReceiveQueue};
use crate::Error;
use crate::connect::QueuePairOptions;
use crate::soft::engine::RegisterError;
use crate::verbs::{Access, MemoryKey};

/// A protection domain. A clone is the same one.
#[derive(Clone)]
pub(crate) struct Domain(Arc<OwnedDomain>);

struct OwnedDomain {
    raw: NonNull<ibv_pd>,
    context: Arc<Context>,
}

// SAFETY: libibverbs is thread safe; the pointer is used for nothing but its calls.
unsafe impl Send for OwnedDomain {}
// SAFETY: as above.
unsafe impl Sync for OwnedDomain {}

impl Drop for OwnedDomain {
    fn drop(&mut self) {
        // SAFETY: made by `ibv_alloc_pd`; regions and queue pairs hold the domain, so that none is left.
        unsafe { (self.context.verbs().dealloc_pd)(self.raw.as_ptr()) };
    }
}

impl Domain {
    pub(super) fn create(context: &Arc<Context>) -> Result<Domain, Error> {
        // SAFETY: the context is open.
        let raw = unsafe { (context.verbs().alloc_pd)(context.raw()) };
        let raw = NonNull::new(raw).ok_or_else(|| context.last_error("ibv_alloc_pd"))?;
        Ok(Domain(Arc::new(OwnedDomain { raw, context: context.clone() })))
    }

    /// Registers `bytes` bytes from `start`.
    ///
    /// # Errors
    /// [`Error::Register`] if the rights or the range make no sense, [`Error::Os`] if the device or the limit of
    /// locked memory does not allow it.
    ///
    /// # Safety
    /// The memory must stay mapped until [`Region::destroy`] answers true. While the device may write to it (by a posted
    /// request, or by the peer through the rights given here), nothing else may hold a reference to those bytes.
    pub(crate) unsafe fn register(&self, start: *mut u8, bytes: usize, access: Access) -> Result<Region, Error> {
        let remote_writes = access.0 & (Access::REMOTE_WRITE | Access::REMOTE_ATOMIC).0 != 0;
        if remote_writes && !access.allows(Access::LOCAL_WRITE) {
            return Err(RegisterError::NeedsLocalWrite.into());
        }
        if (start as usize).checked_add(bytes).is_none() {
            return Err(RegisterError::Address.into());
        }
        let context = &self.0.context;
        // SAFETY: the domain is alive; the caller vouches for the memory. The bits of `Access` are `IBV_ACCESS_*`.
        let raw = unsafe { (context.verbs().reg_mr)(self.raw(), start.cast(), bytes, access.0 as i32) };
        let raw = NonNull::new(raw).ok_or_else(|| context.last_error("ibv_reg_mr"))?;
        // SAFETY: `ibv_reg_mr` filled the keys, which never change.
        let (local_key, remote_key) = unsafe { ((*raw.as_ptr()).lkey, (*raw.as_ptr()).rkey) };
        Ok(Region {
            raw: Some(raw),
            local_key: MemoryKey(local_key),
            remote_key: MemoryKey(remote_key),
            domain: self.clone(),
        })
    }

    /// Makes a shared receive queue of at least `depth` places.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the device has none, [`Error::Os`].
    pub(crate) fn create_shared_receive_queue(&self, depth: u32) -> Result<SharedReceiveQueue, Error> {
        SharedReceiveQueue::create(self, depth)
    }

    /// Makes a queue pair in the state Reset, with a first PSN drawn at random. Without `shared` it has a
    /// receive queue of its own.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the completion queues or the shared receive queue are of another context,
    /// [`Error::Os`].
    pub(crate) fn create_queue_pair(
        &self,
        send: &CompletionQueue,
        receive: &CompletionQueue,
        shared: Option<&SharedReceiveQueue>,
        options: &QueuePairOptions,
    ) -> Result<QueuePair, Error> {
        QueuePair::create(self, send, receive, shared, options)
    }

    pub(super) fn raw(&self) -> *mut ibv_pd {
        self.0.raw.as_ptr()
    }

    #[inline]
    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.0.context
    }
}

/// Registered memory; deregistered when dropped.
pub(crate) struct Region {
    /// `None` once destroying was tried.
    raw: Option<NonNull<ibv_mr>>,
    local_key: MemoryKey,
    remote_key: MemoryKey,
    domain: Domain,
}

// SAFETY: the pointer is used once, for deregistering, by `&mut`; keys and domain are plain or `Sync` data.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// For the pieces of one's own requests.
    #[inline]
    pub(crate) fn local_key(&self) -> MemoryKey {
        self.local_key
    }

    /// For the peer.
    pub(crate) fn remote_key(&self) -> MemoryKey {
        self.remote_key
    }

    /// Deregisters it; whether the device has let go of the memory. Only the first call does something.
    pub(crate) fn destroy(&mut self) -> bool {
        let Some(raw) = self.raw.take() else { return false };
        let context = self.domain.context();
        // SAFETY: made by `ibv_reg_mr`, taken out once. When it succeeds the device refuses its keys from here on.
        let answer = unsafe { (context.verbs().dereg_mr)(raw.as_ptr()) };
        if answer != 0 {
            super::leaked(&context.attributes().name, "ibv_dereg_mr", answer);
            std::mem::forget(self.domain.clone());
        }
        answer == 0
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.destroy();
    }
}
