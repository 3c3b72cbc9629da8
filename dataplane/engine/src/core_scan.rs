//! One core's part of a scan, as a state machine over row groups.
//!
//! Owns [`CoreScan`], [`Step`] and [`CorePartial`]. Called by the cell's scan driver, which reads the chunks that
//! are asked for and yields between steps.
//!
//! A row group goes through: zone maps (may end here), membership filters (asked for with [`Step::Need`]; may end here),
//! the filter's columns, the filter over all blocks into selections (may end here), the other columns, and the
//! surviving blocks. A scan for positions ([`CompiledScan::positions`]) gives out the selections instead of going on.
//!
//! Invariants
//! - Rows that are not among those given with a row group (deleted ones) are as if they weren't there: no expression sees
//!   them, they raise no errors, count for nothing, and a block of nothing else is neither filtered nor decoded. What zone
//!   maps say is wider than the rows that are left, never narrower.
//! - A column is asked for only when it is needed, and once per row group.
//! - A step filters at most [`crate::STEP_BLOCKS_MAX`] blocks (fewer when predicates are dear) or works on the
//!   survivors of at most [`BODY_BLOCKS`], about [`BODY_ROWS`].

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use heliostat_segment::{Chunk, SegmentFooter, Selection, ZoneMap, membership_number};
use hidb::aligned::ImageMemory;
use hidb::image::ResultImage;
use hidb::plan::Phase;
use hidb::{BLOCK_ROWS, Error, ErrorCode, Result};

use crate::aggregate::{AggregatePlan, Aggregator, Groups};
use crate::compile::CompiledScan;
use crate::emit::{Emitter, Input};
use crate::eval::machine::Machine;
use crate::eval::tables::ENTRIES_MAX;
use crate::filter::FilterRun;
use crate::options::{Budget, ScanStats, SharedScan};
use crate::output::{GroupOutput, keep_sorted};
use crate::sort::SortedRows;
use crate::sort_bound::SortBound;
use crate::source::{RowSource, Scratch, Survivors, window};

/// Surviving rows projected or aggregated per step, at 10 to 15 ns each.
const BODY_ROWS: usize = 4 * BLOCK_ROWS;
/// Blocks with survivors per step: reaching into one takes 1 to 2 us, however few its survivors are.
const BODY_BLOCKS: usize = 32;

/// What a step came to.
#[derive(Debug)]
pub enum Step {
    /// Supply these columns' chunks of the row group (`schema.len()` stands for `_rowid`, numbers above it for
    /// [`heliostat_segment::membership_number`]), then step again.
    Need(Vec<usize>),
    /// An image to send.
    Image(ResultImage),
    /// The rows of the row group that pass, as a bitmap: row `r` is bit `r % 64` of word `r / 64`. At most once per row
    /// group, not at all when none passes, and only of scans made by [`CompiledScan::positions`]. Counts against the
    /// request's memory until the scan ends.
    Rows(Box<[u64]>),
    /// Some work was done; there is more.
    Progress,
    /// The row group is done (or none was started): start another, or finish.
    RowGroupDone,
    /// The answer is complete (LIMIT): no more row groups are wanted.
    Finished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Waiting for the membership filters.
    Membership,
    /// Waiting for the filter's chunks.
    FilterColumns,
    Filter,
    /// Waiting for the other chunks.
    BodyColumns,
    Body,
}

#[derive(Debug)]
struct RowGroup {
    ordinal: u64,
    footer: Arc<SegmentFooter>,
    index: usize,
    rows: usize,
    /// The rows to look at; `None`: all.
    among: Option<Arc<[u64]>>,
    chunks: Vec<Option<Chunk>>,
    stage: Stage,
    /// The membership filters that are there, by column.
    memberships: Vec<(usize, Bytes)>,
    filter_columns: Vec<usize>,
    /// Next block to filter, then the next entry of `selected`.
    next: usize,
    /// Blocks with survivors.
    selected: Vec<Survivors>,
}

