//! `--profile quick|full`: the standard set, from the cost of measuring up to a cell, as one Markdown report.
//!
//! Owns the list of jobs ([`Plan`]) and the report. Jobs run by `heliostat-fio`, one after another, and are read back from
//! its JSON, so that a line of the report is what the same words on a command line give (the report shows them). What has
//! no system to measure (no drive named, no cell named) is left out, and the report says so.
//!
//! For a cell the profile makes a table of its own, TPC-H lineitem, and drops it afterwards.

mod facts;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Parser, ValueEnum};
use heliostat_client::input::{Input, InputOptions, TpchTable};
use heliostat_client::{Client, ConnectOptions, Credentials, LoadMode, Transport};
use heliostat_dataplane::device::nvme;
use heliostat_fio::Interrupts;
use serde_json::Value;

use crate::engines::ENGINES;

/// How long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Extent {
    /// Two seconds for each job, 600,000 rows.
    Quick,
    /// Thirty seconds for each job, 6,000,000 rows.
    Full,
}

/// Run the standard set and write a report in Markdown.
#[derive(Parser)]
#[command(name = "heliostat-bench")]
struct Arguments {
    /// Which set.
    #[arg(long, value_enum)]
    profile: Extent,
    /// A file or device to read (a file that is not there is made, 1 GiB, and removed), or an NVMe namespace past the block
    /// layer (/dev/ngXnY); left out: no drive is measured.
    #[arg(long)]
    filename: Option<PathBuf>,
    /// An RDMA device, as `verbs-check devices` names it.
    #[arg(long, default_value = "soft:127.0.0.1")]
    device: String,
    /// Where `heliostat-bench serve-verbs` runs; left out: the peer is a thread of this process.
    #[arg(long)]
    hostname: Option<String>,
    /// A cell; left out: none is measured.
    #[arg(long, env = "HELIOSTAT_CONNECT")]
    connect: Option<String>,
    /// The profile with credentials for it; the default one when left out.
    #[arg(long)]
    credentials: Option<PathBuf>,
    /// How its answers travel.
    #[arg(long, default_value_t = Transport::Auto)]
    transport: Transport,
    /// The table that is made for it, and dropped afterwards.
    #[arg(long, default_value = "heliostat_bench")]
    table: String,
    /// Where the report goes; left out: to standard output.
    #[arg(long)]
    output: Option<PathBuf>,
}

/// Whether a command line asks for a profile.
pub fn is_wanted(arguments: &[OsString]) -> bool {
    arguments
        .iter()
        .filter_map(|argument| argument.to_str())
        .any(|text| text == "--profile" || text.starts_with("--profile="))
}

/// A line of the report.
struct Line {
    title: &'static str,
    words: Vec<String>,
    result: Result<Measured>,
}

struct Measured {
    ops_per_second: f64,
    bytes_per_second: f64,
    /// Of the whole latency, in microseconds: posting to a fabric may be most of it.
    p50_us: f64,
    p99_us: f64,
    errors: u64,
}

struct Profile {
    arguments: Arguments,
    scratch: tempfile::TempDir,
    /// After Ctrl-C, what has not begun is left out.
    interrupts: Interrupts,
    sections: Vec<(&'static str, Vec<Line>)>,
    notes: Vec<String>,
}

/// Runs the profile that the command line of this process asks for.
pub fn run() -> Result<()> {
    let arguments = Arguments::parse();
    let output = match &arguments.output {
        Some(path) => Some(File::create(path).with_context(|| format!("writing {}", path.display()))?),
        None => None,
    };
    let interrupts = Interrupts::listening().context("listening for signals")?;
    let scratch = tempfile::tempdir()?;
    let mut profile = Profile { arguments, scratch, interrupts, sections: Vec::new(), notes: Vec::new() };
    profile.measuring();
    profile.drive();
    profile.fabric();
    if let Err(error) = profile.cell() {
        profile.notes.push(format!("cell: {error:#}"));
    }
    profile.notes.push("search: not in the set; `heliostat-bench recall` measures a table's".into());
    if profile.was_interrupted() {
        profile.notes.push("interrupted: what had not begun is missing".into());
    }
    let report = profile.report();
    match output {
        Some(mut file) => file.write_all(report.as_bytes()).context("writing the report")?,
        None => print!("{report}"),
    }
    match profile.was_interrupted() {
        true => bail!("interrupted; the report has the results so far"),
        false => Ok(()),
    }
}

impl Profile {
    fn seconds(&self) -> u32 {
        match self.arguments.profile {
            Extent::Quick => 2,
            Extent::Full => 30,
        }
    }

