//! Engines that are clients of a cell: `hidb-scan`, `hidb-point`, `hidb-load`.
//!
//! Owns what they have in common: the options that say whom to ask, and the connection. Each clone of a job has a
//! connection of its own; ops of one clone share it. With `iodepth` above 1 they are in flight together.
//!
//! A client here does not try again for long as others do: an op that finds no cell fails, is counted, and the next one
//! tries anew.

mod answer;
pub mod load;
pub mod point;
pub mod scan;
mod template;

use std::path::PathBuf;
use std::time::Duration;

use heliostat_client::{Client, ConnectOptions, Credentials};
use heliostat_fio::engine::{EngineContext, EngineError, EngineFacts};

use super::tasks::Tasks;

/// Options of all engines that are clients; `$more` are those of one.
macro_rules! client_options {
    ($($more:expr),* $(,)?) => {
        &[
            EngineOption {
                name: "connect",
                takes: "URL",
                default: "",
                help: "The cell: hidb://host:port, or hidb+plain://; left out: $HELIOSTAT_CONNECT, else the profile's",
            },
            EngineOption {
                name: "credentials",
                takes: "FILE",
                default: "",
                help: "The profile; left out: $HELIOSTAT_CREDENTIALS, else the default one",
            },
            EngineOption {
                name: "transport",
                takes: "auto|rdma|tcp|DEVICE",
                default: "auto",
                help: "How answers travel; a device of `verbs-shim` by name, such as soft",
            },
            EngineOption {
                name: "rdma_checksum",
                takes: "full|header|none",
                default: "full",
                help: "What checksums cover over RDMA",
            },
            EngineOption { name: "rdma_integrity", takes: "none|hmac", default: "none", help: "A MAC over RDMA" },
            EngineOption { name: "ring_slots", takes: "NUMBER", default: "16", help: "Slots of 1 MiB of each result ring" },
            EngineOption { name: "timeout", takes: "MILLISECONDS", default: "30000", help: "After which an op has failed" },
            EngineOption { name: "table", takes: "NAME", default: "", help: "The table; must be given" },
            $($more),*
        ]
    };
}
use client_options;

/// What holds for engines that ask.
const QUESTIONS: EngineFacts =
    EngineFacts { uses_files: false, stores: false, writes: false, one_at_a_time: false, survives_errors: true };

fn wrong(context: &EngineContext, what: impl std::fmt::Display) -> EngineError {
    EngineError::Other(format!("job {}: {what}", context.job))
}

/// An option's value, where it is not its default.
fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
    context: &EngineContext,
    name: &str,
) -> Result<Option<T>, EngineError> {
    let Some(text) = context.option(name) else { return Ok(None) };
    text.parse().map(Some).map_err(|error| wrong(context, format_args!("{name}={text}: {error}")))
}

/// The table that a job is about.
fn table(context: &EngineContext) -> Result<&str, EngineError> {
    context.option("table").ok_or_else(|| wrong(context, "table= is missing: which table is it about?"))
}

/// Connects, and makes sure that the cell answers before the clock of the job starts.
fn connect(context: &EngineContext, tasks: &Tasks) -> Result<Client, EngineError> {
    let defaults = ConnectOptions::default();
    let file = context.option("credentials").map(PathBuf::from);
    let credentials = Credentials::find(file.as_deref()).map_err(|error| wrong(context, error))?;
    let address = match (context.option("connect"), std::env::var("HELIOSTAT_CONNECT"), &credentials) {
        (Some(address), ..) => address.to_string(),
        (None, Ok(address), _) => address,
        (None, Err(_), Some(profile)) if profile.address().is_some() => {
            profile.address().map(ToString::to_string).unwrap_or_default()
        }
        _ => return Err(wrong(context, "connect= is missing, and no profile says where the cell is")),
    };
    let timeout = Duration::from_millis(parsed(context, "timeout")?.unwrap_or(30_000));
    let options = ConnectOptions {
        credentials,
        transport: parsed(context, "transport")?.unwrap_or(defaults.transport),
        checksum: parsed(context, "rdma_checksum")?.unwrap_or(defaults.checksum),
        integrity: parsed(context, "rdma_integrity")?.unwrap_or(defaults.integrity),
        ring_slots: parsed(context, "ring_slots")?.unwrap_or(defaults.ring_slots),
        timeout: Some(timeout),
        connect_timeout: timeout.min(defaults.connect_timeout),
        retry_for: Duration::ZERO,
        name: concat!("heliostat-bench ", env!("CARGO_PKG_VERSION")).into(),
        ..ConnectOptions::default()
    };
    tasks.run(async {
        let client = Client::connect(&address, options).await?;
        client.hello().await?;
        Ok(client)
    })
}
