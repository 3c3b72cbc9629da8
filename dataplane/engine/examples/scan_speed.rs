//! How fast one core scans TPC-H lineitem (of scale 10) that is already in memory: nanoseconds per row, those of them
//! that filtering took, and the bytes of the chunks that were asked for.
//!
//! `cargo run --release -p heliostat-engine --example scan_speed [row groups] [question ...]`

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use bytes::Bytes;
use heliostat_engine::{CompiledScan, CoreScan, EngineOptions, Merge, Step};
use heliostat_segment::{RowIds, SegmentBuilder, SegmentFooter, SegmentIdentity, encode_row_group};
use hidb::arrow_mapping::{adapt_batch, from_arrow_schema};
use hidb::plan::sql::parse_query;
use hidb::{ROW_GROUP_ROWS, Result, Schema};
use tpchgen::generators::LineItemGenerator;
use tpchgen_arrow::{LineItemArrow, RecordBatchIterator};

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
    ("top_text", "select l_orderkey, l_comment from t where l_quantity < 10 order by l_comment, l_orderkey limit 10"),
    ("group10", "select l_linenumber, sum(l_quantity), max(l_shipdate), count(*) from t group by l_linenumber"),
    ("group100k", "select l_suppkey, sum(l_quantity) from t group by l_suppkey"),
    ("group1M", "select l_partkey, count(*), avg(l_extendedprice) from t group by l_partkey"),
    ("group_text", "select l_shipmode, l_shipinstruct, count(*) from t group by l_shipmode, l_shipinstruct"),
    ("distinct", "select count(distinct l_suppkey) from t"),
    ("float", "select sum(cast(l_extendedprice as double)) from t"),
    ("minmax", "select min(l_extendedprice), max(l_extendedprice), min(l_shipdate), max(l_comment) from t"),
    (
        "or_not",
        "select count(*) from t where (l_quantity < 3 or l_discount = 0.10 or l_shipmode = 'FOB') and not (l_shipdate < date '1995-01-01')",
    ),
    (
        "case",
        "select sum(case when l_shipmode = 'MAIL' or l_shipmode = 'SHIP' then 1 else 0 end), sum(case when l_discount > 0.05 then l_extendedprice * l_discount else 0 end) from t",
    ),
    ("two_columns", "select count(*) from t where l_commitdate < l_receiptdate and l_shipdate < l_commitdate"),
    ("arithmetic", "select count(*) from t where l_extendedprice * (1 - l_discount) > 50000"),
    ("text_equal", "select count(*) from t where l_comment = 'carefully final requests'"),
    ("part", "select l_orderkey, l_quantity from t where l_partkey = 123456"),
    ("prefix", "select count(*) from t where l_comment like 'furiously%'"),
    ("suffix", "select count(*) from t where l_comment like '%deposits'"),
    (
        "year",
        "select extract(year from l_shipdate), sum(l_extendedprice) from t group by extract(year from l_shipdate)",
    ),
];

/// How long each question is asked again and again.
const TIME: Duration = Duration::from_millis(1500);

type Segment = (Arc<SegmentFooter>, Vec<Bytes>);

/// The first row groups of lineitem, encoded as a load encodes them.
fn segments(groups: usize) -> Result<(Schema, Vec<Segment>)> {
    let lineitem = LineItemArrow::new(LineItemGenerator::new(10.0, 1, 1)).with_batch_size(ROW_GROUP_ROWS);
    let schema = from_arrow_schema(lineitem.schema())?;
    let segments = lineitem.take(groups).enumerate().map(|(group, batch)| segment(&schema, group as u64, &batch));
    let segments = segments.collect::<Result<Vec<_>>>()?;
    Ok((schema, segments))
}

