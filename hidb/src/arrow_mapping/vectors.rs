//! Vectors in Arrow: which arrays carry them, how arrays of other forms become them, and their bytes.
//!
//! Owns the extension type that tells vectors of bits from other fixed-size binary ([`bits_field`], [`bits_type`]), the
//! forms besides the canonical one that a vector column takes, and [`vector_bytes`] and [`vector_array`], between
//! canonical arrays and rows of bytes. Called by the mapping of schemas and batches, by images, by segments.
//!
//! Invariants
//! - Fixed-size binary without the extension is bytea; a table's schema says it is bits where it is to be.
//! - What is handed out has no NULL elements, no spare bits set, and one vector of the type's length per row.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, UInt8Type};
use arrow_array::{Array, ArrayRef, FixedSizeBinaryArray, FixedSizeListArray, Float32Array, make_array};
use arrow_array::{GenericListArray, OffsetSizeTrait};
use arrow_buffer::{Buffer, NullBuffer};
use arrow_data::ArrayDataBuilder;
use arrow_data::transform::MutableArrayData;
use arrow_schema::extension::{EXTENSION_TYPE_METADATA_KEY, EXTENSION_TYPE_NAME_KEY};
use arrow_schema::{DataType as ArrowType, Field as ArrowField};

use super::{Place, strict_cast, to_arrow_type};
use crate::error::{Error, ErrorCode, Result};
use crate::types::{DataType, VectorElement};

/// The name of the child field of a vector's Arrow type.
const ELEMENT: &str = "item";

/// The extension type of fixed-size binary that holds vectors of bits; its metadata is the dimension in decimal digits.
pub(crate) const BITS_EXTENSION: &str = "heliostat.bits";
/// The metadata of a field that says so.
pub(crate) const BITS_METADATA_KEYS: [&str; 2] = [EXTENSION_TYPE_NAME_KEY, EXTENSION_TYPE_METADATA_KEY];

/// The canonical Arrow type of a vector.
pub(super) fn arrow_type(dimension: u32, element: VectorElement) -> ArrowType {
    let element = match element {
        VectorElement::F32 => ArrowType::Float32,
        VectorElement::F16 => ArrowType::Float16,
        VectorElement::I8 => ArrowType::Int8,
        VectorElement::Bit => return ArrowType::FixedSizeBinary(element.row_bytes(dimension) as i32),
    };
    ArrowType::FixedSizeList(Arc::new(ArrowField::new(ELEMENT, element, false)), dimension as i32)
}

/// The field, marked as one of bits when its type is.
pub(super) fn bits_field(field: ArrowField, data_type: &DataType) -> ArrowField {
    let DataType::Vector { dimension, element: VectorElement::Bit } = data_type else { return field };
    let values = [BITS_EXTENSION.to_string(), dimension.to_string()];
    field.with_metadata(HashMap::from_iter(BITS_METADATA_KEYS.map(str::to_string).into_iter().zip(values)))
}

/// The type of bits that a field is marked as, if it is. `UnsupportedType` when the mark makes no sense.
pub(crate) fn bits_type(field: &ArrowField) -> Result<Option<DataType>> {
    if field.metadata().get(EXTENSION_TYPE_NAME_KEY).map(String::as_str) != Some(BITS_EXTENSION) {
        return Ok(None);
    }
    let dimension = field.metadata().get(EXTENSION_TYPE_METADATA_KEY).map_or("", String::as_str);
    let vector = DataType::Vector { dimension: dimension.parse().unwrap_or(0), element: VectorElement::Bit };
    if !vector.is_valid() || to_arrow_type(&vector, true) != *field.data_type() {
        let text = format!(
            "column {:?}: {} is not {BITS_EXTENSION} of dimension {dimension:?}: a vector of d bits takes ceil(d/8) bytes",
            field.name(),
            field.data_type()
        );
        return Err(Error::new(ErrorCode::UnsupportedType, text));
    }
    Ok(Some(vector))
}

