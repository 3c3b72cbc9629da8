//! Questions: pushdowns, prepared statements, and the way of an answer to the client.
//!
//! Called by `requests`. Plans come from `hidb::plan::substrait`, are compiled by the engine and run on all cores by
//! `cores::scan`; this module sends the images, under the client's credits.
//!
//! Invariants
//! - A request reads the snapshot of the table at its start.
//! - A result frame leaves only against a credit; without credits the scan comes to rest (its images are bounded).
//! - A schema hash that is not the table's is answered with the current schema, never with other columns.

use std::fmt::Write as _;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_lite::future::or;
use heliostat_engine::{CompiledScan, EngineOptions};
use hidb::frame::FrameKind;
use hidb::image::{ResultImage, schema_message};
use hidb::plan::{ScanPlan, substrait};
use hidb::{Error, ErrorCode, Result, convert, proto};

use super::access::Access;
use super::core::CoreServer;
use super::links::{Cut, DirectLinks, ResultLink};
use super::session::{Request, Session};
use super::statements::Statement;
use super::{Failure, catalog};
use crate::cores::scan::{Direct, ScanRequest, scan_table};
use crate::cores::work::Work;
use crate::store::TableSnapshot;

/// What a request says about how it wants to be run.
struct Wishes {
    timeout_ms: u64,
    initial_credits: u32,
    memory_bytes_max: u64,
    bypass_cache: bool,
    explain: bool,
}

/// The table that a request is about, as it is now.
///
/// # Errors
/// `UnknownTable`; `StaleSchema` when the request was made for another schema (a hash of 0 is not checked).
pub(super) fn snapshot(
    session: &Session,
    access: &Access,
    name: &str,
    schema_hash: u64,
) -> Result<Arc<TableSnapshot>, Failure> {
    let table = catalog::table(&session.core.cell, access, name)?;
    if schema_hash != 0 && schema_hash != table.schema_hash {
        return Err(Failure::stale(name, &table.schema, schema_hash));
    }
    Ok(table)
}

/// Decodes a plan and checks that it is about the table the request names.
fn decode_plan(bytes: &[u8], table: &TableSnapshot) -> Result<ScanPlan> {
    if bytes.is_empty() {
        return Err(Error::new(ErrorCode::Protocol, "the request brings no Substrait plan"));
    }
    let plan = substrait::from_substrait(bytes, &|name| {
        if name.eq_ignore_ascii_case(&table.name) {
            return Ok((*table.schema).clone());
        }
        let message = format!("the plan reads table {name:?}, the request is about {:?}", table.name);
        Err(Error::new(ErrorCode::UnsupportedPlan, message))
    })?;
    Ok(plan)
}

/// Answers `PredicatePushdownRequest`.
pub async fn pushdown(
    session: &Rc<Session>,
    request: &Rc<Request>,
    access: &Access,
    message: proto::PredicatePushdownRequest,
) -> Result<(), Failure> {
    let started = Instant::now();
    let name = match message.table.as_str() {
        "" => substrait::table_name(&message.substrait_plan)?,
        name => name.to_string(),
    };
    let table = snapshot(session, access, &name, message.schema_hash)?;
    let plan = decode_plan(&message.substrait_plan, &table)?;
    let wishes = Wishes {
        timeout_ms: message.timeout_ms,
        initial_credits: message.initial_credits,
        memory_bytes_max: message.memory_bytes_max,
        bypass_cache: message.bypass_cache,
        explain: message.explain,
    };
    let compile = |options| CompiledScan::compile(&plan, &table.schema, options);
    answer(session, request, &table, compile, wishes, started).await
}

/// Answers `Prepare`.
pub async fn prepare(
    session: &Rc<Session>,
    request: &Rc<Request>,
    access: &Access,
    message: &proto::Prepare,
) -> Result<(), Failure> {
    let name = match message.table.as_str() {
        "" => substrait::table_name(&message.substrait_plan)?,
        name => name.to_string(),
    };
    let table = snapshot(session, access, &name, message.schema_hash)?;
    let plan = decode_plan(&message.substrait_plan, &table)?;
    let parameters = substrait::parameter_types(&plan)?;
    let prepared_parameters = parameters.iter().map(convert::type_to_proto).collect();
    let result_schema_ipc = schema_message(&plan.result_schema(), session.agreed.decimal64).into();
    let statement = Statement::new(plan, table.schema_hash, parameters);
    let statement_id = session.statements.borrow_mut().insert(statement);
    let prepared = proto::Prepared { statement_id, parameters: prepared_parameters, result_schema_ipc };
    session.outbox.send(FrameKind::Prepared, request.id, &prepared).await?;
    Ok(())
}

