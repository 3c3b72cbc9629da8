//! Building an index: reads a table's vectors, several times, and writes an object.
//!
//! Owns [`build`]. Called by `keeper`, as background work of a core: reads and writes go through the core's device, what
//! takes processor time is done by the worker threads, one row group or a few hundred milliseconds at a time.
//!
//! Passes over the vectors: one for a sample and the queries that recall is measured with; one that divides rows among
//! lists (or puts them into the graph) and finds the true neighbours of those queries; for IVF as many as codes of 256 MiB
//! at a time need.
//!
//! Invariants
//! - The object has the vectors of one snapshot: those that are not NULL and whose rows were not deleted then.
//! - Memory: a row group, the sample ([`SAMPLE_BYTES_MAX`]), four bytes a row and [`ENCODE_BYTES_MAX`] for IVF; the graph
//!   and its links in the making for a graph. The most that was held is recorded.
//! - Between two row groups it is looked whether the index is still wanted.

use std::sync::Arc;

use heliostat_segment::{BLOCK_ROWS, Chunk};
use heliostat_vector::calibrate::{Calibration, Calibrator};
use heliostat_vector::graph::{GraphBuilder, GraphOptions};
use heliostat_vector::ivf::{IvfBuilder, IvfOptions, IvfSearchOptions};
use heliostat_vector::kmeans::{Centroids, KMeans, KMeansOptions, Reservoir};
use heliostat_vector::{Metric, Neighbor, QueryBatch, Rows, TopK};
use hidb::aligned::AlignedBytes;
use hidb::proto::{IndexDefinition, IndexKind};
use hidb::{DataType, proto};

use super::include::Includes;
use super::ivf::Allowed;
use super::progress::Progress;
use super::{Loaded, LoadedGraph, graph, ivf, unexpected};
use crate::cache::BlockCache;
use crate::device::Device;
use crate::manifest::records::IndexRecord;
use crate::search::VectorColumn;
use crate::store::decode::{decode_chunk, read_chunk};
use crate::store::{IndexWriter, Result, Store, StoreError, TableSnapshot};
use crate::workers::offload;

/// Bytes of the sample that k-means is trained on, as floats.
const SAMPLE_BYTES_MAX: usize = 256 << 20;
/// Rows of the sample for each list.
const SAMPLE_ROWS_PER_LIST: usize = 64;
/// Bytes of codes that wait to be written.
const ENCODE_BYTES_MAX: usize = 256 << 20;
/// Bytes of lists that are written at once.
const WRITE_BYTES: usize = 1 << 20;
/// Queries that recall is measured with, and neighbours of each.
const QUERIES: u64 = 200;
const K: usize = 10;
/// Bits of an IVF code's component, if nobody says.
const IVF_BITS: u8 = 4;
/// Rows whose mean is the origin of a graph's codes.
const GRAPH_SAMPLE_ROWS: usize = 10_000;
const SEED: u64 = 1;

/// What to build.
#[derive(Clone)]
pub struct Job {
    /// The rows.
    pub table: Arc<TableSnapshot>,
    /// The definition.
    pub definition: IndexDefinition,
    /// The column.
    pub column: VectorColumn,
    /// The metric.
    pub metric: Metric,
    /// Which kind; never `Auto`.
    pub kind: IndexKind,
    /// The columns that go beside the codes of an IVF index.
    pub includes: Includes,
}

/// What the job works with.
pub struct Tools<'a, D> {
    /// Where it is written.
    pub store: &'a Arc<Store>,
    /// The core's device.
    pub device: &'a D,
    /// The core's cache; calibration reads lists through it.
    pub cache: &'a BlockCache<D>,
    /// Told how far it is.
    pub progress: &'a Arc<Progress>,
}

