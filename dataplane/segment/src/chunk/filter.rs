//! Predicates on chunks: translation into the encoded domain, zone pruning, evaluation per block.
//!
//! Invariants
//! - NULL rows never match (except for `IsNull`), negated or not.
//! - A filter only takes rows out of the selection.

use std::cell::RefCell;
use std::ops::Bound;

use hidb::types::Lane;
use memchr::memmem::Finder;

use super::Chunk;
use super::header::Layout;
use crate::BLOCK_ROWS;
use crate::encoding::fsst::search::CodeTest;
use crate::encoding::int_test::IntTest;
use crate::encoding::{plain, text};
use crate::error::Result;
use crate::kernels::order_key;
use crate::predicate::{BlockMatch, BytesMatcher, ChunkPredicate, Compiled, CompiledPredicate, TextTest};
use crate::selection::{Rows, Selection};

/// A set of more texts than this has too many first and last codes to rule rows out.
const CODE_TESTS_MAX: usize = 16;

impl Chunk {
    /// Translates a predicate into this chunk's encoded domain; evaluates it once per dictionary entry.
    pub fn compile(&self, predicate: &ChunkPredicate) -> Result<CompiledPredicate> {
        let lane = self.data_type.lane();
        let kind = match predicate {
            ChunkPredicate::Never => Compiled::Never,
            ChunkPredicate::IsNull => Compiled::IsNull,
            ChunkPredicate::IsNotNull => Compiled::NotNull,
            ChunkPredicate::I64Range { lo, hi, negated } if lane == Lane::I64 => {
                self.compile_range((*lo).into(), (*hi).into(), *negated)?
            }
            ChunkPredicate::I128Range { lo, hi, negated } if lane == Lane::I128 => {
                self.compile_range(*lo, *hi, *negated)?
            }
            ChunkPredicate::I64Set { values, negated } if lane == Lane::I64 => {
                self.compile_set(values.iter().map(|value| i128::from(*value)), *negated)?
            }
            ChunkPredicate::I128Set { values, negated } if lane == Lane::I128 => {
                self.compile_set(values.iter().copied(), *negated)?
            }
            ChunkPredicate::F64Range { lo, hi, negated } if lane == Lane::F64 => {
                let (lo, hi) = float_range(*lo, *hi);
                Compiled::Floats { lo, hi, negated: *negated }
            }
            ChunkPredicate::Bool(value) if lane == Lane::Bool => Compiled::Bool(*value),
            other if lane == Lane::Bytes => match BytesMatcher::new(other) {
                Some(matcher) => self.compile_bytes(matcher)?,
                None => return Err(self.wrong_lane("this predicate")),
            },
            _ => return Err(self.wrong_lane("this predicate")),
        };
        Ok(CompiledPredicate { kind })
    }

    fn compile_range(&self, lo: i128, hi: i128, negated: bool) -> Result<Compiled> {
        Ok(match self.header.layout {
            Layout::Integers => Compiled::Integers(IntTest::range(self.mapping().range_to_stored(lo, hi), negated)),
            Layout::DictionaryI64 => self.compile_entries(|chunk, code| {
                let value = i128::from(chunk.entry_i64(code)?);
                Ok((lo <= value && value <= hi) != negated)
            })?,
            _ => Compiled::Wide { ranges: if lo <= hi { vec![(lo, hi)] } else { Vec::new() }, negated },
        })
    }

    fn compile_set(&self, values: impl Iterator<Item = i128>, negated: bool) -> Result<Compiled> {
        let mut values: Vec<i128> = values.collect();
        values.sort_unstable();
        values.dedup();
        Ok(match self.header.layout {
            Layout::Integers => {
                let mapping = self.mapping();
                let stored = values.iter().filter_map(|value| mapping.value_to_stored(*value)).collect();
                Compiled::Integers(IntTest::set(stored, negated))
            }
            Layout::DictionaryI64 => self.compile_entries(|chunk, code| {
                Ok(values.binary_search(&i128::from(chunk.entry_i64(code)?)).is_ok() != negated)
            })?,
            _ => Compiled::Wide { ranges: values.iter().map(|value| (*value, *value)).collect(), negated },
        })
    }

