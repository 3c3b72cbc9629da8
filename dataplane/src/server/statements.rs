//! Prepared statements of one session: a bounded cache, least recently used out first.
//!
//! Owns [`Statements`] and [`Statement`]. Called by `questions`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use heliostat_engine::{CompiledScan, EngineOptions};
use hidb::plan::{ScanPlan, substrait};
use hidb::{DataType, Error, ErrorCode, Result, Scalar, Schema};

/// A plan whose parameters are still open.
pub struct Statement {
    /// The plan.
    pub plan: ScanPlan,
    /// The table's schema hash when it was prepared.
    pub schema_hash: u64,
    /// Types of the parameters, in order.
    pub parameters: Vec<DataType>,
    /// The plan compiled, once it was asked without parameters.
    compiled: RefCell<Option<Arc<CompiledScan>>>,
}

impl Statement {
    /// A plan over a table of this schema hash.
    pub fn new(plan: ScanPlan, schema_hash: u64, parameters: Vec<DataType>) -> Self {
        Statement { plan, schema_hash, parameters, compiled: RefCell::default() }
    }

    /// The plan with these values for its parameters, ready to run over its table.
    ///
    /// # Errors
    /// `InvalidParameter`, and what the engine refuses.
    pub fn compile(&self, values: &[Scalar], schema: &Schema, options: EngineOptions) -> Result<Arc<CompiledScan>> {
        if !self.parameters.is_empty() {
            return CompiledScan::compile(&substrait::bind_parameters(&self.plan, values)?, schema, options);
        }
        let mut compiled = self.compiled.borrow_mut();
        match &*compiled {
            Some(same) if *same.options() == options => Ok(same.clone()),
            _ => Ok(compiled.insert(CompiledScan::compile(&self.plan, schema, options)?).clone()),
        }
    }
}

struct Entry {
    statement: Rc<Statement>,
    used: u64,
}

/// The statements of one session.
pub struct Statements {
    entries: HashMap<u64, Entry>,
    capacity: usize,
    next_id: u64,
    clock: u64,
}

impl Statements {
    /// A cache of at most so many statements (at least one).
    pub fn new(capacity: usize) -> Self {
        Statements { entries: HashMap::new(), capacity: capacity.max(1), next_id: 1, clock: 0 }
    }

    /// Keeps a statement and gives its id.
    pub fn insert(&mut self, statement: Statement) -> u64 {
        if self.entries.len() >= self.capacity
            && let Some(oldest) = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(id, _)| *id)
        {
            self.entries.remove(&oldest);
        }
        let id = self.next_id;
        self.next_id += 1;
        self.clock += 1;
        self.entries.insert(id, Entry { statement: Rc::new(statement), used: self.clock });
        id
    }

    /// The statement of this id.
    pub fn get(&mut self, id: u64) -> Result<Rc<Statement>> {
        self.clock += 1;
        let entry = self.entries.get_mut(&id).ok_or_else(|| {
            Error::new(
                ErrorCode::UnknownStatement,
                format!(
                    "no prepared statement {id} in this session (at most {} are kept): prepare it again",
                    self.capacity
                ),
            )
        })?;
        entry.used = self.clock;
        Ok(entry.statement.clone())
    }

    /// Forgets a statement; forgetting one that is gone is fine.
    pub fn remove(&mut self, id: u64) {
        self.entries.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(hash: u64) -> Statement {
        Statement::new(ScanPlan::of_rows("t", None, vec![]), hash, vec![])
    }

    #[test]
    fn the_least_recently_used_statement_goes_first() {
        let mut statements = Statements::new(2);
        let (a, b) = (statements.insert(statement(1)), statements.insert(statement(2)));
        statements.get(a).unwrap();
        let c = statements.insert(statement(3));
        assert!(statements.get(a).is_ok() && statements.get(c).is_ok());
        assert_eq!(statements.get(b).err().unwrap().code, ErrorCode::UnknownStatement);
    }
}
