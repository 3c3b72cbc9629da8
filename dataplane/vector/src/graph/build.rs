//! Links vectors into a graph, step by step.
//!
//! Owns [`GraphOptions`] and [`GraphBuilder`]. Called by the cell's background job.
//!
//! Invariants
//! - The same rows in the same order, options and seed give the same graph on any machine.
//! - A step links as many nodes as it was asked to, each at the cost of a walk and some prunings.
//! - Every node can be reached from an entry once the graph is finished.
//!
//! Memory: 7-bit codes (`dimension` bytes a row), links (`6 * degree` bytes), the final codes and, when they are kept, the
//! vectors. Full vectors are not read after they were added: walks and prunings compare codes.
//!
//! Cost sketch: an insertion compares about `build_ef * degree / 2` nodes on its walk and as many pairs in prunings, 10 ns
//! each: 384 dimensions at `build_ef` 80 take some 70 us, 4 s for 62,666 rows on one core.

use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::{
    ENTRIES_MAX, Graph, NONE, Vectors,
    codes::{Codes, Terms},
    nodes_of_rows, normalised,
    search::{Links, Walk},
};
use crate::{
    ElementType, Metric, Result, Rows, VectorError, calibrate::Calibration, kmeans::Progress, rabitq::Rotation,
};

/// How to build a graph.
#[derive(Clone, Copy, Debug)]
pub struct GraphOptions {
    /// Most neighbours of a node, 4 to 128.
    pub degree: usize,
    /// Candidates that an insertion's walk keeps.
    pub build_ef: usize,
    /// How much nearer a neighbour must be to another one, in distance, to be left out; at least 1.
    pub alpha: f32,
    /// Bits of the codes that searches walk on, 4 or 7.
    pub bits: u8,
    /// Whether the graph holds the vectors, for re-ranking.
    pub keep_vectors: bool,
    /// Of the rotation and of the order of insertion.
    pub seed: u64,
}

impl Default for GraphOptions {
    fn default() -> Self {
        GraphOptions { degree: 32, build_ef: 80, alpha: 1.15, bits: 4, keep_vectors: true, seed: 1 }
    }
}

/// A graph in the making.
#[derive(Clone, Debug)]
pub struct GraphBuilder {
    options: GraphOptions,
    metric: Metric,
    element: ElementType,
    dimension: usize,
    rotation: Rotation,
    origin: Vec<f32>,
    /// 7 bits, for building.
    codes: Codes,
    /// Squared norms, for the inner product; those of the first `lifted` nodes are used.
    norms: Vec<f32>,
    norm_max: f32,
    lifted: usize,
    /// What searches will walk on, when that is not 7 bits.
    small: Option<Codes>,
    vectors: Option<Vectors>,
    links: Vec<u32>,
    /// Links that a node may have for now; then it is pruned to the degree.
    stride: usize,
    /// Nodes in order of insertion, of which the first `linked` are done.
    order: Vec<u32>,
    linked: usize,
    walk: Walk,
    bytes: Vec<i8>,
    products: Vec<i32>,
}

/// Nodes that a walk of the builder starts from.
const BUILD_ENTRIES: usize = 256;
/// Rows that each entry is drawn from.
const ENTRY_POOL: usize = 16;

/// Nodes that a search of so many starts from.
fn entries_of(count: usize) -> usize {
    ((count as f64).sqrt() as usize).clamp(1, ENTRIES_MAX).min(count)
}

impl GraphBuilder {
    /// A graph for rows of `element` type like those of `sample`, whose mean becomes the origin of the codes. The sample may
    /// be of any type: it tells the dimension and where the rows lie, as floats.
    ///
    /// # Errors
    /// [`VectorError::Parameter`], [`VectorError::Metric`], [`VectorError::NotFinite`].
    pub fn new(options: GraphOptions, metric: Metric, element: ElementType, sample: &Rows<'_>) -> Result<Self> {
        metric.check(element)?;
        sample.check_finite()?;
        if !(4..=128).contains(&options.degree) {
            return Err(VectorError::parameter("degree", options.degree, "4 to 128"));
        }
        if !(options.alpha >= 1.0 && options.alpha <= 2.0) {
            return Err(VectorError::parameter("alpha", options.alpha, "1 to 2"));
        }
        let dimension = sample.dimension();
        let mut origin = vec![0.0; dimension];
        let mut row = vec![0.0; dimension];
        for index in 0..sample.count() {
            sample.to_f32(index, &mut row);
            normalised(metric, &mut row);
            let rate = 1.0 / (index + 1) as f32;
            origin.iter_mut().zip(&row).for_each(|(mean, x)| *mean += (x - *mean) * rate);
        }
        let rotation = Rotation::new(dimension, options.seed);
        let codes = Codes::new(7, rotation.padded())?;
        let small = if options.bits == 7 { None } else { Some(Codes::new(options.bits, rotation.padded())?) };
        Ok(GraphBuilder {
            options,
            metric,
            element,
            dimension,
            rotation,
            origin,
            codes,
            norms: Vec::new(),
            norm_max: 0.0,
            lifted: 0,
            small,
            vectors: options.keep_vectors.then(|| Vectors::new(element)),
            links: Vec::new(),
            stride: options.degree + options.degree / 2,
            order: Vec::new(),
            linked: 0,
            walk: Walk::default(),
            bytes: Vec::new(),
            products: Vec::new(),
        })
    }

