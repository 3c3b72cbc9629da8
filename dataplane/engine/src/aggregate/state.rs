//! Aggregate states: one column of states per distinct (function, argument), indexed by group number.
//!
//! Owns [`StateColumn`], its merging, its final values and its wire form, and [`merge_intermediate`].
//!
//! Wire form of a state (one Bytea value per aggregate and group, Phase::Intermediate), little-endian:
//! version (1 byte, [`STATE_VERSION`]), kind (1 byte), number of non-NULL arguments (i64), then
//! - kind 1, count: nothing;
//! - kind 2, exact sum (also avg) of integers or decimals: i128;
//! - kind 3, exact sum (also avg) of floats: flags (1: NaN, 2: +inf, 4: -inf), number of chunks (1 byte), per
//!   chunk its index (1 byte) and value (i64), worth `value * 2^(32 * index - 1075)`;
//! - kind 4, min or max: a value in row encoding (0 for none; 1 and the value little-endian, bytes with a
//!   u32 length);
//! - kind 5, count distinct: number of values (u32), and each in row encoding.

use std::cmp::Ordering;

use hidb::plan::{Aggregate, AggregateFunction};
use hidb::types::compare_f64;
use hidb::{DataType, Error, ErrorCode, Lane, Result, Scalar};

use super::few::{masked_bounds, masked_sum};
use super::float_sum::FloatSums;
use super::groups::GroupTable;
use crate::rows::{read_value, take, write_value};
use crate::vector::{Bits, Vector, and_bits, bit, count_bits, for_each_bit};

pub use super::intermediate::merge_intermediate;

/// The version of the wire form.
pub const STATE_VERSION: u8 = 1;

/// What is kept per group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum StateKind {
    Count,
    IntegerSum,
    FloatSum,
    Min,
    Max,
    Distinct,
}

impl StateKind {
    pub fn of(function: AggregateFunction, argument_lane: Option<Lane>) -> StateKind {
        match (function, argument_lane) {
            (AggregateFunction::Count, _) | (_, None) => StateKind::Count,
            (AggregateFunction::CountDistinct, _) => StateKind::Distinct,
            (AggregateFunction::Min, _) => StateKind::Min,
            (AggregateFunction::Max, _) => StateKind::Max,
            (AggregateFunction::Sum | AggregateFunction::Avg, Some(Lane::F64)) => StateKind::FloatSum,
            (AggregateFunction::Sum | AggregateFunction::Avg, Some(_)) => StateKind::IntegerSum,
        }
    }
}

/// The values of one state column.
#[derive(Debug)]
enum Values {
    Count,
    /// `i64` partial sums that are flushed into the `i128` ones before they can overflow.
    IntegerSum {
        partial: Vec<i64>,
        total: Vec<i128>,
        headroom: i128,
    },
    FloatSum(FloatSums),
    I64(Vec<i64>),
    I128(Vec<i128>),
    F64(Vec<f64>),
    Bytes {
        values: Vec<Option<Box<[u8]>>>,
        held: usize,
    },
    /// Keys: group number (4 bytes), then the value in row encoding.
    Distinct {
        set: GroupTable,
        counts: Vec<i64>,
        key: Vec<u8>,
    },
}

/// One state per group.
#[derive(Debug)]
pub(crate) struct StateColumn {
    kind: StateKind,
    /// The argument's lane by its type.
    lane: Lane,
    /// How many arguments were NULL, per group. Empty while none was.
    nulls: Vec<i64>,
    groups: usize,
    values: Values,
}

/// Groups up to which sums go through per-block local accumulators.
const LOCAL_GROUPS_MAX: usize = 64;
/// Copies of each local accumulator, so that consecutive rows of one group do not wait for each other.
const LOCAL_COPIES: usize = 4;

fn overflow(what: &str, data_type: &DataType) -> Error {
    Error::new(ErrorCode::NumericOverflow, format!("{what} leaves the range of {data_type}"))
}

fn malformed(found: &str) -> Error {
    Error::new(ErrorCode::InvalidValue, format!("an intermediate aggregate state is malformed: {found}"))
}

