//! The invariant CRC of RoCEv2: a CRC-32 (the polynomial of Ethernet) over everything that no router changes.
//! (IBA volume 1 chapter 7.8.1; annex A17.3.3; interoperates with the kernel's
//! `drivers/infiniband/sw/rxe/rxe_icrc.c`.)
//!
//! Covered, in order: eight bytes of ones for the link header that RoCEv2 does not have; the IP header with
//! type of service, time to live and checksum (IPv4) or traffic class, flow label and hop limit (IPv6) set to
//! ones; the UDP header with its checksum set to ones; the BTH with its fifth byte (congestion bits) set to
//! ones; the rest of the packet up to the ICRC. The CRC is sent least significant byte first.
//!
//! IPv4's identification and flags are covered. A plain UDP socket neither chooses nor sees them: two soft
//! peers therefore compute with [`Ipv4Fields::PLAIN_SOCKET`] on both sides, whatever segmentation offload
//! writes into the header. Towards the kernel or hardware the caller says what is in the header.
//!
//! Cost: one pass over the packet, and nothing else. crc32fast folds with carry-less multiplication, 512 bits
//! wide where the processor can (VPCLMULQDQ, chosen at run time): 16 to 19 GB/s at 4 KiB on a processor with 128-bit
//! multiplication only, 23 ns for 64 bytes. The headers in front of the BTH are the same for all packets of one
//! length on one path, so that [`PathCrc`] keeps the CRC of the last two lengths. The congestion byte is neither
//! overwritten nor jumped over: a CRC is linear, so that `unmask` puts the difference into the start value.

use std::net::{IpAddr, SocketAddr};

use super::packet::{BTH_BYTES, ICRC_BYTES};

const UDP_HEADER_BYTES: usize = 8;
const IPV4_HEADER_BYTES: usize = 20;
const IPV6_HEADER_BYTES: usize = 40;
const PROTOCOL_UDP: u8 = 17;
/// Of Ethernet, lowest power of x in the highest bit.
const POLYNOMIAL: u32 = 0xedb8_8320;
/// The masked link header, and room for the larger IP header and UDP.
const PSEUDO_BYTES_MAX: usize = 8 + IPV6_HEADER_BYTES + UDP_HEADER_BYTES;

/// What the CRC covers of an IPv4 header beyond addresses and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ipv4Fields {
    /// The identification.
    pub identification: u16,
    /// Flags and fragment offset, as the 16-bit field of the header.
    pub flags_fragment: u16,
}

impl Ipv4Fields {
    /// What a UDP socket with path MTU discovery (`IP_PMTUDISC_DO`) sends: identification 0, don't fragment.
    pub const PLAIN_SOCKET: Ipv4Fields = Ipv4Fields { identification: 0, flags_fragment: 0x4000 };
}

/// The network and UDP header of a datagram, as far as the CRC covers it. Source and destination must be of
/// one address family; an IPv4-mapped IPv6 address counts as IPv6, so map it back first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NetworkHeader {
    /// Sender.
    pub source: SocketAddr,
    /// Receiver.
    pub destination: SocketAddr,
    /// For IPv4; without meaning for IPv6.
    pub ipv4: Ipv4Fields,
}

impl NetworkHeader {
    /// The header of a datagram of a plain UDP socket.
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        NetworkHeader { source, destination, ipv4: Ipv4Fields::PLAIN_SOCKET }
    }
}

/// The CRC of the headers in front of the BTH, remembered per length. One for each direction of a path.
#[derive(Debug, Clone)]
pub struct PathCrc {
    header: NetworkHeader,
    /// (UDP payload bytes, CRC so far) of the last two lengths; length 0 is never one.
    recent: [(u32, u32); 2],
}

impl PathCrc {
    /// For datagrams with this header.
    pub fn new(header: NetworkHeader) -> Self {
        PathCrc { header, recent: [(0, 0); 2] }
    }

    /// The header it was made for.
    pub fn header(&self) -> &NetworkHeader {
        &self.header
    }

    fn prefix(&mut self, payload_bytes: usize) -> u32 {
        let key = payload_bytes as u32;
        if self.recent[0].0 == key {
            return self.recent[0].1;
        }
        if self.recent[1].0 == key {
            self.recent.swap(0, 1);
            return self.recent[0].1;
        }
        self.recent[1] = self.recent[0];
        self.recent[0] = (key, pseudo_header_crc(&self.header, payload_bytes));
        self.recent[0].1
    }

