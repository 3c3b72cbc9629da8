//! Formatting a volume and opening a store: from manifest and footers to a catalog.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};

use futures::{StreamExt, TryStreamExt};

use super::error::{Result, StoreError};
use super::objects::read_segment_footer;
use super::users::Users;
use super::{Catalog, Deleted, METADATA_RESERVE_UNITS, SegmentHandle, State, Store, StoreOptions};
use crate::device::Device;
use crate::manifest::{Batch, DeletionRecord, Manifest, ManifestState};
use crate::volume::{ExtentAllocator, FolderLock, ObjectKind, Superblock, VolumeLock, superblock};

/// Footers read at a time when a store opens.
const FOOTERS_IN_FLIGHT: usize = 16;

/// Formats a volume (a file of `size_bytes`, or a block device) and makes its manifest.
///
/// # Errors
/// [`StoreError::AlreadyFormatted`] unless `force`, [`StoreError::InUse`], [`StoreError::VolumeTooSmall`], or I/O.
pub fn format(volume: &Path, size_bytes: Option<u64>, metadata_folder: &Path, force: bool) -> Result<Superblock> {
    let _lock = FolderLock::acquire(metadata_folder)?;
    let superblock = superblock::format_file(volume, size_bytes, force)?;
    let mut batch = Batch::new();
    batch.put_identity(superblock.volume_uuid).put_next_id(1);
    Manifest::create(metadata_folder, batch)?;
    Ok(superblock)
}

/// Free space as the manifest implies it.
///
/// # Errors
/// [`StoreError::Corruption`] when two objects share space or one lies outside the volume.
pub(super) fn allocator_of(superblock: &Superblock, manifest: &ManifestState) -> Result<ExtentAllocator> {
    let mut allocator = ExtentAllocator::new(1, superblock.units() - 1, METADATA_RESERVE_UNITS);
    for (id, object) in &manifest.objects {
        allocator.mark_used(object.extent()).map_err(|error| StoreError::Corruption {
            volume: superblock.uuid_text(),
            what: format!("the manifest's record of object {id}"),
            offset: object.offset,
            reason: error.to_string(),
        })?;
    }
    Ok(allocator)
}

impl Store {
    /// Opens the store on a volume: reads superblock and manifest, takes back what a crash left half done, reads
    /// and checks the footers of all segments.
    ///
    /// # Errors
    /// [`StoreError::NotFormatted`], [`StoreError::UnsupportedVersion`], [`StoreError::Truncated`],
    /// [`StoreError::InUse`], [`StoreError::ManifestLost`], [`StoreError::Corruption`], or I/O.
    pub async fn open<D: Device>(device: &D, options: StoreOptions) -> Result<Arc<Store>> {
        let superblock = superblock::open(device).await?;
        // Simulated devices have no file to lock.
        let volume_lock = device.path().exists().then(|| VolumeLock::acquire(device.path())).transpose()?;
        let folder_lock = FolderLock::acquire(&options.metadata_folder)?;
        let (manifest, mut state) =
            Manifest::open(&options.metadata_folder, superblock.volume_uuid, options.observer.clone())?;
        let allocator = allocator_of(&superblock, &state)?;
        // Row ids and ordinals start behind whatever is durable.
        let counters = BTreeMap::new();
        let users = Users::of(&state);
        state.next_id = state.next_id.max(state.objects.keys().next_back().map_or(0, |id| id + 1));
        let store = Store {
            volume: superblock.uuid_text().into(),
            superblock,
            options,
            manifest,
            state: Mutex::new(State {
                next_id: state.next_id,
                manifest: state,
                allocator,
                counters,
                handles: BTreeMap::new(),
                indexes: BTreeMap::new(),
                merged: BTreeMap::new(),
                deleted: BTreeMap::new(),
                retired: HashMap::new(),
                load_epochs: HashMap::new(),
                commits_changed: true,
                undecided: None,
            }),
            catalog: Mutex::new(Arc::new(Catalog::default())),
            users: Mutex::new(Arc::new(users)),
            changes: futures::lock::Mutex::new(()),
            runs: Default::default(),
            _folder_lock: folder_lock,
            _volume_lock: volume_lock,
        };
        store.reclaim(device).await?;
        let handles = store.read_footers(device).await?;
        {
            let mut state = store.state();
            state.deleted = store.read_deletions(&state.manifest, &handles)?;
            state.handles = handles;
        }
        store.read_indexes();
        store.publish()?;
        Ok(Arc::new(store))
    }

    fn read_deletions(
        &self,
        manifest: &ManifestState,
        handles: &BTreeMap<u64, Arc<SegmentHandle>>,
    ) -> Result<BTreeMap<u64, Arc<Deleted>>> {
        let read = |(id, record): (&u64, &DeletionRecord)| {
            let deleted = handles.get(id).and_then(|segment| Deleted::of(record, &segment.footer));
            let deleted = deleted.ok_or_else(|| StoreError::Manifest {
                folder: self.manifest.folder().to_path_buf(),
                reason: format!("the deleted rows of segment {id} are not rows of it: run `heliostat-cell rebuild`"),
            })?;
            Ok((*id, Arc::new(deleted)))
        };
        manifest.deletions.iter().map(read).collect()
    }

    async fn read_footers<D: Device>(&self, device: &D) -> Result<BTreeMap<u64, Arc<SegmentHandle>>> {
        let segments: Vec<_> = {
            let state = self.state();
            let objects = state.manifest.objects.iter();
            let segments = objects.filter(|(_, object)| object.is(ObjectKind::Segment) && object.is_live());
            segments.map(|(id, object)| (*id, object.clone())).collect()
        };
        let reads = segments.into_iter().map(|(id, object)| async move {
            let footer = read_segment_footer(device, &self.superblock, id, object.table_id, object.extent()).await?;
            let handle = SegmentHandle {
                id,
                table_id: object.table_id,
                shard: object.shard,
                offset: object.offset,
                length: object.length,
                footer: Arc::new(footer),
                volume: Arc::clone(&self.volume),
                rowid_runs: Default::default(),
            };
            Ok::<_, StoreError>((id, Arc::new(handle)))
        });
        futures::stream::iter(reads).buffer_unordered(FOOTERS_IN_FLIGHT).try_collect().await
    }
}
