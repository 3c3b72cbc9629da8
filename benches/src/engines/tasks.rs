//! Ops that are futures, behind an engine's batches.
//!
//! Owns the runtime of a job's thread and the ops that run on it. Called by the engines that are clients of a cell. What
//! such an engine does for an op is a future; it moves only while the job's loop waits for completions, on the same
//! thread, so that nothing is handed between threads.
//!
//! Invariant: an op's failure is a completion with the negative error code; the newest text of each code is kept for
//! the report.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use futures::StreamExt;
use futures::future::LocalBoxFuture;
use futures::stream::FuturesUnordered;
use heliostat_fio::engine::{Completion, EngineError};
use hidb::Error;
use tokio::runtime::Runtime;

/// How long an op that failed waits before it says so: a dead cell gives a hundred errors per second and slot, not as many
/// as the processor can make.
const AFTER_FAILURE: Duration = Duration::from_millis(10);

type Running = LocalBoxFuture<'static, (u32, Result<u64, Error>)>;

/// The ops of one job that are in flight.
pub struct Tasks {
    running: FuturesUnordered<Running>,
    texts: HashMap<i64, String>,
    /// After what it drives: connections end on their runtime.
    runtime: Runtime,
}

impl Tasks {
    /// None yet, on a runtime for this thread.
    pub fn new() -> Result<Self, EngineError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|cause| EngineError::System { what: "starting the client's runtime", cause })?;
        Ok(Tasks { running: FuturesUnordered::new(), texts: HashMap::new(), runtime })
    }

    /// Runs something to its end, before the first op or after the last one.
    pub fn run<T>(&self, future: impl Future<Output = Result<T, Error>>) -> Result<T, EngineError> {
        self.runtime.block_on(future).map_err(|error| EngineError::Other(error.to_string()))
    }

    /// Starts an op, which ends with the bytes of its answer.
    pub fn start(&mut self, slot: u32, op: impl Future<Output = Result<u64, Error>> + 'static) {
        self.running.push(Box::pin(async move {
            let outcome = op.await;
            if outcome.is_err() {
                tokio::time::sleep(AFTER_FAILURE).await;
            }
            (slot, outcome)
        }));
    }

    /// As [`heliostat_fio::engine::Engine::complete`].
    pub fn complete(&mut self, min: usize, max: usize, timeout: Duration, completions: &mut Vec<Completion>) {
        let Tasks { running, texts, runtime } = self;
        let min = min.min(running.len());
        let mut ended = 0;
        let mut take = |(slot, outcome): (u32, Result<u64, Error>)| {
            let outcome = match outcome {
                Ok(bytes) => bytes as i64,
                Err(error) => {
                    let number = -i64::from(error.code as u32);
                    texts.insert(number, error.to_string());
                    number
                }
            };
            completions.push(Completion { slot, outcome });
        };
        runtime.block_on(async {
            let enough = async {
                while ended < min {
                    let Some(op) = running.next().await else { break };
                    take(op);
                    ended += 1;
                }
            };
            if min == 0 {
                // The connections' own tasks move, too.
                tokio::task::yield_now().await;
            } else if tokio::time::timeout(timeout, enough).await.is_err() {
                return;
            }
            while ended < max {
                let Some(Some(op)) = futures::FutureExt::now_or_never(running.next()) else { break };
                take(op);
                ended += 1;
            }
        });
    }

    /// What an outcome means.
    pub fn error_text(&self, outcome: i64) -> String {
        self.texts.get(&outcome).cloned().unwrap_or_else(|| format!("error {outcome}"))
    }
}
