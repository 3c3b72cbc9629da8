//! What a client remembers of its cell: schemas of tables, and, if asked, whole answers.
//!
//! Owns [`Cache`]; one per client, shared by its clones. Notices, own changes and lost connections come in through
//! [`Cache::observe`] and its neighbours, called by the connection's reader task before anybody else hears of them;
//! [`crate::scan`] looks answers up and keeps them.
//!
//! Invariants
//! - An answer or schema is kept only when no change of its table was heard of since it was asked for ([`epochs`]), and
//!   leaves when one is. So nothing is given out that is older than the last notice that was delivered.
//! - Nothing outlives its session: when the connection fails, or another one begins, everything is dropped.
//! - What is kept owns its memory: no slot of a ring and no receive buffer is held by it. Its bytes are counted and
//!   bounded; the least recently used goes first ([`lru`]).
//!
//! Cost: a hit is one lock, a hash of the question (a plan has some hundred bytes) and a clone of each batch; about a
//! microsecond, against a round trip. Off (the default) it costs one lock per question.

mod epochs;
mod lru;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use bytes::Bytes;
use hidb::aligned::AlignedBytes;
use hidb::{Result, Schema, image};

use crate::notice::Notice;
use epochs::{Epochs, Reach};
pub(crate) use epochs::{SessionEpoch, Stamp};
use lru::Lru;

/// Tables whose schemas are remembered.
const SCHEMAS_MAX: usize = 1024;

/// An answer that takes more than this part of the cache is not kept: it would push out everything else.
const ANSWER_PART: usize = 8;

/// What keeping an answer costs beside its batches: entries of three maps and their allocations.
const ANSWER_OVERHEAD_BYTES: usize = 512;

/// What a batch costs beside its buffers, per column: `ArrayRef`, array, buffers.
const COLUMN_OVERHEAD_BYTES: usize = 256;

/// Everything that an answer depends on, but for the rows of the table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AnswerKey {
    pub table: String,
    /// Of the schema that the plan was made for; 0 for plans that came ready made.
    pub schema_hash: u64,
    /// The Substrait plan.
    pub plan: Bytes,
    /// Encoded parameters of a prepared statement.
    pub parameters: Vec<u8>,
    /// The budget decides between an answer and an error, and whether groups come in parts.
    pub memory_bytes_max: u64,
}

impl AnswerKey {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.table.len() + self.plan.len() + self.parameters.len()
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub schema: SchemaRef,
    pub batches: Vec<RecordBatch>,
}

/// What the cache has done and holds; [`crate::Client::cache_statistics`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStatistics {
    /// Questions answered from the cache.
    pub hits: u64,
    /// Questions that could have been, and went to the cell.
    pub misses: u64,
    /// Answers taken into the cache.
    pub kept: u64,
    /// Answers that had to go for others, for want of room.
    pub evicted: u64,
    /// Answers dropped because their table changed, or everything did.
    pub invalidated: u64,
    /// Answers in the cache now.
    pub answers: usize,
    /// What they take, in bytes: batches, keys and administration.
    pub bytes: usize,
    /// Schemas in the cache now.
    pub schemas: usize,
}

