//! Whose neighbours are looked for: vectors of a file, or rows of the table itself.
//!
//! Owns [`Pool`]. Rows of the table are named by their `_rowid`, and the cell looks their vectors up; each is its own nearest
//! neighbour, which flatters recall by up to `1/k` and costs a read: held-out vectors measure better.

use std::collections::HashSet;
use std::path::Path;

use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use futures::TryStreamExt;
use heliostat_client::input::arrays::ArrayReader;
use heliostat_client::{Client, QueryVector, ScanRequest, ScanText, SearchRequest};
use hidb::{DataType, Error, ErrorCode, ROWID_COLUMN, Result, Schema};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The most bytes of query vectors that are kept.
const BYTES_MAX: usize = 1 << 30;

/// A table whose row ids span no more than this is read as a whole to draw rows of it.
const SPAN_READ_WHOLE: u64 = 65_536;

/// Row ids that are looked up at a time.
const LOOKED_UP: usize = 256;

/// Lookups at most: a table nearly all of whose rows were deleted gives fewer queries than were asked for.
const LOOKUPS_MAX: usize = 400;

/// Queries, to be asked in turn.
#[derive(Clone, Debug)]
pub enum Pool {
    /// Vectors that the client brings.
    Vectors(Vec<QueryVector>),
    /// Rows whose vectors are meant.
    Rows(Vec<i64>),
}

impl Pool {
    /// The first vectors of a file: `.npy`, `.fvecs`, `.bvecs` or JSON.
    ///
    /// # Errors
    /// Of the file; `InvalidParameter` when it has no vectors.
    pub fn read(path: &Path, vectors_max: usize) -> Result<Self> {
        let mut reader = ArrayReader::open(path)?;
        let vectors = QueryVector::read(&mut reader, vectors_max, BYTES_MAX)?;
        match vectors.is_empty() {
            true => Err(refused(format!("{}: no vectors in it to find neighbours of", path.display()))),
            false => Ok(Pool::Vectors(vectors)),
        }
    }

    /// Rows of a table that have a vector, each as likely; the same ones for the same seed and table. At most `count`.
    ///
    /// # Errors
    /// The client's; `InvalidParameter` when the table has none.
    pub async fn draw(client: &Client, table: &str, column: Option<&str>, count: usize, seed: u64) -> Result<Self> {
        let column = vector_column(&*client.schema(table).await?, column)?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let has_vector = format!("\"{}\" is not null", column.replace('"', "\"\""));
        let Some((first, last)) = span(client, table, &has_vector).await? else {
            return Err(refused(format!("the table {table} has no vectors in {column}: load some first")));
        };
        let is_small = last.abs_diff(first) < SPAN_READ_WHOLE;
        let mut rows = Vec::new();
        if is_small {
            rows = rowids(client, table, has_vector).await?;
            rows.sort_unstable();
            rows.shuffle(&mut rng);
        } else {
            let mut tried = HashSet::new();
            for _ in 0..LOOKUPS_MAX {
                let drawn = std::iter::repeat_with(|| rng.random_range(first..=last)).take(LOOKED_UP);
                let drawn: Vec<i64> = drawn.filter(|row| tried.insert(*row)).collect();
                let list = drawn.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                let there = rowids(client, table, format!("{ROWID_COLUMN} in ({list}) and {has_vector}")).await?;
                let there: HashSet<i64> = there.into_iter().collect();
                rows.extend(drawn.into_iter().filter(|row| there.contains(row)));
                if rows.len() >= count {
                    break;
                }
            }
        }
        rows.truncate(count);
        match rows.is_empty() {
            true => Err(refused(format!("no row of {table} was found to take a vector from: name a file of queries"))),
            false => Ok(Pool::Rows(rows)),
        }
    }

    /// How many there are; at least one.
    pub fn len(&self) -> usize {
        match self {
            Pool::Vectors(vectors) => vectors.len(),
            Pool::Rows(rows) => rows.len(),
        }
    }

    /// The request for the neighbours of `count` queries from `first` on; after the last comes the first again.
    pub fn put(&self, request: SearchRequest, first: u64, count: usize) -> SearchRequest {
        let places = (0..count as u64).map(|place| (first.wrapping_add(place) % self.len() as u64) as usize);
        match self {
            Pool::Vectors(vectors) => request.vectors(places.map(|place| vectors[place].clone())),
            Pool::Rows(rows) => request.like_rows(places.map(|place| rows[place])),
        }
    }
}

