//! Decodes the parts of an input (row groups, generator parts, files) on several threads, in order.
//!
//! Owns [`OrderedParts`]. Called by every input format.
//!
//! Invariants
//! - Batches come out in the order of the parts and, within a part, in the part's order.
//! - Decoded bytes that wait are bounded: a part that is not the one being consumed waits when the
//!   budget is used up; the one being consumed may always hand on one batch at a time.
//! - Dropping the consumer ends all threads; a panic inside a decoder becomes an error naming the part.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use arrow_array::RecordBatch;
use hidb::{Error, ErrorCode, Result};

/// Rows, and how far into the input they reach.
#[derive(Clone, Debug)]
pub struct InputBatch {
    /// The rows, in the canonical arrays of the input's schema.
    pub rows: RecordBatch,
    /// Units (rows or bytes, see [`super::Input::total`]) of input that these rows used up.
    pub units: u64,
}

/// Receives the batches of one part; `Err(Stopped)` when nobody wants more.
pub(crate) type Emit<'a> = dyn FnMut(InputBatch) -> std::result::Result<(), Stopped> + 'a;

/// The consumer is gone.
#[derive(Debug)]
pub(crate) struct Stopped;

/// What decoding a part can end with.
pub(crate) enum PartError {
    /// The consumer is gone; nobody is to be told.
    Stopped,
    /// The input is bad.
    Failed(Error),
}

impl From<Stopped> for PartError {
    fn from(_: Stopped) -> Self {
        PartError::Stopped
    }
}

impl From<Error> for PartError {
    fn from(error: Error) -> Self {
        PartError::Failed(error)
    }
}

/// One part: its name for errors, and how to decode it.
pub(crate) struct Part {
    pub(crate) name: String,
    #[allow(clippy::type_complexity)]
    pub(crate) decode: Box<dyn FnOnce(&mut Emit<'_>) -> std::result::Result<(), PartError> + Send>,
}

#[derive(Default)]
struct State {
    parts: VecDeque<(usize, Part)>,
    /// Batches of the parts from `current` on.
    queues: VecDeque<Queue>,
    current: usize,
    waiting_bytes: usize,
    closed: bool,
}

#[derive(Default)]
struct Queue {
    batches: VecDeque<Result<InputBatch>>,
    finished: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    budget_bytes: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An iterator over the batches of all parts. Blocks: not for async tasks.
pub(crate) struct OrderedParts {
    shared: Arc<Shared>,
}

impl OrderedParts {
    /// Starts decoding with this many threads; at most about `budget_bytes` of batches wait.
    pub(crate) fn start(parts: Vec<Part>, threads: usize, budget_bytes: usize) -> Result<Self> {
        let threads = threads.clamp(1, parts.len().max(1));
        let queues = parts.iter().map(|_| Queue::default()).collect();
        let parts = parts.into_iter().enumerate().collect();
        let shared = Arc::new(Shared {
            state: Mutex::new(State { parts, queues, ..State::default() }),
            changed: Condvar::new(),
            budget_bytes,
        });
        let ordered = OrderedParts { shared };
        for index in 0..threads {
            let shared = ordered.shared.clone();
            std::thread::Builder::new()
                .name(format!("input-{index}"))
                .spawn(move || work(&shared))
                .map_err(|error| Error::new(ErrorCode::Io, format!("a decoding thread can't be started: {error}")))?;
        }
        Ok(ordered)
    }
}

fn work(shared: &Shared) {
    loop {
        let Some((index, part)) = shared.lock().parts.pop_front() else { return };
        let Part { name, decode } = part;
        let mut emit = |batch: InputBatch| push(shared, index, Ok(batch));
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| decode(&mut emit)));
        let error = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(PartError::Stopped)) => return,
            Ok(Err(PartError::Failed(error))) => Some(error),
            Err(_) => Some(Error::new(
                ErrorCode::MalformedInput,
                format!("{name}: the decoder gave up on malformed data: write the file again"),
            )),
        };
        if let Some(error) = error
            && push(shared, index, Err(error)).is_err()
        {
            return;
        }
        let mut state = shared.lock();
        let current = state.current;
        if let Some(queue) = state.queues.get_mut(index - current) {
            queue.finished = true;
        }
        shared.changed.notify_all();
    }
}

fn push(shared: &Shared, index: usize, batch: Result<InputBatch>) -> std::result::Result<(), Stopped> {
    let bytes = batch_bytes(&batch);
    let mut state = shared.lock();
    loop {
        if state.closed {
            return Err(Stopped);
        }
        let next_up = index == state.current && state.queues.front().is_some_and(|queue| queue.batches.is_empty());
        if next_up || state.waiting_bytes + bytes <= shared.budget_bytes {
            break;
        }
        state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    state.waiting_bytes += bytes;
    let current = state.current;
    if let Some(queue) = state.queues.get_mut(index - current) {
        queue.batches.push_back(batch);
    }
    shared.changed.notify_all();
    Ok(())
}

fn batch_bytes(batch: &Result<InputBatch>) -> usize {
    batch.as_ref().map_or(0, |batch| batch.rows.get_array_memory_size())
}

impl Iterator for OrderedParts {
    type Item = Result<InputBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut state = self.shared.lock();
        loop {
            let queue = state.queues.front_mut()?;
            if let Some(batch) = queue.batches.pop_front() {
                state.waiting_bytes -= batch_bytes(&batch);
                self.shared.changed.notify_all();
                return Some(batch);
            }
            if queue.finished {
                state.queues.pop_front();
                state.current += 1;
                self.shared.changed.notify_all();
                continue;
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for OrderedParts {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        state.parts.clear();
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{ArrayRef, Int64Array, cast::AsArray, types::Int64Type};

    fn batch(value: i64) -> InputBatch {
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values(std::iter::repeat_n(value, 1000)));
        InputBatch { rows: RecordBatch::try_from_iter([("a", column)]).unwrap(), units: 1 }
    }

    fn part(base: i64, batches: i64) -> Part {
        Part {
            name: format!("part {base}"),
            decode: Box::new(move |emit| {
                for index in 0..batches {
                    std::thread::sleep(std::time::Duration::from_micros((base as u64 * 37) % 300));
                    emit(batch(base + index))?;
                }
                Ok(())
            }),
        }
    }

    #[test]
    fn batches_come_in_the_order_of_the_parts_even_without_any_budget() {
        for budget in [0, 20_000, usize::MAX / 2] {
            let parts = (0..20).map(|index| part(index * 100, index % 5)).collect();
            let got: Vec<i64> = OrderedParts::start(parts, 4, budget)
                .unwrap()
                .map(|batch| batch.unwrap().rows.column(0).as_primitive::<Int64Type>().value(0))
                .collect();
            let expected: Vec<i64> = (0..20).flat_map(|index| (0..index % 5).map(move |n| index * 100 + n)).collect();
            assert_eq!(got, expected);
        }
    }

    #[test]
    fn a_panicking_decoder_is_an_error_that_names_its_part() {
        let broken = Part { name: "f.parquet, row group 3".into(), decode: Box::new(|_| panic!("index out of range")) };
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let outcome: Vec<_> = OrderedParts::start(vec![part(0, 1), broken], 2, 1 << 20).unwrap().collect();
        std::panic::set_hook(hook);
        let error = outcome[1].as_ref().unwrap_err();
        assert_eq!(error.code, ErrorCode::MalformedInput);
        assert!(error.message.contains("f.parquet, row group 3"));
    }
}
