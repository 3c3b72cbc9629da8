//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677), with `tls-exporter` channel binding (RFC 9266).
//!
//! Owns [`Verifier`] (what a cell keeps in place of a password) and the two sides of the exchange: [`server`] and
//! [`client`]. Each side is a chain of values: a step takes the message that came and gives the next value and the
//! message to send, so that no step can be left out or taken twice.
//!
//! Invariants
//! - Proofs are compared in constant time. A server that does not know the user goes through the same steps with a
//!   verifier that nobody has the password of, and ends with the same error.
//! - Passwords and keys derived from them are erased from memory when they are dropped.
//! - A message has at most [`MESSAGE_BYTES_MAX`] bytes; a client takes 4,096 to 1,000,000 iterations.
//!
//! Cost: one side's `SaltedPassword` is as many rounds of SHA-256 as there are iterations, twice: 16,384 iterations are
//! about 4 ms with SHA instructions. The cell keeps keys that were derived already and computes four HMACs.

pub mod client;
pub mod message;
pub mod server;
#[cfg(test)]
mod tests;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize as _, Zeroizing};

use crate::error::{Error, ErrorCode, Result};
use crate::proto;

/// The mechanism over a connection that has no channel to bind to.
pub const SCRAM_SHA_256: &str = "SCRAM-SHA-256";
/// The mechanism bound to the TLS connection under it.
pub const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// The label with which the binding is exported from TLS 1.3 (RFC 9266, section 4.2); 32 bytes, empty context.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// Iterations of new passwords.
pub const ITERATIONS_DEFAULT: u32 = 16_384;
/// The fewest iterations that either side takes (RFC 7677, section 4).
pub const ITERATIONS_MIN: u32 = 4_096;
/// The most iterations that either side takes, so that a false cell can't keep a client busy.
pub const ITERATIONS_MAX: u32 = 1_000_000;
/// Bytes of a new salt.
pub const SALT_BYTES: usize = 16;
/// Bytes of a nonce, before it is written as base64.
pub const NONCE_BYTES: usize = 18;
/// The longest message of an exchange.
pub const MESSAGE_BYTES_MAX: usize = 2_048;
/// The longest password, in bytes.
pub const PASSWORD_BYTES_MAX: usize = 1_024;

/// What both sides export from the TLS connection between them.
pub type ExportedKey = [u8; 32];

/// A key of SHA-256's size, erased when dropped.
type Key = Zeroizing<[u8; 32]>;

/// What a cell keeps in place of a password: nobody can log in with it, and no password can be computed from it but by
/// trying.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: [u8; 32],
    server_key: [u8; 32],
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

impl Drop for Verifier {
    fn drop(&mut self) {
        self.stored_key.zeroize();
        self.server_key.zeroize();
    }
}

impl Verifier {
    /// The verifier of a password. `salt` is random, [`SALT_BYTES`] long.
    ///
    /// # Errors
    /// `InvalidParameter` when the password is empty, too long, or has characters that SASLprep (RFC 4013) forbids.
    pub fn of_password(password: &str, salt: &[u8], iterations: u32) -> Result<Self> {
        let salted = salt_password(password, salt, iterations)?;
        let client_key = Zeroizing::new(hmac(&*salted, &[b"Client Key"]));
        Ok(Verifier {
            iterations,
            salt: salt.to_vec(),
            stored_key: Sha256::digest(client_key.as_slice()).into(),
            server_key: hmac(&*salted, &[b"Server Key"]),
        })
    }

    /// A verifier that no password fits, for a user that does not exist. The same name gets the same salt each time, as
    /// a user that exists does; `secret` is random and stays the same for as long as the users do.
    pub fn of_nobody(secret: &[u8], user: &str) -> Self {
        let mut salt = hmac(secret, &[b"salt", user.as_bytes()]).to_vec();
        salt.truncate(SALT_BYTES);
        Verifier {
            iterations: ITERATIONS_DEFAULT,
            salt,
            stored_key: hmac(secret, &[b"stored", user.as_bytes()]),
            server_key: hmac(secret, &[b"server", user.as_bytes()]),
        }
    }

    /// As it travels and is stored.
    pub fn to_proto(&self) -> proto::ScramVerifier {
        proto::ScramVerifier {
            iterations: self.iterations,
            salt: self.salt.clone().into(),
            stored_key: self.stored_key.to_vec().into(),
            server_key: self.server_key.to_vec().into(),
        }
    }

    /// Checks one that travelled or was stored.
    ///
    /// # Errors
    /// `InvalidParameter`.
    pub fn from_proto(message: &proto::ScramVerifier) -> Result<Self> {
        let wrong = |what: &str| Error::new(ErrorCode::InvalidParameter, format!("a password verifier with {what}"));
        if !(ITERATIONS_MIN..=ITERATIONS_MAX).contains(&message.iterations) {
            return Err(wrong(&format!("{} iterations: {ITERATIONS_MIN} to {ITERATIONS_MAX}", message.iterations)));
        }
        if !(SALT_BYTES..=64).contains(&message.salt.len()) {
            return Err(wrong(&format!("a salt of {} bytes: {SALT_BYTES} to 64", message.salt.len())));
        }
        let key = |bytes: &[u8]| bytes.try_into().map_err(|_| wrong("a key that has not 32 bytes"));
        Ok(Verifier {
            iterations: message.iterations,
            salt: message.salt.to_vec(),
            stored_key: key(&message.stored_key)?,
            server_key: key(&message.server_key)?,
        })
    }
}

/// `SaltedPassword` of RFC 5802: PBKDF2 of the normalised password.
fn salt_password(password: &str, salt: &[u8], iterations: u32) -> Result<Key> {
    let wrong = |why: &str| Error::new(ErrorCode::InvalidParameter, format!("the password {why}: choose another"));
    if password.is_empty() {
        return Err(wrong("is empty"));
    }
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(wrong("has more than 1,024 bytes"));
    }
    let prepared = stringprep::saslprep(password).map_err(|_| wrong("has characters that SASLprep forbids"))?;
    let prepared = Zeroizing::new(prepared.into_owned());
    let mut salted = Key::default();
    pbkdf2::pbkdf2_hmac::<Sha256>(prepared.as_bytes(), salt, iterations, &mut *salted);
    Ok(salted)
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // HMAC takes keys of every length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; 32] };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

fn equal(a: &[u8], b: &[u8]) -> bool {
    bool::from(a.ct_eq(b))
}

fn xor(a: &[u8; 32], b: &[u8; 32]) -> Key {
    let mut result = Key::default();
    for (result, (a, b)) in result.iter_mut().zip(a.iter().zip(b)) {
        *result = a ^ b;
    }
    result
}

/// A message that does not follow RFC 5802.
fn malformed(what: &str) -> Error {
    Error::new(ErrorCode::Protocol, format!("SCRAM: {what}"))
}

/// The one answer to everything that is wrong with who is asking.
fn refused() -> Error {
    Error::new(ErrorCode::Unauthenticated, "user or password is wrong")
}
