//! The whole command line as clap sees it: for the man page and completions, never for parsing.
//!
//! Owns no option: those of the command come from `help`, those of jobs from the table, those of engines from the engines,
//! and commands (`heliostat-bench ask`) from the program's own clap description, into which all are merged.

use std::collections::BTreeMap;
use std::io;

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser};
use clap::{Arg, ArgAction, Command, ValueEnum, ValueHint};
use clap_complete::aot;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

use crate::engine::Engines;
use crate::help::COMMAND;
use crate::job::table::{self, OPTIONS};

/// Shells with completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// Into ~/.local/share/bash-completion/completions/heliostat-bench.
    Bash,
    /// Into a folder of $fpath, as _heliostat-bench.
    Zsh,
    /// Into ~/.config/fish/completions/heliostat-bench.fish.
    Fish,
}

const OF_ENGINES: &str = "Options of engines";

/// `base` with all options that [`crate::main_with`] reads; what `base` has already, it keeps.
pub fn describe(base: Command, engines: Engines<'_>) -> Command {
    let mut command = base
        .mut_args(|argument| argument.hide_possible_values(true).require_equals(true))
        .disable_help_flag(true)
        .disable_version_flag(true)
        .args_override_self(true);
    for (name, takes, help) in COMMAND {
        let shape = if takes.is_empty() { Shape::Flag } else { Shape::of(name, takes, engines) };
        let short = match *name {
            "help" => Some('h'),
            "version" => Some('v'),
            _ => None,
        };
        let option = argument(name, takes, help, "", shape).short(short);
        command = command.arg(if *name == "enghelp" { option.num_args(0..=1) } else { option });
    }
    for option in OPTIONS {
        let mut help = option.help.to_string();
        if !option.aliases.is_empty() {
            let others: Vec<String> = option.aliases.iter().map(|alias| format!("--{alias}")).collect();
            help = format!("{help}. Also {}", others.join(", "));
        }
        let shape = Shape::of(option.name, option.takes, engines);
        let described = argument(option.name, option.takes, &help, option.default, shape);
        command = command.arg(described.visible_aliases(option.aliases.iter().copied()).help_heading(option.topic));
    }
    for (name, (option, help)) in of_engines(engines) {
        let shape = Shape::of(name, option.takes, engines);
        command = command.arg(argument(name, option.takes, &help, option.default, shape).help_heading(OF_ENGINES));
    }
    let file = Arg::new("job file").value_name("JOB FILE").num_args(0..).value_hint(ValueHint::FilePath);
    command.arg(file.help("Jobs in fio's format; - reads standard input.").help_heading("Arguments"))
}

/// The man page, section 1, in roff.
pub fn man_page(command: &Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let mut built = command.clone();
    built.build();
    let name = built.get_name().to_string();
    let man = Man::new(command.clone()).manual("Heliostat");
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    page.extend(synopsis(&built, &name).to_roff().into_bytes());
    page.extend(description(&name).to_roff().into_bytes());
    let mut options = Vec::new();
    man.render_options_section(&mut options)?;
    page.extend(under_job_options(&without_angles(&options)).into_bytes());
    commands(&built, &name, &mut page)?;
    page.extend(ending(&name).to_roff().into_bytes());
    Ok(page)
}

/// The script that a shell reads to complete the command line.
pub fn completions(command: &Command, shell: Shell) -> String {
    // zsh separates parts of its descriptions by colons, and clap does not escape those in the names of values.
    let mut command = command.clone().mut_args(|argument| {
        let has_colon = argument.get_value_names().is_some_and(|names| names.iter().any(|name| name.contains(':')));
        if has_colon { argument.value_name("value") } else { argument }
    });
    let name = command.get_name().to_string();
    let mut script = Vec::new();
    match shell {
        Shell::Bash => aot::generate(aot::Bash, &mut command, name, &mut script),
        Shell::Zsh => aot::generate(aot::Zsh, &mut command, name, &mut script),
        Shell::Fish => aot::generate(aot::Fish, &mut command, name, &mut script),
    }
    let script = String::from_utf8_lossy(&script).into_owned();
    if shell == Shell::Bash { mended(&script, command.get_name()) } else { script }
}

