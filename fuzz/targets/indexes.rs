//! Tiny index objects made from a fuzzer's input, what they are opened with, and bytes of them that lie. Shared by the
//! targets of indexes and by the seeds.
//!
//! Vectors are small numbers: what is damaged is what the builder wrote.
#![allow(dead_code, reason = "each target uses its part")]

use std::ops::Range;

use heliostat_vector::calibrate::{Calibration, Calibrator};
use heliostat_vector::graph::{GraphBuilder, GraphOptions};
use heliostat_vector::ivf::{IvfBuilder, IvfIndex, IvfOptions, TRAILER_BYTES, read_trailer};
use heliostat_vector::kmeans::{KMeans, KMeansOptions};
use heliostat_vector::rabitq::BITS_MAX;
use heliostat_vector::{ElementType, Metric, Rows, VectorError, f16};
use hidb::aligned::AlignedBytes;
use hidb::{Field, Schema};

/// The cell's own module: the cell's crate would bring RocksDB.
#[path = "../../dataplane/src/search/index/include.rs"]
pub mod include;

use include::Includes;

const DIMENSION: usize = 5;
/// A graph begins at a multiple of this in its object.
const PAGE_BYTES: usize = 4096;

/// What is left of the input; zeros when it has ended.
pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub fn short(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }
}

/// The columns that a table has beside its vectors.
pub fn table() -> Schema {
    let columns = [("flag", "boolean"), ("small", "int32"), ("big", "int64"), ("real", "float64"), ("day", "date")];
    let field = |(name, data_type): (&str, &str)| Field::new(name, data_type.parse().expect("a type"), true);
    Schema::new(columns.into_iter().map(field).collect()).expect("the schema is valid")
}

/// The first columns of the table as those that an index includes; `None` when the table has fewer.
pub fn includes(columns: usize) -> Option<Includes> {
    let table = table();
    let fields = table.fields().get(..columns)?;
    let names: Vec<String> = fields.iter().map(|field| field.name.clone()).collect();
    Some(Includes::new(&table, &names).expect("columns of a fixed width"))
}

/// Metric, type, and so many vectors of that type.
fn vectors(count: usize, input: &mut Input<'_>) -> (Metric, ElementType, AlignedBytes) {
    let element = [ElementType::F32, ElementType::F16, ElementType::I8, ElementType::Bit][input.below(4)];
    let metric = match (element, input.below(3)) {
        (_, 0) => Metric::L2,
        (ElementType::Bit, _) => Metric::Hamming,
        (_, 1) => Metric::InnerProduct,
        _ => Metric::Cosine,
    };
    let mut bytes = Vec::new();
    let components = if element == ElementType::Bit { 1 } else { DIMENSION };
    for byte in input.bytes(count * components) {
        let number = f32::from(byte as i8) / 8.0;
        match element {
            ElementType::F32 => bytes.extend(number.to_le_bytes()),
            ElementType::F16 => bytes.extend(f16::from_f32(number).to_le_bytes()),
            ElementType::I8 | ElementType::Bit => bytes.push(byte),
        }
    }
    (metric, element, AlignedBytes::copy_of(&bytes))
}

fn calibration() -> Calibration {
    let mut calibrator = Calibrator::new(10, vec![1, 2, 4], vec![Vec::new(); 3]).expect("they ascend");
    while calibrator.next().is_some() {
        calibrator.found(&[]);
    }
    calibrator.finish()
}

/// An IVF object of 1 to 40 rows. Its columns are the first of the table's.
pub fn ivf(input: &mut Input<'_>) -> Vec<u8> {
    let (bits, columns) = (1 + input.byte() % BITS_MAX, input.below(table().len() + 1));
    let (lists, count) = (1 + input.below(4), 1 + input.below(40));
    let (metric, element, bytes) = vectors(count, input);
    let rows = Rows::from_bytes(element, DIMENSION, &bytes).expect("whole rows");
    let mut floats = vec![0.0; count * DIMENSION];
    floats.chunks_exact_mut(DIMENSION).enumerate().for_each(|(row, out)| rows.to_f32(row, out));
    let options = KMeansOptions { lists, epochs: 2, ..KMeansOptions::default() };
    let mut training = KMeans::new(DIMENSION, options, floats).expect("finite rows");
    while !training.step().is_finished() {}
    let includes = includes(columns).expect("columns of the table");
    let record_bytes = includes.record_bytes();
    let options = IvfOptions { metric, element, bits, includes: columns, record_bytes, seed: 1 };
    let mut builder = IvfBuilder::new(options, training.finish()).expect("options in their ranges");
    builder.assign(&rows).expect("rows of its type");
    let passes = builder.begin_writing(1 << 20).expect("all are assigned");
    let ids: Vec<u64> = (0..count as u64).collect();
    let records = input.bytes(count * record_bytes);
    let mut object = Vec::new();
    for _ in 0..passes {
        builder.encode(&rows, &ids, &records).expect("the rows that were assigned");
        while let Some(list) = builder.next_list() {
            let columns = includes.encode(list.records()).expect("values of their types");
            let columns: Vec<&[u8]> = columns.iter().map(Vec::as_slice).collect();
            object.extend(builder.write(list, &columns).expect("as many columns as were declared"));
        }
    }
    let (mut index, _) = builder.finish().expect("everything is written");
    object.extend(index.with_calibration(calibration()));
    object
}

