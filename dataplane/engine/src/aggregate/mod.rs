//! Grouping and aggregates: from blocks of survivors to one state per group and aggregate.
//!
//! Owns [`AggregatePlan`] (what is computed), [`Groups`] (keys and states), [`Aggregator`] (one core's run).
//! Called by the core scan per block and by the merge.
//!
//! How a row finds its group, decided per row group from zone maps and dictionaries:
//! - no keys: there is one group;
//! - the keys' domains (dictionary codes, small ranges of integers) multiply to at most [`DIRECT_MAX`]: a
//!   table indexed by the combined code holds the group number; only the first row of a group in a row group
//!   goes to the hash table;
//! - no keys, or a table of few slots of which few occur: a bitmap of rows per group (`few`);
//! - otherwise a block of keys is looked up in the table of groups (`groups`): packed into words where all have a
//!   fixed width, in row encoding where not.
//!
//! Invariants
//! - Aggregates with the same function class and argument share one state column (avg and sum do).
//! - `rows[g]` counts all rows of a group; a state column counts only its NULLs, so count costs nothing more.
//!
//! Cost: direct 1.5 ns a row for two keys; sums of few groups 0.6 ns per row and column. For 100,000 groups a lookup,
//! a count and a sum take 16 ns together, for 1.75 M of them 88 ns with giving them out: each row misses the cache (and
//! the TLB) once for its key, once for its count and once per sum.

mod arguments;
mod byte_keys;
mod digits;
mod distinct;
mod extremes;
mod few;
mod finish;
mod float_sum;
pub(crate) mod groups;
mod intermediate;
mod near;
mod packed_keys;
pub(crate) mod paged;
mod slots;
pub mod state;
mod superaccumulator;
mod wire;

use std::sync::Arc;

use heliostat_segment::Chunk;
use hidb::plan::{Aggregate, Aggregation, Phase};
use hidb::types::Scalar;
use hidb::{BLOCK_ROWS, DataType, Error, ErrorCode, Lane, Result, decimal};

use crate::eval::Program;
use crate::eval::facts::{Fact, type_range};
use crate::eval::machine::{ColumnSource, Machine};
use crate::eval::tables::ENTRIES_MAX;
use crate::source::{RowSource, Survivors};
use crate::vector::{Bits, Vector, and_not_bits, bit, count_bits, first_bits, for_each_bit};
use arguments::integers;
use few::{FewGroups, SLOTS_MAX};
use groups::GroupTable;
use paged::Paged;
use state::{StateColumn, StateKind, count_rows};

/// A block that keeps one row in so many is read whole.
const DENSE: usize = 3;
/// The most slots of a directly indexed table of groups.
const DIRECT_MAX: usize = 1 << 16;
/// A slot whose group is not known yet.
const UNKNOWN_GROUP: u32 = u32::MAX;
/// Set in a row's slot while its group is not known.
const UNSEEN_SLOT: u32 = 1 << 31;

/// What is grouped and aggregated.
#[derive(Debug)]
pub(crate) struct AggregatePlan {
    pub program: Program,
    /// Nodes of the group keys.
    pub keys: Vec<usize>,
    pub key_types: Vec<DataType>,
    pub aggregates: Vec<Aggregate>,
    /// For every aggregate its state column.
    pub state_of: Vec<usize>,
    /// State columns: kind, argument's lane, argument's node.
    pub states: Vec<(StateKind, Lane, Option<usize>)>,
    /// Table columns read, ascending.
    pub columns: Vec<usize>,
    pub phase: Phase,
}

