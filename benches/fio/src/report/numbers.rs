//! Numbers with units, in as many figures as asked for: `36.5k`, `142MiB`.

/// A number in `figures` figures with a unit prefix: of 1024 (Ki, Mi) when `binary`, else of 1000 (k, M). As fio does:
/// whole thousands are taken off until the digits fit, and what is left room is filled with decimals.
pub(crate) fn quantity(value: u64, figures: usize, binary: bool, unit: &str) -> String {
    let prefixes = if binary { ["", "Ki", "Mi", "Gi", "Ti", "Pi"] } else { ["", "k", "M", "G", "T", "P"] };
    let thousand = if binary { 1024 } else { 1000 };
    let digits = |value: u64| value.checked_ilog10().unwrap_or(0) as usize + 1;
    let (mut whole, mut rest, mut power) = (value, None, 0);
    while digits(whole) > figures && power + 1 < prefixes.len() {
        rest = Some(whole % thousand);
        whole /= thousand;
        power += 1;
    }
    let prefix = prefixes[power];
    let Some(rest) = rest else { return format!("{whole}{prefix}{unit}") };
    let share = rest as f64 / thousand as f64;
    let room = figures.saturating_sub(digits(whole));
    if room <= 1 {
        return format!("{}{prefix}{unit}", whole + u64::from(share >= 0.5));
    }
    // The fraction is rounded on its own: 1.999 in two decimals must not become 1.100.
    let decimals = room - 1;
    let text = format!("{share:.decimals$}");
    match text.strip_prefix("0.") {
        Some(fraction) => format!("{whole}.{fraction}{prefix}{unit}"),
        None => format!("{}.{:0decimals$}{prefix}{unit}", whole + 1, 0),
    }
}

/// Rounded to six decimals, which is what fio's JSON has.
pub(crate) fn decimal(value: f64) -> f64 {
    if value.is_finite() { (value * 1e6).round() / 1e6 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_fio_wrote_them_in_its_reports() {
        for (value, binary, unit, text) in [
            (36_450, false, "", "36.5k"),
            (4_000, false, "", "4000"),
            (992, false, "", "992"),
            (149_302_372, true, "B/s", "142MiB/s"),
            (149_302_372, false, "B/s", "149MB/s"),
            (63_685_533, true, "B/s", "60.7MiB/s"),
            (63_685_533, false, "B/s", "63.7MB/s"),
            (16_384, true, "B", "16.0KiB"),
            (16_384, false, "B", "16.4kB"),
            (1_040_447_503, true, "B/s", "992MiB/s"),
            (1_040_447_503, false, "B/s", "1040MB/s"),
            (0, true, "B", "0B"),
        ] {
            assert_eq!(quantity(value, 4, binary, unit), text);
        }
        assert_eq!(quantity(7_931_574, 6, false, ""), "7931.6k");
        assert_eq!(quantity(19_999, 4, false, ""), "20.0k");
        assert_eq!(quantity(u64::MAX, 4, true, "B"), "16384PiB");
    }
}
