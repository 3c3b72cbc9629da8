//! Searches for nearest neighbours, as the benchmarks ask them.
//!
//! Owns [`Question`] and how an answer is taken. The rooms: [`accuracy`] how accuracy is written, [`pool`] whose neighbours
//! are looked for, [`counts`] what the searches say that they did, [`truth`] recall. Called by the engine `hidb-search` and
//! by the command `recall`.

mod accuracy;
mod counts;
mod pool;
mod truth;

use futures::TryStreamExt;
use heliostat_client::{Accuracy, Client, Metric, SearchRequest, SearchStatistics};
use hidb::Result;

pub use accuracy::{Written, parse_list};
pub use counts::Counts;
pub use pool::{Pool, vector_column};
pub use truth::{EXACT_QUERIES_PER_REQUEST, Neighbours, mean_recall, neighbours};

/// What is asked, whosever neighbours are looked for.
#[derive(Clone, Debug)]
pub struct Question {
    pub table: String,
    /// `None`: the only one of vectors.
    pub column: Option<String>,
    pub k: u32,
    pub accuracy: Accuracy,
    /// `None`: that of the column's index.
    pub metric: Option<Metric>,
    /// SQL.
    pub filter: Option<String>,
    /// Of the answer; none: `_rowid`.
    pub columns: Vec<String>,
    /// The cell reads everything from its drive.
    pub bypass_cache: bool,
}

impl Question {
    /// The request, still without query vectors.
    pub fn request(&self) -> SearchRequest {
        let mut request = SearchRequest::table(&self.table)
            .k(self.k)
            .accuracy(self.accuracy)
            .select(&self.columns)
            .bypass_cache(self.bypass_cache);
        if let Some(column) = &self.column {
            request = request.column(column);
        }
        if let Some(metric) = self.metric {
            request = request.metric(metric);
        }
        if let Some(filter) = &self.filter {
            request = request.filter(filter.as_str());
        }
        request
    }
}

/// Asks, and takes the answer to its end; its bytes, and what the search did.
///
/// # Errors
/// The client's.
pub async fn take(client: &Client, request: SearchRequest) -> Result<(u64, SearchStatistics)> {
    let mut stream = client.search(request).await?;
    while stream.try_next().await?.is_some() {}
    let bytes = stream.statistics().map_or(0, |statistics| statistics.bytes_returned);
    Ok((bytes, stream.search_statistics().cloned().unwrap_or_default()))
}
