//! Work that takes longer than a core may be held up: encoding a row group takes tens of milliseconds, and an executor
//! switches tasks only where they await.
//!
//! Owns [`WorkerThreads`]: as many unpinned threads as there are cores, at a nice value of [`NICE`], so that the
//! kernel gives the cores the CPUs first. Called by loads, merges and deletions through the trait [`Workers`]; the store gets it
//! with its options. [`Inline`] works where it is called, for tools and deterministic tests.
//!
//! Invariants:
//! - Work that nobody waits for any more when its turn comes is dropped.
//! - A panic of a piece of work is an `Internal` error of whoever waits for it; the thread lives on.
//! - The queue is as long as its users let it become: a load and a merge have a bounded number of pieces in it.

use std::{future::Future, thread};

use futures::{FutureExt, channel::oneshot};
use hidb::{Error, ErrorCode, Result};

use crate::cores::catch_panics;

/// Nice value of the threads: at 10 a thread weighs about a tenth of one at 0 (sched(7)).
const NICE: i32 = 10;

/// A piece of work.
pub type Work = Box<dyn FnOnce() + Send>;

/// Who does work.
pub trait Workers: Send + Sync {
    /// Takes a piece of work; it has been done when this returns, or will be.
    fn start(&self, work: Work);
}

/// Does work where it is called.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inline;

impl Workers for Inline {
    fn start(&self, work: Work) {
        work();
    }
}

/// Threads that do work. They end when this is dropped and the queue is empty.
#[derive(Debug)]
pub struct WorkerThreads(flume::Sender<Work>);

impl WorkerThreads {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// `Io` when the system has no thread to give.
    pub fn start(count: usize) -> Result<Self> {
        let (sender, receiver) = flume::unbounded::<Work>();
        for number in 0..count.max(1) {
            let receiver = receiver.clone();
            let run = move || {
                be_nice();
                receiver.into_iter().for_each(|work| work());
            };
            let started = thread::Builder::new().name(format!("worker-{number}")).spawn(run);
            started.map_err(|error| Error::new(ErrorCode::Io, format!("worker thread {number}: {error}")))?;
        }
        Ok(WorkerThreads(sender))
    }
}

impl Workers for WorkerThreads {
    fn start(&self, work: Work) {
        // The receivers live as long as this sender: a thread ends only with it.
        let _ = self.0.send(work);
    }
}

/// Gives `work` to `workers` now; its result, or its panic as an error, comes through the returned future. Work whose
/// future is dropped before its turn comes is not begun.
///
/// # Errors
/// `Internal` when the work panicked.
pub fn offload<T, F>(workers: &dyn Workers, work: F) -> impl Future<Output = Result<T>> + Send + use<T, F>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let (result, answer) = oneshot::channel();
    workers.start(Box::new(move || {
        // What was given up, as the runs of an aborted load, must not hold up the others.
        if result.is_canceled() {
            return;
        }
        // Work does not await: one poll finishes it. Nobody may wait any more.
        if let Some(done) = catch_panics(async { work() }).now_or_never() {
            let _ = result.send(done);
        }
    }));
    async move { answer.await.map_err(|_| Error::new(ErrorCode::Draining, "the cell is stopping"))? }
}

fn be_nice() {
    // SAFETY: takes numbers only; 0 is the calling thread on Linux (setpriority(2), NOTES).
    let status = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    if status != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "worker threads keep the priority of the process");
    }
}

#[cfg(test)]
mod tests {
    use std::thread::ThreadId;

    use futures_lite::future::block_on;

    use super::*;

    #[test]
    fn work_is_done_on_other_threads_and_a_panic_is_an_error_of_its_own() {
        let workers = WorkerThreads::start(2).unwrap();
        let threads: Vec<ThreadId> = (0..8)
            .map(|_| offload(&workers, || thread::current().id()))
            .map(|answer| block_on(answer).unwrap())
            .collect();
        assert!(threads.iter().all(|id| *id != thread::current().id()));
        let error = block_on(offload(&workers, || panic!("boom"))).unwrap_err();
        assert_eq!(error.code, ErrorCode::Internal);
        assert!(error.message.contains("boom"), "{error}");
        let abandoned = offload(&workers, || 1);
        drop(abandoned);
        assert_eq!(block_on(offload(&workers, || 7)).unwrap(), 7);
    }

    #[test]
    fn work_that_nobody_waits_for_any_more_is_not_begun() {
        let workers = WorkerThreads::start(1).unwrap();
        let (go, wait) = flume::bounded::<()>(1);
        let busy = offload(&workers, move || wait.recv());
        let was_done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let done = was_done.clone();
        drop(offload(&workers, move || done.store(true, std::sync::atomic::Ordering::Relaxed)));
        go.send(()).unwrap();
        block_on(busy).unwrap().unwrap();
        block_on(offload(&workers, || ())).unwrap();
        assert!(!was_done.load(std::sync::atomic::Ordering::Relaxed));
    }

    #[test]
    fn inline_work_is_done_when_the_call_returns() {
        assert_eq!(offload(&Inline, || 7).now_or_never().unwrap().unwrap(), 7);
    }
}
