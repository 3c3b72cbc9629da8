//! Plans: what a cell is asked to do with one table.
//!
//! Owns the internal plan ([`ScanPlan`]) and its typed expressions ([`Expr`]). Text (`sql`) and Substrait
//! (`substrait`) both build it through the same typing rules (`build`), so that the same question gives
//! the same plan.
//!
//! Invariants
//! - Every [`Expr`] carries its type; operands have already been coerced to what their operator wants.
//! - A plan that was built has valid column indexes, at most [`EXPRESSION_NODES_MAX`] nodes and at
//!   most [`EXPRESSION_DEPTH_MAX`] levels.

pub mod build;
pub mod explain;
pub mod expr;
pub mod fold;
pub mod scan;
pub mod sql;
pub mod substrait;

pub use expr::{ArithmeticOp, CompareOp, DateField, Expr, ExprKind};
pub use scan::{Aggregate, AggregateFunction, Aggregation, Output, Phase, ScanPlan, SortKey};

/// The most expression nodes in one plan.
pub const EXPRESSION_NODES_MAX: usize = 100_000;
/// The deepest nesting of one expression.
pub const EXPRESSION_DEPTH_MAX: usize = 128;
