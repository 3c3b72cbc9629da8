//! A graph as an index object: what its rows are called, then the graph.
//!
//! Owns the layout. Called when the cell stores a graph, and when it opens one.
//!
//! Layout, little-endian, in as many whole pages as it takes: row ids (64 bits each), zeros, and in the last 16 bytes the
//! CRC32C of the ids and how many they are (64 bits each). Then the graph's bytes ([`Graph::to_bytes`]).
//!
//! Invariants
//! - Any bytes give a graph with a row id for each of its rows, or a typed error.

use super::Graph;
use crate::{Result, VectorError};

/// The graph begins at a multiple of this: a drive is read in pages.
const PAGE_BYTES: usize = 4096;
/// Checksum and count.
const HEAD_END_BYTES: usize = 16;

impl Graph {
    /// The object of a graph whose row `r` is called `rowids[r]`.
    pub fn to_object(&self, rowids: &[i64]) -> Vec<u8> {
        let mut bytes = Vec::new();
        rowids.iter().for_each(|id| bytes.extend_from_slice(&id.to_le_bytes()));
        let checksum = crc32c::crc32c(&bytes);
        let end = (bytes.len() + HEAD_END_BYTES).next_multiple_of(PAGE_BYTES);
        bytes.resize(end - HEAD_END_BYTES, 0);
        bytes.extend_from_slice(&u64::from(checksum).to_le_bytes());
        bytes.extend_from_slice(&(rowids.len() as u64).to_le_bytes());
        bytes.append(&mut self.to_bytes());
        bytes
    }

    /// The graph in an object that was made of `rows` rows, and their ids.
    ///
    /// # Errors
    /// [`VectorError::Corrupt`], [`VectorError::Checksum`], [`VectorError::Version`].
    pub fn from_object(object: &[u8], rows: u64) -> Result<(Self, Vec<i64>)> {
        let corrupt = |detail: String| VectorError::corrupt("row ids of a graph", detail);
        let too_few = || corrupt(format!("{} bytes are too few for {rows} of them", object.len()));
        let head_bytes =
            |rows: usize| rows.checked_mul(8)?.checked_add(HEAD_END_BYTES)?.checked_next_multiple_of(PAGE_BYTES);
        let count = usize::try_from(rows).map_err(|_| too_few())?;
        let parts = head_bytes(count).and_then(|bytes| object.split_at_checked(bytes));
        let (head, graph) = parts.ok_or_else(too_few)?;
        let (ids, rest) = head.split_at(8 * count);
        let word = |from: usize| u64::from_le_bytes(std::array::from_fn(|i| rest[rest.len() - from + i]));
        let computed = u64::from(crc32c::crc32c(ids));
        if word(8) != rows || word(16) != computed {
            let stored = format!("{} of them with checksum {:#x}", word(8), word(16));
            return Err(corrupt(format!("{stored} where {rows} with {computed:#x} are expected")));
        }
        let graph = Graph::from_bytes(graph)?;
        if graph.count() != count {
            return Err(corrupt(format!("{rows} of them for {} nodes", graph.count())));
        }
        let ids = ids.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes));
        Ok((graph, ids.collect()))
    }
}
