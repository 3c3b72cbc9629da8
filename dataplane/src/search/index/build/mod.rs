//! Building an index: reads a table's vectors, several times, and writes an object.
//!
//! Owns [`build`]. Called by `keeper`, as background work of a core: reads and writes go through the core's device, what
//! takes processor time is done by the worker threads, one row group or a few hundred milliseconds at a time.
//!
//! Passes over the vectors: one for a sample and the queries that recall is measured with; one that divides rows among
//! lists (or puts them into the graph) and finds the true neighbours of those queries; for IVF as many as codes of 256 MiB
//! at a time need. `pass` is what they share, `recall` the true neighbours and what the index finds of them.
//!
//! Invariants
//! - The object has the vectors of one snapshot: those that are not NULL and whose rows were not deleted then.
//! - Memory: a row group, the sample ([`SAMPLE_BYTES_MAX`]), four bytes a row and [`ENCODE_BYTES_MAX`] for IVF; the graph
//!   and its links in the making for a graph. The most that was held is recorded.
//! - Between two row groups it is looked whether the index is still wanted.

mod pass;
mod recall;

use std::sync::Arc;

use heliostat_vector::graph::{GraphBuilder, GraphOptions, normalised};
use heliostat_vector::ivf::{IvfBuilder, IvfOptions};
use heliostat_vector::kmeans::{Centroids, KMeans, KMeansOptions, Reservoir};
use heliostat_vector::{Metric, Rows};
use hidb::proto::{IndexDefinition, IndexKind};

use self::pass::{is_wanted, pass};
use self::recall::{QUERIES, Truths, calibrate_graph, calibrate_ivf};
use super::include::Includes;
use super::progress::Progress;
use super::{Loaded, LoadedGraph, unexpected};
use crate::cache::BlockCache;
use crate::device::Device;
use crate::manifest::records::IndexRecord;
use crate::search::VectorColumn;
use crate::store::decode::decode_chunk;
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
    // A graph's builder does it itself.
    let normalises = job.kind != IndexKind::Graph;
    pass(tools, job, false, start, move |sample, group| {
        let mut float = vec![0.0; dimension];
        group.for_each(|rows, ids| {
            for (row, id) in ids.iter().enumerate() {
                rows.to_f32(row, &mut float);
                if normalises {
                    normalised(metric, &mut float);
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
    let truths = Truths::new(column, metric, &sample.queries, sample.query_ids)?;
    let rows = sample.rows;
    let floats = sample.floats.into_rows();
    struct Filling {
        builder: GraphBuilder,
        rowids: Vec<i64>,
        truths: Truths,
    }
    tools.progress.begin("encoding", 0.15);
    let builder = offload(&**tools.store.workers(), move || {
        let sample = Rows::of(&floats, column.dimension)?;
        GraphBuilder::new(options, metric, column.element, &sample)
    });
    let builder = builder.await?.map_err(unexpected)?;
    let start = Filling { builder, rowids: Vec::with_capacity(rows as usize), truths };
    let filled = pass(tools, job, false, start, |filling, group| {
        group.for_each(|rows, ids| {
            filling.builder.push(rows).map_err(unexpected)?;
            filling.rowids.extend(ids.iter().map(|id| *id as i64));
            filling.truths.compare(rows, ids)
        })
    })
    .await?;
    let Some(Filling { mut builder, rowids, truths }) = filled else { return Ok(None) };
    tools.progress.memory(builder.memory_bytes() + 8 * rowids.len());
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
    let (loaded, bytes) = offload(&**tools.store.workers(), move || -> Result<(LoadedGraph, Vec<u8>)> {
        let graph = builder.finish().map_err(unexpected)?;
        let mut loaded = LoadedGraph::new(graph, rowids);
        let calibration = calibrate_graph(&loaded, &truths)?;
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

async fn build_ivf<D: Device>(tools: &Tools<'_, D>, job: &Job, sample: Sample) -> Result<Built> {
    let (column, metric) = (job.column, job.metric);
    let dimension = column.dimension;
    let workers = tools.store.workers();
    let truths = Truths::new(column, metric, &sample.queries, sample.query_ids)?;
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
        Ok(Some(builder)) => finish_ivf(tools, job, builder, &mut writer, &truths).await,
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
    truths: &Truths,
) -> Result<Option<Loaded>> {
    let (mut index, _) = builder.finish().map_err(unexpected)?;
    tools.progress.begin("measuring recall", 0.1);
    let Some(calibration) = calibrate_ivf(tools, job, &index, writer, truths).await? else { return Ok(None) };
    let tail = index.with_calibration(calibration);
    writer.append(tools.device, tail).await?;
    Ok(Some(Loaded::Ivf(Box::new(index))))
}
