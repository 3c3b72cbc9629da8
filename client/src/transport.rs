//! The socket under a connection, plain or TLS, as the reader task and the senders share it.
//!
//! Owns [`Transport`]. Called by the connection and its frame receiver.
//!
//! Invariants
//! - Calls are non-blocking; after `WouldBlock` the caller waits with [`Transport::readable`] or
//!   [`Transport::writable`].
//! - What [`Transport::try_write_vectored`] took may still wait here, encrypted, until [`Transport::flush`] says `Ok`.
//!
//! Cost: with TLS one lock per call, held for the decryption of one record (16 KiB, some 5 us) or the encryption of up
//! to 64 KiB.

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use heliostat_tls::Channel;
use hidb::auth::scram::ExportedKey;
use hidb::session::seal::LinkSecret;
use hidb::{Error, ErrorCode, Result};
use tokio::net::TcpStream;

/// A connected socket.
pub(crate) struct Transport {
    stream: TcpStream,
    tls: Option<Mutex<Channel>>,
}

/// An error of the transport as the caller sees it.
pub(crate) fn lost(error: io::Error) -> Error {
    heliostat_tls::explain(&error).unwrap_or_else(|| {
        Error::new(ErrorCode::Unavailable, format!("the connection to the cell was lost: {error}: try again"))
    })
}

fn lock(tls: &Mutex<Channel>) -> MutexGuard<'_, Channel> {
    tls.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Transport {
    /// A socket without TLS.
    pub(crate) fn plain(stream: TcpStream) -> Self {
        Transport { stream, tls: None }
    }

    /// A socket over which TLS is set up now.
    pub(crate) async fn with_tls(stream: TcpStream, mut tls: Channel) -> Result<Self> {
        loop {
            match tls.flush(|parts| stream.try_write_vectored(parts)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    stream.writable().await.map_err(lost)?;
                    continue;
                }
                outcome => outcome.map_err(lost)?,
            }
            if !tls.is_handshaking() {
                return Ok(Transport { stream, tls: Some(Mutex::new(tls)) });
            }
            match tls.take_in(|target| stream.try_read(target)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.readable().await.map_err(lost)?,
                Err(error) => {
                    // The alert that says why; whether it gets there changes nothing here.
                    let _ = tls.flush(|parts| stream.try_write_vectored(parts));
                    return Err(lost(error));
                }
                Ok(()) => {}
            }
        }
    }

    /// What TLS exports; `None` without TLS.
    pub(crate) fn exported_key(&self) -> Result<Option<ExportedKey>> {
        self.tls.as_ref().map(|tls| lock(tls).exported_key()).transpose()
    }

    /// What the keys of links come from; `None` without TLS.
    pub(crate) fn link_secret(&self) -> Result<Option<LinkSecret>> {
        self.tls.as_ref().map(|tls| lock(tls).link_secret()).transpose()
    }

    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.stream.readable().await
    }

    pub(crate) async fn writable(&self) -> io::Result<()> {
        self.stream.writable().await
    }

    pub(crate) fn try_read(&self, target: &mut [u8]) -> io::Result<usize> {
        match &self.tls {
            None => self.stream.try_read(target),
            Some(tls) => lock(tls).read(target, |target| self.stream.try_read(target)),
        }
    }

    /// Fills the slices in order.
    pub(crate) fn try_read_vectored(&self, targets: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let Some(tls) = &self.tls else { return self.stream.try_read_vectored(targets) };
        let mut tls = lock(tls);
        let mut filled = 0;
        for target in targets.iter_mut().filter(|target| !target.is_empty()) {
            // Only the first bytes are worth a system call.
            let receive = |target: &mut [u8]| match filled {
                0 => self.stream.try_read(target),
                _ => Err(io::ErrorKind::WouldBlock.into()),
            };
            match tls.read(target, receive) {
                Ok(count) => {
                    filled += count;
                    if count < target.len() {
                        break;
                    }
                }
                Err(_) if filled > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    /// Takes bytes from the front of the parts; gives how many.
    pub(crate) fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(tls) = &self.tls else { return self.stream.try_write_vectored(parts) };
        let mut tls = lock(tls);
        let mut send = |parts: &[IoSlice<'_>]| self.stream.try_write_vectored(parts);
        tls.flush(&mut send)?;
        let mut taken = 0;
        for part in parts {
            let count = tls.write(part)?;
            taken += count;
            if count < part.len() {
                break;
            }
        }
        match tls.flush(&mut send) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    /// Sends what was taken; `WouldBlock` when the socket is full before that.
    pub(crate) fn flush(&self) -> io::Result<()> {
        match &self.tls {
            None => Ok(()),
            Some(tls) => lock(tls).flush(|parts| self.stream.try_write_vectored(parts)),
        }
    }

    /// Writes everything.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> Result<()> {
        loop {
            let outcome = match bytes {
                [] => self.flush().map(|()| 0),
                bytes => self.try_write_vectored(&[IoSlice::new(bytes)]),
            };
            match outcome {
                Ok(_) if bytes.is_empty() => return Ok(()),
                Ok(0) => return Err(lost(io::ErrorKind::WriteZero.into())),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await.map_err(lost)?,
                Err(error) => return Err(lost(error)),
            }
        }
    }
}
