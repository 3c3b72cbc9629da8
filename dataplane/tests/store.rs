//! The store on a simulated device and on files: loads, drops, merges, a full volume, damage, locks, rebuild.

mod simulation;

use std::path::Path;
use std::sync::Arc;

use futures_lite::future::block_on;
use heliostat_dataplane::device::file::FileDevice;
use heliostat_dataplane::device::{BLOCK_BYTES, Device};
use heliostat_dataplane::store::{
    LoadMode, LoadRequest, LoadState, Store, StoreError, StoreOptions, check, format, rebuild,
};
use heliostat_dataplane::volume::{VolumeLock, object, superblock};
use simulation::{SimDevice, batch, contents, keys, request, schema};

struct Fixture {
    device: SimDevice,
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new(size_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let device = SimDevice::formatted(size_bytes, folder.path());
        Fixture { device, folder }
    }

    fn open(&self) -> Arc<Store> {
        block_on(Store::open(&self.device, StoreOptions::new(self.folder.path()))).unwrap()
    }

    fn assert_clean(&self, store: &Store) {
        let report = block_on(store.check(&self.device, true)).unwrap();
        assert!(report.is_clean(), "{report}");
    }
}

async fn load<D: Device>(device: &D, store: &Arc<Store>, id: u8, table: &str, mode: LoadMode, rows: &[i64]) {
    let (_, writer) = store.load_begin(request(id, table, mode)).await.unwrap();
    let mut writer = writer.unwrap();
    writer.push(device, 0, batch(rows)).await.unwrap();
    let status = writer.commit(device, 1).await.unwrap();
    assert_eq!(status.state, LoadState::Committed);
    assert_eq!(status.durable_rows, rows.len() as u64);
}

#[test]
fn a_load_is_invisible_before_commit_and_whole_after_it_and_after_a_restart() {
    let fixture = Fixture::new(8 << 20);
    let device = &fixture.device;
    let store = fixture.open();
    block_on(async {
        let begun = store.load_begin(request(1, "t", LoadMode::Create)).await.unwrap();
        let mut writer = begun.1.unwrap();
        for number in 0..5i64 {
            let rows: Vec<i64> = (number * 1000..number * 1000 + 700).collect();
            writer.push(device, number as u64, batch(&rows)).await.unwrap();
            // A repetition is ignored, a gap is an error that does no harm.
            writer.push(device, number as u64, batch(&rows)).await.unwrap();
            let gap = writer.push(device, number as u64 + 2, batch(&rows)).await.unwrap_err();
            assert!(matches!(gap, StoreError::LoadConflict { .. }), "{gap}");
        }
        assert_eq!(writer.status().unwrap().durable_batches, 0);
        assert_eq!(writer.flush_idle(device).await.unwrap().durable_batches, 5);
        assert!(store.table("t").is_err());
        let early = writer.commit(device, 6).await.unwrap_err();
        assert!(early.to_string().contains("5 are durable"), "{early}");
        writer.commit(device, 5).await.unwrap();
        assert_eq!(writer.commit(device, 5).await.unwrap().state, LoadState::Committed);
        assert!(store.load_abort(device, &[1; 16]).await.is_err());
    });
    let expected: Vec<i64> = (0..5i64).flat_map(|number| number * 1000..number * 1000 + 700).collect();
    assert_eq!(block_on(keys(device, &store, "t")), expected);
    fixture.assert_clean(&store);
    drop(store);
    let store = fixture.open();
    assert_eq!(block_on(keys(device, &store, "t")), expected);
    let (status, writer) = block_on(store.load_begin(request(1, "t", LoadMode::Create))).unwrap();
    assert!(status.state == LoadState::Committed && writer.is_none());
}

