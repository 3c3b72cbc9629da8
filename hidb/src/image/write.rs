//! Writing images: regions of one aligned buffer, filled in place by the engine.
//!
//! Owns [`ImageLayout`] (computed once per request), [`ImageWriter`] (one per image) and
//! [`image_of_batch`] (for batches that exist already).
//!
//! Invariants
//! - Regions do not overlap and begin at multiples of 64 bytes; metadata has a reserved place in front
//!   that is never too small, because a flatbuffer's size depends only on how many columns there are.
//! - Offsets of variable columns ascend: they are written only by this module or by the owner of a
//!   [`TextTail`], and [`ImageWriter::finish`] refuses rows that were not pushed.
//!
//! Cost: a zeroed buffer per image (36 us for 1 MiB, measured), and the metadata, a few hundred bytes.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::GenericBinaryType;
use arrow_array::{Array, RecordBatch};
use arrow_buffer::ArrowNativeType;
use arrow_ipc::{Buffer as IpcBuffer, FieldNode, MessageBuilder, MessageHeader, MetadataVersion, RecordBatchBuilder};
use arrow_schema::SchemaRef;
use flatbuffers::FlatBufferBuilder;

use super::read::shapes;
use super::{CONTINUATION, IMAGE_ROWS_MAX, PREFIX_BYTES, Shape};
use crate::aligned::{AlignedBytes, ImageMemory, align_up};
use crate::arrow_mapping::to_arrow_schema;
use crate::error::{Error, ErrorCode, Result};
use crate::schema::Schema;

/// What one value of a variable-length column is expected to take, unless the caller knows better.
const TEXT_BYTES_GUESS: usize = 24;

/// A finished image.
#[derive(Debug)]
pub struct ResultImage {
    /// Rows in it.
    pub rows: u32,
    /// The encapsulated Arrow IPC record batch message.
    pub bytes: AlignedBytes,
}

#[derive(Clone, Copy, Debug)]
struct Column {
    shape: Shape,
    nullable: bool,
}

impl Column {
    /// Bytes of validity, values and data for so many rows.
    fn parts(&self, rows: usize, data_bytes: usize) -> [usize; 3] {
        [if self.nullable { rows.div_ceil(8) } else { 0 }, self.shape.values_len(rows), data_bytes]
    }
}

/// How the images of one answer are laid out.
#[derive(Clone, Debug)]
pub struct ImageLayout {
    columns: Arc<[Column]>,
    /// Prefix, flatbuffer and padding: where the body begins.
    head_bytes: usize,
    rows_capacity: usize,
    /// Data bytes of each column (0 unless variable).
    data_bytes: Vec<usize>,
}

impl ImageLayout {
    /// A layout for images of at most `image_bytes_max` bytes, with a guess for the length of texts.
    pub fn new(schema: &Schema, decimal64: bool, image_bytes_max: usize) -> Result<Self> {
        let guesses = vec![TEXT_BYTES_GUESS; schema.len()];
        Self::with_estimates(schema, decimal64, image_bytes_max, &guesses)
    }

    /// A layout for images of at most `image_bytes_max` bytes in which column `i` takes about
    /// `text_bytes[i]` bytes per value (ignored unless variable). Holds at least one row, so the
    /// image is longer than asked for when not even one row fits.
    pub fn with_estimates(
        schema: &Schema,
        decimal64: bool,
        image_bytes_max: usize,
        text_bytes: &[usize],
    ) -> Result<Self> {
        let (columns, head_bytes) = columns_of(&to_arrow_schema(schema, decimal64))?;
        let estimate = |index: usize| text_bytes.get(index).copied().unwrap_or(TEXT_BYTES_GUESS).max(1);
        let data_of = |rows: usize| -> Vec<usize> {
            let column = |(index, column): (usize, &Column)| match column.shape {
                Shape::Variable => rows * estimate(index),
                _ => 0,
            };
            columns.iter().enumerate().map(column).collect()
        };
        let total = |rows: usize| {
            let parts = columns.iter().enumerate().map(|(index, column)| {
                let data = if column.shape == Shape::Variable { rows * estimate(index) } else { 0 };
                column.parts(rows, data).map(align_up).iter().sum::<usize>()
            });
            head_bytes + parts.sum::<usize>()
        };
        // Lengths grow with rows, in steps of the alignment: bisect for the most rows that fit.
        let (mut rows, mut too_many) = (1, IMAGE_ROWS_MAX + 1);
        while too_many - rows > 1 {
            let middle = rows.midpoint(too_many);
            if total(middle) <= image_bytes_max { rows = middle } else { too_many = middle }
        }
        // What is left over goes to the variable columns, by their estimates.
        let mut data_bytes = data_of(rows);
        let left = image_bytes_max.saturating_sub(total(rows)) / 64 * 64;
        let weight: usize = data_bytes.iter().sum();
        if weight > 0 {
            for bytes in &mut data_bytes {
                *bytes += (left as u128 * *bytes as u128 / weight as u128) as usize / 64 * 64;
            }
        }
        Ok(ImageLayout { columns, head_bytes, rows_capacity: rows, data_bytes })
    }

