//! Files and devices of a clone: which they are, how large, which part is worked on; laid out before jobs start.
//!
//! Called by `run` for all clones before the first thread starts, and by engines to open what was planned. Follows fio:
//! without `filename` a clone has files of its own, `JOB.CLONE.FILE`; a file that will be read and is missing or too
//! short is written first; one that is only written is made and its space reserved.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};
use thiserror::Error;

use crate::engine::{EngineContext, EngineFile};
use crate::guard;
use crate::job::{BlockSizes, Fallocate, Job, SyncWrites, value::Extent};
use crate::pattern::{Region, Rng};

/// Bits of a random map for blocks of several sizes: 2 GiB of memory per clone.
const MAPPED_BLOCKS_MAX: u64 = 1 << 34;

/// Why the files of a job can't be used.
#[derive(Debug, Error)]
pub enum FileError {
    /// Options are missing or contradict what is there.
    #[error("job `{job}`: {what}")]
    Usage {
        /// The job.
        job: String,
        /// One sentence.
        what: String,
    },
    /// A device that holds something.
    #[error("{path} holds {what}; writing would destroy it: give --allow-destructive={path} if that is wanted", path = path.display())]
    Guarded {
        /// The device.
        path: PathBuf,
        /// What is on it.
        what: String,
    },
    /// The system refused.
    #[error("{path}: {doing}: {cause}", path = path.display())]
    System {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// Why not.
        cause: io::Error,
    },
}

/// The files of one clone.
#[derive(Clone, Debug)]
pub(crate) struct ClonePlan {
    pub files: Vec<EngineFile>,
    pub regions: Vec<Region>,
    /// Files that were made for the job.
    pub made: Vec<PathBuf>,
}

/// What a run may do to files.
pub(crate) struct Permissions {
    /// Devices that may be overwritten whatever they hold.
    pub destructive: Vec<PathBuf>,
}

