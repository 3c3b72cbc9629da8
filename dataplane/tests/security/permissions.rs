//! What users may do, request by request.

use hidb::auth::Permission;
use hidb::frame::FrameKind;
use hidb::plan::sql::parse_scan;
use hidb::plan::substrait::to_substrait;
use hidb::{ErrorCode, convert, proto};
use prost::Message as _;

use crate::cell::{everything, schema};
use crate::fixture::*;

/// What one request needs: the request, and what is needed of the table `t`, or that it is for administrators.
struct Case {
    kind: FrameKind,
    body: Vec<u8>,
    needs: Need,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Need {
    Nothing,
    Table(Permission),
    Admin,
}

/// A body that was encoded already.
#[derive(Clone, Default, Debug)]
struct Encoded(Vec<u8>);

impl prost::Message for Encoded {
    fn encode_raw(&self, buffer: &mut impl bytes::BufMut) {
        buffer.put_slice(&self.0);
    }
    fn merge_field(
        &mut self,
        _: u32,
        _: prost::encoding::WireType,
        _: &mut impl bytes::Buf,
        _: prost::encoding::DecodeContext,
    ) -> Result<(), prost::DecodeError> {
        unreachable!()
    }
    fn encoded_len(&self) -> usize {
        self.0.len()
    }
    fn clear(&mut self) {
        self.0.clear();
    }
}

const OPEN_LOAD: [u8; 16] = [9; 16];

fn plan() -> Vec<u8> {
    to_substrait(&parse_scan(&everything("t"), &schema()).unwrap(), &schema())
}

/// Every kind that a client sends as a request.
fn cases() -> Vec<Case> {
    use Need::{Admin, Nothing, Table};
    use Permission::{Read, Write};
    let load_id = || OPEN_LOAD.to_vec().into();
    let begin = proto::LoadBegin {
        load_id: vec![1; 16].into(),
        table: "t".into(),
        schema: Some(convert::schema_to_proto(&schema())),
        mode: proto::load_begin::Mode::Append as i32,
        shards: 0,
    };
    let put = proto::key_value_request::Operation::Put as i32;
    let get = proto::key_value_request::Operation::Get as i32;
    let key_value = |operation| proto::KeyValueRequest { table: "t".into(), operation, ..Default::default() };
    let pushdown = |table: &str| proto::PredicatePushdownRequest {
        table: table.into(),
        substrait_plan: plan().into(),
        initial_credits: 100,
        ..Default::default()
    };
    let case = |kind, body: Vec<u8>, needs| Case { kind, body, needs };
    vec![
        case(FrameKind::ListTables, vec![], Nothing),
        case(FrameKind::DescribeCell, vec![], Nothing),
        case(FrameKind::CloseStatement, proto::CloseStatement { statement_id: 99 }.encode_to_vec(), Nothing),
        case(FrameKind::Cancel, proto::Cancel { request_id: 99 }.encode_to_vec(), Nothing),
        case(FrameKind::DescribeTable, proto::DescribeTable { name: "t".into() }.encode_to_vec(), Table(Read)),
        case(FrameKind::PredicatePushdownRequest, pushdown("t").encode_to_vec(), Table(Read)),
        case(FrameKind::PredicatePushdownRequest, pushdown("").encode_to_vec(), Table(Read)),
        case(
            FrameKind::Prepare,
            proto::Prepare { table: "t".into(), substrait_plan: plan().into(), ..Default::default() }.encode_to_vec(),
            Table(Read),
        ),
        case(
            FrameKind::VectorSearchRequest,
            proto::VectorSearchRequest { table: "t".into(), ..Default::default() }.encode_to_vec(),
            Table(Read),
        ),
        case(
            FrameKind::DeleteRows,
            proto::DeleteRows { table: "t".into(), schema_hash: 1, ..Default::default() }.encode_to_vec(),
            Table(Write),
        ),
        case(
            FrameKind::CreateIndex,
            proto::CreateIndex { table: "t".into(), ..Default::default() }.encode_to_vec(),
            Table(Write),
        ),
        case(
            FrameKind::DropIndex,
            proto::DropIndex { table: "t".into(), column: "v".into(), if_exists: true }.encode_to_vec(),
            Table(Write),
        ),
        case(FrameKind::ListIndexes, proto::ListIndexes { table: "t".into() }.encode_to_vec(), Table(Read)),
        case(FrameKind::KeyValueRequest, key_value(get).encode_to_vec(), Table(Read)),
        case(FrameKind::KeyValueRequest, key_value(put).encode_to_vec(), Table(Write)),
        case(
            FrameKind::CreateTable,
            proto::CreateTable { name: "t".into(), schema: Some(convert::schema_to_proto(&schema())), shards: 1 }
                .encode_to_vec(),
            Table(Write),
        ),
        case(FrameKind::LoadBegin, begin.encode_to_vec(), Table(Write)),
        case(FrameKind::LoadQuery, proto::LoadQuery { load_id: load_id() }.encode_to_vec(), Table(Write)),
        case(
            FrameKind::LoadCommit,
            proto::LoadCommit { load_id: load_id(), batches: 99 }.encode_to_vec(),
            Table(Write),
        ),
        case(FrameKind::LoadAbort, proto::LoadAbort { load_id: load_id() }.encode_to_vec(), Table(Write)),
        case(FrameKind::DropTable, proto::DropTable { name: "nothing".into(), if_exists: true }.encode_to_vec(), Admin),
        case(FrameKind::ReplicationDataStream, vec![], Admin),
        case(FrameKind::AddUser, vec![], Admin),
        case(FrameKind::AlterUser, vec![], Admin),
        case(FrameKind::RemoveUser, vec![], Admin),
        case(FrameKind::GrantTable, vec![], Admin),
        case(FrameKind::ListUsers, vec![], Admin),
    ]
}

#[test]
fn every_request_needs_what_its_role_and_grants_say() {
    let site = Site::new(&[
        &["none", "--role", "writer", "--write", "other"],
        &["reads", "--role", "reader", "--read", "t"],
        &["reads-all", "--role", "reader", "--read", "*"],
        &["writer-reads", "--role", "writer", "--read", "t"],
        &["writes", "--role", "writer", "--write", "t"],
        &["writes-all", "--role", "writer", "--write", "*"],
    ]);
    let cell = site.start(&[]);
    let mut root = site.session(&cell, "root");
    let create = proto::CreateTable { name: "t".into(), schema: Some(convert::schema_to_proto(&schema())), shards: 1 };
    root.ask(FrameKind::CreateTable, &create).unwrap();
    let begin = proto::LoadBegin {
        load_id: OPEN_LOAD.to_vec().into(),
        table: "t".into(),
        schema: create.schema.clone(),
        mode: proto::load_begin::Mode::Append as i32,
        shards: 0,
    };
    root.ask(FrameKind::LoadBegin, &begin).unwrap();

    use Permission::{Read, Write};
    for (user, highest) in [
        ("none", None),
        ("reads", Some(Read)),
        ("reads-all", Some(Read)),
        ("writer-reads", Some(Read)),
        ("writes", Some(Write)),
        ("writes-all", Some(Write)),
        ("root", Some(Write)),
    ] {
        let mut session = site.session(&cell, user);
        for case in cases() {
            let allowed = match case.needs {
                Need::Nothing => true,
                Need::Table(permission) => highest >= Some(permission),
                Need::Admin => user == "root",
            };
            // The load stays open for who comes next; that administrators may is seen elsewhere.
            if allowed && case.kind == FrameKind::LoadAbort {
                continue;
            }
            let answer = session.ask(case.kind, &Encoded(case.body.clone()));
            let denied = answer.as_ref().is_err_and(|error| error.code == ErrorCode::PermissionDenied as u32);
            assert_eq!(denied, !allowed, "{user}: {} {:?}: {answer:?}", case.kind.name(), case.needs);
            if denied {
                let message = answer.unwrap_err().message;
                assert!(message.contains(user), "{message}");
                assert!(case.needs == Need::Admin || message.contains("heliostat user"), "{message}");
            }
            if case.kind == FrameKind::PredicatePushdownRequest && allowed {
                // The frames of the answer that are still coming.
                while !session.receive().unwrap().message::<proto::FilteredResultSet>().unwrap().last {}
            }
        }
    }
    // What the cases leave out is answered without looking at tables, or not sent by clients.
    let asked: Vec<FrameKind> = cases().iter().map(|case| case.kind).collect();
    let left_out: Vec<&str> =
        FrameKind::ALL.iter().filter(|kind| !asked.contains(kind)).map(|kind| kind.name()).collect();
    let housekeeping = [
        "Hello",
        "HelloAck",
        "AuthenticationRequired",
        "Authenticate",
        "AuthenticateContinue",
        "Done",
        "TableList",
        "TableDescription",
        "CellStatus",
        "FilteredResultSet",
        "Prepared",
        "Execute",
        "Credit",
        "Heartbeat",
        "Error",
        "CacheInvalidationNotice",
        "OpenLink",
        "LinkOpened",
        "SlotsFree",
        "CloseLink",
        "LinkReset",
        "LoadBatch",
        "LoadState",
        "KeyValueResponse",
        "UserList",
        "RowsDeleted",
        "IndexList",
    ];
    for kind in left_out {
        assert!(housekeeping.contains(&kind), "{kind}: who may send it?");
    }
}

#[test]
fn tables_that_are_not_granted_are_not_named() {
    let site = Site::new(&[&["ada", "--role", "reader", "--read", "mine", "--read", "nowhere"]]);
    let cell = site.start(&[]);
    let mut watching = site.session(&cell, "ada");
    let mut root = site.session(&cell, "root");
    for name in ["mine", "hidden"] {
        let schema = Some(convert::schema_to_proto(&schema()));
        root.ask(FrameKind::CreateTable, &proto::CreateTable { name: name.into(), schema, shards: 1 }).unwrap();
    }
    let mut wire = site.wire(&cell);
    let ack = wire.log_in("ada", PASSWORD).unwrap();
    let names = |tables: &[proto::TableSummary]| tables.iter().map(|table| table.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&ack.tables), ["mine"]);
    let list: proto::TableList = wire.ask(FrameKind::ListTables, &proto::ListTables {}).unwrap().message().unwrap();
    assert_eq!(names(&list.tables), ["mine"]);

