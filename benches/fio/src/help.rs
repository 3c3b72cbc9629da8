//! `--help`, `--cmdhelp`, `--enghelp`, `--showcmd`: text from the table of options and from the engines.

use std::fmt::Write;

use crate::command::program;
use crate::engine::Engines;
use crate::job::table::{self, OPTIONS};
use crate::job::{JobSet, not_supported_because};

/// Options of the command itself: name, value, help.
pub(crate) const COMMAND: &[(&str, &str, &str)] = &[
    ("output", "FILE", "Write reports there"),
    ("output-format", "normal|json|json+|terse[,...]", "Forms of the report (default: normal)"),
    ("minimal", "", "The same as --output-format=terse"),
    ("append-terse", "", "Terse output behind the others"),
    ("terse-version", "3", "Version of terse output"),
    ("eta", "always|never|auto", "The live line; auto draws it on a terminal"),
    ("eta-newline", "TIME", "Print the live line on a line of its own this often"),
    ("status-interval", "TIME", "Print the whole report this often"),
    ("section", "NAME", "Run only this job of the files; may be given again"),
    ("readonly", "", "Refuse jobs that write"),
    ("allow-destructive", "DEVICE", "Write to this device whatever it holds; may be given again"),
    ("parse-only", "", "Check the jobs, run nothing"),
    ("showcmd", "", "Print the jobs as a command line"),
    ("compare", "A.json B.json", "Compare two reports, or lists of them: A1.json,A2.json,A3.json B1.json,..."),
    ("plot", "OUT.svg", "Draw latency percentiles and throughput over time"),
    ("sweep", "OPTION=V,V,...", "Run the jobs once for each value; print a table and the knee"),
    ("cmdhelp", "OPTION|all", "Explain options of jobs"),
    ("enghelp", "ENGINE", "List engines, or the options of one"),
    ("version", "", "Print the version"),
    ("help", "", "Print this"),
];

/// fio's options of the command that are not served.
const NOT_OF_COMMAND: &[(&str, &str)] = &[
    ("debug", "errors say what happened; strace(1) shows calls"),
    ("bandwidth-log", "write_bw_log logs each job"),
    ("merge-blktrace-only", "I/O traces are neither written nor replayed"),
    ("latency-log", "write_lat_log logs each job"),
    ("cpuclock-test", "the clock is CLOCK_MONOTONIC"),
    ("crctest", "checksums are tested by the test suite"),
    ("eta-interval", "the live line changes twice a second"),
    ("alloc-size", "memory is taken as needed"),
    ("warnings-fatal", "what would be a warning is an error already"),
    ("max-jobs", "there is no limit on jobs"),
    ("server", "runs are local; start one on each machine"),
    ("daemonize", "runs are local; start one on each machine"),
    ("client", "runs are local; start one on each machine"),
    ("remote-config", "runs are local; start one on each machine"),
    ("idle-prof", "mpstat(1) shows idle CPUs"),
    ("inflate-log", "logs are not compressed"),
    ("trigger-file", "a signal ends the run"),
    ("trigger-timeout", "runtime ends a run"),
    ("trigger", "no commands are run"),
    ("trigger-remote", "no commands are run"),
    ("aux-path", "no state files are written"),
];

pub(crate) fn is_switch(name: &str) -> bool {
    COMMAND.iter().any(|(known, value, _)| *known == name && value.is_empty()) || matches!(name, "cmdhelp" | "enghelp")
}

pub(crate) fn not_supported(name: &str) -> Option<&'static str> {
    NOT_OF_COMMAND.iter().find(|(known, _)| *known == name).map(|(_, because)| *because)
}

/// `--help`; `beside` is what the program does beside fio's command line.
pub(crate) fn help(engines: Engines<'_>, beside: &str) -> String {
    let program = program();
    let mut out = format!(
        "Measure storage in fio's words.\n\nUsage: {program} [options] [job options] [job file]...\n       \
         {program} --name=JOB [job options] [--name=JOB ...]\n\nOptions before the first --name hold for all jobs. \
         Job files are fio's.\n\nOptions:\n"
    );
    for (name, value, help) in COMMAND {
        let option = if value.is_empty() { format!("--{name}") } else { format!("--{name}={value}") };
        let _ = writeln!(out, "  {option:<46} {help}");
    }
    if !beside.is_empty() {
        let _ = write!(out, "\n{}\n", beside.trim_end());
    }
    let _ = writeln!(out, "\nEngines: {}", engines.iter().map(|engine| engine.name()).collect::<Vec<_>>().join(", "));
    let mut topic = "";
    for option in OPTIONS {
        if option.topic != topic {
            topic = option.topic;
            let _ = writeln!(out, "\n{topic}:");
        }
        let written = format!("--{}={}", option.name, option.takes);
        let default = if option.default.is_empty() { String::new() } else { format!(" [{}]", option.default) };
        let _ = writeln!(out, "  {written:<46} {}{default}", option.help);
    }
    out
}

