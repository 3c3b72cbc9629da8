//! The type system: logical types, and the five lanes in which their values are computed.
//!
//! Owns [`DataType`], its text form (`decimal(15,2)`), its ordering rules, [`Lane`] and [`Scalar`].
//! The Arrow mapping is in [`crate::schema`]'s neighbour `arrow_mapping`; the rules for people are in
//! `docs/types.md`.
//!
//! Invariants
//! - A type has exactly one lane. Integers, dates, timestamps and decimals of up to 18 digits share
//!   the 64-bit lane, so that kernels are written once.
//! - `Display` and `FromStr` are inverse.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// The most digits a decimal may have (fits `i128`).
pub const DECIMAL_PRECISION_MAX: u8 = 38;
/// The most digits of a decimal that is computed in the 64-bit lane.
pub const DECIMAL64_PRECISION_MAX: u8 = 18;
/// The most dimensions of a vector.
pub const VECTOR_DIMENSION_MAX: u32 = 65_535;

/// What one element of a vector is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VectorElement {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// Signed byte.
    I8,
    /// One bit: packed eight a byte, least significant first; the spare bits of the last byte are zero.
    Bit,
}

impl VectorElement {
    /// Bytes of a vector of so many elements.
    pub fn row_bytes(self, dimension: u32) -> usize {
        let dimension = dimension as usize;
        match self {
            VectorElement::F32 => dimension * 4,
            VectorElement::F16 => dimension * 2,
            VectorElement::I8 => dimension,
            VectorElement::Bit => dimension.div_ceil(8),
        }
    }

    /// Which bits of a vector's last byte belong to no element.
    pub fn spare_bits(self, dimension: u32) -> u8 {
        match (self, dimension % 8) {
            (VectorElement::Bit, used @ 1..) => u8::MAX << used,
            _ => 0,
        }
    }
}

impl fmt::Display for VectorElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            VectorElement::F32 => "f32",
            VectorElement::F16 => "f16",
            VectorElement::I8 => "i8",
            VectorElement::Bit => "bit",
        })
    }
}

/// A column's logical type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataType {
    /// True or false.
    Boolean,
    /// 16-bit signed integer.
    Int16,
    /// 32-bit signed integer.
    Int32,
    /// 64-bit signed integer.
    Int64,
    /// IEEE 754 binary32.
    Float32,
    /// IEEE 754 binary64.
    Float64,
    /// Exact decimal: `precision` digits in all (1 to 38), `scale` of them after the point.
    Decimal {
        /// Digits in all, 1 to 38.
        precision: u8,
        /// Digits after the point, 0 to `precision`.
        scale: u8,
    },
    /// UTF-8 text of at most this many characters.
    Varchar(u32),
    /// UTF-8 text.
    Text,
    /// Bytes.
    Bytea,
    /// Microseconds since 1970-01-01 00:00:00, in UTC or without a zone.
    Timestamp {
        /// Whether the instant is in UTC; false: a wall-clock time without a zone.
        utc: bool,
    },
    /// Days since 1970-01-01 in the proleptic Gregorian calendar.
    Date,
    /// A fixed number of elements; compared for equality only.
    Vector {
        /// Elements, 1 to 65,535.
        dimension: u32,
        /// What each element is.
        element: VectorElement,
    },
}

/// How values of a type are represented while the cell computes with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// One bit.
    Bool,
    /// `i64`: integers, dates (days), timestamps (microseconds), decimals of up to 18 digits (unscaled).
    I64,
    /// `i128`: longer decimals (unscaled).
    I128,
    /// `f64`: both float types. `Float32` results are rounded to `f32` after every operation, which
    /// gives the same bits as computing in `f32` (double rounding is innocuous for + - * /: Figueroa 1995).
    F64,
    /// Bytes: text (UTF-8), bytea, vectors (little-endian elements; packed bits).
    Bytes,
}