    /// A layout for exactly these rows and data bytes per column, however long the image gets: for a
    /// row that is wider than an image.
    pub fn exact(schema: &Schema, decimal64: bool, rows: usize, data_bytes: &[usize]) -> Result<Self> {
        Self::exact_arrow(&to_arrow_schema(schema, decimal64), rows, data_bytes)
    }

    fn exact_arrow(schema: &SchemaRef, rows: usize, data_bytes: &[usize]) -> Result<Self> {
        let (columns, head_bytes) = columns_of(schema)?;
        let data = |(index, column): (usize, &Column)| match column.shape {
            Shape::Variable => data_bytes.get(index).copied().unwrap_or(0),
            _ => 0,
        };
        let data_bytes = columns.iter().enumerate().map(data).collect();
        Ok(ImageLayout { columns, head_bytes, rows_capacity: rows, data_bytes })
    }

    /// The same for `rows` rows, if that is less: for an answer that may end soon.
    pub fn for_rows(&self, rows: usize) -> Self {
        let rows = rows.clamp(1, self.rows_capacity);
        let share =
            |bytes: &usize| align_up((*bytes as u128 * rows as u128).div_ceil(self.rows_capacity as u128) as usize);
        let data_bytes = self.data_bytes.iter().map(|bytes| share(bytes).min(*bytes)).collect();
        ImageLayout { columns: self.columns.clone(), head_bytes: self.head_bytes, rows_capacity: rows, data_bytes }
    }

    /// Rows an image of this layout holds; fewer when texts turn out longer than estimated.
    pub fn rows_capacity(&self) -> usize {
        self.rows_capacity
    }
}

fn columns_of(schema: &SchemaRef) -> Result<(Arc<[Column]>, usize)> {
    let fields = schema.fields().iter();
    let columns: Arc<[Column]> =
        fields.zip(shapes(schema)?).map(|(f, shape)| Column { shape, nullable: f.is_nullable() }).collect();
    // With no field at its default value the flatbuffer is as long as it can get.
    let nodes = vec![FieldNode::new(1, 1); columns.iter().map(|c| c.shape.nodes()).sum()];
    let buffers = vec![IpcBuffer::new(64, 64); columns.iter().map(|c| c.shape.buffers()).sum()];
    let longest = metadata_of(1, 64, &nodes, &buffers).len();
    Ok((columns, align_up(PREFIX_BYTES + longest)))
}

fn metadata_of(rows: usize, body_len: usize, nodes: &[FieldNode], buffers: &[IpcBuffer]) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::with_capacity(256 + nodes.len() * 16 + buffers.len() * 16);
    let nodes = builder.create_vector(nodes);
    let buffers = builder.create_vector(buffers);
    let mut batch = RecordBatchBuilder::new(&mut builder);
    batch.add_length(rows as i64);
    batch.add_nodes(nodes);
    batch.add_buffers(buffers);
    let batch = batch.finish().as_union_value();
    let mut message = MessageBuilder::new(&mut builder);
    message.add_version(MetadataVersion::V5);
    message.add_header_type(MessageHeader::RecordBatch);
    message.add_bodyLength(body_len as i64);
    message.add_header(batch);
    let message = message.finish();
    builder.finish(message, None);
    builder.finished_data().to_vec()
}

/// Where a column's parts are, in bytes from the body's (later the image's) start.
#[derive(Clone, Debug, Default)]
struct Regions {
    validity: Range<usize>,
    values: Range<usize>,
    data: Range<usize>,
}

/// The regions of all columns, and the body's length.
fn body_regions(columns: &[Column], rows: usize, data_bytes: &[usize]) -> (Vec<Regions>, usize) {
    let mut end = 0;
    let mut take = |length: usize| {
        let start = end;
        end = align_up(start + length);
        start..end
    };
    let regions = columns.iter().zip(data_bytes).map(|(column, data)| {
        let [validity, values, data] = column.parts(rows, *data).map(&mut take);
        Regions { validity, values, data }
    });
    let regions = regions.collect();
    (regions, end)
}

