//! Plans as readable, SQL-like text.
//!
//! Owns the text form of [`Expr`] and [`ScanPlan`] for `explain`, errors and logs. Called by the cell
//! (explain requests), the client and tests.
//!
//! Invariants
//! - The text names columns; an index without a name prints as `#index`.
//! - What prints is what runs: casts, rescaled constants and rewritten comparisons are shown as they are
//!   (but for casts that only widen a decimal's precision).

use super::expr::{CompareOp, DateField, Expr, ExprKind};
use super::fold::symbol;
use super::scan::{Aggregate, AggregateFunction, ScanPlan};
use crate::ROWID_COLUMN;
use crate::cast;
use crate::schema::Schema;
use crate::types::{DataType, Scalar};
use std::fmt::Write;

/// Constants of an IN list that are printed.
const LIST_SHOWN: usize = 10;

/// The text of an expression; `names[i]` is the name of column `i`.
pub fn expression(expr: &Expr, names: &[String]) -> String {
    let mut out = String::new();
    write_expr(&mut out, expr, names, 0);
    out
}

/// The names of a table's columns, `_rowid` included.
pub fn column_names(schema: &Schema) -> Vec<String> {
    schema.fields().iter().map(|field| field.name.clone()).chain([ROWID_COLUMN.to_string()]).collect()
}

/// The text of a plan, one stage per line, first stage first.
pub fn plan(plan: &ScanPlan, schema: &Schema) -> String {
    let table_names = column_names(schema);
    let mut out = String::new();
    let read: Vec<&str> =
        plan.table_columns().iter().map(|index| table_names.get(*index).map_or("?", String::as_str)).collect();
    let _ = writeln!(out, "scan {} columns [{}]", plan.table, read.join(", "));
    if let Some(filter) = &plan.filter {
        let _ = writeln!(out, "filter {}", expression(filter, &table_names));
    }
    let mut names = table_names;
    if let Some(aggregation) = &plan.aggregation {
        let keys: Vec<String> = aggregation.keys.iter().map(|key| expression(key, &names)).collect();
        let aggregates: Vec<String> = aggregation.aggregates.iter().map(|one| aggregate(one, &names)).collect();
        let _ = writeln!(out, "aggregate by [{}] compute [{}]", keys.join(", "), aggregates.join(", "));
        names = keys.into_iter().chain(aggregates).collect();
    }
    if let Some(having) = &plan.having {
        let _ = writeln!(out, "having {}", expression(having, &names));
    }
    let outputs: Vec<String> = plan
        .outputs
        .iter()
        .enumerate()
        .map(|(index, output)| {
            let text = expression(&output.expr, &names);
            let named = if text == output.name { text } else { format!("{text} as {}", output.name) };
            let hidden = if index >= plan.visible { " (hidden)" } else { "" };
            format!("{named}: {}{hidden}", output.expr.data_type)
        })
        .collect();
    let _ = writeln!(out, "output [{}]", outputs.join(", "));
    if !plan.sort.is_empty() {
        let keys: Vec<String> = plan
            .sort
            .iter()
            .map(|key| {
                let name = plan.outputs.get(key.output).map_or("?", |output| output.name.as_str());
                let direction = if key.descending { "desc" } else { "asc" };
                format!("{name} {direction} nulls {}", if key.nulls_first { "first" } else { "last" })
            })
            .collect();
        let _ = writeln!(out, "sort [{}]", keys.join(", "));
    }
    if plan.offset > 0 {
        let _ = writeln!(out, "offset {}", plan.offset);
    }
    if let Some(limit) = plan.limit {
        let _ = writeln!(out, "limit {limit}");
    }
    out
}

/// The text of an aggregate.
pub fn aggregate(aggregate: &Aggregate, names: &[String]) -> String {
    let argument = aggregate.argument.as_ref().map_or("*".to_string(), |argument| expression(argument, names));
    match aggregate.function {
        AggregateFunction::Count => format!("count({argument})"),
        AggregateFunction::CountDistinct => format!("count(distinct {argument})"),
        AggregateFunction::Sum => format!("sum({argument})"),
        AggregateFunction::Min => format!("min({argument})"),
        AggregateFunction::Max => format!("max({argument})"),
        AggregateFunction::Avg => format!("avg({argument})"),
    }
}

