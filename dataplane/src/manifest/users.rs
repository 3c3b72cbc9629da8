//! How a user is written in the manifest.
//!
//! Users are in the manifest only, not on the volume: `rebuild` can't bring them back.

use hidb::auth::{Permission, Role, check_user_name, scram};
use prost::Message;

/// A user.
#[derive(Clone, PartialEq, Message)]
pub struct UserRecord {
    /// The name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Random: a user that is added again under the name of a removed one is another user.
    #[prost(fixed64, tag = "2")]
    pub id: u64,
    /// The role.
    #[prost(enumeration = "hidb::proto::Role", tag = "3")]
    pub role: i32,
    /// What stands for the password; none when the user has a certificate only.
    #[prost(message, optional, tag = "4")]
    pub verifier: Option<hidb::proto::ScramVerifier>,
    /// Tables, and what may be done with them.
    #[prost(message, repeated, tag = "5")]
    pub grants: Vec<hidb::proto::TableGrant>,
}

impl UserRecord {
    /// Whether everything in it means something.
    pub fn is_valid(&self) -> bool {
        check_user_name(&self.name).is_ok()
            && Role::from_proto(self.role).is_some()
            && self.verifier.as_ref().is_none_or(|verifier| scram::Verifier::from_proto(verifier).is_ok())
            && self.grants.iter().all(|grant| Permission::from_proto(grant.permission).is_some())
    }
}