impl StateColumn {
    pub fn new(kind: StateKind, lane: Lane) -> Self {
        let values = match (kind, lane) {
            (StateKind::Count, _) => Values::Count,
            (StateKind::IntegerSum, _) => {
                Values::IntegerSum { partial: Vec::new(), total: Vec::new(), headroom: i128::from(i64::MAX) }
            }
            (StateKind::FloatSum, _) => Values::FloatSum(FloatSums::default()),
            (StateKind::Distinct, _) => {
                Values::Distinct { set: GroupTable::default(), counts: Vec::new(), key: Vec::new() }
            }
            (_, Lane::I64 | Lane::Bool) => Values::I64(Vec::new()),
            (_, Lane::I128) => Values::I128(Vec::new()),
            (_, Lane::F64) => Values::F64(Vec::new()),
            (_, Lane::Bytes) => Values::Bytes { values: Vec::new(), held: 0 },
        };
        StateColumn { kind, lane, nulls: Vec::new(), groups: 0, values }
    }

    pub fn kind(&self) -> StateKind {
        self.kind
    }

    /// Makes room for this many groups.
    pub fn resize(&mut self, groups: usize) {
        if groups <= self.groups {
            return;
        }
        self.groups = groups;
        if !self.nulls.is_empty() {
            self.nulls.resize(groups, 0);
        }
        let least = self.kind == StateKind::Max;
        match &mut self.values {
            Values::Count => {}
            Values::IntegerSum { partial, total, .. } => {
                partial.resize(groups, 0);
                total.resize(groups, 0);
            }
            Values::FloatSum(sums) => sums.resize(groups),
            Values::I64(values) => values.resize(groups, if least { i64::MIN } else { i64::MAX }),
            Values::I128(values) => values.resize(groups, if least { i128::MIN } else { i128::MAX }),
            Values::F64(values) => values.resize(groups, if least { f64::NEG_INFINITY } else { f64::NAN }),
            Values::Bytes { values, .. } => values.resize(groups, None),
            Values::Distinct { counts, .. } => counts.resize(groups, 0),
        }
    }

    pub fn memory_bytes(&self) -> usize {
        let values = match &self.values {
            Values::Count => 0,
            Values::IntegerSum { partial, total, .. } => partial.capacity() * 8 + total.capacity() * 16,
            Values::FloatSum(sums) => sums.memory_bytes(),
            Values::I64(values) => values.capacity() * 8,
            Values::I128(values) => values.capacity() * 16,
            Values::F64(values) => values.capacity() * 8,
            Values::Bytes { values, held } => values.capacity() * 16 + held,
            Values::Distinct { set, counts, .. } => set.memory_bytes() + counts.capacity() * 8,
        };
        self.nulls.capacity() * 8 + values
    }

    fn count_nulls(&mut self, groups: &[u32], null: &Bits) {
        if self.nulls.is_empty() {
            self.nulls.resize(self.groups, 0);
        }
        for_each_bit(null, |row| {
            if let Some(group) = groups.get(row) {
                self.nulls[*group as usize] += 1;
            }
        });
    }

