//! From survivors to result images.
//!
//! Owns [`Emitter`], which fills one image after another. Plain fixed-width columns are gathered from their
//! chunks straight into the image; everything else comes as vectors. Called by the core scan (streaming) and
//! the merge.
//!
//! Invariants
//! - An image holds whole rows of all columns, in one order.
//! - A row that does not fit an empty image gets an image of its own, however long that is.
//!
//! Cost: one write per value: 0.3 to 0.5 ns for fixed widths, and the bytes of texts twice.

use std::collections::VecDeque;
use std::rc::Rc;

use hidb::aligned::ImageMemory;
use hidb::image::{ImageLayout, ImageWriter, ResultImage};
use hidb::{DataType, Lane, Result, Schema};

use crate::options::EngineOptions;
use crate::source::{RowSource, chunk_of};
use crate::vector::{Bits, Vector, bit};

/// Rows that the first image of an answer has room for at least.
const ROWS_FIRST_MIN: usize = 64;
/// Each image has room for so many times the rows of the one before, until it is as long as images may be.
const GROWTH: usize = 8;

/// Where a column's values for the rows at hand come from.
pub(crate) enum Input<'a> {
    /// Computed or loaded; row `k` belongs to the `k`-th row at hand.
    Vector(&'a Vector),
    /// Gathered from the chunk of this table column.
    Gather(usize),
}

/// Fills images.
#[derive(Debug)]
pub(crate) struct Emitter {
    schema: Schema,
    types: Vec<DataType>,
    decimal64: bool,
    image_bytes_max: usize,
    layout: ImageLayout,
    /// Bytes per text of each column in the last image, for the layout of the next.
    learnt: Option<Vec<usize>>,
    /// Rows of the next image: most questions have few answers, and a long image costs its zeroing.
    rows_next: usize,
    writer: Option<ImageWriter>,
    /// Rows in `writer`.
    rows: usize,
    ready: VecDeque<ResultImage>,
    memory: Option<Rc<dyn ImageMemory>>,
}

impl Emitter {
    pub fn new(schema: &Schema, options: &EngineOptions, layout: &ImageLayout) -> Self {
        Emitter {
            schema: schema.clone(),
            types: schema.fields().iter().map(|field| field.data_type).collect(),
            decimal64: options.decimal64,
            image_bytes_max: options.image_bytes_max,
            layout: layout.clone(),
            learnt: None,
            rows_next: ROWS_FIRST_MIN,
            writer: None,
            rows: 0,
            ready: VecDeque::new(),
            memory: None,
        }
    }

    /// Images are written into memory of this from now on.
    pub fn lend(&mut self, memory: Rc<dyn ImageMemory>) {
        self.memory = Some(memory);
    }

    /// A finished image, if there is one.
    pub fn take(&mut self) -> Option<ResultImage> {
        self.ready.pop_front()
    }

    /// Whether `take` would give an image.
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether a plain column of this type can be gathered as it is in the image.
    pub fn gathers(&self, data_type: &DataType) -> bool {
        let narrow = matches!(data_type, DataType::Decimal { .. }) && data_type.lane() == Lane::I64;
        data_type.fixed_width().is_some() && (self.decimal64 || !narrow)
    }

    /// Closes the image at hand.
    pub fn flush(&mut self) -> Result<()> {
        if let Some(writer) = self.writer.take()
            && self.rows > 0
        {
            self.learn(&writer);
            self.ready.push_back(writer.finish(self.rows)?);
        }
        self.rows = 0;
        Ok(())
    }

    /// An image with room for `count` rows, if they fit, and then some.
    fn open(&mut self, count: usize) -> ImageWriter {
        if let Some(estimates) = self.learnt.take()
            && let Ok(layout) =
                ImageLayout::with_estimates(&self.schema, self.decimal64, self.image_bytes_max, &estimates)
        {
            self.layout = layout;
        }
        let rows = self.rows_next.max(count.saturating_mul(2));
        self.rows_next = rows.saturating_mul(GROWTH);
        ImageWriter::new_in(&self.layout.for_rows(rows), self.memory.as_deref())
    }

    /// Lays the next image out by the texts of this one.
    fn learn(&mut self, writer: &ImageWriter) {
        let mut any = false;
        let estimates: Vec<usize> = (self.types.iter().enumerate())
            .map(|(column, data_type)| {
                if data_type.fixed_width().is_some() || data_type.lane() != Lane::Bytes {
                    return 0;
                }
                any = true;
                let (rows, bytes) = writer.text_pushed(column);
                (bytes + bytes / 16) / rows.max(1) + 1
            })
            .collect();
        if any {
            self.learnt = Some(estimates);
        }
    }

