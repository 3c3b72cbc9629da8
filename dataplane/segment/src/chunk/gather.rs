//! Selected rows of a block, compacted: what late materialisation reads.
//!
//! Owns the `gather` operations of [`Chunk`]. Called by the engine for the rows that survived the filter.

use hidb::types::Lane;

use super::Chunk;
use super::header::Layout;
use crate::encoding::integers::Mapping;
use crate::encoding::plain;
use crate::error::{Result, SegmentError};
use crate::selection::Rows;

impl Chunk {
    /// 64-bit lane: the selected values, compacted into the front of `out`. Returns how many.
    pub fn gather_i64(&self, b: usize, rows: Rows<'_>, out: &mut [i64]) -> Result<usize> {
        let count = self.check_rows(b, rows)?;
        if self.data_type.lane() != Lane::I64 {
            return Err(self.wrong_lane("gather_i64"));
        }
        if count == 0 {
            return Ok(0);
        }
        if let (Rows::All(_), Some(out)) = (rows, out.first_chunk_mut()) {
            self.decode_i64(b, out)?;
            return Ok(count);
        }
        let out = room(out, count)?;
        match self.header.layout {
            Layout::Integers => self.integers().take(b, &self.mapping(), rows, out)?,
            _ => {
                self.integers().take(b, &Mapping::IDENTITY, rows, out)?;
                self.look_up_i64(out)?;
            }
        }
        Ok(count)
    }

    /// 128-bit lane: the selected values, compacted into the front of `out`. Returns how many.
    pub fn gather_i128(&self, b: usize, rows: Rows<'_>, out: &mut [i128]) -> Result<usize> {
        if self.data_type.lane() != Lane::I128 {
            return Err(self.wrong_lane("gather_i128"));
        }
        let count = self.check_rows(b, rows)?;
        if count == 0 {
            return Ok(0);
        }
        let out = room(out, count)?;
        if self.header.layout == Layout::Integers {
            self.take_i128(b, rows, out)?;
            return Ok(count);
        }
        let block = self.plain_block(b)?.as_chunks::<16>().0;
        match rows {
            Rows::All(_) => {
                for (out, value) in out.iter_mut().zip(block) {
                    *out = i128::from_le_bytes(*value);
                }
            }
            Rows::At(indices) => {
                for (out, index) in out.iter_mut().zip(indices) {
                    *out = i128::from_le_bytes(block[usize::from(*index)]);
                }
            }
        }
        Ok(count)
    }

    /// Narrow 128-bit values at `rows`.
    fn take_i128(&self, b: usize, rows: Rows<'_>, out: &mut [i128]) -> Result<()> {
        let mut stored = [0i64; 1024];
        self.integers().take(b, &Mapping::IDENTITY, rows, &mut stored[..out.len()])?;
        let mapping = self.mapping();
        for (out, stored) in out.iter_mut().zip(stored) {
            *out = mapping.value(stored);
        }
        Ok(())
    }

    /// Whether block `b` is there and has these rows.
    pub(super) fn check_rows(&self, b: usize, rows: Rows<'_>) -> Result<usize> {
        self.check_block(b)?;
        let end = match rows {
            Rows::All(count) => count,
            Rows::At(indices) => indices.last().map_or(0, |last| usize::from(*last) + 1),
        };
        match end <= self.block_rows(b) {
            true => Ok(rows.len()),
            false => Err(SegmentError::corrupt("chunk", format!("no row {} in block {b}", end - 1))),
        }
    }

