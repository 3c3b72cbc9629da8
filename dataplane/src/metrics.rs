//! What the cell counts, and how it is shown: per-core counters and latency histograms as Prometheus text.
//!
//! Owns [`Metrics`] (one [`CoreCounters`] per core, the session and load counts) and [`Recorder`], the core's own
//! latency histogram. The HTTP side is `server::metrics_http`.
//!
//! Invariants
//! - Nothing here makes a request wait: counters are atomics that one core writes; latencies go into a histogram
//!   that only its core touches, and which that core hands over once a second ([`Recorder::flush`]).
//!
//! Called by sessions and requests (counting), by the control thread (rendering).

use std::cell::RefCell;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

/// Longest latency a histogram tells apart, in microseconds (one hour).
const LATENCY_US_MAX: u64 = 3_600_000_000;

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident $kind:literal,)+) => {
        /// What one core counted since the start. Written by that core, read by anyone.
        #[derive(Debug, Default)]
        pub struct CoreCounters { $($(#[doc = $doc])+ pub $name: AtomicU64,)+ }

        impl CoreCounters {
            const DESCRIPTIONS: &'static [(&'static str, &'static str, &'static str)] =
                &[$((stringify!($name), $kind, concat!($($doc),+)),)+];

            fn values(&self) -> Vec<u64> { vec![$(self.$name.load(Relaxed)),+] }
        }
    };
}

counters! {
    /// Requests that ended, of every kind.
    requests_total "counter",
    /// Requests that ended with an error.
    request_errors_total "counter",
    /// Rows returned to clients.
    rows_returned_total "counter",
    /// Bytes of results returned to clients.
    returned_bytes_total "counter",
    /// Rows taken in by loads.
    rows_loaded_total "counter",
    /// Rows deleted.
    rows_deleted_total "counter",
    /// Payload bytes taken in by loads.
    loaded_bytes_total "counter",
    /// Reads of the device (their rate is the IOPS).
    device_reads_total "counter",
    /// Bytes read from the device.
    device_read_bytes_total "counter",
    /// Writes to the device.
    device_writes_total "counter",
    /// Bytes written to the device.
    device_written_bytes_total "counter",
    /// Chunks found in the block cache.
    cache_hits_total "counter",
    /// Chunks not found in the block cache.
    cache_misses_total "counter",
    /// Bytes in the block cache.
    cache_bytes "gauge",
    /// Sessions on this core.
    sessions "gauge",
    /// Requests under way on this core.
    requests_in_flight "gauge",
}

/// Everything the cell counts.
#[derive(Debug)]
pub struct Metrics {
    cores: Vec<Arc<CoreCounters>>,
    latencies: Vec<Arc<Mutex<Latencies>>>,
    /// Sessions refused because there were too many.
    pub sessions_refused: AtomicU64,
    /// Connections closed because they broke the protocol.
    pub protocol_errors: AtomicU64,
    /// RDMA links that ended because a checksum or MAC of what arrived was wrong.
    pub links_corrupted: AtomicU64,
    /// Loads open now.
    pub loads_open: AtomicU64,
    /// Segments merged away in the background.
    pub segments_merged: AtomicU64,
}

#[derive(Debug)]
struct Latencies {
    histogram: Histogram<u64>,
    sum_us: u64,
}

fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 2).expect("1 < 2 * 1 <= LATENCY_US_MAX and 2 digits are within 0..=5")
}

impl Metrics {
    /// Counters for so many cores.
    pub fn new(cores: usize) -> Self {
        let latencies = || Arc::new(Mutex::new(Latencies { histogram: new_histogram(), sum_us: 0 }));
        Metrics {
            cores: (0..cores).map(|_| Arc::default()).collect(),
            latencies: (0..cores).map(|_| latencies()).collect(),
            sessions_refused: AtomicU64::new(0),
            protocol_errors: AtomicU64::new(0),
            links_corrupted: AtomicU64::new(0),
            loads_open: AtomicU64::new(0),
            segments_merged: AtomicU64::new(0),
        }
    }

    /// The counters of one core.
    pub fn core(&self, core: usize) -> &Arc<CoreCounters> {
        &self.cores[core % self.cores.len()]
    }

    /// The core's recorder; made on the core, once.
    pub fn recorder(&self, core: usize) -> Recorder {
        let core = core % self.cores.len();
        Recorder {
            counters: self.cores[core].clone(),
            local: RefCell::new(Latencies { histogram: new_histogram(), sum_us: 0 }),
            shared: self.latencies[core].clone(),
        }
    }

    /// Sessions on all cores.
    pub fn sessions(&self) -> u64 {
        self.cores.iter().map(|core| core.sessions.load(Relaxed)).sum()
    }

