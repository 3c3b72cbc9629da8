//! Deletions in the store, on a simulated device: snapshots, merges, restarts, rebuild, several commit objects, damage.

mod simulation;

use std::sync::Arc;

use futures_lite::future::block_on;
use heliostat_dataplane::device::{AlignedBuf, BLOCK_BYTES, Device};
use heliostat_dataplane::store::{
    Deletion, LoadMode, LoadRequest, RowsToDelete, Store, StoreError, StoreOptions, rebuild,
};
use simulation::{SimDevice, batch, contents, delete, find, keys, request};

struct Fixture {
    device: SimDevice,
    options: StoreOptions,
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new(size_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let device = SimDevice::formatted(size_bytes, folder.path());
        Fixture { device, options: StoreOptions::new(folder.path()), folder }
    }

    fn open(&self) -> Arc<Store> {
        block_on(Store::open(&self.device, self.options.clone())).unwrap()
    }

    /// The store after its manifest was lost.
    fn rebuilt(&self) -> Arc<Store> {
        block_on(rebuild(&self.device, self.folder.path(), true, false)).unwrap();
        self.open()
    }

    fn assert_clean(&self, store: &Store) {
        let report = block_on(store.check(&self.device, true)).unwrap();
        assert!(report.is_clean(), "{report}");
    }
}

async fn load<D: Device>(device: &D, store: &Arc<Store>, id: u8, rows: impl IntoIterator<Item = i64>) {
    let mode = if id == 1 { LoadMode::Create } else { LoadMode::Append };
    load_as(device, store, request(id, "t", mode), rows).await;
}

async fn load_as<D: Device>(device: &D, store: &Arc<Store>, request: LoadRequest, rows: impl IntoIterator<Item = i64>) {
    let rows: Vec<i64> = rows.into_iter().collect();
    let mut writer = store.load_begin(request).await.unwrap().1.unwrap();
    let batches = rows.chunks(50_000);
    let count = batches.len() as u64;
    for (number, rows) in batches.enumerate() {
        writer.push(device, number as u64, batch(rows)).await.unwrap();
    }
    writer.commit(device, count).await.unwrap();
}

fn commit_objects(store: &Store) -> usize {
    store.manifest_state().objects.values().filter(|object| object.kind == 2 && object.is_live()).count()
}

#[test]
fn deleted_rows_are_gone_at_once_and_after_a_restart_and_a_rebuild_and_earlier_snapshots_keep_them() {
    let fixture = Fixture::new(64 << 20);
    let device = &fixture.device;
    let store = fixture.open();
    let is_deleted = |key: i64| key % 3 == 0 || (150_000..170_000).contains(&key);
    let expected: Vec<i64> = (0..300_000).filter(|key| !is_deleted(*key)).collect();
    block_on(async {
        load(device, &store, 1, 0..300_000).await;
        let before = store.table("t").unwrap();
        let all = contents(device, &before).await;
        assert_eq!(delete(device, &store, "t", |key| key % 3 == 0).await, 100_000);
        // Two thirds of the range are left.
        let rest = (150_000..170_000).filter(|key| key % 3 != 0).count() as u64;
        assert_eq!(delete(device, &store, "t", |key| (150_000..170_000).contains(&key)).await, rest);
        assert_eq!(delete(device, &store, "t", |key| (150_000..170_000).contains(&key)).await, 0);
        let table = store.table("t").unwrap();
        assert_eq!(table.generation, before.generation + 2);
        assert_eq!((table.rows, table.deleted_rows), (expected.len() as u64, 100_000 + rest));
        assert_eq!(keys(device, &store, "t").await, expected);
        assert_eq!(contents(device, &before).await, all);
        // The second deletion's commit object says all that the first one's did.
        assert_eq!(commit_objects(&store), 2);
    });
    fixture.assert_clean(&store);
    drop(store);
    for store in [Fixture::open, Fixture::rebuilt, Fixture::open] {
        let store = store(&fixture);
        assert_eq!(block_on(keys(device, &store, "t")), expected);
        fixture.assert_clean(&store);
    }
}

