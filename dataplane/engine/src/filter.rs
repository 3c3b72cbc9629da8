//! The filter: which rows of a block are in.
//!
//! Owns [`FilterPlan`] (the conjuncts and where each runs) and [`FilterRun`] (one core's state of it).
//! A conjunct on one column becomes a [`ChunkPredicate`] that runs on encoded data, AND and OR of such a tree of
//! them; one over a single dictionary column runs once per dictionary entry; everything else runs in the
//! evaluator over the rows that survived so far.
//!
//! Invariants
//! - A row group in which a conjunct can't be true is never read; a conjunct that zone maps prove always true
//!   is not evaluated there.
//! - Conjuncts run cheapest and most selective first; the order is reconsidered at every row group from what
//!   was measured so far. Those that can raise errors come last and in the order written, so that no row
//!   raises an error that evaluating from left to right would not.

use heliostat_segment::{BlockMatch, Chunk, ChunkPredicate, CompiledPredicate, Selection};
use hidb::plan::{Expr, ExprKind};
use hidb::{Lane, Result, Schema};

use crate::eval::Program;
use crate::eval::facts::Fact;
use crate::eval::machine::Machine;
use crate::source::{RowSource, Scratch, Survivors, chunk_of};
use crate::vector::{and_bits, bit};

pub(crate) use crate::encoded::split_conjuncts;
use crate::encoded::{encoded_predicate, intersect};
use crate::tree::{CompiledTree, PredicateTree};

/// When at least one in this many rows is still in, a conjunct over fixed-width columns is evaluated over whole
/// blocks: decoding the others costs less than compacting these, and conjuncts share what was decoded.
const DENSE_DIVISOR: usize = 4;

/// Up to as many dictionary entries a conjunct is evaluated on each before the rows are looked at.
const DICTIONARY_ENTRIES_MAX: usize = 1 << 16;

/// One conjunct.
#[derive(Debug)]
pub(crate) struct Conjunct {
    /// Its node in the filter's program.
    pub root: usize,
    /// For display.
    pub expr: Expr,
    /// The columns it reads.
    pub columns: Vec<usize>,
    /// How it runs on encoded data, if it does.
    pub encoded: Option<(usize, ChunkPredicate)>,
    /// AND and OR of predicates that do.
    pub tree: Option<PredicateTree>,
    /// The one text column it reads, if it is over one: then it can run per dictionary entry.
    pub dictionary_column: Option<usize>,
    /// Rough cost per row, in units of a range predicate on packed integers.
    pub cost: f64,
    /// Whether all columns it reads have fixed-width values, which are cheap to decode for rows that are out.
    pub fixed_width: bool,
    /// Whether it can raise an error: then it runs after all that can't, and in the order written.
    pub fallible: bool,
}

/// A compiled filter.
#[derive(Debug, Default)]
pub(crate) struct FilterPlan {
    pub program: Program,
    pub conjuncts: Vec<Conjunct>,
    /// All columns it reads, ascending.
    pub columns: Vec<usize>,
}

impl FilterPlan {
    pub fn compile(filter: Option<&Expr>, schema: &Schema) -> Result<Self> {
        let mut plan = FilterPlan::default();
        let mut parts = Vec::new();
        if let Some(filter) = filter {
            split_conjuncts(filter, &mut parts);
        }
        for expr in parts {
            let encoded = encoded_predicate(&expr);
            if let Some((column, predicate)) = &encoded {
                // Two ranges on one column are one range.
                let merged = plan.conjuncts.iter_mut().find_map(|other| match &mut other.encoded {
                    Some((c, p)) if c == column => intersect(p, predicate).map(|both| (other, both)),
                    _ => None,
                });
                if let Some((other, both)) = merged {
                    other.encoded = Some((*column, both));
                    other.expr = and(other.expr.clone(), expr);
                    other.root = usize::MAX;
                    continue;
                }
            }
            let columns = expr.columns();
            let dictionary_column = match columns.as_slice() {
                [column] => schema.fields().get(*column).filter(|f| f.data_type.lane() == Lane::Bytes).map(|_| *column),
                _ => None,
            };
            let mut nodes = 0;
            let mut fallible = false;
            expr.walk(&mut |node| {
                nodes += 1;
                fallible |= can_fail(node);
            });
            let tree = if encoded.is_none() { PredicateTree::of(&expr) } else { None };
            let cost = match (&encoded, &tree) {
                (Some((_, predicate)), _) => encoded_cost(predicate),
                (None, Some(tree)) => tree.cost(&encoded_cost),
                (None, None) if dictionary_column.is_some() => 20.0,
                (None, None) => 5.0 * f64::from(nodes),
            };
            let fixed_width = columns
                .iter()
                .all(|column| schema.fields().get(*column).is_none_or(|field| field.data_type.lane() != Lane::Bytes));
            plan.conjuncts.push(Conjunct {
                root: usize::MAX,
                expr,
                columns,
                encoded,
                tree,
                dictionary_column,
                cost,
                fixed_width,
                fallible,
            });
        }
        for conjunct in &mut plan.conjuncts {
            conjunct.root = plan.program.add(&conjunct.expr)?;
            plan.columns.extend_from_slice(&conjunct.columns);
        }
        plan.columns.sort_unstable();
        plan.columns.dedup();
        Ok(plan)
    }
}

