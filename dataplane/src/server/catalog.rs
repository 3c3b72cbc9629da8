//! Requests about tables and about the cell: list, describe, create, drop.
//!
//! Called by `requests` and by the handshake (schema hashes).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use heliostat_segment::{SimdLevel, ZoneMap};
use hidb::auth::Permission;
use hidb::order::TableOrder;
use hidb::proto::cache_invalidation_notice::Reason;
use hidb::types::{DataType, Lane, Scalar};
use hidb::{Error, ErrorCode, Result, Schema, convert, proto};

use super::access::Access;
use super::{Cell, to_the_end};
use crate::cores::Core;
use crate::store::{Catalog, TableSnapshot};

/// Table names listed in an error.
const NAMES_LISTED_MAX: usize = 20;
/// The longest table name.
const TABLE_NAME_BYTES_MAX: usize = 255;

/// The table of this name; the error names the tables there are, as far as they may be read.
pub fn table(cell: &Cell, access: &Access, name: &str) -> Result<Arc<TableSnapshot>> {
    let catalog = cell.store.catalog();
    if let Some(table) = catalog.tables.get(name) {
        return Ok(table.clone());
    }
    let visible = || catalog.tables.keys().filter(|name| access.may(Permission::Read, name));
    let names: Vec<&str> = visible().take(NAMES_LISTED_MAX).map(String::as_str).collect();
    let more = visible().count() - names.len();
    let known = match (names.is_empty(), more) {
        (true, _) => "there are no tables".to_string(),
        (false, 0) => format!("there are {}", names.join(", ")),
        (false, more) => format!("there are {} and {more} more", names.join(", ")),
    };
    Err(Error::new(ErrorCode::UnknownTable, format!("there is no table {name:?}; {known}")))
}

fn summary(table: &TableSnapshot) -> proto::TableSummary {
    proto::TableSummary {
        name: table.name.clone(),
        schema_hash: table.schema_hash,
        rows: table.rows,
        stored_bytes: table.stored_bytes,
        table_id: table.id,
    }
}

/// All tables that may be read, by name.
pub fn summaries(cell: &Cell, access: &Access) -> Vec<proto::TableSummary> {
    let catalog = cell.store.catalog();
    let visible = catalog.tables.values().filter(|table| access.may(Permission::Read, &table.name));
    visible.map(|table| summary(table)).collect()
}

/// Everything about one table.
pub fn describe(cell: &Cell, access: &Access, request: &proto::DescribeTable) -> Result<proto::TableDescription> {
    let table = table(cell, access, &request.name)?;
    let groups = || table.segments.iter().flat_map(|segment| &segment.footer.row_groups);
    let mut columns = Vec::with_capacity(table.schema.len());
    let mut raw_bytes = 0;
    for (index, field) in table.schema.fields().iter().enumerate() {
        let mut bytes_by_encoding: HashMap<&'static str, u64> = HashMap::new();
        let (mut stored_bytes, mut null_count) = (0, 0);
        let (mut min, mut max) = (Scalar::Null, Scalar::Null);
        for chunk in groups().filter_map(|group| group.columns.get(index)) {
            stored_bytes += chunk.stored_bytes();
            null_count += u64::from(chunk.zone.null_count);
            *bytes_by_encoding.entry(chunk.encoding.name()).or_default() += u64::from(chunk.length);
            widen(&mut min, &mut max, &chunk.zone);
        }
        raw_bytes += table.rows
            * field.data_type.fixed_width().unwrap_or(match field.data_type {
                DataType::Boolean => 1,
                _ => 0,
            }) as u64;
        let mut encodings: Vec<_> = bytes_by_encoding.into_iter().collect();
        encodings.sort_by_key(|(name, bytes)| (std::cmp::Reverse(*bytes), *name));
        columns.push(proto::ColumnStorage {
            name: field.name.clone(),
            stored_bytes,
            null_count,
            encodings: encodings.into_iter().map(|(name, _)| name.to_string()).collect(),
            min: show(&min, &field.data_type),
            max: show(&max, &field.data_type),
        });
    }
    Ok(proto::TableDescription {
        summary: Some(summary(&table)),
        schema: Some(convert::definition_to_proto(&table.schema, table.order.as_ref())),
        shards: table.shards,
        segments: table.segments.len() as u64,
        row_groups: groups().count() as u64,
        columns,
        raw_bytes,
        deleted_rows: table.deleted_rows,
    })
}

fn widen(min: &mut Scalar, max: &mut Scalar, zone: &ZoneMap) {
    use std::cmp::Ordering::{Greater, Less};
    if min.is_null() || zone.min.compare(min) == Some(Less) {
        *min = zone.min.clone();
    }
    if max.is_null() || zone.max.compare(max) == Some(Greater) {
        *max = zone.max.clone();
    }
}