impl AggregatePlan {
    pub fn compile(aggregation: &Aggregation) -> Result<Self> {
        let mut program = Program::default();
        let keys = aggregation.keys.iter().map(|key| program.add(key)).collect::<Result<Vec<_>>>()?;
        let mut states = Vec::new();
        let mut state_of = Vec::new();
        let mut columns: Vec<usize> = aggregation.keys.iter().flat_map(|key| key.columns()).collect();
        for aggregate in &aggregation.aggregates {
            let lane = aggregate.argument.as_ref().map(|argument| argument.data_type.lane());
            let kind = StateKind::of(aggregate.function, lane);
            // Counting an argument that is never NULL is counting rows: it need not be read.
            let argument = aggregate.argument.as_ref().filter(|a| kind != StateKind::Count || a.nullable);
            let node = argument.map(|argument| program.add(argument)).transpose()?;
            columns.extend(argument.into_iter().flat_map(|argument| argument.columns()));
            let state = (kind, lane.unwrap_or(Lane::I64), node);
            let index = states.iter().position(|other| *other == state).unwrap_or_else(|| {
                states.push(state);
                states.len() - 1
            });
            state_of.push(index);
        }
        columns.sort_unstable();
        columns.dedup();
        Ok(AggregatePlan {
            program,
            keys,
            key_types: aggregation.keys.iter().map(|key| key.data_type).collect(),
            aggregates: aggregation.aggregates.clone(),
            state_of,
            states,
            columns,
            phase: aggregation.phase,
        })
    }
}

/// Keys and states of all groups seen.
#[derive(Debug)]
pub(crate) struct Groups {
    pub table: GroupTable,
    /// Rows per group.
    pub rows: Paged<i64>,
    pub states: Vec<StateColumn>,
}

impl Groups {
    pub fn new(plan: &AggregatePlan) -> Self {
        let grouped = !plan.keys.is_empty();
        let states = plan.states.iter().map(|(kind, lane, _)| StateColumn::new(*kind, *lane, grouped)).collect();
        let mut groups = Groups { table: GroupTable::new(&plan.key_types), rows: Paged::default(), states };
        if !grouped {
            // The one group of an aggregation without keys exists even without rows.
            groups.table.find_block(&[], 1, &mut [0; BLOCK_ROWS]);
            groups.grow();
        }
        groups
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Gives every group of the table its states.
    pub fn grow(&mut self) {
        let groups = self.table.len();
        if self.rows.len() < groups {
            self.rows.resize(groups, 0);
            self.states.iter_mut().for_each(|state| state.resize(groups));
        }
    }

    pub fn memory_bytes(&self) -> usize {
        let states: usize = self.states.iter().map(StateColumn::memory_bytes).sum();
        self.table.memory_bytes() + self.rows.memory_bytes() + states
    }

    /// Final values (or, in the intermediate phase, states) of `count` groups from `first`, a vector per aggregate.
    pub fn values(
        &self,
        plan: &AggregatePlan,
        distinct: &[Vec<Vec<u32>>],
        first: usize,
        count: usize,
        out: &mut [Vector],
    ) -> Result<()> {
        for ((vector, aggregate), state) in out.iter_mut().zip(&plan.aggregates).zip(&plan.state_of) {
            let states = &self.states[*state];
            if plan.phase == Phase::Intermediate {
                vector.reset(Lane::Bytes, BLOCK_ROWS);
                let entries = distinct.get(*state).map_or(&[][..], Vec::as_slice);
                for group in first..first + count {
                    states.write_state(group, self.rows[group], entries, &mut vector.bytes.data);
                    vector.bytes.close();
                }
            } else {
                states.values(aggregate, first, count, &self.rows, vector)?;
            }
        }
        Ok(())
    }

    /// For every state column, the entries of distinct sets by group (empty for other kinds).
    pub fn distinct_entries(&self) -> Result<Vec<Vec<Vec<u32>>>> {
        self.states.iter().map(StateColumn::distinct_by_group).collect()
    }
}

/// An integer (or decimal) result in its type's lane, if it is in the type's range.
pub(crate) fn integer_result(value: i128, data_type: &DataType) -> Option<Scalar> {
    let (min, max) = type_range(data_type)?;
    (min..=max).contains(&value).then(|| match data_type.lane() {
        Lane::I64 => Scalar::I64(value as i64),
        _ => Scalar::I128(value),
    })
}

/// What a decimal average's sum is multiplied by before it is divided by the count.
fn average_factor(aggregate: &Aggregate) -> Option<i128> {
    match (aggregate.argument.as_ref().map(|argument| argument.data_type), aggregate.data_type) {
        (Some(DataType::Decimal { scale: from, .. }), DataType::Decimal { scale, .. }) => {
            decimal::power_of_ten(scale.saturating_sub(from))
        }
        (_, DataType::Decimal { scale, .. }) => decimal::power_of_ten(scale),
        _ => None,
    }
}

/// The average of integers or decimals: `sum / count`, rounded half away from zero at the result's scale, or
/// the nearest float.
pub(crate) fn average(sum: i128, count: i64, aggregate: &Aggregate) -> Result<Scalar> {
    let argument_scale = match aggregate.argument.as_ref().map(|argument| argument.data_type) {
        Some(DataType::Decimal { scale, .. }) => scale,
        _ => 0,
    };
    let overflow =
        || Error::new(ErrorCode::NumericOverflow, format!("an average leaves the range of {}", aggregate.data_type));
    match aggregate.data_type {
        DataType::Decimal { scale, .. } => {
            let digits = scale.saturating_sub(argument_scale);
            let factor = decimal::power_of_ten(digits).ok_or_else(overflow)?;
            let (count, whole) = (i128::from(count), sum / i128::from(count));
            // Whole part and remainder apart, so that only the result must fit.
            let rest = (sum - whole * count).checked_mul(factor).and_then(|rest| decimal::divide_rounded(rest, count));
            let value = whole.checked_mul(factor).zip(rest).and_then(|(whole, rest)| whole.checked_add(rest));
            value.and_then(|value| integer_result(value, &aggregate.data_type)).ok_or_else(overflow)
        }
        DataType::Float32 | DataType::Float64 => Ok(Scalar::F64(decimal::to_f64(sum, argument_scale) / count as f64)),
        _ => integer_result(sum / i128::from(count), &aggregate.data_type).ok_or_else(overflow),
    }
}

/// How one key contributes to the index of the direct table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Digit {
    /// Dictionary codes of a text column; the last digit is NULL.
    Codes { column: usize, null: u32 },
    /// An integer less the least one; the last digit is NULL.
    Range { node: usize, least: i64, null: u32 },
    /// False, true, NULL.
    Truth { node: usize },
}

