//! Engines: what executes ops.
//!
//! A [`EngineKind`] is what a name after `ioengine=` stands for; it opens one [`Engine`] per job thread, on that thread.
//! The job's loop (`run::worker`) hands over batches and takes batches, so that the only dynamic calls are one `submit`
//! and one `complete` per batch, and none per op within it.
//!
//! Rules for an engine
//! - Memory of ops belongs to the engine (verbs and glommio need it registered or aligned their way). It has one buffer
//!   per slot, `depth` slots, each of `buffer_bytes`. A slot is in flight from `submit` until its completion is taken;
//!   in between the loop does not touch its buffer. An engine that makes what it writes itself has empty buffers.
//! - `submit` may take fewer ops than offered (a ring is full); the loop offers the rest again after completions.
//! - `complete` returns when `min` ops have completed or the timeout is over, whichever is first, and never gives more
//!   than `max`. `min` is 0 for a look. It must not wait longer than the timeout even if the system under test is dead.
//! - An op that fails is a completion with a negative outcome, not an error: errors of `submit` and `complete` end the job.
//! - An asynchronous client lives inside its engine: `submit` spawns tasks on the engine's own single-threaded executor,
//!   `complete` drives that executor until enough tasks have finished. glommio's `LocalExecutor::run` and a current-thread
//!   tokio runtime both allow it.
//!
//! Alternatives that were not taken: a generic loop per engine (each engine would instantiate all of `run`, for 2 ns per
//! batch), and an async trait (io_uring at depth 1 would pay for a waker per op).

use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

pub(crate) mod memory;
pub mod null;
pub mod uring;

/// The engines of a program, in the order in which `--enghelp` lists them.
pub type Engines<'e> = &'e [&'e dyn EngineKind];

/// What an op does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// Read `length` bytes into the slot's buffer.
    Read,
    /// Write `length` bytes of the slot's buffer.
    Write,
    /// Make all completed writes of the file durable.
    Sync,
    /// The same, without metadata that is not needed to read the data.
    Datasync,
}

/// One op, as it is submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// What to do.
    pub kind: OpKind,
    /// Which buffer; comes back with the completion.
    pub slot: u32,
    /// Index into [`EngineContext::files`].
    pub file: u32,
    /// Bytes.
    pub length: u32,
    /// Bytes from the start of the file. For an engine without files: a number that follows the job's distribution,
    /// below `size`, in multiples of the block size; for instance the index of a key times the block size.
    pub offset: u64,
}

/// How an op ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The op's slot, free from now on.
    pub slot: u32,
    /// Bytes that were transferred (for an engine without files: the bytes of the answer), or a negative error number,
    /// which [`Engine::error_text`] explains.
    pub outcome: i64,
}

/// What holds for all jobs of an engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineFacts {
    /// Ops are on files or devices: they are laid out, opened and guarded before the job.
    pub uses_files: bool,
    /// Reads give what was written: such an engine can be verified.
    pub stores: bool,
    /// The engine can write.
    pub writes: bool,
    /// Only one op is ever in flight.
    pub one_at_a_time: bool,
    /// Failed ops are counted and the job goes on, unless `continue_on_error` says otherwise: what one wants of a
    /// client whose server may die. fio's own engines stop at the first error.
    pub survives_errors: bool,
}

/// An option that only this engine has.
#[derive(Clone, Copy, Debug)]
pub struct EngineOption {
    /// Name, as in a job file.
    pub name: &'static str,
    /// What a value looks like.
    pub takes: &'static str,
    /// Default; empty when there is none.
    pub default: &'static str,
    /// One line.
    pub help: &'static str,
}

/// A file or device that a job uses, checked by the guard and laid out.
#[derive(Clone, Debug)]
pub struct EngineFile {
    /// Where it is.
    pub path: PathBuf,
    /// Bytes that may be used, from 0.
    pub size_bytes: u64,
}

/// What an engine is opened for: one clone of a job.
#[derive(Clone, Debug)]
pub struct EngineContext {
    /// Name of the job.
    pub job: String,
    /// Which clone, from 0.
    pub clone: u32,
    /// Ops in flight at most: the number of slots.
    pub depth: u32,
    /// Largest block, in bytes.
    pub buffer_bytes: usize,
    /// The files; none when the engine does not use any.
    pub files: Vec<EngineFile>,
    /// Whether reads and writes occur.
    pub reads: bool,
    /// Whether writes occur.
    pub writes: bool,
    /// O_DIRECT.
    pub direct: bool,
    /// Flags of open(2) beyond that: O_SYNC, O_DSYNC.
    pub open_flags: i32,
    /// Seed of the clone's random decisions.
    pub seed: u64,
    /// Options of the engine as written, in order, each once.
    pub options: Vec<(String, String)>,
}

