//! Chunks: one column of one row group, read in place.
//!
//! Owns the chunk's header and sections, and [`Chunk`], through which the engine reads and filters
//! blocks. `filter` evaluates predicates; `gather` copies selected rows out; `floats` is what differs for float
//! columns; `header` is the layout; the encodings do the work.
//!
//! Invariants
//! - Opening checks the header and that every section lies inside the bytes; each block's payload range is
//!   checked when the block is read, before a kernel sees it.
//! - Values of NULL rows are arbitrary (text: empty), never read from outside the chunk.

mod filter;
mod floats;
mod gather;
pub(crate) mod header;
mod summary;

use bytes::Bytes;
use hidb::types::{DataType, Lane, Scalar};

use crate::BLOCK_ROWS;
use crate::encoding::fsst::decode::SymbolTable;
use crate::encoding::integers::{Integers, Mapping};
use crate::encoding::text::{self, Text};
use crate::encoding::{bitmap, dictionary, u16_at, u32_at};
use crate::error::{Result, SegmentError};
use crate::footer::Encoding;
use crate::selection::Selection;
use crate::zone::ZoneMap;
use header::{Header, Layout, Sections};

/// One column of one row group. Cheap to open (nothing is decoded) and to clone.
#[derive(Clone, Debug)]
pub struct Chunk {
    bytes: Bytes,
    data_type: DataType,
    header: Header,
    sections: Sections,
}

/// The entries of a dictionary chunk, ascending.
#[derive(Clone, Copy, Debug)]
pub struct DictionaryView<'a> {
    section: &'a [u8],
    len: usize,
}

impl<'a> DictionaryView<'a> {
    /// How many entries there are; codes are below this.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn check_codes(&self, codes: &[u32]) -> Result<()> {
        let greatest = crate::kernels::greatest(codes) as usize;
        if greatest >= self.len && !codes.is_empty() {
            return Err(SegmentError::corrupt("dictionary", format!("no entry {greatest} of {}", self.len)));
        }
        Ok(())
    }

    /// Entry `code` of a bytes-lane chunk.
    pub fn bytes(&self, code: u32) -> Result<&'a [u8]> {
        dictionary::bytes_entry(self.section, self.len, code as usize)
    }

    /// Entry `code` of a 64-bit-lane chunk.
    pub fn i64(&self, code: u32) -> Result<i64> {
        dictionary::i64_entry(self.section, self.len, code as usize)
    }
}

impl Chunk {
    /// Opens a chunk of `rows` rows. Checks the header and the extents of the parts; decodes nothing,
    /// allocates nothing. `bytes` may be longer than the chunk (padding).
    pub fn open(bytes: Bytes, data_type: &DataType, rows: u32) -> Result<Chunk> {
        let header = Header::parse(&bytes, data_type, rows)?;
        let sections = header.sections(bytes.len())?;
        let chunk = Chunk { bytes, data_type: *data_type, header, sections };
        if header.layout == Layout::TextFsst && chunk.text().table.is_none() {
            return Err(SegmentError::corrupt("chunk", "symbol table"));
        }
        Ok(chunk)
    }

    fn section(&self, range: &std::ops::Range<usize>) -> &[u8] {
        &self.bytes[range.clone()]
    }

