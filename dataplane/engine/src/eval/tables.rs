//! Functions of one column with few values, computed once per value instead of once per row.
//!
//! Owns [`Table`]. The machine makes tables at the start of a row group, when the chunks are there, for nodes
//! that read a single column: one of text with a dictionary (any function of it), or one of integers or dates
//! whose range is narrow there (functions that cost more than looking them up: `extract`, casts to text, ...).
//!
//! Invariants
//! - A table holds the function's value for every value that the column can have in the row group, and for NULL.
//! - A function that fails for any of them has no table: the failing value may belong to no active row.
//!
//! Cost: a row takes 0.3 ns to decode a code and 0.4 ns to look it up, where gathering and comparing its text
//! took 30 ns and taking a date apart 8 ns; an entry takes about 10 to 50 ns, once per row group.

use heliostat_segment::{Chunk, dispatch};
use hidb::{BLOCK_ROWS, Lane, Result};

use super::compare::pack;
use super::machine::{ColumnSource, Machine};
use super::{Node, Op, Program};
use crate::vector::{Bits, ByteValues, Vector, bit};

/// More entries would make the step that computes them too long.
pub(crate) const ENTRIES_MAX: usize = 8192;
/// A table must save at least this many evaluations per entry.
const ROWS_PER_ENTRY: usize = 4;

/// What a table is looked up by.
#[derive(Clone, Copy, Debug)]
pub(super) enum By {
    /// The dictionary codes of a text column.
    Codes,
    /// The value in this node, less this.
    Range { node: usize, least: i64 },
}

/// A function's values.
#[derive(Debug)]
pub(super) struct Table {
    pub by: By,
    pub column: usize,
    /// How many values there are; the value for NULL comes after them.
    null: u32,
    lane: Lane,
    /// Bit 0: a boolean's value. Bit 1: not NULL.
    flags: Vec<u8>,
    i64s: Vec<i64>,
    i128s: Vec<i128>,
    f64s: Vec<f64>,
    bytes: ByteValues,
    /// Whether any value gives NULL.
    values_give_null: bool,
    /// Whether NULL does.
    null_gives_null: bool,
}

/// The values a table is computed from, up to a block at a time.
struct Entries<'a> {
    chunk: &'a Chunk,
    by: By,
    first: usize,
    count: usize,
    /// The position of NULL among all.
    null: usize,
}

impl ColumnSource for Entries<'_> {
    fn load(&mut self, _column: usize, out: &mut Vector) -> Result<()> {
        let values = self.count - usize::from(self.first + self.count > self.null);
        match self.by {
            By::Codes => {
                out.reset(Lane::Bytes, BLOCK_ROWS);
                if let Some(dictionary) = self.chunk.dictionary() {
                    for entry in self.first..self.first + values {
                        out.bytes.push(dictionary.bytes(entry as u32)?);
                    }
                }
                if values < self.count {
                    out.bytes.close();
                }
            }
            By::Range { least, .. } => {
                out.reset(Lane::I64, BLOCK_ROWS);
                let first = least.wrapping_add(self.first as i64);
                for (k, value) in out.i64s[..values].iter_mut().enumerate() {
                    *value = first.wrapping_add(k as i64);
                }
                if values < self.count {
                    out.i64s[values] = least;
                }
            }
        }
        if values < self.count {
            out.has_nulls = true;
            out.valid = crate::vector::first_bits(values);
        }
        Ok(())
    }
}

/// Whether looking the node's function up is cheaper than computing it from integers.
fn is_dear(program: &Program, node: usize) -> bool {
    let Node { op, children, data_type, .. } = &program.nodes[node];
    let dear = match op {
        Op::Extract(_) | Op::AddInterval { .. } | Op::Like(_) | Op::Substring | Op::Length | Op::Lower | Op::Upper => {
            true
        }
        Op::In { list, .. } => list.len() > 8,
        Op::Cast => data_type.lane() == Lane::Bytes || data_type.lane() == Lane::F64,
        _ => false,
    };
    dear || children.iter().any(|child| is_dear(program, *child))
}

fn column_node(program: &Program, node: usize) -> Option<usize> {
    match program.nodes[node].op {
        Op::Column(_) => Some(node),
        _ => program.nodes[node].children.iter().find_map(|child| column_node(program, *child)),
    }
}

/// How a node could be looked up in this row group, of which `rows` rows are left, and by how many values
/// (at most `entries_max`).
pub(super) fn lookup_of(
    program: &Program,
    machine: &Machine,
    node: usize,
    chunks: &[Option<Chunk>],
    (rows, entries_max): (usize, usize),
) -> Option<(By, usize, usize)> {
    let column = program.nodes[node].only_column?;
    if matches!(program.nodes[node].op, Op::Column(_)) {
        return None;
    }
    let chunk = chunks.get(column)?.as_ref()?;
    let (by, values) = match chunk.data_type().lane() {
        Lane::Bytes => (By::Codes, chunk.dictionary()?.len()),
        Lane::I64 if is_dear(program, node) => {
            let source = column_node(program, node)?;
            let (min, max) = machine.fact(source).integers()?;
            let values = usize::try_from(max.checked_sub(min)?.checked_add(1)?).ok()?;
            (By::Range { node: source, least: i64::try_from(min).ok()? }, values)
        }
        _ => return None,
    };
    (values <= entries_max.min(rows / ROWS_PER_ENTRY)).then_some((by, column, values))
}