impl DataType {
    /// The lane values of this type are computed in.
    pub fn lane(&self) -> Lane {
        match self {
            DataType::Boolean => Lane::Bool,
            DataType::Int16 | DataType::Int32 | DataType::Int64 => Lane::I64,
            DataType::Timestamp { .. } | DataType::Date => Lane::I64,
            DataType::Float32 | DataType::Float64 => Lane::F64,
            DataType::Decimal { precision, .. } if *precision <= DECIMAL64_PRECISION_MAX => Lane::I64,
            DataType::Decimal { .. } => Lane::I128,
            DataType::Varchar(_) | DataType::Text | DataType::Bytea | DataType::Vector { .. } => Lane::Bytes,
        }
    }

    /// Int16, Int32 or Int64.
    pub fn is_integer(&self) -> bool {
        matches!(self, DataType::Int16 | DataType::Int32 | DataType::Int64)
    }

    /// Float32 or Float64.
    pub fn is_float(&self) -> bool {
        matches!(self, DataType::Float32 | DataType::Float64)
    }

    /// Decimal of any precision.
    pub fn is_decimal(&self) -> bool {
        matches!(self, DataType::Decimal { .. })
    }

    /// Integer, float or decimal.
    pub fn is_numeric(&self) -> bool {
        self.is_integer() || self.is_float() || self.is_decimal()
    }

    /// Varchar or Text.
    pub fn is_text(&self) -> bool {
        matches!(self, DataType::Varchar(_) | DataType::Text)
    }

    /// Whether `<` is defined: everything but vectors.
    pub fn is_ordered(&self) -> bool {
        !matches!(self, DataType::Vector { .. })
    }

    /// Bytes of one value in its Arrow array when every value has the same width; `None` for Boolean
    /// (one bit) and variable-length types. Decimals of up to 18 digits count as Decimal64.
    pub fn fixed_width(&self) -> Option<usize> {
        match self {
            DataType::Boolean | DataType::Varchar(_) | DataType::Text | DataType::Bytea => None,
            DataType::Int16 => Some(2),
            DataType::Int32 | DataType::Float32 | DataType::Date => Some(4),
            DataType::Int64 | DataType::Float64 | DataType::Timestamp { .. } => Some(8),
            DataType::Decimal { .. } => Some(if self.lane() == Lane::I64 { 8 } else { 16 }),
            DataType::Vector { dimension, element } => Some(element.row_bytes(*dimension)),
        }
    }

    /// Whether these bytes are a value of this vector type: as long as it says, and no spare bit set. False for other
    /// types.
    pub fn is_vector_value(&self, bytes: &[u8]) -> bool {
        let DataType::Vector { dimension, element } = self else { return false };
        bytes.len() == element.row_bytes(*dimension)
            && bytes.last().is_none_or(|last| last & element.spare_bits(*dimension) == 0)
    }

    /// The inclusive range of lane values a 64-bit-lane type can hold, or `None` for other lanes.
    pub fn i64_range(&self) -> Option<(i64, i64)> {
        match self {
            DataType::Int16 => Some((i16::MIN.into(), i16::MAX.into())),
            DataType::Int32 | DataType::Date => Some((i32::MIN.into(), i32::MAX.into())),
            DataType::Int64 | DataType::Timestamp { .. } => Some((i64::MIN, i64::MAX)),
            DataType::Decimal { precision, .. } if self.lane() == Lane::I64 => {
                let max = 10i64.pow(u32::from(*precision)) - 1;
                Some((-max, max))
            }
            _ => None,
        }
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DataType::Boolean => f.write_str("boolean"),
            DataType::Int16 => f.write_str("int16"),
            DataType::Int32 => f.write_str("int32"),
            DataType::Int64 => f.write_str("int64"),
            DataType::Float32 => f.write_str("float32"),
            DataType::Float64 => f.write_str("float64"),
            DataType::Decimal { precision, scale } => write!(f, "decimal({precision},{scale})"),
            DataType::Varchar(n) => write!(f, "varchar({n})"),
            DataType::Text => f.write_str("text"),
            DataType::Bytea => f.write_str("bytea"),
            DataType::Timestamp { utc: false } => f.write_str("timestamp"),
            DataType::Timestamp { utc: true } => f.write_str("timestamptz"),
            DataType::Date => f.write_str("date"),
            DataType::Vector { dimension, element } => write!(f, "vector({dimension},{element})"),
        }
    }
}

