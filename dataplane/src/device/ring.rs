//! The io_uring of one core, beside glommio's own: reads straight into the core's arena, writes, flushes.
//!
//! Owns the ring, its eventfd, and every buffer in flight. Used by [`super::uring::UringDevice`] on the ring's core.
//!
//! Invariants:
//! - A buffer in flight belongs to the ring: dropping the future that waits for it abandons the request, and the
//!   buffer is freed when its last piece has completed, never before. Dropping the ring waits for the kernel.
//! - At most `queue_depth` pieces are in the kernel; the others wait in two queues, short requests before long ones,
//!   so that a point read does not queue behind the read-ahead of scans.
//! - A request completes once, when all its pieces have; a piece never crosses a registered region.
//!
//! Completions: the kernel signals the ring's eventfd; a task of the executor reads it through glommio's ring and
//! wakes what completed. A polled ring has a task that looks instead. Pieces queued during one turn of the executor are
//! submitted with one system call.
//!
//! Registered buffers save the kernel the page walk of each read. The arena is registered in regions when they are
//! first read into; when RLIMIT_MEMLOCK forbids it, reads go on unregistered after one warning.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd},
    pin::Pin,
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use io_uring::{IoUring, cqueue, opcode, squeue, types};

pub use super::requests::RingCounters;
use super::requests::{Buffer, Failure, Operation, Piece, Request, State, Target};
use crate::arena::Arena;

/// Bytes of arena registered at a time. Registering pins the pages, which takes an estimated 4 ms for this much memory.
const REGION_BYTES: usize = 16 << 20;
/// The kernel's limit on registered buffers (`IORING_MAX_REG_BUFFERS`).
const REGIONS_MAX: usize = 1 << 14;
/// Files one ring can have open.
const FILES_MAX: u32 = 64;
/// Requests up to this long overtake longer ones in the waiting queues.
const URGENT_BYTES_MAX: usize = 64 << 10;
/// The pause before what failed for now is tried again: twenty of them are longer than the reset of a drive usually takes.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Entries of 128 and 32 bytes, which NVMe passthrough needs; Linux has had them since 5.19, as it has had sparse tables.
type WideRing = IoUring<squeue::Entry128, cqueue::Entry32>;

/// The ring of one core. Cloning shares it.
#[derive(Clone)]
pub struct Ring(Rc<Inner>);

struct Inner {
    uring: RefCell<WideRing>,
    eventfd: OwnedFd,
    state: RefCell<State>,
    arena: Arena,
    queue_depth: u32,
    registered_regions: RefCell<Vec<bool>>,
    registration_refused: Cell<bool>,
    files_in_use: RefCell<Vec<bool>>,
    submit_is_scheduled: Cell<bool>,
    resume_is_scheduled: Cell<bool>,
    /// Operations in the kernel, but for those that wait for descriptors; for the watch thread of the cores.
    in_flight: Arc<AtomicU32>,
    /// Completions come only to those who look.
    is_polled: bool,
    /// The task that looks, while there is nothing to look for.
    poller: RefCell<Option<Waker>>,
}

impl Ring {
    /// A ring for this executor whose reads go into `arena`, with at most `queue_depth` operations in the kernel.
    /// Must be called on a glommio executor: it starts the task that reaps completions there.
    ///
    /// # Errors
    /// The kernel's, when it has no io_uring or refuses one.
    pub fn new(arena: &Arena, queue_depth: u32) -> io::Result<Ring> {
        Self::build(arena, queue_depth, false)
    }

    /// A ring whose completions are polled for (`IORING_SETUP_IOPOLL`) for as long as there are any to come, in turns with
    /// the executor's other tasks: the drive interrupts nobody, and the core does not sleep. For namespaces with poll
    /// queues only ([`super::nvme::Namespace::can_be_polled`]); [`Ring::readable`] is not possible on it.
    ///
    /// # Errors
    /// As [`Ring::new`].
    pub fn polled(arena: &Arena, queue_depth: u32) -> io::Result<Ring> {
        Self::build(arena, queue_depth, true)
    }

