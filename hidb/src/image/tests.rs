//! Images compared with arrow-ipc's own stream reader and writer.

use std::io::Cursor;
use std::sync::Arc;

use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal64Array, Decimal128Array, FixedSizeBinaryArray,
    FixedSizeListArray, Float32Array, Float64Array, Int16Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::StreamWriter;
use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::arrow_mapping::{to_arrow_schema, to_arrow_type};
use crate::schema::{Field, Schema};
use crate::types::{DataType, VectorElement};

const END_OF_STREAM: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// What arrow-ipc makes of a schema message and images.
fn independent_read(schema: &Schema, images: &[&[u8]]) -> Vec<RecordBatch> {
    let mut stream = schema_message(schema, true);
    for image in images {
        stream.extend_from_slice(image);
    }
    stream.extend_from_slice(&END_OF_STREAM);
    StreamReader::try_new(Cursor::new(stream), None).unwrap().map(|batch| batch.unwrap()).collect()
}

fn all_types() -> Schema {
    let types = [
        "boolean",
        "int16",
        "int32",
        "int64",
        "float32",
        "float64",
        "decimal(12,2)",
        "decimal(30,4)",
        "text",
        "varchar(9)",
        "bytea",
        "timestamp",
        "timestamptz",
        "date",
        "vector(3,f32)",
        "vector(2,f16)",
        "vector(5,i8)",
        "vector(11,bit)",
        "vector(16,bit)",
    ];
    let fields = types.iter().enumerate().flat_map(|(index, name)| {
        let data_type: DataType = name.parse().unwrap();
        [Field::new(format!("n{index}"), data_type, true), Field::new(format!("c{index}"), data_type, false)]
    });
    Schema::new(fields.collect()).unwrap()
}

fn column(data_type: &DataType, nullable: bool, seeds: &[Option<i64>]) -> ArrayRef {
    let values: Vec<Option<i64>> =
        seeds.iter().map(|seed| if nullable { *seed } else { Some(seed.unwrap_or(3)) }).collect();
    let ints = || values.iter().copied();
    let text = || values.iter().map(|v| v.map(|v| "né".repeat((v.unsigned_abs() % 4) as usize)));
    match data_type {
        DataType::Boolean => Arc::new(ints().map(|v| v.map(|v| v % 2 == 0)).collect::<BooleanArray>()),
        DataType::Int16 => Arc::new(ints().map(|v| v.map(|v| v as i16)).collect::<Int16Array>()),
        DataType::Int32 => Arc::new(ints().map(|v| v.map(|v| v as i32)).collect::<Int32Array>()),
        DataType::Int64 => Arc::new(ints().collect::<Int64Array>()),
        DataType::Float32 => Arc::new(ints().map(|v| v.map(|v| v as f32)).collect::<Float32Array>()),
        DataType::Float64 => Arc::new(ints().map(|v| v.map(|v| v as f64)).collect::<Float64Array>()),
        DataType::Decimal { precision, scale } if *precision <= 18 => Arc::new(
            ints()
                .map(|v| v.map(|v| v % 1_000_000))
                .collect::<Decimal64Array>()
                .with_precision_and_scale(*precision, *scale as i8)
                .unwrap(),
        ),
        DataType::Decimal { precision, scale } => Arc::new(
            ints()
                .map(|v| v.map(i128::from))
                .collect::<Decimal128Array>()
                .with_precision_and_scale(*precision, *scale as i8)
                .unwrap(),
        ),
        DataType::Text | DataType::Varchar(_) => Arc::new(text().collect::<StringArray>()),
        DataType::Bytea => Arc::new(text().map(|t| t.map(String::into_bytes)).collect::<BinaryArray>()),
        DataType::Timestamp { utc } => {
            let array = ints().collect::<TimestampMicrosecondArray>();
            Arc::new(if *utc { array.with_timezone("UTC") } else { array })
        }
        DataType::Date => Arc::new(ints().map(|v| v.map(|v| v as i32)).collect::<Date32Array>()),
        DataType::Vector { dimension, element: VectorElement::Bit } => {
            let width = data_type.fixed_width().unwrap();
            let value = |seed: i64| {
                let mut bytes: Vec<u8> = (0..width).map(|at| (seed >> (8 * at)) as u8).collect();
                bytes[width - 1] &= !VectorElement::Bit.spare_bits(*dimension);
                bytes
            };
            let rows = values.iter().map(|seed| seed.map(value));
            Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(rows, width as i32).unwrap())
        }
        DataType::Vector { dimension, .. } => {
            let arrow_schema::DataType::FixedSizeList(element, size) = to_arrow_type(data_type, true) else {
                panic!("a vector is a list")
            };
            let floats: Vec<f32> = (0..values.len() * *dimension as usize).map(|i| (i % 100) as f32).collect();
            let child: ArrayRef = Arc::new(Float32Array::from(floats));
            let child = arrow_cast::cast(&child, element.data_type()).unwrap();
            let nulls = nullable.then(|| values.iter().map(Option::is_some).collect());
            Arc::new(FixedSizeListArray::new(element, size, child, nulls))
        }
    }
}

