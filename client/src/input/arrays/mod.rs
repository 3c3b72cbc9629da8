//! Two-dimensional arrays of numbers in files: NumPy's `.npy`, `.fvecs` and `.bvecs`, JSON.
//!
//! Owns [`ArrayReader`]. Called by `heliostat search --vector`, and by what loads vectors into tables.
//!
//! Invariants
//! - What the bytes say decides how they are read (`.bvecs`, which looks like `.fvecs`, by its name alone).
//! - Memory: one call of [`ArrayReader::read_rows`] adds what it read, at most `rows_max` rows of at most
//!   [`VECTOR_DIMENSION_MAX`] elements; a header that promises more than there is allocates nothing. JSON is read as a
//!   whole, at most [`JSON_BYTES_MAX`].
//! - Nothing is dropped: a file that ends early, or goes on after its array, is an error that says where.
//!
//! Sources: NumPy's format description (`numpy/lib/format.py`, versions 1.0 to 3.0); fvecs and bvecs as TEXMEX
//! (<http://corpus-texmex.irisa.fr/>) describes them: each row is its dimension as int32, then its elements.

mod json;
mod npy;

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use arrow_array::types::{ArrowPrimitiveType, Float16Type};
use hidb::types::VECTOR_DIMENSION_MAX;
use hidb::{Error, ErrorCode, Result};

use super::{open_file, read_failed};

/// The longest JSON that is read.
pub const JSON_BYTES_MAX: usize = 64 << 20;

/// Bytes that tell what an array is written as.
const SNIFFED_BYTES: usize = 8;

const BUFFER_BYTES: usize = 1 << 20;

/// IEEE 754 binary16, as Arrow has it.
type F16 = <Float16Type as ArrowPrimitiveType>::Native;

/// What an element of an array is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArrayElement {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// Signed byte.
    I8,
    /// Unsigned byte: a number, or eight bits.
    U8,
}

impl ArrayElement {
    /// Bytes per element.
    pub fn byte_width(self) -> usize {
        match self {
            ArrayElement::F32 => 4,
            ArrayElement::F16 => 2,
            ArrayElement::I8 | ArrayElement::U8 => 1,
        }
    }

    /// Little-endian elements as numbers: every one is exact in binary32.
    pub fn numbers(self, elements: &[u8]) -> Vec<f32> {
        match self {
            ArrayElement::F32 => elements.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            ArrayElement::F16 => {
                elements.as_chunks().0.iter().map(|bytes| F16::from_le_bytes(*bytes).to_f32()).collect()
            }
            ArrayElement::I8 => elements.iter().map(|byte| f32::from(*byte as i8)).collect(),
            ArrayElement::U8 => elements.iter().map(|byte| f32::from(*byte)).collect(),
        }
    }
}

/// How an array is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArrayFormat {
    /// NumPy's `.npy`.
    Npy,
    /// `.fvecs`: rows of f32.
    Fvecs,
    /// `.bvecs`: rows of u8.
    Bvecs,
    /// An array of numbers, or of arrays of numbers.
    Json,
}

impl ArrayFormat {
    /// What the first bytes of a file (eight, or all there are) say; its name decides between formats that look alike.
    pub fn of(start: &[u8], name: &str) -> Option<Self> {
        let first = start.iter().find(|byte| !byte.is_ascii_whitespace());
        match start {
            _ if start.starts_with(npy::MAGIC) => Some(ArrayFormat::Npy),
            // A dimension of at most 65,535, where text would have no zero bytes.
            [a, b, 0, 0, ..] if (*a, *b) != (0, 0) => {
                let is_bytes = name.to_ascii_lowercase().ends_with(".bvecs");
                Some(if is_bytes { ArrayFormat::Bvecs } else { ArrayFormat::Fvecs })
            }
            _ if first == Some(&b'[') => Some(ArrayFormat::Json),
            _ => None,
        }
    }
}

