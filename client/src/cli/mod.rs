//! The command line: arguments, and which module runs which command.
//!
//! Owns [`Arguments`] and [`Failure`]. Each command has a module of its own; `text` and `quantity` hold how things
//! are written for people.

mod answer;
mod cell;
mod delete;
mod dev;
mod index;
mod interruption;
mod load;
mod output;
mod quantity;
mod scan;
mod search;
mod table;
mod text;
mod user;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use heliostat_client::{Address, Checksum, Client, ConnectOptions, Credentials, Integrity, Transport};
use hidb::{Error, ErrorCode};

/// Loads tables into a Heliostat cell, asks it questions and searches its vectors.
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
    /// The cell to talk to: hidb://HOST:PORT, or hidb+plain://HOST:PORT without TLS on this machine. Without it the
    /// profile's, or hidb://127.0.0.1:7400.
    #[arg(
        long,
        global = true,
        help_heading = CONNECTION,
        display_order = 900,
        env = "HELIOSTAT_CONNECT",
        value_name = "URL"
    )]
    connect: Option<Address>,
    /// The profile with user, password or certificate, and the cell's authority. Without it `HELIOSTAT_CREDENTIALS`
    /// names it, or it is the one that `heliostat dev` writes, $XDG_CONFIG_HOME/heliostat/default.toml (without that
    /// variable ~/.config/heliostat/default.toml).
    #[arg(
        long,
        global = true,
        help_heading = CONNECTION,
        display_order = 901,
        value_name = "FILE"
    )]
    credentials: Option<PathBuf>,
    /// Give up after this long (30s, 500ms, 2m; a bare number is seconds). Without it a request takes the time it
    /// takes.
    #[arg(
        long,
        global = true,
        help_heading = CONNECTION,
        display_order = 902,
        value_parser = quantity::parse_duration,
        value_name = "TIME"
    )]
    timeout: Option<Duration>,
    /// How answers travel: auto (RDMA where both sides have hardware for it, else TCP), rdma, tcp, or an RDMA device
    /// by name, such as rxe0 or soft.
    #[arg(
        long,
        global = true,
        help_heading = CONNECTION,
        display_order = 903,
        default_value_t = Transport::Auto,
        value_name = "HOW"
    )]
    transport: Transport,
    /// What is covered by checksums over RDMA: full, header, or none. Less than full means that a flipped bit may go
    /// unnoticed.
    #[arg(
        long,
        global = true,
        help_heading = CONNECTION,
        display_order = 903,
        default_value_t = Checksum::Full,
        value_name = "WHAT"
    )]
    rdma_checksum: Checksum,
    /// What keeps others on an RDMA network from changing answers: none, or hmac, a MAC over everything that travels,
    /// keyed from TLS (hidb://). It needs no checksum beside it.
    #[arg(
        long,
        global = true,
        help_heading = CONNECTION,
        display_order = 903,
        default_value_t = Integrity::None,
        value_name = "HOW"
    )]
    rdma_integrity: Integrity,
}

const CONNECTION: &str = "Connection";

/// The options of [`Global`] for commands that connect to nothing: they are taken, and not shown.
#[derive(Args)]
struct UnusedGlobal {
    #[arg(long = "connect", id = "connect", hide = true)]
    _connect: Option<Address>,
    #[arg(long = "credentials", id = "credentials", hide = true)]
    _credentials: Option<PathBuf>,
    #[arg(long = "timeout", id = "timeout", hide = true, value_parser = quantity::parse_duration)]
    _timeout: Option<Duration>,
    #[arg(long = "transport", id = "transport", hide = true)]
    _transport: Option<Transport>,
    #[arg(long = "rdma-checksum", id = "rdma_checksum", hide = true)]
    _rdma_checksum: Option<Checksum>,
    #[arg(long = "rdma-integrity", id = "rdma_integrity", hide = true)]
    _rdma_integrity: Option<Integrity>,
}

