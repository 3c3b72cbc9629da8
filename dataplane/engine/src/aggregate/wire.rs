//! The wire form of aggregate states: what cells send each other in `Phase::Intermediate`.
//!
//! Owns writing and reading it. Invariant: states come from the network, so every one is checked; a wrong one is an
//! error, never a panic.
//!
//! Wire form of a state (one Bytea value per aggregate and group, Phase::Intermediate), little-endian:
//! version (1 byte, [`STATE_VERSION`]), kind (1 byte), number of non-NULL arguments (i64), then
//! - kind 1, count: nothing;
//! - kind 2, exact sum (also avg) of integers or decimals: i128;
//! - kind 3, exact sum (also avg) of floats: flags (1: NaN, 2: +inf, 4: -inf), number of chunks (1 byte), per
//!   chunk its index (1 byte) and value (i64), worth `value * 2^(32 * index - 1075)`;
//! - kind 4, min or max: a value in row encoding (0 for none; 1 and the value little-endian, bytes with a
//!   u32 length);
//! - kind 5, count distinct: number of values (u32), and each in row encoding.

use heliostat_segment::{order_key, value_of_key};
use hidb::{Error, ErrorCode, Lane, Result};

use super::state::{StateColumn, StateKind, Values, offer_bytes};
use crate::rows::{read_value, take};
use crate::vector::{Vector, bit};

/// The version of the wire form.
pub const STATE_VERSION: u8 = 1;

fn malformed(found: &str) -> Error {
    Error::new(ErrorCode::InvalidValue, format!("an intermediate aggregate state is malformed: {found}"))
}

impl StateColumn {
    /// For every group its entries of a count(distinct) set, as `write_state` wants them.
    pub fn distinct_by_group(&self) -> Result<Vec<Vec<u32>>> {
        match &self.values {
            Values::Distinct(sets) => sets.by_group(),
            _ => Ok(Vec::new()),
        }
    }

    /// Appends the wire form of a group's state.
    pub fn write_state(&self, group: usize, rows: i64, distinct: &[Vec<u32>], out: &mut Vec<u8>) {
        let count = self.non_null(group, rows);
        let kind = match self.kind {
            StateKind::Count => 1,
            StateKind::IntegerSum => 2,
            StateKind::FloatSum => 3,
            StateKind::Min | StateKind::Max => 4,
            StateKind::Distinct => 5,
        };
        out.extend_from_slice(&[STATE_VERSION, kind]);
        out.extend_from_slice(&count.to_le_bytes());
        match &self.values {
            Values::Count => {}
            Values::IntegerSum { .. } => out.extend_from_slice(&self.integer_sum(group).to_le_bytes()),
            Values::FloatSum(sums) => sums.write_state(group, out),
            Values::Distinct(sets) => {
                let entries = distinct.get(group).map_or(&[][..], Vec::as_slice);
                out.extend_from_slice(&(entries.len() as u32).to_le_bytes());
                entries.iter().for_each(|entry| sets.write(*entry, out));
            }
            _ if count == 0 => out.push(0),
            Values::I64(values) if self.lane == Lane::Bool => out.extend_from_slice(&[1, values[group] as u8]),
            Values::I64(values) if self.lane == Lane::F64 => {
                out.push(1);
                out.extend_from_slice(&value_of_key(values[group]).to_bits().to_le_bytes());
            }
            Values::I64(values) => {
                out.push(1);
                out.extend_from_slice(&values[group].to_le_bytes());
            }
            Values::I128(values) => {
                out.push(1);
                out.extend_from_slice(&values[group].to_le_bytes());
            }
            Values::Bytes { values, .. } => match &values[group] {
                Some(value) => {
                    out.push(1);
                    crate::rows::write_bytes(value, out);
                }
                None => out.push(0),
            },
        }
    }

    /// Takes in a state in wire form; returns its number of non-NULL arguments.
    pub fn absorb_state(&mut self, group: usize, mut bytes: &[u8]) -> Result<i64> {
        let [version, kind] = take::<2>(&mut bytes)?;
        if version != STATE_VERSION {
            return Err(malformed(&format!("version {version}, this build reads {STATE_VERSION}")));
        }
        let count = i64::from_le_bytes(take(&mut bytes)?);
        if count < 0 {
            return Err(malformed("a negative count"));
        }
        let maximum = self.kind == StateKind::Max;
        match (kind, &mut self.values) {
            (1, Values::Count) => {}
            (2, Values::IntegerSum { total, .. }) => {
                total.resize(self.groups, 0);
                total[group] = total[group].saturating_add(i128::from_le_bytes(take(&mut bytes)?));
            }
            (3, Values::FloatSum(sums)) => {
                sums.absorb_state(group, bytes).ok_or_else(|| malformed("a float sum"))?;
                bytes = &[];
            }
            (5, Values::Distinct(sets)) => {
                let entries = u32::from_le_bytes(take(&mut bytes)?);
                sets.absorb_encoded(group, entries as usize, &mut bytes)?;
            }
            (4, values) => {
                let mut value = Vector::default();
                value.reset(self.lane, 1);
                read_value(&mut bytes, self.lane, 0, &mut value)?;
                if value.is_valid(0) {
                    match values {
                        Values::I64(states) => {
                            let v = match self.lane {
                                Lane::Bool => i64::from(bit(&value.bits, 0)),
                                Lane::F64 => order_key(value.f64s[0]),
                                _ => value.i64s[0],
                            };
                            states[group] = if maximum { v.max(states[group]) } else { v.min(states[group]) };
                        }
                        Values::I128(states) => {
                            let v = value.i128s[0];
                            states[group] = if maximum { v.max(states[group]) } else { v.min(states[group]) };
                        }
                        Values::Bytes { values, held } => {
                            offer_bytes(maximum, value.bytes.get(0), &mut values[group], held);
                        }
                        _ => return Err(malformed("a minimum or maximum where another state was expected")),
                    }
                }
            }
            _ => return Err(malformed(&format!("kind {kind} for an aggregate of another kind"))),
        }
        if !bytes.is_empty() {
            return Err(malformed("trailing bytes"));
        }
        Ok(count)
    }
}