/// How the elements lie behind the header.
enum Layout {
    /// Row after row.
    Plain { is_big_endian: bool },
    /// Each row behind its dimension.
    Prefixed,
    /// All of them in memory.
    Decoded(Vec<u8>),
}

/// Reads the rows of an array in order.
pub struct ArrayReader<R> {
    name: String,
    source: Sniffed<R>,
    format: ArrayFormat,
    element: ArrayElement,
    dimension: usize,
    rows: Option<u64>,
    is_single: bool,
    layout: Layout,
    /// Where the rows begin in the source, in bytes.
    data_start: u64,
    next_row: u64,
}

impl<R> std::fmt::Debug for ArrayReader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (name, shape) = (&self.name, (self.rows, self.dimension));
        f.debug_struct("ArrayReader").field("name", name).field("shape", &shape).finish_non_exhaustive()
    }
}

fn malformed(name: &str, what: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::MalformedInput, format!("{name}: {what}"))
}

impl ArrayReader<BufReader<File>> {
    /// Opens a file.
    ///
    /// # Errors
    /// `Io` when it can't be read, `MalformedInput` when it holds no array of vectors; what to do is said.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open_file(path)?;
        let length = file.metadata().map_err(|error| read_failed(path, error))?.len();
        Self::new(&path.display().to_string(), BufReader::with_capacity(BUFFER_BYTES, file), Some(length))
    }
}