    /// Appends `count` rows, one input per column of the schema; [`Input::Gather`] gathers from `from`.
    pub fn push(&mut self, count: usize, inputs: &[Input<'_>], mut from: Option<&mut RowSource<'_>>) -> Result<()> {
        let mut start = 0;
        while start < count {
            if self.writer.is_none() {
                self.writer = Some(self.open(count - start));
            }
            let Some(writer) = self.writer.as_mut() else { break };
            let mut take = (writer.rows_capacity() - self.rows).min(count - start);
            for (column, input) in inputs.iter().enumerate() {
                if let Input::Vector(vector) = input
                    && vector.lane == Lane::Bytes
                    && self.types[column].fixed_width().is_none()
                {
                    take = fitting(vector, start, take, writer.text_room(column));
                }
            }
            if take == 0 {
                if self.rows > 0 {
                    self.flush()?;
                    continue;
                }
                // Not even one row fits: it gets an image of its own.
                let lengths: Vec<usize> = inputs
                    .iter()
                    .map(|input| match input {
                        Input::Vector(v) if v.lane == Lane::Bytes && v.is_valid(start) => v.bytes.get(start).len(),
                        _ => 0,
                    })
                    .collect();
                let layout = ImageLayout::exact(&self.schema, self.decimal64, 1, &lengths)?;
                self.writer = Some(ImageWriter::new_in(&layout, self.memory.as_deref()));
                take = 1;
            }
            if let Some(writer) = self.writer.as_mut() {
                for (column, input) in inputs.iter().enumerate() {
                    let at = (column, self.rows, start, take);
                    match (input, &mut from) {
                        (Input::Vector(vector), _) => {
                            write_vector(writer, &self.types[column], self.decimal64, at, vector)?;
                        }
                        (Input::Gather(source), Some(from)) => {
                            gather(writer, &self.types[column], at, *source, from)?;
                        }
                        (Input::Gather(_), None) => {}
                    }
                }
            }
            self.rows += take;
            start += take;
            let full = self.writer.as_ref().is_some_and(|writer| self.rows >= writer.rows_capacity());
            if full {
                self.flush()?;
            }
        }
        Ok(())
    }
}

/// How many of the values from `start` fit into `room` bytes, at most `take`.
fn fitting(vector: &Vector, start: usize, take: usize, room: usize) -> usize {
    let mut used = 0;
    for offset in 0..take {
        if vector.is_valid(start + offset) {
            used += vector.bytes.get(start + offset).len();
        }
        if used > room {
            return offset;
        }
    }
    take
}

/// Clears the validity of NULL rows: `valid` is by row at hand, `start` the first, `at` where it goes.
fn write_nulls(writer: &mut ImageWriter, column: usize, at: usize, start: usize, take: usize, valid: &Bits) {
    if let Some(validity) = writer.validity_mut(column) {
        for offset in 0..take {
            if !bit(valid, start + offset) {
                validity[(at + offset) / 8] &= !(1 << ((at + offset) % 8));
            }
        }
    }
}

type At = (usize, usize, usize, usize);

fn write_vector(
    writer: &mut ImageWriter,
    data_type: &DataType,
    decimal64: bool,
    (column, at, start, take): At,
    vector: &Vector,
) -> Result<()> {
    macro_rules! narrow {
        ($type:ty, $values:expr) => {
            for (out, value) in writer.fixed_mut::<$type>(column)[at..at + take].iter_mut().zip($values) {
                *out = *value as $type;
            }
        };
    }
    let rows = start..start + take;
    match data_type {
        DataType::Boolean => {
            let out = writer.values_mut(column);
            for offset in 0..take {
                let (byte, mask) = ((at + offset) / 8, 1u8 << ((at + offset) % 8));
                if bit(&vector.bits, start + offset) {
                    out[byte] |= mask;
                } else {
                    out[byte] &= !mask;
                }
            }
        }
        DataType::Int16 => narrow!(i16, &vector.i64s[rows]),
        DataType::Int32 | DataType::Date => narrow!(i32, &vector.i64s[rows]),
        DataType::Int64 | DataType::Timestamp { .. } => narrow!(i64, &vector.i64s[rows]),
        DataType::Float32 => narrow!(f32, &vector.f64s[rows]),
        DataType::Float64 => narrow!(f64, &vector.f64s[rows]),
        DataType::Decimal { .. } if decimal64 && data_type.lane() == Lane::I64 => narrow!(i64, &vector.i64s[rows]),
        DataType::Decimal { .. } => {
            let out = &mut writer.fixed_mut::<i128>(column)[at..at + take];
            out.iter_mut().zip(rows).for_each(|(out, row)| *out = vector.integer(row));
        }
        DataType::Vector { .. } => {
            let width = data_type.fixed_width().unwrap_or(0);
            let out = &mut writer.values_mut(column)[at * width..(at + take) * width];
            for (out, row) in out.chunks_exact_mut(width).zip(rows) {
                match vector.bytes.get(row) {
                    value if value.len() == width && vector.is_valid(row) => out.copy_from_slice(value),
                    _ => out.fill(0),
                }
            }
        }
        DataType::Varchar(_) | DataType::Text | DataType::Bytea => {
            let tail = writer.text_tail(column);
            let mut used = 0;
            for (end, row) in tail.ends.iter_mut().zip(rows) {
                if vector.is_valid(row) {
                    let value = vector.bytes.get(row);
                    tail.data[used..used + value.len()].copy_from_slice(value);
                    used += value.len();
                }
                *end = tail.base + used as i32;
            }
            writer.text_advance(column, take, used);
        }
    }
    if vector.has_nulls {
        write_nulls(writer, column, at, start, take, &vector.valid);
    }
    Ok(())
}

fn gather(
    writer: &mut ImageWriter,
    data_type: &DataType,
    (column, at, first, take): At,
    source: usize,
    from: &mut RowSource<'_>,
) -> Result<()> {
    let chunk = chunk_of(from.chunks, source)?;
    let width = data_type.fixed_width().unwrap_or(0);
    let out = &mut writer.values_mut(column)[at * width..];
    from.for_each_part(first, take, |block, rows, start| {
        chunk.gather_fixed(block, rows, &mut out[start * width..])?;
        Ok(())
    })?;
    if let Some(valid) = from.validity(source)? {
        write_nulls(writer, column, at, first, take, &valid);
    }
    Ok(())
}