fn segment(schema: &Schema, group: u64, batch: &RecordBatch) -> Result<Segment> {
    let batch = adapt_batch(batch, schema)?;
    let first = group as i64 * ROW_GROUP_ROWS as i64;
    let encoded = encode_row_group(schema, &[batch], RowIds::From(first))?;
    let filters = encoded.chunks.iter().map(|chunk| chunk.membership.clone().unwrap_or_default());
    let chunks = encoded.chunks.iter().map(|chunk| chunk.bytes.clone()).chain(filters).map(Bytes::from).collect();
    let identity =
        SegmentIdentity { volume_uuid: [0; 16], table_id: 1, segment_id: group, shard: 0, load_id: Vec::new() };
    let mut builder = SegmentBuilder::new(identity, schema.clone());
    builder.push(encoded)?;
    Ok((Arc::new(builder.finish().footer), chunks))
}

/// What a run came to.
#[derive(Clone, Copy, Default)]
struct Run {
    /// Rows of the answer.
    rows: u64,
    longest_step: Duration,
    filtering: Duration,
    all: Duration,
    chunk_bytes: u64,
}

/// Runs a question on one core.
fn run(compiled: &Arc<CompiledScan>, segments: &[Segment]) -> Result<Run> {
    let begun = Instant::now();
    let shared = compiled.shared();
    let mut scan = CoreScan::new(compiled.clone(), shared.clone());
    let mut run = Run::default();
    for (ordinal, (footer, chunks)) in segments.iter().enumerate() {
        if !compiled.row_group_may_match(&footer.row_groups[0]) {
            continue;
        }
        scan.start_row_group(ordinal as u64, footer.clone(), 0, None)?;
        loop {
            let is_filtering = scan.is_filtering();
            let start = Instant::now();
            let step = scan.step()?;
            let took = start.elapsed();
            run.longest_step = run.longest_step.max(took);
            if is_filtering {
                run.filtering += took;
            }
            match step {
                Step::Need(columns) => columns.into_iter().try_for_each(|c| scan.supply(c, chunks[c].clone()))?,
                Step::Image(image) => run.rows += u64::from(image.rows),
                Step::Progress => {}
                Step::Rows(_) | Step::RowGroupDone | Step::Finished => break,
            }
        }
    }
    run.chunk_bytes = scan.stats().bytes_decoded;
    let mut merge = Merge::new(compiled.clone(), shared);
    merge.push(scan.finish()?)?;
    while let Some(image) = merge.next_image()? {
        run.rows += u64::from(image.rows);
    }
    run.all = begun.elapsed();
    Ok(run)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let groups: usize = arguments.first().and_then(|count| count.parse().ok()).unwrap_or(16);
    let wanted = arguments.get(1..).unwrap_or_default();
    let (schema, segments) = segments(groups)?;
    let total = (groups * ROW_GROUP_ROWS) as u64;
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
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name) {
            continue;
        }
        let plan = parse_query(sql, &|_| Ok(schema.clone()))?;
        let compiled = CompiledScan::compile(&plan, &schema, EngineOptions::default())?;
        let mut best = Run { all: Duration::MAX, longest_step: Duration::MAX, ..Run::default() };
        let (begun, mut runs) = (Instant::now(), 0);
        while best.all == Duration::MAX || begun.elapsed() < TIME {
            let this = run(&compiled, &segments)?;
            runs += 1;
            let longest_step = best.longest_step.min(this.longest_step);
            best = Run { longest_step, ..if this.all < best.all { this } else { best } };
        }
        let per_row = |time: Duration| time.as_secs_f64() * 1e9 / total as f64;
        println!(
            "{name:10} {:7.3} ns/row, of which {:.3} filter, chunks of {:.2} bytes/row, {:.1} ms for 60 M rows on two cores, {} rows, longest step {} us, best of {runs}",
            per_row(best.all),
            per_row(best.filtering),
            best.chunk_bytes as f64 / total as f64,
            per_row(best.all) * 60.0 / 2.0,
            best.rows,
            best.longest_step.as_micros()
        );
    }
    Ok(())
}
