//! Puts packets together: headers, payload, padding, ICRC. The one place where payload leaves registered memory.
//!
//! Invariants
//! - A packet has the same bytes whether its payload is copied behind the headers or left in place.
//! - Payload in place is read once here, for the ICRC. Its addresses go out with the packet and are not kept.
//!
//! Cost of a packet of 4 KiB: 220 ns for the CRC and, when it is copied, 100 to 250 ns for the copy, by whether the
//! memory is in the cache.

use super::memory::{RegionMemory, Regions};
use super::pieces::Places;
use super::psn::to_wire;
use super::shared::Link;
use crate::soft::icrc::extend;
use crate::soft::packet::{Bth, Extension, ICRC_BYTES, Opcode, pad_bytes, write_headers};
use crate::verbs::SGE_MAX;

/// Payload of fewer bytes than this is copied behind the headers in any case: a copy out of the cache costs less
/// than two more entries of a gather list.
pub const IN_PLACE_BYTES_MIN: usize = 1024;

/// What goes into the headers of a packet.
pub(crate) struct Head {
    pub(crate) opcode: Opcode,
    pub(crate) psn: u64,
    pub(crate) solicited: bool,
    pub(crate) ack_request: bool,
    pub(crate) extension: Extension,
}

/// What follows them.
pub(crate) enum Payload<'a> {
    Inline(&'a [u8]),
    Memory(Places),
}

impl Payload<'_> {
    pub(crate) const NONE: Payload<'static> = Payload::Inline(&[]);

    fn length_bytes(&self) -> usize {
        match self {
            Payload::Inline(bytes) => bytes.len(),
            Payload::Memory(places) => places.length_bytes(),
        }
    }
}

/// A piece of memory that a packet is sent from; laid out as `struct iovec`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct MemoryPiece {
    /// Its first byte.
    pub address: *const u8,
    /// Bytes.
    pub length: usize,
}

/// How a packet is spread: `head_bytes` of the buffer, the pieces, `tail_bytes` of the buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) head_bytes: usize,
    pub(crate) tail_bytes: usize,
    pub(crate) memory: [MemoryPiece; SGE_MAX],
    pub(crate) count: usize,
}

impl Spread {
    pub(crate) const EMPTY: Spread = Spread {
        head_bytes: 0,
        tail_bytes: 0,
        memory: [MemoryPiece { address: std::ptr::null(), length: 0 }; SGE_MAX],
        count: 0,
    };
}

/// Where a packet is put together.
pub(crate) struct Output<'a> {
    pub(crate) buffer: &'a mut [u8],
    /// Says that payload may stay in place, and takes how the packet is spread then.
    pub(crate) spread: Option<&'a mut Spread>,
}

impl Link {
    /// Builds a packet; its length in bytes.
    pub(crate) fn assemble<M: RegionMemory>(
        &mut self,
        regions: &Regions<M>,
        head: &Head,
        payload: &Payload<'_>,
        out: &mut Output<'_>,
    ) -> usize {
        let payload_bytes = payload.length_bytes();
        let pad = pad_bytes(payload_bytes);
        let bth = Bth {
            opcode: head.opcode,
            solicited: head.solicited,
            migration: false,
            pad,
            partition_key: self.partition_key,
            destination: self.destination,
            ack_request: head.ack_request,
            psn: to_wire(head.psn),
        };
        let start = write_headers(&bth, &head.extension, out.buffer);
        let end = start + payload_bytes;
        let total = end + pad as usize + ICRC_BYTES;
        if let (Payload::Memory(places), Some(spread)) = (payload, &mut out.spread)
            && payload_bytes >= IN_PLACE_BYTES_MIN
            && self.leave_in_place(regions, places, out.buffer, start, total, spread).is_some()
        {
            return total;
        }
        match payload {
            Payload::Inline(bytes) => out.buffer[start..end].copy_from_slice(bytes),
            Payload::Memory(places) => {
                let mut at = start;
                for &place in places.as_slice() {
                    regions.read(place, &mut out.buffer[at..at + place.length]);
                    at += place.length;
                }
            }
        }
        out.buffer[end..total].fill(0);
        self.outgoing.seal(&mut out.buffer[..total]);
        if let Some(spread) = &mut out.spread {
            **spread = Spread { head_bytes: total, ..Spread::EMPTY };
        }
        total
    }

    /// Ends a packet whose headers are `buffer[..start]` without copying its payload; padding and ICRC go to
    /// `buffer` behind the headers. `None` if some of the memory has to be copied.
    fn leave_in_place<M: RegionMemory>(
        &mut self,
        regions: &Regions<M>,
        places: &Places,
        buffer: &mut [u8],
        start: usize,
        total: usize,
        spread: &mut Spread,
    ) -> Option<()> {
        let tail_bytes = total - start - places.length_bytes();
        let mut crc = extend(self.outgoing.start(total, buffer[4]), &buffer[..start]);
        for (piece, &place) in spread.memory.iter_mut().zip(places.as_slice()) {
            let bytes = regions.bytes(place)?;
            crc = extend(crc, bytes);
            *piece = MemoryPiece { address: bytes.as_ptr(), length: bytes.len() };
        }
        let (padding, icrc) = buffer[start..start + tail_bytes].split_at_mut(tail_bytes - ICRC_BYTES);
        padding.fill(0);
        icrc.copy_from_slice(&extend(crc, padding).to_le_bytes());
        (spread.head_bytes, spread.tail_bytes, spread.count) = (start, tail_bytes, places.as_slice().len());
        Some(())
    }
}
