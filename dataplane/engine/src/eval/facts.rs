//! What is known of every node's value before a row is looked at: interval arithmetic over zone maps.
//!
//! Owns [`Fact`] and [`analyse`]. Two users: pruning (a filter that can't be true skips the row group, one
//! that is always true need not be evaluated), and the choice of kernels (a product of decimals whose range
//! fits `i64` is computed there without overflow checks, though its type has 38 digits).
//!
//! Invariant: facts are conservative. A value outside its fact would be a wrong answer, so whatever is not
//! understood is unknown.

use std::cmp::Ordering;

use hidb::calendar;
use hidb::plan::{ArithmeticOp, CompareOp, DateField};
use hidb::types::compare_f64;
use hidb::{DataType, Lane, Scalar};

use super::{Node, Op, Program};

/// Bounds of the values that are not NULL.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Domain {
    /// Anything of the type.
    Unknown,
    /// No value at all: all NULL.
    Empty,
    /// Integers between these, inclusive.
    Integers(i128, i128),
    /// Floats between these in the order of [`compare_f64`], inclusive.
    Floats(f64, f64),
    /// Bytes from the first; to the second, inclusive, if it is known.
    Bytes(Vec<u8>, Option<Vec<u8>>),
    /// Which truth values can occur: true, false.
    Truth(bool, bool),
}

/// What is known of a node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fact {
    pub domain: Domain,
    pub may_be_null: bool,
}

impl Fact {
    pub fn unknown() -> Self {
        Fact { domain: Domain::Unknown, may_be_null: true }
    }

    /// Whether a boolean node can be true.
    pub fn may_be_true(&self) -> bool {
        !matches!(self.domain, Domain::Empty | Domain::Truth(false, _))
    }

    /// Whether a boolean node is true for every row.
    pub fn is_always_true(&self) -> bool {
        !self.may_be_null && self.domain == Domain::Truth(true, false)
    }

    /// The integer range, if there is one; an empty domain has every range.
    pub fn integers(&self) -> Option<(i128, i128)> {
        match self.domain {
            Domain::Integers(min, max) => Some((min, max)),
            Domain::Empty => Some((0, 0)),
            _ => None,
        }
    }
}

/// The range of integers a type can hold.
pub(crate) fn type_range(data_type: &DataType) -> Option<(i128, i128)> {
    if let Some((min, max)) = data_type.i64_range() {
        return Some((min.into(), max.into()));
    }
    match data_type {
        DataType::Decimal { precision, .. } => {
            let max = 10i128.pow(u32::from(*precision)) - 1;
            Some((-max, max))
        }
        _ => None,
    }
}

/// The exact range of `left op right`, where it is representable.
pub(crate) fn arithmetic_range(op: ArithmeticOp, left: (i128, i128), right: (i128, i128)) -> Option<(i128, i128)> {
    match op {
        ArithmeticOp::Add => Some((left.0.checked_add(right.0)?, left.1.checked_add(right.1)?)),
        ArithmeticOp::Subtract => Some((left.0.checked_sub(right.1)?, left.1.checked_sub(right.0)?)),
        ArithmeticOp::Multiply => {
            let corners = [
                left.0.checked_mul(right.0)?,
                left.0.checked_mul(right.1)?,
                left.1.checked_mul(right.0)?,
                left.1.checked_mul(right.1)?,
            ];
            Some((*corners.iter().min()?, *corners.iter().max()?))
        }
        ArithmeticOp::Divide | ArithmeticOp::Remainder => {
            let magnitude = left.0.checked_abs()?.max(left.1.checked_abs()?);
            Some((-magnitude, magnitude))
        }
    }
}

fn domain_of_scalar(value: &Scalar) -> Domain {
    match value {
        Scalar::Null => Domain::Empty,
        Scalar::Bool(value) => Domain::Truth(*value, !*value),
        Scalar::I64(_) | Scalar::I128(_) => {
            value.as_i128().map_or(Domain::Unknown, |value| Domain::Integers(value, value))
        }
        Scalar::F64(value) => Domain::Floats(*value, *value),
        Scalar::Bytes(value) => Domain::Bytes(value.clone(), Some(value.clone())),
    }
}

