//! Vector search through a cell: exact answers against brute force, recall of indexes against exact answers, rows that
//! came or went after an index was built, and errors.

mod cell;

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int32Type, Int64Type};
use arrow_array::{Array, Int64Array, RecordBatch};
use arrow_buffer::NullBuffer;
use cell::{PATIENCE, TestCell, assert_clean};
use futures::StreamExt;
use heliostat_client::input::arrays::ArrayElement;
use heliostat_client::input::{Input, InputOptions};
use heliostat_client::{Accuracy, Client, ConnectOptions, LoadMode, Metric, QueryVector, SearchRequest};
use heliostat_vector::generate::Clustered;
use hidb::proto::index_summary::State;
use hidb::proto::{IndexDefinition, IndexKind, IndexSummary, SearchStatistics};
use hidb::{DataType, Error, ErrorCode, Field, Schema, VectorElement, arrow_mapping};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::runtime::Runtime;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

async fn connect(cell: &TestCell) -> Client {
    let address = format!("hidb+plain://{}", cell.address);
    Client::connect(&address, ConnectOptions::default()).await.unwrap()
}

/// Vectors of one type: their components as numbers, and how they lie in memory.
#[derive(Clone)]
struct Vectors {
    element: &'static str,
    dimension: usize,
    rows: Vec<Vec<f32>>,
}

impl Vectors {
    fn data_type(&self) -> DataType {
        format!("vector({},{})", self.dimension, self.element).parse().unwrap()
    }

    fn bytes(&self, row: &[f32]) -> Vec<u8> {
        let half = |value: &f32| heliostat_vector::f16::from_f32(*value).to_le_bytes();
        match self.element {
            "f32" => row.iter().flat_map(|value| value.to_le_bytes()).collect(),
            "f16" => row.iter().flat_map(half).collect(),
            "i8" => row.iter().map(|value| *value as i8 as u8).collect(),
            _ => {
                let bit = |byte: u8, (place, value): (usize, &f32)| byte | u8::from(*value == 1.0) << place;
                row.chunks(8).map(|bits| bits.iter().enumerate().fold(0, bit)).collect()
            }
        }
    }

    fn query(&self, row: &[f32]) -> QueryVector {
        match self.element {
            "bit" => QueryVector::of_elements(ArrayElement::U8, self.bytes(row)),
            _ => QueryVector::from(row),
        }
    }

    /// Small whole numbers, so that every sum is exact in every type; some rows twice, some all zero.
    fn random(element: &'static str, dimension: usize, rows: usize, seed: u64) -> Vectors {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut made: Vec<Vec<f32>> = Vec::with_capacity(rows);
        for row in 0..rows {
            let of = |rng: &mut ChaCha8Rng| match element {
                "bit" => f32::from(rng.random_range(0..2u8)),
                _ => f32::from(rng.random_range(-7..8i8)),
            };
            made.push(match row {
                _ if row % 17 == 3 => vec![0.0; dimension],
                _ if row % 13 == 5 => made[row / 2].clone(),
                _ => (0..dimension).map(|_| of(&mut rng)).collect(),
            });
        }
        Vectors { element, dimension, rows: made }
    }
}

fn schema(vectors: &Vectors) -> Schema {
    let fields = vec![
        Field::new("n", DataType::Int64, false),
        Field::new("v", vectors.data_type(), true),
        Field::new("part", DataType::Int32, false),
    ];
    Schema::new(fields).unwrap()
}