/// `--cmdhelp=all` or one option.
pub(crate) fn of_options(name: &str, engines: Engines<'_>) -> Result<String, String> {
    let mut out = String::new();
    if name == "all" {
        OPTIONS.iter().for_each(|option| {
            let _ = writeln!(out, "{:<28}: {}", option.name, option.help);
        });
        return Ok(out);
    }
    if name == "markdown" {
        return Ok(markdown());
    }
    if let Some(option) = table::find(name) {
        let rows = [
            (option.name, option.help),
            ("takes", option.takes),
            ("default", if option.default.is_empty() { "no default" } else { option.default }),
        ];
        for (label, text) in rows {
            let _ = writeln!(out, "{label:>28}: {text}");
        }
        if !option.aliases.is_empty() {
            let _ = writeln!(out, "{:>28}: {}", "alias", option.aliases.join(", "));
        }
        return Ok(out);
    }
    let of_engine = engines.iter().flat_map(|engine| engine.options().iter().map(move |option| (engine, option)));
    for (engine, option) in of_engine.filter(|(_, option)| option.name == name) {
        let _ = writeln!(out, "{:>28}: {} (ioengine={})", option.name, option.help, engine.name());
    }
    if !out.is_empty() {
        return Ok(out);
    }
    match not_supported_because(name) {
        Some(because) => Err(format!("fio's option `{name}` is not supported: {because}")),
        None => Err(format!("--cmdhelp: unknown option `{name}`")),
    }
}

/// The table of options in `docs/benchmarking.md`.
fn markdown() -> String {
    let mut out = String::from("| option | takes | default | |\n| --- | --- | --- | --- |\n");
    for option in OPTIONS {
        let names: Vec<String> =
            std::iter::once(&option.name).chain(option.aliases).map(|name| format!("`{name}`")).collect();
        let takes = option.takes.replace('|', "\\|");
        let _ = writeln!(out, "| {} | {takes} | {} | {} |", names.join(", "), option.default, option.help);
    }
    out
}

/// `--enghelp`, `--enghelp=ENGINE`.
pub(crate) fn of_engines(name: Option<&str>, engines: Engines<'_>) -> Result<String, String> {
    let mut out = String::new();
    let Some(name) = name else {
        engines.iter().for_each(|engine| {
            let _ = writeln!(out, "{:<20}: {}", engine.name(), engine.help());
        });
        return Ok(out);
    };
    let engine = engines.iter().find(|engine| engine.name() == name);
    let engine = engine.ok_or_else(|| format!("--enghelp: unknown engine `{name}`"))?;
    for option in engine.options() {
        let _ = writeln!(out, "{:<20}: {} ({}, default {})", option.name, option.help, option.takes, option.default);
    }
    if out.is_empty() {
        let _ = writeln!(out, "{name} has no options of its own");
    }
    Ok(out)
}

/// A value as a POSIX shell takes it for one word.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,%=+@".contains(c);
    if value.chars().all(plain) { value.to_string() } else { format!("'{}'", value.replace('\'', "'\\''")) }
}

/// The jobs as a command line, each with what it said itself behind what is global.
pub(crate) fn as_command_line(set: &JobSet<'_>) -> String {
    let words = |given: &[(String, String)]| -> String {
        let others = given.iter().filter(|(name, _)| name != "name");
        others.map(|(name, value)| format!(" --{name}={}", quoted(value))).collect()
    };
    let mut out = format!("{}{}", program(), words(&set.global));
    for job in &set.jobs {
        let _ = write!(out, " --name={}{}", quoted(&job.name), words(&job.options.given));
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{null::Null, uring::IoUring};

    #[test]
    fn help_names_every_option_and_engine() {
        let text = help(&[&IoUring, &Null], "Commands:\n  ask\n");
        assert!(text.contains("\n\nCommands:\n  ask\n\nEngines"), "{text}");
        assert!(OPTIONS.iter().all(|option| text.contains(&format!("--{}=", option.name))));
        assert!(text.contains("Engines: io_uring, null"));
    }

    #[test]
    fn the_documentation_has_the_table_of_options() {
        let text = include_str!("../../../docs/benchmarking.md");
        assert!(text.contains(&markdown()), "put the output of --cmdhelp=markdown into docs/benchmarking.md");
    }

    #[test]
    fn a_command_line_survives_the_shell() {
        assert_eq!(quoted("4k-16k"), "4k-16k");
        assert_eq!(quoted("it's (4*1k)"), "'it'\\''s (4*1k)'");
        let set = crate::job::parse_job_file("[a b]\nioengine=null\nsize=1m\ndescription=two words\n", &[&Null]);
        let line = as_command_line(&set.unwrap_or_else(|error| panic!("{error}")));
        assert!(line.ends_with(" --name='a b' --ioengine=null --size=1m --description='two words'\n"), "{line}");
    }

    #[test]
    fn help_of_an_option_says_what_it_takes_or_why_it_is_not_there() {
        assert!(of_options("rwmixread", &[]).unwrap().contains("percent"));
        assert!(of_options("fixedbufs", &[&IoUring]).unwrap().contains("ioengine=io_uring"));
        assert!(of_options("read_iolog", &[]).unwrap_err().contains("is not supported"));
        assert!(of_options("nonsense", &[]).is_err());
    }
}
