//! Saying who is asking: the client's side between Hello and HelloAck.
//!
//! Called by the connection.

use hidb::auth::scram::{NONCE_BYTES, client, message};
use hidb::frame::{Frame, FrameKind, encode_frame};
use hidb::{Error, ErrorCode, Result, proto};

use crate::address::Address;
use crate::connection::{decode, error_of, unexpected};
use crate::credentials::Credentials;
use crate::receive::FrameReceiver;
use crate::transport::Transport;

/// Runs the exchange that `required` asks for; gives the frame that ends it, HelloAck, once the cell has proved itself.
///
/// # Errors
/// `Unauthenticated` when there are no credentials for this cell, the cell does not take them, or is not that cell.
pub(crate) async fn authenticate(
    address: &Address,
    credentials: Option<&Credentials>,
    required: &Frame,
    transport: &Transport,
    receiver: &mut FrameReceiver,
) -> Result<proto::HelloAck> {
    let required: proto::AuthenticationRequired = decode(required)?;
    let missing = |why: String| Error::new(ErrorCode::Unauthenticated, why);
    let known = credentials.filter(|credentials| credentials.user_and_password().is_some()).ok_or_else(|| {
        missing(format!(
            "the cell at {address} wants to know who is asking: give a profile with --credentials FILE or HELIOSTAT_CREDENTIALS (`heliostat dev` writes one for itself)"
        ))
    })?;
    if !known.are_for(address) {
        let own = known.address().map(Address::to_string).unwrap_or_default();
        return Err(missing(format!(
            "the credentials are for {own}, and are not shown to {address}, which nothing vouches for without TLS: use hidb://, or other credentials"
        )));
    }
    let (user, password) = known.user_and_password().unwrap_or_default();
    let mut random = [0; NONCE_BYTES];
    getrandom::fill(&mut random)
        .map_err(|error| Error::new(ErrorCode::Internal, format!("the kernel gives no random numbers: {error}")))?;
    let exported = transport.exported_key()?;
    let nonce = message::encode(&random);
    let mut begun = client::begin(user, password, &required.mechanisms, exported.as_ref(), &nonce)?;
    let first =
        proto::Authenticate { mechanism: begun.mechanism.into(), data: std::mem::take(&mut begun.message).into() };
    transport.write_all(&encode_frame(FrameKind::Authenticate, 0, &first, &[])?).await?;
    let challenge: proto::AuthenticateContinue = decode(&next(receiver, FrameKind::AuthenticateContinue).await?)?;
    // Thousands of hashes: not on a thread that others wait for.
    let mut responded = tokio::task::spawn_blocking(move || begun.respond(&challenge.data))
        .await
        .map_err(|_| Error::new(ErrorCode::Cancelled, "the runtime is stopping"))??;
    let last = proto::AuthenticateContinue { data: std::mem::take(&mut responded.message).into() };
    transport.write_all(&encode_frame(FrameKind::AuthenticateContinue, 0, &last, &[])?).await?;
    let hello: proto::HelloAck = decode(&next(receiver, FrameKind::HelloAck).await?)?;
    responded.verify(&hello.authentication_data)?;
    Ok(hello)
}

async fn next(receiver: &mut FrameReceiver, wanted: FrameKind) -> Result<Frame> {
    let frame = receiver.next().await?;
    match frame.kind {
        kind if kind == wanted => Ok(frame),
        FrameKind::Error => Err(error_of(&frame)),
        other => Err(unexpected(other, wanted.name())),
    }
}