impl EngineContext {
    /// For `map_err`: what is wrong, with the job's name before it.
    pub fn error(&self, what: impl std::fmt::Display) -> EngineError {
        EngineError::Other(format!("job {}: {what}", self.job))
    }

    /// The value of an option of the engine.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Whether a switch of the engine is on.
    pub fn is_on(&self, name: &str) -> bool {
        self.option(name).is_some_and(|value| value != "0")
    }
}

/// A number of an engine's own, beside what the job measures.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What was counted, as a key of JSON: `lists_probed`.
    pub name: String,
    /// Its sum over everything that was counted.
    pub total: f64,
    /// How many things it was summed over: the report shows the mean. `None`: it shows how many a second of the job's time.
    pub count: Option<u64>,
}

/// What an engine found out itself, for the report of its job. Those of several clones are added up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Findings {
    /// In the order of the report; each name once.
    pub figures: Vec<Figure>,
    /// Sentences; what several clones say is shown once.
    pub notes: Vec<String>,
}

impl Findings {
    /// Adds those of another clone.
    pub(crate) fn merge(&mut self, other: &Findings) {
        for theirs in &other.figures {
            match self.figures.iter_mut().find(|ours| ours.name == theirs.name) {
                Some(ours) => {
                    ours.total += theirs.total;
                    ours.count = ours.count.zip(theirs.count).map(|(ours, theirs)| ours + theirs);
                }
                None => self.figures.push(theirs.clone()),
            }
        }
        let unknown: Vec<String> = other.notes.iter().filter(|note| !self.notes.contains(note)).cloned().collect();
        self.notes.extend(unknown);
    }
}

/// Why an engine can't go on.
#[derive(Debug, Error)]
pub enum EngineError {
    /// A file can't be opened.
    #[error("{path}: cannot open: {cause}", path = path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// Something that the kernel was asked for.
    #[error("{what}: {cause}")]
    System {
        /// What was done.
        what: &'static str,
        /// Why it failed.
        cause: std::io::Error,
    },
    /// Anything else, as one sentence that says what happened, to what, and what to do.
    #[error("{0}")]
    Other(String),
}

impl EngineError {
    /// For `map_err`.
    pub(crate) fn system(what: &'static str) -> impl Fn(std::io::Error) -> EngineError {
        move |cause| EngineError::System { what, cause }
    }
}

/// What a name after `ioengine=` stands for.
pub trait EngineKind: Sync {
    /// The name.
    fn name(&self) -> &'static str;
    /// One line for `--enghelp`.
    fn help(&self) -> &'static str;
    /// What holds for all its jobs.
    fn facts(&self) -> EngineFacts;
    /// Options that only it has.
    fn options(&self) -> &'static [EngineOption] {
        &[]
    }
    /// Says in one sentence what is wrong with the options of a job, before anything runs: those of the engine, as
    /// written. That switches (`takes: "0|1"`) are 0 or 1 has been checked.
    fn check(&self, _options: &[(String, String)]) -> Result<(), String> {
        Ok(())
    }
    /// The block device behind a path that is neither file nor block device: it is what has a size, and what the guard looks
    /// at before the path is written. An error here is one of the path, before anything runs.
    ///
    /// # Errors
    /// When this engine can't use the path.
    fn block_device_of(&self, _path: &Path) -> std::io::Result<Option<PathBuf>> {
        Ok(None)
    }
    /// Opens one for a clone of a job, on the thread that will use it.
    fn open(&self, context: &EngineContext) -> Result<Box<dyn Engine>, EngineError>;
}

/// Executes the ops of one clone of a job. Need not be `Send`: it stays on its thread.
pub trait Engine {
    /// Starts ops; says how many of them were taken, from the first on. At least one unless something is in flight.
    fn submit(&mut self, ops: &[Op]) -> Result<usize, EngineError>;
    /// Appends between `min` and `max` completions, or fewer when the timeout is over.
    fn complete(
        &mut self,
        min: usize,
        max: usize,
        timeout: Duration,
        completions: &mut Vec<Completion>,
    ) -> Result<(), EngineError>;
    /// The buffer of a slot that is not in flight.
    fn buffer(&mut self, slot: u32) -> &mut [u8];
    /// Measuring begins, at the start or anew when the ramp is over: what was counted for [`Engine::findings`] so far is
    /// forgotten.
    fn start_measuring(&mut self) {}
    /// What the engine found out itself since then, for the report; asked for after [`Engine::finish`], and for a status in
    /// between.
    fn findings(&self) -> Findings {
        Findings::default()
    }
    /// Ends what was begun, once the job is over and its ops have completed. An error here is one of the job; the time is not
    /// measured.
    fn finish(&mut self) -> Result<(), EngineError> {
        Ok(())
    }
    /// What a negative outcome means. The default takes it for an error number of the system.
    fn error_text(&self, outcome: i64) -> String {
        std::io::Error::from_raw_os_error(-outcome as i32).to_string()
    }
}