/// Loads rows `range`; row `n` has the vector `n`, or NULL where `is_null` says so. Row ids are the numbers when a table's
/// rows are loaded in order.
async fn load(
    client: &Client,
    vectors: &Vectors,
    range: std::ops::Range<usize>,
    mode: LoadMode,
    is_null: impl Fn(usize) -> bool,
) {
    let schema = schema(vectors);
    let mut writer = client.load("t", &schema, mode).await.unwrap();
    for first in range.clone().step_by(1000) {
        let rows = first..(first + 1000).min(range.end);
        let bytes: Vec<u8> = rows.clone().flat_map(|row| vectors.bytes(&vectors.rows[row])).collect();
        let nulls: Vec<bool> = rows.clone().map(|row| !is_null(row)).collect();
        let nulls = nulls.contains(&false).then(|| NullBuffer::from(nulls));
        let column = arrow_mapping::vector_array(&vectors.data_type(), rows.len(), bytes.into(), nulls).unwrap();
        let numbers = Int64Array::from_iter_values(rows.clone().map(|row| row as i64));
        let parts = arrow_array::Int32Array::from_iter_values(rows.map(|row| (row * 7919 % 1000) as i32));
        let columns = vec![Arc::new(numbers) as _, column, Arc::new(parts) as _];
        let batch = RecordBatch::try_new(arrow_mapping::to_arrow_schema(&schema, true), columns).unwrap();
        writer.write(&batch).await.unwrap();
    }
    writer.commit().await.unwrap();
}

/// Row numbers and distances of each query, and what the cell did.
async fn ask(
    client: &Client,
    request: SearchRequest,
    queries: usize,
) -> Result<(Vec<Vec<(i64, f32)>>, SearchStatistics), Error> {
    let mut stream = client.search(request.select(["n"])).await?;
    let mut found = vec![Vec::new(); queries];
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        let column = |name: &str| batch.column_by_name(name).unwrap();
        let numbers = column("n").as_primitive::<Int64Type>();
        let distances = column("distance").as_primitive::<Float32Type>();
        for row in 0..batch.num_rows() {
            let query = if queries > 1 { column("query").as_primitive::<Int32Type>().value(row) as usize } else { 0 };
            found[query].push((numbers.value(row), distances.value(row)));
        }
    }
    Ok((found, stream.search_statistics().unwrap().clone()))
}

/// The distance as its definition says, in double precision. Smaller is nearer.
fn distance(metric: Metric, a: &[f32], b: &[f32]) -> f64 {
    let pairs = || a.iter().zip(b).map(|(a, b)| (f64::from(*a), f64::from(*b)));
    let product = |pairs: &mut dyn Iterator<Item = (f64, f64)>| pairs.map(|(a, b)| a * b).sum::<f64>();
    match metric {
        Metric::L2 => pairs().map(|(a, b)| (a - b) * (a - b)).sum(),
        // Not its negative: zero has one sign.
        Metric::InnerProduct => 0.0 - product(&mut pairs()),
        Metric::Cosine => {
            let norm = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            let norms = norm(a) * norm(b);
            // A vector without direction is as far as one at a right angle.
            if norms == 0.0 { 1.0 } else { 1.0 - product(&mut pairs()) / norms }
        }
        Metric::Hamming => pairs().filter(|(a, b)| a != b).count() as f64,
    }
}

/// Compares an answer with brute force over `rows`. Distances are exact for whole numbers but for the cosine: there rows
/// whose distances differ by rounding only may change places.
fn check(found: &[(i64, f32)], metric: Metric, query: &[f32], rows: &[(i64, &[f32])], k: usize, what: &str) {
    let mut expected: Vec<(f64, i64)> = rows.iter().map(|(n, row)| (distance(metric, query, row), *n)).collect();
    expected.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    expected.truncate(k);
    assert_eq!(found.len(), expected.len(), "{what}: how many");
    if metric != Metric::Cosine {
        let expected: Vec<(i64, f32)> = expected.iter().map(|(distance, n)| (*n, *distance as f32)).collect();
        assert_eq!(found, expected, "{what}");
        return;
    }
    let of: std::collections::HashMap<i64, f64> =
        rows.iter().map(|(n, row)| (*n, distance(metric, query, row))).collect();
    for ((n, distance), (expected, _)) in found.iter().zip(&expected) {
        assert!((f64::from(*distance) - expected).abs() < 1e-5, "{what}: {distance} where {expected} is next");
        assert!((of[n] - expected).abs() < 1e-5, "{what}: row {n} is {} away", of[n]);
    }
    assert_eq!(found.iter().map(|(n, _)| n).collect::<HashSet<_>>().len(), found.len(), "{what}: rows twice");
}

