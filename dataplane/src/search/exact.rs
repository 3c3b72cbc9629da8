//! Exact search: every row is compared, on the core that has its shard.
//!
//! Owns [`Part`] and [`exact`]. Called by the planner for what no index covers, for few rows that pass a filter, and for
//! exact questions; and by the builders of indexes, which need true answers to measure recall.
//!
//! Invariants
//! - Each core keeps the `k` nearest of its rows for each query; the home core merges. Ties are decided by row id, so the
//!   answer is the same with any number of cores.
//! - NULL vectors and rows that are not among those asked for are never in an answer.
//!
//! Cost sketch: bytes of the rows once from memory for [`QUERY_TILE`] queries, `queries * rows * dimension` multiply-adds
//! (32 a nanosecond with AVX2 on `f32` that is in cache). One query of 384 halves over 62,671 rows: 48 MB, 4 ms at 12 GB/s:
//! bound by memory; the row ids are 3 KB a row group.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::try_join_all;
use heliostat_segment::{BLOCK_ROWS, Chunk, Selection};
use heliostat_vector::{QueryBatch, Rows, TopK};
use hidb::{DataType, Error, ErrorCode, Result};

use super::{QUERY_TILE, Question, internal, invalid};
use crate::cores::{Core, Cores, Turn, read_ahead::ReadAhead, work::GroupWork};

/// Multiply-adds between two looks at the clock: about 50 us.
const STEP_PRODUCTS: usize = 1 << 20;
/// When fewer than one in so many rows of a block are asked for, they are compared one by one.
const SPARSE_DIVISOR: usize = 4;

/// A row group to compare.
#[derive(Clone)]
pub struct Part {
    /// Which.
    pub group: GroupWork,
    /// Its rows that may be in the answer, as a bitmap; `None`: all.
    pub among: Option<Arc<[u64]>>,
}

/// What exact search found.
#[derive(Debug, Default)]
pub struct Compared {
    /// The nearest of each query.
    pub tops: Vec<TopK>,
    /// Rows that were compared with the queries.
    pub rows: u64,
    /// Bytes read from the device.
    pub device_bytes: u64,
}

/// The `k` nearest rows of these parts to each query. Runs on the home core; dropping the future stops all cores.
///
/// # Errors
/// `Io` and `Corruption` from the device.
pub async fn exact(cores: &Cores, home: usize, question: &Arc<Question>, parts: Vec<Part>) -> Result<Compared> {
    let mut shares: Vec<Vec<Part>> = vec![Vec::new(); cores.count()];
    for part in parts {
        shares[part.group.segment.shard as usize % cores.count()].push(part);
    }
    let mut works = Vec::new();
    let mut at_home = None;
    for (core, share) in shares.into_iter().enumerate().filter(|(_, share)| !share.is_empty()) {
        let question = question.clone();
        let work = move || exact_core(question, share);
        if core == home {
            at_home = Some(work().boxed_local());
        } else {
            let work = cores.run_while_wanted(core, work);
            works.push(async move { work.await? }.boxed_local());
        }
    }
    // The others are asked before this core gets busy itself.
    works.extend(at_home);
    let mut all = Compared { tops: tops(question), ..Default::default() };
    for of_core in try_join_all(works).await? {
        all.tops.iter_mut().zip(&of_core.tops).for_each(|(top, other)| top.merge(other));
        all.rows += of_core.rows;
        all.device_bytes += of_core.device_bytes;
    }
    Ok(all)
}

fn tops(question: &Question) -> Vec<TopK> {
    vec![TopK::within(question.k, question.distance_max); question.queries.count()]
}

/// One core's part.
async fn exact_core(question: Arc<Question>, parts: Vec<Part>) -> Result<Compared> {
    let (core, cache, _) = Core::with_volume()?;
    let rowid_column = question.table.schema.len();
    let mut read_ahead = ReadAhead::new(cache, question.bypass_cache, core.arena.bytes(), rowid_column + 1);
    let groups: Vec<GroupWork> = parts.iter().map(|part| part.group.clone()).collect();
    let mut comparison = Comparison::new(&question)?;
    let mut turn = Turn::default();
    for (index, part) in parts.iter().enumerate() {
        read_ahead.begin(index);
        let (mut vectors, mut rowids) = (None, None);
        for (column, bytes) in read_ahead.need(&groups, index, &[question.column.index, rowid_column]).await? {
            let group = &part.group;
            let rows = group.segment.footer.row_groups.get(group.row_group).map_or(0, |meta| meta.rows);
            let data_type = question.table.schema.fields().get(column).map_or(DataType::Int64, |field| field.data_type);
            let chunk = Chunk::open(bytes, &data_type, rows);
            let damaged = |error| group.segment.corruption(group.row_group, column, &format!("{error}"));
            let chunk = Some(chunk.map_err(damaged)?);
            if column == rowid_column { rowids = chunk } else { vectors = chunk }
        }
        let (Some(vectors), Some(rowids)) = (vectors, rowids) else {
            return Err(Error::new(ErrorCode::Internal, "a chunk of an exact search was not read"));
        };
        turn.restart();
        for block in 0..vectors.blocks() {
            comparison.block(&vectors, &rowids, block, part.among.as_deref(), &mut turn).await?;
        }
    }
    Ok(Compared { tops: comparison.tops, rows: comparison.rows, device_bytes: read_ahead.bytes_read_device })
}

