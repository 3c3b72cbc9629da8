//! k-means: the centroids of the lists, and which of them is nearest.
//!
//! Owns [`Reservoir`] (a bounded sample of any number of rows), [`KMeans`] (the training, as a state machine) and
//! [`Centroids`] (the assignment). Called by the IVF builder and by the graph for its entry points.
//!
//! Invariants
//! - The same sample and seed give the same centroids on any machine.
//! - Memory is the sample, the centroids and a tile of 64 x 1,024 distances; nothing grows with the table.
//! - A step compares at most [`BATCH_ROWS`] rows with all centroids.
//!
//! Training is mini-batch k-means (Sculley, WWW 2010): each row of a batch moves its centroid by one over how many rows
//! that centroid has seen. After each epoch the lists are balanced: the centroid of the smallest list moves into the
//! largest one while that holds more than `split_above` times its fair share, as a list's size is what a probe of it costs.
//!
//! Cost sketch: the assignment of a row is `lists * dimension` multiply-adds, in tiles of 32 to 64 a nanosecond on AVX2:
//! 4,096 lists of 128 dimensions take 16 us.

use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::{Result, VectorError, distance};

/// Rows that one step of [`KMeans`] compares.
pub const BATCH_ROWS: usize = 64;
const CENTROID_TILE: usize = 1024;

/// A uniform sample of bounded size (Vitter's algorithm R).
#[derive(Clone, Debug)]
pub struct Reservoir {
    dimension: usize,
    capacity_rows: usize,
    seen: u64,
    rows: Vec<f32>,
    rng: ChaCha8Rng,
}

impl Reservoir {
    /// Room for `capacity_rows` rows of `dimension` floats.
    pub fn new(dimension: usize, capacity_rows: usize, seed: u64) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Reservoir { dimension, capacity_rows, seen: 0, rows: Vec::new(), rng }
    }

    /// Offers one row.
    pub fn push(&mut self, row: &[f32]) {
        assert_eq!(row.len(), self.dimension);
        self.seen += 1;
        if self.seen <= self.capacity_rows as u64 {
            self.rows.extend_from_slice(row);
        } else {
            let slot = self.rng.random_range(0..self.seen);
            if slot < self.capacity_rows as u64 {
                self.rows[slot as usize * self.dimension..][..self.dimension].copy_from_slice(row);
            }
        }
    }

    /// Rows offered so far.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// The sample, one row after the other.
    pub fn into_rows(self) -> Vec<f32> {
        self.rows
    }
}

/// Centroids and the search for the nearest.
#[derive(Clone, Debug)]
pub struct Centroids {
    dimension: usize,
    values: Vec<f32>,
    /// Half the squared norm of each.
    half_norms: Vec<f32>,
}

impl Centroids {
    /// Centroids one after the other.
    ///
    /// # Errors
    /// [`VectorError::Layout`] when they are not a whole number of rows.
    pub fn new(dimension: usize, values: Vec<f32>) -> Result<Self> {
        let rows = crate::Rows::of(&values, dimension)?;
        let mut half_norms = vec![0.0; rows.count()];
        distance::squares(&values, dimension, &mut half_norms);
        half_norms.iter_mut().for_each(|n| *n *= 0.5);
        Ok(Centroids { dimension, values, half_norms })
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.half_norms.len()
    }

    /// Their dimension.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// All of them, one after the other.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Centroid `index`.
    pub fn get(&self, index: usize) -> &[f32] {
        &self.values[index * self.dimension..][..self.dimension]
    }

    /// Writes the number of the nearest centroid of each row (by L2; the first of equals). `rows` are floats of the same
    /// dimension, one after the other; `out` is as long as there are rows. Without centroids all are 0.
    pub fn nearest(&self, rows: &[f32], out: &mut [u32]) {
        let d = self.dimension;
        assert_eq!(rows.len(), out.len() * d);
        let mut tile = vec![0.0; BATCH_ROWS * CENTROID_TILE];
        let mut padded = Vec::new();
        for (rows, out) in rows.chunks(BATCH_ROWS * d).zip(out.chunks_mut(BATCH_ROWS)) {
            distance::pad(rows, d, &mut padded);
            let mut best = [(f32::INFINITY, 0u32); BATCH_ROWS];
            for start in (0..self.count()).step_by(CENTROID_TILE) {
                let count = CENTROID_TILE.min(self.count() - start);
                let tile = &mut tile[..out.len() * count];
                distance::product_tile(&padded, &self.values[start * d..][..count * d], d, count, tile);
                for (best, products) in best.iter_mut().zip(tile.chunks_exact(count)) {
                    for ((product, norm), index) in products.iter().zip(&self.half_norms[start..]).zip(start as u32..) {
                        let distance = norm - product;
                        if distance < best.0 {
                            *best = (distance, index);
                        }
                    }
                }
            }
            out.iter_mut().zip(best).for_each(|(out, best)| *out = best.1);
        }
    }
}

