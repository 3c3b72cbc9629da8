//! `--compare A.json B.json`: how much faster or slower B is, and whether that is more than chance.
//!
//! Reads JSON of this program and of fio. Each side is a report or a comma-separated list of reports of the same jobs.
//!
//! Method
//! - Several runs a side: one value per run and metric. The ratio is that of the geometric means; its 95% interval is
//!   Welch's t interval of the logarithms. This is the sound way: it sees the spread from run to run.
//! - One run a side: IOPS and bandwidth have their samples over time (500 ms each). Their means are compared as above,
//!   by the delta method; when the samples themselves are in the report, their number is reduced by their correlation
//!   with the one before (n (1-r)/(1+r)). It does not see the spread from run to run, and says so. Latencies have one
//!   value a run: a ratio without an interval, and no verdict.
//! - The verdict is "no difference" when the interval contains 1.

use std::fmt::Write;
use std::path::Path;

use serde_json::Value;

/// One side: the reports of its runs.
pub(crate) struct Side {
    runs: Vec<Value>,
    label: String,
}

impl Side {
    /// Reads a report or a comma-separated list of them.
    pub(crate) fn read(list: &str) -> Result<Side, String> {
        let runs = list.split(',').map(|path| read(Path::new(path))).collect::<Result<Vec<Value>, String>>()?;
        Ok(Side { runs, label: list.to_string() })
    }

    /// Its last report.
    pub(crate) fn newest(&self) -> Value {
        self.runs.last().cloned().unwrap_or(Value::Null)
    }
}

/// The last JSON report in a file; text around it (of other output formats) is left out.
fn read(path: &Path) -> Result<Value, String> {
    let text = std::fs::read_to_string(path).map_err(|cause| format!("{}: {cause}", path.display()))?;
    let mut last = None;
    let mut rest = text.as_str();
    while let Some(at) = rest.find("{\n").or_else(|| rest.find('{')) {
        let mut values = serde_json::Deserializer::from_str(&rest[at..]).into_iter::<Value>();
        match values.next() {
            Some(Ok(value)) => {
                rest = &rest[at + values.byte_offset()..];
                last = Some(value).filter(|value| value["jobs"].is_array()).or(last);
            }
            _ => rest = &rest[at + 1..],
        }
    }
    last.ok_or_else(|| format!("{}: no report of fio or of this program in JSON", path.display()))
}

#[derive(Clone, Copy)]
struct Metric {
    name: &'static str,
    higher_is_better: bool,
    of: fn(&Value) -> Option<f64>,
    /// Keys of mean, deviation and number of samples, and of the samples.
    samples: Option<[&'static str; 4]>,
}

const METRICS: &[Metric] = &[
    Metric {
        name: "IOPS",
        higher_is_better: true,
        of: |direction| direction["iops"].as_f64(),
        samples: Some(["iops_mean", "iops_stddev", "iops_samples", "iops"]),
    },
    Metric {
        name: "BW",
        higher_is_better: true,
        of: |direction| direction["bw_bytes"].as_f64(),
        samples: Some(["bw_mean", "bw_dev", "bw_samples", "bw"]),
    },
    Metric {
        name: "lat mean",
        higher_is_better: false,
        of: |direction| direction["lat_ns"]["mean"].as_f64(),
        samples: None,
    },
    Metric { name: "p50", higher_is_better: false, of: |direction| percentile(direction, "50.000000"), samples: None },
    Metric { name: "p99", higher_is_better: false, of: |direction| percentile(direction, "99.000000"), samples: None },
    Metric {
        name: "p99.9",
        higher_is_better: false,
        of: |direction| percentile(direction, "99.900000"),
        samples: None,
    },
];

/// Of completion latency, or of total latency where only that is reported.
fn percentile(direction: &Value, key: &str) -> Option<f64> {
    ["clat_ns", "lat_ns"].iter().find_map(|kind| direction[*kind]["percentile"][key].as_f64())
}

/// Logarithm of a value on one side, and what is known of its error.
struct Estimate {
    log: f64,
    /// Squared standard error, and degrees of freedom.
    error: Option<(f64, f64)>,
}

impl Estimate {
    fn of_runs(values: &[f64]) -> Option<Estimate> {
        let logs: Vec<f64> = values.iter().map(|value| value.ln()).collect();
        let n = logs.len() as f64;
        let mean = logs.iter().sum::<f64>() / n;
        if logs.is_empty() || !mean.is_finite() {
            return None;
        }
        let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (n - 1.0);
        Some(Estimate { log: mean, error: (logs.len() > 1).then_some((variance / n, n - 1.0)) })
    }

