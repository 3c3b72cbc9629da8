//! Engines that are clients of a cell: `hidb-scan`, `hidb-point`, `hidb-search`, `hidb-load`.
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
pub mod search;
mod template;

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
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
            EngineOption { name: "op_timeout_ms", takes: "MILLISECONDS", default: "30000", help: "After which an op has failed" },
            EngineOption { name: "table", takes: "NAME", default: "", help: "The table; must be given" },
            $($more),*
        ]
    };
}
use client_options;

/// What holds for engines that ask.
const QUESTIONS: EngineFacts =
    EngineFacts { uses_files: false, stores: false, writes: false, one_at_a_time: false, survives_errors: true };

/// The options of a job that is about a table.
#[derive(Clone, Copy)]
struct Options<'o>(&'o [(String, String)]);

impl<'o> Options<'o> {
    fn get(self, name: &str) -> Option<&'o str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// An option's value, where it is given.
    fn parsed<T: FromStr<Err: Display>>(self, name: &str) -> Result<Option<T>, String> {
        let Some(text) = self.get(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|error| format!("{name}={text}: {error}"))
    }

    /// The table that it is about.
    fn table(self) -> Result<&'o str, String> {
        self.get("table").ok_or_else(|| "table= is missing: which table is it about?".into())
    }

    /// What the connection is made with, but for credentials and address, which need files.
    fn connection(self) -> Result<ConnectOptions, String> {
        let defaults = ConnectOptions::default();
        let timeout = Duration::from_millis(self.parsed("op_timeout_ms")?.unwrap_or(30_000));
        Ok(ConnectOptions {
            transport: self.parsed("transport")?.unwrap_or(defaults.transport),
            checksum: self.parsed("rdma_checksum")?.unwrap_or(defaults.checksum),
            integrity: self.parsed("rdma_integrity")?.unwrap_or(defaults.integrity),
            ring_slots: self.parsed("ring_slots")?.unwrap_or(defaults.ring_slots),
            timeout: Some(timeout),
            connect_timeout: timeout.min(defaults.connect_timeout),
            retry_for: Duration::ZERO,
            name: concat!("heliostat-bench ", env!("CARGO_PKG_VERSION")).into(),
            ..ConnectOptions::default()
        })
    }
}

/// Connects, and makes sure that the cell answers before the clock of the job starts.
fn connect(context: &EngineContext, tasks: &Tasks) -> Result<Client, EngineError> {
    let options = Options(&context.options);
    let file = options.get("credentials").map(PathBuf::from);
    let credentials = Credentials::find(file.as_deref()).map_err(|error| context.error(error))?;
    let known = credentials.as_ref().and_then(|profile| profile.address()).map(ToString::to_string);
    let address =
        options.get("connect").map(String::from).or_else(|| std::env::var("HELIOSTAT_CONNECT").ok()).or(known);
    let missing = "connect= is missing, and no profile says where the cell is";
    let address = address.ok_or(missing).map_err(|error| context.error(error))?;
    let options = ConnectOptions { credentials, ..options.connection().map_err(|error| context.error(error))? };
    tasks.run(async {
        let client = Client::connect(&address, options).await?;
        client.hello().await?;
        Ok(client)
    })
}
