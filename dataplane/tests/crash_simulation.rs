//! Power loss at every instant of a seeded run of loads, commits, aborts, deletions, drops, merges and reclaims.
//!
//! After each write, flush and manifest batch of the run a crash is played: writes that were not flushed are lost,
//! reordered or torn, the manifest is as it was, or its last record is torn. Then the store opens again, and
//! committed loads are whole, others invisible and resumable with exactly their acknowledged batches, deletions are whole
//! or have not happened, and `check` finds nothing leaked or used twice. Snapshots read what they read when they were taken. The manifest is lost as well, before and after the restart, and rebuilt.
//!
//! `HELIOSTAT_SEED=n` replays the run of that seed, `HELIOSTAT_STEPS=n` sets its length.

mod simulation;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use futures_lite::future::block_on;
use heliostat_dataplane::manifest::Manifest;
use heliostat_dataplane::store::{LoadMode, LoadState, LoadWriter, Store, StoreOptions, TableSnapshot, rebuild};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use simulation::{Event, Replay, SimDevice, batch, contents, copy_manifest, delete, order_of, request, schema};

const VOLUME_BYTES: u64 = 4 << 20;
/// `a` comes often, so that it grows enough segments to merge.
const TABLES: [&str; 6] = ["a", "b", "a", "a", "c", "a"];

#[derive(Clone, Debug, PartialEq)]
struct LoadModel {
    table: &'static str,
    mode: LoadMode,
    batches: Vec<Vec<i64>>,
    acknowledged: usize,
    state: LoadState,
}

/// What must be true.
#[derive(Clone, Debug, Default)]
struct Model {
    tables: BTreeMap<String, Vec<i64>>,
    loads: BTreeMap<u8, LoadModel>,
}

/// One operation: the events from `start` to `end`, what was true before and what after.
struct Step {
    name: String,
    start: usize,
    end: usize,
    after: Model,
}

struct Run {
    image: Vec<u8>,
    events: Vec<Event>,
    steps: Vec<Step>,
    /// Copies of the manifest after each batch.
    manifests: Vec<PathBuf>,
    rowids: BTreeMap<i64, i64>,
    _folder: tempfile::TempDir,
}

/// Runs the workload and records it.
fn record(seed: u64, steps: usize) -> Run {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let metadata = folder.path().join("metadata");
    let device = SimDevice::formatted(VOLUME_BYTES, &metadata);
    let first = folder.path().join("manifest-0");
    copy_manifest(&Manifest::folder_of(&metadata), &first);
    let manifests = Arc::new(Mutex::new(vec![first]));
    let image = device.image();
    let (log, copies, root) = (device.log(), Arc::clone(&manifests), folder.path().to_path_buf());
    let mut options = StoreOptions::new(&metadata);
    // So few that deletions often need several commit objects.
    options.commit_bytes_max = 100;
    options.observer = Some(Arc::new(move |from: &Path| {
        let mut copies = copies.lock().unwrap();
        let to = root.join(format!("manifest-{}", copies.len()));
        copy_manifest(from, &to);
        log.lock().unwrap().push(Event::Manifest(copies.len()));
        copies.push(to);
    }));
    let mut recorded = Vec::new();
    let mut rowids = BTreeMap::new();
    block_on(async {
        let store = Store::open(&device, options).await.unwrap();
        let mut workload = Workload {
            device: device.clone(),
            store,
            model: Model::default(),
            writers: BTreeMap::new(),
            readers: Vec::new(),
            next_load: 1,
            next_key: 0,
        };
        for _ in 0..steps {
            let start = device.log().lock().unwrap().len();
            let name = workload.step(&mut random).await;
            let end = device.log().lock().unwrap().len();
            for (snapshot, rows) in &workload.readers {
                assert_eq!(contents(&device, snapshot).await, *rows, "a snapshot changed in {name}");
            }
            recorded.push(Step { name, start, end, after: workload.model.clone() });
            for table in workload.store.catalog().tables.values() {
                for (key, rowid) in contents(&device, table).await {
                    assert_eq!(*rowids.entry(key).or_insert(rowid), rowid, "the row id of key {key} changed");
                }
            }
        }
    });
    let events = device.log().lock().unwrap().clone();
    let manifests = manifests.lock().unwrap().clone();
    Run { image, events, steps: recorded, manifests, rowids, _folder: folder }
}