    fn build(arena: &Arena, queue_depth: u32, is_polled: bool) -> io::Result<Ring> {
        let queue_depth = queue_depth.clamp(1, 4096);
        let mut builder = WideRing::builder();
        builder.dontfork();
        if is_polled {
            builder.setup_iopoll();
        }
        let uring = builder.build(queue_depth.next_power_of_two())?;
        let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
        uring.submitter().register_eventfd(eventfd.as_raw_fd())?;
        uring.submitter().register_files_sparse(FILES_MAX)?;
        let regions = arena.bytes().div_ceil(REGION_BYTES);
        let mut refused = regions > REGIONS_MAX;
        if !refused && let Err(error) = uring.submitter().register_buffers_sparse(regions as u32) {
            tracing::warn!(%error, "the kernel has no sparse buffer tables: device reads go on unregistered");
            refused = true;
        }
        let inner = Rc::new(Inner {
            uring: RefCell::new(uring),
            eventfd,
            state: RefCell::default(),
            arena: arena.clone(),
            queue_depth,
            registered_regions: RefCell::new(vec![false; regions]),
            registration_refused: Cell::new(refused),
            files_in_use: RefCell::new(vec![false; FILES_MAX as usize]),
            submit_is_scheduled: Cell::new(false),
            resume_is_scheduled: Cell::new(false),
            in_flight: Arc::default(),
            is_polled,
            poller: RefCell::default(),
        });
        if is_polled {
            glommio::spawn_local(poll_until_dropped(Rc::downgrade(&inner))).detach();
        } else {
            let wakeups = inner.eventfd.try_clone()?;
            glommio::spawn_local(reap_until_dropped(Rc::downgrade(&inner), wakeups)).detach();
        }
        Ok(Ring(inner))
    }

    /// The arena that reads go into.
    pub fn arena(&self) -> &Arena {
        &self.0.arena
    }

    /// What it did so far.
    pub fn counters(&self) -> RingCounters {
        self.0.state.borrow().counters
    }

    /// How many operations the kernel has; may be read on any thread.
    pub(crate) fn in_flight_counter(&self) -> Arc<AtomicU32> {
        self.0.in_flight.clone()
    }

    /// Ready once `descriptor` is readable. A future that is dropped earlier leaves the poll behind
    /// until then: the kernel holds on to the file itself, so that closing the descriptor meanwhile harms nobody.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn readable(&self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let nowhere = Target { slot: 0, namespace: None, piece_bytes_max: 1 };
        match self.start(Operation::Poll(descriptor.as_raw_fd()), nowhere, 0, Buffer::None).await {
            Ok(_) | Err(Failure::Short { .. } | Failure::Status { .. }) => Ok(()),
            Err(Failure::Errno { errno, .. }) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Puts a file into the ring's file table; the slot is for [`Ring::start`].
    pub(super) fn register_file(&self, file: BorrowedFd<'_>) -> io::Result<u32> {
        let mut in_use = self.0.files_in_use.borrow_mut();
        let slot = in_use.iter().position(|used| !used).ok_or_else(|| io::Error::other("too many devices open"))?;
        self.0.uring.borrow().submitter().register_files_update(slot as u32, &[file.as_raw_fd()])?;
        in_use[slot] = true;
        Ok(slot as u32)
    }

    /// Frees a slot. Requests of it that are in the kernel go on; there must be none that wait.
    pub(super) fn unregister_file(&self, slot: u32) {
        // A failure leaves the slot in use, which is only a leaked slot.
        if self.0.uring.borrow().submitter().register_files_update(slot, &[-1]).is_ok() {
            self.0.files_in_use.borrow_mut()[slot as usize] = false;
        }
    }

    /// Queues one operation over the whole of `buffer` at `offset`, in pieces that the target takes.
    pub(super) fn start(&self, operation: Operation, target: Target, offset: u64, buffer: Buffer) -> InFlight {
        let length = match &buffer {
            Buffer::None => 0,
            Buffer::Arena(buffer) => buffer.len(),
            Buffer::Heap(buffer) => buffer.len(),
        };
        let arena_offset = match &buffer {
            Buffer::Arena(buffer) => Some(buffer.arena_offset()),
            _ => None,
        };
        let mut state = self.0.state.borrow_mut();
        let request = state.requests.insert(Request {
            operation,
            target,
            buffer,
            pieces_left: 0,
            failure: None,
            waker: None,
            abandoned: false,
        });
        let urgent = length <= URGENT_BYTES_MAX;
        let goes_registered = target.namespace.is_none() || !state.commands_go_unregistered;
        let (mut done, mut pieces) = (0, 0);
        while done < length || pieces == 0 {
            let mut piece_length = (length - done).min(target.piece_bytes_max);
            let mut region = None;
            if let Some(start) = arena_offset {
                let index = (start + done) / REGION_BYTES;
                piece_length = piece_length.min((index + 1) * REGION_BYTES - (start + done));
                region = if goes_registered { self.0.registered_region(index) } else { None };
            }
            let piece = Piece {
                request,
                offset: offset + done as u64,
                buffer_offset: done,
                length: piece_length,
                region,
                urgent,
                retries: 0,
            };
            let index = state.pieces.insert(piece);
            if urgent {
                state.urgent.push_back(index)
            } else {
                state.bulk.push_back(index)
            }
            done += piece_length;
            pieces += 1;
        }
        if let Some(request) = state.requests.get_mut(request) {
            request.pieces_left = pieces;
        }
        state.counters.count(operation, u64::from(pieces), length as u64);
        drop(state);
        self.0.schedule_submit();
        InFlight { ring: self.0.clone(), request: Some(request) }
    }
}

impl Inner {
    /// The registered buffer index of an arena region, registering it if it is not; `None` when that is refused.
    fn registered_region(&self, index: usize) -> Option<u16> {
        let buffer_index = u16::try_from(index).ok()?;
        if self.registration_refused.get() {
            return None;
        }
        let mut registered = self.registered_regions.borrow_mut();
        if !*registered.get(index)? {
            let start = index * REGION_BYTES;
            let iovec = libc::iovec {
                iov_base: self.arena.base().as_ptr().wrapping_add(start).cast(),
                iov_len: REGION_BYTES.min(self.arena.bytes() - start),
            };
            // SAFETY: the region is inside the arena's mapping, which outlives the ring (`self.arena`).
            let updated =
                unsafe { self.uring.borrow().submitter().register_buffers_update(buffer_index as u32, &[iovec], None) };
            if let Err(error) = updated {
                tracing::warn!(%error, "can't register arena memory with the I/O ring (RLIMIT_MEMLOCK?): device reads go on unregistered");
                self.registration_refused.set(true);
                return None;
            }
            registered[index] = true;
        }
        Some(buffer_index)
    }

