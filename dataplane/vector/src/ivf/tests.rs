//! Whole indexes, built in memory: recall against exact answers, bounded work, and bytes that lie.

use proptest::prelude::*;

use super::*;
use crate::{
    ElementType, Elements, Metric, Neighbor, Query, Result, Rows, TopK, VectorError,
    calibrate::{Calibrator, recall},
    generate::Clustered,
    kmeans::{Centroids, KMeans, KMeansOptions},
};

struct Built {
    object: Vec<u8>,
    index: IvfIndex,
    passes: usize,
}

fn floats(rows: &Rows<'_>, metric: Metric) -> Vec<f32> {
    let mut all = vec![0.0; rows.count() * rows.dimension()];
    for (index, row) in all.chunks_exact_mut(rows.dimension()).enumerate() {
        rows.to_f32(index, row);
        crate::graph::normalised(metric, row);
    }
    all
}

/// Row `i` has id `3 i + 1`; the one include column says `i % 100` of each row.
fn build(rows: &Rows<'_>, metric: Metric, bits: u8, lists: usize, memory: usize) -> Built {
    let options = KMeansOptions { lists, ..KMeansOptions::default() };
    let mut training = KMeans::new(rows.dimension(), options, floats(rows, metric)).unwrap();
    while !training.step().is_finished() {}
    let options = IvfOptions { metric, element: rows.element_type(), bits, includes: 1, record_bytes: 1, seed: 7 };
    let mut builder = IvfBuilder::new(options, training.finish()).unwrap();
    let parts = |step: usize| (0..rows.count()).step_by(step).map(move |s| (s, step.min(rows.count() - s)));
    for (start, count) in parts(100) {
        builder.assign(&rows.slice(start, count)).unwrap();
    }
    let passes = builder.begin_writing(memory).unwrap();
    let mut object = Vec::new();
    for _ in 0..passes {
        for (start, count) in parts(333) {
            let ids: Vec<u64> = (start..start + count).map(|i| 3 * i as u64 + 1).collect();
            let records: Vec<u8> = (start..start + count).map(|i| (i % 100) as u8).collect();
            builder.encode(&rows.slice(start, count), &ids, &records).unwrap();
        }
        while let Some(list) = builder.next_list() {
            let column = list.records().to_vec();
            assert!(list.ids().iter().zip(&column).all(|(id, value)| id / 3 % 100 == u64::from(*value)));
            object.extend(builder.write(list, &[&column]).unwrap());
        }
    }
    assert!(builder.is_done());
    let (index, tail) = builder.finish().unwrap();
    object.extend(tail);
    Built { object, index, passes }
}

fn open(object: &[u8]) -> Result<IvfIndex> {
    let trailer = &object[object.len().saturating_sub(TRAILER_BYTES)..];
    let (place, checksum) = read_trailer(trailer, object.len() as u64)?;
    IvfIndex::read(&object[place.start as usize..place.end as usize], &place, checksum)
}

/// A search over the bytes; `every` keeps the rows whose include column is a multiple of it.
fn search(
    index: &IvfIndex,
    object: &[u8],
    rows: &Rows<'_>,
    query: Elements<'_>,
    options: IvfSearchOptions,
    every: u8,
) -> Result<(Vec<Neighbor>, IvfStatistics)> {
    let mut search = IvfSearch::new(index, query, options)?;
    let reads: Vec<_> = search.reads().collect();
    for (list, entry) in reads {
        let bytes = &object[entry.offset as usize..][..entry.bytes as usize];
        let view = ListView::new(index, list, bytes)?;
        let mut bitmap = vec![0u64; view.rows().div_ceil(64)];
        for (place, value) in view.include(0).iter().enumerate() {
            bitmap[place / 64] |= u64::from(value % every == 0) << (place % 64);
        }
        search.scan(list, &view, (every > 1).then_some(&bitmap[..]))?;
    }
    let candidates = search.candidates();
    for candidate in candidates {
        let place = (candidate.row / 3) as usize;
        assert_eq!(candidate.crc32c, crc32c::crc32c(rows.row_bytes(place)));
        search.compare(&[candidate.row], &rows.slice(place, 1))?;
    }
    Ok(search.finish())
}

fn exact(rows: &Rows<'_>, metric: Metric, query: Elements<'_>, k: usize, every: usize) -> Vec<Neighbor> {
    let query = Query::new(rows.element_type(), rows.dimension(), metric, query).unwrap();
    let mut distances = vec![0.0; rows.count()];
    query.distances(rows, &mut distances).unwrap();
    let mut top = TopK::new(k);
    for (i, distance) in distances.iter().enumerate().filter(|(i, _)| i % 100 % every == 0) {
        top.push(*distance, 3 * i as u64 + 1);
    }
    top.into_sorted()
}

