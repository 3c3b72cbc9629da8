//! CSV files: records cut by `csv-core`, values parsed by [`super::values`]; one part per file.
//!
//! Invariants
//! - Line numbers in errors are those an editor shows, also behind quoted fields that span lines.
//! - Memory is bounded: a chunk holds at most [`LOAD_BATCH_ROWS`] records or about [`CHUNK_BYTES`]; a single
//!   record longer than [`RECORD_BYTES_MAX`] (an unclosed quote) is an error.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::RecordBatch;
use csv_core::ReadRecordResult;
use hidb::{Error, ErrorCode, Field, Result, Schema, arrow_mapping};

use super::infer::infer_schema;
use super::ordered::{InputBatch, Part, PartError};
use super::values::parse_column;
use super::{InputOptions, Opened, open_file, read_failed};
use crate::load::LOAD_BATCH_ROWS;

const CHUNK_BYTES: usize = 8 << 20;
const RECORD_BYTES_MAX: usize = 64 << 20;

/// Types are inferred from all records of files up to this size, else from as many as this holds.
const SAMPLE_BYTES: u64 = 64 << 20;

/// Records of a CSV file: unquoted field bytes, one after another.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    data: Vec<u8>,
    /// Bytes of `data` that are fields; the rest is room.
    data_used: usize,
    /// Where each field ends in `data`; `columns` per record.
    ends: Vec<usize>,
    /// Entries of `ends` that are in use; the rest is room.
    ends_used: usize,
    /// The line each record begins on.
    lines: Vec<u64>,
    columns: usize,
}

impl Chunk {
    pub(super) fn rows(&self) -> usize {
        self.lines.len()
    }

    pub(super) fn line(&self, row: usize) -> u64 {
        self.lines[row]
    }

    pub(super) fn field(&self, row: usize, column: usize) -> &[u8] {
        let index = row * self.columns + column;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.data[start..self.ends[index]]
    }
}

/// Cuts a file into records.
pub(super) struct Records {
    path: PathBuf,
    file: File,
    core: csv_core::Reader,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    at_end: bool,
    last_byte: u8,
    /// Bytes of the file used up.
    pub(super) consumed: u64,
    pub(super) header: Vec<String>,
}

impl Records {
    pub(super) fn open(path: &Path, delimiter: Option<u8>) -> Result<Self> {
        let mut records = Records {
            path: path.to_path_buf(),
            file: open_file(path)?,
            core: csv_core::Reader::new(),
            buffer: vec![0; 1 << 20].into_boxed_slice(),
            start: 0,
            end: 0,
            at_end: false,
            last_byte: b'\n',
            consumed: 0,
            header: Vec::new(),
        };
        records.fill()?;
        // A byte order mark is no part of the first name.
        if records.buffer[..records.end].starts_with(b"\xef\xbb\xbf") {
            records.start = 3;
            records.consumed = 3;
        }
        let delimiter = delimiter.unwrap_or_else(|| {
            let line = records.buffer[records.start..records.end].split(|byte| *byte == b'\n').next().unwrap_or(&[]);
            guess_delimiter(line)
        });
        records.core = csv_core::ReaderBuilder::new().delimiter(delimiter).build();
        let mut header = Chunk::default();
        if !records.read_record(&mut header)? {
            return Err(records.malformed(1, "the header line is missing"));
        }
        header.columns = header.ends_used;
        for column in 0..header.columns {
            let name = std::str::from_utf8(header.field(0, column))
                .map_err(|_| {
                    let what = "not Parquet or Arrow IPC, and not CSV in UTF-8: the name of column";
                    records.malformed(header.line(0), &format!("{what} {} is not UTF-8 text", column + 1))
                })?
                .trim();
            if name.is_empty() {
                return Err(records.malformed(header.line(0), &format!("column {} has no name", column + 1)));
            }
            records.header.push(name.to_string());
        }
        Ok(records)
    }

    pub(super) fn malformed(&self, line: u64, what: &str) -> Error {
        Error::new(ErrorCode::MalformedInput, format!("{}, line {line}: {what}", self.path.display()))
    }

    fn fill(&mut self) -> Result<()> {
        self.start = 0;
        self.end = 0;
        loop {
            match self.file.read(&mut self.buffer) {
                Ok(0) => self.at_end = true,
                Ok(read) => self.end = read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(read_failed(&self.path, error)),
            }
            return Ok(());
        }
    }

