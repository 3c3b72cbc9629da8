//! Comparison and membership as bitmaps.
//!
//! Owns the kernels behind `Op::Compare` and `Op::In`. Called by the machine.
//!
//! Invariant: 64 rows at a time are compared into bytes (which every compiler vectorises) and those packed
//! into a word by a multiplication; rows beyond those in use are compared too, their bits are arbitrary.
//!
//! Cost: 64-bit values 0.15 ns a row (two loads, a compare, an eighth of a multiplication); text by its bytes.

use heliostat_segment::{dispatch, order_key};
use hidb::plan::CompareOp;
use hidb::{Lane, Scalar};

use crate::vector::{Bits, Vector, bit, set_bit};

/// Bit `i` is byte `i`, each 0 or 1.
#[inline(always)]
pub(super) fn pack(flags: &[u8; 64]) -> u64 {
    let mut word = 0;
    for (index, eight) in flags.as_chunks::<8>().0.iter().enumerate() {
        // Byte i, at bit 8i, times 2^(56 - 7i) ends up at bit 56 + i; no two products meet below.
        let bits = u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        word |= bits << (index * 8);
    }
    word
}

#[inline(always)]
fn fill<T: Copy>(left: &[T], right: &[T], out: &mut [u64], test: impl Fn(T, T) -> bool) {
    let (left, right) = (left.as_chunks::<64>().0, right.as_chunks::<64>().0);
    for ((word, left), right) in out.iter_mut().zip(left).zip(right) {
        let mut flags = [0u8; 64];
        for ((flag, a), b) in flags.iter_mut().zip(left).zip(right) {
            *flag = u8::from(test(*a, *b));
        }
        *word = pack(&flags);
    }
}

macro_rules! by_operator {
    ($op:expr, $test:ident) => {
        match $op {
            CompareOp::Equal => $test!(==),
            CompareOp::NotEqual => $test!(!=),
            CompareOp::Less => $test!(<),
            CompareOp::LessOrEqual => $test!(<=),
            CompareOp::Greater => $test!(>),
            CompareOp::GreaterOrEqual => $test!(>=),
        }
    };
}

#[inline(always)]
fn integers_body(op: CompareOp, left: &[i64], right: &[i64], out: &mut [u64]) {
    macro_rules! test {
        ($op:tt) => { fill(left, right, out, |a, b| a $op b) };
    }
    by_operator!(op, test)
}

#[inline(always)]
fn floats_body(op: CompareOp, left: &[f64], right: &[f64], out: &mut [u64]) {
    macro_rules! test {
        ($op:tt) => { fill(left, right, out, |a, b| order_key(a) $op order_key(b)) };
    }
    by_operator!(op, test)
}

#[inline(always)]
fn any_of_body(values: &[i64], list: &[i64], out: &mut [u64]) {
    for (word, values) in out.iter_mut().zip(values.as_chunks::<64>().0) {
        let mut flags = [0u8; 64];
        for item in list {
            for (flag, value) in flags.iter_mut().zip(values) {
                *flag |= u8::from(value == item);
            }
        }
        *word = pack(&flags);
    }
}

dispatch! {
    /// Bit `i` is `left[i] op right[i]`, in whole words.
    fn integers(op: CompareOp, left: &[i64], right: &[i64], out: &mut [u64]) = integers_body;
}

dispatch! {
    /// The same for floats.
    fn floats(op: CompareOp, left: &[f64], right: &[f64], out: &mut [u64]) = floats_body;
}

dispatch! {
    /// Bit `i` is whether `values[i]` is in the (short) list.
    fn any_of(values: &[i64], list: &[i64], out: &mut [u64]) = any_of_body;
}

/// Sets the bits of the rows that pass.
fn each_row(rows: usize, out: &mut Bits, test: impl Fn(usize) -> bool) {
    for row in 0..rows {
        if test(row) {
            set_bit(out, row);
        }
    }
}

/// `left op right` as bits, for operands of one lane (or the two integer lanes), into cleared `out`.
pub(super) fn compare(op: CompareOp, left: &Vector, right: &Vector, rows: usize, out: &mut Bits) {
    let words = rows.div_ceil(64);
    match (left.lane, right.lane) {
        (Lane::I64, Lane::I64) => integers(op, &left.i64s, &right.i64s, &mut out[..words]),
        (Lane::F64, _) => floats(op, &left.f64s, &right.f64s, &mut out[..words]),
        (Lane::Bytes, _) => {
            each_row(rows, out, |row| op.matches(left.bytes.get(row).cmp(right.bytes.get(row))));
        }
        (Lane::Bool, _) => {
            let (a, b) = (&left.bits, &right.bits);
            *out = std::array::from_fn(|i| match op {
                CompareOp::Equal => !(a[i] ^ b[i]),
                CompareOp::NotEqual => a[i] ^ b[i],
                CompareOp::Less => !a[i] & b[i],
                CompareOp::LessOrEqual => !a[i] | b[i],
                CompareOp::Greater => a[i] & !b[i],
                CompareOp::GreaterOrEqual => a[i] | !b[i],
            });
        }
        _ => each_row(rows, out, |row| op.matches(left.integer(row).cmp(&right.integer(row)))),
    }
}

