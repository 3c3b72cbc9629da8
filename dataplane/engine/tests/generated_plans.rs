//! Generated plans over generated tables give what a naive row-at-a-time evaluation gives, whatever the number
//! of cores, the SIMD level and the size of images.

mod reference;

use std::sync::Arc;

use heliostat_engine::EngineOptions;
use heliostat_segment::{SegmentFooter, SimdLevel};
use hidb::plan::sql::{ScanText, parse_scan};
use hidb::plan::{Expr, ExprKind, ScanPlan};
use hidb::{DataType, Scalar, Schema};
use proptest::prelude::*;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reference::{Row, Table, field, passing, reference, rows_of, sorted_text, text_of};

const COLUMNS: &[(&str, DataType)] = &[
    ("b", DataType::Boolean),
    ("h", DataType::Int16),
    ("i", DataType::Int32),
    ("l", DataType::Int64),
    ("big", DataType::Int64),
    ("r", DataType::Float32),
    ("f", DataType::Float64),
    ("d9", DataType::Decimal { precision: 9, scale: 2 }),
    ("d18", DataType::Decimal { precision: 18, scale: 4 }),
    ("d30", DataType::Decimal { precision: 30, scale: 6 }),
    ("t", DataType::Text),
    ("u", DataType::Text),
    ("y", DataType::Bytea),
    ("ts", DataType::Timestamp { utc: false }),
    ("dt", DataType::Date),
];

fn value(random: &mut ChaCha8Rng, name: &str) -> Scalar {
    match name {
        "b" => Scalar::Bool(random.random()),
        "h" => Scalar::I64(random.random_range(-5..20)),
        "i" => Scalar::I64(random.random_range(-100_000..100_000)),
        "l" => Scalar::I64(random.random_range(0..8)),
        "big" => Scalar::I64(random.random()),
        "r" => Scalar::F64(f64::from(random.random_range(-100.0f32..100.0))),
        "f" => Scalar::F64(match random.random_range(0..40) {
            0 => f64::NAN,
            1 => f64::INFINITY,
            2 => -0.0,
            3 => 1e300 * (random.random::<f64>() - 0.5),
            _ => (random.random::<f64>() - 0.5) * 1000.0,
        }),
        "d9" => Scalar::I64(random.random_range(-99_999..999_999)),
        "d18" => Scalar::I64(random.random_range(-999_999_999_999..999_999_999_999)),
        "d30" => Scalar::I128(random.random_range(-(10i128.pow(24))..10i128.pow(24))),
        "t" => {
            Scalar::Bytes(["AIR", "REG AIR", "RAIL", "SHIP", "", "ñandú"].choose(random).unwrap().as_bytes().to_vec())
        }
        "y" => {
            let length = random.random_range(0..12);
            Scalar::Bytes((0..length).map(|_| *b"\0\0\xff".choose(random).unwrap()).collect())
        }
        "u" => {
            let length = random.random_range(0..12);
            if random.random_bool(0.05) {
                // Values that differ only behind the 8 bytes that blocks are skipped by.
                return Scalar::Bytes(format!("zzzzzzzz{}", length * 7 % 11).into_bytes());
            }
            Scalar::Bytes((0..length).map(|_| *b"abcAB %_z".choose(random).unwrap()).collect())
        }
        "ts" => Scalar::I64(random.random_range(-1_000_000_000_000_000..2_000_000_000_000_000)),
        // Narrow enough that a row group of 3,000 rows has a table per date.
        _ => Scalar::I64(random.random_range(8000..8600)),
    }
}

fn table(random: &mut ChaCha8Rng) -> Table {
    let count = random.random_range(3..=COLUMNS.len());
    let mut columns: Vec<_> = COLUMNS.choose_multiple(random, count).copied().collect();
    columns.push(("n", DataType::Int64));
    let schema = Schema::new(columns.iter().map(|(name, data_type)| field(name, *data_type)).collect()).unwrap();
    let nulls = [0.0, 0.1, 0.6].choose(random).copied().unwrap();
    let mut serial = 0;
    let groups = (0..random.random_range(1..4)).map(|_| {
        let sorted = random.random_bool(0.3);
        let all_null = random.random_bool(0.1).then(|| random.random_range(0..columns.len()));
        let rows = *[1usize, 30, 1024, 1500, 3000].choose(random).unwrap();
        let mut rows: Vec<Row> = (0..rows)
            .map(|_| {
                columns
                    .iter()
                    .enumerate()
                    .map(|(index, (name, _))| {
                        serial += 1;
                        if *name == "n" {
                            Scalar::I64(serial)
                        } else if random.random_bool(nulls) || all_null == Some(index) {
                            Scalar::Null
                        } else {
                            value(random, name)
                        }
                    })
                    .collect()
            })
            .collect();
        if sorted {
            rows.sort_by(|a, b| a[0].compare(&b[0]).unwrap_or_else(|| a[0].is_null().cmp(&b[0].is_null())));
        }
        rows
    });
    let groups = groups.collect();
    Table::new(schema, groups)
}