#[test]
fn a_segment_without_rows_left_goes_with_the_deletion_and_its_space_returns_after_its_readers() {
    let fixture = Fixture::new(32 << 20);
    let device = &fixture.device;
    let store = fixture.open();
    block_on(async {
        for id in 1..4u8 {
            load(device, &store, id, i64::from(id) * 1000..i64::from(id) * 1000 + 500).await;
        }
        let reader = store.table("t").unwrap();
        let all = contents(device, &reader).await;
        delete(device, &store, "t", |key| key % 2 == 0).await;
        assert_eq!(delete(device, &store, "t", |key| key < 2000).await, 250);
        let table = store.table("t").unwrap();
        assert_eq!((table.segments.len(), table.rows), (2, 500));
        assert!(store.space().pending_bytes > 0);
        assert_eq!(contents(device, &reader).await, all);
        drop(reader);
        store.reclaim(device).await.unwrap();
        assert_eq!(store.space().pending_bytes, 0);
        // Whole row groups can be named without a bitmap.
        let whole = |segment: u64| RowsToDelete { segment, row_group: 0, rows: None };
        let found = table.segments.iter().map(|segment| whole(segment.id)).collect();
        assert_eq!(store.delete_rows(device, table.id, found).await.unwrap(), Deletion::Done { rows: 500 });
    });
    assert_eq!(store.table("t").unwrap().segments.len(), 0);
    fixture.assert_clean(&store);
    drop(store);
    let store = fixture.rebuilt();
    assert_eq!(store.table("t").unwrap().rows, 0);
    block_on(async {
        load(device, &store, 9, [5]).await;
        assert_eq!(keys(device, &store, "t").await, [5]);
    });
    fixture.assert_clean(&store);
}

#[test]
fn rows_of_later_row_groups_are_counted_from_the_segment_s_first_row() {
    let fixture = Fixture::new(64 << 20);
    let device = &fixture.device;
    let store = fixture.open();
    // A merge fills the first row group with 131,072 rows; the second has what is left.
    block_on(async {
        for id in 1..6u8 {
            let start = i64::from(id) * 100_000;
            load_as(
                device,
                &store,
                LoadRequest {
                    shards: 1,
                    ..request(id, "t", if id == 1 { LoadMode::Create } else { LoadMode::Append })
                },
                start..start + 30_001,
            )
            .await;
        }
        while let Some(job) = store.pick_merge() {
            store.merge(device, job).await.unwrap().unwrap();
        }
        let table = store.table("t").unwrap();
        assert!(table.segments.iter().any(|segment| segment.footer.row_groups.len() > 1));
        let mut left = keys(device, &store, "t").await;
        for (modulus, remainder) in [(1009, 3), (64, 63), (2, 1)] {
            delete(device, &store, "t", |key| key % modulus == remainder).await;
            left.retain(|key| key % modulus != remainder);
            assert_eq!(keys(device, &store, "t").await, left);
        }
    });
    fixture.assert_clean(&store);
}

#[test]
fn rows_that_were_merged_meanwhile_are_not_deleted_by_their_old_places() {
    let fixture = Fixture::new(32 << 20);
    let device = &fixture.device;
    let store = fixture.open();
    block_on(async {
        load(device, &store, 1, [0]).await;
        for id in 2..20u8 {
            load(device, &store, id, [i64::from(id)]).await;
        }
        let table = store.table("t").unwrap();
        let found = find(device, &table, |key| key > 5).await;
        while let Some(job) = store.pick_merge() {
            store.merge(device, job).await.unwrap().unwrap();
        }
        assert_eq!(store.delete_rows(device, table.id, found).await.unwrap(), Deletion::Again);
        assert_eq!(store.table("t").unwrap().rows, 19);
        assert_eq!(delete(device, &store, "t", |key| key > 5).await, 14);
        // Nor by those in a table that was replaced.
        let found = find(device, &store.table("t").unwrap(), |_| true).await;
        load_as(device, &store, request(30, "t", LoadMode::Replace), 0..10).await;
        assert_eq!(store.delete_rows(device, table.id, found).await.unwrap(), Deletion::Again);
        assert_eq!(store.table("t").unwrap().rows, 10);
    });
    fixture.assert_clean(&store);
}

