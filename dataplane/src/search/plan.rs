//! Which way a question is answered.
//!
//! Owns [`search`] and the choice between exact search and an index. Called by `server::searches`, on the session's home
//! core.
//!
//! With an index that is loaded and has the metric, its rows are searched with it and all others exactly. A filter on
//! columns that the index includes is evaluated list by list ([`by_included`]). Any other is evaluated first, by the scan
//! engine on all cores; then
//! - few rows that pass are compared exactly: with a selectivity below [`EXACT_SELECTIVITY`] an index visits so many rows
//!   that don't pass that comparing those that do is cheaper;
//! - otherwise the index is searched among the rows that pass, as deep as if `k / selectivity` neighbours were asked for:
//!   where the k-th row that passes lies among all rows if the filter knows nothing of the vectors;
//! - when that gives fewer rows than pass, the filter does know, and they are compared exactly.
//!
//! A recall that the index was not measured to reach is answered exactly.

use std::sync::Arc;

use heliostat_segment::all_rows;
use heliostat_vector::graph::GraphSearch;
use heliostat_vector::ivf::{IvfIndex, IvfSearchOptions};
use heliostat_vector::{Neighbor, TopK};
use hidb::plan::Expr;
use hidb::{Error, ErrorCode, Result, proto};

use super::exact::{Part, exact};
use super::index::graph::{self, GraphFilter};
use super::index::include::{Includes, ListFilter};
use super::index::ivf::Allowed;
use super::index::{Loaded, ivf};
use super::rowids::{GroupIds, RowSet};
use super::{Accuracy, Found, Question};
use crate::cache::BlockCache;
use crate::cores::{
    Core, Cores, Turn,
    positions::{FoundRows, find},
    work::GroupWork,
};
use crate::device::uring::UringDevice;
use crate::store::{BuiltIndex, SegmentHandle, TableSnapshot};

/// Below this part of the rows a filtered question is answered exactly,
const EXACT_SELECTIVITY: f64 = 0.02;
/// and so it is for so few rows, whatever part of all they are.
const EXACT_ROWS: u64 = 2_000;

/// Answers a question. Dropping the future stops all cores.
///
/// # Errors
/// Those of the device, `InvalidParameter` for a knob that the index does not have, what the filter raises.
pub async fn search(cores: &Cores, home: usize, question: Arc<Question>) -> Result<Found> {
    let mut statistics = proto::SearchStatistics::default();
    let Some(filter) = &question.filter else { return among(cores, home, &question, None, statistics).await };
    if let Some(neighbors) = by_included(&question, filter, &mut statistics).await? {
        return Ok(Found { neighbors, statistics });
    }
    let (options, bypass) = (question.options.clone(), question.bypass_cache);
    let (passing, scanned) = find(cores, &question.table, Some(filter), options, None, bypass).await?;
    statistics.device_bytes += scanned.bytes_read_device;
    among(cores, home, &question, Some(passing), statistics).await
}

/// The answer among the rows that pass, or among all. `statistics` are of what was tried before: it was work, too.
async fn among(
    cores: &Cores,
    home: usize,
    question: &Arc<Question>,
    passing: Option<Vec<FoundRows>>,
    mut statistics: proto::SearchStatistics,
) -> Result<Found> {
    let table = question.table.clone();
    let filtered: Option<u64> = passing.as_ref().map(|passing| passing.iter().map(count).sum());
    let parts = parts_of(&table, passing.as_deref());
    statistics.rows_filtered = filtered.unwrap_or(0);
    let (built, loaded, parameter, note) = match choose(question, filtered)? {
        Choice::Exact(why) => return answer_exactly(cores, home, question, parts, why, statistics).await,
        Choice::Index { built, loaded, parameter, note } => (built, loaded, parameter, note),
    };
    let of_index = by_index(question, built, &loaded, parameter, passing.as_deref(), &mut statistics).await?;
    let reach = of_index.iter().map(Vec::len).min().unwrap_or(0) as u64;
    let wanted = filtered.unwrap_or(u64::MAX).min(question.k as u64);
    let tail: Vec<Part> = parts.iter().filter(|part| !built.covers(part.group.segment.id)).cloned().collect();
    if filtered.is_some() && tail.is_empty() && reach < wanted && question.distance_max == f32::INFINITY {
        let why = format!("the index found {reach} of the rows that pass");
        return answer_exactly(cores, home, question, parts, why, statistics).await;
    }
    let has_tail = !tail.is_empty();
    let neighbors = if has_tail {
        let compared = exact(cores, home, question, tail).await?;
        statistics.rows_compared += compared.rows;
        statistics.unindexed_rows += compared.rows;
        statistics.device_bytes += compared.device_bytes;
        let merge = |(mut top, found): (TopK, Vec<Neighbor>)| {
            found.iter().for_each(|neighbor| top.push(neighbor.distance, neighbor.row));
            top.into_sorted()
        };
        compared.tops.into_iter().zip(of_index).map(merge).collect()
    } else {
        of_index
    };
    let tail =
        if has_tail { format!("; {} rows that it lacks exactly", statistics.unindexed_rows) } else { String::new() };
    statistics.plan = format!("{note}{tail}");
    Ok(Found { neighbors, statistics })
}