impl RowGroup {
    fn block_rows(&self, block: usize) -> usize {
        (self.rows - block * BLOCK_ROWS).min(BLOCK_ROWS)
    }

    /// The rows of a block to look at.
    fn live(&self, block: usize) -> Survivors {
        let rows = self.block_rows(block);
        match &self.among {
            None => Survivors::all(block, rows),
            Some(among) => {
                let mut live = Selection::of_block(among, block);
                live.and(Selection::all(rows).words());
                Survivors::new(block, rows, live)
            }
        }
    }

    /// The rows that the filter left, as a bitmap over the row group.
    fn positions(&self) -> Box<[u64]> {
        let mut words = vec![0; self.rows.div_ceil(64)];
        for part in &self.selected {
            let start = part.block * BLOCK_WORDS;
            words[start..].iter_mut().zip(part.selection.words()).for_each(|(word, selected)| *word = *selected);
        }
        words.into()
    }

    /// An error that names the part it is about.
    fn in_part(&self, part: &str, mut error: Error) -> Error {
        let (segment, row_group) = (self.footer.segment_id, self.index);
        error.message = format!("segment {segment}, row group {row_group}, {part}: {}", error.message);
        error
    }

    fn missing(&self, columns: &[usize]) -> Vec<usize> {
        let missing = |column: &usize| self.chunks.get(*column).is_none_or(Option::is_none);
        columns.iter().copied().filter(missing).collect()
    }
}

/// Words of a bitmap over a block.
const BLOCK_WORDS: usize = BLOCK_ROWS / 64;

/// Whether one of the first `rows` bits is set.
fn has_bit(words: &[u64], rows: usize) -> bool {
    let (whole, rest) = (rows / 64, rows % 64);
    let last = words.get(whole).is_some_and(|word| word & ((1 << rest) - 1) != 0);
    last || words.iter().take(whole).any(|word| *word != 0)
}

#[derive(Debug)]
enum Body {
    Rows { machine: Box<Machine>, sorted: Option<SortedRows> },
    Groups { plan: Arc<AggregatePlan>, aggregator: Box<Aggregator>, flushing: Option<Box<GroupOutput>> },
}

/// What one core computed: give it to [`crate::Merge`].
#[derive(Debug)]
pub struct CorePartial {
    pub(crate) images: Vec<ResultImage>,
    pub(crate) sorted: Option<SortedRows>,
    pub(crate) groups: Option<Groups>,
    pub(crate) stats: ScanStats,
    pub(crate) budget: Budget,
}

/// One core's part of a scan.
#[derive(Debug)]
pub struct CoreScan {
    compiled: Arc<CompiledScan>,
    shared: Arc<SharedScan>,
    filter: FilterRun,
    body: Body,
    emitter: Emitter,
    scratch: Scratch,
    group: Option<RowGroup>,
    stats: ScanStats,
    budget: Budget,
    /// Bytes of bitmaps given out.
    positions_bytes: usize,
}

impl CoreScan {
    /// Images are written into memory of this from now on; without it, on the heap.
    pub fn lend(&mut self, memory: Rc<dyn ImageMemory>) {
        self.emitter.lend(memory);
    }

    /// A scan of no row group yet.
    pub fn new(compiled: Arc<CompiledScan>, shared: Arc<SharedScan>) -> Self {
        let body = match &compiled.aggregate {
            Some(plan) => Body::Groups {
                plan: Arc::clone(plan),
                aggregator: Box::new(Aggregator::new(Arc::clone(plan))),
                flushing: None,
            },
            None => {
                Body::Rows { machine: Box::default(), sorted: compiled.sort.as_ref().map(|_| SortedRows::default()) }
            }
        };
        CoreScan {
            filter: FilterRun::default(),
            body,
            emitter: compiled.emitter(),
            scratch: Scratch::default(),
            group: None,
            stats: ScanStats::default(),
            budget: Budget::new(Arc::clone(&shared)),
            positions_bytes: 0,
            compiled,
            shared,
        }
    }

