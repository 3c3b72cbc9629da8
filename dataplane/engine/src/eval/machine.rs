//! The registers of a program and the run over one block.
//!
//! Owns [`Machine`]. One per program, core and request. Called by the filter, projection and aggregation:
//! `specialise` at the start of a row group, `begin` at a block, then `eval` per root.
//!
//! Invariants
//! - A register holds valid values for (at least) the rows in its mask while its epoch is the current one.
//!   Evaluating again for more rows keeps the values of the former ones.

use heliostat_segment::Chunk;
use hidb::{BLOCK_ROWS, DataType, Error, ErrorCode, Lane, Result, Scalar};

use super::arithmetic::{self, overflow};
use super::blend::{blend_f64, blend_i64};
use super::facts::{self, Fact, arithmetic_range, type_range};
use super::tables::{By, Table, lookup_of};
use super::{Op, Program, compare, values};
use crate::vector::{
    Bits, NO_BITS, Vector, and_bits, and_not_bits, any_bit, first_bits, for_each_bit, or_bits, set_bit,
};

/// Where the values of input columns come from.
pub(crate) trait ColumnSource {
    /// Fills `out` with the block's values of the column, one per row of the block at hand.
    fn load(&mut self, column: usize, out: &mut Vector) -> Result<()>;

    /// The dictionary codes of a text column (those of NULL rows are arbitrary entries) and which rows are not
    /// NULL, unless all are. Only asked for where the chunk has a dictionary.
    fn codes(&mut self, column: usize, _out: &mut [u32; BLOCK_ROWS]) -> Result<Option<Bits>> {
        Err(Error::new(ErrorCode::Internal, format!("column {column} has no dictionary here")))
    }

    /// The least and greatest first 8 bytes of a text column in the block (as big-endian numbers, short values
    /// filled up with zeros), if they are known without decoding and no value is NULL.
    fn prefixes(&mut self, _column: usize) -> Result<Option<(u64, u64)>> {
        Ok(None)
    }
}

/// A source for programs without columns, or whose columns are preset.
pub(crate) struct Preset<'a>(pub &'a [Vector]);

impl ColumnSource for Preset<'_> {
    fn load(&mut self, column: usize, out: &mut Vector) -> Result<()> {
        out.clone_from(&self.0[column]);
        Ok(())
    }
}

/// How a node is computed in the row group at hand.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Choice {
    lane: Lane,
    /// Facts prove that no row can fail.
    safe: bool,
    /// The node is its only child unchanged (a widening cast).
    alias: bool,
}

/// The registers of one program.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    registers: Vec<Vector>,
    epochs: Vec<u64>,
    masks: Vec<Bits>,
    choices: Vec<Choice>,
    literal_ready: Vec<bool>,
    /// By node: its values by the value of the one column it reads, in this row group.
    tables: Vec<Option<Box<Table>>>,
    /// Those of the row group before: dates often have the same range.
    former_tables: Vec<Option<Box<Table>>>,
    /// Where in a table the rows' values are.
    positions: Option<Box<[u32; BLOCK_ROWS]>>,
    facts: Vec<Fact>,
    epoch: u64,
    rows: usize,
}

