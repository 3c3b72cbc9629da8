//! Event channels and communication identifiers of librdmacm, waited for with a deadline.
//!
//! Owns: `rdma_event_channel` and `rdma_cm_id`, one of each together.

use std::ffi::CStr;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::abi::{PORT_SPACE_TCP, event, rdma_cm_event, rdma_cm_id, rdma_conn_param, rdma_event_channel};
use super::private_data;
use crate::Error;
use crate::connect::RemoteMemory;
use crate::ibv::abi::ibv_qp_attr;
use crate::ibv::checked;
use crate::ibv::completion_queue::set_nonblocking;
use crate::ibv::device::Context;
use crate::ibv::library::ConnectionManager;

/// When to give up; never, if `None`.
pub(super) struct Deadline(pub Option<Instant>);

impl Deadline {
    pub(super) fn after(timeout: Option<Duration>) -> Deadline {
        Deadline(timeout.map(|timeout| Instant::now() + timeout))
    }

    fn left(&self) -> Option<Duration> {
        self.0.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// For calls that take milliseconds and need some.
    fn left_ms(&self) -> i32 {
        self.left().map_or(i32::MAX, |left| left.as_millis().clamp(1, i32::MAX as u128) as i32)
    }
}

/// An event, copied. A new id (of a connection request) is the receiver's to destroy.
pub(super) struct Event {
    pub id: *mut rdma_cm_id,
    pub kind: i32,
    pub status: i32,
    pub memory: Option<RemoteMemory>,
    pub responder_resources: u8,
    pub initiator_depth: u8,
}

pub(super) struct Channel {
    raw: NonNull<rdma_event_channel>,
    cm: &'static ConnectionManager,
}

// SAFETY: librdmacm's functions are thread safe; the pointer is used for nothing but its calls.
unsafe impl Send for Channel {}
// SAFETY: as above.
unsafe impl Sync for Channel {}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: made by `rdma_create_event_channel`; the id that used it is destroyed.
        unsafe { (self.cm.destroy_event_channel)(self.raw.as_ptr()) };
    }
}

impl Channel {
    pub(super) fn create(cm: &'static ConnectionManager) -> Result<Channel, Error> {
        // SAFETY: it takes nothing.
        let raw = NonNull::new(unsafe { (cm.create_event_channel)() })
            .ok_or_else(|| Error::last("rdma_cm", "rdma_create_event_channel"))?;
        let channel = Channel { raw, cm };
        set_nonblocking(channel.as_fd()).map_err(|error| Error::os("rdma_cm", "fcntl(O_NONBLOCK)", error))?;
        Ok(channel)
    }

    pub(super) fn raw(&self) -> *mut rdma_event_channel {
        self.raw.as_ptr()
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the channel is.
        unsafe { BorrowedFd::borrow_raw((*self.raw.as_ptr()).fd) }
    }

    /// The next event, if there is one.
    pub(super) fn take(&self) -> Result<Option<Event>, Error> {
        let mut raw: *mut rdma_cm_event = std::ptr::null_mut();
        // SAFETY: the channel is alive and non-blocking; `raw` is a place for the answer.
        if let Err(error) = checked(unsafe { (self.cm.get_cm_event)(self.raw(), &mut raw) }) {
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(Error::os("rdma_cm", "rdma_get_cm_event", error)),
            };
        }
        // SAFETY: the event is valid until it is acknowledged. Its union holds `conn` for all events of connected
        // ids, zeroed where it means nothing, and its private data is as long as it says.
        let event = unsafe {
            let rdma_cm_event { id, event: kind, status, conn, .. } = &*raw;
            let private = match (conn.private_data.is_null(), conn.private_data_len) {
                (true, _) | (_, 0) => &[][..],
                (_, length) => std::slice::from_raw_parts(conn.private_data.cast::<u8>(), length as usize),
            };
            Event {
                id: *id,
                kind: *kind,
                status: *status,
                memory: private_data::decode(private),
                responder_resources: conn.responder_resources,
                initiator_depth: conn.initiator_depth,
            }
        };
        // SAFETY: acknowledged once, and not looked at again.
        unsafe { (self.cm.ack_cm_event)(raw) };
        Ok(Some(event))
    }

    /// The next event, waited for; `None` when the time is over.
    pub(super) fn wait(&self, deadline: &Deadline) -> Result<Option<Event>, Error> {
        loop {
            if let Some(event) = self.take()? {
                return Ok(Some(event));
            }
            let left = deadline.left();
            if left == Some(Duration::ZERO) {
                return Ok(None);
            }
            // Rounded up, so that the last wait is not a spin.
            let timeout_ms = left.map_or(-1, |left| left.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32);
            let mut descriptor = libc::pollfd { fd: self.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one descriptor structure, ours.
            if unsafe { libc::poll(&mut descriptor, 1, timeout_ms) } < 0 {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(Error::os("rdma_cm", "poll", error));
                }
            }
        }
    }
}

