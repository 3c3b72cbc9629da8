//! The block cache of one core: column chunks (and membership filters) as they are on the device, verified once, shared as [`Bytes`].
//!
//! Owns the cached chunks and the reads in flight. Called by the scan driver on the core; chunks go to the engine as
//! `Bytes`, which keep their arena run alive after eviction.
//!
//! Invariants:
//! - A chunk in the cache has passed its CRC32C; a damaged one is an error that names it, and is never cached.
//! - At most one read of a chunk is in flight; a second request waits for the first. When all who wait are dropped,
//!   the read is forgotten and the next request starts it again.
//! - Cached bytes never exceed the budget. Eviction is CLOCK with new chunks unmarked: a chunk that a scan touched
//!   once leaves before one that was asked for again.
//!
//! Adjacent chunks are read as one: gaps of up to [`GAP_BYTES_MAX`] are read and thrown away when that saves a
//! request, up to [`READ_BYTES_MAX`] together. At 1 GB/s a gap of 128 KiB costs what a request costs (0.1 ms).

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::Future,
    pin::Pin,
    rc::Rc,
};

use bytes::Bytes;
use futures::{
    FutureExt,
    future::{Shared, WeakShared},
};

use crate::device::{BLOCK_BYTES, Device, DeviceError, Result};

/// Unwanted bytes read for the sake of fewer reads.
pub const GAP_BYTES_MAX: u64 = 128 << 10;
/// The longest coalesced read.
pub const READ_BYTES_MAX: u64 = 8 << 20;

/// Which chunk of which segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkKey {
    /// The segment's id; never reused on a volume.
    pub segment_id: u64,
    /// Row group within the segment.
    pub row_group: u32,
    /// Column within the row group: the table's columns, `_rowid`, then the columns' membership filters.
    pub column: u32,
}

/// A chunk to get: its name, its place on the device and its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkAddress {
    /// Its name in the cache.
    pub key: ChunkKey,
    /// Byte offset on the device, 4 KiB aligned.
    pub offset: u64,
    /// Its bytes; the rest of its last 4 KiB block is padding.
    pub length: u64,
    /// CRC32C of its bytes.
    pub crc32c: u32,
}

impl ChunkAddress {
    fn padded(&self) -> u64 {
        self.length.max(1).next_multiple_of(BLOCK_BYTES as u64)
    }

    fn end(&self) -> u64 {
        self.offset + self.padded()
    }
}

/// Chunks, and how many bytes the device read for them.
#[derive(Debug, Default)]
pub struct Fetched {
    /// The chunks, in the order asked for.
    pub chunks: Vec<Bytes>,
    /// Bytes read from the device by this call, with padding and gaps; reads that others had started do not count.
    pub bytes_read_device: u64,
    /// Reads that took, of one or several chunks each.
    pub reads: u64,
}

/// What the cache counted since the core started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounters {
    /// Chunks answered from memory.
    pub hits: u64,
    /// Chunks answered by a read that another request had started.
    pub joined: u64,
    /// Chunks read from the device.
    pub misses: u64,
    /// Chunks evicted.
    pub evicted: u64,
    /// Bytes read from the device.
    pub bytes_read_device: u64,
    /// Bytes cached now.
    pub bytes_cached: u64,
}

/// A coalesced read: the parts in order.
type Read = Shared<Pin<Box<dyn Future<Output = Result<Vec<Bytes>>>>>>;
type WeakRead = WeakShared<Pin<Box<dyn Future<Output = Result<Vec<Bytes>>>>>>;

struct Entry {
    key: ChunkKey,
    bytes: Bytes,
    offset: u64,
    charge: u64,
    is_marked: Cell<bool>,
}

#[derive(Default)]
struct Chunks {
    places: HashMap<ChunkKey, usize>,
    ring: Vec<Option<Entry>>,
    vacant: Vec<usize>,
    hand: usize,
    bytes: u64,
    in_flight: HashMap<ChunkKey, (WeakRead, usize)>,
    counters: CacheCounters,
}