fn check_recall(rows: &Rows<'_>, queries: &Rows<'_>, metric: Metric, bits: u8, every: u8, least: f32) -> IvfStatistics {
    let Built { object, index, .. } = build(rows, metric, bits, 64, usize::MAX);
    let reopened = open(&object).unwrap();
    let mut sum = 0.0;
    let mut statistics = IvfStatistics::default();
    for i in 0..queries.count() {
        let truth = exact(rows, metric, queries.row(i), 10, every.into());
        let options = IvfSearchOptions::new(10, 64);
        let (found, s) = search(&reopened, &object, rows, queries.row(i), options, every).unwrap();
        assert_eq!(found, search(&index, &object, rows, queries.row(i), options, every).unwrap().0);
        assert!(s.reranked <= 40 && s.lists_probed <= 64, "{s:?}");
        statistics = s;
        sum += recall(&found, &truth);
    }
    let reached = sum / queries.count() as f32;
    assert!(reached >= least, "{metric:?} {bits} bits, 1 of {every}: {reached} {statistics:?}");
    statistics
}

const DATA: Clustered = Clustered { dimension: 96, intrinsic: 12, clusters: 40, spread: 0.5, seed: 31 };

#[test]
fn all_lists_probed_find_nearly_everything() {
    let (base, asked) = (DATA.rows(0, 5000), DATA.rows(5000, 25));
    let (rows, queries) = (Rows::of(&base, 96).unwrap(), Rows::of(&asked, 96).unwrap());
    // Probing everything leaves the bound of the codes as the only loss.
    for metric in [Metric::L2, Metric::InnerProduct, Metric::Cosine] {
        check_recall(&rows, &queries, metric, 1, 1, 0.85);
        check_recall(&rows, &queries, metric, 4, 1, 0.99);
        check_recall(&rows, &queries, metric, 7, 10, 0.99);
    }
    let bytes = |v: &[f32]| v.iter().map(|x| (x * 20.0).clamp(-128.0, 127.0) as i8).collect::<Vec<_>>();
    let (base, asked) = (bytes(&base), bytes(&asked));
    let (rows, queries) = (Rows::of(&base, 96).unwrap(), Rows::of(&asked, 96).unwrap());
    check_recall(&rows, &queries, Metric::L2, 4, 1, 0.99);
}

#[test]
fn more_probes_find_more_and_few_rows_are_compared() {
    let (base, asked) = (DATA.rows(0, 5000), DATA.rows(5000, 25));
    let (rows, queries) = (Rows::of(&base, 96).unwrap(), Rows::of(&asked, 96).unwrap());
    let Built { object, index, .. } = build(&rows, Metric::L2, 4, 64, usize::MAX);
    let mut before = 0.0;
    for probes in [1, 4, 16] {
        let mut sum = 0.0;
        for i in 0..25 {
            let truth = exact(&rows, Metric::L2, queries.row(i), 10, 1);
            let options = IvfSearchOptions::new(10, probes);
            let (found, s) = search(&index, &object, &rows, queries.row(i), options, 1).unwrap();
            assert!(s.lists_probed <= probes && (probes < 16 || s.codes_refined < s.codes_scanned), "{s:?}");
            sum += recall(&found, &truth) / 25.0;
        }
        assert!(sum >= before, "{probes}: {sum}");
        before = sum;
    }
    assert!(before > 0.97, "{before}");
}

#[test]
fn the_object_does_not_depend_on_the_memory_it_was_built_in() {
    let base = DATA.rows(0, 1500);
    let rows = Rows::of(&base, 96).unwrap();
    let (one, many) = (build(&rows, Metric::L2, 4, 20, usize::MAX), build(&rows, Metric::L2, 4, 20, 30_000));
    assert_eq!(one.passes, 1);
    assert!(many.passes > 3, "{}", many.passes);
    assert_eq!(one.object, many.object);
}

