//! Aggregation into few groups by bitmaps: one per group, and masked sums over whole blocks.
//!
//! Owns [`FewGroups`], which turns slots (the keys' combined codes) into a bitmap of rows per group, and the sum
//! of a vector under a bitmap. Called by the [`Aggregator`](super::Aggregator) when the keys have at most [`SLOTS_MAX`]
//! slots and every state can be folded so.
//!
//! A row that the filter took out is in no bitmap, so that a block that keeps most of its rows is worked on as it is,
//! without compacting its columns first.
//!
//! Cost sketch, per row at AVX-512: a bitmap per group 0.02 ns, a masked addition per sum and group 0.05 ns. Scattering
//! a sum into its group's accumulator takes 0.7 ns, whatever the number of groups: the bitmaps win up to eight groups or so.

use heliostat_segment::{SimdLevel, dispatch, equal_mask};
use hidb::BLOCK_ROWS;

use crate::vector::{Bits, and_bits, and_not_bits, any_bit};

/// The most slots: they are kept as bytes.
pub(super) const SLOTS_MAX: usize = 1 << 8;
/// The most groups of a row group.
const GROUPS_MAX: usize = 8;

/// The groups of the row group at hand, and which rows of the block are theirs.
#[derive(Debug)]
pub(super) struct FewGroups {
    slots: Box<[u8; BLOCK_ROWS]>,
    /// Slot and group, in the order of first sight.
    known: Vec<(u8, u32)>,
    /// Of each known group.
    masks: Vec<Bits>,
}

impl Default for FewGroups {
    fn default() -> Self {
        FewGroups { slots: Box::new([0; BLOCK_ROWS]), known: Vec::new(), masks: Vec::new() }
    }
}

impl FewGroups {
    /// Starts a row group: slots mean other groups than before.
    pub fn clear(&mut self) {
        self.known.clear();
    }

    /// The only group there is has these rows.
    pub fn only(&mut self, rows: &Bits) {
        self.known.clear();
        self.known.push((0, 0));
        self.masks.clear();
        self.masks.push(*rows);
    }

    /// The rows' slots, each below [`SLOTS_MAX`].
    pub fn take_slots(&mut self, slots: &[u32; BLOCK_ROWS]) {
        narrow(slots, &mut self.slots);
    }

    /// Sorts `rows` into the bitmaps of their groups; `group_of` names the group of a slot that was not seen before.
    /// False when that makes more groups than bitmaps pay for: the bitmaps are then incomplete.
    pub fn sort<E>(&mut self, rows: &Bits, mut group_of: impl FnMut(u32) -> Result<u32, E>) -> Result<bool, E> {
        self.masks.clear();
        let mut left = *rows;
        for (slot, _) in &self.known {
            let mask = and_bits(&equal_mask(&self.slots, *slot), &left);
            left = and_not_bits(&left, &mask);
            self.masks.push(mask);
        }
        while any_bit(&left) {
            if self.known.len() == GROUPS_MAX {
                return Ok(false);
            }
            let row =
                left.iter().position(|word| *word != 0).map_or(0, |at| at * 64 + left[at].trailing_zeros() as usize);
            let slot = self.slots[row];
            let group = group_of(u32::from(slot))?;
            let mask = and_bits(&equal_mask(&self.slots, slot), &left);
            left = and_not_bits(&left, &mask);
            self.known.push((slot, group));
            self.masks.push(mask);
        }
        Ok(true)
    }

    /// Groups and their rows.
    pub fn groups(&self) -> impl Iterator<Item = (usize, &Bits)> {
        self.known.iter().zip(&self.masks).map(|((_, group), mask)| (*group as usize, mask))
    }
}

#[inline(always)]
fn narrow_body(slots: &[u32; BLOCK_ROWS], out: &mut [u8; BLOCK_ROWS]) {
    for (out, slot) in out.iter_mut().zip(slots) {
        *out = *slot as u8;
    }
}

dispatch! {
    /// The low byte of each.
    fn narrow(slots: &[u32; BLOCK_ROWS], out: &mut [u8; BLOCK_ROWS]) = narrow_body;
}

/// Sums of `values` (of which there are [`BLOCK_ROWS`]) under a bitmap; no partial sum may leave `i64`.
pub(super) fn masked_sum(values: &[i64], mask: &Bits) -> i64 {
    #[cfg(target_arch = "x86_64")]
    if let (SimdLevel::Avx512, Some(values)) = (SimdLevel::current(), values.first_chunk::<BLOCK_ROWS>()) {
        // SAFETY: the level in effect is never above what the CPU supports.
        return unsafe { masked_sum_avx512(values, mask) };
    }
    #[cfg(target_arch = "x86_64")]
    if let (SimdLevel::Avx2, Some(values)) = (SimdLevel::current(), values.first_chunk::<BLOCK_ROWS>()) {
        // SAFETY: as above.
        return unsafe { masked_sum_avx2(values, mask) };
    }
    masked_sum_words(values, mask)
}

#[inline(always)]
fn masked_sum_words_body(values: &[i64], mask: &Bits) -> i64 {
    let mut sum = 0i64;
    for (word, values) in mask.iter().zip(values.chunks(64)) {
        for (bit, value) in values.iter().enumerate() {
            // All ones where the bit is one.
            sum = sum.wrapping_add(value & ((word >> bit & 1) as i64).wrapping_neg());
        }
    }
    sum
}