    /// Starts a row group. `ordinal` numbers the row groups of the request, the same whatever core scans it.
    ///
    /// `among`, if given, is a bitmap over the row group's rows (row `r` is bit `r % 64` of word `r / 64`; missing words
    /// are zero): rows whose bit is not set are as if they weren't there.
    pub fn start_row_group(
        &mut self,
        ordinal: u64,
        footer: Arc<SegmentFooter>,
        row_group_index: usize,
        among: Option<Arc<[u64]>>,
    ) -> Result<()> {
        if self.group.is_some() {
            return Err(Error::new(ErrorCode::Internal, "a row group was started before the last one was done"));
        }
        let Some(meta) = footer.row_groups.get(row_group_index) else {
            return Err(Error::new(
                ErrorCode::Internal,
                format!("row group {row_group_index} of a segment with {}", footer.row_groups.len()),
            ));
        };
        let rows = meta.rows as usize;
        let blocks = rows.div_ceil(BLOCK_ROWS);
        let compiled = &self.compiled;
        let fact = |column: usize| compiled.column_fact(column, meta.columns.get(column).map(|chunk| &chunk.zone));
        let bound = sort_bound(&self.body, compiled);
        let is_excluded = |zone: &ZoneMap| bound.as_ref().is_some_and(|bound| bound.excludes(zone));
        let key_zone = bound.as_ref().and_then(|bound| Some(&meta.columns.get(bound.column?)?.zone));
        let is_empty = match &among {
            Some(among) => !has_bit(among, rows),
            None => rows == 0,
        };
        if is_empty || key_zone.is_some_and(is_excluded) {
            self.stats.count_pruned(meta);
            return Ok(());
        }
        let Some(filter_columns) = self.filter.start(&compiled.filter, &fact) else {
            self.stats.count_pruned(meta);
            return Ok(());
        };
        let asks_members = compiled.lookups.in_row_group(meta).next().is_some();
        self.stats.row_groups_total += 1;
        self.stats.blocks_total += blocks as u64;
        self.group = Some(RowGroup {
            ordinal,
            index: row_group_index,
            rows,
            among,
            chunks: (0..=compiled.schema.len()).map(|_| None).collect(),
            stage: if asks_members { Stage::Membership } else { Stage::FilterColumns },
            memberships: Vec::new(),
            filter_columns,
            next: 0,
            selected: Vec::with_capacity(blocks),
            footer,
        });
        Ok(())
    }

    /// Hands over the chunk of a column (its checksum verified) that was asked for.
    pub fn supply(&mut self, column: usize, bytes: Bytes) -> Result<()> {
        let data_type = self.compiled.column_type(column);
        let Some(group) = self.group.as_mut() else {
            return Err(Error::new(ErrorCode::Internal, "a chunk was supplied without a row group"));
        };
        self.stats.bytes_decoded += bytes.len() as u64;
        if let Some(of) = column.checked_sub(membership_number(self.compiled.schema.len(), 0)) {
            if group.footer.row_groups[group.index].part(column).is_none() {
                return Err(Error::new(ErrorCode::Internal, format!("part {column} was not asked for")));
            }
            // Read-ahead learns from other row groups, and may bring a filter that does not pay in this one.
            if group.stage == Stage::Membership {
                group.memberships.push((of, bytes));
            }
            return Ok(());
        }
        let chunk = Chunk::open(bytes, &data_type, group.rows as u32)
            .map_err(|error| group.in_part(&format!("column {}", self.compiled.column_name(column)), error.into()))?;
        match group.chunks.get_mut(column) {
            Some(slot) => *slot = Some(chunk),
            None => return Err(Error::new(ErrorCode::Internal, format!("column {column} was not asked for"))),
        }
        Ok(())
    }

