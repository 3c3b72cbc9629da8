//! Arranging the parts of a SELECT: aggregation, outputs, hidden outputs, sort keys.

use super::expression::{AGGREGATE_BASE, Scope, condition};
use super::fragment;
use crate::error::{Error, ErrorCode, Result};
use crate::plan::build;
use crate::plan::expr::{Expr, ExprKind};
use crate::plan::scan::{Aggregation, Output, Phase, ScanPlan, SortKey};
use crate::schema::Schema;
use sqlparser::ast::{self, SelectItem, SelectItemQualifiedWildcardKind};

/// The parts of a SELECT over one table.
pub(super) struct Parts<'a> {
    pub items: &'a [SelectItem],
    pub filter: Option<&'a ast::Expr>,
    pub group_by: Vec<&'a ast::Expr>,
    pub having: Option<&'a ast::Expr>,
    pub order_by: Vec<&'a ast::OrderByExpr>,
    pub distinct: bool,
    pub offset: u64,
    pub limit: Option<u64>,
}

fn unsupported(what: impl Into<String>) -> Error {
    Error::new(ErrorCode::UnsupportedPlan, what)
}

/// Plans the parts.
pub(super) fn plan(parts: &Parts<'_>, table: &str, scope: &Scope<'_>, schema: &Schema) -> Result<ScanPlan> {
    let filter = match parts.filter {
        Some(tree) => Some(condition("WHERE", scope.row_expression(tree)?, tree)?),
        None => None,
    };
    let mut outputs = outputs(parts.items, scope, schema)?;
    let visible = outputs.len();
    let mut keys = Vec::new();
    for tree in &parts.group_by {
        let key = group_key(tree, &outputs, scope, schema)?;
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let having = match parts.having {
        Some(tree) => Some(condition("HAVING", scope.expression(tree)?, tree)?),
        None => None,
    };
    let mut sort = Vec::with_capacity(parts.order_by.len());
    for key in &parts.order_by {
        sort.push(sort_key(key, &mut outputs, visible, scope, schema)?);
    }
    let aggregates = scope.aggregates();
    let grouped = !keys.is_empty() || !aggregates.is_empty() || having.is_some();
    if parts.distinct {
        if grouped {
            return Err(unsupported("DISTINCT together with aggregates or GROUP BY is not supported"));
        }
        keys = outputs[..visible].iter().map(|output| output.expr.clone()).collect();
        keys.dedup();
    }
    let mut plan = ScanPlan {
        table: table.to_string(),
        filter,
        aggregation: None,
        having: None,
        outputs,
        visible,
        sort,
        offset: parts.offset,
        limit: parts.limit,
    };
    if grouped || parts.distinct {
        for output in &mut plan.outputs {
            let expr = std::mem::replace(&mut output.expr, build::boolean(false));
            output.expr = regroup(expr, &keys, schema)?;
        }
        plan.having = having.map(|having| regroup(having, &keys, schema)).transpose()?;
        plan.aggregation = Some(Aggregation { keys, aggregates, phase: Phase::Single });
    }
    build::check_plan_limits(&plan)?;
    Ok(plan)
}

fn outputs(items: &[SelectItem], scope: &Scope<'_>, schema: &Schema) -> Result<Vec<Output>> {
    let mut outputs = Vec::with_capacity(items.len());
    let all = |outputs: &mut Vec<Output>, options: &ast::WildcardAdditionalOptions| {
        if *options != ast::WildcardAdditionalOptions::default() && !options.to_string().is_empty() {
            return Err(unsupported(format!("*{options} is not supported")));
        }
        outputs.extend(schema.fields().iter().enumerate().map(|(index, field)| Output {
            name: field.name.clone(),
            expr: Expr::column(index, field.data_type, field.nullable),
        }));
        Ok(())
    };
    for item in items {
        match item {
            SelectItem::Wildcard(options) => all(&mut outputs, options)?,
            SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), options)
                if name.0.last().and_then(|part| part.as_ident()).is_some_and(|name| scope.is_table(&name.value)) =>
            {
                all(&mut outputs, options)?;
            }
            SelectItem::UnnamedExpr(tree) => {
                let expr = scope.expression(tree)?;
                let name = match &expr.kind {
                    ExprKind::Column(index) if *index < schema.len() => schema.fields()[*index].name.clone(),
                    ExprKind::Column(index) if *index == schema.len() => crate::ROWID_COLUMN.to_string(),
                    _ => fragment(&tree.to_string()),
                };
                outputs.push(Output { name, expr });
            }
            SelectItem::ExprWithAlias { expr, alias } => {
                outputs.push(Output { name: alias.value.clone(), expr: scope.expression(expr)? });
            }
            other => {
                return Err(unsupported(format!("the select item {} is not supported", fragment(&other.to_string()))));
            }
        }
        if outputs.len() > crate::COLUMNS_MAX {
            return Err(Error::new(
                ErrorCode::LimitExceeded,
                format!("more than {} output columns", crate::COLUMNS_MAX),
            ));
        }
    }
    Ok(outputs)
}