impl Table {
    /// Computes the table of a node; `None` if any value raises an error.
    pub fn compute(
        machine: &mut Machine,
        program: &Program,
        node: usize,
        chunk: &Chunk,
        (by, column, values): (By, usize, usize),
    ) -> Option<Table> {
        let mut table = Table {
            by,
            column,
            null: values as u32,
            lane: Lane::Bool,
            flags: Vec::with_capacity(values + 1),
            i64s: Vec::new(),
            i128s: Vec::new(),
            f64s: Vec::new(),
            bytes: ByteValues::default(),
            values_give_null: false,
            null_gives_null: false,
        };
        for first in (0..=values).step_by(BLOCK_ROWS) {
            let count = (values + 1 - first).min(BLOCK_ROWS);
            machine.begin(count);
            machine.eval_all(program, node, &mut Entries { chunk, by, first, count, null: values }).ok()?;
            let value = machine.vector(program, node);
            table.lane = value.lane;
            for row in 0..count {
                let valid = value.is_valid(row);
                if first + row == values {
                    table.null_gives_null = !valid;
                } else {
                    table.values_give_null |= !valid;
                }
                table.flags.push(u8::from(valid) << 1 | u8::from(bit(&value.bits, row)));
            }
            match value.lane {
                Lane::Bool => {}
                Lane::I64 => table.i64s.extend_from_slice(&value.i64s[..count]),
                Lane::I128 => table.i128s.extend_from_slice(&value.i128s[..count]),
                Lane::F64 => table.f64s.extend_from_slice(&value.f64s[..count]),
                Lane::Bytes => (0..count).for_each(|row| {
                    table.bytes.push(if value.is_valid(row) { value.bytes.get(row) } else { b"" });
                }),
            }
        }
        Some(table)
    }

    /// Whether this table of an earlier row group holds what is looked for in this one. A dictionary's doesn't.
    pub fn covers(&self, (by, column, values): (By, usize, usize), lane: Lane) -> bool {
        let (By::Range { least: from, .. }, By::Range { least, .. }) = (self.by, by) else { return false };
        let (end, needed) = (i128::from(from) + i128::from(self.null), i128::from(least) + values as i128);
        self.column == column && self.lane == lane && from <= least && needed <= end
    }

    /// Turns the column's integers into positions in the table.
    pub fn positions_of(&self, least: i64, value: &Vector, rows: usize, out: &mut [u32; BLOCK_ROWS]) {
        offsets(&value.i64s[..rows], least, self.null, out);
        if value.has_nulls {
            self.place_nulls(&value.valid, rows, out);
        }
    }

    /// Points the rows that are NULL to the value for NULL.
    pub fn place_nulls(&self, valid: &Bits, rows: usize, out: &mut [u32; BLOCK_ROWS]) {
        for (row, position) in out[..rows].iter_mut().enumerate() {
            if !bit(valid, row) {
                *position = self.null;
            }
        }
    }

    /// The values at these positions; `nulls`: the position of NULL may be among them.
    pub fn look_up(&self, positions: &[u32], nulls: bool, out: &mut Vector) {
        out.reset(self.lane, BLOCK_ROWS);
        match self.lane {
            Lane::Bool => look_up_bit(positions, &self.flags, 0, &mut out.bits),
            Lane::I64 => look_up_i64(positions, &self.i64s, &mut out.i64s),
            Lane::I128 => look_up_each(positions, &self.i128s, &mut out.i128s),
            Lane::F64 => look_up_each(positions, &self.f64s, &mut out.f64s),
            Lane::Bytes => positions.iter().for_each(|position| out.bytes.push(self.bytes.get(*position as usize))),
        }
        if self.values_give_null || nulls && self.null_gives_null {
            out.has_nulls = true;
            look_up_bit(positions, &self.flags, 1, &mut out.valid);
        }
    }
}

#[inline(always)]
fn offsets_body(values: &[i64], least: i64, last: u32, out: &mut [u32; BLOCK_ROWS]) {
    for (position, value) in out.iter_mut().zip(values) {
        // Only a NULL's arbitrary value is out of range.
        *position = (value.wrapping_sub(least) as u64).min(u64::from(last)) as u32;
    }
}

dispatch! {
    /// `values[k] - least`, at most `last`.
    fn offsets(values: &[i64], least: i64, last: u32, out: &mut [u32; BLOCK_ROWS]) = offsets_body;
}

#[inline(always)]
fn look_up_bit_body(positions: &[u32], flags: &[u8], shift: u32, out: &mut Bits) {
    for (positions, out) in positions.chunks(64).zip(out) {
        let mut bytes = [0u8; 64];
        for (position, byte) in positions.iter().zip(&mut bytes) {
            *byte = flags[*position as usize] >> shift & 1;
        }
        *out = pack(&bytes);
    }
}

dispatch! {
    /// A bit of the flags at these positions.
    fn look_up_bit(positions: &[u32], flags: &[u8], shift: u32, out: &mut Bits) = look_up_bit_body;
}

#[inline(always)]
fn look_up_each<T: Copy>(positions: &[u32], values: &[T], out: &mut [T]) {
    for (out, position) in out.iter_mut().zip(positions) {
        // Single loads: gather instructions took a fifth longer (Xeon with the microcode against downfall).
        *out = values[*position as usize];
    }
}

#[inline(always)]
fn look_up_i64_body(positions: &[u32], values: &[i64], out: &mut [i64]) {
    look_up_each(positions, values, out);
}

dispatch! {
    /// The values at these positions.
    fn look_up_i64(positions: &[u32], values: &[i64], out: &mut [i64]) = look_up_i64_body;
}
