//! Any bytes are a chunk or a typed error, and every way to read a chunk gives values or an error: the same at
//! every SIMD level, and the same for a row whether its block is decoded whole or the row is gathered.
//!
//! Input: column type `u8`, constants of the predicates (16 bytes), chunk. The row count is what the chunk's
//! header says, so that a chunk of the corpus stays one.
#![no_main]

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use heliostat_segment::{Chunk, ChunkPredicate, Selection, SimdLevel};
use hidb::types::{DataType, VectorElement};
use libfuzzer_sys::fuzz_target;

const CONSTANTS_BYTES: usize = 16;
const ROWS_MAX: u32 = 131_072;
/// Blocks read in full; the others are like them.
const BLOCKS_MAX: usize = 3;
/// A dictionary is asked once per entry and predicate: longer ones only cost time.
const ENTRIES_MAX: usize = 4096;

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else { return };
    let Some((constants, chunk)) = rest.split_first_chunk::<CONSTANTS_BYTES>() else { return };
    let Some(rows) = chunk.get(4..8).and_then(|rows| rows.try_into().ok()).map(u32::from_le_bytes) else { return };
    let data_type = data_type(*kind);
    // A copy that ends where the chunk ends, so that a read past it is seen.
    let bytes = Bytes::from(chunk.to_vec().into_boxed_slice());
    let Ok(chunk) = Chunk::open(bytes, &data_type, rows.min(ROWS_MAX)) else { return };
    if chunk.dictionary().is_some_and(|dictionary| dictionary.len() > ENTRIES_MAX) {
        return;
    }
    let mut seen: Option<(SimdLevel, u64)> = None;
    for level in [SimdLevel::Portable, SimdLevel::Avx2, SimdLevel::Avx512] {
        if level > SimdLevel::supported() {
            continue;
        }
        SimdLevel::force(level);
        let hash = read_everything(&chunk, constants);
        match seen {
            None => seen = Some((level, hash)),
            Some((first, other)) => assert_eq!(hash, other, "{level:?} and {first:?} differ"),
        }
    }
});

fn data_type(kind: u8) -> DataType {
    match kind % 14 {
        0 => DataType::Boolean,
        1 => DataType::Int16,
        2 => DataType::Int32,
        3 => DataType::Int64,
        4 => DataType::Float32,
        5 => DataType::Float64,
        6 => DataType::Decimal { precision: 15, scale: 2 },
        7 => DataType::Decimal { precision: 38, scale: 4 },
        8 => DataType::Text,
        9 => DataType::Bytea,
        10 => DataType::Timestamp { utc: true },
        11 => DataType::Date,
        12 => DataType::Vector { dimension: 3, element: VectorElement::F32 },
        _ => DataType::Vector { dimension: 11, element: VectorElement::Bit },
    }
}

