//! Loads: numbered batches in, durable segments out, in order and resumable.
//!
//! Owns [`LoadWriter`], what one connection writes a load through, and the requests that need no writer. Committing
//! and aborting are in `commit`.
//!
//! Invariants
//! - A batch counts as durable only after the segment with its last row is flushed and in the manifest, and then all
//!   batches before it are durable too.
//! - No batch is taken whose vectors hold NaN or infinity.
//! - A row group holds whole batches, and so does a run of row groups in a table that has an order. They enter segments
//!   in the order of their batches, whatever the order in which their encoding ends; all segments of a run become
//!   durable together.
//! - One connection writes a load: the last that began it. Writers of earlier ones fail with `LoadConflict`.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use arrow_array::RecordBatch;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use heliostat_segment::{EncodedRowGroup, RowIds, RowOrder, SegmentIdentity, encode_row_group};
use hidb::order::TableOrder;
use hidb::{ErrorCode, ROW_GROUP_RAW_BYTES_MAX, ROW_GROUP_ROWS, Schema};

use super::error::{Result, StoreError};
use super::objects::WrittenSegment;
use super::ordering::{RunRowIds, RunShare, bytes_of, encode_run, row_order};
use super::{LoadMode, LoadState, SEGMENT_ROW_GROUPS_MAX, Store, finite, unix_seconds};
use crate::device::Device;
use crate::manifest::records::load_text;
use crate::manifest::{Batch, LoadRecord, ObjectState};
use crate::volume::ObjectKind;
use crate::workers::offload;

/// A load to begin.
#[derive(Clone, Debug)]
pub struct LoadRequest {
    /// Chosen by the client.
    pub load_id: [u8; 16],
    /// The table's name.
    pub table: String,
    /// The schema of the batches (and of the table, when it is made).
    pub schema: Schema,
    /// The order that its rows are wanted in; `None`: that of the table, if there is one.
    pub order: Option<TableOrder>,
    /// How it treats the table.
    pub mode: LoadMode,
    /// Shards of a table that is made; 0: the default.
    pub shards: u32,
}

/// Where a load stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadStatus {
    /// Open, committed or aborted.
    pub state: LoadState,
    /// Batches `0..n` are durable.
    pub durable_batches: u64,
    /// Rows in them.
    pub durable_rows: u64,
    /// Bytes they take on the volume.
    pub stored_bytes: u64,
}

impl LoadStatus {
    pub(super) fn of(record: &LoadRecord) -> Self {
        LoadStatus {
            state: record.state(),
            durable_batches: record.durable_batches,
            durable_rows: record.durable_rows,
            stored_bytes: record.stored_bytes,
        }
    }
}

/// Memory that the buffered batches of a load may keep alive; several times what their rows take at most.
const RETAINED_BYTES_MAX: usize = 4 * ROW_GROUP_RAW_BYTES_MAX;

/// A row group, or a run of them, and where it ends in the load.
struct Piece {
    row_groups: Vec<EncodedRowGroup>,
    batches_end: u64,
}

type PieceFuture = Pin<Box<dyn Future<Output = Result<Piece, hidb::Error>>>>;

/// When the rows at hand are encoded.
struct Limits {
    rows: usize,
    bytes: usize,
    retained_bytes: usize,
    /// Pieces in encoding meanwhile.
    in_flight: usize,
}

/// What one connection writes a load through. Not `Send`: it belongs to the session's core.
pub struct LoadWriter {
    store: Arc<Store>,
    load_id: [u8; 16],
    epoch: u64,
    schema: Arc<Schema>,
    order: Option<(RowOrder, RunShare)>,
    table_id: u64,
    shards: u32,
    /// The number the next batch must have.
    next_batch: u64,
    /// The number of its first row, counted from the load's first.
    next_row: u64,
    buffered: Vec<RecordBatch>,
    buffered_rows: usize,
    buffered_bytes: usize,
    retained_bytes: usize,
    encoding: FuturesOrdered<PieceFuture>,
    ready: VecDeque<Piece>,
    /// Why the writer takes no more.
    failed: Option<StoreError>,
}

impl std::fmt::Debug for LoadWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoadWriter({}, next batch {})", load_text(&self.load_id), self.next_batch)
    }
}