/// Room at the end of a variable column; see [`ImageWriter::text_tail`].
#[derive(Debug)]
pub struct TextTail<'a> {
    /// `offsets[i]` is where the `i`-th value pushed from here on ends, counted from the start of the
    /// column's data; one entry per row still free.
    pub ends: &'a mut [i32],
    /// The free part of the column's data.
    pub data: &'a mut [u8],
    /// Where `data` begins, counted from the start of the column's data.
    pub base: i32,
}

/// Writes one image.
///
/// Fixed-width columns: fill [`ImageWriter::fixed_mut`] (or the bytes of [`ImageWriter::values_mut`]) by row.
/// Booleans: bits of `values_mut`, least significant first. Vectors: their elements by row. Variable
/// columns: push row after row. NULLs: clear bits of [`ImageWriter::validity_mut`], which begin all set.
#[derive(Debug)]
pub struct ImageWriter {
    columns: Arc<[Column]>,
    head_bytes: usize,
    rows_capacity: usize,
    regions: Vec<Regions>,
    /// Per variable column: rows and data bytes pushed.
    pushed: Vec<(usize, usize)>,
    bytes: AlignedBytes,
}

impl ImageWriter {
    /// An empty image of this layout.
    pub fn new(layout: &ImageLayout) -> Self {
        Self::new_in(layout, None)
    }

    /// An empty image of this layout, in memory lent by `memory` if there is some.
    pub fn new_in(layout: &ImageLayout, memory: Option<&dyn ImageMemory>) -> Self {
        let (mut regions, body_len) = body_regions(&layout.columns, layout.rows_capacity, &layout.data_bytes);
        let length = layout.head_bytes + body_len;
        let mut bytes = match memory {
            Some(memory) => AlignedBytes::zeroed_in(memory, length),
            None => AlignedBytes::zeroed(length),
        };
        for region in &mut regions {
            for part in [&mut region.validity, &mut region.values, &mut region.data] {
                *part = part.start + layout.head_bytes..part.end + layout.head_bytes;
            }
            bytes[region.validity.clone()].fill(0xff);
        }
        ImageWriter {
            columns: layout.columns.clone(),
            head_bytes: layout.head_bytes,
            rows_capacity: layout.rows_capacity,
            pushed: vec![(0, 0); regions.len()],
            regions,
            bytes,
        }
    }

    /// Rows there is room for.
    pub fn rows_capacity(&self) -> usize {
        self.rows_capacity
    }

    /// Bytes the image takes as it is laid out.
    pub fn bytes_len(&self) -> usize {
        self.bytes.len()
    }

    /// The values of a fixed-width column as `T`, one per row. `T` must have the column's width (for
    /// vectors: the element's, `dimension` of them per row).
    pub fn fixed_mut<T: ArrowNativeType>(&mut self, column: usize) -> &mut [T] {
        let shape = self.columns[column].shape;
        let width = size_of::<T>();
        debug_assert!(
            matches!(shape, Shape::Fixed(w) | Shape::Vector { width: w, .. } if w == width),
            "column {column} is {shape:?}, not values of {width} bytes"
        );
        let region = &self.regions[column].values;
        let start = region.start / width;
        &mut self.bytes.typed_mut::<T>()[start..start + shape.values_len(self.rows_capacity) / width]
    }

    /// The bytes of a column's values (bits when boolean). Not for variable columns.
    pub fn values_mut(&mut self, column: usize) -> &mut [u8] {
        let shape = self.columns[column].shape;
        debug_assert!(shape != Shape::Variable, "column {column} has offsets: push its values");
        let start = self.regions[column].values.start;
        &mut self.bytes[start..start + shape.values_len(self.rows_capacity)]
    }

    /// The validity bits of a nullable column, least significant first, all set at the start; `None`
    /// when the column is NOT NULL.
    pub fn validity_mut(&mut self, column: usize) -> Option<&mut [u8]> {
        self.columns[column].nullable.then(|| &mut self.bytes[self.regions[column].validity.clone()])
    }

    /// Makes one value NULL. The column must be nullable.
    pub fn set_null(&mut self, column: usize, row: usize) {
        if let Some(validity) = self.validity_mut(column) {
            validity[row / 8] &= !(1 << (row % 8));
        }
    }

    /// Appends a value to a variable column; `false`, and nothing changed, when it does not fit.
    pub fn push_bytes(&mut self, column: usize, value: &[u8]) -> bool {
        let tail = self.text_tail(column);
        if tail.ends.is_empty() || value.len() > tail.data.len() {
            return false;
        }
        tail.data[..value.len()].copy_from_slice(value);
        tail.ends[0] = tail.base + value.len() as i32;
        self.text_advance(column, 1, value.len());
        true
    }