    /// From the samples of one run.
    fn of_samples(job: &Value, direction: &str, value: f64, keys: [&str; 4]) -> Option<Estimate> {
        let of = &job[direction];
        let (mean, deviation) = (of[keys[0]].as_f64()?, of[keys[1]].as_f64()?);
        let count = of[keys[2]].as_f64()?;
        if count < 4.0 || mean <= 0.0 {
            return None;
        }
        let samples: Vec<f64> = job["heliostat"]["samples"][direction][keys[3]]
            .as_array()
            .map(|samples| samples.iter().filter_map(Value::as_f64).collect())
            .unwrap_or_default();
        let correlation = correlation(&samples).clamp(0.0, 0.95);
        let effective = (count * (1.0 - correlation) / (1.0 + correlation)).max(2.0);
        let error = (deviation / mean).powi(2) / effective;
        Some(Estimate { log: value.ln(), error: Some((error, effective - 1.0)) })
    }
}

/// Of samples with the one before each.
fn correlation(samples: &[f64]) -> f64 {
    let n = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / n;
    let variance: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
    let with_next: f64 = samples.windows(2).map(|pair| (pair[0] - mean) * (pair[1] - mean)).sum();
    if variance > 0.0 { with_next / variance } else { 0.0 }
}

/// Ratio of B to A with its 95% interval.
struct Ratio {
    ratio: f64,
    interval: Option<(f64, f64)>,
}

impl Ratio {
    fn of(a: &Estimate, b: &Estimate) -> Ratio {
        let log = b.log - a.log;
        let interval = a.error.zip(b.error).map(|((var_a, df_a), (var_b, df_b))| {
            let variance = var_a + var_b;
            // Welch and Satterthwaite.
            let df = variance.powi(2) / (var_a.powi(2) / df_a + var_b.powi(2) / df_b);
            let half = t_quantile_975(if df.is_finite() { df } else { df_a.min(df_b) }) * variance.sqrt();
            ((log - half).exp(), (log + half).exp())
        });
        Ratio { ratio: log.exp(), interval }
    }

    /// `several`: the interval is of runs, not of samples within one.
    fn verdict(&self, higher_is_better: bool, several: bool) -> String {
        let Some((low, high)) = self.interval else { return "one run a side: no verdict".into() };
        if low <= 1.0 && high >= 1.0 {
            return "no difference".into();
        }
        let percent = (self.ratio - 1.0).abs() * 100.0;
        let better = (self.ratio > 1.0) == higher_is_better;
        let direction = if self.ratio > 1.0 { "higher" } else { "lower" };
        let when = if several { "is" } else { "was, in these runs," };
        format!("B {when} {percent:.1}% {direction} ({})", if better { "better" } else { "worse" })
    }
}

/// The 97.5th percentile of Student's t; between the tabled degrees of freedom the lower, wider one holds.
fn t_quantile_975(df: f64) -> f64 {
    const TABLE: [(f64, f64); 16] = [
        (1.0, 12.706),
        (2.0, 4.303),
        (3.0, 3.182),
        (4.0, 2.776),
        (5.0, 2.571),
        (6.0, 2.447),
        (7.0, 2.365),
        (8.0, 2.306),
        (9.0, 2.262),
        (10.0, 2.228),
        (12.0, 2.179),
        (15.0, 2.131),
        (20.0, 2.086),
        (30.0, 2.042),
        (60.0, 2.000),
        (120.0, 1.980),
    ];
    TABLE.iter().rev().find(|(tabled, _)| df >= *tabled).map_or(12.706, |(_, quantile)| *quantile)
}

/// Names of the jobs of a report, with a number behind those that occur again.
fn job_names(report: &Value) -> Vec<(String, &Value)> {
    let mut names: Vec<(String, &Value)> = Vec::new();
    for job in report["jobs"].as_array().into_iter().flatten() {
        let name = job["jobname"].as_str().unwrap_or("?");
        let before = names.iter().filter(|(known, _)| known == name || known.starts_with(&format!("{name}#"))).count();
        let name = if before == 0 { name.to_string() } else { format!("{name}#{}", before + 1) };
        names.push((name, job));
    }
    names
}

/// The table of a comparison.
pub(crate) fn report(a: &Side, b: &Side) -> String {
    let mut out = format!(
        "A: {} ({} run{})\nB: {} ({} run{})\n",
        a.label,
        a.runs.len(),
        plural(a),
        b.label,
        b.runs.len(),
        plural(b)
    );
    let several = a.runs.len() > 1 && b.runs.len() > 1;
    let _ =
        writeln!(out, "\n{:<20} {:>9} {:>12} {:>12} {:>7}  {:<16} verdict", "job", "", "A", "B", "B/A", "95% interval");
    let mut compared = 0;
    for (name, job) in job_names(&a.newest()) {
        for direction in ["read", "write"] {
            if job[direction]["total_ios"].as_u64().unwrap_or(0) == 0 {
                continue;
            }
            for metric in METRICS {
                let values = |side: &Side| -> Vec<f64> {
                    let of_run = |run: &Value| {
                        let jobs = job_names(run);
                        let (_, job) = jobs.iter().find(|(known, _)| *known == name)?;
                        (metric.of)(&job[direction]).filter(|value| *value > 0.0)
                    };
                    side.runs.iter().filter_map(of_run).collect()
                };
                let (of_a, of_b) = (values(a), values(b));
                let single = |side: &Side, value: f64| {
                    let run = side.newest();
                    let jobs = job_names(&run);
                    let (_, job) = jobs.iter().find(|(known, _)| *known == name)?;
                    Estimate::of_samples(job, direction, value, metric.samples?)
                };
                let estimate = |side: &Side, values: &[f64]| match several {
                    true => Estimate::of_runs(values),
                    false => values.last().and_then(|value| single(side, *value)).or_else(|| Estimate::of_runs(values)),
                };
                let (Some(estimate_a), Some(estimate_b)) = (estimate(a, &of_a), estimate(b, &of_b)) else { continue };
                compared += 1;
                let ratio = Ratio::of(&estimate_a, &estimate_b);
                let interval = ratio.interval.map_or("-".into(), |(low, high)| format!("{low:.3} to {high:.3}"));
                let _ = writeln!(
                    out,
                    "{:<20} {:>9} {:>12} {:>12} {:>7.3}  {:<16} {}",
                    format!("{name} {direction}"),
                    metric.name,
                    shown(metric, estimate_a.log.exp()),
                    shown(metric, estimate_b.log.exp()),
                    ratio.ratio,
                    interval,
                    ratio.verdict(metric.higher_is_better, several)
                );
            }
        }
    }
    if compared == 0 {
        out.push_str("The two have no job of the same name with the same direction.\n");
    }
    if !several {
        out.push_str(
            "\nIntervals are of the samples within one run; runs differ more than that. Give lists of at least three\n\
             reports a side, taken alternately, for a verdict that holds: --compare A1.json,A2.json,A3.json B1.json,...\n",
        );
    }
    out
}

fn plural(side: &Side) -> &'static str {
    if side.runs.len() == 1 { "" } else { "s" }
}

