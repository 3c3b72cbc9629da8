//! Any bytes are an array of vectors (`.npy`, `.fvecs`, `.bvecs`, JSON) or a typed error, and its rows are the same
//! however many are read at a time, and from wherever.
//!
//! Input: `u8` (whether the length is known, whether the name ends in `.bvecs`), rows at a time `u8`, file.
#![no_main]

/// The client's own module: the client's crate would bring its network. It opens files by what is around it.
#[path = "../../client/src/input/arrays/mod.rs"]
#[allow(dead_code, reason = "files are not opened here")]
mod arrays;

use std::fs::File;
use std::io::Cursor;
use std::path::Path;

use arrays::ArrayReader;
use hidb::{Error, ErrorCode, Result};
use libfuzzer_sys::fuzz_target;

fn open_file(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| read_failed(path, error))
}

fn read_failed(path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorCode::Io, format!("{}: {error}", path.display()))
}

fuzz_target!(|input: &[u8]| {
    let Some(([how, at_a_time], file)) = input.split_first_chunk::<2>() else { return };
    let length = (how & 1 != 0).then_some(file.len() as u64);
    let name = if how & 2 != 0 { "a.bvecs" } else { "a" };
    let open = || ArrayReader::new(name, Cursor::new(file), length);
    let whole = open().and_then(|reader| read(reader, usize::MAX));
    let pieces = open().and_then(|reader| read(reader, usize::from(*at_a_time) + 1));
    assert_eq!(whole.as_ref().ok(), pieces.as_ref().ok());
    let (Ok(elements), Ok(mut reader)) = (whole, open()) else { return };
    assert!(elements.len() <= 4 * file.len());
    assert_eq!(reader.element().numbers(&elements).len() * reader.element().byte_width(), elements.len());
    let rows = (elements.len() / reader.row_bytes()) as u64;
    if reader.rows().is_none() {
        return;
    }
    assert_eq!(reader.rows(), Some(rows));
    for row in [rows.saturating_sub(1), rows / 2, 0, rows] {
        let mut one = Vec::new();
        reader.go_to(row).expect("a row of the array, or its end");
        reader.read_rows(1, &mut one).expect("it was read before");
        assert_eq!(one, elements[row as usize * reader.row_bytes()..][..one.len()]);
        assert_eq!(one.is_empty(), row == rows);
    }
    assert!(reader.go_to(rows + 1).is_err());
});

fn read(mut reader: ArrayReader<Cursor<&[u8]>>, rows_max: usize) -> Result<Vec<u8>> {
    let mut elements = Vec::new();
    while reader.read_rows(rows_max, &mut elements)? > 0 {}
    Ok(elements)
}
