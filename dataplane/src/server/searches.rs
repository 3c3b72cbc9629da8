//! Vector searches: from the request to the rows of its answer.
//!
//! Called by `requests`. The searching is done by [`crate::search`]; this module checks the request, sends the images
//! under the client's credits as `questions` does, and says what was done.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use arrow_array::Array;
use arrow_array::cast::AsArray;
use bytes::Bytes;
use heliostat_engine::EngineOptions;
use heliostat_vector::Metric;
use hidb::plan::substrait::filter_from_substrait;
use hidb::{Error, ErrorCode, Result, proto};

use super::Failure;
use super::access::Access;
use super::links::ResultLink;
use super::questions::{Results, engine_options, grant, in_time, snapshot};
use super::session::{Request, Session};
use crate::cache::BlockCache;
use crate::cores::Core;
use crate::device::uring::UringDevice;
use crate::search::answer::{Projection, one_column, read_rows};
use crate::search::plan::search;
use crate::search::{Accuracy, Filter, Queries, Question, VectorColumn, metric_of};
use crate::store::{TableIndex, TableSnapshot};

/// Recall that is aimed at when the request does not say.
const RECALL_DEFAULT: f32 = 0.95;

/// Answers `VectorSearchRequest`.
pub async fn answer(
    session: &Rc<Session>,
    request: &Rc<Request>,
    access: &Access,
    message: proto::VectorSearchRequest,
) -> Result<(), Failure> {
    let started = Instant::now();
    let table = snapshot(session, access, &message.table, message.schema_hash)?;
    let way = ResultLink::of(session);
    let options = engine_options(session, &way, 0);
    grant(session, request, message.initial_credits);
    let results = Results::new(session, request, way);
    let timeout_ms = message.timeout_ms;
    let work = Box::pin(run(results, table, message, options, started));
    Ok(in_time(session, request, timeout_ms, started, work).await?)
}

fn accuracy_of(wanted: Option<proto::vector_search_request::Accuracy>) -> Accuracy {
    use proto::vector_search_request::Accuracy as Wire;
    match wanted {
        // `exact: false` is no wish.
        None | Some(Wire::Exact(false)) => Accuracy::Recall(RECALL_DEFAULT),
        Some(Wire::Exact(true)) => Accuracy::Exact,
        Some(Wire::Recall(recall)) => Accuracy::Recall(recall),
        Some(Wire::Probes(probes)) => Accuracy::Probes(probes as usize),
        Some(Wire::Ef(ef)) => Accuracy::Ef(ef as usize),
    }
}

async fn run(
    mut results: Results<'_>,
    table: Arc<TableSnapshot>,
    message: proto::VectorSearchRequest,
    options: EngineOptions,
    started: Instant,
) -> Result<()> {
    let server = results.core();
    let (_, cache, _) = Core::with_volume()?;
    let column = VectorColumn::find(&table.schema, &message.column)?;
    let queries = queries_of(&table, column, &cache, &message, &options).await?;
    let accuracy = accuracy_of(message.accuracy);
    let k = message.k as usize;
    let distance_max = message.distance_max.unwrap_or(f32::INFINITY);
    Question::check(k, queries.count(), distance_max, accuracy)?;
    let projection = Projection::new(&table, &message.projection, queries.count(), options.clone())?;
    let filter = match message.substrait_filter.is_empty() {
        true => None,
        false => {
            let condition = filter_from_substrait(&message.substrait_filter, &table.schema)?;
            Some(Filter { condition, plan: message.substrait_filter[..].into() })
        }
    };
    let metric = metric_of(message.metric(), metric_of_index(&table, column), column.element)?;
    let question = Arc::new(Question {
        metric,
        table: table.clone(),
        column,
        queries: Arc::new(queries),
        k,
        distance_max,
        accuracy,
        filter,
        options: options.clone(),
        bypass_cache: message.bypass_cache,
    });
    let mut found = search(&server.cell.cores, server.index, question).await?;
    let first = proto::FilteredResultSet { table_generation: table.generation, ..Default::default() };
    results.first = Some((first, projection.schema_message()));
    let (images, bytes_read) = projection.images(&table, &cache, &found.neighbors, options.image_bytes_max).await?;
    for image in images {
        results.send_image(image).await?;
    }
    results.send_schema().await?;
    found.statistics.device_bytes += bytes_read;
    let last = proto::FilteredResultSet {
        last: true,
        statistics: Some(proto::ScanStatistics {
            rows: results.rows,
            bytes_returned: results.bytes,
            bytes_read_device: found.statistics.device_bytes,
            cell_us: started.elapsed().as_micros() as u64,
            ..Default::default()
        }),
        search: Some(found.statistics),
        ..Default::default()
    };
    results.send(last, Bytes::new()).await
}

/// The metric of a column's index: what is meant when nobody says.
fn metric_of_index(table: &TableSnapshot, column: VectorColumn) -> Option<Metric> {
    let of_column = |index: &&TableIndex| {
        table.schema.find(&index.definition.column).is_some_and(|(place, _)| place == column.index)
    };
    let definition = &table.indexes.iter().find(of_column)?.definition;
    metric_of(definition.metric(), None, column.element).ok()
}

/// The vectors to look for: those that the request brings, or those of the rows that it names.
async fn queries_of(
    table: &TableSnapshot,
    column: VectorColumn,
    cache: &BlockCache<UringDevice>,
    message: &proto::VectorSearchRequest,
    options: &EngineOptions,
) -> Result<Queries> {
    if message.query_rowids.is_empty() {
        return Queries::new(column, &message.query_vectors, message.query_count as usize);
    }
    if !message.query_vectors.is_empty() {
        let text = "a search brings query vectors or row ids to take them from, not both";
        return Err(Error::new(ErrorCode::InvalidParameter, text));
    }
    let compiled = one_column(table, column.index, options.clone())?;
    let (rows, _) = read_rows(table, &compiled, cache, &message.query_rowids).await?;
    let vectors = rows.column(0);
    if let Some(row) = (0..vectors.len()).find(|row| vectors.is_null(*row)) {
        let text = format!("the row with _rowid {} has no vector: it is NULL", message.query_rowids[row]);
        return Err(Error::new(ErrorCode::InvalidParameter, text));
    }
    let values = vectors.as_fixed_size_list_opt().map_or_else(|| vectors.to_data(), |list| list.values().to_data());
    // `take` made these arrays: they begin where their buffers do.
    let length = vectors.len() * column.row_bytes();
    let bytes = values.buffers()[0].as_slice().get(..length).filter(|_| values.offset() == 0);
    let bytes = bytes.ok_or_else(|| Error::new(ErrorCode::Internal, "vectors of another length than their type"))?;
    Queries::new(column, bytes, vectors.len())
}
