//! Plans as Substrait: what engines push down, and what our own clients send.
//!
//! Owns [`to_substrait`], [`from_substrait`], [`table_name`], the parameters of prepared statements
//! ([`parameter_types`], [`bind_parameters`]), and conditions that come alone ([`filter_to_substrait`],
//! [`filter_from_substrait`]). The accepted relations and functions are listed in
//! `docs/hidb.md`.
//!
//! Two readings of an expression. A message of *any* producer goes through `plan::build`, exactly as text does,
//! so that the same question gives the same plan. One whose `version.producer` is [`PRODUCER`] was typed
//! by `plan::build` already: its nodes are taken as they are and checked one by one against the
//! invariants of `plan::expr` (`check`), so that `from_substrait(to_substrait(plan)) == plan`.
//!
//! Invariants
//! - Nothing of a plan is silently dropped: what is not understood is an `UnsupportedPlan` or
//!   `UnknownFunction` error that names it and lists what is supported. (Hints and best-effort filters
//!   may be ignored by definition.)
//! - Nesting is bounded before the protobuf decoder recurses, nodes and depth while expressions are built,
//!   also when projections over projections multiply them.
//!
//! Called by the cell (requests) and by clients.

mod check;
mod expression;
mod filter;
mod functions;
mod read;
mod types;
mod write;

use std::collections::BTreeMap;

use prost::Message;
use substrait::proto::rel::RelType;
use substrait::proto::{Plan, Rel, plan_rel, read_rel};

use super::expr::{Expr, ExprKind};
use super::fold;
use super::scan::ScanPlan;
use crate::convert::scalar_belongs_to;
use crate::error::{Error, ErrorCode, Result};
use crate::schema::Schema;
use crate::types::{DataType, Scalar};

pub use filter::{filter_from_substrait, filter_to_substrait};
pub use functions::{AGGREGATE_FUNCTIONS, SCALAR_FUNCTIONS};
pub use write::to_substrait;

/// `version.producer` of plans whose expressions `plan::build` has typed.
pub const PRODUCER: &str = "heliostat";
/// The most parameters of a prepared statement.
pub const PARAMETERS_MAX: usize = 1024;

/// Nesting of protobuf messages that every stack has room for: three levels per expression level (`Expression`,
/// `ScalarFunction`, `FunctionArgument`) and some for relations.
const MESSAGE_NESTING_USUAL: usize = 3 * super::EXPRESSION_DEPTH_MAX + 128;
/// The deepest nesting of messages, as [`nests_deeper_than`] sees it: the names of a table with thousands of columns can
/// look like messages within each other. Such plans are read on a stack of their own.
const MESSAGE_NESTING_MAX: usize = 16 << 10;
/// Stack that decoding takes per message, with room to spare.
const STACK_BYTES_PER_MESSAGE: usize = 8 << 10;
/// The most relations in a plan.
const RELATIONS_MAX: usize = 64;

fn unsupported(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::UnsupportedPlan, message)
}

/// Decodes a message (`what` says which), after bounding how deep the decoder will recurse, and hands it to `read`.
fn with_message<M: Message + Default, T>(bytes: &[u8], what: &str, read: impl FnOnce(&M) -> Result<T>) -> Result<T> {
    let decode = || {
        let message = M::decode(bytes)
            .map_err(|error| Error::new(ErrorCode::Protocol, format!("the bytes are not {what}: {error}")))?;
        read(&message)
    };
    if !nests_deeper_than(bytes, MESSAGE_NESTING_USUAL) {
        return decode();
    }
    if nests_deeper_than(bytes, MESSAGE_NESTING_MAX) {
        let text = format!("{what} nests more than {MESSAGE_NESTING_MAX} messages deep: simplify it");
        return Err(Error::new(ErrorCode::LimitExceeded, text));
    }
    // Reading and dropping the message recurse as deep as decoding it.
    stacker::grow(MESSAGE_NESTING_MAX * STACK_BYTES_PER_MESSAGE, decode)
}

fn with_plan<T>(bytes: &[u8], read: impl FnOnce(&Plan) -> Result<T>) -> Result<T> {
    with_message(bytes, "a Substrait plan", read)
}

