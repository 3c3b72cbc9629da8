//! From a plan to what the cores run.
//!
//! Owns [`CompiledScan`]: made once per request (or prepared statement), shared read-only by its cores.
//! Invariant: whatever can be refused is refused here, before anything is read.

use std::sync::Arc;

use bytes::Bytes;
use heliostat_segment::{RowGroupMeta, ZoneMap};
use hidb::image::{ImageLayout, schema_message};
use hidb::plan::{Expr, Output, Phase, ScanPlan};
use hidb::{DataType, Error, ErrorCode, Result, Schema};

use crate::aggregate::AggregatePlan;
use crate::emit::Emitter;
use crate::eval::Program;
use crate::eval::facts::{self, Fact};
use crate::filter::FilterPlan;
use crate::membership::Lookups;
use crate::options::{EngineOptions, SharedScan};
use crate::prune::fact_of_zone;
use crate::sort::SortPlan;

/// The computed outputs of a plan.
#[derive(Debug)]
pub(crate) struct OutputPlan {
    pub program: Program,
    /// HAVING, if there is one.
    pub having: Option<usize>,
    /// A node per output.
    pub roots: Vec<usize>,
    pub types: Vec<DataType>,
    /// How many leading outputs are returned.
    pub visible: usize,
    /// Input columns read, ascending.
    pub columns: Vec<usize>,
}

impl OutputPlan {
    fn compile(outputs: &[Output], having: Option<&Expr>, visible: usize) -> Result<Self> {
        let mut program = Program::default();
        let having_node = having.map(|expr| program.add(expr)).transpose()?;
        let roots = outputs.iter().map(|output| program.add(&output.expr)).collect::<Result<Vec<_>>>()?;
        let mut columns: Vec<usize> = outputs.iter().flat_map(|output| output.expr.columns()).collect();
        columns.extend(having.into_iter().flat_map(|expr| expr.columns()));
        columns.sort_unstable();
        columns.dedup();
        let types = outputs.iter().map(|output| output.expr.data_type).collect();
        Ok(OutputPlan { program, having: having_node, roots, types, visible, columns })
    }
}

/// A plan ready to run.
#[derive(Debug)]
pub struct CompiledScan {
    pub(crate) schema: Schema,
    pub(crate) options: EngineOptions,
    pub(crate) filter: FilterPlan,
    pub(crate) lookups: Lookups,
    pub(crate) aggregate: Option<Arc<AggregatePlan>>,
    pub(crate) outputs: OutputPlan,
    pub(crate) sort: Option<SortPlan>,
    pub(crate) offset: u64,
    pub(crate) limit: Option<u64>,
    /// Whether rows leave as positions, not as values.
    pub(crate) yields_positions: bool,
    columns: Vec<usize>,
    result_schema: Schema,
    schema_message: Bytes,
    layout: ImageLayout,
}

impl CompiledScan {
    /// Compiles a plan over a table of this schema.
    pub fn compile(plan: &ScanPlan, schema: &Schema, options: EngineOptions) -> Result<Arc<CompiledScan>> {
        Self::build(plan, schema, options).map(Arc::new)
    }

    /// A scan which finds out where the rows are for which `filter` is true (all, without one) and reads nothing else:
    /// it answers with [`Step::Rows`](crate::Step::Rows), and its images have no columns and are not made.
    pub fn positions(filter: Option<&Expr>, schema: &Schema, options: EngineOptions) -> Result<Arc<CompiledScan>> {
        let plan = ScanPlan::of_rows("", filter.cloned(), Vec::new());
        Ok(Arc::new(CompiledScan { yields_positions: true, ..Self::build(&plan, schema, options)? }))
    }

