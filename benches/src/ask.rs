//! `ask`: questions in, times out, as JSON lines; how scripts time a cell.
//!
//! A line is an object with `sql`, and `save`, if the answer is to be kept: the Arrow IPC file to write it to.

use std::fs::File;
use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use arrow_ipc::writer::FileWriter;
use futures::TryStreamExt;
use heliostat_client::Client;

/// Answers the questions of standard input until it ends.
pub(crate) async fn ask(client: &Client) -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let request: serde_json::Value = serde_json::from_str(&line?).context("expected a JSON object per line")?;
        let sql = request["sql"].as_str().context("expected a member \"sql\"")?;
        let answer = match run(client, sql, request["save"].as_str()).await {
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
async fn run(client: &Client, sql: &str, save: Option<&str>) -> Result<serde_json::Value> {
    let started = Instant::now();
    let mut stream = client.scan_sql(sql).await?;
    let (mut rows, mut bytes) = (0usize, 0usize);
    let mut kept = Vec::new();
    while let Some(batch) = stream.try_next().await? {
        rows += batch.num_rows();
        bytes += batch.get_array_memory_size();
        if save.is_some() {
            kept.push(batch);
        }
    }
    let elapsed: Duration = started.elapsed();
    if let Some(path) = save {
        let mut writer = FileWriter::try_new(File::create(path)?, &stream.schema())?;
        kept.iter().try_for_each(|batch| writer.write(batch))?;
        writer.finish()?;
    }
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
