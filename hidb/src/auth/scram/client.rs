//! The client's side of a SCRAM exchange.
//!
//! [`begin`] gives the first message; [`Begun::respond`] answers the cell's challenge; [`Responded::verify`] checks
//! that the cell knew the password, too.

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::message::{self, ServerFirst};
use super::{
    ExportedKey, ITERATIONS_MAX, ITERATIONS_MIN, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, equal, hmac, malformed,
    salt_password, xor,
};
use crate::error::{Error, ErrorCode, Result};

/// An exchange of which the first message was made.
pub struct Begun {
    /// The mechanism to name.
    pub mechanism: &'static str,
    /// The message to send.
    pub message: Vec<u8>,
    bare: String,
    nonce: String,
    binding: Vec<u8>,
    password: Zeroizing<String>,
}

/// Begins an exchange. `offered` are the cell's mechanisms; `exported` is what TLS exports, `None` without TLS; `nonce`
/// is random, printable and without commas, never used before.
///
/// # Errors
/// `Unauthenticated` when the cell does not offer the best mechanism for this connection: every cell does, so somebody
/// took it off the list.
pub fn begin(
    user: &str,
    password: &str,
    offered: &[impl AsRef<str>],
    exported: Option<&ExportedKey>,
    nonce: &str,
) -> Result<Begun> {
    let (mechanism, header) = match exported {
        Some(_) => (SCRAM_SHA_256_PLUS, "p=tls-exporter,,"),
        None => (SCRAM_SHA_256, "n,,"),
    };
    if !offered.iter().any(|offered| offered.as_ref() == mechanism) {
        return Err(Error::new(
            ErrorCode::Unauthenticated,
            format!("the cell does not offer {mechanism}: it is another version, or somebody is between it and you"),
        ));
    }
    let bare = format!("n={},r={nonce}", message::escape(user));
    let mut binding = header.as_bytes().to_vec();
    binding.extend_from_slice(exported.map_or(&[], |key| &key[..]));
    Ok(Begun {
        mechanism,
        message: format!("{header}{bare}").into_bytes(),
        bare,
        nonce: nonce.into(),
        binding,
        password: Zeroizing::new(password.into()),
    })
}

/// An exchange in which the proof was made.
pub struct Responded {
    /// The message to send.
    pub message: Vec<u8>,
    server_signature: [u8; 32],
}

impl Begun {
    /// Answers the cell's challenge.
    ///
    /// # Errors
    /// `Protocol` when the challenge is none, belongs to another exchange, or asks for too few or too many iterations.
    pub fn respond(self, challenge: &[u8]) -> Result<Responded> {
        let first = ServerFirst::parse(challenge)?;
        if !first.nonce.starts_with(&self.nonce) || first.nonce.len() <= self.nonce.len() {
            return Err(malformed("the cell's challenge belongs to another exchange"));
        }
        if !(ITERATIONS_MIN..=ITERATIONS_MAX).contains(&first.iterations) {
            let message =
                format!("the cell asks for {} iterations: {ITERATIONS_MIN} to {ITERATIONS_MAX}", first.iterations);
            return Err(malformed(&message));
        }
        let salted = salt_password(&self.password, &first.salt, first.iterations)?;
        let client_key = Zeroizing::new(hmac(&*salted, &[b"Client Key"]));
        let server_key = Zeroizing::new(hmac(&*salted, &[b"Server Key"]));
        let without_proof = format!("c={},r={}", message::encode(&self.binding), first.nonce);
        let authentication = [self.bare.as_bytes(), b",", challenge, b",", without_proof.as_bytes()];
        let stored_key: [u8; 32] = Sha256::digest(client_key.as_slice()).into();
        let proof = xor(&client_key, &hmac(&stored_key, &authentication));
        Ok(Responded {
            message: format!("{without_proof},p={}", message::encode(&*proof)).into_bytes(),
            server_signature: hmac(&*server_key, &authentication),
        })
    }
}

impl Responded {
    /// Checks the cell's last message.
    ///
    /// # Errors
    /// `Unauthenticated` when whoever answers does not know the user's password: it is not the cell.
    pub fn verify(self, last: &[u8]) -> Result<()> {
        let signature = message::parse_server_final(last)?;
        if equal(&signature, &self.server_signature) {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::Unauthenticated,
            "the cell could not prove that it knows the user: whatever answers there is not that cell",
        ))
    }
}
