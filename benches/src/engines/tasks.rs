//! Engines whose ops are futures.
//!
//! Owns [`TaskEngine`]: the runtime of a job's thread, and the ops that run on it. Called by the engines that are clients of a
//! cell, which say what an op does ([`Ask`]). Futures move only while the job's loop waits for completions, on the same
//! thread, so that nothing is handed between threads.
//!
//! Invariant: an op's failure is a completion with the negative error code; the newest text of each code is kept for
//! the report.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use heliostat_fio::engine::{Completion, Engine, EngineError, Findings, Op};
use hidb::Error;

/// How long an op that failed waits before it says so: a dead cell gives a hundred errors per second and slot, not as many
/// as the processor can make.
const AFTER_FAILURE: Duration = Duration::from_millis(10);

/// What a job's ops do.
pub trait Ask {
    /// An op; ends with the bytes of its answer.
    fn ask(&mut self, op: &Op) -> LocalBoxFuture<'static, Result<u64, Error>>;

    /// Measuring begins anew: see [`Engine::start_measuring`].
    fn start_measuring(&mut self) {}

    /// What was found out since then: see [`Engine::findings`].
    fn findings(&self) -> Findings {
        Findings::default()
    }

    /// What is left to do when the job is over.
    fn finish(&mut self) -> LocalBoxFuture<'static, Result<(), Error>> {
        async { Ok(()) }.boxed_local()
    }
}

/// The runtime of a job's thread, before there is something to ask.
pub struct Tasks(tokio::runtime::Runtime);

impl Tasks {
    /// A runtime for this thread.
    pub fn new() -> Result<Self, EngineError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map(Tasks).map_err(|cause| EngineError::System { what: "starting the client's runtime", cause })
    }

    /// Runs something to its end.
    pub fn run<T>(&self, future: impl Future<Output = Result<T, Error>>) -> Result<T, EngineError> {
        self.0.block_on(future).map_err(|error| EngineError::Other(error.to_string()))
    }
}

/// An engine whose ops are what `A` asks.
pub struct TaskEngine<A> {
    /// Before the runtime, which its connections end on; as are the ops.
    asks: A,
    running: FuturesUnordered<LocalBoxFuture<'static, (u32, Result<u64, Error>)>>,
    texts: HashMap<i64, String>,
    tasks: Tasks,
}

impl<A: Ask> TaskEngine<A> {
    /// Nothing is in flight yet.
    pub fn new(asks: A, tasks: Tasks) -> Self {
        TaskEngine { asks, running: FuturesUnordered::new(), texts: HashMap::new(), tasks }
    }

    fn completion(&mut self, (slot, outcome): (u32, Result<u64, Error>)) -> Completion {
        let outcome = match outcome {
            Ok(bytes) => bytes as i64,
            Err(error) => {
                let number = -i64::from(error.code as u32);
                self.texts.insert(number, error.to_string());
                number
            }
        };
        Completion { slot, outcome }
    }
}

impl<A: Ask> Engine for TaskEngine<A> {
    fn submit(&mut self, ops: &[Op]) -> Result<usize, EngineError> {
        for op in ops {
            let (slot, asked) = (op.slot, self.asks.ask(op));
            self.running.push(
                async move {
                    let outcome = asked.await;
                    if outcome.is_err() {
                        tokio::time::sleep(AFTER_FAILURE).await;
                    }
                    (slot, outcome)
                }
                .boxed_local(),
            );
        }
        Ok(ops.len())
    }

    fn complete(
        &mut self,
        min: usize,
        max: usize,
        timeout: Duration,
        completions: &mut Vec<Completion>,
    ) -> Result<(), EngineError> {
        let running = &mut self.running;
        let min = min.min(running.len());
        let mut ended = Vec::new();
        self.tasks.0.block_on(async {
            let enough = async {
                while ended.len() < min {
                    let Some(op) = running.next().await else { break };
                    ended.push(op);
                }
            };
            if min == 0 {
                // The connections' own tasks move, too.
                tokio::task::yield_now().await;
            } else if tokio::time::timeout(timeout, enough).await.is_err() {
                return;
            }
            while ended.len() < max {
                let Some(Some(op)) = running.next().now_or_never() else { break };
                ended.push(op);
            }
        });
        for op in ended {
            let completion = self.completion(op);
            completions.push(completion);
        }
        Ok(())
    }

    fn buffer(&mut self, _slot: u32) -> &mut [u8] {
        &mut []
    }

    fn start_measuring(&mut self) {
        self.asks.start_measuring();
    }

    fn findings(&self) -> Findings {
        self.asks.findings()
    }

    fn finish(&mut self) -> Result<(), EngineError> {
        // What is still in flight was given up.
        self.running.clear();
        self.tasks.run(self.asks.finish())
    }

    fn error_text(&self, outcome: i64) -> String {
        self.texts.get(&outcome).cloned().unwrap_or_else(|| format!("error {outcome}"))
    }
}
