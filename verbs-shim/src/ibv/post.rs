//! The fast path: work requests in the device's format, chained on the stack, handed over 16 at a time.
//!
//! Called by `queue_pair`. Nothing is allocated, and pieces are not copied: [`Sge`] has the layout of
//! `struct ibv_sge`, which the compiler checks.
//!
//! Invariants
//! - Requests are accepted in order, and as many as reported: one that is refused here ends its chain, the chain
//!   before it is posted, and nothing after it is.
//! - Pointers in a chain live until the device's function returns; it keeps none (ibv_post_send(3)).
//!
//! Cost: one signalled 8-byte WRITE, posted and polled through here, takes 16 to 28 ns more than on bare libibverbs
//! (measured on the stub, 18 ns bare; `what_the_raw_layer_adds` in `tests`).

use std::mem::{MaybeUninit, offset_of};

use super::abi::*;
use crate::verbs::{
    Data, MESSAGE_BYTES_MAX, MemoryKey, Operation, PostError, ReceiveRequest, SGE_MAX, Sge, WorkRequest,
};

/// Requests of one chain.
const CHAIN: usize = 16;

const _: () = {
    assert!(size_of::<Sge>() == size_of::<ibv_sge>() && align_of::<Sge>() == align_of::<ibv_sge>());
    assert!(offset_of!(Sge, address) == offset_of!(ibv_sge, addr));
    assert!(offset_of!(Sge, length) == offset_of!(ibv_sge, length));
    assert!(offset_of!(Sge, key) == offset_of!(ibv_sge, lkey) && size_of::<MemoryKey>() == 4);
};

/// What a queue pair accepts.
pub(super) struct Limits {
    pub inline_bytes: usize,
    /// Of the port, at most 2^31.
    pub message_bytes: u64,
    pub reads_and_atomics: bool,
    pub immediate: bool,
    pub atomics: bool,
}

