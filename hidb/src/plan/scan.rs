//! The internal plan of one pushdown over one table.
//!
//! Owns [`ScanPlan`] and its parts. Built from text and from Substrait, run by the engine, shown by
//! `explain`.
//!
//! Order of the stages: filter the table's rows; aggregate (optional); filter the groups (`having`,
//! optional); compute the outputs; sort by outputs; skip `offset`, keep `limit`.

use super::expr::Expr;
use crate::schema::{Field, Schema};
use crate::types::DataType;

/// What a cell is asked to do with one table.
#[derive(Clone, Debug, PartialEq)]
pub struct ScanPlan {
    /// The table's name.
    pub table: String,
    /// Boolean over the table's columns; rows for which it is not true are dropped.
    pub filter: Option<Expr>,
    /// Grouping and aggregates. Its output columns are the group keys, then the aggregates.
    pub aggregation: Option<Aggregation>,
    /// Boolean over the aggregation's output columns.
    pub having: Option<Expr>,
    /// What is computed, over the table's columns or the aggregation's output columns.
    pub outputs: Vec<Output>,
    /// How many leading outputs are returned; the others exist only to sort by.
    pub visible: usize,
    /// Sort keys over `outputs`; empty: any order.
    pub sort: Vec<SortKey>,
    /// Rows skipped after sorting.
    pub offset: u64,
    /// Rows kept after the skipped ones; `None`: all.
    pub limit: Option<u64>,
}

/// One computed output column.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// The column's name in the result.
    pub name: String,
    /// How it is computed.
    pub expr: Expr,
}

/// GROUP BY and aggregates.
#[derive(Clone, Debug, PartialEq)]
pub struct Aggregation {
    /// Group keys over the table's columns; empty: one group, which exists even without rows.
    pub keys: Vec<Expr>,
    /// The aggregates.
    pub aggregates: Vec<Aggregate>,
    /// Whether final values or mergeable states come out.
    pub phase: Phase,
}

/// One aggregate.
#[derive(Clone, Debug, PartialEq)]
pub struct Aggregate {
    /// Which function.
    pub function: AggregateFunction,
    /// Its argument over the table's columns; `None` only for `count(*)`.
    pub argument: Option<Expr>,
    /// The type of its final value.
    pub data_type: DataType,
}

/// The aggregate functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AggregateFunction {
    /// Rows, or non-NULL arguments.
    Count,
    /// Distinct non-NULL arguments.
    CountDistinct,
    /// Exact for integers and decimals; the correctly rounded exact sum for floats. NULL without values.
    Sum,
    /// The least value. NULL without values.
    Min,
    /// The greatest value. NULL without values.
    Max,
    /// Sum divided by count. NULL without values.
    Avg,
}

/// Which part of an aggregation the cell does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Rows to final values.
    Single,
    /// Rows to intermediate states, one Bytea column per aggregate, to be merged with those of other
    /// cells. Group keys come as they are. A group may come more than once (partial groups).
    Intermediate,
}

/// One sort key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SortKey {
    /// Index into [`ScanPlan::outputs`].
    pub output: usize,
    /// Greatest first.
    pub descending: bool,
    /// NULLs first; SQL's default here is NULLs last when ascending, first when descending.
    pub nulls_first: bool,
}

impl Aggregate {
    /// Whether the final value can be NULL.
    pub fn nullable(&self) -> bool {
        !matches!(self.function, AggregateFunction::Count | AggregateFunction::CountDistinct)
    }
}

impl Aggregation {
    /// The columns that `having` and `outputs` see: keys, then aggregates.
    pub fn output_fields(&self) -> Vec<(DataType, bool)> {
        let keys = self.keys.iter().map(|key| (key.data_type, key.nullable));
        let aggregates = self.aggregates.iter().map(|aggregate| match self.phase {
            Phase::Single => (aggregate.data_type, aggregate.nullable()),
            Phase::Intermediate => (DataType::Bytea, false),
        });
        keys.chain(aggregates).collect()
    }
}

impl ScanPlan {
    /// The rows of a table for which `filter` is true (all, without one), in any order. All outputs are returned.
    pub fn of_rows(table: impl Into<String>, filter: Option<Expr>, outputs: Vec<Output>) -> Self {
        ScanPlan {
            table: table.into(),
            filter,
            aggregation: None,
            having: None,
            visible: outputs.len(),
            outputs,
            sort: Vec::new(),
            offset: 0,
            limit: None,
        }
    }

    /// The schema of the answer.
    pub fn result_schema(&self) -> Schema {
        let visible = &self.outputs[..self.visible];
        Schema::of_result(
            visible.iter().map(|o| Field::new(o.name.clone(), o.expr.data_type, o.expr.nullable)).collect(),
        )
    }

    /// The table columns that must be read, ascending (`schema.len()` stands for `_rowid`).
    pub fn table_columns(&self) -> Vec<usize> {
        let mut columns: Vec<usize> = self.filter.iter().flat_map(Expr::columns).collect();
        match &self.aggregation {
            Some(aggregation) => {
                columns.extend(aggregation.keys.iter().flat_map(Expr::columns));
                columns
                    .extend(aggregation.aggregates.iter().filter_map(|a| a.argument.as_ref()).flat_map(Expr::columns));
            }
            None => columns.extend(self.outputs.iter().flat_map(|output| output.expr.columns())),
        }
        columns.sort_unstable();
        columns.dedup();
        columns
    }
}
