//! The passive side: listening, and connection requests.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::channel::{Deadline, Id};
use super::{Connection, Steps, event, private_data};
use crate::Error;
use crate::connect::{ConnectOptions, RemoteMemory};
use crate::ibv::device::Context;
use crate::ibv::library::ConnectionManager;
use crate::ibv::queue_pair::QueuePair;

/// Listens for connection requests on all RDMA devices that have the address.
pub(crate) struct Listener {
    pub(super) id: Id,
    cm: &'static ConnectionManager,
}

impl Listener {
    /// Listens on an address; port 0 draws one.
    ///
    /// # Errors
    /// [`Error::NoLibrary`], [`Error::Os`]: the port is taken, no device has the address.
    pub(crate) fn bind(address: SocketAddr, backlog: u32) -> Result<Listener, Error> {
        Listener::bind_by(ConnectionManager::get().map_err(Error::from)?, address, backlog)
    }

    pub(super) fn bind_by(
        cm: &'static ConnectionManager,
        address: SocketAddr,
        backlog: u32,
    ) -> Result<Listener, Error> {
        let id = Id::create(cm)?;
        id.listen(address, backlog)?;
        Ok(Listener { id, cm })
    }

    /// The address and port that it listens on.
    pub(crate) fn local_address(&self) -> SocketAddr {
        self.id.own_address()
    }

    /// The next request; `None` when the time is over. Without a time it waits for ever, with zero not at all.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub(crate) fn accept(&self, timeout: Option<Duration>) -> Result<Option<Request>, Error> {
        let deadline = Deadline::after(timeout);
        while let Some(event) = self.id.channel().wait(&deadline)? {
            if event.kind != event::CONNECT_REQUEST {
                // A device came or went; the others are still listened on.
                continue;
            }
            let id = Id::adopt(self.cm, event.id)?;
            let (responder_asked, initiator_granted) = (event.responder_resources, event.initiator_depth);
            return Ok(Some(Request { id, memory: event.memory, responder_asked, initiator_granted }));
        }
        Ok(None)
    }

    /// Readable when there may be a request.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.id.channel().as_fd()
    }
}

/// Somebody who wants to connect. Dropping it refuses.
pub(crate) struct Request {
    id: Id,
    memory: Option<RemoteMemory>,
    responder_asked: u8,
    initiator_granted: u8,
}

impl Request {
    /// The name and port of the device that it came in by.
    #[cfg(test)]
    pub(crate) fn device(&self) -> Result<(String, u8), Error> {
        self.id.device()
    }

    /// Opens that device, with the GID that the peer connects to.
    ///
    /// # Errors
    /// As [`Context::open`].
    pub(crate) fn context(&self) -> Result<Arc<Context>, Error> {
        self.id.open_device()
    }

    /// Who it is.
    pub(crate) fn peer_address(&self) -> SocketAddr {
        self.id.peer_address()
    }

    /// The memory that the peer told of.
    pub(crate) fn remote_memory(&self) -> Option<RemoteMemory> {
        self.memory
    }

    /// Connects the queue pair (in state Init), and tells the peer of memory that it may use.
    ///
    /// # Errors
    /// As [`super::Route::connect`].
    pub(crate) fn accept(
        self,
        queue_pair: &QueuePair,
        options: &ConnectOptions,
        memory: Option<RemoteMemory>,
        timeout: Duration,
    ) -> Result<Connection, Error> {
        let deadline = Deadline(Some(Instant::now() + timeout));
        let peer = self.id.peer_address().to_string();
        let steps = Steps::begin(&self.id, queue_pair, options)?;
        let context = queue_pair.context();
        let responder = self.responder_asked.min(context.responder_depth_max);
        let initiator = options.initiator_depth.min(context.initiator_depth_max).min(self.initiator_granted);
        if !steps.iwarp() {
            steps.ready(responder, initiator)?;
        }
        let private = private_data::encode(memory);
        self.id.accept(&mut steps.parameters(&private, responder, initiator))?;
        self.id.expect(&[event::ESTABLISHED], &peer, "rdma_accept", &deadline)?;
        if steps.iwarp() {
            steps.done_by_kernel(initiator);
        }
        Ok(Connection { id: self.id, memory: self.memory })
    }

    /// Refuses, and says so at once.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub(crate) fn reject(self) -> Result<(), Error> {
        self.id.reject()
    }
}