/// What a value is made of.
enum Shape {
    /// No value.
    Flag,
    /// 0 or 1, and 1 when it is left out.
    Switch,
    Words(Vec<&'static str>),
    File,
    Folder,
    Other,
}

impl Shape {
    fn of(name: &str, takes: &'static str, engines: Engines<'_>) -> Shape {
        let words = takes.split_once('[').map_or(takes, |(words, _)| words);
        let is_word = |word: &&str| {
            !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b"_+0123456789".contains(&b))
        };
        match name {
            "ioengine" | "enghelp" => Shape::Words(engines.iter().map(|engine| engine.name()).collect()),
            "cmdhelp" => Shape::Words(std::iter::once("all").chain(table::names()).collect()),
            "filename" | "output" | "plot" | "compare" | "allow-destructive" => Shape::File,
            "directory" => Shape::Folder,
            _ if takes == "0|1" => Shape::Switch,
            _ if takes == "FILE" => Shape::File,
            _ if words.contains('|') && !takes.contains(':') | takes.contains("[:") => {
                Shape::Words(words.split('|').filter(is_word).collect())
            }
            _ => Shape::Other,
        }
    }
}

fn argument(name: &'static str, takes: &'static str, help: &str, default: &'static str, shape: Shape) -> Arg {
    let stop = if help.ends_with('.') { "" } else { "." };
    let option = Arg::new(name).long(name).help(format!("{help}{stop}"));
    if matches!(shape, Shape::Flag) {
        return option.action(ArgAction::SetTrue);
    }
    let option = match name {
        "compare" => option.value_names(["A.json", "B.json"]).num_args(2),
        _ => option.value_name(takes).num_args(1).require_equals(true),
    };
    let option = match shape {
        Shape::Switch => option.num_args(0..=1).value_parser(PossibleValuesParser::new(["0", "1"])),
        Shape::Words(words) if !words.is_empty() => option.value_parser(PossibleValuesParser::new(words)),
        Shape::File => option.value_hint(ValueHint::FilePath),
        Shape::Folder => option.value_hint(ValueHint::DirPath),
        _ => option.value_parser(NonEmptyStringValueParser::new()),
    };
    // The value's name shows the words already.
    let option = option.hide_possible_values(true).action(ArgAction::Append);
    if default.is_empty() { option } else { option.help(format!("{help}{stop} Default: {default}.")) }
}

type OfEngines = BTreeMap<&'static str, (crate::engine::EngineOption, String)>;

/// Options that only some engines have, and their help with the names of those.
fn of_engines(engines: Engines<'_>) -> OfEngines {
    let mut found: BTreeMap<&'static str, Vec<(&'static str, crate::engine::EngineOption)>> = BTreeMap::new();
    for engine in engines {
        for option in engine.options().iter().filter(|option| table::find(option.name).is_none()) {
            found.entry(option.name).or_default().push((engine.name(), *option));
        }
    }
    let merged = found.into_iter().map(|(name, of)| {
        let (_, first) = of[0];
        // Engines that mean the same say the same.
        let mut helps: Vec<(&str, Vec<&str>)> = Vec::new();
        for (engine, option) in &of {
            match helps.iter_mut().find(|(help, _)| *help == option.help) {
                Some((_, engines)) => engines.push(engine),
                None => helps.push((option.help, vec![engine])),
            }
        }
        let helps: Vec<String> =
            helps.iter().map(|(help, engines)| format!("{}: {help}", engines.join(", "))).collect();
        (name, (first, helps.join(". ")))
    });
    merged.collect()
}

fn synopsis(command: &Command, name: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([bold(name), roman(" ["), italic("options"), roman("] ["), italic("job file"), roman("]...")]);
    let jobs = [
        roman(" ["),
        italic("options"),
        roman("] "),
        bold("--name="),
        italic("JOB"),
        roman(" ["),
        italic("job options"),
    ];
    let mut line = vec![bold(name)];
    line.extend(jobs);
    line.extend([roman("] ["), bold("--name="), italic("JOB"), roman(" ...]")]);
    roff.control("br", []);
    roff.text(line);
    for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
        roff.control("br", []);
        let mut line = vec![bold(format!("{name} {}", command.get_name()))];
        if command.get_opts().next().is_some() {
            line.extend([roman(" ["), italic("options"), roman("]")]);
        }
        let positionals = command.get_positionals().map(|argument| argument.get_id().as_str().to_uppercase());
        line.extend(positionals.flat_map(|name| [roman(" "), italic(name)]));
        roff.text(line);
    }
    roff
}

