//! Builds an index object in two kinds of passes over the rows.
//!
//! Owns [`IvfOptions`], [`IvfBuilder`] and [`PendingList`]. Called by the cell's background job, which reads the rows,
//! encodes the `INCLUDE` columns and writes the bytes.
//!
//! 1. Every row goes through [`IvfBuilder::assign`] once: which list is its.
//! 2. [`IvfBuilder::begin_writing`] divides the lists into as many passes as the memory allows; in each pass every row goes
//!    through [`IvfBuilder::encode`] again, then [`IvfBuilder::next_list`] hands out the lists of the pass, and
//!    [`IvfBuilder::write`] turns each into bytes to append.
//! 3. [`IvfBuilder::finish`] gives the object's tail.
//!
//! Invariants
//! - Memory: four bytes a row, and the codes of one pass, which stay below the bytes that `begin_writing` was given (or are
//!   those of one list, if that alone is larger).
//! - The bytes do not depend on the number of passes.

use super::{
    INCLUDES_MAX, IvfIndex, LIST_ALIGNMENT, LISTS_MAX, ListEntry,
    list::{ListParts, many_bytes},
};
use crate::{
    ElementType, Metric, Result, Rows, VectorError,
    calibrate::Calibration,
    kmeans::Centroids,
    rabitq::{
        BITS_MAX, BLOCK_ROWS, BlockFactors, FactorsMany, Rotation, block_bytes, pack_planes, planes_bytes, quantise,
    },
};

/// What an encoded `INCLUDE` column takes at most beside its rows' records.
const INCLUDE_OVERHEAD_BYTES: usize = 1024;

/// What to build.
#[derive(Clone, Copy, Debug)]
pub struct IvfOptions {
    /// The metric of searches.
    pub metric: Metric,
    /// Type of the vectors.
    pub element: ElementType,
    /// Bits of a code's component: 1, or 2 to 8 for a second, more precise code beside the one-bit one.
    pub bits: u8,
    /// `INCLUDE` columns.
    pub includes: usize,
    /// Bytes that [`IvfBuilder::encode`] is given with each row, of which the caller makes the columns.
    pub record_bytes: usize,
    /// Of the rotation.
    pub seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Assigning,
    /// Rows up to `fed` of this pass are encoded.
    Encoding {
        fed: usize,
    },
    /// The lists of this pass are handed out.
    Writing,
    Done,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Assigning => "rows are assigned",
            State::Encoding { .. } => "rows are encoded",
            State::Writing => "lists are written",
            State::Done => "everything is written",
        }
    }
}

/// An index object in the making.
#[derive(Clone, Debug)]
pub struct IvfBuilder {
    index: IvfIndex,
    state: State,
    record_bytes: usize,
    /// The list of each row.
    assigned: Vec<u32>,
    /// Lists of the pass; those before are written.
    pass: std::ops::Range<usize>,
    memory_bytes: usize,
    parts: Vec<ListParts>,
    /// The next list to hand out.
    next: usize,
    offset: u64,
    rotated_centroids: Vec<f32>,
}

/// A list whose codes are ready.
#[derive(Clone, Debug)]
pub struct PendingList {
    list: u32,
    parts: ListParts,
}

impl PendingList {
    /// Its number.
    pub fn list(&self) -> u32 {
        self.list
    }

    /// The ids of its rows, in the order that include columns must have.
    pub fn ids(&self) -> &[u64] {
        &self.parts.ids
    }

    /// What was given with each of its rows, in the same order.
    pub fn records(&self) -> &[u8] {
        &self.parts.records
    }
}

impl IvfBuilder {
    /// A builder around trained centroids (of vectors of length 1 for the cosine), whose mean is the origin of the codes.
    ///
    /// # Errors
    /// [`VectorError::Metric`], [`VectorError::Parameter`].
    pub fn new(options: IvfOptions, centroids: Centroids) -> Result<Self> {
        options.metric.check(options.element)?;
        let between = |what, value: usize, least, most| match value {
            value if (least..=most).contains(&value) => Ok(()),
            value => Err(VectorError::parameter(what, value, format!("{least} to {most}"))),
        };
        between("bits", options.bits.into(), 1, BITS_MAX.into())?;
        between("include columns", options.includes, 0, INCLUDES_MAX)?;
        between("lists", centroids.count(), 1, LISTS_MAX)?;
        let dimension = centroids.dimension();
        let mut origin = vec![0.0; dimension];
        for list in 0..centroids.count() {
            let rate = 1.0 / (list + 1) as f32;
            origin.iter_mut().zip(centroids.get(list)).for_each(|(mean, x)| *mean += (x - *mean) * rate);
        }
        let rotation = Rotation::new(dimension, options.seed);
        let lists = vec![ListEntry::default(); centroids.count()];
        let index = IvfIndex {
            metric: options.metric,
            element: options.element,
            dimension,
            bits: options.bits,
            includes: options.includes,
            seed: options.seed,
            rows: 0,
            origin,
            rotation,
            centroids,
            lists,
            calibration: Calibration::default(),
        };
        Ok(IvfBuilder {
            index,
            state: State::Assigning,
            record_bytes: options.record_bytes,
            assigned: Vec::new(),
            pass: 0..0,
            memory_bytes: 0,
            parts: Vec::new(),
            next: 0,
            offset: 0,
            rotated_centroids: Vec::new(),
        })
    }

