//! What a verified clone wrote, and what it found when reading.

use std::collections::HashMap;

use crate::engine::OpKind;
use crate::job::Checksum;
use crate::measure::VerifyStats;
use crate::pattern::Planned;
use crate::verify::{Stamp, check, stamp};

pub(crate) struct Verifier {
    checksum: Checksum,
    seed: u64,
    /// The last write of each block by this clone: file, offset, sequence. None of a job that only reads.
    book: Option<HashMap<(u32, u64), u64>>,
    writes: u64,
    pub(crate) found: VerifyStats,
}

impl Verifier {
    pub(crate) fn new(checksum: Checksum, seed: u64, writes: bool) -> Verifier {
        let book = writes.then(HashMap::new);
        Verifier { checksum, seed, book, writes: 0, found: VerifyStats::default() }
    }

    /// Makes the block that will be written there.
    pub(crate) fn stamp(&mut self, block: &mut [u8], file: u32, offset: u64) {
        self.writes += 1;
        stamp(block, self.checksum, Stamp { offset, sequence: self.writes, seed: self.seed });
        if let Some(book) = &mut self.book {
            book.insert((file, offset), self.writes);
        }
    }

    /// Checks what was read there; whether it is as it was written.
    pub(crate) fn check(&mut self, block: &[u8], file: u32, offset: u64, length: u32) -> bool {
        let sequence = self.book.as_ref().and_then(|book| book.get(&(file, offset)).copied());
        let result = match block.len() == length as usize {
            true => check(block, self.checksum, offset, sequence),
            false => Err(format!("block at offset {offset}: {} of {length} bytes could be read", block.len())),
        };
        let whole = result.is_ok();
        self.found.count(result.err());
        whole
    }

    /// All blocks that were written, in order.
    pub(crate) fn written(&self, length: u32) -> Vec<Planned> {
        let blocks = self.book.iter().flat_map(|book| book.keys());
        let mut blocks: Vec<Planned> =
            blocks.map(|(file, offset)| Planned { kind: OpKind::Read, file: *file, offset: *offset, length }).collect();
        blocks.sort_unstable_by_key(|block| (block.file, block.offset));
        blocks
    }
}
