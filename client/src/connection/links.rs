//! A connection's RDMA links: opened when questions are asked, forgotten when they end.
//!
//! Owns [`Links`]. Called by the connection; the links themselves are [`crate::fabric::link`].
//!
//! Invariants
//! - Whoever stops waiting for a link leaves none behind that is only half made.
//! - When a link ends, every question under way fails: what it waits for may have been on that link.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use hidb::frame::FrameKind;
use hidb::session::{Ended, SLOT_BYTES_MAX};
use hidb::{Error, ErrorCode, Result, proto};

use super::{Connection, Shared, lock};
use crate::fabric::Choice;
use crate::fabric::device::{Event, FabricDevice};
use crate::fabric::link::{Link, Shape};
use crate::fabric::protection::Protection;
use crate::options::ConnectOptions;

/// What came over RDMA on the links that are open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RdmaStatistics {
    /// Links.
    pub links: usize,
    /// Result frames in slots that were handed on in place.
    pub in_place: u64,
    /// Result frames that were copied out of their slots, because slots ran short, or for integrity.
    pub copied_out: u64,
    /// Links that ended because the checksum or MAC of what came was wrong; nothing of that was handed on.
    pub corrupted: u64,
}

/// Stands for the session's home core in `OpenLink`.
pub(super) const HOME: u32 = 0;

/// A connection's RDMA links.
#[derive(Default)]
pub(super) struct Links {
    /// The device, and which of the cell's ports it talks to.
    device: Mutex<Option<(FabricDevice, u32)>>,
    open: Mutex<Vec<Arc<Link>>>,
    /// Number of the link to the home core, and the home core.
    home: AtomicU32,
    home_core: AtomicU32,
    generation: AtomicU32,
    /// Whether a question was asked, so that links to the other cores are there or on their way.
    asked: AtomicBool,
    opening: tokio::sync::Mutex<()>,
    /// Whether TCP will do where there is no link.
    pub(super) is_optional: AtomicBool,
}

/// A link that is being opened; dropped unless that succeeds.
struct HalfMade<'a> {
    links: &'a Links,
    link: Option<&'a Arc<Link>>,
}

impl Drop for HalfMade<'_> {
    fn drop(&mut self) {
        if let Some(link) = self.link {
            self.links.drop_link(link);
        }
    }
}

impl Links {
    pub(super) fn home(&self) -> u32 {
        self.home.load(Ordering::Relaxed)
    }

    pub(super) fn numbered(&self, number: u32) -> Option<Arc<Link>> {
        lock(&self.open).iter().find(|link| link.number() == number).cloned()
    }

    pub(super) fn home_link(&self) -> Option<Arc<Link>> {
        self.numbered(self.home()).filter(|link| link.is_open())
    }

    /// Forgets a link; false when it was forgotten already.
    fn drop_link(&self, link: &Arc<Link>) -> bool {
        link.end(Ended::Reset);
        lock(&self.open).retain(|open| !Arc::ptr_eq(open, link));
        self.asked.store(false, Ordering::Relaxed);
        lock(&self.device).as_ref().is_some_and(|(device, _)| device.forget(link))
    }

    /// Goes on over TCP where that will do.
    pub(super) fn or_tcp(&self, opened: Result<()>) -> Result<()> {
        match opened {
            Err(error) if self.is_optional.load(Ordering::Relaxed) => {
                tracing::warn!(%error, "no RDMA link: going on over TCP");
                // The device is dropped outside of the lock: its links end with it.
                let device = lock(&self.device).take();
                drop(device);
                Ok(())
            }
            opened => opened,
        }
    }
}

impl Connection {
    /// Opens the RDMA device that links will go over.
    pub(super) fn open_fabric(&self, choice: &Choice, options: &ConnectOptions, protection: Protection) -> Result<()> {
        let shape = Shape { slots: options.ring_slots.max(1), slot_bytes: SLOT_BYTES_MAX };
        let shared = Arc::downgrade(&self.shared);
        let sink = move |link: &Arc<Link>, event: Event| {
            let Some(shared) = shared.upgrade() else { return Ok(()) };
            match event {
                Event::Frame(frame) => {
                    shared.dispatch(frame, (link.number() != shared.links.home()).then(|| link.number()))
                }
                Event::Ended(error) => {
                    shared.link_ended(link, error);
                    Ok(())
                }
            }
        };
        let (checksum, integrity) = (protection.checksum(), protection.integrity());
        let device = FabricDevice::open(&choice.device, self.hello.cores.max(1), shape, protection, Box::new(sink))?;
        tracing::debug!(device = device.name(), port = choice.port, %checksum, %integrity, "RDMA device open");
        *lock(&self.shared.links.device) = Some((device, choice.port));
        Ok(())
    }

