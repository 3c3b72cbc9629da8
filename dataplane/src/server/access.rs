//! What a session may do: the one place where roles and grants are looked at.
//!
//! Owns [`Access`] and [`check`], which every request passes before it is answered. Called by `requests`, by the
//! handshake (tables of HelloAck) and by notices.
//!
//! Invariants
//! - The users as they are now decide, not as they were when the session began: a grant taken back, a user removed or
//!   made less counts from the next request on.
//! - A table that a user may not read is not named to them: not in lists, not in errors, not in notices. Requests about
//!   it get `PermissionDenied`, whether it exists or not. Not `UnknownTable`: an operator whose grant is missing must
//!   not look for a lost table, and as a missing table gives the same answer, it tells nobody which tables there are.
//! - [`check`] names every kind of frame, so that a new one does not compile before it was decided who may send it.

use std::sync::Arc;

use hidb::auth::{Permission, Role};
use hidb::frame::{Frame, FrameKind};
use hidb::plan::substrait;
use hidb::{Error, ErrorCode, Result, proto};

use super::Cell;
use super::authenticate::Identity;
use super::session::Session;
use crate::store::users::User;

/// What somebody may do at the moment.
#[derive(Clone, Debug)]
pub enum Access {
    /// Everything: the cell does not ask who is there.
    Insecure,
    /// What this user may.
    Of(Arc<User>),
}

impl Access {
    /// What an identity may do now.
    ///
    /// # Errors
    /// `Unauthenticated` when the user has been removed.
    pub fn of(cell: &Cell, identity: Option<&Identity>) -> Result<Self> {
        let Some(identity) = identity else { return Ok(Access::Insecure) };
        match cell.store.users().get(&identity.name).filter(|user| user.id == identity.id) {
            Some(user) => Ok(Access::Of(user.clone())),
            None => Err(Error::new(
                ErrorCode::Unauthenticated,
                format!("user {:?} was removed: ask an administrator of the cell", identity.name),
            )),
        }
    }

    /// Whether this may be done with a table.
    pub fn may(&self, permission: Permission, table: &str) -> bool {
        match self {
            Access::Insecure => true,
            Access::Of(user) => user.may(permission, table),
        }
    }

    /// Fails unless this may be done with a table.
    ///
    /// # Errors
    /// `PermissionDenied`.
    pub fn require(&self, permission: Permission, table: &str) -> Result<()> {
        if self.may(permission, table) {
            return Ok(());
        }
        let Access::Of(user) = self else { return Ok(()) };
        let (name, role) = (&user.name, user.role);
        let table: String = table.chars().take(255).collect();
        let advice = if permission > role.ceiling() {
            format!("heliostat user set {name} --role writer")
        } else {
            format!("heliostat user grant {name} {table} {permission}")
        };
        Err(Error::new(
            ErrorCode::PermissionDenied,
            format!("user {name:?} ({role}) may not {permission} table {table:?}: an administrator can say `{advice}`"),
        ))
    }

    /// Fails for everybody but administrators.
    fn require_admin(&self, kind: FrameKind) -> Result<()> {
        match self {
            Access::Insecure => Ok(()),
            Access::Of(user) if user.role == Role::Admin => Ok(()),
            Access::Of(user) => Err(Error::new(
                ErrorCode::PermissionDenied,
                format!("user {:?} ({}) may not: {} is for administrators", user.name, user.role, kind.name()),
            )),
        }
    }
}

