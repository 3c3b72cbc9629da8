//! AND and OR of predicates that each run on encoded data.
//!
//! Owns [`PredicateTree`] (a conjunct taken apart) and [`CompiledTree`] (the same in the domains of a row
//! group's chunks). Called by the filter.
//!
//! Invariants
//! - A tree selects exactly the rows for which its expression is true. NOT is pushed down to the leaves, where
//!   it is a negated predicate that NULL does not match either; above them there is only what is true: a union
//!   is true where a branch is, an intersection where all are, whatever NULLs the others hold.
//! - No leaf can raise an error, so the order of evaluation does not show.
//!
//! Cost: that of the leaves, each over the rows that are still open (a range on packed integers 0.3 ns a row),
//! and 16 words per branch. Evaluated row by row the same took 10 ns a branch, with text 30 ns.

use heliostat_segment::{BlockMatch, Chunk, ChunkPredicate, CompiledPredicate, Selection};
use hidb::Result;
use hidb::plan::{Expr, ExprKind};

use crate::encoded::simple;
use crate::source::chunk_of;

/// What a conjunct amounts to: predicates `L` on columns, and how they go together.
#[derive(Debug)]
pub(crate) enum Tree<L> {
    /// A column and what is asked of it.
    Leaf(usize, L),
    All(Vec<Tree<L>>),
    Any(Vec<Tree<L>>),
}

pub(crate) type PredicateTree = Tree<ChunkPredicate>;
pub(crate) type CompiledTree = Tree<CompiledPredicate>;

impl PredicateTree {
    /// The tree of an expression all of whose leaves run on encoded data.
    pub fn of(expr: &Expr) -> Option<PredicateTree> {
        Self::build(expr, false)
    }

    /// `negate`: the tree for which NOT `expr` is true.
    fn build(expr: &Expr, negate: bool) -> Option<PredicateTree> {
        let parts = |list: &[Expr]| list.iter().map(|part| Self::build(part, negate)).collect::<Option<Vec<_>>>();
        match &expr.kind {
            ExprKind::Not(inner) => Self::build(inner, !negate),
            ExprKind::And(list) if negate => Some(Tree::Any(parts(list)?)),
            ExprKind::And(list) => Some(Tree::All(parts(list)?)),
            ExprKind::Or(list) if negate => Some(Tree::All(parts(list)?)),
            ExprKind::Or(list) => Some(Tree::Any(parts(list)?)),
            _ => simple(expr, negate).map(|(column, predicate)| Tree::Leaf(column, predicate)),
        }
    }

    /// Rough cost per row, given that of a leaf.
    pub fn cost(&self, leaf: &dyn Fn(&ChunkPredicate) -> f64) -> f64 {
        match self {
            Tree::Leaf(_, predicate) => leaf(predicate),
            Tree::All(parts) | Tree::Any(parts) => parts.iter().map(|part| part.cost(leaf)).sum(),
        }
    }

    /// Translates the leaves into the chunks' encoded domains.
    pub fn compile(&self, chunks: &[Option<Chunk>]) -> Result<CompiledTree> {
        let each = |parts: &[PredicateTree]| parts.iter().map(|part| part.compile(chunks)).collect::<Result<Vec<_>>>();
        Ok(match self {
            Tree::Leaf(column, predicate) => Tree::Leaf(*column, chunk_of(chunks, *column)?.compile(predicate)?),
            Tree::All(parts) => Tree::All(each(parts)?),
            Tree::Any(parts) => Tree::Any(each(parts)?),
        })
    }
}

impl CompiledTree {
    /// What a block's zone maps alone say.
    pub fn prune(&self, chunks: &[Option<Chunk>], block: usize) -> Result<BlockMatch> {
        // One branch that says `settles` settles it; all must agree for the other extreme.
        let (parts, settles, agreed) = match self {
            Tree::Leaf(column, predicate) => return Ok(chunk_of(chunks, *column)?.prune(block, predicate)?),
            Tree::All(parts) => (parts, BlockMatch::None, BlockMatch::All),
            Tree::Any(parts) => (parts, BlockMatch::All, BlockMatch::None),
        };
        let mut verdict = agreed;
        for part in parts {
            let of_part = part.prune(chunks, block)?;
            if of_part == settles {
                return Ok(settles);
            }
            if of_part != agreed {
                verdict = BlockMatch::Some;
            }
        }
        Ok(verdict)
    }

    /// Keeps the rows of `selection` that match.
    pub fn filter(&self, chunks: &[Option<Chunk>], block: usize, selection: &mut Selection) -> Result<()> {
        match self {
            Tree::Leaf(column, predicate) => {
                chunk_of(chunks, *column)?.filter(block, predicate, selection)?;
            }
            Tree::All(parts) => {
                for part in parts {
                    part.filter(chunks, block, selection)?;
                    if selection.is_empty() {
                        break;
                    }
                }
            }
            Tree::Any(parts) => {
                let mut matched = Selection::none();
                for part in parts {
                    // Only rows that no branch has taken yet.
                    let mut taken = *selection;
                    part.filter(chunks, block, &mut taken)?;
                    matched.or(taken.words());
                    selection.and_not(taken.words());
                    if selection.is_empty() {
                        break;
                    }
                }
                *selection = matched;
            }
        }
        Ok(())
    }
}