    /// Appends a NULL to a nullable variable column; `false` when all rows are taken.
    pub fn push_null(&mut self, column: usize) -> bool {
        let row = self.pushed[column].0;
        let fits = self.push_bytes(column, &[]);
        if fits {
            self.set_null(column, row);
        }
        fits
    }

    /// Rows and data bytes already pushed to a variable column.
    pub fn text_pushed(&self, column: usize) -> (usize, usize) {
        self.pushed[column]
    }

    /// Data bytes still free in a variable column.
    pub fn text_room(&self, column: usize) -> usize {
        self.regions[column].data.len() - self.pushed[column].1
    }

    /// The free part of a variable column, to append many values at once: write the data one after
    /// another, the end of each into `ends`, then call [`ImageWriter::text_advance`].
    pub fn text_tail(&mut self, column: usize) -> TextTail<'_> {
        debug_assert!(self.columns[column].shape == Shape::Variable, "column {column} is not variable");
        let (rows, used) = self.pushed[column];
        let regions = &self.regions[column];
        // Offsets lie before data: split between them so that both can be lent at once.
        let (before, after) = self.bytes.split_typed_mut::<i32>(regions.data.start);
        let first = regions.values.start / 4;
        TextTail {
            ends: &mut before[first + 1 + rows..first + 1 + self.rows_capacity],
            data: &mut after[used..regions.data.len()],
            base: used as i32,
        }
    }

    /// Says that `rows` values of `bytes` data bytes in all were written to [`ImageWriter::text_tail`].
    pub fn text_advance(&mut self, column: usize, rows: usize, bytes: usize) {
        let (pushed_rows, used) = &mut self.pushed[column];
        *pushed_rows += rows;
        *used += bytes;
        debug_assert!(*pushed_rows <= self.rows_capacity && *used <= self.regions[column].data.len());
    }

    /// Takes back values of a variable column, so that `rows` remain. Used when another column of the
    /// same rows was full.
    pub fn text_truncate(&mut self, column: usize, rows: usize) {
        if rows < self.pushed[column].0 {
            let first = self.regions[column].values.start / 4;
            let used = self.bytes.typed_mut::<i32>()[first + rows];
            self.pushed[column] = (rows, used as usize);
        }
    }

    /// Closes the image with the first `rows` rows. Every variable column must hold at least as many.
    ///
    /// Nothing is moved unless a quarter of the image would be slack.
    pub fn finish(mut self, rows: usize) -> Result<ResultImage> {
        let short = self.columns.iter().zip(&self.pushed).position(|(c, p)| c.shape == Shape::Variable && p.0 < rows);
        if rows > self.rows_capacity || short.is_some() {
            return Err(Error::new(
                ErrorCode::Internal,
                format!("an image of {rows} rows: capacity {}, short column {short:?}", self.rows_capacity),
            ));
        }
        let mut parts = Vec::with_capacity(self.columns.len() * 3);
        let mut nodes = Vec::with_capacity(self.columns.len());
        for (index, column) in self.columns.clone().iter().enumerate() {
            self.text_truncate(index, rows);
            let regions = &self.regions[index];
            let nulls = if column.nullable { count_zeros(&self.bytes[regions.validity.clone()], rows) } else { 0 };
            nodes.push(FieldNode::new(rows as i64, nulls as i64));
            let values = (regions.values.start, column.shape.values_len(rows));
            parts.push((regions.validity.start, if nulls > 0 { rows.div_ceil(8) } else { 0 }));
            match column.shape {
                Shape::Bits | Shape::Fixed(_) => parts.push(values),
                Shape::Variable => {
                    parts.push(values);
                    parts.push((regions.data.start, self.pushed[index].1));
                }
                Shape::Vector { dimension, .. } => {
                    nodes.push(FieldNode::new((rows * dimension) as i64, 0));
                    parts.push((regions.values.start, 0));
                    parts.push(values);
                }
            }
        }
        let used: usize = parts.iter().map(|(_, length)| align_up(*length)).sum();
        let compact = used < (self.bytes.len() - self.head_bytes) / 4 * 3;
        let mut end = self.head_bytes;
        let mut buffers = Vec::with_capacity(parts.len());
        for (start, length) in parts {
            // Regions ascend, so what moves left never lands on what has not moved yet.
            let target = if compact { end } else { start };
            if compact && length > 0 && start != target {
                self.bytes.copy_within(start..start + length, target);
            }
            if compact {
                let padding = target + length..(target + align_up(length)).min(start.max(target + length));
                self.bytes[padding].fill(0);
            }
            end = end.max(target + align_up(length));
            buffers.push(IpcBuffer::new((target - self.head_bytes) as i64, length as i64));
        }
        self.bytes.truncate(end);
        let metadata = metadata_of(rows, end - self.head_bytes, &nodes, &buffers);
        self.bytes[..4].copy_from_slice(&CONTINUATION);
        self.bytes[4..PREFIX_BYTES].copy_from_slice(&((self.head_bytes - PREFIX_BYTES) as u32).to_le_bytes());
        self.bytes[PREFIX_BYTES..PREFIX_BYTES + metadata.len()].copy_from_slice(&metadata);
        Ok(ResultImage { rows: rows as u32, bytes: self.bytes })
    }
}

