//! Writes answers: text table, CSV, JSON lines, Arrow IPC, Parquet.
//!
//! Invariants
//! - All formats but the table stream: memory holds a batch (Parquet: an encoded row group), not the answer.
//! - Decimals are written with all their digits.
//! - A file appears under its name only when it is complete.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow_array::{Array, ArrayRef, RecordBatch, StringArray, cast::AsArray};
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use arrow_json::writer::{LineDelimited, WriterBuilder as JsonBuilder};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use clap::ValueEnum;
use hidb::{Error, ErrorCode, arrow_mapping};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::Failure;
use super::text::TextTable;

/// Rows that the table format shows.
pub const TABLE_ROWS_MAX: usize = 100;

/// Rows of a Parquet row group: what two batches of a scan make, so that readers can split the work.
const PARQUET_ROW_GROUP_ROWS: usize = 131_072;

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns, the first 100 rows.
    Table,
    /// Comma-separated values with a header.
    Csv,
    /// One JSON object per line.
    Json,
    /// Arrow IPC: a file with --output, a stream without.
    Arrow,
    /// Parquet.
    Parquet,
}

impl Format {
    /// What the extension of a file says.
    pub fn of_file(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "csv" => Some(Format::Csv),
            "json" | "jsonl" | "ndjson" => Some(Format::Json),
            "arrow" => Some(Format::Arrow),
            "parquet" => Some(Format::Parquet),
            _ => None,
        }
    }
}

/// Where bytes go; remembers that the reader of a pipe has gone, which the writers above it forget.
struct Target {
    inner: Box<dyn Write + Send>,
    broken: Arc<AtomicBool>,
}

impl Target {
    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && error.kind() == io::ErrorKind::BrokenPipe
        {
            self.broken.store(true, Ordering::Relaxed);
        }
        result
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.inner.write(bytes);
        self.note(result)
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.inner.flush();
        self.note(result)
    }
}

enum Writer {
    Table { rows: Vec<RecordBatch>, kept: usize, output: BufWriter<Target> },
    Csv(Box<arrow_csv::Writer<BufWriter<Target>>>),
    Json(Box<arrow_json::Writer<BufWriter<Target>, LineDelimited>>),
    ArrowFile(Box<arrow_ipc::writer::FileWriter<BufWriter<Target>>>),
    ArrowStream(Box<arrow_ipc::writer::StreamWriter<BufWriter<Target>>>),
    Parquet(Box<ArrowWriter<BufWriter<Target>>>),
}

/// Takes batches and writes them.
pub struct Output {
    writer: Writer,
    schema: SchemaRef,
    /// The schema of what is written, where it differs: vectors and bytes become text in CSV, bits in JSON, too.
    written_schema: SchemaRef,
    broken: Arc<AtomicBool>,
    pending: Option<PendingFile>,
    rows: u64,
}

/// A file that gets its name when it is complete.
struct PendingFile {
    partial: PathBuf,
    path: PathBuf,
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.partial);
    }
}

fn partial_path(path: &Path) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.{}.partial", std::process::id()))
}

