//! Wakes cores that fell asleep with work to do.
//!
//! glommio 0.9 can do that: its event loop arms the preempt timer, then `run_task_queues` looks at that timer before it
//! runs the first task. When the thread loses its CPU in between for longer than the timer, no task runs, the loop takes
//! that for idleness and parks, although tasks are ready. Only an event from outside ends that: other programs that
//! use the CPUs make a cell hang. One wake from another thread made a hung core go on.
//!
//! Owns the watch thread: it wakes the first task of each core, every 1 ms while a job or device I/O is in flight on any core,
//! every 20 ms otherwise, so such a stall lasts that long. The task counts its wakes. A wake that was not counted
//! yet is repeated after 1, 2, 4 ... 256 ms: the woken task may be the one that did not run, and each unanswered wake
//! holds a reference of the task, of which glommio allows 32,767. Called by [`super::Cores::start`]. A
//! stall before the first task of a core has run at all, when there is no waker yet, is the business of [`super::start`].

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Poll, Waker},
    thread,
    time::Duration,
};

/// The pace while there is work.
const ROUND: Duration = Duration::from_millis(1);
/// Rounds between the nudges of an idle cell.
const IDLE_ROUNDS: u32 = 20;
/// Rounds after which an unanswered nudge is repeated, at most.
const PATIENCE_ROUNDS_MAX: u32 = 256;

/// What the watch thread knows of a core.
pub(super) struct Watched {
    waker: Waker,
    answered: Arc<AtomicU64>,
    in_flight: Arc<AtomicU32>,
}

/// What is known of this core, whose first task this is called by; `in_flight` counts its device operations in the
/// kernel. Does not wait: before a core is watched nothing would wake it. The task must go on in [`answer`].
pub(super) async fn be_watched(in_flight: Arc<AtomicU32>) -> Watched {
    let waker = std::future::poll_fn(|context| Poll::Ready(context.waker().clone())).await;
    Watched { waker, answered: Arc::default(), in_flight }
}

impl Watched {
    /// Where the nudges are counted that this core answered.
    pub fn answered(&self) -> Arc<AtomicU64> {
        self.answered.clone()
    }
}

/// Runs `work`, the rest of a core's first task, and counts how often it is polled: that answers nudges.
pub(super) async fn answer<T>(answered: Arc<AtomicU64>, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    std::future::poll_fn(|context| {
        answered.fetch_add(1, Ordering::Relaxed);
        work.as_mut().poll(context)
    })
    .await
}

/// Starts the watch thread; it ends after `is_stopping` is set.
///
/// # Errors
/// When the system has no thread to give.
pub(super) fn watch(cores: Vec<Watched>, jobs: Arc<AtomicU32>, is_stopping: Arc<AtomicBool>) -> std::io::Result<()> {
    let run = move || {
        let mut paces = vec![Pace::default(); cores.len()];
        while !is_stopping.load(Ordering::Acquire) {
            let is_busy =
                jobs.load(Ordering::Relaxed) > 0 || cores.iter().any(|core| core.in_flight.load(Ordering::Relaxed) > 0);
            let rounds = if is_busy { 1 } else { IDLE_ROUNDS };
            thread::sleep(ROUND * rounds);
            for (core, pace) in cores.iter().zip(&mut paces) {
                if pace.is_due(rounds, core.answered.load(Ordering::Relaxed)) {
                    core.waker.wake_by_ref();
                }
            }
        }
    };
    thread::Builder::new().name("core-watch".to_owned()).spawn(run).map(|_| ())
}

/// When the next nudge of a core is due.
#[derive(Clone, Default)]
struct Pace {
    answered: u64,
    is_waiting: bool,
    patience: u32,
    waited: u32,
}

impl Pace {
    /// Whether to nudge now, `rounds` after the last call, when the core has answered `answered` nudges so far.
    fn is_due(&mut self, rounds: u32, answered: u64) -> bool {
        self.waited += rounds;
        if self.is_waiting && answered == self.answered {
            if self.waited < self.patience {
                return false;
            }
            self.patience = (self.patience * 2).min(PATIENCE_ROUNDS_MAX);
        } else {
            self.patience = 1;
        }
        (self.answered, self.is_waiting, self.waited) = (answered, true, 0);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answered_nudges_go_on_and_unanswered_ones_back_off() {
        let mut pace = Pace::default();
        assert!((0..100).all(|answered| pace.is_due(1, answered)));
        let sent = (0..4096).filter(|_| pace.is_due(1, 99)).count();
        assert!((16..=28).contains(&sent), "a core that does not answer got {sent} nudges in 4096 rounds");
        assert!(pace.is_due(1, 100), "one answer, and the pace is quick again");
        assert!(pace.is_due(20, 101));
    }
}
