//! `heliostat scan` and `heliostat explain`.

use std::io::Write;

use clap::Args;
use futures::StreamExt;
use heliostat_client::{ScanRequest, ScanStream, ScanText};
use hidb::proto::ScanStatistics;

use super::answer::{AnswerArguments, StatsFormat, connect_options};
use super::output::Output;
use super::text::{one_line, split_list, write_properties};
use super::{Failure, Global, quantity};

const EXAMPLES: &str = "Examples:
  heliostat scan lineitem --where \"l_quantity < 5\" --select l_orderkey,l_partkey --limit 10
  heliostat scan lineitem --agg \"sum(l_extendedprice * l_discount) as revenue\" \\
      --where \"l_shipdate >= date '1994-01-01' and l_discount between 0.05 and 0.07\"
  heliostat scan lineitem --agg \"count(*) as n\" --group-by l_returnflag --order-by \"n desc\"
  heliostat scan lineitem --output lineitem.parquet --stats text";

/// The parts of a question.
#[derive(Args)]
pub struct Question {
    /// The table.
    table: String,
    /// Keep rows for which this SQL predicate is true.
    #[arg(long = "where", value_name = "EXPRESSION", allow_hyphen_values = true)]
    filter: Option<String>,
    /// Return these columns or expressions (`a, a * b as c`). All columns when left out.
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    select: Vec<String>,
    /// Aggregate (`sum(a * b) as total`); may be given several times.
    #[arg(long, value_name = "EXPRESSION", allow_hyphen_values = true)]
    agg: Vec<String>,
    /// Group by these.
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    group_by: Vec<String>,
    /// Sort by these (`a desc, b nulls first`).
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    order_by: Vec<String>,
    /// Return at most this many rows.
    #[arg(long, value_name = "ROWS")]
    limit: Option<u64>,
    /// Skip this many rows first.
    #[arg(long, value_name = "ROWS", default_value_t = 0)]
    offset: u64,
}

impl Question {
    fn request(self) -> ScanRequest {
        let lists = |items: Vec<String>| items.iter().flat_map(|item| split_list(item)).collect();
        ScanRequest::text(ScanText {
            table: self.table,
            filter: self.filter,
            select: lists(self.select),
            aggregates: lists(self.agg),
            group_by: lists(self.group_by),
            order_by: lists(self.order_by),
            limit: self.limit,
            offset: self.offset,
        })
    }
}

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct ScanArguments {
    #[command(flatten)]
    question: Question,
    #[command(flatten)]
    answer: AnswerArguments,
}

pub async fn run(arguments: ScanArguments, global: &Global) -> Result<(), Failure> {
    let ScanArguments { question, answer } = arguments;
    let format = answer.chosen_format()?;
    answer.check_terminal(format)?;
    let client = global.connect(connect_options(global, format)).await?;
    let mut stream = client.scan(question.request().bypass_cache(answer.bypass_cache)).await?;
    let mut sink = Output::open(format, answer.output.as_deref(), stream.schema())?;
    while let Some(batch) = stream.next().await {
        sink.write(&batch?)?;
    }
    let elapsed = stream.elapsed().unwrap_or_default();
    sink.finish(&format!("{} in {}", quantity::rows(stream.rows()), quantity::duration(elapsed)))?;
    match answer.stats {
        Some(format) => print_statistics(&stream, format),
        None => Ok(()),
    }
}

pub async fn explain(question: Question, global: &Global) -> Result<(), Failure> {
    let client = global.connect(global.options()).await?;
    let text = client.explain(question.request()).await?;
    let mut output = std::io::stdout().lock();
    for line in text.trim_end().lines() {
        writeln!(output, "{}", one_line(line))?;
    }
    Ok(())
}

fn print_statistics(stream: &ScanStream, format: StatsFormat) -> Result<(), Failure> {
    let statistics = stream.statistics().copied().unwrap_or_default();
    let elapsed = stream.elapsed().unwrap_or_default();
    let mut output = std::io::stderr().lock();
    match format {
        StatsFormat::Json => writeln!(output, "{}", statistics_json(&statistics, elapsed.as_micros() as u64))?,
        StatsFormat::Text => {
            let share = |part: u64, whole: u64| {
                let percent = if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 };
                format!("{} of {} ({percent:.1}%)", quantity::count(part), quantity::count(whole))
            };
            let cell = std::time::Duration::from_micros(statistics.cell_us);
            write_properties(
                &mut output,
                &[
                    ("rows", quantity::count(statistics.rows)),
                    ("returned", quantity::bytes(statistics.bytes_returned)),
                    ("on the drive", quantity::bytes(statistics.stored_bytes)),
                    ("read from the drive", quantity::bytes(statistics.bytes_read_device)),
                    ("decoded", quantity::bytes(statistics.bytes_decoded)),
                    ("row groups pruned", share(statistics.row_groups_pruned, statistics.row_groups_total)),
                    ("blocks pruned", share(statistics.blocks_pruned, statistics.blocks_total)),
                    ("elapsed", quantity::duration(elapsed)),
                    ("in the cell", quantity::duration(cell)),
                ],
            )?;
        }
    }
    Ok(())
}

/// The statistics of `--stats json`.
pub fn statistics_json(statistics: &ScanStatistics, elapsed_us: u64) -> serde_json::Value {
    serde_json::json!({
        "rows": statistics.rows,
        "bytes_returned": statistics.bytes_returned,
        "bytes_read_device": statistics.bytes_read_device,
        "bytes_decoded": statistics.bytes_decoded,
        "bytes_stored": statistics.stored_bytes,
        "row_groups_total": statistics.row_groups_total,
        "row_groups_pruned": statistics.row_groups_pruned,
        "blocks_total": statistics.blocks_total,
        "blocks_pruned": statistics.blocks_pruned,
        "elapsed_us": elapsed_us,
        "cell_us": statistics.cell_us,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_have_exactly_the_documented_keys() {
        let json = statistics_json(&ScanStatistics::default(), 5);
        let mut keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        let mut expected = [
            "rows",
            "bytes_returned",
            "bytes_read_device",
            "bytes_decoded",
            "bytes_stored",
            "row_groups_total",
            "row_groups_pruned",
            "blocks_total",
            "blocks_pruned",
            "elapsed_us",
            "cell_us",
        ];
        expected.sort_unstable();
        assert_eq!(keys, expected);
    }
}
