//! Positions on a Hilbert curve in any number of dimensions.
//!
//! John Skilling, "Programming the Hilbert curve", AIP Conference Proceedings 707 (2004): the coordinates are turned in
//! place into the "transpose" of the position, whose bits are then collected. Called by [`super`].
//!
//! Invariant: different points have different positions, and neighbours on the curve are neighbours in space.

/// The position of a point of `bits` bits per coordinate (1 to 32, and at most 128 in all). Destroys the point.
pub(super) fn position(point: &mut [u32], bits: u32) -> u128 {
    let Some(last) = point.len().checked_sub(1) else { return 0 };
    // Undo the rotations and reflections of each level, from the coarsest on: where an axis has the level's bit, the
    // bits below are reflected on the first axis, elsewhere exchanged with it. Without branches: the bits are as good
    // as random.
    for bit in (1..bits).rev() {
        let below = (1u32 << bit) - 1;
        for axis in 0..=last {
            let reflected = below & 0u32.wrapping_sub(point[axis] >> bit & 1);
            let exchanged = (point[0] ^ point[axis]) & (below ^ reflected);
            point[0] ^= exchanged | reflected;
            point[axis] ^= exchanged;
        }
    }
    // Gray code.
    for axis in 1..=last {
        point[axis] ^= point[axis - 1];
    }
    let turned =
        (1..bits).fold(0u32, |turned, bit| turned ^ ((1 << bit) - 1) & 0u32.wrapping_sub(point[last] >> bit & 1));
    let mut position = 0u128;
    for bit in (0..bits).rev() {
        for coordinate in point.iter() {
            position = position << 1 | u128::from((coordinate ^ turned) >> bit & 1);
        }
    }
    position
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_on_the_curve_are_neighbours_in_space() {
        for (dimensions, bits) in [(1usize, 6u32), (2, 1), (2, 5), (3, 3), (4, 2)] {
            let points = 1usize << (bits * dimensions as u32);
            let mut along: Vec<Option<Vec<u32>>> = vec![None; points];
            for number in 0..points {
                let point: Vec<u32> =
                    (0..dimensions).map(|axis| (number >> (axis as u32 * bits)) as u32 & ((1 << bits) - 1)).collect();
                let at = position(&mut point.clone(), bits) as usize;
                assert!(along[at].replace(point).is_none(), "two points at {at}");
            }
            for pair in along.windows(2) {
                let (a, b) = (pair[0].as_ref().unwrap(), pair[1].as_ref().unwrap());
                let distance: u32 = a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).sum();
                assert_eq!(distance, 1, "{a:?} and {b:?} in {dimensions} dimensions of {bits} bits");
            }
        }
    }

    #[test]
    fn coordinates_of_all_32_bits_fit() {
        assert_eq!(position(&mut [0, 0, 0], 32), 0);
        assert!(position(&mut [u32::MAX, u32::MAX, u32::MAX], 32) > 0);
        assert_eq!(position(&mut [], 5), 0);
    }
}