    /// Works for at most about 50 us.
    pub fn step(&mut self) -> Result<Step> {
        if self.shared.is_cancelled() {
            return Err(Error::new(ErrorCode::Cancelled, "the request was cancelled"));
        }
        if let Some(image) = self.take_image() {
            return Ok(Step::Image(image));
        }
        if self.flush_groups()? {
            return Ok(self.take_image().map_or(Step::Progress, Step::Image));
        }
        if self.shared.is_satisfied() {
            self.group = None;
            return Ok(Step::Finished);
        }
        let Some(group) = self.group.as_mut() else { return Ok(Step::RowGroupDone) };
        match group.stage {
            Stage::Membership => {
                let columns = self.compiled.schema.len();
                let meta = &group.footer.row_groups[group.index];
                let found = |column: usize| group.memberships.iter().find(|(of, _)| *of == column);
                let mut missing = Vec::new();
                let mut may_match = true;
                for (lookup, _) in self.compiled.lookups.in_row_group(meta) {
                    match found(lookup.column) {
                        Some((_, filter)) => {
                            may_match &= lookup.may_match(filter.clone()).map_err(|error| {
                                let name = self.compiled.column_name(lookup.column);
                                group.in_part(&format!("membership filter of column {name:?}"), error)
                            })?;
                        }
                        None => missing.push(membership_number(columns, lookup.column)),
                    }
                }
                if !may_match {
                    self.stats.row_groups_pruned += 1;
                    self.stats.blocks_pruned += meta.blocks() as u64;
                    self.group = None;
                    return Ok(Step::RowGroupDone);
                }
                if !missing.is_empty() {
                    missing.sort_unstable();
                    missing.dedup();
                    return Ok(Step::Need(missing));
                }
                group.memberships = Vec::new();
                group.stage = Stage::FilterColumns;
                Ok(Step::Progress)
            }
            Stage::FilterColumns => {
                let missing = group.missing(&group.filter_columns);
                if !missing.is_empty() {
                    return Ok(Step::Need(missing));
                }
                self.filter.open(&self.compiled.filter, &group.chunks)?;
                group.stage = Stage::Filter;
                Ok(Step::Progress)
            }
            Stage::Filter => {
                let blocks = group.rows.div_ceil(BLOCK_ROWS);
                let end = (group.next + self.filter.step_blocks(&self.compiled.filter)).min(blocks);
                for block in group.next..end {
                    let live = group.live(block);
                    if live.rows == 0 {
                        self.stats.blocks_pruned += 1;
                        continue;
                    }
                    let (selection, pruned) =
                        self.filter.select(&self.compiled.filter, &group.chunks, &live, &mut self.scratch)?;
                    self.stats.blocks_pruned += u64::from(pruned);
                    if !selection.is_empty() {
                        group.selected.push(Survivors::new(block, live.block_rows, selection));
                    }
                }
                group.next = end;
                if end == blocks {
                    group.stage = Stage::BodyColumns;
                    group.next = 0;
                    if group.selected.is_empty() {
                        self.group = None;
                        return Ok(Step::RowGroupDone);
                    }
                    if self.compiled.yields_positions {
                        self.stats.rows_selected += group.selected.iter().map(|part| part.rows as u64).sum::<u64>();
                        let positions = group.positions();
                        self.group = None;
                        self.positions_bytes += size_of_val(&*positions);
                        self.budget.set("finding positions", self.positions_bytes)?;
                        return Ok(Step::Rows(positions));
                    }
                }
                Ok(Step::Progress)
            }
            Stage::BodyColumns => {
                let missing = group.missing(self.compiled.body_columns());
                if !missing.is_empty() {
                    return Ok(Step::Need(missing));
                }
                let (compiled, meta) = (&self.compiled, &group.footer.row_groups[group.index]);
                let fact =
                    |column: usize| compiled.column_fact(column, meta.columns.get(column).map(|chunk| &chunk.zone));
                let rows = group.selected.iter().map(|part| part.rows).sum();
                match &mut self.body {
                    Body::Rows { machine, .. } => {
                        let outputs = &compiled.outputs;
                        machine.specialise(&outputs.program, &fact);
                        machine.tabulate(
                            &outputs.program,
                            outputs.roots.iter().copied(),
                            &group.chunks,
                            rows,
                            ENTRIES_MAX,
                        );
                    }
                    Body::Groups { aggregator, .. } => aggregator.start(&fact, &group.chunks, rows),
                }
                group.stage = Stage::Body;
                Ok(Step::Progress)
            }
            Stage::Body => self.body_step(),
        }
    }