#[test]
fn full_row_groups_are_cut_and_four_make_a_segment() {
    let fixture = Fixture::new(64 << 20);
    let device = &fixture.device;
    let store = fixture.open();
    let rows_per_batch = 65_536i64;
    block_on(async {
        let begun = store.load_begin(request(1, "t", LoadMode::Create)).await.unwrap();
        let mut writer = begun.1.unwrap();
        for number in 0..9i64 {
            let rows: Vec<i64> = (number * rows_per_batch..(number + 1) * rows_per_batch).collect();
            writer.push(device, number as u64, batch(&rows)).await.unwrap();
        }
        writer.commit(device, 9).await.unwrap();
        let table = store.table("t").unwrap();
        let groups: Vec<Vec<u32>> =
            table.segments.iter().map(|s| s.footer.row_groups.iter().map(|group| group.rows).collect()).collect();
        assert_eq!(groups, vec![vec![131_072; 4], vec![65_536]]);
        assert_eq!(table.segments.iter().map(|s| s.shard).collect::<Vec<_>>(), [0, 1]);
        let rows = contents(device, &table).await;
        assert_eq!(rows.len(), 9 * 65_536);
        assert!(rows.iter().all(|(key, rowid)| key == rowid));
    });
}

#[test]
fn a_second_connection_takes_a_load_over_from_its_durable_batches() {
    let fixture = Fixture::new(8 << 20);
    let device = &fixture.device;
    let store = fixture.open();
    block_on(async {
        let begin = || store.load_begin(request(1, "t", LoadMode::Create));
        let mut first = begin().await.unwrap().1.unwrap();
        first.push(device, 0, batch(&[1, 2])).await.unwrap();
        first.flush_idle(device).await.unwrap();
        first.push(device, 1, batch(&[3])).await.unwrap();
        let (status, second) = begin().await.unwrap();
        assert_eq!(status.durable_batches, 1);
        let mut second = second.unwrap();
        assert!(matches!(first.flush_idle(device).await, Err(StoreError::LoadConflict { .. })));
        second.push(device, 0, batch(&[1, 2])).await.unwrap();
        second.push(device, 1, batch(&[4])).await.unwrap();
        second.commit(device, 2).await.unwrap();
        assert_eq!(keys(device, &store, "t").await, [1, 2, 4]);
    });
    fixture.assert_clean(&store);
}

#[test]
fn append_adds_replace_exchanges_and_create_refuses() {
    let fixture = Fixture::new(8 << 20);
    let device = &fixture.device;
    let store = fixture.open();
    block_on(async {
        load(device, &store, 1, "t", LoadMode::Create, &[1, 2, 3]).await;
        load(device, &store, 2, "t", LoadMode::Append, &[4, 5]).await;
        assert_eq!(keys(device, &store, "t").await, [1, 2, 3, 4, 5]);
        let exists = store.load_begin(request(3, "t", LoadMode::Create)).await.unwrap_err();
        assert!(matches!(exists, StoreError::TableExists { .. }));
        let unknown = store.load_begin(request(4, "u", LoadMode::Append)).await.unwrap_err();
        assert!(matches!(unknown, StoreError::UnknownTable { .. }));
        load(device, &store, 5, "t", LoadMode::Replace, &[9]).await;
        assert_eq!(keys(device, &store, "t").await, [9]);
        assert_eq!(store.space().pending_bytes, 0);
    });
    fixture.assert_clean(&store);
}

#[test]
fn a_full_volume_fails_the_load_shows_nothing_and_returns_the_space() {
    let fixture = Fixture::new(1 << 20);
    let device = &fixture.device;
    let store = fixture.open();
    block_on(async {
        load(device, &store, 1, "small", LoadMode::Create, &[1, 2, 3]).await;
        let free_bytes = store.space().free_bytes;
        let begun = store.load_begin(request(2, "large", LoadMode::Create)).await.unwrap();
        let mut writer = begun.1.unwrap();
        let mut number = 0i64;
        let full = loop {
            let rows: Vec<i64> = (number * 20_000..(number + 1) * 20_000).map(|n| n * 0x5851_F42D + 7).collect();
            if let Err(error) = writer.push(device, number as u64, batch(&rows)).await {
                break error;
            }
            if let Err(error) = writer.flush_idle(device).await {
                break error;
            }
            number += 1;
            assert!(number < 100, "the volume never fills");
        };
        assert!(matches!(full, StoreError::VolumeFull { .. }), "{full}");
        assert_eq!(store.load_status(&[2; 16]).unwrap().state, LoadState::Aborted);
        assert!(store.table("large").is_err());
        assert_eq!(store.space().free_bytes, free_bytes);
        assert_eq!(keys(device, &store, "small").await, [1, 2, 3]);
        store.drop_table(device, "small").await.unwrap();
        assert!(store.space().free_bytes > free_bytes);
        load(device, &store, 3, "again", LoadMode::Create, &[4]).await;
    });
    fixture.assert_clean(&store);
}

