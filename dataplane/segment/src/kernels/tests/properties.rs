//! Every kernel on generated input: against a reference that shares no code with it, at every level, for every
//! width, and with packed bytes at every distance from an aligned address.

use proptest::prelude::*;

use super::super::floats::{self, Decimal, NOT_EXACT};
use super::*;
use crate::encoding::integers::bounds;
use crate::encoding::{bit_width, delta, packed, runs};
use crate::simd::SimdLevel;

/// The documented layout: value `index` of a block of `width` bits, bit by bit.
fn packed_value(bytes: &[u8], width: usize, index: usize) -> u64 {
    let word = match width {
        0..=8 => 8,
        9..=16 => 16,
        17..=32 => 32,
        _ => 64,
    };
    let lanes = 1024 / word;
    (0..width).fold(0, |value, bit| {
        let position = index / lanes * width + bit;
        let at = (position / word * lanes + index % lanes) * word + position % word;
        value | u64::from(bytes[at / 8] >> (at % 8) & 1) << bit
    })
}

fn low_bits(width: usize) -> u64 {
    if width == 64 { u64::MAX } else { (1 << width) - 1 }
}

/// The bytes `shift` after an aligned address, so that loads cross every boundary there is.
fn misaligned(bytes: &[u8], shift: usize) -> (Vec<u64>, usize) {
    let mut words = vec![0u64; bytes.len() / 8 + 18];
    // SAFETY: every byte of a `u64` may be written, and `u8` has no alignment.
    let (_, all, _) = unsafe { words.align_to_mut::<u8>() };
    all[shift..shift + bytes.len()].copy_from_slice(bytes);
    (words, shift)
}

fn view(words: &[u64], shift: usize, length: usize) -> &[u8] {
    // SAFETY: as above, for reading.
    let (_, all, _) = unsafe { words.align_to::<u8>() };
    &all[shift..shift + length]
}

/// Bit `i` of the result: `test(i)`.
fn mask_of(test: impl Fn(usize) -> bool) -> [u64; 16] {
    let mut mask = [0u64; 16];
    (0..1024).for_each(|i| mask[i / 64] |= u64::from(test(i)) << (i % 64));
    mask
}

fn block() -> impl Strategy<Value = Vec<u64>> {
    // Small, spread, and extreme values, so that ranges have edges to miss.
    let value = prop_oneof![any::<u64>(), 0..300u64, Just(0), Just(u64::MAX), Just(1 << 63)];
    proptest::collection::vec(value, 1024)
}

fn picks() -> impl Strategy<Value = Vec<u16>> {
    prop_oneof![
        proptest::sample::subsequence((0..1024u16).collect::<Vec<_>>(), 0..30),
        proptest::sample::subsequence((0..1024u16).collect::<Vec<_>>(), 30..1024),
    ]
}

