//! The sockets of the soft provider: datagrams in and out, many per system call.
//!
//! Owns: one socket bound to one address, the receive buffers and the transmit batch. Called by [`node`](super::node)
//! only, under its lock. No call blocks.
//!
//! Two kinds. A plain UDP socket, with segmentation offload: packets of one size to one destination go to the kernel
//! as one datagram of up to 64 KiB, and come out of the peer's socket as one. A raw socket, for IPv4 towards the kernel's
//! rxe or hardware: there the invariant CRC covers the identification of the IP header, which a UDP socket neither
//! chooses nor sees.
//!
//! Cost per 64 KiB of 4,096-byte packets: two messages of a `sendmmsg`, since the first packet of a WRITE is longer than
//! the others, and two of a `recvmmsg`. Somebody who waits for a single packet pays a `recvmsg` per look, and a `sendto`
//! for an answer, or a `sendmsg` for an answer and an acknowledgement as two segments.

mod batch;
mod options;
mod raw;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

pub(crate) use batch::Transmission;

use self::batch::Arrival;
use crate::Error;
use crate::soft::icrc::{Ipv4Fields, NetworkHeader};

/// Datagrams, offloaded ones counted once, taken by one call.
const ARRIVALS: usize = 8;

/// What is left in a socket after a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Left {
    /// The call took all there was.
    Nothing,
    /// It took as many as it asked for, which were few.
    Perhaps,
    /// It took as many as it can.
    Likely,
}

/// See the [module](self).
pub(crate) struct Socket {
    descriptor: OwnedFd,
    local: SocketAddr,
    kind: Kind,
    arrival: Box<Arrival>,
    /// Datagrams to ask for next: twice as many as came, so that somebody who waits for one asks for one.
    ask: usize,
    receive_buffer_bytes: usize,
}

enum Kind {
    Plain {
        /// Whether the kernel cuts a run into datagrams.
        offload: bool,
    },
    Raw {
        /// Holds the port, so that the kernel does not answer with "port unreachable".
        _holder: OwnedFd,
    },
}

impl Socket {
    /// A plain UDP socket on `local`; port 0 takes any.
    pub(crate) fn plain(local: SocketAddr) -> Result<Self, Error> {
        let descriptor = options::datagram_socket(local, libc::SOCK_DGRAM, libc::IPPROTO_UDP)
            .map_err(|error| Error::os(local.to_string(), "socket", error))?;
        options::prepare(descriptor.as_fd(), local)
            .map_err(|error| Error::os(local.to_string(), "setsockopt", error))?;
        options::bind(descriptor.as_fd(), local).map_err(|error| Error::os(local.to_string(), "bind", error))?;
        let bound = options::local_address(descriptor.as_fd())
            .map_err(|error| Error::os(local.to_string(), "getsockname", error))?;
        let offload = options::enable_offload(descriptor.as_fd());
        Socket::new(descriptor, bound, Kind::Plain { offload })
    }

    /// A raw IPv4 socket that acts as UDP port `port` of `local`.
    pub(crate) fn raw(local: Ipv4Addr, port: u16) -> Result<Self, Error> {
        let address = SocketAddr::new(IpAddr::V4(local), port);
        let holder = raw::hold_port(address)?;
        let descriptor = raw::open(local, port)?;
        Socket::new(descriptor, address, Kind::Raw { _holder: holder })
    }

    fn new(descriptor: OwnedFd, local: SocketAddr, kind: Kind) -> Result<Self, Error> {
        let receive_buffer_bytes = options::enlarge_buffers(descriptor.as_fd())
            .map_err(|error| Error::os(local.to_string(), "setsockopt", error))?;
        Ok(Socket { descriptor, local, kind, arrival: Arrival::new(ARRIVALS), ask: 1, receive_buffer_bytes })
    }

    /// Address and port that packets leave from.
    pub(crate) fn local(&self) -> SocketAddr {
        self.local
    }