/// One predicate of each kind; those of another lane are refused.
fn predicates(constants: &[u8; CONSTANTS_BYTES]) -> Vec<ChunkPredicate> {
    let word = |at: usize| i64::from_le_bytes(std::array::from_fn(|i| constants[at + i]));
    let (a, b) = (word(0), word(8));
    let (lo, hi, negated) = (a.min(b), a.max(b), a & 1 == 1);
    let (low, high) = (f64::from_bits(a as u64), f64::from_bits(b as u64));
    let text = |range: std::ops::Range<usize>| constants[range].to_vec();
    vec![
        ChunkPredicate::IsNull,
        ChunkPredicate::IsNotNull,
        ChunkPredicate::Never,
        ChunkPredicate::I64Range { lo, hi, negated },
        ChunkPredicate::I64Range { lo: lo >> 40, hi: hi >> 40, negated: !negated },
        ChunkPredicate::I64Set { values: (0..12).map(|k| a >> (k * 5)).collect(), negated },
        ChunkPredicate::I128Range { lo: i128::from(lo) << 20, hi: i128::from(hi) << 20, negated },
        ChunkPredicate::I128Set { values: (0..12).map(|k| i128::from(b) >> (k * 5)).collect(), negated },
        ChunkPredicate::F64Range { lo: Bound::Included(low), hi: Bound::Excluded(high), negated },
        ChunkPredicate::F64Range { lo: Bound::Excluded((a >> 40) as f64), hi: Bound::Unbounded, negated: !negated },
        ChunkPredicate::Bool(negated),
        ChunkPredicate::BytesRange { lo: Bound::Included(text(0..2)), hi: Bound::Excluded(text(8..11)), negated },
        ChunkPredicate::BytesSet { values: Arc::new([text(0..1), text(1..3), text(0..12), Vec::new()]), negated },
        ChunkPredicate::BytesContains {
            prefix: text(3..4),
            needles: Arc::new([text(4..5), text(5..7)]),
            suffix: Vec::new(),
            negated,
        },
        ChunkPredicate::BytesContains {
            prefix: Vec::new(),
            needles: Arc::new([text(4..5)]),
            suffix: Vec::new(),
            negated: !negated,
        },
        ChunkPredicate::Bytes(Arc::new(|value| value.len() % 3 == 1)),
    ]
}

/// A hash of all that a chunk says of itself; errors by their text.
fn read_everything(chunk: &Chunk, constants: &[u8; CONSTANTS_BYTES]) -> u64 {
    let mut hash = DefaultHasher::new();
    (chunk.rows(), chunk.null_count(), chunk.encoded_bytes(), chunk.encoding()).hash(&mut hash);
    let compiled: Vec<_> = predicates(constants).iter().filter_map(|predicate| chunk.compile(predicate).ok()).collect();
    let last = chunk.blocks().saturating_sub(1);
    let blocks = (0..chunk.blocks().min(BLOCKS_MAX)).chain([last, chunk.blocks(), usize::MAX / 4096]);
    for b in blocks {
        read_block(chunk, b, &mut hash);
        for selection in selections(constants) {
            gather(chunk, b, &selection, &mut hash);
            for predicate in &compiled {
                let mut kept = selection;
                let pruned = chunk.prune(b, predicate).map(|said| format!("{said:?}")).map_err(|e| e.to_string());
                let filtered = chunk.filter(b, predicate, &mut kept);
                if let Ok(said) = &filtered {
                    assert_eq!(pruned.as_ref().ok(), Some(&format!("{said:?}")));
                    let mut dropped = kept;
                    dropped.and_not(selection.words());
                    assert!(dropped.is_empty(), "a filter added rows");
                    kept.words().hash(&mut hash);
                }
                (pruned, filtered.is_ok()).hash(&mut hash);
            }
        }
    }
    hash.finish()
}

fn selections(constants: &[u8; CONSTANTS_BYTES]) -> [Selection; 3] {
    let (mut some, mut few) = (Selection::none(), Selection::none());
    (0..1024).filter(|row| constants[row % CONSTANTS_BYTES] >> (row % 8) & 1 == 1).for_each(|row| some.insert(row));
    constants.iter().enumerate().for_each(|(k, at)| few.insert(usize::from(*at) * 4 + k % 4));
    [Selection::all(1024), some, few]
}