impl Machine {
    /// Chooses kernels for what is known of the columns. Call before the first block of a row group.
    pub fn specialise(&mut self, program: &Program, column: &dyn Fn(usize) -> Fact) {
        let count = program.nodes.len();
        self.registers.resize_with(count, Vector::default);
        self.epochs.resize(count, 0);
        self.masks.resize(count, NO_BITS);
        self.literal_ready.resize(count, false);
        self.tables.resize_with(count, || None);
        self.former_tables.resize_with(count, || None);
        for (table, former) in self.tables.iter_mut().zip(&mut self.former_tables) {
            *former = table.take().or_else(|| former.take());
        }
        let mut facts = std::mem::take(&mut self.facts);
        facts::analyse(program, column, &mut facts);
        self.choices.clear();
        for (index, node) in program.nodes.iter().enumerate() {
            let lane = node.data_type.lane();
            let child_is_i64 = |child: usize| self.choices[child].lane == Lane::I64;
            let all_i64 = node.children.iter().all(|child| child_is_i64(*child));
            let fits =
                facts[index].integers().is_some_and(|(min, max)| min >= i64::MIN.into() && max <= i64::MAX.into());
            let choice = match &node.op {
                Op::Literal(Scalar::I128(value)) if i64::try_from(*value).is_ok() => {
                    Choice { lane: Lane::I64, safe: true, alias: false }
                }
                Op::Arithmetic(op) if lane != Lane::F64 => {
                    let operand = |i: usize| facts[node.children[i]].integers();
                    // The range before it was clamped to the type's: only that proves there is no error.
                    let range = operand(0).zip(operand(1)).and_then(|(a, b)| arithmetic_range(*op, a, b));
                    let divides = matches!(op, hidb::plan::ArithmeticOp::Divide | hidb::plan::ArithmeticOp::Remainder);
                    let zero = divides && operand(1).is_none_or(|(min, max)| min <= 0 && max >= 0);
                    let within =
                        range.zip(type_range(&node.data_type)).is_some_and(|((a, b), (c, d))| a >= c && b <= d);
                    let narrow = all_i64 && (lane == Lane::I64 || fits && within);
                    let lane = if narrow { Lane::I64 } else { lane };
                    Choice { lane, safe: within && !zero && narrow && fits, alias: false }
                }
                Op::Cast if lane == Lane::I128 && node.scale_shift == Some(0) => {
                    let (min, max) = type_range(&node.data_type).unwrap_or((0, 0));
                    let inside = facts[node.children[0]].integers().is_some_and(|(a, b)| a >= min && b <= max);
                    let held = self.choices[node.children[0]].lane;
                    Choice { lane: if inside { held } else { Lane::I128 }, safe: inside, alias: inside }
                }
                Op::Cast if lane == Lane::I64 && node.scale_shift == Some(0) => {
                    let (min, max) = type_range(&node.data_type).unwrap_or((0, 0));
                    let inside = facts[node.children[0]].integers().is_some_and(|(a, b)| a >= min && b <= max);
                    let alias = inside && all_i64;
                    Choice { lane, safe: inside, alias }
                }
                Op::Cast if lane == Lane::I128 && node.scale_shift.is_some_and(|s| s > 0) => {
                    let factor = 10i128.checked_pow(node.scale_shift.unwrap_or(0) as u32);
                    let exact = factor
                        .zip(facts[node.children[0]].integers())
                        .and_then(|(factor, (min, max))| Some((min.checked_mul(factor)?, max.checked_mul(factor)?)));
                    let (least, greatest) = type_range(&node.data_type).unwrap_or((0, 0));
                    let inside = exact.is_some_and(|(a, b)| a >= least && b <= greatest);
                    let narrow = inside && all_i64 && fits;
                    Choice { lane: if narrow { Lane::I64 } else { lane }, safe: narrow, alias: false }
                }
                Op::Case { .. } | Op::Coalesce if lane == Lane::I128 && fits => {
                    let narrow = node.values().all(|child| {
                        child_is_i64(child) || matches!(program.nodes[child].op, Op::Literal(Scalar::Null))
                    });
                    Choice { lane: if narrow { Lane::I64 } else { lane }, safe: false, alias: false }
                }
                _ => Choice { lane, safe: false, alias: false },
            };
            self.choices.push(choice);
            // A literal may have been prepared for another lane.
            if self.registers[index].lane != choice.lane {
                self.literal_ready[index] = false;
            }
        }
        self.facts = facts;
    }