    /// The CRC in front of a packet of `packet_bytes` (ICRC included) whose fifth byte is `congestion`. Extend it
    /// by everything up to the ICRC, as it is on the wire.
    fn start(&mut self, packet_bytes: usize, congestion: u8) -> u32 {
        self.prefix(packet_bytes) ^ unmask(congestion)
    }

    /// The CRC of everything up to the end of `headers`, the front of a packet of `packet_bytes` (ICRC included). To be
    /// extended by the rest, up to the ICRC.
    ///
    /// # Panics
    /// If `headers` is shorter than a BTH.
    pub(crate) fn begin(&mut self, packet_bytes: usize, headers: &[u8]) -> u32 {
        extend(self.start(packet_bytes, headers[4]), headers)
    }

    /// Writes the ICRC into the last four bytes of `packet`, a whole UDP payload that starts with a BTH.
    ///
    /// # Panics
    /// If `packet` is shorter than a BTH and an ICRC.
    pub fn seal(&mut self, packet: &mut [u8]) {
        let end = packet.len() - ICRC_BYTES;
        let crc = extend(self.start(packet.len(), packet[4]), &packet[..end]);
        packet[end..].copy_from_slice(&crc.to_le_bytes());
    }

    /// Whether the last four bytes of `packet` are its ICRC. False for anything too short to be a packet.
    pub fn verify(&mut self, packet: &[u8]) -> bool {
        packet.len() >= BTH_BYTES + ICRC_BYTES && verify_after(self.start(packet.len(), packet[4]), packet)
    }
}

/// Whether the last four bytes of `packet` are its ICRC, for a datagram of a header seen once.
pub fn verify(header: &NetworkHeader, packet: &[u8]) -> bool {
    packet.len() >= BTH_BYTES + ICRC_BYTES
        && verify_after(pseudo_header_crc(header, packet.len()) ^ unmask(packet[4]), packet)
}

fn verify_after(start: u32, packet: &[u8]) -> bool {
    let (covered, icrc) = packet.split_at(packet.len() - ICRC_BYTES);
    icrc == extend(start, covered).to_le_bytes()
}

/// The CRC after `bytes`, continued from `crc`.
pub(crate) fn extend(crc: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(crc);
    hasher.update(bytes);
    hasher.finalize()
}

/// The change to the CRC in front of the BTH that makes its fifth byte count as ones although it is
/// `congestion`: the difference of the two, taken back over the four bytes before it.
const fn unmask(congestion: u8) -> u32 {
    const OF_ZERO: u32 = take_back_four_bytes(0xff);
    match congestion {
        0 => OF_ZERO,
        marked => take_back_four_bytes(!marked as u32),
    }
}

/// The difference of two CRC states that becomes `difference` after four bytes, whatever they are.
const fn take_back_four_bytes(mut difference: u32) -> u32 {
    let mut bits = 0;
    while bits < 32 {
        let carried = difference >> 31;
        difference = ((difference ^ (carried * POLYNOMIAL)) << 1) | carried;
        bits += 1;
    }
    difference
}

