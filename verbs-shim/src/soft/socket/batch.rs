//! Many datagrams per system call: `recvmmsg` with joined segments, `sendmmsg` with segmentation.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::options::{RawAddress, UDP_GRO, UDP_SEGMENT};
use crate::soft::packet::PACKET_BYTES_MAX;

/// Bytes of one message at most: what an IPv4 datagram holds beside its headers.
const RUN_BYTES_MAX: usize = 65_507;
/// Segments of one message at most (`UDP_MAX_SEGMENTS` of kernels before 6.9).
const RUN_SEGMENTS_MAX: usize = 64;
/// Messages per call.
const RUNS_MAX: usize = 16;
/// Bytes that wait for one call. About what stays in the second-level cache.
const BATCH_BYTES: usize = 256 << 10;
const ARRIVAL_BYTES: usize = 65_536;
/// Room for one control message of one integer, aligned.
const CONTROL_BYTES: usize = 32;

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL_BYTES]);

/// Datagrams as they arrive, in buffers that are used again and again.
pub(super) struct Arrival {
    buffer: Box<[u8]>,
    messages: Box<[libc::mmsghdr]>,
    parts: Box<[libc::iovec]>,
    sources: Box<[RawAddress]>,
    controls: Box<[Control]>,
    /// Messages at the front that the last call filled: the kernel wrote lengths over what their headers say.
    filled: usize,
}

// SAFETY: the pointers inside point into the boxes beside them, which stay where they are.
unsafe impl Send for Arrival {}

impl Arrival {
    pub(super) fn new(count: usize) -> Box<Self> {
        // SAFETY: all zeros are valid values of these C structures.
        let (message, part) = unsafe { (zeroed::<libc::mmsghdr>(), zeroed::<libc::iovec>()) };
        let mut arrival = Box::new(Arrival {
            buffer: vec![0; count * ARRIVAL_BYTES].into(),
            messages: vec![message; count].into(),
            parts: vec![part; count].into(),
            sources: vec![RawAddress::empty(); count].into(),
            controls: vec![Control([0; CONTROL_BYTES]); count].into(),
            filled: 0,
        });
        arrival.prepare(count);
        arrival
    }

    /// Sets up the first `count` headers.
    fn prepare(&mut self, count: usize) {
        for (index, piece) in self.buffer.chunks_exact_mut(ARRIVAL_BYTES).take(count).enumerate() {
            self.parts[index] = libc::iovec { iov_base: piece.as_mut_ptr().cast(), iov_len: ARRIVAL_BYTES };
            let header = &mut self.messages[index].msg_hdr;
            header.msg_name = (&raw mut self.sources[index]).cast();
            header.msg_namelen = size_of::<RawAddress>() as libc::socklen_t;
            header.msg_iov = &raw mut self.parts[index];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut self.controls[index]).cast();
            header.msg_controllen = CONTROL_BYTES as _;
        }
    }

    /// Takes at most `most` datagrams. One costs a system call with nothing around it, for somebody who polls.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        let most = most.clamp(1, self.messages.len());
        let filled = std::mem::take(&mut self.filled);
        self.prepare(filled);
        let (socket, flags) = (socket.as_raw_fd(), libc::MSG_DONTWAIT);
        let first = self.messages.as_mut_ptr();
        let received = if most == 1 {
            // SAFETY: the message, and what it points to, are ours for as long as the call takes.
            let bytes = unsafe { libc::recvmsg(socket, &raw mut (*first).msg_hdr, flags) };
            self.messages[0].msg_len = bytes.max(0) as libc::c_uint;
            if bytes < 0 { -1 } else { 1 }
        } else {
            // SAFETY: as above; there are `most` messages.
            unsafe { libc::recvmmsg(socket, first, most as libc::c_uint, flags, std::ptr::null_mut()) }
        };
        if received < 0 {
            return Err(io::Error::last_os_error());
        }
        self.filled = received as usize;
        Ok(self.filled)
    }

    /// Bytes, source and segment size of a datagram of the last call.
    pub(super) fn datagram(&self, index: usize) -> (&[u8], Option<SocketAddr>, usize) {
        let message = &self.messages[index];
        let start = index * ARRIVAL_BYTES;
        let bytes = &self.buffer[start..start + (message.msg_len as usize).min(ARRIVAL_BYTES)];
        let segment = self.segment_bytes(index).unwrap_or(bytes.len());
        (bytes, self.sources[index].read(), segment)
    }

    /// The size of the segments that the kernel joined, all but the last: a control message with one integer.
    fn segment_bytes(&self, index: usize) -> Option<usize> {
        let filled = self.messages[index].msg_hdr.msg_controllen;
        let control = self.controls[index].0.get(..filled)?;
        // `struct cmsghdr`: length (8), level (4), type (4), then the data.
        let int = |at: usize| Some(i32::from_ne_bytes(control.get(at..at + 4)?.try_into().ok()?));
        (int(8)? == libc::SOL_UDP && int(12)? == UDP_GRO).then(|| int(16).unwrap_or(0).max(0) as usize)
    }
}