fn refused(text: String) -> Error {
    Error::new(ErrorCode::InvalidParameter, text)
}

/// The column of vectors of this name, or the only one.
///
/// # Errors
/// `UnknownColumn`, or `InvalidParameter` when there are none or several.
pub fn vector_column(schema: &Schema, name: Option<&str>) -> Result<String> {
    let vectors = schema.fields().iter().filter(|field| matches!(field.data_type, DataType::Vector { .. }));
    let vectors: Vec<&str> = vectors.map(|field| field.name.as_str()).collect();
    match (name, vectors.as_slice()) {
        (Some(name), _) => match schema.find(name) {
            Some((_, field)) if vectors.contains(&field.name.as_str()) => Ok(field.name.clone()),
            _ => Err(Error::new(
                ErrorCode::UnknownColumn,
                format!("no column of vectors is named {name:?}; there are: {}", vectors.join(", ")),
            )),
        },
        (None, [only]) => Ok(only.to_string()),
        (None, []) => Err(refused("the table has no column of vectors".into())),
        (None, _) => Err(refused(format!("which column of vectors? There are {}", vectors.join(", ")))),
    }
}

/// The lowest and the highest row id of the rows that pass.
async fn span(client: &Client, table: &str, filter: &str) -> Result<Option<(i64, i64)>> {
    let ends = ["min", "max"].map(|function| format!("{function}({ROWID_COLUMN})"));
    let text =
        ScanText { table: table.into(), aggregates: ends.into(), filter: Some(filter.into()), ..ScanText::default() };
    let mut stream = client.scan(ScanRequest::text(text)).await?;
    let mut found = None;
    while let Some(batch) = stream.try_next().await? {
        let end = |column: usize| {
            let ends = batch.columns().get(column)?.as_primitive_opt::<Int64Type>()?;
            (!ends.is_empty() && ends.is_valid(0)).then(|| ends.value(0))
        };
        found = found.or(end(0).zip(end(1)));
    }
    Ok(found)
}

/// The row ids of the rows that pass.
async fn rowids(client: &Client, table: &str, filter: String) -> Result<Vec<i64>> {
    let mut stream = client.scan(ScanRequest::table(table).filter(filter).select([ROWID_COLUMN])).await?;
    let mut found = Vec::new();
    while let Some(batch) = stream.try_next().await? {
        let column = batch.columns().first().and_then(|column| column.as_primitive_opt::<Int64Type>());
        found.extend(column.iter().flat_map(|column| column.values().iter()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hidb::Field;

    #[test]
    fn queries_come_in_turn_and_begin_again() {
        let text = "[[1, 2], [3, 4], [5, 6]]";
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queries.json");
        std::fs::write(&path, text).unwrap();
        let pool = Pool::read(&path, 10).unwrap();
        assert_eq!((pool.len(), Pool::read(&path, 2).unwrap().len()), (3, 2));
        let debug = |pool: &Pool, first, count| format!("{:?}", pool.put(SearchRequest::table("t"), first, count));
        assert_eq!(debug(&pool, 2, 2), format!("{:?}", SearchRequest::table("t").vectors([[5.0, 6.0], [1.0, 2.0]])));
        assert_eq!(debug(&pool, 3_000_001, 1), format!("{:?}", SearchRequest::table("t").vector([3.0, 4.0])));
        let rows = Pool::Rows(vec![7, 8]);
        assert_eq!(debug(&rows, 1, 3), format!("{:?}", SearchRequest::table("t").like_rows([8, 7, 8])));
        std::fs::write(&path, "[]").unwrap();
        assert!(Pool::read(&path, 10).is_err());
    }

    #[test]
    fn the_column_is_found_or_asked_for() {
        let schema = |columns: &[(&str, &str)]| {
            let field = |(name, data_type): &(&str, &str)| Field::new(*name, data_type.parse().unwrap(), true);
            Schema::new(columns.iter().map(field).collect()).unwrap()
        };
        let one = schema(&[("id", "int64"), ("Vec", "vector(2)")]);
        let two = schema(&[("a", "vector(2)"), ("b", "vector(2)")]);
        assert_eq!(vector_column(&one, None).unwrap(), "Vec");
        assert_eq!(vector_column(&one, Some("vec")).unwrap(), "Vec");
        assert_eq!(vector_column(&one, Some("id")).unwrap_err().code, ErrorCode::UnknownColumn);
        assert!(vector_column(&two, None).unwrap_err().message.contains("a, b"));
        assert!(vector_column(&schema(&[("id", "int64")]), None).is_err());
    }
}