    /// Takes in the arguments of one block. `magnitude`: no value is greater, when that is known.
    pub fn update(&mut self, groups: &[u32], argument: &Vector, magnitude: Option<i128>) {
        let rows = groups.len();
        let mut valid = crate::vector::first_bits(rows);
        if argument.has_nulls {
            let null: Bits = std::array::from_fn(|i| valid[i] & !argument.valid[i]);
            if crate::vector::any_bit(&null) {
                self.count_nulls(groups, &null);
            }
            valid = crate::vector::and_bits(&valid, &argument.valid);
        }
        let all = crate::vector::count_bits(&valid) == rows;
        let group_count = self.groups;
        let maximum = self.kind == StateKind::Max;
        let each = |visit: &mut dyn FnMut(usize, usize)| for_each_bit(&valid, |row| visit(row, groups[row] as usize));
        match &mut self.values {
            Values::Count => {}
            Values::IntegerSum { partial, total, headroom } => {
                if argument.lane == Lane::I64 {
                    let values = &argument.i64s[..rows];
                    let magnitude = magnitude.unwrap_or_else(|| {
                        let (min, max) = values.iter().fold((0i64, 0i64), |(min, max), v| (min.min(*v), max.max(*v)));
                        i128::from(max).max(-i128::from(min))
                    });
                    let needed = magnitude * hidb::BLOCK_ROWS as i128;
                    if needed <= i128::from(i64::MAX) {
                        if group_count <= LOCAL_GROUPS_MAX {
                            sum_locally(groups, values, &valid, all, total);
                        } else {
                            if needed > *headroom {
                                flush(partial, total);
                                *headroom = i128::from(i64::MAX);
                            }
                            *headroom -= needed;
                            if all {
                                for (group, value) in groups.iter().zip(values) {
                                    partial[*group as usize] = partial[*group as usize].wrapping_add(*value);
                                }
                            } else {
                                each(&mut |row, group| partial[group] = partial[group].wrapping_add(values[row]));
                            }
                        }
                        return;
                    }
                }
                // 38 digits times 2^63 rows could leave i128; saturating keeps such a sum out of every
                // type's range, so that reading it is an error.
                each(&mut |row, group| total[group] = total[group].saturating_add(argument.integer(row)));
            }
            Values::FloatSum(sums) => each(&mut |row, group| sums.add(group, argument.f64s[row])),
            Values::I64(states) if self.lane == Lane::Bool => each(&mut |row, group| {
                let value = i64::from(bit(&argument.bits, row));
                let state = &mut states[group];
                *state = if maximum { value.max(*state) } else { value.min(*state) };
            }),
            Values::I64(states) => {
                let values = &argument.i64s[..rows];
                if all {
                    super::extremes::update_i64(groups, values, maximum, states);
                } else if maximum {
                    each(&mut |row, group| states[group] = states[group].max(values[row]));
                } else {
                    each(&mut |row, group| states[group] = states[group].min(values[row]));
                }
            }
            Values::I128(states) => each(&mut |row, group| {
                let value = argument.integer(row);
                let state = &mut states[group];
                *state = if maximum { value.max(*state) } else { value.min(*state) };
            }),
            Values::F64(states) => each(&mut |row, group| {
                let value = crate::rows::canonical(argument.f64s[row]);
                if wins_f64(maximum, value, states[group]) {
                    states[group] = value;
                }
            }),
            Values::Bytes { values, held } => each(&mut |row, group| {
                offer_bytes(maximum, argument.bytes.get(row), &mut values[group], held);
            }),
            Values::Distinct { set, counts, key } => each(&mut |row, group| {
                key.clear();
                key.extend_from_slice(&(group as u32).to_le_bytes());
                write_value(argument, self.lane, row, key);
                counts[group] += i64::from(set.find_or_insert(key).1);
            }),
        }
    }

    /// Whether [`StateColumn::update_group`] takes such arguments.
    pub fn folds_under_bitmaps(&self) -> bool {
        match &self.values {
            Values::Count | Values::IntegerSum { .. } => true,
            Values::I64(_) => self.lane == Lane::I64,
            _ => false,
        }
    }

    /// Takes in the arguments of the rows of one group; vectors are of whole blocks. `magnitude` as for
    /// [`StateColumn::update`].
    pub fn update_group(&mut self, group: usize, rows: &Bits, argument: &Vector, magnitude: Option<i128>) {
        let mut live = *rows;
        if argument.has_nulls {
            live = and_bits(rows, &argument.valid);
            self.add_nulls(group, (count_bits(rows) - count_bits(&live)) as i64);
        }
        match &mut self.values {
            Values::IntegerSum { total, .. } => {
                let fits = magnitude.is_some_and(|most| most <= i128::from(i64::MAX) / hidb::BLOCK_ROWS as i128);
                if argument.lane == Lane::I64 && fits {
                    total[group] = total[group].saturating_add(masked_sum(&argument.i64s, &live).into());
                } else {
                    for_each_bit(&live, |row| total[group] = total[group].saturating_add(argument.integer(row)));
                }
            }
            Values::I64(states) => {
                let (min, max) = masked_bounds(&argument.i64s, &live);
                let state = &mut states[group];
                *state = if self.kind == StateKind::Max { max.max(*state) } else { min.min(*state) };
            }
            _ => {}
        }
    }

    /// Whether text whose 8-byte prefixes lie between these can't change the state of the only group.
    pub fn is_beyond(&self, bounds: (u64, u64)) -> bool {
        let Values::Bytes { values, .. } = &self.values else { return false };
        matches!(values.as_slice(), [Some(state)] if super::extremes::is_beyond(state, bounds, self.kind == StateKind::Max))
    }

