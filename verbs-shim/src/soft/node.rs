//! One soft device at work: the engine, its socket, and whoever drives them.
//!
//! Owns: the lock under which all of it happens, the progress thread if there is one, and the accounting of the
//! socket's receive buffer. Called by [`provider`](super::provider) only.
//!
//! Invariants
//! - Grants given out sum up to what the socket's receive buffer holds, so that peers who keep to them never make it
//!   overflow, however long nobody reads it. (Below [`GRANT_BYTES_MIN`] a grant is of no use: past that many queue
//!   pairs the buffer is overcommitted, and lost packets are sent again.)
//! - Nothing here blocks but the progress thread, and that never under the lock.
//!
//! Whoever polls for completions drives the node; whoever sleeps on a completion queue's descriptor is woken by the socket
//! itself, without a thread in between. The progress thread is for programs that do neither for a while: it looks every
//! [`WATCH`] whether somebody still drives, and only when nobody did sleeps on the socket itself.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};

use crate::Error;
use crate::soft::engine::{CompletionQueueId, Engine, EngineConfig};
use crate::soft::memory::RawMemory;
use crate::soft::socket::{Left, Socket, Transmission};

/// What a packet costs in a socket's buffer beyond its bytes: the kernel's `struct sk_buff` and shared info.
pub(crate) const PACKET_OVERHEAD_BYTES: u32 = 768;
/// The least that a queue pair is granted: a packet of 4,096 bytes each way, and some.
const GRANT_BYTES_MIN: u64 = 24 << 10;
/// The most: beyond it more in flight only leaves the caches.
const GRANT_BYTES_MAX: u64 = 4 << 20;
/// Acknowledgements of more packets than this do not wait for an answer: it is no conversation but a stream.
const DEFER_PACKETS: usize = 4;
/// Turns of receiving in one call.
const TURNS: usize = 4;
/// What the kernel did not take is offered again after this.
const TRY_AGAIN: Duration = Duration::from_millis(1);
/// While somebody drives the node, the progress thread looks on from this distance.
const WATCH: Duration = Duration::from_millis(10);

/// A completion queue that somebody may sleep for.
struct Watched {
    queue: CompletionQueueId,
    descriptor: Arc<OwnedFd>,
    /// The descriptor is readable.
    is_announced: bool,
}

/// The state behind the lock.
pub(crate) struct Node {
    pub(crate) engine: Engine<RawMemory>,
    socket: Socket,
    transmission: Transmission,
    epoch: Instant,
    watched: Vec<Watched>,
    /// Wakes whoever sleeps on a descriptor when the next deadline comes.
    timer: Timer,
    /// How often somebody drove it.
    turns: u64,
    /// Packets may have been left in the socket by the last look.
    has_backlog: bool,
    /// The progress thread sleeps on the socket, until this is written: it would not see what others take away from
    /// under it.
    thread_sleeps: Option<Arc<OwnedFd>>,
    /// The queue that was armed a moment ago, after a look at the socket: the poll that follows need not look again.
    looked_for: Option<CompletionQueueId>,
    ungranted_bytes: u64,
    /// Acknowledgements wait for the next call.
    deferred: bool,
    /// Packets that the kernel would not send, and failed attempts to receive.
    pub(crate) socket_errors: u64,
}

