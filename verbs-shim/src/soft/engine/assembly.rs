//! Puts packets together: headers, payload, padding, ICRC. The one place where payload leaves registered memory.
//!
//! Payload is copied behind the headers and the ICRC computed over it in one pass (`RegionMemory::read_with_crc`); the
//! kernel copies it again. To gather it in place instead was tried and left out: `sendmsg` of 15 segments then takes a
//! fifth longer, and the memory must not change between the CRC and the call.

use super::memory::{RegionMemory, Regions};
use super::pieces::Places;
use super::psn::to_wire;
use super::shared::Link;
use crate::soft::icrc::extend;
use crate::soft::packet::{Bth, Extension, ICRC_BYTES, Opcode, pad_bytes, write_headers};

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

impl Link {
    /// Builds a packet at the start of `out`; its length in bytes.
    pub(crate) fn assemble<M: RegionMemory>(
        &mut self,
        regions: &Regions<M>,
        head: &Head,
        payload: &Payload<'_>,
        out: &mut [u8],
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
        let start = write_headers(&bth, &head.extension, out);
        let end = start + payload_bytes;
        let covered = end + pad as usize;
        let total = covered + ICRC_BYTES;
        let mut crc = self.outgoing.begin(total, &out[..start]);
        match payload {
            Payload::Inline(bytes) => {
                out[start..end].copy_from_slice(bytes);
                crc = extend(crc, bytes);
            }
            Payload::Memory(places) => {
                let mut at = start;
                for &place in places.as_slice() {
                    crc = regions.read(place, &mut out[at..at + place.length], crc);
                    at += place.length;
                }
            }
        }
        if pad > 0 {
            out[end..covered].fill(0);
            crc = extend(crc, &out[end..covered]);
        }
        out[covered..total].copy_from_slice(&crc.to_le_bytes());
        total
    }
}
