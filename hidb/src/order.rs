//! The order that a table's rows are kept in.
//!
//! Owns [`TableOrder`]: columns to sort or to cluster by, checked against the table's schema. Made from what a person
//! asked for or a peer sent; kept with the schema in the manifest and on the volume; read by loads and merges.
//!
//! Invariant: an order names 1 to [`ORDER_COLUMNS_MAX`] columns of its schema by their exact names, each once, none of
//! them a vector.

use crate::error::{Error, ErrorCode, Result};
use crate::schema::Schema;

/// The most columns of an order.
pub const ORDER_COLUMNS_MAX: usize = 8;

/// How rows are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OrderKind {
    /// By the first column, among equals by the second, and so on; ascending, NULL last.
    Sorted,
    /// By all columns alike, along a space-filling curve.
    Clustered,
}

/// The order of a table's rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TableOrder {
    kind: OrderKind,
    columns: Vec<String>,
}

impl TableOrder {
    /// An order of the rows of this schema; names are found as in queries ([`Schema::find`]).
    ///
    /// # Errors
    /// [`ErrorCode::UnknownColumn`], [`ErrorCode::UnsupportedType`] for vectors, [`ErrorCode::InvalidSchema`] for a column
    /// named twice, none, or too many.
    pub fn new<S: AsRef<str>>(kind: OrderKind, columns: &[S], schema: &Schema) -> Result<Self> {
        let verb = kind.verb();
        let invalid = |message: String| Err(Error::new(ErrorCode::InvalidSchema, message));
        if columns.is_empty() {
            return invalid(format!("rows are {verb} by at least one column"));
        }
        if columns.len() > ORDER_COLUMNS_MAX {
            return invalid(format!("rows are {verb} by at most {ORDER_COLUMNS_MAX} columns, not {}", columns.len()));
        }
        let mut names: Vec<String> = Vec::with_capacity(columns.len());
        for name in columns.iter().map(AsRef::as_ref) {
            let Some((_, field)) = schema.find(name) else {
                let known: Vec<&str> = schema.fields().iter().take(20).map(|field| field.name.as_str()).collect();
                return Err(Error::new(
                    ErrorCode::UnknownColumn,
                    format!(
                        "rows can't be {verb} by {name:?}: the table has no such column (it has {})",
                        known.join(", ")
                    ),
                ));
            };
            if !field.data_type.is_ordered() {
                return Err(Error::new(
                    ErrorCode::UnsupportedType,
                    format!(
                        "rows can't be {verb} by {:?}: values of type {} have no order",
                        field.name, field.data_type
                    ),
                ));
            }
            if names.contains(&field.name) {
                return invalid(format!("rows can't be {verb} by {:?} twice", field.name));
            }
            names.push(field.name.clone());
        }
        Ok(TableOrder { kind, columns: names })
    }

    /// How rows are ordered.
    pub fn kind(&self) -> OrderKind {
        self.kind
    }

    /// By which columns.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Where these columns stand in the schema.
    pub fn positions(&self, schema: &Schema) -> Vec<usize> {
        self.columns.iter().filter_map(|name| schema.fields().iter().position(|field| field.name == *name)).collect()
    }
}

impl OrderKind {
    fn verb(self) -> &'static str {
        match self {
            OrderKind::Sorted => "sorted",
            OrderKind::Clustered => "clustered",
        }
    }
}

impl std::fmt::Display for TableOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} by {}", self.kind.verb(), self.columns.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Field;
    use crate::types::{DataType, VectorElement};

    #[test]
    fn what_rows_cannot_be_ordered_by_is_refused_by_name() {
        let vector = DataType::Vector { dimension: 3, element: VectorElement::F32 };
        let fields = [("Id", DataType::Int64), ("day", DataType::Date), ("v", vector)];
        let schema = Schema::new(fields.map(|(name, data_type)| Field::new(name, data_type, true)).to_vec()).unwrap();
        let order = TableOrder::new(OrderKind::Sorted, &["day", "id"], &schema).unwrap();
        assert_eq!(order.to_string(), "sorted by day, Id");
        assert_eq!(order.positions(&schema), [1, 0]);
        let refused = |kind, columns: &[&str]| TableOrder::new(kind, columns, &schema).unwrap_err();
        let unknown = refused(OrderKind::Clustered, &["day", "night"]);
        assert_eq!(unknown.code, ErrorCode::UnknownColumn);
        assert!(unknown.message.contains("clustered by \"night\"") && unknown.message.contains("Id, day, v"));
        let vector = refused(OrderKind::Sorted, &["v"]);
        assert_eq!(vector.code, ErrorCode::UnsupportedType);
        assert!(vector.message.contains("\"v\""), "{vector}");
        let twice = refused(OrderKind::Sorted, &["id", "ID"]);
        assert_eq!(twice.code, ErrorCode::InvalidSchema);
        assert!(twice.message.contains("\"Id\" twice"), "{twice}");
        assert_eq!(refused(OrderKind::Sorted, &[]).code, ErrorCode::InvalidSchema);
        assert_eq!(refused(OrderKind::Sorted, &["id"; 9]).code, ErrorCode::InvalidSchema);
    }
}
