//! Vectors: up to 1,024 values of one lane with their validity, the registers of the evaluator.
//!
//! Owns [`Vector`] and the bitmaps ([`Bits`]) that go with it. Invariants: buffers only grow, so that a
//! register is allocated once per request; values of rows that are NULL or inactive are arbitrary, but
//! initialised.

use heliostat_segment::Selection;
use hidb::{BLOCK_ROWS, Lane, Scalar};

/// One bit per row of a block.
pub(crate) type Bits = [u64; BLOCK_ROWS / 64];

pub(crate) const NO_BITS: Bits = [0; BLOCK_ROWS / 64];

/// The first `rows` bits set.
pub(crate) fn first_bits(rows: usize) -> Bits {
    *Selection::all(rows).words()
}

#[inline]
pub(crate) fn bit(bits: &Bits, row: usize) -> bool {
    bits[row >> 6] >> (row & 63) & 1 == 1
}

#[inline]
pub(crate) fn set_bit(bits: &mut Bits, row: usize) {
    bits[row >> 6] |= 1 << (row & 63);
}

pub(crate) fn count_bits(bits: &Bits) -> usize {
    Selection::from_words(*bits).count()
}

pub(crate) fn any_bit(bits: &Bits) -> bool {
    bits.iter().any(|word| *word != 0)
}

pub(crate) fn and_bits(a: &Bits, b: &Bits) -> Bits {
    std::array::from_fn(|i| a[i] & b[i])
}

pub(crate) fn or_bits(a: &Bits, b: &Bits) -> Bits {
    std::array::from_fn(|i| a[i] | b[i])
}

pub(crate) fn and_not_bits(a: &Bits, b: &Bits) -> Bits {
    std::array::from_fn(|i| a[i] & !b[i])
}

/// Moves `bits` up by `at` and adds them; none may leave the end.
#[inline]
pub(crate) fn append_bits(out: &mut Bits, at: usize, bits: &Bits) {
    let (first, shift) = (at / 64, at % 64);
    for index in 0..out.len().saturating_sub(first) {
        let below = if shift > 0 && index > 0 { bits[index - 1] >> (64 - shift) } else { 0 };
        out[first + index] |= bits[index] << shift | below;
    }
}

/// Calls `visit` with every set bit, ascending.
#[inline]
pub(crate) fn for_each_bit(bits: &Bits, mut visit: impl FnMut(usize)) {
    for (index, word) in bits.iter().enumerate() {
        let mut word = *word;
        while word != 0 {
            visit(index * 64 + word.trailing_zeros() as usize);
            word &= word - 1;
        }
    }
}

/// Byte strings back to back.
#[derive(Clone, Debug)]
pub(crate) struct ByteValues {
    /// `rows + 1` offsets into `data`.
    pub offsets: Vec<u32>,
    pub data: Vec<u8>,
    /// Whether every row has the value of row 0 (a literal is not copied 1,024 times).
    pub constant: bool,
}

impl Default for ByteValues {
    fn default() -> Self {
        ByteValues { offsets: vec![0], data: Vec::new(), constant: false }
    }
}

impl ByteValues {
    pub fn clear(&mut self) {
        self.offsets.clear();
        self.offsets.push(0);
        self.data.clear();
        self.constant = false;
    }

    #[inline]
    pub fn get(&self, row: usize) -> &[u8] {
        let row = if self.constant { 0 } else { row };
        &self.data[self.offsets[row] as usize..self.offsets[row + 1] as usize]
    }

    #[inline]
    pub fn push(&mut self, value: &[u8]) {
        self.data.extend_from_slice(value);
        self.close();
    }

    /// Ends the value whose bytes were appended to `data`.
    #[inline]
    pub fn close(&mut self) {
        self.offsets.push(self.data.len() as u32);
    }
}

/// Up to 1,024 values of one lane.
#[derive(Clone, Debug)]
pub(crate) struct Vector {
    /// Which buffer holds the values. An `I128` type may be held as `I64` where its range allows.
    pub lane: Lane,
    pub i64s: Vec<i64>,
    pub i128s: Vec<i128>,
    pub f64s: Vec<f64>,
    pub bits: Bits,
    pub bytes: ByteValues,
    /// Whether `valid` says anything; otherwise no value is NULL.
    pub has_nulls: bool,
    pub valid: Bits,
}

impl Default for Vector {
    fn default() -> Self {
        Vector {
            lane: Lane::Bool,
            i64s: Vec::new(),
            i128s: Vec::new(),
            f64s: Vec::new(),
            bits: NO_BITS,
            bytes: ByteValues::default(),
            has_nulls: false,
            valid: NO_BITS,
        }
    }
}

