//! The command line of the cell; everything else is in the library.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use heliostat_dataplane::config::{Config, Overrides, Size, Where};
use heliostat_dataplane::server::{control, startup};
use heliostat_dataplane::tls_tool::{self, TlsCommand};
use heliostat_dataplane::user_tool::{self, UserCommand};

/// Allocations of a request are many, small, and freed on the core that made them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The storage cell of Heliostat: keeps tables on a volume and answers pushed-down queries over HIDB.
#[derive(Parser)]
#[command(name = "heliostat-cell", version, args_conflicts_with_subcommands = true, args_override_self = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

#[derive(clap::Args)]
struct Run {
    /// The configuration file (TOML). Flags override it.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Port to serve on, in place of the one of `listen`; 0: any free port (the ready line says which).
    #[arg(long)]
    port: Option<u16>,
    /// Prints the configuration in effect as a commented TOML file, and does not run.
    #[arg(long)]
    print_config: bool,
    #[command(flatten)]
    options: Overrides,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the cell (what it does without a command, too). Of an option given twice the last one counts.
    #[command(args_override_self = true)]
    Run(Box<Run>),
    /// Formats a volume.
    Format {
        #[command(flatten)]
        place: Where,
        /// Size of the volume: a file gets exactly this size, 10GiB when left out, sparse; a device is used whole when
        /// left out.
        #[arg(long)]
        size: Option<Size>,
        /// Formats it even when it holds something, a Heliostat volume or anything else: that is lost.
        #[arg(long)]
        force: bool,
    },
    /// Checks a volume that is not in use: every extent has one owner, every header and footer is right.
    Check {
        #[command(flatten)]
        place: Where,
        /// Reads every chunk and compares its checksum, too.
        #[arg(long)]
        deep: bool,
        /// Prints the report as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Lists the sessions of a running cell, with their credits, RDMA links and slots.
    Sessions {
        #[command(flatten)]
        place: Where,
        /// Prints one JSON object per session.
        #[arg(long)]
        json: bool,
    },
    /// Repairs a session of a running cell.
    #[command(subcommand)]
    Session(SessionCommand),
    /// Makes a lost manifest again from the volume.
    Rebuild {
        #[command(flatten)]
        place: Where,
        /// Makes it again even when there is a manifest that opens.
        #[arg(long)]
        force: bool,
        /// Leaves out segments that are missing or damaged, instead of failing.
        #[arg(long)]
        leave_out_damaged: bool,
    },
    /// The users of a cell that is not running (`heliostat user` asks a running one).
    #[command(subcommand)]
    User(UserCommand),
    /// Makes certificates for cells and clients.
    #[command(subcommand)]
    Tls(TlsCommand),
}

#[derive(Subcommand)]
enum SessionCommand {
    /// Ends the session's RDMA links, which frees their slots; the client opens new ones. Requests under way on them fail
    /// and can be asked again.
    Reset {
        /// The session's number, as `heliostat-cell sessions` lists it.
        id: u64,
        #[command(flatten)]
        place: Where,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        None => run(arguments.run),
        Some(Command::Run(arguments)) => run(*arguments),
        Some(Command::Format { place, size, force }) => {
            startup::format(&place.config(), size.map(Size::bytes), force).map_err(failed)
        }
        Some(Command::Check { place, deep, json }) => match startup::check(&place.config(), deep, json) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(failed(error)),
        },
        Some(Command::Sessions { place, json }) => print(control::list_sessions(&place.config(), json)),
        Some(Command::Session(SessionCommand::Reset { id, place })) => {
            print(control::reset_session(&place.config(), id))
        }
        Some(Command::Rebuild { place, force, leave_out_damaged }) => {
            startup::rebuild(&place.config(), force, leave_out_damaged).map_err(failed)
        }
        Some(Command::User(command)) => user_tool::run(command).map_err(failed),
        Some(Command::Tls(command)) => tls_tool::run(command).map_err(failed),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, message)) => {
            eprintln!("heliostat-cell: {message}");
            ExitCode::from(code)
        }
    }
}

/// Prints what a tool found.
fn print(text: hidb::Result<String>) -> Result<(), (u8, String)> {
    // Whoever closed standard output does not want to know.
    text.map(|text| drop(std::io::stdout().write_all(text.as_bytes()))).map_err(failed)
}

/// The request failed: exit code 1.
fn failed(error: hidb::Error) -> (u8, String) {
    (1, error.message)
}

fn run(arguments: Run) -> Result<(), (u8, String)> {
    let mut options = arguments.options;
    let mut config = Config::load(arguments.config.as_deref(), &options).map_err(|error| (2, error.to_string()))?;
    if let Some(port) = arguments.port {
        config.listen.set_port(port);
        options.listen = Some(config.listen);
    }
    if arguments.print_config {
        print!("{}", config.to_commented_toml());
        return Ok(());
    }
    startup::start_logging(&config).map_err(|message| (2, message))?;
    startup::run(config).map_err(failed)
}