fn encoded_cost(predicate: &ChunkPredicate) -> f64 {
    match predicate {
        ChunkPredicate::BytesContains { .. } | ChunkPredicate::Bytes(_) => 100.0,
        ChunkPredicate::BytesRange { .. } | ChunkPredicate::BytesSet { .. } => 4.0,
        _ => 1.0,
    }
}

/// Whether a node by itself can raise an error.
fn can_fail(node: &Expr) -> bool {
    match &node.kind {
        ExprKind::Arithmetic { .. } | ExprKind::Negate(_) => node.data_type.lane() != Lane::F64,
        ExprKind::Cast(_) | ExprKind::AddInterval { .. } | ExprKind::Substring { .. } => true,
        _ => false,
    }
}

fn and(left: Expr, right: Expr) -> Expr {
    let nullable = left.nullable || right.nullable;
    let data_type = left.data_type;
    let mut parts = Vec::new();
    split_conjuncts(&left, &mut parts);
    parts.push(right);
    Expr { kind: ExprKind::And(parts), data_type, nullable }
}

/// How a conjunct runs in the row group at hand.
#[derive(Debug)]
enum Method {
    /// Zone maps prove it true for every row.
    Always,
    Encoded(usize, CompiledPredicate),
    Tree(CompiledTree),
    /// In the evaluator (which may have a table by dictionary codes). `dense`: over whole blocks while many rows
    /// are in, because values of rows that are out cost little.
    Evaluate {
        dense: bool,
    },
}

/// What was measured of a conjunct.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    tested: u64,
    passed: u64,
}

/// One core's filter.
#[derive(Debug, Default)]
pub(crate) struct FilterRun {
    machine: Machine,
    measured: Vec<Measured>,
    /// Conjuncts to run in this row group, in order.
    order: Vec<usize>,
    methods: Vec<Method>,
    /// What the block's zone maps say of each conjunct in `order`.
    pruned: Vec<BlockMatch>,
}

impl FilterRun {
    /// Looks at a row group's zone maps: `None` if no row can qualify, else the columns the filter needs.
    pub fn start(&mut self, plan: &FilterPlan, column: &dyn Fn(usize) -> Fact) -> Option<Vec<usize>> {
        self.measured.resize(plan.conjuncts.len(), Measured::default());
        self.machine.specialise(&plan.program, column);
        self.order.clear();
        for (index, conjunct) in plan.conjuncts.iter().enumerate() {
            let fact = self.machine.fact(conjunct.root);
            if !fact.may_be_true() {
                return None;
            }
            if !fact.is_always_true() {
                self.order.push(index);
            }
        }
        let mut needed: Vec<usize> = self.order.iter().flat_map(|i| plan.conjuncts[*i].columns.clone()).collect();
        needed.sort_unstable();
        needed.dedup();
        let rank = |index: &usize| {
            let measured = self.measured[*index];
            let passed = (measured.passed as f64 + 256.0) / (measured.tested as f64 + 1024.0);
            plan.conjuncts[*index].cost / (1.001 - passed.min(1.0))
        };
        let fallible = |index: &usize| plan.conjuncts[*index].fallible;
        self.order.sort_by(|a, b| match (fallible(a), fallible(b)) {
            (false, false) => rank(a).total_cmp(&rank(b)),
            (true, true) => a.cmp(b),
            (a, b) => a.cmp(&b),
        });
        Some(needed)
    }

    /// How many blocks to filter in one step, so that a step stays near 50 us: a range predicate takes 0.3 us a
    /// block, a text search 30 us.
    pub fn step_blocks(&self, plan: &FilterPlan) -> usize {
        let cost: f64 = self.order.iter().map(|index| plan.conjuncts[*index].cost).sum();
        ((128.0 / cost.max(1.0)) as usize).clamp(1, crate::STEP_BLOCKS_MAX)
    }

