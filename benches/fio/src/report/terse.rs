//! fio's terse form, version 3: one line of semicolons per entry (HOWTO, "Terse output").

use std::fmt::Write;

use super::{Entry, VERSION, entries};
use crate::measure::{CLAT, LAT, Latency, SLAT};
use crate::run::CloneResult;

/// Percentiles are padded to this many fields.
const PERCENTILE_FIELDS: usize = 20;

/// The lines.
pub(crate) fn report(results: &[CloneResult<'_>]) -> String {
    entries(results).iter().map(one).collect()
}

fn one(entry: &Entry<'_, '_>) -> String {
    let (job, stats) = (&entry.result.job, &entry.stats);
    let mut out = format!("3;{VERSION};{};{};{}", job.name, job.group, entry.error_code());
    for direction in 0..2 {
        let of = &stats.directions[direction];
        let rates = entry.rates(direction);
        let kib_per_second = (rates.bytes_per_second / 1024.0) as u64;
        let _ = write!(out, ";{};{kib_per_second};{};{}", of.bytes >> 10, rates.iops as u64, rates.runtime_ms);
        let none = Latency::default();
        let latency = |kind: usize| of.latency.as_ref().map_or(&none, |latency| &latency[kind]);
        spread(&mut out, latency(SLAT));
        spread(&mut out, latency(CLAT));
        for field in 0..PERCENTILE_FIELDS {
            match job.options.percentiles.get(field) {
                Some(percent) if job.percentiles_of[CLAT] => {
                    let _ = write!(out, ";{percent:.6}%={}", latency(CLAT).percentile(*percent) / 1000);
                }
                _ => out.push_str(";0%=0"),
            }
        }
        spread(&mut out, latency(LAT));
        let bandwidth = rates.bandwidth;
        let _ = write!(
            out,
            ";{};{};{:.6}%;{:.6};{:.6}",
            bandwidth.min, bandwidth.max, rates.share, bandwidth.mean, bandwidth.deviation
        );
    }
    let (user, system) = entry.cpu_percent();
    let cpu = &stats.cpu;
    let _ = write!(out, ";{user:.6}%;{system:.6}%;{};{};{}", cpu.context_switches, cpu.major_faults, cpu.minor_faults);
    for share in stats.depth.percent() {
        let _ = write!(out, ";{share:.1}%");
    }
    let (_, us, ms) = entry.latency_steps();
    for share in us.iter().chain(&ms) {
        let _ = write!(out, ";{share:.2}%");
    }
    if job.options.continue_on_error.is_some() {
        let _ = write!(out, ";{};{}", stats.errors(), entry.error_code());
    }
    if let Some(description) = &job.options.description {
        let _ = write!(out, ";{description}");
    }
    out.push('\n');
    out
}

fn spread(out: &mut String, latency: &Latency) {
    let _ = write!(
        out,
        ";{};{};{:.6};{:.6}",
        latency.min() / 1000,
        latency.max() / 1000,
        latency.mean() / 1000.0,
        latency.deviation() / 1000.0
    );
}
