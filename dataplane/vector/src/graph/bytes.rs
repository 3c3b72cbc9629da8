//! A graph as bytes.
//!
//! Owns the layout. Called when the cell stores a graph, and when it opens one.
//!
//! Layout, little-endian: magic (8 bytes), version, CRC32C of all that follows these 16 bytes, then metric, element, bits,
//! whether vectors follow (a byte each), dimension, nodes, degree, entries (32 bits each), seed (64 bits), origin, terms
//! (three floats a node, then the sums), code lines, links, rows, vectors, calibration.
//!
//! Invariants
//! - Any bytes give a graph or a typed error. A graph from bytes is as safe to search as one that was built: every link is
//!   a node, every length is what the counts say.

use half::f16;

use super::{
    ENTRIES_MAX, Graph, NONE, Vectors,
    codes::{Codes, Line, Terms},
    nodes_of_rows,
};
use crate::{
    DIMENSION_MAX, ElementType, Metric, Result, VectorError,
    bytes::{Reader, put_floats},
    calibrate::Calibration,
    rabitq::{Rotation, padded_dimension},
};

const MAGIC: &[u8; 8] = b"HSGRAPH1";
const FORMAT_VERSION: u32 = 1;

impl Graph {
    /// The graph as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.memory_bytes() + 4096);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend([self.metric as u8, self.element as u8, self.codes.bits, u8::from(self.vectors.is_some())]);
        for number in [self.dimension, self.count(), self.degree, self.entries] {
            out.extend_from_slice(&(number as u32).to_le_bytes());
        }
        out.extend_from_slice(&self.seed.to_le_bytes());
        put_floats(&self.origin, &mut out);
        for terms in &self.codes.terms {
            put_floats(&[terms.offset, terms.slope, terms.lift], &mut out);
        }
        self.codes.terms.iter().for_each(|terms| out.extend_from_slice(&terms.sum.to_le_bytes()));
        self.codes.lines.iter().for_each(|line| out.extend_from_slice(&line.0));
        self.links.iter().chain(&self.rows).for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
        match &self.vectors {
            None => {}
            Some(Vectors::F32(v)) => put_floats(v, &mut out),
            Some(Vectors::F16(v)) => v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes())),
            Some(Vectors::I8(v)) => out.extend(v.iter().map(|x| *x as u8)),
            Some(Vectors::Bit(v)) => out.extend_from_slice(v),
        }
        self.calibration.write(&mut out);
        let checksum = crc32c::crc32c(&out[16..]);
        out[12..16].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// The graph in these bytes.
    ///
    /// # Errors
    /// [`VectorError::Corrupt`], [`VectorError::Checksum`], [`VectorError::Version`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new("graph", bytes);
        if reader.take(8)? != MAGIC {
            return Err(reader.corrupt("no magic number"));
        }
        let (version, stored) = (reader.u32()?, reader.u32()?);
        if version != FORMAT_VERSION {
            return Err(VectorError::Version { what: "graph", version, supported: FORMAT_VERSION });
        }
        let computed = crc32c::crc32c(reader.rest());
        if computed != stored {
            return Err(VectorError::Checksum { what: "graph", stored, computed });
        }
        Self::decode(reader)
    }

    /// Decodes what follows the checksum.
    pub(super) fn decode(mut reader: Reader<'_>) -> Result<Self> {
        let (metric, element, bits, with_vectors) = (reader.u8()?, reader.u8()?, reader.u8()?, reader.u8()?);
        let metric = Metric::from_number(metric).ok_or_else(|| reader.corrupt(format!("metric {metric}")))?;
        let element = ElementType::from_number(element).ok_or_else(|| reader.corrupt(format!("element {element}")))?;
        let (dimension, count) = (reader.u32()? as usize, reader.u32()? as usize);
        let (degree, entries) = (reader.u32()? as usize, reader.u32()? as usize);
        let sizes = (1..=DIMENSION_MAX).contains(&dimension)
            && count <= i32::MAX as usize
            && (1..=256).contains(&degree)
            && entries <= ENTRIES_MAX.min(count)
            && (entries > 0 || count == 0);
        if metric.check(element).is_err() || !sizes {
            let found = format!("{dimension} dimensions, {count} nodes, degree {degree}, {entries} entries");
            return Err(reader.corrupt(format!("{metric:?} of {element:?}, {found}")));
        }
        let seed = reader.u64()?;
        let origin = reader.floats(dimension)?;
        let mut codes = Codes::new(bits, padded_dimension(dimension)).map_err(|e| reader.corrupt(e.to_string()))?;
        let terms = reader.floats(3 * count)?;
        let sums = reader.u32s(count)?;
        let terms = terms.chunks_exact(3).zip(sums);
        codes.terms = terms.map(|(t, sum)| Terms { offset: t[0], slope: t[1], lift: t[2], sum: sum as i32 }).collect();
        let lines = reader.items(count, codes.lines_per_node * 64)?.as_chunks::<64>().0;
        // Codes above 127 would overflow the pairs that a comparison adds.
        if bits == 7 && lines.iter().any(|line| line.iter().any(|code| *code > 127)) {
            return Err(reader.corrupt("a code of more than 7 bits"));
        }
        codes.lines = lines.iter().map(|line| Line(*line)).collect();
        let links = reader.u32s(count * degree)?;
        let rows = reader.u32s(count)?;
        let node = |number: &u32| (*number as usize) < count;
        if !links.iter().all(|link| *link == NONE || node(link)) || !rows.iter().all(node) {
            return Err(reader.corrupt(format!("a link or row beyond {count}")));
        }
        let nodes = nodes_of_rows(&rows);
        if nodes.contains(&NONE) {
            return Err(reader.corrupt("a row twice"));
        }
        let vectors = match (with_vectors, element) {
            (0, _) => None,
            (1, ElementType::F32) => Some(Vectors::F32(reader.floats(count * dimension)?)),
            (1, ElementType::F16) => {
                let bytes = reader.items(count * dimension, 2)?;
                Some(Vectors::F16(bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect()))
            }
            (1, ElementType::I8) => {
                Some(Vectors::I8(reader.items(count, dimension)?.iter().map(|b| *b as i8).collect()))
            }
            (1, ElementType::Bit) => Some(Vectors::Bit(reader.items(count, dimension.div_ceil(8))?.to_vec())),
            _ => return Err(reader.corrupt(format!("vectors: {with_vectors}"))),
        };
        if let Some(vectors) = &vectors {
            vectors.rows(dimension)?.check_finite()?;
        }
        let (calibration, used) = Calibration::read(reader.rest())?;
        if used != reader.rest().len() {
            return Err(reader.corrupt(format!("{} bytes too many", reader.rest().len() - used)));
        }
        let rotation = Rotation::new(dimension, seed);
        Ok(Graph {
            metric,
            element,
            dimension,
            seed,
            rotation,
            origin,
            codes,
            links,
            degree,
            entries,
            nodes,
            rows,
            vectors,
            calibration,
        })
    }
}