/// A type name that [`DataType::from_str`] does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown type {0:?}: expected boolean, int16, int32, int64, float32, float64, decimal(p,s), varchar(n), text, bytea, timestamp, timestamptz, date or vector(d,f32|f16|i8|bit)"
)]
pub struct UnknownType(pub String);

impl FromStr for DataType {
    type Err = UnknownType;

    fn from_str(text: &str) -> Result<Self, UnknownType> {
        let unknown = || UnknownType(text.to_string());
        let lower = text.trim().to_ascii_lowercase();
        let (name, arguments) = match lower.split_once('(') {
            None => (lower.as_str(), Vec::new()),
            Some((name, rest)) => {
                let inner = rest.strip_suffix(')').ok_or_else(unknown)?;
                (name.trim_end(), inner.split(',').map(str::trim).collect())
            }
        };
        let parsed = match (name, arguments.as_slice()) {
            ("boolean" | "bool", []) => DataType::Boolean,
            ("int16" | "smallint", []) => DataType::Int16,
            ("int32" | "int" | "integer", []) => DataType::Int32,
            ("int64" | "bigint", []) => DataType::Int64,
            ("float32" | "real", []) => DataType::Float32,
            ("float64" | "double" | "double precision", []) => DataType::Float64,
            ("decimal" | "numeric", [precision, scale]) => DataType::Decimal {
                precision: precision.parse().map_err(|_| unknown())?,
                scale: scale.parse().map_err(|_| unknown())?,
            },
            ("varchar", [n]) => DataType::Varchar(n.parse().map_err(|_| unknown())?),
            ("text" | "varchar", []) => DataType::Text,
            ("bytea", []) => DataType::Bytea,
            ("timestamp", []) => DataType::Timestamp { utc: false },
            ("timestamptz", []) => DataType::Timestamp { utc: true },
            ("date", []) => DataType::Date,
            ("vector", [dimension, rest @ ..]) => DataType::Vector {
                dimension: dimension.parse().map_err(|_| unknown())?,
                element: match rest {
                    [] | ["f32"] => VectorElement::F32,
                    ["f16"] => VectorElement::F16,
                    ["i8"] => VectorElement::I8,
                    ["bit"] => VectorElement::Bit,
                    _ => return Err(unknown()),
                },
            },
            _ => return Err(unknown()),
        };
        if parsed.is_valid() { Ok(parsed) } else { Err(unknown()) }
    }
}

impl DataType {
    /// Whether the parameters are within their limits (a decimal's digits, a vector's dimension).
    pub fn is_valid(&self) -> bool {
        match self {
            DataType::Decimal { precision, scale } => {
                (1..=DECIMAL_PRECISION_MAX).contains(precision) && scale <= precision
            }
            DataType::Varchar(n) => *n > 0,
            DataType::Vector { dimension, .. } => (1..=VECTOR_DIMENSION_MAX).contains(dimension),
            _ => true,
        }
    }
}

/// One value in its lane. Which type it belongs to is said beside it.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// SQL NULL of any type.
    Null,
    /// Boolean.
    Bool(bool),
    /// 64-bit lane.
    I64(i64),
    /// 128-bit lane.
    I128(i128),
    /// Float lane.
    F64(f64),
    /// Bytes lane.
    Bytes(Vec<u8>),
}

impl Scalar {
    /// Whether this is NULL.
    pub fn is_null(&self) -> bool {
        matches!(self, Scalar::Null)
    }

