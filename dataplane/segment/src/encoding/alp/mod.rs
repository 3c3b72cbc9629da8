//! Floats: a directory of blocks, each of decimal integers, split bits, or plain.
//!
//! Follows Afroozeh, Kuffo, Boncz: ALP, Adaptive Lossless floating-Point Compression (SIGMOD 2024). Owns the block
//! directory and the choice of a block's kind; `decimal` and `split` (the paper's ALP-RD) are the kinds, with the
//! same four parts each. Called by `encode`, and by the chunk for float columns.
//!
//! Directory record, 24 bytes, the first 16 as in `plain`: least and greatest order key, payload offset `u32`, kind
//! `u8`, width `u8`, exceptions `u16`.
//!
//! Invariants
//! - Every bit of every value comes back: NaN payloads, the sign of zero, subnormals.
//! - A block that is not plain takes at most 9/10 of a plain one, and so does the chunk.
//! - A [`Block`] lies inside the payload and its exceptions' positions inside the block, whatever the bytes say.
//!
//! Why split bits and not Gorilla or Chimp for what is not decimal: see `split`.

mod decimal;
mod split;

use self::decimal::DecimalBlock;
use self::split::SplitBlock;
use super::integers::RECORD_BYTES;
use super::{plain, u16_at, u32_at};
use crate::error::{Result, SegmentError};
use crate::footer::Encoding;
use crate::kernels::Float;
use crate::{BLOCK_ROWS, Rows, Selection};

const KIND_PLAIN: u8 = 0;
const KIND_DECIMAL: u8 = 1;
const KIND_SPLIT: u8 = 2;

/// With fewer rows than this, fetching each by itself is quicker than unpacking the block.
const FEW: usize = 24;

/// Encoded floats.
#[derive(Debug)]
pub(crate) struct EncodedFloats {
    pub(crate) directory: Vec<u8>,
    pub(crate) payload: Vec<u8>,
    kinds: [usize; 3],
}

impl EncodedFloats {
    /// What most blocks that are not plain are.
    pub(crate) fn encoding(&self) -> Encoding {
        if self.kinds[usize::from(KIND_SPLIT)] > self.kinds[usize::from(KIND_DECIMAL)] {
            Encoding::AlpSplit
        } else {
            Encoding::Alp
        }
    }
}

/// Whether `bytes` saves enough against `plain_bytes` to be worth decoding.
fn pays(bytes: usize, plain_bytes: usize) -> bool {
    bytes * 10 <= plain_bytes * 9
}

/// The kind, width and exceptions of a block, and its payload.
struct EncodedBlock {
    kind: u8,
    width: usize,
    exceptions: usize,
    payload: Vec<u8>,
}

/// Encode: every block by itself, in the kind that is smallest. `None` when the whole does not pay.
pub(crate) fn encode<F: Float>(values: &[F]) -> Option<EncodedFloats> {
    let candidates = decimal::candidates(values);
    let decimals: Vec<Option<EncodedBlock>> =
        values.chunks(BLOCK_ROWS).map(|block| decimal::encode(block, &candidates)).collect();
    // Heads are chosen for the blocks that may need them: those that decimals don't make clearly smaller.
    let doubtful = |block: &[F], decimal: &Option<EncodedBlock>| {
        decimal.as_ref().is_none_or(|decimal| decimal.payload.len() * 4 > size_of_val(block) * 3)
    };
    let pairs = || values.chunks(BLOCK_ROWS).zip(&decimals);
    let split = split::choose(pairs().filter(|(block, decimal)| doubtful(block, decimal)).map(|(block, _)| block));
    let mut out = EncodedFloats { directory: plain::float_directory(values), payload: Vec::new(), kinds: [0; 3] };
    for ((block, decimal), record) in pairs().zip(out.directory.chunks_exact_mut(RECORD_BYTES)) {
        let split = split.filter(|_| doubtful(block, decimal)).map(|split| split::encode(block, &split));
        let plain = || EncodedBlock { kind: KIND_PLAIN, width: 0, exceptions: 0, payload: plain::float_bytes(block) };
        let smallest = [decimal.as_ref(), split.as_ref()].into_iter().flatten().min_by_key(|block| block.payload.len());
        let mut append = |block: &EncodedBlock| {
            record[16..20].copy_from_slice(&(out.payload.len() as u32).to_le_bytes());
            record[20..22].copy_from_slice(&[block.kind, block.width as u8]);
            record[22..24].copy_from_slice(&(block.exceptions as u16).to_le_bytes());
            out.payload.extend_from_slice(&block.payload);
            out.kinds[usize::from(block.kind)] += 1;
        };
        match smallest {
            Some(smallest) if pays(smallest.payload.len(), size_of_val(block)) => append(smallest),
            _ => append(&plain()),
        }
    }
    pays(out.payload.len(), size_of_val(values)).then_some(out)
}

/// Encoded floats, read in place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Floats<'a> {
    pub(crate) directory: &'a [u8],
    pub(crate) payload: &'a [u8],
}

