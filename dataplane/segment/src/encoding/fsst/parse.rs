//! Splitting text into the fewest codes.
//!
//! Owns [`Symbol`] and [`Parser`]. Called by `train` (which symbols are used, and what the text would cost without one) and by
//! [`super::compress`].
//!
//! The published encoder takes the longest symbol that fits at each place, and holds one symbol for any three first bytes.
//! Here every set of symbols is possible, and a value is split so that its codes are the fewest: an automaton over the symbols
//! (Aho and Corasick, CACM 1975) tells at each byte which symbols end there, and the least cost up to the byte is the least
//! of the costs one to eight bytes before, plus one where a symbol of that length ends (two for an escape).
//!
//! Invariants
//! - The codes decompress to the value; no other split of a piece into these symbols and escapes is shorter.
//! - The same split at every [`SimdLevel`].
//!
//! Cost sketch: a byte is a step of the automaton (a load that waits for the one before) and, of eight 16-bit costs in a
//! register, an add, a minimum and a shift, which wait for each other as well: some 8 cycles, no branch; two values at once.
//! Then each is walked back code by code. Measured: 4.2 ns a byte of comments, where the crate `fsst-rs` takes 2.7.

#[cfg(target_arch = "x86_64")]
use crate::SimdLevel;

/// Longest symbol.
pub(crate) const SYMBOL_BYTES_MAX: usize = 8;
/// Longer values are split piece by piece, which bounds costs (16 bits) and memory.
pub(crate) const PIECE_BYTES: usize = 16 << 10;
/// A byte that no symbol stands for.
pub(crate) const NO_CODE: u16 = u16::MAX;

/// A piece of text that a code stands for: 1 to 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Symbol {
    bytes: [u8; SYMBOL_BYTES_MAX],
    length: u8,
}

impl Symbol {
    /// Of one to eight bytes.
    pub(crate) fn new(text: &[u8]) -> Self {
        assert!((1..=SYMBOL_BYTES_MAX).contains(&text.len()), "a symbol of {} bytes", text.len());
        let mut bytes = [0; SYMBOL_BYTES_MAX];
        bytes[..text.len()].copy_from_slice(text);
        Symbol { bytes, length: text.len() as u8 }
    }

    /// The text.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// What ends at a state: of each length (less one) the code of the symbol, or [`NO_CODE`].
type Codes = [u16; SYMBOL_BYTES_MAX];

/// Least costs up to the place before a byte, up to one byte before that, and so on: where a piece starts.
const AT_START: Codes = [0, u16::MAX, u16::MAX, u16::MAX, u16::MAX, u16::MAX, u16::MAX, u16::MAX];

/// Splits text into symbols of one set.
#[derive(Debug)]
pub(crate) struct Parser {
    /// Bytes that no symbol holds are alike.
    class: [u8; 256],
    /// A row of `next` has `1 << class_bits` states.
    class_bits: u32,
    next: Vec<u16>,
    codes: Vec<Codes>,
    /// Of each state and length what a code of that length costs: 1, 2 for an escape, or `u16::MAX`.
    costs: Vec<Codes>,
    /// Of the pieces at hand: for each byte the state and, in the lowest three bits, the length (less one) of its code.
    steps: [Vec<u32>; 2],
}

impl Parser {
    /// For `symbols`, whose codes are their places; fewer than [`NO_CODE`] bytes of them.
    pub(crate) fn new(symbols: &[Symbol]) -> Self {
        let bytes: usize = symbols.iter().map(|symbol| symbol.bytes().len()).sum();
        assert!(bytes < usize::from(NO_CODE), "a state for each of {bytes} bytes at most, and the first");
        let mut used = [false; 256];
        symbols.iter().flat_map(|symbol| symbol.bytes()).for_each(|byte| used[usize::from(*byte)] = true);
        let count = used.iter().filter(|used| **used).count();
        // Class 0 is all other bytes, if there are any.
        let mut class = [0u8; 256];
        for (class, number) in
            class.iter_mut().zip(used).filter(|(_, used)| *used).map(|(class, _)| class).zip(usize::from(count < 256)..)
        {
            *class = number as u8;
        }
        let class_bits = (count + usize::from(count < 256)).next_power_of_two().trailing_zeros();
        let row = 1usize << class_bits;
        let mut next = vec![0u16; row];
        let mut codes: Vec<Codes> = vec![[NO_CODE; SYMBOL_BYTES_MAX]];
        for (code, symbol) in symbols.iter().enumerate() {
            let mut state = 0usize;
            for byte in symbol.bytes() {
                let at = state * row + usize::from(class[usize::from(*byte)]);
                if next[at] == 0 {
                    next[at] = codes.len() as u16;
                    codes.push([NO_CODE; SYMBOL_BYTES_MAX]);
                    next.resize(next.len() + row, 0);
                }
                state = usize::from(next[at]);
            }
            codes[state][symbol.bytes().len() - 1] = code as u16;
        }
        let mut parser =
            Parser { class, class_bits, next, codes, costs: Vec::new(), steps: [(); 2].map(|()| vec![0; PIECE_BYTES]) };
        parser.link();
        let cost = |(lane, code): (usize, &u16)| match (*code, lane) {
            (NO_CODE, 0) => 2,
            (NO_CODE, _) => u16::MAX,
            _ => 1,
        };
        parser.costs = parser
            .codes
            .iter()
            .map(|codes| {
                let mut costs = [0; SYMBOL_BYTES_MAX];
                costs.iter_mut().zip(codes.iter().enumerate().map(cost)).for_each(|(out, cost)| *out = cost);
                costs
            })
            .collect();
        parser
    }

