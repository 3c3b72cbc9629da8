//! A raw IPv4 socket that speaks UDP: its IP headers are known, as the invariant CRC of RoCEv2 needs.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::batch::Transmission;
use super::options;
use crate::Error;
use crate::soft::icrc::{Ipv4Fields, NetworkHeader};

const IP_BYTES: usize = 20;
const UDP_BYTES: usize = 8;

/// What outgoing headers carry. The kernel would replace an identification of 0; with "don't fragment" any number
/// will do (RFC 6864).
pub(super) const IPV4_FIELDS: Ipv4Fields = Ipv4Fields { identification: 0x5253, flags_fragment: 0x4000 };

/// Binds `address` with a plain socket that drops everything.
pub(super) fn hold_port(address: SocketAddr) -> Result<OwnedFd, Error> {
    let fail = |call| move |error| Error::os(address.to_string(), call, error);
    let holder = options::datagram_socket(address, libc::SOCK_DGRAM, libc::IPPROTO_UDP).map_err(fail("socket"))?;
    attach(holder.as_fd(), &mut [statement(libc::BPF_RET | libc::BPF_K, 0)]).map_err(fail("setsockopt"))?;
    options::bind(holder.as_fd(), address).map_err(fail("bind"))?;
    Ok(holder)
}

/// A raw socket that gets the UDP packets for `local` and `port`, with their IP headers.
pub(super) fn open(local: Ipv4Addr, port: u16) -> Result<OwnedFd, Error> {
    let address = SocketAddr::new(IpAddr::V4(local), 0);
    let fail = |call| move |error| Error::os(local.to_string(), call, error);
    let socket = options::datagram_socket(address, libc::SOCK_RAW, libc::IPPROTO_UDP).map_err(fail("socket(raw)"))?;
    options::set(socket.as_fd(), libc::IPPROTO_IP, libc::IP_HDRINCL, &1i32).map_err(fail("setsockopt"))?;
    options::set(socket.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &libc::IP_PMTUDISC_DO)
        .map_err(fail("setsockopt"))?;
    let mut only_our_port = [
        // X = length of the IP header; A = destination port; take all, or nothing.
        statement(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0),
        statement(libc::BPF_LD | libc::BPF_H | libc::BPF_IND, 2),
        libc::sock_filter { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt: 0, jf: 1, k: port as u32 },
        statement(libc::BPF_RET | libc::BPF_K, u32::MAX),
        statement(libc::BPF_RET | libc::BPF_K, 0),
    ];
    attach(socket.as_fd(), &mut only_our_port).map_err(fail("setsockopt"))?;
    options::bind(socket.as_fd(), address).map_err(fail("bind"))?;
    Ok(socket)
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn attach(socket: BorrowedFd<'_>, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    options::set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Network header and UDP payload of a packet for `local`; `None` if it is none.
pub(super) fn parse(datagram: &[u8], local: SocketAddr) -> Option<(NetworkHeader, &[u8])> {
    let first = *datagram.first()?;
    let ip_bytes = (first & 15) as usize * 4;
    if first >> 4 != 4 || ip_bytes < IP_BYTES || datagram.len() < ip_bytes + UDP_BYTES {
        return None;
    }
    let word = |at: usize| u16::from_be_bytes([datagram[at], datagram[at + 1]]);
    let address = |at: usize| Ipv4Addr::new(datagram[at], datagram[at + 1], datagram[at + 2], datagram[at + 3]);
    let udp_bytes = word(ip_bytes + 4) as usize;
    if word(ip_bytes + 2) != local.port() || IpAddr::V4(address(16)) != local.ip() || udp_bytes < UDP_BYTES {
        return None;
    }
    let payload = datagram.get(ip_bytes + UDP_BYTES..ip_bytes + udp_bytes)?;
    let header = NetworkHeader {
        source: SocketAddr::new(IpAddr::V4(address(12)), word(ip_bytes)),
        destination: local,
        ipv4: Ipv4Fields { identification: word(4), flags_fragment: word(6) },
    };
    Some((header, payload))
}

/// Sends what waits, a system call per packet; how many were refused for good. Slow: this kind is for interoperation, not for speed.
pub(super) fn send(socket: BorrowedFd<'_>, local: SocketAddr, transmission: &mut Transmission) -> u64 {
    let mut lost = 0;
    while let Some((run, bytes)) = transmission.next_waiting() {
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (local.ip(), run.destination.ip()) else {
            lost += 1;
            transmission.advance(1);
            continue;
        };
        let destination_port = run.destination.port();
        let (address, length) = options::RawAddress::new(SocketAddr::new(IpAddr::V4(destination), 0));
        let mut refused = None;
        for packet in bytes.chunks(run.segment) {
            let mut header = [0u8; IP_BYTES + UDP_BYTES];
            // The kernel fills in length and checksum.
            header[0] = 0x45;
            header[4..6].copy_from_slice(&IPV4_FIELDS.identification.to_be_bytes());
            header[6..8].copy_from_slice(&IPV4_FIELDS.flags_fragment.to_be_bytes());
            header[8] = 64;
            header[9] = libc::IPPROTO_UDP as u8;
            header[12..16].copy_from_slice(&source.octets());
            header[16..20].copy_from_slice(&destination.octets());
            header[20..22].copy_from_slice(&local.port().to_be_bytes());
            header[22..24].copy_from_slice(&destination_port.to_be_bytes());
            header[24..26].copy_from_slice(&((packet.len() + UDP_BYTES) as u16).to_be_bytes());
            let mut parts = [
                libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: header.len() },
                libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() },
            ];
            // SAFETY: all zeros are a valid message header.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_name = (&raw const address).cast_mut().cast();
            message.msg_namelen = length;
            message.msg_iov = parts.as_mut_ptr();
            message.msg_iovlen = parts.len() as _;
            // SAFETY: the message and what it points to live until the call returns; the kernel only reads them.
            if unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_DONTWAIT) } < 0 {
                refused = Some(io::Error::last_os_error());
                break;
            }
        }
        match refused {
            None => transmission.advance(1),
            Some(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS | libc::EINTR)) => break,
            Some(_) => {
                lost += 1;
                transmission.advance(1);
            }
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::super::Socket;
    use super::*;

    #[test]
    fn only_whole_packets_for_this_port_are_taken() {
        let local: SocketAddr = "10.0.0.2:4791".parse().unwrap();
        let mut packet = vec![0x45, 0, 0, 32, 0x12, 0x34, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend([0xc0, 0x01, 0x12, 0xb7, 0, 12, 0, 0, 1, 2, 3, 4]);
        let (header, payload) = parse(&packet, local).unwrap();
        assert_eq!(payload, [1, 2, 3, 4]);
        assert_eq!(header.source, "10.0.0.1:49153".parse().unwrap());
        assert_eq!(header.ipv4, Ipv4Fields { identification: 0x1234, flags_fragment: 0x4000 });
        for end in 0..packet.len() {
            assert!(parse(&packet[..end], local).is_none());
        }
        assert!(parse(&packet, "10.0.0.2:4792".parse().unwrap()).is_none());
        assert!(parse(&packet, "10.0.0.3:4791".parse().unwrap()).is_none());
    }

    #[test]
    fn two_raw_sockets_talk_and_know_the_header() {
        let open = |port| Socket::raw(Ipv4Addr::LOCALHOST, port);
        let (mut from, mut to) = match (open(47_911), open(47_912)) {
            (Ok(from), Ok(to)) => (from, to),
            (Err(error), _) | (_, Err(error)) => {
                // Not root: the error must say what is missing.
                assert!(error.to_string().contains("CAP_NET_RAW"), "{error}");
                return;
            }
        };
        let mut transmission = Transmission::new();
        for byte in 1..4u8 {
            transmission.room().unwrap()[..100].fill(byte);
            transmission.push(100, to.local());
        }
        assert_eq!(from.send(&mut transmission), 0);
        let mut seen = Vec::new();
        for _ in 0..100 {
            to.receive(|header, packet| {
                assert_eq!((header.source, header.ipv4), (from.local(), IPV4_FIELDS));
                seen.push((packet[0], packet.len()));
            })
            .unwrap();
            if seen.len() == 3 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(seen, [(1, 100), (2, 100), (3, 100)]);
    }
}
