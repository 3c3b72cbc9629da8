//! A lock for sections of some tens of nanoseconds that hardly ever meet: the tables of a completion queue.
//!
//! Free, it costs one atomic exchange and one plain store; a mutex of the standard library costs two exchanges and looks
//! after poisoning, and each request passes two. Taken, it spins, then yields, then sleeps, so that a holder of lower
//! priority on the same core gets on. The holder may be in the device's post or poll function meanwhile; a soft device
//! can be there for some microseconds.
//!
//! Invariants
//! - Whoever made `taken` true owns the value, until its guard is dropped; panics included, there is no poisoning.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Looks between two yields.
const SPINS: u32 = 100;
/// Yields before it sleeps.
const YIELDS: u32 = 1000;
const SLEEP: Duration = Duration::from_micros(50);

pub(crate) struct Lock<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: one thread at a time has the value.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    pub(crate) fn new(value: T) -> Self {
        Lock { taken: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    #[inline]
    pub(crate) fn lock(&self) -> Guard<'_, T> {
        if self.taken.swap(true, Ordering::Acquire) {
            self.wait();
        }
        Guard { lock: self }
    }

    #[cold]
    fn wait(&self) {
        let mut round = 0;
        loop {
            for _ in 0..SPINS {
                if !self.taken.load(Ordering::Relaxed) && !self.taken.swap(true, Ordering::Acquire) {
                    return;
                }
                std::hint::spin_loop();
            }
            if round < YIELDS {
                round += 1;
                std::thread::yield_now();
            } else {
                std::thread::sleep(SLEEP);
            }
        }
    }
}

pub(crate) struct Guard<'a, T> {
    lock: &'a Lock<T>,
}

// SAFETY: a shared guard gives a `&T`. (By itself the compiler would ask for `T: Send` only.)
unsafe impl<T: Sync> Sync for Guard<'_, T> {}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: see the invariant.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: see the invariant.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.taken.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_take_turns() {
        const THREADS: u64 = 4;
        const TURNS: u64 = 200_000;
        // Two words that agree whenever nobody is inside.
        let lock = Lock::new((0u64, 0u64));
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..TURNS {
                        let mut value = lock.lock();
                        assert_eq!(value.0, value.1);
                        value.0 += 1;
                        std::hint::black_box(&mut value);
                        value.1 += 1;
                    }
                });
            }
        });
        assert_eq!(*lock.lock(), (THREADS * TURNS, THREADS * TURNS));
    }

    #[test]
    fn a_panic_inside_frees_it() {
        let lock = Lock::new(1);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            *lock.lock() = 2;
            let _guard = lock.lock();
            panic!("while it is held");
        }));
        assert!(panicked.is_err());
        assert_eq!(*lock.lock(), 2);
    }

    #[test]
    fn one_that_sleeps_wakes_up() {
        let lock = Lock::new(());
        std::thread::scope(|scope| {
            let guard = lock.lock();
            let waiter = scope.spawn(|| drop(lock.lock()));
            // Longer than all spinning and yielding.
            std::thread::sleep(Duration::from_millis(100));
            assert!(!waiter.is_finished());
            drop(guard);
        });
    }
}
