//! Minima and maxima of a block of integers.
//!
//! Owns the loops over plain slices. Called by [`super::state`], which puts [`neutral`] where an argument is NULL.
//!
//! Cost: one group 0.1 ns a row (vectorised); few groups 0.6 ns, through four copies of every state, because
//! a comparison waits for the one before it to the same group.

use heliostat_segment::{dispatch, prefix};

use super::paged::Paged;
use super::state::{LOCAL_COPIES, LOCAL_GROUPS_MAX};
use crate::vector::Bits;

/// The value that never wins, with which states begin.
pub(super) fn neutral(maximum: bool) -> i64 {
    if maximum { i64::MIN } else { i64::MAX }
}

#[inline(always)]
fn extreme_body(values: &[i64], maximum: bool, state: i64) -> i64 {
    if maximum {
        values.iter().fold(state, |state, value| state.max(*value))
    } else {
        values.iter().fold(state, |state, value| state.min(*value))
    }
}

#[inline(always)]
fn masked_extreme_body(values: &[i64], mask: &Bits, maximum: bool, state: i64) -> i64 {
    let mut state = state;
    for (word, values) in mask.iter().zip(values.chunks(64)) {
        for (bit, value) in values.iter().enumerate() {
            let is_in = word >> bit & 1 == 1;
            state = match maximum {
                true => state.max(if is_in { *value } else { neutral(true) }),
                false => state.min(if is_in { *value } else { neutral(false) }),
            };
        }
    }
    state
}

dispatch! {
    /// The least or greatest of the values under a bitmap, and of `state`.
    pub(super) fn masked_extreme(values: &[i64], mask: &Bits, maximum: bool, state: i64) -> i64 = masked_extreme_body;
}

dispatch! {
    /// The least or greatest of these.
    fn extreme(values: &[i64], maximum: bool, state: i64) -> i64 = extreme_body;
}

#[inline(always)]
fn each(groups: &[u32], values: &[i64], states: &mut Paged<i64>, better: impl Fn(i64, i64) -> i64) {
    if states.len() > LOCAL_GROUPS_MAX {
        for (group, value) in groups.iter().zip(values) {
            let state = &mut states[*group as usize];
            *state = better(*state, *value);
        }
        return;
    }
    let states = states.front_mut();
    let mut local = [[0i64; LOCAL_GROUPS_MAX]; LOCAL_COPIES];
    for copy in &mut local {
        copy[..states.len()].copy_from_slice(states);
    }
    let mask = LOCAL_GROUPS_MAX - 1;
    let (group_quads, group_rest) = groups.as_chunks::<LOCAL_COPIES>();
    let (value_quads, value_rest) = values.as_chunks::<LOCAL_COPIES>();
    for (groups, values) in group_quads.iter().zip(value_quads) {
        for copy in 0..LOCAL_COPIES {
            let state = &mut local[copy][groups[copy] as usize & mask];
            *state = better(*state, values[copy]);
        }
    }
    for (group, value) in group_rest.iter().zip(value_rest) {
        let state = &mut local[0][*group as usize & mask];
        *state = better(*state, *value);
    }
    for (group, state) in states.iter_mut().enumerate() {
        *state = local.iter().fold(*state, |state, copy| better(state, copy[group]));
    }
}

/// Takes `values[k]` into the state of group `groups[k]`.
pub(super) fn update_i64(groups: &[u32], values: &[i64], maximum: bool, states: &mut Paged<i64>) {
    if states.len() == 1 {
        states[0] = extreme(values, maximum, states[0]);
    } else if maximum {
        each(groups, values, states, |a, b| a.max(b));
    } else {
        each(groups, values, states, |a, b| a.min(b));
    }
}

/// Whether no text whose prefix lies between these is less (greater, for a maximum) than the state.
pub(super) fn is_beyond(state: &[u8], (least, greatest): (u64, u64), maximum: bool) -> bool {
    let state = prefix(state);
    if maximum { greatest < state } else { least > state }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_with_the_prefix_of_the_state_can_still_win() {
        let values: [&[u8]; 8] = [
            b"",
            b"\0",
            b"a",
            b"a\0",
            b"zzzzzzzz",
            b"zzzzzzzz1",
            b"zzzzzzzz2",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ];
        for state in values {
            for value in values {
                let bounds = (prefix(value), prefix(value));
                assert!(!is_beyond(state, bounds, true) || value < state);
                assert!(!is_beyond(state, bounds, false) || value > state);
            }
        }
        assert!(is_beyond(b"b", (prefix(b""), prefix(b"a")), true));
        assert!(is_beyond(b"b", (prefix(b"c"), prefix(b"d")), false));
    }

    #[test]
    fn extremes_are_those_of_single_values_for_one_few_and_many_groups() {
        for group_count in [1usize, 7, 64, 200, 9000] {
            for maximum in [false, true] {
                let rows = 1021;
                let groups: Vec<u32> = (0..rows).map(|row| (row * row % group_count) as u32).collect();
                let values: Vec<i64> = (0..rows as i64).map(|row| row * 7919 % 1009 - 500).collect();
                let start = if maximum { -3 } else { 3 };
                let mut states = Paged::default();
                states.resize(group_count, start);
                let mut expected = vec![start; group_count];
                for (group, value) in groups.iter().zip(&values) {
                    let state = &mut expected[*group as usize];
                    *state = if maximum { (*state).max(*value) } else { (*state).min(*value) };
                }
                update_i64(&groups, &values, maximum, &mut states);
                assert!(states.iter().eq(&expected));
            }
        }
    }
}
