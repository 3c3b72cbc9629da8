//! The command line: fio's, with `--compare`, `--plot`, `--sweep` and `--allow-destructive`.
//!
//! Options that are not of the command itself are options of jobs, in the order in which they stand: before the first
//! `--name` they are global, `--name` starts a job, job files are read afterwards. Exit codes: 0 done; 1 a job failed, or
//! a block was wrong; 2 wrong usage.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use thiserror::Error;

use crate::engine::Engines;
use crate::files::{FileError, Permissions, has_folder, is_watched};
use crate::job::value::time_us;
use crate::job::{JobError, JobSet, JobSetBuilder, Place, Section, Setting, Surroundings, include_from_files, table};
use crate::report::{json, live::Line, normal, terse};
use crate::run::{CloneResult, Control, Progress, RunError, Watcher, prepare, run};
use crate::{compare, help, sweep};

/// What the command was asked for and could not do.
#[derive(Debug, Error)]
pub enum CommandError {
    /// An argument of the command itself.
    #[error("{0} (see --help)")]
    Usage(String),
    /// A job file or an option.
    #[error(transparent)]
    Job(#[from] JobError),
    /// While running, or before.
    #[error("{0}")]
    Run(String),
    /// The guard, or files that do not fit the job.
    #[error("{0}")]
    Refused(String),
    /// A file for a report.
    #[error("cannot write {}: {cause}", path.display())]
    Report {
        /// Which file.
        path: PathBuf,
        /// What happened.
        cause: String,
    },
    /// Whoever read standard output has read enough. Not worth a word.
    #[error("nobody reads standard output")]
    Unread,
}

impl CommandError {
    /// The exit code that goes with it.
    pub fn exit_code(&self) -> u8 {
        match self {
            CommandError::Usage(_) | CommandError::Job(_) | CommandError::Refused(_) => 2,
            CommandError::Run(_) | CommandError::Report { .. } => 1,
            // What a shell gives for a command that SIGPIPE has ended.
            CommandError::Unread => 128 + libc::SIGPIPE as u8,
        }
    }
}

impl From<RunError> for CommandError {
    fn from(error: RunError) -> Self {
        match &error {
            RunError::File(FileError::Usage { .. } | FileError::Guarded { .. }) => {
                CommandError::Refused(error.to_string())
            }
            _ => CommandError::Run(error.to_string()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Normal,
    Json,
    JsonPlus,
    Terse,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Eta {
    Always,
    Never,
    #[default]
    Auto,
}

/// What stands on the command line.
#[derive(Debug, Default)]
struct Invocation {
    sections: Vec<Section>,
    files: Vec<PathBuf>,
    formats: Vec<Format>,
    output: Option<PathBuf>,
    output_begun: Cell<bool>,
    /// Nobody reads standard output any more.
    unread: Cell<bool>,
    eta: Eta,
    eta_newline: Option<Duration>,
    status_interval: Option<Duration>,
    only: Vec<String>,
    destructive: Vec<PathBuf>,
    read_only: bool,
    parse_only: bool,
    show: bool,
    plot: Option<PathBuf>,
    sweep: Option<sweep::Sweep>,
    compare: Option<(String, String)>,
    help: bool,
    print: Option<String>,
}

/// Runs this process's command line and says how it ended. `beside` ends `--help`: what else the program does.
pub fn main_with(engines: Engines<'_>, beside: &str) -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match run_beside(arguments, engines, beside) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            if !matches!(error, CommandError::Unread) {
                eprintln!("{}: {error}", program());
            }
            ExitCode::from(error.exit_code())
        }
    }
}

/// The name by which the program was called.
pub(crate) fn program() -> String {
    let name = std::env::args_os().next().map(PathBuf::from);
    name.and_then(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()))
        .unwrap_or_else(|| "heliostat-bench".into())
}

/// Runs a command line without the program's name; whether all jobs went well.
pub fn run_with(arguments: Vec<OsString>, engines: Engines<'_>) -> Result<bool, CommandError> {
    run_beside(arguments, engines, "")
}

fn run_beside(arguments: Vec<OsString>, engines: Engines<'_>, beside: &str) -> Result<bool, CommandError> {
    let mut invocation = parse(arguments, engines)?;
    if invocation.help {
        invocation.print = Some(help::help(engines, beside));
    }
    match execute(&invocation, engines) {
        Ok(_) if invocation.unread.get() => Err(CommandError::Unread),
        ended => ended,
    }
}

fn execute(invocation: &Invocation, engines: Engines<'_>) -> Result<bool, CommandError> {
    if let Some(text) = &invocation.print {
        return output(invocation, text).map(|()| true);
    }
    if let Some((a, b)) = &invocation.compare {
        let [a, b] = [a, b].map(|list| compare::Side::read(list));
        let (a, b) = (a.map_err(CommandError::Run)?, b.map_err(CommandError::Run)?);
        if let Some(path) = &invocation.plot {
            draw(path, &[a.newest(), b.newest()])?;
        }
        return output(invocation, &compare::report(&a, &b)).map(|()| true);
    }
    let here = Surroundings::of_this_process();
    if !invocation.show && !invocation.parse_only {
        claim_files(invocation)?;
    }
    if let Some(sweep) = &invocation.sweep {
        return run_sweep(invocation, sweep, engines, &here);
    }
    let set = jobs(invocation, engines, &here, Vec::new())?;
    if invocation.show {
        return output(invocation, &help::as_command_line(&set)).map(|()| true);
    }
    if invocation.parse_only {
        return Ok(true);
    }
    let (results, fine) = measure(invocation, &set)?;
    if let Some(path) = &invocation.plot {
        draw(path, &[json::report(&results, &set.global, false, time_now().as_parts())])?;
    }
    Ok(fine)
}

/// Runs jobs, with the line and the reports; results, and whether all went well.
fn measure<'e>(invocation: &Invocation, set: &JobSet<'e>) -> Result<(Vec<CloneResult<'e>>, bool), CommandError> {
    if invocation.read_only
        && let Some(job) = set.jobs.iter().find(|job| job.options.direction.write)
    {
        return Err(CommandError::Refused(format!("job `{}` writes, and --readonly was given", job.name)));
    }
    let tasks = prepare(set, &Permissions { destructive: invocation.destructive.clone() })?;
    set.jobs.iter().flat_map(|job| &job.notes).for_each(|note| eprintln!("note: {note}"));
    if invocation.formats.contains(&Format::Normal) {
        output(invocation, &normal::opening(set))?;
    }
    let drawn = invocation.eta != Eta::Never && is_watched();
    // Where nothing can be drawn in place, lines below each other show the same.
    let lines = invocation.eta_newline.or((invocation.eta == Eta::Always && !drawn).then_some(Duration::from_secs(1)));
    let control = Control::listening()?;
    let mut onlooker = Onlooker { line: Line::new(drawn, lines), invocation, set, control: &control, failed: None };
    let results = run(&tasks, invocation.status_interval, &control, &mut onlooker)?;
    onlooker.line.clear();
    if let Some(error) = onlooker.failed {
        return Err(error);
    }
    if invocation.unread.get() && invocation.plot.is_none() {
        return Err(CommandError::Unread);
    }
    if control.was_interrupted() {
        eprintln!("{}: interrupted; these are the results so far", program());
    }
    report(invocation, set, &results)?;
    let fine = results.iter().all(|result| result.stats.first_error.is_none());
    Ok((results, fine && !control.was_interrupted()))
}

