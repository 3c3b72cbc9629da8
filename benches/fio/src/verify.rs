//! Blocks that say where they belong: what `verify=` writes, and what it finds when it reads them back.
//!
//! Pure. A block begins with a header of 48 bytes, little-endian: magic (8), checksum kind (4), length (4), offset (8),
//! sequence number of the write (8), seed of the job (8), checksum (8) over the 40 bytes before it and the rest of the
//! block. The rest is a pseudo-random function of sequence and seed.
//!
//! Invariants
//! - A block that was written whole checks; any flipped bit, and a whole block of another place, does not.
//! - A whole block of an older write of the same place is found, too, when the reader knows the sequence number.

use crate::job::Checksum;
use crate::pattern::Rng;

const MAGIC: [u8; 8] = *b"HELIOFIO";
const HEADER_BYTES: usize = 48;

/// Smallest block with a header and something behind it.
pub(crate) const BLOCK_BYTES_MIN: u64 = 64;

/// Where and when a block was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub offset: u64,
    pub sequence: u64,
    pub seed: u64,
}

/// Makes the whole of `block` a stamped one.
pub(crate) fn stamp(block: &mut [u8], checksum: Checksum, stamp: Stamp) {
    let length = block.len() as u32;
    let (head, body) = block.split_at_mut(HEADER_BYTES);
    Rng::new(stamp.seed ^ stamp.sequence.rotate_left(32)).fill(body);
    head[..8].copy_from_slice(&MAGIC);
    head[8..12].copy_from_slice(&kind(checksum).to_le_bytes());
    head[12..16].copy_from_slice(&length.to_le_bytes());
    head[16..24].copy_from_slice(&stamp.offset.to_le_bytes());
    head[24..32].copy_from_slice(&stamp.sequence.to_le_bytes());
    head[32..40].copy_from_slice(&stamp.seed.to_le_bytes());
    let sum = sum(checksum, &head[..40], body);
    head[40..48].copy_from_slice(&sum.to_le_bytes());
}

/// What is wrong with the block at `offset`, in one sentence; `sequence` is that of its last write when it is known.
pub(crate) fn check(block: &[u8], checksum: Checksum, offset: u64, sequence: Option<u64>) -> Result<(), String> {
    let u32_at = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().expect("four bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().expect("eight bytes"));
    let wrong = |what: &str, expected: String, found: String| {
        Err(format!("block at offset {offset}, {} bytes: {what}: expected {expected}, found {found}", block.len()))
    };
    if block[..8] != MAGIC {
        let expected = String::from_utf8_lossy(&MAGIC).into_owned();
        return wrong("no header", expected, format!("bytes {:02x?}", &block[..8]));
    }
    if u32_at(8) != kind(checksum) {
        return wrong("checksum kind", kind(checksum).to_string(), u32_at(8).to_string());
    }
    let computed = sum(checksum, &block[..40], &block[HEADER_BYTES..]);
    if u64_at(40) != computed {
        return wrong("checksum", format!("{:#018x}", u64_at(40)), format!("{computed:#018x}"));
    }
    if u32_at(12) as usize != block.len() {
        return wrong("length", block.len().to_string(), u32_at(12).to_string());
    }
    if u64_at(16) != offset {
        return wrong("a block of another place", format!("offset {offset}"), format!("offset {}", u64_at(16)));
    }
    match sequence {
        Some(sequence) if sequence != u64_at(24) => {
            wrong("a block of another write", format!("write {sequence}"), format!("write {}", u64_at(24)))
        }
        _ => Ok(()),
    }
}

fn kind(checksum: Checksum) -> u32 {
    match checksum {
        Checksum::Crc32c => 1,
        Checksum::Xxhash => 2,
    }
}

fn sum(checksum: Checksum, head: &[u8], body: &[u8]) -> u64 {
    match checksum {
        Checksum::Crc32c => crc32c::crc32c_append(crc32c::crc32c(head), body).into(),
        Checksum::Xxhash => {
            use std::hash::Hasher;
            let mut hasher = twox_hash::XxHash64::with_seed(0);
            hasher.write(head);
            hasher.write(body);
            hasher.finish()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn a_whole_block_checks_and_a_flipped_bit_does_not(
            length in 64usize..9000, offset: u64, sequence: u64, seed: u64, bit: usize, xxhash: bool,
        ) {
            let checksum = if xxhash { Checksum::Xxhash } else { Checksum::Crc32c };
            let mut block = vec![0; length];
            stamp(&mut block, checksum, Stamp { offset, sequence, seed });
            proptest::prop_assert_eq!(check(&block, checksum, offset, Some(sequence)), Ok(()));
            let bit = bit % (length * 8);
            block[bit / 8] ^= 1 << (bit % 8);
            proptest::prop_assert!(check(&block, checksum, offset, Some(sequence)).is_err());
        }
    }

    #[test]
    fn misplaced_and_stale_blocks_say_what_was_expected_and_what_was_found() {
        let mut block = vec![0; 512];
        stamp(&mut block, Checksum::Crc32c, Stamp { offset: 4096, sequence: 7, seed: 1 });
        assert_eq!(
            check(&block, Checksum::Crc32c, 8192, None).unwrap_err(),
            "block at offset 8192, 512 bytes: a block of another place: expected offset 8192, found offset 4096"
        );
        assert_eq!(
            check(&block, Checksum::Crc32c, 4096, Some(9)).unwrap_err(),
            "block at offset 4096, 512 bytes: a block of another write: expected write 9, found write 7"
        );
        assert!(check(&[0; 512], Checksum::Crc32c, 0, None).unwrap_err().contains("no header"));
    }
}
