//! Filters on encoded blocks against evaluation value by value.

mod columns;

use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::Arc;

use arrow_array::ArrayRef;
use columns::{SHAPES, array, chunk, scalar, selection, types};
use heliostat_segment::{BlockMatch, ChunkPredicate, SimdLevel};
use hidb::types::{DataType, Lane, Scalar, compare_f64};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The definition of every predicate, on one value.
fn matches(predicate: &ChunkPredicate, value: &Scalar) -> bool {
    match (predicate, value) {
        (ChunkPredicate::IsNull, value) => value.is_null(),
        (_, Scalar::Null) | (ChunkPredicate::Never, _) => false,
        (ChunkPredicate::IsNotNull, _) => true,
        (ChunkPredicate::I64Range { lo, hi, negated }, Scalar::I64(v)) => (lo <= v && v <= hi) != *negated,
        (ChunkPredicate::I64Set { values, negated }, Scalar::I64(v)) => values.contains(v) != *negated,
        (ChunkPredicate::I128Range { lo, hi, negated }, Scalar::I128(v)) => (lo <= v && v <= hi) != *negated,
        (ChunkPredicate::I128Set { values, negated }, Scalar::I128(v)) => values.contains(v) != *negated,
        (ChunkPredicate::Bool(b), Scalar::Bool(v)) => b == v,
        (ChunkPredicate::F64Range { lo, hi, negated }, Scalar::F64(v)) => {
            let above = match lo {
                Bound::Unbounded => true,
                Bound::Included(lo) => compare_f64(*v, *lo) != Ordering::Less,
                Bound::Excluded(lo) => compare_f64(*v, *lo) == Ordering::Greater,
            };
            let below = match hi {
                Bound::Unbounded => true,
                Bound::Included(hi) => compare_f64(*v, *hi) != Ordering::Greater,
                Bound::Excluded(hi) => compare_f64(*v, *hi) == Ordering::Less,
            };
            (above && below) != *negated
        }
        (ChunkPredicate::BytesRange { lo, hi, negated }, Scalar::Bytes(v)) => {
            let range: (Bound<&[u8]>, Bound<&[u8]>) = (lo.as_ref().map(Vec::as_slice), hi.as_ref().map(Vec::as_slice));
            let inside = std::ops::RangeBounds::<[u8]>::contains(&range, v.as_slice());
            inside != *negated
        }
        (ChunkPredicate::BytesSet { values, negated }, Scalar::Bytes(v)) => values.contains(v) != *negated,
        (ChunkPredicate::BytesContains { prefix, needles, suffix, negated }, Scalar::Bytes(v)) => {
            let mut rest = v.as_slice();
            let mut all = rest.starts_with(prefix);
            if all {
                rest = &rest[prefix.len()..];
                for needle in needles.iter() {
                    match rest.windows(needle.len()).position(|window| window == needle.as_slice()) {
                        Some(at) => rest = &rest[at + needle.len()..],
                        None => {
                            all = false;
                            break;
                        }
                    }
                }
            }
            (all && rest.ends_with(suffix)) != *negated
        }
        (ChunkPredicate::Bytes(test), Scalar::Bytes(v)) => test(v),
        (predicate, value) => panic!("{predicate:?} on {value:?}"),
    }
}

