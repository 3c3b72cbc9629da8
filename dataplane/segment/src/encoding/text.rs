//! Text and bytea: blocks of values one after another, plain or FSST-compressed, with bit-packed lengths.
//!
//! Directory record, 40 bytes: least and greatest 8-byte prefix (big-endian order, `u64` each), payload
//! offset `u32`, data bytes `u32`, raw bytes `u32`, least raw length `u32`, least compressed length `u32`,
//! widths of both lengths `u8` each, 2 unused. Payload of a block: packed raw lengths; FSST: packed compressed lengths;
//! data. FSST codes of a block are one sequence, so that a block can be decompressed in one go, and with
//! the lengths each row by itself.
//!
//! Cost sketch: lengths of a comment take 1.5 bytes; codes decompress at about 1 ns a byte of code.

use super::fsst;
use super::fsst::decode::SymbolTable;
use super::fsst::search::CodeTest;
use super::{bit_width, packed, u32_at, u64_at};
use crate::BLOCK_ROWS;
use crate::error::{Result, SegmentError};

/// Bytes of a directory record.
pub(crate) const RECORD_BYTES: usize = 40;

/// The first eight bytes as a number in byte order; shorter values are padded with zeros, which keeps
/// the order: where two prefixes differ, the values compare as they do.
#[inline]
pub fn prefix(value: &[u8]) -> u64 {
    let mut bytes = [0u8; 8];
    let length = value.len().min(8);
    bytes[..length].copy_from_slice(&value[..length]);
    u64::from_be_bytes(bytes)
}

/// Encoded text.
#[derive(Debug, Default)]
pub(crate) struct EncodedText {
    pub(crate) directory: Vec<u8>,
    pub(crate) payload: Vec<u8>,
    /// The symbol table when compressed.
    pub(crate) table: Option<Vec<u8>>,
}

/// Encode: NULL rows are empty values.
pub(crate) fn encode(values: &[&[u8]]) -> EncodedText {
    let compressed = fsst::compress(values);
    let mut out = EncodedText::default();
    let mut start = 0usize;
    for (b, block) in values.chunks(BLOCK_ROWS).enumerate() {
        let offset = out.payload.len() as u32;
        let raw_length = |value: &&[u8]| value.len() as i64;
        let (raw_base, raw_width, raw_bytes) = encode_lengths(block.iter().map(raw_length), &mut out.payload);
        let (mut code_base, mut code_width, mut data_bytes) = (0, 0, raw_bytes);
        if let Some(compressed) = &compressed {
            let ends = &compressed.ends[b * BLOCK_ROWS..][..block.len()];
            let mut previous = start;
            let lengths = ends.iter().map(|end| {
                let length = *end as usize - previous;
                previous = *end as usize;
                length as i64
            });
            (code_base, code_width, data_bytes) = encode_lengths(lengths, &mut out.payload);
            let end = start + data_bytes as usize;
            out.payload.extend_from_slice(&compressed.data[start..end]);
            start = end;
        } else {
            block.iter().for_each(|value| out.payload.extend_from_slice(value));
        }
        let prefixes = block.iter().map(|value| prefix(value));
        let (low, high) = prefixes.fold((u64::MAX, 0), |(low, high), prefix| (low.min(prefix), high.max(prefix)));
        out.directory.extend_from_slice(&low.to_le_bytes());
        out.directory.extend_from_slice(&high.to_le_bytes());
        for number in [offset, data_bytes, raw_bytes, raw_base, code_base] {
            out.directory.extend_from_slice(&number.to_le_bytes());
        }
        out.directory.extend_from_slice(&[raw_width, code_width, 0, 0]);
    }
    out.table = compressed.map(|compressed| compressed.table);
    out
}

/// Packs lengths; returns least length, width and sum.
fn encode_lengths(lengths: impl Iterator<Item = i64>, out: &mut Vec<u8>) -> (u32, u8, u32) {
    let mut values = [0i64; BLOCK_ROWS];
    let mut count = 0;
    for (value, length) in values.iter_mut().zip(lengths) {
        *value = length;
        count += 1;
    }
    let (min, max) = super::integers::bounds(&values[..count]);
    values[count..].fill(min);
    let width = bit_width((max - min) as u64);
    packed::encode(&values, min, width, out);
    (min as u32, width as u8, values[..count].iter().sum::<i64>() as u32)
}

/// Encoded text, read in place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text<'a> {
    pub(crate) directory: &'a [u8],
    pub(crate) payload: &'a [u8],
    pub(crate) table: Option<SymbolTable<'a>>,
}

/// One block's parts, checked against the payload.
pub(crate) struct TextBlock<'a> {
    pub(crate) prefix_min: u64,
    pub(crate) prefix_max: u64,
    /// Bytes of all values.
    pub(crate) raw_bytes: usize,
    raw_base: u32,
    raw_width: usize,
    raw_lengths: &'a [u8],
    code_base: u32,
    code_width: usize,
    code_lengths: &'a [u8],
    data: &'a [u8],
    table: Option<SymbolTable<'a>>,
}

