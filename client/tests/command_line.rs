//! The `heliostat` command and the `heliostat-cell` it starts: what a person types, exit codes, statistics.

mod appliance;

use std::path::Path;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Decimal128Type, Int64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tpchgen::generators::LineItemGenerator;
use tpchgen_arrow::LineItemArrow;

use appliance::{Dev, run};

const SCALE: f64 = 0.1;
const NARROW: &str = "l_quantity < 5 and l_shipdate between date '1995-03-01' and date '1995-03-07'";

fn parquet_rows(path: &Path) -> Vec<(i64, i64, i128)> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path).unwrap()).unwrap().build().unwrap();
    let mut rows: Vec<_> = reader.flat_map(|batch| narrow_columns(&batch.unwrap(), [0, 1, 2])).collect();
    rows.sort_unstable();
    rows
}

fn narrow_columns(batch: &RecordBatch, at: [usize; 3]) -> Vec<(i64, i64, i128)> {
    let key = batch.column(at[0]).as_primitive::<Int64Type>();
    let part = batch.column(at[1]).as_primitive::<Int64Type>();
    let price = batch.column(at[2]).as_primitive::<Decimal128Type>();
    (0..batch.num_rows()).map(|row| (key.value(row), part.value(row), price.value(row))).collect()
}

/// What the generator makes, filtered here.
fn expected() -> Vec<(i64, i64, i128)> {
    let mut rows = Vec::new();
    for batch in LineItemArrow::new(LineItemGenerator::new(SCALE, 1, 1)) {
        let place = |name: &str| batch.schema().index_of(name).unwrap();
        let days = batch.column(place("l_shipdate")).as_primitive::<Date32Type>();
        let quantity = batch.column(place("l_quantity")).as_primitive::<Decimal128Type>();
        let all = narrow_columns(&batch, [place("l_orderkey"), place("l_partkey"), place("l_extendedprice")]);
        let wanted = |row: &usize| (9190..=9196).contains(&days.value(*row)) && quantity.value(*row) < 500;
        rows.extend((0..batch.num_rows()).filter(wanted).map(|row| all[row]));
    }
    rows.sort_unstable();
    rows
}

#[test]
fn tables_are_loaded_asked_shown_and_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let dev = Dev::start(&file("data"));
    let (out, err) = dev.done(&["load", "lineitem", "--tpch", "lineitem", "--scale", "0.1"]);
    assert!(out.starts_with("loaded 600,572 rows into lineitem"), "{out}");
    assert!(err.is_empty(), "no progress bar without a terminal: {err:?}");

    // Through a Parquet file and back, as the issue's example does it.
    let whole = file("lineitem.parquet");
    dev.done(&["scan", "lineitem", "--format", "parquet", "--output", whole.to_str().unwrap()]);
    dev.done(&["load", "again", whole.to_str().unwrap()]);
    let expected = expected();
    assert!(expected.len() > 50);
    for table in ["lineitem", "again"] {
        let answer = file("out.parquet");
        let select = "l_orderkey,l_partkey,l_extendedprice";
        let output = answer.to_str().unwrap();
        let (_, err) = dev.done(&[
            "scan", table, "--where", NARROW, "--select", select, "--format", "parquet", "--output", output, "--stats",
            "json",
        ]);
        assert_eq!(parquet_rows(&answer), expected, "{table}");
        let stats: serde_json::Value = serde_json::from_str(err.trim()).unwrap_or_else(|_| panic!("{err}"));
        assert_eq!(stats["rows"], expected.len() as u64);
        assert!(
            stats["elapsed_us"].as_u64() >= stats["cell_us"].as_u64() && stats["bytes_returned"].as_u64() > Some(0)
        );
    }
    let count = ["--agg", "count(*) as n", "--format", "json"];
    assert_eq!(dev.done(&[&["scan", "again"][..], &count].concat()).0.trim(), r#"{"n":600572}"#);
    let csv = dev.done(&[
        "scan",
        "again",
        "--select",
        "l_orderkey",
        "--order-by",
        "l_orderkey",
        "--limit",
        "2",
        "--format",
        "csv",
    ]);
    assert_eq!(csv.0, "l_orderkey\n1\n1\n");

    let (explained, _) = dev.done(&["explain", "lineitem", "--where", NARROW]);
    assert!(explained.contains("pruned by zone maps"), "{explained}");
    let (list, _) = dev.done(&["table", "ls", "--format", "json"]);
    let names: Vec<serde_json::Value> = list.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&names[0]["name"], &names[1]["rows"]), (&"again".into(), &600_572.into()));
    assert!(dev.done(&["table", "show", "again"]).0.contains("l_comment"));
    let (cell, _) = dev.done(&["cell", "show", "--format", "json"]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&cell).unwrap()["tables"], 2);
    assert!(dev.done(&["cell", "ls"]).0.contains("127.0.0.1"));
    dev.done(&["table", "drop", "again", "lineitem"]);
    assert!(dev.done(&["table", "ls"]).0.contains("no tables yet"));
}

