//! Recall against exact answers with fixed seeds, and the byte layout against damage.

use super::*;
use crate::{Elements, Neighbor, Query, TopK, calibrate::recall, generate::Clustered};

fn exact(query: &Query, rows: &Rows<'_>, k: usize, pass: impl Fn(u64) -> bool) -> Vec<Neighbor> {
    let mut distances = vec![0.0; rows.count()];
    query.distances(rows, &mut distances).unwrap();
    let mut top = TopK::new(k);
    distances.iter().zip(0u64..).filter(|(_, row)| pass(*row)).for_each(|(d, row)| top.push(*d, row));
    top.into_sorted()
}

fn build(rows: &Rows<'_>, metric: Metric, options: GraphOptions) -> Graph {
    let mut builder = GraphBuilder::new(options, metric, rows.element_type(), rows).unwrap();
    builder.push(rows).unwrap();
    while !builder.step(100).is_finished() {}
    builder.finish().unwrap()
}

fn mean_recall(graph: &Graph, rows: &Rows<'_>, queries: &Rows<'_>, search: GraphSearch, every: u64) -> f32 {
    let mut scratch = Scratch::default();
    let mut filter = vec![0u64; rows.count().div_ceil(64)];
    (0..rows.count()).step_by(every as usize).for_each(|r| filter[r / 64] |= 1 << (r % 64));
    let mut sum = 0.0;
    for index in 0..queries.count() {
        let query = Query::new(rows.element_type(), rows.dimension(), graph.metric(), queries.row(index)).unwrap();
        let truth = exact(&query, rows, search.k, |row| row.is_multiple_of(every));
        let filter = (every > 1).then_some(&filter[..]);
        let (found, _) = graph.search(queries.row(index), search, filter, &mut scratch).unwrap();
        assert!(found.iter().all(|n| n.row.is_multiple_of(every)));
        assert!(found.is_sorted_by(|a, b| a.order(b).is_lt()), "sorted, no row twice");
        sum += recall(&found, &truth);
    }
    sum / queries.count() as f32
}

#[test]
fn recall_is_high_for_every_metric_and_element() {
    let data = Clustered { dimension: 48, intrinsic: 10, clusters: 30, spread: 0.5, seed: 21 };
    let (base, asked) = (data.rows(0, 3000), data.rows(3000, 40));
    let search = GraphSearch::new(10, 64);
    let halves = |v: &[f32]| v.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>();
    let bytes = |v: &[f32]| v.iter().map(|x| (x * 20.0).clamp(-128.0, 127.0) as i8).collect::<Vec<_>>();
    let bits = |v: &[f32]| v.chunks(8).map(|c| c.iter().rev().fold(0u8, |b, x| b << 1 | u8::from(*x > 0.0))).collect();
    let check = |rows: Rows<'_>, queries: Rows<'_>, metric| {
        for bits in [4, 7] {
            let graph = build(&rows, metric, GraphOptions { bits, degree: 24, ..GraphOptions::default() });
            let reached = mean_recall(&graph, &rows, &queries, search, 1);
            assert!(reached > 0.97, "{:?} {metric:?} {bits}: {reached}", rows.element_type());
        }
    };
    for metric in [Metric::L2, Metric::InnerProduct, Metric::Cosine] {
        check(Rows::of(&base, 48).unwrap(), Rows::of(&asked, 48).unwrap(), metric);
    }
    check(Rows::of(&halves(&base), 48).unwrap(), Rows::of(&halves(&asked), 48).unwrap(), Metric::L2);
    check(Rows::of(&bytes(&base), 48).unwrap(), Rows::of(&bytes(&asked), 48).unwrap(), Metric::Cosine);
    let (base, asked): (Vec<u8>, Vec<u8>) = (bits(&base), bits(&asked));
    check(Rows::of(&base, 48).unwrap(), Rows::of(&asked, 48).unwrap(), Metric::Hamming);
}

#[test]
fn a_filter_is_kept_and_found_through() {
    let data = Clustered { dimension: 32, intrinsic: 8, clusters: 20, spread: 0.5, seed: 2 };
    let (base, asked) = (data.rows(0, 4000), data.rows(4000, 30));
    let (rows, queries) = (Rows::of(&base, 32).unwrap(), Rows::of(&asked, 32).unwrap());
    let graph = build(&rows, Metric::L2, GraphOptions::default());
    for (every, ef) in [(2, 64), (10, 200), (100, 1500)] {
        let reached = mean_recall(&graph, &rows, &queries, GraphSearch::new(10, ef), every);
        assert!(reached > 0.95, "{every}: {reached}");
    }
}