impl Store {
    /// Begins a load, or takes over one that another connection began: then the status says from which batch on to
    /// send. A load that is finished gives its status and no writer.
    ///
    /// # Errors
    /// [`StoreError::TableExists`], [`StoreError::UnknownTable`], [`StoreError::StaleSchema`],
    /// [`StoreError::LoadConflict`] when the load was begun otherwise, or the manifest's.
    pub async fn load_begin(self: &Arc<Self>, request: LoadRequest) -> Result<(LoadStatus, Option<LoadWriter>)> {
        let changes = self.change().await?;
        let existing = self.state().manifest.loads.get(&request.load_id).cloned();
        let wanted = hidb::convert::definition_to_proto(&request.schema, request.order.as_ref());
        let record = match existing {
            Some(record) => {
                let same_schema = |schema: &hidb::proto::TableSchema| {
                    schema.columns == wanted.columns && (wanted.order.is_none() || schema.order == wanted.order)
                };
                let same = record.table_name == request.table
                    && record.mode() == request.mode
                    && record.schema.as_ref().is_some_and(same_schema);
                if !same {
                    return Err(conflict(&request.load_id, "it was begun with another table, mode, schema or order"));
                }
                if record.state() != LoadState::Open {
                    return Ok((LoadStatus::of(&record), None));
                }
                record
            }
            None => {
                let (table_id, shards) = self.load_target(&request)?;
                let order = self.order_of_load(&request)?;
                let record = LoadRecord {
                    state: LoadState::Open as i32,
                    mode: request.mode as i32,
                    table_name: request.table.clone(),
                    table_id: table_id.unwrap_or_else(|| changes.take_id()),
                    schema: Some(hidb::convert::definition_to_proto(&request.schema, order.as_ref())),
                    shards,
                    changed_unix_s: unix_seconds(),
                    ..Default::default()
                };
                let mut batch = Batch::new();
                batch.put_load(&request.load_id, &record);
                changes.write(batch).await?;
                record
            }
        };
        let epoch = {
            let mut state = self.state();
            let epoch = state.load_epochs.entry(request.load_id).or_insert(0);
            *epoch += 1;
            *epoch
        };
        let order = self.read_order(record.schema.as_ref(), &request.schema, &request.table)?;
        let writer = LoadWriter {
            store: Arc::clone(self),
            load_id: request.load_id,
            epoch,
            order: order.map(|order| (row_order(&order, &request.schema), self.runs.share())),
            schema: Arc::new(request.schema),
            table_id: record.table_id,
            shards: record.shards,
            next_batch: record.durable_batches,
            next_row: record.durable_rows,
            buffered: Vec::new(),
            buffered_rows: 0,
            buffered_bytes: 0,
            retained_bytes: 0,
            encoding: FuturesOrdered::new(),
            ready: VecDeque::new(),
            failed: None,
        };
        Ok((LoadStatus::of(&record), Some(writer)))
    }

    /// The table a new load goes to: its id, unless it is to be made, and its shards.
    fn load_target(&self, request: &LoadRequest) -> Result<(Option<u64>, u32)> {
        let table = self.state().table_named(&request.table).cloned();
        match (request.mode, table) {
            (LoadMode::Create, Some(_)) => Err(StoreError::TableExists { name: request.table.clone() }),
            (LoadMode::Append, None) => Err(StoreError::UnknownTable { name: request.table.clone() }),
            (LoadMode::Append, Some(table)) => {
                let expected = self.read_schema(table.schema.as_ref(), &table.name)?.hash();
                let found = request.schema.hash();
                if expected != found {
                    return Err(StoreError::StaleSchema { name: table.name, expected, found });
                }
                Ok((Some(table.id), table.shards))
            }
            (LoadMode::Replace, Some(table)) if request.shards == 0 => Ok((None, table.shards)),
            (LoadMode::Create | LoadMode::Replace, _) => Ok((None, self.shards(request.shards)?)),
        }
    }

    /// Where a load stands.
    ///
    /// # Errors
    /// [`StoreError::UnknownLoad`].
    pub fn load_status(&self, load_id: &[u8; 16]) -> Result<LoadStatus> {
        self.load_record(load_id).map(|record| LoadStatus::of(&record))
    }

    /// The name of the table a load fills; `None` when there is no such load.
    pub fn load_table(&self, load_id: &[u8; 16]) -> Option<String> {
        self.state().manifest.loads.get(load_id).map(|record| record.table_name.clone())
    }

    pub(super) fn load_record(&self, load_id: &[u8; 16]) -> Result<LoadRecord> {
        let record = self.state().manifest.loads.get(load_id).cloned();
        record.ok_or_else(|| StoreError::UnknownLoad { load: load_text(load_id) })
    }
}

pub(super) fn conflict(load_id: &[u8; 16], reason: impl Into<String>) -> StoreError {
    StoreError::LoadConflict { load: load_text(load_id), reason: reason.into() }
}

