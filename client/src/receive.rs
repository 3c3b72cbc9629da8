//! Reads frames off a socket, payloads straight into the memory they stay in.
//!
//! Owns [`FrameReceiver`] and the pool of payload buffers. Called by the connection's reader task.
//!
//! Invariants
//! - A payload starts at a 64-byte boundary, so that a record batch can borrow it.
//! - Nothing is allocated for a frame before its header was checked against the limits.
//! - Both checksums of a frame were compared before the frame is handed on.
//!
//! Cost: a 1 MiB result frame is one checksum pass (about 60 us) and the kernel's copy (about 400 us); the
//! bytes that arrive together with a header (at most 32 KiB) are copied once more. Payload buffers are
//! reused: fresh ones would cost 256 page faults each.

use std::io::{self, IoSliceMut};
use std::sync::{Arc, Mutex, Weak};

use arrow_buffer::MutableBuffer;
use bytes::Bytes;
use hidb::frame::{FRAME_BYTES_MAX, Frame, HEADER_BYTES, parse_header};
use hidb::{Error, ErrorCode, Result};

use crate::transport::{Transport, lost};

/// Headers and bodies are read through a buffer of this size, so that small frames cost one system call.
const STAGING_BYTES: usize = 32 << 10;

/// Payloads of at least this size are kept for reuse.
const POOLED_BYTES_MIN: usize = 64 << 10;

/// The most payload memory kept for reuse by one connection.
const POOL_BYTES_MAX: usize = 64 << 20;

/// Frames read in a row before other tasks of the thread get a turn.
const FRAMES_PER_TURN: u32 = 8;

/// Payload buffers that came back, by size class (powers of two).
#[derive(Debug, Default)]
struct BufferPool {
    free: Mutex<Vec<Vec<MutableBuffer>>>,
}

impl BufferPool {
    fn class(bytes: usize) -> usize {
        bytes.next_power_of_two().trailing_zeros() as usize
    }

    fn take(self: &Arc<Self>, bytes: usize) -> PayloadBuffer {
        if bytes < POOLED_BYTES_MIN {
            let memory = MutableBuffer::from_len_zeroed(bytes);
            return PayloadBuffer { memory, length: bytes, pool: Weak::new() };
        }
        let class = Self::class(bytes);
        let reused = self
            .free
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .get_mut(class)
            .and_then(|buffers| buffers.pop());
        let memory = reused.unwrap_or_else(|| MutableBuffer::from_len_zeroed(1 << class));
        PayloadBuffer { memory, length: bytes, pool: Arc::downgrade(self) }
    }

    fn give_back(&self, memory: MutableBuffer) {
        let class = Self::class(memory.len());
        let mut free = self.free.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let held: usize = free.iter().flatten().map(MutableBuffer::len).sum();
        if held + memory.len() > POOL_BYTES_MAX {
            return;
        }
        if free.len() <= class {
            free.resize_with(class + 1, Vec::new);
        }
        free[class].push(memory);
    }
}

/// Memory of one payload; goes back to its pool when the last `Bytes` over it is dropped.
struct PayloadBuffer {
    memory: MutableBuffer,
    length: usize,
    pool: Weak<BufferPool>,
}

impl AsRef<[u8]> for PayloadBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory.as_slice()[..self.length]
    }
}

impl AsMut<[u8]> for PayloadBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.memory.as_slice_mut()[..self.length]
    }
}

impl Drop for PayloadBuffer {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.give_back(std::mem::replace(&mut self.memory, MutableBuffer::new(0)));
        }
    }
}

/// Takes frames off one socket.
pub(crate) struct FrameReceiver {
    transport: Arc<Transport>,
    staging: Box<[u8]>,
    start: usize,
    end: usize,
    pool: Arc<BufferPool>,
    frames_this_turn: u32,
}

fn closed() -> Error {
    Error::new(ErrorCode::Unavailable, "the cell closed the connection: see its log, and try again")
}

