//! Tables that are kept in an order, on a simulated device: loads, appends, merges, restarts, rebuild.

mod simulation;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use futures_lite::future::block_on;
use heliostat_dataplane::device::Device;
use heliostat_dataplane::manifest::Manifest;
use heliostat_dataplane::store::decode::{DecodedRowGroup, read_row_group};
use heliostat_dataplane::store::{
    LoadMode, LoadRequest, LoadState, LoadWriter, Observer, Store, StoreError, StoreOptions, TableSnapshot, rebuild,
};
use hidb::order::{OrderKind, TableOrder};
use hidb::{ErrorCode, Scalar};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use simulation::{Event, Replay, SimDevice, batch, contents, copy_manifest, keys, request, schema};

/// A device and the options of its stores: runs of 8 MiB.
fn fixture(size_bytes: u64) -> (SimDevice, StoreOptions, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let device = SimDevice::formatted(size_bytes, folder.path());
    let options = StoreOptions { sort_run_bytes_max: 8 << 20, ..StoreOptions::new(folder.path()) };
    (device, options, folder)
}

fn ordered(id: u8, mode: LoadMode, kind: OrderKind, columns: &[&str]) -> LoadRequest {
    let order = Some(TableOrder::new(kind, columns, &schema()).unwrap());
    LoadRequest { order, ..request(id, "t", mode) }
}

fn shuffled(rows: std::ops::Range<i64>, seed: u64) -> Vec<i64> {
    let mut rows: Vec<i64> = rows.collect();
    rows.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    rows
}

/// Loads these rows in batches of 8,192.
async fn load<D: Device>(device: &D, store: &Arc<Store>, request: LoadRequest, rows: &[i64]) {
    let mut writer = store.load_begin(request).await.unwrap().1.unwrap();
    let batches = rows.chunks(8192);
    let count = batches.len() as u64;
    for (number, rows) in batches.enumerate() {
        writer.push(device, number as u64, batch(rows)).await.unwrap();
    }
    let status = writer.commit(device, count).await.unwrap();
    assert_eq!((status.state, status.durable_rows), (LoadState::Committed, rows.len() as u64));
}

async fn row_groups<D: Device>(device: &D, table: &TableSnapshot) -> Vec<Vec<DecodedRowGroup>> {
    let mut segments = Vec::new();
    for segment in &table.segments {
        let mut groups = Vec::new();
        for row_group in 0..segment.footer.row_groups.len() {
            groups.push(read_row_group(device, segment, row_group).await.unwrap());
        }
        segments.push(groups);
    }
    segments
}

fn keys_of(rows: &RecordBatch) -> Vec<i64> {
    rows.column(0).as_primitive::<Int64Type>().values().to_vec()
}

#[test]
fn rows_are_sorted_in_runs_over_several_segments_and_row_ids_follow_the_order() {
    let (device, options, folder) = fixture(96 << 20);
    let rows = shuffled(0..800_000, 1);
    let request = ordered(1, LoadMode::Create, OrderKind::Sorted, &["key"]);
    block_on(async {
        let options = StoreOptions { sort_run_bytes_max: 64 << 20, ..options.clone() };
        let store = Store::open(&device, options).await.unwrap();
        load(&device, &store, request, &rows).await;
        let table = store.table("t").unwrap();
        let groups: Vec<usize> = table.segments.iter().map(|segment| segment.footer.row_groups.len()).collect();
        assert_eq!(groups, [4, 3], "one run of two segments");
        let loaded = row_groups(&device, &table).await;
        let found: Vec<i64> = loaded.iter().flatten().flat_map(|group| keys_of(&group.rows)).collect();
        assert!(found.into_iter().eq(0..800_000), "not in order");
        assert!(loaded.iter().flatten().flat_map(|group| &group.rowids).copied().eq(0..800_000));
        // Consecutive ids cost nothing.
        let ids = table.segments[0].footer.row_groups[0].columns[2].length;
        assert!(ids < 20_000, "{ids} bytes of row ids");
    });
    // Read again from the manifest, then from the volume alone.
    let store = block_on(Store::open(&device, options.clone())).unwrap();
    assert_eq!(store.table("t").unwrap().order.as_ref().unwrap().to_string(), "sorted by key");
    assert!(block_on(store.check(&device, true)).unwrap().is_clean());
    drop(store);
    drop(folder);
    let lost = tempfile::tempdir().unwrap();
    block_on(rebuild(&device, lost.path(), false, false)).unwrap();
    let store = block_on(Store::open(&device, StoreOptions::new(lost.path()))).unwrap();
    assert_eq!(store.table("t").unwrap().order.as_ref().unwrap().columns(), ["key"]);
    assert_eq!(block_on(keys(&device, &store, "t")).len(), 800_000);
}

