//! Every kernel at every level against a plain reference.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::simd::at_every_level;

mod properties;

fn packing<W: Word + std::fmt::Debug>(rng: &mut ChaCha8Rng) {
    for width in 0..=W::BITS {
        let limit = if width == 64 { u64::MAX } else { (1 << width) - 1 };
        let values: [W; 1024] =
            std::array::from_fn(|i| W::truncate(if i % 97 == 0 { limit } else { rng.random::<u64>() & limit }));
        // Reference: the documented layout, bit by bit.
        let lanes = 1024 / W::BITS;
        let mut expected = vec![0u8; width * 128];
        for (i, value) in values.iter().enumerate() {
            let value: u64 = (*value).into();
            for bit in 0..width {
                let position = (i / lanes) * width + bit;
                let word = position / W::BITS * lanes + i % lanes;
                let at = word * W::BITS + position % W::BITS;
                expected[at / 8] |= ((value >> bit & 1) as u8) << (at % 8);
            }
        }
        at_every_level(|level| {
            let mut packed = vec![0xaa; width * 128];
            W::pack(width, &values, &mut packed);
            assert_eq!(packed, expected, "pack width {width} {level:?}");
            let mut unpacked = MaybeUninit::uninit();
            assert_eq!(W::unpack(width, &packed, &mut unpacked), &values, "unpack width {width} {level:?}");
            if width > 0 {
                for _ in 0..8 {
                    let low = rng.random::<u64>() & limit;
                    let span = (rng.random::<u64>() & limit).min(limit - low);
                    let mut mask = [0u64; 16];
                    for (i, value) in values.iter().enumerate() {
                        let value: u64 = (*value).into();
                        mask[i / 64] |= u64::from(low <= value && value <= low + span) << (i % 64);
                    }
                    let found = W::packed_range_mask(width, &packed, W::truncate(low), W::truncate(span));
                    assert_eq!(found, mask, "compare width {width} {level:?}");
                }
            }
            for i in [0, 1, 63, 64, 500, 1023] {
                assert_eq!(W::get(width, &packed, i), values[i].into());
            }
        });
    }
}

#[test]
fn packed_blocks_have_the_documented_layout_at_every_width_and_level() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    packing::<u8>(&mut rng);
    packing::<u16>(&mut rng);
    packing::<u32>(&mut rng);
    packing::<u64>(&mut rng);
}

fn comparing<W: Word>(rng: &mut ChaCha8Rng) {
    for _ in 0..20 {
        let values: [W; 1024] = std::array::from_fn(|_| W::truncate(rng.random::<u64>()));
        let (low, span) = (rng.random::<u64>(), rng.random::<u64>());
        let (low, span) = (W::truncate(low), W::truncate(span));
        let mask = if W::BITS == 64 { u64::MAX } else { (1 << W::BITS) - 1 };
        let mut expected = [0u64; 16];
        for (i, value) in values.iter().enumerate() {
            let distance = (*value).into().wrapping_sub(low.into()) & mask;
            expected[i / 64] |= u64::from(distance <= span.into()) << (i % 64);
        }
        at_every_level(|level| assert_eq!(W::range_mask(&values, low, span), expected, "{level:?}"));
    }
}

#[test]
fn range_masks_agree_with_scalar_comparison_at_every_level() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    comparing::<u8>(&mut rng);
    comparing::<u16>(&mut rng);
    comparing::<u32>(&mut rng);
    comparing::<u64>(&mut rng);
}

#[test]
fn indices_and_bit_extraction_agree_with_bit_tests_at_every_level() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for density in [0u32, 1, 10, 50, 99, 100] {
        let mut words = [0u64; 16];
        for i in 0..1024 {
            words[i / 64] |= u64::from(rng.random_range(0..100) < density) << (i % 64);
        }
        let expected: Vec<u16> = (0..1024u16).filter(|i| words[*i as usize / 64] >> (i % 64) & 1 == 1).collect();
        at_every_level(|level| {
            let mut out = [7u16; 1024];
            let count = indices(&words, &mut out);
            assert_eq!(&out[..count], expected, "{level:?}");
            let (bits, mask) = (words[3], words[7]);
            let mut extracted = 0;
            for (k, bit) in (0..64).filter(|bit| mask >> bit & 1 == 1).enumerate() {
                extracted |= (bits >> bit & 1) << k;
            }
            assert_eq!(extract_bits(bits, mask), extracted, "{level:?}");
        });
    }
}

#[test]
fn widening_gathering_and_sums_agree_at_every_level() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let words: [u16; 1024] = std::array::from_fn(|_| rng.random());
    let picks: Vec<u16> = (0..300).map(|_| rng.random_range(0..1024)).collect();
    for (base, scale) in [(5u64, 1u64), (u64::MAX - 10, 100), (i64::MIN as u64, 7)] {
        at_every_level(|level| {
            let mut wide = [0i64; 1024];
            widen(&words, base, scale, &mut wide);
            let mut narrow = [0i32; 1024];
            widen(&words, base, scale, &mut narrow);
            let mut some = [0i64; 300];
            gather(&words, &picks, base, scale, &mut some);
            let reference = |word: u16| base.wrapping_add(u64::from(word).wrapping_mul(scale)) as i64;
            for i in 0..1024 {
                assert_eq!(wide[i], reference(words[i]), "{level:?}");
                assert_eq!(narrow[i], reference(words[i]) as i32, "{level:?}");
            }
            for (value, pick) in some.iter().zip(&picks) {
                assert_eq!(*value, reference(words[*pick as usize]), "{level:?}");
            }
            let mut deltas = words;
            deltas[0] = 0;
            prefix_sum(&deltas, base, scale, &mut wide);
            let mut sum = base;
            assert_eq!(wide[0], sum as i64);
            for i in 1..1024 {
                sum = sum.wrapping_add(scale).wrapping_add(deltas[i].into());
                assert_eq!(wide[i], sum as i64, "{level:?}");
            }
        });
    }
}

#[test]
fn float_keys_have_the_order_of_compare_f64_at_every_level() {
    let special =
        [0.0, -0.0, 1.0, -1.0, f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MIN, 5e-324, -5e-324];
    let values: [f64; 1024] = std::array::from_fn(|i| special[i % special.len()]);
    let singles: [f32; 1024] = std::array::from_fn(|i| special[i % special.len()] as f32);
    at_every_level(|level| {
        let mut keys = [0u64; 1024];
        float_keys(&values, &mut keys);
        let mut single_keys = [0u64; 1024];
        float_keys(&singles, &mut single_keys);
        for a in 0..special.len() {
            for b in 0..special.len() {
                let order = hidb::types::compare_f64(values[a], values[b]);
                assert_eq!((keys[a] as i64).cmp(&(keys[b] as i64)), order, "{level:?}");
                let order = hidb::types::compare_f64(singles[a].into(), singles[b].into());
                assert_eq!((single_keys[a] as i64).cmp(&(single_keys[b] as i64)), order, "{level:?}");
            }
        }
    });
}