/// Blocks compared with all queries.
struct Comparison<'q> {
    question: &'q Question,
    batches: Vec<QueryBatch>,
    tops: Vec<TopK>,
    rows: u64,
    distances: Vec<f32>,
    ids: Box<[i64; BLOCK_ROWS]>,
    picked: Vec<u32>,
}

impl<'q> Comparison<'q> {
    fn new(question: &'q Question) -> Result<Self> {
        Ok(Comparison {
            question,
            batches: question.column.tiles(question.metric, &question.queries.rows()?).map_err(invalid)?,
            tops: tops(question),
            rows: 0,
            distances: vec![0.0; QUERY_TILE * BLOCK_ROWS],
            ids: Box::new([0; BLOCK_ROWS]),
            picked: Vec::with_capacity(BLOCK_ROWS),
        })
    }

    /// Compares the rows of a block whose bits are set in `among`, a bitmap over the row group.
    async fn block(
        &mut self,
        vectors: &Chunk,
        rowids: &Chunk,
        block: usize,
        among: Option<&[u64]>,
        turn: &mut Turn,
    ) -> Result<()> {
        let rows = vectors.block_rows(block);
        let mut selected = Selection::none();
        vectors.validity(block, selected.words_mut())?;
        if let Some(among) = among {
            selected.and(Selection::of_block(among, block).words());
        }
        let count = selected.count();
        if count == 0 {
            return Ok(());
        }
        self.rows += count as u64;
        rowids.decode_i64(block, &mut self.ids)?;
        let bytes = vectors.plain_block(block)?;
        let all = self.question.column.rows(bytes)?;
        if count * SPARSE_DIVISOR < rows {
            return self.sparse(&all, &selected, turn).await;
        }
        let is_run = count == rows && self.ids[..rows].windows(2).all(|pair| pair[1] == pair[0] + 1);
        for batch in 0..self.batches.len() {
            let queries = self.batches[batch].queries().len();
            let step = (STEP_PRODUCTS / (queries * self.question.column.dimension)).clamp(1, BLOCK_ROWS);
            for first in (0..rows).step_by(step) {
                let some = step.min(rows - first);
                let distances = &mut self.distances[..queries * some];
                self.batches[batch].distances(&all.slice(first, some), distances).map_err(internal)?;
                for (query, distances) in distances.chunks_exact(some).enumerate() {
                    let top = &mut self.tops[batch * QUERY_TILE + query];
                    if is_run {
                        top.push_rows(distances, self.ids[first] as u64);
                    } else {
                        push_selected(top, distances, &self.ids[first..], &selected, first);
                    }
                }
                turn.yield_if_due().await;
            }
        }
        Ok(())
    }

    /// Compares few rows of a block.
    async fn sparse(&mut self, all: &Rows<'_>, selected: &Selection, turn: &mut Turn) -> Result<()> {
        self.picked.clear();
        selected.for_each(|row| self.picked.push(row as u32));
        let distances = &mut self.distances[..self.picked.len()];
        for (batch, tops) in self.batches.iter().zip(self.tops.chunks_mut(QUERY_TILE)) {
            for (query, top) in batch.queries().iter().zip(tops) {
                query.distances_to(all, &self.picked, distances).map_err(internal)?;
                for (row, distance) in self.picked.iter().zip(distances.iter()) {
                    top.push(*distance, self.ids[*row as usize] as u64);
                }
                turn.yield_if_due().await;
            }
        }
        Ok(())
    }
}

/// Pushes the rows `first..` of a block that are selected; `ids` and `distances` begin at row `first`.
fn push_selected(top: &mut TopK, distances: &[f32], ids: &[i64], selected: &Selection, first: usize) {
    for (index, (distance, id)) in distances.iter().zip(ids).enumerate() {
        // Most rows are too far: the bit is looked up for the others.
        if *distance <= top.bound() && selected.contains(first + index) {
            top.push(*distance, *id as u64);
        }
    }
}