struct Text<'a> {
    random: &'a mut ChaCha8Rng,
    schema: &'a Schema,
}

impl Text<'_> {
    fn pick(&mut self, list: &[&str]) -> String {
        list.choose(self.random).unwrap().to_string()
    }

    fn column(&mut self, names: &[&str]) -> Option<String> {
        let present: Vec<&&str> = names.iter().filter(|name| self.schema.find(name).is_some()).collect();
        present.choose(self.random).map(|name| name.to_string())
    }

    fn number(&mut self, depth: u32) -> String {
        let plain = ["h", "i", "l", "big", "r", "f", "d9", "d18", "d30", "n", "n"];
        if depth == 0 || self.random.random_bool(0.3) {
            if self.random.random_bool(0.25) {
                return self.pick(&[
                    "0",
                    "1",
                    "2",
                    "7",
                    "-3",
                    "0.5",
                    "12.25",
                    "100",
                    "cast(3 as double)",
                    "99999999999",
                ]);
            }
            return self.column(&plain).unwrap();
        }
        match self.random.random_range(0..17) {
            14 => format!(
                "case when {} then {} else {} end",
                self.simple(),
                self.pick(&["1", "n", "0.25", "null"]),
                self.pick(&["0", "2", "n"])
            ),
            15 => match self.column(&["dt", "ts"]) {
                Some(column) => format!(
                    "case when {} then extract({} from {column}) end",
                    self.simple(),
                    self.pick(&["year", "quarter", "doy", "epoch", "hour", "isoweek"])
                ),
                None => self.number(depth - 1),
            },
            16 => match self.column(&["t"]) {
                Some(column) => self
                    .pick(&[
                        "length($)",
                        "coalesce(length($), n)",
                        "case $ when 'AIR' then 1 when 'RAIL' then 2.5 when '' then null else n end",
                        "case when $ in ('AIR','SHIP') or $ is null then 7 else -1 end",
                        "coalesce(length(substring($ from 2 for 3)), -4)",
                    ])
                    .replace('$', &column),
                None => self.number(depth - 1),
            },
            0..=6 => {
                let op = self.pick(&["+", "+", "-", "*", "*", "/", "%"]);
                format!("({} {op} {})", self.number(depth - 1), self.number(depth - 1))
            }
            7 => format!("(- {})", self.number(depth - 1)),
            8 => format!("coalesce({}, {})", self.number(depth - 1), self.number(depth - 1)),
            9 => format!(
                "case when {} then {} when {} then {} else {} end",
                self.truth(depth - 1),
                self.number(depth - 1),
                self.truth(depth - 1),
                self.number(depth - 1),
                self.number(depth - 1)
            ),
            10 => format!("length({})", self.text(depth - 1)),
            11 => match self.column(&["dt", "ts"]) {
                Some(column) => {
                    format!("extract({} from {column})", self.pick(&["year", "month", "day", "dow", "week"]))
                }
                None => self.number(depth - 1),
            },
            12 => format!(
                "cast({} as {})",
                self.number(depth - 1),
                self.pick(&["double", "decimal(20,3)", "bigint", "decimal(12,1)"])
            ),
            _ => match self.column(&["dt"]) {
                Some(column) => format!("({column} - date '1995-01-01')"),
                None => self.number(depth - 1),
            },
        }
    }

    fn text(&mut self, depth: u32) -> String {
        let Some(column) = self.column(&["t", "u"]) else { return "'abc'".into() };
        if depth == 0 || self.random.random_bool(0.5) {
            return column;
        }
        match self.random.random_range(0..6) {
            0 => format!("lower({})", self.text(depth - 1)),
            1 => format!("upper({})", self.text(depth - 1)),
            2 => format!(
                "substring({} from {} for {})",
                self.text(depth - 1),
                self.pick(&["0", "1", "2", "-1"]),
                self.pick(&["0", "2", "3"])
            ),
            3 => format!("coalesce({}, 'none')", self.text(depth - 1)),
            4 => format!("case when {} then {} else 'x' end", self.truth(depth - 1), self.text(depth - 1)),
            _ => format!("cast({} as text)", self.column(&["l", "d9", "dt", "b"]).unwrap_or_else(|| "n".into())),
        }
    }

    /// A condition on one column that has a kernel on encoded data (or, for text, a value per dictionary entry).
    fn simple(&mut self) -> String {
        let compare = ["=", "<>", "<", "<=", ">", ">="];
        match self.random.random_range(0..6) {
            0 | 1 => {
                let column = self.column(&["t", "u"]).unwrap_or_else(|| "'b'".into());
                let test = self.pick(&[
                    "= 'AIR'",
                    "<> 'RAIL'",
                    "< 'REG'",
                    "in ('SHIP','RAIL','')",
                    "not in ('AIR',null)",
                    "like '%AI%'",
                    "not like 'R%'",
                    "is null",
                    "is not null",
                ]);
                format!("{column} {test}")
            }
            2 => match self.column(&["t"]) {
                Some(column) => format!("lower({column}) {} 'rail'", self.pick(&compare)),
                None => "n < 50".into(),
            },
            3 => match self.column(&["dt"]) {
                Some(column) => format!("{column} {} date '1993-01-01'", self.pick(&compare)),
                None => "n >= 40".into(),
            },
            4 => {
                let column = self.column(&["h", "l", "i", "d9", "d30", "f"]).unwrap_or_else(|| "n".into());
                format!("{column} {} {}", self.pick(&compare), self.pick(&["1", "4", "2.5"]))
            }
            _ => {
                let column = self.column(&["h", "l", "i"]).unwrap_or_else(|| "n".into());
                format!(
                    "{column} {} in ({})",
                    self.pick(&["", "not"]),
                    self.pick(&["1,2,5", "0,null", "3,4,6,7,8,9,10,11,12"])
                )
            }
        }
    }

    /// AND, OR and NOT of such conditions.
    fn tree(&mut self, depth: u32) -> String {
        if depth == 0 {
            return self.simple();
        }
        match self.random.random_range(0..6) {
            0 => format!("(not {})", self.tree(depth - 1)),
            1 | 2 => format!("({} and {})", self.tree(depth - 1), self.tree(depth - 1)),
            3 | 4 => format!("({} or {})", self.tree(depth - 1), self.tree(depth - 1)),
            _ => format!("({} or {} or {})", self.simple(), self.simple(), self.tree(depth - 1)),
        }
    }

    /// Two columns of one type, or of types that compare.
    fn two_columns(&mut self) -> String {
        let compare = ["=", "<>", "<", "<=", ">", ">="];
        let numbers = ["h", "i", "l", "big", "d9", "d18", "d30", "r", "f", "n"];
        let kinds: [&[&str]; 4] = [&numbers, &["t", "u"], &["dt", "ts"], &["h", "l", "n"]];
        let kind = kinds.choose(self.random).copied().unwrap_or(&numbers);
        match (self.column(kind), self.column(kind)) {
            (Some(a), Some(b)) => format!("{a} {} {b}", self.pick(&compare)),
            _ => "n <> n".into(),
        }
    }

    fn truth(&mut self, depth: u32) -> String {
        if self.random.random_bool(0.2) {
            return self.tree(depth.min(3));
        }
        if self.random.random_bool(0.1) {
            return self.two_columns();
        }
        let compare = ["=", "<>", "<", "<=", ">", ">="];
        if depth > 0 && self.random.random_bool(0.4) {
            return match self.random.random_range(0..5) {
                0 | 1 => format!("({} and {})", self.truth(depth - 1), self.truth(depth - 1)),
                2 => format!("({} or {})", self.truth(depth - 1), self.truth(depth - 1)),
                3 => format!("(not {})", self.truth(depth - 1)),
                _ => format!("({} is {} null)", self.truth(depth - 1), self.pick(&["", "not"])),
            };
        }
        match self.random.random_range(0..13) {
            0 | 1 => format!("{} {} {}", self.number(depth), self.pick(&compare), self.number(depth)),
            2 => {
                let column = self.column(&["h", "l", "i", "d9", "n"]).unwrap();
                format!("{column} {} {}", self.pick(&compare), self.pick(&["3", "5", "0", "100.25", "40000"]))
            }
            3 => {
                let column = self.column(&["h", "l", "i", "d9", "r", "f"]).unwrap_or_else(|| "n".into());
                format!(
                    "{column} {} between {} and {}",
                    self.pick(&["", "not"]),
                    self.pick(&["0", "-50", "2"]),
                    self.pick(&["5", "500.5"])
                )
            }
            4 => match self.column(&["dt"]) {
                Some(column) => format!(
                    "{column} {} date '{}'",
                    self.pick(&compare),
                    self.pick(&["1992-01-01", "1993-06-15", "1994-05-05"])
                ),
                None => "n > 100".into(),
            },
            5 => format!(
                "{} {} {}",
                self.text(depth),
                self.pick(&compare),
                self.pick(&["'AIR'", "'abc'", "'b'", "'RAIL'"])
            ),
            6 => format!(
                "{} {} in ({})",
                self.text(depth),
                self.pick(&["", "not"]),
                self.pick(&["'AIR','SHIP'", "'AIR',null", "'a','b','zz'"])
            ),
            7 => format!(
                "{} {} in ({})",
                self.number(depth / 2),
                self.pick(&["", "not"]),
                self.pick(&["1,2,3", "5,null", "0,7,19,0.5"])
            ),
            8 | 9 => format!(
                "{} {} {} '{}'",
                self.text(depth),
                self.pick(&["", "not"]),
                self.pick(&["like", "like", "ilike"]),
                self.pick(&["%A%", "AIR", "R%", "%AIR", "%a%b%", "_A%", "%\\%%", "", "%", "a%b", "reg%"])
            ),
            10 => match self.column(&["b"]) {
                Some(column) => column,
                None => "n is not null".into(),
            },
            11 => {
                let column = self.column(COLUMNS.map_names().as_slice()).unwrap_or_else(|| "n".into());
                format!("{column} is {} null", self.pick(&["", "not"]))
            }
            _ => match self.column(&["ts"]) {
                Some(column) => format!("{column} {} timestamp '2001-02-03 04:05:06'", self.pick(&compare)),
                None => "n % 3 = 1".into(),
            },
        }
    }

    fn any(&mut self, depth: u32) -> String {
        match self.random.random_range(0..6) {
            0 | 1 => self.column(COLUMNS.map_names().as_slice()).unwrap_or_else(|| "n".into()),
            2 | 3 => self.number(depth),
            4 => self.text(depth),
            _ => self.truth(depth),
        }
    }

    fn aggregate(&mut self) -> String {
        match self.random.random_range(0..9) {
            0 => "count(*)".into(),
            1 => format!("count({})", self.any(1)),
            2 => format!("count(distinct {})", self.any(1)),
            3 | 4 => format!("sum({})", self.number(2)),
            5 => format!("avg({})", self.number(1)),
            6 if self.random.random_bool(0.3) => {
                let column = self.column(&["u", "t", "y"]).unwrap_or_else(|| "n".into());
                format!("min({column}), max({column})")
            }
            6 => format!("min({})", self.any(1)),
            7 => format!("max({})", self.any(1)),
            _ => format!("sum({0}), avg({0})", self.column(&["d9", "f", "l", "i"]).unwrap_or_else(|| "n".into())),
        }
    }

    fn scan(&mut self) -> ScanText {
        let mut scan = ScanText { table: "t".into(), ..ScanText::default() };
        if self.random.random_bool(0.8) {
            let depth = self.random.random_range(0..4);
            scan.filter = Some(self.truth(depth));
        }
        if self.random.random_bool(0.15)
            && let Some(column) = self.column(&["u", "y", "t"])
        {
            // Whole blocks are skipped by the bounds of their text.
            if self.random.random_bool(0.5) {
                scan.aggregates.push(format!("min({column}), max({column}), count({column})"));
            } else {
                scan.select = vec![column, "n".into()];
                scan.order_by.push(self.pick(&["1", "1 desc", "1 nulls first", "1 desc nulls last"]));
                scan.order_by.push(self.pick(&["2", "2 desc"]));
                scan.limit = [Some(1), Some(3), Some(50)].choose(self.random).copied().unwrap();
            }
            return scan;
        }
        if self.random.random_bool(0.5) {
            for _ in 0..self.random.random_range(0..3) {
                let key = match self.random.random_range(0..6) {
                    4 => match self.column(&["dt", "ts"]) {
                        Some(column) => {
                            format!("extract({} from {column})", self.pick(&["year", "month", "quarter", "day"]))
                        }
                        None => "n % 3".into(),
                    },
                    5 => match self.column(&["t"]) {
                        Some(column) => self.pick(&["lower($)", "$ like '%A%'", "length($)"]).replace('$', &column),
                        None => "n % 4".into(),
                    },
                    0 => self.any(1),
                    1 => self.column(&["t", "l", "b", "h"]).unwrap_or_else(|| "n % 5".into()),
                    2 => self.column(&["dt", "u", "f", "d9"]).unwrap_or_else(|| "n % 1000".into()),
                    _ => "n % 7".into(),
                };
                scan.group_by.push(key.clone());
                scan.select.push(key);
            }
            for _ in 0..self.random.random_range(1..4) {
                let aggregate = self.aggregate();
                scan.aggregates.push(aggregate);
            }
        } else {
            if self.random.random_bool(0.2)
                && let Some(column) = self.column(&["u", "t", "y", "dt"])
            {
                scan.select.push(column);
            }
            for _ in 0..self.random.random_range(1..5) {
                let item = self.any(2);
                scan.select.push(item);
            }
            if self.random.random_bool(0.3) {
                scan.select.push("_rowid".into());
            }
        }
        if self.random.random_bool(0.4) {
            let items = scan.select.len();
            if items > 0 {
                for _ in 0..self.random.random_range(1..3) {
                    let position = self.random.random_range(1..=items);
                    let direction = self.pick(&["", "desc", "nulls first", "desc nulls last"]);
                    scan.order_by.push(format!("{position} {direction}"));
                }
            }
            // Ties between groups are broken by their keys, which the reference does not do.
            if scan.aggregates.is_empty() {
                scan.limit =
                    [None, Some(0), Some(1), Some(3), Some(50), Some(4000)].choose(self.random).copied().unwrap();
                scan.offset = *[0, 0, 2, 100].choose(self.random).unwrap();
            }
        }
        scan
    }
}