/// Fills a run of two segments, without closing it; gives the number of batches.
async fn fill<D: Device>(device: &D, writer: &mut LoadWriter, rows: &[i64]) -> u64 {
    let batches = rows.chunks(50_000);
    let count = batches.len() as u64;
    for (number, rows) in batches.enumerate() {
        let status = writer.push(device, number as u64, batch(rows)).await.unwrap();
        assert_eq!(status.durable_batches, 0, "the run is not full");
    }
    count
}

/// The writes of closing a run of two segments, up to the end of the first segment and in all.
fn writes_of(events: &[Event]) -> (usize, usize) {
    let writes = |events: &[Event]| events.iter().filter(|event| matches!(event, Event::Write(..))).count();
    // A segment is written with its headers, then flushed.
    let flush = events.iter().position(|event| matches!(event, Event::Flush)).unwrap();
    (writes(&events[..flush]), writes(events))
}

#[test]
fn a_run_becomes_durable_with_all_its_segments_or_not_at_all() {
    let rows = shuffled(0..560_000, 2);
    let begin = || ordered(1, LoadMode::Create, OrderKind::Sorted, &["key"]);
    let options = |options: StoreOptions| StoreOptions { sort_run_bytes_max: 64 << 20, ..options };
    // As it should be, with a copy of the manifest after each of its batches.
    let (device, plain, folder) = fixture(96 << 20);
    let copies = tempfile::tempdir().unwrap();
    let (log, root) = (device.log(), copies.path().to_path_buf());
    let taken = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&taken);
    let observer: Observer = Arc::new(move |from: &Path| {
        let number = counter.fetch_add(1, Relaxed) + 1;
        copy_manifest(from, &root.join(number.to_string()));
        log.lock().unwrap().push(Event::Manifest(number));
    });
    let (image, first, begun, batches) = block_on(async {
        let options = StoreOptions { observer: Some(observer), ..options(plain) };
        let store = Store::open(&device, options).await.unwrap();
        let mut writer = store.load_begin(begin()).await.unwrap().1.unwrap();
        let batches = fill(&device, &mut writer, &rows).await;
        let (image, first, begun) = (device.image(), device.log().lock().unwrap().len(), taken.load(Relaxed));
        assert_eq!(writer.flush_idle(&device).await.unwrap().durable_batches, batches);
        (image, first, begun, batches)
    });
    let events = device.log().lock().unwrap()[first..].to_vec();
    let (of_first, all) = writes_of(&events);
    assert!(1 < of_first && of_first + 1 < all, "two segments: {of_first} of {all} writes");
    drop(folder);

    // A write of either segment fails: nothing is durable, nothing is lost, nothing leaks.
    for failing in [1, of_first, of_first + 1, all - 1] {
        let (device, plain, folder) = fixture(96 << 20);
        block_on(async {
            let store = Store::open(&device, options(plain.clone())).await.unwrap();
            let mut writer = store.load_begin(begin()).await.unwrap().1.unwrap();
            fill(&device, &mut writer, &rows).await;
            device.fail_writes_after(Some(failing));
            assert_eq!(writer.flush_idle(&device).await.unwrap_err().code(), ErrorCode::Io, "write {failing} of {all}");
            device.fail_writes_after(None);
            assert_eq!(store.load_status(&[1; 16]).unwrap().durable_batches, 0, "write {failing} of {all}");
            drop((writer, store));
            let store = Store::open(&device, options(plain)).await.unwrap();
            let report = store.check(&device, true).await.unwrap();
            assert!(report.is_clean(), "write {failing} of {all}: {report}");
            let (status, writer) = store.load_begin(begin()).await.unwrap();
            assert_eq!((status.durable_batches, status.durable_rows), (0, 0), "write {failing} of {all}");
            let mut writer = writer.unwrap();
            fill(&device, &mut writer, &rows).await;
            writer.commit(&device, batches).await.unwrap();
            assert!(keys(&device, &store, "t").await.into_iter().eq(0..560_000), "rows are missing");
        });
        drop(folder);
    }

    // The power goes at any event after the first segment is flushed.
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let mut replay = Replay::new(image, begun);
    let mut whole = 0;
    let flush = events.iter().position(|event| matches!(event, Event::Flush)).unwrap();
    for (position, event) in events.iter().enumerate() {
        replay.apply(event);
        if position < flush {
            continue;
        }
        let device = SimDevice::new(replay.crash(&mut random));
        let folder = tempfile::tempdir().unwrap();
        copy_manifest(&copies.path().join(replay.manifest.to_string()), &Manifest::folder_of(folder.path()));
        block_on(async {
            let store = Store::open(&device, options(StoreOptions::new(folder.path()))).await.unwrap();
            let report = store.check(&device, true).await.unwrap();
            assert!(report.is_clean(), "event {position}: {report}");
            let (status, writer) = store.load_begin(begin()).await.unwrap();
            match status.durable_batches {
                0 => assert_eq!(status.durable_rows, 0, "event {position}: rows of half a run"),
                durable => {
                    assert_eq!(durable, batches, "event {position}");
                    whole += 1;
                    writer.unwrap().commit(&device, batches).await.unwrap();
                    assert!(keys(&device, &store, "t").await.into_iter().eq(0..560_000), "event {position}");
                }
            }
        });
    }
    assert!(whole > 0, "the run was never durable");
}

