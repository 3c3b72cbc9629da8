//! Prepared statements of one session: a bounded cache, least recently used out first.
//!
//! Owns [`Statements`] and [`Statement`]. Called by `questions`.

use std::collections::HashMap;
use std::rc::Rc;

use hidb::plan::ScanPlan;
use hidb::{DataType, Error, ErrorCode, Result};

/// A plan whose parameters are still open.
pub struct Statement {
    /// The plan.
    pub plan: ScanPlan,
    /// The table's schema hash when it was prepared.
    pub schema_hash: u64,
    /// Types of the parameters, in order.
    pub parameters: Vec<DataType>,
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
        let plan = ScanPlan {
            table: "t".into(),
            filter: None,
            aggregation: None,
            having: None,
            outputs: vec![],
            visible: 0,
            sort: vec![],
            offset: 0,
            limit: None,
        };
        Statement { plan, schema_hash: hash, parameters: vec![] }
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
