//! Syntax trees to typed expressions.

use super::fragment;
use super::literal;
use crate::calendar::Interval;
use crate::error::{Error, ErrorCode, Result};
use crate::plan::EXPRESSION_DEPTH_MAX;
use crate::plan::build;
use crate::plan::expr::{ArithmeticOp, CompareOp, Expr, ExprKind};
use crate::plan::scan::{Aggregate, AggregateFunction};
use crate::schema::Schema;
use crate::types::{DataType, Scalar};
use sqlparser::ast::{self, BinaryOperator, UnaryOperator, Value};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Aggregate number `i` stands in an expression as column `AGGREGATE_BASE + i` until `select` has
/// counted the group keys. Tables have far fewer columns.
pub(super) const AGGREGATE_BASE: usize = 1 << 31;

/// What names mean in a text, and what was collected while reading it.
pub(super) struct Scope<'a> {
    schema: &'a Schema,
    /// The names a column may be qualified with.
    tables: Vec<String>,
    parameters: RefCell<BTreeMap<u32, DataType>>,
    aggregates: RefCell<Vec<Aggregate>>,
}

/// What a subtree is before its context gives it a type.
enum Term {
    Expr(Expr),
    Parameter(u32),
    Interval(Interval),
}

impl<'a> Scope<'a> {
    pub(super) fn new(schema: &'a Schema, table: &str) -> Self {
        Scope {
            schema,
            tables: vec![table.to_string()],
            parameters: RefCell::default(),
            aggregates: RefCell::default(),
        }
    }

    pub(super) fn with_alias(mut self, alias: Option<&str>) -> Self {
        self.tables.extend(alias.map(str::to_string));
        self
    }

    /// The aggregates met so far.
    pub(super) fn aggregates(&self) -> Vec<Aggregate> {
        self.aggregates.borrow().clone()
    }

    /// Whether a qualifier names the table.
    pub(super) fn is_table(&self, name: &str) -> bool {
        self.tables.iter().any(|table| table.eq_ignore_ascii_case(name))
    }

    /// An expression over rows: aggregates are refused.
    pub(super) fn row_expression(&self, tree: &ast::Expr) -> Result<Expr> {
        let before = self.aggregates.borrow().len();
        let expr = self.expression(tree)?;
        if self.aggregates.borrow().len() > before || uses_aggregates(&expr) {
            return Err(at(
                Error::new(ErrorCode::UnsupportedPlan, "an aggregate where only row values are allowed"),
                tree,
            ));
        }
        Ok(expr)
    }

    /// An expression that may contain aggregates.
    pub(super) fn expression(&self, tree: &ast::Expr) -> Result<Expr> {
        self.expr(tree, 1)
    }

    fn expr(&self, tree: &ast::Expr, depth: usize) -> Result<Expr> {
        match self.term(tree, depth)? {
            Term::Expr(expr) => Ok(expr),
            term => self.settle(term, None).map_err(|error| at(error, tree)),
        }
    }

    /// An expression whose type is this one if it is a bare parameter.
    fn expr_like(&self, tree: &ast::Expr, data_type: DataType, depth: usize) -> Result<Expr> {
        let term = self.term(tree, depth)?;
        self.settle(term, Some(data_type)).map_err(|error| at(error, tree))
    }

    fn settle(&self, term: Term, hint: Option<DataType>) -> Result<Expr> {
        match (term, hint) {
            (Term::Expr(expr), _) => Ok(expr),
            (Term::Parameter(index), Some(data_type)) => self.parameter(index, data_type),
            (Term::Parameter(index), None) => Err(Error::new(
                ErrorCode::InvalidParameter,
                format!("the type of parameter ${} is not clear here: write cast(${} as type)", index + 1, index + 1),
            )),
            (Term::Interval(_), _) => Err(Error::new(
                ErrorCode::TypeMismatch,
                "an interval can only be added to or subtracted from a date or timestamp",
            )),
        }
    }

    fn parameter(&self, index: u32, data_type: DataType) -> Result<Expr> {
        let known = *self.parameters.borrow_mut().entry(index).or_insert(data_type);
        if known != data_type {
            return Err(Error::new(
                ErrorCode::InvalidParameter,
                format!("parameter ${} is used as {known} and as {data_type}: use two parameters", index + 1),
            ));
        }
        Ok(Expr { kind: ExprKind::Parameter(index), data_type, nullable: true })
    }