fn description(name: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([
        bold(name),
        roman(" measures storage, and the layers above it, in the words of "),
        bold("fio"),
        roman("(1): its job files, its options, its reports. Options before the first "),
        bold("--name"),
        roman(" hold for all jobs; each "),
        bold("--name"),
        roman(
            " starts a job, and what follows is the job's. In a job file the same options stand without dashes, \
               under the name of the job in brackets, or under [global] for all.",
        ),
    ]);
    roff.control("PP", []);
    roff.text([roman(
        "Numbers take the suffixes k, m, g, t, p; times us, ms, s, m, h, d. A switch (0|1) alone is on. An option \
               of fio that is not served is an error that names it.",
    )]);
    roff
}

/// Commands with their options, as parts of one section: there is one page.
fn commands(command: &Command, name: &str, page: &mut Vec<u8>) -> io::Result<()> {
    let mut commands = command.get_subcommands().filter(|command| command.get_name() != "help").peekable();
    if commands.peek().is_none() {
        return Ok(());
    }
    let mut heading = Roff::new();
    heading.control("SH", ["COMMANDS"]);
    page.extend(heading.to_roff().into_bytes());
    for command in commands {
        let mut roff = Roff::new();
        let positionals: String = command
            .get_positionals()
            .map(|argument| format!(" {}", argument.get_id().as_str().to_uppercase()))
            .collect();
        roff.control("SS", [format!("{name} {}{positionals}", command.get_name()).as_str()]);
        let about = command.get_long_about().or_else(|| command.get_about()).map(ToString::to_string);
        roff.text([roman(about.unwrap_or_default())]);
        page.extend(roff.to_roff().into_bytes());
        let mut options = Vec::new();
        Man::new(command.clone()).render_options_section(&mut options)?;
        let options = without_angles(&options).into_bytes();
        // The heading goes: it would start a section of the page.
        let from = options.windows(4).position(|window| window == b"\n.TP").map_or(options.len(), |at| at + 1);
        page.extend_from_slice(&options[from..]);
    }
    Ok(())
}

fn ending(name: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for (status, meaning) in [
        ("0", "All jobs are done."),
        ("1", "A job failed, a block was wrong, a report could not be written, or the run was interrupted."),
        ("2", "Wrong usage: an option, a job file, or a device that must not be written to."),
    ] {
        roff.control("TP", []);
        roff.text([bold(status)]);
        roff.text([roman(meaning)]);
    }
    roff.control("SH", ["EXAMPLES"]);
    for (what, line) in [
        (
            "4 KiB random reads of a drive, 8 at a time, for half a minute:",
            "--name=qd8 --filename=/dev/nvme0n1 --rw=randread --bs=4k --iodepth=8 --ioengine=io_uring --direct=1 --time_based --runtime=30",
        ),
        ("The depth that pays:", "--sweep=iodepth=1,2,4,8,16,32,64 random-read.fio"),
        ("Is one better than the other?", "--compare A1.json,A2.json,A3.json B1.json,B2.json,B3.json"),
    ] {
        roff.control("PP", []);
        roff.text([roman(what)]);
        roff.control("RS", ["4"]);
        roff.text([bold(name), roman(format!(" {line}"))]);
        roff.control("RE", []);
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold("fio"), roman("(1), docs/benchmarking.md")]);
    roff
}

/// Values as `--bs=size`, as in all our help, not as `--bs=<size>`.
fn without_angles(page: &[u8]) -> String {
    String::from_utf8_lossy(page).replace("\\fI<", "\\fI").replace(">\\fR", "\\fR")
}

