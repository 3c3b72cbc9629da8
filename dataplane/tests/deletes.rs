//! `DeleteRows` against a real cell: conditions of all kinds, all at once with merges and loads, notices, errors, kill -9.

mod cell;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use cell::{TestCell, Wire, assert_clean, batch, everything, ids, schema};
use hidb::frame::FrameKind;
use hidb::plan::sql::{ScanText, parse_scan};
use hidb::plan::substrait::filter_to_substrait;
use hidb::{ErrorCode, proto};

const BATCH_ROWS: usize = 3_000;

fn request(table: &str, filter: &str) -> proto::DeleteRows {
    let text = ScanText { filter: (!filter.is_empty()).then(|| filter.into()), ..everything(table) };
    let filter = parse_scan(&text, &schema()).unwrap().filter;
    proto::DeleteRows {
        table: table.into(),
        schema_hash: schema().hash(),
        substrait_filter: filter.map_or_else(Vec::new, |filter| filter_to_substrait(&filter, &schema())).into(),
        timeout_ms: 0,
    }
}

fn delete(wire: &mut Wire, table: &str, filter: &str) -> Result<u64, proto::Error> {
    wire.ask::<proto::RowsDeleted>(FrameKind::DeleteRows, &request(table, filter)).map(|deleted| deleted.rows)
}

fn code(error: &proto::Error) -> ErrorCode {
    ErrorCode::from_number(error.code)
}

/// The ids of all rows, each of which comes once; asserts that counting gives as many.
fn all_ids(wire: &mut Wire, table: &str) -> BTreeSet<i64> {
    let batches = wire.scan(&everything(table)).unwrap();
    let rows: Vec<i64> = batches.iter().flat_map(ids).collect();
    let set: BTreeSet<i64> = rows.iter().copied().collect();
    assert_eq!(set.len(), rows.len(), "a row came twice");
    set
}

fn count(wire: &mut Wire, table: &str, filter: &str) -> i64 {
    let filter = (!filter.is_empty()).then(|| filter.to_string());
    let text = ScanText { filter, aggregates: vec!["count(*) as n".into()], ..everything(table) };
    let batches = wire.scan(&text).unwrap();
    let column = batches[0].column(0).as_any().downcast_ref::<arrow_array::Int64Array>().unwrap();
    column.value(0)
}

fn rows_of(wire: &mut Wire, table: &str) -> (u64, u64) {
    let describe = proto::DescribeTable { name: table.into() };
    let description: proto::TableDescription = wire.ask(FrameKind::DescribeTable, &describe).unwrap();
    (description.summary.unwrap().rows, description.deleted_rows)
}

#[test]
fn rows_for_which_the_condition_is_true_are_deleted_and_no_others_also_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let mut cell = TestCell::start(folder.path(), &["--merge-interval", "0ms"]);
    let mut wire = Wire::connect(cell.address);
    wire.load("t", 60, BATCH_ROWS);
    let mut left: BTreeSet<i64> = (0..60 * BATCH_ROWS as i64).collect();
    let price = |id: i64| id * 31 % 100_000;
    let has_note = |id: i64| id % 7 != 3;
    let conditions: [(&str, &dyn Fn(i64) -> bool); 7] = [
        ("id < 1000", &|id| id < 1000),
        ("note is null", &|id| !has_note(id)),
        ("id < 0", &|_| false),
        // NULL is not true.
        ("note like '%of row 10%'", &|id| has_note(id) && id.to_string().starts_with("10")),
        ("price between 100.00 and 200.00 or id % 1000 = 17", &|id| {
            (10_000..=20_000).contains(&price(id)) || id % 1000 == 17
        }),
        ("_rowid is not null and id >= 170000", &|id| id >= 170_000),
        ("id in (5, 50000, 60000, 999999)", &|id| [5, 50_000, 60_000].contains(&id)),
    ];
    for (condition, is_deleted) in conditions {
        let expected = left.iter().filter(|id| is_deleted(**id)).count();
        left.retain(|id| !is_deleted(*id));
        assert_eq!(delete(&mut wire, "t", condition).unwrap(), expected as u64, "{condition}");
        assert_eq!(delete(&mut wire, "t", condition).unwrap(), 0, "{condition}, again");
        assert_eq!(count(&mut wire, "t", ""), left.len() as i64, "{condition}");
        assert_eq!(count(&mut wire, "t", condition), 0, "{condition}");
        assert_eq!(rows_of(&mut wire, "t").0, left.len() as u64);
    }
    assert_eq!(all_ids(&mut wire, "t"), left);
    assert!(rows_of(&mut wire, "t").1 > 0);
    // What is deleted raises no errors either.
    let divided = ScanText { select: vec!["1 / (id - 5)".into()], ..everything("t") };
    assert_eq!(wire.scan(&divided).unwrap().iter().map(|batch| batch.num_rows()).sum::<usize>(), left.len());
    drop(wire);
    cell.kill();
    cell = TestCell::start(folder.path(), &["--cores", "1", "--merge-interval", "10ms"]);
    let mut wire = Wire::connect(cell.address);
    assert_eq!(all_ids(&mut wire, "t"), left);
    assert_eq!(delete(&mut wire, "t", "").unwrap(), left.len() as u64);
    assert_eq!(rows_of(&mut wire, "t"), (0, 0));
    assert!(wire.scan(&everything("t")).unwrap().iter().all(|batch| batch.num_rows() == 0));
    drop(wire);
    cell.kill();
    assert_clean(folder.path());
}

