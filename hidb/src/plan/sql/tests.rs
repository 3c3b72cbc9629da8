use super::*;
use crate::plan::explain;
use crate::plan::{AggregateFunction, ExprKind};
use crate::types::{DataType, Scalar};
use crate::{Field, Schema};
use proptest::prelude::*;

fn lineitem() -> Schema {
    let decimal = DataType::Decimal { precision: 15, scale: 2 };
    let fields = [
        ("l_orderkey", DataType::Int64, false),
        ("l_linenumber", DataType::Int32, false),
        ("l_quantity", decimal, false),
        ("l_extendedprice", decimal, false),
        ("l_discount", decimal, false),
        ("l_tax", decimal, true),
        ("l_returnflag", DataType::Text, false),
        ("l_linestatus", DataType::Varchar(1), true),
        ("l_shipdate", DataType::Date, false),
        ("l_commitdate", DataType::Date, true),
        ("l_comment", DataType::Text, true),
        ("at", DataType::Timestamp { utc: false }, true),
        ("flag", DataType::Boolean, true),
        ("score", DataType::Float64, true),
    ];
    Schema::new(fields.map(|(name, data_type, nullable)| Field::new(name, data_type, nullable)).to_vec()).unwrap()
}

fn predicate(text: &str) -> Result<String> {
    let schema = lineitem();
    parse_predicate(text, &schema).map(|expr| explain::expression(&expr, &explain::column_names(&schema)))
}

fn query(sql: &str) -> Result<ScanPlan> {
    parse_query(sql, &|table| match table {
        "lineitem" => Ok(lineitem()),
        other => Err(Error::new(ErrorCode::UnknownTable, format!("there is no table {other:?}"))),
    })
}

fn explained(sql: &str) -> String {
    explain::plan(&query(sql).unwrap(), &lineitem())
}

