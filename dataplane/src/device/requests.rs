//! The requests of a ring and their pieces, without its system calls.
//!
//! Owns [`State`]: what waits, what is in the kernel, and what a completion means. Used by [`super::ring`] only, which
//! makes the submissions and reaps the completions.
//!
//! Invariants:
//! - A request completes once, when all its pieces have; the first failure is the one it reports.
//! - Short transfers and interruptions go on with the rest of the piece, ahead of what waits.
//! - NVMe commands that the drive or its driver says may be tried again are, after a pause in which a drive that is being
//!   reset comes back: for passthrough the kernel does not do what it does below the block layer.

use std::{collections::VecDeque, task::Waker};

use io_uring::{opcode, squeue, types};

use super::{
    AlignedBuf,
    nvme::{Addressing, COMMAND_BYTES, NVME_URING_CMD_IO, Status},
    slots::Slots,
};
use crate::arena::ArenaBuf;

/// How often a piece that the kernel refused with EAGAIN is tried again.
const RETRIES_MAX: u8 = 16;
/// How often an NVMe command that failed is, with a pause of the ring before each time.
const COMMAND_RETRIES_MAX: u8 = 20;
/// How often one is that the drive's memory failed (`nvme_core.max_retries` of the kernel): that takes the drive long already.
const MEDIA_RETRIES_MAX: u8 = 5;

#[derive(Default)]
pub(super) struct State {
    pub requests: Slots<Request>,
    pub pieces: Slots<Piece>,
    pub urgent: VecDeque<u32>,
    pub bulk: VecDeque<u32>,
    /// Wait for [`State::resume`].
    pub postponed: Vec<u32>,
    pub in_kernel: u32,
    /// Those of them that wait for descriptors, maybe for ever.
    pub polls: u32,
    /// The kernel does not take registered buffers for NVMe commands: 6.1 wants all of a buffer, and they are parts of
    /// regions.
    pub commands_go_unregistered: bool,
    pub counters: RingCounters,
}

/// What a ring did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingCounters {
    /// Reads given to the kernel; a long read is several.
    pub reads: u64,
    /// Bytes of them.
    pub read_bytes: u64,
    /// Writes given to the kernel.
    pub writes: u64,
    /// Bytes of them.
    pub written_bytes: u64,
}

impl RingCounters {
    pub(super) fn count(&mut self, operation: Operation, pieces: u64, bytes: u64) {
        match operation {
            Operation::Read => {
                self.reads += pieces;
                self.read_bytes += bytes;
            }
            Operation::Write => {
                self.writes += pieces;
                self.written_bytes += bytes;
            }
            Operation::Flush | Operation::Poll(_) => {}
        }
    }
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Write,
    Flush,
    /// Waits until this descriptor, of another owner who keeps it open, is readable.
    Poll(std::os::fd::RawFd),
}

/// Where requests go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// The slot of the ring's file table.
    pub slot: u32,
    /// How a namespace is addressed that takes NVMe commands; `None` for files and block devices.
    pub namespace: Option<Addressing>,
    /// The longest piece that it takes.
    pub piece_bytes_max: usize,
}

/// The memory of a request, owned by the ring while it is in flight.
#[derive(Debug)]
pub(super) enum Buffer {
    None,
    Arena(ArenaBuf),
    Heap(AlignedBuf),
}

impl Buffer {
    pub fn pointer(&mut self) -> *mut u8 {
        match self {
            Buffer::None => std::ptr::null_mut(),
            Buffer::Arena(buffer) => buffer.as_mut_ptr(),
            Buffer::Heap(buffer) => buffer.as_mut_ptr(),
        }
    }
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The kernel's error for the piece at `offset`.
    Errno { errno: i32, offset: u64, length: u64 },
    /// The drive's answer to the command for the piece at `offset`.
    Status { status: Status, offset: u64, length: u64 },
    /// The file ended `got` bytes after the start of the request.
    Short { got: u64 },
}

pub(super) struct Request {
    pub operation: Operation,
    pub target: Target,
    pub buffer: Buffer,
    pub pieces_left: u32,
    pub failure: Option<Failure>,
    pub waker: Option<Waker>,
    pub abandoned: bool,
}

pub(super) struct Piece {
    pub request: u32,
    /// Offset on the device and in the request's buffer.
    pub offset: u64,
    pub buffer_offset: usize,
    pub length: usize,
    pub region: Option<u16>,
    pub urgent: bool,
    pub retries: u8,
}