/// A snapshot, and what it held when it was taken.
type Reader = (Arc<TableSnapshot>, Vec<(i64, i64)>);

struct Workload {
    device: SimDevice,
    store: Arc<Store>,
    model: Model,
    writers: BTreeMap<u8, LoadWriter>,
    /// Snapshots, and what was in them.
    readers: Vec<Reader>,
    next_load: u8,
    next_key: i64,
}

impl Workload {
    fn open_load(&self, random: &mut ChaCha8Rng) -> Option<u8> {
        let open: Vec<u8> = self.writers.keys().copied().collect();
        (!open.is_empty()).then(|| open[random.random_range(0..open.len())])
    }

    async fn step(&mut self, random: &mut ChaCha8Rng) -> String {
        match random.random_range(0..100) {
            0..60 if self.writers.is_empty() => self.begin(random).await,
            0..8 => self.begin(random).await,
            8..34 => self.push(random).await,
            34..44 => self.flush(random).await,
            44..74 => self.commit(random).await,
            74..77 => self.abort(random).await,
            77..79 => self.drop_table(random).await,
            79..88 => self.merge(random).await,
            88..94 => self.delete(random).await,
            94..95 => self.create_table(random).await,
            _ => self.read_or_reclaim(random).await,
        }
    }

    async fn begin(&mut self, random: &mut ChaCha8Rng) -> String {
        let id = match self.open_load(random).filter(|_| random.random_bool(0.2) || self.writers.len() > 3) {
            Some(again) => again,
            None => {
                self.next_load += 1;
                self.next_load
            }
        };
        let table = TABLES[random.random_range(0..TABLES.len())];
        let exists = self.model.tables.contains_key(table);
        let mode = match (exists, random.random_range(0..20)) {
            (true, 0) => LoadMode::Replace,
            (true, _) => LoadMode::Append,
            (false, _) => LoadMode::Create,
        };
        let fresh = LoadModel { table, mode, batches: Vec::new(), acknowledged: 0, state: LoadState::Open };
        let load = self.model.loads.entry(id).or_insert(fresh);
        let begun = self.store.load_begin(request(id, load.table, load.mode)).await.unwrap();
        assert_eq!(begun.0.durable_batches as usize, load.acknowledged);
        load.batches.truncate(load.acknowledged);
        self.writers.insert(id, begun.1.unwrap());
        format!("begin {id} {mode:?} {table}")
    }

    async fn push(&mut self, random: &mut ChaCha8Rng) -> String {
        let Some(id) = self.open_load(random) else { return "nothing".into() };
        let rows: Vec<i64> = (0..random.random_range(0..300))
            .map(|_| {
                self.next_key += 1;
                self.next_key
            })
            .collect();
        let load = self.model.loads.get_mut(&id).unwrap();
        let writer = self.writers.get_mut(&id).unwrap();
        writer.push(&self.device, load.batches.len() as u64, batch(&rows)).await.unwrap();
        load.batches.push(rows);
        format!("push {id}")
    }

    async fn flush(&mut self, random: &mut ChaCha8Rng) -> String {
        let Some(id) = self.open_load(random) else { return "nothing".into() };
        let status = self.writers.get_mut(&id).unwrap().flush_idle(&self.device).await.unwrap();
        let load = self.model.loads.get_mut(&id).unwrap();
        assert_eq!(status.durable_batches as usize, load.batches.len());
        load.acknowledged = load.batches.len();
        format!("flush {id}")
    }

    async fn commit(&mut self, random: &mut ChaCha8Rng) -> String {
        let Some(id) = self.open_load(random) else { return "nothing".into() };
        let load = self.model.loads.get_mut(&id).unwrap();
        let outcome = self.writers.get_mut(&id).unwrap().commit(&self.device, load.batches.len() as u64).await;
        load.acknowledged = load.batches.len();
        if outcome.is_err() {
            // The table came or went meanwhile: the load can only be aborted.
            self.store.load_abort(&self.device, &[id; 16]).await.unwrap();
            load.state = LoadState::Aborted;
        } else {
            load.state = LoadState::Committed;
            let rows = self.model.tables.entry(load.table.to_string()).or_default();
            if load.mode != LoadMode::Append {
                rows.clear();
            }
            rows.extend(load.batches.iter().flatten());
            rows.sort_unstable();
        }
        self.writers.remove(&id);
        format!("commit {id}: {outcome:?}")
    }