impl FrameReceiver {
    pub(crate) fn new(transport: Arc<Transport>) -> Self {
        FrameReceiver {
            transport,
            staging: vec![0; STAGING_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            pool: Arc::default(),
            frames_this_turn: 0,
        }
    }

    /// The next frame, both checksums compared. Dropping the future loses bytes: the caller must not.
    pub(crate) async fn next(&mut self) -> Result<Frame> {
        self.frames_this_turn += 1;
        if self.frames_this_turn >= FRAMES_PER_TURN {
            self.frames_this_turn = 0;
            tokio::task::yield_now().await;
        }
        while self.end - self.start < HEADER_BYTES {
            self.fill().await?;
        }
        let mut bytes = [0; HEADER_BYTES];
        bytes.copy_from_slice(&self.staging[self.start..self.start + HEADER_BYTES]);
        let header = parse_header(&bytes)?;
        self.start += HEADER_BYTES;
        let (body_bytes, payload_bytes) = (header.body_len as usize, header.payload_len as usize);
        if HEADER_BYTES + body_bytes + payload_bytes > FRAME_BYTES_MAX {
            return Err(Error::new(
                ErrorCode::LimitExceeded,
                format!("the cell sent a frame of {} bytes, over the limit", body_bytes + payload_bytes),
            ));
        }
        let mut body = vec![0; body_bytes];
        self.read_exact(&mut body).await?;
        let mut payload = self.pool.take(payload_bytes);
        self.read_exact(payload.as_mut()).await?;
        header.check(&body, payload.as_ref())?;
        let payload = if payload_bytes == 0 { Bytes::new() } else { Bytes::from_owner(payload) };
        Ok(Frame { kind: header.kind, request_id: header.request_id, body: body.into(), payload })
    }

    /// Fills `target` from what was staged, then from the socket; what arrives beyond it is staged.
    async fn read_exact(&mut self, target: &mut [u8]) -> Result<()> {
        let staged = target.len().min(self.end - self.start);
        target[..staged].copy_from_slice(&self.staging[self.start..self.start + staged]);
        self.start += staged;
        let mut filled = staged;
        while filled < target.len() {
            let rest = target.len() - filled;
            let attempt = {
                let mut slices = [IoSliceMut::new(&mut target[filled..]), IoSliceMut::new(&mut self.staging)];
                self.transport.try_read_vectored(&mut slices)
            };
            match attempt {
                Ok(0) => return Err(closed()),
                Ok(read) => {
                    filled += read.min(rest);
                    (self.start, self.end) = (0, read.saturating_sub(rest));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.frames_this_turn = 0;
                    self.transport.readable().await.map_err(lost)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(lost(error)),
            }
        }
        Ok(())
    }

    async fn fill(&mut self) -> Result<()> {
        self.staging.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        loop {
            match self.transport.try_read(&mut self.staging[self.end..]) {
                Ok(0) => return Err(closed()),
                Ok(read) => {
                    self.end += read;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.frames_this_turn = 0;
                    self.transport.readable().await.map_err(lost)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(lost(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hidb::frame::{FrameKind, encode_frame};
    use hidb::proto;
    use rand::{Rng, SeedableRng};
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpStream;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (a, b) = tokio::join!(TcpStream::connect(address), listener.accept());
        (a.unwrap(), b.unwrap().0)
    }

    #[tokio::test]
    async fn frames_cut_anywhere_arrive_whole_and_aligned() {
        let (mut sender, receiver) = pair().await;
        let mut random = rand::rngs::StdRng::seed_from_u64(7);
        let payloads: Vec<Vec<u8>> = [0, 1, 63, 5_000, 70_000, 900_000, 0, 300_000, 10, 1_000_000]
            .iter()
            .map(|length| (0..*length).map(|_| random.random()).collect())
            .collect();
        let mut wire = Vec::new();
        for (index, payload) in payloads.iter().enumerate() {
            let body = proto::Heartbeat { nonce: index as u64, reply: false };
            wire.extend(encode_frame(FrameKind::Heartbeat, index as u64, &body, payload).unwrap());
        }
        let writer = tokio::spawn(async move {
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                let cut = random.random_range(1..=rest.len().min(100_000));
                sender.write_all(&rest[..cut]).await.unwrap();
                rest = &rest[cut..];
                tokio::task::yield_now().await;
            }
        });
        let mut frames = FrameReceiver::new(Arc::new(Transport::plain(receiver)));
        for (index, payload) in payloads.iter().enumerate() {
            let frame = frames.next().await.unwrap();
            assert_eq!(frame.request_id, index as u64);
            assert_eq!(&frame.payload[..], &payload[..]);
            assert!(payload.is_empty() || (frame.payload.as_ptr() as usize).is_multiple_of(64));
        }
        writer.await.unwrap();
        assert_eq!(frames.next().await.unwrap_err().code, ErrorCode::Unavailable);
    }

    #[tokio::test]
    async fn a_flipped_bit_in_a_payload_is_corruption() {
        let (mut sender, receiver) = pair().await;
        let body = proto::Heartbeat { nonce: 1, reply: false };
        let mut wire = encode_frame(FrameKind::Heartbeat, 1, &body, &[7; 1000]).unwrap();
        let last = wire.len() - 1;
        wire[last] ^= 1;
        sender.write_all(&wire).await.unwrap();
        let error = FrameReceiver::new(Arc::new(Transport::plain(receiver))).next().await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Corruption);
    }

    #[tokio::test]
    async fn payload_memory_is_reused_once_dropped() {
        let pool: Arc<BufferPool> = Arc::default();
        let first = pool.take(100_000);
        let address = first.as_ref().as_ptr();
        drop(Bytes::from_owner(first));
        assert_eq!(pool.take(110_000).as_ref().as_ptr(), address);
    }
}