impl<'a> Text<'a> {
    /// Block `b`.
    pub(crate) fn block(&self, b: usize) -> Result<TextBlock<'a>> {
        let corrupt = || SegmentError::corrupt("chunk", format!("text block {b}"));
        let record = self.directory.get(b * RECORD_BYTES..(b + 1) * RECORD_BYTES).ok_or_else(corrupt)?;
        let word = |at: usize| u32_at(record, at) as usize;
        let (raw_width, code_width) = (usize::from(record[36]), usize::from(record[37]));
        let (offset, data_bytes, raw_bytes) = (word(16), word(20), word(24));
        let fits = match self.table {
            // A code makes at most eight bytes: bounds what is allocated for a block.
            Some(_) => raw_bytes <= data_bytes.saturating_mul(8),
            None => raw_bytes == data_bytes,
        };
        if raw_width > 32 || code_width > 32 || !fits {
            return Err(corrupt());
        }
        let codes_at = offset + raw_width * 128;
        let data_at = codes_at + code_width * 128;
        Ok(TextBlock {
            prefix_min: u64_at(record, 0),
            prefix_max: u64_at(record, 8),
            raw_bytes,
            raw_base: word(28) as u32,
            raw_width,
            raw_lengths: self.payload.get(offset..codes_at).ok_or_else(corrupt)?,
            code_base: word(32) as u32,
            code_width,
            code_lengths: self.payload.get(codes_at..data_at).ok_or_else(corrupt)?,
            data: self.payload.get(data_at..data_at + data_bytes).ok_or_else(corrupt)?,
            table: self.table,
        })
    }
}

impl TextBlock<'_> {
    /// Raw lengths of all rows.
    pub(crate) fn lengths(&self, out: &mut [u32; 1024]) {
        packed::decode(self.raw_lengths, self.raw_width, u64::from(self.raw_base), 1, &mut out[..]);
    }

    /// Compare: the rows whose length lies in one of `lengths` (each clipped to what can occur here).
    pub(crate) fn rows_of_length(&self, lengths: &[usize], mask: &mut [u64; 16]) {
        let reach = if self.raw_width == 0 { 0 } else { u64::MAX >> (64 - self.raw_width) };
        *mask = [0; 16];
        let mut hits = [0u64; 16];
        for length in lengths {
            let Some(distance) = (*length as u64).checked_sub(u64::from(self.raw_base)) else { continue };
            if distance <= reach {
                packed::compare(self.raw_lengths, self.raw_width, &[(distance, distance)], &mut hits);
                for (mask, hits) in mask.iter_mut().zip(hits) {
                    *mask |= hits;
                }
            }
        }
    }

    /// How many bytes of data each row has.
    fn data_lengths(&self, out: &mut [u32; 1024]) {
        let (base, width, lengths) = match self.table {
            Some(_) => (self.code_base, self.code_width, self.code_lengths),
            None => (self.raw_base, self.raw_width, self.raw_lengths),
        };
        packed::decode(lengths, width, u64::from(base), 1, &mut out[..]);
    }

    /// Where each row's data starts: sums of the compressed (or raw) lengths. Returns the sum of all.
    fn starts(&self, rows: usize, starts: &mut [u32; 1024]) -> u32 {
        self.data_lengths(starts);
        let mut sum = 0u32;
        for start in &mut starts[..rows] {
            let length = *start;
            *start = sum;
            sum = sum.wrapping_add(length);
        }
        sum
    }

    /// Compare: takes rows out of `candidates` whose codes can't make a match.
    pub(crate) fn rule_out(&self, rows: usize, test: &mut CodeTest, candidates: &mut [u64; 16]) {
        let mut lengths = [0u32; 1024];
        self.data_lengths(&mut lengths);
        test.rule_out(self.data, &lengths[..rows], candidates);
    }

    /// Decode: all `rows` values one after another into the front of `data`; `ends[i]` is where row `i` ends.
    pub(crate) fn decode(&self, rows: usize, ends: &mut [u32; 1024], data: &mut [u8]) -> Result<usize> {
        if data.len() < self.raw_bytes {
            return Err(SegmentError::BufferTooSmall { needed: self.raw_bytes, given: data.len() });
        }
        self.lengths(ends);
        let mut end = 0u32;
        for length in &mut ends[..rows] {
            end = end.wrapping_add(*length);
            *length = end;
        }
        let written = match &self.table {
            Some(table) => table.decode(self.data, data),
            None => {
                data[..self.data.len()].copy_from_slice(self.data);
                Some(self.data.len())
            }
        };
        if written != Some(self.raw_bytes) || end as usize != self.raw_bytes || !ends[..rows].is_sorted() {
            let detail = format!("{written:?} bytes decompressed, lengths sum to {end}, {} recorded", self.raw_bytes);
            return Err(SegmentError::corrupt("text block", detail));
        }
        Ok(self.raw_bytes)
    }

    /// Take: the values at `indices`, one after another.
    pub(crate) fn take(&self, rows: usize, indices: &[u16], ends: &mut [u32; 1024], data: &mut [u8]) -> Result<usize> {
        let corrupt = || SegmentError::corrupt("text block", "lengths do not fit the data");
        let mut raw = [0u32; 1024];
        let mut starts = [0u32; 1024];
        self.lengths(&mut raw);
        let sum = self.starts(rows, &mut starts);
        let mut written = 0usize;
        for (index, out) in indices.iter().zip(ends) {
            let row = usize::from(*index) & 1023;
            let start = starts[row] as usize;
            let end = if row + 1 < rows { starts[row + 1] as usize } else { sum as usize };
            let value = self.data.get(start..end).ok_or_else(corrupt)?;
            let length = raw[row] as usize;
            let needed = written + length;
            if needed > data.len() {
                return Err(SegmentError::BufferTooSmall { needed, given: data.len() });
            }
            match &self.table {
                // The decoder may write past the value, but not past `data`; the next value overwrites it.
                Some(table) => {
                    if table.decode(value, &mut data[written..]) != Some(length) {
                        return Err(corrupt());
                    }
                }
                None if value.len() == length => data[written..needed].copy_from_slice(value),
                None => return Err(corrupt()),
            }
            written = needed;
            *out = written as u32;
        }
        Ok(written)
    }
}
