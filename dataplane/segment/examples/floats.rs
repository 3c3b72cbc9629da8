//! Prints what float columns take and how long they take to read, beside plain ones: sizes in bits a value,
//! nanoseconds a value.
//!
//! `cargo run --release -p heliostat-segment --example floats`

#[path = "../tests/columns/mod.rs"]
mod columns;

use std::hint::black_box;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use arrow_array::{Array, ArrayRef, Float32Array, Float64Array};
use columns::plain_float_chunk;
use heliostat_segment::{Chunk, ChunkPredicate, Selection, SimdLevel, encode_chunk};
use hidb::types::DataType;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const ROWS: usize = 131_072;
/// Chunks read in turn, so that plain ones come from memory as they do in a scan.
const CHUNKS: usize = 64;

/// The best of some runs over all of `chunks`, in nanoseconds a value.
fn time(chunks: &[Chunk], mut run: impl FnMut(&Chunk, usize)) -> f64 {
    let best = (0..5).map(|_| {
        let start = Instant::now();
        for chunk in chunks {
            for b in 0..chunk.blocks() {
                run(chunk, b);
            }
        }
        start.elapsed().as_nanos()
    });
    best.min().unwrap_or(0) as f64 / (ROWS * chunks.len()) as f64
}

fn measure(chunks: &[Chunk], range: &ChunkPredicate, tenth: &Selection) -> [f64; 4] {
    let mut values = [0f64; 1024];
    let decode = time(chunks, |chunk, b| {
        chunk.decode_f64(b, &mut values).expect("a sound chunk");
        black_box(&values);
    });
    let compiled = chunks[0].compile(range).expect("floats");
    let compare = time(chunks, |chunk, b| {
        let mut selection = Selection::all(1024);
        chunk.filter(b, &compiled, &mut selection).expect("a sound chunk");
        black_box(&selection);
    });
    let gather = time(chunks, |chunk, b| {
        chunk.gather_f64(b, tenth.rows(1024, &mut [0; 1024]), &mut values).expect("a sound chunk");
        black_box(&values);
    });
    let mut few = Selection::none();
    [7, 300, 301, 900].into_iter().for_each(|row| few.insert(row));
    let take = time(chunks, |chunk, b| {
        chunk.gather_f64(b, few.rows(1024, &mut [0; 1024]), &mut values).expect("a sound chunk");
        black_box(&values);
    });
    [decode, compare, gather, take]
}

/// The value of a row.
type Value = Box<dyn FnMut(usize, &mut ChaCha8Rng) -> f64>;

fn main() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut column = |mut value: Value| -> Vec<f64> { (0..ROWS).map(|row| value(row, &mut rng)).collect() };
    let columns = [
        ("prices, 2 decimals", column(Box::new(|_, rng| rng.random_range(90_000..10_000_000) as f64 / 100.0))),
        ("sensor, 3 decimals", {
            let mut level = 20.0;
            column(Box::new(move |_, rng| {
                level += rng.random_range(-0.05..0.05);
                format!("{level:.3}").parse().unwrap_or(level)
            }))
        }),
        ("integers to 1e6", column(Box::new(|_, rng| rng.random_range(0..1_000_000) as f64))),
        ("random in 0..1", column(Box::new(|_, rng| rng.random()))),
        ("normal, real", {
            column(Box::new(|_, rng| {
                let (a, b): (f64, f64) = (rng.random(), rng.random());
                (-2.0 * (1.0 - a).ln()).sqrt() * (b * std::f64::consts::TAU).cos()
            }))
        }),
        ("random bits", column(Box::new(|_, rng| f64::from_bits(rng.random())))),
    ];
    let mut tenth = Selection::none();
    (0..1024).filter(|row| row * 7 % 10 == 3).for_each(|row| tenth.insert(row));
    for level in [SimdLevel::Portable, SimdLevel::Avx2, SimdLevel::Avx512] {
        if level > SimdLevel::supported() {
            continue;
        }
        SimdLevel::force(level);
        println!(
            "{level:?}; bits a value; ns a value of encode, decode, compare, gather 10%, gather 4 rows (of plain)"
        );
        for (name, values) in &columns {
            for data_type in [DataType::Float64, DataType::Float32] {
                let array: ArrayRef = match data_type {
                    DataType::Float32 => Arc::new(Float32Array::from_iter_values(values.iter().map(|v| *v as f32))),
                    _ => Arc::new(Float64Array::from(values.clone())),
                };
                let start = Instant::now();
                let encoded = encode_chunk("c", &data_type, std::slice::from_ref(&array)).expect("floats");
                let encode = start.elapsed().as_nanos() as f64 / ROWS as f64;
                let mut sorted = values.clone();
                sorted.sort_by(f64::total_cmp);
                let range = ChunkPredicate::F64Range {
                    lo: Bound::Included(sorted[ROWS / 4]),
                    hi: Bound::Excluded(sorted[ROWS / 2]),
                    negated: false,
                };
                let open = || Chunk::open(encoded.bytes.clone().into(), &data_type, ROWS as u32).expect("just encoded");
                let chunks: Vec<Chunk> = (0..CHUNKS).map(|_| open()).collect();
                let ours = measure(&chunks, &range, &tenth);
                let plains: Vec<Chunk> = (0..CHUNKS).map(|_| plain_float_chunk(&array, &data_type)).collect();
                let theirs = measure(&plains, &range, &tenth);
                let cells: Vec<String> =
                    ours.iter().zip(theirs).map(|(ours, plain)| format!("{ours:6.3} ({plain:.3})")).collect();
                println!(
                    "  {name:<20} {data_type:<8} {:<9} {:6.2}  encode {encode:5.1}  {}",
                    encoded.meta.encoding.name(),
                    encoded.bytes.len() as f64 * 8.0 / array.len() as f64,
                    cells.join("  ")
                );
            }
        }
    }
}