#[test]
fn duplicates_small_tables_and_odd_questions_are_answered() {
    let same = vec![1.5f32; 500 * 3];
    let rows = Rows::of(&same, 3).unwrap();
    let graph = build(&rows, Metric::L2, GraphOptions::default());
    let mut scratch = Scratch::default();
    let search = GraphSearch::new(5, 20);
    let (found, _) = graph.search(Elements::F32(&[1.5; 3]), search, None, &mut scratch).unwrap();
    assert!(found.len() == 5 && found.iter().all(|n| n.distance == 0.0));
    for count in [0usize, 1, 2, 7] {
        let rows = rows.slice(0, count);
        let mut builder = GraphBuilder::new(GraphOptions::default(), Metric::L2, ElementType::F32, &rows).unwrap();
        builder.push(&rows).unwrap();
        let graph = builder.finish().unwrap();
        let (found, _) = graph.search(Elements::F32(&[0.0; 3]), search, None, &mut scratch).unwrap();
        assert_eq!(found.len(), count.min(5));
    }
    let refused = graph.search(Elements::F32(&[0.0; 4]), search, None, &mut scratch);
    assert!(matches!(refused, Err(crate::VectorError::Dimension { .. })));
    let zero = GraphSearch { k: 0, ..search };
    let refused = graph.search(Elements::F32(&[0.0; 3]), zero, None, &mut scratch);
    assert!(matches!(refused, Err(crate::VectorError::Parameter { .. })));
    let refused = graph.search(Elements::F32(&[0.0; 3]), search, Some(&[0]), &mut scratch);
    assert!(matches!(refused, Err(crate::VectorError::Layout { .. })));
}

#[test]
fn the_same_rows_give_the_same_graph_at_every_level() {
    let data = Clustered { dimension: 40, intrinsic: 6, clusters: 9, spread: 0.5, seed: 8 };
    let base = data.rows(0, 700);
    let rows = Rows::of(&base, 40).unwrap();
    let mut first: Option<Vec<u32>> = None;
    crate::simd::at_every_level(|level| {
        let graph = build(&rows, Metric::L2, GraphOptions::default());
        assert_eq!(first.get_or_insert_with(|| graph.links.clone()), &graph.links, "{level:?}");
    });
}

#[test]
fn rows_added_later_are_found() {
    let data = Clustered { dimension: 32, intrinsic: 8, clusters: 20, spread: 0.5, seed: 3 };
    let (base, asked) = (data.rows(0, 3000), data.rows(3000, 30));
    let (rows, queries) = (Rows::of(&base, 32).unwrap(), Rows::of(&asked, 32).unwrap());
    let sample = rows.slice(0, 100);
    let mut builder = GraphBuilder::new(GraphOptions::default(), Metric::L2, ElementType::F32, &sample).unwrap();
    for start in (0..3000).step_by(1000) {
        builder.push(&rows.slice(start, 1000)).unwrap();
        while !builder.step(64).is_finished() {}
    }
    let graph = builder.finish().unwrap();
    assert!(mean_recall(&graph, &rows, &queries, GraphSearch::new(10, 64), 1) > 0.97);
}

fn small_graph() -> Graph {
    let base = Clustered { dimension: 6, intrinsic: 3, clusters: 4, spread: 0.5, seed: 8 }.rows(0, 120);
    build(&Rows::of(&base, 6).unwrap(), Metric::L2, GraphOptions { bits: 7, degree: 6, ..GraphOptions::default() })
}

#[test]
fn a_graph_comes_back_from_its_bytes() {
    let graph = small_graph();
    let bytes = graph.to_bytes();
    let back = Graph::from_bytes(&bytes).unwrap();
    assert_eq!(back.to_bytes(), bytes);
    let search = GraphSearch::new(5, 20);
    let query = Elements::F32(&[0.3; 6]);
    let mut scratch = Scratch::default();
    let expected = graph.search(query, search, None, &mut scratch).unwrap();
    assert_eq!(back.search(query, search, None, &mut scratch).unwrap(), expected);
    for cut in [1, 15, 16, 100, bytes.len() - 1] {
        assert!(Graph::from_bytes(&bytes[..cut]).is_err());
    }
    let mut flipped = bytes;
    flipped[500] ^= 4;
    assert!(matches!(Graph::from_bytes(&flipped), Err(crate::VectorError::Checksum { .. })));
}

