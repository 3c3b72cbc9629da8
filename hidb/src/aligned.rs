//! Byte buffers that begin on a 64-byte boundary.
//!
//! Owns [`AlignedBytes`]: what result images are written into and what frame payloads are received
//! into, so that Arrow arrays can borrow them in place.
//!
//! Invariant: the first byte's address is a multiple of [`ALIGNMENT`], also after conversion to
//! [`Bytes`] or [`Buffer`].

use std::ops::{Deref, DerefMut};

use arrow_buffer::{ArrowNativeType, Buffer, MutableBuffer};
use bytes::Bytes;

/// Alignment of every buffer here and of every region of a result image, in bytes.
pub const ALIGNMENT: usize = 64;

// Arrow's own allocations are what carries the promise.
const _: () = assert!(arrow_buffer::alloc::ALIGNMENT.is_multiple_of(ALIGNMENT));

/// `length` rounded up to a multiple of [`ALIGNMENT`].
pub const fn align_up(length: usize) -> usize {
    length.next_multiple_of(ALIGNMENT)
}

/// Owned bytes that begin on a 64-byte boundary.
#[derive(Debug)]
pub struct AlignedBytes(MutableBuffer);

impl AlignedBytes {
    /// `length` zero bytes.
    pub fn zeroed(length: usize) -> Self {
        AlignedBytes(MutableBuffer::from_len_zeroed(length))
    }

    /// A copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = MutableBuffer::new(bytes.len());
        buffer.extend_from_slice(bytes);
        AlignedBytes(buffer)
    }

    /// The whole buffer as values of `T`; its length must be a multiple of `T`'s.
    pub fn typed_mut<T: ArrowNativeType>(&mut self) -> &mut [T] {
        self.0.typed_data_mut()
    }

    /// The first `at` bytes as values of `T`, and the bytes after them. `at` must be a multiple of
    /// [`ALIGNMENT`].
    pub fn split_typed_mut<T: ArrowNativeType>(&mut self, at: usize) -> (&mut [T], &mut [u8]) {
        let (before, after) = self.0.as_slice_mut().split_at_mut(at);
        // SAFETY: Arrow's native types are plain numbers, for which every bit pattern is a value and
        // which have no padding; `align_to_mut` itself sees to alignment.
        let (head, typed, tail) = unsafe { before.align_to_mut::<T>() };
        assert!(head.is_empty() && tail.is_empty(), "{at} is not a multiple of {ALIGNMENT}");
        (typed, after)
    }

    /// Keeps the first `length` bytes.
    pub fn truncate(&mut self, length: usize) {
        self.0.truncate(length);
    }

    /// Shares the bytes without copying them.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// As an Arrow buffer, without copying.
    pub fn into_buffer(self) -> Buffer {
        self.0.into()
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.as_slice_mut()
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
}
