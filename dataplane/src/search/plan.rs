//! Which way a question is answered.
//!
//! Owns [`search`] and the choice between exact search and an index. Called by `server::searches`, on the session's home
//! core.
//!
//! With an index that is loaded and has the metric, its rows are searched with it and all others exactly. A filter on
//! columns that an IVF index includes is evaluated list by list ([`by_included`]). Any other is evaluated first, by the scan
//! engine on all cores, or was asked for before ([`Passing`]); then
//! - in a graph the codes of all rows that pass are compared, as long as that is less work than a walk among them
//!   ([`WALK_NODES`]): about a tenth of 60,000 rows, and 3% of a million;
//! - with lists, few rows that pass are compared exactly: with a selectivity below [`EXACT_SELECTIVITY`] so many lists are
//!   read in vain that comparing those that pass is cheaper;
//! - otherwise the index is searched among the rows that pass, as deep as if `k / selectivity` neighbours were asked for:
//!   where the k-th row that passes lies among all rows if the filter knows nothing of the vectors;
//! - when that gives fewer rows than pass, the filter does know, and they are compared exactly.
//!
//! A recall that the index was not measured to reach is answered exactly. The queries of a batch are divided among the cores.

use std::ops::Range;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::try_join_all;
use heliostat_vector::graph::GraphSearch;
use heliostat_vector::ivf::{IvfIndex, IvfSearchOptions};
use heliostat_vector::{Elements, Neighbor, TopK};
use hidb::plan::Expr;
use hidb::{Error, ErrorCode, Result, proto};

use super::exact::{Part, exact};
use super::index::graph::{self, GraphFilter};
use super::index::include::{Includes, ListFilter};
use super::index::ivf::Allowed;
use super::index::{Loaded, ivf};
use super::passing::{AllowedRows, Passing};
use super::rowids::RowSet;
use super::{Accuracy, Found, Question};
use crate::cache::BlockCache;
use crate::cores::{Core, Cores, Turn, work::GroupWork};
use crate::device::uring::UringDevice;
use crate::store::{BuiltIndex, TableSnapshot};

/// Below this part of the rows a filtered question to lists is answered exactly,
const EXACT_SELECTIVITY: f64 = 0.02;
/// and so it is for so few rows, whatever part of all they are.
const EXACT_ROWS: u64 = 2_000;
/// Nodes that a walk compares for each candidate that it keeps: 24 measured at `ef` 32, 12 at 256.
const WALK_NODES: u64 = 20;
/// A core is asked for help with so many queries.
const QUERIES_PER_CORE: usize = 4;

/// Answers a question. Dropping the future stops all cores.
///
/// # Errors
/// Those of the device, `InvalidParameter` for a knob that the index does not have, what the filter raises.
pub async fn search(cores: &Cores, home: usize, question: Arc<Question>) -> Result<Found> {
    let mut statistics = proto::SearchStatistics::default();
    let Some(filter) = &question.filter else { return among(cores, home, &question, None, statistics).await };
    if let Some(neighbors) = by_included(&question, &filter.condition, &mut statistics).await? {
        return Ok(Found { neighbors, statistics });
    }
    let (passing, device_bytes) = Passing::of(cores, &question, filter).await?;
    statistics.device_bytes += device_bytes;
    among(cores, home, &question, Some(&passing), statistics).await
}