#[test]
fn what_fails_says_so_in_one_line_and_with_its_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_string()
    };
    let dev = Dev::start(&folder.path().join("data"));
    let good = file("good.csv", "a,b\n1,x\n2,y\n");
    dev.done(&["load", "t", &good]);
    let bad = file("bad.csv", "a,b\n1,x\n2\n");
    let no_parquet = file("bad.parquet", "PAR1 and nothing else");
    for (arguments, words) in [
        (&["scan", "nope"][..], "there are t"),
        (&["scan", "t", "--where", "c = 1"], "\"c\""),
        (&["scan", "t", "--where", "median(a) = 1"], "median"),
        (&["scan", "t", "--where", "a < 'x'"], "int64 < text"),
        (&["load", "t", &good], "--append"),
        (&["load", "u", &good, "--sort-by", "a,c"], "sorted by \"c\""),
        (&["load", "u", &good, "--cluster-by", "a,b,a"], "\"a\" twice"),
        (&["load", "t", &good, "--append", "--sort-by", "b"], "in no order, not sorted by b"),
        (&["load", "u", &bad], "line 3"),
        (&["load", "u", &no_parquet], "bad.parquet"),
        (&["load", "u", "no/such/file"], "no/such/file"),
        (&["load", "u", &good, "--append"], "\"u\""),
        (&["load", "u", "--tpch", "region", "--scale", "0"], "scale factor"),
        (&["table", "show", "u"], "\"u\""),
        (&["table", "drop", "u"], "\"u\""),
        (&["cell", "show", "no such cell"], "no such cell"),
        (&["scan", "t", "--transport", "rdma"], "--transport tcp"),
    ] {
        let (code, out, err) = dev.run(arguments);
        assert_eq!((code, out.as_str(), err.trim().lines().count()), (1, "", 1), "{arguments:?}: {err}");
        assert!(err.contains(words), "{arguments:?}: {err}");
    }
    let (code, _, err) = run(&["--connect", "hidb://127.0.0.1:1", "table", "ls"]);
    assert_eq!((code, err.trim().lines().count()), (1, 1), "{err}");
    assert!(err.contains("heliostat dev"), "{err}");
    for wrong in [
        &["scan", "t", "--format", "xml"][..],
        &["scan"],
        &["load", "t", &good, "--append", "--replace"],
        &["load", "t"],
        &["load", "u", &good, "--sort-by", "a", "--cluster-by", "b"],
        &["tabel", "ls"],
        &["table", "ls", "--timeout", "soon"],
    ] {
        let (code, out, err) = dev.run(wrong);
        assert_eq!((code, out.as_str(), err.is_empty()), (2, "", false), "{wrong:?}: {err}");
    }
    // A refused load left nothing; both ways to load into a table that exists.
    assert_eq!(dev.done(&["table", "ls", "--format", "json"]).0.lines().count(), 1);
    dev.done(&["table", "drop", "u", "--if-exists"]);
    dev.done(&["load", "t", &good, "--append"]);
    let count = ["scan", "t", "--agg", "count(*) as n", "--format", "json"];
    assert_eq!(dev.done(&count).0.trim(), r#"{"n":4}"#);
    dev.done(&["load", "t", &good, "--replace"]);
    assert_eq!(dev.done(&count).0.trim(), r#"{"n":2}"#);
}

#[test]
fn a_table_is_sorted_or_clustered_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let dev = Dev::start(&folder.path().join("data"));
    let load = ["load", "lineitem", "--tpch", "lineitem", "--scale", "0.1", "--quiet"];
    dev.done(&[&load[..], &["--sort-by", "l_shipdate, l_orderkey"]].concat());
    dev.done(&["load", "plain", "--tpch", "lineitem", "--scale", "0.1", "--quiet"]);
    dev.done(&["load", "near", "--tpch", "lineitem", "--scale", "0.1", "--cluster-by", "l_shipdate,l_partkey"]);
    let show = |table: &str| dev.done(&["table", "show", table]).0;
    assert!(show("lineitem").contains("600,572, sorted by l_shipdate, l_orderkey"), "{}", show("lineitem"));
    assert!(show("near").contains("clustered by l_shipdate, l_partkey"), "{}", show("near"));
    let (json, _) = dev.done(&["table", "show", "lineitem", "--format", "json"]);
    let shown: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(shown["order"], serde_json::json!({"kind": "sorted", "columns": ["l_shipdate", "l_orderkey"]}));
    let asked = |table: &str| {
        let aggregates = ["--agg", "count(*) as n", "--agg", "sum(l_extendedprice) as s", "--format", "json"];
        let (rows, stats) =
            dev.done(&[&["scan", table, "--where", NARROW, "--stats", "json"][..], &aggregates[..]].concat());
        let stats: serde_json::Value = serde_json::from_str(stats.trim()).unwrap();
        (rows, stats["blocks_total"].as_u64().unwrap() - stats["blocks_pruned"].as_u64().unwrap(), stats)
    };
    let (plain, sorted, near) = (asked("plain"), asked("lineitem"), asked("near"));
    assert_eq!((&plain.0, &plain.0), (&sorted.0, &near.0));
    assert!(sorted.1 * 20 < plain.1 && near.1 * 5 < plain.1, "{} {} {}", plain.1, sorted.1, near.1);
    assert!(sorted.2["row_groups_pruned"].as_u64().unwrap() >= 3, "{}", sorted.2);
    // Appended rows are sorted as well, without asking.
    dev.done(&[&load[..], &["--append"]].concat());
    let twice = asked("lineitem");
    assert!(twice.1 * 20 < 2 * plain.1, "{}", twice.2);
}