struct Inner<D> {
    device: D,
    bytes_max: u64,
    chunks: RefCell<Chunks>,
}

/// The block cache of one core. Cloning shares it.
pub struct BlockCache<D>(Rc<Inner<D>>);

impl<D> Clone for BlockCache<D> {
    fn clone(&self) -> Self {
        BlockCache(self.0.clone())
    }
}

impl<D: Device> BlockCache<D> {
    /// An empty cache of at most `bytes_max` bytes over `device`.
    pub fn new(device: D, bytes_max: usize) -> Self {
        BlockCache(Rc::new(Inner { device, bytes_max: bytes_max as u64, chunks: RefCell::default() }))
    }

    /// The chunks of `wanted`, from memory or from the device. Reads start when the future is first polled, all at
    /// once. With `bypass` the cache neither answers nor keeps them.
    ///
    /// # Errors
    /// Those of [`Device::read`]; [`DeviceError::Corruption`] naming segment, row group and column.
    pub async fn fetch(&self, wanted: &[ChunkAddress], bypass: bool) -> Result<Fetched> {
        let mut fetched = Fetched { chunks: vec![Bytes::new(); wanted.len()], ..Default::default() };
        let mut missing = Vec::new();
        let mut joined: Vec<(usize, Read, usize)> = Vec::new();
        {
            let chunks = self.0.chunks.borrow();
            for (index, address) in wanted.iter().enumerate() {
                if bypass {
                    missing.push(index);
                } else if let Some(bytes) = chunks.get(&address.key) {
                    fetched.chunks[index] = bytes;
                } else if let Some((read, part)) = chunks.join(&address.key) {
                    joined.push((index, read, part));
                } else {
                    missing.push(index);
                }
            }
        }
        missing.sort_unstable_by_key(|index| wanted[*index].offset);
        let mut reads = Vec::new();
        for group in coalesce(wanted, &missing) {
            let addresses: Vec<ChunkAddress> = group.iter().map(|index| wanted[*index]).collect();
            let (first, last) = (addresses[0], addresses[addresses.len() - 1]);
            fetched.bytes_read_device += last.end() - first.offset;
            fetched.reads += 1;
            let cache = self.clone();
            let keys: Vec<ChunkKey> = addresses.iter().map(|address| address.key).collect();
            let future: Pin<Box<dyn Future<Output = _>>> = Box::pin(async move { cache.read(addresses, bypass).await });
            let read = future.shared();
            if !bypass && let Some(weak) = read.downgrade() {
                let mut chunks = self.0.chunks.borrow_mut();
                for (part, key) in keys.into_iter().enumerate() {
                    chunks.in_flight.insert(key, (weak.clone(), part));
                }
            }
            joined.extend(group.iter().enumerate().map(|(part, index)| (*index, read.clone(), part)));
            reads.push(read);
        }
        {
            let mut chunks = self.0.chunks.borrow_mut();
            chunks.counters.misses += missing.len() as u64;
            chunks.counters.joined += (joined.len() - missing.len()) as u64;
            chunks.counters.hits += (wanted.len() - joined.len()) as u64;
            chunks.counters.bytes_read_device += fetched.bytes_read_device;
        }
        // All at once: polling the first read to its end would start the others only then.
        futures::future::join_all(reads).await;
        for (index, read, part) in joined {
            let parts = read.await?;
            fetched.chunks[index] = parts.get(part).cloned().unwrap_or_default();
        }
        Ok(fetched)
    }

    /// A chunk, if it is cached, and its first byte on the device.
    pub fn peek(&self, key: &ChunkKey) -> Option<(Bytes, u64)> {
        let chunks = self.0.chunks.borrow();
        let entry = chunks.ring[*chunks.places.get(key)?].as_ref()?;
        entry.is_marked.set(true);
        Some((entry.bytes.clone(), entry.offset))
    }

