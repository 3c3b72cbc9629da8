//! Casts, dates and text: the operations that work value by value.
//!
//! Owns the loops; the rules for one value are in [`hidb`] (`cast`, `decimal`, `calendar`), shared with
//! constant folding so that a constant and a column can't disagree. Called by the machine.
//!
//! Invariant: only active rows that are not NULL are converted, so only they can raise errors.

use hidb::calendar::{self, Interval};
use hidb::decimal;
use hidb::plan::DateField;
use hidb::{DataType, Lane, Result};

use super::arithmetic::overflow;
use super::facts::type_range;
use crate::vector::{Bits, Vector, and_bits, bit, for_each_bit};

fn live(active: &Bits, operands: &[&Vector], rows: usize) -> Bits {
    let first = and_bits(active, &crate::vector::first_bits(rows));
    operands.iter().fold(first, |acc, operand| and_bits(&acc, &operand.valid_bits()))
}

/// Visits live rows until one fails.
fn try_each(live: &Bits, mut visit: impl FnMut(usize) -> Result<()>) -> Result<()> {
    let mut failed = Ok(());
    for_each_bit(live, |row| {
        if failed.is_ok() {
            failed = visit(row);
        }
    });
    failed
}

#[inline(always)]
fn quotients_body(values: &[i64], divisor: f64, out: &mut [f64]) {
    out.iter_mut().zip(values).for_each(|(out, value)| *out = *value as f64 / divisor);
}

heliostat_segment::dispatch! {
    /// `values / divisor`, where both are exact in `f64`, so that the division rounds once.
    fn quotients(values: &[i64], divisor: f64, out: &mut [f64]) = quotients_body;
}

#[allow(clippy::too_many_arguments)]
pub(super) fn cast(
    from: &DataType,
    to: &DataType,
    scale_shift: Option<i32>,
    safe: bool,
    value: &Vector,
    rows: usize,
    active: &Bits,
    out: &mut Vector,
) -> Result<()> {
    if let Some(shift) = scale_shift {
        let factor = decimal::power_of_ten(shift.unsigned_abs().min(38) as u8).unwrap_or(i128::MAX);
        if safe && shift >= 0 && value.lane == Lane::I64 && out.lane == Lane::I64 {
            let factor = factor as i64;
            out.i64s[..rows].iter_mut().zip(&value.i64s).for_each(|(out, v)| *out = v.wrapping_mul(factor));
            return Ok(());
        }
        let (least, greatest) = type_range(to).unwrap_or((i128::MIN, i128::MAX));
        return try_each(&live(active, &[value], rows), |row| {
            let v = value.integer(row);
            let scaled = if shift >= 0 { v.checked_mul(factor) } else { decimal::divide_rounded(v, factor) };
            match scaled.filter(|v| *v >= least && *v <= greatest) {
                Some(scaled) if out.lane == Lane::I64 => out.i64s[row] = scaled as i64,
                Some(scaled) => out.i128s[row] = scaled,
                None => return Err(overflow(&format!("a cast from {from}"), to)),
            }
            Ok(())
        });
    }
    match (from, to) {
        (DataType::Int16 | DataType::Int32 | DataType::Int64, DataType::Float64) => {
            out.f64s[..rows].iter_mut().zip(&value.i64s).for_each(|(out, v)| *out = *v as f64);
            Ok(())
        }
        // Bounds are or-ed, so that the check is one pass without branches.
        (DataType::Decimal { scale, .. }, DataType::Float64)
            if value.lane == Lane::I64
                && *scale <= 22
                && value.i64s[..rows].iter().fold(0, |bits, v| bits | v.unsigned_abs()) < 1 << 53 =>
        {
            let divisor = decimal::power_of_ten(*scale).unwrap_or(1) as f64;
            quotients(&value.i64s[..rows], divisor, &mut out.f64s);
            Ok(())
        }
        (DataType::Decimal { scale, .. }, DataType::Float64) => {
            let live = live(active, &[value], rows);
            for_each_bit(&live, |row| out.f64s[row] = decimal::to_f64(value.integer(row), *scale));
            Ok(())
        }
        (DataType::Float32, DataType::Float64) => {
            out.f64s[..rows].copy_from_slice(&value.f64s[..rows]);
            Ok(())
        }
        (DataType::Varchar(_) | DataType::Text, DataType::Text) => {
            out.bytes.clone_from(&value.bytes);
            Ok(())
        }
        _ if out.lane == Lane::Bytes => {
            let live = live(active, &[value], rows);
            for row in 0..rows {
                if bit(&live, row) {
                    let converted = hidb::cast::cast(&value.scalar(row), from, to)?;
                    if let hidb::Scalar::Bytes(bytes) = converted {
                        out.bytes.data.extend_from_slice(&bytes);
                    }
                }
                out.bytes.close();
            }
            Ok(())
        }
        _ => try_each(&live(active, &[value], rows), |row| {
            let converted = hidb::cast::cast(&value.scalar(row), from, to)?;
            out.store(row, &converted);
            Ok(())
        }),
    }
}

#[inline(always)]
fn parts_of_day_body(field: DateField, values: &[i64], out: &mut [i64]) {
    let pairs = out.iter_mut().zip(values);
    // A loop for each field, in which divisors are constants.
    match field {
        DateField::Hour => pairs.for_each(|(out, v)| *out = calendar::extract_from_timestamp(DateField::Hour, *v)),
        DateField::Minute => pairs.for_each(|(out, v)| *out = calendar::extract_from_timestamp(DateField::Minute, *v)),
        DateField::Second => pairs.for_each(|(out, v)| *out = calendar::extract_from_timestamp(DateField::Second, *v)),
        _ => pairs.for_each(|(out, v)| *out = calendar::extract_from_timestamp(DateField::Epoch, *v)),
    }
}

