//! Waiting for completions in a [glommio](https://docs.rs/glommio) task. (Feature `glommio`.)
//!
//! glommio 0.9 cannot wait for a descriptor of another, so that this polls: at every turn of the executor while there is
//! traffic, and less and less often, down to once in [`REST_MAX`], while there is none. A core that has other work loses
//! nothing by it; an idle one wakes a thousand times a second. Polling is also what drives a soft device that was opened
//! with [`Progress::Polled`](crate::Progress::Polled), the right choice on an executor.

use std::time::Duration;

use ::glommio::timer::Timer;

use crate::memory::Registered;
use crate::{Completion, CompletionQueue, Error};

/// Turns of the executor before the first rest.
const TURNS: u32 = 256;
/// The longest rest: what a first message after a silence may wait.
pub const REST_MAX: Duration = Duration::from_millis(1);

/// Appends what has completed to `out`, at least one; how many. Cancel safe.
///
/// # Errors
/// [`Error::Os`] when the device fails.
pub async fn next<B: Registered>(queue: &CompletionQueue<B>, out: &mut Vec<Completion<B>>) -> Result<usize, Error> {
    let mut turns = 0;
    let mut rest = Duration::from_micros(20);
    loop {
        let count = queue.poll(out)?;
        if count > 0 {
            return Ok(count);
        }
        if turns < TURNS {
            turns += 1;
            ::glommio::executor().yield_now().await;
        } else {
            Timer::new(rest).await;
            rest = (2 * rest).min(REST_MAX);
        }
    }
}
