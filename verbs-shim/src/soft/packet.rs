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

use thiserror::Error;

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

/// The opcodes of the reliable connection (IBA 9.2, table 38).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// First packet of a SEND of several packets.
    SendFirst = 0x00,
    /// Neither first nor last packet of a SEND.
    SendMiddle = 0x01,
    /// Last packet of a SEND.
    SendLast = 0x02,
    /// Last packet of a SEND with immediate data.
    SendLastImmediate = 0x03,
    /// A SEND of one packet.
    SendOnly = 0x04,
    /// A SEND of one packet with immediate data.
    SendOnlyImmediate = 0x05,
    /// First packet of a WRITE of several packets.
    WriteFirst = 0x06,
    /// Neither first nor last packet of a WRITE.
    WriteMiddle = 0x07,
    /// Last packet of a WRITE.
    WriteLast = 0x08,
    /// Last packet of a WRITE with immediate data.
    WriteLastImmediate = 0x09,
    /// A WRITE of one packet.
    WriteOnly = 0x0a,
    /// A WRITE of one packet with immediate data.
    WriteOnlyImmediate = 0x0b,
    /// Request of a READ.
    ReadRequest = 0x0c,
    /// First packet of a READ's answer.
    ReadResponseFirst = 0x0d,
    /// Neither first nor last packet of a READ's answer.
    ReadResponseMiddle = 0x0e,
    /// Last packet of a READ's answer.
    ReadResponseLast = 0x0f,
    /// A READ's answer in one packet.
    ReadResponseOnly = 0x10,
    /// Acknowledgement, positive or negative.
    Acknowledge = 0x11,
    /// Answer to an atomic operation.
    AtomicAcknowledge = 0x12,
    /// Request of a compare-and-swap.
    CompareSwap = 0x13,
    /// Request of a fetch-and-add.
    FetchAdd = 0x14,
}

impl Opcode {
    /// The opcode of this byte, if it is one that reliable connections use here.
    ///
    /// SEND with invalidate (0x16, 0x17) is left out: the responder refuses it as an invalid request.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        use Opcode::*;
        Some(match byte {
            0x00 => SendFirst,
            0x01 => SendMiddle,
            0x02 => SendLast,
            0x03 => SendLastImmediate,
            0x04 => SendOnly,
            0x05 => SendOnlyImmediate,
            0x06 => WriteFirst,
            0x07 => WriteMiddle,
            0x08 => WriteLast,
            0x09 => WriteLastImmediate,
            0x0a => WriteOnly,
            0x0b => WriteOnlyImmediate,
            0x0c => ReadRequest,
            0x0d => ReadResponseFirst,
            0x0e => ReadResponseMiddle,
            0x0f => ReadResponseLast,
            0x10 => ReadResponseOnly,
            0x11 => Acknowledge,
            0x12 => AtomicAcknowledge,
            0x13 => CompareSwap,
            0x14 => FetchAdd,
            _ => return None,
        })
    }

    /// Whether a requester sends it (the others answer).
    pub const fn is_request(self) -> bool {
        matches!(self as u8, 0x00..=0x0c | 0x13 | 0x14)
    }

    /// Whether it is a packet of a SEND.
    pub const fn is_send(self) -> bool {
        matches!(self as u8, 0x00..=0x05)
    }

    /// Whether it is a packet of a WRITE.
    pub const fn is_write(self) -> bool {
        matches!(self as u8, 0x06..=0x0b)
    }

    /// Whether it is a packet of a READ's answer.
    pub const fn is_read_response(self) -> bool {
        matches!(self as u8, 0x0d..=0x10)
    }

    /// Whether it starts a SEND or WRITE (FIRST or ONLY).
    pub const fn starts_message(self) -> bool {
        matches!(self as u8, 0x00 | 0x04 | 0x05 | 0x06 | 0x0a | 0x0b)
    }

    /// Whether it ends a SEND or WRITE (LAST or ONLY).
    pub const fn ends_message(self) -> bool {
        matches!(self as u8, 0x02..=0x05 | 0x08..=0x0b)
    }

    /// Whether it carries immediate data.
    pub const fn has_immediate(self) -> bool {
        matches!(self as u8, 0x03 | 0x05 | 0x09 | 0x0b)
    }

    /// Bytes of the BTH and of the extension headers of this opcode.
    pub const fn header_bytes(self) -> usize {
        BTH_BYTES
            + match self as u8 {
                0x03 | 0x05 | 0x09 => IMMEDIATE_BYTES,
                0x06 | 0x0a | 0x0c => RETH_BYTES,
                0x0b => RETH_BYTES + IMMEDIATE_BYTES,
                0x0d | 0x0f | 0x10 | 0x11 => AETH_BYTES,
                0x12 => AETH_BYTES + ATOMIC_ACK_ETH_BYTES,
                0x13 | 0x14 => ATOMIC_ETH_BYTES,
                _ => 0,
            }
    }
}