    fn compile_bytes(&self, matcher: BytesMatcher) -> Result<Compiled> {
        Ok(match self.header.layout {
            Layout::DictionaryBytes => {
                self.compile_entries(|chunk, code| Ok(matcher.matches(chunk.entry_bytes(code)?)))?
            }
            Layout::Text | Layout::TextFsst => {
                let mut lengths = Vec::new();
                if let BytesMatcher::Set { values, .. } = &matcher {
                    lengths = values.members.iter().map(Vec::len).collect();
                    lengths.sort_unstable();
                    lengths.dedup();
                }
                let codes = RefCell::new(self.code_test(&matcher));
                Compiled::Text(Box::new(TextTest { matcher, lengths, codes, scratch: RefCell::new(Vec::new()) }))
            }
            _ => Compiled::FixedBytes(matcher),
        })
    }

    /// What the codes of FSST-compressed values that match (before negation) hold.
    fn code_test(&self, matcher: &BytesMatcher) -> Option<CodeTest> {
        let (text, payload) = (self.text(), self.section(&self.sections.payload));
        let table = text.table.as_ref()?;
        match matcher {
            BytesMatcher::Contains { prefix, needles, suffix, .. } => {
                // Values of one kind often begin with the same code: what they begin and end with is also inside of them.
                let ends = [prefix.as_slice(), suffix.as_slice()];
                let needles: Vec<&[u8]> = needles.iter().map(Finder::needle).chain(ends).collect();
                CodeTest::new(table, payload, &[prefix], &[suffix], &needles)
            }
            BytesMatcher::Set { values, .. } if values.members.len() <= CODE_TESTS_MAX => {
                let values: Vec<&[u8]> = values.members.iter().map(Vec::as_slice).collect();
                let needle = if let [only] = values.as_slice() { &[*only][..] } else { &[] };
                CodeTest::new(table, payload, &values, &values, needle)
            }
            _ => None,
        }
    }

    /// The codes whose entries pass `test`.
    fn compile_entries(&self, test: impl Fn(&Chunk, i64) -> Result<bool>) -> Result<Compiled> {
        let mut codes = Vec::new();
        for code in 0..i64::from(self.header.dictionary_len) {
            if test(self, code)? {
                codes.push(code);
            }
        }
        Ok(Compiled::Integers(IntTest::set(codes, false)))
    }

    /// What block `b`'s zone map alone says about a compiled predicate (reads no payload).
    pub fn prune(&self, b: usize, predicate: &CompiledPredicate) -> Result<BlockMatch> {
        let (nulls, rows) = (self.block_null_count(b)?, self.block_rows(b));
        let of_nulls = |matching: usize| match matching {
            0 => BlockMatch::None,
            all if all == rows => BlockMatch::All,
            _ => BlockMatch::Some,
        };
        match &predicate.kind {
            Compiled::Never => return Ok(BlockMatch::None),
            Compiled::IsNull => return Ok(of_nulls(nulls)),
            Compiled::NotNull => return Ok(of_nulls(rows - nulls)),
            _ if nulls == rows => return Ok(BlockMatch::None),
            _ => {}
        }
        let values = self.prune_values(b, &predicate.kind)?;
        Ok(if values == BlockMatch::All && nulls > 0 { BlockMatch::Some } else { values })
    }

    /// What the zone map says of the values that are not NULL.
    fn prune_values(&self, b: usize, kind: &Compiled) -> Result<BlockMatch> {
        Ok(match kind {
            Compiled::Integers(test) => self.integers().prune(b, test)?,
            Compiled::Floats { lo, hi, negated } => {
                let (min, max) = self.float_zone(b);
                let (outside, inside) = (lo > hi || max < *lo || min > *hi, *lo <= min && max <= *hi);
                match (outside, inside, negated) {
                    (true, _, false) | (false, true, true) => BlockMatch::None,
                    (true, _, true) | (false, true, false) => BlockMatch::All,
                    _ => BlockMatch::Some,
                }
            }
            Compiled::Bool(value) if self.header.layout == Layout::Constant => {
                if (self.header.origin != 0) == *value {
                    BlockMatch::All
                } else {
                    BlockMatch::None
                }
            }
            Compiled::Text(test) => {
                let Some((low, high, negated)) = prefix_bounds(&test.matcher) else { return Ok(BlockMatch::Some) };
                let block = self.text().block(b)?;
                match (block.prefix_max < low || block.prefix_min > high, negated) {
                    (true, false) => BlockMatch::None,
                    (true, true) => BlockMatch::All,
                    _ => BlockMatch::Some,
                }
            }
            _ => BlockMatch::Some,
        })
    }

