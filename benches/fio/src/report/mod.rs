//! Reports: what a run counted, as people and programs read it.
//!
//! Pure: text from results. `normal` is fio's human form, `json` its JSON (and json+ with bins), `terse` its version 3;
//! `live` draws the line on the terminal while jobs run. Called by the command line.

use crate::engine::Figure;
use crate::measure::{CLAT, JobStats, Spread};
use crate::run::CloneResult;

pub(crate) mod json;
pub(crate) mod live;
pub(crate) mod normal;
mod numbers;
pub(crate) mod terse;

pub(crate) use numbers::{decimal, quantity};

/// Who made the report.
pub(crate) const VERSION: &str = concat!("heliostat-", env!("CARGO_PKG_VERSION"));

/// Labels of fio's latency steps, exclusive upper ends; milliseconds go on.
const STEPS: [u64; 10] = [2, 4, 10, 20, 50, 100, 250, 500, 750, 1000];

/// One entry of a report: a clone, or a group together.
pub(crate) struct Entry<'a, 'e> {
    pub result: &'a CloneResult<'e>,
    /// Of all its clones.
    pub stats: JobStats,
    /// Bytes per second of all entries of its group, of reads and writes.
    pub group_bandwidth: [f64; 2],
}

/// Entries in order: with `group_reporting` all clones of a group that ask for it are one, named after the first.
pub(crate) fn entries<'a, 'e>(results: &'a [CloneResult<'e>]) -> Vec<Entry<'a, 'e>> {
    let mut entries: Vec<Entry<'a, 'e>> = Vec::new();
    for result in results {
        let together = |entry: &&mut Entry<'_, '_>| {
            let (theirs, ours) = (&entry.result.job, &result.job);
            theirs.group == ours.group && theirs.options.group_reporting && ours.options.group_reporting
        };
        match entries.iter_mut().find(together) {
            Some(entry) => entry.stats.merge(&result.stats),
            None => entries.push(Entry { result, stats: result.stats.clone(), group_bandwidth: [0.0; 2] }),
        }
    }
    for entry in &mut entries {
        let group = entry.result.job.group;
        entry.group_bandwidth = [0, 1].map(|direction| GroupSummary::of(results, group, direction).bytes_per_second());
    }
    entries
}

/// A direction of a group of clones.
#[derive(Default)]
pub(crate) struct GroupSummary {
    pub bytes: u64,
    /// Bytes per second of the slowest and the fastest clone.
    pub bandwidth: (f64, f64),
    pub runtime_ms: (u64, u64),
}

impl GroupSummary {
    pub(crate) fn of(results: &[CloneResult<'_>], group: usize, direction: usize) -> GroupSummary {
        let mut of_clones = results
            .iter()
            .filter(|result| result.job.group == group && result.stats.directions[direction].ops > 0)
            .map(|result| {
                let (bytes, runtime_ns) = (result.stats.directions[direction].bytes, result.stats.runtime_ns);
                (bytes, bytes as f64 * 1e9 / runtime_ns as f64, runtime_ns / 1_000_000)
            });
        let Some((bytes, bandwidth, runtime)) = of_clones.next() else { return GroupSummary::default() };
        let first = GroupSummary { bytes, bandwidth: (bandwidth, bandwidth), runtime_ms: (runtime, runtime) };
        of_clones.fold(first, |all, (bytes, bandwidth, runtime)| GroupSummary {
            bytes: all.bytes + bytes,
            bandwidth: (all.bandwidth.0.min(bandwidth), all.bandwidth.1.max(bandwidth)),
            runtime_ms: (all.runtime_ms.0.min(runtime), all.runtime_ms.1.max(runtime)),
        })
    }

    /// All bytes over the longest runtime.
    pub(crate) fn bytes_per_second(&self) -> f64 {
        if self.bytes == 0 { 0.0 } else { self.bytes as f64 * 1000.0 / self.runtime_ms.1.max(1) as f64 }
    }
}

/// Rates of one direction.
pub(crate) struct Rates {
    pub bytes_per_second: f64,
    pub iops: f64,
    pub runtime_ms: u64,
    pub bandwidth: Spread,
    pub samples: Spread,
    /// Mean of the samples in percent of the group's bandwidth.
    pub share: f64,
}

impl Entry<'_, '_> {
    pub(crate) fn rates(&self, direction: usize) -> Rates {
        let stats = &self.stats.directions[direction];
        let seconds = self.stats.runtime_ns as f64 / 1e9;
        let bandwidth = Spread::of(&stats.series.bandwidth);
        let group = self.group_bandwidth[direction] / 1024.0;
        Rates {
            bytes_per_second: if seconds > 0.0 { stats.bytes as f64 / seconds } else { 0.0 },
            iops: if seconds > 0.0 { stats.ops as f64 / seconds } else { 0.0 },
            runtime_ms: if stats.ops > 0 { self.stats.runtime_ns / 1_000_000 } else { 0 },
            share: if group > 0.0 { (bandwidth.mean * 100.0 / group).min(100.0) } else { 0.0 },
            bandwidth,
            samples: Spread::of(&stats.series.iops),
        }
    }

    /// Shares of completion latencies in percent: in nanoseconds, microseconds (10 steps each), milliseconds (12).
    pub(crate) fn latency_steps(&self) -> ([f64; 10], [f64; 10], [f64; 12]) {
        let (mut ns, mut us, mut ms) = ([0.0; 10], [0.0; 10], [0.0; 12]);
        let mut whole = 0.0;
        for latency in self.stats.directions.iter().filter_map(|direction| direction.latency.as_ref()) {
            for (value, count) in latency[CLAT].bins() {
                let count = count as f64;
                whole += count;
                let step = |value: u64| STEPS.iter().position(|end| value < *end);
                if let Some(step) = step(value) {
                    ns[step] += count;
                } else if let Some(step) = step(value / 1000) {
                    us[step] += count;
                } else {
                    let value = value / 1_000_000;
                    ms[step(value).unwrap_or(if value < 2000 { 10 } else { 11 })] += count;
                }
            }
        }
        let percent = 100.0 / f64::max(whole, 1.0);
        let shares = ns.iter_mut().chain(&mut us).chain(&mut ms).filter(|count| **count > 0.0);
        // What occurred is at least 0.01, as in fio.
        shares.for_each(|count| *count = (*count * percent).max(0.01));
        (ns, us, ms)
    }

    /// CPU time in percent of the measured time: user, system.
    pub(crate) fn cpu_percent(&self) -> (f64, f64) {
        let runtime_us = self.stats.clone_runtime_ns as f64 / 1e3;
        let share = |us: u64| if runtime_us > 0.0 { (us as f64 * 100.0 / runtime_us).min(100.0) } else { 0.0 };
        (share(self.stats.cpu.user_us), share(self.stats.cpu.system_us))
    }

    /// A figure of the engine as the report shows it: per second of the measured time, or the mean.
    pub(crate) fn figure(&self, figure: &Figure) -> f64 {
        match figure.count {
            None => figure.total * 1e9 / self.stats.runtime_ns.max(1) as f64,
            Some(0) => 0.0,
            Some(count) => figure.total / count as f64,
        }
    }

    /// Error number as fio reports it: positive, 0 for none.
    pub(crate) fn error_code(&self) -> i64 {
        self.stats.first_error.as_ref().map_or(0, |error| error.code.abs())
    }
}

#[cfg(test)]
pub(crate) mod tests;