#[test]
fn predicates_read_as_they_run() {
    for (text, expected) in [
        ("l_quantity < 24", "l_quantity < 24.00"),
        ("l_discount between 0.05 and 0.07", "l_discount >= 0.05 and l_discount <= 0.07"),
        ("l_discount between 0.06 - 0.01 and 0.06 + 0.01", "l_discount >= 0.05 and l_discount <= 0.07"),
        (
            "l_shipdate >= date '1994-01-01' and l_shipdate < date '1994-01-01' + interval '1' year",
            "l_shipdate >= date '1994-01-01' and l_shipdate < date '1995-01-01'",
        ),
        ("l_shipdate <= date '1998-12-01' - interval '90' day", "l_shipdate <= date '1998-09-02'"),
        ("l_shipdate <= '1998-09-02'", "l_shipdate <= date '1998-09-02'"),
        (
            "l_shipdate + interval '1 month 2 days' < l_commitdate",
            "l_shipdate + interval '1 months 2 days' < l_commitdate",
        ),
        ("l_commitdate - l_shipdate > 30", "l_commitdate - l_shipdate > 30"),
        ("l_comment like '%special%requests%'", "l_comment like '%special%requests%'"),
        ("l_comment not ilike 'A!%%' escape '!'", "l_comment not ilike 'A!%%' escape '!'"),
        (r"l_comment like '100\%'", "l_comment = '100%'"),
        ("l_tax is null or l_tax is not null", "l_tax is null or l_tax is not null"),
        ("l_returnflag is null", "false"),
        ("not (l_quantity < 5 or l_tax = 0.02)", "l_quantity >= 5.00 and l_tax <> 0.02"),
        ("l_orderkey in (3, 1, 2, 1)", "l_orderkey in (1, 2, 3)"),
        ("l_returnflag not in ('A', 'N')", "l_returnflag not in ('A', 'N')"),
        ("flag", "flag"),
        ("flag is not true", "not coalesce(flag, false)"),
        ("l_extendedprice * (1 - l_discount) > 100", "l_extendedprice * (1.00 - l_discount) > 100.0000"),
        ("extract(year from l_shipdate) = 1995", "extract(year from l_shipdate) = 1995"),
        ("date_part('month', at) = 2", "extract(month from at) = 2"),
        ("substring(l_comment from 2 for 3) = 'abc'", "substring(l_comment, 2, 3) = 'abc'"),
        ("substr(l_comment, 2) = 'abc'", "substring(l_comment, 2) = 'abc'"),
        ("length(l_comment) % 2 = 1", "length(l_comment) % 2 = 1"),
        ("lower(l_returnflag) = 'a'", "lower(l_returnflag) = 'a'"),
        ("coalesce(l_tax, 0) = 0", "coalesce(l_tax, 0.00) = 0.00"),
        ("case l_linenumber when 1 then true else flag end", "case when l_linenumber = 1 then true else flag end"),
        ("cast(l_quantity as bigint) = 5", "cast(l_quantity as int64) = 5"),
        ("l_quantity::double precision > 5", "cast(l_quantity as float64) > 5.0"),
        ("L_QUANTITY < 5", "l_quantity < 5.00"),
        ("\"l_quantity\" < 5", "l_quantity < 5.00"),
        ("_rowid = 7", "_rowid = 7"),
        (
            "l_shipdate between '1995-03-01' and '1995-03-07'",
            "l_shipdate >= date '1995-03-01' and l_shipdate <= date '1995-03-07'",
        ),
        ("score > 1e3", "score > 1000.0"),
        ("score > 0.5", "score > 0.5"),
        ("-l_tax < -0.01", "-l_tax < -0.01"),
        ("at >= timestamp '1995-01-01 12:00:00'", "at >= timestamp '1995-01-01 12:00:00'"),
        ("at < date '1995-01-02'", "at < timestamp '1995-01-02 00:00:00'"),
        ("l_tax is distinct from 0.01", "not coalesce(l_tax = 0.01, false)"),
        ("true and flag and 1 = 1", "flag"),
    ] {
        assert_eq!(predicate(text).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn errors_say_what_where_and_what_there_is() {
    for (text, code, words) in [
        ("l_quantity < 'abc'", ErrorCode::TypeMismatch, "decimal(15,2) < text"),
        ("l_shipdate < 'yesterday'", ErrorCode::InvalidCast, "\"yesterday\" is not a date"),
        ("l_quantty < 5", ErrorCode::UnknownColumn, "did you mean l_quantity"),
        ("t.l_quantity < 5", ErrorCode::UnknownColumn, "scanned table"),
        ("l_quantity", ErrorCode::TypeMismatch, "needs a boolean, not decimal(15,2) (in `l_quantity`)"),
        ("flag or l_quantity", ErrorCode::TypeMismatch, "OR needs a boolean, not decimal(15,2) (in `l_quantity`)"),
        ("l_returnflag = \"R\"", ErrorCode::UnknownColumn, "(write 'R' for text): there is no column \"R\" (in"),
        ("\"l_quantty\" < 5", ErrorCode::UnknownColumn, "did you mean l_quantity"),
        ("l_quantity <", ErrorCode::Syntax, "l_quantity <"),
        ("l_quantity < 5 5", ErrorCode::Syntax, "unexpected 5"),
        ("median(l_quantity) < 5", ErrorCode::UnknownFunction, "median(decimal(15,2))"),
        ("sum(l_quantity) < 5", ErrorCode::UnsupportedPlan, "aggregate"),
        ("l_orderkey in (select 1)", ErrorCode::UnsupportedPlan, "not supported"),
        ("exists (select 1)", ErrorCode::UnsupportedPlan, "not supported"),
        ("l_comment || 'a' = 'b'", ErrorCode::UnknownFunction, "||"),
        ("l_comment like l_returnflag", ErrorCode::UnsupportedPlan, "literal"),
        ("l_shipdate = interval '1' day", ErrorCode::TypeMismatch, "interval"),
        ("l_quantity + l_comment > 1", ErrorCode::TypeMismatch, "decimal(15,2) + text"),
        ("date '1995-02-30' < l_shipdate", ErrorCode::InvalidCast, "1995-02-30"),
        ("l_shipdate < date '1995-01-01' + interval '1 fortnight'", ErrorCode::Syntax, "1 fortnight"),
        ("", ErrorCode::Syntax, "EOF"),
        ("? = ?", ErrorCode::InvalidParameter, "cast($1 as type)"),
        ("cast(l_comment as vector(3)) = 1", ErrorCode::TypeMismatch, "no cast from text"),
        ("'unterminated", ErrorCode::Syntax, "Unterminated"),
    ] {
        let error = predicate(text).unwrap_err();
        assert_eq!(error.code, code, "{text}: {error}");
        assert!(error.message.contains(words), "{text}: {error}");
    }
    assert!(predicate("l_tax > 0 and l_quantity < 'abc'").unwrap_err().message.contains("(in `l_quantity < 'abc'`)"));
}

#[test]
fn parameters_take_the_type_of_what_they_stand_beside() {
    let schema = lineitem();
    let expr = parse_predicate("l_discount >= ? and l_shipdate < $2 and ? between 1 and 2", &schema);
    assert_eq!(expr.unwrap_err().code, ErrorCode::InvalidParameter);
    let expr =
        parse_predicate("l_discount >= ? and l_shipdate < ? and l_orderkey in (?, 7) and cast(? as int) = 1", &schema)
            .unwrap();
    let mut types = Vec::new();
    expr.walk(&mut |node| {
        if let ExprKind::Parameter(index) = node.kind {
            types.push((index, node.data_type.to_string()));
        }
    });
    types.sort();
    let expected =
        ["decimal(15,2)", "date", "int64", "int32"].iter().enumerate().map(|(i, t)| (i as u32, t.to_string()));
    assert_eq!(types, expected.collect::<Vec<_>>());
    assert_eq!(
        parse_predicate("l_tax = $1 and l_shipdate = $1", &schema).unwrap_err().code,
        ErrorCode::InvalidParameter
    );
}

#[test]
fn tpch_q1_and_q6() {
    assert_eq!(
        explained(
            "select l_returnflag, l_linestatus, sum(l_quantity) as sum_qty, sum(l_extendedprice * (1 - l_discount)) as revenue,
             avg(l_discount) as avg_disc, count(*) as n from lineitem where l_shipdate <= date '1998-12-01' - interval '90' day
             group by l_returnflag, l_linestatus order by l_returnflag, l_linestatus"
        ),
        "scan lineitem columns [l_quantity, l_extendedprice, l_discount, l_returnflag, l_linestatus, l_shipdate]\n\
         filter l_shipdate <= date '1998-09-02'\n\
         aggregate by [l_returnflag, l_linestatus] compute [sum(l_quantity), sum(l_extendedprice * (1.00 - l_discount)), avg(l_discount), count(*)]\n\
         output [l_returnflag: text, l_linestatus: varchar(1), sum(l_quantity) as sum_qty: decimal(25,2), \
         sum(l_extendedprice * (1.00 - l_discount)) as revenue: decimal(38,4), avg(l_discount) as avg_disc: decimal(19,6), count(*) as n: int64]\n\
         sort [l_returnflag asc nulls last, l_linestatus asc nulls last]\n"
    );
    let q6 = query("select sum(l_extendedprice * l_discount) as revenue from lineitem where l_quantity < 24").unwrap();
    assert_eq!(q6.aggregation.as_ref().unwrap().keys.len(), 0);
    assert_eq!(q6.result_schema().fields()[0].name, "revenue");
}

#[test]
fn parts_and_whole_queries_give_the_same_plan() {
    let scan = ScanText {
        table: "lineitem".into(),
        filter: Some("l_quantity < 24".into()),
        select: vec![],
        aggregates: vec!["100 * sum(l_tax) / sum(l_quantity) as ratio, count(distinct l_orderkey) as orders".into()],
        group_by: vec!["l_returnflag".into(), "extract(year from l_shipdate)".into()],
        order_by: vec!["ratio desc, 1".into(), "sum(l_tax) nulls first".into()],
        limit: Some(10),
        offset: 2,
    };
    let parts = parse_scan(&scan, &lineitem()).unwrap();
    let whole = query(
        "select l_returnflag, EXTRACT(YEAR FROM l_shipdate), 100 * sum(l_tax) / sum(l_quantity) as ratio, count(distinct l_orderkey) as orders
         from lineitem where l_quantity < 24 group by l_returnflag, extract(year from l_shipdate)
         order by ratio desc, 1, sum(l_tax) nulls first limit 10 offset 2",
    )
    .unwrap();
    assert_eq!(parts, whole);
    assert_eq!(parts.visible, 4);
    assert_eq!(parts.outputs.len(), 5);
    assert!(parts.sort[0].nulls_first && parts.sort[0].descending);
    assert!(!parts.sort[1].nulls_first);
    let functions: Vec<_> = parts.aggregation.unwrap().aggregates.iter().map(|aggregate| aggregate.function).collect();
    assert_eq!(functions, [AggregateFunction::Sum, AggregateFunction::Sum, AggregateFunction::CountDistinct]);
}

#[test]
fn plain_scans() {
    let plan = query("select * from lineitem limit 5").unwrap();
    assert_eq!((plan.visible, plan.limit, plan.aggregation.is_none()), (14, Some(5), true));
    let plan =
        query("select _rowid, l_orderkey as k, l.l_tax + 1 from lineitem l order by l_quantity desc, k").unwrap();
    let names: Vec<_> = plan.outputs.iter().map(|output| output.name.as_str()).collect();
    assert_eq!(names, ["_rowid", "k", "l.l_tax + 1", "l_quantity"]);
    assert_eq!((plan.visible, plan.sort[1].output), (3, 1));
    let plan = parse_scan(&ScanText { table: "lineitem".into(), ..ScanText::default() }, &lineitem()).unwrap();
    assert_eq!(plan.visible, 14);
    let plan = query("select distinct l_returnflag from lineitem order by 1").unwrap();
    assert_eq!(plan.aggregation.unwrap().keys.len(), 1);
    let plan =
        query("select l_returnflag, count(*) from lineitem group by 1 having count(*) > 5 and l_returnflag < 'M'");
    assert_eq!(
        explain::plan(&plan.unwrap(), &lineitem()).lines().nth(2).unwrap(),
        "having count(*) > 5 and l_returnflag < 'M'"
    );
    let counts = query("select count(l_orderkey), count(*), count(l_tax) from lineitem").unwrap();
    assert_eq!(counts.aggregation.unwrap().aggregates.len(), 2);
}

#[test]
fn what_can_not_be_run_is_refused_by_name() {
    for (sql, code, words) in [
        ("select l_tax, sum(l_quantity) from lineitem", ErrorCode::UnsupportedPlan, "l_tax is neither a group key"),
        ("select * from a join b on true", ErrorCode::UnsupportedPlan, "JOIN"),
        ("with x as (select 1) select * from x", ErrorCode::UnsupportedPlan, "WITH"),
        ("select 1 union select 2", ErrorCode::UnsupportedPlan, "UNION"),
        ("select * from lineitem where sum(l_tax) > 1", ErrorCode::UnsupportedPlan, "aggregate"),
        ("select sum(sum(l_tax)) from lineitem", ErrorCode::UnsupportedPlan, "inside an aggregate"),
        ("select sum(l_tax) over () from lineitem", ErrorCode::UnsupportedPlan, "window"),
        ("select sum(l_tax) filter (where flag) from lineitem", ErrorCode::UnsupportedPlan, "FILTER"),
        ("select sum(distinct l_tax) from lineitem", ErrorCode::UnsupportedPlan, "DISTINCT"),
        ("select * from lineitem where l_tax", ErrorCode::TypeMismatch, "WHERE needs a boolean, not decimal(15,2)"),
        ("select count(*) from lineitem having count(*)", ErrorCode::TypeMismatch, "HAVING needs a boolean, not int64"),
        ("select * from nowhere", ErrorCode::UnknownTable, "nowhere"),
        ("select * from lineitem order by 99", ErrorCode::UnknownColumn, "position 99"),
        ("select * from lineitem limit -1", ErrorCode::Syntax, "LIMIT"),
        ("select * from lineitem limit 1; drop table lineitem", ErrorCode::Syntax, "unexpected drop"),
        ("select * from (select 1) t", ErrorCode::UnsupportedPlan, "plain table"),
        (
            "select l_returnflag from lineitem group by rollup(l_returnflag)",
            ErrorCode::UnsupportedPlan,
            "not supported",
        ),
        ("drop table lineitem", ErrorCode::Syntax, "drop"),
        ("select sum(l_comment) from lineitem", ErrorCode::TypeMismatch, "sum(text)"),
        ("select sum(*) from lineitem", ErrorCode::UnknownFunction, "only count takes *"),
    ] {
        let error = query(sql).unwrap_err();
        assert_eq!(error.code, code, "{sql}: {error}");
        assert!(error.message.contains(words), "{sql}: {error}");
    }
}

#[test]
fn deep_and_long_texts_are_refused_and_never_overflow_the_stack() {
    let refused = |text: String| {
        let error = predicate(&text).unwrap_err();
        assert!(matches!(error.code, ErrorCode::LimitExceeded | ErrorCode::Syntax), "{error}");
    };
    refused(format!("{}flag{}", "(".repeat(10_000), ")".repeat(10_000)));
    refused(format!("{}flag", "not ".repeat(10_000)));
    refused(format!("{}l_tax > 1", "-".repeat(10_001)));
    refused(format!("{}l_tax > 1", "- ".repeat(10_000)));
    refused(format!("l_tax{} > 1", " + 1".repeat(1_500)));
    refused(format!("l_tax{} > 1", "::int".repeat(1_500)));
    refused(format!("flag{}", " is true".repeat(999)));
    refused(format!("flag{}", " and flag".repeat(200_000)));
    refused(format!("flag{} )", " and flag".repeat(1_990)));
    refused(format!("{}1{}", "case when flag then ".repeat(1_000), " end".repeat(1_000)));
    refused(format!("{} '1'", "interval ".repeat(10_000)));
    refused(format!("cast(1 as {}int", "array<".repeat(10_000)));
    refused(format!("cast(1 as int{}) = 1", "[]".repeat(10_000)));
    refused(format!("{}'x'", "date ".repeat(10_000)));
    refused("'".repeat(SQL_TEXT_BYTES_MAX + 1));
    let wide = predicate(&format!("flag{}", " and flag".repeat(1_990))).unwrap();
    assert!(wide.len() > 10_000);
    let nested = format!("{}l_tax{} > 1", "(".repeat(SQL_NESTING_MAX), ")".repeat(SQL_NESTING_MAX));
    assert_eq!(predicate(&nested).as_deref(), Ok("l_tax > 1.00"));
    let list: Vec<String> = (0..50_000).map(|value| value.to_string()).collect();
    assert!(predicate(&format!("l_orderkey in ({})", list.join(","))).unwrap().contains("49990 more"));
    let list: Vec<String> = (0..50_000).map(|value| format!(" -{value}")).collect();
    assert!(predicate(&format!("l_orderkey in ({})", list.join(","))).unwrap().contains("49990 more"));
    refused(format!("l_orderkey in ({})", " - -1,".repeat(1_500)));
}

#[test]
fn nested_openings_are_refused_in_reasonable_time() {
    // Constructs for which the parser tries several readings of what is inside.
    for opening in [
        "(",
        "cast(",
        "f(",
        "case when ",
        "interval (",
        "not (",
        "{fn f(",
        "[",
        "(select ",
        "x -> (",
        "(x, ",
        "((x), ",
        "extract(year from ",
        "substring(",
        "exists (",
        "l_tax in (",
        "array[",
        "struct(",
        "position(",
        "- (",
        "map {",
        "date (",
        "trim(",
        "ceil(",
        "convert(",
    ] {
        for repeats in [10, SQL_NESTING_MAX, 2 * SQL_NESTING_MAX] {
            for middle in ["", "1", "l_tax"] {
                let started = std::time::Instant::now();
                let _ = predicate(&format!("{}{middle}", opening.repeat(repeats)));
                let _ = predicate(&format!("{}{middle}{}", opening.repeat(repeats), ")".repeat(repeats)));
                let took = started.elapsed();
                assert!(took.as_secs() < 5, "{opening} x {repeats}: {took:?}");
            }
        }
    }
}

#[test]
fn literals_have_their_types() {
    let schema = lineitem();
    for (text, expected) in [
        ("1", DataType::Int64),
        ("9223372036854775808", DataType::Decimal { precision: 19, scale: 0 }),
        ("0.05", DataType::Decimal { precision: 2, scale: 2 }),
        ("12.50", DataType::Decimal { precision: 4, scale: 2 }),
        ("1e2", DataType::Float64),
        ("'x'", DataType::Text),
        ("x'00ff'", DataType::Bytea),
        ("date '2020-02-29'", DataType::Date),
        ("cast(null as decimal(10,2))", DataType::Decimal { precision: 10, scale: 2 }),
        ("cast(1 as varchar(3))", DataType::Varchar(3)),
        ("cast('1' as int8)", DataType::Int64),
        ("date '2020-01-31' + interval '1' month", DataType::Date),
        ("date '2020-01-31' + interval '1' hour", DataType::Timestamp { utc: false }),
        ("date '2020-01-31' - date '2020-01-01'", DataType::Int64),
        ("timestamp with time zone '2020-01-31 00:00:00Z'", DataType::Timestamp { utc: true }),
    ] {
        let expr = parse_expr(text, &schema).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(expr.data_type, expected, "{text}");
        assert!(matches!(expr.kind, ExprKind::Literal(_)), "{text}");
    }
    assert_eq!(
        parse_expr("date '2020-01-31' + interval '1' month", &schema).unwrap().kind,
        ExprKind::Literal(Scalar::I64(18_321))
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn any_text_gives_a_plan_or_an_error(text in any::<String>()) {
        let _ = predicate(&text);
        let _ = query(&text);
    }

    #[test]
    fn text_made_of_sql_words_gives_a_plan_or_an_error(words in prop::collection::vec(prop::sample::select(vec![
        "select", "from", "lineitem", "where", "group by", "order by", "having", "limit", "l_quantity", "l_shipdate", "l_comment",
        "flag", "1", "0.05", "'a%'", "'1995-01-01'", "date", "interval", "day", "and", "or", "not", "in", "between", "like",
        "is", "null", "(", ")", ",", "+", "-", "*", "/", "%", "<", "=", "<>", "case", "when", "then", "else", "end", "cast(",
        "as int", "::", "count(*)", "sum(", "extract(year from", "?", "$2", "coalesce(", "x'ff'", "true", "desc", "_rowid", "[", "]", ".",
    ]), 0..24)) {
        let text = words.join(" ");
        let _ = predicate(&text);
        let _ = query(&text);
        let _ = query(&format!("select {text} from lineitem"));
    }
}
