//! Reading and writing the messages of SCRAM (RFC 5802, section 7).
//!
//! Called by both sides. Every function takes untrusted bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::{MESSAGE_BYTES_MAX, malformed};
use crate::error::Result;

/// What a client says about binding the exchange to the channel under it (`gs2-cbind-flag`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindingFlag<'a> {
    /// `n`: the client does not bind.
    None,
    /// `y`: the client would bind, but believes that the server can't.
    ServerCannot,
    /// `p=NAME`: the client binds, in the way of this name.
    Named(&'a str),
}

/// `client-first-message`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFirst<'a> {
    /// What it says about binding.
    pub flag: BindingFlag<'a>,
    /// `gs2-header`, which the client's last message repeats.
    pub header: &'a str,
    /// `client-first-message-bare`.
    pub bare: &'a str,
    /// Who is asking, unescaped.
    pub user: String,
    /// The client's nonce.
    pub nonce: &'a str,
}

/// `server-first-message`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFirst<'a> {
    /// Both nonces.
    pub nonce: &'a str,
    /// The salt of the password.
    pub salt: Vec<u8>,
    /// How often it is hashed.
    pub iterations: u32,
}

/// `client-final-message`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFinal<'a> {
    /// `c=`: the header and the channel's key.
    pub binding: Vec<u8>,
    /// Both nonces.
    pub nonce: &'a str,
    /// Everything but the proof, which the proof is about.
    pub without_proof: &'a str,
    /// The proof.
    pub proof: Vec<u8>,
}

fn text(bytes: &[u8]) -> Result<&str> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(malformed("a message is too long"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| malformed("a message is not UTF-8"))?;
    if text.contains('\0') { Err(malformed("a message has a NUL")) } else { Ok(text) }
}

fn attribute(part: Option<&str>, name: char) -> Result<&str> {
    part.and_then(|part| part.strip_prefix(name)?.strip_prefix('='))
        .ok_or_else(|| malformed(&format!("a message lacks `{name}=` where it must be")))
}

fn nonce(part: Option<&str>) -> Result<&str> {
    let nonce = attribute(part, 'r')?;
    let printable = |letter: char| ('\x21'..='\x7e').contains(&letter);
    if nonce.is_empty() || !nonce.chars().all(printable) {
        return Err(malformed("a nonce is empty or has characters that may not be in it"));
    }
    Ok(nonce)
}

/// Bytes as they are written in messages.
pub fn encode(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

fn decode(text: &str) -> Result<Vec<u8>> {
    BASE64.decode(text).map_err(|_| malformed("a value is not base64"))
}

/// A user's name as it is written in messages: `=` and `,` escaped.
pub fn escape(user: &str) -> String {
    user.replace('=', "=3D").replace(',', "=2C")
}

fn unescape(name: &str) -> Result<String> {
    let mut plain = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.find('=') {
        plain.push_str(&rest[..at]);
        plain.push(match rest.get(at..at + 3) {
            Some("=2C") => ',',
            Some("=3D") => '=',
            _ => return Err(malformed("the user's name has a stray `=`")),
        });
        rest = &rest[at + 3..];
    }
    plain.push_str(rest);
    Ok(plain)
}

impl<'a> ClientFirst<'a> {
    /// Takes the message apart.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let text = text(bytes)?;
        let mut parts = text.splitn(3, ',');
        let flag = match parts.next() {
            Some("n") => BindingFlag::None,
            Some("y") => BindingFlag::ServerCannot,
            Some(other) => BindingFlag::Named(attribute(Some(other), 'p')?),
            None => return Err(malformed("the first message is empty")),
        };
        // Acting for somebody else is not something a cell knows.
        match parts.next() {
            Some("") => {}
            Some(_) => return Err(malformed("an authorization identity (`a=`) is not supported")),
            None => return Err(malformed("the first message is cut short")),
        }
        let bare = parts.next().ok_or_else(|| malformed("the first message is cut short"))?;
        let header = &text[..text.len() - bare.len()];
        let mut parts = bare.split(',');
        let first = parts.next();
        if first.is_some_and(|first| first.starts_with("m=")) {
            return Err(malformed("a mandatory extension (`m=`) is not supported"));
        }
        let user = unescape(attribute(first, 'n')?)?;
        let nonce = nonce(parts.next())?;
        Ok(ClientFirst { flag, header, bare, user, nonce })
    }
}

impl<'a> ServerFirst<'a> {
    /// Takes the message apart.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let mut parts = text(bytes)?.split(',');
        let first = parts.next();
        if first.is_some_and(|first| first.starts_with("m=")) {
            return Err(malformed("a mandatory extension (`m=`) is not supported"));
        }
        let nonce = nonce(first)?;
        let salt = decode(attribute(parts.next(), 's')?)?;
        let iterations = attribute(parts.next(), 'i')?;
        let iterations = iterations.parse().map_err(|_| malformed("the number of iterations is none"))?;
        Ok(ServerFirst { nonce, salt, iterations })
    }
}

impl<'a> ClientFinal<'a> {
    /// Takes the message apart.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let text = text(bytes)?;
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or_else(|| malformed("the proof is missing"))?;
        let mut parts = without_proof.split(',');
        let binding = decode(attribute(parts.next(), 'c')?)?;
        let nonce = nonce(parts.next())?;
        Ok(ClientFinal { binding, nonce, without_proof, proof: decode(proof)? })
    }
}

/// The signature in `server-final-message`.
pub fn parse_server_final(bytes: &[u8]) -> Result<Vec<u8>> {
    decode(attribute(text(bytes)?.split(',').next(), 'v')?)
}
