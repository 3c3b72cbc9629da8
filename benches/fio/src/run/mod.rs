//! Running jobs: files first, then waves of jobs between stonewalls, each clone on a thread of its own.
//!
//! Owns threads, signals and the live line's figures; knows no option's name and no output format. Called by the command
//! line, by sweeps once per value.
//!
//! Invariants
//! - All clones of a wave open their engines before any starts.
//! - A Ctrl-C stops every clone, skips waves that have not begun, and gives back what was counted; a second one leaves.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

mod clock;
mod content;
mod interrupts;
mod pace;
mod read_back;
mod verifier;
mod worker;

use crate::files::{self, ClonePlan, FileError, Permissions};
use crate::job::{CpuPolicy, Job, JobSet};
use crate::measure::{FirstError, JobStats};
pub use interrupts::Interrupts;
use worker::{Finished, Worker};

/// Why a run can't go on.
#[derive(Debug, Error)]
pub(crate) enum RunError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{}: cannot write the log: {cause}", path.display())]
    Log { path: PathBuf, cause: std::io::Error },
    #[error("cannot handle signals: {0}")]
    Signals(std::io::Error),
}

/// What everybody may ask a clone to do.
#[derive(Default)]
pub(crate) struct Control {
    stop: AtomicBool,
    interrupts: Interrupts,
    status: AtomicU64,
}

impl Control {
    #[inline]
    fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn was_interrupted(&self) -> bool {
        self.interrupts.came()
    }

    /// Ends the run as Ctrl-C does.
    pub(crate) fn end(&self) {
        self.interrupts.end();
    }

    fn must_leave(&self) -> bool {
        self.interrupts.came_twice()
    }

    #[inline]
    fn status_wanted(&self) -> u64 {
        self.status.load(Ordering::Relaxed)
    }

    /// Listens for Ctrl-C and SIGTERM.
    pub(crate) fn listening() -> Result<Control, RunError> {
        let interrupts = Interrupts::listening().map_err(RunError::Signals)?;
        Ok(Control { interrupts, ..Control::default() })
    }
}

/// What a clone is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    Opening,
    Waiting,
    Ramping,
    Running,
    Verifying,
    Done,
}

/// Ops and bytes of a direction, for the live line.
#[derive(Default)]
pub(crate) struct Live {
    ops: AtomicU64,
    bytes: AtomicU64,
}

impl Live {
    #[inline]
    fn set(&self, ops: u64, bytes: u64) {
        self.ops.store(ops, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }
}

/// What others may see of a clone while it runs. On cache lines of its own.
#[repr(align(128))]
pub(crate) struct Shared {
    live: [Live; 2],
    state: AtomicU8,
    status: Mutex<Option<Box<JobStats>>>,
}

impl Shared {
    fn new() -> Shared {
        Shared { live: Default::default(), state: AtomicU8::new(State::Opening as u8), status: Mutex::new(None) }
    }

    fn set(&self, state: State) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    fn publish(&self, stats: Box<JobStats>) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = Some(stats);
    }
}

/// One clone in the report.
#[derive(Clone)]
pub(crate) struct CloneResult<'e> {
    pub job: Job<'e>,
    pub stats: JobStats,
}

/// What the live line shows.
pub(crate) struct Progress<'a> {
    /// Per clone: its job and what it does.
    pub clones: Vec<(&'a Job<'a>, State)>,
    pub elapsed: Duration,
    /// Longest time that any of them still has, when it is known.
    pub planned: Option<Duration>,
    /// Ops and bytes so far, of reads and writes; they fall back to 0 when a ramp ends.
    pub done: [(u64, u64); 2],
}

