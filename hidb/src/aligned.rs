//! Byte buffers that begin on a 64-byte boundary.
//!
//! Owns [`AlignedBytes`]: what result images are written into and what frame payloads are received
//! into, so that Arrow arrays can borrow them in place. The memory is the heap's, or lent by an [`ImageMemory`]:
//! a cell lends memory that is registered for RDMA, so that an image is written where it leaves from.
//!
//! Invariant: the first byte's address is a multiple of [`ALIGNMENT`], also after conversion to [`Bytes`].

use std::fmt::Debug;
use std::ops::{Deref, DerefMut};

use arrow_buffer::{ArrowNativeType, MutableBuffer};
use bytes::Bytes;

/// Alignment of every buffer here and of every region of a result image, in bytes.
pub const ALIGNMENT: usize = 64;

// Arrow's own allocations are what carries the promise.
const _: () = assert!(arrow_buffer::alloc::ALIGNMENT.is_multiple_of(ALIGNMENT));

/// `length` rounded up to a multiple of [`ALIGNMENT`].
pub const fn align_up(length: usize) -> usize {
    length.next_multiple_of(ALIGNMENT)
}

/// A piece of memory lent by an [`ImageMemory`]; goes back when dropped, wherever that is.
pub trait LentMemory: AsRef<[u8]> + AsMut<[u8]> + Debug + Send + Sync + 'static {}

impl<T: AsRef<[u8]> + AsMut<[u8]> + Debug + Send + Sync + 'static> LentMemory for T {}

/// Where memory for images can be had.
pub trait ImageMemory: Debug {
    /// At least `length` bytes, whatever is in them, that begin on a 64-byte boundary; `None` when there are none.
    fn lend(&self, length: usize) -> Option<Box<dyn LentMemory>>;
}

/// Owned bytes that begin on a 64-byte boundary.
#[derive(Debug)]
pub struct AlignedBytes(Memory);

#[derive(Debug)]
enum Memory {
    Heap(MutableBuffer),
    Lent { memory: Box<dyn LentMemory>, length: usize },
}

impl AlignedBytes {
    /// `length` zero bytes.
    pub fn zeroed(length: usize) -> Self {
        AlignedBytes(Memory::Heap(MutableBuffer::from_len_zeroed(length)))
    }

    /// `length` zero bytes in memory lent by `from`, or on the heap when it has none.
    pub fn zeroed_in(from: &dyn ImageMemory, length: usize) -> Self {
        let suits = |bytes: &[u8]| bytes.len() >= length && (bytes.as_ptr() as usize).is_multiple_of(ALIGNMENT);
        match from.lend(length) {
            Some(mut memory) if suits((*memory).as_ref()) => {
                // What was there before is somebody else's.
                (*memory).as_mut()[..length].fill(0);
                AlignedBytes(Memory::Lent { memory, length })
            }
            _ => AlignedBytes::zeroed(length),
        }
    }

    /// A copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = MutableBuffer::new(bytes.len());
        buffer.extend_from_slice(bytes);
        AlignedBytes(Memory::Heap(buffer))
    }

    /// The whole buffer as values of `T`; its length must be a multiple of `T`'s.
    pub fn typed_mut<T: ArrowNativeType>(&mut self) -> &mut [T] {
        let bytes: &mut [u8] = self;
        // SAFETY: Arrow's native types are plain numbers, for which every bit pattern is a value and which have no
        // padding; `align_to_mut` itself sees to alignment.
        let (head, typed, tail) = unsafe { bytes.align_to_mut::<T>() };
        assert!(head.is_empty() && tail.is_empty(), "not a whole number of values");
        typed
    }

    /// The first `at` bytes as values of `T`, and the bytes after them. `at` must be a multiple of
    /// [`ALIGNMENT`].
    pub fn split_typed_mut<T: ArrowNativeType>(&mut self, at: usize) -> (&mut [T], &mut [u8]) {
        let (before, after) = self.split_at_mut(at);
        // SAFETY: as in `typed_mut`.
        let (head, typed, tail) = unsafe { before.align_to_mut::<T>() };
        assert!(head.is_empty() && tail.is_empty(), "{at} is not a multiple of {ALIGNMENT}");
        (typed, after)
    }

    /// Keeps the first `length` bytes.
    pub fn truncate(&mut self, length: usize) {
        match &mut self.0 {
            Memory::Heap(buffer) => buffer.truncate(length),
            Memory::Lent { length: kept, .. } => *kept = length.min(*kept),
        }
    }

    /// Shares the bytes without copying them.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Memory::Heap(buffer) => buffer.as_slice(),
            Memory::Lent { memory, length } => &(**memory).as_ref()[..*length],
        }
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Memory::Heap(buffer) => buffer.as_slice_mut(),
            Memory::Lent { memory, length } => &mut (**memory).as_mut()[..*length],
        }
    }
}

impl AsRef<[u8]> for AlignedBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<AlignedBytes> for Bytes {
    fn from(bytes: AlignedBytes) -> Bytes {
        bytes.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_aligned_whatever_they_become() {
        for length in [1, 63, 64, 4097] {
            let bytes = AlignedBytes::copy_of(&vec![7; length]);
            assert_eq!(bytes.as_ptr() as usize % ALIGNMENT, 0);
            let shared = bytes.into_bytes();
            assert_eq!(shared.as_ptr() as usize % ALIGNMENT, 0);
            assert_eq!(&shared[..], &vec![7; length]);
        }
        assert!(AlignedBytes::zeroed(0).into_bytes().is_empty());
    }

    /// Lends the middle of an allocation, aligned or not.
    #[derive(Debug)]
    struct Lender(usize);

    #[derive(Debug)]
    struct Piece(MutableBuffer, usize);

    impl AsRef<[u8]> for Piece {
        fn as_ref(&self) -> &[u8] {
            &self.0.as_slice()[self.1..]
        }
    }

    impl AsMut<[u8]> for Piece {
        fn as_mut(&mut self) -> &mut [u8] {
            &mut self.0.as_slice_mut()[self.1..]
        }
    }

    impl ImageMemory for Lender {
        fn lend(&self, length: usize) -> Option<Box<dyn LentMemory>> {
            let mut memory = MutableBuffer::from_len_zeroed(length + 128);
            memory.as_slice_mut().fill(9);
            (length < 1000).then(|| Box::new(Piece(memory, self.0)) as Box<dyn LentMemory>)
        }
    }

    #[test]
    fn lent_memory_is_cleared_and_memory_that_does_not_suit_is_not_used() {
        for (offset, length, lent) in [(64, 640, true), (8, 640, false), (64, 4096, false)] {
            let mut bytes = AlignedBytes::zeroed_in(&Lender(offset), length);
            assert_eq!(matches!(bytes.0, Memory::Lent { .. }), lent);
            assert!(bytes.iter().all(|byte| *byte == 0) && bytes.len() == length);
            bytes.typed_mut::<i64>()[1] = -1;
            bytes.truncate(16);
            assert_eq!(bytes.into_bytes()[..], [[0; 8], [255; 8]].concat());
        }
    }
}