impl Node {
    fn new(socket: Socket, config: EngineConfig, epoch: Instant, timer: Timer) -> Self {
        // The kernel counts a packet's buffer rounded up to at most twice its bytes, and gives back what was read
        // only when it is a quarter of the whole (`udp_rmem_release`).
        let ungranted_bytes = socket.receive_buffer_bytes() as u64 * 3 / 8;
        let transmission = Transmission::new();
        Node {
            engine: Engine::new(config),
            socket,
            transmission,
            epoch,
            watched: Vec::new(),
            timer,
            turns: 0,
            has_backlog: false,
            thread_sleeps: None,
            looked_for: None,
            ungranted_bytes,
            deferred: false,
            socket_errors: 0,
        }
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    fn now_ns(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// A share of the receive buffer: half of what is left, within bounds.
    pub(crate) fn grant(&mut self) -> u64 {
        let grant = (self.ungranted_bytes / 2).min(GRANT_BYTES_MAX);
        self.ungranted_bytes -= grant;
        grant
    }

    pub(crate) fn return_grant(&mut self, grant: u64) {
        self.ungranted_bytes += grant;
    }

    /// Takes what has arrived, handles timers, sends.
    pub(crate) fn progress(&mut self) {
        let now_ns = self.now_ns();
        self.take_in(now_ns, Left::Perhaps);
        self.transmit_at(now_ns);
        self.notify();
        self.set_timer_at(now_ns);
    }

    /// Like [`Self::progress`], for somebody who polls for completions, or watches memory that the peer writes: when
    /// something came for them, sending waits for what they post next, or for their next call, so that an answer and
    /// the acknowledgement of what it answers share a call of the kernel.
    pub(crate) fn progress_for(&mut self, queue: CompletionQueueId) {
        if self.looked_for.take() == Some(queue) {
            return;
        }
        let now_ns = self.now_ns();
        let arrived = self.take_in(now_ns, Left::Likely);
        let answer_likely = self.engine.completions_waiting(queue) > 0
            || (!self.deferred && (1..=DEFER_PACKETS).contains(&arrived) && self.engine.owes_only_acknowledgements());
        if !answer_likely || !self.transmission.is_empty() {
            self.transmit_at(now_ns);
        } else {
            self.deferred = true;
        }
        self.notify();
    }

    fn set_timer_at(&mut self, now_ns: u64) {
        let until_ns = self.due_ns(now_ns).map_or(u64::MAX, |due| due.max(now_ns + 1));
        self.timer.set(now_ns, until_ns);
    }

    /// When something has to be done at the latest, unless something arrives.
    fn due_ns(&self, now_ns: u64) -> Option<u64> {
        if self.transmission.is_empty() {
            self.engine.next_deadline()
        } else {
            Some(now_ns + TRY_AGAIN.as_nanos() as u64)
        }
    }

    /// Takes what has arrived, looking again while at least `again` is left; how many packets.
    fn take_in(&mut self, now_ns: u64, again: Left) -> usize {
        self.turns += 1;
        self.looked_for = None;
        if let Some(wake) = self.thread_sleeps.take() {
            let _ = rustix::io::write(&*wake, &1u64.to_ne_bytes());
        }
        let mut packets = 0;
        self.has_backlog = true;
        for _ in 0..TURNS {
            let engine = &mut self.engine;
            let received = self.socket.receive(|header, packet| {
                packets += 1;
                engine.receive(now_ns, header, packet);
            });
            match received {
                Ok(left) if left >= again => {}
                Ok(_) => {
                    self.has_backlog = false;
                    break;
                }
                Err(_) => {
                    self.socket_errors += 1;
                    self.has_backlog = false;
                    break;
                }
            }
        }
        if self.engine.next_deadline().is_some_and(|deadline| deadline <= now_ns) {
            self.engine.handle_deadlines(now_ns);
        }
        packets
    }

    /// Has the queue's descriptor become readable with its next completion, after a last look; false if one waits, or
    /// packets do: who is woken by edges would not hear of them again.
    pub(crate) fn arm(&mut self, queue: CompletionQueueId) -> bool {
        self.progress();
        if self.has_backlog || self.engine.completions_waiting(queue) > 0 {
            return false;
        }
        self.engine.arm(queue);
        self.looked_for = Some(queue);
        true
    }

    /// Somebody woke up who slept on this queue's descriptor, and is going to poll: nothing needs to be announced.
    pub(crate) fn woke(&mut self, queue: CompletionQueueId) {
        self.looked_for = None;
        self.engine.disarm(queue);
        let watched = self.watched.iter_mut().find(|watched| watched.queue == queue);
        if let Some(Watched { descriptor, is_announced, .. }) = watched
            && std::mem::take(is_announced)
        {
            drain(descriptor);
        }
    }

    /// Sends what there is to send.
    pub(crate) fn transmit(&mut self) {
        if self.engine.wants_transmit() || !self.transmission.is_empty() {
            let now_ns = self.now_ns();
            self.transmit_at(now_ns);
            self.set_timer_at(now_ns);
        }
    }

    fn transmit_at(&mut self, now_ns: u64) {
        self.deferred = false;
        loop {
            let mut dry = true;
            while let Some(room) = self.transmission.room() {
                let Some(packet) = self.engine.poll_transmit(now_ns, room) else { break };
                self.transmission.push(packet.bytes, packet.destination);
                dry = false;
            }
            if self.transmission.is_empty() {
                return;
            }
            self.socket_errors += self.socket.send(&mut self.transmission);
            if dry || !self.transmission.is_empty() {
                return;
            }
        }
    }

    /// Signals the descriptors of armed queues that got a completion.
    pub(crate) fn notify(&mut self) {
        for Watched { queue, descriptor, is_announced } in &mut self.watched {
            if self.engine.take_notification(*queue) && !*is_announced {
                // It can only fail when the counter is at its end, and then it is readable anyway.
                let _ = rustix::io::write(&**descriptor, &1u64.to_ne_bytes());
                *is_announced = true;
            }
        }
    }

    pub(crate) fn watch(&mut self, queue: CompletionQueueId, descriptor: Arc<OwnedFd>) {
        self.watched.push(Watched { queue, descriptor, is_announced: false });
    }

    pub(crate) fn unwatch(&mut self, queue: CompletionQueueId) {
        self.watched.retain(|watched| watched.queue != queue);
    }
}

/// What is shared with the progress thread.
struct Inner {
    node: Mutex<Node>,
    ending: AtomicBool,
    wake: Arc<OwnedFd>,
}

/// A node, and its progress thread: ends it when dropped.
pub(crate) struct Driver {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

/// A timer whose descriptor is readable from its time on.
struct Timer {
    descriptor: Arc<OwnedFd>,
    /// When it is set to, in nanoseconds since the epoch; `u64::MAX` when it is not.
    until_ns: u64,
}

impl Driver {
    pub(crate) fn start(socket: Socket, config: EngineConfig, threaded: bool) -> Result<Arc<Driver>, Error> {
        let name = socket.local().to_string();
        let fail = |call| {
            let name = name.clone();
            move |error: rustix::io::Errno| Error::os(name, call, error.into())
        };
        let timer = Timer::new().map_err(fail("timerfd_create"))?;
        let inner = Arc::new(Inner {
            node: Mutex::new(Node::new(socket, config, Instant::now(), timer)),
            ending: AtomicBool::new(false),
            wake: Arc::new(eventfd().map_err(fail("eventfd"))?),
        });
        let thread = if threaded {
            let inner = inner.clone();
            let run = move || inner.run();
            let thread = std::thread::Builder::new().name("verbs-progress".into()).spawn(run);
            Some(thread.map_err(|error| Error::os(name, "spawning the progress thread", error))?)
        } else {
            None
        };
        Ok(Arc::new(Driver { inner, thread }))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Node> {
        self.inner.lock()
    }

    /// What to sleep on for completions that `signal` announces, and for whatever gives the node something to do.
    pub(crate) fn sleeper(&self, signal: &OwnedFd) -> rustix::io::Result<OwnedFd> {
        use rustix::event::epoll;
        let node = self.lock();
        let sleeper = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for descriptor in [node.socket.as_fd(), node.timer.descriptor.as_fd(), signal.as_fd()] {
            let data = epoll::EventData::new_u64(descriptor.as_raw_fd() as u64);
            epoll::add(&sleeper, descriptor, data, epoll::EventFlags::IN)?;
        }
        Ok(sleeper)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.inner.ending.store(true, Ordering::Release);
            self.inner.wake();
            // A progress thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Node> {
        self.node.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wake(&self) {
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }

    fn run(&self) {
        let descriptors = {
            let node = self.lock();
            node.socket.as_fd().try_clone_to_owned().map(|socket| (socket, node.timer.descriptor.clone()))
        };
        let (socket, timer) = match descriptors {
            Ok(descriptors) => descriptors,
            Err(error) => {
                eprintln!("verbs-shim: no progress thread: the socket cannot be watched: {error}");
                return;
            }
        };
        let mut seen = 0;
        while !self.ending.load(Ordering::Acquire) {
            let is_driven = {
                let mut node = self.lock();
                let is_driven = node.turns != seen;
                node.thread_sleeps = None;
                if !is_driven {
                    node.progress();
                    node.thread_sleeps = Some(self.wake.clone());
                }
                seen = node.turns;
                is_driven
            };
            if is_driven {
                self.sleep(&[], Some(timespec(WATCH)));
            } else {
                self.sleep(&[socket.as_fd(), timer.as_fd()], None);
            }
        }
    }

    /// Until one of them is readable, the time is over, or somebody calls [`Self::wake`].
    fn sleep(&self, descriptors: &[BorrowedFd<'_>], at_most: Option<Timespec>) {
        let all = std::iter::once(self.wake.as_fd()).chain(descriptors.iter().copied());
        let mut all: Vec<PollFd<'_>> =
            all.map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN)).collect();
        if rustix::event::poll(&mut all, at_most.as_ref()).is_ok() && all[0].revents().contains(PollFlags::IN) {
            drain(&self.wake);
        }
    }
}

impl Timer {
    fn new() -> rustix::io::Result<Self> {
        // SAFETY: a call without pointers.
        let timer = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) };
        if timer < 0 {
            let error = io::Error::last_os_error();
            return Err(rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::INVAL));
        }
        // SAFETY: just opened, nobody else's.
        let descriptor = Arc::new(unsafe { OwnedFd::from_raw_fd(timer) });
        Ok(Timer { descriptor, until_ns: u64::MAX })
    }

    /// Sets it anew, if the time is another: deadlines mostly stay where they are, or move away, and a timer that fires
    /// early costs less than a system call per packet.
    fn set(&mut self, now_ns: u64, until_ns: u64) {
        let pending = self.until_ns > now_ns;
        if self.until_ns == until_ns || (pending && self.until_ns < until_ns) {
            return;
        }
        self.until_ns = until_ns;
        // Zero stops it, and makes it unreadable.
        let rest = Duration::from_nanos(if until_ns == u64::MAX { 0 } else { until_ns - now_ns });
        let value =
            libc::timespec { tv_sec: rest.as_secs() as libc::time_t, tv_nsec: rest.subsec_nanos() as libc::c_long };
        let time = libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        // It fails for descriptors that are no timers only.
        // SAFETY: the pointer is to `time`; the old setting is not asked for.
        unsafe { libc::timerfd_settime(self.descriptor.as_raw_fd(), 0, &time, std::ptr::null_mut()) };
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: duration.subsec_nanos().into() }
}

/// An event counter that never blocks.
pub(crate) fn eventfd() -> rustix::io::Result<OwnedFd> {
    rustix::event::eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
}

/// Makes an event counter or timer unreadable until the next event.
pub(crate) fn drain(descriptor: &OwnedFd) {
    let mut count = [0u8; 8];
    let _: Result<usize, rustix::io::Errno> = rustix::io::read(descriptor, &mut count);
}

impl Node {
    /// The bytes that a peer may have in flight towards a queue pair, and those it may ask for itself, out of a grant.
    pub(crate) fn windows(grant: u64) -> (u64, u64) {
        let half = grant.max(GRANT_BYTES_MIN) / 2;
        (half, half)
    }
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("threaded", &self.thread.is_some()).finish_non_exhaustive()
    }
}