impl LoadWriter {
    /// Which load it writes.
    pub fn load_id(&self) -> &[u8; 16] {
        &self.load_id
    }

    /// The schema of its batches.
    pub fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    /// The number the next batch must have.
    pub fn next_batch(&self) -> u64 {
        self.next_batch
    }

    /// The number of the next batch's first row, counted from the load's first, 0.
    pub fn next_row(&self) -> u64 {
        self.next_row
    }

    /// An error in a batch that was about to be taken, with where the batch is.
    pub fn in_batch(&self, number: u64, error: hidb::Error) -> hidb::Error {
        let rows = if number == self.next_batch {
            format!(", rows from {} of the load", self.next_row)
        } else {
            String::new()
        };
        hidb::Error::new(error.code, format!("batch {number}{rows}: {}", error.message))
    }

    /// Whether batches were taken that are not durable yet.
    pub fn has_unflushed(&self) -> bool {
        self.store.load_status(&self.load_id).is_ok_and(|status| status.durable_batches < self.next_batch)
    }

    /// Raw bytes in batches that wait for their row group to be full.
    pub fn buffered_bytes(&self) -> usize {
        self.buffered_bytes
    }

    /// Where the load stands.
    ///
    /// # Errors
    /// [`StoreError::UnknownLoad`].
    pub fn status(&self) -> Result<LoadStatus> {
        self.store.load_status(&self.load_id)
    }

    /// Takes one batch of canonical arrays of the schema. A number below [`LoadWriter::next_batch`] is a repetition
    /// and ignored. Returns when there is room for the next: batches become durable later.
    ///
    /// # Errors
    /// [`StoreError::LoadConflict`] for a gap or after a take-over, [`StoreError::Data`] for vectors that are not finite,
    /// [`StoreError::VolumeFull`] (the load is then aborted), encoding errors, the device's or the manifest's. After an
    /// error the writer takes no more.
    pub async fn push<D: Device>(&mut self, device: &D, number: u64, batch: RecordBatch) -> Result<LoadStatus> {
        self.push_retaining(device, number, batch, 0).await
    }

    /// Like [`LoadWriter::push`], of a batch that keeps `retained` bytes of memory alive, which may be much more than
    /// its rows: the frame that it came in.
    ///
    /// # Errors
    /// As [`LoadWriter::push`].
    pub async fn push_retaining<D: Device>(
        &mut self,
        device: &D,
        number: u64,
        batch: RecordBatch,
        retained: usize,
    ) -> Result<LoadStatus> {
        self.check()?;
        if number < self.next_batch {
            return self.status();
        }
        if number > self.next_batch {
            let reason = format!("batch {number} came where batch {} was due: send it first", self.next_batch);
            return Err(conflict(&self.load_id, reason));
        }
        if batch.num_columns() != self.schema.len() {
            let reason =
                format!("batch {number} has {} columns, the schema {}", batch.num_columns(), self.schema.len());
            return Err(StoreError::Data(hidb::Error::new(ErrorCode::TypeMismatch, reason)));
        }
        let rows = batch.num_rows();
        if rows > ROW_GROUP_ROWS {
            let reason = format!("batch {number} has {rows} rows: at most {ROW_GROUP_ROWS}");
            return Err(StoreError::Data(hidb::Error::new(ErrorCode::LimitExceeded, reason)));
        }
        finite::check(&batch, &self.schema, self.next_row).map_err(|error| self.in_batch(number, error))?;
        let bytes = bytes_of(&batch);
        let limits = self.limits();
        let overflows =
            self.buffered_rows + rows > limits.rows || self.buffered_bytes.saturating_add(bytes) > limits.bytes;
        if overflows {
            self.cut();
        }
        self.next_batch += 1;
        self.next_row += rows as u64;
        if rows > 0 {
            self.buffered.push(batch);
            self.buffered_rows += rows;
            self.buffered_bytes += bytes;
            self.retained_bytes += retained;
        }
        let is_full = self.buffered_rows >= limits.rows
            || self.buffered_bytes >= limits.bytes
            || self.retained_bytes >= limits.retained_bytes;
        if is_full {
            self.cut();
        }
        let advanced = self.advance(device, limits.in_flight).await;
        self.settle(device, advanced).await?;
        self.status()
    }