    fn was_interrupted(&self) -> bool {
        self.interrupts.came()
    }

    fn measuring(&mut self) {
        let line = self.job(
            "null engine, depth 64: the cost of measuring",
            &["--ioengine=null", "--rw=randread", "--bs=4k", "--iodepth=64", "--size=1g"],
        );
        self.sections.push(("Measuring", vec![line]));
    }

    fn drive(&mut self) {
        let Some(path) = self.arguments.filename.clone() else {
            return self.notes.push("drive: no --filename".into());
        };
        let made = !path.exists();
        let place = format!("--filename={}", path.display());
        let size = if made { "--size=1g" } else { "--size=100%" };
        // A namespace past the block layer is measured beside its block device.
        let block_device = nvme::block_device_of(&path).ok().flatten();
        let (layer, kernels) = match &block_device {
            Some(block_device) => ("nvme_cmd", format!("--filename={}", block_device.display())),
            None => ("glommio", place.clone()),
        };
        let mut lines = Vec::new();
        for (title, engine, rw, bs, depth) in [
            ("4 KiB random reads, depth 1", "io_uring", "randread", "4k", 1),
            ("4 KiB random reads, depth 8", "io_uring", "randread", "4k", 8),
            ("4 KiB random reads, depth 64", "io_uring", "randread", "4k", 64),
            ("the same by the cell's device layer", layer, "randread", "4k", 64),
            ("1 MiB sequential reads, depth 8", "io_uring", "read", "1m", 8),
            ("the same by the cell's device layer", layer, "read", "1m", 8),
        ] {
            let words = [
                format!("--ioengine={engine}"),
                format!("--rw={rw}"),
                format!("--bs={bs}"),
                format!("--iodepth={depth}"),
                if engine == layer { place.clone() } else { kernels.clone() },
                size.to_string(),
                "--direct=1".to_string(),
            ];
            lines.push(self.job(title, &words));
        }
        if made {
            // It was made for this; what is left of it harms nobody.
            let _ = std::fs::remove_file(&path);
        }
        self.sections.push(("Drive", lines));
    }

    fn fabric(&mut self) {
        let mut common = vec!["--ioengine=verbs".to_string(), format!("--device={}", self.arguments.device)];
        common.extend(self.arguments.hostname.iter().map(|host| format!("--hostname={host}")));
        let mut lines = Vec::new();
        for (title, more) in [
            ("SEND of 8 bytes there and back", ["--verb=send", "--rw=write", "--bs=8", "--iodepth=1", "--ping_pong=1"]),
            (
                "WRITE of 8 bytes there and back",
                ["--verb=write", "--rw=write", "--bs=8", "--iodepth=1", "--ping_pong=1"],
            ),
            ("WRITE of 64 KiB, depth 16", ["--verb=write", "--rw=write", "--bs=64k", "--iodepth=16", "--ping_pong=0"]),
            ("READ of 64 KiB, depth 16", ["--verb=read", "--rw=read", "--bs=64k", "--iodepth=16", "--ping_pong=0"]),
        ] {
            let words = common.iter().cloned().chain(more.map(String::from)).chain(["--size=1g".to_string()]);
            lines.push(self.job(title, &words.collect::<Vec<_>>()));
        }
        self.sections.push(("Fabric", lines));
    }

