//! One list: its bytes and a checked view of them.
//!
//! Owns [`ListView`] and the encoding. Called by the builder and the search.
//!
//! Layout, little-endian: magic, list number, rows, include columns (32 bits each); the length of each include column (64
//! bits); row ids (64 bits); CRC32C of each row's vector (32 bits); for each 32 rows a fast-scan block and its factors; with more than one bit for each row its
//! bit planes and four floats; the include columns' bytes. The checksum is in the directory ([`super::ListEntry`]): who
//! reads a list from a drive compares it, once.
//!
//! Invariants
//! - A view's parts have exactly the lengths that its header says, whatever the bytes were.

use super::IvfIndex;
use crate::{
    Result,
    bytes::{Reader, put_floats},
    rabitq::{BLOCK_ROWS, BlockFactors, Factors, FactorsMany, block_bytes, pack_block, planes_bytes},
};

const MAGIC: u32 = 0x4c56_5348;

/// A list's bytes, checked.
#[derive(Clone, Debug)]
pub struct ListView<'a> {
    rows: usize,
    ids: &'a [u8],
    checksums: &'a [u8],
    blocks: &'a [u8],
    block_bytes: usize,
    /// Planes and factors of each row; empty with one bit.
    many: &'a [u8],
    many_bytes: usize,
    includes: Vec<&'a [u8]>,
}

/// Bytes of a row's code of several bits with its factors.
pub(super) fn many_bytes(padded: usize, bits: u8) -> usize {
    if bits > 1 { planes_bytes(padded, bits) + 16 } else { 0 }
}

/// What a list is made from.
#[derive(Clone, Debug, Default)]
pub(super) struct ListParts {
    pub(super) ids: Vec<u64>,
    /// Of each row's vector.
    pub(super) checksums: Vec<u32>,
    /// What the caller gave with each row.
    pub(super) records: Vec<u8>,
    /// `padded / 8` bytes a row.
    pub(super) one_bit: Vec<u8>,
    pub(super) factors: Vec<Factors>,
    /// [`many_bytes`] a row, as they are stored.
    pub(super) many: Vec<u8>,
}

impl ListParts {
    /// Appends the planes' factors as they are stored.
    pub(super) fn put_many(&mut self, planes: &[u8], many: &FactorsMany) {
        self.many.extend_from_slice(planes);
        let FactorsMany { factors, rounding } = many;
        put_floats(&[factors.offset, factors.slope, factors.spread, *rounding], &mut self.many);
    }

    pub(super) fn encode(&self, list: u32, padded: usize, includes: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for word in [MAGIC, list, self.ids.len() as u32, includes.len() as u32] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        includes.iter().for_each(|column| out.extend_from_slice(&(column.len() as u64).to_le_bytes()));
        self.ids.iter().for_each(|id| out.extend_from_slice(&id.to_le_bytes()));
        self.checksums.iter().for_each(|checksum| out.extend_from_slice(&checksum.to_le_bytes()));
        let row_bytes = padded / 8;
        let mut block = vec![0; block_bytes(padded)];
        for (rows, factors) in self.one_bit.chunks(BLOCK_ROWS * row_bytes).zip(self.factors.chunks(BLOCK_ROWS)) {
            let bit = |row: usize, i: usize| rows[row * row_bytes + i / 8] >> (i % 8) & 1 == 1;
            pack_block(padded, factors.len(), bit, &mut block);
            out.extend_from_slice(&block);
            BlockFactors::write(factors, &mut out);
        }
        out.extend_from_slice(&self.many);
        includes.iter().for_each(|column| out.extend_from_slice(column));
        out
    }
}

impl<'a> ListView<'a> {
    /// The view of list `list` in bytes that matched the checksum of its [`super::ListEntry`]; what they say is checked
    /// all the same.
    ///
    /// # Errors
    /// [`VectorError::Corrupt`].
    pub fn new(index: &IvfIndex, list: u32, bytes: &'a [u8]) -> Result<Self> {
        let mut reader = Reader::new("IVF list", bytes);
        if reader.u32()? != MAGIC {
            return Err(reader.corrupt("no magic number"));
        }
        let (number, rows, includes) = (reader.u32()?, reader.u32()? as usize, reader.u32()? as usize);
        let expected = index.lists.get(list as usize).map(|entry| entry.rows as usize);
        if number != list || Some(rows) != expected || includes != index.includes {
            let found = format!("list {number} of {rows} rows and {includes} columns");
            return Err(reader.corrupt(format!("{found} where list {list} of {expected:?} rows is expected")));
        }
        let padded = index.rotation.padded();
        let lengths = reader.items(includes, 8)?;
        let ids = reader.items(rows, 8)?;
        let checksums = reader.items(rows, 4)?;
        let block_bytes = block_bytes(padded) + BlockFactors::BYTES;
        let blocks = reader.items(rows.div_ceil(BLOCK_ROWS), block_bytes)?;
        let many_bytes = many_bytes(padded, index.bits);
        let many = reader.items(rows, many_bytes)?;
        let mut columns = Vec::with_capacity(includes);
        let mut lengths = Reader::new("IVF list", lengths);
        for _ in 0..includes {
            let length = usize::try_from(lengths.u64()?).map_err(|_| reader.corrupt("a column too long"))?;
            columns.push(reader.take(length)?);
        }
        if !reader.rest().is_empty() {
            return Err(reader.corrupt(format!("{} bytes too many", reader.rest().len())));
        }
        Ok(ListView { rows, ids, checksums, blocks, block_bytes, many, many_bytes, includes: columns })
    }

    /// Rows of the list.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The id of the row at `place`. Panics when there is none.
    pub fn id(&self, place: usize) -> u64 {
        let b = &self.ids[8 * place..][..8];
        u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])
    }

    /// CRC32C of the vector of the row at `place`, as the builder was given it: for whoever reads that vector alone.
    /// Panics when there is none.
    pub fn checksum(&self, place: usize) -> u32 {
        let b = &self.checksums[4 * place..][..4];
        u32::from_le_bytes([b[0], b[1], b[2], b[3]])
    }

    /// The bytes of an include column, as the builder's caller gave them. Panics when there is none.
    pub fn include(&self, column: usize) -> &'a [u8] {
        self.includes[column]
    }

    /// Number of blocks of 32 rows.
    pub(super) fn blocks(&self) -> usize {
        self.rows.div_ceil(BLOCK_ROWS)
    }

    /// Codes and factors of a block.
    pub(super) fn block(&self, block: usize) -> (&'a [u8], BlockFactors) {
        let bytes = &self.blocks[block * self.block_bytes..][..self.block_bytes];
        let (codes, factors) = bytes.split_at(self.block_bytes - BlockFactors::BYTES);
        (codes, BlockFactors::read(factors))
    }

    /// Planes and factors of a row, with more than one bit.
    pub(super) fn many(&self, place: usize) -> (&'a [u8], FactorsMany) {
        let bytes = &self.many[place * self.many_bytes..][..self.many_bytes];
        let (planes, floats) = bytes.split_at(self.many_bytes - 16);
        let float =
            |i: usize| f32::from_le_bytes([floats[4 * i], floats[4 * i + 1], floats[4 * i + 2], floats[4 * i + 3]]);
        let factors = Factors { offset: float(0), slope: float(1), spread: float(2) };
        (planes, FactorsMany { factors, rounding: float(3) })
    }
}
