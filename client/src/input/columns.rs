//! Finds the wanted columns in a file that has columns of its own.
//!
//! Owns [`ColumnChoice`]. Called by the Parquet and Arrow readers.

use std::path::Path;

use arrow_array::RecordBatch;
use arrow_schema::Schema as ArrowSchema;
use hidb::{Error, ErrorCode, Result, Schema, arrow_mapping};

/// Which of a file's columns make the input's, in order.
#[derive(Clone, Debug)]
pub(super) struct ColumnChoice {
    pub(super) schema: Schema,
    /// Index into the file's columns of each wanted column; `None`: exactly the file's columns.
    order: Option<Vec<usize>>,
}

impl ColumnChoice {
    /// Matches a file's columns with those wanted, by name; without wish, takes all of them.
    pub(super) fn new(path: &Path, file: &ArrowSchema, wanted: Option<&Schema>) -> Result<Self> {
        let name_file = |error: Error| Error::new(error.code, format!("{}: {}", path.display(), error.message));
        let Some(wanted) = wanted else {
            return Ok(ColumnChoice {
                schema: arrow_mapping::from_arrow_schema(file).map_err(name_file)?,
                order: None,
            });
        };
        let mismatch = |what: String| {
            Error::new(
                ErrorCode::InvalidSchema,
                format!("{}: {what}: load files that have the table's columns", path.display()),
            )
        };
        let mut order = Vec::with_capacity(wanted.len());
        for field in wanted.fields() {
            let exact = file.fields().iter().position(|column| *column.name() == field.name);
            let found = exact
                .or_else(|| file.fields().iter().position(|column| column.name().eq_ignore_ascii_case(&field.name)))
                .ok_or_else(|| mismatch(format!("there is no column {:?} ({})", field.name, field.data_type)))?;
            // Says now, and not after gigabytes, that a type has no way into the wanted one.
            arrow_mapping::check_column(file.field(found), field).map_err(name_file)?;
            order.push(found);
        }
        if let Some(extra) = (0..file.fields().len()).find(|index| !order.contains(index)) {
            return Err(mismatch(format!("the column {:?} is not among those wanted", file.field(extra).name())));
        }
        let straight = order.iter().copied().eq(0..file.fields().len());
        Ok(ColumnChoice { schema: wanted.clone(), order: (!straight).then_some(order) })
    }

    /// The wanted columns of a batch of the file, in canonical arrays. `first_row` is the number of its first row where
    /// errors name rows.
    pub(super) fn adapt(&self, batch: &RecordBatch, first_row: u64) -> Result<RecordBatch> {
        match &self.order {
            None => arrow_mapping::adapt_rows(batch, &self.schema, first_row),
            Some(order) => {
                let chosen = batch.project(order).map_err(|error| {
                    Error::new(ErrorCode::MalformedInput, format!("a batch lacks columns of its schema: {error}"))
                })?;
                arrow_mapping::adapt_rows(&chosen, &self.schema, first_row)
            }
        }
    }
}