    /// Computes once what these nodes compute from columns with few values, as far as that pays for `rows` rows
    /// and takes at most `entries_max` values. Call after `specialise`, when the row group's chunks are there.
    pub fn tabulate(
        &mut self,
        program: &Program,
        roots: impl IntoIterator<Item = usize>,
        chunks: &[Option<Chunk>],
        rows: usize,
        entries_max: usize,
    ) {
        let mut pending: Vec<usize> = roots.into_iter().collect();
        let mut seen = vec![false; program.nodes.len()];
        // Installed only when all are computed: a table is no use while another is computed from entries.
        let mut tables = Vec::new();
        while let Some(node) = pending.pop() {
            let node = self.resolve(program, node);
            if std::mem::replace(&mut seen[node], true) {
                continue;
            }
            let lookup = lookup_of(program, self, node, chunks, (rows, entries_max));
            let lane = self.choices[node].lane;
            if let Some(lookup) = lookup
                && let Some(table) = self.former_tables[node].take_if(|table| table.covers(lookup, lane))
            {
                tables.push((node, table));
                continue;
            }
            let table = lookup.and_then(|lookup| {
                let chunk = chunks.get(lookup.1)?.as_ref()?;
                Table::compute(self, program, node, chunk, lookup).map(Box::new)
            });
            match table {
                Some(table) => tables.push((node, table)),
                None => pending.extend_from_slice(&program.nodes[node].children),
            }
        }
        for (node, table) in tables {
            self.tables[node] = Some(table);
        }
    }

    /// Whether the node is looked up in this row group.
    pub fn is_tabulated(&self, program: &Program, node: usize) -> bool {
        self.tables[self.resolve(program, node)].is_some()
    }

    /// Evaluates a node by looking it up.
    fn look_up(
        &mut self,
        program: &Program,
        table: &Table,
        out: &mut Vector,
        source: &mut dyn ColumnSource,
    ) -> Result<()> {
        let rows = self.rows;
        let mut positions = std::mem::take(&mut self.positions).unwrap_or_else(|| Box::new([0; BLOCK_ROWS]));
        let nulls = match table.by {
            By::Codes => {
                let valid = source.codes(table.column, &mut positions)?;
                if let Some(valid) = &valid {
                    table.place_nulls(valid, rows, &mut positions);
                }
                valid.is_some()
            }
            By::Range { node, least } => {
                self.eval_all(program, node, source)?;
                let value = self.vector(program, node);
                table.positions_of(least, value, rows, &mut positions);
                value.has_nulls
            }
        };
        table.look_up(&positions[..rows], nulls, out);
        self.positions = Some(positions);
        Ok(())
    }

    /// What the last `specialise` found out about a node.
    pub fn fact(&self, node: usize) -> &Fact {
        &self.facts[node]
    }

    /// Starts a block of `rows` rows: everything computed before is forgotten.
    pub fn begin(&mut self, rows: usize) {
        self.epoch += 1;
        self.rows = rows;
    }

    fn resolve(&self, program: &Program, mut node: usize) -> usize {
        while self.choices[node].alias {
            node = program.nodes[node].children[0];
        }
        node
    }

    /// The value of a node that was evaluated since `begin`.
    pub fn vector(&self, program: &Program, node: usize) -> &Vector {
        &self.registers[self.resolve(program, node)]
    }

    /// Evaluates a node for every row of the block.
    pub fn eval_all(&mut self, program: &Program, node: usize, source: &mut dyn ColumnSource) -> Result<()> {
        let active = first_bits(self.rows);
        self.eval(program, node, &active, source)
    }

