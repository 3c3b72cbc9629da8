//! The RDMA device of one connection, and the task that takes its completions.
//!
//! Owns [`FabricDevice`]. Called by the connection, which gets each frame that arrives.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use hidb::frame::Frame;
use hidb::session::Ended;
use hidb::{Error, ErrorCode, Result};
use tokio::task::JoinHandle;
use verbs_shim::tokio::Completions;
use verbs_shim::verbs::{QueuePairNumber, WcOpcode, WcStatus};
use verbs_shim::{Completion, CompletionQueue, Context, OpenOptions, ProtectionDomain};

use super::link::{Link, LinkBuffer, Shape};
use super::protection::Protection;
use crate::connection::lock;

/// What happens on a link, for its connection.
pub(crate) enum Event {
    /// A frame came; an error ends the link.
    Frame(Frame),
    /// It has ended on this side.
    Ended(Error),
}

/// Who takes what happens on links.
pub(crate) type Sink = Box<dyn Fn(&Arc<Link>, Event) -> Result<()> + Send + Sync>;

/// A device that is open, with the links over it.
pub(crate) struct FabricDevice {
    task: JoinHandle<()>,
    links: Arc<Mutex<HashMap<QueuePairNumber, Arc<Link>>>>,
    domain: ProtectionDomain,
    queue: CompletionQueue<LinkBuffer>,
    shape: Shape,
    protection: Protection,
    name: String,
    _context: Context,
}

impl Drop for FabricDevice {
    fn drop(&mut self) {
        self.task.abort();
        for (_, link) in lock(&self.links).drain() {
            link.end(Ended::Session);
        }
    }
}

impl FabricDevice {
    /// Opens a device, with room for this many links; must be called inside a tokio runtime.
    pub(crate) fn open(name: &str, links: u32, shape: Shape, protection: Protection, sink: Sink) -> Result<Self> {
        let failed = |error: verbs_shim::Error| Error::new(ErrorCode::Unavailable, format!("RDMA: {error}"));
        let context = Context::open(name, &OpenOptions::default()).map_err(failed)?;
        let domain = context.create_domain().map_err(failed)?;
        // One link more than there are cores: a new one may be made before the old one is gone.
        let queue = context.create_completion_queue((links + 1) * shape.completions()).map_err(failed)?;
        let links: Arc<Mutex<HashMap<QueuePairNumber, Arc<Link>>>> = Arc::default();
        let completions = Completions::new(queue.clone()).map_err(failed)?;
        let task = tokio::spawn(take_completions(completions, Arc::downgrade(&links), sink));
        Ok(FabricDevice { task, links, domain, queue, shape, protection, name: name.into(), _context: context })
    }

    /// The device's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Links that ended because something arrived that was not what the cell sent.
    pub(crate) fn corrupted(&self) -> u64 {
        self.protection.corrupted()
    }

    /// A new link to a core (counted from 1), not connected yet.
    pub(crate) fn link(&self, core: u32, generation: u32) -> Result<Arc<Link>> {
        let failed = |error: verbs_shim::Error| Error::new(ErrorCode::Unavailable, format!("RDMA: {error}"));
        let protection = self.protection.clone();
        let link = Link::new(&self.domain, &self.queue, core, generation, self.shape, protection).map_err(failed)?;
        lock(&self.links).insert(link.queue_pair_number(), link.clone());
        Ok(link)
    }

    /// Forgets a link that has ended; false when it was forgotten already.
    pub(crate) fn forget(&self, link: &Link) -> bool {
        lock(&self.links).remove(&link.queue_pair_number()).is_some()
    }
}

async fn take_completions(
    mut completions: Completions<LinkBuffer>,
    links: Weak<Mutex<HashMap<QueuePairNumber, Arc<Link>>>>,
    sink: Sink,
) {
    let mut done = Vec::new();
    loop {
        if let Err(error) = completions.next(&mut done).await {
            tracing::warn!(%error, "the RDMA device failed: its links end");
            if let Some(links) = links.upgrade() {
                let links: Vec<_> = lock(&links).values().cloned().collect();
                for link in links {
                    link.end(Ended::QueuePair(error.to_string()));
                    tell_of_end(&link, &sink);
                }
            }
            return;
        }
        let Some(links) = links.upgrade() else { return };
        for completion in done.drain(..) {
            let link = lock(&links).get(&completion.queue_pair).cloned();
            if let Some(link) = link {
                complete(&link, completion, &sink);
            }
        }
    }
}

fn complete(link: &Arc<Link>, done: Completion<LinkBuffer>, sink: &Sink) {
    let failure = (done.status != WcStatus::Success).then(|| done.status.name());
    match done.opcode {
        WcOpcode::Recv | WcOpcode::RecvRdmaWithImm => {
            let immediate = done.immediate.filter(|_| done.opcode == WcOpcode::RecvRdmaWithImm);
            let outcome = link.received(done.buffer, done.length_bytes, immediate, failure);
            let outcome = outcome.and_then(|frame| frame.map_or(Ok(()), |frame| sink(link, Event::Frame(frame))));
            if let Err(error) = outcome {
                tracing::warn!(%error, "an RDMA link ends");
                link.end(error.into());
            }
        }
        _ => link.send_completed(done.buffer, failure),
    }
    tell_of_end(link, sink);
}

/// What waits for a link that has ended must not wait for ever.
fn tell_of_end(link: &Arc<Link>, sink: &Sink) {
    if let Some(error) = link.ended() {
        // Nobody minds when the connection is gone as well.
        let _ = sink(link, Event::Ended(error));
    }
}