#[test]
fn a_run_that_is_encoded_becomes_durable_without_waiting_for_the_next_one() {
    let (device, options, _folder) = fixture(64 << 20);
    let rows = shuffled(0..400_000, 11);
    block_on(async {
        let store = Store::open(&device, options).await.unwrap();
        let request = ordered(1, LoadMode::Create, OrderKind::Sorted, &["key"]);
        let mut writer = store.load_begin(request).await.unwrap().1.unwrap();
        let mut cut = None;
        for (number, rows) in rows.chunks(8192).enumerate() {
            let before = writer.buffered_bytes();
            let status = writer.push(&device, number as u64, batch(rows)).await.unwrap();
            if writer.buffered_bytes() < before {
                cut.get_or_insert(number as u64);
            }
            if cut.is_some_and(|cut| number as u64 > cut) {
                assert!(status.durable_batches >= cut.unwrap(), "batch {number}: {status:?}");
                return;
            }
        }
        panic!("no run was full");
    });
}

#[test]
fn many_ordered_loads_at_a_time_share_the_memory_of_runs() {
    let (device, options, _folder) = fixture(128 << 20);
    let options = StoreOptions { sort_run_bytes_max: 64 << 20, sort_memory_bytes_max: 256 << 20, ..options };
    let rows = shuffled(0..600_000, 12);
    block_on(async {
        let store = Store::open(&device, options).await.unwrap();
        let named = |id: u8| LoadRequest {
            table: format!("t{id}"),
            ..ordered(id, LoadMode::Create, OrderKind::Sorted, &["key"])
        };
        let mut writers = Vec::new();
        for id in 0..4 {
            writers.push(store.load_begin(named(id)).await.unwrap().1.unwrap());
        }
        let mut most = 0;
        for (number, rows) in rows.chunks(8192).enumerate() {
            writers[0].push(&device, number as u64, batch(rows)).await.unwrap();
            most = most.max(writers[0].buffered_bytes());
        }
        assert!((12 << 20..16 << 20).contains(&most), "{most} bytes: a quarter of a quarter of the memory");
        // Those that have ended leave their part to the others.
        let mut last = writers.pop().unwrap();
        drop(writers);
        for (number, rows) in rows.chunks(8192).enumerate() {
            last.push(&device, number as u64, batch(rows)).await.unwrap();
            most = most.max(last.buffered_bytes());
        }
        assert!(most > 18 << 20, "{most} bytes");
    });
}