    async fn abort(&mut self, random: &mut ChaCha8Rng) -> String {
        let Some(id) = self.open_load(random) else { return "nothing".into() };
        self.writers.remove(&id).unwrap().abort(&self.device).await.unwrap();
        self.model.loads.get_mut(&id).unwrap().state = LoadState::Aborted;
        format!("abort {id}")
    }

    async fn create_table(&mut self, random: &mut ChaCha8Rng) -> String {
        let table = TABLES[random.random_range(0..TABLES.len())];
        if self.store.create_table(&self.device, table, &schema(), order_of(table).as_ref(), 1).await.is_ok() {
            self.model.tables.insert(table.into(), Vec::new());
        }
        format!("create {table}")
    }

    async fn drop_table(&mut self, random: &mut ChaCha8Rng) -> String {
        let table = ["a", "b", "b", "c", "c"][random.random_range(0..5)];
        let dropped = self.store.drop_table(&self.device, table).await.is_ok();
        assert_eq!(self.model.tables.remove(table).is_some(), dropped);
        format!("drop {table}")
    }

    async fn delete(&mut self, random: &mut ChaCha8Rng) -> String {
        let names: Vec<String> = self.model.tables.keys().cloned().collect();
        if names.is_empty() {
            return "nothing".into();
        }
        let name = &names[random.random_range(0..names.len())];
        let (low, high) = (random.random_range(0..=self.next_key), random.random_range(0..=self.next_key));
        let (modulus, kind) = (random.random_range(2..40), random.random_range(0..10));
        let is_wanted = |key: i64| match kind {
            0 => true,
            1..4 => (low.min(high)..low.max(high)).contains(&key),
            _ => key.wrapping_mul(7919) % modulus == 0,
        };
        let rows = delete(&self.device, &self.store, name, is_wanted).await;
        let kept = self.model.tables.get_mut(name).unwrap();
        let before = kept.len();
        kept.retain(|key| !is_wanted(*key));
        assert_eq!(rows as usize, before - kept.len());
        format!("delete {rows} of {name}")
    }

    async fn merge(&mut self, random: &mut ChaCha8Rng) -> String {
        let Some(job) = self.store.pick_merge() else { return "nothing to merge".into() };
        if random.random_bool(0.2) {
            let deleted = self.delete(random).await;
            let merged = self.store.merge(&self.device, job).await.unwrap();
            return format!("{deleted} during merge {merged:?}");
        }
        let merged = self.store.merge(&self.device, job).await.unwrap();
        format!("merge {merged:?}")
    }

    async fn read_or_reclaim(&mut self, random: &mut ChaCha8Rng) -> String {
        if random.random_bool(0.5) {
            self.readers.clear();
            for table in self.store.catalog().tables.values() {
                self.readers.push((table.clone(), contents(&self.device, table).await));
            }
            return "read".into();
        }
        self.readers.clear();
        self.store.reclaim(&self.device).await.unwrap();
        "reclaim".into()
    }
}

/// Whether the open store is in this state; why not otherwise. Loads may be durable beyond what was acknowledged.
async fn compare(device: &SimDevice, store: &Store, model: &Model, sent: &Model) -> Result<(), String> {
    let mut tables = BTreeMap::new();
    for (name, table) in &store.catalog().tables {
        tables.insert(name.clone(), contents(device, table).await.into_iter().map(|row| row.0).collect::<Vec<_>>());
    }
    if tables != model.tables {
        return Err(format!("tables are {tables:?}, expected {:?}", model.tables));
    }
    for (id, load) in &model.loads {
        let status = store.load_status(&[*id; 16]).map_err(|error| error.to_string())?;
        if status.state != load.state {
            return Err(format!("load {id} is {:?}, expected {:?}", status.state, load.state));
        }
        let sent = sent.loads.get(id).map_or(0, |load| load.batches.len()).max(load.batches.len());
        let durable = status.durable_batches as usize;
        if load.state == LoadState::Open && !(load.acknowledged..=sent).contains(&durable) {
            return Err(format!("load {id} has {durable} batches, {} acknowledged, {sent} sent", load.acknowledged));
        }
    }
    for id in 0..=u8::MAX {
        if !model.loads.contains_key(&id) && store.load_status(&[id; 16]).is_ok() {
            return Err(format!("load {id} is there, but was never begun"));
        }
    }
    Ok(())
}