    fn expect(&self, call: &'static str, right: bool) -> Result<()> {
        if right { Ok(()) } else { Err(VectorError::State { call, state: self.state.name() }) }
    }

    fn check(&self, rows: &Rows<'_>) -> Result<()> {
        if rows.dimension() != self.index.dimension {
            return Err(VectorError::Dimension { expected: self.index.dimension, given: rows.dimension() });
        }
        if rows.element_type() != self.index.element {
            return Err(VectorError::Type { expected: self.index.element, given: rows.element_type() });
        }
        Ok(())
    }

    /// Assigns rows to lists. Give at most a few hundred at a time: each is compared with every centroid.
    ///
    /// # Errors
    /// [`VectorError::State`], [`VectorError::Dimension`], [`VectorError::Type`], [`VectorError::NotFinite`].
    pub fn assign(&mut self, rows: &Rows<'_>) -> Result<()> {
        self.expect("assign", self.state == State::Assigning)?;
        self.check(rows)?;
        rows.check_finite()?;
        let d = self.index.dimension;
        let mut floats = vec![0.0; rows.count() * d];
        for (index, floats) in floats.chunks_exact_mut(d).enumerate() {
            rows.to_f32(index, floats);
            crate::graph::normalised(self.index.metric, floats);
        }
        let start = self.assigned.len();
        self.assigned.resize(start + rows.count(), 0);
        self.index.centroids.nearest(&floats, &mut self.assigned[start..]);
        for list in &self.assigned[start..] {
            self.index.lists[*list as usize].rows += 1;
        }
        self.index.rows += rows.count() as u64;
        Ok(())
    }

    /// Ends the assignment. Returns how many passes over the rows follow, so that codes take at most `memory_bytes`.
    ///
    /// # Errors
    /// [`VectorError::State`].
    pub fn begin_writing(&mut self, memory_bytes: usize) -> Result<usize> {
        self.expect("begin_writing", self.state == State::Assigning)?;
        self.memory_bytes = memory_bytes;
        let (d, padded) = (self.index.dimension, self.index.rotation.padded());
        self.rotated_centroids = vec![0.0; self.index.centroids.count() * padded];
        let mut difference = vec![0.0; d];
        for (list, rotated) in self.rotated_centroids.chunks_exact_mut(padded).enumerate() {
            let centroid = self.index.centroids.get(list);
            difference.iter_mut().zip(centroid).zip(&self.index.origin).for_each(|((x, c), o)| *x = c - o);
            self.index.rotation.rotate(&difference, rotated);
        }
        let (mut passes, mut at) = (0, 0);
        while at < self.index.lists.len() {
            at = self.pass_end(at);
            passes += 1;
        }
        self.pass = 0..0;
        self.begin_pass();
        Ok(passes)
    }

    /// The most bytes that the object will have, once all rows are assigned and when `INCLUDE` columns take no more than
    /// their records.
    pub fn object_bytes_max(&self) -> u64 {
        let padded = self.index.rotation.padded();
        let block = (block_bytes(padded) + BlockFactors::BYTES) as u64;
        let row = (8 + 4 + many_bytes(padded, self.index.bits) + self.record_bytes) as u64;
        let column = 8 + INCLUDE_OVERHEAD_BYTES; // its length, and what encoding it costs at most
        let head = 16 + (self.index.includes * column) as u64;
        let list = |entry: &ListEntry| match u64::from(entry.rows) {
            0 => 0,
            rows => {
                (head + rows * row + rows.div_ceil(BLOCK_ROWS as u64) * block).next_multiple_of(LIST_ALIGNMENT as u64)
            }
        };
        let lists: u64 = self.index.lists.iter().map(list).sum();
        let calibration = 8 + 8 * crate::calibrate::POINTS_MAX;
        lists + (self.index.encode(0).len() + calibration) as u64
    }

    fn pass_end(&self, start: usize) -> usize {
        let padded = self.index.rotation.padded();
        let row_bytes =
            padded / 8 + BlockFactors::BYTES / 32 + 12 + self.record_bytes + many_bytes(padded, self.index.bits);
        let mut bytes = 0;
        let fits = |entry: &ListEntry| {
            bytes += entry.rows as usize * row_bytes;
            bytes <= self.memory_bytes
        };
        let lists = self.index.lists[start..].iter().map(fits).take_while(|fits| *fits).count();
        start + lists.max(1)
    }

    fn begin_pass(&mut self) {
        let start = self.pass.end;
        if start == self.index.lists.len() {
            self.state = State::Done;
            return;
        }
        self.pass = start..self.pass_end(start);
        self.parts = vec![ListParts::default(); self.pass.len()];
        self.next = start;
        self.state = State::Encoding { fed: 0 };
        self.end_of_rows();
    }