struct Onlooker<'a, 'e> {
    line: Line,
    invocation: &'a Invocation,
    set: &'a JobSet<'e>,
    control: &'a Control,
    failed: Option<CommandError>,
}

impl Watcher for Onlooker<'_, '_> {
    fn progress(&mut self, progress: &Progress<'_>) {
        self.line.update(progress);
    }

    fn status(&mut self, results: &[CloneResult<'_>]) {
        self.line.clear();
        if let Err(error) = report(self.invocation, self.set, results) {
            self.failed = Some(error);
        }
        // Neither a reader that has gone nor a full disk comes back: what is measured now, nobody will see.
        if self.failed.is_some() || (self.invocation.unread.get() && self.invocation.plot.is_none()) {
            self.control.end();
        }
    }
}

fn report(invocation: &Invocation, set: &JobSet<'_>, results: &[CloneResult<'_>]) -> Result<(), CommandError> {
    let time = time_now();
    for format in &invocation.formats {
        let text = match format {
            Format::Normal => normal::report(results, &time.text),
            Format::Terse => terse::report(results),
            Format::Json | Format::JsonPlus => {
                let value = json::report(results, &set.global, *format == Format::JsonPlus, time.as_parts());
                format!("{value:#}\n")
            }
        };
        output(invocation, &text)?;
    }
    Ok(())
}

fn run_sweep(
    invocation: &Invocation,
    sweep: &sweep::Sweep,
    engines: Engines<'_>,
    here: &Surroundings,
) -> Result<bool, CommandError> {
    let mut rows = Vec::new();
    let mut fine = true;
    for value in &sweep.values {
        let setting = Setting { place: Place::CommandLine, name: sweep.option.clone(), value: value.clone() };
        let set = jobs(invocation, engines, here, vec![setting])?;
        let quiet = Invocation {
            eta: invocation.eta,
            eta_newline: invocation.eta_newline,
            destructive: invocation.destructive.clone(),
            read_only: invocation.read_only,
            ..Invocation::default()
        };
        let (results, went_well) = measure(&quiet, &set)?;
        fine &= went_well;
        rows.push(sweep::Row::of(value, &results));
        if !went_well {
            break;
        }
    }
    output(invocation, &sweep::report(sweep, &rows))?;
    Ok(fine)
}