/// The text of a constant: numbers bare, dates and timestamps typed, text quoted.
pub fn literal(value: &Scalar, data_type: &DataType) -> String {
    let quote = |text: &str| format!("'{}'", text.replace('\'', "''"));
    match (value, data_type) {
        (Scalar::Null, _) => "null".into(),
        (Scalar::Bytes(bytes), _) if !data_type.is_text() => {
            let shown: String = bytes.iter().take(32).map(|byte| format!("{byte:02x}")).collect();
            format!("x'{shown}{}'", if bytes.len() > 32 { "..." } else { "" })
        }
        _ => {
            let text = cast::render(value, data_type).unwrap_or_else(|| "?".into());
            match data_type {
                DataType::Date => format!("date {}", quote(&text)),
                DataType::Timestamp { utc: false } => format!("timestamp {}", quote(&text)),
                DataType::Timestamp { utc: true } => format!("timestamptz {}", quote(&text)),
                data_type if data_type.is_text() => quote(&text),
                _ => text,
            }
        }
    }
}

/// How tightly an operator binds; operands that bind less tightly get parentheses.
fn binding(expr: &Expr) -> u8 {
    match &expr.kind {
        ExprKind::Or(_) => 1,
        ExprKind::And(_) => 2,
        ExprKind::Not(value) => match value.kind {
            // Printed as IS NOT NULL, NOT IN, NOT LIKE.
            ExprKind::IsNull(_) | ExprKind::In { .. } | ExprKind::Like { .. } => 4,
            _ => 3,
        },
        ExprKind::Compare { .. } | ExprKind::IsNull(_) | ExprKind::In { .. } | ExprKind::Like { .. } => 4,
        ExprKind::Arithmetic { op, .. } => match symbol(*op) {
            "+" | "-" => 5,
            _ => 6,
        },
        ExprKind::AddInterval { .. } => 5,
        ExprKind::Negate(_) => 7,
        _ => 8,
    }
}

/// A cast that only moves a decimal to the 128-bit lane: left out of the text.
fn is_widening(value: &Expr, cast: &Expr) -> bool {
    match (value.data_type, cast.data_type) {
        (DataType::Decimal { precision: p1, scale: s1 }, DataType::Decimal { precision: p2, scale: s2 }) => {
            s1 == s2 && p1 <= p2
        }
        _ => false,
    }
}

fn write_expr(out: &mut String, expr: &Expr, names: &[String], outer: u8) {
    if let ExprKind::Cast(value) = &expr.kind
        && is_widening(value, expr)
    {
        return write_expr(out, value, names, outer);
    }
    let own = binding(expr);
    if own < outer {
        out.push('(');
        write_node(out, expr, names, own);
        out.push(')');
    } else {
        write_node(out, expr, names, own);
    }
}

fn write_list(out: &mut String, list: &[Expr], names: &[String], separator: &str, outer: u8) {
    for (index, item) in list.iter().enumerate() {
        if index > 0 {
            out.push_str(separator);
        }
        write_expr(out, item, names, outer);
    }
}

fn write_call(out: &mut String, name: &str, arguments: &[&Expr], names: &[String]) {
    out.push_str(name);
    out.push('(');
    for (index, argument) in arguments.iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        write_expr(out, argument, names, 0);
    }
    out.push(')');
}

