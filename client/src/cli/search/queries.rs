//! Whose neighbours are looked for: vectors of a file, or the vector of a row.

use std::io::{Cursor, Read};
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use futures::StreamExt;
use heliostat_client::input::arrays::ArrayReader;
use heliostat_client::{Client, QueryVector, ScanRequest};
use hidb::{Error, ErrorCode, ROWID_COLUMN};

use crate::cli::Failure;

/// The most bytes of vectors that are searched for at once.
const QUERY_BYTES_MAX: usize = 1 << 30;

/// Reads vectors from a file, from standard input (`-`), or from the text itself when it is JSON.
pub async fn read(from: &str) -> Result<Vec<QueryVector>, Failure> {
    if from.trim_start().starts_with('[') {
        return Ok(vectors(ArrayReader::new("--vector", Cursor::new(from.as_bytes()), None)?)?);
    }
    let from = from.to_string();
    let reading = tokio::task::spawn_blocking(move || match from.as_str() {
        "-" => vectors(ArrayReader::new("standard input", std::io::stdin().lock(), None)?),
        path => vectors(ArrayReader::open(Path::new(path))?),
    });
    let read = reading.await.map_err(|error| {
        Error::new(ErrorCode::MalformedInput, format!("the vectors can't be read: their reader gave up: {error}"))
    })?;
    Ok(read?)
}

fn vectors<R: Read>(mut reader: ArrayReader<R>) -> Result<Vec<QueryVector>, Error> {
    QueryVector::read(&mut reader, usize::MAX, QUERY_BYTES_MAX)
}

/// The `_rowid` that `--like-id` means.
pub async fn row_of(client: &Client, table: &str, id_column: Option<&str>, id: &str) -> Result<i64, Failure> {
    let Some(column) = id_column.filter(|column| *column != ROWID_COLUMN) else {
        let wrong = || {
            Failure::Usage(format!("{id:?} is no {ROWID_COLUMN}: give a number, or name its column with --id-column"))
        };
        return id.parse().map_err(|_| wrong());
    };
    let schema = client.schema(table).await?;
    let is_text = schema.find(column).is_some_and(|(_, field)| field.data_type.is_text());
    let request = ScanRequest::table(table).filter(condition(column, id, is_text)).select([ROWID_COLUMN]).limit(2);
    let mut stream = client.scan(request).await?;
    let mut found: Vec<i64> = Vec::new();
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        let rowids = batch.columns().first().and_then(|column| column.as_primitive_opt::<Int64Type>());
        found.extend(rowids.iter().flat_map(|rowids| rowids.values().iter()));
    }
    match found.as_slice() {
        [rowid] => Ok(*rowid),
        [] => {
            let text = format!("no row of {table} has {id} as its {column}: look for it with `heliostat scan`");
            Err(Error::new(ErrorCode::InvalidParameter, text).into())
        }
        _ => {
            let text = format!("several rows of {table} have {id} as their {column}: name one by its {ROWID_COLUMN}");
            Err(Error::new(ErrorCode::InvalidParameter, text).into())
        }
    }
}

/// `"column" = id`, in SQL.
fn condition(column: &str, id: &str, is_text: bool) -> String {
    let column = column.replace('"', "\"\"");
    match is_text {
        true => format!("\"{column}\" = '{}'", id.replace('\'', "''")),
        // What is no number is text: dates and the like are read from it.
        false if id.parse::<f64>().is_err() => format!("\"{column}\" = '{}'", id.replace('\'', "''")),
        false => format!("\"{column}\" = {id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hidb::{Field, Schema};

    #[tokio::test]
    async fn vectors_come_from_the_text_itself_or_from_a_file() {
        let expected = vec![QueryVector::from([0.5, 2.0]), QueryVector::from([-1.0, 0.0])];
        let text = "[[0.5, 2], [-1, 0]]";
        assert_eq!(read(text).await.ok(), Some(expected.clone()));
        assert_eq!(read(" [0.5, 2] ").await.ok(), Some(expected[..1].to_vec()));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queries");
        std::fs::write(&path, text).unwrap();
        assert_eq!(read(path.to_str().unwrap()).await.ok(), Some(expected));
        let failure = read("[1, x]").await.err().unwrap();
        assert!(failure.exit_code() == 1 && failure.line().unwrap().starts_with("--vector: "));
        assert!(read("/nonexistent").await.err().unwrap().line().unwrap().contains("/nonexistent"));
    }

    #[test]
    fn an_id_is_compared_with_its_column_whatever_is_in_it() {
        let field = |name: &str, data_type: &str| Field::new(name, data_type.parse().unwrap(), true);
        let schema = vec![field("id", "int64"), field("a \"name\"", "text"), field("day", "date")];
        let schema = Schema::new(schema).unwrap();
        for (column, id, is_text, expected) in [
            ("id", "-17", false, "id = -17"),
            ("a \"name\"", "17", true, "\"a \"\"name\"\"\" = '17'"),
            ("a \"name\"", "it's", true, "\"a \"\"name\"\"\" = 'it''s'"),
            ("day", "2024-02-29", false, "day = date '2024-02-29'"),
        ] {
            let parse = |text: &str| hidb::plan::sql::parse_predicate(text, &schema).unwrap();
            assert_eq!(parse(&condition(column, id, is_text)), parse(expected), "{column} {id}");
        }
    }
}