#[derive(Debug)]
struct State {
    epochs: Epochs,
    schemas: Lru<String, Arc<Schema>>,
    answers: Lru<Arc<AnswerKey>, Arc<Answer>>,
    /// Keys of the answers about each table.
    by_table: HashMap<String, HashSet<Arc<AnswerKey>>>,
    counts: CacheStatistics,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Cache {
    bytes_max: usize,
    state: Mutex<State>,
}

impl Cache {
    /// An empty one, for answers of at most `bytes_max` together; 0: none.
    pub(crate) fn new(bytes_max: usize) -> Self {
        let state = State {
            epochs: Epochs::default(),
            schemas: Lru::new(SCHEMAS_MAX),
            answers: Lru::new(bytes_max),
            by_table: HashMap::new(),
            counts: CacheStatistics::default(),
        };
        Cache { bytes_max, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether answers are kept at all.
    pub(crate) fn keeps_answers(&self) -> bool {
        self.bytes_max > 0
    }

    /// A connection is made: what was known before is dropped.
    pub(crate) fn begin_session(&self) -> SessionEpoch {
        let mut state = self.lock();
        state.drop_everything();
        state.epochs.begin_session()
    }

    /// To be taken before anything is asked that may be kept.
    pub(crate) fn stamp(&self, session: SessionEpoch) -> Option<Stamp> {
        self.lock().epochs.stamp(session)
    }

    /// Takes in what the cell said, or what became of the connection.
    pub(crate) fn observe(&self, notice: &Notice) {
        let mut state = self.lock();
        match notice {
            Notice::DataChanged { table, schema_hash, generation }
            | Notice::SchemaChanged { table, schema_hash, generation } => {
                if state.schemas.get(table).is_some_and(|schema| schema.hash() != *schema_hash) {
                    state.schemas.remove(table);
                }
                state.table_changed(table, Some(*generation));
            }
            Notice::TableDropped { table } => {
                state.schemas.remove(table);
                state.table_changed(table, None);
            }
            Notice::EverythingChanged(_) => state.everything_changed(),
            Notice::CellDraining => {}
        }
    }

    /// This client has changed a table, or may have.
    pub(crate) fn changed_here(&self, table: &str) {
        let mut state = self.lock();
        state.schemas.remove(table);
        state.table_changed(table, None);
    }

    /// The first part of an answer has come: which generation of the table it is of; 0: the cell does not say.
    pub(crate) fn answered(&self, table: &str, generation: u64) {
        if generation == 0 || !self.keeps_answers() {
            return;
        }
        let mut state = self.lock();
        let reach = state.epochs.answered(table, generation);
        state.drop_reached(reach, table);
    }

    /// A table's columns.
    pub(crate) fn schema(&self, table: &str) -> Option<Arc<Schema>> {
        self.lock().schemas.get(table).cloned()
    }

    /// Keeps a table's columns, unless they may have changed since they were asked for.
    pub(crate) fn keep_schema(&self, table: &str, schema: Arc<Schema>, stamp: Option<Stamp>) {
        let mut state = self.lock();
        if stamp.is_some_and(|stamp| state.epochs.is_current(table, stamp)) {
            state.schemas.insert(table.into(), schema, 1);
        }
    }

    /// Forgets a table's columns: the cell said that they are stale.
    pub(crate) fn forget_schema(&self, table: &str) {
        self.lock().schemas.remove(table);
    }

    /// The answer to a question.
    pub(crate) fn answer(&self, key: &AnswerKey) -> Option<Arc<Answer>> {
        let mut state = self.lock();
        let found = state.answers.get(key).cloned();
        match found {
            Some(_) => state.counts.hits += 1,
            None => state.counts.misses += 1,
        }
        found
    }

    fn keep_answer(&self, key: &Arc<AnswerKey>, answer: Answer, bytes: usize, stamp: Stamp) {
        let mut state = self.lock();
        if !state.epochs.is_current(&key.table, stamp) {
            return;
        }
        state.counts.kept += 1;
        state.by_table.entry(key.table.clone()).or_default().insert(key.clone());
        let gone = state.answers.insert(key.clone(), Arc::new(answer), bytes);
        state.counts.evicted += gone.len() as u64;
        for key in gone {
            state.unlist(&key);
        }
    }

    /// What it has done and holds.
    pub(crate) fn statistics(&self) -> CacheStatistics {
        let state = self.lock();
        CacheStatistics {
            answers: state.answers.len(),
            bytes: state.answers.cost(),
            schemas: state.schemas.len(),
            ..state.counts
        }
    }
}

impl State {
    fn table_changed(&mut self, table: &str, generation: Option<u64>) {
        let reach = self.epochs.table_changed(table, generation);
        self.drop_reached(reach, table);
    }

    fn everything_changed(&mut self) {
        self.epochs.everything_changed();
        self.drop_everything();
    }

    fn drop_reached(&mut self, reach: Reach, table: &str) {
        match reach {
            Reach::Nothing => {}
            Reach::Table => {
                for key in self.by_table.remove(table).unwrap_or_default() {
                    if self.answers.remove(&key).is_some() {
                        self.counts.invalidated += 1;
                    }
                }
            }
            Reach::Everything => self.drop_everything(),
        }
    }

    fn drop_everything(&mut self) {
        self.counts.invalidated += self.answers.len() as u64;
        self.answers.clear();
        self.by_table.clear();
        self.schemas.clear();
    }

    fn unlist(&mut self, key: &AnswerKey) {
        if let Some(keys) = self.by_table.get_mut(&key.table) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_table.remove(&key.table);
            }
        }
    }
}

/// A question whose answer may be kept.
#[derive(Clone)]
pub(crate) struct Keeping {
    pub cache: Arc<Cache>,
    pub key: Arc<AnswerKey>,
    pub stamp: Stamp,
}

/// An answer that is put aside while it comes.
pub(crate) struct Keeper {
    keeping: Keeping,
    batches: Vec<RecordBatch>,
    bytes: usize,
}

impl Keeper {
    pub(crate) fn new(keeping: Keeping) -> Self {
        let bytes = keeping.key.bytes() + ANSWER_OVERHEAD_BYTES;
        Keeper { keeping, batches: Vec::new(), bytes }
    }

    /// Puts a batch aside: copied out of the memory it was received in, which may be a slot, or much longer than the
    /// batch. `None` when the answer is too long to be kept.
    ///
    /// # Errors
    /// `Protocol` when the message is none.
    pub(crate) fn put_aside(&mut self, message: &[u8], schema: &SchemaRef) -> Result<Option<RecordBatch>> {
        self.bytes += message.len() + COLUMN_OVERHEAD_BYTES * (schema.fields().len() + 1);
        if self.bytes > self.keeping.cache.bytes_max / ANSWER_PART {
            return Ok(None);
        }
        let batch = image::read_image(AlignedBytes::copy_of(message).into_bytes(), schema)?;
        self.batches.push(batch.clone());
        Ok(Some(batch))
    }

    /// The answer is whole.
    pub(crate) fn finish(self, schema: SchemaRef) {
        let Keeper { keeping: Keeping { cache, key, stamp }, mut batches, bytes } = self;
        batches.retain(|batch| batch.num_rows() > 0);
        batches.shrink_to_fit();
        cache.keep_answer(&key, Answer { schema, batches }, bytes, stamp);
    }
}

#[cfg(test)]
mod tests;
