//! The table of options: names, aliases, kind of value, default, help line, and what a value does.
//!
//! The only place that knows an option's name. The parser, `--help`, `--cmdhelp` and the table in
//! `docs/benchmarking.md` come from it.

use super::options::{
    BlockSizes, Checksum, ContinueOnError, CpuPolicy, Fallocate, JobOptions, RateProcess, SyncWrites,
};
use super::value::{
    Result, ValueError, boolean, cpus, expected, extent, float, integer, integer_in_base, percent, range,
    read_and_write, time_us,
};
use super::words::{block_split, direction, distribution, file_service, files};

/// One option of a job.
pub struct OptionSpec {
    /// fio's name.
    pub name: &'static str,
    /// fio's other names for it.
    pub aliases: &'static [&'static str],
    /// What a value looks like, for people.
    pub takes: &'static str,
    /// The default as fio writes it; empty when there is none.
    pub default: &'static str,
    /// One line.
    pub help: &'static str,
    /// The room of the help that it stands in.
    pub topic: &'static str,
    set: fn(&mut JobOptions, &str) -> Result<()>,
}

impl OptionSpec {
    /// Whether that is its name or an alias.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.name == name || self.aliases.contains(&name)
    }

    pub(crate) fn set(&self, options: &mut JobOptions, value: &str) -> Result<()> {
        (self.set)(options, value)
    }

    /// Whether the option may stand without a value.
    pub(crate) fn is_switch(&self) -> bool {
        self.takes == SWITCH
    }
}

const SWITCH: &str = "0|1";
const INT: &str = "int";
const TIME: &str = "time";
const SIZE: &str = "size|percent%";
const TEXT: &str = "text";

macro_rules! options {
    ($($topic:literal: { $($name:literal $(| $alias:literal)* , $takes:expr, $default:literal, $help:literal, $set:expr;)* })*) => {
        &[$($(OptionSpec {
            name: $name,
            aliases: &[$($alias),*],
            takes: $takes,
            default: $default,
            help: $help,
            topic: $topic,
            set: $set,
        }),*),*]
    };
}

