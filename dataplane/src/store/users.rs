//! Users: who may connect, and what they may do with which table.
//!
//! Owns [`Users`] (all users at one moment, immutable), the rules by which they change ([`UserChange`]), and the change
//! itself, on a running store and on a stopped one. Called by the set-up of connections, the access checks, requests
//! about users, and `heliostat-cell user`.
//!
//! Invariants
//! - A change is durable before anybody sees it.
//! - No change leaves a cell that has had an administrator without one that can log in.
//! - A grant is never more than its user's role allows.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use hidb::auth::scram::Verifier;
use hidb::auth::{EVERY_TABLE, Permission, Role, check_user_name};
use hidb::{Error, ErrorCode, proto};

use super::Store;
use super::error::{Result, StoreError};
use crate::device::Device;
use crate::manifest::{Batch, Manifest, ManifestState, UserRecord};
use crate::volume::{FolderLock, VolumeLock, superblock};

/// The most users of a cell.
const USERS_MAX: usize = 10_000;
/// The most grants of a user.
const GRANTS_MAX: usize = 10_000;
/// The longest table name in a grant, in bytes.
const TABLE_NAME_BYTES_MAX: usize = 255;

/// A user.
#[derive(Clone, Debug)]
pub struct User {
    /// The name.
    pub name: String,
    /// Changes when the name is given to another user.
    pub id: u64,
    /// The role.
    pub role: Role,
    /// What stands for the password; none when the user has a certificate only.
    pub verifier: Option<Verifier>,
    grants: BTreeMap<String, Permission>,
}

impl User {
    fn of(record: &UserRecord) -> Option<Self> {
        let grants = record.grants.iter();
        let grants = grants.filter_map(|grant| Some((grant.table.clone(), Permission::from_proto(grant.permission)?)));
        Some(User {
            name: record.name.clone(),
            id: record.id,
            role: Role::from_proto(record.role)?,
            verifier: record.verifier.as_ref().and_then(|verifier| Verifier::from_proto(verifier).ok()),
            grants: grants.collect(),
        })
    }

    /// Whether the user may do this with the table of this name.
    pub fn may(&self, permission: Permission, table: &str) -> bool {
        let granted = || self.grants.get(table).max(self.grants.get(EVERY_TABLE));
        self.role == Role::Admin || (permission <= self.role.ceiling() && granted() >= Some(&permission))
    }

    /// As others may see it.
    pub fn summary(&self) -> proto::UserSummary {
        let grants = self.grants.iter();
        let grants = grants.map(|(table, permission)| proto::TableGrant {
            table: table.clone(),
            permission: permission.to_proto() as i32,
        });
        proto::UserSummary {
            name: self.name.clone(),
            role: self.role.to_proto() as i32,
            has_password: self.verifier.is_some(),
            grants: grants.collect(),
        }
    }

    fn record(&self) -> UserRecord {
        let summary = self.summary();
        UserRecord {
            name: summary.name,
            id: self.id,
            role: summary.role,
            verifier: self.verifier.as_ref().map(Verifier::to_proto),
            grants: summary.grants,
        }
    }
}

/// All users at one moment.
#[derive(Clone, Debug, Default)]
pub struct Users {
    by_name: BTreeMap<String, Arc<User>>,
    secret: Option<[u8; 32]>,
}

/// A change of the users.
#[derive(Clone, Debug)]
pub enum UserChange {
    /// Makes a user.
    Add {
        /// The message that asks for it.
        message: proto::AddUser,
        /// Random.
        id: u64,
        /// Random; kept when it is the first user.
        secret: [u8; 32],
    },
    /// Changes role or password.
    Alter(proto::AlterUser),
    /// Removes a user.
    Remove(String),
    /// Grants a table, or takes the grant back.
    Grant(proto::GrantTable),
}