fn strip_parentheses(tree: &ast::Expr) -> &ast::Expr {
    let mut tree = tree;
    while let ast::Expr::Nested(inner) = tree {
        tree = inner;
    }
    tree
}

/// The output that a position (`2`) or an output's name means, if the tree is one of these.
fn output_reference(tree: &ast::Expr, outputs: &[Output], clause: &str) -> Result<Option<usize>> {
    match strip_parentheses(tree) {
        ast::Expr::Value(ast::ValueWithSpan { value: ast::Value::Number(text, _), .. }) => {
            match text.parse::<usize>().ok().filter(|position| (1..=outputs.len()).contains(position)) {
                Some(position) => Ok(Some(position - 1)),
                None => Err(Error::new(
                    ErrorCode::UnknownColumn,
                    format!("{clause} position {text}: there are {} outputs", outputs.len()),
                )),
            }
        }
        ast::Expr::Identifier(name) => {
            let exact = outputs.iter().position(|output| output.name == name.value);
            Ok(exact.or_else(|| outputs.iter().position(|output| output.name.eq_ignore_ascii_case(&name.value))))
        }
        _ => Ok(None),
    }
}

fn group_key(tree: &ast::Expr, outputs: &[Output], scope: &Scope<'_>, schema: &Schema) -> Result<Expr> {
    // A column of the table hides an output of the same name, as in PostgreSQL.
    let is_column =
        matches!(strip_parentheses(tree), ast::Expr::Identifier(name) if build::column(schema, &name.value).is_ok());
    if !is_column && let Some(index) = output_reference(tree, outputs, "GROUP BY")? {
        let expr = outputs[index].expr.clone();
        if super::expression::uses_aggregates(&expr) {
            return Err(unsupported(format!("GROUP BY {} is an aggregate", outputs[index].name)));
        }
        return Ok(expr);
    }
    scope.row_expression(tree)
}

fn sort_key(
    key: &ast::OrderByExpr,
    outputs: &mut Vec<Output>,
    visible: usize,
    scope: &Scope<'_>,
    schema: &Schema,
) -> Result<SortKey> {
    if key.with_fill.is_some() {
        return Err(unsupported("WITH FILL is not supported"));
    }
    let output = match output_reference(&key.expr, &outputs[..visible], "ORDER BY")? {
        Some(index) => index,
        None => {
            let expr = scope.expression(&key.expr)?;
            match outputs.iter().position(|output| output.expr == expr) {
                Some(index) => index,
                None => {
                    outputs.push(Output { name: fragment(&key.expr.to_string()), expr });
                    outputs.len() - 1
                }
            }
        }
    };
    let data_type = outputs[output].expr.data_type;
    if !data_type.is_ordered() {
        let _ = schema;
        return Err(Error::new(
            ErrorCode::TypeMismatch,
            format!("{data_type} has no order: ORDER BY {}", outputs[output].name),
        ));
    }
    let descending = key.options.asc == Some(false);
    Ok(SortKey { output, descending, nulls_first: key.options.nulls_first.unwrap_or(descending) })
}

