//! `heliostat-bench`: measures a Heliostat system.
//!
//! Owns the benchmark command line. Today it has one command, `ask`, which the comparison script
//! (`benches/against-duckdb`) drives; the fio-style jobs come with their issue. Called by people and scripts only.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use futures::TryStreamExt;
use heliostat_client::{Client, ConnectOptions, Credentials};

/// Measure a Heliostat system.
#[derive(Parser)]
#[command(name = "heliostat-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer JSON lines: reads {"sql": "select ..."} from standard input, runs it on the cell, writes
    /// {"ms", "rows", "bytes", "stats"} or {"error"}; every batch is received, checked and dropped.
    Ask {
        /// Where the cell is.
        #[arg(long, env = "HELIOSTAT_CONNECT", default_value = "hidb://127.0.0.1:7400")]
        connect: String,
        /// The profile; the default one when left out.
        #[arg(long)]
        credentials: Option<PathBuf>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Ask { connect, credentials } => ask(&connect, credentials.as_deref()).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("heliostat-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn ask(connect: &str, credentials: Option<&Path>) -> Result<()> {
    let options = ConnectOptions { credentials: Credentials::find(credentials)?, ..ConnectOptions::default() };
    let client = Client::connect(connect, options).await?;
    for line in std::io::stdin().lock().lines() {
        let request: serde_json::Value = serde_json::from_str(&line?).context("expected a JSON object per line")?;
        let sql = request["sql"].as_str().context("expected a member \"sql\"")?;
        let answer = match run(&client, sql).await {
            Ok(answer) => answer,
            Err(error) => serde_json::json!({ "error": error.to_string() }),
        };
        let mut output = std::io::stdout().lock();
        writeln!(output, "{answer}")?;
        output.flush()?;
    }
    Ok(())
}

/// Runs one query; the time is from the request being sent to the last batch being in client memory.
async fn run(client: &Client, sql: &str) -> Result<serde_json::Value> {
    let started = Instant::now();
    let mut stream = client.scan_sql(sql).await?;
    let (mut rows, mut bytes) = (0usize, 0usize);
    while let Some(batch) = stream.try_next().await? {
        rows += batch.num_rows();
        bytes += batch.get_array_memory_size();
    }
    let elapsed: Duration = started.elapsed();
    let statistics = stream.statistics().context("the answer had no statistics")?;
    Ok(serde_json::json!({
        "ms": elapsed.as_secs_f64() * 1e3,
        "rows": rows,
        "bytes": bytes,
        "stats": {
            "cell_us": statistics.cell_us,
            "bytes_read_device": statistics.bytes_read_device,
            "bytes_returned": statistics.bytes_returned,
            "bytes_decoded": statistics.bytes_decoded,
            "row_groups_pruned": statistics.row_groups_pruned,
            "blocks_pruned": statistics.blocks_pruned,
        },
    }))
}
