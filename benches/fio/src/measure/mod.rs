//! What is counted while a job runs.
//!
//! Owned by the job's thread, no locks: [`JobStats`] is handed over when the job ends, or copied when somebody asks for
//! a status in between. Recording a latency is an increment in an HdrHistogram with 3 significant digits, about 5 ns.
//!
//! Latencies, in nanoseconds, as fio defines them but for one thing:
//! - submission (slat): from when the op was made to when the engine had taken it;
//! - completion (clat): from there to when its completion was seen;
//! - total (lat): from the op's *intended* start to when its completion was seen. For a rated job that is the time in
//!   the schedule, even if the job was late: waiting behind slow ops is not omitted. Else it is slat + clat.

use hdrhistogram::Histogram;

use crate::engine::Findings;

pub(crate) mod cpu;
pub(crate) mod log;
mod samples;

pub(crate) use cpu::CpuUsage;
pub(crate) use samples::{Sampler, Series, Spread};

/// Highest latency that is told apart: an hour.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

/// Submission, completion, total: indices into arrays of latencies.
pub(crate) const SLAT: usize = 0;
pub(crate) const CLAT: usize = 1;
pub(crate) const LAT: usize = 2;

/// A distribution of latencies in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Latency {
    histogram: Histogram<u64>,
    min: u64,
    max: u64,
    sum: u64,
}

impl Default for Latency {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are valid constants");
        Latency { histogram, min: u64::MAX, max: 0, sum: 0 }
    }
}

impl Latency {
    #[inline]
    pub(crate) fn record(&mut self, ns: u64) {
        self.histogram.saturating_record(ns);
        self.min = self.min.min(ns);
        self.max = self.max.max(ns);
        self.sum += ns;
    }

    pub(crate) fn merge(&mut self, other: &Latency) {
        self.histogram.add(&other.histogram).expect("all histograms have the same bounds");
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.sum += other.sum;
    }

    pub(crate) fn count(&self) -> u64 {
        self.histogram.len()
    }

    pub(crate) fn min(&self) -> u64 {
        if self.count() == 0 { 0 } else { self.min }
    }

    pub(crate) fn max(&self) -> u64 {
        self.max
    }

    pub(crate) fn mean(&self) -> f64 {
        if self.count() == 0 { 0.0 } else { self.sum as f64 / self.count() as f64 }
    }

    pub(crate) fn deviation(&self) -> f64 {
        if self.count() < 2 { 0.0 } else { self.histogram.stdev() }
    }

    /// The value that so many percent do not exceed, to 3 digits.
    pub(crate) fn percentile(&self, percent: f64) -> u64 {
        self.histogram.value_at_percentile(percent).clamp(self.min(), self.max)
    }

    /// Bins that are not empty: highest value, count.
    pub(crate) fn bins(&self) -> impl Iterator<Item = (u64, u64)> {
        self.histogram.iter_recorded().map(|bin| (bin.value_iterated_to(), bin.count_at_value()))
    }
}

/// One direction.
#[derive(Clone, Debug, Default)]
pub(crate) struct DirectionStats {
    pub ops: u64,
    pub bytes: u64,
    /// Completed with fewer bytes than asked for.
    pub short_ops: u64,
    pub errors: u64,
    /// By [`SLAT`], [`CLAT`], [`LAT`]; nothing is allocated for a direction that does not occur.
    pub latency: Option<Box<[Latency; 3]>>,
    pub series: Series,
}

impl DirectionStats {
    pub(crate) fn new() -> Self {
        DirectionStats { latency: Some(Box::default()), ..DirectionStats::default() }
    }

    fn merge(&mut self, other: &DirectionStats) {
        self.ops += other.ops;
        self.bytes += other.bytes;
        self.short_ops += other.short_ops;
        self.errors += other.errors;
        if let Some(theirs) = &other.latency {
            let ours = self.latency.get_or_insert_default();
            ours.iter_mut().zip(theirs.iter()).for_each(|(ours, theirs)| ours.merge(theirs));
        }
        self.series.merge(&other.series);
    }
}