    /// Whether the IPv4 headers are those of a plain socket.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self.kind, Kind::Plain { .. })
    }

    /// What the IPv4 headers of outgoing packets carry.
    pub(crate) fn ipv4_fields(&self) -> Ipv4Fields {
        match self.kind {
            Kind::Plain { .. } => Ipv4Fields::PLAIN_SOCKET,
            Kind::Raw { .. } => raw::IPV4_FIELDS,
        }
    }

    /// What the kernel lets wait here, as it counts (`sk_rcvbuf`).
    pub(crate) fn receive_buffer_bytes(&self) -> usize {
        self.receive_buffer_bytes
    }

    /// Takes what has arrived, at most [`ARRIVALS`] datagrams of the kernel's, and hands each packet to `each`.
    pub(crate) fn receive(&mut self, mut each: impl FnMut(&NetworkHeader, &[u8])) -> io::Result<Left> {
        let asked = self.ask;
        let count = match self.arrival.receive(self.descriptor.as_fd(), asked) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.ask = 1;
                return Ok(Left::Nothing);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Left::Perhaps),
            Err(error) => return Err(error),
        };
        self.ask = (2 * count).clamp(1, ARRIVALS);
        for index in 0..count {
            let (datagram, source, segment) = self.arrival.datagram(index);
            match self.kind {
                Kind::Plain { .. } => {
                    let Some(source) = source else { continue };
                    let header = NetworkHeader::new(source, self.local);
                    for packet in datagram.chunks(segment.max(1)) {
                        each(&header, packet);
                    }
                }
                Kind::Raw { .. } => {
                    if let Some((header, packet)) = raw::parse(datagram, self.local) {
                        each(&header, packet);
                    }
                }
            }
        }
        Ok(match count {
            ARRIVALS => Left::Likely,
            _ if count == asked => Left::Perhaps,
            _ => Left::Nothing,
        })
    }

    /// Sends what `transmission` holds, as far as the kernel takes it; the rest stays in it. How many packets the kernel
    /// refused for good.
    pub(crate) fn send(&mut self, transmission: &mut Transmission) -> u64 {
        match &mut self.kind {
            Kind::Plain { offload } => transmission.send(self.descriptor.as_fd(), offload),
            Kind::Raw { .. } => raw::send(self.descriptor.as_fd(), self.local, transmission),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Socket({} on {})", self.descriptor.as_raw_fd(), self.local)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(address: &str) -> (Socket, Socket) {
        let address: IpAddr = address.parse().unwrap();
        let bind = || Socket::plain(SocketAddr::new(address, 0)).unwrap();
        (bind(), bind())
    }

    fn send_and_receive(address: &str) {
        let (mut from, mut to) = pair(address);
        let sizes = [4128, 4112, 4112, 4112, 60, 24, 24, 24, 24, 1000];
        let mut transmission = Transmission::new();
        for (index, &bytes) in sizes.iter().enumerate() {
            let room = transmission.room().unwrap();
            room[..bytes].fill(index as u8 + 1);
            transmission.push(bytes, to.local());
        }
        assert_eq!(from.send(&mut transmission), 0);
        assert!(transmission.is_empty());
        let mut seen = Vec::new();
        let own = to.local();
        for _ in 0..100 {
            to.receive(|header, packet| {
                assert_eq!(header.source, from.local());
                assert_eq!(header.destination, own);
                assert!(packet.iter().all(|&byte| byte == packet[0]));
                seen.push((packet[0] as usize - 1, packet.len()));
            })
            .ok();
            if seen.len() == sizes.len() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(seen, sizes.into_iter().enumerate().collect::<Vec<_>>());
    }

    #[test]
    fn packets_arrive_one_by_one_whatever_the_kernel_joins() {
        send_and_receive("127.0.0.1");
        send_and_receive("::1");
    }

    #[test]
    fn an_address_without_a_way_stops_nobody_else() {
        let (mut from, mut to) = pair("127.0.0.1");
        let mut transmission = Transmission::new();
        for (byte, destination) in [(1, "8.8.8.8:4791".parse().unwrap()), (2, to.local())] {
            for _ in 0..3 {
                transmission.room().unwrap()[..100].fill(byte);
                transmission.push(100, destination);
            }
        }
        assert_eq!(from.send(&mut transmission), 3, "from 127.0.0.1 nothing goes to the world");
        assert!(transmission.is_empty());
        assert!(matches!(from.kind, Kind::Plain { offload: true }), "segmentation is not to blame");
        let mut seen = 0;
        to.receive(|_, packet| {
            assert_eq!(packet, [2; 100]);
            seen += 1;
        })
        .unwrap();
        assert_eq!(seen, 3);
    }

    #[test]
    fn a_taken_port_and_a_strange_address_say_what_to_do() {
        let first = Socket::plain("127.0.0.1:0".parse().unwrap()).unwrap();
        let taken = Socket::plain(first.local()).unwrap_err().to_string();
        assert!(taken.contains("the port is taken"), "{taken}");
        let strange = Socket::plain("192.0.2.1:0".parse().unwrap()).unwrap_err().to_string();
        assert!(strange.contains("no interface has this address"), "{strange}");
    }
}
