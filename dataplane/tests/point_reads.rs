//! Point reads: prepared statements, and which core answers a question that reads little.

mod cell;

use cell::{TestCell, Wire, everything, schema};
use hidb::frame::FrameKind;
use hidb::plan::sql::{ScanText, parse_scan};
use hidb::plan::substrait::to_substrait;
use hidb::{ErrorCode, proto};

fn code(error: &proto::Error) -> ErrorCode {
    ErrorCode::from_number(error.code)
}

#[test]
fn prepared_statements_take_parameters_and_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &["--statements-max", "2"]);
    let mut wire = Wire::connect(cell.address);
    wire.load("t", 4, 1_000);
    let text = ScanText { filter: Some("id = ?".into()), select: vec!["id".into(), "note".into()], ..everything("t") };
    let plan = match parse_scan(&text, &schema()) {
        Ok(plan) => plan,
        Err(error) => panic!("{error}"),
    };
    let prepare = proto::Prepare {
        table: "t".into(),
        schema_hash: schema().hash(),
        substrait_plan: to_substrait(&plan, &schema()).into(),
    };
    let prepared: proto::Prepared = wire.ask(FrameKind::Prepare, &prepare).unwrap();
    assert_eq!(prepared.parameters.len(), 1);
    let execute = |statement_id, value| proto::Execute {
        statement_id,
        parameters: vec![proto::Value { value: Some(proto::value::Value::Integer(value)) }],
        ..Default::default()
    };
    for wanted in [0i64, 17, 3_999] {
        let id = wire.id();
        wire.send(FrameKind::Execute, id, &execute(prepared.statement_id, wanted), &[]);
        let rows = wire.rows(id).unwrap();
        assert_eq!(rows.iter().map(|batch| batch.num_rows()).sum::<usize>(), 1);
    }
    let id = wire.id();
    let none = proto::Execute { statement_id: prepared.statement_id, ..Default::default() };
    wire.send(FrameKind::Execute, id, &none, &[]);
    assert_eq!(code(&wire.rows(id).unwrap_err()), ErrorCode::InvalidParameter);
    // Two more push the first one out.
    for _ in 0..2 {
        wire.ask::<proto::Prepared>(FrameKind::Prepare, &prepare).unwrap();
    }
    let id = wire.id();
    wire.send(FrameKind::Execute, id, &execute(prepared.statement_id, 1), &[]);
    assert_eq!(code(&wire.rows(id).unwrap_err()), ErrorCode::UnknownStatement);
}

#[test]
fn a_row_group_that_is_asked_for_again_is_kept_by_the_core_that_asks() {
    let folder = tempfile::tempdir().unwrap();
    // Room for all row groups in each core's half: what is read again was not kept, and not pushed out.
    let options = ["--cores", "2", "--cache", "64MiB"];
    let cell = TestCell::start(folder.path(), &options);
    let mut wire = Wire::connect(cell.address);
    // Segments of four row groups go to shards in turn: both cores have some.
    wire.load("t", 40, 40_000);
    drop(wire);
    assert!(cell.stop().success());
    let cell = TestCell::start(folder.path(), &options);
    let mut wire = Wire::connect(cell.address);
    let mut read_again = 0;
    for id in (0..1_600_000).step_by(131_072).map(|id| id + 77) {
        let text = ScanText { filter: Some(format!("id = {id}")), ..everything("t") };
        let mut read = Vec::new();
        for _ in 0..5 {
            let (batches, statistics) = wire.scan_with_statistics(&text).unwrap();
            let ids: Vec<i64> = batches.iter().flat_map(cell::ids).collect();
            assert_eq!(ids, [id]);
            read.push(statistics.bytes_read_device);
        }
        // By the core that has the shard, or by this one; then by this one; then from its cache.
        assert!(read[0] > 0, "{read:?}");
        assert!(read[1] <= read[0], "{read:?}");
        assert_eq!(read[2..], [0; 3], "{read:?}");
        read_again += u32::from(read[1] > 0);
    }
    assert!(read_again > 2, "{read_again} row groups of the other core were read by this one");
    let whole = wire.scan(&everything("t")).unwrap();
    cell::assert_first_rows(&whole, 1_600_000);
}