/// Builds an index and makes it the column's. False when it stopped being wanted.
///
/// # Errors
/// `Corruption` of the table, `VolumeFull`, the device's or the manifest's.
pub async fn build<D: Device>(tools: &Tools<'_, D>, job: &Job) -> Result<bool> {
    let Some(sample) = sample(tools, job).await? else { return Ok(false) };
    if sample.rows == 0 {
        return Ok(false);
    }
    let built = match job.kind {
        IndexKind::Graph => build_graph(tools, job, sample).await?,
        _ => build_ivf(tools, job, sample).await?,
    };
    let Some((writer, loaded, vectors)) = built else { return Ok(false) };
    let record = IndexRecord {
        column: job.definition.column.clone(),
        kind: loaded.kind() as i32,
        vectors,
        rows: job.table.segments.iter().map(|segment| segment.footer.rows()).sum(),
        build_memory_bytes: tools.progress.memory_bytes_max(),
        build_ms: tools.progress.elapsed().as_millis() as u64,
        definition: Some(job.definition.clone()),
        ..Default::default()
    };
    let covered = job.table.segments.iter().map(|segment| segment.id).collect();
    tools.store.commit_index(tools.device, writer, record, covered, Arc::new(loaded)).await
}

/// Rows of a row group that an index is to have, as they are on the volume.
struct Group {
    vectors: Chunk,
    rowids: Chunk,
    live: Option<Arc<[u64]>>,
    column: VectorColumn,
    /// The columns that go beside the codes, when the pass asks for them.
    includes: Vec<Chunk>,
}

impl Group {
    /// Calls `visit` with vectors and their row ids, up to 1,024 at a time.
    fn for_each(&self, mut visit: impl FnMut(&Rows<'_>, &[u64]) -> Result<()>) -> Result<()> {
        self.for_each_with(|rows, ids, _| visit(rows, ids))
    }

    /// Calls `visit` with vectors, their row ids and their rows in the row group, up to 1,024 at a time.
    fn for_each_with(&self, mut visit: impl FnMut(&Rows<'_>, &[u64], &[u32]) -> Result<()>) -> Result<()> {
        let width = self.column.row_bytes();
        let damaged = |error: heliostat_segment::SegmentError| StoreError::Data(error.into());
        let mut ids = [0i64; BLOCK_ROWS];
        let mut kept = AlignedBytes::zeroed(BLOCK_ROWS * width);
        let mut row_ids = Vec::with_capacity(BLOCK_ROWS);
        let mut places = Vec::with_capacity(BLOCK_ROWS);
        for block in 0..self.vectors.blocks() {
            let rows = self.vectors.block_rows(block);
            self.rowids.decode_i64(block, &mut ids).map_err(damaged)?;
            let mut valid = [0u64; BLOCK_ROWS / 64];
            let all_valid = self.vectors.validity(block, &mut valid).map_err(damaged)?;
            let live = |row: usize| {
                let at = block * BLOCK_ROWS + row;
                let of = |words: &Arc<[u64]>| words.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1);
                (all_valid || valid[row / 64] >> (row % 64) & 1 == 1) && self.live.as_ref().is_none_or(of)
            };
            let bytes = self.vectors.plain_block(block).map_err(damaged)?;
            row_ids.clear();
            places.clear();
            for row in (0..rows).filter(|row| live(*row)) {
                kept[row_ids.len() * width..][..width].copy_from_slice(&bytes[row * width..][..width]);
                row_ids.push(ids[row] as u64);
                places.push((block * BLOCK_ROWS + row) as u32);
            }
            if !row_ids.is_empty() {
                let some = self.column.rows(&kept[..row_ids.len() * width]).map_err(StoreError::Data)?;
                visit(&some, &row_ids, &places)?;
            }
        }
        Ok(())
    }
}

/// Reads all row groups in order; `work` has each on a worker thread, with the state that it hands on. `None` when the
/// index stopped being wanted.
async fn pass<D: Device, S: Send + 'static>(
    tools: &Tools<'_, D>,
    job: &Job,
    with_includes: bool,
    mut state: S,
    work: impl Fn(&mut S, &Group) -> Result<()> + Clone + Send + 'static,
) -> Result<Option<S>> {
    let table = &job.table;
    let rowid_column = table.schema.len();
    let data_type = table.schema.fields()[job.column.index].data_type;
    let total: u64 = table.segments.iter().map(|segment| segment.footer.rows()).sum();
    let mut done = 0;
    for segment in &table.segments {
        for (row_group, meta) in segment.footer.row_groups.iter().enumerate() {
            if !is_wanted(tools.store, job) {
                return Ok(None);
            }
            let mut includes = Vec::new();
            let wanted = job.includes.columns().iter().zip(job.includes.types()).filter(|_| with_includes);
            for (include, data_type) in wanted {
                includes.push(read_chunk(tools.device, segment, row_group, *include, &data_type).await?);
            }
            let group = Group {
                includes,
                vectors: read_chunk(tools.device, segment, row_group, job.column.index, &data_type).await?,
                rowids: read_chunk(tools.device, segment, row_group, rowid_column, &DataType::Int64).await?,
                live: table.live_rows(segment.id, row_group),
                column: job.column,
            };
            let work = work.clone();
            state = offload(&**tools.store.workers(), move || {
                let outcome = work(&mut state, &group);
                outcome.map(|()| state)
            })
            .await??;
            done += u64::from(meta.rows);
            tools.progress.advance(done, total);
        }
    }
    Ok(Some(state))
}

