//! How fast one core scans rows like TPC-H lineitem's that are already in memory: nanoseconds per row.
//!
//! `cargo run --release -p heliostat-engine --example scan_speed [row groups]`

use std::sync::Arc;
use std::time::Instant;

use arrow_array::types::{Date32Type, Decimal64Type, Int64Type};
use arrow_array::{ArrayRef, PrimitiveArray, RecordBatch, StringArray};
use bytes::Bytes;
use heliostat_engine::{CompiledScan, CoreScan, EngineOptions, Merge, Step};
use heliostat_segment::{RowIds, SegmentBuilder, SegmentFooter, SegmentIdentity, encode_row_group};
use hidb::plan::sql::parse_query;
use hidb::{DataType, Field, ROW_GROUP_ROWS, Result, Schema};

const QUESTIONS: &[(&str, &str)] = &[
    (
        "q6",
        "select sum(l_extendedprice*l_discount) from t where l_shipdate >= date '1994-01-01' and l_shipdate < date '1995-01-01' and l_discount between 0.05 and 0.07 and l_quantity < 24",
    ),
    (
        "q1",
        "select l_returnflag, l_linestatus, sum(l_quantity), sum(l_extendedprice), sum(l_extendedprice*(1-l_discount)), avg(l_quantity), count(*) from t where l_shipdate <= date '1998-09-02' group by l_returnflag, l_linestatus",
    ),
    (
        "narrow",
        "select l_orderkey, l_partkey, l_extendedprice from t where l_shipdate between date '1995-03-01' and date '1995-03-07' and l_quantity < 5",
    ),
    (
        "wide",
        "select l_orderkey, l_partkey, l_suppkey, l_quantity, l_extendedprice, l_discount, l_shipdate from t where l_quantity = 7",
    ),
    ("half", "select l_orderkey, l_extendedprice from t where l_quantity <= 25"),
    (
        "string_in",
        "select l_orderkey, l_shipmode from t where l_shipmode in ('AIR','REG AIR') and l_shipinstruct = 'DELIVER IN PERSON' and l_quantity between 1 and 11",
    ),
    ("like", "select count(*) from t where l_comment like '%special%requests%'"),
    ("point", "select * from t where l_orderkey = 30001"),
    ("top", "select l_orderkey, l_extendedprice from t order by l_extendedprice desc limit 100"),
    ("groups", "select l_suppkey, sum(l_quantity) from t group by l_suppkey"),
    ("float", "select sum(cast(l_extendedprice as double)) from t"),
];

type Segment = (Arc<SegmentFooter>, Vec<Bytes>);

fn schema() -> Schema {
    let money = DataType::Decimal { precision: 15, scale: 2 };
    let column = |name: &str, data_type| Field::new(name, data_type, false);
    Schema::new(vec![
        column("l_orderkey", DataType::Int64),
        column("l_partkey", DataType::Int64),
        column("l_suppkey", DataType::Int64),
        column("l_quantity", money),
        column("l_extendedprice", money),
        column("l_discount", money),
        column("l_shipdate", DataType::Date),
        column("l_returnflag", DataType::Text),
        column("l_linestatus", DataType::Text),
        column("l_shipmode", DataType::Text),
        column("l_shipinstruct", DataType::Text),
        column("l_comment", DataType::Text),
    ])
    .expect("the schema is valid")
}

/// Numbers that look random and are the same every time.
fn mix(seed: u64) -> u64 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) >> 16
}