    /// Takes in another column's states; `groups[i]` is the group here of group `from + i` there.
    pub fn absorb(&mut self, groups: &[u32], other: &StateColumn, from: usize) {
        if !other.nulls.is_empty() {
            if self.nulls.is_empty() {
                self.nulls.resize(self.groups, 0);
            }
            for (index, group) in groups.iter().enumerate() {
                self.nulls[*group as usize] += other.nulls[from + index];
            }
        }
        let maximum = self.kind == StateKind::Max;
        let pairs = groups.iter().enumerate().map(|(index, group)| (from + index, *group as usize));
        match (&mut self.values, &other.values) {
            (Values::IntegerSum { total, .. }, Values::IntegerSum { partial: p, total: t, .. }) => {
                pairs.for_each(|(from, group)| {
                    total[group] = total[group].saturating_add(t[from]).saturating_add(p[from].into());
                });
            }
            (Values::FloatSum(sums), Values::FloatSum(theirs)) => {
                pairs.for_each(|(from, group)| sums.absorb(group, theirs, from));
            }
            (Values::I64(states), Values::I64(theirs)) => pairs.for_each(|(from, group)| {
                let (a, b) = (states[group], theirs[from]);
                states[group] = if maximum { a.max(b) } else { a.min(b) };
            }),
            (Values::I128(states), Values::I128(theirs)) => pairs.for_each(|(from, group)| {
                let (a, b) = (states[group], theirs[from]);
                states[group] = if maximum { a.max(b) } else { a.min(b) };
            }),
            (Values::F64(states), Values::F64(theirs)) => pairs.for_each(|(from, group)| {
                if wins_f64(maximum, theirs[from], states[group]) {
                    states[group] = theirs[from];
                }
            }),
            (Values::Bytes { values, held }, Values::Bytes { values: theirs, .. }) => {
                pairs.for_each(|(from, group)| {
                    if let Some(value) = &theirs[from] {
                        offer_bytes(maximum, value, &mut values[group], held);
                    }
                });
            }
            // The set is walked as a whole by `absorb_distinct`.
            _ => {}
        }
    }

    /// Entries of a count(distinct) set; 0 for other kinds.
    pub fn distinct_len(&self) -> usize {
        match &self.values {
            Values::Distinct { set, .. } => set.len(),
            _ => 0,
        }
    }

    /// Takes in the entries `from..to` of another's set; `groups[g]` is the group here of group `g` there.
    pub fn absorb_distinct(&mut self, groups: &[u32], other: &StateColumn, from: usize, to: usize) {
        if let (Values::Distinct { set, counts, key }, Values::Distinct { set: theirs, .. }) =
            (&mut self.values, &other.values)
        {
            for entry in from..to {
                if let Some((number, value)) = theirs.key(entry).split_first_chunk::<4>() {
                    let group = groups[u32::from_le_bytes(*number) as usize];
                    key.clear();
                    key.extend_from_slice(&group.to_le_bytes());
                    key.extend_from_slice(value);
                    counts[group as usize] += i64::from(set.find_or_insert(key).1);
                }
            }
        }
    }

    fn non_null(&self, group: usize, rows: i64) -> i64 {
        rows - self.nulls.get(group).copied().unwrap_or(0)
    }