    /// Reads adjacent chunks as one, verifies and keeps them.
    async fn read(&self, addresses: Vec<ChunkAddress>, bypass: bool) -> Result<Vec<Bytes>> {
        let keys = if bypass { Vec::new() } else { addresses.iter().map(|address| address.key).collect() };
        let _in_flight = InFlight { cache: self, keys };
        // Chunks and the gaps between them, in order.
        let mut lengths = Vec::with_capacity(addresses.len() * 2);
        let mut parts = Vec::with_capacity(addresses.len());
        let start = addresses.first().map_or(0, |address| address.offset);
        let mut at = start;
        for address in &addresses {
            if address.offset > at {
                lengths.push((address.offset - at) as usize);
            }
            parts.push(lengths.len());
            lengths.push(address.padded() as usize);
            at = address.end();
        }
        let read = self.read_making_room(start, &lengths, (at - start).min(self.0.bytes_max)).await;
        let verified = match read {
            Ok(ranges) => self.verify_all(&addresses, &parts, &ranges).await,
            Err(error) => Err(error),
        };
        if !bypass {
            let mut chunks = self.0.chunks.borrow_mut();
            for (index, address) in addresses.iter().enumerate() {
                if let Ok(verified) = &verified {
                    chunks.insert(address, verified[index].clone(), self.0.bytes_max);
                }
            }
        }
        verified
    }

    /// The chunks among the ranges that were read, verified; lets others run after each, since a checksum of a long
    /// chunk takes up to 100 us.
    async fn verify_all(&self, addresses: &[ChunkAddress], parts: &[usize], ranges: &[Bytes]) -> Result<Vec<Bytes>> {
        let mut verified = Vec::with_capacity(addresses.len());
        for (part, address) in parts.iter().zip(addresses) {
            let bytes = ranges.get(*part).map(|range| range.slice(..address.length as usize)).unwrap_or_default();
            self.verify(address, &bytes)?;
            verified.push(bytes);
            if address.length >= 64 << 10 {
                futures_lite::future::yield_now().await;
            }
        }
        Ok(verified)
    }

    /// Reads; when the arena is full, evicts at least as much as is wanted, doubling, and tries again.
    async fn read_making_room(&self, offset: u64, lengths: &[usize], wanted: u64) -> Result<Vec<Bytes>> {
        let mut room = wanted;
        loop {
            match self.0.device.read_parts(offset, lengths).await {
                Err(DeviceError::ArenaFull { .. }) if self.0.chunks.borrow_mut().evict(room) => {
                    room = room.saturating_mul(2);
                }
                result => return result,
            }
        }
    }

    fn verify(&self, address: &ChunkAddress, bytes: &[u8]) -> Result<()> {
        let found = crc32c::crc32c(bytes);
        if found == address.crc32c {
            return Ok(());
        }
        let ChunkKey { segment_id, row_group, column } = address.key;
        Err(DeviceError::Corruption {
            path: self.0.device.path().to_owned(),
            what: format!("segment {segment_id}, row group {row_group}, column {column}"),
            offset: address.offset,
            length: address.length,
            expected: address.crc32c,
            found,
        })
    }

    /// What was counted so far.
    pub fn counters(&self) -> CacheCounters {
        let chunks = self.0.chunks.borrow();
        CacheCounters { bytes_cached: chunks.bytes, ..chunks.counters }
    }
}

/// Takes keys out of the reads in flight when their read ends, also when it is dropped.
struct InFlight<'a, D: Device> {
    cache: &'a BlockCache<D>,
    keys: Vec<ChunkKey>,
}

impl<D: Device> Drop for InFlight<'_, D> {
    fn drop(&mut self) {
        let mut chunks = self.cache.0.chunks.borrow_mut();
        for key in &self.keys {
            chunks.in_flight.remove(key);
        }
    }
}

/// Groups the sorted `missing` into reads: neighbours with small gaps go together.
fn coalesce(wanted: &[ChunkAddress], missing: &[usize]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for &index in missing {
        let address = &wanted[index];
        let fits = groups.last().is_some_and(|group| {
            let (first, last) = (&wanted[group[0]], &wanted[group[group.len() - 1]]);
            address.offset.checked_sub(last.end()).is_some_and(|gap| gap <= GAP_BYTES_MAX)
                && address.end() - first.offset <= READ_BYTES_MAX
        });
        match groups.last_mut() {
            Some(group) if fits => group.push(index),
            _ => groups.push(vec![index]),
        }
    }
    groups
}

