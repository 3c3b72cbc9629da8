//! Links: how frames of a session travel over RDMA. State machines and layouts, without sockets, clocks or threads.
//!
//! A *link* is one queue pair between a client and one core of the cell, with its own *result ring*: memory of the
//! client's, cut into slots that the cell fills. Small frames travel as SENDs, in both directions. A result frame that
//! is longer than a SEND is written into a slot by one WRITE with immediate data ([`frames`]). The right to fill a slot
//! is a credit: the client gives it with `SlotsFree`, and gives it again when the last reference to what came in the
//! slot is gone.
//!
//! Owns
//! - [`frames`]: how a frame lies in a slot and in a SEND, and the immediate data;
//! - [`CellSlots`], the cell's view of a ring, and [`ClientSlots`], the client's;
//! - [`seal`]: what makes a frame of the peer's known on a network where others can send;
//! - [`CellLink`] and [`ClientLink`]: the life of a link, from opening over resets to its end;
//! - [`NoticeSequence`]: gaps in numbered notices.
//!
//! Called by the cell's fabric and by the client's; simulated together in `hidb/tests/links.rs`.

pub mod frames;
mod link;
mod notices;
pub mod seal;
mod slots;

pub use link::{Action, CellLink, ClientLink, Ended, State};
pub use notices::{NoticeSequence, Observed};
pub use slots::{CellSlot, CellSlots, ClientSlot, ClientSlots, SlotCounts};

/// The most slots of a result ring: what the immediate data can name.
pub const SLOTS_MAX: u32 = 4096;
/// The smallest slot.
pub const SLOT_BYTES_MIN: u32 = 64 << 10;
/// The largest slot: a frame.
pub const SLOT_BYTES_MAX: u32 = crate::frame::FRAME_BYTES_MAX as u32;
/// Local ACK timeout of both ends' queue pairs: 4.096 us * 2^16, 268 ms. With seven retries a link is given up after two
/// seconds: long enough for a thousand links on a busy machine, where answers to half a second of patience came too late;
/// a peer that is gone is noticed by the heartbeats of the session.
pub const ACK_TIMEOUT: u8 = 16;
/// Bytes of a SEND on a link, in either direction. Frames up to this length go inline.
pub const SEND_BYTES_MAX: usize = 8 << 10;
