//! `--sweep iodepth=1,2,4`: the same jobs once for each value of an option; a table, and the knee.
//!
//! The knee is the value with the highest power, throughput over mean latency (Kleinrock, "Power and deterministic rules
//! of thumb for probabilistic problems in computer communications", 1979): before it more load buys throughput, behind
//! it mostly waiting.

use std::fmt::Write;

use crate::measure::{DirectionStats, LAT, Latency};
use crate::report::quantity;
use crate::run::CloneResult;

/// What is swept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sweep {
    pub option: String,
    pub values: Vec<String>,
}

impl Sweep {
    pub(crate) fn parse(text: &str) -> Result<Sweep, String> {
        let (option, values) =
            text.split_once('=').ok_or_else(|| format!("--sweep: `{text}` is not OPTION=V,V,..."))?;
        let values: Vec<String> = values.split(',').map(|value| value.trim().to_string()).collect();
        if option.is_empty() || values.iter().any(String::is_empty) {
            return Err(format!("--sweep: `{text}` is not OPTION=V,V,..."));
        }
        Ok(Sweep { option: option.to_string(), values })
    }
}

/// All jobs together, at one value.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub value: String,
    pub iops: f64,
    pub bytes_per_second: f64,
    pub mean_ns: f64,
    /// p50, p99, p99.9.
    pub percentiles_ns: [u64; 3],
    pub errors: u64,
}

impl Row {
    pub(crate) fn of(value: &str, results: &[CloneResult<'_>]) -> Row {
        let (mut iops, mut bytes_per_second, mut errors) = (0.0, 0.0, 0);
        let mut latency = Latency::default();
        for result in results {
            let seconds = result.stats.runtime_ns.max(1) as f64 / 1e9;
            errors += result.stats.errors();
            for DirectionStats { ops, bytes, latency: of_direction, .. } in &result.stats.directions {
                iops += *ops as f64 / seconds;
                bytes_per_second += *bytes as f64 / seconds;
                if let Some(of_direction) = of_direction {
                    latency.merge(&of_direction[LAT]);
                }
            }
        }
        Row {
            value: value.to_string(),
            iops,
            bytes_per_second,
            mean_ns: latency.mean(),
            percentiles_ns: [50.0, 99.0, 99.9].map(|percent| latency.percentile(percent)),
            errors,
        }
    }
}

/// Index of the row with the highest power; none when a latency is missing.
fn knee(rows: &[Row]) -> Option<usize> {
    let power = |row: &Row| (row.mean_ns > 0.0).then(|| row.iops / row.mean_ns);
    let powers: Vec<f64> = rows.iter().map(power).collect::<Option<Vec<_>>>()?;
    (0..rows.len()).max_by(|a, b| powers[*a].total_cmp(&powers[*b]))
}

/// The table.
pub(crate) fn report(sweep: &Sweep, rows: &[Row]) -> String {
    let us = |ns: f64| format!("{:.1}", ns / 1e3);
    let mut out = format!(
        "{:>12} {:>9} {:>12} {:>11} {:>11} {:>11} {:>11}\n",
        sweep.option, "IOPS", "BW", "avg (usec)", "p50 (usec)", "p99 (usec)", "p99.9"
    );
    let knee = knee(rows);
    for (index, row) in rows.iter().enumerate() {
        let [p50, p99, p999] = row.percentiles_ns.map(|ns| us(ns as f64));
        let _ = write!(
            out,
            "{:>12} {:>9} {:>12} {:>11} {p50:>11} {p99:>11} {p999:>11}",
            row.value,
            quantity(row.iops as u64, 4, false, ""),
            quantity(row.bytes_per_second as u64, 4, true, "B/s"),
            us(row.mean_ns)
        );
        let mark = if knee == Some(index) && rows.len() > 1 { "  <- knee" } else { "" };
        let errors = if row.errors > 0 { format!("  {} errors", row.errors) } else { String::new() };
        let _ = writeln!(out, "{mark}{errors}");
    }
    if let Some(knee) = knee.filter(|_| rows.len() > 1) {
        let at = format!("{}={}", sweep.option, rows[knee].value);
        let text = match knee {
            0 => format!("knee: at or below {at}: more only adds latency"),
            last if last + 1 == rows.len() => format!("knee: at or beyond {at}: try higher values"),
            _ => format!("knee: {at}: throughput over latency is highest"),
        };
        let _ = writeln!(out, "{text}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(depth: u64, iops: f64) -> Row {
        // Little's law: latency is depth over throughput.
        let mean_ns = depth as f64 / iops * 1e9;
        let (value, percentiles_ns) = (depth.to_string(), [mean_ns as u64; 3]);
        Row { value, iops, bytes_per_second: iops * 4096.0, mean_ns, percentiles_ns, errors: 0 }
    }

    #[test]
    fn the_knee_is_where_a_server_saturates() {
        let sweep = Sweep::parse("iodepth=1,2,4,8,16").unwrap();
        // 100 us per op, four servers: saturated from depth 4 on.
        let rows: Vec<Row> = [1, 2, 4, 8, 16].map(|depth| row(depth, 10_000.0 * (depth.min(4)) as f64)).into();
        let text = report(&sweep, &rows);
        assert_eq!(knee(&rows), Some(2));
        assert!(text.lines().nth(3).unwrap().ends_with("<- knee"), "{text}");
        assert!(text.ends_with("knee: iodepth=4: throughput over latency is highest\n"));
        assert!(report(&sweep, &rows[..2]).contains("try higher values"));
    }

    #[test]
    fn a_sweep_needs_an_option_and_values() {
        assert!(Sweep::parse("iodepth").is_err());
        assert!(Sweep::parse("iodepth=1,,2").is_err());
    }
}
