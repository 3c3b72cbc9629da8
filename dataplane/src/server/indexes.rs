//! Indexes: making, dropping, listing.
//!
//! Called by `requests`. An index that is made is built in the background (`background`, `search::index::keeper`).

use std::sync::Arc;

use hidb::auth::Permission;
use hidb::{Error, ErrorCode, Result, proto};

use super::access::Access;
use super::{Cell, catalog};
use crate::cores::Core;
use crate::search::index::keeper::check_definition;

/// Answers `CreateIndex`: durable when this returns, not built.
pub async fn create(cell: &Arc<Cell>, access: &Access, request: proto::CreateIndex) -> Result<()> {
    let table = catalog::table(cell, access, &request.table)?;
    let missing = || Error::new(ErrorCode::InvalidParameter, "the request does not say which index");
    let mut definition = request.index.ok_or_else(missing)?;
    let (column, metric) = check_definition(&table, &definition)?;
    // As the schema has it, and the metric that is meant.
    definition.column = table.schema.fields()[column.index].name.clone();
    definition.set_metric(match metric {
        heliostat_vector::Metric::L2 => proto::vector_search_request::Metric::L2,
        heliostat_vector::Metric::InnerProduct => proto::vector_search_request::Metric::InnerProduct,
        heliostat_vector::Metric::Cosine => proto::vector_search_request::Metric::Cosine,
        heliostat_vector::Metric::Hamming => proto::vector_search_request::Metric::Hamming,
    });
    if definition.kind() == proto::IndexKind::Unspecified {
        definition.set_kind(proto::IndexKind::Auto);
    }
    cell.store.create_index(&Core::device()?, &table.name, definition, request.if_not_exists).await?;
    cell.indexes.wake();
    Ok(())
}

/// Answers `DropIndex`.
pub async fn drop(cell: &Arc<Cell>, request: proto::DropIndex) -> Result<()> {
    let device = Core::device()?;
    Ok(cell.store.drop_index(&device, &request.table, &request.column, request.if_exists).await?)
}

/// Answers `ListIndexes`: those of tables that the user may read.
pub fn list(cell: &Cell, access: &Access, request: &proto::ListIndexes) -> Result<proto::IndexList> {
    let all = cell.store.catalog();
    let tables = match request.table.as_str() {
        "" => all.tables.values().filter(|table| access.may(Permission::Read, &table.name)).cloned().collect(),
        name => vec![catalog::table(cell, access, name)?],
    };
    let summaries = tables.iter().flat_map(|table| table.indexes.iter().map(move |index| (table, index)));
    Ok(proto::IndexList { indexes: summaries.map(|(table, index)| cell.indexes.summary(table, index)).collect() })
}