    fn limits(&self) -> Limits {
        let options = &self.store.options;
        match &self.order {
            None => Limits {
                rows: ROW_GROUP_ROWS,
                bytes: ROW_GROUP_RAW_BYTES_MAX,
                retained_bytes: RETAINED_BYTES_MAX,
                in_flight: options.row_groups_in_flight_max.max(1),
            },
            Some((_, share)) => {
                let (rows, bytes) = share.limits(options);
                Limits { rows, bytes, retained_bytes: bytes.saturating_mul(2), in_flight: 1 }
            }
        }
    }

    /// Makes everything taken so far durable, in a short segment if need be. The server calls it when a connection
    /// was idle for 200 ms.
    ///
    /// # Errors
    /// As [`LoadWriter::push`].
    pub async fn flush_idle<D: Device>(&mut self, device: &D) -> Result<LoadStatus> {
        self.check()?;
        let flushed = self.flush_all(device).await;
        self.settle(device, flushed).await?;
        self.status()
    }

    /// Commits: everything taken becomes durable, then part of the table. `batches` is how many the client sent.
    ///
    /// # Errors
    /// [`StoreError::LoadConflict`] when not all have arrived; as [`LoadWriter::push`] and [`Store::load_commit`].
    pub async fn commit<D: Device>(&mut self, device: &D, batches: u64) -> Result<LoadStatus> {
        if self.load_is_open() {
            self.flush_idle(device).await?;
        }
        self.store.load_commit(device, &self.load_id, batches).await
    }

    /// Aborts the load and frees its space.
    ///
    /// # Errors
    /// As [`Store::load_abort`].
    pub async fn abort<D: Device>(&mut self, device: &D) -> Result<LoadStatus> {
        self.discard();
        self.store.load_abort(device, &self.load_id).await
    }

    fn load_is_open(&self) -> bool {
        self.status().is_ok_and(|status| status.state == LoadState::Open)
    }