dispatch! {
    fn masked_sum_words(values: &[i64], mask: &Bits) -> i64 = masked_sum_words_body;
}

/// For each four bits a lane of ones per bit.
#[cfg(target_arch = "x86_64")]
static LANES: [[i64; 4]; 16] = {
    let mut table = [[0; 4]; 16];
    let mut bits = 0;
    while bits < 16 {
        let mut lane = 0;
        while lane < 4 {
            table[bits][lane] = -((bits >> lane & 1) as i64);
            lane += 1;
        }
        bits += 1;
    }
    table
};

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn masked_sum_avx2(values: &[i64; BLOCK_ROWS], mask: &Bits) -> i64 {
    use std::arch::x86_64::*;
    let mut sums = [_mm256_setzero_si256(); 4];
    for (word, values) in mask.iter().zip(values.chunks_exact(64)) {
        for (part, values) in values.chunks_exact(4).enumerate() {
            let lanes = &LANES[(*word >> (part * 4) & 15) as usize];
            // SAFETY: both are 32 bytes; the loads are unaligned.
            let v = unsafe {
                _mm256_and_si256(_mm256_loadu_si256(values.as_ptr().cast()), _mm256_loadu_si256(lanes.as_ptr().cast()))
            };
            sums[part % 4] = _mm256_add_epi64(sums[part % 4], v);
        }
    }
    let sum = |a, b| _mm256_add_epi64(a, b);
    let sum = sum(sum(sums[0], sums[1]), sum(sums[2], sums[3]));
    let mut lanes = [0i64; 4];
    // SAFETY: the array is 32 bytes; the store is unaligned.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum) };
    lanes.iter().fold(0, |sum, lane| sum.wrapping_add(*lane))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn masked_sum_avx512(values: &[i64; BLOCK_ROWS], mask: &Bits) -> i64 {
    use std::arch::x86_64::*;
    let mut sums = [_mm512_setzero_si512(); 4];
    for (word, values) in mask.iter().zip(values.chunks_exact(64)) {
        for (part, values) in values.chunks_exact(8).enumerate() {
            // SAFETY: the chunk is 64 bytes; the load is unaligned.
            let v = unsafe { _mm512_loadu_si512(values.as_ptr().cast()) };
            let sum = &mut sums[part % 4];
            *sum = _mm512_mask_add_epi64(*sum, (*word >> (part * 8)) as u8, *sum, v);
        }
    }
    let sum = |a, b| _mm512_add_epi64(a, b);
    _mm512_reduce_add_epi64(sum(sum(sums[0], sums[1]), sum(sums[2], sums[3])))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;
    use crate::aggregate::extremes::masked_extreme;

    proptest! {
        #[test]
        fn folds_under_bitmaps_are_those_of_their_rows(
            values in prop::collection::vec(-1_000_000_000i64..1_000_000_000, BLOCK_ROWS),
            mask in prop::array::uniform16(any::<u64>()),
        ) {
            let rows = (0..BLOCK_ROWS).filter(|row| mask[row / 64] >> (row % 64) & 1 == 1);
            let picked: Vec<i64> = rows.map(|row| values[row]).collect();
            prop_assert_eq!(masked_sum(&values, &mask), picked.iter().sum::<i64>());
            prop_assert_eq!(masked_sum_words(&values, &mask), picked.iter().sum::<i64>());
            let bounds = picked.iter().fold((i64::MAX, i64::MIN), |(min, max), v| (min.min(*v), max.max(*v)));
            let least = masked_extreme(&values, &mask, false, i64::MAX);
            prop_assert_eq!((least, masked_extreme(&values, &mask, true, i64::MIN)), bounds);
        }

        #[test]
        fn each_row_is_in_its_groups_bitmap_only(
            slots in prop::collection::vec(0u32..12, BLOCK_ROWS),
            rows in prop::array::uniform16(any::<u64>()),
            few in 1u32..12,
        ) {
            let slots: [u32; BLOCK_ROWS] = std::array::from_fn(|row| slots[row] % few * 20);
            let mut groups = FewGroups::default();
            groups.take_slots(&slots);
            let sorted = groups.sort(&rows, |slot| Ok::<_, Infallible>(slot / 20 + 100)).unwrap();
            let there = (0..BLOCK_ROWS).filter(|row| rows[row / 64] >> (row % 64) & 1 == 1);
            let distinct = there.clone().map(|row| slots[row]).collect::<std::collections::BTreeSet<_>>();
            prop_assert_eq!(sorted, distinct.len() <= GROUPS_MAX);
            if sorted {
                let union = groups.groups().fold(crate::vector::NO_BITS, |all, (_, mask)| crate::vector::or_bits(&all, mask));
                prop_assert_eq!(union, rows);
                for row in there {
                    let owners: Vec<usize> = groups.groups().filter(|(_, mask)| mask[row / 64] >> (row % 64) & 1 == 1)
                        .map(|(group, _)| group).collect();
                    prop_assert_eq!(owners, vec![slots[row] as usize / 20 + 100]);
                }
            }
        }
    }
}
