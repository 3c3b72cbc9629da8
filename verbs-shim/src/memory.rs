//! Registered memory: who owns which bytes, and who may touch them when.
//!
//! A [`Buffer`] is a range of registered memory that belongs to nobody else: it reads and writes like a slice, is moved
//! into a work request, and comes back with its completion. A [`RemoteBuffer`] is memory that the peer may read or write
//! at any time: it is copied in and out, and never lent as a slice without `unsafe`.
//!
//! Invariants
//! - Ranges of two buffers never overlap; splitting is the only way to get two of one.
//! - A region is deregistered, and its memory unmapped, when the last buffer of it is dropped; buffers of outstanding
//!   work requests count. Memory that the device does not let go of is leaked.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::connect::RemoteMemory;
use crate::provider::RawRegion;
use crate::verbs::{MemoryKey, Sge};

/// Memory that can be registered: it stays where it is for as long as its owner lives.
///
/// # Safety
/// `range` gives the same bytes at every call until the owner is dropped; they are mapped, readable and writable,
/// initialised, in the range of no other value, and nobody but through the buffers made of them touches them meanwhile.
/// (Of memory for [`register_arena`](crate::ProtectionDomain::register_arena) no buffers are made: who may touch which
/// part is then the program's affair, see [`Registered`].)
pub unsafe trait StableMemory: Send + Sync + 'static {
    /// First byte and length.
    fn range(&self) -> (NonNull<u8>, usize);
}

/// Pages of zeros from the operating system.
#[derive(Debug)]
pub(crate) struct Pages {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it is only an address; whoever follows it answers for that.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    pub(crate) fn new(bytes: usize) -> std::io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new private mapping at an address of the kernel's choice.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes.max(1), protection, MapFlags::PRIVATE) }?;
        let start: NonNull<u8> = NonNull::new(start.cast()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        // Registered memory and fork do not mix; only a hint, so failure is fine.
        // SAFETY: the range just mapped.
        let _ = unsafe { rustix::mm::madvise(start.as_ptr().cast(), bytes.max(1), rustix::mm::Advice::LinuxDontFork) };
        Ok(Pages { start, bytes })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and nobody refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes.max(1)) };
    }
}

// SAFETY: the mapping lives until drop; its address is given to nobody else.
unsafe impl StableMemory for Pages {
    fn range(&self) -> (NonNull<u8>, usize) {
        (self.start, self.bytes)
    }
}

/// A registration and the memory it is for, which goes only when the device has let go of it.
pub(crate) struct Region {
    raw: ManuallyDrop<RawRegion>,
    memory: ManuallyDrop<Box<dyn StableMemory>>,
}

impl Region {
    pub(crate) fn new(raw: RawRegion, memory: Box<dyn StableMemory>) -> Arc<Self> {
        Arc::new(Region { raw: ManuallyDrop::new(raw), memory: ManuallyDrop::new(memory) })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: taken once, here.
        if unsafe { ManuallyDrop::take(&mut self.raw) }.destroy() {
            // SAFETY: likewise.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
    }
}

/// The registration of an arena that the program cuts up itself, see
/// [`register_arena`](crate::ProtectionDomain::register_arena). Cheap to clone; deregistered when the last clone is
/// dropped.
#[derive(Clone)]
pub struct Registration(Arc<Region>);

impl Registration {
    pub(crate) fn new(region: Arc<Region>) -> Self {
        Registration(region)
    }

