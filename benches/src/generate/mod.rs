//! `generate`: data to measure with.
//!
//! Owns the command's arguments and the way of the rows: made in pieces of at most [`PIECE_BYTES`], and written to a file
//! ([`array_file`]), loaded into a table of a cell, or both. The vectors are those of `heliostat_vector::generate`: clusters
//! of few intrinsic dimensions, as embeddings are; the same on every machine for the same arguments.
//!
//! Invariant: queries are of the same clusters, and never among the rows.

mod array_file;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arrow_array::{ArrayRef, FixedSizeListArray, Float32Array, Int32Array, Int64Array, RecordBatch};
use arrow_schema::DataType as ArrowType;
use clap::{ArgGroup, Args, Subcommand};
use heliostat_client::{LOAD_BATCH_BYTES, LOAD_BATCH_ROWS, LoadMode, LoadWriter};
use heliostat_vector::generate::Clustered;
use hidb::{DataType, Field, Schema, VectorElement, arrow_mapping};

use crate::Way;
use array_file::ArrayFile;

/// Bytes of vectors that are made at a time; each time the clusters' centres are made again.
const PIECE_BYTES: usize = 32 << 20;

/// Components of all centres together, at most: 256 MiB of them.
const CENTRE_COMPONENTS_MAX: u64 = 64 << 20;

/// The first row that is a query: rows of a table end before.
const FIRST_QUERY: u64 = 1 << 40;

const EXAMPLES: &str = "Examples:
  heliostat-bench generate vectors --rows 1m --dimension 96 --output base.npy --queries queries.npy
  heliostat-bench generate vectors --rows 20k --dimension 64 --table points --queries queries.fvecs --connect hidb://cell:7400

A table has the columns id (int64, from 0), percent (int32, 0 to 99, each as often and without regard to the vector: a
filter `percent < 5` keeps 5% of the rows) and v (the vector).";

/// What is generated.
#[derive(Subcommand)]
pub(crate) enum What {
    /// Vectors in clusters, as embeddings are: a .npy or .fvecs file, a table, and queries that are held out.
    #[command(after_help = EXAMPLES)]
    Vectors(Box<Vectors>),
}

#[derive(Args)]
#[command(group = ArgGroup::new("into").required(true).multiple(true).args(["output", "table", "queries"]))]
pub(crate) struct Vectors {
    /// How many; k and m are thousands and millions.
    #[arg(long, value_parser = parse_count)]
    rows: u64,
    /// Components of each.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_535))]
    dimension: u32,
    /// Directions in which a cluster extends; the rest is noise a tenth as strong.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    intrinsic: u32,
    /// Clusters. The first ones are the largest.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    clusters: u32,
    /// How far a cluster extends, in units of the distance between clusters.
    #[arg(long, default_value_t = 0.7)]
    spread: f32,
    /// Of everything random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The file of the rows, .npy or .fvecs by its extension.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The table that is made of the rows.
    #[arg(long, value_name = "NAME")]
    table: Option<String>,
    /// Put the rows in place of those of a table that exists.
    #[arg(long, requires = "table")]
    replace: bool,
    /// The file of the queries, .npy or .fvecs by its extension.
    #[arg(long, value_name = "FILE")]
    queries: Option<PathBuf>,
    /// How many queries.
    #[arg(long, default_value_t = 1000, value_name = "COUNT")]
    query_count: u64,
    #[command(flatten)]
    way: Way,
}

/// `20000`, `20k`, `1m`, `1g`: thousands, millions, a thousand millions.
fn parse_count(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let units = [("k", 1_000), ("m", 1_000_000), ("g", 1_000_000_000)];
    let unit = units.into_iter().find_map(|(unit, times)| Some((lower.strip_suffix(unit)?, times)));
    let (digits, times) = unit.unwrap_or((&lower, 1));
    let count: Option<u64> = digits.parse().ok().and_then(|count: u64| count.checked_mul(times));
    match count {
        Some(count) if (1..FIRST_QUERY).contains(&count) => Ok(count),
        _ => Err(format!("expected a number such as 20000, 20k or 1m, below {FIRST_QUERY}")),
    }
}

/// Generates, and says what it made.
pub(crate) async fn generate(what: What) -> Result<()> {
    let What::Vectors(vectors) = what;
    vectors.generate().await
}

impl Vectors {
    fn recipe(&self) -> Result<Clustered> {
        let centres = u64::from(self.clusters) * u64::from(self.dimension);
        if centres > CENTRE_COMPONENTS_MAX {
            bail!("{} clusters of {} components need more than 256 MiB: make fewer", self.clusters, self.dimension);
        }
        if !(self.spread.is_finite() && self.spread >= 0.0) {
            bail!("a spread of {}: it is a number, 0 or more", self.spread);
        }
        Ok(Clustered {
            dimension: self.dimension as usize,
            intrinsic: self.intrinsic as usize,
            clusters: self.clusters as usize,
            spread: self.spread,
            seed: self.seed,
        })
    }

