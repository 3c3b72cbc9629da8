//! Which rows of a segment are deleted, as it is written on the volume and in the manifest.
//!
//! Owns [`DeletionRecord`]. Commit objects hold one per segment that they take rows from, so that `rebuild` finds them;
//! the manifest holds the newest of every segment. Called by the store.
//!
//! Invariant: a record is the *whole* bitmap of its segment, not what a change added: the newest one says it all.
//!
//! Cost: a Roaring bitmap takes 2 bytes a row where few are deleted, a bit a row where many are, 4 bytes a run where they
//! lie together: at most 64 KiB a segment of 524,288 rows.

use prost::Message;
use roaring::RoaringBitmap;

/// The rows of a segment that are deleted.
#[derive(Clone, PartialEq, Message)]
pub struct DeletionRecord {
    /// The segment.
    #[prost(uint64, tag = "1")]
    pub segment: u64,
    /// How many rows; never 0.
    #[prost(uint64, tag = "2")]
    pub rows: u64,
    /// Their positions in the segment, counted over its row groups, as a Roaring bitmap in its portable format
    /// (<https://github.com/RoaringBitmap/RoaringFormatSpec>).
    #[prost(bytes = "vec", tag = "3")]
    pub bitmap: Vec<u8>,
    /// The commit object that holds it; 0 within that object itself.
    #[prost(uint64, tag = "4")]
    pub commit: u64,
}

impl DeletionRecord {
    /// These rows of a segment, as they go into a commit object.
    pub fn new(segment: u64, positions: &RoaringBitmap) -> Self {
        let mut bitmap = Vec::with_capacity(positions.serialized_size());
        // A Vec takes whatever is written.
        let _ = positions.serialize_into(&mut bitmap);
        DeletionRecord { segment, rows: positions.len(), bitmap, commit: 0 }
    }

    /// The positions of the rows; `None` when the record can't be what was written.
    pub fn positions(&self) -> Option<RoaringBitmap> {
        let mut bytes = self.bitmap.as_slice();
        let positions = RoaringBitmap::deserialize_from(&mut bytes).ok()?;
        (bytes.is_empty() && positions.len() == self.rows && self.rows > 0).then_some(positions)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn records_survive_encoding_and_are_found_wrong_when_they_are(
            some in proptest::collection::btree_set(0u32..524_288, 1..2000),
            run in 0u32..400_000,
            cut in 0usize..1000,
        ) {
            let mut positions: RoaringBitmap = some.iter().copied().collect();
            positions.insert_range(run..run + 30_000);
            positions.optimize();
            let record = DeletionRecord::new(7, &positions);
            let read = DeletionRecord::decode(record.encode_to_vec().as_slice()).unwrap();
            prop_assert_eq!(read.positions().unwrap(), positions);
            let shorter = record.bitmap.len() - 1 - cut % (record.bitmap.len() - 1);
            let cut = DeletionRecord { bitmap: record.bitmap[..shorter].to_vec(), ..record.clone() };
            prop_assert!(cut.positions().is_none());
            let longer = DeletionRecord { bitmap: [record.bitmap.as_slice(), &[0]].concat(), ..record.clone() };
            prop_assert!(longer.positions().is_none());
            let wrong_count = DeletionRecord { rows: record.rows + 1, ..record };
            prop_assert!(wrong_count.positions().is_none());
        }
    }

    #[test]
    fn a_record_of_no_rows_is_none() {
        assert!(DeletionRecord::new(1, &RoaringBitmap::new()).positions().is_none());
    }
}