/// How every value of `a` can compare with every value of `b`: (less, equal, greater); `None`: unknown.
fn orderings(a: &Domain, b: &Domain) -> Option<(bool, bool, bool)> {
    fn of<T: ?Sized>(
        (a_min, a_max): (&T, Option<&T>),
        (b_min, b_max): (&T, Option<&T>),
        order: impl Fn(&T, &T) -> Ordering,
    ) -> (bool, bool, bool) {
        let a_min_to_b_max = b_max.map_or(Ordering::Less, |b_max| order(a_min, b_max));
        let a_max_to_b_min = a_max.map_or(Ordering::Greater, |a_max| order(a_max, b_min));
        let single = a_max.is_some_and(|m| order(a_min, m).is_eq()) && b_max.is_some_and(|m| order(b_min, m).is_eq());
        let overlap = a_min_to_b_max.is_le() && a_max_to_b_min.is_ge();
        if single && overlap {
            return (false, true, false);
        }
        (a_min_to_b_max.is_lt(), overlap, a_max_to_b_min.is_gt())
    }
    match (a, b) {
        (Domain::Integers(a0, a1), Domain::Integers(b0, b1)) => Some(of((a0, Some(a1)), (b0, Some(b1)), Ord::cmp)),
        (Domain::Floats(a0, a1), Domain::Floats(b0, b1)) => {
            Some(of((a0, Some(a1)), (b0, Some(b1)), |x, y| compare_f64(*x, *y)))
        }
        (Domain::Bytes(a0, a1), Domain::Bytes(b0, b1)) => {
            Some(of((a0.as_slice(), a1.as_deref()), (b0.as_slice(), b1.as_deref()), |x, y| x.cmp(y)))
        }
        _ => None,
    }
}

fn compare(op: CompareOp, a: &Domain, b: &Domain) -> Domain {
    if *a == Domain::Empty || *b == Domain::Empty {
        return Domain::Empty;
    }
    let Some((less, equal, greater)) = orderings(a, b) else { return Domain::Truth(true, true) };
    let possible = [(less, Ordering::Less), (equal, Ordering::Equal), (greater, Ordering::Greater)];
    let truth = |wanted| possible.iter().any(|(can, ordering)| *can && op.matches(*ordering) == wanted);
    Domain::Truth(truth(true), truth(false))
}

/// (can be true, can be false) of a boolean fact.
fn truth(fact: &Fact) -> (bool, bool) {
    match fact.domain {
        Domain::Truth(can_be_true, can_be_false) => (can_be_true, can_be_false),
        Domain::Empty => (false, false),
        _ => (true, true),
    }
}

/// What is known of every node of the program, given what is known of the columns.
pub(crate) fn analyse(program: &Program, column: &dyn Fn(usize) -> Fact, facts: &mut Vec<Fact>) {
    facts.clear();
    for node in &program.nodes {
        let fact = fact_of(program, node, column, facts);
        facts.push(fact);
    }
}