/// Whether the table still is to have the index.
fn is_wanted(store: &Store, job: &Job) -> bool {
    let catalog = store.catalog();
    let table = catalog.tables.get(&job.table.name).filter(|table| table.id == job.table.id);
    table.is_some_and(|table| table.indexes.iter().any(|index| index.definition == job.definition))
}

/// What the first pass collects.
struct Sample {
    floats: Reservoir,
    rows: u64,
    queries: Vec<u8>,
    query_ids: Vec<u64>,
}

fn lists(definition: &IndexDefinition, rows: u64) -> usize {
    let chosen = match definition.lists {
        0 => (4.0 * (rows as f64).sqrt()) as usize,
        lists => lists as usize,
    };
    // Fewer than a few rows a list train nothing.
    chosen.clamp(1, heliostat_vector::ivf::LISTS_MAX).min((rows / 8).max(1) as usize)
}

async fn sample<D: Device>(tools: &Tools<'_, D>, job: &Job) -> Result<Option<Sample>> {
    let (column, metric) = (job.column, job.metric);
    let dimension = column.dimension;
    let rows: u64 = job.table.segments.iter().map(|segment| segment.footer.rows()).sum();
    let wanted = match job.kind {
        IndexKind::Graph => GRAPH_SAMPLE_ROWS,
        _ => lists(&job.definition, rows) * SAMPLE_ROWS_PER_LIST,
    };
    let capacity = wanted.min(SAMPLE_BYTES_MAX / (4 * dimension)).max(1);
    let every = (rows / QUERIES).max(1);
    let start = Sample {
        floats: Reservoir::new(dimension, capacity, SEED),
        rows: 0,
        queries: Vec::new(),
        query_ids: Vec::new(),
    };
    tools.progress.begin("sampling", 0.05);
    tools.progress.memory(4 * capacity.min(rows as usize) * dimension);
    let unit = metric == Metric::Cosine && job.kind != IndexKind::Graph;
    pass(tools, job, false, start, move |sample, group| {
        let mut float = vec![0.0; dimension];
        group.for_each(|rows, ids| {
            for (row, id) in ids.iter().enumerate() {
                rows.to_f32(row, &mut float);
                if unit {
                    let length = float.iter().map(|x| x * x).sum::<f32>().sqrt();
                    let inverse = if length > 0.0 { length.recip() } else { 0.0 };
                    float.iter_mut().for_each(|x| *x *= inverse);
                }
                sample.floats.push(&float);
                if sample.rows % every == every / 2 && (sample.query_ids.len() as u64) < QUERIES {
                    sample.queries.extend_from_slice(rows.row_bytes(row));
                    sample.query_ids.push(*id);
                }
                sample.rows += 1;
            }
            Ok(())
        })
    })
    .await
}

/// The true neighbours of the queries that recall is measured with.
struct Truths {
    batches: Vec<QueryBatch>,
    ids: Vec<u64>,
    tops: Vec<TopK>,
    distances: Vec<f32>,
}

/// Queries compared with a block of rows at once.
const QUERY_TILE: usize = 8;

impl Truths {
    fn new(column: VectorColumn, metric: Metric, queries: &AlignedBytes, ids: &[u64]) -> Result<Self> {
        let rows = column.rows(queries).map_err(StoreError::Data)?;
        let batch = |first: usize| {
            let some = rows.slice(first, QUERY_TILE.min(rows.count() - first));
            QueryBatch::new(column.element, metric, &some).map_err(unexpected)
        };
        Ok(Truths {
            batches: (0..rows.count()).step_by(QUERY_TILE).map(batch).collect::<Result<_>>()?,
            ids: ids.to_vec(),
            tops: vec![TopK::new(K); ids.len()],
            distances: vec![0.0; QUERY_TILE * BLOCK_ROWS],
        })
    }

