//! A chain of Substrait relations as one [`ScanPlan`].
//!
//! Works from the read outwards and keeps what the chain has computed so far: the current columns as
//! expressions over the table's columns (before the aggregation) or over the aggregation's outputs (after
//! it). Projections therefore cost nothing, and any order of relations that one scan can answer is taken.

use substrait::proto::aggregate_function::AggregationInvocation;
use substrait::proto::expression::mask_expression;
use substrait::proto::fetch_rel::{CountMode, OffsetMode};
use substrait::proto::rel::RelType;
use substrait::proto::rel_common::EmitKind;
use substrait::proto::sort_field::{SortDirection, SortKind};
use substrait::proto::{AggregateRel, AggregationPhase, FetchRel, Plan, ReadRel, RelCommon, SortField, SortRel};

use super::expression::Reader;
use super::functions::{AGGREGATE_FUNCTIONS, Argument};
use super::{read_table, relations, unsupported};
use crate::error::{Error, ErrorCode, Result};
use crate::plan::build;
use crate::plan::expr::{Expr, ExprKind};
use crate::plan::scan::{Aggregate, AggregateFunction, Aggregation, Output, Phase, ScanPlan, SortKey};
use crate::schema::Schema;
use crate::types::{DataType, Scalar};

/// A sort key whose place among the outputs is not known yet.
struct PendingSort {
    expr: Expr,
    name: Option<String>,
    descending: bool,
    nulls_first: bool,
}

struct Scan {
    reader: Reader,
    table: String,
    filter: Option<Expr>,
    aggregation: Option<Aggregation>,
    having: Option<Expr>,
    /// What the chain gives so far, and its names as far as they are known.
    columns: Vec<Expr>,
    names: Vec<Option<String>>,
    sort: Vec<PendingSort>,
    offset: u64,
    limit: Option<u64>,
    fetched: bool,
}

pub(super) fn read_plan(plan: &Plan, resolve: &dyn Fn(&str) -> Result<Schema>) -> Result<ScanPlan> {
    let (chain, root_names) = relations(plan)?;
    let Some((RelType::Read(read), outer)) = chain.split_last() else {
        return Err(unsupported("a plan must end in a Read of one named table"));
    };
    let mut scan = Scan {
        reader: Reader::new(plan.version.as_ref(), &plan.extensions),
        table: read_table(read)?.to_string(),
        filter: None,
        aggregation: None,
        having: None,
        columns: Vec::new(),
        names: Vec::new(),
        sort: Vec::new(),
        offset: 0,
        limit: None,
        fetched: false,
    };
    let schema = resolve(&scan.table)?;
    scan.read(read, &schema)?;
    for rel in outer.iter().rev() {
        scan.relation(rel)?;
    }
    scan.finish(root_names)
}

fn conjunction(reader: &Reader, existing: Option<Expr>, added: Expr) -> Result<Expr> {
    let Some(existing) = existing else {
        return if added.data_type == DataType::Boolean { Ok(added) } else { build::and(vec![added]) };
    };
    debug_assert!(!reader.typed || existing.data_type == DataType::Boolean);
    build::and(vec![existing, added])
}

impl Scan {
    fn read(&mut self, read: &ReadRel, schema: &Schema) -> Result<()> {
        let base = read.base_schema.as_ref();
        self.columns = self.reader.base_columns(base, schema)?;
        self.names = base.iter().flat_map(|base| &base.names).cloned().map(Some).collect();
        if let Some(filter) = &read.filter {
            self.filter = Some(self.condition(filter)?);
        }
        if let Some(mask) = &read.projection {
            let items = mask.select.as_ref().map_or(&[][..], |select| select.struct_items.as_slice());
            let index = |item: &mask_expression::StructItem| match item.child {
                None => Ok(item.field),
                Some(_) => Err(unsupported("a projection into a nested column: columns are flat")),
            };
            let mapping = items.iter().map(index).collect::<Result<Vec<_>>>()?;
            self.emit_mapping(&mapping)?;
        }
        self.emit(read.common.as_ref())
    }

