//! A connection on the control thread, from accept to its move to a core: plain, or TLS.
//!
//! Owns [`SetupChannel`]. Called by `accept` and `authenticate`.
//!
//! Invariants
//! - Bytes that were received and not read yet move to the core with the connection ([`Moving`]).
//! - Whatever fails, the peer gets the alert or the error that says why, if it still listens.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use heliostat_tls::{Channel, ServerConfig};
use hidb::auth::scram::ExportedKey;
use hidb::frame::{Frame, FrameDecoder, FrameKind, encode_frame};
use hidb::session::seal::LinkSecret;
use hidb::{Error, ErrorCode, Result, convert};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// The longest frame of a client that has not shown who it is: header excepted.
const FRAME_BYTES_MAX: usize = 64 << 10;
/// How long a refused peer has to read why.
const FAREWELL: Duration = Duration::from_secs(1);

/// A connection that is being set up.
pub struct SetupChannel {
    stream: TcpStream,
    tls: Option<Box<Channel>>,
}

/// A connection on its way to a core.
pub struct Moving {
    /// The socket, non-blocking.
    pub stream: std::net::TcpStream,
    /// The state of its TLS, with what was received already.
    pub tls: Option<Box<Channel>>,
}

impl SetupChannel {
    /// A connection without TLS.
    pub fn plain(stream: TcpStream) -> Self {
        SetupChannel { stream, tls: None }
    }

    /// Shakes hands over TLS.
    ///
    /// # Errors
    /// What the handshake fails of, as text for the log; the peer has got its alert.
    pub async fn accept_tls(stream: TcpStream, config: Arc<ServerConfig>) -> std::result::Result<Self, String> {
        let tls = Channel::accept(config).map_err(|error| error.to_string())?;
        let mut channel = SetupChannel { stream, tls: Some(Box::new(tls)) };
        match channel.shake_hands().await {
            Ok(()) => Ok(channel),
            Err(error) => {
                let _ = tokio::time::timeout(FAREWELL, async {
                    channel.flush().await?;
                    channel.stream.shutdown().await?;
                    channel.discard().await
                })
                .await;
                Err(error.to_string())
            }
        }
    }

    async fn shake_hands(&mut self) -> io::Result<()> {
        loop {
            self.flush().await?;
            let Some(tls) = &mut self.tls else { return Ok(()) };
            if !tls.is_handshaking() {
                return Ok(());
            }
            match tls.take_in(|target| self.stream.try_read(target)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.stream.readable().await?,
                outcome => outcome?,
            }
        }
    }

    /// Whether there is TLS.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// What TLS exports; `None` without TLS.
    ///
    /// # Errors
    /// `Internal`.
    pub fn exported_key(&self) -> Result<Option<ExportedKey>> {
        self.tls.as_ref().map(|tls| tls.exported_key()).transpose()
    }

    /// What the keys of links come from; `None` without TLS.
    ///
    /// # Errors
    /// `Internal`.
    pub fn link_secret(&self) -> Result<Option<LinkSecret>> {
        self.tls.as_ref().map(|tls| tls.link_secret()).transpose()
    }

    /// The user in the peer's certificate, if it showed one.
    ///
    /// # Errors
    /// `Unauthenticated`.
    pub fn peer_common_name(&self) -> Result<Option<String>> {
        self.tls.as_ref().map_or(Ok(None), |tls| tls.peer_common_name())
    }

    async fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        loop {
            let outcome = match &mut self.tls {
                None => self.stream.try_read(target),
                Some(tls) => tls.read(target, |target| self.stream.try_read(target)),
            };
            match outcome {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.stream.readable().await?,
                outcome => return outcome,
            }
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        loop {
            match tls.flush(|parts| self.stream.try_write_vectored(parts)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.stream.writable().await?,
                outcome => return outcome,
            }
        }
    }

    /// Writes everything.
    ///
    /// # Errors
    /// The socket's.
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if self.tls.is_none() {
            return self.stream.write_all(bytes).await;
        }
        while let Some(tls) = self.tls.as_mut().filter(|_| !bytes.is_empty()) {
            let count = tls.write(bytes)?;
            bytes = &bytes[count..];
            self.flush().await?;
        }
        Ok(())
    }

    /// Reads exactly one frame: what a fast client sends behind it stays for the core. `None` when the peer went away.
    ///
    /// # Errors
    /// What is wrong with the frame.
    pub async fn read_frame(&mut self) -> Result<Option<Frame>> {
        let mut decoder = FrameDecoder::new();
        loop {
            match self.read(decoder.space()).await {
                Ok(0) | Err(_) => return Ok(None),
                Ok(count) => {
                    if let Some(frame) = decoder.advance(count)? {
                        return Ok(Some(frame));
                    }
                    if decoder.space().len().max(decoder.payload_missing()) > FRAME_BYTES_MAX {
                        let message =
                            format!("a frame of more than {FRAME_BYTES_MAX} bytes before the handshake is over");
                        return Err(Error::new(ErrorCode::LimitExceeded, message));
                    }
                }
            }
        }
    }

    /// Says why and closes, leaving the peer a moment to read it.
    pub async fn refuse(mut self, error: &Error) {
        let Ok(bytes) = encode_frame(FrameKind::Error, 0, &convert::error_to_proto(error), &[]) else { return };
        let _ = tokio::time::timeout(FAREWELL, async {
            self.write_all(&bytes).await?;
            if let Some(tls) = &mut self.tls {
                tls.close();
            }
            self.flush().await?;
            self.stream.shutdown().await?;
            self.discard().await
        })
        .await;
    }

    /// Unread input would turn the close into a reset, which could overtake the last word.
    async fn discard(&mut self) -> io::Result<()> {
        let mut discarded = [0; 4096];
        loop {
            self.stream.readable().await?;
            match self.stream.try_read(&mut discarded) {
                Ok(0) => return Ok(()),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
    }

    /// Lets go of the control thread.
    ///
    /// # Errors
    /// The runtime's.
    pub fn leave(self) -> io::Result<Moving> {
        Ok(Moving { stream: self.stream.into_std()?, tls: self.tls })
    }
}
