//! Values as bytes: group keys, kept rows, and sort keys that compare with `memcmp`.
//!
//! Owns the two encodings. *Row encoding*: a byte 0 for NULL or 1, then the value little-endian (bytes with a
//! 32-bit length); equal values have equal bytes (NaNs are one, -0.0 is 0.0), so it is also the key of hash
//! tables. *Sort encoding*: order-preserving under `memcmp`, by the rules of [`hidb::types::Scalar::compare`].
//! Called by grouping, sorting and intermediate states.

use hidb::plan::SortKey;
use hidb::{Error, ErrorCode, Lane, Result};

use crate::vector::{Vector, bit, set_bit};

/// The one NaN and the one zero that stand for all of theirs.
#[inline]
pub(crate) fn canonical(value: f64) -> f64 {
    if value.is_nan() {
        f64::NAN
    } else if value == 0.0 {
        0.0
    } else {
        value
    }
}

/// Appends the row encoding of a value of a type in `lane` (however it is held), floats made canonical.
#[inline]
pub(crate) fn write_value(vector: &Vector, lane: Lane, row: usize, out: &mut Vec<u8>) {
    if lane == Lane::F64 && vector.is_valid(row) {
        out.push(1);
        out.extend_from_slice(&canonical(vector.f64s[row]).to_bits().to_le_bytes());
    } else {
        write_exactly(vector, lane, row, out);
    }
}

/// Appends the row encoding of a value, with a float's very bits: for rows that are kept, not compared.
#[inline]
pub(crate) fn write_exactly(vector: &Vector, lane: Lane, row: usize, out: &mut Vec<u8>) {
    if !vector.is_valid(row) {
        out.push(0);
        return;
    }
    out.push(1);
    match lane {
        Lane::Bool => out.push(u8::from(bit(&vector.bits, row))),
        Lane::I64 => out.extend_from_slice(&vector.i64s[row].to_le_bytes()),
        Lane::I128 => out.extend_from_slice(&vector.integer(row).to_le_bytes()),
        Lane::F64 => out.extend_from_slice(&vector.f64s[row].to_bits().to_le_bytes()),
        Lane::Bytes => write_bytes(vector.bytes.get(row), out),
    }
}

/// Appends a length and the bytes.
pub(crate) fn write_bytes(value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(value.len() as u32).to_le_bytes());
    out.extend_from_slice(value);
}

fn malformed() -> Error {
    Error::new(ErrorCode::InvalidValue, "an intermediate state is malformed: it was not made by this version of a cell")
}

/// Takes `N` bytes off the front.
pub(crate) fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N]> {
    let (head, tail) = bytes.split_first_chunk::<N>().ok_or_else(malformed)?;
    *bytes = tail;
    Ok(*head)
}

/// Takes a length and that many bytes off the front.
pub(crate) fn take_bytes<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8]> {
    let length = u32::from_le_bytes(take(bytes)?) as usize;
    if bytes.len() < length {
        return Err(malformed());
    }
    let (head, tail) = bytes.split_at(length);
    *bytes = tail;
    Ok(head)
}

/// Stores the next encoded value as row `row` of a vector that was reset to `lane`; rows come in order.
pub(crate) fn read_value(bytes: &mut &[u8], lane: Lane, row: usize, out: &mut Vector) -> Result<()> {
    if take::<1>(bytes)? == [0] {
        if !out.has_nulls {
            out.has_nulls = true;
            out.valid = [u64::MAX; 16];
        }
        out.valid[row >> 6] &= !(1 << (row & 63));
        if lane == Lane::Bytes {
            out.bytes.close();
        }
        return Ok(());
    }
    match lane {
        Lane::Bool => {
            if take::<1>(bytes)? != [0] {
                set_bit(&mut out.bits, row);
            }
        }
        Lane::I64 => out.i64s[row] = i64::from_le_bytes(take(bytes)?),
        Lane::I128 => out.i128s[row] = i128::from_le_bytes(take(bytes)?),
        Lane::F64 => out.f64s[row] = f64::from_bits(u64::from_le_bytes(take(bytes)?)),
        Lane::Bytes => out.bytes.push(take_bytes(bytes)?),
    }
    Ok(())
}

