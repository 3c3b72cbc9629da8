//! Who is asking, and what they may do: roles, permissions, names of users, and the SCRAM exchange.
//!
//! Owns [`Role`], [`Permission`], the rules for names of users and tables in grants, and [`scram`]. Called by the
//! cell's set-up and access checks, by clients, and by the tools that make users.
//!
//! Invariants
//! - Nothing here draws random numbers or reads a clock: nonces and salts are arguments.
//! - No message of this module's errors, and no `Debug` output, holds a password or a key.

pub mod scram;

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorCode, Result};
use crate::proto;

/// The grant on every table.
pub const EVERY_TABLE: &str = "*";

/// The longest name of a user, in bytes.
pub const USER_NAME_BYTES_MAX: usize = 64;

/// What a user is; more than a role allows no grant can give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Reads the tables it was granted.
    Reader,
    /// Reads, makes, and loads into the tables it was granted.
    Writer,
    /// Everything: all tables, dropping them, users, the cell.
    Admin,
}

impl Role {
    /// All roles, the least first.
    pub const ALL: [Role; 3] = [Role::Reader, Role::Writer, Role::Admin];

    /// Its name, as typed and printed.
    pub fn name(self) -> &'static str {
        match self {
            Role::Reader => "reader",
            Role::Writer => "writer",
            Role::Admin => "admin",
        }
    }

    /// The most that this role may do with a table.
    pub fn ceiling(self) -> Permission {
        match self {
            Role::Reader => Permission::Read,
            Role::Writer | Role::Admin => Permission::Write,
        }
    }

    /// Its number in messages and records.
    pub fn to_proto(self) -> proto::Role {
        match self {
            Role::Reader => proto::Role::Reader,
            Role::Writer => proto::Role::Writer,
            Role::Admin => proto::Role::Admin,
        }
    }

    /// The role of this number; `None` for ROLE_UNSPECIFIED and for numbers of later versions.
    pub fn from_proto(number: i32) -> Option<Self> {
        match proto::Role::try_from(number) {
            Ok(proto::Role::Reader) => Some(Role::Reader),
            Ok(proto::Role::Writer) => Some(Role::Writer),
            Ok(proto::Role::Admin) => Some(Role::Admin),
            _ => None,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let role = Role::ALL.into_iter().find(|role| role.name() == text);
        role.ok_or_else(|| format!("{text:?} is not a role: reader, writer or admin"))
    }
}

/// What a user may do with a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Permission {
    /// See it, describe it, ask it questions.
    Read,
    /// Also make it and load into it.
    Write,
}

impl Permission {
    /// Its name, as typed and printed.
    pub fn name(self) -> &'static str {
        match self {
            Permission::Read => "read",
            Permission::Write => "write",
        }
    }

    /// Its number in messages and records.
    pub fn to_proto(self) -> proto::TablePermission {
        match self {
            Permission::Read => proto::TablePermission::Read,
            Permission::Write => proto::TablePermission::Write,
        }
    }

    /// The permission of this number; `None` is no permission, which numbers of later versions are, too.
    pub fn from_proto(number: i32) -> Option<Self> {
        match proto::TablePermission::try_from(number) {
            Ok(proto::TablePermission::Read) => Some(Permission::Read),
            Ok(proto::TablePermission::Write) => Some(Permission::Write),
            _ => None,
        }
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Permission {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "read" => Ok(Permission::Read),
            "write" => Ok(Permission::Write),
            _ => Err(format!("{text:?} is not a permission: read or write")),
        }
    }
}

/// Refuses names that could be taken for another one, or could not be written in a command line, a certificate or a
/// log: a name has letters, digits and `. _ - @`, and no normalisation changes it.
pub fn check_user_name(name: &str) -> Result<()> {
    let allowed = |letter: char| letter.is_alphanumeric() || "._-@".contains(letter);
    let whole = !name.is_empty() && name.len() <= USER_NAME_BYTES_MAX && name.chars().all(allowed);
    if whole && stringprep::saslprep(name).is_ok_and(|prepared| prepared == name) {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::InvalidParameter,
        format!(
            "a user's name has 1 to {USER_NAME_BYTES_MAX} bytes of letters, digits and the signs . _ - @, normalised (NFKC); {:?} is none",
            name.chars().take(40).collect::<String>()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_and_permissions_survive_their_numbers_and_names() {
        for role in Role::ALL {
            assert_eq!(Role::from_proto(role.to_proto() as i32), Some(role));
            assert_eq!(role.name().parse(), Ok(role));
        }
        assert_eq!(Role::from_proto(0), None);
        assert_eq!(Role::from_proto(99), None);
        for permission in [Permission::Read, Permission::Write] {
            assert_eq!(Permission::from_proto(permission.to_proto() as i32), Some(permission));
            assert_eq!(permission.name().parse(), Ok(permission));
        }
        assert_eq!(Permission::from_proto(0), None);
        assert!("root".parse::<Role>().is_err() && "all".parse::<Permission>().is_err());
    }

    #[test]
    fn names_that_could_be_mistaken_are_refused() {
        for name in ["ada", "etl-2", "ada.l@example.org", "Åsa", "Ада"] {
            check_user_name(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let long = "x".repeat(USER_NAME_BYTES_MAX + 1);
        // The fifth has a decomposed letter, the last but one a ligature: both become other names when normalised.
        for name in ["", "a b", "a,b", "a=b", "A\u{30a}sa", "a\u{0}", "ﬁ", &long] {
            assert_eq!(check_user_name(name).unwrap_err().code, ErrorCode::InvalidParameter, "{name:?}");
        }
    }
}