    /// Submits at the end of this turn of the executor, together with what else is queued until then.
    fn schedule_submit(self: &Rc<Self>) {
        if self.submit_is_scheduled.replace(true) {
            return;
        }
        let ring = Rc::downgrade(self);
        let submit = async move {
            if let Some(ring) = ring.upgrade() {
                ring.submit();
            }
        };
        // In the queue of requests, whoever asks: the pieces of a scan must not wait for the turn of a merge.
        if let Ok(task) = glommio::spawn_local_into(submit, glommio::TaskQueueHandle::default()) {
            task.detach();
        }
    }

    /// Moves waiting pieces to the kernel, up to the queue depth.
    fn submit(self: &Rc<Self>) {
        self.submit_is_scheduled.set(false);
        let mut woken = Vec::new();
        {
            let mut uring = self.uring.borrow_mut();
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            let mut submissions = uring.submission();
            while state.in_kernel < self.queue_depth && !submissions.is_full() {
                let Some(index) = state.urgent.pop_front().or_else(|| state.bulk.pop_front()) else { break };
                let Some(entry) = state.entry(index) else {
                    state.finish(index, &mut woken);
                    continue;
                };
                // SAFETY: the entry's memory is owned by its request, which stays in `state.requests` until the
                // completion of all its pieces was seen; its file slot is registered.
                if unsafe { submissions.push(&entry) }.is_err() {
                    state.bulk.push_front(index);
                    break;
                }
                state.in_kernel += 1;
                state.polls += u32::from(state.is_poll(index));
            }
            self.in_flight.store(state.in_kernel.saturating_sub(state.polls), Ordering::Relaxed);
            let is_empty = submissions.is_empty();
            drop(submissions);
            if !is_empty && let Err(error) = uring.submit() {
                // The entries stay in the submission queue. EAGAIN and EBUSY pass; nothing else is expected.
                tracing::debug!(%error, "the kernel did not take submissions yet");
                let ring = Rc::downgrade(self);
                self.submit_is_scheduled.set(true);
                glommio::spawn_local(async move {
                    glommio::timer::sleep(Duration::from_millis(1)).await;
                    if let Some(ring) = ring.upgrade() {
                        ring.submit();
                    }
                })
                .detach();
            }
        }
        woken.into_iter().for_each(Waker::wake);
        if let Some(poller) = self.poller.take() {
            poller.wake();
        }
    }

