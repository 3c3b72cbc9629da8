//! What becomes of computed rows: images at once, or kept for sorting.
//!
//! Owns [`GroupOutput`] (groups to HAVING, outputs and onwards) and the keeping of rows for ORDER BY. Called by the
//! core scan and the merge. Invariant: one call handles at most one block of rows.

use hidb::plan::SortKey;
use hidb::{BLOCK_ROWS, DataType, Lane, Result};

use crate::aggregate::{AggregatePlan, Groups};
use crate::compile::{CompiledScan, OutputPlan};
use crate::emit::{Emitter, Input};
use crate::eval::facts::Fact;
use crate::eval::machine::{ColumnSource, Machine, Preset};
use crate::prune::fact_of_zone;
use crate::rows::{read_value, write_exactly, write_sort_key};
use crate::sort::{SortPlan, SortedRows};
use crate::sort_bound::SortBound;
use crate::vector::{Bits, Vector, any_bit, count_bits, first_bits, for_each_bit};

/// Keeps the rows (all evaluated against `source`) that can still be among the wanted ones.
/// `tie` appends what makes the key of a row unique.
pub(crate) fn keep_sorted(
    outputs: &OutputPlan,
    sort: &SortPlan,
    machine: &mut Machine,
    source: &mut dyn ColumnSource,
    rows: usize,
    mut tie: impl FnMut(usize, &mut Vec<u8>),
    kept: &mut SortedRows,
) -> Result<()> {
    let bound = kept.threshold().and_then(|threshold| SortBound::of(outputs, sort, threshold));
    for key in &sort.keys {
        machine.eval_all(&outputs.program, outputs.roots[key.output], source)?;
    }
    let candidates = match &bound {
        Some(bound) => bound.candidates(machine.vector(&outputs.program, bound.node), rows),
        None => first_bits(rows),
    };
    if !any_bit(&candidates) {
        return Ok(());
    }
    let program = &outputs.program;
    let column = |key: &SortKey| {
        let node = outputs.roots[key.output];
        (machine.vector(program, node), outputs.types[key.output].lane(), *key)
    };
    let keys: Vec<(&Vector, Lane, SortKey)> = sort.keys.iter().map(column).collect();
    let mut wanted: Vec<(usize, Vec<u8>)> = Vec::new();
    for_each_bit(&candidates, |row| {
        let mut key = Vec::with_capacity(32);
        keys.iter().for_each(|(vector, lane, sort_key)| write_sort_key(vector, *lane, sort_key, row, &mut key));
        tie(row, &mut key);
        if kept.wants(&key) {
            wanted.push((row, key));
        }
    });
    if wanted.is_empty() {
        return Ok(());
    }
    let visible = &outputs.roots[..outputs.visible];
    for root in visible {
        machine.eval_all(program, *root, source)?;
    }
    let values: Vec<(&Vector, Lane)> = visible
        .iter()
        .zip(&outputs.types)
        .map(|(root, data_type)| (machine.vector(program, *root), data_type.lane()))
        .collect();
    for (row, key) in &wanted {
        kept.push(key, |out| values.iter().for_each(|(vector, lane)| write_exactly(vector, *lane, *row, out)));
    }
    kept.end_run(sort);
    Ok(())
}

/// Decodes kept payloads into vectors, a block at a time.
pub(crate) fn read_payload(types: &[DataType], row: usize, mut payload: &[u8], out: &mut [Vector]) -> Result<()> {
    for (vector, data_type) in out.iter_mut().zip(types) {
        read_value(&mut payload, data_type.lane(), row, vector)?;
    }
    Ok(())
}

/// Groups on their way out: keys and values to HAVING, to the outputs, to images or the sorter.
#[derive(Debug)]
pub(crate) struct GroupOutput {
    groups: Groups,
    distinct: Vec<Vec<Vec<u32>>>,
    next: usize,
    machine: Machine,
    columns: Vec<Vector>,
    compacted: Vec<Vector>,
}

