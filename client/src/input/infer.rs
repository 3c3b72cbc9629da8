//! Guesses the types of CSV columns.
//!
//! The narrowest of these that takes every non-empty field wins: boolean (`true`/`false` only), int64,
//! decimal(18,s) when all fields have the same `s` digits after the point (as prices are printed), float64,
//! date, timestamp, timestamptz, text. A column without any value is text.

use hidb::{DataType, Result};

use super::csv::Records;
use super::values::{parse_date, parse_timestamp};

/// What the fields of a column seen so far could be.
#[derive(Clone, Copy)]
struct Candidates {
    seen: bool,
    boolean: bool,
    integer: bool,
    decimal: bool,
    scale: Option<u8>,
    float: bool,
    date: bool,
    timestamp: bool,
    /// Whether any timestamp carried an offset, and whether any did not.
    zoned: bool,
    unzoned: bool,
}

impl Candidates {
    fn new() -> Self {
        Candidates {
            seen: false,
            boolean: true,
            integer: true,
            decimal: true,
            scale: None,
            float: true,
            date: true,
            timestamp: true,
            zoned: false,
            unzoned: false,
        }
    }

    fn see(&mut self, text: &str) {
        self.seen = true;
        self.boolean &= text.eq_ignore_ascii_case("true") || text.eq_ignore_ascii_case("false");
        // A leading zero is part of a code (00501), not of a number.
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        let code = digits.len() > 1 && digits.starts_with('0') && digits.as_bytes()[1].is_ascii_digit();
        self.integer &= !code && text.parse::<i64>().is_ok();
        if self.decimal {
            let whole_and_fraction = digits.split_once('.');
            self.decimal = match whole_and_fraction {
                Some((whole, fraction)) => {
                    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
                    let scale = u8::try_from(fraction.len()).unwrap_or(u8::MAX);
                    let same = self.scale.is_none_or(|seen| seen == scale);
                    self.scale = Some(scale);
                    let digits = whole.len() + fraction.len();
                    same && !code
                        && !whole.is_empty()
                        && scale > 0
                        && digits <= 18
                        && all_digits(whole)
                        && all_digits(fraction)
                }
                None => false,
            };
        }
        self.float &= !code
            && digits.starts_with(|first: char| first.is_ascii_digit() || first == '.')
            && text.parse::<f64>().is_ok();
        self.date &= parse_date(text).is_some();
        if self.timestamp {
            // A date alone is midnight in a column of timestamps.
            match parse_timestamp(text) {
                Some((_, zoned)) => {
                    self.zoned |= zoned;
                    self.unzoned |= !zoned && parse_date(text).is_none();
                }
                None => self.timestamp = false,
            }
        }
    }

    fn data_type(self) -> DataType {
        match self {
            Candidates { seen: false, .. } => DataType::Text,
            Candidates { boolean: true, .. } => DataType::Boolean,
            Candidates { integer: true, .. } => DataType::Int64,
            Candidates { decimal: true, scale: Some(scale), .. } => DataType::Decimal { precision: 18, scale },
            Candidates { float: true, .. } => DataType::Float64,
            Candidates { date: true, .. } => DataType::Date,
            Candidates { timestamp: true, zoned, unzoned, .. } if !(zoned && unzoned) => {
                DataType::Timestamp { utc: zoned }
            }
            _ => DataType::Text,
        }
    }
}

/// The types of all columns, and from how many rows they were inferred.
pub(super) fn infer_schema(
    records: &mut Records,
    null: Option<&str>,
    sample_bytes: u64,
) -> Result<(Vec<DataType>, u64)> {
    let mut columns = vec![Candidates::new(); records.header.len()];
    let mut rows = 0;
    while records.consumed < sample_bytes
        && let Some(chunk) = records.next_chunk()?
    {
        rows += chunk.rows() as u64;
        for (column, candidates) in columns.iter_mut().enumerate() {
            for row in 0..chunk.rows() {
                let field = chunk.field(row, column);
                if field.is_empty() || null.is_some_and(|null| null.as_bytes() == field) {
                    continue;
                }
                match std::str::from_utf8(field) {
                    Ok(text) => candidates.see(text.trim()),
                    Err(_) => {
                        let what = format!("column {:?} is not UTF-8 text", records.header[column]);
                        return Err(records.malformed(chunk.line(row), &what));
                    }
                }
            }
        }
    }
    Ok((columns.into_iter().map(Candidates::data_type).collect(), rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn infer(fields: &[&str]) -> DataType {
        let mut candidates = Candidates::new();
        fields.iter().for_each(|field| candidates.see(field));
        candidates.data_type()
    }

    #[test]
    fn the_narrowest_type_that_takes_every_field_wins() {
        for (fields, expected) in [
            (&["1", "-2"][..], DataType::Int64),
            (&["1", "99999999999999999999"], DataType::Float64),
            (&["1.50", "22.25"], DataType::Decimal { precision: 18, scale: 2 }),
            (&["1.5", "2.25"], DataType::Float64),
            (&["1.50", "2"], DataType::Float64),
            (&["00501", "10001"], DataType::Text),
            (&["true", "FALSE"], DataType::Boolean),
            (&["true", "1"], DataType::Text),
            (&["1996-01-31"], DataType::Date),
            (&["1996-01-31", "1996-01-31 10:00:00"], DataType::Timestamp { utc: false }),
            (&["1996-01-31T10:00:00Z", "1996-01-31T10:00:00+02:00"], DataType::Timestamp { utc: true }),
            (&["1996-01-31T10:00:00Z", "1996-01-31T10:00:00"], DataType::Text),
            (&["1996-02-30"], DataType::Text),
            (&["nan"], DataType::Text),
            (&[], DataType::Text),
        ] {
            assert_eq!(infer(fields), expected, "{fields:?}");
        }
    }
}