impl Chunks {
    fn get(&self, key: &ChunkKey) -> Option<Bytes> {
        let entry = self.ring[*self.places.get(key)?].as_ref()?;
        entry.is_marked.set(true);
        Some(entry.bytes.clone())
    }

    fn join(&self, key: &ChunkKey) -> Option<(Read, usize)> {
        let (read, part) = self.in_flight.get(key)?;
        Some((read.upgrade()?, *part))
    }

    fn insert(&mut self, address: &ChunkAddress, bytes: Bytes, bytes_max: u64) {
        let charge = address.padded();
        if charge > bytes_max || self.places.contains_key(&address.key) {
            return;
        }
        let over = (self.bytes + charge).saturating_sub(bytes_max);
        if over > 0 {
            self.evict(over);
        }
        let entry =
            Some(Entry { key: address.key, bytes, offset: address.offset, charge, is_marked: Cell::new(false) });
        let place = match self.vacant.pop() {
            Some(place) => {
                self.ring[place] = entry;
                place
            }
            None => {
                self.ring.push(entry);
                self.ring.len() - 1
            }
        };
        self.places.insert(address.key, place);
        self.bytes += charge;
    }

    /// Evicts until `bytes` are free; false when nothing was left to evict.
    fn evict(&mut self, bytes: u64) -> bool {
        let mut freed = 0;
        while freed < bytes && !self.places.is_empty() {
            self.hand = (self.hand + 1) % self.ring.len();
            let Some(entry) = &self.ring[self.hand] else { continue };
            if entry.is_marked.replace(false) {
                continue;
            }
            freed += entry.charge;
            self.counters.evicted += 1;
            self.remove(self.hand);
        }
        freed > 0
    }