/// One crash: opens what it left, and asserts all claims.
fn survive(run: &Run, seed: u64, position: usize, replay: &Replay, torn: bool, folder: &Path) {
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ (position as u64) << 1 ^ u64::from(torn));
    let image = replay.crash(&mut random);
    let empty = Model::default();
    let done = run.steps.iter().take_while(|step| step.end <= position).last();
    let before = done.map_or(&empty, |step| &step.after);
    let in_progress = run.steps.iter().find(|step| step.start <= position && position < step.end);
    let begun = in_progress.filter(|step| step.start < position || torn);
    let after = begun.map_or(before, |step| &step.after);
    let context = format!(
        "HELIOSTAT_SEED={seed}: crash at event {position}{} in {:?}",
        if torn { " with a torn manifest" } else { "" },
        begun.map(|step| &step.name)
    );

    let metadata = folder.join("metadata");
    if metadata.exists() {
        std::fs::remove_dir_all(&metadata).unwrap();
    }
    let manifest = Manifest::folder_of(&metadata);
    if torn {
        tear(&run.manifests[replay.manifest], &run.manifests[replay.manifest + 1], &manifest, &mut random);
    } else {
        copy_manifest(&run.manifests[replay.manifest], &manifest);
    }
    let (lose_before, lose_after) = (random.random_range(0..3) == 0, random.random_range(0..3) == 0);
    if lose_before {
        let device = SimDevice::new(image.clone());
        let lost = folder.join("lost");
        block_on(async {
            rebuild(&device, &lost, true, false).await.unwrap_or_else(|error| panic!("{context}: rebuild: {error}"));
            let store = Store::open(&device, StoreOptions::new(&lost)).await.unwrap();
            let tables = |model: &Model| Model { loads: BTreeMap::new(), ..model.clone() };
            let found = tables_of(&device, &store).await;
            let right = found == tables(before).tables || found == tables(after).tables;
            assert!(right, "{context}: rebuilt {found:?}, expected {:?} or {:?}", before.tables, after.tables);
            let report = store.check(&device, true).await.unwrap();
            assert!(report.is_clean(), "{context}: rebuilt: {report}");
        });
    }
    let device = SimDevice::new(image);
    block_on(async {
        let store = Store::open(&device, StoreOptions::new(&metadata)).await;
        let store = store.unwrap_or_else(|error| panic!("{context}: {error}"));
        let as_before = compare(&device, &store, before, after).await;
        let as_after = compare(&device, &store, after, after).await;
        if let (Err(one), Err(two)) = (&as_before, &as_after) {
            panic!("{context}: neither as before ({one}) nor as after ({two})");
        }
        let model = if as_before.is_ok() { before } else { after };
        for table in store.catalog().tables.values() {
            for (key, rowid) in contents(&device, table).await {
                let known = run.rowids.get(&key).copied().unwrap_or(rowid);
                assert_eq!(known, rowid, "{context}: the row id of key {key} changed");
            }
        }
        let report = store.check(&device, true).await.unwrap();
        assert!(report.is_clean() && report.pending == 0, "{context}: {report}");
        let expected = resume(&device, &store, model, after, &mut random, &context).await;
        let found = tables_of(&device, &store).await;
        assert_eq!(found, expected, "{context}: after resuming");
        let report = store.check(&device, true).await.unwrap();
        assert!(report.is_clean() && report.pending == 0, "{context}: after resuming: {report}");
        drop(store);
        if lose_after {
            rebuild(&device, &metadata, true, false).await.unwrap_or_else(|error| panic!("{context}: {error}"));
            let store = Store::open(&device, StoreOptions::new(&metadata)).await.unwrap();
            assert_eq!(tables_of(&device, &store).await, expected, "{context}: rebuilt after the restart");
            let report = store.check(&device, true).await.unwrap();
            assert!(report.is_clean(), "{context}: rebuilt after the restart: {report}");
        }
    });
}