impl<R: Read> ArrayReader<R> {
    /// Reads what comes before the rows. `name` stands in errors and may end in the extension of a file; `length` is how
    /// many bytes the source holds, if that is known.
    ///
    /// # Errors
    /// As [`ArrayReader::open`].
    pub fn new(name: &str, source: R, length: Option<u64>) -> Result<Self> {
        let mut source = Sniffed { source, start: Vec::new(), given: 0 };
        source.sniff(name)?;
        let Some(format) = ArrayFormat::of(&source.start, name) else {
            let text = match source.start.is_empty() {
                true => "there is nothing in it: write vectors as .npy, .fvecs or a JSON array of numbers",
                false => "not .npy, .fvecs, .bvecs or a JSON array of numbers: write the vectors as one of these",
            };
            return Err(malformed(name, text));
        };
        let mut reader = ArrayReader {
            name: name.to_string(),
            source,
            format,
            element: if format == ArrayFormat::Bvecs { ArrayElement::U8 } else { ArrayElement::F32 },
            dimension: 0,
            rows: None,
            is_single: false,
            layout: Layout::Prefixed,
            data_start: 0,
            next_row: 0,
        };
        match format {
            ArrayFormat::Npy => reader.begin_npy()?,
            ArrayFormat::Fvecs | ArrayFormat::Bvecs => {
                reader.dimension =
                    reader.source.start.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize);
            }
            ArrayFormat::Json => reader.read_json()?,
        }
        if reader.dimension == 0 || reader.dimension > VECTOR_DIMENSION_MAX as usize {
            let text = format!("vectors of {} elements: they may have 1 to {VECTOR_DIMENSION_MAX}", reader.dimension);
            return Err(malformed(name, text));
        }
        reader.check_length(length)?;
        Ok(reader)
    }

    fn begin_npy(&mut self) -> Result<()> {
        let header = npy::read_header(&mut self.source, &self.name)?;
        self.element = header.element;
        self.layout = Layout::Plain { is_big_endian: header.is_big_endian };
        self.data_start = header.bytes;
        (self.rows, self.dimension) = (Some(header.rows.unwrap_or(1)), header.columns);
        self.is_single = header.rows.is_none();
        Ok(())
    }

    fn read_json(&mut self) -> Result<()> {
        let mut text = Vec::new();
        if read_up_to(&mut self.source, JSON_BYTES_MAX + 1, &mut text, &self.name)? > JSON_BYTES_MAX {
            let text = format!("more than {} MiB of JSON: write the vectors as .npy", JSON_BYTES_MAX >> 20);
            return Err(malformed(&self.name, text));
        }
        let array = json::read_array(&text).map_err(|what| malformed(&self.name, what))?;
        (self.rows, self.dimension, self.is_single) = (Some(array.rows), array.dimension, array.is_single);
        self.layout = Layout::Decoded(array.elements);
        Ok(())
    }

    /// Whether what the header says fits the length of the file.
    fn check_length(&mut self, length: Option<u64>) -> Result<()> {
        let (Some(length), stride) = (length, self.stride()) else { return Ok(()) };
        match &self.layout {
            Layout::Plain { .. } => {
                let rows = self.rows.unwrap_or(0);
                let wanted = rows.checked_mul(stride).and_then(|bytes| bytes.checked_add(self.data_start));
                if wanted != Some(length) {
                    let text = format!(
                        "{length} bytes are not the array of {rows} times {} that it says it is: write it again",
                        self.dimension
                    );
                    return Err(malformed(&self.name, text));
                }
            }
            Layout::Prefixed if length.is_multiple_of(stride) => self.rows = Some(length / stride),
            Layout::Prefixed => {
                let text = format!(
                    "{length} bytes are no whole number of vectors of {} elements: write it again",
                    self.dimension
                );
                return Err(malformed(&self.name, text));
            }
            Layout::Decoded(_) => {}
        }
        Ok(())
    }

    /// How the array is written.
    pub fn format(&self) -> ArrayFormat {
        self.format
    }

    /// What its elements are. Numbers of JSON come as f32.
    pub fn element(&self) -> ArrayElement {
        self.element
    }

    /// Elements of each row, 1 to 65,535.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// How many rows there are, when that is known before they are read.
    pub fn rows(&self) -> Option<u64> {
        self.rows
    }

    /// Whether the array has one dimension only: it is a single vector, not a list of them.
    pub fn is_single(&self) -> bool {
        self.is_single
    }

    /// Bytes of a row's elements.
    pub fn row_bytes(&self) -> usize {
        self.dimension * self.element.byte_width()
    }

    /// Bytes from one row to the next in the source.
    fn stride(&self) -> u64 {
        self.row_bytes() as u64 + if matches!(self.layout, Layout::Prefixed) { 4 } else { 0 }
    }

    /// Appends the elements of the next rows, little-endian, to `elements`: of at most `rows_max` of them. How many it
    /// were; 0: there are no more.
    ///
    /// # Errors
    /// `Io` when the source fails, `MalformedInput` when it ends within a row, goes on after the last, or has a row of
    /// another length; the row is said, counted from 0.
    pub fn read_rows(&mut self, rows_max: usize, elements: &mut Vec<u8>) -> Result<usize> {
        let left = self.rows.map_or(u64::MAX, |rows| rows.saturating_sub(self.next_row));
        let wanted = rows_max.min(usize::try_from(left).unwrap_or(usize::MAX));
        let taken = match &self.layout {
            Layout::Plain { is_big_endian } => self.read_plain(wanted, *is_big_endian, elements)?,
            Layout::Prefixed => self.read_prefixed(wanted, elements)?,
            Layout::Decoded(decoded) => {
                let start = usize::try_from(self.next_row).unwrap_or(usize::MAX).saturating_mul(self.row_bytes());
                let end = start.saturating_add(wanted.saturating_mul(self.row_bytes()));
                elements.extend_from_slice(decoded.get(start..end).unwrap_or_default());
                wanted
            }
        };
        self.next_row += taken as u64;
        if self.rows == Some(self.next_row) && wanted > 0 && !matches!(self.layout, Layout::Decoded(_)) {
            let mut more = Vec::new();
            if read_up_to(&mut self.source, 1, &mut more, &self.name)? > 0 {
                return Err(malformed(&self.name, "it goes on after the array that it says it holds: write one array"));
            }
        }
        Ok(taken)
    }

    fn read_plain(&mut self, rows: usize, is_big_endian: bool, elements: &mut Vec<u8>) -> Result<usize> {
        let bytes = rows.saturating_mul(self.row_bytes());
        let start = elements.len();
        let got = read_up_to(&mut self.source, bytes, elements, &self.name)?;
        if got < bytes {
            return Err(self.ends_early(self.next_row + (got / self.row_bytes()) as u64));
        }
        if is_big_endian {
            elements[start..].chunks_exact_mut(self.element.byte_width()).for_each(<[u8]>::reverse);
        }
        Ok(rows)
    }

    fn read_prefixed(&mut self, rows_max: usize, elements: &mut Vec<u8>) -> Result<usize> {
        let mut prefix = Vec::with_capacity(4);
        for taken in 0..rows_max {
            let row = self.next_row + taken as u64;
            prefix.clear();
            let got = read_up_to(&mut self.source, 4, &mut prefix, &self.name)?;
            if got == 0 && self.rows.is_none() {
                return Ok(taken);
            }
            let Some(dimension) = prefix.first_chunk().map(|bytes| i32::from_le_bytes(*bytes)) else {
                return Err(self.ends_early(row));
            };
            if usize::try_from(dimension) != Ok(self.dimension) {
                let text = format!(
                    "row {row} says that it has {dimension} elements where the first has {}: write it again",
                    self.dimension
                );
                return Err(malformed(&self.name, text));
            }
            let wanted = self.row_bytes();
            if read_up_to(&mut self.source, wanted, elements, &self.name)? < wanted {
                return Err(self.ends_early(row));
            }
        }
        Ok(rows_max)
    }

    fn ends_early(&self, row: u64) -> Error {
        let of = self.rows.map(|rows| format!(" of {rows}")).unwrap_or_default();
        malformed(&self.name, format!("it ends within row {row}{of}: write it again"))
    }
}

