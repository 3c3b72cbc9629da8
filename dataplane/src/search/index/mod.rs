//! Indexes of vector columns in the cell.
//!
//! Owns [`Loaded`] (what of an index stays in memory), its reading, and [`filter`](RowFilter). `build` makes indexes,
//! `keeper` decides when, `ivf` and `graph` search them. What an index is as an object is `store::index`.
//!
//! Payload of an index object: what `heliostat_vector::ivf` or `heliostat_vector::graph` says, from the first byte.

pub mod build;
pub mod graph;
pub mod include;
pub mod ivf;
pub mod keeper;
pub mod progress;

use std::sync::Arc;

use futures::StreamExt;
use heliostat_vector::ivf::{IvfIndex, TRAILER_BYTES, read_trailer};
use heliostat_vector::{Metric, calibrate::Calibration, graph::Graph};
use hidb::proto::IndexKind;

use crate::device::{BLOCK_BYTES, Device};
use crate::store::{IndexHandle, Result, StoreError};
use crate::workers::{Workers, offload};

/// One read of a graph.
const READ_BYTES: usize = 1 << 20;
const READS_IN_FLIGHT: usize = 8;

/// What of an index stays in memory.
#[derive(Debug)]
pub enum Loaded {
    /// Centroids and the directory of lists.
    Ivf(Box<IvfIndex>),
    /// All of it.
    Graph(Box<LoadedGraph>),
}

/// A graph and what its rows are called.
#[derive(Debug)]
pub struct LoadedGraph {
    /// The graph, by row number.
    pub graph: Graph,
    /// Row id of each row.
    pub rowids: Vec<i64>,
    /// The rows where runs of ids that follow each other begin: a table that was loaded once has few. Empty when they are
    /// short.
    pub runs: Vec<u32>,
}

impl LoadedGraph {
    /// A graph whose rows have these ids, in huge pages where the kernel has any. Takes a pass over its memory.
    pub fn new(graph: Graph, rowids: Vec<i64>) -> Self {
        let ids = (rowids.as_ptr().cast(), size_of_val(&rowids[..]));
        let [codes, terms, links, rows, vectors] = graph.regions();
        crate::huge_pages::collapse(&[codes, terms, links, rows, vectors, ids]);
        LoadedGraph { runs: graph::runs(&rowids), graph, rowids }
    }
}

impl Loaded {
    /// What kind it is.
    pub fn kind(&self) -> IndexKind {
        match self {
            Loaded::Ivf(_) => IndexKind::Ivf,
            Loaded::Graph(_) => IndexKind::Graph,
        }
    }

    /// The metric that it was built for.
    pub fn metric(&self) -> Metric {
        match self {
            Loaded::Ivf(index) => index.metric(),
            Loaded::Graph(loaded) => loaded.graph.metric(),
        }
    }

    /// Bytes that it keeps in memory.
    pub fn memory_bytes(&self) -> usize {
        match self {
            Loaded::Ivf(index) => index.memory_bytes(),
            Loaded::Graph(loaded) => {
                loaded.graph.memory_bytes() + size_of_val(&loaded.rowids[..]) + size_of_val(&loaded.runs[..])
            }
        }
    }

    /// What recall each value of its parameter reaches.
    pub fn calibration(&self) -> &Calibration {
        match self {
            Loaded::Ivf(index) => index.calibration(),
            Loaded::Graph(loaded) => loaded.graph.calibration(),
        }
    }

    /// Lists of an IVF index; 0 for others.
    pub fn lists(&self) -> usize {
        match self {
            Loaded::Ivf(index) => index.lists().len(),
            Loaded::Graph(_) => 0,
        }
    }
}

/// Reads what stays in memory of an index. A graph is checked and put into place by a worker thread.
///
/// # Errors
/// [`StoreError::Corruption`], the device's.
pub async fn load<D: Device>(device: &D, workers: &dyn Workers, handle: &IndexHandle) -> Result<Loaded> {
    match handle.record.kind() {
        IndexKind::Graph => {
            let bytes = read_payload(device, handle, 0).await?;
            let damaged = |error: heliostat_vector::VectorError| handle.corruption(0, &error.to_string());
            let rows = handle.record.vectors;
            let read = offload(workers, move || {
                Graph::from_object(&bytes, rows).map(|(graph, rowids)| LoadedGraph::new(graph, rowids))
            });
            Ok(Loaded::Graph(Box::new(read.await?.map_err(damaged)?)))
        }
        IndexKind::Ivf => {
            let length = handle.record.payload_bytes;
            let damaged = |error: heliostat_vector::VectorError| handle.corruption(length, &error.to_string());
            let short = || handle.corruption(0, &format!("{length} bytes are too few"));
            let trailer_at = length.checked_sub(TRAILER_BYTES as u64).ok_or_else(short)?;
            let trailer = read_payload(device, handle, trailer_at).await?;
            let (place, checksum) = read_trailer(&trailer, length).map_err(damaged)?;
            let tail = read_payload(device, handle, place.start).await?;
            let metadata = tail.get(..(place.end - place.start) as usize).ok_or_else(short)?;
            let index = IvfIndex::read(metadata, &place, checksum).map_err(damaged)?;
            let expected = handle.record.definition.as_ref().map_or(0, |definition| definition.include.len());
            if index.includes() != expected {
                let text = format!("{} included columns where {expected} are defined", index.includes());
                return Err(handle.corruption(place.start, &text));
            }
            Ok(Loaded::Ivf(Box::new(index)))
        }
        kind => Err(handle.corruption(0, &format!("an index of kind {kind:?} is not known"))),
    }
}

/// The bytes of the payload from `from` on.
async fn read_payload<D: Device>(device: &D, handle: &IndexHandle, from: u64) -> Result<Vec<u8>> {
    let end = handle.record.payload_bytes;
    let room = handle.length.saturating_sub(BLOCK_BYTES as u64);
    if end > room || from > end {
        return Err(handle.corruption(from, &format!("{end} bytes of payload in {room}")));
    }
    let start = from / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
    let pieces = (start..end).step_by(READ_BYTES);
    let reads = pieces.map(|at| {
        let length = (end - at).min(READ_BYTES as u64) as usize;
        device.read(handle.payload_offset + at, length.next_multiple_of(BLOCK_BYTES))
    });
    let mut reads = futures::stream::iter(reads).buffered(READS_IN_FLIGHT);
    let mut bytes = Vec::with_capacity((end - start) as usize);
    while let Some(piece) = reads.next().await {
        bytes.extend_from_slice(&piece?);
    }
    bytes.truncate((end - start) as usize);
    bytes.drain(..(from - start) as usize);
    Ok(bytes)
}

/// What stays in memory of an index, read now if it wasn't.
///
/// # Errors
/// As [`load`].
pub async fn loaded<D: Device>(device: &D, workers: &dyn Workers, handle: &IndexHandle) -> Result<Arc<Loaded>> {
    if let Some(loaded) = handle.loaded.get() {
        return Ok(loaded.clone());
    }
    let loaded = Arc::new(load(device, workers, handle).await?);
    Ok(handle.loaded.get_or_init(|| loaded).clone())
}

/// The error for a vector that was refused where that can't be.
fn unexpected(error: heliostat_vector::VectorError) -> StoreError {
    StoreError::Internal(error.to_string())
}
