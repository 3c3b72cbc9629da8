//! Which columns of a row group get a membership filter, and how large.
//!
//! Owns the sampling and the limits. Called by `encode` once all chunks of a row group are encoded, with their sizes
//! and encodings.
//!
//! A filter pays where equality can't be answered otherwise without reading the chunk:
//! - the values are many: nearly all values of a sample differ, and no dictionary, run or constant encodes them;
//! - they lie in no order: stretches of the sample reach over its whole range, so that zone maps rule out nothing;
//! - a value of the column's range is mostly absent: integers that fill their range are found everywhere;
//! - the chunk is much more to read than the filter.
//!
//! Invariants
//! - One filter takes at most 1/[`ONE_FILTER_DIVISOR`] of the row group's encoded bytes, all together at most
//!   1/[`ALL_FILTERS_DIVISOR`], and each at most 1/[`CHUNK_DIVISOR`] of its own chunk. Below [`BITS_PER_VALUE_MIN`]
//!   bits a value there is none.
//! - What is looked up by equality comes first: whole numbers and identifiers. Amounts (decimals with a fraction) and
//!   prose (text with blanks) get one only from what 1/[`OTHER_FILTERS_DIVISOR`] leaves.
//!
//! Cost: 20 us of sampling for a column that comes into question, 8 to 12 ns a row for one that gets a filter.

use arrow_array::cast::AsArray;
use arrow_array::types::*;
use arrow_array::{Array, ArrayRef};
use hidb::types::{DataType, Lane};

use super::{HEADER_BYTES, LINE_BYTES, build, hash_bytes, hash_i64, hash_i128};
use crate::PAGE_BYTES;
use crate::footer::{ChunkMeta, Encoding};

/// One filter takes at most this part of the row group's bytes,
const ONE_FILTER_DIVISOR: usize = 50;
/// all of them together this part,
const ALL_FILTERS_DIVISOR: usize = 25;
/// and amounts and prose are considered only within this part.
const OTHER_FILTERS_DIVISOR: usize = 100;
/// A filter is at most this part of the chunk that it saves reading.
const CHUNK_DIVISOR: usize = 8;
/// Worse than this (one absent value in seven passes) a filter is not made; better than that it need not be.
const BITS_PER_VALUE_MIN: usize = 4;
const BITS_PER_VALUE_MAX: usize = 10;
/// Values sampled of a column, and the stretches that its order is judged by.
const SAMPLE_VALUES: usize = 1024;
const STRETCH_VALUES: usize = 64;
/// Of 32 sampled values at least 31 must differ from all others: some 16,000 distinct values and more.
const DISTINCT_SHARE: (usize, usize) = (31, 32);
/// At most one in this many values of an integer column's range may be there.
const RANGE_DIVISOR: u128 = 4;

/// The values of a column, one lane, without copying.
enum Values<'a> {
    I64(Box<dyn Fn(usize) -> i64 + 'a>),
    I128(Box<dyn Fn(usize) -> i128 + 'a>),
    Bytes(Box<dyn Fn(usize) -> &'a [u8] + 'a>),
}

/// One part of a column as a function of the row; `None` when its type has no filters (or the array is of another).
fn values<'a>(data_type: &DataType, part: &'a ArrayRef) -> Option<Values<'a>> {
    macro_rules! numbers {
        ($lane:ident, $arrow:ty) => {{
            let values = part.as_primitive_opt::<$arrow>()?.values();
            Values::$lane(Box::new(move |row| values[row].into()))
        }};
    }
    Some(match data_type {
        DataType::Int32 => numbers!(I64, Int32Type),
        DataType::Int64 => numbers!(I64, Int64Type),
        DataType::Date => numbers!(I64, Date32Type),
        DataType::Timestamp { .. } => numbers!(I64, TimestampMicrosecondType),
        DataType::Decimal { .. } if data_type.lane() == Lane::I64 => numbers!(I64, Decimal64Type),
        DataType::Decimal { .. } => numbers!(I128, Decimal128Type),
        DataType::Varchar(_) | DataType::Text => {
            let text = part.as_string_opt::<i32>()?;
            Values::Bytes(Box::new(move |row| text.value(row).as_bytes()))
        }
        DataType::Bytea => {
            let bytes = part.as_binary_opt::<i32>()?;
            Values::Bytes(Box::new(move |row| bytes.value(row)))
        }
        _ => return None,
    })
}

/// A sampled value: what it is ordered by, roughly, and its hash.
#[derive(Clone, Copy)]
struct Sampled {
    order: u128,
    hash: u64,
}

/// A column that a filter would help.
struct Candidate {
    column: usize,
    is_other: bool,
    chunk_bytes: usize,
}