    /// Keeps the rows of `selection` that match. Returns what the zone map said (`None` or `All`: no payload
    /// was touched).
    pub fn filter(&self, b: usize, predicate: &CompiledPredicate, selection: &mut Selection) -> Result<BlockMatch> {
        let pruned = self.prune(b, predicate)?;
        match pruned {
            BlockMatch::None => selection.clear(),
            BlockMatch::All => selection.and(Selection::all(self.block_rows(b)).words()),
            BlockMatch::Some => self.filter_values(b, predicate, selection)?,
        }
        Ok(pruned)
    }

    /// [`Chunk::filter`] without a look at the zone map, for callers that had one.
    pub fn filter_values(&self, b: usize, predicate: &CompiledPredicate, selection: &mut Selection) -> Result<()> {
        let kind = &predicate.kind;
        if self.header.null_count > 0 || matches!(kind, Compiled::IsNull) {
            let mut valid = [0u64; 16];
            self.validity(b, &mut valid)?;
            if let Compiled::IsNull = kind {
                selection.and(Selection::all(self.block_rows(b)).words());
                selection.and_not(&valid);
                return Ok(());
            }
            selection.and(&valid);
        } else if self.block_rows(b) < BLOCK_ROWS {
            selection.and(Selection::all(self.block_rows(b)).words());
        }
        if selection.is_empty() {
            return Ok(());
        }
        match kind {
            Compiled::Never | Compiled::IsNull => selection.clear(),
            Compiled::NotNull => {}
            Compiled::Integers(test) => self.integers().filter(b, test, selection)?,
            Compiled::Floats { lo, hi, negated } => self.filter_floats(b, *lo, *hi, *negated, selection)?,
            Compiled::Wide { ranges, negated } => {
                plain::filter::<16>(self.plain_block(b)?, selection, |bytes| {
                    let value = i128::from_le_bytes(*bytes);
                    let after = ranges.partition_point(|(low, _)| *low <= value);
                    (after > 0 && value <= ranges[after - 1].1) != *negated
                });
            }
            Compiled::Bool(value) => {
                let mut bits = [0u64; 16];
                self.decode_bool(b, &mut bits)?;
                if *value { selection.and(&bits) } else { selection.and_not(&bits) }
            }
            Compiled::Text(test) => self.filter_text(b, test, selection)?,
            Compiled::FixedBytes(matcher) => {
                let (block, width) = (self.plain_block(b)?, self.header.value_width as usize);
                let rows = *selection;
                rows.for_each(|row| {
                    if !block.get(row * width..(row + 1) * width).is_some_and(|value| matcher.matches(value)) {
                        selection.remove(row);
                    }
                });
            }
        }
        Ok(())
    }

    fn filter_text(&self, b: usize, test: &TextTest, selection: &mut Selection) -> Result<()> {
        // Rows that must be looked at; a set decides by length about the others.
        let mut candidates = *selection;
        if let BytesMatcher::Set { negated, .. } = &test.matcher {
            let mut mask = [0u64; 16];
            self.text().block(b)?.rows_of_length(&test.lengths, &mut mask);
            candidates.and(&mask);
            if !negated {
                *selection = candidates;
            }
        }
        /// Fewer rows are sooner decompressed than ruled out.
        const FEW: usize = 32;
        if let (Some(codes), FEW..) = (test.codes.borrow_mut().as_mut(), candidates.count()) {
            self.text().block(b)?.rule_out(self.block_rows(b), codes, candidates.words_mut());
            if !test.matcher.is_negated() {
                *selection = candidates;
            }
        }
        if candidates.is_empty() {
            return Ok(());
        }
        let mut data = test.scratch.borrow_mut();
        let mut positions = [0u16; 1024];
        // Most rows of a block are sooner decompressed together with the others than each by itself.
        let is_dense = candidates.count() * 2 > self.block_rows(b);
        let rows = match is_dense {
            true => Rows::All(self.block_rows(b)),
            false => candidates.rows(self.block_rows(b), &mut positions),
        };
        let needed = self.gather_bytes_max(b, rows)?;
        if data.len() < needed {
            data.resize(needed, 0);
        }
        let mut ends = [0u32; 1024];
        let (count, bytes) = self.gather_bytes_into(b, rows, &mut ends, &mut data)?;
        let (data, ends) = (&data[..bytes], &ends[..count]);
        let mut matched = [0u64; 16];
        find_matches(&test.matcher, data, ends, &mut matched);
        if is_dense {
            matched.iter_mut().zip(candidates.words()).for_each(|(matched, candidates)| *matched |= !candidates);
            selection.and(&matched);
            return Ok(());
        }
        let mut k = 0;
        candidates.for_each(|row| {
            if matched[k / 64] >> (k % 64) & 1 == 0 {
                selection.remove(row);
            }
            k += 1;
        });
        Ok(())
    }
}

