//! The metadata and the trailer of an index object.
//!
//! Owns [`IvfIndex`] and [`read_trailer`]. Called by the builder and when the cell opens an index.
//!
//! Trailer, the object's last 64 bytes: magic (8 bytes), version, CRC32C of the metadata, offset and length of the metadata
//! (64 bits each), zeros, and the CRC32C of the 60 bytes before it. Metadata: metric, element, bits, a spare byte,
//! dimension, lists, include columns (32 bits each), seed, rows (64 bits each), origin, centroids, directory (offset and
//! length in 64 bits, rows and checksum in 32), calibration.

use std::ops::Range;

use super::{FORMAT_VERSION, INCLUDES_MAX, LISTS_MAX};
use crate::{
    DIMENSION_MAX, ElementType, Metric, Result, VectorError,
    bytes::{Reader, put_floats},
    calibrate::Calibration,
    kmeans::Centroids,
    rabitq::{BITS_MAX, Rotation},
};

/// Bytes of the trailer.
pub const TRAILER_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"HSIVFIDX";
/// Lists begin at multiples of this: a drive is read in pages, and one read is one list.
pub const LIST_ALIGNMENT: usize = 4096;

/// Where a list lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListEntry {
    /// First byte in the object, a multiple of [`LIST_ALIGNMENT`].
    pub offset: u64,
    /// Bytes, without the zeros that fill the last page; 0 for a list without rows.
    pub bytes: u64,
    /// Rows.
    pub rows: u32,
    /// CRC32C of the bytes.
    pub crc32c: u32,
}

/// What of an index stays in memory.
#[derive(Clone, Debug)]
pub struct IvfIndex {
    pub(super) metric: Metric,
    pub(super) element: ElementType,
    pub(super) dimension: usize,
    pub(super) bits: u8,
    pub(super) includes: usize,
    pub(super) seed: u64,
    pub(super) rows: u64,
    pub(super) origin: Vec<f32>,
    pub(super) rotation: Rotation,
    pub(super) centroids: Centroids,
    pub(super) lists: Vec<ListEntry>,
    pub(super) calibration: Calibration,
}

/// Where the metadata lies in an object of `object_bytes`, and its checksum, by the object's last [`TRAILER_BYTES`].
///
/// # Errors
/// [`VectorError::Corrupt`], [`VectorError::Checksum`], [`VectorError::Version`].
pub fn read_trailer(trailer: &[u8], object_bytes: u64) -> Result<(Range<u64>, u32)> {
    let mut reader = Reader::new("IVF trailer", trailer);
    if trailer.len() != TRAILER_BYTES {
        return Err(reader.corrupt(format!("{} bytes, {TRAILER_BYTES} expected", trailer.len())));
    }
    if reader.take(8)? != MAGIC {
        return Err(reader.corrupt("no magic number"));
    }
    let computed = crc32c::crc32c(&trailer[..60]);
    let stored = u32::from_le_bytes([trailer[60], trailer[61], trailer[62], trailer[63]]);
    if computed != stored {
        return Err(VectorError::Checksum { what: "IVF trailer", stored, computed });
    }
    let version = reader.u32()?;
    if version != FORMAT_VERSION {
        return Err(VectorError::Version { what: "IVF index", version, supported: FORMAT_VERSION });
    }
    let (checksum, offset, bytes) = (reader.u32()?, reader.u64()?, reader.u64()?);
    match offset.checked_add(bytes) {
        Some(end) if end.checked_add(TRAILER_BYTES as u64) == Some(object_bytes) => Ok((offset..end, checksum)),
        _ => Err(reader.corrupt(format!("metadata at {offset}, {bytes} bytes, in an object of {object_bytes}"))),
    }
}

impl IvfIndex {
    /// Decodes the metadata; `checksum` and its place are from [`read_trailer`].
    ///
    /// # Errors
    /// [`VectorError::Corrupt`], [`VectorError::Checksum`].
    pub fn read(metadata: &[u8], place: &Range<u64>, checksum: u32) -> Result<Self> {
        let computed = crc32c::crc32c(metadata);
        if computed != checksum {
            return Err(VectorError::Checksum { what: "IVF metadata", stored: checksum, computed });
        }
        Self::decode(metadata, place.start)
    }

