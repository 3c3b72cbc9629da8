//! Every kernel against the plain formula in `f64`, every level and shape against each other bit by bit.

use proptest::prelude::*;

use super::*;
use crate::{COMPONENT_MAX, simd::at_every_level};

fn reference(metric: Metric, q: &[f64], x: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    match metric {
        Metric::L2 => q.iter().zip(x).map(|(q, x)| (q - x).powi(2)).sum(),
        Metric::Hamming => q.iter().zip(x).filter(|(q, x)| q != x).count() as f64,
        Metric::InnerProduct => -dot(q, x),
        Metric::Cosine => {
            let norms = (dot(q, q) * dot(x, x)).sqrt();
            if norms == 0.0 { 1.0 } else { 1.0 - dot(q, x) / norms }
        }
    }
}

fn floats_of(rows: &Rows<'_>, index: usize) -> Vec<f64> {
    let mut out = vec![0.0f32; rows.dimension()];
    rows.to_f32(index, &mut out);
    out.into_iter().map(f64::from).collect()
}

/// All ways to ask for the distances give the same bits at every level, near the reference.
fn check<E: crate::Element>(queries: &[E], data: &[E], dimension: usize, metric: Metric) {
    let (queries, rows) = (Rows::of(queries, dimension).unwrap(), Rows::of(data, dimension).unwrap());
    let n = rows.count();
    let mut first: Option<Vec<u32>> = None;
    at_every_level(|level| {
        let batch = QueryBatch::new(rows.element_type(), metric, &queries).unwrap();
        let mut tile = vec![0.0; queries.count() * n];
        batch.distances(&rows, &mut tile).unwrap();
        for (index, query) in batch.queries().iter().enumerate() {
            let tile = &tile[index * n..][..n];
            let mut out = vec![0.0; n];
            query.distances(&rows, &mut out).unwrap();
            assert_eq!(out, tile, "{level:?} {metric:?} {dimension}");
            let ids: Vec<u32> = (0..n as u32).rev().collect();
            query.distances_to(&rows, &ids, &mut out).unwrap();
            out.reverse();
            assert_eq!(out, tile, "{level:?} {metric:?} {dimension}");
            let q = floats_of(&queries, index);
            for (row, distance) in out.iter().enumerate() {
                let x = floats_of(&rows, row);
                let expected = reference(metric, &q, &x);
                let scale: f64 = match metric {
                    Metric::Cosine => 1.0,
                    _ => q.iter().zip(&x).map(|(q, x)| (q.abs() + x.abs()).powi(2)).sum::<f64>() + 1e-30,
                };
                assert!((f64::from(*distance) - expected).abs() <= 1e-5 * scale, "{distance} {expected}");
                assert!(distance.to_bits() != (-0.0f32).to_bits());
            }
        }
        let bits: Vec<u32> = tile.iter().map(|d| d.to_bits()).collect();
        assert_eq!(first.get_or_insert_with(|| bits.clone()), &bits, "{level:?} {metric:?} {dimension}");
    });
}

fn shape() -> impl Strategy<Value = (usize, usize, usize, u64)> {
    let dimension = prop_oneof![1usize..80, Just(96), Just(128), Just(384), 1usize..1100];
    (dimension, 1usize..6, 1usize..14, any::<u64>())
}

fn noise(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn floats_match_the_formula_at_every_level((d, queries, rows, seed) in shape()) {
        let mut next = noise(seed);
        // Zero vectors and large and small magnitudes among them.
        let mut row = || {
            let scale = [0.0, 1.0, 1e-6, 300.0][(next() >> 40) as usize % 4];
            (0..d).map(|_| ((next() >> 40) as f32 / 8_388_608.0 - 1.0) * scale).collect::<Vec<f32>>()
        };
        let q: Vec<f32> = (0..queries).flat_map(|_| row()).collect();
        let x: Vec<f32> = (0..rows).flat_map(|_| row()).collect();
        let halves = |v: &[f32]| v.iter().map(|e| f16::from_f32(*e)).collect::<Vec<_>>();
        for metric in [Metric::L2, Metric::InnerProduct, Metric::Cosine] {
            check(&q, &x, d, metric);
            check(&halves(&q), &halves(&x), d, metric);
        }
    }

    #[test]
    fn integers_and_bits_match_the_formula_at_every_level((d, queries, rows, seed) in shape()) {
        let mut next = noise(seed);
        let extreme = seed % 3 == 0;
        let mut component = || {
            let e = (next() >> 32) as i8;
            if extreme { if e < 0 { -128 } else { 127 } } else { e }
        };
        let q: Vec<i8> = (0..queries * d).map(|_| component()).collect();
        let x: Vec<i8> = (0..rows * d).map(|_| component()).collect();
        for metric in [Metric::L2, Metric::InnerProduct, Metric::Cosine] {
            check(&q, &x, d, metric);
        }
        let stride = d.div_ceil(8);
        let q: Vec<u8> = (0..queries * stride).map(|_| (next() >> 32) as u8).collect();
        let x: Vec<u8> = (0..rows * stride).map(|_| (next() >> 32) as u8).collect();
        check(&q, &x, d, Metric::Hamming);
    }
}

#[test]
fn the_longest_extreme_bytes_do_not_overflow() {
    let (q, x) = (vec![127i8; crate::DIMENSION_MAX], vec![-128i8; crate::DIMENSION_MAX]);
    check(&q, &x, crate::DIMENSION_MAX, Metric::L2);
    check(&x, &x, crate::DIMENSION_MAX, Metric::InnerProduct);
}

#[test]
fn what_overflows_is_infinitely_far() {
    let (q, x) = ([COMPONENT_MAX, COMPONENT_MAX], [f32::MAX, -f32::MAX, -f32::MAX, -f32::MAX]);
    let rows = Rows::of(&x, 2).unwrap();
    for metric in [Metric::L2, Metric::InnerProduct] {
        let query = Query::new(ElementType::F32, 2, metric, Elements::F32(&q)).unwrap();
        let mut out = [0.0; 2];
        query.distances(&rows, &mut out).unwrap();
        assert!(out.iter().all(|d| !d.is_nan()), "{metric:?} {out:?}");
    }
}

#[test]
fn questions_of_another_shape_are_refused() {
    let query = |element, metric, q: Elements<'_>| Query::new(element, 3, metric, q).map(|_| ());
    let f = [1.0f32, 2.0, 3.0];
    assert!(query(ElementType::F16, Metric::L2, Elements::F32(&f)).is_ok());
    assert!(matches!(query(ElementType::I8, Metric::L2, Elements::F32(&f)), Err(VectorError::Type { .. })));
    assert!(matches!(query(ElementType::F32, Metric::L2, Elements::F32(&f[..2])), Err(VectorError::Dimension { .. })));
    assert!(matches!(query(ElementType::F32, Metric::Hamming, Elements::F32(&f)), Err(VectorError::Metric { .. })));
    assert!(matches!(query(ElementType::Bit, Metric::Cosine, Elements::Bit(&[1])), Err(VectorError::Metric { .. })));
    let nan = [1.0, f32::NAN, 0.0];
    let refused = query(ElementType::F32, Metric::L2, Elements::F32(&nan));
    assert_eq!(refused, Err(VectorError::NotFinite { row: 0, component: 1 }));
    let good = Query::new(ElementType::F32, 3, Metric::L2, Elements::F32(&f)).unwrap();
    let rows = Rows::of(&f, 1).unwrap();
    assert!(matches!(good.distances(&rows, &mut [0.0; 3]), Err(VectorError::Dimension { .. })));
}
