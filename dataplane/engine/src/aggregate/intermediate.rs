//! Merging what several cells (or one cell several times) answered in the intermediate phase.
//!
//! Owns [`merge_intermediate`]. Called by clients of sharded tables and by tests; needs no segment.
//! Invariant: states come from the network, so every one is checked; a wrong one is an error, never a panic.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, BinaryArray, RecordBatch};
use hidb::plan::{Aggregation, Phase};
use hidb::{BLOCK_ROWS, DataType, Error, ErrorCode, Field, Result, Schema};

use super::{AggregatePlan, Groups};
use crate::batches::{array_of_vectors, vector_of_array};
use crate::vector::Vector;

fn wrong(detail: String) -> Error {
    Error::new(ErrorCode::InvalidValue, format!("intermediate results can't be merged: {detail}"))
}

/// Merges intermediate batches (group keys as they are, then one Bytea state per aggregate) into one batch of
/// final values: group keys, then aggregates, in canonical Arrow types (Decimal64 for up to 18 digits).
/// Groups come in order of first sight.
pub fn merge_intermediate(aggregation: &Aggregation, batches: &[RecordBatch]) -> Result<RecordBatch> {
    let mut plan = AggregatePlan::compile(aggregation)?;
    plan.phase = Phase::Single;
    let mut groups = Groups::new(&plan);
    let keys = plan.keys.len();
    let mut key_vectors = vec![Vector::default(); keys];
    let mut numbers = [0; BLOCK_ROWS];
    for batch in batches {
        if batch.num_columns() != keys + plan.aggregates.len() {
            return Err(wrong(format!(
                "{} columns instead of {} keys and {} states",
                batch.num_columns(),
                keys,
                plan.aggregates.len()
            )));
        }
        let states = (keys..batch.num_columns())
            .map(|column| {
                batch.column(column).as_any().downcast_ref::<BinaryArray>().ok_or_else(|| {
                    wrong(format!("column {column} is {} instead of Binary", batch.column(column).data_type()))
                })
            })
            .collect::<Result<Vec<_>>>()?;
        for first in (0..batch.num_rows()).step_by(BLOCK_ROWS) {
            let count = (batch.num_rows() - first).min(BLOCK_ROWS);
            for (column, vector) in key_vectors.iter_mut().enumerate() {
                vector_of_array(batch.column(column).slice(first, count).as_ref(), &plan.key_types[column], vector)?;
            }
            groups.table.find_block(&key_vectors.iter().collect::<Vec<_>>(), count, &mut numbers);
            groups.grow();
            for (row, group) in numbers[..count].iter().enumerate() {
                let group = *group as usize;
                // Rows of the group are the most that any aggregate saw; the others saw NULLs besides.
                let mut counts = Vec::with_capacity(states.len());
                let mut done = vec![false; plan.states.len()];
                for (state, index) in states.iter().zip(&plan.state_of) {
                    if state.is_null(first + row) {
                        return Err(wrong("a state is NULL".to_string()));
                    }
                    // Aggregates that share a state column bring the same state twice.
                    if !std::mem::replace(&mut done[*index], true) {
                        counts.push((*index, groups.states[*index].absorb_state(group, state.value(first + row))?));
                    }
                }
                let rows = counts.iter().map(|(_, count)| *count).max().unwrap_or(0);
                groups.rows[group] = groups.rows[group].saturating_add(rows);
                for (index, count) in counts {
                    groups.states[index].add_nulls(group, rows - count);
                }
            }
        }
    }
    groups.grow();
    let types: Vec<(DataType, bool)> = aggregation
        .keys
        .iter()
        .map(|key| (key.data_type, key.nullable))
        .chain(aggregation.aggregates.iter().map(|aggregate| (aggregate.data_type, aggregate.nullable())))
        .collect();
    let mut columns: Vec<Vec<Vector>> = vec![Vec::new(); types.len()];
    let mut values = vec![Vector::default(); types.len()];
    for first in (0..groups.len()).step_by(BLOCK_ROWS) {
        let count = (groups.len() - first).min(BLOCK_ROWS);
        let (key_part, value_part) = values.split_at_mut(keys);
        groups.table.read(first, count, key_part)?;
        groups.values(&plan, &[], first, count, value_part)?;
        columns.iter_mut().zip(&values).for_each(|(column, vector)| column.push(vector.clone()));
    }
    let fields = types.iter().enumerate().map(|(index, (data_type, nullable))| {
        Field::new(
            if index < keys { format!("key{index}") } else { format!("aggregate{}", index - keys) },
            *data_type,
            *nullable,
        )
    });
    let schema = hidb::arrow_mapping::to_arrow_schema(&Schema::of_result(fields.collect()), true);
    let arrays = columns
        .iter()
        .zip(&types)
        .map(|(vectors, (data_type, _))| array_of_vectors(vectors, groups.len(), data_type))
        .collect::<Result<Vec<ArrayRef>>>()?;
    let options = arrow_array::RecordBatchOptions::new().with_row_count(Some(groups.len()));
    RecordBatch::try_new_with_options(Arc::clone(&schema), arrays, &options).map_err(|error| wrong(error.to_string()))
}