/// Plans, guards and lays out the files of a clone. For an engine without files: one region of the job's size.
pub(crate) fn prepare(job: &Job<'_>, clone: u32, may: &Permissions) -> Result<ClonePlan, FileError> {
    let usage = |what: String| FileError::Usage { job: job.name.clone(), what };
    let options = &job.options;
    if !job.engine.facts().uses_files {
        let bytes = match (options.size, options.time_based || options.op_count.is_some()) {
            (Some(Extent::Bytes(bytes)), _) => bytes,
            (Some(Extent::Percent(_)), _) => {
                return Err(usage(format!("ioengine={} has no file that a percentage could be of", job.engine.name())));
            }
            (None, true) => 1 << 40,
            (None, false) => return Err(usage("size is missing".into())),
        };
        let regions = vec![region(job, clone, bytes, bytes)?];
        return Ok(ClonePlan { files: Vec::new(), regions, made: Vec::new() });
    }
    let mut plan = ClonePlan { files: Vec::new(), regions: Vec::new(), made: Vec::new() };
    let paths = paths(job, clone);
    let share = |bytes: u64| bytes / paths.len() as u64;
    for path in &paths {
        let failed = |doing| move |cause| FileError::System { path: path.clone(), doing, cause };
        let block_device = job.engine.block_device_of(path).map_err(failed("looking for its block device"))?;
        let seen = block_device.as_ref().unwrap_or(path);
        if options.direction.write && !may.destructive.contains(path) {
            let held = guard::holds(seen).map_err(failed("looking at what it holds"))?;
            if let Some(what) = held {
                return Err(FileError::Guarded { path: path.clone(), what });
            }
        }
        let (present, device) = match fs::metadata(seen) {
            Ok(metadata) if metadata.is_file() => (Some(metadata.len()), false),
            Ok(metadata) if metadata.file_type().is_block_device() => {
                let device = File::open(seen).map_err(failed("opening"))?;
                let size = rustix::fs::seek(&device, rustix::fs::SeekFrom::End(0));
                (Some(size.map_err(|error| failed("asking its size")(error.into()))?), true)
            }
            Ok(_) => return Err(usage(format!("{} is neither a file nor a block device", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (None, false),
            Err(error) => return Err(failed("looking at it")(error)),
        };
        let wanted = match (options.file_size_bytes, options.size, present) {
            (Some(bytes), _, _) if !device => bytes,
            (_, Some(Extent::Bytes(bytes)), _) => share(bytes),
            (_, Some(Extent::Percent(percent)), Some(present)) => Extent::Percent(percent).of(present),
            (_, None, Some(present)) if present > 0 => present,
            _ => return Err(usage(format!("size is missing, and {} is not there to take it from", path.display()))),
        };
        let whole = if device { present.unwrap_or(0) } else { present.unwrap_or(0).max(wanted) };
        let region = region(job, clone, whole, wanted)?;
        let end = region.start + region.bytes;
        if device && end > whole {
            return Err(usage(format!("{} has {whole} bytes; the job needs {end}", path.display())));
        }
        if !device {
            if present.is_none() && !options.may_create {
                return Err(usage(format!("{} is missing, and allow_file_create=0", path.display())));
            }
            if present.is_none() {
                plan.made.push(path.clone());
            }
            if !options.create_on_open || options.direction.read {
                lay_out(job, path, present.unwrap_or(0), end)?;
            }
        }
        plan.files.push(EngineFile { path: path.clone(), size_bytes: whole.max(end) });
        plan.regions.push(region);
    }
    Ok(plan)
}

fn paths(job: &Job<'_>, clone: u32) -> Vec<PathBuf> {
    let options = &job.options;
    let names = match options.filenames.is_empty() {
        false => options.filenames.clone(),
        true => (0..options.file_count)
            .map(|file| PathBuf::from(format!("{}.{clone}.{file}", job.name.replace('/', "_"))))
            .collect(),
    };
    let folder = options.directory.as_deref().unwrap_or(Path::new(""));
    names.into_iter().map(|name| folder.join(name)).collect()
}

/// The part that a clone works on.
fn region(job: &Job<'_>, clone: u32, whole: u64, wanted: u64) -> Result<Region, FileError> {
    let options = &job.options;
    let used = [options.direction.read, options.direction.write];
    let sizes = || job.blocks.iter().zip(used).filter(|(_, used)| *used).map(|(sizes, _)| sizes);
    let least = sizes().map(|sizes| sizes.min()).min().unwrap_or(1);
    let largest = sizes().map(|sizes| sizes.max()).max().unwrap_or(1);
    let aligned = |extent: Extent| match extent {
        Extent::Bytes(bytes) => bytes,
        percent => percent.of(whole) / least * least,
    };
    let start = aligned(options.offset).saturating_add(aligned(options.offset_increment).saturating_mul(clone.into()));
    // A size that was given holds behind the offset; the rest of a file that is there, else.
    let bytes = match (options.size, options.file_size_bytes) {
        (Some(_), None) => wanted,
        (Some(Extent::Bytes(size)), Some(file)) => size.min(file.saturating_sub(start)),
        _ => whole.saturating_sub(start),
    };
    let one_size = sizes().all(|sizes| matches!(sizes, BlockSizes::Fixed(_)));
    if options.direction.random && !options.no_random_map && !one_size && bytes / least > MAPPED_BLOCKS_MAX {
        let what = format!("the random map would have {} bits; give norandommap or larger blocks", bytes / least);
        return Err(FileError::Usage { job: job.name.clone(), what });
    }
    if bytes < largest {
        let what = format!("blocks of {largest} bytes do not fit into the {bytes} bytes from offset {start} on");
        return Err(FileError::Usage { job: job.name.clone(), what });
    }
    Ok(Region { start, bytes })
}

fn lay_out(job: &Job<'_>, path: &Path, present: u64, end: u64) -> Result<(), FileError> {
    let options = &job.options;
    let failed = |doing| move |cause| FileError::System { path: path.to_path_buf(), doing, cause };
    if present >= end {
        return Ok(());
    }
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(failed("making the file"))?;
    reserve(&file, options.fallocate, end).map_err(failed("reserving space"))?;
    if !(options.direction.read || options.overwrite || options.pre_read) {
        return Ok(());
    }
    eprintln!("{}: Laying out IO file (1 file / {}MiB)", job.name, (end - present) >> 20);
    let mut rng = Rng::new(end);
    let mut block = vec![0; 1 << 20];
    rng.fill(&mut block);
    let mut at = present;
    while at < end {
        // Blocks differ, so that nothing below can fold them into one.
        block[..8].copy_from_slice(&at.to_le_bytes());
        let length = (end - at).min(block.len() as u64);
        file.write_all_at(&block[..length as usize], at).map_err(failed("laying out the file"))?;
        at += length;
    }
    if options.create_fsync {
        file.sync_all().map_err(failed("syncing the file"))?;
    }
    Ok(())
}

fn reserve(file: &File, how: Fallocate, end: u64) -> io::Result<()> {
    match how {
        Fallocate::None => Ok(()),
        Fallocate::Truncate => file.set_len(end),
        Fallocate::Keep => Ok(fallocate(file, FallocateFlags::KEEP_SIZE, 0, end)?),
        Fallocate::Posix => {
            // SAFETY: a call with an open descriptor and plain numbers.
            match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, end as libc::off_t) } {
                0 => Ok(()),
                error => Err(io::Error::from_raw_os_error(error)),
            }
        }
        Fallocate::Native => match fallocate(file, FallocateFlags::empty(), 0, end) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            other => Ok(other?),
        },
    }
}