/// A graph's object of 1 to 40 rows, and how many they are.
pub fn graph(input: &mut Input<'_>) -> (usize, Vec<u8>) {
    let (bits, keep_vectors) = ([4, 7][input.below(2)], input.below(2) == 0);
    let (degree, count) = (4 + input.below(5), 1 + input.below(40));
    let (metric, element, bytes) = vectors(count, input);
    let rows = Rows::from_bytes(element, DIMENSION, &bytes).expect("whole rows");
    let options = GraphOptions { degree, build_ef: 12, bits, keep_vectors, ..GraphOptions::default() };
    let mut builder = GraphBuilder::new(options, metric, rows.element_type(), &rows).expect("options in their ranges");
    builder.push(&rows).expect("rows of its type");
    let mut graph = builder.finish().expect("rows of its type");
    graph.set_calibration(calibration());
    let rowids: Vec<i64> = (0..count as i64).map(|row| row * 7).collect();
    (count, graph.to_object(&rowids))
}

/// Opens an IVF object as the cell does.
pub fn open_ivf(object: &[u8]) -> Result<IvfIndex, VectorError> {
    let trailer = &object[object.len().saturating_sub(TRAILER_BYTES)..];
    let (place, checksum) = read_trailer(trailer, object.len() as u64)?;
    IvfIndex::read(&object[place.start as usize..place.end as usize], &place, checksum)
}

/// The lists, the metadata and the trailer of an IVF object that was just built.
pub fn ivf_parts(object: &[u8]) -> Vec<Range<usize>> {
    let index = open_ivf(object).expect("what was built opens");
    let trailer = object.len() - TRAILER_BYTES;
    let (place, _) = read_trailer(&object[trailer..], object.len() as u64).expect("what was built opens");
    let list = |start: u64, bytes: u64| start as usize..(start + bytes) as usize;
    let mut parts: Vec<Range<usize>> = index.lists().iter().map(|entry| list(entry.offset, entry.bytes)).collect();
    parts.extend([place.start as usize..place.end as usize, trailer..object.len()]);
    parts
}

/// Where a graph's bytes begin in an object of so many rows.
fn graph_at(rows: usize) -> usize {
    (8 * rows + 16).next_multiple_of(PAGE_BYTES)
}

/// The row ids of a graph's object, their checksum and count, and the graph.
pub fn graph_parts(rows: usize, object: &[u8]) -> [Range<usize>; 3] {
    let at = graph_at(rows);
    [0..8 * rows, at - 16..at, at..object.len()]
}

/// Overwrites bytes within the parts of an object, up to seven times: a byte, or a word, as counts and floats are.
pub fn damage(object: &mut [u8], parts: &[Range<usize>], input: &mut Input<'_>) {
    for _ in 0..input.below(8) {
        let part = parts[input.below(parts.len())].clone();
        let (at, width) = (usize::from(input.short()), [1, 4][input.below(2)]);
        if !part.is_empty() {
            let bytes = &mut object[part.start + at % part.len()..part.end];
            bytes.iter_mut().take(width).for_each(|byte| *byte = input.byte());
        }
    }
}

/// Puts the right checksums into an IVF object, where its trailer says they belong.
pub fn mend_ivf(object: &mut [u8]) {
    let Some(trailer) = object.len().checked_sub(TRAILER_BYTES) else { return };
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| object[trailer + at + i]));
    let (start, length) = (word(16), word(24));
    let place = start.checked_add(length).map(|end| start as usize..end as usize);
    let checksum = place.and_then(|place| object.get(place)).map(crc32c::crc32c);
    if let Some(checksum) = checksum {
        object[trailer + 12..trailer + 16].copy_from_slice(&checksum.to_le_bytes());
    }
    let checksum = crc32c::crc32c(&object[trailer..trailer + TRAILER_BYTES - 4]);
    object[trailer + TRAILER_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
}

/// Puts the right checksums into the object of a graph of so many rows.
pub fn mend_graph(rows: usize, object: &mut [u8]) {
    let at = graph_at(rows);
    if object.len() < at + 16 {
        return;
    }
    let checksum = u64::from(crc32c::crc32c(&object[..8 * rows]));
    object[at - 16..at - 8].copy_from_slice(&checksum.to_le_bytes());
    let checksum = crc32c::crc32c(&object[at + 16..]);
    object[at + 12..at + 16].copy_from_slice(&checksum.to_le_bytes());
}