/// The filters of a row group: by column, their bytes and the values in them. `columns` are the parts of each column,
/// `chunks` what they were encoded to.
pub(crate) fn filters(
    types: &[DataType],
    columns: &[Vec<ArrayRef>],
    chunks: &[&ChunkMeta],
) -> Vec<(usize, Vec<u8>, u32)> {
    let total: usize = chunks.iter().map(|chunk| chunk.length as usize).sum();
    let mut candidates: Vec<Candidate> = (0..columns.len())
        .filter(|column| comes_into_question(chunks[*column]))
        .filter_map(|column| {
            let is_other = sample(&types[column], &columns[column])?;
            Some(Candidate { column, is_other, chunk_bytes: chunks[column].length as usize })
        })
        .collect();
    // The longest chunks first: there a filter saves most.
    candidates.sort_by_key(|candidate| (candidate.is_other, std::cmp::Reverse(candidate.chunk_bytes)));
    let mut filters = Vec::new();
    let mut used = 0;
    for candidate in candidates {
        let all = if candidate.is_other { OTHER_FILTERS_DIVISOR } else { ALL_FILTERS_DIVISOR };
        let bytes_max = (total / all)
            .saturating_sub(used)
            .min(total / ONE_FILTER_DIVISOR)
            .min(candidate.chunk_bytes / CHUNK_DIVISOR);
        if bytes_max < PAGE_BYTES {
            continue;
        }
        let column = candidate.column;
        let Some(hashes) = hashes(&types[column], &columns[column]) else { continue };
        let distinct = distinct(&hashes);
        let Some(length) = length(distinct, bytes_max).filter(|_| is_sparse(distinct, chunks[column])) else {
            continue;
        };
        used += length.next_multiple_of(PAGE_BYTES);
        filters.push((column, build(&hashes, distinct as u32, length), distinct as u32));
    }
    filters
}

/// What the chunk alone says.
fn comes_into_question(chunk: &ChunkMeta) -> bool {
    // Anything else repeats values or grows from row to row.
    let encoded = matches!(chunk.encoding, Encoding::Packed | Encoding::Plain | Encoding::Fsst);
    let rows = (chunk.zone.rows - chunk.zone.null_count) as usize;
    encoded && chunk.length as usize >= (rows * BITS_PER_VALUE_MIN / 8).max(PAGE_BYTES) * CHUNK_DIVISOR
}

/// Whether a filter comes into question by a sample, and then whether it is of the other kind (amounts, prose).
fn sample(data_type: &DataType, parts: &[ArrayRef]) -> Option<bool> {
    let rows: usize = parts.iter().map(|part| part.len()).sum();
    let stride = (rows / SAMPLE_VALUES).max(1);
    let mut sampled = Vec::with_capacity(SAMPLE_VALUES + 1);
    let mut with_blanks = 0;
    let mut first = 0;
    let mut texts: Vec<&[u8]> = Vec::new();
    for part in parts {
        let values = values(data_type, part)?;
        let skip = (stride - first % stride) % stride;
        for row in (skip..part.len()).step_by(stride).filter(|row| part.is_valid(*row)) {
            match &values {
                Values::I64(at) => {
                    sampled.push(Sampled { order: (at(row) as u64 ^ 1 << 63).into(), hash: hash_i64(at(row)) });
                }
                Values::I128(at) => {
                    sampled.push(Sampled { order: at(row) as u128 ^ 1 << 127, hash: hash_i128(at(row)) });
                }
                Values::Bytes(at) => {
                    with_blanks += usize::from(at(row).contains(&b' '));
                    texts.push(at(row));
                    sampled.push(Sampled { order: 0, hash: hash_bytes(at(row)) });
                }
            }
        }
        first += part.len();
    }
    if sampled.len() < SAMPLE_VALUES / 2 {
        return None;
    }
    if let (Some(min), Some(max)) = (texts.iter().min(), texts.iter().max()) {
        // Identifiers often begin alike: the order shows after what they share.
        let shared = min.iter().zip(*max).take_while(|(a, b)| a == b).count();
        for (sampled, text) in sampled.iter_mut().zip(&texts) {
            let mut prefix = [0u8; 16];
            let rest = &text[shared.min(text.len())..];
            let length = rest.len().min(16);
            prefix[..length].copy_from_slice(&rest[..length]);
            sampled.order = u128::from_be_bytes(prefix);
        }
    }
    if !is_diverse(&sampled) || !is_unordered(&sampled) {
        return None;
    }
    let is_amount = matches!(data_type, DataType::Decimal { scale, .. } if *scale > 0);
    Some(is_amount || with_blanks * 2 > sampled.len())
}

/// Whether nearly all sampled values differ.
fn is_diverse(sampled: &[Sampled]) -> bool {
    let mut hashes: Vec<u64> = sampled.iter().map(|value| value.hash).collect();
    hashes.sort_unstable();
    hashes.dedup();
    hashes.len() * DISTINCT_SHARE.1 >= sampled.len() * DISTINCT_SHARE.0
}