    fn end_of_rows(&mut self) {
        if self.state == (State::Encoding { fed: self.assigned.len() }) {
            self.state = State::Writing;
        }
    }

    /// Encodes the next rows of this pass, in the order in which they were assigned; `ids` are their row ids, `records`
    /// the bytes that go with them.
    ///
    /// # Errors
    /// [`VectorError::State`], also for more rows than were assigned; [`VectorError::Dimension`], [`VectorError::Type`].
    pub fn encode(&mut self, rows: &Rows<'_>, ids: &[u64], records: &[u8]) -> Result<()> {
        let State::Encoding { fed } = self.state else {
            return Err(VectorError::State { call: "encode", state: self.state.name() });
        };
        self.check(rows)?;
        let width = self.record_bytes;
        let fits = rows.count() == ids.len() && records.len() == ids.len() * width;
        self.expect("encode", fits && fed + ids.len() <= self.assigned.len())?;
        let IvfIndex { metric, dimension, bits, rotation, centroids, origin, .. } = &self.index;
        let padded = rotation.padded();
        let (mut row, mut rotated) = (vec![0.0; *dimension], vec![0.0; padded]);
        let (mut codes, mut planes) = (vec![0u8; padded], vec![0u8; planes_bytes(padded, *bits)]);
        // What the estimator calls `c'`: for the inner product the origin itself, rotated.
        let mut rotated_origin = vec![0.0; padded];
        rotation.rotate(origin, &mut rotated_origin);
        for (place, id) in ids.iter().enumerate() {
            let list = self.assigned[fed + place] as usize;
            if !self.pass.contains(&list) {
                continue;
            }
            rows.to_f32(place, &mut row);
            crate::graph::normalised(*metric, &mut row);
            row.iter_mut().zip(centroids.get(list)).for_each(|(x, c)| *x -= c);
            rotation.rotate(&row, &mut rotated);
            let shift = match metric {
                Metric::InnerProduct => &rotated_origin,
                _ => &self.rotated_centroids[list * padded..][..padded],
            };
            let parts = &mut self.parts[list - self.pass.start];
            parts.ids.push(*id);
            parts.checksums.push(crc32c::crc32c(rows.row_bytes(place)));
            parts.records.extend_from_slice(&records[place * width..][..width]);
            let quantised = quantise(&rotated, 1, &mut codes);
            parts.factors.push(FactorsMany::new(*metric, quantised, 1, &codes, shift).factors);
            let byte = |bits: &[u8]| bits.iter().rev().fold(0u8, |byte, bit| byte << 1 | bit);
            parts.one_bit.extend(codes.chunks_exact(8).map(byte));
            if *bits > 1 {
                let quantised = quantise(&rotated, *bits, &mut codes);
                pack_planes(&codes, *bits, &mut planes);
                parts.put_many(&planes, &FactorsMany::new(*metric, quantised, *bits, &codes, shift));
            }
        }
        self.state = State::Encoding { fed: fed + ids.len() };
        self.end_of_rows();
        Ok(())
    }

    /// The next list of this pass, in the order of the object; `None` when rows are expected (the next pass has begun) or
    /// everything is written.
    pub fn next_list(&mut self) -> Option<PendingList> {
        if self.state != State::Writing {
            return None;
        }
        while self.next < self.pass.end {
            let list = self.next;
            self.next += 1;
            let parts = std::mem::take(&mut self.parts[list - self.pass.start]);
            if !parts.ids.is_empty() {
                return Some(PendingList { list: list as u32, parts });
            }
        }
        self.begin_pass();
        if self.state == State::Writing { self.next_list() } else { None }
    }

    /// The bytes of a list, to be appended to the object now, a multiple of [`LIST_ALIGNMENT`]. `includes` are the
    /// columns' bytes for its rows.
    ///
    /// # Errors
    /// [`VectorError::Parameter`] for another number of columns than was declared.
    pub fn write(&mut self, pending: PendingList, includes: &[&[u8]]) -> Result<Vec<u8>> {
        if includes.len() != self.index.includes {
            return Err(VectorError::parameter("include columns", includes.len(), self.index.includes.to_string()));
        }
        let mut bytes = pending.parts.encode(pending.list, self.index.rotation.padded(), includes);
        let entry = &mut self.index.lists[pending.list as usize];
        (entry.offset, entry.bytes, entry.crc32c) = (self.offset, bytes.len() as u64, crc32c::crc32c(&bytes));
        bytes.resize(bytes.len().next_multiple_of(LIST_ALIGNMENT), 0);
        self.offset += bytes.len() as u64;
        Ok(bytes)
    }

    /// Whether all lists are written.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The finished index and the tail that its object ends with. [`IvfIndex::with_calibration`] gives another tail.
    ///
    /// # Errors
    /// [`VectorError::State`] before everything is written.
    pub fn finish(self) -> Result<(IvfIndex, Vec<u8>)> {
        self.expect("finish", self.state == State::Done)?;
        let tail = self.index.encode(self.offset);
        Ok((self.index, tail))
    }
}