impl Output {
    /// Opens the output; writes nothing that a reader could take for an answer yet.
    pub fn open(format: Format, path: Option<&Path>, schema: SchemaRef) -> Result<Self, Failure> {
        let broken = Arc::new(AtomicBool::new(false));
        let mut pending = None;
        let inner: Box<dyn Write + Send> = match path {
            None => Box::new(io::stdout()),
            Some(path) => {
                let can_be_renamed = std::fs::metadata(path).map_or(true, |metadata| metadata.is_file());
                let opened = if can_be_renamed { partial_path(path) } else { path.to_path_buf() };
                let file = File::create(&opened).map_err(|error| {
                    Error::new(
                        ErrorCode::Io,
                        format!("{} can't be written: {error}: choose another --output", path.display()),
                    )
                })?;
                if can_be_renamed {
                    pending = Some(PendingFile { partial: opened, path: path.to_path_buf() });
                }
                Box::new(file)
            }
        };
        let target = BufWriter::with_capacity(256 << 10, Target { inner, broken: broken.clone() });
        let written_schema = match format {
            Format::Csv => textual_schema(&schema, |field| is_bytes(field) || is_vector(field)),
            Format::Json => textual_schema(&schema, |field| bits_dimension(field).is_some()),
            _ => schema.clone(),
        };
        let writer = match format {
            Format::Table => Writer::Table { rows: Vec::new(), kept: 0, output: target },
            Format::Csv => Writer::Csv(Box::new(arrow_csv::WriterBuilder::new().with_header(true).build(target))),
            Format::Json => {
                Writer::Json(Box::new(JsonBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(target)))
            }
            Format::Arrow if path.is_some() => Writer::ArrowFile(Box::new(
                arrow_ipc::writer::FileWriter::try_new(target, &schema).map_err(|error| write_failed(&error))?,
            )),
            Format::Arrow => Writer::ArrowStream(Box::new(
                arrow_ipc::writer::StreamWriter::try_new(target, &schema).map_err(|error| write_failed(&error))?,
            )),
            Format::Parquet => {
                let properties = WriterProperties::builder()
                    .set_compression(Compression::ZSTD(ZstdLevel::default()))
                    .set_max_row_group_row_count(Some(PARQUET_ROW_GROUP_ROWS))
                    .build();
                Writer::Parquet(Box::new(
                    ArrowWriter::try_new(target, schema.clone(), Some(properties))
                        .map_err(|error| write_failed(&error))?,
                ))
            }
        };
        Ok(Output { writer, schema, written_schema, broken, pending, rows: 0 })
    }

    /// Whether binary would land on a terminal.
    pub fn would_garble_terminal(format: Format, path: Option<&Path>) -> bool {
        path.is_none() && matches!(format, Format::Arrow | Format::Parquet) && io::stdout().is_terminal()
    }

    /// Takes one batch.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), Failure> {
        self.rows += batch.num_rows() as u64;
        let outcome: Result<(), ArrowError> = match &mut self.writer {
            Writer::Table { rows, kept, .. } => {
                let wanted = (TABLE_ROWS_MAX - *kept).min(batch.num_rows());
                if wanted > 0 {
                    // Copied, so that the memory the batch borrows goes back to its connection.
                    let indices = arrow_array::UInt32Array::from_iter_values(0..wanted as u32);
                    match arrow_select::take::take_record_batch(batch, &indices) {
                        Ok(copy) => rows.push(copy),
                        Err(error) => return Err(write_failed(&error)),
                    }
                    *kept += wanted;
                }
                Ok(())
            }
            Writer::Csv(writer) => textual(batch, &self.written_schema).and_then(|batch| writer.write(&batch)),
            Writer::Json(writer) => textual(batch, &self.written_schema).and_then(|batch| writer.write(&batch)),
            Writer::ArrowFile(writer) => writer.write(batch),
            Writer::ArrowStream(writer) => writer.write(batch),
            Writer::Parquet(writer) => writer.write(batch).map_err(ArrowError::from),
        };
        outcome.map_err(|error| failed(&self.broken, &error))
    }

    /// Completes the output; `note` follows a table.
    pub fn finish(self, note: &str) -> Result<(), Failure> {
        let Output { writer, schema, written_schema, broken, pending, rows: all_rows } = self;
        let outcome: Result<(), ArrowError> = match writer {
            Writer::Table { rows, mut output, .. } => {
                let table = text_table(&schema, &rows).map_err(|error| write_failed(&error))?;
                let shown = rows.iter().map(RecordBatch::num_rows).sum::<usize>() as u64;
                table
                    .write(&mut output)
                    .and_then(|()| match shown < all_rows {
                        true => writeln!(output, "(the first {shown} of {note}; --format csv writes all of them)"),
                        false => writeln!(output, "({note})"),
                    })
                    .and_then(|()| output.flush())
                    .map_err(ArrowError::from)
            }
            Writer::Csv(mut writer) => {
                // A header is due even when there is no row.
                let empty = RecordBatch::new_empty(written_schema);
                let header = if all_rows == 0 { writer.write(&empty) } else { Ok(()) };
                header.and_then(|()| writer.into_inner().flush().map_err(ArrowError::from))
            }
            Writer::Json(mut writer) => {
                writer.finish().and_then(|()| writer.get_mut().flush().map_err(ArrowError::from))
            }
            Writer::ArrowFile(mut writer) => {
                writer.finish().and_then(|()| writer.get_mut().flush().map_err(ArrowError::from))
            }
            Writer::ArrowStream(mut writer) => {
                writer.finish().and_then(|()| writer.get_mut().flush().map_err(ArrowError::from))
            }
            Writer::Parquet(mut writer) => writer
                .finish()
                .map_err(ArrowError::from)
                .and_then(|_| writer.inner_mut().flush().map_err(ArrowError::from)),
        };
        outcome.map_err(|error| failed(&broken, &error))?;
        if let Some(pending) = &pending {
            std::fs::rename(&pending.partial, &pending.path)?;
        }
        Ok(())
    }
}