fn shown(metric: &Metric, value: f64) -> String {
    match metric.name {
        "IOPS" => crate::report::quantity(value as u64, 4, false, ""),
        "BW" => crate::report::quantity(value as u64, 4, true, "B/s"),
        _ => format!("{:.1}us", value / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(iops: f64, p99: f64) -> Value {
        json!({"jobs": [{"jobname": "a", "read": {
            "total_ios": 10, "iops": iops, "bw_bytes": iops * 4096.0, "lat_ns": {"mean": 100.0},
            "clat_ns": {"percentile": {"50.000000": 90.0, "99.000000": p99}},
            "iops_mean": iops, "iops_stddev": iops * 0.02, "iops_samples": 20,
        }}]})
    }

    fn side(runs: &[(f64, f64)]) -> Side {
        Side { runs: runs.iter().map(|(iops, p99)| run(*iops, *p99)).collect(), label: "x.json".into() }
    }

    fn line<'a>(text: &'a str, metric: &str) -> &'a str {
        text.lines().find(|line| line.contains(&format!(" {metric} "))).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn several_runs_tell_a_difference_from_noise() {
        let a = side(&[(100.0, 500.0), (102.0, 510.0), (98.0, 490.0), (101.0, 505.0)]);
        let b = side(&[(121.0, 503.0), (119.0, 495.0), (120.0, 507.0), (122.0, 498.0)]);
        let text = report(&a, &b);
        assert!(line(&text, "IOPS").contains("higher (better)"), "{text}");
        assert!(line(&text, "p99").ends_with("no difference"));
        assert!(report(&b, &a).contains("lower (worse)"));
        assert!(line(&report(&a, &a), "IOPS").ends_with("no difference"));
    }

    #[test]
    fn one_run_a_side_has_intervals_of_its_samples_and_says_so() {
        let text = report(&side(&[(100.0, 500.0)]), &side(&[(100.5, 900.0)]));
        assert!(line(&text, "IOPS").ends_with("no difference"), "{text}");
        assert!(line(&text, "p99").ends_with("no verdict"));
        assert!(text.contains("Give lists of at least three"));
        assert!(line(&report(&side(&[(100.0, 1.0)]), &side(&[(150.0, 1.0)])), "IOPS").contains("50.0% higher"));
    }

    #[test]
    fn false_alarms_are_as_rare_as_the_interval_promises() {
        let mut rng = crate::pattern::Rng::new(5);
        let mut normal = || (0..12).map(|_| rng.unit()).sum::<f64>() - 6.0;
        let mut alarms = 0;
        for _ in 0..2000 {
            let mut runs = || -> Vec<f64> { (0..5).map(|_| 100.0 * (1.0 + 0.03 * normal())).collect() };
            let (a, b) = (Estimate::of_runs(&runs()).unwrap(), Estimate::of_runs(&runs()).unwrap());
            alarms += usize::from(Ratio::of(&a, &b).verdict(true, true) != "no difference");
        }
        assert!((40..=120).contains(&alarms), "{alarms} of 2000, 100 are expected");
    }

    #[test]
    fn text_around_a_report_is_left_out_and_the_last_one_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mixed");
        std::fs::write(&path, format!("note {{x}}\n{:#}\nfio-3.33\n{:#}\nend", run(1.0, 1.0), run(2.0, 1.0))).unwrap();
        assert_eq!(read(&path).unwrap()["jobs"][0]["read"]["iops"], 2.0);
        std::fs::write(&path, "nothing").unwrap();
        assert!(read(&path).unwrap_err().contains("no report"));
    }
}
