//! Ctrl-C and SIGTERM, for commands that have something to say or to undo before they end.

use hidb::{Error, ErrorCode};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Watches for both from the moment it is made.
pub struct Interruption {
    interrupts: Signal,
    terminations: Signal,
}

impl Interruption {
    /// Begins to watch.
    pub fn watch() -> Result<Self, Error> {
        let failed = |error| Error::new(ErrorCode::Internal, format!("signals can't be waited for: {error}"));
        Ok(Interruption {
            interrupts: signal(SignalKind::interrupt()).map_err(failed)?,
            terminations: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    /// Waits for one of them; the error that ends the command says what has become of its work.
    pub async fn happens(&mut self, outcome: &str) -> Error {
        tokio::select! {
            _ = self.interrupts.recv() => {}
            _ = self.terminations.recv() => {}
        }
        Error::new(ErrorCode::Cancelled, format!("interrupted: {outcome}"))
    }
}
