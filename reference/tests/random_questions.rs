//! Random tables, random questions: what the cell answers is what DataFusion answers.
//!
//! 40 tables (`HELIOSTAT_TABLES`) of random types with nulls, 8 questions each (320 plans): predicates, projections, aggregates, order and
//! limit. The seed is printed and `HELIOSTAT_SEED` replays it. Values are small enough that the places where the two
//! engines differ by design (overflow, digits of a quotient, NaN; `docs/semantics.md`) are not met; those have tests of
//! their own beside the code.

use std::sync::Arc;

use anyhow::Result;
use arrow_array::builder::*;
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use datafusion::datasource::MemTable;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::TryStreamExt;
use heliostat_client::LoadMode;
use heliostat_reference::surroundings::{is_rdma, transports, variable};
use heliostat_reference::{Cell, Rows};
use hidb::arrow_mapping::from_arrow_schema;
use rand::prelude::*;
use rand_chacha::ChaCha8Rng;

const TABLES: usize = 40;
const QUESTIONS_PER_TABLE: usize = 8;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Int16,
    Int32,
    Int64,
    Float32,
    Float64,
    Decimal9,
    Decimal22,
    FewTexts,
    ManyTexts,
    Bytea,
    Date,
    Timestamp,
    Timestamptz,
    Boolean,
}

const KINDS: [Kind; 14] = [
    Kind::Int16,
    Kind::Int32,
    Kind::Int64,
    Kind::Float32,
    Kind::Float64,
    Kind::Decimal9,
    Kind::Decimal22,
    Kind::FewTexts,
    Kind::ManyTexts,
    Kind::Bytea,
    Kind::Date,
    Kind::Timestamp,
    Kind::Timestamptz,
    Kind::Boolean,
];

const WORDS: [&str; 8] = ["", "air", "rail", "AIR mail", "straße", "a_b%c", "zebra", "railway"];

struct Column {
    name: String,
    kind: Kind,
    nullable: bool,
    /// How values vary along the rows: constant runs, rising, or random; different encodings answer.
    pattern: u8,
}

/// The value of a row before its type: small, so that no arithmetic overflows.
fn raw(column: &Column, row: usize, rng: &mut ChaCha8Rng) -> Option<i64> {
    if column.nullable && rng.random_bool(0.2) {
        return None;
    }
    Some(match column.pattern {
        0 => (row / 700) as i64 % 50,
        1 => row as i64 % 20_000,
        2 => 7,
        _ => rng.random_range(-100..1000),
    })
}

fn array(column: &Column, rows: std::ops::Range<usize>, rng: &mut ChaCha8Rng) -> ArrayRef {
    let values: Vec<Option<i64>> = rows.map(|row| raw(column, row, rng)).collect();
    macro_rules! build {
        ($builder:expr, $convert:expr) => {{
            let mut builder = $builder;
            for value in &values {
                builder.append_option(value.map($convert));
            }
            Arc::new(builder.finish()) as ArrayRef
        }};
    }
    match column.kind {
        Kind::Int16 => build!(Int16Builder::new(), |v| (v % 3000) as i16),
        Kind::Int32 => build!(Int32Builder::new(), |v| v as i32 * 11),
        Kind::Int64 => build!(Int64Builder::new(), |v| v * 1_000_003),
        Kind::Float32 => build!(Float32Builder::new(), |v| v as f32 * 0.25),
        Kind::Float64 => build!(Float64Builder::new(), |v| v as f64 * 0.25),
        Kind::Decimal9 => {
            build!(Decimal128Builder::new().with_data_type(DataType::Decimal128(9, 2)), |v| i128::from(v) * 37)
        }
        Kind::Decimal22 => {
            build!(Decimal128Builder::new().with_data_type(DataType::Decimal128(22, 4)), |v| i128::from(v)
                * 1_000_000_007)
        }
        Kind::FewTexts => build!(StringBuilder::new(), |v| WORDS[v.unsigned_abs() as usize % WORDS.len()]),
        Kind::ManyTexts => {
            build!(StringBuilder::new(), |v| format!("{} {v} ends", WORDS[v.unsigned_abs() as usize % 8]))
        }
        Kind::Bytea => build!(BinaryBuilder::new(), |v| WORDS[v.unsigned_abs() as usize % 8].as_bytes()),
        Kind::Date => build!(Date32Builder::new(), |v| v as i32 * 3 + 8000),
        Kind::Timestamp | Kind::Timestamptz => {
            let builder = TimestampMicrosecondBuilder::new().with_data_type(arrow_type(column.kind));
            build!(builder, |v| v * 86_400_000_123 / 7)
        }
        Kind::Boolean => build!(BooleanBuilder::new(), |v| v % 3 == 0),
    }
}