/// All options, in the order of the help.
pub const OPTIONS: &[OptionSpec] = options! {
    "Job": {
        "name", TEXT, "", "Name of the job; on the command line it starts one", |o, v| text(&mut o.name, v);
        "description", TEXT, "", "A line for the report", |o, v| text(&mut o.description, v);
        "numjobs", INT, "1", "How many clones of the job run, each on a thread of its own", |o, v| { o.clones = at_least(v, 1, 1 << 16)? as u32; Ok(()) };
        "loops", INT, "1", "How often the job is done over", |o, v| { o.loops = at_least(v, 1, u64::MAX)?; Ok(()) };
        "stonewall" | "wait_for_previous", SWITCH, "0", "Start when all jobs before have ended; starts a new group", |o, v| { o.stonewall = boolean(v)?; Ok(()) };
        "new_group", SWITCH, "0", "Start a new group of the report", |o, v| { o.new_group = boolean(v)?; Ok(()) };
        "group_reporting", SWITCH, "0", "Report the jobs of a group together", |o, v| { o.group_reporting = boolean(v)?; Ok(()) };
        "thread", SWITCH, "1", "Jobs are always threads here; 0 has no other effect", |_, v| boolean(v).map(drop);
        "exitall", SWITCH, "0", "End all jobs when the first has ended", |o, v| { o.exit_all = boolean(v)?; Ok(()) };
        "exitall_on_error", SWITCH, "0", "End all jobs when one has ended with an error", |o, v| { o.exit_all_on_error = boolean(v)?; Ok(()) };
        "kb_base", "1024|1000", "1024", "What k means; i (ki, mi) means the other", |o, v| { o.kb_base = one_of(v, &[("1024", 1024), ("1000", 1000)])?; Ok(()) };
    }
    "Time": {
        "runtime" | "timeout", TIME, "", "End after this time, even when size is not done", |o, v| { o.runtime_us = Some(time_us(v, 1_000_000)?).filter(|us| *us > 0); Ok(()) };
        "time_based", SWITCH, "0", "Go on until runtime, over and over", |o, v| { o.time_based = boolean(v)?; Ok(()) };
        "ramp_time", TIME, "0", "Run this long before measuring", |o, v| { o.ramp_us = time_us(v, 1_000_000)?; Ok(()) };
        "startdelay", TIME, "0", "Wait before starting", |o, v| { o.start_delay_us = time_us(v, 1_000_000)?; Ok(()) };
    }
    "Files": {
        "filename", "name[:name]", "JOB.CLONE.FILE", "Files or devices", |o, v| { o.filenames = files(v); Ok(()) };
        "directory", TEXT, "", "Folder in front of file names", |o, v| { o.directory = Some(v.into()); Ok(()) };
        "nrfiles", INT, "1", "How many files each clone uses, when filename does not say", |o, v| { o.file_count = at_least(v, 1, 65_536)? as u32; Ok(()) };
        "file_service_type", "roundrobin|random|sequential[:int]", "roundrobin", "Which file is next", |o, v| { o.file_service = file_service(v)?; Ok(()) };
        "filesize", "size", "", "Size of each file", |o, v| { o.file_size_bytes = Some(file_size(v, o.kb_base)?); Ok(()) };
        "overwrite", SWITCH, "0", "Lay out files before writing, too", |o, v| { o.overwrite = boolean(v)?; Ok(()) };
        "fallocate", "none|native|posix|keep|truncate", "native", "How space is reserved when files are made", |o, v| { o.fallocate = one_of(v, FALLOCATE)?; Ok(()) };
        "create_fsync", SWITCH, "1", "Sync files after laying them out", |o, v| { o.create_fsync = boolean(v)?; Ok(()) };
        "create_on_open", SWITCH, "0", "Do not lay out files; make them when the job opens them", |o, v| { o.create_on_open = boolean(v)?; Ok(()) };
        "create_only", SWITCH, "0", "Lay out files and do nothing else", |o, v| { o.create_only = boolean(v)?; Ok(()) };
        "allow_file_create", SWITCH, "1", "Missing files may be made", |o, v| { o.may_create = boolean(v)?; Ok(()) };
        "invalidate", SWITCH, "1", "Drop the page cache of the files before the job", |o, v| { o.invalidate = boolean(v)?; Ok(()) };
        "fadvise_hint", SWITCH, "1", "Tell the kernel whether access is sequential or random", |o, v| { o.advise = boolean(v)?; Ok(()) };
        "pre_read", SWITCH, "0", "Read the files once before measuring", |o, v| { o.pre_read = boolean(v)?; Ok(()) };
        "unlink", SWITCH, "0", "Remove the files that were made, after the job", |o, v| { o.unlink = boolean(v)?; Ok(()) };
    }
    "What is issued": {
        "rw" | "readwrite", "read|write|randread|randwrite|rw|randrw[:int]", "read", "Kind and order of ops", |o, v| { (o.direction, o.sequence) = direction(v)?; Ok(()) };
        "rwmixread", "percent", "50", "Share of reads in a mix", |o, v| { o.read_percent = Some(percent(v)?); Ok(()) };
        "rwmixwrite", "percent", "50", "Share of writes in a mix", |o, v| { o.write_percent = Some(percent(v)?); Ok(()) };
        "bs" | "blocksize", "size[,size]", "4k", "Block size of reads, and of writes", |o, v| { let base = o.kb_base; blocks(o, v, |v| Ok(BlockSizes::Fixed(integer_in_base(v, base)?))) };
        "bsrange" | "blocksize_range", "size-size[,size-size]", "", "Block sizes from a range", |o, v| { let base = o.kb_base; blocks(o, v, |v| range(v, base).map(|(min, max)| BlockSizes::Range { min, max })) };
        "bssplit", "size/percent:...[,...]", "", "Block sizes by weight", |o, v| { let base = o.kb_base; blocks(o, v, |v| block_split(v, base)) };
        "bs_unaligned" | "blocksize_unaligned", SWITCH, "0", "Sizes of bsrange are any number of bytes", |o, v| { o.unaligned_sizes = boolean(v)?; Ok(()) };
        "blockalign" | "ba", "size[,size]", "bs", "Alignment of random offsets; without random map", |o, v| { let base = o.kb_base; o.align_bytes = read_and_write(v, |v| integer_in_base(v, base))?; Ok(()) };
        "size", SIZE, "", "Bytes of each clone: the region, and how much is done", |o, v| { o.size = Some(extent(v, o.kb_base)?); Ok(()) };
        "io_size" | "io_limit", SIZE, "size", "How much is done, when it is not the region's size", |o, v| { o.io_size = Some(extent(v, o.kb_base)?); Ok(()) };
        "number_ios", INT, "", "End after so many ops", |o, v| { o.op_count = Some(integer(v)?).filter(|count| *count > 0); Ok(()) };
        "offset" | "fileoffset", SIZE, "0", "Where the region starts", |o, v| { o.offset = extent(v, o.kb_base)?; Ok(()) };
        "offset_increment", SIZE, "0", "Offset is moved by this for each clone", |o, v| { o.offset_increment = extent(v, o.kb_base)?; Ok(()) };
        "random_distribution", "random|zipf:F|pareto:F|normal:F|zoned:...|zoned_abs:...", "random", "Where random offsets fall", |o, v| { o.distribution = distribution(v)?; Ok(()) };
        "percentage_random", "percent[,percent]", "100", "Share of ops of a random job that are random; others follow on", |o, v| { let of = read_and_write(v, percent)?; o.percentage_random = of.map(|share| share.unwrap_or(100)); Ok(()) };
        "randseed", INT, "", "Seed of all random decisions", |o, v| { o.seed = Some(integer(v)?); Ok(()) };
        "randrepeat", SWITCH, "1", "The same decisions in each run", |o, v| { o.repeatable = boolean(v)?; Ok(()) };
        "norandommap", SWITCH, "0", "Random offsets may repeat before all blocks were hit", |o, v| { o.no_random_map = boolean(v)?; Ok(()) };
        "random_generator", "tausworthe|lfsr|tausworthe64", "tausworthe", "All are served by xoshiro256++, and by a permutation where each block is hit once", |_, v| one_of(v, &[("tausworthe", ()), ("lfsr", ()), ("tausworthe64", ())]);
        "fsync", INT, "0", "fsync after so many writes", |o, v| { o.fsync_every = integer(v)?; Ok(()) };
        "fdatasync", INT, "0", "fdatasync after so many writes", |o, v| { o.fdatasync_every = integer(v)?; Ok(()) };
        "end_fsync", SWITCH, "0", "fsync when all is written, within the measured time", |o, v| { o.end_fsync = boolean(v)?; Ok(()) };
        "fsync_on_close", SWITCH, "0", "fsync when files are closed, after the measured time", |o, v| { o.fsync_on_close = boolean(v)?; Ok(()) };
        "zero_buffers", SWITCH, "0", "Write zeros", |o, v| { o.zero_buffers = boolean(v)?; Ok(()) };
        "refill_buffers", SWITCH, "0", "New random bytes for each write", |o, v| { o.refill_buffers = boolean(v)?; Ok(()) };
        "scramble_buffers", SWITCH, "1", "Make the 512 byte sectors of each write differ from the write before", |o, v| { o.scramble_buffers = boolean(v)?; Ok(()) };
    }
    "How it is issued": {
        "ioengine", "engine", "psync", "What executes the ops; --enghelp lists engines", |o, v| { o.engine = v.into(); Ok(()) };
        "iodepth", INT, "1", "Ops in flight per clone", |o, v| { o.depth = at_least(v, 1, 32_768)?; Ok(()) };
        "iodepth_batch" | "iodepth_batch_submit", INT, "1", "Ops submitted at once; 0 is iodepth", |o, v| { o.batch_submit = integer(v)?; Ok(()) };
        "iodepth_batch_complete_min" | "iodepth_batch_complete", INT, "1", "Completions waited for at once", |o, v| { o.batch_complete_min = integer(v)?; Ok(()) };
        "iodepth_batch_complete_max", INT, "min", "Completions taken at once", |o, v| { o.batch_complete_max = Some(integer(v)?); Ok(()) };
        "iodepth_low", INT, "iodepth", "Depth to fall to before it is filled again", |o, v| { o.depth_low = Some(integer(v)?); Ok(()) };
        "io_submit_mode", "inline", "inline", "A job submits from its own thread", |_, v| submit_mode(v);
        "direct", SWITCH, "0", "O_DIRECT: no page cache", |o, v| { o.direct = boolean(v)?; Ok(()) };
        "buffered", SWITCH, "1", "Through the page cache: the opposite of direct", |o, v| { o.direct = !boolean(v)?; Ok(()) };
        "sync", "none|sync|dsync", "none", "O_SYNC or O_DSYNC for writes", |o, v| { o.sync = one_of(v, SYNC)?; Ok(()) };
        "thinktime", TIME, "0", "Pause after blocks; microseconds without a unit", |o, v| { o.think_us = time_us(v, 1)?; Ok(()) };
        "thinktime_spin", TIME, "0", "So much of the pause is spent computing", |o, v| { o.think_spin_us = time_us(v, 1)?; Ok(()) };
        "thinktime_blocks", INT, "1", "Pause after so many blocks", |o, v| { o.think_blocks = at_least(v, 1, u64::MAX)?; Ok(()) };
        "rate", "size[,size]", "", "Bytes per second; latency counts from the intended start", |o, v| { let base = o.kb_base; o.rate_bytes = read_and_write(v, |v| integer_in_base(v, base))?.map(positive); Ok(()) };
        "rate_iops", "int[,int]", "", "Ops per second; latency counts from the intended start", |o, v| { o.rate_ops = read_and_write(v, integer)?.map(positive); Ok(()) };
        "rate_process", "linear|poisson", "linear", "How rated ops follow each other", |o, v| { o.rate_process = one_of(v, &[("linear", RateProcess::Linear), ("poisson", RateProcess::Poisson)])?; Ok(()) };
        "cpus_allowed", "list", "", "CPUs that the job's threads may use", |o, v| { o.cpus = Some(cpus(v)?); Ok(()) };
        "cpus_allowed_policy", "shared|split", "shared", "All CPUs for each clone, or one each", |o, v| { o.cpu_policy = one_of(v, &[("shared", CpuPolicy::Shared), ("split", CpuPolicy::Split)])?; Ok(()) };
        "continue_on_error", "none|read|write|io|verify|all", "none", "Errors that are counted and survived; engines of cells survive all", |o, v| { o.continue_on_error = Some(one_of(v, CONTINUE)?); Ok(()) };
    }
    "Verification": {
        "verify", "crc32c|xxhash|0", "0", "Write blocks that say where they belong; read them back", |o, v| { o.verify = verify(v)?; Ok(()) };
        "do_verify", SWITCH, "1", "Read back after writing", |o, v| { o.do_verify = boolean(v)?; Ok(()) };
        "verify_fatal", SWITCH, "0", "End the job at the first wrong block", |o, v| { o.verify_fatal = boolean(v)?; Ok(()) };
    }
    "Measuring": {
        "lat_percentiles", SWITCH, "0", "Percentiles of total latency; on when a rate is set", |o, v| { o.total_percentiles = Some(boolean(v)?); Ok(()) };
        "clat_percentiles", SWITCH, "1", "Percentiles of completion latency", |o, v| { o.completion_percentiles = Some(boolean(v)?); Ok(()) };
        "slat_percentiles", SWITCH, "0", "Percentiles of submission latency", |o, v| { o.submission_percentiles = Some(boolean(v)?); Ok(()) };
        "percentile_list", "float:float...", "1:5:10:...:99.99", "Which percentiles", |o, v| { o.percentiles = percentiles(v)?; Ok(()) };
        "significant_figures", INT, "4", "Figures of numbers with a unit", |o, v| { o.significant_figures = at_least(v, 1, 10)? as usize; Ok(()) };
        "bwavgtime" | "iopsavgtime", "msec", "500", "Length of the samples of bandwidth and IOPS", |o, v| { o.sample_ms = at_least(v, 1, 1 << 40)?; Ok(()) };
        "write_lat_log", TEXT, "", "Log of latencies: NAME_lat.1.log, NAME_clat.1.log, NAME_slat.1.log; no NAME is the job's", |o, v| { o.latency_log = Some(v.into()); Ok(()) };
        "write_bw_log", TEXT, "", "Log of bandwidth: NAME_bw.1.log", |o, v| { o.bandwidth_log = Some(v.into()); Ok(()) };
        "write_iops_log", TEXT, "", "Log of IOPS: NAME_iops.1.log", |o, v| { o.iops_log = Some(v.into()); Ok(()) };
        "log_avg_msec", "msec", "0", "Log averages over this time; 0 logs each op", |o, v| { o.log_average_ms = integer(v)?; Ok(()) };
        "log_max_value", SWITCH, "0", "Log the highest instead of the average", |o, v| { o.log_max = boolean(v)?; Ok(()) };
        "log_offset", SWITCH, "0", "Log the offset of each op", |o, v| { o.log_offset = boolean(v)?; Ok(()) };
        "per_job_logs", SWITCH, "1", "A log file for each clone; else jobs share NAME_lat.log", |o, v| { o.log_per_job = boolean(v)?; Ok(()) };
        "disable_lat", SWITCH, "0", "Do not measure total latency", |o, v| { o.without_total = boolean(v)?; Ok(()) };
        "disable_clat", SWITCH, "0", "Do not measure completion latency", |o, v| { o.without_completion = boolean(v)?; Ok(()) };
        "disable_slat", SWITCH, "0", "Do not measure submission latency", |o, v| { o.without_submission = boolean(v)?; Ok(()) };
        "gtod_reduce", SWITCH, "0", "Do not measure latency at all", |o, v| { let off = boolean(v)?; (o.without_total, o.without_completion, o.without_submission) = (off, off, off); Ok(()) };
    }
};