/// Opens a file for an engine, as the job wants it.
pub(crate) fn open_for_io(path: &Path, context: &EngineContext) -> io::Result<File> {
    let direct = if context.direct { libc::O_DIRECT } else { 0 };
    let mut options = OpenOptions::new();
    options.read(true).write(context.writes).custom_flags(direct | context.open_flags);
    let is_device = fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device());
    if context.writes && !is_device {
        options.create(true).truncate(false);
    }
    options.open(path)
}

/// The flag of open(2) for `sync=`.
pub(crate) fn sync_flag(sync: SyncWrites) -> i32 {
    match sync {
        SyncWrites::None => 0,
        SyncWrites::Sync => libc::O_SYNC,
        SyncWrites::Dsync => libc::O_DSYNC,
    }
}

/// What is done to files just before a clone starts: the page cache is dropped or filled, the kernel is told the order.
pub(crate) fn warm_or_cool(job: &Job<'_>, plan: &ClonePlan) -> Result<(), FileError> {
    let options = &job.options;
    for file in &plan.files {
        let failed = |doing| move |cause: io::Error| FileError::System { path: file.path.clone(), doing, cause };
        let Ok(open) = File::open(&file.path) else { continue };
        // Past the block layer there is no cache.
        if open.metadata().is_ok_and(|metadata| metadata.file_type().is_char_device()) {
            continue;
        }
        if options.invalidate {
            // Dirty pages are not dropped: they are written first.
            rustix::fs::fdatasync(&open).map_err(|error| failed("syncing")(error.into()))?;
            fadvise(&open, 0, None, Advice::DontNeed).map_err(|error| failed("dropping its cache")(error.into()))?;
        }
        if options.advise {
            let advice = if options.direction.random { Advice::Random } else { Advice::Sequential };
            // Only a hint, and only of this descriptor's inode.
            let _ = fadvise(&open, 0, None, advice);
        }
        if options.pre_read {
            let mut block = vec![0; 1 << 20];
            let mut at = 0;
            while let Ok(read @ 1..) = open.read_at(&mut block, at) {
                at += read as u64;
            }
        }
    }
    Ok(())
}

/// After the last clone of a job: `unlink`.
pub(crate) fn remove_made(made: &[PathBuf]) {
    for path in made {
        if let Err(cause) = fs::remove_file(path)
            && cause.kind() != io::ErrorKind::NotFound
        {
            let mut error = io::stderr();
            let _ = writeln!(error, "{}: cannot remove: {cause}", path.display());
        }
    }
}

/// Whether the folder of a file to be written is there.
pub(crate) fn has_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match std::fs::metadata(folder)?.is_dir() {
        true => Ok(()),
        false => Err(io::ErrorKind::NotADirectory.into()),
    }
}

/// Whether somebody watches standard error.
pub(crate) fn is_watched() -> bool {
    io::stderr().is_terminal()
}
