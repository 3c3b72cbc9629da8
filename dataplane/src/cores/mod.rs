//! The cores of a cell: one pinned glommio executor per core, and the messages between them.
//!
//! Owns the executor threads and each core's context ([`Core`]: ring, arena, device, cache, task queues). Called by
//! the control thread (start, stop), the server (sessions run on a core) and the scan driver ([`scan`]).
//!
//! Invariants:
//! - What a core owns is reached on that core only, through [`Core::current`]; other threads send closures with
//!   [`Cores::run_on`]. Shared between cores are only channels and immutable data.
//! - A panic in a task becomes an `Internal` error of that task; the core lives on.
//! - No queue is unbounded: a core takes at most [`JOBS_MAX`] jobs in waiting, then senders wait.
//!
//! glommio's tasks are cooperative: work that takes long calls [`Turn::yield_if_due`] at least every 100 us. The
//! executor looks at its rings at least every 250 us (the preempt timer).
//!
//! glommio 0.9 can fall asleep with tasks that are ready; the watch thread of [`nudge`] wakes it.

mod cpus;
mod hot_groups;
mod nudge;
mod open;
pub mod positions;
pub(crate) mod read_ahead;
pub mod scan;
mod start;
pub mod work;

use std::{
    any::Any,
    cell::RefCell,
    future::Future,
    panic::AssertUnwindSafe,
    path::PathBuf,
    pin::pin,
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use futures::{FutureExt, channel::oneshot};
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement, TaskQueueHandle};
use hidb::{Error, ErrorCode, Result};

use self::{hot_groups::HotGroups, start::Start};
use crate::{
    arena::Arena,
    cache::BlockCache,
    device::{ring::Ring, uring::UringDevice},
    fabric::port::Ports,
};

/// Jobs that may wait for one core.
pub const JOBS_MAX: usize = 4096;
/// Work after which a task lets others run.
pub const TURN_US_MAX: u64 = 100;
/// How often an executor that has work looks at its rings.
const PREEMPT_US: u64 = 250;
/// Bytes of cache for each byte of other cores' row groups that a core may answer for.
const CACHE_PER_HOT: u64 = 8;
/// How long an executor may take to run its first task before another is started in its place.
const START_PATIENCE: Duration = Duration::from_millis(250);
/// Locked memory of glommio's own buffers, per executor.
const GLOMMIO_MEMORY_BYTES: usize = 1 << 20;

/// What the cores are started with.
#[derive(Clone, Debug)]
pub struct CoresConfig {
    /// The volume that every core opens on its ring; without one, cores only compute.
    pub volume: Option<PathBuf>,
    /// Bytes of arena per core; it holds the cached chunks and the reads in flight.
    pub arena_bytes: usize,
    /// Bytes of chunks that a core caches, at most three quarters of its arena.
    pub cache_bytes: usize,
    /// Device operations that a core keeps in the kernel.
    pub queue_depth: u32,
    /// Completions of an NVMe namespace with poll queues are polled for.
    pub polls_device: bool,
    /// How long an executor without work looks for more before it sleeps.
    pub spin_us: u64,
}

