//! Damage and mix-ups on the volume: a flipped bit is an error that says where, never a wrong row; a volume that is
//! not what it should be is refused with what to do.

mod cell;

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use cell::{TestCell, Wire, assert_clean, assert_first_rows, everything, tool, volume_of};
use hidb::frame::FrameKind;
use hidb::plan::sql::parse_scan;
use hidb::plan::substrait::to_substrait;
use hidb::{DataType, ErrorCode, Field, Schema, arrow_mapping, convert, proto};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const ROWS: usize = 8 * 4_000;

/// A folder with a volume that holds table `t`, and no running cell.
fn loaded() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &["--merge-interval", "0ms"]);
    let mut wire = Wire::connect(cell.address);
    wire.load("t", 8, 4_000);
    drop(wire);
    assert!(cell.stop().success());
    folder
}

/// Bytes of the volume that hold something.
fn used(volume: &File) -> Vec<u64> {
    let length = volume.metadata().unwrap().len();
    let mut block = [0; 4096];
    // Past the first copy of the superblock and before the second one.
    (1..length / 4096 - 1)
        .filter(|index| {
            volume.read_exact_at(&mut block, index * 4096).unwrap();
            block.iter().any(|byte| *byte != 0)
        })
        .map(|index| index * 4096)
        .collect()
}

#[test]
fn a_flipped_bit_is_reported_with_its_place_and_never_changes_a_row() {
    let folder = loaded();
    let volume = OpenOptions::new().read(true).write(true).open(volume_of(folder.path())).unwrap();
    let pages = used(&volume);
    assert!(pages.len() > 20, "{} pages in use", pages.len());
    let seed = 20261121;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (mut detected, mut harmless) = (0, 0);
    for round in 0..40 {
        let offset = pages[random.random_range(0..pages.len())] + random.random_range(0..4096);
        let mut byte = [0];
        volume.read_exact_at(&mut byte, offset).unwrap();
        let flipped = [byte[0] ^ 1 << random.random_range(0..8)];
        volume.write_all_at(&flipped, offset).unwrap();
        volume.sync_all().unwrap();
        match TestCell::try_start(folder.path(), &["--merge-interval", "0ms"]) {
            // A footer or header: found when the store opens.
            Err(error) => {
                detected += 1;
                assert!(error.contains("volume") && error.contains("offset"), "round {round}: {error}");
            }
            Ok(cell) => match Wire::connect(cell.address).scan(&everything("t")) {
                Ok(rows) => {
                    harmless += 1;
                    assert_first_rows(&rows, ROWS);
                }
                Err(error) => {
                    detected += 1;
                    let text = &error.message;
                    assert_eq!(ErrorCode::from_number(error.code), ErrorCode::Corruption, "{text}");
                    for fact in ["volume", "segment", "column", "offset"] {
                        assert!(text.contains(fact), "round {round}: {fact} is missing in {text:?}");
                    }
                }
            },
        }
        volume.write_all_at(&byte, offset).unwrap();
        volume.sync_all().unwrap();
    }
    println!("seed {seed}: {detected} flips detected, {harmless} hit nothing that is read");
    // Most pages in use hold chunks, and every byte of a chunk counts.
    assert!(detected >= 20, "seed {seed}: only {detected} of 40 flips were detected");
    let cell = TestCell::start(folder.path(), &[]);
    assert_first_rows(&Wire::connect(cell.address).scan(&everything("t")).unwrap(), ROWS);
}

#[test]
fn check_deep_finds_a_flipped_bit_in_a_chunk() {
    let folder = loaded();
    let volume = OpenOptions::new().read(true).write(true).open(volume_of(folder.path())).unwrap();
    let pages = used(&volume);
    let mut found = 0;
    for page in pages.iter().step_by(3) {
        let mut byte = [0];
        volume.read_exact_at(&mut byte, page + 5).unwrap();
        volume.write_all_at(&[byte[0] ^ 4], page + 5).unwrap();
        let (code, out, _) = tool(&["check", "--deep", "--volume", volume_of(folder.path()).to_str().unwrap()]);
        if code == 1 {
            found += 1;
            assert!(!out.contains("\nclean"), "{out}");
        }
        volume.write_all_at(&byte, page + 5).unwrap();
    }
    assert!(found * 2 > pages.len() / 3, "{found} of {} flips found", pages.len() / 3);
    assert_clean(folder.path());
}

fn refused(folder: &Path) -> String {
    match TestCell::try_start(folder, &["--auto-format", "false"]) {
        Ok(_) => panic!("the cell started"),
        Err(error) => error,
    }
}

#[test]
fn a_volume_that_is_not_formatted_newer_or_truncated_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(volume_of(folder.path()), vec![0; 1 << 20]).unwrap();
    let error = refused(folder.path());
    assert!(error.contains("not a Heliostat volume") && error.contains("format"), "{error}");

    let folder = loaded();
    let file = OpenOptions::new().read(true).write(true).open(volume_of(folder.path())).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length / 2).unwrap();
    let error = refused(folder.path());
    assert!(error.contains("truncated"), "{error}");
    file.set_len(length).unwrap();

    // The format version, behind the magic.
    file.write_all_at(&9u32.to_le_bytes(), 8).unwrap();
    let error = refused(folder.path());
    assert!(error.contains("format version 9") && error.contains("newer heliostat-cell"), "{error}");
}