/// Fails unless the session's user may make this request; otherwise gives what the user may do.
///
/// # Errors
/// `PermissionDenied`, `Unauthenticated`, or what is wrong with the frame.
pub fn check(session: &Session, frame: &Frame) -> Result<Access> {
    let cell = &session.core.cell;
    let access = Access::of(cell, session.agreed.identity.as_ref())?;
    if matches!(access, Access::Insecure) {
        return Ok(access);
    }
    match frame.kind {
        // What anyone may who has shown who they are. Lists are cut to what may be read.
        FrameKind::ListTables
        | FrameKind::DescribeCell
        | FrameKind::CloseStatement
        | FrameKind::OpenLink
        | FrameKind::CloseLink => {}
        FrameKind::ListIndexes => {
            let table = frame.message::<proto::ListIndexes>()?.table;
            if !table.is_empty() {
                access.require(Permission::Read, &table)?;
            }
        }
        FrameKind::DescribeTable => {
            access.require(Permission::Read, &frame.message::<proto::DescribeTable>()?.name)?;
        }
        FrameKind::PredicatePushdownRequest => {
            let message: proto::PredicatePushdownRequest = frame.message()?;
            access.require(Permission::Read, &table_of(&message.table, &message.substrait_plan)?)?;
        }
        FrameKind::Prepare => {
            let message: proto::Prepare = frame.message()?;
            access.require(Permission::Read, &table_of(&message.table, &message.substrait_plan)?)?;
        }
        FrameKind::Execute => {
            let statement = frame.message::<proto::Execute>()?.statement_id;
            let statement = session.statements.borrow_mut().get(statement)?;
            access.require(Permission::Read, &statement.plan.table)?;
        }
        FrameKind::VectorSearchRequest => {
            access.require(Permission::Read, &frame.message::<proto::VectorSearchRequest>()?.table)?;
        }
        FrameKind::DeleteRows => {
            access.require(Permission::Write, &frame.message::<proto::DeleteRows>()?.table)?;
        }
        FrameKind::CreateIndex => {
            access.require(Permission::Write, &frame.message::<proto::CreateIndex>()?.table)?;
        }
        FrameKind::DropIndex => {
            access.require(Permission::Write, &frame.message::<proto::DropIndex>()?.table)?;
        }
        FrameKind::CreateTable => {
            access.require(Permission::Write, &frame.message::<proto::CreateTable>()?.name)?;
        }
        FrameKind::LoadBegin => {
            access.require(Permission::Write, &frame.message::<proto::LoadBegin>()?.table)?;
        }
        FrameKind::LoadCommit => {
            require_load(cell, &access, &frame.message::<proto::LoadCommit>()?.load_id)?;
        }
        FrameKind::LoadAbort => {
            require_load(cell, &access, &frame.message::<proto::LoadAbort>()?.load_id)?;
        }
        FrameKind::LoadQuery => {
            require_load(cell, &access, &frame.message::<proto::LoadQuery>()?.load_id)?;
        }
        FrameKind::KeyValueRequest => {
            let message: proto::KeyValueRequest = frame.message()?;
            let reads = message.operation() == proto::key_value_request::Operation::Get;
            access.require(if reads { Permission::Read } else { Permission::Write }, &message.table)?;
        }
        FrameKind::DropTable
        | FrameKind::ReplicationDataStream
        | FrameKind::AddUser
        | FrameKind::AlterUser
        | FrameKind::RemoveUser
        | FrameKind::GrantTable
        | FrameKind::ListUsers => access.require_admin(frame.kind)?,
        // Of the session's own requests only, and answered before they get here; or not something a client sends.
        FrameKind::Hello
        | FrameKind::HelloAck
        | FrameKind::AuthenticationRequired
        | FrameKind::Authenticate
        | FrameKind::AuthenticateContinue
        | FrameKind::Done
        | FrameKind::TableList
        | FrameKind::TableDescription
        | FrameKind::CellStatus
        | FrameKind::FilteredResultSet
        | FrameKind::Prepared
        | FrameKind::Credit
        | FrameKind::Cancel
        | FrameKind::Heartbeat
        | FrameKind::Error
        | FrameKind::CacheInvalidationNotice
        | FrameKind::LinkOpened
        | FrameKind::SlotsFree
        | FrameKind::LinkReset
        | FrameKind::LoadBatch
        | FrameKind::LoadState
        | FrameKind::KeyValueResponse
        | FrameKind::UserList
        | FrameKind::RowsDeleted
        | FrameKind::IndexList => {}
    }
    Ok(access)
}

fn table_of(table: &str, plan: &[u8]) -> Result<String> {
    if table.is_empty() { substrait::table_name(plan) } else { Ok(table.to_string()) }
}

/// A load is its table's. One that does not exist is left to the answer, which says so.
fn require_load(cell: &Cell, access: &Access, load_id: &[u8]) -> Result<()> {
    let Ok(id) = <[u8; 16]>::try_from(load_id) else { return Ok(()) };
    match cell.store.load_table(&id) {
        Some(table) => access.require(Permission::Write, &table),
        None => Ok(()),
    }
}