    fn remove(&mut self, place: usize) {
        if let Some(entry) = self.ring[place].take() {
            self.places.remove(&entry.key);
            self.bytes -= entry.charge;
            self.vacant.push(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use futures_lite::future::block_on;

    use super::*;
    use crate::device::AlignedBuf;

    /// A device of generated bytes that counts reads and can hold them back.
    #[derive(Default)]
    struct Generated {
        reads: RefCell<Vec<(u64, usize)>>,
        yields: usize,
    }

    fn generated(offset: u64, length: usize) -> Vec<u8> {
        (offset..offset + length as u64).map(|at| (at / 7 % 251) as u8).collect()
    }

    impl Device for Rc<Generated> {
        async fn read(&self, offset: u64, length: usize) -> Result<Bytes> {
            self.reads.borrow_mut().push((offset, length));
            for _ in 0..self.yields {
                futures_lite::future::yield_now().await;
            }
            Ok(generated(offset, length).into())
        }
        async fn write(&self, _: u64, _: AlignedBuf) -> Result<()> {
            Ok(())
        }
        async fn flush(&self) -> Result<()> {
            Ok(())
        }
        fn size_bytes(&self) -> u64 {
            u64::MAX
        }
        fn path(&self) -> &Path {
            Path::new("/dev/generated")
        }
    }

    fn chunk(column: u32, block: u64, length: u64) -> ChunkAddress {
        let offset = block * 4096;
        let crc32c = crc32c::crc32c(&generated(offset, length as usize));
        ChunkAddress { key: ChunkKey { segment_id: 1, row_group: 0, column }, offset, length, crc32c }
    }

    #[test]
    fn neighbours_are_read_as_one_and_then_come_from_memory() {
        let device = Rc::new(Generated::default());
        let cache = BlockCache::new(device.clone(), 1 << 20);
        // Out of order, with a gap of one block, and one far away.
        let wanted = [chunk(2, 4, 5000), chunk(0, 1, 4096), chunk(1, 2, 100), chunk(9, 1000, 10)];
        let fetched = block_on(cache.fetch(&wanted, false)).unwrap();
        for (address, bytes) in wanted.iter().zip(&fetched.chunks) {
            assert_eq!(bytes[..], generated(address.offset, address.length as usize));
        }
        assert_eq!(*device.reads.borrow(), [(4096, 5 * 4096), (1000 * 4096, 4096)]);
        assert_eq!(fetched.bytes_read_device, 6 * 4096);
        let again = block_on(cache.fetch(&wanted, false)).unwrap();
        assert_eq!((again.chunks, again.bytes_read_device), (fetched.chunks, 0));
        let counters = cache.counters();
        assert_eq!((counters.hits, counters.misses, counters.bytes_cached), (4, 4, 5 * 4096));
        assert_eq!(block_on(cache.fetch(&wanted, true)).unwrap().bytes_read_device, 6 * 4096);
    }

    #[test]
    fn two_requests_for_a_chunk_make_one_read() {
        let device = Rc::new(Generated { yields: 3, ..Generated::default() });
        let cache = BlockCache::new(device.clone(), 1 << 20);
        let (one, both) = ([chunk(0, 0, 4096)], [chunk(0, 0, 4096), chunk(5, 500, 4096)]);
        let (a, b) = block_on(futures::future::join(cache.fetch(&one, false), cache.fetch(&both, false)));
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!(a.chunks[0], b.chunks[0]);
        assert_eq!((a.bytes_read_device, b.bytes_read_device, device.reads.borrow().len()), (4096, 4096, 2));
        assert_eq!(cache.counters().joined, 1);
    }

    #[test]
    fn a_dropped_request_neither_stops_those_who_joined_nor_blocks_the_next() {
        let device = Rc::new(Generated { yields: 3, ..Generated::default() });
        let cache = BlockCache::new(device.clone(), 1 << 20);
        let wanted = [chunk(0, 0, 4096)];
        block_on(async {
            let mut first = Box::pin(cache.fetch(&wanted, false));
            assert!(futures_lite::future::poll_once(&mut first).await.is_none());
            let mut second = Box::pin(cache.fetch(&wanted, false));
            assert!(futures_lite::future::poll_once(&mut second).await.is_none());
            drop(first);
            assert_eq!(second.await.unwrap().chunks.len(), 1);
            assert_eq!(device.reads.borrow().len(), 1);
            let other = [chunk(1, 9, 4096)];
            let mut lonely = Box::pin(cache.fetch(&other, false));
            assert!(futures_lite::future::poll_once(&mut lonely).await.is_none());
            drop(lonely);
            assert!(cache.0.chunks.borrow().in_flight.is_empty());
            assert_eq!(cache.fetch(&other, false).await.unwrap().bytes_read_device, 4096);
        });
    }

    #[test]
    fn the_budget_holds_and_chunks_asked_for_again_stay() {
        let device = Rc::new(Generated::default());
        let cache = BlockCache::new(device.clone(), 10 * 4096);
        let favourite = [chunk(0, 0, 4096)];
        block_on(async {
            cache.fetch(&favourite, false).await.unwrap();
            for column in 1..100 {
                cache.fetch(&favourite, false).await.unwrap();
                cache.fetch(&[chunk(column, column as u64 * 100, 4096)], false).await.unwrap();
                assert!(cache.counters().bytes_cached <= 10 * 4096);
            }
            assert_eq!(cache.fetch(&favourite, false).await.unwrap().bytes_read_device, 0);
        });
        assert_eq!(device.reads.borrow().iter().filter(|(offset, _)| *offset == 0).count(), 1);
    }

    #[test]
    fn a_damaged_chunk_is_named_and_not_cached() {
        let cache = BlockCache::new(Rc::new(Generated::default()), 1 << 20);
        let mut damaged = chunk(3, 8, 9000);
        damaged.crc32c ^= 1;
        let error = block_on(cache.fetch(&[damaged], false)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("segment 1, row group 0, column 3") && text.contains("/dev/generated"), "{text}");
        assert!(matches!(error, DeviceError::Corruption { offset: 32768, length: 9000, .. }));
        assert_eq!(cache.counters().bytes_cached, 0);
    }
}
