//! The provider `soft`: RoCEv2 reliable connections in user space, over UDP.
//!
//! The pure part is [`packet`], the codec of the transport headers, [`icrc`], the invariant CRC that seals each packet,
//! and [`engine`], the state machine of queue pairs: no I/O, no clock, no thread. Around it, `socket` moves datagrams,
//! `node` drives the two under one lock, with or without a progress thread, and `provider` is what the rest of the crate
//! calls.

mod crc_copy;
pub mod engine;
pub mod icrc;
mod interfaces;
mod memory;
mod node;
pub mod packet;
pub(crate) mod provider;
mod socket;
