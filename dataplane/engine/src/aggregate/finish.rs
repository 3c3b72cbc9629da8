//! Final values of aggregates.
//!
//! Owns what becomes of a state when its group is put out. Called a block of groups at a time.

use heliostat_segment::value_of_key;
use hidb::plan::{Aggregate, AggregateFunction};
use hidb::{BLOCK_ROWS, DataType, Lane, Result, Scalar};

use super::paged::Paged;
use super::state::{StateColumn, Values, overflow, total_of};
use crate::eval::facts::type_range;
use crate::vector::Vector;

/// `n / d` to the nearest integer, halves away from zero; `d` positive.
///
/// A division of 64-bit integers takes 40 to 90 cycles on a CPU before Ice Lake, one of floats 4; below 2^52 its
/// quotient is off by at most one.
#[inline]
fn divide_rounded(n: i64, d: i64) -> i64 {
    const EXACT: u64 = 1 << 52;
    let magnitude = n.unsigned_abs();
    let divisor = d.unsigned_abs();
    let (quotient, rest) = if magnitude < EXACT && divisor < EXACT {
        let near = (magnitude as f64 / divisor as f64) as u64;
        let quotient = if near * divisor > magnitude { near - 1 } else { near };
        (quotient, magnitude - quotient * divisor)
    } else {
        (magnitude / divisor, magnitude % divisor)
    };
    let rounded = (quotient + u64::from(rest >= divisor - rest)) as i64;
    if n < 0 { -rounded } else { rounded }
}

impl StateColumn {
    /// The final values of `count` groups from `first`, at most a block; `rows` counts each group's rows.
    pub fn values(
        &self,
        aggregate: &Aggregate,
        first: usize,
        count: usize,
        rows: &Paged<i64>,
        out: &mut Vector,
    ) -> Result<()> {
        out.reset(aggregate.data_type.lane(), BLOCK_ROWS);
        let never_null = self.nulls.is_empty() && rows.range(first, count).all(|rows| *rows > 0);
        let groups = first..first + count;
        match (&self.values, aggregate.function, out.lane) {
            (_, AggregateFunction::Count, Lane::I64) => {
                for (value, (group, rows)) in out.i64s.iter_mut().zip(groups.zip(rows.range(first, count))) {
                    *value = self.non_null(group, *rows);
                }
            }
            (Values::Distinct(sets), AggregateFunction::CountDistinct, Lane::I64) => {
                out.i64s.iter_mut().zip(groups).for_each(|(value, group)| *value = sets.count(group));
            }
            (Values::IntegerSum { .. }, AggregateFunction::Sum, Lane::I64 | Lane::I128) if never_null => {
                let (min, max) = type_range(&aggregate.data_type).unwrap_or((0, 0));
                for (row, group) in groups.enumerate() {
                    let sum = self.integer_sum(group);
                    if sum < min || sum > max {
                        return Err(overflow("a sum", &aggregate.data_type));
                    }
                    match out.lane {
                        Lane::I64 => out.i64s[row] = sum as i64,
                        _ => out.i128s[row] = sum,
                    }
                }
            }
            (Values::IntegerSum { .. }, AggregateFunction::Avg, Lane::I64 | Lane::I128) if never_null => {
                let factor = super::average_factor(aggregate).and_then(|factor| i64::try_from(factor).ok());
                let (min, max) = type_range(&aggregate.data_type).unwrap_or((0, 0));
                for (row, (group, rows)) in groups.zip(rows.range(first, count)).enumerate() {
                    let sum = self.integer_sum(group);
                    let narrow = i64::try_from(sum).ok().zip(factor).and_then(|(sum, factor)| sum.checked_mul(factor));
                    let average = narrow.map(|scaled| i128::from(divide_rounded(scaled, *rows)));
                    match (average.filter(|average| (min..=max).contains(average)), out.lane) {
                        (Some(average), Lane::I64) => out.i64s[row] = average as i64,
                        (Some(average), _) => out.i128s[row] = average,
                        (None, _) => out.store(row, &self.value(aggregate, group, *rows)?),
                    }
                }
            }
            (Values::I64(values), AggregateFunction::Min | AggregateFunction::Max, Lane::I64) if never_null => {
                out.i64s.iter_mut().zip(values.range(first, count)).for_each(|(out, value)| *out = *value);
            }
            _ => {
                for (row, (group, rows)) in groups.zip(rows.range(first, count)).enumerate() {
                    out.store(row, &self.value(aggregate, group, *rows)?);
                }
            }
        }
        Ok(())
    }