/// Rows of a tight cluster differ by less than their codes can tell: what the walk kept is compared in full.
#[test]
fn tight_clusters_are_told_apart() {
    let clusters = Clustered { dimension: 32, intrinsic: 16, clusters: 100, spread: 0.02, seed: 11 };
    let (data, asked) = (clusters.rows(0, 12_000), clusters.rows(12_000, 200));
    let (rows, asked) = (Rows::of(&data, 32).unwrap(), Rows::of(&asked, 32).unwrap());
    let graph = build(&rows, Metric::L2, GraphOptions::default());
    let reached = mean_recall(&graph, &rows, &asked, GraphSearch::new(10, 250), 1);
    assert!(reached > 0.97, "{reached}");
}

#[test]
fn comparing_all_rows_that_pass_finds_the_nearest_of_them() {
    let (clusters, queries) = (Clustered { dimension: 48, intrinsic: 10, clusters: 12, spread: 0.4, seed: 5 }, 40);
    let (data, asked) = (clusters.rows(0, 3000), clusters.rows(3000, queries));
    let (rows, asked) = (Rows::of(&data, 48).unwrap(), Rows::of(&asked, 48).unwrap());
    for (metric, bits) in [(Metric::L2, 4), (Metric::Cosine, 7), (Metric::InnerProduct, 4)] {
        let graph = build(&rows, metric, GraphOptions { bits, ..GraphOptions::default() });
        let mut scratch = Scratch::default();
        for every in [1, 10, 700, 5000] {
            let mut filter = vec![0u64; 3000usize.div_ceil(64)];
            (1..3000).step_by(every).for_each(|row| filter[row / 64] |= 1 << (row % 64));
            let passes = |row: u64| filter[row as usize / 64] >> (row % 64) & 1 == 1;
            let search = GraphSearch::new(10, 10);
            let mut rows_search = RowsSearch::new(&graph, search, 0).unwrap();
            (0..queries).for_each(|query| rows_search.push(&graph, asked.row(query), &mut scratch).unwrap());
            let (mut at, mut steps) = (0, 0);
            while at < filter.len() {
                (at, steps) = (rows_search.step(&graph, &filter, at, 100), steps + 1);
            }
            assert!(steps >= 1 && (every > 1 || steps > 10), "{steps} steps");
            let (mut reached, mut compared) = (0.0, 0);
            for query in 0..queries {
                let in_full = Query::new(ElementType::F32, 48, metric, asked.row(query)).unwrap();
                let truth = exact(&in_full, &rows, 10, passes);
                let (found, did) = rows_search.finish_next(&graph, &mut scratch).unwrap().unwrap();
                assert!(found.iter().all(|neighbor| passes(neighbor.row)));
                reached += recall(&found, &truth) / queries as f32;
                compared += did.compared;
            }
            assert!(rows_search.finish_next(&graph, &mut scratch).is_none());
            let passing = filter.iter().map(|word| word.count_ones() as usize).sum::<usize>();
            assert_eq!(compared, passing * queries, "every row that passes, once a query");
            assert!(reached > 0.99, "{metric:?}, one in {every}: {reached}");
        }
    }
}

#[test]
fn a_walk_that_avoids_a_node_answers_as_if_it_was_not_there() {
    let base = Clustered { dimension: 6, intrinsic: 3, clusters: 4, spread: 0.5, seed: 8 }.rows(0, 120);
    // Of so many neighbours that no node is reached by one other alone.
    let options = GraphOptions { bits: 7, degree: 32, ..GraphOptions::default() };
    let graph = build(&Rows::of(&base, 6).unwrap(), Metric::L2, options);
    let mut scratch = Scratch::default();
    assert_eq!(graph.node_of(120), None);
    for row in 0..120 {
        let node = graph.node_of(row).unwrap();
        let query = graph.vectors.as_ref().unwrap().rows(6).unwrap();
        let search = GraphSearch::new(6, 120);
        let (all, _) = graph.search(query.row(node as usize), search, None, &mut scratch).unwrap();
        let avoiding = GraphSearch { k: 5, avoid: Some(node), ..search };
        let (others, _) = graph.search(query.row(node as usize), avoiding, None, &mut scratch).unwrap();
        let mut expected: Vec<Neighbor> = all.into_iter().filter(|found| found.row != u64::from(row)).collect();
        expected.truncate(5);
        assert_eq!(others, expected, "row {row}");
    }
    let beyond = GraphSearch { avoid: Some(120), ..GraphSearch::new(5, 20) };
    assert!(graph.search(Elements::F32(&[0.0; 6]), beyond, None, &mut scratch).is_err());
}

