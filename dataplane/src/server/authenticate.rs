//! Who is asking: certificate or SCRAM exchange, between Hello and HelloAck.
//!
//! Owns [`authenticate`] and [`Identity`]. Called by `accept` on the control thread.
//!
//! Invariants
//! - Whatever is wrong with a user, a password or a proof, the client gets the same error after the same steps and the
//!   same wait.
//! - Neither names that were not found nor anything of an exchange is logged above debug level.

use std::time::Duration;

use hidb::auth::scram::{NONCE_BYTES, message, server};
use hidb::frame::{Frame, FrameKind, encode_frame};
use hidb::{Error, ErrorCode, Result, proto};

use super::Cell;
use super::setup_channel::SetupChannel;

/// How long the answer to wrong credentials takes: what guessing costs on each connection.
const REFUSAL_DELAY: Duration = Duration::from_millis(200);

/// A user who has shown who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user's name.
    pub name: String,
    /// The user's id: a later user of the same name is another one.
    pub id: u64,
}

/// What an authentication ended with.
pub struct Authenticated {
    /// Who it is; `None` on a cell that does not ask.
    pub identity: Option<Identity>,
    /// The cell's last message of the exchange.
    pub data: Vec<u8>,
}

fn identity(cell: &Cell, name: &str) -> Option<Identity> {
    cell.store.users().get(name).map(|user| Identity { name: user.name.clone(), id: user.id })
}

/// Finds out who is at the other end. `None` when the peer went away.
///
/// # Errors
/// `Unauthenticated`, `Protocol`.
pub async fn authenticate(cell: &Cell, channel: &mut SetupChannel) -> Result<Option<Authenticated>> {
    if cell.config.insecure {
        return Ok(Some(Authenticated { identity: None, data: Vec::new() }));
    }
    if let Some(name) = channel.peer_common_name()? {
        // The certificate is the authority's word for the name, so that it may be said that the user is missing.
        let identity = identity(cell, &name).ok_or_else(|| {
            let name: String = name.chars().take(80).collect();
            Error::new(
                ErrorCode::Unauthenticated,
                format!("the certificate is of {name:?}, which is no user of this cell: an administrator can add it"),
            )
        })?;
        return Ok(Some(Authenticated { identity: Some(identity), data: Vec::new() }));
    }
    let outcome = exchange(cell, channel).await;
    if let Err(error) = &outcome
        && error.code == ErrorCode::Unauthenticated
    {
        tokio::time::sleep(REFUSAL_DELAY).await;
    }
    outcome
}

async fn exchange(cell: &Cell, channel: &mut SetupChannel) -> Result<Option<Authenticated>> {
    let mechanisms = server::mechanisms(channel.is_tls()).iter().map(|name| name.to_string()).collect();
    let required = proto::AuthenticationRequired { mechanisms };
    let Some(frame) = ask(channel, FrameKind::AuthenticationRequired, &required, FrameKind::Authenticate).await? else {
        return Ok(None);
    };
    let first: proto::Authenticate = frame.message()?;
    let asked = server::begin(&first.mechanism, &first.data, channel.exported_key()?.as_ref())?;
    let name = asked.user().to_string();
    let (challenged, challenge) = asked.challenge(cell.store.users().verifier(&name), &nonce()?);
    let challenge = proto::AuthenticateContinue { data: challenge.into() };
    let kind = FrameKind::AuthenticateContinue;
    let Some(frame) = ask(channel, kind, &challenge, kind).await? else { return Ok(None) };
    let last: proto::AuthenticateContinue = frame.message()?;
    let data = challenged.finish(&last.data)?;
    // Removed since the challenge: like one that was never there.
    let identity = identity(cell, &name)
        .ok_or_else(|| Error::new(ErrorCode::Unauthenticated, "the user was removed: ask an administrator"))?;
    Ok(Some(Authenticated { identity: Some(identity), data }))
}

/// Sends a message and reads the one that must follow.
async fn ask(
    channel: &mut SetupChannel,
    kind: FrameKind,
    body: &impl prost::Message,
    wanted: FrameKind,
) -> Result<Option<Frame>> {
    if channel.write_all(&encode_frame(kind, 0, body, &[])?).await.is_err() {
        return Ok(None);
    }
    let Some(frame) = channel.read_frame().await? else { return Ok(None) };
    if frame.kind != wanted {
        return Err(Error::new(
            ErrorCode::Unauthenticated,
            format!(
                "{} before the client has shown who it is: this cell wants {} first, see docs/hidb.md",
                frame.kind.name(),
                wanted.name()
            ),
        ));
    }
    Ok(Some(frame))
}

fn nonce() -> Result<String> {
    let mut random = [0; NONCE_BYTES];
    getrandom::fill(&mut random)
        .map_err(|error| Error::new(ErrorCode::Internal, format!("the kernel gives no random numbers: {error}")))?;
    Ok(message::encode(&random))
}