fn segment(schema: &Schema, group: u64) -> Result<Segment> {
    let rows = group * ROW_GROUP_ROWS as u64..(group + 1) * ROW_GROUP_ROWS as u64;
    let pick =
        |salt: u64, from: i64, to: i64| move |row: u64| from + (mix(row * 16 + salt) % (to - from) as u64) as i64;
    let int64 = |f: &dyn Fn(u64) -> i64| -> ArrayRef {
        Arc::new(PrimitiveArray::<Int64Type>::from_iter_values(rows.clone().map(f)))
    };
    let money = |f: &dyn Fn(u64) -> i64| -> ArrayRef {
        let values = PrimitiveArray::<Decimal64Type>::from_iter_values(rows.clone().map(f));
        Arc::new(values.with_precision_and_scale(15, 2).expect("15 digits are within 18"))
    };
    let text = |salt: u64, list: &[&str]| -> ArrayRef {
        let choose = pick(salt, 0, list.len() as i64);
        Arc::new(StringArray::from_iter_values(rows.clone().map(|row| list[choose(row) as usize])))
    };
    let words = ["carefully", "special", "deposits", "requests", "quickly", "ironic", "packages", "sleep", "furiously"];
    let comment = |row: u64| -> String {
        (0..mix(row * 31) % 5 + 2).map(|word| words[(mix(row * 64 + word) % 9) as usize]).collect::<Vec<_>>().join(" ")
    };
    let shipdate = pick(6, 8036, 10562);
    let columns: Vec<ArrayRef> = vec![
        int64(&|row| row as i64 / 4),
        int64(&pick(1, 1, 2_000_001)),
        int64(&pick(2, 1, 100_001)),
        money(&|row| pick(3, 1, 51)(row) * 100),
        money(&pick(4, 90_000, 10_500_000)),
        money(&pick(5, 0, 11)),
        Arc::new(PrimitiveArray::<Date32Type>::from_iter_values(rows.clone().map(|row| shipdate(row) as i32))),
        text(7, &["A", "N", "R"]),
        text(8, &["F", "O"]),
        text(9, &["AIR", "REG AIR", "RAIL", "SHIP", "TRUCK", "MAIL", "FOB"]),
        text(10, &["DELIVER IN PERSON", "COLLECT COD", "NONE", "TAKE BACK RETURN"]),
        Arc::new(StringArray::from_iter_values(rows.clone().map(comment))),
    ];
    let arrow = hidb::arrow_mapping::to_arrow_schema(schema, true);
    let batch = RecordBatch::try_new(arrow, columns)
        .map_err(|error| hidb::Error::new(hidb::ErrorCode::Internal, error.to_string()))?;
    let encoded = encode_row_group(schema, &[batch], RowIds::From(rows.start as i64))?;
    let chunks = encoded.chunks.iter().map(|chunk| Bytes::from(chunk.bytes.clone())).collect();
    let identity =
        SegmentIdentity { volume_uuid: [0; 16], table_id: 1, segment_id: group, shard: 0, load_id: Vec::new() };
    let mut builder = SegmentBuilder::new(identity, schema.clone());
    builder.push(encoded)?;
    Ok((Arc::new(builder.finish().footer), chunks))
}

/// Runs a question on one core; returns rows, and the longest step in microseconds.
fn run(compiled: &Arc<CompiledScan>, segments: &[Segment]) -> Result<(u64, u128)> {
    let shared = compiled.shared();
    let mut scan = CoreScan::new(compiled.clone(), shared.clone());
    let (mut rows, mut longest) = (0, 0);
    for (ordinal, (footer, chunks)) in segments.iter().enumerate() {
        if !compiled.row_group_may_match(&footer.row_groups[0]) {
            continue;
        }
        scan.start_row_group(ordinal as u64, footer.clone(), 0)?;
        loop {
            let start = Instant::now();
            let step = scan.step()?;
            longest = longest.max(start.elapsed().as_micros());
            match step {
                Step::Need(columns) => columns.into_iter().try_for_each(|c| scan.supply(c, chunks[c].clone()))?,
                Step::Image(image) => rows += u64::from(image.rows),
                Step::Progress => {}
                Step::RowGroupDone | Step::Finished => break,
            }
        }
    }
    let mut merge = Merge::new(compiled.clone(), shared);
    merge.push(scan.finish()?)?;
    while let Some(image) = merge.next_image()? {
        rows += u64::from(image.rows);
    }
    Ok((rows, longest))
}

fn main() -> Result<()> {
    let groups = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(16);
    let schema = schema();
    let segments = (0..groups).map(|group| segment(&schema, group)).collect::<Result<Vec<_>>>()?;
    let total = groups * ROW_GROUP_ROWS as u64;
    for (column, field) in schema.fields().iter().enumerate() {
        let meta = &segments[0].0.row_groups[0].columns[column];
        println!(
            "{:16} {:?} {:.2} bytes/row",
            field.name,
            meta.encoding,
            f64::from(meta.length) / ROW_GROUP_ROWS as f64
        );
    }
    for (name, sql) in QUESTIONS {
        let plan = parse_query(sql, &|_| Ok(schema.clone()))?;
        let compiled = CompiledScan::compile(&plan, &schema, EngineOptions::default())?;
        let mut best = f64::MAX;
        let mut outcome = (0, u128::MAX);
        for _ in 0..7 {
            let start = Instant::now();
            let (rows, longest) = run(&compiled, &segments)?;
            best = best.min(start.elapsed().as_secs_f64());
            outcome = (rows, outcome.1.min(longest));
        }
        println!(
            "{name:10} {:7.3} ns/row, {:8.1} ms for 60 M rows on two cores, {} rows, longest step {} us",
            best * 1e9 / total as f64,
            best / total as f64 * 60e6 / 2.0 * 1e3,
            outcome.0,
            outcome.1
        );
    }
    Ok(())
}