/// A communication identifier with a channel of its own. Its destruction ends its connection.
pub(super) struct Id {
    raw: NonNull<rdma_cm_id>,
    channel: Channel,
}

// SAFETY: as for `Channel`; the fields read through the pointer are set before the id is given out.
unsafe impl Send for Id {}
// SAFETY: as above.
unsafe impl Sync for Id {}

impl Drop for Id {
    fn drop(&mut self) {
        // SAFETY: made by `rdma_create_id` or a connection request; all its events are acknowledged. The channel
        // goes after it.
        unsafe { (self.cm().destroy_id)(self.raw()) };
    }
}

impl Id {
    pub(super) fn create(cm: &'static ConnectionManager) -> Result<Id, Error> {
        let channel = Channel::create(cm)?;
        let (mut raw, cookie) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the channel is alive; `raw` is a place for the answer.
        checked(unsafe { (cm.create_id)(channel.raw(), &mut raw, cookie, PORT_SPACE_TCP) })
            .map_err(|error| Error::os("rdma_cm", "rdma_create_id", error))?;
        let raw = NonNull::new(raw).ok_or_else(|| Error::last("rdma_cm", "rdma_create_id"))?;
        Ok(Id { raw, channel })
    }

    /// Takes over the id of a connection request, which was on its listener's channel, onto one of its own.
    pub(super) fn adopt(cm: &'static ConnectionManager, raw: *mut rdma_cm_id) -> Result<Id, Error> {
        let own = NonNull::new(raw).ok_or_else(|| Error::last("rdma_cm", "rdma_get_cm_event"))?;
        let moved = Channel::create(cm).and_then(|channel| {
            // SAFETY: both are alive, and the event that brought the id is acknowledged.
            checked(unsafe { (cm.migrate_id)(raw, channel.raw()) })
                .map_err(|error| Error::os("rdma_cm", "rdma_migrate_id", error))?;
            Ok(channel)
        });
        match moved {
            Ok(channel) => Ok(Id { raw: own, channel }),
            Err(error) => {
                // SAFETY: the id is ours, and nobody else has it.
                unsafe { (cm.destroy_id)(raw) };
                Err(error)
            }
        }
    }