/// Zero bits among the first `count`.
fn count_zeros(bits: &[u8], count: usize) -> usize {
    let whole = count / 8;
    let ones: u32 = bits[..whole].iter().map(|byte| byte.count_ones()).sum();
    let rest = if count.is_multiple_of(8) { 0 } else { (bits[whole] & ((1 << (count % 8)) - 1)).count_ones() };
    count - (ones + rest) as usize
}

/// A batch as an image, by one copy. Its types must be those of
/// [`crate::arrow_mapping::to_arrow_type`]. The image is as long as the batch: longer than
/// [`super::IMAGE_BYTES_MAX`] when that is, in which case it is sent in several frames.
pub fn image_of_batch(batch: &RecordBatch) -> Result<ResultImage> {
    let rows = batch.num_rows();
    let schema = batch.schema();
    let span = |column: &dyn Array| match column.data_type() {
        arrow_schema::DataType::Utf8 => ends_of(column.as_string::<i32>().value_offsets()),
        arrow_schema::DataType::Binary => ends_of(column.as_binary::<i32>().value_offsets()),
        _ => (0, 0),
    };
    let spans: Vec<(usize, usize)> = batch.columns().iter().map(|column| span(column)).collect();
    let data_bytes: Vec<usize> = spans.iter().map(|(first, last)| last - first).collect();
    let mut writer = ImageWriter::new(&ImageLayout::exact_arrow(&schema, rows, &data_bytes)?);
    for (index, column) in batch.columns().iter().enumerate() {
        if column.null_count() > 0
            && let (Some(nulls), Some(validity)) = (column.nulls(), writer.validity_mut(index))
        {
            let packed = nulls.inner().sliced();
            validity[..rows.div_ceil(8)].copy_from_slice(&packed.as_slice()[..rows.div_ceil(8)]);
        }
        match writer.columns[index].shape {
            Shape::Bits => {
                let packed = column.as_boolean().values().sliced();
                let length = rows.div_ceil(8);
                writer.values_mut(index)[..length].copy_from_slice(&packed.as_slice()[..length]);
            }
            Shape::Fixed(width) => {
                let data = column.to_data();
                let start = data.offset() * width;
                let values = &data.buffers()[0].as_slice()[start..start + rows * width];
                writer.values_mut(index)[..rows * width].copy_from_slice(values);
            }
            Shape::Vector { dimension, width } => {
                // Slicing a fixed-size list slices its child.
                let child = column.as_fixed_size_list().values().to_data();
                let (start, length) = (child.offset() * width, rows * dimension * width);
                let values = &child.buffers()[0].as_slice()[start..start + length];
                writer.values_mut(index)[..length].copy_from_slice(values);
            }
            Shape::Variable => {
                let (first, last) = spans[index];
                let (offsets, data) = match column.data_type() {
                    arrow_schema::DataType::Utf8 => {
                        let text = column.as_string::<i32>();
                        (text.value_offsets(), text.value_data())
                    }
                    _ => {
                        let bytes = column.as_bytes::<GenericBinaryType<i32>>();
                        (bytes.value_offsets(), bytes.value_data())
                    }
                };
                let tail = writer.text_tail(index);
                tail.data[..last - first].copy_from_slice(&data[first..last]);
                for (end, offset) in tail.ends.iter_mut().zip(offsets.iter().skip(1)) {
                    *end = offset - first as i32;
                }
                writer.text_advance(index, rows, last - first);
            }
        }
    }
    writer.finish(rows)
}

fn ends_of(offsets: &[i32]) -> (usize, usize) {
    (offsets.first().map_or(0, |o| *o as usize), offsets.last().map_or(0, |o| *o as usize))
}
