//! Bringing together what the cores of a request computed.
//!
//! Owns [`Merge`]. Called by the request's home core, which yields between steps.
//!
//! Invariants
//! - A step merges at most [`MERGE_GROUPS`] groups, or outputs at most one block of rows.
//! - The answer does not depend on which core brought what, nor on the order of the parts, but for the order of
//!   rows where the plan asks for none.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use hidb::aligned::ImageMemory;
use hidb::image::ResultImage;
use hidb::plan::Phase;
use hidb::{BLOCK_ROWS, Error, ErrorCode, Result};

use crate::aggregate::{AggregatePlan, Groups};
use crate::compile::CompiledScan;
use crate::core_scan::CorePartial;
use crate::emit::{Emitter, Input};
use crate::options::{Budget, ScanStats, SharedScan};
use crate::output::{GroupOutput, read_payload};
use crate::sort::{RunMerge, SortedRows};
use crate::vector::Vector;

/// Groups (or entries of distinct sets) merged per step.
const MERGE_GROUPS: usize = 512;
/// Partial groups beyond this many go out unmerged in the intermediate phase.
const INTERMEDIATE_MERGE_MAX: usize = 1 << 16;

/// What a step of the merge came to.
#[derive(Debug)]
pub enum MergeStep {
    /// Some work was done; there is more.
    Progress,
    /// An image to send.
    Image(ResultImage),
    /// Everything has been sent.
    Finished,
}

#[derive(Debug)]
enum State {
    /// Parts come in.
    Collecting,
    /// The groups of `from` go into `into`; `map` is the group there of every group here so far.
    Absorbing {
        into: Box<Groups>,
        budget: Budget,
        from: Option<Box<Absorbing>>,
    },
    Groups(Box<GroupOutput>, Budget),
    Rows(RunMerge, Vec<Vector>),
    Finished,
}

#[derive(Debug)]
struct Absorbing {
    groups: Groups,
    _budget: Budget,
    map: Vec<u32>,
    /// State column and entry that the walk over distinct sets has reached.
    distinct: (usize, usize),
}

/// Merges the parts of all cores and gives out the images that remain.
#[derive(Debug)]
pub struct Merge {
    shared: Arc<SharedScan>,
    compiled: Arc<CompiledScan>,
    emitter: Emitter,
    images: VecDeque<ResultImage>,
    groups: VecDeque<(Groups, Budget)>,
    sorted: Vec<SortedRows>,
    budgets: Vec<Budget>,
    state: State,
    /// Rows still to skip and to return, for plain LIMIT over groups.
    limits: (u64, u64),
    stats: ScanStats,
}

impl Merge {
    /// Images are written into memory of this from now on; without it, on the heap.
    pub fn lend(&mut self, memory: Rc<dyn ImageMemory>) {
        self.emitter.lend(memory);
    }

    /// A merge of no part yet.
    pub fn new(compiled: Arc<CompiledScan>, shared: Arc<SharedScan>) -> Self {
        let emitter = compiled.emitter();
        let limits = (compiled.offset, compiled.limit.unwrap_or(u64::MAX));
        Merge {
            shared,
            compiled,
            emitter,
            images: VecDeque::new(),
            groups: VecDeque::new(),
            sorted: Vec::new(),
            budgets: Vec::new(),
            state: State::Collecting,
            limits,
            stats: ScanStats::default(),
        }
    }

    /// Takes a core's part. All parts must be in before the first step.
    pub fn push(&mut self, partial: CorePartial) -> Result<()> {
        if !matches!(self.state, State::Collecting) {
            return Err(Error::new(ErrorCode::Internal, "a core's part came after the merge had begun"));
        }
        self.stats.add(&partial.stats);
        self.images.extend(partial.images);
        match (partial.groups, partial.sorted) {
            (Some(groups), _) => self.groups.push_back((groups, partial.budget)),
            (None, Some(sorted)) => {
                self.sorted.push(sorted);
                self.budgets.push(partial.budget);
            }
            (None, None) => {}
        }
        Ok(())
    }

    /// The counters of all parts; `rows` includes the images that the merge gave out.
    pub fn stats(&self) -> ScanStats {
        self.stats
    }

    /// Steps until there is an image; `None` when everything has been sent. Unbounded work: for tests and
    /// tools; a cell's core calls [`Merge::step`].
    pub fn next_image(&mut self) -> Result<Option<ResultImage>> {
        loop {
            match self.step()? {
                MergeStep::Progress => {}
                MergeStep::Image(image) => return Ok(Some(image)),
                MergeStep::Finished => return Ok(None),
            }
        }
    }

