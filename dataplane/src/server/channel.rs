//! A session's connection on its core: plain, or TLS over the same socket.
//!
//! Owns [`Channel`], which reads and writes bytes as a socket does. Called by `session` and `outbox`.
//!
//! Invariants
//! - A write is ready when its bytes have gone to the kernel, encrypted or not; until then the caller repeats it with
//!   the same bytes. One task writes and one reads.
//! - Reading never sends: what TLS has to answer (a change of keys) leaves with the next write.
//!
//! Cost: with TLS a payload is encrypted 64 KiB at a time from the result image into records, which are sent from where
//! they are; nothing is copied before that.

use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::{FromRawFd, IntoRawFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_lite::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;

use super::setup_channel::Moving;

/// A session's connection.
pub enum Channel {
    /// Nothing between frames and socket.
    Plain(TcpStream),
    /// TLS between them.
    Tls(Box<TlsChannel>),
}

/// A connection with TLS.
pub struct TlsChannel {
    stream: TcpStream,
    tls: Box<heliostat_tls::Channel>,
    /// Bytes that the write under way has encrypted and not yet sent.
    accepted: usize,
}

impl Channel {
    /// Gives the connection to this core's glommio executor.
    pub fn adopt(moving: Moving) -> Self {
        // SAFETY: `into_raw_fd` gives up ownership of a valid, open socket, and `TcpStream` takes it over; nobody else
        // has this descriptor.
        let stream = unsafe { TcpStream::from_raw_fd(moving.stream.into_raw_fd()) };
        match moving.tls {
            None => Channel::Plain(stream),
            Some(tls) => Channel::Tls(Box::new(TlsChannel { stream, tls, accepted: 0 })),
        }
    }
}

/// A poll as the answer of a non-blocking call.
fn now<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => Err(ErrorKind::WouldBlock.into()),
    }
}

/// The answer of a non-blocking call as a poll: whoever said `WouldBlock` has registered the waker.
fn later<T>(outcome: io::Result<T>) -> Poll<io::Result<T>> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Poll::Pending,
        outcome => Poll::Ready(outcome),
    }
}

/// Sends the parts one after another, until the socket takes no more.
fn send(stream: &mut TcpStream, context: &mut Context<'_>, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    let mut sent = 0;
    for part in parts.iter().filter(|part| !part.is_empty()) {
        match now(Pin::new(&mut *stream).poll_write(context, part)) {
            Ok(count) => {
                sent += count;
                if count < part.len() {
                    break;
                }
            }
            Err(_) if sent > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

impl TlsChannel {
    fn flush(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        self.tls.flush(|parts| send(&mut self.stream, context, parts))
    }

    fn write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> io::Result<usize> {
        while self.accepted == 0 && !bytes.is_empty() {
            self.accepted = self.tls.write(bytes)?;
            if self.accepted == 0 {
                self.flush(context)?;
            }
        }
        self.flush(context)?;
        Ok(std::mem::take(&mut self.accepted))
    }
}

impl AsyncRead for Channel {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, target: &mut [u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Channel::Plain(stream) => Pin::new(stream).poll_read(context, target),
            Channel::Tls(channel) => {
                let TlsChannel { stream, tls, .. } = &mut **channel;
                later(tls.read(target, |target| now(Pin::new(&mut *stream).poll_read(context, target))))
            }
        }
    }
}

impl AsyncWrite for Channel {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Channel::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Channel::Tls(channel) => later(channel.write(context, bytes)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Channel::Plain(stream) => Pin::new(stream).poll_flush(context),
            Channel::Tls(channel) => later(channel.flush(context)),
        }
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Channel::Plain(stream) => Pin::new(stream).poll_close(context),
            Channel::Tls(channel) => {
                channel.tls.close();
                // A peer that does not read does not get the alert, which only says what the closed socket does.
                let _ = channel.flush(context);
                Pin::new(&mut channel.stream).poll_close(context)
            }
        }
    }
}
