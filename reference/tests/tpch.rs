//! The TPC-H tables at scale 0.1 (`HELIOSTAT_TPCH_SCALE`), asked the same SQL as DataFusion asks the batches they were made from: on two cores
//! and on one, on the SIMD path and on the portable one, from the cache and from the device, before and after restarts.

use std::sync::Arc;

use anyhow::{Context, Result};
use arrow_array::RecordBatch;
use datafusion::datasource::MemTable;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::TryStreamExt;
use heliostat_client::{Client, LoadMode, ScanRequest};
use heliostat_reference::surroundings::{is_rdma, transports, variable};
use heliostat_reference::{Cell, Rows};
use hidb::arrow_mapping::from_arrow_schema;

fn tables(scale: f64) -> Vec<(&'static str, Vec<RecordBatch>)> {
    use tpchgen::generators::*;
    use tpchgen_arrow::*;
    macro_rules! table {
        ($name:literal, $arrow:ident, $generator:ident) => {
            ($name, $arrow::new($generator::new(scale, 1, 1)).with_batch_size(16_384).collect::<Vec<_>>())
        };
    }
    vec![
        table!("nation", NationArrow, NationGenerator),
        table!("region", RegionArrow, RegionGenerator),
        table!("part", PartArrow, PartGenerator),
        table!("supplier", SupplierArrow, SupplierGenerator),
        table!("partsupp", PartSuppArrow, PartSuppGenerator),
        table!("customer", CustomerArrow, CustomerGenerator),
        table!("orders", OrderArrow, OrderGenerator),
        table!("lineitem", LineItemArrow, LineItemGenerator),
    ]
}