    /// Takes completions and wakes the futures that wait for them.
    fn reap(self: &Rc<Self>) {
        let mut woken = Vec::new();
        let (more, postponed) = {
            let mut uring = self.uring.borrow_mut();
            let mut state = self.state.borrow_mut();
            if self.is_polled
                && state.in_kernel > 0
                // Enters the kernel, which looks at the drive's queues.
                && let Err(error) = uring.submit()
            {
                tracing::debug!(%error, "the kernel did not look for completions");
            }
            for completion in uring.completion() {
                state.complete(completion.user_data() as u32, completion.result(), &mut woken);
            }
            self.in_flight.store(state.in_kernel.saturating_sub(state.polls), Ordering::Relaxed);
            (!state.urgent.is_empty() || !state.bulk.is_empty(), !state.postponed.is_empty())
        };
        woken.into_iter().for_each(Waker::wake);
        if more {
            self.submit();
        }
        if postponed && !self.resume_is_scheduled.replace(true) {
            let ring = Rc::downgrade(self);
            glommio::spawn_local(async move {
                glommio::timer::sleep(RETRY_PAUSE).await;
                if let Some(ring) = ring.upgrade() {
                    ring.resume_is_scheduled.set(false);
                    ring.state.borrow_mut().resume();
                    ring.submit();
                }
            })
            .detach();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let uring = self.uring.get_mut();
        let state = self.state.get_mut();
        let mut forgotten = Vec::new();
        if state.polls > 0 {
            // They might wait for ever. Everything may be cancelled: nobody is left who wants it.
            let cancel = opcode::AsyncCancel2::new(types::CancelBuilder::any().all()).build().user_data(u64::MAX);
            // SAFETY: the entry refers to no memory.
            if unsafe { uring.submission().push(&cancel.into()) }.is_ok() {
                state.in_kernel += 1;
            }
        }
        while state.in_kernel > 0 {
            match uring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    // Memory that the kernel may still write to must not be freed.
                    tracing::error!(%error, "can't wait for I/O in flight: its memory is leaked");
                    std::mem::forget(std::mem::take(state));
                    break;
                }
            }
            for completion in uring.completion() {
                state.complete(completion.user_data() as u32, completion.result(), &mut forgotten);
            }
        }
        // Lets the reaper see that the ring is gone.
        let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
        if let Some(poller) = self.poller.take() {
            poller.wake();
        }
    }
}

/// Waits for the eventfd through glommio's ring, and reaps.
async fn reap_until_dropped(ring: Weak<Inner>, eventfd: OwnedFd) {
    // SAFETY: the descriptor is owned here and given away.
    let wakeups = unsafe { glommio::io::BufferedFile::from_raw_fd(eventfd.into_raw_fd()) };
    loop {
        let waited = wakeups.read_at(0, 8).await.map(drop);
        let Some(ring) = ring.upgrade() else { break };
        if let Err(error) = waited {
            tracing::error!(%error, "can't wait for the I/O ring's eventfd: polling it");
            glommio::timer::sleep(Duration::from_millis(1)).await;
        }
        ring.reap();
    }
    let _ = wakeups.close().await;
}

/// Looks for completions while there are any to come, a look for each turn of the executor, and reaps.
async fn poll_until_dropped(ring: Weak<Inner>) {
    loop {
        let has_work = std::future::poll_fn(|context| match ring.upgrade() {
            None => Poll::Ready(false),
            Some(ring) if ring.state.borrow().in_kernel > 0 => Poll::Ready(true),
            Some(ring) => {
                ring.poller.replace(Some(context.waker().clone()));
                Poll::Pending
            }
        });
        if !has_work.await {
            break;
        }
        if let Some(ring) = ring.upgrade() {
            ring.reap();
        }
        glommio::executor().yield_now().await;
    }
}

/// A request in flight. Resolves to its buffer.
pub(super) struct InFlight {
    ring: Rc<Inner>,
    request: Option<u32>,
}

impl Future for InFlight {
    type Output = Result<Buffer, Failure>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let index = self.request.expect("a future is not polled after it was ready");
        let mut state = self.ring.state.borrow_mut();
        let request = state.requests.get_mut(index).expect("a request lives until its future takes it");
        if request.pieces_left > 0 {
            if !request.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                request.waker = Some(context.waker().clone());
            }
            return Poll::Pending;
        }
        let request = state.requests.remove(index).expect("just found");
        drop(state);
        self.request = None;
        Poll::Ready(match request.failure {
            Some(failure) => Err(failure),
            None => Ok(request.buffer),
        })
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let Some(index) = self.request else { return };
        let mut state = self.ring.state.borrow_mut();
        let Some(request) = state.requests.get_mut(index) else { return };
        if request.pieces_left == 0 {
            state.requests.remove(index);
        } else {
            request.abandoned = true;
            request.waker = None;
        }
    }
}
