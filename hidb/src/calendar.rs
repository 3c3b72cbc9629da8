//! The proleptic Gregorian calendar: days and microseconds since 1970-01-01, fields, intervals, text.
//!
//! Owns every conversion between instants and civil dates. No time zones: `timestamptz` is in UTC.
//!
//! Invariants
//! - Every function is total; what leaves the range of a date (`i32` days) or timestamp (`i64`
//!   microseconds) is `None`.
//! - Years are astronomical: year 0 exists, and is 1 BC.
//!
//! Called by `cast`, `plan::build`, `plan::fold`, the engine and the client's printers.

use crate::plan::DateField;

/// Microseconds in a day.
pub const DAY_MICROSECONDS: i64 = 86_400_000_000;
/// Microseconds in a second.
pub const SECOND_MICROSECONDS: i64 = 1_000_000;

/// A calendar interval: months first, then days, then microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Interval {
    /// Months, may be negative.
    pub months: i32,
    /// Days, may be negative.
    pub days: i32,
    /// Microseconds, may be negative.
    pub microseconds: i64,
}

impl Interval {
    /// The interval that goes back; `None` when a part is the least of its type.
    pub fn checked_neg(self) -> Option<Interval> {
        Some(Interval {
            months: self.months.checked_neg()?,
            days: self.days.checked_neg()?,
            microseconds: self.microseconds.checked_neg()?,
        })
    }
}

