//! What the sessions of one core share.
//!
//! Owns [`CoreServer`]: the cell, the core's number, its latency recorder, its sessions. Made on the core at first use,
//! lives until the executor ends. Called by accept, drain and the sessions.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hidb::proto;

use super::Cell;
use super::session::{Session, forget_all};
use crate::fabric::link::Link;
use crate::metrics::Recorder;

/// The server's part of one core.
pub struct CoreServer {
    /// The cell.
    pub cell: Arc<Cell>,
    /// The core's number.
    pub index: usize,
    /// Counters and latencies.
    pub recorder: Recorder,
    /// Sessions here, by id.
    pub sessions: RefCell<HashMap<u64, Weak<Session>>>,
    /// Links of sessions, of this core and others, that this core serves; by session.
    pub links: RefCell<HashMap<u64, Rc<Link>>>,
}

thread_local! {
    static CORE: RefCell<Option<Rc<CoreServer>>> = const { RefCell::new(None) };
}

impl CoreServer {
    /// This thread's core; made when it is asked for the first time.
    pub fn of(cell: &Arc<Cell>, index: usize) -> Rc<CoreServer> {
        CORE.with_borrow_mut(|slot| {
            slot.get_or_insert_with(|| {
                let core = Rc::new(CoreServer {
                    cell: cell.clone(),
                    index,
                    recorder: cell.metrics.recorder(index),
                    sessions: RefCell::default(),
                    links: RefCell::default(),
                });
                let flusher = Rc::downgrade(&core);
                glommio::spawn_local(async move {
                    while let Some(core) = flusher.upgrade() {
                        core.refresh_metrics();
                        drop(core);
                        glommio::timer::sleep(Duration::from_secs(1)).await;
                    }
                })
                .detach();
                core
            })
            .clone()
        })
    }

    /// Hands over the latencies and copies the counters that the cache and the device of this core keep.
    pub fn refresh_metrics(&self) {
        self.recorder.flush();
        let Some(core) = crate::cores::Core::current() else { return };
        let counters = &self.recorder.counters;
        if let Some(cache) = &core.cache {
            let cached = cache.counters();
            counters.cache_hits_total.store(cached.hits + cached.joined, Relaxed);
            counters.cache_misses_total.store(cached.misses, Relaxed);
            counters.cache_bytes.store(cached.bytes_cached, Relaxed);
        }
        let device = core.device_ring().counters();
        counters.device_reads_total.store(device.reads, Relaxed);
        counters.device_read_bytes_total.store(device.read_bytes, Relaxed);
        counters.device_writes_total.store(device.writes, Relaxed);
        counters.device_written_bytes_total.store(device.written_bytes, Relaxed);
    }

    /// Counts rows and bytes that were returned to clients.
    pub fn count_returned(&self, rows: u64, bytes: u64) {
        self.recorder.counters.rows_returned_total.fetch_add(rows, Relaxed);
        self.recorder.counters.returned_bytes_total.fetch_add(bytes, Relaxed);
    }

    /// Tells every session here whose user may know.
    pub fn announce(&self, notice: &proto::CacheInvalidationNotice) {
        self.tell(notice, |session| notice.table.is_empty() || session.may_read(&notice.table));
    }

    /// Tells the sessions of a user that what they may read has changed: they hear no notices of tables that they may
    /// not read, and so can't tell any more whether what they know of them is stale.
    pub fn rights_changed(&self, user: &str) {
        let is_meant = |session: &Session| session.agreed.identity.as_ref().is_some_and(|who| who.name == user);
        self.tell(&forget_all(), is_meant);
    }

    /// A session whose queue is full does not hold up the others.
    fn tell(&self, notice: &proto::CacheInvalidationNotice, is_meant: impl Fn(&Session) -> bool) {
        let sessions: Vec<_> = self.sessions.borrow().values().filter_map(Weak::upgrade).collect();
        for session in sessions.into_iter().filter(|session| is_meant(session)) {
            session.notify(notice.clone());
        }
    }
}