/// SQL that both engines understand; the shapes of the issue, on every table.
const QUERIES: &[&str] = &[
    "select * from nation",
    "select * from region",
    "select n_name from nation where n_regionkey = 2 order by n_name desc limit 3",
    "select count(*) from part",
    "select p_brand, count(*) as n, min(p_retailprice) as lo, max(p_retailprice) as hi from part where p_size in (1, 7, 14, 21) group by p_brand",
    "select p_partkey, p_name from part where p_name like '%green%' and p_container like 'JUMBO%'",
    "select count(*) from part where p_type like '%BRASS' or p_type not like 'S%'",
    "select p_mfgr, avg(p_retailprice) as a from part group by p_mfgr",
    "select s_name, s_acctbal from supplier where s_acctbal < 0 order by s_acctbal, s_name",
    "select s_nationkey, sum(s_acctbal) as total from supplier group by s_nationkey order by total desc, s_nationkey limit 5",
    "select count(distinct ps_suppkey) from partsupp where ps_availqty between 100 and 200",
    "select ps_partkey, ps_supplycost * ps_availqty as value from partsupp where ps_supplycost > 990.50",
    "select c_mktsegment, count(*) from customer where c_acctbal > 0 group by c_mktsegment",
    "select c_custkey, c_name, c_address from customer where c_phone like '13-%' and c_nationkey = 3",
    "select substring(c_phone, 1, 2) as code, count(*) as n from customer where c_acctbal > 9000 group by substring(c_phone, 1, 2)",
    "select upper(c_mktsegment) as u, length(c_name) as l, lower(c_name) as w from customer where c_custkey < 50",
    "select o_orderpriority, count(*) as n from orders where o_orderdate >= date '1993-07-01' and o_orderdate < date '1993-07-01' + interval '3' month group by o_orderpriority",
    "select extract(year from o_orderdate) as y, sum(o_totalprice) as t from orders group by extract(year from o_orderdate)",
    "select o_orderkey, o_totalprice from orders order by o_totalprice desc, o_orderkey limit 100",
    "select o_orderkey from orders where o_orderkey = 4711 or o_custkey = 370",
    "select o_orderstatus, min(o_orderdate) as a, max(o_orderdate) as b from orders group by o_orderstatus",
    "select count(*) from orders where o_comment not like '%special%requests%'",
    "select o_clerk, count(*) as n from orders group by o_clerk order by n desc, o_clerk limit 10",
    "select o_custkey, sum(o_totalprice) as t from orders group by o_custkey having sum(o_totalprice) > 2000000",
    "select * from lineitem where l_orderkey = 300001",
    "select l_orderkey, l_partkey, l_extendedprice from lineitem where l_shipdate between date '1995-03-01' and date '1995-03-07' and l_quantity < 5",
    "select sum(l_extendedprice * l_discount) as revenue from lineitem where l_shipdate >= date '1994-01-01' and l_shipdate < date '1995-01-01' and l_discount between 0.05 and 0.07 and l_quantity < 24",
    "select l_returnflag, l_linestatus, sum(l_quantity) as sum_qty, sum(l_extendedprice) as sum_base, sum(l_extendedprice * (1 - l_discount)) as sum_disc, sum(l_extendedprice * (1 - l_discount) * (1 + l_tax)) as sum_charge, avg(l_quantity) as avg_qty, avg(l_extendedprice) as avg_price, avg(l_discount) as avg_disc, count(*) as n from lineitem where l_shipdate <= date '1998-09-02' group by l_returnflag, l_linestatus",
    "select l_orderkey, l_partkey, l_suppkey, l_quantity, l_extendedprice, l_discount, l_shipdate from lineitem where l_quantity = 7",
    "select l_orderkey, l_extendedprice from lineitem where l_quantity <= 25",
    "select l_orderkey, l_shipmode from lineitem where l_shipmode in ('AIR', 'REG AIR') and l_shipinstruct = 'DELIVER IN PERSON' and l_quantity between 1 and 11",
    "select count(*) from lineitem where l_comment like '%special%requests%'",
    "select l_shipmode, sum(case when l_linestatus = 'O' then 1 else 0 end) as open, count(*) as n from lineitem group by l_shipmode",
    "select count(*) from lineitem where l_shipdate < l_commitdate and l_commitdate < l_receiptdate and l_shipmode <> 'MAIL'",
    "select max(l_comment), min(l_comment) from lineitem where l_tax = 0.08",
    "select l_comment from lineitem where l_comment > 'zzle' or l_comment like 'abo_t%'",
    "select l_suppkey, count(*) as n, sum(l_quantity) as q from lineitem group by l_suppkey",
    "select l_orderkey, sum(l_extendedprice) as s from lineitem group by l_orderkey order by s desc, l_orderkey limit 20",
    "select count(distinct l_shipdate), count(distinct l_comment), count(distinct l_shipmode) from lineitem where l_orderkey < 100000",
    "select l_extendedprice - l_discount * 100 as x, l_quantity % 7 as m, -l_tax as t from lineitem where l_partkey < 100",
    "select l_linenumber + 1 as a, l_linenumber * 3 - 2 as b, l_partkey / 10 as c, l_partkey % 10 as d from lineitem where l_suppkey = 77",
    "select count(*) from lineitem where not (l_quantity > 10 and l_discount < 0.05)",
    "select count(*) from lineitem where l_discount = 0.055 or l_quantity < 3.5 or l_tax >= 0.0799",
    "select coalesce(nullif(l_returnflag, 'N'), 'none') as f, count(*) as n from lineitem group by coalesce(nullif(l_returnflag, 'N'), 'none')",
    "select cast(l_quantity as bigint) as q, count(*) as n from lineitem group by cast(l_quantity as bigint)",
    "select cast(l_extendedprice as double) / 3 as x from lineitem where l_orderkey < 200",
    "select avg(cast(l_extendedprice as double)) as a, sum(cast(l_discount as double)) as s from lineitem",
    "select extract(month from l_shipdate) as m, extract(day from l_shipdate) as d, count(*) as n from lineitem group by extract(month from l_shipdate), extract(day from l_shipdate)",
    "select l_shipdate from lineitem where l_shipdate + interval '1' day = date '1997-03-01'",
    "select count(*) from lineitem where l_comment is null",
    "select l_orderkey, l_linenumber from lineitem order by l_shipdate desc, l_orderkey, l_linenumber limit 25 offset 10",
    "select l_orderkey from lineitem where false",
    "select p_partkey from part where p_name ilike '%GREEN%' and p_type not ilike 'small%'",
    "select count(*) from orders where o_comment ilike '%Special%REQUESTS%'",
    "select cast(o_orderkey as text) as k, cast(o_totalprice as text) as p, cast(o_orderdate as text) as d from orders where o_orderkey < 500",
    "select cast(l_orderkey as decimal(20,4)) as k, cast(l_quantity as int) as q from lineitem where l_orderkey < 500",
    "select count(*) as n, sum(l_quantity) as q, min(l_comment) as c from lineitem where l_quantity > 1000",
];

/// The same question in our words and in DataFusion's, where they differ: it has no days between dates.
const PAIRS: &[(&str, &str)] = &[
    (
        "select count(*) as n from lineitem where l_receiptdate - l_shipdate > 20",
        "select count(*) as n from lineitem where l_receiptdate > l_shipdate + interval '20' day",
    ),
    (
        "select sum(l_receiptdate - l_shipdate) as days from lineitem where l_orderkey < 50000",
        "select sum(cast(l_receiptdate as int) - cast(l_shipdate as int)) as days from lineitem where l_orderkey < 50000",
    ),
    (
        "select l_orderkey, l_shipdate - 30 as early, l_shipdate + 2 as late from lineitem where l_orderkey < 500",
        "select l_orderkey, l_shipdate - interval '30' day as early, l_shipdate + interval '2' day as late from lineitem where l_orderkey < 500",
    ),
];

/// Reads more than a row group of two columns, none of which statistics can prune.
const MEASURED: &str = "select count(*) as n, sum(l_extendedprice) as s from lineitem where l_quantity < 30";