/// Appends the sort encoding of a value.
pub(crate) fn write_sort_key(vector: &Vector, lane: Lane, key: &SortKey, row: usize, out: &mut Vec<u8>) {
    if !vector.is_valid(row) {
        out.push(if key.nulls_first { 0 } else { 2 });
        return;
    }
    out.push(1);
    let start = out.len();
    match lane {
        Lane::Bool => out.push(u8::from(bit(&vector.bits, row))),
        Lane::I64 => out.extend_from_slice(&(vector.i64s[row] as u64 ^ 1 << 63).to_be_bytes()),
        Lane::I128 => out.extend_from_slice(&(vector.integer(row) as u128 ^ 1 << 127).to_be_bytes()),
        Lane::F64 => {
            let bits = canonical(vector.f64s[row]).to_bits();
            let ordered = if bits >> 63 == 1 { !bits } else { bits | 1 << 63 };
            out.extend_from_slice(&ordered.to_be_bytes());
        }
        Lane::Bytes => {
            // 00 becomes 00 FF and the end 00 00, so that no value is a prefix of another's encoding.
            for byte in vector.bytes.get(row) {
                out.push(*byte);
                if *byte == 0 {
                    out.push(0xff);
                }
            }
            out.extend_from_slice(&[0, 0]);
        }
    }
    if key.descending {
        out[start..].iter_mut().for_each(|byte| *byte = !*byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hidb::Scalar;

    fn vector(lane: Lane, values: &[Scalar]) -> Vector {
        let mut vector = Vector::default();
        vector.reset(lane, values.len());
        values.iter().enumerate().for_each(|(row, value)| vector.store(row, value));
        vector
    }

    fn samples() -> Vec<(Lane, Vec<Scalar>)> {
        let bytes = |list: &[&[u8]]| list.iter().map(|b| Scalar::Bytes(b.to_vec())).collect::<Vec<_>>();
        vec![
            (Lane::Bool, vec![Scalar::Bool(false), Scalar::Bool(true), Scalar::Null]),
            (Lane::I64, [i64::MIN, -1, 0, 1, i64::MAX].map(Scalar::I64).to_vec()),
            (Lane::I128, [i128::MIN, -1, 0, 1, i128::MAX].map(Scalar::I128).to_vec()),
            (Lane::F64, [f64::NEG_INFINITY, -1.5, 0.0, 1e-300, 2.0, f64::INFINITY, f64::NAN].map(Scalar::F64).to_vec()),
            (Lane::Bytes, bytes(&[b"", b"\0", b"\0\0", b"\0a", b"a", b"a\0", b"a\0b", b"ab", b"\xff"])),
        ]
    }

    #[test]
    fn sort_keys_order_as_values_do() {
        for (lane, values) in samples() {
            let vector = vector(lane, &values);
            for descending in [false, true] {
                let key = SortKey { output: 0, descending, nulls_first: true };
                let encode = |row| {
                    let mut out = Vec::new();
                    write_sort_key(&vector, lane, &key, row, &mut out);
                    out
                };
                for (i, a) in values.iter().enumerate() {
                    for (j, b) in values.iter().enumerate() {
                        let expected = match (a.is_null(), b.is_null()) {
                            (true, true) => std::cmp::Ordering::Equal,
                            (true, false) => std::cmp::Ordering::Less,
                            (false, true) => std::cmp::Ordering::Greater,
                            _ if descending => b.compare(a).unwrap(),
                            _ => a.compare(b).unwrap(),
                        };
                        assert_eq!(encode(i).cmp(&encode(j)), expected, "{a:?} {b:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn values_survive_the_row_encoding() {
        for (lane, values) in samples() {
            let source = vector(lane, &values);
            let mut bytes = Vec::new();
            (0..values.len()).for_each(|row| write_value(&source, lane, row, &mut bytes));
            let mut read = Vector::default();
            read.reset(lane, values.len());
            let mut rest = bytes.as_slice();
            for (row, value) in values.iter().enumerate() {
                read_value(&mut rest, lane, row, &mut read).unwrap();
                assert_eq!(read.scalar(row).compare(value), value.compare(value));
            }
            assert!(rest.is_empty());
            assert!(read_value(&mut rest, lane, 0, &mut read).is_err());
        }
    }
}
