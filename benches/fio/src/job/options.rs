//! The options of a job as they were written, typed, with fio's defaults.
//!
//! Filled by the setters of the option table, read by `check` and by whoever runs the job. What depends on several
//! options at once is decided in `check`, not here.

use std::path::PathBuf;

use super::value::Extent;

/// What kinds of op a job issues, and in which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direction {
    /// Offsets at random; else one after the other.
    pub random: bool,
    /// Reads are issued.
    pub read: bool,
    /// Writes are issued.
    pub write: bool,
}

/// Sizes of blocks, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockSizes {
    /// All of one size.
    Fixed(u64),
    /// Uniformly from a range, in multiples of the smallest unless unaligned.
    Range {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// By weight in percent; the weights add up to 100.
    Split(Vec<(u64, u32)>),
}

impl BlockSizes {
    /// The smallest, in bytes.
    pub fn min(&self) -> u64 {
        match self {
            BlockSizes::Fixed(bytes) => *bytes,
            BlockSizes::Range { min, .. } => *min,
            BlockSizes::Split(parts) => parts.iter().map(|part| part.0).min().unwrap_or(4096),
        }
    }

    /// The largest, in bytes.
    pub fn max(&self) -> u64 {
        match self {
            BlockSizes::Fixed(bytes) => *bytes,
            BlockSizes::Range { max, .. } => *max,
            BlockSizes::Split(parts) => parts.iter().map(|part| part.0).max().unwrap_or(4096),
        }
    }
}

/// Where random offsets fall.
#[derive(Clone, Debug, PartialEq)]
pub enum Distribution {
    /// Uniform.
    Random,
    /// Zipf with this theta; the hottest block at this share of the range, scattered when not given.
    Zipf(f64, Option<f64>),
    /// Pareto with this power; centre as with Zipf.
    Pareto(f64, Option<f64>),
    /// Normal with this deviation in percent of the range, around this share of it.
    Normal(f64, f64),
    /// Percent of accesses to percent of the range.
    Zoned(Vec<(u32, u32)>),
    /// Percent of accesses to so many bytes.
    ZonedAbsolute(Vec<(u32, u64)>),
}

/// How the times of rated ops follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateProcess {
    /// At equal distances.
    Linear,
    /// Exponentially distributed distances, as arrivals from many independent users.
    Poisson,
}

/// What `sync=` asks of writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncWrites {
    /// Nothing.
    None,
    /// O_SYNC.
    Sync,
    /// O_DSYNC.
    Dsync,
}

/// How space is reserved when files are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallocate {
    /// Not at all.
    None,
    /// fallocate(2), and no complaint where the file system can't.
    Native,
    /// posix_fallocate(3).
    Posix,
    /// fallocate(2) beyond the end of the file.
    Keep,
    /// ftruncate(2) to the size.
    Truncate,
}

/// Which of several files is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileService {
    /// In turn, after so many ops each.
    RoundRobin(u32),
    /// At random, for so many ops each.
    Random(u32),
    /// One after the other is finished.
    Sequential,
}

/// Checksums of verified blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// CRC-32C (Castagnoli).
    Crc32c,
    /// xxHash, 64 bits.
    Xxhash,
}

/// Which errors a job survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContinueOnError {
    /// None.
    None,
    /// Of reads.
    Read,
    /// Of writes.
    Write,
    /// Of reads and writes.
    Io,
    /// Of verification.
    Verify,
    /// All.
    All,
}

/// How CPUs are given to the clones of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuPolicy {
    /// Each clone may use all of them.
    Shared,
    /// Each clone gets one.
    Split,
}

