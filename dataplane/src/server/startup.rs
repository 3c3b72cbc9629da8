//! From a configuration to a running cell, and the tools that work on a volume that is not in use.
//!
//! Called by `main`; each function is one subcommand.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;

use futures_lite::future::block_on;
use hidb::{Error, ErrorCode, Result};
use tracing_subscriber::EnvFilter;

use super::{Cell, io_error, security, serve};
use crate::config::Config;
use crate::cores::{Core, Cores, CoresConfig};
use crate::device::Medium;
use crate::device::file::FileDevice;
use crate::fabric::Devices;
use crate::store::{self, Store, StoreOptions};
use crate::workers::WorkerThreads;

/// Size of a volume file when `format` is not told.
const FORMAT_BYTES_DEFAULT: u64 = 10 << 30;
/// Arena of a core besides its cache: reads in flight and results.
const ARENA_WORKING_BYTES: u64 = 96 << 20;

/// Sends log lines to standard error.
pub fn start_logging(config: &Config) -> std::result::Result<(), String> {
    let filter = EnvFilter::try_new(&config.log).map_err(|error| format!("option log: {:?}: {error}", config.log))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    let started = match config.log_format.as_str() {
        "json" => builder.json().try_init(),
        _ => builder.try_init(),
    };
    started.map_err(|error| format!("logging did not start: {error}"))
}

/// Runs the cell until it is told to stop.
pub fn run(config: Config) -> Result<()> {
    raise_descriptor_limit();
    let tls = security::prepare(&config)?;
    if config.auto_format && !config.volume.exists() {
        if let Some(folder) = config.volume.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder)
                .map_err(|error| io_error(&format!("making {}", folder.display()), &error))?;
        }
        let size = config.auto_format_size.bytes();
        store::format(&config.volume, Some(size), &config.metadata_folder(), false)?;
        tracing::info!(volume = %config.volume.display(), size, "formatted a new volume");
    }
    if !config.volume.exists() {
        let path = config.volume.display();
        let message = format!("there is no volume {path}: make one with `heliostat-cell format --volume {path}`");
        return Err(Error::new(ErrorCode::NotFormatted, message));
    }
    if let Ok(level) = std::env::var("HELIOSTAT_SIMD")
        && !["portable", "avx2", "avx512"].contains(&level.as_str())
    {
        tracing::warn!(level, "HELIOSTAT_SIMD is none of portable, avx2, avx512: the best this CPU has is used");
    }
    let count = if config.cores == 0 { usable_cores() } else { config.cores };
    let devices = Devices::find(&config.fabric, count)?;
    let cache_bytes = config.cache.bytes() / count as u64;
    let cores = Cores::start(
        count,
        &CoresConfig {
            volume: Some(config.volume.clone()),
            arena_bytes: (cache_bytes / 3 * 4 + ARENA_WORKING_BYTES) as usize,
            cache_bytes: cache_bytes as usize,
            polls_device: config.nvme_poll,
            ..CoresConfig::default()
        },
    )?;
    let options = StoreOptions {
        load_idle_s_max: config.load_expiry.0.as_secs().max(1),
        row_groups_in_flight_max: 2 * count,
        sort_run_bytes_max: config.sort_run.bytes() as usize,
        sort_memory_bytes_max: config.sort_memory.bytes() as usize,
        workers: Arc::new(WorkerThreads::start(count)?),
        ..StoreOptions::new(config.metadata_folder())
    };
    let opening = async {
        let devices = devices.open_on(&cores, &config.fabric, config.links_max as usize).await?;
        let open_store = move || async move { Ok::<_, Error>(Store::open(&Core::device()?, options).await?) };
        Ok::<_, Error>((devices, cores.run_on(0, open_store).await.and_then(|store| store)?))
    };
    let (devices, store) = match block_on(opening) {
        Ok(opened) => opened,
        Err(error) => {
            cores.stop();
            return Err(error);
        }
    };
    security::warn_of(&config, &store);
    serve(Cell::new(config, tls, devices, store, cores))
}

/// Idle connections are cheap; descriptors should not be what limits them.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        tracing::warn!(%error, "could not raise the limit of open files");
    }
}

fn usable_cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Formats a volume and prints its identity.
pub fn format(config: &Config, size_bytes: Option<u64>, force: bool) -> Result<()> {
    let size_bytes = match Medium::of(&config.volume) {
        Ok(Medium::BlockDevice | Medium::NvmeNamespace) => size_bytes,
        Ok(Medium::File) | Err(_) => Some(size_bytes.unwrap_or(FORMAT_BYTES_DEFAULT)),
    };
    let superblock = store::format(&config.volume, size_bytes, &config.metadata_folder(), force)?;
    say(&format!("formatted {}: volume {}", config.volume.display(), superblock.uuid_text()));
    Ok(())
}

/// Checks a volume; false when something is wrong with it.
pub fn check(config: &Config, deep: bool, json: bool) -> Result<bool> {
    let device = open_device(config)?;
    let report = block_on(store::check(&device, &config.metadata_folder(), deep))?;
    if json {
        let value = serde_json::json!({
            "volume": report.volume,
            "clean": report.is_clean(),
            "tables": report.tables,
            "open_loads": report.open_loads,
            "segments": report.segments,
            "commits": report.commits,
            "pending": report.pending,
            "used_bytes": report.used_bytes,
            "free_bytes": report.free_bytes,
            "chunks_verified": report.chunks_verified,
            "problems": report.problems,
        });
        say(&value.to_string());
    } else {
        say(&report.to_string());
    }
    Ok(report.is_clean())
}

/// Makes a lost manifest again.
pub fn rebuild(config: &Config, force: bool, leave_out_damaged: bool) -> Result<()> {
    let device = open_device(config)?;
    let report = block_on(store::rebuild(&device, &config.metadata_folder(), force, leave_out_damaged))?;
    say(&report.to_string());
    Ok(())
}

fn open_device(config: &Config) -> Result<FileDevice> {
    if !config.volume.exists() {
        let message = format!("there is no volume {}", config.volume.display());
        return Err(Error::new(ErrorCode::NotFormatted, message));
    }
    Ok(FileDevice::open(&config.volume)?)
}

fn say(line: &str) {
    // Whoever closed standard output does not want to know.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
