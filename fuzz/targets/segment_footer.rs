//! Any tail of a segment is a footer or a typed error, any bytes a membership filter or one.
#![no_main]

use bytes::Bytes;
use heliostat_segment::{MembershipFilter, read_footer};
use libfuzzer_sys::fuzz_target;

const TRAILER_BYTES: usize = 48;

fuzz_target!(|tail: &[u8]| {
    let _ = read_footer(tail);
    if let Ok(filter) = MembershipFilter::open(Bytes::copy_from_slice(tail)) {
        for hash in [0, 1, u64::MAX, 0x0123_4567_89ab_cdef] {
            filter.may_hold(hash);
        }
    }
    // A fuzzer does not guess checksums: set them right, so that what they guard is reached.
    let mut tail = tail.to_vec();
    if mend(&mut tail).is_some() {
        let _ = read_footer(&tail);
    }
});

/// Puts the right checksums into a tail, where its trailer says they belong.
fn mend(tail: &mut [u8]) -> Option<()> {
    let start = tail.len().checked_sub(TRAILER_BYTES)?;
    let word = |at: usize| tail.get(start + at..start + at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let (length, offset) = (word(8)?, word(16)?);
    let footer_length = (word(24)? & 0xffff_ffff) as usize;
    let footer = tail.len().checked_sub(usize::try_from(length.checked_sub(offset)?).ok()?)?;
    let footer_crc = crc32c::crc32c(tail.get(footer..footer.checked_add(footer_length)?)?);
    tail[start + 28..start + 32].copy_from_slice(&footer_crc.to_le_bytes());
    let trailer_crc = crc32c::crc32c(&tail[start..start + TRAILER_BYTES - 4]);
    tail[start + TRAILER_BYTES - 4..].copy_from_slice(&trailer_crc.to_le_bytes());
    Some(())
}