/// Rewrites an expression over rows and aggregates to one over the aggregation's output columns.
fn regroup(expr: Expr, keys: &[Expr], schema: &Schema) -> Result<Expr> {
    if matches!(expr.kind, ExprKind::Literal(_)) {
        return Ok(expr);
    }
    if let Some(index) = keys.iter().position(|key| *key == expr) {
        return Ok(Expr::column(index, expr.data_type, expr.nullable));
    }
    let Expr { kind, data_type, nullable } = expr;
    let one = |child: Box<Expr>| regroup(*child, keys, schema).map(Box::new);
    let each = |list: Vec<Expr>| list.into_iter().map(|child| regroup(child, keys, schema)).collect::<Result<Vec<_>>>();
    let kind = match kind {
        ExprKind::Column(index) if index >= AGGREGATE_BASE => ExprKind::Column(keys.len() + index - AGGREGATE_BASE),
        ExprKind::Column(index) => {
            let name = schema.fields().get(index).map_or(crate::ROWID_COLUMN, |field| field.name.as_str());
            return Err(unsupported(format!(
                "the column {name} is neither a group key nor inside an aggregate: add it to GROUP BY"
            )));
        }
        ExprKind::Literal(_) | ExprKind::Parameter(_) => kind,
        ExprKind::Compare { op, left, right } => ExprKind::Compare { op, left: one(left)?, right: one(right)? },
        ExprKind::Arithmetic { op, left, right } => ExprKind::Arithmetic { op, left: one(left)?, right: one(right)? },
        ExprKind::And(list) => ExprKind::And(each(list)?),
        ExprKind::Or(list) => ExprKind::Or(each(list)?),
        ExprKind::Coalesce(list) => ExprKind::Coalesce(each(list)?),
        ExprKind::Not(value) => ExprKind::Not(one(value)?),
        ExprKind::IsNull(value) => ExprKind::IsNull(one(value)?),
        ExprKind::Negate(value) => ExprKind::Negate(one(value)?),
        ExprKind::In { value, list, list_has_null } => ExprKind::In { value: one(value)?, list, list_has_null },
        ExprKind::Like { value, pattern, escape, case_insensitive } => {
            ExprKind::Like { value: one(value)?, pattern, escape, case_insensitive }
        }
        ExprKind::Case { branches, otherwise } => ExprKind::Case {
            branches: branches
                .into_iter()
                .map(|(when, then)| Ok((regroup(when, keys, schema)?, regroup(then, keys, schema)?)))
                .collect::<Result<_>>()?,
            otherwise: otherwise.map(one).transpose()?,
        },
        ExprKind::Cast(value) => ExprKind::Cast(one(value)?),
        ExprKind::Extract { field, value } => ExprKind::Extract { field, value: one(value)? },
        ExprKind::AddInterval { value, months, days, microseconds } => {
            ExprKind::AddInterval { value: one(value)?, months, days, microseconds }
        }
        ExprKind::Substring { value, start, length } => {
            ExprKind::Substring { value: one(value)?, start: one(start)?, length: length.map(one).transpose()? }
        }
        ExprKind::Length(value) => ExprKind::Length(one(value)?),
        ExprKind::Lower(value) => ExprKind::Lower(one(value)?),
        ExprKind::Upper(value) => ExprKind::Upper(one(value)?),
    };
    Ok(Expr { kind, data_type, nullable })
}

