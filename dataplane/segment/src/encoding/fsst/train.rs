//! Which 255 symbols make a sample of text the shortest.
//!
//! Owns [`train`] and [`sample`]. Called by [`super::compress`].
//!
//! The other way round from the published construction (Boncz, Neumann, Leis: FSST, VLDB 2020), which grows symbols from single
//! bytes: start with the 2,000 substrings that would save the most, split the sample into the fewest codes, drop the fifth of
//! the symbols that is missed the least (as Kudo, ACL 2018, prunes a unigram model), and so on until 255 are left. Two rounds
//! then add what stands side by side most often and prune again.
//!
//! Cost sketch: 14 splits of 32 KiB, each with a new automaton over up to 2,000 symbols, and sorting 32 K words. Measured: 5 to
//! 8 ms a chunk of text; 20 of random bytes, whose automata have rows for 256 bytes.

use super::SYMBOLS_MAX;
use super::parse::{NO_CODE, Parser, SYMBOL_BYTES_MAX, Symbol};

/// Substrings to start with.
const CANDIDATES: usize = 2000;
/// Substrings that occur less often say more of the sample than of the text.
const OCCURRENCES_MIN: usize = 3;
/// Rounds of adding and pruning.
const ROUNDS: usize = 2;
/// Pairs added in a round.
const PAIRS: usize = 64;

/// At most 64 KiB, 32 as a rule, of all values: parts of at most 256 bytes from all over, others for another `seed`. (A longer
/// sample made comments 1% smaller and took twice as long.)
pub(crate) fn sample<'v>(values: &[&'v [u8]], seed: u64) -> Vec<&'v [u8]> {
    const SAMPLE_BYTES: usize = 32 << 10;
    const PART_BYTES: usize = 256;
    let mut state = seed;
    // SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): numbers that values in order have no pattern in common with.
    let mut below = |bound: usize| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) % bound as u64) as usize
    };
    let raw_bytes: usize = values.iter().map(|value| value.len()).sum();
    // One part of so many, whichever it is.
    let stride = raw_bytes.div_ceil(SAMPLE_BYTES).max(1);
    let (mut end, mut chosen) = (stride, below(stride));
    let (mut sample, mut bytes) = (Vec::new(), 0);
    for (number, part) in values.iter().flat_map(|value| value.chunks(PART_BYTES)).enumerate() {
        if number == chosen && bytes < 2 * SAMPLE_BYTES {
            sample.push(part);
            bytes += part.len();
        }
        if number + 1 == end {
            chosen = end + below(stride);
            end += stride;
        }
    }
    sample
}

/// At most 255 symbols for text like `sample`, whose pieces are of at most `PIECE_BYTES` each.
pub(crate) fn train(sample: &[&[u8]]) -> Vec<Symbol> {
    let mut symbols = candidates(sample);
    prune(sample, &mut symbols);
    for _ in 0..ROUNDS {
        add_pairs(sample, &mut symbols);
        prune(sample, &mut symbols);
    }
    symbols
}

/// A substring of up to eight bytes at the top of a word (which sorts as the text does), and its length.
type Substring = (u64, u8);

fn symbol(substring: Substring) -> Symbol {
    Symbol::new(&substring.0.to_be_bytes()[..usize::from(substring.1)])
}