    /// The value as `i128` if it is in one of the integer lanes.
    pub fn as_i128(&self) -> Option<i128> {
        match self {
            Scalar::I64(v) => Some(i128::from(*v)),
            Scalar::I128(v) => Some(*v),
            _ => None,
        }
    }

    /// Compares two values of one type by the rules of `docs/types.md`: numbers by value, NaN after
    /// every other float and equal to itself, -0.0 equal to 0.0, bytes lexicographically, false before
    /// true. `None` when either is NULL or the lanes differ.
    pub fn compare(&self, other: &Scalar) -> Option<Ordering> {
        match (self, other) {
            (Scalar::Bool(a), Scalar::Bool(b)) => Some(a.cmp(b)),
            (Scalar::I64(a), Scalar::I64(b)) => Some(a.cmp(b)),
            (Scalar::I128(a), Scalar::I128(b)) => Some(a.cmp(b)),
            (Scalar::F64(a), Scalar::F64(b)) => Some(compare_f64(*a, *b)),
            (Scalar::Bytes(a), Scalar::Bytes(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }
}

/// The total order of floats that comparisons, ORDER BY, GROUP BY and zone maps share: NaN is one
/// value, greater than all others; -0.0 equals 0.0 (PostgreSQL's order).
#[inline]
pub fn compare_f64(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_and_from_str_are_inverse() {
        let types = [
            DataType::Boolean,
            DataType::Int16,
            DataType::Int32,
            DataType::Int64,
            DataType::Float32,
            DataType::Float64,
            DataType::Decimal { precision: 15, scale: 2 },
            DataType::Decimal { precision: 38, scale: 38 },
            DataType::Varchar(10),
            DataType::Text,
            DataType::Bytea,
            DataType::Timestamp { utc: true },
            DataType::Timestamp { utc: false },
            DataType::Date,
            DataType::Vector { dimension: 384, element: VectorElement::F16 },
            DataType::Vector { dimension: 65_535, element: VectorElement::Bit },
        ];
        for data_type in types {
            assert_eq!(data_type.to_string().parse(), Ok(data_type));
        }
    }

    #[test]
    fn type_parameters_out_of_range_are_refused() {
        for text in [
            "decimal(39,2)",
            "decimal(5,6)",
            "decimal(0,0)",
            "vector(0)",
            "vector(65536,bit)",
            "vector(8,bits)",
            "varchar(0)",
            "int128",
            "decimal(1",
        ] {
            assert_eq!(text.parse::<DataType>(), Err(UnknownType(text.to_string())));
        }
    }

    #[test]
    fn bits_take_whole_bytes_whose_spare_bits_are_zero() {
        let bits = |dimension| DataType::Vector { dimension, element: VectorElement::Bit };
        for (dimension, bytes) in [(1, 1), (8, 1), (9, 2), (384, 48), (65_535, 8192)] {
            assert_eq!(bits(dimension).fixed_width(), Some(bytes));
        }
        assert!(bits(10).is_vector_value(&[0xff, 0b11]) && bits(16).is_vector_value(&[0xff, 0xff]));
        assert!(!bits(10).is_vector_value(&[0xff, 0b111]) && !bits(10).is_vector_value(&[0xff]));
        let bytes = DataType::Vector { dimension: 3, element: VectorElement::I8 };
        assert!(bytes.is_vector_value(&[0xff; 3]) && !DataType::Bytea.is_vector_value(&[0; 3]));
    }

    #[test]
    fn nan_is_one_value_above_all_and_zeros_are_equal() {
        assert_eq!(compare_f64(f64::NAN, f64::INFINITY), Ordering::Greater);
        assert_eq!(compare_f64(f64::NAN, -f64::NAN), Ordering::Equal);
        assert_eq!(compare_f64(-0.0, 0.0), Ordering::Equal);
        assert_eq!(compare_f64(1.0, f64::NAN), Ordering::Less);
    }
}
