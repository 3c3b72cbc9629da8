//! The two providers behind one set of enums, chosen once when a device is opened: a branch per call, no dispatch
//! through pointers. The objects are those of the providers; what owns what while the hardware works is the business of
//! the safe layer above.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::connect::{ConnectOptions, Endpoint, QueuePairOptions, ROCE_PORT};
use crate::device::{DeviceAttributes, GidChoice, OpenOptions};
use crate::soft::provider as soft;
use crate::verbs::{
    Access, MemoryKey, PostError, QueuePairNumber, QueuePairState, ReceiveRequest, WorkCompletion, WorkRequest,
};
use crate::{Error, ibv};

#[derive(Clone)]
pub(crate) enum RawContext {
    Soft(soft::Context),
    Ibv(Arc<ibv::Context>),
}

impl RawContext {
    pub(crate) fn open(name: &str, options: &OpenOptions) -> Result<Self, Error> {
        if name == "soft" || name.starts_with("soft:") {
            return soft::Context::open(name, options).map(RawContext::Soft);
        }
        let Some((device, address)) = name.split_once('@') else {
            return ibv::Context::open(name, options).map(RawContext::Ibv);
        };
        let address: IpAddr = address.parse().map_err(|_| {
            let reason = format!("{address:?} behind the @ is no IP address: write rxe0@10.0.0.7 or rxe0@fd00::7");
            Error::NoAddress { device: name.into(), reason }
        })?;
        let options = OpenOptions { gid: GidChoice::Address(address), ..options.clone() };
        ibv::Context::open(device, &options).map(RawContext::Ibv)
    }

    pub(crate) fn attributes(&self) -> &DeviceAttributes {
        match self {
            RawContext::Soft(context) => context.attributes(),
            RawContext::Ibv(context) => context.attributes(),
        }
    }

    pub(crate) fn socket_address(&self) -> SocketAddr {
        match self {
            RawContext::Soft(context) => context.socket_address(),
            RawContext::Ibv(context) => SocketAddr::new(context.ip(), ROCE_PORT),
        }
    }

    pub(crate) fn create_domain(&self) -> Result<RawDomain, Error> {
        match self {
            RawContext::Soft(context) => Ok(RawDomain::Soft(context.create_domain())),
            RawContext::Ibv(context) => context.create_domain().map(RawDomain::Ibv),
        }
    }

    pub(crate) fn create_completion_queue(&self, capacity: u32) -> Result<RawCompletionQueue, Error> {
        match self {
            RawContext::Soft(context) => context.create_completion_queue(capacity).map(RawCompletionQueue::Soft),
            RawContext::Ibv(context) => context.create_completion_queue(capacity).map(RawCompletionQueue::Ibv),
        }
    }
}

#[derive(Clone)]
pub(crate) enum RawDomain {
    Soft(soft::Domain),
    Ibv(ibv::Domain),
}

impl RawDomain {
    /// # Safety
    /// The range stays mapped, and writable if `access` allows writing, until [`RawRegion::destroy`] answers true.
    pub(crate) unsafe fn register(&self, start: *mut u8, bytes: usize, access: Access) -> Result<RawRegion, Error> {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                RawDomain::Soft(domain) => domain.register(start, bytes, access).map(RawRegion::Soft),
                RawDomain::Ibv(domain) => domain.register(start, bytes, access).map(RawRegion::Ibv),
            }
        }
    }

    pub(crate) fn create_shared_receive_queue(&self, depth: u32) -> Result<RawSharedReceiveQueue, Error> {
        match self {
            RawDomain::Soft(domain) => domain.create_shared_receive_queue(depth).map(RawSharedReceiveQueue::Soft),
            RawDomain::Ibv(domain) => domain.create_shared_receive_queue(depth).map(RawSharedReceiveQueue::Ibv),
        }
    }

    pub(crate) fn create_queue_pair(
        &self,
        send: &RawCompletionQueue,
        receive: &RawCompletionQueue,
        shared: Option<&RawSharedReceiveQueue>,
        options: &QueuePairOptions,
    ) -> Result<RawQueuePair, Error> {
        use RawCompletionQueue as Queue;
        match (self, send, receive, shared) {
            (RawDomain::Soft(domain), Queue::Soft(send), Queue::Soft(receive), None) => {
                domain.create_queue_pair(send, receive, None, options).map(RawQueuePair::Soft)
            }
            (
                RawDomain::Soft(domain),
                Queue::Soft(send),
                Queue::Soft(receive),
                Some(RawSharedReceiveQueue::Soft(shared)),
            ) => domain.create_queue_pair(send, receive, Some(shared), options).map(RawQueuePair::Soft),
            (RawDomain::Ibv(domain), Queue::Ibv(send), Queue::Ibv(receive), None) => {
                domain.create_queue_pair(send, receive, None, options).map(RawQueuePair::Ibv)
            }
            (
                RawDomain::Ibv(domain),
                Queue::Ibv(send),
                Queue::Ibv(receive),
                Some(RawSharedReceiveQueue::Ibv(shared)),
            ) => domain.create_queue_pair(send, receive, Some(shared), options).map(RawQueuePair::Ibv),
            _ => Err(Error::Mismatch {
                local: "a protection domain of one provider".into(),
                remote: "a queue of the other".into(),
                reason: "make all of them from one context",
            }),
        }
    }
}

