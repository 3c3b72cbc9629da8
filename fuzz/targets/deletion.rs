//! Any bytes are a record of deleted rows or none, and what is one says the same when it is written again.
#![no_main]

/// The cell's own module: the cell's crate would bring RocksDB.
#[path = "../../dataplane/src/volume/deletion.rs"]
mod deletion;

use deletion::DeletionRecord;
use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use roaring::RoaringBitmap;

/// Rows that are looked at; a bitmap of few bytes may have 2^32.
const ROWS_MAX: usize = 10_000;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = DeletionRecord::decode(bytes) {
        check(&record);
    }
    // A fuzzer does not guess how many rows a bitmap has: a record that says so.
    if let Ok(positions) = RoaringBitmap::deserialize_from(bytes) {
        check(&DeletionRecord { segment: 7, rows: positions.len(), bitmap: bytes.to_vec(), commit: 0 });
    }
});

fn check(record: &DeletionRecord) {
    let Some(positions) = record.positions() else { return };
    assert!(positions.len() == record.rows && record.rows > 0);
    let some: Vec<u32> = positions.iter().take(ROWS_MAX).collect();
    assert!(some.is_sorted_by(|a, b| a < b) && some.last() <= positions.max().as_ref());
    let again = DeletionRecord::new(record.segment, &positions).positions().expect("what was written reads");
    assert!((&again ^ &positions).is_empty());
}