fn fact_of(program: &Program, node: &Node, column: &dyn Fn(usize) -> Fact, facts: &[Fact]) -> Fact {
    let child = |index: usize| &facts[node.children[index]];
    let any_null = || node.children.iter().any(|child| facts[*child].may_be_null);
    let typed = || type_range(&node.data_type).map_or(Domain::Unknown, |(min, max)| Domain::Integers(min, max));
    // A value that leaves its type's range is an error, so the range of the type always bounds it.
    let within_type = |range: Option<(i128, i128)>| match (range, type_range(&node.data_type)) {
        (Some((min, max)), Some((least, greatest))) => {
            Domain::Integers(min.clamp(least, greatest), max.clamp(least, greatest))
        }
        _ => typed(),
    };
    let (domain, may_be_null) = match &node.op {
        Op::Column(index) => return column(*index),
        Op::Literal(value) => (domain_of_scalar(value), value.is_null()),
        Op::Compare(op) => (compare(*op, &child(0).domain, &child(1).domain), any_null()),
        Op::And => {
            let can_be_true = node.children.iter().all(|c| truth(&facts[*c]).0);
            let can_be_false = node.children.iter().any(|c| truth(&facts[*c]).1);
            (Domain::Truth(can_be_true, can_be_false), any_null())
        }
        Op::Or => {
            let can_be_true = node.children.iter().any(|c| truth(&facts[*c]).0);
            let can_be_false = node.children.iter().all(|c| truth(&facts[*c]).1);
            (Domain::Truth(can_be_true, can_be_false), any_null())
        }
        Op::Not => {
            let (can_be_true, can_be_false) = truth(child(0));
            (Domain::Truth(can_be_false, can_be_true), any_null())
        }
        Op::IsNull => (Domain::Truth(child(0).may_be_null, child(0).domain != Domain::Empty), false),
        Op::In { list, has_null, .. } => {
            let value = &child(0).domain;
            let can_be_true = *value != Domain::Empty
                && list.iter().any(|item| {
                    compare(CompareOp::Equal, value, &domain_of_scalar(item)) != Domain::Truth(false, true)
                });
            // Only a single possible value that is in the list can't be false.
            let always = list
                .iter()
                .any(|item| compare(CompareOp::Equal, value, &domain_of_scalar(item)) == Domain::Truth(true, false));
            (Domain::Truth(can_be_true, !always && *value != Domain::Empty), any_null() || *has_null)
        }
        Op::Arithmetic(op) if node.data_type.lane() != Lane::F64 => {
            let zero_possible = matches!(op, ArithmeticOp::Divide | ArithmeticOp::Remainder);
            let range = match (child(0).integers(), child(1).integers()) {
                (Some(left), Some(right)) => arithmetic_range(*op, left, right),
                _ => None,
            };
            let _ = zero_possible;
            (within_type(range), any_null())
        }
        Op::Negate if node.data_type.lane() != Lane::F64 => {
            let range = child(0).integers().and_then(|(min, max)| Some((max.checked_neg()?, min.checked_neg()?)));
            (within_type(range), any_null())
        }
        Op::Cast => (cast_domain(node, child(0)).unwrap_or_else(typed), any_null()),
        Op::Case { .. } | Op::Coalesce => {
            let mut union: Option<(i128, i128)> = None;
            let mut known = true;
            for value in node.values() {
                match facts[value].domain {
                    Domain::Empty => {}
                    Domain::Integers(min, max) => {
                        union = Some(union.map_or((min, max), |(a, b)| (a.min(min), b.max(max))));
                    }
                    _ => known = false,
                }
            }
            (if known { within_type(union.or(Some((0, 0)))) } else { typed() }, true)
        }
        Op::Length => (Domain::Integers(0, 1 << 31), any_null()),
        Op::Extract(field) => {
            let from = &program.nodes[node.children[0]].data_type;
            (extract_domain(*field, from, child(0)).unwrap_or_else(typed), any_null())
        }
        _ => (typed(), true),
    };
    let may_be_null = may_be_null && node.nullable || matches!(node.op, Op::Literal(Scalar::Null));
    Fact { domain, may_be_null }
}

/// The fields that grow with time keep their order, the others have the range of the calendar.
fn extract_domain(field: DateField, from: &DataType, value: &Fact) -> Option<Domain> {
    let (min, max) = match field {
        DateField::Quarter => (1, 4),
        DateField::Month => (1, 12),
        DateField::Week => (1, 53),
        DateField::Day => (1, 31),
        DateField::DayOfWeek => (0, 6),
        DateField::DayOfYear => (1, 366),
        DateField::Hour => (0, 23),
        DateField::Minute | DateField::Second => (0, 59),
        DateField::Year | DateField::Epoch => {
            let Domain::Integers(min, max) = value.domain else { return None };
            let extract = |value: i128| {
                let value = i64::try_from(value).ok()?;
                Some(i128::from(match from {
                    DataType::Date => calendar::extract_from_date(field, value),
                    _ => calendar::extract_from_timestamp(field, value),
                }))
            };
            (extract(min)?, extract(max)?)
        }
    };
    Some(Domain::Integers(min, max))
}

/// Integer and decimal casts keep their range, scaled.
fn cast_domain(node: &Node, from: &Fact) -> Option<Domain> {
    let (min, max) = match from.domain {
        Domain::Integers(min, max) => (min, max),
        Domain::Empty => return Some(Domain::Empty),
        _ => return None,
    };
    let (least, greatest) = type_range(&node.data_type)?;
    let shift = node.scale_shift?;
    let factor = 10i128.checked_pow(shift.unsigned_abs())?;
    let scale = |value: i128| if shift >= 0 { value.checked_mul(factor) } else { Some(value / factor) };
    let (low, high) = (scale(min)?, scale(max)?);
    // Rounding on the way down moves a bound by at most one.
    let (low, high) = if shift < 0 { (low - 1, high + 1) } else { (low, high) };
    Some(Domain::Integers(low.clamp(least, greatest), high.clamp(least, greatest)))
}