fn batch(schema: &Schema, seeds: &[Option<i64>]) -> RecordBatch {
    let columns = schema.fields().iter().map(|f| column(&f.data_type, f.nullable, seeds)).collect();
    RecordBatch::try_new(to_arrow_schema(schema, true), columns).unwrap()
}

#[test]
fn schemas_read_back_and_agree_with_arrow() {
    let schema = all_types();
    for decimal64 in [true, false] {
        let message = schema_message(&schema, decimal64);
        assert_eq!(read_schema(&message).unwrap(), to_arrow_schema(&schema, decimal64));
        let mut stream = message.clone();
        stream.extend_from_slice(&END_OF_STREAM);
        let reader = StreamReader::try_new(Cursor::new(stream), None).unwrap();
        assert_eq!(reader.schema(), to_arrow_schema(&schema, decimal64));
    }
}

#[test]
fn fixed_size_binary_is_carried_as_bits_only() {
    let message = |metadata: &[(&str, &str)]| {
        let metadata = metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let field = arrow_schema::Field::new("v", ArrowType::FixedSizeBinary(2), true).with_metadata(metadata);
        let schema = arrow_schema::Schema::new(vec![field]);
        let mut bytes = Vec::new();
        StreamWriter::try_new(&mut bytes, &schema).unwrap().finish().unwrap();
        bytes
    };
    let name = ("ARROW:extension:name", "heliostat.bits");
    for metadata in [&[][..], &[name], &[name, ("ARROW:extension:metadata", "17")], &[("a", "b")]] {
        let error = read_schema(&message(metadata)).unwrap_err();
        assert_eq!(error.code, crate::ErrorCode::UnsupportedType, "{metadata:?}");
    }
    let bits = read_schema(&message(&[name, ("ARROW:extension:metadata", "12"), ("a", "b")])).unwrap();
    let schema = Schema::new(vec![Field::new("v", "vector(12,bit)".parse().unwrap(), true)]).unwrap();
    assert_eq!(bits, to_arrow_schema(&schema, true));
}

