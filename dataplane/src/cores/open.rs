//! What a core owns, made on its own executor: arena, rings, device, cache.
//!
//! Called by [`super::run_core`] before the core takes its first job.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
};

use glommio::{Latency, Shares};
use hidb::{Error, ErrorCode, Result};

use super::{CACHE_PER_HOT, Core, Cores, CoresConfig, hot_groups::HotGroups};
use crate::{
    arena::Arena,
    cache::BlockCache,
    device::{nvme::Namespace, ring::Ring, uring::UringDevice},
    fabric::port::Ports,
};

/// Core `id` of `count`, on the executor that runs this.
pub(super) fn core(id: usize, count: usize, config: &CoresConfig, cores: Cores) -> Result<Core> {
    let io = |what: &str, error: &dyn std::fmt::Display| {
        Error::new(ErrorCode::Io, format!("core {id}: {what} failed: {error}"))
    };
    let background = glommio::executor().create_task_queue(Shares::Static(100), Latency::NotImportant, "background");
    let arena = Arena::new(config.arena_bytes).map_err(|error| io("reserving the arena", &error))?;
    let ring = Ring::new(&arena, config.queue_depth).map_err(|error| io("making an I/O ring", &error))?;
    let open_volume = |path: &PathBuf| {
        let device_ring = match config.polls_device && can_be_polled(path, id) {
            true => Ring::polled(&arena, config.queue_depth).map_err(|error| io("making a polled I/O ring", &error))?,
            false => ring.clone(),
        };
        Ok::<_, Error>(UringDevice::open(path, &device_ring)?)
    };
    let device = config.volume.as_ref().map(open_volume).transpose()?;
    let cache_bytes = config.cache_bytes.min(arena.bytes() / 4 * 3);
    let cache = device.clone().map(|device| BlockCache::new(device, cache_bytes));
    let hot_groups = RefCell::new(HotGroups::new(cache_bytes as u64 / CACHE_PER_HOT));
    Ok(Core { id, count, arena, ring, device, cache, hot_groups, background, cores, fabric: Ports::default() })
}

/// Whether a volume has poll queues; core 0 says what to do when it has none.
fn can_be_polled(volume: &Path, id: usize) -> bool {
    let can_be_polled = Namespace::can_be_polled(volume);
    if !can_be_polled && id == 0 {
        tracing::warn!(
            volume = %volume.display(),
            "nvme_poll: not an NVMe namespace with poll queues (/dev/ngXnY, nvme.poll_queues=N on the kernel's command line): waiting for interrupts"
        );
    }
    can_be_polled
}