    fn check(&self) -> Result<()> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let record = self.store.load_record(&self.load_id)?;
        if record.state() != LoadState::Open {
            return Err(conflict(&self.load_id, format!("it is {:?} already", record.state())));
        }
        self.check_epoch()
    }

    fn check_epoch(&self) -> Result<()> {
        if self.store.state().load_epochs.get(&self.load_id) != Some(&self.epoch) {
            return Err(conflict(&self.load_id, "another connection has taken it over"));
        }
        Ok(())
    }

    fn discard(&mut self) {
        self.buffered.clear();
        (self.buffered_rows, self.buffered_bytes) = (0, 0);
        self.encoding = FuturesOrdered::new();
        self.ready.clear();
    }

    /// After an error: nothing more is taken; a load that does not fit is taken away.
    async fn settle<D: Device>(&mut self, device: &D, outcome: Result<()>) -> Result<()> {
        let Err(error) = outcome else { return Ok(()) };
        self.discard();
        self.failed = Some(error.clone());
        // A writer that was superseded must not take away the load of its successor.
        if matches!(error, StoreError::VolumeFull { .. })
            && self.check_epoch().is_ok()
            && let Err(second) = self.store.load_abort(device, &self.load_id).await
        {
            tracing::warn!(%second, "a load that does not fit could not be taken away yet");
        }
        Err(error)
    }

    /// Closes the row group or run in the making and starts its encoding.
    fn cut(&mut self) {
        if self.buffered.is_empty() {
            return;
        }
        let first_rowid = {
            let mut state = self.store.state();
            let counter = state.counter(self.table_id);
            let first = counter.next_rowid;
            counter.next_rowid += self.buffered_rows as i64;
            first
        };
        let batches_end = self.next_batch;
        let batches = std::mem::take(&mut self.buffered);
        (self.buffered_rows, self.buffered_bytes, self.retained_bytes) = (0, 0, 0);
        let (schema, workers) = (Arc::clone(&self.schema), &self.store.options.workers);
        self.encoding.push_back(match &self.order {
            None => {
                let encode = move || encode_row_group(&schema, &batches, RowIds::From(first_rowid));
                let encoding = offload(&**workers, encode);
                Box::pin(async move { Ok(Piece { row_groups: vec![encoding.await??], batches_end }) })
            }
            Some((order, _)) => {
                let encoding = encode_run(workers, schema, order.clone(), batches, RunRowIds::From(first_rowid));
                Box::pin(async move { Ok(Piece { row_groups: encoding.await?, batches_end }) })
            }
        });
    }

    /// Lets encoding go on, waits until at most `in_flight_max` pieces are in it, writes full segments.
    async fn advance<D: Device>(&mut self, device: &D, in_flight_max: usize) -> Result<()> {
        while let Some(Some(piece)) = futures_lite::future::poll_once(self.encoding.next()).await {
            self.ready.push_back(piece?);
        }
        while self.encoding.len() > in_flight_max {
            if let Some(piece) = self.encoding.next().await {
                self.ready.push_back(piece?);
            }
        }
        // A run has made its rows wait long enough, however few segments it fills.
        while !self.ready.is_empty() && (self.order.is_some() || self.row_groups_ready() >= SEGMENT_ROW_GROUPS_MAX) {
            self.write_ready(device).await?;
        }
        Ok(())
    }

    fn row_groups_ready(&self) -> usize {
        self.ready.iter().map(|piece| piece.row_groups.len()).sum()
    }

    async fn flush_all<D: Device>(&mut self, device: &D) -> Result<()> {
        self.cut();
        self.advance(device, 0).await?;
        while !self.ready.is_empty() {
            self.write_ready(device).await?;
        }
        // Batches without rows at the end make no segment, but they have arrived.
        if self.has_unflushed() {
            let changes = self.store.change().await?;
            self.check_epoch()?;
            let mut record = self.store.load_record(&self.load_id)?;
            record.durable_batches = self.next_batch;
            record.changed_unix_s = unix_seconds();
            let mut batch = Batch::new();
            batch.put_load(&self.load_id, &record);
            changes.write(batch).await?;
        }
        Ok(())
    }

    /// Writes the next segment, or those of a run, and makes their batches durable.
    async fn write_ready<D: Device>(&mut self, device: &D) -> Result<()> {
        let mut row_groups: Vec<EncodedRowGroup> = Vec::new();
        let mut batches_end = self.next_batch;
        let fits = |count: usize, piece: &Piece| count == 0 || count + piece.row_groups.len() <= SEGMENT_ROW_GROUPS_MAX;
        while let Some(piece) = self.ready.pop_front_if(|piece| fits(row_groups.len(), piece)) {
            row_groups.extend(piece.row_groups);
            batches_end = piece.batches_end;
        }
        if row_groups.is_empty() {
            return Ok(());
        }
        let mut segments = Vec::with_capacity(row_groups.len().div_ceil(SEGMENT_ROW_GROUPS_MAX));
        while !row_groups.is_empty() {
            let rest = row_groups.split_off(row_groups.len().min(SEGMENT_ROW_GROUPS_MAX));
            match self.write_segment(device, std::mem::replace(&mut row_groups, rest)).await {
                Ok(segment) => segments.push(segment),
                Err(error) => {
                    self.store.give_back(&segments)?;
                    return Err(error);
                }
            }
        }

        let changes = self.store.change().await?;
        let record = self.store.load_record(&self.load_id).and_then(|record| {
            self.check_epoch()?;
            match record.state() {
                LoadState::Open => Ok(record),
                state => Err(conflict(&self.load_id, format!("it is {state:?} already"))),
            }
        });
        let mut record = match record {
            Ok(record) => record,
            Err(error) => {
                self.store.give_back(&segments)?;
                return Err(error);
            }
        };
        record.durable_batches = batches_end;
        record.changed_unix_s = unix_seconds();
        let mut batch = Batch::new();
        for segment in &segments {
            record.durable_rows += segment.handle.footer.rows();
            record.stored_bytes += segment.extent.length();
            record.segments.push(segment.id);
            debug_assert!(segment.record(ObjectState::Live, &[]).is(ObjectKind::Segment));
            batch.put_object(segment.id, &segment.record(ObjectState::Live, &self.load_id));
        }
        batch.put_load(&self.load_id, &record);
        batch.put_counter(self.table_id, &*self.store.state().counter(self.table_id));
        // After a failure the extents stay in use: the change may be there at the next start.
        changes.write(batch).await?;
        let mut state = self.store.state();
        state.handles.extend(segments.into_iter().map(|segment| (segment.id, segment.handle)));
        Ok(())
    }

    /// Writes one segment, in the shard whose turn it is.
    async fn write_segment<D: Device>(&self, device: &D, row_groups: Vec<EncodedRowGroup>) -> Result<WrittenSegment> {
        let identity = {
            let changes = self.store.change().await?;
            let segment_id = changes.take_id();
            let mut state = self.store.state();
            let counter = state.counter(self.table_id);
            let shard = (counter.next_ordinal % u64::from(self.shards.max(1))) as u32;
            counter.next_ordinal += 1;
            SegmentIdentity {
                volume_uuid: self.store.superblock.volume_uuid,
                table_id: self.table_id,
                segment_id,
                shard,
                load_id: self.load_id.to_vec(),
            }
        };
        self.store.write_segment(device, identity, &self.schema, row_groups).await
    }
}
