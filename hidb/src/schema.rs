//! Schemas: named, typed, nullable columns, and the hash that travels with every request.
//!
//! Owns [`Field`], [`Schema`] and [`Schema::hash`]. Called by plans, segments, the manifest, clients.
//!
//! Invariants
//! - A [`Schema`] made by [`Schema::new`] has 1 to [`COLUMNS_MAX`] columns, unique non-empty names,
//!   valid types, and no column called `_rowid`.
//! - Equal schemas have equal hashes; the hash is stable across versions and machines.

use crate::error::{Error, ErrorCode, Result};
use crate::types::DataType;
use crate::{COLUMNS_MAX, ROWID_COLUMN};

/// One column.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Field {
    /// The column's name; case-sensitive.
    pub name: String,
    /// Its type.
    pub data_type: DataType,
    /// Whether it may hold NULL.
    pub nullable: bool,
}

impl Field {
    /// A column of this name and type.
    pub fn new(name: impl Into<String>, data_type: DataType, nullable: bool) -> Self {
        Field { name: name.into(), data_type, nullable }
    }
}

/// The columns of a table or a result, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Schema {
    fields: Vec<Field>,
}

impl Schema {
    /// Checks and makes the schema of a table.
    pub fn new(fields: Vec<Field>) -> Result<Self> {
        let invalid = |message: String| Err(Error::new(ErrorCode::InvalidSchema, message));
        if fields.is_empty() {
            return invalid("a table needs at least one column".into());
        }
        if fields.len() > COLUMNS_MAX {
            return invalid(format!("{} columns: a table may have at most {COLUMNS_MAX}", fields.len()));
        }
        let mut names = std::collections::HashSet::with_capacity(fields.len());
        for field in &fields {
            if field.name.is_empty() {
                return invalid("a column has an empty name".into());
            }
            if field.name == ROWID_COLUMN {
                return invalid(format!(
                    "the column name {ROWID_COLUMN} is reserved for the row id: rename the column"
                ));
            }
            if !field.data_type.is_valid() {
                return invalid(format!("column {:?} has the invalid type {}", field.name, field.data_type));
            }
            if !names.insert(field.name.as_str()) {
                return invalid(format!("two columns are called {:?}", field.name));
            }
        }
        Ok(Schema { fields })
    }

    /// The schema of a result: names may repeat, and there may be no column at all.
    pub fn of_result(fields: Vec<Field>) -> Self {
        Schema { fields }
    }

    /// The columns, in order.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// How many columns there are.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// Whether there is no column (only results can be so).
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// The position and definition of the column of this name. An exact match wins; otherwise a
    /// single match that differs only in ASCII case is taken, as SQL folds unquoted names.
    pub fn find(&self, name: &str) -> Option<(usize, &Field)> {
        let exact = self.fields.iter().position(|field| field.name == name);
        let index = exact.or_else(|| {
            let mut folded = self.fields.iter().enumerate().filter(|(_, field)| field.name.eq_ignore_ascii_case(name));
            match (folded.next(), folded.next()) {
                (Some((index, _)), None) => Some(index),
                _ => None,
            }
        })?;
        Some((index, &self.fields[index]))
    }

    /// A 64-bit FNV-1a hash of names, types, nullability and order. Stable for ever.
    pub fn hash(&self) -> u64 {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        let mut mix = |bytes: &[u8]| {
            for byte in (bytes.len() as u32).to_le_bytes().iter().chain(bytes) {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        };
        for field in &self.fields {
            mix(field.name.as_bytes());
            mix(field.data_type.to_string().as_bytes());
            mix(&[u8::from(field.nullable)]);
        }
        hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(names: &[&str]) -> Result<Schema> {
        Schema::new(names.iter().map(|name| Field::new(*name, DataType::Int64, false)).collect())
    }

    #[test]
    fn hash_depends_on_names_types_nullability_and_order() {
        let base = schema(&["a", "b"]).unwrap();
        assert_eq!(base.hash(), schema(&["a", "b"]).unwrap().hash());
        assert_ne!(base.hash(), schema(&["b", "a"]).unwrap().hash());
        assert_ne!(base.hash(), schema(&["ab", ""]).map(|s| s.hash()).unwrap_or(0));
        let nullable =
            Schema::new(vec![Field::new("a", DataType::Int64, true), Field::new("b", DataType::Int64, false)]);
        assert_ne!(base.hash(), nullable.unwrap().hash());
    }

    #[test]
    fn bad_schemas_are_refused_by_name() {
        assert!(schema(&[]).is_err());
        assert!(schema(&["a", "a"]).unwrap_err().to_string().contains("two columns are called \"a\""));
        assert!(schema(&["_rowid"]).unwrap_err().to_string().contains("reserved"));
    }

    #[test]
    fn names_fold_ascii_case_only_when_unambiguous() {
        let schema = schema(&["A", "a", "Key"]).unwrap();
        assert_eq!(schema.find("a").unwrap().0, 1);
        assert_eq!(schema.find("KEY").unwrap().0, 2);
        assert!(schema.find("none").is_none());
    }
}
