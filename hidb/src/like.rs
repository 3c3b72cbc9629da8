//! Compiled LIKE and ILIKE patterns over UTF-8 bytes.
//!
//! Owns [`LikeMatcher`]: the pattern is split once at its `%` into segments; segments without `_` are
//! found with `memchr::memmem`. Fold and engine share it, so they can't disagree.
//!
//! Invariants
//! - Matching takes no allocation for LIKE; ILIKE lower-cases the value into a scratch buffer.
//! - Any bytes may be matched: what is not UTF-8 gives an unspecified answer, never a panic.
//! - Time is linear in the value for patterns without `_`, and at most (value x segment) with it.

use crate::error::{Error, ErrorCode, Result};
use memchr::memmem::Finder;

/// What the pattern amounts to; literals are the bytes after unescaping (and lower-casing for ILIKE).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LikeShape {
    /// `abc`
    Exact(Vec<u8>),
    /// `abc%`
    Prefix(Vec<u8>),
    /// `%abc`
    Suffix(Vec<u8>),
    /// `%abc%`
    Contains(Vec<u8>),
    /// `%`: everything.
    All,
    /// Anything else.
    General,
}

/// A compiled pattern.
#[derive(Clone, Debug)]
pub struct LikeMatcher {
    shape: LikeShape,
    /// Between the `%`s, in order; empty segments dropped.
    segments: Vec<Segment>,
    anchored_start: bool,
    anchored_end: bool,
    case_insensitive: bool,
}

#[derive(Clone, Debug)]
enum Segment {
    Literal(Box<Finder<'static>>),
    /// With at least one `_`. Counted in characters.
    Wild {
        elements: Vec<Element>,
        characters: usize,
    },
}

#[derive(Clone, Debug)]
enum Element {
    Bytes(Vec<u8>),
    AnyCharacter,
}

impl LikeMatcher {
    /// Compiles a pattern. An escape character at the end of the pattern is an error.
    pub fn new(pattern: &str, escape: Option<char>, case_insensitive: bool) -> Result<Self> {
        let mut raw: Vec<Vec<Element>> = vec![Vec::new()];
        let mut characters = pattern.chars();
        while let Some(character) = characters.next() {
            let literal = if Some(character) == escape {
                characters.next().ok_or_else(|| {
                    Error::new(
                        ErrorCode::Syntax,
                        format!("LIKE pattern {pattern:?} ends with its escape character {character:?}: double it"),
                    )
                })?
            } else if character == '%' {
                raw.push(Vec::new());
                continue;
            } else if character == '_' {
                push_element(&mut raw, Element::AnyCharacter);
                continue;
            } else {
                character
            };
            let literal = if case_insensitive { lower_simple(literal) } else { literal };
            push_literal(&mut raw, literal);
        }
        let anchored_start = raw.first().is_some_and(|first| !first.is_empty());
        let anchored_end = raw.last().is_some_and(|last| !last.is_empty());
        let only_one = raw.len() == 1;
        let segments: Vec<Segment> = raw.into_iter().filter(|elements| !elements.is_empty()).map(segment).collect();
        let shape = match segments.as_slice() {
            [] if only_one => LikeShape::Exact(Vec::new()),
            [] => LikeShape::All,
            [Segment::Literal(finder)] => {
                let bytes = finder.needle().to_vec();
                match (anchored_start, anchored_end) {
                    (true, true) => LikeShape::Exact(bytes),
                    (true, false) => LikeShape::Prefix(bytes),
                    (false, true) => LikeShape::Suffix(bytes),
                    (false, false) => LikeShape::Contains(bytes),
                }
            }
            _ => LikeShape::General,
        };
        Ok(LikeMatcher { shape, segments, anchored_start, anchored_end, case_insensitive })
    }

    /// What the pattern amounts to.
    pub fn shape(&self) -> &LikeShape {
        &self.shape
    }

    /// Whether this is ILIKE.
    pub fn case_insensitive(&self) -> bool {
        self.case_insensitive
    }

    /// Bytes every matching value begins with (case-sensitive patterns only): for zone maps.
    pub fn required_prefix(&self) -> Option<&[u8]> {
        if self.case_insensitive || !self.anchored_start {
            return None;
        }
        match self.segments.first()? {
            Segment::Literal(finder) => Some(finder.needle()),
            Segment::Wild { elements, .. } => match elements.first()? {
                Element::Bytes(bytes) => Some(bytes),
                Element::AnyCharacter => None,
            },
        }
    }

    /// Whether the value matches. ILIKE allocates; see [`LikeMatcher::matches_with`].
    #[inline]
    pub fn matches(&self, value: &[u8]) -> bool {
        if self.case_insensitive { self.matches_with(value, &mut Vec::new()) } else { self.matches_exact_case(value) }
    }

    /// Whether the value matches, with a scratch buffer that ILIKE lower-cases into.
    #[inline]
    pub fn matches_with(&self, value: &[u8], scratch: &mut Vec<u8>) -> bool {
        if !self.case_insensitive {
            return self.matches_exact_case(value);
        }
        scratch.clear();
        lower_simple_into(value, scratch);
        self.matches_exact_case(scratch)
    }

