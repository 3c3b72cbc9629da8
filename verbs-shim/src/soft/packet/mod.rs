//! The transport headers of RoCEv2 reliable connections: what lies between the UDP header and the end of the
//! datagram. (IBA specification volume 1, chapter 9.2 to 9.6; annex A17 for RoCEv2; interoperates with the
//! kernel's `drivers/infiniband/sw/rxe/rxe_hdr.h`.)
//!
//! ```text
//! | BTH 12 | RETH 16 / AtomicETH 28 / AETH 4 (+ AtomicAckETH 8) | ImmDt 4 | payload | pad 0..3 | ICRC 4 |
//! ```
//!
//! Invariants
//! - [`Packet::parse`] never panics and never reads past the slice; it borrows the payload.
//! - A parsed packet has exactly the extension headers that its opcode prescribes, and its payload and pad
//!   together are a multiple of four bytes.
//! - Encoding what was parsed gives the same bytes, reserved bits aside (those are sent as zero).

mod headers;
mod opcode;

use thiserror::Error;

pub use headers::{Aeth, AtomicEth, Bth, Extension, NakCode, Reth, Syndrome, write_headers};
pub use opcode::Opcode;

use headers::{be32, parse_extension};

/// Bytes of the base transport header.
pub const BTH_BYTES: usize = 12;
/// Bytes of the RDMA extended transport header.
pub const RETH_BYTES: usize = 16;
/// Bytes of the ACK extended transport header.
pub const AETH_BYTES: usize = 4;
/// Bytes of the atomic extended transport header.
pub const ATOMIC_ETH_BYTES: usize = 28;
/// Bytes of the atomic ACK extended transport header.
pub const ATOMIC_ACK_ETH_BYTES: usize = 8;
/// Bytes of the immediate data.
pub const IMMEDIATE_BYTES: usize = 4;
/// Bytes of the invariant CRC that ends every packet.
pub const ICRC_BYTES: usize = 4;
/// The largest payload of one packet: the largest path MTU.
pub const PAYLOAD_BYTES_MAX: usize = 4096;
/// The largest packet that the engine builds (a WRITE ONLY with immediate at MTU 4096), ICRC included.
pub const PACKET_BYTES_MAX: usize = BTH_BYTES + RETH_BYTES + IMMEDIATE_BYTES + PAYLOAD_BYTES_MAX + ICRC_BYTES;
/// The UDP port of RoCEv2 (annex A17).
pub const ROCE_V2_UDP_PORT: u16 = 4791;
/// The default partition key: the default partition, full membership.
pub const DEFAULT_PARTITION_KEY: u16 = 0xffff;
/// Packet sequence numbers and queue pair numbers have 24 bits.
pub const MASK_24: u32 = 0x00ff_ffff;

/// Why a datagram is not a packet of a reliable connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ParseError {
    /// Shorter than the headers that its opcode prescribes plus the ICRC.
    #[error("the datagram has {bytes} bytes, its headers and ICRC need {needed}")]
    TooShort {
        /// Bytes of the datagram.
        bytes: usize,
        /// Bytes that the headers and the ICRC need.
        needed: usize,
    },
    /// An opcode of another transport service, or a reserved one.
    #[error("opcode {0:#04x} is not one of the reliable connection's")]
    UnsupportedOpcode(u8),
    /// The transport header version is not 0.
    #[error("transport header version {0} (0 is the only one)")]
    Version(u8),
    /// More pad bytes than bytes after the headers, or a length that is not a multiple of four.
    #[error("{bytes} bytes after the headers with {pad} bytes of padding")]
    Padding {
        /// Bytes between the headers and the ICRC.
        bytes: usize,
        /// The pad count of the BTH.
        pad: u8,
    },
}

/// One packet, its payload borrowed from the datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Base transport header.
    pub bth: Bth,
    /// Extension headers.
    pub extension: Extension,
    /// Payload without padding.
    pub payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Parses a UDP payload. The last four bytes are the ICRC, which is not checked here (see
    /// [`super::icrc`]). Reserved bits are ignored.
    ///
    /// # Errors
    /// [`ParseError`] says what is wrong; no input panics.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, ParseError> {
        let too_short = |needed| ParseError::TooShort { bytes: datagram.len(), needed };
        let Some(base) = datagram.first_chunk::<BTH_BYTES>() else {
            return Err(too_short(BTH_BYTES + ICRC_BYTES));
        };
        let opcode = Opcode::from_byte(base[0]).ok_or(ParseError::UnsupportedOpcode(base[0]))?;
        let version = base[1] & 0x0f;
        if version != 0 {
            return Err(ParseError::Version(version));
        }
        let header_bytes = opcode.header_bytes();
        if datagram.len() < header_bytes + ICRC_BYTES {
            return Err(too_short(header_bytes + ICRC_BYTES));
        }
        let pad = (base[1] >> 4) & 3;
        let body = &datagram[header_bytes..datagram.len() - ICRC_BYTES];
        if !body.len().is_multiple_of(4) || body.len() < pad as usize {
            return Err(ParseError::Padding { bytes: body.len(), pad });
        }
        let bth = Bth {
            opcode,
            solicited: base[1] & 0x80 != 0,
            migration: base[1] & 0x40 != 0,
            pad,
            partition_key: u16::from_be_bytes([base[2], base[3]]),
            destination: be32(base, 4) & MASK_24,
            ack_request: base[8] & 0x80 != 0,
            psn: be32(base, 8) & MASK_24,
        };
        let extension = parse_extension(opcode, &datagram[BTH_BYTES..header_bytes]);
        Ok(Packet { bth, extension, payload: &body[..body.len() - pad as usize] })
    }

    /// Bytes on the wire: headers, payload, padding and ICRC.
    pub fn wire_bytes(&self) -> usize {
        self.bth.opcode.header_bytes() + self.payload.len().next_multiple_of(4) + ICRC_BYTES
    }

    /// Writes the whole packet but for the ICRC, whose four bytes are left untouched at the end, and returns
    /// its length with them. The pad count is computed from the payload.
    ///
    /// # Panics
    /// If `out` is shorter than [`Self::wire_bytes`], or the extension is not the one of the opcode.
    pub fn write(&self, out: &mut [u8]) -> usize {
        let pad = pad_bytes(self.payload.len());
        let header_bytes = write_headers(&Bth { pad, ..self.bth }, &self.extension, out);
        let end = header_bytes + self.payload.len();
        out[header_bytes..end].copy_from_slice(self.payload);
        out[end..end + pad as usize].fill(0);
        end + pad as usize + ICRC_BYTES
    }
}