#[test]
fn a_written_image_is_what_arrow_reads_and_what_we_read() {
    let fields = vec![
        Field::new("id", DataType::Int64, false),
        Field::new("price", DataType::Decimal { precision: 30, scale: 2 }, true),
        Field::new("flag", DataType::Boolean, true),
        Field::new("name", DataType::Text, true),
        Field::new("comment", DataType::Text, false),
        Field::new("v", "vector(3,f32)".parse().unwrap(), false),
    ];
    let schema = Schema::new(fields).unwrap();
    let layout = ImageLayout::new(&schema, true, 64 << 10).unwrap();
    for rows in [0, 1, 100, layout.rows_capacity().min(400)] {
        let mut writer = ImageWriter::new(&layout);
        let mut seeds = Vec::new();
        for row in 0..rows {
            let null = row % 7 == 3;
            seeds.push((!null).then_some(row as i64));
            writer.fixed_mut::<i64>(0)[row] = row as i64;
            writer.fixed_mut::<i128>(1)[row] = row as i128;
            if row % 2 == 0 {
                writer.values_mut(2)[row / 8] |= 1 << (row % 8);
            }
            if null {
                writer.set_null(1, row);
                writer.set_null(2, row);
                assert!(writer.push_null(3));
            } else {
                assert!(writer.push_bytes(3, "né".repeat(row % 4).as_bytes()));
            }
            assert!(writer.push_bytes(4, format!("row {row}").as_bytes()));
            for element in 0..3 {
                writer.fixed_mut::<f32>(5)[row * 3 + element] = (row * 3 + element) as f32;
            }
        }
        // One value too many, taken back by finish: another column of its row did not fit.
        writer.push_bytes(4, b"surplus");
        let image = writer.finish(rows).unwrap();
        assert_eq!(image.rows as usize, rows);
        assert!(image.bytes.len() <= 64 << 10);
        let bytes = image.bytes.into_bytes();
        let by_arrow = independent_read(&schema, &[&bytes]).remove(0);
        let by_us = read_image(bytes, &to_arrow_schema(&schema, true)).unwrap();
        assert_eq!(by_arrow, by_us);
        let price = column(&DataType::Decimal { precision: 30, scale: 2 }, true, &seeds);
        assert_eq!(by_us.column(1), &price);
        assert_eq!(by_us.column(2), &column(&DataType::Boolean, true, &seeds));
        assert_eq!(by_us.column(3), &column(&DataType::Text, true, &seeds));
        let comments: StringArray = (0..rows).map(|row| Some(format!("row {row}"))).collect();
        assert_eq!(by_us.column(4).as_ref(), &comments as &dyn arrow_array::Array);
    }
}

#[test]
fn reading_an_aligned_image_borrows_it() {
    let schema = Schema::new(vec![Field::new("a", DataType::Int64, false)]).unwrap();
    let bytes = image_of_batch(&batch(&schema, &[Some(1), Some(2)])).unwrap().bytes.into_bytes();
    let range = bytes.as_ptr_range();
    let read = read_image(bytes.clone(), &to_arrow_schema(&schema, true)).unwrap();
    assert!(range.contains(&read.column(0).to_data().buffers()[0].as_ptr()));
}

#[test]
fn a_full_image_is_close_to_its_limit_and_never_over_it() {
    for types in [&["int64"][..], &["int32", "text"], &["boolean"], &["decimal(30,2)", "text", "text", "vector(7,f32)"]]
    {
        let fields = types.iter().enumerate();
        let fields = fields.map(|(i, t)| Field::new(format!("c{i}"), t.parse().unwrap(), i % 2 == 1));
        let schema = Schema::new(fields.collect()).unwrap();
        let layout = ImageLayout::new(&schema, true, IMAGE_BYTES_MAX).unwrap();
        let writer = ImageWriter::new(&layout);
        assert!(writer.bytes_len() <= IMAGE_BYTES_MAX);
        let full = layout.rows_capacity() == IMAGE_ROWS_MAX || writer.bytes_len() > IMAGE_BYTES_MAX / 100 * 98;
        assert!(full, "{types:?}: {} rows, {} bytes", layout.rows_capacity(), writer.bytes_len());
        // Shorter ones hold the rows that were asked for, and their share of the texts.
        for rows in [1, 64, 1000, layout.rows_capacity(), usize::MAX] {
            let shorter = layout.for_rows(rows);
            assert_eq!(shorter.rows_capacity(), rows.min(layout.rows_capacity()));
            let mut writer = ImageWriter::new(&shorter);
            let share = IMAGE_BYTES_MAX * shorter.rows_capacity() / layout.rows_capacity();
            assert!(writer.bytes_len() <= share + 4096, "{types:?}: {} for {rows} rows", writer.bytes_len());
            for column in types.iter().enumerate().filter(|(_, name)| **name == "text").map(|(column, _)| column) {
                assert!((0..shorter.rows_capacity()).all(|_| writer.push_bytes(column, b"sixteen or so by")));
            }
        }
    }
}

