//! From a frame to its answer: which kind of request is answered where.
//!
//! Called by `session` in a task of its own per request; calls `access`, then `catalog`, `questions`, `deletes`, `links`,
//! `loads` and `administration`.
//!
//! Invariant: every request's task has room for the largest future of all kinds, and is moved when it is spawned. What is
//! larger than a few KB is boxed where it begins, by its kind.

use std::rc::Rc;

use hidb::frame::{Frame, FrameKind};
use hidb::{Error, ErrorCode, proto};

use super::session::{Request, Session};
use super::{Failure, access, administration, catalog, deletes, indexes, links, loads, questions, searches};

/// Answers a request. An error becomes the `Error` frame that ends it.
pub async fn answer(session: &Rc<Session>, request: &Rc<Request>, frame: Frame) -> Result<(), Failure> {
    let cell = &session.core.cell;
    let id = request.id;
    let outbox = &session.outbox;
    let access = access::check(session, &frame)?;
    match frame.kind {
        FrameKind::ListTables => {
            let tables = catalog::summaries(cell, &access);
            outbox.send(FrameKind::TableList, id, &proto::TableList { tables }).await?;
        }
        FrameKind::DescribeTable => {
            let description = catalog::describe(cell, &access, &frame.message()?)?;
            outbox.send(FrameKind::TableDescription, id, &description).await?;
        }
        FrameKind::CreateTable => {
            let create = frame.message()?;
            session.until_stopped(request, Box::pin(catalog::create(cell, create))).await?;
            outbox.send(FrameKind::Done, id, &proto::Done {}).await?;
        }
        FrameKind::DropTable => {
            let drop = frame.message()?;
            session.until_stopped(request, Box::pin(catalog::drop(cell, &access, drop))).await?;
            outbox.send(FrameKind::Done, id, &proto::Done {}).await?;
        }
        FrameKind::DescribeCell => outbox.send(FrameKind::CellStatus, id, &catalog::status(cell)).await?,
        FrameKind::PredicatePushdownRequest => questions::pushdown(session, request, &access, frame.message()?).await?,
        FrameKind::Prepare => questions::prepare(session, request, &access, &frame.message()?).await?,
        FrameKind::Execute => questions::execute(session, request, &access, &frame.message()?).await?,
        FrameKind::DeleteRows => deletes::answer(session, request, &access, &frame.message()?).await?,
        FrameKind::CloseStatement => {
            let close: proto::CloseStatement = frame.message()?;
            session.statements.borrow_mut().remove(close.statement_id);
            outbox.send(FrameKind::Done, id, &proto::Done {}).await?;
        }
        FrameKind::OpenLink => links::open(session, request, frame.message()?).await?,
        FrameKind::CloseLink => links::close(session, request, &frame.message()?).await?,
        FrameKind::LoadBegin => loads::begin(session, request, &access, frame.message()?).await?,
        FrameKind::LoadCommit => loads::commit(session, request, frame.message()?).await?,
        FrameKind::LoadAbort => loads::abort(session, request, frame.message()?).await?,
        FrameKind::LoadQuery => loads::query(session, request, &frame.message()?).await?,
        FrameKind::CreateIndex => {
            let create = frame.message()?;
            session.until_stopped(request, Box::pin(indexes::create(cell, &access, create))).await?;
            outbox.send(FrameKind::Done, id, &proto::Done {}).await?;
        }
        FrameKind::DropIndex => {
            let drop = frame.message()?;
            session.until_stopped(request, Box::pin(indexes::drop(cell, drop))).await?;
            outbox.send(FrameKind::Done, id, &proto::Done {}).await?;
        }
        FrameKind::ListIndexes => {
            let indexes = indexes::list(cell, &access, &frame.message()?)?;
            outbox.send(FrameKind::IndexList, id, &indexes).await?;
        }
        FrameKind::AddUser
        | FrameKind::AlterUser
        | FrameKind::RemoveUser
        | FrameKind::GrantTable
        | FrameKind::ListUsers => administration::answer(session, request, &frame).await?,
        FrameKind::VectorSearchRequest => searches::answer(session, request, &access, frame.message()?).await?,
        FrameKind::KeyValueRequest => {
            return Err(Error::new(
                ErrorCode::UnsupportedPlan,
                "KeyValueRequest: this version of the cell does not answer key-value requests; it answers PredicatePushdownRequest, Prepare and Execute",
            )
            .into());
        }
        FrameKind::ReplicationDataStream => {
            return Err(Error::new(
                ErrorCode::UnsupportedPlan,
                "ReplicationDataStream: this version of the cell does not replicate",
            )
            .into());
        }
        kind => {
            let message = format!("{} is not something a client sends", kind.name());
            return Err(Error::new(ErrorCode::Protocol, message).into());
        }
    }
    Ok(())
}
