//! Reads what is to be loaded: Parquet, CSV, Arrow IPC, arrays of vectors, and TPC-H tables made on the spot.
//!
//! Owns [`Input`]. Called by `heliostat load` and by benchmarks.
//!
//! Invariants
//! - Every batch has the canonical Arrow arrays of the input's [`Schema`], so that sending it costs no cast.
//! - What a file contains decides how it is read, not what it is called.
//! - An error names the file and the row group, batch or line.
//!
//! Decoding runs on threads of its own, several parts at a time; see [`ordered`].

pub mod arrays;
mod columns;
mod csv;
mod infer;
mod ipc;
mod ordered;
mod parquet;
mod tpch;
mod values;
mod vectors;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use hidb::{Error, ErrorCode, Result, Schema};

pub use ordered::InputBatch;
pub use tpch::TpchTable;

use ordered::{OrderedParts, Part};

/// How to read an input.
#[derive(Clone, Debug)]
pub struct InputOptions {
    /// The columns wanted: of the table that is appended to, or given by the user. Columns are found by
    /// name. Without it the first file decides.
    pub schema: Option<Schema>,
    /// What separates CSV fields; `None`: found out from the header line.
    pub delimiter: Option<u8>,
    /// The CSV field that means NULL (an empty field always does, except in NOT NULL text columns).
    pub null: Option<String>,
    /// What the column of an array of vectors is called; `None`: `vector`. Other files name their columns.
    pub column: Option<String>,
    /// Decoding threads.
    pub threads: usize,
    /// Decoded bytes that may wait to be sent.
    pub waiting_bytes_max: usize,
}

impl Default for InputOptions {
    fn default() -> Self {
        InputOptions {
            schema: None,
            delimiter: None,
            null: None,
            column: None,
            threads: std::thread::available_parallelism().map_or(2, |n| n.get()).min(8),
            waiting_bytes_max: 256 << 20,
        }
    }
}

/// An opened input: its columns, its size, and its rows as an iterator that blocks.
pub struct Input {
    schema: Schema,
    total: Option<u64>,
    rows_total: Option<u64>,
    parts: Vec<Part>,
    options: InputOptions,
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input").field("schema", &self.schema).field("parts", &self.parts.len()).finish_non_exhaustive()
    }
}

/// The formats that are told apart by the first bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Parquet,
    IpcFile,
    IpcStream,
    Vectors,
    Csv,
}

impl Input {
    /// Opens files that have the same columns.
    pub fn open(paths: &[PathBuf], options: InputOptions) -> Result<Input> {
        let mut schema = options.schema.clone();
        let mut parts = Vec::new();
        let mut total = 0;
        let mut rows_total = Some(0);
        // Bytes and rows don't add up: progress is in rows only when every file knows its rows.
        let formats = paths.iter().map(|path| sniff(path)).collect::<Result<Vec<_>>>()?;
        let in_rows = formats.iter().all(|format| matches!(format, Format::Parquet | Format::Vectors));
        for (path, format) in paths.iter().zip(formats) {
            if options.column.is_some() && format != Format::Vectors {
                let text = "a file that names its columns: --column is for arrays (.npy, .fvecs)";
                return Err(Error::new(ErrorCode::InvalidParameter, format!("{}: {text}", path.display())));
            }
            let opened = match format {
                Format::Parquet => parquet::open(path, schema.as_ref(), in_rows)?,
                Format::IpcFile | Format::IpcStream => ipc::open(path, schema.as_ref(), format == Format::IpcFile)?,
                Format::Vectors => vectors::open(path, schema.as_ref(), options.column.as_deref(), in_rows)?,
                Format::Csv => csv::open(path, schema.as_ref(), &options)?,
            };
            total += opened.units;
            rows_total = rows_total.zip(opened.rows).map(|(sum, rows)| sum + rows);
            parts.extend(opened.parts);
            schema.get_or_insert(opened.schema);
        }
        let schema =
            schema.ok_or_else(|| Error::new(ErrorCode::InvalidParameter, "no file to load: name at least one"))?;
        Ok(Input { schema, total: Some(total), rows_total, parts, options })
    }