/// Sets bit `k` of `matched` when the value that ends at `ends[k]` matches.
fn find_matches(matcher: &BytesMatcher, data: &[u8], ends: &[u32], matched: &mut [u64; 16]) {
    let start_of = |k: usize| if k == 0 { 0 } else { ends[k - 1] as usize };
    if let BytesMatcher::Contains { needles, negated, .. } = matcher
        && let Some(anchor) = needles.iter().max_by_key(|needle| needle.needle().len())
    {
        // One search through all values for the longest piece; only values with a hit are looked at.
        let mut hits = [0u64; 16];
        let (mut k, mut from) = (0, 0);
        while let Some(at) = anchor.find(&data[from..]) {
            let at = from + at;
            k += ends[k..].partition_point(|end| *end as usize <= at);
            if k >= ends.len() {
                break;
            }
            let (start, end) = (start_of(k), ends[k] as usize);
            if at + anchor.needle().len() <= end {
                if matcher.matches(&data[start..end]) != *negated {
                    hits[k / 64] |= 1 << (k % 64);
                }
                from = end;
            } else {
                from = at + 1;
            }
        }
        for (matched, hits) in matched.iter_mut().zip(hits) {
            *matched = if *negated { !hits } else { hits };
        }
        return;
    }
    for (k, end) in ends.iter().enumerate() {
        let hit = matcher.matches(&data[start_of(k)..*end as usize]);
        matched[k / 64] |= u64::from(hit) << (k % 64);
    }
}

/// Order keys of the bounds, inclusive; `lo > hi` when nothing lies between.
fn float_range(lo: Bound<f64>, hi: Bound<f64>) -> (i64, i64) {
    const EMPTY: (i64, i64) = (1, 0);
    let lo = match lo {
        Bound::Unbounded => i64::MIN,
        Bound::Included(lo) => order_key(lo),
        Bound::Excluded(lo) => match order_key(lo).checked_add(1) {
            Some(lo) => lo,
            None => return EMPTY,
        },
    };
    let hi = match hi {
        Bound::Unbounded => i64::MAX,
        Bound::Included(hi) => order_key(hi),
        Bound::Excluded(hi) => match order_key(hi).checked_sub(1) {
            Some(hi) => hi,
            None => return EMPTY,
        },
    };
    (lo, hi)
}

/// The prefixes between which every match (before negation) lies, and whether the matcher is negated.
fn prefix_bounds(matcher: &BytesMatcher) -> Option<(u64, u64, bool)> {
    Some(match matcher {
        BytesMatcher::Range { lo, hi, negated } => {
            let low = match lo {
                Bound::Unbounded => 0,
                Bound::Included(lo) | Bound::Excluded(lo) => text::prefix(lo),
            };
            let high = match hi {
                Bound::Unbounded => u64::MAX,
                Bound::Included(hi) | Bound::Excluded(hi) => text::prefix(hi),
            };
            (low, high, *negated)
        }
        BytesMatcher::Set { values, negated } => match (values.members.first(), values.members.last()) {
            (Some(first), Some(last)) => (text::prefix(first), text::prefix(last), *negated),
            _ => (u64::MAX, 0, *negated),
        },
        BytesMatcher::Contains { prefix, negated, .. } => {
            let low = text::prefix(prefix);
            let open = u64::MAX.checked_shr(prefix.len().min(8) as u32 * 8).unwrap_or(0);
            (low, low | open, *negated)
        }
        BytesMatcher::Test(_) => return None,
    })
}
