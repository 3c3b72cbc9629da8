//! Giving back space: erase headers, flush, then forget.
//!
//! Which pending objects may go, so that `rebuild` at any instant finds the same tables:
//! - a segment or an index when nobody reads it any more;
//! - a commit object or tombstone when no commit object of a table that it ends is left;
//! - a live commit object becomes pending when its table has a later one, none of its segments counts, the
//!   segments that it replaces are gone, both they and the commit objects that name them, and there is no segment whose
//!   deleted rows it is the newest to hold. Those of one change (`parts`) go together.
//!
//! Commit objects are erased before segments: a commit object that was taken back must not outlive what it names.

use std::collections::BTreeSet;

use super::error::Result;
use super::{Changes, State, Store};
use crate::device::{AlignedBuf, Device};
use crate::manifest::{Batch, ObjectRecord, ObjectState};
use crate::volume::{EXTENT_UNIT_BYTES, ObjectKind};

impl Store {
    /// Erases what may be erased and returns the bytes that became free. The server calls it after drops and from
    /// time to time, because readers end when they like.
    ///
    /// # Errors
    /// The device's or the manifest's; what was not erased stays pending.
    pub async fn reclaim<D: Device>(&self, device: &D) -> Result<u64> {
        let changes = self.change().await?;
        self.erase_pending(device, &changes).await
    }

    /// Reclaims after a change that is durable: what fails here does not undo it, and is tried again from time to time.
    pub(super) async fn reclaim_soon<D: Device>(&self, device: &D) {
        if let Err(error) = self.reclaim(device).await {
            tracing::warn!(%error, "space could not be returned yet");
        }
    }

    pub(super) async fn erase_pending<D: Device>(&self, device: &D, changes: &Changes<'_>) -> Result<u64> {
        let mut freed = 0;
        loop {
            let retiring = self.state().obsolete_commits();
            if !retiring.is_empty() {
                changes.write(retiring).await?;
            }
            let erasable = self.state().erasable();
            if erasable.is_empty() {
                return Ok(freed);
            }
            for commits in [true, false] {
                let mut erased = false;
                for (_, object) in erasable.iter().filter(|(_, object)| object.is_data() != commits) {
                    device.write(object.offset, AlignedBuf::zeroed(EXTENT_UNIT_BYTES as usize)).await?;
                    erased = true;
                }
                if erased {
                    device.flush().await?;
                }
            }
            let mut batch = Batch::new();
            for (id, _) in &erasable {
                batch.delete_object(*id);
            }
            changes.write(batch).await?;
            let mut state = self.state();
            for (id, object) in &erasable {
                state.retired.remove(id);
                state.free(object.extent())?;
                freed += object.length;
            }
            state.commits_changed = true;
        }
    }
}

impl State {
    /// Pending objects whose headers may be erased now.
    fn erasable(&self) -> Vec<(u64, ObjectRecord)> {
        let commit_tables: BTreeSet<u64> = self
            .manifest
            .objects
            .values()
            .filter(|object| object.is(ObjectKind::Commit))
            .map(|object| object.table_id)
            .collect();
        let mut erasable = Vec::new();
        for (id, object) in self.manifest.objects.iter().filter(|(_, object)| !object.is_live()) {
            let free = if object.is_data() {
                self.retired.get(id).is_none_or(|handle| handle.strong_count() == 0)
            } else {
                !object.drops_tables.iter().any(|table| commit_tables.contains(table))
            };
            if free {
                erasable.push((*id, object.clone()));
            }
        }
        erasable
    }

    /// Live commit objects and tombstones that nothing needs any more become pending.
    fn obsolete_commits(&mut self) -> Batch {
        let mut batch = Batch::new();
        if !std::mem::take(&mut self.commits_changed) {
            return batch;
        }
        let objects = &self.manifest.objects;
        let commits = || objects.iter().filter(|(_, object)| object.is(ObjectKind::Commit));
        let commit_tables: BTreeSet<u64> = commits().map(|(_, object)| object.table_id).collect();
        let named: BTreeSet<u64> = commits().flat_map(|(_, object)| object.segments.iter().copied()).collect();
        let deleting: BTreeSet<u64> = self.manifest.deletions.values().map(|deletion| deletion.commit).collect();
        let records = || objects.iter().filter(|(_, object)| object.is_live() && !object.is_data());
        let is_needed = |(id, object): &(&u64, &ObjectRecord)| {
            let ends_something = object.drops_tables.iter().any(|table| commit_tables.contains(table));
            let defines = self.manifest.tables.get(&object.table_id).is_some_and(|t| t.definition_object == **id);
            let counts = object.segments.iter().any(|id| objects.get(id).is_some_and(ObjectRecord::is_live));
            let replaces = object.replaces.iter().any(|id| objects.contains_key(id) || named.contains(id));
            ends_something || defines || counts || replaces || deleting.contains(id)
        };
        let needed: BTreeSet<u64> = records().filter(is_needed).map(|(id, _)| *id).collect();
        for (id, object) in records() {
            if !needed.contains(id) && !object.parts.iter().any(|part| needed.contains(part)) {
                batch.put_object(*id, &ObjectRecord { state: ObjectState::Pending as i32, ..object.clone() });
            }
        }
        batch
    }
}