#[test]
fn a_dropped_table_stays_for_its_readers_and_its_space_returns_after_them() {
    let fixture = Fixture::new(8 << 20);
    let device = &fixture.device;
    let store = fixture.open();
    block_on(async {
        let empty = store.space();
        load(device, &store, 1, "t", LoadMode::Create, &(0..5000).collect::<Vec<_>>()).await;
        let reader = store.table("t").unwrap();
        store.drop_table(device, "t").await.unwrap();
        assert!(store.table("t").is_err());
        assert_eq!(contents(device, &reader).await.len(), 5000);
        assert!(store.space().pending_bytes > 0);
        drop(reader);
        store.reclaim(device).await.unwrap();
        assert_eq!(store.space(), empty);
        assert!(matches!(store.drop_table(device, "t").await, Err(StoreError::UnknownTable { .. })));
    });
    fixture.assert_clean(&store);
}

#[test]
fn merging_keeps_rows_and_row_ids_and_old_readers() {
    let fixture = Fixture::new(16 << 20);
    let device = &fixture.device;
    let store = fixture.open();
    block_on(async {
        load(device, &store, 1, "t", LoadMode::Create, &[0]).await;
        for id in 2..40u8 {
            let rows: Vec<i64> = (0..50).map(|row| i64::from(id) * 100 + row).collect();
            load(device, &store, id, "t", LoadMode::Append, &rows).await;
        }
        let before = store.table("t").unwrap();
        let rows = contents(device, &before).await;
        while let Some(job) = store.pick_merge() {
            store.merge(device, job).await.unwrap().expect("nothing else changes the table");
        }
        let after = store.table("t").unwrap();
        assert!(after.segments.len() < 16, "{} segments", after.segments.len());
        assert_eq!(contents(device, &after).await, rows);
        assert_eq!(contents(device, &before).await, rows);
        drop((before, after));
        store.reclaim(device).await.unwrap();
        assert_eq!(store.space().pending_bytes, 0);
        // Commit objects that nothing needs any more went with the segments they named.
        let commits = store.manifest_state().objects.values().filter(|object| object.kind == 2).count();
        assert!(commits < 20, "{commits} commit objects");
    });
    fixture.assert_clean(&store);
}

/// Row groups are cut by bytes, too: a segment that is full of them has few rows, but is not small.
#[test]
fn merging_ends_when_rows_are_wide() {
    let fixture = Fixture::new(64 << 20);
    let device = &fixture.device;
    let store = fixture.open();
    let field = hidb::Field { name: "t".into(), data_type: hidb::DataType::Text, nullable: false };
    let schema = hidb::Schema::new(vec![field]).unwrap();
    let wide = "w".repeat(64 << 10);
    let text = arrow_array::StringArray::from_iter_values(std::iter::repeat_n(&wide, 1000));
    let rows = arrow_array::RecordBatch::try_from_iter([("t", Arc::new(text) as arrow_array::ArrayRef)]).unwrap();
    block_on(async {
        for id in 1..=5 {
            let mode = if id == 1 { LoadMode::Create } else { LoadMode::Append };
            let load = LoadRequest { schema: schema.clone(), shards: 1, ..request(id, "t", mode) };
            let mut writer = store.load_begin(load).await.unwrap().1.unwrap();
            for number in 0..4 {
                writer.push(device, number, rows.clone()).await.unwrap();
            }
            writer.commit(device, 4).await.unwrap();
        }
        let mut merges = 0;
        while let Some(job) = store.pick_merge() {
            store.merge(device, job).await.unwrap().unwrap();
            merges += 1;
            assert!(merges < 5, "segments that can't become fewer are merged again and again");
        }
        assert_eq!(store.table("t").unwrap().rows, 20_000);
    });
    fixture.assert_clean(&store);
}

