//! What the cell says unasked, and what that means for whoever remembers something of it.
//!
//! Owns [`Notice`], and [`Herald`] with [`SessionNotices`], through which all of them go. Called by the connection.
//!
//! Invariants
//! - Subscribers hear of changes in order and of each once; a gap in the numbers is told before what follows it.
//! - The client's own cache has dropped what a notice speaks of before any subscriber hears of it.

use std::sync::{Arc, Mutex, PoisonError};

use hidb::proto::CacheInvalidationNotice;
use hidb::proto::cache_invalidation_notice::Reason;
use hidb::session::{NoticeSequence, Observed};
use tokio::sync::broadcast;

use crate::cache::{Cache, SessionEpoch};

/// What has changed, as [`crate::Client::notices`] delivers it: in the order of the changes, each once. By the time that
/// a subscriber hears of it, the client's own cache has dropped what it speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// Rows of a table; sometimes also when none has, after a merge.
    DataChanged {
        /// The table.
        table: String,
        /// Of its columns ([`hidb::Schema::hash`]).
        schema_hash: u64,
        /// Counts the changes of a table.
        generation: u64,
    },
    /// A table has other columns, and other rows.
    SchemaChanged {
        /// The table.
        table: String,
        /// Of its columns now ([`hidb::Schema::hash`]).
        schema_hash: u64,
        /// Counts the changes of a table.
        generation: u64,
    },
    /// A table is gone.
    TableDropped {
        /// The table.
        table: String,
    },
    /// The cell is stopping; requests under way may end, new ones go over a new connection once there is a cell again.
    CellDraining,
    /// Changes may have gone unheard: what was remembered of any table may be stale.
    EverythingChanged(NoticeGap),
}

/// NoticeGap nothing that was remembered can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoticeGap {
    /// This many notices did not arrive.
    Missed(u64),
    /// The cell says so: it had to drop notices, or what the user may read has changed.
    CellSaysSo,
    /// The connection is lost; until there is another, changes are not heard of.
    ConnectionLost,
    /// There is a new connection; changes between the last one and this one were not heard of.
    Reconnected,
}

impl Notice {
    /// A notice of the cell. One of a kind that this client does not know is taken for the worst.
    fn of(notice: CacheInvalidationNotice) -> Notice {
        let CacheInvalidationNotice { table, schema_hash, generation, reason, .. } = notice;
        match Reason::try_from(reason) {
            Ok(Reason::DataChanged) => Notice::DataChanged { table, schema_hash, generation },
            Ok(Reason::SchemaChanged) => Notice::SchemaChanged { table, schema_hash, generation },
            Ok(Reason::TableDropped) => Notice::TableDropped { table },
            Ok(Reason::CellDraining) => Notice::CellDraining,
            Ok(Reason::ForgetAll | Reason::Unspecified) | Err(_) => Notice::EverythingChanged(NoticeGap::CellSaysSo),
        }
    }
}

/// Tells the cache and the subscribers of one client.
#[derive(Clone, Debug)]
pub(crate) struct Herald {
    cache: Arc<Cache>,
    subscribers: broadcast::Sender<Notice>,
}

impl Herald {
    /// Subscribers that are more than `waiting_max` notices behind miss some.
    pub(crate) fn new(cache: Arc<Cache>, waiting_max: usize) -> Self {
        Herald { cache, subscribers: broadcast::channel(waiting_max).0 }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Notice> {
        self.subscribers.subscribe()
    }

    fn tell(&self, notice: Notice) {
        self.cache.observe(&notice);
        // Nobody may be listening.
        let _ = self.subscribers.send(notice);
    }

    /// A session begins. `is_first` when there was none before.
    pub(crate) fn begin_session(&self, is_first: bool) -> SessionNotices {
        let epoch = self.cache.begin_session();
        if !is_first {
            self.tell(Notice::EverythingChanged(NoticeGap::Reconnected));
        }
        SessionNotices { herald: self.clone(), epoch, sequence: Mutex::default() }
    }
}

/// The notices of one session, numbered from 1.
#[derive(Debug)]
pub(crate) struct SessionNotices {
    herald: Herald,
    epoch: SessionEpoch,
    sequence: Mutex<NoticeSequence>,
}

impl SessionNotices {
    pub(crate) fn epoch(&self) -> SessionEpoch {
        self.epoch
    }

    /// A notice has come; gives it, unless it came before. What was lost before it is told first.
    pub(crate) fn arrived(&self, notice: CacheInvalidationNotice) -> Option<Notice> {
        let mut sequence = self.sequence.lock().unwrap_or_else(PoisonError::into_inner);
        match sequence.observe(notice.sequence) {
            Observed::Old => return None,
            Observed::Next => {}
            Observed::Gap(missing) => {
                tracing::info!(missing, "notices of the cell are missing: everything cached is dropped");
                self.herald.tell(Notice::EverythingChanged(NoticeGap::Missed(missing)));
            }
        }
        let notice = Notice::of(notice);
        self.herald.tell(notice.clone());
        Some(notice)
    }

    /// The connection has failed.
    pub(crate) fn lost(&self) {
        self.herald.tell(Notice::EverythingChanged(NoticeGap::ConnectionLost));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(sequence: u64, table: &str) -> CacheInvalidationNotice {
        let reason = Reason::DataChanged as i32;
        CacheInvalidationNotice { sequence, reason, table: table.into(), generation: sequence, ..Default::default() }
    }

    fn told(table: &str, generation: u64) -> Notice {
        Notice::DataChanged { table: table.into(), schema_hash: 0, generation }
    }

    #[test]
    fn notices_come_in_order_once_and_gaps_are_told_before_what_follows_them() {
        let herald = Herald::new(Arc::new(Cache::new(0)), 16);
        let mut heard = herald.subscribe();
        let session = herald.begin_session(true);
        for (sequence, table) in [(1, "a"), (2, "b"), (2, "b"), (1, "a"), (5, "c"), (4, "b"), (6, "a")] {
            session.arrived(changed(sequence, table));
        }
        let mut all = Vec::new();
        while let Ok(notice) = heard.try_recv() {
            all.push(notice);
        }
        let gap = Notice::EverythingChanged(NoticeGap::Missed(2));
        assert_eq!(all, [told("a", 1), told("b", 2), gap, told("c", 5), told("a", 6)]);
    }

    #[test]
    fn each_session_counts_from_one_and_says_that_it_is_new() {
        let herald = Herald::new(Arc::new(Cache::new(0)), 16);
        let mut heard = herald.subscribe();
        let first = herald.begin_session(true);
        first.arrived(changed(1, "a"));
        first.lost();
        let second = herald.begin_session(false);
        assert_ne!(first.epoch(), second.epoch());
        second.arrived(changed(1, "b"));
        let mut all = Vec::new();
        while let Ok(notice) = heard.try_recv() {
            all.push(notice);
        }
        let (lost, anew) = (NoticeGap::ConnectionLost, NoticeGap::Reconnected);
        let everything = Notice::EverythingChanged;
        assert_eq!(all, [told("a", 1), everything(lost), everything(anew), told("b", 1)]);
    }

    #[test]
    fn a_reason_of_a_later_version_is_taken_for_the_worst() {
        let unknown = CacheInvalidationNotice { reason: 99, ..changed(1, "a") };
        assert_eq!(Notice::of(unknown), Notice::EverythingChanged(NoticeGap::CellSaysSo));
    }
}