pub(crate) enum RawRegion {
    Soft(soft::Region),
    Ibv(ibv::Region),
}

impl RawRegion {
    #[inline]
    pub(crate) fn local_key(&self) -> MemoryKey {
        match self {
            RawRegion::Soft(region) => region.key(),
            RawRegion::Ibv(region) => region.local_key(),
        }
    }

    pub(crate) fn remote_key(&self) -> MemoryKey {
        match self {
            RawRegion::Soft(region) => region.key(),
            RawRegion::Ibv(region) => region.remote_key(),
        }
    }

    /// Deregisters it; whether the device has let go of the memory. If not, it must stay for ever.
    pub(crate) fn destroy(self) -> bool {
        match self {
            RawRegion::Soft(region) => {
                drop(region);
                true
            }
            RawRegion::Ibv(mut region) => region.destroy(),
        }
    }
}

#[derive(Clone)]
pub(crate) enum RawCompletionQueue {
    Soft(soft::CompletionQueue),
    Ibv(ibv::CompletionQueue),
}

impl RawCompletionQueue {
    #[inline]
    pub(crate) fn poll(&self, out: &mut [WorkCompletion]) -> Result<usize, Error> {
        /// Out of line: it would take the registers that the other branch needs.
        #[inline(never)]
        fn poll_soft(queue: &soft::CompletionQueue, out: &mut [WorkCompletion]) -> usize {
            queue.poll(out)
        }
        match self {
            RawCompletionQueue::Soft(queue) => Ok(poll_soft(queue, out)),
            RawCompletionQueue::Ibv(queue) => queue.poll(out),
        }
    }

    /// Polls once, and hands each completion on; `batch` is a place for those of a soft device.
    #[inline]
    pub(crate) fn poll_each(
        &self,
        batch: &mut [WorkCompletion],
        mut each: impl FnMut(WorkCompletion),
    ) -> Result<(), Error> {
        match self {
            RawCompletionQueue::Ibv(queue) => queue.poll_each(each),
            RawCompletionQueue::Soft(_) => {
                let taken = self.poll(batch)?;
                batch[..taken].iter().for_each(|done| each(*done));
                Ok(())
            }
        }
    }

    pub(crate) fn arm(&self) -> Result<bool, Error> {
        match self {
            RawCompletionQueue::Soft(queue) => Ok(queue.arm()),
            RawCompletionQueue::Ibv(queue) => queue.arm().map(|()| true),
        }
    }

    pub(crate) fn clear_events(&self) {
        match self {
            RawCompletionQueue::Soft(queue) => queue.clear_events(),
            RawCompletionQueue::Ibv(queue) => queue.clear_events(),
        }
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            RawCompletionQueue::Soft(queue) => queue.descriptor(),
            RawCompletionQueue::Ibv(queue) => queue.as_fd(),
        }
    }
}

#[derive(Clone)]
pub(crate) enum RawSharedReceiveQueue {
    Soft(soft::SharedReceiveQueue),
    Ibv(ibv::SharedReceiveQueue),
}

impl RawSharedReceiveQueue {
    /// Destroys it; whether the device has let go of the memory of its requests. Nobody else may have it.
    pub(crate) fn destroy(self) -> bool {
        match self {
            RawSharedReceiveQueue::Soft(queue) => queue.destroy(),
            RawSharedReceiveQueue::Ibv(mut queue) => queue.destroy(),
        }
    }

