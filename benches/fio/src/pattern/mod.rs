//! Which op comes next: kind, file, offset and length, from a seed.
//!
//! Pure: no clock, no I/O. The same job and seed give the same ops, whatever the engine does with them. Called by the
//! job's loop, once per op; a uniform random op with a random map costs about 15 ns.
//!
//! - `rng`: xoshiro256++.
//! - `permutation`: each block once, in random order, without memory.
//! - `distribution`: zipf, pareto, normal, zoned.
//! - `random_map`: each block once when sizes vary.
//! - `stream`: all of it together.

mod distribution;
mod permutation;
mod random_map;
mod rng;
mod stream;

pub(crate) use rng::Rng;
pub(crate) use stream::{OpStream, Planned, Region};
