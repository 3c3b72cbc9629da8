//! What the cell does on its own: building indexes, merging small segments, returning space, sweeping forgotten loads.
//!
//! Runs as tasks of the control thread that send the work to a core, where the device is. Called by `server::serve`.
//!
//! Invariant: one merge at a time, and only with the low shares of background work; decoding and
//! encoding happen on the worker threads.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hidb::{Error, Result};

use super::core::CoreServer;
use super::{Cell, loads};
use crate::cores::{Core, run_in_background};

/// How often dropped segments are looked at: their last reader may have ended.
const RECLAIM_INTERVAL: Duration = Duration::from_secs(5);
/// How often it is looked whether an index is to be built, unless somebody makes one.
const INDEX_INTERVAL: Duration = Duration::from_secs(2);
/// How often loads are swept.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Runs until it is dropped.
pub async fn run(cell: Arc<Cell>) {
    tokio::join!(merge_forever(&cell), reclaim_forever(&cell), sweep_forever(&cell), index_forever(&cell));
}

async fn merge_forever(cell: &Arc<Cell>) {
    let interval = cell.config.merge_interval.0;
    if interval.is_zero() {
        return;
    }
    let mut core = 0;
    loop {
        tokio::time::sleep(interval).await;
        loop {
            core += 1;
            match merge_once(cell, core).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::warn!(%error, "a background merge failed");
                    break;
                }
            }
        }
    }
}

/// Merges what is most worth it; false when nothing is, or the merge was taken back.
async fn merge_once(cell: &Arc<Cell>, core: usize) -> Result<bool> {
    let Some(job) = cell.store.pick_merge() else { return Ok(false) };
    let store = cell.store.clone();
    let work = move || async move {
        run_in_background(async move { Ok::<_, Error>(store.merge(&Core::device()?, job).await?) }).await?
    };
    // Taken back: whatever changed its inputs may do so again, and deserves a pause.
    let Some(merged) = cell.cores.run_on(core, work).await?? else { return Ok(false) };
    cell.metrics.segments_merged.fetch_add(merged.inputs as u64, Relaxed);
    tracing::debug!(inputs = merged.inputs, rows = merged.rows, bytes = merged.bytes_written, "segments merged");
    reclaim(cell).await?;
    Ok(true)
}

async fn index_forever(cell: &Arc<Cell>) {
    loop {
        match cell.indexes.step(&cell.store, &cell.cores).await {
            Ok(true) => {}
            Ok(false) => {
                let _ = tokio::time::timeout(INDEX_INTERVAL, cell.indexes.woken()).await;
            }
            Err(error) => tracing::warn!(%error, "an index could not be built or read"),
        }
    }
}

async fn reclaim_forever(cell: &Arc<Cell>) {
    loop {
        tokio::time::sleep(RECLAIM_INTERVAL).await;
        if cell.store.space().pending_bytes == 0 {
            continue;
        }
        if let Err(error) = reclaim(cell).await {
            tracing::warn!(%error, "returning space failed");
        }
    }
}

async fn reclaim(cell: &Arc<Cell>) -> Result<u64> {
    let store = cell.store.clone();
    cell.cores.run_on(0, move || async move { Ok::<_, Error>(store.reclaim(&Core::device()?).await?) }).await?
}

async fn sweep_forever(cell: &Arc<Cell>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        match loads::sweep(cell).await {
            Ok(0) => {}
            Ok(aborted) => tracing::info!(aborted, "forgotten loads aborted"),
            Err(error) => tracing::warn!(%error, "the sweep of loads failed"),
        }
    }
}

/// Has every core hand over its latencies and copy the counters that its cache and device keep.
pub async fn refresh_metrics(cell: &Arc<Cell>) {
    for core in 0..cell.cores.count() {
        let on_core = cell.clone();
        let refresh = cell.cores.run_on(core, move || async move { CoreServer::of(&on_core, core).refresh_metrics() });
        if let Err(error) = refresh.await {
            tracing::debug!(%error, core, "no fresh metrics");
        }
    }
}
