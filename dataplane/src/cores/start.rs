//! Starting an executor that may never run its first task.
//!
//! The stall that [`super::nudge`] describes can happen before there is a waker to nudge. Nothing wakes such an executor,
//! so another is started in its place. Whichever runs first takes the work; the others find none and end, or sleep until
//! the process does: their threads are not waited for.
//!
//! Owns what the first task of a core is made of, until it is taken. Called by [`super::Cores::start`].

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use flume::RecvTimeoutError;
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder};
use hidb::{Error, ErrorCode, Result};

/// Executors that are started for one core at most.
const ATTEMPTS_MAX: usize = 40;

/// The work of a core until an executor takes it, and then which one did.
enum Slot<Make> {
    Waiting(Make),
    Taken(usize),
}

type Spawn = Box<dyn FnMut(usize) -> glommio::Result<ExecutorJoinHandle<()>, ()>>;

/// One core that is starting.
pub(super) struct Start {
    spawn: Spawn,
    /// Which attempt has the work.
    taken_by: Box<dyn Fn() -> Option<usize>>,
    attempts: Vec<ExecutorJoinHandle<()>>,
    failure: Option<Error>,
}

impl Start {
    /// Starts the first executor, which will run what `make` makes.
    pub(super) fn new<Make, Work>(builder: impl Fn() -> LocalExecutorBuilder + 'static, make: Make) -> Self
    where
        Make: FnOnce() -> Work + Send + 'static,
        Work: Future<Output = ()> + 'static,
    {
        let slot = Arc::new(Mutex::new(Slot::Waiting(make)));
        let spawn = {
            let slot = slot.clone();
            move |attempt| {
                let slot = slot.clone();
                builder().spawn(move || async move {
                    let make = take(&slot, attempt);
                    if let Some(make) = make {
                        make().await;
                    }
                })
            }
        };
        let taken_by = move || match &*lock(&slot) {
            Slot::Waiting(_) => None,
            Slot::Taken(attempt) => Some(*attempt),
        };
        let mut start =
            Start { spawn: Box::new(spawn), taken_by: Box::new(taken_by), attempts: Vec::new(), failure: None };
        start.attempt();
        start
    }

    fn attempt(&mut self) {
        match (self.spawn)(self.attempts.len()) {
            Ok(thread) => self.attempts.push(thread),
            Err(error) => self.failure = Some(Error::new(ErrorCode::Io, format!("a core did not start: {error}"))),
        }
    }

    /// After nothing was heard for a while: starts another executor if none runs.
    ///
    /// # Errors
    /// `Io` when no executor can be started, or none of many ran.
    pub(super) fn try_again(&mut self, waited: RecvTimeoutError) -> Result<()> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        match ((self.taken_by)(), waited) {
            (Some(_), RecvTimeoutError::Timeout) => Ok(()),
            (None, RecvTimeoutError::Timeout) if self.attempts.len() < ATTEMPTS_MAX => {
                tracing::debug!(
                    attempts = self.attempts.len(),
                    "an executor did not run its first task: starting another"
                );
                self.attempt();
                Ok(())
            }
            _ => Err(Error::new(
                ErrorCode::Io,
                "a core's executor did not start: each needs io_uring and 1 MiB of locked memory (ulimit -l)",
            )),
        }
    }

    /// The thread that does the work, to be waited for in the end.
    pub(super) fn into_thread(mut self) -> Option<ExecutorJoinHandle<()>> {
        let taken = (self.taken_by)()?;
        (taken < self.attempts.len()).then(|| self.attempts.swap_remove(taken))
    }
}

fn take<Make>(slot: &Mutex<Slot<Make>>, attempt: usize) -> Option<Make> {
    let mut slot = lock(slot);
    match std::mem::replace(&mut *slot, Slot::Taken(attempt)) {
        Slot::Waiting(make) => Some(make),
        Slot::Taken(by) => {
            *slot = Slot::Taken(by);
            None
        }
    }
}

fn lock<T>(slot: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use super::*;

    #[test]
    fn of_many_executors_for_one_core_one_does_the_work() {
        let runs = Arc::new(AtomicUsize::new(0));
        let (go, wait) = flume::bounded::<()>(1);
        let counted = runs.clone();
        let mut start = Start::new(LocalExecutorBuilder::default, move || async move {
            counted.fetch_add(1, Ordering::SeqCst);
            let _ = wait.recv_async().await;
        });
        for _ in 0..3 {
            // As if nothing had been heard, whether the first runs already or not.
            start.attempt();
        }
        while (start.taken_by)().is_none() {
            start.try_again(RecvTimeoutError::Timeout).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        go.send(()).unwrap();
        let thread = start.into_thread().unwrap();
        drop(go);
        thread.join().unwrap();
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }
}