/// Answers a filtered question from the lists alone: when the index is one of lists, has every row, and includes every
/// column of the filter. How many rows pass is found out from the lists that a search without a filter would read; when they
/// are few, or fewer are found than were asked for, it is another way's question: `None`. Adds to `statistics` what it did
/// in either case.
async fn by_included(
    question: &Question,
    filter: &Expr,
    statistics: &mut proto::SearchStatistics,
) -> Result<Option<Vec<Vec<Neighbor>>>> {
    let Choice::Index { built, loaded, parameter, .. } = choose(question, None)? else { return Ok(None) };
    let Loaded::Ivf(index) = &*loaded else { return Ok(None) };
    let table = &question.table;
    if !table.segments.iter().all(|segment| built.covers(segment.id)) {
        return Ok(None);
    }
    let included = built.handle.record.definition.as_ref().map(|definition| &definition.include[..]);
    let includes = Includes::new(&table.schema, included.unwrap_or_default())?;
    let Some(list_filter) = ListFilter::new(&includes, filter, &table.schema, question.options.clone())? else {
        return Ok(None);
    };
    let (_, cache, device) = Core::with_volume()?;
    let rows = allowed_rows(table, built, &cache, None).await?;
    let mut allowed = Allowed { rows: rows.as_deref(), filter: Some(list_filter), ..Default::default() };
    let source = source_of(question, built, index, &cache, &device);
    let queries = question.queries.rows()?;
    let mut options = IvfSearchOptions::new(question.k, parameter);
    options.distance_max = question.distance_max;
    let first = ivf::search(&source, queries.row(0), options, &mut allowed, statistics).await?;
    let selectivity = allowed.passed as f64 / allowed.tested.max(1) as f64;
    let expected = selectivity * built.handle.record.vectors as f64;
    if selectivity < EXACT_SELECTIVITY || expected <= EXACT_ROWS as f64 || allowed.is_incomplete {
        return Ok(None);
    }
    if let Accuracy::Recall(recall) = question.accuracy {
        match parameter_for(&loaded, recall, question.k, selectivity) {
            Some(deeper) => options.probes = deeper,
            None => return Ok(None),
        }
    }
    let mut neighbors = Vec::with_capacity(queries.count());
    let mut turn = Turn::default();
    for query in 0..queries.count() {
        let found = match query {
            0 if options.probes <= parameter => first.clone(),
            _ => ivf::search(&source, queries.row(query), options, &mut allowed, statistics).await?,
        };
        if found.len() < question.k && question.distance_max == f32::INFINITY || allowed.is_incomplete {
            return Ok(None);
        }
        neighbors.push(found);
        turn.yield_if_due().await;
    }
    let probes = options.probes;
    statistics.rows_filtered = allowed.passed;
    statistics.plan =
        format!("ivf: probes {probes}, filtered by included columns, of which {:.1}% pass", 100.0 * selectivity);
    Ok(Some(neighbors))
}

fn source_of<'a>(
    question: &'a Question,
    built: &BuiltIndex,
    index: &'a IvfIndex,
    cache: &'a BlockCache<UringDevice>,
    device: &'a UringDevice,
) -> ivf::Source<'a, UringDevice> {
    ivf::Source {
        index,
        object: built.handle.id,
        payload_offset: built.handle.payload_offset,
        table: &question.table,
        column: question.column,
        cache,
        device,
        bypass_cache: question.bypass_cache,
    }
}

/// The row groups to compare, with the rows that may be in an answer.
fn parts_of(table: &TableSnapshot, passing: Option<&[FoundRows]>) -> Vec<Part> {
    match passing {
        Some(passing) => {
            let part = |passing: &FoundRows| Part {
                group: GroupWork::of(&passing.segment, passing.row_group),
                among: Some(passing.rows.clone().into()),
            };
            passing.iter().map(part).collect()
        }
        None => {
            let groups = table
                .segments
                .iter()
                .flat_map(|segment| (0..segment.footer.row_groups.len()).map(move |row_group| (segment, row_group)));
            let part = |(segment, row_group): (&Arc<_>, usize)| Part {
                group: GroupWork::of(segment, row_group),
                among: table.live_rows(segment.id, row_group),
            };
            groups.map(part).collect()
        }
    }
}

