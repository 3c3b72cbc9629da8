//! Loads: batches sent within a window, kept until they are durable, resumed after a lost connection.
//!
//! Owns [`LoadWriter`]. Called by engines and by `heliostat load`.
//!
//! Invariants
//! - Batch numbers start at 0 and have no gaps; a batch is kept until the cell says it is durable.
//! - Bytes sent and not yet taken in by the cell never exceed its window (except for one single batch).
//! - After a reconnect, exactly the batches the cell does not hold are sent again.
//! - Dropped without commit, a load is aborted as far as the connection allows.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use arrow_ipc::writer::StreamEncoder;
use bytes::Bytes;
use hidb::frame::{FrameKind, PAYLOAD_BYTES_MAX};
use hidb::order::TableOrder;
use hidb::{Error, ErrorCode, ROW_GROUP_ROWS, Result, Schema, arrow_mapping, convert, proto};

use crate::client::{Backoff, Client, is_transient, within};
use crate::connection::{Connection, FEATURE_DECIMAL64, FEATURE_ORDER, Request, decode, unexpected};

/// Rows of one batch on the wire. [`ROW_GROUP_ROWS`] is a multiple, so that row groups come out full.
pub const LOAD_BATCH_ROWS: usize = 16_384;

/// Bytes of one batch on the wire, unless a single row is longer.
pub const LOAD_BATCH_BYTES: usize = 4 << 20;

/// The window when the cell names none.
const WINDOW_BYTES_DEFAULT: u64 = 8 << 20;

/// What a load does with the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadMode {
    /// Makes the table; refuses one that exists.
    Create,
    /// Adds rows to the table; refuses one that does not exist.
    Append,
    /// Puts the rows in place of the table's, at commit, or makes it.
    Replace,
}

/// Where a load stands, as the cell last said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadProgress {
    /// Batches from 0 that survive a crash of the cell.
    pub durable_batches: u64,
    /// Rows in them.
    pub durable_rows: u64,
    /// What they take on the volume.
    pub stored_bytes: u64,
    /// Whether the rows are visible.
    pub committed: bool,
    /// Whether the load was given up.
    pub aborted: bool,
}

struct Encoded {
    number: u64,
    rows: u64,
    bytes: Bytes,
}

/// A load in progress.
pub struct LoadWriter {
    client: Client,
    id: [u8; 16],
    begin: proto::LoadBegin,
    schema: Schema,
    wire: Option<Wire>,
    next_batch: u64,
    unacknowledged: VecDeque<Encoded>,
    unacknowledged_bytes: usize,
    progress: LoadProgress,
    failed: Option<Error>,
    timeout: Option<Duration>,
}

/// The load's side of one connection.
struct Wire {
    request: Request,
    encoder: StreamEncoder,
    decimal64: bool,
    sent_bytes: u64,
    received_bytes: u64,
    window_bytes: u64,
}

impl std::fmt::Debug for LoadWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadWriter")
            .field("table", &self.begin.table)
            .field("next_batch", &self.next_batch)
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Begins a load of rows of this schema into a table.
    pub async fn load(&self, table: &str, schema: &Schema, mode: LoadMode) -> Result<LoadWriter> {
        self.load_in_order(table, schema, mode, None).await
    }

    /// Begins a load into a table that keeps its rows in this order. A table that exists is appended to in its own order,
    /// which this must be; `None` leaves it to the table.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidSchema`] when the table has another order, [`ErrorCode::UnsupportedVersion`] when the cell
    /// knows none.
    pub async fn load_in_order(
        &self,
        table: &str,
        schema: &Schema,
        mode: LoadMode,
        order: Option<&TableOrder>,
    ) -> Result<LoadWriter> {
        self.begin_load(*uuid::Uuid::new_v4().as_bytes(), table, schema, mode, order).await
    }

    /// Begins a load under an id of the caller's, or takes one up again that was interrupted: then
    /// [`LoadWriter::progress`] says how many batches need not be sent again, and the first
    /// [`LoadWriter::write`] is batch number `durable_batches`.
    pub async fn load_with_id(&self, id: [u8; 16], table: &str, schema: &Schema, mode: LoadMode) -> Result<LoadWriter> {
        self.begin_load(id, table, schema, mode, None).await
    }

    async fn begin_load(
        &self,
        id: [u8; 16],
        table: &str,
        schema: &Schema,
        mode: LoadMode,
        order: Option<&TableOrder>,
    ) -> Result<LoadWriter> {
        use proto::load_begin::Mode;
        let begin = proto::LoadBegin {
            load_id: Bytes::copy_from_slice(&id),
            table: table.to_string(),
            schema: Some(convert::definition_to_proto(schema, order)),
            mode: match mode {
                LoadMode::Create => Mode::Create,
                LoadMode::Append => Mode::Append,
                LoadMode::Replace => Mode::Replace,
            }
            .into(),
            shards: 0,
        };
        let mut writer = LoadWriter {
            client: self.clone(),
            id,
            begin,
            schema: schema.clone(),
            wire: None,
            next_batch: 0,
            unacknowledged: VecDeque::new(),
            unacknowledged_bytes: 0,
            progress: LoadProgress::default(),
            failed: None,
            timeout: self.options().timeout,
        };
        writer.ensure_wire().await?;
        writer.next_batch = writer.progress.durable_batches;
        Ok(writer)
    }
}