#[test]
fn users_have_profiles_roles_and_grants() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let dev = Dev::start(&data);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for profile in [data.join("credentials.toml"), dev.config.join("heliostat/default.toml")] {
        assert_eq!(mode(&profile), 0o600, "{profile:?}");
    }
    assert_eq!(mode(&data.join("tls/ca.key")), 0o600);
    let rows = file("rows.csv");
    std::fs::write(&rows, "a\n1\n2\n").unwrap();
    for table in ["t", "other"] {
        dev.done(&["load", table, &rows]);
    }
    // Nobody gets in without a profile, TLS or not.
    let plain = dev.url.replace("hidb://", "hidb+plain://");
    let (code, _, err) = run(&["--connect", &plain, "table", "ls"]);
    assert!(code == 1 && err.contains("--credentials"), "{err}");
    assert!(dev.done(&["--connect", &plain, "table", "ls"]).0.contains("other"));

    let profile = file("ada.toml");
    let (out, _) = dev.done(&["user", "add", "ada", "--role", "reader", "--profile", &profile, "--read", "t"]);
    assert!(out.contains("added ada, reader"), "{out}");
    assert_eq!(mode(Path::new(&profile)), 0o600);
    let ada = |arguments: &[&str]| run(&[&["--credentials", &profile], arguments].concat());
    let (code, out, err) = ada(&["table", "ls", "--format", "json"]);
    assert_eq!((code, out.lines().count()), (0, 1), "{err}");
    for (arguments, words) in [
        (&["scan", "other"][..], "heliostat user grant ada other read"),
        (&["load", "t", &rows, "--append"], "--role writer"),
        (&["table", "drop", "t"], "administrators"),
        (&["user", "ls"], "administrators"),
    ] {
        let (code, _, err) = ada(arguments);
        assert!(code == 1 && err.contains(words) && err.trim().lines().count() == 1, "{arguments:?}: {err}");
    }
    let password = file("password");
    std::fs::write(&password, "sesame, open\n").unwrap();
    std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o600)).unwrap();
    dev.done(&["user", "set", "ada", "--role", "writer"]);
    dev.done(&["user", "grant", "ada", "other", "write"]);
    assert_eq!(ada(&["load", "other", &rows, "--append"]).0, 0);
    let (list, _) = dev.done(&["user", "ls"]);
    assert!(list.contains("write other") && list.contains("read t") && list.contains("everything"), "{list}");
    dev.done(&["user", "revoke", "ada", "other"]);
    assert_eq!(ada(&["load", "other", &rows, "--append"]).0, 1);
    dev.done(&["user", "set", "ada", "--password-file", &password]);
    let (code, _, err) = ada(&["table", "ls"]);
    assert!(code == 1 && err.contains("user or password is wrong"), "{err}");
    let (code, _, err) = dev.run(&["user", "rm", "admin"]);
    assert!(code == 1 && err.contains("last administrator"), "{err}");
    dev.done(&["user", "rm", "ada"]);
    assert_eq!(dev.run(&["user", "add", "eve", "--role", "reader"]).0, 2);
    std::fs::set_permissions(&profile, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, _, err) = ada(&["table", "ls"]);
    assert!(code == 1 && err.contains("chmod 600"), "{err}");
}

#[test]
fn dev_keeps_its_password_and_leaves_the_profile_of_another_alone() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let own = data.join("credentials.toml");
    let default = data.join("config/heliostat/default.toml");
    let password = || {
        let text = std::fs::read_to_string(&own).unwrap();
        text.lines().find(|line| line.starts_with("password")).unwrap().to_string()
    };
    drop(Dev::start(&data));
    let first = password();
    let theirs = "user = \"somebody\"\npassword = \"else\"\n";
    std::fs::write(&default, theirs).unwrap();
    let dev = Dev::start(&data);
    assert_eq!(password(), first);
    assert_eq!(std::fs::read_to_string(&default).unwrap(), theirs);
    let (code, _, err) = run(&["--credentials", own.to_str().unwrap(), "table", "ls"]);
    assert_eq!(code, 0, "{err}");
    drop(dev);
}