    /// Takes rows; a query is not its own neighbour.
    fn compare(&mut self, rows: &Rows<'_>, ids: &[u64]) -> Result<()> {
        let tiles = self.batches.iter().zip(self.tops.chunks_mut(QUERY_TILE)).zip(self.ids.chunks(QUERY_TILE));
        for ((batch, tops), own) in tiles {
            let distances = &mut self.distances[..tops.len() * ids.len()];
            batch.distances(rows, distances).map_err(unexpected)?;
            for ((top, own), distances) in tops.iter_mut().zip(own).zip(distances.chunks_exact(ids.len())) {
                for (distance, id) in distances.iter().zip(ids) {
                    if *distance <= top.bound() && id != own {
                        top.push(*distance, *id);
                    }
                }
            }
        }
        Ok(())
    }

    fn into_neighbors(self) -> Vec<Vec<Neighbor>> {
        self.tops.into_iter().map(TopK::into_sorted).collect()
    }
}

/// Parameters that recall is measured at: from `first` on, in steps of a quarter to a third, up to `most`.
fn points(first: usize, most: usize) -> Vec<u32> {
    let mut points = Vec::new();
    let mut next = first as f64;
    while (next as usize) < most && points.len() < 30 {
        points.push(next as u32);
        next = (next * 1.35).max(next + 1.0).floor();
    }
    points.push(most as u32);
    points.dedup();
    points
}

/// The neighbours that were found, without the query's own row.
fn without(own: u64, mut found: Vec<Neighbor>) -> Vec<Neighbor> {
    found.retain(|neighbor| neighbor.row != own);
    found.truncate(K);
    found
}

type Built = Option<(IndexWriter, Loaded, u64)>;

async fn build_graph<D: Device>(tools: &Tools<'_, D>, job: &Job, sample: Sample) -> Result<Built> {
    let (column, metric) = (job.column, job.metric);
    let defaults = GraphOptions::default();
    let degree = match job.definition.degree {
        0 => defaults.degree,
        degree => degree as usize,
    };
    let bits = match job.definition.bits {
        0 => defaults.bits,
        bits => bits as u8,
    };
    let options = GraphOptions { degree, bits, seed: SEED, ..defaults };
    let queries = AlignedBytes::copy_of(&sample.queries);
    let truths = Truths::new(column, metric, &queries, &sample.query_ids)?;
    let origin = sample.floats.into_rows();
    let rows = sample.rows;
    struct Filling {
        builder: Option<GraphBuilder>,
        rowids: Vec<i64>,
        truths: Truths,
        memory: usize,
    }
    tools.progress.begin("encoding", 0.15);
    let start = Filling { builder: None, rowids: Vec::with_capacity(rows as usize), truths, memory: 0 };
    let filled = pass(tools, job, false, start, move |filling, group| {
        group.for_each(|rows, ids| {
            let builder = match &mut filling.builder {
                Some(builder) => builder,
                empty => empty.insert(first_graph(options, metric, column, &origin, rows)?),
            };
            builder.push(rows).map_err(unexpected)?;
            filling.rowids.extend(ids.iter().map(|id| *id as i64));
            filling.memory = builder.memory_bytes() + 8 * filling.rowids.len();
            filling.truths.compare(rows, ids)
        })
    })
    .await?;
    let Some(Filling { builder: Some(mut builder), rowids, truths, memory }) = filled else { return Ok(None) };
    tools.progress.memory(memory);
    tools.progress.begin("linking", 0.7);
    loop {
        // A few hundred milliseconds at a time.
        let (stepped, progress) = offload(&**tools.store.workers(), move || {
            let mut progress = builder.progress();
            for _ in 0..16 {
                if progress.is_finished() {
                    break;
                }
                progress = builder.step(64);
            }
            (builder, progress)
        })
        .await?;
        builder = stepped;
        tools.progress.advance(progress.done, progress.total);
        tools.progress.memory(builder.memory_bytes() + 8 * rowids.len());
        if progress.is_finished() {
            break;
        }
        if !is_wanted(tools.store, job) {
            return Ok(None);
        }
    }
    tools.progress.begin("measuring recall", 0.05);
    let ids = sample.query_ids;
    let (loaded, bytes) = offload(&**tools.store.workers(), move || -> Result<(LoadedGraph, Vec<u8>)> {
        let graph = builder.finish().map_err(unexpected)?;
        let mut loaded = LoadedGraph { graph, rowids };
        let calibration = calibrate_graph(&loaded, column, &queries, &ids, truths.into_neighbors())?;
        loaded.graph.set_calibration(calibration);
        let bytes = loaded.graph.to_object(&loaded.rowids);
        Ok((loaded, bytes))
    })
    .await??;
    tools.progress.memory(loaded.graph.memory_bytes() + bytes.len() + 8 * loaded.rowids.len());
    tools.progress.begin("writing", 0.05);
    let mut writer = tools.store.begin_index(tools.device, job.table.id, bytes.len() as u64).await?;
    if let Err(error) = writer.append(tools.device, bytes).await {
        tools.store.abandon_index(writer)?;
        return Err(error);
    }
    Ok(Some((writer, Loaded::Graph(Box::new(loaded)), rows)))
}

