//! Every Arrow type, against arrow-rs's own casts and formatting.

use arrow_array::builder::{Decimal256Builder, FixedSizeBinaryBuilder};
use arrow_array::types::Int32Type;
use arrow_array::*;
use arrow_buffer::i256;
use arrow_schema::{Fields, IntervalUnit};

use super::*;

fn one(name: &str, array: ArrayRef) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable([(name, array, true)]).unwrap()
}

fn load(array: ArrayRef) -> Result<RecordBatch> {
    let batch = one("c", array);
    adapt_batch(&batch, &from_arrow_schema(batch.schema_ref())?)
}

/// Values as arrow-rs prints them, which must survive the mapping.
fn shown(array: &ArrayRef) -> Vec<String> {
    let array = match array.data_type() {
        ArrowType::FixedSizeBinary(_) => arrow_cast::cast(array, &ArrowType::Binary).unwrap(),
        _ => array.clone(),
    };
    let text = arrow_cast::cast(&array, &ArrowType::Utf8).unwrap();
    text.as_string::<i32>().iter().map(|v| v.unwrap_or("NULL").to_string()).collect()
}

#[test]
fn every_supported_type_keeps_its_values() {
    let decimal256 = {
        let mut builder = Decimal256Builder::new().with_precision_and_scale(38, 2).unwrap();
        builder.append_value(i256::from_i128(-12345));
        builder.append_null();
        builder.finish()
    };
    let mut fixed = FixedSizeBinaryBuilder::new(2);
    fixed.append_value(b"ab").unwrap();
    fixed.append_null();
    let dictionary: DictionaryArray<Int32Type> = [Some("x"), None, Some("x"), Some("y")].into_iter().collect();
    let cases: Vec<(ArrayRef, &str)> = vec![
        (Arc::new(BooleanArray::from(vec![Some(true), None])), "boolean"),
        (Arc::new(Int8Array::from(vec![Some(i8::MIN), None])), "int16"),
        (Arc::new(UInt8Array::from(vec![Some(u8::MAX), None])), "int16"),
        (Arc::new(UInt16Array::from(vec![Some(u16::MAX), None])), "int32"),
        (Arc::new(UInt32Array::from(vec![Some(u32::MAX), None])), "int64"),
        (Arc::new(UInt64Array::from(vec![Some(u64::MAX), None])), "decimal(20,0)"),
        (Arc::new(Float32Array::from(vec![Some(1.5), None])), "float32"),
        (Arc::new(Decimal32Array::from(vec![Some(-12)]).with_precision_and_scale(5, 2).unwrap()), "decimal(5,2)"),
        (Arc::new(Decimal128Array::from(vec![Some(-12)]).with_precision_and_scale(9, 2).unwrap()), "decimal(9,2)"),
        (Arc::new(decimal256), "decimal(38,2)"),
        (Arc::new(StringViewArray::from(vec![Some("a longer text than twelve bytes"), None])), "text"),
        (Arc::new(LargeStringArray::from(vec![Some("é"), None])), "text"),
        (Arc::new(BinaryViewArray::from(vec![Some(b"ab".as_slice()), None])), "bytea"),
        (Arc::new(fixed.finish()), "bytea"),
        (Arc::new(dictionary), "text"),
        (Arc::new(Date64Array::from(vec![Some(-86_400_000), None])), "date"),
        (Arc::new(TimestampSecondArray::from(vec![Some(-5), None])), "timestamp"),
        (Arc::new(TimestampMillisecondArray::from(vec![Some(1), None])), "timestamp"),
    ];
    for (array, expected) in cases {
        let mapped = from_arrow_type(array.data_type()).unwrap();
        assert_eq!(mapped.to_string(), expected, "{}", array.data_type());
        let loaded = load(array.clone()).unwrap();
        assert_eq!(loaded.column(0).data_type(), &to_arrow_type(&mapped, true));
        let (before, after) = (shown(&array), shown(loaded.column(0)));
        let date64 = matches!(array.data_type(), ArrowType::Date64 | ArrowType::Timestamp(..));
        let same = before
            .iter()
            .zip(&after)
            .all(|(b, a)| b == a || (date64 && (b.starts_with(a.as_str()) || a.starts_with(b.as_str()))));
        assert!(same, "{}: {before:?} {after:?}", array.data_type());
    }
}

