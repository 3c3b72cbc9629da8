//! How fio writes values: numbers with suffixes, times, percentages, ranges, lists.
//!
//! Pure. Called by the option table. Suffixes are read as fio reads them (HOWTO, "Parameter types"): with
//! `kb_base=1024`, the default, `k`, `m`, `g` are powers of 1024 and `ki`, `mi`, `gi` powers of 1000; with
//! `kb_base=1000` it is the other way round.
//!
//! Invariant: no text panics or overflows; what can't be read is a [`ValueError`] that says what was expected.

use thiserror::Error;

use super::expression;

/// Why a value could not be read; the option's name and place are added by the caller.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ValueError {
    /// Not of the form that the option takes.
    #[error("`{text}` is not {expected}")]
    Expected {
        /// What was written.
        text: String,
        /// What the option takes, with article.
        expected: String,
    },
    /// Of the right form, but fio's option has values that are not served here.
    #[error("{0}")]
    NotServed(String),
}

pub(crate) type Result<T> = std::result::Result<T, ValueError>;

pub(crate) fn expected<T>(text: &str, expected: impl Into<String>) -> Result<T> {
    Err(ValueError::Expected { text: text.to_string(), expected: expected.into() })
}

/// A size that may depend on the file's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Extent {
    /// Bytes.
    Bytes(u64),
    /// Percent of the file or device.
    Percent(f64),
}

impl Extent {
    /// In bytes, of a whole of that many bytes.
    pub(crate) fn of(self, whole_bytes: u64) -> u64 {
        match self {
            Extent::Bytes(bytes) => bytes,
            Extent::Percent(percent) => (whole_bytes as f64 * percent / 100.0) as u64,
        }
    }
}

/// An integer with an optional suffix. The base of `k` is 1024 unless said otherwise.
pub(crate) fn integer(text: &str) -> Result<u64> {
    integer_in_base(text, 1024)
}

/// An integer with an optional suffix, of data where `kb_base` decides about `k` and `ki`.
pub(crate) fn integer_in_base(text: &str, kb_base: u64) -> Result<u64> {
    let text = text.trim();
    if text.starts_with('(') {
        return whole(text, expression::evaluate(text, &|number| number_with_suffix(number, kb_base)));
    }
    whole(text, number_with_suffix(text, kb_base))
}

fn whole(text: &str, value: Option<f64>) -> Result<u64> {
    match value {
        Some(value) if (0.0..18e18).contains(&value) => Ok(value.round() as u64),
        _ => expected(text, "a whole number with an optional suffix k, m, g, t or p"),
    }
}

fn number_with_suffix(text: &str, kb_base: u64) -> Option<f64> {
    let (number, suffix) = split_number(text)?;
    let suffix = suffix.to_ascii_lowercase();
    let prefix = suffix.strip_suffix('b').unwrap_or(&suffix);
    let (prefix, thousand) = match prefix.strip_suffix('i') {
        Some(prefix) if !prefix.is_empty() => (prefix, if kb_base == 1000 { 1024.0 } else { 1000.0 }),
        _ => (prefix, kb_base as f64),
    };
    let power = match prefix {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    Some(number * f64::powi(thousand, power))
}

/// Number (decimal with a fraction, or 0x...) and what stands behind it.
fn split_number(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let end = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
        // `b` is a hexadecimal digit before it is a unit.
        return Some((u64::from_str_radix(&hex[..end], 16).ok()? as f64, &hex[end..]));
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim()))
}

/// A time in microseconds; `unit_us` is what a number without a unit means.
pub(crate) fn time_us(text: &str, unit_us: u64) -> Result<u64> {
    let text = text.trim();
    let value = if text.starts_with('(') {
        expression::evaluate(text, &|number| time_with_suffix(number, 1))
    } else {
        time_with_suffix(text, unit_us)
    };
    match value {
        Some(value) if (0.0..18e18).contains(&value) => Ok(value.round() as u64),
        _ => expected(text, "a time such as 30, 30s, 5m, 2h, 100ms or 50us"),
    }
}

fn time_with_suffix(text: &str, unit_us: u64) -> Option<f64> {
    let (number, unit) = split_number(text)?;
    let us = match unit.to_ascii_lowercase().as_str() {
        "" => unit_us as f64,
        "us" | "usec" => 1.0,
        "ms" | "msec" => 1e3,
        "s" | "sec" => 1e6,
        "m" => 60e6,
        "h" => 3600e6,
        "d" => 86_400e6,
        _ => return None,
    };
    Some(number * us)
}

/// `1` or `0`; an option without a value is switched on.
pub(crate) fn boolean(text: &str) -> Result<bool> {
    match text.trim() {
        "" | "1" => Ok(true),
        "0" => Ok(false),
        other => expected(other, "0 or 1"),
    }
}

/// A floating point number.
pub(crate) fn float(text: &str) -> Result<f64> {
    match text.trim().parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        _ => expected(text, "a number"),
    }
}

/// A whole number of percent, 0 to 100.
pub(crate) fn percent(text: &str) -> Result<u32> {
    match integer(text.trim().trim_end_matches('%'))? {
        value @ 0..=100 => Ok(value as u32),
        _ => expected(text, "a percentage from 0 to 100"),
    }
}

