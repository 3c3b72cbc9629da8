//! Completion queues, each with a completion channel of its own.
//!
//! Owns: `ibv_cq` and `ibv_comp_channel`, whose descriptor is non-blocking.
//!
//! Invariants
//! - The channel belongs to one completion queue, so that its descriptor is readable if and only if this queue has
//!   an event.
//! - Each event that is taken is acknowledged at once: `ibv_destroy_cq` waits for those that are not.
//!
//! Cost: a poll copies 48 bytes a completion from the device's format into ours.

use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use super::abi::{ibv_comp_channel, ibv_cq, ibv_wc, value};
use super::device::Context;
use crate::Error;
use crate::verbs::{QueuePairNumber, WcOpcode, WcStatus, WorkCompletion};

/// Completions taken from the device at a time.
const BATCH: usize = 16;

/// A completion queue. A clone is the same one.
#[derive(Clone)]
pub(crate) struct CompletionQueue(Arc<Owned>);

struct Owned {
    raw: NonNull<ibv_cq>,
    /// Dropped when the queue is destroyed.
    channel: ManuallyDrop<Channel>,
}

struct Channel {
    raw: NonNull<ibv_comp_channel>,
    context: Arc<Context>,
}

// SAFETY: libibverbs is thread safe: polling, arming and taking events lock within the queue and the channel.
unsafe impl Send for Owned {}
// SAFETY: as above.
unsafe impl Sync for Owned {}

impl Drop for Owned {
    fn drop(&mut self) {
        let context = &self.channel.context;
        // SAFETY: made by `ibv_create_cq`; queue pairs hold the queue, so that none is left; all events are
        // acknowledged. The channel goes after it.
        let answer = unsafe { (context.verbs().destroy_cq)(self.raw.as_ptr()) };
        if answer == 0 {
            // SAFETY: once, and nobody uses it after it.
            unsafe { ManuallyDrop::drop(&mut self.channel) };
        } else {
            super::leaked(&context.attributes().name, "ibv_destroy_cq", answer);
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: made by `ibv_create_comp_channel`; its only completion queue is gone.
        unsafe { (self.context.verbs().destroy_comp_channel)(self.raw.as_ptr()) };
    }
}

impl CompletionQueue {
    pub(super) fn create(context: &Arc<Context>, capacity: u32) -> Result<CompletionQueue, Error> {
        // SAFETY: the context is open.
        let channel = unsafe { (context.verbs().create_comp_channel)(context.raw()) };
        let channel = NonNull::new(channel).ok_or_else(|| context.last_error("ibv_create_comp_channel"))?;
        let channel = Channel { raw: channel, context: context.clone() };
        set_nonblocking(channel.as_fd()).map_err(|error| context.error("fcntl(O_NONBLOCK)", error))?;
        let places = i32::try_from(capacity.max(1)).unwrap_or(i32::MAX);
        let no_cookie = std::ptr::null_mut();
        // SAFETY: context and channel are alive; completion vector 0 is always there.
        let raw = unsafe { (context.verbs().create_cq)(context.raw(), places, no_cookie, channel.raw.as_ptr(), 0) };
        let raw = NonNull::new(raw).ok_or_else(|| context.last_error("ibv_create_cq"))?;
        Ok(CompletionQueue(Arc::new(Owned { raw, channel: ManuallyDrop::new(channel) })))
    }

    /// Places: at least those asked for. A queue that more completions arrive at than fit breaks its queue pairs.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> u32 {
        // SAFETY: the queue is alive, and the field changes only by resizing, which nobody does.
        unsafe { (*self.raw()).cqe.max(0) as u32 }
    }