/// The substrings that would save the most if they never overlapped; of single bytes those that occur at all.
fn candidates(sample: &[&[u8]]) -> Vec<Symbol> {
    let mut windows: Vec<Substring> = Vec::with_capacity(sample.iter().map(|piece| piece.len()).sum());
    for piece in sample {
        let mut word = 0u64;
        windows.extend(piece.iter().rev().zip(1..).map(|(byte, left)| {
            word = word >> 8 | u64::from(*byte) << 56;
            (word, SYMBOL_BYTES_MAX.min(left) as u8)
        }));
    }
    windows.sort_unstable();
    let mut found: Vec<(usize, Substring)> = Vec::new();
    for length in 1..=SYMBOL_BYTES_MAX {
        let mask = u64::MAX << (64 - 8 * length);
        for alike in windows.chunk_by(|a, b| (a.0 ^ b.0) & mask == 0) {
            let count = alike.iter().filter(|window| usize::from(window.1) >= length).count();
            if count >= OCCURRENCES_MIN || length == 1 {
                found.push((count * (length - 1).max(1), (alike[0].0 & mask, length as u8)));
            }
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    found.truncate(CANDIDATES);
    found.into_iter().map(|(_, substring)| symbol(substring)).collect()
}

/// Drops the symbols that are missed the least, a fifth at a time, until a code is left for each.
fn prune(sample: &[&[u8]], symbols: &mut Vec<Symbol>) {
    while symbols.len() > SYMBOLS_MAX {
        let mut parser = Parser::new(symbols);
        let mut counts = vec![0usize; symbols.len()];
        for_each_code(&mut parser, sample, |_, code, _, _| {
            if code != NO_CODE {
                counts[usize::from(code)] += 1;
            }
        });
        let saved = |code: usize| counts[code] * (parser.cost_without(&symbols[code]) - 1);
        let mut order: Vec<(usize, usize)> = (0..symbols.len()).map(|code| (saved(code), code)).collect();
        order.sort_unstable_by(|a, b| b.cmp(a));
        // Bytes by themselves are hardly used as long as there are symbols for all that holds them.
        let single = |code: usize| symbols[code].bytes().len() == 1;
        let singles = symbols.iter().filter(|symbol| symbol.bytes().len() == 1).count();
        let keep = symbols.len() * 4 / 5;
        if keep > SYMBOLS_MAX + singles {
            order.retain(|(_, code)| !single(*code));
            order.truncate(keep - singles);
            order.extend((0..symbols.len()).filter(|code| single(*code)).map(|code| (0, code)));
        } else {
            order.truncate(keep.max(SYMBOLS_MAX));
        }
        *symbols = order.into_iter().map(|(_, code)| symbols[code]).collect();
    }
}

/// Calls `each` with every code of the sample, each piece's from its last to its first: the piece, the code, where its text
/// starts and how long that is.
fn for_each_code<'v>(parser: &mut Parser, sample: &[&'v [u8]], mut each: impl FnMut(&'v [u8], u16, usize, usize)) {
    for pair in sample.chunks(2) {
        parser.parse([pair[0], pair.get(1).unwrap_or(&&[][..])]);
        for (which, piece) in pair.iter().enumerate() {
            parser.backwards(which, piece.len()).for_each(|(code, start, length)| each(piece, code, start, length));
        }
    }
}

/// Adds the pairs of neighbours, and the bytes without a symbol, that occur most often.
fn add_pairs(sample: &[&[u8]], symbols: &mut Vec<Symbol>) {
    let mut parser = Parser::new(symbols);
    let mut pairs: Vec<Substring> = Vec::new();
    let mut after = 0;
    for_each_code(&mut parser, sample, |piece, code, start, length| {
        if code == NO_CODE {
            pairs.push((u64::from(piece[start]) << 56, 1));
        }
        if start + length < piece.len() && length + after <= SYMBOL_BYTES_MAX {
            let mut bytes = [0; 8];
            bytes[..length + after].copy_from_slice(&piece[start..start + length + after]);
            pairs.push((u64::from_be_bytes(bytes), (length + after) as u8));
        }
        after = length;
    });
    pairs.sort_unstable();
    let mut counted: Vec<(usize, Substring)> =
        pairs.chunk_by(|a, b| a == b).map(|alike| (alike.len(), alike[0])).collect();
    counted.sort_unstable_by(|a, b| b.cmp(a));
    let new = counted.into_iter().map(|(_, substring)| symbol(substring)).filter(|pair| !symbols.contains(pair));
    let new: Vec<Symbol> = new.take(PAIRS).collect();
    symbols.extend(new);
}
