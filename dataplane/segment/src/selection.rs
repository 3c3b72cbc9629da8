//! Selections: which of a block's 1,024 rows are still in.
//!
//! Owns [`Selection`] and [`Rows`], the same as positions, and [`all_rows`], the bitmap of more rows than a block has.
//! Written by chunk filters, read by gathers and by the engine.

use crate::BLOCK_ROWS;

/// Which rows of a block to take.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// The first so many: all of the block.
    All(usize),
    /// These, ascending, each less than the block's rows.
    At(&'a [u16]),
}

impl Rows<'_> {
    /// How many.
    #[inline]
    pub fn len(&self) -> usize {
        match self {
            Rows::All(count) => *count,
            Rows::At(indices) => indices.len(),
        }
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A bitmap over the rows of a block; row `i` is bit `i % 64` of word `i / 64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(64))]
pub struct Selection {
    words: [u64; 16],
}

impl Default for Selection {
    fn default() -> Self {
        Self::none()
    }
}

impl Selection {
    /// No row.
    pub const fn none() -> Self {
        Selection { words: [0; 16] }
    }

    /// The first `rows` rows (at most 1,024).
    #[inline]
    pub fn all(rows: usize) -> Self {
        if rows >= BLOCK_ROWS {
            return Selection { words: [u64::MAX; 16] };
        }
        let mut words = [0u64; 16];
        for (index, word) in words.iter_mut().enumerate() {
            let bits = rows.saturating_sub(index * 64).min(64);
            *word = if bits == 64 { u64::MAX } else { (1u64 << bits) - 1 };
        }
        Selection { words }
    }

    /// From a bitmap.
    pub const fn from_words(words: [u64; 16]) -> Self {
        Selection { words }
    }

    /// The rows of a block in a bitmap over many blocks, whose missing words are zero.
    #[inline]
    pub fn of_block(bitmap: &[u64], block: usize) -> Self {
        let mut words = [0u64; 16];
        let of_block = bitmap.get(block * 16..).unwrap_or_default();
        words.iter_mut().zip(of_block).for_each(|(word, bits)| *word = *bits);
        Selection { words }
    }

    /// The bitmap.
    #[inline]
    pub fn words(&self) -> &[u64; 16] {
        &self.words
    }

    /// The bitmap, to write.
    #[inline]
    pub fn words_mut(&mut self) -> &mut [u64; 16] {
        &mut self.words
    }

    /// Rows that are in.
    #[inline]
    pub fn count(&self) -> usize {
        crate::kernels::count(&self.words)
    }

    /// Whether no row is in.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.words.iter().fold(0, |any, word| any | word) == 0
    }

    /// Whether more than one row is in. Mostly told by the first words, where counting looks at all.
    #[inline]
    pub(crate) fn has_several(&self) -> bool {
        let mut has_one = false;
        for word in self.words.iter().filter(|word| **word != 0) {
            if has_one || word & (word - 1) != 0 {
                return true;
            }
            has_one = true;
        }
        false
    }

    /// Whether row `row` is in.
    #[inline]
    pub fn contains(&self, row: usize) -> bool {
        row < BLOCK_ROWS && self.words[row / 64] >> (row % 64) & 1 == 1
    }

    /// Puts row `row` in. Rows from 1,024 on are ignored.
    #[inline]
    pub fn insert(&mut self, row: usize) {
        if row < BLOCK_ROWS {
            self.words[row / 64] |= 1 << (row % 64);
        }
    }

    /// Takes row `row` out.
    #[inline]
    pub fn remove(&mut self, row: usize) {
        if row < BLOCK_ROWS {
            self.words[row / 64] &= !(1 << (row % 64));
        }
    }

    /// Takes every row out.
    #[inline]
    pub fn clear(&mut self) {
        self.words = [0; 16];
    }

    /// Keeps the rows that are also in `other`.
    #[inline]
    pub fn and(&mut self, other: &[u64; 16]) {
        for (word, other) in self.words.iter_mut().zip(other) {
            *word &= other;
        }
    }

    /// Keeps the rows that are not in `other`.
    #[inline]
    pub fn and_not(&mut self, other: &[u64; 16]) {
        for (word, other) in self.words.iter_mut().zip(other) {
            *word &= !other;
        }
    }

    /// Adds the rows of `other`.
    #[inline]
    pub fn or(&mut self, other: &[u64; 16]) {
        for (word, other) in self.words.iter_mut().zip(other) {
            *word |= other;
        }
    }

    /// The rows that are in of a block of `block_rows` rows; `positions` is for those of [`Rows::At`].
    #[inline]
    pub fn rows<'a>(&self, block_rows: usize, positions: &'a mut [u16; 1024]) -> Rows<'a> {
        let mut within = *self;
        if block_rows < BLOCK_ROWS {
            within.and(Selection::all(block_rows).words());
        }
        match within.count() {
            count if count == block_rows => Rows::All(count),
            _ => {
                let count = within.indices(positions);
                Rows::At(&positions[..count])
            }
        }
    }

    /// Writes the positions of the rows that are in, ascending, to the front of `out`; the rest of
    /// `out` is left with arbitrary values. Returns how many.
    #[inline]
    pub fn indices(&self, out: &mut [u16; 1024]) -> usize {
        crate::kernels::indices(&self.words, out)
    }

    /// Calls `run(start, length)` for every maximal run of rows that are in, ascending.
    #[inline]
    pub fn for_each_run(&self, mut run: impl FnMut(usize, usize)) {
        let mut position = 0;
        while position < BLOCK_ROWS {
            let Some(start) = self.next(position, 0) else { return };
            let end = self.next(start, u64::MAX).unwrap_or(BLOCK_ROWS);
            run(start, end - start);
            position = end;
        }
    }

    /// The first position from `from` on whose bit, after XOR with `flip`, is one.
    #[inline]
    fn next(&self, from: usize, flip: u64) -> Option<usize> {
        let mut index = from / 64;
        let mut word = (self.words[index] ^ flip) & (u64::MAX << (from % 64));
        while word == 0 {
            index += 1;
            if index == 16 {
                return None;
            }
            word = self.words[index] ^ flip;
        }
        Some(index * 64 + word.trailing_zeros() as usize)
    }

    /// Calls `row(position)` for every row that is in, ascending.
    #[inline]
    pub fn for_each(&self, mut row: impl FnMut(usize)) {
        for (index, word) in self.words.iter().enumerate() {
            let mut word = *word;
            while word != 0 {
                row(index * 64 + word.trailing_zeros() as usize);
                word &= word - 1;
            }
        }
    }

    /// Keeps the first `limit` rows that are in, drops the later ones.
    pub fn truncate(&mut self, limit: usize) {
        let mut left = limit;
        for word in &mut self.words {
            let count = word.count_ones() as usize;
            if count > left {
                let mut kept = 0u64;
                for _ in 0..left {
                    let lowest = *word & word.wrapping_neg();
                    kept |= lowest;
                    *word ^= lowest;
                }
                *word = kept;
                left = 0;
            } else {
                left -= count;
            }
        }
    }

    /// Moves the bits of `bits` at selected rows together (PEXT over the block): bit `k` of the result
    /// is the bit of the `k`-th selected row. Returns the bitmap and how many bits it has.
    pub fn compress(&self, bits: &[u64; 16]) -> ([u64; 16], usize) {
        let mut out = [0u64; 16];
        let mut position = 0usize;
        for (mask, bits) in self.words.iter().zip(bits) {
            if *mask == 0 {
                continue;
            }
            let packed = crate::kernels::extract_bits(*bits, *mask);
            let shift = position % 64;
            out[position / 64] |= packed << shift;
            let count = mask.count_ones() as usize;
            if shift + count > 64 {
                out[position / 64 + 1] |= packed >> (64 - shift);
            }
            position += count;
        }
        (out, position)
    }
}

/// A bitmap with the bits of `rows` rows set, which may be more than a block has: row `i` is bit `i % 64` of word `i / 64`.
/// It has as many words as that takes, where a [`Selection`] has those of whole blocks.
pub fn all_rows(rows: usize) -> Vec<u64> {
    let mut words = vec![u64::MAX; rows.div_ceil(64)];
    if let (Some(last), rest @ 1..) = (words.last_mut(), rows % 64) {
        *last = (1u64 << rest) - 1;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bitmap_of_all_rows_has_their_bits_and_no_others() {
        for rows in [0, 1, 63, 64, 65, 1023, 1024, 1025, 131_072] {
            let words = all_rows(rows);
            let is_in = |row: usize| words[row / 64] >> (row % 64) & 1 == 1;
            assert_eq!(words.len(), rows.div_ceil(64));
            assert!((0..64 * words.len()).all(|row| is_in(row) == (row < rows)), "{rows}");
        }
    }

    #[test]
    fn blocks_of_a_bitmap_are_its_rows_and_no_others() {
        let words = all_rows(1500);
        assert_eq!(Selection::of_block(&words, 0), Selection::all(1024));
        assert_eq!(Selection::of_block(&words, 1), Selection::all(476));
        assert_eq!(Selection::of_block(&words, 2), Selection::none());
    }
}