/// Whole blocks. Only the block's own rows count: what lies after them is arbitrary.
fn read_block(chunk: &Chunk, b: usize, hash: &mut DefaultHasher) {
    let rows = chunk.block_rows(b);
    fn say<T: Hash, E: ToString>(result: Result<T, E>, hash: &mut DefaultHasher) {
        result.map_err(|error| error.to_string()).hash(hash);
    }
    say(chunk.zone(b).map(|zone| format!("{zone:?}")), hash);
    say(chunk.block_null_count(b), hash);
    let mut words = [0u64; 16];
    say(chunk.validity(b, &mut words).map(|all| (all, words)), hash);
    let (mut integers, mut wide) = ([0i64; 1024], [0i128; 1024]);
    say(chunk.decode_i64(b, &mut integers).map(|()| &integers[..rows]), hash);
    say(chunk.decode_i128(b, &mut wide).map(|()| &wide[..rows]), hash);
    let mut floats = [0f64; 1024];
    say(
        chunk.decode_f64(b, &mut floats).map(|()| floats[..rows].iter().map(|v| v.to_bits()).collect::<Vec<_>>()),
        hash,
    );
    let mut bits = [0u64; 16];
    say(
        chunk.decode_bool(b, &mut bits).map(|()| (0..rows).filter(|i| bits[i / 64] >> (i % 64) & 1 == 1).count()),
        hash,
    );
    let (mut codes, mut lengths) = ([0u32; 1024], [0u32; 1024]);
    say(chunk.codes(b, &mut codes).map(|()| &codes[..rows]), hash);
    if let (Ok(()), Some(dictionary)) = (chunk.codes(b, &mut codes), chunk.dictionary()) {
        for code in &codes[..rows] {
            say(dictionary.bytes(*code), hash);
            say(dictionary.i64(*code), hash);
        }
    }
    say(chunk.lengths(b, &mut lengths).map(|()| &lengths[..rows]), hash);
}

/// Selected rows, and that they are those of the whole block.
fn gather(chunk: &Chunk, b: usize, selection: &Selection, hash: &mut DefaultHasher) {
    let mut rows = [0u16; 1024];
    let mut within = *selection;
    within.and(Selection::all(chunk.block_rows(b)).words());
    let mut positions = [0u16; 1024];
    let wanted = within.rows(chunk.block_rows(b), &mut positions);
    let count = within.indices(&mut rows);
    let rows = &rows[..count];

    let (mut taken, mut all) = ([0i64; 1024], [0i64; 1024]);
    if let Ok(count) = chunk.gather_i64(b, wanted, &mut taken)
        && chunk.decode_i64(b, &mut all).is_ok()
    {
        assert!(taken[..count].iter().eq(rows.iter().map(|row| &all[usize::from(*row)])));
    }
    let (mut taken, mut all) = ([0i128; 1024], [0i128; 1024]);
    if let Ok(count) = chunk.gather_i128(b, wanted, &mut taken)
        && chunk.decode_i128(b, &mut all).is_ok()
    {
        assert!(taken[..count].iter().eq(rows.iter().map(|row| &all[usize::from(*row)])));
    }
    let (mut taken, mut all) = ([0f64; 1024], [0f64; 1024]);
    if let Ok(count) = chunk.gather_f64(b, wanted, &mut taken)
        && chunk.decode_f64(b, &mut all).is_ok()
    {
        let all = rows.iter().map(|row| all[usize::from(*row)].to_bits());
        assert!(taken[..count].iter().map(|value| value.to_bits()).eq(all));
    }
    let (mut taken, mut all) = ([0u32; 1024], [0u32; 1024]);
    if let Ok(count) = chunk.gather_codes(b, wanted, &mut taken)
        && chunk.codes(b, &mut all).is_ok()
    {
        assert!(taken[..count].iter().eq(rows.iter().map(|row| &all[usize::from(*row)])));
    }
    let width = chunk.data_type().fixed_width().unwrap_or(0);
    let mut fixed = vec![0u8; count * width];
    match chunk.gather_fixed(b, wanted, &mut fixed) {
        Ok(count) => (count, fixed).hash(hash),
        Err(error) => error.to_string().hash(hash),
    }
    let (mut ends, mut data) = (Vec::new(), Vec::new());
    match chunk.gather_bytes(b, wanted, &mut ends, &mut data) {
        Ok(count) => {
            assert!(data.len() <= chunk.gather_bytes_max(b, wanted).unwrap_or(usize::MAX));
            (count, ends, data).hash(hash)
        }
        Err(error) => error.to_string().hash(hash),
    }
}
