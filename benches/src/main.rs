//! `heliostat-bench`: measures a Heliostat system.
//!
//! Owns the benchmark command line. The commands `ask`, `point` and `ping-pong` are driven by the scripts
//! `benches/against-duckdb` and `benches/transports`; `generate` and `recall` are for vector searches; everything else is fio's command line (`heliostat-fio`) with the
//! engines of [`engines::ENGINES`]. Called by people and scripts only.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, Subcommand};
use futures::future::try_join_all;
use heliostat_client::{Checksum, Client, ConnectOptions, Credentials, Integrity, ScanRequest, Transport};
use heliostat_fio::manual;

mod ask;
mod engines;
mod generate;
mod latency;
mod ping_pong;
mod point;
mod profile;
mod recall;
mod search;

/// Measure a Heliostat system.
#[derive(Parser)]
#[command(name = "heliostat-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer questions that come as JSON lines.
    ///
    /// Reads {"sql": "select ..."} from standard input, runs it on the cell, writes {"ms", "rows", "bytes", "stats"} or
    /// {"error"}; every batch is received, checked and dropped.
    Ask {
        #[command(flatten)]
        way: Way,
    },
    /// Time one prepared question again and again.
    ///
    /// Each client asks one at a time over a session of its own; prints one JSON object with microseconds.
    Point {
        #[command(flatten)]
        way: Way,
        /// The table.
        #[arg(long)]
        table: String,
        /// The predicate.
        #[arg(long = "where")]
        predicate: String,
        /// How often, all clients together.
        #[arg(long, default_value_t = 2000)]
        count: u32,
        /// How many clients.
        #[arg(long, default_value_t = 1)]
        clients: u32,
    },
    /// Time bare round trips between two threads.
    ///
    /// They are of as many bytes as a question and its answer take; prints one JSON object with microseconds.
    PingPong {
        /// tcp, or an RDMA device by name; soft is soft:127.0.0.1.
        #[arg(long, default_value = "tcp")]
        transport: String,
        /// How both sides wait.
        #[arg(long, value_enum, default_value = "sleeping")]
        wait: ping_pong::Wait,
        #[command(flatten)]
        sizes: ping_pong::Sizes,
        /// How often.
        #[arg(long, default_value_t = 20_000)]
        count: u32,
    },
    /// Generate data to measure with.
    Generate {
        #[command(subcommand)]
        what: generate::What,
    },
    /// Measure recall against speed of vector searches, over a list of parameters.
    ///
    /// Prints a Markdown table: for each parameter recall against the cell's exact answers, queries per second, latency of
    /// single requests, device reads of a query.
    #[command(after_help = recall::EXAMPLES)]
    Recall(Box<recall::Arguments>),
    /// Be the other end of `--ioengine=verbs` jobs on other machines.
    ///
    /// Serves them one after another and beside each other until it is ended. Who can reach the port can use the device:
    /// for networks of your own.
    ServeVerbs {
        /// The RDMA device, as `verbs-check devices` names it.
        #[arg(long, default_value = "soft:127.0.0.1")]
        device: String,
        /// Where jobs come by.
        #[arg(long, default_value_t = std::net::SocketAddr::from(([127, 0, 0, 1], engines::verbs::PORT)))]
        listen: std::net::SocketAddr,
    },
    /// Print the man page: `heliostat-bench man | man -l -`.
    Man,
    /// Print what a shell reads to complete the command line.
    Completions {
        /// Which shell.
        shell: manual::Shell,
    },
}

/// Whom to ask, and how answers travel.
#[derive(clap::Args)]
struct Way {
    /// Where the cell is.
    #[arg(long, env = "HELIOSTAT_CONNECT", default_value = "hidb://127.0.0.1:7400")]
    connect: String,
    /// The profile; the default one when left out.
    #[arg(long)]
    credentials: Option<PathBuf>,
    /// auto, rdma, tcp, or an RDMA device by name.
    #[arg(long, default_value_t = Transport::Auto)]
    transport: Transport,
    /// What is covered by checksums over RDMA.
    #[arg(long, default_value_t = Checksum::Full)]
    rdma_checksum: Checksum,
    /// What keeps others on the network from changing what travels over RDMA.
    #[arg(long, default_value_t = Integrity::None)]
    rdma_integrity: Integrity,
    /// Slots of 1 MiB in each result ring.
    #[arg(long, default_value_t = ConnectOptions::default().ring_slots)]
    ring_slots: u32,
}

impl Way {
    async fn connect(&self) -> Result<Client> {
        let options = ConnectOptions {
            credentials: Credentials::find(self.credentials.as_deref())?,
            transport: self.transport.clone(),
            checksum: self.rdma_checksum,
            integrity: self.rdma_integrity,
            ring_slots: self.ring_slots,
            ..ConnectOptions::default()
        };
        Ok(Client::connect(&self.connect, options).await?)
    }
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if profile::is_wanted(&arguments) {
        return said(profile::run());
    }
    let first = arguments.first().and_then(|word| word.to_str());
    match first.is_some_and(|word| word == "help" || Command::has_subcommand(word)) {
        true => command(),
        false => heliostat_fio::main_with(engines::ENGINES, &beside_fio()),
    }
}

/// What this program has beside fio's command line, as clap describes it.
fn description() -> clap::Command {
    let profile = clap::Arg::new("profile").long("profile").value_name("quick|full").value_parser(["quick", "full"]);
    let help = "Run the standard set and write a report in Markdown; --profile=quick --help says more";
    Arguments::command().arg(profile.help(help).hide_possible_values(true))
}

/// The end of `--help`.
fn beside_fio() -> String {
    let commands = description().disable_help_flag(true).disable_version_flag(true).disable_help_subcommand(true);
    commands.help_template("Also:\n{options}\n\nCommands (COMMAND --help):\n{subcommands}").render_help().to_string()
}

/// How it ended; an error is said.
fn said(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("heliostat-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn command() -> ExitCode {
    said(run(Arguments::parse().command).await)
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Ask { way } => ask::ask(&way.connect().await?).await,
        Command::Point { way, table, predicate, count, clients } => {
            let clients = try_join_all((0..clients.max(1)).map(|_| way.connect()).collect::<Vec<_>>()).await?;
            point::point(clients, ScanRequest::table(table).filter(predicate), count).await
        }
        Command::Generate { what } => generate::generate(what).await,
        Command::Recall(arguments) => recall::recall(*arguments).await,
        Command::ServeVerbs { device, listen } => {
            let listener = std::net::TcpListener::bind(listen).with_context(|| format!("listening on {listen}"))?;
            println!("ready {}", listener.local_addr()?);
            Ok(engines::verbs::serve(&listener, &device)?)
        }
        Command::Man => print(&manual::man_page(&manual::describe(description(), engines::ENGINES))?),
        Command::Completions { shell } => {
            let script = manual::completions(&manual::describe(description(), engines::ENGINES), shell);
            print(script.as_bytes())
        }
        Command::PingPong { transport, wait, sizes, count } => ping_pong::ping_pong(&transport, wait, sizes, count),
    }
}

/// Prints to whoever listens; no longer listening is no error.
fn print(text: &[u8]) -> Result<()> {
    match std::io::stdout().lock().write_all(text) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("writing to standard output")
        }
        _ => Ok(()),
    }
}