impl UserChange {
    /// A change that makes a user.
    ///
    /// # Errors
    /// `Internal` when the kernel gives no random numbers.
    pub fn add(message: proto::AddUser) -> hidb::Result<Self> {
        let mut random = [0; 40];
        getrandom::fill(&mut random)
            .map_err(|error| Error::new(ErrorCode::Internal, format!("the kernel gives no random numbers: {error}")))?;
        let (mut id, mut secret) = ([0; 8], [0; 32]);
        id.copy_from_slice(&random[..8]);
        secret.copy_from_slice(&random[8..]);
        Ok(UserChange::Add { message, id: u64::from_le_bytes(id), secret })
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorCode::InvalidParameter, message)
}

fn role_of(number: i32) -> hidb::Result<Role> {
    Role::from_proto(number).ok_or_else(|| invalid(format!("role {number} is none: reader, writer or admin")))
}

fn verifier_of(message: Option<&proto::ScramVerifier>) -> hidb::Result<Option<Verifier>> {
    message.map(Verifier::from_proto).transpose()
}

fn grant(user: &mut User, grant: &proto::TableGrant) -> hidb::Result<()> {
    let table = &grant.table;
    if table.is_empty() || table.len() > TABLE_NAME_BYTES_MAX || table.chars().any(char::is_control) {
        return Err(invalid(format!("{table:?} can't be the name of a table: nothing was granted")));
    }
    match Permission::from_proto(grant.permission) {
        None if grant.permission == proto::TablePermission::Nothing as i32 => {
            user.grants.remove(table);
        }
        None => return Err(invalid(format!("permission {} is none: read or write", grant.permission))),
        Some(permission) if permission > user.role.ceiling() => {
            return Err(invalid(format!(
                "{:?} is a {}, who may {} at most: give the role writer first",
                user.name,
                user.role,
                user.role.ceiling()
            )));
        }
        Some(_) if user.grants.len() >= GRANTS_MAX => {
            return Err(invalid(format!("{:?} has {GRANTS_MAX} grants already: grant `*`", user.name)));
        }
        Some(permission) => {
            user.grants.insert(table.clone(), permission);
        }
    }
    Ok(())
}

impl Users {
    /// The users of a manifest.
    pub fn of(state: &ManifestState) -> Self {
        let users = state.users.values().filter_map(User::of);
        Users { by_name: users.map(|user| (user.name.clone(), Arc::new(user))).collect(), secret: state.users_secret }
    }

