//! The general evaluator: expressions compiled to a flat program over registers, run a block at a time.
//!
//! Owns [`Program`] (nodes in post-order, equal subexpressions shared), [`facts`] (what zone maps prove
//! about every node: value ranges, possible truth values), [`tables`] (functions of a column with few values) and
//! [`machine`] (the registers and the run).
//! Called by the filter, projection and aggregation.
//!
//! Invariants
//! - A node's children have smaller numbers than the node.
//! - A run evaluates a node for a set of *active* rows; only they may raise errors. The active set shrinks
//!   inside AND, OR, CASE and COALESCE, so that branches not taken raise nothing.
//! - No allocation per block once the registers have grown to their size.

pub(crate) mod arithmetic;
mod blend;
mod compare;
pub(crate) mod facts;
pub(crate) mod machine;
pub(crate) mod tables;
mod values;

use std::collections::HashMap;

use hidb::plan::{ArithmeticOp, CompareOp, DateField, Expr, ExprKind};
use hidb::{DataType, Error, ErrorCode, Result, Scalar};

/// What a node computes from its children.
#[derive(Debug)]
pub(crate) enum Op {
    Column(usize),
    Literal(Scalar),
    Compare(CompareOp),
    And,
    Or,
    Not,
    IsNull,
    Arithmetic(ArithmeticOp),
    Negate,
    /// The list as `i64`s when the lane is `I64`, and as it is.
    In {
        integers: Vec<i64>,
        list: Vec<Scalar>,
        has_null: bool,
    },
    Like(Box<hidb::like::LikeMatcher>),
    /// Children: condition, value, condition, value, ..., and the ELSE value if there is one.
    Case {
        branches: usize,
    },
    Coalesce,
    Cast,
    Extract(DateField),
    AddInterval {
        months: i32,
        days: i32,
        microseconds: i64,
    },
    /// Children: text, start, and the length if there is one.
    Substring,
    Length,
    Lower,
    Upper,
}

/// One register and how it is computed.
#[derive(Debug)]
pub(crate) struct Node {
    pub op: Op,
    pub children: Vec<usize>,
    pub data_type: DataType,
    pub nullable: bool,
    /// For a cast between integers and decimals: digits the unscaled value gains (or loses).
    pub scale_shift: Option<i32>,
    /// The column it reads, if it reads just one.
    pub only_column: Option<usize>,
}

impl Node {
    /// The children that a CASE or COALESCE takes its value from.
    pub fn values(&self) -> impl Iterator<Item = usize> {
        let conditions = if let Op::Case { branches } = self.op { branches } else { 0 };
        self.children
            .iter()
            .enumerate()
            .filter(move |(index, _)| *index >= conditions * 2 || index % 2 == 1)
            .map(|(_, child)| *child)
    }
}

/// Expressions over the columns of one input, compiled together.
#[derive(Debug, Default)]
pub(crate) struct Program {
    pub nodes: Vec<Node>,
    known: HashMap<String, usize>,
}

impl Program {
    /// Adds an expression and gives the node that holds its value.
    pub fn add(&mut self, expr: &Expr) -> Result<usize> {
        // Equal text of the debug form means equal expression: floats print with all their digits.
        let key = format!("{expr:?}");
        if let Some(node) = self.known.get(&key) {
            return Ok(*node);
        }
        let children = expr.children().into_iter().map(|child| self.add(child)).collect::<Result<Vec<usize>>>()?;
        let op = match &expr.kind {
            ExprKind::Column(index) => Op::Column(*index),
            ExprKind::Literal(value) => Op::Literal(value.clone()),
            ExprKind::Parameter(index) => {
                return Err(Error::new(
                    ErrorCode::InvalidParameter,
                    format!("parameter ${} has no value: bind every parameter before execution", index + 1),
                ));
            }
            ExprKind::Compare { op, .. } => Op::Compare(*op),
            ExprKind::And(_) => Op::And,
            ExprKind::Or(_) => Op::Or,
            ExprKind::Not(_) => Op::Not,
            ExprKind::IsNull(_) => Op::IsNull,
            ExprKind::Arithmetic { op, .. } => Op::Arithmetic(*op),
            ExprKind::Negate(_) => Op::Negate,
            ExprKind::In { list, list_has_null, .. } => Op::In {
                integers: list.iter().filter_map(|v| if let Scalar::I64(v) = v { Some(*v) } else { None }).collect(),
                list: list.clone(),
                has_null: *list_has_null,
            },
            ExprKind::Like { pattern, escape, case_insensitive, .. } => {
                Op::Like(Box::new(hidb::like::LikeMatcher::new(pattern, *escape, *case_insensitive)?))
            }
            ExprKind::Case { branches, .. } => Op::Case { branches: branches.len() },
            ExprKind::Coalesce(_) => Op::Coalesce,
            ExprKind::Cast(_) => Op::Cast,
            ExprKind::Extract { field, .. } => Op::Extract(*field),
            ExprKind::AddInterval { months, days, microseconds, .. } => {
                Op::AddInterval { months: *months, days: *days, microseconds: *microseconds }
            }
            ExprKind::Substring { .. } => Op::Substring,
            ExprKind::Length(_) => Op::Length,
            ExprKind::Lower(_) => Op::Lower,
            ExprKind::Upper(_) => Op::Upper,
        };
        let scale_shift = match op {
            Op::Cast => match (exact_scale(&self.nodes[children[0]].data_type), exact_scale(&expr.data_type)) {
                (Some(from), Some(to)) => Some(to - from),
                _ => None,
            },
            _ => None,
        };
        let only_column = match expr.columns().as_slice() {
            [column] => Some(*column),
            _ => None,
        };
        let (data_type, nullable) = (expr.data_type, expr.nullable);
        self.nodes.push(Node { op, children, data_type, nullable, scale_shift, only_column });
        let node = self.nodes.len() - 1;
        self.known.insert(key, node);
        Ok(node)
    }

    /// The input column that a node is, if it is nothing but a column.
    pub fn plain_column(&self, node: usize) -> Option<usize> {
        match self.nodes[node].op {
            Op::Column(column) => Some(column),
            _ => None,
        }
    }
}

/// Digits after the point of integers (none) and decimals.
fn exact_scale(data_type: &DataType) -> Option<i32> {
    match data_type {
        DataType::Int16 | DataType::Int32 | DataType::Int64 => Some(0),
        DataType::Decimal { scale, .. } => Some(i32::from(*scale)),
        _ => None,
    }
}
