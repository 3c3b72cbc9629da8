//! From codes to distances, with bounds.
//!
//! Owns [`Factors`], [`FactorsMany`] (what is stored of a row beside its codes) and [`CodeQuery`] (the query, rotated and
//! turned into tables and bytes). Called by the IVF search.
//!
//! Everything is relative to one origin (the mean of the data) so that the query is prepared once, not once a list: with
//! `x = c + r`, `q' = R(q - origin)` and `c' = R(c - origin)`, `|q - x|^2 = |q - c|^2 + [|r|^2 + 2 f <v, c'>] - 2 f <v, q'>`;
//! what stands in brackets is known when the row is encoded. For the inner product `-<q, x>` is
//! `-<q, c> - f <v, R origin> - f <v, q'>`.

use super::{BLOCK_ROWS, Quantised, Rotation, fast_scan, planes};
use crate::Metric;

/// What a row's one-bit code needs to become a distance: `base + offset + slope * <v, q'>`, off by at most
/// `epsilon * spread * |q - c|` (of the query itself for the inner product).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Factors {
    /// Added to the list's base.
    pub offset: f32,
    /// Times the inner product of code and query.
    pub slope: f32,
    /// Standard deviation of the error, for a query (residual) of length 1.
    pub spread: f32,
}

/// [`Factors`] of a code of several bits, and its error by the rounding of the query.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FactorsMany {
    /// As for one bit.
    pub factors: Factors,
    /// Standard deviation of the error for a query whose components are rounded with an error of 1.
    pub rounding: f32,
}

impl FactorsMany {
    /// The factors of a row.
    ///
    /// `codes` are its codes of `bits` each, `quantised` what [`super::quantise`] said of them, `origin` the rotated `c'`
    /// (for the inner product `R origin`), see the module.
    pub fn new(metric: Metric, quantised: Quantised, bits: u8, codes: &[u8], origin: &[f32]) -> Self {
        let middle = ((1u32 << bits) - 1) as f32 * 0.5;
        let shift =
            codes.iter().zip(origin).map(|(u, c)| f64::from(f32::from(*u) - middle) * f64::from(*c)).sum::<f64>();
        let Quantised { norm_squared, scale, cosine } = quantised;
        let length = norm_squared.sqrt();
        let tangent = (1.0 - cosine * cosine).max(0.0).sqrt() / cosine;
        let spread = length * tangent / ((codes.len().max(2) - 1) as f32).sqrt();
        // Floats: a code that is all but exact still has an error of their precision.
        let spread = spread.max(length * 1e-6);
        let rounding = length / cosine;
        let shift = (f64::from(scale) * shift) as f32;
        match metric {
            Metric::InnerProduct => {
                FactorsMany { factors: Factors { offset: -shift, slope: -scale, spread }, rounding }
            }
            _ => {
                let factors = Factors { offset: norm_squared + 2.0 * shift, slope: -2.0 * scale, spread: 2.0 * spread };
                FactorsMany { factors, rounding: 2.0 * rounding }
            }
        }
    }
}

/// A query as the codes are compared with it.
#[derive(Clone, Debug)]
pub struct CodeQuery {
    /// Sixteen bytes for each four components.
    tables: Vec<u8>,
    table_step: f32,
    table_base: f32,
    /// Standard deviation of the sum of table entries.
    table_error: f32,
    bytes: Vec<i8>,
    byte_step: f32,
    /// Sum of the rounded components, in floats.
    byte_sum: f32,
    /// Sum of the components.
    sum: f32,
}