/// The topics of jobs as parts of one section: "FILES" alone means something else in a man page.
fn under_job_options(options: &str) -> String {
    let mut text = options.to_string();
    let mut before = ".SH \"JOB OPTIONS\"\n";
    for topic in OPTIONS.chunk_by(|a, b| a.topic == b.topic).filter_map(|chunk| chunk.first()).map(|one| one.topic) {
        let upper = topic.to_uppercase();
        let quoted = if upper.contains(' ') { format!("\"{upper}\"") } else { upper };
        text = text.replacen(&format!(".SH {quoted}\n"), &format!("{before}.SS \"{topic}\"\n"), 1);
        before = "";
    }
    text
}

/// Mends two things of clap's script for bash. To bash `--rw=read` is three words, and the script looks one word back:
/// it has to look over the sign. And it spells the name of a program with a dash in two ways, so that commands have no
/// options.
fn mended(script: &str, name: &str) -> String {
    let begins = "    prev=\"$3\"\n";
    let over = "    if [[ ${cur} == \"=\" ]]; then cur=\"\"; fi\n    \
                if [[ ${prev} == \"=\" ]]; then prev=\"${COMP_WORDS[COMP_CWORD-2]}\"; fi\n";
    let script = script.replacen(begins, &format!("{begins}{over}"), 1);
    script.replace(
        &format!("{}__subcmd__", name.replace('-', "__subcmd__")),
        &format!("{}__subcmd__", name.replace('-', "__")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{null::Null, uring::IoUring};

    fn command() -> Command {
        let base = Command::new("heliostat-bench")
            .about("Measure")
            .subcommand(Command::new("ask").about("Asks.").arg(Arg::new("count").long("count")));
        describe(base, &[&IoUring, &Null])
    }

    fn every_option() -> impl Iterator<Item = &'static str> {
        let of_command = COMMAND.iter().map(|(name, _, _)| *name);
        let of_engine = crate::engine::EngineKind::options(&IoUring).iter().map(|option| option.name);
        of_command.chain(table::names()).chain(of_engine)
    }

    #[test]
    fn the_description_is_one_that_clap_accepts() {
        command().debug_assert();
    }

    #[test]
    fn the_man_page_has_every_option_and_command() {
        let page = String::from_utf8(man_page(&command()).unwrap()).unwrap().replace("\\-", "-");
        for name in every_option() {
            let is_word = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-');
            assert!(page.split(&format!("--{name}")).skip(1).any(is_word), "--{name}");
        }
        assert!(page.contains(".SS \"heliostat-bench ask\"") && page.contains(".SS \"How it is issued\""), "{page}");
        assert_eq!(page.matches(".SH \"JOB OPTIONS\"").count(), 1);
        assert!(!page.contains('<'), "{page}");
    }

    #[test]
    fn completions_have_every_option() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = completions(&command(), shell);
            for name in every_option() {
                let wanted = if shell == Shell::Fish { format!(" -l {name} ") } else { format!("--{name}") };
                assert!(script.contains(&wanted), "{shell:?}: {wanted}");
            }
            assert!(!script.contains("[:"), "{shell:?}: {script}");
        }
    }

    #[test]
    fn bash_completes_options_and_values_behind_an_equals_sign() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("completions");
        std::fs::write(&script, completions(&command(), Shell::Bash)).unwrap();
        let complete = |words: &str, cur: &str, prev: &str| {
            let line = format!(
                "source {}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); \
                 compopt() {{ :; }}; _heliostat__bench heliostat-bench '{cur}' '{prev}'; echo \"${{COMPREPLY[*]}}\"",
                script.display()
            );
            let output = std::process::Command::new("bash").args(["-uc", &line]).output().unwrap();
            assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap().trim_end().to_string()
        };
        assert_eq!(complete("heliostat-bench --iodepth_b", "--iodepth_b", "heliostat-bench").split(' ').count(), 5);
        assert_eq!(complete("heliostat-bench --rw = rand", "rand", "="), "randread randwrite randrw");
        assert_eq!(complete("heliostat-bench --ioengine =", "=", "--ioengine"), "io_uring null");
        assert_eq!(complete("heliostat-bench ask --", "--", "ask"), "--count");
        assert_eq!(complete("heliostat-bench --readwrite rand", "rand", "--readwrite"), "randread randwrite randrw");
    }
}
