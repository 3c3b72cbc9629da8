//! Loops of arithmetic over plain slices.
//!
//! Owns the kernels that the evaluator picks per node and row group: unchecked `i64` where facts prove the
//! result in range, checked `i64` and `i128` otherwise, `f64`. Invariant: only active rows raise errors; a
//! kernel computes every row, notes whether any went wrong, and looks at the active ones only then.
//!
//! Cost: `i64` add 0.1 ns a row (auto-vectorised), multiply 0.3 ns, checked 0.5 ns, `i128` 1.5 ns.

use heliostat_segment::dispatch;
use hidb::plan::ArithmeticOp;
use hidb::{DataType, Error, ErrorCode, Lane, Result};

use super::facts::type_range;
use crate::vector::{Bits, Vector, for_each_bit};

fn symbol(op: ArithmeticOp) -> &'static str {
    match op {
        ArithmeticOp::Add => "addition",
        ArithmeticOp::Subtract => "subtraction",
        ArithmeticOp::Multiply => "multiplication",
        ArithmeticOp::Divide => "division",
        ArithmeticOp::Remainder => "remainder",
    }
}

pub(super) fn overflow(what: &str, data_type: &DataType) -> Error {
    Error::new(
        ErrorCode::NumericOverflow,
        format!("{what} leaves the range of {data_type}: cast the operands to a wider type"),
    )
}

fn division_by_zero(op: ArithmeticOp) -> Error {
    Error::new(ErrorCode::DivisionByZero, format!("{} by zero", symbol(op)))
}

#[inline(always)]
fn unchecked_i64_body(op: ArithmeticOp, left: &[i64], right: &[i64], out: &mut [i64]) {
    let pairs = out.iter_mut().zip(left.iter().zip(right));
    match op {
        ArithmeticOp::Add => pairs.for_each(|(out, (a, b))| *out = a.wrapping_add(*b)),
        ArithmeticOp::Subtract => pairs.for_each(|(out, (a, b))| *out = a.wrapping_sub(*b)),
        ArithmeticOp::Multiply => pairs.for_each(|(out, (a, b))| *out = a.wrapping_mul(*b)),
        ArithmeticOp::Divide => pairs.for_each(|(out, (a, b))| *out = a.checked_div(*b).unwrap_or(0)),
        ArithmeticOp::Remainder => pairs.for_each(|(out, (a, b))| *out = a.checked_rem(*b).unwrap_or(0)),
    }
}

dispatch! {
    /// `left op right` in `i64`, where facts prove that neither overflow nor a zero divisor is possible.
    pub(super) fn unchecked_i64(op: ArithmeticOp, left: &[i64], right: &[i64], out: &mut [i64]) = unchecked_i64_body;
}

fn checked_integer(op: ArithmeticOp, a: i128, b: i128) -> Option<i128> {
    match op {
        ArithmeticOp::Add => a.checked_add(b),
        ArithmeticOp::Subtract => a.checked_sub(b),
        ArithmeticOp::Multiply => a.checked_mul(b),
        ArithmeticOp::Divide => a.checked_div(b),
        ArithmeticOp::Remainder => a.checked_rem(b),
    }
}