    /// Generates a TPC-H table at a scale factor.
    pub fn tpch(table: TpchTable, scale: f64, options: InputOptions) -> Result<Input> {
        let opened = tpch::open(table, scale, options.schema.as_ref())?;
        Ok(Input {
            schema: opened.schema,
            total: Some(opened.units),
            rows_total: opened.rows,
            parts: opened.parts,
            options,
        })
    }

    /// The columns.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// The sum of all [`InputBatch::units`], if it can be known (an estimate for TPC-H lineitem).
    pub fn total(&self) -> Option<u64> {
        self.total
    }

    /// Rows, when the input says so beforehand.
    pub fn rows_total(&self) -> Option<u64> {
        self.rows_total
    }

    /// Starts decoding. The iterator blocks.
    pub fn batches(self) -> Result<impl Iterator<Item = Result<InputBatch>> + Send> {
        OrderedParts::start(self.parts, self.options.threads, self.options.waiting_bytes_max)
    }
}

/// Columns written as people write them: `a int64, b text not null, c decimal(15,2)`.
pub fn parse_schema(text: &str) -> Result<Schema> {
    let invalid = |what: String| {
        Error::new(ErrorCode::InvalidSchema, format!("{what}: write a schema as 'a int64, b text not null'"))
    };
    let mut fields = Vec::new();
    // Commas inside parentheses belong to a type.
    let mut depth = 0;
    for item in text.split(|character| {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        character == ',' && depth == 0
    }) {
        let item = item.trim();
        let (name, rest) = match item.strip_prefix('"') {
            Some(quoted) => {
                quoted.split_once('"').ok_or_else(|| invalid(format!("a quote is not closed in {item:?}")))?
            }
            None => item.split_once(char::is_whitespace).ok_or_else(|| invalid(format!("no type in {item:?}")))?,
        };
        let rest = rest.trim();
        let lower = rest.to_ascii_lowercase();
        let words: Vec<&str> = lower.split_whitespace().collect();
        let (type_text, nullable) = match words.as_slice() {
            [.., "not", "null"] => (words[..words.len() - 2].join(" "), false),
            [.., "null"] => (words[..words.len() - 1].join(" "), true),
            _ => (words.join(" "), true),
        };
        let data_type = type_text.parse().map_err(|error| invalid(format!("column {name:?}: {error}")))?;
        fields.push(hidb::Field::new(name, data_type, nullable));
    }
    Schema::new(fields)
}

/// One opened file or generator.
struct Opened {
    schema: Schema,
    units: u64,
    rows: Option<u64>,
    parts: Vec<Part>,
}

fn open_file(path: &Path) -> Result<File> {
    use std::io::ErrorKind;
    let failed = |error: std::io::Error| {
        let advice = match error.kind() {
            _ if path.as_os_str() == "-" => "standard input is not read: write it to a file first",
            ErrorKind::PermissionDenied => "check its permissions",
            _ => "check the name",
        };
        Error::new(ErrorCode::Io, format!("{} can't be opened: {error}: {advice}", path.display()))
    };
    let refuse = |why: &str| Err(Error::new(ErrorCode::Io, format!("{} is {why}", path.display())));
    // Before it is opened: opening a pipe waits for its writer.
    let kind = std::fs::metadata(path).map_err(failed)?.file_type();
    if kind.is_dir() {
        return refuse("a directory: name the files in it");
    }
    if !kind.is_file() && !kind.is_block_device() {
        return refuse("a pipe or a device, and files are read more than once: write it to a file first");
    }
    File::open(path).map_err(failed)
}

fn read_failed(path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorCode::Io, format!("{} can't be read: {error}", path.display()))
}

fn sniff(path: &Path) -> Result<Format> {
    let refuse = |why: &str| Err(Error::new(ErrorCode::MalformedInput, format!("{}: {why}", path.display())));
    let mut start = Vec::new();
    open_file(path)?.take(4096).read_to_end(&mut start).map_err(|error| read_failed(path, error))?;
    match start.as_slice() {
        [] => refuse("the file is empty: a CSV file needs at least a header line"),
        bytes if bytes.starts_with(b"PAR1") => Ok(Format::Parquet),
        bytes if bytes.starts_with(b"PARE") => refuse("encrypted Parquet is not supported: write it unencrypted"),
        bytes if bytes.starts_with(b"ARROW1") => Ok(Format::IpcFile),
        bytes if bytes.starts_with(&[0xff; 4]) => Ok(Format::IpcStream),
        bytes if bytes.starts_with(&[0x1f, 0x8b]) || bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) => {
            refuse("the file is compressed: decompress it first")
        }
        bytes if is_array(bytes, path) => Ok(Format::Vectors),
        bytes if bytes.contains(&0) => refuse("not Parquet, Arrow IPC, .npy or .fvecs, and not CSV: it is not text"),
        bytes if looks_like_json(bytes) => refuse(
            "not Parquet or Arrow IPC, and not CSV: it looks like JSON, which is not read: write it as one of these",
        ),
        _ => Ok(Format::Csv),
    }
}

