//! A fabric device as one core has it open.
//!
//! Owns [`Port`]: context, completion queue, one receive queue that all links of the core share, pools of registered
//! buffers, and the task that takes completions. Called by [`super::link`] and by `server::links`, on its core only.
//!
//! Cost: memory of receive requests does not grow with the number of clients: [`RECEIVES`] of 8 KiB. While nothing
//! arrives the task sleeps on the descriptor of the completion queue, through the core's ring; while something does, it
//! takes completions once per turn of the executor.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::future::or;
use hidb::session::SEND_BYTES_MAX;
use hidb::{Error, ErrorCode, Result};
use verbs_shim::verbs::{QueuePairNumber, WcOpcode, WcStatus};
use verbs_shim::{Buffer, Completion, CompletionQueue, Context, ProtectionDomain, Receive, SharedReceiveQueue};

use super::link::Link;
use super::memory::{LinkBuffer, RegisteredArena};
use super::{Device, failed, open_options};
use crate::cores::Core;
use crate::device::ring::Ring;
use crate::waiters::Waiters;

/// Receive requests that all links of a core share.
const RECEIVES: u32 = 512;
/// Buffers for frames that are copied, of [`SEND_BYTES_MAX`] bytes.
const SENDS: usize = 128;
/// Buffers for heads of frames whose payload is gathered.
const HEADS: usize = 512;
/// The longest head that is gathered.
pub const HEAD_BYTES_MAX: usize = 512;
/// Work requests that one link may have outstanding.
pub const LINK_DEPTH: u32 = 64;
/// Turns of the executor without a completion before the task sleeps.
const TURNS: u32 = 32;

/// A device that a core has open.
pub struct Port {
    name: String,
    /// For making queue pairs.
    pub domain: ProtectionDomain,
    /// Where everything of this core completes.
    pub completions: CompletionQueue<LinkBuffer>,
    /// Where all links receive.
    pub receives: SharedReceiveQueue<LinkBuffer>,
    /// The core's arena.
    pub arena: RegisteredArena,
    sends: RefCell<Vec<Buffer>>,
    heads: RefCell<Vec<Buffer>>,
    returned: Waiters,
    links: RefCell<HashMap<QueuePairNumber, Rc<Link>>>,
    links_max: usize,
    is_closing: Cell<bool>,
    closing: Waiters,
    _context: Context,
}

/// Ports of this core, by the names of their devices.
#[derive(Default)]
pub struct Ports(RefCell<HashMap<String, Rc<Port>>>);

impl Ports {
    /// Opens the port of a device. Registering the arena takes long where it is large, and the core does nothing else
    /// meanwhile: this is for the start.
    ///
    /// # Errors
    /// `Io` when the device can't be opened, or its memory not be registered.
    pub fn open(&self, core: &Rc<Core>, device: &Device, links_max: usize) -> Result<()> {
        let port = Port::open(core, device, links_max).map_err(|error| failed(&device.name, &error))?;
        self.0.borrow_mut().insert(device.name.clone(), port);
        Ok(())
    }

    /// The port of a device, if it is open.
    pub fn get(&self, device: &str) -> Option<Rc<Port>> {
        self.0.borrow().get(device).cloned()
    }

    /// Lets go of a device.
    pub fn close(&self, device: &str) {
        if let Some(port) = self.0.borrow_mut().remove(device) {
            port.close();
        }
    }

    /// Lets go of all devices; the core is stopping.
    pub fn close_all(&self) {
        for port in self.0.take().into_values() {
            port.close();
        }
    }
}

impl Port {
    fn open(core: &Rc<Core>, device: &Device, links_max: usize) -> Result<Rc<Port>, verbs_shim::Error> {
        let context = Context::open(&device.name, &open_options())?;
        let domain = context.create_domain()?;
        // What a device allows may be less than what the configuration does.
        let places = context.attributes().completions_max.saturating_sub(RECEIVES) / LINK_DEPTH;
        let links_max = links_max.min(places as usize).max(1);
        let capacity = RECEIVES + links_max as u32 * LINK_DEPTH;
        let completions = context.create_completion_queue(capacity)?;
        let receives = domain.create_shared_receive_queue(RECEIVES)?;
        for buffer in pieces(domain.allocate(RECEIVES as usize * SEND_BYTES_MAX)?, SEND_BYTES_MAX) {
            receives.post_receive(Receive::new(LinkBuffer::Receive(buffer)))?;
        }
        let sends = pieces(domain.allocate(SENDS * SEND_BYTES_MAX)?, SEND_BYTES_MAX);
        let heads = pieces(domain.allocate(HEADS * HEAD_BYTES_MAX)?, HEAD_BYTES_MAX);
        let port = Rc::new(Port {
            name: device.name.clone(),
            arena: RegisteredArena::new(&domain, &core.arena)?,
            domain,
            completions,
            receives,
            sends: RefCell::new(sends),
            heads: RefCell::new(heads),
            returned: Waiters::default(),
            links: RefCell::default(),
            links_max,
            is_closing: Cell::new(false),
            closing: Waiters::default(),
            _context: context,
        });
        glommio::spawn_local(take_completions(port.clone(), core.ring.clone())).detach();
        Ok(port)
    }

