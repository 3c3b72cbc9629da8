//! Recall against queries a second of the indexes here, on one thread.
//!
//! usage: recall_speed [--base FILE --queries FILE] [--rows N --dimension D --intrinsic I] [--metric l2|ip|cosine]
//!        [--half] [--degree R] [--build-ef L] [--alpha A] [--bits 4|7] [--lists N] [--ivf-bits B]
//!        [--rounds N] [graph] [ivf] [exact]
//!
//! FILE is .npy (float32, two dimensions) or .fvecs. Without files rows are generated. Recall is at 10, by distance, as
//! `vector_peers.py` counts it. Times are those that the thread ran. The points of a table are measured alternately, in rounds; the median of each is printed.

use std::error::Error;

use heliostat_vector::{
    Metric, Neighbor, Query, QueryBatch, Rows, TopK,
    calibrate::recall,
    f16,
    generate::Clustered,
    graph::{GraphBuilder, GraphOptions, GraphSearch, Scratch},
    ivf::{IvfBuilder, IvfIndex, IvfOptions, IvfSearch, IvfSearchOptions, ListView},
    kmeans::{KMeans, KMeansOptions, Reservoir},
};

const K: usize = 10;

fn read(path: &str) -> Result<(usize, Vec<f32>), Box<dyn Error>> {
    let bytes = std::fs::read(path)?;
    let float = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    if path.ends_with(".npy") {
        let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
        let text = String::from_utf8_lossy(&bytes[10..header]);
        let shape = text.split("'shape': (").nth(1).and_then(|t| t.split(')').next()).ok_or("no shape")?;
        let dimension = shape.split(',').nth(1).ok_or("two dimensions expected")?.trim().parse()?;
        return Ok((dimension, bytes[header..].chunks_exact(4).map(float).collect()));
    }
    let dimension = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
    Ok((dimension, bytes.chunks_exact(4 + 4 * dimension).flat_map(|r| r[4..].chunks_exact(4).map(float)).collect()))
}

/// Seconds that this thread has run: on a shared machine waiting for others is not ours to count.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|t| t.parse::<f64>().ok()).map_or(0.0, |ns| ns * 1e-9)
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Measures `search` at each point, alternately.
fn table<P: Copy>(
    name: &str,
    points: &[(String, P)],
    rounds: usize,
    truths: &[Vec<Neighbor>],
    mut search: impl FnMut(usize, P) -> (Vec<Neighbor>, String),
) {
    let mut times = vec![Vec::new(); points.len()];
    for round in 0..=rounds {
        for ((_, point), times) in points.iter().zip(&mut times) {
            let start = cpu_seconds();
            for query in 0..truths.len() {
                std::hint::black_box(search(query, *point));
            }
            if round > 0 {
                times.push(cpu_seconds() - start);
            }
        }
    }
    for ((label, point), times) in points.iter().zip(&mut times) {
        let mut sum = 0.0;
        let mut note = String::new();
        for (query, truth) in truths.iter().enumerate() {
            let (found, said) = search(query, *point);
            sum += recall(&found, truth);
            note = said;
        }
        let seconds = median(times);
        let queries = truths.len() as f64;
        println!(
            "{name:10} {label:22} recall {:.4}  {:9.0} q/s  {:8.1} us/q  {note}",
            f64::from(sum) / queries,
            queries / seconds,
            seconds / queries * 1e6
        );
    }
}

