//! Packet sequence numbers (IBA 9.7.1): 24 bits on the wire, 64 bits inside, so that nothing inside wraps.

use crate::soft::packet::MASK_24;

/// The most packets that a requester may have unacknowledged; the specification allows 2^23 - 1.
pub const OUTSTANDING_PACKETS_MAX: u64 = 1 << 22;

/// The 64-bit number that a queue pair starts with when its first PSN is `wire`. High enough that no
/// reference to earlier packets goes below zero.
pub fn first(wire: u32) -> u64 {
    (1 << 32) | (wire & MASK_24) as u64
}

/// The 24 bits that go on the wire.
pub fn to_wire(psn: u64) -> u32 {
    psn as u32 & MASK_24
}

/// How far `wire` lies after `near` (before it if negative): the PSN window of 2^23 each way.
pub fn distance(near: u64, wire: u32) -> i64 {
    let ahead = wire.wrapping_sub(near as u32) & MASK_24;
    (((ahead << 8) as i32) >> 8) as i64
}

/// The 64-bit number with these 24 low bits that is nearest to `near`.
pub fn nearest(near: u64, wire: u32) -> u64 {
    near.wrapping_add_signed(distance(near, wire))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_wrap_at_24_bits() {
        let near = first(0xff_fffe);
        assert_eq!(distance(near, 0xff_fffe), 0);
        assert_eq!(distance(near, 1), 3);
        assert_eq!(distance(near, 0xff_fff0), -14);
        assert_eq!(distance(near, 0x7f_fffe), -(1 << 23));
        assert_eq!(distance(near, 0x7f_fffd), (1 << 23) - 1);
        assert_eq!(to_wire(nearest(near, 1)), 1);
        assert_eq!(nearest(near, 1), near + 3);
        assert_eq!(nearest(first(2), 0xff_ffff), first(2) - 3);
    }
}