    fn relation(&mut self, rel: &RelType) -> Result<()> {
        match rel {
            RelType::Filter(filter) => {
                let condition =
                    filter.condition.as_deref().ok_or_else(|| unsupported("a Filter without a condition"))?;
                if self.fetched {
                    return Err(after_fetch("Filter"));
                }
                let condition = self.condition(condition)?;
                let target = if self.aggregation.is_some() { &mut self.having } else { &mut self.filter };
                let existing = target.take();
                *target = Some(conjunction(&self.reader, existing, condition)?);
                self.emit(filter.common.as_ref())
            }
            RelType::Project(project) => {
                let hint = project.common.as_ref().and_then(|common| common.hint.as_ref());
                let mut added = Vec::with_capacity(project.expressions.len());
                for expr in &project.expressions {
                    added.push(self.reader.expression(expr, &self.columns)?);
                }
                // A column that is only passed on keeps its name.
                let known: Vec<(Expr, Option<String>)> = self
                    .columns
                    .iter()
                    .zip(&self.names)
                    .filter(|(expr, _)| matches!(expr.kind, ExprKind::Column(_)))
                    .map(|(expr, name)| (expr.clone(), name.clone()))
                    .collect();
                for expr in added {
                    let name = match expr.kind {
                        ExprKind::Column(_) => {
                            known.iter().find(|(known, _)| *known == expr).and_then(|(_, n)| n.clone())
                        }
                        _ => None,
                    };
                    self.columns.push(expr);
                    self.names.push(name);
                }
                self.emit(project.common.as_ref())?;
                if let Some(hint) = hint
                    && hint.output_names.len() == self.names.len()
                {
                    self.names = hint.output_names.iter().cloned().map(Some).collect();
                }
                Ok(())
            }
            RelType::Aggregate(aggregate) => self.aggregate(aggregate),
            RelType::Sort(sort) => self.sort(sort),
            RelType::Fetch(fetch) => self.fetch(fetch),
            other => Err(super::unsupported_relation(other)),
        }
    }

    fn condition(&mut self, expr: &substrait::proto::Expression) -> Result<Expr> {
        self.reader.condition(expr, &self.columns)
    }

    fn emit(&mut self, common: Option<&RelCommon>) -> Result<()> {
        match common.and_then(|common| common.emit_kind.as_ref()) {
            Some(EmitKind::Emit(emit)) => self.emit_mapping(&emit.output_mapping),
            Some(EmitKind::Direct(_)) | None => Ok(()),
        }
    }

    fn emit_mapping(&mut self, mapping: &[i32]) -> Result<()> {
        let (mut columns, mut names) = (Vec::with_capacity(mapping.len()), Vec::with_capacity(mapping.len()));
        for index in mapping {
            let index = usize::try_from(*index).ok().filter(|index| *index < self.columns.len()).ok_or_else(|| {
                unsupported(format!("output mapping {index} where there are {} columns", self.columns.len()))
            })?;
            columns.push(self.reader.copy(&self.columns[index])?);
            names.push(self.names[index].clone());
        }
        (self.columns, self.names) = (columns, names);
        Ok(())
    }

    #[allow(deprecated)] // producers still fill `grouping_expressions` inside the grouping
    fn aggregate(&mut self, rel: &AggregateRel) -> Result<()> {
        if self.aggregation.is_some() {
            return Err(unsupported("an Aggregate over an Aggregate can't be pushed down"));
        }
        if self.fetched {
            return Err(after_fetch("Aggregate"));
        }
        // Grouping forgets the order of its input.
        self.sort.clear();
        let mut keys = Vec::new();
        let mut key_names = Vec::new();
        match rel.groupings.as_slice() {
            [] => {}
            [grouping] => {
                let references = grouping.expression_references.iter().map(|reference| {
                    rel.grouping_expressions
                        .get(*reference as usize)
                        .ok_or_else(|| unsupported(format!("grouping expression {reference} is not in the relation")))
                });
                let referenced = references.collect::<Result<Vec<_>>>()?;
                // DataFusion writes the keys in both forms: the same ones, to be taken once.
                let keys_here =
                    if referenced.is_empty() { grouping.grouping_expressions.iter().collect() } else { referenced };
                for expr in keys_here {
                    let key = self.reader.expression(expr, &self.columns)?;
                    let same = self.columns.iter().position(|column| *column == key);
                    key_names.push(same.and_then(|index| self.names[index].clone()));
                    keys.push(key);
                }
            }
            sets => return Err(unsupported(format!("{} grouping sets: only one is supported", sets.len()))),
        }
        let mut phase = None;
        let mut aggregates = Vec::with_capacity(rel.measures.len());
        for measure in &rel.measures {
            let function = measure.measure.as_ref().ok_or_else(|| unsupported("a measure without a function"))?;
            let (aggregate, own_phase) = self.measure(function, measure.filter.as_ref())?;
            if phase.is_some_and(|phase| phase != own_phase) {
                return Err(unsupported("the measures of one Aggregate have different phases"));
            }
            phase = Some(own_phase);
            aggregates.push(aggregate);
        }
        let aggregation = Aggregation { keys, aggregates, phase: phase.unwrap_or(Phase::Single) };
        let outputs = aggregation.output_fields().into_iter().enumerate();
        self.columns = outputs.map(|(index, (data_type, nullable))| Expr::column(index, data_type, nullable)).collect();
        key_names.resize(self.columns.len(), None);
        self.names = key_names;
        self.aggregation = Some(aggregation);
        self.emit(rel.common.as_ref())
    }

