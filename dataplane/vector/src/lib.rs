//! Vector search: which rows are nearest to a query.
//!
//! Owns the distances between vectors and their SIMD kernels, the running top k, k-means, the RaBitQ codes, the two
//! kinds of index (IVF lists and a graph) with their byte layouts, and the calibration that turns a recall target into
//! an index's own parameters. Called by the cell's index builder and by its search.
//!
//! Invariants
//! - Pure: bytes in, bytes out. No I/O, no clock, no threads. What takes long is a state machine whose steps do a bounded
//!   amount of work, so that a caller on an executor can yield between them; what needs bytes says which and takes them.
//! - Every SIMD level gives the same bits, so answers repeat on any machine. What is random is seeded.
//! - Smaller distances are nearer, whatever the [`Metric`]; equal distances are ordered by row id.
//! - No bytes from a drive, whatever they hold, make a decoder panic, read out of bounds or allocate more than a small
//!   multiple of their own length.
//!
//! There is no trait over "an index". The two kinds have different inputs (bytes of lists that must be read first, or
//! everything in memory), different rounds and different statistics; a common shape would be the union of both, and every
//! caller would match on the kind behind it. What they share are plain data: [`Rows`], [`Query`], [`TopK`], [`Neighbor`].

#[cfg(target_endian = "big")]
compile_error!("vectors are read in place and are little-endian");

mod bytes;
pub mod calibrate;
mod distance;
mod element;
mod error;
pub mod generate;
pub mod graph;
pub mod ivf;
pub mod kmeans;
pub mod rabitq;
mod simd;
mod top_k;

pub use distance::{Metric, Query, QueryBatch};
pub use element::{Element, ElementType, Elements, Rows};
pub use error::{Result, VectorError};
pub use half::f16;
pub use heliostat_segment::SimdLevel;
pub use top_k::{Neighbor, TopK};

/// Most dimensions of a vector; the limit of the column type.
pub const DIMENSION_MAX: usize = 65_535;
/// The largest magnitude of a component: the squared distance of two such vectors of [`DIMENSION_MAX`] components is a finite
/// float, with room for the sums that codes make of them.
pub const COMPONENT_MAX: f32 = 1e16;
/// Most neighbours one search returns.
pub const K_MAX: usize = 10_000;