#[test]
fn a_damaged_commit_object_is_not_erased_in_silence_by_rebuild() {
    let folder = tempfile::tempdir().unwrap();
    let (volume, metadata) = (folder.path().join("volume"), folder.path().join("metadata"));
    format(&volume, Some(8 << 20), &metadata, false).unwrap();
    let device = FileDevice::open(&volume).unwrap();
    let commit = block_on(async {
        let store = Store::open(&device, StoreOptions::new(&metadata)).await.unwrap();
        load(&device, &store, 1, "t", LoadMode::Create, &[1, 2, 3]).await;
        let objects = store.manifest_state().objects;
        objects.values().find(|object| object.kind == 2).unwrap().offset
    });
    std::fs::remove_dir_all(&metadata).unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&volume).unwrap();
    let mut byte = [0];
    let at = commit + object::HEADER_BYTES as u64 + 20;
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, at).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[byte[0] ^ 1], at).unwrap();
    file.sync_all().unwrap();
    let device = FileDevice::open(&volume).unwrap();
    let error = block_on(rebuild(&device, &metadata, false, false)).unwrap_err();
    assert!(matches!(error, StoreError::Corruption { .. }) && error.to_string().contains("commit object"), "{error}");
    let report = block_on(rebuild(&device, &metadata, false, true)).unwrap();
    assert!(report.lost.iter().any(|line| line.contains("commit object")), "{report}");
}

#[test]
fn a_merge_of_a_table_dropped_meanwhile_is_taken_back() {
    let fixture = Fixture::new(8 << 20);
    let device = &fixture.device;
    let store = fixture.open();
    block_on(async {
        let empty = store.space();
        load(device, &store, 1, "t", LoadMode::Create, &[0]).await;
        for id in 2..18u8 {
            load(device, &store, id, "t", LoadMode::Append, &[i64::from(id)]).await;
        }
        let job = store.pick_merge().unwrap();
        store.drop_table(device, "t").await.unwrap();
        assert_eq!(store.merge(device, job).await.unwrap(), None);
        store.reclaim(device).await.unwrap();
        assert_eq!(store.space(), empty);
    });
    fixture.assert_clean(&store);
}

#[test]
fn a_flipped_bit_anywhere_in_a_segment_is_named_never_returned() {
    let fixture = Fixture::new(8 << 20);
    let device = &fixture.device;
    let store = fixture.open();
    block_on(load(device, &store, 1, "t", LoadMode::Create, &(0..3000).collect::<Vec<_>>()));
    let segment = Arc::clone(&store.table("t").unwrap().segments[0]);
    let columns = segment.footer.row_groups[0].columns.clone();
    for (column, chunk) in columns.iter().enumerate() {
        for byte in (0..u64::from(chunk.length)).step_by(97) {
            let at = segment.offset + chunk.offset + byte;
            device.flip_bit(at, (byte % 8) as u8);
            let read = block_on(heliostat_dataplane::store::decode::read_row_group(device, &segment, 0));
            let message = read.expect_err("a flipped bit was read").to_string();
            for fact in [
                store.volume(),
                &format!("segment {}", segment.id),
                &format!("offset {}", segment.offset + chunk.offset),
            ] {
                assert!(message.contains(fact), "{message} lacks {fact}");
            }
            if let Some(field) = schema().fields().get(column) {
                assert!(message.contains(&field.name), "{message}");
            }
            assert!(!block_on(store.check(device, true)).unwrap().is_clean());
            device.flip_bit(at, (byte % 8) as u8);
        }
    }
    fixture.assert_clean(&store);
    drop(store);
    device.flip_bit(segment.offset + segment.length - 20, 3);
    let damaged = block_on(Store::open(device, StoreOptions::new(fixture.folder.path()))).err().unwrap();
    assert!(matches!(damaged, StoreError::Corruption { .. }), "{damaged}");
}

