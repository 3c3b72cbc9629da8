//! Connecting by rdma_cm: by IP address and port, without a byte stream beside it. The only way for iWARP.
//!
//! The queue pair is made by this crate (`ibv_create_qp`), not by librdmacm. So librdmacm only tells the attributes
//! of each step (`rdma_init_qp_attr`), and the steps are taken here; on iWARP the kernel takes them itself.
//!
//! - Active side: [`Route::resolve`], [`Route::context`] to open the device that leads there, make queues and a
//!   queue pair on it, [`Route::connect`].
//! - Passive side: [`Listener::bind`], [`Listener::accept`], [`Request::context`], [`Request::accept`].
//!
//! The queue pair is to be in Init ([`QueuePair::to_init`]); receive requests may be posted there. On iWARP the active side must send
//! first (RFC 5044, 7.1.2).
//!
//! Invariants
//! - Each connection has an event channel of its own, non-blocking: nobody takes another's events.
//! - An event is copied and acknowledged at once: `rdma_destroy_id` waits for those that are not.
//! - Every wait has a deadline.

pub(crate) mod abi;
mod channel;
mod listener;
mod private_data;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::abi::{event, rdma_conn_param};
use self::channel::{Deadline, Id};
use super::abi::value;
use super::device::Context;
use super::library::ConnectionManager;
use super::queue_pair::{QueuePair, zeroed_attributes};
use crate::Error;
use crate::connect::{ConnectOptions, RemoteMemory};
use crate::device::{GidChoice, OpenOptions, Transport};
use crate::verbs::QueuePairState;

pub(crate) use self::listener::{Listener, Request};

/// A way to a peer: which device and port lead there.
pub(crate) struct Route {
    id: Id,
    to: SocketAddr,
}

impl Route {
    /// Finds the device that leads to an address, from one's own address `from` if that is given.
    ///
    /// # Errors
    /// [`Error::NoLibrary`], or [`Error::Os`]: no device leads there (ENODEV), no answer in time (TimedOut).
    pub(crate) fn resolve(to: SocketAddr, from: Option<IpAddr>, timeout: Duration) -> Result<Route, Error> {
        Route::resolve_by(ConnectionManager::get().map_err(Error::from)?, to, from, timeout)
    }

    fn resolve_by(
        cm: &'static ConnectionManager,
        to: SocketAddr,
        from: Option<IpAddr>,
        timeout: Duration,
    ) -> Result<Route, Error> {
        let deadline = Deadline(Some(Instant::now() + timeout));
        let id = Id::create(cm)?;
        id.resolve(to, from.map(|address| SocketAddr::new(address, 0)), &deadline)?;
        Ok(Route { id, to })
    }

    /// The device's name and port.
    #[cfg(test)]
    pub(crate) fn device(&self) -> Result<(String, u8), Error> {
        self.id.device()
    }

    /// Opens the device, with the GID of this side's address.
    ///
    /// # Errors
    /// As [`Context::open`].
    pub(crate) fn context(&self) -> Result<Arc<Context>, Error> {
        self.id.open_device()
    }

    /// Connects the queue pair (in state Init), and tells the peer of memory that it may use.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the queue pair is on another device or port than the route, [`Error::Control`] if
    /// it is not in Init, [`Error::Os`]: refused (ConnectionRefused), no answer in time (TimedOut).
    pub(crate) fn connect(
        self,
        queue_pair: &QueuePair,
        options: &ConnectOptions,
        memory: Option<RemoteMemory>,
        timeout: Duration,
    ) -> Result<Connection, Error> {
        let deadline = Deadline(Some(Instant::now() + timeout));
        let to = self.to.to_string();
        let steps = Steps::begin(&self.id, queue_pair, options)?;
        let context = queue_pair.context();
        let initiator = options.initiator_depth.min(context.initiator_depth_max);
        let private = private_data::encode(memory);
        self.id.connect(&mut steps.parameters(&private, context.responder_depth_max, initiator))?;
        let answer = self.id.expect(&[event::CONNECT_RESPONSE, event::ESTABLISHED], &to, "rdma_connect", &deadline)?;
        if answer.kind == event::CONNECT_RESPONSE {
            steps.ready(context.responder_depth_max, initiator.min(answer.initiator_depth))?;
            self.id.establish()?;
        } else {
            steps.done_by_kernel(initiator);
        }
        Ok(Connection { id: self.id, memory: answer.memory })
    }
}

/// A connected pair's other half: as long as it lives, so does the connection.
///
/// Drop it, or call [`Self::disconnect`], before the queue pair. The queue pair is moved to the error state by its
/// owner then; on iWARP the kernel does it.
pub(crate) struct Connection {
    id: Id,
    memory: Option<RemoteMemory>,
}

