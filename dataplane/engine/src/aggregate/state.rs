//! Aggregate states: one column of states per distinct (function, argument), indexed by group number.
//!
//! Owns [`StateColumn`], what rows do to it and its merging. Final values
//! are in `finish`, the wire form in `wire`.

use std::cmp::Ordering;

use heliostat_segment::{Chunk, order_key};
use hidb::plan::AggregateFunction;
use hidb::{BLOCK_ROWS, DataType, Error, ErrorCode, Lane, Result, Scalar};

use super::arguments::integers;
use super::distinct::DistinctSets;
use super::extremes::{masked_extreme, neutral, update_i64};
use super::few::masked_sum;
use super::float_sum::FloatSums;
use super::paged::Paged;
use crate::vector::{Bits, Vector, and_bits, count_bits, for_each_bit};

pub use super::intermediate::merge_intermediate;
pub use super::wire::STATE_VERSION;

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
pub(super) enum Values {
    Count,
    /// `i64` partial sums that are flushed into the `i128` ones before they can overflow. Groups beyond the end of
    /// `total` have nothing in it.
    IntegerSum {
        partial: Paged<i64>,
        total: Paged<i128>,
        headroom: i128,
    },
    FloatSum(FloatSums),
    /// Booleans as 0 and 1, floats as their order keys.
    I64(Paged<i64>),
    I128(Paged<i128>),
    Bytes {
        values: Paged<Option<Box<[u8]>>>,
        held: usize,
    },
    Distinct(Box<DistinctSets>),
}

/// One state per group.
#[derive(Debug)]
pub(crate) struct StateColumn {
    pub(super) kind: StateKind,
    /// The argument's lane by its type.
    pub(super) lane: Lane,
    /// How many arguments were NULL, per group. Empty while none was.
    pub(super) nulls: Paged<i64>,
    pub(super) groups: usize,
    pub(super) values: Values,
}

/// Groups up to which sums go through per-block local accumulators.
pub(super) const LOCAL_GROUPS_MAX: usize = 64;
/// Copies of each local accumulator, so that consecutive rows of one group do not wait for each other.
pub(super) const LOCAL_COPIES: usize = 4;

pub(super) fn overflow(what: &str, data_type: &DataType) -> Error {
    Error::new(ErrorCode::NumericOverflow, format!("{what} leaves the range of {data_type}"))
}