#[test]
fn canonical_arrays_are_not_copied() {
    let array: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
    let loaded = load(array.clone()).unwrap();
    assert_eq!(loaded.column(0).to_data().buffers()[0].as_ptr(), array.to_data().buffers()[0].as_ptr());
}

#[test]
fn refused_types_are_named_with_their_column() {
    let child = || Arc::new(ArrowField::new("item", ArrowType::Int32, true));
    for arrow in [
        ArrowType::Time64(TimeUnit::Microsecond),
        ArrowType::Duration(TimeUnit::Second),
        ArrowType::Interval(IntervalUnit::DayTime),
        ArrowType::List(child()),
        ArrowType::Struct(Fields::from(vec![child()])),
        ArrowType::LargeList(child()),
        ArrowType::FixedSizeList(child(), 3),
        ArrowType::FixedSizeList(Arc::new(ArrowField::new("item", ArrowType::Boolean, false)), 65_536),
        ArrowType::FixedSizeList(Arc::new(ArrowField::new("item", ArrowType::Float64, false)), 3),
        ArrowType::Decimal128(5, -2),
        ArrowType::Decimal256(60, 2),
        ArrowType::Null,
    ] {
        let schema = ArrowSchema::new(vec![ArrowField::new("odd", arrow.clone(), true)]);
        let error = from_arrow_schema(&schema).unwrap_err();
        assert_eq!(error.code, ErrorCode::UnsupportedType);
        assert!(error.message.contains("\"odd\"") && error.message.contains(&arrow.to_string()), "{error}");
    }
}

#[test]
fn values_that_would_change_are_refused_with_their_row() {
    let cases: Vec<ArrayRef> =
        vec![Arc::new(TimestampNanosecondArray::from(vec![1000, 1001])), Arc::new(Date64Array::from(vec![0, 1]))];
    for array in cases {
        let error = load(array).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidValue);
        assert!(error.message.contains("row 1"), "{error}");
    }
    assert!(load(Arc::new(TimestampSecondArray::from(vec![i64::MAX]))).is_err());
    let zoned = TimestampNanosecondArray::from(vec![5000]).with_timezone("America/New_York");
    let loaded = load(Arc::new(zoned)).unwrap();
    assert_eq!(loaded.column(0).data_type(), &to_arrow_type(&DataType::Timestamp { utc: true }, true));
    assert_eq!(loaded.column(0).as_primitive::<arrow_array::types::TimestampMicrosecondType>().value(0), 5);
}

#[test]
fn the_schemas_promises_are_checked() {
    let schema =
        |data_type: &str, nullable| Schema::new(vec![Field::new("c", data_type.parse().unwrap(), nullable)]).unwrap();
    let refused = |array: ArrayRef, schema: &Schema| adapt_batch(&one("c", array), schema).unwrap_err();
    let nulls: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None]));
    let error = refused(nulls, &schema("int64", false));
    assert!(error.code == ErrorCode::InvalidValue && error.message.contains("row 1"), "{error}");
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["éé", "abc"]));
    assert!(adapt_batch(&one("c", texts.clone()), &schema("varchar(3)", true)).is_ok());
    assert_eq!(refused(texts, &schema("varchar(2)", true)).code, ErrorCode::InvalidValue);
    let long: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(VALUE_BYTES_MAX + 1)]));
    assert_eq!(refused(long, &schema("text", true)).code, ErrorCode::InvalidValue);
    let wide: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    assert_eq!(refused(wide.clone(), &schema("int32", true)).code, ErrorCode::TypeMismatch);
    assert_eq!(refused(wide, &schema("text", true)).code, ErrorCode::TypeMismatch);
    // Arrow does not check digits when an array is made: we do.
    let digits = Decimal64Array::from(vec![99_999, 100_000]).with_precision_and_scale(5, 2).unwrap();
    assert_eq!(refused(Arc::new(digits), &schema("decimal(5,2)", true)).code, ErrorCode::InvalidValue);
}