/// The option of that name or alias.
pub(crate) fn find(name: &str) -> Option<&'static OptionSpec> {
    OPTIONS.iter().find(|option| option.is_called(name))
}

/// The option of that name, alias, or beginning of only one name, as fio's command line takes it.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    OPTIONS.iter().flat_map(|option| std::iter::once(option.name).chain(option.aliases.iter().copied()))
}

const FALLOCATE: &[(&str, Fallocate)] = &[
    ("none", Fallocate::None),
    ("0", Fallocate::None),
    ("native", Fallocate::Native),
    ("posix", Fallocate::Posix),
    ("1", Fallocate::Posix),
    ("keep", Fallocate::Keep),
    ("truncate", Fallocate::Truncate),
];
const SYNC: &[(&str, SyncWrites)] = &[
    ("none", SyncWrites::None),
    ("0", SyncWrites::None),
    ("sync", SyncWrites::Sync),
    ("1", SyncWrites::Sync),
    ("dsync", SyncWrites::Dsync),
];
const CONTINUE: &[(&str, ContinueOnError)] = &[
    ("none", ContinueOnError::None),
    ("0", ContinueOnError::None),
    ("read", ContinueOnError::Read),
    ("write", ContinueOnError::Write),
    ("io", ContinueOnError::Io),
    ("verify", ContinueOnError::Verify),
    ("all", ContinueOnError::All),
    ("1", ContinueOnError::All),
];
/// What `verify` takes in fio and not here.
const VERIFY_OF_FIO: &[&str] = &[
    "md5", "crc64", "crc32", "crc16", "crc7", "sha1", "sha256", "sha512", "sha3-224", "sha3-256", "sha3-384",
    "sha3-512", "meta", "pattern", "null",
];