    /// Works for at most about 100 us.
    pub fn step(&mut self) -> Result<MergeStep> {
        if self.shared.is_cancelled() {
            return Err(Error::new(ErrorCode::Cancelled, "the request was cancelled"));
        }
        if let Some(image) = self.images.pop_front().or_else(|| self.emitter.take()) {
            return Ok(self.hand_out(image));
        }
        let state = std::mem::replace(&mut self.state, State::Finished);
        let plan = self.compiled.aggregate.clone();
        self.state = match (state, &plan) {
            (State::Collecting, Some(_)) => match self.groups.pop_front() {
                Some((into, budget)) => State::Absorbing { into: Box::new(into), budget, from: None },
                None => State::Finished,
            },
            (State::Collecting, None) if self.compiled.sort.is_some() => self.start_rows(),
            (State::Collecting, None) => State::Finished,
            (State::Absorbing { into, budget, from }, Some(plan)) => self.absorb(plan, into, budget, from)?,
            (State::Groups(mut output, budget), Some(plan)) => {
                let mut sorted = self.compiled.sort.as_ref().map(|_| self.sorted.pop().unwrap_or_default());
                let more = output.step(&self.compiled, plan, sorted.as_mut(), &mut self.limits, &mut self.emitter)?;
                self.sorted.extend(sorted);
                if more {
                    if let Some(sorted) = self.sorted.last() {
                        let mut budget = budget;
                        budget.set("sorting groups", output.memory_bytes() + sorted.memory_bytes())?;
                        State::Groups(output, budget)
                    } else {
                        State::Groups(output, budget)
                    }
                } else if let Some((into, budget)) = self.groups.pop_front() {
                    State::Absorbing { into: Box::new(into), budget, from: None }
                } else if self.compiled.sort.is_some() {
                    self.start_rows()
                } else {
                    State::Finished
                }
            }
            (State::Rows(merge, vectors), _) => self.rows(merge, vectors)?,
            (State::Finished | State::Absorbing { .. } | State::Groups(..), _) => State::Finished,
        };
        if matches!(self.state, State::Finished) {
            self.emitter.flush()?;
        }
        Ok(match self.emitter.take() {
            Some(image) => self.hand_out(image),
            None if matches!(self.state, State::Finished) => MergeStep::Finished,
            None => MergeStep::Progress,
        })
    }

    fn hand_out(&mut self, image: ResultImage) -> MergeStep {
        self.stats.rows += u64::from(image.rows);
        MergeStep::Image(image)
    }

    fn start_rows(&mut self) -> State {
        match &self.compiled.sort {
            Some(sort) => {
                let parts = std::mem::take(&mut self.sorted).into_iter().filter(|part| !part.is_empty()).collect();
                State::Rows(RunMerge::new(parts, sort), vec![Vector::default(); self.compiled.outputs.visible])
            }
            None => State::Finished,
        }
    }

    fn rows(&mut self, mut merge: RunMerge, mut vectors: Vec<Vector>) -> Result<State> {
        let types = &self.compiled.outputs.types[..self.compiled.outputs.visible];
        for (vector, data_type) in vectors.iter_mut().zip(types) {
            vector.reset(data_type.lane(), BLOCK_ROWS);
        }
        let mut row = 0;
        merge.next(BLOCK_ROWS, |payload| {
            row += 1;
            read_payload(types, row - 1, payload, &mut vectors)
        })?;
        let inputs: Vec<Input<'_>> = vectors.iter().map(Input::Vector).collect();
        self.emitter.push(row, &inputs, None)?;
        Ok(if merge.is_done() { State::Finished } else { State::Rows(merge, vectors) })
    }

    fn absorb(
        &mut self,
        plan: &AggregatePlan,
        mut into: Box<Groups>,
        mut budget: Budget,
        from: Option<Box<Absorbing>>,
    ) -> Result<State> {
        let Some(mut from) = from else {
            // Parts that might outgrow the budget while they merge go out one by one: a group may come twice.
            let budget_bytes = self.compiled.options.memory_bytes_max;
            let unmerged = plan.phase == Phase::Intermediate
                && self.groups.front().is_some_and(|(next, _)| {
                    into.len() + next.len() > INTERMEDIATE_MERGE_MAX
                        || (into.memory_bytes() + next.memory_bytes()).saturating_mul(4) > budget_bytes
                });
            return Ok(match self.groups.pop_front() {
                Some(next) if unmerged => {
                    self.groups.push_front(next);
                    State::Groups(Box::new(GroupOutput::new(*into, plan, &self.compiled.outputs)?), budget)
                }
                Some((groups, other)) => {
                    let absorbing = Absorbing { groups, _budget: other, map: Vec::new(), distinct: (0, 0) };
                    State::Absorbing { into, budget, from: Some(Box::new(absorbing)) }
                }
                None => State::Groups(Box::new(GroupOutput::new(*into, plan, &self.compiled.outputs)?), budget),
            });
        };
        let first = from.map.len();
        let end = (first + MERGE_GROUPS).min(from.groups.len());
        if first < end {
            let mut numbers = [0; BLOCK_ROWS];
            into.table.find_all_of(&from.groups.table, first, end - first, &mut numbers);
            from.map.extend_from_slice(&numbers[..end - first]);
            into.grow();
            for (group, rows) in from.map[first..end].iter().zip(from.groups.rows.range(first, end - first)) {
                into.rows[*group as usize] += rows;
            }
            for (state, theirs) in into.states.iter_mut().zip(&from.groups.states) {
                state.absorb(&from.map[first..end], theirs, first);
            }
        } else {
            let (column, entry) = from.distinct;
            let Some(theirs) = from.groups.states.get(column) else {
                return Ok(State::Absorbing { into, budget, from: None });
            };
            let end = (entry + MERGE_GROUPS).min(theirs.distinct_len());
            into.states[column].absorb_distinct(&from.map, theirs, entry, end)?;
            from.distinct = if end == theirs.distinct_len() { (column + 1, 0) } else { (column, end) };
        }
        budget.set("merging groups", into.memory_bytes())?;
        Ok(State::Absorbing { into, budget, from: Some(from) })
    }
}