/// Whatever follows a command that is not in this version.
#[derive(Args)]
struct Anything {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    _rest: Vec<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Run a one-machine appliance: a cell on a volume in a folder.
    Dev(dev::Arguments),
    /// Load files, or generated TPC-H data, into a table.
    Load(load::Arguments),
    /// Ask a question about a table: filter, project, aggregate, sort.
    Scan(scan::ScanArguments),
    /// Say what a scan would prune and read.
    Explain(scan::Question),
    /// List, show and drop tables.
    #[command(subcommand)]
    Table(table::Command),
    /// List and show cells.
    #[command(subcommand)]
    Cell(cell::Command),
    /// Find the nearest neighbours of vectors.
    Search(search::Arguments),
    /// Make, list and drop indexes over columns of vectors.
    #[command(subcommand)]
    Index(index::Command),
    /// Delete rows of a table.
    Delete(delete::Arguments),
    /// Background jobs: not in this version.
    #[command(hide = true, disable_help_flag = true)]
    Job(Anything),
    /// Add, list, change and remove users, and grant them tables (for administrators).
    #[command(subcommand)]
    User(user::Command),
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
    match command {
        Command::Dev(arguments) => dev::run(arguments).await,
        Command::Load(arguments) => load::run(arguments, &global).await,
        Command::Scan(arguments) => scan::run(arguments, &global).await,
        Command::Explain(question) => scan::explain(question, &global).await,
        Command::Table(command) => table::run(command, &global).await,
        Command::Cell(command) => cell::run(command, &global).await,
        Command::Search(arguments) => search::run(arguments, &global).await,
        Command::Index(command) => index::run(command, &global).await,
        Command::Delete(arguments) => delete::run(arguments, &global).await,
        Command::Job(_) => not_yet("job", "background jobs that can be listed come"),
        Command::User(command) => user::run(command, &global).await,
    }
}

fn not_yet(command: &str, what_comes: &str) -> Result<(), Failure> {
    Err(Failure::Usage(format!(
        "`{command}` is not in this version: {what_comes} with a later one; `heliostat --help` lists what there is"
    )))
}

impl Global {
    fn options(&self) -> ConnectOptions {
        ConnectOptions {
            timeout: self.timeout,
            name: concat!("heliostat ", env!("CARGO_PKG_VERSION")).to_string(),
            transport: self.transport.clone(),
            checksum: self.rdma_checksum,
            integrity: self.rdma_integrity,
            ..ConnectOptions::default()
        }
    }

    async fn connect(&self, options: ConnectOptions) -> Result<Client, Failure> {
        let credentials = Credentials::find(self.credentials.as_deref())?;
        let of_profile = || credentials.as_ref().and_then(Credentials::address).map(Address::to_string);
        let address = self.connect.as_ref().map(Address::to_string).or_else(of_profile);
        let address = address.unwrap_or_else(|| format!("hidb://127.0.0.1:{}", heliostat_client::DEFAULT_PORT));
        Ok(Client::connect(&address, ConnectOptions { credentials, ..options }).await?)
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
    fn expressions_may_begin_with_a_minus() {
        for line in [
            "heliostat scan t --where -3<i --select -i --agg -sum(i) --group-by -i --order-by -i",
            "heliostat search t --like-id -3 --where -3<i --distance-max -1",
            "heliostat search t --vector -",
            "heliostat delete t --where -3<i",
        ] {
            assert!(Arguments::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }

    #[test]
    fn global_options_are_taken_everywhere_and_shown_where_they_count() {
        let help = |command: &str| {
            let mut whole = Arguments::command();
            whole.build();
            whole.find_subcommand_mut(command).unwrap().render_long_help().to_string()
        };
        assert!(help("scan").contains("Connection:") && help("scan").contains("--connect"));
        assert!(!help("dev").contains("Connection:") && !help("dev").contains("--connect"));
        for line in ["heliostat dev --connect hidb://127.0.0.1:1", "heliostat --timeout 5s dev"] {
            assert!(Arguments::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        let parsed = Arguments::try_parse_from("heliostat table ls --timeout 5".split(' ')).ok().unwrap();
        assert_eq!(parsed.global.timeout, Some(Duration::from_secs(5)));
    }

    #[tokio::test]
    async fn commands_of_later_versions_are_refused_by_name() {
        for line in ["job ls", "job --help"] {
            let arguments = Arguments::try_parse_from(["heliostat"].into_iter().chain(line.split(' '))).ok().unwrap();
            let failure = run(arguments).await.unwrap_err();
            assert_eq!(failure.exit_code(), 2, "{line}");
            let name = line.split(' ').next().unwrap();
            assert!(failure.line().unwrap().contains(&format!("`{name}` is not in this version")), "{line}");
        }
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
            "heliostat load t f --tpch lineitem",
            "heliostat search t",
            "heliostat search t --like-id 1 --vector f",
            "heliostat search t --like-id 1 --exact --recall 0.9",
            "heliostat search t --like-id 1 --metric euclid",
            "heliostat search t --like-id 1 --explain --output f.csv",
            "heliostat index create t",
            "heliostat index create t c --kind tree",
            "heliostat index create t c --bits 9",
            "heliostat index create t c --lists 0",
            "heliostat index drop t",
            "heliostat delete t",
            "heliostat delete t --all --where a=1",
            "heliostat dev --size 10",
            "heliostat dev --cache 91%",
        ] {
            let error = Arguments::try_parse_from(line.split(' ')).err().map(|error| error.exit_code());
            assert_eq!(error, Some(2), "{line}");
        }
        let nothing = Arguments::try_parse_from(["heliostat", "load", "t"]).err().unwrap().to_string();
        assert!(nothing.contains("--tpch"), "{nothing}");
    }
}