fn text(into: &mut Option<String>, value: &str) -> Result<()> {
    *into = Some(value.to_string()).filter(|value| !value.is_empty());
    Ok(())
}

fn at_least(text: &str, least: u64, most: u64) -> Result<u64> {
    match integer(text)? {
        value if (least..=most).contains(&value) => Ok(value),
        _ if most == u64::MAX => expected(text, format!("at least {least}")),
        _ => expected(text, format!("from {least} to {most}")),
    }
}

fn positive(value: Option<u64>) -> Option<u64> {
    value.filter(|value| *value > 0)
}

fn one_of<T: Clone>(text: &str, words: &[(&str, T)]) -> Result<T> {
    match words.iter().find(|(word, _)| *word == text) {
        Some((_, value)) => Ok(value.clone()),
        None => expected(text, format!("one of {}", words.iter().map(|word| word.0).collect::<Vec<_>>().join(", "))),
    }
}

fn blocks(options: &mut JobOptions, text: &str, one: impl Fn(&str) -> Result<BlockSizes>) -> Result<()> {
    let sizes = read_and_write(text, |part| {
        let sizes = one(part)?;
        match sizes.min() {
            0 => expected(part, "a block size of at least 1"),
            _ if sizes.max() > 1 << 30 => expected(part, "a block size of at most 1g"),
            _ => Ok(sizes),
        }
    })?;
    for (into, size) in options.blocks.iter_mut().zip(sizes) {
        if size.is_some() {
            *into = size;
        }
    }
    Ok(())
}