    let mut describe = |name: &str| {
        let error = wire.ask(FrameKind::DescribeTable, &proto::DescribeTable { name: name.into() }).unwrap_err();
        (error.code, error.message.replace(name, "NAME"))
    };
    // Whether a table that was not granted exists can't be told.
    assert_eq!(describe("hidden"), describe("missing"));
    assert_eq!(describe("hidden").0, ErrorCode::PermissionDenied as u32);
    let (code, message) = describe("nowhere");
    assert_eq!(code, ErrorCode::UnknownTable as u32);
    assert!(message.contains("mine") && !message.contains("hidden"), "{message}");

    // Nor do notices name them.
    for name in ["hidden", "mine"] {
        root.ask(FrameKind::DropTable, &proto::DropTable { name: name.into(), if_exists: false }).unwrap();
    }
    let frame = watching.receive().unwrap();
    assert_eq!(frame.kind, FrameKind::CacheInvalidationNotice);
    let notice: proto::CacheInvalidationNotice = frame.message().unwrap();
    assert_eq!((notice.table.as_str(), notice.sequence), ("mine", 1));
}

/// They hear no notices of what they may not read: what they know of it may be stale from then on.
#[test]
fn sessions_of_a_user_whose_rights_change_are_told_to_forget() {
    let site = Site::new(&[&["ada", "--role", "reader", "--read", "t"], &["bob", "--role", "reader"]]);
    let cell = site.start(&[]);
    let mut root = site.session(&cell, "root");
    let (mut ada, mut bob) = (site.wire(&cell), site.wire(&cell));
    ada.log_in("ada", PASSWORD).unwrap();
    bob.log_in("bob", PASSWORD).unwrap();
    let nothing = proto::TableGrant { table: "t".into(), ..Default::default() };
    root.ask(FrameKind::GrantTable, &proto::GrantTable { name: "ada".into(), grant: Some(nothing) }).unwrap();
    let alter = proto::AlterUser { name: "ada".into(), role: proto::Role::Writer as i32, ..Default::default() };
    root.ask(FrameKind::AlterUser, &alter).unwrap();
    root.ask(FrameKind::AlterUser, &proto::AlterUser { name: "bob".into(), ..alter }).unwrap();
    let told = |wire: &mut Raw| {
        let frame = wire.receive().unwrap();
        assert_eq!(frame.kind, FrameKind::CacheInvalidationNotice);
        let notice: proto::CacheInvalidationNotice = frame.message().unwrap();
        (notice.reason(), notice.sequence)
    };
    use proto::cache_invalidation_notice::Reason::ForgetAll;
    assert_eq!([told(&mut ada), told(&mut ada)], [(ForgetAll, 1), (ForgetAll, 2)]);
    assert_eq!(told(&mut bob), (ForgetAll, 1));
}

