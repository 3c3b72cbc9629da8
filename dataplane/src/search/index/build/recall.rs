//! What recall an index that was just built reaches.
//!
//! Owns [`Truths`], the queries that it is measured with and their true neighbours, and the measurement of each kind of
//! index. Called by the builder: `Truths` is fed in the pass that feeds the index, the rest comes when that is finished.
//!
//! Invariants
//! - The queries are rows of the table. Neither the truth nor what is found has a query's own row, and a graph is walked as
//!   if it did not have it: a row that lies in the graph is linked to its neighbours, and would find them too easily.
//! - Distances of the truth are exact.

use std::collections::HashSet;

use heliostat_segment::BLOCK_ROWS;
use heliostat_vector::calibrate::{Calibration, Calibrator};
use heliostat_vector::graph::GraphSearch;
use heliostat_vector::ivf::{IvfIndex, IvfSearchOptions};
use heliostat_vector::{Metric, Neighbor, QueryBatch, Rows, TopK};
use hidb::aligned::AlignedBytes;
use hidb::proto;

use super::pass::is_wanted;
use super::{Job, Tools};
use crate::device::Device;
use crate::search::index::ivf::Allowed;
use crate::search::index::{LoadedGraph, graph, ivf, unexpected};
use crate::search::{QUERY_TILE, VectorColumn};
use crate::store::{IndexWriter, Result, StoreError};

/// Queries that recall is measured with, and neighbours of each.
pub(super) const QUERIES: u64 = 400;
const K: usize = 10;

/// The queries that recall is measured with, and their true neighbours among the rows that they were compared with.
pub(super) struct Truths {
    column: VectorColumn,
    queries: AlignedBytes,
    /// Their row ids.
    ids: Vec<u64>,
    batches: Vec<QueryBatch>,
    tops: Vec<TopK>,
    distances: Vec<f32>,
}

impl Truths {
    /// Compared with nothing yet. `queries` are vectors of the column, one for each id.
    pub(super) fn new(column: VectorColumn, metric: Metric, queries: &[u8], ids: Vec<u64>) -> Result<Self> {
        let queries = AlignedBytes::copy_of(queries);
        let batches = column.tiles(metric, &column.rows(&queries).map_err(StoreError::Data)?).map_err(unexpected)?;
        let tops = vec![TopK::new(K); ids.len()];
        Ok(Truths { column, queries, ids, batches, tops, distances: vec![0.0; QUERY_TILE * BLOCK_ROWS] })
    }

    /// Takes rows; a query is not its own neighbour.
    pub(super) fn compare(&mut self, rows: &Rows<'_>, ids: &[u64]) -> Result<()> {
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

    /// The queries.
    fn rows(&self) -> Result<Rows<'_>> {
        self.column.rows(&self.queries).map_err(StoreError::Data)
    }

    /// Measures at parameters from `first` to `most`.
    fn calibrator(&self, first: usize, most: usize) -> Result<Calibrator> {
        let neighbors = self.tops.iter().cloned().map(TopK::into_sorted).collect();
        Calibrator::new(K, points(first, most), neighbors).map_err(unexpected)
    }

    /// The neighbours that were found of a query, without its own row.
    fn without_own(&self, query: usize, mut found: Vec<Neighbor>) -> Vec<Neighbor> {
        found.retain(|neighbor| neighbor.row != self.ids[query]);
        found.truncate(K);
        found
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

/// The recall of a graph by `ef`. Takes processor time: tens of milliseconds and more.
pub(super) fn calibrate_graph(loaded: &LoadedGraph, truths: &Truths) -> Result<Calibration> {
    let rows = truths.rows()?;
    let own: HashSet<i64> = truths.ids.iter().map(|id| *id as i64).collect();
    // Queries were drawn in the order in which rows were added.
    let numbers = loaded.rowids.iter().zip(0..).filter(|(id, _)| own.contains(id)).map(|(_, number)| number);
    let own: Vec<u32> = numbers.filter_map(|number| loaded.graph.node_of(number)).collect();
    if own.len() != truths.ids.len() {
        let text =
            format!("{} of the {} rows that recall is measured with are in the graph", own.len(), truths.ids.len());
        return Err(StoreError::Internal(text));
    }
    let mut calibrator = truths.calibrator(K, loaded.graph.count().clamp(K, 2048))?;
    while let Some((query, ef)) = calibrator.next() {
        let options = GraphSearch { avoid: own.get(query).copied(), ..GraphSearch::new(K, ef as usize) };
        let (found, _) = graph::search(loaded, rows.row(query), options, None).map_err(StoreError::Data)?;
        calibrator.found(&found);
    }
    Ok(calibrator.finish())
}

/// The recall by `probes` of an IVF index whose lists `writer` has written. `None` when the index stopped being wanted.
pub(super) async fn calibrate_ivf<D: Device>(
    tools: &Tools<'_, D>,
    job: &Job,
    index: &IvfIndex,
    writer: &IndexWriter,
    truths: &Truths,
) -> Result<Option<Calibration>> {
    let source = ivf::Source {
        index,
        object: writer.id(),
        payload_offset: writer.payload_offset(),
        table: &job.table,
        column: job.column,
        cache: tools.cache,
        device: tools.device,
        bypass_cache: false,
    };
    let rows = truths.rows()?;
    let most = index.lists().len();
    let mut calibrator = truths.calibrator(1, most)?;
    let total = truths.ids.len() * points(1, most).len();
    let mut done = 0;
    let mut statistics = proto::SearchStatistics::default();
    while let Some((query, probes)) = calibrator.next() {
        let options = IvfSearchOptions::new(K + 1, probes as usize);
        let found = ivf::search(&source, rows.row(query), options, &mut Allowed::default(), &mut statistics).await;
        calibrator.found(&truths.without_own(query, found.map_err(StoreError::Data)?));
        done += 1;
        tools.progress.advance(done, total as u64);
        if done % 256 == 0 && !is_wanted(tools.store, job) {
            return Ok(None);
        }
    }
    Ok(Some(calibrator.finish()))
}