/// A builder of the column's type; its codes' origin is the mean of the sample.
fn first_graph(
    options: GraphOptions,
    metric: Metric,
    column: VectorColumn,
    origin: &[f32],
    rows: &Rows<'_>,
) -> Result<GraphBuilder> {
    // The sample is of floats; a builder's type is that of its sample.
    if column.element == heliostat_vector::ElementType::F32 {
        let sample = Rows::of(origin, column.dimension).map_err(unexpected)?;
        return GraphBuilder::new(options, metric, &sample).map_err(unexpected);
    }
    GraphBuilder::new(options, metric, rows).map_err(unexpected)
}

fn calibrate_graph(
    loaded: &LoadedGraph,
    column: VectorColumn,
    queries: &AlignedBytes,
    ids: &[u64],
    truths: Vec<Vec<Neighbor>>,
) -> Result<Calibration> {
    let rows = column.rows(queries).map_err(StoreError::Data)?;
    let points = points(K, loaded.graph.count().clamp(K, 2048));
    let mut calibrator = Calibrator::new(K, points, truths).map_err(unexpected)?;
    while let Some((query, ef)) = calibrator.next() {
        let (found, _) = graph::search(loaded, rows.row(query), K + 1, ef as usize, None).map_err(StoreError::Data)?;
        calibrator.found(&without(ids[query], found));
    }
    Ok(calibrator.finish())
}

async fn build_ivf<D: Device>(tools: &Tools<'_, D>, job: &Job, sample: Sample) -> Result<Built> {
    let (column, metric) = (job.column, job.metric);
    let dimension = column.dimension;
    let workers = tools.store.workers();
    let queries = AlignedBytes::copy_of(&sample.queries);
    let truths = Truths::new(column, metric, &queries, &sample.query_ids)?;
    let options = KMeansOptions { lists: lists(&job.definition, sample.rows), seed: SEED, ..Default::default() };
    let floats = sample.floats.into_rows();
    tools.progress.begin("training", 0.4);
    let mut training = KMeans::new(dimension, options, floats).map_err(unexpected)?;
    while !training.progress().is_finished() {
        training = offload(&**workers, move || {
            for _ in 0..16 {
                training.step();
            }
            training
        })
        .await?;
        let progress = training.progress();
        tools.progress.advance(progress.done, progress.total);
        if !is_wanted(tools.store, job) {
            return Ok(None);
        }
    }
    let centroids: Centroids = training.finish();
    let bits = match job.definition.bits {
        0 => IVF_BITS,
        bits => bits as u8,
    };
    let options = IvfOptions {
        metric,
        element: column.element,
        bits,
        includes: job.includes.columns().len(),
        record_bytes: job.includes.record_bytes(),
        seed: SEED,
    };
    let builder = IvfBuilder::new(options, centroids).map_err(unexpected)?;
    tools.progress.begin("assigning", 0.25);
    let assigned = pass(tools, job, false, (builder, truths), |(builder, truths), group| {
        group.for_each(|rows, ids| {
            builder.assign(rows).map_err(unexpected)?;
            truths.compare(rows, ids)
        })
    })
    .await?;
    let Some((mut builder, truths)) = assigned else { return Ok(None) };
    let passes = builder.begin_writing(ENCODE_BYTES_MAX).map_err(unexpected)?;
    let bytes_max = builder.object_bytes_max();
    tools.progress.memory((bytes_max as usize).min(ENCODE_BYTES_MAX) + 4 * sample.rows as usize);
    let mut writer = tools.store.begin_index(tools.device, job.table.id, bytes_max).await?;
    let written = write_lists(tools, job, builder, passes, &mut writer).await;
    let finished = match written {
        Ok(Some(builder)) => finish_ivf(tools, job, builder, &mut writer, &queries, &sample.query_ids, truths).await,
        Ok(None) => Ok(None),
        Err(error) => Err(error),
    };
    match finished {
        Ok(Some(loaded)) => Ok(Some((writer, loaded, sample.rows))),
        Ok(None) => tools.store.abandon_index(writer).map(|()| None),
        Err(error) => {
            tools.store.abandon_index(writer)?;
            Err(error)
        }
    }
}