/// The vector type of a fixed-size list of such elements; `None` when there is none.
pub(super) fn type_of_list(element: &ArrowType, dimension: i32) -> Option<DataType> {
    let element = match element {
        ArrowType::Float32 => VectorElement::F32,
        ArrowType::Float16 => VectorElement::F16,
        ArrowType::Int8 => VectorElement::I8,
        ArrowType::Boolean => VectorElement::Bit,
        _ => return None,
    };
    Some(DataType::Vector { dimension: u32::try_from(dimension).unwrap_or(0), element })
}

/// How many of the elements of a list make one vector of this type; `None` when they can't.
fn elements_per_row(from: &ArrowType, dimension: u32, element: VectorElement) -> Option<usize> {
    match (from, element) {
        (ArrowType::Float32 | ArrowType::Float16 | ArrowType::Float64, VectorElement::F32)
        | (ArrowType::Float16, VectorElement::F16)
        | (ArrowType::Int8, VectorElement::I8)
        | (ArrowType::Boolean, VectorElement::Bit) => Some(dimension as usize),
        // Packed by the caller: numpy.packbits(..., bitorder="little"), FAISS's binary vectors.
        (ArrowType::UInt8, VectorElement::Bit) => Some(element.row_bytes(dimension)),
        _ => None,
    }
}

/// Whether a column of this type takes arrays of that Arrow type, once a schema says it is one of vectors.
pub(super) fn takes(data_type: &DataType, incoming: &ArrowType) -> bool {
    let DataType::Vector { dimension, element } = *data_type else { return false };
    match incoming {
        ArrowType::FixedSizeBinary(_) => *incoming == arrow_type(dimension, element),
        ArrowType::FixedSizeList(item, length) => {
            elements_per_row(item.data_type(), dimension, element) == usize::try_from(*length).ok()
        }
        ArrowType::List(item) | ArrowType::LargeList(item) => {
            elements_per_row(item.data_type(), dimension, element).is_some()
        }
        _ => false,
    }
}

/// An array of a form that [`takes`] takes as canonical vectors.
pub(super) fn convert(array: &ArrayRef, place: &Place<'_>, dimension: u32, element: VectorElement) -> Result<ArrayRef> {
    let list = match array.data_type() {
        ArrowType::List(item) => {
            let per_row = elements_per_row(item.data_type(), dimension, element);
            &of_equal_length(array.as_list::<i32>(), per_row, place)?
        }
        ArrowType::LargeList(item) => {
            let per_row = elements_per_row(item.data_type(), dimension, element);
            &of_equal_length(array.as_list::<i64>(), per_row, place)?
        }
        ArrowType::FixedSizeList(..) => array.as_fixed_size_list(),
        _ => return Ok(array.clone()),
    };
    let elements = elements(list, place)?;
    let nulls = list.nulls().cloned();
    let made = match (arrow_type(dimension, element), elements.data_type()) {
        (ArrowType::FixedSizeList(item, length), from) => {
            let elements = match from {
                from if from == item.data_type() => elements,
                ArrowType::Float64 => Arc::new(exact_floats(&elements, list, place)?),
                _ => strict_cast(&elements, item.data_type(), place)?,
            };
            FixedSizeListArray::try_new(item, length, elements, nulls).map(|list| Arc::new(list) as ArrayRef)
        }
        (ArrowType::FixedSizeBinary(width), from) => {
            let bytes = match from {
                ArrowType::Boolean => pack(&elements, list.len(), dimension as usize),
                _ => elements.as_primitive::<UInt8Type>().values().inner().clone(),
            };
            FixedSizeBinaryArray::try_new_with_len(width, bytes, nulls, list.len())
                .map(|bits| Arc::new(bits) as ArrayRef)
        }
        (other, _) => return Err(Error::new(ErrorCode::Internal, format!("vectors are not {other}"))),
    };
    made.map_err(|error| place.invalid(error))
}