    /// Selected values, compacted, in the Arrow native width ([`DataType::fixed_width`]), little-endian,
    /// into the front of `out`. NULL rows hold arbitrary values. Returns how many rows were written.
    pub fn gather_fixed(&self, b: usize, rows: Rows<'_>, out: &mut [u8]) -> Result<usize> {
        let Some(width) = self.data_type.fixed_width() else { return Err(self.wrong_lane("gather_fixed")) };
        let count = self.check_rows(b, rows)?;
        if count == 0 {
            return Ok(0);
        }
        let needed = count * width;
        if out.len() < needed {
            return Err(SegmentError::BufferTooSmall { needed, given: out.len() });
        }
        let out = &mut out[..needed];
        match (self.header.layout, width) {
            (Layout::Integers, 2) => self.take_native::<i16, 2>(b, rows, out)?,
            (Layout::Integers, 4) => self.take_native::<i32, 4>(b, rows, out)?,
            (Layout::Integers, 8) => self.take_native::<i64, 8>(b, rows, out)?,
            (Layout::Integers, _) => {
                let mut values = [0i128; 1024];
                self.take_i128(b, rows, &mut values[..count])?;
                for (out, value) in out.as_chunks_mut::<16>().0.iter_mut().zip(values) {
                    *out = value.to_le_bytes();
                }
            }
            (Layout::DictionaryI64, _) => {
                let mut values = [0i64; 1024];
                self.integers().take(b, &Mapping::IDENTITY, rows, &mut values[..count])?;
                self.look_up_i64(&mut values[..count])?;
                for (out, value) in out.chunks_exact_mut(width).zip(values) {
                    out.copy_from_slice(&value.to_le_bytes()[..width]);
                }
            }
            (Layout::Alp, _) => self.take_float_bytes(b, rows, out)?,
            (Layout::Plain, _) => plain::take(self.plain_block(b)?, width, rows, out),
            (Layout::Constant, _) => {
                let value = self.constant_bytes();
                for out in out.chunks_exact_mut(width) {
                    out.copy_from_slice(&value[..width]);
                }
            }
            _ => return Err(self.wrong_lane("gather_fixed")),
        }
        Ok(count)
    }

