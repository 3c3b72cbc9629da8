//! Reports beside those that fio itself wrote (`tests/fio-3.33`, made by the script there).

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::engine::null::Null;
use crate::engine::{
    Completion, Engine, EngineContext, EngineError, EngineFacts, EngineKind, Engines, Figure, Findings, Op,
};
use crate::files::Permissions;
use crate::job::parse_job_file;
use crate::measure::{CLAT, DirectionStats, LAT, SLAT};
use crate::run::{Control, Progress, Watcher, prepare, run};

struct Nobody;

impl Watcher for Nobody {
    fn progress(&mut self, _: &Progress<'_>) {}
    fn status(&mut self, _: &[CloneResult<'_>]) {}
}

/// Results of real runs of the null engine.
pub(crate) fn results(text: &str) -> Vec<CloneResult<'static>> {
    results_of(text, &[&Null])
}

fn results_of(text: &str, engines: Engines<'static>) -> Vec<CloneResult<'static>> {
    let set = parse_job_file(text, engines).unwrap_or_else(|error| panic!("{error}"));
    let tasks = prepare(&set, &Permissions { destructive: Vec::new() }).unwrap();
    run(&tasks, None, &Control::default(), &mut Nobody).unwrap()
}

/// The job that fio's reports in `tests/fio-3.33` are of.
const JOB: &str = "[global]\nioengine=null\nsize=1m\niodepth=8\n[mix]\nrw=randrw\nbs=4k\nlat_percentiles=1\nslat_percentiles=1\n\
     [pair]\nstonewall\nrw=write\nbs=64k\nnumjobs=2\ngroup_reporting\n";

/// All paths of keys, with the type of what is there; bins and percentiles by their first key.
fn paths(value: &Value, at: &str, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if at.ends_with("/bins") || at.ends_with("/job options") || at.ends_with("/global options") {
                    into.insert(format!("{at}/*"));
                } else {
                    paths(value, &format!("{at}/{key}"), into);
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| paths(value, &format!("{at}[]"), into)),
        Value::Number(_) => drop(into.insert(format!("{at}: number"))),
        Value::String(_) => drop(into.insert(format!("{at}: text"))),
        other => drop(into.insert(format!("{at}: {other}"))),
    }
}

fn all_paths(value: &Value) -> BTreeSet<String> {
    let mut of = BTreeSet::new();
    paths(value, "", &mut of);
    of
}

#[test]
fn json_has_every_key_of_fios_and_only_one_more() {
    let fio: Value = serde_json::from_str(include_str!("../../tests/fio-3.33/null.json")).unwrap();
    let results = results(JOB);
    let ours = json::report(&results, &[("ioengine".into(), "null".into())], true, ("now", 1));
    let (fio, ours) = (all_paths(&fio), all_paths(&ours));
    let missing: Vec<&String> = fio.iter().filter(|path| !ours.contains(*path)).collect();
    let more: Vec<&String> = ours.iter().filter(|path| !fio.contains(*path) && !path.contains("/heliostat/")).collect();
    assert!(missing.is_empty(), "fio has, we have not: {missing:#?}");
    assert!(more.is_empty(), "we have, fio has not: {more:#?}");
}

/// The null engine, which counts its ops itself, and says in a note how often measuring began.
struct Counting;

struct CountingEngine {
    inner: Box<dyn Engine>,
    clone: u32,
    ops: u64,
    begun: u32,
}

impl EngineKind for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }

    fn help(&self) -> &'static str {
        "counts"
    }

    fn facts(&self) -> EngineFacts {
        Null.facts()
    }

    fn open(&self, context: &EngineContext) -> Result<Box<dyn Engine>, EngineError> {
        Ok(Box::new(CountingEngine { inner: Null.open(context)?, clone: context.clone, ops: 0, begun: 0 }))
    }
}

impl Engine for CountingEngine {
    fn submit(&mut self, ops: &[Op]) -> Result<usize, EngineError> {
        self.inner.submit(ops)
    }

    fn complete(
        &mut self,
        min: usize,
        max: usize,
        timeout: Duration,
        completions: &mut Vec<Completion>,
    ) -> Result<(), EngineError> {
        let before = completions.len();
        self.inner.complete(min, max, timeout, completions)?;
        self.ops += (completions.len() - before) as u64;
        Ok(())
    }

    fn buffer(&mut self, slot: u32) -> &mut [u8] {
        self.inner.buffer(slot)
    }

    fn start_measuring(&mut self) {
        self.ops = 0;
        self.begun += 1;
    }

    fn findings(&self) -> Findings {
        let (ops, share) = (self.ops as f64, f64::from(self.clone) * self.ops as f64);
        let figure = |name: &str, total, count| Figure { name: name.into(), total, count };
        Findings {
            figures: vec![figure("things", ops, None), figure("clone", share, Some(self.ops))],
            notes: vec![format!("begun {} times", self.begun)],
        }
    }
}