#[test]
fn deletions_merges_loads_and_questions_at_the_same_time_lose_no_row_and_revive_none() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &["--merge-interval", "5ms"]);
    let mut wire = Wire::connect(cell.address);
    wire.load("t", 1, 500);
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut wire = Wire::connect(cell.address);
            for number in 1..120u64 {
                let mut load_id = [9; 16];
                load_id[..8].copy_from_slice(&number.to_le_bytes());
                let begin = proto::LoadBegin {
                    load_id: load_id.to_vec().into(),
                    table: "t".into(),
                    schema: Some(hidb::convert::schema_to_proto(&schema())),
                    mode: proto::load_begin::Mode::Append as i32,
                    shards: 2,
                };
                wire.ask::<proto::LoadState>(FrameKind::LoadBegin, &begin).unwrap();
                wire.load_batch(load_id, 0, &batch(number, 500)).unwrap();
                wire.load_commit(load_id, 1).unwrap();
            }
            is_done.store(true, Ordering::Release);
        });
        scope.spawn(|| {
            let mut wire = Wire::connect(cell.address);
            let mut before = 0;
            while !is_done.load(Ordering::Acquire) {
                // One question sees a whole deletion or nothing of it: rows of ten ids go together.
                let tens = count(&mut wire, "t", "id % 100 >= 40 and id % 100 < 50");
                assert_eq!(tens % 10, 0, "half a deletion");
                let kept = count(&mut wire, "t", "id % 100 >= 90");
                assert!(kept >= before, "rows that nobody deletes are gone");
                before = kept;
            }
        });
        let mut deleted = 0;
        let mut round = 0;
        while !is_done.load(Ordering::Acquire) {
            round += 1;
            let from = round * 700 % 60_000;
            let condition = format!("id % 100 < 90 and id / 10 * 10 >= {from} and id / 10 * 10 < {}", from + 400);
            deleted += delete(&mut wire, "t", &condition).unwrap();
        }
        assert!(deleted > 0);
        let rest = delete(&mut wire, "t", "id % 100 < 90").unwrap();
        assert_eq!(deleted + rest, 60_000 / 10 * 9, "every row was deleted once");
    });
    let expected: BTreeSet<i64> = (0..60_000).filter(|id| id % 100 >= 90).collect();
    assert_eq!(all_ids(&mut wire, "t"), expected);
    drop(wire);
    assert!(cell.stop().success());
    assert_clean(folder.path());
}

#[test]
fn a_deletion_is_announced_and_a_wrong_one_deletes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &[]);
    let mut wire = Wire::connect(cell.address);
    wire.load("t", 2, 1_000);
    let mut other = Wire::connect(cell.address);
    let generation = |wire: &mut Wire| {
        wire.tables();
        wire.notices.iter().filter(|notice| notice.table == "t").map(|notice| notice.generation).max()
    };
    let refused = [
        (proto::DeleteRows { table: "u".into(), ..request("t", "id = 1") }, ErrorCode::UnknownTable),
        (proto::DeleteRows { schema_hash: 7, ..request("t", "id = 1") }, ErrorCode::StaleSchema),
        (proto::DeleteRows { substrait_filter: b"nonsense".to_vec().into(), ..request("t", "") }, ErrorCode::Protocol),
        // An error for any row that is looked at is one of the whole request.
        (request("t", "100 / (id - 500) > 0"), ErrorCode::DivisionByZero),
    ];
    for (request, expected) in refused {
        let error = wire.ask::<proto::RowsDeleted>(FrameKind::DeleteRows, &request).unwrap_err();
        assert_eq!(code(&error), expected, "{}", error.message);
    }
    assert_eq!(count(&mut wire, "t", ""), 2_000);
    // The load made the table; of that the notice may be late.
    assert!(generation(&mut other) <= Some(1), "nothing changed");
    assert_eq!(delete(&mut wire, "t", "id < 1000").unwrap(), 1_000);
    let until = std::time::Instant::now() + cell::PATIENCE;
    while generation(&mut other) != Some(2) {
        assert!(std::time::Instant::now() < until, "no notice of the deletion");
    }
    let last = other.notices.last().unwrap();
    assert_eq!(last.reason(), proto::cache_invalidation_notice::Reason::DataChanged);
}