#[test]
fn exact_search_equals_brute_force_for_every_type_and_metric() {
    runtime().block_on(async {
        let all = [Metric::L2, Metric::InnerProduct, Metric::Cosine];
        let cases: [(&str, usize, &[Metric]); 8] = [
            ("f32", 1, &all),
            ("f32", 37, &all),
            ("f32", 4096, &[Metric::L2]),
            ("f16", 3, &all),
            ("f16", 64, &[Metric::Cosine]),
            ("i8", 5, &all),
            ("bit", 9, &[Metric::Hamming]),
            ("bit", 256, &[Metric::Hamming]),
        ];
        for cores in ["1", "2"] {
            let folder = tempfile::tempdir().unwrap();
            let cell = TestCell::start(folder.path(), &["--cores", cores, "--cache", "64MiB"]);
            let client = connect(&cell).await;
            for (element, dimension, metrics) in cases {
                let rows = if dimension > 1000 { 300 } else { 2500 };
                let vectors = Vectors::random(element, dimension, rows, dimension as u64);
                let is_null = |row: usize| row % 11 == 7;
                client.drop_table("t", true).await.unwrap();
                load(&client, &vectors, 0..rows / 2, LoadMode::Create, is_null).await;
                load(&client, &vectors, rows / 2..rows, LoadMode::Append, is_null).await;
                let valid = |n: &usize| !is_null(*n);
                let every: Vec<(i64, &[f32])> =
                    (0..rows).filter(valid).map(|n| (n as i64, &vectors.rows[n][..])).collect();
                let queries: Vec<&[f32]> = [0, 3, 5, 120].iter().map(|row| &vectors.rows[*row][..]).collect();
                for metric in metrics.iter().copied() {
                    for k in [1, 10, rows + 10] {
                        let request = SearchRequest::table("t").column("v").metric(metric).k(k as u32);
                        let request = request.accuracy(Accuracy::Exact);
                        let batch = request.clone().vectors(queries.iter().map(|query| vectors.query(query)));
                        let (found, statistics) = ask(&client, batch, queries.len()).await.unwrap();
                        assert_eq!(statistics.rows_compared, every.len() as u64);
                        for (found, query) in found.iter().zip(&queries) {
                            let what = format!("{element} x {dimension}, {metric}, k {k}, {cores} cores");
                            check(found, metric, query, &every, k, &what);
                        }
                        let half: Vec<_> = every.iter().copied().filter(|(n, _)| n * 7919 % 1000 < 30).collect();
                        let filtered = request.clone().vector(vectors.query(queries[1])).filter("part < 30");
                        let (found, _) = ask(&client, filtered, 1).await.unwrap();
                        check(&found[0], metric, queries[1], &half, k, "filtered");
                    }
                }
            }
            drop(client);
            cell.stop();
            assert_clean(folder.path());
        }
    });
}

#[test]
fn a_distance_bound_cuts_the_answer_and_a_row_can_be_asked_for_by_its_id() {
    runtime().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let cell = TestCell::start(folder.path(), &[]);
        let client = connect(&cell).await;
        let vectors = Vectors::random("f32", 8, 1000, 4);
        load(&client, &vectors, 0..1000, LoadMode::Create, |_| false).await;
        let near = SearchRequest::table("t").column("v").k(1000).like_rows([20]).distance_max(100.0);
        let (found, _) = ask(&client, near, 1).await.unwrap();
        let is_near = |row: &&Vec<f32>| distance(Metric::L2, &vectors.rows[20], row) <= 100.0;
        assert_eq!(found[0].len(), vectors.rows.iter().filter(is_near).count());
        assert_eq!(found[0][0].1, 0.0);
        assert!(found[0].iter().all(|(_, distance)| *distance <= 100.0));
        let error = ask(&client, SearchRequest::table("t").column("v").like_rows([5000]), 1).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidParameter, "{error}");
        assert!(error.message.contains("5000"), "{error}");
        drop(client);
        cell.stop();
    });
}

async fn create_index(client: &Client, definition: IndexDefinition) -> IndexSummary {
    client.create_index("t", definition, false).await.unwrap();
    ready(client, |index| index.indexed_rows == index.rows).await
}