#[test]
fn a_load_that_another_connection_takes_over_before_its_run_is_durable_is_sent_again() {
    let (device, options, _folder) = fixture(96 << 20);
    let rows = shuffled(0..700_000, 2);
    let request = || ordered(1, LoadMode::Create, OrderKind::Sorted, &["key"]);
    block_on(async {
        let options = StoreOptions { sort_run_bytes_max: 64 << 20, ..options };
        let store = Store::open(&device, options).await.unwrap();
        let mut writer = store.load_begin(request()).await.unwrap().1.unwrap();
        let batches: Vec<&[i64]> = rows.chunks(50_000).collect();
        for (number, rows) in batches.iter().enumerate() {
            let status = writer.push(&device, number as u64, batch(rows)).await.unwrap();
            assert_eq!(status.durable_batches, 0, "the run is not full");
        }
        // Another connection takes over before anything was acknowledged: everything is sent again.
        let (status, second) = store.load_begin(LoadRequest { order: None, ..request() }).await.unwrap();
        assert_eq!(status.durable_batches, 0);
        let mut second = second.unwrap();
        let other = ordered(1, LoadMode::Create, OrderKind::Sorted, &["text"]);
        assert!(matches!(store.load_begin(other).await, Err(StoreError::LoadConflict { .. })));
        assert!(matches!(writer.flush_idle(&device).await, Err(StoreError::LoadConflict { .. })));
        for (number, rows) in batches.iter().enumerate() {
            second.push(&device, number as u64, batch(rows)).await.unwrap();
        }
        assert_eq!(second.flush_idle(&device).await.unwrap().durable_batches, batches.len() as u64);
        second.commit(&device, batches.len() as u64).await.unwrap();
        assert!(keys(&device, &store, "t").await.into_iter().eq(0..700_000), "rows are missing");
        let report = store.check(&device, true).await.unwrap();
        assert!(report.is_clean(), "{report}");
    });
}

#[test]
fn the_order_belongs_to_the_table() {
    let (device, options, _folder) = fixture(64 << 20);
    block_on(async {
        let store = Store::open(&device, options).await.unwrap();
        load(&device, &store, ordered(1, LoadMode::Create, OrderKind::Sorted, &["key"]), &shuffled(0..5000, 3)).await;
        // Appended without saying so, and with saying the same.
        load(&device, &store, request(2, "t", LoadMode::Append), &shuffled(5000..9000, 4)).await;
        load(&device, &store, ordered(3, LoadMode::Append, OrderKind::Sorted, &["key"]), &shuffled(9000..9500, 5))
            .await;
        let table = store.table("t").unwrap();
        for group in row_groups(&device, &table).await.iter().flatten() {
            assert!(keys_of(&group.rows).is_sorted());
        }
        for other in [(OrderKind::Sorted, ["text"]), (OrderKind::Clustered, ["key"])] {
            let error = store.load_begin(ordered(4, LoadMode::Append, other.0, &other.1)).await.unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidSchema);
            assert!(error.to_string().contains("\"t\" are sorted by key, not"), "{error}");
        }
        // Replaced: the order stays unless another is named.
        load(&device, &store, request(5, "t", LoadMode::Replace), &shuffled(0..3000, 6)).await;
        let sorted = row_groups(&device, &store.table("t").unwrap()).await;
        assert_eq!(keys_of(&sorted[0][0].rows), (0..3000).collect::<Vec<_>>());
        let clustered = ordered(6, LoadMode::Replace, OrderKind::Clustered, &["key", "text"]);
        load(&device, &store, clustered, &shuffled(0..3000, 7)).await;
        assert_eq!(store.table("t").unwrap().order.as_ref().unwrap().to_string(), "clustered by key, text");
        assert_eq!(keys(&device, &store, "t").await, (0..3000).collect::<Vec<_>>());
        let without = hidb::Schema::new(vec![hidb::Field::new("n", hidb::DataType::Int64, false)]).unwrap();
        let lacking = LoadRequest { schema: without, ..request(7, "t", LoadMode::Replace) };
        let error = store.load_begin(lacking).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::UnknownColumn);
        assert!(error.to_string().contains("name another order"), "{error}");
        // A table that has none does not get one by appending.
        load(&device, &store, request(8, "plain", LoadMode::Create), &shuffled(0..100, 8)).await;
        let wanted = LoadRequest { table: "plain".into(), ..ordered(9, LoadMode::Append, OrderKind::Sorted, &["key"]) };
        let error = store.load_begin(wanted).await.unwrap_err();
        assert!(error.to_string().contains("in no order"), "{error}");
    });
}