/// How often something was at 1, 2, 4, ... 64: fio's seven steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Steps(pub [u64; 7]);

impl Steps {
    /// Of the depth: 1, 2-3, 4-7, 8-15, 16-31, 32-63, 64 and more.
    #[inline]
    pub(crate) fn count_depth(&mut self, depth: usize, ops: u64) {
        self.0[(depth.max(1).ilog2() as usize).min(6)] += ops;
    }

    /// Of a batch: 0, 1-4, 5-8, 9-16, 17-32, 33-64, more.
    #[inline]
    pub(crate) fn count_batch(&mut self, batch: usize) {
        let step = match batch {
            0 => 0,
            1..=4 => 1,
            _ => ((batch - 1).ilog2() as usize).min(6),
        };
        self.0[step] += 1;
    }

    fn merge(&mut self, other: &Steps) {
        self.0.iter_mut().zip(other.0).for_each(|(ours, theirs)| *ours += theirs);
    }

    /// Shares in percent.
    pub(crate) fn percent(&self) -> [f64; 7] {
        let whole: u64 = self.0.iter().sum();
        // What occurred is at least 0.1, as in fio: 0.0 is for what did not.
        self.0.map(|count| if count == 0 { 0.0 } else { (count as f64 * 100.0 / whole as f64).max(0.1) })
    }
}

/// The first error of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FirstError {
    /// Error number of the system, or of the engine.
    pub code: i64,
    /// What happened, to what.
    pub text: String,
}

/// What verification found.
#[derive(Clone, Debug, Default)]
pub(crate) struct VerifyStats {
    pub checked: u64,
    pub wrong: u64,
    /// The first few, one sentence each.
    pub reports: Vec<String>,
}

impl VerifyStats {
    pub(crate) const REPORTS_MAX: usize = 10;

    pub(crate) fn count(&mut self, report: Option<String>) {
        self.checked += 1;
        if let Some(report) = report {
            self.wrong += 1;
            if self.reports.len() < Self::REPORTS_MAX {
                self.reports.push(report);
            }
        }
    }
}

/// Everything that one clone counted, or that several did together.
#[derive(Clone, Debug, Default)]
pub(crate) struct JobStats {
    /// Reads and writes.
    pub directions: [DirectionStats; 2],
    pub syncs: Option<Box<Latency>>,
    pub depth: Steps,
    pub submit: Steps,
    pub complete: Steps,
    /// Measured time; the longest, of several clones.
    pub runtime_ns: u64,
    /// Measured times of all clones together: what shares of CPU refer to.
    pub clone_runtime_ns: u64,
    pub cpu: CpuUsage,
    pub first_error: Option<FirstError>,
    /// Errors in each second from the start of measuring.
    pub errors_per_second: Vec<u32>,
    pub verify: Option<VerifyStats>,
    /// What the engine found out itself.
    pub findings: Findings,
    pub thread_id: i32,
    pub clones: u32,
}

impl JobStats {
    pub(crate) fn merge(&mut self, other: &JobStats) {
        self.directions.iter_mut().zip(&other.directions).for_each(|(ours, theirs)| ours.merge(theirs));
        if let Some(theirs) = &other.syncs {
            self.syncs.get_or_insert_default().merge(theirs);
        }
        self.depth.merge(&other.depth);
        self.submit.merge(&other.submit);
        self.complete.merge(&other.complete);
        self.runtime_ns = self.runtime_ns.max(other.runtime_ns);
        self.clone_runtime_ns += other.clone_runtime_ns;
        self.cpu.add(&other.cpu);
        if self.first_error.is_none() {
            self.first_error.clone_from(&other.first_error);
        }
        let seconds = self.errors_per_second.len().max(other.errors_per_second.len());
        self.errors_per_second.resize(seconds, 0);
        self.errors_per_second.iter_mut().zip(&other.errors_per_second).for_each(|(ours, theirs)| *ours += theirs);
        if let Some(theirs) = &other.verify {
            let ours = self.verify.get_or_insert_default();
            ours.checked += theirs.checked;
            ours.wrong += theirs.wrong;
            let room = VerifyStats::REPORTS_MAX - ours.reports.len();
            ours.reports.extend(theirs.reports.iter().take(room).cloned());
        }
        self.findings.merge(&other.findings);
        if self.thread_id == 0 {
            self.thread_id = other.thread_id;
        }
        self.clones += other.clones;
    }