/// Waits until the table's index is as wanted.
async fn ready(client: &Client, is_wanted: impl Fn(&IndexSummary) -> bool) -> IndexSummary {
    let started = Instant::now();
    loop {
        let indexes = client.list_indexes(Some("t")).await.unwrap();
        assert_eq!(indexes[0].error, "");
        if indexes[0].state() == State::Ready && indexes[0].built() != IndexKind::Unspecified && is_wanted(&indexes[0])
        {
            return indexes[0].clone();
        }
        // A graph of real embeddings takes a minute beside other work.
        assert!(started.elapsed() < 12 * PATIENCE, "{indexes:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn definition(kind: IndexKind) -> IndexDefinition {
    IndexDefinition { column: "v".into(), kind: kind as i32, ..Default::default() }
}

/// Mean recall at 10 of held-out queries against exact answers, by distance.
async fn recall(
    client: &Client,
    vectors: &Vectors,
    queries: &[Vec<f32>],
    target: f32,
    filter: Option<&str>,
) -> (f32, SearchStatistics) {
    let request = || {
        let request = SearchRequest::table("t").column("v");
        let request = request.vectors(queries.iter().map(|query| vectors.query(query)));
        filter.map_or(request.clone(), |filter| request.filter(filter))
    };
    let (truth, _) = ask(client, request().accuracy(Accuracy::Exact), queries.len()).await.unwrap();
    let (found, done) = ask(client, request().accuracy(Accuracy::Recall(target)), queries.len()).await.unwrap();
    let mut sum = 0.0;
    for (found, truth) in found.iter().zip(&truth) {
        assert_eq!(found.len(), truth.len());
        let reach = truth.last().map_or(0.0, |last| last.1);
        let hits = found.iter().filter(|(_, distance)| *distance <= reach + reach.abs() * 1e-5).count();
        sum += hits as f32 / truth.len().max(1) as f32;
    }
    (sum / queries.len() as f32, done)
}

#[test]
fn indexes_reach_the_recall_that_is_asked_for_with_and_without_filters() {
    runtime().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let cell = TestCell::start(folder.path(), &["--cache", "64MiB"]);
        let client = connect(&cell).await;
        for (dimension, intrinsic, spread) in [(32, 8, 0.7), (64, 16, 1.0), (96, 24, 0.5)] {
            let data = Clustered { dimension, intrinsic, clusters: 60, spread, seed: 11 };
            let rows = data.rows(0, 12_000).chunks(dimension).map(<[f32]>::to_vec).collect();
            let vectors = Vectors { element: "f32", dimension, rows };
            let queries: Vec<Vec<f32>> = data.rows(1 << 40, 150).chunks(dimension).map(<[f32]>::to_vec).collect();
            client.drop_table("t", true).await.unwrap();
            load(&client, &vectors, 0..12_000, LoadMode::Create, |_| false).await;
            for kind in [IndexKind::Graph, IndexKind::Ivf] {
                // Filters are evaluated by a scan for a graph, and beside the codes in lists.
                let include = if kind == IndexKind::Ivf { vec!["part".to_string()] } else { Vec::new() };
                let index = create_index(&client, IndexDefinition { include, ..definition(kind) }).await;
                assert_eq!(index.built(), kind);
                for target in [0.9, 0.95] {
                    let (reached, done) = recall(&client, &vectors, &queries, target, None).await;
                    // The queries of the calibration are not these: what 150 queries say is 0.01 off at times.
                    assert!(reached >= target - 0.01, "{kind:?} of {dimension}: {reached}; {}", done.plan);
                    assert_eq!(done.rows_compared, 0, "{}", done.plan);
                    for share in [500, 100, 10, 1] {
                        let filter = format!("part < {share}");
                        let (reached, done) = recall(&client, &vectors, &queries, target, Some(&filter)).await;
                        // Of 1,200 rows that pass, the lists that were looked at may hold more or fewer than their share.
                        if share != 100 {
                            let by_lists = kind == IndexKind::Ivf && share == 500;
                            assert_eq!(done.plan.contains("included"), by_lists, "{}", done.plan);
                        }
                        assert!(
                            reached >= target - 0.01,
                            "{kind:?} of {dimension}, {filter}: {reached}; {}",
                            done.plan
                        );
                    }
                }
                client.drop_index("t", "v", false).await.unwrap();
            }
        }
        drop(client);
        cell.stop();
        assert_clean(folder.path());
    });
}