#[test]
fn columns_are_matched_by_name_and_widened() {
    let schema = Schema::new(vec![
        Field::new("a", DataType::Int64, true),
        Field::new("b", DataType::Decimal { precision: 20, scale: 2 }, true),
        Field::new("c", DataType::Text, true),
    ])
    .unwrap();
    let columns: [(&str, ArrayRef); 3] = [
        ("C", Arc::new(NullArray::new(2))),
        ("B", Arc::new(Int32Array::from(vec![7, -7]))),
        ("a", Arc::new(Int16Array::from(vec![1, 2]))),
    ];
    let batch = RecordBatch::try_from_iter_with_nullable(columns.map(|(n, a)| (n, a, true))).unwrap();
    let adapted = adapt_batch(&batch, &schema).unwrap();
    assert_eq!(adapted.schema(), to_arrow_schema(&schema, true));
    assert_eq!(shown(adapted.column(0)), ["1", "2"]);
    assert_eq!(shown(adapted.column(1)), ["7.00", "-7.00"]);
    assert_eq!(adapted.column(2).null_count(), 2);
    let missing = one("a", Arc::new(Int16Array::from(vec![1])));
    let error = adapt_batch(&missing, &schema).unwrap_err();
    assert!(error.code == ErrorCode::UnknownColumn && error.message.contains("\"b\""), "{error}");
}

#[test]
fn vectors_need_elements_that_are_not_null() {
    let list = |values: Vec<Option<f32>>, nulls: Option<Vec<bool>>| -> ArrayRef {
        let element = Arc::new(ArrowField::new("element", ArrowType::Float32, true));
        let nulls = nulls.map(arrow_buffer::NullBuffer::from);
        Arc::new(FixedSizeListArray::new(element, 2, Arc::new(Float32Array::from(values)), nulls))
    };
    let good = load(list(vec![Some(1.0), Some(2.0), None, None], Some(vec![true, false]))).unwrap();
    assert_eq!(good.column(0).null_count(), 1);
    assert_eq!(good.column(0).data_type(), &to_arrow_type(&"vector(2)".parse().unwrap(), true));
    let error = load(list(vec![Some(1.0), None], None)).unwrap_err();
    assert!(error.message.contains("row 0"), "{error}");
    for (element, text) in [(ArrowType::Float16, "vector(2,f16)"), (ArrowType::Int8, "vector(2,i8)")] {
        let values = arrow_cast::cast(&Int32Array::from(vec![1, -2, 3, -128]), &element).unwrap();
        let child = Arc::new(ArrowField::new("x", element, false));
        let list = FixedSizeListArray::new(child, 2, Arc::clone(&values), None);
        let vector: DataType = text.parse().unwrap();
        assert_eq!(from_arrow_type(list.data_type()).unwrap(), vector);
        let loaded = load(Arc::new(list)).unwrap();
        assert_eq!(loaded.column(0).data_type(), &to_arrow_type(&vector, true));
        assert_eq!(loaded.column(0).as_fixed_size_list().values(), &values);
    }
}

fn schema_of(data_type: &str) -> Schema {
    Schema::new(vec![Field::new("c", data_type.parse().unwrap(), true)]).unwrap()
}

#[test]
fn bits_are_fixed_size_binary_that_says_so() {
    let bits = FixedSizeBinaryArray::try_from_iter([[0b1010_0101u8, 0b11], [0, 0]].into_iter()).unwrap();
    let schema = schema_of("vector(10,bit)");
    let arrow = to_arrow_schema(&schema, true);
    assert_eq!(from_arrow_schema(&arrow).unwrap(), schema);
    // Without its mark it is bytea, unless the schema that is asked for says that it is bits.
    let plain = one("c", Arc::new(bits.clone()));
    assert_eq!(from_arrow_schema(plain.schema_ref()).unwrap(), schema_of("bytea"));
    let taken = adapt_batch(&plain, &schema).unwrap();
    assert_eq!(taken.schema(), arrow);
    assert_eq!(taken.column(0).as_fixed_size_binary(), &bits);
    let marked = RecordBatch::try_new(arrow.clone(), vec![Arc::new(bits.clone())]).unwrap();
    assert_eq!(adapt_batch(&marked, &schema).unwrap(), marked);
    for other in ["vector(9,bit)", "vector(16,bit)", "vector(17,bit)", "bytea", "vector(2,i8)"] {
        let error = adapt_batch(&marked, &schema_of(other)).unwrap_err();
        assert_eq!(error.code, ErrorCode::TypeMismatch, "{other}: {error}");
    }
    assert!(adapt_batch(&plain, &schema_of("vector(16,bit)")).is_ok());
    assert_eq!(adapt_batch(&plain, &schema_of("vector(17,bit)")).unwrap_err().code, ErrorCode::TypeMismatch);
    // A mark that makes no sense is refused, not taken for bytea.
    for dimension in ["", "0", "17", "x", "-3"] {
        let metadata = [("ARROW:extension:name", "heliostat.bits"), ("ARROW:extension:metadata", dimension)];
        let metadata = metadata.map(|(key, value)| (key.to_string(), value.to_string()));
        let field = ArrowField::new("c", ArrowType::FixedSizeBinary(2), true).with_metadata(metadata.into());
        let error = from_arrow_schema(&ArrowSchema::new(vec![field])).unwrap_err();
        assert_eq!(error.code, ErrorCode::UnsupportedType);
    }
}

