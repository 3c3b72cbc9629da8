//! The command line: arguments, and which module runs which command.
//!
//! Owns [`Arguments`] and [`Failure`]. Each command has a module of its own; `text` and `quantity` hold how things
//! are written for people.

mod cell;
mod dev;
mod load;
mod output;
mod quantity;
mod scan;
mod table;
mod text;

use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use heliostat_client::{Address, Client, ConnectOptions};
use hidb::{Error, ErrorCode};

/// Loads tables into a Heliostat cell and asks it questions.
#[derive(Parser)]
#[command(
    name = "heliostat",
    version,
    after_help = "Start here:\n  heliostat dev\n  heliostat load lineitem --tpch lineitem --scale 1\n  heliostat scan lineitem --where \"l_quantity < 5\" --limit 10"
)]
pub struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Global {
    /// The cell to talk to.
    #[arg(long, global = true, env = "HELIOSTAT_CONNECT", default_value = "hidb://127.0.0.1:7400", value_name = "URL")]
    connect: Address,
    /// Give up after this long (30s, 500ms, 2m). Without it a request takes the time it takes.
    #[arg(long, global = true, value_parser = quantity::parse_duration, value_name = "TIME")]
    timeout: Option<Duration>,
    /// How to reach the cell.
    #[arg(long, global = true, value_enum, default_value_t = Transport::Auto)]
    transport: Transport,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Transport {
    /// The fastest there is: TCP today.
    Auto,
    /// RDMA: not available in this version.
    Rdma,
    /// TCP.
    Tcp,
}

#[derive(Subcommand)]
enum Command {
    /// Run a one-machine appliance: a cell on a volume in a folder.
    Dev(dev::Arguments),
    /// Load files, or generated TPC-H data, into a table.
    Load(load::Arguments),
    /// Ask a question about a table: filter, project, aggregate, sort.
    Scan(scan::ScanArguments),
    /// Say what a scan would prune, read, decode and return.
    Explain(scan::Question),
    /// List, show and drop tables.
    #[command(subcommand)]
    Table(table::Command),
    /// List and show cells.
    #[command(subcommand)]
    Cell(cell::Command),
}

/// Why a command did not do what it was asked.
pub enum Failure {
    /// The request failed.
    Request(Error),
    /// The command was used wrongly.
    Usage(String),
    /// Whoever read the output has gone: nothing to say.
    BrokenPipe,
}

impl Failure {
    /// The line for standard error.
    pub fn line(&self) -> Option<String> {
        match self {
            Failure::Request(error) => Some(text::one_line(&error.to_string())),
            Failure::Usage(message) => Some(text::one_line(message)),
            Failure::BrokenPipe => None,
        }
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Request(_) => 1,
            Failure::Usage(_) => 2,
            Failure::BrokenPipe => 0,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Request(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Failure::BrokenPipe;
        }
        Failure::Request(Error::new(
            ErrorCode::Io,
            format!("the output can't be written: {error}: check where it goes"),
        ))
    }
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { global, command } = arguments;
    if global.transport == Transport::Rdma {
        return Err(Failure::Request(Error::new(
            ErrorCode::Unavailable,
            "RDMA is not available in this version: use --transport tcp",
        )));
    }
    match command {
        Command::Dev(arguments) => dev::run(arguments).await,
        Command::Load(arguments) => load::run(arguments, &global).await,
        Command::Scan(arguments) => scan::run(arguments, &global).await,
        Command::Explain(question) => scan::explain(question, &global).await,
        Command::Table(command) => table::run(command, &global).await,
        Command::Cell(command) => cell::run(command, &global).await,
    }
}

impl Global {
    fn options(&self) -> ConnectOptions {
        ConnectOptions {
            timeout: self.timeout,
            name: concat!("heliostat ", env!("CARGO_PKG_VERSION")).to_string(),
            ..ConnectOptions::default()
        }
    }

    async fn connect(&self, options: ConnectOptions) -> Result<Client, Failure> {
        Ok(Client::connect(&self.connect.to_string(), options).await?)
    }
}

/// How lists are printed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ListFormat {
    /// Aligned columns.
    Table,
    /// One JSON object per line.
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn wrong_usage_is_told_apart_from_failed_requests() {
        for line in [
            "heliostat scan",
            "heliostat scan t --format xml",
            "heliostat --connect http://x scan t",
            "heliostat scan t --timeout soon",
            "heliostat load t",
            "heliostat load t f --append --replace",
            "heliostat load t --tpch nothing",
        ] {
            let error = Arguments::try_parse_from(line.split(' ')).err().map(|error| error.exit_code());
            assert_eq!(error, Some(2), "{line}");
        }
    }
}