/// The vectors of a Parquet file's column of halves.
fn embeddings(path: &Path, column: &str) -> Vectors {
    let input = Input::open(&[path.to_path_buf()], InputOptions::default()).unwrap();
    let (_, field) = input.schema().find(column).unwrap();
    let data_type = field.data_type;
    let DataType::Vector { dimension, element: VectorElement::F16 } = data_type else {
        panic!("{column} of {path:?} is {data_type}")
    };
    let dimension = dimension as usize;
    let mut rows = Vec::new();
    for batch in input.batches().unwrap() {
        let batch = batch.unwrap().rows;
        let array = batch.column_by_name(column).unwrap();
        assert_eq!(array.null_count(), 0);
        let bytes = arrow_mapping::vector_bytes(array, &data_type).unwrap();
        let number = |half: &[u8]| heliostat_vector::f16::from_le_bytes([half[0], half[1]]).to_f32();
        let row = |bytes: &[u8]| bytes.chunks_exact(2).map(number).collect::<Vec<f32>>();
        rows.extend(bytes.as_slice().chunks_exact(2 * dimension).map(row));
    }
    Vectors { element: "f16", dimension, rows }
}

/// Generated vectors lie as their recipe says; what recall is promised for are those that a model made of real text.
#[test]
fn indexes_of_real_embeddings_reach_the_recall_that_is_asked_for() {
    const VARIABLE: &str = "HELIOSTAT_REAL_VECTORS";
    const TARGET: f32 = 0.95;
    let Some(file) = std::env::var_os(VARIABLE) else {
        eprintln!("skipped: {VARIABLE} does not name debian_packages.parquet, whose column `embedding` is searched");
        return;
    };
    // Every 300th row is held out as a query.
    let Vectors { element, dimension, rows } = embeddings(Path::new(&file), "embedding");
    let (mut queries, mut kept) = (Vec::new(), Vec::new());
    for (number, row) in rows.into_iter().enumerate() {
        if number.is_multiple_of(300) { queries.push(row) } else { kept.push(row) }
    }
    let vectors = Vectors { element, dimension, rows: kept };
    let count = vectors.rows.len();
    runtime().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let cell = TestCell::start(folder.path(), &["--cache", "128MiB", "--auto-format-size", "1GiB"]);
        let client = connect(&cell).await;
        load(&client, &vectors, 0..count, LoadMode::Create, |_| false).await;
        for kind in [IndexKind::Ivf, IndexKind::Graph] {
            let include = if kind == IndexKind::Ivf { vec!["part".to_string()] } else { Vec::new() };
            let index = create_index(&client, IndexDefinition { include, ..definition(kind) }).await;
            assert_eq!((index.built(), index.indexed_rows), (kind, count as u64));
            // Of a thousand: all, 50%, 10%, 1% and 0.1%.
            for share in [1000, 500, 100, 10, 1] {
                let filter = (share < 1000).then(|| format!("part < {share}"));
                let (reached, done) = recall(&client, &vectors, &queries, TARGET, filter.as_deref()).await;
                eprintln!("{kind:?}, {share} of 1,000 rows: recall {reached:.4}; {}", done.plan);
                // As with generated vectors: the queries of the calibration are not these.
                assert!(reached >= TARGET - 0.01, "{kind:?}, {filter:?}: {reached}; {}", done.plan);
                assert!(filter.is_some() || done.rows_compared == 0, "{}", done.plan);
            }
            client.drop_index("t", "v", false).await.unwrap();
        }
        drop(client);
        cell.stop();
        assert_clean(folder.path());
    });
}

