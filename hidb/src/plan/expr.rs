//! Typed expressions.
//!
//! Owns [`Expr`]: a tree in which every node knows its type and whether it may be NULL. Built by
//! `plan::build` (typing and coercion), run by the engine.
//!
//! Invariants (what `plan::build` guarantees and the engine relies on)
//! - `Compare` and `In`: both sides have the same lane, and, if decimal, the same scale; never a vector
//!   except for `=` and `<>`.
//! - `Arithmetic`: decimals and integers are exact. For `Add`, `Subtract`, `Remainder` both operands
//!   have the result's scale; for `Multiply` the scales add up to the result's; for `Divide` the
//!   dividend was rescaled so that the integer quotient, truncated toward zero, is the result. Operands
//!   have the result's lane (casts were inserted), except that dates may be subtracted: `date - date` is
//!   Int64 days, `timestamp - timestamp` Int64 microseconds.
//! - `Cast` is the only place where a value changes lane or scale.

use crate::types::{DataType, Scalar};

/// `=`, `<>`, `<`, `<=`, `>`, `>=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CompareOp {
    /// `=`
    Equal,
    /// `<>`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
}

impl CompareOp {
    /// The operator that gives the same answer with its operands swapped.
    pub fn swapped(self) -> Self {
        match self {
            CompareOp::Equal | CompareOp::NotEqual => self,
            CompareOp::Less => CompareOp::Greater,
            CompareOp::LessOrEqual => CompareOp::GreaterOrEqual,
            CompareOp::Greater => CompareOp::Less,
            CompareOp::GreaterOrEqual => CompareOp::LessOrEqual,
        }
    }

    /// Whether an ordering of left against right satisfies the operator.
    #[inline]
    pub fn matches(self, ordering: std::cmp::Ordering) -> bool {
        match self {
            CompareOp::Equal => ordering.is_eq(),
            CompareOp::NotEqual => ordering.is_ne(),
            CompareOp::Less => ordering.is_lt(),
            CompareOp::LessOrEqual => ordering.is_le(),
            CompareOp::Greater => ordering.is_gt(),
            CompareOp::GreaterOrEqual => ordering.is_ge(),
        }
    }
}