/// Plans a whole SELECT statement.
pub(super) fn plan_query(query: &ast::Query, resolve: &dyn Fn(&str) -> Result<Schema>) -> Result<ScanPlan> {
    let refuse = |clause: &str| {
        Err(unsupported(format!(
            "{clause} is not supported; a query is SELECT ... FROM one table [WHERE] [GROUP BY] [HAVING] [ORDER BY] [LIMIT] [OFFSET]"
        )))
    };
    let ast::Query {
        with,
        body,
        order_by,
        limit_clause,
        fetch,
        locks,
        for_clause,
        settings,
        format_clause,
        pipe_operators,
    } = query;
    if with.is_some() {
        return refuse("WITH");
    }
    if !locks.is_empty()
        || for_clause.is_some()
        || settings.is_some()
        || format_clause.is_some()
        || !pipe_operators.is_empty()
    {
        return refuse("a clause after ORDER BY and LIMIT");
    }
    let ast::SetExpr::Select(select) = body.as_ref() else {
        return refuse("UNION, VALUES or a nested query");
    };
    let odd_clause = select.top.is_some()
        || select.exclude.is_some()
        || select.into.is_some()
        || !select.lateral_views.is_empty()
        || select.prewhere.is_some()
        || !select.connect_by.is_empty()
        || !select.cluster_by.is_empty()
        || !select.distribute_by.is_empty()
        || !select.sort_by.is_empty()
        || !select.named_window.is_empty()
        || select.qualify.is_some()
        || select.value_table_mode.is_some()
        || select.select_modifiers.is_some();
    if odd_clause {
        return refuse("a clause of this SELECT");
    }
    let distinct = match &select.distinct {
        None | Some(ast::Distinct::All) => false,
        Some(ast::Distinct::Distinct) => true,
        Some(_) => return refuse("DISTINCT ON"),
    };
    let [ast::TableWithJoins { relation, joins }] = select.from.as_slice() else {
        return refuse("FROM with no table or several");
    };
    if !joins.is_empty() {
        return refuse("JOIN");
    }
    let ast::TableFactor::Table {
        name,
        alias,
        args: None,
        with_hints,
        version: None,
        with_ordinality: false,
        partitions,
        json_path: None,
        sample: None,
        index_hints,
    } = relation
    else {
        return refuse("anything but a plain table in FROM");
    };
    if !with_hints.is_empty() || !partitions.is_empty() || !index_hints.is_empty() {
        return refuse("a table hint");
    }
    let table: Vec<&str> = name.0.iter().filter_map(|part| part.as_ident()).map(|part| part.value.as_str()).collect();
    let table = table.join(".");
    let group_by: Vec<&ast::Expr> = match &select.group_by {
        ast::GroupByExpr::Expressions(list, modifiers) if modifiers.is_empty() => list.iter().collect(),
        _ => return refuse("GROUP BY ALL, ROLLUP or CUBE"),
    };
    let order_by: Vec<&ast::OrderByExpr> = match order_by {
        None => Vec::new(),
        Some(ast::OrderBy { kind: ast::OrderByKind::Expressions(list), interpolate: None }) => list.iter().collect(),
        Some(_) => return refuse("ORDER BY ALL or INTERPOLATE"),
    };
    let (mut limit, mut offset) = (None, 0);
    match limit_clause {
        None => {}
        Some(ast::LimitClause::LimitOffset { limit: rows, offset: skipped, limit_by }) if limit_by.is_empty() => {
            limit = rows.as_ref().map(|rows| count(rows, "LIMIT")).transpose()?.flatten();
            offset = match skipped {
                Some(skipped) => count(&skipped.value, "OFFSET")?.unwrap_or(0),
                None => 0,
            };
        }
        Some(ast::LimitClause::OffsetCommaLimit { offset: skipped, limit: rows }) => {
            limit = count(rows, "LIMIT")?;
            offset = count(skipped, "OFFSET")?.unwrap_or(0);
        }
        Some(_) => return refuse("LIMIT BY"),
    }
    if let Some(fetch) = fetch {
        if fetch.with_ties || fetch.percent || limit.is_some() {
            return refuse("FETCH WITH TIES or PERCENT, or FETCH with LIMIT");
        }
        limit = match &fetch.quantity {
            Some(rows) => count(rows, "FETCH")?,
            None => Some(1),
        };
    }
    let schema = resolve(&table)?;
    let scope = Scope::new(&schema, &table).with_alias(alias.as_ref().map(|alias| alias.name.value.as_str()));
    let parts = Parts {
        items: &select.projection,
        filter: select.selection.as_ref(),
        group_by,
        having: select.having.as_ref(),
        order_by,
        distinct,
        offset,
        limit,
    };
    if parts.items.is_empty() {
        return refuse("a SELECT without items");
    }
    plan(&parts, &table, &scope, &schema)
}

/// The constant of LIMIT and OFFSET; NULL is no limit.
fn count(tree: &ast::Expr, clause: &str) -> Result<Option<u64>> {
    match strip_parentheses(tree) {
        ast::Expr::Value(ast::ValueWithSpan { value: ast::Value::Null, .. }) => Ok(None),
        ast::Expr::Value(ast::ValueWithSpan { value: ast::Value::Number(text, _), .. })
            if text.parse::<u64>().is_ok() =>
        {
            Ok(text.parse().ok())
        }
        other => Err(Error::new(
            ErrorCode::Syntax,
            format!("{clause} takes a whole number, not {}", fragment(&other.to_string())),
        )),
    }
}
