//! What can be wrong with a job file or a command line: one line each, with place and advice.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

use super::value::ValueError;

/// Where an option was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a job file, at a line counted from 1.
    File(PathBuf, usize),
    /// On the command line.
    CommandLine,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File(path, line) => write!(f, "{}:{line}", path.display()),
            Place::CommandLine => f.write_str("command line"),
        }
    }
}

/// Why there is no job to run.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum JobError {
    /// A line that is neither section, option nor comment.
    #[error("{0}: `{1}` is neither [section] nor option=value")]
    Line(Place, String),
    /// An option before the first section.
    #[error("{0}: option `{1}` stands before the first [section]")]
    NoSection(Place, String),
    /// Nobody knows this option.
    #[error("{place}: unknown option `{name}`{}", did_you_mean(.suggestion))]
    Unknown {
        /// Where.
        place: Place,
        /// What was written.
        name: String,
        /// A known name that is close.
        suggestion: Option<String>,
    },
    /// fio has this option; Heliostat does not.
    #[error("{place}: fio's option `{name}` is not supported: {because}")]
    NotSupported {
        /// Where.
        place: Place,
        /// The option.
        name: String,
        /// Why, or what to use.
        because: &'static str,
    },
    /// The value of an option.
    #[error("{place}: {name}: {cause}")]
    Value {
        /// Where.
        place: Place,
        /// The option.
        name: String,
        /// What is wrong.
        cause: ValueError,
    },
    /// An option that goes with another engine.
    #[error("job `{job}`: option `{name}` is not one of ioengine={engine}")]
    NotOfEngine {
        /// The job.
        job: String,
        /// The option.
        name: String,
        /// The engine of the job.
        engine: String,
    },
    /// No such engine.
    #[error("job `{job}`: unknown ioengine `{engine}`; there are: {known}")]
    Engine {
        /// The job.
        job: String,
        /// What was asked for.
        engine: String,
        /// The names of the engines.
        known: String,
    },
    /// Options that do not go together, or one that is missing.
    #[error("job `{job}`: {what}")]
    Contradiction {
        /// The job.
        job: String,
        /// One sentence.
        what: String,
    },
    /// A job file that can't be read.
    #[error("cannot read the job file {path}: {cause}", path = .0.display(), cause = .1)]
    Read(PathBuf, String),
    /// An include in an include in an include...
    #[error("{0}: includes are nested more than 16 deep")]
    Nesting(Place),
    /// An included file may not open sections.
    #[error("{0}: an included file may not contain a [section]")]
    IncludedSection(Place),
    /// Nothing to do.
    #[error("no job: name a job file, or give --name=NAME and options (see --help)")]
    NoJob,
}

fn did_you_mean(suggestion: &Option<String>) -> String {
    suggestion.as_ref().map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

/// The known name that is closest to what was written, when it is close.
pub(crate) fn closest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let allowed = 1 + name.len() / 4;
    known
        .map(|candidate| (edits(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= allowed && 2 * distance <= candidate.len())
        .min()
        .map(|(_, candidate)| candidate.to_string())
}

/// Levenshtein's distance, in bytes.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_the_option_and_nonsense_finds_none() {
        let known = ["iodepth", "runtime", "rw", "size"];
        assert_eq!(closest("iodpeth", known.into_iter()).as_deref(), Some("iodepth"));
        assert_eq!(closest("run_time", known.into_iter()).as_deref(), Some("runtime"));
        assert_eq!(closest("szie", known.into_iter()).as_deref(), Some("size"));
        assert_eq!(closest("blah", ["ba", "bs"].into_iter()), None);
        assert_eq!(closest("wombat", known.into_iter()), None);
        assert_eq!(edits("kitten", "sitting"), 3);
    }
}
