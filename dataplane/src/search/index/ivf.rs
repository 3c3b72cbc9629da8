//! Searching an IVF index: two dependent rounds of reads.
//!
//! Owns [`search`]. Called by the planner and by the builder, which measures recall.
//!
//! 1. The lists of the nearest centroids, through the core's cache, all at once.
//! 2. The vectors of the candidates that the codes can't exclude: from chunks that are cached, else from the device, page by
//!    page, all at once. Such pages are not cached: a row is rarely a candidate twice, and its list says what its checksum is.
//!
//! Invariants
//! - At most one read a list and one a candidate; adjacent ones are one read.
//! - A vector is compared only when its bytes have the checksum that the list keeps.

use bytes::Bytes;
use futures::future::try_join_all;
use heliostat_vector::ivf::{Candidate, IvfIndex, IvfSearch, IvfSearchOptions, ListView};
use heliostat_vector::{Elements, Neighbor};
use hidb::aligned::AlignedBytes;
use hidb::{Error, ErrorCode, Result, proto};

use super::include::ListFilter;
use crate::cache::{BlockCache, ChunkAddress, ChunkKey};
use crate::cores::Turn;
use crate::device::{BLOCK_BYTES, Device};
use crate::search::rowids::{Place, RowSet};
use crate::search::{VectorColumn, internal, invalid};
use crate::store::{StoreError, TableSnapshot};

/// The number that lists have in the cache where chunks have their column.
const LISTS_COLUMN: u32 = u32::MAX;

/// An index and what its rows are read with.
pub struct Source<'a, D> {
    /// The index.
    pub index: &'a IvfIndex,
    /// Id of the index object.
    pub object: u64,
    /// Byte offset of its payload on the volume.
    pub payload_offset: u64,
    /// The table whose rows it has.
    pub table: &'a TableSnapshot,
    /// The column of vectors.
    pub column: VectorColumn,
    /// The core's cache.
    pub cache: &'a BlockCache<D>,
    /// The core's device.
    pub device: &'a D,
    /// Whether everything is read from the device.
    pub bypass_cache: bool,
}

/// The rows that may be in an answer.
#[derive(Default)]
pub struct Allowed<'a> {
    /// Those in this set; `None`: all.
    pub rows: Option<&'a RowSet>,
    /// Those for which a condition on included columns is true.
    pub filter: Option<ListFilter>,
    /// Rows of lists that were looked at with the condition, and those for which it was true.
    pub tested: u64,
    /// See `tested`.
    pub passed: u64,
    /// A list keeps no columns: the answer lacks rows of it.
    pub is_incomplete: bool,
}

impl Allowed<'_> {
    /// Writes the bitmap of a list's places whose rows are allowed; false when all are.
    fn places(&mut self, view: &ListView<'_>, list: u32, bytes: &Bytes, words: &mut Vec<u64>) -> Result<bool> {
        let rows = view.rows();
        if self.rows.is_none() && self.filter.is_none() {
            return Ok(false);
        }
        words.clear();
        match &mut self.filter {
            None => words.resize(rows.div_ceil(64), u64::MAX),
            Some(filter) => match filter.rows(list, rows, |column| bytes.slice_ref(view.include(column)))? {
                Some(passing) => {
                    self.tested += rows as u64;
                    self.passed += passing.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
                    words.extend(passing);
                }
                None => {
                    self.is_incomplete = true;
                    words.resize(rows.div_ceil(64), 0);
                }
            },
        }
        if let Some(allowed) = self.rows {
            for place in 0..rows {
                let is_in = allowed.contains(view.id(place) as i64);
                words[place / 64] &= !(u64::from(!is_in) << (place % 64));
            }
        }
        Ok(true)
    }
}

/// The nearest rows by row id, nearest first, of those that are allowed. Adds to `statistics`.
///
/// # Errors
/// `InvalidParameter` for what does not fit the index; the device's; `Corruption`.
pub async fn search<D: Device>(
    source: &Source<'_, D>,
    query: Elements<'_>,
    options: IvfSearchOptions,
    allowed: &mut Allowed<'_>,
    statistics: &mut proto::SearchStatistics,
) -> Result<Vec<Neighbor>> {
    let mut turn = Turn::default();
    let mut search = IvfSearch::new(source.index, query, options).map_err(invalid)?;
    let reads: Vec<_> = search.reads().collect();
    let address = |(list, entry): &(u32, heliostat_vector::ivf::ListEntry)| ChunkAddress {
        key: ChunkKey { segment_id: source.object, row_group: *list, column: LISTS_COLUMN },
        offset: source.payload_offset + entry.offset,
        length: entry.bytes,
        crc32c: entry.crc32c,
    };
    let addresses: Vec<ChunkAddress> = reads.iter().map(address).collect();
    turn.yield_if_due().await;
    let fetched = source.cache.fetch(&addresses, source.bypass_cache).await?;
    statistics.device_bytes += fetched.bytes_read_device;
    statistics.device_reads += fetched.reads;
    turn.restart();
    let mut words = Vec::new();
    for ((list, _), bytes) in reads.iter().zip(&fetched.chunks) {
        let view = ListView::new(source.index, *list, bytes).map_err(internal)?;
        let is_filtered = allowed.places(&view, *list, bytes, &mut words)?;
        search.scan(*list, &view, is_filtered.then_some(&words[..])).map_err(internal)?;
        turn.yield_if_due().await;
    }
    let candidates = search.candidates();
    let ids: Vec<u64> = candidates.iter().map(|candidate| candidate.row).collect();
    let vectors = read_vectors(source, &candidates, statistics).await?;
    search.compare(&ids, &source.column.rows(&vectors)?).map_err(internal)?;
    let (found, done) = search.finish();
    statistics.lists_probed += done.lists_probed as u64;
    statistics.codes_scanned += done.codes_scanned as u64;
    statistics.codes_refined += done.codes_refined as u64;
    statistics.candidates_reranked += done.reranked as u64;
    Ok(found)
}

