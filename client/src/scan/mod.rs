//! Questions and their answers: requests, prepared statements, streams of record batches.
//!
//! The rooms: [`request`] is what is asked, [`statement`] what the cell has planned already, [`answering`] one answer as
//! it comes in, [`stream`] what the caller sees of it. Called by engines, by `heliostat scan`, and by [`crate::search`],
//! whose requests are asked and answered the same way.

mod answering;
mod request;
mod statement;
mod stream;

use std::sync::Arc;

use hidb::{Error, ErrorCode, Result, convert, plan};

use crate::client::Client;
use crate::connection::Connection;
use statement::prepare_on;

pub use request::ScanRequest;
pub(crate) use request::milliseconds_until;
pub use statement::Statement;
pub(crate) use stream::Asked;
pub use stream::ScanStream;

impl Client {
    /// Asks a question; the answer streams in. What is wrong with the question is said here already.
    pub async fn scan(&self, request: ScanRequest) -> Result<ScanStream> {
        ScanStream::open(Asked::scan(self, request, false)).await
    }

    /// Asks a question in SQL over one table: `select a, sum(b) from t where c < 5 group by a`.
    pub async fn scan_sql(&self, sql: &str) -> Result<ScanStream> {
        // The text names the table; only then can its schema be fetched and the text be typed.
        let named = std::cell::RefCell::new(None);
        let unresolved = plan::sql::parse_query(sql, &|name| {
            *named.borrow_mut() = Some(name.to_string());
            Err(Error::new(ErrorCode::UnknownTable, "not resolved yet"))
        });
        let table = match (named.into_inner(), unresolved) {
            (Some(table), _) => table,
            (None, Err(error)) => return Err(error),
            (None, Ok(plan)) => return self.scan(ScanRequest::plan(plan)).await,
        };
        let schema = self.schema(&table).await?;
        let plan = plan::sql::parse_query(sql, &|_| Ok(schema.as_ref().clone()))?;
        self.scan(ScanRequest::plan(plan)).await
    }

    /// What the cell would prune, read, decode and return, as text for a person.
    pub async fn explain(&self, request: ScanRequest) -> Result<String> {
        use futures::StreamExt;
        let mut stream = ScanStream::open(Asked::scan(self, request, true)).await?;
        while let Some(batch) = stream.next().await {
            batch?;
        }
        Ok(stream.take_explain())
    }

    /// Has the cell plan a question once. Its parameters are those of the plan (`ExprKind::Parameter`,
    /// Substrait dynamic parameters).
    pub async fn prepare(&self, request: ScanRequest) -> Result<Statement> {
        let deadline = self.deadline(request.timeout);
        let prepare = |connection: Arc<Connection>| {
            let request = &request;
            async move { prepare_on(self, &connection, request).await }
        };
        let (prepared, answer) = match self.retrying(deadline, prepare).await {
            Err(error) if error.code == ErrorCode::StaleSchema => {
                self.cache().forget_schema(request.table_name());
                self.retrying(deadline, prepare).await?
            }
            outcome => outcome?,
        };
        let parameters = answer.parameters.iter().map(convert::type_from_proto).collect::<Result<Vec<_>>>()?;
        Ok(Statement::new(self.clone(), request, prepared, parameters))
    }
}