    /// Adds rows, numbered on from those before. They are encoded here and linked by [`GraphBuilder::step`]. Rows may be
    /// added between steps: they are inserted into the graph that is there.
    ///
    /// # Errors
    /// [`VectorError::Dimension`], [`VectorError::Type`], [`VectorError::NotFinite`] (nothing is added then).
    pub fn push(&mut self, rows: &Rows<'_>) -> Result<()> {
        if rows.dimension() != self.dimension {
            return Err(VectorError::Dimension { expected: self.dimension, given: rows.dimension() });
        }
        if rows.element_type() != self.element {
            return Err(VectorError::Type { expected: self.element, given: rows.element_type() });
        }
        rows.check_finite()?;
        let first = self.codes.count();
        if first + rows.count() > i32::MAX as usize {
            return Err(VectorError::parameter("rows of a graph", first + rows.count(), format!("up to {}", i32::MAX)));
        }
        if let Some(vectors) = &mut self.vectors {
            vectors.extend(rows);
        }
        let padded = self.rotation.padded();
        let (mut row, mut rotated, mut codes) = (vec![0.0; self.dimension], vec![0.0; padded], vec![0u8; padded]);
        for index in 0..rows.count() {
            rows.to_f32(index, &mut row);
            normalised(self.metric, &mut row);
            if self.metric == Metric::InnerProduct {
                let norm: f32 = row.iter().map(|x| x * x).sum();
                self.norms.push(norm);
                self.norm_max = self.norm_max.max(norm);
            }
            row.iter_mut().zip(&self.origin).for_each(|(x, o)| *x -= o);
            self.rotation.rotate(&row, &mut rotated);
            if let Some(small) = &mut self.small {
                small.push(&rotated, &mut codes);
            }
            self.codes.push(&rotated, &mut codes);
        }
        let count = self.codes.count();
        self.links.resize(count * self.stride, NONE);
        // Rows of a table lie in an order of their own; a graph wants them at random.
        let mut rng = ChaCha8Rng::seed_from_u64(self.options.seed ^ first as u64);
        let mut added: Vec<u32> = (first as u32..count as u32).collect();
        self.order.append(&mut added);
        self.order[self.linked..].shuffle(&mut rng);
        Ok(())
    }

    /// How many rows are linked.
    pub fn progress(&self) -> Progress {
        Progress { done: self.linked as u64, total: self.order.len() as u64 }
    }

    /// Bytes that the builder keeps.
    pub fn memory_bytes(&self) -> usize {
        let vectors =
            if self.vectors.is_some() { self.order.len() * self.element.row_bytes(self.dimension) } else { 0 };
        let small = self.small.as_ref().map_or(0, Codes::memory_bytes);
        self.codes.memory_bytes() + small + vectors + 4 * (self.links.len() + 2 * self.order.len())
    }

    /// Links up to `nodes` more rows.
    pub fn step(&mut self, nodes: usize) -> Progress {
        if self.lifted < self.norms.len() {
            self.lift();
        }
        if self.linked == 0 {
            self.spread_entries();
        }
        for _ in 0..nodes.min(self.order.len() - self.linked) {
            self.link(self.order[self.linked]);
            self.linked += 1;
        }
        self.progress()
    }