/// `+`, `-`, `*`, `/`, `%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ArithmeticOp {
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`: truncates toward zero on integers.
    Divide,
    /// `%`: has the sign of the dividend.
    Remainder,
}

/// What EXTRACT takes out of a date or timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum DateField {
    Year,
    Quarter,
    Month,
    Week,
    Day,
    DayOfWeek,
    DayOfYear,
    Hour,
    Minute,
    Second,
    Epoch,
}

/// A typed expression over the columns of its input.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    /// What it computes.
    pub kind: ExprKind,
    /// The type of its value.
    pub data_type: DataType,
    /// Whether the value can be NULL.
    pub nullable: bool,
}

/// What an expression computes.
#[derive(Clone, Debug, PartialEq)]
pub enum ExprKind {
    /// The input's column of this index. In a plan over a table, index `schema.len()` is `_rowid`.
    Column(usize),
    /// A constant, in the lane of the expression's type, or NULL.
    Literal(Scalar),
    /// The prepared statement's parameter of this index; replaced by a literal before execution.
    Parameter(u32),
    /// Three-valued comparison.
    Compare {
        /// Which comparison.
        op: CompareOp,
        /// Left operand.
        left: Box<Expr>,
        /// Right operand, same lane (and scale) as the left.
        right: Box<Expr>,
    },
    /// Three-valued conjunction of two or more.
    And(Vec<Expr>),
    /// Three-valued disjunction of two or more.
    Or(Vec<Expr>),
    /// Three-valued negation.
    Not(Box<Expr>),
    /// `IS NULL`; never NULL itself.
    IsNull(Box<Expr>),
    /// Arithmetic with the result's lane.
    Arithmetic {
        /// Which operation.
        op: ArithmeticOp,
        /// Left operand.
        left: Box<Expr>,
        /// Right operand.
        right: Box<Expr>,
    },
    /// Unary minus.
    Negate(Box<Expr>),
    /// `value IN (constants)`; three-valued: with a NULL in the list a miss is NULL.
    In {
        /// The value looked up.
        value: Box<Expr>,
        /// Non-NULL constants of the value's lane, sorted and unique by [`Scalar::compare`].
        list: Vec<Scalar>,
        /// Whether the list also held NULL.
        list_has_null: bool,
    },
    /// `value [NOT-less] LIKE/ILIKE pattern`; NOT is expressed by [`ExprKind::Not`].
    Like {
        /// Text.
        value: Box<Expr>,
        /// `%` any run, `_` any one character.
        pattern: String,
        /// The character that makes the next one literal (default `\`); `None`: no escape.
        escape: Option<char>,
        /// ILIKE: compares after Unicode simple lower-casing.
        case_insensitive: bool,
    },
    /// Searched CASE; branches have the type of the whole.
    Case {
        /// Condition and value, in order.
        branches: Vec<(Expr, Expr)>,
        /// ELSE; NULL when absent.
        otherwise: Option<Box<Expr>>,
    },
    /// The first that is not NULL.
    Coalesce(Vec<Expr>),
    /// Converts to the expression's type; a value that does not fit is an error.
    Cast(Box<Expr>),
    /// A field of a date or timestamp, as Int64.
    Extract {
        /// Which field.
        field: DateField,
        /// Date or timestamp.
        value: Box<Expr>,
    },
    /// A date or timestamp moved by a constant interval: months first (clamped to the month's last day),
    /// then days, then microseconds. A date moved by whole days and months stays a date.
    AddInterval {
        /// Date or timestamp; of the result's type.
        value: Box<Expr>,
        /// Months, may be negative.
        months: i32,
        /// Days, may be negative.
        days: i32,
        /// Microseconds, may be negative.
        microseconds: i64,
    },
    /// Characters (not bytes) of text, from the 1-based `start`, SQL rules for starts below 1.
    Substring {
        /// Text.
        value: Box<Expr>,
        /// Int64.
        start: Box<Expr>,
        /// Int64, or to the end.
        length: Option<Box<Expr>>,
    },
    /// Characters of text, bytes of bytea, as Int64.
    Length(Box<Expr>),
    /// Unicode lower case.
    Lower(Box<Expr>),
    /// Unicode upper case.
    Upper(Box<Expr>),
}

impl Expr {
    /// Column `index` of the input.
    pub fn column(index: usize, data_type: DataType, nullable: bool) -> Self {
        Expr { kind: ExprKind::Column(index), data_type, nullable }
    }

    /// A constant of this type.
    pub fn literal(value: Scalar, data_type: DataType) -> Self {
        let nullable = value.is_null();
        Expr { kind: ExprKind::Literal(value), data_type, nullable }
    }

    /// The operands, in order.
    pub fn children(&self) -> Vec<&Expr> {
        match &self.kind {
            ExprKind::Column(_) | ExprKind::Literal(_) | ExprKind::Parameter(_) => Vec::new(),
            ExprKind::Compare { left, right, .. } | ExprKind::Arithmetic { left, right, .. } => vec![left, right],
            ExprKind::And(list) | ExprKind::Or(list) | ExprKind::Coalesce(list) => list.iter().collect(),
            ExprKind::Not(value)
            | ExprKind::IsNull(value)
            | ExprKind::Negate(value)
            | ExprKind::In { value, .. }
            | ExprKind::Like { value, .. }
            | ExprKind::Cast(value)
            | ExprKind::Extract { value, .. }
            | ExprKind::AddInterval { value, .. }
            | ExprKind::Length(value)
            | ExprKind::Lower(value)
            | ExprKind::Upper(value) => vec![value],
            ExprKind::Case { branches, otherwise } => {
                branches.iter().flat_map(|(when, then)| [when, then]).chain(otherwise.as_deref()).collect()
            }
            ExprKind::Substring { value, start, length } => {
                [value, start].into_iter().chain(length).map(|child| &**child).collect()
            }
        }
    }

    /// Calls `visit` for this node and every node below it, parents first.
    pub fn walk(&self, visit: &mut impl FnMut(&Expr)) {
        visit(self);
        for child in self.children() {
            child.walk(visit);
        }
    }

    /// The distinct columns the expression reads, ascending.
    pub fn columns(&self) -> Vec<usize> {
        let mut columns = Vec::new();
        self.walk(&mut |expr| {
            if let ExprKind::Column(index) = expr.kind {
                columns.push(index);
            }
        });
        columns.sort_unstable();
        columns.dedup();
        columns
    }
}