    /// Takes completions, at most as many as `into` has places; returns how many.
    ///
    /// The device says less than the work request did. When `status` is a failure, only `id`, `status` and
    /// `queue_pair` mean something; `opcode` is then [`WcOpcode::Send`], whatever it was.
    /// `length_bytes` is known for what arrived here (receive requests, READs, atomics), else 0.
    ///
    /// # Errors
    /// [`Error::Os`] when the device is broken.
    #[inline]
    pub(crate) fn poll(&self, into: &mut [WorkCompletion]) -> Result<usize, Error> {
        let mut raw = [const { MaybeUninit::<ibv_wc>::uninit() }; BATCH];
        let mut done = 0;
        while done < into.len() {
            let room = &mut into[done..];
            let wanted = room.len().min(BATCH);
            let taken = self.poll_raw(&mut raw[..wanted])?;
            for (from, to) in raw[..taken].iter().zip(room) {
                // SAFETY: `poll_raw` filled the first `taken` entries as `completion` needs them.
                *to = unsafe { completion(from) };
            }
            done += taken;
            if taken < wanted {
                break;
            }
        }
        Ok(done)
    }

    /// As [`Self::poll`], up to a batch, one by one: from the device's format into registers.
    ///
    /// # Errors
    /// As above.
    #[inline]
    pub(crate) fn poll_each(&self, each: impl FnMut(WorkCompletion)) -> Result<(), Error> {
        let mut raw = [const { MaybeUninit::<ibv_wc>::uninit() }; BATCH];
        let taken = self.poll_raw(&mut raw)?;
        // SAFETY: as above.
        raw[..taken].iter().map(|from| unsafe { completion(from) }).for_each(each);
        Ok(())
    }

    #[inline]
    fn poll_raw(&self, into: &mut [MaybeUninit<ibv_wc>]) -> Result<usize, Error> {
        // SAFETY: the queue is alive, and so its context; the device's function writes at most as many entries as
        // it is told. This is what the inline function `ibv_poll_cq` does.
        let taken = unsafe {
            let raw = self.raw();
            match (*(*raw).context).ops.poll_cq {
                Some(poll) => poll(raw, into.len() as i32, into.as_mut_ptr().cast()),
                None => -libc::ENOSYS,
            }
        };
        if taken < 0 { Err(self.poll_failed(taken)) } else { Ok((taken as usize).min(into.len())) }
    }

    #[cold]
    fn poll_failed(&self, answer: i32) -> Error {
        // A negative answer is an error number for some devices and just -1 for others, without `errno`.
        let number = if answer == -1 { libc::EIO } else { -answer };
        self.context().error("ibv_poll_cq", std::io::Error::from_raw_os_error(number))
    }

    /// Asks for an event at the next completion. Poll once more after it: what came before makes no event.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub(crate) fn arm(&self) -> Result<(), Error> {
        // SAFETY: as in `poll_raw`; what the inline function `ibv_req_notify_cq` does.
        let answer = unsafe {
            let raw = self.raw();
            (*(*raw).context).ops.req_notify_cq.map_or(libc::ENOSYS, |arm| arm(raw, 0))
        };
        super::checked(answer).map_err(|error| self.context().error("ibv_req_notify_cq", error))
    }

    /// Takes and acknowledges the events that are there, without waiting.
    pub(crate) fn clear_events(&self) {
        let verbs = self.context().verbs();
        let mut events = 0;
        loop {
            let (mut of, mut cookie) = (std::ptr::null_mut(), std::ptr::null_mut());
            // SAFETY: the channel is alive and non-blocking; both pointers are places for answers.
            if unsafe { (verbs.get_cq_event)(self.0.channel.raw.as_ptr(), &mut of, &mut cookie) } != 0 {
                break;
            }
            debug_assert_eq!(of, self.raw(), "an event of another queue on this queue's channel");
            events += 1;
        }
        if events > 0 {
            // SAFETY: exactly this many events of this queue were taken.
            unsafe { (verbs.ack_cq_events)(self.raw(), events) };
        }
    }

    /// Readable when there is an event.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.channel.as_fd()
    }

    #[inline]
    pub(super) fn raw(&self) -> *mut ibv_cq {
        self.0.raw.as_ptr()
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.0.channel.context
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the channel is.
        unsafe { BorrowedFd::borrow_raw((*self.raw.as_ptr()).fd) }
    }
}