    /// Appends one record; false at the end of the file.
    fn read_record(&mut self, chunk: &mut Chunk) -> Result<bool> {
        let (data_start, ends_start) = (chunk.data_used, chunk.ends_used);
        let (mut data_used, mut ends_used) = (data_start, ends_start);
        loop {
            if self.start == self.end && !self.at_end {
                self.fill()?;
            }
            // The room grows by doubling and is kept from record to record: zeroing it is paid once.
            if chunk.data.len() < data_used + 256 {
                if data_used - data_start > RECORD_BYTES_MAX {
                    let line = self.core.line();
                    return Err(self.malformed(line, "a record is longer than 64 MiB: is a quote not closed?"));
                }
                chunk.data.resize((2 * data_used).max(64 << 10), 0);
            }
            if chunk.ends.len() < ends_used + 8 {
                chunk.ends.resize((2 * ends_used).max(1024), 0);
            }
            let (result, read, wrote, ended) = self.core.read_record(
                &self.buffer[self.start..self.end],
                &mut chunk.data[data_used..],
                &mut chunk.ends[ends_used..],
            );
            if read > 0 {
                self.last_byte = self.buffer[self.start + read - 1];
            }
            self.start += read;
            self.consumed += read as u64;
            data_used += wrote;
            ends_used += ended;
            match result {
                ReadRecordResult::InputEmpty | ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull => {}
                ReadRecordResult::End => return Ok(false),
                ReadRecordResult::Record => {
                    for end in &mut chunk.ends[ends_start..ends_used] {
                        *end += data_start;
                    }
                    let inside = chunk.data[data_start..data_used].iter().filter(|byte| **byte == b'\n').count() as u64;
                    // The line feed that ends a record has been counted if it has been read.
                    let last_line = self.core.line() - u64::from(self.last_byte == b'\n');
                    chunk.lines.push(last_line.saturating_sub(inside).max(1));
                    (chunk.data_used, chunk.ends_used) = (data_used, ends_used);
                    return Ok(true);
                }
            }
        }
    }

    /// The next records; `None` at the end of the file.
    pub(super) fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        let columns = self.header.len();
        let mut chunk = Chunk { columns, ..Chunk::default() };
        while chunk.rows() < LOAD_BATCH_ROWS && chunk.data_used < CHUNK_BYTES {
            let before = chunk.ends_used;
            if !self.read_record(&mut chunk)? {
                break;
            }
            let fields = chunk.ends_used - before;
            if fields != columns {
                let line = chunk.line(chunk.rows() - 1);
                return Err(self.malformed(
                    line,
                    &format!(
                        "{fields} field{} where the header names {columns}: quote fields that contain the delimiter",
                        if fields == 1 { "" } else { "s" }
                    ),
                ));
            }
        }
        Ok((chunk.rows() > 0).then_some(chunk))
    }
}

/// The likeliest separator of a header line.
fn guess_delimiter(line: &[u8]) -> u8 {
    let count = |delimiter: u8| line.iter().filter(|byte| **byte == delimiter).count();
    // The first of equals wins: a line without any is one column.
    let mut best = b',';
    for candidate in [b'\t', b'|', b';'] {
        if count(candidate) > count(best) {
            best = candidate;
        }
    }
    best
}

pub(super) fn open(path: &Path, wanted: Option<&Schema>, options: &InputOptions) -> Result<Opened> {
    let (delimiter, null) = (options.delimiter, options.null.clone());
    let units = std::fs::metadata(path).map_err(|error| read_failed(path, error))?.len();
    let header = Records::open(path, delimiter)?.header;
    let mut inferred_rows = None;
    let schema = match wanted {
        Some(wanted) => wanted.clone(),
        None => {
            let mut records = Records::open(path, delimiter)?;
            let (types, rows) = infer_schema(&mut records, null.as_deref(), SAMPLE_BYTES)?;
            inferred_rows = Some(rows);
            let fields = header.iter().zip(types).map(|(name, data_type)| Field::new(name, data_type, true));
            Schema::new(fields.collect())
                .map_err(|error| Error::new(error.code, format!("{}: {}", path.display(), error.message)))?
        }
    };
    let order = match_header(path, &header, &schema)?;
    let parse_schema = schema.clone();
    let name = path.display().to_string();
    let path = path.to_path_buf();
    let decode = move |emit: &mut super::ordered::Emit<'_>| {
        let mut records = Records::open(&path, delimiter)?;
        let arrow_schema = arrow_mapping::to_arrow_schema(&parse_schema, true);
        let mut reported = 0;
        while let Some(chunk) = records.next_chunk()? {
            let mut columns = Vec::with_capacity(order.len());
            for (field, column) in parse_schema.fields().iter().zip(&order) {
                let parsed = parse_column(&chunk, *column, field, null.as_deref()).map_err(|bad| {
                    let hint = match inferred_rows {
                        Some(rows) => {
                            format!(" (the type was inferred from {rows} rows: give the types with --schema)")
                        }
                        None => String::new(),
                    };
                    records.malformed(
                        chunk.line(bad.row),
                        &format!("column {:?}: {}{hint}", field.name, bad.describe(&chunk, *column, field)),
                    )
                })?;
                columns.push(parsed);
            }
            let rows = RecordBatch::try_new(Arc::clone(&arrow_schema), columns)
                .map_err(|error| PartError::Failed(records.malformed(chunk.line(0), &error.to_string())))?;
            let units = records.consumed - reported;
            reported = records.consumed;
            emit(InputBatch { rows, units })?;
        }
        Ok(())
    };
    Ok(Opened { schema, units, rows: None, parts: vec![Part { name, decode: Box::new(decode) }] })
}

