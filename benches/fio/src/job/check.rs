//! From options as written to a [`Job`] that can run, or one sentence about why not.
//!
//! Owns everything that depends on several options at once: engine names that are served by another engine, batches
//! that are larger than the depth, options that contradict each other. What depends on files (their size, whether they
//! exist) is decided later, in `files`.
//!
//! Invariants of a [`Job`]
//! - `1 <= batch_submit <= depth`, `1 <= batch_complete_max <= depth`, `batch_complete_min <= batch_complete_max`.
//! - Block sizes are at least 1; multiples of 512 when the job reads or writes files with O_DIRECT.
//! - Its engine knows every option in `of_engine`.
//! - A verified job writes blocks of one size, or only reads.

use super::error::JobError;
use super::options::{BlockSizes, Distribution, JobOptions};
use super::value;
use crate::engine::{EngineKind, Engines};
use crate::verify;

/// A job that can run. Clones (`numjobs`) are still one job.
#[derive(Clone)]
pub struct Job<'e> {
    pub(crate) name: String,
    pub(crate) options: JobOptions,
    pub(crate) engine: &'e dyn EngineKind,
    /// Of reads and of writes.
    pub(crate) blocks: [BlockSizes; 2],
    /// Ops in flight.
    pub(crate) depth: u32,
    pub(crate) batch_submit: u32,
    pub(crate) batch_complete_min: u32,
    pub(crate) batch_complete_max: u32,
    pub(crate) depth_low: u32,
    /// Share of reads in a mix, in percent.
    pub(crate) read_percent: u32,
    /// Percentiles of submission, completion and total latency are reported.
    pub(crate) percentiles_of: [bool; 3],
    /// Which group of the report.
    pub(crate) group: usize,
    /// Jobs of one wave run together.
    pub(crate) wave: usize,
    /// What the user should know about how the options were understood.
    pub(crate) notes: Vec<String>,
}

/// fio's engines that others serve, by whom, and whether they keep one op in flight.
const SERVED: &[(&str, &str, bool)] = &[
    ("libaio", "io_uring", false),
    ("sync", "io_uring", true),
    ("psync", "io_uring", true),
    ("vsync", "io_uring", true),
    ("pvsync", "io_uring", true),
    ("pvsync2", "io_uring", true),
    ("io_uring_cmd", "nvme_cmd", false),
];

impl<'e> Job<'e> {
    /// How the engine is named in reports.
    pub(crate) fn engine_text(&self) -> String {
        match self.options.engine == self.engine.name() {
            true => self.options.engine.clone(),
            false => format!("{} (served by {})", self.options.engine, self.engine.name()),
        }
    }

    /// Whether ops start at times of a schedule.
    pub(crate) fn is_rated(&self) -> bool {
        let options = &self.options;
        options.rate_bytes.iter().chain(&options.rate_ops).any(Option::is_some)
    }

    pub(crate) fn check(
        name: &str,
        mut options: JobOptions,
        engines: Engines<'e>,
        (group, wave): (usize, usize),
    ) -> Result<Job<'e>, JobError> {
        let name = options.name.clone().unwrap_or_else(|| name.to_string());
        for log in [&mut options.latency_log, &mut options.bandwidth_log, &mut options.iops_log].into_iter().flatten() {
            if log.is_empty() {
                log.clone_from(&name);
            }
        }
        let wrong = |what: String| Err(JobError::Contradiction { job: name.clone(), what });
        let served = SERVED.iter().find(|(alias, ..)| *alias == options.engine);
        let wanted = served.map_or(options.engine.as_str(), |(_, server, _)| server);
        let Some(engine) = engines.iter().copied().find(|engine| engine.name() == wanted) else {
            let known: Vec<&str> = engines.iter().map(|engine| engine.name()).collect();
            let (engine, known) = (options.engine.clone(), known.join(", "));
            return Err(JobError::Engine { job: name, engine, known });
        };
        if let Some((option, _)) =
            options.of_engine.iter().find(|(option, _)| !engine.options().iter().any(|known| known.name == option))
        {
            return Err(JobError::NotOfEngine { job: name, name: option.clone(), engine: wanted.to_string() });
        }
        let is_switch = |name: &str| engine.options().iter().any(|known| known.name == name && known.takes == "0|1");
        let odd = options.of_engine.iter().find(|(name, value)| is_switch(name) && value::boolean(value).is_err());
        if let Some((option, value)) = odd {
            return wrong(format!("{option}: `{value}` is not 0 or 1"));
        }
        if let Err(what) = engine.check(&options.of_engine) {
            return wrong(what);
        }
        let facts = engine.facts();
        let mut notes = Vec::new();
        if served.is_some() {
            notes.push(format!("{name}: ioengine={} is served by {wanted}", options.engine));
        }
        let mut depth = options.depth;
        if depth > 1 && (served.is_some_and(|(.., one)| *one) || facts.one_at_a_time) {
            notes.push(format!("{name}: ioengine={} keeps one op in flight: iodepth is 1", options.engine));
            depth = 1;
        }
        let default = BlockSizes::Fixed(4096);
        let blocks = options.blocks.clone().map(|sizes| match sizes {
            Some(BlockSizes::Range { min, max }) if min == max => BlockSizes::Fixed(min),
            sizes => sizes.unwrap_or(default.clone()),
        });
        let used = [options.direction.read, options.direction.write];
        let used_sizes = || blocks.iter().zip(used).filter(|(_, used)| *used).map(|(sizes, _)| sizes);

