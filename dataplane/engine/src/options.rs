//! What a request is given and what it counts: options, shared counters, statistics.
//!
//! Owns [`EngineOptions`], [`ScanStats`] and [`SharedScan`], the only state that the cores of one request
//! share. Invariant: `SharedScan` is nothing but atomics; no core ever waits for another.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use heliostat_segment::RowGroupMeta;
use hidb::{BLOCK_ROWS, Error, ErrorCode, Result};

/// Limits and formats of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// The most bytes that hash tables, sort buffers and the like of one request may hold, over all
    /// cores (setting `request_memory`).
    pub memory_bytes_max: usize,
    /// The most bytes of one result image, headers included.
    pub image_bytes_max: usize,
    /// Whether decimals of up to 18 digits leave as Arrow Decimal64 (else Decimal128).
    pub decimal64: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions { memory_bytes_max: 256 << 20, image_bytes_max: (1 << 20) - 4096, decimal64: true }
    }
}

/// Counters of one core (or, added up, of a request).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanStats {
    /// Row groups started.
    pub row_groups_total: u64,
    /// Of these, skipped by their zone maps or for want of rows without reading a byte, or by a membership filter without
    /// reading a chunk.
    pub row_groups_pruned: u64,
    /// Blocks of the row groups that were started.
    pub blocks_total: u64,
    /// Of these, skipped by zone maps, by membership filters and because no row of theirs is left (those of pruned row
    /// groups included).
    pub blocks_pruned: u64,
    /// Encoded bytes of the chunks and membership filters that were supplied.
    pub bytes_decoded: u64,
    /// Rows that passed the filter.
    pub rows_selected: u64,
    /// Rows handed out in images.
    pub rows: u64,
}

impl ScanStats {
    /// Counts a row group that its zone maps excluded.
    pub fn count_pruned(&mut self, row_group: &RowGroupMeta) {
        let blocks = u64::from(row_group.rows).div_ceil(BLOCK_ROWS as u64);
        self.row_groups_total += 1;
        self.row_groups_pruned += 1;
        self.blocks_total += blocks;
        self.blocks_pruned += blocks;
    }

    /// Adds another core's counters.
    pub fn add(&mut self, other: &ScanStats) {
        self.row_groups_total += other.row_groups_total;
        self.row_groups_pruned += other.row_groups_pruned;
        self.blocks_total += other.blocks_total;
        self.blocks_pruned += other.blocks_pruned;
        self.bytes_decoded += other.bytes_decoded;
        self.rows_selected += other.rows_selected;
        self.rows += other.rows;
    }
}

/// What the cores of one request share.
#[derive(Debug)]
pub struct SharedScan {
    /// Rows still to skip (plain OFFSET).
    offset_left: AtomicU64,
    /// Rows still to return (plain LIMIT); `u64::MAX`: no limit.
    rows_left: AtomicU64,
    memory_bytes: AtomicU64,
    memory_bytes_max: u64,
    cancelled: AtomicBool,
}

impl SharedScan {
    pub(crate) fn with_limits(offset: u64, limit: Option<u64>, memory_bytes_max: usize) -> Self {
        SharedScan {
            offset_left: AtomicU64::new(offset),
            rows_left: AtomicU64::new(limit.unwrap_or(u64::MAX)),
            memory_bytes: AtomicU64::new(0),
            memory_bytes_max: memory_bytes_max as u64,
            cancelled: AtomicBool::new(false),
        }
    }

    /// Makes every core's next step fail with [`ErrorCode::Cancelled`].
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether [`SharedScan::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Whether a plain LIMIT has been satisfied: no core needs to read any further.
    pub fn is_satisfied(&self) -> bool {
        self.rows_left.load(Ordering::Relaxed) == 0
    }

    /// Bytes held now by all cores of the request.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes.load(Ordering::Relaxed)
    }

    /// Of `rows` qualifying rows: how many to skip, and how many of the following to return.
    pub(crate) fn claim(&self, rows: u64) -> (u64, u64) {
        let take_from = |counter: &AtomicU64, wanted: u64| {
            let before = counter
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    (left != u64::MAX).then(|| left - left.min(wanted))
                })
                .unwrap_or(u64::MAX);
            before.min(wanted)
        };
        let skip = take_from(&self.offset_left, rows);
        (skip, take_from(&self.rows_left, rows - skip))
    }
}

/// One core's share of the memory that [`SharedScan`] accounts for; gives it back when dropped.
#[derive(Debug)]
pub(crate) struct Budget {
    shared: std::sync::Arc<SharedScan>,
    held_bytes: u64,
}

impl Budget {
    pub(crate) fn new(shared: std::sync::Arc<SharedScan>) -> Self {
        Budget { shared, held_bytes: 0 }
    }

    /// Declares that `operator` now holds `bytes` in all (not in addition).
    /// Fails when the request as a whole outgrew its budget; the declaration stands even then.
    pub(crate) fn set(&mut self, operator: &str, bytes: usize) -> Result<()> {
        let bytes = bytes as u64;
        let total = if bytes >= self.held_bytes {
            let more = bytes - self.held_bytes;
            self.shared.memory_bytes.fetch_add(more, Ordering::Relaxed) + more
        } else {
            let less = self.held_bytes - bytes;
            self.shared.memory_bytes.fetch_sub(less, Ordering::Relaxed) - less
        };
        self.held_bytes = bytes;
        if total > self.shared.memory_bytes_max {
            return Err(Error::new(
                ErrorCode::MemoryExceeded,
                format!(
                    "{operator} holds {bytes} bytes and the request {total} bytes, more than its budget of {} bytes: \
                     make the question smaller or raise the setting request_memory",
                    self.shared.memory_bytes_max
                ),
            ));
        }
        Ok(())
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        self.shared.memory_bytes.fetch_sub(self.held_bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn claims_never_exceed_the_limit_and_skip_the_offset_once() {
        let shared = SharedScan::with_limits(5, Some(10), 0);
        assert_eq!(shared.claim(3), (3, 0));
        assert_eq!(shared.claim(4), (2, 2));
        assert_eq!(shared.claim(100), (0, 8));
        assert!(shared.is_satisfied());
        assert_eq!(shared.claim(1), (0, 0));
        let unlimited = SharedScan::with_limits(0, None, 0);
        assert_eq!(unlimited.claim(7), (0, 7));
        assert!(!unlimited.is_satisfied());
    }

    #[test]
    fn budget_is_shared_and_given_back() {
        let shared = Arc::new(SharedScan::with_limits(0, None, 100));
        let mut one = Budget::new(shared.clone());
        let mut two = Budget::new(shared.clone());
        assert!(one.set("grouping", 60).is_ok());
        let error = two.set("grouping", 60).unwrap_err();
        assert_eq!(error.code, ErrorCode::MemoryExceeded);
        assert!(error.message.contains("request_memory") && error.message.contains("120 bytes"));
        drop(one);
        assert_eq!(shared.memory_bytes(), 60);
        assert!(two.set("grouping", 100).is_ok());
    }
}