fn arrow_type(kind: Kind) -> DataType {
    match kind {
        Kind::Int16 => DataType::Int16,
        Kind::Int32 => DataType::Int32,
        Kind::Int64 => DataType::Int64,
        Kind::Float32 => DataType::Float32,
        Kind::Float64 => DataType::Float64,
        Kind::Decimal9 => DataType::Decimal128(9, 2),
        Kind::Decimal22 => DataType::Decimal128(22, 4),
        Kind::FewTexts | Kind::ManyTexts => DataType::Utf8,
        Kind::Bytea => DataType::Binary,
        Kind::Date => DataType::Date32,
        Kind::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
        Kind::Timestamptz => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        Kind::Boolean => DataType::Boolean,
    }
}

struct Questions<'a> {
    columns: &'a [Column],
    rng: &'a mut ChaCha8Rng,
}

impl Questions<'_> {
    fn pick(&mut self, wanted: impl Fn(Kind) -> bool) -> Option<(String, Kind)> {
        let fitting: Vec<_> = self.columns.iter().filter(|column| wanted(column.kind)).collect();
        fitting.choose(self.rng).map(|column| (column.name.clone(), column.kind))
    }

    fn literal(&mut self, kind: Kind) -> String {
        let v: i64 = self.rng.random_range(-50..900);
        match kind {
            Kind::Int16 | Kind::Int32 => format!("{}", v * if kind == Kind::Int32 { 11 } else { 1 }),
            Kind::Int64 => format!("{}", v * 1_000_003),
            Kind::Float32 | Kind::Float64 => format!("{:.2}", v as f64 * 0.25),
            Kind::Decimal9 => format!("{}.{:02}", v * 37 / 100, (v * 37).unsigned_abs() % 100),
            Kind::Decimal22 => format!("{}.5", v * 100_000),
            Kind::FewTexts => format!("'{}'", WORDS[v.unsigned_abs() as usize % 8]),
            Kind::ManyTexts => format!("'{} {v} ends'", WORDS[v.unsigned_abs() as usize % 8]),
            Kind::Bytea => {
                let word = WORDS[v.unsigned_abs() as usize % 8];
                format!("x'{}'", word.bytes().map(|byte| format!("{byte:02x}")).collect::<String>())
            }
            Kind::Date => {
                format!("date '{}-{:02}-{:02}'", 1992 + v.rem_euclid(8), 1 + v.rem_euclid(12), 1 + v.rem_euclid(28))
            }
            Kind::Timestamp | Kind::Timestamptz => {
                let zone = if kind == Kind::Timestamptz { "tz" } else { "" };
                format!("timestamp{zone} '1970-{:02}-{:02} 03:04:05'", 1 + v.rem_euclid(4), 1 + v.rem_euclid(28))
            }
            Kind::Boolean => (if v % 2 == 0 { "true" } else { "false" }).to_string(),
        }
    }

    fn comparison(&mut self) -> String {
        let Some((name, kind)) = self.pick(|_| true) else { return "true".into() };
        let op = ["=", "<>", "<", "<=", ">", ">="].choose(self.rng).copied().unwrap_or("=");
        match self.rng.random_range(0..9) {
            0 => format!("{name} is {}null", if self.rng.random() { "not " } else { "" }),
            1 if kind != Kind::Boolean => {
                let (a, b) = (self.literal(kind), self.literal(kind));
                format!("{name} between {a} and {b}")
            }
            2 if kind != Kind::Boolean => {
                let list: Vec<String> = (0..self.rng.random_range(1..6)).map(|_| self.literal(kind)).collect();
                format!("{name} {}in ({})", if self.rng.random() { "not " } else { "" }, list.join(", "))
            }
            3 if matches!(kind, Kind::FewTexts | Kind::ManyTexts) => {
                let pattern = ["%ail%", "a%", "%ends", "r__l%", "%a%1%s", "zebra", "%", "_i%", "stra%e%"]
                    .choose(self.rng)
                    .unwrap_or(&"%");
                let like = ["like", "ilike"].choose(self.rng).copied().unwrap_or("like");
                format!("{name} {}{like} '{pattern}'", if self.rng.random() { "not " } else { "" })
            }
            4 if matches!(kind, Kind::Int16 | Kind::Int32 | Kind::Int64) => {
                format!("{name} % 7 {op} {}", self.rng.random_range(-3..7))
            }
            5 if matches!(kind, Kind::Int32 | Kind::Decimal9 | Kind::Float64) => {
                let literal = self.literal(kind);
                format!("{name} * 2 + 1 {op} {literal}")
            }
            6 => match self.pick(|other| other == kind) {
                Some((other, _)) if kind != Kind::Boolean => format!("{name} {op} {other}"),
                _ => format!("{name} {op} {}", self.literal(kind)),
            },
            7 if kind == Kind::Date => {
                format!("extract(year from {name}) {op} {}", self.rng.random_range(1990..2000))
            }
            _ => format!("{name} {op} {}", self.literal(kind)),
        }
    }

    fn predicate(&mut self, depth: usize) -> String {
        match self.rng.random_range(0..6) {
            0 if depth > 0 => format!("({} and {})", self.predicate(depth - 1), self.predicate(depth - 1)),
            1 if depth > 0 => format!("({} or {})", self.predicate(depth - 1), self.predicate(depth - 1)),
            2 if depth > 0 => format!("not ({})", self.predicate(depth - 1)),
            3 if depth > 0 => format!("({} and {})", self.predicate(depth - 1), self.predicate(depth - 1)),
            _ => self.comparison(),
        }
    }

    fn projection(&mut self) -> String {
        let Some((name, kind)) = self.pick(|_| true) else { return "1".into() };
        match (self.rng.random_range(0..4), kind) {
            (0, Kind::Int32 | Kind::Int64 | Kind::Float64 | Kind::Decimal9) => format!("{name} * 3 - {name}"),
            (0, Kind::FewTexts | Kind::ManyTexts) => format!("upper({name})"),
            (0, Kind::Date) => format!("extract(month from {name})"),
            (1, Kind::FewTexts | Kind::ManyTexts) => format!("substring({name}, 2, 3)"),
            (1, Kind::Int32 | Kind::Int64) => format!("case when {name} > 100 then {name} else 0 end"),
            (3, Kind::Decimal9) => format!("cast({name} as decimal(20,4))"),
            (3, Kind::Int16 | Kind::Int32) => format!("cast({name} as text)"),
            (2, Kind::Date) => format!("{name} + interval '1' month"),
            (2, Kind::FewTexts | Kind::ManyTexts) => format!("length({name})"),
            (2, Kind::Int16 | Kind::Int32 | Kind::Int64 | Kind::Decimal9) => format!("coalesce({name}, 5)"),
            _ => name,
        }
    }

    fn aggregate(&mut self) -> String {
        let numeric = |kind| {
            let integer = matches!(kind, Kind::Int16 | Kind::Int32 | Kind::Int64);
            integer || matches!(kind, Kind::Float32 | Kind::Float64 | Kind::Decimal9 | Kind::Decimal22)
        };
        match self.rng.random_range(0..6) {
            0 => self.pick(numeric).map(|(name, _)| format!("sum({name})")),
            1 => self.pick(numeric).map(|(name, _)| format!("avg({name})")),
            2 => self.pick(|kind| kind != Kind::Boolean).map(|(name, _)| format!("min({name})")),
            3 => self.pick(|kind| kind != Kind::Boolean).map(|(name, _)| format!("max({name})")),
            4 => self.pick(|_| true).map(|(name, _)| format!("count(distinct {name})")),
            _ => self.pick(|_| true).map(|(name, _)| format!("count({name})")),
        }
        .unwrap_or_else(|| "count(*)".into())
    }

    /// A question; the flag says that the answer's order matters.
    fn question(&mut self) -> (String, bool) {
        let filter = if self.rng.random_bool(0.85) { format!(" where {}", self.predicate(3)) } else { String::new() };
        let names = |n: usize| (0..n).map(|i| format!("o{i}")).collect::<Vec<_>>();
        match self.rng.random_range(0..4) {
            0 => {
                let items: Vec<String> =
                    (0..self.rng.random_range(1..5)).map(|i| format!("{} as o{i}", self.aggregate())).collect();
                (format!("select {} from t{filter}", items.join(", ")), false)
            }
            1 => {
                let keys: Vec<String> = (0..self.rng.random_range(1..3)).map(|_| self.projection()).collect();
                let mut items: Vec<String> = keys.iter().enumerate().map(|(i, key)| format!("{key} as k{i}")).collect();
                items.extend((0..self.rng.random_range(1..4)).map(|i| format!("{} as o{i}", self.aggregate())));
                (format!("select {} from t{filter} group by {}", items.join(", "), keys.join(", ")), false)
            }
            2 => {
                let n = self.rng.random_range(1..4);
                let items: Vec<String> = (0..n).map(|i| format!("{} as o{i}", self.projection())).collect();
                let order: Vec<String> = names(n)
                    .into_iter()
                    .map(|name| {
                        let direction = ["asc", "desc", "asc nulls first", "desc nulls last"];
                        format!("{name} {}", direction.choose(self.rng).unwrap_or(&"asc"))
                    })
                    .collect();
                let limit = self.rng.random_range(0..200);
                (
                    format!("select {} from t{filter} order by {} limit {limit}", items.join(", "), order.join(", ")),
                    true,
                )
            }
            _ => {
                let items: Vec<String> =
                    (0..self.rng.random_range(1..6)).map(|i| format!("{} as o{i}", self.projection())).collect();
                (format!("select {} from t{filter}", items.join(", ")), false)
            }
        }
    }
}