impl State {
    /// The submission of a waiting piece; `None` when its request failed or was abandoned.
    pub fn entry(&mut self, index: u32) -> Option<squeue::Entry128> {
        let piece = self.pieces.get_mut(index)?;
        let request = self.requests.get_mut(piece.request)?;
        if request.abandoned || request.failure.is_some() {
            return None;
        }
        let file = types::Fixed(request.target.slot);
        let pointer = request.buffer.pointer().wrapping_add(piece.buffer_offset);
        if let Some(namespace) = request.target.namespace {
            let (address, length) = (pointer as u64, piece.length);
            let command = match request.operation {
                Operation::Read => namespace.read(piece.offset, address, length),
                Operation::Write => namespace.write(piece.offset, address, length),
                // Polls are of descriptors, never of a namespace.
                Operation::Flush | Operation::Poll(_) => namespace.flush(),
            };
            let mut padded = [0; 80];
            padded[..COMMAND_BYTES].copy_from_slice(&command);
            let entry = opcode::UringCmd80::new(file, NVME_URING_CMD_IO).cmd(padded).buf_index(piece.region).build();
            return Some(entry.user_data(index as u64));
        }
        let length = piece.length as u32;
        let entry = match (request.operation, piece.region) {
            (Operation::Read, Some(region)) => {
                opcode::ReadFixed::new(file, pointer, length, region).offset(piece.offset).build()
            }
            (Operation::Read, None) => opcode::Read::new(file, pointer, length).offset(piece.offset).build(),
            (Operation::Write, _) => opcode::Write::new(file, pointer, length).offset(piece.offset).build(),
            (Operation::Poll(descriptor), _) => {
                opcode::PollAdd::new(types::Fd(descriptor), libc::POLLIN as u32).build()
            }
            (Operation::Flush, _) => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        };
        Some(entry.user_data(index as u64).into())
    }

    /// One completion: a short transfer goes on with its rest, everything else finishes the piece.
    pub fn complete(&mut self, index: u32, result: i32, woken: &mut Vec<Waker>) {
        self.in_kernel = self.in_kernel.saturating_sub(1);
        let Some(piece) = self.pieces.get_mut(index) else { return };
        let Some(request) = self.requests.get_mut(piece.request) else { return };
        if let Operation::Poll(_) = request.operation {
            self.polls = self.polls.saturating_sub(1);
        }
        let failure = match result {
            // A command moves all of its data or none.
            status if result >= 0 && request.target.namespace.is_some() => match Status::of(status as u16) {
                None => None,
                // After a failed flush nothing is known about earlier writes: a second one that succeeds proves nothing.
                Some(status)
                    if status.may_be_tried_again()
                        && !matches!(request.operation, Operation::Flush)
                        && piece.retries < retries_max(status) =>
                {
                    piece.retries += 1;
                    self.postponed.push(index);
                    return;
                }
                Some(status) => Some(Failure::Status { status, offset: piece.offset, length: piece.length as u64 }),
            },
            _ if matches!(request.operation, Operation::Flush | Operation::Poll(_)) && result >= 0 => None,
            errno if errno == -libc::EINVAL && request.target.namespace.is_some() && piece.region.is_some() => {
                piece.region = None;
                self.commands_go_unregistered = true;
                self.requeue(index);
                return;
            }
            // Cancelled by the driver, or refused by a queue that is stopped: the drive is being reset, or goes away.
            errno
                if matches!(-errno, libc::EINTR | libc::EIO)
                    && !matches!(request.operation, Operation::Flush)
                    && request.target.namespace.is_some()
                    && piece.retries < COMMAND_RETRIES_MAX =>
            {
                piece.retries += 1;
                self.postponed.push(index);
                return;
            }
            errno if errno < 0 => {
                let is_flush_of_namespace =
                    matches!(request.operation, Operation::Flush) && request.target.namespace.is_some();
                if matches!(-errno, libc::EAGAIN | libc::EINTR)
                    && !(is_flush_of_namespace && -errno == libc::EINTR)
                    && piece.retries < RETRIES_MAX
                {
                    piece.retries += 1;
                    self.requeue(index);
                    return;
                }
                Some(Failure::Errno { errno: -errno, offset: piece.offset, length: piece.length as u64 })
            }
            moved if moved as usize >= piece.length => None,
            // A write that moves nothing or a transfer that stops inside a block: the file ends here.
            moved if moved == 0 || !(moved as usize).is_multiple_of(super::BLOCK_BYTES) => {
                Some(Failure::Short { got: (piece.buffer_offset + moved as usize) as u64 })
            }
            moved => {
                piece.offset += moved as u64;
                piece.buffer_offset += moved as usize;
                piece.length -= moved as usize;
                self.requeue(index);
                return;
            }
        };
        request.failure = request.failure.or(failure);
        self.finish(index, woken);
    }