/// The answer among the rows that pass, or among all. `statistics` are of what was tried before: it was work, too.
async fn among(
    cores: &Cores,
    home: usize,
    question: &Arc<Question>,
    passing: Option<&Passing>,
    mut statistics: proto::SearchStatistics,
) -> Result<Found> {
    let table = &question.table;
    let parts = || passing.map_or_else(|| live_parts(table), |passing| passing.parts(table));
    statistics.rows_filtered = passing.map_or(0, |passing| passing.rows);
    let chosen = match choose(question, passing)? {
        Choice::Exact(why) => return answer_exactly(cores, home, question, parts(), why, statistics).await,
        Choice::Index(chosen) => chosen,
    };
    let (mut neighbors, reach) = by_index(cores, home, question, &chosen, passing, &mut statistics).await?;
    // A walk or a few lists may have met too few of the rows that pass.
    let wanted = chosen.passing.min(question.k as u64);
    if (reach as u64) < wanted && !matches!(chosen.way, Way::Codes) {
        let why = format!("the index found {reach} of the rows that pass");
        return answer_exactly(cores, home, question, parts(), why, statistics).await;
    }
    let built = chosen.built(question)?;
    statistics.plan = chosen.note;
    if table.segments.iter().all(|segment| built.covers(segment.id)) {
        return Ok(Found { neighbors, statistics });
    }
    let tail: Vec<Part> = parts().into_iter().filter(|part| !built.covers(part.group.segment.id)).collect();
    let compared = exact(cores, home, question, tail).await?;
    statistics.rows_compared += compared.rows;
    statistics.unindexed_rows += compared.rows;
    statistics.device_bytes += compared.device_bytes;
    for (mut top, of_index) in compared.tops.into_iter().zip(&mut neighbors) {
        of_index.iter().for_each(|neighbor| top.push(neighbor.distance, neighbor.row));
        *of_index = top.into_sorted();
    }
    statistics.plan += &format!("; {} rows that it lacks exactly", statistics.unindexed_rows);
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
    let Choice::Index(chosen) = choose(question, None)? else { return Ok(None) };
    let (Loaded::Ivf(index), Way::Lists(parameter)) = (&*chosen.loaded, chosen.way) else { return Ok(None) };
    let (table, built) = (&question.table, chosen.built(question)?);
    if !table.segments.iter().all(|segment| built.covers(segment.id)) {
        return Ok(None);
    }
    let included = built.handle.record.definition.as_ref().map(|definition| &definition.include[..]);
    let includes = Includes::new(&table.schema, included.unwrap_or_default())?;
    let Some(list_filter) = ListFilter::new(&includes, filter, &table.schema, question.options.clone())? else {
        return Ok(None);
    };
    let (_, cache, device) = Core::with_volume()?;
    let rows = AllowedRows::of(table, built, &cache, None).await?;
    let rows = rows.as_ref().map(|rows| &rows.set);
    let mut allowed = Allowed { rows, filter: Some(list_filter), ..Default::default() };
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
        match parameter_for(&chosen.loaded, recall, question.k, selectivity) {
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

/// All row groups, with the rows that were not deleted.
fn live_parts(table: &TableSnapshot) -> Vec<Part> {
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

enum Choice {
    /// Every row, for this reason.
    Exact(String),
    Index(Chosen),
}

/// An index, and how it is asked.
struct Chosen {
    /// Its place among the table's indexes.
    place: usize,
    loaded: Arc<Loaded>,
    way: Way,
    note: String,
    /// Rows that pass the filter, of those that the index covers; 0 without a filter.
    passing: u64,
}

/// How an index is asked.
#[derive(Clone, Copy)]
enum Way {
    /// So many lists.
    Lists(usize),
    /// A walk with so many candidates.
    Walk(usize),
    /// The codes of all rows that pass.
    Codes,
}

impl Chosen {
    fn built<'q>(&self, question: &'q Question) -> Result<&'q BuiltIndex> {
        built_at(question, self.place)
    }
}

fn built_at(question: &Question, place: usize) -> Result<&BuiltIndex> {
    let built = question.table.indexes.get(place).and_then(|index| index.built.as_ref());
    built.ok_or_else(|| Error::new(ErrorCode::Internal, "an index went from a snapshot"))
}

fn choose(question: &Question, passing: Option<&Passing>) -> Result<Choice> {
    if question.accuracy == Accuracy::Exact {
        return Ok(Choice::Exact("asked for".into()));
    }
    let is_of_column = |column: &str| {
        let found = question.table.schema.find(column);
        found.is_some_and(|(column, _)| column == question.column.index)
    };
    let mut indexes = question.table.indexes.iter().enumerate();
    let Some((place, index)) = indexes.find(|(_, index)| is_of_column(&index.definition.column)) else {
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
    let filtered = passing.map(|passing| passing.covered_rows(&question.table, built));
    let selectivity = filtered.map_or(1.0, |rows| (rows as f64 / vectors as f64).clamp(0.0, 1.0));
    let is_ivf = matches!(*loaded, Loaded::Ivf(_));
    let is_few = |rows: u64| rows <= EXACT_ROWS || selectivity < EXACT_SELECTIVITY;
    if let Some(rows) = filtered.filter(|rows| is_ivf && is_few(*rows)) {
        return Ok(Choice::Exact(format!("{rows} rows pass the filter")));
    }
    let (parameter, why) = match question.accuracy {
        Accuracy::Probes(probes) if is_ivf => (probes, "asked for".to_string()),
        Accuracy::Ef(ef) if !is_ivf => (ef, "asked for".to_string()),
        Accuracy::Probes(_) => return Err(wrong_knob("probes", "a graph has ef")),
        Accuracy::Ef(_) => return Err(wrong_knob("ef", "an IVF index has probes")),
        Accuracy::Recall(recall) => match parameter_for(&loaded, recall, question.k, selectivity) {
            Some(parameter) => (parameter, format!("for recall {recall}")),
            None => return Ok(Choice::Exact(format!("the index was not measured to reach recall {recall}"))),
        },
        Accuracy::Exact => return Ok(Choice::Exact("asked for".into())),
    };
    let among = filtered.map(|rows| format!(", among {rows} rows that pass the filter")).unwrap_or_default();
    let (way, note) = match filtered {
        _ if is_ivf => (Way::Lists(parameter), format!("ivf: probes {parameter} {why}{among}")),
        // An `ef` that was asked for knows nothing of the filter.
        Some(rows) if is_few(rows) || rows <= WALK_NODES * parameter.max(question.k) as u64 => {
            (Way::Codes, format!("graph: the codes of all {rows} rows that pass the filter"))
        }
        _ => (Way::Walk(parameter), format!("graph: ef {parameter} {why}{among}")),
    };
    Ok(Choice::Index(Chosen { place, loaded, way, note, passing: filtered.unwrap_or(0) }))
}

fn wrong_knob(knob: &str, has: &str) -> Error {
    Error::new(ErrorCode::InvalidParameter, format!("the column's index has no {knob}: {has}; or ask for a recall"))
}

/// For a column without an index a recall is reached exactly; an index's own parameters mean nothing.
fn no_index(accuracy: Accuracy) -> Result<Choice> {
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
    let more = (k as f64 / calibration.k().max(1) as f64).max(1.0);
    let parameter = match loaded {
        // The lists that hold the nearest k grow slower than k: they are neighbours of each other.
        Loaded::Ivf(_) => measured * (more / selectivity.max(1e-9)).powf(0.75),
        Loaded::Graph(_) => (measured * more).max(k as f64) / selectivity.max(1e-9),
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

/// What some queries found, the fewest that one of them met, and what was done.
type Searched = (Vec<Vec<Neighbor>>, usize, proto::SearchStatistics);

/// Searches the rows that an index has; also returns the fewest rows that a query met, near enough or not. The queries of a
/// batch to a graph are divided among the cores; lists are read through the cache of one.
async fn by_index(
    cores: &Cores,
    home: usize,
    question: &Arc<Question>,
    chosen: &Chosen,
    passing: Option<&Passing>,
    statistics: &mut proto::SearchStatistics,
) -> Result<(Vec<Vec<Neighbor>>, usize)> {
    let (_, cache, _) = Core::with_volume()?;
    let built = chosen.built(question)?;
    let rows = AllowedRows::of(&question.table, built, &cache, passing).await?;
    let asked = question.queries.count();
    let filter = match (&*chosen.loaded, &rows) {
        (Loaded::Ivf(index), _) => {
            let rows = rows.as_ref().map(|rows| &rows.set);
            let (found, reach, did) = by_lists(question, built, index, chosen.way, rows).await?;
            add(statistics, &did);
            return Ok((found, reach));
        }
        (Loaded::Graph(_), None) => None,
        (Loaded::Graph(graph), Some(rows)) => Some(rows.in_graph(built.handle.id, graph).await),
    };
    let of_share = asked.div_ceil((asked / QUERIES_PER_CORE).clamp(1, cores.count()));
    let mut works = Vec::new();
    for (share, first) in (0..asked).step_by(of_share.max(1)).enumerate().collect::<Vec<_>>().into_iter().rev() {
        let (question, loaded, filter) = (question.clone(), chosen.loaded.clone(), filter.clone());
        let (way, queries) = (chosen.way, first..asked.min(first + of_share));
        let work = move || by_graph(question, loaded, way, filter, queries);
        // The others are asked before this core, which has the first share, gets busy itself.
        works.push(match share {
            0 => work().boxed_local(),
            _ => {
                let work = cores.run_while_wanted((home + share) % cores.count(), work);
                async move { work.await? }.boxed_local()
            }
        });
    }
    let (mut found, mut reach) = (Vec::with_capacity(asked), usize::MAX);
    for (of_share, reached, did) in try_join_all(works).await?.into_iter().rev() {
        found.extend(of_share);
        reach = reach.min(reached);
        add(statistics, &did);
    }
    Ok((found, reach))
}

/// Searches the lists of an index, one query after the other.
async fn by_lists(
    question: &Question,
    built: &BuiltIndex,
    index: &IvfIndex,
    way: Way,
    rows: Option<&RowSet>,
) -> Result<Searched> {
    let Way::Lists(probes) = way else { return Err(Error::new(ErrorCode::Internal, "lists were to be walked")) };
    let (_, cache, device) = Core::with_volume()?;
    let source = source_of(question, built, index, &cache, &device);
    let mut allowed = Allowed { rows, ..Default::default() };
    let distance_max = question.distance_max;
    let options = IvfSearchOptions { distance_max, ..IvfSearchOptions::new(question.k, probes) };
    let queries = question.queries.rows()?;
    let mut statistics = proto::SearchStatistics::default();
    let mut found = Vec::with_capacity(queries.count());
    let mut turn = Turn::default();
    for query in 0..queries.count() {
        found.push(ivf::search(&source, queries.row(query), options, &mut allowed, &mut statistics).await?);
        turn.yield_if_due().await;
    }
    // Lists leave out what is too far before they are counted: a bound says nothing of what they met.
    let fewest = found.iter().map(Vec::len).min().unwrap_or(0);
    let reach = if distance_max == f32::INFINITY { fewest } else { usize::MAX };
    Ok((found, reach, statistics))
}

/// What one core finds of some of the queries in a graph.
async fn by_graph(
    question: Arc<Question>,
    loaded: Arc<Loaded>,
    way: Way,
    filter: Option<Arc<GraphFilter>>,
    asked: Range<usize>,
) -> Result<Searched> {
    let Loaded::Graph(graph) = &*loaded else { return Err(Error::new(ErrorCode::Internal, "lists were to be walked")) };
    let queries = question.queries.rows()?;
    let mut statistics = proto::SearchStatistics::default();
    let asked: Vec<Elements<'_>> = asked.map(|query| queries.row(query)).collect();
    let mut turn = Turn::default();
    let answers = match (way, &filter) {
        (Way::Walk(ef), filter) => {
            let mut answers = Vec::with_capacity(asked.len());
            for query in asked {
                answers.push(graph::search(graph, query, GraphSearch::new(question.k, ef), filter.as_deref())?);
                turn.yield_if_due().await;
            }
            answers
        }
        (Way::Codes, Some(filter)) => graph::search_rows(graph, &asked, question.k, filter, &mut turn).await?,
        _ => return Err(Error::new(ErrorCode::Internal, "a graph was to be asked like lists")),
    };
    let (mut found, mut reach) = (Vec::with_capacity(answers.len()), usize::MAX);
    for (mut neighbors, done) in answers {
        reach = reach.min(neighbors.len());
        neighbors.retain(|neighbor| neighbor.distance <= question.distance_max);
        statistics.nodes_visited += done.compared as u64;
        statistics.candidates_reranked += done.reranked as u64;
        found.push(neighbors);
    }
    Ok((found, reach, statistics))
}

/// Adds what another core did.
fn add(sum: &mut proto::SearchStatistics, did: &proto::SearchStatistics) {
    sum.rows_compared += did.rows_compared;
    sum.lists_probed += did.lists_probed;
    sum.codes_scanned += did.codes_scanned;
    sum.codes_refined += did.codes_refined;
    sum.candidates_reranked += did.candidates_reranked;
    sum.nodes_visited += did.nodes_visited;
    sum.device_reads += did.device_reads;
    sum.device_bytes += did.device_bytes;
}