impl Default for CoresConfig {
    fn default() -> Self {
        CoresConfig {
            volume: None,
            arena_bytes: 1 << 30,
            cache_bytes: 768 << 20,
            queue_depth: 64,
            polls_device: false,
            spin_us: 0,
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;

enum Message {
    Run(Job),
    Stop,
}

/// How work that is sent to a core is treated.
#[derive(Clone, Copy)]
struct Kind {
    stops_when_unwanted: bool,
    counts: bool,
}

/// The running cores. Cloning shares them.
#[derive(Clone)]
pub struct Cores {
    senders: Arc<[flume::Sender<Message>]>,
    threads: Arc<Mutex<Vec<ExecutorJoinHandle<()>>>>,
    is_stopping: Arc<AtomicBool>,
    /// Work handed to any core and not done: while there is some, every core is nudged at the quick pace.
    jobs: Arc<AtomicU32>,
}

/// Work that is counted in [`Cores::jobs`] for as long as this lives.
pub struct CountedJob(Arc<AtomicU32>);

impl CountedJob {
    fn new(jobs: &Arc<AtomicU32>) -> Self {
        jobs.fetch_add(1, Ordering::Relaxed);
        CountedJob(jobs.clone())
    }
}

impl Drop for CountedJob {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What one core owns; see [`Core::current`].
pub struct Core {
    /// Its number, from 0.
    pub id: usize,
    /// How many cores there are.
    pub count: usize,
    /// Its memory.
    pub arena: Arena,
    /// Its ring.
    pub ring: Ring,
    /// The volume on its ring.
    pub device: Option<UringDevice>,
    /// Its cached chunks.
    pub cache: Option<BlockCache<UringDevice>>,
    /// The row groups of other cores that it answers for.
    hot_groups: RefCell<HotGroups>,
    /// The task queue of encoding and merging: a tenth of the shares of requests.
    pub background: TaskQueueHandle,
    /// All cores.
    pub cores: Cores,
    /// The RDMA devices that it has open.
    pub fabric: Ports,
}

thread_local! {
    static CORE: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

impl Core {
    /// The core this runs on; `None` on a thread that is no core.
    pub fn current() -> Option<Rc<Core>> {
        CORE.with_borrow(Clone::clone)
    }

    /// The ring that its volume is on.
    pub fn device_ring(&self) -> &Ring {
        self.device.as_ref().map_or(&self.ring, UringDevice::ring)
    }

    /// The core this runs on, its cache and its device: what work on the volume's data needs.
    ///
    /// # Errors
    /// `Internal` when called off a core, or when the cores were started without a volume.
    pub fn with_volume() -> Result<(Rc<Core>, BlockCache<UringDevice>, UringDevice)> {
        let internal = |text: &str| Error::new(ErrorCode::Internal, text);
        let core = Self::current().ok_or_else(|| internal("what needs the volume runs on a core"))?;
        let (Some(cache), Some(device)) = (core.cache.clone(), core.device.clone()) else {
            return Err(internal("the cores were started without a volume"));
        };
        Ok((core, cache, device))
    }

    /// The device of this core.
    ///
    /// # Errors
    /// As [`Core::with_volume`].
    pub fn device() -> Result<UringDevice> {
        Self::with_volume().map(|(_, _, device)| device)
    }
}

impl Cores {
    /// Starts `count` cores and waits until each has its ring, arena and device.
    ///
    /// # Errors
    /// `Io` with what failed on which core; cores that had started are stopped.
    pub fn start(count: usize, config: &CoresConfig) -> Result<Cores> {
        let count = count.max(1);
        let cpus = cpus::usable();
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| flume::bounded(JOBS_MAX)).unzip();
        let cores = Cores {
            senders: senders.into(),
            threads: Arc::default(),
            is_stopping: Arc::default(),
            jobs: Arc::default(),
        };
        let (ready, is_ready) = flume::unbounded();
        let mut starts = Vec::with_capacity(count);
        for (id, receiver) in receivers.into_iter().enumerate() {
            // More cores than CPUs happens in tests: then they share.
            let placement = match cpus.get(id) {
                Some(cpu) if count <= cpus.len() => Placement::Fixed(*cpu),
                _ => Placement::Unbound,
            };
            let (config, shared, ready) = (config.clone(), cores.clone(), ready.clone());
            let spin = Duration::from_micros(config.spin_us);
            let builder = move || {
                LocalExecutorBuilder::new(placement.clone())
                    .name(&format!("core-{id}"))
                    .spin_before_park(spin)
                    .preempt_timer(Duration::from_micros(PREEMPT_US))
                    .io_memory(GLOMMIO_MEMORY_BYTES)
            };
            starts.push(Start::new(builder, move || run_core(id, count, config, shared, receiver, ready)));
        }
        drop(ready);
        let mut watched = Vec::with_capacity(count);
        let failure = loop {
            if watched.len() == count {
                break None;
            }
            match is_ready.recv_timeout(START_PATIENCE) {
                Ok(Ok(core)) => watched.push(core),
                Ok(Err(error)) => break Some(error),
                // All cores have ended, or none of those that run has anything to say yet.
                Err(waited) => match starts.iter_mut().try_for_each(|start| start.try_again(waited)) {
                    Ok(()) => {}
                    Err(error) => break Some(error),
                },
            }
        };
        let threads = starts.into_iter().filter_map(Start::into_thread).collect();
        *cores.threads.lock().unwrap_or_else(PoisonError::into_inner) = threads;
        if let Some(failure) = failure {
            cores.stop();
            return Err(failure);
        }
        if let Err(error) = nudge::watch(watched, cores.jobs.clone(), cores.is_stopping.clone()) {
            cores.stop();
            return Err(Error::new(ErrorCode::Io, format!("the watch thread of the cores did not start: {error}")));
        }
        Ok(cores)
    }

    /// How many cores there are.
    pub fn count(&self) -> usize {
        self.senders.len()
    }

    /// Runs the future that `make` makes on `core` and hands back its result. Can be called from any runtime. The
    /// work goes on to its end when this future is dropped (once it was polled); see [`Cores::run_while_wanted`].
    ///
    /// # Errors
    /// `Internal` when the work panicked; `Draining` when the core is stopping.
    pub fn run_on<F, Work, T>(&self, core: usize, make: F) -> impl Future<Output = Result<T>> + Send + use<F, Work, T>
    where
        F: FnOnce() -> Work + Send + 'static,
        Work: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        self.send(core, make, Kind { stops_when_unwanted: false, counts: true })
    }

    /// Counts work that is under way without [`Cores::run_on`], for as long as what it returns lives.
    pub fn busy(&self) -> CountedJob {
        CountedJob::new(&self.jobs)
    }

    /// Like [`Cores::run_on`], for what mostly waits, a session: it does not count as work.
    ///
    /// # Errors
    /// As [`Cores::run_on`].
    pub fn live_on<F, Work, T>(&self, core: usize, make: F) -> impl Future<Output = Result<T>> + Send + use<F, Work, T>
    where
        F: FnOnce() -> Work + Send + 'static,
        Work: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        self.send(core, make, Kind { stops_when_unwanted: false, counts: false })
    }

    /// Like [`Cores::run_on`], but dropping the returned future stops the work at its next await.
    ///
    /// # Errors
    /// As [`Cores::run_on`].
    pub fn run_while_wanted<F, Work, T>(
        &self,
        core: usize,
        make: F,
    ) -> impl Future<Output = Result<T>> + Send + use<F, Work, T>
    where
        F: FnOnce() -> Work + Send + 'static,
        Work: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        self.send(core, make, Kind { stops_when_unwanted: true, counts: true })
    }

    fn send<F, Work, T>(
        &self,
        core: usize,
        make: F,
        kind: Kind,
    ) -> impl Future<Output = Result<T>> + Send + use<F, Work, T>
    where
        F: FnOnce() -> Work + Send + 'static,
        Work: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let sender = self.senders[core % self.senders.len()].clone();
        let jobs = self.jobs.clone();
        async move {
            let (result, answer) = oneshot::channel();
            let counted = kind.counts.then(|| CountedJob::new(&jobs));
            let job = Box::new(move || {
                glommio::spawn_local(async move {
                    let _counted = counted;
                    let work = async move { make().await };
                    run_job(work, result, kind.stops_when_unwanted).await;
                })
                .detach();
            });
            let stopping = || Error::new(ErrorCode::Draining, "the cell is stopping");
            sender.send_async(Message::Run(job)).await.map_err(|_| stopping())?;
            answer.await.map_err(|_| stopping())?
        }
    }