    /// Evaluates a node for the active rows.
    pub fn eval(&mut self, program: &Program, node: usize, active: &Bits, source: &mut dyn ColumnSource) -> Result<()> {
        let index = self.resolve(program, node);
        let current = self.epochs[index] == self.epoch;
        if current && !any_bit(&and_not_bits(active, &self.masks[index])) {
            return Ok(());
        }
        let mut mask = if current { or_bits(active, &self.masks[index]) } else { *active };
        if let Some(table) = self.tables[index].take() {
            let mut out = std::mem::take(&mut self.registers[index]);
            let run = self.look_up(program, &table, &mut out, source);
            self.registers[index] = out;
            self.tables[index] = Some(table);
            run?;
            self.epochs[index] = self.epoch;
            self.masks[index] = [u64::MAX; 16];
            return Ok(());
        }
        match &program.nodes[index].op {
            Op::Column(column) => {
                mask = [u64::MAX; 16];
                let mut out = std::mem::take(&mut self.registers[index]);
                let loaded = source.load(*column, &mut out);
                self.registers[index] = out;
                loaded?;
            }
            Op::Literal(value) => {
                mask = [u64::MAX; 16];
                if !self.literal_ready[index] {
                    let lane = self.choices[index].lane;
                    fill_literal(&mut self.registers[index], lane, value);
                    self.literal_ready[index] = true;
                }
            }
            _ => {
                let mut out = std::mem::take(&mut self.registers[index]);
                let run = self.run(program, index, &mask, &mut out, source);
                self.registers[index] = out;
                run?;
            }
        }
        self.epochs[index] = self.epoch;
        self.masks[index] = mask;
        Ok(())
    }

    fn run(
        &mut self,
        program: &Program,
        index: usize,
        active: &Bits,
        out: &mut Vector,
        source: &mut dyn ColumnSource,
    ) -> Result<()> {
        let node = &program.nodes[index];
        let rows = self.rows;
        let choice = self.choices[index];
        match &node.op {
            Op::And => return self.logic(program, &node.children, active, false, out, source),
            Op::Or => return self.logic(program, &node.children, active, true, out, source),
            Op::Case { branches } => return self.case(program, index, *branches, active, out, source),
            Op::Coalesce => return self.coalesce(program, index, active, out, source),
            _ => {}
        }
        for child in &node.children {
            self.eval(program, *child, active, source)?;
        }
        out.reset(choice.lane, rows);
        let child = |i: usize| self.vector(program, node.children[i]);
        match &node.op {
            Op::Compare(op) => {
                compare::compare(*op, child(0), child(1), rows, &mut out.bits);
                out.set_valid_from(&[child(0), child(1)]);
            }
            Op::Not => {
                out.bits = child(0).bits.map(|word| !word);
                out.set_valid_from(&[child(0)]);
            }
            Op::IsNull => out.bits = child(0).valid_bits().map(|word| !word),
            Op::Arithmetic(op) => {
                let (left, right) = (child(0), child(1));
                out.set_valid_from(&[left, right]);
                if choice.lane == Lane::F64 {
                    let single = node.data_type == DataType::Float32;
                    arithmetic::floats(*op, single, left, right, rows, &mut out.f64s);
                } else if choice.safe {
                    arithmetic::unchecked_i64(*op, &left.i64s[..rows], &right.i64s[..rows], &mut out.i64s[..rows]);
                } else {
                    arithmetic::checked_integers(*op, &node.data_type, left, right, rows, active, out)?;
                }
            }
            Op::Negate => {
                let value = child(0);
                out.set_valid_from(&[value]);
                if choice.lane == Lane::F64 {
                    out.f64s[..rows].iter_mut().zip(&value.f64s).for_each(|(out, v)| *out = -v);
                } else {
                    let (least, greatest) = type_range(&node.data_type).unwrap_or((i128::MIN, i128::MAX));
                    for row in 0..rows {
                        let negated = value.integer(row).checked_neg().filter(|v| *v >= least && *v <= greatest);
                        if negated.is_none() && crate::vector::bit(active, row) && value.is_valid(row) {
                            return Err(overflow("negation", &node.data_type));
                        }
                        match choice.lane {
                            Lane::I64 => out.i64s[row] = negated.unwrap_or(0) as i64,
                            _ => out.i128s[row] = negated.unwrap_or(0),
                        }
                    }
                }
            }
            Op::In { integers, list, has_null } => {
                compare::in_list(child(0), integers, list, rows, &mut out.bits);
                out.set_valid_from(&[child(0)]);
                if *has_null {
                    out.valid = and_bits(&out.valid_bits(), &out.bits);
                    out.has_nulls = true;
                }
            }
            Op::Like(pattern) => {
                let value = child(0);
                out.set_valid_from(&[value]);
                let live = and_bits(active, &value.valid_bits());
                let bits = &mut out.bits;
                for_each_bit(&live, |row| {
                    if pattern.matches(value.bytes.get(row)) {
                        set_bit(bits, row);
                    }
                });
            }
            Op::Cast => {
                let from = &program.nodes[node.children[0]].data_type;
                let value = child(0);
                out.set_valid_from(&[value]);
                values::cast(from, &node.data_type, node.scale_shift, choice.safe, value, rows, active, out)?;
            }
            Op::Extract(field) => {
                let from = &program.nodes[node.children[0]].data_type;
                let value = child(0);
                out.set_valid_from(&[value]);
                values::extract(*field, from, value, rows, active, out);
            }
            Op::AddInterval { months, days, microseconds } => {
                let value = child(0);
                out.set_valid_from(&[value]);
                let interval = (*months, *days, *microseconds);
                values::add_interval(&node.data_type, interval, value, rows, active, out)?;
            }
            Op::Substring => {
                let operands: Vec<&Vector> = (0..node.children.len()).map(child).collect();
                out.set_valid_from(&operands);
                values::substring(&operands, rows, active, out)?;
            }
            Op::Length => {
                let from = &program.nodes[node.children[0]].data_type;
                let value = child(0);
                out.set_valid_from(&[value]);
                values::length(from.is_text(), value, rows, active, out);
            }
            Op::Lower | Op::Upper => {
                let upper = matches!(node.op, Op::Upper);
                let value = child(0);
                out.set_valid_from(&[value]);
                values::change_case(upper, value, rows, active, out);
            }
            Op::Column(_) | Op::Literal(_) | Op::And | Op::Or | Op::Case { .. } | Op::Coalesce => {}
        }
        Ok(())
    }

