//! A condition that comes alone, as a Substrait `ExtendedExpression` of one boolean expression: which rows a search may
//! find, which rows are deleted.
//!
//! Owns [`filter_to_substrait`] and [`filter_from_substrait`]. Expressions are written and read as those of plans are,
//! by `write` and `expression`: the same functions, limits, and two readings.
//!
//! Called by clients (to), and by the cell (from).

use prost::Message;
use substrait::proto::ExtendedExpression;
use substrait::proto::expression_reference::ExprType;

use super::expression::Reader;
use super::write::Writer;
use super::{unsupported, with_message};
use crate::error::{Error, ErrorCode, Result};
use crate::plan::expr::{Expr, ExprKind};
use crate::schema::Schema;

/// A condition over the columns of a table of this schema (`schema.len()` stands for `_rowid`) as an encoded
/// `substrait.ExtendedExpression`, whose base schema has the columns that the condition uses.
pub fn filter_to_substrait(filter: &Expr, schema: &Schema) -> Vec<u8> {
    let mut columns = filter.columns();
    columns.sort_unstable();
    columns.dedup();
    if columns.is_empty() {
        // As in a plan: no columns at all are legal, but not every consumer takes it.
        columns.push(0);
    }
    Writer::new(columns).extended_expression(filter, "filter", schema).encode_to_vec()
}

/// The condition of an encoded `substrait.ExtendedExpression` over a table of this schema. Its type is boolean, its
/// columns are those of `schema` (`schema.len()` stands for `_rowid`), and it has no parameters.
///
/// # Errors
/// `Protocol` for bytes that are no such message, `LimitExceeded` for one that nests too deeply or has too many nodes,
/// `UnsupportedPlan`, `UnknownFunction`, `UnknownColumn`, `TypeMismatch` and `StaleSchema` as for plans,
/// `InvalidParameter` for parameters: nobody would give them a value.
pub fn filter_from_substrait(bytes: &[u8], schema: &Schema) -> Result<Expr> {
    with_message(bytes, "a Substrait extended expression", |message: &ExtendedExpression| {
        let [referred] = message.referred_expr.as_slice() else {
            let count = message.referred_expr.len();
            return Err(unsupported(format!("{count} expressions in a filter: it must have exactly one")));
        };
        let expression = match &referred.expr_type {
            Some(ExprType::Expression(expression)) => expression,
            Some(ExprType::Measure(_)) => return Err(unsupported("a filter can't aggregate: it is asked of each row")),
            None => return Err(unsupported("a filter without an expression")),
        };
        let mut reader = Reader::new(message.version.as_ref(), &message.extensions);
        let columns = reader.base_columns(message.base_schema.as_ref(), schema)?;
        let filter = reader.condition(expression, &columns)?;
        let mut parameter = None;
        filter.walk(&mut |expr| {
            if let ExprKind::Parameter(index) = expr.kind {
                parameter = Some(index);
            }
        });
        match parameter {
            None => Ok(filter),
            Some(index) => {
                let text = format!("parameter {index} in a filter that is not prepared: write its value in its place");
                Err(Error::new(ErrorCode::InvalidParameter, text))
            }
        }
    })
}
