//! Indexes of vector columns in the cell.
//!
//! Owns [`Loaded`] (what of an index stays in memory), its reading, and [`filter`](RowFilter). `build` makes indexes,
//! `keeper` decides when, `ivf` and `graph` search them. What an index is as an object is `store::index`.
//!
//! Payload of an index object: for IVF what `heliostat_vector::ivf` says, from the first byte. For a graph the row ids of
//! its rows (64 bits each), their CRC32C and count in the last 16 bytes of as many whole pages as that takes, then the
//! graph's bytes.

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
            Loaded::Graph(loaded) => loaded.graph.memory_bytes() + size_of_val(&loaded.rowids[..]),
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

impl LoadedGraph {
    /// The bytes of the object's payload.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.rowids.iter().for_each(|id| bytes.extend_from_slice(&id.to_le_bytes()));
        let checksum = crc32c::crc32c(&bytes);
        let end = (bytes.len() + 16).next_multiple_of(BLOCK_BYTES);
        bytes.resize(end - 16, 0);
        bytes.extend_from_slice(&u64::from(checksum).to_le_bytes());
        bytes.extend_from_slice(&(self.rowids.len() as u64).to_le_bytes());
        bytes.append(&mut self.graph.to_bytes());
        bytes
    }

    /// Where the graph's bytes begin in the payload of an index of `rows` rows.
    fn graph_offset(rows: usize) -> usize {
        (8 * rows + 16).next_multiple_of(BLOCK_BYTES)
    }

    /// A graph of `vectors` rows from its payload.
    ///
    /// # Errors
    /// What is wrong with the bytes, as text.
    fn from_bytes(bytes: &[u8], vectors: u64) -> std::result::Result<Self, String> {
        let rows = usize::try_from(vectors).map_err(|_| format!("{vectors} rows"))?;
        let at = rows.checked_mul(8).map(|_| Self::graph_offset(rows));
        let Some((head, graph)) = at.and_then(|at| bytes.split_at_checked(at)) else {
            return Err(format!("{} bytes are too few for the ids of {rows} rows", bytes.len()));
        };
        let (ids, rest) = head.split_at(8 * rows);
        let word = |from: usize| u64::from_le_bytes(std::array::from_fn(|i| rest[rest.len() - from + i]));
        let computed = u64::from(crc32c::crc32c(ids));
        if word(8) != vectors || word(16) != computed {
            return Err(format!("the row ids have checksum {computed:#x}, not {:#x}", word(16)));
        }
        let graph = Graph::from_bytes(graph).map_err(|error| error.to_string())?;
        if graph.count() != rows {
            return Err(format!("{} nodes for {rows} row ids", graph.count()));
        }
        let ids = ids.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes));
        Ok(LoadedGraph { graph, rowids: ids.collect() })
    }
}

/// Reads what stays in memory of an index.
///
/// # Errors
/// [`StoreError::Corruption`], the device's.
pub async fn load<D: Device>(device: &D, handle: &IndexHandle) -> Result<Loaded> {
    match handle.record.kind() {
        IndexKind::Graph => {
            let bytes = read_payload(device, handle, 0).await?;
            let vectors = handle.record.vectors;
            let loaded = LoadedGraph::from_bytes(&bytes, vectors).map_err(|reason| handle.corruption(0, &reason))?;
            Ok(Loaded::Graph(Box::new(loaded)))
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
            Ok(Loaded::Ivf(Box::new(IvfIndex::read(metadata, &place, checksum).map_err(damaged)?)))
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
pub async fn loaded<D: Device>(device: &D, handle: &IndexHandle) -> Result<Arc<Loaded>> {
    if let Some(loaded) = handle.loaded.get() {
        return Ok(loaded.clone());
    }
    let loaded = Arc::new(load(device, handle).await?);
    Ok(handle.loaded.get_or_init(|| loaded).clone())
}

/// The error for a vector that was refused where that can't be.
fn unexpected(error: heliostat_vector::VectorError) -> StoreError {
    StoreError::Internal(error.to_string())
}