    fn term(&self, tree: &ast::Expr, depth: usize) -> Result<Term> {
        if depth > EXPRESSION_DEPTH_MAX {
            return Err(build::too_deep());
        }
        match tree {
            ast::Expr::Nested(inner) => self.term(inner, depth + 1),
            ast::Expr::BinaryOp { .. } => self.chain(tree, depth),
            ast::Expr::Interval(interval) => {
                literal::interval(interval).map(Term::Interval).map_err(|error| at(error, tree))
            }
            ast::Expr::Value(value) => self.value(&value.value).map_err(|error| at(error, tree)),
            ast::Expr::UnaryOp { op: UnaryOperator::Minus, expr } => match self.term(expr, depth + 1)? {
                Term::Interval(interval) => {
                    interval.checked_neg().map(Term::Interval).ok_or_else(|| at(interval_overflow(), tree))
                }
                term => {
                    let expr = self.settle(term, None)?;
                    build::negate(expr).map(Term::Expr).map_err(|error| at(error, tree))
                }
            },
            ast::Expr::Cast {
                kind: ast::CastKind::Cast | ast::CastKind::DoubleColon,
                expr,
                data_type,
                format: None,
                ..
            } => {
                let to = literal::data_type(data_type).map_err(|error| at(error, tree))?;
                let value = self.expr_like(expr, to, depth + 1)?;
                build::cast(value, to).map(Term::Expr).map_err(|error| at(error, tree))
            }
            _ => self.other(tree, depth).map(Term::Expr),
        }
    }

    fn value(&self, value: &Value) -> Result<Term> {
        let expr = match value {
            Value::Number(text, _) => literal::number(text)?,
            Value::SingleQuotedString(text)
            | Value::NationalStringLiteral(text)
            | Value::EscapedStringLiteral(text)
            | Value::UnicodeStringLiteral(text) => build::text(text.clone()),
            Value::HexStringLiteral(text) => literal::hex(text)?,
            Value::Boolean(value) => build::boolean(*value),
            Value::Null => build::null(DataType::Text),
            Value::Placeholder(name) => {
                let number = name.trim_start_matches(['$', '?']).parse::<u32>().ok().filter(|number| *number > 0);
                let number = number.ok_or_else(|| {
                    Error::new(ErrorCode::InvalidParameter, format!("parameters are ? or $1, $2, ..., not {name}"))
                })?;
                return Ok(Term::Parameter(number - 1));
            }
            other => {
                return Err(Error::new(
                    ErrorCode::Syntax,
                    format!("the literal {} is not supported", fragment(&other.to_string())),
                ));
            }
        };
        Ok(Term::Expr(expr))
    }

    /// A chain of binary operators, which leans to the left in the tree: walked without recursion.
    fn chain(&self, tree: &ast::Expr, depth: usize) -> Result<Term> {
        let mut links = Vec::new();
        let mut base = tree;
        while let ast::Expr::BinaryOp { left, op, right } = base {
            links.push((op, right.as_ref(), base));
            base = left;
        }
        let is_logical = |op: &BinaryOperator| matches!(op, BinaryOperator::And | BinaryOperator::Or);
        let levels = depth + links.iter().filter(|(op, ..)| !is_logical(op)).count();
        if levels > EXPRESSION_DEPTH_MAX {
            return Err(build::too_deep());
        }
        let mut so_far = self.term(base, levels + 1)?;
        let mut run: Option<(bool, Vec<Expr>)> = None;
        let finish = |run: Option<(bool, Vec<Expr>)>| match run {
            Some((true, list)) => build::and(list).map(Some),
            Some((false, list)) => build::or(list).map(Some),
            None => Ok(None),
        };
        while let Some((op, right, whole)) = links.pop() {
            if is_logical(op) {
                let conjunction = *op == BinaryOperator::And;
                let name = if conjunction { "AND" } else { "OR" };
                let mut list = match run.take() {
                    Some((same, list)) if same == conjunction => list,
                    other => {
                        let first = match finish(other).map_err(|error| at(error, base))? {
                            Some(expr) => expr,
                            None => {
                                let term = std::mem::replace(&mut so_far, Term::Interval(Interval::default()));
                                self.settle(term, Some(DataType::Boolean)).map_err(|error| at(error, base))?
                            }
                        };
                        vec![condition(name, first, base)?]
                    }
                };
                let item = self.expr_like(right, DataType::Boolean, levels + 1)?;
                list.push(condition(name, item, right)?);
                run = Some((conjunction, list));
            } else {
                if let Some(expr) = finish(run.take()).map_err(|error| at(error, whole))? {
                    so_far = Term::Expr(expr);
                }
                let right = self.term(right, levels + 1)?;
                let left = std::mem::replace(&mut so_far, Term::Interval(Interval::default()));
                so_far = self.binary(op, left, right).map(Term::Expr).map_err(|error| at(error, whole))?;
            }
        }
        Ok(finish(run).map_err(|error| at(error, tree))?.map_or(so_far, Term::Expr))
    }

