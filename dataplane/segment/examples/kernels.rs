//! Prints nanoseconds per row of filter and decode kernels at every SIMD level, and of encoding.
//!
//! `cargo run --release -p heliostat-segment --example kernels`

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use arrow_array::types::Decimal64Type;
use arrow_array::{ArrayRef, Date32Array, Int64Array, PrimitiveArray, StringArray};
use heliostat_segment::{Chunk, ChunkPredicate, Rows, Selection, SimdLevel, encode_chunk};
use hidb::types::DataType;

const ROWS: usize = 131_072;

/// The best of many runs, in nanoseconds per row.
fn time(mut run: impl FnMut()) -> f64 {
    let best = (0..30).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_nanos()
    });
    best.min().unwrap_or(0) as f64 / ROWS as f64
}

fn chunk(data_type: DataType, array: ArrayRef) -> Chunk {
    let mut bytes = Vec::new();
    let encode = time(|| {
        bytes =
            encode_chunk("c", &data_type, std::slice::from_ref(&array)).map(|chunk| chunk.bytes).unwrap_or_default();
    });
    let length = bytes.len();
    let chunk = Chunk::open(bytes.into(), &data_type, ROWS as u32).expect("a chunk that was just encoded");
    println!(
        "{data_type:>14} {:<10} {:6.2} bits a row, encoded in {encode:6.1} ns a row",
        chunk.encoding().name(),
        length as f64 * 8.0 / ROWS as f64
    );
    chunk
}

fn filter(chunk: &Chunk, predicate: &ChunkPredicate) -> (f64, usize) {
    let compiled = chunk.compile(predicate).expect("a predicate of the chunk's lane");
    let mut kept = 0;
    let best = time(|| {
        kept = 0;
        for b in 0..chunk.blocks() {
            let mut selection = Selection::all(1024);
            chunk.filter(b, &compiled, &mut selection).expect("a sound chunk");
            kept += selection.count();
        }
    });
    (best, kept)
}

fn main() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let decimal = DataType::Decimal { precision: 15, scale: 2 };
    let decimals = |values: Vec<i64>| -> ArrayRef {
        Arc::new(
            PrimitiveArray::<Decimal64Type>::from(values)
                .with_precision_and_scale(15, 2)
                .expect("a valid decimal type"),
        )
    };
    let words = ["carefully", "final", "special", "requests", "pending", "deposits", "sleep", "ironic", "the", "quick"];
    let comments: Vec<String> = (0..ROWS)
        .map(|_| (0..3 + random(3)).map(|_| words[random(10) as usize]).collect::<Vec<_>>().join(" "))
        .collect();
    let mut key = 0;
    let keys: Vec<i64> = (0..ROWS)
        .map(|_| {
            key += if random(4) == 0 { 1 + random(25) as i64 } else { 0 };
            key
        })
        .collect();
    let dates = chunk(DataType::Date, Arc::new(Date32Array::from_iter_values((0..ROWS).map(|_| random(2526) as i32))));
    let discounts = chunk(decimal, decimals((0..ROWS).map(|_| random(11) as i64).collect()));
    let quantities = chunk(decimal, decimals((0..ROWS).map(|_| 100 + 100 * random(50) as i64).collect()));
    let prices = chunk(decimal, decimals((0..ROWS).map(|_| 90_000 + random(10_000_000) as i64).collect()));
    let keys = chunk(DataType::Int64, Arc::new(Int64Array::from(keys)));
    let modes = ["AIR", "FOB", "MAIL", "RAIL", "REG AIR", "SHIP", "TRUCK"];
    let modes =
        chunk(DataType::Text, Arc::new(StringArray::from_iter_values((0..ROWS).map(|_| modes[random(7) as usize]))));
    let comments = chunk(DataType::Text, Arc::new(StringArray::from(comments)));
    let range = |lo, hi| ChunkPredicate::I64Range { lo, hi, negated: false };
    for level in [SimdLevel::Portable, SimdLevel::Avx2, SimdLevel::Avx512] {
        if level > SimdLevel::supported() {
            continue;
        }
        SimdLevel::force(level);
        println!("{level:?}, ns a row");
        let q6 = [
            dates.compile(&range(731, 1095)).expect("date"),
            discounts.compile(&range(5, 7)).expect("discount"),
            quantities.compile(&range(i64::MIN, 2399)).expect("quantity"),
        ];
        let all = time(|| {
            for b in 0..dates.blocks() {
                let mut selection = Selection::all(1024);
                for (chunk, predicate) in [&dates, &discounts, &quantities].into_iter().zip(&q6) {
                    chunk.filter(b, predicate, &mut selection).expect("a sound chunk");
                }
                black_box(&selection);
            }
        });
        println!("  {all:8.3}  filter q6: date, discount, quantity");
        println!("  {:8.3}  filter date range", filter(&dates, &range(731, 1095)).0);
        println!("  {:8.3}  filter price range (24 bits)", filter(&prices, &range(0, 5_000_000)).0);
        println!("  {:8.3}  filter one key of a sorted column", filter(&keys, &range(77_777, 77_777)).0);
        let set = ChunkPredicate::BytesSet { values: vec![b"MAIL".to_vec(), b"SHIP".to_vec()].into(), negated: false };
        println!("  {:8.3}  filter mode in (MAIL, SHIP)", filter(&modes, &set).0);
        let like = ChunkPredicate::BytesContains {
            prefix: Vec::new(),
            needles: vec![b"special".to_vec(), b"requests".to_vec()].into(),
            suffix: vec![],
            negated: false,
        };
        println!("  {:8.3}  filter comment like '%special%requests%'", filter(&comments, &like).0);
        let half: Vec<u16> = (0..1024).filter(|row| row * 7 % 13 < 6).collect();
        for (what, chunk) in [("price", &prices), ("quantity", &quantities), ("date", &dates), ("key", &keys)] {
            let mut out = [0i64; 1024];
            let decode = time(|| {
                for b in 0..chunk.blocks() {
                    chunk.decode_i64(b, &mut out).expect("a sound chunk");
                    black_box(&out);
                }
            });
            let mut bytes = vec![0u8; 8192];
            let gather = time(|| {
                for b in 0..chunk.blocks() {
                    chunk.gather_fixed(b, Rows::At(&half), &mut bytes).expect("a sound chunk");
                    black_box(&bytes);
                }
            });
            println!("  {decode:8.3}  decode {what}; {gather:.3} gather 46% of it");
        }
        let (mut ends, mut data) = ([0u32; 1024], vec![0u8; 1 << 20]);
        for (what, chunk, rows) in [
            ("comment, all rows", &comments, Rows::All(1024)),
            ("comment, 46%", &comments, Rows::At(&half)),
            ("mode, all rows", &modes, Rows::All(1024)),
        ] {
            let gather = time(|| {
                for b in 0..chunk.blocks() {
                    chunk.gather_bytes_into(b, rows, &mut ends, &mut data).expect("a sound chunk");
                    black_box(&data);
                }
            });
            println!("  {gather:8.3}  gather {what}");
        }
    }
}