#[test]
fn merged_segments_are_ordered_together_and_row_ids_stay_with_their_rows() {
    let (device, options, _folder) = fixture(64 << 20);
    let options = StoreOptions { sort_run_bytes_max: 64 << 20, ..options };
    block_on(async {
        let store = Store::open(&device, options).await.unwrap();
        let order = Some(TableOrder::new(OrderKind::Sorted, &["key"], &schema()).unwrap());
        for id in 0..9u8 {
            let mode = if id == 0 { LoadMode::Create } else { LoadMode::Append };
            let rows = shuffled(i64::from(id) * 20_000..i64::from(id + 1) * 20_000, id.into());
            // Interleaved, so that every segment reaches over the whole range.
            let rows: Vec<i64> = rows.iter().map(|row| row % 20_000 * 9 + row / 20_000).collect();
            load(&device, &store, LoadRequest { order: order.clone(), shards: 1, ..request(id, "t", mode) }, &rows)
                .await;
        }
        let before = contents(&device, &store.table("t").unwrap()).await;
        while let Some(job) = store.pick_merge() {
            store.merge(&device, job).await.unwrap().unwrap();
        }
        let table = store.table("t").unwrap();
        assert!(contents(&device, &table).await == before, "a row id has left its row");
        let merged = row_groups(&device, &table).await;
        assert_eq!(merged.len(), 1);
        let found: Vec<i64> = merged.iter().flatten().flat_map(|group| keys_of(&group.rows)).collect();
        assert!(found.into_iter().eq(0..180_000), "not in order");
        let zones: Vec<(Scalar, Scalar)> = table.segments[0]
            .footer
            .row_groups
            .iter()
            .map(|group| (group.columns[0].zone.min.clone(), group.columns[0].zone.max.clone()))
            .collect();
        assert_eq!(zones.len(), 2);
        assert!(zones[0].1.compare(&zones[1].0).unwrap().is_lt(), "zone maps overlap: {zones:?}");
        assert!(store.check(&device, true).await.unwrap().is_clean());
    });
}

#[test]
fn whatever_the_batches_a_clustered_load_holds_each_row_once() {
    let mut random = ChaCha8Rng::seed_from_u64(9);
    for id in 0..8u8 {
        let (device, options, _folder) = fixture(64 << 20);
        block_on(async {
            let store = Store::open(&device, options).await.unwrap();
            let count = random.random_range(1..60_000);
            let rows = shuffled(-count..count, id.into());
            let request = ordered(id, LoadMode::Create, OrderKind::Clustered, &["text", "key"]);
            let mut writer = store.load_begin(request).await.unwrap().1.unwrap();
            let (mut at, mut number) = (0, 0);
            while at < rows.len() {
                let take = random.random_range(0..20_000).min(rows.len() - at);
                writer.push(&device, number, batch(&rows[at..at + take])).await.unwrap();
                (at, number) = (at + take, number + 1);
                if random.random_bool(0.1) {
                    assert_eq!(writer.flush_idle(&device).await.unwrap().durable_batches, number);
                }
            }
            writer.commit(&device, number).await.unwrap();
            assert!(keys(&device, &store, "t").await.into_iter().eq(-count..count), "rows are missing");
        });
    }
}