    fn integer_sum(&self, group: usize) -> i128 {
        match &self.values {
            Values::IntegerSum { partial, total, .. } => total[group].saturating_add(partial[group].into()),
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
                    Values::Distinct { counts, .. } => counts[group],
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
            (Values::I64(values), _) => Scalar::I64(values[group]),
            (Values::I128(values), _) => Scalar::I128(values[group]),
            (Values::F64(values), _) => Scalar::F64(values[group]),
            (Values::Bytes { values, .. }, _) => {
                values[group].as_ref().map_or(Scalar::Null, |value| Scalar::Bytes(value.to_vec()))
            }
            (Values::Count | Values::Distinct { .. }, _) => Scalar::I64(count),
        })
    }

    /// For every group its entries of a count(distinct) set, as `write_state` wants them.
    pub fn distinct_by_group(&self) -> Vec<Vec<u32>> {
        let Values::Distinct { set, counts, .. } = &self.values else { return Vec::new() };
        let mut lists: Vec<Vec<u32>> = counts.iter().map(|count| Vec::with_capacity(*count as usize)).collect();
        for entry in 0..set.len() {
            if let Some((number, _)) = set.key(entry).split_first_chunk::<4>() {
                lists[u32::from_le_bytes(*number) as usize].push(entry as u32);
            }
        }
        lists
    }

    /// Appends the wire form of a group's state.
    pub fn write_state(&self, group: usize, rows: i64, distinct: &[Vec<u32>], out: &mut Vec<u8>) {
        let count = self.non_null(group, rows);
        let kind = match self.kind {
            StateKind::Count => 1,
            StateKind::IntegerSum => 2,
            StateKind::FloatSum => 3,
            StateKind::Min | StateKind::Max => 4,
            StateKind::Distinct => 5,
        };
        out.extend_from_slice(&[STATE_VERSION, kind]);
        out.extend_from_slice(&count.to_le_bytes());
        match &self.values {
            Values::Count => {}
            Values::IntegerSum { .. } => out.extend_from_slice(&self.integer_sum(group).to_le_bytes()),
            Values::FloatSum(sums) => sums.write_state(group, out),
            Values::Distinct { set, .. } => {
                let entries = distinct.get(group).map_or(&[][..], Vec::as_slice);
                out.extend_from_slice(&(entries.len() as u32).to_le_bytes());
                entries.iter().for_each(|entry| out.extend_from_slice(&set.key(*entry as usize)[4..]));
            }
            _ if count == 0 => out.push(0),
            Values::I64(values) if self.lane == Lane::Bool => out.extend_from_slice(&[1, values[group] as u8]),
            Values::I64(values) => {
                out.push(1);
                out.extend_from_slice(&values[group].to_le_bytes());
            }
            Values::I128(values) => {
                out.push(1);
                out.extend_from_slice(&values[group].to_le_bytes());
            }
            Values::F64(values) => {
                out.push(1);
                out.extend_from_slice(&crate::rows::canonical(values[group]).to_bits().to_le_bytes());
            }
            Values::Bytes { values, .. } => match &values[group] {
                Some(value) => {
                    out.push(1);
                    crate::rows::write_bytes(value, out);
                }
                None => out.push(0),
            },
        }
    }

    /// Takes in a state in wire form; returns its number of non-NULL arguments.
    pub fn absorb_state(&mut self, group: usize, mut bytes: &[u8]) -> Result<i64> {
        let [version, kind] = take::<2>(&mut bytes)?;
        if version != STATE_VERSION {
            return Err(malformed(&format!("version {version}, this build reads {STATE_VERSION}")));
        }
        let count = i64::from_le_bytes(take(&mut bytes)?);
        if count < 0 {
            return Err(malformed("a negative count"));
        }
        let maximum = self.kind == StateKind::Max;
        match (kind, &mut self.values) {
            (1, Values::Count) => {}
            (2, Values::IntegerSum { total, .. }) => {
                total[group] = total[group].saturating_add(i128::from_le_bytes(take(&mut bytes)?));
            }
            (3, Values::FloatSum(sums)) => {
                sums.absorb_state(group, bytes).ok_or_else(|| malformed("a float sum"))?;
                bytes = &[];
            }
            (5, Values::Distinct { set, counts, key }) => {
                let entries = u32::from_le_bytes(take(&mut bytes)?);
                for _ in 0..entries {
                    let before = bytes;
                    let mut value = Vector::default();
                    value.reset(self.lane, 1);
                    read_value(&mut bytes, self.lane, 0, &mut value)?;
                    key.clear();
                    key.extend_from_slice(&(group as u32).to_le_bytes());
                    key.extend_from_slice(&before[..before.len() - bytes.len()]);
                    counts[group] += i64::from(set.find_or_insert(key).1);
                }
            }
            (4, values) => {
                let mut value = Vector::default();
                value.reset(self.lane, 1);
                read_value(&mut bytes, self.lane, 0, &mut value)?;
                if value.is_valid(0) {
                    match values {
                        Values::I64(states) => {
                            let v =
                                if self.lane == Lane::Bool { i64::from(bit(&value.bits, 0)) } else { value.i64s[0] };
                            states[group] = if maximum { v.max(states[group]) } else { v.min(states[group]) };
                        }
                        Values::I128(states) => {
                            let v = value.i128s[0];
                            states[group] = if maximum { v.max(states[group]) } else { v.min(states[group]) };
                        }
                        Values::F64(states) if wins_f64(maximum, value.f64s[0], states[group]) => {
                            states[group] = value.f64s[0];
                        }
                        Values::F64(_) => {}
                        Values::Bytes { values, held } => {
                            offer_bytes(maximum, value.bytes.get(0), &mut values[group], held);
                        }
                        _ => return Err(malformed("a minimum or maximum where another state was expected")),
                    }
                }
            }
            _ => return Err(malformed(&format!("kind {kind} for an aggregate of another kind"))),
        }
        if !bytes.is_empty() {
            return Err(malformed("trailing bytes"));
        }
        Ok(count)
    }

    /// Records that of a group's rows (counted elsewhere) this many more were NULL.
    pub fn add_nulls(&mut self, group: usize, nulls: i64) {
        if nulls != 0 {
            if self.nulls.is_empty() {
                self.nulls.resize(self.groups, 0);
            }
            self.nulls[group] += nulls;
        }
    }
}

