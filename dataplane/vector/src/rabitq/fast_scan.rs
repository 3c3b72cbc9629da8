//! One-bit codes, thirty-two rows at a time, by table lookups in registers.
//!
//! Owns the block layout and the scan kernel. Called by the estimator.
//!
//! Layout of a block of 32 rows: four bits of four consecutive components make a nibble; for each of the `D / 4` groups of
//! four there are 16 bytes, byte `i` holding row `i`'s nibble in its low half and row `i + 16`'s in its high half. The
//! query becomes, for each group, a table of the 16 sums that a nibble can select, as bytes; VPSHUFB looks up sixteen rows
//! of two groups (AVX2) or four (AVX-512) an instruction. André, Kermarrec and Le Scouarnec, VLDB 2015.
//!
//! Invariants
//! - Sums are exact: 16-bit lanes are emptied before 256 groups of at most 255 could overflow them.
//!
//! Cost sketch: 384 components are 96 groups, 1,536 bytes for 32 rows; 48 rounds of about nine instructions on AVX2,
//! some 4 ns a row less than once from L2: about 1.5 to 3 ns a row.

use crate::simd::{Level, level};

/// Rows of a block.
pub const BLOCK_ROWS: usize = 32;
/// Groups between two emptyings of the 16-bit sums.
const GROUPS_PER_FLUSH: usize = 256;

/// Bytes of a block of codes of `padded` components (a multiple of 64).
pub const fn block_bytes(padded: usize) -> usize {
    padded * 4
}

/// Packs one-bit codes into a block. `bits(row, component)` is asked for `rows` rows (at most 32); missing rows are zero.
pub fn pack_block(padded: usize, rows: usize, bits: impl Fn(usize, usize) -> bool, out: &mut [u8]) {
    assert!(rows <= BLOCK_ROWS && out.len() == block_bytes(padded));
    out.fill(0);
    for (group, bytes) in out.chunks_exact_mut(16).enumerate() {
        for row in 0..rows {
            let nibble = (0..4).fold(0u8, |nibble, i| nibble | u8::from(bits(row, group * 4 + i)) << i);
            bytes[row % 16] |= nibble << (row / 16 * 4);
        }
    }
}

/// Writes for each of the 32 rows the sum of its table entries. `tables` has 16 bytes for each group, as `block` has.
pub(super) fn scan_block(block: &[u8], tables: &[u8], out: &mut [u32; BLOCK_ROWS]) {
    assert!(block.len() == tables.len() && block.len().is_multiple_of(256));
    match level() {
        // SAFETY: the level in effect is never above what the CPU supports.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Vnni => unsafe { x86::avx512(block, tables, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { x86::avx2(block, tables, out) },
        Level::Portable => portable(block, tables, out),
    }
}

