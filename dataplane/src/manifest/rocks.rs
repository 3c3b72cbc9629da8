//! The RocksDB behind the manifest: one small database, synchronous writes, read in full at open.

use std::path::{Path, PathBuf};

use super::records::Batch;
use crate::store::error::{Result, StoreError};

/// An open database.
pub struct Database {
    db: rocksdb::DB,
    folder: PathBuf,
}

impl Database {
    /// Opens the database in a folder, making it when `create`.
    pub fn open(folder: &Path, create: bool) -> Result<Self> {
        let mut options = rocksdb::Options::default();
        options.create_if_missing(create);
        options.set_compression_type(rocksdb::DBCompressionType::None);
        // The whole manifest is a few megabytes: small memtables keep the write-ahead log short.
        options.set_write_buffer_size(4 << 20);
        options.set_max_write_buffer_number(2);
        options.set_max_total_wal_size(8 << 20);
        options.set_max_background_jobs(1);
        options.set_max_open_files(64);
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(1 << 20);
        options.set_use_fsync(false);
        // A torn last record is a batch that was never acknowledged; anything torn before it is damage.
        options.set_wal_recovery_mode(rocksdb::DBRecoveryMode::TolerateCorruptedTailRecords);
        match rocksdb::DB::open(&options, folder) {
            Ok(db) => Ok(Database { db, folder: folder.to_path_buf() }),
            Err(error) if error.to_string().contains("lock") => Err(StoreError::InUse { path: folder.to_path_buf() }),
            Err(error) => Err(failed(folder, &error)),
        }
    }

    /// Writes a batch atomically and waits until it is on the drive.
    pub fn write(&self, batch: &Batch) -> Result<()> {
        let mut writes = rocksdb::WriteBatch::default();
        for (key, value) in &batch.writes {
            match value {
                Some(value) => writes.put(key, value),
                None => writes.delete(key),
            }
        }
        let mut options = rocksdb::WriteOptions::default();
        options.set_sync(true);
        self.db.write_opt(writes, &options).map_err(|error| failed(&self.folder, &error))
    }

    /// Every key and value.
    pub fn read_all(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut pairs = Vec::new();
        for pair in self.db.iterator(rocksdb::IteratorMode::Start) {
            let (key, value) = pair.map_err(|error| failed(&self.folder, &error))?;
            pairs.push((key.into_vec(), value.into_vec()));
        }
        Ok(pairs)
    }
}

fn failed(folder: &Path, error: &rocksdb::Error) -> StoreError {
    StoreError::Manifest { folder: folder.to_path_buf(), reason: error.to_string() }
}
