//! `heliostat delete`.

use clap::{ArgGroup, Args};
use heliostat_client::Condition;

use super::{Failure, Global, quantity};

const EXAMPLES: &str = "Examples:
  heliostat delete events --where \"at < date '2020-01-01'\"
  heliostat delete events --where \"_rowid in (17, 42)\"
  heliostat delete events --all

Nothing is asked. What is deleted is gone for every question that begins afterwards; its room on the volume is used again
once merges have passed over it.";

#[derive(Args)]
#[command(after_help = EXAMPLES, group = ArgGroup::new("which").required(true).args(["filter", "all"]))]
pub struct Arguments {
    /// The table.
    table: String,
    /// Delete the rows for which this SQL predicate is true.
    #[arg(long = "where", value_name = "EXPRESSION", allow_hyphen_values = true)]
    filter: Option<String>,
    /// Delete every row; the table stays.
    #[arg(long)]
    all: bool,
}

pub async fn run(arguments: Arguments, global: &Global) -> Result<(), Failure> {
    let Arguments { table, filter, .. } = arguments;
    let client = global.connect(global.options()).await?;
    let rows = client.delete_rows(&table, filter.map(Condition::Text)).await?;
    println!("deleted {} from {table}", quantity::rows(rows));
    Ok(())
}