#[test]
fn a_calibration_is_measured_kept_and_met() {
    let (base, asked) = (DATA.rows(0, 5000), DATA.rows(5000, 60));
    let (rows, queries) = (Rows::of(&base, 96).unwrap(), Rows::of(&asked, 96).unwrap());
    let Built { object, mut index, .. } = build(&rows, Metric::L2, 4, 64, usize::MAX);
    let truths: Vec<_> = (0..60).map(|i| exact(&rows, Metric::L2, queries.row(i), 10, 1)).collect();
    let found = |i: usize, probes: u32, index: &IvfIndex| {
        let options = IvfSearchOptions::new(10, probes as usize);
        search(index, &object, &rows, queries.row(i), options, 1).unwrap().0
    };
    // The first half calibrates, the second is held against it.
    let mut calibrator = Calibrator::new(10, vec![1, 2, 4, 8, 16, 32], truths[..30].to_vec()).unwrap();
    while let Some((query, probes)) = calibrator.next() {
        calibrator.found(&found(query, probes, &index));
    }
    let tail = index.with_calibration(calibrator.finish());
    let end = index.lists().iter().map(|e| e.offset + e.bytes.next_multiple_of(LIST_ALIGNMENT as u64)).max().unwrap();
    let reopened = open(&[&object[..end as usize], &tail].concat()).unwrap();
    for target in [0.8, 0.9, 0.95] {
        let probes = reopened.calibration().parameter(target).unwrap();
        let reached = (30..60).map(|i| recall(&found(i, probes, &reopened), &truths[i])).sum::<f32>() / 30.0;
        assert!(reached >= target - 0.03, "{target}: {probes} probes reach {reached}");
    }
}

#[test]
fn a_distance_bound_is_a_range_search() {
    let (base, asked) = (DATA.rows(0, 2000), DATA.rows(2000, 5));
    let (rows, queries) = (Rows::of(&base, 96).unwrap(), Rows::of(&asked, 96).unwrap());
    for metric in [Metric::L2, Metric::Cosine] {
        let Built { object, index, .. } = build(&rows, metric, 7, 16, usize::MAX);
        for i in 0..5 {
            let truth = exact(&rows, metric, queries.row(i), 30, 1);
            let distance_max = truth[20].distance;
            let options = IvfSearchOptions { distance_max, epsilon: 4.0, ..IvfSearchOptions::new(1000, 16) };
            let (found, _) = search(&index, &object, &rows, queries.row(i), options, 1).unwrap();
            assert_eq!(found, truth.into_iter().filter(|n| n.distance <= distance_max).collect::<Vec<_>>());
        }
    }
}

#[test]
fn calls_out_of_order_are_refused() {
    let centroids = Centroids::new(2, vec![0.0, 0.0, 1.0, 1.0]).unwrap();
    let options =
        IvfOptions { metric: Metric::L2, element: ElementType::F32, bits: 1, includes: 0, record_bytes: 0, seed: 1 };
    let mut builder = IvfBuilder::new(options, centroids.clone()).unwrap();
    let rows = Rows::of(&[1.0f32, 2.0], 2).unwrap();
    assert!(matches!(builder.encode(&rows, &[1], &[]), Err(VectorError::State { .. })));
    assert!(builder.next_list().is_none());
    builder.assign(&rows).unwrap();
    assert!(matches!(builder.clone().finish(), Err(VectorError::State { .. })));
    assert_eq!(builder.begin_writing(1).unwrap(), 2);
    assert!(matches!(builder.assign(&rows), Err(VectorError::State { .. })));
    let nine = IvfOptions { bits: 9, ..options };
    assert!(matches!(IvfBuilder::new(nine, centroids), Err(VectorError::Parameter { .. })));
}

#[test]
fn an_index_of_nothing_answers_nothing() {
    let centroids = Centroids::new(2, vec![0.0, 0.0]).unwrap();
    let options =
        IvfOptions { metric: Metric::L2, element: ElementType::F32, bits: 1, includes: 0, record_bytes: 0, seed: 1 };
    let mut builder = IvfBuilder::new(options, centroids).unwrap();
    let passes = builder.begin_writing(1 << 20).unwrap();
    for _ in 0..passes {
        while builder.next_list().is_some() {}
    }
    let (_, object) = builder.finish().unwrap();
    let index = open(&object).unwrap();
    let search = IvfSearch::new(&index, Elements::F32(&[1.0, 2.0]), IvfSearchOptions::new(3, 5)).unwrap();
    assert_eq!(search.reads().count(), 0);
    assert!(search.finish().0.is_empty());
}

#[test]
fn metadata_without_lists_are_refused() {
    // One bit, one dimension; no lists, columns, rows or calibration. Nothing else is wrong with it.
    let mut metadata = vec![Metric::L2 as u8, ElementType::F32 as u8, 1, 0, 1, 0, 0, 0];
    metadata.resize(16 + 16 + 4 + 8, 0);
    assert!(matches!(IvfIndex::decode(&metadata, 0), Err(VectorError::Corrupt { .. })));
}