impl Digit {
    /// The digit of NULL, which is the greatest.
    fn null(self) -> u32 {
        match self {
            Digit::Codes { null, .. } | Digit::Range { null, .. } => null,
            Digit::Truth { .. } => 2,
        }
    }

    /// Whether it means the same in every row group.
    fn is_lasting(self) -> bool {
        !matches!(self, Digit::Codes { .. })
    }
}

/// Whether the state of the only group took in the rows of `source`, which are a whole block, without decoding its argument.
fn takes_block(plan: &AggregatePlan, state: &mut StateColumn, node: usize, source: &RowSource<'_>) -> Result<bool> {
    let whole = source.single().filter(|part| part.rows == part.block_rows);
    match (whole, plan.program.plain_column(node)) {
        (Some(part), Some(column)) => state.take_block(crate::source::chunk_of(source.chunks, column)?, part.block),
        _ => Ok(false),
    }
}

/// One core's grouping.
#[derive(Debug)]
pub(crate) struct Aggregator {
    plan: Arc<AggregatePlan>,
    machine: Machine,
    pub groups: Groups,
    /// How to index `direct` in this row group; empty when groups are hashed (or there are no keys).
    digits: Vec<Digit>,
    strides: Vec<u32>,
    direct: Vec<u32>,
    /// Bitmaps of rows, while they pay in this row group.
    few: FewGroups,
    is_few: bool,
    /// Group of every selected row of the block.
    group_of: Box<[u32; BLOCK_ROWS]>,
    codes: Box<[u32; BLOCK_ROWS]>,
    /// For arguments whose NULLs or floats become other integers.
    scratch: Box<[i64; BLOCK_ROWS]>,
    /// Slots of the block that have no group yet.
    unseen: Vec<u32>,
    /// Their keys.
    keys: Vec<Vector>,
    /// Per state column: no argument is greater in this row group.
    magnitudes: Vec<Option<i128>>,
}

