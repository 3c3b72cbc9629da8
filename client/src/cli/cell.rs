//! `heliostat cell ls|show`.

use std::io::Write;
use std::time::Duration;

use clap::Subcommand;
use heliostat_client::CellStatus;

use super::text::{TextTable, write_properties};
use super::{Failure, Global, ListFormat, quantity};

#[derive(Subcommand)]
pub enum Command {
    /// List the cells (the one connected to, until there is a control plane).
    Ls {
        /// How the list is printed.
        #[arg(long, value_enum, default_value_t = ListFormat::Table)]
        format: ListFormat,
    },
    /// Show a cell.
    Show {
        /// The cell's name; the one connected to when left out.
        cell: Option<String>,
        /// How it is printed.
        #[arg(long, value_enum, default_value_t = ListFormat::Table)]
        format: ListFormat,
    },
}

pub async fn run(command: Command, global: &Global) -> Result<(), Failure> {
    let client = global.connect(global.options()).await?;
    let cell = client.cell().await?;
    let address = client.address().to_string();
    let mut output = std::io::stdout().lock();
    let used = cell.volume_bytes.saturating_sub(cell.free_bytes);
    match command {
        Command::Show { cell: Some(name), .. } if name != cell.name => {
            return Err(Failure::Request(hidb::Error::new(
                hidb::ErrorCode::InvalidParameter,
                format!("no cell {name:?}: {address} is the cell {:?}", cell.name),
            )));
        }
        Command::Ls { format: ListFormat::Json } | Command::Show { format: ListFormat::Json, .. } => {
            writeln!(output, "{}", as_json(&cell, &address))?;
        }
        Command::Ls { format: ListFormat::Table } => {
            let columns = [
                ("name", false),
                ("address", false),
                ("version", false),
                ("cores", true),
                ("tables", true),
                ("used", true),
                ("volume", true),
                ("up", true),
            ];
            let mut list = TextTable::new(columns.map(|(name, right)| (name.to_string(), right)));
            list.push([
                cell.name,
                address,
                cell.version,
                cell.cores.to_string(),
                quantity::count(cell.tables),
                quantity::bytes(used),
                quantity::bytes(cell.volume_bytes),
                quantity::duration(Duration::from_millis(cell.uptime_ms)),
            ]);
            list.write(&mut output)?;
        }
        Command::Show { format: ListFormat::Table, .. } => {
            let percent = 100.0 * used as f64 / cell.volume_bytes.max(1) as f64;
            write_properties(
                &mut output,
                &[
                    ("cell", cell.name),
                    ("address", address),
                    ("version", cell.version),
                    ("up", quantity::duration(Duration::from_millis(cell.uptime_ms))),
                    ("cores", format!("{} ({})", cell.cores, cell.simd)),
                    ("sessions", cell.sessions.to_string()),
                    ("tables", quantity::count(cell.tables)),
                    ("volume", format!("{} ({})", cell.volume_path, cell.volume_uuid)),
                    (
                        "used",
                        format!("{} of {} ({percent:.1}%)", quantity::bytes(used), quantity::bytes(cell.volume_bytes)),
                    ),
                    (
                        "cache",
                        format!("{} of {}", quantity::bytes(cell.cache_bytes), quantity::bytes(cell.cache_bytes_max)),
                    ),
                ],
            )?;
        }
    }
    Ok(())
}

fn as_json(cell: &CellStatus, address: &str) -> serde_json::Value {
    serde_json::json!({
        "name": cell.name,
        "address": address,
        "version": cell.version,
        "volume_uuid": cell.volume_uuid,
        "volume_path": cell.volume_path,
        "volume_bytes": cell.volume_bytes,
        "free_bytes": cell.free_bytes,
        "cores": cell.cores,
        "cache_bytes_max": cell.cache_bytes_max,
        "cache_bytes": cell.cache_bytes,
        "uptime_ms": cell.uptime_ms,
        "sessions": cell.sessions,
        "simd": cell.simd,
        "tables": cell.tables,
    })
}