    /// Stops every core after the tasks they are running at this moment were dropped, and waits for their threads.
    /// Call it from a thread that is not a core; sessions should have been drained before.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
        for sender in self.senders.iter() {
            // A core that is gone already has no receiver.
            let _ = sender.send(Message::Stop);
        }
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if let Err(error) = thread.join() {
                tracing::error!(%error, "a core ended with an error");
            }
        }
    }
}

/// Runs `work`, turns a panic into an error, and hands the result to whoever waits.
async fn run_job<T>(work: impl Future<Output = T>, mut result: oneshot::Sender<Result<T>>, while_wanted: bool) {
    let mut work = pin!(catch_panics(work));
    let done = if while_wanted {
        std::future::poll_fn(|context| match work.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => result.poll_canceled(context).map(|()| None),
        })
        .await
    } else {
        Some(work.await)
    };
    if let Some(done) = done {
        // Nobody waits any more: the result is dropped here, on its core.
        let _ = result.send(done);
    }
}

/// The result of `work`, or an `Internal` error with the message of its panic.
pub fn catch_panics<T>(work: impl Future<Output = T>) -> impl Future<Output = Result<T>> {
    // Not an async function: its future would hold `work` twice.
    AssertUnwindSafe(work).catch_unwind().map(|outcome| outcome.map_err(|panic| panic_error(&*panic)))
}

