//! HIDB, the protocol of Heliostat: what a cell and its clients must agree on, and nothing else.
//!
//! Owns: the type system ([`types`], [`schema`]), the order of rows ([`order`]), plans ([`plan`]), who may do what ([`auth`]), typed errors with stable
//! codes ([`error`]), the protobuf messages ([`proto`]), frames ([`frame`]), result images ([`image`]) and links
//! over RDMA ([`session`]).
//!
//! Invariants
//! - No I/O, no clock, no threads: everything is a function of its arguments.
//! - Every decoder takes untrusted bytes: it checks lengths before it allocates, and it never panics.
//! - What [`error::ErrorCode`] and the `.proto` files number never changes its number.
//!
//! Called by every other crate of the project; calls none of them.

pub mod aligned;
pub mod arrow_mapping;
pub mod auth;
pub mod calendar;
pub mod cast;
pub mod convert;
pub mod decimal;
pub mod error;
pub mod frame;
pub mod image;
pub mod like;
pub mod order;
pub mod plan;
pub mod proto;
pub mod schema;
pub mod session;
pub mod types;

pub use error::{Error, ErrorCode, Result};
pub use schema::{Field, Schema};
pub use types::{DataType, Lane, Scalar, VectorElement};

/// Values in one block: the unit of decoding, of selection bitmaps and of fine zone maps.
pub const BLOCK_ROWS: usize = 1024;

/// Rows in a full row group: the unit of work a core takes.
pub const ROW_GROUP_ROWS: usize = 131_072;

/// Raw bytes after which a row group is closed even when it holds fewer than [`ROW_GROUP_ROWS`].
pub const ROW_GROUP_RAW_BYTES_MAX: usize = 64 << 20;

/// The longest single value, in bytes.
pub const VALUE_BYTES_MAX: usize = 16 << 20;

/// The most columns a table may have.
pub const COLUMNS_MAX: usize = 4096;

/// The name of the hidden column that holds every row's stable 64-bit id.
pub const ROWID_COLUMN: &str = "_rowid";
