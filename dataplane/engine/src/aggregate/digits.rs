//! From key values to slots of the directly indexed table, and from slots to groups.
//!
//! Owns the loops over plain slices behind `Aggregator::index`. Called by it.
//!
//! Cost: a digit 0.15 ns a row (vectorised), the table 0.5 ns.

use heliostat_segment::dispatch;

#[inline(always)]
fn add_range_body(values: &[i64], least: i64, null: u32, stride: u32, slots: &mut [u32]) {
    for (slot, value) in slots.iter_mut().zip(values) {
        let digit = (value.wrapping_sub(least) as u64).min(u64::from(null)) as u32;
        *slot = slot.wrapping_add(digit.wrapping_mul(stride));
    }
}

#[inline(always)]
fn add_codes_body(codes: &[u32], null: u32, stride: u32, slots: &mut [u32]) {
    for (slot, code) in slots.iter_mut().zip(codes) {
        *slot = slot.wrapping_add((*code).min(null).wrapping_mul(stride));
    }
}

#[inline(always)]
fn find_body(direct: &[u32], unknown: u32, mark: u32, slots: &mut [u32]) -> bool {
    let mut any = false;
    for slot in slots {
        // Single loads: gather instructions took longer.
        let group = direct[*slot as usize];
        any |= group == unknown;
        *slot = if group == unknown { *slot | mark } else { group };
    }
    any
}

dispatch! {
    /// Adds `stride` times the distance from `least`, at most `null`.
    pub(super) fn add_range(values: &[i64], least: i64, null: u32, stride: u32, slots: &mut [u32]) = add_range_body;
}

dispatch! {
    /// Adds `stride` times the code.
    pub(super) fn add_codes(codes: &[u32], null: u32, stride: u32, slots: &mut [u32]) = add_codes_body;
}

dispatch! {
    /// Replaces slots by their groups; those whose group is `unknown` stay and get `mark`. Whether there are any.
    pub(super) fn find(direct: &[u32], unknown: u32, mark: u32, slots: &mut [u32]) -> bool = find_body;
}