/// Floats with everything that has a bit pattern of its own.
fn any_float() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<u64>().prop_map(f64::from_bits),
        (-1_000_000i64..1_000_000, 0..6i32).prop_map(|(v, e)| v as f64 / 10f64.powi(e)),
        prop::sample::select(vec![0.0, -0.0, f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 5e-324, f64::MAX]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn packed_blocks_of_every_width_decode_compare_and_are_taken_from_any_address(
        values in block(), picks in picks(), shift in 0..130usize,
        base in any::<u64>(), scale in prop_oneof![Just(1u64), any::<u64>()], (a, b) in any::<(u64, u64)>(),
    ) {
        for width in 0..=64 {
            let limit = low_bits(width);
            let signed: Vec<i64> = values.iter().map(|value| (value & limit) as i64).collect();
            // One range by its ends, one that touches the greatest value.
            let (low, high) = ((a & limit).min(b & limit), (a & limit).max(b & limit));
            let ranges = [(low, high), (limit - (limit & 3), limit)];
            let expected = mask_of(|i| ranges.iter().any(|(l, h)| (*l..=*h).contains(&(signed[i] as u64))));
            let mut first: Option<Vec<u8>> = None;
            at_every_level(|level| {
                let mut bytes = Vec::new();
                packed::encode(&signed, 0, width, &mut bytes);
                assert_eq!(first.get_or_insert_with(|| bytes.clone()), &bytes, "width {width} {level:?}");
                let (words, shift) = misaligned(&bytes, shift);
                let bytes = view(&words, shift, bytes.len());
                let value = |i: usize| base.wrapping_add((signed[i] as u64).wrapping_mul(scale)) as i64;
                let mut wide = [0i64; 1024];
                packed::decode(bytes, width, base, scale, &mut wide[..]);
                let mut narrow = [0i16; 1000];
                packed::decode(bytes, width, base, scale, &mut narrow[..]);
                for i in 0..1024 {
                    assert_eq!(wide[i], value(i), "width {width} {level:?}");
                    assert_eq!(packed::get(bytes, width, i), signed[i] as u64);
                }
                assert!((0..1000).all(|i| narrow[i] == value(i) as i16), "width {width} {level:?}");
                let (mut taken, mut words) = (vec![0i64; picks.len()], vec![0u32; picks.len()]);
                packed::take(bytes, width, &picks, base, scale, &mut taken);
                packed::take(bytes, width, &picks, base, scale, &mut words);
                for ((taken, word), pick) in taken.iter().zip(words).zip(&picks) {
                    assert_eq!((*taken, word), (value(usize::from(*pick)), value(usize::from(*pick)) as u32));
                }
                let mut mask = [0xaau64; 16];
                packed::compare(bytes, width, &ranges, &mut mask);
                assert_eq!(mask, expected, "width {width} {level:?}");
                packed::compare(bytes, width, &[], &mut mask);
                assert_eq!(mask, [0; 16]);
            });
            let bytes = first.unwrap_or_default();
            for i in (0..1024).step_by(61) {
                prop_assert_eq!(packed_value(&bytes, width, i), signed[i] as u64);
            }
        }
    }

    #[test]
    fn differences_and_runs_of_any_sequence_decode_and_compare(
        values in block(), shift in 0..70usize, width in 0..=64usize, length in 1..=1024usize, test in any::<u64>(),
        picks in picks(),
    ) {
        // Neighbours at most `width` bits apart, from anywhere.
        let mut value = values[0];
        let steps: Vec<u64> = values.iter().map(|step| step & low_bits(width)).collect();
        let sequence: Vec<i64> = steps[..length].iter().map(|step| {
            value = value.wrapping_add(*step);
            value as i64
        }).collect();
        let repeated: Vec<i64> = (0..length).map(|i| (values[i / 37] % 5) as i64).collect();
        at_every_level(|level| {
            let mut bytes = Vec::new();
            delta::encode(&sequence, 0, width, &mut bytes);
            let (words, shift) = misaligned(&bytes, shift);
            let mut out = [0i64; 1024];
            delta::decode(view(&words, shift, bytes.len()), width, &mut out);
            assert_eq!(&out[..length], &sequence[..], "width {width} {level:?}");
            let picks: Vec<u16> = picks.iter().copied().filter(|row| usize::from(*row) < length).collect();
            for scale in [1, 3] {
                let mut taken = vec![0i64; picks.len()];
                delta::take(view(&words, shift, bytes.len()), width, &picks, 5, scale, &mut taken);
                let value = |row: &u16| sequence[usize::from(*row)].wrapping_mul(scale as i64).wrapping_add(5);
                assert_eq!(taken, picks.iter().map(value).collect::<Vec<_>>(), "width {width} {level:?}");
            }
            bytes.clear();
            let count = usize::from(runs::encode(&repeated, &mut bytes));
            let (words, shift) = misaligned(&bytes, shift);
            let bytes = view(&words, shift, bytes.len());
            runs::decode(bytes, count, &mut out);
            assert_eq!(&out[..length], &repeated[..]);
            let mut mask = [0u64; 16];
            runs::compare(bytes, count, |value| test >> (value & 63) & 1 == 1, &mut mask);
            let expected = mask_of(|i| test >> (out[i] & 63) & 1 == 1);
            assert_eq!(mask, expected, "{level:?}");
            let (min, max) = (sequence.iter().min(), sequence.iter().max());
            assert_eq!((Some(&bounds(&sequence).0), Some(&bounds(&sequence).1)), (min, max));
        });
    }

    #[test]
    fn selections_become_indices_runs_and_compressed_bits(
        words in any::<[u64; 16]>(), thin in any::<[u64; 16]>(), bits in any::<[u64; 16]>(), limit in 0..1100usize,
    ) {
        for words in [words, std::array::from_fn(|i| words[i] & thin[i] & bits[15 - i]), [u64::MAX; 16], [0; 16]] {
            let selection = crate::Selection::from_words(words);
            let expected: Vec<u16> = (0..1024u16).filter(|i| words[usize::from(*i) / 64] >> (i % 64) & 1 == 1).collect();
            at_every_level(|level| {
                let mut out = [9u16; 1024];
                let count = selection.indices(&mut out);
                assert_eq!(&out[..count], &expected[..], "{level:?}");
                let (packed, count) = selection.compress(&bits);
                assert_eq!(count, expected.len());
                for (k, i) in expected.iter().enumerate() {
                    let bit = bits[usize::from(*i) / 64] >> (i % 64) & 1;
                    assert_eq!(packed[k / 64] >> (k % 64) & 1, bit, "{level:?}");
                }
                for (word, bits) in words.iter().zip(bits) {
                    let mut moved = 0u64;
                    (0..64).filter(|i| word >> i & 1 == 1).enumerate().for_each(|(k, i)| moved |= (bits >> i & 1) << k);
                    assert_eq!(extract_bits(bits, *word), moved, "{level:?}");
                }
            });
            let mut by_runs = Vec::new();
            selection.for_each_run(|start, length| by_runs.extend((start..start + length).map(|i| i as u16)));
            prop_assert_eq!(&by_runs, &expected);
            let mut cut = selection;
            cut.truncate(limit);
            let mut rows = Vec::new();
            cut.for_each(|row| rows.push(row as u16));
            prop_assert_eq!(&rows[..], &expected[..limit.min(expected.len())]);
        }
    }

    #[test]
    fn float_kernels_give_the_bits_of_the_portable_loops(
        values in proptest::collection::vec(any_float(), 1024), integers in block(), width in 0..=53usize,
        exponent in 0..=18u8, factor in 0..=18u8, heads in any::<[u16; 8]>(),
    ) {
        let Some(decimal) = Decimal::new(exponent.max(factor), factor.min(exponent)) else { return Ok(()) };
        let tens = |power: u8| format!("1e{power}").parse::<f64>().unwrap_or(f64::NAN);
        let tenths = |power: u8| format!("1e-{power}").parse::<f64>().unwrap_or(f64::NAN);
        let value_of = |v: i64| v as f64 * tens(decimal.factor()) * tenths(decimal.exponent());
        let words: [u64; 1024] = std::array::from_fn(|i| integers[i] & low_bits(width));
        let base = -(1i64 << 51) + (integers[0] & low_bits(50)) as i64;
        let doubles: [f64; 1024] = std::array::from_fn(|i| values[i]);
        let singles: [f32; 1024] = std::array::from_fn(|i| values[i] as f32);
        at_every_level(|level| {
            let (mut wide, mut single) = ([0f64; 1024], [0f32; 1024]);
            floats::decimals(&words, base, decimal, &mut wide);
            floats::decimals(&words, base, decimal, &mut single);
            for (i, word) in words.iter().enumerate() {
                let integer = base + *word as i64;
                if integer.unsigned_abs() <= floats::INTEGER_MAX as u64 {
                    assert_eq!(wide[i].to_bits(), value_of(integer).to_bits(), "{integer} {decimal:?} {level:?}");
                    assert_eq!(single[i].to_bits(), (value_of(integer) as f32).to_bits(), "{level:?}");
                }
                assert_eq!(wide[i].to_bits(), decimal.value::<f64>(integer).to_bits());
            }
            fn fits<F: Float>(values: &[F; 1024], decimal: Decimal, level: SimdLevel) {
                let mut out = [0i64; 1024];
                let fit = floats::fit(&values[..1000], decimal, &mut out[..1000]);
                let hits: Vec<i64> = out[..1000].iter().copied().filter(|v| *v != NOT_EXACT).collect();
                assert_eq!(fit.exact, hits.len());
                assert_eq!(fit.min, hits.iter().copied().min().unwrap_or(i64::MAX));
                assert_eq!(fit.max, hits.iter().copied().max().unwrap_or(i64::MIN));
                for (value, integer) in values.iter().zip(&out[..1000]) {
                    let near = decimal.nearest(value.to_f64());
                    let exact = near.unsigned_abs() <= floats::INTEGER_MAX as u64
                        && decimal.value::<F>(near).bits() == value.bits();
                    assert_eq!(*integer, if exact { near } else { NOT_EXACT }, "{level:?}");
                }
            }
            fits(&doubles, decimal, level);
            fits(&singles, decimal, level);
            let codes: [u8; 1024] = std::array::from_fn(|i| integers[i] as u8);
            let table = heads.map(|head| u64::from(head) << 48);
            let tails: [u64; 1024] = std::array::from_fn(|i| integers[i] >> 16);
            floats::join(&codes, &table, &tails, &mut wide);
            for i in 0..1024 {
                assert_eq!(wide[i].to_bits(), table[usize::from(codes[i] % 8)] | tails[i], "{level:?}");
            }
            let mut keys = [0u64; 1024];
            float_keys(&doubles, &mut keys);
            assert!(keys.iter().zip(&doubles).all(|(key, value)| *key as i64 == order_key(*value)), "{level:?}");
            for pair in doubles.windows(2) {
                let order = hidb::types::compare_f64(pair[0], pair[1]);
                assert_eq!(order_key(pair[0]).cmp(&order_key(pair[1])), order);
                if !pair[0].is_nan() {
                    assert_eq!(value_of_key(order_key(pair[0])), pair[0]);
                }
            }
            let codes: Vec<u32> = integers[..width].iter().map(|v| *v as u32).collect();
            assert_eq!(greatest(&codes), codes.iter().copied().max().unwrap_or(0));
        });
    }
}

#[test]
fn widths_are_the_bits_of_the_greatest_value() {
    for width in 0..=64 {
        assert_eq!(bit_width(low_bits(width)), width);
        assert!(width == 0 || bit_width(1 << (width - 1)) == width);
    }
}
