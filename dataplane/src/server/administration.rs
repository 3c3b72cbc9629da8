//! Requests about users.
//!
//! Called by `requests` once `access` has seen that an administrator asks.

use std::rc::Rc;
use std::sync::Arc;

use hidb::frame::{Frame, FrameKind};
use hidb::{Result, proto};

use super::session::{Request, Session};
use super::{Cell, Failure, to_the_end};
use crate::store::users::UserChange;

/// Answers one of them.
pub async fn answer(session: &Rc<Session>, request: &Rc<Request>, frame: &Frame) -> Result<(), Failure> {
    let cell = session.core.cell.clone();
    let change = match frame.kind {
        FrameKind::AddUser => UserChange::add(frame.message()?)?,
        FrameKind::AlterUser => UserChange::Alter(frame.message()?),
        FrameKind::RemoveUser => UserChange::Remove(frame.message::<proto::RemoveUser>()?.name),
        FrameKind::GrantTable => UserChange::Grant(frame.message()?),
        _ => {
            let users = cell.store.users().iter().map(|user| user.summary()).collect();
            return Ok(session.outbox.send(FrameKind::UserList, request.id, &proto::UserList { users }).await?);
        }
    };
    session.until_stopped(request, make(cell, change)).await?;
    let by = session.agreed.identity.as_ref().map_or("nobody", |identity| identity.name.as_str());
    tracing::info!(session = session.agreed.session_id, by, change = frame.kind.name(), "users changed");
    Ok(session.outbox.send(FrameKind::Done, request.id, &proto::Done {}).await?)
}

async fn make(cell: Arc<Cell>, change: UserChange) -> Result<()> {
    let whose = match &change {
        UserChange::Add { .. } => None,
        UserChange::Alter(message) => Some(message.name.clone()),
        UserChange::Remove(name) => Some(name.clone()),
        UserChange::Grant(message) => Some(message.name.clone()),
    };
    to_the_end(async move {
        cell.store.change_users(&change).await?;
        if let Some(name) = whose {
            cell.rights_changed(name).await;
        }
        Ok(())
    })
    .await
}
