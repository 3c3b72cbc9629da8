//! The layout of a chunk: a 64-byte header and four sections.
//!
//! Header, little-endian: encoding `u8`, layout `u8`, 2 unused, rows `u32`, null count `u32`, dictionary
//! entries `u32`, lengths of the sections `u32` each (directory, validity, auxiliary, payload), origin
//! `i128`, scale `u64`, value width `u32`, 4 unused. The sections follow in that order without gaps.
//!
//! Validity (absent without NULLs): per block a record (null count `u16`, 2 unused, bitmap offset `u32`), then
//! bitmaps of 128 bytes for the blocks that have both NULLs and values. Auxiliary: dictionary or symbol table.

use std::ops::Range;

use hidb::types::{DataType, Lane};

use crate::BLOCK_ROWS;
use crate::encoding::{bitmap, integers, text, u32_at, u64_at};
use crate::error::{Result, SegmentError};
use crate::footer::Encoding;

/// Bytes of the header.
pub(crate) const HEADER_BYTES: usize = 64;
/// Bytes of a validity record.
pub(crate) const VALIDITY_RECORD_BYTES: usize = 8;

/// How the sections are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Layout {
    Integers = 1,
    DictionaryI64 = 2,
    DictionaryBytes = 3,
    Text = 4,
    TextFsst = 5,
    Plain = 6,
    Bitmap = 7,
    /// One fixed-width value of at most 16 bytes, in `origin`.
    Constant = 8,
    Alp = 9,
}

/// A parsed header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) encoding: Encoding,
    pub(crate) layout: Layout,
    pub(crate) rows: u32,
    pub(crate) null_count: u32,
    pub(crate) dictionary_len: u32,
    pub(crate) lengths: [u32; 4],
    pub(crate) origin: i128,
    pub(crate) scale: u64,
    pub(crate) value_width: u32,
}

/// Where the sections are, bytes from the start of the chunk.
#[derive(Clone, Debug)]
pub(crate) struct Sections {
    pub(crate) directory: Range<usize>,
    pub(crate) validity: Range<usize>,
    pub(crate) auxiliary: Range<usize>,
    pub(crate) payload: Range<usize>,
}

impl Header {
    pub(crate) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0u8; HEADER_BYTES];
        bytes[0] = self.encoding as u8;
        bytes[1] = self.layout as u8;
        let words = [self.rows, self.null_count, self.dictionary_len].into_iter().chain(self.lengths);
        for (slot, word) in bytes[4..].chunks_exact_mut(4).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        bytes[32..48].copy_from_slice(&self.origin.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.scale.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.value_width.to_le_bytes());
        bytes
    }

    /// Parses and checks against what the table says of the column.
    pub(crate) fn parse(bytes: &[u8], data_type: &DataType, rows: u32) -> Result<Self> {
        let corrupt = |detail: String| SegmentError::corrupt("chunk header", detail);
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(corrupt(format!("{} bytes", bytes.len())));
        };
        let encoding =
            Encoding::from_number(bytes[0].into()).ok_or_else(|| corrupt(format!("encoding {}", bytes[0])))?;
        let layout = match bytes[1] {
            1 => Layout::Integers,
            2 => Layout::DictionaryI64,
            3 => Layout::DictionaryBytes,
            4 => Layout::Text,
            5 => Layout::TextFsst,
            6 => Layout::Plain,
            7 => Layout::Bitmap,
            8 => Layout::Constant,
            9 => Layout::Alp,
            other => return Err(corrupt(format!("layout {other}"))),
        };
        let mut origin = [0u8; 16];
        origin.copy_from_slice(&bytes[32..48]);
        let header = Header {
            encoding,
            layout,
            rows: u32_at(bytes, 4),
            null_count: u32_at(bytes, 8),
            dictionary_len: u32_at(bytes, 12),
            lengths: [u32_at(bytes, 16), u32_at(bytes, 20), u32_at(bytes, 24), u32_at(bytes, 28)],
            origin: i128::from_le_bytes(origin),
            scale: u64_at(bytes, 48),
            value_width: u32_at(bytes, 56),
        };
        let vector = matches!(data_type, DataType::Vector { .. });
        let fits = match (layout, data_type.lane()) {
            (Layout::Integers, Lane::I64 | Lane::I128) => header.scale > 0,
            (Layout::DictionaryI64, Lane::I64) => true,
            (Layout::DictionaryBytes | Layout::Text | Layout::TextFsst, Lane::Bytes) => !vector,
            (Layout::Plain, Lane::F64 | Lane::I128) => true,
            (Layout::Plain, Lane::Bytes) => vector,
            (Layout::Constant, Lane::F64 | Lane::Bool) => true,
            (Layout::Bitmap, Lane::Bool) => true,
            (Layout::Alp, Lane::F64) => true,
            _ => false,
        };
        if !fits {
            return Err(corrupt(format!("{layout:?} for a column of type {data_type}")));
        }
        if header.rows != rows || header.null_count > rows {
            return Err(corrupt(format!(
                "{} rows, {} of them NULL, instead of {rows}",
                header.rows, header.null_count
            )));
        }
        let width = if layout == Layout::Plain { data_type.fixed_width().unwrap_or(0) } else { 0 };
        if header.value_width as usize != width {
            return Err(corrupt(format!("values of {} bytes instead of {width}", header.value_width)));
        }
        Ok(header)
    }

    /// Checks the sections' lengths against each other and the bytes there are.
    pub(crate) fn sections(&self, total: usize) -> Result<Sections> {
        let corrupt = |detail: String| SegmentError::corrupt("chunk header", detail);
        let blocks = (self.rows as usize).div_ceil(BLOCK_ROWS);
        let [directory, validity, auxiliary, payload] = self.lengths.map(|length| length as usize);
        let record = match self.layout {
            Layout::Integers | Layout::DictionaryI64 | Layout::DictionaryBytes | Layout::Alp => integers::RECORD_BYTES,
            Layout::Text | Layout::TextFsst => text::RECORD_BYTES,
            Layout::Plain | Layout::Bitmap | Layout::Constant => 0,
        };
        let wanted = match self.layout {
            Layout::Plain => self.rows as usize * self.value_width as usize,
            Layout::Bitmap => blocks * bitmap::BLOCK_BYTES,
            _ => 0,
        };
        let validity_min = if self.null_count == 0 { 0 } else { blocks * VALIDITY_RECORD_BYTES };
        if directory < blocks * record || payload < wanted || validity < validity_min {
            return Err(corrupt(format!("sections of {:?} bytes for {} rows", self.lengths, self.rows)));
        }
        let mut at = HEADER_BYTES;
        let mut next = |length: usize| {
            at += length;
            at - length..at
        };
        let sections = Sections {
            directory: next(directory),
            validity: next(validity),
            auxiliary: next(auxiliary),
            payload: next(payload),
        };
        if sections.payload.end > total {
            return Err(corrupt(format!("{} bytes of sections in {total}", sections.payload.end)));
        }
        Ok(sections)
    }
}
