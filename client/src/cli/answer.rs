//! What is to become of the answer of a scan or a search: their common arguments, and what follows from them.
//!
//! Owns [`AnswerArguments`]. The writing itself is [`super::output`]'s.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use heliostat_client::ConnectOptions;

use super::output::{Format, Output};
use super::{Failure, Global};

/// How an answer is written.
#[derive(Args)]
pub struct AnswerArguments {
    /// How the answer is written. When left out, as the extension of --output says; without --output, as a table.
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Write to this file instead of standard output; its extension (csv, json, jsonl, ndjson, arrow, parquet) chooses
    /// the format when --format is left out.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Say on standard error what the answer cost.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub stats: Option<StatsFormat>,
    /// Read everything from the drive instead of the cell's cache, for measurements.
    #[arg(long)]
    pub bypass_cache: bool,
}

/// How statistics are written.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StatsFormat {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

impl AnswerArguments {
    /// The format that was asked for, else the one that the name of the file says.
    pub fn chosen_format(&self) -> Result<Format, Failure> {
        chosen_format(self.format, self.output.as_deref())
    }

    /// Refuses to write what is not text to a terminal.
    pub fn check_terminal(&self, format: Format) -> Result<(), Failure> {
        match Output::would_garble_terminal(format, self.output.as_deref()) {
            true => Err(Failure::Usage("this format is not text: write it to a file with --output FILE".into())),
            false => Ok(()),
        }
    }
}

/// Options of a connection whose answers are written in this format.
pub fn connect_options(global: &Global, format: Format) -> ConnectOptions {
    let mut options = global.options();
    // Other readers of Arrow and Parquet files know Decimal128, but not all know Decimal64.
    options.decimal64 = !matches!(format, Format::Arrow | Format::Parquet);
    options
}

fn chosen_format(format: Option<Format>, output: Option<&Path>) -> Result<Format, Failure> {
    match (format, output) {
        (Some(format), _) => Ok(format),
        (None, None) => Ok(Format::Table),
        (None, Some(path)) => Format::of_file(path).ok_or_else(|| {
            Failure::Usage(format!(
                "the name of {} does not say how to write it: add --format csv, json, arrow, parquet or table",
                path.display()
            ))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_chooses_the_format_unless_one_is_named() {
        let chosen = |format, output: &str| chosen_format(format, Some(Path::new(output))).ok();
        for (name, format) in [
            ("a.csv", Format::Csv),
            ("a.json", Format::Json),
            ("a.jsonl", Format::Json),
            ("a.ndjson", Format::Json),
            ("a.b/c.ARROW", Format::Arrow),
            ("a.parquet", Format::Parquet),
        ] {
            assert_eq!(chosen(None, name), Some(format), "{name}");
            assert_eq!(chosen(Some(Format::Table), name), Some(Format::Table), "{name}");
        }
        for name in ["a", "a.txt", "a.csv/b", ".csv"] {
            assert_eq!(chosen(None, name), None, "{name}");
            assert_eq!(chosen(Some(Format::Csv), name), Some(Format::Csv), "{name}");
        }
        assert_eq!(chosen_format(None, None).ok(), Some(Format::Table));
    }
}