    fn build(plan: &ScanPlan, schema: &Schema, options: EngineOptions) -> Result<CompiledScan> {
        let aggregate = match &plan.aggregation {
            Some(aggregation) => Some(Arc::new(AggregatePlan::compile(aggregation)?)),
            None => None,
        };
        if aggregate.as_ref().is_some_and(|a| a.phase == Phase::Intermediate) {
            let shape = [
                (plan.having.is_some(), "HAVING"),
                (!plan.sort.is_empty(), "ORDER BY"),
                (plan.limit.is_some() || plan.offset > 0, "LIMIT or OFFSET"),
            ];
            if let Some((_, name)) = shape.iter().find(|(present, _)| *present) {
                return Err(Error::new(
                    ErrorCode::UnsupportedPlan,
                    format!("{name} over intermediate aggregates: apply it after merging the states"),
                ));
            }
        }
        if plan.visible > plan.outputs.len() || plan.sort.iter().any(|key| key.output >= plan.outputs.len()) {
            return Err(Error::new(
                ErrorCode::UnsupportedPlan,
                "a sort key or visible output that the plan does not compute",
            ));
        }
        let columns = plan.table_columns();
        if let Some(column) = columns.iter().find(|column| **column > schema.len()) {
            return Err(Error::new(
                ErrorCode::UnknownColumn,
                format!("column {column} of a table with {}", schema.len()),
            ));
        }
        let result_schema = plan.result_schema();
        let layout = ImageLayout::new(&result_schema, options.decimal64, options.image_bytes_max)?;
        let filter = FilterPlan::compile(plan.filter.as_ref(), schema)?;
        Ok(CompiledScan {
            schema_message: schema_message(&result_schema, options.decimal64).into(),
            layout,
            schema: schema.clone(),
            options,
            lookups: Lookups::of(&filter, schema),
            filter,
            outputs: OutputPlan::compile(&plan.outputs, plan.having.as_ref(), plan.visible)?,
            aggregate,
            sort: SortPlan::of(plan),
            offset: plan.offset,
            limit: plan.limit,
            yields_positions: false,
            columns,
            result_schema,
        })
    }

    /// What the cores of one execution share. Make one per execution.
    pub fn shared(&self) -> Arc<SharedScan> {
        let plain = self.aggregate.is_none() && self.sort.is_none();
        let (offset, limit) = if plain { (self.offset, self.limit) } else { (0, None) };
        Arc::new(SharedScan::with_limits(offset, limit, self.options.memory_bytes_max))
    }

    /// The table columns that may be read, ascending (`schema.len()` stands for `_rowid`).
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// The schema of the answer.
    pub fn result_schema(&self) -> &Schema {
        &self.result_schema
    }

    /// That schema as an Arrow IPC message, which every answer begins with.
    pub fn schema_message(&self) -> &Bytes {
        &self.schema_message
    }

    /// The options it was compiled with.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Whether rows of a segment or row group with these zone maps (one per table column, then `_rowid`; missing
    /// ones count as unknown) can qualify.
    pub fn may_match(&self, zones: &[ZoneMap]) -> bool {
        self.zones_may_match(&|column| zones.get(column))
    }

    /// The same for one row group.
    pub fn row_group_may_match(&self, meta: &RowGroupMeta) -> bool {
        self.zones_may_match(&|column| meta.columns.get(column).map(|chunk| &chunk.zone))
    }

    fn zones_may_match<'a>(&self, zone: &dyn Fn(usize) -> Option<&'a ZoneMap>) -> bool {
        let mut known = Vec::new();
        facts::analyse(&self.filter.program, &|column| self.column_fact(column, zone(column)), &mut known);
        self.filter.conjuncts.iter().all(|conjunct| known[conjunct.root].may_be_true())
    }

    pub(crate) fn emitter(&self) -> Emitter {
        Emitter::new(&self.result_schema, &self.options, &self.layout)
    }

    pub(crate) fn column_fact(&self, column: usize, zone: Option<&ZoneMap>) -> Fact {
        fact_of_zone(zone, &self.column_type(column))
    }

    pub(crate) fn column_type(&self, column: usize) -> DataType {
        self.schema.fields().get(column).map_or(DataType::Int64, |field| field.data_type)
    }

    pub(crate) fn column_name(&self, column: usize) -> &str {
        self.schema.fields().get(column).map_or(hidb::ROWID_COLUMN, |field| &field.name)
    }

    /// The columns needed once rows have survived the filter.
    pub(crate) fn body_columns(&self) -> &[usize] {
        match &self.aggregate {
            Some(aggregate) => &aggregate.columns,
            None => &self.outputs.columns,
        }
    }

    /// Whether LIMIT and OFFSET are applied row by row while scanning.
    pub(crate) fn limits_rows(&self) -> bool {
        self.aggregate.is_none() && self.sort.is_none() && (self.limit.is_some() || self.offset > 0)
    }
}
