//! kill -9 at random instants of a load: what was acknowledged is there, what was not is invisible, nothing leaks.

mod cell;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cell::{TestCell, Wire, assert_clean, assert_first_rows, batch, everything};
use hidb::frame::FrameKind;
use hidb::proto;
use hidb::proto::load_state::State;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const KILLS: u64 = 50;
const BATCHES: u64 = 24;
const ROWS: usize = 500;
/// Kills between two deep checks of the volume, which need the cell to be down.
const KILLS_PER_CHECK: u64 = 5;

/// Sends batches from `from` on and notes what is acknowledged, until all are sent and committed (true) or the
/// connection breaks (false).
fn feed(wire: &mut Wire, load_id: [u8; 16], from: u64, acknowledged: &AtomicU64) -> bool {
    for number in from..BATCHES {
        if wire.load_batch(load_id, number, &batch(number, ROWS)).is_err() {
            return false;
        }
        // Wait for the acknowledgement now and then, so that there are segments of every length.
        while number % 3 == 2 && acknowledged.load(Ordering::SeqCst) <= number {
            match wire.receive() {
                Some(frame) if frame.kind == FrameKind::LoadState => {
                    let state: proto::LoadState = frame.message().unwrap();
                    acknowledged.fetch_max(state.durable_batches, Ordering::SeqCst);
                }
                Some(frame) => panic!("{:?}", frame.message::<proto::Error>()),
                None => return false,
            }
        }
    }
    let commit = proto::LoadCommit { load_id: load_id.to_vec().into(), batches: BATCHES };
    if wire.try_send(FrameKind::LoadCommit, 77, &commit, &[]).is_err() {
        return false;
    }
    loop {
        match wire.receive() {
            Some(frame) if frame.kind == FrameKind::LoadState => {
                let state: proto::LoadState = frame.message().unwrap();
                acknowledged.fetch_max(state.durable_batches, Ordering::SeqCst);
                if state.state() == State::Committed {
                    return true;
                }
            }
            Some(frame) => panic!("{:?}", frame.message::<proto::Error>()),
            None => return false,
        }
    }
}