fn count(found: &FoundRows) -> u64 {
    found.rows.iter().map(|word| u64::from(word.count_ones())).sum()
}

enum Choice<'t> {
    /// Every row, for this reason.
    Exact(String),
    Index {
        built: &'t BuiltIndex,
        loaded: Arc<Loaded>,
        parameter: usize,
        note: String,
    },
}

fn choose(question: &Question, filtered: Option<u64>) -> Result<Choice<'_>> {
    if question.accuracy == Accuracy::Exact {
        return Ok(Choice::Exact("asked for".into()));
    }
    let name = |index: &hidb::proto::IndexDefinition| {
        let found = question.table.schema.find(&index.column);
        found.is_some_and(|(column, _)| column == question.column.index)
    };
    let Some(index) = question.table.indexes.iter().find(|index| name(&index.definition)) else {
        return no_index(question.accuracy);
    };
    let Some(built) = &index.built else { return Ok(Choice::Exact("the index is not built yet".into())) };
    let Some(loaded) = built.handle.loaded.get().cloned() else {
        return Ok(Choice::Exact("the index is not read yet".into()));
    };
    if loaded.metric() != question.metric {
        let why = format!("the index is for {:?}, not {:?}", loaded.metric(), question.metric);
        return Ok(Choice::Exact(why));
    }
    let vectors = built.handle.record.vectors.max(1);
    let selectivity = filtered.map_or(1.0, |rows| (rows as f64 / vectors as f64).clamp(0.0, 1.0));
    if let Some(rows) = filtered
        && (rows <= EXACT_ROWS || selectivity < EXACT_SELECTIVITY)
    {
        return Ok(Choice::Exact(format!("{rows} rows pass the filter")));
    }
    let kind = if matches!(*loaded, Loaded::Ivf(_)) { "ivf" } else { "graph" };
    let (parameter, why) = match (question.accuracy, &*loaded) {
        (Accuracy::Probes(probes), Loaded::Ivf(_)) => (probes, "asked for".to_string()),
        (Accuracy::Ef(ef), Loaded::Graph(_)) => (ef, "asked for".to_string()),
        (Accuracy::Probes(_), _) => return Err(wrong_knob("probes", "a graph has ef")),
        (Accuracy::Ef(_), _) => return Err(wrong_knob("ef", "an IVF index has probes")),
        (Accuracy::Recall(recall), _) => match parameter_for(&loaded, recall, question.k, selectivity) {
            Some(parameter) => (parameter, format!("for recall {recall}")),
            None => return Ok(Choice::Exact(format!("the index was not measured to reach recall {recall}"))),
        },
        (Accuracy::Exact, _) => return Ok(Choice::Exact("asked for".into())),
    };
    let knob = if kind == "ivf" { "probes" } else { "ef" };
    let filter = filtered.map(|rows| format!(", among {rows} rows that pass the filter")).unwrap_or_default();
    let note = format!("{kind}: {knob} {parameter} {why}{filter}");
    Ok(Choice::Index { built, loaded, parameter, note })
}

fn wrong_knob(knob: &str, has: &str) -> Error {
    Error::new(ErrorCode::InvalidParameter, format!("the column's index has no {knob}: {has}; or ask for a recall"))
}

/// For a column without an index a recall is reached exactly; an index's own parameters mean nothing.
fn no_index<'t>(accuracy: Accuracy) -> Result<Choice<'t>> {
    let why = "the column has no index";
    match accuracy {
        Accuracy::Probes(_) | Accuracy::Ef(_) => {
            let text = format!("probes and ef are parameters of an index: {why}; create one, or ask for a recall");
            Err(Error::new(ErrorCode::InvalidParameter, text))
        }
        _ => Ok(Choice::Exact(why.into())),
    }
}

/// The index's parameter for a recall of `k` neighbours among a part of its rows.
fn parameter_for(loaded: &Loaded, recall: f32, k: usize, selectivity: f64) -> Option<usize> {
    let calibration = loaded.calibration();
    let reached = calibration.points().last()?.1;
    if reached < recall {
        return None;
    }
    let measured = calibration.parameter(recall)? as f64;
    let deeper = (k as f64 / calibration.k().max(1) as f64 / selectivity.max(1e-9)).max(1.0);
    let parameter = match loaded {
        // The lists that hold the nearest k grow slower than k: they are neighbours of each other.
        Loaded::Ivf(_) => measured * deeper.powf(0.75),
        Loaded::Graph(_) => measured.max(k as f64) * deeper,
    };
    Some(parameter.ceil() as usize)
}