#[test]
fn an_index_never_hides_new_rows_nor_shows_deleted_ones() {
    runtime().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let cell = TestCell::start(folder.path(), &["--cache", "64MiB", "--merge-interval", "100ms"]);
        let client = connect(&cell).await;
        let data = Clustered { dimension: 24, intrinsic: 8, clusters: 20, spread: 0.7, seed: 3 };
        let rows = data.rows(0, 9000).chunks(24).map(<[f32]>::to_vec).collect();
        let vectors = Vectors { element: "f32", dimension: 24, rows };
        for kind in [IndexKind::Graph, IndexKind::Ivf] {
            client.drop_table("t", true).await.unwrap();
            load(&client, &vectors, 0..6000, LoadMode::Create, |row| row % 50 == 1).await;
            create_index(&client, definition(kind)).await;
            let mut deleted: BTreeSet<i64> = BTreeSet::new();
            let near = |n: usize| {
                let request = SearchRequest::table("t").column("v").vector(vectors.query(&vectors.rows[n]));
                request.accuracy(Accuracy::Recall(0.97))
            };
            // Fresh rows are their own nearest neighbours, whether the index has them or not.
            for (from, to) in [(6000, 6100), (6100, 6500), (6500, 9000)] {
                load(&client, &vectors, from..to, LoadMode::Append, |_| false).await;
                for n in (from..to).step_by((to - from) / 10) {
                    let (found, done) = ask(&client, near(n), 1).await.unwrap();
                    assert_eq!(found[0][0], (n as i64, 0.0), "{}", done.plan);
                }
            }
            // What is deleted is gone from the next question on.
            for n in [10, 2000, 6050, 8000] {
                let (found, _) = ask(&client, near(n), 1).await.unwrap();
                let nearest: Vec<i64> = found[0].iter().take(3).map(|(n, _)| *n).collect();
                let text = format!("n in ({}, {}, {})", nearest[0], nearest[1], nearest[2]);
                assert_eq!(client.delete_rows("t", Some(text.as_str().into())).await.unwrap(), 3);
                deleted.extend(nearest);
                let (found, done) = ask(&client, near(n), 1).await.unwrap();
                assert!(found[0].iter().all(|(n, _)| !deleted.contains(n)), "{}: {found:?}", done.plan);
                assert_eq!(found[0].len(), 10);
                let (filtered, _) = ask(&client, near(n).filter("part >= 0"), 1).await.unwrap();
                assert!(filtered[0].iter().all(|(n, _)| !deleted.contains(n)));
            }
            // Built anew in the background, of many rows that the old one lacked; the answers stay the same.
            let index = ready(&client, |index| index.indexed_rows > 8000).await;
            assert_eq!(index.rows, 9000 - deleted.len() as u64);
            for n in [10, 2000, 6050, 8000] {
                let (found, done) = ask(&client, near(n), 1).await.unwrap();
                assert!(found[0].iter().all(|(n, _)| !deleted.contains(n)), "{}", done.plan);
                let (exact, _) = ask(&client, near(n).accuracy(Accuracy::Exact), 1).await.unwrap();
                assert_eq!(found[0][0], exact[0][0], "{}", done.plan);
            }
            // Half of all rows go, by a condition.
            let before = client.list_indexes(Some("t")).await.unwrap()[0].rows;
            let gone = client.delete_rows("t", Some("part < 500".into())).await.unwrap();
            for n in [77, 3333, 8765] {
                let (found, done) = ask(&client, near(n), 1).await.unwrap();
                assert!(found[0].iter().all(|(n, _)| n * 7919 % 1000 >= 500), "{}", done.plan);
                assert_eq!(found[0].len(), 10);
            }
            let index = ready(&client, |index| index.rows == before - gone).await;
            assert_eq!(index.built(), kind);
        }
        drop(client);
        cell.stop();
        assert_clean(folder.path());
    });
}

