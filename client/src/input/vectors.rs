//! Arrays of vectors (`.npy`, `.fvecs`, `.bvecs`) as tables with one column: one part per file.
//!
//! Owns [`open`]. The bytes are read by [`super::arrays`].
//!
//! Invariants
//! - A row of the array is a row of the table. No element changes its value: what is declared is the array's own type,
//!   or 32-bit floats, which hold all the others exactly, or bits, eight of which are one byte of the array.
//! - At most [`LOAD_BATCH_BYTES`] of elements are in memory at a time (a single row may be longer).

use std::path::Path;

use arrow_array::{ArrayRef, RecordBatch};
use arrow_buffer::Buffer;
use hidb::{DataType, Error, ErrorCode, Field, Result, Schema, VectorElement, arrow_mapping};

use super::arrays::{ArrayElement, ArrayReader};
use super::ordered::{InputBatch, Part, PartError};
use super::{Opened, read_failed};
use crate::load::{LOAD_BATCH_BYTES, LOAD_BATCH_ROWS};

/// What the column is called when nobody says.
const COLUMN: &str = "vector";

/// Opens a file. `wanted` is the schema it must have, `column` the name its column must have, or gets without a schema.
/// Progress counts rows or bytes.
pub(super) fn open(path: &Path, wanted: Option<&Schema>, column: Option<&str>, in_rows: bool) -> Result<Opened> {
    let reader = ArrayReader::open(path)?;
    let refuse = |code: ErrorCode, what: String| Error::new(code, format!("{}: {what}", path.display()));
    if reader.is_single() {
        let text = format!(
            "an array of one dimension: write it as one of rows (numpy: a.reshape(-1, {}))",
            reader.dimension()
        );
        return Err(refuse(ErrorCode::InvalidSchema, text));
    }
    let schema = match wanted {
        None => Schema::new(vec![Field::new(
            column.unwrap_or(COLUMN),
            own_type(&reader).map_err(|what| refuse(ErrorCode::UnsupportedType, what))?,
            false,
        )])?,
        Some(schema) => {
            check(schema, column, &reader).map_err(|(code, what)| refuse(code, what))?;
            schema.clone()
        }
    };
    let rows = reader.rows().unwrap_or(0);
    let length = std::fs::metadata(path).map_err(|error| read_failed(path, error))?.len();
    let units = if in_rows { rows } else { length };
    let decoding = Decoding { path: path.display().to_string(), schema: schema.clone(), reader, units, rows };
    let decode = move |emit: &mut super::ordered::Emit<'_>| decoding.run(emit);
    let part = Part { name: path.display().to_string(), decode: Box::new(decode) };
    Ok(Opened { schema, units, rows: Some(rows), parts: vec![part] })
}

type FileReader = ArrayReader<std::io::BufReader<std::fs::File>>;

/// The vector type that holds the array's rows as they are.
fn own_type(reader: &FileReader) -> Result<DataType, String> {
    let element = match reader.element() {
        ArrayElement::F32 => VectorElement::F32,
        ArrayElement::F16 => VectorElement::F16,
        ArrayElement::I8 => VectorElement::I8,
        ArrayElement::U8 => {
            let (bytes, bits) = (reader.dimension(), reader.dimension() * 8);
            return Err(format!(
                "rows of {bytes} unsigned bytes may be numbers or packed bits: say which by --schema '{COLUMN} \
                 vector({bytes})' (numbers, as 32-bit floats) or '{COLUMN} vector({bits},bit)'"
            ));
        }
    };
    Ok(DataType::Vector { dimension: reader.dimension() as u32, element })
}

