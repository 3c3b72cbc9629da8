//! Reports beside those that fio itself wrote (`tests/fio-3.33`, made by the script there).

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;
use crate::engine::null::Null;
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
    let set = parse_job_file(text, &[&Null]).unwrap_or_else(|error| panic!("{error}"));
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