/// The cell remembers the rows of a filter: they must be those of now.
#[test]
fn a_filter_that_was_asked_for_before_knows_of_loads_and_deletes() {
    runtime().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let cell = TestCell::start(folder.path(), &["--cores", "2"]);
        let client = connect(&cell).await;
        let vectors = Vectors::random("f32", 24, 12_000, 6);
        load(&client, &vectors, 0..9000, LoadMode::Create, |row| row % 97 == 3).await;
        create_index(&client, definition(IndexKind::Graph)).await;
        let part = |n: i64| n * 7919 % 1000;
        let mut rows = 9000;
        let mut is_gone: fn(i64) -> bool = |_| false;
        for step in 0..4 {
            match step {
                2 => {
                    client.delete_rows("t", Some("part < 10 or n % 3 = 1".into())).await.unwrap();
                    is_gone = |n| n < 9000 && (n * 7919 % 1000 < 10 || n % 3 == 1);
                }
                3 => {
                    load(&client, &vectors, 9000..12_000, LoadMode::Append, |row| row % 97 == 3).await;
                    rows = 12_000;
                }
                _ => {}
            }
            let passes = |n: &i64| part(*n) < 60 && n % 97 != 3 && !is_gone(*n);
            let every: Vec<(i64, &[f32])> =
                (0..rows).filter(passes).map(|n| (n, &vectors.rows[n as usize][..])).collect();
            let queries: Vec<&[f32]> = (0..20).map(|query| &vectors.rows[query * 431 + 1][..]).collect();
            let request = || {
                let request = SearchRequest::table("t").column("v").filter("part < 60");
                request.vectors(queries.iter().map(|query| vectors.query(query)))
            };
            let exact = request().accuracy(Accuracy::Exact);
            let (truth, _) = ask(&client, exact, queries.len()).await.unwrap();
            // Through the index: of these few rows, the codes of all are compared.
            let (found, done) = ask(&client, request().accuracy(Accuracy::Recall(0.9)), queries.len()).await.unwrap();
            assert!(done.plan.contains("codes of all") || step == 3, "{}", done.plan);
            assert_eq!(done.rows_filtered, (0..rows).filter(|n| part(*n) < 60 && !is_gone(*n)).count() as u64);
            for ((truth, found), query) in truth.iter().zip(&found).zip(&queries) {
                check(truth, Metric::L2, query, &every, 10, &format!("step {step}"));
                check(found, Metric::L2, query, &every, 10, &format!("step {step}: {}", done.plan));
            }
        }
        drop(client);
        cell.stop();
        assert_clean(folder.path());
    });
}

#[test]
fn a_cell_that_is_killed_while_it_builds_has_the_old_index_or_none() {
    runtime().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let data = Clustered { dimension: 48, intrinsic: 12, clusters: 40, spread: 0.7, seed: 5 };
        let rows = data.rows(0, 8000).chunks(48).map(<[f32]>::to_vec).collect();
        let vectors = Vectors { element: "f32", dimension: 48, rows };
        let mut cell = TestCell::start(folder.path(), &["--cache", "32MiB"]);
        let mut client = connect(&cell).await;
        load(&client, &vectors, 0..8000, LoadMode::Create, |_| false).await;
        let mut rng = ChaCha8Rng::seed_from_u64(20);
        for round in 0..20u64 {
            let kind = if round % 2 == 0 { IndexKind::Ivf } else { IndexKind::Graph };
            client.drop_index("t", "v", true).await.unwrap();
            client.create_index("t", definition(kind), false).await.unwrap();
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..1200))).await;
            drop(client);
            cell.kill();
            assert_clean(folder.path());
            cell = TestCell::start(folder.path(), &["--cache", "32MiB"]);
            client = connect(&cell).await;
            let n = (round * 397) as usize % 8000;
            let request = SearchRequest::table("t").column("v").vector(vectors.query(&vectors.rows[n]));
            let (found, done) = ask(&client, request.clone(), 1).await.unwrap();
            assert_eq!(found[0][0], (n as i64, 0.0), "{}", done.plan);
            assert_eq!(found[0].len(), 10);
        }
        // Nothing is lost for good: the definition is there, and it is built.
        ready(&client, |index| index.indexed_rows == 8000).await;
        client.drop_table("t", false).await.unwrap();
        drop(client);
        cell.stop();
        assert_clean(folder.path());
    });
}