/// Whether February has 29 days.
#[inline]
pub fn is_leap_year(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Days in a month (1 to 12).
#[inline]
pub fn days_in_month(year: i64, month: u32) -> u32 {
    match month {
        2 if is_leap_year(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a civil date that exists (Howard Hinnant, "chrono-compatible low-level date
/// algorithms"). Years beyond ±10^12 are not meaningful.
#[inline]
pub fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    let shifted_year = if month <= 2 { year - 1 } else { year };
    let era = shifted_year.div_euclid(400);
    let year_of_era = shifted_year.rem_euclid(400);
    let month_from_march = i64::from((month + 9) % 12);
    let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Year, month (1 to 12) and day (1 to 31) of a number of days since 1970-01-01.
#[inline]
pub fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let shifted = days.saturating_add(719_468);
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u32;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 } as u32;
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// Days moved by months; the day is clamped to the month's last (Jan 31 + 1 month = Feb 28 or 29).
#[inline]
pub fn add_months(days: i64, months: i32) -> i64 {
    if months == 0 {
        return days;
    }
    let (year, month, day) = civil_from_days(days);
    let total = year * 12 + i64::from(month - 1) + i64::from(months);
    let (year, month) = (total.div_euclid(12), total.rem_euclid(12) as u32 + 1);
    days_from_civil(year, month, day.min(days_in_month(year, month)))
}

/// A date moved by an interval. The interval's microseconds must be zero (else cast the date to a
/// timestamp first); they are ignored here.
#[inline]
pub fn add_to_date(days: i64, interval: Interval) -> Option<i64> {
    let moved = add_months(days, interval.months).checked_add(i64::from(interval.days))?;
    i32::try_from(moved).ok().map(i64::from)
}

/// A timestamp moved by an interval: months, then days, then microseconds.
#[inline]
pub fn add_to_timestamp(microseconds: i64, interval: Interval) -> Option<i64> {
    let (days, of_day) = (microseconds.div_euclid(DAY_MICROSECONDS), microseconds.rem_euclid(DAY_MICROSECONDS));
    let moved = add_months(days, interval.months).checked_add(i64::from(interval.days))?;
    // In i128, so that an interval whose days overflow and whose microseconds come back still works.
    let total =
        i128::from(moved) * i128::from(DAY_MICROSECONDS) + i128::from(of_day) + i128::from(interval.microseconds);
    i64::try_from(total).ok()
}

/// Midnight of a date, in microseconds.
#[inline]
pub fn timestamp_from_date(days: i64) -> Option<i64> {
    days.checked_mul(DAY_MICROSECONDS)
}

/// The date a timestamp falls on.
#[inline]
pub fn date_from_timestamp(microseconds: i64) -> i64 {
    microseconds.div_euclid(DAY_MICROSECONDS)
}

/// A field of a date. Time-of-day fields are 0; `Epoch` is seconds since 1970-01-01 (an integer),
/// `DayOfWeek` is 0 on Sunday, `Week` is the ISO 8601 week.
#[inline]
pub fn extract_from_date(field: DateField, days: i64) -> i64 {
    match field {
        DateField::Year => civil_from_days(days).0,
        DateField::Quarter => i64::from((civil_from_days(days).1 - 1) / 3 + 1),
        DateField::Month => i64::from(civil_from_days(days).1),
        DateField::Week => iso_week(days),
        DateField::Day => i64::from(civil_from_days(days).2),
        DateField::DayOfWeek => days.saturating_add(4).rem_euclid(7),
        DateField::DayOfYear => days - days_from_civil(civil_from_days(days).0, 1, 1) + 1,
        DateField::Hour | DateField::Minute | DateField::Second => 0,
        DateField::Epoch => days.saturating_mul(86_400),
    }
}

/// A field of a timestamp. `Second` is 0 to 59 without the fraction; `Epoch` is whole seconds, rounded
/// toward the past.
#[inline]
pub fn extract_from_timestamp(field: DateField, microseconds: i64) -> i64 {
    let of_day = microseconds.rem_euclid(DAY_MICROSECONDS);
    match field {
        DateField::Hour => of_day / (3_600 * SECOND_MICROSECONDS),
        DateField::Minute => of_day / (60 * SECOND_MICROSECONDS) % 60,
        DateField::Second => of_day / SECOND_MICROSECONDS % 60,
        DateField::Epoch => microseconds.div_euclid(SECOND_MICROSECONDS),
        _ => extract_from_date(field, date_from_timestamp(microseconds)),
    }
}

fn iso_week(days: i64) -> i64 {
    // The week belongs to the year of its Thursday. 1970-01-01 was a Thursday.
    let thursday = days - (days + 3).rem_euclid(7) + 3;
    let year = civil_from_days(thursday).0;
    (thursday - days_from_civil(year, 1, 1)) / 7 + 1
}

/// Reads `YYYY-MM-DD` (years of four or more digits, or signed), surrounded by any spaces.
pub fn parse_date(text: &str) -> Option<i64> {
    let (days, rest) = take_date(text.trim().as_bytes())?;
    rest.is_empty().then_some(days)
}

/// Reads `YYYY-MM-DD[( |T)HH:MM[:SS[.ffffff]]][Z|±HH[[:]MM]]`; surplus digits of the fraction are
/// dropped. A zone offset is applied, so the result is in UTC when one is given.
pub fn parse_timestamp(text: &str) -> Option<i64> {
    let (days, mut rest) = take_date(text.trim().as_bytes())?;
    let midnight = i128::from(days) * i128::from(DAY_MICROSECONDS);
    let mut of_day = 0i64;
    if let [b' ' | b'T' | b't', time @ ..] = rest {
        rest = time;
        let hour = take_two(&mut rest, 23)?;
        let minute = take_after(&mut rest, b':').then(|| take_two(&mut rest, 59))??;
        let second = if take_after(&mut rest, b':') { take_two(&mut rest, 59)? } else { 0 };
        let mut fraction = 0i64;
        if take_after(&mut rest, b'.') {
            let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            if count == 0 {
                return None;
            }
            for place in 0..6 {
                fraction = fraction * 10 + rest[..count].get(place).map_or(0, |byte| i64::from(byte - b'0'));
            }
            rest = &rest[count..];
        }
        of_day = ((hour * 60 + minute) * 60 + second) * SECOND_MICROSECONDS + fraction;
        while let [b' ', after @ ..] = rest {
            rest = after;
        }
        match rest {
            [b'Z' | b'z', after @ ..] => rest = after,
            [sign @ (b'+' | b'-'), after @ ..] => {
                rest = after;
                let hours = take_two(&mut rest, 18)?;
                take_after(&mut rest, b':');
                let minutes = if rest.is_empty() { 0 } else { take_two(&mut rest, 59)? };
                let offset = (hours * 60 + minutes) * 60 * SECOND_MICROSECONDS;
                of_day += if *sign == b'+' { -offset } else { offset };
            }
            _ => {}
        }
    }
    if !rest.is_empty() {
        return None;
    }
    i64::try_from(midnight + i128::from(of_day)).ok()
}

fn take_date(text: &[u8]) -> Option<(i64, &[u8])> {
    let (sign, mut rest) = match text {
        [b'-', rest @ ..] => (-1, rest),
        [b'+', rest @ ..] => (1, rest),
        _ => (1, text),
    };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if !(4..=7).contains(&digits) {
        return None;
    }
    let year = sign * rest[..digits].iter().fold(0i64, |year, byte| year * 10 + i64::from(byte - b'0'));
    rest = &rest[digits..];
    let month = take_after(&mut rest, b'-').then(|| take_two(&mut rest, 12))?? as u32;
    let day = take_after(&mut rest, b'-').then(|| take_two(&mut rest, 31))?? as u32;
    if month == 0 || day == 0 || day > days_in_month(year, month) {
        return None;
    }
    let days = days_from_civil(year, month, day);
    i32::try_from(days).ok()?;
    Some((days, rest))
}

fn take_two(rest: &mut &[u8], max: i64) -> Option<i64> {
    match *rest {
        [tens @ b'0'..=b'9', ones @ b'0'..=b'9', after @ ..] => {
            *rest = after;
            Some(i64::from(tens - b'0') * 10 + i64::from(ones - b'0')).filter(|value| *value <= max)
        }
        _ => None,
    }
}

fn take_after(rest: &mut &[u8], separator: u8) -> bool {
    match *rest {
        [first, after @ ..] if *first == separator => {
            *rest = after;
            true
        }
        _ => false,
    }
}

/// `YYYY-MM-DD`; years beyond 0 to 9999 carry a sign.
pub fn format_date(days: i64) -> String {
    let (year, month, day) = civil_from_days(days);
    if (0..=9999).contains(&year) {
        format!("{year:04}-{month:02}-{day:02}")
    } else {
        format!("{year:+05}-{month:02}-{day:02}")
    }
}

/// `YYYY-MM-DD HH:MM:SS[.ffffff]`, with trailing zeros of the fraction dropped, and `+00` when in UTC.
pub fn format_timestamp(microseconds: i64, utc: bool) -> String {
    let of_day = microseconds.rem_euclid(DAY_MICROSECONDS);
    let seconds = of_day / SECOND_MICROSECONDS;
    let mut text = format!(
        "{} {:02}:{:02}:{:02}",
        format_date(date_from_timestamp(microseconds)),
        seconds / 3_600,
        seconds / 60 % 60,
        seconds % 60
    );
    let fraction = of_day % SECOND_MICROSECONDS;
    if fraction != 0 {
        text.push_str(format!(".{fraction:06}").trim_end_matches('0'));
    }
    if utc {
        text.push_str("+00");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Counts forward from 1970-01-01 day by day: slow, and shares nothing with the code under test.
    fn step(date: (i64, u32, u32)) -> (i64, u32, u32) {
        let lengths = [31, if date.0 % 400 == 0 || (date.0 % 4 == 0 && date.0 % 100 != 0) { 29 } else { 28 }, 31, 30]
            .into_iter()
            .chain([31, 30, 31, 31, 30, 31, 30, 31])
            .collect::<Vec<u32>>();
        match date {
            (year, 12, 31) => (year + 1, 1, 1),
            (year, month, day) if day == lengths[month as usize - 1] => (year, month + 1, 1),
            (year, month, day) => (year, month, day + 1),
        }
    }

    #[test]
    fn every_day_of_eight_centuries_agrees_with_counting() {
        let mut date = (1970, 1, 1);
        let mut day_of_year = 1;
        for days in 0..300_000 {
            assert_eq!(civil_from_days(days), date);
            assert_eq!(days_from_civil(date.0, date.1, date.2), days);
            assert_eq!(extract_from_date(DateField::DayOfYear, days), day_of_year);
            assert_eq!(extract_from_date(DateField::DayOfWeek, days), (days + 4) % 7);
            let next = step(date);
            day_of_year = if next.0 == date.0 { day_of_year + 1 } else { 1 };
            date = next;
        }
    }

    #[test]
    fn the_calendar_repeats_every_400_years_in_both_directions() {
        for days in (-1_000_000..1_000_000).step_by(37) {
            let (year, month, day) = civil_from_days(days);
            assert_eq!(civil_from_days(days + 146_097), (year + 400, month, day));
        }
    }

    #[test]
    fn iso_weeks_at_the_turn_of_years() {
        for (text, week) in [
            ("2005-01-01", 53),
            ("2005-01-02", 53),
            ("2005-01-03", 1),
            ("2008-12-29", 1),
            ("2010-01-03", 53),
            ("2012-01-01", 52),
            ("2026-11-21", 47),
        ] {
            assert_eq!(extract_from_date(DateField::Week, parse_date(text).unwrap()), week, "{text}");
        }
    }

    #[test]
    fn months_clamp_to_the_last_day() {
        let add = |text, months| format_date(add_months(parse_date(text).unwrap(), months));
        assert_eq!(add("2023-01-31", 1), "2023-02-28");
        assert_eq!(add("2024-01-31", 1), "2024-02-29");
        assert_eq!(add("2024-03-31", -1), "2024-02-29");
        assert_eq!(add("2024-01-15", -13), "2022-12-15");
        assert_eq!(add("1998-12-01", 12), "1999-12-01");
    }

    #[test]
    fn intervals_that_leave_the_range_are_none() {
        let one_day = Interval { days: 1, ..Interval::default() };
        assert_eq!(add_to_date(i64::from(i32::MAX), one_day), None);
        assert_eq!(add_to_timestamp(i64::MAX, one_day), None);
        assert_eq!(add_to_date(0, Interval { months: i32::MAX, ..Interval::default() }), None);
        assert_eq!(timestamp_from_date(i64::from(i32::MAX)), None);
    }

    #[test]
    fn text_forms() {
        assert_eq!(parse_date(" 1995-03-01 "), Some(9190));
        for bad in ["1995-02-29", "1995-13-01", "1995-3-1", "95-03-01", "", "1995-03-01x", "1995-03", "é995-01-01"] {
            assert_eq!(parse_date(bad), None, "{bad}");
        }
        let at = |text| parse_timestamp(text);
        assert_eq!(at("1970-01-02"), Some(DAY_MICROSECONDS));
        assert_eq!(at("1970-01-01T00:00:01.5Z"), Some(1_500_000));
        assert_eq!(at("1970-01-01 01:00:00+01:00"), Some(0));
        assert_eq!(at("1970-01-01 01:00:00 +0130"), Some(-1_800_000_000));
        assert_eq!(at("1969-12-31 23:59:59.9999999"), Some(-1));
        assert_eq!(at("1970-01-01 00:01"), Some(60_000_000));
        for bad in ["1970-01-01 24:00:00", "1970-01-01 00", "1970-01-01 00:00:00.", "1970-01-01 00:00:00 x"] {
            assert_eq!(at(bad), None, "{bad}");
        }
        assert_eq!(format_timestamp(-1, false), "1969-12-31 23:59:59.999999");
        assert_eq!(format_timestamp(1_500_000, true), "1970-01-01 00:00:01.5+00");
        assert_eq!(extract_from_timestamp(DateField::Epoch, -1), -1);
        assert_eq!(extract_from_timestamp(DateField::Second, -1), 59);
    }

    proptest! {
        #[test]
        fn dates_and_timestamps_read_back(days in any::<i32>(), microseconds in any::<i64>(), utc in any::<bool>()) {
            let days = i64::from(days);
            prop_assert_eq!(parse_date(&format_date(days)), Some(days));
            prop_assert_eq!(parse_timestamp(&format_timestamp(microseconds, utc)), Some(microseconds));
        }

        #[test]
        fn parsing_any_text_never_panics(text in any::<String>(), near in "[-+0-9TZ:. ]{0,40}") {
            let _ = (parse_date(&text), parse_timestamp(&text), parse_date(&near), parse_timestamp(&near));
        }
    }
}
