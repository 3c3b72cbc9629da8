//! What has changed since when: decides whether an answer may be kept that was asked for a while ago.
//!
//! Notices come over TCP and answers perhaps on a link, so that one may overtake the other. Whoever asks takes a
//! [`Stamp`] before; the answer may be kept when nothing that it speaks of has changed since. A change that is seen only
//! later finds the answer among what is kept, and drops it there.
//!
//! Pure: no clock, no lock. Called by [`super::Cache`] under its lock.
//!
//! Invariants
//! - After a change of a table no stamp taken before it is current for that table; after a change of everything, or
//!   when a session begins, none is for any table.
//! - At most [`TABLES_MAX`] tables are told apart.

use std::collections::HashMap;

/// Changed tables that are told apart; when there are more, everything counts as changed, once.
const TABLES_MAX: usize = 4096;

/// A moment among the changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp(u64);

/// One session with the cell, told apart from every other one of this client; session ids of a cell that was started
/// anew repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SessionEpoch(u64);

/// How far a change went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Reach {
    Nothing,
    Table,
    Everything,
}

#[derive(Debug, Default)]
struct Table {
    changed: u64,
    /// The last one that was heard of.
    generation: Option<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Epochs {
    /// Changes so far.
    now: u64,
    /// When everything changed last.
    everything: u64,
    /// When the current session began.
    session: u64,
    tables: HashMap<String, Table>,
}

impl Epochs {
    /// Now, as seen by a question on a session; `None` when that session is not the current one: it hears of no
    /// changes any more.
    pub(super) fn stamp(&self, session: SessionEpoch) -> Option<Stamp> {
        (session.0 == self.session).then_some(Stamp(self.now))
    }

    /// Whether neither the table nor everything has changed since.
    pub(super) fn is_current(&self, table: &str, stamp: Stamp) -> bool {
        let changed = self.tables.get(table).map_or(0, |table| table.changed);
        changed.max(self.everything) <= stamp.0
    }

    /// A notice, or an own change, of a table; with its generation after that, where it is known.
    pub(super) fn table_changed(&mut self, table: &str, generation: Option<u64>) -> Reach {
        self.now += 1;
        let now = self.now;
        if let Some(known) = self.tables.get_mut(table) {
            *known = Table { changed: now, generation };
            return Reach::Table;
        }
        if self.tables.len() >= TABLES_MAX {
            self.everything_changed();
            return Reach::Everything;
        }
        self.tables.insert(table.into(), Table { changed: now, generation });
        Reach::Table
    }

    /// An answer says which generation of the table it is of. Another one than the last: its notice is still on its way.
    /// Taken for the notice, so that who has seen a new row does not see an old answer afterwards.
    pub(super) fn answered(&mut self, table: &str, generation: u64) -> Reach {
        let is_full = self.tables.len() >= TABLES_MAX;
        let Some(known) = self.tables.get_mut(table) else {
            if is_full {
                self.everything_changed();
                return Reach::Everything;
            }
            self.tables.insert(table.into(), Table { changed: 0, generation: Some(generation) });
            return Reach::Nothing;
        };
        match known.generation {
            Some(last) if last != generation => self.table_changed(table, Some(generation)),
            _ => {
                known.generation = Some(generation);
                Reach::Nothing
            }
        }
    }

    /// Nothing that was known can be relied on.
    pub(super) fn everything_changed(&mut self) {
        self.now += 1;
        self.everything = self.now;
        self.tables.clear();
    }

    /// A session begins; whatever happened since the last one was not heard of.
    pub(super) fn begin_session(&mut self) -> SessionEpoch {
        self.everything_changed();
        self.session = self.now;
        SessionEpoch(self.session)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Ask(u8),
        Changed(u8, Option<u64>),
        Answered(u8, u64),
        Everything,
        Session,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..4u8).prop_map(Step::Ask),
            3 => (0..4u8, proptest::option::of(0..5u64)).prop_map(|(table, generation)| Step::Changed(table, generation)),
            3 => (0..4u8, 0..5u64).prop_map(|(table, generation)| Step::Answered(table, generation)),
            1 => Just(Step::Everything),
            1 => Just(Step::Session),
        ]
    }

    proptest! {
        /// Against questions that are each told of every change.
        #[test]
        fn a_stamp_is_current_until_its_table_changes(steps in proptest::collection::vec(step(), 1..120)) {
            let mut epochs = Epochs::default();
            let mut session = epochs.begin_session();
            let mut generations: HashMap<u8, u64> = HashMap::new();
            let mut asked: Vec<(u8, Stamp, bool)> = Vec::new();
            for step in steps {
                let changed = match step {
                    Step::Ask(table) => {
                        asked.push((table, epochs.stamp(session).unwrap(), true));
                        None
                    }
                    Step::Changed(table, generation) => {
                        prop_assert_eq!(epochs.table_changed(&table.to_string(), generation), Reach::Table);
                        generations.remove(&table);
                        generations.extend(generation.map(|generation| (table, generation)));
                        Some(Some(table))
                    }
                    Step::Answered(table, generation) => {
                        let differs = generations.insert(table, generation).is_some_and(|known| known != generation);
                        let reach = if differs { Reach::Table } else { Reach::Nothing };
                        prop_assert_eq!(epochs.answered(&table.to_string(), generation), reach);
                        differs.then_some(Some(table))
                    }
                    Step::Everything => {
                        epochs.everything_changed();
                        generations.clear();
                        Some(None)
                    }
                    Step::Session => {
                        let before = session;
                        session = epochs.begin_session();
                        prop_assert_eq!(epochs.stamp(before), None);
                        generations.clear();
                        Some(None)
                    }
                };
                for (table, stamp, current) in &mut asked {
                    *current &= changed.is_none_or(|changed| changed.is_some_and(|changed| changed != *table));
                    prop_assert_eq!(epochs.is_current(&table.to_string(), *stamp), *current);
                }
            }
        }
    }

    #[test]
    fn more_tables_than_are_told_apart_change_everything_and_memory_stays_bounded() {
        let mut epochs = Epochs::default();
        let session = epochs.begin_session();
        for number in 0..TABLES_MAX {
            assert_eq!(epochs.answered(&format!("t{number}"), 1), Reach::Nothing);
        }
        let stamp = epochs.stamp(session).unwrap();
        assert!(epochs.is_current("t0", stamp));
        assert_eq!(epochs.answered("one more", 1), Reach::Everything);
        assert!(!epochs.is_current("t0", stamp) && epochs.tables.is_empty());
    }
}