fn jobs<'e>(
    invocation: &Invocation,
    engines: Engines<'e>,
    here: &Surroundings,
    overrides: Vec<Setting>,
) -> Result<JobSet<'e>, CommandError> {
    let mut builder = JobSetBuilder::new(engines, here, invocation.only.clone(), overrides);
    for section in &invocation.sections {
        builder.section(section.clone())?;
    }
    for path in &invocation.files {
        let text = match path.as_os_str() == "-" {
            true => io::read_to_string(io::stdin()),
            false => std::fs::read_to_string(path),
        };
        let text = text.map_err(|cause| JobError::Read(path.clone(), cause.to_string()))?;
        builder.file(path, &text, &include_from_files)?;
    }
    Ok(builder.finish()?)
}

fn parse(arguments: Vec<OsString>, engines: Engines<'_>) -> Result<Invocation, CommandError> {
    let usage = |what: String| Err(CommandError::Usage(what));
    let mut invocation = Invocation::default();
    let mut current = Section { name: "global".into(), settings: Vec::new() };
    let mut arguments = arguments.into_iter().peekable();
    while let Some(argument) = arguments.next() {
        let Some(text) = argument.to_str().map(str::to_string) else {
            invocation.files.push(argument.into());
            continue;
        };
        let text = match text.as_str() {
            "-h" => "--help".to_string(),
            "-v" | "-V" => "--version".to_string(),
            _ => text,
        };
        let Some(option) = text.strip_prefix("--").filter(|option| !option.is_empty()) else {
            if text.starts_with('-') && text != "-" {
                return usage(format!("unknown option `{text}`; options begin with --"));
            }
            invocation.files.push(text.into());
            continue;
        };
        let (name, given) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value.to_string())),
            None => (option, None),
        };
        // fio takes `--bs 4k` as well as `--bs=4k`; of switches only `--direct 1` and `--direct 0`.
        let is_switch = table::find(name).is_some_and(|option| option.is_switch()) || help::is_switch(name);
        let given = given.or_else(|| {
            let is_value = |next: &OsString| match next.to_string_lossy() {
                next if is_switch => next == "0" || next == "1",
                next => !next.starts_with("--"),
            };
            let next = arguments.next_if(is_value)?;
            Some(next.to_string_lossy().into_owned())
        });
        if name == "name" {
            let Some(name) = given.filter(|name| !name.is_empty()) else {
                return usage("--name needs the name of a job".into());
            };
            let setting = Setting { place: Place::CommandLine, name: "name".into(), value: name.clone() };
            let settings = if name == "global" { Vec::new() } else { vec![setting] };
            invocation.sections.push(std::mem::replace(&mut current, Section { name, settings }));
            continue;
        }
        if name == "compare" {
            let second = arguments.next().map(|second| second.to_string_lossy().into_owned());
            let (Some(a), Some(b)) = (given, second) else {
                return usage("--compare needs two reports: --compare A.json B.json".into());
            };
            invocation.compare = Some((a, b));
            continue;
        }
        if of_command(&mut invocation, name, given.as_deref(), engines)? {
            continue;
        }
        let (name, value) = (name.to_string(), given.unwrap_or_default());
        current.settings.push(Setting { place: Place::CommandLine, name, value });
    }
    invocation.sections.push(current);
    invocation.sections.retain(|section| !section.is_global() || !section.settings.is_empty());
    if invocation.formats.is_empty() && invocation.sweep.is_none() {
        invocation.formats.push(Format::Normal);
    }
    Ok(invocation)
}

