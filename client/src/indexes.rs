//! Calls about vector indexes, and the deletion of rows.

use hidb::frame::FrameKind;
use hidb::proto::{IndexDefinition, IndexSummary};
use hidb::{Error, ErrorCode, Result, Schema, proto};

use crate::client::Client;
use crate::condition::Condition;

impl Client {
    /// Has the cell build an index and keep it up to date. Returns once the definition is durable: how far the building is,
    /// [`Client::list_indexes`] says. With `if_not_exists` an index that the column has already is no error, and stays as
    /// it is.
    ///
    /// # Errors
    /// `UnknownTable`, `UnknownColumn`, `TypeMismatch` (no column of vectors), `IndexExists`, and `InvalidParameter` for a
    /// definition that makes no index.
    pub async fn create_index(&self, table: &str, definition: IndexDefinition, if_not_exists: bool) -> Result<()> {
        let body = proto::CreateIndex { table: table.into(), index: Some(definition), if_not_exists };
        self.change_indexes(FrameKind::CreateIndex, body).await
    }

    /// Drops the index of a column. With `if_exists` one that is not there is no error.
    pub async fn drop_index(&self, table: &str, column: &str, if_exists: bool) -> Result<()> {
        let body = proto::DropIndex { table: table.into(), column: column.into(), if_exists };
        self.change_indexes(FrameKind::DropIndex, body).await
    }

    /// What is remembered of a table stays true: an index changes how a search is answered, and no answer of one is kept.
    async fn change_indexes(&self, kind: FrameKind, body: impl prost::Message) -> Result<()> {
        self.once(self.deadline(None), |connection| async move {
            connection.request(kind, &body, None, None)?.answer::<proto::Done>(FrameKind::Done).await
        })
        .await
        .map(drop)
    }

    /// The indexes of a table, or of all tables, by table and column.
    pub async fn list_indexes(&self, table: Option<&str>) -> Result<Vec<IndexSummary>> {
        let body = &proto::ListIndexes { table: table.unwrap_or_default().into() };
        let list = self
            .retrying(self.deadline(None), |connection| async move {
                connection
                    .request(FrameKind::ListIndexes, body, None, None)?
                    .answer::<proto::IndexList>(FrameKind::IndexList)
                    .await
            })
            .await?;
        Ok(list.indexes)
    }

    /// Deletes the rows of a table for which a condition is true, or all of them; how many they were. They are gone for
    /// every question that begins after this returns, and stay so.
    ///
    /// Not repeated when the connection is lost: whether it was done is unknown then, and doing it again is harmless as
    /// long as no rows were added meanwhile.
    pub async fn delete_rows(&self, table: &str, filter: Option<Condition>) -> Result<u64> {
        let deadline = self.deadline(None);
        let schema = self.schema(table).await?;
        let outcome = match self.delete_rows_of(table, filter.as_ref(), &schema, deadline).await {
            // Nothing was done.
            Err(error) if error.code == ErrorCode::StaleSchema => {
                self.cache().forget_schema(table);
                let schema = self.schema(table).await?;
                self.delete_rows_of(table, filter.as_ref(), &schema, deadline).await
            }
            outcome => outcome,
        };
        // Also a request that failed may have been carried out.
        self.cache().changed_here(table);
        outcome
    }

    async fn delete_rows_of(
        &self,
        table: &str,
        filter: Option<&Condition>,
        schema: &Schema,
        deadline: Option<std::time::Instant>,
    ) -> Result<u64, Error> {
        let body = proto::DeleteRows {
            table: table.into(),
            schema_hash: schema.hash(),
            substrait_filter: filter.map(|filter| filter.message(schema)).transpose()?.unwrap_or_default(),
            timeout_ms: crate::scan::milliseconds_until(deadline),
        };
        let answer = self
            .once(deadline, |connection| async move {
                connection
                    .request(FrameKind::DeleteRows, &body, None, None)?
                    .answer::<proto::RowsDeleted>(FrameKind::RowsDeleted)
                    .await
            })
            .await?;
        Ok(answer.rows)
    }
}