/// Whether the protobuf decoder could recurse deeper than `limit` over `bytes`.
///
/// Models what prost does to malformed input as well: it descends into a field before it notices that
/// the field leaves its parent, or that the parent is broken further on. Every length-delimited field is
/// taken for a message, so a text that happens to look like one may be overestimated; nothing is
/// underestimated. Does not recurse, and gives up (true) on input made to be scanned over and over.
fn nests_deeper_than(bytes: &[u8], limit: usize) -> bool {
    let mut fields_left = 1024 + 32 * bytes.len();
    // Where a message begins, where it ends, how deep it is. In ascending order, so that what several parents seem to
    // contain is looked at once, at its deepest and longest.
    let mut pending = BTreeMap::from([(0usize, (bytes.len(), 1usize))]);
    while let Some((start, (end, depth))) = pending.pop_first() {
        let mut rest = &bytes[start..];
        // Field numbers of the groups that are open here.
        let mut groups: Vec<u64> = Vec::new();
        while bytes.len() - rest.len() < end {
            if depth + groups.len() > limit || fields_left == 0 {
                return true;
            }
            fields_left -= 1;
            let Ok(key) = prost::encoding::decode_varint(&mut rest) else { break };
            let field = key >> 3;
            if field == 0 {
                break;
            }
            let skip = match key & 7 {
                0 => prost::encoding::decode_varint(&mut rest).map(|_| 0),
                1 => Ok(8),
                2 => prost::encoding::decode_varint(&mut rest),
                3 => {
                    groups.push(field);
                    Ok(0)
                }
                // The end of another group: malformed, or packed numbers that only look like a message.
                4 if groups.pop() != Some(field) => break,
                4 => Ok(0),
                5 => Ok(4),
                _ => break,
            };
            let Some(skip) = skip.ok().and_then(|skip| usize::try_from(skip).ok()) else { break };
            let at = bytes.len() - rest.len();
            let Some(after) = rest.get(skip..) else { break };
            if key & 7 == 2 && skip > 1 {
                let (known_end, known_depth) = pending.entry(at).or_insert((0, 0));
                (*known_end, *known_depth) = ((*known_end).max(at + skip), (*known_depth).max(depth + 1));
            }
            rest = after;
        }
    }
    false
}

/// The relations of a plan from the outermost to the read, and the root's names.
fn relations(plan: &Plan) -> Result<(Vec<&RelType>, Option<&[String]>)> {
    let [relation] = plan.relations.as_slice() else {
        return Err(unsupported(format!("{} relations in the plan: exactly one is supported", plan.relations.len())));
    };
    let (rel, names) = match &relation.rel_type {
        Some(plan_rel::RelType::Root(root)) => (root.input.as_ref(), Some(root.names.as_slice())),
        Some(plan_rel::RelType::Rel(rel)) => (Some(rel), None),
        None => (None, None),
    };
    let mut chain = Vec::new();
    let mut next: Option<&Rel> = rel;
    while let Some(rel) = next {
        if chain.len() == RELATIONS_MAX {
            return Err(Error::new(ErrorCode::LimitExceeded, format!("more than {RELATIONS_MAX} nested relations")));
        }
        let rel_type = rel.rel_type.as_ref().ok_or_else(|| unsupported("a relation without a type"))?;
        chain.push(rel_type);
        next = match rel_type {
            RelType::Read(_) => return Ok((chain, names)),
            RelType::Filter(rel) => rel.input.as_deref(),
            RelType::Project(rel) => rel.input.as_deref(),
            RelType::Aggregate(rel) => rel.input.as_deref(),
            RelType::Sort(rel) => rel.input.as_deref(),
            RelType::Fetch(rel) => rel.input.as_deref(),
            other => return Err(unsupported_relation(other)),
        };
    }
    Err(unsupported("a relation without an input: a plan must end in a Read of one named table"))
}

fn unsupported_relation(rel: &RelType) -> Error {
    // The variant's name is the relation's; the rest of the debug text is its contents.
    let text = format!("{:?}", std::mem::discriminant(rel));
    let name = match rel {
        RelType::Join(_) => "Join",
        RelType::Set(_) => "Set",
        RelType::Cross(_) => "Cross",
        RelType::HashJoin(_) => "HashJoin",
        RelType::MergeJoin(_) => "MergeJoin",
        RelType::NestedLoopJoin(_) => "NestedLoopJoin",
        RelType::Window(_) => "Window",
        RelType::Exchange(_) => "Exchange",
        RelType::Expand(_) => "Expand",
        RelType::ExtensionSingle(_) | RelType::ExtensionMulti(_) | RelType::ExtensionLeaf(_) => "an extension",
        _ => text.as_str(),
    };
    unsupported(format!(
        "relation {name} can't be pushed down; supported: Read, Filter, Project, Aggregate, Sort, Fetch over one table"
    ))
}

/// The table a plan reads, without planning it.
pub fn table_name(bytes: &[u8]) -> Result<String> {
    with_plan(bytes, |plan| {
        let (chain, _) = relations(plan)?;
        match chain.last() {
            Some(RelType::Read(read)) => read_table(read).map(str::to_string),
            _ => Err(unsupported("a plan must end in a Read of one named table")),
        }
    })
}

fn read_table(read: &substrait::proto::ReadRel) -> Result<&str> {
    match &read.read_type {
        Some(read_rel::ReadType::NamedTable(table)) => {
            table.names.last().map(String::as_str).ok_or_else(|| unsupported("the Read names no table"))
        }
        _ => Err(unsupported("a Read must be of a named table (not of files, values or an extension)")),
    }
}

/// Plans a Substrait plan. `resolve` gives the schema of a table by name, or its `UnknownTable` error.
pub fn from_substrait(bytes: &[u8], resolve: &dyn Fn(&str) -> Result<Schema>) -> Result<ScanPlan> {
    with_plan(bytes, |plan| {
        let scan = read::read_plan(plan, resolve)?;
        super::build::check_plan_limits(&scan)?;
        Ok(scan)
    })
}

