//! The record layer of one connection, without I/O.
//!
//! Owns [`Channel`]: a rustls connection and the received bytes that it has not taken yet. The caller brings functions
//! that receive and send what a non-blocking socket takes; `WouldBlock` from them comes back as `WouldBlock`.
//!
//! Invariants
//! - A channel can move between threads at any time: all state is inside.
//! - Received bytes wait here only until the next read; an idle channel holds no buffer.
//! - What was accepted by [`Channel::write`] is sent before `flush` returns `Ok`.
//!
//! Cost: a written byte is encrypted from the caller's buffer into its record (one pass, at 2 to 5 GB/s) and sent from
//! there; a received one is decrypted in place and copied twice.

use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;

use hidb::auth::scram::{self, ExportedKey};
use hidb::session::seal::{self, LinkSecret};
use hidb::{Error, ErrorCode, Result};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

use crate::config;

/// Bytes received at a time: two records.
const RECEIVE_BYTES: usize = 32 << 10;

/// One side of a TLS connection.
pub struct Channel {
    connection: Connection,
    received: Box<[u8]>,
    start: usize,
    end: usize,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("is_handshaking", &self.connection.is_handshaking()).finish_non_exhaustive()
    }
}

struct Sender<F>(F);

impl<F: FnMut(&[IoSlice<'_>]) -> io::Result<usize>> Write for Sender<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.0)(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        (self.0)(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl Channel {
    /// The cell's side.
    ///
    /// # Errors
    /// `Internal` when rustls does not take its configuration.
    pub fn accept(config: Arc<ServerConfig>) -> Result<Self> {
        let connection = ServerConnection::new(config)
            .map_err(|error| Error::new(ErrorCode::Internal, format!("TLS can't start: {error}")))?;
        Ok(Self::over(connection.into()))
    }

    /// The client's side; the cell's certificate must be for `host`, a name or an IP address.
    ///
    /// # Errors
    /// `InvalidParameter` when `host` is neither.
    pub fn connect(config: Arc<ClientConfig>, host: &str) -> Result<Self> {
        let invalid = |why: &dyn std::fmt::Display| {
            Error::new(ErrorCode::InvalidParameter, format!("{host:?} can't be the name of a cell: {why}"))
        };
        let name = ServerName::try_from(host.to_string()).map_err(|error| invalid(&error))?;
        let connection = ClientConnection::new(config, name).map_err(|error| invalid(&error))?;
        Ok(Self::over(connection.into()))
    }

    fn over(connection: Connection) -> Self {
        Channel { connection, received: Box::default(), start: 0, end: 0 }
    }

    /// Whether the handshake goes on: flush, then [`Channel::take_in`].
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Whether there are bytes for [`Channel::flush`] to send.
    pub fn wants_flush(&self) -> bool {
        self.connection.wants_write()
    }

    /// Receives once, and takes in what came.
    ///
    /// # Errors
    /// Those of `receive`; `InvalidData` for what is not TLS or not from the peer (flush once more then: the peer
    /// gets an alert); `UnexpectedEof` when the peer closes during the handshake.
    pub fn take_in(&mut self, receive: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<()> {
        if self.start == self.end {
            if self.received.is_empty() {
                self.received = vec![0; RECEIVE_BYTES].into_boxed_slice();
            }
            match receive(&mut self.received) {
                Ok(count) => (self.start, self.end) = (0, count),
                Err(error) => {
                    self.received = Box::default();
                    (self.start, self.end) = (0, 0);
                    return Err(error);
                }
            }
            if self.end == 0 && self.connection.is_handshaking() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let taken = self.connection.read_tls(&mut &self.received[self.start..self.end])?;
        self.start += taken;
        self.connection.process_new_packets().map_err(broken)?;
        Ok(())
    }

    /// Reads decrypted bytes, receiving as long as there are none; 0 when the peer has closed.
    ///
    /// # Errors
    /// Those of [`Channel::take_in`]; `UnexpectedEof` when the connection ended without the peer saying so.
    pub fn read(
        &mut self,
        target: &mut [u8],
        mut receive: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            match self.connection.reader().read(target) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.take_in(&mut receive)?,
                outcome => return outcome,
            }
        }
    }

    /// Encrypts the front of `plain`; gives how much, 0 when so much waits already that it must be flushed first.
    ///
    /// # Errors
    /// Never in practice: memory is all it needs.
    pub fn write(&mut self, plain: &[u8]) -> io::Result<usize> {
        self.connection.writer().write(plain)
    }

    /// Sends what was encrypted.
    ///
    /// # Errors
    /// Those of `send`; the rest stays and is sent by the next call.
    pub fn flush(&mut self, mut send: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>) -> io::Result<()> {
        while self.connection.wants_write() {
            if self.connection.write_tls(&mut Sender(&mut send))? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    /// Says that nothing more will be written; flush afterwards.
    pub fn close(&mut self) {
        self.connection.send_close_notify();
    }

    /// What both sides of this connection, and nobody else, can compute (RFC 9266): binds a password to the connection.
    ///
    /// # Errors
    /// `Internal` before the handshake is over.
    pub fn exported_key(&self) -> Result<ExportedKey> {
        self.export(scram::EXPORTER_LABEL)
    }

    /// What the keys of the session's RDMA links are derived from.
    ///
    /// # Errors
    /// `Internal` before the handshake is over.
    pub fn link_secret(&self) -> Result<LinkSecret> {
        self.export(seal::EXPORTER_LABEL).map(LinkSecret::new)
    }

    fn export(&self, label: &[u8]) -> Result<[u8; 32]> {
        self.connection
            .export_keying_material([0; 32], label, Some(&[]))
            .map_err(|error| Error::new(ErrorCode::Internal, format!("TLS exports no key: {error}")))
    }

    /// The common name in the peer's certificate, which was checked against the authority; `None` without certificate.
    ///
    /// # Errors
    /// `Unauthenticated` when the certificate has not exactly one common name.
    pub fn peer_common_name(&self) -> Result<Option<String>> {
        let certificate = self.connection.peer_certificates().and_then(|chain| chain.first());
        certificate.map(|certificate| config::common_name(certificate)).transpose()
    }
}

/// What an error of a channel means to a client, when it is TLS that failed and not the network.
pub fn explain(error: &io::Error) -> Option<Error> {
    use rustls::AlertDescription as Alert;
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let (code, message) = match error {
        rustls::Error::InvalidCertificate(why) => (
            ErrorCode::Unauthenticated,
            format!("the cell's certificate is not accepted ({why:?}): it is not the cell of these credentials, or the credentials are out of date"),
        ),
        rustls::Error::AlertReceived(
            alert @ (Alert::BadCertificate
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::UnsupportedCertificate
            | Alert::UnknownCA
            | Alert::CertificateRequired
            | Alert::DecryptError
            | Alert::AccessDenied),
        ) => (ErrorCode::Unauthenticated, format!("the cell does not accept the client's certificate ({alert:?})")),
        rustls::Error::InvalidMessage(_) => (
            ErrorCode::Protocol,
            "what answers there does not speak TLS: a cell without certificate is reached with hidb+plain:// on its own machine".into(),
        ),
        other => (ErrorCode::Protocol, format!("TLS failed: {other}")),
    };
    Some(Error::new(code, message))
}
