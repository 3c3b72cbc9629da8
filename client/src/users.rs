//! Calls about users, for administrators.

use hidb::auth::scram::{ITERATIONS_DEFAULT, SALT_BYTES, Verifier};
use hidb::auth::{Permission, Role};
use hidb::frame::FrameKind;
use hidb::proto::{TableGrant, UserSummary};
use hidb::{Error, ErrorCode, Result, proto};

use crate::client::Client;

/// What a cell keeps of a password; made here, so that the password does not travel.
fn verifier(password: &str) -> Result<proto::ScramVerifier> {
    let mut salt = [0; SALT_BYTES];
    getrandom::fill(&mut salt)
        .map_err(|error| Error::new(ErrorCode::Internal, format!("the kernel gives no random numbers: {error}")))?;
    Ok(Verifier::of_password(password, &salt, ITERATIONS_DEFAULT)?.to_proto())
}

impl Client {
    async fn change_users<M: prost::Message>(&self, kind: FrameKind, body: M) -> Result<()> {
        self.once(self.deadline(None), |connection| async move {
            connection.request(kind, &body, None, None)?.answer::<proto::Done>(FrameKind::Done).await
        })
        .await?;
        Ok(())
    }

    /// Makes a user. Without a password the user has a client certificate.
    pub async fn add_user(
        &self,
        name: &str,
        role: Role,
        password: Option<&str>,
        grants: &[(String, Permission)],
    ) -> Result<()> {
        let grants = grants.iter();
        let grants = grants
            .map(|(table, permission)| TableGrant { table: table.clone(), permission: permission.to_proto() as i32 });
        let body = proto::AddUser {
            name: name.into(),
            role: role.to_proto() as i32,
            verifier: password.map(verifier).transpose()?,
            grants: grants.collect(),
        };
        self.change_users(FrameKind::AddUser, body).await
    }

    /// Gives a user another role, another password, or both.
    pub async fn alter_user(&self, name: &str, role: Option<Role>, password: Option<&str>) -> Result<()> {
        let body = proto::AlterUser {
            name: name.into(),
            role: role.map_or(proto::Role::Unspecified, Role::to_proto) as i32,
            verifier: password.map(verifier).transpose()?,
        };
        self.change_users(FrameKind::AlterUser, body).await
    }

    /// Removes a user, whose connections can do nothing more.
    pub async fn remove_user(&self, name: &str) -> Result<()> {
        self.change_users(FrameKind::RemoveUser, proto::RemoveUser { name: name.into() }).await
    }

    /// Grants a user a table (`*`: every table), in place of an earlier grant on it; `None` takes the grant back.
    pub async fn grant(&self, name: &str, table: &str, permission: Option<Permission>) -> Result<()> {
        let permission = permission.map_or(proto::TablePermission::Nothing, Permission::to_proto) as i32;
        let grant = Some(TableGrant { table: table.into(), permission });
        self.change_users(FrameKind::GrantTable, proto::GrantTable { name: name.into(), grant }).await
    }

    /// Every user of the cell, by name.
    pub async fn users(&self) -> Result<Vec<UserSummary>> {
        let list = self
            .retrying(self.deadline(None), |connection| async move {
                connection
                    .request(FrameKind::ListUsers, &proto::ListUsers {}, None, None)?
                    .answer::<proto::UserList>(FrameKind::UserList)
                    .await
            })
            .await?;
        Ok(list.users)
    }
}