#[test]
fn a_prepared_statement_is_worth_no_more_than_the_grant() {
    let site = Site::new(&[&["ada", "--role", "reader", "--read", "t"]]);
    let cell = site.start(&[]);
    let mut root = site.session(&cell, "root");
    let create = proto::CreateTable { name: "t".into(), schema: Some(convert::schema_to_proto(&schema())), shards: 1 };
    root.ask(FrameKind::CreateTable, &create).unwrap();
    let mut ada = site.session(&cell, "ada");
    let prepare = proto::Prepare { table: "t".into(), substrait_plan: plan().into(), ..Default::default() };
    let prepared: proto::Prepared = ada.ask(FrameKind::Prepare, &prepare).unwrap().message().unwrap();
    let execute = proto::Execute { statement_id: prepared.statement_id, ..Default::default() };
    let mut frame = ada.ask(FrameKind::Execute, &execute).unwrap();
    while !frame.message::<proto::FilteredResultSet>().unwrap().last {
        frame = ada.receive().unwrap();
    }
    let nothing = proto::TableGrant { table: "t".into(), permission: 0 };
    root.ask(FrameKind::GrantTable, &proto::GrantTable { name: "ada".into(), grant: Some(nothing) }).unwrap();
    assert_eq!(ada.ask(FrameKind::Execute, &execute).unwrap_err().code, ErrorCode::PermissionDenied as u32);
}