fn pseudo_header_crc(header: &NetworkHeader, payload_bytes: usize) -> u32 {
    let mut bytes = [0xffu8; PSEUDO_BYTES_MAX];
    let udp_bytes = (payload_bytes + UDP_HEADER_BYTES) as u16;
    let ip = &mut bytes[8..];
    let ip_bytes = match (header.source.ip(), header.destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ip[0] = 0x45;
            ip[2..4].copy_from_slice(&udp_bytes.wrapping_add(IPV4_HEADER_BYTES as u16).to_be_bytes());
            ip[4..6].copy_from_slice(&header.ipv4.identification.to_be_bytes());
            ip[6..8].copy_from_slice(&header.ipv4.flags_fragment.to_be_bytes());
            ip[9] = PROTOCOL_UDP;
            ip[12..16].copy_from_slice(&source.octets());
            ip[16..20].copy_from_slice(&destination.octets());
            IPV4_HEADER_BYTES
        }
        (source, destination) => {
            ip[0] = 0x6f;
            ip[4..6].copy_from_slice(&udp_bytes.to_be_bytes());
            ip[6] = PROTOCOL_UDP;
            ip[8..24].copy_from_slice(&octets(source));
            ip[24..40].copy_from_slice(&octets(destination));
            IPV6_HEADER_BYTES
        }
    };
    let udp = &mut ip[ip_bytes..];
    udp[0..2].copy_from_slice(&header.source.port().to_be_bytes());
    udp[2..4].copy_from_slice(&header.destination.port().to_be_bytes());
    udp[4..6].copy_from_slice(&udp_bytes.to_be_bytes());
    extend(0, &bytes[..8 + ip_bytes + UDP_HEADER_BYTES])
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(source: &str, destination: &str, identification: u16) -> NetworkHeader {
        NetworkHeader {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            ipv4: Ipv4Fields { identification, flags_fragment: 0x4000 },
        }
    }

    /// Bit by bit, over the bytes as they are: the definition, independent of crc32fast and of `PathCrc`.
    fn crc_by_definition(bytes: &[u8]) -> u32 {
        let mut crc = !0u32;
        for &byte in bytes {
            crc ^= byte as u32;
            for _ in 0..8 {
                crc = (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg());
            }
        }
        !crc
    }

    /// A congestion notification captured on a ConnectX-4 Lx (in the tests of scapy's RoCE layer).
    #[test]
    fn a_packet_of_a_connectx_4_verifies() {
        let mut packet = vec![0x81, 0x00, 0xff, 0xff, 0x40, 0x00, 0x01, 0x18, 0, 0, 0, 0];
        packet.extend([0; 16]);
        packet.extend([0x82, 0xfd, 0x00, 0x2a]);
        let header = header("10.0.17.1:0", "10.0.18.1:4791", 0x718c);
        assert!(verify(&header, &packet));
        let mut path = PathCrc::new(header);
        assert!(path.verify(&packet));
        let mut again = packet.clone();
        again[28..].fill(0);
        path.seal(&mut again);
        assert_eq!(again, packet);
    }

    /// An unreliable-connected SEND between two ConnectX ports (in the tests of scapy's RoCE layer).
    #[test]
    fn a_send_only_with_padding_verifies() {
        let psn = 13_571_856u32.to_be_bytes();
        let mut packet = vec![0x24, 0x60, 0xff, 0xff, 0, 0, 0, 211, 0, psn[1], psn[2], psn[3]];
        packet.extend(b"F0\x81\x8b\xe2\x895\xd9\x0e\x9a\x95PT\x01\xbe\x88^P\x00\x00");
        packet.extend(0x78f3_53f3u32.to_be_bytes());
        assert!(verify(&header("192.168.0.7:49152", "192.168.0.7:4791", 1144), &packet));
    }

    #[test]
    fn ipv6_follows_the_definition() {
        let header = header("[2001:db8::1]:49999", "[fe80::2:3]:4791", 0);
        let mut packet = vec![0x0a; 60];
        let mut covered = vec![0xff; 8];
        covered.extend([0x6f, 0xff, 0xff, 0xff, 0, 68, 17, 0xff]);
        covered.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        covered.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 3]);
        covered.extend([0xc3, 0x4f, 0x12, 0xb7, 0, 68, 0xff, 0xff]);
        covered.extend([0x0a, 0x0a, 0x0a, 0x0a, 0xff]);
        covered.extend(&packet[5..56]);
        let expected = crc_by_definition(&covered).to_le_bytes();
        let mut path = PathCrc::new(header);
        for congestion in 0..=255 {
            packet[4] = congestion;
            path.seal(&mut packet);
            assert_eq!(packet[56..], expected);
            assert!(path.verify(&packet) && verify(&header, &packet));
            assert_eq!(packet[4], congestion);
        }
    }

    #[test]
    fn every_length_follows_the_definition() {
        let bytes: Vec<u8> = (0..4200u32).map(|at| (at * 7 / 3) as u8).collect();
        for length in (0..600).chain((600..4200).step_by(37)) {
            let (before, after) = bytes[..length].split_at(length / 3);
            assert_eq!(extend(crc_by_definition(before), after), crc_by_definition(&bytes[..length]));
        }
    }

    #[test]
    fn every_flipped_bit_but_the_congestion_byte_is_seen() {
        let header = header("10.0.0.1:5000", "10.0.0.2:6000", 0);
        let mut packet: Vec<u8> = (0..64).collect();
        let mut path = PathCrc::new(header);
        path.seal(&mut packet);
        for bit in 0..packet.len() * 8 {
            packet[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(path.verify(&packet), bit / 8 == 4, "bit {bit}");
            packet[bit / 8] ^= 1 << (bit % 8);
        }
        for length in [0, 15, 16, 20, 24, 64] {
            assert_eq!(path.verify(&packet[..length]), verify(&header, &packet[..length]));
        }
        let other = NetworkHeader { source: "10.0.0.1:5001".parse().unwrap(), ..header };
        assert!(!verify(&other, &packet));
    }
}
