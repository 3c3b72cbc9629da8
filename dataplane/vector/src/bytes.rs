//! Reading numbers from bytes that may end anywhere.
//!
//! Owns [`Reader`]. Called by the decoders of index objects.
//!
//! Invariants
//! - Nothing is read beyond the end, and nothing is allocated before the bytes for it are known to be there.

use crate::{Result, VectorError};

/// The rest of a part of an index object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader of `bytes`; errors name `what`.
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Reader { what, rest: bytes }
    }

    /// What is left.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// An error about this part.
    pub(crate) fn corrupt(&self, detail: impl Into<String>) -> VectorError {
        VectorError::corrupt(self.what, detail)
    }

    /// The next `count` bytes.
    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        match self.rest.split_at_checked(count) {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(bytes)
            }
            None => Err(self.corrupt(format!("{count} bytes expected, {} left", self.rest.len()))),
        }
    }

    /// The bytes of `count` items of `size` bytes each.
    pub(crate) fn items(&mut self, count: usize, size: usize) -> Result<&'a [u8]> {
        let bytes = count.checked_mul(size).ok_or_else(|| self.corrupt(format!("{count} items")))?;
        self.take(bytes)
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        let b = self.take(4)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from(self.u32()?) | u64::from(self.u32()?) << 32)
    }

    /// `count` words.
    pub(crate) fn u32s(&mut self, count: usize) -> Result<Vec<u32>> {
        let bytes = self.items(count, 4)?;
        Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// `count` floats, all of them finite.
    pub(crate) fn floats(&mut self, count: usize) -> Result<Vec<f32>> {
        let bytes = self.items(count, 4)?;
        let floats: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        match floats.iter().position(|f| !f.is_finite()) {
            Some(at) => Err(self.corrupt(format!("float {at} of {count} is not finite"))),
            None => Ok(floats),
        }
    }
}

/// Appends floats.
pub(crate) fn put_floats(floats: &[f32], out: &mut Vec<u8>) {
    floats.iter().for_each(|f| out.extend_from_slice(&f.to_le_bytes()));
}