impl Connection {
    /// The memory that the peer told of.
    pub(crate) fn remote_memory(&self) -> Option<RemoteMemory> {
        self.memory
    }

    /// Tells the peer that this is the end.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub(crate) fn disconnect(&self) -> Result<(), Error> {
        self.id.disconnect()
    }

    /// Whether the connection has ended: the peer disconnected, or the device went away. Does not wait. A peer that
    /// vanishes without a word shows in failing requests only.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub(crate) fn ended(&self) -> Result<bool, Error> {
        let mut ended = false;
        while let Some(event) = self.id.channel().take()? {
            ended |= matches!(event.kind, event::DISCONNECTED | event::DEVICE_REMOVAL | event::TIMEWAIT_EXIT);
        }
        Ok(ended)
    }

    /// Readable when [`Self::ended`] should be asked.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.id.channel().as_fd()
    }
}

/// The steps of one queue pair from Init to ready-to-send.
struct Steps<'a> {
    id: &'a Id,
    queue_pair: &'a QueuePair,
    options: &'a ConnectOptions,
}

impl<'a> Steps<'a> {
    /// Checks that queue pair and id belong together, and tells the queue pair in Init the id's port and partition.
    fn begin(id: &'a Id, queue_pair: &'a QueuePair, options: &'a ConnectOptions) -> Result<Steps<'a>, Error> {
        options.check()?;
        queue_pair.before_connecting()?;
        let (context, (device, port)) = (queue_pair.context(), id.device()?);
        if (&context.attributes().name, context.port) != (&device, port) {
            return Err(Error::Mismatch {
                local: format!("a queue pair on {} port {}", context.attributes().name, context.port),
                remote: format!("a route over {device} port {port}"),
                reason: "make the queue pair on the device and port that Route::context or Request::context opens",
            });
        }
        let steps = Steps { id, queue_pair, options };
        steps.step(value::QPS_INIT, 0, 0)?;
        Ok(steps)
    }

    fn ready(&self, responder: u8, initiator: u8) -> Result<(), Error> {
        self.queue_pair.set_initiator_depth(initiator);
        self.step(value::QPS_RTR, responder, initiator)?;
        self.step(value::QPS_RTS, responder, initiator)
    }

    fn done_by_kernel(&self, initiator: u8) {
        self.queue_pair.set_initiator_depth(initiator);
        self.queue_pair.note_state(QueuePairState::ReadyToSend);
    }

    fn iwarp(&self) -> bool {
        self.queue_pair.context().attributes().transport == Transport::Iwarp
    }

    /// Takes the attributes of a step from librdmacm, and from the options what these decide.
    fn step(&self, state: i32, responder: u8, initiator: u8) -> Result<(), Error> {
        let (mut attributes, mut mask) = (zeroed_attributes(), 0);
        attributes.qp_state = state;
        self.id.init_queue_pair_attributes(&mut attributes, &mut mask)?;
        // Bits 21 to 24 are the kernel's own, and some kernels let them through.
        mask &= (1 << 21) - 1;
        if mask & value::QP_STATE == 0 {
            // iWARP: the kernel takes this step when the connection is made.
            return Ok(());
        }
        attributes.qp_state = state;
        attributes.qp_access_flags = self.queue_pair.access().0;
        attributes.min_rnr_timer = self.options.rnr_timer;
        attributes.max_dest_rd_atomic = responder;
        attributes.timeout = self.options.timeout;
        attributes.retry_cnt = self.options.retry_count;
        attributes.rnr_retry = self.options.rnr_retry_count;
        attributes.max_rd_atomic = initiator;
        self.queue_pair.modify(attributes, mask)
    }

    fn parameters(&self, private: &[u8], responder: u8, initiator: u8) -> rdma_conn_param {
        rdma_conn_param {
            private_data: private.as_ptr().cast(),
            private_data_len: private.len() as u8,
            responder_resources: responder,
            initiator_depth: initiator,
            flow_control: 1,
            retry_count: self.options.retry_count,
            rnr_retry_count: self.options.rnr_retry_count,
            srq: self.queue_pair.uses_shared_receive_queue() as u8,
            qp_num: self.queue_pair.number().0,
        }
    }
}

fn open_device(name: &str, port: u8, own: SocketAddr) -> Result<Arc<Context>, Error> {
    let gid = match own.ip() {
        address if address.is_unspecified() => GidChoice::First,
        address => GidChoice::Address(address),
    };
    Context::open(name, &OpenOptions { gid, port, ..OpenOptions::default() })
}