    /// Requests under way on all cores.
    pub fn requests_in_flight(&self) -> u64 {
        self.cores.iter().map(|core| core.requests_in_flight.load(Relaxed)).sum()
    }

    /// All of it in Prometheus' text format (version 0.0.4).
    pub fn render(&self) -> String {
        let mut text = String::with_capacity(8 << 10);
        let values: Vec<Vec<u64>> = self.cores.iter().map(|core| core.values()).collect();
        for (index, (name, kind, help)) in CoreCounters::DESCRIPTIONS.iter().enumerate() {
            let _ = writeln!(text, "# HELP heliostat_{name}{help}\n# TYPE heliostat_{name} {kind}");
            for (core, values) in values.iter().enumerate() {
                let _ = writeln!(text, "heliostat_{name}{{core=\"{core}\"}} {}", values[index]);
            }
        }
        let name = "heliostat_request_seconds";
        let _ = writeln!(text, "# HELP {name} Time from a request's frame to its last answer.\n# TYPE {name} summary");
        for (core, latencies) in self.latencies.iter().enumerate() {
            let latencies = latencies.lock().unwrap_or_else(PoisonError::into_inner);
            for quantile in [0.5, 0.9, 0.99, 0.999] {
                let seconds = latencies.histogram.value_at_quantile(quantile) as f64 / 1e6;
                let _ = writeln!(text, "{name}{{core=\"{core}\",quantile=\"{quantile}\"}} {seconds}");
            }
            let _ = writeln!(text, "{name}_sum{{core=\"{core}\"}} {}", latencies.sum_us as f64 / 1e6);
            let _ = writeln!(text, "{name}_count{{core=\"{core}\"}} {}", latencies.histogram.len());
        }
        for (name, kind, help, value) in [
            ("sessions_refused_total", "counter", "Sessions refused: too many.", &self.sessions_refused),
            ("protocol_errors_total", "counter", "Connections that broke the protocol.", &self.protocol_errors),
            (
                "links_corrupted_total",
                "counter",
                "RDMA links that ended because a checksum or MAC of what arrived was wrong.",
                &self.links_corrupted,
            ),
            ("loads_open", "gauge", "Loads open now.", &self.loads_open),
            ("segments_merged_total", "counter", "Segments merged in the background.", &self.segments_merged),
        ] {
            let _ = writeln!(text, "# HELP heliostat_{name} {help}\n# TYPE heliostat_{name} {kind}");
            let _ = writeln!(text, "heliostat_{name} {}", value.load(Relaxed));
        }
        text
    }
}

/// One core's way to record latencies. Not `Sync`: it belongs to its core.
#[derive(Debug)]
pub struct Recorder {
    /// The core's counters.
    pub counters: Arc<CoreCounters>,
    local: RefCell<Latencies>,
    shared: Arc<Mutex<Latencies>>,
}

impl Recorder {
    /// Counts a request that ended after this long.
    pub fn request_ended(&self, latency: Duration, failed: bool) {
        self.counters.requests_total.fetch_add(1, Relaxed);
        if failed {
            self.counters.request_errors_total.fetch_add(1, Relaxed);
        }
        let latency_us = (latency.as_micros() as u64).clamp(1, LATENCY_US_MAX);
        let mut local = self.local.borrow_mut();
        local.histogram.saturating_record(latency_us);
        local.sum_us += latency_us;
    }

    /// Hands the latencies over to whoever renders. Skipped when the other side is rendering just now.
    pub fn flush(&self) {
        let mut local = self.local.borrow_mut();
        if local.histogram.is_empty() {
            return;
        }
        if let Ok(mut shared) = self.shared.try_lock()
            && shared.histogram.add(&local.histogram).is_ok()
        {
            shared.sum_us += local.sum_us;
            local.histogram.reset();
            local.sum_us = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_show_up_as_quantiles_after_a_flush() {
        let metrics = Metrics::new(2);
        let recorder = metrics.recorder(1);
        for us in 1..=1000u64 {
            recorder.request_ended(Duration::from_micros(us), us % 10 == 0);
        }
        assert!(metrics.render().contains("heliostat_request_seconds_count{core=\"1\"} 0"));
        recorder.flush();
        let text = metrics.render();
        assert!(text.contains("heliostat_request_seconds_count{core=\"1\"} 1000"), "{text}");
        assert!(text.contains("heliostat_requests_total{core=\"1\"} 1000"));
        assert!(text.contains("heliostat_request_errors_total{core=\"1\"} 100"));
        assert!(text.contains("heliostat_request_seconds_sum{core=\"1\"} 0.5005"));
        assert!(text.contains("# HELP heliostat_device_reads_total Reads of the device (their rate is the IOPS)."));
    }
}
