//! Nearest neighbours: what is asked, and the answer as it comes in.
//!
//! The rooms: [`request`] is what is asked, [`vectors`] the query vectors and how they become elements of a column,
//! [`stream`] the answer. Questions are put and answers taken in by [`crate::scan`], as those of scans are. Called by
//! engines and by `heliostat search`.

mod request;
mod stream;
mod vectors;

use hidb::Result;

use crate::client::Client;

pub use request::{Accuracy, Metric, NEIGHBOURS_MAX, SearchRequest};
pub use stream::SearchStream;
pub use vectors::QueryVector;

pub(crate) use request::Asking;

impl Client {
    /// Looks for the nearest neighbours of one or more vectors; the answer streams in. Its columns: `query` (int32, which
    /// of the vectors, from 0) when there is more than one, those of the projection, `distance` (float32). Its rows come by
    /// query, then distance, then `_rowid`.
    ///
    /// Any number of vectors may be asked for: requests of at most 1,024 are made of them, and put before the answers of
    /// those before are taken. Answers of searches are not cached.
    ///
    /// # Errors
    /// What is wrong with the question is said here already: `UnknownTable`, `UnknownColumn`, `TypeMismatch` (no vector
    /// column, a vector of another dimension), `InvalidValue` (a component that the column can't hold), and what the cell
    /// finds. An answer that is lost on its way is asked for again, see [`crate::ScanStream`].
    pub async fn search(&self, request: SearchRequest) -> Result<SearchStream> {
        SearchStream::open(self, request).await
    }
}

#[cfg(test)]
mod tests;