/// What to train.
#[derive(Clone, Copy, Debug)]
pub struct KMeansOptions {
    /// Centroids wanted; fewer when the sample has fewer rows.
    pub lists: usize,
    /// Passes over the sample.
    pub epochs: usize,
    /// A list of more than so many times the mean size is split.
    pub split_above: f32,
    /// Of the first centroids and of the order of rows.
    pub seed: u64,
}

impl Default for KMeansOptions {
    fn default() -> Self {
        KMeansOptions { lists: 256, epochs: 6, split_above: 2.0, seed: 1 }
    }
}

/// How far a step-wise job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Units of work done.
    pub done: u64,
    /// Units of work in all.
    pub total: u64,
}

impl Progress {
    /// Whether nothing is left.
    pub fn is_finished(self) -> bool {
        self.done >= self.total
    }
}

/// Training as a state machine: call [`KMeans::step`] until it is finished.
#[derive(Clone, Debug)]
pub struct KMeans {
    options: KMeansOptions,
    dimension: usize,
    sample: Vec<f32>,
    order: Vec<u32>,
    centroids: Centroids,
    /// Rows that each centroid has seen in this epoch.
    seen: Vec<u32>,
    at: usize,
    epoch: usize,
    rng: ChaCha8Rng,
}

impl KMeans {
    /// Training on `sample`, rows of `dimension` floats one after the other.
    ///
    /// # Errors
    /// [`VectorError::Layout`] when the sample is not a whole number of rows, [`VectorError::NotFinite`],
    /// [`VectorError::Parameter`] for no lists.
    pub fn new(dimension: usize, options: KMeansOptions, sample: Vec<f32>) -> Result<Self> {
        let rows = crate::Rows::of(&sample, dimension)?;
        rows.check_finite()?;
        if options.lists == 0 {
            return Err(VectorError::parameter("lists", 0, "at least 1"));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        let mut order: Vec<u32> = (0..rows.count() as u32).collect();
        order.shuffle(&mut rng);
        let lists = options.lists.min(rows.count());
        let first = order[..lists].iter().flat_map(|row| &sample[*row as usize * dimension..][..dimension]).copied();
        let centroids = Centroids::new(dimension, first.collect())?;
        Ok(KMeans { options, dimension, order, centroids, seen: vec![1; lists], at: 0, epoch: 0, rng, sample })
    }

    /// How far it is, in rows compared.
    pub fn progress(&self) -> Progress {
        let rows = self.order.len() as u64;
        Progress { done: self.epoch as u64 * rows + self.at as u64, total: self.options.epochs as u64 * rows }
    }

    /// Compares one batch with the centroids and moves them.
    pub fn step(&mut self) -> Progress {
        if self.progress().is_finished() {
            return self.progress();
        }
        let d = self.dimension;
        let batch = &self.order[self.at..(self.at + BATCH_ROWS).min(self.order.len())];
        let mut rows = Vec::with_capacity(batch.len() * d);
        batch.iter().for_each(|row| rows.extend_from_slice(&self.sample[*row as usize * d..][..d]));
        let mut nearest = [0u32; BATCH_ROWS];
        let nearest = &mut nearest[..batch.len()];
        self.centroids.nearest(&rows, nearest);
        for (row, list) in rows.chunks_exact(d).zip(nearest.iter()) {
            let list = *list as usize;
            self.seen[list] += 1;
            let rate = 1.0 / self.seen[list] as f32;
            let centroid = &mut self.centroids.values[list * d..][..d];
            centroid.iter_mut().zip(row).for_each(|(c, x)| *c += rate * (x - *c));
        }
        for list in nearest.iter() {
            self.refresh_norm(*list as usize);
        }
        self.at += nearest.len();
        if self.at >= self.order.len() {
            self.end_epoch();
        }
        self.progress()
    }

    fn refresh_norm(&mut self, list: usize) {
        let mut norm = [0.0];
        distance::squares(self.centroids.get(list), self.dimension, &mut norm);
        self.centroids.half_norms[list] = 0.5 * norm[0];
    }

    fn end_epoch(&mut self) {
        (self.at, self.epoch) = (0, self.epoch + 1);
        self.order.shuffle(&mut self.rng);
        // The last epochs only settle.
        if self.epoch + 2 <= self.options.epochs {
            self.split_large();
        }
        // Rows of earlier epochs count a little, so that a centroid does not jump to the first row it meets.
        self.seen.iter_mut().for_each(|seen| *seen = (*seen / 4).max(1));
    }

    /// Moves the centroids of the smallest lists beside those of the largest.
    fn split_large(&mut self) {
        let d = self.dimension;
        let lists = self.seen.len();
        let fair = self.order.len() as f32 / lists as f32;
        let mut by_size: Vec<u32> = (0..lists as u32).collect();
        by_size.sort_unstable_by_key(|list| (self.seen[*list as usize], *list));
        let (mut small, mut large) = (0, lists - 1);
        while small < large {
            let (from, to) = (by_size[large] as usize, by_size[small] as usize);
            let (most, least) = (self.seen[from], self.seen[to]);
            if (most as f32) <= self.options.split_above * fair || 4 * least >= most {
                break;
            }
            for i in 0..d {
                let nudge = (self.rng.random::<f32>() - 0.5) * 1e-2;
                let value = self.centroids.values[from * d + i];
                self.centroids.values[to * d + i] = value * (1.0 + nudge) + nudge * 1e-3;
            }
            self.seen[from] = most / 2;
            self.seen[to] = most / 2;
            self.refresh_norm(to);
            (small, large) = (small + 1, large - 1);
        }
    }

    /// The centroids as they are now.
    pub fn finish(self) -> Centroids {
        self.centroids
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::Clustered;

    fn train(rows: &[f32], dimension: usize, options: KMeansOptions) -> Centroids {
        let mut training = KMeans::new(dimension, options, rows.to_vec()).unwrap();
        while !training.step().is_finished() {}
        training.finish()
    }

    fn cost(centroids: &Centroids, rows: &[f32], sizes: &mut [usize]) -> f64 {
        let d = centroids.dimension();
        let mut nearest = vec![0; rows.len() / d];
        centroids.nearest(rows, &mut nearest);
        let cost = |(row, list): (&[f32], &u32)| {
            sizes[*list as usize] += 1;
            row.iter().zip(centroids.get(*list as usize)).map(|(x, c)| f64::from(x - c).powi(2)).sum::<f64>()
        };
        rows.chunks_exact(d).zip(&nearest).map(cost).sum()
    }

    #[test]
    fn the_nearest_is_that_of_the_plain_formula() {
        let data = Clustered { dimension: 37, intrinsic: 5, clusters: 9, spread: 0.5, seed: 3 };
        let (rows, some) = (data.rows(0, 150), data.rows(150, 1500));
        let centroids = Centroids::new(37, some).unwrap();
        let mut nearest = vec![0; 150];
        centroids.nearest(&rows, &mut nearest);
        for (row, list) in rows.chunks_exact(37).zip(&nearest) {
            let distance = |i: usize| row.iter().zip(centroids.get(i)).map(|(x, c)| (x - c).powi(2)).sum::<f32>();
            let best = (0..centroids.count()).map(distance).fold(f32::INFINITY, f32::min);
            assert!(distance(*list as usize) <= best * 1.0001 + 1e-5);
        }
    }

    #[test]
    fn training_repeats_improves_and_balances() {
        let data = Clustered { dimension: 24, intrinsic: 6, clusters: 40, spread: 0.4, seed: 5 };
        let rows = data.rows(0, 6000);
        let options = KMeansOptions { lists: 64, ..KMeansOptions::default() };
        let centroids = train(&rows, 24, options);
        assert_eq!(centroids.values(), train(&rows, 24, options).values());
        let first = Centroids::new(24, rows[..64 * 24].to_vec()).unwrap();
        let (mut before, mut after) = ([0; 64], [0; 64]);
        let (cost_before, cost_after) = (cost(&first, &rows, &mut before), cost(&centroids, &rows, &mut after));
        assert!(cost_after < 0.6 * cost_before, "{cost_before} {cost_after}");
        let largest = after.iter().max().unwrap();
        assert!(*largest < 6000 / 64 * 5, "{after:?}");
    }

    #[test]
    fn fewer_rows_than_lists_are_all_centroids() {
        let rows = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        let centroids = train(&rows, 2, KMeansOptions { lists: 100, ..KMeansOptions::default() });
        assert_eq!(centroids.count(), 3);
        assert_eq!(train(&[], 2, KMeansOptions::default()).count(), 0);
    }

    #[test]
    fn a_reservoir_is_bounded_and_uniform() {
        let mut sums = [0u32; 10];
        for seed in 0..400 {
            let mut reservoir = Reservoir::new(1, 5, seed);
            (0..10).for_each(|row| reservoir.push(&[row as f32]));
            let rows = reservoir.into_rows();
            assert_eq!(rows.len(), 5);
            rows.iter().for_each(|row| sums[*row as usize] += 1);
        }
        assert!(sums.iter().all(|sum| (150..250).contains(sum)), "{sums:?}");
    }
}
