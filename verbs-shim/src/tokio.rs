//! Waiting for completions in a [tokio](https://tokio.rs) task. (Feature `tokio`.)

use std::os::fd::{AsFd, OwnedFd};

use ::tokio::io::unix::AsyncFd;
use ::tokio::io::{Interest, Ready};

use crate::memory::Registered;
use crate::{Buffer, Completion, CompletionQueue, Error};

/// A completion queue that a task can wait for.
#[derive(Debug)]
pub struct Completions<B: Registered = Buffer> {
    queue: CompletionQueue<B>,
    descriptor: AsyncFd<OwnedFd>,
}

impl<B: Registered> Completions<B> {
    /// Inside a runtime with I/O enabled.
    ///
    /// # Errors
    /// [`Error::Os`] if the descriptor cannot be watched.
    pub fn new(queue: CompletionQueue<B>) -> Result<Self, Error> {
        let fail = |call, error| Error::os("completion queue", call, error);
        let descriptor = queue.as_fd().try_clone_to_owned().map_err(|error| fail("dup", error))?;
        // SAFETY: the descriptor is ours, owned, and gives the same number for as long as it lives.
        let descriptor = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
        let descriptor = descriptor.map_err(|error| fail("epoll_ctl", error.into()))?;
        Ok(Completions { queue, descriptor })
    }

    /// Appends what has completed to `out`, at least one; how many. Cancel safe: nothing is taken before it returns.
    ///
    /// # Errors
    /// [`Error::Os`] when the device fails.
    pub async fn next(&mut self, out: &mut Vec<Completion<B>>) -> Result<usize, Error> {
        loop {
            let count = self.queue.poll(out)?;
            if count > 0 {
                return Ok(count);
            }
            if !self.queue.arm()? {
                continue;
            }
            let count = self.queue.poll(out)?;
            if count > 0 {
                return Ok(count);
            }
            let ready = self.descriptor.ready(Interest::READABLE).await;
            let mut ready = ready.map_err(|error| Error::os("completion queue", "epoll_wait", error))?;
            self.queue.clear_events();
            ready.clear_ready_matching(Ready::READABLE);
        }
    }
}
