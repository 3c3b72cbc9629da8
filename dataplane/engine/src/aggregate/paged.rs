//! Vectors that grow without moving what they hold.
//!
//! Owns [`Paged`]. A `Vec` of a million states that doubles copies them all within one step of a core; this one
//! allocates the next page. Used for keys and states of groups.
//!
//! Invariant: every page but the last holds exactly [`PAGE_ITEMS`] items; only the first page ever moves.
//!
//! Cost: one more load than a `Vec`, from a list of pages that stays in the nearest cache (a million groups have
//! 244 pages).

use std::ops::{Index, IndexMut};

const PAGE_BITS: u32 = 12;
/// Items of a page.
pub(crate) const PAGE_ITEMS: usize = 1 << PAGE_BITS;

/// A vector in pages.
#[derive(Clone, Debug)]
pub(crate) struct Paged<T> {
    pages: Vec<Vec<T>>,
    len: usize,
}

impl<T> Default for Paged<T> {
    fn default() -> Self {
        Paged { pages: Vec::new(), len: 0 }
    }
}

impl<T: Clone> Paged<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends copies of `value` until there are `len` items.
    pub fn resize(&mut self, len: usize, value: T) {
        while self.len < len {
            let page = self.open_page();
            let take = (len - self.len).min(PAGE_ITEMS - self.pages[page].len());
            let items = self.pages[page].len() + take;
            self.pages[page].resize(items, value.clone());
            self.len += take;
        }
    }

    #[inline]
    pub fn push(&mut self, value: T) {
        let page = self.open_page();
        self.pages[page].push(value);
        self.len += 1;
    }

    /// The page that the next item goes to.
    #[inline]
    fn open_page(&mut self) -> usize {
        let page = self.len >> PAGE_BITS;
        if page == self.pages.len() {
            // The first page grows by doubling, because most questions have few groups.
            self.pages.push(Vec::with_capacity(if page == 0 { 0 } else { PAGE_ITEMS }));
        }
        page
    }

    /// The first [`PAGE_ITEMS`] items as one slice.
    pub fn front_mut(&mut self) -> &mut [T] {
        self.pages.first_mut().map_or(&mut [], Vec::as_mut_slice)
    }

    /// All items, a slice per page.
    pub fn pages_mut(&mut self) -> impl Iterator<Item = &mut [T]> {
        self.pages.iter_mut().map(Vec::as_mut_slice)
    }

    /// All items in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.pages.iter().flatten()
    }

    /// The items `first..first + count`, which must not be beyond the end.
    pub fn range(&self, first: usize, count: usize) -> impl Iterator<Item = &T> {
        let (page, start) = (first >> PAGE_BITS, first & (PAGE_ITEMS - 1));
        self.pages.iter().skip(page).flatten().skip(start).take(count)
    }

    pub fn memory_bytes(&self) -> usize {
        let items = match self.pages.as_slice() {
            [] => 0,
            [only] => only.capacity(),
            [first, rest @ ..] => first.capacity() + rest.len() * PAGE_ITEMS,
        };
        items * size_of::<T>() + self.pages.capacity() * size_of::<Vec<T>>()
    }
}

impl<T> Index<usize> for Paged<T> {
    type Output = T;

    #[inline]
    fn index(&self, index: usize) -> &T {
        &self.pages[index >> PAGE_BITS][index & (PAGE_ITEMS - 1)]
    }
}

impl<T> IndexMut<usize> for Paged<T> {
    #[inline]
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut self.pages[index >> PAGE_BITS][index & (PAGE_ITEMS - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_stay_where_they_are_put_whatever_the_growth() {
        let mut paged = Paged::default();
        let mut expected = Vec::new();
        for (round, length) in [1, 3, 4000, 4096, 4097, 9000, 30_000].into_iter().enumerate() {
            paged.resize(length, round);
            expected.resize(length, round);
            paged.push(99);
            expected.push(99);
            assert!(paged.iter().eq(&expected) && paged.len() == expected.len());
            assert_eq!((paged[length], paged[length - 1]), (expected[length], expected[length - 1]));
            let first = length / 2;
            assert!(paged.range(first, length - first).eq(&expected[first..length]));
            assert!(paged.memory_bytes() >= expected.len() * 8 && paged.memory_bytes() < expected.len() * 16 + 40_000);
        }
        paged[5000] = 7;
        assert_eq!(paged.iter().position(|item| *item == 7), Some(5000));
    }
}