/// Calls `visit` for every expression of a plan.
fn for_each_expr(plan: &ScanPlan, visit: &mut impl FnMut(&Expr)) {
    let aggregation = plan.aggregation.iter().flat_map(|aggregation| {
        aggregation.keys.iter().chain(aggregation.aggregates.iter().filter_map(|aggregate| aggregate.argument.as_ref()))
    });
    let outputs = plan.outputs.iter().map(|output| &output.expr);
    for expr in plan.filter.iter().chain(aggregation).chain(&plan.having).chain(outputs) {
        expr.walk(visit);
    }
}

/// The types of a plan's parameters, by index. `InvalidParameter` when an index is left out or two uses of
/// one disagree.
pub fn parameter_types(plan: &ScanPlan) -> Result<Vec<DataType>> {
    let invalid = |message: String| Error::new(ErrorCode::InvalidParameter, message);
    let mut types: Vec<Option<DataType>> = Vec::new();
    let mut failure = None;
    for_each_expr(plan, &mut |expr| {
        if let ExprKind::Parameter(index) = expr.kind {
            let index = index as usize;
            if index >= PARAMETERS_MAX {
                failure = Some(invalid(format!("parameter {index}: at most {PARAMETERS_MAX} parameters")));
                return;
            }
            if types.len() <= index {
                types.resize(index + 1, None);
            }
            match types[index] {
                Some(known) if known != expr.data_type => {
                    failure = Some(invalid(format!("parameter {index} is used as {known} and as {}", expr.data_type)));
                }
                _ => types[index] = Some(expr.data_type),
            }
        }
    });
    if let Some(failure) = failure {
        return Err(failure);
    }
    let known = types.into_iter().enumerate();
    known.map(|(index, t)| t.ok_or_else(|| invalid(format!("parameter {index} is not used in the plan")))).collect()
}

/// The plan with its parameters replaced by these values, and folded. `InvalidParameter` when there are too
/// few or too many, or one is not of its type.
pub fn bind_parameters(plan: &ScanPlan, values: &[Scalar]) -> Result<ScanPlan> {
    let types = parameter_types(plan)?;
    if types.len() != values.len() {
        return Err(Error::new(
            ErrorCode::InvalidParameter,
            format!("{} parameters given, the statement has {}", values.len(), types.len()),
        ));
    }
    for (index, (data_type, value)) in types.iter().zip(values).enumerate() {
        if !scalar_belongs_to(value, data_type) {
            return Err(Error::new(
                ErrorCode::InvalidParameter,
                format!("parameter {index} is {data_type}; {value:?} is not one"),
            ));
        }
    }
    let mut bound = plan.clone();
    let mut bind = |expr: &mut Expr| {
        replace_parameters(expr, values);
        let whole = std::mem::replace(expr, Expr::literal(Scalar::Null, DataType::Boolean));
        *expr = fold::fold(whole);
    };
    for expr in bound.filter.iter_mut().chain(&mut bound.having) {
        bind(expr);
    }
    for output in &mut bound.outputs {
        bind(&mut output.expr);
    }
    if let Some(aggregation) = &mut bound.aggregation {
        aggregation.keys.iter_mut().for_each(&mut bind);
        aggregation.aggregates.iter_mut().filter_map(|aggregate| aggregate.argument.as_mut()).for_each(&mut bind);
    }
    Ok(bound)
}

fn replace_parameters(expr: &mut Expr, values: &[Scalar]) {
    if let ExprKind::Parameter(index) = expr.kind {
        // Nullability stays as planned: the result's schema was promised when it was prepared.
        expr.kind = ExprKind::Literal(values[index as usize].clone());
        return;
    }
    for child in children_mut(expr) {
        replace_parameters(child, values);
    }
}

fn children_mut(expr: &mut Expr) -> Vec<&mut Expr> {
    match &mut expr.kind {
        ExprKind::Column(_) | ExprKind::Literal(_) | ExprKind::Parameter(_) => Vec::new(),
        ExprKind::Compare { left, right, .. } | ExprKind::Arithmetic { left, right, .. } => vec![left, right],
        ExprKind::And(list) | ExprKind::Or(list) | ExprKind::Coalesce(list) => list.iter_mut().collect(),
        ExprKind::Not(value)
        | ExprKind::IsNull(value)
        | ExprKind::Negate(value)
        | ExprKind::In { value, .. }
        | ExprKind::Like { value, .. }
        | ExprKind::Cast(value)
        | ExprKind::Extract { value, .. }
        | ExprKind::AddInterval { value, .. }
        | ExprKind::Length(value)
        | ExprKind::Lower(value)
        | ExprKind::Upper(value) => vec![value],
        ExprKind::Case { branches, otherwise } => {
            branches.iter_mut().flat_map(|(when, then)| [when, then]).chain(otherwise.as_deref_mut()).collect()
        }
        ExprKind::Substring { value, start, length } => {
            [value, start].into_iter().chain(length).map(|child| &mut **child).collect()
        }
    }
}

#[cfg(test)]
mod tests;