fn panic_error(panic: &(dyn Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message");
    Error::new(ErrorCode::Internal, format!("a task of this request panicked: {text}"))
}

/// Spawns `work` on this core with the low shares of background work (encoding, merging). Its result, or its panic as
/// an error, comes back through the returned future; dropping that future does not stop the work.
///
/// # Errors
/// `Internal` when called off a core or when the work panicked.
pub async fn run_in_background<T: 'static>(work: impl Future<Output = T> + 'static) -> Result<T> {
    let core = Core::current().ok_or_else(|| Error::new(ErrorCode::Internal, "background work needs a core"))?;
    let (result, answer) = oneshot::channel();
    glommio::spawn_local_into(run_job(work, result, false), core.background)
        .map_err(|error| Error::new(ErrorCode::Internal, format!("no background queue: {error}")))?
        .detach();
    answer.await.map_err(|_| Error::new(ErrorCode::Draining, "the cell is stopping"))?
}

/// The time a task has worked since it last let others run.
#[derive(Debug)]
pub struct Turn(Instant);

impl Default for Turn {
    fn default() -> Self {
        Turn(Instant::now())
    }
}

impl Turn {
    /// Lets others run when this task has worked for [`TURN_US_MAX`].
    pub async fn yield_if_due(&mut self) {
        if self.0.elapsed() >= Duration::from_micros(TURN_US_MAX) {
            glommio::executor().yield_now().await;
            self.0 = Instant::now();
        }
    }

    /// Starts counting again, after an await that let others run.
    pub fn restart(&mut self) {
        self.0 = Instant::now();
    }
}