fn portable(block: &[u8], tables: &[u8], out: &mut [u32; BLOCK_ROWS]) {
    out.fill(0);
    for (codes, table) in block.chunks_exact(16).zip(tables.chunks_exact(16)) {
        for (i, code) in codes.iter().enumerate() {
            out[i] += u32::from(table[usize::from(code & 15)]);
            out[i + 16] += u32::from(table[usize::from(code >> 4)]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::*;

    /// Adds the two halves of 16-bit sums (groups side by side in one register) to 32-bit sums of sixteen rows. `even`
    /// holds in each 16-bit lane the sums of an even row plus 256 times those of the odd one, `odd` those of the odd row.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn flush(even: __m256i, odd: __m256i, out: &mut [u32]) {
        let even = _mm256_sub_epi16(even, _mm256_slli_epi16::<8>(odd));
        let halves = |x| (_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
        let ((e0, e1), (o0, o1)) = (halves(even), halves(odd));
        // Widened before they are added: two sums of 128 groups each fit, all of them need not.
        let wide = |a, b| _mm256_add_epi32(_mm256_cvtepu16_epi32(a), _mm256_cvtepu16_epi32(b));
        let (even, odd) = (wide(e0, e1), wide(o0, o1));
        let (mut evens, mut odds) = ([0u32; 8], [0u32; 8]);
        // SAFETY: arrays of eight words.
        unsafe {
            _mm256_storeu_si256(evens.as_mut_ptr().cast(), even);
            _mm256_storeu_si256(odds.as_mut_ptr().cast(), odd);
        }
        for i in 0..8 {
            out[2 * i] += evens[i];
            out[2 * i + 1] += odds[i];
        }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn avx2(block: &[u8], tables: &[u8], out: &mut [u32; BLOCK_ROWS]) {
        out.fill(0);
        let low = _mm256_set1_epi8(15);
        let bytes = GROUPS_PER_FLUSH * 16;
        for (block, tables) in block.chunks(bytes).zip(tables.chunks(bytes)) {
            let mut sums = [_mm256_setzero_si256(); 4];
            for (codes, table) in block.chunks_exact(32).zip(tables.chunks_exact(32)) {
                // SAFETY: chunks of thirty-two bytes.
                let (codes, table) =
                    unsafe { (_mm256_loadu_si256(codes.as_ptr().cast()), _mm256_loadu_si256(table.as_ptr().cast())) };
                let first = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, low));
                let second = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low));
                sums[0] = _mm256_add_epi16(sums[0], first);
                sums[1] = _mm256_add_epi16(sums[1], _mm256_srli_epi16::<8>(first));
                sums[2] = _mm256_add_epi16(sums[2], second);
                sums[3] = _mm256_add_epi16(sums[3], _mm256_srli_epi16::<8>(second));
            }
            let (first, second) = out.split_at_mut(16);
            flush(sums[0], sums[1], first);
            flush(sums[2], sums[3], second);
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
    pub(super) fn avx512(block: &[u8], tables: &[u8], out: &mut [u32; BLOCK_ROWS]) {
        out.fill(0);
        let low = _mm512_set1_epi8(15);
        let bytes = GROUPS_PER_FLUSH * 16;
        for (block, tables) in block.chunks(bytes).zip(tables.chunks(bytes)) {
            let mut sums = [_mm512_setzero_si512(); 4];
            for (codes, table) in block.chunks_exact(64).zip(tables.chunks_exact(64)) {
                // SAFETY: chunks of sixty-four bytes.
                let (codes, table) =
                    unsafe { (_mm512_loadu_si512(codes.as_ptr().cast()), _mm512_loadu_si512(table.as_ptr().cast())) };
                let first = _mm512_shuffle_epi8(table, _mm512_and_si512(codes, low));
                let second = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16::<4>(codes), low));
                sums[0] = _mm512_add_epi16(sums[0], first);
                sums[1] = _mm512_add_epi16(sums[1], _mm512_srli_epi16::<8>(first));
                sums[2] = _mm512_add_epi16(sums[2], second);
                sums[3] = _mm512_add_epi16(sums[3], _mm512_srli_epi16::<8>(second));
            }
            let (first, second) = out.split_at_mut(16);
            for (pair, out) in [(sums[0], sums[1], first), (sums[2], sums[3], second)].map(|(e, o, out)| ((e, o), out))
            {
                let (even, odd) = pair;
                flush(_mm512_castsi512_si256(even), _mm512_castsi512_si256(odd), out);
                flush(_mm512_extracti64x4_epi64::<1>(even), _mm512_extracti64x4_epi64::<1>(odd), out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::at_every_level;

    #[test]
    fn sums_are_those_of_the_tables_at_every_level() {
        let mut state = 1u64;
        let mut byte = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        for padded in [64usize, 128, 192, 384, 1024, 1088, 2112] {
            for extreme in [false, true] {
                let block: Vec<u8> = (0..block_bytes(padded)).map(|_| byte()).collect();
                let tables: Vec<u8> = (0..padded * 4).map(|_| if extreme { 255 } else { byte() }).collect();
                let mut expected = [0; 32];
                portable(&block, &tables, &mut expected);
                at_every_level(|level| {
                    let mut out = [7; 32];
                    scan_block(&block, &tables, &mut out);
                    assert_eq!(out, expected, "{level:?} {padded}");
                });
            }
        }
    }

    #[test]
    fn packed_bits_come_back() {
        let bit = |row: usize, component: usize| (row * 31 + component * 7) % 5 < 2;
        let mut block = vec![0; block_bytes(128)];
        pack_block(128, 29, bit, &mut block);
        for row in 0..29 {
            for component in 0..128 {
                let byte = block[component / 4 * 16 + row % 16];
                let found = byte >> (row / 16 * 4 + component % 4) & 1 == 1;
                assert_eq!(found, bit(row, component), "{row} {component}");
            }
        }
    }
}
