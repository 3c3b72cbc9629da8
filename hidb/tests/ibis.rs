//! Plans that Ibis wrote (`fixtures/generate.py`) mean what the same text means.

use hidb::plan::ScanPlan;
use hidb::plan::sql::{ScanText, parse_scan};
use hidb::plan::substrait::{from_substrait, table_name};
use hidb::{Field, Result, Schema};

fn schema() -> Schema {
    let columns = [
        ("l_orderkey", "int64", false),
        ("l_quantity", "decimal(15,2)", false),
        ("l_extendedprice", "decimal(15,2)", false),
        ("l_discount", "decimal(15,2)", false),
        ("l_returnflag", "text", false),
        ("l_shipdate", "date", false),
        ("l_comment", "text", true),
    ];
    let field =
        |(name, data_type, nullable): (&str, &str, bool)| Field::new(name, data_type.parse().unwrap(), nullable);
    Schema::new(columns.into_iter().map(field).collect()).unwrap()
}

fn read(plan: &[u8]) -> ScanPlan {
    assert_eq!(table_name(plan).unwrap(), "lineitem");
    let resolve = |_: &str| -> Result<Schema> { Ok(schema()) };
    from_substrait(plan, &resolve).unwrap_or_else(|error| panic!("{error}"))
}

fn text(filter: &str, select: &[&str], aggregates: &[&str], group_by: &[&str], order_by: &[&str]) -> ScanPlan {
    let strings = |list: &[&str]| list.iter().map(|s| s.to_string()).collect();
    let scan = ScanText {
        table: "lineitem".into(),
        filter: (!filter.is_empty()).then(|| filter.to_string()),
        select: strings(select),
        aggregates: strings(aggregates),
        group_by: strings(group_by),
        order_by: strings(order_by),
        ..ScanText::default()
    };
    parse_scan(&scan, &schema()).unwrap()
}

#[test]
fn a_filter_and_a_sum_are_tpch_q6() {
    let expected = text(
        "l_shipdate >= date '1994-01-01' and l_shipdate < date '1995-01-01' \
         and l_discount between 0.05 and 0.07 and l_quantity < 24",
        &[],
        &["sum(l_extendedprice * l_discount) as revenue"],
        &[],
        &[],
    );
    assert_eq!(read(include_bytes!("fixtures/ibis_q6.plan")), expected);
}

#[test]
fn groups_with_a_distinct_count_and_an_order() {
    let expected = text(
        "",
        &["l_returnflag"],
        &["count(*) as n", "sum(l_quantity) as q", "min(l_shipdate) as lo", "count(distinct l_orderkey) as u"],
        &["l_returnflag"],
        &["l_returnflag asc nulls first"],
    );
    assert_eq!(read(include_bytes!("fixtures/ibis_group.plan")), expected);
}

#[test]
fn like_not_null_order_and_limit() {
    let plan = read(include_bytes!("fixtures/ibis_limit.plan"));
    let mut expected = text(
        "l_comment like '%special%' and l_comment is not null",
        &["l_orderkey", "l_comment"],
        &[],
        &[],
        &["l_orderkey desc nulls last"],
    );
    expected.limit = Some(5);
    assert_eq!(plan.limit, Some(5));
    assert_eq!(plan.filter, expected.filter);
    assert_eq!(plan.outputs, expected.outputs);
    assert!(plan.sort[0].descending);
}

#[test]
fn case_extract_upper_and_substring() {
    let expected = text(
        "",
        &[
            "case when l_quantity > 40 then 'big' else 'small' end as big",
            "extract(year from l_shipdate) as y",
            "upper(l_comment) as up",
            // ibis-substrait passes its zero-based start 1 on as Substrait's one-based one.
            "substring(l_comment from 1 for 3) as s",
        ],
        &[],
        &[],
        &[],
    );
    assert_eq!(read(include_bytes!("fixtures/ibis_case.plan")), expected);
}

#[test]
fn lists_or_and_not() {
    let expected = text("l_returnflag in ('A', 'R') or not l_orderkey = 3", &["l_orderkey"], &[], &[], &[]);
    assert_eq!(read(include_bytes!("fixtures/ibis_in.plan")), expected);
}
