//! Bandwidth and IOPS over time: one sample per interval and direction (fio's bwavgtime, 500 ms).

/// Samples of one direction, of equal intervals from the start of measuring.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Series {
    /// End of each interval, from the start of measuring.
    pub end_ms: Vec<u64>,
    /// KiB per second.
    pub bandwidth: Vec<u64>,
    pub iops: Vec<u64>,
}

/// Least, most, mean and deviation of samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Spread {
    pub min: u64,
    pub max: u64,
    pub mean: f64,
    pub deviation: f64,
    pub count: usize,
}

impl Spread {
    pub(crate) fn of(values: &[u64]) -> Spread {
        if values.is_empty() {
            return Spread::default();
        }
        let count = values.len() as f64;
        let mean = values.iter().sum::<u64>() as f64 / count;
        let squares: f64 = values.iter().map(|value| (*value as f64 - mean).powi(2)).sum();
        Spread {
            min: values.iter().copied().min().unwrap_or(0),
            max: values.iter().copied().max().unwrap_or(0),
            mean,
            deviation: if values.len() < 2 { 0.0 } else { (squares / (count - 1.0)).sqrt() },
            count: values.len(),
        }
    }
}

impl Series {
    /// Adds clones up, interval by interval.
    pub(crate) fn merge(&mut self, other: &Series) {
        if other.end_ms.len() > self.end_ms.len() {
            self.end_ms = other.end_ms.clone();
        }
        for (ours, theirs) in [(&mut self.bandwidth, &other.bandwidth), (&mut self.iops, &other.iops)] {
            ours.resize(ours.len().max(theirs.len()), 0);
            ours.iter_mut().zip(theirs).for_each(|(ours, theirs)| *ours += theirs);
        }
    }
}

/// Turns counts into samples.
#[derive(Clone, Debug)]
pub(crate) struct Sampler {
    interval_ns: u64,
    start_ns: u64,
    last_ns: u64,
    /// Ops and bytes of reads and writes at the last sample.
    before: [(u64, u64); 2],
}

impl Sampler {
    pub(crate) fn new(interval_ms: u64, start_ns: u64) -> Sampler {
        Sampler { interval_ns: interval_ms.saturating_mul(1_000_000), start_ns, last_ns: start_ns, before: [(0, 0); 2] }
    }

    /// Whether an interval is over.
    #[inline]
    pub(crate) fn is_due(&self, now_ns: u64) -> bool {
        now_ns - self.last_ns >= self.interval_ns
    }

    /// Takes a sample of one direction; `sampled` ends the interval when all directions were sampled.
    pub(crate) fn sample(
        &mut self,
        direction: usize,
        ops: u64,
        bytes: u64,
        now_ns: u64,
        series: &mut Series,
    ) -> (u64, u64) {
        let elapsed = (now_ns - self.last_ns).max(1) as f64 / 1e9;
        let (ops_before, bytes_before) = std::mem::replace(&mut self.before[direction], (ops, bytes));
        let bandwidth = ((bytes - bytes_before) as f64 / elapsed / 1024.0) as u64;
        let iops = ((ops - ops_before) as f64 / elapsed) as u64;
        series.end_ms.push((now_ns - self.start_ns) / 1_000_000);
        series.bandwidth.push(bandwidth);
        series.iops.push(iops);
        (bandwidth, iops)
    }

    pub(crate) fn sampled(&mut self, now_ns: u64) {
        self.last_ns = now_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_rates_of_their_interval() {
        let mut sampler = Sampler::new(500, 0);
        let mut series = Series::default();
        assert!(!sampler.is_due(499_999_999) && sampler.is_due(500_000_000));
        sampler.sample(0, 100, 409_600, 500_000_000, &mut series);
        sampler.sampled(500_000_000);
        sampler.sample(0, 400, 819_200, 1_000_000_000, &mut series);
        assert_eq!((series.iops.clone(), series.bandwidth.clone()), (vec![200, 600], vec![800, 800]));
        let spread = Spread::of(&series.iops);
        assert_eq!((spread.min, spread.max, spread.mean), (200, 600, 400.0));
        assert!((spread.deviation - 282.84).abs() < 0.01);
    }
}
