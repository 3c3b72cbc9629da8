//! How far the building of indexes is.
//!
//! Owns [`Progress`], shared between the job that builds and whoever asks. Called by `build`, `keeper` and the server.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How far one building is.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    stage: Mutex<Stage>,
    /// Within the stage, in millionths.
    done: AtomicU32,
    memory_bytes_max: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct Stage {
    name: &'static str,
    /// The part of all work that comes before it, and that it is.
    before: f32,
    share: f32,
}

impl Default for Progress {
    fn default() -> Self {
        Progress {
            started: Instant::now(),
            stage: Mutex::new(Stage { name: "reading", before: 0.0, share: 0.0 }),
            done: AtomicU32::new(0),
            memory_bytes_max: AtomicU64::new(0),
        }
    }
}

impl Progress {
    /// A stage begins, which is so large a part of all work; the one before is done.
    pub fn begin(&self, name: &'static str, share: f32) {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        *stage = Stage { name, before: stage.before + stage.share, share };
        self.done.store(0, Relaxed);
    }

    /// So much of the stage is done.
    pub fn advance(&self, done: u64, total: u64) {
        let part = done as f64 / total.max(1) as f64;
        self.done.store((part.clamp(0.0, 1.0) * 1e6) as u32, Relaxed);
    }

    /// So much memory is held.
    pub fn memory(&self, bytes: usize) {
        self.memory_bytes_max.fetch_max(bytes as u64, Relaxed);
    }

    /// The most memory that was held at a time, in bytes.
    pub fn memory_bytes_max(&self) -> u64 {
        self.memory_bytes_max.load(Relaxed)
    }

    /// How long it has taken so far.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The stage, how much of all is done (0 to 1), and a guess of the seconds left.
    pub fn report(&self) -> (&'static str, f32, u64) {
        let stage = *self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        let done = stage.before + stage.share * (self.done.load(Relaxed) as f32 / 1e6);
        let done = done.clamp(0.0, 1.0);
        let elapsed = self.started.elapsed().as_secs_f32();
        let left = if done > 0.01 { elapsed * (1.0 - done) / done } else { 0.0 };
        (stage.name, done, left.ceil() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_add_up() {
        let progress = Progress::default();
        progress.begin("one", 0.25);
        progress.advance(1, 2);
        assert_eq!(progress.report().0, "one");
        assert!((progress.report().1 - 0.125).abs() < 1e-4);
        progress.begin("two", 0.75);
        assert!((progress.report().1 - 0.25).abs() < 1e-4);
        progress.advance(7, 5);
        assert_eq!(progress.report().1, 1.0);
        progress.memory(5);
        progress.memory(3);
        assert_eq!(progress.memory_bytes_max(), 5);
    }
}
