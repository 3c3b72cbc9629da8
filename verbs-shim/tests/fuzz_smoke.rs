//! The functions of the fuzz targets, with random bytes: a look at them where cargo-fuzz is not installed.

#[path = "../fuzz/src/lib.rs"]
mod soft_fuzz;

use rand::{Rng, SeedableRng};

#[test]
fn random_bytes_panic_neither_parser_nor_engine() {
    let rounds = if cfg!(debug_assertions) { 1_000 } else { 20_000 };
    for seed in 0..rounds {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let mut data = vec![0u8; random.random_range(0..3000)];
        random.fill(&mut data[..]);
        // Opcodes of the reliable connection where the engine's packets begin, to get past the first check.
        let mut at = 0;
        while at + 2 < data.len() {
            data[at + 2] %= 24;
            at += 2 + data[at + 1] as usize * 2;
        }
        if std::panic::catch_unwind(|| {
            soft_fuzz::packet(&data);
            soft_fuzz::engine(&data);
        })
        .is_err()
        {
            panic!("seed {seed} fails");
        }
    }
}