impl StateColumn {
    /// States of no group yet; `grouped` if there may be more than one.
    pub fn new(kind: StateKind, lane: Lane, grouped: bool) -> Self {
        let values = match (kind, lane) {
            (StateKind::Count, _) => Values::Count,
            (StateKind::IntegerSum, _) => Values::IntegerSum {
                partial: Paged::default(),
                total: Paged::default(),
                headroom: i128::from(i64::MAX),
            },
            (StateKind::FloatSum, _) => Values::FloatSum(FloatSums::default()),
            (StateKind::Distinct, _) => Values::Distinct(Box::new(DistinctSets::new(lane, grouped))),
            (_, Lane::I64 | Lane::Bool | Lane::F64) => Values::I64(Paged::default()),
            (_, Lane::I128) => Values::I128(Paged::default()),
            (_, Lane::Bytes) => Values::Bytes { values: Paged::default(), held: 0 },
        };
        StateColumn { kind, lane, nulls: Paged::default(), groups: 0, values }
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
                // Beyond, most sums stay partial ones, and whoever adds to totals makes room.
                if groups <= LOCAL_GROUPS_MAX {
                    total.resize(groups, 0);
                }
            }
            Values::FloatSum(sums) => sums.resize(groups),
            Values::I64(values) => values.resize(groups, neutral(least)),
            Values::I128(values) => values.resize(groups, if least { i128::MIN } else { i128::MAX }),
            Values::Bytes { values, .. } => values.resize(groups, None),
            Values::Distinct(sets) => sets.resize(groups),
        }
    }

    pub fn memory_bytes(&self) -> usize {
        let values = match &self.values {
            Values::Count => 0,
            Values::IntegerSum { partial, total, .. } => partial.memory_bytes() + total.memory_bytes(),
            Values::FloatSum(sums) => sums.memory_bytes(),
            Values::I64(values) => values.memory_bytes(),
            Values::I128(values) => values.memory_bytes(),
            Values::Bytes { values, held } => values.memory_bytes() + held,
            Values::Distinct(sets) => sets.memory_bytes(),
        };
        self.nulls.memory_bytes() + values
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
    pub fn update(
        &mut self,
        groups: &[u32],
        argument: &Vector,
        magnitude: Option<i128>,
        scratch: &mut [i64; BLOCK_ROWS],
    ) {
        let rows = groups.len();
        let mut valid = crate::vector::first_bits(rows);
        if argument.has_nulls {
            let null: Bits = std::array::from_fn(|i| valid[i] & !argument.valid[i]);
            if crate::vector::any_bit(&null) {
                self.count_nulls(groups, &null);
            }
            valid = crate::vector::and_bits(&valid, &argument.valid);
        }
        let among = (count_bits(&valid) < rows).then_some(&valid);
        let group_count = self.groups;
        let maximum = self.kind == StateKind::Max;
        let each = |visit: &mut dyn FnMut(usize, usize)| for_each_bit(&valid, |row| visit(row, groups[row] as usize));
        match &mut self.values {
            Values::Count => {}
            Values::IntegerSum { partial, total, headroom } => {
                if argument.lane == Lane::I64 {
                    let values = integers(argument, Lane::I64, rows, among, 0, scratch);
                    let magnitude = magnitude.unwrap_or_else(|| {
                        let (min, max) = values.iter().fold((0i64, 0i64), |(min, max), v| (min.min(*v), max.max(*v)));
                        i128::from(max).max(-i128::from(min))
                    });
                    let needed = magnitude * BLOCK_ROWS as i128;
                    if needed <= i128::from(i64::MAX) {
                        if group_count <= LOCAL_GROUPS_MAX {
                            sum_locally(groups, values, &mut total.front_mut()[..group_count]);
                        } else {
                            if needed > *headroom {
                                flush(partial, total);
                                *headroom = i128::from(i64::MAX);
                            }
                            *headroom -= needed;
                            for (group, value) in groups.iter().zip(values) {
                                partial[*group as usize] = partial[*group as usize].wrapping_add(*value);
                            }
                        }
                        return;
                    }
                }
                // 38 digits times 2^63 rows could leave i128; saturating keeps such a sum out of every
                // type's range, so that reading it is an error.
                total.resize(group_count, 0);
                each(&mut |row, group| total[group] = total[group].saturating_add(argument.integer(row)));
            }
            Values::FloatSum(sums) => sums.add_block(groups, &argument.f64s, &valid),
            Values::I64(states) => {
                let values = integers(argument, self.lane, rows, among, neutral(maximum), scratch);
                update_i64(groups, values, maximum, states);
            }
            Values::I128(states) => each(&mut |row, group| {
                let value = argument.integer(row);
                let state = &mut states[group];
                *state = if maximum { value.max(*state) } else { value.min(*state) };
            }),
            Values::Bytes { values, held } => each(&mut |row, group| {
                offer_bytes(maximum, argument.bytes.get(row), &mut values[group], held);
            }),
            Values::Distinct(sets) => sets.update(groups, argument, &valid, among.is_none()),
        }
    }

    /// Whether [`StateColumn::update_groups`] takes such arguments.
    pub fn folds_under_bitmaps(&self) -> bool {
        matches!(&self.values, Values::Count | Values::IntegerSum { .. } | Values::I64(_))
    }

    /// Takes in the arguments of each group's rows; vectors are of whole blocks. `magnitude` as for
    /// [`StateColumn::update`].
    pub fn update_groups<'m>(
        &mut self,
        groups: impl Iterator<Item = (usize, &'m Bits)>,
        argument: &Vector,
        magnitude: Option<i128>,
        scratch: &mut [i64; BLOCK_ROWS],
    ) {
        let ordered = match &self.values {
            Values::I64(_) => integers(argument, self.lane, BLOCK_ROWS, None, 0, scratch),
            _ => &[],
        };
        for (group, rows) in groups {
            let mut live = *rows;
            if argument.has_nulls {
                live = and_bits(rows, &argument.valid);
                self.add_nulls(group, (count_bits(rows) - count_bits(&live)) as i64);
            }
            match &mut self.values {
                Values::IntegerSum { total, .. } => {
                    total.resize(self.groups, 0);
                    let fits = magnitude.is_some_and(|most| most <= i128::from(i64::MAX) / BLOCK_ROWS as i128);
                    if argument.lane == Lane::I64 && fits {
                        total[group] = total[group].saturating_add(masked_sum(&argument.i64s, &live).into());
                    } else {
                        for_each_bit(&live, |row| total[group] = total[group].saturating_add(argument.integer(row)));
                    }
                }
                Values::I64(states) => {
                    let state = &mut states[group];
                    *state = masked_extreme(ordered, &live, self.kind == StateKind::Max, *state);
                }
                _ => {}
            }
        }
    }

    /// Takes in all values of a block of the only group's rows without decoding them, if its encoding tells enough; false, and
    /// nothing taken in, if not.
    pub fn take_block(&mut self, chunk: &Chunk, block: usize) -> Result<bool> {
        let bounds = || -> Result<Option<Scalar>> {
            let zone = chunk.zone(block)?;
            let maximum = self.kind == StateKind::Max;
            Ok((zone.exact && zone.null_count == 0).then_some(if maximum { zone.max } else { zone.min }))
        };
        match &mut self.values {
            Values::IntegerSum { total, .. } => {
                let Some(sum) = chunk.sum(block)? else { return Ok(false) };
                total.resize(self.groups, 0);
                total[0] = total[0].saturating_add(sum);
            }
            Values::I64(states) => {
                let value = match bounds()? {
                    Some(Scalar::I64(value)) => value,
                    Some(Scalar::F64(value)) => order_key(value),
                    _ => return Ok(false),
                };
                states[0] = if self.kind == StateKind::Max { value.max(states[0]) } else { value.min(states[0]) };
            }
            Values::Bytes { values, held } => {
                let Some(Scalar::Bytes(value)) = bounds()? else { return Ok(false) };
                offer_bytes(self.kind == StateKind::Max, &value, &mut values[0], held);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether text whose 8-byte prefixes lie between these can't change the state of the only group.
    pub fn is_beyond(&self, bounds: (u64, u64)) -> bool {
        let Values::Bytes { values, .. } = &self.values else { return false };
        let maximum = self.kind == StateKind::Max;
        let only = values.iter().next().filter(|_| values.len() == 1).and_then(Option::as_ref);
        only.is_some_and(|state| super::extremes::is_beyond(state, bounds, maximum))
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
                total.resize(self.groups, 0);
                pairs.for_each(|(from, group)| {
                    total[group] = total[group].saturating_add(total_of(t, from)).saturating_add(p[from].into());
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
            Values::Distinct(sets) => sets.len(),
            _ => 0,
        }
    }

    /// Takes in the entries `from..to` of another's set; `groups[g]` is the group here of group `g` there.
    pub fn absorb_distinct(&mut self, groups: &[u32], other: &StateColumn, from: usize, to: usize) -> Result<()> {
        match (&mut self.values, &other.values) {
            (Values::Distinct(sets), Values::Distinct(theirs)) if from < to => sets.absorb(groups, theirs, from, to),
            _ => Ok(()),
        }
    }

    /// How many of a group's `rows` arguments were not NULL.
    pub(super) fn non_null(&self, group: usize, rows: i64) -> i64 {
        rows - if self.nulls.is_empty() { 0 } else { self.nulls[group] }
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

pub(super) fn offer_bytes(maximum: bool, value: &[u8], state: &mut Option<Box<[u8]>>, held: &mut usize) {
    let wins = match state {
        None => true,
        Some(state) => value.cmp(state) == if maximum { Ordering::Greater } else { Ordering::Less },
    };
    if wins {
        *held = *held + value.len() - state.as_ref().map_or(0, |state| state.len());
        *state = Some(value.into());
    }
}

/// The total of a group, which may have none.
#[inline]
pub(super) fn total_of(total: &Paged<i128>, group: usize) -> i128 {
    if group < total.len() { total[group] } else { 0 }
}

fn flush(partial: &mut Paged<i64>, total: &mut Paged<i128>) {
    total.resize(partial.len(), 0);
    let partials = partial.pages_mut().flatten();
    for (partial, total) in partials.zip(total.pages_mut().flatten()) {
        *total = total.saturating_add(i128::from(*partial));
        *partial = 0;
    }
}

/// Sums of one block for few groups, in registers' reach: four copies of each accumulator.
fn sum_locally(groups: &[u32], values: &[i64], total: &mut [i128]) {
    if total.len() == 1 {
        let sum = values.iter().fold(0i64, |sum, value| sum.wrapping_add(*value));
        total[0] = total[0].saturating_add(sum.into());
        return;
    }
    let mut local = [[0i64; LOCAL_GROUPS_MAX]; LOCAL_COPIES];
    let mask = LOCAL_GROUPS_MAX - 1;
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
    for (group, total) in total.iter_mut().enumerate() {
        let sum = local.iter().fold(0i64, |sum, copy| sum.wrapping_add(copy[group]));
        *total = total.saturating_add(sum.into());
    }
}

/// Adds the rows of one block to their groups' counts.
pub(super) fn count_rows(groups: &[u32], total: &mut Paged<i64>) {
    if total.len() > LOCAL_GROUPS_MAX {
        groups.iter().for_each(|group| total[*group as usize] += 1);
        return;
    }
    // Copies, because an increment waits for the one before it to the same group.
    let total = total.front_mut();
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