async fn answer_exactly(
    cores: &Cores,
    home: usize,
    question: &Arc<Question>,
    parts: Vec<Part>,
    why: String,
    mut statistics: proto::SearchStatistics,
) -> Result<Found> {
    let compared = exact(cores, home, question, parts).await?;
    statistics.plan = format!("exact: {why}");
    statistics.rows_compared += compared.rows;
    statistics.device_bytes += compared.device_bytes;
    let neighbors = compared.tops.into_iter().map(TopK::into_sorted).collect();
    Ok(Found { neighbors, statistics })
}

/// Searches the rows that an index has, one query after the other.
async fn by_index(
    question: &Question,
    built: &BuiltIndex,
    loaded: &Loaded,
    parameter: usize,
    passing: Option<&[FoundRows]>,
    statistics: &mut proto::SearchStatistics,
) -> Result<Vec<Vec<Neighbor>>> {
    let (_, cache, device) = Core::with_volume()?;
    let rows = allowed_rows(&question.table, built, &cache, passing).await?;
    let queries = question.queries.rows()?;
    let mut found = Vec::with_capacity(queries.count());
    let mut turn = Turn::default();
    match loaded {
        Loaded::Graph(graph) => {
            let filter = rows.as_ref().map(|rows| GraphFilter::of(graph, rows));
            for query in 0..queries.count() {
                let options = GraphSearch::new(question.k, parameter);
                let (mut neighbors, done) = graph::search(graph, queries.row(query), options, filter.as_ref())?;
                neighbors.retain(|neighbor| neighbor.distance <= question.distance_max);
                statistics.nodes_visited += done.compared as u64;
                statistics.candidates_reranked += done.reranked as u64;
                found.push(neighbors);
                turn.yield_if_due().await;
            }
        }
        Loaded::Ivf(index) => {
            let source = source_of(question, built, index, &cache, &device);
            let mut allowed = Allowed { rows: rows.as_deref(), ..Default::default() };
            for query in 0..queries.count() {
                let distance_max = question.distance_max;
                let options = IvfSearchOptions { distance_max, ..IvfSearchOptions::new(question.k, parameter) };
                found.push(ivf::search(&source, queries.row(query), options, &mut allowed, statistics).await?);
                turn.yield_if_due().await;
            }
        }
    }
    Ok(found)
}

/// The rows that an index may answer with; `None`: all that it has.
async fn allowed_rows(
    table: &TableSnapshot,
    built: &BuiltIndex,
    cache: &BlockCache<UringDevice>,
    passing: Option<&[FoundRows]>,
) -> Result<Option<Arc<RowSet>>> {
    if let Some(passing) = passing {
        let of_index = passing.iter().filter(|passing| built.covers(passing.segment.id));
        let groups = of_index.map(|passing| (&passing.segment, passing.row_group, &*passing.rows));
        return Ok(Some(Arc::new(row_set(table, cache, groups).await?)));
    }
    if let Some(rows) = built.rows.get() {
        return Ok(rows.clone());
    }
    let covered = || table.segments.iter().filter(|segment| built.covers(segment.id));
    let rows_now: u64 = covered().map(|segment| segment.footer.rows()).sum();
    let any_deleted = covered().any(|segment| table.deleted_of(segment.id).is_some());
    if !any_deleted && rows_now == built.handle.record.rows {
        return Ok(built.rows.get_or_init(|| None).clone());
    }
    let live = covered().flat_map(|segment| {
        let metas = segment.footer.row_groups.iter().enumerate();
        metas.map(move |(row_group, meta)| {
            let rows = table.live_rows(segment.id, row_group);
            (segment, row_group, rows.unwrap_or_else(|| all_rows(meta.rows as usize).into()))
        })
    });
    let rows = Arc::new(row_set(table, cache, live).await?);
    Ok(built.rows.get_or_init(|| Some(rows)).clone())
}

/// The ids of rows of row groups, whose bits are set.
async fn row_set<'t, R: AsRef<[u64]>>(
    table: &TableSnapshot,
    cache: &BlockCache<UringDevice>,
    groups: impl Iterator<Item = (&'t Arc<SegmentHandle>, usize, R)>,
) -> Result<RowSet> {
    let mut set = RowSet::for_table(table.rowids());
    let mut turn = Turn::default();
    for (segment, row_group, rows) in groups {
        set.add(rows.as_ref(), &GroupIds::of(segment, row_group, cache).await?);
        turn.yield_if_due().await;
    }
    Ok(set)
}