/// Answers `Execute`.
pub async fn execute(
    session: &Rc<Session>,
    request: &Rc<Request>,
    access: &Access,
    message: &proto::Execute,
) -> Result<(), Failure> {
    let started = Instant::now();
    let statement = session.statements.borrow_mut().get(message.statement_id)?;
    let table = snapshot(session, access, &statement.plan.table, statement.schema_hash)?;
    let (given, wanted) = (message.parameters.len(), statement.parameters.len());
    if given != wanted {
        let text = format!("statement {} has {wanted} parameters, {given} were given", message.statement_id);
        return Err(Error::new(ErrorCode::InvalidParameter, text).into());
    }
    let values = message.parameters.iter().zip(&statement.parameters).enumerate();
    let values = values.map(|(index, (value, data_type))| {
        convert::scalar_from_proto(value, data_type).map_err(|error| {
            Error::new(ErrorCode::InvalidParameter, format!("parameter {index} ({data_type}): {}", error.message))
        })
    });
    let values = values.collect::<Result<Vec<_>>>()?;
    let wishes = Wishes {
        timeout_ms: message.timeout_ms,
        initial_credits: message.initial_credits,
        memory_bytes_max: 0,
        bypass_cache: false,
        explain: false,
    };
    let compile = |options| statement.compile(&values, &table.schema, options);
    answer(session, request, &table, compile, wishes, started).await
}

async fn answer(
    session: &Rc<Session>,
    request: &Rc<Request>,
    table: &Arc<TableSnapshot>,
    compile: impl FnOnce(EngineOptions) -> Result<Arc<CompiledScan>>,
    wishes: Wishes,
    started: Instant,
) -> Result<(), Failure> {
    let way = ResultLink::of(session);
    let compiled = compile(engine_options(session, &way, wishes.memory_bytes_max))?;
    let credits = grant(session, request, wishes.initial_credits);
    let work = Box::pin(async {
        if wishes.explain {
            return explain(Results::new(session, request, way), table, &compiled, started).await;
        }
        let results = Results::new(session, request, way);
        run(results, table, compiled, wishes.bypass_cache, credits, started).await
    });
    Ok(in_time(session, request, wishes.timeout_ms, started, work).await?)
}

/// What the engine may use for a request that wishes so much memory (0: the cell's limit) and answers this way.
pub(super) fn engine_options(session: &Session, way: &ResultLink, memory_bytes_max: u64) -> EngineOptions {
    let limit = session.core.cell.config.request_memory.bytes();
    let memory_bytes_max = match memory_bytes_max {
        0 => limit,
        wanted => wanted.min(limit),
    };
    EngineOptions {
        memory_bytes_max: memory_bytes_max as usize,
        image_bytes_max: session.agreed.image_bytes_max.min(way.payload_bytes_max()),
        decimal64: session.agreed.decimal64,
    }
}

/// Gives a request the credits that it begins with (0: the cell's default); returns how many.
pub(super) fn grant(session: &Session, request: &Request, wished: u32) -> u32 {
    let credits = match wished {
        0 => session.core.cell.config.initial_credits,
        wished => wished,
    };
    request.grant(credits);
    credits
}

/// Runs `work` until it is done, its deadline (0: the cell's default) passes, or the request is asked to stop.
pub(super) async fn in_time<T>(
    session: &Session,
    request: &Request,
    timeout_ms: u64,
    started: Instant,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let timeout = match timeout_ms {
        0 => session.core.cell.config.request_timeout.0,
        milliseconds => Duration::from_millis(milliseconds),
    };
    let deadline = async {
        if timeout.is_zero() {
            std::future::pending::<()>().await;
        }
        glommio::timer::sleep(timeout.saturating_sub(started.elapsed())).await;
        let text = format!("the request's deadline of {} ms passed", timeout.as_millis());
        Err(Error::new(ErrorCode::DeadlineExceeded, text))
    };
    session.until_stopped(request, or(work, deadline)).await
}

/// Result frames of one request, from the home core.
pub(super) struct Results<'a> {
    session: &'a Session,
    request: &'a Request,
    way: ResultLink,
    /// The first frame, which brings the schema, as long as it has not been sent.
    pub(super) first: Option<(proto::FilteredResultSet, Bytes)>,
    sequence: u64,
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

impl<'a> Results<'a> {
    pub(super) fn new(session: &'a Session, request: &'a Request, way: ResultLink) -> Self {
        Results { session, request, way, first: None, sequence: 0, rows: 0, bytes: 0 }
    }