#[test]
fn deletions_of_the_same_rows_at_the_same_time_count_each_row_once() {
    let fixture = Fixture::new(32 << 20);
    let device = &fixture.device;
    let store = fixture.open();
    block_on(async {
        load(device, &store, 1, 0..1000).await;
        let table = store.table("t").unwrap();
        let (low, high) = (find(device, &table, |key| key < 600).await, find(device, &table, |key| key >= 400).await);
        let again = low.clone();
        assert_eq!(store.delete_rows(device, table.id, low).await.unwrap(), Deletion::Done { rows: 600 });
        let generation = store.table("t").unwrap().generation;
        assert_eq!(store.delete_rows(device, table.id, again).await.unwrap(), Deletion::Done { rows: 0 });
        assert_eq!(store.table("t").unwrap().generation, generation, "nothing changed");
        assert_eq!(store.delete_rows(device, table.id, high).await.unwrap(), Deletion::Done { rows: 400 });
        assert_eq!(keys(device, &store, "t").await, Vec::<i64>::new());
    });
    fixture.assert_clean(&store);
}

#[test]
fn merges_leave_deleted_rows_out_and_keep_row_ids_and_give_way_to_deletions() {
    for table_order in ["t", "b"] {
        let fixture = Fixture::new(32 << 20);
        let device = &fixture.device;
        let store = fixture.open();
        block_on(async {
            for id in 1..30u8 {
                let mode = if id == 1 { LoadMode::Create } else { LoadMode::Append };
                let request = LoadRequest { table: "t".into(), ..request(id, table_order, mode) };
                load_as(device, &store, request, i64::from(id) * 100..i64::from(id) * 100 + 50).await;
            }
            delete(device, &store, "t", |key| key % 5 == 1).await;
            let before = store.table("t").unwrap();
            let rows = contents(device, &before).await;
            let job = store.pick_merge().unwrap();
            delete(device, &store, "t", |key| key % 10 == 2).await;
            assert_eq!(store.merge(device, job).await.unwrap(), None, "rows would have come back");
            let left: Vec<(i64, i64)> = rows.iter().copied().filter(|(key, _)| key % 10 != 2).collect();
            assert_eq!(contents(device, &store.table("t").unwrap()).await, left);
            let mut merges = 0;
            while let Some(job) = store.pick_merge() {
                store.merge(device, job).await.unwrap().unwrap();
                merges += 1;
                assert!(merges < 20, "the same segments are merged again and again");
            }
            assert!(merges > 0);
            let after = store.table("t").unwrap();
            assert_eq!(contents(device, &after).await, left);
            assert_eq!(contents(device, &before).await, rows);
            let merged = after.segments.iter().zip(&after.deleted).filter(|(segment, _)| segment.footer.rows() > 50);
            assert!(merged.clone().count() > 0 && merged.into_iter().all(|(_, deleted)| deleted.is_none()));
        });
        fixture.assert_clean(&store);
        drop(store);
        let store = fixture.rebuilt();
        fixture.assert_clean(&store);
    }
}

#[test]
fn a_segment_with_many_rows_deleted_is_rewritten_alone_and_one_with_few_is_not() {
    let fixture = Fixture::new(96 << 20);
    let device = &fixture.device;
    let store = fixture.open();
    block_on(async {
        // Four row groups: too large to be merged for being small.
        load(device, &store, 1, 0..400_000).await;
        delete(device, &store, "t", |key| key % 4 == 0).await;
        assert!(store.pick_merge().is_none(), "a quarter is not worth writing the rest again");
        delete(device, &store, "t", |key| key % 4 == 1).await;
        let stored_bytes = store.table("t").unwrap().stored_bytes;
        let rows = contents(device, &store.table("t").unwrap()).await;
        let job = store.pick_merge().unwrap();
        let merged = store.merge(device, job).await.unwrap().unwrap();
        assert_eq!((merged.inputs, merged.rows), (1, 200_000));
        let table = store.table("t").unwrap();
        assert_eq!((table.rows, table.deleted_rows), (200_000, 0));
        assert!(table.stored_bytes < stored_bytes * 2 / 3);
        assert_eq!(contents(device, &table).await, rows);
        assert!(store.pick_merge().is_none());
    });
    fixture.assert_clean(&store);
}