        if options.time_based && options.runtime_us.is_none() {
            return wrong("time_based needs a runtime".into());
        }
        if (0..2).any(|d| options.rate_bytes[d].is_some() && options.rate_ops[d].is_some()) {
            return wrong("rate and rate_iops are both given; give one".into());
        }
        if let (Some(read), Some(write)) = (options.read_percent, options.write_percent)
            && read + write != 100
        {
            return wrong(format!("rwmixread={read} and rwmixwrite={write} do not add up to 100"));
        }
        if options.direct && facts.uses_files {
            let odd = used_sizes().find_map(|sizes| match sizes {
                BlockSizes::Split(parts) => parts.iter().map(|part| part.0).find(|bytes| bytes % 512 != 0),
                sizes => Some(sizes.min()).filter(|bytes| bytes % 512 != 0),
            });
            if let Some(bytes) = odd {
                return wrong(format!("block size {bytes} is not a multiple of 512, which direct=1 needs"));
            }
            if options.unaligned_sizes {
                return wrong("bs_unaligned and direct=1 do not go together".into());
            }
        }
        if let Distribution::Zoned(_) | Distribution::ZonedAbsolute(_) = options.distribution
            && !options.direction.random
        {
            return wrong("random_distribution=zoned needs a random rw, such as randread".into());
        }
        if options.stonewall && options.start_delay_us > 0 && options.create_only {
            return wrong("create_only starts nothing that startdelay could delay".into());
        }
        if options.verify.is_some() {
            if !facts.stores {
                return wrong(format!("verify needs an engine that stores data; {wanted} does not"));
            }
            if options.direction.read && options.direction.write {
                return wrong(
                    "verify is of a job that writes, or one that reads what such a job wrote; a mix is not supported"
                        .into(),
                );
            }
            if used_sizes().any(|sizes| !matches!(sizes, BlockSizes::Fixed(_))) {
                return wrong("verify needs blocks of one size: give bs, not bsrange or bssplit".into());
            }
            if used_sizes().any(|sizes| sizes.min() < verify::BLOCK_BYTES_MIN) {
                return wrong(format!("verify needs blocks of at least {} bytes", verify::BLOCK_BYTES_MIN));
            }
            if options.zero_buffers {
                return wrong("zero_buffers and verify contradict each other".into());
            }
        }
        if !facts.writes && options.direction.write {
            return wrong(format!("ioengine={wanted} only reads"));
        }
        let at_once = |count: u64| if count == 0 { depth } else { count.min(depth) } as u32;
        let batch_complete_min = options.batch_complete_min.min(depth) as u32;
        let batch_complete_max = at_once(options.batch_complete_max.unwrap_or(batch_complete_min.into()).max(1));
        let rated = options.rate_bytes.iter().chain(&options.rate_ops).any(Option::is_some);
        Ok(Job {
            engine,
            depth: depth as u32,
            batch_submit: at_once(options.batch_submit),
            batch_complete_min,
            batch_complete_max: batch_complete_max.max(batch_complete_min),
            depth_low: options.depth_low.unwrap_or(depth).clamp(1, depth) as u32,
            read_percent: options.read_percent.or(options.write_percent.map(|write| 100 - write)).unwrap_or(50),
            percentiles_of: [
                options.submission_percentiles.unwrap_or(false),
                options.completion_percentiles.unwrap_or(true),
                options.total_percentiles.unwrap_or(rated),
            ],
            blocks,
            group,
            wave,
            notes,
            name,
            options,
        })
    }
}