/// What a question read from the device.
async fn device_bytes(client: &Client, cold: bool) -> Result<u64> {
    let schema = client.schema("lineitem").await?;
    let plan = hidb::plan::sql::parse_query(MEASURED, &|_| Ok((*schema).clone()))?;
    let mut stream = client.scan(ScanRequest::plan(plan).bypass_cache(cold)).await?;
    while stream.try_next().await?.is_some() {}
    Ok(stream.statistics().context("statistics at the end")?.bytes_read_device)
}

async fn ask(client: &Client, sql: &str, cold: bool) -> Result<Vec<RecordBatch>> {
    if cold {
        // `extract(month from x)` has the word too, but no table's name after it.
        let words = sql.split(" from ").skip(1).filter_map(|rest| rest.split_whitespace().next());
        let table = words.into_iter().find(|word| word.chars().all(char::is_alphabetic)).context("a table")?;
        let schema = client.schema(table).await?;
        let plan = hidb::plan::sql::parse_query(sql, &|_| Ok((*schema).clone()))?;
        let request = ScanRequest::plan(plan).bypass_cache(true);
        return Ok(client.scan(request).await?.try_collect().await?);
    }
    Ok(client.scan_sql(sql).await?.try_collect().await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_tpch_table_loads_and_answers_as_datafusion_does() -> Result<()> {
    let reference = SessionContext::new_with_config(
        SessionConfig::new().with_target_partitions(2).set_bool("datafusion.sql_parser.parse_float_as_decimal", true),
    );
    let mut cell = Cell::start(2);
    let client = cell.connect("tcp").await?;
    for (name, batches) in tables(variable("HELIOSTAT_TPCH_SCALE").unwrap_or(0.1)) {
        let arrow_schema = batches[0].schema();
        let mut load = client.load(name, &from_arrow_schema(&arrow_schema)?, LoadMode::Create).await?;
        for batch in &batches {
            load.write(batch).await?;
        }
        load.commit().await?;
        reference.register_table(name, Arc::new(MemTable::try_new(arrow_schema, vec![batches])?))?;
    }

    let mut expected = Vec::new();
    for (ours, theirs) in QUERIES.iter().map(|sql| (*sql, *sql)).chain(PAIRS.iter().copied()) {
        let batches = reference.sql(theirs).await.with_context(|| format!("DataFusion: {theirs}"))?.collect().await?;
        expected.push((ours, Rows::from_batches(&batches)));
    }

    // Cores, environment, whether the cache is left out.
    let no_environment: &[(&str, &str)] = &[];
    let settings = [
        (2, no_environment, false),
        (1, no_environment, true),
        (2, &[("HELIOSTAT_SIMD", "portable")], false),
        (1, &[("HELIOSTAT_SIMD", "avx2")], false),
    ];
    let mut wrong = Vec::new();
    for (round, (cores, environment, cold)) in settings.into_iter().enumerate() {
        if round > 0 {
            cell.restart(cores, environment);
        }
        let client = cell.connect("tcp").await?;
        let simd = environment.iter().find(|(name, _)| *name == "HELIOSTAT_SIMD").map(|(_, level)| *level);
        let in_effect = client.cell().await?.simd;
        match simd {
            Some("portable") => assert_eq!(in_effect, "portable"),
            Some(_) => assert_ne!(in_effect, "avx512"),
            None => {}
        }
        // Once to fill the cache, once from it; the second time nothing comes from the device.
        for (sql, _) in expected.iter().filter(|_| !cold) {
            ask(&client, sql, false).await.with_context(|| sql.to_string())?;
        }
        device_bytes(&client, cold).await?;
        let read = device_bytes(&client, cold).await?;
        assert!((read > 0) == cold, "cold {cold}: {read} bytes were read from the device");
        let mut ways = Vec::new();
        for way in transports() {
            let client = cell.connect(&way).await?;
            ways.push((way, client));
        }
        for ((sql, expected), (way, client)) in expected.iter().flat_map(|pair| ways.iter().map(move |way| (pair, way)))
        {
            let quotients = sql.contains("avg(") || sql.contains('/');
            let ordered = sql.contains("order by");
            let answer = match ask(client, sql, cold).await {
                Ok(batches) => Rows::from_batches(&batches),
                Err(error) => {
                    wrong.push(format!("{sql}\n    {way}, cores {cores}, {environment:?}, cold {cold}: {error:#}"));
                    continue;
                }
            };
            let difference = if ordered {
                answer.difference(expected, quotients)
            } else {
                answer.sorted().difference(&Rows(expected.0.clone()).sorted(), quotients)
            };
            if let Some(difference) = difference {
                wrong.push(format!("{sql}\n    {way}, cores {cores}, {environment:?}, cold {cold}: {difference}"));
            }
        }
        for (way, client) in &ways {
            let links = client.rdma_statistics().await?.links;
            assert_eq!(links > 0, is_rdma(way), "{way}: {links} links");
        }
    }
    assert!(wrong.is_empty(), "{} answers differ:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}