/// Takes an option of the command itself; whether it was one.
fn of_command(
    invocation: &mut Invocation,
    name: &str,
    value: Option<&str>,
    engines: Engines<'_>,
) -> Result<bool, CommandError> {
    let needed = || value.ok_or_else(|| CommandError::Usage(format!("--{name} needs a value")));
    let time = |text: &str| match time_us(text, 1_000_000) {
        Ok(us) if us > 0 => Ok(Duration::from_micros(us)),
        _ => Err(CommandError::Usage(format!("--{name}: `{text}` is not a time above 0"))),
    };
    match name {
        "help" => invocation.help = true,
        "version" => invocation.print = Some(format!("{}\n", crate::report::VERSION)),
        "cmdhelp" => {
            invocation.print = Some(help::of_options(value.unwrap_or("all"), engines).map_err(CommandError::Usage)?)
        }
        "enghelp" => invocation.print = Some(help::of_engines(value, engines).map_err(CommandError::Usage)?),
        "output" => invocation.output = Some(needed()?.into()),
        "output-format" => {
            invocation.formats.clear();
            for word in needed()?.split(',') {
                invocation.formats.push(match word {
                    "normal" => Format::Normal,
                    "json" => Format::Json,
                    "json+" => Format::JsonPlus,
                    "terse" | "minimal" => Format::Terse,
                    other => {
                        let what = format!("--output-format: `{other}` is none of normal, json, json+, terse");
                        return Err(CommandError::Usage(what));
                    }
                });
            }
        }
        "minimal" => invocation.formats = vec![Format::Terse],
        "append-terse" => invocation.formats.push(Format::Terse),
        "terse-version" if needed()? != "3" => {
            return Err(CommandError::Usage(format!("--terse-version={}: only version 3 is written", needed()?)));
        }
        "terse-version" => {}
        "eta" => {
            invocation.eta = match needed()? {
                "always" => Eta::Always,
                "never" => Eta::Never,
                "auto" => Eta::Auto,
                other => return Err(CommandError::Usage(format!("--eta: `{other}` is none of always, never, auto"))),
            }
        }
        "eta-newline" => invocation.eta_newline = Some(time(needed()?)?),
        "status-interval" => invocation.status_interval = Some(time(needed()?)?),
        "section" => invocation.only.push(needed()?.to_string()),
        "allow-destructive" => invocation.destructive.push(needed()?.into()),
        "readonly" => invocation.read_only = true,
        "parse-only" => invocation.parse_only = true,
        "showcmd" => invocation.show = true,
        "plot" => invocation.plot = Some(needed()?.into()),
        "sweep" => invocation.sweep = Some(sweep::Sweep::parse(needed()?).map_err(CommandError::Usage)?),
        other => {
            return match help::not_supported(other) {
                Some(because) => {
                    Err(CommandError::Usage(format!("fio's option --{other} is not supported: {because}")))
                }
                None => Ok(false),
            };
        }
    }
    Ok(true)
}

#[cfg(feature = "plot")]
fn draw(path: &std::path::Path, reports: &[serde_json::Value]) -> Result<(), CommandError> {
    crate::plot::draw(path, reports).map_err(|cause| CommandError::Report { path: path.to_path_buf(), cause })
}

#[cfg(not(feature = "plot"))]
fn draw(_: &std::path::Path, _: &[serde_json::Value]) -> Result<(), CommandError> {
    Err(CommandError::Usage("this build has no --plot".into()))
}

/// Prints, or appends to `--output`; the first text makes the file anew.
fn output(invocation: &Invocation, text: &str) -> Result<(), CommandError> {
    let Some(path) = &invocation.output else {
        let mut out = io::stdout().lock();
        return match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                invocation.unread.set(true);
                Ok(())
            }
            ended => {
                ended.map_err(|error| CommandError::Report { path: "standard output".into(), cause: error.to_string() })
            }
        };
    };
    let anew = !invocation.output_begun.replace(true);
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(anew).append(!anew);
    options
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|cause| CommandError::Report { path: path.clone(), cause: cause.to_string() })
}

/// Finds out before a run, not after, that its files can't be written.
fn claim_files(invocation: &Invocation) -> Result<(), CommandError> {
    if invocation.output.is_some() {
        output(invocation, "")?;
    }
    match &invocation.plot {
        Some(path) => {
            has_folder(path).map_err(|cause| CommandError::Report { path: path.clone(), cause: cause.to_string() })
        }
        None => Ok(()),
    }
}

struct Time {
    text: String,
    ms: u64,
}

impl Time {
    fn as_parts(&self) -> (&str, u64) {
        (&self.text, self.ms)
    }
}

/// Now, as text like "Sat Nov 21 19:01:23 2026" in local time.
fn time_now() -> Time {
    let ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let seconds = (ms / 1000) as libc::time_t;
    // SAFETY: `tm` is plain integers and a pointer that is not read here; zero is a value for all of them.
    let mut parts: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both point to values of this frame.
    unsafe { libc::localtime_r(&seconds, &mut parts) };
    let days = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let text = format!(
        "{} {} {:2} {:02}:{:02}:{:02} {}",
        days[parts.tm_wday.clamp(0, 6) as usize],
        months[parts.tm_mon.clamp(0, 11) as usize],
        parts.tm_mday,
        parts.tm_hour,
        parts.tm_min,
        parts.tm_sec,
        parts.tm_year + 1900
    );
    Time { text, ms }
}
