//! Where the rows of a table are for which a condition is true.
//!
//! Owns [`find`] and what it finds. A scan on all cores, with everything that spares scans work (zone maps, membership
//! filters, the cache); it reads the condition's columns only. Called for deletes and for filtered vector search.
//!
//! Cost: that of counting the rows, and 16 KiB for each row group of which any row passes.

use std::sync::Arc;
use std::time::Instant;

use heliostat_engine::{CompiledScan, EngineOptions};
use hidb::Result;
use hidb::plan::Expr;

use super::scan::{ScanRequest, ScanStatistics, scan_positions};
use super::work::Work;
use super::{Core, Cores};
use crate::store::{SegmentHandle, TableSnapshot};

/// Rows of one row group; at least one.
#[derive(Clone, Debug)]
pub struct FoundRows {
    /// The row group's place in the order of all row groups of the snapshot.
    pub ordinal: u64,
    /// The segment.
    pub segment: Arc<SegmentHandle>,
    /// Its row group.
    pub row_group: usize,
    /// The rows, as a bitmap: row `r` is bit `r % 64` of word `r / 64`.
    pub rows: Box<[u64]>,
}

/// Finds the rows of a snapshot for which `filter` is true (all, without one), by row group, in the order of the
/// snapshot. Deleted rows are not among them. Runs on a core; dropping the future stops all cores.
///
/// # Errors
/// What the engine refuses or fails with, `Io`, `Corruption`, `DeadlineExceeded`, and `MemoryExceeded` when the bitmaps
/// outgrow `options.memory_bytes_max`.
pub async fn find(
    cores: &Cores,
    snapshot: &Arc<TableSnapshot>,
    filter: Option<&Expr>,
    options: EngineOptions,
    deadline: Option<Instant>,
    bypass_cache: bool,
) -> Result<(Vec<FoundRows>, ScanStatistics)> {
    let compiled = CompiledScan::positions(filter, &snapshot.schema, options)?;
    let work = Work::plan(snapshot, &compiled, cores.count()).await?;
    let request = ScanRequest {
        snapshot: snapshot.clone(),
        shared: compiled.shared(),
        compiled,
        deadline,
        bypass_cache,
        direct: None,
        home: Core::current().map_or(0, |core| core.id),
        home_lends: false,
    };
    scan_positions(cores, request, work).await
}
