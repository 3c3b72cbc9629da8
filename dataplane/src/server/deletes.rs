//! Deleting rows by a condition.
//!
//! Answers `DeleteRows`. Called by `requests`. The rows are found by a scan on all cores (`cores::positions`), in the
//! snapshot of the table at that moment, and deleted by the store in one change.
//!
//! Invariants
//! - Rows that were committed before the request came are deleted when the condition is true for them; rows of a load that
//!   commits meanwhile may stay.
//! - Deadline and cancellation end the finding. What has begun to become durable is not stopped, and is answered.
//! - When segments were merged between finding and deleting, the rows are found again, [`TRIES_MAX`] times at most.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use heliostat_engine::EngineOptions;
use hidb::frame::FrameKind;
use hidb::plan::substrait::filter_from_substrait;
use hidb::{Error, ErrorCode, Result, proto};

use super::access::Access;
use super::questions::{in_time, snapshot};
use super::session::{Request, Session};
use super::{Failure, catalog, to_the_end};
use crate::cores::{Core, positions};
use crate::store::{Deletion, RowsToDelete, TableSnapshot};

/// How often rows are found before the request gives up. Merges come one at a time and each makes segments larger, so that
/// the second finding is nearly always the last.
const TRIES_MAX: usize = 10;

/// Answers `DeleteRows`.
pub async fn answer(
    session: &Rc<Session>,
    request: &Rc<Request>,
    access: &Access,
    message: &proto::DeleteRows,
) -> Result<(), Failure> {
    let started = Instant::now();
    for _ in 0..TRIES_MAX {
        let table = snapshot(session, access, &message.table, message.schema_hash)?;
        let finding = Box::pin(find(session, &table, message));
        let found = in_time(session, request, message.timeout_ms, started, finding).await?;
        if let Deletion::Done { rows } = delete(session, table.id, found).await? {
            session.core.recorder.counters.rows_deleted_total.fetch_add(rows, Relaxed);
            session.outbox.send(FrameKind::RowsDeleted, request.id, &proto::RowsDeleted { rows }).await?;
            return Ok(());
        }
    }
    let text = format!(
        "the segments of table {:?} were merged or replaced {TRIES_MAX} times while the rows to delete were looked for; none \
         was deleted: try again later",
        message.table
    );
    Err(Error::new(ErrorCode::Overloaded, text).into())
}

async fn find(session: &Session, table: &Arc<TableSnapshot>, message: &proto::DeleteRows) -> Result<Vec<RowsToDelete>> {
    if message.substrait_filter.is_empty() {
        let of_segment = |segment: &Arc<crate::store::SegmentHandle>| {
            let segment_id = segment.id;
            (0..segment.footer.row_groups.len()).map(move |row_group| RowsToDelete {
                segment: segment_id,
                row_group,
                rows: None,
            })
        };
        return Ok(table.segments.iter().flat_map(of_segment).collect());
    }
    let filter = filter_from_substrait(&message.substrait_filter, &table.schema)?;
    let cell = &session.core.cell;
    let memory_bytes_max = cell.config.request_memory.bytes() as usize;
    let options = EngineOptions { memory_bytes_max, ..EngineOptions::default() };
    let (found, _) = positions::find(&cell.cores, table, Some(&filter), options, None, false).await?;
    let of_group = |found: positions::FoundRows| RowsToDelete {
        segment: found.segment.id,
        row_group: found.row_group,
        rows: Some(found.rows),
    };
    Ok(found.into_iter().map(of_group).collect())
}

async fn delete(session: &Session, table_id: u64, found: Vec<RowsToDelete>) -> Result<Deletion> {
    let cell = session.core.cell.clone();
    to_the_end(async move {
        let device = Core::device()?;
        let before = cell.store.catalog();
        let deletion = cell.store.delete_rows(&device, table_id, found).await?;
        catalog::announce_changes_soon(&cell, before);
        Ok(deletion)
    })
    .await
}
