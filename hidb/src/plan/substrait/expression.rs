//! Substrait expressions as ours.
//!
//! Invariants
//! - At most [`EXPRESSION_NODES_MAX`] nodes are built per plan, counting every copy that a reference to a
//!   computed column makes; at most [`EXPRESSION_DEPTH_MAX`] levels of recursion.

use std::collections::HashMap;

use substrait::proto::expression::field_reference::{ReferenceType, RootType};
use substrait::proto::expression::reference_segment;
use substrait::proto::expression::{self, RexType};
use substrait::proto::extensions::SimpleExtensionDeclaration;
use substrait::proto::extensions::simple_extension_declaration::MappingType;
use substrait::proto::function_argument::ArgType;
use substrait::proto::{Expression, FunctionArgument, NamedStruct, Version};

use super::check::check;
use super::functions::{self, Argument, Call};
use super::types::{Constant, read_literal, read_type};
use super::{PARAMETERS_MAX, PRODUCER, unsupported};
use crate::ROWID_COLUMN;
use crate::error::{Error, ErrorCode, Result};
use crate::plan::expr::{Expr, ExprKind};
use crate::plan::{EXPRESSION_DEPTH_MAX, EXPRESSION_NODES_MAX, build};
use crate::schema::Schema;
use crate::types::{DataType, Scalar};

/// Reads the expressions of one message.
pub(super) struct Reader {
    functions: HashMap<u32, String>,
    types: HashMap<u32, String>,
    /// Nodes are taken as typed by `plan::build`.
    pub typed: bool,
    nodes_left: usize,
}

impl Reader {
    /// A reader of the expressions of a message with this version and these declarations.
    pub fn new(version: Option<&Version>, extensions: &[SimpleExtensionDeclaration]) -> Self {
        let (mut functions, mut types) = (HashMap::new(), HashMap::new());
        for declaration in extensions {
            match &declaration.mapping_type {
                Some(MappingType::ExtensionFunction(function)) => {
                    let name = function.name.split(':').next().unwrap_or_default();
                    functions.insert(function.function_anchor, name.to_ascii_lowercase());
                }
                Some(MappingType::ExtensionType(declared)) => {
                    types.insert(declared.type_anchor, declared.name.clone());
                }
                Some(MappingType::ExtensionTypeVariation(_)) | None => {}
            }
        }
        let typed = version.is_some_and(|version| version.producer == PRODUCER);
        Reader { functions, types, typed, nodes_left: EXPRESSION_NODES_MAX }
    }

    /// The columns that expressions are over: those of a table that a message's base schema names, in its order.
    pub fn base_columns(&self, base: Option<&NamedStruct>, schema: &Schema) -> Result<Vec<Expr>> {
        let base = base.ok_or_else(|| unsupported("there is no base schema"))?;
        let types = base.r#struct.as_ref().map_or(&[][..], |base| base.types.as_slice());
        if !types.is_empty() && types.len() != base.names.len() {
            return Err(unsupported("the base schema has as many names as types only when no column is nested"));
        }
        let column = |(index, name): (usize, &String)| {
            let column = if name == ROWID_COLUMN {
                Expr::column(schema.len(), DataType::Int64, false)
            } else {
                build::column(schema, name)?
            };
            // Our own clients type against the schema they know: a different one is not theirs.
            if self.typed {
                let declared = types.get(index).map(|t| read_type(t, &self.types)).transpose()?;
                if declared.is_some_and(|declared| declared != (column.data_type, column.nullable)) {
                    let text = format!("column {name:?} is {} now: fetch the schema again", column.data_type);
                    return Err(Error::new(ErrorCode::StaleSchema, text));
                }
            }
            Ok(column)
        };
        base.names.iter().enumerate().map(column).collect()
    }

    /// The name of a function, without its signature.
    pub fn function(&self, anchor: u32) -> Result<&str> {
        let name = self.functions.get(&anchor);
        name.map(String::as_str).ok_or_else(|| {
            Error::new(ErrorCode::UnknownFunction, format!("the plan declares no function with anchor {anchor}"))
        })
    }

    fn spend(&mut self, nodes: usize) -> Result<()> {
        self.nodes_left = self.nodes_left.checked_sub(nodes).ok_or_else(|| {
            Error::new(
                ErrorCode::LimitExceeded,
                format!("the expressions of the plan have more than {EXPRESSION_NODES_MAX} nodes"),
            )
        })?;
        Ok(())
    }

    /// A copy of a column's expression.
    pub fn copy(&mut self, expr: &Expr) -> Result<Expr> {
        let mut nodes = 0;
        expr.walk(&mut |_| nodes += 1);
        self.spend(nodes)?;
        Ok(expr.clone())
    }

    /// A condition over `columns`: an expression that must be boolean.
    pub fn condition(&mut self, expr: &Expression, columns: &[Expr]) -> Result<Expr> {
        let condition = self.expression(expr, columns)?;
        if condition.data_type != DataType::Boolean {
            let text = format!("a filter's condition must be boolean, not {}", condition.data_type);
            return Err(Error::new(ErrorCode::TypeMismatch, text));
        }
        Ok(condition)
    }

