//! fio's JSON: names, nesting and units of version 3.33. `json+` adds the bins of the histograms.
//!
//! What fio has not is under one key of its own, `heliostat`, in each job: engine, errors per second, verification, what
//! the engine counted itself, and the samples over time that `--plot` and `--compare` use.

use serde_json::{Map, Value, json};

use super::{Entry, STEPS, VERSION, decimal, entries};
use crate::engine::Figure;
use crate::measure::{CLAT, DirectionStats, LAT, Latency, SLAT, Steps};
use crate::run::CloneResult;

/// The report. `time` is as text and in milliseconds since 1970.
pub(crate) fn report(results: &[CloneResult<'_>], global: &[(String, String)], bins: bool, time: (&str, u64)) -> Value {
    let mut out = Map::new();
    out.insert("fio version".into(), VERSION.into());
    out.insert("timestamp".into(), (time.1 / 1000).into());
    out.insert("timestamp_ms".into(), time.1.into());
    out.insert("time".into(), time.0.into());
    if !global.is_empty() {
        out.insert("global options".into(), options(global));
    }
    out.insert("jobs".into(), entries(results).iter().map(|entry| one(entry, bins)).collect());
    out.insert("disk_util".into(), json!([]));
    Value::Object(out)
}

fn options(given: &[(String, String)]) -> Value {
    Value::Object(given.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect())
}

fn one(entry: &Entry<'_, '_>, bins: bool) -> Value {
    let (job, stats) = (&entry.result.job, &entry.stats);
    let mut out = Map::new();
    out.insert("jobname".into(), job.name.as_str().into());
    out.insert("groupid".into(), job.group.into());
    out.insert("error".into(), entry.error_code().into());
    out.insert("eta".into(), 0.into());
    out.insert("elapsed".into(), (stats.runtime_ns / 1_000_000_000 + 1).into());
    if let Some(description) = &job.options.description {
        out.insert("desc".into(), description.as_str().into());
    }
    out.insert("job options".into(), options(&job.options.given));
    out.insert("read".into(), direction(entry, 0, bins));
    out.insert("write".into(), direction(entry, 1, bins));
    out.insert("trim".into(), direction_of(&DirectionStats::default(), None, entry, bins));
    let syncs = stats.syncs.as_deref();
    let mut sync = Map::new();
    sync.insert("total_ios".into(), syncs.map_or(0, Latency::count).into());
    sync.insert("lat_ns".into(), latency(syncs, syncs.is_some().then_some(&job.options.percentiles[..]), bins));
    out.insert("sync".into(), Value::Object(sync));
    out.insert("job_runtime".into(), (stats.clone_runtime_ns / 1_000_000).into());
    let (user, system) = entry.cpu_percent();
    out.insert("usr_cpu".into(), decimal(user).into());
    out.insert("sys_cpu".into(), decimal(system).into());
    out.insert("ctx".into(), stats.cpu.context_switches.into());
    out.insert("majf".into(), stats.cpu.major_faults.into());
    out.insert("minf".into(), stats.cpu.minor_faults.into());
    let batch = ["0", "4", "8", "16", "32", "64", ">=64"];
    out.insert("iodepth_level".into(), steps(&["1", "2", "4", "8", "16", "32", ">=64"], &stats.depth));
    out.insert("iodepth_submit".into(), steps(&batch, &stats.submit));
    out.insert("iodepth_complete".into(), steps(&batch, &stats.complete));
    let (ns, us, ms) = entry.latency_steps();
    let below: Vec<String> = STEPS.iter().map(u64::to_string).collect();
    let mut of_ms = below.clone();
    of_ms.extend(["2000".into(), ">=2000".into()]);
    let shares = |labels: &[String], shares: &[f64]| -> Value {
        Value::Object(labels.iter().zip(shares).map(|(label, share)| (label.clone(), decimal(*share).into())).collect())
    };
    out.insert("latency_ns".into(), shares(&below, &ns));
    out.insert("latency_us".into(), shares(&below, &us));
    out.insert("latency_ms".into(), shares(&of_ms, &ms));
    out.insert("latency_depth".into(), job.depth.into());
    out.insert("latency_target".into(), 0.into());
    out.insert("latency_percentile".into(), 100.0.into());
    out.insert("latency_window".into(), 0.into());
    out.insert("heliostat".into(), ours(entry));
    Value::Object(out)
}

fn ours(entry: &Entry<'_, '_>) -> Value {
    let stats = &entry.stats;
    let series = |direction: usize| {
        let series = &stats.directions[direction].series;
        json!({"end_ms": series.end_ms, "bw": series.bandwidth, "iops": series.iops})
    };
    let mut out = json!({
        "engine": entry.result.job.engine.name(),
        "errors": stats.errors(),
        "errors_per_second": stats.errors_per_second,
        "samples": {"read": series(0), "write": series(1)},
    });
    if !stats.findings.figures.is_empty() {
        let of = |figure: &Figure| {
            let shown = if figure.count.is_some() { "mean" } else { "per_second" };
            let mut of = json!({"total": decimal(figure.total), shown: decimal(entry.figure(figure))});
            if let Some(count) = figure.count {
                of["count"] = count.into();
            }
            (figure.name.clone(), of)
        };
        out["figures"] = Value::Object(stats.findings.figures.iter().map(of).collect());
    }
    if !stats.findings.notes.is_empty() {
        out["notes"] = json!(stats.findings.notes);
    }
    if let Some(error) = &stats.first_error {
        out["first_error"] = error.text.as_str().into();
    }
    if let Some(found) = &stats.verify {
        out["verify"] = json!({"checked": found.checked, "wrong": found.wrong, "reports": found.reports});
    }
    out
}

fn direction(entry: &Entry<'_, '_>, direction: usize, bins: bool) -> Value {
    direction_of(&entry.stats.directions[direction], Some(direction), entry, bins)
}

fn direction_of(stats: &DirectionStats, direction: Option<usize>, entry: &Entry<'_, '_>, bins: bool) -> Value {
    let job = &entry.result.job;
    let rates = match direction {
        Some(direction) => entry.rates(direction),
        None => super::Rates {
            bytes_per_second: 0.0,
            iops: 0.0,
            runtime_ms: 0,
            bandwidth: Default::default(),
            samples: Default::default(),
            share: 0.0,
        },
    };
    let mut out = Map::new();
    out.insert("io_bytes".into(), stats.bytes.into());
    out.insert("io_kbytes".into(), (stats.bytes >> 10).into());
    out.insert("bw_bytes".into(), (rates.bytes_per_second as u64).into());
    out.insert("bw".into(), ((rates.bytes_per_second / 1024.0) as u64).into());
    out.insert("iops".into(), decimal(rates.iops).into());
    out.insert("runtime".into(), rates.runtime_ms.into());
    out.insert("total_ios".into(), stats.ops.into());
    out.insert("short_ios".into(), stats.short_ops.into());
    out.insert("drop_ios".into(), 0.into());
    for (kind, name) in [(SLAT, "slat_ns"), (CLAT, "clat_ns"), (LAT, "lat_ns")] {
        let of_kind = stats.latency.as_ref().map(|latency| &latency[kind]);
        let list = (job.percentiles_of[kind] && of_kind.is_some()).then_some(&job.options.percentiles[..]);
        out.insert(name.into(), latency(of_kind, list, bins));
    }
    let (bandwidth, iops) = (rates.bandwidth, rates.samples);
    out.insert("bw_min".into(), bandwidth.min.into());
    out.insert("bw_max".into(), bandwidth.max.into());
    out.insert("bw_agg".into(), decimal(rates.share).into());
    out.insert("bw_mean".into(), decimal(bandwidth.mean).into());
    out.insert("bw_dev".into(), decimal(bandwidth.deviation).into());
    out.insert("bw_samples".into(), bandwidth.count.into());
    out.insert("iops_min".into(), iops.min.into());
    out.insert("iops_max".into(), iops.max.into());
    out.insert("iops_mean".into(), decimal(iops.mean).into());
    out.insert("iops_stddev".into(), decimal(iops.deviation).into());
    out.insert("iops_samples".into(), iops.count.into());
    Value::Object(out)
}

fn latency(latency: Option<&Latency>, list: Option<&[f64]>, bins: bool) -> Value {
    let empty = Latency::default;
    let Some(latency) = latency else { return latency_of(&empty(), None, false) };
    latency_of(latency, list.filter(|_| latency.count() > 0), bins)
}

fn latency_of(latency: &Latency, list: Option<&[f64]>, bins: bool) -> Value {
    let mut out = Map::new();
    out.insert("min".into(), latency.min().into());
    out.insert("max".into(), latency.max().into());
    out.insert("mean".into(), decimal(latency.mean()).into());
    out.insert("stddev".into(), decimal(latency.deviation()).into());
    out.insert("N".into(), latency.count().into());
    if let Some(list) = list {
        let percentiles = list.iter().map(|percent| (format!("{percent:.6}"), latency.percentile(*percent).into()));
        out.insert("percentile".into(), Value::Object(percentiles.collect()));
        if bins {
            let bins = latency.bins().map(|(value, count)| (value.to_string(), count.into()));
            out.insert("bins".into(), Value::Object(bins.collect()));
        }
    }
    Value::Object(out)
}

fn steps(labels: &[&str; 7], steps: &Steps) -> Value {
    let shares = labels.iter().zip(steps.percent()).map(|(label, share)| (label.to_string(), decimal(share).into()));
    Value::Object(shares.collect())
}