/// Trains, assigns and encodes; returns the index and its lists' bytes.
fn build_ivf(rows: &Rows<'_>, metric: Metric, lists: usize, bits: u8) -> Result<(IvfIndex, Vec<u8>), Box<dyn Error>> {
    let dimension = rows.dimension();
    let start = cpu_seconds();
    let mut sample = Reservoir::new(dimension, lists * 64, 1);
    let mut row = vec![0.0; dimension];
    for index in 0..rows.count() {
        rows.to_f32(index, &mut row);
        if metric == Metric::Cosine {
            let inverse = row.iter().map(|x| x * x).sum::<f32>().sqrt().recip();
            row.iter_mut().for_each(|x| *x *= inverse);
        }
        sample.push(&row);
    }
    let mut training = KMeans::new(dimension, KMeansOptions { lists, ..Default::default() }, sample.into_rows())?;
    while !training.step().is_finished() {}
    let trained = cpu_seconds() - start;
    let options = IvfOptions { metric, element: rows.element_type(), bits, includes: 0, record_bytes: 0, seed: 1 };
    let mut builder = IvfBuilder::new(options, training.finish())?;
    let parts: Vec<(usize, Rows<'_>)> = (0..rows.count())
        .step_by(1024)
        .map(|first| (first, rows.slice(first, 1024.min(rows.count() - first))))
        .collect();
    for (_, part) in &parts {
        builder.assign(part)?;
    }
    let assigned = cpu_seconds() - start;
    let mut object = Vec::new();
    for _ in 0..builder.begin_writing(256 << 20)? {
        for (first, part) in &parts {
            let ids: Vec<u64> = (*first as u64..(first + part.count()) as u64).collect();
            builder.encode(part, &ids, &[])?;
        }
        while let Some(list) = builder.next_list() {
            object.extend(builder.write(list, &[])?);
        }
    }
    let (index, _) = builder.finish()?;
    let largest = index.lists().iter().map(|list| list.rows).max().unwrap_or(0);
    println!(
        "ivf of {lists} lists, {bits} bits: trained in {trained:.1} s, assigned by {assigned:.1} s, written by {:.1} s; \
         lists {} MiB, in memory {} KiB, largest list {largest} rows",
        cpu_seconds() - start,
        object.len() >> 20,
        index.memory_bytes() >> 10
    );
    Ok((index, object))
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1));
    let number = |name: &str, default: f64| option(name).map_or(Ok(default), |v| v.parse::<f64>());
    let flag = |name: &str| arguments.iter().any(|a| a == name);
    let all = !["graph", "ivf", "exact"].iter().any(|kind| flag(kind));
    let metric = match option("--metric").map(String::as_str) {
        Some("ip") => Metric::InnerProduct,
        Some("cosine") => Metric::Cosine,
        _ => Metric::L2,
    };
    let (dimension, base, asked) = match (option("--base"), option("--queries")) {
        (Some(base), Some(queries)) => {
            let (dimension, base) = read(base)?;
            (dimension, base, read(queries)?.1)
        }
        _ => {
            let dimension = number("--dimension", 128.0)? as usize;
            let (rows, intrinsic) = (number("--rows", 100_000.0)? as usize, number("--intrinsic", 16.0)? as usize);
            let data = Clustered { dimension, intrinsic, clusters: 200, spread: 0.7, seed: 1 };
            (dimension, data.rows(0, rows), data.rows(1 << 40, 1000))
        }
    };
    let halves: Vec<f16> = base.iter().map(|x| f16::from_f32(*x)).collect();
    let rows = if flag("--half") { Rows::of(&halves, dimension)? } else { Rows::of(&base, dimension)? };
    let queries = Rows::of(&asked, dimension)?;
    let rounds = number("--rounds", 3.0)? as usize;
    println!("{} rows of {dimension}, {} queries, {metric:?}", rows.count(), queries.count());

    let start = cpu_seconds();
    let mut tops = vec![TopK::new(K); queries.count()];
    let batch = QueryBatch::new(rows.element_type(), metric, &queries)?;
    const TILE: usize = 1024;
    for first in (0..rows.count()).step_by(TILE) {
        let some = rows.slice(first, TILE.min(rows.count() - first));
        let mut out = vec![0.0; queries.count() * some.count()];
        batch.distances(&some, &mut out)?;
        tops.iter_mut().zip(out.chunks(some.count())).for_each(|(top, out)| top.push_rows(out, first as u64));
    }
    let truths: Vec<Vec<Neighbor>> = tops.into_iter().map(TopK::into_sorted).collect();
    let seconds = cpu_seconds() - start;
    println!(
        "exact, batch of {}: {:.0} q/s, {:.1} G multiply-adds/s",
        queries.count(),
        queries.count() as f64 / seconds,
        (queries.count() * rows.count() * dimension) as f64 / seconds / 1e9
    );
    if all || flag("exact") {
        let few = &truths[..truths.len().min(50)];
        let points = [("one query".to_string(), ())];
        let mut distances = vec![0.0; rows.count()];
        let start = cpu_seconds();
        table("exact", &points, rounds, few, |query, ()| {
            let query = Query::new(rows.element_type(), dimension, metric, queries.row(query)).expect("a valid query");
            query.distances(&rows, &mut distances).expect("rows of the same shape");
            let mut top = TopK::new(K);
            top.push_rows(&distances, 0);
            (top.into_sorted(), String::new())
        });
        let bytes = (rows.count() * rows.element_type().row_bytes(dimension) * few.len() * (rounds + 2)) as f64;
        println!("exact reads {:.1} GB/s", bytes / (cpu_seconds() - start) / 1e9);
    }
    if all || flag("graph") {
        let options = GraphOptions {
            degree: number("--degree", 32.0)? as usize,
            build_ef: number("--build-ef", 80.0)? as usize,
            alpha: number("--alpha", 1.15)? as f32,
            bits: number("--bits", 4.0)? as u8,
            ..GraphOptions::default()
        };
        let start = cpu_seconds();
        let sample = rows.slice(0, rows.count().min(10_000));
        let mut builder = GraphBuilder::new(options, metric, rows.element_type(), &sample)?;
        builder.push(&rows)?;
        let encoded = cpu_seconds() - start;
        while !builder.step(256).is_finished() {}
        let memory = builder.memory_bytes() >> 20;
        let graph = builder.finish()?;
        println!(
            "graph {options:?}\nbuilt in {:.1} s (encoding {encoded:.1} s), builder {memory} MiB, graph {} MiB, mean degree {:.1}",
            (cpu_seconds() - start),
            graph.memory_bytes() >> 20,
            graph.mean_degree()
        );
        let points: Vec<(String, usize)> =
            [10, 16, 24, 32, 48, 64, 96, 128, 192, 256].map(|ef| (format!("ef={ef}"), ef)).to_vec();
        let mut scratch = Scratch::default();
        let rerank = number("--rerank", 0.0)? as usize;
        table("graph", &points, rounds, &truths, |query, ef| {
            let search = GraphSearch { rerank, ..GraphSearch::new(K, ef) };
            let (found, statistics) =
                graph.search(queries.row(query), search, None, &mut scratch).expect("a valid query");
            (found, format!("{statistics:?}"))
        });
    }
    if all || flag("ivf") {
        let lists = number("--lists", 4.0 * (rows.count() as f64).sqrt())? as usize;
        let (index, object) = build_ivf(&rows, metric, lists, number("--ivf-bits", 4.0)? as u8)?;
        let points: Vec<(String, usize)> = [2, 4, 8, 16, 32, 64, 128].map(|n| (format!("probes={n}"), n)).to_vec();
        table("ivf", &points, rounds, &truths, |query, probes| {
            let options = IvfSearchOptions::new(K, probes);
            let mut search = IvfSearch::new(&index, queries.row(query), options).expect("a valid query");
            for (list, entry) in search.reads().collect::<Vec<_>>() {
                let bytes = &object[entry.offset as usize..][..entry.bytes as usize];
                let view = ListView::new(&index, list, bytes).expect("the bytes that were written");
                search.scan(list, &view, None).expect("a list that was asked for");
            }
            for id in search.candidates().into_iter().map(|candidate| candidate.row) {
                search.compare(&[id], &rows.slice(id as usize, 1)).expect("rows of the same shape");
            }
            let (found, statistics) = search.finish();
            (found, format!("{statistics:?}"))
        });
    }
    Ok(())
}
