//! TLS 1.3 for HIDB connections, on rustls with ring.
//!
//! Owns [`Channel`] (the record layer without I/O, so that tokio and glommio can both drive it), the configurations of
//! both sides ([`config`]), a small certificate authority ([`authority`]), and files that hold secrets
//! ([`private_file`]). Called by the cell and by the client; calls only `hidb` (errors, the label of the channel
//! binding).
//!
//! Invariants
//! - Only TLS 1.3 is spoken. There are no tickets, no resumption and no early data, so that nothing can be replayed.
//! - No key is ever logged or printed; a file with a secret is made with mode 0600 and refused when others can read it.

pub mod authority;
pub mod certificate;
pub mod channel;
pub mod config;
pub mod private_file;

pub use channel::{Channel, explain};
pub use rustls::{ClientConfig, ServerConfig};

/// The first byte of a TLS connection (a handshake record), by which a cell tells it from a frame's `H`.
pub const FIRST_BYTE: u8 = 0x16;

/// The application protocol both sides name (ALPN), so that a connection meant for another service is not taken.
const ALPN: &[u8] = b"hidb/1";
