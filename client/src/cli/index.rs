//! `heliostat index create|ls|drop`.

use std::io::Write;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use heliostat_client::{Client, IndexDefinition, IndexKind, IndexSummary, Metric};
use hidb::proto::index_summary::State;
use hidb::{Error, ErrorCode};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::interruption::Interruption;
use super::text::{TextTable, split_list};
use super::{Failure, Global, ListFormat, quantity};

const EXAMPLES: &str = "Examples:
  heliostat index create packages embedding
  heliostat index create packages embedding --kind ivf --metric cosine --include installed_size_kib
  heliostat index create packages embedding --kind graph --degree 48 --no-wait
  heliostat index ls packages

A column has one index at most. Searches find rows that were loaded after it was built, too; the cell brings it up to date
by itself.";

/// How often the cell is asked how far it is.
const POLL_EVERY: Duration = Duration::from_millis(250);

/// Steps of the progress bar.
const BAR_STEPS: u64 = 1000;

#[derive(Subcommand)]
pub enum Command {
    /// Make an index over a column of vectors, and wait until it is built.
    Create(Create),
    /// List indexes: what they are, how far they are, what they take.
    Ls {
        /// Only those of this table.
        table: Option<String>,
        /// How the list is printed.
        #[arg(long, value_enum, default_value_t = ListFormat::Table)]
        format: ListFormat,
    },
    /// Drop the index of a column. Searches go on without it, exactly.
    Drop {
        /// The table.
        table: String,
        /// The column.
        column: String,
        /// An index that does not exist is no error.
        #[arg(long)]
        if_exists: bool,
    },
}

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Create {
    /// The table.
    table: String,
    /// The column of vectors.
    column: String,
    /// What kind of index.
    #[arg(long, value_enum, default_value_t = Kind::Auto)]
    kind: Kind,
    /// How far two vectors are from each other: l2, ip (inner product), cosine, or hamming (of bits). Without it hamming
    /// for bits, l2 for others.
    #[arg(long)]
    metric: Option<Metric>,
    /// Columns of fixed width that an IVF index keeps beside its codes, so that filters on them cost no further reads.
    #[arg(long, value_name = "COLUMNS")]
    include: Vec<String>,
    /// Lists of an IVF index. Chosen by the cell when left out.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    lists: Option<u32>,
    /// Bits of a component's code, 1 to 8. Chosen by the cell when left out.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=8))]
    bits: Option<u32>,
    /// Neighbours that a graph keeps of each vector. Chosen by the cell when left out.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    degree: Option<u32>,
    /// Return at once, while the cell builds it.
    #[arg(long)]
    no_wait: bool,
    /// An index that the column has already is no error, and stays as it is.
    #[arg(long)]
    if_not_exists: bool,
    /// No progress bar.
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// The cell chooses from size and memory, at each build.
    Auto,
    /// Lists of quantised codes, for vectors on the drive.
    Ivf,
    /// A graph in memory, for low latency.
    Graph,
}

impl Create {
    fn definition(&self) -> IndexDefinition {
        let kind = match self.kind {
            Kind::Auto => IndexKind::Auto,
            Kind::Ivf => IndexKind::Ivf,
            Kind::Graph => IndexKind::Graph,
        };
        IndexDefinition {
            column: self.column.clone(),
            kind: kind as i32,
            metric: self.metric.map_or(0, |metric| metric.to_proto() as i32),
            include: self.include.iter().flat_map(|item| split_list(item)).collect(),
            lists: self.lists.unwrap_or(0),
            bits: self.bits.unwrap_or(0),
            degree: self.degree.unwrap_or(0),
        }
    }
}

pub async fn run(command: Command, global: &Global) -> Result<(), Failure> {
    match command {
        Command::Create(create) => run_create(create, global).await,
        Command::Ls { table, format } => {
            let client = global.connect(global.options()).await?;
            list(&client, table.as_deref(), format).await
        }
        Command::Drop { table, column, if_exists } => {
            let client = global.connect(global.options()).await?;
            let had_one = !if_exists || find(&client, &table, &column).await?.is_some();
            client.drop_index(&table, &column, if_exists).await?;
            match had_one {
                true => println!("dropped the index of {table}.{column}"),
                false => println!("{table}.{column} had no index"),
            }
            Ok(())
        }
    }
}

