//! What work requests of the cell own.
//!
//! Owns [`LinkBuffer`]. An image leaves from where it was written: a WRITE gathers a small head and the image itself,
//! which lies in the core's arena, registered as a whole ([`RegisteredArena`]).
//!
//! Invariant: the pieces of a request are immutable, and alive, until the request completes: it owns them.

use bytes::Bytes;
use verbs_shim::verbs::Sge;
use verbs_shim::{Buffer, Registered, Registration};

use crate::arena::{Arena, ArenaMemory};

/// The arena of a core, registered with a device.
#[derive(Clone)]
pub struct RegisteredArena {
    memory: ArenaMemory,
    registration: Registration,
}

impl ArenaBytes {
    fn piece(&self) -> Sge {
        let (address, length) = (self.bytes.as_ptr() as u64, self.bytes.len() as u32);
        Sge { address, length, key: self.registration.key() }
    }
}

impl RegisteredArena {
    /// Registers it.
    ///
    /// # Errors
    /// verbs-shim's, when memory can't be locked, say.
    pub fn new(domain: &verbs_shim::ProtectionDomain, arena: &Arena) -> Result<Self, verbs_shim::Error> {
        let memory = arena.memory();
        Ok(RegisteredArena { registration: domain.register_arena(memory.clone())?, memory })
    }

    /// These bytes as something a work request can own; `None` when they lie elsewhere.
    pub fn lend(&self, bytes: Bytes) -> Option<ArenaBytes> {
        self.memory.contains(&bytes).then(|| ArenaBytes { bytes, registration: self.registration.clone() })
    }
}

/// Bytes of a registered arena.
pub struct ArenaBytes {
    bytes: Bytes,
    registration: Registration,
}

/// What a work request of a link owns.
pub enum LinkBuffer {
    /// A receive request.
    Receive(Buffer),
    /// A frame that was copied: the first `length` bytes.
    Staged {
        /// Where it lies.
        buffer: Buffer,
        /// Its bytes.
        length: usize,
    },
    /// A frame that lies in the arena as a whole.
    Whole(ArenaBytes),
    /// A frame gathered from its head and its payload.
    Gathered {
        /// Where the head lies.
        head: Buffer,
        /// Its bytes.
        head_length: usize,
        /// The payload.
        payload: ArenaBytes,
    },
}

fn first(buffer: &Buffer, length: usize, each: &mut impl FnMut(Sge)) {
    debug_assert!(length <= buffer.len());
    buffer.pieces(&mut |piece| each(Sge { length: (length as u32).min(piece.length), ..piece }));
}

// SAFETY: `Buffer`s own their registered bytes. Those of `ArenaBytes` are immutable while its `Bytes` lives (nobody else
// can have them mutably), lie in the arena (`RegisteredArena::lend`), and the arena stays mapped and registered while its
// registration lives. Both move with the value and stay where they are. Only `Receive` is written into, and it is a
// whole `Buffer`.
unsafe impl Registered for LinkBuffer {
    fn pieces(&self, each: &mut impl FnMut(Sge)) {
        match self {
            LinkBuffer::Receive(buffer) => buffer.pieces(each),
            LinkBuffer::Staged { buffer, length } => first(buffer, *length, each),
            LinkBuffer::Whole(bytes) => each(bytes.piece()),
            LinkBuffer::Gathered { head, head_length, payload } => {
                first(head, *head_length, each);
                each(payload.piece());
            }
        }
    }
}