fn wins_f64(maximum: bool, value: f64, state: f64) -> bool {
    compare_f64(value, state) == if maximum { Ordering::Greater } else { Ordering::Less }
}

fn offer_bytes(maximum: bool, value: &[u8], state: &mut Option<Box<[u8]>>, held: &mut usize) {
    let wins = match state {
        None => true,
        Some(state) => value.cmp(state) == if maximum { Ordering::Greater } else { Ordering::Less },
    };
    if wins {
        *held = *held + value.len() - state.as_ref().map_or(0, |state| state.len());
        *state = Some(value.into());
    }
}

fn flush(partial: &mut [i64], total: &mut [i128]) {
    for (partial, total) in partial.iter_mut().zip(total) {
        *total = total.saturating_add(i128::from(*partial));
        *partial = 0;
    }
}

/// Sums of one block for few groups, in registers' reach: four copies of each accumulator.
fn sum_locally(groups: &[u32], values: &[i64], valid: &Bits, all: bool, total: &mut [i128]) {
    if total.len() == 1 {
        let sum = if all {
            values.iter().fold(0i64, |sum, value| sum.wrapping_add(*value))
        } else {
            let mut sum = 0i64;
            for_each_bit(valid, |row| sum = sum.wrapping_add(values[row]));
            sum
        };
        total[0] = total[0].saturating_add(sum.into());
        return;
    }
    let mut local = [[0i64; LOCAL_GROUPS_MAX]; LOCAL_COPIES];
    let mask = LOCAL_GROUPS_MAX - 1;
    if all {
        let (group_quads, group_rest) = groups.as_chunks::<LOCAL_COPIES>();
        let (value_quads, value_rest) = values[..groups.len()].as_chunks::<LOCAL_COPIES>();
        for (groups, values) in group_quads.iter().zip(value_quads) {
            for copy in 0..LOCAL_COPIES {
                let slot = &mut local[copy][groups[copy] as usize & mask];
                *slot = slot.wrapping_add(values[copy]);
            }
        }
        for (group, value) in group_rest.iter().zip(value_rest) {
            let slot = &mut local[0][*group as usize & mask];
            *slot = slot.wrapping_add(*value);
        }
    } else {
        for_each_bit(valid, |row| {
            let slot = &mut local[row % LOCAL_COPIES][groups[row] as usize & mask];
            *slot = slot.wrapping_add(values[row]);
        });
    }
    for (group, total) in total.iter_mut().enumerate() {
        let sum = local.iter().fold(0i64, |sum, copy| sum.wrapping_add(copy[group]));
        *total = total.saturating_add(sum.into());
    }
}

/// Adds the rows of one block to their groups' counts.
pub(super) fn count_rows(groups: &[u32], total: &mut [i64]) {
    if total.len() > LOCAL_GROUPS_MAX {
        groups.iter().for_each(|group| total[*group as usize] += 1);
        return;
    }
    // Copies, because an increment waits for the one before it to the same group.
    let mut local = [[0u32; LOCAL_GROUPS_MAX]; LOCAL_COPIES];
    let mask = LOCAL_GROUPS_MAX - 1;
    let (quads, rest) = groups.as_chunks::<LOCAL_COPIES>();
    for quad in quads {
        for copy in 0..LOCAL_COPIES {
            local[copy][quad[copy] as usize & mask] += 1;
        }
    }
    rest.iter().for_each(|group| local[0][*group as usize & mask] += 1);
    for (group, total) in total.iter_mut().enumerate() {
        *total += local.iter().map(|copy| i64::from(copy[group])).sum::<i64>();
    }
}