#[test]
fn bits_come_from_booleans_and_packed_bytes() {
    let packed = [[0b1010_0101u8, 0b11], [0b1000_0000, 0b00], [0b0000_0001, 0b10]];
    let expected = FixedSizeBinaryArray::try_from_iter(packed.into_iter()).unwrap();
    let booleans: BooleanArray =
        (packed.iter()).flat_map(|bytes| (0..10).map(move |at| Some(bytes[at / 8] >> (at % 8) & 1 == 1))).collect();
    let item = |data_type| Arc::new(ArrowField::new("item", data_type, true));
    let list = FixedSizeListArray::new(item(ArrowType::Boolean), 10, Arc::new(booleans), None);
    let bytes = Arc::new(UInt8Array::from_iter_values(packed.into_iter().flatten()));
    let bytes = FixedSizeListArray::new(item(ArrowType::UInt8), 2, bytes, None);
    let variable = arrow_cast::cast(&bytes, &ArrowType::List(item(ArrowType::UInt8))).unwrap();
    assert_eq!(from_arrow_type(list.data_type()).unwrap().to_string(), "vector(10,bit)");
    for array in [Arc::new(list) as ArrayRef, Arc::new(bytes), variable] {
        let taken = adapt_batch(&one("c", array.slice(1, 2)), &schema_of("vector(10,bit)")).unwrap();
        assert_eq!(taken.column(0).as_fixed_size_binary(), &expected.slice(1, 2), "{}", array.data_type());
    }
}

#[test]
fn spare_bits_that_are_set_are_refused_with_their_row() {
    let bits = |nulls: Option<Vec<bool>>| -> ArrayRef {
        let values = arrow_buffer::Buffer::from_vec(vec![0xffu8, 0b11, 0, 0, 0xff, 0b100, 0, 0b11]);
        Arc::new(FixedSizeBinaryArray::new(2, values, nulls.map(Into::into)))
    };
    let schema = schema_of("vector(10,bit)");
    let error = adapt_rows(&one("c", bits(None)), &schema, 1000).unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidValue);
    assert!(error.message.contains("row 1002:") && error.message.contains("little"), "{error}");
    let error = adapt_batch(&one("c", bits(None).slice(2, 2)), &schema).unwrap_err();
    assert!(error.message.contains("row 0:"), "{error}");
    // What a NULL's slot holds is nobody's business.
    assert!(adapt_batch(&one("c", bits(Some(vec![true, true, false, true]))), &schema).is_ok());
    assert!(adapt_batch(&one("c", bits(None)), &schema_of("vector(16,bit)")).is_ok());
}