    #[allow(deprecated)] // `args` is what producers of before 2022 fill
    fn measure(
        &mut self,
        function: &substrait::proto::AggregateFunction,
        filter: Option<&substrait::proto::Expression>,
    ) -> Result<(Aggregate, Phase)> {
        let phase = match AggregationPhase::try_from(function.phase) {
            Ok(AggregationPhase::Unspecified | AggregationPhase::InitialToResult) => Phase::Single,
            Ok(AggregationPhase::InitialToIntermediate) => Phase::Intermediate,
            _ => {
                return Err(unsupported(
                    "an aggregation phase that starts from intermediate states; supported: INITIAL_TO_RESULT, \
                     INITIAL_TO_INTERMEDIATE",
                ));
            }
        };
        let name = self.reader.function(function.function_reference)?.to_string();
        if !function.sorts.is_empty() {
            return Err(unsupported(format!("an ordered {name} can't be pushed down")));
        }
        let mut arguments = self.reader.arguments(&name, &function.arguments, &self.columns, 1)?;
        for argument in &function.args {
            arguments.push(Argument::Value(self.reader.expression(argument, &self.columns)?));
        }
        let mut arguments: Vec<Expr> = arguments
            .into_iter()
            .map(|argument| match argument {
                Argument::Value(expr) => Ok(expr),
                _ => Err(unsupported(format!("{name} takes values"))),
            })
            .collect::<Result<_>>()?;
        let distinct = function.invocation == AggregationInvocation::Distinct as i32;
        let kind = match (name.as_str(), distinct) {
            ("count", false) => AggregateFunction::Count,
            ("count", true) => AggregateFunction::CountDistinct,
            ("sum", false) => AggregateFunction::Sum,
            ("avg", false) => AggregateFunction::Avg,
            // Duplicates do not change the least or the greatest.
            ("min", _) => AggregateFunction::Min,
            ("max", _) => AggregateFunction::Max,
            ("sum" | "avg", true) => return Err(unsupported(format!("{name}(DISTINCT ...) can't be pushed down"))),
            _ => {
                return Err(Error::new(
                    ErrorCode::UnknownFunction,
                    format!(
                        "aggregate {name:?} can't be pushed down; supported: {}, count(DISTINCT ...)",
                        AGGREGATE_FUNCTIONS.join(", ")
                    ),
                ));
            }
        };
        let mut argument = match arguments.len() {
            0 => None,
            1 => arguments.pop(),
            n => return Err(unsupported(format!("{name} of {n} arguments can't be pushed down"))),
        };
        // count(1) is count(*).
        let constant = |expr: &Expr| matches!(&expr.kind, ExprKind::Literal(value) if !value.is_null());
        if kind == AggregateFunction::Count && argument.as_ref().is_some_and(constant) {
            argument = None;
        }
        if let Some(filter) = filter {
            // FILTER (WHERE c) is the aggregate of CASE WHEN c THEN x END.
            let condition = self.condition(filter)?;
            let value = argument.unwrap_or_else(|| build::integer(1));
            argument = Some(build::case(vec![(condition, value)], None)?);
        }
        Ok((build::aggregate(kind, argument)?, phase))
    }

    fn sort(&mut self, rel: &SortRel) -> Result<()> {
        if self.fetched {
            return Err(after_fetch("Sort"));
        }
        // The outer of two sorts decides; the inner is not promised to survive it.
        self.sort.clear();
        for field in &rel.sorts {
            let (descending, nulls_first) = direction(field)?;
            let expr = field.expr.as_ref().ok_or_else(|| unsupported("a sort key without an expression"))?;
            let expr = self.reader.expression(expr, &self.columns)?;
            let same = self.columns.iter().position(|column| *column == expr);
            let name = same.and_then(|index| self.names[index].clone());
            self.sort.push(PendingSort { expr, name, descending, nulls_first });
        }
        self.emit(rel.common.as_ref())
    }