/// Our types of the columns; every other column of few texts is a varchar.
fn types_of(columns: &[Column], schema: &Schema) -> hidb::Result<hidb::Schema> {
    let mut fields = from_arrow_schema(schema)?.fields().to_vec();
    for (field, column) in fields.iter_mut().zip(columns) {
        if column.kind == Kind::FewTexts && column.pattern % 2 == 1 {
            field.data_type = hidb::DataType::Varchar(20);
        }
    }
    hidb::Schema::new(fields)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_questions_to_random_tables_are_answered_as_datafusion_does() -> Result<()> {
    let seed = variable("HELIOSTAT_SEED").unwrap_or(20_261_121u64);
    println!("HELIOSTAT_SEED={seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut cell = Cell::start(2);
    let client = cell.connect("tcp").await?;
    let tables = variable("HELIOSTAT_TABLES").unwrap_or(TABLES);
    let mut wrong = Vec::new();
    let mut answered = 0;
    let mut asked: Vec<(String, bool, Rows)> = Vec::new();
    for table in 0..tables {
        let columns: Vec<Column> = (0..rng.random_range(2..9))
            .map(|i| Column {
                name: format!("c{i}"),
                kind: *KINDS.choose(&mut rng).expect("kinds"),
                nullable: rng.random(),
                pattern: rng.random_range(0..5),
            })
            .collect();
        let schema = Arc::new(Schema::new(
            columns.iter().map(|c| Field::new(&c.name, arrow_type(c.kind), c.nullable)).collect::<Vec<_>>(),
        ));
        let rows = [1, 900, 1024, 3000, 20_000][rng.random_range(0..5)];
        let mut batches = Vec::new();
        let mut row = 0;
        while row < rows {
            let end = rows.min(row + rng.random_range(1..8000));
            let arrays = columns.iter().map(|column| array(column, row..end, &mut rng)).collect();
            batches.push(RecordBatch::try_new(schema.clone(), arrays)?);
            row = end;
        }
        let name = format!("t{table}");
        let mut load = client.load(&name, &types_of(&columns, &schema)?, LoadMode::Create).await?;
        for batch in &batches {
            load.write(batch).await?;
        }
        load.commit().await?;
        // 266.77 is a decimal in SQL; DataFusion would make it a float, and compare decimals with it inexactly.
        let reference = SessionContext::new_with_config(
            SessionConfig::new().set_bool("datafusion.sql_parser.parse_float_as_decimal", true),
        );
        reference.register_table("t", Arc::new(MemTable::try_new(schema, vec![batches])?))?;

        for _ in 0..QUESTIONS_PER_TABLE {
            let (sql, ordered) = Questions { columns: &columns, rng: &mut rng }.question();
            // DataFusion makes UTC of a timestamp beside a column of them.
            let expected = match reference.sql(&sql.replace("timestamptz '", "timestamp '")).await {
                Ok(frame) => frame.collect().await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            let ours_sql = sql.replacen(" from t", &format!(" from {name}"), 1);
            let ours: Result<Vec<RecordBatch>> =
                async { Ok(client.scan_sql(&ours_sql).await?.try_collect().await?) }.await;
            match (ours, expected) {
                (Ok(ours), Ok(expected)) => {
                    let (mut ours, mut expected) = (Rows::from_batches(&ours), Rows::from_batches(&expected));
                    if !ordered {
                        (ours, expected) = (ours.sorted(), expected.sorted());
                    }
                    answered += 1;
                    asked.push((ours_sql.clone(), ordered, expected.clone()));
                    if let Some(difference) = ours.difference(&expected, sql.contains("avg(")) {
                        wrong.push(format!("{ours_sql}\n    ours against DataFusion: {difference}"));
                    }
                }
                (Err(error), Ok(_)) => wrong.push(format!("{ours_sql}\n    refused: {error:#}")),
                (_, Err(_)) => {}
            }
        }
    }
    // Once more by every other way, and after a restart, on one core, without SIMD.
    let restarted = "one core, portable".to_string();
    for way in transports().into_iter().filter(|way| way != "tcp").chain([restarted.clone()]) {
        let client = if way == restarted {
            cell.restart(1, &[("HELIOSTAT_SIMD", "portable")]);
            let client = cell.connect("tcp").await?;
            assert_eq!(client.cell().await?.simd, "portable");
            client
        } else {
            cell.connect(&way).await?
        };
        for (sql, ordered, expected) in &asked {
            let batches: Result<Vec<RecordBatch>> =
                async { Ok(client.scan_sql(sql).await?.try_collect().await?) }.await;
            let difference = match batches.map(|batches| Rows::from_batches(&batches)) {
                Ok(ours) => if *ordered { ours } else { ours.sorted() }.difference(expected, sql.contains("avg(")),
                Err(error) => Some(format!("{error:#}")),
            };
            if let Some(difference) = difference {
                wrong.push(format!("{sql}\n    {way}, against DataFusion: {difference}"));
            }
        }
        let links = client.rdma_statistics().await?.links;
        assert_eq!(links > 0, way != restarted && is_rdma(&way), "{way}: {links} links");
    }
    assert!(
        wrong.is_empty(),
        "HELIOSTAT_SEED={seed}: {} of {answered} answers differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(answered >= tables * 5, "only {answered} questions were comparable");
    Ok(())
}
