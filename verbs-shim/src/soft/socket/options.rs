//! Socket options: buffers, path MTU, checksums, offload. Thin and safe calls over libc.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// What is asked for on both sides of a socket. The kernel doubles it, and without CAP_NET_ADMIN caps it at
/// `net.core.rmem_max` and `wmem_max`.
const BUFFER_BYTES: libc::c_int = 16 << 20;

// From <linux/udp.h>, missing in libc for some targets.
pub(super) const UDP_SEGMENT: libc::c_int = 103;
pub(super) const UDP_GRO: libc::c_int = 104;
const UDP_NO_CHECK6_RX: libc::c_int = 102;

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(super) fn datagram_socket(local: SocketAddr, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: a call without pointers.
    let descriptor =
        checked(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, protocol) })?;
    // SAFETY: just opened, nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Sets an option of type `T`.
pub(super) fn set<T>(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let bytes = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer and the length are those of `value`.
    checked(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), bytes) })?;
    Ok(())
}

fn get_int(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut bytes = size_of::<libc::c_int>() as libc::socklen_t;
    let into = (&raw mut value).cast();
    // SAFETY: the pointer and the length are those of `value`.
    checked(unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, into, &mut bytes) })?;
    Ok(value)
}

/// No fragments, identification 0 (IPv4), and zero checksums accepted (IPv6), which rxe sends: the ICRC is the check.
pub(super) fn prepare(socket: BorrowedFd<'_>, local: SocketAddr) -> io::Result<()> {
    match local {
        SocketAddr::V4(_) => set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &libc::IP_PMTUDISC_DO),
        SocketAddr::V6(_) => {
            set(socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &1i32)?;
            set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &libc::IPV6_PMTUDISC_DO)?;
            set(socket, libc::IPPROTO_UDP, UDP_NO_CHECK6_RX, &1i32)
        }
    }
}

/// Whether the kernel segments what is sent (Linux 4.18) and joins what arrives (5.0).
pub(super) fn enable_offload(socket: BorrowedFd<'_>) -> bool {
    let joins = set(socket, libc::IPPROTO_UDP, UDP_GRO, &1i32).is_ok();
    joins && get_int(socket, libc::IPPROTO_UDP, UDP_SEGMENT).is_ok()
}

/// Makes both buffers as large as allowed; what the receive buffer holds, as the kernel counts.
pub(super) fn enlarge_buffers(socket: BorrowedFd<'_>) -> io::Result<usize> {
    for (forced, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        if set(socket, libc::SOL_SOCKET, forced, &BUFFER_BYTES).is_err() {
            set(socket, libc::SOL_SOCKET, plain, &BUFFER_BYTES)?;
        }
    }
    Ok(get_int(socket, libc::SOL_SOCKET, libc::SO_RCVBUF)?.max(0) as usize)
}

/// An address as the kernel takes it.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) union RawAddress {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl RawAddress {
    pub(super) fn empty() -> Self {
        // SAFETY: all zeros are a valid value of both.
        unsafe { zeroed() }
    }

    /// The address and its length.
    pub(super) fn new(address: SocketAddr) -> (Self, libc::socklen_t) {
        let mut raw = RawAddress::empty();
        match address {
            SocketAddr::V4(address) => {
                raw.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
                    sin_zero: [0; 8],
                };
                (raw, size_of::<libc::sockaddr_in>() as libc::socklen_t)
            }
            SocketAddr::V6(address) => {
                raw.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                };
                (raw, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
            }
        }
    }

    /// What the kernel wrote.
    pub(super) fn read(&self) -> Option<SocketAddr> {
        // SAFETY: both begin with the family, and all bytes are initialised (see `empty`).
        match unsafe { self.v4.sin_family } as libc::c_int {
            libc::AF_INET => {
                // SAFETY: the family says so.
                let raw = unsafe { self.v4 };
                let ip = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
                Some(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into())
            }
            libc::AF_INET6 => {
                // SAFETY: the family says so.
                let raw = unsafe { self.v6 };
                let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
                // The scope is not part of what the ICRC covers, nor of a peer's identity here.
                Some(SocketAddrV6::new(ip, u16::from_be(raw.sin6_port), 0, 0).into())
            }
            _ => None,
        }
    }
}

pub(super) fn bind(socket: BorrowedFd<'_>, local: SocketAddr) -> io::Result<()> {
    let (raw, bytes) = RawAddress::new(local);
    // SAFETY: the pointer and the length are those of `raw`.
    checked(unsafe { libc::bind(socket.as_raw_fd(), (&raw const raw).cast(), bytes) })?;
    Ok(())
}

pub(super) fn local_address(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let mut raw = RawAddress::empty();
    let mut bytes = size_of::<RawAddress>() as libc::socklen_t;
    // SAFETY: the pointer and the length are those of `raw`.
    checked(unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut raw).cast(), &mut bytes) })?;
    raw.read().ok_or_else(|| io::Error::other("the socket has an address of a strange family"))
}
