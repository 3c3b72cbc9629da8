//! The memory arena of one core: one anonymous mapping, cut into runs of 4 KiB pages.
//!
//! Owns the mapping and the list of free runs. [`crate::device::ring`] reads into runs, the block cache keeps them as
//! [`bytes::Bytes`]. Called on its core only; [`ArenaBuf`]s may be dropped anywhere.
//!
//! Invariants:
//! - Every page is in exactly one place: the free list, the return queue, or one live [`ArenaBuf`].
//! - Free runs never touch: neighbours are coalesced.
//! - The mapping lives until the last [`ArenaBuf`] is gone, wherever that is.
//!
//! Cost: the mapping is reserved, not touched; pages cost memory when first used (2 MiB at a time where the kernel
//! grants huge pages). An allocation is two B-tree operations, a drop one push under an uncontended mutex: the owner
//! takes the mutex only when something came back.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    ptr::NonNull,
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use hidb::aligned::{ImageMemory, LentMemory};
use verbs_shim::StableMemory;

/// The unit of allocation.
pub const PAGE_BYTES: usize = 4096;

/// A run of pages: first page and count.
type Run = (u32, u32);

/// Free runs by place and by size. Pure: no memory behind it.
#[derive(Debug, Default)]
struct FreeRuns {
    by_page: BTreeMap<u32, u32>,
    by_size: BTreeSet<(u32, u32)>,
}

impl FreeRuns {
    fn with_pages(pages: u32) -> Self {
        let mut free = FreeRuns::default();
        if pages > 0 {
            free.insert((0, pages));
        }
        free
    }

    fn insert(&mut self, (page, pages): Run) {
        self.by_page.insert(page, pages);
        self.by_size.insert((pages, page));
    }

    fn remove(&mut self, (page, pages): Run) {
        self.by_page.remove(&page);
        self.by_size.remove(&(pages, page));
    }

    /// The smallest run that fits (the lowest of those), cut to size.
    fn take(&mut self, pages: u32) -> Option<u32> {
        let (found, page) = *self.by_size.range((pages, 0)..).next()?;
        self.remove((page, found));
        if found > pages {
            self.insert((page + pages, found - pages));
        }
        Some(page)
    }

    fn give(&mut self, (mut page, mut pages): Run) {
        if let Some((&before, &length)) = self.by_page.range(..page).next_back() {
            debug_assert!(before + length <= page, "a run was freed twice");
            if before + length == page {
                self.remove((before, length));
                (page, pages) = (before, length + pages);
            }
        }
        if let Some(&length) = self.by_page.get(&(page + pages)) {
            self.remove((page + pages, length));
            pages += length;
        }
        self.insert((page, pages));
    }
}

/// The mapping and the way home for runs that were dropped.
struct Memory {
    base: NonNull<u8>,
    bytes: usize,
    returned: Mutex<Vec<Run>>,
    has_returned: AtomicBool,
    bytes_in_use: AtomicUsize,
}

// SAFETY: the mapping is plain memory; disjoint runs of it are handed out as exclusively owned `ArenaBuf`s, and the
// rest of the struct is synchronised.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped in `Arena::new` with this base and size; no `ArenaBuf` is left, since each holds an `Arc`.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok());
    }
}

/// The arena of one core. Cloning shares it.
#[derive(Clone)]
pub struct Arena {
    memory: Arc<Memory>,
    free: Rc<RefCell<FreeRuns>>,
}