trait Names {
    fn map_names(&self) -> Vec<&'static str>;
}

impl Names for [(&'static str, DataType)] {
    fn map_names(&self) -> Vec<&'static str> {
        self.iter().map(|(name, _)| *name).collect()
    }
}

#[derive(Default)]
struct Tally {
    compared: usize,
    failed_alike: usize,
    refused: usize,
}

/// Leaves only some rows in some row groups. By a generator of its own, so that seeds mean the tables they always meant.
fn delete_some(table: &mut Table, seed: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(!seed);
    if random.random_bool(0.4) {
        return;
    }
    let of_segment = |footer: &SegmentFooter| -> Option<Arc<[u64]>> {
        let rows = footer.row_groups[0].rows as usize;
        let share = *[0.0, 0.001, 0.1, 0.5, 0.99].choose(&mut random).unwrap();
        // Runs that end at blocks, too: whole blocks without a row.
        let block = random.random_range(0..rows.div_ceil(1024));
        let mut words: Vec<u64> = (0..rows.div_ceil(64))
            .map(|word| {
                (0..64).filter(|_| word / 16 != block && random.random_bool(share)).fold(0, |a, bit| a | 1 << bit)
            })
            .collect();
        match random.random_range(0..4) {
            0 => return None,
            1 => words.truncate(random.random_range(0..=words.len())),
            // What lies behind the row group's end is nobody's.
            2 => words.extend([u64::MAX; 20]),
            _ => {}
        }
        Some(words.into())
    };
    table.among = table.segments.iter().map(|(footer, _)| footer.as_ref()).map(of_segment).collect();
}

