//! From a wanted recall to an index's own parameter.
//!
//! Owns [`Calibration`] (a small table kept with the index) and [`Calibrator`] (measures it, step by step). Called by the
//! builder's job after an index is finished, with queries that were held out, and by the planner.
//!
//! Invariants
//! - A larger parameter never has a smaller recall in the table: measured noise is smoothed away downwards, so that the
//!   parameter chosen for a target is one that reached it.
//! - The table never promises more than what was measured less the sampling error of the queries.

use crate::{Neighbor, Result, VectorError};

/// Points of a calibration, at most.
pub const POINTS_MAX: usize = 64;

/// Parameters (probes or `ef`) and the recall that each reached.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calibration {
    /// Ascending by parameter, with recall that does not fall.
    points: Vec<(u32, f32)>,
    /// Neighbours that were asked for.
    k: u32,
}

/// Recall of an answer by distance: the part of the true `k` that it has, where any row as near as the last true one
/// counts (ties and duplicates are as good).
pub fn recall(found: &[Neighbor], truth: &[Neighbor]) -> f32 {
    let Some(last) = truth.last() else { return 1.0 };
    let reach = last.distance + last.distance.abs() * 1e-5 + 1e-7;
    let hits = found.iter().take(truth.len()).filter(|n| n.distance <= reach).count();
    hits as f32 / truth.len() as f32
}

impl Calibration {
    /// The smallest parameter that reaches `recall`, with the step between two measured points divided in proportion; the
    /// largest one measured when none does. `None` without a calibration.
    pub fn parameter(&self, recall: f32) -> Option<u32> {
        let at = self.points.partition_point(|(_, reached)| *reached < recall);
        match (at.checked_sub(1).map(|before| self.points[before]), self.points.get(at)) {
            (None, Some((parameter, _))) => Some(*parameter),
            (Some((low, below)), Some((high, above))) => {
                let part = f64::from(recall - below) / f64::from((above - below).max(1e-6));
                Some(low + (f64::from(high - low) * part).ceil() as u32)
            }
            (last, None) => last.map(|(parameter, _)| parameter),
        }
    }

    /// The points, ascending.
    pub fn points(&self) -> &[(u32, f32)] {
        &self.points
    }

    /// How many neighbours it was measured for. Searches for more need a parameter larger in proportion.
    pub fn k(&self) -> usize {
        self.k as usize
    }

    /// Appends the bytes that [`Calibration::read`] takes.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.k.to_le_bytes());
        out.extend_from_slice(&(self.points.len() as u32).to_le_bytes());
        for (parameter, recall) in &self.points {
            out.extend_from_slice(&parameter.to_le_bytes());
            out.extend_from_slice(&recall.to_le_bytes());
        }
    }

    /// Reads a calibration from the front of `bytes`; returns it and how long it was.
    ///
    /// # Errors
    /// [`VectorError::Corrupt`].
    pub fn read(bytes: &[u8]) -> Result<(Self, usize)> {
        let word = |at: usize| {
            let bytes = bytes.get(at..at + 4).ok_or_else(|| VectorError::corrupt("calibration", "cut short"))?;
            Ok::<_, VectorError>(bytes.iter().rev().fold(0u32, |word, byte| word << 8 | u32::from(*byte)))
        };
        let (k, count) = (word(0)?, word(4)? as usize);
        if count > POINTS_MAX {
            return Err(VectorError::corrupt("calibration", format!("{count} points, at most {POINTS_MAX}")));
        }
        let mut points: Vec<(u32, f32)> = Vec::with_capacity(count);
        for i in 0..count {
            let (parameter, recall) = (word(8 + 8 * i)?, f32::from_bits(word(12 + 8 * i)?));
            let in_order = points.last().is_none_or(|last| last.0 < parameter && last.1 <= recall);
            if !in_order || !(0.0..=1.0).contains(&recall) {
                return Err(VectorError::corrupt("calibration", format!("point {i} is ({parameter}, {recall})")));
            }
            points.push((parameter, recall));
        }
        Ok((Calibration { points, k }, 8 + 8 * count))
    }
}