    fn cell(&mut self) -> Result<()> {
        let Some(connect) = self.arguments.connect.clone() else {
            self.notes.push("cell: no --connect".into());
            return Ok(());
        };
        let runtime = tokio::runtime::Runtime::new()?;
        let options = ConnectOptions {
            credentials: Credentials::find(self.arguments.credentials.as_deref())?,
            ..ConnectOptions::default()
        };
        if self.was_interrupted() {
            return Ok(());
        }
        let client = runtime.block_on(Client::connect(&connect, options))?;
        let scale = if self.arguments.profile == Extent::Quick { 0.1 } else { 1.0 };
        let started = Instant::now();
        let Some(rows) = runtime.block_on(load(&client, &self.arguments.table, scale, &self.interrupts))? else {
            return Ok(());
        };
        let rows_per_second = rows as f64 / started.elapsed().as_secs_f64();
        self.notes.push(format!(
            "the table had {rows} rows, loaded at {rows_per_second:.0} rows/s (generating them included)"
        ));
        self.notes
            .push("of the keys of the point reads one in four exists, as in TPC-H; the others find no row".into());
        self.questions(&connect, (1_500_000.0 * scale * 4.0) as u64);
        runtime.block_on(client.drop_table(&self.arguments.table, true)).context("dropping the profile's table")
    }

    fn questions(&mut self, connect: &str, last_key: u64) {
        let mut common = vec![
            format!("--connect={connect}"),
            format!("--table={}", self.arguments.table),
            format!("--transport={}", self.arguments.transport),
        ];
        common.extend(self.arguments.credentials.iter().map(|file| format!("--credentials={}", file.display())));
        let point = format!("--where=l_orderkey = $rand(1,{last_key})");
        let q6 = "--where=l_shipdate >= date '1994-01-01' and l_shipdate < date '1995-01-01' and l_discount between 0.05 and 0.07 and l_quantity < 24";
        let sum = "--aggregates=sum(l_extendedprice * l_discount) as revenue";
        let half = "--where=l_quantity <= 25";
        let columns = "--columns=l_orderkey,l_extendedprice";
        let mut lines = Vec::new();
        for (title, words) in [
            ("TPC-H Q6", vec!["--ioengine=hidb-scan", "--iodepth=1", q6, sum]),
            ("half of the rows, 2 columns", vec!["--ioengine=hidb-scan", "--iodepth=1", half, columns]),
            ("point reads, one at a time", vec!["--ioengine=hidb-point", "--iodepth=1", &point]),
            ("point reads, 16 at a time", vec!["--ioengine=hidb-point", "--iodepth=16", &point]),
        ] {
            let words = words.into_iter().map(String::from).chain(common.clone());
            let words = words.chain(["--rw=randread".into(), "--size=1g".into(), "--bs=4k".into()]);
            lines.push(self.job(title, &words.collect::<Vec<_>>()));
        }
        self.sections.push(("Cell", lines));
    }

    /// Runs one job and reads what it measured.
    fn job(&self, title: &'static str, words: &[impl AsRef<str>]) -> Line {
        let words: Vec<String> = words.iter().map(|word| word.as_ref().to_string()).collect();
        if !self.was_interrupted() {
            eprintln!("{title}");
        }
        let file = self.scratch.path().join("job.json");
        let mut all: Vec<OsString> = vec!["--name=profile".into()];
        all.extend(words.iter().map(OsString::from));
        let fixed = [
            format!("--runtime={}", self.seconds()),
            "--time_based=1".into(),
            "--lat_percentiles=1".into(),
            "--eta=never".into(),
        ];
        all.extend(fixed.into_iter().map(OsString::from));
        all.push("--output-format=json".into());
        all.push(format!("--output={}", file.display()).into());
        let run = || {
            heliostat_fio::run_with(all, ENGINES)?;
            measured(&serde_json::from_slice(&std::fs::read(&file)?)?)
        };
        let result = if self.was_interrupted() { Err(anyhow!("interrupted")) } else { run() };
        Line { title, words, result }
    }

