//! Any bytes are a graph with its row ids or a typed error. What opens is searched, with and without a filter; the answer
//! is the same at every SIMD level.
//!
//! Input: `u8`. When it is even, `u16` rows and an object of them follow, else what a tiny one is made of
//! ([`indexes::graph`]) and then what is overwritten in it.
#![no_main]

mod indexes;

use heliostat_vector::graph::{Graph, GraphSearch, Scratch};
use heliostat_vector::{ElementType, Elements, Neighbor, SimdLevel};
use indexes::Input;
use libfuzzer_sys::fuzz_target;

const SEARCH: GraphSearch = GraphSearch { k: 5, ef: 20, rerank: 12, avoid: None };

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let (rows, mut object) = if input.byte() % 2 == 0 {
        (usize::from(input.short()), input.0.to_vec())
    } else {
        let (rows, mut object) = indexes::graph(&mut input);
        let parts = indexes::graph_parts(rows, &object);
        indexes::damage(&mut object, &parts, &mut input);
        (rows, object)
    };
    open_and_search(rows, &object);
    // A fuzzer does not guess checksums: set them right, so that what they guard is reached.
    indexes::mend_graph(rows, &mut object);
    open_and_search(rows, &object);
});

fn open_and_search(rows: usize, object: &[u8]) {
    let Ok((graph, rowids)) = Graph::from_object(object, rows as u64) else { return };
    assert!(graph.count() == rows && rowids.len() == rows);
    graph.calibration().parameter(0.95);
    let even = vec![0x5555_5555_5555_5555u64; rows.div_ceil(64)];
    let mut seen: Option<(SimdLevel, Vec<Neighbor>)> = None;
    for level in [SimdLevel::Portable, SimdLevel::Avx2, SimdLevel::Avx512] {
        if level > SimdLevel::supported() {
            continue;
        }
        SimdLevel::force(level);
        let mut found = search(&graph, None);
        assert!(found.iter().all(|neighbor| rowids.get(neighbor.row as usize).is_some()));
        let filtered = search(&graph, Some(&even[..]));
        assert!(filtered.iter().all(|neighbor| neighbor.row % 2 == 0 && neighbor.row < rows as u64));
        found.extend(filtered);
        match &seen {
            None => seen = Some((level, found)),
            Some((first, other)) => assert_eq!(&found, other, "{level:?} and {first:?} differ"),
        }
    }
}

fn search(graph: &Graph, filter: Option<&[u64]>) -> Vec<Neighbor> {
    let dimension = graph.dimension();
    let (floats, bytes, bits) = (vec![0.5f32; dimension], vec![3i8; dimension], vec![0x55u8; dimension.div_ceil(8)]);
    let query = match graph.element_type() {
        ElementType::F32 | ElementType::F16 => Elements::F32(&floats),
        ElementType::I8 => Elements::I8(&bytes),
        ElementType::Bit => Elements::Bit(&bits),
    };
    let found = graph.search(query, SEARCH, filter, &mut Scratch::default());
    let (found, _) = found.expect("a query of the graph's type");
    if graph.has_vectors() {
        assert!(found.len() <= SEARCH.k && found.is_sorted_by(|a, b| a.order(b).is_le()), "sorted");
    } else {
        assert!(found.len() <= SEARCH.rerank);
    }
    found
}
