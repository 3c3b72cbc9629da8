//! What a session sends: a bounded queue of frames and the task that writes them to the socket.
//!
//! Owns [`Outbox`] (the senders' side) and [`write_frames`] (the task). Called by the session and its requests.
//!
//! Invariants
//! - At most [`FRAMES_QUEUED_MAX`] frames wait; senders wait for room, and take turns frame by frame. Which of them goes
//!   first is not said: what must stay in order has one sender.
//! - A payload of more than [`COALESCE_BYTES_MAX`] is never copied: its head is written, then the payload itself.
//! - Short frames that wait together are written together.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use futures_lite::AsyncWrite;
use glommio::channels::local_channel::{self, LocalReceiver, LocalSender};
use hidb::frame::{self, FrameKind};
use hidb::{Error, ErrorCode, Result};

use super::session::SharedStream;

/// Frames that may wait to be written.
pub const FRAMES_QUEUED_MAX: usize = 4;
/// A payload up to this size is written together with its head.
const COALESCE_BYTES_MAX: usize = 16 << 10;

enum Outgoing {
    Frame { head: Vec<u8>, payload: Bytes },
    Close,
}

/// Where frames go to be written, in order.
pub struct Outbox {
    queue: LocalSender<Outgoing>,
    progress: Rc<WriteProgress>,
}

/// What the heartbeat looks at to find a peer that does not read.
pub struct WriteProgress {
    /// When bytes last went out, or the current write began.
    pub last: Cell<Instant>,
    /// Whether a write waits for the peer.
    pub waiting: Cell<bool>,
}

/// The receiving side, for [`write_frames`].
pub struct Outgoings(LocalReceiver<Outgoing>);

impl Drop for Outgoings {
    /// glommio's senders wait while the queue is full, whether there is a receiver or not: it must not stay full.
    fn drop(&mut self) {
        while let Some(Some(_)) = self.0.recv().now_or_never() {}
    }
}

fn gone() -> Error {
    Error::new(ErrorCode::Unavailable, "the session was closed")
}

impl Outbox {
    /// A queue and its receiving side.
    pub fn new() -> (Self, Outgoings) {
        let (queue, receiver) = local_channel::new_bounded(FRAMES_QUEUED_MAX);
        let progress = Rc::new(WriteProgress { last: Cell::new(Instant::now()), waiting: Cell::new(false) });
        (Outbox { queue, progress }, Outgoings(receiver))
    }

    /// How writing goes.
    pub fn progress(&self) -> &Rc<WriteProgress> {
        &self.progress
    }

    /// Queues a message without payload; waits for room.
    pub async fn send(&self, kind: FrameKind, request_id: u64, body: &impl prost::Message) -> Result<()> {
        self.send_with_payload(kind, request_id, body, Bytes::new()).await
    }

    /// Queues a message with its payload; waits for room.
    pub async fn send_with_payload(
        &self,
        kind: FrameKind,
        request_id: u64,
        body: &impl prost::Message,
        payload: Bytes,
    ) -> Result<()> {
        let head = frame::encode_head(kind, request_id, body, payload.len(), frame::payload_crc(&payload))?;
        self.queue.send(Outgoing::Frame { head, payload }).await.map_err(|_| gone())
    }

    /// Queues a message if there is room now; says whether there was.
    pub fn try_send(&self, kind: FrameKind, request_id: u64, body: &impl prost::Message) -> bool {
        match frame::encode_head(kind, request_id, body, 0, frame::payload_crc(&[])) {
            Ok(head) => self.queue.try_send(Outgoing::Frame { head, payload: Bytes::new() }).is_ok(),
            Err(_) => false,
        }
    }

    /// Ends the connection once everything queued before has been written.
    pub async fn close(&self) {
        let _ = self.queue.send(Outgoing::Close).await;
    }
}

/// Writes what is queued until the session closes or the socket fails.
pub async fn write_frames(stream: SharedStream, outgoings: Outgoings, progress: Rc<WriteProgress>) -> io::Result<()> {
    let mut bytes = Vec::new();
    while let Some(outgoing) = outgoings.0.recv().await {
        let mut next = Some(outgoing);
        let mut last_payload = Bytes::new();
        let mut closes = false;
        while let Some(outgoing) = next.take() {
            match outgoing {
                Outgoing::Frame { head, payload } => {
                    bytes.extend_from_slice(&head);
                    if payload.len() > COALESCE_BYTES_MAX {
                        last_payload = payload;
                        break;
                    }
                    bytes.extend_from_slice(&payload);
                }
                Outgoing::Close => {
                    closes = true;
                    break;
                }
            }
            if bytes.len() < COALESCE_BYTES_MAX {
                next = outgoings.0.recv().now_or_never().flatten();
            }
        }
        progress.last.set(Instant::now());
        progress.waiting.set(true);
        write_all(&stream, &bytes, &progress).await?;
        write_all(&stream, &last_payload, &progress).await?;
        progress.waiting.set(false);
        bytes.clear();
        bytes.shrink_to(2 * COALESCE_BYTES_MAX);
        if closes {
            return Ok(());
        }
    }
    Ok(())
}

async fn write_all(stream: &SharedStream, mut bytes: &[u8], progress: &WriteProgress) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = poll_fn(|context| Pin::new(&mut *stream.borrow_mut()).poll_write(context, bytes)).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        progress.last.set(Instant::now());
        bytes = &bytes[written..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use glommio::LocalExecutor;
    use hidb::proto;

    use super::*;

    #[test]
    fn who_waits_for_room_learns_that_the_connection_is_gone() {
        LocalExecutor::default().run(async {
            let (outbox, outgoings) = Outbox::new();
            let outbox = Rc::new(outbox);
            for _ in 0..FRAMES_QUEUED_MAX {
                outbox.send(FrameKind::Done, 1, &proto::Done {}).await.unwrap();
            }
            let waiting = outbox.clone();
            let waiting =
                glommio::spawn_local(async move { waiting.send(FrameKind::Done, 1, &proto::Done {}).await }).detach();
            glommio::executor().yield_now().await;
            drop(outgoings);
            let sent = waiting.await.unwrap();
            assert_eq!(sent.unwrap_err().code, ErrorCode::Unavailable);
            assert!(outbox.send(FrameKind::Done, 1, &proto::Done {}).await.is_err());
        });
    }
}