    fn binary(&self, op: &BinaryOperator, left: Term, right: Term) -> Result<Expr> {
        let (left, right) = match (op, left, right) {
            (BinaryOperator::Plus, Term::Interval(interval), Term::Expr(value))
            | (BinaryOperator::Plus, Term::Expr(value), Term::Interval(interval)) => {
                return build::add_interval(adapt_to_interval(value)?, interval);
            }
            (BinaryOperator::Minus, Term::Expr(value), Term::Interval(interval)) => {
                let interval = interval.checked_neg().ok_or_else(interval_overflow)?;
                return build::add_interval(adapt_to_interval(value)?, interval);
            }
            (_, Term::Parameter(index), Term::Expr(right)) => (self.parameter(index, right.data_type)?, right),
            (_, Term::Expr(left), right) => {
                let hint = left.data_type;
                (left, self.settle(right, Some(hint))?)
            }
            (_, left, right) => (self.settle(left, None)?, self.settle(right, None)?),
        };
        let compare = match op {
            BinaryOperator::Eq => CompareOp::Equal,
            BinaryOperator::NotEq => CompareOp::NotEqual,
            BinaryOperator::Lt => CompareOp::Less,
            BinaryOperator::LtEq => CompareOp::LessOrEqual,
            BinaryOperator::Gt => CompareOp::Greater,
            BinaryOperator::GtEq => CompareOp::GreaterOrEqual,
            _ => {
                let arithmetic = match op {
                    BinaryOperator::Plus => ArithmeticOp::Add,
                    BinaryOperator::Minus => ArithmeticOp::Subtract,
                    BinaryOperator::Multiply => ArithmeticOp::Multiply,
                    BinaryOperator::Divide => ArithmeticOp::Divide,
                    BinaryOperator::Modulo => ArithmeticOp::Remainder,
                    other => {
                        return Err(Error::new(ErrorCode::UnknownFunction, format!("there is no operator {other}")));
                    }
                };
                return build::arithmetic(arithmetic, left, right);
            }
        };
        build::compare(compare, left, right)
    }