    /// AND and OR: `decides` is the truth value that settles a row.
    fn logic(
        &mut self,
        program: &Program,
        children: &[usize],
        active: &Bits,
        decides: bool,
        out: &mut Vector,
        source: &mut dyn ColumnSource,
    ) -> Result<()> {
        let mut pending = *active;
        let mut null = NO_BITS;
        for child in children {
            if !any_bit(&pending) {
                break;
            }
            self.eval(program, *child, &pending, source)?;
            let value = self.vector(program, *child);
            let valid = value.valid_bits();
            let settled: Bits = std::array::from_fn(|i| {
                let truth = if decides { value.bits[i] } else { !value.bits[i] };
                truth & valid[i] & pending[i]
            });
            for i in 0..null.len() {
                null[i] |= !valid[i] & pending[i];
            }
            pending = and_not_bits(&pending, &settled);
        }
        out.reset(Lane::Bool, self.rows);
        // Rows still pending are `!decides`, unless a NULL stands in the way.
        out.bits = if decides { and_not_bits(active, &pending) } else { pending };
        let unknown = and_bits(&null, &pending);
        if any_bit(&unknown) {
            out.has_nulls = true;
            out.valid = unknown.map(|word| !word);
        }
        Ok(())
    }

    fn case(
        &mut self,
        program: &Program,
        index: usize,
        branches: usize,
        active: &Bits,
        out: &mut Vector,
        source: &mut dyn ColumnSource,
    ) -> Result<()> {
        let children = &program.nodes[index].children;
        let mut pending = *active;
        let mut parts: Vec<(usize, Bits)> = Vec::with_capacity(branches + 1);
        for branch in 0..branches {
            if !any_bit(&pending) {
                break;
            }
            let condition = children[branch * 2];
            self.eval(program, condition, &pending, source)?;
            let value = self.vector(program, condition);
            let taken = and_bits(&and_bits(&value.bits, &value.valid_bits()), &pending);
            if any_bit(&taken) {
                self.eval(program, children[branch * 2 + 1], &taken, source)?;
                parts.push((children[branch * 2 + 1], taken));
            }
            pending = and_not_bits(&pending, &taken);
        }
        if children.len() > branches * 2 && any_bit(&pending) {
            self.eval(program, children[branches * 2], &pending, source)?;
            parts.push((children[branches * 2], pending));
        }
        self.assemble(program, index, &parts, out);
        Ok(())
    }

