//! Which index is to be built or read next.
//!
//! Owns [`Keeper`]: what is being built, what failed, and the decisions. Called by `server::background`, again and again, and
//! by whoever asks how the indexes are.
//!
//! An index is built when there is none, and anew when [`STALE_PART`] of its rows and at least [`STALE_ROWS`] are missing
//! from it or dead in it: until then those are compared exactly, or left out.
//!
//! Invariants
//! - One index is built at a time.
//! - What failed is tried again after a while, longer each time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use heliostat_vector::Metric;
use hidb::proto::index_summary::State;
use hidb::proto::{IndexDefinition, IndexKind, IndexSummary, RecallPoint, vector_search_request};
use hidb::{Error, ErrorCode, Result};
use tokio::sync::Notify;

use super::build::{Job, Tools, build};
use super::include::Includes;
use super::loaded;
use super::progress::Progress;
use crate::cores::{Core, Cores, run_in_background};
use crate::search::{VectorColumn, metric_of};
use crate::store::{Store, TableIndex, TableSnapshot};

/// Rows that an index lacks, or has too many of, before it is built anew: this part of those that it has,
const STALE_PART: f64 = 0.2;
/// and so many at least.
const STALE_ROWS: u64 = 1024;
/// How long a failed building waits, the first time and at most.
const RETRY_FIRST: Duration = Duration::from_secs(5);
const RETRY_MOST: Duration = Duration::from_secs(600);

type Key = (u64, String);

#[derive(Default)]
struct Known {
    building: HashMap<Key, Arc<Progress>>,
    failed: HashMap<Key, Failed>,
}

struct Failed {
    error: String,
    times: u32,
    next: Instant,
}

/// Keeps the indexes of a cell.
pub struct Keeper {
    /// Bytes that graphs may take in memory, all together; larger ones become IVF indexes.
    graph_bytes_max: u64,
    known: Mutex<Known>,
    wake: Notify,
}

impl Keeper {
    /// A keeper that lets graphs take so much memory.
    pub fn new(graph_bytes_max: u64) -> Self {
        Keeper { graph_bytes_max, known: Mutex::default(), wake: Notify::new() }
    }

