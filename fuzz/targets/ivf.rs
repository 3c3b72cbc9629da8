//! Any bytes are an IVF index or a typed error. What opens is searched: with and without a bitmap of rows, and with a
//! condition on its included columns; the answer is the same at every SIMD level.
//!
//! Input: `u8`, whose upper bits choose the condition. When it is even an object follows, else what a tiny one is made of
//! ([`indexes::ivf`]) and then what is overwritten in it.
#![no_main]

mod indexes;

use bytes::Bytes;
use heliostat_engine::EngineOptions;
use heliostat_vector::ivf::{IvfIndex, IvfSearch, IvfSearchOptions, ListView};
use heliostat_vector::{ElementType, Elements, Neighbor, Rows, SimdLevel};
use hidb::aligned::AlignedBytes;
use hidb::plan::sql::parse_predicate;
use indexes::Input;
use indexes::include::ListFilter;
use libfuzzer_sys::fuzz_target;

const K: usize = 10;
const PROBES: usize = 8;
const CONDITIONS: [&str; 5] = [
    "flag",
    "small between -5 and 1000 or small is null",
    "big in (0, 1, 72057594037927936) and not flag",
    "real > 0.5 and day < date '2000-01-01'",
    "small <> 7 and big < 100 and real is not null",
];

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let how = input.byte();
    let condition = CONDITIONS[usize::from(how / 2) % CONDITIONS.len()];
    let mut object = if how % 2 == 0 {
        input.0.to_vec()
    } else {
        let mut object = indexes::ivf(&mut input);
        let parts = indexes::ivf_parts(&object);
        indexes::damage(&mut object, &parts, &mut input);
        object
    };
    open_and_search(&object, condition);
    // A fuzzer does not guess checksums: set them right, so that what they guard is reached.
    indexes::mend_ivf(&mut object);
    open_and_search(&object, condition);
});

fn open_and_search(object: &[u8], condition: &str) {
    let Ok(index) = indexes::open_ivf(object) else { return };
    index.calibration().parameter(0.95);
    let mut seen: Option<(SimdLevel, Vec<Neighbor>)> = None;
    for level in [SimdLevel::Portable, SimdLevel::Avx2, SimdLevel::Avx512] {
        if level > SimdLevel::supported() {
            continue;
        }
        SimdLevel::force(level);
        let mut found = search(&index, object, &mut Filter::None);
        found.extend(search(&index, object, &mut Filter::Bitmap));
        if let Some(filter) = list_filter(&index, condition) {
            found.extend(search(&index, object, &mut Filter::Condition(Box::new(filter))));
        }
        match &seen {
            None => seen = Some((level, found)),
            Some((first, other)) => assert_eq!(&found, other, "{level:?} and {first:?} differ"),
        }
    }
}

/// Which rows may be in an answer.
enum Filter {
    None,
    /// Every other one.
    Bitmap,
    Condition(Box<ListFilter>),
}

fn list_filter(index: &IvfIndex, condition: &str) -> Option<ListFilter> {
    let includes = indexes::includes(index.includes())?;
    let table = indexes::table();
    let condition = parse_predicate(condition, &table).expect("a condition on the table");
    ListFilter::new(&includes, &condition, &table, EngineOptions::default()).expect("a condition that compiles")
}

/// The nearest; none when the condition can't be evaluated.
fn search(index: &IvfIndex, object: &[u8], filter: &mut Filter) -> Vec<Neighbor> {
    let (dimension, element) = (index.dimension(), index.element_type());
    let (floats, bytes, bits) = (vec![0.5f32; dimension], vec![3i8; dimension], vec![0x55u8; dimension.div_ceil(8)]);
    let query = match element {
        ElementType::F32 | ElementType::F16 => Elements::F32(&floats),
        ElementType::I8 => Elements::I8(&bytes),
        ElementType::Bit => Elements::Bit(&bits),
    };
    let options = IvfSearchOptions::new(K, PROBES);
    let mut search = IvfSearch::new(index, query, options).expect("a query of the index's type");
    let reads: Vec<_> = search.reads().collect();
    for (list, entry) in reads {
        // A copy that ends where the list ends, so that a read past it is seen.
        let bytes = object[entry.offset as usize..][..entry.bytes as usize].to_vec();
        let bytes = Bytes::from(bytes.into_boxed_slice());
        let Ok(view) = ListView::new(index, list, &bytes) else { continue };
        let words = match filter {
            Filter::None => None,
            Filter::Bitmap => Some(vec![0x5555_5555_5555_5555; view.rows().div_ceil(64)]),
            Filter::Condition(filter) => {
                match filter.rows(list, view.rows(), |column| bytes.slice_ref(view.include(column))) {
                    Ok(words) => words,
                    Err(_) => return Vec::new(),
                }
            }
        };
        search.scan(list, &view, words.as_deref()).expect("a list that was asked for");
    }
    let ids: Vec<u64> = search.candidates().iter().map(|candidate| candidate.row).collect();
    assert!(ids.len() <= 4 * K, "{} candidates", ids.len());
    let vectors = AlignedBytes::zeroed(ids.len() * element.row_bytes(dimension));
    let rows = Rows::from_bytes(element, dimension, &vectors).expect("whole rows");
    search.compare(&ids, &rows).expect("rows of the index's type");
    let (found, _) = search.finish();
    assert!(found.len() <= K && found.is_sorted_by(|a, b| a.order(b).is_lt()), "sorted, no row twice");
    found
}