impl LoadWriter {
    /// The load's id, for taking it up again.
    pub fn id(&self) -> [u8; 16] {
        self.id
    }

    /// The schema its rows have.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Where the load stands, as the cell last said.
    pub fn progress(&self) -> LoadProgress {
        self.progress
    }

    /// Batches sent so far (on the wire, after slicing).
    pub fn batches(&self) -> u64 {
        self.next_batch
    }

    /// Sends rows: casts them to the load's schema, slices them, waits for the window. Returns when the
    /// rows are on their way; they are durable when [`LoadWriter::progress`] says so, and visible after
    /// [`LoadWriter::commit`].
    pub async fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.check_failed()?;
        let outcome = self.write_batch(batch).await;
        // A refused value leaves the load as it was, but its caller can't go on as if it were sent.
        self.remember(outcome)
    }

    async fn write_batch(&mut self, batch: &RecordBatch) -> Result<()> {
        let canonical = arrow_mapping::adapt_batch(batch, &self.schema)?;
        for slice in slice_batch(&canonical) {
            self.send_rows(&slice).await?;
        }
        Ok(())
    }

    async fn send_rows(&mut self, slice: &RecordBatch) -> Result<()> {
        loop {
            self.ensure_wire().await?;
            let limit = self.client.options().load_unacknowledged_bytes_max;
            if self.unacknowledged_bytes >= limit {
                match self.absorb(true).await {
                    Err(error) if is_transient(error.code) => self.lose_wire(&error),
                    outcome => outcome?,
                }
                continue;
            }
            break;
        }
        let Some(wire) = &mut self.wire else { return Err(disconnected()) };
        let bytes = wire.encode(slice, &self.schema)?;
        self.unacknowledged_bytes += bytes.len();
        self.unacknowledged.push_back(Encoded { number: self.next_batch, rows: slice.num_rows() as u64, bytes });
        self.next_batch += 1;
        match self.send_encoded(self.unacknowledged.len() - 1).await {
            // It is kept: the next call sends it again.
            Err(error) if is_transient(error.code) => {
                self.lose_wire(&error);
                self.ensure_wire().await
            }
            outcome => outcome,
        }
    }

    /// Sends one kept batch, in frames, within the window.
    async fn send_encoded(&mut self, index: usize) -> Result<()> {
        let Encoded { number, rows, bytes } = &self.unacknowledged[index];
        let (number, rows, bytes) = (*number, *rows, bytes.clone());
        loop {
            self.absorb(false).await?;
            let Some(wire) = &self.wire else { return Err(disconnected()) };
            let ahead = wire.sent_bytes.saturating_sub(wire.received_bytes);
            if ahead == 0 || ahead + bytes.len() as u64 <= wire.window_bytes {
                break;
            }
            self.absorb(true).await?;
        }
        let load_id = self.load_id();
        let Some(wire) = &mut self.wire else { return Err(disconnected()) };
        let mut offset = 0;
        while offset < bytes.len() {
            let end = bytes.len().min(offset + PAYLOAD_BYTES_MAX);
            let body = proto::LoadBatch { load_id: load_id.clone(), batch: number, more: end < bytes.len(), rows };
            let (request, connection) = (wire.request.id(), wire.request.connection());
            connection.send_payload(FrameKind::LoadBatch, request, &body, bytes.slice(offset..end)).await?;
            wire.sent_bytes += (end - offset) as u64;
            offset = end;
        }
        Ok(())
    }

    /// Takes in what the cell said; with `wait` at least one message.
    async fn absorb(&mut self, wait: bool) -> Result<()> {
        let mut waiting = wait;
        loop {
            let Some(wire) = &mut self.wire else { return Err(disconnected()) };
            let frame = if waiting {
                let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
                within(deadline, wire.request.next()).await?
            } else {
                match wire.request.try_next() {
                    Some(frame) => frame?,
                    None => return Ok(()),
                }
            };
            waiting = false;
            if frame.kind != FrameKind::LoadState {
                return Err(unexpected(frame.kind, "LoadState"));
            }
            let state: proto::LoadState = decode(&frame)?;
            self.note(&state);
        }
    }

    fn note(&mut self, state: &proto::LoadState) {
        use proto::load_state::State;
        if let Some(wire) = &mut self.wire {
            wire.received_bytes = wire.received_bytes.max(state.received_bytes);
        }
        let was_committed = self.progress.committed;
        self.progress = LoadProgress {
            durable_batches: self.progress.durable_batches.max(state.durable_batches),
            durable_rows: self.progress.durable_rows.max(state.durable_rows),
            stored_bytes: self.progress.stored_bytes.max(state.stored_bytes),
            committed: self.progress.committed || state.state() == State::Committed,
            aborted: self.progress.aborted || state.state() == State::Aborted,
        };
        if self.progress.committed && !was_committed {
            // The notice may come later than this.
            self.client.cache().changed_here(&self.begin.table);
        }
        while self.unacknowledged.front().is_some_and(|batch| batch.number < self.progress.durable_batches) {
            if let Some(batch) = self.unacknowledged.pop_front() {
                self.unacknowledged_bytes -= batch.bytes.len();
            }
        }
    }

    fn lose_wire(&mut self, error: &Error) {
        tracing::warn!(%error, "load interrupted; it resumes at batch {}", self.progress.durable_batches);
        self.wire = None;
    }

    /// Makes sure the load is open on a live connection; after a loss sends again what the cell lacks.
    async fn ensure_wire(&mut self) -> Result<()> {
        let give_up = Instant::now() + self.client.options().retry_for;
        let mut backoff = Backoff::default();
        while self.wire.is_none() {
            let resumed = match self.open_wire().await {
                Ok(()) => self.send_again().await,
                Err(error) => Err(error),
            };
            if let Err(error) = resumed {
                self.wire = None;
                if !is_transient(error.code) || !backoff.pause(Some(give_up)).await {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    async fn open_wire(&mut self) -> Result<()> {
        let connection = self.client.connection().await?;
        let has_order = self.begin.schema.as_ref().is_some_and(|schema| schema.order.is_some());
        if has_order && !connection.has_feature(FEATURE_ORDER) {
            let text = "this cell is too old to keep rows in an order: load without one, or upgrade the cell";
            return Err(Error::new(ErrorCode::UnsupportedVersion, text));
        }
        let decimal64 = connection.has_feature(FEATURE_DECIMAL64);
        let window = connection.hello().limits.map_or(0, |limits| u64::from(limits.load_window_bytes));
        let mut request = connection.request(FrameKind::LoadBegin, &self.begin, None, Some(self.id))?;
        let deadline = self.client.deadline(self.timeout);
        let frame = within(deadline, request.next()).await?;
        if frame.kind != FrameKind::LoadState {
            return Err(unexpected(frame.kind, "LoadState"));
        }
        let state: proto::LoadState = decode(&frame)?;
        self.wire = Some(Wire {
            request,
            encoder: encoder(&self.schema, decimal64)?,
            decimal64,
            sent_bytes: 0,
            received_bytes: 0,
            window_bytes: if window == 0 { WINDOW_BYTES_DEFAULT } else { window },
        });
        self.note(&state);
        if self.progress.aborted {
            return Err(Error::new(ErrorCode::LoadConflict, "the load was aborted: begin a new one"));
        }
        Ok(())
    }

    async fn send_again(&mut self) -> Result<()> {
        if self.progress.committed {
            return Ok(());
        }
        if let Some(first) = self.unacknowledged.front()
            && first.number > self.progress.durable_batches
        {
            return Err(Error::new(
                ErrorCode::LoadConflict,
                format!(
                    "the cell holds {} batches of the load, but {} were acknowledged: begin a new load",
                    self.progress.durable_batches, first.number
                ),
            ));
        }
        // Positions shift while batches become durable, so each is looked up by its number.
        let mut number = self.progress.durable_batches;
        while number < self.next_batch {
            match self.unacknowledged.iter().position(|batch| batch.number == number) {
                Some(index) => self.send_encoded(index).await?,
                None if number < self.progress.durable_batches => {}
                None => return Err(disconnected()),
            }
            number += 1;
        }
        Ok(())
    }

    /// Asks the cell where the load stands.
    pub async fn state(&mut self) -> Result<LoadProgress> {
        self.check_failed()?;
        let body = proto::LoadQuery { load_id: self.load_id() };
        let state: proto::LoadState = self
            .client
            .retrying(self.client.deadline(self.timeout), |connection: Arc<Connection>| {
                let body = body.clone();
                async move {
                    connection.request(FrameKind::LoadQuery, &body, None, None)?.answer(FrameKind::LoadState).await
                }
            })
            .await?;
        // Bytes taken in are counted per connection; the query may have gone over another one.
        self.note(&proto::LoadState { received_bytes: 0, ..state });
        Ok(self.progress)
    }

    /// Makes the rows visible, all at once. Safe to call again after an error: a load commits once.
    pub async fn commit(&mut self) -> Result<LoadProgress> {
        self.check_failed()?;
        let give_up = Instant::now() + self.client.options().retry_for;
        let mut backoff = Backoff::default();
        while !self.progress.committed {
            let attempt = async {
                self.ensure_wire().await?;
                if self.progress.committed {
                    return Ok(());
                }
                let Some(wire) = &self.wire else { return Err(disconnected()) };
                let body = proto::LoadCommit { load_id: self.load_id(), batches: self.next_batch };
                wire.request.connection().post(FrameKind::LoadCommit, wire.request.id(), &body)?;
                while !self.progress.committed {
                    self.absorb(true).await?;
                    if self.progress.aborted {
                        return Err(Error::new(ErrorCode::LoadConflict, "the load was aborted: begin a new one"));
                    }
                }
                Ok(())
            };
            match attempt.await {
                Err(error) if is_transient(error.code) => {
                    self.lose_wire(&error);
                    if !backoff.pause(Some(give_up)).await {
                        return Err(error);
                    }
                }
                Err(error) => return self.remember(Err(error)),
                Ok(()) => {}
            }
        }
        Ok(self.progress)
    }

    /// Gives the load up; the cell frees what it held.
    pub async fn abort(mut self) -> Result<()> {
        let body = proto::LoadAbort { load_id: self.load_id() };
        let deadline = Some(Instant::now() + self.timeout.unwrap_or(Duration::from_secs(10)));
        self.progress.aborted = true;
        self.wire = None;
        let answer = self
            .client
            .retrying(deadline, |connection: Arc<Connection>| {
                let body = body.clone();
                async move {
                    connection
                        .request(FrameKind::LoadAbort, &body, None, None)?
                        .answer::<proto::LoadState>(FrameKind::LoadState)
                        .await
                }
            })
            .await;
        match answer {
            // Never begun, or given up already by the cell.
            Err(error) if error.code == ErrorCode::UnknownLoad => Ok(()),
            other => other.map(drop),
        }
    }

    fn load_id(&self) -> Bytes {
        Bytes::copy_from_slice(&self.id)
    }

    fn check_failed(&self) -> Result<()> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    fn remember<T>(&mut self, outcome: Result<T>) -> Result<T> {
        if let Err(error) = &outcome {
            self.failed = Some(error.clone());
        }
        outcome
    }
}

impl Drop for LoadWriter {
    fn drop(&mut self) {
        if let Some(wire) = &self.wire
            && !self.progress.committed
            && !self.progress.aborted
        {
            let body = proto::LoadAbort { load_id: self.load_id() };
            let _ = wire.request.connection().post_request(FrameKind::LoadAbort, &body);
        }
    }
}

impl Wire {
    fn encode(&mut self, batch: &RecordBatch, schema: &Schema) -> Result<Bytes> {
        let invalid = |error: arrow_schema::ArrowError| {
            Error::new(ErrorCode::Internal, format!("a batch can't be encoded as Arrow IPC: {error}"))
        };
        let widened;
        let batch = if self.decimal64 {
            batch
        } else {
            widened = widen_decimals(batch, schema).map_err(invalid)?;
            &widened
        };
        let buffers = self.encoder.encode(batch).map_err(invalid)?;
        let mut bytes = Vec::with_capacity(buffers.iter().map(|buffer| buffer.len()).sum());
        for buffer in &buffers {
            bytes.extend_from_slice(buffer);
        }
        Ok(bytes.into())
    }
}

/// An encoder whose schema message is already out: only record batches follow.
fn encoder(schema: &Schema, decimal64: bool) -> Result<StreamEncoder> {
    let failed = |error: arrow_schema::ArrowError| {
        Error::new(ErrorCode::UnsupportedType, format!("the schema has no Arrow IPC form: {error}"))
    };
    let arrow = arrow_mapping::to_arrow_schema(schema, decimal64);
    let mut encoder = StreamEncoder::try_new(&arrow).map_err(failed)?;
    encoder.encode(&RecordBatch::new_empty(arrow)).map_err(failed)?;
    Ok(encoder)
}

fn widen_decimals(batch: &RecordBatch, schema: &Schema) -> Result<RecordBatch, arrow_schema::ArrowError> {
    let wide = arrow_mapping::to_arrow_schema(schema, false);
    let columns = batch
        .columns()
        .iter()
        .zip(wide.fields())
        .map(|(column, field)| arrow_cast::cast(column, field.data_type()))
        .collect::<Result<Vec<_>, _>>()?;
    RecordBatch::try_new(wide, columns)
}

fn disconnected() -> Error {
    Error::new(ErrorCode::Unavailable, "the connection to the cell was lost: try again")
}

/// Cuts a batch into pieces of at most [`LOAD_BATCH_ROWS`] rows and about [`LOAD_BATCH_BYTES`] bytes.
fn slice_batch(batch: &RecordBatch) -> Vec<RecordBatch> {
    const { assert!(ROW_GROUP_ROWS.is_multiple_of(LOAD_BATCH_ROWS)) };
    let mut pieces = Vec::new();
    let mut start = 0;
    while start < batch.num_rows() {
        let mut rows = LOAD_BATCH_ROWS.min(batch.num_rows() - start);
        // Halving finds a piece that fits, however unevenly the bytes are spread over the rows.
        while rows > 1 && slice_bytes(batch, start, rows) > LOAD_BATCH_BYTES {
            rows = rows.div_ceil(2);
        }
        pieces.push(batch.slice(start, rows));
        start += rows;
    }
    pieces
}

/// About how many bytes these rows take on the wire.
fn slice_bytes(batch: &RecordBatch, start: usize, rows: usize) -> usize {
    batch.columns().iter().map(|column| column.slice(start, rows).to_data().get_slice_memory_size().unwrap_or(0)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{Array, ArrayRef, StringArray};

    #[test]
    fn wide_rows_are_sliced_by_bytes_and_long_batches_by_rows() {
        let long: ArrayRef = Arc::new(arrow_array::Int64Array::from_iter_values(0..40_000));
        let batch = RecordBatch::try_from_iter([("a", long)]).unwrap();
        let rows: Vec<usize> = slice_batch(&batch).iter().map(RecordBatch::num_rows).collect();
        assert_eq!(rows, [16_384, 16_384, 7_232]);

        let text = "x".repeat(1 << 20);
        let wide: ArrayRef = Arc::new(StringArray::from_iter_values((0..40).map(|_| text.as_str())));
        let pieces = slice_batch(&RecordBatch::try_from_iter([("a", wide)]).unwrap());
        assert_eq!(pieces.iter().map(RecordBatch::num_rows).sum::<usize>(), 40);
        for piece in &pieces {
            assert!(piece.num_rows() == 1 || slice_bytes(piece, 0, piece.num_rows()) <= LOAD_BATCH_BYTES);
            assert!(!piece.column(0).is_empty());
        }
    }
}
