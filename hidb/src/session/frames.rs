//! Frames on a link: in a slot, in a SEND, and the immediate data of a WRITE.
//!
//! In a slot the frame's head (header and body) is padded to a multiple of 64 bytes, so that the payload begins on a
//! 64-byte boundary and is an Arrow batch in place. In a SEND a frame is what it is on a byte stream.
//!
//! Invariants
//! - [`read_slot`] and [`read_send`] take untrusted bytes and lengths: they never panic and never read beyond them.
//! - The head is copied out of a slot before it is looked at: a peer that goes on writing cannot change what was
//!   checked. The payload is lent; with [`Checksum::Full`] it was checked once.

use bytes::Bytes;
use prost::Message;

use super::SLOTS_MAX;
use crate::aligned::align_up;
use crate::error::{Error, ErrorCode, Result};
use crate::frame::{self, Frame, FrameKind, HEADER_BYTES};

/// What is covered by checksums on a link. The reliable connection below has a CRC per packet of its own; these
/// cover what happens before and after the wire: memory, PCIe, a NIC's own buffers, a batch in the wrong slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// CRC32C over header and body, and over the payload; both checked by the receiver before anybody sees a byte.
    #[default]
    Full,
    /// CRC32C over header and body only.
    Header,
    /// None. An exception to the promise that a flipped bit is found: by name only.
    None,
}

impl Checksum {
    /// Its number on the wire.
    pub fn number(self) -> u32 {
        match self {
            Checksum::Full => 0,
            Checksum::Header => 1,
            Checksum::None => 2,
        }
    }

    /// The policy of this number.
    ///
    /// # Errors
    /// `Protocol` for a number that this version does not know.
    pub fn from_number(number: u32) -> Result<Self> {
        match number {
            0 => Ok(Checksum::Full),
            1 => Ok(Checksum::Header),
            2 => Ok(Checksum::None),
            other => Err(Error::new(
                ErrorCode::Protocol,
                format!("checksum policy {other} is not known: 0 is full, 1 header, 2 none"),
            )),
        }
    }

    /// The payload's checksum under this policy.
    pub fn of_payload(self, payload: &[u8]) -> u32 {
        match self {
            Checksum::Full => frame::payload_crc(payload),
            Checksum::Header | Checksum::None => 0,
        }
    }
}

impl std::fmt::Display for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Checksum::Full => "full",
            Checksum::Header => "header",
            Checksum::None => "none",
        })
    }
}

impl std::str::FromStr for Checksum {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        [Checksum::Full, Checksum::Header, Checksum::None]
            .into_iter()
            .find(|policy| policy.to_string() == text)
            .ok_or_else(|| format!("{text:?} is not a checksum policy: full, header or none"))
    }
}

/// The immediate data of a WRITE: the slot in the low 12 bits, the low 20 bits of the request id above.
pub fn immediate(slot: u32, request_id: u64) -> u32 {
    debug_assert!(slot < SLOTS_MAX);
    slot & (SLOTS_MAX - 1) | (request_id as u32) << 12
}

/// The slot that immediate data names.
pub fn slot_of(immediate: u32) -> u32 {
    immediate & (SLOTS_MAX - 1)
}

/// Whether immediate data is that of a request.
pub fn is_of_request(immediate: u32, request_id: u64) -> bool {
    immediate >> 12 == request_id as u32 & 0xf_ffff
}

/// Header and body of a frame for a slot, padded to a multiple of 64 bytes with zeros; the payload follows directly.
///
/// # Errors
/// `LimitExceeded` when head and payload do not fit `slot_bytes`.
pub fn slot_head(
    kind: FrameKind,
    request_id: u64,
    body: &impl Message,
    payload_len: usize,
    payload_crc: u32,
    slot_bytes: usize,
) -> Result<Vec<u8>> {
    let mut head = frame::encode_head(kind, request_id, body, payload_len, payload_crc)?;
    head.resize(align_up(head.len()), 0);
    if head.len() + payload_len > slot_bytes {
        let text = format!("a frame of {} bytes does not fit a slot of {slot_bytes}", head.len() + payload_len);
        return Err(Error::new(ErrorCode::LimitExceeded, text));
    }
    Ok(head)
}

/// The frame in the `written` first bytes of a slot. The payload borrows the slot.
///
/// # Errors
/// `Protocol` for what is no frame; `Corruption` when a checksum of the policy does not match.
pub fn read_slot(slot: &Bytes, written: usize, policy: Checksum) -> Result<Frame> {
    let bytes = slot.get(..written).ok_or_else(|| too_short(written, slot.len()))?;
    let (header, body, start) = read_head(bytes, align_up)?;
    let end = start + header.payload_len as usize;
    if end != written {
        return Err(too_short(end, written));
    }
    let payload = slot.slice(start..end);
    check(&header, &body, &payload, policy)?;
    Ok(Frame { kind: header.kind, request_id: header.request_id, body, payload })
}