/// Everything that a job may say.
#[derive(Clone, Debug, PartialEq)]
pub struct JobOptions {
    pub(crate) name: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) filenames: Vec<PathBuf>,
    pub(crate) directory: Option<PathBuf>,
    pub(crate) file_count: u32,
    pub(crate) file_service: FileService,
    pub(crate) direction: Direction,
    /// Behind `rw=...:`; ops until a new random offset, or bytes left out between sequential ones.
    pub(crate) sequence: Option<u64>,
    pub(crate) read_percent: Option<u32>,
    pub(crate) write_percent: Option<u32>,
    pub(crate) blocks: [Option<BlockSizes>; 2],
    pub(crate) unaligned_sizes: bool,
    pub(crate) align_bytes: [Option<u64>; 2],
    pub(crate) seed: Option<u64>,
    pub(crate) repeatable: bool,
    pub(crate) no_random_map: bool,
    pub(crate) distribution: Distribution,
    pub(crate) percentage_random: [u32; 2],
    pub(crate) engine: String,
    pub(crate) depth: u64,
    pub(crate) batch_submit: u64,
    pub(crate) batch_complete_min: u64,
    pub(crate) batch_complete_max: Option<u64>,
    pub(crate) depth_low: Option<u64>,
    pub(crate) size: Option<Extent>,
    pub(crate) io_size: Option<Extent>,
    pub(crate) file_size_bytes: Option<u64>,
    pub(crate) offset: Extent,
    pub(crate) offset_increment: Extent,
    pub(crate) op_count: Option<u64>,
    pub(crate) loops: u64,
    pub(crate) clones: u32,
    pub(crate) start_delay_us: u64,
    pub(crate) runtime_us: Option<u64>,
    pub(crate) time_based: bool,
    pub(crate) ramp_us: u64,
    pub(crate) think_us: u64,
    pub(crate) think_spin_us: u64,
    pub(crate) think_blocks: u64,
    pub(crate) rate_bytes: [Option<u64>; 2],
    pub(crate) rate_ops: [Option<u64>; 2],
    pub(crate) rate_process: RateProcess,
    pub(crate) direct: bool,
    pub(crate) sync: SyncWrites,
    pub(crate) fsync_every: u64,
    pub(crate) fdatasync_every: u64,
    pub(crate) end_fsync: bool,
    pub(crate) fsync_on_close: bool,
    pub(crate) overwrite: bool,
    pub(crate) fallocate: Fallocate,
    pub(crate) create_fsync: bool,
    pub(crate) create_on_open: bool,
    pub(crate) create_only: bool,
    pub(crate) may_create: bool,
    pub(crate) invalidate: bool,
    pub(crate) advise: bool,
    pub(crate) pre_read: bool,
    pub(crate) unlink: bool,
    pub(crate) group_reporting: bool,
    pub(crate) new_group: bool,
    pub(crate) stonewall: bool,
    pub(crate) exit_all: bool,
    pub(crate) exit_all_on_error: bool,
    pub(crate) submission_percentiles: Option<bool>,
    pub(crate) completion_percentiles: Option<bool>,
    pub(crate) total_percentiles: Option<bool>,
    pub(crate) percentiles: Vec<f64>,
    pub(crate) significant_figures: usize,
    pub(crate) latency_log: Option<String>,
    pub(crate) bandwidth_log: Option<String>,
    pub(crate) iops_log: Option<String>,
    pub(crate) log_average_ms: u64,
    pub(crate) log_max: bool,
    pub(crate) log_offset: bool,
    pub(crate) log_per_job: bool,
    pub(crate) sample_ms: u64,
    pub(crate) verify: Option<Checksum>,
    pub(crate) do_verify: bool,
    pub(crate) verify_fatal: bool,
    pub(crate) cpus: Option<Vec<usize>>,
    pub(crate) cpu_policy: CpuPolicy,
    pub(crate) zero_buffers: bool,
    pub(crate) refill_buffers: bool,
    pub(crate) scramble_buffers: bool,
    pub(crate) without_total: bool,
    pub(crate) without_completion: bool,
    pub(crate) without_submission: bool,
    pub(crate) continue_on_error: Option<ContinueOnError>,
    pub(crate) kb_base: u64,
    /// Options that belong to engines, as written.
    pub(crate) of_engine: Vec<(String, String)>,
    /// Everything given, in order, as written: what reports repeat.
    pub(crate) given: Vec<(String, String)>,
}

/// fio's default list.
pub(crate) const PERCENTILES: [f64; 17] =
    [1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99];

impl Default for JobOptions {
    fn default() -> Self {
        JobOptions {
            name: None,
            description: None,
            filenames: Vec::new(),
            directory: None,
            file_count: 1,
            file_service: FileService::RoundRobin(1),
            direction: Direction { random: false, read: true, write: false },
            sequence: None,
            read_percent: None,
            write_percent: None,
            blocks: [None, None],
            unaligned_sizes: false,
            align_bytes: [None, None],
            seed: None,
            repeatable: true,
            no_random_map: false,
            distribution: Distribution::Random,
            percentage_random: [100, 100],
            engine: "psync".into(),
            depth: 1,
            batch_submit: 1,
            batch_complete_min: 1,
            batch_complete_max: None,
            depth_low: None,
            size: None,
            io_size: None,
            file_size_bytes: None,
            offset: Extent::Bytes(0),
            offset_increment: Extent::Bytes(0),
            op_count: None,
            loops: 1,
            clones: 1,
            start_delay_us: 0,
            runtime_us: None,
            time_based: false,
            ramp_us: 0,
            think_us: 0,
            think_spin_us: 0,
            think_blocks: 1,
            rate_bytes: [None, None],
            rate_ops: [None, None],
            rate_process: RateProcess::Linear,
            direct: false,
            sync: SyncWrites::None,
            fsync_every: 0,
            fdatasync_every: 0,
            end_fsync: false,
            fsync_on_close: false,
            overwrite: false,
            fallocate: Fallocate::Native,
            create_fsync: true,
            create_on_open: false,
            create_only: false,
            may_create: true,
            invalidate: true,
            advise: true,
            pre_read: false,
            unlink: false,
            group_reporting: false,
            new_group: false,
            stonewall: false,
            exit_all: false,
            exit_all_on_error: false,
            submission_percentiles: None,
            completion_percentiles: None,
            total_percentiles: None,
            percentiles: PERCENTILES.to_vec(),
            significant_figures: 4,
            latency_log: None,
            bandwidth_log: None,
            iops_log: None,
            log_average_ms: 0,
            log_max: false,
            log_offset: false,
            log_per_job: true,
            sample_ms: 500,
            verify: None,
            do_verify: true,
            verify_fatal: false,
            cpus: None,
            cpu_policy: CpuPolicy::Shared,
            zero_buffers: false,
            refill_buffers: false,
            scramble_buffers: true,
            without_total: false,
            without_completion: false,
            without_submission: false,
            continue_on_error: None,
            kb_base: 1024,
            of_engine: Vec::new(),
            given: Vec::new(),
        }
    }
}