    /// Moves rows that lie apart to the front of the order: they are linked first, and every walk begins at them. At random,
    /// clusters that few links lead to have none, and are not found: of a million rows in 200 clusters those of a twentieth
    /// of the queries. Each is drawn from a sample with a probability proportional to its squared distance from those before
    /// (Arthur and Vassilvitskii, "k-means++", SODA 2007): outliers are not preferred as they are by the farthest.
    fn spread_entries(&mut self) {
        let wanted = entries_of(self.order.len());
        let pool = (ENTRY_POOL * wanted).min(self.order.len());
        let mut rng = ChaCha8Rng::seed_from_u64(!self.options.seed);
        let GraphBuilder { codes, order, bytes, products, .. } = self;
        let order = &mut order[..pool];
        let mut nearest = vec![f32::INFINITY; pool];
        products.resize(pool, 0);
        for drawn in 1..wanted.min(pool) {
            let last = order[drawn - 1];
            let own = codes.terms[last as usize];
            codes.bytes_of(last as usize, bytes);
            let products = &mut products[..pool - drawn];
            codes.products(bytes, &order[drawn..], products);
            let mut sum = 0.0;
            for ((other, product), nearest) in order[drawn..].iter().zip(&*products).zip(&mut nearest[drawn..]) {
                *nearest = nearest.min(Self::distance(codes, own, codes.terms[*other as usize], *product));
                sum += f64::from(*nearest);
            }
            let mut left = rng.random::<f64>() * sum;
            let next = nearest[drawn..].iter().position(|distance| {
                left -= f64::from(*distance);
                left < 0.0
            });
            // None when all that are left are copies of those that were drawn.
            let Some(next) = next else { break };
            order.swap(drawn, drawn + next);
            nearest.swap(drawn, drawn + next);
        }
    }

    /// Gives the rows that have none their additional component. Rows longer than all before count as long as those.
    fn lift(&mut self) {
        for node in self.lifted..self.norms.len() {
            let square = (self.norm_max - self.norms[node]).max(0.0);
            self.codes.lift(node, square);
            if let Some(small) = &mut self.small {
                small.lift(node, square);
            }
        }
        self.lifted = self.norms.len();
    }

    /// The distance of two nodes, whose codes have this product.
    #[inline(always)]
    fn distance(codes: &Codes, a: Terms, b: Terms, product: i32) -> f32 {
        // Four times the product of the codes less their middle, 63.5.
        let sums = i64::from(a.sum) + i64::from(b.sum);
        let centred = 4 * i64::from(product) - 254 * sums + codes.padded as i64 * 127 * 127;
        (a.offset + b.offset - a.slope * b.slope * (0.125 * centred as f32) - 2.0 * a.lift * b.lift).max(0.0)
    }

    /// Finds a node's neighbours and makes it theirs.
    fn link(&mut self, node: u32) {
        let GraphBuilder { codes, links, order, walk, bytes, .. } = self;
        if self.linked == 0 {
            return;
        }
        codes.bytes_of(node as usize, bytes);
        let entries = &order[..self.linked.min(BUILD_ENTRIES)];
        let own = codes.terms[node as usize];
        let distance = |other: u32, product| Self::distance(codes, own, codes.terms[other as usize], product);
        let graph = Links { links, stride: self.stride };
        // Nodes passed on the way are candidates too, though they fell out of the pool: they become the long links.
        let mut candidates = Vec::with_capacity(2 * self.options.build_ef);
        walk.run(codes, graph, entries, bytes, self.options.build_ef, None, distance, |_, _| {});
        candidates.extend(walk.pool.iter());
        let mut passed: Vec<u32> = walk.expanded.clone();
        passed.sort_unstable();
        let mut kept: Vec<u32> = candidates.iter().map(|(_, node)| *node).collect();
        kept.sort_unstable();
        passed.retain(|node| kept.binary_search(node).is_err());
        self.products.resize(passed.len(), 0);
        codes.products(bytes, &passed, &mut self.products);
        candidates
            .extend(passed.iter().zip(&self.products).map(|(other, product)| (distance(*other, *product), *other)));
        let neighbors = self.prune(node, candidates);
        self.links[node as usize * self.stride..][..neighbors.len()].copy_from_slice(&neighbors);
        for neighbor in neighbors {
            self.link_back(neighbor, node);
        }
    }

    /// Adds `node` to the links of `neighbor`, which are pruned when they are full.
    fn link_back(&mut self, neighbor: u32, node: u32) {
        let links = &mut self.links[neighbor as usize * self.stride..][..self.stride];
        if let Some(free) = links.iter_mut().find(|link| **link == NONE) {
            *free = node;
            return;
        }
        let mut others = links.to_vec();
        others.push(node);
        self.prune_links(neighbor, &others);
    }

    /// Makes the best of `others` the links of `node`.
    fn prune_links(&mut self, node: u32, others: &[u32]) {
        self.codes.bytes_of(node as usize, &mut self.bytes);
        self.products.resize(others.len(), 0);
        self.codes.products(&self.bytes, others, &mut self.products);
        let codes = &self.codes;
        let own = codes.terms[node as usize];
        let distance = |(other, product): (&u32, &i32)| {
            (Self::distance(codes, own, codes.terms[*other as usize], *product), *other)
        };
        let candidates = others.iter().zip(&self.products).map(distance).collect();
        let kept = self.prune(node, candidates);
        let links = &mut self.links[node as usize * self.stride..][..self.stride];
        links.fill(NONE);
        links[..kept.len()].copy_from_slice(&kept);
    }