/// Keys of a table of several segments, of which a deletion by `key % 2` takes several commit objects.
fn in_parts() -> (Fixture, Vec<i64>) {
    let mut fixture = Fixture::new(32 << 20);
    fixture.options.commit_bytes_max = 1000;
    let store = fixture.open();
    block_on(async {
        for id in 1..8u8 {
            load(&fixture.device, &store, id, (0..400).map(|row| i64::from(id) * 1000 + row)).await;
        }
    });
    let all = block_on(keys(&fixture.device, &store, "t"));
    drop(store);
    (fixture, all)
}

#[test]
fn a_deletion_of_several_commit_objects_counts_as_a_whole_or_not_at_all() {
    let (fixture, all) = in_parts();
    let device = &fixture.device;
    let store = fixture.open();
    block_on(delete(device, &store, "t", |key| key % 2 == 0));
    let odd: Vec<i64> = all.iter().copied().filter(|key| key % 2 == 1).collect();
    assert_eq!(block_on(keys(device, &store, "t")), odd);
    let objects = store.manifest_state().objects;
    let parts: Vec<_> = objects.values().filter(|object| !object.deletes_from.is_empty()).cloned().collect();
    assert!(parts.len() > 2, "{} parts", parts.len());
    fixture.assert_clean(&store);
    drop(store);
    let store = fixture.rebuilt();
    assert_eq!(block_on(keys(device, &store, "t")), odd);
    drop(store);
    // As after a power loss before the last of them was written, with the manifest lost.
    for part in &parts {
        let fixture = Fixture { device: SimDevice::new(device.image()), ..in_parts().0 };
        let block = AlignedBuf::zeroed(BLOCK_BYTES);
        block_on(fixture.device.write(part.offset, block)).unwrap();
        let store = fixture.rebuilt();
        assert_eq!(block_on(keys(&fixture.device, &store, "t")), all);
        fixture.assert_clean(&store);
        // Nor do the others come to life when they are joined by later ones.
        block_on(delete(&fixture.device, &store, "t", |key| key % 3 == 0));
        let expected: Vec<i64> = all.iter().copied().filter(|key| key % 3 != 0).collect();
        drop(store);
        let store = fixture.rebuilt();
        assert_eq!(block_on(keys(&fixture.device, &store, "t")), expected);
        fixture.assert_clean(&store);
    }
}

#[test]
fn commit_objects_of_one_deletion_stay_as_long_as_any_of_them_is_needed() {
    let (fixture, all) = in_parts();
    let device = &fixture.device;
    let store = fixture.open();
    block_on(async {
        delete(device, &store, "t", |key| key % 2 == 0).await;
        let commits = commit_objects(&store);
        // Newer bitmaps of some of the segments, the end of others; the last segment keeps its old one.
        delete(device, &store, "t", |key| (2000..5000).contains(&key) && key % 7 == 0).await;
        delete(device, &store, "t", |key| key < 2000).await;
        assert!(commit_objects(&store) >= commits, "{} after {commits}", commit_objects(&store));
        store.reclaim(device).await.unwrap();
    });
    let is_left = |key: &i64| key % 2 == 1 && *key >= 2000 && ((*key >= 5000) || key % 7 != 0);
    let expected: Vec<i64> = all.into_iter().filter(is_left).collect();
    assert_eq!(block_on(keys(device, &store, "t")), expected);
    drop(store);
    let store = fixture.rebuilt();
    assert_eq!(block_on(keys(device, &store, "t")), expected);
    // When every segment has a newer one, or has gone, nothing of the first is left.
    block_on(async {
        delete(device, &store, "t", |key| key % 11 == 0).await;
        while let Some(job) = store.pick_merge() {
            store.merge(device, job).await.unwrap().unwrap();
        }
        store.reclaim(device).await.unwrap();
    });
    let state = store.manifest_state();
    let needed: Vec<u64> = state.deletions.values().map(|deletion| deletion.commit).collect();
    for (id, object) in state.objects.iter().filter(|(_, object)| !object.deletes_from.is_empty()) {
        let defines = state
            .tables
            .values()
            .any(|table| table.definition_object == *id || object.parts.contains(&table.definition_object));
        assert!(defines || needed.contains(id) || object.parts.iter().any(|part| needed.contains(part)), "{object:?}");
    }
    fixture.assert_clean(&store);
}