/// Packets of one size (the last may be shorter) to one destination, side by side in the batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) start: usize,
    pub(super) bytes: usize,
    pub(super) segment: usize,
    pub(super) destination: SocketAddr,
    /// Its last packet was shorter: nothing may follow.
    closed: bool,
}

/// Packets that wait for `sendmmsg`.
pub(crate) struct Transmission {
    buffer: Box<[u8]>,
    used: usize,
    runs: Vec<Run>,
    /// Runs that the kernel has taken.
    sent: usize,
    messages: Box<[libc::mmsghdr]>,
    parts: Box<[libc::iovec]>,
    addresses: Box<[RawAddress]>,
    controls: Box<[Control]>,
}

// SAFETY: as for `Arrival`.
unsafe impl Send for Transmission {}

impl Transmission {
    pub(crate) fn new() -> Self {
        // SAFETY: all zeros are valid values of these C structures.
        let (message, part) = unsafe { (zeroed::<libc::mmsghdr>(), zeroed::<libc::iovec>()) };
        Transmission {
            buffer: vec![0; BATCH_BYTES].into(),
            used: 0,
            runs: Vec::with_capacity(RUNS_MAX),
            sent: 0,
            messages: vec![message; RUNS_MAX].into(),
            parts: vec![part; RUNS_MAX].into(),
            addresses: vec![RawAddress::empty(); RUNS_MAX].into(),
            controls: vec![Control([0; CONTROL_BYTES]); RUNS_MAX].into(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sent == self.runs.len()
    }

    /// Where the next packet is to be written, [`PACKET_BYTES_MAX`] bytes at least; `None` when it is full.
    pub(crate) fn room(&mut self) -> Option<&mut [u8]> {
        if self.runs.len() == RUNS_MAX || self.buffer.len() - self.used < PACKET_BYTES_MAX {
            return None;
        }
        Some(&mut self.buffer[self.used..])
    }

    /// Adds the packet just written.
    pub(crate) fn push(&mut self, bytes: usize, destination: SocketAddr) {
        let start = self.used;
        self.used += bytes;
        if let Some(run) = self.runs.last_mut()
            && !run.closed
            && run.destination == destination
            && bytes <= run.segment
            && run.bytes + bytes <= RUN_BYTES_MAX
            && run.bytes / run.segment < RUN_SEGMENTS_MAX
        {
            run.bytes += bytes;
            run.closed = bytes < run.segment;
            return;
        }
        self.runs.push(Run { start, bytes, segment: bytes, destination, closed: false });
    }

    /// The next run that the kernel has not taken, and its packets.
    pub(super) fn next_waiting(&self) -> Option<(Run, &[u8])> {
        let run = *self.runs.get(self.sent)?;
        Some((run, &self.buffer[run.start..run.start + run.bytes]))
    }

    /// Notes that the kernel took `runs` more; forgets all once it has.
    pub(super) fn advance(&mut self, runs: usize) {
        self.sent += runs;
        if self.is_empty() {
            self.runs.clear();
            (self.sent, self.used) = (0, 0);
        }
    }

    /// Sends what waits, as far as the kernel takes it. With `offload` runs are messages, else packets; it is cleared when
    /// the kernel refuses a run whose packets it takes. How many packets the kernel refused for good: they are as if lost
    /// on the way.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>, offload: &mut bool) -> u64 {
        let mut refused = 0;
        while !self.is_empty() {
            let alone = self.runs.len() - self.sent == 1 && self.packets_of_next() == 1;
            let sent = if *offload && !alone { self.send_runs(socket) } else { self.send_run(socket) };
            let Err(error) = sent else { continue };
            match error.raw_os_error() {
                Some(libc::EAGAIN | libc::ENOBUFS | libc::EINTR) => break,
                // No segmentation on this path (no checksum offload below), or no way to this address at all.
                Some(libc::EIO | libc::EINVAL) if *offload && self.send_run(socket).is_ok() => {
                    *offload = false;
                    continue;
                }
                _ => {}
            }
            // Unreachable, down, forbidden, too long for the link now.
            refused += self.packets_of_next();
            self.advance(1);
        }
        refused
    }

    fn packets_of_next(&self) -> u64 {
        self.runs.get(self.sent).map_or(0, |run| run.bytes.div_ceil(run.segment.max(1)) as u64)
    }

    fn send_runs(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        {
            let count = self.runs.len() - self.sent;
            for (index, run) in self.runs[self.sent..].iter().enumerate() {
                let (address, length) = RawAddress::new(run.destination);
                self.addresses[index] = address;
                let base = self.buffer[run.start..].as_ptr().cast_mut().cast();
                self.parts[index] = libc::iovec { iov_base: base, iov_len: run.bytes };
                let header = &mut self.messages[index].msg_hdr;
                header.msg_name = (&raw mut self.addresses[index]).cast();
                header.msg_namelen = length;
                header.msg_iov = &raw mut self.parts[index];
                header.msg_iovlen = 1;
                if run.bytes > run.segment {
                    let control = &mut self.controls[index].0;
                    control[..8].copy_from_slice(&18u64.to_ne_bytes());
                    control[8..12].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
                    control[12..16].copy_from_slice(&UDP_SEGMENT.to_ne_bytes());
                    control[16..18].copy_from_slice(&(run.segment as u16).to_ne_bytes());
                    header.msg_control = control.as_mut_ptr().cast();
                    header.msg_controllen = 24;
                } else {
                    header.msg_control = std::ptr::null_mut();
                    header.msg_controllen = 0;
                }
            }
            let (socket, flags) = (socket.as_raw_fd(), libc::MSG_DONTWAIT);
            let first = self.messages.as_mut_ptr();
            let sent = if count == 1 {
                // SAFETY: the message, and what it points to, are ours for as long as the call takes.
                unsafe { libc::sendmsg(socket, &raw const (*first).msg_hdr, flags).min(1) as libc::c_int }
            } else {
                // SAFETY: as above; there are `count` messages.
                unsafe { libc::sendmmsg(socket, first, count as libc::c_uint, flags) }
            };
            if sent < 0 {
                return Err(io::Error::last_os_error());
            }
            self.advance(sent as usize);
        }
        Ok(())
    }

    /// Sends the next run, packet by packet. What of it is sent already when the kernel says "later" goes again: the peer
    /// drops duplicates.
    fn send_run(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let Some(&run) = self.runs.get(self.sent) else { return Ok(()) };
        let (address, length) = RawAddress::new(run.destination);
        for packet in self.buffer[run.start..run.start + run.bytes].chunks(run.segment) {
            // SAFETY: pointers and lengths are those of `packet` and `address`.
            let sent = unsafe {
                let address = (&raw const address).cast();
                let (bytes, flags) = (packet.as_ptr().cast(), libc::MSG_DONTWAIT);
                libc::sendto(socket.as_raw_fd(), bytes, packet.len(), flags, address, length)
            };
            if sent < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        self.advance(1);
        Ok(())
    }
}