    /// The candidates that no nearer candidate stands for, at most `degree`, nearest first.
    fn prune(&mut self, node: u32, mut candidates: Vec<(f32, u32)>) -> Vec<u32> {
        const CHUNK: usize = 8;
        candidates.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let alpha = self.options.alpha * self.options.alpha;
        let mut kept: Vec<u32> = Vec::with_capacity(self.options.degree);
        for (distance, candidate) in candidates {
            if candidate == node {
                continue;
            }
            if kept.len() == self.options.degree {
                break;
            }
            self.codes.bytes_of(candidate as usize, &mut self.bytes);
            let own = self.codes.terms[candidate as usize];
            let mut products = [0; CHUNK];
            let stands_for = kept.chunks(CHUNK).any(|some| {
                let products = &mut products[..some.len()];
                self.codes.products(&self.bytes, some, products);
                some.iter().zip(products.iter()).any(|(other, product)| {
                    let terms = self.codes.terms[*other as usize];
                    alpha * Self::distance(&self.codes, own, terms, *product) <= distance
                })
            });
            if !stands_for {
                kept.push(candidate);
            }
        }
        kept
    }

    /// Links what is left, prunes every node to the degree and numbers nodes so that neighbours lie together.
    pub fn finish(mut self) -> Result<Graph> {
        while !self.step(1024).is_finished() {}
        let (count, degree, stride) = (self.codes.count(), self.options.degree, self.stride);
        for node in 0..count {
            let links = &self.links[node * stride..][..stride];
            if links[degree] != NONE {
                let others: Vec<u32> = links.iter().copied().take_while(|link| *link != NONE).collect();
                self.prune_links(node as u32, &others);
            }
        }
        let entries = entries_of(count);
        let nodes = self.breadth_first(entries);
        let mut number = vec![NONE; count];
        nodes.iter().zip(0..).for_each(|(node, new)| number[*node as usize] = new);
        let mut links = Vec::with_capacity(count * degree);
        for node in &nodes {
            let old = &self.links[*node as usize * stride..][..degree];
            links.extend(old.iter().map(|link| if *link == NONE { NONE } else { number[*link as usize] }));
        }
        let from = self.small.as_ref().unwrap_or(&self.codes);
        let mut codes = Codes::new(from.bits, from.padded)?;
        nodes.iter().for_each(|node| codes.push_from(from, *node as usize));
        let vectors = match &self.vectors {
            Some(vectors) => {
                let all = vectors.rows(self.dimension)?;
                let mut ordered = Vectors::new(self.element);
                nodes.iter().for_each(|node| ordered.extend(&all.slice(*node as usize, 1)));
                Some(ordered)
            }
            None => None,
        };
        Ok(Graph {
            metric: self.metric,
            element: self.element,
            dimension: self.dimension,
            seed: self.options.seed,
            rotation: self.rotation,
            origin: self.origin,
            codes,
            links,
            degree,
            entries,
            nodes: nodes_of_rows(&nodes),
            rows: nodes,
            vectors,
            calibration: Calibration::default(),
        })
    }

    /// The nodes in breadth-first order from the first `entries` that were linked. A node that nothing leads to is made a
    /// link of one of its own neighbours.
    fn breadth_first(&mut self, entries: usize) -> Vec<u32> {
        let (degree, stride) = (self.options.degree, self.stride);
        let count = self.codes.count();
        let mut nodes: Vec<u32> = self.order[..entries].to_vec();
        let mut reached = vec![false; count];
        nodes.iter().for_each(|node| reached[*node as usize] = true);
        let (mut at, mut rest) = (0, 0);
        loop {
            while at < nodes.len() {
                let node = nodes[at] as usize;
                at += 1;
                for link in &self.links[node * stride..][..degree] {
                    if *link != NONE && !reached[*link as usize] {
                        reached[*link as usize] = true;
                        nodes.push(*link);
                    }
                }
            }
            while rest < count && reached[rest] {
                rest += 1;
            }
            if rest == count {
                return nodes;
            }
            let own = self.links[rest * stride];
            let through = if own != NONE && reached[own as usize] { own } else { nodes[0] };
            let links = &mut self.links[through as usize * stride..][..degree];
            let slot = links.iter().position(|link| *link == NONE).unwrap_or(degree - 1);
            links[slot] = rest as u32;
            reached[rest] = true;
            nodes.push(rest as u32);
        }
    }
}