/// Bytes, or percent of the file.
pub(crate) fn extent(text: &str, kb_base: u64) -> Result<Extent> {
    match text.trim().strip_suffix('%') {
        Some(number) => match float(number)? {
            value if (0.0..=100.0).contains(&value) => Ok(Extent::Percent(value)),
            _ => expected(text, "a percentage from 0 to 100"),
        },
        None => Ok(Extent::Bytes(integer_in_base(text, kb_base)?)),
    }
}

/// `low-high` or `low:high`; the wrong way round is turned.
pub(crate) fn range(text: &str, kb_base: u64) -> Result<(u64, u64)> {
    let Some((low, high)) = text.split_once(['-', ':']) else {
        return expected(text, "a range such as 4k-16k");
    };
    let (low, high) = (integer_in_base(low, kb_base)?, integer_in_base(high, kb_base)?);
    Ok((low.min(high), low.max(high)))
}

/// What `value`, `read,write`, `,write` and `read,` say of reads and writes. A third part is of trims, which are not
/// served: it is read and has no effect, as in a fio job without trims.
pub(crate) fn read_and_write<T: Clone>(text: &str, one: impl Fn(&str) -> Result<T>) -> Result<[Option<T>; 2]> {
    let parts: Vec<&str> = text.split([',']).map(str::trim).collect();
    if parts.len() > 3 {
        return expected(text, "at most three values: reads, writes, trims");
    }
    let part = |text: &str| if text.is_empty() { Ok(None) } else { one(text).map(Some) };
    let read = part(parts[0])?;
    let write = match parts.get(1) {
        Some(text) => part(text)?,
        None => read.clone(),
    };
    if let Some(trim) = parts.get(2) {
        part(trim)?;
    }
    Ok([read, write])
}

/// A list of CPUs: `0,2-3` or `0:2-3`.
pub(crate) fn cpus(text: &str) -> Result<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.split([',', ':']) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number =
            |text: &str| text.trim().parse::<usize>().ok().filter(|cpu| *cpu < rustix::thread::CpuSet::MAX_CPU);
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => cpus.extend(first..=last),
            _ => return expected(text, "a list of CPUs such as 0,2-3"),
        }
    }
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_mean_what_the_howto_says() {
        for text in ["4096", "4096b", "4k", "4kb", "4kB", "4K", "0x1000", "(4*1k)", "(2^12)"] {
            assert_eq!(integer(text), Ok(4096), "{text}");
        }
        for text in ["4096", "4ki", "4kib", "4KiB"] {
            assert_eq!(integer_in_base(text, 1000), Ok(4096), "{text}");
        }
        for text in ["1mi", "1000ki", "1000000"] {
            assert_eq!(integer(text), Ok(1_000_000), "{text}");
        }
        assert_eq!(integer("1.5g"), Ok(3 << 29));
        assert_eq!(integer_in_base("1m", 1000), Ok(1_000_000));
    }

    #[test]
    fn times_have_units_and_expressions_are_in_microseconds() {
        assert_eq!(time_us("10", 1_000_000), Ok(10_000_000));
        assert_eq!(time_us("10m", 1_000_000), Ok(600_000_000));
        assert_eq!(time_us("250ms", 1_000_000), Ok(250_000));
        assert_eq!(time_us("(10*1000)", 1_000_000), Ok(10_000));
        assert_eq!(time_us("7", 1), Ok(7));
        assert!(time_us("7 parsecs", 1).is_err());
    }

    #[test]
    fn a_value_without_a_comma_behind_it_holds_for_what_follows() {
        assert_eq!(read_and_write("8k", integer), Ok([Some(8192), Some(8192)]));
        assert_eq!(read_and_write("8k,", integer), Ok([Some(8192), None]));
        assert_eq!(read_and_write(",8k", integer), Ok([None, Some(8192)]));
        assert_eq!(read_and_write("4k,8k,16k", integer), Ok([Some(4096), Some(8192)]));
    }

    #[test]
    fn ranges_are_turned_the_right_way_round() {
        assert_eq!(range("4k-16k", 1024), Ok((4096, 16384)));
        assert_eq!(range("16k:4k", 1024), Ok((4096, 16384)));
        assert!(range("4k", 1024).is_err());
    }

    #[test]
    fn what_is_not_a_number_is_an_error_that_quotes_it() {
        for text in ["", "k", "-1", "4x", "1..2", "9999999999p", "(1", "(1/0)", "4k 4k"] {
            assert!(integer(text).is_err(), "{text}");
        }
        assert!(integer("4x").unwrap_err().to_string().starts_with("`4x` is not a whole number"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_value_or_an_error(text in "\\PC{0,24}") {
            let _ = (integer(&text), time_us(&text, 1), extent(&text, 1000), range(&text, 1024), cpus(&text));
        }

        #[test]
        fn a_number_is_read_back(value in 0u64..1 << 53) {
            proptest::prop_assert_eq!(integer(&value.to_string()), Ok(value));
            proptest::prop_assert_eq!(integer(&format!("{value:#x}")), Ok(value));
        }
    }
}