    async fn generate(&self) -> Result<()> {
        let recipe = self.recipe()?;
        let mut file = match &self.output {
            Some(path) => Some(ArrayFile::create(path, self.rows, recipe.dimension)?),
            None => None,
        };
        let mut load = match &self.table {
            Some(table) => {
                let mode = if self.replace { LoadMode::Replace } else { LoadMode::Create };
                let client = self.way.connect().await?;
                Some(client.load(table, &schema(recipe.dimension)?, mode).await?)
            }
            None => None,
        };
        if file.is_some() || load.is_some() {
            for (first, values) in pieces(recipe, 0, self.rows) {
                if let Some(file) = &mut file {
                    file.write(&values)?;
                }
                if let Some(load) = &mut load {
                    write(load, recipe, first, &values).await?;
                }
            }
        }
        let made = |place: &dyn std::fmt::Display, rows| eprintln!("{place}: {rows} vectors of {}", self.dimension);
        if let (Some(file), Some(path)) = (file, &self.output) {
            file.finish()?;
            made(&path.display(), self.rows);
        }
        if let (Some(mut load), Some(table)) = (load, &self.table) {
            load.commit().await?;
            made(&format_args!("table {table}"), self.rows);
        }
        if let Some(path) = &self.queries {
            let mut file = ArrayFile::create(path, self.query_count, recipe.dimension)?;
            for (_, values) in pieces(recipe, FIRST_QUERY, self.query_count) {
                file.write(&values)?;
            }
            file.finish()?;
            made(&path.display(), self.query_count);
        }
        Ok(())
    }
}

/// Rows `first..first + rows` in pieces: the number of each piece's first row, and its components.
fn pieces(recipe: Clustered, first: u64, rows: u64) -> impl Iterator<Item = (u64, Vec<f32>)> {
    let each = (PIECE_BYTES / (recipe.dimension * size_of::<f32>())).max(1) as u64;
    (0..rows.div_ceil(each)).map(move |piece| {
        let start = piece * each;
        (first + start, recipe.rows(first + start, each.min(rows - start) as usize))
    })
}

/// The columns of a table.
fn schema(dimension: usize) -> Result<Schema> {
    let vector = DataType::Vector { dimension: dimension as u32, element: VectorElement::F32 };
    let columns = [("id", DataType::Int64), ("percent", DataType::Int32), ("v", vector)];
    let fields = columns.map(|(name, data_type)| Field::new(name, data_type, false));
    Ok(Schema::new(fields.to_vec())?)
}

/// Which hundredth of the rows it is in: a hash (SplitMix64's finalizer) of its number and the seed.
fn percent(seed: u64, row: u64) -> i32 {
    let mut hash = seed ^ row.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((hash ^ (hash >> 31)) % 100) as i32
}

/// Writes a piece in batches of a load.
async fn write(load: &mut LoadWriter, recipe: Clustered, first: u64, values: &[f32]) -> Result<()> {
    let row_bytes = recipe.dimension * size_of::<f32>() + size_of::<i64>() + size_of::<i32>();
    let rows = (LOAD_BATCH_BYTES / row_bytes).clamp(1, LOAD_BATCH_ROWS);
    for (batch, values) in values.chunks(rows * recipe.dimension).enumerate() {
        load.write(&batch_of(recipe, first + (batch * rows) as u64, values)?).await?;
    }
    Ok(())
}

fn batch_of(recipe: Clustered, first: u64, values: &[f32]) -> Result<RecordBatch> {
    let schema = arrow_mapping::to_arrow_schema(&schema(recipe.dimension)?, true);
    let rows = first..first + (values.len() / recipe.dimension) as u64;
    let ArrowType::FixedSizeList(item, length) = schema.field(2).data_type() else {
        bail!("vectors are {}, not lists", schema.field(2).data_type());
    };
    let components = Arc::new(Float32Array::from(values.to_vec()));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.clone().map(|row| row as i64))),
        Arc::new(Int32Array::from_iter_values(rows.map(|row| percent(recipe.seed, row)))),
        Arc::new(FixedSizeListArray::try_new(item.clone(), *length, components, None)?),
    ];
    RecordBatch::try_new(schema, columns).context("making a batch of vectors")
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: Clustered = Clustered { dimension: 3, intrinsic: 2, clusters: 4, spread: 0.7, seed: 9 };

    #[test]
    fn pieces_are_the_rows_in_order() {
        let wide = Clustered { dimension: 40_000, clusters: 2, ..RECIPE };
        let made: Vec<(u64, Vec<f32>)> = pieces(wide, 5, 500).collect();
        assert!(made.len() > 2 && made.iter().all(|(_, values)| values.len() * 4 <= PIECE_BYTES));
        assert_eq!(made[1].0, 5 + made[0].1.len() as u64 / 40_000);
        let all: Vec<f32> = made.into_iter().flat_map(|(_, values)| values).collect();
        assert!(all == wide.rows(5, 500), "the pieces are not the rows");
    }

    #[test]
    fn a_table_has_ids_hundredths_and_vectors() {
        use arrow_array::Array;
        use arrow_array::cast::AsArray;
        use arrow_array::types::{Float32Type, Int32Type, Int64Type};
        let batch = batch_of(RECIPE, 7, &RECIPE.rows(7, 5000)).unwrap();
        assert_eq!(batch.column(0).as_primitive::<Int64Type>().values()[..2], [7, 8]);
        let values = batch.column(2).as_fixed_size_list().values().clone();
        assert_eq!(values.as_primitive::<Float32Type>().values()[..], RECIPE.rows(7, 5000)[..]);
        let hundredths = batch.column(1).as_primitive::<Int32Type>().values();
        let below_ten = hundredths.iter().filter(|percent| (0..10).contains(*percent)).count();
        assert!((400..600).contains(&below_ten), "{below_ten} of 5000 rows are below 10%");
        assert!(hundredths.iter().all(|percent| (0..100).contains(percent)) && batch.column(0).null_count() == 0);
    }

    #[test]
    fn counts_are_written_in_thousands_and_millions() {
        assert_eq!((parse_count("20k"), parse_count("1M"), parse_count("7")), (Ok(20_000), Ok(1_000_000), Ok(7)));
        for wrong in ["", "k", "0", "-1", "1.5m", "1099511627776", "99999999999g"] {
            assert!(parse_count(wrong).is_err(), "{wrong}");
        }
    }
}