/// The rows where the filter is true are found, and only they.
fn check_positions(plan: &ScanPlan, table: &Table, context: &str) {
    let Ok(expected) = passing(plan.filter.as_ref(), table) else { return };
    let expected: Vec<bool> = expected.iter().map(Option::is_some).collect();
    let (found, stats) = table.positions(plan.filter.as_ref()).unwrap_or_else(|error| panic!("{context}: {error}"));
    let row = (0..found.len()).find(|row| found[*row] != expected[*row]);
    assert!(row.is_none(), "{context}: row {row:?} {:?}\n{plan:?}", row.map(|row| (found[row], expected[row])));
    assert_eq!(stats.rows_selected as usize, expected.iter().filter(|passes| **passes).count(), "{context}");
    assert_eq!((stats.rows, stats.row_groups_total as usize), (0, table.segments.len()), "{context}");
}

fn check(seed: u64, tally: &mut Tally) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut table = table(&mut random);
    delete_some(&mut table, seed);
    let context = format!("seed {seed}");
    for _ in 0..6 {
        let text = Text { random: &mut random, schema: &table.schema }.scan();
        let plan = match parse_scan(&text, &table.schema) {
            Ok(mut plan) => {
                if random.random_bool(0.2) {
                    // The parser moves NOT inwards; plans that come otherwise need not be so tidy.
                    plan.filter = plan.filter.map(not);
                }
                plan
            }
            Err(_) => {
                tally.refused += 1;
                continue;
            }
        };
        let options = EngineOptions {
            image_bytes_max: *[2048, 1 << 16, 1 << 20].choose(&mut random).unwrap(),
            decimal64: true,
            ..EngineOptions::default()
        };
        check_positions(&plan, &table, &context);
        let expected = reference(&plan, &table);
        let mut first = None;
        for (cores, level) in
            [(1, SimdLevel::Avx512), (2, SimdLevel::Avx512), (1, SimdLevel::Portable), (3, SimdLevel::Avx2)]
        {
            SimdLevel::force(level);
            let got = table.run(&plan, cores, &options);
            let got = match (&expected, got) {
                (Ok(_), Err(error)) => panic!("{context}: {error}\n{text:?}"),
                (Err(_), _) => {
                    tally.failed_alike += 1;
                    break;
                }
                (Ok(expected), Ok((batches, stats))) => {
                    let got = rows_of(&batches);
                    assert_eq!(stats.row_groups_total as usize, table.segments.len(), "{context}");
                    // Groups with equal sort keys come in the order of their keys.
                    let same = if plan.sort.is_empty() || plan.aggregation.is_some() {
                        sorted_text(&got) == sorted_text(expected)
                    } else {
                        text_of(&got) == text_of(expected)
                    };
                    assert!(
                        same,
                        "{context}, {cores} cores, {level:?}: {} rows instead of {}\n{text:?}\n{plan:?}\ngot  {:?}\nwant {:?}",
                        got.len(),
                        expected.len(),
                        difference(&got, expected).first(),
                        difference(expected, &got).first(),
                    );
                    got
                }
            };
            if plan.sort.is_empty() {
                continue;
            }
            let first = first.get_or_insert_with(|| text_of(&got));
            assert!(*first == text_of(&got), "{context}, {cores} cores, {level:?}: another order\n{text:?}");
        }
        tally.compared += usize::from(expected.is_ok());
    }
}

