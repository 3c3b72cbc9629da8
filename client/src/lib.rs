//! The Heliostat client: a library that any engine can use, and the ground the `heliostat` command stands on.
//!
//! Owns connections to a cell ([`Client`]), questions ([`ScanRequest`], [`ScanStream`], [`Statement`]), searches for
//! nearest neighbours ([`SearchRequest`], [`SearchStream`]), loads ([`LoadWriter`]) and the reading of input files ([`input`]). RDMA links are in `fabric`. Calls `hidb`,
//! `heliostat-tls` and `verbs-shim`.
//!
//! Invariants
//! - Every failure is a [`hidb::Error`] with a stable code; nothing panics on what a cell or a file says.
//! - A `RecordBatch` of an answer borrows the memory that its frame was read into, or that of the client's cache.
//! - An answer of a cache ([`ConnectOptions::result_cache_bytes`]) is no older than the last notice that arrived.

mod address;
mod authenticate;
mod cache;
mod client;
mod condition;
mod connection;
mod credentials;
mod fabric;
mod indexes;
pub mod input;
mod load;
mod notice;
mod options;
mod receive;
mod scan;
mod search;
mod transport;
mod users;

pub use address::{Address, DEFAULT_PORT};
pub use cache::CacheStatistics;
pub use client::{Client, TableDescription};
pub use condition::Condition;
pub use connection::RdmaStatistics;
pub use credentials::{CREDENTIALS_VARIABLE, Credentials};
pub use fabric::Transport;
pub use hidb::plan::sql::ScanText;
pub use hidb::proto::{
    CellStatus, ColumnStorage, IndexDefinition, IndexKind, IndexSummary, ScanStatistics, SearchStatistics, TableSummary,
};
pub use hidb::session::frames::Checksum;
pub use hidb::session::seal::Integrity;
pub use load::{LOAD_BATCH_BYTES, LOAD_BATCH_ROWS, LoadMode, LoadProgress, LoadWriter};
pub use notice::{Notice, NoticeGap};
pub use options::ConnectOptions;
pub use scan::{ScanRequest, ScanStream, Statement};
pub use search::{Accuracy, Metric, NEIGHBOURS_MAX, QueryVector, SearchRequest, SearchStream};
