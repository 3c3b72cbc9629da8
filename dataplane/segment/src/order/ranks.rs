//! Columns as dense ranks: 0 for the least value, equal for equal values, NULL last.
//!
//! Owns [`Ranks`]. Called by [`super::OrderedRun`]. With ranks every type is a number of at most 32 bits, in the order
//! of its values, and spread evenly: what sorting by several columns and a space-filling curve both want.

use arrow_array::cast::AsArray;
use arrow_array::types::*;
use arrow_array::{Array, ArrayRef};
use hidb::types::{DataType, Lane};

use crate::error::{Result, SegmentError};
use crate::kernels::order_key;

/// The ranks of a column's rows.
#[derive(Clone, Debug)]
pub(super) struct Ranks {
    of_row: Vec<u32>,
    /// How many rows have each rank.
    counts: Vec<u32>,
}

impl Ranks {
    /// How many different ranks there are.
    pub fn distinct(&self) -> usize {
        self.counts.len()
    }

    /// The rows in the order of their ranks, those of equal rank in their own.
    pub fn into_permutation(self) -> Vec<u32> {
        let mut next: Vec<u32> = self
            .counts
            .iter()
            .scan(0, |start, count| {
                *start += count;
                Some(*start - count)
            })
            .collect();
        let mut permutation = vec![0u32; self.of_row.len()];
        for (row, rank) in self.of_row.iter().enumerate() {
            let place = &mut next[*rank as usize];
            permutation[*place as usize] = row as u32;
            *place += 1;
        }
        permutation
    }

    /// Coordinates of `bits` bits for a space-filling curve: where the middle of a row's equals stands among all rows.
    /// Values that many rows share lie far from their neighbours, as they should.
    pub fn coordinates(&self, bits: u32) -> Vec<u32> {
        let rows = self.of_row.len().max(1) as u64;
        let mut before = 0u64;
        let of_rank: Vec<u32> = self
            .counts
            .iter()
            .map(|count| {
                let middle = 2 * before + u64::from(*count);
                before += u64::from(*count);
                // middle / (2 rows) lies in (0, 1).
                ((u128::from(middle) << bits) / u128::from(2 * rows)).min((1 << bits) - 1) as u32
            })
            .collect();
        self.of_row.iter().map(|rank| of_rank[*rank as usize]).collect()
    }
}

/// Ranks by one ranking, then another.
pub(super) fn combine(first: &Ranks, second: &Ranks) -> Ranks {
    let keys = first.of_row.iter().zip(&second.of_row).map(|(a, b)| u64::from(*a) << 32 | u64::from(*b));
    rank_by(keys.enumerate().map(|(row, key)| (key, row as u32)).collect(), first.of_row.len(), |_, _| {
        std::cmp::Ordering::Equal
    })
}

/// Ranks the rows of a column, a canonical array of `data_type`.
pub(super) fn rank(name: &str, data_type: &DataType, array: &ArrayRef) -> Result<Ranks> {
    let wrong = || SegmentError::InvalidInput {
        column: name.into(),
        detail: format!("rows can't be ordered by an array of {:?} for type {data_type}", array.data_type()),
    };
    let equal = |_, _| std::cmp::Ordering::Equal;
    macro_rules! numbers {
        ($arrow:ty, $key:expr) => {{
            let values = array.as_primitive_opt::<$arrow>().ok_or_else(wrong)?.values();
            Ok(rank_by(pairs(array, |row| $key(values[row])), array.len(), equal))
        }};
    }
    let signed = |value: i64| value as u64 ^ 1 << 63;
    match data_type {
        DataType::Boolean => {
            let values = array.as_boolean_opt().ok_or_else(wrong)?;
            Ok(rank_by(pairs(array, |row| u64::from(values.value(row))), array.len(), equal))
        }
        DataType::Int16 => numbers!(Int16Type, |value: i16| signed(value.into())),
        DataType::Int32 => numbers!(Int32Type, |value: i32| signed(value.into())),
        DataType::Int64 => numbers!(Int64Type, signed),
        DataType::Date => numbers!(Date32Type, |value: i32| signed(value.into())),
        DataType::Timestamp { .. } => numbers!(TimestampMicrosecondType, signed),
        DataType::Float32 => numbers!(Float32Type, |value: f32| signed(order_key(value.into()))),
        DataType::Float64 => numbers!(Float64Type, |value: f64| signed(order_key(value))),
        DataType::Decimal { .. } if data_type.lane() == Lane::I64 => numbers!(Decimal64Type, signed),
        DataType::Decimal { .. } => numbers!(Decimal128Type, |value: i128| value as u128 ^ 1 << 127),
        DataType::Varchar(_) | DataType::Text => {
            let values = array.as_string_opt::<i32>().ok_or_else(wrong)?;
            Ok(rank_bytes(array, |row| values.value(row).as_bytes()))
        }
        DataType::Bytea => {
            let values = array.as_binary_opt::<i32>().ok_or_else(wrong)?;
            Ok(rank_bytes(array, |row| values.value(row)))
        }
        DataType::Vector { .. } => Err(wrong()),
    }
}

