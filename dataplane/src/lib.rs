//! The cell: everything of `heliostat-cell` but its command line.
//!
//! Owns the device rings, the arena and block cache, the volume and its manifest, loads and scans on glommio
//! executors, and HIDB over TCP. The map is in `docs/architecture.md`.
//!
//! Invariants
//! - A core (one glommio executor) never blocks and shares nothing that is locked on the request path.
//! - What is acknowledged is on the device, flushed, and in the manifest, written synchronously.
//!
//! Called by `main`, by tests and by benchmarks.

#![deny(unsafe_op_in_unsafe_fn)]

pub mod arena;
pub mod cache;
pub mod config;
pub mod cores;
pub mod device;
pub mod fabric;
pub mod huge_pages;
pub mod manifest;
pub mod metrics;
pub mod search;
pub mod server;
pub mod store;
pub mod tls_tool;
pub mod user_tool;
pub mod volume;
pub mod waiters;
pub mod workers;
