//! `heliostat-bench`: measures a Heliostat system.
//!
//! Owns the benchmark command line. Today it has two commands, `ask` and `point`, which the scripts
//! `benches/against-duckdb` and `benches/transports` drive; the fio-style jobs come with their issue. Called by people and scripts only.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use futures::TryStreamExt;
use heliostat_client::{Checksum, Client, ConnectOptions, Credentials, Integrity, ScanRequest, Transport};

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
        #[command(flatten)]
        way: Way,
    },
    /// Times one prepared question again and again, one at a time, over one session; prints one JSON object with
    /// microseconds.
    Point {
        /// Where the cell is.
        #[arg(long, env = "HELIOSTAT_CONNECT", default_value = "hidb://127.0.0.1:7400")]
        connect: String,
        /// The profile; the default one when left out.
        #[arg(long)]
        credentials: Option<PathBuf>,
        #[command(flatten)]
        way: Way,
        /// The table.
        #[arg(long)]
        table: String,
        /// The predicate.
        #[arg(long = "where")]
        predicate: String,
        /// How often.
        #[arg(long, default_value_t = 2000)]
        count: u32,
    },
}

/// How answers travel.
#[derive(clap::Args)]
struct Way {
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
    async fn connect(self, connect: &str, credentials: Option<&Path>) -> Result<Client> {
        let options = ConnectOptions {
            credentials: Credentials::find(credentials)?,
            transport: self.transport,
            checksum: self.rdma_checksum,
            integrity: self.rdma_integrity,
            ring_slots: self.ring_slots,
            ..ConnectOptions::default()
        };
        Ok(Client::connect(connect, options).await?)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Ask { connect, credentials, way } => match way.connect(&connect, credentials.as_deref()).await {
            Ok(client) => ask(&client).await,
            Err(error) => Err(error),
        },
        Command::Point { connect, credentials, way, table, predicate, count } => {
            match way.connect(&connect, credentials.as_deref()).await {
                Ok(client) => point(&client, ScanRequest::table(table).filter(predicate), count).await,
                Err(error) => Err(error),
            }
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("heliostat-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn point(client: &Client, question: ScanRequest, count: u32) -> Result<()> {
    let statement = client.prepare(question).await?;
    let mut times = Vec::with_capacity(count as usize);
    let mut rows = 0;
    for _ in 0..count + count / 10 {
        let started = Instant::now();
        let mut stream = statement.execute(&[]).await?;
        rows = 0;
        while let Some(batch) = stream.try_next().await? {
            rows += batch.num_rows();
        }
        times.push(started.elapsed());
    }
    // The first ones fill caches, and open links.
    let mut times = times.split_off((count / 10) as usize);
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    let answer =
        serde_json::json!({ "rows": rows, "p50": at(0.5), "p99": at(0.99), "p999": at(0.999), "least": at(0.0) });
    println!("{answer}");
    Ok(())
}

async fn ask(client: &Client) -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let request: serde_json::Value = serde_json::from_str(&line?).context("expected a JSON object per line")?;
        let sql = request["sql"].as_str().context("expected a member \"sql\"")?;
        let answer = match run(client, sql).await {
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
