//! Parquet files: one part per row group.

use std::path::Path;
use std::sync::Arc;

use hidb::{Error, ErrorCode, Result, Schema};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};

use super::columns::ColumnChoice;
use super::ordered::{InputBatch, Part, PartError};
use super::{Opened, open_file};
use crate::load::LOAD_BATCH_ROWS;

pub(super) fn open(path: &Path, wanted: Option<&Schema>, in_rows: bool) -> Result<Opened> {
    let malformed = |error: parquet::errors::ParquetError| {
        Error::new(ErrorCode::MalformedInput, format!("{} is not a readable Parquet file: {error}", path.display()))
    };
    let file = open_file(path)?;
    let read_metadata = || ArrowReaderMetadata::load(&file, ArrowReaderOptions::new());
    // The footer decoder can meet malformed counts that it trusts.
    let metadata = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read_metadata))
        .map_err(|_| {
            Error::new(ErrorCode::MalformedInput, format!("{}: the Parquet footer is malformed", path.display()))
        })?
        .map_err(malformed)?;
    let choice = Arc::new(ColumnChoice::new(path, metadata.schema(), wanted)?);
    let groups = metadata.metadata().row_groups();
    let rows: u64 = groups.iter().map(|group| u64::try_from(group.num_rows()).unwrap_or(0)).sum();
    let mut parts = Vec::with_capacity(groups.len());
    for (index, group) in groups.iter().enumerate() {
        let name = format!("{}, row group {index}", path.display());
        let (path, metadata, choice) = (path.to_path_buf(), metadata.clone(), choice.clone());
        let group_bytes = u64::try_from(group.compressed_size()).unwrap_or(0);
        let group_rows = u64::try_from(group.num_rows()).unwrap_or(0).max(1);
        let part_name = name.clone();
        let decode = move |emit: &mut super::ordered::Emit<'_>| {
            let malformed = |error: String| {
                PartError::Failed(Error::new(ErrorCode::MalformedInput, format!("{part_name}: {error}")))
            };
            let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(open_file(&path)?, metadata)
                .with_row_groups(vec![index])
                .with_batch_size(LOAD_BATCH_ROWS)
                .build()
                .map_err(|error| malformed(error.to_string()))?;
            for batch in reader {
                let batch = batch.map_err(|error| malformed(error.to_string()))?;
                let rows = choice.adapt(&batch).map_err(|error| {
                    PartError::Failed(Error::new(error.code, format!("{part_name}: {}", error.message)))
                })?;
                let count = rows.num_rows() as u64;
                let units = if in_rows { count } else { group_bytes * count / group_rows };
                emit(InputBatch { rows, units })?;
            }
            Ok(())
        };
        parts.push(Part { name, decode: Box::new(decode) });
    }
    let bytes = groups.iter().map(|group| u64::try_from(group.compressed_size()).unwrap_or(0)).sum();
    Ok(Opened { schema: choice.schema.clone(), units: if in_rows { rows } else { bytes }, rows: Some(rows), parts })
}
