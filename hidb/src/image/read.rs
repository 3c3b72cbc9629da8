//! Reading an image back as a `RecordBatch` that borrows it.
//!
//! arrow-ipc's own reader panics on buffers that leave the body, so lengths and counts are checked here
//! first; then Arrow's array validation (offsets, UTF-8, null counts) has the last word.

use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions, make_array};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer};
use arrow_data::{ArrayData, ArrayDataBuilder};
use arrow_ipc::{MessageHeader, MetadataVersion};
use arrow_schema::{DataType as ArrowType, SchemaRef};
use bytes::Bytes;

use super::schema::{malformed, metadata};
use super::{READ_ROWS_MAX, Shape};
use crate::aligned::{ALIGNMENT, AlignedBytes};
use crate::error::{Error, ErrorCode, Result};

/// One region of the body, in bytes from its start.
type Region = (usize, usize);

/// Reads an encapsulated record batch message of this schema, without copying when `image` begins on a
/// 64-byte boundary (frame payloads do), else by one copy.
///
/// The schema must consist of the types of [`crate::arrow_mapping::to_arrow_type`]. `Protocol` when the
/// bytes are not such a message.
pub fn read_image(image: Bytes, schema: &SchemaRef) -> Result<RecordBatch> {
    let image = if (image.as_ptr() as usize).is_multiple_of(ALIGNMENT) {
        image
    } else {
        AlignedBytes::copy_of(&image).into_bytes()
    };
    let (metadata, body_start) = metadata(&image)?;
    let message = arrow_ipc::root_as_message(metadata).map_err(|error| malformed(error.to_string()))?;
    if message.header_type() != MessageHeader::RecordBatch {
        return Err(malformed("a record batch message was expected"));
    }
    if message.version() != MetadataVersion::V5 && message.version() != MetadataVersion::V4 {
        return Err(malformed("its metadata version is neither V4 nor V5"));
    }
    let batch = message.header_as_record_batch().ok_or_else(|| malformed("the record batch is missing"))?;
    if batch.compression().is_some() {
        return Err(malformed("its body is compressed, which HIDB does not use"));
    }
    let rows = usize::try_from(batch.length()).ok().filter(|rows| *rows <= READ_ROWS_MAX);
    let rows = rows.ok_or_else(|| malformed(format!("{} rows: at most {READ_ROWS_MAX}", batch.length())))?;
    let body_len = usize::try_from(message.bodyLength()).ok();
    let body = body_len.and_then(|length| Some(body_start..body_start.checked_add(length)?));
    let body = body.filter(|range| range.end <= image.len()).ok_or_else(|| {
        malformed(format!("a body of {} bytes in {} bytes", message.bodyLength(), image.len() - body_start))
    })?;

    let shapes = shapes(schema)?;
    let expected_nodes: usize = shapes.iter().map(|shape| shape.nodes()).sum();
    let expected_buffers: usize = shapes.iter().map(|shape| shape.buffers()).sum();
    let nodes = batch.nodes().map_or(0, |nodes| nodes.len());
    let buffers = batch.buffers().map_or(0, |buffers| buffers.len());
    if nodes != expected_nodes || buffers != expected_buffers {
        return Err(malformed(format!(
            "{nodes} nodes and {buffers} buffers where the schema wants {expected_nodes} and {expected_buffers}"
        )));
    }
    let nodes = batch.nodes().into_iter().flat_map(|nodes| nodes.iter());
    let mut nodes = nodes.map(|node| (node.length(), node.null_count()));
    let buffers = batch.buffers().into_iter().flat_map(|buffers| buffers.iter());
    let mut buffers = buffers.map(|buffer| (buffer.offset(), buffer.length()));

    let body_len = body.len();
    let mut next_node = |length: usize| match nodes.next() {
        Some((found, nulls)) if usize::try_from(found) == Ok(length) => usize::try_from(nulls)
            .ok()
            .filter(|nulls| *nulls <= length)
            .ok_or_else(|| malformed(format!("{nulls} NULLs among {length} values"))),
        found => Err(malformed(format!("a column of {found:?} values in a batch of {length}"))),
    };
    let mut next_region = || -> Result<Region> {
        let (offset, length) = buffers.next().unwrap_or((-1, -1));
        match (usize::try_from(offset), usize::try_from(length)) {
            (Ok(offset), Ok(length)) if offset.checked_add(length).is_some_and(|end| end <= body_len) => {
                Ok((offset, length))
            }
            _ => Err(malformed(format!("a buffer at {offset} of {length} bytes in a body of {body_len}"))),
        }
    };

    let body = Buffer::from(image.slice(body));
    let mut columns = Vec::with_capacity(shapes.len());
    for (field, shape) in schema.fields().iter().zip(shapes) {
        let column = (|| -> Result<ArrayRef> {
            let null_count = next_node(rows)?;
            let nulls = validity(&body, next_region()?, rows, null_count)?;
            let builder = ArrayDataBuilder::new(field.data_type().clone()).len(rows).nulls(nulls);
            let data = match shape {
                Shape::Bits | Shape::Fixed(_) => {
                    builder.add_buffer(slice(&body, next_region()?, shape.values_len(rows))?)
                }
                Shape::Variable => {
                    let offsets = next_region()?;
                    let data = next_region()?;
                    // Arrow lets a column without rows leave its offsets out.
                    let (offsets, used) = if rows == 0 {
                        (Buffer::from([0u8; 4].as_slice()), 0)
                    } else {
                        let offsets = slice(&body, offsets, shape.values_len(rows))?;
                        let last = &offsets.as_slice()[rows * 4..];
                        let last = i32::from_le_bytes([last[0], last[1], last[2], last[3]]);
                        (offsets, usize::try_from(last).map_err(|_| malformed(format!("the text offset {last}")))?)
                    };
                    builder.add_buffer(offsets).add_buffer(slice(&body, data, used)?)
                }
                Shape::Vector { dimension, width } => {
                    let elements = rows * dimension;
                    if next_node(elements)? != 0 {
                        return Err(malformed("NULL elements in a vector"));
                    }
                    next_region()?;
                    let values = slice(&body, next_region()?, elements * width)?;
                    let ArrowType::FixedSizeList(element, _) = field.data_type() else {
                        return Err(malformed("a vector's type is a fixed-size list"));
                    };
                    let child = ArrayDataBuilder::new(element.data_type().clone()).len(elements).add_buffer(values);
                    builder.add_child_data(build(child)?)
                }
            };
            Ok(make_array(build(data)?))
        })();
        columns.push(
            column.map_err(|error| Error::new(error.code, format!("column {:?}: {}", field.name(), error.message)))?,
        );
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options).map_err(|error| malformed(error.to_string()))
}