/// Who looks on.
pub(crate) trait Watcher {
    /// About ten times a second while jobs run.
    fn progress(&mut self, progress: &Progress<'_>);
    /// Every `--status-interval`: what has been counted so far.
    fn status(&mut self, results: &[CloneResult<'_>]);
}

/// A clone whose files are ready.
pub(crate) struct CloneTask<'e> {
    job: Job<'e>,
    clone: u32,
    number: usize,
    plan: ClonePlan,
    seed: u64,
}

/// Makes the clones of all jobs: guards and lays out their files.
pub(crate) fn prepare<'e>(set: &JobSet<'e>, permissions: &Permissions) -> Result<Vec<CloneTask<'e>>, RunError> {
    let mut tasks = Vec::new();
    for job in &set.jobs {
        let options = &job.options;
        for log in [&options.latency_log, &options.bandwidth_log, &options.iops_log].into_iter().flatten() {
            // Found out before the run, not after.
            files::has_folder(log.as_ref()).map_err(|cause| RunError::Log { path: log.into(), cause })?;
        }
        let base = job.options.seed.unwrap_or(if job.options.repeatable { 0x6865_6c69_6f73_7461 } else { entropy() });
        for clone in 0..job.options.clones {
            let plan = files::prepare(job, clone, permissions)?;
            let number = tasks.len() + 1;
            // Neighbouring seeds are fine: the generators hash them.
            let seed = base.wrapping_add((number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            tasks.push(CloneTask { job: job.clone(), clone, number, plan, seed });
        }
    }
    Ok(tasks)
}

/// Runs all clones and gives back one result for each, in order. A status is shown every `status_interval`.
pub(crate) fn run<'e>(
    tasks: &[CloneTask<'e>],
    status_interval: Option<Duration>,
    control: &Control,
    watcher: &mut dyn Watcher,
) -> Result<Vec<CloneResult<'e>>, RunError> {
    let mut results = Vec::new();
    let last_wave = tasks.last().map_or(0, |task| task.job.wave);
    for wave in 0..=last_wave {
        let of_wave: Vec<&CloneTask<'e>> =
            tasks.iter().filter(|task| task.job.wave == wave && !task.job.options.create_only).collect();
        if of_wave.is_empty() || control.was_interrupted() {
            continue;
        }
        control.stop.store(false, Ordering::Relaxed);
        let finished = run_wave(&of_wave, &results, status_interval, control, watcher);
        for (task, Finished { stats, logs }) in of_wave.into_iter().zip(finished) {
            if let Some(logs) = logs {
                logs.write(&task.job.options, task.number).map_err(|(path, cause)| RunError::Log { path, cause })?;
            }
            results.push(CloneResult { job: task.job.clone(), stats });
        }
    }
    for task in tasks.iter().filter(|task| task.job.options.unlink) {
        files::remove_made(&task.plan.made);
    }
    Ok(results)
}

fn entropy() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

fn run_wave<'e>(
    tasks: &[&CloneTask<'e>],
    before: &[CloneResult<'e>],
    status_interval: Option<Duration>,
    control: &Control,
    watcher: &mut dyn Watcher,
) -> Vec<Finished> {
    let shared: Vec<Shared> = tasks.iter().map(|_| Shared::new()).collect();
    let start = Barrier::new(tasks.len());
    let mut finished: Vec<Option<Finished>> = tasks.iter().map(|_| None).collect();
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for (task, shared) in tasks.iter().zip(&shared) {
            let start = &start;
            threads.push(Some(scope.spawn(move || run_clone(task, control, shared, start))));
        }
        let began = Instant::now();
        let mut next_status = status_interval.map(|interval| began + interval);
        while threads.iter().any(Option::is_some) {
            thread::sleep(Duration::from_millis(if began.elapsed().as_millis() < 500 { 5 } else { 50 }));
            if control.was_interrupted() {
                control.stop.store(true, Ordering::Relaxed);
            }
            for ((thread, result), task) in threads.iter_mut().zip(&mut finished).zip(tasks) {
                if thread.as_ref().is_some_and(|thread| thread.is_finished())
                    && let Some(thread) = thread.take()
                {
                    let done = thread.join().unwrap_or_else(|_| failed("the job's thread panicked; please report it"));
                    let job = &task.job.options;
                    let error = done.stats.first_error.is_some();
                    if job.exit_all || (job.exit_all_on_error && error) {
                        control.stop.store(true, Ordering::Relaxed);
                    }
                    *result = Some(done);
                }
            }
            watcher.progress(&progress(tasks, &shared, began));
            if let (Some(at), Some(interval)) = (next_status, status_interval)
                && Instant::now() >= at
            {
                next_status = Some(at + interval);
                let mut results = before.to_vec();
                results.extend(status(tasks, &shared, &finished, control));
                watcher.status(&results);
            }
        }
    });
    finished.into_iter().map(|finished| finished.unwrap_or_else(|| failed("the job did not end"))).collect()
}