    fn body_step(&mut self) -> Result<Step> {
        let mut bound = sort_bound(&self.body, &self.compiled);
        let Some(group) = self.group.as_mut() else { return Ok(Step::RowGroupDone) };
        let end = (group.next + BODY_BLOCKS).min(group.selected.len());
        let mut worked = 0;
        while group.next < end && worked < BODY_ROWS && !self.emitter.is_ready() {
            let first = group.next;
            let is_wanted = |part: &Survivors| match &bound {
                Some(bound) => Ok::<_, Error>(!bound.excludes_block(&group.chunks, part.block)?),
                None => Ok(true),
            };
            if !is_wanted(&group.selected[first])? {
                group.next += 1;
                self.stats.blocks_pruned += 1;
                continue;
            }
            group.next += window(&group.selected[first..end], is_wanted)?;
            let parts = &mut group.selected[first..group.next];
            let block = parts[0].block;
            let rows: usize = parts.iter().map(|part| part.rows).sum();
            worked += rows;
            self.stats.rows_selected += rows as u64;
            match &mut self.body {
                Body::Groups { plan, aggregator, flushing } => {
                    aggregator.take_in(&mut RowSource::new(&group.chunks, parts, &mut self.scratch))?;
                    if let Err(error) = self.budget.set("grouping", aggregator.groups.memory_bytes()) {
                        if plan.phase != Phase::Intermediate {
                            return Err(error);
                        }
                        // A group may come more than once: send what there is and start anew.
                        let output = GroupOutput::new(aggregator.take_groups(), plan, &self.compiled.outputs)?;
                        *flushing = Some(Box::new(output));
                        break;
                    }
                }
                Body::Rows { machine, sorted: Some(sorted) } => {
                    let Some(sort) = &self.compiled.sort else { continue };
                    let mut source = RowSource::new(&group.chunks, parts, &mut self.scratch);
                    machine.begin(rows);
                    let ordinal = group.ordinal;
                    // Rows keep their order: a window's first block and the position among its survivors, of which
                    // there are no more than a block's rows, are as good as the position in the row group.
                    let tie = |row: usize, key: &mut Vec<u8>| {
                        key.extend_from_slice(&ordinal.to_be_bytes());
                        key.extend_from_slice(&((block * BLOCK_ROWS + row) as u32).to_be_bytes());
                    };
                    keep_sorted(&self.compiled.outputs, sort, machine, &mut source, rows, tie, sorted)?;
                    self.budget.set("sorting", sorted.memory_bytes())?;
                    bound = sort_bound(&self.body, &self.compiled);
                }
                Body::Rows { machine, sorted: None } => {
                    if self.compiled.limits_rows() {
                        for part in parts.iter_mut() {
                            let (skip, take) = self.shared.claim(part.rows as u64);
                            part.limit(skip as usize, take as usize);
                        }
                    }
                    let mut source = RowSource::new(&group.chunks, parts, &mut self.scratch);
                    if source.rows > 0 {
                        project(&self.compiled, machine, &mut self.emitter, &mut source)?;
                    }
                }
            }
        }
        let done = group.next == group.selected.len();
        if done {
            self.group = None;
        }
        if let Some(image) = self.take_image() {
            return Ok(Step::Image(image));
        }
        Ok(if done && !self.is_flushing() { Step::RowGroupDone } else { Step::Progress })
    }

