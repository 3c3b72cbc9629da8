//! RoCEv2 reliable connections in user space, the pure part.
//!
//! Three rooms: [`packet`] is the codec of the transport headers, [`icrc`] the invariant CRC that seals each
//! packet, [`engine`] the state machine of queue pairs. None of them does I/O, reads a clock or starts a
//! thread: whoever owns a socket feeds datagrams and time in, and takes datagrams, completions and the next
//! deadline out.

pub mod engine;
pub mod icrc;
pub mod packet;