    /// The user of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<User>> {
        self.by_name.get(name)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<User>> {
        self.by_name.values()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// What a client that says it is this user is checked against: the user's verifier, or one that no password fits. A
    /// user without password is like one that does not exist.
    pub fn verifier(&self, name: &str) -> Verifier {
        // Made in either case, so that it takes as long.
        let nobody = Verifier::of_nobody(&self.secret.unwrap_or_default(), name);
        self.get(name).and_then(|user| user.verifier.clone()).unwrap_or(nobody)
    }

    fn can_administer(&self) -> bool {
        self.iter().any(|user| user.role == Role::Admin)
    }

    /// The users after a change, and what to write for it.
    ///
    /// # Errors
    /// `UnknownUser`, `UserConflict`, `InvalidParameter`.
    pub fn changed(&self, change: &UserChange) -> hidb::Result<(Users, Batch)> {
        let mut users = self.clone();
        let mut batch = Batch::new();
        let find = |name: &str| {
            self.get(name).map(|user| (**user).clone()).ok_or_else(|| {
                let name: String = name.chars().take(80).collect();
                Error::new(ErrorCode::UnknownUser, format!("there is no user {name:?}: `heliostat user ls` lists them"))
            })
        };
        let changed = match change {
            UserChange::Add { message, id, secret } => {
                check_user_name(&message.name)?;
                if self.get(&message.name).is_some() {
                    let text = format!("there is a user {:?} already: change or remove that one", message.name);
                    return Err(Error::new(ErrorCode::UserConflict, text));
                }
                if self.by_name.len() >= USERS_MAX {
                    return Err(Error::new(ErrorCode::LimitExceeded, format!("there are {USERS_MAX} users already")));
                }
                if self.secret.is_none() {
                    batch.put_users_secret(secret);
                    users.secret = Some(*secret);
                }
                let mut user = User {
                    name: message.name.clone(),
                    id: *id,
                    role: role_of(message.role)?,
                    verifier: verifier_of(message.verifier.as_ref())?,
                    grants: BTreeMap::new(),
                };
                message.grants.iter().try_for_each(|one| grant(&mut user, one))?;
                Some(user)
            }
            UserChange::Alter(message) => {
                let mut user = find(&message.name)?;
                if message.role != proto::Role::Unspecified as i32 {
                    user.role = role_of(message.role)?;
                    for permission in user.grants.values_mut() {
                        *permission = (*permission).min(user.role.ceiling());
                    }
                }
                if let Some(verifier) = verifier_of(message.verifier.as_ref())? {
                    user.verifier = Some(verifier);
                }
                Some(user)
            }
            UserChange::Remove(name) => {
                let user = find(name)?;
                users.by_name.remove(&user.name);
                batch.delete_user(&user.name);
                None
            }
            UserChange::Grant(message) => {
                let mut user = find(&message.name)?;
                let one = message.grant.as_ref().ok_or_else(|| invalid("GrantTable brings no grant".into()))?;
                grant(&mut user, one)?;
                Some(user)
            }
        };
        if let Some(user) = changed {
            batch.put_user(&user.record());
            users.by_name.insert(user.name.clone(), Arc::new(user));
        }
        if self.can_administer() && !users.can_administer() {
            let text = "this is the last administrator: make another one first";
            return Err(Error::new(ErrorCode::UserConflict, text));
        }
        Ok((users, batch))
    }
}

impl Store {
    /// The users as they are now: a short lock and a reference count.
    pub fn users(&self) -> Arc<Users> {
        Arc::clone(&self.users.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the users.
    ///
    /// # Errors
    /// Those of [`Users::changed`], or the manifest's.
    pub async fn change_users(&self, change: &UserChange) -> Result<()> {
        let changes = self.change().await?;
        let (users, mut batch) = self.users().changed(change)?;
        // Older builds, which know no users, must not open it from now on.
        batch.put_identity(self.superblock.volume_uuid);
        changes.write(batch).await?;
        *self.users.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(users);
        Ok(())
    }
}

/// The users of a cell that is not running, after the changes that `decide` makes of them, all of which happen or none.
///
/// # Errors
/// [`StoreError::InUse`], [`StoreError::ManifestLost`], those of `decide` and of [`Users::changed`].
pub async fn change_stopped<D: Device>(
    device: &D,
    metadata_folder: &Path,
    decide: impl FnOnce(&Users) -> hidb::Result<Vec<UserChange>>,
) -> Result<Users> {
    let superblock = superblock::open(device).await?;
    let _volume_lock = device.path().exists().then(|| VolumeLock::acquire(device.path())).transpose()?;
    if !metadata_folder.is_dir() {
        // Locking would make the folder.
        return Err(StoreError::ManifestLost {
            folder: metadata_folder.to_path_buf(),
            volume: superblock.uuid_text(),
            reason: "there is no such folder".into(),
        });
    }
    let _folder_lock = FolderLock::acquire(metadata_folder)?;
    let (manifest, state) = Manifest::open(metadata_folder, superblock.volume_uuid, None)?;
    let mut users = Users::of(&state);
    let mut whole = Batch::new();
    for change in decide(&users)? {
        let (changed, batch) = users.changed(&change)?;
        users = changed;
        whole.append(batch);
    }
    if !whole.is_empty() {
        whole.put_identity(superblock.volume_uuid);
        manifest.write(whole).await?;
    }
    Ok(users)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(name: &str, role: Role, grants: &[(&str, Permission)]) -> UserChange {
        let grants = grants.iter();
        let grants = grants.map(|(table, permission)| proto::TableGrant {
            table: table.to_string(),
            permission: permission.to_proto() as i32,
        });
        UserChange::Add {
            message: proto::AddUser {
                name: name.into(),
                role: role.to_proto() as i32,
                verifier: None,
                grants: grants.collect(),
            },
            id: 7,
            secret: [1; 32],
        }
    }

    fn after(changes: &[UserChange]) -> hidb::Result<Users> {
        changes.iter().try_fold(Users::default(), |users, change| Ok(users.changed(change)?.0))
    }

    fn alter(name: &str, role: Role) -> UserChange {
        UserChange::Alter(proto::AlterUser { name: name.into(), role: role.to_proto() as i32, verifier: None })
    }

    #[test]
    fn a_role_is_the_most_that_grants_can_give() {
        use Permission::{Read, Write};
        let users = after(&[
            add("root", Role::Admin, &[]),
            add("ada", Role::Reader, &[("t", Read)]),
            add("bob", Role::Writer, &[("*", Read), ("t", Write)]),
            add("eve", Role::Writer, &[]),
        ])
        .unwrap();
        let may = |name: &str, permission, table: &str| users.get(name).unwrap().may(permission, table);
        assert!(may("root", Write, "anything"));
        assert!(may("ada", Read, "t") && !may("ada", Write, "t") && !may("ada", Read, "u"));
        assert!(may("bob", Write, "t") && may("bob", Read, "u") && !may("bob", Write, "u"));
        assert!(!may("eve", Read, "t"));
        let error = users.changed(&add("x", Role::Reader, &[("t", Write)])).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidParameter);
        // Who becomes less keeps no more than that.
        let (users, _) = users.changed(&alter("bob", Role::Reader)).unwrap();
        let (users, _) = users.changed(&alter("bob", Role::Writer)).unwrap();
        assert!(!users.get("bob").unwrap().may(Write, "t"));
    }

    #[test]
    fn the_last_administrator_stays() {
        let users = after(&[add("root", Role::Admin, &[]), add("ada", Role::Reader, &[])]).unwrap();
        for change in [UserChange::Remove("root".into()), alter("root", Role::Writer)] {
            assert_eq!(users.changed(&change).unwrap_err().code, ErrorCode::UserConflict);
        }
        let (users, _) = users.changed(&alter("ada", Role::Admin)).unwrap();
        users.changed(&UserChange::Remove("root".into())).unwrap();
        // Without any administrator so far, users may come and go.
        let users = after(&[add("ada", Role::Reader, &[])]).unwrap();
        users.changed(&UserChange::Remove("ada".into())).unwrap();
    }

    #[test]
    fn users_that_are_there_or_not_are_told_apart() {
        let users = after(&[add("ada", Role::Reader, &[])]).unwrap();
        assert_eq!(users.changed(&add("ada", Role::Reader, &[])).unwrap_err().code, ErrorCode::UserConflict);
        for change in [UserChange::Remove("bob".into()), alter("bob", Role::Admin)] {
            assert_eq!(users.changed(&change).unwrap_err().code, ErrorCode::UnknownUser);
        }
        assert_eq!(users.verifier("ada"), Verifier::of_nobody(&[1; 32], "ada"), "no password: like nobody");
    }

    #[test]
    fn records_bring_everything_back() {
        let users = after(&[add("ada", Role::Writer, &[("t", Permission::Write), ("*", Permission::Read)])]).unwrap();
        let record = users.get("ada").unwrap().record();
        assert!(record.is_valid());
        assert_eq!(User::of(&record).unwrap().record(), record);
        assert!(!UserRecord { role: 9, ..record.clone() }.is_valid());
        assert!(!UserRecord { name: "a b".into(), ..record }.is_valid());
    }
}