/// Whether the array goes into the one column of this schema.
fn check(schema: &Schema, column: Option<&str>, reader: &FileReader) -> Result<(), (ErrorCode, String)> {
    let [field] = schema.fields() else {
        let text = format!("an array has one column, not the {} of the table: write Parquet or Arrow", schema.len());
        return Err((ErrorCode::InvalidSchema, text));
    };
    if let Some(column) = column.filter(|column| !column.eq_ignore_ascii_case(&field.name)) {
        let text = format!("--column says {column:?}, but the column is {:?}: leave --column out", field.name);
        return Err((ErrorCode::InvalidSchema, text));
    }
    let DataType::Vector { dimension, element } = field.data_type else {
        let text = format!("the column {:?} is {}, not a vector", field.name, field.data_type);
        return Err((ErrorCode::TypeMismatch, text));
    };
    let fits = match (reader.element(), element) {
        (ArrayElement::U8, VectorElement::Bit) => VectorElement::Bit.row_bytes(dimension) == reader.dimension(),
        (ArrayElement::F16, VectorElement::F16) | (ArrayElement::I8, VectorElement::I8) | (_, VectorElement::F32) => {
            dimension as usize == reader.dimension()
        }
        _ => false,
    };
    if fits {
        return Ok(());
    }
    let own = match reader.element() {
        ArrayElement::F32 => "32-bit floats",
        ArrayElement::F16 => "16-bit floats",
        ArrayElement::I8 => "signed bytes",
        ArrayElement::U8 => "unsigned bytes",
    };
    let text = format!(
        "the column {:?} is {}, and the array has rows of {} {own}: no element may change its value",
        field.name,
        field.data_type,
        reader.dimension()
    );
    Err((ErrorCode::TypeMismatch, text))
}

/// One file on its way.
struct Decoding {
    path: String,
    schema: Schema,
    reader: FileReader,
    units: u64,
    rows: u64,
}

impl Decoding {
    fn run(mut self, emit: &mut super::ordered::Emit<'_>) -> Result<(), PartError> {
        let rows_max = (LOAD_BATCH_BYTES / self.reader.row_bytes()).clamp(1, LOAD_BATCH_ROWS);
        let mut first_row = 0;
        loop {
            let mut elements = Vec::with_capacity(rows_max * self.reader.row_bytes());
            let count = self.reader.read_rows(rows_max, &mut elements)?;
            if count == 0 {
                return Ok(());
            }
            let rows = self
                .batch(elements, count, first_row)
                .map_err(|error| Error::new(error.code, format!("{}: {}", self.path, error.message)))?;
            first_row += count as u64;
            // In rows exactly; in bytes in proportion.
            let units = |rows: u64| (u128::from(self.units) * u128::from(rows) / u128::from(self.rows.max(1))) as u64;
            emit(InputBatch { rows, units: units(first_row) - units(first_row - count as u64) })?;
        }
    }