    /// Translates the conjuncts into the chunks' encoded domains, once the chunks are there.
    pub fn open(&mut self, plan: &FilterPlan, chunks: &[Option<Chunk>]) -> Result<()> {
        self.methods.clear();
        self.methods.extend(plan.conjuncts.iter().map(|_| Method::Always));
        for index in &self.order {
            let conjunct = &plan.conjuncts[*index];
            self.methods[*index] = if let Some((column, predicate)) = &conjunct.encoded {
                Method::Encoded(*column, chunk_of(chunks, *column)?.compile(predicate)?)
            } else if let Some(tree) = &conjunct.tree {
                Method::Tree(tree.compile(chunks)?)
            } else {
                Method::Evaluate { dense: conjunct.fixed_width }
            };
        }
        let evaluated = self.order.iter().filter(|index| matches!(self.methods[**index], Method::Evaluate { .. }));
        let roots: Vec<usize> = evaluated.map(|index| plan.conjuncts[*index].root).collect();
        let rows = chunks.iter().flatten().map(Chunk::rows).next().unwrap_or(0);
        self.machine.tabulate(&plan.program, roots, chunks, rows, DICTIONARY_ENTRIES_MAX);
        for (conjunct, method) in plan.conjuncts.iter().zip(&mut self.methods) {
            if let Method::Evaluate { dense } = method {
                *dense |= self.machine.is_tabulated(&plan.program, conjunct.root);
            }
        }
        Ok(())
    }

    /// The rows of a block that qualify of those that are `live`, and whether zone maps alone ruled them all out.
    pub fn select(
        &mut self,
        plan: &FilterPlan,
        chunks: &[Option<Chunk>],
        live: &Survivors,
        scratch: &mut Scratch,
    ) -> Result<(Selection, bool)> {
        let (block, block_rows) = (live.block, live.block_rows);
        self.pruned.clear();
        for index in &self.order {
            let pruned = match &self.methods[*index] {
                Method::Encoded(column, predicate) => chunk_of(chunks, *column)?.prune(block, predicate)?,
                Method::Tree(tree) => tree.prune(chunks, block)?,
                Method::Always => BlockMatch::All,
                Method::Evaluate { .. } => BlockMatch::Some,
            };
            if pruned == BlockMatch::None {
                return Ok((Selection::none(), true));
            }
            self.pruned.push(pruned);
        }
        let mut selection = live.selection;
        let mut after = live.rows;
        // Whether the machine holds values of all rows of this block.
        let mut whole_block = false;
        for position in 0..self.order.len() {
            let index = self.order[position];
            if self.pruned[position] == BlockMatch::All {
                continue;
            }
            let before = after;
            match &self.methods[index] {
                Method::Always => continue,
                Method::Encoded(column, predicate) => {
                    chunk_of(chunks, *column)?.filter_values(block, predicate, &mut selection)?;
                }
                Method::Tree(tree) => tree.filter(chunks, block, &mut selection)?,
                Method::Evaluate { dense: true } if before * DENSE_DIVISOR >= block_rows => {
                    let root = plan.conjuncts[index].root;
                    let all = [Survivors::all(block, block_rows)];
                    let mut source = RowSource::new(chunks, &all, scratch);
                    if !whole_block {
                        self.machine.begin(source.rows);
                        whole_block = true;
                    }
                    self.machine.eval(&plan.program, root, selection.words(), &mut source)?;
                    let value = self.machine.vector(&plan.program, root);
                    selection.and(&and_bits(&value.bits, &value.valid_bits()));
                }
                Method::Evaluate { .. } => {
                    whole_block = false;
                    let root = plan.conjuncts[index].root;
                    let left = [Survivors::new(block, block_rows, selection)];
                    let mut source = RowSource::new(chunks, &left, scratch);
                    self.machine.begin(source.rows);
                    self.machine.eval_all(&plan.program, root, &mut source)?;
                    let value = self.machine.vector(&plan.program, root);
                    let keep = and_bits(&value.bits, &value.valid_bits());
                    keep_rows(&mut selection, &keep);
                }
            }
            after = selection.count();
            let measured = &mut self.measured[index];
            measured.tested += before as u64;
            measured.passed += after as u64;
            if after == 0 {
                break;
            }
        }
        Ok((selection, false))
    }
}

/// Keeps the `k`-th selected row when bit `k` is set.
fn keep_rows(selection: &mut Selection, keep: &crate::vector::Bits) {
    let mut kept = Selection::none();
    let mut position = 0;
    selection.for_each(|row| {
        if bit(keep, position) {
            kept.insert(row);
        }
        position += 1;
    });
    *selection = kept;
}