fn failed(broken: &AtomicBool, error: &dyn std::fmt::Display) -> Failure {
    if broken.load(Ordering::Relaxed) { Failure::BrokenPipe } else { write_failed(error) }
}

fn write_failed(error: &dyn std::fmt::Display) -> Failure {
    Failure::Request(Error::new(ErrorCode::Io, format!("the answer can't be written: {error}: check where it goes")))
}

fn is_bytes(field: &Field) -> bool {
    matches!(field.data_type(), DataType::Binary)
}

fn is_vector(field: &Field) -> bool {
    matches!(field.data_type(), DataType::FixedSizeList(..)) || bits_dimension(field).is_some()
}

/// The dimension of a column of vectors of bits.
fn bits_dimension(field: &Field) -> Option<usize> {
    match arrow_mapping::from_arrow_field(field).ok()? {
        hidb::DataType::Vector { dimension, element: hidb::VectorElement::Bit } => Some(dimension as usize),
        _ => None,
    }
}

/// The schema with text in place of the columns that the format can't hold: vectors as `[1,2]`, of bits as `101`, bytes
/// as `\x` and hexadecimal digits, all of which `load` reads back.
fn textual_schema(schema: &Schema, is_text: impl Fn(&Field) -> bool) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| match is_text(field) {
        true => Arc::new(Field::new(field.name(), DataType::Utf8, field.is_nullable())),
        false => field.clone(),
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// The batch with those columns as text that are text in `schema`.
fn textual(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    if batch.schema_ref() == schema {
        return Ok(batch.clone());
    }
    let incoming = batch.schema();
    let columns = batch.columns().iter().enumerate().map(|(index, column)| {
        let field = incoming.field(index);
        if schema.field(index).data_type() == field.data_type() {
            return Ok(column.clone());
        }
        if is_bytes(field) {
            return Ok(Arc::new(hexadecimal(column)) as ArrayRef);
        }
        if let Some(dimension) = bits_dimension(field) {
            return Ok(Arc::new(binary_digits(column, dimension)) as ArrayRef);
        }
        let format = FormatOptions::default();
        let formatter = ArrayFormatter::try_new(column, &format)?;
        let texts = (0..column.len())
            .map(|row| column.is_valid(row).then(|| formatter.value(row).to_string().replace(' ', "")));
        Ok(Arc::new(texts.collect::<StringArray>()) as ArrayRef)
    });
    RecordBatch::try_new(schema.clone(), columns.collect::<Result<Vec<_>, ArrowError>>()?)
}

/// Vectors of bits as digits, component 0 first.
fn binary_digits(column: &dyn Array, dimension: usize) -> StringArray {
    let text = |bytes: &[u8]| -> String {
        (0..dimension).map(|at| if bytes[at / 8] >> (at % 8) & 1 == 1 { '1' } else { '0' }).collect()
    };
    column.as_fixed_size_binary().iter().map(|value| value.map(text)).collect()
}

fn hexadecimal(column: &dyn Array) -> StringArray {
    let text = |bytes: &[u8]| {
        let mut text = String::with_capacity(2 + 2 * bytes.len());
        text.push_str("\\x");
        for byte in bytes {
            text.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or('0'));
            text.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or('0'));
        }
        text
    };
    column.as_binary::<i32>().iter().map(|value| value.map(text)).collect()
}