    fn report(&self) -> String {
        let mut text = String::from("# Heliostat benchmark profile\n\n");
        let extent = if self.arguments.profile == Extent::Quick { "quick" } else { "full" };
        let today = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86_400);
        let (version, day) = (env!("CARGO_PKG_VERSION"), hidb::calendar::format_date(today as i64));
        let _ = writeln!(text, "`heliostat-bench {version} --profile {extent}` on {day}\n");
        text.push_str("| machine | |\n| --- | --- |\n");
        for (name, value) in facts::facts(self.arguments.filename.as_deref()) {
            let _ = writeln!(text, "| {name} | {value} |");
        }
        for (title, lines) in &self.sections {
            let _ = writeln!(text, "\n## {title}\n");
            text.push_str(
                "| what | ops/s | MB/s | p50, us | p99, us | errors |\n| --- | --- | --- | --- | --- | --- |\n",
            );
            for line in lines {
                let _ = match &line.result {
                    Ok(found) => writeln!(
                        text,
                        "| {} | {:.0} | {:.1} | {:.1} | {:.1} | {} |",
                        line.title,
                        found.ops_per_second,
                        found.bytes_per_second / 1e6,
                        found.p50_us,
                        found.p99_us,
                        found.errors
                    ),
                    Err(error) => writeln!(
                        text,
                        "| {} | failed: {} | | | | |",
                        line.title,
                        format!("{error:#}").replace(['|', '\n'], " ")
                    ),
                };
            }
            text.push_str("\n```sh\n");
            for line in lines {
                let words: Vec<String> = line.words.iter().map(|word| quoted(word)).collect();
                let _ = writeln!(
                    text,
                    "heliostat-bench --name=x {} --runtime={} --time_based",
                    words.join(" "),
                    self.seconds()
                );
            }
            text.push_str("```\n");
        }
        text.push_str("\n## Notes\n\n");
        for note in &self.notes {
            let _ = writeln!(text, "- {note}");
        }
        text
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_=./:,%+".contains(letter);
    match word.chars().all(plain) {
        true => word.to_string(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// Makes the table and fills it; how many rows it has. `None` when it was interrupted, and nothing made.
async fn load(client: &Client, table: &str, scale: f64, interrupts: &Interrupts) -> Result<Option<u64>> {
    eprintln!("loading TPC-H lineitem at scale {scale} into {table}");
    let input = Input::tpch(TpchTable::LineItem, scale, InputOptions::default())?;
    let mut writer = client.load(table, &input.schema().clone(), LoadMode::Create).await.with_context(|| {
        format!("making the table {table}: the profile drops its table afterwards, so it takes none that exists")
    })?;
    for batch in input.batches()? {
        if interrupts.came() {
            writer.abort().await?;
            return Ok(None);
        }
        writer.write(&batch?.rows).await?;
    }
    Ok(Some(writer.commit().await?.durable_rows))
}

/// The numbers of a report with one job.
fn measured(report: &Value) -> Result<Measured> {
    let job = &report["jobs"][0];
    let errors = job["heliostat"]["errors"].as_u64().unwrap_or(0);
    let way = [&job["read"], &job["write"]].into_iter().find(|way| way["total_ios"].as_u64().unwrap_or(0) > 0);
    let Some(way) = way else { bail!("no op succeeded, {errors} failed") };
    let latency = &way["lat_ns"]["percentile"];
    let us = |name: &str| latency[name].as_f64().unwrap_or(f64::NAN) / 1e3;
    Ok(Measured {
        ops_per_second: way["iops"].as_f64().unwrap_or(f64::NAN),
        bytes_per_second: way["bw_bytes"].as_f64().unwrap_or(f64::NAN),
        p50_us: us("50.000000"),
        p99_us: us("99.000000"),
        errors,
    })
}