async fn tables_of(device: &SimDevice, store: &Store) -> BTreeMap<String, Vec<i64>> {
    let mut tables = BTreeMap::new();
    for (name, table) in &store.catalog().tables {
        tables.insert(name.clone(), contents(device, table).await.into_iter().map(|row| row.0).collect());
    }
    tables
}

/// Commits or aborts every open load with the batches it has, and returns what the tables must be then.
async fn resume(
    device: &SimDevice,
    store: &Arc<Store>,
    model: &Model,
    sent: &Model,
    random: &mut ChaCha8Rng,
    context: &str,
) -> BTreeMap<String, Vec<i64>> {
    let mut tables = model.tables.clone();
    for (id, load) in model.loads.iter().filter(|(_, load)| load.state == LoadState::Open) {
        let begun = store.load_begin(request(*id, load.table, load.mode)).await;
        let (status, writer) = begun.unwrap_or_else(|error| panic!("{context}: load {id}: {error}"));
        let mut writer = writer.expect("the load is open");
        let durable = status.durable_batches as usize;
        if random.random_bool(0.3) {
            writer.abort(device).await.unwrap();
            continue;
        }
        let newest = sent.loads.get(id).filter(|other| other.batches.len() > load.batches.len()).unwrap_or(load);
        let mut rows: Vec<i64> = newest.batches[..durable].iter().flatten().copied().collect();
        let fresh = i64::from(*id) - 1000;
        writer.push(device, durable as u64, batch(&[fresh])).await.unwrap();
        rows.push(fresh);
        if writer.commit(device, durable as u64 + 1).await.is_err() {
            writer.abort(device).await.unwrap();
            continue;
        }
        let table = tables.entry(load.table.to_string()).or_default();
        if load.mode != LoadMode::Append {
            table.clear();
        }
        table.extend(rows);
        table.sort_unstable();
    }
    tables
}

/// The manifest of `newer`, its log cut off within what it has more than `older`.
fn tear(older: &Path, newer: &Path, to: &Path, random: &mut ChaCha8Rng) {
    copy_manifest(newer, to);
    for entry in std::fs::read_dir(to).unwrap() {
        let path = entry.unwrap().path();
        let is_log = path.extension().is_some_and(|extension| extension == "log");
        let Ok(before) = std::fs::metadata(older.join(path.file_name().unwrap())) else { continue };
        let after = std::fs::metadata(&path).unwrap().len();
        if is_log && after > before.len() {
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(random.random_range(before.len()..after)).unwrap();
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn a_crash_at_any_instant_loses_nothing_that_was_acknowledged() {
    crash_everywhere(number("HELIOSTAT_SEED").unwrap_or(3), number("HELIOSTAT_STEPS").unwrap_or(200) as usize);
}

/// A short run that was not played before: over time these meet what one seed does not.
#[test]
fn a_crash_at_any_instant_of_a_new_run_loses_nothing_either() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let (seed, steps) = (now.as_nanos() as u64, 60);
    println!("to play this run again: HELIOSTAT_SEED={seed} HELIOSTAT_STEPS={steps}, in the test of one seed");
    crash_everywhere(seed, steps);
}

fn crash_everywhere(seed: u64, steps: usize) {
    let run = record(seed, steps);
    let count =
        |name: &str| run.steps.iter().filter(|step| step.name.starts_with(name) && step.end > step.start).count();
    println!(
        "HELIOSTAT_SEED={seed}: {} steps ({} commits, {} aborts, {} deletions, {} merges, {} drops), {} crash points",
        run.steps.len(),
        count("commit"),
        count("abort"),
        count("delete"),
        count("merge Some"),
        count("drop"),
        run.events.len()
    );
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let run = &run;
            scope.spawn(move || {
                let folder = tempfile::tempdir().unwrap();
                let mut replay = Replay::new(run.image.clone(), 0);
                for position in 0..=run.events.len() {
                    if position % threads == thread {
                        survive(run, seed, position, &replay, false, folder.path());
                        if matches!(run.events.get(position), Some(Event::Manifest(_))) {
                            survive(run, seed, position, &replay, true, folder.path());
                        }
                    }
                    if let Some(event) = run.events.get(position) {
                        replay.apply(event);
                    }
                }
            });
        }
    });
}