    /// Decodes metadata whose checksum is right: what it says is checked all the same. Lists end before `lists_end`.
    pub(super) fn decode(metadata: &[u8], lists_end: u64) -> Result<Self> {
        let mut reader = Reader::new("IVF metadata", metadata);
        let (metric, element, bits, _) = (reader.u8()?, reader.u8()?, reader.u8()?, reader.u8()?);
        let metric = Metric::from_number(metric).ok_or_else(|| reader.corrupt(format!("metric {metric}")))?;
        let element = ElementType::from_number(element).ok_or_else(|| reader.corrupt(format!("element {element}")))?;
        if metric.check(element).is_err() || !(1..=BITS_MAX).contains(&bits) {
            return Err(reader.corrupt(format!("{metric:?} of {element:?} in {bits} bits")));
        }
        let (dimension, lists) = (reader.u32()? as usize, reader.u32()? as usize);
        let includes = reader.u32()? as usize;
        let counts =
            (1..=DIMENSION_MAX).contains(&dimension) && (1..=LISTS_MAX).contains(&lists) && includes <= INCLUDES_MAX;
        if !counts {
            return Err(reader.corrupt(format!("{dimension} dimensions, {lists} lists, {includes} columns")));
        }
        let (seed, rows) = (reader.u64()?, reader.u64()?);
        let origin = reader.floats(dimension)?;
        let centroids = Centroids::new(dimension, reader.floats(lists * dimension)?)?;
        let mut directory = Reader::new("IVF directory", reader.items(lists, 24)?);
        let mut entries = Vec::with_capacity(lists);
        let mut sum = 0u64;
        for list in 0..lists {
            let (offset, bytes) = (directory.u64()?, directory.u64()?);
            let entry = ListEntry { offset, bytes, rows: directory.u32()?, crc32c: directory.u32()? };
            let inside = entry.offset.checked_add(entry.bytes).is_some_and(|end| end <= lists_end)
                && entry.offset.is_multiple_of(LIST_ALIGNMENT as u64);
            if !inside || (entry.rows == 0) != (entry.bytes == 0) {
                return Err(directory.corrupt(format!("list {list}: {entry:?}")));
            }
            sum += u64::from(entry.rows);
            entries.push(entry);
        }
        if sum != rows {
            return Err(directory.corrupt(format!("lists of {sum} rows in an index of {rows}")));
        }
        let (calibration, used) = Calibration::read(reader.rest())?;
        if used != reader.rest().len() {
            return Err(reader.corrupt(format!("{} bytes too many", reader.rest().len() - used)));
        }
        let rotation = Rotation::new(dimension, seed);
        Ok(IvfIndex {
            metric,
            element,
            dimension,
            bits,
            includes,
            seed,
            rows,
            origin,
            rotation,
            centroids,
            lists: entries,
            calibration,
        })
    }

    /// The metadata and trailer, to be appended to lists that end at `lists_end`.
    pub(super) fn encode(&self, lists_end: u64) -> Vec<u8> {
        let mut out = vec![self.metric as u8, self.element as u8, self.bits, 0];
        for number in [self.dimension, self.lists.len(), self.includes] {
            out.extend_from_slice(&(number as u32).to_le_bytes());
        }
        out.extend_from_slice(&self.seed.to_le_bytes());
        out.extend_from_slice(&self.rows.to_le_bytes());
        put_floats(&self.origin, &mut out);
        put_floats(self.centroids.values(), &mut out);
        for entry in &self.lists {
            out.extend_from_slice(&entry.offset.to_le_bytes());
            out.extend_from_slice(&entry.bytes.to_le_bytes());
            out.extend_from_slice(&entry.rows.to_le_bytes());
            out.extend_from_slice(&entry.crc32c.to_le_bytes());
        }
        self.calibration.write(&mut out);
        let mut trailer = MAGIC.to_vec();
        trailer.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        trailer.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        trailer.extend_from_slice(&lists_end.to_le_bytes());
        trailer.extend_from_slice(&(out.len() as u64).to_le_bytes());
        trailer.resize(TRAILER_BYTES - 4, 0);
        trailer.extend_from_slice(&crc32c::crc32c(&trailer).to_le_bytes());
        out.append(&mut trailer);
        out
    }

    /// Replaces the calibration, which is measured on the finished lists. Returns the tail that the object ends with now:
    /// everything behind the last list.
    pub fn with_calibration(&mut self, calibration: Calibration) -> Vec<u8> {
        self.calibration = calibration;
        let ends = self.lists.iter().map(|entry| entry.offset + entry.bytes.next_multiple_of(LIST_ALIGNMENT as u64));
        self.encode(ends.max().unwrap_or(0))
    }

    /// Rows in all lists.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The lists.
    pub fn lists(&self) -> &[ListEntry] {
        &self.lists
    }

    /// `INCLUDE` columns of every list.
    pub fn includes(&self) -> usize {
        self.includes
    }

    /// The metric it was built for.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// Type of the vectors.
    pub fn element_type(&self) -> ElementType {
        self.element
    }

    /// Components of a vector.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// What recall each number of probes reaches.
    pub fn calibration(&self) -> &Calibration {
        &self.calibration
    }

    /// Bytes that it keeps in memory.
    pub fn memory_bytes(&self) -> usize {
        4 * (self.origin.len() + self.centroids.values().len() + self.centroids.count())
            + 24 * self.lists.len()
            + 16 * self.rotation.padded()
    }
}