    /// The local key, for [`Sge`]s of blocks inside.
    pub fn key(&self) -> MemoryKey {
        self.0.raw.local_key()
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registration(key {:#x})", self.key().0)
    }
}

/// A range of a region: what both kinds of buffer are made of.
struct Span {
    start: NonNull<u8>,
    bytes: usize,
    region: Arc<Region>,
}

// SAFETY: the memory may be used from any thread, by one at a time, as `&` and `&mut` of the buffers see to.
unsafe impl Send for Span {}
// SAFETY: as above.
unsafe impl Sync for Span {}

impl Span {
    fn split_off(&mut self, at: usize) -> Span {
        assert!(at <= self.bytes, "split at {at} of {} bytes", self.bytes);
        // SAFETY: `at` is inside, or one past the end.
        let start = unsafe { self.start.add(at) };
        let bytes = std::mem::replace(&mut self.bytes, at) - at;
        Span { start, bytes, region: self.region.clone() }
    }

    /// Gives `other` back if it follows directly.
    fn join(&mut self, other: &Span) -> bool {
        // SAFETY: one past the end at most.
        let adjacent = Arc::ptr_eq(&self.region, &other.region) && unsafe { self.start.add(self.bytes) } == other.start;
        if adjacent {
            self.bytes += other.bytes;
        }
        adjacent
    }
}

/// Registered memory of one's own. Moved into work requests, and back with their completions.
///
/// A buffer is gone while a work request has it:
///
/// ```compile_fail,E0382
/// # fn post(queue_pair: &verbs_shim::QueuePair, mut buffer: verbs_shim::Buffer) {
/// queue_pair.post_send(verbs_shim::SendRequest::send(buffer)).unwrap();
/// buffer[0] = 1; // borrow of moved value
/// # }
/// ```
///
/// ```compile_fail,E0382
/// # fn post(queue_pair: &verbs_shim::QueuePair, buffer: verbs_shim::Buffer) {
/// queue_pair.post_receive(verbs_shim::Receive::new(buffer)).unwrap();
/// drop(buffer); // use of moved value
/// # }
/// ```
///
/// and nothing borrowed from it outlives the posting:
///
/// ```compile_fail,E0505
/// # fn post(queue_pair: &verbs_shim::QueuePair, buffer: verbs_shim::Buffer) {
/// let bytes: &[u8] = &buffer;
/// queue_pair.post_send(verbs_shim::SendRequest::send(buffer)).unwrap(); // move out while borrowed
/// assert_eq!(bytes[0], 1);
/// # }
/// ```
pub struct Buffer(Span);

impl Buffer {
    pub(crate) fn new(region: Arc<Region>, start: NonNull<u8>, bytes: usize) -> Self {
        Buffer(Span { start, bytes, region })
    }

    /// Splits in two: this keeps the first `at` bytes.
    ///
    /// # Panics
    /// If `at` exceeds the length.
    pub fn split_off(&mut self, at: usize) -> Buffer {
        Buffer(self.0.split_off(at))
    }

    /// Undoes [`Self::split_off`].
    ///
    /// # Errors
    /// `other`, if it does not follow directly in the same region.
    pub fn join(&mut self, other: Buffer) -> Result<(), Buffer> {
        if self.0.join(&other.0) { Ok(()) } else { Err(other) }
    }

    /// The local key of its region.
    #[inline]
    pub fn key(&self) -> MemoryKey {
        self.0.region.raw.local_key()
    }

    #[inline]
    fn piece(&self) -> Sge {
        Sge {
            address: self.0.start.as_ptr() as u64,
            length: self.0.bytes.min(u32::MAX as usize) as u32,
            key: self.key(),
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: initialised, mapped while the region lives, and this buffer's alone (see the invariants); the region
        // has no remote rights, and no work request holds it while we do.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr(), self.0.bytes) }
    }
}

impl DerefMut for Buffer {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`; `&mut self` makes it the only one.
        unsafe { std::slice::from_raw_parts_mut(self.0.start.as_ptr(), self.0.bytes) }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes at {:p})", self.0.bytes, self.0.start)
    }
}

/// What a work request can own. Implemented by [`Buffer`] and arrays of up to [`SGE_MAX`](crate::verbs::SGE_MAX); a
/// program with an arena of its own implements it for its blocks.
///
/// # Safety
/// The pieces stay mapped and registered for as long as the value lives, wherever it is moved; for requests that write
/// into them nobody else may refer to the bytes, for the others nobody may change them. `pieces` gives the same at every
/// call. An empty list, or pieces of no bytes, are a message of no bytes.
pub unsafe trait Registered: Send + 'static {
    /// Calls `each` for each piece, in order.
    fn pieces(&self, each: &mut impl FnMut(Sge));
}

// SAFETY: a buffer owns its bytes and keeps its region.
unsafe impl Registered for Buffer {
    #[inline]
    fn pieces(&self, each: &mut impl FnMut(Sge)) {
        each(self.piece());
    }
}

// SAFETY: as for each of them.
unsafe impl<const N: usize> Registered for [Buffer; N] {
    #[inline]
    fn pieces(&self, each: &mut impl FnMut(Sge)) {
        self.iter().for_each(|buffer| each(buffer.piece()));
    }
}

enum Atom<'a> {
    Byte(&'a AtomicU8),
    Word(&'a AtomicU64),
}

/// Memory that the peer may use while it exists: copied in and out, lent as a slice by `unsafe` only.
pub struct RemoteBuffer(Span);

impl RemoteBuffer {
    pub(crate) fn new(region: Arc<Region>, start: NonNull<u8>, bytes: usize) -> Self {
        RemoteBuffer(Span { start, bytes, region })
    }

    /// What the peer needs to use it.
    pub fn remote(&self) -> RemoteMemory {
        let key = self.0.region.raw.remote_key();
        RemoteMemory { address: self.0.start.as_ptr() as u64, length: self.0.bytes as u64, key }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.0.bytes
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.bytes == 0
    }

    fn check(&self, offset: usize, bytes: usize) {
        let fits = offset.checked_add(bytes).is_some_and(|end| end <= self.0.bytes);
        assert!(fits, "{bytes} bytes at {offset} of {} bytes of remote memory", self.0.bytes);
    }

    /// Copies bytes out. What the peer writes meanwhile may come out torn.
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        self.check(offset, into.len());
        self.atoms(offset, into.len(), |atom, at| match atom {
            Atom::Byte(byte) => into[at] = byte.load(Ordering::Relaxed),
            Atom::Word(word) => into[at..at + 8].copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes()),
        });
        std::sync::atomic::fence(Ordering::Acquire);
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn write(&self, offset: usize, from: &[u8]) {
        self.check(offset, from.len());
        std::sync::atomic::fence(Ordering::Release);
        self.atoms(offset, from.len(), |atom, at| match atom {
            Atom::Byte(byte) => byte.store(from[at], Ordering::Relaxed),
            Atom::Word(word) => {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&from[at..at + 8]);
                word.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
            }
        });
    }

    /// Goes through a range that was checked: words where they are aligned, bytes at the ends. Threads of this program
    /// may do so at the same time, and so may the device.
    fn atoms(&self, offset: usize, bytes: usize, mut each: impl FnMut(Atom<'_>, usize)) {
        // SAFETY: inside (the callers check).
        let start = unsafe { self.0.start.as_ptr().add(offset) };
        let mut at = 0;
        while at < bytes {
            // SAFETY: `at` is below `bytes`.
            let place = unsafe { start.add(at) };
            if bytes - at >= 8 && place.cast::<u64>().is_aligned() {
                // SAFETY: eight mapped, aligned bytes, touched by atomics and the device only.
                each(Atom::Word(unsafe { AtomicU64::from_ptr(place.cast()) }), at);
                at += 8;
            } else {
                // SAFETY: as above, one byte.
                each(Atom::Byte(unsafe { AtomicU8::from_ptr(place) }), at);
                at += 1;
            }
        }
    }

    /// The word at `offset`, for atomics and for flags that the peer sets. Not synchronised with atomics of a device
    /// that only promises it among its own (`IBV_ATOMIC_HCA`).
    ///
    /// # Panics
    /// If the word is not inside, or not aligned.
    pub fn word(&self, offset: usize) -> &AtomicU64 {
        self.check(offset, 8);
        // SAFETY: inside (checked).
        let word = unsafe { self.0.start.as_ptr().add(offset) }.cast::<u64>();
        assert!(word.is_aligned(), "the word at {offset} is not at a multiple of eight");
        // SAFETY: mapped, aligned, and made for concurrent access.
        unsafe { AtomicU64::from_ptr(word) }
    }

    /// Waits for nothing: reads a word that the peer wrote.
    pub fn load(&self, offset: usize) -> u64 {
        self.word(offset).load(Ordering::Acquire)
    }

    /// The bytes as they lie.
    ///
    /// # Safety
    /// The peer has promised (by a protocol above, such as a credit that was not returned) not to write to the range
    /// while the slice lives, and keeps to it; nor does this program, by [`Self::write`] or [`Self::word`].
    ///
    /// # Panics
    /// If the range is not inside.
    pub unsafe fn slice(&self, offset: usize, bytes: usize) -> &[u8] {
        self.check(offset, bytes);
        // SAFETY: inside and mapped; unchanged as the caller promises.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr().add(offset), bytes) }
    }
}

impl fmt::Debug for RemoteBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteBuffer({:?})", self.remote())
    }
}