    /// The core that answers.
    pub(super) fn core(&self) -> Rc<CoreServer> {
        self.session.core.clone()
    }

    pub(super) async fn send(&mut self, mut message: proto::FilteredResultSet, payload: Bytes) -> Result<()> {
        if !payload.is_empty() {
            let closed = |_| Error::new(ErrorCode::Cancelled, "the request's credits were closed");
            self.request.credits.acquire(1).await.map_err(closed)?;
        }
        message.sequence = self.sequence;
        self.sequence += 1;
        self.rows += message.rows;
        self.bytes += payload.len() as u64;
        self.session.core.count_returned(message.rows, payload.len() as u64);
        self.way.send(self.session, FrameKind::FilteredResultSet, self.request.id, &message, payload).await
    }

    pub(super) async fn send_schema(&mut self) -> Result<()> {
        match self.first.take() {
            Some((first, schema)) => self.send(first, schema).await,
            None => Ok(()),
        }
    }

    pub(super) async fn send_image(&mut self, image: ResultImage) -> Result<()> {
        self.send_schema().await?;
        for (message, payload) in Cut::new(image, self.way.payload_bytes_max()) {
            self.send(message, payload).await?;
        }
        Ok(())
    }
}

async fn run(
    mut results: Results<'_>,
    table: &Arc<TableSnapshot>,
    compiled: Arc<CompiledScan>,
    bypass_cache: bool,
    credits: u32,
    started: Instant,
) -> Result<()> {
    let core = &results.session.core;
    let agreed = &results.session.agreed;
    let schema = compiled.schema_message().clone();
    let stored_bytes = table.column_bytes(compiled.columns());
    let (home, request_id) = (core.index, results.request.id);
    let work = Work::plan(table, &compiled, core.cell.cores.count()).await?;
    // A short answer goes by the home core, in one piece.
    let is_short = work.is_short();
    let direct = (results.way.is_link() && !is_short).then(|| {
        let (cell, session_id) = (core.cell.clone(), agreed.session_id);
        Arc::new(DirectLinks { cell, session_id, home, request_id, credits }) as Arc<dyn Direct>
    });
    let scan = ScanRequest {
        snapshot: table.clone(),
        shared: compiled.shared(),
        compiled,
        deadline: None,
        bypass_cache,
        home,
        home_lends: results.way.is_link(),
        direct,
    };
    let first = proto::FilteredResultSet { table_generation: table.generation, ..Default::default() };
    results.first = Some((first, schema));
    if !is_short {
        results.send_schema().await?;
    }
    let stats = scan_table(&core.cell.cores, scan, work, async |image| results.send_image(image).await).await?;
    results.send_schema().await?;
    let elsewhere = stats.sent.iter().map(|sent| proto::LinkFrames { link: sent.link, frames: sent.frames });
    let last = proto::FilteredResultSet {
        last: true,
        elsewhere: elsewhere.collect(),
        statistics: Some(proto::ScanStatistics {
            rows: results.rows + stats.sent.iter().map(|sent| sent.rows).sum::<u64>(),
            bytes_returned: results.bytes + stats.sent.iter().map(|sent| sent.bytes).sum::<u64>(),
            bytes_read_device: stats.bytes_read_device,
            bytes_decoded: stats.engine.bytes_decoded,
            row_groups_total: stats.engine.row_groups_total,
            row_groups_pruned: stats.engine.row_groups_pruned,
            blocks_total: stats.engine.blocks_total,
            blocks_pruned: stats.engine.blocks_pruned,
            cell_us: started.elapsed().as_micros() as u64,
            stored_bytes,
        }),
        ..Default::default()
    };
    results.send(last, Bytes::new()).await
}

async fn explain(
    mut results: Results<'_>,
    table: &Arc<TableSnapshot>,
    compiled: &Arc<CompiledScan>,
    started: Instant,
) -> Result<()> {
    let footers = table.segments.iter().map(|segment| segment.footer.as_ref());
    let (mut text, would) = compiled.explain(footers);
    if table.deleted_rows > 0 {
        let _ = writeln!(text, "deleted rows, left out: {}", table.deleted_rows);
    }
    let last = proto::FilteredResultSet {
        last: true,
        explain: text,
        statistics: Some(proto::ScanStatistics {
            cell_us: started.elapsed().as_micros() as u64,
            stored_bytes: table.column_bytes(compiled.columns()),
            row_groups_total: would.row_groups_total,
            row_groups_pruned: would.row_groups_pruned,
            ..Default::default()
        }),
        ..Default::default()
    };
    results.send(last, Bytes::new()).await
}
