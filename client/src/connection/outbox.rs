//! Frames on their way to the cell over TCP.
//!
//! Owns [`Outbox`] and the task that writes what the socket did not take at once. Called by requests and loads.
//!
//! Invariant: the parts of a frame are queued next to each other, under one lock.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use hidb::Result;
use hidb::frame::{FrameKind, encode_head, payload_crc};
use prost::Message;

use super::{Connection, Shared, lock};
use crate::transport::Transport;

/// Load frames wait while more than this is queued for the socket.
const OUTBOX_BYTES_MAX: usize = 4 << 20;

#[derive(Default)]
pub(super) struct Outbox {
    queue: VecDeque<Bytes>,
    bytes: usize,
}

impl Outbox {
    /// Writes until the queue is empty, and what was taken from it is in the socket, or the socket is full.
    fn write_some(&mut self, transport: &Transport) -> io::Result<()> {
        while !self.queue.is_empty() {
            let slices: Vec<IoSlice<'_>> = self.queue.iter().take(16).map(|part| IoSlice::new(part)).collect();
            let mut written = transport.try_write_vectored(&slices)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.bytes -= written;
            while written > 0 {
                let Some(first) = self.queue.front_mut() else { break };
                let step = written.min(first.len());
                first.advance(step);
                written -= step;
                if first.is_empty() {
                    self.queue.pop_front();
                }
            }
        }
        transport.flush()
    }
}

impl Connection {
    /// Queues a frame with a payload that is not copied; waits while the socket is behind.
    pub(crate) async fn send_payload(
        &self,
        kind: FrameKind,
        request_id: u64,
        body: &impl Message,
        payload: Bytes,
    ) -> Result<()> {
        loop {
            let drained = self.shared.outbox_drained.notified();
            if let Some(error) = lock(&self.shared.failure).clone() {
                return Err(error);
            }
            if lock(&self.shared.outbox).bytes < OUTBOX_BYTES_MAX {
                break;
            }
            drained.await;
        }
        let head = encode_head(kind, request_id, body, payload.len(), payload_crc(&payload))?;
        self.shared.send_parts(head.into(), payload)
    }
}

impl Shared {
    pub(super) fn send(&self, frame: Bytes) -> Result<()> {
        self.send_parts(frame, Bytes::new())
    }

    /// Queues the parts of one frame; writes at once what the socket takes, so that a short request
    /// costs no switch of task.
    pub(super) fn send_parts(&self, head: Bytes, payload: Bytes) -> Result<()> {
        if let Some(error) = lock(&self.failure).clone() {
            return Err(error);
        }
        let mut outbox = lock(&self.outbox);
        let idle = outbox.queue.is_empty();
        for part in [head, payload] {
            if !part.is_empty() {
                outbox.bytes += part.len();
                outbox.queue.push_back(part);
            }
        }
        let mut rest = !idle;
        if idle {
            match outbox.write_some(&self.transport) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => rest = true,
                // The reader task meets the same failure and reports it to everyone.
                Err(_) => {}
            }
        }
        drop(outbox);
        if rest {
            self.outbox_filled.notify_one();
        }
        Ok(())
    }
}

pub(super) async fn write_frames(shared: Arc<Shared>) {
    loop {
        shared.outbox_filled.notified().await;
        loop {
            let outcome = {
                let mut outbox = lock(&shared.outbox);
                let outcome = outbox.write_some(&shared.transport);
                if outbox.bytes < OUTBOX_BYTES_MAX {
                    shared.outbox_drained.notify_waiters();
                }
                outcome
            };
            match outcome {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if shared.transport.writable().await.is_err() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The reader may still find the cell's own last word (an Error frame) in the socket; it
                // ends the connection when it meets the failure itself.
                Err(_) => return,
            }
        }
    }
}