    fn other(&self, tree: &ast::Expr, depth: usize) -> Result<Expr> {
        let below = depth + 1;
        let placed = |result: Result<Expr>| result.map_err(|error| at(error, tree));
        let negated_if = |negated: bool, expr: Result<Expr>| if negated { build::not(expr?) } else { expr };
        match tree {
            ast::Expr::Identifier(name) => placed(self.column(name)),
            ast::Expr::CompoundIdentifier(parts) => placed(match parts.as_slice() {
                [.., table, name] if self.is_table(&table.value) => self.column(name),
                _ => Err(Error::new(ErrorCode::UnknownColumn, "only columns of the scanned table can be named")),
            }),
            ast::Expr::UnaryOp { op: UnaryOperator::Not, expr } => {
                let value = self.expr_like(expr, DataType::Boolean, below)?;
                placed(build::not(value))
            }
            ast::Expr::UnaryOp { op: UnaryOperator::Plus, expr } => self.expr(expr, below),
            ast::Expr::IsNull(value) => Ok(build::is_null(self.expr(value, below)?)),
            ast::Expr::IsNotNull(value) => build::not(build::is_null(self.expr(value, below)?)),
            ast::Expr::IsUnknown(value) => Ok(build::is_null(self.expr(value, below)?)),
            ast::Expr::IsNotUnknown(value) => build::not(build::is_null(self.expr(value, below)?)),
            ast::Expr::IsTrue(value) => placed(build::is_truth(self.expr(value, below)?, true)),
            ast::Expr::IsFalse(value) => placed(build::is_truth(self.expr(value, below)?, false)),
            ast::Expr::IsNotTrue(value) => placed(build::is_truth(self.expr(value, below)?, true).and_then(build::not)),
            ast::Expr::IsNotFalse(value) => {
                placed(build::is_truth(self.expr(value, below)?, false).and_then(build::not))
            }
            ast::Expr::IsDistinctFrom(left, right) | ast::Expr::IsNotDistinctFrom(left, right) => {
                let left = self.expr(left, below)?;
                let right = self.expr_like(right, left.data_type, below)?;
                let same = matches!(tree, ast::Expr::IsNotDistinctFrom(..));
                placed(negated_if(same, build::is_distinct(left, right)))
            }
            ast::Expr::Between { expr, negated, low, high } => {
                let value = self.expr(expr, below)?;
                let low = self.expr_like(low, value.data_type, below)?;
                let high = self.expr_like(high, value.data_type, below)?;
                placed(negated_if(*negated, build::between(value, low, high)))
            }
            ast::Expr::InList { expr, list, negated } => {
                let value = self.expr(expr, below)?;
                let items =
                    list.iter().map(|item| self.expr_like(item, value.data_type, below)).collect::<Result<Vec<_>>>()?;
                placed(negated_if(*negated, build::in_list(value, items)))
            }
            ast::Expr::Like { negated, any: false, expr, pattern, escape_char } => {
                placed(negated_if(*negated, self.like(expr, pattern, escape_char.as_ref(), false, below)))
            }
            ast::Expr::ILike { negated, any: false, expr, pattern, escape_char } => {
                placed(negated_if(*negated, self.like(expr, pattern, escape_char.as_ref(), true, below)))
            }
            ast::Expr::Case { operand, conditions, else_result, .. } => {
                let operand = operand.as_ref().map(|operand| self.expr(operand, below)).transpose()?;
                let hint = operand.as_ref().map_or(DataType::Boolean, |operand| operand.data_type);
                let mut branches = Vec::with_capacity(conditions.len());
                for branch in conditions {
                    let when = self.expr_like(&branch.condition, hint, below)?;
                    branches.push((when, self.expr(&branch.result, below)?));
                }
                let otherwise = else_result.as_ref().map(|otherwise| self.expr(otherwise, below)).transpose()?;
                placed(match operand {
                    Some(operand) => build::simple_case(&operand, branches, otherwise),
                    None => build::case(branches, otherwise),
                })
            }
            ast::Expr::TypedString(typed) => {
                let text = typed.value.clone().into_string().unwrap_or_default();
                placed(literal::data_type(&typed.data_type).and_then(|to| literal::typed_string(&text, to)))
            }
            ast::Expr::Extract { field, expr, .. } => {
                let value = self.expr(expr, below)?;
                placed(literal::date_field(&field.to_string()).and_then(|field| build::extract(field, value)))
            }
            ast::Expr::Substring { expr, substring_from, substring_for, .. } => {
                let value = self.expr(expr, below)?;
                let position = |part: &Option<Box<ast::Expr>>| {
                    part.as_ref().map(|part| self.expr_like(part, DataType::Int64, below)).transpose()
                };
                let start = position(substring_from)?.unwrap_or_else(|| build::integer(1));
                let length = position(substring_for)?;
                placed(build::substring(value, start, length))
            }
            ast::Expr::Function(function) => self.function(function, tree, below),
            _ => Err(at(
                Error::new(
                    ErrorCode::UnsupportedPlan,
                    "this expression is not supported; there are comparisons, BETWEEN, IN, LIKE, ILIKE, IS, AND, OR, NOT, + - * / %, CASE, CAST, EXTRACT, SUBSTRING and functions",
                ),
                tree,
            )),
        }
    }

    /// The column of this name. Who puts an unknown one in double quotes may have meant text.
    fn column(&self, name: &ast::Ident) -> Result<Expr> {
        let found = build::column(self.schema, &name.value);
        if name.quote_style != Some('"') {
            return found;
        }
        found.map_err(|error| {
            let text = fragment(&name.value).replace('\'', "''");
            // A name as short as a value is like too many columns.
            let missing = match name.value.chars().count() {
                0..3 => format!("there is no column {:?}", name.value),
                _ => error.message,
            };
            Error::new(error.code, format!("double quotes name columns (write '{text}' for text): {missing}"))
        })
    }

