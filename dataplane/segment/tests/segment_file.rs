//! The segment as a file: what is built is found again, and damage is found too.

mod columns;

use arrow_array::RecordBatch;
use columns::{array, scalar, types};
use heliostat_segment::*;
use hidb::schema::{Field, Schema};
use hidb::types::{DataType, Scalar};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn identity() -> SegmentIdentity {
    SegmentIdentity { volume_uuid: [9; 16], table_id: 3, segment_id: 77, shard: 5, load_id: b"load-1".to_vec() }
}

fn schema() -> Schema {
    let fields = types().into_iter().enumerate().map(|(i, t)| Field::new(format!("c{i}"), t, true));
    Schema::new(fields.collect()).unwrap()
}

fn batch(schema: &Schema, rows: usize, seed: u64) -> RecordBatch {
    let columns = schema.fields().iter().enumerate().map(|(i, field)| {
        (field.name.clone(), array(&field.data_type, (i + seed as usize) % 10, rows, 15, seed), true)
    });
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

/// A segment of two row groups, and its batches.
fn segment() -> (Vec<u8>, SegmentFooter, Vec<RecordBatch>) {
    let schema = schema();
    let mut builder = SegmentBuilder::new(identity(), schema.clone());
    let batches = vec![batch(&schema, 1500, 1), batch(&schema, 300, 2), batch(&schema, 700, 3)];
    let mut bytes = vec![0u8; PAGE_BYTES];
    for (parts, rowids) in [(&batches[..2], RowIds::From(100)), (&batches[2..], RowIds::From(5000))] {
        assert_eq!(builder.position(), bytes.len() as u64);
        bytes.extend(builder.push(encode_row_group(&schema, parts, rowids).unwrap()).unwrap());
    }
    let finished = builder.finish();
    bytes[..PAGE_BYTES].copy_from_slice(&finished.header);
    bytes.extend(&finished.tail);
    assert_eq!(bytes.len() as u64, finished.length);
    (bytes, finished.footer, batches)
}

#[test]
fn a_segment_is_read_back_from_its_tail_and_chunks() {
    let (bytes, footer, batches) = segment();
    let header = SegmentHeader::parse(&bytes).unwrap();
    assert_eq!((header.table_id, header.segment_id, header.length), (3, 77, bytes.len() as u64));
    let trailer = read_trailer(&bytes[bytes.len() - PAGE_BYTES..]).unwrap();
    let tail = &bytes[bytes.len() - trailer.tail_length() as usize..];
    let read = read_footer(tail).unwrap();
    assert_eq!(format!("{read:?}"), format!("{footer:?}"));
    assert_eq!(read.rows(), 2500);
    let mut rows: Vec<(usize, usize)> = Vec::new();
    for (b, batch) in batches.iter().enumerate() {
        rows.extend((0..batch.num_rows()).map(|row| (b, row)));
    }
    let mut first = 0;
    for group in &read.row_groups {
        let mut rowids = [0i64; 1024];
        for (c, meta) in group.columns.iter().enumerate() {
            assert_eq!(meta.offset % PAGE_BYTES as u64, 0);
            let chunk_bytes = &bytes[meta.offset as usize..][..meta.length as usize];
            verify_chunk(meta, chunk_bytes).unwrap();
            let data_type = read.schema.fields().get(c).map_or(DataType::Int64, |field| field.data_type);
            let chunk = Chunk::open(chunk_bytes.to_vec().into(), &data_type, group.rows).unwrap();
            if c == read.schema.len() {
                chunk.decode_i64(0, &mut rowids).unwrap();
                assert_eq!(rowids[1], group.first_rowid + 1);
                assert!(meta.length < 300, "row ids take {} bytes", meta.length);
                continue;
            }
            let mut nulls = 0;
            for row in 0..group.rows as usize {
                let (b, r) = rows[first + row];
                let value = scalar(batches[b].column(c), &data_type, r);
                nulls += u32::from(value.is_null());
                for zone in [&meta.zone, &read.zones[c]] {
                    if let Some(order) = zone.min.compare(&value) {
                        assert!(order.is_le(), "{zone:?} {value:?}");
                    }
                    let nan = matches!(value, Scalar::F64(v) if v.is_nan());
                    if let Some(order) = zone.max.compare(&value) {
                        assert!(order.is_ge() || (nan && zone.has_nan), "{zone:?} {value:?}");
                    }
                }
            }
            assert_eq!(meta.zone.null_count, nulls);
        }
        first += group.rows as usize;
    }
}

#[test]
fn a_flipped_bit_anywhere_is_found() {
    let (bytes, footer, _) = segment();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let trailer = read_trailer(&bytes).unwrap();
    for _ in 0..3000 {
        let at = rng.random_range(0..bytes.len());
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << rng.random_range(0..8);
        // Padding is read by nobody; everything else must fail.
        let mut found = SegmentHeader::parse(&damaged).is_err() || read_footer(&damaged).is_err();
        let mut used = at < 64
            || (at as u64 >= trailer.footer_offset && at as u64 - trailer.footer_offset < trailer.footer_length.into())
            || at >= bytes.len() - 48;
        for meta in footer.row_groups.iter().flat_map(|group| &group.columns) {
            let range = meta.offset as usize..meta.offset as usize + meta.length as usize;
            used |= range.contains(&at);
            found |= verify_chunk(meta, &damaged[range]).is_err();
        }
        assert_eq!(found, used, "bit flipped at {at}");
    }
}

#[test]
fn a_short_tail_says_how_much_is_needed() {
    let (bytes, _, _) = segment();
    let trailer = read_trailer(&bytes).unwrap();
    let tail = &bytes[bytes.len() - 100..];
    assert_eq!(read_footer(tail), Err(SegmentError::TailTooShort { needed: trailer.tail_length(), given: 100 }));
    assert!(matches!(read_footer(&[]), Err(SegmentError::TailTooShort { .. })));
}

#[test]
fn a_newer_version_is_refused_as_such() {
    let (mut bytes, _, _) = segment();
    let start = bytes.len() - 48;
    bytes[start + 4] = 2;
    let crc = {
        // CRC32C over the trailer without its checksum, computed by the crate under test's dependency.
        crc32c::crc32c(&bytes[start..start + 44])
    };
    bytes[start + 44..].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(read_footer(&bytes), Err(SegmentError::UnsupportedVersion(2)));
}

#[test]
fn long_text_bounds_are_cut_and_the_upper_one_rounded_up() {
    let values = arrow_array::StringArray::from(vec!["m".repeat(200), "z".repeat(100)]);
    let encoded = encode_chunk("t", &DataType::Text, &[std::sync::Arc::new(values)]).unwrap();
    let zone = encoded.meta.zone;
    assert_eq!(zone.min, Scalar::Bytes(vec![b'm'; 64]));
    let mut max = vec![b'z'; 63];
    max.push(b'{');
    assert_eq!(zone.max, Scalar::Bytes(max));
    assert!(!zone.exact);
    let bytes = arrow_array::BinaryArray::from_iter_values([vec![0xffu8; 100], vec![1u8]]);
    let encoded = encode_chunk("b", &DataType::Bytea, &[std::sync::Arc::new(bytes)]).unwrap();
    assert_eq!(encoded.meta.zone.max, Scalar::Null);
}

#[test]
fn null_in_a_column_that_is_not_nullable_is_refused_by_name() {
    let schema = Schema::new(vec![Field::new("key", DataType::Int64, false)]).unwrap();
    let column = array(&DataType::Int64, 1, 100, 50, 1);
    let batch = RecordBatch::try_from_iter_with_nullable([("key", column, true)]).unwrap();
    let error = encode_row_group(&schema, &[batch], RowIds::From(0)).unwrap_err().to_string();
    assert!(error.contains("key") && error.contains("NULL"), "{error}");
}
