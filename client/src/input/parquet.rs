//! Parquet files: one part per row group.

use std::path::Path;
use std::sync::Arc;

use hidb::{Error, ErrorCode, Result, Schema};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};

use super::columns::ColumnChoice;
use super::ordered::{InputBatch, Part, PartError};
use super::{Opened, open_file};
use crate::load::LOAD_BATCH_ROWS;

pub(super) fn open(path: &Path, wanted: Option<&Schema>, in_rows: bool) -> Result<Opened> {
    let malformed = |error: parquet::errors::ParquetError| {
        Error::new(ErrorCode::MalformedInput, format!("{} is not a readable Parquet file: {error}", path.display()))
    };
    let file = open_file(path)?;
    let read_metadata = || ArrowReaderMetadata::load(&file, ArrowReaderOptions::new());
    // The footer decoder can meet malformed counts that it trusts.
    let metadata = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read_metadata))
        .map_err(|_| {
            Error::new(ErrorCode::MalformedInput, format!("{}: the Parquet footer is malformed", path.display()))
        })?
        .map_err(malformed)?;
    let choice = Arc::new(ColumnChoice::new(path, metadata.schema(), wanted)?);
    let groups = metadata.metadata().row_groups();
    let rows: u64 = groups.iter().map(|group| u64::try_from(group.num_rows()).unwrap_or(0)).sum();
    let mut parts = Vec::with_capacity(groups.len());
    for (index, group) in groups.iter().enumerate() {
        let name = format!("{}, row group {index}", path.display());
        let (path, metadata, choice) = (path.to_path_buf(), metadata.clone(), choice.clone());
        let group_bytes = u64::try_from(group.compressed_size()).unwrap_or(0);
        let group_rows = u64::try_from(group.num_rows()).unwrap_or(0).max(1);
        let part_name = name.clone();
        let decode = move |emit: &mut super::ordered::Emit<'_>| {
            let malformed = |error: String| {
                PartError::Failed(Error::new(ErrorCode::MalformedInput, format!("{part_name}: {error}")))
            };
            let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(open_file(&path)?, metadata)
                .with_row_groups(vec![index])
                .with_batch_size(LOAD_BATCH_ROWS)
                .build()
                .map_err(|error| malformed(error.to_string()))?;
            let mut first_row = 0;
            for batch in reader {
                let batch = batch.map_err(|error| malformed(error.to_string()))?;
                let rows = choice.adapt(&batch, first_row).map_err(|error| {
                    PartError::Failed(Error::new(error.code, format!("{part_name}: {}", error.message)))
                })?;
                let count = rows.num_rows() as u64;
                first_row += count;
                let units = if in_rows { count } else { group_bytes * count / group_rows };
                emit(InputBatch { rows, units })?;
            }
            Ok(())
        };
        parts.push(Part { name, decode: Box::new(decode) });
    }
    let bytes = groups.iter().map(|group| u64::try_from(group.compressed_size()).unwrap_or(0)).sum();
    Ok(Opened { schema: choice.schema.clone(), units: if in_rows { rows } else { bytes }, rows: Some(rows), parts })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::cast::AsArray;
    use arrow_array::types::{Decimal128Type, Int16Type, Int32Type};
    use arrow_array::*;
    use hidb::{ErrorCode, Result, Schema};
    use parquet::arrow::ArrowWriter;

    use super::super::{Input, InputOptions};

    fn encoded(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
        let columns = columns.into_iter().map(|(name, array)| (name, array, true));
        let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes
    }

    fn read(bytes: &[u8]) -> Result<(Schema, Vec<RecordBatch>)> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let input = Input::open(&[file.path().to_path_buf()], InputOptions::default())?;
        let schema = input.schema().clone();
        let batches = input.batches()?.map(|batch| batch.map(|batch| batch.rows)).collect::<Result<_>>()?;
        Ok((schema, batches))
    }

    #[test]
    fn unsigned_dictionary_and_view_types_are_widened() {
        let dictionary: DictionaryArray<Int32Type> = [Some("x"), None, Some("x")].into_iter().collect();
        let (schema, batches) = read(&encoded(vec![
            ("u8", Arc::new(UInt8Array::from(vec![Some(u8::MAX), None, Some(0)]))),
            ("u16", Arc::new(UInt16Array::from(vec![u16::MAX, 0, 1]))),
            ("u32", Arc::new(UInt32Array::from(vec![u32::MAX, 0, 1]))),
            ("u64", Arc::new(UInt64Array::from(vec![Some(u64::MAX), None, Some(0)]))),
            ("dictionary", Arc::new(dictionary)),
            ("view", Arc::new(StringViewArray::from(vec![Some("longer than twelve bytes"), None, Some("")]))),
            ("bytes", Arc::new(BinaryViewArray::from(vec![Some(b"ab".as_slice()), None, Some(b"")]))),
        ]))
        .unwrap();
        let types: Vec<String> = schema.fields().iter().map(|field| field.data_type.to_string()).collect();
        assert_eq!(types, ["int16", "int32", "int64", "decimal(20,0)", "text", "text", "bytea"]);
        let rows = &batches[0];
        assert_eq!(rows.column(0).as_primitive::<Int16Type>().iter().collect::<Vec<_>>(), [Some(255), None, Some(0)]);
        assert_eq!(rows.column(3).as_primitive::<Decimal128Type>().value(0), u64::MAX.into());
        let texts = |at: usize| rows.column(at).as_string::<i32>().iter().collect::<Vec<_>>();
        assert_eq!(texts(4), [Some("x"), None, Some("x")]);
        assert_eq!(texts(5), [Some("longer than twelve bytes"), None, Some("")]);
        assert!(rows.column(6).is_null(1) && rows.column(6).as_binary::<i32>().value(0) == b"ab");
    }

    fn read_as(bytes: &[u8], schema: &str) -> Result<Vec<RecordBatch>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let schema = Some(crate::input::parse_schema(schema).unwrap());
        let input = Input::open(&[file.path().to_path_buf()], InputOptions { schema, ..InputOptions::default() })?;
        input.batches()?.map(|batch| batch.map(|batch| batch.rows)).collect()
    }

    #[test]
    fn lists_are_vectors_of_their_length_or_of_that_of_the_schema() {
        use arrow_array::types::{Float16Type, Float32Type, Float64Type, Int8Type};
        let fixed = |array: &dyn Array, length: i32| {
            let item = arrow_schema::Field::new("element", array.as_list::<i32>().value_type(), true);
            let fixed = arrow_schema::DataType::FixedSizeList(Arc::new(item), length);
            arrow_cast::cast(array, &fixed).unwrap()
        };
        let f32s = ListArray::from_iter_primitive::<Float32Type, _, _>([Some([Some(1.5), Some(2.0)]), None]);
        let f64s = ListArray::from_iter_primitive::<Float64Type, _, _>([Some([Some(1.5), Some(2.0)]), None]);
        let i8s = ListArray::from_iter_primitive::<Int8Type, _, _>([Some([Some(1), Some(-2)]), None]);
        let half = arrow_schema::Field::new("element", Float16Type::DATA_TYPE, true);
        let half = arrow_schema::DataType::FixedSizeList(Arc::new(half), 2);
        let f16s = arrow_cast::cast(&f32s, &half).unwrap();
        let lists: Vec<(&str, ArrayRef)> = vec![("a", fixed(&f32s, 2)), ("b", fixed(&i8s, 2)), ("c", f16s)];
        let (schema, batches) = read(&encoded(lists)).unwrap();
        let types: Vec<String> = schema.fields().iter().map(|field| field.data_type.to_string()).collect();
        assert_eq!(types, ["vector(2,f32)", "vector(2,i8)", "vector(2,f16)"]);
        assert!(batches[0].columns().iter().all(|column| column.null_count() == 1));
        let vectors = batches[0].column(0).as_fixed_size_list().value(0);
        assert_eq!(vectors.as_primitive::<Float32Type>().values(), &[1.5, 2.0]);
        for lists in [f32s, f64s] {
            let bytes = encoded(vec![("a", Arc::new(lists))]);
            assert_eq!(read(&bytes).unwrap_err().code, ErrorCode::UnsupportedType);
            let batches = read_as(&bytes, "a vector(2)").unwrap();
            assert_eq!(batches[0].column(0).as_fixed_size_list().value(0).as_ref(), vectors.as_ref());
            let error = read_as(&bytes, "a vector(2,f16)").unwrap_err();
            assert_eq!(error.code, ErrorCode::TypeMismatch, "{error}");
        }
        // Rows are counted over the batches that a row group is read in.
        let rows = (0..40_000).map(|row| Some(vec![Some(1.0f32); if row == 39_000 { 3 } else { 2 }]));
        let odd = ListArray::from_iter_primitive::<Float32Type, _, _>(rows);
        let error = read_as(&encoded(vec![("a", Arc::new(odd))]), "a vector(2)").unwrap_err();
        let words = "row group 0: column \"a\" (vector(2,f32)): row 39000: a list of 3 elements";
        assert!(error.code == ErrorCode::InvalidValue && error.message.contains(words), "{error}");
    }

    #[test]
    fn nested_types_and_times_are_refused_by_name() {
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1)])]);
        let inner: ArrayRef = Arc::new(Int32Array::from(vec![1]));
        let group = StructArray::try_from(vec![("inner", inner)]).unwrap();
        for (array, word) in [
            (Arc::new(list) as ArrayRef, "nested"),
            (Arc::new(group), "nested"),
            (Arc::new(Time64MicrosecondArray::from(vec![1])), "time of day"),
        ] {
            let error = read(&encoded(vec![("odd", array)])).unwrap_err();
            assert_eq!(error.code, ErrorCode::UnsupportedType, "{error}");
            assert!(error.message.contains("\"odd\"") && error.message.contains(word), "{error}");
        }
    }

    #[test]
    fn malformed_files_are_errors_that_name_the_file_and_never_panic() {
        let whole = encoded(vec![
            ("n", Arc::new(Int32Array::from_iter_values(0..500))),
            ("t", Arc::new(StringArray::from_iter_values((0..500).map(|n| format!("text {}", n % 7))))),
        ]);
        assert_eq!(read(&whole).unwrap().1[0].num_rows(), 500);
        for length in (4..whole.len()).step_by(13) {
            let error = read(&whole[..length]).unwrap_err();
            assert_eq!(error.code, ErrorCode::MalformedInput, "cut to {length} bytes: {error}");
            assert!(error.message.contains("Parquet"), "{error}");
        }
        // Parquet has no checksums by default: a flipped bit may be another value, but nothing worse.
        for at in (4..whole.len()).step_by(3) {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            if let Err(error) = read(&flipped) {
                assert_ne!(error.code, ErrorCode::Internal, "byte {at}: {error}");
            }
        }
    }
}
