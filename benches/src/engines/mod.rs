//! What `--ioengine=` may name: fio's own `io_uring` and `null` from `heliostat-fio`, and every layer of Heliostat.
//!
//! Owns [`ENGINES`]. From a query down to the drive and the wire: `hidb-scan`, `hidb-point`, `hidb-search` and `hidb-load`
//! ask a cell, `glommio` is the cell's device layer and `nvme_cmd` the same by NVMe passthrough, `verbs` its fabric,
//! `io_uring` the drive under it.

mod device;
mod hidb;
mod tasks;
pub mod verbs;

use heliostat_fio::engine::{Engines, null::Null, uring::IoUring};

/// All engines, in the order in which `--enghelp` lists them.
pub const ENGINES: Engines<'static> = &[
    &IoUring,
    &device::GLOMMIO,
    &device::NVME_CMD,
    &verbs::Verbs,
    &hidb::scan::HidbScan,
    &hidb::point::HidbPoint,
    &hidb::search::HidbSearch,
    &hidb::load::HidbLoad,
    &Null,
];