    /// Opens a link to a core, counted from 1; [`HOME`] is the session's home core.
    pub(super) async fn open_link(self: &Arc<Self>, core: u32) -> Result<()> {
        let links = &self.shared.links;
        let (link, body) = {
            let device = lock(&links.device);
            let Some((device, port)) = device.as_ref() else { return Ok(()) };
            let link = device.link(core, links.generation.fetch_add(1, Ordering::Relaxed) + 1)?;
            let body = link.open_request(*port)?;
            (link, body)
        };
        let answer = async {
            let request = self.request(FrameKind::OpenLink, &body, None, None)?;
            let opened: proto::LinkOpened = request.answer(FrameKind::LinkOpened).await?;
            if core == HOME {
                links.home.store(opened.link, Ordering::Relaxed);
                links.home_core.store(opened.core, Ordering::Relaxed);
            }
            // Known before anything can come on it, and before a LinkReset can.
            link.set_number(opened.link);
            lock(&links.open).push(link.clone());
            link.opened(&opened)
        };
        // Whoever stops waiting leaves no link behind that is only half made.
        let mut guard = HalfMade { links, link: Some(&link) };
        answer.await?;
        guard.link = None;
        Ok(())
    }

    /// Sees to it that there is a link to each core: to the home core at once, to the others in the background, the
    /// first time that a question is asked.
    pub(crate) async fn ensure_links(self: &Arc<Self>) -> Result<()> {
        let links = &self.shared.links;
        if lock(&links.device).is_none() {
            return Ok(());
        }
        let opening = links.opening.lock().await;
        if links.home_link().is_none() {
            links.or_tcp(self.open_link(HOME).await)?;
        }
        drop(opening);
        if !links.asked.swap(true, Ordering::Relaxed) {
            let weak = Arc::downgrade(self);
            let (home, cores) = (links.home_core.load(Ordering::Relaxed), self.hello.cores);
            tokio::spawn(async move {
                for core in (1..=cores).filter(|core| *core != home) {
                    let Some(connection) = weak.upgrade() else { return };
                    let links = &connection.shared.links;
                    let _opening = links.opening.lock().await;
                    if lock(&links.open).iter().any(|link| link.core() == core && link.is_open()) {
                        continue;
                    }
                    if let Err(error) = connection.open_link(core).await {
                        // Its batches go by the home core then.
                        tracing::debug!(%error, core, "no RDMA link to a core");
                    }
                }
            });
        }
        Ok(())
    }

    /// What came over RDMA.
    pub(crate) fn rdma_statistics(&self) -> RdmaStatistics {
        let open = lock(&self.shared.links.open);
        let mut sum = RdmaStatistics { links: open.len(), ..RdmaStatistics::default() };
        for (in_place, copied_out) in open.iter().map(|link| link.delivered()) {
            sum.in_place += in_place;
            sum.copied_out += copied_out;
        }
        drop(open);
        sum.corrupted = lock(&self.shared.links.device).as_ref().map_or(0, |(device, _)| device.corrupted());
        sum
    }
}

impl Shared {
    /// A link has ended, on either side: questions under way may wait for what was to come on it, and are failed. They
    /// can be asked again, on another link.
    pub(super) fn link_ended(&self, link: &Arc<Link>, error: Error) {
        if !self.links.drop_link(link) {
            return;
        }
        tracing::info!(link = link.number(), core = link.core(), generation = link.generation(), %error, "an RDMA link has ended");
        // Damage is said as such, and not asked again of itself.
        let code = if error.code == ErrorCode::Corruption { error.code } else { ErrorCode::Unavailable };
        let error = Error::new(code, error.message);
        lock(&self.routes).retain(|_, route| {
            if route.credits.is_some() {
                let _ = route.sender.send(Err(error.clone()));
            }
            route.credits.is_none()
        });
    }
}

#[cfg(test)]
mod tests {
    use hidb::session::frames::Checksum;

    use super::*;

    /// What `Transport::Auto` does when the cell refuses a link, against a transport by name.
    #[tokio::test]
    async fn where_no_link_can_be_opened_tcp_will_do_for_auto_only() {
        let links = Links::default();
        let shape = Shape { slots: 1, slot_bytes: SLOT_BYTES_MAX };
        let sink = Box::new(|_: &Arc<Link>, _: Event| -> Result<()> { Ok(()) });
        let device =
            FabricDevice::open("soft:127.0.0.1", 1, shape, Protection::new(Checksum::Full, None), sink).unwrap();
        let link = device.link(1, 1).unwrap();
        *lock(&links.device) = Some((device, 0));
        lock(&links.open).push(link.clone());
        let refused = || Err(Error::new(ErrorCode::Overloaded, "all links of the core are taken"));
        assert_eq!(links.or_tcp(refused()).unwrap_err().code, ErrorCode::Overloaded);
        assert!(lock(&links.device).is_some() && link.ended().is_none());
        links.is_optional.store(true, Ordering::Relaxed);
        links.or_tcp(refused()).unwrap();
        // From now on there is nothing to open links on, and questions go over TCP.
        assert!(lock(&links.device).is_none());
        assert!(link.ended().is_some() && links.home_link().is_none());
    }
}
