//! Connecting by rdma_cm: by IP address and port, without a byte stream beside it. For devices of the provider `ibv`
//! only; the only way for iWARP.
//!
//! Who connects: [`Route::resolve`], [`Route::open`] the device that leads there, make a queue pair on it,
//! [`Route::connect`]. Who is connected to: [`Listener::bind`], [`Listener::accept`], [`Request::open`],
//! [`Request::accept`]. Both can tell the other of memory that it may use. On iWARP the connecting side must send first
//! (RFC 5044, 7.1.2).

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::connect::{ConnectOptions, RemoteMemory};
use crate::ibv::cm;
use crate::memory::Registered;
use crate::provider::{RawContext, RawQueuePair};
use crate::{Context, Error, QueuePair, ibv};

/// A way to a peer: which device and port lead there.
pub struct Route(cm::Route);

impl Route {
    /// Finds the device that leads to an address, from one's own address `from` if that is given.
    ///
    /// # Errors
    /// [`Error::NoLibrary`], or [`Error::Os`]: no device leads there, no answer in time.
    pub fn resolve(to: SocketAddr, from: Option<IpAddr>, patience: Duration) -> Result<Self, Error> {
        cm::Route::resolve(to, from, patience).map(Route)
    }

    /// Opens the device.
    ///
    /// # Errors
    /// As [`Context::open`].
    pub fn open(&self) -> Result<Context, Error> {
        Ok(Context { raw: RawContext::Ibv(self.0.context()?) })
    }

    /// Connects a queue pair of that device, and tells the peer of memory that it may use.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a queue pair of another device, [`Error::Os`]: refused, no answer in time.
    pub fn connect<B: Registered>(
        self,
        queue_pair: &QueuePair<B>,
        options: &ConnectOptions,
        memory: Option<RemoteMemory>,
        patience: Duration,
    ) -> Result<Connection, Error> {
        self.0.connect(ibv_of(queue_pair)?, options, memory, patience).map(Connection)
    }
}

fn ibv_of<B: Registered>(queue_pair: &QueuePair<B>) -> Result<&ibv::QueuePair, Error> {
    match queue_pair.raw() {
        RawQueuePair::Ibv(pair) => Ok(pair),
        RawQueuePair::Soft(_) => Err(Error::Unsupported {
            device: "a soft device".into(),
            operation: "rdma_cm",
            reason: "exchange endpoints over a byte stream instead (Endpoint::exchange)",
        }),
    }
}

/// Listens for connection requests on all devices that have an address.
pub struct Listener(cm::Listener);

impl Listener {
    /// Listens; port 0 draws one.
    ///
    /// # Errors
    /// [`Error::NoLibrary`], [`Error::Os`]: the port is taken, no device has the address.
    pub fn bind(address: SocketAddr, backlog: u32) -> Result<Self, Error> {
        cm::Listener::bind(address, backlog).map(Listener)
    }

    /// Address and port that it listens on.
    pub fn local_address(&self) -> SocketAddr {
        self.0.local_address()
    }

    /// The next request; `None` when `patience` is over. `None` waits for ever, zero not at all.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub fn accept(&self, patience: Option<Duration>) -> Result<Option<Request>, Error> {
        Ok(self.0.accept(patience)?.map(Request))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Somebody who wants to connect. Dropping it refuses.
pub struct Request(cm::Request);

impl Request {
    /// Opens the device that it came in by.
    ///
    /// # Errors
    /// As [`Context::open`].
    pub fn open(&self) -> Result<Context, Error> {
        Ok(Context { raw: RawContext::Ibv(self.0.context()?) })
    }

    /// Who it is.
    pub fn peer_address(&self) -> SocketAddr {
        self.0.peer_address()
    }

    /// The memory that the peer told of.
    pub fn remote_memory(&self) -> Option<RemoteMemory> {
        self.0.remote_memory()
    }

    /// Connects a queue pair of that device, and tells the peer of memory that it may use.
    ///
    /// # Errors
    /// As [`Route::connect`].
    pub fn accept<B: Registered>(
        self,
        queue_pair: &QueuePair<B>,
        options: &ConnectOptions,
        memory: Option<RemoteMemory>,
        patience: Duration,
    ) -> Result<Connection, Error> {
        self.0.accept(ibv_of(queue_pair)?, options, memory, patience).map(Connection)
    }

    /// Refuses, and says so at once.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub fn reject(self) -> Result<(), Error> {
        self.0.reject()
    }
}

/// What keeps a connection made by rdma_cm. Drop it before the queue pair.
pub struct Connection(cm::Connection);

impl Connection {
    /// The memory that the peer told of.
    pub fn remote_memory(&self) -> Option<RemoteMemory> {
        self.0.remote_memory()
    }

    /// Tells the peer that this is the end; then move the queue pair [to error](QueuePair::to_error).
    ///
    /// # Errors
    /// [`Error::Os`].
    pub fn disconnect(&self) -> Result<(), Error> {
        self.0.disconnect()
    }

    /// Whether the connection has ended: the peer disconnected, or the device went away. Does not wait. A peer that
    /// vanishes without a word shows in failing requests only.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub fn ended(&self) -> Result<bool, Error> {
        self.0.ended()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