/// Bytes of padding after a payload of `payload_bytes`.
pub const fn pad_bytes(payload_bytes: usize) -> u8 {
    (payload_bytes.wrapping_neg() & 3) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extension_of(opcode: Opcode, a: u64, b: u64, c: u32, d: u32, e: u64) -> Extension {
        parse_extension(opcode, &{
            let mut bytes = [0u8; 28];
            bytes[..8].copy_from_slice(&a.to_be_bytes());
            bytes[8..12].copy_from_slice(&c.to_be_bytes());
            bytes[12..20].copy_from_slice(&b.to_be_bytes());
            bytes[20..28].copy_from_slice(&e.wrapping_add(d as u64).to_be_bytes());
            bytes
        })
    }

    fn any_packet() -> impl Strategy<Value = (Bth, Extension, Vec<u8>)> {
        let bits = (any::<bool>(), any::<bool>(), any::<bool>(), any::<u16>(), 0..=MASK_24, 0..=MASK_24);
        let words = (any::<u64>(), any::<u64>(), any::<u32>(), any::<u32>(), any::<u64>());
        (0u8..=0x14, bits, words, proptest::collection::vec(any::<u8>(), 0..200)).prop_map(
            |(opcode, (solicited, migration, ack_request, partition_key, destination, psn), w, payload)| {
                let opcode = Opcode::from_byte(opcode).unwrap();
                let pad = pad_bytes(payload.len());
                let bth = Bth { opcode, solicited, migration, pad, partition_key, destination, ack_request, psn };
                (bth, extension_of(opcode, w.0, w.1, w.2, w.3, w.4), payload)
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_parsed_back((bth, extension, payload) in any_packet()) {
            let packet = Packet { bth, extension, payload: &payload };
            let mut out = vec![0xaa; packet.wire_bytes()];
            prop_assert_eq!(packet.write(&mut out), out.len());
            prop_assert_eq!(Packet::parse(&out).unwrap(), packet);
            for cut in 0..out.len() {
                prop_assert!(Packet::parse(&out[..cut]).map_or(true, |p| p.payload.len() < payload.len()));
            }
        }

        #[test]
        fn any_bytes_parse_or_fail_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            if let Ok(packet) = Packet::parse(&bytes) {
                let mut out = vec![0; packet.wire_bytes()];
                packet.write(&mut out);
                let again = Packet::parse(&out).unwrap();
                prop_assert_eq!(again.payload, packet.payload);
                prop_assert_eq!(again.extension, packet.extension);
            }
        }
    }

    #[test]
    fn a_write_only_has_the_bytes_of_the_specification() {
        let bth = Bth {
            opcode: Opcode::WriteOnly,
            solicited: false,
            migration: false,
            pad: 3,
            partition_key: 0xffff,
            destination: 0x000123,
            ack_request: true,
            psn: 0xabcdef,
        };
        let reth = Reth { address: 0x0102_0304_0506_0708, remote_key: 0x1122_3344, length: 5 };
        let packet = Packet { bth, extension: Extension::Rdma(reth), payload: b"hello" };
        let mut out = [0u8; 40];
        assert_eq!(packet.write(&mut out), 40);
        let expected = [
            0x0a, 0x30, 0xff, 0xff, 0x00, 0x00, 0x01, 0x23, 0x80, 0xab, 0xcd, 0xef, // BTH
            1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x22, 0x33, 0x44, 0, 0, 0, 5, // RETH
            b'h', b'e', b'l', b'l', b'o', 0, 0, 0, 0, 0, 0, 0, // payload, pad, ICRC
        ];
        assert_eq!(out, expected);
    }

    #[test]
    fn syndromes_keep_their_byte() {
        for byte in 0..=255 {
            assert_eq!(Syndrome::from_byte(byte).to_byte(), byte);
        }
        assert_eq!(Syndrome::from_byte(0x60), Syndrome::Nak(NakCode::SequenceError));
        assert_eq!(Syndrome::from_byte(0x1f), Syndrome::ACK);
    }

    #[test]
    fn other_services_and_versions_are_refused() {
        let mut bytes = [0u8; 16];
        bytes[0] = 0x64; // UD SEND ONLY
        assert_eq!(Packet::parse(&bytes), Err(ParseError::UnsupportedOpcode(0x64)));
        bytes[0] = 0x04;
        bytes[1] = 0x01;
        assert_eq!(Packet::parse(&bytes), Err(ParseError::Version(1)));
        bytes[1] = 0x30;
        assert_eq!(Packet::parse(&bytes), Err(ParseError::Padding { bytes: 0, pad: 3 }));
        assert_eq!(Packet::parse(&bytes[..15]), Err(ParseError::TooShort { bytes: 15, needed: 16 }));
    }
}
