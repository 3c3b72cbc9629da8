//! What was measured: as rows of a Markdown table, and as JSON.
//!
//! Owns [`Curve`] and [`Point`].

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Results of one table and index.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Curve {
    /// Its name in a picture.
    pub label: String,
    pub table: String,
    /// What the searches could use.
    pub index: String,
    pub k: u32,
    /// Queries that recall is the mean of.
    pub queries: u64,
    /// Requests under way together, for queries per second.
    pub in_flight: u64,
    /// In the order in which they were measured.
    pub points: Vec<Point>,
}

/// One parameter.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Point {
    /// As it was asked for: `probes=8`.
    pub parameter: String,
    /// 0 to 1.
    pub recall: f64,
    pub queries_per_second: f64,
    /// Of single requests, microseconds.
    pub p50_us: f64,
    pub p99_us: f64,
    /// Of a query, on average.
    pub device_reads: f64,
    pub device_bytes: f64,
    /// How the cell answered.
    pub plan: String,
}

impl Curve {
    /// What comes before the rows.
    pub(super) fn heading(&self) -> String {
        format!(
            "{}, {}; {} queries; queries/s with {} requests under way, latency of single ones\n\n\
             | {:<13} | {:>11} | {:>9} | {:>9} | {:>9} | {:>12} | plan\n\
             | {:-<13} | {:->10}: | {:->8}: | {:->8}: | {:->8}: | {:->11}: | ---\n",
            self.table,
            self.index,
            self.queries,
            self.in_flight,
            "parameter",
            format!("recall@{}", self.k),
            "queries/s",
            "p50, us",
            "p99, us",
            "device reads",
            "",
            "",
            "",
            "",
            "",
            "",
        )
    }

    /// The highest recall that the queries can tell from 1: one neighbour in two of one more miss.
    pub(super) fn recall_max(&self) -> f64 {
        1.0 - 0.5 / (self.queries.max(1) as f64 * f64::from(self.k))
    }

    pub(super) fn to_json(&self) -> Value {
        let point = |point: &Point| {
            json!({
                "parameter": point.parameter,
                "recall": point.recall,
                "queries_per_second": point.queries_per_second,
                "p50_us": point.p50_us,
                "p99_us": point.p99_us,
                "device_reads": point.device_reads,
                "device_bytes": point.device_bytes,
                "plan": point.plan,
            })
        };
        json!({
            "label": self.label,
            "table": self.table,
            "index": self.index,
            "k": self.k,
            "queries": self.queries,
            "in_flight": self.in_flight,
            "points": self.points.iter().map(point).collect::<Vec<_>>(),
        })
    }

    /// `None` for what [`Curve::to_json`] does not make.
    pub(super) fn of_json(value: &Value) -> Option<Curve> {
        let text = |value: &Value| value.as_str().map(String::from);
        let point = |point: &Value| {
            Some(Point {
                parameter: text(&point["parameter"])?,
                recall: point["recall"].as_f64()?,
                queries_per_second: point["queries_per_second"].as_f64()?,
                p50_us: point["p50_us"].as_f64()?,
                p99_us: point["p99_us"].as_f64()?,
                device_reads: point["device_reads"].as_f64()?,
                device_bytes: point["device_bytes"].as_f64()?,
                plan: text(&point["plan"])?,
            })
        };
        Some(Curve {
            label: text(&value["label"])?,
            table: text(&value["table"])?,
            index: text(&value["index"])?,
            k: value["k"].as_u64()?.try_into().ok()?,
            queries: value["queries"].as_u64()?,
            in_flight: value["in_flight"].as_u64()?,
            points: value["points"].as_array()?.iter().map(point).collect::<Option<_>>()?,
        })
    }
}

impl Point {
    /// A row of the table.
    pub(super) fn row(&self) -> String {
        format!(
            "| {:<13} | {:>11.4} | {:>9.0} | {:>9.0} | {:>9.0} | {:>12.1} | {}",
            self.parameter,
            self.recall,
            self.queries_per_second,
            self.p50_us,
            self.p99_us,
            self.device_reads,
            self.plan.replace('|', "/")
        )
    }
}

/// Reads results that were kept.
pub(super) fn read(path: &Path) -> Result<Curve> {
    let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let value = serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))?;
    Curve::of_json(&value).with_context(|| format!("{}: no results of `heliostat-bench recall --json`", path.display()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::recall) fn curve(label: &str) -> Curve {
        let point = |step: u32| Point {
            parameter: format!("probes={step}"),
            recall: 1.0 - 0.5 / f64::from(step * step),
            queries_per_second: 9000.0 / f64::from(step),
            p50_us: 100.0 * f64::from(step),
            p99_us: 300.0 * f64::from(step),
            device_reads: f64::from(step),
            device_bytes: 4096.0,
            plan: format!("ivf: probes {step} | asked for"),
        };
        Curve {
            label: label.into(),
            table: "points".into(),
            index: "ivf of 64 lists".into(),
            k: 10,
            queries: 100,
            in_flight: 16,
            points: [1, 2, 4, 8].map(point).to_vec(),
        }
    }

    #[test]
    fn results_are_read_back_as_they_were_kept() {
        let curve = curve("a");
        assert_eq!(Curve::of_json(&curve.to_json()), Some(curve.clone()));
        let mut damaged = curve.to_json();
        damaged["points"][2]["recall"] = "high".into();
        assert_eq!(Curve::of_json(&damaged), None);
        assert_eq!(Curve::of_json(&json!({"jobs": []})), None);
    }

    #[test]
    fn rows_stand_under_their_heading() {
        let curve = curve("a");
        let heading = curve.heading();
        let bars = |line: &str| line.match_indices('|').map(|(at, _)| at).collect::<Vec<_>>();
        let names = heading.lines().nth(2).unwrap();
        assert!(names.contains("recall@10"), "{heading}");
        assert_eq!(bars(heading.lines().nth(3).unwrap()), bars(names));
        for point in &curve.points {
            assert_eq!(bars(&point.row()), bars(names), "{}", point.row());
        }
    }
}