#[test]
fn a_row_wider_than_an_image_gets_an_image_of_its_own() {
    let schema = Schema::new(vec![Field::new("t", DataType::Text, false)]).unwrap();
    let mut writer = ImageWriter::new(&ImageLayout::new(&schema, true, 4096).unwrap());
    let long = vec![b'x'; 3 << 20];
    assert!(!writer.push_bytes(0, &long));
    let mut writer = ImageWriter::new(&ImageLayout::exact(&schema, true, 1, &[long.len()]).unwrap());
    assert!(writer.push_bytes(0, &long));
    let image = writer.finish(1).unwrap().bytes.into_bytes();
    let read = read_image(image, &to_arrow_schema(&schema, true)).unwrap();
    assert_eq!(read.get_array_memory_size() >= long.len(), read.num_rows() == 1);
    let wide = (0..4000).map(|i| Field::new(format!("c{i}"), DataType::Int64, true)).collect();
    let layout = ImageLayout::new(&Schema::new(wide).unwrap(), true, 4096).unwrap();
    assert_eq!(layout.rows_capacity(), 1);
}

#[test]
fn images_without_columns_still_count_rows() {
    let schema = Schema::of_result(vec![]);
    let image = ImageWriter::new(&ImageLayout::new(&schema, true, 4096).unwrap()).finish(17).unwrap();
    let read = read_image(image.bytes.into_bytes(), &to_arrow_schema(&schema, true)).unwrap();
    assert_eq!((read.num_rows(), read.num_columns()), (17, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn batches_of_every_type_survive(seeds in proptest::collection::vec(proptest::option::weighted(0.8, any::<i64>()), 0..200), from in 0usize..50) {
        let schema = all_types();
        let whole = batch(&schema, &seeds);
        let from = from.min(whole.num_rows());
        let batch = whole.slice(from, whole.num_rows() - from);
        let image = image_of_batch(&batch).unwrap().bytes.into_bytes();
        prop_assert_eq!(&independent_read(&schema, &[&image])[0], &batch);
        prop_assert_eq!(&read_image(image, &to_arrow_schema(&schema, true)).unwrap(), &batch);
    }

    #[test]
    fn messages_of_arrows_writer_read_the_same(seeds in proptest::collection::vec(proptest::option::weighted(0.8, any::<i64>()), 0..100)) {
        let schema = all_types();
        let batch = batch(&schema, &seeds);
        let mut stream = Vec::new();
        let mut writer = StreamWriter::try_new(&mut stream, &batch.schema()).unwrap();
        let head = writer.get_ref().len();
        writer.write(&batch).unwrap();
        let tail = writer.get_ref().len();
        drop(writer);
        let message = Bytes::copy_from_slice(&stream[head..tail]);
        prop_assert_eq!(&read_image(message, &to_arrow_schema(&schema, true)).unwrap(), &batch);
    }

    #[test]
    fn damaged_images_are_errors_or_batches_and_never_panic(flips in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..6), cut in any::<u16>()) {
        let schema = all_types();
        let mut image = image_of_batch(&batch(&schema, &[Some(1), None, Some(300), Some(-5)])).unwrap().bytes.to_vec();
        for (at, value) in flips {
            let at = usize::from(at) % image.len();
            image[at] = value;
        }
        if cut % 4 == 0 {
            image.truncate(usize::from(cut) % image.len());
        }
        let arrow = to_arrow_schema(&schema, true);
        if let Ok(batch) = read_image(image.into(), &arrow) {
            for column in batch.columns() {
                column.to_data().validate_full().unwrap();
            }
        }
    }

    #[test]
    fn arbitrary_schema_messages_never_panic(flips in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..6)) {
        let mut message = schema_message(&all_types(), true);
        for (at, value) in flips {
            let at = usize::from(at) % message.len();
            message[at] = value;
        }
        let _ = read_schema(&message);
    }
}