    fn cm(&self) -> &'static ConnectionManager {
        self.channel.cm
    }

    fn raw(&self) -> *mut rdma_cm_id {
        self.raw.as_ptr()
    }

    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }

    fn name(&self) -> String {
        self.device().map_or_else(|_| "rdma_cm".into(), |(name, _)| name)
    }

    /// Device and port, once they are known.
    pub(super) fn device(&self) -> Result<(String, u8), Error> {
        // SAFETY: once it is resolved, an id points to its device's context; the name ends with a zero.
        unsafe {
            let id = self.raw();
            if (*id).verbs.is_null() {
                let reason = "it is not resolved to a device";
                return Err(Error::Unsupported { device: "rdma_cm".into(), operation: "naming a device", reason });
            }
            let name = CStr::from_ptr((*(*(*id).verbs).device).name.as_ptr());
            Ok((name.to_string_lossy().into_owned(), (*id).port_num))
        }
    }

    pub(super) fn open_device(&self) -> Result<Arc<Context>, Error> {
        let (name, port) = self.device()?;
        super::open_device(&name, port, self.own_address())
    }

    pub(super) fn own_address(&self) -> SocketAddr {
        // SAFETY: librdmacm fills the addresses before it returns, zeroed where unknown.
        unsafe { from_storage(&(*self.raw()).src_addr) }
    }

    pub(super) fn peer_address(&self) -> SocketAddr {
        // SAFETY: as above.
        unsafe { from_storage(&(*self.raw()).dst_addr) }
    }

    pub(super) fn listen(&self, address: SocketAddr, backlog: u32) -> Result<(), Error> {
        let mut storage = to_storage(address);
        let fail = |call: &'static str| move |error| Error::os(address.to_string(), call, error);
        // SAFETY: the id is alive, the address outlives the call.
        checked(unsafe { (self.cm().bind_addr)(self.raw(), (&raw mut storage).cast()) })
            .map_err(fail("rdma_bind_addr"))?;
        let backlog = backlog.min(i32::MAX as u32) as i32;
        // SAFETY: the id is alive and bound.
        checked(unsafe { (self.cm().listen)(self.raw(), backlog) }).map_err(fail("rdma_listen"))
    }

    pub(super) fn resolve(&self, to: SocketAddr, from: Option<SocketAddr>, deadline: &Deadline) -> Result<(), Error> {
        let (mut to_raw, mut from_raw) = (to_storage(to), from.map(to_storage));
        let from_raw = from_raw.as_mut().map_or(std::ptr::null_mut(), |from| std::ptr::from_mut(from).cast());
        let name = to.to_string();
        // SAFETY: the id is alive, the addresses outlive the call.
        checked(unsafe {
            (self.cm().resolve_addr)(self.raw(), from_raw, (&raw mut to_raw).cast(), deadline.left_ms())
        })
        .map_err(|error| Error::os(&name, "rdma_resolve_addr", error))?;
        self.expect(&[event::ADDR_RESOLVED], &name, "rdma_resolve_addr", deadline)?;
        // SAFETY: the id is alive and its address resolved.
        checked(unsafe { (self.cm().resolve_route)(self.raw(), deadline.left_ms()) })
            .map_err(|error| Error::os(&name, "rdma_resolve_route", error))?;
        self.expect(&[event::ROUTE_RESOLVED], &name, "rdma_resolve_route", deadline)?;
        Ok(())
    }

    pub(super) fn init_queue_pair_attributes(&self, into: &mut ibv_qp_attr, mask: &mut i32) -> Result<(), Error> {
        // SAFETY: the id is alive; both are places for the answer, and `qp_state` is set.
        checked(unsafe { (self.cm().init_qp_attr)(self.raw(), into, mask) })
            .map_err(|error| Error::os(self.name(), "rdma_init_qp_attr", error))
    }

    pub(super) fn connect(&self, parameters: &mut rdma_conn_param) -> Result<(), Error> {
        // SAFETY: the id is alive; parameters and private data outlive the call, which copies them.
        checked(unsafe { (self.cm().connect)(self.raw(), parameters) })
            .map_err(|error| Error::os(self.name(), "rdma_connect", error))
    }

    pub(super) fn accept(&self, parameters: &mut rdma_conn_param) -> Result<(), Error> {
        // SAFETY: as for `connect`.
        checked(unsafe { (self.cm().accept)(self.raw(), parameters) })
            .map_err(|error| Error::os(self.name(), "rdma_accept", error))
    }

    pub(super) fn reject(&self) -> Result<(), Error> {
        // SAFETY: the id is alive; there is no private data.
        checked(unsafe { (self.cm().reject)(self.raw(), std::ptr::null(), 0) })
            .map_err(|error| Error::os(self.name(), "rdma_reject", error))
    }

    pub(super) fn establish(&self) -> Result<(), Error> {
        // SAFETY: the id is alive.
        checked(unsafe { (self.cm().establish)(self.raw()) })
            .map_err(|error| Error::os(self.name(), "rdma_establish", error))
    }

    pub(super) fn disconnect(&self) -> Result<(), Error> {
        // SAFETY: the id is alive.
        checked(unsafe { (self.cm().disconnect)(self.raw()) })
            .map_err(|error| Error::os(self.name(), "rdma_disconnect", error))
    }

    /// Waits for one of these events; every other event is why `call` failed.
    pub(super) fn expect(
        &self,
        wanted: &[i32],
        peer: &str,
        call: &'static str,
        deadline: &Deadline,
    ) -> Result<Event, Error> {
        let fail = |error| Err(Error::os(peer, call, error));
        let Some(event) = self.channel.wait(deadline)? else {
            return fail(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
        };
        if wanted.contains(&event.kind) && event.status == 0 {
            return Ok(event);
        }
        fail(match event.kind {
            event::REJECTED => {
                // 8: IB_CM_REJ_INVALID_SERVICE_ID; iWARP has a negative error number.
                let why = match event.status {
                    8 => "nothing listens on that port".into(),
                    status => format!("reason {status}"),
                };
                io::Error::new(io::ErrorKind::ConnectionRefused, format!("the peer refused ({why})"))
            }
            event::UNREACHABLE => io::Error::new(io::ErrorKind::HostUnreachable, "the peer does not answer"),
            event::DISCONNECTED => io::Error::new(io::ErrorKind::ConnectionReset, "the peer disconnected"),
            event::DEVICE_REMOVAL => io::Error::new(io::ErrorKind::NotConnected, "the device was removed"),
            _ if event.status != 0 => io::Error::from_raw_os_error(event.status.abs()),
            kind => io::Error::other(format!("unexpected event {kind}")),
        })
    }
}

