//! `recall`: recall against speed of a table's searches, over a list of parameters, as a table, JSON and a picture.
//!
//! Owns the command's arguments and the order of measuring. The rooms: [`measure`] is one parameter, [`curve`] what was
//! measured and how it is kept, [`picture`] the SVG.
//!
//! For each parameter: first the recall of all queries against the cell's own exact answers, which also warms the cell's
//! cache; then single requests, one after the other, for latencies and device reads; then as many requests under way as
//! `--iodepth` and `--clients` say, for queries per second. Nothing of it is the cell's: what is measured is what a client
//! sees, on loopback or from another machine.

mod curve;
mod measure;
mod picture;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use futures::future::try_join_all;
use heliostat_client::{Accuracy, Client, IndexKind, IndexSummary, Metric, NEIGHBOURS_MAX};

use crate::Way;
use crate::search::{EXACT_QUERIES_PER_REQUEST, Pool, Question, Written, neighbours, parse_list, vector_column};
use curve::Curve;

/// What is printed at the end of `--help`.
pub(crate) const EXAMPLES: &str = "Examples:
  heliostat-bench recall --table points --queries queries.npy --plot points.svg
  heliostat-bench recall --table points --queries queries.npy --parameters probes=1,2,4,8,16,exact --json ivf.json
  heliostat-bench recall --beside ivf.json --beside graph.json --plot both.svg

Recall is measured against the exact answers of the same cell, by distance: rows as near as the last true neighbour count.";

#[derive(Args)]
pub(crate) struct Arguments {
    /// The table.
    #[arg(long, required_unless_present = "beside")]
    table: Option<String>,
    /// The column of vectors; may be left out when the table has only one.
    #[arg(long)]
    column: Option<String>,
    /// Query vectors: .npy, .fvecs, .bvecs or JSON. Without it rows of the table, each of which finds itself first, which
    /// flatters recall.
    #[arg(long, value_name = "FILE")]
    queries: Option<PathBuf>,
    /// How many of the queries are used, or rows drawn.
    #[arg(long, default_value_t = 1000, value_name = "COUNT", value_parser = positive)]
    query_count: usize,
    /// Of the rows that are drawn.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Neighbours of each query.
    #[arg(long, short, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=i64::from(NEIGHBOURS_MAX)))]
    k: u32,
    /// l2, ip (inner product), cosine or hamming; as the index has it when left out.
    #[arg(long)]
    metric: Option<Metric>,
    /// Only rows for which this SQL predicate is true.
    #[arg(long = "where", value_name = "EXPRESSION", allow_hyphen_values = true)]
    filter: Option<String>,
    /// What is measured, such as probes=1,2,4,8, ef=16,32,64, recall=0.9,0.99 or exact, several of them after commas. Left
    /// out: steps that suit the column's index.
    #[arg(long, value_name = "LIST")]
    parameters: Option<String>,
    /// Requests under way together, for queries per second.
    #[arg(long, default_value_t = 16, value_parser = positive)]
    iodepth: usize,
    /// Connections that have so many under way each; the cell answers each by another of its cores.
    #[arg(long, default_value_t = 1, value_parser = positive)]
    clients: usize,
    /// How long latency, and queries per second, are measured for each parameter.
    #[arg(long, default_value_t = 3.0, value_parser = seconds)]
    seconds: f64,
    /// The cell reads everything from its drive.
    #[arg(long)]
    bypass_cache: bool,
    /// What the results are called in the picture; the index's kind when left out.
    #[arg(long)]
    label: Option<String>,
    /// Draw recall against queries per second, and against latency, as SVG.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Keep the results, for --beside.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Results that were kept, to be drawn in the same picture; may be given several times, and without --table.
    #[arg(long, value_name = "FILE")]
    beside: Vec<PathBuf>,
    #[command(flatten)]
    way: Way,
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or_else(|| "expected a number from 1 on".to_string())
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| *seconds > 0.0 && *seconds < 86_400.0);
    seconds.ok_or_else(|| "expected a number of seconds above 0".to_string())
}