    /// Gives each state what its longest proper suffix has: where to go on, and the shorter symbols that end there.
    fn link(&mut self) {
        let row = 1usize << self.class_bits;
        let mut suffix = vec![0u16; self.codes.len()];
        // The shortest first: a suffix is complete before it is copied.
        let mut queue: Vec<u16> = self.next[..row].iter().copied().filter(|state| *state != 0).collect();
        let mut at = 0;
        while let Some(&state) = queue.get(at) {
            at += 1;
            let (state, link) = (usize::from(state), usize::from(suffix[usize::from(state)]));
            let shorter = self.codes[link];
            self.codes[state]
                .iter_mut()
                .zip(shorter)
                .filter(|(code, _)| **code == NO_CODE)
                .for_each(|(code, shorter)| *code = shorter);
            for class in 0..row {
                let onward = self.next[link * row + class];
                let child = &mut self.next[state * row + class];
                if *child == 0 {
                    *child = onward;
                } else {
                    suffix[usize::from(*child)] = onward;
                    queue.push(*child);
                }
            }
        }
    }

    /// Splits two pieces at once, of at most [`PIECE_BYTES`] each, so that their chains of loads overlap; returns how many
    /// bytes of code each takes. [`Parser::backwards`] has the codes.
    pub(crate) fn parse(&mut self, pieces: [&[u8]; 2]) -> [usize; 2] {
        assert!(pieces.iter().all(|piece| piece.len() <= PIECE_BYTES), "pieces are bounded by the caller");
        #[cfg(target_arch = "x86_64")]
        if SimdLevel::current() >= SimdLevel::Avx2 {
            // SAFETY: the level in effect is never above what the CPU supports; AVX2 includes SSE 4.1.
            return unsafe { self.parse_sse41(pieces) };
        }
        self.parse_portable(pieces)
    }

    #[inline(always)]
    fn advance(&self, state: u16, byte: u8) -> u16 {
        self.next[usize::from(state) << self.class_bits | usize::from(self.class[usize::from(byte)])]
    }

