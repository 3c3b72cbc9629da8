//! Decompression of FSST codes (Boncz, Neumann, Leis: FSST, VLDB 2020) with a table read in place.
//!
//! Our own loop rather than the crate's, because codes come from a drive: output must stay within the
//! caller's slice whatever they are, and it must be told how much there was.
//!
//! Cost sketch: a code is a load, an unaligned 8-byte store and an add; about 2 cycles.

use super::parse::Symbol;

/// Bytes of a symbol table: 256 symbols of 8 bytes, then 256 lengths.
pub(crate) const TABLE_BYTES: usize = 256 * 9;
const LENGTHS_AT: usize = 256 * 8;
/// The code before a byte that no symbol stands for.
pub(crate) const ESCAPE: u8 = 255;

/// A checked symbol table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SymbolTable<'a>(&'a [u8; TABLE_BYTES]);

impl<'a> SymbolTable<'a> {
    /// Takes the table if every length is 1 to 8.
    pub(crate) fn new(bytes: &'a [u8]) -> Option<Self> {
        let table: &[u8; TABLE_BYTES] = bytes.try_into().ok()?;
        table[LENGTHS_AT..].iter().all(|length| (1..=8).contains(length)).then_some(SymbolTable(table))
    }

    /// The bytes of a table with these symbols; codes that are not used stand for one zero byte.
    pub(crate) fn to_bytes(symbols: &[Symbol]) -> Vec<u8> {
        let mut bytes = vec![0u8; TABLE_BYTES];
        bytes[LENGTHS_AT..].fill(1);
        for (code, symbol) in symbols.iter().enumerate().take(usize::from(ESCAPE)) {
            let text = symbol.bytes();
            bytes[code * 8..code * 8 + text.len()].copy_from_slice(text);
            bytes[LENGTHS_AT + code] = text.len() as u8;
        }
        bytes
    }

    /// What a code stands for.
    pub(crate) fn bytes(&self, code: u8) -> &[u8] {
        let at = usize::from(code) * 8;
        &self.0[at..at + self.length(code)]
    }

    #[inline(always)]
    fn symbol(&self, code: u8) -> [u8; 8] {
        let at = usize::from(code) * 8;
        let mut symbol = [0u8; 8];
        symbol.copy_from_slice(&self.0[at..at + 8]);
        symbol
    }

    #[inline(always)]
    fn length(&self, code: u8) -> usize {
        usize::from(self.0[LENGTHS_AT + usize::from(code)])
    }

    /// Decompresses `codes` to the front of `out` and returns the length, or `None` when it does not fit or
    /// ends in an escape. Bytes of `out` after the result may be overwritten.
    #[inline]
    pub(crate) fn decode(&self, codes: &[u8], out: &mut [u8]) -> Option<usize> {
        let (mut read, mut written) = (0usize, 0usize);
        // Eight codes make at most 64 bytes.
        while read + 8 <= codes.len() && written + 64 <= out.len() {
            let mut word = [0u8; 8];
            word.copy_from_slice(&codes[read..read + 8]);
            let inverse = !u64::from_le_bytes(word);
            let escapes = inverse.wrapping_sub(0x0101_0101_0101_0101) & !inverse & 0x8080_8080_8080_8080;
            // Codes before the first escape (the lowest set bit is exact; higher ones may be borrows).
            let plain = if escapes == 0 { 8 } else { (escapes.trailing_zeros() / 8) as usize };
            if plain == 8 {
                for code in word {
                    // SAFETY: `written + 64 <= out.len()` held before the eight codes and each adds at most 8
                    // (checked in `new`), so every 8-byte store ends inside `out`.
                    unsafe { out.as_mut_ptr().add(written).cast::<[u8; 8]>().write_unaligned(self.symbol(code)) };
                    written += self.length(code);
                }
                read += 8;
                continue;
            }
            for code in &word[..plain] {
                // SAFETY: as above: fewer than eight codes.
                unsafe { out.as_mut_ptr().add(written).cast::<[u8; 8]>().write_unaligned(self.symbol(*code)) };
                written += self.length(*code);
            }
            read += plain + 1;
            out[written] = *codes.get(read)?;
            written += 1;
            read += 1;
        }
        while let Some(&code) = codes.get(read) {
            read += 1;
            if code == ESCAPE {
                *out.get_mut(written)? = *codes.get(read)?;
                read += 1;
                written += 1;
                continue;
            }
            let length = self.length(code);
            let symbol = self.symbol(code);
            if let Some(target) = out.get_mut(written..written + 8) {
                target.copy_from_slice(&symbol);
            } else {
                out.get_mut(written..written + length)?.copy_from_slice(&symbol[..length]);
            }
            written += length;
        }
        Some(written)
    }
}
