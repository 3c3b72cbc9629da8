//! Ctrl-C and SIGTERM: the first asks for an end, the second for leaving at once, the third ends the process.
//!
//! Owns [`Interrupts`]. Called by a run, and by programs that do more than one run.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

/// What the signals of this process have asked for since it began to listen.
#[derive(Clone, Debug, Default)]
pub struct Interrupts {
    first: Arc<AtomicBool>,
    second: Arc<AtomicBool>,
}

impl Interrupts {
    /// Listens from now on, until the process ends.
    ///
    /// # Errors
    /// The system's, when a handler can't be installed.
    pub fn listening() -> io::Result<Self> {
        let interrupts = Interrupts::default();
        for signal in [SIGINT, SIGTERM] {
            // In this order: the second signal finds the first one's mark, the third ends the process.
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&interrupts.second))?;
            let (first, second) = (Arc::clone(&interrupts.first), Arc::clone(&interrupts.second));
            let mark = move || {
                if first.swap(true, Ordering::Relaxed) {
                    second.store(true, Ordering::Relaxed);
                }
            };
            // SAFETY: the handler only reads and writes atomics, which is allowed in a signal handler.
            unsafe { signal_hook::low_level::register(signal, mark) }?;
        }
        Ok(interrupts)
    }

    /// Whether an end was asked for.
    pub fn came(&self) -> bool {
        self.first.load(Ordering::Relaxed)
    }

    /// Whether what is in flight is not to be waited for.
    pub fn came_twice(&self) -> bool {
        self.second.load(Ordering::Relaxed)
    }

    /// Asks for an end, as the first signal does.
    pub(crate) fn end(&self) {
        self.first.store(true, Ordering::Relaxed);
    }
}