#[test]
fn a_commit_whose_object_can_t_be_written_can_be_repeated_or_aborted() {
    let fixture = Fixture::new(8 << 20);
    let device = &fixture.device;
    let store = fixture.open();
    block_on(async {
        for (id, commit) in [(1u8, true), (2, false)] {
            let table = format!("t{id}");
            let begun = store.load_begin(request(id, &table, LoadMode::Create)).await.unwrap();
            let mut writer = begun.1.unwrap();
            writer.push(device, 0, batch(&[1, 2])).await.unwrap();
            writer.flush_idle(device).await.unwrap();
            device.fail_writes_after(Some(0));
            assert!(matches!(writer.commit(device, 1).await, Err(StoreError::Device(_))));
            device.fail_writes_after(None);
            if commit {
                writer.commit(device, 1).await.unwrap();
                assert_eq!(keys(device, &store, &table).await, [1, 2]);
            } else {
                writer.abort(device).await.unwrap();
                assert!(store.table(&table).is_err());
            }
        }
        store.reclaim(device).await.unwrap();
        assert_eq!(store.space().pending_bytes, 0);
    });
    fixture.assert_clean(&store);
}

#[test]
fn loads_without_traffic_are_swept() {
    let fixture = Fixture::new(8 << 20);
    let device = &fixture.device;
    let store = fixture.open();
    block_on(async {
        let begun = store.load_begin(request(1, "t", LoadMode::Create)).await.unwrap();
        let mut writer = begun.1.unwrap();
        writer.push(device, 0, batch(&[1])).await.unwrap();
        writer.flush_idle(device).await.unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(store.sweep_loads(device, now + 3600).await.unwrap(), 0);
        assert_eq!(store.sweep_loads(device, now + 2 * 24 * 3600).await.unwrap(), 1);
        assert!(writer.push(device, 1, batch(&[2])).await.is_err());
        store.sweep_loads(device, now + 4 * 24 * 3600).await.unwrap();
        assert!(matches!(store.load_status(&[1; 16]), Err(StoreError::UnknownLoad { .. })));
    });
    fixture.assert_clean(&store);
}

#[test]
fn volumes_that_can_t_be_used_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let (volume, metadata) = (folder.path().join("volume"), folder.path().join("metadata"));
    let open = |metadata: &Path| {
        let device = FileDevice::open(&volume).unwrap();
        block_on(Store::open(&device, StoreOptions::new(metadata)))
    };
    std::fs::write(&volume, vec![7; 1 << 20]).unwrap();
    assert!(matches!(open(&metadata).err(), Some(StoreError::NotFormatted { .. })));
    assert!(matches!(format(&volume, Some(4096), &metadata, false), Err(StoreError::VolumeTooSmall { .. })));

    // What somebody else wrote there is not overwritten unasked.
    assert!(matches!(format(&volume, Some(4 << 20), &metadata, false), Err(StoreError::NotEmpty { .. })));
    assert_eq!(std::fs::read(&volume).unwrap(), vec![7; 1 << 20]);
    let fresh = folder.path().join("fresh");
    assert!(matches!(format(&fresh, Some(4096), &metadata, false), Err(StoreError::VolumeTooSmall { .. })));
    assert!(!fresh.exists());
    format(&volume, Some(4 << 20), &metadata, true).unwrap();
    assert!(matches!(format(&volume, Some(4 << 20), &metadata, false), Err(StoreError::AlreadyFormatted { .. })));
    let store = open(&metadata).unwrap();
    assert!(matches!(open(&folder.path().join("other")).err(), Some(StoreError::InUse { .. })));
    assert!(matches!(VolumeLock::acquire(&volume), Err(StoreError::InUse { .. })));
    drop(store);
    let lost = open(&folder.path().join("other")).err().unwrap();
    assert!(matches!(lost, StoreError::ManifestLost { .. }) && lost.to_string().contains("rebuild"), "{lost}");

    format(&folder.path().join("volume2"), Some(4 << 20), &folder.path().join("metadata2"), false).unwrap();
    let mismatch = open(&folder.path().join("metadata2")).err().unwrap();
    assert!(mismatch.to_string().contains("belongs to volume"), "{mismatch}");

    let file = std::fs::OpenOptions::new().write(true).open(&volume).unwrap();
    file.set_len(2 << 20).unwrap();
    assert!(matches!(open(&metadata).err(), Some(StoreError::Truncated { .. })));
    file.set_len(4 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &9u32.to_le_bytes(), 8).unwrap();
    assert!(matches!(open(&metadata).err(), Some(StoreError::UnsupportedVersion { found: 9, .. })));
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; BLOCK_BYTES], 0).unwrap();
    assert!(matches!(open(&metadata).err(), Some(StoreError::ManifestLost { .. } | StoreError::NotFormatted { .. })));
}

