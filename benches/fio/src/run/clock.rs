//! Nanoseconds of CLOCK_MONOTONIC, and waiting until one of them.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since boot; about 20 ns a call.
#[inline]
pub(crate) fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Below this much sleeping costs more than it gives back.
const SPIN_NS: u64 = 60_000;

/// Waits until then, or until `stop` says so; spins for the last microseconds, so that a start is not late by a wakeup.
pub(crate) fn wait_until(until_ns: u64, stop: impl Fn() -> bool) {
    loop {
        let now = now_ns();
        if now >= until_ns || stop() {
            return;
        }
        let left = until_ns - now;
        if left > SPIN_NS {
            std::thread::sleep(Duration::from_nanos((left - SPIN_NS).min(100_000_000)));
        } else {
            std::hint::spin_loop();
        }
    }
}