impl Aggregator {
    pub fn new(plan: Arc<AggregatePlan>) -> Self {
        let groups = Groups::new(&plan);
        Aggregator {
            plan,
            machine: Machine::default(),
            groups,
            digits: Vec::new(),
            strides: Vec::new(),
            direct: Vec::new(),
            few: FewGroups::default(),
            is_few: false,
            group_of: Box::new([0; BLOCK_ROWS]),
            codes: Box::new([0; BLOCK_ROWS]),
            scratch: Box::new([0; BLOCK_ROWS]),
            unseen: Vec::new(),
            keys: Vec::new(),
            magnitudes: Vec::new(),
        }
    }

    /// Hands the groups over and starts with none.
    pub fn take_groups(&mut self) -> Groups {
        self.direct.fill(UNKNOWN_GROUP);
        self.few.clear();
        std::mem::replace(&mut self.groups, Groups::new(&self.plan))
    }

    /// Prepares for a row group whose chunks are all there and of which `rows` rows are selected.
    pub fn start(&mut self, column: &dyn Fn(usize) -> Fact, chunks: &[Option<Chunk>], rows: usize) {
        let plan = &self.plan;
        self.machine.specialise(&plan.program, column);
        let roots = plan.keys.iter().copied().chain(plan.states.iter().filter_map(|(_, _, node)| *node));
        self.machine.tabulate(&plan.program, roots, chunks, rows, ENTRIES_MAX);
        self.magnitudes.clear();
        self.magnitudes.extend(plan.states.iter().map(|(_, _, node)| {
            let (min, max) = self.machine.fact((*node)?).integers()?;
            Some(min.checked_abs()?.max(max.checked_abs()?))
        }));
        let before = std::mem::take(&mut self.digits);
        self.strides.clear();
        self.few.clear();
        self.is_few = plan.keys.is_empty() && self.groups.states.iter().all(StateColumn::folds_under_bitmaps);
        let mut slots = 1usize;
        for key in &plan.keys {
            let dictionary = plan
                .program
                .plain_column(*key)
                .and_then(|column| Some((column, chunks.get(column)?.as_ref()?)))
                .filter(|(_, chunk)| chunk.data_type().lane() == Lane::Bytes)
                .and_then(|(column, chunk)| Some((column, chunk.dictionary()?.len())));
            let lane = plan.program.nodes[*key].data_type.lane();
            let range = self.machine.fact(*key).integers().filter(|_| lane == Lane::I64);
            let (digit, size) = match (dictionary, range) {
                (Some((column, entries)), _) if entries < DIRECT_MAX => {
                    (Digit::Codes { column, null: entries as u32 }, entries + 1)
                }
                (None, Some((min, max))) if max - min < DIRECT_MAX as i128 => {
                    let size = (max - min + 1) as usize;
                    (Digit::Range { node: *key, least: min as i64, null: size as u32 }, size + 1)
                }
                (None, None) if lane == Lane::Bool => (Digit::Truth { node: *key }, 3),
                _ => {
                    self.digits.clear();
                    return;
                }
            };
            self.digits.push(digit);
            self.strides.push(slots as u32);
            slots = slots.saturating_mul(size);
            if slots > DIRECT_MAX {
                self.digits.clear();
                return;
            }
        }
        // Slots that mean what they meant in the last row group keep their groups.
        if before != self.digits || !self.digits.iter().all(|digit| digit.is_lasting()) {
            self.direct.clear();
            self.direct.resize(slots, UNKNOWN_GROUP);
        }
        self.is_few = slots <= SLOTS_MAX && self.groups.states.iter().all(StateColumn::folds_under_bitmaps);
    }

