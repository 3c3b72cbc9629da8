//! The opcodes of the reliable connection, and what each says about its packet.

use super::{AETH_BYTES, ATOMIC_ACK_ETH_BYTES, ATOMIC_ETH_BYTES, BTH_BYTES, IMMEDIATE_BYTES, RETH_BYTES};

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