/// Lists that all have `per_row` elements as fixed-size lists. NULL lists may have any length.
fn of_equal_length<O: OffsetSizeTrait>(
    lists: &GenericListArray<O>,
    per_row: Option<usize>,
    place: &Place<'_>,
) -> Result<FixedSizeListArray> {
    let per_row = per_row.unwrap_or(0);
    let ranges = || lists.value_offsets().windows(2).map(|ends| (ends[0].as_usize(), ends[1].as_usize()));
    let odd = ranges().enumerate().find(|(row, (start, end))| end - start != per_row && lists.is_valid(*row));
    if let Some((row, (start, end))) = odd {
        let text = format!("a list of {} elements where a vector has {per_row}", end - start);
        return Err(place.invalid_row(row, format!("{text}: correct the row, or leave it out")));
    }
    let elements = if lists.null_count() == 0 {
        lists.values().slice(lists.value_offsets()[0].as_usize(), lists.len() * per_row)
    } else {
        let data = lists.values().to_data();
        let mut elements = MutableArrayData::new(vec![&data], true, lists.len() * per_row);
        for (row, (start, end)) in ranges().enumerate() {
            let extended = match lists.is_valid(row) {
                true => elements.try_extend(0, start, end),
                false => elements.try_extend_nulls(per_row),
            };
            extended.map_err(|error| place.invalid(error))?;
        }
        make_array(elements.freeze())
    };
    let item = Arc::new(ArrowField::new(ELEMENT, elements.data_type().clone(), true));
    FixedSizeListArray::try_new(item, per_row as i32, elements, lists.nulls().cloned())
        .map_err(|error| place.invalid(error))
}

/// The elements of a list of vectors, without NULLs: those of NULL vectors may be NULL and become zero.
fn elements(list: &FixedSizeListArray, place: &Place<'_>) -> Result<ArrayRef> {
    let child = list.values();
    if child.null_count() == 0 {
        return Ok(child.clone());
    }
    let per_row = list.value_length() as usize;
    for row in (0..list.len()).filter(|row| list.is_valid(*row)) {
        if (row * per_row..(row + 1) * per_row).any(|element| child.is_null(element)) {
            return Err(place.invalid_row(row, "a vector's elements can't be NULL"));
        }
    }
    let data = child.to_data().into_builder().nulls(None).build().map_err(|error| place.invalid(error))?;
    Ok(make_array(data))
}

/// 64-bit floats as 32-bit ones, which they must be already (or NaN, which has its own refusal).
fn exact_floats(elements: &ArrayRef, list: &FixedSizeListArray, place: &Place<'_>) -> Result<Float32Array> {
    let wide = elements.as_primitive::<Float64Type>();
    let narrow: Float32Array = wide.unary::<_, Float32Type>(|value| value as f32);
    let differs = |(wide, narrow): (&f64, &f32)| f64::from(*narrow) != *wide && !wide.is_nan();
    // One branch-free pass decides for nearly every array; the row is looked for only when it fails.
    if !wide.values().iter().zip(narrow.values()).fold(false, |any, pair| any | differs(pair)) {
        return Ok(narrow);
    }
    let per_row = list.value_length() as usize;
    let changed = |at: &usize| differs((&wide.values()[*at], &narrow.values()[*at]));
    for row in (0..list.len()).filter(|row| list.is_valid(*row)) {
        if let Some(at) = (row * per_row..(row + 1) * per_row).find(changed) {
            let text = format!("component {} is {}, which is not a 32-bit float", at % per_row, wide.value(at));
            return Err(place.invalid_row(row, format!("{text}: round the column to 32-bit floats first")));
        }
    }
    Ok(narrow)
}