    pub(crate) fn errors(&self) -> u64 {
        self.directions.iter().map(|direction| direction.errors).sum()
    }

    /// One failed op, this long after measuring began.
    pub(crate) fn count_error(&mut self, since_start_ns: u64) {
        let second = (since_start_ns / 1_000_000_000).min(1 << 20) as usize;
        if self.errors_per_second.len() <= second {
            self.errors_per_second.resize(second + 1, 0);
        }
        self.errors_per_second[second] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_agree_with_sorting_to_three_digits() {
        let mut rng = crate::pattern::Rng::new(1);
        let mut latency = Latency::default();
        let mut draw = || {
            let bits = 10 + rng.below(20);
            100 + rng.below(1 << bits)
        };
        let mut values: Vec<u64> = (0..50_000).map(|_| draw()).collect();
        values.iter().for_each(|value| latency.record(*value));
        values.sort_unstable();
        for percent in [1.0, 50.0, 90.0, 99.0, 99.9] {
            let exact = values[(values.len() as f64 * percent / 100.0).ceil() as usize - 1] as f64;
            let got = latency.percentile(percent) as f64;
            assert!((got / exact - 1.0).abs() < 0.002, "{percent}: {got} for {exact}");
        }
        assert_eq!((latency.min(), latency.max()), (values[0], values[values.len() - 1]));
        let mean = values.iter().sum::<u64>() as f64 / values.len() as f64;
        assert!((latency.mean() - mean).abs() < 1e-6);
        assert_eq!(latency.bins().map(|bin| bin.1).sum::<u64>(), 50_000);
    }

    /// Not part of every run: it is a measurement. `cargo test --release -- --ignored --nocapture recording`
    #[test]
    #[ignore = "a measurement"]
    fn recording_costs_less_than_20_ns() {
        let mut rng = crate::pattern::Rng::new(1);
        let values: Vec<u64> = (0..4096).map(|_| 50_000 + rng.below(400_000)).collect();
        let mut latency = Latency::default();
        let rounds = 5000;
        let began = std::time::Instant::now();
        for _ in 0..rounds {
            values.iter().for_each(|value| latency.record(std::hint::black_box(*value)));
        }
        let ns = began.elapsed().as_nanos() as f64 / (rounds * values.len()) as f64;
        println!("{ns:.1} ns per recorded latency");
        assert!(ns < 20.0, "{ns}");
    }

    #[test]
    fn steps_are_those_of_fio() {
        let mut depth = Steps::default();
        for value in [1, 2, 3, 8, 63, 64, 200] {
            depth.count_depth(value, 1);
        }
        assert_eq!(depth.0, [1, 2, 0, 1, 0, 1, 2]);
        let mut batch = Steps::default();
        for value in [0, 1, 4, 5, 8, 16, 17, 33, 64, 65] {
            batch.count_batch(value);
        }
        assert_eq!(batch.0, [1, 2, 2, 1, 1, 2, 1]);
    }

    #[test]
    fn merging_is_counting_together() {
        let (mut a, mut b, mut both) = (DirectionStats::new(), DirectionStats::new(), DirectionStats::new());
        for value in 1..1000u64 {
            let (one, other) = if value % 3 == 0 { (&mut a, &mut both) } else { (&mut b, &mut both) };
            for stats in [one, other] {
                stats.ops += 1;
                stats.latency.as_mut().unwrap()[CLAT].record(value * 1000);
            }
        }
        a.merge(&b);
        let (merged, whole) = (&a.latency.unwrap()[CLAT], &both.latency.unwrap()[CLAT]);
        assert_eq!((a.ops, merged.count(), merged.percentile(99.0)), (999, 999, whole.percentile(99.0)));
    }
}
