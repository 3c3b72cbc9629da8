//! FSST: text as codes of one byte, each of which stands for one to eight bytes (Boncz, Neumann, Leis: FSST, VLDB 2020).
//!
//! Owns [`compress`] and what it makes: a table of symbols, codes, and where each value's codes end. `decode` is the published
//! decoder; `train` and `parse` choose symbols and split values another way, which takes a fifth less room (ADR 17); `search`
//! tells from codes which rows can match. Called by `text`.
//!
//! Invariants
//! - A value's codes say all of it: values are decompressed by themselves, or several as one sequence.

pub(crate) mod decode;
mod parse;
pub(crate) mod search;
#[cfg(test)]
mod tests;
mod train;

use decode::{ESCAPE, SymbolTable, TABLE_BYTES};
use parse::{NO_CODE, PIECE_BYTES, Parser, Symbol};

/// Codes that stand for symbols; the last is [`ESCAPE`].
const SYMBOLS_MAX: usize = ESCAPE as usize;

/// Compressed values.
pub(crate) struct Compressed {
    /// All codes.
    pub(crate) data: Vec<u8>,
    /// Per value, where its codes end.
    pub(crate) ends: Vec<u64>,
    /// What [`SymbolTable::new`] takes.
    pub(crate) table: Vec<u8>,
}

/// Compresses all values if that makes them clearly smaller.
pub(crate) fn compress(values: &[&[u8]]) -> Option<Compressed> {
    /// Shorter chunks do not pay for their symbol table.
    const RAW_BYTES_MIN: usize = 16 << 10;
    let raw_bytes: usize = values.iter().map(|value| value.len()).sum();
    if raw_bytes < RAW_BYTES_MIN {
        return None;
    }
    let symbols = train::train(&train::sample(values, 0));
    let mut encoder = Encoder::new(&symbols);
    // Other values than those that the symbols were made for, if there are more than a sample takes.
    let probe = train::sample(values, 1);
    let probe_bytes: usize = probe.iter().map(|part| part.len()).sum();
    encoder.extend(&probe, probe_bytes * 4 / 5)?;
    encoder.data.clear();
    encoder.data.reserve(raw_bytes / 2);
    let ends = encoder.extend(values, raw_bytes.saturating_sub(TABLE_BYTES))?;
    Some(Compressed { data: encoder.data, ends, table: SymbolTable::to_bytes(&symbols) })
}

/// Appends the codes of values to `data`.
struct Encoder {
    parser: Parser,
    data: Vec<u8>,
}

impl Encoder {
    fn new(symbols: &[Symbol]) -> Self {
        Encoder { parser: Parser::new(symbols), data: Vec::new() }
    }

    /// Returns where each value's codes end, or `None` as soon as there are more than `bytes_max` of them.
    fn extend(&mut self, values: &[&[u8]], bytes_max: usize) -> Option<Vec<u64>> {
        let mut ends = Vec::with_capacity(values.len());
        for pair in values.chunks(2) {
            match *pair {
                [first, second] if first.len().max(second.len()) <= PIECE_BYTES => {
                    let bytes = self.parser.parse([first, second]);
                    for (which, value) in [first, second].into_iter().enumerate() {
                        self.append(which, value, bytes[which]);
                        ends.push(self.data.len() as u64);
                    }
                    if self.data.len() > bytes_max {
                        return None;
                    }
                }
                _ => {
                    for value in pair {
                        for piece in value.chunks(PIECE_BYTES) {
                            let [bytes, _] = self.parser.parse([piece, &[]]);
                            self.append(0, piece, bytes);
                            if self.data.len() > bytes_max {
                                return None;
                            }
                        }
                        ends.push(self.data.len() as u64);
                    }
                }
            }
        }
        Some(ends)
    }

    /// Appends the codes, `bytes` of them, of a piece that was just split.
    fn append(&mut self, which: usize, piece: &[u8], bytes: usize) {
        let mut at = self.data.len() + bytes;
        self.data.resize(at, 0);
        for (code, start, _) in self.parser.backwards(which, piece.len()) {
            at -= 1;
            if code == NO_CODE {
                self.data[at] = piece[start];
                at -= 1;
                self.data[at] = ESCAPE;
            } else {
                self.data[at] = code as u8;
            }
        }
    }
}