#[test]
fn what_an_engine_counts_itself_is_added_up_over_clones_and_forgets_the_ramp() {
    let job = "[x]\nioengine=counting\nrw=read\nbs=4k\nsize=400k\nnumjobs=2\ngroup_reporting\n";
    let report = json::report(&results_of(job, &[&Counting]), &[], false, ("now", 1));
    let ours = &report["jobs"][0]["heliostat"];
    assert_eq!(
        (&ours["figures"]["things"]["total"], &ours["figures"]["things"]["count"]),
        (&200.0.into(), &Value::Null)
    );
    assert!(ours["figures"]["things"]["per_second"].as_f64().unwrap() > 200.0, "{ours}");
    // Half of the ops were of clone 0, half of clone 1.
    assert_eq!((&ours["figures"]["clone"]["mean"], &ours["figures"]["clone"]["count"]), (&0.5.into(), &200.into()));
    assert_eq!(ours["notes"], serde_json::json!(["begun 1 times"]));
    let ramped = "[x]\nioengine=counting\nrw=read\nbs=4k\nsize=400k\ntime_based=1\nruntime=200ms\nramp_time=100ms\n";
    let results = results_of(ramped, &[&Counting]);
    let stats = &results[0].stats;
    assert_eq!(stats.findings.figures[0].total, stats.directions[0].ops as f64);
    let text = normal::report(&results, "now");
    assert!(text.contains("     engine    : things=") && text.contains("/s, clone=0.0000\n"), "{text}");
    assert!(text.contains("     note      : begun 2 times\n"), "{text}");
}

#[test]
fn terse_has_the_fields_of_fios() {
    let fio = include_str!("../../tests/fio-3.33/null.terse");
    let ours = terse::report(&results(JOB));
    assert_eq!(fio.lines().count(), ours.lines().count());
    let shape = |line: &str| -> Vec<String> {
        let digits = |field: &str| field.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect::<String>();
        // One digit for any number of them.
        let short = |field: &str| {
            let mut text = digits(field);
            while text.contains("00") {
                text = text.replace("00", "0");
            }
            text
        };
        line.split(';').skip(2).map(short).collect()
    };
    for (fio, ours) in fio.lines().zip(ours.lines()) {
        let (fio, ours) = (shape(fio), shape(ours));
        for (index, (fio, ours)) in fio.iter().zip(&ours).enumerate() {
            assert_eq!(fio, ours, "field {}", index + 3);
        }
        assert_eq!(fio.len(), ours.len());
    }
}

#[test]
fn the_human_form_has_the_lines_of_fios() {
    let fio = include_str!("../../tests/fio-3.33/null.normal");
    let set = parse_job_file(JOB, &[&Null]).unwrap_or_else(|error| panic!("{error}"));
    let ours = normal::opening(&set) + &normal::report(&results(JOB), "now");
    // The words of each line without numbers and units; lines that depend on how fast it was are left out.
    let skeleton = |text: &str| -> Vec<String> {
        let fast = ["bw (", "iops  ", "lat (", "| ", "Disk stats", "fio-", "heliostat-", "Starting"];
        text.lines()
            .filter(|line| !line.is_empty() && !fast.iter().any(|part| line.trim_start().starts_with(part)))
            .map(|line| {
                let line = line.split("pid=").next().unwrap_or_default();
                let line = line.split("; 0 zone resets").next().unwrap_or_default();
                let line =
                    ["nsec", "usec", "msec"].iter().fold(line.to_string(), |line, unit| line.replace(unit, "sec"));
                let words: String =
                    line.chars().map(|c| if c.is_ascii_digit() || c == '.' { '#' } else { c }).collect();
                let words = words.replace("KiB", "B").replace("MiB", "B").replace("GiB", "B");
                let words = words
                    .replace("kB", "B")
                    .replace("MB", "B")
                    .replace("GB", "B")
                    .replace("#k", "#")
                    .replace("#M", "#");
                words.split(['#', ' ']).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
            })
            .collect()
    };
    let (fio, ours) = (skeleton(fio), skeleton(&ours));
    for (fio, ours) in fio.iter().zip(&ours) {
        assert_eq!(fio, ours);
    }
    assert_eq!(fio.len(), ours.len());
}

#[test]
fn the_same_counts_make_the_same_lines() {
    // The figures of a real report of fio, put into our statistics.
    let mut result = results("[a]\nioengine=null\nsize=4k\nrw=read\n").remove(0);
    let stats = &mut result.stats;
    stats.runtime_ns = 2_001_000_000;
    stats.directions[0] = DirectionStats { ops: 72_938, bytes: 298_754_048, ..DirectionStats::new() };
    let latency = stats.directions[0].latency.as_mut().unwrap();
    for (kind, values) in [(SLAT, [2_573, 3_039_387]), (CLAT, [25_992, 7_895_986]), (LAT, [37_489, 7_899_520])] {
        values.iter().for_each(|value| latency[kind].record(*value));
    }
    let text = normal::report(&[result], "now");
    for line in [
        "  read: IOPS=36.5k, BW=142MiB/s (149MB/s)(285MiB/2001msec)",
        "    slat (usec): min=2, max=3039, avg=",
        "    clat (usec): min=25, max=7895, avg=",
        "     lat (usec): min=37, max=7899, avg=",
        "   READ: bw=142MiB/s (149MB/s), 142MiB/s-142MiB/s (149MB/s-149MB/s), io=285MiB (299MB), run=2001-2001msec",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}