    fn take_native<N, const WIDTH: usize>(&self, b: usize, rows: Rows<'_>, out: &mut [u8]) -> Result<()>
    where
        N: crate::kernels::Native + Default + ToLittleEndian<WIDTH>,
    {
        // SAFETY: the integer types that are `Native` have no padding and no invalid bit patterns.
        let (before, aligned, _) = unsafe { out.align_to_mut::<N>() };
        if before.is_empty() && aligned.len() >= rows.len() {
            return self.integers().take(b, &self.mapping(), rows, &mut aligned[..rows.len()]);
        }
        let mut values = [N::default(); 1024];
        self.integers().take(b, &self.mapping(), rows, &mut values[..rows.len()])?;
        for (out, value) in out.as_chunks_mut::<WIDTH>().0.iter_mut().zip(values) {
            *out = value.to_little_endian();
        }
        Ok(())
    }

    /// Bytes lane: lengths in bytes of all values of block `b`, without decompressing (NULL rows: 0).
    pub fn lengths(&self, b: usize, out: &mut [u32; 1024]) -> Result<()> {
        self.check_block(b)?;
        match self.header.layout {
            Layout::Text | Layout::TextFsst => self.text().block(b)?.lengths(out),
            Layout::DictionaryBytes => {
                let mut codes = [0i64; 1024];
                self.integers().decode(b, &mut codes)?;
                for (out, code) in out.iter_mut().zip(&codes[..self.block_rows(b)]) {
                    *out = self.entry_bytes(*code)?.len() as u32;
                }
            }
            Layout::Plain | Layout::Constant if self.data_type.lane() == Lane::Bytes => {
                out.fill(self.header.value_width);
            }
            _ => return Err(self.wrong_lane("lengths")),
        }
        let mut valid = [0u64; 16];
        if !self.validity(b, &mut valid)? {
            for (row, length) in out.iter_mut().enumerate() {
                *length *= (valid[row / 64] >> (row % 64) & 1) as u32;
            }
        }
        Ok(())
    }

    /// Bytes lane: appends the selected values to `data`, and for each the length of `data` after it to
    /// `ends` (NULL rows are empty). Returns how many rows.
    pub fn gather_bytes(&self, b: usize, rows: Rows<'_>, ends: &mut Vec<u32>, data: &mut Vec<u8>) -> Result<usize> {
        if let (Layout::DictionaryBytes, Rows::At(indices)) = (self.header.layout, rows) {
            return self.append_entries(b, indices, ends, data);
        }
        let start = data.len();
        data.resize(start + self.gather_bytes_max(b, rows)?, 0);
        let mut block_ends = [0u32; 1024];
        let gathered = self.gather_bytes_into(b, rows, &mut block_ends, &mut data[start..]);
        data.truncate(start + gathered.as_ref().map_or(0, |(_, bytes)| *bytes));
        let (count, _) = gathered?;
        if data.len() > u32::MAX as usize {
            data.truncate(start);
            return Err(SegmentError::BufferTooSmall { needed: data.len(), given: u32::MAX as usize });
        }
        ends.extend(block_ends[..count].iter().map(|end| *end + start as u32));
        Ok(count)
    }

    /// An upper bound of the bytes that [`Chunk::gather_bytes_into`] writes for this selection; exact for
    /// dictionaries and vectors, the whole block's bytes for other text.
    pub fn gather_bytes_max(&self, b: usize, rows: Rows<'_>) -> Result<usize> {
        self.check_rows(b, rows)?;
        match self.header.layout {
            Layout::Text | Layout::TextFsst => Ok(self.text().block(b)?.raw_bytes),
            Layout::DictionaryBytes => {
                let mut codes = [0i64; 1024];
                let count = rows.len();
                self.integers().take(b, &Mapping::IDENTITY, rows, &mut codes[..count])?;
                codes[..count].iter().try_fold(0usize, |sum, code| Ok(sum + self.entry_bytes(*code)?.len()))
            }
            _ => Ok(rows.len() * (self.header.value_width as usize)),
        }
    }

    /// Bytes lane: the selected values one after another into the front of `data`, and for each its end
    /// (bytes from the start of `data`) into `ends`. NULL rows are empty. Returns rows and bytes;
    /// [`SegmentError::BufferTooSmall`] when they don't fit (`data` is then arbitrary). Bytes of `data` after
    /// the values may be overwritten.
    pub fn gather_bytes_into(
        &self,
        b: usize,
        rows: Rows<'_>,
        ends: &mut [u32; 1024],
        data: &mut [u8],
    ) -> Result<(usize, usize)> {
        if self.data_type.lane() != Lane::Bytes {
            return Err(self.wrong_lane("gather_bytes"));
        }
        let count = self.check_rows(b, rows)?;
        if count == 0 {
            return Ok((0, 0));
        }
        match self.header.layout {
            Layout::Text | Layout::TextFsst => {
                let block = self.text().block(b)?;
                let bytes = match rows {
                    Rows::All(_) if block.raw_bytes <= data.len() => block.decode(count, ends, data)?,
                    Rows::All(_) => {
                        return Err(SegmentError::BufferTooSmall { needed: block.raw_bytes, given: data.len() });
                    }
                    Rows::At(indices) => block.take(self.block_rows(b), indices, ends, data)?,
                };
                Ok((count, bytes))
            }
            Layout::DictionaryBytes => self.gather_entries(b, rows, ends, data),
            _ => {
                let width = self.header.value_width as usize;
                if data.len() < count * width {
                    return Err(SegmentError::BufferTooSmall { needed: count * width, given: data.len() });
                }
                self.gather_fixed(b, rows, data)?;
                for (row, end) in ends[..count].iter_mut().enumerate() {
                    *end = ((row + 1) * width) as u32;
                }
                Ok((count, count * width))
            }
        }
    }

    /// [`Chunk::gather_bytes`] of a dictionary, without a look at entries and codes that are not wanted.
    fn append_entries(&self, b: usize, indices: &[u16], ends: &mut Vec<u32>, data: &mut Vec<u8>) -> Result<usize> {
        let mut valid = [0u64; 16];
        let all_valid = self.validity(b, &mut valid)?;
        let mut codes = [0u32; 64];
        for indices in indices.chunks(codes.len()) {
            self.gather_codes(b, Rows::At(indices), &mut codes)?;
            for (index, code) in indices.iter().zip(&codes) {
                if all_valid || valid[usize::from(*index) / 64] >> (index % 64) & 1 == 1 {
                    data.extend_from_slice(self.entry_bytes(i64::from(*code))?);
                }
                let end = u32::try_from(data.len());
                ends.push(
                    end.map_err(|_| SegmentError::BufferTooSmall { needed: data.len(), given: u32::MAX as usize })?,
                );
            }
        }
        Ok(indices.len())
    }

    fn gather_entries(
        &self,
        b: usize,
        rows: Rows<'_>,
        ends: &mut [u32; 1024],
        data: &mut [u8],
    ) -> Result<(usize, usize)> {
        let count = rows.len();
        let mut codes = [0i64; 1024];
        self.integers().take(b, &Mapping::IDENTITY, rows, &mut codes[..count])?;
        let mut valid = [0u64; 16];
        let all_valid = self.validity(b, &mut valid)?;
        let is_present = |k: usize| match rows {
            _ if all_valid => true,
            Rows::All(_) => valid[k / 64] >> (k % 64) & 1 == 1,
            Rows::At(indices) => valid[usize::from(indices[k]) / 64] >> (indices[k] % 64) & 1 == 1,
        };
        let mut written = 0;
        for (k, (code, end)) in codes[..count].iter().zip(ends).enumerate() {
            if is_present(k) {
                let entry = self.entry_bytes(*code)?;
                let needed = written + entry.len();
                let given = data.len();
                data.get_mut(written..needed)
                    .ok_or(SegmentError::BufferTooSmall { needed, given })?
                    .copy_from_slice(entry);
                written = needed;
            }
            *end = written as u32;
        }
        Ok((count, written))
    }

    /// Dictionary chunks: the codes of block `b`; NULL rows hold arbitrary codes below the dictionary's length.
    pub fn codes(&self, b: usize, out: &mut [u32; 1024]) -> Result<()> {
        let Some(dictionary) = self.dictionary() else { return Err(self.wrong_lane("codes")) };
        let rows = self.block_rows(b);
        self.integers().take(b, &Mapping::IDENTITY, Rows::All(rows), &mut out[..rows])?;
        dictionary.check_codes(&out[..rows])?;
        Ok(())
    }

    /// Dictionary chunks: the codes of the selected rows, compacted into the front of `out`. Returns how many.
    pub fn gather_codes(&self, b: usize, rows: Rows<'_>, out: &mut [u32]) -> Result<usize> {
        let Some(dictionary) = self.dictionary() else { return Err(self.wrong_lane("gather_codes")) };
        let count = self.check_rows(b, rows)?;
        let out = room(out, count)?;
        self.integers().take(b, &Mapping::IDENTITY, rows, out)?;
        dictionary.check_codes(out)?;
        Ok(count)
    }
}

/// The front of `out`, for `count` values.
pub(super) fn room<T>(out: &mut [T], count: usize) -> Result<&mut [T]> {
    let given = size_of_val(out);
    out.get_mut(..count).ok_or(SegmentError::BufferTooSmall { needed: count * size_of::<T>(), given })
}

/// Integers that can be written byte by byte.
trait ToLittleEndian<const WIDTH: usize> {
    fn to_little_endian(self) -> [u8; WIDTH];
}

impl ToLittleEndian<2> for i16 {
    fn to_little_endian(self) -> [u8; 2] {
        self.to_le_bytes()
    }
}

impl ToLittleEndian<4> for i32 {
    fn to_little_endian(self) -> [u8; 4] {
        self.to_le_bytes()
    }
}

impl ToLittleEndian<8> for i64 {
    fn to_little_endian(self) -> [u8; 8] {
        self.to_le_bytes()
    }
}