    fn coalesce(
        &mut self,
        program: &Program,
        index: usize,
        active: &Bits,
        out: &mut Vector,
        source: &mut dyn ColumnSource,
    ) -> Result<()> {
        let mut pending = *active;
        let mut parts: Vec<(usize, Bits)> = Vec::new();
        for child in &program.nodes[index].children {
            if !any_bit(&pending) {
                break;
            }
            self.eval(program, *child, &pending, source)?;
            let taken = and_bits(&self.vector(program, *child).valid_bits(), &pending);
            parts.push((*child, taken));
            pending = and_not_bits(&pending, &taken);
        }
        self.assemble(program, index, &parts, out);
        Ok(())
    }

    /// Puts a result together from disjoint parts of other registers; rows in no part are NULL.
    fn assemble(&mut self, program: &Program, index: usize, parts: &[(usize, Bits)], out: &mut Vector) {
        let rows = self.rows;
        let lane = self.choices[index].lane;
        out.reset(lane, rows);
        let mut valid = NO_BITS;
        if lane == Lane::Bytes {
            let mut owner = [u16::MAX; hidb::BLOCK_ROWS];
            for (part, (_, taken)) in parts.iter().enumerate() {
                for_each_bit(taken, |row| owner[row] = part as u16);
            }
            for (row, owner) in owner.iter().enumerate().take(rows) {
                if let Some((node, _)) = parts.get(usize::from(*owner)) {
                    let value = self.vector(program, *node);
                    if value.is_valid(row) {
                        set_bit(&mut valid, row);
                        out.bytes.data.extend_from_slice(value.bytes.get(row));
                    }
                }
                out.bytes.close();
            }
        } else {
            for (node, taken) in parts {
                let value = self.vector(program, *node);
                let live = and_bits(taken, &value.valid_bits());
                valid = or_bits(&valid, &live);
                match lane {
                    Lane::Bool => out.bits = or_bits(&out.bits, &and_bits(&value.bits, &live)),
                    Lane::I64 => blend_i64(&live, &value.i64s, &mut out.i64s),
                    Lane::I128 => for_each_bit(&live, |row| out.i128s[row] = value.integer(row)),
                    _ => blend_f64(&live, &value.f64s, &mut out.f64s),
                }
            }
        }
        out.has_nulls = any_bit(&and_not_bits(&first_bits(rows), &valid));
        out.valid = valid;
    }
}

fn fill_literal(out: &mut Vector, lane: Lane, value: &Scalar) {
    out.reset(lane, hidb::BLOCK_ROWS);
    match value {
        Scalar::Null => {
            out.has_nulls = true;
            out.valid = NO_BITS;
            if lane == Lane::Bytes {
                out.bytes.push(b"");
                out.bytes.constant = true;
            }
        }
        Scalar::Bool(value) => out.bits = [if *value { u64::MAX } else { 0 }; 16],
        Scalar::I64(v) if lane == Lane::I64 => out.i64s.fill(*v),
        Scalar::I64(v) => out.i128s.fill(i128::from(*v)),
        Scalar::I128(v) if lane == Lane::I64 => out.i64s.fill(*v as i64),
        Scalar::I128(v) => out.i128s.fill(*v),
        Scalar::F64(v) => out.f64s.fill(*v),
        Scalar::Bytes(v) => {
            out.bytes.push(v);
            out.bytes.constant = true;
        }
    }
}