    fn like(
        &self,
        value: &ast::Expr,
        pattern: &ast::Expr,
        escape: Option<&ast::ValueWithSpan>,
        case_insensitive: bool,
        depth: usize,
    ) -> Result<Expr> {
        let value = self.expr(value, depth)?;
        let pattern = self.expr(pattern, depth)?;
        let escape = match escape.map(|escape| &escape.value) {
            None => Some('\\'),
            Some(Value::SingleQuotedString(text)) => {
                let mut characters = text.chars();
                match (characters.next(), characters.next()) {
                    (first, None) => first,
                    _ => return Err(Error::new(ErrorCode::Syntax, "ESCAPE takes one character or none")),
                }
            }
            Some(_) => return Err(Error::new(ErrorCode::Syntax, "ESCAPE takes a string of one character or none")),
        };
        match &pattern.kind {
            ExprKind::Literal(Scalar::Null) => Ok(build::null(DataType::Boolean)),
            ExprKind::Literal(Scalar::Bytes(bytes)) if pattern.data_type.is_text() => {
                let pattern = String::from_utf8_lossy(bytes).into_owned();
                build::like(value, &pattern, escape, case_insensitive)
            }
            _ => Err(Error::new(ErrorCode::UnsupportedPlan, "a LIKE pattern must be a text literal")),
        }
    }