impl Arena {
    /// Reserves an arena of `bytes`, rounded up to whole pages (at most 8 TiB). No page is touched yet.
    ///
    /// # Errors
    /// The kernel's, when it refuses the mapping.
    pub fn new(bytes: usize) -> std::io::Result<Self> {
        use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
        let bytes = bytes.clamp(PAGE_BYTES, 8 << 40).next_multiple_of(PAGE_BYTES);
        // SAFETY: a fresh private mapping at an address of the kernel's choice.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        // SAFETY: the range is the mapping just made. Advice only: without huge pages everything still works.
        let _ = unsafe { madvise(base, bytes, Advice::LinuxHugepage) };
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| std::io::Error::other("mmap answered a null page"))?;
        let memory = Memory {
            base,
            bytes,
            returned: Mutex::default(),
            has_returned: AtomicBool::new(false),
            bytes_in_use: AtomicUsize::new(0),
        };
        let pages = u32::try_from(bytes / PAGE_BYTES).map_err(std::io::Error::other)?;
        Ok(Arena { memory: Arc::new(memory), free: Rc::new(RefCell::new(FreeRuns::with_pages(pages))) })
    }

    /// A run of at least `length` bytes, or `None` when no free run is that long. Its contents are whatever was there
    /// before (zeroes at first): fill it before reading it.
    pub fn allocate(&self, length: usize) -> Option<ArenaBuf> {
        let pages = u32::try_from(length.max(1).div_ceil(PAGE_BYTES)).ok()?;
        let mut free = self.free.borrow_mut();
        if self.memory.has_returned.swap(false, Ordering::Acquire) {
            let returned = std::mem::take(&mut *self.memory.returned.lock().unwrap_or_else(PoisonError::into_inner));
            for run in returned {
                free.give(run);
            }
        }
        let page = free.take(pages)?;
        self.memory.bytes_in_use.fetch_add(pages as usize * PAGE_BYTES, Ordering::Relaxed);
        Some(ArenaBuf { memory: self.memory.clone(), page, pages, length: length.max(1) })
    }

    /// Size of the arena in bytes.
    pub fn bytes(&self) -> usize {
        self.memory.bytes
    }

    /// Bytes lent out.
    pub fn bytes_in_use(&self) -> usize {
        self.memory.bytes_in_use.load(Ordering::Relaxed)
    }

    /// Its memory, for registering it with a device.
    pub fn memory(&self) -> ArenaMemory {
        ArenaMemory(self.memory.clone())
    }

    /// Address of the first byte, for registering the memory with a ring.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.memory.base
    }
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Arena({} of {} bytes in use)", self.bytes_in_use(), self.bytes())
    }
}

/// The whole of an arena's memory, kept mapped: for registering it with a device.
#[derive(Clone)]
pub struct ArenaMemory(Arc<Memory>);

// SAFETY: the mapping stays where it is until the last handle on it is gone, is zeroed by the kernel, and its runs are
// handed out as `ArenaBuf`s that never overlap.
unsafe impl StableMemory for ArenaMemory {
    fn range(&self) -> (NonNull<u8>, usize) {
        (self.0.base, self.0.bytes)
    }
}

impl ArenaMemory {
    /// Whether these bytes are part of it.
    pub fn contains(&self, bytes: &[u8]) -> bool {
        let (start, at) = (self.0.base.as_ptr() as usize, bytes.as_ptr() as usize);
        at >= start && at + bytes.len() <= start + self.0.bytes
    }
}

impl ImageMemory for Arena {
    fn lend(&self, length: usize) -> Option<Box<dyn LentMemory>> {
        Some(Box::new(self.allocate(length)?))
    }
}

/// An exclusively owned run of an arena. Dropping it, on any thread, gives it back.
pub struct ArenaBuf {
    memory: Arc<Memory>,
    page: u32,
    pages: u32,
    length: usize,
}

impl ArenaBuf {
    /// Offset of the first byte from the start of the arena.
    pub(crate) fn arena_offset(&self) -> usize {
        self.page as usize * PAGE_BYTES
    }

    /// Cuts the run in two at `at`, a multiple of 4 KiB inside it; the returned one is the tail.
    ///
    /// # Panics
    /// When `at` is not a multiple of 4 KiB between the first and the last page: a defect of the caller.
    pub fn split_off(&mut self, at: usize) -> ArenaBuf {
        assert!(at.is_multiple_of(PAGE_BYTES) && at > 0 && at < self.length, "split at {at} of {}", self.length);
        let head_pages = (at / PAGE_BYTES) as u32;
        let tail = ArenaBuf {
            memory: self.memory.clone(),
            page: self.page + head_pages,
            pages: self.pages - head_pages,
            length: self.length - at,
        };
        self.pages = head_pages;
        self.length = at;
        tail
    }

