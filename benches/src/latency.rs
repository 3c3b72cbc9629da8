//! Times of round trips as the benchmarks print them.

use std::time::Duration;

/// Percentiles, in microseconds.
pub(crate) fn percentiles(mut times: Vec<Duration>) -> serde_json::Value {
    times.sort_unstable();
    let at = |share: f64| match times.len() {
        0 => 0.0,
        count => times[((count - 1) as f64 * share).round() as usize].as_nanos() as f64 / 1e3,
    };
    serde_json::json!({
        "count": times.len(),
        "least": at(0.0),
        "p50": at(0.5),
        "p99": at(0.99),
        "p999": at(0.999),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let times = (1..=1001).rev().map(Duration::from_micros).collect();
        let of = percentiles(times);
        assert_eq!((of["least"].as_f64(), of["p50"].as_f64()), (Some(1.0), Some(501.0)));
        assert_eq!((of["p99"].as_f64(), of["p999"].as_f64()), (Some(991.0), Some(1000.0)));
        assert_eq!(percentiles(Vec::new())["count"], 0);
    }
}