    fn function(&self, function: &ast::Function, tree: &ast::Expr, depth: usize) -> Result<Expr> {
        let refuse = |what: &str| Err(at(Error::new(ErrorCode::UnsupportedPlan, what), tree));
        if function.over.is_some() {
            return refuse("window functions are not supported");
        }
        if function.filter.is_some() || !function.within_group.is_empty() || function.null_treatment.is_some() {
            return refuse("FILTER, WITHIN GROUP and NULLS clauses are not supported: use CASE inside the aggregate");
        }
        let ast::FunctionArguments::List(list) = &function.args else {
            return refuse("a function needs its arguments in parentheses");
        };
        if !list.clauses.is_empty() || !matches!(function.parameters, ast::FunctionArguments::None) {
            return refuse("clauses inside a function call are not supported");
        }
        let name = function.name.to_string().to_ascii_lowercase();
        let distinct = list.duplicate_treatment == Some(ast::DuplicateTreatment::Distinct);
        let mut arguments = Vec::with_capacity(list.args.len());
        let mut star = false;
        for argument in &list.args {
            match argument {
                ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(expr)) => arguments.push(expr),
                ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Wildcard) => star = true,
                _ => return refuse("named and qualified arguments are not supported"),
            }
        }
        let aggregate = match name.as_str() {
            "count" if distinct => Some(AggregateFunction::CountDistinct),
            "count" => Some(AggregateFunction::Count),
            "sum" => Some(AggregateFunction::Sum),
            "avg" | "mean" => Some(AggregateFunction::Avg),
            "min" => Some(AggregateFunction::Min),
            "max" => Some(AggregateFunction::Max),
            _ => None,
        };
        if let Some(aggregate) = aggregate {
            // The least and greatest of the distinct values are those of all.
            let harmless = matches!(aggregate, AggregateFunction::Min | AggregateFunction::Max);
            if distinct && aggregate != AggregateFunction::CountDistinct && !harmless {
                return refuse("DISTINCT is supported in count, min and max only");
            }
            return self.aggregate(aggregate, &arguments, star).map_err(|error| at(error, tree));
        }
        if star || distinct {
            return refuse("* and DISTINCT are for aggregates");
        }
        self.scalar_function(&name, &arguments, depth).map_err(|error| at(error, tree))
    }

    fn aggregate(&self, function: AggregateFunction, arguments: &[&ast::Expr], star: bool) -> Result<Expr> {
        let argument = match (arguments, star) {
            ([], true) => None,
            ([argument], false) => {
                let before = self.aggregates.borrow().len();
                let expr = self.expression(argument)?;
                if self.aggregates.borrow().len() > before || uses_aggregates(&expr) {
                    return Err(Error::new(ErrorCode::UnsupportedPlan, "an aggregate inside an aggregate"));
                }
                Some(expr)
            }
            _ => return Err(Error::new(ErrorCode::UnknownFunction, "an aggregate takes one argument")),
        };
        // Counting what can't be NULL is counting rows.
        let argument = argument.filter(|argument| function != AggregateFunction::Count || argument.nullable);
        let aggregate = build::aggregate(function, argument)?;
        let mut aggregates = self.aggregates.borrow_mut();
        let index = aggregates.iter().position(|known| *known == aggregate).unwrap_or(aggregates.len());
        let expr = Expr::column(AGGREGATE_BASE + index, aggregate.data_type, aggregate.nullable());
        if index == aggregates.len() {
            aggregates.push(aggregate);
        }
        Ok(expr)
    }

    fn scalar_function(&self, name: &str, arguments: &[&ast::Expr], depth: usize) -> Result<Expr> {
        let one = |tree: &ast::Expr| self.expr(tree, depth);
        let position = |tree: &ast::Expr| self.expr_like(tree, DataType::Int64, depth);
        match (name, arguments) {
            ("coalesce", [_, ..]) => build::coalesce(arguments.iter().map(|tree| one(tree)).collect::<Result<_>>()?),
            ("nullif", [value, other]) => {
                let value = one(value)?;
                let other = self.expr_like(other, value.data_type, depth)?;
                build::nullif(value, other)
            }
            ("lower", [value]) => build::lower(one(value)?),
            ("upper", [value]) => build::upper(one(value)?),
            ("length" | "char_length" | "character_length", [value]) => build::length(one(value)?),
            ("substr" | "substring", [value, start]) => build::substring(one(value)?, position(start)?, None),
            ("substr" | "substring", [value, start, length]) => {
                build::substring(one(value)?, position(start)?, Some(position(length)?))
            }
            ("date_part" | "datepart", [field, value]) => {
                let ExprKind::Literal(Scalar::Bytes(field)) = one(field)?.kind else {
                    return Err(Error::new(
                        ErrorCode::UnsupportedPlan,
                        "the field of date_part must be a text literal",
                    ));
                };
                build::extract(literal::date_field(&String::from_utf8_lossy(&field))?, one(value)?)
            }
            ("year" | "quarter" | "month" | "week" | "day" | "hour" | "minute" | "second" | "epoch", [value]) => {
                build::extract(literal::date_field(name)?, one(value)?)
            }
            ("date", [value]) => build::cast(one(value)?, DataType::Date),
            _ => Err(Error::new(
                ErrorCode::UnknownFunction,
                format!(
                    "there is no function {}({}); there are count, sum, min, max, avg, coalesce, nullif, lower, upper, length, substring, date_part, extract",
                    fragment(name),
                    arguments
                        .iter()
                        .map(|tree| one(tree).map_or("?".into(), |expr| expr.data_type.to_string()))
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            )),
        }
    }
}

/// An expression where `clause` needs a boolean.
pub(super) fn condition(clause: &str, expr: Expr, tree: &ast::Expr) -> Result<Expr> {
    let found = expr.data_type;
    build::and(vec![expr]).map_err(|error| match found {
        DataType::Boolean => at(error, tree),
        _ => at(Error::new(ErrorCode::TypeMismatch, format!("{clause} needs a boolean, not {found}")), tree),
    })
}

/// Whether an expression contains the stand-in of an aggregate.
pub(super) fn uses_aggregates(expr: &Expr) -> bool {
    expr.columns().last().is_some_and(|column| *column >= AGGREGATE_BASE)
}

/// A text literal that an interval is added to is a date or timestamp.
fn adapt_to_interval(value: Expr) -> Result<Expr> {
    match &value.kind {
        ExprKind::Literal(Scalar::Bytes(_)) if value.data_type.is_text() => {
            build::coerce(value.clone(), DataType::Date)
                .or_else(|_| build::coerce(value, DataType::Timestamp { utc: false }))
        }
        _ => Ok(value),
    }
}

fn interval_overflow() -> Error {
    Error::new(ErrorCode::NumericOverflow, "the interval is out of range")
}

/// Says where in the text an error is, once.
fn at(error: Error, tree: &ast::Expr) -> Error {
    if error.message.contains(" (in `") {
        return error;
    }
    Error { message: format!("{} (in `{}`)", error.message, fragment(&tree.to_string())), ..error }
}