    fn is_flushing(&self) -> bool {
        matches!(self.body, Body::Groups { flushing: Some(_), .. })
    }

    /// Sends on partial groups that had to make room; false when there are none.
    fn flush_groups(&mut self) -> Result<bool> {
        let Body::Groups { plan, flushing, aggregator } = &mut self.body else { return Ok(false) };
        let Some(output) = flushing else { return Ok(false) };
        let more = output.step(&self.compiled, plan, None, &mut (0, u64::MAX), &mut self.emitter)?;
        if !more {
            *flushing = None;
            self.budget.set("grouping", aggregator.groups.memory_bytes())?;
        }
        Ok(true)
    }

    fn take_image(&mut self) -> Option<ResultImage> {
        let image = self.emitter.take()?;
        self.stats.rows += u64::from(image.rows);
        Some(image)
    }

    /// Tells that the positions that [`Step::Rows`] gave are held no longer: they count for the request's memory until then.
    pub fn let_positions_go(&mut self) {
        self.positions_bytes = 0;
    }

    /// Closes the image being filled, so that rows found so far can be sent (for latency).
    pub fn flush(&mut self) -> Result<Option<ResultImage>> {
        self.emitter.flush()?;
        Ok(self.take_image())
    }

    /// Whether the next step is one of filtering, and not yet of what survived (for profiles).
    pub fn is_filtering(&self) -> bool {
        let stage = self.group.as_ref().map(|group| group.stage);
        matches!(stage, Some(Stage::FilterColumns | Stage::Filter))
    }

    /// What was counted so far; `rows` are those of the images that steps gave out.
    pub fn stats(&self) -> &ScanStats {
        &self.stats
    }

    /// Ends this core's part.
    pub fn finish(mut self) -> Result<CorePartial> {
        while self.flush_groups()? {}
        self.emitter.flush()?;
        let mut images = Vec::new();
        while let Some(image) = self.emitter.take() {
            images.push(image);
        }
        let (sorted, groups) = match self.body {
            Body::Rows { sorted, .. } => (sorted, None),
            Body::Groups { mut aggregator, .. } => (None, Some(aggregator.take_groups())),
        };
        Ok(CorePartial { images, sorted, groups, stats: self.stats, budget: self.budget })
    }
}

/// What the rows kept so far say of those to come, with ORDER BY and LIMIT.
fn sort_bound(body: &Body, compiled: &CompiledScan) -> Option<SortBound> {
    match (body, &compiled.sort) {
        (Body::Rows { sorted: Some(kept), .. }, Some(sort)) => {
            SortBound::of(&compiled.outputs, sort, kept.threshold()?)
        }
        _ => None,
    }
}

/// Writes surviving rows to the image at hand.
fn project(
    compiled: &CompiledScan,
    machine: &mut Machine,
    emitter: &mut Emitter,
    source: &mut RowSource<'_>,
) -> Result<()> {
    let outputs = &compiled.outputs;
    let visible = &outputs.roots[..outputs.visible];
    let gathered: Vec<Option<usize>> = visible
        .iter()
        .zip(&outputs.types)
        .map(|(root, data_type)| outputs.program.plain_column(*root).filter(|_| emitter.gathers(data_type)))
        .collect();
    let rows = source.rows;
    machine.begin(rows);
    for (root, gathered) in visible.iter().zip(&gathered) {
        if gathered.is_none() {
            machine.eval_all(&outputs.program, *root, source)?;
        }
    }
    let inputs: Vec<Input<'_>> = visible
        .iter()
        .zip(&gathered)
        .map(|(root, gathered)| match gathered {
            Some(column) => Input::Gather(*column),
            None => Input::Vector(machine.vector(&outputs.program, *root)),
        })
        .collect();
    emitter.push(rows, &inputs, Some(source))
}