    /// There is something to do.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Ready once [`Keeper::wake`] was called.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads an index that is not in memory, or builds one that is due. False when there is nothing to do.
    ///
    /// # Errors
    /// What failed; it is remembered with the index as well.
    pub async fn step(&self, store: &Arc<Store>, cores: &Cores) -> Result<bool> {
        let catalog = store.catalog();
        for table in catalog.tables.values() {
            for index in &table.indexes {
                let key = (table.id, index.definition.column.clone());
                if self.waits(&key) {
                    continue;
                }
                if let Some(handle) =
                    index.built.as_ref().map(|built| &built.handle).filter(|h| h.loaded.get().is_none())
                {
                    let handle = handle.clone();
                    let store = store.clone();
                    let read = cores.run_on(0, move || async move {
                        loaded(&Core::device()?, &**store.workers(), &handle).await.map(|_| ()).map_err(Error::from)
                    });
                    self.note(&key, read.await.and_then(|read| read))?;
                    return Ok(true);
                }
                if is_due(table, index) {
                    let built = self.build(store, cores, table, &index.definition).await;
                    self.note(&key, built.map(|_| ()))?;
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn waits(&self, key: &Key) -> bool {
        self.known().failed.get(key).is_some_and(|failed| failed.next > Instant::now())
    }

    fn note(&self, key: &Key, outcome: Result<()>) -> Result<()> {
        let mut known = self.known();
        match &outcome {
            Ok(()) => {
                known.failed.remove(key);
            }
            Err(error) => {
                let times = known.failed.get(key).map_or(0, |failed| failed.times);
                let wait = (RETRY_FIRST * 2u32.saturating_pow(times)).min(RETRY_MOST);
                let failed = Failed { error: error.to_string(), times: times + 1, next: Instant::now() + wait };
                known.failed.insert(key.clone(), failed);
            }
        }
        outcome
    }

    async fn build(
        &self,
        store: &Arc<Store>,
        cores: &Cores,
        table: &Arc<TableSnapshot>,
        definition: &IndexDefinition,
    ) -> Result<bool> {
        let (column, metric) = check_definition(table, definition)?;
        let kind = match definition.kind() {
            IndexKind::Ivf => IndexKind::Ivf,
            IndexKind::Graph => IndexKind::Graph,
            IndexKind::Auto | IndexKind::Unspecified => self.choose(store, table, column),
        };
        let includes = match kind {
            IndexKind::Ivf => Includes::new(&table.schema, &definition.include)?,
            // A graph has no lists to lay columns into: filters are evaluated by a scan.
            _ => Includes::default(),
        };
        let job = Job { table: table.clone(), definition: definition.clone(), column, metric, kind, includes };
        let progress = Arc::new(Progress::default());
        let key = (table.id, definition.column.clone());
        self.known().building.insert(key.clone(), progress.clone());
        let store = store.clone();
        // The core that has the least to do is not known; the last is as good as any.
        let core = cores.count() - 1;
        let built = cores.run_on(core, move || async move {
            run_in_background(async move {
                let (_, cache, device) = Core::with_volume()?;
                let tools = Tools { store: &store, device: &device, cache: &cache, progress: &progress };
                build(&tools, &job).await.map_err(Error::from)
            })
            .await?
        });
        let built = built.await;
        self.known().building.remove(&key);
        built?
    }

    /// A graph as long as all graphs fit in their memory, else IVF.
    fn choose(&self, store: &Store, table: &TableSnapshot, column: VectorColumn) -> IndexKind {
        let catalog = store.catalog();
        let built = catalog.tables.values().flat_map(|table| &table.indexes).filter_map(|index| index.built.as_ref());
        let graphs = built.filter(|built| built.handle.record.kind() == IndexKind::Graph);
        let used: u64 = graphs.map(|built| built.handle.length).sum();
        if used + graph_bytes(table.rows, column) <= self.graph_bytes_max { IndexKind::Graph } else { IndexKind::Ivf }
    }

    /// How an index is.
    pub fn summary(&self, table: &TableSnapshot, index: &TableIndex) -> IndexSummary {
        let known = self.known();
        let key = (table.id, index.definition.column.clone());
        let mut summary = IndexSummary {
            table: table.name.clone(),
            definition: Some(index.definition.clone()),
            rows: table.rows,
            ..Default::default()
        };
        if let Some(built) = &index.built {
            let record = &built.handle.record;
            summary.built = record.kind;
            summary.stored_bytes = built.handle.length;
            summary.indexed_rows = covered_rows(table, index);
            summary.build_memory_bytes = record.build_memory_bytes;
            summary.build_ms = record.build_ms;
            if let Some(loaded) = built.handle.loaded.get() {
                summary.memory_bytes = loaded.memory_bytes() as u64;
                summary.lists = loaded.lists() as u32;
                let points = loaded.calibration().points().iter();
                summary.calibration =
                    points.map(|(parameter, recall)| RecallPoint { parameter: *parameter, recall: *recall }).collect();
            }
        }
        let is_ready = index.built.as_ref().is_some_and(|built| built.handle.loaded.get().is_some());
        if let Some(progress) = known.building.get(&key) {
            let (stage, done, left) = progress.report();
            summary.stage = stage.to_string();
            summary.progress = done;
            summary.seconds_left = left;
            summary.state = State::Building as i32;
        } else {
            summary.state = State::Waiting as i32;
        }
        if let Some(failed) = known.failed.get(&key) {
            summary.error = failed.error.clone();
            summary.state = State::Failed as i32;
        }
        // Nothing to build is ready as well.
        if is_ready || (table.rows == 0 && !known.building.contains_key(&key)) {
            summary.state = State::Ready as i32;
        }
        summary
    }
}

/// What a graph of so many vectors takes in memory, about.
fn graph_bytes(rows: u64, column: VectorColumn) -> u64 {
    let code = (column.dimension / 2).next_multiple_of(64) as u64;
    rows * (column.row_bytes() as u64 + code + 4 * 32 + 40)
}

/// Checks a definition against its table.
///
/// # Errors
/// `UnknownColumn`, `TypeMismatch`, `InvalidParameter`, `UnsupportedPlan`.
pub fn check_definition(table: &TableSnapshot, definition: &IndexDefinition) -> Result<(VectorColumn, Metric)> {
    let refuse = |text: String| Err(Error::new(ErrorCode::InvalidParameter, text));
    let column = VectorColumn::find(&table.schema, &definition.column)?;
    if IndexKind::try_from(definition.kind).is_err() {
        return refuse(format!("index kind {} is not known: there are auto, ivf and graph", definition.kind));
    }
    let wanted = vector_search_request::Metric::try_from(definition.metric)
        .map_err(|_| Error::new(ErrorCode::InvalidParameter, format!("metric {} is not known", definition.metric)))?;
    let metric = metric_of(wanted, None, column.element)?;
    if definition.lists as usize > heliostat_vector::ivf::LISTS_MAX {
        return refuse(format!(
            "{} lists: an index has at most {}",
            definition.lists,
            heliostat_vector::ivf::LISTS_MAX
        ));
    }
    let bits_fit = match definition.kind() {
        IndexKind::Graph => matches!(definition.bits, 0 | 4 | 7),
        IndexKind::Ivf => definition.bits <= 8,
        IndexKind::Auto | IndexKind::Unspecified => definition.bits == 0,
    };
    if !bits_fit {
        let text = "bits: a graph has codes of 4 or 7, an IVF index of 1 to 8; with kind auto leave them out";
        return refuse(format!("{} {text}", definition.bits));
    }
    if definition.degree != 0 && !(4..=128).contains(&definition.degree) {
        return refuse(format!("degree {}: a graph's nodes have 4 to 128 neighbours", definition.degree));
    }
    if !definition.include.is_empty() && definition.kind() == IndexKind::Graph {
        return refuse("a graph has no lists beside which columns could lie: include columns in an ivf index".into());
    }
    Includes::new(&table.schema, &definition.include)?;
    Ok((column, metric))
}

/// Rows of the segments that an index covers.
fn covered_rows(table: &TableSnapshot, index: &TableIndex) -> u64 {
    let Some(built) = &index.built else { return 0 };
    let covered = table.segments.iter().filter(|segment| built.covers(segment.id));
    covered.map(|segment| segment.footer.rows()).sum()
}

/// Whether an index is to be built, for the first time or anew.
fn is_due(table: &TableSnapshot, index: &TableIndex) -> bool {
    let Some(built) = &index.built else { return table.rows > 0 };
    let had = built.handle.record.rows;
    let all: u64 = table.segments.iter().map(|segment| segment.footer.rows()).sum();
    let covered = covered_rows(table, index);
    let missing = all - covered;
    let live = table.rows.min(covered);
    let dead = had.saturating_sub(live);
    let stale = missing.max(dead);
    stale >= STALE_ROWS && stale as f64 > STALE_PART * had.max(1) as f64
}