    fn batch(&self, elements: Vec<u8>, rows: usize, first_row: u64) -> Result<RecordBatch> {
        let data_type = self.schema.fields()[0].data_type;
        let is_f32 = matches!(data_type, DataType::Vector { element: VectorElement::F32, .. });
        let values = match self.reader.element() {
            ArrayElement::F32 => Buffer::from_vec(elements),
            element if is_f32 => Buffer::from_vec(element.numbers(&elements)),
            _ => Buffer::from_vec(elements),
        };
        let vectors: ArrayRef = arrow_mapping::vector_array(&data_type, rows, values, None)?;
        let batch = RecordBatch::try_new(arrow_mapping::to_arrow_schema(&self.schema, true), vec![vectors])
            .map_err(|error| Error::new(ErrorCode::Internal, error.to_string()))?;
        arrow_mapping::adapt_rows(&batch, &self.schema, first_row)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::{Input, InputOptions, parse_schema};
    use super::*;

    /// A `.npy` file of version 1.0, C order.
    fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
        header.push_str(&" ".repeat((64 - (10 + header.len() + 1) % 64) % 64));
        header.push('\n');
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn fvecs(dimension: usize, values: &[f32]) -> Vec<u8> {
        let row = |row: &[f32]| {
            let elements = row.iter().flat_map(|value| value.to_le_bytes());
            (dimension as i32).to_le_bytes().into_iter().chain(elements).collect::<Vec<_>>()
        };
        values.chunks(dimension).flat_map(row).collect()
    }

    fn read(
        name: &str,
        bytes: &[u8],
        schema: Option<&str>,
        column: Option<&str>,
    ) -> Result<(Schema, Vec<RecordBatch>)> {
        let folder = tempfile::tempdir().unwrap();
        let path: PathBuf = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let schema = schema.map(|text| parse_schema(text).unwrap());
        let column = column.map(str::to_string);
        let input = Input::open(&[path], InputOptions { schema, column, ..InputOptions::default() })?;
        let (schema, rows) = (input.schema().clone(), input.rows_total());
        let batches: Vec<RecordBatch> = input.batches()?.map(|batch| Ok(batch?.rows)).collect::<Result<_>>()?;
        assert_eq!(rows, Some(batches.iter().map(|batch| batch.num_rows() as u64).sum()));
        Ok((schema, batches))
    }

    /// All vectors of an answer, as bytes.
    fn bytes_of(schema: &Schema, batches: &[RecordBatch]) -> Vec<u8> {
        let data_type = schema.fields()[0].data_type;
        batches
            .iter()
            .flat_map(|batch| arrow_mapping::vector_bytes(batch.column(0), &data_type).unwrap().to_vec())
            .collect()
    }

    #[test]
    fn arrays_become_one_column_of_their_own_type() {
        let bytes: Vec<u8> = (0..60).collect();
        for (descr, shape, expected) in [
            ("<f4", "(5, 3)", "vector(3,f32)"),
            ("<f2", "(10, 3)", "vector(3,f16)"),
            ("|i1", "(4, 15)", "vector(15,i8)"),
        ] {
            let (schema, batches) = read("a.npy", &npy(descr, shape, &bytes), None, None).unwrap();
            let field = &schema.fields()[0];
            assert_eq!((field.name.as_str(), field.data_type.to_string().as_str()), ("vector", expected));
            assert_eq!(bytes_of(&schema, &batches), bytes, "{descr}");
            let (schema, _) = read("b", &npy(descr, shape, &bytes), None, Some("v")).unwrap();
            assert_eq!(schema.fields()[0].name, "v");
            assert!(read("c", &npy(descr, shape, &bytes), Some(&format!("v {expected} not null")), None).is_ok());
        }
        let values: Vec<f32> = (0..40_000).map(|at| at as f32).collect();
        let (schema, batches) = read("a.fvecs", &fvecs(2, &values), None, None).unwrap();
        assert!(batches.len() > 1 && schema.fields()[0].data_type.to_string() == "vector(2,f32)");
        assert_eq!(bytes_of(&schema, &batches), values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
        let (_, batches) = read("e.npy", &npy("<f4", "(0, 3)", &[]), None, None).unwrap();
        assert!(batches.is_empty());
    }

    #[test]
    fn unsigned_bytes_are_what_the_schema_says() {
        let bytes = npy("|u1", "(3, 2)", &[1, 2, 255, 3, 0, 128]);
        let error = read("a.npy", &bytes, None, None).unwrap_err();
        assert!(error.message.contains("'vector vector(2)'") && error.message.contains("vector(16,bit)"), "{error}");
        let (schema, batches) = read("a.npy", &bytes, Some("v vector(16,bit)"), None).unwrap();
        assert_eq!(bytes_of(&schema, &batches), [1, 2, 255, 3, 0, 128]);
        let (schema, batches) = read("a.npy", &bytes, Some("v vector(2)"), None).unwrap();
        let numbers = [1.0f32, 2.0, 255.0, 3.0, 0.0, 128.0];
        assert_eq!(bytes_of(&schema, &batches), numbers.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
        let error = read("a.npy", &bytes, Some("v vector(15,bit)"), None).unwrap_err();
        assert!(error.code == ErrorCode::InvalidValue && error.message.contains("row 2:"), "{error}");
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_file() {
        let floats = npy("<f4", "(2, 3)", &[0; 24]);
        for (schema, column, words) in [
            (Some("v vector(4)"), None, "rows of 3 32-bit floats"),
            (Some("v vector(3,f16)"), None, "rows of 3 32-bit floats"),
            (Some("v vector(3), n int64"), None, "not the 2 of the table"),
            (Some("v text"), None, "not a vector"),
            (Some("v vector(3)"), Some("w"), "leave --column out"),
        ] {
            let error = read("odd.npy", &floats, schema, column).unwrap_err();
            assert!(error.message.contains("odd.npy") && error.message.contains(words), "{error}");
        }
        let error = read("odd.npy", &npy("<f4", "(6,)", &[0; 24]), None, None).unwrap_err();
        assert!(error.message.contains("reshape(-1, 6)"), "{error}");
        let error = read("a.csv", b"a,b\n1,2\n", None, Some("v")).unwrap_err();
        assert!(error.message.contains("a.csv") && error.message.contains("--column"), "{error}");
    }
}