/// A list up to this long is compared item by item, all rows at once; a longer one is searched.
const SHORT_LIST_MAX: usize = 8;

/// Whether each value is in the sorted list (`integers` when all its items are `i64`), into cleared `out`.
pub(super) fn in_list(value: &Vector, list_i64: &[i64], list: &[Scalar], rows: usize, out: &mut Bits) {
    match value.lane {
        Lane::I64 if list_i64.len() == list.len() => {
            if list_i64.len() <= SHORT_LIST_MAX {
                any_of(&value.i64s, list_i64, &mut out[..rows.div_ceil(64)]);
            } else {
                each_row(rows, out, |row| list_i64.binary_search(&value.i64s[row]).is_ok());
            }
        }
        Lane::Bytes => each_row(rows, out, |row| {
            let v = value.bytes.get(row);
            let found = list.binary_search_by(|item| match item {
                Scalar::Bytes(item) => item.as_slice().cmp(v),
                _ => std::cmp::Ordering::Less,
            });
            found.is_ok()
        }),
        Lane::I64 | Lane::I128 => each_row(rows, out, |row| {
            let v = value.integer(row);
            list.binary_search_by(|item| item.as_i128().cmp(&Some(v))).is_ok()
        }),
        Lane::F64 | Lane::Bool => each_row(rows, out, |row| {
            let v = match value.lane {
                Lane::F64 => Scalar::F64(value.f64s[row]),
                _ => Scalar::Bool(bit(&value.bits, row)),
            };
            list.iter().any(|item| item.compare(&v).is_some_and(|o| CompareOp::Equal.matches(o)))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hidb::types::compare_f64;

    const OPERATORS: [CompareOp; 6] = [
        CompareOp::Equal,
        CompareOp::NotEqual,
        CompareOp::Less,
        CompareOp::LessOrEqual,
        CompareOp::Greater,
        CompareOp::GreaterOrEqual,
    ];

    #[test]
    fn packed_comparisons_are_those_of_single_values() {
        let integers = [i64::MIN, -7, -1, 0, 1, 7, i64::MAX];
        let floats = [f64::NEG_INFINITY, -1.5, -0.0, 0.0, 1e-300, 2.0, f64::INFINITY, f64::NAN, -f64::NAN];
        let mut vectors = [Lane::I64, Lane::I64, Lane::F64, Lane::F64].map(|lane| {
            let mut vector = Vector::default();
            vector.reset(lane, 1024);
            vector
        });
        for row in 0..1024 {
            vectors[0].i64s[row] = integers[row % 7];
            vectors[1].i64s[row] = integers[row / 7 % 7];
            vectors[2].f64s[row] = floats[row % 9];
            vectors[3].f64s[row] = floats[row / 9 % 9];
        }
        for rows in [1, 63, 64, 700, 1024] {
            for op in OPERATORS {
                let (mut of_integers, mut of_floats) = ([0; 16], [0; 16]);
                compare(op, &vectors[0], &vectors[1], rows, &mut of_integers);
                compare(op, &vectors[2], &vectors[3], rows, &mut of_floats);
                for row in 0..rows {
                    let (a, b) = (vectors[0].i64s[row], vectors[1].i64s[row]);
                    assert_eq!(bit(&of_integers, row), op.matches(a.cmp(&b)), "{a} {op:?} {b}");
                    let (a, b) = (vectors[2].f64s[row], vectors[3].f64s[row]);
                    assert_eq!(bit(&of_floats, row), op.matches(compare_f64(a, b)), "{a} {op:?} {b}");
                }
            }
        }
    }

    #[test]
    fn short_and_long_lists_find_their_members() {
        let mut value = Vector::default();
        value.reset(Lane::I64, 1024);
        (0..1024).for_each(|row| value.i64s[row] = row as i64 % 50);
        for list in [vec![], vec![3i64], vec![0, 7, 49], (0..40).step_by(3).collect()] {
            let scalars: Vec<Scalar> = list.iter().copied().map(Scalar::I64).collect();
            let mut out = [0; 16];
            in_list(&value, &list, &scalars, 1000, &mut out);
            for row in 0..1000 {
                assert_eq!(bit(&out, row), list.contains(&value.i64s[row]));
            }
        }
    }
}