async fn write_lists<D: Device>(
    tools: &Tools<'_, D>,
    job: &Job,
    mut builder: IvfBuilder,
    passes: usize,
    writer: &mut IndexWriter,
) -> Result<Option<IvfBuilder>> {
    for _ in 0..passes {
        tools.progress.begin("encoding", 0.2 / passes as f32);
        let includes = job.includes.clone();
        let encoded = pass(tools, job, true, builder, move |builder, group| {
            let decoded = group.includes.iter().map(decode_chunk).collect::<std::result::Result<Vec<_>, _>>();
            let arrays = decoded.map_err(StoreError::Data)?;
            let mut records = Vec::new();
            group.for_each_with(|rows, ids, places| {
                records.clear();
                places.iter().for_each(|row| includes.push_record(&arrays, *row as usize, &mut records));
                builder.encode(rows, ids, &records).map_err(unexpected)
            })
        })
        .await?;
        let Some(done) = encoded else { return Ok(None) };
        builder = done;
        loop {
            let includes = job.includes.clone();
            let (made, bytes) = offload(&**tools.store.workers(), move || -> Result<(IvfBuilder, Vec<u8>)> {
                let mut bytes = Vec::new();
                while bytes.len() < WRITE_BYTES {
                    let Some(list) = builder.next_list() else { break };
                    let columns = includes.encode(list.records()).map_err(StoreError::Data)?;
                    let columns: Vec<&[u8]> = columns.iter().map(Vec::as_slice).collect();
                    bytes.extend(builder.write(list, &columns).map_err(unexpected)?);
                }
                Ok((builder, bytes))
            })
            .await??;
            builder = made;
            if bytes.is_empty() {
                break;
            }
            writer.append(tools.device, bytes).await?;
        }
    }
    Ok(Some(builder))
}

/// Measures recall on the lists that were written, and writes the tail.
async fn finish_ivf<D: Device>(
    tools: &Tools<'_, D>,
    job: &Job,
    builder: IvfBuilder,
    writer: &mut IndexWriter,
    queries: &AlignedBytes,
    ids: &[u64],
    truths: Truths,
) -> Result<Option<Loaded>> {
    let (mut index, _) = builder.finish().map_err(unexpected)?;
    tools.progress.begin("measuring recall", 0.1);
    let rows = job.column.rows(queries).map_err(StoreError::Data)?;
    let most = index.lists().len();
    let mut calibrator = Calibrator::new(K, points(1, most), truths.into_neighbors()).map_err(unexpected)?;
    let total = ids.len() * points(1, most).len();
    let mut done = 0;
    let mut statistics = proto::SearchStatistics::default();
    while let Some((query, probes)) = calibrator.next() {
        let source = ivf::Source {
            index: &index,
            object: writer.id(),
            payload_offset: writer.payload_offset(),
            table: &job.table,
            column: job.column,
            cache: tools.cache,
            device: tools.device,
            bypass_cache: false,
        };
        let options = IvfSearchOptions::new(K + 1, probes as usize);
        let found = ivf::search(&source, rows.row(query), options, &mut Allowed::default(), &mut statistics).await;
        calibrator.found(&without(ids[query], found.map_err(StoreError::Data)?));
        done += 1;
        tools.progress.advance(done, total as u64);
        if done % 256 == 0 && !is_wanted(tools.store, job) {
            return Ok(None);
        }
    }
    let tail = index.with_calibration(calibrator.finish());
    writer.append(tools.device, tail).await?;
    Ok(Some(Loaded::Ivf(Box::new(index))))
}