fn to_storage(address: SocketAddr) -> libc::sockaddr_storage {
    // SAFETY: integers, for which zero is a value.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let at = &raw mut storage;
    // SAFETY: `sockaddr_storage` is large enough for, and aligned like, every socket address.
    unsafe {
        match address {
            SocketAddr::V4(address) => at.cast::<libc::sockaddr_in>().write(libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
                sin_zero: [0; 8],
            }),
            SocketAddr::V6(address) => at.cast::<libc::sockaddr_in6>().write(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as u16,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                sin6_scope_id: address.scope_id(),
            }),
        }
    }
    storage
}

/// What is no IP address (native InfiniBand) is the unspecified one.
fn from_storage(storage: &libc::sockaddr_storage) -> SocketAddr {
    let at = std::ptr::from_ref(storage);
    // SAFETY: as above; every bit pattern is a value.
    unsafe {
        match storage.ss_family as i32 {
            libc::AF_INET => {
                let address = &*at.cast::<libc::sockaddr_in>();
                let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
                SocketAddrV4::new(ip, u16::from_be(address.sin_port)).into()
            }
            libc::AF_INET6 => {
                let address = &*at.cast::<libc::sockaddr_in6>();
                let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
                let port = u16::from_be(address.sin6_port);
                SocketAddrV6::new(ip, port, address.sin6_flowinfo, address.sin6_scope_id).into()
            }
            _ => SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_addresses_come_back() {
        for text in ["192.0.2.7:4792", "[2001:db8::1]:18515", "0.0.0.0:0"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(from_storage(&to_storage(address)), address);
        }
        let scoped = SocketAddr::V6(SocketAddrV6::new("fe80::1".parse().unwrap(), 9, 5, 3));
        assert_eq!(from_storage(&to_storage(scoped)), scoped);
    }

    #[test]
    fn a_deadline_ends() {
        assert_eq!(Deadline(Some(Instant::now())).left(), Some(Duration::ZERO));
        assert_eq!(Deadline(Some(Instant::now())).left_ms(), 1);
        assert_eq!(Deadline::after(None).left(), None);
    }
}
