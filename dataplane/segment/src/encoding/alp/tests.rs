//! ALP blocks against the values they were made of, at every SIMD level, bit by bit.

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::kernels::floats::Decimal;
use crate::kernels::order_key;
use crate::simd::at_every_level;

/// Floats of the kinds that the encoder tells apart, and all kinds of trouble among them.
fn values<F: Float>(shape: usize, rows: usize, trouble: u32, seed: u64) -> Vec<F> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let digits = rng.random_range(0..16);
    let shift = 10f64.powi(rng.random_range(-20..20));
    (0..rows)
        .map(|row| {
            if rng.random_range(0..100) < trouble {
                return F::from_bits(match rng.random_range(0..4) {
                    0 => rng.random(),
                    1 => F::from_f64(-0.0).bits(),
                    // NaNs of every sign and payload, infinities.
                    2 => F::from_f64(f64::NEG_INFINITY).bits() | rng.random::<u64>() & 0xff,
                    _ => rng.random::<u64>() & 0xffff,
                });
            }
            F::from_f64(match shape {
                0 => (rng.random_range(0..100_000) as f64) / 100.0,
                1 => row as f64 * 1e6,
                2 => rng.random::<f64>(),
                3 => (rng.random::<f64>() - 0.5) * shift,
                4 => format!("{:.*}", digits, (rng.random::<f64>() - 0.5) * shift).parse().unwrap_or(0.25),
                5 => rng.random_range(-1i64 << 53..1 << 53) as f64,
                // Around the last integers that a decimal block can say.
                6 => (INTEGER_EDGE + rng.random_range(-3i64..=3) as f64) * if rng.random() { 1.0 } else { -1.0 },
                7 => 20.0 + (row as f64 / 50.0).sin().mul_add(5.0, rng.random::<f64>() / 8.0),
                _ => f64::from_bits(rng.random()),
            })
        })
        .collect()
}

const INTEGER_EDGE: f64 = (1u64 << 51) as f64;
const SHAPES: usize = 9;

fn open<F: Float>(encoded: &EncodedFloats, rows: usize, b: usize) -> Block<'_> {
    let floats = Floats { directory: &encoded.directory, payload: &encoded.payload };
    floats.block::<F>(b, (rows - b * BLOCK_ROWS).min(BLOCK_ROWS)).unwrap()
}

/// Bounds around the values: themselves, their neighbours, and what is in no block.
fn bounds<F: Float>(block: &[F], rng: &mut ChaCha8Rng) -> Vec<(i64, i64)> {
    let mut keys: Vec<i64> = vec![i64::MIN, i64::MAX, 0, -1, order_key(f64::INFINITY), rng.random()];
    for _ in 0..6 {
        let key = order_key(block[rng.random_range(0..block.len())].to_f64());
        keys.extend([key, key.saturating_sub(1), key.saturating_add(1), order_key(value_between(key, rng))]);
    }
    (0..20).map(|_| (keys[rng.random_range(0..keys.len())], keys[rng.random_range(0..keys.len())])).collect()
}

fn value_between(key: i64, rng: &mut ChaCha8Rng) -> f64 {
    crate::kernels::value_of_key(key) * (1.0 + (rng.random::<f64>() - 0.5) / 100.0)
}