    /// The exact sum of a group.
    pub(super) fn integer_sum(&self, group: usize) -> i128 {
        match &self.values {
            Values::IntegerSum { partial, total, .. } => total_of(total, group).saturating_add(partial[group].into()),
            _ => 0,
        }
    }

    /// The final value of a group of `rows` rows.
    pub fn value(&self, aggregate: &Aggregate, group: usize, rows: i64) -> Result<Scalar> {
        let count = self.non_null(group, rows);
        match aggregate.function {
            AggregateFunction::Count => return Ok(Scalar::I64(count)),
            AggregateFunction::CountDistinct => {
                return Ok(Scalar::I64(match &self.values {
                    Values::Distinct(sets) => sets.count(group),
                    _ => 0,
                }));
            }
            _ if count == 0 => return Ok(Scalar::Null),
            _ => {}
        }
        Ok(match (&self.values, aggregate.function) {
            (Values::IntegerSum { .. }, AggregateFunction::Avg) => {
                super::average(self.integer_sum(group), count, aggregate)?
            }
            (Values::IntegerSum { .. }, _) => {
                let sum = self.integer_sum(group);
                super::integer_result(sum, &aggregate.data_type)
                    .ok_or_else(|| overflow("a sum", &aggregate.data_type))?
            }
            (Values::FloatSum(sums), function) => {
                let sum = sums.value(group);
                let value = if function == AggregateFunction::Avg { sum / count as f64 } else { sum };
                let single = aggregate.data_type == DataType::Float32;
                Scalar::F64(if single { f64::from(value as f32) } else { value })
            }
            (Values::I64(values), _) if self.lane == Lane::Bool => Scalar::Bool(values[group] != 0),
            (Values::I64(values), _) if self.lane == Lane::F64 => Scalar::F64(value_of_key(values[group])),
            (Values::I64(values), _) => Scalar::I64(values[group]),
            (Values::I128(values), _) => Scalar::I128(values[group]),
            (Values::Bytes { values, .. }, _) => {
                values[group].as_ref().map_or(Scalar::Null, |value| Scalar::Bytes(value.to_vec()))
            }
            (Values::Count | Values::Distinct(_), _) => Scalar::I64(count),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(n: i64, d: i64) {
        let expected = hidb::decimal::divide_rounded(n.into(), d.into()).unwrap();
        assert_eq!(i128::from(divide_rounded(n, d)), expected, "{n} / {d}");
    }

    #[test]
    fn halves_round_away_from_zero() {
        for (n, d) in [(5, 2), (-5, 2), (4, 3), (-4, 3), (1, 1 << 60), (i64::MAX, 2), (i64::MIN + 1, 3), (0, 7)] {
            check(n, d);
        }
    }

    proptest! {
        #[test]
        fn quotients_are_those_of_decimal_arithmetic(n: i64, d in 1..i64::MAX, shift in 0u32..62, by in 0u32..62) {
            check((n >> shift).max(-i64::MAX), (d >> by).max(1));
        }

        #[test]
        fn exact_multiples_and_their_neighbours_divide(quotient in 0i64..1 << 26, d in 1i64..1 << 26, off in -1i64..=1) {
            check(quotient * d + off, d);
        }
    }
}
