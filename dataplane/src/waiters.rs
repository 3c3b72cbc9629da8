//! Tasks of one core that wait for a state to change.
//!
//! Owns [`Waiters`]. Called by sessions and links: whoever changes the state calls [`Waiters::wake`].
//!
//! Invariant: a change that is followed by `wake` is seen by every task that waits.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Tasks that wait.
#[derive(Debug, Default)]
pub struct Waiters(RefCell<Vec<Waker>>);

impl Waiters {
    /// Ready with what `state` gives, once it gives something.
    pub async fn wait_for<T>(&self, mut state: impl FnMut() -> Option<T>) -> T {
        poll_fn(|context| match state() {
            Some(value) => Poll::Ready(value),
            None => {
                let mut wakers = self.0.borrow_mut();
                if !wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                    wakers.push(context.waker().clone());
                }
                Poll::Pending
            }
        })
        .await
    }

    /// Lets everybody look at the state again.
    pub fn wake(&self) {
        self.0.take().into_iter().for_each(Waker::wake);
    }
}