async fn run_create(create: Create, global: &Global) -> Result<(), Failure> {
    // From the start: the cell goes on however this process ends.
    let mut interruption = Interruption::watch()?;
    let client = global.connect(global.options()).await?;
    let (table, column) = (&create.table, &create.column);
    client.create_index(table, create.definition(), create.if_not_exists).await?;
    if create.no_wait {
        match find(&client, table, column).await? {
            Some(index) if index.state() == State::Ready => println!("index of {table}.{column}: {}", describe(&index)),
            _ => println!(
                "the index of {table}.{column} is being built: `heliostat index ls {table}` says how far it is"
            ),
        }
        return Ok(());
    }
    let bar = progress_bar(create.quiet);
    let left_alone = format!("the cell goes on building the index: `heliostat index ls {table}` says how far it is");
    let outcome = tokio::select! {
        outcome = until_built(&client, table, column, &bar) => outcome,
        error = interruption.happens(&left_alone) => Err(error),
    };
    bar.finish_and_clear();
    println!("index of {table}.{column}: {}", describe(&outcome?));
    Ok(())
}

/// Waits for the end of the first building.
async fn until_built(client: &Client, table: &str, column: &str, bar: &ProgressBar) -> Result<IndexSummary, Error> {
    loop {
        let Some(index) = find(client, table, column).await? else {
            let text = format!("the index of {table}.{column} was dropped while it was built: make it again");
            return Err(Error::new(ErrorCode::UnknownIndex, text));
        };
        match index.state() {
            State::Ready => return Ok(index),
            State::Failed => {
                let text = format!(
                    "the index of {table}.{column} can't be built: {}; the cell tries again by itself, `heliostat index \
                     drop {table} {column}` stops it",
                    index.error
                );
                return Err(Error::new(ErrorCode::Unavailable, text));
            }
            State::Building | State::Waiting | State::Unspecified => {
                bar.set_position((f64::from(index.progress.clamp(0.0, 1.0)) * BAR_STEPS as f64) as u64);
                bar.set_message(stage(&index));
            }
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

async fn find(client: &Client, table: &str, column: &str) -> Result<Option<IndexSummary>, Error> {
    let of_column = |index: &IndexSummary| {
        index.definition.as_ref().is_some_and(|definition| definition.column.eq_ignore_ascii_case(column))
    };
    let indexes = client.list_indexes(Some(table)).await?;
    let exact = indexes.iter().find(|index| index.definition.as_ref().is_some_and(|it| it.column == column)).cloned();
    Ok(exact.or_else(|| indexes.into_iter().find(of_column)))
}

/// What a building does, and how long it may take.
fn stage(index: &IndexSummary) -> String {
    let stage = match index.state() {
        State::Building if index.stage.is_empty() => "building",
        State::Building => index.stage.as_str(),
        _ => "waiting for its turn",
    };
    match index.seconds_left {
        0 => stage.to_string(),
        seconds @ 1..120 => format!("{stage}, {seconds} s left"),
        seconds => format!("{stage}, {} left", quantity::duration(Duration::from_secs(seconds))),
    }
}

fn kind_name(kind: IndexKind) -> &'static str {
    match kind {
        IndexKind::Unspecified => "none yet",
        IndexKind::Auto => "auto",
        IndexKind::Ivf => "ivf",
        IndexKind::Graph => "graph",
    }
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Unspecified => "unknown",
        State::Waiting => "waiting",
        State::Building => "building",
        State::Ready => "ready",
        State::Failed => "failed",
    }
}

/// What was built, in one line.
fn describe(index: &IndexSummary) -> String {
    let mut parts = vec![kind_name(index.built()).to_string()];
    if index.lists > 0 {
        parts.push(quantity::counted(index.lists.into(), "list"));
    }
    parts.push(quantity::rows(index.indexed_rows));
    parts.push(format!("{} on the volume", quantity::bytes(index.stored_bytes)));
    parts.push(format!("{} in memory", quantity::bytes(index.memory_bytes)));
    parts.push(format!(
        "built in {} with at most {}",
        quantity::duration(Duration::from_millis(index.build_ms)),
        quantity::bytes(index.build_memory_bytes)
    ));
    parts.join(", ")
}

fn metric_name(definition: &IndexDefinition) -> String {
    Metric::of_proto(definition.metric).map_or_else(|| "default".to_string(), |metric| metric.to_string())
}

/// The state, and what there is to say about it.
fn state_of(index: &IndexSummary) -> String {
    let state = state_name(index.state());
    match index.state() {
        State::Building => format!("{state}, {:.0}%: {}", 100.0 * index.progress, stage(index)),
        State::Failed => format!("{state}: {}", index.error),
        State::Ready if index.progress > 0.0 && index.progress < 1.0 => {
            format!("{state}, {:.0}% of a new one", 100.0 * index.progress)
        }
        _ => state.to_string(),
    }
}

async fn list(client: &Client, table: Option<&str>, format: ListFormat) -> Result<(), Failure> {
    let indexes = client.list_indexes(table).await?;
    let mut output = std::io::stdout().lock();
    if format == ListFormat::Json {
        for index in &indexes {
            writeln!(output, "{}", as_json(index))?;
        }
        return Ok(());
    }
    if indexes.is_empty() {
        writeln!(output, "no indexes yet: make one with `heliostat index create TABLE COLUMN`")?;
        return Ok(());
    }
    let columns = [
        ("table", false),
        ("column", false),
        ("kind", false),
        ("metric", false),
        ("rows", true),
        ("indexed", true),
        ("on the volume", true),
        ("in memory", true),
        ("state", false),
    ];
    let mut rows = TextTable::new(columns.map(|(name, right)| (name.to_string(), right)));
    for index in indexes {
        let definition = index.definition.clone().unwrap_or_default();
        let kind = match (definition.kind(), index.built()) {
            (IndexKind::Auto, IndexKind::Unspecified) => "auto".to_string(),
            (IndexKind::Auto, built) => format!("auto: {}", kind_name(built)),
            (kind, _) => kind_name(kind).to_string(),
        };
        rows.push([
            index.table.clone(),
            definition.column.clone(),
            kind,
            metric_name(&definition),
            quantity::count(index.rows),
            quantity::count(index.indexed_rows),
            quantity::bytes(index.stored_bytes),
            quantity::bytes(index.memory_bytes),
            state_of(&index),
        ]);
    }
    rows.write(&mut output)?;
    Ok(())
}

fn as_json(index: &IndexSummary) -> serde_json::Value {
    let definition = index.definition.clone().unwrap_or_default();
    let built = Some(index.built()).filter(|built| *built != IndexKind::Unspecified).map(kind_name);
    let calibration: Vec<_> = index
        .calibration
        .iter()
        .map(|point| serde_json::json!({ "parameter": point.parameter, "recall": point.recall }))
        .collect();
    serde_json::json!({
        "table": index.table,
        "column": definition.column,
        "kind": kind_name(definition.kind()),
        "metric": Metric::of_proto(definition.metric).map(|metric| metric.to_string()),
        "include": definition.include,
        "state": state_name(index.state()),
        "built": built,
        "rows": index.rows,
        "indexed_rows": index.indexed_rows,
        "stored_bytes": index.stored_bytes,
        "memory_bytes": index.memory_bytes,
        "progress": index.progress,
        "stage": index.stage,
        "seconds_left": index.seconds_left,
        "error": Some(&index.error).filter(|error| !error.is_empty()),
        "build_memory_bytes": index.build_memory_bytes,
        "build_ms": index.build_ms,
        "lists": index.lists,
        "bits": definition.bits,
        "degree": definition.degree,
        "calibration": calibration,
    })
}

fn progress_bar(quiet: bool) -> ProgressBar {
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(10) };
    let bar = ProgressBar::with_draw_target(Some(BAR_STEPS), target);
    let style = ProgressStyle::with_template("{bar:24} {percent:>3}%  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(state: State) -> IndexSummary {
        let definition = IndexDefinition { column: "v".into(), kind: IndexKind::Auto as i32, ..Default::default() };
        IndexSummary { table: "t".into(), definition: Some(definition), state: state as i32, ..Default::default() }
    }

    #[test]
    fn what_is_being_built_says_its_stage_and_the_time_left() {
        let building =
            IndexSummary { stage: "training".into(), seconds_left: 12, progress: 0.25, ..index(State::Building) };
        assert_eq!(stage(&building), "training, 12 s left");
        assert_eq!(state_of(&building), "building, 25%: training, 12 s left");
        assert_eq!(stage(&index(State::Waiting)), "waiting for its turn");
        let failed = IndexSummary { error: "the volume is full".into(), ..index(State::Failed) };
        assert_eq!(state_of(&failed), "failed: the volume is full");
        let renewed = IndexSummary { progress: 0.5, ..index(State::Ready) };
        assert_eq!(state_of(&renewed), "ready, 50% of a new one");
    }

    #[test]
    fn what_was_built_is_one_line() {
        let built = IndexSummary {
            built: IndexKind::Ivf as i32,
            lists: 256,
            indexed_rows: 63_666,
            stored_bytes: 5_000_000,
            memory_bytes: 400_000,
            build_ms: 4_200,
            build_memory_bytes: 64_000_000,
            ..index(State::Ready)
        };
        let line = "ivf, 256 lists, 63,666 rows, 5.0 MB on the volume, 400.0 kB in memory, built in 4.20 s with at most 64.0 MB";
        assert_eq!(describe(&built), line);
        let json = as_json(&built);
        assert!(json["kind"] == "auto" && json["built"] == "ivf" && json["state"] == "ready", "{json}");
        assert!(json["metric"].is_null() && json["error"].is_null());
    }
}