    /// Whether a piece waits for a descriptor.
    pub fn is_poll(&mut self, index: u32) -> bool {
        let Some(request) = self.pieces.get_mut(index).map(|piece| piece.request) else { return false };
        self.requests.get_mut(request).is_some_and(|request| matches!(request.operation, Operation::Poll(_)))
    }

    /// The pause is over.
    pub fn resume(&mut self) {
        for index in std::mem::take(&mut self.postponed) {
            self.requeue(index);
        }
    }

    pub fn requeue(&mut self, index: u32) {
        let urgent = self.pieces.get_mut(index).is_some_and(|piece| piece.urgent);
        if urgent { self.urgent.push_front(index) } else { self.bulk.push_front(index) }
    }

    /// A piece is done with; with the last one its request is, too.
    pub fn finish(&mut self, index: u32, woken: &mut Vec<Waker>) {
        let Some(piece) = self.pieces.remove(index) else { return };
        let Some(request) = self.requests.get_mut(piece.request) else { return };
        request.pieces_left -= 1;
        if request.pieces_left == 0 {
            if request.abandoned {
                self.requests.remove(piece.request);
            } else {
                woken.extend(request.waker.take());
            }
        }
    }
}

fn retries_max(status: Status) -> u8 {
    if status.is_of_media() { MEDIA_RETRIES_MAX } else { COMMAND_RETRIES_MAX }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Target = Target { slot: 0, namespace: None, piece_bytes_max: 1 << 20 };
    const NAMESPACE: Target = Target { namespace: Some(Addressing { id: 3, block_bits: 9 }), ..FILE };

    fn one_piece(operation: Operation, length: usize) -> (State, u32, u32) {
        one_piece_of(FILE, operation, length)
    }

    fn one_piece_of(target: Target, operation: Operation, length: usize) -> (State, u32, u32) {
        let mut state = State::default();
        let buffer = Buffer::Heap(AlignedBuf::zeroed(length));
        let request = state.requests.insert(Request {
            operation,
            target,
            buffer,
            pieces_left: 1,
            failure: None,
            waker: None,
            abandoned: false,
        });
        let piece = state.pieces.insert(Piece {
            request,
            offset: 40960,
            buffer_offset: 0,
            length,
            region: None,
            urgent: true,
            retries: 0,
        });
        state.in_kernel = 1;
        (state, request, piece)
    }

    #[test]
    fn a_device_error_is_kept_with_its_place() {
        let (mut state, request, piece) = one_piece(Operation::Read, 8192);
        state.complete(piece, -libc::EIO, &mut Vec::new());
        let request = state.requests.get_mut(request).unwrap();
        let expected = Failure::Errno { errno: libc::EIO, offset: 40960, length: 8192 };
        assert_eq!((request.failure, request.pieces_left), (Some(expected), 0));
    }

    #[test]
    fn a_short_transfer_goes_on_with_its_rest_and_interruptions_are_tried_again() {
        let (mut state, request, piece) = one_piece(Operation::Write, 12288);
        state.complete(piece, -libc::EINTR, &mut Vec::new());
        assert_eq!(state.urgent.pop_front(), Some(piece));
        state.complete(piece, 4096, &mut Vec::new());
        assert_eq!(state.urgent.pop_front(), Some(piece));
        let rest = state.pieces.get_mut(piece).unwrap();
        assert_eq!((rest.offset, rest.buffer_offset, rest.length), (45056, 4096, 8192));
        state.complete(piece, 8192, &mut Vec::new());
        let request = state.requests.get_mut(request).unwrap();
        assert_eq!((request.failure, request.pieces_left), (None, 0));
    }

    #[test]
    fn a_piece_that_is_refused_for_ever_fails() {
        let (mut state, request, piece) = one_piece(Operation::Read, 4096);
        for _ in 0..RETRIES_MAX {
            state.complete(piece, -libc::EAGAIN, &mut Vec::new());
            assert_eq!(state.urgent.pop_front(), Some(piece));
        }
        state.complete(piece, -libc::EAGAIN, &mut Vec::new());
        assert!(matches!(state.requests.get_mut(request).unwrap().failure, Some(Failure::Errno { .. })));
    }

    #[test]
    fn a_command_says_in_blocks_what_a_read_says_in_bytes() {
        let (mut state, request, piece) = one_piece_of(NAMESPACE, Operation::Read, 8192);
        let address = state.requests.get_mut(request).unwrap().buffer.pointer() as u64;
        let entry = state.entry(piece).unwrap();
        assert_eq!(entry.get_user_data(), u64::from(piece));
        // SAFETY: an entry is 128 bytes, all initialised; `struct io_uring_sqe` with SQE128.
        let bytes: [u8; 128] = unsafe { std::mem::transmute(entry) };
        // opcode IORING_OP_URING_CMD, cmd_op at 8, cmd from 48 on.
        assert_eq!((bytes[0], &bytes[8..12]), (46, 0xc048_4e80u32.to_ne_bytes().as_slice()));
        let expected = Addressing { id: 3, block_bits: 9 }.read(40960, address, 8192);
        assert_eq!(bytes[48..48 + COMMAND_BYTES], expected);
        assert_eq!(expected[40..44], (40960u32 / 512).to_ne_bytes());
        assert_eq!(expected[48..52], (8192u32 / 512 - 1).to_ne_bytes());
    }

    #[test]
    fn a_command_is_done_when_the_drive_says_so_and_not_by_its_bytes() {
        let (mut state, request, piece) = one_piece_of(NAMESPACE, Operation::Read, 8192);
        state.complete(piece, 0, &mut Vec::new());
        let request = state.requests.get_mut(request).unwrap();
        assert_eq!((request.failure, request.pieces_left), (None, 0));
    }

    #[test]
    fn a_failed_command_is_tried_again_after_a_pause_unless_the_drive_says_not_to() {
        let status = |result: i32| {
            let status = Status::of(result as u16).unwrap();
            Failure::Status { status, offset: 40960, length: 4096 }
        };
        let errno = |errno| Failure::Errno { errno, offset: 40960, length: 4096 };
        for (result, tries, expected) in [
            (0x4281, 0, status(0x4281)),
            (0x281, MEDIA_RETRIES_MAX, status(0x281)),
            (0x370, COMMAND_RETRIES_MAX, status(0x370)),
            (-libc::EINTR, COMMAND_RETRIES_MAX, errno(libc::EINTR)),
            (-libc::EIO, COMMAND_RETRIES_MAX, errno(libc::EIO)),
            (-libc::ENODEV, 0, errno(libc::ENODEV)),
        ] {
            let (mut state, request, piece) = one_piece_of(NAMESPACE, Operation::Write, 4096);
            for _ in 0..tries {
                state.complete(piece, result, &mut Vec::new());
                assert_eq!((state.urgent.pop_front(), state.postponed.as_slice()), (None, [piece].as_slice()));
                state.resume();
                assert_eq!(state.urgent.pop_front(), Some(piece));
            }
            state.complete(piece, result, &mut Vec::new());
            assert_eq!(state.requests.get_mut(request).unwrap().failure, Some(expected));
        }
    }

    #[test]
    fn a_command_whose_registered_memory_is_refused_goes_on_without() {
        let (mut state, request, piece) = one_piece_of(NAMESPACE, Operation::Read, 4096);
        state.pieces.get_mut(piece).unwrap().region = Some(2);
        state.complete(piece, -libc::EINVAL, &mut Vec::new());
        assert_eq!((state.urgent.pop_front(), state.commands_go_unregistered), (Some(piece), true));
        assert_eq!(state.pieces.get_mut(piece).unwrap().region, None);
        // Then it is an error.
        state.complete(piece, -libc::EINVAL, &mut Vec::new());
        let failure = state.requests.get_mut(request).unwrap().failure;
        assert!(matches!(failure, Some(Failure::Errno { errno: libc::EINVAL, .. })), "{failure:?}");
    }
}
