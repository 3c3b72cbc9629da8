//! From neighbours to rows: reads the columns that were asked for and lays them out in the order of the answer.
//!
//! Owns [`Projection`] (what an answer looks like) and [`read_rows`]. Called by `server::searches`.
//!
//! Invariants
//! - Only blocks that hold a row of the answer are decoded, each once.
//! - Row groups are read one after the other, on the home core, through its cache.
//!
//! Cost: an answer that asks for no column but `_rowid` reads nothing. Otherwise every row group with a row of the answer
//! costs the chunks of the columns asked for, from the cache or the device.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Float32Array, Int32Array, Int64Array, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow_schema::SchemaRef;
use bytes::Bytes;
use heliostat_engine::{CompiledScan, CoreScan, EngineOptions, Step};
use heliostat_vector::Neighbor;
use hidb::image::{IMAGE_ROWS_MAX, ResultImage, image_of_batch, read_image, read_schema, schema_message};
use hidb::plan::{Expr, Output, ScanPlan};
use hidb::{DataType, Error, ErrorCode, Field, ROWID_COLUMN, Result, Schema};

use crate::cache::BlockCache;
use crate::cores::{Turn, work::GroupWork};
use crate::device::Device;
use crate::store::TableSnapshot;

/// The column of distances.
pub const DISTANCE_COLUMN: &str = "distance";
/// The column that says which query a row belongs to.
pub const QUERY_COLUMN: &str = "query";

/// The columns of an answer.
pub struct Projection {
    /// Reads the table's columns, then `_rowid`; `None` when only `_rowid` is asked for.
    compiled: Option<Arc<CompiledScan>>,
    /// For each column asked for its place among what `compiled` gives out; `None` for `_rowid`.
    columns: Vec<Option<usize>>,
    /// Whether a column says which query it was.
    numbers_queries: bool,
    schema: Schema,
    decimal64: bool,
}

impl Projection {
    /// The named columns of a table (`_rowid` if there is none), for so many queries.
    ///
    /// # Errors
    /// `UnknownColumn`.
    pub fn new(table: &TableSnapshot, names: &[String], queries: usize, options: EngineOptions) -> Result<Projection> {
        let rowid = [ROWID_COLUMN.to_string()];
        let names = if names.is_empty() { &rowid[..] } else { names };
        let numbers_queries = queries > 1;
        let mut fields = Vec::with_capacity(names.len() + 2);
        if numbers_queries {
            fields.push(Field::new(QUERY_COLUMN, DataType::Int32, false));
        }
        let mut outputs: Vec<Output> = Vec::new();
        let mut columns = Vec::with_capacity(names.len());
        for name in names {
            if name.eq_ignore_ascii_case(ROWID_COLUMN) {
                columns.push(None);
                fields.push(Field::new(ROWID_COLUMN, DataType::Int64, false));
                continue;
            }
            let (index, field) = table.schema.find(name).ok_or_else(|| {
                let text = format!("no column {name:?} in table {:?}", table.name);
                Error::new(ErrorCode::UnknownColumn, text)
            })?;
            columns.push(Some(outputs.len()));
            let expr = Expr::column(index, field.data_type, field.nullable);
            outputs.push(Output { name: field.name.clone(), expr });
            fields.push(field.clone());
        }
        fields.push(Field::new(DISTANCE_COLUMN, DataType::Float32, false));
        let compiled = match outputs.is_empty() {
            true => None,
            false => Some(CompiledScan::compile(&rows_plan(table, outputs), &table.schema, options.clone())?),
        };
        let schema = Schema::of_result(fields);
        Ok(Projection { compiled, columns, numbers_queries, schema, decimal64: options.decimal64 })
    }

    /// The answer's schema as an Arrow IPC message.
    pub fn schema_message(&self) -> Bytes {
        schema_message(&self.schema, self.decimal64).into()
    }

    /// The answer as images of at most `image_bytes_max` bytes (but for single rows that are longer). Neighbours whose row
    /// the snapshot does not have are a defect.
    ///
    /// # Errors
    /// The device's, the engine's.
    pub async fn images<D: Device>(
        &self,
        table: &TableSnapshot,
        cache: &BlockCache<D>,
        neighbors: &[Vec<Neighbor>],
        image_bytes_max: usize,
    ) -> Result<(Vec<ResultImage>, u64)> {
        let all = || neighbors.iter().flatten();
        let rowids: Vec<i64> = all().map(|neighbor| neighbor.row as i64).collect();
        let mut bytes_read_device = 0;
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(self.columns.len() + 2);
        if self.numbers_queries {
            let numbers = neighbors.iter().enumerate().flat_map(|(query, of)| of.iter().map(move |_| query as i32));
            arrays.push(Arc::new(numbers.collect::<Int32Array>()));
        }
        let rows = match &self.compiled {
            Some(compiled) => {
                let (batch, read) = read_rows(table, compiled, cache, &rowids).await?;
                bytes_read_device = read;
                Some(batch)
            }
            None => None,
        };
        let by_id = Arc::new(Int64Array::from(rowids)) as ArrayRef;
        for column in &self.columns {
            arrays.push(match (column, &rows) {
                (Some(index), Some(rows)) => rows.column(*index).clone(),
                _ => by_id.clone(),
            });
        }
        arrays.push(Arc::new(all().map(|neighbor| neighbor.distance).collect::<Float32Array>()));
        let schema: SchemaRef = read_schema(&self.schema_message())?;
        let options = RecordBatchOptions::new().with_row_count(Some(arrays[0].len()));
        let batch = RecordBatch::try_new_with_options(schema, arrays, &options).map_err(arrow)?;
        let mut images = Vec::new();
        let mut turn = Turn::default();
        let mut rest = vec![batch];
        while let Some(batch) = rest.pop() {
            let rows = batch.num_rows();
            if rows == 0 {
                continue;
            }
            if rows <= IMAGE_ROWS_MAX {
                let image = image_of_batch(&batch)?;
                if image.bytes.len() <= image_bytes_max || rows == 1 {
                    images.push(image);
                    turn.yield_if_due().await;
                    continue;
                }
            }
            // The first half is taken next.
            rest.push(batch.slice(rows / 2, rows - rows / 2));
            rest.push(batch.slice(0, rows / 2));
        }
        Ok((images, bytes_read_device))
    }
}