/// The keys of the rows that are not NULL.
fn pairs<K>(array: &dyn Array, key: impl Fn(usize) -> K) -> Vec<(K, u32)> {
    // Filters don't say how many they let through: growing by doubling would take twice the memory.
    let mut pairs = Vec::with_capacity(array.len() - array.null_count());
    pairs.extend(valid(array).map(|row| (key(row), row as u32)));
    pairs
}

/// The rows that are not NULL.
fn valid(array: &dyn Array) -> impl Iterator<Item = usize> {
    (0..array.len()).filter(|row| array.is_valid(*row))
}

/// How many bytes all values begin with alike.
fn shared_prefix<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> usize {
    let Some(first) = values.next() else { return 0 };
    values.fold(first.len(), |shared, value| match value.starts_with(&first[..shared]) {
        true => shared,
        false => first[..shared].iter().zip(value).take_while(|(a, b)| a == b).count(),
    })
}

/// By 16 bytes, and where these are equal by all. Addresses and identifiers often begin alike: the 16 bytes are those
/// after what all values share.
fn rank_bytes<'a>(array: &dyn Array, value: impl Fn(usize) -> &'a [u8]) -> Ranks {
    let shared = shared_prefix(valid(array).map(&value));
    let prefix = |row: usize| {
        let value = value(row).get(shared..).unwrap_or_default();
        let mut prefix = [0u8; 16];
        let length = value.len().min(16);
        prefix[..length].copy_from_slice(&value[..length]);
        u128::from_be_bytes(prefix)
    };
    rank_by(pairs(array, prefix), array.len(), |a, b| value(a as usize).cmp(value(b as usize)))
}

/// Ranks `rows` rows by the keys of those that are not NULL; `tie` decides between rows of equal keys.
fn rank_by<K: Ord + Copy>(
    mut keyed: Vec<(K, u32)>,
    rows: usize,
    tie: impl Fn(u32, u32) -> std::cmp::Ordering,
) -> Ranks {
    keyed.sort_unstable_by(|(a, x), (b, y)| a.cmp(b).then_with(|| tie(*x, *y)));
    // What is left at the end is NULL.
    let mut of_row = vec![u32::MAX; rows];
    let mut counts: Vec<u32> = Vec::new();
    let mut previous: Option<(K, u32)> = None;
    for (key, row) in &keyed {
        let same = previous.is_some_and(|(before, at)| before == *key && tie(at, *row).is_eq());
        match counts.last_mut() {
            Some(count) if same => *count += 1,
            _ => counts.push(1),
        }
        of_row[*row as usize] = counts.len() as u32 - 1;
        previous = Some((*key, *row));
    }
    if keyed.len() < rows {
        let last = counts.len() as u32;
        of_row.iter_mut().filter(|rank| **rank == u32::MAX).for_each(|rank| *rank = last);
        counts.push((rows - keyed.len()) as u32);
    }
    Ranks { of_row, counts }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::StringArray;

    use super::*;

    #[test]
    fn what_all_values_begin_with_is_left_out_of_their_keys_and_changes_no_rank() {
        let long = "https://heliostat.example/objects/";
        let values = [Some("b"), None, Some(""), Some("\0"), Some("a"), Some("b"), Some("a\0"), None, Some("ab")];
        let ranked = |prefix: &str| {
            let texts: StringArray = values.iter().map(|value| value.map(|value| format!("{prefix}{value}"))).collect();
            let array: ArrayRef = Arc::new(texts);
            rank("t", &DataType::Text, &array).unwrap().of_row
        };
        assert_eq!(ranked(""), [5, 6, 0, 1, 2, 5, 3, 6, 4]);
        assert_eq!(ranked(long), ranked(""));
        let texts = |values: &[&'static str]| shared_prefix(values.iter().map(|value| value.as_bytes()));
        assert_eq!(texts(&[]), 0);
        assert_eq!(texts(&["abc"]), 3);
        assert_eq!(texts(&["abc", "abd", "ab", "abzz"]), 2);
        assert_eq!(texts(&["abc", "", "abc"]), 0);
    }
}