    fn close(&self) {
        self.is_closing.set(true);
        self.links.take();
        self.closing.wake();
    }

    /// The device.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes a link in.
    pub(super) fn add(&self, number: QueuePairNumber, link: Rc<Link>) {
        self.links.borrow_mut().insert(number, link);
    }

    /// Whether there is room for another link.
    ///
    /// # Errors
    /// `Overloaded`: batches go by the session's home core, or over TCP, then.
    pub(super) fn check_room(&self) -> Result<()> {
        let open = self.links.borrow().len();
        if open < self.links_max {
            return Ok(());
        }
        let text = format!("{open} links are open on {} of this core: links_max is {}", self.name, self.links_max);
        Err(Error::new(ErrorCode::Overloaded, text))
    }

    pub(super) fn remove(&self, number: QueuePairNumber) {
        self.links.borrow_mut().remove(&number);
    }

    /// A buffer for a frame that is copied, if there is one now. Links share them: take one only to post it at once.
    pub(super) fn send_buffer(&self) -> Option<Buffer> {
        self.sends.borrow_mut().pop()
    }

    /// A buffer for a head, if there is one now.
    pub(super) fn head_buffer(&self) -> Option<Buffer> {
        self.heads.borrow_mut().pop()
    }

    /// Ready when there are buffers of both kinds.
    pub(super) async fn buffers(&self) {
        let there_are = || !self.sends.borrow().is_empty() && !self.heads.borrow().is_empty();
        self.returned.wait_for(|| there_are().then_some(())).await;
    }

    /// Gives back what a work request owned.
    pub(super) fn give_back(&self, buffer: LinkBuffer) {
        match buffer {
            LinkBuffer::Receive(buffer) => {
                // The queue has a place for each of its buffers.
                if let Err(refused) = self.receives.post_receive(Receive::new(LinkBuffer::Receive(buffer))) {
                    tracing::error!(error = %refused.error, device = self.name, "a receive request was refused");
                }
                return;
            }
            LinkBuffer::Staged { buffer, .. } => self.sends.borrow_mut().push(buffer),
            LinkBuffer::Gathered { head, .. } => self.heads.borrow_mut().push(head),
            LinkBuffer::Whole(_) => return,
        }
        self.returned.wake();
    }

    fn complete(&self, done: Completion<LinkBuffer>) {
        let link = self.links.borrow().get(&done.queue_pair).cloned();
        let failure = (done.status != WcStatus::Success).then(|| done.status.name());
        if let Some(link) = link {
            match done.opcode {
                WcOpcode::Recv | WcOpcode::RecvRdmaWithImm => {
                    if let (None, Some(LinkBuffer::Receive(buffer))) = (failure, &done.buffer) {
                        let bytes = buffer.get(..done.length_bytes as usize).unwrap_or_default();
                        link.received(bytes);
                    }
                }
                WcOpcode::Send => link.send_completed(failure),
                _ => link.write_completed(done.token as u32, failure),
            }
        }
        if let Some(buffer) = done.buffer {
            self.give_back(buffer);
        }
    }
}

/// Cuts a buffer into pieces of `bytes` each.
fn pieces(mut whole: Buffer, bytes: usize) -> Vec<Buffer> {
    let mut pieces = Vec::with_capacity(whole.len() / bytes);
    while whole.len() > bytes {
        let rest = whole.split_off(bytes);
        pieces.push(std::mem::replace(&mut whole, rest));
    }
    pieces.push(whole);
    pieces
}

/// Takes completions until the port is closed. Taking them is also what drives a soft device.
async fn take_completions(port: Rc<Port>, ring: Ring) {
    let mut done = Vec::new();
    let mut idle = 0;
    while !port.is_closing.get() {
        let taken = port.completions.poll(&mut done);
        for completion in done.drain(..) {
            port.complete(completion);
        }
        idle = if matches!(taken, Ok(1..)) { 0 } else { idle + 1 };
        if idle < TURNS {
            glommio::executor().yield_now().await;
            continue;
        }
        idle = 0;
        match port.completions.arm() {
            Ok(true) => {}
            Ok(false) => continue,
            Err(error) => {
                tracing::error!(%error, device = port.name, "an RDMA completion queue can't be armed: polling it");
                glommio::timer::sleep(Duration::from_millis(1)).await;
                continue;
            }
        }
        // What came before the queue was armed is not announced: one more look.
        if matches!(port.completions.poll(&mut done), Ok(1..)) {
            continue;
        }
        let closing = port.closing.wait_for(|| port.is_closing.get().then_some(Ok(())));
        if let Err(error) = or(closing, ring.readable(port.completions.as_fd())).await {
            tracing::error!(%error, device = port.name, "an RDMA completion queue can't be waited for: polling it");
            glommio::timer::sleep(Duration::from_millis(1)).await;
        }
        port.completions.clear_events();
    }
}
