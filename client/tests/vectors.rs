//! Vectors from the command line: searches, indexes, deletes, against a cell of its own.

mod appliance;

use std::path::Path;

use appliance::Dev;

const ROWS: usize = 1000;

/// Rows `id, tag, v` with `v = [id, 0]`.
fn csv(path: &Path, ids: std::ops::Range<usize>) {
    let tag = |id: usize| if id.is_multiple_of(2) { "even" } else { "odd" };
    let rows: String = ids.map(|id| format!("{id},{},\"[{id}, 0]\"\n", tag(id))).collect();
    std::fs::write(path, format!("id,tag,v\n{rows}")).unwrap();
}

fn fvecs(vectors: &[[f32; 2]]) -> Vec<u8> {
    vectors.iter().flat_map(|[x, y]| [2i32.to_le_bytes(), x.to_le_bytes(), y.to_le_bytes()].concat()).collect()
}

/// The values of an integer column of `--format json`.
fn column(json: &str, name: &str) -> Vec<i64> {
    let value = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()[name].as_i64().unwrap();
    json.lines().map(value).collect()
}

fn loaded() -> (tempfile::TempDir, Dev) {
    let folder = tempfile::tempdir().unwrap();
    let dev = Dev::start(&folder.path().join("data"));
    let file = folder.path().join("points.csv");
    csv(&file, 0..ROWS);
    let schema = "id int64 not null, tag text not null, v vector(2,f32) not null";
    dev.done(&["load", "points", file.to_str().unwrap(), "--schema", schema]);
    (folder, dev)
}

#[test]
fn neighbours_are_found_by_vectors_files_and_rows() {
    let (folder, dev) = loaded();
    let ids = |arguments: &[&str]| {
        let all = [&["search", "points", "--select", "id", "--format", "json"], arguments].concat();
        column(&dev.done(&all).0, "id")
    };
    assert_eq!(ids(&["--vector", "[5.2, 0]", "--k", "3"]), [5, 6, 4]);
    assert_eq!(ids(&["--like-id", "5", "--id-column", "id", "--k", "3"]), [5, 4, 6], "equal distances by _rowid");
    assert_eq!(ids(&["--vector", "[5.2, 0]", "--k", "2", "--where", "tag = 'even'"]), [6, 4]);
    assert_eq!(ids(&["--vector", "[5, 0]", "--distance-max", "1.5"]), [5, 4, 6]);
    assert_eq!(ids(&["--vector", "[5, 0]", "--exact", "--k", "2000"]).len(), ROWS);

    let file = folder.path().join("queries.fvecs");
    std::fs::write(&file, fvecs(&[[7.1, 0.0], [999.0, 0.0]])).unwrap();
    let file = file.to_str().unwrap();
    let (batch, _) =
        dev.done(&["search", "points", "--vector", file, "--k", "2", "--id-column", "id", "--format", "json"]);
    assert_eq!((column(&batch, "query"), column(&batch, "id")), (vec![0, 0, 1, 1], vec![7, 8, 999, 998]));

    let (explained, _) = dev.done(&["search", "points", "--vector", file, "--explain", "--stats", "json"]);
    let explained: serde_json::Value = serde_json::from_str(&explained).unwrap();
    assert!(
        explained["rows_compared"].as_u64() >= Some(ROWS as u64)
            && explained["plan"].as_str().unwrap().contains("exact")
    );
    let (explained, _) = dev.done(&["search", "points", "--vector", file, "--explain"]);
    assert!(explained.starts_with("plan ") && explained.contains("compared in full"), "{explained}");
}

#[test]
fn mistakes_in_searches_are_one_line() {
    let (_folder, dev) = loaded();
    for (arguments, says) in [
        (&["--vector", "[1, 2, 3]"][..], "query 0 has 3 components"),
        (&["--vector", "[1, 1e39]"], "out of the range"),
        (&["--vector", "/nonexistent.npy"], "/nonexistent.npy"),
        (&["--vector", "[1, 2]", "--column", "id"], "not a vector"),
        (&["--vector", "[1, 2]", "--k", "0"], "0 neighbours"),
        (&["--vector", "[1, 2]", "--where", "nothing = 3"], "nothing"),
        (&["--vector", "[1, 2]", "--metric", "hamming"], ""),
        (&["--like-id", "5000", "--id-column", "id"], "no row of points"),
        (&["--like-id", "5000"], "5000"),
    ] {
        let (code, out, err) = dev.run(&[&["search", "points"], arguments].concat());
        assert_eq!((code, out.as_str(), err.lines().count()), (1, "", 1), "{arguments:?}: {err}");
        assert!(err.contains(says), "{says}: {err}");
    }
}

#[test]
fn an_index_is_made_used_listed_kept_up_to_date_and_dropped() {
    let (folder, dev) = loaded();
    for kind in ["ivf", "graph", "auto"] {
        let (out, err) = dev.done(&["index", "create", "points", "v", "--kind", kind]);
        assert!(out.starts_with("index of points.v: ") && out.contains("1,000 rows"), "{out}");
        assert!(err.is_empty(), "no progress bar without a terminal: {err:?}");
        let (code, _, err) = dev.run(&["index", "create", "points", "v"]);
        assert!(code == 1 && err.contains("IndexExists"), "{err}");
        dev.done(&["index", "create", "points", "v", "--if-not-exists"]);
        let (listed, _) = dev.done(&["index", "ls", "points", "--format", "json"]);
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
        assert!(listed["kind"] == kind && listed["state"] == "ready" && listed["indexed_rows"] == ROWS, "{listed}");
        let search = ["search", "points", "--vector", "[5.2, 0]", "--k", "3", "--select", "id", "--format", "json"];
        assert_eq!(column(&dev.done(&search).0, "id"), [5, 6, 4], "{kind}");
        assert_eq!(dev.done(&["index", "drop", "points", "v"]).0, "dropped the index of points.v\n");
        assert_eq!(dev.done(&["index", "drop", "points", "v", "--if-exists"]).0, "points.v had no index\n");
    }
    // Rows that come afterwards are found at once.
    dev.done(&["index", "create", "points", "v", "--kind", "ivf"]);
    let more = folder.path().join("more.csv");
    csv(&more, ROWS..ROWS + 10);
    dev.done(&["load", "points", more.to_str().unwrap(), "--append"]);
    let (found, _) =
        dev.done(&["search", "points", "--vector", "[1005, 0]", "--k", "1", "--select", "id", "--format", "json"]);
    assert_eq!(column(&found, "id"), [1005]);
}

#[test]
fn deleted_rows_are_gone_for_scans_and_searches() {
    let (_folder, dev) = loaded();
    assert_eq!(dev.done(&["delete", "points", "--where", "id between 4 and 6"]).0, "deleted 3 rows from points\n");
    assert_eq!(dev.done(&["delete", "points", "--where", "id = 5"]).0, "deleted 0 rows from points\n");
    let count = ["scan", "points", "--agg", "count(*) as n", "--format", "json"];
    assert_eq!(column(&dev.done(&count).0, "n"), [ROWS as i64 - 3]);
    let search = ["search", "points", "--vector", "[5.2, 0]", "--k", "2", "--select", "id", "--format", "json"];
    assert_eq!(column(&dev.done(&search).0, "id"), [7, 3]);
    assert_eq!(dev.done(&["delete", "points", "--all"]).0, "deleted 997 rows from points\n");
    assert_eq!(column(&dev.done(&count).0, "n"), [0]);
    assert_eq!(dev.run(&["delete", "points"]).0, 2);
}