/// A read of whole pages, and the candidates whose vectors are in it: their number and first byte.
struct PageRead {
    offset: u64,
    end: u64,
    vectors: Vec<(usize, u64)>,
}

/// The candidates' vectors, one after the other.
async fn read_vectors<D: Device>(
    source: &Source<'_, D>,
    candidates: &[Candidate],
    statistics: &mut proto::SearchStatistics,
) -> Result<AlignedBytes> {
    let width = source.column.row_bytes();
    let mut vectors = AlignedBytes::zeroed(candidates.len() * width);
    let ids: Vec<i64> = candidates.iter().map(|candidate| candidate.row as i64).collect();
    let places = source.table.rowids().locate(source.table, source.cache, &ids).await?;
    let mut wanted = Vec::new();
    for (number, (place, id)) in places.into_iter().zip(&ids).enumerate() {
        // Rows that are no longer there were left out by the filter.
        let missing = || Error::new(ErrorCode::Internal, format!("the index has row {id}, the table has not"));
        let place = place.ok_or_else(missing)?;
        let (key, offset) = vector_at(source, place)?;
        match source.cache.peek(&key).filter(|_| !source.bypass_cache) {
            Some((chunk, from)) => {
                let at = (offset - from) as usize;
                let bytes = chunk.get(at..at + width).ok_or_else(missing)?;
                vectors[number * width..][..width].copy_from_slice(bytes);
                verify(source, place, candidates[number], bytes)?;
            }
            None => wanted.push((offset, number, place)),
        }
    }
    wanted.sort_unstable_by_key(|(offset, number, _)| (*offset, *number));
    let page = BLOCK_BYTES as u64;
    let mut reads: Vec<PageRead> = Vec::new();
    for (offset, number, _) in &wanted {
        let (start, end) = (offset / page * page, (offset + width as u64).next_multiple_of(page));
        match reads.last_mut().filter(|read| read.end >= start) {
            Some(read) => {
                read.end = read.end.max(end);
                read.vectors.push((*number, *offset));
            }
            None => reads.push(PageRead { offset: start, end, vectors: vec![(*number, *offset)] }),
        }
    }
    statistics.device_reads += reads.len() as u64;
    statistics.device_bytes += reads.iter().map(|read| read.end - read.offset).sum::<u64>();
    let pages = reads.iter().map(|read| source.device.read(read.offset, (read.end - read.offset) as usize));
    let pages = try_join_all(pages).await?;
    for (read, bytes) in reads.iter().zip(&pages) {
        for (number, offset) in &read.vectors {
            let at = (offset - read.offset) as usize;
            vectors[number * width..][..width].copy_from_slice(&bytes[at..at + width]);
        }
    }
    for (_, number, place) in wanted {
        verify(source, place, candidates[number], &vectors[number * width..][..width])?;
    }
    Ok(vectors)
}

/// Where the vector at a place lies: its chunk's name in the cache and the vector's first byte on the volume. Vectors are
/// the last section of a plain chunk.
fn vector_at<D>(source: &Source<'_, D>, place: Place) -> Result<(ChunkKey, u64)> {
    let Place { segment, row_group, row } = place;
    let column = source.column.index;
    let missing = || Error::new(ErrorCode::Internal, format!("no segment {segment} in the table"));
    let handle = source.table.segments.get(segment as usize).ok_or_else(missing)?;
    let (offset, length) = handle.chunk_extent(row_group as usize, column)?;
    let rows = handle.footer.row_groups.get(row_group as usize).map_or(0, |meta| meta.rows);
    let width = source.column.row_bytes() as u64;
    let before = (length as u64).checked_sub(u64::from(rows) * width).filter(|_| row < rows);
    let before = before.ok_or_else(|| handle.corruption(row_group as usize, column, "it is too short for its rows"))?;
    let key = ChunkKey { segment_id: handle.id, row_group, column: column as u32 };
    Ok((key, offset + before + u64::from(row) * width))
}

fn verify<D>(source: &Source<'_, D>, place: Place, candidate: Candidate, bytes: &[u8]) -> Result<(), StoreError> {
    let found = crc32c::crc32c(bytes);
    if found == candidate.crc32c {
        return Ok(());
    }
    let Some(handle) = source.table.segments.get(place.segment as usize) else { return Ok(()) };
    let reason =
        format!("the vector of row {} has checksum {found:#010x}, not {:#010x}", candidate.row, candidate.crc32c);
    Err(handle.corruption(place.row_group as usize, source.column.index, &reason))
}