impl<R: Read + Seek> ArrayReader<R> {
    /// Has [`ArrayReader::read_rows`] go on with this row, counted from 0. Only for sources of which the length was given.
    ///
    /// # Errors
    /// `InvalidParameter` when there is no such row, `Io`.
    pub fn go_to(&mut self, row: u64) -> Result<()> {
        if self.rows.is_none_or(|rows| row > rows) {
            let text = format!("{}: there is no row {row} to go to", self.name);
            return Err(Error::new(ErrorCode::InvalidParameter, text));
        }
        if !matches!(self.layout, Layout::Decoded(_)) {
            let at = SeekFrom::Start(self.data_start + row * self.stride());
            self.source.start.clear();
            self.source.source.seek(at).map_err(|error| source_failed(&self.name, &error))?;
        }
        self.next_row = row;
        Ok(())
    }
}

/// A source whose first bytes were looked at before.
struct Sniffed<R> {
    source: R,
    start: Vec<u8>,
    given: usize,
}

impl<R: Read> Sniffed<R> {
    fn sniff(&mut self, name: &str) -> Result<()> {
        read_up_to(&mut self.source, SNIFFED_BYTES, &mut self.start, name).map(drop)
    }
}

impl<R: Read> Read for Sniffed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let ahead = self.start.get(self.given..).unwrap_or_default();
        if ahead.is_empty() {
            return self.source.read(buffer);
        }
        let count = ahead.len().min(buffer.len());
        buffer[..count].copy_from_slice(&ahead[..count]);
        self.given += count;
        Ok(count)
    }
}

fn source_failed(name: &str, error: &std::io::Error) -> Error {
    Error::new(ErrorCode::Io, format!("{name} can't be read: {error}"))
}

/// Appends what the source has, at most `bytes`; memory grows with what is there, not with what is asked for.
fn read_up_to(source: &mut impl Read, bytes: usize, into: &mut Vec<u8>, name: &str) -> Result<usize> {
    source.take(bytes as u64).read_to_end(into).map_err(|error| source_failed(name, &error))
}

#[cfg(test)]
mod tests;
