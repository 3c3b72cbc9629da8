//! The manifest: a small RocksDB in the metadata folder, the only truth about what a volume holds.
//!
//! Owns the database on a thread of its own; callers on any core or runtime await its answers over a channel. All
//! of it is read once when a store opens; afterwards it is only written.
//!
//! Invariants
//! - One batch is one atomic, synchronous write: when [`Manifest::write`] has returned, it survives power loss; a
//!   crash before leaves all or nothing of it.
//! - Batches are applied in the order in which they were handed over.
//!
//! Called by the store, `check` and `rebuild`.

pub mod records;
mod rocks;
pub mod users;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use crate::volume::deletion::DeletionRecord;
pub use records::{Batch, LoadRecord, LoadState, ManifestState, ObjectRecord, ObjectState, TableRecord};
pub use users::UserRecord;

use crate::store::error::{Result, StoreError};
use rocks::Database;

/// Called on the manifest's thread with the folder after each durable batch, before it is acknowledged.
pub type Observer = Arc<dyn Fn(&Path) + Send + Sync>;

struct Request {
    batch: Batch,
    reply: flume::Sender<Result<()>>,
}

/// A handle to the manifest's thread. Cloning is cheap; the database closes with the last clone.
#[derive(Clone)]
pub struct Manifest {
    requests: flume::Sender<Request>,
    folder: PathBuf,
    _thread: Arc<Thread>,
}

/// Joins the thread when the last handle goes, so that the database is closed (and its lock free) after that.
struct Thread {
    stop: Option<flume::Sender<()>>,
    handle: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(handle) = self.handle.take().filter(|handle| handle.thread().id() != std::thread::current().id()) {
            // A panic of the thread was already answered to its callers as a closed channel.
            let _ = handle.join();
        }
    }
}

impl Manifest {
    /// The folder of the database inside a metadata folder.
    pub fn folder_of(metadata_folder: &Path) -> PathBuf {
        metadata_folder.join("manifest")
    }

    /// Makes an empty manifest for a volume, in place of any that is there.
    ///
    /// # Errors
    /// [`StoreError::Manifest`].
    pub fn create(metadata_folder: &Path, batch: Batch) -> Result<()> {
        let folder = Self::folder_of(metadata_folder);
        let failed = |error: std::io::Error| StoreError::Manifest { folder: folder.clone(), reason: error.to_string() };
        if folder.exists() {
            std::fs::remove_dir_all(&folder).map_err(failed)?;
        }
        std::fs::create_dir_all(metadata_folder).map_err(failed)?;
        // Made beside and renamed, so that a crash in between leaves no half manifest that opens.
        let fresh = metadata_folder.join("manifest.new");
        if fresh.exists() {
            std::fs::remove_dir_all(&fresh).map_err(failed)?;
        }
        Database::open(&fresh, true)?.write(&batch)?;
        std::fs::rename(&fresh, &folder).map_err(failed)?;
        let parent = std::fs::File::open(metadata_folder).map_err(failed)?;
        parent.sync_all().map_err(failed)
    }

    /// Opens the manifest of a volume and reads all of it.
    ///
    /// # Errors
    /// [`StoreError::ManifestLost`] when there is none or it is another volume's, [`StoreError::InUse`],
    /// [`StoreError::UnsupportedVersion`], [`StoreError::Manifest`].
    pub fn open(
        metadata_folder: &Path,
        volume_uuid: [u8; 16],
        observer: Option<Observer>,
    ) -> Result<(Self, ManifestState)> {
        let folder = Self::folder_of(metadata_folder);
        let volume = uuid::Uuid::from_bytes(volume_uuid).to_string();
        let lost = |reason: String| StoreError::ManifestLost { folder: folder.clone(), volume: volume.clone(), reason };
        if !folder.join("CURRENT").exists() {
            return Err(lost("the folder is empty or missing".into()));
        }
        let database = Database::open(&folder, false)?;
        let state = ManifestState::read(&folder, database.read_all()?)?;
        match state.volume_uuid {
            None => return Err(lost("it has no identity".into())),
            Some(found) if found != volume_uuid => {
                return Err(lost(format!("it belongs to volume {}", uuid::Uuid::from_bytes(found))));
            }
            Some(_) => {}
        }
        Ok((Self::start(folder, database, observer)?, state))
    }

    fn start(folder: PathBuf, database: Database, observer: Option<Observer>) -> Result<Self> {
        let (requests, inbox) = flume::unbounded::<Request>();
        let (stop, stopped) = flume::bounded::<()>(0);
        let path = folder.clone();
        let handle = std::thread::Builder::new()
            .name("manifest".into())
            .spawn(move || {
                loop {
                    let request = flume::Selector::new().recv(&inbox, Result::ok).recv(&stopped, |_| None).wait();
                    let Some(request) = request else { break };
                    let outcome = database.write(&request.batch);
                    if let (Ok(()), Some(observer)) = (&outcome, &observer) {
                        observer(&path);
                    }
                    // The caller may have gone; the batch is durable all the same.
                    let _ = request.reply.send(outcome);
                }
            })
            .map_err(|error| StoreError::Manifest { folder: folder.clone(), reason: error.to_string() })?;
        Ok(Manifest { requests, folder, _thread: Arc::new(Thread { stop: Some(stop), handle: Some(handle) }) })
    }

    /// Where the database is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Applies a batch atomically and durably.
    ///
    /// # Errors
    /// [`StoreError::Manifest`]: nothing of it was applied.
    pub async fn write(&self, batch: Batch) -> Result<()> {
        let closed = || StoreError::Manifest { folder: self.folder.clone(), reason: "its thread has ended".into() };
        let (reply, answer) = flume::bounded(1);
        self.requests.send(Request { batch, reply }).map_err(|_| closed())?;
        answer.recv_async().await.map_err(|_| closed())?
    }
}
