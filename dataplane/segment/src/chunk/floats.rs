//! Float columns: whole blocks, selected rows, comparison.
//!
//! Owns what [`Chunk`] does differently for its three float layouts (ALP, plain, constant): everything else asks
//! here. Called by the engine, by `filter` and by `gather`.
//!
//! Invariants
//! - 32-bit floats are widened on the way out of `decode_f64` and `gather_f64` only: `gather_fixed` gives their bits.

use hidb::types::{DataType, Scalar};

use super::Chunk;
use super::gather::room;
use super::header::Layout;
use crate::encoding::alp::Floats;
use crate::encoding::plain;
use crate::error::Result;
use crate::kernels::{Float, order_key, value_of_key};
use crate::selection::{Rows, Selection};
use crate::zone::ZoneMap;

impl Chunk {
    fn floats(&self) -> Floats<'_> {
        Floats { directory: self.section(&self.sections.directory), payload: self.section(&self.sections.payload) }
    }

    fn constant_f64(&self) -> f64 {
        let bits = self.header.origin as u64;
        if self.data_type == DataType::Float32 { f32::from_bits(bits as u32).into() } else { f64::from_bits(bits) }
    }

    /// Float lane: all values of block `b` (32-bit floats widened). NULL rows, and `out` past the block's rows, hold
    /// arbitrary values.
    pub fn decode_f64(&self, b: usize, out: &mut [f64; 1024]) -> Result<()> {
        match self.data_type {
            DataType::Float64 => self.decode_floats(b, out),
            DataType::Float32 => {
                let mut values = [0f32; 1024];
                self.decode_floats(b, &mut values)?;
                widen(&values, out);
                Ok(())
            }
            _ => Err(self.wrong_lane("decode_f64")),
        }
    }

    /// Float lane: the selected values (32-bit floats widened), compacted into the front of `out`. NULL rows hold
    /// arbitrary values. Returns how many.
    pub fn gather_f64(&self, b: usize, rows: Rows<'_>, out: &mut [f64]) -> Result<usize> {
        let count = self.check_rows(b, rows)?;
        if let (Rows::All(_), Some(out)) = (rows, out.first_chunk_mut()) {
            self.decode_f64(b, out)?;
            return Ok(count);
        }
        let out = room(out, count)?;
        match self.data_type {
            DataType::Float64 => self.take_floats(b, rows, out)?,
            DataType::Float32 => {
                let mut values = [0f32; 1024];
                self.take_floats(b, rows, &mut values[..count])?;
                widen(&values[..count], out);
            }
            _ => return Err(self.wrong_lane("gather_f64")),
        }
        Ok(count)
    }

    /// `F` is the column's type.
    fn decode_floats<F: Float>(&self, b: usize, out: &mut [F; 1024]) -> Result<()> {
        self.check_block(b)?;
        match self.header.layout {
            Layout::Alp => self.floats().block::<F>(b, self.block_rows(b))?.decode(out),
            Layout::Plain => plain::decode_floats(self.plain_block(b)?, out),
            Layout::Constant => out.fill(F::from_bits(self.header.origin as u64)),
            _ => return Err(self.wrong_lane("decode_f64")),
        }
        Ok(())
    }

    /// `F` is the column's type; `out` is as long as `rows`.
    fn take_floats<F: Float>(&self, b: usize, rows: Rows<'_>, out: &mut [F]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        self.check_block(b)?;
        match self.header.layout {
            Layout::Alp => self.floats().block::<F>(b, self.block_rows(b))?.take(rows, out),
            Layout::Plain => plain::take_floats(self.plain_block(b)?, rows, out),
            Layout::Constant => out.fill(F::from_bits(self.header.origin as u64)),
            _ => return Err(self.wrong_lane("gather_f64")),
        }
        Ok(())
    }

    /// The values of `rows` byte by byte.
    pub(super) fn take_float_bytes(&self, b: usize, rows: Rows<'_>, out: &mut [u8]) -> Result<()> {
        let count = rows.len();
        match self.data_type {
            DataType::Float32 => {
                let mut values = [0f32; 1024];
                self.take_floats(b, rows, &mut values[..count])?;
                for (out, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                    *out = value.to_le_bytes();
                }
            }
            _ => {
                let mut values = [0f64; 1024];
                self.take_floats(b, rows, &mut values[..count])?;
                for (out, value) in out.as_chunks_mut::<8>().0.iter_mut().zip(values) {
                    *out = value.to_le_bytes();
                }
            }
        }
        Ok(())
    }

    /// Least and greatest order key of block `b`.
    pub(super) fn float_zone(&self, b: usize) -> (i64, i64) {
        if self.header.layout == Layout::Constant {
            let key = order_key(self.constant_f64());
            return (key, key);
        }
        plain::float_keys(self.section(&self.sections.directory), b)
    }

    /// Puts the bounds of block `b` into `zone`, which has the counts already.
    pub(super) fn set_float_bounds(&self, b: usize, zone: &mut ZoneMap) {
        if self.header.layout == Layout::Constant {
            let value = self.constant_f64();
            zone.has_nan = value.is_nan();
            (zone.min, zone.max, zone.exact) = (Scalar::F64(value + 0.0), Scalar::F64(value + 0.0), true);
            return;
        }
        let (low, high) = self.float_zone(b);
        zone.has_nan = high == i64::MAX;
        zone.min = Scalar::F64(value_of_key(low));
        zone.exact = !zone.has_nan && zone.null_count == 0;
        zone.max = if low == i64::MAX {
            zone.min.clone()
        } else if zone.has_nan {
            Scalar::F64(f64::INFINITY)
        } else {
            Scalar::F64(value_of_key(high))
        };
    }

    /// Keeps the rows whose order keys are in `lo..=hi` (or not).
    pub(super) fn filter_floats(
        &self,
        b: usize,
        lo: i64,
        hi: i64,
        negated: bool,
        selection: &mut Selection,
    ) -> Result<()> {
        let mut mask = [0u64; 16];
        match self.data_type {
            DataType::Float32 => self.compare_floats::<f32>(b, lo, hi, selection, &mut mask)?,
            _ => self.compare_floats::<f64>(b, lo, hi, selection, &mut mask)?,
        }
        if negated {
            selection.and_not(&mask)
        } else {
            selection.and(&mask)
        }
        Ok(())
    }

    fn compare_floats<F: Float>(
        &self,
        b: usize,
        lo: i64,
        hi: i64,
        selection: &Selection,
        mask: &mut [u64; 16],
    ) -> Result<()> {
        if self.header.layout == Layout::Alp {
            self.check_block(b)?;
            self.floats().block::<F>(b, self.block_rows(b))?.compare::<F>(lo, hi, selection, mask);
            return Ok(());
        }
        let mut values = [F::default(); 1024];
        self.decode_floats(b, &mut values)?;
        *mask = plain::compare_floats(&values, lo, hi);
        Ok(())
    }
}

fn widen(values: &[f32], out: &mut [f64]) {
    for (out, value) in out.iter_mut().zip(values) {
        *out = f64::from(*value);
    }
}
