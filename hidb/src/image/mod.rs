//! Result images: Arrow IPC messages that are written once and read in place.
//!
//! Owns [`schema_message`] and [`read_schema`], [`ImageWriter`] and [`image_of_batch`], [`read_image`].
//!
//! An image is one complete encapsulated Arrow IPC record batch message: continuation marker, metadata
//! length, flatbuffer, body. Any Arrow library reads it.
//!
//! Invariants
//! - Metadata is padded so that the body, and every buffer in it, begins at a multiple of 64 bytes from
//!   the image's start: an image in a 64-byte aligned buffer is a `RecordBatch` without copying.
//! - An image has at most [`IMAGE_ROWS_MAX`] rows and [`IMAGE_BYTES_MAX`] bytes, except that a single row
//!   is never split: an image of one row may be longer, and is sent in several frames.
//! - [`read_image`] takes untrusted bytes: it never panics, allocates no more than a small multiple of
//!   their length, and what it returns satisfies Arrow's own validation.
//!
//! Called by the engine (writes), sessions (carry), clients and loads (read and write).

mod read;
mod schema;
mod write;

use arrow_schema::DataType as ArrowType;

pub use read::read_image;
pub use schema::{read_schema, schema_message};
pub use write::{ImageLayout, ImageWriter, ResultImage, TextTail, image_of_batch};

pub use crate::aligned::AlignedBytes;
use crate::types::VECTOR_DIMENSION_MAX;

/// The most rows in an image the engine writes.
pub const IMAGE_ROWS_MAX: usize = 65_536;
/// The most bytes in an image of more than one row: it fits a frame's payload.
pub const IMAGE_BYTES_MAX: usize = crate::frame::PAYLOAD_BYTES_MAX;
/// The most rows a reader accepts (loads send whole row groups).
pub const READ_ROWS_MAX: usize = crate::ROW_GROUP_ROWS;

/// Bytes of the longest vector of bits.
const VECTOR_BITS_BYTES_MAX: usize = (VECTOR_DIMENSION_MAX as usize).div_ceil(8);

/// Marks the start of an encapsulated message (Arrow columnar format, "Encapsulated message format").
const CONTINUATION: [u8; 4] = [0xff; 4];
/// Continuation marker and metadata length.
const PREFIX_BYTES: usize = 8;

/// How a column's values are stored in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// One bit each.
    Bits,
    /// This many bytes each.
    Fixed(usize),
    /// Offsets (`i32`) and data.
    Variable,
    /// A fixed-size list: a child node with `dimension` elements of `width` bytes each.
    Vector { dimension: usize, width: usize },
}

impl Shape {
    /// The shape of a type that [`crate::arrow_mapping::to_arrow_type`] gives; `None` for others.
    fn of(arrow: &ArrowType) -> Option<Shape> {
        Some(match arrow {
            ArrowType::Boolean => Shape::Bits,
            ArrowType::Int16 => Shape::Fixed(2),
            ArrowType::Int32 | ArrowType::Float32 | ArrowType::Date32 => Shape::Fixed(4),
            ArrowType::Int64 | ArrowType::Float64 | ArrowType::Timestamp(..) => Shape::Fixed(8),
            ArrowType::Decimal64(..) => Shape::Fixed(8),
            ArrowType::Decimal128(..) => Shape::Fixed(16),
            ArrowType::FixedSizeBinary(width) => {
                Shape::Fixed(usize::try_from(*width).ok().filter(|w| (1..=VECTOR_BITS_BYTES_MAX).contains(w))?)
            }
            ArrowType::Utf8 | ArrowType::Binary => Shape::Variable,
            ArrowType::FixedSizeList(element, dimension) => Shape::Vector {
                dimension: usize::try_from(*dimension)
                    .ok()
                    .filter(|d| (1..=VECTOR_DIMENSION_MAX as usize).contains(d))?,
                width: match element.data_type() {
                    ArrowType::Float32 => 4,
                    ArrowType::Float16 => 2,
                    ArrowType::Int8 => 1,
                    _ => return None,
                },
            },
            _ => return None,
        })
    }

    /// Field nodes in the metadata.
    fn nodes(self) -> usize {
        if matches!(self, Shape::Vector { .. }) { 2 } else { 1 }
    }

    /// Buffers in the metadata.
    fn buffers(self) -> usize {
        match self {
            Shape::Bits | Shape::Fixed(_) => 2,
            Shape::Variable | Shape::Vector { .. } => 3,
        }
    }

    /// Bytes of `rows` values (of the offsets, when variable).
    fn values_len(self, rows: usize) -> usize {
        match self {
            Shape::Bits => rows.div_ceil(8),
            Shape::Fixed(width) => rows * width,
            Shape::Variable => (rows + 1) * 4,
            Shape::Vector { dimension, width } => rows * dimension * width,
        }
    }
}

#[cfg(test)]
mod tests;
