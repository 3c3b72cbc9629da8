//! Recall: what part of the true neighbours an answer has.
//!
//! The truth is what the same cell answers when it is asked to compare every vector. Recall is counted by distance
//! (`heliostat_vector::calibrate::recall`): a row as near as the last true neighbour is as good as it.

use std::ops::Range;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int32Type, Int64Type};
use futures::{StreamExt, TryStreamExt, stream};
use heliostat_client::Client;
use heliostat_vector::Neighbor;
use heliostat_vector::calibrate::recall;
use hidb::{Error, ErrorCode, ROWID_COLUMN, Result};

use super::{Pool, Question};

/// Queries of a request for exact answers: the cell reads the table once for all of them.
pub const EXACT_QUERIES_PER_REQUEST: usize = 32;

/// The neighbours of each query, nearest first.
pub type Neighbours = Vec<Vec<Neighbor>>;

/// Asks for the neighbours of these queries of a pool, so many per request, so many requests at a time.
///
/// # Errors
/// The client's; `Protocol` for an answer without the columns that it must have.
pub async fn neighbours(
    client: &Client,
    question: &Question,
    pool: &Pool,
    queries: Range<usize>,
    per_request: usize,
    depth: usize,
) -> Result<Neighbours> {
    let question = &Question { columns: vec![ROWID_COLUMN.into()], ..question.clone() };
    let requests = queries.clone().step_by(per_request.max(1)).map(|first| {
        let count = per_request.max(1).min(queries.end - first);
        answer(client, question, pool, first, count)
    });
    let answers: Vec<Neighbours> = stream::iter(requests).buffered(depth.max(1)).try_collect().await?;
    Ok(answers.into_iter().flatten().collect())
}

/// The answer to one request.
async fn answer(client: &Client, question: &Question, pool: &Pool, first: usize, count: usize) -> Result<Neighbours> {
    let wrong = || Error::new(ErrorCode::Protocol, "the answer of a search lacks a column that it must have");
    let mut stream = client.search(pool.put(question.request(), first as u64, count)).await?;
    let mut found = vec![Vec::new(); count];
    while let Some(batch) = stream.try_next().await? {
        let rowids = batch.column_by_name(ROWID_COLUMN).and_then(|column| column.as_primitive_opt::<Int64Type>());
        let distances = batch.column_by_name("distance").and_then(|column| column.as_primitive_opt::<Float32Type>());
        let (rowids, distances) = rowids.zip(distances).ok_or_else(wrong)?;
        let numbers = batch.column_by_name("query").and_then(|column| column.as_primitive_opt::<Int32Type>());
        for row in 0..batch.num_rows() {
            let query = numbers.map_or(0, |numbers| numbers.value(row));
            let of_query = usize::try_from(query).ok().and_then(|query| found.get_mut(query)).ok_or_else(wrong)?;
            of_query.push(Neighbor { distance: distances.value(row), row: rowids.value(row) as u64 });
        }
    }
    Ok(found)
}

/// The mean recall of answers to the same queries; 1 without any.
pub fn mean_recall(found: &Neighbours, truth: &Neighbours) -> f64 {
    let sum: f64 = found.iter().zip(truth).map(|(found, truth)| f64::from(recall(found, truth))).sum();
    if truth.is_empty() { 1.0 } else { sum / truth.len() as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recall_is_the_mean_over_queries_and_ties_count() {
        let list = |pairs: &[(f32, u64)]| -> Vec<Neighbor> {
            pairs.iter().map(|(distance, row)| Neighbor { distance: *distance, row: *row }).collect()
        };
        let truth = vec![list(&[(1.0, 1), (2.0, 2)]), list(&[(1.0, 1), (1.0, 2)])];
        // The first lacks one; the second has another row that is as near.
        let found = vec![list(&[(1.0, 1), (3.0, 9)]), list(&[(1.0, 2), (1.0, 7)])];
        assert_eq!(mean_recall(&found, &truth), 0.75);
        // A query that was not answered found nothing.
        assert_eq!(mean_recall(&vec![Vec::new(), Vec::new()], &truth), 0.0);
        assert_eq!(mean_recall(&Vec::new(), &Vec::new()), 1.0);
    }
}
