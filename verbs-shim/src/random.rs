//! Numbers from the operating system, which nobody guesses: seeds, and the packet sequence numbers to begin with.

use std::io;

use crate::soft::packet::MASK_24;

/// Starts a sequence of keys and queue pair numbers.
pub(crate) fn random_u64() -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(u64::from_ne_bytes(bytes))
}

/// The first PSN of a queue pair, 24 bits: late packets of a predecessor fall out of its window.
pub(crate) fn random_psn() -> io::Result<u32> {
    Ok(random_u64()? as u32 & MASK_24)
}