impl GroupOutput {
    pub fn new(groups: Groups, plan: &AggregatePlan, outputs: &OutputPlan) -> Result<Self> {
        let intermediate = plan.phase == hidb::plan::Phase::Intermediate;
        let distinct = if intermediate { groups.distinct_entries()? } else { Vec::new() };
        let mut machine = Machine::default();
        let unknown = |column: usize| match outputs.program.nodes.iter().find_map(|node| match node.op {
            crate::eval::Op::Column(index) if index == column => Some(node.data_type),
            _ => None,
        }) {
            Some(data_type) => fact_of_zone(None, &data_type),
            None => Fact::unknown(),
        };
        machine.specialise(&outputs.program, &unknown);
        let width = plan.keys.len() + plan.aggregates.len();
        Ok(GroupOutput {
            groups,
            distinct,
            next: 0,
            machine,
            columns: vec![Vector::default(); width],
            compacted: vec![Vector::default(); width],
        })
    }

    pub fn memory_bytes(&self) -> usize {
        self.groups.memory_bytes()
    }

    /// Hands on the next groups; false when there were none left.
    pub fn step(
        &mut self,
        compiled: &CompiledScan,
        plan: &AggregatePlan,
        mut sorted: Option<&mut SortedRows>,
        limits: &mut (u64, u64),
        emitter: &mut Emitter,
    ) -> Result<bool> {
        let count = (self.groups.len() - self.next).min(BLOCK_ROWS);
        if count == 0 {
            return Ok(false);
        }
        let first = self.next;
        self.next += count;
        let keys = plan.keys.len();
        let (key_columns, value_columns) = self.columns.split_at_mut(keys);
        self.groups.table.read(first, count, key_columns)?;
        self.groups.values(plan, &self.distinct, first, count, value_columns)?;
        let outputs = &compiled.outputs;
        let program = &outputs.program;
        let mut numbers: Vec<usize> = (first..first + count).collect();
        if let Some(having) = outputs.having {
            self.machine.begin(count);
            self.machine.eval_all(program, having, &mut Preset(&self.columns))?;
            let verdict = self.machine.vector(program, having);
            let valid = verdict.valid_bits();
            let all = first_bits(count);
            let keep: Bits = std::array::from_fn(|i| verdict.bits[i] & valid[i] & all[i]);
            if count_bits(&keep) < count {
                for (from, to) in self.columns.iter().zip(&mut self.compacted) {
                    from.compact(&keep, to);
                }
                std::mem::swap(&mut self.columns, &mut self.compacted);
                numbers.clear();
                for_each_bit(&keep, |row| numbers.push(first + row));
            }
        }
        let rows = numbers.len();
        self.machine.begin(rows);
        let mut source = Preset(&self.columns);
        if let (Some(sort), Some(kept)) = (&compiled.sort, sorted.as_mut()) {
            let table = &self.groups.table;
            let tie = |row: usize, key: &mut Vec<u8>| table.write_key(numbers[row], key);
            keep_sorted(outputs, sort, &mut self.machine, &mut source, rows, tie, kept)?;
            return Ok(true);
        }
        // Plain LIMIT and OFFSET over groups.
        let skip = (limits.0).min(rows as u64);
        limits.0 -= skip;
        let take = (limits.1).min(rows as u64 - skip);
        limits.1 -= take;
        if skip + take < rows as u64 || skip > 0 {
            let mut keep = crate::vector::NO_BITS;
            (skip..skip + take).for_each(|row| crate::vector::set_bit(&mut keep, row as usize));
            for (from, to) in self.columns.iter().zip(&mut self.compacted) {
                from.compact(&keep, to);
            }
            std::mem::swap(&mut self.columns, &mut self.compacted);
            self.machine.begin(take as usize);
        }
        let mut source = Preset(&self.columns);
        let visible = &outputs.roots[..outputs.visible];
        for root in visible {
            self.machine.eval_all(program, *root, &mut source)?;
        }
        let inputs: Vec<Input<'_>> =
            visible.iter().map(|root| Input::Vector(self.machine.vector(program, *root))).collect();
        emitter.push(take as usize, &inputs, None)?;
        Ok(limits.1 > 0)
    }
}