    fn matches_exact_case(&self, value: &[u8]) -> bool {
        match &self.shape {
            LikeShape::Exact(literal) => value == literal.as_slice(),
            LikeShape::Prefix(literal) => value.starts_with(literal),
            LikeShape::Suffix(literal) => value.ends_with(literal),
            LikeShape::All => true,
            LikeShape::Contains(_) | LikeShape::General => self.matches_segments(value),
        }
    }

    fn matches_segments(&self, value: &[u8]) -> bool {
        let mut segments = self.segments.as_slice();
        let mut rest = value;
        if self.anchored_start
            && let [first, others @ ..] = segments
        {
            match first.match_at_start(rest) {
                Some(length) => rest = &rest[length..],
                None => return false,
            }
            segments = others;
            if segments.is_empty() && self.anchored_end {
                return rest.is_empty();
            }
        }
        if self.anchored_end
            && let [others @ .., last] = segments
        {
            match last.match_at_end(rest) {
                Some(start) => rest = &rest[..start],
                None => return false,
            }
            segments = others;
        }
        // Between the anchors the leftmost match of each segment leaves the most room for the next.
        for segment in segments {
            match segment.find_end(rest) {
                Some(end) => rest = &rest[end..],
                None => return false,
            }
        }
        true
    }
}

fn push_element(raw: &mut [Vec<Element>], element: Element) {
    if let Some(last) = raw.last_mut() {
        last.push(element);
    }
}

fn push_literal(raw: &mut [Vec<Element>], character: char) {
    let mut buffer = [0; 4];
    let encoded = character.encode_utf8(&mut buffer).as_bytes();
    let Some(last) = raw.last_mut() else { return };
    if let Some(Element::Bytes(bytes)) = last.last_mut() {
        bytes.extend_from_slice(encoded);
    } else {
        last.push(Element::Bytes(encoded.to_vec()));
    }
}

fn segment(elements: Vec<Element>) -> Segment {
    match elements.as_slice() {
        [Element::Bytes(bytes)] => Segment::Literal(Box::new(Finder::new(bytes).into_owned())),
        _ => {
            let characters = elements
                .iter()
                .map(|element| match element {
                    Element::Bytes(bytes) => bytes.iter().filter(|byte| !is_continuation(**byte)).count(),
                    Element::AnyCharacter => 1,
                })
                .sum();
            Segment::Wild { elements, characters }
        }
    }
}

impl Segment {
    /// Length of the match at the start of `value`.
    fn match_at_start(&self, value: &[u8]) -> Option<usize> {
        match self {
            Segment::Literal(finder) => value.starts_with(finder.needle()).then_some(finder.needle().len()),
            Segment::Wild { elements, .. } => {
                let mut at = 0;
                for element in elements {
                    at += match element {
                        Element::Bytes(bytes) => value[at..].starts_with(bytes).then_some(bytes.len())?,
                        Element::AnyCharacter => first_character_length(&value[at..])?,
                    };
                }
                Some(at)
            }
        }
    }

    /// Where the match that ends with `value` starts.
    fn match_at_end(&self, value: &[u8]) -> Option<usize> {
        match self {
            Segment::Literal(finder) => value.ends_with(finder.needle()).then(|| value.len() - finder.needle().len()),
            Segment::Wild { characters, .. } => {
                let mut start = value.len();
                for _ in 0..*characters {
                    start = value[..start].iter().rposition(|byte| !is_continuation(*byte))?;
                }
                (self.match_at_start(&value[start..])? == value.len() - start).then_some(start)
            }
        }
    }