/// Makes reads of a descriptor return instead of wait.
pub(super) fn set_nonblocking(descriptor: BorrowedFd<'_>) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: flags of an open descriptor are read and written.
    unsafe {
        let flags = libc::fcntl(descriptor.as_raw_fd(), libc::F_GETFL);
        if flags < 0 || libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// # Safety
/// A device must have filled the entry: all fields on success, and `wr_id`, `status` and `qp_num` on failure
/// (ibv_poll_cq(3)).
#[inline]
unsafe fn completion(from: &MaybeUninit<ibv_wc>) -> WorkCompletion {
    let wc = from.as_ptr();
    // SAFETY: see above; nothing else is read until the status is known to be success.
    let (id, status, queue_pair) = unsafe { ((*wc).wr_id, (*wc).status, QueuePairNumber((*wc).qp_num)) };
    if status != 0 {
        // Some devices leave the opcode of a failure unset. What it was, the safe layer knows.
        let (status, opcode) = (status_of(status), WcOpcode::Send);
        return WorkCompletion { id, status, opcode, length_bytes: 0, immediate: None, queue_pair };
    }
    // SAFETY: on success the device filled it.
    let opcode = opcode_of(unsafe { (*wc).opcode });
    let opcode = opcode.unwrap_or(WcOpcode::Send);
    // SAFETY: on success flags and immediate data are filled, and `byte_len` for what arrives.
    let (length_bytes, immediate) = unsafe {
        let length_bytes = match opcode {
            WcOpcode::Send | WcOpcode::RdmaWrite => 0,
            WcOpcode::CompSwap | WcOpcode::FetchAdd => 8,
            WcOpcode::RdmaRead | WcOpcode::Recv | WcOpcode::RecvRdmaWithImm => (*wc).byte_len,
        };
        let arrived = matches!(opcode, WcOpcode::Recv | WcOpcode::RecvRdmaWithImm);
        let with_immediate = arrived && (*wc).wc_flags & value::WC_WITH_IMM != 0;
        (length_bytes, with_immediate.then(|| u32::from_be((*wc).imm_data)))
    };
    WorkCompletion { id, status: WcStatus::Success, opcode, length_bytes, immediate, queue_pair }
}

#[inline]
fn opcode_of(number: i32) -> Option<WcOpcode> {
    Some(match number {
        value::WC_SEND => WcOpcode::Send,
        value::WC_RDMA_WRITE => WcOpcode::RdmaWrite,
        value::WC_RDMA_READ => WcOpcode::RdmaRead,
        value::WC_COMP_SWAP => WcOpcode::CompSwap,
        value::WC_FETCH_ADD => WcOpcode::FetchAdd,
        value::WC_RECV => WcOpcode::Recv,
        value::WC_RECV_RDMA_WITH_IMM => WcOpcode::RecvRdmaWithImm,
        _ => return None,
    })
}

/// From `enum ibv_wc_status`. What reliable connections don't have (3, 14, 15, 17, 18: EE contexts, datagrams;
/// 22, 23: tag matching) is a general error.
#[cold]
fn status_of(number: i32) -> WcStatus {
    use WcStatus::*;
    const KNOWN: [WcStatus; 16] = [
        LocLenErr,
        LocQpOpErr,
        LocProtErr,
        WrFlushErr,
        MwBindErr,
        BadRespErr,
        LocAccessErr,
        RemInvReqErr,
        RemAccessErr,
        RemOpErr,
        RetryExcErr,
        RnrRetryExcErr,
        RemAbortErr,
        FatalErr,
        RespTimeoutErr,
        GeneralErr,
    ];
    KNOWN.into_iter().find(|status| *status as i32 == number).unwrap_or(GeneralErr)
}