/// Base transport header (IBA 9.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bth {
    /// What the packet is.
    pub opcode: Opcode,
    /// Solicited event: asks the responder to raise a completion event.
    pub solicited: bool,
    /// Migration state bit. Parsed and ignored: path migration is out of scope.
    pub migration: bool,
    /// Bytes of padding after the payload, 0 to 3.
    pub pad: u8,
    /// Partition key.
    pub partition_key: u16,
    /// Destination queue pair number, 24 bits.
    pub destination: u32,
    /// Whether the requester wants an acknowledgement.
    pub ack_request: bool,
    /// Packet sequence number, 24 bits.
    pub psn: u32,
}

/// RDMA extended transport header: READ requests and first packets of WRITEs (IBA 9.3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reth {
    /// Address in the responder's memory region.
    pub address: u64,
    /// Remote key of the region.
    pub remote_key: u32,
    /// Bytes of the whole transfer.
    pub length: u32,
}

/// Atomic extended transport header (IBA 9.3.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AtomicEth {
    /// Address of the eight bytes in the responder's memory region.
    pub address: u64,
    /// Remote key of the region.
    pub remote_key: u32,
    /// The value to swap in, or to add.
    pub swap_or_add: u64,
    /// The value to compare with (compare-and-swap only).
    pub compare: u64,
}

/// Negative acknowledgement codes (IBA 9.7.5.2.8, table 46).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NakCode {
    /// A packet is missing: go back to the PSN of the acknowledgement.
    SequenceError,
    /// The request is malformed, not allowed on this queue pair, or too long.
    InvalidRequest,
    /// Wrong key, range or rights.
    RemoteAccessError,
    /// The responder cannot execute the request for a reason of its own.
    RemoteOperationalError,
    /// Invalid reliable-datagram request; never sent here.
    InvalidRdRequest,
    /// A reserved code.
    Reserved(u8),
}

/// The syndrome of an [`Aeth`] (IBA 9.7.5.2.1, table 43).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syndrome {
    /// Positive; `credits` is the 5-bit credit count, 31 says that credits are not counted.
    Ack {
        /// Encoded end-to-end credits.
        credits: u8,
    },
    /// Receiver not ready; `timer` is the 5-bit code of the time to wait.
    RnrNak {
        /// Encoded delay; `engine::rnr_timer_ns` decodes it.
        timer: u8,
    },
    /// Negative.
    Nak(NakCode),
    /// A reserved syndrome.
    Reserved(u8),
}

impl Syndrome {
    /// A positive acknowledgement that does not count credits.
    pub const ACK: Syndrome = Syndrome::Ack { credits: 31 };

    /// From the byte of the wire.
    pub const fn from_byte(byte: u8) -> Self {
        match (byte >> 5, byte & 31) {
            (0, credits) => Syndrome::Ack { credits },
            (1, timer) => Syndrome::RnrNak { timer },
            (3, 0) => Syndrome::Nak(NakCode::SequenceError),
            (3, 1) => Syndrome::Nak(NakCode::InvalidRequest),
            (3, 2) => Syndrome::Nak(NakCode::RemoteAccessError),
            (3, 3) => Syndrome::Nak(NakCode::RemoteOperationalError),
            (3, 4) => Syndrome::Nak(NakCode::InvalidRdRequest),
            (3, code) => Syndrome::Nak(NakCode::Reserved(code)),
            _ => Syndrome::Reserved(byte),
        }
    }

    /// The byte of the wire.
    pub const fn to_byte(self) -> u8 {
        match self {
            Syndrome::Ack { credits } => credits & 31,
            Syndrome::RnrNak { timer } => 1 << 5 | (timer & 31),
            Syndrome::Nak(code) => {
                3 << 5
                    | match code {
                        NakCode::SequenceError => 0,
                        NakCode::InvalidRequest => 1,
                        NakCode::RemoteAccessError => 2,
                        NakCode::RemoteOperationalError => 3,
                        NakCode::InvalidRdRequest => 4,
                        NakCode::Reserved(code) => code & 31,
                    }
            }
            Syndrome::Reserved(byte) => byte,
        }
    }
}

/// ACK extended transport header (IBA 9.3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aeth {
    /// Positive or negative, and why.
    pub syndrome: Syndrome,
    /// Message sequence number of the responder, 24 bits.
    pub msn: u32,
}

