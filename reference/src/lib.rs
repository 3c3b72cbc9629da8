//! What the tests against an independent engine share: a real cell process, and answers in a form in which two
//! engines can be compared.
//!
//! Owns [`Cell`] (a `heliostat-cell` of its own, ended when dropped; where it runs and how it is reached can be chosen
//! from outside, see [`surroundings`]) and [`Rows`] (values, not types: decimals by value, floats within a relative
//! tolerance, rows sorted), and [`proxy`] (a network that loses things). Called by the tests of this crate only.

mod cell;
pub mod numbers;
pub mod proxy;
pub mod surroundings;

pub use cell::{Cell, command_of_this_build, signal};

use std::cmp::Ordering;

use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType, UInt64Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, TimeUnit};

/// One value, by what it means and not by how it is represented.
#[derive(Clone, Debug)]
pub enum Value {
    /// SQL NULL.
    Null,
    /// Boolean.
    Boolean(bool),
    /// Integers and decimals: unscaled value and digits after the point.
    Number(i128, u32),
    /// Floats.
    Float(f64),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// Days since 1970.
    Date(i32),
    /// Microseconds since 1970.
    Timestamp(i64),
}

impl Value {
    fn rank(&self) -> u8 {
        match self {
            Value::Null => 0,
            Value::Boolean(_) => 1,
            Value::Number(..) | Value::Float(_) => 2,
            Value::Text(_) => 3,
            Value::Bytes(_) => 4,
            Value::Date(_) => 5,
            Value::Timestamp(_) => 6,
        }
    }

    fn as_f64(&self) -> Option<f64> {
        match self {
            Value::Number(unscaled, scale) => Some(*unscaled as f64 / 10f64.powi(*scale as i32)),
            Value::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// A total order in which near-equal numbers are neighbours; only used to sort rows.
    fn order(&self, other: &Value) -> Ordering {
        match (self, other) {
            (Value::Boolean(a), Value::Boolean(b)) => a.cmp(b),
            (Value::Text(a), Value::Text(b)) => a.cmp(b),
            (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
            (Value::Date(a), Value::Date(b)) => a.cmp(b),
            (Value::Timestamp(a), Value::Timestamp(b)) => a.cmp(b),
            _ => match (self.as_f64(), other.as_f64()) {
                (Some(a), Some(b)) => a.total_cmp(&b),
                _ => self.rank().cmp(&other.rank()),
            },
        }
    }

    /// Equal: exactly for everything but floats (relative 1e-9) and, when `quotients`, decimals that a division or
    /// an average made: engines keep different numbers of digits of those, so they may differ by one unit of the
    /// coarser scale.
    fn equals(&self, other: &Value, quotients: bool) -> bool {
        match (self, other) {
            (Value::Null, Value::Null) => true,
            (Value::Number(a, sa), Value::Number(b, sb)) => {
                let (coarse, fine) = ((*sa).min(*sb), (*sa).max(*sb));
                let up = |v: i128, s: u32| v.checked_mul(10i128.pow(fine - s));
                match (up(*a, *sa), up(*b, *sb)) {
                    (Some(a), Some(b)) => a == b || quotients && (a - b).abs() <= 10i128.pow(fine - coarse),
                    _ => false,
                }
            }
            (Value::Float(_), _) | (_, Value::Float(_)) => match (self.as_f64(), other.as_f64()) {
                (Some(a), Some(b)) => {
                    a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1e-6)
                }
                _ => false,
            },
            _ => self.rank() == other.rank() && self.order(other).is_eq(),
        }
    }
}

/// An answer as a sorted bag of rows.
#[derive(Clone)]
pub struct Rows(pub Vec<Vec<Value>>);

impl Rows {
    /// Reads batches of any of the Arrow types that either engine returns.
    pub fn from_batches(batches: &[RecordBatch]) -> Self {
        let mut rows = Vec::new();
        for batch in batches {
            let columns: Vec<ArrayRef> = batch.columns().iter().map(canonical).collect();
            for row in 0..batch.num_rows() {
                rows.push(columns.iter().map(|column| value(column, row)).collect());
            }
        }
        Rows(rows)
    }

    /// Sorts the rows, for answers without an order.
    pub fn sorted(mut self) -> Self {
        self.0.sort_by(|a: &Vec<Value>, b| {
            a.iter().zip(b).map(|(a, b)| a.order(b)).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
        });
        self
    }

    /// Says where two answers differ first, or nothing.
    pub fn difference(&self, other: &Rows, quotients: bool) -> Option<String> {
        if self.0.len() != other.0.len() {
            return Some(format!("{} rows against {}", self.0.len(), other.0.len()));
        }
        for (index, (a, b)) in self.0.iter().zip(&other.0).enumerate() {
            if a.len() != b.len() || !a.iter().zip(b).all(|(a, b)| a.equals(b, quotients)) {
                return Some(format!("row {index}: {a:?} against {b:?}"));
            }
        }
        None
    }
}

/// Casts to one of the few types that [`value`] reads.
fn canonical(column: &ArrayRef) -> ArrayRef {
    let target = match column.data_type() {
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 | DataType::UInt32 => {
            DataType::Int64
        }
        DataType::Float16 | DataType::Float32 => DataType::Float64,
        DataType::Decimal32(_, s) | DataType::Decimal64(_, s) => DataType::Decimal128(38, *s),
        DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(_, _) => DataType::Utf8,
        DataType::LargeBinary | DataType::BinaryView => DataType::Binary,
        DataType::Timestamp(_, _) => DataType::Timestamp(TimeUnit::Microsecond, None),
        other => other.clone(),
    };
    arrow_cast::cast(column, &target).expect("a cast that widens")
}

fn value(column: &ArrayRef, row: usize) -> Value {
    if column.is_null(row) {
        return Value::Null;
    }
    match column.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => Value::Boolean(column.as_boolean().value(row)),
        DataType::Int64 => Value::Number(column.as_primitive::<Int64Type>().value(row).into(), 0),
        DataType::UInt64 => Value::Number(column.as_primitive::<UInt64Type>().value(row).into(), 0),
        DataType::Decimal128(_, scale) => {
            Value::Number(column.as_primitive::<Decimal128Type>().value(row), *scale as u32)
        }
        DataType::Float64 => Value::Float(column.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8 => Value::Text(column.as_string::<i32>().value(row).to_string()),
        DataType::Binary => Value::Bytes(column.as_binary::<i32>().value(row).to_vec()),
        DataType::Date32 => Value::Date(column.as_primitive::<Date32Type>().value(row)),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            Value::Timestamp(column.as_primitive::<TimestampMicrosecondType>().value(row))
        }
        other => panic!("an answer of type {other} can't be compared yet"),
    }
}