fn write_node(out: &mut String, expr: &Expr, names: &[String], own: u8) {
    match &expr.kind {
        ExprKind::Column(index) => match names.get(*index) {
            Some(name) => out.push_str(name),
            None => {
                let _ = write!(out, "#{index}");
            }
        },
        ExprKind::Literal(value) => out.push_str(&literal(value, &expr.data_type)),
        ExprKind::Parameter(index) => {
            let _ = write!(out, "${}", index + 1);
        }
        ExprKind::Compare { op, left, right } => {
            write_expr(out, left, names, own + 1);
            let symbol = match op {
                CompareOp::Equal => " = ",
                CompareOp::NotEqual => " <> ",
                CompareOp::Less => " < ",
                CompareOp::LessOrEqual => " <= ",
                CompareOp::Greater => " > ",
                CompareOp::GreaterOrEqual => " >= ",
            };
            out.push_str(symbol);
            write_expr(out, right, names, own + 1);
        }
        ExprKind::And(list) => write_list(out, list, names, " and ", own + 1),
        ExprKind::Or(list) => write_list(out, list, names, " or ", own + 1),
        ExprKind::Not(value) => write_not(out, value, names, own),
        ExprKind::IsNull(value) => {
            write_expr(out, value, names, own + 1);
            out.push_str(" is null");
        }
        ExprKind::Arithmetic { op, left, right } => {
            write_expr(out, left, names, own);
            let _ = write!(out, " {} ", symbol(*op));
            write_expr(out, right, names, own + 1);
        }
        ExprKind::Negate(value) => {
            out.push('-');
            write_expr(out, value, names, own + 1);
        }
        ExprKind::In { .. } => write_in(out, expr, names, "in"),
        ExprKind::Like { .. } => write_like(out, expr, names, ""),
        ExprKind::Case { branches, otherwise } => {
            out.push_str("case");
            for (when, then) in branches {
                out.push_str(" when ");
                write_expr(out, when, names, 0);
                out.push_str(" then ");
                write_expr(out, then, names, 0);
            }
            if let Some(otherwise) = otherwise {
                out.push_str(" else ");
                write_expr(out, otherwise, names, 0);
            }
            out.push_str(" end");
        }
        ExprKind::Coalesce(list) => write_call(out, "coalesce", &list.iter().collect::<Vec<_>>(), names),
        ExprKind::Cast(value) => {
            out.push_str("cast(");
            write_expr(out, value, names, 0);
            let _ = write!(out, " as {})", expr.data_type);
        }
        ExprKind::Extract { field, value } => {
            let _ = write!(out, "extract({} from ", field_name(*field));
            write_expr(out, value, names, 0);
            out.push(')');
        }
        ExprKind::AddInterval { value, months, days, microseconds } => {
            write_expr(out, value, names, own);
            let parts = [(i64::from(*months), "months"), (i64::from(*days), "days"), (*microseconds, "microseconds")];
            let parts: Vec<String> =
                parts.iter().filter(|(count, _)| *count != 0).map(|(count, unit)| format!("{count} {unit}")).collect();
            let _ = write!(out, " + interval '{}'", if parts.is_empty() { "0 days".into() } else { parts.join(" ") });
        }
        ExprKind::Substring { value, start, length } => {
            let arguments: Vec<&Expr> = [value, start].into_iter().chain(length).map(|child| &**child).collect();
            write_call(out, "substring", &arguments, names);
        }
        ExprKind::Length(value) => write_call(out, "length", &[value], names),
        ExprKind::Lower(value) => write_call(out, "lower", &[value], names),
        ExprKind::Upper(value) => write_call(out, "upper", &[value], names),
    }
}

fn write_not(out: &mut String, value: &Expr, names: &[String], own: u8) {
    match &value.kind {
        ExprKind::IsNull(inner) => {
            write_expr(out, inner, names, own + 1);
            out.push_str(" is not null");
        }
        ExprKind::In { .. } => write_in(out, value, names, "not in"),
        ExprKind::Like { .. } => write_like(out, value, names, "not "),
        _ => {
            out.push_str("not ");
            write_expr(out, value, names, own);
        }
    }
}

fn write_in(out: &mut String, expr: &Expr, names: &[String], operator: &str) {
    let ExprKind::In { value, list, list_has_null } = &expr.kind else { return };
    write_expr(out, value, names, 5);
    let mut items: Vec<String> = list.iter().take(LIST_SHOWN).map(|item| literal(item, &value.data_type)).collect();
    if list.len() > LIST_SHOWN {
        items.push(format!("... {} more", list.len() - LIST_SHOWN));
    }
    if *list_has_null {
        items.push("null".into());
    }
    let _ = write!(out, " {operator} ({})", items.join(", "));
}

fn write_like(out: &mut String, expr: &Expr, names: &[String], negation: &str) {
    let ExprKind::Like { value, pattern, escape, case_insensitive } = &expr.kind else { return };
    write_expr(out, value, names, 5);
    let name = if *case_insensitive { "ilike" } else { "like" };
    let _ = write!(out, " {negation}{name} '{}'", pattern.replace('\'', "''"));
    match escape {
        Some('\\') => {}
        Some(character) => {
            let _ = write!(out, " escape '{}'", if *character == '\'' { "''".into() } else { character.to_string() });
        }
        None => out.push_str(" escape ''"),
    }
}

fn field_name(field: DateField) -> &'static str {
    match field {
        DateField::Year => "year",
        DateField::Quarter => "quarter",
        DateField::Month => "month",
        DateField::Week => "week",
        DateField::Day => "day",
        DateField::DayOfWeek => "dow",
        DateField::DayOfYear => "doy",
        DateField::Hour => "hour",
        DateField::Minute => "minute",
        DateField::Second => "second",
        DateField::Epoch => "epoch",
    }
}
