//! `heliostat load`: files or generated tables into the cell.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{ArgGroup, Args};
use heliostat_client::input::{Input, InputBatch, InputOptions, TpchTable, parse_schema};
use heliostat_client::{Client, LoadMode, LoadProgress, LoadWriter};
use hidb::order::{OrderKind, TableOrder};
use hidb::{Error, ErrorCode, Schema};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::mpsc;

use super::interruption::Interruption;
use super::{Failure, Global, quantity};

const EXAMPLES: &str = "Examples:
  heliostat load lineitem lineitem.parquet
  heliostat load events day1.csv day2.csv --schema 'id int64 not null, at timestamp, note text'
  heliostat load events day3.arrow --append
  heliostat load images embeddings.npy --column embedding
  heliostat load texts texts.parquet --schema 'id int64, embedding vector(384)'
  heliostat load hashes hashes.npy --schema 'hash vector(256,bit)'
  heliostat load lineitem --tpch lineitem --scale 1
  heliostat load events day1.csv --sort-by at
  heliostat load places places.parquet --cluster-by latitude,longitude,at

What a file contains decides how it is read: Parquet, Arrow IPC (file or stream), CSV with a header line, or an array of
vectors (.npy of float32, float16, int8; .fvecs), which makes a table with one column. Fixed-size lists of such numbers
are vectors; lists of any length are when --schema says so and all have that length. Unsigned bytes are packed bits where
--schema says vector(n,bit), component 0 in the least significant bit (numpy.packbits(..., bitorder='little')).
NaN and infinity in a vector are refused with the row.
Nothing is visible before everything is loaded; Ctrl-C leaves the table as it was.

An order (--sort-by, --cluster-by) belongs to the table: rows that are appended later are put in the same order without
asking again, and so are the rows that replace it. Rows are ordered in runs of up to 192 MiB (the cell's setting sort_run).";

/// What becomes of a load that is interrupted.
const UNDONE: &str = "the load was aborted and nothing has changed";

#[derive(Args)]
#[command(after_help = EXAMPLES, group = ArgGroup::new("source").required(true).args(["files", "tpch"]))]
pub struct Arguments {
    /// The table.
    table: String,
    /// Parquet, CSV, Arrow IPC, .npy or .fvecs files that have the same columns.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Add the rows to a table that exists.
    #[arg(long, conflicts_with = "replace")]
    append: bool,
    /// Put the rows in place of those of the table; makes the table if there is none.
    #[arg(long)]
    replace: bool,
    /// The columns: 'a int64, b text not null'. Found out from the first file when left out.
    #[arg(long, value_parser = parse_schema, value_name = "COLUMNS", conflicts_with = "tpch")]
    schema: Option<Schema>,
    /// What the column of .npy and .fvecs files is called; vector when left out.
    #[arg(long, value_name = "NAME", conflicts_with = "tpch")]
    column: Option<String>,
    /// Keep the rows sorted by these columns: ascending, by the first, then the second and so on, NULL last. What a query
    /// asks for by the first column lies together then, and the rest is not read. Kept for later loads and merges.
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',', conflicts_with = "cluster_by")]
    sort_by: Vec<String>,
    /// Keep rows together that are near in all of these columns alike, for queries that ask by any of them.
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',')]
    cluster_by: Vec<String>,
    /// Generate this TPC-H table instead of reading files.
    #[arg(long, value_name = "TABLE")]
    tpch: Option<TpchTable>,
    /// The scale factor of the TPC-H table; 1 is 6 million rows of lineitem.
    #[arg(long, default_value_t = 1.0, requires = "tpch")]
    scale: f64,
    /// What separates CSV fields (one character, or tab). Found out from the header line when left out.
    #[arg(long, value_parser = parse_delimiter, value_name = "CHARACTER")]
    delimiter: Option<u8>,
    /// The CSV field that means NULL, besides the empty one.
    #[arg(long, value_name = "TEXT")]
    null: Option<String>,
    /// No progress bar.
    #[arg(long, short)]
    quiet: bool,
}

fn parse_delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        [byte] if byte.is_ascii() && !matches!(byte, b'"' | b'\n' | b'\r') => Ok(*byte),
        b"\\t" | b"tab" => Ok(b'\t'),
        _ => Err("expected one ASCII character, or tab".into()),
    }
}