/// The file's column of each column of the schema.
fn match_header(path: &Path, header: &[String], schema: &Schema) -> Result<Vec<usize>> {
    let mismatch = |what: String| {
        Error::new(
            ErrorCode::InvalidSchema,
            format!("{}, line 1: {what}: the first line must name the columns", path.display()),
        )
    };
    let mut order = Vec::with_capacity(schema.len());
    for field in schema.fields() {
        let found = header
            .iter()
            .position(|name| *name == field.name)
            .or_else(|| header.iter().position(|name| name.eq_ignore_ascii_case(&field.name)))
            .ok_or_else(|| mismatch(format!("the header has no column {:?}", field.name)))?;
        order.push(found);
    }
    if let Some(extra) = (0..header.len()).find(|index| !order.contains(index)) {
        return Err(mismatch(format!("the column {:?} is not among those wanted", header[extra])));
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::super::{Input, InputOptions};
    use super::*;
    use arrow_array::{Array, cast::AsArray, types::*};
    use hidb::DataType;
    use std::io::Write;

    fn file(text: &[u8]) -> tempfile::TempPath {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text).unwrap();
        file.into_temp_path()
    }

    fn read(text: &[u8], options: InputOptions) -> Result<(Schema, Vec<RecordBatch>)> {
        let path = file(text);
        let input = Input::open(&[path.to_path_buf()], options)?;
        let schema = input.schema().clone();
        let batches = input.batches()?.map(|batch| batch.map(|batch| batch.rows)).collect::<Result<_>>()?;
        Ok((schema, batches))
    }

    fn error(text: &[u8], schema: Option<&str>) -> Error {
        let schema = schema.map(|text| crate::input::parse_schema(text).unwrap());
        read(text, InputOptions { schema, ..InputOptions::default() }).unwrap_err()
    }

    #[test]
    fn types_are_inferred_and_values_are_exact() {
        let text = b"id;price;when;at;ok;note;x\n1;17.00;1996-03-13;1996-03-13 10:00:00.5;true;\"a;\nb\";1.5e3\n\
                     2;-0.04;1996-04-12;1996-04-12T11:00:00;false;;2\n;;;;;x;\n";
        let (schema, batches) = read(text, InputOptions::default()).unwrap();
        let types: Vec<DataType> = schema.fields().iter().map(|field| field.data_type).collect();
        assert_eq!(
            types,
            [
                DataType::Int64,
                DataType::Decimal { precision: 18, scale: 2 },
                DataType::Date,
                DataType::Timestamp { utc: false },
                DataType::Boolean,
                DataType::Text,
                DataType::Float64
            ]
        );
        let rows = &batches[0];
        assert_eq!(rows.column(0).as_primitive::<Int64Type>().iter().collect::<Vec<_>>(), [Some(1), Some(2), None]);
        assert_eq!(
            rows.column(1).as_primitive::<Decimal64Type>().iter().collect::<Vec<_>>(),
            [Some(1700), Some(-4), None]
        );
        assert_eq!(rows.column(2).as_primitive::<Date32Type>().value(0), 9568);
        assert_eq!(rows.column(3).as_primitive::<TimestampMicrosecondType>().value(0), 826_711_200_500_000);
        assert!(!rows.column(4).as_boolean().value(1));
        assert_eq!(rows.column(5).as_string::<i32>().value(0), "a;\nb");
        assert!(rows.column(5).is_null(1));
        assert_eq!(rows.column(6).as_primitive::<Float64Type>().value(0), 1500.0);
    }

    #[test]
    fn errors_name_line_and_column_also_behind_multi_line_fields() {
        for (feed, name) in [("\n", "unix"), ("\r\n", "dos")] {
            let text = ["a,b", "1,\"two\nlines\"", "2,x", "bad,y", "3,z"].join(feed);
            let error = error(text.as_bytes(), Some("a int64, b text"));
            assert_eq!(error.code, ErrorCode::MalformedInput, "{name}");
            assert!(error.message.contains("line 5: column \"a\""), "{name}: {}", error.message);
            assert!(error.message.contains("\"bad\""), "{}", error.message);
        }
        let short = error(b"a,b\n1,2\n3\n", None);
        assert!(short.message.contains("line 3: 1 field where the header names 2"), "{}", short.message);
        let no_end = error(b"a,b\n1,2\n3,4,5", None);
        assert!(no_end.message.contains("line 3: 3 fields"), "{}", no_end.message);
    }

    #[test]
    fn values_that_do_not_fit_their_type_are_errors_and_not_rounded() {
        for (value, schema) in [
            ("40000", "a int16"),
            ("1.239", "a decimal(5,2)"),
            ("1000.00", "a decimal(5,2)"),
            ("1996-02-30", "a date"),
            ("maybe", "a boolean"),
            ("abcd", "a varchar(3)"),
            ("\"[1,2]\"", "a vector(3)"),
            ("", "a int64 not null"),
        ] {
            let text = format!("a\n{value}\n\"\"\n");
            let error = error(text.replace("\n\n", "\n\"\"\n").as_bytes(), Some(schema));
            assert_eq!(error.code, ErrorCode::MalformedInput, "{schema} {value}: {}", error.message);
            assert!(error.message.contains("line 2: column \"a\""), "{schema} {value}: {}", error.message);
        }
    }

    #[test]
    fn a_type_that_fits_only_the_sample_is_explained() {
        // Inference sees the whole of a small file, so the column falls back to text.
        let (schema, _) = read(b"a\n1\n2\nx\n", InputOptions::default()).unwrap();
        assert_eq!(schema.fields()[0].data_type, DataType::Text);
    }

    #[test]
    fn columns_are_found_by_name_and_nulls_by_their_text() {
        let options = InputOptions {
            schema: Some(crate::input::parse_schema("b text not null, a int32").unwrap()),
            null: Some("NA".into()),
            ..InputOptions::default()
        };
        let (_, batches) = read(b"a,b\n1,x\nNA,\n", options).unwrap();
        assert_eq!(batches[0].column(0).as_string::<i32>().value(1), "");
        assert!(batches[0].column(1).is_null(1));
    }

    #[test]
    fn bits_are_digits_or_lists_of_them() {
        let text = b"a\n1010000001\n\"[1,0,1,0,0,0,0,0,0,1]\"\n\n1 0 1 0 0 0 0 0 0 1\n";
        let schema = Some(crate::input::parse_schema("a vector(10,bit)").unwrap());
        let (_, batches) = read(text, InputOptions { schema, ..InputOptions::default() }).unwrap();
        let bits = batches[0].column(0).as_fixed_size_binary();
        let value = Some(&[0b101, 0b10][..]);
        // A blank line is no record.
        assert_eq!(bits.iter().collect::<Vec<_>>(), [value, value, value]);
        for wrong in ["101", "10100000011", "1010000002", "[1010000001"] {
            let error = error(format!("a\n{wrong}\n").as_bytes(), Some("a vector(10,bit)"));
            assert!(error.message.contains("is not a valid vector(10,bit)"), "{error}");
        }
    }

    #[test]
    fn a_text_that_is_too_long_is_told_by_its_length() {
        let text = format!("a\n{}\n", "x".repeat(hidb::VALUE_BYTES_MAX + 1));
        let error = error(text.as_bytes(), Some("a text"));
        assert!(error.message.contains("a text of 16777217 bytes: at most 16777216"), "{}", error.message);
    }

    #[test]
    fn many_records_keep_order_and_count() {
        let mut text = String::from("n,s\n");
        for n in 0..50_000 {
            text.push_str(&format!("{n},\"row, {n}\"\n"));
        }
        let (_, batches) = read(text.as_bytes(), InputOptions::default()).unwrap();
        let values: Vec<i64> =
            batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect();
        assert!(values.into_iter().eq(0..50_000));
    }
}