/// One block, its extents checked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Block<'a> {
    Plain(&'a [u8]),
    Decimal(DecimalBlock<'a>),
    Split(SplitBlock<'a>),
}

impl<'a> Floats<'a> {
    /// Block `b` of `rows` rows.
    pub(crate) fn block<F: Float>(&self, b: usize, rows: usize) -> Result<Block<'a>> {
        let Some(record) = self.directory.get(b * RECORD_BYTES..(b + 1) * RECORD_BYTES) else {
            return Err(SegmentError::corrupt("chunk", format!("no block {b}")));
        };
        let (offset, kind, width) = (u32_at(record, 16) as usize, record[20], usize::from(record[21]));
        let exceptions = usize::from(u16_at(record, 22));
        let impossible = || {
            let detail = format!(
                "impossible float block {b}: kind {kind}, width {width}, {exceptions} exceptions at {offset} of {}",
                self.payload.len()
            );
            SegmentError::corrupt("chunk", detail)
        };
        let rest = self.payload.get(offset..).ok_or_else(impossible)?;
        let block = match kind {
            KIND_PLAIN => rest.get(..rows * F::BYTES).map(Block::Plain),
            KIND_DECIMAL => DecimalBlock::open::<F>(rest, width, exceptions).map(Block::Decimal),
            KIND_SPLIT => SplitBlock::open::<F>(rest, width, exceptions).map(Block::Split),
            _ => None,
        };
        block.ok_or_else(impossible)
    }
}

impl Block<'_> {
    /// Decode: all values; those past the block's rows are arbitrary.
    pub(crate) fn decode<F: Float>(&self, out: &mut [F; 1024]) {
        match self {
            Block::Plain(bytes) => plain::decode_floats(bytes, out),
            Block::Decimal(block) => block.decode(out),
            Block::Split(block) => block.decode(out),
        }
    }

    /// Compare: which values have order keys in `lo..=hi`. Rows that are not in `selection` get arbitrary bits.
    pub(crate) fn compare<F: Float>(&self, lo: i64, hi: i64, selection: &Selection, mask: &mut [u64; 16]) {
        match self {
            Block::Decimal(block) => block.compare::<F>(lo, hi, selection, mask),
            Block::Plain(_) | Block::Split(_) => {
                let mut values = [F::default(); 1024];
                self.decode(&mut values);
                *mask = plain::compare_floats(&values, lo, hi);
            }
        }
    }

    /// Take: the values of `rows`, compacted. `out` is as long as `rows`.
    pub(crate) fn take<F: Float>(&self, rows: Rows<'_>, out: &mut [F]) {
        match (self, rows) {
            (Block::Decimal(block), Rows::At(indices)) if indices.len() < FEW => block.take(indices, out),
            (Block::Split(block), Rows::At(indices)) if indices.len() < FEW => block.take(indices, out),
            (_, rows) => {
                let mut values = [F::default(); 1024];
                self.decode(&mut values);
                match rows {
                    Rows::All(count) => out.copy_from_slice(&values[..count]),
                    Rows::At(indices) => {
                        for (out, index) in out.iter_mut().zip(indices) {
                            *out = values[usize::from(*index) & (BLOCK_ROWS - 1)];
                        }
                    }
                }
            }
        }
    }
}

/// The values of a block that its kind can't hold: positions (`u16` each), then `WIDTH` bytes of each.
#[derive(Clone, Copy, Debug)]
struct Exceptions<'a> {
    positions: &'a [u8],
    values: &'a [u8],
    width: usize,
}

impl<'a> Exceptions<'a> {
    /// The front of `bytes`; `None` when they are too short or a position is outside the block.
    fn open(bytes: &'a [u8], count: usize, width: usize) -> Option<Self> {
        let (positions, rest) = bytes.split_at_checked(count * 2)?;
        let values = rest.get(..count * width)?;
        let inside = positions.as_chunks::<2>().0.iter().all(|at| usize::from(u16::from_le_bytes(*at)) < BLOCK_ROWS);
        inside.then_some(Exceptions { positions, values, width })
    }

    /// Appends them.
    fn encode(found: &[(u16, u64)], width: usize, out: &mut Vec<u8>) {
        for (position, _) in found {
            out.extend_from_slice(&position.to_le_bytes());
        }
        for (_, bits) in found {
            out.extend_from_slice(&bits.to_le_bytes()[..width]);
        }
    }

    /// Positions (below 1,024) and bits, as they come.
    #[inline]
    fn iter(&self) -> impl Iterator<Item = (usize, u64)> + 'a {
        let positions = self.positions.as_chunks::<2>().0.iter().map(|at| usize::from(u16::from_le_bytes(*at)));
        positions.zip(self.values.chunks_exact(self.width).map(|value| {
            let mut bits = [0u8; 8];
            bits[..value.len()].copy_from_slice(value);
            u64::from_le_bytes(bits)
        }))
    }

    /// Calls `patch(k, bits)` for each exception that is row `indices[k]`.
    #[inline]
    fn among(&self, indices: &[u16], mut patch: impl FnMut(usize, u64)) {
        for (position, bits) in self.iter() {
            if let Ok(k) = indices.binary_search(&(position as u16)) {
                patch(k, bits);
            }
        }
    }
}

#[cfg(test)]
mod tests;