fn show(value: &Scalar, data_type: &DataType) -> String {
    if value.is_null() {
        return String::new();
    }
    match (data_type, value) {
        (_, Scalar::Bytes(bytes)) if data_type.is_text() => {
            let text: String = String::from_utf8_lossy(bytes).chars().take(40).collect();
            text
        }
        _ if data_type.lane() == Lane::Bytes => String::new(),
        _ => hidb::cast::render(value, data_type).unwrap_or_default(),
    }
}

/// Makes an empty table.
pub async fn create(cell: &Arc<Cell>, request: proto::CreateTable) -> Result<()> {
    check_table_name(&request.name)?;
    let (schema, order) = definition_of(request.schema.as_ref())?;
    let cell = cell.clone();
    to_the_end(async move {
        let device = Core::device()?;
        Ok(cell.store.create_table(&device, &request.name, &schema, order.as_ref(), request.shards).await?)
    })
    .await
}

/// The schema of a request that must bring one, and the order of rows, which it may bring.
pub fn definition_of(message: Option<&proto::TableSchema>) -> Result<(Schema, Option<TableOrder>)> {
    let message = message.ok_or_else(|| Error::new(ErrorCode::InvalidSchema, "the request brings no schema"))?;
    let schema = convert::schema_from_proto(message)?;
    let order = convert::order_from_proto(message, &schema)?;
    Ok((schema, order))
}

/// Refuses names that could not be written in a command line or a log.
pub fn check_table_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > TABLE_NAME_BYTES_MAX || name.chars().any(char::is_control) {
        let message = format!(
            "a table's name has 1 to {TABLE_NAME_BYTES_MAX} bytes and no control characters; {:?} ({} bytes) is none",
            name.chars().take(40).collect::<String>(),
            name.len()
        );
        return Err(Error::new(ErrorCode::InvalidSchema, message));
    }
    Ok(())
}

/// Drops a table.
pub async fn drop(cell: &Arc<Cell>, access: &Access, request: proto::DropTable) -> Result<()> {
    if let Err(error) = table(cell, access, &request.name) {
        return if request.if_exists { Ok(()) } else { Err(error) };
    }
    let cell = cell.clone();
    to_the_end(async move {
        let device = Core::device()?;
        match cell.store.drop_table(&device, &request.name).await {
            // Someone else was quicker.
            Err(crate::store::StoreError::UnknownTable { .. }) if request.if_exists => return Ok(()),
            result => result?,
        }
        cell.announce(proto::CacheInvalidationNotice {
            reason: Reason::TableDropped as i32,
            table: request.name,
            ..Default::default()
        })
        .await;
        Ok(())
    })
    .await
}

/// Tells every session about the tables that differ from those of an earlier catalog.
pub async fn announce_changes(cell: &Arc<Cell>, before: &Catalog) {
    let now = cell.store.catalog();
    for (name, table) in &now.tables {
        let known = before.tables.get(name);
        if known.is_some_and(|known| Arc::ptr_eq(known, table)) {
            continue;
        }
        let same_schema = known.is_none_or(|known| known.schema_hash == table.schema_hash);
        let reason = if same_schema { Reason::DataChanged } else { Reason::SchemaChanged };
        cell.announce(proto::CacheInvalidationNotice {
            reason: reason as i32,
            table: name.clone(),
            schema_hash: table.schema_hash,
            generation: table.generation,
            ..Default::default()
        })
        .await;
    }
}

/// The same, in a task of its own. Not part of the request that made the change: its client may be gone, or count on its
/// slot as soon as it has the answer.
pub fn announce_changes_soon(cell: &Arc<Cell>, before: Arc<Catalog>) {
    let cell = cell.clone();
    glommio::spawn_local(async move { announce_changes(&cell, &before).await }).detach();
}

/// How the cell is.
pub fn status(cell: &Cell) -> proto::CellStatus {
    let space = cell.store.space();
    let cache_bytes = (0..cell.cores.count()).map(|core| cell.metrics.core(core).cache_bytes.load(Relaxed)).sum();
    proto::CellStatus {
        name: cell.name.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        volume_uuid: cell.store.volume().into(),
        volume_path: cell.config.volume.display().to_string(),
        volume_bytes: space.volume_bytes,
        free_bytes: space.free_bytes,
        cores: cell.cores.count() as u32,
        cache_bytes_max: cell.config.cache.bytes(),
        cache_bytes,
        uptime_ms: cell.started.elapsed().as_millis() as u64,
        sessions: cell.sessions() as u32,
        simd: simd_name().into(),
        tables: cell.store.catalog().tables.len() as u64,
    }
}

/// The instruction set the kernels use.
fn simd_name() -> &'static str {
    match SimdLevel::current() {
        SimdLevel::Portable => "portable",
        SimdLevel::Avx2 => "avx2",
        SimdLevel::Avx512 => "avx512",
    }
}