impl CodeQuery {
    /// Rotates `query - origin` and turns it into tables and bytes. `query` and `origin` have the rotation's dimension.
    pub fn new(rotation: &Rotation, query: &[f32], origin: &[f32]) -> Self {
        let difference: Vec<f32> = query.iter().zip(origin).map(|(q, o)| q - o).collect();
        let mut rotated = vec![0.0; rotation.padded()];
        rotation.rotate(&difference, &mut rotated);
        let mut widest = 0.0f32;
        for group in rotated.chunks_exact(4) {
            widest = widest.max(group.iter().map(|q| q.abs()).sum());
        }
        let inverse = if widest > 0.0 { 255.0 / widest } else { 0.0 };
        let mut tables = vec![0; rotated.len() * 4];
        let mut table_base = 0.0;
        for (table, group) in tables.chunks_exact_mut(16).zip(rotated.chunks_exact(4)) {
            let least: f32 = group.iter().map(|q| q.min(0.0)).sum();
            table_base += least;
            for (nibble, entry) in table.iter_mut().enumerate() {
                let pick = |i: usize| if nibble >> i & 1 == 1 { group[i] } else { 0.0 };
                let sum = (pick(0) + pick(1)) + (pick(2) + pick(3));
                *entry = ((sum - least) * inverse + 0.5) as u8;
            }
        }
        let greatest = rotated.iter().fold(0.0f32, |m, q| m.max(q.abs()));
        let inverse_byte = if greatest > 0.0 { 127.0 / greatest } else { 0.0 };
        let bytes: Vec<i8> = rotated.iter().map(|q| (q * inverse_byte).round() as i8).collect();
        let byte_step = greatest / 127.0;
        let byte_sum = bytes.iter().map(|b| i32::from(*b)).sum::<i32>() as f32 * byte_step;
        let table_step = widest / 255.0;
        // A rounding error is uniform over a step: variance step^2 / 12, one for each group.
        let table_error = table_step * (rotated.len() as f32 / 4.0 / 12.0).sqrt();
        let sum = rotated.iter().sum();
        CodeQuery { tables, table_step, table_base, table_error, bytes, byte_step, byte_sum, sum }
    }

    /// Writes estimates and the lower ends of their bounds for a block of 32 one-bit codes. `base` is the list's part of
    /// the distance, `length` that of the query's residual to the centroid (of the query itself for the inner product).
    #[allow(clippy::too_many_arguments, reason = "one call a block of rows; a struct for it would be built each time")]
    pub fn estimate_block(
        &self,
        block: &[u8],
        factors: &BlockFactors,
        base: f32,
        length: f32,
        epsilon: f32,
        estimates: &mut [f32; BLOCK_ROWS],
        errors: &mut [f32; BLOCK_ROWS],
    ) {
        let mut sums = [0; BLOCK_ROWS];
        fast_scan::scan_block(block, &self.tables, &mut sums);
        let constant = self.table_base - 0.5 * self.sum;
        for i in 0..BLOCK_ROWS {
            let product = sums[i] as f32 * self.table_step + constant;
            estimates[i] = base + factors.offset[i] + factors.slope[i] * product;
            let error = factors.spread[i] * length + factors.slope[i].abs() * self.table_error;
            errors[i] = epsilon * error;
        }
    }

    /// The estimate and its error bound for one row's code of `bits` bits a component; see [`CodeQuery::estimate_block`].
    pub fn estimate(
        &self,
        planes: &[u8],
        bits: u8,
        factors: &FactorsMany,
        base: f32,
        length: f32,
        epsilon: f32,
    ) -> (f32, f32) {
        let middle = ((1u32 << bits) - 1) as f32 * 0.5;
        let sum = planes::planes_product(planes, bits, &self.bytes);
        let product = sum as f32 * self.byte_step - middle * self.byte_sum;
        let FactorsMany { factors, rounding } = factors;
        // A rounding error is uniform over a step: variance step^2 / 12.
        let rounding = rounding * self.byte_step * 0.288_675;
        let error = ((factors.spread * length).powi(2) + rounding * rounding).sqrt();
        (base + factors.offset + factors.slope * product, epsilon * error)
    }
}

/// The one-bit factors of a block of rows, side by side.
#[derive(Clone, Debug)]
pub struct BlockFactors {
    /// [`Factors::offset`] of each row.
    pub offset: [f32; BLOCK_ROWS],
    /// [`Factors::slope`] of each row.
    pub slope: [f32; BLOCK_ROWS],
    /// [`Factors::spread`] of each row.
    pub spread: [f32; BLOCK_ROWS],
}

impl BlockFactors {
    /// Bytes of a block's factors.
    pub const BYTES: usize = 3 * 4 * BLOCK_ROWS;

    /// The factors in these [`BlockFactors::BYTES`] bytes.
    pub fn read(bytes: &[u8]) -> Self {
        let float = |i: usize| f32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]);
        let floats = |start: usize| std::array::from_fn(|i| float(start + i));
        BlockFactors { offset: floats(0), slope: floats(BLOCK_ROWS), spread: floats(2 * BLOCK_ROWS) }
    }

    /// Appends the bytes that [`BlockFactors::read`] takes; missing rows are zero.
    pub fn write(factors: &[Factors], out: &mut Vec<u8>) {
        assert!(factors.len() <= BLOCK_ROWS);
        let parts: [fn(&Factors) -> f32; 3] = [|f| f.offset, |f| f.slope, |f| f.spread];
        for part in parts {
            for i in 0..BLOCK_ROWS {
                out.extend_from_slice(&factors.get(i).map_or(0.0, part).to_le_bytes());
            }
        }
    }
}