/// Vectors, and objects of them with codes of one bit and of three.
fn small_objects() -> &'static (Vec<f32>, [Vec<u8>; 2]) {
    static BUILT: std::sync::OnceLock<(Vec<f32>, [Vec<u8>; 2])> = std::sync::OnceLock::new();
    BUILT.get_or_init(|| {
        let base = Clustered { dimension: 5, ..DATA }.rows(0, 300);
        let object = |bits| build(&Rows::of(&base, 5).unwrap(), Metric::L2, bits, 8, usize::MAX).object;
        let objects = [object(1), object(3)];
        (base, objects)
    })
}

/// Where the metadata of a whole object lie.
fn metadata_of(object: &[u8]) -> std::ops::Range<usize> {
    let (place, _) = read_trailer(&object[object.len() - TRAILER_BYTES..], object.len() as u64).unwrap();
    place.start as usize..place.end as usize
}

/// Puts the right checksums into an object whose metadata were changed, so that the decoders see them.
fn mend(object: &mut [u8], metadata: std::ops::Range<usize>) {
    let trailer = object.len() - TRAILER_BYTES;
    let checksum = crc32c::crc32c(&object[metadata]);
    object[trailer + 12..trailer + 16].copy_from_slice(&checksum.to_le_bytes());
    let checksum = crc32c::crc32c(&object[trailer..trailer + 60]);
    object[trailer + 60..].copy_from_slice(&checksum.to_le_bytes());
}

/// Opens bytes that may lie, and searches what opens; `filter` is a word of every list's bitmap.
fn open_and_search(object: &[u8], rows: &Rows<'_>, filter: Option<u64>) {
    let Ok(index) = open(object) else { return };
    let query = vec![0.5; index.dimension()];
    let Ok(mut search) = IvfSearch::new(&index, Elements::F32(&query), IvfSearchOptions::new(10, 8)) else { return };
    for (list, entry) in search.reads().collect::<Vec<_>>() {
        let bytes = &object[entry.offset as usize..][..entry.bytes as usize];
        if let Ok(view) = ListView::new(&index, list, bytes) {
            let included: usize = (0..index.includes()).map(|column| view.include(column).len()).sum();
            assert!(included <= bytes.len());
            let words = filter.map(|word| vec![word; view.rows().div_ceil(64)]);
            search.scan(list, &view, words.as_deref()).unwrap();
        }
    }
    for id in search.candidates().into_iter().map(|candidate| candidate.row).filter(|id| id / 3 < 300) {
        let _ = search.compare(&[id], &rows.slice((id / 3) as usize, 1));
    }
    let (found, statistics) = search.finish();
    assert!(found.len() <= 10 && statistics.reranked <= 40, "{statistics:?}");
    assert!(found.is_sorted_by(|a, b| a.order(b).is_lt()), "sorted, no row twice");
}

/// Counts and lengths that overflow sums, floats that overflow products or are none.
static WORDS: [u32; 9] = [0, 1, 32, 0x7fff_ffff, u32::MAX, 0x7f7f_ffff, 0xff7f_ffff, 0x7f80_0000, 0x7fc0_0000];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damaged_objects_are_errors_or_answers(
        at in any::<usize>(),
        meta in any::<bool>(),
        with in 1u8..=255,
        cut in prop_oneof![9 => Just(0usize), 1 => 1usize..200],
    ) {
        let (base, [_, object]) = small_objects();
        let metadata = metadata_of(object);
        let at = if meta { metadata.end - 1 - at % 400 } else { at % metadata.end };
        let mut damaged = object.clone();
        damaged[at] ^= with;
        mend(&mut damaged, metadata);
        damaged.truncate(object.len() - cut);
        open_and_search(&damaged, &Rows::of(base, 5).unwrap(), None);
    }

    #[test]
    fn objects_of_odd_words_are_errors_or_answers(
        several_bits in any::<bool>(),
        words in proptest::collection::vec((any::<bool>(), any::<usize>(), proptest::sample::select(&WORDS[..])), 1..6),
        filter in proptest::option::of(any::<u64>()),
    ) {
        let (base, objects) = small_objects();
        let object = &objects[usize::from(several_bits)];
        let metadata = metadata_of(object);
        let mut damaged = object.clone();
        for (meta, at, word) in words {
            let part = if meta { metadata.clone() } else { 0..metadata.start };
            let at = part.start + at % (part.len() / 4) * 4;
            damaged[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        mend(&mut damaged, metadata);
        open_and_search(&damaged, &Rows::of(base, 5).unwrap(), filter);
    }

    #[test]
    fn any_bytes_are_an_index_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = read_trailer(&bytes, bytes.len() as u64);
        let _ = IvfIndex::decode(&bytes, 1000);
        // A header that passes, then anything.
        let mut some = vec![1, 1, 3, 0, 2, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0];
        some.extend_from_slice(&bytes);
        let _ = IvfIndex::decode(&some, 1000);
    }
}