fn file_size(text: &str, kb_base: u64) -> Result<u64> {
    if text.contains('-') {
        return Err(ValueError::NotServed("a range of file sizes is not supported; give one size".into()));
    }
    integer_in_base(text, kb_base)
}

fn verify(text: &str) -> Result<Option<Checksum>> {
    match text {
        "0" => Ok(None),
        "crc32c" | "crc32c-intel" => Ok(Some(Checksum::Crc32c)),
        "xxhash" => Ok(Some(Checksum::Xxhash)),
        _ if VERIFY_OF_FIO.contains(&text) => {
            Err(ValueError::NotServed(format!("verify={text} is not supported; use crc32c or xxhash")))
        }
        _ => expected(text, "one of crc32c, xxhash, 0"),
    }
}

fn submit_mode(text: &str) -> Result<()> {
    match text {
        "inline" => Ok(()),
        "offload" => Err(ValueError::NotServed(
            "offload is not supported; a rated job counts latency from the intended start without it".into(),
        )),
        _ => expected(text, "inline"),
    }
}

fn percentiles(text: &str) -> Result<Vec<f64>> {
    let mut list = text.split(':').map(float).collect::<Result<Vec<f64>>>()?;
    if list.len() > 20 || list.iter().any(|percentile| !(0.0..=100.0).contains(percentile)) {
        return expected(text, "at most 20 numbers from 0 to 100");
    }
    list.sort_by(f64::total_cmp);
    Ok(list)
}
