//! fio's human form, line for line.

use std::fmt::Write;

use super::{Entry, GroupSummary, STEPS, entries, quantity};
use crate::engine::Figure;
use crate::job::{Job, JobSet};
use crate::measure::{CLAT, LAT, Latency, SLAT};
use crate::run::CloneResult;

/// What is printed before jobs start.
pub(crate) fn opening(set: &JobSet<'_>) -> String {
    let mut out = String::new();
    for job in &set.jobs {
        let size = |direction: usize| format!("{}B-{}B", job.blocks[direction].min(), job.blocks[direction].max());
        let (read, write) = (size(0), size(1));
        let _ = writeln!(
            out,
            "{}: (g={}): rw={}, bs=(R) {read}, (W) {write}, (T) {write}, ioengine={}, iodepth={}",
            job.name,
            job.group,
            direction_text(job),
            job.engine_text(),
            job.depth
        );
        if job.options.clones > 1 {
            out.push_str("...\n");
        }
    }
    let clones: u32 = set.jobs.iter().map(|job| job.options.clones).sum();
    let _ = writeln!(out, "{}", super::VERSION);
    let _ = writeln!(out, "Starting {clones} thread{}", if clones == 1 { "" } else { "s" });
    out
}

/// `randread`, `rw`, ...
pub(crate) fn direction_text(job: &Job<'_>) -> &'static str {
    let direction = job.options.direction;
    match (direction.random, direction.read, direction.write) {
        (false, true, false) => "read",
        (false, false, _) => "write",
        (false, true, true) => "rw",
        (true, true, false) => "randread",
        (true, false, _) => "randwrite",
        (true, true, true) => "randrw",
    }
}

/// The whole report; `time` is when it was made.
pub(crate) fn report(results: &[CloneResult<'_>], time: &str) -> String {
    let mut out = String::from("\n");
    for entry in entries(results) {
        one(&mut out, &entry, time);
    }
    let mut groups: Vec<usize> = results.iter().map(|result| result.job.group).collect();
    groups.dedup();
    for group in groups {
        let _ = writeln!(out, "\nRun status group {group} (all jobs):");
        for (direction, name) in ["   READ", "  WRITE"].into_iter().enumerate() {
            let summary = GroupSummary::of(results, group, direction);
            if summary.bytes == 0 {
                continue;
            }
            let both = |value: f64| (quantity(value as u64, 4, true, "B/s"), quantity(value as u64, 4, false, "B/s"));
            let (of_all, slowest, fastest) =
                (both(summary.bytes_per_second()), both(summary.bandwidth.0), both(summary.bandwidth.1));
            let _ = writeln!(
                out,
                "{name}: bw={} ({}), {}-{} ({}-{}), io={} ({}), run={}-{}msec",
                of_all.0,
                of_all.1,
                slowest.0,
                fastest.0,
                slowest.1,
                fastest.1,
                quantity(summary.bytes, 4, true, "B"),
                quantity(summary.bytes, 4, false, "B"),
                summary.runtime_ms.0,
                summary.runtime_ms.1
            );
        }
    }
    out
}

fn one(out: &mut String, entry: &Entry<'_, '_>, time: &str) {
    let (job, stats) = (&entry.result.job, &entry.stats);
    let error = match &stats.first_error {
        None => "err= 0".to_string(),
        Some(error) => format!("err={:2} ({})", error.code.abs(), error.text),
    };
    let _ = writeln!(
        out,
        "{}: (groupid={}, jobs={}): {error}: pid={}: {time}",
        job.name, job.group, stats.clones, stats.thread_id
    );
    if let Some(description) = &job.options.description {
        let _ = writeln!(out, "  Description  : [{description}]");
    }
    for (direction, name) in ["read", "write"].into_iter().enumerate() {
        if stats.directions[direction].ops > 0 {
            one_direction(out, entry, direction, name);
        }
    }
    latency_steps(out, entry);
    if let Some(latency) = &stats.syncs {
        out.push_str("  fsync/fdatasync/sync_file_range:\n");
        spread_line(out, "    sync", latency);
        percentiles(out, "    sync", latency, &job.options.percentiles);
    }
    let (user, system) = entry.cpu_percent();
    let cpu = &stats.cpu;
    let _ = writeln!(
        out,
        "  cpu          : usr={user:.2}%, sys={system:.2}%, ctx={}, majf={}, minf={}",
        cpu.context_switches, cpu.major_faults, cpu.minor_faults
    );
    let steps = |labels: [&str; 7], shares: [f64; 7]| {
        let parts = labels.iter().zip(shares).map(|(label, share)| format!("{label}={share:.1}%"));
        parts.collect::<Vec<_>>().join(", ")
    };
    let batch = ["0", "4", "8", "16", "32", "64", ">=64"];
    let _ =
        writeln!(out, "  IO depths    : {}", steps(["1", "2", "4", "8", "16", "32", ">=64"], stats.depth.percent()));
    let _ = writeln!(out, "     submit    : {}", steps(batch, stats.submit.percent()));
    let _ = writeln!(out, "     complete  : {}", steps(batch, stats.complete.percent()));
    let [read, write] = &stats.directions;
    let _ = writeln!(
        out,
        "     issued rwts: total={},{},0,{} short={},{},0,0 dropped=0,0,0,0",
        read.ops,
        write.ops,
        stats.syncs.as_ref().map_or(0, |latency| latency.count()),
        read.short_ops,
        write.short_ops
    );
    if stats.errors() > 0 {
        let seconds: Vec<String> = stats.errors_per_second.iter().take(60).map(u32::to_string).collect();
        let more = if stats.errors_per_second.len() > 60 { ", ..." } else { "" };
        let _ = writeln!(out, "     errors    : total={}, per second=[{}{more}]", stats.errors(), seconds.join(", "));
    }
    let figure = |figure: &Figure| match (entry.figure(figure), figure.count) {
        (rate, None) => format!("{}={rate:.1}/s", figure.name),
        // Four digits: a recall of 0.9987 is not one of 1.00.
        (mean, Some(_)) => format!("{}={mean:.digits$}", figure.name, digits = if mean < 10.0 { 4 } else { 1 }),
    };
    for (line, figures) in stats.findings.figures.chunks(4).enumerate() {
        let label = if line == 0 { "     engine    :" } else { "               " };
        let _ = writeln!(out, "{label} {}", figures.iter().map(figure).collect::<Vec<_>>().join(", "));
    }
    for note in &stats.findings.notes {
        let _ = writeln!(out, "     note      : {note}");
    }
    if let Some(found) = &stats.verify {
        let _ = writeln!(out, "     verify    : checked={}, wrong={}", found.checked, found.wrong);
        for report in &found.reports {
            let _ = writeln!(out, "       {report}");
        }
    }
    let _ = writeln!(out, "     latency   : target=0, window=0, percentile=100.00%, depth={}", job.depth);
}

fn one_direction(out: &mut String, entry: &Entry<'_, '_>, direction: usize, name: &str) {
    let (job, stats) = (&entry.result.job, &entry.stats.directions[direction]);
    let rates = entry.rates(direction);
    let figures = job.options.significant_figures;
    let _ = writeln!(
        out,
        "  {name}: IOPS={}, BW={} ({})({}/{}msec)",
        quantity(rates.iops as u64, figures, false, ""),
        quantity(rates.bytes_per_second as u64, figures, true, "B/s"),
        quantity(rates.bytes_per_second as u64, figures, false, "B/s"),
        quantity(stats.bytes, figures, true, "B"),
        rates.runtime_ms
    );
    if let Some(latency) = &stats.latency {
        for (kind, label) in [(SLAT, "    slat"), (CLAT, "    clat"), (LAT, "     lat")] {
            if latency[kind].count() > 0 {
                spread_line(out, label, &latency[kind]);
            }
        }
        for (kind, label) in [(SLAT, "    slat"), (CLAT, "    clat"), (LAT, "    lat")] {
            if job.percentiles_of[kind] && latency[kind].count() > 0 {
                percentiles(out, label, &latency[kind], &job.options.percentiles);
            }
        }
    }
    if rates.bandwidth.count > 0 {
        let bandwidth = rates.bandwidth;
        // Above a GiB/s fio changes to MiB.
        let (unit, scale) = if bandwidth.mean > 1_048_576.0 { ("MiB", 1024) } else { ("KiB", 1) };
        let _ = writeln!(
            out,
            "   bw (  {unit}/s): min={:5}, max={:5}, per={:3.2}%, avg={:5.2}, stdev={:5.2}, samples={}",
            bandwidth.min / scale,
            bandwidth.max / scale,
            rates.share,
            bandwidth.mean / scale as f64,
            bandwidth.deviation / scale as f64,
            bandwidth.count
        );
        let iops = rates.samples;
        let _ = writeln!(
            out,
            "   iops        : min={:5}, max={:5}, avg={:5.2}, stdev={:5.2}, samples={}",
            iops.min, iops.max, iops.mean, iops.deviation, iops.count
        );
    }
}

/// Nanoseconds per unit and the unit in which a latency from `min` to `max` reads best.
fn unit(min: u64, max: u64) -> (u64, &'static str) {
    match (min, max) {
        (2_000_001.., 100_000_000..) => (1_000_000, "msec"),
        (2_001.., 100_000..) => (1_000, "usec"),
        _ => (1, "nsec"),
    }
}

fn spread_line(out: &mut String, label: &str, latency: &Latency) {
    let (scale, unit) = match unit(latency.min(), latency.max()) {
        (scale, unit) if latency.deviation() > scale as f64 => (scale, unit),
        _ => (1, "nsec"),
    };
    let _ = writeln!(
        out,
        "{label} ({unit}): min={}, max={}, avg={:5.2}, stdev={:5.2}",
        quantity(latency.min() / scale, 6, false, ""),
        quantity(latency.max() / scale, 6, false, ""),
        latency.mean() / scale as f64,
        latency.deviation() / scale as f64
    );
}

fn percentiles(out: &mut String, label: &str, latency: &Latency, list: &[f64]) {
    let values: Vec<u64> = list.iter().map(|percent| latency.percentile(*percent)).collect();
    let (Some(first), Some(last)) = (values.first(), values.last()) else { return };
    let (scale, unit) = unit(*first, *last);
    let _ = writeln!(out, "{label} percentiles ({unit}):");
    let width = values.iter().map(|value| value.div_ceil(scale).to_string().len()).max().unwrap_or(5).max(5);
    let decimals = if list.iter().all(|percent| (percent * 100.0).fract() == 0.0) { 2 } else { 4 };
    for (line, (percents, values)) in list.chunks(4).zip(values.chunks(4)).enumerate() {
        let parts = percents.iter().zip(values).map(|(percent, value)| {
            format!("{percent:>digits$.decimals$}th=[{:>width$}]", value.div_ceil(scale), digits = decimals + 3)
        });
        let end = if (line + 1) * 4 < list.len() { "," } else { "" };
        let _ = writeln!(out, "     | {}{end}", parts.collect::<Vec<_>>().join(", "));
    }
}

fn latency_steps(out: &mut String, entry: &Entry<'_, '_>) {
    let (ns, us, ms) = entry.latency_steps();
    let below: Vec<String> = STEPS.iter().map(u64::to_string).collect();
    let mut of_ms = below.clone();
    of_ms.extend(["2000".into(), ">=2000".into()]);
    for (unit, labels, shares) in [("nsec", &below, &ns[..]), ("usec", &below, &us[..]), ("msec", &of_ms, &ms[..])] {
        let parts: Vec<String> = labels
            .iter()
            .zip(shares)
            .filter(|(_, share)| **share > 0.0)
            .map(|(label, share)| format!("{label}={share:3.2}%"))
            .collect();
        for line in parts.chunks(5) {
            let _ = writeln!(out, "  lat ({unit})   : {}", line.join(", "));
        }
    }
}