    /// The column's type.
    pub fn data_type(&self) -> &DataType {
        &self.data_type
    }

    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.header.rows as usize
    }

    /// 1,024-row blocks.
    pub fn blocks(&self) -> usize {
        self.rows().div_ceil(BLOCK_ROWS)
    }

    /// Rows of block `b` (1,024 but for the last).
    pub fn block_rows(&self, b: usize) -> usize {
        self.rows().saturating_sub(b.saturating_mul(BLOCK_ROWS)).min(BLOCK_ROWS)
    }

    /// How it is encoded.
    pub fn encoding(&self) -> Encoding {
        self.header.encoding
    }

    /// NULLs in the whole chunk.
    pub fn null_count(&self) -> usize {
        self.header.null_count as usize
    }

    /// Bytes of the encoded chunk.
    pub fn encoded_bytes(&self) -> usize {
        self.sections.payload.end
    }

    /// NULLs in block `b`.
    pub fn block_null_count(&self, b: usize) -> Result<usize> {
        Ok(self.nulls(b)?.0)
    }

    /// NULLs of block `b` and where its bitmap starts in the validity section.
    fn nulls(&self, b: usize) -> Result<(usize, usize)> {
        if b >= self.blocks() {
            return Err(SegmentError::corrupt("chunk", format!("no block {b}")));
        }
        if self.header.null_count == 0 {
            return Ok((0, 0));
        }
        let section = self.section(&self.sections.validity);
        let record = section
            .get(b * header::VALIDITY_RECORD_BYTES..(b + 1) * header::VALIDITY_RECORD_BYTES)
            .ok_or_else(|| SegmentError::corrupt("chunk", "validity section too short"))?;
        Ok((usize::from(u16_at(record, 0)).min(self.block_rows(b)), u32_at(record, 4) as usize))
    }

    /// Writes which rows of block `b` are not NULL (bits past its rows are 0). Returns whether all are.
    pub fn validity(&self, b: usize, out: &mut [u64; 16]) -> Result<bool> {
        let (nulls, offset) = self.nulls(b)?;
        let rows = self.block_rows(b);
        if nulls == rows {
            *out = [0; 16];
            return Ok(false);
        }
        let all = Selection::all(rows);
        *out = *all.words();
        if nulls == 0 {
            return Ok(true);
        }
        let section = self.section(&self.sections.validity);
        let start = self.blocks() * header::VALIDITY_RECORD_BYTES + offset;
        let bits = section
            .get(start..start + bitmap::BLOCK_BYTES)
            .ok_or_else(|| SegmentError::corrupt("chunk", format!("validity bitmap of block {b}")))?;
        let mut words = [0u64; 16];
        bitmap::decode(bits, &mut words);
        for (out, word) in out.iter_mut().zip(words) {
            *out &= word;
        }
        Ok(false)
    }

    fn integers(&self) -> Integers<'_> {
        Integers { directory: self.section(&self.sections.directory), payload: self.section(&self.sections.payload) }
    }

    fn text(&self) -> Text<'_> {
        let table = if self.header.layout == Layout::TextFsst {
            SymbolTable::new(self.section(&self.sections.auxiliary))
        } else {
            None
        };
        Text { directory: self.section(&self.sections.directory), payload: self.section(&self.sections.payload), table }
    }

    fn mapping(&self) -> Mapping {
        Mapping { origin: self.header.origin, scale: self.header.scale }
    }

    fn wrong_lane(&self, operation: &'static str) -> SegmentError {
        SegmentError::WrongLane { operation, data_type: self.data_type.to_string() }
    }

    fn check_block(&self, b: usize) -> Result<()> {
        if b < self.blocks() { Ok(()) } else { Err(SegmentError::corrupt("chunk", format!("no block {b}"))) }
    }

    /// The bytes of block `b` of a plain chunk, of NULL rows too (whatever was there), in the native width
    /// ([`DataType::fixed_width`]). Vectors are always stored so.
    ///
    /// # Errors
    /// [`SegmentError::Corrupt`] when there is no such block or the chunk isn't plain.
    pub fn plain_block(&self, b: usize) -> Result<&[u8]> {
        self.check_block(b)?;
        let width = self.header.value_width as usize;
        let from = b * BLOCK_ROWS * width;
        let length = self.block_rows(b) * width;
        // In a plain chunk the header check made sure that `rows * width` bytes are there.
        let block = self.section(&self.sections.payload).get(from..from + length);
        block.ok_or_else(|| SegmentError::corrupt("chunk", format!("no {length} bytes of block {b}")))
    }

    fn bitmap_block(&self, b: usize) -> Result<&[u8]> {
        self.check_block(b)?;
        Ok(&self.section(&self.sections.payload)[b * bitmap::BLOCK_BYTES..(b + 1) * bitmap::BLOCK_BYTES])
    }

    /// The single value of a constant plain chunk.
    fn constant_bytes(&self) -> [u8; 16] {
        self.header.origin.to_le_bytes()
    }

    /// Bounds of block `b` (nothing but counts for vectors, booleans and text that is not in a dictionary).
    pub fn zone(&self, b: usize) -> Result<ZoneMap> {
        let nulls = self.block_null_count(b)?;
        let rows = self.block_rows(b);
        let mut zone = ZoneMap::unknown(rows as u32, nulls as u32);
        if nulls == rows {
            return Ok(zone);
        }
        match self.header.layout {
            Layout::Integers => {
                let record = self.integers().record(b)?;
                let scalar = |stored: i64| match self.data_type.lane() {
                    Lane::I64 => Scalar::I64(self.mapping().value(stored) as i64),
                    _ => Scalar::I128(self.mapping().value(stored)),
                };
                // A NULL slot may hold the last value of the block before.
                (zone.min, zone.max, zone.exact) = (scalar(record.min), scalar(record.max()), nulls == 0);
            }
            Layout::DictionaryI64 | Layout::DictionaryBytes => {
                let record = self.integers().record(b)?;
                let entry = |code: i64| match self.header.layout {
                    Layout::DictionaryI64 => Ok(Scalar::I64(self.entry_i64(code)?)),
                    _ => Ok(Scalar::Bytes(self.entry_bytes(code)?.to_vec())),
                };
                (zone.min, zone.max, zone.exact) = (entry(record.min)?, entry(record.max())?, nulls == 0);
            }
            Layout::Plain | Layout::Alp | Layout::Constant if self.data_type.is_float() => {
                self.set_float_bounds(b, &mut zone);
            }
            _ => {}
        }
        Ok(zone)
    }

    /// Text: bounds of the first 8 bytes of block `b`'s values, as big-endian numbers with zeros after the end (a
    /// NULL counts as empty or as any entry), without decoding. `None` for other types.
    pub fn prefixes(&self, b: usize) -> Result<Option<(u64, u64)>> {
        self.check_block(b)?;
        Ok(match self.header.layout {
            Layout::Text | Layout::TextFsst => {
                let block = self.text().block(b)?;
                Some((block.prefix_min, block.prefix_max))
            }
            Layout::DictionaryBytes => {
                let record = self.integers().record(b)?;
                Some((text::prefix(self.entry_bytes(record.min)?), text::prefix(self.entry_bytes(record.max())?)))
            }
            _ => None,
        })
    }

    fn entry_i64(&self, code: i64) -> Result<i64> {
        let len = self.header.dictionary_len as usize;
        dictionary::i64_entry(self.section(&self.sections.auxiliary), len, code as usize)
    }

    fn entry_bytes(&self, code: i64) -> Result<&[u8]> {
        let len = self.header.dictionary_len as usize;
        dictionary::bytes_entry(self.section(&self.sections.auxiliary), len, code as usize)
    }

    /// 64-bit lane: all values of block `b`. NULL rows, and `out` past the block's rows, hold arbitrary values.
    pub fn decode_i64(&self, b: usize, out: &mut [i64; 1024]) -> Result<()> {
        self.check_block(b)?;
        match (self.header.layout, self.data_type.lane()) {
            (Layout::Integers, Lane::I64) => self.integers().decode_mapped(b, &self.mapping(), out),
            (Layout::DictionaryI64, Lane::I64) => {
                self.integers().decode(b, out)?;
                self.look_up_i64(&mut out[..self.block_rows(b)])
            }
            _ => Err(self.wrong_lane("decode_i64")),
        }
    }

    /// Replaces codes by their entries.
    fn look_up_i64(&self, codes: &mut [i64]) -> Result<()> {
        let len = self.header.dictionary_len as usize;
        let entries = self.section(&self.sections.auxiliary).as_chunks::<8>().0;
        let entries = &entries[..len.min(entries.len())];
        for code in codes {
            match entries.get(*code as usize) {
                Some(entry) => *code = i64::from_le_bytes(*entry),
                None => return Err(SegmentError::corrupt("dictionary", format!("no entry {code} of {len}"))),
            }
        }
        Ok(())
    }

    /// 128-bit lane, and the 64-bit lane widened: all values of block `b`.
    pub fn decode_i128(&self, b: usize, out: &mut [i128; 1024]) -> Result<()> {
        match (self.header.layout, self.data_type.lane()) {
            (Layout::Integers, Lane::I128) => {
                let mut stored = [0i64; 1024];
                self.integers().decode(b, &mut stored)?;
                let mapping = self.mapping();
                for (out, stored) in out.iter_mut().zip(stored) {
                    *out = mapping.value(stored);
                }
                Ok(())
            }
            (Layout::Plain, Lane::I128) => {
                for (out, value) in out.iter_mut().zip(self.plain_block(b)?.as_chunks::<16>().0) {
                    *out = i128::from_le_bytes(*value);
                }
                Ok(())
            }
            (_, Lane::I64) => {
                let mut values = [0i64; 1024];
                self.decode_i64(b, &mut values)?;
                for (out, value) in out.iter_mut().zip(values) {
                    *out = i128::from(value);
                }
                Ok(())
            }
            _ => Err(self.wrong_lane("decode_i128")),
        }
    }

    /// Boolean lane: the values of block `b` as a bitmap; bits of NULL rows and past the rows are arbitrary.
    pub fn decode_bool(&self, b: usize, out: &mut [u64; 16]) -> Result<()> {
        match (self.header.layout, self.data_type) {
            (Layout::Bitmap, DataType::Boolean) => bitmap::decode(self.bitmap_block(b)?, out),
            (Layout::Constant, DataType::Boolean) => {
                self.check_block(b)?;
                *out = [if self.header.origin == 0 { 0 } else { u64::MAX }; 16];
            }
            _ => return Err(self.wrong_lane("decode_bool")),
        }
        Ok(())
    }

    /// The entries, if this chunk is dictionary-encoded.
    pub fn dictionary(&self) -> Option<DictionaryView<'_>> {
        matches!(self.header.layout, Layout::DictionaryI64 | Layout::DictionaryBytes).then(|| DictionaryView {
            section: self.section(&self.sections.auxiliary),
            len: self.header.dictionary_len as usize,
        })
    }
}