/// Measures, prints, keeps and draws what the arguments say.
pub(crate) async fn recall(arguments: Arguments) -> Result<()> {
    let mut curves = arguments.beside.iter().map(|path| curve::read(path)).collect::<Result<Vec<_>>>()?;
    // Found out before the measuring, not after.
    for path in arguments.plot.iter().chain(&arguments.json) {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if folder.is_some_and(|folder| !folder.is_dir()) {
            bail!("{}: there is no such folder to write to", path.display());
        }
    }
    if let Some(table) = &arguments.table {
        let curve = arguments.measure(table).await?;
        if let Some(path) = &arguments.json {
            let text = format!("{:#}\n", curve.to_json());
            std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        curves.push(curve);
    }
    match &arguments.plot {
        Some(path) => {
            let picture = picture::draw(&curves)?;
            std::fs::write(path, picture).with_context(|| format!("writing {}", path.display()))
        }
        None => Ok(()),
    }
}

impl Arguments {
    async fn measure(&self, table: &str) -> Result<Curve> {
        let given = self.parameters.as_deref().map(parse_list).transpose().map_err(anyhow::Error::msg)?;
        let from_file = self.queries.as_deref().map(|path| Pool::read(path, self.query_count)).transpose()?;
        let clients = try_join_all((0..self.clients).map(|_| self.way.connect()).collect::<Vec<_>>()).await?;
        let client = &clients[0];
        let column = vector_column(&*client.schema(table).await?, self.column.as_deref())?;
        let index = index_of(client, table, &column).await?;
        let parameters = match given {
            Some(given) => given,
            None => steps(index.as_ref(), self.k),
        };
        let pool = Arc::new(match from_file {
            Some(pool) => pool,
            None => Pool::draw(client, table, Some(&column), self.query_count, self.seed).await?,
        });
        let question = Question {
            table: table.into(),
            column: Some(column),
            k: self.k,
            accuracy: Accuracy::Exact,
            metric: self.metric,
            filter: self.filter.clone(),
            columns: Vec::new(),
            bypass_cache: self.bypass_cache,
        };
        let index_text = describe(index.as_ref());
        let mut curve = Curve {
            label: self.label.clone().unwrap_or_else(|| kind_of(index.as_ref()).to_string()),
            table: table.into(),
            index: index_text,
            k: self.k,
            queries: pool.len() as u64,
            in_flight: (self.iodepth * self.clients) as u64,
            points: Vec::new(),
        };
        let mut output = std::io::stdout();
        write!(output, "{}", curve.heading())?;
        output.flush()?;
        let truth = neighbours(client, &question, &pool, 0..pool.len(), EXACT_QUERIES_PER_REQUEST, 1).await;
        let truth = truth.context("asking for the exact answers")?;
        let how = measure::How { iodepth: self.iodepth, time: Duration::from_secs_f64(self.seconds) };
        for written in parameters {
            let question = Arc::new(Question { accuracy: written.0, ..question.clone() });
            let point = measure::point(&clients, written, &question, &pool, &truth, how);
            let point = point.await.with_context(|| format!("measuring {written}"))?;
            writeln!(output, "{}", point.row())?;
            output.flush()?;
            curve.points.push(point);
        }
        Ok(curve)
    }
}

async fn index_of(client: &Client, table: &str, column: &str) -> Result<Option<IndexSummary>> {
    let of_column =
        |index: &IndexSummary| index.definition.as_ref().is_some_and(|definition| definition.column == column);
    Ok(client.list_indexes(Some(table)).await?.into_iter().find(of_column))
}

fn kind_of(index: Option<&IndexSummary>) -> &'static str {
    match index.map(IndexSummary::built) {
        Some(IndexKind::Ivf) => "ivf",
        Some(IndexKind::Graph) => "graph",
        _ => "no index",
    }
}

/// What the searches can use, for whoever reads the results.
fn describe(index: Option<&IndexSummary>) -> String {
    let Some(index) = index else { return "no index: every search is exact".into() };
    let lists = if index.lists > 0 { format!(" of {} lists", index.lists) } else { String::new() };
    let kind = kind_of(Some(index));
    match kind {
        "no index" => "an index that is not built yet: every search is exact".into(),
        _ => format!("{kind}{lists} over {} of {} rows", index.indexed_rows, index.rows),
    }
}

/// Parameters that suit an index: from fast to nearly exact.
fn steps(index: Option<&IndexSummary>, k: u32) -> Vec<Written> {
    let built = index.map(IndexSummary::built);
    let accuracies: Vec<Accuracy> = match (built, index) {
        (Some(IndexKind::Ivf), Some(index)) => {
            let doubled = (0..10).map(|power| 1u32 << power);
            doubled.filter(|probes| *probes <= index.lists.max(1)).map(Accuracy::Probes).collect()
        }
        (Some(IndexKind::Graph), _) => {
            let wider = [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0];
            wider.into_iter().map(|times| Accuracy::Ef((f64::from(k) * times).ceil() as u32)).collect()
        }
        _ => vec![Accuracy::Exact],
    };
    accuracies.into_iter().map(Written).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps_of(kind: IndexKind, lists: u32, k: u32) -> Vec<String> {
        let index = IndexSummary { built: kind as i32, lists, ..Default::default() };
        steps(Some(&index), k).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn parameters_suit_the_index() {
        assert_eq!(steps_of(IndexKind::Ivf, 5, 10), ["probes=1", "probes=2", "probes=4"]);
        assert_eq!(steps_of(IndexKind::Ivf, 100_000, 10).last().map(String::as_str), Some("probes=512"));
        assert_eq!(steps_of(IndexKind::Graph, 0, 10)[..3], ["ef=10", "ef=15", "ef=20"]);
        // No index that could be used yet.
        assert_eq!(steps_of(IndexKind::Unspecified, 0, 10), ["exact"]);
        assert_eq!(steps(None, 10), [Written(Accuracy::Exact)]);
    }

    #[test]
    fn what_searches_can_use_is_said() {
        let index = IndexSummary {
            built: IndexKind::Ivf as i32,
            lists: 64,
            rows: 20_000,
            indexed_rows: 19_000,
            ..Default::default()
        };
        assert_eq!(describe(Some(&index)), "ivf of 64 lists over 19000 of 20000 rows");
        assert!(describe(Some(&IndexSummary::default())).contains("not built yet"));
        assert!(describe(None).contains("every search is exact"));
    }
}