/// Predicates whose constants are taken from the data and from its neighbourhood.
fn predicates(array: &ArrayRef, data_type: &DataType, rng: &mut ChaCha8Rng) -> Vec<ChunkPredicate> {
    let mut out = vec![ChunkPredicate::IsNull, ChunkPredicate::IsNotNull, ChunkPredicate::Never];
    let mut pick = || scalar(array, data_type, rng.random_range(0..array.len()));
    let picks: Vec<Scalar> = (0..40).map(|_| pick()).collect();
    for negated in [false, true] {
        match data_type.lane() {
            Lane::Bool => out.push(ChunkPredicate::Bool(negated)),
            Lane::I64 => {
                let v: Vec<i64> = picks.iter().filter_map(|s| s.as_i128()).map(|v| v as i64).collect();
                let at = |k: usize| v.get(k).copied().unwrap_or(3);
                let (a, b) = (at(0).min(at(1)), at(0).max(at(1)));
                for (lo, hi) in [
                    (a, b),
                    (a.saturating_add(1), b.saturating_sub(1)),
                    (a, i64::MAX),
                    (i64::MIN, a),
                    (i64::MIN, i64::MAX),
                    (b.saturating_add(1), a),
                    (a, a),
                ] {
                    out.push(ChunkPredicate::I64Range { lo, hi, negated });
                }
                for count in [0, 1, 3, 40] {
                    let values: Vec<i64> = v.iter().take(count).map(|v| v.wrapping_add(count as i64 / 40)).collect();
                    out.push(ChunkPredicate::I64Set { values: values.into(), negated });
                }
            }
            Lane::I128 => {
                let v: Vec<i128> = picks.iter().filter_map(|s| s.as_i128()).collect();
                let at = |k: usize| v.get(k).copied().unwrap_or(3);
                for (lo, hi) in [(at(0).min(at(1)), at(0).max(at(1))), (i128::MIN, at(2)), (at(2), i128::MAX), (1, 0)] {
                    out.push(ChunkPredicate::I128Range { lo, hi, negated });
                }
                for count in [0, 1, 40] {
                    out.push(ChunkPredicate::I128Set { values: v.iter().copied().take(count).collect(), negated });
                }
            }
            Lane::F64 => {
                let v: Vec<f64> =
                    picks.iter().filter_map(|s| if let Scalar::F64(v) = s { Some(*v) } else { None }).collect();
                let at = |k: usize| v.get(k).copied().unwrap_or(0.5);
                for (lo, hi) in [
                    (Bound::Included(at(0)), Bound::Included(at(1))),
                    (Bound::Excluded(at(0)), Bound::Unbounded),
                    (Bound::Unbounded, Bound::Excluded(at(1))),
                    (Bound::Included(at(2)), Bound::Included(at(2))),
                    (Bound::Included(f64::NAN), Bound::Unbounded),
                    (Bound::Excluded(f64::NAN), Bound::Unbounded),
                    (Bound::Unbounded, Bound::Excluded(f64::NAN)),
                    (Bound::Included(-0.0), Bound::Included(0.0)),
                    (Bound::Unbounded, Bound::Unbounded),
                ] {
                    out.push(ChunkPredicate::F64Range { lo, hi, negated });
                }
            }
            Lane::Bytes => {
                let v: Vec<Vec<u8>> = picks
                    .iter()
                    .filter_map(|s| if let Scalar::Bytes(v) = s { Some(v.clone()) } else { None })
                    .collect();
                let at = |k: usize| v.get(k).cloned().unwrap_or_default();
                for count in [0, 1, 3, 40] {
                    out.push(ChunkPredicate::BytesSet { values: v.iter().take(count).cloned().collect(), negated });
                }
                if matches!(data_type, DataType::Vector { .. }) {
                    continue;
                }
                let (a, b) = (at(0).min(at(1)), at(0).max(at(1)));
                for (lo, hi) in [
                    (Bound::Included(a.clone()), Bound::Included(b.clone())),
                    (Bound::Excluded(a.clone()), Bound::Excluded(b.clone())),
                    (Bound::Unbounded, Bound::Excluded(b)),
                    (Bound::Included(a), Bound::Unbounded),
                ] {
                    out.push(ChunkPredicate::BytesRange { lo, hi, negated });
                }
                for (prefix, needles, suffix) in [
                    (&b""[..], &[&b"special"[..], b"requests"][..], &b""[..]),
                    (b"special", &[], b""),
                    (b"customer#", &[b"7", b"1"], b""),
                    (b"", &[b"a"], b""),
                    (b"", &[], b""),
                    (b"", &[b"aa", b"a"], b""),
                    (b"", &[], b"s"),
                    (b"", &[], b"requests"),
                    (b"", &[b"a"], b"ts"),
                    (b"c", &[], b"7"),
                    (b"special", &[b"special"], b"special"),
                ] {
                    let needles: Vec<Vec<u8>> = needles.iter().map(|needle| needle.to_vec()).collect();
                    out.push(ChunkPredicate::BytesContains {
                        prefix: prefix.to_vec(),
                        needles: needles.into(),
                        suffix: suffix.to_vec(),
                        negated,
                    });
                }
                out.push(ChunkPredicate::Bytes(Arc::new(move |value| (value.len() % 3 == 0) != negated)));
            }
        }
    }
    out
}

fn check(array: &ArrayRef, data_type: &DataType, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let chunk = chunk(array, data_type);
    for predicate in predicates(array, data_type, &mut rng) {
        let compiled = chunk.compile(&predicate).unwrap();
        for b in 0..chunk.blocks() {
            for percent in [100, 60, 1] {
                let before = selection(percent, &mut rng);
                let mut after = before;
                let said = chunk.filter(b, &compiled, &mut after).unwrap();
                assert_eq!(said, chunk.prune(b, &compiled).unwrap());
                for row in 0..1024 {
                    let expected =
                        row < chunk.block_rows(b) && matches(&predicate, &scalar(array, data_type, b * 1024 + row));
                    let value = || scalar(array, data_type, b * 1024 + row);
                    assert_eq!(
                        after.contains(row),
                        expected && before.contains(row),
                        "{predicate:?} on row {row} ({:?})",
                        value()
                    );
                    if row < chunk.block_rows(b) {
                        assert!(!expected || said != BlockMatch::None);
                        assert!(expected || said != BlockMatch::All);
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn filters_keep_exactly_the_matching_rows(
        kind in 0..15usize, shape in 0..SHAPES, rows in 1..2500usize,
        null_percent in prop_oneof![Just(0u32), Just(20)], seed in any::<u64>(),
    ) {
        let data_type = types()[kind];
        check(&array(&data_type, shape, rows, null_percent, seed), &data_type, seed);
    }
}

#[test]
fn filters_are_right_for_every_type_shape_and_simd_level() {
    for level in [SimdLevel::Portable, SimdLevel::Avx2, SimdLevel::Avx512] {
        SimdLevel::force(level);
        for data_type in types() {
            for shape in 0..SHAPES {
                check(&array(&data_type, shape, 1500, 10, 3), &data_type, 8);
            }
        }
    }
}

#[test]
fn predicates_of_another_lane_are_refused() {
    let chunk = chunk(&array(&DataType::Text, 1, 100, 0, 1), &DataType::Text);
    let error = chunk.compile(&ChunkPredicate::I64Range { lo: 0, hi: 1, negated: false }).unwrap_err();
    assert!(error.to_string().contains("text"), "{error}");
}