    /// The run as immutable bytes, given back when the last clone is dropped.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl std::ops::Deref for ArenaBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the run is inside the live mapping (which starts zeroed, so is initialised) and owned by `self`.
        unsafe { std::slice::from_raw_parts(self.memory.base.as_ptr().add(self.arena_offset()), self.length) }
    }
}

impl std::ops::DerefMut for ArenaBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; runs are disjoint and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.memory.base.as_ptr().add(self.arena_offset()), self.length) }
    }
}

impl AsRef<[u8]> for ArenaBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for ArenaBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl Drop for ArenaBuf {
    fn drop(&mut self) {
        self.memory.bytes_in_use.fetch_sub(self.pages as usize * PAGE_BYTES, Ordering::Relaxed);
        self.memory.returned.lock().unwrap_or_else(PoisonError::into_inner).push((self.page, self.pages));
        self.memory.has_returned.store(true, Ordering::Release);
    }
}

impl std::fmt::Debug for ArenaBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ArenaBuf({} bytes at page {})", self.length, self.page)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_never_overlap_and_everything_comes_back(steps in prop::collection::vec((0usize..20_000, 0usize..8, any::<bool>()), 1..200)) {
            let arena = Arena::new(64 * PAGE_BYTES).unwrap();
            let mut live: Vec<(ArenaBuf, u8)> = Vec::new();
            for (step, (length, victim, free)) in steps.into_iter().enumerate() {
                if free && !live.is_empty() {
                    let victim = victim % live.len();
                    let (buffer, mark) = live.swap_remove(victim);
                    prop_assert!(buffer.iter().all(|b| *b == mark));
                } else if let Some(mut buffer) = arena.allocate(length) {
                    prop_assert_eq!(buffer.as_ptr() as usize % PAGE_BYTES, 0);
                    let mark = step as u8;
                    buffer.fill(mark);
                    live.push((buffer, mark));
                }
                let in_use: usize = live.iter().map(|(b, _)| b.len().next_multiple_of(PAGE_BYTES)).sum();
                prop_assert_eq!(arena.bytes_in_use(), in_use);
            }
            for (buffer, mark) in &live {
                prop_assert!(buffer.iter().all(|b| b == mark));
            }
            drop(live);
            prop_assert!(arena.allocate(64 * PAGE_BYTES).is_some(), "free runs were not coalesced");
        }
    }

    #[test]
    fn bytes_dropped_on_another_thread_return_to_their_arena() {
        let arena = Arena::new(4 * PAGE_BYTES).unwrap();
        let mut buffer = arena.allocate(4 * PAGE_BYTES).unwrap();
        buffer.fill(3);
        let bytes = buffer.into_bytes();
        assert!(arena.allocate(1).is_none());
        let slice = bytes.slice(100..200);
        drop(bytes);
        std::thread::spawn(move || assert!(slice.iter().all(|b| *b == 3))).join().unwrap();
        assert!(arena.allocate(4 * PAGE_BYTES).is_some());
    }

    #[test]
    fn memory_outlives_its_arena() {
        let arena = Arena::new(PAGE_BYTES).unwrap();
        let mut buffer = arena.allocate(10).unwrap();
        buffer.fill(5);
        let bytes = buffer.into_bytes();
        drop(arena);
        assert_eq!(&bytes[..], &[5; 10]);
    }

    #[test]
    fn a_split_run_comes_back_in_parts() {
        let arena = Arena::new(4 * PAGE_BYTES).unwrap();
        let mut head = arena.allocate(4 * PAGE_BYTES).unwrap();
        let tail = head.split_off(PAGE_BYTES);
        drop(head);
        assert!(arena.allocate(2 * PAGE_BYTES).is_none());
        drop(tail);
        assert!(arena.allocate(4 * PAGE_BYTES).is_some());
    }
}
