//! What both sides tell each other in rdma_cm's private data: memory that the peer may use.
//!
//! RoCE leaves 56 bytes in a request and fills with zeroes what is not used; so the record has a mark.

use crate::connect::RemoteMemory;
use crate::verbs::MemoryKey;

const MAGIC: [u8; 4] = *b"VSM1";
const BYTES: usize = 24;

/// Mark, address, length, key; little endian. Nothing at all if there is no memory to tell of.
pub(super) fn encode(memory: Option<RemoteMemory>) -> Vec<u8> {
    let Some(memory) = memory else { return Vec::new() };
    let mut out = Vec::with_capacity(BYTES);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&memory.address.to_le_bytes());
    out.extend_from_slice(&memory.length.to_le_bytes());
    out.extend_from_slice(&memory.key.0.to_le_bytes());
    out
}

/// What [`encode`] wrote, or `None`: the peer may be a program that knows nothing of this record.
pub(super) fn decode(bytes: &[u8]) -> Option<RemoteMemory> {
    let record: &[u8; BYTES] = bytes.first_chunk()?;
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| record[at + index]));
    let key = u32::from_le_bytes(std::array::from_fn(|index| record[20 + index]));
    let memory = RemoteMemory { address: number(4), length: number(12), key: MemoryKey(key) };
    (record[..4] == MAGIC && memory.address.checked_add(memory.length).is_some()).then_some(memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_come_back(address: u64, length: u64, key: u32, padding in 0usize..33) {
            let memory = RemoteMemory { address, length: length.min(u64::MAX - address), key: MemoryKey(key) };
            let mut bytes = encode(Some(memory));
            bytes.resize(bytes.len() + padding, 0);
            prop_assert!(bytes.len() <= 56);
            prop_assert_eq!(decode(&bytes), Some(memory));
        }

        #[test]
        fn any_bytes_are_a_record_or_none(mut bytes in proptest::collection::vec(any::<u8>(), 0..60), marked: bool) {
            if marked && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&MAGIC);
            }
            if let Some(memory) = decode(&bytes) {
                prop_assert_eq!(&encode(Some(memory))[..], &bytes[..BYTES]);
            }
        }
    }

    #[test]
    fn no_memory_is_no_data() {
        assert!(encode(None).is_empty());
        assert_eq!(decode(&[]), None);
        assert_eq!(decode(&[0; 56]), None);
    }
}