/// The extension headers of a packet, as its opcode prescribes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extension {
    /// None: SEND FIRST, MIDDLE, LAST, ONLY; WRITE MIDDLE, LAST; READ RESPONSE MIDDLE.
    None,
    /// SEND and WRITE LAST with immediate, SEND ONLY with immediate.
    Immediate(u32),
    /// WRITE FIRST and ONLY, READ REQUEST.
    Rdma(Reth),
    /// WRITE ONLY with immediate.
    RdmaImmediate(Reth, u32),
    /// ACKNOWLEDGE, READ RESPONSE FIRST, LAST, ONLY.
    Ack(Aeth),
    /// ATOMIC ACKNOWLEDGE; the number is the value before the operation.
    AtomicAck(Aeth, u64),
    /// COMPARE SWAP, FETCH ADD.
    Atomic(AtomicEth),
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
        if body.len() % 4 != 0 || body.len() < pad as usize {
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

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    (be32(bytes, at) as u64) << 32 | be32(bytes, at + 4) as u64
}

/// `bytes` has the length that [`Opcode::header_bytes`] says, less the BTH.
fn parse_extension(opcode: Opcode, bytes: &[u8]) -> Extension {
    let reth = || Reth { address: be64(bytes, 0), remote_key: be32(bytes, 8), length: be32(bytes, 12) };
    let aeth = || Aeth { syndrome: Syndrome::from_byte(bytes[0]), msn: be32(bytes, 0) & MASK_24 };
    match opcode {
        Opcode::SendLastImmediate | Opcode::SendOnlyImmediate | Opcode::WriteLastImmediate => {
            Extension::Immediate(be32(bytes, 0))
        }
        Opcode::WriteFirst | Opcode::WriteOnly | Opcode::ReadRequest => Extension::Rdma(reth()),
        Opcode::WriteOnlyImmediate => Extension::RdmaImmediate(reth(), be32(bytes, 16)),
        Opcode::ReadResponseFirst | Opcode::ReadResponseLast | Opcode::ReadResponseOnly | Opcode::Acknowledge => {
            Extension::Ack(aeth())
        }
        Opcode::AtomicAcknowledge => Extension::AtomicAck(aeth(), be64(bytes, 4)),
        Opcode::CompareSwap | Opcode::FetchAdd => Extension::Atomic(AtomicEth {
            address: be64(bytes, 0),
            remote_key: be32(bytes, 8),
            swap_or_add: be64(bytes, 12),
            compare: be64(bytes, 20),
        }),
        _ => Extension::None,
    }
}

/// Writes the BTH (with `bth.pad` as given) and the extension headers; returns their length in bytes.
///
/// # Panics
/// If `out` is too short, or the extension is not the one of the opcode.
pub fn write_headers(bth: &Bth, extension: &Extension, out: &mut [u8]) -> usize {
    out[0] = bth.opcode as u8;
    out[1] = (bth.solicited as u8) << 7 | (bth.migration as u8) << 6 | (bth.pad & 3) << 4;
    out[2..4].copy_from_slice(&bth.partition_key.to_be_bytes());
    out[4..8].copy_from_slice(&(bth.destination & MASK_24).to_be_bytes());
    out[8..12].copy_from_slice(&((bth.ack_request as u32) << 31 | (bth.psn & MASK_24)).to_be_bytes());
    let at = BTH_BYTES;
    let end = match *extension {
        Extension::None => at,
        Extension::Immediate(immediate) => put32(out, at, immediate),
        Extension::Rdma(reth) => put_reth(out, at, &reth),
        Extension::RdmaImmediate(reth, immediate) => {
            let at = put_reth(out, at, &reth);
            put32(out, at, immediate)
        }
        Extension::Ack(aeth) => put_aeth(out, at, &aeth),
        Extension::AtomicAck(aeth, original) => {
            let at = put_aeth(out, at, &aeth);
            put64(out, at, original)
        }
        Extension::Atomic(atomic) => {
            let at = put64(out, at, atomic.address);
            let at = put32(out, at, atomic.remote_key);
            let at = put64(out, at, atomic.swap_or_add);
            put64(out, at, atomic.compare)
        }
    };
    assert_eq!(end, bth.opcode.header_bytes(), "extension headers of {:?}", bth.opcode);
    end
}

fn put32(out: &mut [u8], at: usize, value: u32) -> usize {
    out[at..at + 4].copy_from_slice(&value.to_be_bytes());
    at + 4
}

fn put64(out: &mut [u8], at: usize, value: u64) -> usize {
    out[at..at + 8].copy_from_slice(&value.to_be_bytes());
    at + 8
}

fn put_reth(out: &mut [u8], at: usize, reth: &Reth) -> usize {
    let at = put64(out, at, reth.address);
    let at = put32(out, at, reth.remote_key);
    put32(out, at, reth.length)
}

fn put_aeth(out: &mut [u8], at: usize, aeth: &Aeth) -> usize {
    put32(out, at, (aeth.syndrome.to_byte() as u32) << 24 | (aeth.msn & MASK_24))
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