fn failed(text: &str) -> Finished {
    let first_error = Some(FirstError { code: -i64::from(libc::EIO), text: text.to_string() });
    Finished { stats: JobStats { first_error, clones: 1, ..JobStats::default() }, logs: None }
}

fn run_clone(task: &CloneTask<'_>, control: &Control, shared: &Shared, start: &Barrier) -> Finished {
    prepare_thread(task);
    let opened = files::warm_or_cool(&task.job, &task.plan).map_err(|error| error.to_string()).and_then(|()| {
        Worker::open(&task.job, task.clone, &task.plan, task.seed, control, shared).map_err(|error| error.to_string())
    });
    start.wait();
    let finished = match opened {
        Ok(worker) => worker.run(task.seed),
        Err(error) => failed(&error),
    };
    if task.job.options.fsync_on_close && task.job.options.direction.write {
        for file in &task.plan.files {
            if let Ok(file) = std::fs::File::open(&file.path) {
                let _ = file.sync_all();
            }
        }
    }
    shared.set(State::Done);
    finished
}

/// CPUs of `cpus_allowed`, and timers that are not rounded up by 50 us.
fn prepare_thread(task: &CloneTask<'_>) {
    // SAFETY: PR_SET_TIMERSLACK takes a number and concerns this thread only.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    let Some(cpus) = &task.job.options.cpus else { return };
    let mut allowed = rustix::thread::CpuSet::new();
    match task.job.options.cpu_policy {
        CpuPolicy::Shared => cpus.iter().for_each(|cpu| allowed.set(*cpu)),
        CpuPolicy::Split => allowed.set(cpus[task.clone as usize % cpus.len()]),
    }
    if let Err(error) = rustix::thread::sched_setaffinity(None, &allowed) {
        eprintln!("{}: cpus_allowed: {error}", task.job.name);
    }
}

fn progress<'a>(tasks: &'a [&CloneTask<'_>], shared: &[Shared], began: Instant) -> Progress<'a> {
    let states = [State::Opening, State::Waiting, State::Ramping, State::Running, State::Verifying, State::Done];
    let mut done = [(0, 0); 2];
    for shared in shared {
        for (done, live) in done.iter_mut().zip(&shared.live) {
            done.0 += live.ops.load(Ordering::Relaxed);
            done.1 += live.bytes.load(Ordering::Relaxed);
        }
    }
    let planned = tasks.iter().map(|task| {
        let options = &task.job.options;
        Some(Duration::from_micros(options.runtime_us?.saturating_add(options.ramp_us + options.start_delay_us)))
    });
    Progress {
        clones: tasks
            .iter()
            .zip(shared)
            .map(|(task, shared)| (&task.job, states[shared.state.load(Ordering::Relaxed) as usize]))
            .collect(),
        elapsed: began.elapsed(),
        planned: planned.collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().max()),
        done,
    }
}

/// Asks every running clone for a copy of its statistics, and waits a little for the answers.
fn status<'e>(
    tasks: &[&CloneTask<'e>],
    shared: &[Shared],
    finished: &[Option<Finished>],
    control: &Control,
) -> Vec<CloneResult<'e>> {
    control.status.fetch_add(1, Ordering::Relaxed);
    let until = Instant::now() + Duration::from_millis(300);
    let mut results = Vec::new();
    for ((task, shared), finished) in tasks.iter().zip(shared).zip(finished) {
        let stats = match finished {
            Some(finished) => finished.stats.clone(),
            None => loop {
                let copy = shared.status.lock().unwrap_or_else(PoisonError::into_inner).take();
                match copy {
                    Some(stats) => break *stats,
                    None if Instant::now() > until => break JobStats { clones: 1, ..JobStats::default() },
                    None => thread::sleep(Duration::from_millis(2)),
                }
            },
        };
        results.push(CloneResult { job: task.job.clone(), stats });
    }
    results
}