#[test]
fn fifty_kills_lose_no_acknowledged_batch_and_leak_no_extent() {
    let seed = std::env::var("HELIOSTAT_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20261121);
    println!("seed {seed} (HELIOSTAT_TEST_SEED)");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let options = ["--load-idle-flush", "1ms", "--merge-interval", "20ms", "--cache", "8MiB"];
    let mut generation = 0u64;
    let mut load_id = [0u8; 16];
    let mut kills = 0;
    // Kills that left a load half done, and half done loads that were given up.
    let (mut interrupted, mut aborted) = (0, 0);
    let mut acknowledged = Arc::new(AtomicU64::new(0));
    let mut committed = false;
    while kills < KILLS {
        let cell = TestCell::start(folder.path(), &options);
        let mut wire = Wire::connect(cell.address);
        let table = format!("t{generation}");
        load_id[..8].copy_from_slice(&generation.to_le_bytes());
        // What the last kill left.
        let visible = wire.tables().iter().any(|summary| summary.name == table);
        if generation > 0 && !wire.tables().iter().any(|s| s.name == format!("t{}", generation - 1)) {
            panic!("seed {seed}: the committed table t{} is gone", generation - 1);
        }
        if visible {
            assert_first_rows(&wire.scan(&everything(&table)).unwrap(), BATCHES as usize * ROWS);
        } else {
            assert!(!committed, "seed {seed}: a commit was acknowledged and is lost");
        }
        let mut state = wire.load_begin(load_id, &table).unwrap();
        assert_eq!(state.state() == State::Committed, visible, "seed {seed}, kill {kills}");
        assert!(
            state.durable_batches >= acknowledged.load(Ordering::SeqCst),
            "seed {seed}, kill {kills}: {} batches were acknowledged, {} are there",
            acknowledged.load(Ordering::SeqCst),
            state.durable_batches
        );
        if visible {
            // Whole: on to the next table; drop an old one now and then, so that space must come back.
            if generation % 2 == 1 {
                let drop = proto::DropTable { name: format!("t{}", generation - 1), if_exists: false };
                wire.ask::<proto::Done>(FrameKind::DropTable, &drop).unwrap();
            }
            generation += 1;
            acknowledged = Arc::new(AtomicU64::new(0));
            committed = false;
            drop(wire);
            assert!(cell.stop().success());
            continue;
        }
        if (1..BATCHES).contains(&state.durable_batches) {
            interrupted += 1;
            if random.random_range(0..6) == 0 {
                let abort = proto::LoadAbort { load_id: load_id.to_vec().into() };
                let given_up: proto::LoadState = wire.ask(FrameKind::LoadAbort, &abort).unwrap();
                assert_eq!(given_up.state(), State::Aborted, "seed {seed}, kill {kills}");
                // The table is loaded under another id, from the start.
                aborted += 1;
                load_id[8..].copy_from_slice(&u64::to_le_bytes(aborted));
                acknowledged = Arc::new(AtomicU64::new(0));
                state = wire.load_begin(load_id, &table).unwrap();
                assert_eq!((state.state(), state.durable_batches), (State::Open, 0), "seed {seed}, kill {kills}");
            }
        }
        let delay = Duration::from_micros(random.random_range(0..60_000));
        let from = state.durable_batches;
        let feeder = std::thread::spawn({
            let acknowledged = acknowledged.clone();
            move || feed(&mut wire, load_id, from, &acknowledged)
        });
        std::thread::sleep(delay);
        cell.kill();
        kills += 1;
        committed = feeder.join().unwrap();
        if kills % KILLS_PER_CHECK == 0 {
            // Opening takes back what the crash left; then every extent must have exactly one owner.
            assert!(TestCell::start(folder.path(), &options).stop().success());
            assert_clean(folder.path());
        }
    }
    println!("{interrupted} of {kills} kills left a load half done, {aborted} of those were aborted");
    assert!(interrupted > 0, "seed {seed}: no kill hit a load under way");
    // The last load comes to its end.
    let cell = TestCell::start(folder.path(), &options);
    let mut wire = Wire::connect(cell.address);
    let table = format!("t{generation}");
    load_id[..8].copy_from_slice(&generation.to_le_bytes());
    let state = wire.load_begin(load_id, &table).unwrap();
    if state.state() != State::Committed {
        assert!(feed(&mut wire, load_id, state.durable_batches, &acknowledged));
    }
    assert_first_rows(&wire.scan(&everything(&table)).unwrap(), BATCHES as usize * ROWS);
    drop(wire);
    assert!(cell.stop().success());
    assert_clean(folder.path());
}

#[test]
fn an_aborted_load_after_a_kill_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &["--load-idle-flush", "1ms"]);
    let free_before = free_bytes(&mut Wire::connect(cell.address));
    let mut wire = Wire::connect(cell.address);
    wire.load_begin([1; 16], "t").unwrap();
    for number in 0..6 {
        wire.load_batch([1; 16], number, &batch(number, ROWS)).unwrap();
    }
    loop {
        let state: proto::LoadState = wire.receive().unwrap().message().unwrap();
        if state.durable_batches == 6 {
            break;
        }
    }
    cell.kill();
    let cell = TestCell::start(folder.path(), &[]);
    let mut wire = Wire::connect(cell.address);
    assert!(wire.tables().is_empty());
    let abort = proto::LoadAbort { load_id: vec![1; 16].into() };
    let state: proto::LoadState = wire.ask(FrameKind::LoadAbort, &abort).unwrap();
    assert_eq!(state.state(), State::Aborted);
    assert_eq!(free_bytes(&mut wire), free_before);
    drop(wire);
    assert!(cell.stop().success());
    assert_clean(folder.path());
}

fn free_bytes(wire: &mut Wire) -> u64 {
    wire.ask::<proto::CellStatus>(FrameKind::DescribeCell, &proto::DescribeCell {}).unwrap().free_bytes
}