    /// Where the leftmost match in `value` ends.
    fn find_end(&self, value: &[u8]) -> Option<usize> {
        match self {
            Segment::Literal(finder) => finder.find(value).map(|at| at + finder.needle().len()),
            Segment::Wild { .. } => {
                let mut start = 0;
                loop {
                    if let Some(length) = self.match_at_start(&value[start..]) {
                        return Some(start + length);
                    }
                    start += first_character_length(&value[start..])?;
                }
            }
        }
    }
}

#[inline]
fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

/// Bytes of the first character, or `None` at the end.
#[inline]
fn first_character_length(value: &[u8]) -> Option<usize> {
    let length = match value.first()? {
        0..0xc0 => 1,
        0xc0..0xe0 => 2,
        0xe0..0xf0 => 3,
        _ => 4,
    };
    Some(length.min(value.len()))
}

/// Unicode simple lower case: always one character.
#[inline]
pub fn lower_simple(character: char) -> char {
    let mut lowered = character.to_lowercase();
    match (lowered.next(), lowered.next()) {
        (Some(single), None) => single,
        // U+0130 is the one character with a longer full mapping; its simple mapping is "i".
        (Some(first), Some(_)) => first,
        (None, _) => character,
    }
}

/// Appends the simple lower case of a value; bytes that are not UTF-8 are appended as they are.
pub fn lower_simple_into(value: &[u8], out: &mut Vec<u8>) {
    if value.is_ascii() {
        out.extend(value.iter().map(u8::to_ascii_lowercase));
        return;
    }
    match std::str::from_utf8(value) {
        Ok(text) => {
            let mut buffer = [0; 4];
            for character in text.chars() {
                out.extend_from_slice(lower_simple(character).encode_utf8(&mut buffer).as_bytes());
            }
        }
        Err(_) => out.extend_from_slice(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn like(value: &str, pattern: &str) -> bool {
        LikeMatcher::new(pattern, Some('\\'), false).unwrap().matches(value.as_bytes())
    }

    /// Backtracking over characters, written from the definition.
    fn reference(value: &[char], pattern: &[char], escape: Option<char>) -> bool {
        match pattern {
            [] => value.is_empty(),
            [first, literal, rest @ ..] if Some(*first) == escape => {
                value.first() == Some(literal) && reference(&value[1..], rest, escape)
            }
            ['%', rest @ ..] => (0..=value.len()).any(|skip| reference(&value[skip..], rest, escape)),
            ['_', rest @ ..] => !value.is_empty() && reference(&value[1..], rest, escape),
            [literal, rest @ ..] => value.first() == Some(literal) && reference(&value[1..], rest, escape),
        }
    }

    #[test]
    fn shapes() {
        let shape = |pattern| LikeMatcher::new(pattern, Some('\\'), false).unwrap().shape().clone();
        assert_eq!(shape("abc"), LikeShape::Exact(b"abc".to_vec()));
        assert_eq!(shape(""), LikeShape::Exact(Vec::new()));
        assert_eq!(shape("abc%%"), LikeShape::Prefix(b"abc".to_vec()));
        assert_eq!(shape("%abc"), LikeShape::Suffix(b"abc".to_vec()));
        assert_eq!(shape("%a\\%c%"), LikeShape::Contains(b"a%c".to_vec()));
        assert_eq!(shape("%%"), LikeShape::All);
        assert_eq!(shape("%a%b"), LikeShape::General);
        assert_eq!(shape("a_"), LikeShape::General);
    }

    #[test]
    fn underscores_count_characters_not_bytes() {
        assert!(like("née", "n_e"));
        assert!(like("日本", "__"));
        assert!(!like("日本", "_"));
        assert!(like("x日本", "%_本"));
        assert!(like("", "%"));
        assert!(!like("", "_%"));
    }

    #[test]
    fn anchors_may_not_overlap() {
        assert!(!like("aba", "ab%ba"));
        assert!(like("abba", "ab%ba"));
        assert!(!like("special", "%special%requests%"));
        assert!(like("x special y requests", "%special%requests%"));
    }

    #[test]
    fn ilike_lower_cases_both_sides_character_by_character() {
        let ilike =
            |value: &str, pattern| LikeMatcher::new(pattern, Some('\\'), true).unwrap().matches(value.as_bytes());
        assert!(ilike("STRASSE", "str%"));
        assert!(ilike("ÄPFEL", "ä%"));
        assert!(ilike("İ", "_"));
        assert!(!ilike("ß", "ss"));
    }

    #[test]
    fn a_trailing_escape_is_an_error() {
        assert_eq!(LikeMatcher::new("abc\\", Some('\\'), false).unwrap_err().code, ErrorCode::Syntax);
        assert!(LikeMatcher::new("abc\\", None, false).is_ok());
    }

    #[test]
    fn required_prefix_is_for_zone_maps() {
        let prefix =
            |pattern, fold| LikeMatcher::new(pattern, Some('\\'), fold).unwrap().required_prefix().map(<[u8]>::to_vec);
        assert_eq!(prefix("ab_c%", false), Some(b"ab".to_vec()));
        assert_eq!(prefix("ab%c", false), Some(b"ab".to_vec()));
        assert_eq!(prefix("%ab", false), None);
        assert_eq!(prefix("ab%", true), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn agrees_with_backtracking(value in "[abé日]{0,9}", pattern in "[abé日%_!]{0,8}") {
            let pattern_characters: Vec<char> = pattern.chars().collect();
            let value_characters: Vec<char> = value.chars().collect();
            match LikeMatcher::new(&pattern, Some('!'), false) {
                Ok(matcher) => {
                    let expected = reference(&value_characters, &pattern_characters, Some('!'));
                    prop_assert_eq!(matcher.matches(value.as_bytes()), expected);
                    if let Some(prefix) = matcher.required_prefix() {
                        prop_assert!(!expected || value.as_bytes().starts_with(prefix));
                    }
                }
                Err(_) => prop_assert!(pattern.ends_with('!')),
            }
        }

        #[test]
        fn bytes_that_are_not_utf8_never_panic(value in any::<Vec<u8>>(), pattern in "[a%_é]{0,6}", fold in any::<bool>()) {
            let _ = LikeMatcher::new(&pattern, None, fold).unwrap().matches(&value);
        }
    }
}