/// # Safety
/// The queue pair is alive. The memory of the pieces is as [`super::QueuePair::post_send`] says.
#[inline]
pub(super) unsafe fn send(
    queue_pair: *mut ibv_qp,
    requests: &[WorkRequest<'_>],
    limits: &Limits,
) -> Result<(), (usize, PostError)> {
    // SAFETY: a live queue pair points to its live context.
    let Some(post) = (unsafe { (*(*queue_pair).context).ops.post_send }) else {
        return Err((0, PostError::Os(libc::ENOSYS)));
    };
    let mut chain = [const { MaybeUninit::<ibv_send_wr>::uninit() }; CHAIN];
    let mut inline = [const { MaybeUninit::<ibv_sge>::uninit() }; CHAIN];
    let mut accepted = 0;
    for batch in requests.chunks(CHAIN) {
        let first = chain.as_mut_ptr().cast::<ibv_send_wr>();
        let (mut length, mut refused) = (0, None);
        for (request, inline_piece) in batch.iter().zip(&mut inline) {
            // SAFETY: `length` counts the requests before this one, of which there are fewer than `CHAIN`.
            match unsafe { write_send(first.add(length), request, inline_piece, limits) } {
                Ok(()) => length += 1,
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        if length > 0 {
            let mut bad = std::ptr::null_mut();
            // SAFETY: entries 0 to `length` are written and linked, the last one to null here. This is what the
            // inline function `ibv_post_send` does.
            let answer = unsafe {
                (*first.add(length - 1)).next = std::ptr::null_mut();
                post(queue_pair, first, &mut bad)
            };
            if answer != 0 {
                return Err((accepted + place(first, bad, length), error_of(answer)));
            }
            accepted += length;
        }
        if let Some(error) = refused {
            return Err((accepted, error));
        }
    }
    Ok(())
}

/// One request: what [`send`] does, without a chain.
///
/// # Safety
/// As for [`send`].
#[inline]
pub(super) unsafe fn send_one(
    queue_pair: *mut ibv_qp,
    request: &WorkRequest<'_>,
    limits: &Limits,
) -> Result<(), (usize, PostError)> {
    // SAFETY: as in `send`.
    let Some(post) = (unsafe { (*(*queue_pair).context).ops.post_send }) else {
        return Err((0, PostError::Os(libc::ENOSYS)));
    };
    let (mut one, mut inline) = (MaybeUninit::<ibv_send_wr>::uninit(), MaybeUninit::uninit());
    let (first, mut bad) = (one.as_mut_ptr(), std::ptr::null_mut());
    // SAFETY: `first` may be written; after that it is a chain of one.
    let answer = unsafe {
        write_send(first, request, &mut inline, limits).map_err(|error| (0, error))?;
        (*first).next = std::ptr::null_mut();
        post(queue_pair, first, &mut bad)
    };
    if answer == 0 { Ok(()) } else { Err((place(first, bad, 1), error_of(answer))) }
}

/// Writes one request and links it to the place after it.
///
/// # Safety
/// `to` may be written.
#[inline]
unsafe fn write_send(
    to: *mut ibv_send_wr,
    request: &WorkRequest<'_>,
    inline_piece: &mut MaybeUninit<ibv_sge>,
    limits: &Limits,
) -> Result<(), PostError> {
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    let mut flags = flag(request.signalled, value::SEND_SIGNALED)
        | flag(request.fence, value::SEND_FENCE)
        | flag(request.solicited, value::SEND_SOLICITED);
    let (pieces, count, bytes) = match request.data {
        Data::Pieces(pieces) => {
            if pieces.len() > SGE_MAX {
                return Err(PostError::TooManyPieces(pieces.len()));
            }
            let bytes = pieces.iter().map(|piece| piece.length as u64).sum();
            (pieces.as_ptr().cast::<ibv_sge>().cast_mut(), pieces.len() as i32, bytes)
        }
        Data::Inline(data) => {
            if !matches!(request.operation, Operation::Send { .. } | Operation::Write { .. }) {
                return Err(PostError::InlineResult);
            }
            if data.len() > limits.inline_bytes {
                return Err(PostError::InlineTooLong { bytes: data.len(), limit: limits.inline_bytes });
            }
            flags |= value::SEND_INLINE;
            let piece = ibv_sge { addr: data.as_ptr() as u64, length: data.len() as u32, lkey: 0 };
            (inline_piece.write(piece) as *mut ibv_sge, 1, data.len() as u64)
        }
    };
    if bytes > limits.message_bytes {
        return Err(if bytes > MESSAGE_BYTES_MAX {
            PostError::MessageTooLong(bytes)
        } else {
            PostError::Os(libc::EMSGSIZE)
        });
    }
    let rdma = |remote_addr, key: MemoryKey| ibv_send_wr_union { rdma: ibv_wr_rdma { remote_addr, rkey: key.0 } };
    let with = |immediate: Option<u32>, plain, with_immediate| match immediate {
        None => Ok((plain, 0)),
        Some(number) if limits.immediate => Ok((with_immediate, number.to_be())),
        Some(_) => Err(PostError::Os(libc::EOPNOTSUPP)),
    };
    let ((opcode, imm_data), wr) = match request.operation {
        Operation::Send { immediate } => {
            (with(immediate, value::WR_SEND, value::WR_SEND_WITH_IMM)?, rdma(0, MemoryKey(0)))
        }
        Operation::Write { remote_address, remote_key, immediate } => {
            (with(immediate, value::WR_RDMA_WRITE, value::WR_RDMA_WRITE_WITH_IMM)?, rdma(remote_address, remote_key))
        }
        Operation::Read { remote_address, remote_key } => {
            if !limits.reads_and_atomics {
                return Err(PostError::ReadAtomicDisabled);
            }
            ((value::WR_RDMA_READ, 0), rdma(remote_address, remote_key))
        }
        Operation::CompareSwap { remote_address, remote_key, compare, swap } => {
            check_atomic(limits, bytes)?;
            let atomic = ibv_wr_atomic { remote_addr: remote_address, compare_add: compare, swap, rkey: remote_key.0 };
            ((value::WR_ATOMIC_CMP_AND_SWP, 0), ibv_send_wr_union { atomic })
        }
        Operation::FetchAdd { remote_address, remote_key, add } => {
            check_atomic(limits, bytes)?;
            let atomic = ibv_wr_atomic { remote_addr: remote_address, compare_add: add, swap: 0, rkey: remote_key.0 };
            ((value::WR_ATOMIC_FETCH_AND_ADD, 0), ibv_send_wr_union { atomic })
        }
    };
    // SAFETY: the caller gives a place to write to. What follows `wr` is for other kinds of queue pairs.
    unsafe {
        (&raw mut (*to).wr_id).write(request.id);
        (&raw mut (*to).next).write(to.wrapping_add(1));
        (&raw mut (*to).sg_list).write(pieces);
        (&raw mut (*to).num_sge).write(count);
        (&raw mut (*to).opcode).write(opcode);
        (&raw mut (*to).send_flags).write(flags);
        (&raw mut (*to).imm_data).write(imm_data);
        (&raw mut (*to).wr).write(wr);
    }
    Ok(())
}

#[inline]
fn check_atomic(limits: &Limits, bytes: u64) -> Result<(), PostError> {
    if bytes != 8 {
        return Err(PostError::AtomicLength(bytes));
    }
    match limits {
        Limits { atomics: false, .. } => Err(PostError::Os(libc::EOPNOTSUPP)),
        Limits { reads_and_atomics: false, .. } => Err(PostError::ReadAtomicDisabled),
        _ => Ok(()),
    }
}

/// # Safety
/// The queue pair is alive. The memory of the pieces is as [`super::QueuePair::post_receive`] says.
#[inline]
pub(super) unsafe fn receive(
    queue_pair: *mut ibv_qp,
    requests: &[ReceiveRequest<'_>],
) -> Result<(), (usize, PostError)> {
    // SAFETY: a live queue pair points to its live context.
    let Some(post) = (unsafe { (*(*queue_pair).context).ops.post_recv }) else {
        return Err((0, PostError::Os(libc::ENOSYS)));
    };
    // SAFETY: the chain is valid during the call.
    post_receives(requests, |first, bad| unsafe { post(queue_pair, first, bad) })
}

/// # Safety
/// The shared receive queue is alive, and the memory as for [`receive`].
#[inline]
pub(super) unsafe fn receive_shared(
    queue: *mut ibv_srq,
    requests: &[ReceiveRequest<'_>],
) -> Result<(), (usize, PostError)> {
    // SAFETY: a live shared receive queue points to its live context.
    let Some(post) = (unsafe { (*(*queue).context).ops.post_srq_recv }) else {
        return Err((0, PostError::Os(libc::ENOSYS)));
    };
    // SAFETY: the chain is valid during the call.
    post_receives(requests, |first, bad| unsafe { post(queue, first, bad) })
}

#[inline]
fn post_receives(
    requests: &[ReceiveRequest<'_>],
    post: impl Fn(*mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> i32,
) -> Result<(), (usize, PostError)> {
    let mut chain = [const { MaybeUninit::<ibv_recv_wr>::uninit() }; CHAIN];
    let mut accepted = 0;
    for batch in requests.chunks(CHAIN) {
        let first = chain.as_mut_ptr().cast::<ibv_recv_wr>();
        let fitting = batch.iter().position(|request| request.pieces.len() > SGE_MAX).unwrap_or(batch.len());
        for (index, request) in batch[..fitting].iter().enumerate() {
            let (at, next) = (first.wrapping_add(index), first.wrapping_add(index + 1));
            let sg_list = request.pieces.as_ptr().cast::<ibv_sge>().cast_mut();
            let next = if index + 1 < fitting { next } else { std::ptr::null_mut() };
            // SAFETY: `index` is below the chain's length.
            unsafe { at.write(ibv_recv_wr { wr_id: request.id, next, sg_list, num_sge: request.pieces.len() as i32 }) };
        }
        if fitting > 0 {
            let mut bad = std::ptr::null_mut();
            let answer = post(first, &mut bad);
            if answer != 0 {
                return Err((accepted + place(first, bad, fitting), error_of(answer)));
            }
            accepted += fitting;
        }
        if let Some(request) = batch.get(fitting) {
            return Err((accepted, PostError::TooManyPieces(request.pieces.len())));
        }
    }
    Ok(())
}

/// Which request the device stopped at: the number of those before it. If it does not say, all may be posted, and their
/// memory must stay with them.
#[cold]
fn place<T>(first: *mut T, bad: *mut T, length: usize) -> usize {
    let bytes = (bad as usize).wrapping_sub(first as usize);
    let index = bytes / size_of::<T>();
    if bytes.is_multiple_of(size_of::<T>()) && index < length { index } else { length }
}

#[cold]
fn error_of(answer: i32) -> PostError {
    match super::checked(answer).err().and_then(|error| error.raw_os_error()) {
        Some(libc::ENOMEM) => PostError::QueueFull,
        Some(number) => PostError::Os(number),
        None => PostError::Os(libc::EIO),
    }
}