    /// Takes in a window of surviving rows.
    pub fn take_in(&mut self, source: &mut RowSource<'_>) -> Result<()> {
        let plan = Arc::clone(&self.plan);
        if self.is_few && self.take_in_by_bitmaps(&plan, source)? {
            return Ok(());
        }
        let rows = source.rows;
        self.machine.begin(rows);
        if plan.keys.is_empty() {
            self.group_of.fill(0);
        } else if self.digits.is_empty() {
            self.hash(&plan, source)?;
        } else {
            self.index(&plan, source)?;
        }
        self.groups.grow();
        let group_of = &self.group_of[..rows];
        if plan.keys.is_empty() {
            self.groups.rows[0] += rows as i64;
        } else {
            count_rows(group_of, &mut self.groups.rows);
        }
        for ((state, (_, _, node)), magnitude) in self.groups.states.iter_mut().zip(&plan.states).zip(&self.magnitudes)
        {
            if let Some(node) = node {
                if plan.keys.is_empty() && takes_block(&plan, state, *node, source)? {
                    continue;
                }
                // A block whose text can't change the minimum or maximum is not decoded.
                if plan.keys.is_empty()
                    && matches!(state.kind(), StateKind::Min | StateKind::Max)
                    && let Some(column) = plan.program.plain_column(*node)
                    && source.prefixes(column)?.is_some_and(|prefixes| state.is_beyond(prefixes))
                {
                    continue;
                }
                self.machine.eval_all(&plan.program, *node, source)?;
                state.update(group_of, self.machine.vector(&plan.program, *node), *magnitude, &mut self.scratch);
            }
        }
        Ok(())
    }

    /// Takes in rows by bitmaps; false, and no row taken in, when they have too many groups for that.
    fn take_in_by_bitmaps(&mut self, plan: &AggregatePlan, source: &mut RowSource<'_>) -> Result<bool> {
        match source.single().filter(|part| part.rows * DENSE >= part.block_rows) {
            // Columns of a block that keeps many rows are quicker read whole than compacted.
            Some(part) => {
                let whole = [Survivors::all(part.block, part.block_rows)];
                self.fold_by_bitmaps(plan, &mut source.over(&whole), part.selection.words())
            }
            None => {
                let active = first_bits(source.rows);
                self.fold_by_bitmaps(plan, source, &active)
            }
        }
    }

    /// Takes in the active rows of `source`.
    fn fold_by_bitmaps(&mut self, plan: &AggregatePlan, source: &mut RowSource<'_>, active: &Bits) -> Result<bool> {
        self.machine.begin(source.rows);
        if plan.keys.is_empty() {
            self.few.only(active);
        } else {
            self.slots(plan, source, active)?;
            let mut few = std::mem::take(&mut self.few);
            few.take_slots(&self.group_of);
            let sorted = few.sort(active, |slot| Ok::<_, Error>(self.find_slots(plan, source, &[slot])?[0]));
            self.few = few;
            self.is_few = sorted?;
            if !self.is_few {
                return Ok(false);
            }
        }
        self.groups.grow();
        let is_whole = plan.keys.is_empty() && count_bits(active) == source.rows;
        let Groups { rows, states, .. } = &mut self.groups;
        self.few.groups().for_each(|(group, mask)| rows[group] += count_bits(mask) as i64);
        for ((state, (_, _, node)), magnitude) in states.iter_mut().zip(&plan.states).zip(&self.magnitudes) {
            if let Some(node) = node {
                if is_whole && takes_block(plan, state, *node, source)? {
                    continue;
                }
                self.machine.eval(&plan.program, *node, active, source)?;
                let argument = self.machine.vector(&plan.program, *node);
                state.update_groups(self.few.groups(), argument, *magnitude, &mut self.scratch);
            }
        }
        Ok(true)
    }

    /// The combined codes of the keys, in `group_of`.
    fn slots(&mut self, plan: &AggregatePlan, source: &mut RowSource<'_>, active: &Bits) -> Result<()> {
        let rows = source.rows;
        let slots = &mut self.group_of;
        slots[..rows].fill(0);
        for (digit, stride) in self.digits.iter().zip(&self.strides) {
            match *digit {
                Digit::Codes { column, null } => {
                    source.codes(column, &mut self.codes)?;
                    match source.validity(column)? {
                        None => digits::add_codes(&self.codes[..rows], null, *stride, &mut slots[..rows]),
                        Some(valid) => {
                            let missing = and_not_bits(&first_bits(rows), &valid);
                            for_each_bit(&missing, |row| self.codes[row] = null);
                            digits::add_codes(&self.codes[..rows], null, *stride, &mut slots[..rows]);
                        }
                    }
                }
                Digit::Range { node, least, null } => {
                    self.machine.eval(&plan.program, node, active, source)?;
                    let value = self.machine.vector(&plan.program, node);
                    let valid = value.has_nulls.then_some(&value.valid);
                    let values =
                        integers(value, Lane::I64, rows, valid, least.wrapping_add(i64::from(null)), &mut self.scratch);
                    digits::add_range(values, least, null, *stride, &mut slots[..rows]);
                }
                Digit::Truth { node } => {
                    self.machine.eval(&plan.program, node, active, source)?;
                    let value = self.machine.vector(&plan.program, node);
                    for (row, slot) in slots[..rows].iter_mut().enumerate() {
                        *slot += (if value.is_valid(row) { u32::from(bit(&value.bits, row)) } else { 2 }) * stride;
                    }
                }
            }
        }
        Ok(())
    }