async fn run_core(
    id: usize,
    count: usize,
    config: CoresConfig,
    cores: Cores,
    jobs: flume::Receiver<Message>,
    ready: flume::Sender<Result<nudge::Watched>>,
) {
    let opened = open::core(id, count, &config, cores);
    let mut answered = Arc::default();
    let is_open = opened.is_ok();
    match opened {
        Ok(core) => {
            let watched = nudge::be_watched(core.device_ring().in_flight_counter()).await;
            answered = watched.answered();
            CORE.set(Some(Rc::new(core)));
            let _ = ready.send(Ok(watched));
        }
        Err(error) => {
            let _ = ready.send(Err(error));
        }
    }
    drop(ready);
    if is_open {
        let take_jobs = async {
            while let Ok(Message::Run(job)) = jobs.recv_async().await {
                job();
            }
        };
        nudge::answer(answered, take_jobs).await;
    }
    if let Some(core) = CORE.take() {
        core.fabric.close_all();
        // Its tasks see that.
        glommio::executor().yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;

    fn small() -> CoresConfig {
        CoresConfig { arena_bytes: 1 << 20, ..CoresConfig::default() }
    }

    #[test]
    fn work_runs_on_the_core_it_was_sent_to_and_answers_from_any_thread() {
        let cores = Cores::start(2, &small()).unwrap();
        block_on(async {
            for core in 0..2 {
                let seen = cores.run_on(core, || async { Core::current().map(|core| (core.id, core.count)) }).await;
                assert_eq!(seen.unwrap(), Some((core, 2)));
            }
            let relay = cores.clone();
            let nested = cores.run_on(0, move || async move {
                relay.run_on(1, || async { std::thread::current().name().map(str::to_owned) }).await
            });
            assert!(nested.await.unwrap().unwrap().is_some_and(|name| name.starts_with("core-1")));
        });
        cores.stop();
        let late = block_on(cores.run_on(0, || async {})).unwrap_err();
        assert_eq!(late.code, ErrorCode::Draining);
    }

    #[test]
    fn a_panic_is_an_error_of_its_request_only() {
        let cores = Cores::start(1, &small()).unwrap();
        block_on(async {
            let error = cores.run_on(0, || async { panic!("boom {}", 1) }).await.unwrap_err();
            assert_eq!(error.code, ErrorCode::Internal);
            assert!(error.message.contains("boom 1"), "{error}");
            let background = cores.run_on(0, || run_in_background(async { panic!("quiet boom") })).await.unwrap();
            assert!(background.unwrap_err().message.contains("quiet boom"));
            assert_eq!(cores.run_on(0, || async { 7 }).await.unwrap(), 7);
        });
        cores.stop();
    }

    #[test]
    fn dropping_the_wait_stops_wanted_work_and_lets_other_work_finish() {
        let cores = Cores::start(1, &small()).unwrap();
        let (sender, receiver) = flume::unbounded();
        block_on(async {
            for wanted in [true, false] {
                let sender = sender.clone();
                let work = move || async move {
                    glommio::timer::sleep(Duration::from_millis(30)).await;
                    let _ = sender.send(wanted);
                };
                let mut wait: std::pin::Pin<Box<dyn Future<Output = Result<()>>>> =
                    if wanted { Box::pin(cores.run_while_wanted(0, work)) } else { Box::pin(cores.run_on(0, work)) };
                assert!(futures_lite::future::poll_once(&mut wait).await.is_none());
            }
        });
        drop(sender);
        assert_eq!(receiver.into_iter().collect::<Vec<_>>(), [false]);
        cores.stop();
    }

    /// What [`nudge`] is for: without it this takes for ever, most times.
    #[test]
    fn hand_overs_go_on_while_other_threads_want_the_cpus() {
        let cores = Cores::start(2, &small()).unwrap();
        let is_done = Arc::new(AtomicBool::new(false));
        let hogs: Vec<_> = (0..8)
            .map(|_| is_done.clone())
            .map(|is_done| std::thread::spawn(move || while !is_done.load(Ordering::Relaxed) {}))
            .collect();
        let sum = block_on(async {
            let mut sum = 0;
            for round in 0..400_u64 {
                let relay = cores.clone();
                let other = move || async move { relay.run_on(1, move || async move { round }).await };
                sum += cores.run_on(0, other).await.unwrap().unwrap();
            }
            sum
        });
        is_done.store(true, Ordering::Relaxed);
        for hog in hogs {
            hog.join().unwrap();
        }
        cores.stop();
        assert_eq!(sum, 399 * 400 / 2);
    }

    #[test]
    fn idle_cores_sleep() {
        let cores = Cores::start(2, &small()).unwrap();
        // Fields 14 and 15 of /proc/self/stat after the name: user and system time in ticks of 10 ms.
        let cpu_ticks = || {
            let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        };
        std::thread::sleep(Duration::from_millis(200));
        let before = cpu_ticks();
        std::thread::sleep(Duration::from_secs(1));
        let used = cpu_ticks() - before;
        cores.stop();
        assert!(used <= 4, "two idle cores used {used} ticks of 10 ms in a second");
    }
}
