//! The cell's side of a SCRAM exchange.
//!
//! [`begin`] reads who is asking; [`Asked::challenge`] takes the verifier that the caller found (or
//! [`Verifier::of_nobody`]); [`Challenged::finish`] says whether the client has the password.

use sha2::{Digest, Sha256};

use super::message::{self, BindingFlag, ClientFinal, ClientFirst};
use super::{ExportedKey, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, Verifier, equal, hmac, malformed, refused, xor};
use crate::error::{Error, ErrorCode, Result};

/// The mechanisms a cell offers, best first. `is_bindable`: there is TLS under the connection.
pub fn mechanisms(is_bindable: bool) -> &'static [&'static str] {
    if is_bindable { &[SCRAM_SHA_256_PLUS, SCRAM_SHA_256] } else { &[SCRAM_SHA_256] }
}

/// A client that has said who it is.
#[derive(Debug)]
pub struct Asked {
    user: String,
    bare: String,
    client_nonce: String,
    /// What the client must repeat in `c=`.
    binding: Vec<u8>,
}

/// Reads a client's first message. `exported` is what TLS exports; `None` without TLS.
///
/// # Errors
/// `Protocol` for messages and mechanisms that are none; `Unauthenticated` when somebody between client and cell
/// made the client believe that the cell can't bind the exchange to TLS.
pub fn begin(mechanism: &str, first: &[u8], exported: Option<&ExportedKey>) -> Result<Asked> {
    let first = ClientFirst::parse(first)?;
    let mut binding = first.header.as_bytes().to_vec();
    match (mechanism, first.flag, exported) {
        (SCRAM_SHA_256_PLUS, BindingFlag::Named("tls-exporter"), Some(key)) => binding.extend_from_slice(key),
        (SCRAM_SHA_256_PLUS, BindingFlag::Named(name), Some(_)) => {
            let name: String = name.chars().take(40).collect();
            return Err(malformed(&format!("channel binding {name:?} is not supported: use tls-exporter (RFC 9266)")));
        }
        (SCRAM_SHA_256_PLUS, _, None) => {
            return Err(malformed("SCRAM-SHA-256-PLUS needs TLS, which this connection does not have"));
        }
        (SCRAM_SHA_256, BindingFlag::ServerCannot, Some(_)) => {
            return Err(Error::new(
                ErrorCode::Unauthenticated,
                "the client believes that this cell can't bind the password to TLS, but it can: somebody between them may have changed the list of mechanisms",
            ));
        }
        (SCRAM_SHA_256, BindingFlag::None | BindingFlag::ServerCannot, _) => {}
        (SCRAM_SHA_256 | SCRAM_SHA_256_PLUS, _, _) => {
            return Err(malformed("the channel binding of the first message is not that of the mechanism"));
        }
        (other, _, _) => {
            let other: String = other.chars().take(40).collect();
            return Err(malformed(&format!("mechanism {other:?} is not offered")));
        }
    }
    Ok(Asked { user: first.user, bare: first.bare.into(), client_nonce: first.nonce.into(), binding })
}

impl Asked {
    /// Who the client says it is; not checked in any way.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The message to send: salt, iterations, both nonces. `nonce` is random, printable and without commas, never used
    /// before.
    pub fn challenge(self, verifier: Verifier, nonce: &str) -> (Challenged, Vec<u8>) {
        let nonce = format!("{}{nonce}", self.client_nonce);
        let first = format!("r={nonce},s={},i={}", message::encode(&verifier.salt), verifier.iterations);
        let message = first.clone().into_bytes();
        (Challenged { asked: self, verifier, nonce, first }, message)
    }
}

/// A client that was asked for its proof.
#[derive(Debug)]
pub struct Challenged {
    asked: Asked,
    verifier: Verifier,
    nonce: String,
    first: String,
}

impl Challenged {
    /// Checks the client's last message; gives the message that proves the cell to the client.
    ///
    /// # Errors
    /// `Unauthenticated` when the proof, the nonce or the binding is wrong: one error for all; `Protocol`.
    pub fn finish(self, last: &[u8]) -> Result<Vec<u8>> {
        let last = ClientFinal::parse(last)?;
        let proof: [u8; 32] = last.proof[..].try_into().map_err(|_| malformed("the proof has not 32 bytes"))?;
        let authentication =
            [self.asked.bare.as_bytes(), b",", self.first.as_bytes(), b",", last.without_proof.as_bytes()];
        let signature = hmac(&self.verifier.stored_key, &authentication);
        let client_key = xor(&proof, &signature);
        let has_password = equal(&Sha256::digest(client_key.as_slice()), &self.verifier.stored_key);
        let is_same_exchange = equal(last.nonce.as_bytes(), self.nonce.as_bytes());
        let is_same_channel = equal(&last.binding, &self.asked.binding);
        if !(has_password & is_same_exchange & is_same_channel) {
            return Err(refused());
        }
        Ok(format!("v={}", message::encode(&hmac(&self.verifier.server_key, &authentication))).into_bytes())
    }
}