    /// Groups by the combined code of the keys.
    fn index(&mut self, plan: &AggregatePlan, source: &mut RowSource<'_>) -> Result<()> {
        let rows = source.rows;
        self.slots(plan, source, &first_bits(rows))?;
        // One pass that the compiler can unroll; only a block with a combination not met before takes a second.
        // Group ids stay far below the bit that marks a slot without a group yet.
        let unknown = digits::find(&self.direct, UNKNOWN_GROUP, UNSEEN_SLOT, &mut self.group_of[..rows]);
        if unknown {
            let mut unseen = std::mem::take(&mut self.unseen);
            unseen.clear();
            for slot in self.group_of[..rows].iter().filter(|slot| **slot & UNSEEN_SLOT != 0) {
                let slot = slot & !UNSEEN_SLOT;
                let group = &mut self.direct[slot as usize];
                if *group == UNKNOWN_GROUP {
                    // Whatever is not unknown: it is taken down once.
                    *group = 0;
                    unseen.push(slot);
                }
            }
            let groups = self.find_slots(plan, source, &unseen)?;
            unseen.iter().zip(groups).for_each(|(slot, group)| self.direct[*slot as usize] = group);
            for slot in self.group_of[..rows].iter_mut().filter(|slot| **slot & UNSEEN_SLOT != 0) {
                *slot = self.direct[(*slot & !UNSEEN_SLOT) as usize];
            }
            self.unseen = unseen;
        }
        Ok(())
    }

    /// The groups of combined codes, at most a block of them.
    fn find_slots(&mut self, plan: &AggregatePlan, source: &RowSource<'_>, slots: &[u32]) -> Result<[u32; BLOCK_ROWS]> {
        self.keys.resize_with(plan.keys.len(), Vector::default);
        for (((digit, stride), key), vector) in
            self.digits.iter().zip(&self.strides).zip(&plan.keys).zip(&mut self.keys)
        {
            let dictionary = match *digit {
                Digit::Codes { column, .. } => crate::source::chunk_of(source.chunks, column)?.dictionary(),
                _ => None,
            };
            vector.reset(plan.program.nodes[*key].data_type.lane(), BLOCK_ROWS);
            for (row, slot) in slots.iter().enumerate() {
                let value = slot / stride % (digit.null() + 1);
                let value = match *digit {
                    _ if value == digit.null() => Scalar::Null,
                    Digit::Codes { column, .. } => match &dictionary {
                        Some(dictionary) => Scalar::Bytes(dictionary.bytes(value)?.to_vec()),
                        None => {
                            let lost = format!("column {column} lost its dictionary");
                            return Err(Error::new(ErrorCode::Internal, lost));
                        }
                    },
                    Digit::Range { least, .. } => Scalar::I64(least + i64::from(value)),
                    Digit::Truth { .. } => Scalar::Bool(value == 1),
                };
                vector.store(row, &value);
            }
        }
        let mut groups = [0; BLOCK_ROWS];
        let keys: Vec<&Vector> = self.keys.iter().collect();
        self.groups.table.find_block(&keys, slots.len(), &mut groups);
        Ok(groups)
    }

    /// Groups by the encoded keys.
    fn hash(&mut self, plan: &AggregatePlan, source: &mut RowSource<'_>) -> Result<()> {
        for key in &plan.keys {
            self.machine.eval_all(&plan.program, *key, source)?;
        }
        let keys: Vec<&Vector> = plan.keys.iter().map(|key| self.machine.vector(&plan.program, *key)).collect();
        self.groups.table.find_block(&keys, source.rows, &mut self.group_of);
        Ok(())
    }
}