/// A plan of these outputs, and the row id behind them.
fn rows_plan(table: &TableSnapshot, mut outputs: Vec<Output>) -> ScanPlan {
    let rowid = Expr::column(table.schema.len(), DataType::Int64, false);
    outputs.push(Output { name: ROWID_COLUMN.into(), expr: rowid });
    ScanPlan::of_rows(&table.name, None, outputs)
}

/// One column of a table as [`read_rows`] reads it.
///
/// # Errors
/// Those of the engine's compiler.
pub fn one_column(table: &TableSnapshot, column: usize, options: EngineOptions) -> Result<Arc<CompiledScan>> {
    let field = table.schema.fields().get(column);
    let field = field.ok_or_else(|| Error::new(ErrorCode::Internal, format!("no column {column}")))?;
    let expr = Expr::column(column, field.data_type, field.nullable);
    let outputs = vec![Output { name: field.name.clone(), expr }];
    CompiledScan::compile(&rows_plan(table, outputs), &table.schema, options)
}

/// The rows with these ids, in their order, as a plan of [`one_column`]'s kind computes them (its last column is
/// `_rowid`), and how many bytes the device read for them.
///
/// # Errors
/// `InvalidParameter` when there is no row with one of the ids; the device's; the engine's.
pub async fn read_rows<D: Device>(
    table: &TableSnapshot,
    compiled: &Arc<CompiledScan>,
    cache: &BlockCache<D>,
    rowids: &[i64],
) -> Result<(RecordBatch, u64)> {
    let places = table.rowids().locate(table, cache, rowids).await?;
    let mut wanted: BTreeMap<(u32, u32), Vec<u64>> = BTreeMap::new();
    for (place, rowid) in places.iter().zip(rowids) {
        let place = place.filter(|place| table.is_live(*place)).ok_or_else(|| {
            let text = format!("no row of table {:?} has {ROWID_COLUMN} {rowid}", table.name);
            Error::new(ErrorCode::InvalidParameter, text)
        })?;
        let words = wanted.entry((place.segment, place.row_group)).or_default();
        let (word, bit) = (place.row as usize / 64, place.row % 64);
        words.resize(words.len().max(word + 1), 0);
        words[word] |= 1 << bit;
    }
    let schema: SchemaRef = read_schema(compiled.schema_message())?;
    let mut scan = CoreScan::new(compiled.clone(), compiled.shared());
    let mut batches = Vec::new();
    let mut bytes_read_device = 0;
    let mut turn = Turn::default();
    for (ordinal, ((segment, row_group), among)) in wanted.into_iter().enumerate() {
        let group = GroupWork::of(&table.segments[segment as usize], row_group as usize);
        let footer = group.segment.footer.clone();
        scan.start_row_group(ordinal as u64, footer, group.row_group, Some(among.into()))?;
        loop {
            match scan.step()? {
                Step::Need(columns) => {
                    let fetched = cache.fetch(&group.addresses(&columns)?, false).await?;
                    bytes_read_device += fetched.bytes_read_device;
                    for (column, bytes) in columns.into_iter().zip(fetched.chunks) {
                        scan.supply(column, bytes)?;
                    }
                    turn.restart();
                }
                Step::Image(image) => batches.push(read_image(image.bytes.into_bytes(), &schema)?),
                Step::Progress => {}
                Step::Rows(_) | Step::RowGroupDone | Step::Finished => break,
            }
            turn.yield_if_due().await;
        }
    }
    while let Some(image) = scan.flush()? {
        batches.push(read_image(image.bytes.into_bytes(), &schema)?);
    }
    let all = arrow_select::concat::concat_batches(&schema, &batches).map_err(arrow)?;
    let ids = all.column(all.num_columns() - 1).as_primitive::<Int64Type>().values();
    let mut by_id: Vec<(i64, u32)> = ids.iter().copied().zip(0..).collect();
    by_id.sort_unstable();
    let row_of = |rowid: &i64| {
        let found = by_id.binary_search_by_key(rowid, |(id, _)| *id).map(|at| by_id[at].1);
        found.map_err(|_| Error::new(ErrorCode::Internal, format!("row {rowid} was located and not read")))
    };
    let rows = rowids.iter().map(row_of).collect::<Result<Vec<u32>>>()?;
    let rows = UInt32Array::from(rows);
    let take = |column: &ArrayRef| arrow_select::take::take(column, &rows, None).map_err(arrow);
    let columns = all.columns().iter().map(take).collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rowids.len()));
    Ok((RecordBatch::try_new_with_options(schema, columns, &options).map_err(arrow)?, bytes_read_device))
}

fn arrow(error: arrow_schema::ArrowError) -> Error {
    Error::new(ErrorCode::Internal, format!("rows of an answer could not be put together: {error}"))
}