#[test]
fn a_deletion_that_can_t_be_written_changes_nothing_and_can_be_repeated() {
    let (fixture, all) = in_parts();
    let device = &fixture.device;
    let store = fixture.open();
    block_on(async {
        for writes in 0..6 {
            let table = store.table("t").unwrap();
            let found = find(device, &table, |key| key % 2 == 0).await;
            device.fail_writes_after(Some(writes));
            let failed = store.delete_rows(device, table.id, found).await;
            assert!(matches!(failed, Err(StoreError::Device(_))), "{failed:?}");
            device.fail_writes_after(None);
            assert_eq!(keys(device, &store, "t").await, all);
            store.reclaim(device).await.unwrap();
            assert_eq!(store.space().pending_bytes, 0);
        }
        fixture.assert_clean(&store);
        assert_eq!(delete(device, &store, "t", |key| key % 2 == 0).await, all.len() as u64 / 2);
    });
    fixture.assert_clean(&store);
}

#[test]
fn a_deletion_on_a_full_volume_fails_and_takes_nothing() {
    let fixture = Fixture::new(1 << 20);
    let device = &fixture.device;
    let store = fixture.open();
    block_on(async {
        load(device, &store, 1, 0..100).await;
        let mut id = 2;
        // Fill it: data leaves room for some metadata, of which every deletion of other rows takes a little.
        while let Ok((_, Some(mut writer))) =
            store.load_begin(request(id, "fill", if id == 2 { LoadMode::Create } else { LoadMode::Append })).await
        {
            let rows: Vec<i64> = (0..3000).map(|row| (i64::from(id) * 3000 + row) * 0x5851_F42D + 7).collect();
            if writer.push(device, 0, batch(&rows)).await.is_err() || writer.commit(device, 1).await.is_err() {
                break;
            }
            id += 1;
        }
        assert_eq!(delete(device, &store, "t", |key| key % 2 == 0).await, 50);
        assert_eq!(keys(device, &store, "t").await.len(), 50);
        // What frees space works on a full volume.
        let free_bytes = store.space().free_bytes;
        delete(device, &store, "fill", |_| true).await;
        store.reclaim(device).await.unwrap();
        assert!(store.space().free_bytes > free_bytes + (100 << 10));
    });
    fixture.assert_clean(&store);
}

#[test]
fn damaged_bitmaps_are_found_by_check_and_stop_a_rebuild() {
    let (fixture, _) = in_parts();
    let device = &fixture.device;
    let store = fixture.open();
    block_on(delete(device, &store, "t", |key| key % 2 == 0));
    let objects = store.manifest_state().objects;
    let commit = objects.values().find(|object| !object.deletes_from.is_empty()).unwrap();
    device.flip_bit(commit.offset + 600, 2);
    let report = block_on(store.check(device, false)).unwrap();
    assert!(report.problems.iter().any(|problem| problem.contains("is damaged")), "{report}");
    drop(store);
    let error = block_on(rebuild(device, fixture.folder.path(), true, false)).unwrap_err();
    assert!(matches!(error, StoreError::Corruption { .. }) && error.to_string().contains("commit object"), "{error}");
}