/// Booleans, `dimension` a row, as packed bits.
fn pack(elements: &ArrayRef, rows: usize, dimension: usize) -> Buffer {
    let width = VectorElement::Bit.row_bytes(dimension as u32);
    let mut bytes = vec![0u8; rows * width];
    let mut bits = elements.as_boolean().values().iter();
    for row in bytes.chunks_exact_mut(width) {
        for (at, bit) in bits.by_ref().take(dimension).enumerate() {
            row[at / 8] |= u8::from(bit) << (at % 8);
        }
    }
    Buffer::from_vec(bytes)
}

/// Checks canonical vectors: no NULL elements, no spare bits set.
pub(super) fn check(array: &ArrayRef, place: &Place<'_>, dimension: u32, element: VectorElement) -> Result<()> {
    let Some(bits) = array.as_fixed_size_binary_opt() else {
        return elements(array.as_fixed_size_list(), place).map(|_| ());
    };
    let spare = element.spare_bits(dimension);
    let width = bits.value_size().max(1);
    if spare == 0 || bits.value_data().chunks_exact(width).all(|value| value[width - 1] & spare == 0) {
        return Ok(());
    }
    match (0..bits.len()).find(|row| bits.is_valid(*row) && bits.value(*row)[width - 1] & spare != 0) {
        None => Ok(()),
        Some(row) => {
            let text = format!("bits after the last of {dimension} are set, and spare bits must be zero");
            let advice =
                "pack component 0 into the least significant bit of the first byte (numpy: bitorder=\"little\")";
            Err(place.invalid_row(row, format!("{text}: {advice}")))
        }
    }
}

/// The values of canonical vectors, one after another, [`DataType::fixed_width`] bytes each (those of NULLs are
/// arbitrary). Shares the array's memory. `None` when it is no canonical array of this type.
pub fn vector_bytes(array: &dyn Array, data_type: &DataType) -> Option<Buffer> {
    let DataType::Vector { dimension, element } = *data_type else { return None };
    let length = array.len() * element.row_bytes(dimension);
    if let Some(bits) = array.as_fixed_size_binary_opt() {
        let is_canonical = bits.data_type() == &arrow_type(dimension, element) && bits.values().len() >= length;
        return is_canonical.then(|| bits.values().slice_with_length(0, length));
    }
    let list = array.as_fixed_size_list_opt()?;
    let ArrowType::FixedSizeList(item, per_row) = arrow_type(dimension, element) else { return None };
    let data = list.values().to_data();
    if *data.data_type() != *item.data_type() || list.value_length() != per_row {
        return None;
    }
    let from = data.offset() * item.data_type().primitive_width()?;
    let values = data.buffers().first()?;
    (values.len() >= from + length).then(|| values.slice_with_length(from, length))
}

/// The canonical array of these vectors: `values` has [`DataType::fixed_width`] bytes for each. `TypeMismatch` when it
/// has not, or the type is not a vector's.
pub fn vector_array(data_type: &DataType, rows: usize, values: Buffer, nulls: Option<NullBuffer>) -> Result<ArrayRef> {
    let wrong = |detail: String| Error::new(ErrorCode::TypeMismatch, format!("{rows} values of {data_type}: {detail}"));
    let DataType::Vector { dimension, element } = *data_type else { return Err(wrong("not a vector".into())) };
    if values.len() != rows * element.row_bytes(dimension) {
        return Err(wrong(format!("{} bytes", values.len())));
    }
    let arrow = arrow_type(dimension, element);
    let builder = ArrayDataBuilder::new(arrow.clone()).len(rows).nulls(nulls);
    let builder = match &arrow {
        ArrowType::FixedSizeList(item, _) => {
            let child = ArrayDataBuilder::new(item.data_type().clone()).len(rows * dimension as usize);
            // A byte vector may be aligned to one byte only.
            let child =
                child.add_buffer(values).align_buffers(true).build().map_err(|error| wrong(error.to_string()))?;
            builder.add_child_data(child)
        }
        _ => builder.add_buffer(values),
    };
    builder.build().map(make_array).map_err(|error| wrong(error.to_string()))
}