#[test]
fn what_is_wrong_with_a_search_is_said() {
    runtime().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let cell = TestCell::start(folder.path(), &[]);
        let client = connect(&cell).await;
        let vectors = Vectors::random("f32", 4, 100, 9);
        client.create_table("t", &schema(&vectors), 0).await.unwrap();
        let query = || SearchRequest::table("t").column("v").vector(QueryVector::from(vec![0.0; 4]));
        let (found, _) = ask(&client, query(), 1).await.unwrap();
        assert!(found[0].is_empty(), "an empty table has no neighbours");
        load(&client, &vectors, 0..100, LoadMode::Append, |_| false).await;
        let refused = [
            (query().k(0), ErrorCode::InvalidParameter),
            (query().k(10_001), ErrorCode::InvalidParameter),
            (SearchRequest::table("t").column("n").vector(QueryVector::from(vec![0.0; 4])), ErrorCode::TypeMismatch),
            (SearchRequest::table("t").column("x").vector(QueryVector::from(vec![0.0; 4])), ErrorCode::UnknownColumn),
            (SearchRequest::table("u").column("v").vector(QueryVector::from(vec![0.0; 4])), ErrorCode::UnknownTable),
            (SearchRequest::table("t").column("v").vector(QueryVector::from(vec![0.0; 5])), ErrorCode::TypeMismatch),
            (query().metric(Metric::Hamming), ErrorCode::InvalidParameter),
            (query().accuracy(Accuracy::Recall(1.5)), ErrorCode::InvalidParameter),
            (query().accuracy(Accuracy::Probes(4)), ErrorCode::InvalidParameter),
            (query().filter("n + 1"), ErrorCode::TypeMismatch),
        ];
        for (request, code) in refused {
            let text = format!("{request:?}");
            let error = ask(&client, request, 1).await.unwrap_err();
            assert_eq!(error.code, code, "{text}: {error}");
        }
        let wrong = [
            (IndexDefinition { column: "n".into(), ..Default::default() }, ErrorCode::TypeMismatch),
            (IndexDefinition { column: "v".into(), kind: 77, ..Default::default() }, ErrorCode::InvalidParameter),
            (IndexDefinition { bits: 3, ..definition(IndexKind::Graph) }, ErrorCode::InvalidParameter),
            (IndexDefinition { metric: 4, ..definition(IndexKind::Graph) }, ErrorCode::InvalidParameter),
            (
                IndexDefinition { include: vec!["n".into()], ..definition(IndexKind::Graph) },
                ErrorCode::InvalidParameter,
            ),
            (IndexDefinition { include: vec!["v".into()], ..definition(IndexKind::Ivf) }, ErrorCode::UnsupportedType),
        ];
        for (definition, code) in wrong {
            assert_eq!(client.create_index("t", definition, false).await.unwrap_err().code, code);
        }
        assert_eq!(client.drop_index("t", "v", false).await.unwrap_err().code, ErrorCode::UnknownIndex);
        client.drop_index("t", "v", true).await.unwrap();
        create_index(&client, definition(IndexKind::Auto)).await;
        let again = client.create_index("t", definition(IndexKind::Auto), false).await.unwrap_err();
        assert_eq!(again.code, ErrorCode::IndexExists);
        client.create_index("t", definition(IndexKind::Auto), true).await.unwrap();
        // A graph has no probes.
        let error = ask(&client, query().accuracy(Accuracy::Probes(4)), 1).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidParameter, "{error}");
        // Nor has a column without an index, whatever other columns have.
        let columns = [("n", DataType::Int64), ("v", vectors.data_type()), ("w", vectors.data_type())];
        let fields = columns.map(|(name, data_type)| Field::new(name, data_type, true));
        client.create_table("two", &Schema::new(fields.to_vec()).unwrap(), 0).await.unwrap();
        client.create_index("two", definition(IndexKind::Ivf), false).await.unwrap();
        let probing = |column: &str| {
            let request = SearchRequest::table("two").column(column).vector(QueryVector::from(vec![0.0; 4]));
            request.accuracy(Accuracy::Probes(4))
        };
        ask(&client, probing("v"), 1).await.unwrap();
        let error = ask(&client, probing("w"), 1).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidParameter, "{error}");
        drop(client);
        cell.stop();
    });
}