    /// An expression over `columns`.
    pub fn expression(&mut self, expr: &Expression, columns: &[Expr]) -> Result<Expr> {
        let read = self.value(expr, columns, 1)?;
        build::check_limits([&read])?;
        Ok(read)
    }

    fn value(&mut self, expr: &Expression, columns: &[Expr], depth: usize) -> Result<Expr> {
        match self.argument(expr, columns, depth)? {
            Argument::Value(expr) => Ok(expr),
            _ => Err(unsupported("an interval can only be added to or subtracted from a date or timestamp")),
        }
    }

    fn required(&mut self, expr: Option<&Expression>, columns: &[Expr], depth: usize) -> Result<Expr> {
        let expr = expr.ok_or_else(|| unsupported("an expression lacks an operand"))?;
        self.value(expr, columns, depth)
    }

    fn argument(&mut self, expr: &Expression, columns: &[Expr], depth: usize) -> Result<Argument> {
        self.spend(1)?;
        if depth > EXPRESSION_DEPTH_MAX {
            return Err(Error::new(
                ErrorCode::LimitExceeded,
                format!("an expression nests more than {EXPRESSION_DEPTH_MAX} levels deep: simplify it"),
            ));
        }
        let below = depth + 1;
        let rex = expr.rex_type.as_ref().ok_or_else(|| unsupported("an expression without a kind"))?;
        Ok(Argument::Value(match rex {
            RexType::Literal(literal) => match read_literal(literal, &self.types)? {
                Constant::Value(expr) => expr,
                Constant::Interval(interval) => return Ok(Argument::Interval(interval)),
            },
            RexType::Selection(reference) => {
                let index = field_index(reference)?;
                let column = columns.get(index).ok_or_else(|| {
                    unsupported(format!("field reference {index} where the input has {} columns", columns.len()))
                })?;
                self.copy(column)?
            }
            RexType::ScalarFunction(function) => self.scalar_function(function, columns, below)?,
            RexType::IfThen(case) => {
                let mut branches = Vec::with_capacity(case.ifs.len());
                for clause in &case.ifs {
                    let when = self.required(clause.r#if.as_ref(), columns, below)?;
                    branches.push((when, self.required(clause.then.as_ref(), columns, below)?));
                }
                let otherwise = case.r#else.as_deref().map(|e| self.value(e, columns, below)).transpose()?;
                if branches.is_empty() {
                    return Err(unsupported("an IfThen without a branch"));
                }
                if self.typed { typed_case(branches, otherwise)? } else { build::case(branches, otherwise)? }
            }
            RexType::SwitchExpression(switch) => {
                let operand = self.required(switch.r#match.as_deref(), columns, below)?;
                let mut branches = Vec::with_capacity(switch.ifs.len());
                for clause in &switch.ifs {
                    let literal = clause.r#if.as_ref().ok_or_else(|| unsupported("a switch lacks a value"))?;
                    let Constant::Value(value) = read_literal(literal, &self.types)? else {
                        return Err(unsupported("a switch over intervals"));
                    };
                    // The operand is copied into every branch.
                    let copy = self.copy(&operand)?;
                    let when = build::compare(crate::plan::CompareOp::Equal, copy, value)?;
                    branches.push((when, self.required(clause.then.as_ref(), columns, below)?));
                }
                let otherwise = switch.r#else.as_deref().map(|e| self.value(e, columns, below)).transpose()?;
                if branches.is_empty() {
                    return Err(unsupported("a SwitchExpression without a branch"));
                }
                build::case(branches, otherwise)?
            }
            RexType::SingularOrList(list) => {
                let value = self.required(list.value.as_deref(), columns, below)?;
                let mut items = Vec::with_capacity(list.options.len());
                for option in &list.options {
                    items.push(self.value(option, columns, below)?);
                }
                if self.typed { typed_in(value, items)? } else { build::in_list(value, items)? }
            }
            RexType::Cast(cast) => {
                let to = cast.r#type.as_ref().ok_or_else(|| unsupported("a cast without a type"))?;
                let (to, nullable) = read_type(to, &self.types)?;
                let value = self.required(cast.input.as_deref(), columns, below)?;
                if cast.failure_behavior == expression::cast::FailureBehavior::ReturnNull as i32 {
                    return Err(unsupported("a cast that gives NULL on failure (TRY_CAST) is not supported"));
                }
                match (self.typed, value.data_type == to) {
                    // Our writer says so what Substrait's node has no place for.
                    (true, true) => Expr { nullable, ..value },
                    (true, false) => check(Expr { kind: ExprKind::Cast(Box::new(value)), data_type: to, nullable })?,
                    (false, _) => build::cast(value, to)?,
                }
            }
            RexType::DynamicParameter(parameter) => {
                if parameter.parameter_reference as usize >= PARAMETERS_MAX {
                    return Err(Error::new(
                        ErrorCode::InvalidParameter,
                        format!("parameter {}: at most {PARAMETERS_MAX}", parameter.parameter_reference),
                    ));
                }
                let declared = parameter.r#type.as_ref().ok_or_else(|| unsupported("a parameter without a type"))?;
                let (data_type, nullable) = read_type(declared, &self.types)?;
                Expr { kind: ExprKind::Parameter(parameter.parameter_reference), data_type, nullable }
            }
            other => {
                let name = match other {
                    RexType::WindowFunction(_) => "WindowFunction",
                    RexType::MultiOrList(_) => "MultiOrList",
                    RexType::Subquery(_) => "Subquery",
                    RexType::Nested(_) => "Nested",
                    RexType::Lambda(_) | RexType::LambdaInvocation(_) => "Lambda",
                    _ => "Enum",
                };
                return Err(unsupported(format!(
                    "expression {name} can't be pushed down; supported: Literal, Selection, ScalarFunction, IfThen, \
                     SwitchExpression, SingularOrList, Cast, DynamicParameter"
                )));
            }
        }))
    }

    #[allow(deprecated)] // `args` is what producers of before 2022 fill
    fn scalar_function(
        &mut self,
        function: &expression::ScalarFunction,
        columns: &[Expr],
        depth: usize,
    ) -> Result<Expr> {
        let name = self.function(function.function_reference)?.to_string();
        let mut arguments = self.arguments(&name, &function.arguments, columns, depth)?;
        for argument in &function.args {
            arguments.push(self.argument(argument, columns, depth)?);
        }
        let typed = match (self.typed, &function.output_type) {
            (true, Some(output)) => Some(read_type(output, &self.types)?),
            (true, None) => return Err(unsupported("a typed plan has a function without an output type")),
            (false, _) => None,
        };
        let insensitive = |option: &substrait::proto::FunctionOption| {
            let first = option.preference.first().map(String::as_str);
            option.name.eq_ignore_ascii_case("case_sensitivity")
                && matches!(first, Some("CASE_INSENSITIVE" | "CASE_INSENSITIVE_ASCII"))
        };
        let case_insensitive = function.options.iter().any(insensitive);
        functions::call(Call { name: &name, arguments, case_insensitive, typed })
    }

    pub fn arguments(
        &mut self,
        name: &str,
        arguments: &[FunctionArgument],
        columns: &[Expr],
        depth: usize,
    ) -> Result<Vec<Argument>> {
        let read = arguments.iter().map(|argument| match &argument.arg_type {
            Some(ArgType::Value(expr)) => self.argument(expr, columns, depth),
            Some(ArgType::Enum(word)) => Ok(Argument::Enum(word.clone())),
            _ => Err(unsupported(format!("an argument of {name:?} that is neither a value nor an enum"))),
        });
        read.collect()
    }
}

fn field_index(reference: &expression::FieldReference) -> Result<usize> {
    if !matches!(reference.root_type, None | Some(RootType::RootReference(_))) {
        return Err(unsupported("a field reference must be to the input's columns"));
    }
    match &reference.reference_type {
        Some(ReferenceType::DirectReference(segment)) => match &segment.reference_type {
            Some(reference_segment::ReferenceType::StructField(field)) if field.child.is_none() => {
                usize::try_from(field.field).map_err(|_| unsupported("a negative field reference"))
            }
            _ => Err(unsupported("a reference into a nested value: columns are flat")),
        },
        _ => Err(unsupported("a field reference must be direct")),
    }
}

fn typed_case(branches: Vec<(Expr, Expr)>, otherwise: Option<Expr>) -> Result<Expr> {
    let data_type = branches.first().map_or(DataType::Boolean, |(_, then)| then.data_type);
    let nullable =
        otherwise.as_ref().is_none_or(|otherwise| otherwise.nullable) || branches.iter().any(|(_, then)| then.nullable);
    check(Expr { kind: ExprKind::Case { branches, otherwise: otherwise.map(Box::new) }, data_type, nullable })
}

fn typed_in(value: Expr, items: Vec<Expr>) -> Result<Expr> {
    let (mut list, mut list_has_null) = (Vec::with_capacity(items.len()), false);
    for item in items {
        match item.kind {
            ExprKind::Literal(Scalar::Null) => list_has_null = true,
            ExprKind::Literal(scalar) if item.data_type == value.data_type => list.push(scalar),
            _ => return Err(unsupported("a typed plan's IN list holds something else than constants of its type")),
        }
    }
    // The engine searches the list: order and uniqueness are not taken on trust.
    list.sort_by(|a, b| a.compare(b).unwrap_or(std::cmp::Ordering::Equal));
    list.dedup_by(|a, b| a.compare(b).is_some_and(|order| order.is_eq()));
    let nullable = value.nullable || list_has_null;
    let kind = ExprKind::In { value: Box::new(value), list, list_has_null };
    check(Expr { kind, data_type: DataType::Boolean, nullable })
}
