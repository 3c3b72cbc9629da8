//! The header of `.npy`: magic, version, and a Python dictionary that says what the array is.

use std::io::Read;

use hidb::Result;

use super::{ArrayElement, malformed, read_up_to};

/// What each file begins with.
pub(super) const MAGIC: &[u8] = b"\x93NUMPY";

/// The longest dictionary taken: what NumPy writes for plain arrays has some hundred bytes.
const DICTIONARY_BYTES_MAX: usize = 64 << 10;

const ADVICE: &str = "write it as numpy.save(FILE, numpy.ascontiguousarray(array, dtype=numpy.float32))";

/// What a header says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub element: ArrayElement,
    pub is_big_endian: bool,
    /// `None`: the array has one dimension.
    pub rows: Option<u64>,
    pub columns: usize,
    /// Its length.
    pub bytes: u64,
}

/// Reads a header from its first byte on.
pub(super) fn read_header(source: &mut impl Read, name: &str) -> Result<Header> {
    let mut take = |bytes: usize| {
        let mut taken = Vec::new();
        match read_up_to(source, bytes, &mut taken, name)? {
            got if got == bytes => Ok(taken),
            _ => Err(malformed(name, "the file ends within its header: write it again")),
        }
    };
    let fixed = take(MAGIC.len() + 2)?;
    let version = (fixed[MAGIC.len()], fixed[MAGIC.len() + 1]);
    let length_bytes = match version {
        (1, _) => 2,
        (2 | 3, _) => 4,
        (major, minor) => {
            return Err(malformed(name, format!(".npy of version {major}.{minor}, not 1.0 to 3.0: {ADVICE}")));
        }
    };
    let length = take(length_bytes)?.iter().rev().fold(0usize, |length, byte| length << 8 | usize::from(*byte));
    if length > DICTIONARY_BYTES_MAX {
        return Err(malformed(name, format!("a header of {length} bytes, which no plain array has: {ADVICE}")));
    }
    let dictionary = take(length)?;
    let bytes = (fixed.len() + length_bytes + length) as u64;
    let array = std::str::from_utf8(&dictionary).ok().and_then(|text| Dictionary { rest: text }.read());
    let array = array.ok_or_else(|| malformed(name, format!("the header can't be read: {ADVICE}")))?;
    header_of(&array, bytes).map_err(|what| malformed(name, format!("{what}: {ADVICE}")))
}

fn header_of(array: &Described, bytes: u64) -> Result<Header, String> {
    let (order, kind) = array.descr.split_at_checked(1).unwrap_or_default();
    let element = match kind {
        "f4" => ArrayElement::F32,
        "f2" => ArrayElement::F16,
        "i1" => ArrayElement::I8,
        "u1" => ArrayElement::U8,
        _ => return Err(format!("elements of type {:?}, not f4, f2, i1 or u1", array.descr)),
    };
    let is_big_endian = match order {
        "<" | "|" | "=" => false,
        ">" => true,
        _ => return Err(format!("elements of type {:?}, whose byte order is unknown", array.descr)),
    };
    let (rows, columns) = match array.shape.as_slice() {
        [columns] => (None, *columns),
        [rows, columns] => (Some(*rows), *columns),
        shape => return Err(format!("an array of {} dimensions, not of one or two", shape.len())),
    };
    // One row or one column lies the same in both orders.
    if array.is_fortran && rows.is_some_and(|rows| rows > 1) && columns > 1 {
        return Err("the array lies column by column (Fortran order)".into());
    }
    let columns = usize::try_from(columns).map_err(|_| format!("vectors of {columns} elements"))?;
    Ok(Header { element, is_big_endian, rows, columns, bytes })
}

/// The entries of the dictionary.
struct Described {
    descr: String,
    is_fortran: bool,
    shape: Vec<u64>,
}

/// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`: the part of Python that NumPy writes.
struct Dictionary<'a> {
    rest: &'a str,
}

impl<'a> Dictionary<'a> {
    fn read(mut self) -> Option<Described> {
        let (mut descr, mut is_fortran, mut shape) = (None, None, None);
        self.expect('{')?;
        while !self.take('}') {
            let key = self.string()?;
            self.expect(':')?;
            match key {
                "descr" => descr = Some(self.string()?.to_string()),
                "fortran_order" => is_fortran = Some(self.boolean()?),
                "shape" => shape = Some(self.tuple()?),
                _ => return None,
            }
            if !self.take(',') {
                self.expect('}')?;
                break;
            }
        }
        let is_whole = self.rest.trim().is_empty();
        is_whole.then_some(Described { descr: descr?, is_fortran: is_fortran?, shape: shape? })
    }

    fn take(&mut self, character: char) -> bool {
        let rest = self.rest.trim_start();
        let taken = rest.strip_prefix(character);
        self.rest = taken.unwrap_or(rest);
        taken.is_some()
    }

    fn expect(&mut self, character: char) -> Option<()> {
        self.take(character).then_some(())
    }

    fn string(&mut self) -> Option<&'a str> {
        let rest = self.rest.trim_start();
        let quote = rest.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
        let (text, rest) = rest[1..].split_once(quote)?;
        self.rest = rest;
        Some(text)
    }

    fn boolean(&mut self) -> Option<bool> {
        let rest = self.rest.trim_start();
        let (value, rest) = match rest.strip_prefix("True") {
            Some(rest) => (true, rest),
            None => (false, rest.strip_prefix("False")?),
        };
        self.rest = rest;
        Some(value)
    }

    /// `(3, 4)`, `(3,)`, `()`; NumPy for Python 2 wrote `3L`.
    fn tuple(&mut self) -> Option<Vec<u64>> {
        let mut numbers = Vec::new();
        self.expect('(')?;
        while !self.take(')') {
            let rest = self.rest.trim_start();
            let digits = rest.find(|character: char| !character.is_ascii_digit()).unwrap_or(rest.len());
            numbers.push(rest[..digits].parse().ok()?);
            self.rest = rest[digits..].strip_prefix('L').unwrap_or(&rest[digits..]);
            if !self.take(',') {
                self.expect(')')?;
                break;
            }
        }
        Some(numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(text: &str) -> Option<(String, bool, Vec<u64>)> {
        Dictionary { rest: text }.read().map(|array| (array.descr, array.is_fortran, array.shape))
    }

    #[test]
    fn dictionaries_are_read_as_numpy_writes_them_and_nothing_else() {
        let plain = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }     \n";
        assert_eq!(described(plain), Some(("<f4".into(), false, vec![3, 4])));
        let other = r#"{"shape":(5L,),"descr":"|i1","fortran_order":True}"#;
        assert_eq!(described(other), Some(("|i1".into(), true, vec![5])));
        for text in [
            "",
            "{",
            "{}",
            "{'descr': '<f4', 'fortran_order': False}",
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,)}",
            "{'descr': '<f4', 'fortran_order': 0, 'shape': (3,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-3,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3,)} x",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3 4)}",
        ] {
            assert_eq!(described(text), None, "{text}");
        }
    }
}