pub async fn run(arguments: Arguments, global: &Global) -> Result<(), Failure> {
    let started = Instant::now();
    // From the start: opening the input can take a while, too.
    let mut interruption = Interruption::watch()?;
    let client = global.connect(global.options()).await?;
    let mode = match (arguments.append, arguments.replace) {
        (true, _) => LoadMode::Append,
        (_, true) => LoadMode::Replace,
        _ => LoadMode::Create,
    };
    let schema = wanted_schema(&client, &arguments, mode).await?;
    let options = InputOptions {
        schema,
        delimiter: arguments.delimiter,
        null: arguments.null.clone(),
        column: arguments.column.clone(),
        ..InputOptions::default()
    };
    let (files, tpch, scale) = (arguments.files.clone(), arguments.tpch, arguments.scale);
    let opening = tokio::task::spawn_blocking(move || match tpch {
        Some(table) => Input::tpch(table, scale, options),
        None => Input::open(&files, options),
    });
    let opened = tokio::select! {
        opened = opening => opened,
        error = interruption.happens(UNDONE) => return Err(error.into()),
    };
    let input = opened.map_err(|error| {
        Error::new(ErrorCode::MalformedInput, format!("the input can't be opened: its reader gave up: {error}"))
    })??;

    let schema = input.schema().clone();
    let order = wanted_order(&arguments, &schema)?;
    let bar = progress_bar(&input, arguments.quiet);
    let mut writer = client.load_in_order(&arguments.table, &schema, mode, order.as_ref()).await?;
    let outcome = tokio::select! {
        outcome = transfer(&mut writer, input, &bar) => outcome,
        error = interruption.happens(UNDONE) => Err(error),
    };
    bar.finish_and_clear();
    match outcome {
        Ok((rows, progress)) => {
            let elapsed = started.elapsed();
            println!(
                "loaded {} into {} in {} ({} rows/s), {} on the volume",
                quantity::rows(rows),
                arguments.table,
                quantity::duration(elapsed),
                quantity::count((rows as f64 / elapsed.as_secs_f64().max(1e-6)) as u64),
                quantity::bytes(progress.stored_bytes),
            );
            Ok(())
        }
        Err(error) => {
            // What matters is the first error; a load that can't be aborted now expires in the cell.
            let _ = tokio::time::timeout(Duration::from_secs(5), writer.abort()).await;
            Err(error.into())
        }
    }
}

/// The columns that the rows must have: the table's when appending, else those given, else the input's.
async fn wanted_schema(client: &Client, arguments: &Arguments, mode: LoadMode) -> Result<Option<Schema>, Error> {
    if mode == LoadMode::Replace {
        return Ok(arguments.schema.clone());
    }
    match client.describe(&arguments.table).await {
        Ok(found) if mode == LoadMode::Create => Err(Error::new(
            ErrorCode::TableExists,
            format!(
                "the table {:?} exists and has {}: add --append or --replace",
                arguments.table,
                quantity::rows(found.summary.rows)
            ),
        )),
        Ok(found) => match &arguments.schema {
            Some(given) if *given != found.schema => Err(Error::new(
                ErrorCode::InvalidSchema,
                format!("--schema is not the schema of the table {:?}: leave it out", arguments.table),
            )),
            _ => Ok(Some(found.schema)),
        },
        Err(error) if error.code != ErrorCode::UnknownTable => Err(error),
        Err(error) if mode == LoadMode::Append => {
            Err(Error::new(error.code, format!("{}: leave out --append to make it", error.message)))
        }
        Err(_) => Ok(arguments.schema.clone()),
    }
}

/// The order that was asked for.
fn wanted_order(arguments: &Arguments, schema: &Schema) -> Result<Option<TableOrder>, Error> {
    let (kind, columns) = match (arguments.sort_by.as_slice(), arguments.cluster_by.as_slice()) {
        ([], []) => return Ok(None),
        ([], columns) => (OrderKind::Clustered, columns),
        (columns, _) => (OrderKind::Sorted, columns),
    };
    let columns: Vec<&str> = columns.iter().map(|column| column.trim()).collect();
    TableOrder::new(kind, &columns, schema).map(Some)
}

/// Sends everything and commits.
async fn transfer(writer: &mut LoadWriter, input: Input, bar: &ProgressBar) -> Result<(u64, LoadProgress), Error> {
    let (sender, mut receiver) = mpsc::channel::<Result<InputBatch, Error>>(2);
    let batches = input.batches()?;
    std::thread::spawn(move || {
        for batch in batches {
            let failed = batch.is_err();
            if sender.blocking_send(batch).is_err() || failed {
                return;
            }
        }
    });
    let (mut rows, mut bytes) = (0u64, 0u64);
    let started = Instant::now();
    while let Some(batch) = receiver.recv().await {
        let batch = batch?;
        writer.write(&batch.rows).await?;
        rows += batch.rows.num_rows() as u64;
        bytes += batch.rows.get_array_memory_size() as u64;
        let rate = rows as f64 / started.elapsed().as_secs_f64().max(1e-3);
        bar.inc(batch.units);
        bar.set_message(format!(
            "{}, {}, {} rows/s",
            quantity::rows(rows),
            quantity::bytes(bytes),
            quantity::count(rate as u64)
        ));
    }
    bar.set_message(format!("{}: committing", quantity::rows(rows)));
    Ok((rows, writer.commit().await?))
}

fn progress_bar(input: &Input, quiet: bool) -> ProgressBar {
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(10) };
    let bar = match input.total() {
        Some(total) => ProgressBar::with_draw_target(Some(total), target),
        None => ProgressBar::with_draw_target(None, target),
    };
    let style = ProgressStyle::with_template("{bar:24} {percent:>3}%  {msg}, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar
}