#[test]
fn a_volume_survives_the_loss_of_either_superblock() {
    let fixture = Fixture::new(4 << 20);
    let original = *fixture.open().superblock();
    for at in original.offsets() {
        fixture.device.flip_bit(at + 20, 1);
        assert_eq!(block_on(superblock::open(&fixture.device)).unwrap(), original);
        let report = block_on(check(&fixture.device, fixture.folder.path(), false)).unwrap();
        assert_eq!(report.problems.len(), 1, "{report}");
        fixture.device.flip_bit(at + 20, 1);
    }
}

#[test]
fn a_lost_manifest_is_rebuilt_without_what_was_dropped_or_never_committed() {
    let folder = tempfile::tempdir().unwrap();
    let (volume, metadata) = (folder.path().join("volume"), folder.path().join("metadata"));
    format(&volume, Some(32 << 20), &metadata, false).unwrap();
    let device = FileDevice::open(&volume).unwrap();
    let rows = block_on(async {
        let store = Store::open(&device, StoreOptions::new(&metadata)).await.unwrap();
        load(&device, &store, 1, "kept", LoadMode::Create, &[0]).await;
        for id in 2..30u8 {
            load(&device, &store, id, "kept", LoadMode::Append, &[i64::from(id)]).await;
        }
        load(&device, &store, 30, "dropped", LoadMode::Create, &[1]).await;
        load(&device, &store, 31, "replaced", LoadMode::Create, &[2]).await;
        load(&device, &store, 31 + 1, "replaced", LoadMode::Replace, &[3]).await;
        store.create_table(&device, "empty", &schema(), None, 0).await.unwrap();
        let reader = store.table("dropped").unwrap();
        store.drop_table(&device, "dropped").await.unwrap();
        while let Some(job) = store.pick_merge() {
            store.merge(&device, job).await.unwrap();
        }
        let begun = store.load_begin(request(40, "kept", LoadMode::Append)).await.unwrap();
        let mut writer = begun.1.unwrap();
        writer.push(&device, 0, batch(&[99])).await.unwrap();
        writer.flush_idle(&device).await.unwrap();
        // The reader keeps the headers of the dropped segments on the volume.
        let rows = contents(&device, &store.table("kept").unwrap()).await;
        drop(reader);
        rows
    });
    std::fs::remove_dir_all(&metadata).unwrap();
    let report = block_on(rebuild(&device, &metadata, false, false)).unwrap();
    assert_eq!(report.tables, ["empty", "kept", "replaced"]);
    assert!(report.erased >= 2, "{report}");
    let again = block_on(rebuild(&device, &metadata, false, false));
    assert!(matches!(again, Err(StoreError::ManifestWhole { .. })));
    let report = block_on(check(&device, &metadata, true)).unwrap();
    assert!(report.is_clean(), "{report}");
    block_on(async {
        let store = Store::open(&device, StoreOptions::new(&metadata)).await.unwrap();
        assert_eq!(contents(&device, &store.table("kept").unwrap()).await, rows);
        assert_eq!(keys(&device, &store, "replaced").await, [3]);
        assert!(matches!(store.load_status(&[40; 16]), Err(StoreError::UnknownLoad { .. })));
        load(&device, &store, 41, "kept", LoadMode::Append, &[500]).await;
        assert_eq!(keys(&device, &store, "kept").await.len(), rows.len() + 1);
    });
}
