//! Estimates against true distances: within the bound as often as it says.

use super::*;
use crate::{Metric, generate::Clustered};

struct Errors {
    outside: f64,
    outside_many: f64,
    relative: f64,
    relative_many: f64,
    bias: f64,
}

fn errors(data: &Clustered, metric: Metric, bits: u8, epsilon: f32, seed: u64) -> Errors {
    let d = data.dimension;
    let rotation = Rotation::new(d, seed);
    let padded = rotation.padded();
    let (rows, queries) = (data.rows(0, 320), data.rows(320, 30));
    let centroid = data.rows(5000, 1);
    let origin: Vec<f32> = centroid.iter().map(|x| x * 0.5 + 0.1).collect();
    let rotate = |v: &[f32]| {
        let mut out = vec![0.0; padded];
        rotation.rotate(v, &mut out);
        out
    };
    let minus = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<f32>>();
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let shift = match metric {
        Metric::InnerProduct => rotate(&origin),
        _ => rotate(&minus(&centroid, &origin)),
    };
    let (mut one, mut many) = (vec![0u8; padded], vec![0u8; padded]);
    let (mut ones, mut factors, mut planes, mut factors_many) = (vec![], vec![], vec![], vec![]);
    for row in rows.chunks_exact(d) {
        let residual = rotate(&minus(row, &centroid));
        let q = quantise(&residual, 1, &mut one);
        factors.push(FactorsMany::new(metric, q, 1, &one, &shift).factors);
        ones.push(one.clone());
        let q = quantise(&residual, bits, &mut many);
        factors_many.push(FactorsMany::new(metric, q, bits, &many, &shift));
        let mut packed = vec![0; planes_bytes(padded, bits)];
        pack_planes(&many, bits, &mut packed);
        planes.push(packed);
    }
    let mut found = Errors { outside: 0.0, outside_many: 0.0, relative: 0.0, relative_many: 0.0, bias: 0.0 };
    let total = (rows.len() / d * queries.len() / d) as f64;
    for query in queries.chunks_exact(d) {
        let code_query = CodeQuery::new(&rotation, query, &origin);
        let residual = minus(query, &centroid);
        let (base, length) = match metric {
            Metric::InnerProduct => (-dot(query, &centroid) as f32, dot(query, query).sqrt() as f32),
            _ => (dot(&residual, &residual) as f32, dot(&residual, &residual).sqrt() as f32),
        };
        for (block, factors) in factors.chunks(BLOCK_ROWS).enumerate() {
            let mut bytes = vec![0; block_bytes(padded)];
            pack_block(padded, factors.len(), |row, i| ones[block * 32 + row][i] == 1, &mut bytes);
            let mut written = Vec::new();
            estimate::BlockFactors::write(factors, &mut written);
            let block_factors = estimate::BlockFactors::read(&written);
            let (mut estimates, mut bounds) = ([0.0; 32], [0.0; 32]);
            code_query.estimate_block(&bytes, &block_factors, base, length, epsilon, &mut estimates, &mut bounds);
            for i in 0..factors.len() {
                let row = &rows[(block * 32 + i) * d..][..d];
                let difference = minus(query, row);
                let (truth, scale) = match metric {
                    Metric::InnerProduct => (-dot(query, row), f64::from(length)),
                    _ => (dot(&difference, &difference), dot(&difference, &difference)),
                };
                found.outside += f64::from((f64::from(estimates[i]) - truth).abs() > f64::from(bounds[i])) / total;
                found.relative += (f64::from(estimates[i]) - truth).abs() / scale / total;
                found.bias += (f64::from(estimates[i]) - truth) / scale / total;
                let at = block * 32 + i;
                let (estimate, bound) =
                    code_query.estimate(&planes[at], bits, &factors_many[at], base, length, epsilon);
                found.outside_many += f64::from((f64::from(estimate) - truth).abs() > f64::from(bound)) / total;
                found.relative_many += (f64::from(estimate) - truth).abs() / scale / total;
            }
        }
    }
    found
}

#[test]
fn true_distances_lie_within_the_bound_as_often_as_it_says() {
    for (d, intrinsic) in [(384, 24), (128, 12), (100, 60), (960, 30)] {
        for metric in [Metric::L2, Metric::InnerProduct] {
            let data = Clustered { dimension: d, intrinsic, clusters: 5, spread: 0.6, seed: 11 };
            // Two-sided normal tails: 5.7% beyond 1.9, 1.2% beyond 2.5. Queries share rows, so the counts scatter.
            for (epsilon, most) in [(1.9, 0.085), (2.5, 0.025)] {
                let e = errors(&data, metric, 4, epsilon, 77);
                assert!(e.outside < most, "{d} {metric:?} {epsilon}: {}", e.outside);
                assert!(e.outside_many < most, "{d} {metric:?} {epsilon}: {}", e.outside_many);
                // Rows of a cluster share most of their residual, and with it most of their error: it does not average out.
                assert!(e.bias.abs() < 0.5 * e.relative, "{d} {metric:?}: {} {}", e.bias, e.relative);
            }
        }
    }
}

#[test]
fn more_bits_halve_the_error_each() {
    let data = Clustered { dimension: 384, intrinsic: 24, clusters: 5, spread: 0.6, seed: 11 };
    let by_bits: Vec<f64> = [2, 4, 6].map(|bits| errors(&data, Metric::L2, bits, EPSILON, 5).relative_many).to_vec();
    let one = errors(&data, Metric::L2, 4, EPSILON, 5).relative;
    assert!(by_bits[0] < 0.62 * one, "{one} {by_bits:?}");
    assert!(by_bits[1] < 0.4 * by_bits[0] && by_bits[2] < 0.5 * by_bits[1], "{one} {by_bits:?}");
}

#[test]
fn zero_vectors_and_small_dimensions_are_exact_enough() {
    let mut codes = [9u8; 64];
    for bits in 1..=8 {
        let q = quantise(&[0.0; 64], bits, &mut codes);
        assert_eq!((q.norm_squared, q.scale), (0.0, 0.0));
        let f = FactorsMany::new(Metric::L2, q, bits, &codes, &[1.0; 64]);
        assert_eq!((f.factors.offset, f.factors.slope), (0.0, 0.0));
    }
    for d in [1, 2, 5] {
        let data = Clustered { dimension: d, intrinsic: 1, clusters: 3, spread: 0.5, seed: 2 };
        assert!(errors(&data, Metric::L2, 7, 2.5, 3).outside_many < 0.05);
    }
}

#[test]
fn the_quantiser_gives_the_same_bits_at_every_level() {
    let rows = Clustered { dimension: 384, intrinsic: 24, clusters: 5, spread: 0.6, seed: 4 }.rows(0, 8);
    let mut first: Option<Vec<u8>> = None;
    crate::simd::at_every_level(|_| {
        let mut all = Vec::new();
        for row in rows.chunks_exact(384) {
            for bits in 1..=8 {
                let mut codes = [0u8; 384];
                let q = quantise(row, bits, &mut codes);
                assert!(codes.iter().all(|c| u32::from(*c) < 1 << bits));
                all.extend_from_slice(&codes);
                all.extend([q.norm_squared, q.scale, q.cosine].into_iter().flat_map(f32::to_le_bytes));
            }
        }
        assert_eq!(first.get_or_insert_with(|| all.clone()), &all);
    });
}