impl Vector {
    /// Prepares for `rows` values of `lane` without NULLs; the buffer of the lane has at least `rows` slots.
    pub fn reset(&mut self, lane: Lane, rows: usize) {
        self.lane = lane;
        self.has_nulls = false;
        match lane {
            Lane::Bool => self.bits = NO_BITS,
            Lane::I64 if self.i64s.len() < rows => self.i64s.resize(rows.max(BLOCK_ROWS), 0),
            Lane::I128 if self.i128s.len() < rows => self.i128s.resize(rows.max(BLOCK_ROWS), 0),
            Lane::F64 if self.f64s.len() < rows => self.f64s.resize(rows.max(BLOCK_ROWS), 0.0),
            Lane::Bytes => self.bytes.clear(),
            Lane::I64 | Lane::I128 | Lane::F64 => {}
        }
    }

    #[inline]
    pub fn is_valid(&self, row: usize) -> bool {
        !self.has_nulls || bit(&self.valid, row)
    }

    /// The rows that are not NULL (bits beyond the rows in use are arbitrary).
    #[inline]
    pub fn valid_bits(&self) -> Bits {
        if self.has_nulls { self.valid } else { [u64::MAX; BLOCK_ROWS / 64] }
    }

    /// Takes over the NULLs of operands: a row is valid when it is valid in all of them.
    pub fn set_valid_from(&mut self, operands: &[&Vector]) {
        self.has_nulls = operands.iter().any(|operand| operand.has_nulls);
        if self.has_nulls {
            self.valid = operands.iter().fold([u64::MAX; BLOCK_ROWS / 64], |acc, v| and_bits(&acc, &v.valid_bits()));
        }
    }

    /// The integer of this row, from either integer buffer.
    #[inline]
    pub fn integer(&self, row: usize) -> i128 {
        match self.lane {
            Lane::I64 => i128::from(self.i64s[row]),
            _ => self.i128s[row],
        }
    }

    /// The value of this row.
    pub fn scalar(&self, row: usize) -> Scalar {
        if !self.is_valid(row) {
            return Scalar::Null;
        }
        match self.lane {
            Lane::Bool => Scalar::Bool(bit(&self.bits, row)),
            Lane::I64 => Scalar::I64(self.i64s[row]),
            Lane::I128 => Scalar::I128(self.i128s[row]),
            Lane::F64 => Scalar::F64(self.f64s[row]),
            Lane::Bytes => Scalar::Bytes(self.bytes.get(row).into()),
        }
    }

    /// Appends (for bytes) or stores the value of `row`; rows must come in order for bytes.
    pub fn store(&mut self, row: usize, value: &Scalar) {
        let null = value.is_null();
        if null && !self.has_nulls {
            self.has_nulls = true;
            self.valid = [u64::MAX; BLOCK_ROWS / 64];
        }
        if null {
            self.valid[row >> 6] &= !(1 << (row & 63));
        }
        match (self.lane, value) {
            (Lane::Bool, Scalar::Bool(true)) => set_bit(&mut self.bits, row),
            (Lane::I64, Scalar::I64(v)) => self.i64s[row] = *v,
            (Lane::I64, Scalar::I128(v)) => self.i64s[row] = *v as i64,
            (Lane::I128, Scalar::I64(v)) => self.i128s[row] = i128::from(*v),
            (Lane::I128, Scalar::I128(v)) => self.i128s[row] = *v,
            (Lane::F64, Scalar::F64(v)) => self.f64s[row] = *v,
            (Lane::Bytes, Scalar::Bytes(v)) => self.bytes.push(v),
            (Lane::Bytes, _) => self.bytes.close(),
            _ => {}
        }
    }

    /// Copies the rows whose bit is set to the front of `out`.
    pub fn compact(&self, keep: &Bits, out: &mut Vector) {
        out.reset(self.lane, BLOCK_ROWS);
        let mut position = 0;
        for_each_bit(keep, |row| {
            match self.lane {
                Lane::Bool if bit(&self.bits, row) => set_bit(&mut out.bits, position),
                Lane::Bool => {}
                Lane::I64 => out.i64s[position] = self.i64s[row],
                Lane::I128 => out.i128s[position] = self.i128s[row],
                Lane::F64 => out.f64s[position] = self.f64s[row],
                Lane::Bytes => out.bytes.push(self.bytes.get(row)),
            }
            position += 1;
        });
        if self.has_nulls {
            out.has_nulls = true;
            out.valid = NO_BITS;
            let mut position = 0;
            for_each_bit(keep, |row| {
                if bit(&self.valid, row) {
                    set_bit(&mut out.valid, position);
                }
                position += 1;
            });
        }
    }
}
