//! When rated ops should start: `rate`, `rate_iops`, `rate_process`.
//!
//! Pure. Times are nanoseconds from any origin. The schedule does not wait for the job: an op that could not start on
//! time keeps its intended start, and its latency counts from there (no coordinated omission; Tene, "How NOT to measure
//! latency").

use crate::job::{Job, RateProcess};
use crate::pattern::Rng;

pub(crate) struct Pacer {
    /// Of reads and of writes: nothing when they are not rated.
    rates: [Option<Rate>; 2],
    process: RateProcess,
    rng: Rng,
}

#[derive(Clone, Copy)]
struct Rate {
    next_ns: f64,
    ns_per_op: f64,
    ns_per_byte: f64,
}

impl Pacer {
    pub(crate) fn new(job: &Job<'_>, seed: u64, now_ns: u64) -> Option<Pacer> {
        let rates = [0, 1].map(|direction| {
            let rate = |ns_per_op, ns_per_byte| Some(Rate { next_ns: now_ns as f64, ns_per_op, ns_per_byte });
            match (job.options.rate_ops[direction], job.options.rate_bytes[direction]) {
                (Some(ops), _) => rate(1e9 / ops as f64, 0.0),
                (None, Some(bytes)) => rate(0.0, 1e9 / bytes as f64),
                (None, None) => None,
            }
        });
        job.is_rated().then(|| Pacer { rates, process: job.options.rate_process, rng: Rng::new(!seed) })
    }

    /// When the next op of that direction should start; nothing when it is not rated.
    #[inline]
    pub(crate) fn next(&mut self, direction: usize, bytes: u32) -> Option<u64> {
        let rate = self.rates[direction].as_mut()?;
        let intended = rate.next_ns as u64;
        let interval = rate.ns_per_op + rate.ns_per_byte * f64::from(bytes);
        rate.next_ns += match self.process {
            RateProcess::Linear => interval,
            RateProcess::Poisson => interval * -(1.0 - self.rng.unit()).ln(),
        };
        Some(intended)
    }

    /// Moves the schedule: the job paused on purpose.
    pub(crate) fn shift(&mut self, ns: u64) {
        self.rates.iter_mut().flatten().for_each(|rate| rate.next_ns += ns as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::null::Null;
    use crate::job::parse_job_file;

    fn starts(text: &str, count: usize) -> Vec<u64> {
        let set =
            parse_job_file(&format!("[a]\nioengine=null\nsize=1m\n{text}"), &[&Null]).unwrap_or_else(|e| panic!("{e}"));
        let mut pacer = Pacer::new(&set.jobs[0], 3, 1000).unwrap();
        (0..count).map(|_| pacer.next(0, 4096).unwrap()).collect()
    }

    #[test]
    fn a_linear_rate_is_a_ruler() {
        assert_eq!(starts("rate_iops=1000", 4), [1000, 1_001_000, 2_001_000, 3_001_000]);
        assert_eq!(starts("rate=4m", 3), [1000, 977_562, 1_954_125]);
    }

    #[test]
    fn a_poisson_process_has_the_rate_and_the_spread_of_its_law() {
        let starts = starts("rate_iops=1000\nrate_process=poisson", 50_001);
        let gaps: Vec<f64> = starts.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean / 1e6 - 1.0).abs() < 0.02, "{mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.03);
    }
}