heliostat_segment::dispatch! {
    /// Hour, minute, second or epoch of timestamps, of which any `i64` has one.
    fn parts_of_day(field: DateField, values: &[i64], out: &mut [i64]) = parts_of_day_body;
}

pub(super) fn extract(field: DateField, from: &DataType, value: &Vector, rows: usize, active: &Bits, out: &mut Vector) {
    let date = *from == DataType::Date;
    if !date && matches!(field, DateField::Hour | DateField::Minute | DateField::Second | DateField::Epoch) {
        return parts_of_day(field, &value.i64s[..rows], &mut out.i64s[..rows]);
    }
    for_each_bit(&live(active, &[value], rows), |row| {
        out.i64s[row] = if date {
            calendar::extract_from_date(field, value.i64s[row])
        } else {
            calendar::extract_from_timestamp(field, value.i64s[row])
        };
    });
}

pub(super) fn add_interval(
    data_type: &DataType,
    (months, days, microseconds): (i32, i32, i64),
    value: &Vector,
    rows: usize,
    active: &Bits,
    out: &mut Vector,
) -> Result<()> {
    let interval = Interval { months, days, microseconds };
    let date = *data_type == DataType::Date;
    let (least, greatest) = data_type.i64_range().unwrap_or((i64::MIN, i64::MAX));
    try_each(&live(active, &[value], rows), |row| {
        let v = value.i64s[row];
        let moved = if date { calendar::add_to_date(v, interval) } else { calendar::add_to_timestamp(v, interval) };
        match moved.filter(|v| *v >= least && *v <= greatest) {
            Some(moved) => {
                out.i64s[row] = moved;
                Ok(())
            }
            None => Err(overflow("adding an interval", data_type)),
        }
    })
}

/// Byte positions of the characters from `skip`, `take` of them.
fn characters(text: &[u8], skip: u64, take: u64) -> (usize, usize) {
    let is_start = |byte: u8| byte & 0xc0 != 0x80;
    if text.is_ascii() {
        let start = skip.min(text.len() as u64) as usize;
        return (start, start + take.min((text.len() - start) as u64) as usize);
    }
    let end_of_text = text.len();
    let mut starts = text.iter().enumerate().filter(|(_, byte)| is_start(**byte)).map(|(index, _)| index);
    let Some(start) = usize::try_from(skip).ok().and_then(|skip| starts.nth(skip)) else {
        return (end_of_text, end_of_text);
    };
    if take == 0 {
        return (start, start);
    }
    let end = usize::try_from(take - 1).ok().and_then(|more| starts.nth(more)).unwrap_or(end_of_text);
    (start, end)
}

/// SUBSTRING(text, start, length): SQL counts a start below 1 against the length.
pub(super) fn substring(operands: &[&Vector], rows: usize, active: &Bits, out: &mut Vector) -> Result<()> {
    let (text, start) = (operands[0], operands[1]);
    let live = live(active, operands, rows);
    for row in 0..rows {
        if bit(&live, row) {
            let first = start.i64s[row];
            let skip = first.saturating_sub(1).max(0) as u64;
            let take = match operands.get(2) {
                None => u64::MAX,
                Some(length) => {
                    let length = length.i64s[row];
                    if length < 0 {
                        return Err(hidb::Error::new(
                            hidb::ErrorCode::InvalidValue,
                            format!("negative substring length {length}"),
                        ));
                    }
                    let end = i128::from(first) + i128::from(length);
                    (end - i128::from(first.max(1))).max(0) as u64
                }
            };
            let value = text.bytes.get(row);
            let (from, to) = characters(value, skip, take);
            out.bytes.data.extend_from_slice(&value[from..to]);
        }
        out.bytes.close();
    }
    Ok(())
}

pub(super) fn length(text: bool, value: &Vector, rows: usize, active: &Bits, out: &mut Vector) {
    for_each_bit(&live(active, &[value], rows), |row| {
        let bytes = value.bytes.get(row);
        out.i64s[row] =
            if text { bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count() } else { bytes.len() } as i64;
    });
}

pub(super) fn change_case(upper: bool, value: &Vector, rows: usize, active: &Bits, out: &mut Vector) {
    let live = live(active, &[value], rows);
    for row in 0..rows {
        if bit(&live, row) {
            let bytes = value.bytes.get(row);
            if bytes.is_ascii() {
                let start = out.bytes.data.len();
                out.bytes.data.extend_from_slice(bytes);
                let copy = &mut out.bytes.data[start..];
                if upper { copy.make_ascii_uppercase() } else { copy.make_ascii_lowercase() }
            } else {
                let text = String::from_utf8_lossy(bytes);
                let changed = if upper { text.to_uppercase() } else { text.to_lowercase() };
                out.bytes.data.extend_from_slice(changed.as_bytes());
            }
        }
        out.bytes.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_counted_not_bytes() {
        let text = "añb€c".as_bytes();
        let part = |skip, take| {
            let (from, to) = characters(text, skip, take);
            std::str::from_utf8(&text[from..to]).unwrap().to_string()
        };
        assert_eq!(part(0, 2), "añ");
        assert_eq!(part(1, 3), "ñb€");
        assert_eq!(part(3, u64::MAX), "€c");
        assert_eq!(part(5, 1), "");
        assert_eq!(part(2, 0), "");
        assert_eq!(characters(b"abc", 1, 1), (1, 2));
        assert_eq!(characters(b"abc", 9, 9), (3, 3));
    }
}
