//! The end of loads: commit, abort, and the sweep of forgotten ones. All are idempotent.

use super::error::{Result, StoreError};
use super::load::{LoadStatus, conflict};
use super::{LoadMode, LoadState, Store, unix_seconds};
use crate::device::Device;
use crate::manifest::{Batch, LoadRecord, ObjectRecord, TableRecord};
use crate::volume::ObjectKind;
use crate::volume::object::CommitRecord;

impl Store {
    /// Makes the durable batches of a load part of its table, all at once. `batches` is how many the client sent;
    /// all must be durable. Repeating it answers the same.
    ///
    /// # Errors
    /// [`StoreError::LoadConflict`] when batches are missing or the load was aborted, [`StoreError::TableExists`] or
    /// [`StoreError::UnknownTable`] when the table came or went meanwhile, the device's or the manifest's.
    pub async fn load_commit<D: Device>(&self, device: &D, load_id: &[u8; 16], batches: u64) -> Result<LoadStatus> {
        let changes = self.change().await?;
        let load = self.load_record(load_id)?;
        match load.state() {
            LoadState::Open => {}
            LoadState::Committed => return Ok(LoadStatus::of(&load)),
            LoadState::Aborted => return Err(conflict(load_id, "it was aborted: begin another load")),
        }
        if batches != load.durable_batches {
            let reason = format!(
                "the commit speaks of {batches} batches, {} are durable: send the others from there on",
                load.durable_batches
            );
            return Err(conflict(load_id, reason));
        }
        let (generation, replaced) = self.commit_target(&load)?;
        let indexes = self.state().kept_indexes(&load);
        let counter = *self.state().counter(load.table_id);
        let record = CommitRecord {
            table_id: load.table_id,
            table_name: load.table_name.clone(),
            schema: load.schema.clone(),
            shards: load.shards,
            segments: load.segments.clone(),
            replaces: Vec::new(),
            drops_tables: replaced.into_iter().collect(),
            load_id: load_id.to_vec(),
            next_rowid: counter.next_rowid,
            load_batches: load.durable_batches,
            load_mode: load.mode,
            load_rows: load.durable_rows,
            indexes: indexes.clone(),
            ..Default::default()
        };
        let commit = self.write_commit(device, &changes, ObjectKind::Commit, &record, &[]).await?;

        let mut batch = Batch::new();
        batch.put_object(commit.id, &commit.live(&record));
        let mut dropped = Vec::new();
        {
            let state = self.state();
            for id in &load.segments {
                if let Some(object) = state.manifest.objects.get(id) {
                    batch.put_object(*id, &ObjectRecord { load_id: Vec::new(), ..object.clone() });
                }
            }
            if let Some(replaced) = replaced {
                dropped = state.end_table(&mut batch, replaced);
            }
        }
        batch.put_table(&TableRecord {
            id: load.table_id,
            name: load.table_name.clone(),
            schema: load.schema.clone(),
            shards: load.shards,
            generation,
            definition_object: commit.id,
            indexes,
        });
        batch.put_counter(load.table_id, &counter);
        let committed = LoadRecord {
            state: LoadState::Committed as i32,
            segments: Vec::new(),
            changed_unix_s: unix_seconds(),
            ..load
        };
        batch.put_load(load_id, &committed);
        changes.write(batch).await?;
        self.state().retire(&dropped);
        self.publish()?;
        drop(changes);
        if replaced.is_some() {
            self.reclaim_soon(device).await;
        }
        Ok(LoadStatus::of(&committed))
    }

    /// The generation of the table after the commit, and the table that it replaces.
    fn commit_target(&self, load: &LoadRecord) -> Result<(u64, Option<u64>)> {
        let state = self.state();
        let table = state.table_named(&load.table_name);
        match (load.mode(), table) {
            (LoadMode::Create, Some(_)) => Err(StoreError::TableExists { name: load.table_name.clone() }),
            (LoadMode::Append, Some(table)) if table.id == load.table_id => Ok((table.generation + 1, None)),
            (LoadMode::Append, _) => Err(StoreError::UnknownTable { name: load.table_name.clone() }),
            (LoadMode::Replace, Some(table)) => Ok((table.generation + 1, Some(table.id))),
            (LoadMode::Create | LoadMode::Replace, None) => Ok((1, None)),
        }
    }

    /// Takes a load away. Repeating it answers the same.
    ///
    /// # Errors
    /// [`StoreError::LoadConflict`] when it was committed, [`StoreError::UnknownLoad`], the device's or the manifest's.
    pub async fn load_abort<D: Device>(&self, device: &D, load_id: &[u8; 16]) -> Result<LoadStatus> {
        let changes = self.change().await?;
        let load = self.load_record(load_id)?;
        match load.state() {
            LoadState::Open => {}
            LoadState::Committed => return Err(conflict(load_id, "it was committed: drop or replace the table")),
            LoadState::Aborted => return Ok(LoadStatus::of(&load)),
        }
        let tried = |object: &ObjectRecord| object.is(ObjectKind::Commit) && object.load_id == load_id;
        if self.state().manifest.objects.values().any(tried) {
            // A commit object that failed half way must be gone before its segments are.
            self.erase_pending(device, &changes).await?;
        }
        let mut batch = Batch::new();
        self.state().end_objects(&mut batch, &load.segments);
        if load.mode() != LoadMode::Append {
            batch.delete_counter(load.table_id);
        }
        let aborted = LoadRecord {
            state: LoadState::Aborted as i32,
            segments: Vec::new(),
            durable_batches: 0,
            durable_rows: 0,
            stored_bytes: 0,
            changed_unix_s: unix_seconds(),
            ..load.clone()
        };
        batch.put_load(load_id, &aborted);
        changes.write(batch).await?;
        self.state().retire(&load.segments);
        drop(changes);
        self.reclaim_soon(device).await;
        Ok(LoadStatus::of(&aborted))
    }

    /// Aborts open loads without traffic for longer than the limit and forgets finished ones. `now_unix_s` is the
    /// time in seconds since 1970. Returns how many it aborted.
    ///
    /// # Errors
    /// The device's or the manifest's.
    pub async fn sweep_loads<D: Device>(&self, device: &D, now_unix_s: u64) -> Result<usize> {
        let limit = self.options.load_idle_s_max;
        let old: Vec<([u8; 16], LoadState)> = {
            let state = self.state();
            let loads = state.manifest.loads.iter();
            let old = loads.filter(|(_, load)| load.changed_unix_s.saturating_add(limit) < now_unix_s);
            old.map(|(id, load)| (*id, load.state())).collect()
        };
        let mut aborted = 0;
        for (id, load_state) in old {
            if load_state == LoadState::Open {
                self.load_abort(device, &id).await?;
                aborted += 1;
                continue;
            }
            let changes = self.change().await?;
            let mut batch = Batch::new();
            batch.delete_load(&id);
            changes.write(batch).await?;
            self.state().load_epochs.remove(&id);
        }
        Ok(aborted)
    }
}
