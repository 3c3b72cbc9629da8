//! The headers one by one: their fields, and their bytes.

use super::{BTH_BYTES, MASK_24, Opcode};

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

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    (be32(bytes, at) as u64) << 32 | be32(bytes, at + 4) as u64
}

/// `bytes` has the length that [`Opcode::header_bytes`] says, less the BTH.
pub(super) fn parse_extension(opcode: Opcode, bytes: &[u8]) -> Extension {
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