#[test]
fn lists_of_equal_length_are_vectors_where_the_schema_says_so() {
    use arrow_array::types::Float64Type;
    let rows = [Some([1.5f64, -2.0]), None, Some([0.1f32 as f64, 65504.0]), Some([f64::NAN, 3.0])];
    let wide = ListArray::from_iter_primitive::<Float64Type, _, _>(rows.map(|row| row.map(|row| row.map(Some))));
    assert_eq!(from_arrow_type(wide.data_type()).unwrap_err().code, ErrorCode::UnsupportedType);
    let element = |data_type| Arc::new(ArrowField::new("element", data_type, true));
    let wide: ArrayRef = Arc::new(wide);
    let expected = |schema: &str, array: &ArrayRef| {
        let taken = adapt_batch(&one("c", array.clone()), &schema_of(schema)).unwrap();
        assert_eq!(taken.schema(), to_arrow_schema(&schema_of(schema), true));
        taken.column(0).clone()
    };
    let as_list = |data_type: ArrowType| arrow_cast::cast(&wide, &data_type).unwrap();
    let f32s = expected("vector(2)", &wide);
    assert_eq!(f32s.null_count(), 1);
    // NaN is not equal to itself.
    let shown = |array: &ArrayRef| format!("{array:?}");
    for (schema, data_type) in [
        ("vector(2)", ArrowType::List(element(ArrowType::Float32))),
        ("vector(2)", ArrowType::LargeList(element(ArrowType::Float64))),
        ("vector(2)", ArrowType::FixedSizeList(element(ArrowType::Float64), 2)),
    ] {
        let array = as_list(data_type.clone());
        assert_eq!(shown(&expected(schema, &array)), shown(&f32s), "{data_type}");
        // Slices, whose offsets do not begin at 0.
        assert_eq!(shown(&expected(schema, &array.slice(2, 2))), shown(&f32s.slice(2, 2)), "{data_type}");
        assert_eq!(shown(&expected(schema, &array.slice(1, 2))), shown(&f32s.slice(1, 2)), "{data_type}");
    }
}

#[test]
fn lists_of_another_length_or_value_are_refused_with_their_row() {
    use arrow_array::types::{Float32Type, Float64Type};
    let lists = |rows: Vec<Option<Vec<Option<f64>>>>| -> ArrayRef {
        Arc::new(ListArray::from_iter_primitive::<Float64Type, _, _>(rows))
    };
    let refused = |array: ArrayRef| adapt_rows(&one("c", array), &schema_of("vector(2)"), 10).unwrap_err();
    let fine = || Some(vec![Some(1.0), Some(2.0)]);
    for (odd, words) in [
        (vec![Some(1.0)], "a list of 1 elements where a vector has 2"),
        (vec![Some(1.0); 3], "a list of 3 elements"),
        (vec![], "a list of 0 elements"),
        (vec![Some(1.0), None], "can't be NULL"),
        (vec![Some(1.0), Some(0.1)], "component 1 is 0.1"),
    ] {
        for rows in [vec![fine(), fine(), Some(odd.clone())], vec![fine(), None, Some(odd.clone()), fine()]] {
            let error = refused(lists(rows));
            assert_eq!(error.code, ErrorCode::InvalidValue);
            assert!(error.message.contains("row 12:") && error.message.contains(words), "{error}");
        }
    }
    let integers = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), Some(2)])]);
    assert_eq!(refused(Arc::new(integers)).code, ErrorCode::TypeMismatch);
    let singles = ListArray::from_iter_primitive::<Float32Type, _, _>([Some(vec![Some(1.0), Some(2.0)])]);
    let error = adapt_batch(&one("c", Arc::new(singles)), &schema_of("vector(2,f16)")).unwrap_err();
    assert_eq!(error.code, ErrorCode::TypeMismatch);
}

#[test]
fn vectors_are_bytes_and_bytes_are_vectors() {
    for text in ["vector(3,f32)", "vector(5,f16)", "vector(7,i8)", "vector(11,bit)", "vector(8,bit)"] {
        let data_type: DataType = text.parse().unwrap();
        let width = data_type.fixed_width().unwrap();
        let bytes: Vec<u8> = (0..4 * width).map(|at| (at % 7) as u8).collect();
        let nulls = arrow_buffer::NullBuffer::from(vec![true, false, true, true]);
        let array = vector_array(&data_type, 4, bytes.clone().into(), Some(nulls)).unwrap();
        assert_eq!(array.data_type(), &to_arrow_type(&data_type, true));
        assert_eq!(vector_bytes(&array, &data_type).unwrap().as_slice(), bytes);
        assert_eq!(vector_bytes(&array.slice(1, 2), &data_type).unwrap().as_slice(), &bytes[width..3 * width]);
        assert_eq!(vector_bytes(&array, &"vector(4)".parse().unwrap()), None);
        assert!(vector_array(&data_type, 3, bytes.into(), None).is_err());
    }
    assert!(vector_array(&DataType::Bytea, 1, arrow_buffer::Buffer::from(b"a"), None).is_err());
}