/// Measures a [`Calibration`]: ask it what to search, tell it what was found.
#[derive(Clone, Debug)]
pub struct Calibrator {
    k: u32,
    /// Exact answers of the queries that were held out.
    truths: Vec<Vec<Neighbor>>,
    parameters: Vec<u32>,
    point: usize,
    query: usize,
    sum: f64,
    squares: f64,
    measured: Vec<(u32, f32)>,
}

impl Calibrator {
    /// Measures `parameters` on queries with these exact answers, `k` neighbours each.
    ///
    /// # Errors
    /// [`VectorError::Parameter`] for too many parameters, or ones that do not ascend.
    pub fn new(k: usize, parameters: Vec<u32>, truths: Vec<Vec<Neighbor>>) -> Result<Self> {
        if parameters.len() > POINTS_MAX || !parameters.is_sorted_by(|a, b| a < b) {
            return Err(VectorError::parameter("points", parameters.len(), format!("{POINTS_MAX}, ascending")));
        }
        let measured = Vec::new();
        Ok(Calibrator { k: k as u32, truths, parameters, point: 0, query: 0, sum: 0.0, squares: 0.0, measured })
    }

    /// The query (by number) and the parameter to search with next; `None` when everything is measured.
    pub fn next(&self) -> Option<(usize, u32)> {
        let parameter = *self.parameters.get(self.point)?;
        (!self.truths.is_empty()).then_some((self.query, parameter))
    }

    /// Takes the answer to what [`Calibrator::next`] asked.
    pub fn found(&mut self, neighbors: &[Neighbor]) {
        let Some((query, parameter)) = self.next() else { return };
        let reached = f64::from(recall(neighbors, &self.truths[query]));
        self.sum += reached;
        self.squares += reached * reached;
        self.query += 1;
        if self.query < self.truths.len() {
            return;
        }
        let count = self.truths.len() as f64;
        let mean = self.sum / count;
        let variance = (self.squares / count - mean * mean).max(0.0);
        // One standard error off: other queries are not these queries.
        let safe = (mean - (variance / count).sqrt()).clamp(0.0, 1.0);
        self.measured.push((parameter, safe as f32));
        (self.query, self.sum, self.squares) = (0, 0.0, 0.0);
        self.point += 1;
        // Once everything is found, larger parameters only cost.
        if mean >= 0.9999 {
            self.point = self.parameters.len();
        }
    }

    /// The calibration.
    pub fn finish(self) -> Calibration {
        let mut points = self.measured;
        for i in (1..points.len()).rev() {
            points[i - 1].1 = points[i - 1].1.min(points[i].1);
        }
        Calibration { points, k: self.k }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(distance: f32) -> Neighbor {
        Neighbor { distance, row: 0 }
    }

    #[test]
    fn a_target_becomes_the_parameter_that_reached_it() {
        let truth = vec![at(1.0), at(2.0)];
        let mut calibrator = Calibrator::new(2, vec![10, 20, 40], vec![truth.clone(); 50]).unwrap();
        while let Some((_, parameter)) = calibrator.next() {
            let found = if parameter == 10 { vec![at(1.0), at(3.0)] } else { truth.clone() };
            calibrator.found(&found);
        }
        let calibration = calibrator.finish();
        assert_eq!(calibration.points(), [(10, 0.5), (20, 1.0)]);
        assert_eq!(calibration.parameter(0.3), Some(10));
        assert_eq!(calibration.parameter(0.75), Some(15));
        assert_eq!(calibration.parameter(1.0), Some(20));
        assert_eq!(Calibration::default().parameter(0.9), None);
        let mut bytes = Vec::new();
        calibration.write(&mut bytes);
        assert_eq!(Calibration::read(&bytes).unwrap(), (calibration, bytes.len()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_calibration_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok((calibration, _)) = Calibration::read(&bytes) {
                calibration.parameter(0.95);
            }
        }
    }
}
