//! Bytes that lie, with a right checksum: errors or wrong values, never a panic or a runaway allocation.

mod columns;

use columns::{array, types};
use heliostat_segment::*;
use hidb::types::{DataType, Lane};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Calls everything that reads a chunk; results do not matter.
fn exercise(bytes: Vec<u8>, data_type: &DataType, rows: u32) {
    let Ok(chunk) = Chunk::open(bytes.into(), data_type, rows) else { return };
    let predicate = match data_type.lane() {
        Lane::Bool => ChunkPredicate::Bool(true),
        Lane::I64 => ChunkPredicate::I64Range { lo: -5, hi: 5000, negated: false },
        Lane::I128 => ChunkPredicate::I128Set { values: vec![1, 2, 700].into(), negated: true },
        Lane::F64 => ChunkPredicate::F64Range {
            lo: std::ops::Bound::Excluded(1.0),
            hi: std::ops::Bound::Unbounded,
            negated: false,
        },
        Lane::Bytes => ChunkPredicate::BytesContains {
            prefix: vec![],
            needles: vec![b"e".to_vec()].into(),
            suffix: vec![],
            negated: false,
        },
    };
    let compiled = chunk.compile(&predicate);
    for b in 0..chunk.blocks() + 1 {
        let mut sparse = Selection::none();
        sparse.insert(3);
        sparse.insert(700);
        sparse.insert(1023);
        for selection in [Selection::all(1024), sparse] {
            let mut positions = [0u16; 1024];
            let rows = selection.rows(chunk.block_rows(b), &mut positions);
            let mut out = vec![0u8; 64 << 10];
            let _ = chunk.gather_fixed(b, rows, &mut out);
            let _ = chunk.gather_i64(b, rows, &mut [0; 1024]);
            let _ = chunk.gather_codes(b, rows, &mut [0; 1024]);
            let _ = chunk.gather_bytes(b, rows, &mut Vec::new(), &mut Vec::new());
            if let Ok(compiled) = &compiled {
                let mut selection = selection;
                let _ = chunk.filter(b, compiled, &mut selection);
            }
        }
        let _ = chunk.zone(b);
        let _ = chunk.validity(b, &mut [0; 16]);
        let _ = chunk.decode_i64(b, &mut [0; 1024]);
        let _ = chunk.decode_i128(b, &mut [0; 1024]);
        let _ = chunk.decode_f64(b, &mut [0.0; 1024]);
        let _ = chunk.decode_bool(b, &mut [0; 16]);
        let _ = chunk.lengths(b, &mut [0; 1024]);
        let _ = chunk.codes(b, &mut [0; 1024]);
    }
}

#[test]
fn corrupt_chunks_never_panic() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for data_type in types() {
        for shape in 0..columns::SHAPES {
            let array = array(&data_type, shape, 1700, 10, 2);
            let encoded = encode_chunk("c", &data_type, std::slice::from_ref(&array)).unwrap().bytes;
            for round in 0..60 {
                let mut bytes = encoded.clone();
                for _ in 0..rng.random_range(1..4) {
                    // Mostly in the header and directory, where it hurts.
                    let reach = if round % 3 == 0 { bytes.len() } else { bytes.len().min(200) };
                    let at = rng.random_range(0..reach);
                    bytes[at] = if round % 2 == 0 { rng.random() } else { 0xff };
                }
                if round % 5 == 0 {
                    bytes.truncate(rng.random_range(0..bytes.len()));
                }
                exercise(bytes, &data_type, 1700);
            }
        }
    }
}

#[test]
fn random_bytes_are_no_footer_and_no_chunk() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    for _ in 0..2000 {
        let mut bytes = vec![0u8; rng.random_range(0..400)];
        rng.fill(&mut bytes[..]);
        assert!(read_footer(&bytes).is_err());
        assert!(SegmentHeader::parse(&bytes).is_err());
        for data_type in types() {
            exercise(bytes.clone(), &data_type, 10);
        }
    }
}

#[test]
fn a_chunk_is_opened_only_as_what_it_is() {
    let array = array(&DataType::Int64, 1, 100, 0, 1);
    let encoded = encode_chunk("c", &DataType::Int64, &[array]).unwrap().bytes;
    assert!(Chunk::open(encoded.clone().into(), &DataType::Text, 100).is_err());
    assert!(Chunk::open(encoded.clone().into(), &DataType::Int64, 101).is_err());
    assert!(Chunk::open(encoded.into(), &DataType::Int64, 100).is_ok());
}