fn not(expr: Expr) -> Expr {
    let (data_type, nullable) = (expr.data_type, expr.nullable);
    Expr { kind: ExprKind::Not(Box::new(expr)), data_type, nullable }
}

fn difference(a: &[Row], b: &[Row]) -> Vec<String> {
    let b: std::collections::HashSet<String> = sorted_text(b).into_iter().collect();
    sorted_text(a).into_iter().filter(|row| !b.contains(row)).collect()
}

#[test]
fn generated_plans_give_what_a_naive_evaluation_gives() {
    let mut tally = Tally::default();
    // Seeds are fixed, so that a failure names the seed that replays it; HELIOSTAT_SEED starts elsewhere.
    let start = std::env::var("HELIOSTAT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1000u64);
    let count = std::env::var("HELIOSTAT_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(60u64);
    for seed in start..start + count {
        check(seed, &mut tally);
    }
    println!("{} compared, {} failed alike, {} refused", tally.compared, tally.failed_alike, tally.refused);
    assert!(tally.compared as u64 >= count * 3, "too few plans were compared: {}", tally.compared);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 0, ..ProptestConfig::default() })]
    #[test]
    fn plans_of_random_seeds_give_what_a_naive_evaluation_gives(seed: u64) {
        check(seed, &mut Tally::default());
    }
}