/// Whether a file begins as an array of vectors does. JSON has no types to make a column of.
fn is_array(start: &[u8], path: &Path) -> bool {
    use arrays::ArrayFormat;
    let format = ArrayFormat::of(&start[..start.len().min(8)], &path.to_string_lossy());
    format.is_some_and(|format| format != ArrayFormat::Json)
}

/// Whether a file begins as only a JSON object or an array of objects, arrays or strings does.
fn looks_like_json(start: &[u8]) -> bool {
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    let mut characters = start.iter().filter(|byte| !byte.is_ascii_whitespace());
    matches!(
        (characters.next(), characters.next()),
        (Some(b'{'), Some(b'"' | b'}')) | (Some(b'['), Some(b'{' | b'[' | b'"' | b']'))
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn schemas_parse_with_types_that_contain_commas() {
        use hidb::DataType;
        let schema = parse_schema("a int64, \"b c\" decimal(15, 2) not null,c varchar(10) NULL").unwrap();
        let got: Vec<_> = schema.fields().iter().map(|f| (f.name.as_str(), f.data_type, f.nullable)).collect();
        assert_eq!(
            got,
            [
                ("a", DataType::Int64, true),
                ("b c", DataType::Decimal { precision: 15, scale: 2 }, false),
                ("c", DataType::Varchar(10), true)
            ]
        );
        for text in ["", "a", "a int64,", "a int128", "a int64, a text"] {
            assert_eq!(parse_schema(text).unwrap_err().code, ErrorCode::InvalidSchema, "{text:?}");
        }
    }

    #[test]
    fn content_decides_the_format_and_odd_files_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            File::create(&path).unwrap().write_all(bytes).unwrap();
            path
        };
        assert_eq!(sniff(&file("a.csv", b"PAR1....")).unwrap(), Format::Parquet);
        assert_eq!(sniff(&file("b.parquet", b"a,b\n1,2\n")).unwrap(), Format::Csv);
        assert_eq!(sniff(&file("c", b"\xff\xff\xff\xff\x10\0\0\0")).unwrap(), Format::IpcStream);
        assert_eq!(sniff(&file("d", b"ARROW1\0\0")).unwrap(), Format::IpcFile);
        assert_eq!(sniff(&file("h.csv", b"[id],{name}\n1,2\n")).unwrap(), Format::Csv);
        assert_eq!(sniff(&file("n.npy", b"\x93NUMPY\x01\x00")).unwrap(), Format::Vectors);
        assert_eq!(sniff(&file("v.fvecs", b"\x02\0\0\0\0\0\0\0\0\0\0\0")).unwrap(), Format::Vectors);
        for (name, bytes) in [
            ("e", &b""[..]),
            ("f.gz", b"\x1f\x8b\x08"),
            ("g.bin", b"ab\0c"),
            ("i.json", b" {\n  \"a\": 1}"),
            ("j.json", b"\xef\xbb\xbf[{\"a\": 1}]"),
        ] {
            let error = sniff(&file(name, bytes)).unwrap_err();
            assert_eq!(error.code, ErrorCode::MalformedInput);
            assert!(error.message.contains(name), "{}", error.message);
        }
        assert!(sniff(folder.path()).unwrap_err().message.contains("directory"));
        assert!(sniff(Path::new("/dev/null")).unwrap_err().message.contains("a pipe or a device"));
        assert!(sniff(&folder.path().join("none")).unwrap_err().message.contains("check the name"));
        let garbled = file("k.parquet", b"\xfe\x80\x81,\x90\n");
        let error = Input::open(&[garbled], InputOptions::default()).unwrap_err();
        assert!(error.message.contains("k.parquet, line 1: not Parquet or Arrow IPC"), "{}", error.message);
    }
}