#[test]
fn an_object_is_the_graph_with_its_row_ids_and_nothing_else() {
    let graph = small_graph();
    let rowids: Vec<i64> = (0..120).map(|row| row * 1_000_000_007 - 5).collect();
    let object = graph.to_object(&rowids);
    let (back, ids) = Graph::from_object(&object, 120).unwrap();
    assert_eq!((back.to_bytes(), ids), (graph.to_bytes(), rowids));
    for rows in [0, 119, 121, 510, 511, 1 << 40, u64::MAX / 8, u64::MAX] {
        assert!(Graph::from_object(&object, rows).is_err(), "{rows} rows");
    }
    assert!(Graph::from_object(&graph.to_object(&[7; 119]), 119).is_err(), "a node without an id");
    assert!(Graph::from_object(&object[..4096], 120).is_err());
    for at in [0, 8 * 120 - 1, 4096 - 16, 4096 - 8, 4096 + 500] {
        let mut flipped = object.clone();
        flipped[at] ^= 4;
        assert!(Graph::from_object(&flipped, 120).is_err(), "byte {at}");
    }
}

/// Counts that overflow sums, floats that overflow products or are none.
static WORDS: [u32; 9] = [0, 1, 64, 0x7fff_ffff, u32::MAX, 0x7f7f_ffff, 0xff7f_ffff, 0x7f80_0000, 0x7fc0_0000];

proptest::proptest! {
    #[test]
    fn damaged_graphs_are_errors_or_searched(at in 0usize..100_000, with in 1u8..=255) {
        static BYTES: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let mut bytes = BYTES.get_or_init(|| small_graph().to_bytes()).clone();
        let length = bytes.len();
        bytes[16 + at % (length - 16)] ^= with;
        let checksum = crc32c::crc32c(&bytes[16..]);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        if let Ok(graph) = Graph::from_bytes(&bytes) {
            let query = vec![0.3; graph.dimension()];
            let search = GraphSearch::new(5, 20);
            let _ = graph.search(Elements::F32(&query), search, None, &mut Scratch::default());
        }
    }

    #[test]
    fn objects_of_odd_words_are_errors_or_searched(
        four_bits in proptest::bool::ANY,
        words in proptest::collection::vec((0usize..3, 0usize..100_000, proptest::sample::select(&WORDS[..])), 1..6),
        filter in proptest::option::of(0u64..=u64::MAX),
    ) {
        static OBJECTS: std::sync::OnceLock<[Vec<u8>; 2]> = std::sync::OnceLock::new();
        let objects = OBJECTS.get_or_init(|| {
            let base = Clustered { dimension: 6, intrinsic: 3, clusters: 4, spread: 0.5, seed: 8 }.rows(0, 120);
            let rows = Rows::of(&base, 6).unwrap();
            // Codes of four bits without vectors, and of seven with them.
            let options = GraphOptions { bits: 4, degree: 6, keep_vectors: false, ..GraphOptions::default() };
            let rowids: Vec<i64> = (0..120).collect();
            [small_graph().to_object(&rowids), build(&rows, Metric::L2, options).to_object(&rowids)]
        });
        let mut object = objects[usize::from(four_bits)].clone();
        for (part, at, word) in words {
            let (from, to) = [(0, 8 * 120), (4080, 4096), (4112, object.len())][part];
            let at = from + at % ((to - from) / 4) * 4;
            object[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        let checksum = u64::from(crc32c::crc32c(&object[..8 * 120]));
        object[4080..4088].copy_from_slice(&checksum.to_le_bytes());
        let checksum = crc32c::crc32c(&object[4112..]);
        object[4108..4112].copy_from_slice(&checksum.to_le_bytes());
        if let Ok((graph, rowids)) = Graph::from_object(&object, 120) {
            assert!(graph.count() == 120 && rowids.len() == 120);
            let query = vec![0.3; graph.dimension()];
            let bitmap = filter.map(|word| vec![word; 2]);
            let search = GraphSearch::new(5, 20);
            let mut scratch = Scratch::default();
            if let Ok((found, _)) = graph.search(Elements::F32(&query), search, bitmap.as_deref(), &mut scratch) {
                assert!(found.iter().all(|n| filter.is_none_or(|word| word >> (n.row % 64) & 1 == 1)));
            }
        }
    }
}
