//! Memory that is read at random, in huge pages.
//!
//! Owns [`collapse`]. Called when an index that stays in memory was read or built.
//!
//! A walk of a graph reads a few lines of each of a thousand nodes: in pages of 4 KiB nearly each is a miss of the TLB, and in
//! a virtual machine each miss walks two tables. Advice before the memory is touched would do; it comes from the allocator,
//! so it is collapsed afterwards (`MADV_COLLAPSE`, Linux 6.1), which copies it once.

/// A huge page.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Asks the kernel to make huge pages of the whole ones in these regions: addresses and bytes of live memory. Copies
/// them once; returns how many bytes now lie in huge pages. Where the kernel can't or may not, nothing changes.
pub fn collapse(regions: &[(*const u8, usize)]) -> usize {
    let whole = |(start, bytes): &(*const u8, usize)| {
        let skipped = start.align_offset(HUGE_PAGE_BYTES);
        let bytes = bytes.saturating_sub(skipped) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
        (start.wrapping_add(skipped), bytes)
    };
    regions.iter().map(whole).filter(|(_, bytes)| *bytes > 0).map(|(start, bytes)| collapse_whole(start, bytes)).sum()
}

fn collapse_whole(start: *const u8, bytes: usize) -> usize {
    let address = start.cast_mut().cast();
    // SAFETY: advice about pages that only hold what lies in the region; their contents stay.
    let outcome = unsafe {
        libc::madvise(address, bytes, libc::MADV_HUGEPAGE);
        libc::madvise(address, bytes, libc::MADV_COLLAPSE)
    };
    if outcome == 0 { bytes } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_stay_and_small_regions_are_left_alone() {
        let bytes: Vec<u8> = (0..3 * HUGE_PAGE_BYTES).map(|i| (i * 31 % 251) as u8).collect();
        let collapsed = collapse(&[(bytes.as_ptr(), bytes.len()), (bytes.as_ptr(), 100), (std::ptr::null(), 0)]);
        assert!(collapsed.is_multiple_of(HUGE_PAGE_BYTES) && collapsed <= bytes.len());
        assert!(bytes.iter().enumerate().all(|(i, byte)| *byte == (i * 31 % 251) as u8));
    }
}