fn check<F: Float>(values: &[F], seed: u64) {
    let Some(encoded) = encode(values) else { return };
    assert!(pays(encoded.payload.len(), size_of_val(values)));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for (b, block) in values.chunks(BLOCK_ROWS).enumerate() {
        let bounds = bounds(block, &mut rng);
        let selected: Vec<u16> = (0..block.len() as u16).filter(|_| rng.random_range(0..4) == 0).collect();
        at_every_level(|level| {
            let read = open::<F>(&encoded, values.len(), b);
            let mut out = [F::default(); 1024];
            read.decode(&mut out);
            for (row, (out, value)) in out.iter().zip(block).enumerate() {
                assert_eq!(out.bits(), value.bits(), "row {row} at {level:?}");
            }
            for rows in [&selected[..], &selected[..selected.len().min(FEW - 1)], &[]] {
                let mut taken = vec![F::default(); rows.len()];
                read.take(Rows::At(rows), &mut taken);
                for (taken, row) in taken.iter().zip(rows) {
                    assert_eq!(taken.bits(), block[usize::from(*row)].bits(), "row {row} at {level:?}");
                }
            }
            let mut taken = vec![F::default(); block.len()];
            read.take(Rows::All(block.len()), &mut taken);
            assert!(taken.iter().zip(block).all(|(taken, value)| taken.bits() == value.bits()));
            for (lo, hi) in &bounds {
                let mut few = Selection::none();
                selected.iter().take(FEW - 1).for_each(|row| few.insert(usize::from(*row)));
                for selection in [Selection::all(block.len()), few] {
                    let mut mask = [0u64; 16];
                    read.compare::<F>(*lo, *hi, &selection, &mut mask);
                    selection.for_each(|row| {
                        let key = order_key(block[row].to_f64());
                        let hit = mask[row / 64] >> (row % 64) & 1 == 1;
                        assert_eq!(hit, *lo <= key && key <= *hi, "row {row}, key {key} in {lo}..={hi} at {level:?}");
                    });
                }
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_encoded_reads_compares_and_is_taken_bit_by_bit(
        shape in 0..SHAPES, rows in 1..2600usize, trouble in prop_oneof![Just(0u32), Just(1), Just(8)],
        seed in any::<u64>(),
    ) {
        check(&values::<f64>(shape, rows, trouble, seed), seed);
        check(&values::<f32>(shape, rows, trouble, seed), seed);
    }

    #[test]
    fn a_block_of_any_bytes_is_refused_or_read_within_its_bounds(
        kind in 0..4u8, width in 0..70u8, exceptions in 0..40u16, offset in 0..40u32, head in any::<[u8; 24]>(),
        bytes in proptest::collection::vec(any::<u8>(), 0..9000), lo in any::<i64>(), hi in any::<i64>(),
    ) {
        let mut directory = vec![0u8; 16];
        directory.extend(offset.to_le_bytes());
        directory.extend([kind, width]);
        directory.extend(exceptions.to_le_bytes());
        let mut payload = vec![0u8; offset as usize];
        payload.extend(head.map(|byte| if byte < 128 { byte % 20 } else { byte }));
        payload.extend(bytes);
        let floats = Floats { directory: &directory, payload: &payload };
        fn read<F: Float>(floats: &Floats<'_>, lo: i64, hi: i64) {
            let Ok(block) = floats.block::<F>(0, 1000) else { return };
            let mut out = [F::default(); 1024];
            block.decode(&mut out);
            let mut some = [F::default(); 3];
            block.take(Rows::At(&[0, 5, 999]), &mut some);
            for (some, row) in some.iter().zip([0, 5, 999]) {
                assert_eq!(some.bits(), out[row].bits());
            }
            block.compare::<F>(lo, hi, &Selection::all(1000), &mut [0; 16]);
        }
        read::<f64>(&floats, lo, hi);
        read::<f32>(&floats, lo, hi);
    }

    #[test]
    fn floats_of_integers_keep_their_order(
        exponent in 0..=18u8, factor in 0..=18u8, integer in -(1i64 << 51)..(1i64 << 51), step in 1..1000i64,
    ) {
        if let Some(decimal) = Decimal::new(exponent, factor) {
            let next = (integer + step).min(1 << 51);
            prop_assert!(decimal.value::<f64>(integer) <= decimal.value::<f64>(next));
            prop_assert!(decimal.value::<f32>(integer) <= decimal.value::<f32>(next));
        }
    }
}

#[test]
fn each_kind_of_floats_gets_the_block_made_for_it() {
    let kinds = |values: &[f64]| encode(values).map(|encoded| encoded.kinds);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let prices: Vec<f64> = (0..4096).map(|_| f64::from(rng.random_range(0..1_000_000)) / 100.0).collect();
    let random: Vec<f64> = (0..4096).map(|_| rng.random()).collect();
    let noise: Vec<f64> = (0..4096).map(|_| f64::from_bits(rng.random())).collect();
    assert_eq!(kinds(&prices), Some([0, 4, 0]));
    assert_eq!(kinds(&random), Some([0, 0, 4]));
    assert_eq!(kinds(&noise), None);
    for (other, expected) in [(&random, [0, 2, 1]), (&noise, [1, 2, 0])] {
        let mixed: Vec<f64> = [&prices[..1024], &other[..1024], &prices[1024..2048]].concat();
        assert_eq!(kinds(&mixed), Some(expected));
        check(&mixed, 1);
    }
}

#[test]
fn special_values_among_decimals_come_back_bit_by_bit() {
    let special = [0x7ff0_0000_0000_0001, 0xfff8_dead_beef_0001, 0x8000_0000_0000_0000, 1, 0x000f_ffff_ffff_ffff];
    let mut values: Vec<f64> = (0..1024).map(|row| f64::from(row) / 10.0).collect();
    for (row, bits) in special.into_iter().enumerate() {
        values[row * 200 + 3] = f64::from_bits(bits);
    }
    values[1023] = f64::INFINITY;
    assert_eq!(encode(&values).map(|encoded| encoded.kinds), Some([0, 1, 0]));
    check(&values, 2);
}