/// The frame of a SEND. Copies it: receive buffers are used again at once.
///
/// # Errors
/// As [`read_slot`].
pub fn read_send(bytes: &[u8], policy: Checksum) -> Result<Frame> {
    let (header, body, start) = read_head(bytes, |length| length)?;
    let payload = bytes.get(start..).unwrap_or_default();
    if payload.len() != header.payload_len as usize {
        return Err(too_short(start + header.payload_len as usize, bytes.len()));
    }
    check(&header, &body, payload, policy)?;
    // Arrow reads it in place.
    let payload = match payload {
        [] => Bytes::new(),
        payload => crate::aligned::AlignedBytes::copy_of(payload).into_bytes(),
    };
    Ok(Frame { kind: header.kind, request_id: header.request_id, body, payload })
}

fn read_head(bytes: &[u8], pad: impl Fn(usize) -> usize) -> Result<(frame::FrameHeader, Bytes, usize)> {
    let header: [u8; HEADER_BYTES] =
        bytes.first_chunk().copied().ok_or_else(|| too_short(HEADER_BYTES, bytes.len()))?;
    let header = frame::parse_header(&header)?;
    let end = HEADER_BYTES + header.body_len as usize;
    let body = bytes.get(HEADER_BYTES..end).ok_or_else(|| too_short(end, bytes.len()))?;
    Ok((header, Bytes::copy_from_slice(body), pad(end)))
}

fn check(header: &frame::FrameHeader, body: &[u8], payload: &[u8], policy: Checksum) -> Result<()> {
    match policy {
        Checksum::Full => header.check(body, payload),
        Checksum::Header => header.check_body(body),
        Checksum::None => Ok(()),
    }
}

fn too_short(wanted: usize, found: usize) -> Error {
    Error::new(ErrorCode::Protocol, format!("a frame of {wanted} bytes on a link where {found} bytes arrived"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto;

    fn image(payload: &[u8], policy: Checksum) -> Vec<u8> {
        let body = proto::FilteredResultSet { sequence: 3, rows: 9, ..Default::default() };
        let crc = policy.of_payload(payload);
        let kind = FrameKind::FilteredResultSet;
        let mut bytes = slot_head(kind, 7, &body, payload.len(), crc, 1 << 20).unwrap();
        assert_eq!(bytes.len() % 64, 0);
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn a_frame_comes_out_of_a_slot_as_it_went_in_without_a_copy() {
        for policy in [Checksum::Full, Checksum::Header, Checksum::None] {
            let payload = vec![5; 1000];
            let bytes = Bytes::from(image(&payload, policy));
            let frame = read_slot(&bytes, bytes.len(), policy).unwrap();
            assert_eq!((frame.kind, frame.request_id), (FrameKind::FilteredResultSet, 7));
            assert_eq!(frame.message::<proto::FilteredResultSet>().unwrap().rows, 9);
            assert_eq!(frame.payload, payload);
            assert!(bytes.as_ptr_range().contains(&frame.payload.as_ptr()));
        }
    }

    #[test]
    fn flipped_bits_are_found_as_the_policy_says() {
        let good = image(&[5; 1000], Checksum::Full);
        for at in (0..good.len()).step_by(7) {
            let mut bad = good.clone();
            bad[at] ^= 4;
            let bad = Bytes::from(bad);
            // Padding is nobody's.
            let padding = (42..64).contains(&at);
            assert_eq!(read_slot(&bad, bad.len(), Checksum::Full).is_err(), !padding, "byte {at}");
            if at >= 64 {
                assert!(read_slot(&bad, bad.len(), Checksum::Header).is_ok());
            }
        }
    }

    #[test]
    fn immediate_data_names_slot_and_request() {
        for (slot, request) in [(0, 1), (4095, u64::MAX), (17, 0x12_3456_789a)] {
            let data = immediate(slot, request);
            assert_eq!(slot_of(data), slot);
            assert!(is_of_request(data, request) && !is_of_request(data, request ^ 1));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_frames_or_errors(bytes: Vec<u8>, written: usize) {
            let slot = Bytes::from(bytes);
            let _ = read_slot(&slot, written % (slot.len() + 2), Checksum::None);
            let _ = read_send(&slot, Checksum::None);
        }

        #[test]
        fn damaged_frames_are_frames_or_errors(at: prop::sample::Index, value: u8, cut: prop::sample::Index) {
            let mut bytes = image(&[1; 300], Checksum::None);
            let at = at.index(bytes.len());
            bytes[at] = value;
            let written = cut.index(bytes.len() + 1);
            let slot = Bytes::from(bytes);
            let _ = read_slot(&slot, written, Checksum::None);
            let _ = read_send(&slot[..written], Checksum::None);
        }
    }
}