    /// # Safety
    /// As for [`RawQueuePair::post_receive`].
    #[inline]
    pub(crate) unsafe fn post_receive(&self, requests: &[ReceiveRequest<'_>]) -> Result<(), (usize, PostError)> {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                RawSharedReceiveQueue::Soft(queue) => queue.post_receive(requests),
                RawSharedReceiveQueue::Ibv(queue) => queue.post_receive(requests),
            }
        }
    }
}

pub(crate) enum RawQueuePair {
    Soft(soft::QueuePair),
    Ibv(ibv::QueuePair),
}

impl RawQueuePair {
    /// Destroys it; whether the device has let go of the memory of its requests. If not, it must stay for ever.
    pub(crate) fn destroy(self) -> bool {
        match self {
            RawQueuePair::Soft(pair) => {
                drop(pair);
                true
            }
            RawQueuePair::Ibv(mut pair) => pair.destroy(),
        }
    }

    pub(crate) fn number(&self) -> QueuePairNumber {
        match self {
            RawQueuePair::Soft(pair) => pair.number(),
            RawQueuePair::Ibv(pair) => pair.number(),
        }
    }

    /// What the device granted, which may be less than was asked for.
    pub(crate) fn inline_bytes_max(&self, asked: &QueuePairOptions) -> u32 {
        match self {
            RawQueuePair::Soft(_) => asked.inline_bytes_max,
            RawQueuePair::Ibv(pair) => asked.inline_bytes_max.min(pair.inline_bytes_max()),
        }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        match self {
            RawQueuePair::Soft(pair) => pair.endpoint(),
            RawQueuePair::Ibv(pair) => pair.endpoint(),
        }
    }

    pub(crate) fn to_init(&self, access: Access) -> Result<(), Error> {
        match self {
            RawQueuePair::Soft(pair) => pair.to_init(access),
            RawQueuePair::Ibv(pair) => pair.to_init(access),
        }
    }

    pub(crate) fn connect(&self, remote: &Endpoint, options: &ConnectOptions) -> Result<(), Error> {
        match self {
            RawQueuePair::Soft(pair) => pair.connect(remote, options),
            RawQueuePair::Ibv(pair) => pair.connect(remote, options),
        }
    }

    pub(crate) fn to_error(&self) -> Result<(), Error> {
        match self {
            RawQueuePair::Soft(pair) => pair.to_error(),
            RawQueuePair::Ibv(pair) => pair.to_error(),
        }
    }

    pub(crate) fn state(&self) -> Result<QueuePairState, Error> {
        match self {
            RawQueuePair::Soft(pair) => Ok(pair.state()),
            RawQueuePair::Ibv(pair) => pair.state(),
        }
    }

    /// # Safety
    /// The memory of the requests belongs to them until they complete or [`Self::destroy`] answers true.
    #[inline]
    pub(crate) unsafe fn post_send(&self, requests: &[WorkRequest<'_>]) -> Result<(), (usize, PostError)> {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                RawQueuePair::Soft(pair) => pair.post_send(requests),
                RawQueuePair::Ibv(pair) => pair.post_send(requests),
            }
        }
    }

    /// The same for one request, without a chain to build.
    ///
    /// # Safety
    /// As for [`Self::post_send`].
    #[inline]
    pub(crate) unsafe fn post_send_one(&self, request: WorkRequest<'_>) -> Result<(), (usize, PostError)> {
        /// Out of line, as in `poll`.
        ///
        /// # Safety
        /// As for the caller.
        #[inline(never)]
        unsafe fn post_soft(pair: &soft::QueuePair, request: WorkRequest<'_>) -> Result<(), (usize, PostError)> {
            // SAFETY: the caller's promise.
            unsafe { pair.post_send(&[request]) }
        }
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                RawQueuePair::Soft(pair) => post_soft(pair, request),
                RawQueuePair::Ibv(pair) => pair.post_send_one(&request),
            }
        }
    }

    /// # Safety
    /// As for [`Self::post_send`].
    #[inline]
    pub(crate) unsafe fn post_receive(&self, requests: &[ReceiveRequest<'_>]) -> Result<(), (usize, PostError)> {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                RawQueuePair::Soft(pair) => pair.post_receive(requests),
                RawQueuePair::Ibv(pair) => pair.post_receive(requests),
            }
        }
    }
}