pub(super) fn shapes(schema: &SchemaRef) -> Result<Vec<Shape>> {
    let shape = |field: &arrow_schema::FieldRef| {
        Shape::of(field.data_type()).ok_or_else(|| {
            Error::new(
                ErrorCode::UnsupportedType,
                format!("column {:?}: images do not carry Arrow type {}", field.name(), field.data_type()),
            )
        })
    };
    schema.fields().iter().map(shape).collect()
}

/// Arrow's full validation of one array; copies a buffer only if it is misaligned.
fn build(builder: ArrayDataBuilder) -> Result<ArrayData> {
    builder.align_buffers(true).build().map_err(|error| malformed(error.to_string()))
}

/// The first `needed` bytes of a region of the body.
fn slice(body: &Buffer, (offset, length): Region, needed: usize) -> Result<Buffer> {
    if length < needed {
        return Err(malformed(format!("a buffer of {length} bytes where {needed} are needed")));
    }
    Ok(body.slice_with_length(offset, needed))
}

fn validity(body: &Buffer, region: Region, rows: usize, null_count: usize) -> Result<Option<NullBuffer>> {
    if null_count == 0 {
        return Ok(None);
    }
    let nulls = NullBuffer::new(BooleanBuffer::new(slice(body, region, rows.div_ceil(8))?, 0, rows));
    if nulls.null_count() != null_count {
        return Err(malformed(format!("{} NULLs where the metadata says {null_count}", nulls.null_count())));
    }
    Ok(Some(nulls))
}