    #[allow(deprecated)] // `offset` and `count` are what most producers still fill
    fn fetch(&mut self, rel: &FetchRel) -> Result<()> {
        let offset = match &rel.offset_mode {
            None => 0,
            Some(OffsetMode::Offset(offset)) => *offset,
            Some(OffsetMode::OffsetExpr(expr)) => self.constant_count(expr)?.unwrap_or(0),
        };
        let count = match &rel.count_mode {
            None => None,
            // -1 was how the first versions of Substrait said "all".
            Some(CountMode::Count(-1)) => None,
            Some(CountMode::Count(count)) => Some(*count),
            Some(CountMode::CountExpr(expr)) => self.constant_count(expr)?,
        };
        let negative = |_| unsupported("a negative offset or count");
        let offset = u64::try_from(offset).map_err(negative)?;
        let count = count.map(u64::try_from).transpose().map_err(negative)?;
        // Of the rows kept so far, skip and keep again.
        let left = self.limit.map(|limit| limit.saturating_sub(offset));
        self.offset = self.offset.saturating_add(offset);
        self.limit = match (left, count) {
            (Some(left), Some(count)) => Some(left.min(count)),
            (left, count) => left.or(count),
        };
        self.fetched = true;
        self.emit(rel.common.as_ref())
    }

    fn constant_count(&mut self, expr: &substrait::proto::Expression) -> Result<Option<i64>> {
        match self.reader.expression(expr, &[])?.kind {
            ExprKind::Literal(Scalar::Null) => Ok(None),
            ExprKind::Literal(Scalar::I64(count)) => Ok(Some(count)),
            _ => Err(unsupported("offset and count must be integer constants")),
        }
    }

    fn finish(self, root_names: Option<&[String]>) -> Result<ScanPlan> {
        let visible = self.columns.len();
        if let Some(names) = root_names
            && names.len() != visible
        {
            return Err(unsupported(format!("the root names {} columns, the plan gives {visible}", names.len())));
        }
        let name = |index: usize, own: Option<String>| match root_names {
            Some(names) => names[index].clone(),
            None => own.unwrap_or_else(|| format!("column_{index}")),
        };
        let columns = self.columns.into_iter().zip(self.names).enumerate();
        let mut outputs: Vec<Output> =
            columns.map(|(index, (expr, own))| Output { name: name(index, own), expr }).collect();
        let mut sort = Vec::with_capacity(self.sort.len());
        for key in self.sort {
            if matches!(key.expr.data_type, DataType::Vector { .. }) {
                return Err(Error::new(ErrorCode::TypeMismatch, "vectors can't be sorted by"));
            }
            let output = outputs.iter().position(|output| output.expr == key.expr).unwrap_or_else(|| {
                let name = key.name.unwrap_or_else(|| format!("sort_{}", outputs.len()));
                outputs.push(Output { name, expr: key.expr });
                outputs.len() - 1
            });
            sort.push(SortKey { output, descending: key.descending, nulls_first: key.nulls_first });
        }
        Ok(ScanPlan {
            table: self.table,
            filter: self.filter,
            aggregation: self.aggregation,
            having: self.having,
            outputs,
            visible,
            sort,
            offset: self.offset,
            limit: self.limit,
        })
    }
}

fn after_fetch(relation: &str) -> Error {
    unsupported(format!("a {relation} over a Fetch (LIMIT) can't be pushed down"))
}

/// Whether a sort key descends, and whether NULLs come first.
fn direction(field: &SortField) -> Result<(bool, bool)> {
    let direction = match field.sort_kind {
        None => SortDirection::AscNullsLast,
        Some(SortKind::Direction(direction)) => SortDirection::try_from(direction).unwrap_or(SortDirection::Clustered),
        Some(SortKind::ComparisonFunctionReference(_)) => {
            return Err(unsupported("sorting by a comparison function can't be pushed down"));
        }
    };
    match direction {
        SortDirection::Unspecified | SortDirection::AscNullsLast => Ok((false, false)),
        SortDirection::AscNullsFirst => Ok((false, true)),
        SortDirection::DescNullsFirst => Ok((true, true)),
        SortDirection::DescNullsLast => Ok((true, false)),
        SortDirection::Clustered => Err(unsupported("a clustered sort can't be pushed down")),
    }
}
