//! `heliostat table ls|show|drop`.

use std::io::Write;

use clap::Subcommand;
use heliostat_client::{Client, TableDescription};
use hidb::order::OrderKind;
use hidb::{Error, ErrorCode};

use super::text::{TextTable, write_properties};
use super::{Failure, Global, ListFormat, quantity};

#[derive(Subcommand)]
pub enum Command {
    /// List the tables.
    Ls {
        /// How the list is printed.
        #[arg(long, value_enum, default_value_t = ListFormat::Table)]
        format: ListFormat,
    },
    /// Show a table's columns and what they take on the volume.
    Show {
        /// The table.
        table: String,
        /// How it is printed.
        #[arg(long, value_enum, default_value_t = ListFormat::Table)]
        format: ListFormat,
    },
    /// Drop tables and their data: all of those named, or, when one does not exist, none.
    Drop {
        /// The tables.
        #[arg(required = true)]
        tables: Vec<String>,
        /// A table that does not exist is no error.
        #[arg(long)]
        if_exists: bool,
    },
}

pub async fn run(command: Command, global: &Global) -> Result<(), Failure> {
    let client = global.connect(global.options()).await?;
    let mut output = std::io::stdout().lock();
    match command {
        Command::Ls { format: ListFormat::Json } => {
            for table in client.tables().await? {
                let line = serde_json::json!({
                    "name": table.name,
                    "rows": table.rows,
                    "stored_bytes": table.stored_bytes,
                    "schema_hash": format!("{:016x}", table.schema_hash),
                });
                writeln!(output, "{line}")?;
            }
        }
        Command::Ls { format: ListFormat::Table } => {
            let tables = client.tables().await?;
            if tables.is_empty() {
                writeln!(output, "no tables yet: make one with `heliostat load TABLE FILE`")?;
                return Ok(());
            }
            let mut list = TextTable::new([
                ("name".to_string(), false),
                ("rows".to_string(), true),
                ("on the volume".to_string(), true),
                ("bytes/row".to_string(), true),
            ]);
            for table in tables {
                let per_row = match table.rows {
                    0 => String::new(),
                    rows => format!("{:.1}", table.stored_bytes as f64 / rows as f64),
                };
                list.push([table.name, quantity::count(table.rows), quantity::bytes(table.stored_bytes), per_row]);
            }
            list.write(&mut output)?;
        }
        Command::Show { table, format } => {
            let found = client.describe(&table).await?;
            match format {
                ListFormat::Json => writeln!(output, "{}", as_json(&found))?,
                ListFormat::Table => write_table(&mut output, &found)?,
            }
        }
        Command::Drop { tables, if_exists } => {
            for (table, exists) in look_up(&client, tables, if_exists).await? {
                if exists {
                    client.drop_table(&table, if_exists).await?;
                    writeln!(output, "dropped {table}")?;
                } else {
                    writeln!(output, "there was no table {table}")?;
                }
            }
        }
    }
    Ok(())
}

/// Each table once, and whether it exists; an error unless all do or may be missing.
async fn look_up(client: &Client, tables: Vec<String>, may_be_missing: bool) -> Result<Vec<(String, bool)>, Error> {
    let named = tables.len();
    let mut found: Vec<(String, bool)> = Vec::with_capacity(named);
    for table in tables {
        if found.iter().any(|(known, _)| *known == table) {
            continue;
        }
        let exists = match client.describe(&table).await {
            Ok(_) => true,
            Err(error) if error.code != ErrorCode::UnknownTable => return Err(error),
            Err(_) if may_be_missing => false,
            Err(error) if named == 1 => return Err(error),
            Err(error) => return Err(Error::new(error.code, format!("{}: nothing was dropped", error.message))),
        };
        found.push((table, exists));
    }
    Ok(found)
}

/// How much smaller the table is than its rows as Arrow: what is known for columns of fixed width only.
fn ratio(table: &TableDescription) -> Option<f64> {
    let stored = table.summary.stored_bytes;
    let fixed = table.schema.fields().iter().all(|field| field.data_type.fixed_width().is_some());
    (fixed && stored > 0 && stored < table.raw_bytes).then(|| table.raw_bytes as f64 / stored as f64)
}

fn write_table(output: &mut dyn Write, table: &TableDescription) -> Result<(), Failure> {
    let ratio = ratio(table).map(|ratio| format!(" ({ratio:.1} times smaller than Arrow)")).unwrap_or_default();
    let order = table.order.as_ref().map(|order| format!(", {order}")).unwrap_or_default();
    write_properties(
        output,
        &[
            ("table", table.summary.name.clone()),
            ("rows", format!("{}{order}", quantity::count(table.summary.rows))),
            ("on the volume", format!("{}{ratio}", quantity::bytes(table.summary.stored_bytes))),
            (
                "made of",
                [
                    quantity::counted(table.shards.into(), "shard"),
                    quantity::counted(table.segments, "segment"),
                    quantity::counted(table.row_groups, "row group"),
                ]
                .join(", "),
            ),
        ],
    )?;
    writeln!(output)?;
    let columns = [
        ("column", false),
        ("type", false),
        ("size", true),
        ("nulls", true),
        ("encodings", false),
        ("min", false),
        ("max", false),
    ];
    let mut list = TextTable::new(columns.map(|(name, right)| (name.to_string(), right)));
    let cut = |text: &str| {
        if text.chars().count() > 24 { text.chars().take(21).chain("...".chars()).collect() } else { text.to_string() }
    };
    for (index, field) in table.schema.fields().iter().enumerate() {
        let storage = table.columns.get(index).cloned().unwrap_or_default();
        let not_null = if field.nullable { "" } else { " not null" };
        list.push([
            field.name.clone(),
            format!("{}{not_null}", field.data_type),
            quantity::bytes(storage.stored_bytes),
            quantity::count(storage.null_count),
            storage.encodings.join(" "),
            cut(&storage.min),
            cut(&storage.max),
        ]);
    }
    list.write(output)?;
    Ok(())
}

fn as_json(table: &TableDescription) -> serde_json::Value {
    let columns: Vec<_> = table
        .schema
        .fields()
        .iter()
        .enumerate()
        .map(|(index, field)| {
            let storage = table.columns.get(index).cloned().unwrap_or_default();
            serde_json::json!({
                "name": field.name,
                "type": field.data_type.to_string(),
                "nullable": field.nullable,
                "stored_bytes": storage.stored_bytes,
                "null_count": storage.null_count,
                "encodings": storage.encodings,
                "min": storage.min,
                "max": storage.max,
            })
        })
        .collect();
    serde_json::json!({
        "name": table.summary.name,
        "rows": table.summary.rows,
        "stored_bytes": table.summary.stored_bytes,
        "raw_bytes": table.raw_bytes,
        "shards": table.shards,
        "segments": table.segments,
        "row_groups": table.row_groups,
        "schema_hash": format!("{:016x}", table.summary.schema_hash),
        "order": table.order.as_ref().map(|order| serde_json::json!({
            "kind": match order.kind() {
                OrderKind::Sorted => "sorted",
                OrderKind::Clustered => "clustered",
            },
            "columns": order.columns(),
        })),
        "columns": columns,
    })
}