    fn parse_portable(&mut self, pieces: [&[u8]; 2]) -> [usize; 2] {
        let mut steps = std::mem::take(&mut self.steps);
        let bytes = [0, 1].map(|which| {
            let mut least = AT_START;
            let mut state = 0;
            for (byte, step) in pieces[which].iter().zip(&mut steps[which]) {
                state = self.advance(state, *byte);
                let lane = take_byte(&mut least, &self.costs[usize::from(state)]);
                *step = u32::from(state) << 3 | lane as u32;
            }
            usize::from(least[0])
        });
        self.steps = steps;
        bytes
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "sse4.1")]
    fn parse_sse41(&mut self, pieces: [&[u8]; 2]) -> [usize; 2] {
        use std::arch::x86_64::*;
        // Taken out of `self`, whose fields writing steps might change for all the compiler knows.
        let (class, class_bits, next, costs) = (&self.class, self.class_bits, &self.next[..], &self.costs[..]);
        let advance = |state: &mut u16, least: &mut __m128i, byte: u8, step: &mut u32| {
            *state = next[usize::from(*state) << class_bits | usize::from(class[usize::from(byte)])];
            // SAFETY: the costs of a state are 16 bytes.
            let costs = unsafe { _mm_loadu_si128(costs[usize::from(*state)].as_ptr().cast()) };
            // The least in the lowest lane, its place (the first, where several are as low) in the next.
            let found = _mm_minpos_epu16(_mm_adds_epu16(*least, costs));
            *least = _mm_blend_epi16::<1>(_mm_slli_si128::<2>(*least), found);
            *step = u32::from(*state) << 3 | (_mm_cvtsi128_si32(found) as u32) >> 16;
        };
        let (mut states, mut least) = ([0u16; 2], [_mm_insert_epi16::<0>(_mm_set1_epi16(-1), 0); 2]);
        let ([state_0, state_1], [least_0, least_1]) = (&mut states, &mut least);
        let [steps_0, steps_1] = &mut self.steps;
        let both = pieces[0].len().min(pieces[1].len());
        let ((start_0, rest_0), (start_1, rest_1)) = (pieces[0].split_at(both), pieces[1].split_at(both));
        for (((byte_0, step_0), byte_1), step_1) in
            start_0.iter().zip(&mut steps_0[..]).zip(start_1).zip(&mut steps_1[..])
        {
            advance(state_0, least_0, *byte_0, step_0);
            advance(state_1, least_1, *byte_1, step_1);
        }
        // At most one of them goes on.
        for (byte, step) in rest_0.iter().zip(&mut steps_0[both..]) {
            advance(state_0, least_0, *byte, step);
        }
        for (byte, step) in rest_1.iter().zip(&mut steps_1[both..]) {
            advance(state_1, least_1, *byte, step);
        }
        least.map(|least| _mm_extract_epi16::<0>(least) as usize)
    }

    /// The codes of piece `which` of those that were split last, of `length` bytes, from its last to its first: each code
    /// ([`NO_CODE`]: an escape), the place of its text and how long that is.
    pub(crate) fn backwards(&self, which: usize, length: usize) -> impl Iterator<Item = (u16, usize, usize)> {
        let mut end = length;
        std::iter::from_fn(move || {
            let step = self.steps[which][end.checked_sub(1)?];
            let lane = (step & 7) as usize;
            end = end.checked_sub(lane + 1)?;
            Some((self.codes[(step >> 3) as usize][lane], end, lane + 1))
        })
    }

    /// How many bytes of code the text of `symbol` would take without it.
    pub(crate) fn cost_without(&self, symbol: &Symbol) -> usize {
        let text = symbol.bytes();
        let mut least = AT_START;
        let mut state = 0;
        for (at, byte) in text.iter().enumerate() {
            state = self.advance(state, *byte);
            let mut costs = self.costs[usize::from(state)];
            if at + 1 == text.len() {
                costs[at] = if at == 0 { 2 } else { u16::MAX };
            }
            take_byte(&mut least, &costs);
        }
        usize::from(least[0])
    }
}

/// From the least costs up to one, two, ... bytes before to those of the next byte; returns the first lane that the least comes
/// from.
#[inline(always)]
fn take_byte(least: &mut Codes, costs: &Codes) -> usize {
    let mut best = (u16::MAX, 0);
    for lane in 0..SYMBOL_BYTES_MAX {
        let cost = least[lane].saturating_add(costs[lane]);
        if cost < best.0 {
            best = (cost, lane);
        }
    }
    least.copy_within(..SYMBOL_BYTES_MAX - 1, 1);
    least[0] = best.0;
    best.1
}