fn text_table(schema: &Schema, batches: &[RecordBatch]) -> Result<TextTable, ArrowError> {
    let columns = schema.fields().iter().map(|field| (field.name().clone(), field.data_type().is_numeric()));
    let mut table = TextTable::new(columns);
    let textual_schema = textual_schema(schema, |field| is_bytes(field) || is_vector(field));
    let format = FormatOptions::default()
        .with_null("NULL")
        .with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"))
        .with_timestamp_tz_format(Some("%Y-%m-%d %H:%M:%S%.fZ"));
    for batch in batches {
        let batch = textual(batch, &textual_schema)?;
        let formatters = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column, &format))
            .collect::<Result<Vec<_>, _>>()?;
        for row in 0..batch.num_rows() {
            table.push(formatters.iter().map(|formatter| formatter.value(row).to_string()));
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{BinaryArray, Decimal64Array, Decimal128Array, Int64Array};
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    fn batch() -> RecordBatch {
        let price: ArrayRef =
            Arc::new(Decimal64Array::from(vec![Some(1700), Some(-4), None]).with_precision_and_scale(15, 2).unwrap());
        let huge: ArrayRef =
            Arc::new(Decimal128Array::from(vec![10i128.pow(37) + 1, 0, -1]).with_precision_and_scale(38, 4).unwrap());
        let text: ArrayRef = Arc::new(StringArray::from(vec![Some("a,\"b\""), None, Some("line\nfeed")]));
        let bytes: ArrayRef = Arc::new(BinaryArray::from_opt_vec(vec![Some(&[0xde, 0xad]), Some(b""), None]));
        let key: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, i64::MAX]));
        RecordBatch::try_from_iter([("price", price), ("huge", huge), ("text", text), ("bytes", bytes), ("key", key)])
            .unwrap()
    }

    fn written(format: Format, batches: &[RecordBatch]) -> Vec<u8> {
        written_as(format, batch().schema(), batches)
    }

    fn written_as(format: Format, schema: SchemaRef, batches: &[RecordBatch]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answer");
        let mut output = Output::open(format, Some(&path), schema).ok().unwrap();
        for batch in batches {
            assert!(output.write(batch).is_ok());
        }
        assert!(!path.exists());
        assert!(output.finish("3 rows in 1 ms").is_ok());
        let entries = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(entries, 1, "the partial file is gone");
        std::fs::read(path).unwrap()
    }

    #[test]
    fn csv_is_exact_and_quoted() {
        let text = String::from_utf8(written(Format::Csv, &[batch()])).unwrap();
        let expected = "price,huge,text,bytes,key\n17.00,1000000000000000000000000000000000.0001,\"a,\"\"b\"\"\",\\xdead,1\n\
                        -0.04,0.0000,,\\x,2\n,-0.0001,\"line\nfeed\",,9223372036854775807\n";
        assert_eq!(text, expected);
        assert_eq!(written(Format::Csv, &[]), b"price,huge,text,bytes,key\n");
    }

    #[test]
    fn json_is_one_object_per_line_with_exact_numbers() {
        let text = String::from_utf8(written(Format::Json, &[batch()])).unwrap();
        let first = text.lines().next().unwrap();
        assert!(first.contains("\"price\":17.00,\"huge\":1000000000000000000000000000000000.0001"), "{first}");
        assert_eq!(text.lines().count(), 3);
        for line in text.lines() {
            assert_eq!(serde_json::from_str::<serde_json::Value>(line).unwrap().as_object().unwrap().len(), 5);
        }
        assert!(written(Format::Json, &[]).is_empty());
    }

    #[test]
    fn vectors_are_lists_and_those_of_bits_are_digits() {
        let vectors = |text: &str, values: Vec<u8>| {
            let data_type: hidb::DataType = text.parse().unwrap();
            let nulls = arrow_buffer::NullBuffer::from(vec![true, false]);
            arrow_mapping::vector_array(&data_type, 2, values.into(), Some(nulls)).unwrap()
        };
        let types = [("v", "vector(2,i8)"), ("b", "vector(10,bit)")];
        let fields = types.map(|(name, text)| hidb::Field::new(name, text.parse().unwrap(), true)).to_vec();
        let schema = arrow_mapping::to_arrow_schema(&hidb::Schema::new(fields).unwrap(), true);
        let columns = vec![vectors(types[0].1, vec![1, 0xff, 0, 0]), vectors(types[1].1, vec![0b101, 0b10, 0, 0])];
        let batch = RecordBatch::try_new(schema.clone(), columns).unwrap();
        let text =
            |format| String::from_utf8(written_as(format, schema.clone(), std::slice::from_ref(&batch))).unwrap();
        assert_eq!(text(Format::Csv), "v,b\n\"[1,-1]\",1010000001\n,\n");
        assert_eq!(text(Format::Json), "{\"v\":[1,-1],\"b\":\"1010000001\"}\n{\"v\":null,\"b\":null}\n");
        assert!(text(Format::Table).contains("[1,-1]  1010000001"), "{}", text(Format::Table));
        // What is written as Parquet is read as the same types.
        let bytes = bytes::Bytes::from(written_as(Format::Parquet, schema.clone(), std::slice::from_ref(&batch)));
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
        let read = arrow_mapping::from_arrow_schema(reader.schema()).unwrap();
        assert_eq!(read.fields().iter().map(|f| f.data_type.to_string()).collect::<Vec<_>>(), types.map(|(_, t)| t));
        assert_eq!(
            arrow_mapping::adapt_batch(&reader.build().unwrap().next().unwrap().unwrap(), &read).unwrap(),
            batch
        );
    }

    #[test]
    fn parquet_and_arrow_files_read_back_equal() {
        let bytes = bytes::Bytes::from(written(Format::Parquet, &[batch(), batch()]));
        let got: Vec<_> =
            ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap().map(Result::unwrap).collect();
        let got = arrow_select::concat::concat_batches(&batch().schema(), &got).unwrap();
        assert_eq!(got, arrow_select::concat::concat_batches(&batch().schema(), &[batch(), batch()]).unwrap());

        let file = std::io::Cursor::new(written(Format::Arrow, &[batch()]));
        let reader = arrow_ipc::reader::FileReader::try_new(file, None).unwrap();
        assert_eq!(reader.map(Result::unwrap).collect::<Vec<_>>(), [batch()]);
    }

    #[test]
    fn tables_align_numbers_and_say_how_many_rows_there_are() {
        let text = String::from_utf8(written(Format::Table, &[batch()])).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("price  "), "{text}");
        assert!(lines[2].starts_with("17.00  "), "{text}");
        assert!(lines[3].starts_with("-0.04  "), "{text}");
        assert!(lines[4].starts_with(" NULL  "), "{text}");
        assert_eq!(lines.last(), Some(&"(3 rows in 1 ms)"));
        let many: Vec<RecordBatch> = (0..50).map(|_| batch()).collect();
        let text = String::from_utf8(written(Format::Table, &many)).unwrap();
        assert_eq!(text.lines().count(), 2 + TABLE_ROWS_MAX + 1);
        assert!(text.contains("the first 100 of "));
    }
}