/// Whether stretches of neighbouring values reach over most of the range. Judged by ranks, so that a few extreme values
/// don't show.
fn is_unordered(sampled: &[Sampled]) -> bool {
    let mut by_value: Vec<usize> = (0..sampled.len()).collect();
    by_value.sort_unstable_by_key(|index| sampled[*index].order);
    let mut ranks = vec![0usize; sampled.len()];
    for (rank, index) in by_value.into_iter().enumerate() {
        ranks[index] = rank;
    }
    let stretches = ranks.chunks_exact(STRETCH_VALUES);
    let count = stretches.len();
    let spread = |stretch: &[usize]| {
        let (min, max) = stretch.iter().fold((usize::MAX, 0), |(min, max), rank| (min.min(*rank), max.max(*rank)));
        max - min
    };
    stretches.map(spread).sum::<usize>() * 2 >= count * ranks.len()
}

/// The hashes of all values that are not NULL. `None` when the type has no filters, or a part is an array of another
/// type: a filter without its values would rule out what is there.
fn hashes(data_type: &DataType, parts: &[ArrayRef]) -> Option<Vec<u64>> {
    let mut hashes = Vec::with_capacity(parts.iter().map(|part| part.len() - part.null_count()).sum());
    macro_rules! numbers {
        ($arrow:ty, $hash:expr) => {
            for part in parts {
                let part = part.as_primitive_opt::<$arrow>()?;
                match part.nulls() {
                    None => hashes.extend(part.values().iter().map(|value| $hash((*value).into()))),
                    Some(_) => hashes.extend(part.iter().flatten().map(|value| $hash(value.into()))),
                }
            }
        };
    }
    match data_type {
        DataType::Int32 => numbers!(Int32Type, hash_i64),
        DataType::Int64 => numbers!(Int64Type, hash_i64),
        DataType::Date => numbers!(Date32Type, hash_i64),
        DataType::Timestamp { .. } => numbers!(TimestampMicrosecondType, hash_i64),
        DataType::Decimal { .. } if data_type.lane() == Lane::I64 => numbers!(Decimal64Type, hash_i64),
        DataType::Decimal { .. } => numbers!(Decimal128Type, hash_i128),
        DataType::Bytea => {
            for part in parts {
                hashes.extend(part.as_binary_opt::<i32>()?.iter().flatten().map(hash_bytes));
            }
        }
        DataType::Varchar(_) | DataType::Text => {
            for part in parts {
                hashes.extend(part.as_string_opt::<i32>()?.iter().flatten().map(|value| hash_bytes(value.as_bytes())));
            }
        }
        _ => return None,
    }
    Some(hashes)
}

/// About how many of the hashes differ: linear counting (Whang, Vander-Zanden, Taylor, 1990), within 1%.
fn distinct(hashes: &[u64]) -> usize {
    let bits = (hashes.len() * 2).next_power_of_two().max(1024);
    let mut seen = vec![0u64; bits / 64];
    for hash in hashes {
        let bit = *hash as usize & (bits - 1);
        seen[bit / 64] |= 1 << (bit % 64);
    }
    let empty = seen.iter().map(|word| word.count_zeros() as usize).sum::<usize>().max(1);
    let estimate = -(bits as f64) * (empty as f64 / bits as f64).ln();
    (estimate.round() as usize).clamp(1, hashes.len().max(1))
}

/// Whether most values of an integer column's range are absent; what lane has no range passes.
fn is_sparse(distinct: usize, chunk: &ChunkMeta) -> bool {
    match (chunk.zone.min.as_i128(), chunk.zone.max.as_i128()) {
        (Some(min), Some(max)) => {
            let range = max.checked_sub(min).map_or(u128::MAX, |range| range.unsigned_abs().saturating_add(1));
            distinct as u128 <= range / RANGE_DIVISOR
        }
        _ => true,
    }
}

/// Bytes of a filter of this many values: as many as are useful, in whole pages, of those that it may take.
fn length(distinct: usize, bytes_max: usize) -> Option<usize> {
    let useful = (HEADER_BYTES + distinct * BITS_PER_VALUE_MAX / 8).next_multiple_of(PAGE_BYTES);
    let length = useful.min(bytes_max / PAGE_BYTES * PAGE_BYTES);
    let enough = length >= HEADER_BYTES + LINE_BYTES && (length - HEADER_BYTES) * 8 >= distinct * BITS_PER_VALUE_MIN;
    enough.then_some(length)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{BooleanArray, Int32Array, Int64Array, StringArray};

    use super::*;

    #[test]
    fn a_part_of_another_type_leaves_no_filter_rather_than_one_that_lacks_its_values() {
        let right: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None, Some(3)]));
        let wrong: ArrayRef = Arc::new(Int32Array::from(vec![5]));
        let text: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
        assert_eq!(hashes(&DataType::Int64, std::slice::from_ref(&right)), Some(vec![hash_i64(1), hash_i64(3)]));
        assert_eq!(hashes(&DataType::Int64, &[right.clone(), wrong]), None);
        assert_eq!(hashes(&DataType::Text, &[text.clone(), right]), None);
        assert_eq!(hashes(&DataType::Bytea, &[text]), None);
        let flags: ArrayRef = Arc::new(BooleanArray::from(vec![true]));
        assert_eq!(hashes(&DataType::Boolean, &[flags]), None);
    }
}