#[test]
fn a_volume_in_use_is_refused_to_a_second_cell_and_to_tools() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &[]);
    let error = refused(folder.path());
    assert!(error.contains("in use"), "{error}");
    let volume = volume_of(folder.path());
    let (code, _, err) = tool(&["check", "--volume", volume.to_str().unwrap()]);
    assert_eq!(code, 1);
    assert!(err.contains("in use"), "{err}");
    let (code, _, err) = tool(&["format", "--force", "--volume", volume.to_str().unwrap()]);
    assert_eq!(code, 1);
    assert!(err.contains("in use"), "{err}");
    assert!(Wire::connect(cell.address).tables().is_empty());
}

#[test]
fn a_lost_metadata_folder_is_named_and_rebuilt_without_reviving_what_was_dropped() {
    let folder = loaded();
    let cell = TestCell::start(folder.path(), &["--merge-interval", "0ms"]);
    let mut wire = Wire::connect(cell.address);
    wire.load("gone", 3, 1_000);
    let drop_gone = proto::DropTable { name: "gone".into(), if_exists: false };
    wire.ask::<proto::Done>(FrameKind::DropTable, &drop_gone).unwrap();
    drop(wire);
    assert!(cell.stop().success());
    let mut metadata = volume_of(folder.path()).into_os_string();
    metadata.push(".meta");
    std::fs::remove_dir_all(&metadata).unwrap();
    let error = refused(folder.path());
    assert!(error.contains("heliostat-cell rebuild"), "{error}");
    let volume = volume_of(folder.path());
    let (code, out, err) = tool(&["rebuild", "--volume", volume.to_str().unwrap()]);
    assert_eq!(code, 0, "{out}{err}");
    assert_clean(folder.path());
    let cell = TestCell::start(folder.path(), &[]);
    let mut wire = Wire::connect(cell.address);
    let names: Vec<String> = wire.tables().into_iter().map(|table| table.name).collect();
    assert_eq!(names, ["t"]);
    assert_first_rows(&wire.scan(&everything("t")).unwrap(), ROWS);
}

#[test]
fn the_damaged_one_of_two_equal_columns_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &["--merge-interval", "0ms"]);
    let mut wire = Wire::connect(cell.address);
    let column = |name: &str| Field::new(name, DataType::Int64, false);
    let twins = Schema::new(vec![column("one"), column("two")]).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let values: ArrayRef = Arc::new(Int64Array::from_iter_values((0..4_000).map(|_| random.random())));
    let arrow = arrow_mapping::to_arrow_schema(&twins, true);
    let begin = proto::LoadBegin {
        load_id: vec![5; 16].into(),
        table: "twins".into(),
        schema: Some(convert::schema_to_proto(&twins)),
        mode: proto::load_begin::Mode::Create as i32,
        shards: 1,
    };
    wire.ask::<proto::LoadState>(FrameKind::LoadBegin, &begin).unwrap();
    wire.load_batch([5; 16], 0, &RecordBatch::try_new(arrow, vec![values.clone(), values]).unwrap()).unwrap();
    wire.load_commit([5; 16], 1).unwrap();
    drop(wire);
    assert!(cell.stop().success());
    // Chunks lie in the order of columns: the second page with the same bytes belongs to the second column.
    let volume = OpenOptions::new().read(true).write(true).open(volume_of(folder.path())).unwrap();
    let mut seen = HashMap::new();
    let second = used(&volume).into_iter().find(|at| {
        let mut page = vec![0; 4096];
        volume.read_exact_at(&mut page, *at).unwrap();
        seen.insert(page, *at).is_some()
    });
    let second = second.expect("equal columns have equal chunks") + 100;
    let mut byte = [0];
    volume.read_exact_at(&mut byte, second).unwrap();
    volume.write_all_at(&[byte[0] ^ 16], second).unwrap();
    volume.sync_all().unwrap();
    let cell = TestCell::start(folder.path(), &["--merge-interval", "0ms"]);
    let mut wire = Wire::connect(cell.address);
    let plan = parse_scan(&everything("twins"), &twins).unwrap();
    let request = proto::PredicatePushdownRequest {
        table: "twins".into(),
        substrait_plan: to_substrait(&plan, &twins).into(),
        initial_credits: 100,
        ..Default::default()
    };
    let id = wire.id();
    wire.send(FrameKind::PredicatePushdownRequest, id, &request, &[]);
    let error = wire.rows(id).unwrap_err();
    assert_eq!(ErrorCode::from_number(error.code), ErrorCode::Corruption);
    assert!(error.message.contains("column \"two\""), "{}", error.message);
}

#[test]
fn a_block_device_is_a_volume_too() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    File::create(&image).unwrap().set_len(256 << 20).unwrap();
    let attached = Command::new("losetup").args(["--find", "--show"]).arg(&image).output();
    let Some(attached) = attached.ok().filter(|output| output.status.success()) else {
        println!("skipped: no loop device here (needs root)");
        return;
    };
    struct Loop(String);
    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = Command::new("losetup").args(["--detach", &self.0]).status();
        }
    }
    let device = Loop(String::from_utf8(attached.stdout).unwrap().trim().to_string());
    let metadata = folder.path().join("metadata");
    let place = ["--volume", &device.0, "--metadata", metadata.to_str().unwrap()];
    let run = |command: &[&str]| tool(&[command, &place].concat());
    assert_eq!(run(&["format"]).0, 0);
    assert!(run(&["format"]).2.contains("--force"));
    for round in 0..2 {
        let cell = TestCell::start(folder.path(), &place);
        let mut wire = Wire::connect(cell.address);
        if round == 0 {
            wire.load("t", 8, 4_000);
        }
        assert_first_rows(&wire.scan(&everything("t")).unwrap(), ROWS);
        assert!(run(&["check"]).2.contains("in use"));
        drop(wire);
        assert!(cell.stop().success());
    }
    let (code, out, err) = run(&["check", "--deep"]);
    assert_eq!(code, 0, "{out}{err}");
}
