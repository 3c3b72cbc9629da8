//! Which rows are meant: by a search, by a delete.
//!
//! Owns [`Condition`]. Called by engines, and by what sends conditions to the cell.

use hidb::plan::Expr;
use hidb::{Result, Schema, plan};

/// A condition on the rows of a table: true for those that are meant.
#[derive(Clone, Debug)]
pub enum Condition {
    /// An SQL predicate, as after WHERE; typed against the table's schema by the client.
    Text(String),
    /// A typed expression over the columns of the table.
    Expr(Box<Expr>),
}

impl Condition {
    /// As it is put to the cell, for a table of this schema.
    pub(crate) fn message(&self, schema: &Schema) -> Result<bytes::Bytes> {
        let parsed;
        let expr = match self {
            Condition::Text(text) => {
                parsed = plan::sql::parse_predicate(text, schema)?;
                &parsed
            }
            Condition::Expr(expr) => expr.as_ref(),
        };
        Ok(plan::substrait::filter_to_substrait(expr, schema).into())
    }
}

impl From<&str> for Condition {
    fn from(text: &str) -> Self {
        Condition::Text(text.into())
    }
}

impl From<String> for Condition {
    fn from(text: String) -> Self {
        Condition::Text(text)
    }
}

impl From<Expr> for Condition {
    fn from(expr: Expr) -> Self {
        Condition::Expr(Box::new(expr))
    }
}
