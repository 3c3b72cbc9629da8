//! `heliostat search`: nearest neighbours.
//!
//! The rooms: this one has the arguments and the way of an answer; [`queries`] what neighbours are looked for of;
//! [`report`] what a search did, for `--explain` and `--stats`.

mod queries;
mod report;

use clap::{ArgGroup, Args};
use futures::StreamExt;
use heliostat_client::{Accuracy, Metric, SearchRequest};

use super::answer::{AnswerArguments, StatsFormat, connect_options};
use super::output::Output;
use super::text::split_list;
use super::{Failure, Global, quantity};

const EXAMPLES: &str = "Examples:
  heliostat search packages --like-id 17 --select name,summary
  heliostat search packages --like-id 4711 --id-column package_id --k 20 --where \"section = 'web'\"
  heliostat search packages --column embedding --vector query.npy --metric cosine --recall 0.99
  heliostat search points --vector '[0.1, 0.7]' --exact --distance-max 0.25
  heliostat search packages --vector queries.fvecs --k 100 --output neighbours.parquet
  heliostat search packages --like-id 17 --explain

Vectors: .npy (float32, float16, int8, uint8; one or two dimensions), .fvecs, .bvecs, JSON (an array of numbers, or of
arrays of numbers); what a file contains decides how it is read. Several vectors are a batch, and a column `query` says
which of them a neighbour is of, from 0. Rows come nearest first; the last column is `distance`.";

#[derive(Args)]
#[command(
    after_help = EXAMPLES,
    group = ArgGroup::new("queries").required(true).args(["vector", "like_id"]),
    group = ArgGroup::new("accuracy").args(["exact", "recall", "probes", "ef"])
)]
pub struct Arguments {
    /// The table.
    table: String,
    /// The column of vectors; may be left out when the table has only one.
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    /// The vector, or vectors: a file, - for standard input, or JSON such as '[0.1, 0.7]'.
    #[arg(long, value_name = "FILE")]
    vector: Option<String>,
    /// The vector of the row with this `_rowid`, or this value of --id-column. The row is its own nearest neighbour.
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    like_id: Option<String>,
    /// The column whose values --like-id means; also returned when --select is left out.
    #[arg(long, value_name = "NAME")]
    id_column: Option<String>,
    /// How many neighbours of each vector, 1 to 10,000.
    #[arg(long, short, value_name = "COUNT", default_value_t = 10)]
    k: u32,
    /// How far two vectors are from each other: l2, ip (inner product), cosine, or hamming (of bits). Without it as the
    /// column's index has it; without an index hamming for bits, l2 for others.
    #[arg(long)]
    metric: Option<Metric>,
    /// Compare every vector.
    #[arg(long)]
    exact: bool,
    /// Find at least this part of the true neighbours, such as 0.99, as the index was calibrated. 0.95 when nothing is
    /// said.
    #[arg(long, value_name = "PART")]
    recall: Option<f32>,
    /// Look into this many lists of an IVF index.
    #[arg(long, value_name = "LISTS")]
    probes: Option<u32>,
    /// Keep this many candidates on the way through a graph.
    #[arg(long, value_name = "CANDIDATES")]
    ef: Option<u32>,
    /// Only rows for which this SQL predicate is true.
    #[arg(long = "where", value_name = "EXPRESSION", allow_hyphen_values = true)]
    filter: Option<String>,
    /// Return these columns, `_rowid` among them or not. `_rowid` when left out.
    #[arg(long, value_name = "COLUMNS")]
    select: Vec<String>,
    /// Only neighbours at most this far, in the metric.
    #[arg(long, value_name = "DISTANCE", allow_hyphen_values = true)]
    distance_max: Option<f32>,
    /// Search, and print what was done in place of the rows: the plan, lists probed, codes scanned, candidates re-ranked,
    /// bytes and reads of the drive. As JSON with --stats json.
    #[arg(long, conflicts_with_all = ["format", "output"])]
    explain: bool,
    #[command(flatten)]
    answer: AnswerArguments,
}

impl Arguments {
    fn accuracy(&self) -> Accuracy {
        match (self.exact, self.recall, self.probes, self.ef) {
            (true, ..) => Accuracy::Exact,
            (_, Some(recall), ..) => Accuracy::Recall(recall),
            (_, _, Some(probes), _) => Accuracy::Probes(probes),
            (_, _, _, Some(ef)) => Accuracy::Ef(ef),
            _ => Accuracy::Usual,
        }
    }

    /// The request, but for whose neighbours it asks.
    fn request(&self) -> SearchRequest {
        let mut columns: Vec<String> = self.select.iter().flat_map(|item| split_list(item)).collect();
        if columns.is_empty() {
            columns.extend(self.id_column.clone());
        }
        let mut request = SearchRequest::table(&self.table)
            .k(self.k)
            .accuracy(self.accuracy())
            .select(columns)
            .bypass_cache(self.answer.bypass_cache);
        if let Some(column) = &self.column {
            request = request.column(column);
        }
        if let Some(metric) = self.metric {
            request = request.metric(metric);
        }
        if let Some(filter) = &self.filter {
            request = request.filter(filter.as_str());
        }
        if let Some(distance) = self.distance_max {
            request = request.distance_max(distance);
        }
        request
    }
}

pub async fn run(arguments: Arguments, global: &Global) -> Result<(), Failure> {
    let format = arguments.answer.chosen_format()?;
    if !arguments.explain {
        arguments.answer.check_terminal(format)?;
    }
    let request = match &arguments.vector {
        // Before the cell is asked anything: most mistakes are here.
        Some(vectors) => arguments.request().vectors(queries::read(vectors).await?),
        None => arguments.request(),
    };
    let client = global.connect(connect_options(global, format)).await?;
    let request = match &arguments.like_id {
        Some(id) => {
            let rowid = queries::row_of(&client, &arguments.table, arguments.id_column.as_deref(), id).await?;
            request.like_rows([rowid])
        }
        None => request,
    };
    let mut stream = client.search(request).await?;
    if arguments.explain {
        while let Some(batch) = stream.next().await {
            batch?;
        }
        return report::print(
            &stream,
            arguments.answer.stats.unwrap_or(StatsFormat::Text),
            &mut std::io::stdout().lock(),
        );
    }
    let mut sink = Output::open(format, arguments.answer.output.as_deref(), stream.schema())?;
    while let Some(batch) = stream.next().await {
        sink.write(&batch?)?;
    }
    let elapsed = stream.elapsed().unwrap_or_default();
    sink.finish(&format!("{} in {}", quantity::rows(stream.rows()), quantity::duration(elapsed)))?;
    match arguments.answer.stats {
        Some(format) => report::print(&stream, format, &mut std::io::stderr().lock()),
        None => Ok(()),
    }
}