/// Integer arithmetic with every check, into `out` whose lane says how the result is held.
pub(super) fn checked_integers(
    op: ArithmeticOp,
    data_type: &DataType,
    left: &Vector,
    right: &Vector,
    rows: usize,
    active: &Bits,
    out: &mut Vector,
) -> Result<()> {
    let (least, greatest) = type_range(data_type).unwrap_or((i128::MIN, i128::MAX));
    let fail = |row: usize| {
        if matches!(op, ArithmeticOp::Divide | ArithmeticOp::Remainder) && right.integer(row) == 0 {
            division_by_zero(op)
        } else {
            overflow(symbol(op), data_type)
        }
    };
    let mut bad: Bits = [0; 16];
    let mut any_bad = false;
    if out.lane == Lane::I64 && left.lane == Lane::I64 && right.lane == Lane::I64 {
        let (least, greatest) = (least.max(i64::MIN.into()) as i64, greatest.min(i64::MAX.into()) as i64);
        for row in 0..rows {
            let (a, b) = (left.i64s[row], right.i64s[row]);
            let value = match op {
                ArithmeticOp::Add => a.checked_add(b),
                ArithmeticOp::Subtract => a.checked_sub(b),
                ArithmeticOp::Multiply => a.checked_mul(b),
                ArithmeticOp::Divide => a.checked_div(b),
                // i64::MIN % -1 is 0; only the machine's instruction overflows.
                ArithmeticOp::Remainder if b == 0 => None,
                ArithmeticOp::Remainder => Some(a.wrapping_rem(b)),
            };
            match value.filter(|v| *v >= least && *v <= greatest) {
                Some(value) => out.i64s[row] = value,
                None => {
                    any_bad = true;
                    bad[row >> 6] |= 1 << (row & 63);
                    out.i64s[row] = 0;
                }
            }
        }
    } else {
        for row in 0..rows {
            let value = checked_integer(op, left.integer(row), right.integer(row));
            let value = value.filter(|v| *v >= least && *v <= greatest);
            if value.is_none() {
                any_bad = true;
                bad[row >> 6] |= 1 << (row & 63);
            }
            match out.lane {
                Lane::I64 => out.i64s[row] = value.unwrap_or(0) as i64,
                _ => out.i128s[row] = value.unwrap_or(0),
            }
        }
    }
    if any_bad {
        let mut error = None;
        for_each_bit(&bad, |row| {
            if error.is_none() && crate::vector::bit(active, row) && left.is_valid(row) && right.is_valid(row) {
                error = Some(fail(row));
            }
        });
        error.map_or(Ok(()), Err)?;
    }
    Ok(())
}

#[inline(always)]
fn float_pairs_body(op: ArithmeticOp, left: &[f64], right: &[f64], out: &mut [f64]) {
    let pairs = out.iter_mut().zip(left.iter().zip(right));
    match op {
        ArithmeticOp::Add => pairs.for_each(|(out, (a, b))| *out = a + b),
        ArithmeticOp::Subtract => pairs.for_each(|(out, (a, b))| *out = a - b),
        ArithmeticOp::Multiply => pairs.for_each(|(out, (a, b))| *out = a * b),
        ArithmeticOp::Divide => pairs.for_each(|(out, (a, b))| *out = a / b),
        ArithmeticOp::Remainder => pairs.for_each(|(out, (a, b))| *out = a % b),
    }
}

dispatch! {
    /// `left op right`.
    fn float_pairs(op: ArithmeticOp, left: &[f64], right: &[f64], out: &mut [f64]) = float_pairs_body;
}

/// Float arithmetic as IEEE 754 has it, rounded to 32 bits if `single`.
pub(super) fn floats(op: ArithmeticOp, single: bool, left: &Vector, right: &Vector, rows: usize, out: &mut [f64]) {
    float_pairs(op, &left.f64s[..rows], &right.f64s[..rows], out);
    if single {
        out[..rows].iter_mut().for_each(|value| *value = f64::from(*value as f32));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checked_errors_come_from_active_rows_only() {
        let mut left = Vector::default();
        left.reset(Lane::I64, 2);
        left.i64s[0] = i64::MAX;
        left.i64s[1] = 5;
        let mut right = left.clone();
        right.i64s[1] = 0;
        let mut out = Vector::default();
        out.reset(Lane::I64, 2);
        let mut active = [0; 16];
        let int64 = DataType::Int64;
        assert!(checked_integers(ArithmeticOp::Add, &int64, &left, &right, 2, &active, &mut out).is_ok());
        active[0] = 0b01;
        let error = checked_integers(ArithmeticOp::Add, &int64, &left, &right, 2, &active, &mut out).unwrap_err();
        assert_eq!(error.code, ErrorCode::NumericOverflow);
        active[0] = 0b10;
        assert!(checked_integers(ArithmeticOp::Add, &int64, &left, &right, 2, &active, &mut out).is_ok());
        assert_eq!(out.i64s[1], 5);
        let error = checked_integers(ArithmeticOp::Divide, &int64, &left, &right, 2, &active, &mut out).unwrap_err();
        assert_eq!(error.code, ErrorCode::DivisionByZero);
    }
}
